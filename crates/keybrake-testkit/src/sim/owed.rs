//! What processes were told was written and a server that took over does not have: they owe it to the ledger, which lets
//! none of them go on before it is there again.

use std::collections::BTreeMap;

use keybrake::ledger::Reservation;

use super::store::{Reply, Store};

const CALL: &str = "kb:{default}:r:";

/// A call as one step left it: attempts, and settlements recorded.
#[derive(Clone, Debug)]
struct Left {
    attempts: u32,
    applied: Vec<(u32, String)>,
}

/// By process and command, or by process, calls as they were left.
type Calls = BTreeMap<String, Left>;

#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Written, and the answer is on its way.
    written: BTreeMap<(u64, Vec<String>), Calls>,
    /// Written, and the process knows it.
    known: BTreeMap<u64, Calls>,
    /// Known, and lost by a server.
    lost: BTreeMap<u64, Calls>,
}

impl Owed {
    /// The server has run a command of a process.
    pub(super) fn ran(
        &mut self,
        process: u64,
        words: &[String],
        reply: &Reply,
        store: &Store,
    ) -> Result<(), String> {
        let function = words.get(1).map_or("", String::as_str);
        let said = |text: &str| matches!(reply, Reply::List(parts) if parts.first() == Some(&Reply::Text(text.to_owned())));
        if function.starts_with("keybrake_open_") && words.iter().any(|word| word == "person") && said("1") {
            // A person has accepted what is missing.
            self.lost.clear();
        }
        if !function.starts_with("keybrake_commit_") || !said("done") {
            return Ok(());
        }
        for (id, owed) in self.lost.remove(&process).unwrap_or_default() {
            if !stands(store, &id, &owed) {
                return Err(format!(
                    "p{process} goes on, and what it had written of call {id} is lost: {owed:?}"
                ));
            }
        }
        let ids = words.iter().filter_map(|word| word.strip_prefix(CALL));
        let calls = ids.filter_map(|id| Some((id.to_owned(), left(store, id)?)));
        self.written.insert((process, words.to_vec()), calls.collect());
        Ok(())
    }

    /// The answer to a command has reached its process.
    pub(super) fn answered(&mut self, process: u64, words: &[String]) {
        if let Some(calls) = self.written.remove(&(process, words.to_vec())) {
            self.known.entry(process).or_default().extend(calls);
        }
    }

    /// The server's data is another now.
    pub(super) fn replaced(&mut self, store: &Store) {
        for (process, calls) in &mut self.known {
            let gone: Vec<String> = calls
                .iter()
                .filter(|(id, left)| !stands(store, id, left))
                .map(|(id, _)| id.clone())
                .collect();
            let lost = self.lost.entry(*process).or_default();
            for id in gone {
                lost.extend(calls.remove_entry(&id));
            }
        }
        self.written.clear();
    }
}

fn left(store: &Store, id: &str) -> Option<Left> {
    let call: Reservation = serde_json::from_str(store.text(&format!("{CALL}{id}"), None)?).ok()?;
    Some(Left {
        attempts: call.attempts,
        applied: call.applied,
    })
}

fn stands(store: &Store, id: &str, left_by: &Left) -> bool {
    left(store, id).is_some_and(|found| {
        found.attempts >= left_by.attempts
            && left_by.applied.iter().all(|proof| found.applied.contains(proof))
    })
}
