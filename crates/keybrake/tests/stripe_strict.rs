//! Reading requests, judged by chance and by other parsers: nothing panics, what is accepted means the same to an
//! independent parser, and writing it again gives the same call.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use keybrake::request::authority::{Base, split};
use keybrake::request::{Call, form};
use keybrake::vendors::{Outcome, Recognised, Reply, Vendor, by_host, by_url, vendor};
use proptest::prelude::*;
use reqwest::Url;

const FORM: &str = "application/x-www-form-urlencoded";

fn stripe() -> &'static dyn Vendor {
    vendor("stripe").unwrap()
}

fn call(method: &str, url: &str, body: &[u8]) -> Call {
    let mut headers = vec![("Authorization".to_owned(), "Bearer vault_key_x".to_owned())];
    if method == "POST" {
        headers.push(("Content-Type".to_owned(), FORM.to_owned()));
    }
    Call {
        method: method.to_owned(),
        url: url.to_owned(),
        headers,
        body: body.to_vec().into(),
    }
}

fn pairs(url: &Url) -> Vec<(String, String)> {
    url.query_pairs()
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect()
}

/// What another URL parser makes of an accepted URL has to be the same host, segments and query.
fn agrees_with_url(url: &str, recognised: &Recognised) {
    let parsed = Url::parse(url).unwrap();
    assert_eq!(parsed.host_str(), Some(recognised.host), "{url}");
    assert_eq!(parsed.port_or_known_default(), Some(443), "{url}");
    assert!(
        parsed.username().is_empty() && parsed.password().is_none(),
        "{url}"
    );
    assert_eq!(parsed.path(), recognised.path, "{url}");
    let ids: Vec<String> = recognised
        .operation
        .path
        .split('/')
        .zip(parsed.path().split('/'))
        .filter(|(pattern, _)| *pattern == "*")
        .map(|(_, raw)| {
            // The form parser of `url` decodes a segment; a `+` never gets here.
            let decoded = Url::parse(&format!("https://x/?{raw}")).unwrap();
            decoded.query_pairs().map(|(name, _)| name.into_owned()).collect()
        })
        .collect();
    if recognised.operation.name != "unknown" {
        assert_eq!(ids, recognised.ids, "{url}");
    }
}

#[test]
fn vendors_are_found_by_exact_host_only() {
    for host in stripe().hosts() {
        assert_eq!(by_host(host).unwrap().name(), "stripe");
        assert_eq!(
            by_url(&format!("https://{host}/v1/charges")).unwrap().name(),
            "stripe"
        );
    }
    for host in [
        "stripe.com",
        "evil.api.stripe.com",
        "API.stripe.com",
        "api.stripe.com.",
        "",
        "127.0.0.1",
    ] {
        assert!(by_host(host).is_none(), "{host}");
        assert!(by_url(&format!("https://{host}/v1/charges")).is_err(), "{host}");
    }
}

#[test]
fn rule_01_every_spelling_of_one_refund_that_is_accepted_reads_the_same() {
    let spellings = [
        "charge=ch_1&amount=500",
        "%63harge=ch_1&amount=500",
        "charge=%63h_1&am%6funt=%350%30",
    ];
    for body in spellings {
        let recognised = stripe()
            .recognise(&call(
                "POST",
                "https://api.stripe.com/v1/refunds",
                body.as_bytes(),
            ))
            .unwrap();
        assert_eq!(recognised.field("charge"), Some("ch_1"), "{body}");
        assert_eq!(recognised.field("amount"), Some("500"), "{body}");
    }
}

/// Texts near the grammar, so that many are accepted and many just not.
fn urls() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        6 => Just("https://api.stripe.com"),
        1 => Just("https://files.stripe.com:443"),
        1 => Just("https://connect.stripe.com"),
        1 => Just("https://api.stripe.com."),
        1 => Just("https://user@api.stripe.com"),
    ];
    let segment = prop_oneof![
        4 => "(v1|v2|charges|refunds|customers|coupons|payment_intents|search|core|accounts)",
        3 => "[a-z]{2}_[A-Za-z0-9]{1,6}",
        1 => "[a-zA-Z0-9._~%+;:@!*/\\\\-]{0,6}",
        1 => "(%20|%3A|%2F|%2E|%41|%C3%A9|%C3){1,3}",
    ];
    let query = prop_oneof![
        3 => Just(String::new()),
        2 => forms().prop_map(|form| format!("?{form}")),
        1 => "[?#&=a-z%]{0,6}",
    ];
    (host, proptest::collection::vec(segment, 0..6), query)
        .prop_map(|(host, segments, query)| format!("{host}/v1/{}{query}", segments.join("/")))
}

