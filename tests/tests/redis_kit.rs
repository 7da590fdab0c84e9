//! The private Redis servers of the test kit do what the Redis ledger's tests rely on.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use keybrake_testkit::redis::{PATIENCE, Persistence, RedisOptions, RedisServer, Reply};

fn start(persistence: Persistence) -> RedisServer {
    RedisServer::start(RedisOptions::new().persistence(persistence)).unwrap()
}

fn get(server: &RedisServer, key: &str) -> Option<String> {
    let reply = server.command(&["GET", key]).unwrap();
    reply.text().map(str::to_owned)
}

fn config(server: &RedisServer, name: &str) -> String {
    let reply = server.command(&["CONFIG", "GET", name]).unwrap();
    reply.items().unwrap().last().unwrap().text().unwrap().to_owned()
}

#[test]
fn a_server_answers_on_its_port_and_on_its_socket() {
    let server = start(Persistence::None);
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    assert_eq!(
        server.command(&["ECHO", "here"]).unwrap(),
        Reply::Bulk(b"here".to_vec())
    );
    let url = server.unix_url();
    let socket = UnixStream::connect(url.strip_prefix("redis+unix://").unwrap());
    assert!(socket.is_ok(), "{url}: {socket:?}");
}

#[test]
fn servers_at_the_same_time_share_nothing() {
    let (one, other) = (start(Persistence::None), start(Persistence::None));
    assert_ne!(one.port(), other.port());
    one.command(&["SET", "key", "one"]).unwrap();
    assert_eq!(get(&other, "key"), None);
}

#[test]
fn the_options_reach_the_server() {
    let options = RedisOptions::new()
        .persistence(Persistence::EverySecond)
        .maxmemory_policy("allkeys-lru")
        .config("maxmemory 3mb");
    let server = RedisServer::start(options).unwrap();
    assert_eq!(config(&server, "maxmemory-policy"), "allkeys-lru");
    assert_eq!(config(&server, "maxmemory"), "3145728");
    assert_eq!(config(&server, "appendonly"), "yes");
    assert_eq!(config(&server, "appendfsync"), "everysec");
    let plain = start(Persistence::None);
    assert_eq!(config(&plain, "maxmemory-policy"), "noeviction");
    assert_eq!(config(&plain, "appendonly"), "no");
}

#[test]
fn an_option_that_redis_does_not_know_is_an_error_with_its_words() {
    let error = RedisServer::start(RedisOptions::new().config("no-such-option yes")).unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[test]
fn a_restart_keeps_the_address_and_the_data_that_were_to_be_kept() {
    for (persistence, kept) in [
        (Persistence::None, None),
        (Persistence::EverySecond, Some("17")),
        (Persistence::Always, Some("17")),
    ] {
        let mut server = start(persistence);
        let url = server.url();
        server.command(&["SET", "spent", "17"]).unwrap();
        server.kill().unwrap();
        let gone = server.command(&["PING"]).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::ConnectionRefused);
        server.restart().unwrap();
        assert_eq!(server.url(), url);
        assert_eq!(get(&server, "spent").as_deref(), kept, "{persistence:?}");
    }
}

#[test]
fn a_server_can_be_put_back_to_an_older_snapshot() {
    for persistence in [Persistence::None, Persistence::EverySecond, Persistence::Always] {
        let mut server = start(persistence);
        server.command(&["SET", "spent", "17"]).unwrap();
        let yesterday = server.copy_data().unwrap();
        server.command(&["SET", "spent", "42"]).unwrap();
        server.replace_data(&yesterday).unwrap();
        server.restart().unwrap();
        assert_eq!(get(&server, "spent").as_deref(), Some("17"), "{persistence:?}");
    }
}

#[test]
fn a_stopped_server_is_silent_and_goes_on_where_it_was() {
    let server = start(Persistence::None);
    let mut connection = server.connect().unwrap();
    server.stop().unwrap();
    connection.send(&["INCR", "counter"]).unwrap();
    connection.patience(Duration::from_millis(50)).unwrap();
    assert_eq!(connection.reply().unwrap_err().kind(), ErrorKind::WouldBlock);
    connection.patience(PATIENCE).unwrap();
    server.cont().unwrap();
    assert_eq!(connection.reply().unwrap(), Reply::Integer(1));
}

#[test]
fn a_stopped_server_can_be_killed() {
    let mut server = start(Persistence::None);
    server.stop().unwrap();
    server.kill().unwrap();
    assert!(server.stop().is_err());
    server.restart().unwrap();
    assert_eq!(server.command(&["PING"]).unwrap().text(), Some("PONG"));
}

#[test]
fn a_dropped_server_leaves_no_file() {
    let server = start(Persistence::Always);
    let url = server.unix_url();
    let socket = std::path::PathBuf::from(url.strip_prefix("redis+unix://").unwrap());
    let dir = socket.parent().unwrap();
    assert!(dir.join("redis.conf").exists());
    drop(server);
    assert!(!dir.exists());
}

#[test]
fn an_error_reply_is_an_error_with_redis_own_words() {
    let server = start(Persistence::None);
    let error = server.command(&["INCR"]).unwrap_err();
    assert!(error.to_string().starts_with("ERR wrong number"), "{error}");
    let mut connection = server.connect().unwrap();
    for words in [&["MULTI"][..], &["SET", "a", "b"], &["INCR", "a"]] {
        connection.command(words).unwrap();
    }
    let replies = connection.command(&["EXEC"]).unwrap();
    assert!(matches!(
        replies.items(),
        Some([Reply::Simple(_), Reply::Error(_)])
    ));
}

/// Also when it is killed with SIGKILL, and also when the thread that asked for the server was gone long before.
#[cfg(target_os = "linux")]
#[test]
fn a_server_dies_with_the_process_that_started_it() {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_redis_holder"))
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    let mut connection = keybrake_testkit::redis::Connection::open(port).unwrap();
    assert_eq!(connection.command(&["PING"]).unwrap().text(), Some("PONG"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The kernel closes the server's connections when it has killed it; until then this would block.
    assert_eq!(connection.reply().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
