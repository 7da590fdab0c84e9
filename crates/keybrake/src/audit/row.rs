//! The sixteen-column row and its projection from events.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::{CostSource, CounterName, Event, EventBody, EventKind, Proof, ReplyFacts, State};
use crate::money::Usd;
use crate::policy::BudgetView;

/// The columns in their order; the last holds everything else as one JSON object.
pub const COLUMNS: [&str; 17] = [
    "call_id",
    "called_at",
    "vault_key_id",
    "agent_run_id",
    "agent_label",
    "vendor",
    "operation",
    "customer_scope_id",
    "policy_verdict",
    "status_code",
    "cost_usd_parsed",
    "cost_source",
    "cap_usage_after_usd",
    "vendor_request_id",
    "idempotency_key",
    "latency_ms",
    "metadata",
];

/// One call: allowed, replayed or denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// The call's id.
    pub call_id: String,
    /// When it was decided: ledger time, Unix milliseconds; shown as RFC 3339 in UTC.
    #[serde(rename = "called_at", serialize_with = "as_time")]
    pub called_at_ms: i64,
    /// The vault key's public id.
    pub vault_key_id: Option<String>,
    /// The run.
    pub agent_run_id: Option<String>,
    /// The key's label, else its agent.
    pub agent_label: Option<String>,
    /// The vendor, if it was recognised.
    pub vendor: Option<String>,
    /// The operation, else the method and a masked path.
    pub operation: String,
    /// The customer the call concerns.
    pub customer_scope_id: Option<String>,
    /// `allowed`, `replayed`, or the code of the denial.
    pub policy_verdict: String,
    /// The vendor's HTTP status.
    pub status_code: Option<u16>,
    /// What was spent: above zero collects money, below zero sends it out. `None` while nobody knows and when
    /// nothing was sent.
    #[serde(serialize_with = "as_usd")]
    pub cost_usd_parsed: Option<Usd>,
    /// How the cost is known.
    pub cost_source: CostSource,
    /// Used and held of the tightest money budget after the call.
    #[serde(serialize_with = "as_usd")]
    pub cap_usage_after_usd: Option<Usd>,
    /// The vendor's request id.
    pub vendor_request_id: Option<String>,
    /// The idempotency key that was sent.
    pub idempotency_key: Option<String>,
    /// From permit to settlement.
    pub latency_ms: Option<i64>,
    /// Context, state, vendor object, overrun, replay and what else is known. No bodies, no secrets.
    pub metadata: Map<String, Value>,
}

impl AuditRow {
    /// Whether the call was refused.
    pub fn is_denied(&self) -> bool {
        !matches!(self.policy_verdict.as_str(), "allowed" | "replayed")
    }

    /// How many calls the row stands for: 1, or more when a flood of denials was coalesced.
    pub fn count(&self) -> u64 {
        self.metadata.get("count").and_then(Value::as_u64).unwrap_or(1)
    }

    /// Whether it was live money.
    pub fn livemode(&self) -> bool {
        self.metadata.get("livemode").and_then(Value::as_bool) == Some(true)
    }

    /// A text of the metadata.
    pub fn note(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).and_then(Value::as_str)
    }

    /// What the call still holds in its budgets.
    pub fn held(&self) -> Usd {
        self.note("held_usd")
            .and_then(|text| text.parse().ok())
            .unwrap_or(Usd::ZERO)
    }
}

/// Whether an event is the first of its call. What a process decided from its lease has one event, at its end.
pub(super) fn begins(event: &Event) -> bool {
    match event.kind {
        EventKind::Reserved | EventKind::Denied | EventKind::Replayed => true,
        EventKind::Reasserted => event.body.begins,
        EventKind::Leased | EventKind::Admin => false,
        _ => event.body.lease.is_some(),
    }
}

/// A moment as RFC 3339 in UTC with milliseconds, such as `2026-11-22T01:45:58.120Z`.
pub fn time_text(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(
        |_| format!("{ms} ms"),
        |time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands fields over by reference"
)]
fn as_time<S: Serializer>(ms: &i64, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&time_text(*ms))
}

#[expect(clippy::ref_option, reason = "serde hands fields over by reference")]
fn as_usd<S: Serializer>(usd: &Option<Usd>, to: S) -> std::result::Result<S::Ok, S::Error> {
    match usd {
        Some(usd) => to.collect_str(usd),
        None => to.serialize_none(),
    }
}

