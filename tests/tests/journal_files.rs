//! The journal's files as they may be found: damaged, of a newer version, of another ledger, or open to others.

use keybrake::ErrorKind;
use keybrake::journal::Journal;
use keybrake_tests::journaling::{
    Place, budget, charged, chmod, contents, files, journaled, key, mode, permit,
};

#[tokio::test]
async fn what_is_damaged_or_refused_is_set_aside_and_stops_no_other() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    let journal = kb.brake().journal().unwrap();
    let mut calls = Vec::new();
    for step in ["damaged", "whole", "torn"] {
        // Their permits are dropped, as by a crash.
        calls.push(permit(&kb, &key, step).await.call_id().to_owned());
    }
    let unknown = "call_of_nobody".to_owned();
    for call in [&calls[0], &unknown, &calls[1], &calls[2]] {
        journal.append(charged(call), 1).await.unwrap();
    }
    let file = files(&contents(&kb).path, ".journal").remove(0);
    let mut content = std::fs::read(&file).unwrap();
    content[60] ^= 1;
    content.truncate(content.len() - 5);
    std::fs::write(&file, &content).unwrap();
    assert_eq!((contents(&kb).damaged, contents(&kb).waiting.len()), (2, 2));

    let done = kb.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.set_aside, done.left), (1, 3, 0), "{done:?}");
    assert_eq!(budget(&kb, &key).await, (1_000_000, 2_000_000));
    assert!(!file.exists());
    let aside = contents(&kb).set_aside;
    assert_eq!((aside.len(), mode(&aside[0])), (1, 0o600));
    let kept = std::fs::read(&aside[0]).unwrap();
    let text = String::from_utf8_lossy(&kept);
    assert!(text.contains("# its checksum does not match\n"), "{text}");
    assert!(text.contains("# it is cut off\n"), "{text}");
    assert!(text.contains("no call call_of_nobody in this ledger"), "{text}");
    for line in content.split(|byte| *byte == b'\n') {
        let delivered = String::from_utf8_lossy(line).contains(&calls[1]);
        let kept = kept.windows(line.len()).any(|window| window == line);
        assert_eq!(kept, !delivered, "{}", String::from_utf8_lossy(line));
    }
    assert_eq!(kb.deliver_outcomes().await.unwrap().set_aside, 0, "once");
}

/// The checksum of a line.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// During an upgrade an older process finds what a newer one wrote: it delivers its own, and leaves that alone.
#[tokio::test]
async fn an_outcome_of_a_newer_version_is_left_for_it() {
    let place = Place::start();
    let kb = place.keybrake(place.sqlite("spend.db"), "journal").await.unwrap();
    let key = key(&kb).await;
    journaled(&kb, &key, "known").await;
    let file = files(&contents(&kb).path, ".journal").remove(0);
    let json = "{\"v\":2,\"ledger\":\"l\",\"settlement\":{\"proof\":{\"witnessed\":{}}}}";
    let newer = format!("w {:08x} {:08x} {json}\n", json.len(), crc32(json.as_bytes()));
    let mut content = std::fs::read(&file).unwrap();
    content.extend(newer.bytes());
    std::fs::write(&file, &content).unwrap();
    for delivered in [1, 0] {
        let done = kb.deliver_outcomes().await.unwrap();
        assert_eq!(
            (done.delivered, done.set_aside, done.left),
            (delivered, 0, 1),
            "{done:?}"
        );
        assert!(done.why.unwrap().contains("newer version"));
    }
    let there = contents(&kb);
    assert_eq!((there.newer, there.damaged, there.waiting.len()), (1, 0, 0));
    assert!(std::fs::read_to_string(&file).unwrap().ends_with(&newer));
}

#[tokio::test]
async fn outcomes_of_another_ledger_are_not_delivered_to_this_one() {
    let place = Place::start();
    let one = place.keybrake(place.sqlite("one.db"), "journal").await.unwrap();
    let key = key(&one).await;
    journaled(&one, &key, "one").await;
    let other = place.keybrake(place.sqlite("other.db"), "journal").await.unwrap();
    assert_eq!(other.deliver_outcomes().await.unwrap().delivered, 0);
    assert_eq!(contents(&one).waiting.len(), 1);
    // Not even when somebody moves the file there.
    let file = files(&contents(&one).path, ".journal").remove(0);
    let there = contents(&other).path;
    std::fs::create_dir(&there).unwrap();
    chmod(&there, 0o700);
    std::fs::rename(&file, there.join(file.file_name().unwrap())).unwrap();
    let done = other.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.set_aside), (0, 1));
    let aside = std::fs::read_to_string(&contents(&other).set_aside[0]).unwrap();
    assert!(aside.contains("it belongs to the ledger"), "{aside}");
}

#[tokio::test]
async fn a_directory_or_a_file_that_is_not_ours_alone_is_refused() {
    let place = Place::start();
    let ledger = place.sqlite("spend.db");
    let kb = place.keybrake(ledger.clone(), "journal").await.unwrap();
    let key = key(&kb).await;
    let call = permit(&kb, &key, "one").await.call_id().to_owned();
    let journal = kb.brake().journal().unwrap();
    journal.append(charged(&call), 1).await.unwrap();
    let inner = contents(&kb).path;
    let file = files(&inner, ".journal").remove(0);

    for directory in [&place.path("journal"), &inner] {
        chmod(directory, 0o750);
        let refused = place.keybrake(ledger.clone(), "journal").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        assert!(refused.to_string().contains("chmod 700"), "{refused}");
        assert!(kb.deliver_outcomes().await.is_err());
        assert!(journal.append(charged(&call), 1).await.is_err());
        chmod(directory, 0o700);
    }
    std::os::unix::fs::symlink(place.path("journal"), place.path("link")).unwrap();
    let refused = place.keybrake(ledger.clone(), "link").await.unwrap_err();
    assert!(refused.to_string().contains("is not a directory"), "{refused}");
    // As root we can make one of another user, else there is one.
    std::fs::create_dir(place.path("foreign")).unwrap();
    let given_away = std::os::unix::fs::chown(place.path("foreign"), Some(65_534), None).is_ok();
    let foreign = if given_away {
        place.path("foreign")
    } else {
        "/usr".into()
    };
    let refused = Journal::at(&foreign, "id", "default").unwrap_err();
    assert!(refused.to_string().contains("belongs to user"), "{refused}");

    chmod(&file, 0o640);
    let done = kb.deliver_outcomes().await.unwrap();
    assert_eq!((done.delivered, done.left), (0, 1), "{done:?}");
    chmod(&file, 0o600);
    assert_eq!(kb.deliver_outcomes().await.unwrap().delivered, 1);
    assert_eq!(budget(&kb, &key).await, (1_000_000, 0));
}
