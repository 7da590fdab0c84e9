//! The listener: one thread, one connection per task, faults applied where the bytes are.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

use super::api::{self, Received};
use super::control;
use super::faults::{Fault, FaultKind, Released, When};
use super::http::{Connection, Reply, Request, Unreadable};
use super::number::usize_of;
use super::world::World;

/// Size of a piece of a streamed body.
const STREAM_CHUNK: usize = 16 * 1_024;

/// What connections, controls and the handle share.
#[derive(Debug)]
pub(super) struct Shared {
    world: Mutex<World>,
    /// Told after every change, for those who wait for one.
    pub(super) changed: Notify,
    pub(super) port: u16,
    pub(super) seed: super::Seed,
}

impl Shared {
    pub(super) fn new(world: World, port: u16, seed: super::Seed) -> Self {
        Self {
            world: Mutex::new(world),
            changed: Notify::new(),
            port,
            seed,
        }
    }

    /// The world. A handler that panicked leaves it usable: tests should see the panic, not a poisoned lock.
    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` says so of the world, at most so long. Answers whether it did.
    pub(super) async fn wait(&self, limit: Duration, ready: impl Fn(&World) -> bool) -> bool {
        let until_ready = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // Registered before looking, so that a change in between is not missed.
                changed.as_mut().enable();
                if ready(&self.world()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, until_ready).await.is_ok()
    }
}

/// Accepts connections until the runtime ends.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A failure to set it costs speed, nothing else.
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
            // Too many open files, or an aborted connection: let others finish.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// How an answer goes out.
#[derive(Debug)]
pub(super) enum Delivery {
    Whole(Reply),
    Slow {
        reply: Reply,
        chunk: usize,
        delay: Duration,
    },
    /// The head and the first bytes of the body, the rest when it is released.
    Held {
        reply: Reply,
        first: usize,
        released: oneshot::Receiver<Released>,
    },
    /// Half of the body, then a reset.
    Broken(Reply),
    /// Nothing; the connection is closed.
    Closed,
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut connection = Connection::new(stream);
    loop {
        let request = match connection.request().await {
            Ok(request) => request,
            Err(Unreadable::Gone) => return,
            Err(Unreadable::Refused(status, reason)) => {
                let reply = api::refusal(status, reason);
                let _ = write(&mut connection.stream, &reply, false, &[]).await;
                return;
            }
        };
        let keep_alive = request.keep_alive;
        let sent = match answer(&shared, &request).await {
            (Delivery::Whole(reply), headers) => {
                write(&mut connection.stream, &reply, keep_alive, &headers).await
            }
            (Delivery::Slow { reply, chunk, delay }, headers) => {
                slowly(
                    &mut connection.stream,
                    &reply,
                    keep_alive,
                    &headers,
                    (chunk, delay),
                )
                .await
            }
            (
                Delivery::Held {
                    reply,
                    first,
                    released,
                },
                headers,
            ) => {
                held(
                    &mut connection.stream,
                    &reply,
                    keep_alive,
                    &headers,
                    (first, released),
                )
                .await
            }
            (Delivery::Broken(reply), headers) => {
                let _ = half(&mut connection.stream, &reply, &headers).await;
                return;
            }
            (Delivery::Closed, _) => return,
        };
        if sent.is_err() || !keep_alive {
            return;
        }
    }
}

type Headers = Vec<(String, String)>;

async fn answer(shared: &Arc<Shared>, request: &Request) -> (Delivery, Headers) {
    if let Some(refused) = foreign(request, shared.port) {
        return (Delivery::Whole(api::refusal(403, refused)), Headers::new());
    }
    if request.path == "/_sim" || request.path.starts_with("/_sim/") {
        return (
            Delivery::Whole(control::answer(shared, request).await),
            Headers::new(),
        );
    }
    let (received, id, fault) = {
        let mut world = shared.world();
        let received = match api::receive(&mut world, request) {
            Ok(received) => received,
            Err(reply) => {
                drop(world);
                shared.changed.notify_waiters();
                return (Delivery::Whole(reply), Headers::new());
            }
        };
        let Some((id, fault)) = world.faults.pick(&received.target(request)) else {
            let reply = perform(&mut world, request, &received, false);
            drop(world);
            shared.changed.notify_waiters();
            return (Delivery::Whole(reply), Headers::new());
        };
        if let Some(row) = world.requests.get_mut(received.log) {
            row.fault = Some(id);
        }
        (received, id, fault)
    };
    shared.changed.notify_waiters();
    let delivery = faulty(shared, request, &received, id, &fault).await;
    shared.changed.notify_waiters();
    (delivery, fault.headers.into_iter().collect())
}

fn perform(world: &mut World, request: &Request, received: &Received, spoil: bool) -> Reply {
    match api::admit(world, request, received) {
        Ok(admitted) => api::execute(world, request, received, &admitted, spoil),
        Err(reply) => reply,
    }
}

/// A request that meets a fault.
async fn faulty(
    shared: &Arc<Shared>,
    request: &Request,
    received: &Received,
    id: u64,
    fault: &Fault,
) -> Delivery {
    match fault.kind {
        FaultKind::DropBefore => return Delivery::Closed,
        FaultKind::RateLimit | FaultKind::Status => {
            return Delivery::Whole(api::refuse(&mut shared.world(), request, received, fault));
        }
        FaultKind::DelayMs
        | FaultKind::DropAfterExecuting
        | FaultKind::Status500AfterExecuting
        | FaultKind::ResetMidBody
        | FaultKind::SlowBody
        | FaultKind::HoldBody
        | FaultKind::HoldUntilReleased => {}
    }
    // From here on the idempotency key is in flight, also while the request waits.
    let admitted = api::admit(&mut shared.world(), request, received);
    if fault.when == When::Before && !pause(shared, request, received, id, fault).await {
        if let Ok(admitted) = admitted {
            api::abandon(&mut shared.world(), received, &admitted);
        }
        return Delivery::Closed;
    }
    let reply = {
        let mut world = shared.world();
        if world.epoch != received.epoch {
            return Delivery::Closed;
        }
        match admitted {
            Ok(admitted) => {
                let spoil = fault.kind == FaultKind::Status500AfterExecuting;
                api::execute(&mut world, request, received, &admitted, spoil)
            }
            Err(reply) => reply,
        }
    };
    shared.changed.notify_waiters();
    if fault.when == When::After && !pause(shared, request, received, id, fault).await {
        unanswered(shared, received);
        return Delivery::Closed;
    }
    match fault.kind {
        FaultKind::DropAfterExecuting => {
            unanswered(shared, received);
            Delivery::Closed
        }
        FaultKind::ResetMidBody => Delivery::Broken(reply),
        FaultKind::HoldBody => Delivery::Held {
            reply,
            first: fault.chunk_bytes,
            released: {
                let target = received.target(request);
                shared.world().faults.hold(id, received.log, &target)
            },
        },
        FaultKind::SlowBody => Delivery::Slow {
            reply,
            chunk: fault.chunk_bytes,
            delay: Duration::from_millis(fault.delay_ms),
        },
        _ => Delivery::Whole(reply),
    }
}

/// The log shows no status for an answer that was not sent.
fn unanswered(shared: &Shared, received: &Received) {
    let mut world = shared.world();
    if world.epoch == received.epoch
        && let Some(row) = world.requests.get_mut(received.log)
    {
        row.status = None;
    }
}

/// Waits as the fault says; `false` when the request is to be dropped.
async fn pause(shared: &Arc<Shared>, request: &Request, received: &Received, id: u64, fault: &Fault) -> bool {
    match fault.kind {
        FaultKind::DelayMs => {
            tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;
            true
        }
        FaultKind::HoldUntilReleased => {
            let released = shared
                .world()
                .faults
                .hold(id, received.log, &received.target(request));
            shared.changed.notify_waiters();
            released.await == Ok(Released::Proceed)
        }
        _ => true,
    }
}

/// A reason to refuse a request that a web page could have caused (DNS rebinding, cross-site).
fn foreign(request: &Request, port: u16) -> Option<&'static str> {
    let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let known = |host: &str| hosts.iter().any(|known| known.eq_ignore_ascii_case(host));
    if request.count("host") != 1 || !request.header("host").is_some_and(known) {
        return Some("The simulator answers only to its loopback address in the Host header.");
    }
    let origin = request.header("origin");
    let own = |origin: &str| origin.strip_prefix("http://").is_some_and(known);
    if origin.is_some_and(|origin| !own(origin)) || request.header("sec-fetch-site") == Some("cross-site") {
        return Some("The simulator does not answer web pages of other origins.");
    }
    None
}

async fn write(
    stream: &mut TcpStream,
    reply: &Reply,
    keep_alive: bool,
    headers: &[(String, String)],
) -> std::io::Result<()> {
    let mut bytes = reply.head(keep_alive, headers);
    if !reply.streamed {
        bytes.extend_from_slice(&reply.body);
        return stream.write_all(&bytes).await;
    }
    stream.write_all(&bytes).await?;
    for piece in reply.body.chunks(STREAM_CHUNK) {
        chunk(stream, piece).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

async fn chunk(stream: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    let mut bytes = format!("{:x}\r\n", piece.len()).into_bytes();
    bytes.extend_from_slice(piece);
    bytes.extend_from_slice(b"\r\n");
    stream.write_all(&bytes).await
}

async fn slowly(
    stream: &mut TcpStream,
    reply: &Reply,
    keep_alive: bool,
    headers: &[(String, String)],
    (size, delay): (usize, Duration),
) -> std::io::Result<()> {
    stream.write_all(&reply.head(keep_alive, headers)).await?;
    for piece in reply.body.chunks(size.max(1)) {
        tokio::time::sleep(delay).await;
        piece_of(stream, reply, piece).await?;
    }
    if reply.streamed {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

/// Sends the head and the first bytes, and the rest when it is told to; or resets the connection.
async fn held(
    stream: &mut TcpStream,
    reply: &Reply,
    keep_alive: bool,
    headers: &[(String, String)],
    (first, released): (usize, oneshot::Receiver<Released>),
) -> std::io::Result<()> {
    let (begin, rest) = reply.body.split_at(first.min(reply.body.len()));
    stream.write_all(&reply.head(keep_alive, headers)).await?;
    // An empty chunk would be the end.
    if !begin.is_empty() {
        piece_of(stream, reply, begin).await?;
    }
    stream.flush().await?;
    if released.await != Ok(Released::Proceed) {
        stream.set_zero_linger()?;
        return Err(std::io::ErrorKind::ConnectionReset.into());
    }
    for piece in rest.chunks(STREAM_CHUNK) {
        piece_of(stream, reply, piece).await?;
    }
    if reply.streamed {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

/// A piece of the body, framed as the head says.
async fn piece_of(stream: &mut TcpStream, reply: &Reply, piece: &[u8]) -> std::io::Result<()> {
    if reply.streamed {
        chunk(stream, piece).await
    } else {
        stream.write_all(piece).await
    }
}

/// Sends the head and half of the body, then resets the connection.
async fn half(stream: &mut TcpStream, reply: &Reply, headers: &[(String, String)]) -> std::io::Result<()> {
    let mut bytes = reply.head(true, headers);
    let middle = usize_of(reply.body.len().div_euclid(2));
    let piece = reply.body.get(..middle).unwrap_or_default();
    if reply.streamed {
        stream.write_all(&bytes).await?;
        chunk(stream, piece).await?;
    } else {
        bytes.extend_from_slice(piece);
        stream.write_all(&bytes).await?;
    }
    stream.flush().await?;
    stream.set_zero_linger()
}
