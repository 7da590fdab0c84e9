//! Resend's operations, and which of them a method and a path name (security rule 5).
//!
//! The well-known part of the API, of `resend-openapi` v1.5.0 (fd6f395, 2026-08-21). What sends, or adds to what is billed,
//! is of unknown cost; what only changes settings or deletes is free. API keys cannot be made under a name: a policy that
//! wants that says so by its path, because whoever has one sends past the books.

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::vendors::Operation;
use crate::vendors::table::{ALL, Routes, free, read, send};

/// The methods of Resend's API.
const METHODS: &[&str] = &["GET", "POST", "PATCH", "DELETE"];

/// What makes two e-mails the same.
const EMAIL: &[&str] = &[
    "from",
    "to",
    "cc",
    "bcc",
    "subject",
    "html",
    "text",
    "template",
    "attachments",
    "scheduled_at",
];

#[rustfmt::skip]
pub(super) const OPERATIONS: &[Operation] = &[
    read("api_keys.list", "/api-keys"),
    free("DELETE", "api_keys.delete", "/api-keys/*"),
    read("audiences.list", "/audiences"),
    read("audiences.get", "/audiences/*"),
    free("POST", "audiences.create", "/audiences"),
    free("DELETE", "audiences.delete", "/audiences/*"),
    read("audiences.contacts.list", "/audiences/*/contacts"),
    read("audiences.contacts.get", "/audiences/*/contacts/*"),
    // Contacts are what Resend's marketing plans are billed by.
    send("audiences.contacts.create", "/audiences/*/contacts", ALL),
    free("PATCH", "audiences.contacts.update", "/audiences/*/contacts/*"),
    free("DELETE", "audiences.contacts.delete", "/audiences/*/contacts/*"),
    read("broadcasts.list", "/broadcasts"),
    read("broadcasts.get", "/broadcasts/*"),
    // Free without `send`.
    free("POST", "broadcasts.create", "/broadcasts"),
    free("PATCH", "broadcasts.update", "/broadcasts/*"),
    free("DELETE", "broadcasts.delete", "/broadcasts/*"),
    send("broadcasts.send", "/broadcasts/*/send", ALL),
    read("contacts.list", "/contacts"),
    read("contacts.get", "/contacts/*"),
    send("contacts.create", "/contacts", ALL),
    free("PATCH", "contacts.update", "/contacts/*"),
    free("DELETE", "contacts.delete", "/contacts/*"),
    read("domains.list", "/domains"),
    read("domains.get", "/domains/*"),
    free("POST", "domains.create", "/domains"),
    free("PATCH", "domains.update", "/domains/*"),
    free("POST", "domains.verify", "/domains/*/verify"),
    free("DELETE", "domains.delete", "/domains/*"),
    read("emails.list", "/emails"),
    read("emails.get", "/emails/*"),
    send("emails.send", "/emails", EMAIL),
    send("emails.batch", "/emails/batch", ALL),
    free("PATCH", "emails.update", "/emails/*"),
    free("POST", "emails.cancel", "/emails/*/cancel"),
    read("emails.attachments.list", "/emails/*/attachments"),
    read("emails.attachments.get", "/emails/*/attachments/*"),
    read("emails.receiving.list", "/emails/receiving"),
    read("emails.receiving.get", "/emails/receiving/*"),
    read("emails.receiving.attachments.list", "/emails/receiving/*/attachments"),
    read("emails.receiving.attachments.get", "/emails/receiving/*/attachments/*"),
    // Starts automations, which send.
    send("events.send", "/events/send", ALL),
    read("segments.list", "/segments"),
    read("segments.get", "/segments/*"),
    free("POST", "segments.create", "/segments"),
    free("DELETE", "segments.delete", "/segments/*"),
    read("templates.list", "/templates"),
    read("templates.get", "/templates/*"),
    free("POST", "templates.create", "/templates"),
    free("PATCH", "templates.update", "/templates/*"),
    free("DELETE", "templates.delete", "/templates/*"),
    free("POST", "templates.duplicate", "/templates/*/duplicate"),
    free("POST", "templates.publish", "/templates/*/publish"),
    read("topics.list", "/topics"),
    read("topics.get", "/topics/*"),
    free("POST", "topics.create", "/topics"),
    free("PATCH", "topics.update", "/topics/*"),
    free("DELETE", "topics.delete", "/topics/*"),
    read("webhooks.list", "/webhooks"),
    // Not one webhook itself, nor a new one: the reply has the secret that its messages are signed with.
    free("PATCH", "webhooks.update", "/webhooks/*"),
    free("DELETE", "webhooks.delete", "/webhooks/*"),
];

static ROUTES: LazyLock<Routes> = LazyLock::new(|| Routes::new(METHODS, id_in, OPERATIONS));

/// The operation that a method and a path name, and the ids in the path; see [`Routes::find`]. `/emails/batch` is no
/// e-mail.
pub(super) fn route(method: &str, segments: &[Cow<'_, str>]) -> Option<(&'static Operation, Vec<String>)> {
    ROUTES.find(method, segments)
}

fn id_in(segment: &str, _is_last: bool) -> Option<&str> {
    is_id(segment).then_some(segment)
}

/// Letters, digits, `-` and `_` (ids are UUIDs), or an address, where a contact is named by its own; never a word that is
/// part of a route.
fn is_id(segment: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@+".contains(&byte);
    let is_word = || {
        OPERATIONS
            .iter()
            .any(|operation| operation.path.split('/').any(|word| word == segment))
    };
    (1..=255).contains(&segment.len())
        && segment.bytes().all(plain)
        && !segment.starts_with('.')
        && !is_word()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vendors::table::tests::{all_route_to_themselves, named};

    fn name(method: &str, path: &str) -> (&'static str, usize) {
        let (name, ids) = named(&route, method, path);
        (name, ids.len())
    }

    #[test]
    fn every_operation_routes_to_itself() {
        all_route_to_themselves(OPERATIONS, "4ef9a417-02e9-4d39-ad75-9611e0fcc33c", "", &route);
    }

    #[test]
    fn rule_05_literal_routes_are_never_ids() {
        assert_eq!(name("GET", "/emails/receiving").0, "emails.receiving.list");
        assert_eq!(name("GET", "/emails/batch").0, "unknown");
        assert_eq!(name("PATCH", "/emails/batch").0, "unknown");
        assert_eq!(name("GET", "/contacts/steve%40example.com"), ("contacts.get", 1));
    }

    #[test]
    fn lesson_13_unmatched_route_is_unknown() {
        for (method, path) in [
            ("POST", "/email"),
            ("POST", "/Emails"),
            ("POST", "/v1/emails"),
            ("POST", "/emails/e_1"),
            ("POST", "/emails/e_1/forward"),
            ("POST", "/api-keys"),
            ("GET", "/automations"),
            ("DELETE", "/emails/e_1"),
        ] {
            assert_eq!(name(method, path).0, "unknown", "{method} {path}");
        }
        assert!(route("PUT", &[Cow::Borrowed("emails")]).is_none());
    }
}
