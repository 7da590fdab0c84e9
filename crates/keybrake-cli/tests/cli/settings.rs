//! Which ledger is used, exit codes, policies, and what a terminal is spared.

use crate::common::{Place, answer};
use keybrake::{Clock, SystemClock};
use serde_json::{Value, json};

#[test]
fn hostile_names_are_refused_or_made_harmless() {
    let place = Place::new();
    let hostile = "run\u{1b}[2J\u{202e}";
    let issued = place.run(&["keys", "issue", "--policy", "policy.json", "--run", hostile]);
    assert_eq!(issued.code, 1, "{}", issued.out);
    let told = [
        place.run(&["why", hostile]),
        place.run(&["keys", "show", hostile]),
        place.run(&["stop", "--label", "a\u{7}", "--reason", "r\u{1b}]0;x\u{7}"]),
        place.run(&["stops"]),
    ];
    for answer in told.iter().chain([&issued]) {
        let text = format!("{}{}", answer.out, answer.err);
        let bad = text
            .chars()
            .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{text:?}");
    }
}

#[test]
fn policies_are_checked_explained_and_described_without_a_ledger() {
    let place = Place::new();
    let run = |arguments: &[&str]| answer(place.command().args(arguments).output().unwrap());
    let checked = run(&["policy", "check", "policy.json"]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(
        checked.out.contains("spends as  support") && checked.out.contains("$100.00"),
        "{}",
        checked.out
    );
    let typo = place.file(
        "typo.json",
        r#"{"vendor": "stripe", "daily_usd_cup": 5, "allowed_endpoints": ["reads"]}"#,
    );
    let refused = run(&["policy", "check", typo.to_str().unwrap()]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("daily_usd_cup") && refused.err.contains("daily_usd_cap"),
        "{}",
        refused.err
    );
    let allowed = run(&["policy", "explain", "policy.json", "POST /v1/refunds"]);
    assert_eq!(allowed.code, 0, "{}", allowed.err);
    assert!(
        allowed
            .out
            .starts_with("ALLOWED POST /v1/refunds (refunds.create)"),
        "{}",
        allowed.out
    );
    let denied = run(&["--json", "policy", "explain", "policy.json", "POST /v1/payouts"]);
    assert_eq!(denied.code, 1);
    assert_eq!(
        (&denied.json()["allowed"], &denied.json()["code"]),
        (&json!(false), &json!("endpoint_not_allowed"))
    );
    assert_eq!(
        run(&["policy", "explain", "policy.json", "refund everything"]).code,
        2
    );
    assert_eq!(run(&["policy", "check", "nowhere.json"]).code, 4);
    let schema: Value = serde_json::from_str(&run(&["policy", "schema"]).out).unwrap();
    assert!(schema["properties"]["daily_usd_cap"].is_object());
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    let place = Place::new();
    assert_eq!(place.run(&["stops"]).code, 0);
    assert_eq!(place.run(&["no-such-command"]).code, 2);
    assert_eq!(place.run(&["--help"]).code, 0);
    let beyond = format!("sqlite:{}/ledger.db", place.path().join("policy.json").display());
    let missing = place.run(&["--ledger", &beyond, "stops"]);
    assert!(matches!(missing.code, 2 | 3), "{}{}", missing.code, missing.err);
    for (url, code) in [
        ("redis+magic://user:hunter2@127.0.0.1:1", 2),
        ("redis://user:hunter2@127.0.0.1:1", 3),
    ] {
        let refused = place.run(&["--ledger", url, "stops"]);
        assert_eq!(refused.code, code, "{url}: {}", refused.err);
        assert!(!refused.err.contains("hunter2"), "{}", refused.err);
    }
    let garbage = place.file(
        "garbage.db",
        "this is no database, and was never one; it is long enough to be read as a header",
    );
    let url = format!("sqlite:{}", garbage.display());
    let unreadable = answer(
        place
            .command()
            .args(["--ledger", &url, "--json", "stops"])
            .output()
            .unwrap(),
    );
    assert_ne!(unreadable.code, 0);
    assert!(
        unreadable.json()["error"]["message"].is_string(),
        "{}",
        unreadable.out
    );
    for later in [
        "top",
        "drill",
        "proxy",
        "dashboard",
        "approvals",
        "secrets",
        "master-key",
    ] {
        let answer = place.run(&[later, "set", "--flag"]);
        assert_eq!(answer.code, 2, "{later}");
        assert!(
            answer.err.contains("not available yet"),
            "{later}: {}",
            answer.err
        );
        assert!(
            !place.run(&["--help"]).out.contains(&format!("  {later} ")),
            "{later} is offered"
        );
    }
}

#[test]
fn the_ledger_is_found_in_the_order_that_is_promised() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let url = |name: &str| format!("sqlite:{}", place.path().join(name).display());
    let config = place.file(
        "keybrake.toml",
        &format!("ledger = \"{}\"\nsecrets = \"ignored\"\n", url("project.db")),
    );
    let named = place.file("named.toml", &format!("ledger = \"{}\"\n", url("named.db")));
    let ledger = |command: &mut std::process::Command| {
        let answer = answer(command.args(["--json", "stops"]).output().unwrap());
        (
            answer.code,
            answer.json()["ledger"].as_str().map(str::to_owned),
            answer.out,
        )
    };
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, _, text) = ledger(&mut place.command());
    assert_eq!(code, 2, "a file that others can read is believed");
    assert!(text.contains("chmod 600"), "{text}");
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(ledger(&mut place.command()).1, Some(url("project.db")));
    assert_eq!(
        ledger(place.command().env("KEYBRAKE_CONFIG", &named)).1,
        Some(url("named.db"))
    );
    let mut both = place.command();
    both.env("KEYBRAKE_CONFIG", &named)
        .env("KEYBRAKE_LEDGER", url("env.db"));
    assert_eq!(ledger(&mut both).1, Some(url("env.db")));
    let mut all = place.command();
    all.env("KEYBRAKE_LEDGER", url("env.db"))
        .args(["--ledger", &url("argument.db")]);
    assert_eq!(ledger(&mut all).1, Some(url("argument.db")));
    std::fs::remove_file(&config).unwrap();
    let (code, _, text) = ledger(place.command().env("KUBERNETES_SERVICE_HOST", "10.0.0.1"));
    assert_eq!(code, 2, "a replica would have a cap of its own");
    assert!(text.contains("KEYBRAKE_LEDGER"), "{text}");
}

