//! A simulator of Stripe's API (and the server of the other vendors' simulators): a loopback server with object state, true idempotency, declines, faults on demand, and
//! its own journal of the money that moved.
//!
//! It shares nothing with Keybrake's engine but the clock: it reads requests with its own lenient parser and counts
//! with its own integers, so that tests can take its journal as the truth.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! use keybrake_testkit::{Simulator, SimulatorOptions};
//!
//! let stripe = Simulator::start(SimulatorOptions::default())?;
//! println!("{}", stripe.url()); // http://127.0.0.1:…
//! assert!(stripe.journal().is_empty());
//! # Ok(())
//! # }
//! ```

mod api;
mod cards;
mod charge;
mod control;
mod currency;
mod customer;
mod error;
mod expand;
mod faults;
mod file;
mod form;
mod http;
mod idempotency;
mod ids;
#[cfg(feature = "sim")]
pub(crate) mod in_process;
mod journal;
mod list;
mod number;
mod others;
mod payment_intent;
mod payment_intent_flow;
mod payout;
#[cfg(test)]
mod properties;
mod refund;
mod requests;
mod routes;
mod seed;
mod server;
mod topup;
mod transfer;
mod v2;
mod world;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

#[cfg(feature = "sim")]
pub(crate) use http::date;

pub use faults::{Fault, FaultKind, FaultStatus, Match, Release, Waiting, When};
pub use journal::{Movement, MovementKind, MovementOutcome, Sum, Totals, totals};
pub use requests::{Credential, RequestLog};
pub use seed::{Seed, SeedCharge, SeedCustomer, SeedIntent, Seeded};

use crate::vendors::{Sent, SimulatedVendor};
use error::ApiError;
use server::Shared;
use world::{PLATFORM, World};

/// The secret that [`Simulator::banner`] suggests; any that starts with `sk_test_` works.
pub const TEST_SECRET: &str = "sk_test_simulator";

/// How a simulator starts.
#[derive(Clone, Debug)]
pub struct SimulatorOptions {
    /// Whose API it serves: one vendor each, so that a base URL names a vendor.
    pub vendor: SimulatedVendor,
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// What is there at the start, and after a reset. Stripe only: the others start empty.
    pub seed: Seed,
    /// Length of the PDF that quotes answer with, in bytes.
    pub pdf_bytes: usize,
    /// Makes ids repeatable. By default they differ from run to run, so that a ledger that outlives the simulator does
    /// not meet the same id for another object.
    pub id_seed: Option<u64>,
}

impl Default for SimulatorOptions {
    fn default() -> Self {
        Self {
            vendor: SimulatedVendor::Stripe,
            port: 0,
            seed: Seed::standard(),
            pdf_bytes: 256 * 1_024,
            id_seed: None,
        }
    }
}

/// A control request that makes no sense, such as an unknown object or a fault without its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlError(String);

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ControlError {}

impl From<ApiError> for ControlError {
    fn from(error: ApiError) -> Self {
        let message = error.object();
        let message = message
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or("refused");
        Self(message.to_owned())
    }
}

