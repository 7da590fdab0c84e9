//! What the Redis ledger refuses, and with which words: servers that it cannot use, amounts that it cannot count.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{BufReader, Write as _};
use std::net::TcpListener;

use keybrake::error::ErrorKind;
use keybrake::ledger::{EventFilter, Ledger};
use keybrake_testkit::redis::{Cluster, Persistence, RedisOptions, RedisServer};
use keybrake_tests::books;
use keybrake_tests::fleet::{self, Fleet, books_agree, used_and_held};

/// The largest amount that Redis scripts count exactly: 2^53 - 1 micro-USD.
const LARGEST: i64 = 9_007_199_254_740_991;
const PASSWORD: &str = "hunter2-of-the-tests";

fn refusal(url: &str) -> (ErrorKind, String) {
    let error = fleet::open(url).map(|_| ()).unwrap_err();
    // Whatever it is, it holds no secret, not even in its causes.
    let said = format!("{error} {error:?}");
    assert!(!said.contains(PASSWORD), "{said}");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn amounts_are_exact_up_to_two_to_the_fifty_third() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(LARGEST).await;
    for (id, amount) in [("all but three", LARGEST - 3), ("two", 2)] {
        books::reserve(&ledger, books::call(&key, id, amount))
            .await
            .unwrap()
            .unwrap();
        ledger.settle(books::charged(id, amount)).await.unwrap();
    }
    assert_eq!(used_and_held(&ledger).await, (LARGEST - 1, 0));
    let more = books::reserve(&ledger, books::call(&key, "two more", 2))
        .await
        .unwrap();
    assert_eq!(more.unwrap_err(), "CapExceeded");
    books::reserve(&ledger, books::call(&key, "the last", 1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used_and_held(&ledger).await, (LARGEST - 1, 1));
    books_agree(&ledger).await;
    // Another process reads the same.
    assert_eq!(used_and_held(&fleet.open()).await, (LARGEST - 1, 1));
}

#[tokio::test]
async fn amounts_above_that_are_refused_by_name_and_leave_nothing() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(i64::MAX / 2).await;
    let before = ledger.info().await.unwrap().last_seq;
    let error = ledger
        .reserve(books::call(&key, "large", LARGEST + 1))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("too large for a ledger in Redis"),
        "{error}"
    );
    // Each fits, the sum does not: the server refuses, before it writes.
    books::reserve(&ledger, books::call(&key, "fits", LARGEST))
        .await
        .unwrap()
        .unwrap();
    let held = ledger.info().await.unwrap().last_seq;
    assert!(held > before);
    let error = ledger
        .reserve(books::call(&key, "too much", 1))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("overflow"), "{error}");
    assert_eq!(ledger.info().await.unwrap().last_seq, held);
    assert!(ledger.reservation("too much").await.unwrap().is_none());
    assert_eq!(used_and_held(&ledger).await, (0, LARGEST));
    books_agree(&ledger).await;
}

