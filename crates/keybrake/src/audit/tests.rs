//! The projection against hand-made events and against the ledger in memory.

use std::sync::Arc;

use serde_json::{Value, json};

use super::rows::fold_page;
use super::{Audit, AuditRow, COLUMNS, Format, RowFilter, SpendBy, Subject, write_rows};
use crate::clock::ManualClock;
use crate::ledger::{
    AdminNote, AmountAsk, Ask, BudgetDef, BudgetRef, CallFacts, ChargeAsk, CostSource, CounterName, Delta,
    Event, EventKind, IssueKey, KeyRecord, Ledger, MemoryLedger, Proof, ReplyFacts, ReserveAnswer,
    ReserveRequest, Scope, Settlement, TokenHash, Unit, WindowKind,
};
use crate::money::Usd;

const STRIPE_DAY: &str = "stripe|lineage:a|usd|day|test|1";

fn event(seq: u64, kind: EventKind, deltas: &[(&str, i64, i64)], body: Value) -> Event {
    let deltas = deltas.iter().map(|(counter, used, held)| Delta {
        counter: CounterName::from(*counter),
        used: *used,
        held: *held,
    });
    Event {
        v: 1,
        seq,
        at_ms: 1_000 + i64::try_from(seq).unwrap(),
        call_id: Some("c1".to_owned()),
        kind,
        deltas: deltas.collect(),
        body: serde_json::from_value(body).unwrap(),
    }
}

fn facts(direction: i8) -> Value {
    json!({"call_id": "c1", "key_id": "vk_1", "key_version": 1, "account": null, "label": null, "groups": [], "moves_money": true, "vendor": "stripe", "operation": "refunds.create", "agent": "a",
           "run": "run_42", "customer": "cus_1", "direction": direction, "livemode": false,
           "context": {"step": "refund-17", "held_usd": "999.00"}})
}

fn view(used: i64, held: i64) -> Value {
    json!({"name": "stripe lineage:a usd per day", "unit": "usd", "per": "day", "cap": 250_000_000,
           "used": used, "held": held, "resets_at_ms": 5})
}

fn project(events: &[Event]) -> AuditRow {
    let mut folds = fold_page(events).unwrap();
    assert_eq!(folds.len(), 1, "one row for each call");
    folds.remove(0).finish().remove(0).0
}

fn reserved(direction: i8) -> Event {
    event(
        1,
        EventKind::Reserved,
        &[
            (STRIPE_DAY, 0, 50_000_000),
            ("*|run:run_42|usd|run|test|-", 0, 50_000_000),
            ("*|run:run_42|calls|run|test|-", 0, 1),
        ],
        json!({"facts": facts(direction), "amount_micros": 50_000_000, "tightest": view(0, 50_000_000)}),
    )
}

fn settled(used: i64) -> Event {
    event(
        2,
        EventKind::Settled,
        &[
            (STRIPE_DAY, used, -50_000_000),
            ("*|run:run_42|usd|run|test|-", used, -50_000_000),
            ("*|run:run_42|calls|run|test|-", 1, -1),
        ],
        json!({"amount_micros": used, "state": "settled", "proof": {"proof": "charged", "actual": used},
               "tightest": view(used, 0),
               "reply": {"status_code": 200, "vendor_request_id": "req_1", "vendor_object": "re_1",
                         "idempotency_key": "kb_1", "latency_ms": 12, "cost_source": "response", "replayed": false}}),
    )
}

#[test]
fn a_refund_is_one_row_with_a_negative_cost_counted_once() {
    let row = project(&[reserved(-1), settled(50_000_000)]);
    assert_eq!(row.cost_usd_parsed.unwrap().to_string(), "-50.00");
    assert_eq!(row.cap_usage_after_usd.unwrap().to_string(), "50.00");
    assert_eq!((row.status_code, row.latency_ms), (Some(200), Some(12)));
    assert_eq!(row.policy_verdict, "allowed");
    assert_eq!(row.note("state"), Some("settled"));
    assert_eq!(row.note("vendor_object"), Some("re_1"));
    assert_eq!(row.cost_source, CostSource::Response);
    assert_eq!(
        row.held(),
        Usd::ZERO,
        "a caller's context passes for nothing of ours"
    );
}

