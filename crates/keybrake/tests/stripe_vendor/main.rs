//! The rest of what a vendor answers, by subject.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

mod inquiries;
mod replies;
mod requests;

use keybrake::request::Call;
use keybrake::vendors::{Recognised, Reply, Vendor, vendor};
use serde_json::Value;

fn stripe() -> &'static dyn Vendor {
    vendor("stripe").unwrap()
}

fn call(method: &str, path: &str, body: &str) -> Call {
    let form = "application/x-www-form-urlencoded";
    Call {
        method: method.to_owned(),
        url: format!("https://api.stripe.com{path}"),
        headers: match method {
            "POST" => vec![("Content-Type".to_owned(), form.to_owned())],
            _ => Vec::new(),
        },
        body: body.to_owned().into(),
    }
}

fn recognise(method: &str, path: &str, body: &str) -> Recognised {
    stripe().recognise(&call(method, path, body)).unwrap()
}

fn reply(status: u16, body: &Value) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: body.to_string().into(),
    }
}
