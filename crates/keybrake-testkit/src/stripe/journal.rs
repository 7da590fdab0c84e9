//! The journal: what money moved, written by the vendor's side alone. End-to-end tests take it as the truth.
//!
//! A movement is written when Stripe commits to it: a charge when it is captured, a refund, transfer, reversal, payout
//! or top-up when it is created. When Stripe takes one back (a payout that fails or is cancelled, a refund that fails),
//! a second row returns the money. What moved nothing (a decline, an authorisation) is written too, as such, so that
//! a test can tell "refused by the vendor" from "never arrived". Seeded objects are not movements.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::number::u64_of;

/// What kind of movement a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MovementKind {
    /// A captured charge, directly or by a `PaymentIntent`; one row for each capture.
    Charge,
    /// A card authorisation; never moves money by itself.
    Authorization,
    /// An authorisation given back: cancelled, expired or refunded before its capture.
    AuthorizationReleased,
    /// A refund.
    Refund,
    /// A transfer to a connected account.
    Transfer,
    /// A transfer reversal.
    TransferReversal,
    /// A payout to a bank account.
    Payout,
    /// A top-up from a bank account.
    Topup,
}

/// Whether the row's money moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MovementOutcome {
    /// Money moved.
    Moved,
    /// Money of an earlier row came back.
    Returned,
    /// No money moved: declined, only authorised, or an authorisation given back.
    None,
}

/// One row of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Movement {
    /// Position from 1, without gaps.
    pub seq: u64,
    /// The simulator's time, Unix milliseconds.
    pub at_ms: i64,
    /// What kind of movement.
    pub kind: MovementKind,
    /// Whether it moved money.
    pub outcome: MovementOutcome,
    /// Whose account, such as `acct_sim`.
    pub account: String,
    /// The object that stands for the movement: `ch_…`, `re_…`, `tr_…`, `trr_…`, `po_…`, `tu_…`.
    pub object: String,
    /// What it belongs to: a charge's `PaymentIntent`, a refund's charge, a transfer's destination, a reversal's transfer.
    pub source: Option<String>,
    /// Amount in the currency's smallest unit, never negative.
    pub amount: i64,
    /// Currency, lower case.
    pub currency: String,
    /// The idempotency key of the request that caused it, if it had one.
    pub idempotency_key: Option<String>,
    /// The request that caused it; `None` for changes made by a control endpoint.
    pub request_id: Option<String>,
}

/// Sums of one kind in one currency, in the currency's smallest unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// What moved.
    pub moved: i64,
    /// What came back.
    pub returned: i64,
    /// `moved - returned`.
    pub net: i64,
    /// How many rows moved money.
    pub count: u64,
}

/// Sums by kind and currency.
pub type Totals = BTreeMap<MovementKind, BTreeMap<String, Sum>>;

/// The rows, in order. Kept whole: it is the truth.
#[derive(Debug, Default)]
pub(super) struct Journal {
    rows: Vec<Movement>,
}

impl Journal {
    /// Writes a row; its position is given here.
    pub(super) fn write(&mut self, mut row: Movement) {
        row.seq = u64_of(self.rows.len()).saturating_add(1);
        self.rows.push(row);
    }

    /// Every row, oldest first.
    pub(super) fn rows(&self) -> &[Movement] {
        &self.rows
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }
}

/// Adds up rows by kind and currency. Rows that moved nothing are left out.
pub fn totals<'a>(rows: impl IntoIterator<Item = &'a Movement>) -> Totals {
    let mut totals = Totals::new();
    for row in rows {
        if row.outcome == MovementOutcome::None {
            continue;
        }
        let sum = totals
            .entry(row.kind)
            .or_default()
            .entry(row.currency.clone())
            .or_default();
        if row.outcome == MovementOutcome::Moved {
            sum.moved = sum.moved.saturating_add(row.amount);
            sum.count = sum.count.saturating_add(1);
        } else {
            sum.returned = sum.returned.saturating_add(row.amount);
        }
        sum.net = sum.moved.saturating_sub(sum.returned);
    }
    totals
}
