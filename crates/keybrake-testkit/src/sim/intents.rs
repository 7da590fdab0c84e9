//! What agents want to spend, and the calls that it takes.

use super::rng::Rng;

/// Something that an agent wants to spend, once.
#[derive(Clone, Debug)]
pub(super) struct Intent {
    pub(super) number: u64,
    /// Whose it is.
    pub(super) key: usize,
    /// Whether its calls are steps with a name; else they are known by their content.
    pub(super) named: bool,
    pub(super) content: Content,
}

/// Intents with the same content make the same calls.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) number: u64,
    pub(super) what: What,
    pub(super) cents: i64,
    pub(super) method: &'static str,
}

/// How money moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Refund,
    Payout,
    /// Made and confirmed at once.
    Payment,
    /// Made, updated to more, confirmed.
    Updated,
    /// Authorised, captured in two parts.
    Captured,
    /// Authorised, then cancelled.
    Cancelled,
}

/// One call: `*` in its path is the object that the calls before it made.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    pub(super) form: String,
}

const INTENTS: &str = "/v1/payment_intents";

impl Content {
    pub(super) fn draw(rng: &Rng, number: u64, waits: u64, declines: u64) -> Self {
        let what = *rng.pick(&[
            What::Refund,
            What::Refund,
            What::Refund,
            What::Payout,
            What::Payment,
            What::Updated,
            What::Captured,
            What::Cancelled,
        ]);
        let waits = rng.chance(waits);
        let declines = rng.chance(declines);
        Self {
            number,
            what,
            cents: i64::try_from(rng.between(2, 40)).unwrap() * 50,
            method: match what {
                What::Refund if waits => "pm_card_pendingRefund",
                What::Payment | What::Updated if waits => "pm_usBankAccount",
                What::Payment | What::Updated | What::Captured if declines => "pm_card_chargeDeclined",
                _ => "pm_card_visa",
            },
        }
    }

    /// The charge that its refunds are of.
    pub(super) fn charge(&self) -> String {
        format!("ch_of{}", self.number)
    }
}

impl Intent {
    /// Its calls, in order.
    pub(super) fn steps(&self) -> Vec<Step> {
        let Content { cents, method, .. } = self.content;
        let step = |name, path, form: String| Step { name, path, form };
        let intent = |cents: i64, more: &str| {
            let form = format!("amount={cents}&currency=usd&payment_method={method}{more}");
            step("create", INTENTS, form)
        };
        match self.content.what {
            What::Refund => vec![step(
                "refund",
                "/v1/refunds",
                format!("charge={}&amount={cents}", self.content.charge()),
            )],
            What::Payout => vec![step(
                "payout",
                "/v1/payouts",
                format!("amount={cents}&currency=usd&metadata[of]={}", self.content.number),
            )],
            What::Payment => vec![intent(cents, "&confirm=true")],
            What::Updated => vec![
                intent(cents / 2, ""),
                step("update", "/v1/payment_intents/*", format!("amount={cents}")),
                step("confirm", "/v1/payment_intents/*/confirm", String::new()),
            ],
            What::Captured => vec![
                intent(cents, "&confirm=true&capture_method=manual"),
                step(
                    "capture",
                    "/v1/payment_intents/*/capture",
                    format!("amount_to_capture={}&final_capture=false", cents * 60 / 100),
                ),
                step("rest", "/v1/payment_intents/*/capture", String::new()),
            ],
            What::Cancelled => vec![
                intent(cents, "&confirm=true&capture_method=manual"),
                step("cancel", "/v1/payment_intents/*/cancel", String::new()),
            ],
        }
    }
}
