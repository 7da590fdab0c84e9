//! Any text as a policy in each format: no panic, and what is read survives its canonical form.
#![no_main]

use keybrake::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for read in [Policy::from_json, Policy::from_yaml, Policy::from_toml] {
        if let Ok(policy) = read(text) {
            let canonical = policy.to_json();
            let again = Policy::from_json(&canonical).expect("its own form");
            assert_eq!(again.to_json(), canonical);
        }
    }
});
