//! A port that stays ours.
//!
//! "Bind port 0, close, start the server there" lets another process in between, and again at every restart. Linux
//! lets two sockets be bound to one port when both ask for it and at most one listens, and never hands out a bound
//! port by itself. So we stay bound, without listening, for as long as the server may come back.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use tokio::net::{TcpListener, TcpSocket};

/// How many connections wait to be accepted.
const BACKLOG: u32 = 1_024;

/// A free port of 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _held: Option<TcpSocket>,
}

impl Port {
    /// Lets the kernel choose one.
    pub(crate) fn free() -> io::Result<Self> {
        let socket = bound(0)?;
        let number = socket.local_addr()?.port();
        Ok(Self {
            number,
            // Elsewhere than on Linux it would be in the way of the one that is to listen.
            _held: cfg!(target_os = "linux").then_some(socket),
        })
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Listens there, in this process; in a Tokio runtime.
    pub(crate) fn listen(&self) -> io::Result<TcpListener> {
        bound(self.number)?.listen(BACKLOG)
    }
}

fn bound(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}
