//! Names of counters as they are stored, so that they sort by time.

use std::borrow::Cow;

/// Digits of a time in a counter's stored name: Unix milliseconds from 2001 to 2286 have these many.
pub(super) const TIME_DIGITS: usize = 13;

/// A counter's name as it is stored: a window's start filled up with zeros, so that names sort by time.
pub(super) fn stored_name(name: &str) -> Cow<'_, str> {
    match name.rsplit_once('|') {
        Some((family, start)) if start.len() < TIME_DIGITS && is_number(start) => {
            Cow::Owned(format!("{family}|{start:0>TIME_DIGITS$}"))
        }
        _ => Cow::Borrowed(name),
    }
}

/// The name that was stored.
pub(super) fn given_name(name: String) -> String {
    match name.rsplit_once("|0") {
        Some((family, start)) if start.len() < TIME_DIGITS && is_number(start) => {
            let start = start.trim_start_matches('0');
            format!("{family}|{}", if start.is_empty() { "0" } else { start })
        }
        _ => name,
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_name_comes_back_as_it_was_given() {
        for name in [
            "stripe|lineage:a|usd|day|test|1795305600000",
            "stripe|lineage:a|usd|day|test|0",
            "stripe|lineage:a|usd|day|test|86400000",
            "stripe|lineage:007|usd|lifetime|live|-",
            "plain",
        ] {
            assert_eq!(given_name(stored_name(name).into_owned()), name);
        }
    }

    #[test]
    fn stored_names_sort_by_time() {
        let names = ["f|9", "f|86400000", "f|1795305600000"];
        let stored: Vec<_> = names.iter().map(|name| stored_name(name)).collect();
        assert!(stored.is_sorted(), "{stored:?}");
    }
}
