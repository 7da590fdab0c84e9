//! Replies that we make or keep: a denial in the shape Resend's SDKs expect, and a reply that may be recorded.

use serde_json::json;

use crate::policy::Denial;
use crate::vendors::{self, Reply};

/// A denial as Resend's SDKs read an error. resend-node hands the body on as it is, resend-python keeps `name`, `message`
/// and the headers.
pub(super) fn refusal(denial: &Denial, status: u16, now_ms: i64) -> Reply {
    let body = json!({
        "statusCode": status,
        "name": denial.code.as_str(),
        "message": denial.message,
        "keybrake": denial,
    });
    vendors::reply::denied(denial, status, now_ms, &body)
}

/// Headers of a recorded reply. All others are left out.
const KEPT_HEADERS: [&str; 2] = ["content-type", "x-request-id"];

/// Members of a reply that open something: they are never recorded.
const SECRETS: [&str; 3] = ["token", "secret", "signing_secret"];

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
    fn a_denial_has_resends_shape() {
        let denial = Denial::new(Code::EndpointNotAllowed, "not allowed");
        let reply = refusal(&denial, 403, 0);
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(body.get("statusCode"), Some(&json!(403)));
        assert_eq!(body.get("name"), Some(&json!("endpoint_not_allowed")));
        assert_eq!(
            body.pointer("/keybrake/code"),
            Some(&json!("endpoint_not_allowed"))
        );
        assert_eq!(reply.header("x-keybrake-verdict"), Some("endpoint_not_allowed"));
    }

    #[test]
    fn secrets_are_not_recorded() {
        let reply = Reply {
            status: 200,
            headers: vec![
                ("set-cookie".into(), "x".into()),
                ("content-type".into(), "application/json".into()),
            ],
            body: br#"{"id": "wh_1", "signing_secret": "whsec_x"}"#.as_slice().into(),
        };
        let kept = strip(&reply);
        assert_eq!(
            (kept.headers.len(), kept.body.as_ref()),
            (1, br#"{"id":"wh_1"}"#.as_slice())
        );
    }
}
