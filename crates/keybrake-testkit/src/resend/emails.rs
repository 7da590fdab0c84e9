//! E-mails, batches and broadcasts, and the few reads beside them.

use serde_json::{Map, Value, json};

use super::Resend;
use crate::vendors::{Answer, Desk, SentKind};

/// Recipients of one e-mail.
const MOST_RECIPIENTS: usize = 50;
/// E-mails of one batch.
const MOST_IN_BATCH: usize = 100;

/// An error's body.
pub(super) fn body(status: u16, name: &str, message: &str) -> Value {
    json!({"statusCode": status, "name": name, "message": message})
}

fn error(status: u16, name: &str, message: &str) -> Answer {
    (status, body(status, name, message))
}

fn not_found() -> Answer {
    error(
        404,
        "not_found",
        "The requested endpoint or object does not exist.",
    )
}

impl Resend {
    pub(super) fn route(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer> {
        let asked = desk.asked;
        let segments: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
        match (asked.method, segments.as_slice()) {
            ("POST", ["emails"]) => {
                let email = checked(&document(asked.body)?)?;
                let id = self.send(desk, email);
                Ok((200, json!({"id": id})))
            }
            ("POST", ["emails", "batch"]) => self.batch(desk),
            ("GET", ["emails"]) => Ok((200, self.list("email"))),
            ("GET", ["emails" | "broadcasts", id]) => Ok((200, self.find(id)?.clone())),
            ("PATCH", ["emails", id]) => {
                let change = document(asked.body)?;
                let at = change.get("scheduled_at").cloned();
                self.change(id, "scheduled_at", at.unwrap_or(Value::Null))
            }
            ("POST", ["emails", id, "cancel"]) => {
                if self.find(id)?.get("last_event") != Some(&json!("scheduled")) {
                    return Err(error(
                        422,
                        "validation_error",
                        "Only scheduled e-mails can be cancelled.",
                    ));
                }
                self.change(id, "last_event", json!("canceled"))
            }
            ("POST", ["broadcasts"]) => self.broadcast(desk),
            ("POST", ["broadcasts", id, "send"]) => {
                let from = text(self.find(id)?, "from");
                desk.sent(SentKind::Broadcast, id, Vec::new(), from);
                self.change(id, "status", json!("sent"))
            }
            ("GET", ["broadcasts"]) => Ok((200, self.list("broadcast"))),
            ("GET", ["domains" | "api-keys" | "audiences" | "segments" | "contacts"]) => {
                Ok((200, json!({"object": "list", "has_more": false, "data": []})))
            }
            _ => Err(not_found()),
        }
    }

    /// Sends a checked e-mail; answers its id.
    fn send(&mut self, desk: &mut Desk<'_>, email: Email) -> String {
        let id = uuid(&(desk.fresh)());
        let scheduled = email.fields.contains_key("scheduled_at");
        let mut shown = email.fields;
        shown.insert("object".to_owned(), json!("email"));
        shown.insert("id".to_owned(), json!(id));
        shown.insert("created_at".to_owned(), json!(time(desk.asked.now_ms)));
        shown.insert(
            "last_event".to_owned(),
            json!(if scheduled { "scheduled" } else { "sent" }),
        );
        desk.sent(SentKind::Email, &id, email.to, email.from);
        self.objects.add("", &id, Value::Object(shown));
        id
    }

    /// All or none, unless the request says that those which are right may go.
    fn batch(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer> {
        let Ok(Value::Array(items)) = serde_json::from_slice(desk.asked.body) else {
            return Err(error(
                422,
                "validation_error",
                "The body must be a list of e-mails.",
            ));
        };
        if items.is_empty() || items.len() > MOST_IN_BATCH {
            return Err(error(422, "validation_error", "A batch has 1 to 100 e-mails."));
        }
        let permissive = desk.asked.validation == Some("permissive");
        let (mut good, mut errors) = (Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            match item
                .as_object()
                .ok_or_else(|| invalid("an e-mail"))
                .and_then(checked)
            {
                Ok(email) => good.push(email),
                Err((_, problem)) if permissive => {
                    errors.push(json!({"index": index, "message": problem.get("message")}));
                }
                Err(refused) => return Err(refused),
            }
        }
        let ids: Vec<Value> = good
            .into_iter()
            .map(|email| json!({"id": self.send(desk, email)}))
            .collect();
        let mut answer = json!({"data": ids});
        if let (true, Some(members)) = (permissive, answer.as_object_mut()) {
            members.insert("errors".to_owned(), json!(errors));
        }
        Ok((200, answer))
    }

    fn broadcast(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer> {
        let mut fields = document(desk.asked.body)?;
        for name in ["from", "subject"] {
            if !fields.contains_key(name) {
                return Err(missing(name));
            }
        }
        let id = uuid(&(desk.fresh)());
        let goes = fields.get("send") == Some(&json!(true));
        let from = fields.get("from").and_then(Value::as_str).map(str::to_owned);
        fields.insert("object".to_owned(), json!("broadcast"));
        fields.insert("id".to_owned(), json!(id));
        fields.insert("status".to_owned(), json!(if goes { "sent" } else { "draft" }));
        if goes {
            desk.sent(SentKind::Broadcast, &id, Vec::new(), from);
        }
        self.objects.add("", &id, Value::Object(fields));
        Ok((200, json!({"id": id})))
    }

    fn find(&self, id: &str) -> Result<&Value, Answer> {
        self.objects.get(id).ok_or_else(not_found)
    }

    fn change(&mut self, id: &str, name: &str, to: Value) -> Result<Answer, Answer> {
        let value = self.objects.get_mut(id).ok_or_else(not_found)?;
        if let Some(members) = value.as_object_mut() {
            members.insert(name.to_owned(), to);
        }
        Ok((200, json!({"object": value.get("object"), "id": id})))
    }

    /// Newest first.
    fn list(&self, kind: &str) -> Value {
        let data = self
            .objects
            .newest_first(|_, object| object.value.get("object") == Some(&json!(kind)));
        json!({"object": "list", "has_more": false, "data": data})
    }
}

/// An e-mail that Resend would take.
struct Email {
    fields: Map<String, Value>,
    to: Vec<String>,
    from: Option<String>,
}

fn checked(fields: &Map<String, Value>) -> Result<Email, Answer> {
    for name in ["from", "to"] {
        if !fields.contains_key(name) {
            return Err(missing(name));
        }
    }
    if !fields.contains_key("subject") && !fields.contains_key("template") {
        return Err(missing("subject"));
    }
    if !["html", "text", "template"]
        .iter()
        .any(|name| fields.contains_key(*name))
    {
        return Err(error(422, "validation_error", "Missing `html` or `text` field."));
    }
    let mut to = Vec::new();
    for name in ["to", "cc", "bcc"] {
        let addresses = match fields.get(name) {
            None => continue,
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(several)) => {
                let texts = several.iter().map(|one| one.as_str().map(str::to_owned));
                texts.collect::<Option<Vec<_>>>().ok_or_else(|| invalid(name))?
            }
            Some(_) => return Err(invalid(name)),
        };
        if addresses.is_empty() || addresses.iter().any(|address| !address.contains('@')) {
            return Err(invalid(name));
        }
        to.extend(addresses);
    }
    if to.len() > MOST_RECIPIENTS {
        return Err(error(
            422,
            "validation_error",
            "An e-mail has at most 50 recipients.",
        ));
    }
    let from = fields
        .get("from")
        .and_then(Value::as_str)
        .filter(|from| from.contains('@'));
    let from = from.ok_or_else(|| invalid("from"))?.to_owned();
    Ok(Email {
        fields: fields.clone(),
        to,
        from: Some(from),
    })
}

fn document(body: &[u8]) -> Result<Map<String, Value>, Answer> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(error(422, "validation_error", "The body must be a JSON object.")),
    }
}

fn missing(name: &str) -> Answer {
    error(422, "missing_required_field", &format!("Missing `{name}` field."))
}

fn invalid(name: &str) -> Answer {
    error(422, "validation_error", &format!("Invalid `{name}` field."))
}

fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// 32 hexadecimal digits as a UUID is written.
fn uuid(digits: &str) -> String {
    let mut out = String::with_capacity(36);
    for (at, digit) in digits.chars().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            out.push('-');
        }
        out.push(digit);
    }
    out
}

fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms)
        .unwrap_or_default()
        .to_string()
}
