//! HTTP/1.1 as a server reads and writes it. Written out here, because the simulator must break a connection at an
//! exact place and must refuse what a lenient library repairs: a length beside a transfer coding, repeated lengths,
//! bare line feeds, folded headers.

use std::io;

use bytes::Bytes;
use keybrake::clock::{Clock, SystemClock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::number::usize_of;

const HEAD_MAX: usize = 64 * 1_024;
const BODY_MAX: usize = 32 * 1_024 * 1_024;

/// A request as it arrived.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    /// Path as sent.
    pub(super) path: String,
    /// Query as sent, without the `?`.
    pub(super) query: String,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Whether the connection stays open after the answer.
    pub(super) keep_alive: bool,
}

impl Request {
    /// The value of a header, given in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// How often a header is there.
    pub(super) fn count(&self, name: &str) -> usize {
        self.headers.iter().filter(|(key, _)| key == name).count()
    }
}

/// Why no request could be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The other side is gone.
    Gone,
    /// Not acceptable HTTP; answered with 400 (or 413) and the connection closed.
    Refused(u16, &'static str),
}

impl From<io::Error> for Unreadable {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

const fn bad(reason: &'static str) -> Unreadable {
    Unreadable::Refused(400, reason)
}

/// A connection with what was read ahead.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::with_capacity(8 * 1_024),
        }
    }

    /// Reads one request.
    pub(super) async fn request(&mut self) -> Result<Request, Unreadable> {
        let head_end = self.fill_head().await?;
        let head: Vec<u8> = self.buffer.drain(..head_end).collect();
        let (mut request, framing) = parse_head(&head)?;
        if request
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        request.body = match framing {
            Framing::Length(length) => self.take(length).await?,
            Framing::Chunked => self.chunks().await?,
        };
        Ok(request)
    }

    async fn more(&mut self) -> Result<(), Unreadable> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(Unreadable::Gone);
        }
        Ok(())
    }

    /// Reads until the empty line; answers where the head ends.
    async fn fill_head(&mut self) -> Result<usize, Unreadable> {
        let mut searched = 0_usize;
        loop {
            let from = searched.saturating_sub(3);
            let fresh = self.buffer.get(from..).unwrap_or_default();
            if let Some(at) = find(fresh, b"\r\n\r\n") {
                return Ok(from.saturating_add(at).saturating_add(4));
            }
            if find(fresh, b"\n\n").is_some() {
                return Err(bad("bare line feed"));
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(Unreadable::Refused(431, "the head is too long"));
            }
            searched = self.buffer.len();
            self.more().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, Unreadable> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    async fn line(&mut self) -> Result<Vec<u8>, Unreadable> {
        loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                let mut line: Vec<u8> = self.buffer.drain(..at.saturating_add(2)).collect();
                line.truncate(at);
                return Ok(line);
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(bad("a chunk's line is too long"));
            }
            self.more().await?;
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Unreadable> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = chunk_size(&line).ok_or_else(|| bad("bad chunk size"))?;
            if body.len().saturating_add(size) > BODY_MAX {
                return Err(Unreadable::Refused(413, "the body is too long"));
            }
            if size == 0 {
                if self.line().await?.is_empty() {
                    return Ok(body);
                }
                return Err(bad("trailers are not taken"));
            }
            body.extend(self.take(size).await?);
            if self.take(2).await? != b"\r\n" {
                return Err(bad("bad chunk end"));
            }
        }
    }
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?;
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    usize::from_str_radix(text, 16).ok()
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(usize),
    Chunked,
}

pub(super) fn parse_head(head: &[u8]) -> Result<(Request, Framing), Unreadable> {
    let text = std::str::from_utf8(head).map_err(|_| bad("the head is not ASCII"))?;
    let text = text
        .strip_suffix("\r\n\r\n")
        .ok_or_else(|| bad("the head has no end"))?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut request = parse_first_line(first)?;
    for line in lines {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| bad("a header without a colon"))?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        // A leading space (a folded header) fails here too.
        if name.is_empty() || !name.bytes().all(token) {
            return Err(bad("bad header name"));
        }
        let value = value.trim_matches([' ', '\t']);
        if value
            .bytes()
            .any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7F)
        {
            return Err(bad("control character in a header"));
        }
        request
            .headers
            .push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let framing = framing(&request)?;
    let connection = request
        .header("connection")
        .unwrap_or_default()
        .to_ascii_lowercase();
    request.keep_alive = if first.ends_with("1.0") {
        connection.contains("keep-alive")
    } else {
        !connection.contains("close")
    };
    Ok((request, framing))
}

