//! Recorded replies: stripped, at most 64 KiB, and encrypted so that they cannot be read or swapped at rest.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};

use crate::idempotency::Keys;
use crate::ledger::Reservation;
use crate::vendors::Reply;

/// A longer body is not kept; its repeat is answered `already_done`.
const MOST_BYTES: usize = 64 * 1024;
const NONCE: usize = 24;

#[derive(Serialize, Deserialize)]
struct Recorded {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// What an encrypted reply is bound to: it opens for this call, identity and generation alone.
pub(super) struct Binding<'a> {
    pub(super) call_id: &'a str,
    pub(super) identity: &'a str,
    pub(super) generation: u32,
}

impl Binding<'_> {
    fn associated_data(&self) -> String {
        format!(
            "keybrake v1 reply|{}|{}|{}",
            self.call_id, self.identity, self.generation
        )
    }
}

/// Encrypts a stripped reply; `None` when it is too long, is not text, or there is no randomness: then it is
/// not kept, and a repeat is refused instead of replayed.
pub(super) fn seal(keys: &Keys, binding: &Binding<'_>, reply: &Reply) -> Option<Vec<u8>> {
    if reply.body.len() > MOST_BYTES {
        return None;
    }
    let body = String::from_utf8(reply.body.to_vec()).ok()?;
    let recorded = Recorded {
        status: reply.status,
        headers: reply.headers.clone(),
        body,
    };
    let plain = serde_json::to_vec(&recorded).ok()?;
    let mut nonce = [0_u8; NONCE];
    getrandom::fill(&mut nonce).ok()?;
    let cipher = XChaCha20Poly1305::new(keys.reply_key().into());
    let aad = binding.associated_data();
    let sealed = cipher
        .encrypt(
            &XNonce::from(nonce),
            Payload {
                msg: &plain,
                aad: aad.as_bytes(),
            },
        )
        .ok()?;
    Some([nonce.as_slice(), &sealed].concat())
}

/// Decrypts a reservation's recorded reply; `None` when there is none or it is not what was recorded for it.
pub(super) fn open(keys: &Keys, reservation: &Reservation) -> Option<Reply> {
    let sealed = reservation.reply.as_ref()?;
    let (nonce, cipher_text) = sealed.split_at_checked(NONCE)?;
    let nonce: [u8; NONCE] = nonce.try_into().ok()?;
    let binding = Binding {
        call_id: &reservation.facts.call_id,
        identity: &reservation.identity.as_ref()?.id,
        generation: reservation.generation,
    };
    let cipher = XChaCha20Poly1305::new(keys.reply_key().into());
    let aad = binding.associated_data();
    let plain = cipher
        .decrypt(
            &XNonce::from(nonce),
            Payload {
                msg: cipher_text,
                aad: aad.as_bytes(),
            },
        )
        .ok()?;
    let recorded: Recorded = serde_json::from_slice(&plain).ok()?;
    Some(Reply {
        status: recorded.status,
        headers: recorded.headers,
        body: recorded.body.into_bytes().into(),
    })
}
