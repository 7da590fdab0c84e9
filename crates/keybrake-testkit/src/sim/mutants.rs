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
                "if used[i] + held[i] > limit then return false end",
                "local _ = limit",
            ),
            Self::SettleTwice => (
                "(fits and texts_stand and timely and same and #other_fields == 0 and",
                "(fits and timely and same and",
            ),
            Self::OpenAfterRestart => ("opened[p.meta] == m[9]", "true"),
            Self::NoEvent => (
                "  for i = 1, log_count do\n",
                "  for i = 1, (log_count > 1 and log_count - 1 or log_count) do\n",
            ),
            Self::StaleStops => (
                "local same, l = m[1] == argv[1], nil",
                "local same, l = true, nil",
            ),
            Self::ReassertAsReserve => (
                "  -- From here on only writes.\n",
                "  for i = 1, again and present or 0 do
                  if string.find(keys[place_count + absent + i], ':r:', 1, true) then
                    new_text_count, listing_count, log_count, count, argv[7] = 0, 0, 0, 0, '0'
                    local fields = tonumber(argv[at])
                    local stops = at + 2 * fields + 1
                    local rest, kept = stops + 2 * tonumber(argv[stops]) + 3, {}
                    for n = 1, at - 1 do kept[n] = argv[n] end
                    kept[at], kept[at + 1], kept[at + 2], kept[at + 3] = '0', '0', '0', ''
                    for n = rest, #argv do kept[#kept + 1] = argv[n] end
                    argv = kept
                    break
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
