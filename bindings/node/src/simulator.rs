//! The vendor simulator inside this process, for `keybrake/testing`.

use std::sync::{Mutex, PoisonError};

use keybrake::Error;
use keybrake_testkit as testkit;
use napi_derive::napi;

use crate::errors::guarded;

/// A running simulator on 127.0.0.1. It has a thread of its own.
#[napi]
pub struct Simulator {
    url: String,
    running: Mutex<Option<testkit::Simulator>>,
}

#[napi]
impl Simulator {
    /// Starts one; port 0 takes a free one.
    #[napi(constructor)]
    pub fn new(port: u16) -> napi::Result<Self> {
        guarded(|| {
            let options = testkit::SimulatorOptions {
                port,
                ..testkit::SimulatorOptions::default()
            };
            let running = testkit::Simulator::start(options).map_err(|e| {
                Error::config(format!("the simulator could not start on port {port}")).because(e)
            })?;
            Ok(Self {
                url: running.url(),
                running: Mutex::new(Some(running)),
            })
        })
    }

    /// Where it listens.
    #[napi(getter)]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops it; nothing listens on its port afterwards. Safe to repeat.
    #[napi]
    pub fn stop(&self) -> napi::Result<()> {
        guarded(|| {
            drop(self.running.lock().unwrap_or_else(PoisonError::into_inner).take());
            Ok(())
        })
    }
}
