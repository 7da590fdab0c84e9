//! Forms and queries: `a=1&b[c]=2`, read so that no two parsers can read them differently (security rules 8 and 10).

use super::Refusal;
use crate::policy::Code;

/// Most pairs in one form.
pub const MAX_PAIRS: usize = 1_000;
/// Deepest nesting of one name, counted in brackets.
pub const MAX_DEPTH: usize = 8;
/// Longest form, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// A vendor's names that a look-alike must not stand beside.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Money and scope fields that are single values: never with brackets, never in another spelling.
    pub scalars: &'static [&'static str],
    /// Money and scope fields that may have brackets, but no other spelling.
    pub nested: &'static [&'static str],
    /// Fields whose names inside the brackets are free text, such as `metadata`: `metadata[7]` is no list there.
    pub maps: &'static [&'static str],
}

/// Reads a form or a query into decoded pairs, in order. An empty input has no pairs.
///
/// # Errors
/// `request_malformed`, naming the field, never its value.
pub fn parse(input: &[u8], names: &Names) -> Result<Vec<(String, String)>, Refusal> {
    if input.is_empty() {
        return Ok(Vec::new());
    }
    if input.len() > MAX_BYTES {
        return Err(refuse(format!("the form is longer than {MAX_BYTES} bytes")));
    }
    let mut pairs = Vec::with_capacity(8);
    for raw in input.split(|byte| *byte == b'&') {
        if pairs.len() == MAX_PAIRS {
            return Err(refuse(format!("the form has more than {MAX_PAIRS} fields")));
        }
        pairs.push(pair(raw, names)?);
    }
    structure(&pairs, names)?;
    Ok(pairs)
}

fn pair(raw: &[u8], names: &Names) -> Result<(String, String), Refusal> {
    if raw.is_empty() {
        return Err(refuse("the form has an empty pair (&&, or & at an end)"));
    }
    let equals = raw
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or_else(|| refuse("the form has a field without ="))?;
    let (key, value) = raw.split_at_checked(equals).unwrap_or((raw, b""));
    let key = decode(key)
        .ok_or_else(|| refuse("a field's name has a bad escape, or a character that must be escaped"))?;
    check_name(&key, names)?;
    let value = value.split_first().map_or(&b""[..], |(_, rest)| rest);
    let value = decode(value).ok_or_else(|| {
        refuse(format!(
            "the value of {} has a bad escape, or a character that must be escaped",
            shown(&key)
        ))
    })?;
    Ok((key, value))
}

/// Decodes `+` and `%XX` once. `None` for raw characters that not every parser takes for themselves, bad
/// escapes, invalid UTF-8 and NUL.
fn decode(raw: &[u8]) -> Option<String> {
    // Nearly everything is plain: one pass without branches, one copy.
    if raw.iter().fold(true, |all, byte| all & is_plain(*byte)) {
        return String::from_utf8(raw.to_vec()).ok();
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => hex_pair(bytes.next()?, bytes.next()?).filter(|byte| *byte != 0)?,
            _ if is_plain(byte) => byte,
            _ => return None,
        });
    }
    String::from_utf8(out).ok()
}

fn is_plain(byte: u8) -> bool {
    PLAIN.get(usize::from(byte)).copied().unwrap_or(false)
}

/// Printable ASCII without separators of some parser (`; # = & \`) and without quotes, braces and the like, which
/// every encoder escapes. Brackets stand for themselves, as the SDKs write them.
#[expect(
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a constant: the compiler has run it"
)]
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'['
                    | b']'
                    | b'!'
                    | b'$'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b','
                    | b':'
                    | b'@'
                    | b'/'
                    | b'?'
            );
        byte += 1;
    }
    table
};

/// The byte that two hexadecimal digits stand for.
pub(super) fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some((digit(high)? << 4) | digit(low)?)
}

/// Checks one decoded name: `word` or `word[part][part]…`, and no look-alike of a money or scope name.
fn check_name(key: &str, names: &Names) -> Result<(), Refusal> {
    let (head, brackets) = key
        .split_at_checked(key.find('[').unwrap_or(key.len()))
        .unwrap_or((key, ""));
    check_head(head, !brackets.is_empty(), names)?;
    if brackets.is_empty() {
        return Ok(());
    }
    let inner = brackets
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .ok_or_else(|| refuse(format!("the brackets of field {} do not match", shown(key))))?;
    let mut depth = 0_usize;
    let mut parts = inner.split("][").peekable();
    while let Some(part) = parts.next() {
        depth = depth.saturating_add(1);
        if part.contains(['[', ']']) || part.chars().any(char::is_control) {
            return Err(refuse(format!(
                "the brackets of field {} do not match",
                shown(key)
            )));
        }
        if part.is_empty() && parts.peek().is_some() {
            return Err(refuse(format!(
                "field {} has empty brackets in the middle; write the index",
                shown(key)
            )));
        }
    }
    if depth > MAX_DEPTH {
        return Err(refuse(format!(
            "field {} is nested deeper than {MAX_DEPTH}",
            shown(key)
        )));
    }
    Ok(())
}

