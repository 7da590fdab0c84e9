//! Twilio's errors: `{code, message, more_info, status}`.

use serde_json::{Value, json};

use crate::vendors::Answer;

pub(super) fn error(status: u16, code: u32, message: &str) -> Answer {
    (status, body(status, code, message))
}

fn body(status: u16, code: u32, message: &str) -> Value {
    json!({
        "code": code,
        "message": message,
        "more_info": format!("https://www.twilio.com/docs/errors/{code}"),
        "status": status,
    })
}

pub(super) fn not_found(path: &str) -> Answer {
    error(
        404,
        20404,
        &format!("The requested resource {path} was not found"),
    )
}

/// An error that is the server's.
pub(super) fn of_status(status: u16) -> Value {
    match status {
        401 => body(status, 20003, "Authenticate"),
        429 => body(status, 20429, "Too Many Requests"),
        500.. => body(status, 20500, "Internal Server Error"),
        _ => body(status, 20001, "The simulator was asked for this answer."),
    }
}