/// Used and held together, for a money budget.
fn taken_usd(view: &BudgetView) -> Option<Usd> {
    (view.unit == "usd").then(|| Usd::from_micros(view.used.saturating_add(view.held)))
}

/// Whether a counter counts money. Names end in `|unit|family|mode|start`.
pub(super) fn counts_money(counter: &str) -> bool {
    counter.rsplit('|').nth(3) == Some("usd")
}

/// Used and held by counter.
pub(super) type Sums = BTreeMap<CounterName, (i64, i64)>;

/// A call while its events are being folded, with the calls that joined it.
#[derive(Debug)]
pub(super) struct Fold {
    row: AuditRow,
    direction: i8,
    state: Option<State>,
    reserved: Option<Usd>,
    /// Used and held by counter, as the events add up.
    pub(super) counters: Sums,
    /// The amount that the last settlement named, for calls that no money budget counts.
    named: Option<i64>,
    attempts: u32,
    /// Calls that were sent as further attempts of this one, by the attempt's number.
    joined: Vec<(u32, AuditRow)>,
}

impl Fold {
    /// Starts a row with the first event of a call; `None` for events that do not begin one.
    pub(super) fn begin(event: &Event) -> Result<Option<Self>> {
        let verdict = match event.kind {
            EventKind::Denied => "denied",
            EventKind::Replayed => "replayed",
            _ if begins(event) => "allowed",
            _ => return Ok(None),
        };
        let mut fold = Self {
            direction: event.body.facts.as_ref().map_or(0, |facts| facts.direction),
            row: new_row(event, event.call_id.as_deref(), verdict),
            state: None,
            reserved: None,
            counters: BTreeMap::new(),
            named: None,
            attempts: 0,
            joined: Vec::new(),
        };
        fold.apply(event)?;
        Ok(Some(fold))
    }

    /// Whether later events may change the row.
    pub(super) fn may_change(&self) -> bool {
        self.state.is_some()
    }

    /// The call.
    pub(super) fn call_id(&self) -> &str {
        &self.row.call_id
    }

    /// Adds a later event of the same call.
    pub(super) fn apply(&mut self, event: &Event) -> Result<()> {
        let body = &event.body;
        for delta in &event.deltas {
            let counter = self.counters.entry(delta.counter.clone()).or_default();
            counter.0 = counter.0.checked_add(delta.used).ok_or_else(too_large)?;
            counter.1 = counter.1.checked_add(delta.held).ok_or_else(too_large)?;
        }
        if let Some(view) = &body.tightest {
            self.row.saw_budget(view);
        }
        if let Some(lease) = &body.lease {
            // Decided by a process from its lease, and told later: the event is the whole call.
            self.attempts = 1;
            self.reserved = Some(Usd::ZERO);
            self.row.called_at_ms = lease.at_ms.unwrap_or(event.at_ms);
            let meta = &mut self.row.metadata;
            meta.insert("leased".into(), true.into());
            put(meta, "late", lease.late.then_some(true));
        }
        match event.kind {
            EventKind::Reserved => {
                self.state = Some(State::Held);
                self.attempts = 1;
                self.reserved = body.amount_micros.map(Usd::from_micros);
            }
            EventKind::Attempt => self.attempt(event),
            EventKind::Denied => self.denied(body),
            EventKind::Replayed | EventKind::Leased | EventKind::Admin => {}
            EventKind::Settled | EventKind::Provisional | EventKind::Corrected => {
                self.named = body.amount_micros.or(self.named);
                self.ended(event.kind, body);
            }
            EventKind::Voided => {
                self.named = Some(0);
                self.ended(event.kind, body);
            }
            EventKind::Pending | EventKind::Unknown => self.ended(event.kind, body),
            EventKind::Reasserted => self.reasserted(body),
        }
        self.notes(body);
        Ok(())
    }

    fn attempt(&mut self, event: &Event) {
        let number = event.body.attempt.unwrap_or(self.attempts.saturating_add(1));
        self.attempts = self.attempts.max(number);
        let own_id = event.body.facts.as_ref().map(|facts| facts.call_id.as_str());
        if own_id.is_some_and(|id| !id.is_empty() && id != self.row.call_id) {
            let mut row = new_row(event, own_id, "allowed");
            row.metadata
                .insert("joined".into(), self.row.call_id.clone().into());
            if let Some(view) = &event.body.tightest {
                row.saw_budget(view);
            }
            self.joined.push((number, row));
        }
    }

