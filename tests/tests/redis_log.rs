//! The log of a ledger in Redis when the server goes wrong: events that a failover lost, and a server without memory.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed unwrap is a failed test"
)]

use std::sync::Arc;

use keybrake::audit::drain::trim;
use keybrake::audit::{ArchivedLog, Audit, Drain, DrainOptions};
use keybrake::ledger::{EventFilter, EventKind, Ledger, State};
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer};
use keybrake_tests::archives::{Place, drain, key, rows};
use keybrake_tests::books::{self, DOLLAR};
use keybrake_tests::fleet::{Fleet, books_agree, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_what_a_failover_lost_and_what_took_its_numbers() {
    what_a_failover_lost_and_what_took_its_numbers(&Place::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_keeps_what_a_failover_lost_and_what_took_its_numbers() {
    what_a_failover_lost_and_what_took_its_numbers(&Place::postgres()).await;
}

async fn spend(ledger: &dyn Ledger, call_id: &str, settles: bool) {
    let key = key(ledger).await;
    books::reserve(ledger, books::call(&key, call_id, DOLLAR))
        .await
        .unwrap()
        .unwrap();
    if settles {
        ledger.settle(books::charged(call_id, DOLLAR)).await.unwrap();
    }
}

async fn what_a_failover_lost_and_what_took_its_numbers(place: &Place) {
    let mut fleet = Fleet::start(Persistence::Always);
    let ledger = fleet.open();
    spend(&ledger, "before", true).await;
    spend(&ledger, "half", false).await;
    spend(&ledger, "again", false).await;
    let snapshot = fleet.server.copy_data().unwrap();
    let kept_seq = ledger.info().await.unwrap().last_seq;
    // These are lost with the server, after they were drained.
    ledger.settle(books::charged("half", DOLLAR)).await.unwrap();
    ledger.settle(books::charged("again", DOLLAR)).await.unwrap();
    spend(&ledger, "lost", true).await;
    let archive = place.open().await;
    let drained = drain(&ledger, &archive, 1_000).await;
    drop(ledger);
    fleet.server.replace_data(&snapshot).unwrap();
    fleet.server.restart().unwrap();
    let ledger = open(&fleet.url()).unwrap();
    ledger.open_by_hand(books::admin()).await.unwrap();
    // The same numbers, and more of them, for other events. The ledger tells of `again` once more.
    ledger.settle(books::charged("again", DOLLAR)).await.unwrap();
    for call in ["new-1", "new-2", "new-3"] {
        spend(&ledger, call, true).await;
    }
    let last_seq = ledger.info().await.unwrap().last_seq;
    assert!(last_seq > drained, "the ledger has gone beyond what was drained");

    let mut drain = Drain::new(&ledger, &archive, DrainOptions::default())
        .await
        .unwrap();
    let step = drain.run(|_| {}).await.unwrap();
    assert_eq!(step.lost, drained - kept_seq);
    assert_eq!((step.state.seq, step.state.history), (last_seq, 1));
    assert_eq!(step.state.n, last_seq + step.lost, "nothing was dropped");
    assert_eq!(drain.run(|_| {}).await.unwrap().drained, 0, "once");

    // One row each: what was lost is told, unless the ledger tells of it again.
    let shared: Arc<dyn Ledger> = Arc::new(ledger);
    let log = ArchivedLog::with_ledger(archive.clone(), Arc::clone(&shared))
        .await
        .unwrap();
    let mut told: Vec<(String, Option<String>)> = rows(Audit::of(&log))
        .await
        .into_iter()
        .map(|row| {
            (
                row.call_id.clone(),
                row.cost_usd_parsed.map(|usd| usd.to_string()),
            )
        })
        .collect();
    told.sort();
    let spent = |call: &str| (call.to_owned(), Some("-1.00".to_owned()));
    let expected = ["again", "before", "half", "lost", "new-1", "new-2", "new-3"];
    assert_eq!(told, expected.map(spent));
    assert_eq!(
        archive
            .reservation(step.state.log, "lost")
            .await
            .unwrap()
            .unwrap()
            .state,
        State::Settled,
        "what was known of it stays, to be put back"
    );
    books_agree(&*shared).await;
    let mut drain = Drain::new(&*shared, &archive, DrainOptions::default())
        .await
        .unwrap();
    let step = drain.run(|_| {}).await.unwrap();
    let report = archive.verify(&step.state, Some(shared.secret())).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.notes.len(), 1);
    assert_eq!(
        (report.notes[0].after_seq, report.notes[0].upto_seq),
        (kept_seq, drained)
    );
    // Trimming goes on behind the new numbers.
    assert_eq!(trim(&*shared, 0).await.unwrap().removed, last_seq);
    assert_eq!(rows(Audit::of(&log)).await.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_refuses_by_name_and_trimming_helps_it() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let url = format!("{}?ns=fleet&timeout_ms=20000", server.url());
    let ledger = open(&url).unwrap();
    spend(&ledger, "open", false).await;
    let key = key(&ledger).await;
    for number in 0..600 {
        let small = books::call(&key, &format!("small-{number}"), 1);
        books::reserve(&ledger, small).await.unwrap().unwrap();
    }
    // Nobody ever drained it, so no checkpoint is there that stands for anything.
    // Less than it uses now, by less than what the log takes.
    let used = server.command(&["INFO", "memory"]).unwrap();
    let used = used
        .text()
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .unwrap();
    let limit = (used.trim().parse::<u64>().unwrap() - 262_144).to_string();
    server.command(&["CONFIG", "SET", "maxmemory", &limit]).unwrap();
    let refused = books::reserve(&ledger, books::call(&key, "full", DOLLAR)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), keybrake::ErrorKind::LedgerUnavailable);
    assert!(
        refused.to_string().contains("no memory left (maxmemory)"),
        "{refused}"
    );
    // A settlement is refused as well, so that its shell writes it to the journal; the hold stands.
    let refused = ledger.settle(books::charged("open", DOLLAR)).await.unwrap_err();
    assert_eq!(refused.kind(), keybrake::ErrorKind::LedgerUnavailable);
    let memory = ledger.checks().await.unwrap();
    let memory = memory.iter().find(|check| check.name == "memory").unwrap();
    assert_eq!(memory.grade, keybrake::ledger::CheckGrade::Bad, "{memory:?}");

    // Draining needs no memory of the server, and trimming gives some back.
    let place = Place::sqlite();
    let archive = place.open().await;
    drain(&ledger, &archive, 1_000).await;
    let trimmed = trim(&ledger, 0).await.unwrap();
    assert!(trimmed.removed > 600, "{trimmed:?}");
    assert!(trimmed.verified.is_some(), "{trimmed:?}");
    let settled = ledger.settle(books::charged("open", DOLLAR)).await.unwrap();
    assert_eq!(settled.state, State::Settled);
    books::reserve(&ledger, books::call(&key, "room", DOLLAR))
        .await
        .unwrap()
        .unwrap();
    drain(&ledger, &archive, 1_000).await;
    let filter = EventFilter {
        call_id: Some("open".to_owned()),
        ..EventFilter::default()
    };
    let log = archive.logs().await.unwrap().remove(0);
    let kinds: Vec<EventKind> = archive
        .events(log.log, log.n, &filter)
        .await
        .unwrap()
        .iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(kinds, [EventKind::Reserved, EventKind::Settled]);
}
