//! Any text as a token: no panic, and nothing that was not issued parses by accident in another ledger.
#![no_main]

use keybrake::token::Token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if Token::parse(text, "aaaa").is_ok() {
        assert!(Token::parse(text, "bbbb").is_err());
    }
});