/// Checks the first word of a name. Also used for the members of a JSON object.
pub(super) fn check_head(head: &str, bracketed: bool, names: &Names) -> Result<(), Refusal> {
    let word = head
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if head.is_empty() || head.starts_with(|c: char| c.is_ascii_digit()) || !word {
        return Err(refuse(format!(
            "{} is not a field name: letters, digits and _ only",
            shown(head)
        )));
    }
    if head == "_method" {
        return Err(refuse("the form overrides the method (_method)"));
    }
    if names.scalars.contains(&head) {
        return if bracketed {
            Err(refuse(format!("{head} is a single value; it takes no brackets")))
        } else {
            Ok(())
        };
    }
    if names.nested.contains(&head) {
        return Ok(());
    }
    let first = folded(head).next();
    let twin = names
        .scalars
        .iter()
        .chain(names.nested)
        .find(|name| folded(name).next() == first && folded(name).eq(folded(head)));
    match twin {
        Some(name) => Err(refuse(format!(
            "{} looks like {name} and is not; write {name} exactly so",
            shown(head)
        ))),
        None => Ok(()),
    }
}

fn folded(name: &str) -> impl Iterator<Item = u8> + '_ {
    name.bytes()
        .filter(|byte| *byte != b'_')
        .map(|byte| byte.to_ascii_lowercase())
}

/// What stands inside a pair of brackets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Index(u32),
    Push,
    Named,
}

/// Each name once, nothing both a value and a container, indices canonical and in order from 0.
fn structure(pairs: &[(String, String)], names: &Names) -> Result<(), Refusal> {
    let mut keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if let Some([key, _]) = keys.array_windows().find(|[a, b]| a == b) {
        let hint = if key.ends_with("[]") {
            "; number a list's items: [0], [1], …"
        } else {
            ""
        };
        return Err(refuse(format!("field {} is there twice{hint}", shown(key))));
    }
    let mut containers: Vec<(&str, Part)> = Vec::new();
    for (key, _) in pairs {
        for (at, _) in key.match_indices('[') {
            let (parent, rest) = key.split_at_checked(at).unwrap_or((key, ""));
            if keys.binary_search(&parent).is_ok() {
                return Err(refuse(format!(
                    "field {} is a value, and has brackets elsewhere",
                    shown(parent)
                )));
            }
            let text = rest
                .strip_prefix('[')
                .and_then(|rest| rest.split(']').next())
                .unwrap_or_default();
            let part = part(key, parent, text, names)?;
            place(&mut containers, parent, part)?;
        }
    }
    Ok(())
}

fn part(key: &str, parent: &str, text: &str, names: &Names) -> Result<Part, Refusal> {
    let last_word = parent.rsplit('[').next().unwrap_or(parent);
    if names.maps.contains(&last_word.trim_end_matches(']')) {
        return Ok(Part::Named);
    }
    if text.is_empty() {
        return Ok(Part::Push);
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Part::Named);
    }
    let canonical = text == "0" || !text.starts_with('0');
    text.parse::<u32>()
        .ok()
        .filter(|index| canonical && *index < 1_000)
        .map(Part::Index)
        .ok_or_else(|| {
            refuse(format!(
                "field {} has an index that is not written plainly (0, 1, 2, …)",
                shown(key)
            ))
        })
}

fn place<'a>(containers: &mut Vec<(&'a str, Part)>, parent: &'a str, part: Part) -> Result<(), Refusal> {
    let known = containers.iter_mut().find(|(name, _)| *name == parent);
    let fits = match (&known, part) {
        (None, Part::Index(index)) => index == 0,
        (None, _) | (Some((_, Part::Named)), Part::Named) => true,
        (Some((_, Part::Index(last))), Part::Index(index)) => {
            index == *last || Some(index) == last.checked_add(1)
        }
        _ => false,
    };
    if !fits {
        return Err(refuse(format!(
            "the list {} has indices that do not run 0, 1, 2, …, or mixes indices and names",
            shown(parent)
        )));
    }
    match known {
        Some(entry) => entry.1 = part,
        None => containers.push((parent, part)),
    }
    Ok(())
}

/// A positive whole number as money is written: `[1-9][0-9]{0,11}`, judged on the bytes.
pub fn whole_number(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let digits = bytes.iter().all(u8::is_ascii_digit);
    if !digits || bytes.is_empty() || bytes.len() > 12 || bytes.first() == Some(&b'0') {
        return None;
    }
    text.parse().ok()
}

/// Whether a boolean field is true: anything other than an exact `false` counts as true; absent is `default`.
pub fn truth(value: Option<&str>, default: bool) -> bool {
    value.map_or(default, |text| text != "false")
}

/// Appends `name=value` pairs to a form, escaped so that every parser reads them alike. The bytes that are there
/// stay as they are.
pub fn append(body: &[u8], fields: &[(String, String)]) -> Vec<u8> {
    let mut out = body.to_vec();
    for (name, value) in fields {
        if !out.is_empty() {
            out.push(b'&');
        }
        escape_into(&mut out, name, true);
        out.push(b'=');
        escape_into(&mut out, value, false);
    }
    out
}

fn escape_into(out: &mut Vec<u8>, text: &str, name: bool) {
    for byte in text.bytes() {
        let bracket = name && matches!(byte, b'[' | b']');
        if bracket || byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

/// A name as it may stand in a message: short, printable, its first word only (what is inside brackets is the
/// caller's text).
pub(super) fn shown(name: &str) -> String {
    let head = name.split('[').next().unwrap_or(name);
    let tail = if head.len() < name.len() { "[…]" } else { "" };
    let plain: String = head
        .chars()
        .take(40)
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .collect();
    format!("`{plain}{tail}`")
}

fn refuse(what: impl Into<String>) -> Refusal {
    Refusal::new(Code::RequestMalformed, what)
}

#[cfg(test)]
mod tests;
