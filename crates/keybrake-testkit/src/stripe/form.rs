//! Reading `application/x-www-form-urlencoded` the way Stripe's servers (Rack) do: leniently.
//!
//! This is written apart from Keybrake's strict parser on purpose. The simulator stands for the vendor, so it must read
//! a request as the vendor would, also where the two disagree: `[amount]` and `amount]` are `amount` here, a key given
//! twice keeps its last value, `;` separates pairs, and a query on a POST is merged with its body.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::error::ApiError;

/// How deep brackets may nest; Rack's own limit is of this order.
const MAX_DEPTH: usize = 32;

/// One value of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A scalar, decoded.
    Text(String),
    /// `name[]=a&name[]=b`.
    List(Vec<Self>),
    /// `name[key]=value`, also `name[0]=value`.
    Map(BTreeMap<String, Self>),
}

/// A request's parameters: query and body together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Params {
    root: BTreeMap<String, Node>,
}

impl Params {
    /// Reads a query, then a body over it.
    pub(super) fn read(query: &str, body: &str) -> Result<Self, ApiError> {
        let mut params = Self::default();
        params.add(query)?;
        params.add(body)?;
        Ok(params)
    }

    /// Sets one scalar, as a multipart field does.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), ApiError> {
        insert(&mut self.root, name, value.to_owned(), 0)
    }

    fn add(&mut self, form: &str) -> Result<(), ApiError> {
        for pair in form.split(['&', ';']) {
            let pair = pair.trim_start_matches(' ');
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name).ok_or_else(bad_escape)?;
            let value = decode(value).ok_or_else(bad_escape)?;
            insert(&mut self.root, &name, value, 0)?;
        }
        Ok(())
    }

    /// The names at the top level.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.root.keys().map(String::as_str)
    }

    /// Whether a parameter was sent at all, with any value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.root.contains_key(name)
    }

    /// A scalar; `None` when it is absent or empty (Stripe reads an empty value as "unset").
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.root.get(name) {
            None => Ok(None),
            Some(Node::Text(text)) if text.is_empty() => Ok(None),
            Some(Node::Text(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::invalid(
                name,
                format!("Invalid string: {name} must be a string"),
            )),
        }
    }

    /// A scalar that must be there.
    pub(super) fn required(&self, name: &str) -> Result<&str, ApiError> {
        if self.has(name) {
            return self.text(name)?.ok_or_else(|| ApiError::empty(name));
        }
        Err(ApiError::missing(name))
    }

    /// An integer; signs, leading zeros and spaces around it are tolerated.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.root.get(name) {
            None => Ok(None),
            Some(Node::Text(text)) if text.is_empty() => Err(ApiError::empty(name)),
            Some(Node::Text(text)) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| ApiError::invalid_integer(name, text)),
            Some(_) => Err(ApiError::invalid_integer(name, "{...}")),
        }
    }

    /// A boolean, with its default.
    pub(super) fn boolean(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.text(name)? {
            None => Ok(default),
            Some(text) if text.eq_ignore_ascii_case("true") || text == "1" => Ok(true),
            Some(text) if text.eq_ignore_ascii_case("false") || text == "0" => Ok(false),
            Some(text) => Err(ApiError::invalid(name, format!("Invalid boolean: {text}"))),
        }
    }

    /// A list of scalars, written `name[]`, `name[0]` or as one scalar.
    pub(super) fn strings(&self, name: &str) -> Vec<&str> {
        fn texts<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<&'a str> {
            nodes
                .filter_map(|node| match node {
                    Node::Text(text) => Some(text.as_str()),
                    Node::List(_) | Node::Map(_) => None,
                })
                .collect()
        }
        match self.root.get(name) {
            None => Vec::new(),
            Some(Node::Text(text)) => vec![text.as_str()],
            Some(Node::List(nodes)) => texts(nodes.iter()),
            Some(Node::Map(map)) => texts(map.values()),
        }
    }

    /// The scalars of a map such as `metadata` or `created`.
    pub(super) fn map(&self, name: &str) -> Result<Option<Vec<(&str, &str)>>, ApiError> {
        match self.root.get(name) {
            None => Ok(None),
            Some(Node::Map(map)) => map
                .iter()
                .map(|(key, node)| match node {
                    Node::Text(text) => Ok((key.as_str(), text.as_str())),
                    Node::List(_) | Node::Map(_) => Err(ApiError::invalid(
                        name,
                        format!("Invalid string: {name}[{key}] must be a string"),
                    )),
                })
                .collect::<Result<Vec<_>, _>>()
                .map(Some),
            Some(_) => Err(ApiError::invalid(name, "Invalid object".to_owned())),
        }
    }

    /// A scalar inside a map: `name[key]`.
    pub(super) fn nested(&self, name: &str, key: &str) -> Option<&str> {
        match self.root.get(name)? {
            Node::Map(map) => match map.get(key)? {
                Node::Text(text) => Some(text),
                Node::List(_) | Node::Map(_) => None,
            },
            Node::Text(_) | Node::List(_) => None,
        }
    }

    /// A parameter as JSON, for fields that are only echoed.
    pub(super) fn json(&self, name: &str) -> Option<serde_json::Value> {
        self.root.get(name).map(to_json)
    }

    /// The parameters in one order with lengths, so that equal parameters and only those are equal text.
    pub(super) fn canonical(&self) -> String {
        let mut out = String::new();
        write_map(&self.root, &mut out);
        out
    }
}

