//! The vendor without its listener: one request at a time, in the caller's own time. The simulation of a fleet
//! (`crate::sim`) brings the network, the faults and the clock.

use std::sync::Arc;

use keybrake::clock::Clock;
use keybrake::vendors::Reply;

use super::api::{self, Admitted, Received};
use super::control;
use super::error::ApiError;
use super::faults::{Fault, FaultKind};
use super::http::{self, Request};
use super::journal::Movement;
use super::payment_intent::Status;
use super::seed::{self, Seed};
use super::world::{Ctx, PLATFORM, Record as _, World};
use super::{ControlError, payment_intent_flow as flow};

/// See the module.
#[derive(Debug)]
pub(crate) struct InProcess {
    world: World,
}

/// What became of a request that arrived.
#[derive(Debug)]
pub(crate) enum Arrived {
    Answered(Reply),
    /// It may execute, and its idempotency key is in flight until it is ended one way or another.
    Runs(Box<Running>),
}

/// A request that may execute.
#[derive(Debug)]
pub(crate) struct Running {
    request: Request,
    received: Received,
    admitted: Admitted,
}

impl InProcess {
    /// The vendor with these objects, at this clock.
    pub(crate) fn new(clock: Arc<dyn Clock>, seed: &Seed, id_seed: u64) -> Result<Self, ControlError> {
        let mut world = World::new(id_seed, 0);
        world.clock = clock;
        seed::plant(&mut world, seed)?;
        Ok(Self { world })
    }

    fn answer(&self, reply: http::Reply) -> Reply {
        let headers = reply.headers.into_iter();
        let mut headers: Vec<(String, String)> =
            headers.map(|(name, value)| (name.to_owned(), value)).collect();
        headers.push(("date".to_owned(), http::date(self.world.now_ms())));
        Reply {
            status: reply.status,
            headers,
            body: reply.body,
        }
    }

    /// A request arrives. `target` is path and query.
    pub(crate) fn arrive(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Arrived {
        let request = request(method, target, headers, body);
        let received = match api::receive(&mut self.world, &request) {
            Ok(received) => received,
            Err(reply) => return Arrived::Answered(self.answer(reply)),
        };
        match api::admit(&mut self.world, &request, &received) {
            Ok(admitted) => Arrived::Runs(Box::new(Running {
                request,
                received,
                admitted,
            })),
            Err(reply) => Arrived::Answered(self.answer(reply)),
        }
    }

    /// A request arrives and is refused with 429, unread.
    pub(crate) fn rate_limit(&mut self, method: &str, target: &str, headers: &[(String, String)]) -> Reply {
        let request = request(method, target, headers, &[]);
        let reply = match api::receive(&mut self.world, &request) {
            Ok(received) => {
                let fault = Fault::new(FaultKind::RateLimit);
                api::refuse(&mut self.world, &request, &received, &fault)
            }
            Err(reply) => reply,
        };
        self.answer(reply)
    }

    /// Executes. With `spoil`, what it does stays done and the reply becomes a 500.
    pub(crate) fn execute(&mut self, running: &Running, spoil: bool) -> Reply {
        let Running {
            request,
            received,
            admitted,
        } = running;
        let reply = api::execute(&mut self.world, request, received, admitted, spoil);
        self.answer(reply)
    }

    /// Answers 402 instead of executing, for good: the answer is kept under the key.
    pub(crate) fn decline(&mut self, running: &Running) -> Reply {
        let Running {
            request,
            received,
            admitted,
        } = running;
        let declined = ApiError::card("card_declined", Some("generic_decline"), "It was declined.");
        let reply = api::end(&mut self.world, request, received, admitted, Err(declined));
        self.answer(reply)
    }

    /// Answers 500 instead of executing; the key was never used.
    pub(crate) fn fail(&mut self, running: &Running) -> Reply {
        let mut error = ApiError::internal();
        error.kept = false;
        let Running {
            request,
            received,
            admitted,
        } = running;
        let reply = api::end(&mut self.world, request, received, admitted, Err(error));
        self.answer(reply)
    }

    /// Every row of the journal, oldest first.
    pub(crate) fn journal(&self) -> &[Movement] {
        self.world.journal.rows()
    }

    /// Moves an object on as a bank or a customer would.
    pub(crate) fn advance(&mut self, object: &str, to: &str) -> Result<(), ControlError> {
        control::advance(&mut self.world, PLATFORM, object, to)?;
        Ok(())
    }

    /// The `PaymentIntent` that was made last.
    pub(crate) fn newest_intent(&mut self) -> Option<String> {
        let intents = self.world.account(PLATFORM).intents.rows();
        intents.last().map(|intent| intent.id.clone())
    }

    /// Objects whose end is still to come from a bank: (id, its status).
    pub(crate) fn undecided(&mut self) -> Vec<(String, &'static str)> {
        let account = self.world.account(PLATFORM);
        let refunds = account.refunds.rows().iter();
        let refunds = refunds.filter(|refund| refund.is_pending());
        let intents = account.intents.rows().iter();
        let intents = intents.filter(|intent| intent.status == Status::Processing);
        let payouts = account.payouts.rows().iter();
        let payouts = payouts.filter(|payout| matches!(payout.status, "pending" | "in_transit" | "paid"));
        refunds
            .map(|refund| (refund.id.clone(), "pending"))
            .chain(intents.map(|intent| (intent.id.clone(), "processing")))
            .chain(payouts.map(|payout| (payout.id().to_owned(), payout.status)))
            .collect()
    }

    /// Cancels every `PaymentIntent` that could still move money, as their owner does in the end.
    pub(crate) fn cancel_open_intents(&mut self) {
        let open: Vec<String> = self
            .world
            .account(PLATFORM)
            .intents
            .rows()
            .iter()
            .map(|i| i.id.clone())
            .collect();
        for id in open {
            let now_ms = self.world.now_ms();
            let mut ctx = Ctx {
                world: &mut self.world,
                account: PLATFORM,
                ids: &[&id],
                idempotency_key: None,
                request_id: None,
                now_ms,
            };
            // What has ended is refused, and stays as it is.
            let _ = flow::cancel(&mut ctx, &super::form::Params::default());
        }
    }
}

fn request(method: &str, target: &str, headers: &[(String, String)], body: &[u8]) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
            .collect(),
        body: body.to_vec(),
        keep_alive: true,
    }
}
