//! The engine of one process: a runtime with one worker, the ledger, and the client that sends.

use std::sync::{Arc, Mutex, PoisonError};

use keybrake::{Error, Result};
use keybrake_binding::core::{CLOSING, until_closed};
use keybrake_binding::{Core, Settings, ask};
use pyo3::prelude::{Py, PyAny, PyErr, PyResult, Python};
use pyo3::{pyclass, pymethods};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::call::{self, Answer};
use crate::errors::{guarded, to_python};
use crate::stream::Reading;
use crate::wait::block;

/// The engine of one process. Opened on first use.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Engine {
    pid: u32,
    core: Arc<Core>,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    closing: watch::Sender<bool>,
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, settings: &str) -> PyResult<Self> {
        let settings = Settings::parse(settings).map_err(|error| to_python(py, &error))?;
        Self::start(py, Arc::new(Core::new(Arc::new(settings))))
    }

    fn in_this_process(&self, py: Python<'_>) -> PyResult<Self> {
        if self.core.settings().in_memory() {
            let error = Error::ledger(
                "a memory ledger belongs to the process that opened it; after a fork each process would have a cap of \
                 its own. Use sqlite: instead",
            );
            return Err(to_python(py, &error));
        }
        Self::start(py, Arc::new(Core::new(Arc::clone(self.core.settings()))))
    }

    fn open(&self, py: Python<'_>) -> PyResult<()> {
        let core = Arc::clone(&self.core);
        self.wait(py, async move { core.keybrake().await.map(|_| ()) })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one HTTP request")]
    fn send(
        &self,
        py: Python<'_>,
        method: &str,
        url: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
        context: &str,
        wait_ms: u64,
    ) -> PyResult<Answer> {
        let outgoing =
            call::outgoing((method, url, headers, body), context, wait_ms).map_err(|e| to_python(py, &e))?;
        self.wait(py, call::send(Arc::clone(&self.core), outgoing))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one HTTP request")]
    fn start_send(
        &self,
        py: Python<'_>,
        method: &str,
        url: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
        context: &str,
        wait_ms: u64,
        done: Py<PyAny>,
    ) -> PyResult<Task> {
        let outgoing =
            call::outgoing((method, url, headers, body), context, wait_ms).map_err(|e| to_python(py, &e))?;
        Ok(self.start_work(
            call::send(Arc::clone(&self.core), outgoing),
            done,
            |py, answer| Ok(Py::new(py, answer)?.into_any()),
        ))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one HTTP request")]
    fn open_stream(
        &self,
        py: Python<'_>,
        method: &str,
        url: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
        context: &str,
        wait_ms: u64,
    ) -> PyResult<Answer> {
        let outgoing =
            call::outgoing((method, url, headers, body), context, wait_ms).map_err(|e| to_python(py, &e))?;
        self.wait(py, call::open(Arc::clone(&self.core), self.reading(), outgoing))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one HTTP request")]
    fn start_open_stream(
        &self,
        py: Python<'_>,
        method: &str,
        url: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
        context: &str,
        wait_ms: u64,
        done: Py<PyAny>,
    ) -> PyResult<Task> {
        let outgoing =
            call::outgoing((method, url, headers, body), context, wait_ms).map_err(|e| to_python(py, &e))?;
        Ok(self.start_work(
            call::open(Arc::clone(&self.core), self.reading(), outgoing),
            done,
            |py, answer| Ok(Py::new(py, answer)?.into_any()),
        ))
    }

    fn ask(&self, py: Python<'_>, what: &str, arguments: &str) -> PyResult<String> {
        let (core, what, arguments) = (Arc::clone(&self.core), what.to_owned(), arguments.to_owned());
        self.wait(py, async move { ask::answer(&core, &what, &arguments).await })
    }

    fn start_ask(&self, what: &str, arguments: &str, done: Py<PyAny>) -> Task {
        let (core, what, arguments) = (Arc::clone(&self.core), what.to_owned(), arguments.to_owned());
        let work = async move { ask::answer(&core, &what, &arguments).await };
        self.start_work(work, done, |py, text| {
            Ok(pyo3::types::PyString::new(py, &text).unbind().into_any())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        guarded(py, || {
            let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(runtime) = runtime else { return Ok(()) };
            self.closing.send_replace(true);
            // Without the interpreter's lock: the worker may be about to call back into Python.
            let flushed = py.detach(|| {
                let flushed = runtime.block_on(self.core.ended(&self.closing));
                runtime.shutdown_timeout(CLOSING);
                flushed
            });
            flushed.map_err(|error| to_python(py, &error))
        })
    }
}

impl Engine {
    fn start(py: Python<'_>, core: Arc<Core>) -> PyResult<Self> {
        guarded(py, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("keybrake")
                .enable_all()
                .build()
                .map_err(|e| {
                    to_python(
                        py,
                        &Error::config("no thread could be started for Keybrake").because(e),
                    )
                })?;
            Ok(Self {
                pid: std::process::id(),
                core,
                handle: runtime.handle().clone(),
                runtime: Mutex::new(Some(runtime)),
                closing: watch::Sender::new(false),
            })
        })
    }

    fn wait<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> PyResult<T> {
        guarded(py, || block(py, &self.handle, &self.closing.subscribe(), work))
    }

    /// Starts work whose end is told to `done(value, error)`, on the worker's thread. Nothing is told after
    /// [`Task::cancel`], nor when the interpreter is going.
    fn start_work<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
        done: Py<PyAny>,
        convert: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> Task {
        Task::start(&self.handle, &self.closing, work, done, convert)
    }

    /// What reading the body of a reply needs of the engine.
    fn reading(&self) -> Reading {
        Reading {
            pid: self.pid,
            handle: self.handle.clone(),
            closing: self.closing.clone(),
        }
    }
}

impl Task {
    /// As [`Engine::start_work`].
    pub(crate) fn start<T: Send + 'static>(
        handle: &Handle,
        closing: &watch::Sender<bool>,
        work: impl Future<Output = Result<T>> + Send + 'static,
        done: Py<PyAny>,
        convert: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    ) -> Self {
        let work = until_closed(closing.subscribe(), work);
        let task = handle.spawn(async move {
            let ended = work.await;
            Python::try_attach(|py| {
                let value = match ended {
                    Ok(value) => convert(py, value),
                    Err(error) => Err(to_python(py, &error)),
                };
                if let Err(error) = tell(py, &done, value) {
                    error.write_unraisable(py, None);
                }
            });
        });
        Self {
            abort: task.abort_handle(),
        }
    }
}

fn tell(py: Python<'_>, done: &Py<PyAny>, value: PyResult<Py<PyAny>>) -> Result<(), PyErr> {
    match value {
        Ok(value) => done.call1(py, (value, py.None())),
        Err(error) => done.call1(py, (py.None(), error.into_value(py))),
    }
    .map(|_| ())
}

impl Drop for Engine {
    fn drop(&mut self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.pid == std::process::id() {
            self.closing.send_replace(true);
            if let Some(runtime) = runtime {
                runtime.shutdown_background();
            }
        } else {
            // A child after a fork: the threads to wait for are the parent's, and so is the ledger's file lock.
            Box::leak(Box::new((runtime, Arc::clone(&self.core))));
        }
    }
}

/// Work under way.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Task {
    abort: AbortHandle,
}

#[pymethods]
impl Task {
    fn cancel(&self) {
        self.abort.abort();
    }
}
