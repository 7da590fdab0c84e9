//! The body of a reply that is handed on as it arrives.

use std::sync::Arc;

use keybrake::{Error, ErrorKind, Result};
use keybrake_binding::Body;
use pyo3::prelude::{Bound, Py, PyAny, PyResult, Python};
use pyo3::types::PyBytes;
use pyo3::{pyclass, pymethods};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::engine::Task;
use crate::errors::{guarded, to_python};
use crate::wait::block;

/// What reading needs of the engine that the call was made with.
pub(crate) struct Reading {
    pub(crate) pid: u32,
    pub(crate) handle: Handle,
    pub(crate) closing: watch::Sender<bool>,
}

/// The body of a reply that is handed on as it arrives.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Stream {
    body: Arc<Body>,
    reading: Reading,
}

impl Stream {
    pub(crate) const fn new(body: Arc<Body>, reading: Reading) -> Self {
        Self { body, reading }
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
        self.body.shown().record
    }

    #[getter]
    fn reason(&self) -> Option<String> {
        self.body.shown().reason
    }

    #[getter]
    fn denial(&self) -> Option<String> {
        self.body.shown().denial
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
