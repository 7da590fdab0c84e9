//! Waiting for the engine on a thread of Python's, with an eye on signals.

use std::future::Future;
use std::time::Duration;

use keybrake::Result;
use keybrake_binding::core::closed;
use keybrake_binding::trouble::Guarded;
use pyo3::prelude::{PyErr, PyResult, Python};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::errors::to_python;

/// How often a waiting thread looks whether Ctrl-C was pressed.
const SIGNALS: Duration = Duration::from_millis(50);

/// Waits on this thread without the interpreter's lock. A signal whose handler raises drops the future: the
/// request is aborted, and what it may have done stays held as unknown.
pub(crate) fn block<T: Send + 'static>(
    py: Python<'_>,
    runtime: &Handle,
    closing: &watch::Receiver<bool>,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> PyResult<T> {
    let mut closing = closing.clone();
    let ended: std::result::Result<Result<T>, PyErr> = py.detach(|| {
        runtime.block_on(async move {
            let mut work = Guarded::new(work);
            loop {
                tokio::select! {
                    biased;
                    _ = closing.wait_for(|closing| *closing) => return Ok(Err(closed())),
                    ended = &mut work => return Ok(ended),
                    () = tokio::time::sleep(SIGNALS) => signals()?,
                }
            }
        })
    });
    ended?.map_err(|error| to_python(py, &error))
}

fn signals() -> PyResult<()> {
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the path alone is not general enough"
    )]
    Python::attach(|py| py.check_signals())
}
