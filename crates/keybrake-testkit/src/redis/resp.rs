//! Just enough of Redis's protocol (RESP2) to send a command and read its reply. The ledger's own client is not used:
//! a test that looks at the server must not share mistakes with what it tests.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

/// The longest bulk string that is read, in bytes: what Redis itself allows.
const BULK_MAX: usize = 512 * 1_024 * 1_024;

/// An answer. An error reply is an `Err` of the call; inside an array it stands here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR …`, inside an array only.
    Error(String),
    /// `:17`
    Integer(i64),
    /// `$3 abc`
    Bulk(Vec<u8>),
    /// `*2 …`
    Array(Vec<Self>),
    /// `$-1` or `*-1`
    Nil,
}

impl Reply {
    /// The text of a simple or bulk string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Simple(text) => Some(text),
            Self::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// An integer, also one that is written as a string.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => self.text()?.parse().ok(),
        }
    }

    /// The elements of an array.
    pub fn items(&self) -> Option<&[Self]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }
}

/// One connection, for what belongs to one: `MULTI`, `CLIENT`, `SUBSCRIBE`.
#[derive(Debug)]
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    /// Connects to a port of 127.0.0.1. Replies are waited for at most [`PATIENCE`].
    pub fn open(port: u16) -> io::Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Waits for each reply at most so long; then its error has the kind `WouldBlock`.
    pub fn patience(&self, limit: Duration) -> io::Result<()> {
        self.0.get_ref().set_read_timeout(Some(limit))
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// The connection broke or was silent for too long, or Redis answered with an error: then the kind is `Other` and
    /// the text is Redis's, such as `OOM command not allowed …`.
    pub fn command<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<Reply> {
        self.send(words)?;
        match self.reply()? {
            Reply::Error(error) => Err(io::Error::other(error)),
            reply => Ok(reply),
        }
    }

    /// Sends a command and does not wait.
    pub fn send<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<()> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            let word = word.as_ref();
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes)
    }

    /// The next reply.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end_matches(['\r', '\n']);
        let mut rest = line.chars();
        let kind = rest.next();
        let rest = rest.as_str();
        Ok(match kind {
            Some('+') => Reply::Simple(rest.to_owned()),
            Some('-') => Reply::Error(rest.to_owned()),
            Some(':') => Reply::Integer(number(rest)?),
            Some('$') => match length(rest)? {
                Some(length) => Reply::Bulk(self.bulk(length)?),
                None => Reply::Nil,
            },
            Some('*') => match length(rest)? {
                Some(length) => Reply::Array((0..length).map(|_| self.reply()).collect::<io::Result<_>>()?),
                None => Reply::Nil,
            },
            _ => return Err(garbled(line)),
        })
    }

    fn bulk(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        self.0.read_exact(&mut [0; 2])?;
        Ok(bytes)
    }
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| garbled(text))
}

/// A length; `None` for `-1`, which is nil.
fn length(text: &str) -> io::Result<Option<usize>> {
    match number(text)? {
        -1 => Ok(None),
        number => match usize::try_from(number) {
            Ok(length) if length <= BULK_MAX => Ok(Some(length)),
            _ => Err(garbled(text)),
        },
    }
}

fn garbled(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP2: {text:?}"))
}
