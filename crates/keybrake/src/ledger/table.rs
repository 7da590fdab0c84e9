//! The states and events of a reservation as one table of data, shared by the backends and the model test.
//! Every cell that is not named is refused.

use super::types::State;

/// What a proof does to a reservation, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// held → used by the actual amount, in the reserving window; the rest is released; final.
    Settle,
    /// As [`Effect::Settle`], at a price that will still change.
    SettleProvisionally,
    /// Counters unchanged; the outcome comes later.
    Wait,
    /// The attempt is marked as not executed; when every permitted attempt is, the hold ends in the same
    /// generation, otherwise nothing changes. Count units stay used.
    VoidIfAllProven,
    /// As [`Effect::VoidIfAllProven`], and count units are returned: the call provably never left.
    VoidUnsent,
    /// The hold ends and the next generation may begin. Count units stay used.
    VoidForGood,
    /// Counters unchanged; the hold stands as unknown.
    Doubt,
    /// The hold ends in the same generation, with the same vendor key.
    VoidSameGeneration,
    /// As the person said: settled at the amount, or voided in the same generation.
    Decide,
    /// Money moved after all: used is raised at once, above the cap if need be, and recorded as overrun.
    Correct,
    /// The vendor accepted after all: what had been released is held again, above the cap if need be.
    HoldAgain,
    /// used → 0 in the reserving window: the money provably came back. The next generation may begin. Count units
    /// stay used.
    Reverse,
    /// The end of one attempt of a call whose outcome is known already: recorded, and nothing changes.
    Note,
}

/// One row: a proof, by [`kind`](super::types::Proof::kind), in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The proof's kind.
    pub proof: &'static str,
    /// The state it is met in.
    pub from: State,
    /// What it does.
    pub effect: Effect,
}

/// The table.
pub const TRANSITIONS: &[Transition] = {
    use Effect::{
        Correct, Decide, Doubt, HoldAgain, Note, Reverse, Settle, SettleProvisionally, VoidForGood,
        VoidIfAllProven, VoidSameGeneration, VoidUnsent, Wait,
    };
    use State::{Held, Pending, Provisional, Settled, Unknown, Voided};
    &[
        row("charged", Held, Settle),
        row("charged", Unknown, Settle),
        row("charged", Pending, Settle),
        row("charged", Provisional, Settle),
        row("charged", Settled, Correct),
        row("charged", Voided, Correct),
        row("charged_provisionally", Held, SettleProvisionally),
        row("charged_provisionally", Unknown, SettleProvisionally),
        row("charged_provisionally", Pending, SettleProvisionally),
        row("charged_provisionally", Provisional, SettleProvisionally),
        row("charged_provisionally", Settled, Correct),
        row("charged_provisionally", Voided, Correct),
        row("accepted", Held, Wait),
        row("accepted", Unknown, Wait),
        row("accepted", Pending, Wait),
        row("accepted", Provisional, Note),
        row("accepted", Settled, Note),
        row("accepted", Voided, HoldAgain),
        row("did_not_execute", Held, VoidIfAllProven),
        row("did_not_execute", Unknown, VoidIfAllProven),
        row("did_not_execute", Pending, Note),
        row("did_not_execute", Provisional, Note),
        row("did_not_execute", Settled, Note),
        row("did_not_execute", Voided, Note),
        row("failed_for_good", Held, VoidForGood),
        row("failed_for_good", Unknown, VoidForGood),
        row("failed_for_good", Pending, VoidForGood),
        row("failed_for_good", Provisional, Note),
        row("failed_for_good", Settled, Note),
        row("failed_for_good", Voided, Note),
        row("reversed", Held, VoidForGood),
        row("reversed", Unknown, VoidForGood),
        row("reversed", Pending, VoidForGood),
        row("reversed", Provisional, Reverse),
        row("reversed", Settled, Reverse),
        row("reversed", Voided, Note),
        row("no_proof", Held, Doubt),
        row("no_proof", Unknown, Doubt),
        row("no_proof", Pending, Note),
        row("no_proof", Provisional, Note),
        row("no_proof", Settled, Note),
        row("no_proof", Voided, Note),
        row("never_sent", Held, VoidUnsent),
        row("never_sent", Unknown, VoidUnsent),
        row("never_sent", Pending, Note),
        row("never_sent", Provisional, Note),
        row("never_sent", Settled, Note),
        row("never_sent", Voided, Note),
        row("absent", Unknown, VoidSameGeneration),
        row("operator", Unknown, Decide),
        row("operator", Pending, Decide),
    ]
};

const fn row(proof: &'static str, from: State, effect: Effect) -> Transition {
    Transition { proof, from, effect }
}

/// What this proof does in this state; `None` where the table has no such cell.
pub fn effect(proof: &str, from: State) -> Option<Effect> {
    TRANSITIONS
        .iter()
        .find(|row| row.from == from && row.proof == proof)
        .map(|row| row.effect)
}