#[test]
fn init_writes_two_files_once() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let written = place.json(&["init", "project"]);
    assert_eq!(written["files"][0]["written"], true);
    let config = place.path().join("project/keybrake.toml");
    assert_eq!(config.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(place.json(&["init", "project"])["files"][0]["written"], false);
    let checked = place.run(&["policy", "check", "project/policies/support.json"]);
    assert_eq!(checked.code, 0, "{}", checked.err);
    let mut inside = place.command();
    inside
        .current_dir(place.path().join("project/policies"))
        .args(["--json", "stops"]);
    assert_eq!(
        answer(inside.output().unwrap()).json()["ledger"],
        place.url,
        "the file at the project's root is found"
    );
}

#[test]
fn doctor_says_what_is_there_and_what_to_do() {
    let place = Place::new();
    let secret = "sk_live_51abcdefghijklmnop";
    let mut command = place.command();
    command
        .env("KEYBRAKE_LEDGER", &place.url)
        .env("STRIPE_SECRET_KEY", secret);
    let healthy = answer(command.arg("doctor").output().unwrap());
    assert_eq!(healthy.code, 0, "{}{}", healthy.out, healthy.err);
    for expected in [
        "ok   ledger",
        "ok   clock",
        "ok   permissions",
        "stripe: STRIPE_SECRET_KEY is set, live",
    ] {
        assert!(
            healthy.out.contains(expected),
            "{expected:?} is missing in:\n{}",
            healthy.out
        );
    }
    assert!(
        !format!("{}{}", healthy.out, healthy.err).contains("51abc"),
        "a part of a secret is shown"
    );
    let lost = answer(place.command().env("CI", "1").arg("doctor").output().unwrap());
    assert_eq!(lost.code, 2);
    assert!(lost.out.contains("bad  ledger"), "{}", lost.out);
}

