//! Requests to a vendor other than Stripe, on their way through the same server: log, credential, fault, key, endpoint.

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::api::{self, Admitted, Received};
use super::http::{Reply, Request};
use super::idempotency::{First, Kept, Known};
use super::requests::Credential;
use super::world::World;
use crate::vendors::{Asked, Desk};

/// Lets a request in that brought a test credential.
pub(super) fn check(
    world: &mut World,
    request: &Request,
    received: Received,
    authorization: Credential,
) -> Result<Received, Reply> {
    match authorization {
        Credential::BearerTestKey | Credential::BasicTestKey => Ok(received),
        Credential::None | Credential::VaultKey | Credential::LiveKey | Credential::Other => {
            Err(refused(world, request, &received, 401, false))
        }
    }
}

/// An error that is the server's, in the vendor's shape.
fn refused(
    world: &mut World,
    request: &Request,
    received: &Received,
    status: u16,
    key_differs: bool,
) -> Reply {
    let body = world
        .api
        .as_ref()
        .map_or(Value::Null, |api| api.failure(status, key_differs));
    api::finish(world, request, received, Reply::json(status, &body))
}

/// Looks the idempotency key up, where the vendor looks at one. An `Err` is the answer, without executing anything.
pub(super) fn admit(world: &mut World, request: &Request, received: &Received) -> Result<Admitted, Reply> {
    let path = api::normalise(&request.path);
    let kept_ms = world
        .api
        .as_ref()
        .and_then(|api| api.keeps_key_ms(&request.method, &path));
    let (Some(kept_ms), Some(key)) = (kept_ms, received.key.clone()) else {
        return Ok(Admitted::other(None));
    };
    let slot = (received.account.clone(), key);
    let now_ms = world.now_ms();
    let first = First {
        endpoint: format!("{} {path}", request.method),
        fingerprint: Sha256::digest(&request.body).into(),
        expires_ms: now_ms.saturating_add(kept_ms),
    };
    match world.keys.begin(&slot, first, now_ms) {
        Ok(Known::New) => Ok(Admitted::other(Some(slot))),
        Ok(Known::Replay(kept)) => {
            if let Some(row) = world.requests.get_mut(received.log) {
                row.replayed = true;
            }
            let mut reply = Reply::json(kept.status, &Value::Null);
            reply.body = kept.body;
            Err(api::finish(world, request, received, reply))
        }
        // Stripe answers 409 while the first request runs, and 400 for other parameters.
        Err(error) => Err(refused(world, request, received, 409, error.status != 409)),
    }
}

/// Runs an admitted request. With `spoil`, what it does stays done and the reply becomes a 500; under its key the real
/// reply is kept.
pub(super) fn execute(
    world: &mut World,
    request: &Request,
    received: &Received,
    admitted: &Admitted,
    spoil: bool,
) -> Reply {
    let path = api::normalise(&request.path);
    let now_ms = world.now_ms();
    let asked = Asked {
        method: &request.method,
        path: &path,
        query: &request.query,
        content_type: request.header("content-type").unwrap_or_default(),
        validation: request.header("x-batch-validation"),
        body: &request.body,
        key: received.key.as_deref(),
        account: &received.account,
        request_id: &received.request_id,
        now_ms,
    };
    let ids = &mut world.ids;
    let mut desk = Desk {
        asked: &asked,
        sent: &mut world.sent,
        fresh: &mut || ids.hex(),
    };
    let Some(api) = &mut world.api else {
        return Reply::json(500, &Value::Null);
    };
    let (done, (status, body)) = match api.run(&mut desk) {
        Ok(answer) => (true, answer),
        Err(answer) => (false, answer),
    };
    let mut reply = Reply::json(status, &body);
    if body == Value::Null {
        reply.body = Bytes::new();
    }
    if let Some(slot) = admitted.slot() {
        let kept = done.then(|| Kept {
            status,
            body: reply.body.clone(),
            request_id: received.request_id.clone(),
        });
        world.keys.end(slot, kept);
    }
    if spoil {
        return refused(world, request, received, 500, false);
    }
    api::finish(world, request, received, reply)
}
