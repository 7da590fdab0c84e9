//! One governed call: what Python hands over, and what it gets back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use keybrake::brake::{CallContext, CallRecord, KeyOrigin};
use keybrake::client;
use keybrake::request::Call;
use keybrake::vendors::Reply;
use keybrake::{Error, Result};
use pyo3::prelude::{Bound, PyResult, Python};
use pyo3::types::{PyBytes, PyDict, PyDictMethods};
use pyo3::{pyclass, pymethods};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::engine::Core;
use crate::stream::{Reading, Stream};

/// A call as the SDK made it.
pub(crate) struct Outgoing {
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

impl Outgoing {
    pub(crate) fn new(
        (method, url, headers, body): (&str, &str, Vec<(String, String)>, &[u8]),
        context: &str,
        wait_ms: u64,
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
                url: url.to_owned(),
                headers,
                body: Bytes::copy_from_slice(body),
            },
            context: CallContext {
                run: given.run,
                step: given.step,
                item: given.item,
                key_origin,
                context: given.context,
            },
            wait: Duration::from_millis(wait_ms),
        })
    }
}

/// Makes the call and reads its reply whole.
pub(crate) async fn send(core: Arc<Core>, outgoing: Outgoing) -> Result<Answer> {
    let shell = core.keybrake().await?.shell();
    ended(shell.send(outgoing.call, outgoing.context, outgoing.wait).await?)
}

/// Makes the call; the body of a document is left to be read.
pub(crate) async fn open(core: Arc<Core>, reading: Reading, outgoing: Outgoing) -> Result<Answer> {
    let shell = core.keybrake().await?.shell();
    match shell.open(outgoing.call, outgoing.context, outgoing.wait).await? {
        client::Opened::Ended(answer) => ended(*answer),
        client::Opened::Stream(stream) => {
            let head = Reply {
                status: stream.status(),
                headers: stream.headers().to_vec(),
                body: Bytes::new(),
            };
            let mut answer = Answer::new("stream", Some(head), stream.record());
            answer.stream = Mutex::new(Some(Stream::new(*stream, reading)));
            Ok(answer)
        }
    }
}

fn ended(answer: client::Answer) -> Result<Answer> {
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

/// How a governed call ended.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Answer {
    kind: &'static str,
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    record: String,
    denial: Option<String>,
    reason: Option<String>,
    never_sent: bool,
    stream: Mutex<Option<Stream>>,
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
            stream: Mutex::new(None),
        }
    }
}

#[pymethods]
impl Answer {
    #[getter]
    const fn kind(&self) -> &'static str {
        self.kind
    }

    #[getter]
    const fn status(&self) -> u16 {
        self.status
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyDict::new(py);
        for (name, value) in &self.headers {
            headers.set_item(name.to_ascii_lowercase(), value)?;
        }
        Ok(headers)
    }

    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.body)
    }

    #[getter]
    fn record(&self) -> &str {
        &self.record
    }

    #[getter]
    fn denial(&self) -> Option<&str> {
        self.denial.as_deref()
    }

    #[getter]
    fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    #[getter]
    const fn never_sent(&self) -> bool {
        self.never_sent
    }

    fn take_stream(&self) -> Option<Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(crate) fn record_json(record: &CallRecord) -> String {
    json!({
        "call_id": record.call_id,
        "verdict": record.verdict,
        "vendor": record.vendor,
        "operation": record.operation,
        "run": record.run,
        "cost_micros": record.cost.micros(),
        "held_micros": record.held.micros(),
        "state": record.state,
        "replayed": record.replayed,
        "tightest": record.tightest,
    })
    .to_string()
}
