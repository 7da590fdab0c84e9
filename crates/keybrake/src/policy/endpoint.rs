//! Endpoints: what `allowed_endpoints` and `denied_endpoints` mean, matched on recognised operations.
//!
//! An entry is an operation name (`refunds.create`), `reads`, or `METHOD /path`, where `*` stands for one id
//! (never for another operation's literal route) and `**` for any number of segments. Deny wins.

use std::collections::{BTreeSet, HashMap};

use super::catalogue::OperationInfo;
use super::reader::{did_you_mean, nearest};
use crate::error::{Error, Result};

/// Methods that a pattern may name.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// One segment of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// Exactly this text.
    Literal(String),
    /// One id: `*`.
    Id,
    /// Any number of segments, none included: `**`.
    Rest,
}

/// `METHOD /path`, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    method: String,
    segments: Vec<Segment>,
}

/// What one entry of a list means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    Reads,
    Name(String),
    Pattern(Pattern),
}

/// One entry of a list, with its place for messages.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Such as `allowed_endpoints[1]`.
    pub(crate) place: String,
    /// As written.
    pub(crate) text: String,
    meaning: Meaning,
}

/// A vendor's operations, indexed once for all policies of a compilation.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    pub(crate) vendor: &'static str,
    pub(crate) operations: Vec<OperationInfo>,
    by_name: HashMap<&'static str, usize>,
    literals: BTreeSet<&'static str>,
}

/// A call to match: the operation if it is known, else method and path alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) operation: Option<&'a OperationInfo>,
    pub(crate) method: &'a str,
    /// The path as sent, without the query.
    pub(crate) path: &'a str,
}

/// What a document's lists say to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision<'a> {
    /// Allowed by this entry.
    Allowed(&'a str, &'a str),
    /// Denied by this entry.
    Denied(&'a str, &'a str),
    /// In no list.
    NotListed,
}

/// The lists of one document for one vendor. `allow: None` means that the document does not restrict (only in
/// a narrowing).
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointSet {
    pub(crate) allow: Option<Vec<Entry>>,
    pub(crate) deny: Vec<Entry>,
    /// Operations whose answer does not depend on the ids in the path: index of the deciding entry.
    settled: HashMap<&'static str, Settled>,
}

/// A precomputed answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Unrestricted,
    Allowed(usize),
    Denied(usize),
    NotListed,
}

impl Pattern {
    /// Parses `METHOD /path`.
    fn parse(text: &str, place: &str) -> Result<Self> {
        let wrong = |why: &str| Error::policy(format!("`{place}` {text:?}: {why}"));
        let (method, path) = text.split_once(' ').ok_or_else(|| wrong("write METHOD /path"))?;
        if !METHODS.contains(&method) {
            let near = nearest(method, METHODS.into_iter()).unwrap_or("POST");
            return Err(wrong(&format!(
                "{method:?} is not a method; did you mean {near}?"
            )));
        }
        let Some(rest) = path.strip_prefix('/') else {
            return Err(wrong("the path must begin with /"));
        };
        let segments = rest.split('/').map(|segment| match segment {
            "*" => Ok(Segment::Id),
            "**" => Ok(Segment::Rest),
            "" => Err(wrong("the path has an empty segment")),
            _ if segment.contains('*') => Err(wrong("`*` and `**` stand for whole segments")),
            _ if segment == "."
                || segment == ".."
                || !segment
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"?#%\\;".contains(&b)) =>
            {
                Err(wrong("a segment has characters that no route has"))
            }
            _ => Ok(Segment::Literal(segment.to_owned())),
        });
        Ok(Self {
            method: method.to_owned(),
            segments: segments.collect::<Result<_>>()?,
        })
    }

    /// Matches a known operation. Its template decides what is an id; the path as sent gives the ids.
    /// `Some(true)` and `Some(false)` hold whatever the ids are; with `path: None` an answer that depends on
    /// them is `None`.
    fn matches_operation(&self, operation: &OperationInfo, path: Option<&str>) -> Option<bool> {
        if self.method != operation.method || !self.begins_like(operation.path) {
            return Some(false);
        }
        let template: Vec<_> = split(operation.path).collect();
        let sent: Option<Vec<_>> = path.map(|path| split(path).collect());
        // An alias has another shape than its operation; then only the template can be matched.
        let sent = sent.filter(|sent| sent.len() == template.len());
        let known_path = path.is_some();
        matches(&self.segments, template.len(), &|segment, index| {
            let place = template.get(index).copied().unwrap_or_default();
            match segment {
                Segment::Rest => Some(true),
                Segment::Id => Some(place == "*"),
                Segment::Literal(text) if place == "*" => match &sent {
                    Some(sent) => Some(sent.get(index).is_some_and(|id| id == text)),
                    None if known_path => Some(false),
                    None => None,
                },
                Segment::Literal(text) => Some(text == place),
            }
        })
    }

    /// Whether the words before the first id or star agree: most routes differ there, which saves the rest.
    fn begins_like(&self, template: &str) -> bool {
        for (segment, place) in self.segments.iter().zip(split(template)) {
            match segment {
                Segment::Literal(text) if place != "*" => {
                    if text != place {
                        return false;
                    }
                }
                _ => return true,
            }
        }
        true
    }

    /// Matches a path that belongs to no known operation. `*` stands for an id, so not for a word that is a
    /// literal in any route of the vendor.
    fn matches_path(&self, method: &str, path: &str, routes: &Routes) -> bool {
        let sent: Vec<_> = split(path).collect();
        self.method == method
            && matches(&self.segments, sent.len(), &|segment, index| {
                let given = sent.get(index).copied().unwrap_or_default();
                Some(match segment {
                    Segment::Rest => true,
                    Segment::Id => !given.is_empty() && !routes.literals.contains(given),
                    Segment::Literal(text) => text == given,
                })
            }) == Some(true)
    }
}