/// Rack's `normalize_params`.
fn insert(map: &mut BTreeMap<String, Node>, name: &str, value: String, depth: usize) -> Result<(), ApiError> {
    if depth > MAX_DEPTH {
        return Err(ApiError::request(
            "Invalid request: parameters are nested too deeply",
        ));
    }
    let (key, after) = split_name(name);
    if key.is_empty() {
        return Ok(());
    }
    if after.is_empty() {
        map.insert(key.to_owned(), Node::Text(value));
        return Ok(());
    }
    if after == "[" {
        map.insert(name.to_owned(), Node::Text(value));
        return Ok(());
    }
    if let Some(child) = after.strip_prefix("[]") {
        let list = map
            .entry(key.to_owned())
            .or_insert_with(|| Node::List(Vec::new()));
        let Node::List(list) = list else {
            return Err(expected(key, "Array"));
        };
        return push(list, child, value, depth);
    }
    let child = map
        .entry(key.to_owned())
        .or_insert_with(|| Node::Map(BTreeMap::new()));
    match child {
        Node::Map(child) => insert(child, after, value, depth.saturating_add(1)),
        Node::Text(_) | Node::List(_) => Err(expected(key, "Hash")),
    }
}

/// `name[]…`: a scalar is appended; `name[][key]` fills the last map until a key would repeat.
fn push(list: &mut Vec<Node>, child: &str, value: String, depth: usize) -> Result<(), ApiError> {
    if child.is_empty() {
        list.push(Node::Text(value));
        return Ok(());
    }
    let (key, _) = split_name(child);
    let depth = depth.saturating_add(1);
    if let Some(Node::Map(last)) = list.last_mut()
        && !last.contains_key(key)
    {
        return insert(last, child, value, depth);
    }
    let mut map = BTreeMap::new();
    insert(&mut map, child, value, depth)?;
    list.push(Node::Map(map));
    Ok(())
}

/// `\A[\[\]]*([^\[\]]+)\]*` and what follows it.
fn split_name(name: &str) -> (&str, &str) {
    let trimmed = name.trim_start_matches(['[', ']']);
    let (key, rest) = match trimmed.find(['[', ']']) {
        Some(end) => trimmed.split_at(end),
        None => (trimmed, ""),
    };
    (key, rest.trim_start_matches(']'))
}

fn expected(name: &str, kind: &str) -> ApiError {
    ApiError::invalid(
        name,
        format!("Invalid request: expected {kind} for param `{name}'"),
    )
}

