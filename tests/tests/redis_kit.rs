//! The private Redis servers of the test kit do what the Redis ledger's tests rely on.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use keybrake_testkit::redis::{
    Cluster, Connection, PATIENCE, Persistence, RedisOptions, RedisServer, Relay, Replicated, Reply,
};

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
    // Who is killed cannot tidy up.
    let left_behind = tempfile::tempdir().unwrap();
    let mut holder = Command::new(env!("CARGO_BIN_EXE_redis_holder"))
        .env("TMPDIR", left_behind.path())
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let port: u16 = line.trim().parse().unwrap();
    let mut connection = Connection::open(port).unwrap();
    assert_eq!(connection.command(&["PING"]).unwrap().text(), Some("PONG"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    // The kernel closes the server's connections when it has killed it; until then this would block.
    assert_eq!(connection.reply().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

/// With nothing on the `PATH`, and with `setpriv` alone.
#[cfg(target_os = "linux")]
#[test]
fn without_redis_the_error_says_how_to_get_it() {
    let path = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let out = Command::new(env!("CARGO_BIN_EXE_redis_holder"))
            .env("PATH", path.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(!out.status.success());
        assert!(said.contains("apt-get install redis-server"), "{said}");
        // It has stood here in every distribution for decades; where it does not, the second round is as the first.
        let setpriv = path.path().join("setpriv");
        if !setpriv.is_symlink() {
            std::os::unix::fs::symlink("/usr/bin/setpriv", setpriv).unwrap();
        }
    }
}

fn number(reply: &Reply) -> i64 {
    reply.integer().unwrap()
}

/// Whether anything arrives within a moment.
fn silent(connection: &mut Connection) -> bool {
    connection.patience(Duration::from_millis(50)).unwrap();
    let answer = connection.reply();
    connection.patience(PATIENCE).unwrap();
    answer.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn is_reset(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

#[test]
fn a_relay_forwards_and_refuses_and_forwards_again() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut open = Connection::open(relay.port()).unwrap();
    assert_eq!(number(&open.command(&["INCR", "n"]).unwrap()), 1);
    relay.refuse().unwrap();
    let refused = Connection::open(relay.port()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(number(&open.command(&["INCR", "n"]).unwrap()), 2);
    relay.pass().unwrap();
    let mut fresh = Connection::open(relay.port()).unwrap();
    assert_eq!(number(&fresh.command(&["INCR", "n"]).unwrap()), 3);
    let large = "x".repeat(3_000_000);
    fresh.command(&["SET", "large", &large]).unwrap();
    assert_eq!(
        fresh.command(&["GET", "large"]).unwrap().text(),
        Some(large.as_str())
    );
}

#[test]
fn a_relay_drops_all_connections() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut open = Connection::open(relay.port()).unwrap();
    open.command(&["PING"]).unwrap();
    relay.drop_all();
    let error = open.reply().unwrap_err();
    assert!(is_reset(&error), "{error}");
    let mut fresh = Connection::open(relay.port()).unwrap();
    fresh.command(&["PING"]).unwrap();
}

#[test]
fn a_black_hole_executes_nothing_and_never_will() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut open = Connection::open(relay.port()).unwrap();
    open.command(&["PING"]).unwrap();
    relay.black_hole();
    let mut fresh = Connection::open(relay.port()).unwrap();
    for connection in [&mut open, &mut fresh] {
        connection.send(&["INCR", "n"]).unwrap();
        assert!(silent(connection));
    }
    relay.pass().unwrap();
    for connection in [&mut open, &mut fresh] {
        let error = connection.reply().unwrap_err();
        assert!(is_reset(&error), "{error}");
    }
    assert_eq!(get(&server, "n"), None);
}

#[test]
fn what_is_sent_into_a_partition_arrives_late() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut open = Connection::open(relay.port()).unwrap();
    open.command(&["PING"]).unwrap();
    relay.partition();
    let mut fresh = Connection::open(relay.port()).unwrap();
    for connection in [&mut open, &mut fresh] {
        connection.send(&["INCR", "n"]).unwrap();
        assert!(silent(connection));
    }
    assert_eq!(get(&server, "n"), None);
    relay.pass().unwrap();
    let both = [number(&open.reply().unwrap()), number(&fresh.reply().unwrap())];
    assert!(both == [1, 2] || both == [2, 1], "{both:?}");
}

#[test]
fn a_relay_delays_each_request() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut connection = Connection::open(relay.port()).unwrap();
    relay.delay(Duration::from_secs(2));
    connection.send(&["INCR", "n"]).unwrap();
    assert!(silent(&mut connection));
    assert_eq!(connection.reply().unwrap(), Reply::Integer(1));
}

#[test]
fn a_lost_reply_is_that_of_an_executed_command_and_of_no_other() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut connection = Connection::open(relay.port()).unwrap();
    relay.lose_reply("INCRBY");
    // In one go, as a multiplexing client sends them: the first reply arrives, the second is lost.
    connection.send(&["INCR", "n"]).unwrap();
    connection.send(&["INCRBY", "n", "10"]).unwrap();
    assert_eq!(connection.reply().unwrap(), Reply::Integer(1));
    let error = connection.reply().unwrap_err();
    assert!(is_reset(&error), "{error}");
    assert!(relay.wait_caught(1));
    assert_eq!(get(&server, "n").as_deref(), Some("11"));
    let mut again = Connection::open(relay.port()).unwrap();
    assert_eq!(number(&again.command(&["INCRBY", "n", "10"]).unwrap()), 21);
}