fn forms() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        3 => "(amount|currency|charge|customer|expand\\[[0-2]?\\]|metadata\\[[a-z0-9]{1,2}\\])",
        2 => "[a-z]{1,3}(\\[[a-z0-9]{0,2}\\]){0,2}",
        1 => "[A-Za-z_%+\\[\\]0-9.]{0,6}",
        1 => "%5B?[a-z]{1,4}%5[Dd]",
    ];
    let value = prop_oneof![
        3 => "[a-zA-Z0-9_]{0,6}",
        1 => "[ -~]{0,6}",
        1 => "(%[0-9A-Fa-f]{2}|\\+|x){0,4}",
    ];
    proptest::collection::vec((name, value), 0..5).prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join("&")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_are_answered(
        method in "(GET|POST|DELETE|PUT|[A-Z ]{0,4})",
        url in any::<String>(),
        name in any::<String>(),
        value in any::<String>(),
        body in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut call = call(&method, &url, &body);
        call.headers.push((name, value));
        let _ = stripe().recognise(&call);
        let _ = stripe().token(&call);
        call.url = format!("https://api.stripe.com{url}");
        let _ = stripe().recognise(&call);
        call.url = "https://api.stripe.com/v1/refunds".to_owned();
        let _ = stripe().recognise(&call);
        call.url = "https://api.stripe.com/v2/core/accounts".to_owned();
        let _ = stripe().recognise(&call);
        let _ = Base::parse(&url, stripe().hosts());
    }

    #[test]
    fn accepted_urls_mean_the_same_to_another_parser(url in urls()) {
        for method in ["GET", "DELETE"] {
            if let Ok(recognised) = stripe().recognise(&call(method, &url, b"")) {
                agrees_with_url(&url, &recognised);
                prop_assert_eq!(&pairs(&Url::parse(&url).unwrap()), &recognised.fields);
            }
        }
    }

    #[test]
    fn accepted_authorities_mean_the_same_to_another_parser(url in "https://[a-z.]{0,3}(api\\.stripe\\.com)?[@:.\\\\a-z0-9%]{0,6}/[a-z/]{0,8}") {
        if let Ok(target) = split(&url, stripe().hosts()) {
            let parsed = Url::parse(&url).unwrap();
            prop_assert_eq!(parsed.host_str(), Some(target.host));
        }
    }

    #[test]
    fn accepted_forms_mean_the_same_to_another_parser(body in forms()) {
        let post = call("POST", "https://api.stripe.com/v1/customers", body.as_bytes());
        if let Ok(recognised) = stripe().recognise(&post) {
            let parsed = Url::parse(&format!("https://x/?{body}")).unwrap();
            prop_assert_eq!(pairs(&parsed), recognised.fields);
        }
    }

    /// Writing the fields again gives the same call.
    #[test]
    fn a_form_written_again_reads_the_same(body in forms()) {
        let url = "https://api.stripe.com/v1/customers";
        if let Ok(first) = stripe().recognise(&call("POST", url, body.as_bytes())) {
            let again = form::append(b"", &first.fields);
            let second = stripe().recognise(&call("POST", url, &again)).unwrap();
            prop_assert_eq!(first.fields, second.fields);
            prop_assert_eq!(first.customer, second.customer);
        }
    }

    /// No name is there twice in any reading of it, and no other spelling of a money field gets through.
    #[test]
    fn accepted_forms_have_each_money_field_once(body in forms()) {
        let post = call("POST", "https://api.stripe.com/v1/refunds", body.as_bytes());
        if let Ok(recognised) = stripe().recognise(&post) {
            for money in ["amount", "currency", "charge", "customer"] {
                let alike = recognised.fields.iter().filter(|(name, _)| {
                    let head: String = name.chars().take_while(|c| *c != '[').filter(char::is_ascii_alphanumeric).collect();
                    head.eq_ignore_ascii_case(money)
                });
                let names: Vec<_> = alike.map(|(name, _)| name.as_str()).collect();
                prop_assert!(names.is_empty() || names == [money], "{:?}", names);
            }
        }
    }
}

