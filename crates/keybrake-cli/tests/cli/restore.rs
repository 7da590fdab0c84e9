//! `ledger restore`: a ledger that lost its data, told again from its archive.

use keybrake_testkit::redis::{RedisOptions, RedisServer};
use serde_json::Value;

use crate::common::{Answer, Place, answer, charged, granted};

const MASTER: &str = "a master key of the tests: 32 bytes or more";

struct Fleet {
    server: RedisServer,
    place: Place,
    archive: String,
}

impl Fleet {
    fn new() -> Self {
        let server = RedisServer::start(RedisOptions::new()).unwrap();
        let place = Place::on(format!("{}?ns=prod&timeout_ms=20000", server.url()));
        let archive = format!("sqlite:{}", place.path().join("audit.db").display());
        Self {
            server,
            place,
            archive,
        }
    }

    fn run(&self, arguments: &[&str]) -> Answer {
        self.run_with(MASTER, arguments)
    }

    fn run_with(&self, master: &str, arguments: &[&str]) -> Answer {
        let mut command = self.place.command();
        command.env("KEYBRAKE_LEDGER", &self.place.url).args(arguments);
        if !master.is_empty() {
            command.env("KEYBRAKE_MASTER_KEY", master);
        }
        answer(command.output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.run(&[&["--json"], arguments].concat());
        assert_eq!(answer.code, 0, "{arguments:?}: {}{}", answer.out, answer.err);
        answer.json()
    }
}

#[tokio::test]
async fn a_ledger_whose_data_is_gone_is_restored_and_opened_by_hand() {
    let fleet = Fleet::new();
    let restore = ["ledger", "restore", "--from", &fleet.archive];
    let nothing = fleet.run(&restore);
    assert_eq!(nothing.code, 4, "{}", nothing.err);
    assert_eq!(fleet.run(&["ledger", "restore"]).code, 2, "from where?");

    let issued = fleet.json(&["keys", "issue", "--policy", "policy.json", "--run", "run_42"]);
    let key = issued["id"].as_str().unwrap();
    let ledger = {
        let clock = std::sync::Arc::new(keybrake::SystemClock);
        keybrake::ledger::redis::RedisLedger::open(&fleet.place.url, clock, Some(MASTER.as_bytes())).unwrap()
    };
    granted(&ledger, key, "call-1", 60).await;
    charged(&ledger, "call-1", 60).await;
    granted(&ledger, key, "call-2", 30).await;
    fleet.json(&["stop", "run_43", "--reason", "loop"]);
    let drained = fleet.json(&["audit", "drain", "--to", &fleet.archive]);
    let before = fleet.json(&["budget", "list"]);
    fleet.server.command(&["FLUSHALL"]).unwrap();

    // Whatever is looked at meanwhile.
    let looked = fleet.run(&["stops"]);
    assert!(looked.err.contains("empty"), "{}", looked.err);
    let keyless = fleet.run_with("", &restore);
    assert_eq!(keyless.code, 2, "{}{}", keyless.out, keyless.err);
    assert!(keyless.err.contains("set KEYBRAKE_MASTER_KEY"), "{}", keyless.err);
    let wrong = fleet.run_with("another master key of 32 bytes or more", &restore);
    assert_eq!(wrong.code, 2, "{}", wrong.err);
    let told = fleet.json(&restore);
    assert_eq!(told["state"], "closed", "{told}");
    assert_eq!(told["archive_ends_at_event"], drained["seq"]);
    assert_eq!(told["ledger_had_up_to_event"], 0);
    assert_eq!(told["restored"]["calls"], 2);
    assert_eq!(told["restored"]["stops"], 1);
    assert_eq!(told["archive"], fleet.archive);
    assert!(told["ledger"].as_str().unwrap().starts_with("redis://"));

    let again = fleet.run(&restore);
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(
        again.out.starts_with("RESTORED") && again.out.contains("nothing was missing that the archive has"),
        "{}",
        again.out
    );
    let ends = format!("whatever was decided after event {}", drained["seq"]);
    assert!(again.out.contains(&ends), "{}", again.out);
    assert!(again.out.contains("it stays closed until"), "{}", again.out);
    let doctor = fleet.run(&["doctor"]);
    assert!(doctor.out.contains("keybrake ledger restore"), "{}", doctor.out);

    let opened = fleet.json(&["ledger", "open", "--reason", "compared with Stripe"]);
    assert_eq!(opened["opened"], true);
    assert_eq!(fleet.json(&["budget", "list"]), before);
    assert_eq!(fleet.json(&["stops"])["stops"][0]["reason"], "loop");
    assert_eq!(fleet.json(&["audit", "verify"])["clean"], true);
    let open = fleet.run(&restore);
    assert!(open.out.contains("it is open: calls are decided"), "{}", open.out);
}

#[tokio::test]
async fn a_ledger_in_a_file_that_came_back_older_is_told_what_it_lacks() {
    let place = Place::new();
    let archive = format!("sqlite:{}", place.path().join("audit.db").display());
    let key = place.issue("run_42");
    granted(place.ledger().as_ref(), &key, "call-1", 60).await;
    let copies = place.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let files = || {
        let files = std::fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files.filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("ledger.db")
        })
    };
    for file in files() {
        std::fs::copy(&file, copies.join(file.file_name().unwrap())).unwrap();
    }
    charged(place.ledger().as_ref(), "call-1", 60).await;
    granted(place.ledger().as_ref(), &key, "call-2", 30).await;
    place.json(&["keys", "revoke", &key, "--reason", "done"]);
    place.json(&["audit", "drain", "--to", &archive]);
    let before = place.json(&["budget", "list"]);
    for file in files().collect::<Vec<_>>() {
        std::fs::remove_file(file).unwrap();
    }
    for entry in std::fs::read_dir(&copies).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, place.path().join(file.file_name().unwrap())).unwrap();
    }
    let restored = place.run(&["ledger", "restore", "--from", &archive]);
    assert_eq!(restored.code, 0, "{}", restored.err);
    assert!(
        restored.out.contains("2 calls, 1 key said again"),
        "{}",
        restored.out
    );
    assert_eq!(place.json(&["budget", "list"]), before);
    assert_eq!(place.json(&["audit", "verify"])["clean"], true);
    let open = place.json(&["keys", "list"]);
    assert_eq!(open["keys"].as_array().unwrap().len(), 0, "{open}");

    // Another ledger's archive.
    let other = Place::new();
    other.issue("run_1");
    let refused = other.run(&["ledger", "restore", "--from", &archive]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("it is another ledger"), "{}", refused.err);
}
