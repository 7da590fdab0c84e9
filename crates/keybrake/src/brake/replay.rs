//! Recorded replies: stripped, at most 64 KiB, and encrypted so that they cannot be read or swapped at rest.

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, AeadInOut, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use super::chance::NONCE;
use crate::idempotency::Keys;
use crate::ledger::Reservation;
use crate::vendors::Reply;

/// A longer body is not kept; its repeat is answered `already_done`.
const MOST_BYTES: usize = 64 * 1024;
const TAG: usize = 16;
/// Bytes before the headers: the status, and the headers' length.
const FIRST: usize = 6;

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

/// Encrypts a stripped reply under a nonce that is never used again; `None` when it is too long or is not text: then it
/// is not kept, and a repeat is refused instead of replayed.
pub(super) fn seal(keys: &Keys, binding: &Binding<'_>, nonce: [u8; NONCE], reply: &Reply) -> Option<Vec<u8>> {
    if reply.body.len() > MOST_BYTES {
        return None;
    }
    std::str::from_utf8(&reply.body).ok()?;
    // One buffer, encrypted where it stands: nonce, status, length of the headers, headers, body, tag.
    let headers = serde_json::to_vec(&reply.headers).ok()?;
    let length = [NONCE, FIRST, headers.len(), reply.body.len(), TAG].iter().sum();
    let mut sealed = Vec::with_capacity(length);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&reply.status.to_be_bytes());
    sealed.extend_from_slice(&u32::try_from(headers.len()).ok()?.to_be_bytes());
    sealed.extend_from_slice(&headers);
    sealed.extend_from_slice(&reply.body);
    let cipher = XChaCha20Poly1305::new(keys.reply_key().into());
    let aad = binding.associated_data();
    let (_, text) = sealed.split_at_mut_checked(NONCE)?;
    let tag = cipher
        .encrypt_inout_detached(&XNonce::from(nonce), aad.as_bytes(), text.into())
        .ok()?;
    sealed.extend_from_slice(&tag);
    Some(sealed)
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
    let (status, rest) = plain.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (headers, body) = rest.split_at_checked(length)?;
    Some(Reply {
        status: u16::from_be_bytes(*status),
        headers: serde_json::from_slice(headers).ok()?,
        body: Bytes::copy_from_slice(body),
    })
}
