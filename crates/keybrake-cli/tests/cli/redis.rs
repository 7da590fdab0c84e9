//! The command against a ledger in Redis, each on a private server.

use std::sync::Arc;

use keybrake::SystemClock;
use keybrake_testkit::redis::{Persistence, RedisOptions, RedisServer};
use serde_json::Value;

use crate::common::{Answer, Place, answer, granted};

const MASTER: &str = "a master key of the tests: 32 bytes or more";

struct Fleet {
    server: RedisServer,
    place: Place,
}

impl Fleet {
    fn new(options: RedisOptions) -> Self {
        let server = RedisServer::start(options).unwrap();
        let place = Place::on(format!("{}?ns=prod&timeout_ms=20000", server.url()));
        Self { server, place }
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        self.place.run(arguments)
    }

    fn name(&self) -> String {
        format!("{} ns=prod", self.server.url())
    }

    /// The check of this name in what `doctor --json` answers.
    fn check(&self, name: &str) -> Value {
        let answer = self.run(&["--json", "doctor"]).json();
        let checks = answer["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["check"] == name);
        found
            .unwrap_or_else(|| panic!("{name} is missing in {answer}"))
            .clone()
    }
}

#[test]
fn a_stop_names_server_and_namespace() {
    let fleet = Fleet::new(RedisOptions::new());
    fleet.place.issue("run_42");
    let stopped = fleet.run(&["stop", "run_42", "--reason", "refund loop"]);
    assert_eq!(stopped.code, 0, "{}", stopped.err);
    let first = stopped.out.lines().next().unwrap();
    assert!(
        first.starts_with(&format!("STOPPED run_42 on {} in ", fleet.name())),
        "{first}"
    );
    let resumed = fleet.run(&["resume", "run_42"]);
    assert!(resumed.out.contains(&fleet.name()), "{}", resumed.out);
    let json = fleet.place.json(&["stops"]);
    assert_eq!(json["ledger"], format!("{}?ns=prod", fleet.server.url()));
}

#[test]
fn doctor_says_what_a_server_would_lose() {
    for (options, grade, words) in [
        (
            RedisOptions::new(),
            "look",
            "everything that was spent and held is forgotten",
        ),
        (
            RedisOptions::new().config("save 3600 1"),
            "look",
            "snapshots only",
        ),
        (
            RedisOptions::new().persistence(Persistence::EverySecond),
            "ok",
            "a power cut up to two seconds",
        ),
        (
            RedisOptions::new().persistence(Persistence::Always),
            "ok",
            "appendfsync always",
        ),
    ] {
        let check = Fleet::new(options).check("durability");
        assert_eq!(check["grade"], grade, "{check}");
        assert!(check["found"].as_str().unwrap().contains(words), "{check}");
    }
}

#[test]
fn doctor_tells_of_server_functions_secret_and_clock() {
    let fleet = Fleet::new(RedisOptions::new());
    let other = "#!lua name=keybrake_0123456789ab\nredis.register_function('old', function() return 1 end)";
    fleet.server.command(&["FUNCTION", "LOAD", other]).unwrap();
    let healthy = fleet.run(&["doctor"]);
    assert_eq!(healthy.code, 0, "{}{}", healthy.out, healthy.err);
    for expected in [
        "ok   server       Redis ",
        "a round trip takes 0.",
        "ok   transport    plain, on this machine",
        "ok   memory       maxmemory-policy noeviction",
        "ok   replicas     none",
        "and of other versions keybrake_0123456789ab",
        "ok   namespace    prod: every key begins with kb:{prod}:",
        "look master key   none: the ledger's secret stands beside its data",
        "ok   clocks       the server is ",
        "ok   state        open",
    ] {
        assert!(
            healthy.out.contains(expected),
            "{expected:?} is missing in:\n{}",
            healthy.out
        );
    }
}

#[test]
fn with_a_master_key_the_secret_is_not_in_redis() {
    let fleet = Fleet::new(RedisOptions::new());
    let mut command = fleet.place.command();
    command
        .env("KEYBRAKE_LEDGER", &fleet.place.url)
        .env("KEYBRAKE_MASTER_KEY", MASTER);
    let healthy = answer(command.args(["doctor"]).output().unwrap());
    assert!(
        healthy
            .out
            .contains("ok   master key   the ledger's secret is derived"),
        "{}",
        healthy.out
    );
    let without = fleet.run(&["doctor"]);
    assert_eq!(without.code, 2, "{}", without.out);
    assert!(without.out.contains("needs its master key"), "{}", without.out);
    let shown = format!("{}{}{}{}", healthy.out, healthy.err, without.out, without.err);
    assert!(!shown.contains(MASTER), "{shown}");
}

#[test]
fn what_a_server_may_not_be_is_named_with_what_to_set() {
    let evicts = Fleet::new(RedisOptions::new().maxmemory_policy("allkeys-lru"));
    let sick = evicts.run(&["doctor"]);
    assert_eq!(sick.code, 2, "{}", sick.out);
    assert!(
        sick.out.contains("set maxmemory-policy noeviction"),
        "{}",
        sick.out
    );

    let mut gone = Fleet::new(RedisOptions::new());
    gone.server.kill().unwrap();
    let sick = gone.run(&["doctor"]);
    assert_eq!(sick.code, 3, "{}", sick.out);
    assert!(sick.out.contains("cannot be reached"), "{}", sick.out);
}

#[tokio::test]
async fn a_ledger_whose_server_restarted_is_opened_by_hand() {
    let mut fleet = Fleet::new(RedisOptions::new().persistence(Persistence::Always));
    let key = fleet.place.issue("run_42");
    {
        let ledger = fleet.place.ledger();
        granted(&*ledger, &key, "call-1", 5).await;
    }
    fleet.server.restart().unwrap();

    // Nobody who saw its last state is left.
    let refused = fleet.run(&["stop", "run_42"]);
    assert_eq!(refused.code, 3, "{}{}", refused.out, refused.err);
    assert!(refused.err.contains("keybrake ledger open"), "{}", refused.err);
    assert_eq!(fleet.check("state")["grade"], "bad");
    let sick = fleet.run(&["doctor"]);
    assert_eq!(sick.code, 3);
    assert!(!sick.out.contains("accept-clock"), "{}", sick.out);

    assert_eq!(fleet.run(&["ledger", "open"]).code, 2, "a reason is asked for");
    let opened = fleet.run(&["ledger", "open", "--reason", "compared with Stripe"]);
    assert_eq!(opened.code, 0, "{}", opened.err);
    assert!(
        opened.out.starts_with(&format!("OPENED {} with ", fleet.name()))
            && opened.out.contains("1 open hold"),
        "{}",
        opened.out
    );
    let again = fleet.place.json(&["ledger", "open", "--reason", "once more"]);
    assert_eq!(
        (&again["opened"], &again["was_open"]),
        (&false.into(), &true.into())
    );

    assert_eq!(fleet.check("state")["grade"], "ok");
    let ledger = keybrake::ledger::open(&fleet.place.url, Arc::new(SystemClock)).unwrap();
    let events = ledger
        .events(keybrake::ledger::EventFilter::default())
        .await
        .unwrap();
    let notes: Vec<String> = events
        .iter()
        .map(|event| format!("{:?}", event.body.admin))
        .collect();
    let openings: Vec<&String> = notes.iter().filter(|note| note.contains("open_ledger")).collect();
    assert_eq!(openings.len(), 1, "{notes:?}");
    assert!(
        openings[0].contains("compared with Stripe") && openings[0].contains("ada"),
        "{openings:?}"
    );
    granted(&*ledger, &key, "call-2", 5).await;
}

#[test]
fn a_ledger_that_is_always_open_says_so() {
    let place = Place::new();
    let answer = place.run(&["ledger", "open", "--reason", "to be sure"]);
    assert_eq!(answer.code, 0, "{}", answer.err);
    assert!(answer.out.contains("is open already"), "{}", answer.out);
}

#[tokio::test]
async fn the_user_in_the_guide_may_do_everything_and_no_more() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/redis.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let command = guide
        .split("\nACL SETUSER ")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let words = format!(
        "ACL SETUSER {}",
        command.replace('\\', " ").replace("PASSWORD", "hunter2")
    );
    let words: Vec<&str> = words.split_whitespace().collect();
    let fleet = Fleet::new(RedisOptions::new().persistence(Persistence::Always));
    fleet.server.command(&words).unwrap();
    let url = fleet.place.url.replace("redis://", "redis://keybrake:hunter2@");
    let fleet = Fleet {
        place: Place::on(url),
        ..fleet
    };
    let key = fleet.place.issue("run_42");
    let ledger = fleet.place.ledger();
    granted(&*ledger, &key, "call-1", 5).await;
    crate::common::charged(&*ledger, "call-1", 5).await;
    granted(&*ledger, &key, "call-2", 5).await;
    for arguments in [
        &["stop", "run_42"][..],
        &["stops"],
        &["resume", "run_42"],
        &["budget", "set", "tenant:acme", "--usd", "500", "--per", "month"],
        &["budget", "list"],
        &["holds", "list"],
        &["holds", "resolve", "call-2", "--spent", "5", "--evidence", "seen"],
        &["spend"],
        &["why", "run_42"],
        &["audit", "verify"],
        &["keys", "list"],
        &["keys", "revoke", &key],
        &["doctor"],
    ] {
        let answer = fleet.run(arguments);
        let told = format!("{}{}", answer.out, answer.err);
        let in_flight = answer.code == 1 && arguments.contains(&"resolve") && told.contains("in flight");
        assert!(answer.code == 0 || in_flight, "{arguments:?}: {told}");
        assert!(
            !told.contains("NOPERM") && !told.contains("may not") && !told.contains("hunter2"),
            "{told}"
        );
    }
    let mut own = fleet.server.connect().unwrap();
    own.command(&["AUTH", "keybrake", "hunter2"]).unwrap();
    for forbidden in [
        &["GET", "another"][..],
        &["CONFIG", "SET", "appendonly", "no"],
        &["FLUSHALL"],
        &["KEYS", "*"],
    ] {
        let error = own.command(forbidden).unwrap_err().to_string();
        assert!(error.contains("NOPERM"), "{forbidden:?}: {error}");
    }
}
