//! One governed call: what a host hands over, and what it gets back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keybrake::brake::{CallContext, CallRecord, KeyOrigin};
use keybrake::client;
use keybrake::clock::{Clock, SystemClock};
use keybrake::ledger::State;
use keybrake::policy::{BudgetView, Code, Denial};
use keybrake::request::Call;
use keybrake::vendors::{self, Reply};
use keybrake::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::body::Body;
use crate::core::Core;

/// A call as the vendor's SDK made it.
pub struct Outgoing {
    call: Call,
    context: CallContext,
    wait: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attribution {
    run: Option<String>,
    step: Option<String>,
    item: Option<String>,
    key_origin: String,
    context: Map<String, Value>,
}

impl std::fmt::Debug for Outgoing {
    /// Shows no header and no body: they hold the vault key and what is paid.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Answer {
    /// Shows no header and no body.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("kind", &self.kind)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// `context` is a JSON object of `run`, `step`, `item`, `key_origin` (`generated`, `caller` or `unknown`) and
    /// `context` (an object for the audit). The call may wait up to `wait` for room in its budgets.
    ///
    /// # Errors
    /// When the context is no such object.
    pub fn new(
        (method, url, headers, body): (&str, String, Vec<(String, String)>, Bytes),
        context: &str,
        wait: Duration,
    ) -> Result<Self> {
        let given: Attribution = serde_json::from_str(context)
            .map_err(|e| Error::config("the run's context must be plain JSON values").because(e))?;
        let key_origin = match given.key_origin.as_str() {
            "generated" => KeyOrigin::Generated,
            "caller" => KeyOrigin::Caller,
            _ => KeyOrigin::Unknown,
        };
        Ok(Self {
            call: Call {
                method: method.to_ascii_uppercase(),
                url,
                headers,
                body,
            },
            context: CallContext {
                run: given.run,
                step: given.step,
                item: given.item,
                key_origin,
                context: given.context,
            },
            wait,
        })
    }
}

impl Outgoing {
    pub(crate) fn parts(self) -> (Call, CallContext, Duration) {
        (self.call, self.context, self.wait)
    }
}

/// How a governed call ended.
pub struct Answer {
    /// `reply`, `denied`, `lost` or `stream`.
    pub kind: &'static str,
    /// HTTP status; 0 when there was no reply.
    pub status: u16,
    /// Headers of the reply, in the vendor's case and order.
    pub headers: Vec<(String, String)>,
    /// Body of the reply; empty for a stream.
    pub body: Bytes,
    /// What Keybrake noted of the call, as JSON.
    pub record: String,
    /// The refusal as JSON, when it was denied.
    pub denial: Option<String>,
    /// Why there is no reply, when it was lost.
    pub reason: Option<String>,
    /// Whether a lost call surely never left.
    pub never_sent: bool,
    /// The body of a stream.
    pub stream: Option<Arc<Body>>,
}

/// Makes the call and reads its reply whole; with `stream`, the body of a document is left to be read. Until `given_up`
/// ends: a call in flight is then aborted, and the answer is `lost`, with its record. What is left to be read is given up
/// by itself.
///
/// # Errors
/// When the ledger cannot be opened or asked, something is misconfigured, or it was given up before it was sent; then
/// nothing was sent. And when it was given up while a document was read.
pub async fn make(
    core: Arc<Core>,
    outgoing: Outgoing,
    stream: bool,
    given_up: impl Future<Output = ()> + Send,
) -> Result<Answer> {
    let shell = core.keybrake().await?.shell();
    let Outgoing { call, context, wait } = outgoing;
    let mut given_up = std::pin::pin!(given_up);
    match shell.open_unless(call, context, wait, given_up.as_mut()).await? {
        client::Opened::Stream(reply) if stream => {
            let head = Reply {
                status: reply.status(),
                headers: reply.headers().to_vec(),
                body: Bytes::new(),
            };
            let mut answer = Answer::new("stream", Some(head), reply.record());
            answer.stream = Some(Arc::new(Body::new(*reply)));
            Ok(answer)
        }
        opened => ended(opened.whole(given_up).await?),
    }
}

/// A refusal that the host gives without asking the ledger (a handle that was closed), in the shape of the vendor that
/// the URL names; `None` when it names none.
///
/// # Errors
/// When there is no such code.
pub fn refused(url: &str, code: &str, message: &str) -> Result<Option<Answer>> {
    let Ok(vendor) = vendors::by_url(url) else {
        return Ok(None);
    };
    let code: Code = serde_json::from_value(Value::from(code))
        .map_err(|e| Error::config(format!("no code {code:?}")).because(e))?;
    let denial = Denial {
        vendor: Some(vendor.name().to_owned()),
        ..Denial::new(code, message)
    };
    let reply = vendor.refusal(&denial, denial.code.http_status(403), SystemClock.now_ms());
    Ok(Some(Answer {
        kind: "denied",
        status: reply.status,
        headers: reply.headers,
        body: reply.body,
        record: json!({
            "call_id": "", "verdict": "denied", "vendor": vendor.name(), "operation": "", "run": null,
            "cost_micros": 0, "held_micros": 0, "state": null, "replayed": false, "tightest": null,
        })
        .to_string(),
        denial: Some(json!(denial).to_string()),
        reason: None,
        never_sent: true,
        stream: None,
    }))
}

pub(crate) fn ended(answer: client::Answer) -> Result<Answer> {
    Ok(match answer {
        client::Answer::Reply { reply, record } => Answer::new("reply", Some(reply), &record),
        client::Answer::Denied {
            denial,
            reply,
            record,
        } => {
            let denial = serde_json::to_string(&denial)
                .map_err(|e| Error::config("a denial without a text").because(e))?;
            Answer {
                denial: Some(denial),
                ..Answer::new("denied", Some(reply), &record)
            }
        }
        client::Answer::Lost {
            reason,
            never_sent,
            record,
            ..
        } => Answer {
            reason: Some(reason),
            never_sent,
            ..Answer::new("lost", None, &record)
        },
    })
}

impl Answer {
    fn new(kind: &'static str, reply: Option<Reply>, record: &CallRecord) -> Self {
        let reply = reply.unwrap_or(Reply {
            status: 0,
            headers: Vec::new(),
            body: Bytes::new(),
        });
        Self {
            kind,
            status: reply.status,
            headers: reply.headers,
            body: reply.body,
            record: record_json(record),
            denial: None,
            reason: None,
            never_sent: false,
            stream: None,
        }
    }
}

/// What a host may know of a call.
#[derive(Serialize)]
struct Note<'a> {
    call_id: &'a str,
    verdict: &'a str,
    vendor: Option<&'a str>,
    operation: &'a str,
    run: Option<&'a str>,
    cost_micros: i64,
    held_micros: i64,
    state: Option<State>,
    replayed: bool,
    tightest: Option<&'a BudgetView>,
}

pub(crate) fn record_json(record: &CallRecord) -> String {
    let note = Note {
        call_id: &record.call_id,
        verdict: &record.verdict,
        vendor: record.vendor.as_deref(),
        operation: &record.operation,
        run: record.run.as_deref(),
        cost_micros: record.cost.micros(),
        held_micros: record.held.micros(),
        state: record.state,
        replayed: record.replayed,
        tightest: record.tightest.as_ref(),
    };
    // It cannot fail: every field is a text, a number, or a struct of them.
    serde_json::to_string(&note).unwrap_or_default()
}