#[test]
fn a_charge_has_a_positive_cost() {
    let row = project(&[reserved(1), settled(50_000_000)]);
    assert_eq!(row.cost_usd_parsed.unwrap().to_string(), "50.00");
}

#[test]
fn an_open_hold_has_no_cost_and_names_what_it_holds() {
    let unknown = event(
        2,
        EventKind::Unknown,
        &[],
        json!({"state": "unknown", "reason": "timeout", "proof": {"proof": "no_proof", "reason": "timeout"}}),
    );
    let row = project(&[reserved(-1), unknown]);
    assert_eq!(row.cost_usd_parsed, None);
    assert_eq!(row.held().to_string(), "50.00");
    assert_eq!(row.note("reason"), Some("timeout"));
}

#[test]
fn a_void_costs_nothing_and_a_late_charge_corrects_it() {
    let voided = event(
        2,
        EventKind::Voided,
        &[(STRIPE_DAY, 0, -50_000_000)],
        json!({"state": "voided"}),
    );
    let row = project(&[reserved(-1), voided.clone()]);
    assert_eq!(row.cost_usd_parsed, Some(Usd::ZERO));
    let late = event(
        3,
        EventKind::Corrected,
        &[(STRIPE_DAY, 50_000_000, 0)],
        json!({"state": "settled", "overrun_micros": 50_000_000}),
    );
    let row = project(&[reserved(-1), voided, late]);
    assert_eq!(row.cost_usd_parsed.unwrap().to_string(), "-50.00");
    assert_eq!(row.note("overrun_usd"), Some("50.00"));
    assert_eq!(row.note("state"), Some("settled"));
}

#[test]
fn without_a_money_budget_the_settlements_amount_is_the_cost() {
    let mut first = reserved(-1);
    first.deltas.truncate(0);
    let mut last = settled(20_000_000);
    last.deltas.truncate(0);
    assert_eq!(
        project(&[first, last]).cost_usd_parsed.unwrap().to_string(),
        "-20.00"
    );
}

#[test]
fn a_denial_is_a_row_with_its_code_and_count() {
    let denied = event(
        1,
        EventKind::Denied,
        &[],
        json!({"facts": facts(-1), "count": 250,
               "denial": {"code": "cap_exceeded", "message": "over", "call_id": "c1", "requested_micros": 50_000_000,
                          "budget": view(245_000_000, 0)}}),
    );
    let row = project(&[denied]);
    assert!(row.is_denied());
    assert_eq!(row.policy_verdict, "cap_exceeded");
    assert_eq!(row.count(), 250);
    assert_eq!(row.cost_usd_parsed, None);
    assert_eq!(row.cap_usage_after_usd.unwrap().to_string(), "245.00");
    assert_eq!(row.note("requested_usd"), Some("50.00"));
}

#[test]
fn a_joined_call_is_a_row_of_its_own_without_a_second_cost() {
    let mut joining = facts(-1);
    joining["call_id"] = json!("c2");
    let joined = event(
        2,
        EventKind::Attempt,
        &[],
        json!({"facts": joining, "attempt": 2, "state": "unknown"}),
    );
    let mut last = settled(50_000_000);
    (last.seq, last.body.attempt) = (3, Some(2));
    let mut folds = fold_page(&[reserved(-1), joined, last]).unwrap();
    let rows = folds.remove(0).finish();
    let rows: Vec<_> = rows.iter().map(|(row, _)| row).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].cost_usd_parsed.unwrap().to_string(), "-50.00");
    assert_eq!((rows[1].call_id.as_str(), rows[1].cost_usd_parsed), ("c2", None));
    assert_eq!(
        (rows[1].note("joined"), rows[1].status_code),
        (Some("c1"), Some(200))
    );
}

#[test]
fn a_row_has_the_columns_in_order() {
    let json = serde_json::to_string(&project(&[reserved(-1), settled(1)])).unwrap();
    let mut at = 0;
    for name in COLUMNS {
        let found = json.find(&format!("\"{name}\":")).unwrap();
        assert!(found >= at, "{name} stands before its place");
        at = found;
    }
    assert!(
        json.contains("\"called_at\":\"1970-01-01T00:00:01.001Z\""),
        "{json}"
    );
}