/// A counter that somebody has damaged: the function fails, and has written nothing.
#[tokio::test]
async fn a_script_that_fails_leaves_nothing() {
    let fleet = Fleet::start(Persistence::None);
    let (ledger, key) = fleet.with_key(1_000).await;
    books::reserve(&ledger, books::call(&key, "one", 1))
        .await
        .unwrap()
        .unwrap();
    let counters = fleet.server.command(&["HKEYS", "kb:{fleet}:counters"]).unwrap();
    for name in counters.items().unwrap() {
        let name = name.text().unwrap();
        fleet
            .server
            .command(&["HSET", "kb:{fleet}:counters", name, "1e3:x"])
            .unwrap();
    }
    // A hash tells its fields in any order.
    // An entry is so many items; the server may tell them in another order the next time.
    let entries = |command: &[&str], items: usize| {
        let reply = fleet.server.command(command).unwrap();
        let mut entries: Vec<String> = reply
            .items()
            .unwrap()
            .chunks(items)
            .map(|entry| format!("{entry:?}"))
            .collect();
        entries.sort_unstable();
        entries
    };
    let contents = || {
        let place = |name: &str| format!("kb:{{fleet}}:{name}");
        let hash = |name: &str| entries(&["HGETALL", &place(name)], 2);
        let list = |name: &str| entries(&["ZRANGE", &place(name), "0", "-1", "WITHSCORES"], 2);
        let keys = entries(&["KEYS", "*"], 1);
        [
            hash("meta"),
            hash("records"),
            hash("counters"),
            list("open"),
            list("deadlines"),
            keys,
        ]
    };
    let events = ledger.events(EventFilter::default()).await.unwrap();
    let before = contents();
    let error = ledger.reserve(books::call(&key, "two", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LedgerCorrupt, "{error}");
    assert_eq!(ledger.events(EventFilter::default()).await.unwrap(), events);
    assert_eq!(contents(), before);
}

#[test]
fn a_node_of_a_cluster_that_lacks_the_namespace_names_the_one_that_has_it() {
    let cluster = Cluster::start(&RedisOptions::new()).unwrap();
    let mut opened = 0;
    for node in cluster.nodes() {
        match fleet::open(&format!("{}?ns=fleet&timeout_ms=20000", node.url())) {
            Ok(_) => opened += 1,
            Err(error) => {
                let said = error.to_string();
                assert!(
                    said.contains("Redis Cluster") && said.contains("127.0.0.1:"),
                    "{said}"
                );
            }
        }
    }
    assert_eq!(opened, 1, "all keys of a namespace are in one slot");
}

#[test]
fn wrong_credentials_are_refused_without_repeating_them() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    server
        .command(&["ACL", "SETUSER", "agent", "on", ">another", "~kb:*", "+@all"])
        .unwrap();
    let host = format!("127.0.0.1:{}", server.port());
    for url in [
        format!("redis://agent:{PASSWORD}@{host}"),
        format!("redis://nobody:{PASSWORD}@{host}"),
        format!("rediss://agent:{PASSWORD}@{host}"),
        format!("redis://agent:{PASSWORD}@127.0.0.1:1"),
    ] {
        let (_, said) = refusal(&url);
        assert!(said.contains("127.0.0.1"), "{said}");
        println!("{said}");
    }
}

#[test]
fn a_user_who_may_not_load_the_functions_is_told_who_may() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    server
        .command(&[
            "ACL",
            "SETUSER",
            "agent",
            "on",
            &format!(">{PASSWORD}"),
            "~kb:*",
            "+@all",
            "-function",
        ])
        .unwrap();
    let url = format!(
        "redis://agent:{PASSWORD}@127.0.0.1:{}?timeout_ms=20000",
        server.port()
    );
    let (kind, said) = refusal(&url);
    assert_eq!(kind, ErrorKind::Config);
    assert!(
        said.contains("+function") && said.contains("keybrake doctor"),
        "{said}"
    );
    // An administrator does it once.
    drop(fleet::open(&format!("{}?timeout_ms=20000", server.url())).unwrap());
    assert!(fleet::open(&url).is_ok());
}

