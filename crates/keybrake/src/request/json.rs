//! JSON bodies, read strictly: one UTF-8 document, no name twice in an object, bounded depth (security rule 9).
//!
//! `serde_json` keeps the last of two equal names and other parsers the first, so it cannot be the judge.

use super::Refusal;
use super::form::{self, Names};
use crate::policy::Code;

/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// Longest document, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most values in one document.
pub const MAX_VALUES: usize = 10_000;

/// Reads a JSON object into flat fields named as in a form: `amount[value]`, `items[0][id]`. Strings are unescaped,
/// numbers stand as they are written, `true`, `false` and `null` as such words. Empty objects and lists leave no
/// field.
///
/// # Errors
/// `request_malformed` for anything that is not one strict JSON object, and for look-alikes of the vendor's names.
pub fn fields(body: &[u8], names: &Names) -> Result<Vec<(String, String)>, Refusal> {
    let mut reader = Reader::new(body)?;
    reader.item(names, "the JSON body is not an object")?;
    reader.end()?;
    Ok(reader.out)
}

/// Reads a JSON list of objects: the fields of each, as [`fields`] reads one.
///
/// # Errors
/// `request_malformed` for anything that is not one strict JSON list of objects, and as [`fields`].
pub fn list(body: &[u8], names: &Names) -> Result<Vec<Vec<(String, String)>>, Refusal> {
    let mut reader = Reader::new(body)?;
    reader.space();
    if !reader.take('[') {
        return Err(refuse("the JSON body is not a list"));
    }
    let mut items = Vec::new();
    reader.space();
    if !reader.take(']') {
        loop {
            reader.item(names, "the JSON body is not a list of objects")?;
            items.push(std::mem::take(&mut reader.out));
            if reader.take(']') {
                break;
            }
            reader.expect(',')?;
        }
    }
    reader.end()?;
    Ok(items)
}

struct Reader<'a> {
    rest: &'a str,
    out: Vec<(String, String)>,
    values: usize,
}

impl<'a> Reader<'a> {
    fn new(body: &'a [u8]) -> Result<Self, Refusal> {
        if body.len() > MAX_BYTES {
            return Err(refuse(format!("the JSON body is longer than {MAX_BYTES} bytes")));
        }
        Ok(Self {
            rest: std::str::from_utf8(body).map_err(|_| refuse("the JSON body is not UTF-8"))?,
            out: Vec::new(),
            values: 0,
        })
    }

    /// One object with the spaces around it.
    fn item(&mut self, names: &Names, otherwise: &str) -> Result<(), Refusal> {
        self.space();
        if !self.rest.starts_with('{') {
            return Err(refuse(otherwise));
        }
        self.value("", 0, names)?;
        self.space();
        Ok(())
    }