/// A running simulator. It has its own thread, so blocking and async tests can use it alike; dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    shared: Arc<Shared>,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Simulator {
    /// Starts one. When this returns, connections are accepted.
    ///
    /// # Errors
    /// The port is taken, the machine gives no randomness, or the seed makes no sense.
    pub fn start(options: SimulatorOptions) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let id_seed = match options.id_seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(io::Error::other)?,
        };
        let mut world = World::new(id_seed, options.pdf_bytes);
        world.api = options.vendor.api();
        if world.api.is_none() {
            seed::plant(&mut world, &options.seed)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, ControlError::from(error)))?;
        }
        let shared = Arc::new(Shared::new(world, port, options.seed));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("simulator".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    tokio::select! {
                        () = server::accept(listener, serving) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            shared,
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The base URL, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.shared.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Whose API it serves.
    pub fn vendor(&self) -> SimulatedVendor {
        let world = self.shared.world();
        world
            .api
            .as_ref()
            .map_or(SimulatedVendor::Stripe, |api| api.vendor())
    }

    /// What a person needs to know to use it, several lines.
    pub fn banner(&self) -> String {
        let (url, vendor) = (self.url(), self.vendor());
        let exports = vendor.environment(&url);
        let exports = exports
            .iter()
            .map(|(name, value)| format!("  export {name}={value}"));
        let exports = exports.collect::<Vec<_>>().join("\n");
        let (what, journal) = match vendor {
            SimulatedVendor::Stripe => ("What moved: ", "journal"),
            SimulatedVendor::Twilio | SimulatedVendor::Resend => ("What was sent:", "sent"),
        };
        format!(
            "{vendor} simulator on {url}\n\n{exports}\n\n{what} curl {url}/_sim/{journal}\nControls:    curl {url}/_sim\n"
        )
    }

    /// What Twilio or Resend sent, oldest first: the truth.
    pub fn sent(&self) -> Vec<Sent> {
        self.shared.world().sent.clone()
    }

    /// Waits until at least so much was sent. Answers whether it was within the limit.
    pub async fn wait_sent(&self, least: usize, limit: Duration) -> bool {
        self.wait(limit, move |world| world.sent.len() >= least).await
    }

    /// Every row of the journal, oldest first.
    pub fn journal(&self) -> Vec<Movement> {
        self.shared.world().journal.rows().to_vec()
    }

    /// Sums of the journal over all accounts.
    pub fn totals(&self) -> Totals {
        totals(self.shared.world().journal.rows())
    }

    /// What moved (less what came back) of one kind in one currency, in the smallest unit, over all accounts.
    pub fn moved(&self, kind: MovementKind, currency: &str) -> i64 {
        let totals = self.totals();
        totals
            .get(&kind)
            .and_then(|by| by.get(currency))
            .map_or(0, |sum| sum.net)
    }

    /// The requests that arrived, oldest first (the last 100,000).
    pub fn requests(&self) -> Vec<RequestLog> {
        self.shared.world().requests.rows().cloned().collect()
    }

    /// How many requests arrived.
    pub fn request_count(&self) -> u64 {
        self.shared.world().requests.count()
    }

    /// An object of the platform account as the API shows it.
    pub fn object(&self, id: &str) -> Option<Value> {
        self.object_of(PLATFORM, id)
    }

    /// An object of an account.
    pub fn object_of(&self, account: &str, id: &str) -> Option<Value> {
        control::object(&mut self.shared.world(), account, id)
    }

    /// Adds a fault; answers its number.
    ///
    /// # Errors
    /// A number that the kind needs is missing.
    pub fn fault(&self, fault: Fault) -> Result<u64, ControlError> {
        Ok(control::add_fault(&mut self.shared.world(), fault)?)
    }

    /// Faults and how often they hit.
    pub fn faults(&self) -> Vec<FaultStatus> {
        self.shared.world().faults.list().to_vec()
    }

    /// Removes all faults. Held requests stay held until they are released.
    pub fn clear_faults(&self) {
        self.shared.world().faults.remove(None);
    }

    /// Requests that are held, oldest first.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.shared.world().faults.waiting()
    }

    /// Releases held requests; answers how many.
    pub fn release(&self, which: Release) -> u64 {
        let released = self.shared.world().faults.release(&which);
        self.shared.changed.notify_waiters();
        released
    }

    /// Waits until at least so many requests are held. Answers whether they were within the limit.
    pub async fn wait_held(&self, least: u64, limit: Duration) -> bool {
        self.wait(limit, move |world| world.faults.held() >= least).await
    }

    /// Like [`Self::wait_held`], for code that is not async.
    pub fn wait_held_blocking(&self, least: u64, limit: Duration) -> bool {
        self.wait_blocking(limit, move |world| world.faults.held() >= least)
    }

    /// Waits until at least so many requests arrived. Answers whether they did within the limit.
    pub async fn wait_requests(&self, least: u64, limit: Duration) -> bool {
        self.wait(limit, move |world| world.requests.count() >= least)
            .await
    }

    /// Like [`Self::wait_requests`], for code that is not async.
    pub fn wait_requests_blocking(&self, least: u64, limit: Duration) -> bool {
        self.wait_blocking(limit, move |world| world.requests.count() >= least)
    }

    /// Waits until the journal has at least so many rows. Answers whether it had within the limit.
    pub async fn wait_moved(&self, least: usize, limit: Duration) -> bool {
        self.wait(limit, move |world| world.journal.rows().len() >= least)
            .await
    }

    /// Like [`Self::wait_moved`], for code that is not async.
    pub fn wait_moved_blocking(&self, least: usize, limit: Duration) -> bool {
        self.wait_blocking(limit, move |world| world.journal.rows().len() >= least)
    }

    /// Runs on the simulator's own runtime, so that it works in any other, or in one without timers.
    async fn wait(&self, limit: Duration, ready: impl Fn(&World) -> bool + Send + Sync + 'static) -> bool {
        let shared = Arc::clone(&self.shared);
        let waiting = self.handle.spawn(async move { shared.wait(limit, ready).await });
        waiting.await.unwrap_or(false)
    }

    fn wait_blocking(&self, limit: Duration, ready: impl Fn(&World) -> bool) -> bool {
        self.handle.block_on(self.shared.wait(limit, ready))
    }

    /// Moves the simulator's clock forward by milliseconds: idempotency keys age.
    pub fn advance_clock_ms(&self, by_ms: u32) {
        let mut world = self.shared.world();
        world.ahead_ms = world.ahead_ms.saturating_add(i64::from(by_ms));
    }

    /// Moves an object of the platform account on as a bank or a customer would: a payout to `in_transit`, `paid` or
    /// `failed`; a refund to `succeeded` or `failed`; a top-up to `succeeded`, `failed` or `reversed`; a
    /// `PaymentIntent` to `succeeded`, `failed` or `canceled` (expired).
    ///
    /// # Errors
    /// There is no such object, or it cannot go there from where it is.
    pub fn advance(&self, object: &str, to: &str) -> Result<Value, ControlError> {
        Ok(control::advance(&mut self.shared.world(), PLATFORM, object, to)?)
    }

    /// Creates objects.
    ///
    /// # Errors
    /// An amount, currency or status that cannot be; any seed for another vendor than Stripe.
    pub fn seed(&self, seed: &Seed) -> Result<Seeded, ControlError> {
        let mut world = self.shared.world();
        if world.api.is_some() {
            return Err(ControlError("only the simulator of Stripe is seeded".to_owned()));
        }
        Ok(seed::plant(&mut world, seed)?)
    }

    /// Back to the start: the seed of the options, an empty journal and log, no faults, no kept keys. Held requests
    /// are dropped. Ids do not start again.
    ///
    /// # Errors
    /// None in practice: the seed was planted once already.
    pub fn reset(&self) -> Result<(), ControlError> {
        let mut world = self.shared.world();
        world.reset();
        if world.api.is_none() {
            seed::plant(&mut world, &self.shared.seed)?;
        }
        Ok(())
    }

    /// Stops it: open connections are closed, and nothing listens on the port when this returns.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Starts a simulator from async code; `keybrake simulate` prints its [`Simulator::banner`] and stops it on Ctrl-C.
///
/// # Errors
/// As [`Simulator::start`].
pub async fn simulate(options: SimulatorOptions) -> io::Result<Simulator> {
    tokio::task::spawn_blocking(move || Simulator::start(options))
        .await
        .map_err(io::Error::other)?
}
