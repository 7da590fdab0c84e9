//! A request's way through the vendor: log, credential, fault, route, idempotency, endpoint, reply.

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::expand::expand;
use super::faults::{Fault, Target};
use super::file::{self, Upload};
use super::form::Params;
use super::http::{Reply, Request};
use super::idempotency::{First, Kept, Known, Slot, V1_KEPT_MS, V2_KEPT_MS};
use super::number::u64_of;
use super::others;
use super::requests::{Credential, RequestLog};
use super::routes::{self, Route};
use super::v2;
use super::world::{Ctx, PLATFORM, World};

/// The API version that is answered when the request names none.
const API_VERSION: &str = "2026-10-28.endive";

/// A request that brought a good credential.
#[derive(Debug)]
pub(super) struct Received {
    /// Position in the request log.
    pub(super) log: u64,
    pub(super) request_id: String,
    /// The acting account.
    pub(super) account: String,
    pub(super) key: Option<String>,
    pub(super) epoch: u64,
}

impl Received {
    pub(super) fn target<'a>(&'a self, request: &'a Request) -> Target<'a> {
        Target {
            method: &request.method,
            path: &request.path,
            idempotency_key: self.key.as_deref(),
            account: &self.account,
        }
    }
}

/// The connected account: `Stripe-Account` names it, `Stripe-Context` ends in it.
fn whose(request: &Request) -> Option<&str> {
    let context = || {
        Some(
            request
                .header("stripe-context")?
                .rsplit('/')
                .next()
                .unwrap_or_default(),
        )
    };
    request.header("stripe-account").or_else(context)
}

/// Writes a request down and checks its credential.
pub(super) fn receive(world: &mut World, request: &Request) -> Result<Received, Reply> {
    let request_id = world.ids.short("req");
    let key = request.header("idempotency-key").map(str::to_owned);
    let named = request
        .header("stripe-account")
        .or_else(|| request.header("stripe-context"));
    let authorization = match &world.api {
        Some(api) => api.credential(request.header("authorization")),
        None => credential(request),
    };
    let account = match &world.api {
        Some(api) => api.account(&request.path).to_owned(),
        None => whose(request).unwrap_or(PLATFORM).to_owned(),
    };
    let log = world.requests.arrive(RequestLog {
        seq: 0,
        at_ms: world.now_ms(),
        method: request.method.clone(),
        path: request.path.clone(),
        query: request.query.clone(),
        idempotency_key: key.clone(),
        body_sha256: hex(&Sha256::digest(&request.body)),
        body_bytes: u64_of(request.body.len()),
        authorization,
        account: named.map(str::to_owned),
        context: request.header("stripe-context").map(str::to_owned),
        version: request.header("stripe-version").map(str::to_owned),
        content_type: request.header("content-type").map(str::to_owned),
        request_id: request_id.clone(),
        status: None,
        executed: false,
        replayed: false,
        fault: None,
    });
    let received = Received {
        log,
        request_id,
        account,
        key,
        epoch: world.epoch,
    };
    if world.api.is_some() {
        return others::check(world, request, received, authorization);
    }
    match check(request, authorization, &received) {
        Ok(()) => Ok(received),
        Err(error) => Err(finish(world, request, &received, error_reply(&error))),
    }
}

