//! Every decision of the ledger, written once over a backend's atomic [`Store`] step.
//!
//! A backend opens a step, calls one function of this module with its clock's reading, and commits; when the
//! function answers an error, the backend discards the step. All checks stand before the first write, and
//! nothing here reads a clock, a file or a socket.

mod acts;
mod budgets;
mod charge;
mod contributors;
mod flood;
mod identity;
mod keys;
mod lease;
mod leased;
mod merge;
mod object;
mod outcome;
mod reassert;
mod reserve;
mod settle;
mod shares;
mod step;
mod stops;
mod sweep;
mod time;
mod verify;

pub use budgets::{budgets, put_budget, usage};
pub(in crate::ledger) use flood::Note as FloodNote;
pub use flood::{Flood, flush_denials};
pub(in crate::ledger) use identity::pointers;
pub use keys::{issue_key, key, key_by_token, keys, revoke};
pub(in crate::ledger) use lease::{GIVEN_BACK, leases_of};
pub use lease::{lease, leases};
pub use leased::{LeasedEnd, leased_end};
pub use reassert::reassert;
pub use reserve::reserve;
pub use settle::settle;
pub use stops::{aborted, covers, resume, set_stop, stop};
pub use sweep::{holds, sweep};
pub(in crate::ledger) use time::gap_event;
pub use time::{ClockGuard, JUMP_MS, accept_clock, ledger_time, note_act, note_opening};
pub use verify::{checkpoint_hash, checkpoint_is_signed, verify};

#[cfg(doc)]
use super::store::Store;
