//! A server that came back without thousands of events: telling it of them again takes it no longer than it takes others
//! to wait.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use keybrake::ErrorKind;
use keybrake::ledger::{EraRange, Ledger, Reassertion};
use keybrake_testkit::redis::Persistence;
use keybrake_tests::books::{DOLLAR, call, reserve};
use keybrake_tests::fleet::{Fleet, used_and_held};

/// Events that are lost.
const LOST: u64 = 20_000;

/// How many are said again at once.
const AT_ONCE: usize = 500;

/// Those of one of two processes that took turns, so none is beside another of the same process.
fn of_one(era: u64, first: u64) -> Vec<Reassertion> {
    let numbers: Vec<u64> = (first..=LOST).step_by(2).collect();
    let steps = numbers.chunks(AT_ONCE).map(|some| Reassertion {
        covers: some.iter().map(|number| one(era, *number)).collect(),
        ..Reassertion::default()
    });
    steps.collect()
}

const fn one(era: u64, number: u64) -> EraRange {
    EraRange {
        era,
        first: number,
        last: number,
    }
}

#[tokio::test]
async fn twenty_thousand_lost_events_are_said_again_while_the_server_serves_others() {
    let mut fleet = Fleet::start(Persistence::Always);
    let (ledger, key) = fleet.with_key(10 * DOLLAR).await;
    reserve(&ledger, call(&key, "one", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    let before = fleet.server.copy_data().unwrap();
    let era = ledger.backlog().await.unwrap().eras.first().unwrap().era;
    // As if so many had been written since.
    let seq = LOST.to_string();
    fleet
        .server
        .command(&["HSET", "kb:{fleet}:meta", "seq", &seq])
        .unwrap();
    reserve(&ledger, call(&key, "two", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    fleet.server.replace_data(&before).unwrap();
    fleet.server.restart().unwrap();
    let mut work = Work::of(&fleet);
    let refused = ledger.reserve(call(&key, "three", DOLLAR)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LedgerRecovering, "{refused}");
    let first = ledger.missing_events().await.unwrap();
    let last_here = first.first().unwrap().0;
    assert_eq!(first, [(last_here, LOST)], "its own is there again");
    work.was_short();
    for step in of_one(era, 2) {
        ledger.reassert(step).await.unwrap();
        work.was_short();
    }
    let missing = ledger.missing_events().await.unwrap();
    work.was_short();
    assert!(
        missing
            .iter()
            .all(|(first, last)| first == last && first % 2 == 1),
        "{missing:?}"
    );
    for step in of_one(era, 1) {
        ledger.reassert(step).await.unwrap();
        work.was_short();
    }
    reserve(&ledger, call(&key, "three", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used_and_held(&ledger).await, (0, 3 * DOLLAR));
    work.was_short();
}

/// How long its server has worked so far. Unlike the time that a command took, that does not grow while others have the
/// machine.
struct Work<'a> {
    fleet: &'a Fleet,
    so_far: Duration,
}

impl<'a> Work<'a> {
    fn of(fleet: &'a Fleet) -> Self {
        let so_far = Self::so_far(fleet);
        Self { fleet, so_far }
    }

    /// What was done since the last question kept nobody waiting for a second.
    fn was_short(&mut self) {
        let now = Self::so_far(self.fleet);
        let took = now.saturating_sub(self.so_far);
        assert!(took < Duration::from_secs(1), "{took:?}");
        self.so_far = now;
    }

    fn so_far(fleet: &Fleet) -> Duration {
        let cpu = fleet.server.command(&["INFO", "cpu"]).unwrap();
        let of = |name: &str| {
            let mut lines = cpu.text().unwrap().lines();
            let seconds: f64 = lines
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
                .parse()
                .unwrap();
            Duration::from_secs_f64(seconds)
        };
        of("used_cpu_user_main_thread:") + of("used_cpu_sys_main_thread:")
    }
}
