//! One outcome as a line of a journal file: `STATE LENGTH CRC JSON`.
//!
//! `STATE` is `w` (waits) or `d` (delivered, overwritten in place), `LENGTH` and `CRC` (CRC-32 of the JSON) are eight
//! hexadecimal digits each. JSON has no line break in it, so a damaged line hides none of the others.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::ledger::Settlement;

/// The first byte of a line that waits.
const WAITS: u8 = b'w';
/// The first byte of a line that was delivered.
pub(super) const DELIVERED: u8 = b'd';
/// Bytes before the JSON.
const HEAD: usize = 20;

/// The format of entries that this version writes, and the newest that it reads.
pub(super) const VERSION: u32 = 1;

/// An outcome that the ledger has not taken yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its format; before there was more than one, none was written.
    #[serde(default)]
    pub(super) v: u32,
    /// The id of the ledger that it belongs to.
    pub(super) ledger: String,
    /// The part of that ledger's store.
    pub(super) namespace: String,
    /// When it was written, Unix milliseconds.
    pub(super) at_ms: i64,
    /// The outcome; a recorded reply is encrypted in it.
    pub(super) settlement: Settlement,
}

/// A line that was read, by where it begins in its file.
#[derive(Debug)]
pub(super) enum Line {
    /// Waits to be delivered.
    Waiting(u64, Box<Entry>),
    /// Whole, and written by a newer version of this library: for a process that has it.
    Newer,
    /// Cannot be believed.
    Damaged(u64, &'static str),
}

/// The line of an entry, with its line break.
pub(super) fn line(entry: &Entry) -> Result<Vec<u8>> {
    let unwritable = |e: serde_json::Error| {
        Error::new(ErrorKind::Internal, "an outcome cannot be written as JSON").because(e)
    };
    let json = serde_json::to_string(entry).map_err(unwritable)?;
    let crc = crc32fast::hash(json.as_bytes());
    let state = char::from(WAITS);
    Ok(format!("{state} {:08x} {crc:08x} {json}\n", json.len()).into_bytes())
}

/// The lines of a file that were not delivered.
pub(super) fn lines(content: &[u8]) -> Vec<Line> {
    let mut at = 0_u64;
    let mut found = Vec::new();
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        match read(line) {
            Ok(Content::Entry(entry)) => found.push(Line::Waiting(at, entry)),
            Ok(Content::Newer) => found.push(Line::Newer),
            Ok(Content::Delivered) => {}
            Err(why) => found.push(Line::Damaged(at, why)),
        }
        at = at.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
    }
    found
}

/// The line that begins at a place, without its line break.
pub(super) fn raw(content: &[u8], at: u64) -> &[u8] {
    let rest = usize::try_from(at).ok().and_then(|at| content.get(at..));
    let line = rest.and_then(|rest| rest.split(|byte| *byte == b'\n').next());
    line.unwrap_or_default()
}

/// What stands in a line that is whole.
enum Content {
    Entry(Box<Entry>),
    Newer,
    Delivered,
}