#[test]
fn no_colour_and_no_progress_without_a_terminal() {
    let place = Place::new();
    place.issue("run_42");
    for arguments in [
        &["keys", "list"][..],
        &["audit", "verify"],
        &["stop", "run_42"],
        &["--help"],
    ] {
        let answer = place.run(arguments);
        assert!(
            !format!("{}{}", answer.out, answer.err).contains('\u{1b}'),
            "{arguments:?}"
        );
    }
}

#[test]
fn every_command_names_the_ledger_it_used() {
    let place = Place::new();
    for arguments in [
        &["stops"][..],
        &["keys", "list"],
        &["spend"],
        &["holds", "list"],
        &["budget", "list"],
        &["audit", "list"],
    ] {
        let people = place.run(arguments);
        assert!(people.err.contains(&place.url), "{arguments:?}: {}", people.err);
        assert_eq!(place.json(arguments)["ledger"], place.url, "{arguments:?}");
    }
}

#[test]
fn dev_runs_a_program_against_the_simulator_and_tells_what_moved() {
    let place = Place::new();
    let script = "test -n \"$KEYBRAKE_BASE_URL_STRIPE\" && case $STRIPE_SECRET_KEY in sk_test_*) ;; *) exit 9;; esac; \
                  test -n \"$KEYBRAKE_LEDGER\" && exit 3";
    let done = answer(
        place
            .command()
            .args(["dev", "--", "sh", "-c", script])
            .output()
            .unwrap(),
    );
    assert_eq!(done.code, 3, "{}{}", done.out, done.err);
    for expected in [
        "no money moved",
        "nothing was refused",
        "the books agree; the program ended with 3",
    ] {
        assert!(
            done.out.contains(expected),
            "{expected:?} is missing in:\n{}",
            done.out
        );
    }
    assert_eq!(
        answer(
            place
                .command()
                .args(["dev", "--", "/no/such/program"])
                .output()
                .unwrap()
        )
        .code,
        4
    );
}

/// A machine whose wall clock is an hour behind.
#[derive(Debug)]
struct Behind;

impl Clock for Behind {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() - 3_600_000
    }

    fn boot_ms(&self) -> i64 {
        SystemClock.boot_ms()
    }

    fn boot_id(&self) -> Option<String> {
        SystemClock.boot_id()
    }
}

#[tokio::test]
async fn a_clock_that_jumped_is_refused_until_doctor_accepts_it() {
    let place = Place::new();
    let ledger = keybrake::ledger::open(&place.url, std::sync::Arc::new(Behind)).unwrap();
    ledger.sweep(1).await.unwrap();
    let refused = place.run(&["stop", "run_42"]);
    assert_eq!(refused.code, 3, "{}{}", refused.out, refused.err);
    assert!(
        refused.err.contains("keybrake doctor --accept-clock"),
        "{}",
        refused.err
    );
    let sick = place.run(&["doctor"]);
    assert_eq!(sick.code, 3);
    assert!(sick.out.contains("bad  clock"), "{}", sick.out);
    let accepted = place.run(&[
        "doctor",
        "--accept-clock",
        "--reason",
        "the time server was wrong",
    ]);
    assert_eq!(accepted.code, 0, "{}{}", accepted.out, accepted.err);
    assert!(accepted.out.contains("ok   clock"), "{}", accepted.out);
    assert_eq!(place.run(&["stop", "run_42"]).code, 0);
}
