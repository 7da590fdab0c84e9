//! What the vendors' tables of operations have in common: how a row is written, and which row a method and a path name
//! (security rule 5).

use std::borrow::Cow;
use std::collections::BTreeMap;

/// What an operation does, which decides how it is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Free and effect-free; part of `reads`.
    Read,
    /// Changes something, moves no money.
    Free,
    /// Moves money, or may.
    Money,
    /// A write whose cost we do not know: refused unless the policy gives its cost.
    Unknown,
}

/// One operation of a vendor's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Dotted name, such as `refunds.create`.
    pub name: &'static str,
    /// HTTP method, upper case.
    pub method: &'static str,
    /// Path with `*` for ids, such as `/v1/charges/*`.
    pub path: &'static str,
    /// What it does.
    pub class: Class,
    /// +1 collects money, −1 sends money out, 0 neither.
    pub direction: i8,
    /// Fields whose values make two calls the same spend (besides the path's ids), each with all that is below it.
    /// Empty: every field of the request.
    pub identity_fields: &'static [&'static str],
    /// Whether our tag can be written into the request, to find it again by listing.
    pub tagged: bool,
}

impl Operation {
    /// Whether it stands for a path that is in no table.
    pub(super) fn is_unlisted(&self) -> bool {
        self.name == UNLISTED_NAME
    }
}

/// Identity by every field of the request.
pub(super) const ALL: &[&str] = &[];

/// A GET that costs nothing and changes nothing.
pub(super) const fn read(name: &'static str, path: &'static str) -> Operation {
    row("GET", name, path, Class::Read)
}

/// A write that moves no money.
pub(super) const fn free(method: &'static str, name: &'static str, path: &'static str) -> Operation {
    row(method, name, path, Class::Free)
}

/// A call whose cost is not known here.
pub(super) const fn unknown(method: &'static str, name: &'static str, path: &'static str) -> Operation {
    row(method, name, path, Class::Unknown)
}

/// A POST whose cost is not known here, and what makes two of them the same.
pub(super) const fn send(
    name: &'static str,
    path: &'static str,
    identity_fields: &'static [&'static str],
) -> Operation {
    Operation {
        identity_fields,
        ..unknown("POST", name, path)
    }
}

/// A POST that moves money, by an amount that its request or one read tells.
pub(super) const fn money(
    name: &'static str,
    path: &'static str,
    direction: i8,
    identity_fields: &'static [&'static str],
    tagged: bool,
) -> Operation {
    Operation {
        direction,
        identity_fields,
        tagged,
        ..row("POST", name, path, Class::Money)
    }
}

const fn row(method: &'static str, name: &'static str, path: &'static str, class: Class) -> Operation {
    Operation {
        name,
        method,
        path,
        class,
        direction: 0,
        identity_fields: ALL,
        tagged: false,
    }
}

const UNLISTED_NAME: &str = "unknown";

/// What a path that is in no table is judged as, by method.
static UNLISTED: [Operation; 4] = [
    unknown("POST", UNLISTED_NAME, "**"),
    unknown("PATCH", UNLISTED_NAME, "**"),
    unknown("DELETE", UNLISTED_NAME, "**"),
    unknown("GET", UNLISTED_NAME, "**"),
];

/// The id in a segment that stands where a table has `*`, by the vendor's grammar; `None` when it is none. The second
/// argument says whether it is the path's last segment.
pub(super) type IdIn = fn(&str, bool) -> Option<&str>;

/// A table's paths, by segment.
#[derive(Debug)]
pub(super) struct Routes {
    methods: &'static [&'static str],
    id_in: IdIn,
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    literals: BTreeMap<&'static str, Self>,
    id: Option<Box<Self>>,
    operations: Vec<&'static Operation>,
}