fn read(line: &[u8]) -> Result<Content, &'static str> {
    let line = line.strip_suffix(b"\n").ok_or("it is cut off")?;
    let (head, json) = line.split_at_checked(HEAD).ok_or("it is cut off")?;
    let number = |from: usize, to: usize| {
        let digits = head
            .get(from..to)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok())
    };
    let length = number(2, 10).and_then(|length| usize::try_from(length).ok());
    if length != Some(json.len()) || number(11, 19) != Some(crc32fast::hash(json)) {
        return Err("its checksum does not match");
    }
    match head.first() {
        Some(&DELIVERED) => return Ok(Content::Delivered),
        Some(&WAITS) => {}
        _ => return Err("its state is none that is known"),
    }
    // Every byte is as it was written, so who wrote it knew more than this version.
    Ok(match serde_json::from_slice::<Entry>(json) {
        Ok(entry) if entry.v <= VERSION => Content::Entry(Box::new(entry)),
        _ => Content::Newer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{ObjectState, Proof, ReplyFacts};
    use crate::money::Usd;

    fn entry(call_id: &str) -> Entry {
        Entry {
            v: VERSION,
            ledger: "l".to_owned(),
            namespace: "default".to_owned(),
            at_ms: 1_795_305_600_000,
            settlement: Settlement {
                call_id: call_id.to_owned(),
                attempt: 2,
                proof: Proof::Charged {
                    actual: Usd::from_micros(12_000_000),
                },
                object: Some(ObjectState {
                    object: "stripe|test|-|pi_1\n".to_owned(),
                    moved: Usd::from_micros(12_000_000),
                    closed: true,
                }),
                reply: Some(vec![0, 10, 255]),
                facts: ReplyFacts {
                    status_code: Some(200),
                    ..ReplyFacts::default()
                },
            },
        }
    }

    fn waiting(content: &[u8]) -> Vec<String> {
        let call = |line: &Line| match line {
            Line::Waiting(_, entry) => Some(entry.settlement.call_id.clone()),
            Line::Newer | Line::Damaged(..) => None,
        };
        lines(content).iter().filter_map(call).collect()
    }

    #[test]
    fn an_entry_comes_back_whole() {
        let content = line(&entry("a")).unwrap();
        let found = lines(&content);
        let [Line::Waiting(0, found)] = &found[..] else {
            panic!("{found:?}")
        };
        let (back, was) = (&found.settlement, entry("a").settlement);
        assert_eq!((&back.call_id, back.attempt), (&was.call_id, was.attempt));
        assert_eq!((&back.proof, &back.object), (&was.proof, &was.object));
        assert_eq!((&back.reply, &back.facts), (&was.reply, &was.facts));
    }

    #[test]
    fn any_damage_of_one_line_is_noticed_and_leaves_the_others() {
        let all = ["a", "b", "c"].map(|id| line(&entry(id)).unwrap());
        let [first, middle, last] = all;
        for at in 0..middle.len() - 1 {
            // `u` for the state; the two blanks of the head mean nothing.
            if matches!(at, 1 | 10 | 19) {
                continue;
            }
            let mut damaged = middle.clone();
            damaged[at] ^= 0x02;
            let content = [&first[..], &damaged, &last].concat();
            assert_eq!(waiting(&content), ["a", "c"], "byte {at}");
            assert!(lines(&content).len() >= 3);
        }
        for cut in 1..last.len() {
            let content = [&first[..], &middle, &last[..cut]].concat();
            assert_eq!(waiting(&content), ["a", "b"], "cut at {cut}");
            assert_eq!(lines(&content).len(), 3);
            assert_eq!(
                raw(&content, (first.len() + middle.len()) as u64),
                last[..cut].strip_suffix(b"\n").unwrap_or(&last[..cut])
            );
        }
    }

    #[test]
    fn an_entry_of_a_newer_version_is_known_as_one() {
        let newer = Entry {
            v: VERSION + 1,
            ..entry("a")
        };
        let mut content = line(&newer).unwrap();
        let json = "{\"ledger\":\"l\",\"settlement\":{\"proof\":{\"witnessed\":{}}}}";
        let crc = crc32fast::hash(json.as_bytes());
        content.extend(format!("w {:08x} {crc:08x} {json}\n", json.len()).into_bytes());
        let found = lines(&content);
        assert!(matches!(found[..], [Line::Newer, Line::Newer]), "{found:?}");
        // One that was written before entries had a version.
        let old = String::from_utf8(line(&entry("a")).unwrap())
            .unwrap()
            .replace("\"v\":1,", "");
        let json = old.get(HEAD..old.len() - 1).unwrap();
        let crc = crc32fast::hash(json.as_bytes());
        let old = format!("w {:08x} {crc:08x} {json}\n", json.len());
        assert_eq!(waiting(old.as_bytes()), ["a"]);
    }

    #[test]
    fn what_was_delivered_does_not_wait() {
        let mut content = [line(&entry("a")).unwrap(), line(&entry("b")).unwrap()].concat();
        content[0] = DELIVERED;
        assert_eq!(waiting(&content), ["b"]);
        assert_eq!(lines(&content).len(), 1);
    }
}
