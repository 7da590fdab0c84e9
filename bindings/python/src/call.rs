//! How a governed call ended, as Python sees it.

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use keybrake::Result;
use keybrake_binding::call::{self, Outgoing};
use keybrake_binding::{Body, Core};
use pyo3::prelude::{Bound, PyResult, Python};
use pyo3::types::{PyBytes, PyDict, PyDictMethods};
use pyo3::{pyclass, pymethods};

use crate::stream::{Reading, Stream};

/// A call as Python hands it over.
pub(crate) fn outgoing(
    (method, url, headers, body): (&str, &str, Vec<(String, String)>, &[u8]),
    context: &str,
    wait_ms: u64,
) -> Result<Outgoing> {
    let parts = (method, url.to_owned(), headers, Bytes::copy_from_slice(body));
    Outgoing::new(parts, context, Duration::from_millis(wait_ms))
}

/// Makes the call and reads its reply whole.
pub(crate) async fn send(core: Arc<Core>, outgoing: Outgoing) -> Result<Answer> {
    Ok(Answer::new(
        call::make(core, outgoing, false, pending()).await?,
        None,
    ))
}

/// Makes the call; the body of a document is left to be read.
pub(crate) async fn open(core: Arc<Core>, reading: Reading, outgoing: Outgoing) -> Result<Answer> {
    Ok(Answer::new(
        call::make(core, outgoing, true, pending()).await?,
        Some(reading),
    ))
}

/// How a governed call ended.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Answer {
    ended: call::Answer,
    stream: Mutex<Option<Stream>>,
}

impl Answer {
    fn new(mut ended: call::Answer, reading: Option<Reading>) -> Self {
        let body: Option<Arc<Body>> = ended.stream.take();
        Self {
            ended,
            stream: Mutex::new(
                body.zip(reading)
                    .map(|(body, reading)| Stream::new(body, reading)),
            ),
        }
    }
}

#[pymethods]
impl Answer {
    #[getter]
    const fn kind(&self) -> &'static str {
        self.ended.kind
    }

    #[getter]
    const fn status(&self) -> u16 {
        self.ended.status
    }

    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let headers = PyDict::new(py);
        for (name, value) in &self.ended.headers {
            headers.set_item(name.to_ascii_lowercase(), value)?;
        }
        Ok(headers)
    }

    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.ended.body)
    }

    #[getter]
    fn record(&self) -> &str {
        &self.ended.record
    }

    #[getter]
    fn denial(&self) -> Option<&str> {
        self.ended.denial.as_deref()
    }

    #[getter]
    fn reason(&self) -> Option<&str> {
        self.ended.reason.as_deref()
    }

    #[getter]
    const fn never_sent(&self) -> bool {
        self.ended.never_sent
    }

    fn take_stream(&self) -> Option<Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
