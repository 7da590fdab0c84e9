//! Messages, calls and verifications, and the few reads beside them.

use serde_json::{Value, json};

use super::Twilio;
use super::error::{error, not_found};
use crate::objects::Object;
use crate::vendors::{Answer, Desk, SentKind, pairs};

/// Items of a list's page.
const PAGE: usize = 50;
/// The code that every verification accepts.
const CODE: &str = "123456";

impl Twilio {
    pub(super) fn route(&mut self, desk: &mut Desk<'_>) -> Result<Answer, Answer> {
        let (asked, account) = (desk.asked, desk.asked.account.to_owned());
        let segments: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
        let last_id = |text: &str| text.strip_suffix(".json").map(str::to_owned);
        let fields = Fields(pairs(&match asked.method {
            "POST" => String::from_utf8_lossy(asked.body).into_owned(),
            _ => asked.query.to_owned(),
        }));
        if asked.method == "POST" && !is_form(asked.content_type) && !asked.body.is_empty() {
            return Err(error(415, 20422, "Unsupported Content-Type"));
        }
        match (asked.method, segments.as_slice()) {
            ("POST", ["2010-04-01", "Accounts", _, "Messages.json"]) => {
                self.send_message(desk, &account, &fields)
            }
            ("GET", ["2010-04-01", "Accounts", _, "Messages.json"]) => {
                Ok((200, self.page("messages", &account, &["SM", "MM"], &fields)))
            }
            ("POST", ["2010-04-01", "Accounts", _, "Calls.json"]) => self.place_call(desk, &account, &fields),
            ("GET", ["2010-04-01", "Accounts", _, "Calls.json"]) => {
                Ok((200, self.page("calls", &account, &["CA"], &fields)))
            }
            (method, ["2010-04-01", "Accounts", _, "Messages" | "Calls", last]) => {
                let sid = last_id(last).ok_or_else(|| not_found(asked.path))?;
                self.one(method, &account, &sid, &fields)
                    .ok_or_else(|| not_found(asked.path))?
            }
            ("GET", ["2010-04-01", "Accounts", _, "Balance.json"]) => Ok((
                200,
                json!({"account_sid": account, "balance": "100.00", "currency": "USD"}),
            )),
            ("GET", ["2010-04-01", "Accounts", _]) => Ok((
                200,
                json!({"sid": account, "friendly_name": "Simulator", "status": "active", "type": "Full",
                       "auth_token": "secret-of-the-simulator"}),
            )),
            ("POST", ["v2", "Services", service, "Verifications"]) => self.verify(desk, service, &fields),
            ("POST", ["v2", "Services", _, "VerificationCheck"]) => self.check(&fields),
            ("GET", ["v2", "PhoneNumbers", number]) => Ok((
                200,
                json!({"phone_number": number, "valid": true, "country_code": "US"}),
            )),
            _ => Err(not_found(asked.path)),
        }
    }