    fn denied(&mut self, body: &EventBody) {
        let Some(denial) = &body.denial else { return };
        let meta = &mut self.row.metadata;
        if self.state.is_some() {
            meta.insert("later_denial".into(), denial.code.as_str().into());
            return;
        }
        denial.code.as_str().clone_into(&mut self.row.policy_verdict);
        meta.insert("message".into(), denial.message.clone().into());
        let asked = denial.requested_micros.or(body.amount_micros);
        put(
            meta,
            "requested_usd",
            asked.map(|micros| Usd::from_micros(micros).to_string()),
        );
        let existing = denial.existing.as_ref();
        put(meta, "existing_call", existing.map(|call| call.call_id.clone()));
        if let Some(view) = &denial.budget {
            self.row.saw_budget(view);
        }
    }

    fn ended(&mut self, kind: EventKind, body: &EventBody) {
        let by_kind = match kind {
            EventKind::Settled => Some(State::Settled),
            EventKind::Provisional => Some(State::Provisional),
            EventKind::Pending => Some(State::Pending),
            EventKind::Voided => Some(State::Voided),
            EventKind::Unknown => Some(State::Unknown),
            _ => None,
        };
        self.state = body.state.or(by_kind).or(self.state);
    }

    /// The call as it stands, said again after it was lost.
    fn reasserted(&mut self, body: &EventBody) {
        self.state = body.state.or(self.state);
        self.attempts = self.attempts.max(body.attempt.unwrap_or(1));
        if matches!(self.state, Some(State::Held | State::Unknown | State::Pending)) {
            self.reserved = body.amount_micros.map(Usd::from_micros).or(self.reserved);
        } else {
            self.named = body.amount_micros.or(self.named);
        }
    }

    /// What an event adds to the row besides its state and its money.
    fn notes(&mut self, body: &EventBody) {
        if let Some(reply) = &body.reply {
            self.row.replied(reply);
            if self.row.policy_verdict == "replayed" {
                // The earlier call's time and cost are the earlier row's.
                (self.row.latency_ms, self.row.cost_source) = (None, CostSource::None);
            }
            let own = self
                .joined
                .iter_mut()
                .find(|(number, _)| Some(*number) == body.attempt);
            if let Some((_, row)) = own {
                row.replied(reply);
            }
        }
        let meta = &mut self.row.metadata;
        if let Some(identity) = &body.identity {
            put(meta, "identity", serde_json::to_value(identity.kind).ok());
            put(
                meta,
                "generation",
                Some(identity.generation).filter(|number| *number > 1),
            );
        }
        if let Some(proof) = &body.proof {
            put(meta, "proof", Some(proof.kind()));
            if let Proof::Operator { evidence, by, .. } = proof {
                put(meta, "evidence", Some(evidence.as_str()));
                put(meta, "by", Some(by.as_str()));
            }
            if let Proof::Absent { evidence, .. } = proof {
                put(meta, "evidence", Some(evidence.as_str()));
            }
        }
        put(meta, "reason", body.reason.as_deref());
        if !body.pins.is_empty() {
            let pins = body
                .pins
                .iter()
                .map(|(name, value)| (name.clone(), Value::from(value.as_str())));
            meta.insert("pinned".into(), Value::Object(pins.collect()));
        }
        put(
            meta,
            "would_deny",
            body.would_deny.as_ref().map(|denial| denial.code.as_str()),
        );
        let overrun = body.overrun_micros.filter(|micros| *micros != 0);
        put(
            meta,
            "overrun_usd",
            overrun.map(|micros| Usd::from_micros(micros).to_string()),
        );
        put(meta, "count", body.count.filter(|count| *count > 1));
        put(meta, "original", body.original.as_deref());
    }

