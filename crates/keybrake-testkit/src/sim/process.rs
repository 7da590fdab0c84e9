//! A process: it has its own clocks, it can be frozen, and it can be killed at any await point.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use keybrake::clock::Clock;
use tokio::time::{Instant, Sleep};

use super::rng::Rng;
use super::world::TrueTime;

/// One process of the fleet. Another one takes its place when it is killed.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) number: u64,
    time: TrueTime,
    /// How far this machine's wall clock is off. Its boot clock never jumps.
    pub(super) wall_off_ms: AtomicI64,
    boot_at_begin_ms: i64,
    fate: Mutex<Fate>,
}

#[derive(Debug)]
struct Fate {
    dead: bool,
    frozen_until: Option<Instant>,
    /// Awaits until something happens to it; `None`: nothing does.
    awaits_left: Option<u64>,
    mean_awaits: u64,
    rng: Arc<Rng>,
}

impl Process {
    pub(super) fn new(number: u64, time: TrueTime, rng: &Arc<Rng>, mean_awaits: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            number,
            time,
            wall_off_ms: AtomicI64::new(0),
            boot_at_begin_ms: i64::try_from(rng.below(10_000_000)).unwrap(),
            fate: Mutex::new(Fate {
                dead: false,
                frozen_until: None,
                awaits_left: mean_awaits.map(|mean| rng.below(2 * mean) + 1),
                mean_awaits: mean_awaits.unwrap_or(0),
                rng: Arc::clone(rng),
            }),
        })
    }

    pub(super) fn dead(&self) -> bool {
        self.fate.lock().unwrap().dead
    }

    /// Waits for as long as the process is frozen; for good when it is dead. What a process leaves behind in the runtime
    /// when it is killed has to stop at its next message.
    pub(super) async fn runs(&self) {
        loop {
            let until = {
                let fate = self.fate.lock().unwrap();
                if fate.dead {
                    None
                } else {
                    match fate.frozen_until.filter(|until| Instant::now() < *until) {
                        None => return,
                        until => until,
                    }
                }
            };
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Stops the process for a while where it is.
    pub(super) fn freeze(&self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        let mut fate = self.fate.lock().unwrap();
        fate.frozen_until = fate.frozen_until.max(Some(until));
    }

    pub(super) fn kill(&self) {
        self.fate.lock().unwrap().dead = true;
    }

    /// Runs a task of this process: it stops for good where it is when the process is killed (`None`).
    pub(super) const fn run<F: Future>(self: Arc<Self>, task: Pin<Box<F>>) -> Task<F> {
        Task {
            process: self,
            rest: Some(task),
            thaw: None,
        }
    }
}

impl Clock for Process {
    fn now_ms(&self) -> i64 {
        self.time.now_ms() + self.wall_off_ms.load(Ordering::SeqCst)
    }

    fn boot_ms(&self) -> i64 {
        self.boot_at_begin_ms + self.time.boot_ms()
    }
}

pub(super) fn passed_ms(begun: Instant) -> i64 {
    i64::try_from(begun.elapsed().as_millis()).unwrap()
}

enum Now {
    Runs,
    Frozen(Instant),
    Dead,
}

impl Fate {
    /// What becomes of the process at this await.
    fn at_await(&mut self) -> Now {
        if self.dead {
            return Now::Dead;
        }
        if let Some(until) = self.frozen_until {
            if Instant::now() < until {
                return Now::Frozen(until);
            }
            self.frozen_until = None;
        }
        let Some(left) = &mut self.awaits_left else {
            return Now::Runs;
        };
        *left = left.saturating_sub(1);
        if *left > 0 {
            return Now::Runs;
        }
        self.awaits_left = Some(self.rng.below(2 * self.mean_awaits) + 1);
        if self.rng.chance(500) {
            self.dead = true;
            return Now::Dead;
        }
        let ms = match self.rng.below(4) {
            0 => self.rng.between(1, 400),
            1 => self.rng.between(400, 10_000),
            2 => self.rng.between(5_000, 60_000),
            _ => self.rng.between(60_000, 1_500_000),
        };
        let until = Instant::now() + Duration::from_millis(ms);
        self.frozen_until = Some(until);
        Now::Frozen(until)
    }
}

/// See [`Process::run`].
pub(super) struct Task<F> {
    process: Arc<Process>,
    rest: Option<Pin<Box<F>>>,
    thaw: Option<Pin<Box<Sleep>>>,
}

impl<F: Future> Future for Task<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let now = self.process.fate.lock().unwrap().at_await();
            match now {
                Now::Dead => {
                    self.rest = None;
                    return Poll::Ready(None);
                }
                Now::Frozen(until) => {
                    let mut thaw = Box::pin(tokio::time::sleep_until(until));
                    if thaw.as_mut().poll(context).is_pending() {
                        self.thaw = Some(thaw);
                        return Poll::Pending;
                    }
                }
                Now::Runs => {
                    self.thaw = None;
                    let Some(task) = self.rest.as_mut() else {
                        return Poll::Ready(None);
                    };
                    return task.as_mut().poll(context).map(Some);
                }
            }
        }
    }
}
