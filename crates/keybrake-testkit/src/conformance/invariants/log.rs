//! The log when it is taken away.

use keybrake::ledger::{AdminNote, EventFilter};

use crate::conformance::World;
use crate::conformance::world::daily;

/// The counters stay provable: no archive loses what it lacks, and a signed checkpoint stands for what is gone.
pub async fn invariant_13_the_log_is_trimmed_only_behind_every_archive_and_a_checkpoint(world: &World) {
    let ledger = &world.ledger;
    let def = daily("a", 100);
    let key = world.key("a", std::slice::from_ref(&def)).await;
    let grant = world.granted(&world.call(&key, 10)).await;
    world.charge(&grant, 10).await;
    world.granted(&world.call(&key, 5)).await;
    let before = world.events().await;
    let last_seq = before.last().unwrap().seq;
    assert!(ledger.trim(1).await.is_err(), "nobody has it");
    ledger
        .note_drained("one", "sqlite:one.db", last_seq)
        .await
        .unwrap();
    ledger.note_drained("two", "sqlite:two.db", 2).await.unwrap();
    assert!(ledger.trim(2).await.is_err(), "no checkpoint stands for it");
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
    let refused = ledger.trim(3).await.unwrap_err().to_string();
    assert!(
        refused.contains("sqlite:two.db") && refused.contains("event 2 only"),
        "{refused}"
    );
    assert_eq!(world.events().await, before, "a refusal removes nothing");

    assert_eq!(ledger.trim(2).await.unwrap(), 2);
    assert_eq!(ledger.trim(2).await.unwrap(), 0, "once is enough");
    assert_eq!(world.events().await, before[2..]);
    let backlog = ledger.backlog().await.unwrap();
    assert_eq!((backlog.first_seq, backlog.last_seq), (3, last_seq));
    assert_eq!(backlog.first_at_ms, Some(before[2].at_ms));
    assert_eq!(
        (backlog.undrained(), backlog.checkpoint_seq),
        (last_seq - 2, last_seq)
    );
    assert_eq!(ledger.checkpoints(0).await.unwrap().len(), 1);
    assert_eq!(ledger.checkpoints(last_seq).await.unwrap(), []);

    // An archive that was put back from a backup has less again.
    ledger.note_drained("two", "sqlite:two.db", 1).await.unwrap();
    assert!(ledger.trim(3).await.is_err());
    let note = AdminNote {
        by: "ada".to_owned(),
        reason: "its disk is gone".to_owned(),
    };
    assert!(ledger.forget_archive("two", note.clone()).await.unwrap());
    assert!(!ledger.forget_archive("two", note).await.unwrap());
    let told = world.events().await.pop().unwrap();
    assert_eq!(told.body.admin.unwrap().act, "forget_archive");
    assert_eq!(ledger.trim(last_seq).await.unwrap(), last_seq - 2);

    // The books go on: numbers are not used again, and the counters are proven by the checkpoint and what came after.
    world.granted(&world.call(&key, 7)).await;
    let after = world.events().await;
    assert_eq!(after.first().unwrap().seq, last_seq + 1);
    let filter = EventFilter {
        after_seq: last_seq + 1,
        ..EventFilter::default()
    };
    assert_eq!(ledger.events(filter).await.unwrap(), after[1..]);
    let report = ledger.verify().await.unwrap();
    assert!(report.chain_ok && report.differences.is_empty(), "{report:?}");
    assert_eq!(report.from_seq, last_seq);
    assert_eq!(world.used_held(&def).await, (10, 12));
}
