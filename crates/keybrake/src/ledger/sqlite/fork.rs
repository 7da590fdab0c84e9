//! What a fork leaves behind, and how it is made harmless.
//!
//! Threads do not survive a fork, and SQLite's memory must not be used by two processes. So a child opens the
//! ledger anew and never touches what it inherited. That is safe when no thread was inside SQLite at the moment of
//! the fork; otherwise SQLite's own locks may stand closed for ever in the child, and the child refuses.
//! One thing is inherited all the same: SQLite knows a file that was open at the fork again, and uses its mapping of
//! the shared memory for the child's new connections. So the parent's close must not remove that file while a child
//! has it (`Held::give_up`), and a child whose mapping is not the file any more refuses (`engine::check_inherited`).
//! A host that can announce its forks (Python's `os.register_at_fork`) calls [`before`] and [`after`], and then a
//! fork never falls into such a moment.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// The process whose threads the counters below speak of.
static PID: AtomicU32 = AtomicU32::new(0);
/// How many forks lie between this process and the one that first opened a ledger.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// Threads with a step in progress, waiting for the guard file included.
static BUSY: AtomicU32 = AtomicU32::new(0);
/// Threads inside SQLite.
static INSIDE: AtomicU32 = AtomicU32::new(0);
/// Forks that are about to happen: no step may begin.
static FORKING: AtomicU32 = AtomicU32::new(0);
/// Whether this process was forked while a thread of its parent was inside SQLite.
static SPOILT: AtomicBool = AtomicBool::new(false);

const PAUSE: Duration = Duration::from_micros(200);
/// Longest wait for steps in progress before a fork (5 s), in pauses.
const PAUSES_MAX: u32 = 25_000;

/// Waits until no step is in progress and lets none begin until [`after`]. Call it right before a fork.
pub fn before() {
    generation();
    FORKING.fetch_add(1, Ordering::SeqCst);
    for _ in 0..PAUSES_MAX {
        if BUSY.load(Ordering::SeqCst) == 0 {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets steps begin again. Call it after a fork, in the parent and in the child.
pub fn after() {
    // In a child this takes back what it inherited, other threads' forks included.
    generation();
    let _ = FORKING.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |forks| forks.checked_sub(1));
}

/// The generation of this process: a new one in every child. Settles what a fork left behind.
pub(super) fn generation() -> u32 {
    let pid = std::process::id();
    let known = PID.load(Ordering::SeqCst);
    if known != pid {
        let changed = PID.compare_exchange(known, pid, Ordering::SeqCst, Ordering::SeqCst);
        if changed.is_ok() && known != 0 {
            // Only the forking thread lives on: whoever was inside is gone.
            if INSIDE.swap(0, Ordering::SeqCst) != 0 {
                SPOILT.store(true, Ordering::SeqCst);
            }
            BUSY.store(0, Ordering::SeqCst);
            FORKING.store(0, Ordering::SeqCst);
            GENERATION.fetch_add(1, Ordering::SeqCst);
        }
    }
    GENERATION.load(Ordering::SeqCst)
}

/// Refuses in a child that was forked while a thread of its parent was inside SQLite.
pub(super) fn check() -> Result<()> {
    if SPOILT.load(Ordering::SeqCst) {
        return Err(Error::ledger(
            "this process was forked while the ledger was being written, and cannot use it: fork before the ledger \
             is used, or call keybrake's fork hooks around the fork. Nothing was sent",
        ));
    }
    Ok(())
}

/// Held by a thread from before it takes the guard file until it has given it back.
#[derive(Debug)]
pub(super) struct Busy(());

/// Held by a thread while it is inside SQLite.
#[derive(Debug)]
pub(super) struct Inside(());

/// Begins a step, waiting while a fork is about to happen.
pub(super) fn begin() -> Busy {
    loop {
        BUSY.fetch_add(1, Ordering::SeqCst);
        if FORKING.load(Ordering::SeqCst) == 0 {
            return Busy(());
        }
        BUSY.fetch_sub(1, Ordering::SeqCst);
        std::thread::sleep(PAUSE);
    }
}

impl Busy {
    /// Goes inside SQLite.
    #[expect(clippy::unused_self, reason = "only who has begun a step may go inside")]
    pub(super) fn inside(&self) -> Inside {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        Inside(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}