/// Writes whose success costs something, each as a call.
const SPENDING: [(&str, &str); 9] = [
    ("/v1/refunds", "charge=ch_1"),
    ("/v1/charges", "amount=5&currency=usd&source=tok"),
    ("/v1/charges/ch_1/capture", ""),
    ("/v1/payment_intents", "amount=5&currency=usd"),
    ("/v1/payment_intents/pi_1/confirm", ""),
    ("/v1/payment_intents/pi_1/capture", ""),
    ("/v1/transfers", "amount=5&currency=usd&destination=acct_1"),
    ("/v1/payouts", "amount=5&currency=usd"),
    ("/v1/invoices/in_1/pay", ""),
];

/// Replies near what Stripe sends, with members missing, of another kind, or twice.
fn bodies() -> impl Strategy<Value = String> {
    let member = prop_oneof![
        3 => "\"object\": \"(refund|charge|payment_intent|transfer|payout)\"",
        3 => "\"status\": \"(succeeded|pending|failed|canceled|requires_capture|requires_action|processing|paid|x)\"",
        4 => "\"(amount|amount_captured|amount_received)\": (0|5|500|-5|5\\.5|\"5\"|null|99999999999999999999)",
        2 => "\"currency\": (\"usd\"|\"jpy\"|\"\"|5)",
        2 => "\"id\": (\"x_1\"|5|null)",
        2 => "\"(captured|refunded)\": (true|false|\"true\")",
        1 => "\"last_payment_error\": (\\{\\}|null)",
        1 => "\"error\": \\{\"type\": \"(idempotency_error|card_error)\"\\}",
    ];
    proptest::collection::vec(member, 0..8).prop_map(|members| format!("{{{}}}", members.join(", ")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// No reply makes a spending call free, and amounts are never negative.
    #[test]
    fn no_reply_makes_a_spending_call_free(
        which in 0..SPENDING.len(),
        status in prop_oneof![4 => Just(200_u16), 1 => 100..600_u16],
        replayed in any::<bool>(),
        body in prop_oneof![4 => bodies().prop_map(String::into_bytes), 1 => proptest::collection::vec(any::<u8>(), 0..40)],
    ) {
        let (path, form) = SPENDING[which];
        let url = format!("https://api.stripe.com{path}");
        let recognised = stripe().recognise(&call("POST", &url, form.as_bytes())).unwrap();
        let headers = vec![("idempotent-replayed".to_owned(), replayed.to_string())];
        let reading = stripe().read(&recognised, &Reply { status, headers, body: body.into() });
        prop_assert_ne!(&reading.outcome, &Outcome::Free);
        if let Outcome::Charged(amount) | Outcome::ChargedProvisionally(amount) = &reading.outcome {
            prop_assert!((200..300).contains(&status) && amount.minor >= 0);
        }
        if reading.outcome == Outcome::DidNotExecute {
            prop_assert!(!replayed && [400, 401, 403, 404, 429].contains(&status));
        }
    }
}

/// The properties above say something only if enough of what is tried is accepted, and enough is not.
#[test]
fn the_samples_are_on_both_sides() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut share = |accepts: &mut dyn FnMut(&mut TestRunner) -> bool| {
        (0..1_000).filter(|_| accepts(&mut runner)).count()
    };
    let of_urls = share(&mut |runner| {
        let url = urls().new_tree(runner).unwrap().current();
        stripe().recognise(&call("GET", &url, b"")).is_ok()
    });
    let of_forms = share(&mut |runner| {
        let form = forms().new_tree(runner).unwrap().current();
        let post = call("POST", "https://api.stripe.com/v1/refunds", form.as_bytes());
        stripe().recognise(&post).is_ok()
    });
    for accepted in [of_urls, of_forms] {
        assert!((100..900).contains(&accepted), "{of_urls} {of_forms}");
    }
}