    /// The rows as the events so far make them, with the sums of the counters: the call's, then those of the
    /// calls that joined it.
    pub(super) fn finish(mut self) -> Vec<(AuditRow, Sums)> {
        let money = |pick: fn(&(i64, i64)) -> i64| {
            let sums = self.counters.iter().filter(|(name, _)| counts_money(name));
            sums.map(|(_, sums)| pick(sums)).max()
        };
        let (used, held) = (money(|sums| sums.0), money(|sums| sums.1));
        let open = matches!(self.state, Some(State::Held | State::Unknown | State::Pending));
        let spent = match used.or(self.named) {
            Some(micros) if micros != 0 || (!open && self.state.is_some()) => Some(micros),
            _ => None,
        };
        let sign = if self.direction > 0 { 1 } else { -1 };
        let signed = spent.and_then(|micros| micros.checked_mul(sign));
        self.row.cost_usd_parsed = signed.map(Usd::from_micros);
        let held = held.or(self.reserved.filter(|_| open).map(Usd::micros));
        let meta = &mut self.row.metadata;
        if let Some(state) = self.state {
            meta.insert("state".into(), state.as_str().into());
            put(meta, "reserved_usd", self.reserved.map(|usd| usd.to_string()));
        }
        let held = held.filter(|micros| *micros != 0);
        put(
            meta,
            "held_usd",
            held.map(|micros| Usd::from_micros(micros).to_string()),
        );
        put(meta, "attempts", Some(self.attempts).filter(|number| *number > 1));
        let joined = self.joined.into_iter().map(|(_, row)| (row, Sums::new()));
        std::iter::once((self.row, self.counters)).chain(joined).collect()
    }
}

impl AuditRow {
    fn saw_budget(&mut self, view: &BudgetView) {
        if view.counts() {
            self.cap_usage_after_usd = taken_usd(view);
        }
        self.metadata.insert("budget".into(), view.name.clone().into());
        let cap = (view.unit == "usd").then(|| Usd::from_micros(view.cap).to_string());
        put(&mut self.metadata, "budget_cap_usd", cap);
    }

    fn replied(&mut self, reply: &ReplyFacts) {
        let keep = |new: &Option<String>, old: &mut Option<String>| {
            if new.is_some() {
                old.clone_from(new);
            }
        };
        self.status_code = reply.status_code.or(self.status_code);
        keep(&reply.vendor_request_id, &mut self.vendor_request_id);
        keep(&reply.idempotency_key, &mut self.idempotency_key);
        self.latency_ms = reply.latency_ms.or(self.latency_ms);
        if reply.cost_source != CostSource::None {
            self.cost_source = reply.cost_source;
        }
        put(
            &mut self.metadata,
            "vendor_object",
            reply.vendor_object.as_deref(),
        );
        put(
            &mut self.metadata,
            "vendor_replayed",
            reply.replayed.then_some(true),
        );
    }
}

fn new_row(event: &Event, call_id: Option<&str>, verdict: &str) -> AuditRow {
    let facts = event.body.facts.as_deref().cloned().unwrap_or_default();
    let mut metadata = Map::new();
    if !facts.context.is_empty() {
        // Nested, so that no caller's key can pass for one of ours.
        metadata.insert("context".into(), Value::Object(facts.context));
    }
    metadata.insert("livemode".into(), json!(facts.livemode));
    put(&mut metadata, "agent_id", facts.agent.clone());
    put(&mut metadata, "account", facts.account);
    if !facts.groups.is_empty() {
        metadata.insert("groups".into(), json!(facts.groups));
    }
    AuditRow {
        call_id: call_id.unwrap_or_default().to_owned(),
        called_at_ms: event.at_ms,
        vault_key_id: facts.key_id,
        agent_run_id: facts.run,
        agent_label: facts.label.or(facts.agent),
        vendor: facts.vendor,
        operation: facts.operation,
        customer_scope_id: facts.customer,
        policy_verdict: verdict.to_owned(),
        status_code: None,
        cost_usd_parsed: None,
        cost_source: CostSource::None,
        cap_usage_after_usd: None,
        vendor_request_id: None,
        idempotency_key: None,
        latency_ms: None,
        metadata,
    }
}

fn put<V: Into<Value>>(meta: &mut Map<String, Value>, name: &str, value: Option<V>) {
    if let Some(value) = value {
        meta.insert(name.to_owned(), value.into());
    }
}

fn too_large() -> Error {
    Error::new(
        ErrorKind::LedgerCorrupt,
        "the amounts of one call add up to more than can be counted",
    )
}
