//! Documents (a quote's PDF, a file's contents) are handed on as they arrive; everything else is read whole.

use std::time::Duration;

use bytes::Bytes;
use keybrake::brake::CallContext;
use keybrake::client::{Answer, Opened, ReplyStream, broken_off};
use keybrake::ledger::{HoldFilter, State};
use keybrake::request::Call;
use keybrake_testkit::stripe::{Fault, FaultKind, Release, SimulatorOptions};
use keybrake_tests::{World, eventually};
use serde_json::{Value, json};

const PDF: &str = "https://files.stripe.com/v1/quotes/qt_1/pdf";
const FIRST: usize = 1_000;

/// Counts calls: a read uses one of them, however it ends.
fn policy() -> Value {
    json!({"vendor": "stripe", "label": "reader", "daily_call_cap": 100, "allowed_endpoints": ["reads", "files.create"]})
}

fn get(world: &World, url: &str) -> Call {
    let bearer = format!("Bearer {}", world.key.token.expose());
    Call {
        method: "GET".to_owned(),
        url: url.to_owned(),
        headers: vec![("Authorization".to_owned(), bearer)],
        body: Bytes::new(),
    }
}

#[expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]
async fn open(world: &World, url: &str) -> ReplyStream {
    let opened = world
        .kb
        .shell()
        .open(get(world, url), CallContext::default(), Duration::ZERO)
        .await
        .unwrap();
    match opened {
        Opened::Stream(stream) => *stream,
        Opened::Ended(answer) => panic!("not streamed: {answer:?}"),
    }
}

#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
async fn rest(stream: &mut ReplyStream) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(piece) = stream.next().await {
        body.extend_from_slice(&piece.unwrap());
    }
    body
}

#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
fn hold_the_body(world: &World) {
    let fault = Fault::new(FaultKind::HoldBody)
        .on("GET", "/v1/")
        .chunk_bytes(FIRST);
    world.stripe.fault(fault).unwrap();
}

#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
async fn state(world: &World, call_id: &str) -> (State, Option<String>) {
    let call = world.kb.ledger().reservation(call_id).await.unwrap().unwrap();
    (call.state, call.unknown_reason)
}

/// Waits for what is recorded behind the caller's back.
async fn until_unknown(world: &World, call_id: &str) -> Option<String> {
    eventually(async || state(world, call_id).await.0 == State::Unknown).await;
    state(world, call_id).await.1
}

#[tokio::test]
async fn the_first_piece_is_there_before_the_vendor_has_sent_the_last() {
    let world = World::new(policy()).await;
    hold_the_body(&world);
    let mut stream = open(&world, PDF).await;
    assert_eq!(stream.status(), 200);
    let id = ("x-keybrake-call-id".to_owned(), stream.record().call_id.clone());
    assert!(stream.headers().contains(&id), "{:?}", stream.headers());
    let mut body = stream.next().await.unwrap().unwrap().to_vec();
    assert!(body.starts_with(b"%PDF") && body.len() <= FIRST, "{}", body.len());
    // The simulator still holds the rest, and the call is not settled.
    assert_eq!(world.stripe.waiting().len(), 1);
    let call_id = stream.record().call_id.clone();
    assert_eq!(state(&world, &call_id).await.0, State::Held);
    world.stripe.release(Release::default());
    body.extend(rest(&mut stream).await);
    assert_eq!(body.len(), 256 * 1_024);
    assert_eq!(state(&world, &call_id).await.0, State::Settled);
    assert_eq!(stream.record().state, Some(State::Settled));
    assert_eq!(world.budget().await, (1, 0));
    world.verify().await;
}

#[tokio::test]
async fn the_call_is_settled_before_the_last_piece_of_a_known_length() {
    let world = World::new(policy()).await;
    let form = "--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\ndispute_evidence\r\n--XX\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nevidence\r\n--XX--\r\n";
    let mut upload = keybrake_tests::post("/v1/files", form);
    upload.url = "https://files.stripe.com/v1/files".to_owned();
    upload
        .headers
        .retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
    upload.headers.push((
        "Content-Type".to_owned(),
        "multipart/form-data; boundary=XX".to_owned(),
    ));
    let file = world.call(&world.key, upload, CallContext::default()).await.id();
    let mut stream = open(
        &world,
        &format!("https://files.stripe.com/v1/files/{file}/contents"),
    )
    .await;
    let mut body = Vec::new();
    while body.len() < b"evidence".len() {
        body.extend_from_slice(&stream.next().await.unwrap().unwrap());
    }
    assert_eq!(body, b"evidence");
    // Nobody asked for the end, and yet.
    assert_eq!(stream.record().operation, "files.contents");
    assert_eq!(stream.record().state, Some(State::Settled));
    let call_id = stream.record().call_id.clone();
    drop(stream);
    assert_eq!(state(&world, &call_id).await.0, State::Settled);
}