/// A ledger in memory with a key of agent `a` and a cap of $1,000 in all.
async fn ledger() -> (Arc<ManualClock>, MemoryLedger) {
    let clock = Arc::new(ManualClock::at(1_794_787_200_000));
    let ledger = MemoryLedger::new(clock.clone()).unwrap();
    let key = KeyRecord {
        id: "vk_1".to_owned(),
        token_hash: TokenHash("00".to_owned()),
        policy_json: "{}".to_owned(),
        ancestor_policies_json: Vec::new(),
        version: 1,
        lineage: "a".to_owned(),
        agent: Some("a".to_owned()),
        label: None,
        run: Some("run_1".to_owned()),
        groups: Vec::new(),
        ancestors: Vec::new(),
        budgets: vec![BudgetRef {
            def: budget(),
            limit: None,
            enforce: true,
        }],
        issued_at_ms: 0,
        expires_at_ms: 0,
        revoked_at_ms: None,
        metadata: serde_json::Map::new(),
    };
    let issue = IssueKey {
        key,
        expires_in_ms: Some(86_400_000_000),
        attribution_only: Vec::new(),
        admin: AdminNote::default(),
    };
    ledger.issue_key(issue).await.unwrap();
    (clock, ledger)
}

fn budget() -> BudgetDef {
    BudgetDef {
        vendor: None,
        scope: Scope::Lineage("a".to_owned()),
        unit: Unit::Usd,
        window: WindowKind::Lifetime,
        timezone: "UTC".to_owned(),
        cap: 5_000_000_000,
    }
}

async fn reserve(ledger: &MemoryLedger, call_id: &str, micros: i64) -> bool {
    let key = ledger.key("vk_1").await.unwrap().unwrap();
    let charge = ChargeAsk {
        budget: budget().id(),
        customer: None,
        unit: Unit::Usd,
        amount: micros,
        limit: None,
        enforce: true,
        window: None,
    };
    let facts = CallFacts {
        call_id: call_id.to_owned(),
        key_id: Some(key.id),
        key_version: key.version,
        vendor: Some("stripe".to_owned()),
        operation: "refunds.create".to_owned(),
        agent: key.agent,
        run: key.run,
        direction: -1,
        moves_money: true,
        ..CallFacts::default()
    };
    let usd = Usd::from_micros(micros);
    let request = ReserveRequest {
        facts: Arc::new(facts),
        identity: None,
        ask: Ask::Amount(AmountAsk {
            usd,
            charges: vec![charge],
            ..AmountAsk::default()
        }),
        hold_for_ms: 130_000,
        max_open_holds: 100_000,
    };
    matches!(ledger.reserve(request).await.unwrap(), ReserveAnswer::Granted(_))
}

