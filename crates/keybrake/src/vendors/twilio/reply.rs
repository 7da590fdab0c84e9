//! Replies that we make or keep: a denial in the shape Twilio's SDKs expect, and a reply that may be recorded.

use serde_json::json;

use crate::policy::Denial;
use crate::vendors::{self, Reply};

/// Not one of Twilio's codes, which have five digits and end below 90000.
const CODE: u32 = 90_001;

/// A denial as Twilio's SDKs read an error. Of an error's members they keep `details` whole, so ours is there.
pub(super) fn refusal(denial: &Denial, status: u16, now_ms: i64) -> Reply {
    let body = json!({
        "code": CODE,
        "message": denial.message,
        "more_info": "",
        "status": status,
        "details": { "keybrake": denial },
    });
    vendors::reply::denied(denial, status, now_ms, &body)
}

/// Headers of a recorded reply. All others are left out.
const KEPT_HEADERS: [&str; 2] = ["content-type", "twilio-request-id"];

/// Members of a reply that open something: they are never recorded.
const SECRETS: [&str; 4] = ["auth_token", "secret", "password", "token"];

/// A reply as it may be recorded. A body that is not JSON is dropped.
pub(super) fn strip(reply: &Reply) -> Reply {
    vendors::reply::stripped(reply, &KEPT_HEADERS, &SECRETS)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::policy::Code;

    #[test]
    fn a_denial_has_twilios_shape() {
        let denial = Denial::new(Code::CapExceeded, "over the cap");
        let reply = refusal(&denial, 403, 0);
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(body.get("code"), Some(&json!(CODE)));
        assert_eq!(body.get("status"), Some(&json!(403)));
        assert_eq!(
            body.pointer("/details/keybrake/code"),
            Some(&json!("cap_exceeded"))
        );
        assert_eq!(reply.header("x-keybrake-cap-hit"), Some("true"));
    }

    #[test]
    fn secrets_are_not_recorded() {
        let reply = Reply {
            status: 201,
            headers: vec![
                ("Set-Cookie".into(), "x".into()),
                ("Content-Type".into(), "application/json".into()),
            ],
            body: br#"{"sid": "SM1", "auth_token": "s3cret", "a": [{"secret": "s3cret"}]}"#
                .as_slice()
                .into(),
        };
        let kept = strip(&reply);
        assert_eq!(kept.headers.len(), 1);
        assert_eq!(kept.body, r#"{"a":[{}],"sid":"SM1"}"#);
        assert!(
            strip(&Reply {
                body: "s3cret".into(),
                ..reply
            })
            .body
            .is_empty()
        );
    }
}
