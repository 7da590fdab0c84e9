//! The ledger in Redis, on a clock that the test moves: the suite's clock is written into the ledger's own record
//! before every operation, where only a holder of the server's password could.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use keybrake::clock::{Clock as _, ManualClock};
use keybrake::ledger::Ledger;
use keybrake::ledger::redis::RedisLedger;

use super::{Fresh, Opened};
use crate::redis::{Connection, RedisOptions, RedisServer};
use crate::{Around, Wrapped};

/// Makes every ledger on a private server of its own.
#[derive(Clone, Copy, Debug)]
pub struct Redis;

struct OnServer {
    clock: Arc<ManualClock>,
    ledger: Arc<dyn Ledger>,
    server: RedisServer,
}

#[async_trait]
impl Fresh for Redis {
    async fn fresh(&self, clock: Arc<ManualClock>) -> Box<dyn Opened> {
        let server = RedisServer::start(RedisOptions::new()).expect("a private Redis");
        Box::new(OnServer {
            ledger: open(&server, &clock),
            clock,
            server,
        })
    }

    fn model_cases(&self) -> u32 {
        40
    }
}

#[async_trait]
impl Opened for OnServer {
    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.ledger)
    }

    async fn again(&self) -> Option<Arc<dyn Ledger>> {
        Some(open(&self.server, &self.clock))
    }
}

fn open(server: &RedisServer, clock: &Arc<ManualClock>) -> Arc<dyn Ledger> {
    // Many tasks of a debug build share two cores with the server: patience is not what is tested.
    let url = format!("{}?ns=suite&timeout_ms=20000", server.url());
    let ledger =
        RedisLedger::open(&url, clock.clone(), Some(b"a master key of the suite, 32 bytes!")).expect("opens");
    Arc::new(Wrapped(Moved {
        ledger,
        clock: Arc::clone(clock),
        server: Mutex::new((0, server.connect().expect("connects"))),
    }))
}

/// A ledger whose server's clock follows the test's.
#[derive(Debug)]
struct Moved {
    ledger: RedisLedger,
    clock: Arc<ManualClock>,
    /// The time that was written last.
    server: Mutex<(i64, Connection)>,
}

impl Around for Moved {
    /// At the test's time.
    fn inner(&self) -> &dyn Ledger {
        let mut server = self.server.lock().expect("no test panics here");
        let now_ms = self.clock.now_ms();
        if server.0 != now_ms {
            let now = now_ms.to_string();
            server
                .1
                .command(&["HSET", "kb:{suite}:meta", "fixed", &now])
                .expect("the server answers");
            server.0 = now_ms;
        }
        &self.ledger
    }
}