fn check(request: &Request, authorization: Credential, received: &Received) -> Result<(), ApiError> {
    match authorization {
        Credential::BearerTestKey | Credential::BasicTestKey => {}
        Credential::None => {
            return Err(ApiError::new(
                401,
                "invalid_request_error",
                "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer \
                 auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
            ));
        }
        Credential::VaultKey | Credential::LiveKey | Credential::Other => {
            return Err(ApiError::new(
                401,
                "invalid_request_error",
                "Invalid API Key provided: ****",
            ));
        }
    }
    let account = &received.account;
    let plausible = account.strip_prefix("acct_").is_some_and(|rest| {
        !rest.is_empty()
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    if !plausible {
        return Err(ApiError::new(
            403,
            "invalid_request_error",
            format!(
                "The provided key does not have access to account '{account}' (or that account does not exist). \
                 Application access may have been revoked."
            ),
        )
        .code("account_invalid"));
    }
    if request
        .header("idempotency-key")
        .is_some_and(|key| key.is_empty() || key.len() > 255)
    {
        return Err(ApiError::request(
            "Invalid Idempotency-Key: it must have between 1 and 255 characters.",
        ));
    }
    Ok(())
}

/// What kind of key a request brought.
fn credential(request: &Request) -> Credential {
    let Some(value) = request.header("authorization") else {
        return Credential::None;
    };
    let Some((scheme, rest)) = value.split_once(' ') else {
        return Credential::Other;
    };
    let basic = scheme.eq_ignore_ascii_case("basic");
    let key = if basic {
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim());
        match decoded.map(String::from_utf8) {
            Ok(Ok(text)) => text.split(':').next().unwrap_or_default().to_owned(),
            _ => return Credential::Other,
        }
    } else if scheme.eq_ignore_ascii_case("bearer") {
        rest.trim().to_owned()
    } else {
        return Credential::Other;
    };
    match key {
        key if key.starts_with("sk_test_") && basic => Credential::BasicTestKey,
        key if key.starts_with("sk_test_") => Credential::BearerTestKey,
        key if key.starts_with("vault_key_") => Credential::VaultKey,
        key if key.starts_with("sk_live_") || key.starts_with("rk_live_") => Credential::LiveKey,
        _ => Credential::Other,
    }
}

/// What a request will run.
#[derive(Debug)]
enum Endpoint {
    V1(&'static Route),
    Upload(Option<Upload>),
    Pdf,
    Contents,
    V2(v2::Operation),
    /// Of another vendor, which routes for itself.
    Other,
}

/// A request that may execute: its route is known and its key, if any, is marked in flight.
#[derive(Debug)]
pub(super) struct Admitted {
    endpoint: Endpoint,
    ids: Vec<String>,
    params: Params,
    body: Value,
    slot: Option<Slot>,
}

impl Admitted {
    /// A request of another vendor, with its key in flight if it has one.
    pub(super) fn other(slot: Option<Slot>) -> Self {
        Self {
            endpoint: Endpoint::Other,
            ids: Vec::new(),
            params: Params::default(),
            body: Value::Null,
            slot,
        }
    }

    pub(super) const fn slot(&self) -> Option<&Slot> {
        self.slot.as_ref()
    }
}

/// Finds the endpoint and looks the idempotency key up. An `Err` is the answer, without executing anything.
pub(super) fn admit(world: &mut World, request: &Request, received: &Received) -> Result<Admitted, Reply> {
    if world.api.is_some() {
        return others::admit(world, request, received);
    }
    let path = normalise(&request.path);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let mut admitted = match route(request, &segments) {
        Ok(admitted) => admitted,
        Err(error) => return Err(finish(world, request, received, error_reply(&error))),
    };
    let v2 = matches!(admitted.endpoint, Endpoint::V2(_));
    let keyed = request.method == "POST" || (v2 && request.method == "DELETE");
    let Some(key) = received.key.clone().filter(|_| keyed) else {
        return Ok(admitted);
    };
    let slot = (received.account.clone(), key);
    let canonical = if v2 {
        admitted.body.to_string()
    } else {
        admitted.params.canonical()
    };
    let endpoint = format!("{} {path}", request.method);
    let first = First {
        endpoint,
        fingerprint: Sha256::digest(canonical.as_bytes()).into(),
        expires_ms: world
            .now_ms()
            .saturating_add(if v2 { V2_KEPT_MS } else { V1_KEPT_MS }),
    };
    let now_ms = world.now_ms();
    match world.keys.begin(&slot, first, now_ms) {
        Ok(Known::New) => {
            admitted.slot = Some(slot);
            Ok(admitted)
        }
        Ok(Known::Replay(kept)) => Err(replay(world, request, received, kept)),
        Err(error) => Err(finish(world, request, received, error_reply(&error))),
    }
}

/// Percent-decodes a path and resolves `//`, `.` and `..`, as web servers do before they route.
pub(super) fn normalise(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits: String = rest.by_ref().take(2).map(char::from).collect();
        match u8::from_str_radix(&digits, 16) {
            Ok(decoded) => bytes.push(decoded),
            Err(_) => bytes.extend(format!("%{digits}").bytes()),
        }
    }
    let decoded = String::from_utf8_lossy(&bytes);
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

fn route(request: &Request, segments: &[&str]) -> Result<Admitted, ApiError> {
    let content_type = request.header("content-type").unwrap_or_default();
    if segments.first() == Some(&"v2") {
        return v2_route(request, segments);
    }
    let owned = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect::<Vec<_>>();
    if request.method == "POST" && segments == ["v1", "files"] {
        let (params, upload) = if content_type.starts_with("multipart/form-data") {
            file::multipart(content_type, &request.body)?
        } else {
            (form(request, content_type)?, None)
        };
        return Ok(Admitted {
            endpoint: Endpoint::Upload(upload),
            ids: Vec::new(),
            params,
            body: Value::Null,
            slot: None,
        });
    }
    let (endpoint, ids) = if request.method == "GET"
        && let Some(ids) = routes::ids("/v1/quotes/*/pdf", segments)
    {
        (Endpoint::Pdf, ids)
    } else if request.method == "GET"
        && let Some(ids) = routes::ids("/v1/files/*/contents", segments)
    {
        (Endpoint::Contents, ids)
    } else if let Some((route, ids)) = routes::find(&request.method, segments) {
        (Endpoint::V1(route), ids)
    } else {
        return Err(unrecognised(request));
    };
    Ok(Admitted {
        endpoint,
        ids: owned(ids),
        params: form(request, content_type)?,
        body: Value::Null,
        slot: None,
    })
}

fn form(request: &Request, content_type: &str) -> Result<Params, ApiError> {
    let declared = content_type.split(';').next().unwrap_or_default().trim();
    let is_form = declared.is_empty() || declared.eq_ignore_ascii_case("application/x-www-form-urlencoded");
    if !request.body.is_empty() && !is_form {
        return Err(ApiError::request(
            "Invalid request (check that your POST content type is application/x-www-form-urlencoded).",
        ));
    }
    let body = String::from_utf8_lossy(&request.body);
    Params::read(&request.query, &body)
}

fn v2_route(request: &Request, segments: &[&str]) -> Result<Admitted, ApiError> {
    let (operation, ids) = v2::find(&request.method, segments).ok_or_else(|| unrecognised(request))?;
    let body = if request.body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&request.body)
            .map_err(|_| v2::invalid("Invalid JSON in the request body.").code("invalid_json"))?
    };
    Ok(Admitted {
        endpoint: Endpoint::V2(operation),
        ids: ids.into_iter().map(str::to_owned).collect(),
        params: Params::read(&request.query, "")?,
        body,
        slot: None,
    })
}