fn bad_escape() -> ApiError {
    ApiError::request("Invalid request: the parameters are not valid UTF-8 in valid %-encoding")
}

/// Undoes `+` and `%XX`; `None` for a broken escape or invalid UTF-8.
fn decode(text: &str) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = hex(rest.next()?)?;
                let low = hex(rest.next()?)?;
                (high << 4) | low
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(byte.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(byte.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

fn to_json(node: &Node) -> serde_json::Value {
    match node {
        Node::Text(text) => text.as_str().into(),
        Node::List(list) => list.iter().map(to_json).collect(),
        Node::Map(map) => map
            .iter()
            .map(|(key, node)| (key.clone(), to_json(node)))
            .collect(),
    }
}

fn write_map(map: &BTreeMap<String, Node>, out: &mut String) {
    out.push('{');
    for (key, node) in map {
        write_text(key, out);
        write_node(node, out);
    }
    out.push('}');
}

fn write_node(node: &Node, out: &mut String) {
    match node {
        Node::Text(text) => write_text(text, out),
        Node::List(list) => {
            out.push('[');
            for node in list {
                write_node(node, out);
            }
            out.push(']');
        }
        Node::Map(map) => write_map(map, out),
    }
}

fn write_text(text: &str, out: &mut String) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{}:{text}", text.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Params {
        Params::read("", body).expect("a readable form")
    }

    #[test]
    fn near_misses_are_read_as_rack_reads_them() {
        for body in [
            "amount=500",
            "[amount]=500",
            "amount]=500",
            "[[amount]=500",
            "a=1;amount=500",
        ] {
            assert_eq!(read(body).integer("amount").unwrap(), Some(500), "{body}");
        }
        assert_eq!(read("amount=1&amount=500").integer("amount").unwrap(), Some(500));
        assert_eq!(read("amount[=500").text("amount").unwrap(), None);
        assert!(read("amount[=500").has("amount["));
    }

    #[test]
    fn nesting_lists_and_escapes() {
        let params = read(
            "metadata[order%20id]=a%2Bb+c&expand[]=x&expand[]=y&items[0][price]=p&l[][a]=1&l[][b]=2&l[][a]=3",
        );
        assert_eq!(params.nested("metadata", "order id"), Some("a+b c"));
        assert_eq!(params.strings("expand"), ["x", "y"]);
        assert_eq!(
            params.json("items").unwrap(),
            serde_json::json!({"0": {"price": "p"}})
        );
        assert_eq!(
            params.json("l").unwrap(),
            serde_json::json!([{"a": "1", "b": "2"}, {"a": "3"}])
        );
        assert_eq!(read("expand[0]=x&expand[1]=y").strings("expand"), ["x", "y"]);
    }

    #[test]
    fn a_body_overrides_the_query() {
        let params = Params::read("amount=1&charge=ch_1", "amount=2").unwrap();
        assert_eq!(params.integer("amount").unwrap(), Some(2));
        assert_eq!(params.text("charge").unwrap(), Some("ch_1"));
    }

    #[test]
    fn a_name_that_is_a_scalar_and_a_map_is_refused() {
        for body in ["a=1&a[b]=2", "a[b]=1&a[]=2", "a=%zz", "a=%ff"] {
            assert!(Params::read("", body).is_err(), "{body}");
        }
    }

    #[test]
    fn the_canonical_text_tells_apart_what_differs_and_nothing_else() {
        assert_eq!(read("a=1&b[c]=2").canonical(), read("b[c]=2&a=1").canonical());
        let mut seen = std::collections::BTreeSet::new();
        for body in [
            "a=1",
            "a=11",
            "a=",
            "a[]=1",
            "a[0]=1",
            "a[b]=1",
            "a=1&b=",
            "a[]=1&a[]=2",
            "a[]=12",
        ] {
            assert!(seen.insert(read(body).canonical()), "{body}");
        }
    }
}
