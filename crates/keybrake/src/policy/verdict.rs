//! Verdicts: the closed list of reasons for which a call is refused, and everything a caller may know of one.

use serde::{Deserialize, Serialize};

use crate::money::Usd;
use crate::request::Refusal;

/// Why a call was refused. The order is the order of the checks; the first that fails names the denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No token on the call.
    KeyMissing,
    /// The token is not one of this ledger's, or a raw vendor secret stands where a token should.
    KeyUnknown,
    /// A standing stop covers the key.
    Stopped,
    /// The key was revoked.
    KeyRevoked,
    /// The key's lifetime is over.
    KeyExpired,
    /// The request can be read in two ways, so it is read in none.
    RequestMalformed,
    /// The vendor, or the host, is not one that this key opens.
    VendorNotAllowed,
    /// The operation is not allowed by the policy, or is not known.
    EndpointNotAllowed,
    /// The connected account is not allowed.
    AccountNotAllowed,
    /// The customer is not allowed.
    CustomerNotAllowed,
    /// The destination (phone number, mail address, bank or connected account) is not allowed.
    DestinationNotAllowed,
    /// A rule on a request field failed.
    ParamNotAllowed,
    /// The same call was sent before, and nobody knows whether it took effect.
    OutcomeUnknown,
    /// The same call is known to be done, and its recorded reply is gone.
    AlreadyDone,
    /// The same discriminator came with different identity fields.
    IdempotencyConflict,
    /// The generations of this identity are used up.
    AttemptsExhausted,
    /// What the call may cost is not known.
    CostUnknown,
    /// A currency without a rate.
    CurrencyNotAllowed,
    /// Above the ceiling for one call.
    AmountOverLimit,
    /// A person must approve it first.
    NeedsApproval,
    /// Settled and requested are over a cap.
    CapExceeded,
    /// Only open holds stand in the way.
    CapHeld,
    /// The ledger cannot be reached. Nothing was sent.
    LedgerUnavailable,
    /// The ledger has just started and is not yet open. Nothing was sent.
    LedgerRecovering,
}

impl Code {
    /// All codes, in the order of the checks.
    pub const ALL: [Self; 24] = [
        Self::KeyMissing,
        Self::KeyUnknown,
        Self::Stopped,
        Self::KeyRevoked,
        Self::KeyExpired,
        Self::RequestMalformed,
        Self::VendorNotAllowed,
        Self::EndpointNotAllowed,
        Self::AccountNotAllowed,
        Self::CustomerNotAllowed,
        Self::DestinationNotAllowed,
        Self::ParamNotAllowed,
        Self::OutcomeUnknown,
        Self::AlreadyDone,
        Self::IdempotencyConflict,
        Self::AttemptsExhausted,
        Self::CostUnknown,
        Self::CurrencyNotAllowed,
        Self::AmountOverLimit,
        Self::NeedsApproval,
        Self::CapExceeded,
        Self::CapHeld,
        Self::LedgerUnavailable,
        Self::LedgerRecovering,
    ];

