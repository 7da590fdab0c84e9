//! Amounts, durations and times as policies write them. No float touches an amount: a JSON number is read by
//! its shortest decimal form, so `0.1` is ten cents exactly.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::money::{Rate, Usd};

/// An amount of US dollars in a policy: zero or more, at most six decimals. Written back as decimal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Dollars(pub(crate) Usd);

/// A duration in milliseconds, above zero: `90m`, `24h`, `7d`, `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) i64);

/// A point in time, Unix milliseconds: RFC 3339 with an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) i64);

/// The longest duration that a policy may name: 366 days.
pub(crate) const MAX_SPAN_MS: i64 = 366 * 86_400_000;

impl Dollars {
    /// Reads a number or a text; `place` names the field in errors.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let text = decimal_text(value).ok_or_else(|| {
            Error::policy(format!(
                "`{place}` must be an amount in US dollars such as 250 or \"0.59\", not {}",
                shown(value)
            ))
        })?;
        let usd: Usd = text
            .parse()
            .map_err(|_e| Error::policy(format!("`{place}` is {}: {}", shown(value), reason(&text))))?;
        let whole = text
            .strip_prefix('-')
            .unwrap_or(&text)
            .split('.')
            .next()
            .unwrap_or_default();
        if whole.len() > 1 && whole.starts_with('0') {
            return Err(Error::policy(format!(
                "`{place}` is {text}; write it without the leading zero"
            )));
        }
        if usd.is_negative() {
            return Err(Error::policy(format!(
                "`{place}` is {text}; an amount cannot be negative"
            )));
        }
        Ok(Self(usd))
    }
}

/// What is wrong with a text that is not an amount.
fn reason(text: &str) -> &'static str {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) {
        "write digits with at most six decimals, such as 250 or 0.59"
    } else if fraction.len() > 6 {
        "an amount has at most six decimals"
    } else {
        "the amount is too large"
    }
}

/// The decimal text of a number (its shortest form, never with an exponent) or of a text.
pub(crate) fn decimal_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float}"),
            _ => number.to_string(),
        })),
        _ => None,
    }
}

/// A value as an error may show it: short, and never a whole structure.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        other => other.to_string(),
    }
}

impl Span {
    /// Reads digits and one unit: `s`, `m`, `h` or `d`.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::policy(format!(
                "`{place}` is {}: {why}; write a duration such as \"24h\", \"90m\" or \"7d\"",
                shown(value)
            ))
        };
        let text = value.as_str().ok_or_else(|| wrong("it is not a text"))?;
        let mut chars = text.chars();
        let unit_ms: i64 = match chars.next_back() {
            Some('s') => 1_000,
            Some('m') => 60_000,
            Some('h') => 3_600_000,
            Some('d') => 86_400_000,
            _ => return Err(wrong("the unit must be s, m, h or d")),
        };
        let digits = chars.as_str();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong("one number and one unit are read"));
        }
        let ms = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(unit_ms));
        match ms {
            Some(0) => Err(wrong("it is zero")),
            Some(ms) if ms <= MAX_SPAN_MS => Ok(Self(ms)),
            _ => Err(wrong("it is longer than 366 days")),
        }
    }

    /// The largest unit that says it exactly.
    pub(crate) fn text(self) -> String {
        for (unit, ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)] {
            if self.0.checked_rem(ms) == Some(0) {
                return format!("{}{unit}", self.0.checked_div(ms).unwrap_or(0));
            }
        }
        format!("{}s", self.0.checked_div(1_000).unwrap_or(0))
    }
}

impl Moment {
    /// Reads an RFC 3339 time with `Z` or an offset.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let wrong = || {
            Error::policy(format!(
                "`{place}` is {}; write a time with its offset, such as \"2026-12-31T23:59:59Z\"",
                shown(value)
            ))
        };
        let text = value.as_str().ok_or_else(wrong)?;
        // jiff also reads forms that RFC 3339 does not have, such as a zone in brackets.
        if text.contains(['[', ' ']) || text.starts_with(['-', '+']) {
            return Err(wrong());
        }
        let time: jiff::Timestamp = text.parse().map_err(|_e| wrong())?;
        Ok(Self(time.as_millisecond()))
    }

    /// Reads a date (its first moment in UTC) or a time.
    pub(crate) fn read_date(value: &Value, place: &str) -> Result<Self> {
        match value.as_str() {
            Some(text) if text.len() == 10 => Self::read(&Value::String(format!("{text}T00:00:00Z")), place)
                .map_err(|_e| {
                    Error::policy(format!(
                        "`{place}` is {}; write a date such as \"2026-11-20\"",
                        shown(value)
                    ))
                }),
            _ => Self::read(value, place),
        }
    }

    /// RFC 3339 in UTC.
    pub(crate) fn text(self) -> String {
        time_text(self.0)
    }
}