fn unrecognised(request: &Request) -> ApiError {
    ApiError::new(
        404,
        "invalid_request_error",
        format!(
            "Unrecognized request URL ({}: {}). Please see https://stripe.com/docs or we can help at \
             https://support.stripe.com/.",
            request.method, request.path
        ),
    )
}

/// Runs an admitted request. With `spoil`, what it does stays done and the reply becomes a 500.
pub(super) fn execute(
    world: &mut World,
    request: &Request,
    received: &Received,
    admitted: &Admitted,
    spoil: bool,
) -> Reply {
    let now_ms = world.now_ms();
    if let Some(row) = world.requests.get_mut(received.log) {
        row.executed = true;
    }
    if world.api.is_some() {
        return others::execute(world, request, received, admitted, spoil);
    }
    let done = run(world, received, admitted, now_ms);
    let done = if spoil {
        Ok(error_reply(&ApiError::internal()))
    } else {
        done
    };
    end(world, request, received, admitted, done)
}

/// Ends an admitted request: its reply, which is kept under its key or not.
pub(super) fn end(
    world: &mut World,
    request: &Request,
    received: &Received,
    admitted: &Admitted,
    done: Result<Reply, ApiError>,
) -> Reply {
    let (reply, kept) = match done {
        Ok(reply) => (reply, true),
        Err(error) => {
            let is_v2 = matches!(admitted.endpoint, Endpoint::V2(_));
            (error_reply(&error), error.kept && !is_v2)
        }
    };
    let mut reply = reply;
    if let Some(slot) = &admitted.slot {
        let keep = kept.then(|| Kept {
            status: reply.status,
            body: reply.body.clone(),
            request_id: received.request_id.clone(),
        });
        world.keys.end(slot, keep);
        reply
            .headers
            .push(("original-request", received.request_id.clone()));
    }
    finish(world, request, received, reply)
}

/// An admitted request that will not run after all: its key was never used.
pub(super) fn abandon(world: &mut World, received: &Received, admitted: &Admitted) {
    if world.epoch == received.epoch
        && let Some(slot) = &admitted.slot
    {
        world.keys.end(slot, None);
    }
}

fn run(world: &mut World, received: &Received, admitted: &Admitted, now_ms: i64) -> Result<Reply, ApiError> {
    let ids: Vec<&str> = admitted.ids.iter().map(String::as_str).collect();
    let mut ctx = Ctx {
        world,
        account: &received.account,
        ids: &ids,
        idempotency_key: received.key.as_deref(),
        request_id: Some(&received.request_id),
        now_ms,
    };
    let params = &admitted.params;
    let mut value = match &admitted.endpoint {
        Endpoint::V1(route) => {
            routes::check_params(route, params)?;
            (route.handler)(&mut ctx, params)?
        }
        Endpoint::Upload(upload) => file::create(&mut ctx, params, upload.as_ref())?,
        Endpoint::Contents => return file::contents(&mut ctx),
        Endpoint::Pdf => return pdf(ctx.world.pdf_bytes, ctx.id()),
        Endpoint::V2(operation) => v2::run(&mut ctx, *operation, &admitted.body)?,
        // Executed by that vendor.
        Endpoint::Other => Value::Null,
    };
    for path in params.strings("expand") {
        expand(ctx.data(), &mut value, path);
    }
    Ok(Reply::json(200, &value))
}