#[tokio::test]
async fn a_stream_that_is_dropped_or_closed_early_is_unknown_and_holds_nothing() {
    let world = World::new(policy()).await;
    for by_drop in [true, false] {
        hold_the_body(&world);
        let mut stream = open(&world, PDF).await;
        stream.next().await.unwrap().unwrap();
        let call_id = stream.record().call_id.clone();
        let reason = if by_drop {
            drop(stream);
            until_unknown(&world, &call_id).await
        } else {
            stream.close().await.unwrap();
            assert!(stream.next().await.is_none());
            assert_eq!(stream.record().state, Some(State::Unknown));
            state(&world, &call_id).await.1
        };
        assert_eq!(reason.as_deref(), Some("closed_early"));
        world.stripe.release(Release::default());
    }
    assert_eq!(world.budget().await, (2, 0), "used, and nothing held");
    world.verify().await;
}

#[tokio::test]
async fn a_stream_dropped_on_a_thread_without_a_runtime_is_unknown_too() {
    let world = World::new(policy()).await;
    hold_the_body(&world);
    let stream = open(&world, PDF).await;
    let call_id = stream.record().call_id.clone();
    std::thread::spawn(move || drop(stream)).join().unwrap();
    assert_eq!(
        until_unknown(&world, &call_id).await.as_deref(),
        Some("closed_early")
    );
}

#[tokio::test]
async fn a_reset_in_the_middle_is_an_error_after_what_had_arrived() {
    let world = World::new(policy()).await;
    hold_the_body(&world);
    let mut stream = open(&world, PDF).await;
    stream.next().await.unwrap().unwrap();
    world.stripe.release(Release {
        drop: true,
        ..Release::default()
    });
    let error = loop {
        match stream.next().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let broken = broken_off(&error).unwrap();
    assert_eq!(broken.reason, "reply_cut_off");
    assert_eq!(
        state(&world, &broken.call_id).await,
        (State::Unknown, Some("reply_cut_off".to_owned()))
    );
    assert!(stream.next().await.is_none());
    assert_eq!(world.budget().await, (1, 0));
}

#[tokio::test]
async fn a_document_of_more_than_64_mib_is_handed_on_and_not_read_whole() {
    let pdf_bytes = 65 * 1_024 * 1_024;
    let options = SimulatorOptions {
        pdf_bytes,
        ..SimulatorOptions::default()
    };
    let world = World::with(options, policy()).await;
    let mut stream = open(&world, PDF).await;
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        length += piece.unwrap().len();
    }
    assert_eq!(length, pdf_bytes);
    let answer = world
        .kb
        .shell()
        .send(get(&world, PDF), CallContext::default(), Duration::ZERO)
        .await
        .unwrap();
    assert!(
        matches!(&answer, Answer::Lost { reason, .. } if reason == "reply_cut_off"),
        "who asks for it whole gets no more than 64 MiB"
    );
    assert_eq!(world.budget().await, (2, 0));
}

#[tokio::test]
async fn only_documents_are_streamed_and_only_when_they_come() {
    let world = World::new(policy()).await;
    for (url, status) in [
        ("https://api.stripe.com/v1/charges/ch_1", 200),
        ("https://files.stripe.com/v1/quotes/ch_1/pdf", 404),
        ("https://files.stripe.com/v1/files/file_none/contents", 404),
    ] {
        let opened = world
            .kb
            .shell()
            .open(get(&world, url), CallContext::default(), Duration::ZERO)
            .await
            .unwrap();
        let Opened::Ended(answer) = opened else {
            panic!("{url}: {opened:?}")
        };
        match *answer {
            Answer::Reply { reply, .. } => assert_eq!(reply.status, status, "{url}"),
            other => panic!("{url}: {other:?}"),
        }
    }
    let holds = world.kb.holds(HoldFilter::default()).await.unwrap();
    assert!(holds.is_empty(), "{holds:?}");
}

#[tokio::test]
async fn a_document_can_be_read_whole() {
    let world = World::new(policy()).await;
    let answer = world
        .kb
        .shell()
        .send(get(&world, PDF), CallContext::default(), Duration::ZERO)
        .await
        .unwrap();
    let Answer::Reply { reply, record } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(reply.body.len(), 256 * 1_024);
    assert_eq!(record.state, Some(State::Settled));
    assert_eq!(reply.header("x-keybrake-verdict"), Some("allowed"));
}

#[tokio::test]
async fn the_middleware_streams_too() {
    let world = World::new(policy()).await;
    hold_the_body(&world);
    let http = reqwest_middleware::ClientBuilder::new(keybrake::client::base_client().unwrap())
        .with(
            keybrake::client::Enforcement::new(std::sync::Arc::clone(world.kb.shell()))
                .with_token(world.key.token.clone()),
        )
        .build();
    let mut reply = http.get(PDF).send().await.unwrap();
    assert!(reply.chunk().await.unwrap().unwrap().starts_with(b"%PDF"));
    assert_eq!(world.stripe.waiting().len(), 1);
    world.stripe.release(Release::default());
    while reply.chunk().await.unwrap().is_some() {}
    let call_id = reply
        .headers()
        .get("x-keybrake-call-id")
        .unwrap()
        .to_str()
        .unwrap();
    assert_eq!(state(&world, call_id).await.0, State::Settled);
}
