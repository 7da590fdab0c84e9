//! The vendor: it knows idempotency keys, declines, refuses, answers late, breaks after executing. Its journal is the
//! truth.

use std::collections::BTreeMap;

use super::rng::Rng;

/// What the vendor answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// 200: this much moved.
    Charged { micros: i64, replayed: bool },
    /// 200: it will move, or not.
    Accepted,
    /// 402.
    Declined,
    /// 429 or 400: not executed, and nothing is remembered of it.
    NotExecuted,
    /// 409: the first request with this key is still running.
    InUse,
    /// 500: it may have executed.
    Broken,
}

/// What becomes of a request, and for how long it runs.
#[derive(Debug)]
pub(super) enum Begun {
    Answered(Reply),
    Runs { ms: u64 },
}

/// What a listing shows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Nothing,
    Charged(i64),
    Pending,
    Failed,
}

#[derive(Clone, Debug)]
struct Request {
    /// `None` while it runs.
    answer: Option<Reply>,
    shown: Seen,
}

/// How often what happens, in a thousand requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    pub(super) slow: u64,
    pub(super) refuses: u64,
    pub(super) declines: u64,
    pub(super) breaks: u64,
    pub(super) accepts: u64,
}

#[derive(Debug)]
pub(super) struct Vendor {
    requests: BTreeMap<String, Request>,
    pub(super) habits: Habits,
}

impl Vendor {
    pub(super) const fn new(habits: Habits) -> Self {
        Self {
            requests: BTreeMap::new(),
            habits,
        }
    }

    /// A request arrives.
    pub(super) fn begin(&mut self, rng: &Rng, key: &str) -> Begun {
        if let Some(earlier) = self.requests.get(key) {
            return Begun::Answered(match &earlier.answer {
                None => Reply::InUse,
                Some(_) if rng.chance(self.habits.refuses) => Reply::NotExecuted,
                Some(Reply::Charged { micros, .. }) => Reply::Charged {
                    micros: *micros,
                    replayed: true,
                },
                Some(answer) => answer.clone(),
            });
        }
        if rng.chance(self.habits.refuses) {
            return Begun::Answered(Reply::NotExecuted);
        }
        let running = Request {
            answer: None,
            shown: Seen::Nothing,
        };
        self.requests.insert(key.to_owned(), running);
        Begun::Runs {
            ms: if rng.chance(self.habits.slow) {
                rng.between(50, 9_000)
            } else {
                0
            },
        }
    }

    /// A request has run: what it answers, and what moved.
    pub(super) fn finish(&mut self, rng: &Rng, key: &str, micros: i64) -> (Reply, Option<i64>) {
        // The request reserved an upper bound; now and then less is charged.
        let actual = if rng.chance(150) {
            micros - micros / 4
        } else {
            micros
        };
        let charged = Reply::Charged {
            micros: actual,
            replayed: false,
        };
        let (answer, shown, moved) = if rng.chance(self.habits.declines) {
            (Reply::Declined, Seen::Failed, None)
        } else if rng.chance(self.habits.accepts) {
            (Reply::Accepted, Seen::Pending, None)
        } else if rng.chance(self.habits.breaks) {
            if rng.chance(500) {
                self.requests.remove(key);
                return (Reply::Broken, None);
            }
            (Reply::Broken, Seen::Charged(actual), Some(actual))
        } else {
            (charged, Seen::Charged(actual), Some(actual))
        };
        let request = Request {
            answer: Some(answer.clone()),
            shown,
        };
        self.requests.insert(key.to_owned(), request);
        (answer, moved)
    }

    /// What was accepted ends: charged or failed.
    pub(super) fn end(&mut self, key: &str, moved: Option<i64>) {
        if let Some(request) = self.requests.get_mut(key) {
            request.shown = moved.map_or(Seen::Failed, Seen::Charged);
        }
    }

    /// What a complete listing shows.
    pub(super) fn look(&self, key: &str) -> Seen {
        self.requests
            .get(key)
            .map_or(Seen::Nothing, |request| request.shown)
    }

    /// Whether this was once accepted, to be decided later.
    pub(super) fn accepted(&self, key: &str) -> bool {
        self.requests
            .get(key)
            .is_some_and(|request| request.answer == Some(Reply::Accepted))
    }
}
