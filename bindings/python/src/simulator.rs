//! The vendor simulator inside this process, for `keybrake.testing`.

use std::sync::{Mutex, PoisonError};

use keybrake::Error;
use keybrake_testkit as testkit;
use pyo3::prelude::{PyResult, Python};
use pyo3::{pyclass, pymethods};

use crate::errors::{guarded, to_python};

/// A running simulator of Stripe on 127.0.0.1. It has a thread of its own.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Simulator {
    url: String,
    running: Mutex<Option<testkit::Simulator>>,
}

#[pymethods]
impl Simulator {
    /// Starts one; port 0 takes a free one.
    #[new]
    fn new(py: Python<'_>, port: u16) -> PyResult<Self> {
        guarded(py, || {
            let options = testkit::SimulatorOptions {
                port,
                ..testkit::SimulatorOptions::default()
            };
            let running = py.detach(|| testkit::Simulator::start(options)).map_err(|e| {
                to_python(
                    py,
                    &Error::config(format!("the simulator could not start on port {port}")).because(e),
                )
            })?;
            Ok(Self {
                url: running.url(),
                running: Mutex::new(Some(running)),
            })
        })
    }

    #[getter]
    fn url(&self) -> &str {
        &self.url
    }

    /// Stops it; nothing listens on its port afterwards. Safe to repeat.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        guarded(py, || {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
            py.detach(|| drop(running));
            Ok(())
        })
    }
}
