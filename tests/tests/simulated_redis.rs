//! The simulation's imitation of Redis answers as a real server does: random commands to both; and the whole library, with
//! what simulated fleets ask of it and with what nobody would.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Mutex;

use keybrake_testkit::redis::{Connection, RedisOptions, RedisServer, Reply as Real};
use keybrake_testkit::sim::store::{Reply, Store};
use keybrake_testkit::sim::{Options, run_beside};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One answer in one form; of an error only its code, and the pairs of a hash in order.
fn shown(reply: Reply, unordered: bool) -> String {
    match reply {
        Reply::Nil => "nil".to_owned(),
        Reply::Int(number) => format!("int {number}"),
        Reply::Text(text) | Reply::Status(text) => format!("text {text}"),
        Reply::Error(text) => error(&text),
        Reply::List(parts) => list(
            parts.into_iter().map(|part| shown(part, unordered)).collect(),
            unordered,
        ),
    }
}

fn shown_real(reply: &Real, unordered: bool) -> String {
    match reply {
        Real::Nil => "nil".to_owned(),
        Real::Integer(number) => format!("int {number}"),
        Real::Error(text) => error(text),
        Real::Array(parts) => list(
            parts.iter().map(|part| shown_real(part, unordered)).collect(),
            unordered,
        ),
        other => format!("text {}", other.text().unwrap()),
    }
}

fn error(text: &str) -> String {
    format!("error {}", text.split(' ').next().unwrap_or_default())
}

fn list(parts: Vec<String>, unordered: bool) -> String {
    let mut parts = parts;
    if unordered && parts.iter().all(|part| part.starts_with("text ")) {
        let mut pairs: Vec<String> = parts.chunks(2).map(|pair| pair.join("=")).collect();
        pairs.sort();
        parts = pairs;
    }
    format!("[{}]", parts.join(", "))
}

/// A key's name says what kind it usually is; now and then a command meets the wrong kind.
fn command() -> impl Strategy<Value = Vec<String>> {
    let key = |kind: &'static str| {
        prop_oneof![
            20 => (0..3_u8).prop_map(move |n| format!("{kind}{n}")),
            1 => Just("h0".to_owned()),
            1 => Just("s0".to_owned()),
        ]
    };
    let word = || {
        prop_oneof![
            (0..4_u8).prop_map(|n| format!("f{n}")),
            (-9..99_i64).prop_map(|n| n.to_string())
        ]
    };
    let number = || (-5..60_i64).prop_map(|n| n.to_string());
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    prop_oneof![
        (key("h"), word(), word(), word(), word())
            .prop_map(move |(k, a, b, c, d)| words(&["HSET", &k, &a, &b, &c, &d])),
        (key("h"), word()).prop_map(move |(k, a)| words(&["HGET", &k, &a])),
        (key("h"), word()).prop_map(move |(k, a)| words(&["HEXISTS", &k, &a])),
        (key("h"), word(), word()).prop_map(move |(k, a, b)| words(&["HMGET", &k, &a, &b])),
        key("h").prop_map(move |k| words(&["HGETALL", &k])),
        key("h").prop_map(move |k| words(&["HSCAN", &k, "0", "MATCH", "f*", "COUNT", "1000"])),
        (key("h"), word()).prop_map(move |(k, a)| words(&["HDEL", &k, &a])),
        (key("h"), word(), word()).prop_map(move |(k, a, b)| words(&["HINCRBY", &k, &a, &b])),
        (key("s"), word()).prop_map(move |(k, a)| words(&["SET", &k, &a])),
        (key("s"), word()).prop_map(move |(k, a)| words(&["SET", &k, &a, "PX", "100000"])),
        key("s").prop_map(move |k| words(&["GET", &k])),
        (key("s"), key("s")).prop_map(move |(k, l)| words(&["MGET", &k, &l])),
        (key("s"), key("h")).prop_map(move |(k, l)| words(&["EXISTS", &k, &l])),
        key("s").prop_map(move |k| words(&["DEL", &k])),
        (key("z"), word(), word()).prop_map(move |(k, a, b)| words(&["ZADD", &k, &a, &b])),
        (key("z"), word()).prop_map(move |(k, a)| words(&["ZREM", &k, &a])),
        (key("z"), number(), number()).prop_map(move |(k, a, b)| words(&["ZRANGE", &k, &a, &b])),
        key("z").prop_map(move |k| words(&["ZRANGE", &k, "0", "-1", "REV"])),
        key("z").prop_map(move |k| words(&["ZRANGE", &k, "0", "1", "WITHSCORES"])),
        (key("z"), number()).prop_map(move |(k, a)| words(&[
            "ZRANGEBYSCORE",
            &k,
            "-inf",
            &a,
            "LIMIT",
            "1",
            "2"
        ])),
        (key("x"), 0..20_u8, word()).prop_map(move |(k, n, a)| words(&[
            "XADD",
            &k,
            &format!("{n}-0"),
            "d",
            &a
        ])),
        (key("x"), 0..20_u8).prop_map(move |(k, n)| words(&[
            "XRANGE",
            &k,
            &format!("({n}-0"),
            "+",
            "COUNT",
            "3"
        ])),
    ]
}

#[test]
fn the_imitation_answers_as_a_real_server_does() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let connection: Mutex<Connection> = Mutex::new(server.connect().unwrap());
    let config = Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let sequences = proptest::collection::vec(command(), 1..60);
    TestRunner::new(config)
        .run(&sequences, |commands| {
            let mut connection = connection.lock().unwrap();
            connection.command(&["FLUSHALL"]).unwrap();
            let mut store = Store::default();
            for words in commands {
                let unordered = matches!(words.first().map(String::as_str), Some("HGETALL" | "HSCAN"));
                let real = match connection.command(&words) {
                    Ok(reply) => shown_real(&reply, unordered),
                    Err(refused) => error(&refused.to_string()),
                };
                prop_assert_eq!(
                    shown(store.run(1_000_000, &words), unordered),
                    real,
                    "{:?}",
                    words
                );
            }
            Ok(())
        })
        .unwrap();
}

/// Seeds of the simulation whose every command is given to a real server as well: restarts, failovers, commands that come
/// twice, late or out of order; and at each one's end, commands with wrong words in them.
const SEEDS: std::ops::Range<u64> = 0..12;

#[test]
fn the_library_does_the_same_on_a_real_server() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let (mut failovers, mut disturbed) = (0, 0);
    for seed in SEEDS {
        let options = Options {
            seed,
            mutant: None,
            trace: false,
        };
        let outcome = run_beside(&options, Some(server.connect().unwrap()));
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}: {violation}");
        }
        failovers += outcome.counts.get("failovers").copied().unwrap_or(0);
        disturbed += outcome.counts.get("disturbed").copied().unwrap_or(0);
    }
    // A comparison in which nothing happens proves nothing.
    assert!(failovers > 2, "only {failovers} failovers");
    assert!(disturbed > 500, "only {disturbed} commands with wrong words");
}
