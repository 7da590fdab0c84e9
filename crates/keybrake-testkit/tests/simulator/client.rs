//! A client of a few lines, so that tests see the bytes: one connection for each call.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use keybrake_testkit::Simulator;
use serde_json::Value;

/// A reply.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// `null` when the body is not JSON.
    pub(crate) json: Value,
}

impl Answer {
    /// A header's value, by lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A caller.
#[derive(Debug)]
pub(crate) struct Client {
    port: u16,
    headers: Vec<(String, String)>,
    content_type: String,
}

impl Client {
    /// With a test key.
    pub(crate) fn new(sim: &Simulator) -> Self {
        Self::bare(sim).header("Authorization", "Bearer sk_test_x")
    }

    /// Without a credential.
    pub(crate) fn bare(sim: &Simulator) -> Self {
        Self {
            port: sim.port(),
            headers: Vec::new(),
            content_type: "application/x-www-form-urlencoded".to_owned(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }

    pub(crate) fn content_type(mut self, content_type: &str) -> Self {
        content_type.clone_into(&mut self.content_type);
        self
    }

    pub(crate) fn get(&self, path: &str) -> io::Result<Answer> {
        self.send("GET", path, "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> io::Result<Answer> {
        self.send("POST", path, body)
    }

    /// Sends and does not read; dropping the connection is up to the caller.
    pub(crate) fn post_and_leave(&self, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .write_all(self.text("POST", path, body).as_bytes())
            .unwrap();
        stream
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        raw(self.port, &self.text(method, path, body))
    }

    fn text(&self, method: &str, path: &str, body: &str) -> String {
        let port = self.port;
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n");
        for (name, value) in &self.headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        if method == "POST" {
            let (kind, length) = (&self.content_type, body.len());
            write!(text, "Content-Type: {kind}\r\nContent-Length: {length}\r\n").unwrap();
        }
        text + "\r\n" + body
    }
}

/// A call with a test key and no idempotency key; it must be answered.
pub(crate) fn call(sim: &Simulator, method: &str, path: &str, form: &str) -> Answer {
    Client::new(sim).send(method, path, form).unwrap()
}

/// Sends these bytes and reads to the end of the connection.
pub(crate) fn raw(port: u16, text: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(text.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> io::Result<Answer> {
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "no whole answer");
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let find = |name: &str| {
        headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let rest = &bytes[end + 4..];
    let body = if find("transfer-encoding") == Some("chunked") {
        dechunk(rest).ok_or_else(broken)?
    } else {
        rest.to_vec()
    };
    if find("content-length").is_some_and(|length| length != body.len().to_string()) {
        return Err(broken());
    }
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Ok(Answer {
        status,
        headers,
        body,
        json,
    })
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = bytes.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(bytes.get(line + 2..line + 2 + size)?);
        bytes = &bytes[line + 4 + size..];
    }
}