async fn settle(ledger: &MemoryLedger, call_id: &str, proof: Proof) {
    let facts = ReplyFacts {
        latency_ms: Some(12),
        cost_source: CostSource::Response,
        ..ReplyFacts::default()
    };
    let call_id = call_id.to_owned();
    ledger
        .settle(Settlement {
            call_id,
            attempt: 1,
            proof,
            object: None,
            reply: None,
            facts,
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn rows_are_whole_when_calls_span_pages() {
    let (_, ledger) = ledger().await;
    // Every settlement stands 2,500 events after its reservation: on another page.
    for number in 0..2_500 {
        assert!(reserve(&ledger, &format!("c{number}"), 1_000_000).await);
    }
    for number in 0..2_500 {
        settle(
            &ledger,
            &format!("c{number}"),
            Proof::Charged {
                actual: Usd::from_micros(1_000_000),
            },
        )
        .await;
    }
    let audit = Audit::new(&ledger);
    // Once with the late calls known by id, once with too many of them to be kept.
    for most_late in [2_500, 10] {
        let mut rows = audit.rows(RowFilter::default());
        rows.most_late = most_late;
        let mut seen = 0;
        while let Some(row) = rows.next().await.unwrap() {
            assert_eq!(row.call_id, format!("c{seen}"));
            let cost = row.cost_usd_parsed.map(|usd| usd.to_string());
            assert_eq!(cost.as_deref(), Some("-1.00"), "{}", row.call_id);
            seen += 1;
        }
        assert_eq!(seen, 2_500);
    }
    let lines = audit.spend(RowFilter::default(), SpendBy::Agent).await.unwrap();
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (lines[0].calls, lines[0].sent_usd.to_string().as_str()),
        (2_500, "2500.00")
    );
    let newest = audit.list(RowFilter::default(), 3).await.unwrap();
    let ids: Vec<&str> = newest.iter().map(|row| row.call_id.as_str()).collect();
    assert_eq!(ids, ["c2497", "c2498", "c2499"]);
}

#[tokio::test]
async fn why_tells_a_run_in_order_and_compares_the_books() {
    let (_, ledger) = ledger().await;
    assert!(reserve(&ledger, "c1", 3_000_000_000).await);
    settle(
        &ledger,
        "c1",
        Proof::Charged {
            actual: Usd::from_micros(3_000_000_000),
        },
    )
    .await;
    assert!(reserve(&ledger, "c2", 1_500_000_000).await);
    settle(
        &ledger,
        "c2",
        Proof::NoProof {
            reason: "timeout".to_owned(),
        },
    )
    .await;
    for number in 0..40 {
        assert!(!reserve(&ledger, &format!("d{number}"), 3_000_000_000).await);
    }
    let audit = Audit::new(&ledger);
    let story = audit
        .why(Subject::Run("run_1".to_owned()), 100)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((story.allowed, story.denied.get("cap_exceeded")), (2, Some(&40)));
    assert_eq!(
        (story.spent_usd.as_str(), story.held_usd.as_str()),
        ("3000.00", "1500.00")
    );
    assert_eq!(story.unknown, ["c2"]);
    assert_eq!((story.books.calls, story.books.differences.len()), (2, 0));
    let steps: Vec<_> = story.steps.iter().filter(|step| step.kind != "admin").collect();
    let kinds: Vec<&str> = steps.iter().map(|step| step.kind.as_str()).collect();
    assert_eq!(kinds, ["reserved", "settled", "reserved", "unknown", "denied"]);
    assert_eq!(
        (steps[0].before.as_deref(), steps[0].after.as_deref()),
        (Some("0.00"), Some("3000.00"))
    );
    assert_eq!(
        (steps[4].count, steps[4].rule.as_deref()),
        (40, Some("cap_exceeded"))
    );
    assert_eq!(steps[3].message.as_deref(), Some("timeout"));
    let unknown = audit.why(Subject::Run("run_2".to_owned()), 100).await.unwrap();
    assert_eq!(unknown, None);
}

#[tokio::test]
async fn ready_questions_answer_from_the_rows() {
    let (clock, ledger) = ledger().await;
    assert!(reserve(&ledger, "c1", 4_000_000_000).await);
    settle(
        &ledger,
        "c1",
        Proof::Charged {
            actual: Usd::from_micros(4_000_000_000),
        },
    )
    .await;
    clock.advance_ms(86_400_000);
    assert!(!reserve(&ledger, "d1", 2_000_000_000).await);
    assert!(reserve(&ledger, "c2", 500_000_000).await);
    let audit = Audit::new(&ledger);
    let now_ms = ledger.info().await.unwrap().now_ms;
    let hits = audit
        .cap_hits(RowFilter {
            since_ms: Some(now_ms - 1_000),
            ..RowFilter::default()
        })
        .await
        .unwrap();
    assert_eq!(
        (hits.len(), hits[0].hits, hits[0].last_run.as_deref()),
        (1, 1, Some("run_1"))
    );
    let days = audit.spend(RowFilter::default(), SpendBy::Day).await.unwrap();
    let days: Vec<_> = days
        .iter()
        .map(|line| {
            (
                line.name.clone().unwrap(),
                line.counted_usd.to_string(),
                line.held_usd.to_string(),
            )
        })
        .collect();
    let day = |name: &str, counted: &str, held: &str| (name.to_owned(), counted.to_owned(), held.to_owned());
    assert_eq!(
        days,
        [
            day("2026-11-16", "4000.00", "0.00"),
            day("2026-11-17", "0.00", "500.00")
        ]
    );
    let slow = audit.slow(RowFilter::default()).await.unwrap();
    assert_eq!(
        (slow[0].operation.as_str(), slow[0].calls, slow[0].p95_ms),
        ("refunds.create", 1, 12)
    );
    let outlook = audit.outlook(RowFilter::default(), now_ms).await.unwrap();
    assert_eq!(outlook.len(), 1);
    assert_eq!(
        (
            outlook[0].livemode,
            outlook[0].month_so_far_usd.to_string().as_str()
        ),
        (false, "4000.00")
    );
    let denied = audit
        .list(
            RowFilter {
                denied: Some(true),
                ..RowFilter::default()
            },
            10,
        )
        .await
        .unwrap();
    assert_eq!((denied.len(), denied[0].call_id.as_str()), (1, "d1"));
}

#[tokio::test]
async fn exports_have_a_header_and_one_line_for_each_call() {
    let (_, ledger) = ledger().await;
    assert!(reserve(&ledger, "=cmd|1", 1_000_000).await);
    settle(
        &ledger,
        "=cmd|1",
        Proof::Charged {
            actual: Usd::from_micros(1_000_000),
        },
    )
    .await;
    let audit = Audit::new(&ledger);
    let mut csv = Vec::new();
    let done = write_rows(
        &mut audit.rows(RowFilter::default()),
        Format::Csv,
        &mut csv,
        &mut |_| {},
    )
    .await
    .unwrap();
    assert_eq!(done.rows, 1);
    let csv = String::from_utf8(csv).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], COLUMNS.map(|name| format!("\"{name}\"")).join(","));
    assert!(
        lines[1].starts_with("\"'=cmd|1\",\"2026-11-16T00:00:00.000Z\",\"vk_1\",\"run_1\""),
        "{}",
        lines[1]
    );
    assert!(
        lines[1].contains("\"-1.00\",\"response\""),
        "amounts stay numbers: {}",
        lines[1]
    );
    let mut jsonl = Vec::new();
    write_rows(
        &mut audit.rows(RowFilter::default()),
        Format::Jsonl,
        &mut jsonl,
        &mut |_| {},
    )
    .await
    .unwrap();
    let row: Value = serde_json::from_slice(&jsonl).unwrap();
    assert_eq!(row["cost_usd_parsed"], "-1.00");
    assert_eq!(row["metadata"]["state"], "settled");
}