    fn end(&mut self) -> Result<(), Refusal> {
        self.space();
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(refuse("the JSON body has something after its end"))
        }
    }

    fn value(&mut self, name: &str, depth: usize, names: &Names) -> Result<(), Refusal> {
        self.values = self.values.saturating_add(1);
        if depth > MAX_DEPTH || self.values > MAX_VALUES {
            return Err(refuse("the JSON body is too deep or has too many values"));
        }
        match self.rest.as_bytes().first() {
            Some(b'{') => self.object(name, depth, names),
            Some(b'[') => self.list(name, depth, names),
            Some(b'"') => {
                let text = self.string()?;
                self.out.push((name.to_owned(), text));
                Ok(())
            }
            _ => {
                let word = self.word()?;
                self.out.push((name.to_owned(), word.to_owned()));
                Ok(())
            }
        }
    }

    fn object(&mut self, name: &str, depth: usize, names: &Names) -> Result<(), Refusal> {
        self.expect('{')?;
        let mut seen: Vec<String> = Vec::new();
        self.space();
        if self.take('}') {
            return Ok(());
        }
        loop {
            self.space();
            let member = self.string()?;
            self.space();
            self.expect(':')?;
            self.space();
            let container = self.rest.starts_with(['{', '[']);
            if depth == 0 {
                form::check_head(&member, container, names)?;
            }
            if member.contains(['[', ']']) {
                return Err(refuse("a name in the JSON body has brackets"));
            }
            let path = if name.is_empty() {
                member.clone()
            } else {
                format!("{name}[{member}]")
            };
            seen.push(member);
            self.value(&path, depth.saturating_add(1), names)?;
            self.space();
            if self.take('}') {
                break;
            }
            self.expect(',')?;
        }
        seen.sort_unstable();
        if seen.array_windows().any(|[a, b]| a == b) {
            return Err(refuse("the JSON body has a name twice in one object"));
        }
        Ok(())
    }

    fn list(&mut self, name: &str, depth: usize, names: &Names) -> Result<(), Refusal> {
        self.expect('[')?;
        self.space();
        if self.take(']') {
            return Ok(());
        }
        let mut index = 0_usize;
        loop {
            self.space();
            self.value(&format!("{name}[{index}]"), depth.saturating_add(1), names)?;
            self.space();
            if self.take(']') {
                return Ok(());
            }
            self.expect(',')?;
            index = index.saturating_add(1);
        }
    }

    /// A string with its quotes, unescaped.
    fn string(&mut self) -> Result<String, Refusal> {
        self.expect('"')?;
        let bytes = self.rest.as_bytes();
        let mut at = 0_usize;
        loop {
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at = at.saturating_add(2),
                Some(byte) if *byte >= 0x20 => at = at.saturating_add(1),
                _ => {
                    return Err(refuse(
                        "the JSON body has a string that is not closed or not escaped",
                    ));
                }
            }
        }
        let (raw, rest) = self.rest.split_at_checked(at).ok_or_else(broken)?;
        self.rest = rest.strip_prefix('"').ok_or_else(broken)?;
        if raw.contains('\\') {
            unescape(raw).ok_or_else(|| refuse("the JSON body has a bad escape in a string"))
        } else {
            Ok(raw.to_owned())
        }
    }

    /// `true`, `false`, `null` or a number, as written.
    fn word(&mut self) -> Result<&'a str, Refusal> {
        let ends = |c: char| matches!(c, ',' | '}' | ']' | ' ' | '\t' | '\n' | '\r');
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).ok_or_else(broken)?;
        self.rest = rest;
        if matches!(word, "true" | "false" | "null") || is_number(word) {
            Ok(word)
        } else {
            Err(broken())
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn take(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), Refusal> {
        if self.take(c) { Ok(()) } else { Err(broken()) }
    }
}

/// `-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?`
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|text| digits(text.strip_prefix(['+', '-']).unwrap_or(text)))
}