    fn send_message(
        &mut self,
        desk: &mut Desk<'_>,
        account: &str,
        fields: &Fields,
    ) -> Result<Answer, Answer> {
        let to = fields
            .get("To")
            .ok_or_else(|| error(400, 21604, "A 'To' phone number is required."))?;
        check_recipient(to)?;
        let sender = fields.get("From").or(fields.get("MessagingServiceSid"));
        let sender = sender.ok_or_else(|| error(400, 21603, "A 'From' phone number is required."))?;
        if sender == "+15005550000" {
            return Err(error(
                400,
                21606,
                "The 'From' phone number is not a valid message-capable number.",
            ));
        }
        let media = fields.all("MediaUrl").count();
        let body = fields.get("Body");
        if body.is_none() && media == 0 && fields.get("ContentSid").is_none() {
            return Err(error(400, 21602, "Message body is required."));
        }
        if body.is_some_and(|body| body.chars().count() > 1_600) {
            return Err(error(
                400,
                21617,
                "The concatenated message body exceeds the 1600 character limit.",
            ));
        }
        let service = fields
            .get("MessagingServiceSid")
            .filter(|_| fields.get("From").is_none());
        let sid = format!("{}{}", if media > 0 { "MM" } else { "SM" }, (desk.fresh)());
        let date = date(desk.asked.now_ms);
        let status = match (fields.get("SendAt"), service) {
            (Some(_), _) => "scheduled",
            (None, Some(_)) => "accepted",
            (None, None) => "queued",
        };
        let message = json!({
            "sid": sid, "account_sid": account, "api_version": "2010-04-01", "body": body, "date_created": date,
            "date_sent": Value::Null, "date_updated": date, "direction": "outbound-api", "error_code": Value::Null,
            "error_message": Value::Null, "from": fields.get("From"), "messaging_service_sid": service,
            "num_media": media.to_string(), "num_segments": if service.is_some() { "0" } else { "1" },
            "price": Value::Null, "price_unit": Value::Null, "status": status, "to": to,
            "subresource_uris": {"media": format!("/2010-04-01/Accounts/{account}/Messages/{sid}/Media.json")},
            "uri": format!("/2010-04-01/Accounts/{account}/Messages/{sid}.json"),
        });
        desk.sent(
            SentKind::Message,
            &sid,
            vec![to.to_owned()],
            Some(sender.to_owned()),
        );
        self.objects.add(account, &sid, message.clone());
        Ok((201, message))
    }

    fn place_call(&mut self, desk: &mut Desk<'_>, account: &str, fields: &Fields) -> Result<Answer, Answer> {
        let to = fields
            .get("To")
            .ok_or_else(|| error(400, 21201, "No 'To' number specified"))?;
        check_recipient(to)?;
        let from = fields
            .get("From")
            .ok_or_else(|| error(400, 21213, "Caller phone number is required"))?;
        let told = ["Url", "Twiml", "ApplicationSid"]
            .iter()
            .any(|name| fields.get(name).is_some());
        if !told {
            return Err(error(400, 21205, "Url parameter is required."));
        }
        let sid = format!("CA{}", (desk.fresh)());
        let date = date(desk.asked.now_ms);
        let call = json!({
            "sid": sid, "account_sid": account, "api_version": "2010-04-01", "date_created": date, "date_updated": date,
            "direction": "outbound-api", "duration": Value::Null, "from": from, "to": to, "price": Value::Null,
            "price_unit": "USD", "status": "queued", "uri": format!("/2010-04-01/Accounts/{account}/Calls/{sid}.json"),
        });
        desk.sent(SentKind::Call, &sid, vec![to.to_owned()], Some(from.to_owned()));
        self.objects.add(account, &sid, call.clone());
        Ok((201, call))
    }

    /// Reads, changes or deletes one message or call. `None` when it is not there.
    fn one(
        &mut self,
        method: &str,
        account: &str,
        sid: &str,
        fields: &Fields,
    ) -> Option<Result<Answer, Answer>> {
        let value = self.objects.of_account(account, sid)?;
        match method {
            "GET" => Some(Ok((200, value.clone()))),
            "DELETE" => {
                self.objects.remove(sid);
                Some(Ok((204, Value::Null)))
            }
            "POST" => {
                let members = value.as_object_mut()?;
                let scheduled = members.get("status") == Some(&json!("scheduled"));
                match (fields.get("Status"), fields.get("Body")) {
                    (Some("canceled"), _) if sid.starts_with("SM") && !scheduled => {
                        return Some(Err(error(400, 30409, "Message could not be canceled.")));
                    }
                    (Some(status), _) => members.insert("status".to_owned(), json!(status)),
                    (None, Some(body)) => members.insert("body".to_owned(), json!(body)),
                    (None, None) => None,
                };
                Some(Ok((200, value.clone())))
            }
            _ => None,
        }
    }

