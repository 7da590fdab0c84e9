//! Time as an argument: everything that needs the time takes a [`Clock`], so that tests can move it.

use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// Where the time comes from. All times are milliseconds.
pub trait Clock: Send + Sync + Debug {
    /// Unix time in milliseconds. May jump when someone sets the machine's clock.
    fn now_ms(&self) -> i64;

    /// Milliseconds since the machine started, counted also while it sleeps. Never jumps.
    fn boot_ms(&self) -> i64;

    /// Names the machine's present start, so that boot times written down by another process can be compared;
    /// `None` where the machine does not say.
    fn boot_id(&self) -> Option<String> {
        None
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        read(ClockId::Realtime)
    }

    fn boot_ms(&self) -> i64 {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return read(ClockId::Boottime);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        return read(ClockId::Monotonic);
    }

    fn boot_id(&self) -> Option<String> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }
}

fn read(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    let millis = time.tv_nsec.checked_div(1_000_000).unwrap_or(0);
    time.tv_sec.saturating_mul(1_000).saturating_add(millis)
}

/// A clock that moves only when told to; both times move together unless set apart.
#[derive(Debug)]
pub struct ManualClock {
    now_ms: AtomicI64,
    boot_ms: AtomicI64,
    boot_id: Mutex<String>,
}

impl ManualClock {
    /// A clock that stands at the given Unix time, one hour after the machine's start.
    pub const fn at(now_ms: i64) -> Self {
        Self {
            now_ms: AtomicI64::new(now_ms),
            boot_ms: AtomicI64::new(3_600_000),
            boot_id: Mutex::new(String::new()),
        }
    }

    /// Moves both clocks forward.
    pub fn advance_ms(&self, ms: i64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
        self.boot_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as a person or a time server does.
    pub fn step_to_ms(&self, now_ms: i64) {
        self.now_ms.store(now_ms, Ordering::SeqCst);
    }

    /// Starts the machine anew: another boot id, and the boot clock at zero.
    pub fn reboot(&self, boot_id: &str) {
        if let Ok(mut id) = self.boot_id.lock() {
            boot_id.clone_into(&mut id);
        }
        self.boot_ms.store(0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    fn boot_ms(&self) -> i64 {
        self.boot_ms.load(Ordering::SeqCst)
    }

    fn boot_id(&self) -> Option<String> {
        self.boot_id.lock().ok().map(|id| id.clone())
    }
}