    /// The code as users read it, such as `cap_exceeded`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyMissing => "key_missing",
            Self::KeyUnknown => "key_unknown",
            Self::Stopped => "stopped",
            Self::KeyRevoked => "key_revoked",
            Self::KeyExpired => "key_expired",
            Self::RequestMalformed => "request_malformed",
            Self::VendorNotAllowed => "vendor_not_allowed",
            Self::EndpointNotAllowed => "endpoint_not_allowed",
            Self::AccountNotAllowed => "account_not_allowed",
            Self::CustomerNotAllowed => "customer_not_allowed",
            Self::DestinationNotAllowed => "destination_not_allowed",
            Self::ParamNotAllowed => "param_not_allowed",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::AlreadyDone => "already_done",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::CostUnknown => "cost_unknown",
            Self::CurrencyNotAllowed => "currency_not_allowed",
            Self::AmountOverLimit => "amount_over_limit",
            Self::NeedsApproval => "needs_approval",
            Self::CapExceeded => "cap_exceeded",
            Self::CapHeld => "cap_held",
            Self::LedgerUnavailable => "ledger_unavailable",
            Self::LedgerRecovering => "ledger_recovering",
        }
    }

    /// The HTTP status the vendor's SDK is shown. Never 402 (read as a declined card), never 409 (retried).
    /// `cap_status` is the policy's choice for the two cap codes: 429 or 403.
    pub const fn http_status(self, cap_status: u16) -> u16 {
        match self {
            Self::KeyMissing | Self::KeyUnknown | Self::KeyRevoked | Self::KeyExpired => 401,
            Self::IdempotencyConflict => 400,
            Self::CapExceeded | Self::CapHeld => cap_status,
            Self::LedgerUnavailable | Self::LedgerRecovering => 503,
            _ => 403,
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refused call: what was refused, why, and what is left. An ordinary answer, not an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The first check that failed.
    pub code: Code,
    /// One sentence for a person: what was wrong, where, what to do. Holds no secret and no vendor data.
    pub message: String,
    /// The call's id, as in the audit.
    pub call_id: String,
    /// The vendor, when it was recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The operation, when it was recognised, such as `refunds.create`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// What the call asked for, in micro-USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_micros: Option<i64>,
    /// The budget that is full, for `cap_exceeded` and `cap_held`; the ceiling of one call (`per: "call"`), for
    /// `amount_over_limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetView>,
    /// The stop that covers the key, for `stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopView>,
    /// The earlier call, for `outcome_unknown`, `already_done` and `idempotency_conflict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<ExistingCall>,
    /// Whether waiting may help (`cap_held` only).
    #[serde(default)]
    pub retryable: bool,
    /// Whether the call was in flight already when a hard stop aborted it (`stopped` only): it may have taken effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aborted: bool,
    /// Whether the text for the model may carry amounts (`model_detail: full`).
    #[serde(default = "yes")]
    pub full_detail: bool,
}

const fn yes() -> bool {
    true
}

impl Denial {
    /// A denial with a code and a message; the rest is filled in by whoever knows it.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            call_id: String::new(),
            vendor: None,
            operation: None,
            requested_micros: None,
            budget: None,
            stop: None,
            existing: None,
            retryable: false,
            aborted: false,
            full_detail: true,
        }
    }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.message)
    }
}

/// One budget as seen at one moment. `unit` is `usd` (numbers are micro-USD) or a count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// The budget's name, such as `stripe lineage:support-v2 usd per day`.
    pub name: String,
    /// `usd`, `calls`, `writes` or `sends`.
    pub unit: String,
    /// `hour`, `day`, `rolling_24h`, `month`, `run` or `lifetime`; `call` for the ceiling of one call, which is no
    /// budget: nothing is used of it.
    pub per: String,
    /// The cap: micro-USD for `usd`, else a count.
    pub cap: i64,
    /// Settled, in the same unit.
    pub used: i64,
    /// Reserved and not yet proven, in the same unit.
    pub held: i64,
    /// When the window ends, Unix milliseconds; `None` for run and lifetime budgets.
    pub resets_at_ms: Option<i64>,
    /// Calls that hold part of it, at most ten (for `cap_held`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hold_ids: Vec<String>,
}

impl BudgetView {
    /// The ceiling of one call as `amount_over_limit` shows it.
    pub fn per_call(vendor: &str, most: Usd) -> Self {
        Self {
            name: format!("{vendor} max_amount_per_call_usd"),
            unit: "usd".to_owned(),
            per: "call".to_owned(),
            cap: most.micros(),
            used: 0,
            held: 0,
            resets_at_ms: None,
            hold_ids: Vec::new(),
        }
    }

    /// Whether it counts something: the ceiling of one call does not.
    pub fn counts(&self) -> bool {
        self.per != "call"
    }

    /// What is left: cap − used − held, never below zero.
    pub fn remaining(&self) -> i64 {
        self.cap
            .saturating_sub(self.used)
            .saturating_sub(self.held)
            .max(0)
    }
}

/// A standing stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopView {
    /// What it covers, such as `run:run_42`, `label:billing`, `all`.
    pub scope: String,
    /// Why, in the words of whoever stopped it.
    pub reason: String,
    /// Since when, Unix milliseconds on the ledger's clock.
    pub since_ms: i64,
    /// By whom.
    pub by: String,
}

/// An earlier call that stands in the way of a repeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistingCall {
    /// Its id.
    pub call_id: String,
    /// The vendor's object, if known, such as `re_…`.
    pub object: Option<String>,
    /// Its amount in micro-USD.
    pub amount_micros: i64,
    /// When it was reserved, Unix milliseconds.
    pub at_ms: i64,
    /// The identity fields that differ, for `idempotency_conflict`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differing: Vec<String>,
}