    /// One page of a list; `To` and `From` narrow it.
    fn page(&self, name: &str, account: &str, kinds: &[&str], fields: &Fields) -> Value {
        let number = |name: &str| fields.get(name).and_then(|text| text.parse::<usize>().ok());
        let size = number("PageSize").unwrap_or(PAGE).clamp(1, 1_000);
        let page = number("Page").unwrap_or(0);
        let fits = |value: &Value| {
            [("To", "to"), ("From", "from"), ("Status", "status")]
                .iter()
                .all(|(field, member)| {
                    fields
                        .get(field)
                        .is_none_or(|wanted| value.get(*member) == Some(&json!(wanted)))
                })
        };
        let is_kind = |sid: &str| kinds.iter().any(|kind| sid.starts_with(kind));
        let all = self
            .objects
            .newest_first(|sid, object| object.account == account && is_kind(sid) && fits(&object.value));
        let shown: Vec<&Value> = all
            .iter()
            .copied()
            .skip(page.saturating_mul(size))
            .take(size)
            .collect();
        let path = |page: usize| {
            format!(
                "/2010-04-01/Accounts/{account}/{}.json?PageSize={size}&Page={page}",
                capital(name)
            )
        };
        let more = all.len() > page.saturating_add(1).saturating_mul(size);
        let mut answer = json!({
            "page": page, "page_size": size, "start": page.saturating_mul(size), "first_page_uri": path(0),
            "uri": path(page), "next_page_uri": more.then(|| path(page.saturating_add(1))),
            "previous_page_uri": page.checked_sub(1).map(path),
        });
        if let Some(members) = answer.as_object_mut() {
            members.insert(name.to_owned(), json!(shown));
        }
        answer
    }

    fn verify(&mut self, desk: &mut Desk<'_>, service: &str, fields: &Fields) -> Result<Answer, Answer> {
        let to = fields
            .get("To")
            .ok_or_else(|| error(400, 60200, "Invalid parameter: To"))?;
        let channel = fields
            .get("Channel")
            .ok_or_else(|| error(400, 60200, "Invalid parameter: Channel"))?;
        let sid = format!("VE{}", (desk.fresh)());
        let verification = json!({
            "sid": sid, "service_sid": service, "to": to, "channel": channel, "status": "pending", "valid": false,
        });
        desk.sent(SentKind::Verification, &sid, vec![to.to_owned()], None);
        self.objects.add("", &sid, verification.clone());
        Ok((201, verification))
    }

    /// Checks the code of the newest verification of a number.
    fn check(&mut self, fields: &Fields) -> Result<Answer, Answer> {
        let wanted = fields.get("To").map(|to| json!(to));
        let is_asked =
            |object: &Object| object.value.get("to") == wanted.as_ref() && object.account.is_empty();
        let Some(found) = self.objects.newest_mut(is_asked) else {
            return Err(not_found("VerificationCheck"));
        };
        let approved = fields.get("Code") == Some(CODE);
        if let Some(members) = found.as_object_mut() {
            members.insert(
                "status".to_owned(),
                json!(if approved { "approved" } else { "pending" }),
            );
            members.insert("valid".to_owned(), json!(approved));
        }
        Ok((201, found.clone()))
    }
}

struct Fields(Vec<(String, String)>);

impl Fields {
    /// The last value of a name, if it is not empty.
    fn get(&self, name: &str) -> Option<&str> {
        let named = self.0.iter().rev().find(|(key, _)| key == name);
        named
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A number that Twilio would take; two of its magic numbers, which it does not, among others.
fn check_recipient(to: &str) -> Result<(), Answer> {
    let number = to.split_once(':').map_or(to, |(_, number)| number);
    let digits = number.strip_prefix('+').unwrap_or_default();
    let fits = (7..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    match number {
        _ if !fits => Err(error(400, 21211, &format!("Invalid 'To' Phone Number: {to}"))),
        "+15005550001" => Err(error(400, 21211, &format!("Invalid 'To' Phone Number: {to}"))),
        "+15005550004" => Err(error(400, 21610, "Attempt to send to unsubscribed recipient")),
        _ => Ok(()),
    }
}

fn is_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_ascii_uppercase().to_string() + letters.as_str()
    })
}

/// RFC 2822, as Twilio writes dates.
fn date(at_ms: i64) -> String {
    let zoned = jiff::Timestamp::from_millisecond(at_ms)
        .unwrap_or_default()
        .to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::rfc2822::to_string(&zoned).unwrap_or_default()
}