fn parse_first_line(line: &str) -> Result<Request, Unreadable> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad("bad request line"));
    };
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(bad("bad method"));
    }
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(Unreadable::Refused(505, "only HTTP/1.1"));
    }
    if !target.starts_with('/') || target.contains('#') || !target.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(bad("bad request target"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Request::default()
    })
}

fn framing(request: &Request) -> Result<Framing, Unreadable> {
    let lengths = request.count("content-length");
    let codings = request.count("transfer-encoding");
    if lengths > 1 || codings > 1 || (lengths > 0 && codings > 0) {
        return Err(bad("more than one framing of the body"));
    }
    if let Some(coding) = request.header("transfer-encoding") {
        if coding.eq_ignore_ascii_case("chunked") {
            return Ok(Framing::Chunked);
        }
        return Err(bad("unknown transfer coding"));
    }
    let Some(length) = request.header("content-length") else {
        return Ok(Framing::Length(0));
    };
    if length.is_empty() || length.len() > 12 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("bad content length"));
    }
    let length: u64 = length.parse().map_err(|_| bad("bad content length"))?;
    let length = usize_of(length);
    if length > BODY_MAX {
        return Err(Unreadable::Refused(413, "the body is too long"));
    }
    Ok(Framing::Length(length))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// An answer, before it is put on the wire.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
    /// Sent in chunks without a length, as a stream is.
    pub(super) streamed: bool,
}

impl Reply {
    /// A JSON answer.
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![("content-type", "application/json".to_owned())],
            // Serialising a JSON value to memory cannot fail.
            body: serde_json::to_vec(body).unwrap_or_default().into(),
            streamed: false,
        }
    }

    /// The head as bytes, with the length of the whole body.
    pub(super) fn head(&self, keep_alive: bool, more: &[(String, String)]) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nserver: keybrake-simulator\r\ndate: {}\r\n",
            self.status,
            reason(self.status),
            date(SystemClock.now_ms())
        );
        let fixed = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let added = more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in fixed.chain(added) {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        if self.streamed {
            head.push_str("transfer-encoding: chunked\r\n");
        } else {
            head.push_str("content-length: ");
            head.push_str(&self.body.len().to_string());
            head.push_str("\r\n");
        }
        head.push_str(if keep_alive {
            "\r\n"
        } else {
            "connection: close\r\n\r\n"
        });
        head.into_bytes()
    }
}

/// A time as HTTP writes it.
pub(crate) fn date(at_ms: i64) -> String {
    let now = jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default();
    jiff::fmt::rfc2822::DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&now)
        .unwrap_or_default()
}

/// The reason phrase of a status.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        424 => "Failed Dependency",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<(Request, Framing), Unreadable> {
        parse_head(text.as_bytes())
    }

    #[test]
    fn an_ordinary_head_is_read() {
        let (request, framing) =
            head("POST /v1/refunds?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n").expect("readable");
        assert_eq!(
            (request.path.as_str(), request.query.as_str()),
            ("/v1/refunds", "a=b")
        );
        assert_eq!(framing, Framing::Length(12));
        assert!(request.keep_alive);
    }

    #[test]
    fn two_framings_and_other_ambiguities_are_refused() {
        for headers in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "X: a\r\n folded",
            "X : a",
            "no colon",
            "X: a\nY: b",
        ] {
            assert!(
                head(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n")).is_err(),
                "{headers}"
            );
        }
        for line in [
            "GET http://evil/ HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "get / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / HTTP/2",
        ] {
            assert!(head(&format!("{line}\r\n\r\n")).is_err(), "{line}");
        }
    }
}
