//! Calls that this process has in flight, and the hard stops that abort them.
//!
//! While there are any, a task on their runtime waits for word of a hard stop ([`Ledger::watch_stops`]) and looks at the
//! stops. A process that was forked, and each runtime of a process, has its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

use tokio::runtime::{Handle, Id};
use tokio::sync::{Notify, oneshot};

use crate::brake::CachedKey;
use crate::clock::Clock;
use crate::ledger::rules::covers;
use crate::ledger::{CallFacts, KeyRecord, Ledger, Stop};

/// How long a task goes on after the last call, in milliseconds: so that a busy process connects once.
const IDLE_MS: i64 = 10_000;

/// The calls of one shell.
#[derive(Debug)]
pub(super) struct InFlight {
    ledger: Arc<dyn Ledger>,
    clock: Arc<dyn Clock>,
    own: Generation,
}

/// Those of one process, and of the children that are forked from it. What a child finds of its parent's is left alone:
/// its locks may be held for ever.
#[derive(Debug)]
struct Generation {
    pid: u32,
    state: Mutex<State>,
    /// Has the tasks look at once.
    look: Notify,
    next: OnceLock<Box<Self>>,
}

#[derive(Debug, Default)]
struct State {
    calls: HashMap<u64, Entry>,
    last: u64,
    /// Runtimes on which a task waits for hard stops.
    watched: Vec<Id>,
    /// Whether a hard stop stood when they were last looked at.
    stopped: bool,
}

#[derive(Debug)]
struct Entry {
    runtime: Id,
    facts: Arc<CallFacts>,
    key: Option<Arc<CachedKey>>,
    abort: Option<oneshot::Sender<Stop>>,
}

impl Generation {
    fn new() -> Self {
        Self {
            pid: std::process::id(),
            state: Mutex::default(),
            look: Notify::new(),
            next: OnceLock::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    pub(super) fn new(ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            ledger,
            clock,
            own: Generation::new(),
        })
    }

    fn own(&self) -> &Generation {
        let pid = std::process::id();
        let mut generation = &self.own;
        while generation.pid != pid {
            generation = generation.next.get_or_init(|| Box::new(Generation::new()));
        }
        generation
    }

    /// Takes note of a call that is about to be sent. Without a runtime it cannot be, and is not watched.
    pub(super) fn enter(self: &Arc<Self>, facts: CallFacts, key: Option<Arc<CachedKey>>) -> Option<Flight> {
        let runtime = Handle::try_current().ok()?;
        let (abort, aborted) = oneshot::channel();
        let own = self.own();
        let mut state = own.state();
        state.last = state.last.saturating_add(1);
        let number = state.last;
        let entry = Entry {
            runtime: runtime.id(),
            facts: Arc::new(facts),
            key,
            abort: Some(abort),
        };
        state.calls.insert(number, entry);
        if state.stopped {
            // It may have been let through before that stop: whoever looks tells.
            own.look.notify_waiters();
            own.look.notify_one();
        }
        if !state.watched.contains(&runtime.id()) {
            state.watched.push(runtime.id());
            drop(state);
            let watch = Watch {
                calls: Arc::downgrade(self),
                pid: own.pid,
                runtime: runtime.id(),
            };
            let (ledger, clock) = (Arc::clone(&self.ledger), Arc::clone(&self.clock));
            runtime.spawn(watch.run(ledger, clock));
        }
        Some(Flight {
            calls: Arc::clone(self),
            pid: own.pid,
            number,
            aborted: Some(aborted),
        })
    }

    /// Aborts what standing hard stops cover.
    async fn look(&self) {
        let own = self.own();
        if own.state().calls.is_empty() {
            return;
        }
        // A ledger that does not answer tells of no stop; it lets no call through either.
        let Ok(stops) = self.ledger.stops().await else {
            return;
        };
        let hard: Vec<Stop> = stops.into_iter().filter(|stop| stop.hard).collect();
        own.state().stopped = !hard.is_empty();
        if hard.is_empty() {
            return;
        }
        let calls: Vec<(u64, Arc<CallFacts>, Option<Arc<CachedKey>>)> = {
            let state = own.state();
            let calls = state.calls.iter().filter(|(_, call)| call.abort.is_some());
            calls
                .map(|(number, call)| (*number, Arc::clone(&call.facts), call.key.clone()))
                .collect()
        };
        let mut known = HashMap::new();
        for (number, facts, key) in calls {
            let mut family: Vec<KeyRecord> = Vec::new();
            if let Some(key) = key {
                for id in &key.record.ancestors {
                    if !known.contains_key(id) {
                        let record = self.ledger.key(id).await.ok().flatten();
                        known.insert(id.clone(), record);
                    }
                    family.extend(known.get(id).cloned().flatten());
                }
                family.push(key.record.clone());
            }
            if let Some(stop) = hard.iter().find(|stop| covers(&stop.scope, &facts, &family)) {
                let abort = own
                    .state()
                    .calls
                    .get_mut(&number)
                    .and_then(|call| call.abort.take());
                if let Some(abort) = abort {
                    // It may have ended just now.
                    let _ = abort.send(stop.clone());
                }
            }
        }
    }
}

/// The task of one runtime. Dropped with the runtime, it makes room for another.
struct Watch {
    calls: Weak<InFlight>,
    pid: u32,
    runtime: Id,
}

impl Watch {
    async fn run(self, ledger: Arc<dyn Ledger>, clock: Arc<dyn Clock>) {
        let mut stops = ledger.watch_stops();
        drop(ledger);
        let mut busy_ms = clock.boot_ms();
        loop {
            let Some(calls) = self.calls.upgrade() else { return };
            let look = &calls.own().look;
            tokio::select! {
                () = stops.next() => {}
                () = look.notified() => {}
            }
            calls.look().await;
            let mut state = calls.own().state();
            if state.calls.values().any(|call| call.runtime == self.runtime) {
                busy_ms = clock.boot_ms();
            } else if clock.boot_ms().saturating_sub(busy_ms) >= IDLE_MS {
                // Under the lock, so that no call comes in between.
                state.watched.retain(|id| *id != self.runtime);
                return;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(calls) = self.calls.upgrade()
            && self.pid == std::process::id()
        {
            calls.own().state().watched.retain(|id| *id != self.runtime);
        }
    }
}

/// A call in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct Flight {
    calls: Arc<InFlight>,
    pid: u32,
    number: u64,
    aborted: Option<oneshot::Receiver<Stop>>,
}

impl Flight {
    /// The hard stop that aborts it, once there is one.
    pub(super) fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        let Some(aborted) = &mut self.aborted else {
            return Poll::Pending;
        };
        match std::pin::Pin::new(aborted).poll(cx) {
            Poll::Ready(Ok(stop)) => {
                self.aborted = None;
                Poll::Ready(stop)
            }
            Poll::Ready(Err(_)) => {
                self.aborted = None;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            self.calls.own().state().calls.remove(&self.number);
        }
    }
}