/// Whether a path has the shape of a template. An alias of an operation has not.
fn fits(template: &str, path: &str) -> bool {
    let (mut places, mut given) = (split(template), split(path));
    loop {
        match (places.next(), given.next()) {
            (None, None) => return true,
            (Some(place), Some(segment)) if place == "*" || place == segment => {}
            _ => return false,
        }
    }
}

fn split(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

/// Matches a pattern against `length` segments; `fits` says whether one pattern segment fits one position,
/// `None` when that is not known. One row of states per position: no backtracking, so no pattern is slow.
fn matches(
    pattern: &[Segment],
    length: usize,
    fits: &dyn Fn(&Segment, usize) -> Option<bool>,
) -> Option<bool> {
    // states[p]: whether the first p pattern segments can match what was read; `None` is "depends".
    let mut states = vec![Some(false); pattern.len().saturating_add(1)];
    if let Some(first) = states.first_mut() {
        *first = Some(true);
    }
    close_rests(pattern, &mut states);
    for index in 0..length {
        let mut next = vec![Some(false); states.len()];
        for (p, segment) in pattern.iter().enumerate() {
            let here = states.get(p).copied().unwrap_or(Some(false));
            let step = and(here, fits(segment, index));
            let to = if *segment == Segment::Rest {
                p
            } else {
                p.saturating_add(1)
            };
            if let Some(slot) = next.get_mut(to) {
                *slot = or(*slot, step);
            }
        }
        close_rests(pattern, &mut next);
        states = next;
    }
    states.last().copied().unwrap_or(Some(false))
}

/// `**` also matches nothing.
fn close_rests(pattern: &[Segment], states: &mut [Option<bool>]) {
    for (p, segment) in pattern.iter().enumerate() {
        if *segment == Segment::Rest {
            let here = states.get(p).copied().unwrap_or(Some(false));
            if let Some(after) = states.get_mut(p.saturating_add(1)) {
                *after = or(*after, here);
            }
        }
    }
}

fn and(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn or(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

impl Routes {
    pub(crate) fn new(vendor: &'static str, operations: Vec<OperationInfo>) -> Self {
        let by_name = operations
            .iter()
            .enumerate()
            .map(|(index, operation)| (operation.name, index))
            .collect();
        let literals = operations
            .iter()
            .flat_map(|operation| split(operation.path))
            .filter(|segment| *segment != "*")
            .collect();
        Self {
            vendor,
            operations,
            by_name,
            literals,
        }
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&OperationInfo> {
        self.by_name
            .get(name)
            .and_then(|index| self.operations.get(*index))
    }

    /// The operation that a method and path mean: of those that fit, the one with the most literal segments.
    pub(crate) fn find(&self, method: &str, path: &str) -> Option<&OperationInfo> {
        let words = |template: &str| split(template).filter(|place| *place != "*").count();
        // An id is never a word that stands in a route.
        let is_id = |segment: &str| !segment.is_empty() && !self.literals.contains(segment);
        let ids_are_ids = |template: &str| {
            split(template)
                .zip(split(path))
                .all(|(place, s)| place != "*" || is_id(s))
        };
        self.operations
            .iter()
            .filter(|o| o.method == method && fits(o.path, path) && ids_are_ids(o.path))
            .max_by_key(|o| words(o.path))
    }

    /// A path with everything that is no literal of a route replaced by `*`, so that messages carry no ids.
    pub(crate) fn masked(&self, path: &str) -> String {
        split(path).fold(String::new(), |mut text, segment| {
            text.push('/');
            text.push_str(if self.literals.contains(segment) {
                segment
            } else {
                "*"
            });
            text
        })
    }
}

impl Entry {
    pub(crate) fn parse(text: &str, place: String, routes: &Routes) -> Result<Self> {
        let meaning = if text == "reads" {
            Meaning::Reads
        } else if text.contains(' ') || text.contains('/') {
            Meaning::Pattern(Pattern::parse(text, &place)?)
        } else if routes.by_name(text).is_some() {
            Meaning::Name(text.to_owned())
        } else {
            return Err(unknown_name(text, &place, routes));
        };
        Ok(Self {
            place,
            text: text.to_owned(),
            meaning,
        })
    }

    /// Whether the entry is `METHOD /path`, the only form that can mean an operation Keybrake does not know.
    pub(crate) const fn is_pattern(&self) -> bool {
        matches!(self.meaning, Meaning::Pattern(_))
    }

    /// The answer for an operation whatever its ids are; `None` when it depends on them.
    pub(crate) fn covers(&self, operation: &OperationInfo) -> Option<bool> {
        self.matches_known(operation, None)
    }

    fn matches_known(&self, operation: &OperationInfo, path: Option<&str>) -> Option<bool> {
        match &self.meaning {
            Meaning::Reads => Some(operation.read),
            Meaning::Name(name) => Some(name == operation.name),
            Meaning::Pattern(pattern) => pattern.matches_operation(operation, path),
        }
    }

    pub(crate) fn matches(&self, target: Target<'_>, routes: &Routes) -> bool {
        match (target.operation, &self.meaning) {
            (Some(operation), _) => self.matches_known(operation, Some(target.path)) == Some(true),
            (None, Meaning::Pattern(pattern)) => pattern.matches_path(target.method, target.path, routes),
            (None, _) => false,
        }
    }

    /// For denying: also the path as sent, in case it is an alias of the operation.
    fn denies(&self, target: Target<'_>, routes: &Routes) -> bool {
        self.matches(target, routes)
            || self.matches(
                Target {
                    operation: None,
                    ..target
                },
                routes,
            )
    }
}

fn unknown_name(text: &str, place: &str, routes: &Routes) -> Error {
    let names = || routes.operations.iter().map(|operation| operation.name);
    let hint = match text.strip_suffix(".*") {
        Some(prefix) => {
            let all: Vec<_> = names()
                .filter(|name| {
                    name.strip_prefix(prefix)
                        .is_some_and(|rest| rest.starts_with('.'))
                })
                .collect();
            if all.is_empty() {
                "; name operations one by one".to_owned()
            } else {
                format!("; name each: {}", all.join(", "))
            }
        }
        None => did_you_mean(text, names().chain(["reads"])),
    };
    Error::policy(format!(
        "`{place}` {text:?} is not an operation of {}{hint}",
        routes.vendor
    ))
}

impl EndpointSet {
    pub(crate) fn new(allow: Option<Vec<Entry>>, deny: Vec<Entry>, routes: &Routes) -> Self {
        let mut set = Self {
            allow,
            deny,
            settled: HashMap::new(),
        };
        for operation in &routes.operations {
            if let Some(settled) = set.settle(operation) {
                set.settled.insert(operation.name, settled);
            }
        }
        set
    }

    fn settle(&self, operation: &OperationInfo) -> Option<Settled> {
        // The first entry that matches decides, as long as no earlier one depends on the ids.
        let first = |entries: &[Entry]| -> Option<Option<usize>> {
            for (index, entry) in entries.iter().enumerate() {
                match entry.covers(operation) {
                    Some(true) => return Some(Some(index)),
                    Some(false) => {}
                    None => return None,
                }
            }
            Some(None)
        };
        match first(&self.deny)? {
            Some(index) => Some(Settled::Denied(index)),
            None => match &self.allow {
                None => Some(Settled::Unrestricted),
                Some(allow) => Some(first(allow)?.map_or(Settled::NotListed, Settled::Allowed)),
            },
        }
    }

    pub(crate) fn decide(&self, target: Target<'_>, routes: &Routes) -> Decision<'_> {
        if let Some(operation) = target.operation
            && let Some(settled) = self.settled.get(operation.name)
            && (self.deny.is_empty() || fits(operation.path, target.path))
        {
            let allow = self.allow.as_deref().unwrap_or_default();
            let found = match settled {
                Settled::Unrestricted => return Decision::Allowed("", ""),
                Settled::NotListed => return Decision::NotListed,
                Settled::Allowed(index) => allow.get(*index).map(|e| Decision::Allowed(&e.place, &e.text)),
                Settled::Denied(index) => self.deny.get(*index).map(|e| Decision::Denied(&e.place, &e.text)),
            };
            return found.unwrap_or(Decision::NotListed);
        }
        if let Some(e) = self.deny.iter().find(|e| e.denies(target, routes)) {
            return Decision::Denied(&e.place, &e.text);
        }
        match &self.allow {
            None => Decision::Allowed("", ""),
            Some(allow) => allow
                .iter()
                .find(|e| e.matches(target, routes))
                .map_or(Decision::NotListed, |e| Decision::Allowed(&e.place, &e.text)),
        }
    }

    /// Whether some call of this operation can pass.
    pub(crate) fn may_allow(&self, operation: &OperationInfo) -> bool {
        let denied = self.deny.iter().any(|e| e.covers(operation) == Some(true));
        let allowed = self
            .allow
            .as_ref()
            .is_none_or(|allow| allow.iter().any(|e| e.covers(operation) != Some(false)));
        allowed && !denied
    }
}
