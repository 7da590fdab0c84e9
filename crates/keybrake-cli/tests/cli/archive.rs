//! `audit drain`, and the same answers from the ledger, from the archive, and from both together.

use keybrake_testkit::redis::{RedisOptions, RedisServer};
use serde_json::Value;

use crate::common::{Place, charged, granted, reserve};

async fn busy(place: &Place) {
    let key = place.issue("run_42");
    let ledger = place.ledger();
    granted(ledger.as_ref(), &key, "call-1", 60).await;
    charged(ledger.as_ref(), "call-1", 60).await;
    granted(ledger.as_ref(), &key, "call-2", 30).await;
    reserve(ledger.as_ref(), &key, "call-3", 70).await;
    ledger.flush().await.unwrap();
}

/// What is asked, as JSON without the names of ledger and archive.
fn answers(place: &Place, from: &[&str]) -> Vec<Value> {
    let questions: [&[&str]; 6] = [
        &["audit", "list"],
        &["audit", "list", "--denied", "--since", "1h"],
        &["audit", "caps"],
        &["spend", "--by", "run"],
        &["why", "run_42"],
        &["why", "call-2"],
    ];
    let ask = |question: &&[&str]| {
        let mut answer = place.json(&[question, from].concat());
        let fields = answer.as_object_mut().unwrap();
        for name in ["ledger", "archive", "outlook"] {
            fields.remove(name);
        }
        answer
    };
    questions.iter().map(ask).collect()
}

#[tokio::test]
async fn the_log_is_drained_trimmed_and_read_from_both() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let places = [
        Place::new(),
        Place::on(format!("{}?ns=prod&timeout_ms=20000", server.url())),
    ];
    for place in places {
        busy(&place).await;
        let before = answers(&place, &[]);
        let nowhere = place.run(&["audit", "drain"]);
        assert_eq!(nowhere.code, 2);
        assert!(nowhere.err.contains("KEYBRAKE_ARCHIVE"), "{}", nowhere.err);
        let archive = format!("sqlite:{}", place.path().join("audit.db").display());
        assert_eq!(
            place.run(&["audit", "list", "--from", &archive]).code,
            4,
            "reading makes no archive"
        );

        let drained = place.json(&["audit", "drain", "--to", &archive]);
        let events = drained["drained"].as_u64().unwrap();
        assert!(events >= 5 && drained["trimmed"].is_null(), "{drained}");
        assert_eq!(drained["archive"], archive);
        let from: [&str; 2] = ["--from", &archive];
        assert_eq!(answers(&place, &from), before);
        let trimmed = place.run(&["audit", "drain", "--to", &archive, "--trim"]);
        assert_eq!(trimmed.code, 0, "{}", trimmed.err);
        assert!(trimmed.out.starts_with("DRAINED 0 events"), "{}", trimmed.out);
        assert!(
            trimmed.out.contains(&format!(
                "{events} events trimmed; the ledger's log begins at event {}",
                events + 1
            )),
            "{}",
            trimmed.out
        );

        // Without an archive the ledger says since when it has its log; with one nothing has changed.
        let alone = place.run(&["audit", "list"]);
        assert!(
            alone
                .err
                .contains(&format!("the ledger's log begins at event {}", events + 1)),
            "{}",
            alone.err
        );
        assert!(alone.out.contains("no calls"), "{}", alone.out);
        let config = place.file(
            "keybrake.toml",
            &format!("ledger = \"{}\"\narchive = \"{archive}\"\n", place.url),
        );
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&config, mode).unwrap();
        assert_eq!(
            answers(&place, &[]),
            before,
            "the archive of the project's own file"
        );
        assert_eq!(answers(&place, &from), before);
        std::fs::remove_file(&config).unwrap();

        let verified = place.run(&["audit", "verify", "--from", &archive]);
        assert_eq!(verified.code, 0, "{}{}", verified.out, verified.err);
        assert!(
            verified.out.contains(&format!("proven up to event {events}")),
            "{}",
            verified.out
        );
        assert!(
            verified.out.contains("signatures were not checked"),
            "{}",
            verified.out
        );
        let csv = place.run(&["audit", "export", "--format", "csv", "--from", &archive]);
        assert_eq!(csv.out.lines().count(), 4, "{}", csv.out);
        assert_eq!(place.json(&["audit", "verify"])["clean"], true);
    }
}

#[tokio::test]
async fn an_archive_is_given_up_by_hand() {
    let place = Place::new();
    busy(&place).await;
    let archive = |name: &str| format!("sqlite:{}", place.path().join(name).display());
    let (one, two) = (archive("one.db"), archive("two.db"));
    place.json(&["audit", "drain", "--to", &one]);
    place.json(&["audit", "drain", "--to", &two]);
    let key = place.issue("run_43");
    granted(place.ledger().as_ref(), &key, "call-9", 1).await;
    let trimmed = place.json(&["audit", "drain", "--to", &two, "--trim"]);
    let kept = trimmed["seq"].as_u64().unwrap() + 1 - trimmed["log_begins_at_event"].as_u64().unwrap();
    assert_eq!(kept, 2, "what the first lacks is kept: {trimmed}");
    let backlog = place.ledger().backlog().await.unwrap();
    let (id, _) = backlog
        .archives
        .iter()
        .find(|(_, drained)| drained.place == one)
        .unwrap();
    assert_eq!(
        place.run(&["audit", "drain", "--forget", id]).code,
        2,
        "a reason is asked for"
    );
    assert_eq!(
        place
            .run(&["audit", "drain", "--forget", "other", "--reason", "x"])
            .code,
        4
    );
    let forgotten = place.run(&["audit", "drain", "--forget", id, "--reason", "its disk is gone"]);
    assert_eq!(forgotten.code, 0, "{}", forgotten.err);
    let trimmed = place.json(&["audit", "drain", "--to", &two, "--keep", "0s"]);
    assert_eq!(trimmed["trimmed"], 3, "{trimmed}");
    let wrong = place.run(&["audit", "drain", "--to", &two, "--keep", "2026-11-01"]);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
}

#[test]
fn other_archives_are_refused_by_name() {
    let place = Place::new();
    place.issue("run_42");
    for (url, words) in [
        ("mysql://db/audit", "no scheme that is known"),
        ("sqlite://audit.db", "has no host"),
        (place.url.as_str(), "not a Keybrake archive"),
        (
            "postgres://ada:hunter2@127.0.0.1:1/audit",
            "postgres://127.0.0.1:1/audit cannot be reached",
        ),
    ] {
        let refused = place.run(&["audit", "drain", "--to", url]);
        assert_ne!(refused.code, 0, "{url}");
        assert!(refused.err.contains(words), "{url}: {}", refused.err);
        assert!(!refused.err.contains("hunter2"), "{}", refused.err);
    }
}
