//! Properties: whatever is asked, in whatever order, objects, balance and journal tell one story; and no input panics.

use proptest::prelude::*;
use serde_json::Value;

use super::http::{Reply, Request};
use super::journal::{MovementKind, totals};
use super::world::{PLATFORM, Record, World};
use super::{Seed, api, control, file, form, seed};

/// One request of a random sequence: which kind, which object, how much.
type Step = (u8, usize, i64);

fn send(world: &mut World, method: &str, path: &str, body: &str, key: &str) -> Reply {
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: vec![
            ("authorization".to_owned(), "Bearer sk_test_x".to_owned()),
            ("idempotency-key".to_owned(), key.to_owned()),
        ],
        body: body.as_bytes().to_vec(),
        ..Request::default()
    };
    match api::receive(world, &request) {
        Err(reply) => reply,
        Ok(received) => match api::admit(world, &request, &received) {
            Err(reply) => reply,
            Ok(admitted) => api::execute(world, &request, &received, &admitted, false),
        },
    }
}

/// The nth of the ids that begin so, counted around.
fn pick(world: &mut World, prefix: &str, nth: usize) -> String {
    fn ids<T: Record>(rows: &[T]) -> Vec<String> {
        rows.iter().map(|row| row.id().to_owned()).collect()
    }
    let data = world.account(PLATFORM);
    let ids = match prefix {
        "ch" => ids(data.charges.rows()),
        "pi" => ids(data.intents.rows()),
        "re" => ids(data.refunds.rows()),
        "tr" => ids(data.transfers.rows()),
        "po" => ids(data.payouts.rows()),
        _ => ids(data.topups.rows()),
    };
    let at = nth.checked_rem(ids.len()).unwrap_or(0);
    ids.get(at).cloned().unwrap_or_else(|| format!("{prefix}_none"))
}

/// Method, path and body of a step.
fn request(world: &mut World, (kind, nth, amount): Step) -> (String, String) {
    let of = |world: &mut World, prefix: &str| pick(world, prefix, nth);
    let methods = [
        "pm_card_visa",
        "pm_card_visa_chargeDeclined",
        "pm_usBankAccount",
        "pm_card_pendingRefund",
        "pm_card_authenticationRequired",
    ];
    let method = methods[nth % methods.len()];
    let capture = if nth % 2 == 0 { "manual" } else { "automatic" };
    let post = |path: &str, body: String| (path.to_owned(), body);
    match kind {
        0 => post(
            "/v1/charges",
            format!(
                "amount={amount}&currency=usd&source={method}&capture={}",
                nth % 2 == 0
            ),
        ),
        1 => (
            format!("/v1/charges/{}/capture", of(world, "ch")),
            format!("amount={amount}"),
        ),
        2 => post(
            "/v1/payment_intents",
            format!(
                "amount={amount}&currency=usd&payment_method={method}&confirm=true&capture_method={capture}"
            ),
        ),
        3 => post(
            "/v1/payment_intents",
            format!("amount={amount}&currency=usd&payment_method=pm_card_visa"),
        ),
        4 => (
            format!("/v1/payment_intents/{}", of(world, "pi")),
            format!("amount={amount}"),
        ),
        5 => (
            format!("/v1/payment_intents/{}/confirm", of(world, "pi")),
            String::new(),
        ),
        6 => (
            format!("/v1/payment_intents/{}/capture", of(world, "pi")),
            format!("amount_to_capture={amount}&final_capture={}", nth % 3 == 0),
        ),
        7 => (
            format!("/v1/payment_intents/{}/cancel", of(world, "pi")),
            String::new(),
        ),
        8 => (
            format!("/v1/payment_intents/{}/increment_authorization", of(world, "pi")),
            format!("amount={amount}"),
        ),
        9 => post(
            "/v1/refunds",
            format!("charge={}&amount={amount}", of(world, "ch")),
        ),
        10 => post("/v1/refunds", format!("payment_intent={}", of(world, "pi"))),
        11 => post(
            "/v1/transfers",
            format!("amount={amount}&currency=usd&destination=acct_b"),
        ),
        12 => (
            format!("/v1/transfers/{}/reversals", of(world, "tr")),
            format!("amount={amount}"),
        ),
        13 => post("/v1/payouts", format!("amount={amount}&currency=usd")),
        14 => (format!("/v1/payouts/{}/cancel", of(world, "po")), String::new()),
        15 => post("/v1/topups", format!("amount={amount}&currency=usd")),
        _ => (format!("/v1/topups/{}/cancel", of(world, "tu")), String::new()),
    }
}

/// Lets a bank or customer act on some object; refusals are fine.
fn advance(world: &mut World, nth: usize) {
    let prefix = ["pi", "re", "po", "tu"][nth % 4];
    let to = ["succeeded", "failed", "paid", "canceled", "reversed"][nth % 5];
    let id = pick(world, prefix, nth / 5);
    let _ = control::advance(world, PLATFORM, &id, to);
}

/// What the journal says moved in dollars, net.
fn net(world: &World, kind: MovementKind) -> i64 {
    let totals = totals(world.journal.rows());
    totals
        .get(&kind)
        .and_then(|by| by.get("usd"))
        .map_or(0, |sum| sum.net)
}

