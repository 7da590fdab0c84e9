//! What Stripe's test payment methods do. Unknown ids behave like a plain Visa.

use super::error::ApiError;

/// How a payment with this method goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Payment {
    /// Succeeds at once.
    Succeeds,
    /// Declined.
    Declines(&'static Decline),
    /// The customer must act first (3-D Secure).
    NeedsAction,
    /// Accepted; succeeds or fails days later (bank debits).
    Processing,
}

/// How a later refund of the payment goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum RefundFate {
    /// Succeeds at once.
    #[default]
    Succeeds,
    /// Starts as pending.
    Pending,
    /// Starts as `requires_action` (the customer must give bank details).
    NeedsAction,
}

/// A decline, as the error and the charge report it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decline {
    pub(super) code: &'static str,
    /// `decline_code`: the issuer's reason.
    pub(super) reason: Option<&'static str>,
    pub(super) message: &'static str,
}

impl Decline {
    pub(super) fn error(&self) -> ApiError {
        ApiError::card(self.code, self.reason, self.message)
    }
}

/// Suffix of the method's id, and the decline it stands for; the longest that fits wins by order.
static DECLINES: &[(&str, Decline)] = &[
    (
        "chargeDeclinedInsufficientFunds",
        decline(
            "card_declined",
            "insufficient_funds",
            "Your card has insufficient funds.",
        ),
    ),
    (
        "chargeDeclinedLostCard",
        decline("card_declined", "lost_card", "Your card was declined."),
    ),
    (
        "chargeDeclinedStolenCard",
        decline("card_declined", "stolen_card", "Your card was declined."),
    ),
    (
        "chargeDeclinedFraudulent",
        decline("card_declined", "fraudulent", "Your card was declined."),
    ),
    (
        "chargeDeclinedVelocityLimitExceeded",
        decline(
            "card_declined",
            "card_velocity_exceeded",
            "Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
        ),
    ),
    (
        "chargeDeclinedExpiredCard",
        Decline {
            code: "expired_card",
            reason: None,
            message: "Your card has expired.",
        },
    ),
    (
        "chargeDeclinedIncorrectCvc",
        Decline {
            code: "incorrect_cvc",
            reason: None,
            message: "Your card's security code is incorrect.",
        },
    ),
    (
        "chargeDeclinedProcessingError",
        Decline {
            code: "processing_error",
            reason: None,
            message: "An error occurred while processing your card. Try again in a little bit.",
        },
    ),
    (
        "chargeDeclined",
        decline("card_declined", "generic_decline", "Your card was declined."),
    ),
    (
        "chargeCustomerFail",
        decline("card_declined", "generic_decline", "Your card was declined."),
    ),
];

/// What an off-session payment answers when the customer would have to act.
pub(super) static AUTHENTICATION_REQUIRED: Decline = Decline {
    code: "authentication_required",
    reason: Some("authentication_required"),
    message: "Your card was declined. This transaction requires authentication.",
};

const fn decline(code: &'static str, reason: &'static str, message: &'static str) -> Decline {
    Decline {
        code,
        reason: Some(reason),
        message,
    }
}

/// How a payment with this method id (`pm_card_…`, `tok_…`, `card_…`) goes.
pub(super) fn payment(method: &str) -> Payment {
    if let Some((_, decline)) = DECLINES.iter().find(|(part, _)| method.contains(part)) {
        return Payment::Declines(decline);
    }
    if method.contains("uthenticationRequired") || method.contains("threeDSecure") {
        return Payment::NeedsAction;
    }
    if [
        "usBankAccount",
        "sepaDebit",
        "bacsDebit",
        "becsDebit",
        "acssDebit",
    ]
    .iter()
    .any(|bank| method.contains(bank))
    {
        return Payment::Processing;
    }
    Payment::Succeeds
}

/// How a refund of a payment with this method goes.
pub(super) fn refund(method: &str) -> RefundFate {
    if method.contains("pendingRefund") {
        RefundFate::Pending
    } else if method.contains("refundRequiresAction") {
        RefundFate::NeedsAction
    } else {
        RefundFate::Succeeds
    }
}

/// `card.brand` and `last4` of a method.
pub(super) fn face(method: &str) -> (&'static str, &'static str) {
    if method.contains("mastercard") {
        ("mastercard", "4444")
    } else if method.contains("amex") {
        ("amex", "8431")
    } else if method.contains("Declined") {
        ("visa", "0002")
    } else {
        ("visa", "4242")
    }
}

/// The payment method type of a method id.
pub(super) fn kind(method: &str) -> &'static str {
    match payment(method) {
        Payment::Processing if method.contains("sepaDebit") => "sepa_debit",
        Payment::Processing => "us_bank_account",
        Payment::Succeeds | Payment::Declines(_) | Payment::NeedsAction => "card",
    }
}
