//! What the listener lets in: loopback only, one framing, no other site's pages. And many calls on one connection.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::client::{Client, raw};
use crate::simulator;

#[test]
fn a_foreign_host_or_origin_is_refused() {
    let sim = simulator();
    let port = sim.port();
    for host in [
        "evil.example",
        "127.0.0.1",
        &format!("127.0.0.1:{port}x"),
        &format!("api.stripe.com:{port}"),
    ] {
        for path in ["/v1/charges", "/_sim/journal"] {
            let text = format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer sk_test_x\r\nConnection: close\r\n\r\n"
            );
            assert_eq!(raw(port, &text).unwrap().status, 403, "{host} {path}");
        }
    }
    let both = format!(
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(raw(port, &both).unwrap().status, 403);
    for (name, value) in [
        ("Origin", "https://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Origin", "null"),
    ] {
        let answer = Client::new(&sim)
            .header(name, value)
            .post("/_sim/reset", "")
            .unwrap();
        assert_eq!(answer.status, 403, "{name}: {value}");
    }
    assert!(sim.requests().is_empty());
    assert_eq!(
        Client::new(&sim)
            .header("Origin", &sim.url())
            .get("/v1/charges")
            .unwrap()
            .status,
        200
    );
}

#[test]
fn two_framings_of_one_body_are_refused() {
    let sim = simulator();
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Transfer-Encoding: xchunked",
    ] {
        let text = format!(
            "POST /v1/refunds HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{framing}\r\n\r\n0\r\n\r\n",
            sim.port()
        );
        assert_eq!(raw(sim.port(), &text).unwrap().status, 400, "{framing}");
    }
    assert!(sim.requests().is_empty());
}

#[test]
fn a_chunked_body_is_read() {
    let sim = simulator();
    let text = format!(
        "POST /v1/refunds HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer sk_test_x\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n\r\n7\r\ncharge=\r\n4\r\nch_1\r\n0\r\n\r\n",
        sim.port()
    );
    assert_eq!(raw(sim.port(), &text).unwrap().json["charge"], "ch_1");
}

#[test]
fn one_connection_carries_many_calls() {
    let sim = simulator();
    let mut stream = TcpStream::connect(("127.0.0.1", sim.port())).unwrap();
    let get = format!(
        "GET /v1/charges/ch_1 HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer sk_test_x\r\n",
        sim.port()
    );
    // Three at once, the last of which closes.
    stream
        .write_all(format!("{get}\r\n{get}\r\n{get}Connection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3);
    assert_eq!(sim.request_count(), 3);
}

#[test]
fn it_listens_on_loopback_alone() {
    let sim = simulator();
    assert!(sim.url().starts_with("http://127.0.0.1:"));
    // Any other address of this machine: nothing answers there.
    assert!(TcpStream::connect(("127.0.0.2", sim.port())).is_err());
}
