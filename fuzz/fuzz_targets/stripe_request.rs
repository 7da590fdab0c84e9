//! Any bytes as a Stripe call: no panic, the same reading twice, and an estimate that does not panic either.
#![no_main]

use arbitrary::Arbitrary;
use keybrake::request::Call;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    method: u8,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let vendor = keybrake::vendors::vendor("stripe").expect("built in");
    let method = ["GET", "POST", "DELETE", "PUT"][usize::from(input.method) % 4];
    let call = Call {
        method: method.to_owned(),
        url: format!("https://api.stripe.com/v1/{}", input.path),
        headers: input.headers,
        body: input.body.into(),
    };
    let first = vendor.recognise(&call);
    let again = vendor.recognise(&call);
    assert_eq!(format!("{first:?}"), format!("{again:?}"));
    if let Ok(recognised) = first {
        let _ = vendor.estimate(&recognised, true);
        let _ = vendor.estimate(&recognised, false);
    }
});
