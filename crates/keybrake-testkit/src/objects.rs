//! The objects of a simulated vendor that sends, in the order in which they were made.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// An object as the API shows it, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// Empty where there are no accounts.
    pub(crate) account: String,
    pub(crate) value: Value,
    order: u64,
}

/// All of them, by id.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    by_id: BTreeMap<String, Object>,
    made: u64,
}

impl Objects {
    pub(crate) fn add(&mut self, account: &str, id: &str, value: Value) {
        self.made = self.made.saturating_add(1);
        let object = Object {
            account: account.to_owned(),
            value,
            order: self.made,
        };
        self.by_id.insert(id.to_owned(), object);
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Value> {
        self.by_id.get(id).map(|object| &object.value)
    }

    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Value> {
        self.by_id.get_mut(id).map(|object| &mut object.value)
    }

    /// The object, if it is this account's.
    pub(crate) fn of_account(&mut self, account: &str, id: &str) -> Option<&mut Value> {
        let object = self.by_id.get_mut(id)?;
        (object.account == account).then_some(&mut object.value)
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.by_id.remove(id);
    }

    /// Those that fit, by id and object, the newest first.
    pub(crate) fn newest_first(&self, fits: impl Fn(&str, &Object) -> bool) -> Vec<&Value> {
        let mut found: Vec<&Object> = self
            .by_id
            .iter()
            .filter(|(id, object)| fits(id, object))
            .map(|(_, object)| object)
            .collect();
        found.sort_by_key(|object| Reverse(object.order));
        found.into_iter().map(|object| &object.value).collect()
    }

    /// The newest that fits.
    pub(crate) fn newest_mut(&mut self, fits: impl Fn(&Object) -> bool) -> Option<&mut Value> {
        let fitting = self.by_id.values_mut().filter(|object| fits(object));
        let newest = fitting.max_by_key(|object| object.order)?;
        Some(&mut newest.value)
    }

    /// Moves an object on: this member becomes one of these words. Answers the object's members; `Err` says why not, with
    /// `what` for what the words are.
    pub(crate) fn advance(
        &mut self,
        id: &str,
        member: &str,
        to: &str,
        (words, what): (&[&str], &str),
    ) -> Result<&mut Map<String, Value>, String> {
        if !words.contains(&to) {
            return Err(format!("{to:?} is not {what}"));
        }
        let value = self.get_mut(id).ok_or_else(|| format!("there is no {id}"))?;
        let members = value.as_object_mut().ok_or("not an object")?;
        members.insert(member.to_owned(), json!(to));
        Ok(members)
    }

    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
    }
}
