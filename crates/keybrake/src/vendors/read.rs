//! What a status proves at a vendor whose replies never say what a call cost.

use super::{Class, Outcome};

/// The outcome of a call. `is_answer`: the body is what this operation answers with. `refused`: the statuses with which
/// the vendor refuses a call before anything is done. Any other status says nothing about what happened.
pub(super) fn outcome(class: Class, status: u16, is_answer: bool, refused: &[u16]) -> Outcome {
    match (class, status) {
        (Class::Read, _) | (Class::Free, 200..=299) => Outcome::Free,
        (Class::Unknown | Class::Money, 200..=299) if is_answer => Outcome::Executed,
        (Class::Unknown | Class::Money, 200..=299) => Outcome::Unknown("unreadable_reply".to_owned()),
        (_, status) if refused.contains(&status) => Outcome::DidNotExecute,
        (_, status) => Outcome::Unknown(format!("http_{status}")),
    }
}
