//! The control endpoints under `/_sim/`, with which tests in any language drive the simulator.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::ApiError;
use super::expand;
use super::faults::{Fault, Release};
use super::form::Params;
use super::http::{Reply, Request};
use super::journal::{self, Movement};
use super::number::u64_of;
use super::seed::{self, Seed};
use super::server::Shared;
use super::world::{Ctx, PLATFORM, World};
use super::{payment_intent_flow, payout, refund, topup};
use crate::vendors::Sent;

/// How long a waiting request waits when it does not say.
const WAIT_MS: i64 = 10_000;
/// The longest that it may ask for.
const WAIT_MAX_MS: i64 = 300_000;

const INDEX: &str = "\
GET    /_sim/journal      movements of money, with totals   ?kind= &account= &currency= &after_seq= &at_least= &timeout_ms=
GET    /_sim/totals       sums by kind and currency         ?account=
GET    /_sim/sent         what Twilio or Resend sent        ?kind= &to= &after_seq= &at_least= &timeout_ms=
GET    /_sim/requests     requests that arrived             ?method= &path_prefix= &after_seq= &at_least= &timeout_ms=
GET    /_sim/objects/ID   one object                        ?account=
GET    /_sim/faults       faults and how often they hit
POST   /_sim/faults       {\"match\": {\"method\", \"path_prefix\", \"path\", \"idempotency_key\", \"account\"}, \"kind\", \"times\", \"skip\", ...}
DELETE /_sim/faults[/ID]  removes one, or all
GET    /_sim/waiting      held requests                     ?at_least= &timeout_ms=
POST   /_sim/release      {\"id\", \"fault\", \"count\", \"drop\"}, all optional
POST   /_sim/clock        {\"advance_ms\": N}
POST   /_sim/advance      {\"object\": ID, \"to\": STATUS, \"account\"}
POST   /_sim/seed         {\"customers\": [...], \"charges\": [...], \"payment_intents\": [...], \"balance\": {...}, \"account\"}
POST   /_sim/reset        {\"seed\": \"standard\" or \"empty\" or {...}}
";

/// Answers a control request. Errors have Stripe's shape, so that one reader serves for all.
pub(super) async fn answer(shared: &Arc<Shared>, request: &Request) -> Reply {
    match control(shared, request).await {
        Ok(reply) => reply,
        Err(error) => Reply::json(error.status, &error.body()),
    }
}

async fn control(shared: &Arc<Shared>, request: &Request) -> Result<Reply, ApiError> {
    let params = Params::read(&request.query, "")?;
    let path = request.path.trim_start_matches("/_sim").trim_matches('/');
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let value = match (request.method.as_str(), first) {
        ("GET", "") => {
            let mut reply = Reply::json(200, &Value::Null);
            reply.headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
            reply.body = INDEX.into();
            return Ok(reply);
        }
        ("GET", "journal") => journal(shared, &params).await?,
        ("GET", "totals") => {
            let account = params.text("account")?;
            let world = shared.world();
            json!(journal::totals(rows(&world, None, account, None)))
        }
        ("GET", "sent") => sent(shared, &params).await?,
        ("GET", "requests") => requests(shared, &params).await?,
        ("GET", "objects") => {
            let account = params.text("account")?.unwrap_or(PLATFORM);
            object(&mut shared.world(), account, rest).ok_or_else(|| ApiError::no_such("object", rest))?
        }
        ("GET", "faults") => json!({"faults": shared.world().faults.list()}),
        ("POST", "faults") => {
            let fault: Fault = body(request)?;
            let id = add_fault(&mut shared.world(), fault)?;
            json!({"id": id})
        }
        ("DELETE", "faults") => {
            let id = match rest {
                "" => None,
                id => Some(id.parse().map_err(|_| ApiError::no_such("fault", id))?),
            };
            json!({"removed": shared.world().faults.remove(id)})
        }
        ("GET", "waiting") => waiting(shared, &params).await?,
        ("POST", "release") => {
            let which: Release = body(request)?;
            json!({"released": shared.world().faults.release(&which)})
        }
        ("POST", "clock") => clock(&mut shared.world(), &body::<Clock>(request)?)?,
        ("POST", "advance") => {
            let asked: Advance = body(request)?;
            let account = asked.account.as_deref().unwrap_or(PLATFORM);
            advance(&mut shared.world(), account, &asked.object, &asked.to)?
        }
        ("POST", "seed") if shared.world().api.is_some() => {
            return Err(ApiError::request("only the simulator of Stripe is seeded"));
        }
        ("POST", "seed") => {
            let seed: Seed = body(request)?;
            json!(seed::plant(&mut shared.world(), &seed)?)
        }
        ("POST", "reset") => reset(shared, &body::<Reset>(request)?)?,
        _ => {
            return Err(ApiError::new(
                404,
                "invalid_request_error",
                format!(
                    "No control endpoint {} {}; GET /_sim lists them.",
                    request.method, request.path
                ),
            ));
        }
    };
    shared.changed.notify_waiters();
    Ok(Reply::json(200, &value))
}

/// A JSON body; an empty one is `{}`.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, ApiError> {
    let bytes: &[u8] = if request.body.is_empty() {
        b"{}"
    } else {
        &request.body
    };
    serde_json::from_slice(bytes).map_err(|error| ApiError::request(format!("{}: {error}", request.path)))
}

/// Adds a fault if it makes sense.
pub(super) fn add_fault(world: &mut World, fault: Fault) -> Result<u64, ApiError> {
    match fault.problem() {
        Some(problem) => Err(ApiError::request(problem)),
        None => Ok(world.faults.add(fault)),
    }
}

fn rows<'a>(
    world: &'a World,
    kind: Option<&'a str>,
    account: Option<&'a str>,
    currency: Option<&'a str>,
) -> impl Iterator<Item = &'a Movement> {
    world.journal.rows().iter().filter(move |row| {
        kind.is_none_or(|kind| json!(row.kind) == kind)
            && account.is_none_or(|account| row.account == account)
            && currency.is_none_or(|currency| row.currency == currency)
    })
}

async fn journal(shared: &Shared, params: &Params) -> Result<Value, ApiError> {
    let (kind, account) = (params.text("kind")?, params.text("account")?);
    let currency = params.text("currency")?;
    let after = params.integer("after_seq")?.unwrap_or(0);
    let fresh = |row: &&Movement| i64::try_from(row.seq).unwrap_or(i64::MAX) > after;
    until(shared, params, |world| {
        u64_of(rows(world, kind, account, currency).filter(fresh).count())
    })
    .await?;
    let world = shared.world();
    let found: Vec<&Movement> = rows(&world, kind, account, currency).filter(fresh).collect();
    Ok(json!({"movements": found, "totals": journal::totals(found.iter().copied())}))
}

/// An object as the API shows it.
pub(super) fn object(world: &mut World, account: &str, id: &str) -> Option<Value> {
    match &world.api {
        Some(api) => api.objects().get(id).cloned(),
        None => expand::find(world.account(account), id),
    }
}

async fn sent(shared: &Shared, params: &Params) -> Result<Value, ApiError> {
    let (kind, to) = (params.text("kind")?, params.text("to")?);
    let after = params.integer("after_seq")?.unwrap_or(0);
    let wanted = |row: &&Sent| {
        i64::try_from(row.seq).unwrap_or(i64::MAX) > after
            && kind.is_none_or(|kind| json!(row.kind) == kind)
            && to.is_none_or(|to| row.to.iter().any(|one| one == to))
    };
    until(shared, params, |world| {
        u64_of(world.sent.iter().filter(wanted).count())
    })
    .await?;
    let world = shared.world();
    let found: Vec<_> = world.sent.iter().filter(wanted).collect();
    Ok(json!({"count": found.len(), "sent": found}))
}

async fn requests(shared: &Shared, params: &Params) -> Result<Value, ApiError> {
    let (method, prefix) = (params.text("method")?, params.text("path_prefix")?);
    let after = params.integer("after_seq")?.unwrap_or(0);
    let wanted = |row: &&super::RequestLog| {
        i64::try_from(row.seq).unwrap_or(i64::MAX) > after
            && method.is_none_or(|method| row.method.eq_ignore_ascii_case(method))
            && prefix.is_none_or(|prefix| row.path.starts_with(prefix))
    };
    until(shared, params, |world| {
        u64_of(world.requests.rows().filter(wanted).count())
    })
    .await?;
    let world = shared.world();
    let found: Vec<_> = world.requests.rows().filter(wanted).collect();
    Ok(json!({"count": found.len(), "total": world.requests.count(), "requests": found}))
}

async fn waiting(shared: &Shared, params: &Params) -> Result<Value, ApiError> {
    until(shared, params, |world| world.faults.held()).await?;
    let waiting = shared.world().faults.waiting();
    Ok(json!({"count": waiting.len(), "waiting": waiting}))
}

/// Waits for `at_least`, if the request asks for it; 408 when it does not come in time.
async fn until(shared: &Shared, params: &Params, count: impl Fn(&World) -> u64) -> Result<(), ApiError> {
    let Some(least) = params.integer("at_least")? else {
        return Ok(());
    };
    let least = u64::try_from(least).unwrap_or(0);
    let limit = params
        .integer("timeout_ms")?
        .unwrap_or(WAIT_MS)
        .clamp(0, WAIT_MAX_MS);
    let limit = Duration::from_millis(u64::try_from(limit).unwrap_or(0));
    if shared.wait(limit, |world| count(world) >= least).await {
        return Ok(());
    }
    let seen = count(&shared.world());
    Err(ApiError::new(
        408,
        "timeout",
        format!("waited for at least {least}, there are {seen}"),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    advance_ms: i64,
}

fn clock(world: &mut World, clock: &Clock) -> Result<Value, ApiError> {
    advance_clock(world, clock.advance_ms)?;
    Ok(json!({"now_ms": world.now_ms()}))
}

/// Moves the simulator's clock forward.
pub(super) fn advance_clock(world: &mut World, by_ms: i64) -> Result<(), ApiError> {
    if by_ms < 0 {
        return Err(ApiError::request("the clock only moves forward"));
    }
    world.ahead_ms = world.ahead_ms.saturating_add(by_ms);
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    object: String,
    to: String,
    account: Option<String>,
}

/// Moves an object on as a bank or a customer would.
pub(super) fn advance(world: &mut World, account: &str, object: &str, to: &str) -> Result<Value, ApiError> {
    if let Some(api) = &mut world.api {
        return api.advance(object, to).map_err(ApiError::request);
    }
    let now_ms = world.now_ms();
    let mut ctx = Ctx {
        world,
        account,
        ids: &[],
        idempotency_key: None,
        request_id: None,
        now_ms,
    };
    let step = match object.split_once('_').map(|(prefix, _)| prefix) {
        Some("pi") => payment_intent_flow::advance,
        Some("re") => refund::advance,
        Some("po") => payout::advance,
        Some("tu") => topup::advance,
        _ => {
            return Err(ApiError::request(
                "only pi_, re_, po_ and tu_ objects can be advanced",
            ));
        }
    };
    step(&mut ctx, object, to)?;
    expand::find(ctx.data(), object).ok_or_else(|| ApiError::no_such("object", object))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Reset {
    seed: Option<ResetSeed>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ResetSeed {
    Named(String),
    Given(Box<Seed>),
}

fn reset(shared: &Shared, asked: &Reset) -> Result<Value, ApiError> {
    let seed = match &asked.seed {
        None => shared.seed.clone(),
        Some(ResetSeed::Given(seed)) => (**seed).clone(),
        Some(ResetSeed::Named(name)) => match name.as_str() {
            "standard" => Seed::standard(),
            "empty" => Seed::default(),
            other => {
                return Err(ApiError::request(format!(
                    "no seed is called {other:?}: standard or empty"
                )));
            }
        },
    };
    let mut world = shared.world();
    world.reset();
    if world.api.is_some() {
        return Ok(json!({}));
    }
    Ok(json!(seed::plant(&mut world, &seed)?))
}
