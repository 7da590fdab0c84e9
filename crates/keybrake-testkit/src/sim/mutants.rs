//! Broken variants of the ledger. Each is a mistake that someone has made before; the simulation has to catch all.

/// A ledger that is wrong in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A call that timed out is let go of.
    ReleaseOnTimeout,
    /// The caps are checked on the client's copies, and the write does not look again.
    TwoStepCheck,
    /// A step that was decided on records that have changed since is written nevertheless, so a message that comes twice
    /// counts twice.
    SettleTwice,
    /// The ledger's time is the client's wall clock.
    ClientClock,
    /// What is not in a listing is let go of while it may still be on its way.
    EarlyAbsence,
    /// A later attempt's 429 ends the hold of the first.
    VoidOnJoined429,
    /// A replayed success is taken for "nothing happened".
    ReplayAsVoid,
    /// The time to send is counted from the ledger's answer, not from the question.
    SendWindowFromAnswer,
    /// A server that has just started opens by itself.
    OpenAfterRestart,
    /// A step that changes counters may leave no event.
    NoEvent,
    /// Stops are looked at in the client's copies only.
    StaleStops,
    /// What was lost is said again as a plain reserve, which changes nothing of a call that is there already.
    ReassertAsReserve,
    /// Nothing is written down of a call that was given up before the ledger saw it, so that its late reservation is made.
    LateReserve,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::ReleaseOnTimeout,
        Self::TwoStepCheck,
        Self::SettleTwice,
        Self::ClientClock,
        Self::EarlyAbsence,
        Self::VoidOnJoined429,
        Self::ReplayAsVoid,
        Self::SendWindowFromAnswer,
        Self::OpenAfterRestart,
        Self::NoEvent,
        Self::StaleStops,
        Self::ReassertAsReserve,
        Self::LateReserve,
    ];

    /// The library as a server with this mistake has it.
    pub(super) fn library(self, text: &str) -> String {
        let (from, to) = match self {
            Self::TwoStepCheck => (
                "if used_before[i] + held_before[i] > tonumber(limit) then fits = false end",
                "local _ = limit",
            ),
            Self::SettleTwice => (
                "local function differences(expected, present)",
                "local function differences(expected, present)\n  do return {} end",
            ),
            Self::OpenAfterRestart => ("opened[p.meta] == m[9]", "true"),
            Self::NoEvent => (
                "    for i = 1, log_count do\n",
                "    for i = 1, (log_count > 1 and log_count - 1 or log_count) do\n",
            ),
            Self::StaleStops => (" and sv == l.sv ", " "),
            Self::ReassertAsReserve => (
                "  -- From here on only writes.\n",
                "  for i = 1, again and text_count or 0 do
                  if expected_texts[i] ~= '' and string.find(texts[i], ':r:', 1, true) then
                    new_field_count, new_text_count, new_stop_count, listing_count = 0, 0, 0, 0
                    log_count, more_open, holder_count = 0, 0, 0
                    for n = 1, name_count do changed[n] = false end
                  end
                end\n",
            ),
            _ => return text.to_owned(),
        };
        assert!(
            text.contains(from),
            "the library has changed: {self:?} no longer finds {from:?}"
        );
        text.replacen(from, to, 1)
    }
}
