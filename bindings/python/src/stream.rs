//! The body of a reply that is handed on as it arrives.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use keybrake::client::{ReplyStream, broken_off};
use keybrake::{Error, ErrorKind, Result};
use pyo3::prelude::{Bound, Py, PyAny, PyResult, Python};
use pyo3::types::PyBytes;
use pyo3::{pyclass, pymethods};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::call::record_json;
use crate::engine::Task;
use crate::errors::{guarded, to_python};
use crate::wait::block;

/// What reading needs of the engine that the call was made with.
pub(crate) struct Reading {
    pub(crate) pid: u32,
    pub(crate) handle: Handle,
    pub(crate) closing: watch::Sender<bool>,
}

/// What Python may know of it between two pieces.
struct Shown {
    record: String,
    reason: Option<String>,
    denial: Option<String>,
}

struct Body {
    /// `None` once it is over.
    reply: tokio::sync::Mutex<Option<ReplyStream>>,
    shown: Mutex<Shown>,
}

/// The body of a reply that is handed on as it arrives.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Stream {
    body: Arc<Body>,
    reading: Reading,
}

impl Stream {
    pub(crate) fn new(reply: ReplyStream, reading: Reading) -> Self {
        let shown = Shown {
            record: record_json(reply.record()),
            reason: None,
            denial: None,
        };
        let body = Body {
            reply: tokio::sync::Mutex::new(Some(reply)),
            shown: Mutex::new(shown),
        };
        Self {
            body: Arc::new(body),
            reading,
        }
    }

    /// The body, in the process that the call was made in.
    fn body(&self) -> Result<Arc<Body>> {
        if self.reading.pid == std::process::id() {
            return Ok(Arc::clone(&self.body));
        }
        Err(Error::new(
            ErrorKind::Config,
            "a reply is read in the process that asked for it, not in one that was forked from it",
        ))
    }
}

#[pymethods]
impl Stream {
    fn read<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let piece = guarded(py, || {
            let body = self.body().map_err(|error| to_python(py, &error))?;
            let closing = self.reading.closing.subscribe();
            block(
                py,
                &self.reading.handle,
                &closing,
                async move { body.next().await },
            )
        })?;
        Ok(piece.map(|piece| PyBytes::new(py, &piece)))
    }

    fn start_read(&self, py: Python<'_>, done: Py<PyAny>) -> PyResult<Task> {
        let body = self.body().map_err(|error| to_python(py, &error))?;
        let reading = &self.reading;
        let work = async move { body.next().await };
        Ok(Task::start(
            &reading.handle,
            &reading.closing,
            work,
            done,
            |py, piece| {
                Ok(match piece {
                    Some(piece) => PyBytes::new(py, &piece).into_any().unbind(),
                    None => py.None(),
                })
            },
        ))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        guarded(py, || {
            let body = self.body().map_err(|error| to_python(py, &error))?;
            let closing = self.reading.closing.subscribe();
            block(
                py,
                &self.reading.handle,
                &closing,
                async move { body.close().await },
            )
        })
    }

    fn start_close(&self, py: Python<'_>, done: Py<PyAny>) -> PyResult<Task> {
        let body = self.body().map_err(|error| to_python(py, &error))?;
        let reading = &self.reading;
        let work = async move { body.close().await };
        Ok(Task::start(
            &reading.handle,
            &reading.closing,
            work,
            done,
            |py, ()| Ok(py.None()),
        ))
    }

    #[getter]
    fn record(&self) -> String {
        self.body.shown().record.clone()
    }

    #[getter]
    fn reason(&self) -> Option<String> {
        self.body.shown().reason.clone()
    }

    #[getter]
    fn denial(&self) -> Option<String> {
        self.body.shown().denial.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.reading.pid != std::process::id() {
            // A child after a fork: the runtime's threads and the connection are the parent's.
            Box::leak(Box::new(Arc::clone(&self.body)));
        }
    }
}

impl Body {
    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece; `None` at the end, and when it broke off, which `reason` then tells.
    async fn next(&self) -> Result<Option<Bytes>> {
        let mut reply = self.reply.lock().await;
        let Some(stream) = reply.as_mut() else {
            return Ok(None);
        };
        let piece = stream.next().await;
        self.shown().record = record_json(stream.record());
        match piece {
            Some(Ok(piece)) => return Ok(Some(piece)),
            Some(Err(error)) => match broken_off(&error) {
                Some(broken) => {
                    let denial = broken.denial.as_ref().map(serde_json::to_string).transpose();
                    let mut shown = self.shown();
                    shown.reason = Some(broken.reason.clone());
                    shown.denial = denial.ok().flatten();
                }
                None => return Err(error),
            },
            None => {}
        }
        *reply = None;
        Ok(None)
    }

    async fn close(&self) -> Result<()> {
        let mut reply = self.reply.lock().await;
        let Some(mut stream) = reply.take() else {
            return Ok(());
        };
        stream.close().await?;
        self.shown().record = record_json(stream.record());
        Ok(())
    }
}