fn unescape(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let mut chars = after.chars();
        match chars.next()? {
            c @ ('"' | '\\' | '/') => out.push(c),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'u' => {
                let (unit, tail) = code_unit(chars.as_str())?;
                let (c, tail) = scalar(unit, tail)?;
                out.push(c);
                chars = tail.chars();
            }
            _ => return None,
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    Some(out)
}

fn code_unit(text: &str) -> Option<(u16, &str)> {
    let (hex, rest) = text.split_at_checked(4)?;
    let plain = hex.bytes().all(|b| b.is_ascii_hexdigit());
    let unit = u16::from_str_radix(hex, 16).ok().filter(|_| plain)?;
    Some((unit, rest))
}

/// One character from a code unit and, for a surrogate, the escape that follows it. Lone surrogates are refused.
fn scalar(unit: u16, rest: &str) -> Option<(char, &str)> {
    if let Some(c) = char::from_u32(u32::from(unit)) {
        return Some((c, rest));
    }
    let (low, rest) = code_unit(rest.strip_prefix("\\u")?)?;
    let c = char::decode_utf16([unit, low]).next()?.ok()?;
    Some((c, rest))
}

fn broken() -> Refusal {
    refuse("the body is not JSON")
}

fn refuse(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::RequestMalformed, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: Names = Names {
        scalars: &["currency"],
        nested: &["amount"],
        maps: &["metadata"],
    };

    fn read(body: &str) -> Result<Vec<(String, String)>, Refusal> {
        fields(body.as_bytes(), &NAMES)
    }

    #[test]
    fn rule_09_json_flattens_an_object() {
        let body = r#" {"amount": {"value": 100, "currency": "usd"}, "list": ["a", {"b": null}], "e": {}, "x": "\u00e9\n\ud83d\ude00"} "#;
        let expected = [
            ("amount[value]", "100"),
            ("amount[currency]", "usd"),
            ("list[0]", "a"),
            ("list[1][b]", "null"),
            ("x", "\u{e9}\n\u{1f600}"),
        ];
        let read = read(body).unwrap();
        let read: Vec<_> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn rule_09_json_duplicate_names() {
        for body in [
            r#"{"currency":"usd","currency":"jpy"}"#,
            r#"{"currency":"usd","curr\u0065ncy":"jpy"}"#,
            r#"{"amount":{"value":1,"value":2}}"#,
            r#"{"list":[{"a":1,"b":2,"a":3}]}"#,
        ] {
            let message = read(body).unwrap_err().message;
            assert!(message.contains("twice"), "{body}: {message}");
        }
    }

    #[test]
    fn rule_09_json_is_one_strict_document() {
        for body in [
            "",
            "[]",
            "1",
            "null",
            "\u{feff}{}",
            "{}{}",
            "{} x",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{'a':1}",
            "{a:1}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":NaN}",
            "{\"a\":1e}",
            "{\"a\":\"\t\"}",
            "{\"a\":\"\\x41\"}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\\ud800\\u0041\"}",
            "{\"a\":\"\\u+041\"}",
            "{\"a\":1/**/}",
            "{\"Amount\":1}",
            "{\"currency\":[\"usd\"]}",
            "{\"a[b]\":1}",
        ] {
            assert!(read(body).is_err(), "{body}");
        }
        assert!(fields(b"{\"a\":\"\xff\"}", &NAMES).is_err());
    }

    #[test]
    fn rule_09_json_a_list_is_read_item_by_item() {
        let items = list(br#" [ {"currency":"usd"} , {"x":["a"]} ] "#, &NAMES).unwrap();
        let field = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(items, [field("currency", "usd"), field("x[0]", "a")]);
        assert!(list(b"[]", &NAMES).unwrap().is_empty());
        for body in [
            "",
            "{}",
            "[",
            "[{}",
            "[{},]",
            "[{}]]",
            "[1]",
            "[[]]",
            "[{}{}]",
            "[{},,{}]",
            r#"[{},{"a":1,"a":2}]"#,
            r#"[{"Currency":"usd"}]"#,
        ] {
            assert!(list(body.as_bytes(), &NAMES).is_err(), "{body}");
        }
    }

    #[test]
    fn rule_09_json_depth() {
        let nested = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(read(&nested(MAX_DEPTH - 1)).is_ok());
        assert!(read(&nested(MAX_DEPTH + 1)).is_err());
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read(&nested(100_000)).is_err());
    }

    proptest! {
        /// Whatever we accept, an independent parser accepts; and any bytes are answered without a panic.
        #[test]
        fn rule_09_json_accepts_less_than_serde(body in r#"[{}\[\]":,0-9a-c\\u \-.eEtrufalsn]{0,40}"#) {
            if fields(body.as_bytes(), &NAMES).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_ok(), "{body}");
            }
        }

        #[test]
        fn rule_09_json_strings_as_serde_reads_them(text in any::<String>()) {
            let body = serde_json::json!({ "x": text }).to_string();
            prop_assert_eq!(fields(body.as_bytes(), &NAMES).unwrap(), vec![("x".to_owned(), text)]);
        }

        #[test]
        fn rule_09_json_any_bytes(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = fields(&body, &NAMES);
        }
    }
}