/// A PDF of a given length, sent as a stream: a real head, then a pattern that shows where a copy went wrong.
fn pdf(bytes: usize, quote: &str) -> Result<Reply, ApiError> {
    if !quote.starts_with("qt_") {
        return Err(ApiError::no_such("quote", quote));
    }
    let mut body = b"%PDF-1.7\n".to_vec();
    body.extend((0..=u8::MAX).cycle().take(bytes.saturating_sub(body.len())));
    Ok(Reply {
        status: 200,
        headers: vec![("content-type", "application/pdf".to_owned())],
        body: body.into(),
        streamed: true,
    })
}

fn replay(world: &mut World, request: &Request, received: &Received, kept: Kept) -> Reply {
    if let Some(row) = world.requests.get_mut(received.log) {
        row.replayed = true;
    }
    let mut reply = Reply {
        status: kept.status,
        headers: vec![("content-type", "application/json".to_owned())],
        body: kept.body,
        streamed: false,
    };
    reply.headers.push(("idempotent-replayed", "true".to_owned()));
    reply.headers.push(("original-request", kept.request_id));
    finish(world, request, received, reply)
}

/// The reply to a `rate_limit` or `status` fault: the endpoint was not reached.
pub(super) fn refuse(world: &mut World, request: &Request, received: &Received, fault: &Fault) -> Reply {
    let (status, error) = match fault.status {
        Some(status) => {
            let kind = if status >= 500 { "api_error" } else { "invalid_request_error" };
            (status, ApiError::new(status, kind, "The simulator was asked for this answer."))
        }
        None => (
            429,
            ApiError::new(
                429,
                "invalid_request_error",
                "Request rate limit exceeded. You can learn more about rate limits here https://stripe.com/docs/rate-limits.",
            )
            .code("rate_limit"),
        ),
    };
    let mut reply = match (&fault.body, &world.api) {
        (Some(body), _) => Reply::json(status, body),
        (None, Some(api)) => Reply::json(status, &api.failure(status, false)),
        (None, None) => error_reply(&error),
    };
    if let Some(should_retry) = fault.should_retry {
        reply
            .headers
            .push(("stripe-should-retry", should_retry.to_string()));
    }
    finish(world, request, received, reply)
}

fn error_reply(error: &ApiError) -> Reply {
    Reply::json(error.status, &error.body())
}

/// Adds the headers that every reply has and completes the log.
pub(super) fn finish(world: &mut World, request: &Request, received: &Received, mut reply: Reply) -> Reply {
    if let Some(row) = world.requests.get_mut(received.log) {
        row.status = Some(reply.status);
    }
    if let Some(api) = &world.api {
        reply
            .headers
            .push((api.request_id_header(), received.request_id.clone()));
        return reply;
    }
    let version = request.header("stripe-version").unwrap_or(API_VERSION);
    reply.headers.push(("request-id", received.request_id.clone()));
    reply.headers.push(("stripe-version", version.to_owned()));
    if let Some(key) = &received.key {
        reply.headers.push(("idempotency-key", key.clone()));
    }
    if received.account != PLATFORM && reply.status != 403 {
        reply.headers.push(("stripe-account", received.account.clone()));
    }
    reply
}

/// The answer to something that is not acceptable HTTP, or comes from where it must not.
pub(super) fn refusal(status: u16, message: &str) -> Reply {
    Reply::json(
        status,
        &json!({"error": {"type": "invalid_request_error", "message": message}}),
    )
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| DIGITS.get(usize::from(value)).copied().map_or('0', char::from);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_as_web_servers_do() {
        assert_eq!(normalise("/v1/charges/ch_1"), "/v1/charges/ch_1");
        assert_eq!(normalise("/v1//charges/./ch_1"), "/v1/charges/ch_1");
        assert_eq!(normalise("/v1/charges/../refunds"), "/v1/refunds");
        assert_eq!(normalise("/v1/charges/%2e%2e/refunds"), "/v1/refunds");
        assert_eq!(normalise("/v1/charges/..%2Frefunds"), "/v1/refunds");
        assert_eq!(normalise("/../../v1"), "/v1");
    }
}