#[test]
fn a_call_that_was_lost_and_said_again_is_one_row() {
    let said = |seq, begins, deltas: &[(&str, i64, i64)]| {
        let body = json!({"facts": facts(-1), "amount_micros": 50_000_000, "state": "settled", "attempt": 2,
                          "begins": begins, "reply": {"status_code": 200, "vendor_request_id": null, "vendor_object": null,
                          "idempotency_key": null, "latency_ms": null, "cost_source": "response", "replayed": false}});
        event(seq, EventKind::Reasserted, deltas, body)
    };
    // Its settlement alone was lost, or all of it.
    let settles = [
        (STRIPE_DAY, 50_000_000, -50_000_000),
        ("*|run:run_42|usd|run|test|-", 50_000_000, -50_000_000),
    ];
    let known = project(&[reserved(-1), said(2, false, &settles)]);
    let anew = project(&[said(1, true, &[(STRIPE_DAY, 50_000_000, 0)])]);
    for row in [known, anew] {
        assert_eq!(row.cost_usd_parsed.unwrap().to_string(), "-50.00");
        assert_eq!((row.note("state"), row.status_code), (Some("settled"), Some(200)));
        assert_eq!(row.policy_verdict, "allowed");
        assert_eq!(row.held(), Usd::ZERO);
    }
    // On a later page of the log it begins no second row.
    assert!(fold_page(&[said(9, false, &settles)]).unwrap().is_empty());
}