/// A time in Unix milliseconds as RFC 3339 in UTC.
pub(crate) fn time_text(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_e| format!("{ms} ms"), |time| time.to_string())
}

/// US dollars per unit of a currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RateText {
    /// As written.
    pub(crate) text: String,
    /// As read.
    pub(crate) rate: Rate,
}

impl RateText {
    /// Reads a positive number with at most nine decimals.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let text = decimal_text(value).map(Cow::into_owned).unwrap_or_default();
        let rate = Rate::parse(&text).ok_or_else(|| {
            Error::policy(format!(
                "`{place}` is {}; write US dollars per unit with at most nine decimals, such as \"1.09\"",
                shown(value)
            ))
        })?;
        Ok(Self { text, rate })
    }
}

impl Serialize for Dollars {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl Serialize for RateText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl JsonSchema for Dollars {
    fn schema_name() -> Cow<'static, str> {
        "Dollars".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "US dollars, zero or more, at most six decimals.",
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d{1,6})?$"}],
        })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number and a unit (s, m, h, d), at most 366 days.",
            "type": "string", "pattern": r"^\d+[smhd]$",
        })
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "RFC 3339 time with its offset; in `as_of` also a date.",
            "type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}([Tt].+)?$",
        })
    }
}

impl JsonSchema for RateText {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "US dollars per unit, above zero, at most nine decimals.",
            "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d{1,9})?$"}],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dollars_are_read_by_their_shortest_decimal_form() {
        for (value, micros) in [
            (json!(250), 250_000_000),
            (json!(250.0), 250_000_000),
            (json!(0.1), 100_000),
            (json!(0.000_001), 1),
            (json!(1e3), 1_000_000_000),
            (json!("0.59"), 590_000),
            (json!(0), 0),
            (json!(19.99), 19_990_000),
        ] {
            assert_eq!(
                Dollars::read(&value, "cap").unwrap().0.micros(),
                micros,
                "{value}"
            );
        }
    }

    #[test]
    fn wrong_amounts_are_refused_with_their_field() {
        for (value, says) in [
            (json!(-1), "negative"),
            (json!("-0.5"), "negative"),
            (json!(0.000_000_1), "six decimals"),
            (json!("1.2345678"), "six decimals"),
            (json!(1e300), "too large"),
            (json!(18_446_744_073_709_551_615_u64), "too large"),
            (json!("9223372036855"), "too large"),
            (json!("1e3"), "write digits"),
            (json!("$5"), "write digits"),
            (json!("010"), "leading zero"),
            (json!("-00.5"), "leading zero"),
            (json!(" 5"), "write digits"),
            (json!("NaN"), "write digits"),
            (json!(true), "must be an amount"),
            (json!([1]), "must be an amount"),
        ] {
            let message = Dollars::read(&value, "daily_usd_cap").unwrap_err().to_string();
            assert!(
                message.contains("`daily_usd_cap`") && message.contains(says),
                "{value}: {message}"
            );
        }
    }

    #[test]
    fn durations_and_times() {
        for (text, ms) in [
            ("24h", 86_400_000),
            ("90m", 5_400_000),
            ("7d", 604_800_000),
            ("30s", 30_000),
        ] {
            assert_eq!(Span::read(&json!(text), "expires_in").unwrap(), Span(ms));
        }
        assert_eq!(Span(86_400_000).text(), "1d");
        assert_eq!(Span(5_400_000).text(), "90m");
        for wrong in [
            json!("24"),
            json!("h"),
            json!("-1h"),
            json!("1.5h"),
            json!("0h"),
            json!("367d"),
            json!(24),
            json!("1h30m"),
            json!("never"),
            json!("٣h"),
        ] {
            let message = Span::read(&wrong, "expires_in").unwrap_err().to_string();
            assert!(message.starts_with("`expires_in` is "), "{message}");
        }
        let time = Moment::read(&json!("2026-12-31T23:59:59+01:00"), "expires_at").unwrap();
        assert_eq!(time.text(), "2026-12-31T22:59:59Z");
        for wrong in [
            "2026-12-31",
            "2026-12-31T23:59:59",
            "2026-12-31 23:59:59Z",
            "tomorrow",
            "2026-12-31T23:59:59Z[UTC]",
        ] {
            Moment::read(&json!(wrong), "expires_at").unwrap_err();
        }
        assert_eq!(
            Moment::read_date(&json!("2026-11-20"), "as_of").unwrap().text(),
            "2026-11-20T00:00:00Z"
        );
    }
}
