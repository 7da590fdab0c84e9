//! The vendor simulator inside this process, for `keybrake.testing`.

use std::sync::{Mutex, PoisonError};

use keybrake::Error;
use keybrake_testkit as testkit;
use pyo3::prelude::{PyResult, Python};
use pyo3::{pyclass, pymethods};

use crate::errors::{guarded, to_python};

/// A running simulator of a vendor on 127.0.0.1. It has a thread of its own.
#[pyclass(frozen, module = "keybrake._keybrake")]
pub(crate) struct Simulator {
    url: String,
    vendor: testkit::SimulatedVendor,
    running: Mutex<Option<testkit::Simulator>>,
}

#[pymethods]
impl Simulator {
    /// Starts one of `stripe`, `twilio` or `resend`; port 0 takes a free one.
    #[new]
    fn new(py: Python<'_>, vendor: &str, port: u16) -> PyResult<Self> {
        guarded(py, || {
            let vendor = vendor
                .parse::<testkit::SimulatedVendor>()
                .map_err(|e| to_python(py, &Error::config(e)))?;
            let options = testkit::SimulatorOptions {
                vendor,
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
                vendor,
                running: Mutex::new(Some(running)),
            })
        })
    }

    #[getter]
    fn secret(&self) -> &'static str {
        self.vendor.test_secret()
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
