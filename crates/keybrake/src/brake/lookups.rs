//! Reads that come before a decision: so many a second for one key, and one read for all who ask the same at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

use crate::vendors::Reply;

const SECOND_MS: i64 = 1_000;
/// Keys that are remembered before those that asked for nothing lately are forgotten.
const MOST_DESKS: usize = 1_024;

/// The reads under way and lately begun, by key.
#[derive(Debug, Default)]
pub(super) struct Lookups(Mutex<HashMap<String, Desk>>);

/// One key's reads.
#[derive(Debug, Default)]
struct Desk {
    /// When reads of the last second began, boot clock.
    begun: VecDeque<i64>,
    /// Reads that somebody still waits for, by what they ask.
    flights: HashMap<String, Weak<Flight>>,
}

/// One read, shared by all who asked for it before it was answered. An answered one is never joined: amounts do not
/// come from a cache.
#[derive(Debug, Default)]
pub(super) struct Flight(OnceCell<Result<Reply, String>>);

impl Lookups {
    /// Joins the same read that is under way, or begins one. `None` when the key has begun `per_second` in the last
    /// second.
    pub(super) fn enter(
        &self,
        key_id: &str,
        question: String,
        now_boot_ms: i64,
        per_second: Option<u32>,
    ) -> Option<Arc<Flight>> {
        let mut desks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if desks.len() >= MOST_DESKS {
            desks.retain(|_, desk| desk.is_busy(now_boot_ms));
        }
        desks
            .entry(key_id.to_owned())
            .or_default()
            .enter(question, now_boot_ms, per_second)
    }
}

impl Desk {
    fn enter(&mut self, question: String, now_boot_ms: i64, per_second: Option<u32>) -> Option<Arc<Flight>> {
        self.flights.retain(|_, flight| flight.strong_count() > 0);
        let under_way = self.flights.get(&question).and_then(Weak::upgrade);
        if let Some(flight) = under_way.filter(|flight| flight.0.get().is_none()) {
            return Some(flight);
        }
        self.forget(now_boot_ms);
        let begun = u32::try_from(self.begun.len()).unwrap_or(u32::MAX);
        if per_second.is_some_and(|most| begun >= most) {
            return None;
        }
        self.begun.push_back(now_boot_ms);
        let flight = Arc::new(Flight::default());
        self.flights.insert(question, Arc::downgrade(&flight));
        Some(flight)
    }

    fn forget(&mut self, now_boot_ms: i64) {
        self.begun
            .retain(|begun| now_boot_ms.saturating_sub(*begun) < SECOND_MS);
    }

    fn is_busy(&mut self, now_boot_ms: i64) -> bool {
        self.forget(now_boot_ms);
        !self.begun.is_empty() || self.flights.values().any(|flight| flight.strong_count() > 0)
    }
}

impl Flight {
    /// The read's answer: made once, by the first who gets here; when that one is cancelled, by the next.
    pub(super) async fn answer(
        &self,
        send: impl Future<Output = Result<Reply, String>>,
    ) -> Result<Reply, String> {
        self.0.get_or_init(|| send).await.clone()
    }
}
