//! A relay on loopback that goes wrong on command, between a client and a Redis.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc as orders, watch};

use super::port::Port;
use super::{PATIENCE, frame};

/// What happens to bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Pass,
    /// Each request waits this long before it is forwarded.
    Delay(Duration),
    /// They wait, in both directions.
    Hold,
    /// They are gone, in both directions.
    Swallow,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mode {
    flow: Flow,
    /// How often everything was dropped: a connection ends when it meets another number than at its start.
    dropped: u64,
    /// How often everything was let through again.
    passed: u64,
}

/// What becomes of one reply.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Its connection is reset instead.
    Lose,
    /// It and all that follow it on its connection wait.
    Hold,
    /// It is dropped: the request is said once more, and that one's reply arrives.
    Again,
}

/// The requests that are waited for, and what becomes of their replies.
#[derive(Debug, Default)]
struct Catch {
    armed: Vec<(Vec<u8>, Fate)>,
    caught: u64,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    mode: watch::Sender<Mode>,
    catch: Mutex<Catch>,
    changed: Condvar,
    accepted: AtomicU64,
}

impl Shared {
    fn catch(&self) -> MutexGuard<'_, Catch> {
        self.catch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to listen, and whom to tell when it is so.
type Listen = (bool, mpsc::Sender<io::Result<()>>);

/// A running relay. It has its own thread, so blocking and async tests can use it alike; dropping it ends it and all
/// its connections. Each command holds until [`Self::pass`] or the next one of its kind.
///
/// It forwards whole requests and whole replies and knows which belong together. That does not hold for `SUBSCRIBE` in
/// RESP2, `MONITOR` and `CLIENT REPLY`, with which a request has another number of replies than one.
#[derive(Debug)]
pub struct Relay {
    port: Arc<Port>,
    shared: Arc<Shared>,
    // Ends the thread when it is dropped.
    listen: Option<orders::UnboundedSender<Listen>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts one in front of a port of 127.0.0.1. When this returns, connections are accepted. The target need not
    /// run: a connection is made to it for each that is accepted, which ends when that fails.
    ///
    /// # Errors
    /// No port is free, or no thread can be started.
    pub fn start(target: u16) -> io::Result<Self> {
        let port = Arc::new(Port::free()?);
        let shared = Arc::new(Shared {
            target: SocketAddrV4::new(Ipv4Addr::LOCALHOST, target).into(),
            mode: watch::Sender::default(),
            catch: Mutex::default(),
            changed: Condvar::new(),
            accepted: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (listen, ordered) = orders::unbounded_channel();
        let accepting = accept(Arc::clone(&port), Arc::clone(&shared), ordered);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || runtime.block_on(accepting))?;
        let relay = Self {
            port,
            shared,
            listen: Some(listen),
            thread: Some(thread),
        };
        relay.listen(true)?;
        Ok(relay)
    }

    /// `redis://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }

    /// The port on 127.0.0.1, the same for its whole life.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Everything goes through again, and what waited goes first. Connections of which bytes were swallowed are reset.
    pub fn pass(&self) -> io::Result<()> {
        self.shared.catch().armed.clear();
        self.shared.mode.send_modify(|mode| {
            mode.flow = Flow::Pass;
            mode.passed = mode.passed.saturating_add(1);
        });
        self.listen(true)
    }

    /// Refuses new connections. Those that are open go on.
    pub fn refuse(&self) -> io::Result<()> {
        self.listen(false)
    }

    /// Resets all connections. New ones are accepted.
    pub fn drop_all(&self) {
        self.shared
            .mode
            .send_modify(|mode| mode.dropped = mode.dropped.saturating_add(1));
    }

    /// Accepts connections and swallows what is sent on them, in both directions.
    pub fn black_hole(&self) {
        self.flow(Flow::Swallow);
    }

    /// A network that is cut: nothing arrives on either side. As TCP sends again, it arrives late, once the cut is
    /// over: a command is executed then, whether or not its sender still waits.
    pub fn partition(&self) {
        self.flow(Flow::Hold);
    }

    /// Each request waits at least so long before it is forwarded.
    pub fn delay(&self, time: Duration) {
        self.flow(Flow::Delay(time));
    }

    /// Loses the reply to the next request that contains these bytes, on whichever connection: the request is forwarded
    /// and answered, and instead of the answer its connection is reset. Earlier replies still arrive.
    pub fn lose_reply(&self, containing: impl Into<Vec<u8>>) {
        self.arm(containing, Fate::Lose);
    }

    /// Holds the reply to the next such request, and all that follow it on its connection, until [`Self::pass`]: the
    /// command was executed and its sender waits.
    pub fn hold_reply(&self, containing: impl Into<Vec<u8>>) {
        self.arm(containing, Fate::Hold);
    }

    /// Says the next such request twice and hands on the second reply alone: what a client library does that repeats by
    /// itself what was lost.
    pub fn say_twice(&self, containing: impl Into<Vec<u8>>) {
        self.arm(containing, Fate::Again);
    }

    /// How many connections have been accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Waits until so many replies have been lost, held or asked for twice since the start, at most [`PATIENCE`]. Answers
    /// whether they have.
    pub fn wait_caught(&self, count: u64) -> bool {
        let (catch, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.catch(), PATIENCE, |catch| catch.caught < count)
            .unwrap_or_else(PoisonError::into_inner);
        catch.caught >= count
    }

    fn arm(&self, containing: impl Into<Vec<u8>>, fate: Fate) {
        self.shared.catch().armed.push((containing.into(), fate));
    }

    fn flow(&self, flow: Flow) {
        self.shared.mode.send_modify(|mode| mode.flow = flow);
    }

    /// Returns when it is so.
    fn listen(&self, listen: bool) -> io::Result<()> {
        let gone = || io::Error::other("the relay's thread is gone");
        let (tell, told) = mpsc::channel();
        let orders = self.listen.as_ref().ok_or_else(gone)?;
        orders.send((listen, tell)).map_err(|_| gone())?;
        told.recv().map_err(|_| gone())?
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.listen = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

async fn accept(port: Arc<Port>, shared: Arc<Shared>, mut ordered: orders::UnboundedReceiver<Listen>) {
    let mut listener: Option<TcpListener> = None;
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            order = ordered.recv() => {
                let Some((listen, tell)) = order else { return };
                let done = match (listen, listener.take()) {
                    (false, _) => Ok(()),
                    (true, Some(open)) => {
                        listener = Some(open);
                        Ok(())
                    }
                    (true, None) => port.listen().map(|open| listener = Some(open)),
                };
                // Who asked waits, or has panicked.
                let _ = tell.send(done);
            }
            accepted = accepted => {
                // An aborted connection is nobody's.
                if let Ok((stream, _)) = accepted {
                    shared.accepted.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(serve(stream, Arc::clone(&shared)));
                }
            }
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// One side closed it.
    Closed,
    /// We did.
    Reset,
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut mode = shared.mode.subscribe();
    let start = mode.borrow_and_update().dropped;
    let end = tokio::select! {
        end = forward(&mut client, &shared) => end,
        _ = mode.wait_for(|mode| mode.dropped != start) => End::Reset,
    };
    if matches!(end, End::Reset) {
        // Without it the client would see a clean end.
        let _ = client.set_zero_linger();
    }
}

async fn forward(client: &mut TcpStream, shared: &Shared) -> End {
    if let Err(end) = admitted(shared).await {
        return end;
    }
    let Ok(mut server) = TcpStream::connect(shared.target).await else {
        return End::Closed;
    };
    // A failure to set it costs speed, nothing else.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let caught = Mutex::default();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        end = requests(from_client, to_server, shared, &caught) => end,
        end = replies(from_server, to_client, shared, &caught) => end,
    }
}

/// The numbers of the requests on this connection whose replies are to be caught, the first one first.
type Caught = Mutex<VecDeque<(u64, Fate)>>;

async fn requests(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, shared: &Shared, caught: &Caught) -> End {
    let mut pending = Vec::new();
    let mut asked = 0_u64;
    while from.read_buf(&mut pending).await.is_ok_and(|read| read > 0) {
        if let Err(end) = admitted(shared).await {
            return end;
        }
        let flow = shared.mode.borrow().flow;
        if let Flow::Delay(time) = flow {
            tokio::time::sleep(time).await;
            // A cut that came meanwhile counts.
            if let Err(end) = admitted(shared).await {
                return end;
            }
        }
        while let Some(length) = frame::request(&pending) {
            let request: Vec<u8> = pending.drain(..length).collect();
            asked = asked.saturating_add(1);
            if let Some(fate) = matched(shared, &request) {
                caught
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back((asked, fate));
                if matches!(fate, Fate::Again) {
                    asked = asked.saturating_add(1);
                    if to.write_all(&request).await.is_err() {
                        return End::Closed;
                    }
                }
            }
            if to.write_all(&request).await.is_err() {
                return End::Closed;
            }
        }
    }
    End::Closed
}

async fn replies(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, shared: &Shared, caught: &Caught) -> End {
    let mut mode = shared.mode.subscribe();
    let mut pending = Vec::new();
    let mut answered = 0_u64;
    while from.read_buf(&mut pending).await.is_ok_and(|read| read > 0) {
        if let Err(end) = admitted(shared).await {
            return end;
        }
        while let Some(length) = frame::reply(&pending) {
            let reply: Vec<u8> = pending.drain(..length).collect();
            if !frame::is_push(&reply) {
                answered = answered.saturating_add(1);
            }
            let fate = caught
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front_if(|(number, _)| *number == answered);
            if let Some((_, fate)) = fate {
                let passed = mode.borrow_and_update().passed;
                shared.catch().caught += 1;
                shared.changed.notify_all();
                match fate {
                    Fate::Lose => return End::Reset,
                    Fate::Again => continue,
                    Fate::Hold => {
                        // An error is the end of the relay.
                        let _ = mode.wait_for(|mode| mode.passed != passed).await;
                    }
                }
            }
            if to.write_all(&reply).await.is_err() {
                return End::Closed;
            }
        }
    }
    End::Closed
}

/// What becomes of the reply to this request, when it is the one that is waited for.
fn matched(shared: &Shared, request: &[u8]) -> Option<Fate> {
    let mut catch = shared.catch();
    let contained =
        |bytes: &[u8]| bytes.is_empty() || request.windows(bytes.len()).any(|window| window == bytes);
    let found = catch.armed.iter().position(|(bytes, _)| contained(bytes))?;
    Some(catch.armed.remove(found).1)
}

/// Waits while bytes are held. An error when they were swallowed: then this connection cannot go on.
async fn admitted(shared: &Shared) -> Result<(), End> {
    let mut mode = shared.mode.subscribe();
    loop {
        match mode.borrow_and_update().flow {
            Flow::Pass | Flow::Delay(_) => return Ok(()),
            Flow::Hold => {}
            Flow::Swallow => break,
        }
        if mode.changed().await.is_err() {
            return Err(End::Closed);
        }
    }
    // An error is the end of the relay.
    let _ = mode.wait_for(|mode| mode.flow != Flow::Swallow).await;
    Err(End::Reset)
}
