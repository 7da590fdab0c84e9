//! The vendor simulator inside this process, for `keybrake/testing`.

use std::sync::{Mutex, PoisonError};

use keybrake::Error;
use keybrake_testkit as testkit;
use napi_derive::napi;

use crate::errors::guarded;

/// A running simulator of a vendor on 127.0.0.1. It has a thread of its own.
#[napi]
pub struct Simulator {
    url: String,
    vendor: testkit::SimulatedVendor,
    running: Mutex<Option<testkit::Simulator>>,
}

#[napi]
impl Simulator {
    /// Starts one of `stripe`, `twilio` or `resend`; port 0 takes a free one.
    #[napi(constructor)]
    pub fn new(vendor: String, port: u16) -> napi::Result<Self> {
        guarded(|| {
            let vendor = vendor
                .parse::<testkit::SimulatedVendor>()
                .map_err(Error::config)?;
            let options = testkit::SimulatorOptions {
                vendor,
                port,
                ..testkit::SimulatorOptions::default()
            };
            let running = testkit::Simulator::start(options).map_err(|e| {
                Error::config(format!("the simulator could not start on port {port}")).because(e)
            })?;
            Ok(Self {
                url: running.url(),
                vendor,
                running: Mutex::new(Some(running)),
            })
        })
    }

    /// The secret to use with it.
    #[napi(getter)]
    pub fn secret(&self) -> &'static str {
        self.vendor.test_secret()
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
