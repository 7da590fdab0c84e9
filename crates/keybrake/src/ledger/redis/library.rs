//! The functions that the server runs. Their names hold a digest of their text, so that two versions of Keybrake can
//! use one server, and none ever runs another's.

use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};

use crate::ledger::shared::hex;

const SOURCE: &str = concat!(
    include_str!("library.lua"),
    "\n",
    include_str!("eras.lua"),
    "\n",
    include_str!("step.lua"),
    "\n",
    include_str!("look.lua"),
    "\n",
    include_str!("recovery.lua"),
);
/// Hexadecimal digits of the digest in a name.
const DIGITS: usize = 12;

static DIGEST: LazyLock<String> = LazyLock::new(|| {
    let mut digest = hex(&Sha256::digest(SOURCE.as_bytes()));
    digest.truncate(DIGITS);
    digest
});

/// Digest of the functions' text.
pub(super) fn digest() -> &'static str {
    &DIGEST
}

/// The full name of a function.
pub(super) fn function(name: &str) -> String {
    format!("keybrake_{name}_{}", digest())
}

/// What `FUNCTION LOAD` takes.
pub(super) fn text() -> String {
    let digest = digest();
    format!(
        "#!lua name=keybrake_{digest}\n{}",
        SOURCE.replace("@digest@", digest)
    )
}