impl Routes {
    /// The routes of these operations, at a vendor whose API uses these methods.
    pub(super) fn new(
        methods: &'static [&'static str],
        id_in: IdIn,
        operations: impl IntoIterator<Item = &'static Operation>,
    ) -> Self {
        let mut root = Node::default();
        for operation in operations {
            root.add(operation);
        }
        Self { methods, id_in, root }
    }

    /// The operation that a method and a path name, and the ids in the path.
    ///
    /// A literal segment is never an id: where the table has `/v1/charges/search`, `search` is no charge. A path that is
    /// in no table is an `unknown` operation; `None` only for a method that the vendor's API does not use.
    pub(super) fn find(
        &self,
        method: &str,
        segments: &[Cow<'_, str>],
    ) -> Option<(&'static Operation, Vec<String>)> {
        let of_method = |operation: &Operation| operation.method == method;
        let unlisted = UNLISTED.iter().find(|operation| of_method(operation))?;
        if !self.methods.contains(&method) {
            return None;
        }
        let mut node = &self.root;
        let mut ids = Vec::new();
        let mut rest = segments;
        while let Some((segment, after)) = rest.split_first() {
            rest = after;
            let id = || (self.id_in)(segment, after.is_empty());
            node = match (node.literals.get(segment.as_ref()), &node.id) {
                (Some(next), _) => next,
                (None, Some(next)) => match id() {
                    Some(id) => {
                        ids.push(id.to_owned());
                        next
                    }
                    None => return Some((unlisted, Vec::new())),
                },
                (None, None) => return Some((unlisted, Vec::new())),
            };
        }
        let operation = node.operations.iter().find(|operation| of_method(operation));
        Some(operation.map_or_else(|| (unlisted, Vec::new()), |operation| (*operation, ids)))
    }
}

impl Node {
    fn add(&mut self, operation: &'static Operation) {
        let mut node = self;
        for segment in operation.path.split('/').skip(1) {
            node = if segment == "*" {
                node.id.get_or_insert_default()
            } else {
                node.literals.entry(segment).or_default()
            };
        }
        node.operations.push(operation);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::request::path;
    use crate::vendors::vendors;

    /// The GETs that may cost something.
    const BILLED_GETS: &[(&str, &str)] = &[("twilio", "lookups.phone_numbers.fetch")];

    /// How a vendor routes.
    type Route<'a> = &'a dyn Fn(&str, &[Cow<'_, str>]) -> Option<(&'static Operation, Vec<String>)>;

    /// The name of the operation that a path is routed to, and the ids in it.
    pub(in crate::vendors) fn named(
        route: Route<'_>,
        method: &str,
        path: &str,
    ) -> (&'static str, Vec<String>) {
        let (operation, ids) = route(method, &path::segments(path).unwrap()).unwrap();
        (operation.name, ids)
    }

    /// Asserts that each operation's path, with this id at every `*`, is routed to that operation. `suffix` is what a
    /// path that ends in an id has behind it.
    pub(in crate::vendors) fn all_route_to_themselves<'a>(
        operations: impl IntoIterator<Item = &'a Operation>,
        id: &str,
        suffix: &str,
        route: Route<'_>,
    ) {
        for operation in operations {
            let mut path = operation.path.replace('*', id);
            if operation.path.ends_with('*') {
                path.push_str(suffix);
            }
            let (found, ids) = named(route, operation.method, &path);
            assert_eq!(found, operation.name, "{path}");
            assert_eq!(ids, vec![id; operation.path.matches('*').count()], "{path}");
        }
    }

    #[test]
    fn names_and_routes_are_unique_in_every_table() {
        for vendor in vendors() {
            let operations = vendor.operations();
            let names: BTreeSet<_> = operations.iter().map(|o| o.name).collect();
            assert_eq!(names.len(), operations.len(), "{}", vendor.name());
            let paths: BTreeSet<_> = operations.iter().map(|o| (o.method, o.path)).collect();
            assert_eq!(paths.len(), operations.len(), "{}", vendor.name());
            assert!(
                !operations.iter().any(Operation::is_unlisted),
                "{}",
                vendor.name()
            );
        }
    }

    #[test]
    fn only_gets_are_reads_and_only_money_has_a_direction() {
        for vendor in vendors() {
            for operation in vendor.operations() {
                let billed = BILLED_GETS.contains(&(vendor.name(), operation.name));
                assert_eq!(
                    operation.class == Class::Read,
                    operation.method == "GET" && !billed,
                    "{operation:?}"
                );
                assert_eq!(
                    operation.class == Class::Money,
                    operation.direction != 0,
                    "{operation:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_but_stripe_is_priced_here() {
        let priced = vendors().iter().filter(|vendor| {
            let mut operations = vendor.operations().iter();
            operations.any(|operation| operation.class == Class::Money)
        });
        let names: Vec<&str> = priced.map(|vendor| vendor.name()).collect();
        assert_eq!(names, ["stripe"]);
    }
}
