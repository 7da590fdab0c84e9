//! What every language binding of Keybrake shares. Settings, questions and answers cross as JSON, calls and bodies
//! as bytes; a binding adds only its host's types. Nothing here decides anything.
//!
//! [`Settings`] → [`Core`] (one opened ledger) → [`ask::answer`] for questions, [`call::make`]
//! for calls, [`Body`] for what is read piece by piece, [`permit::authorize`] for hosts that send by themselves.

pub mod ask;
pub mod body;
pub mod call;
pub mod core;
pub mod helpers;
pub mod permit;
pub mod settings;
pub mod trouble;

pub use body::Body;
pub use call::{Answer, Outgoing};
pub use core::Core;
pub use permit::{Permit, Verdict};
pub use settings::Settings;
