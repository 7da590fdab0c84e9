//! The few members of a Stripe object that say something of money. All others are skipped, not built.

use std::fmt;

use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::amount;
use crate::money::{Currency, VendorAmount};

/// What is read of an object.
const MEMBERS: [&str; 19] = [
    "amount",
    "amount_capturable",
    "amount_captured",
    "amount_received",
    "amount_refunded",
    "amount_reversed",
    "captured",
    "charge",
    "currency",
    "customer",
    "customer_account",
    "error",
    "id",
    "last_payment_error",
    "latest_charge",
    "metadata",
    "object",
    "refunded",
    "status",
];

/// Reads a body. `None` when it is not one JSON object, or has one of the members that count twice.
pub(super) fn read(body: &[u8]) -> Option<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let members = deserializer.deserialize_map(Members).ok()?;
    deserializer.end().ok()?;
    Some(Value::Object(members))
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = access.next_key::<&str>()? {
            if !MEMBERS.contains(&name) {
                access.next_value::<IgnoredAny>()?;
            } else if members.insert(name.to_owned(), access.next_value()?).is_some() {
                return Err(A::Error::custom("a member is there twice"));
            }
        }
        Ok(members)
    }
}

/// A member that is a text.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

/// A whole amount of an object; never negative.
pub(super) fn number(object: &Value, name: &str) -> Option<i64> {
    object.get(name)?.as_i64().filter(|minor| *minor >= 0)
}

/// The object's currency.
pub(super) fn currency(object: &Value) -> Option<Currency> {
    text(object, "currency").and_then(Currency::parse)
}

/// An amount of the object, in its own currency.
pub(super) fn amount_of(object: &Value, name: &str) -> Option<VendorAmount> {
    Some(amount(number(object, name)?, currency(object)?))
}

/// The customer of an object, given as an id or expanded.
pub(super) fn owner(object: &Value) -> Option<String> {
    let named = |name: &str| match object.get(name)? {
        Value::String(id) => Some(id.clone()),
        expanded => expanded.get("id")?.as_str().map(str::to_owned),
    };
    named("customer").or_else(|| named("customer_account"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_once_or_not_at_all() {
        let object = read(br#" {"id": "re_1", "amount": 5, "x": {"id": "y"}, "customer": {"id": "cus_1"}} "#);
        let object = object.unwrap();
        assert_eq!(
            (text(&object, "id"), number(&object, "amount")),
            (Some("re_1"), Some(5))
        );
        assert_eq!(owner(&object).as_deref(), Some("cus_1"));
        assert_eq!(object.get("x"), None);
        for body in [
            &b""[..],
            b"[]",
            b"null",
            b"{\"id\": \"re_1\"",
            b"{\"id\": \"re_1\"} {}",
            b"{\"amount\": 5, \"amount\": 6}",
            b"{\"id\": \"\xff\"}",
        ] {
            assert_eq!(read(body), None, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn amounts_are_whole_and_not_negative() {
        for amount in [
            "-1",
            "1.0",
            "1e2",
            "\"5\"",
            "null",
            "9223372036854775808",
            "true",
            "[5]",
        ] {
            let object = read(format!("{{\"amount\": {amount}, \"currency\": \"usd\"}}").as_bytes());
            assert_eq!(amount_of(&object.unwrap(), "amount"), None, "{amount}");
        }
    }
}