#[test]
fn a_held_reply_arrives_when_it_is_let_go() {
    let server = start(Persistence::None);
    let relay = Relay::start(server.port()).unwrap();
    let mut connection = Connection::open(relay.port()).unwrap();
    relay.hold_reply("INCR");
    connection.send(&["INCR", "n"]).unwrap();
    assert!(relay.wait_caught(1));
    assert_eq!(get(&server, "n").as_deref(), Some("1"), "it was executed");
    assert!(silent(&mut connection));
    let mut other = Connection::open(relay.port()).unwrap();
    assert_eq!(number(&other.command(&["INCR", "n"]).unwrap()), 2);
    relay.pass().unwrap();
    assert_eq!(connection.reply().unwrap(), Reply::Integer(1));
}

fn role(server: &RedisServer) -> String {
    let reply = server.command(&["ROLE"]).unwrap();
    reply.items().unwrap().first().unwrap().text().unwrap().to_owned()
}

#[test]
fn a_failover_keeps_what_was_copied_and_loses_what_was_not() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    let (old, new) = (pair.primary().port(), pair.replica().port());
    assert_eq!(
        (role(pair.primary()).as_str(), role(pair.replica()).as_str()),
        ("master", "slave")
    );
    pair.primary().command(&["SET", "copied", "1"]).unwrap();
    pair.cut_replication().unwrap();
    pair.primary().command(&["SET", "lost", "1"]).unwrap();
    assert_eq!(get(pair.replica(), "lost"), None);
    pair.failover().unwrap();
    assert_eq!((pair.primary().port(), pair.replica().port()), (new, old));
    assert_eq!(role(pair.primary()), "master");
    assert_eq!(get(pair.primary(), "copied").as_deref(), Some("1"));
    assert_eq!(get(pair.primary(), "lost"), None);
    pair.primary().command(&["SET", "after", "1"]).unwrap();
    let name = pair.name();
    let asked = pair
        .sentinel()
        .command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", name])
        .unwrap();
    assert_eq!(
        asked.items().unwrap().last().unwrap().integer(),
        Some(i64::from(new))
    );
}

#[test]
fn a_primary_that_was_only_stopped_comes_back_beside_the_new_one() {
    let mut pair = Replicated::start(&RedisOptions::new()).unwrap();
    pair.cut_replication().unwrap();
    pair.primary().command(&["SET", "late", "1"]).unwrap();
    pair.mend_replication().unwrap();
    assert_eq!(get(pair.replica(), "late").as_deref(), Some("1"));
    pair.failover_of_stopped().unwrap();
    pair.primary().command(&["SET", "new", "1"]).unwrap();
    pair.replica().cont().unwrap();
    // The old one does not know yet, and takes a write that nobody will keep.
    assert_eq!(role(pair.replica()), "master");
    pair.replica().command(&["SET", "old", "1"]).unwrap();
    assert_eq!(get(pair.replica(), "new"), None);
    assert_eq!(get(pair.primary(), "old"), None);
}

#[test]
fn a_cluster_serves_each_key_from_its_node() {
    let cluster = Cluster::start(&RedisOptions::new()).unwrap();
    assert_eq!(cluster.urls().len(), 3);
    let mut served = [0; 3];
    for key in ["a", "b", "c", "d", "e", "f"] {
        let mut homes = 0;
        for (node, served) in cluster.nodes().iter().zip(&mut served) {
            match node.command(&["SET", key, "1"]) {
                Ok(_) => {
                    homes += 1;
                    *served += 1;
                }
                Err(error) => assert!(error.to_string().starts_with("MOVED "), "{error}"),
            }
        }
        assert_eq!(homes, 1, "{key}");
    }
    assert!(served.iter().all(|keys| *keys > 0), "{served:?}");
    for node in cluster.nodes() {
        let info = node.command(&["CLUSTER", "INFO"]).unwrap();
        assert!(info.text().unwrap().contains("cluster_state:ok"));
    }
}
