//! Client secrets taken out of the reply to a call that moved nothing.
//!
//! Stripe names the PaymentIntent of a declined card inside the error, client secret included. The books have let go of
//! that call, and whoever has the secret could confirm the intent from a browser, without any call that is counted.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::vendors::{self, Reply};

/// What stands where a secret was inside a text.
const GONE: &str = "redacted";
/// Shorter secrets are not looked for inside other texts: they could be any word.
const LEAST_SECRET: usize = 8;

/// The reply without client secrets: members of that name are null, and their values are taken out of every other
/// text, such as a `next_action`'s URL. A body that could hold one and cannot be read is replaced.
pub(super) fn redacted(mut reply: Reply) -> Reply {
    if !vendors::reply::may_spell(&reply.body, &["secret"]) {
        return reply;
    }
    let mut body = serde_json::from_slice::<Value>(&reply.body).unwrap_or_else(|_| unreadable());
    let mut secrets = Vec::new();
    collect(&body, &mut secrets);
    clear(&mut body, &secrets);
    reply.body = Bytes::from(body.to_string());
    // What was read is plain JSON, and so is what we wrote.
    let length = reply.body.len().to_string();
    reply.headers.retain(|(name, _)| {
        !["content-encoding", "content-md5", "digest", "content-digest"]
            .iter()
            .any(|gone| gone.eq_ignore_ascii_case(name))
    });
    for (_, value) in reply
        .headers
        .iter_mut()
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
    {
        value.clone_from(&length);
    }
    reply
}

/// An error that every SDK of Stripe's reads, in place of one that cannot be.
fn unreadable() -> Value {
    json!({"error": {
        "type": "api_error",
        "message": "The call did not take effect. The body of this reply could not be read, so Keybrake keeps it back: it may hold a client secret.",
    }})
}

fn is_secret(name: &str) -> bool {
    name.ends_with("client_secret")
}

fn collect(value: &Value, secrets: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(secret) if is_secret(name) && secret.len() >= LEAST_SECRET => {
                        secrets.push(secret.clone());
                    }
                    _ => collect(member, secrets),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, secrets)),
        _ => {}
    }
}

/// Takes the secrets out of a document. `serde_json` bounds its depth at 128.
fn clear(value: &mut Value, secrets: &[String]) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                if is_secret(name) {
                    *member = Value::Null;
                } else {
                    clear(member, secrets);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| clear(item, secrets)),
        Value::String(text)
            if text.contains("secret") || secrets.iter().any(|secret| text.contains(secret)) =>
        {
            for secret in secrets {
                *text = text.replace(secret, GONE);
            }
            *text = without_secret_words(text);
        }
        _ => {}
    }
}

/// A text without words like `pi_3Q_secret_x`, wherever they stand in it.
fn without_secret_words(text: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(in_word) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c| !in_word(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        out.push_str(before);
        let secret = word
            .split_once("_secret_")
            .is_some_and(|(_, tail)| !tail.is_empty());
        out.push_str(if secret { GONE } else { word });
        rest = after;
    }
    out.push_str(rest);
    out
}