fn one_story(world: &mut World, opening: i64) {
    let number = |value: &Value, name: &str| value[name].as_i64().unwrap_or_default();
    let data = world.account(PLATFORM);
    let (mut captured, mut refunded) = (0, 0);
    for charge in data.charges.rows() {
        assert!(
            0 <= charge.amount_refunded && charge.amount_refunded <= charge.amount_captured,
            "{charge:?}"
        );
        assert!(charge.amount_captured <= charge.amount, "{charge:?}");
        captured += charge.amount_captured;
        refunded += charge.amount_refunded;
    }
    for intent in data.intents.rows() {
        let of_charges: i64 = data
            .charges
            .rows()
            .iter()
            .filter(|charge| charge.payment_intent.as_deref() == Some(intent.id()))
            .map(|charge| charge.amount_captured)
            .sum();
        assert_eq!(intent.amount_received, of_charges, "{intent:?}");
        assert!(
            intent.amount_received + intent.amount_capturable <= intent.amount,
            "{intent:?}"
        );
    }
    let shown = |rows: Vec<Value>, states: &[&str]| -> i64 {
        rows.iter()
            .filter(|row| states.iter().any(|state| row["status"] == *state))
            .map(|row| number(row, "amount"))
            .sum()
    };
    let transfers: Vec<Value> = data.transfers.rows().iter().map(Record::render).collect();
    let payouts: Vec<Value> = data.payouts.rows().iter().map(Record::render).collect();
    let topups: Vec<Value> = data.topups.rows().iter().map(Record::render).collect();
    let sent: i64 = transfers.iter().map(|row| number(row, "amount")).sum();
    let reversed: i64 = transfers.iter().map(|row| number(row, "amount_reversed")).sum();
    let paid_out = shown(payouts, &["pending", "in_transit", "paid"]);
    let arrived = shown(topups.clone(), &["succeeded"]);
    let topped_up = shown(topups, &["pending", "succeeded"]);
    let balance = data.balance["usd"];
    assert_eq!(
        balance,
        opening + captured - refunded - sent + reversed - paid_out + arrived
    );
    assert_eq!(net(world, MovementKind::Charge), captured);
    assert_eq!(net(world, MovementKind::Refund), refunded);
    assert_eq!(net(world, MovementKind::Transfer), sent);
    assert_eq!(net(world, MovementKind::TransferReversal), reversed);
    assert_eq!(net(world, MovementKind::Payout), paid_out);
    assert_eq!(net(world, MovementKind::Topup), topped_up);
}

proptest! {
    #[test]
    fn objects_balance_and_journal_tell_one_story(
        steps in prop::collection::vec((0_u8..17, 0_usize..30, 40_i64..400), 1..60),
        banks in prop::collection::vec(prop::option::of(0_usize..200), 60),
    ) {
        let opening = 5_000;
        let mut world = World::new(1, 0);
        let seed = Seed { balance: [("usd".to_owned(), opening)].into(), ..Seed::default() };
        seed::plant(&mut world, &seed).unwrap();
        for (number, (step, bank)) in steps.into_iter().zip(banks).enumerate() {
            let (path, body) = request(&mut world, step);
            let key = format!("k{number}");
            let first = send(&mut world, "POST", &path, &body, &key);
            one_story(&mut world, opening);
            let rows = world.journal.rows().len();
            let again = send(&mut world, "POST", &path, &body, &key);
            let kept = again.headers.contains(&("idempotent-replayed", "true".to_owned()));
            // A success and a decline are always kept; what is kept is byte for byte the first reply.
            prop_assert!(kept || first.status == 400 || first.status == 404, "{path} {body} {first:?}");
            prop_assert!(!kept || (first.status, &first.body) == (again.status, &again.body));
            prop_assert_eq!(rows, world.journal.rows().len());
            if let Some(nth) = bank {
                advance(&mut world, nth);
                one_story(&mut world, opening);
            }
        }
    }

    #[test]
    fn no_request_panics(
        method in "GET|POST|DELETE",
        path in "(/v[12])?(/(charges|payment_intents|refunds|transfers|customers|search|capture|ch_1|pi_2|\\.\\.|%2[eE]|%zz|[a-z%]{0,6})){0,5}",
        query in "[a-z_%=&;\\[\\]0-9]{0,40}",
        body in "((amount|currency|charge|expand|metadata|created|limit|confirm|payment_method)[\\[\\]a-z0-9]{0,6}=[a-z0-9%+_-]{0,8}[&;]?){0,8}",
    ) {
        let mut world = World::new(1, 16);
        seed::plant(&mut world, &Seed::standard()).unwrap();
        let request = Request {
            method, path, query,
            headers: vec![("authorization".to_owned(), "Bearer sk_test_x".to_owned())],
            body: body.into_bytes(),
            ..Request::default()
        };
        let received = api::receive(&mut world, &request).unwrap();
        let status = match api::admit(&mut world, &request, &received) {
            Ok(admitted) => api::execute(&mut world, &request, &received, &admitted, false).status,
            Err(reply) => reply.status,
        };
        prop_assert!(matches!(status, 200 | 400 | 402 | 404), "{status}");
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let _ = super::http::parse_head(&bytes);
        let _ = form::Params::read(&text, &String::from_utf8_lossy(&bytes));
        let _ = file::multipart("multipart/form-data; boundary=b", &bytes);
        let _ = file::multipart(&text, b"--b\r\n\r\n\r\n--b--");
    }

    #[test]
    fn what_is_encoded_is_read_back(pairs in prop::collection::btree_map("[a-z_]{1,8}", "\\PC{0,12}", 0..6)) {
        let escape = |text: &String| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
        let body: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let params = form::Params::read("", &body.join("&")).unwrap();
        for (name, value) in &pairs {
            prop_assert_eq!(params.text(name).unwrap().unwrap_or_default(), value);
        }
    }
}