/// Before the first decision, and not in the middle of one.
#[test]
fn a_right_that_is_missing_is_named_when_the_ledger_is_opened() {
    let server = RedisServer::start(RedisOptions::new()).unwrap();
    let url = format!(
        "redis://agent:{PASSWORD}@127.0.0.1:{}?ns=prod&timeout_ms=20000",
        server.port()
    );
    let user = |rights: &[&str]| {
        let password = format!(">{PASSWORD}");
        let words = ["ACL", "SETUSER", "agent", "reset", "on", password.as_str()];
        let words: Vec<&str> = words.into_iter().chain(rights.iter().copied()).collect();
        server.command(&words).unwrap();
    };
    // The line of docs/redis.md.
    let documented = "~kb:{prod}:* -@all +fcall +function|load +function|list +info +ping +time +hello +config|get +get \
                      +hget +hset +hmget +hgetall +hincrby +hdel +hscan +exists +set +mget +zadd +zrem +zrange \
                      +zrangebyscore +xadd +xrange +xtrim +wait +publish +subscribe +memory|usage";
    let documented: Vec<&str> = documented.split_whitespace().collect();
    for (right, named) in [
        ("+hincrby", "+hincrby"),
        ("+xadd", "+xadd"),
        ("+set", "+set"),
        ("+zrem", "+zrem"),
    ] {
        let all_but: Vec<&str> = documented
            .iter()
            .copied()
            .filter(|other| *other != right)
            .collect();
        user(&all_but);
        let (kind, said) = refusal(&url);
        assert_eq!(kind, ErrorKind::Config, "{said}");
        assert!(said.contains(&format!("ACL SETUSER … {named}.")), "{said}");
        assert!(
            said.contains("~kb:{prod}:*") && !said.contains(PASSWORD),
            "{said}"
        );
    }
    let elsewhere = documented.iter().skip(1).copied().chain(["~kb:{prod}:meta"]);
    user(&elsewhere.collect::<Vec<_>>());
    let (kind, said) = refusal(&url);
    assert!(
        kind != ErrorKind::Internal && !said.contains(PASSWORD),
        "{kind:?} {said}"
    );
    user(&documented);
    assert!(fleet::open(&url).is_ok());
}

/// Redis 6 has no functions. It cannot be installed beside the other, so a listener says what it would say.
#[test]
fn an_old_server_is_refused_by_its_version() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut requests = BufReader::new(stream.try_clone().unwrap());
            while let Some(words) = request(&mut requests) {
                let answer = match words.first().map(String::as_str) {
                    Some("INFO") => {
                        let info = "# Server\r\nredis_version:6.2.14\r\nrun_id:00\r\n";
                        format!("${}\r\n{info}\r\n", info.len())
                    }
                    Some("CLIENT") => "-ERR unknown subcommand\r\n".to_owned(),
                    _ => "+OK\r\n".to_owned(),
                };
                if stream.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    let (kind, said) = refusal(&format!("redis://127.0.0.1:{port}?timeout_ms=20000"));
    assert_eq!(kind, ErrorKind::Config);
    assert!(
        said.contains("Redis 6.2.14") && said.contains("Redis 7"),
        "{said}"
    );
}

/// The words of the next request, in upper case; `None` when the client has gone.
fn request(from: &mut impl std::io::BufRead) -> Option<Vec<String>> {
    let mut header = || {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        Some(line.trim().to_owned())
    };
    let count: usize = header()?.strip_prefix('*')?.parse().ok()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        let length: usize = line.trim().strip_prefix('$')?.parse().ok()?;
        let mut bytes = vec![0; length + 2];
        from.read_exact(&mut bytes).ok()?;
        bytes.truncate(length);
        words.push(String::from_utf8(bytes).ok()?.to_uppercase());
    }
    Some(words)
}

/// A small answer must not wait for the acknowledgement of the one before it (40 ms of Nagle's delay).
#[cfg(target_os = "linux")]
#[test]
fn the_connection_does_not_wait_to_fill_its_packets() {
    let fleet = Fleet::start(Persistence::None);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (ledger, key) = fleet.with_key(1_000).await;
        books::reserve(&ledger, books::call(&key, "one", 1))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(nodelay_of_connections_to(fleet.server.port()), [true]);
    });
}

/// Whether each of this process's connections to a port has `TCP_NODELAY` set.
#[cfg(target_os = "linux")]
fn nodelay_of_connections_to(port: u16) -> Vec<bool> {
    use std::os::fd::{FromRawFd as _, IntoRawFd as _};
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(fd) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        #[expect(
            unsafe_code,
            reason = "looks at a socket of this process, and gives it back unclosed"
        )]
        let socket = unsafe { std::net::TcpStream::from_raw_fd(fd) };
        if socket.peer_addr().is_ok_and(|peer| peer.port() == port) {
            found.extend(socket.nodelay());
        }
        let _ = socket.into_raw_fd();
    }
    found
}
