//! Keys and calls for tests of a ledger: one key with lifetime budgets, and calls that draw on them.

use std::sync::Arc;

use keybrake::Usd;
use keybrake::ledger::{
    AdminNote, AmountAsk, Ask, BudgetDef, BudgetRef, CallFacts, ChargeAsk, Grant, IdentityAsk, IdentityKind,
    IssueKey, KeyRecord, Ledger, OnRepeat, Proof, ReplyFacts, ReserveAnswer, ReserveRequest, Scope,
    Settlement, TokenHash, Unit, WindowKind,
};

/// A dollar, in micro-USD.
pub const DOLLAR: i64 = 1_000_000;
/// A day, in milliseconds.
pub const DAY_MS: i64 = 86_400_000;
/// A moment in November 2026, Unix milliseconds.
pub const NOW_MS: i64 = 1_795_305_600_000;

/// A budget in micro-USD of everything that a lineage ever spends.
pub fn lifetime(lineage: &str, cap: i64) -> BudgetDef {
    BudgetDef {
        vendor: None,
        scope: Scope::Lineage(lineage.to_owned()),
        unit: Unit::Usd,
        window: WindowKind::Lifetime,
        timezone: "UTC".to_owned(),
        cap,
    }
}

/// A budget of calls that a lineage makes in each window.
pub fn calls(lineage: &str, window: WindowKind, cap: i64) -> BudgetDef {
    BudgetDef {
        unit: Unit::Calls,
        window,
        ..lifetime(lineage, cap)
    }
}

/// A read: it counts as a call, has no identity and moves no money. Its windows are those of `now_ms`.
pub fn read(key: &KeyRecord, call_id: &str, now_ms: i64) -> ReserveRequest {
    let mut request = call(key, call_id, 0);
    request.identity = None;
    request.facts = Arc::new(CallFacts {
        operation: "customers.list".to_owned(),
        direction: 0,
        moves_money: false,
        ..(*request.facts).clone()
    });
    if let Ask::Amount(ask) = &mut request.ask {
        for (charge, budget) in ask.charges.iter_mut().zip(&key.budgets) {
            charge.amount = i64::from(charge.unit != Unit::Usd);
            charge.window =
                keybrake::policy::window::current(budget.def.window, "UTC", now_ms).unwrap_or(None);
        }
    }
    request
}

/// Issues a key with these budgets, or answers the one that is there already.
pub async fn key(ledger: &dyn Ledger, id: &str, budgets: &[BudgetDef]) -> keybrake::Result<KeyRecord> {
    if let Some(key) = ledger.key(id).await? {
        return Ok(key);
    }
    match ledger.issue_key(issue(id, budgets)).await {
        Ok(key) => Ok(key),
        // Another process was quicker.
        Err(error) => ledger.key(id).await?.ok_or(error),
    }
}

/// A key with these budgets, good for a day.
pub fn issue(id: &str, budgets: &[BudgetDef]) -> IssueKey {
    let key = KeyRecord {
        id: id.to_owned(),
        token_hash: TokenHash(format!("hash-of-{id}")),
        policy_json: "{}".to_owned(),
        ancestor_policies_json: Vec::new(),
        version: 0,
        lineage: id.to_owned(),
        agent: None,
        label: Some("tests".to_owned()),
        run: None,
        groups: Vec::new(),
        ancestors: Vec::new(),
        budgets: budgets
            .iter()
            .map(|def| BudgetRef {
                def: def.clone(),
                limit: None,
                enforce: true,
            })
            .collect(),
        issued_at_ms: 0,
        expires_at_ms: 0,
        revoked_at_ms: None,
        metadata: serde_json::Map::new(),
    };
    IssueKey {
        key,
        expires_in_ms: Some(DAY_MS),
        attribution_only: Vec::new(),
        admin: admin(),
    }
}

/// By whom tests do what administrators do.
pub fn admin() -> AdminNote {
    AdminNote {
        by: "tests".to_owned(),
        reason: "a test".to_owned(),
    }
}

/// A call that moves money, with an identity of its own.
pub fn call(key: &KeyRecord, call_id: &str, amount: i64) -> ReserveRequest {
    ReserveRequest {
        facts: Arc::new(CallFacts {
            call_id: call_id.to_owned(),
            key_id: Some(key.id.clone()),
            key_version: key.version,
            vendor: Some("stripe".to_owned()),
            operation: "refunds.create".to_owned(),
            livemode: false,
            label: key.label.clone(),
            run: Some("run_1".to_owned()),
            direction: -1,
            moves_money: true,
            ..CallFacts::default()
        }),
        identity: Some(Arc::new(IdentityAsk {
            id: format!("identity-of-{call_id}"),
            kind: IdentityKind::Step,
            content_id: format!("content-of-{call_id}"),
            fields: vec![("amount".to_owned(), amount.to_string())],
            wire: "wire".to_owned(),
            caller_key: None,
            on_repeat: OnRepeat::Replay,
            remember_ms: 30 * DAY_MS,
            max_generations: 5,
        })),
        ask: Ask::Amount(AmountAsk {
            usd: Usd::from_micros(amount),
            charges: key
                .budgets
                .iter()
                .map(|budget| ChargeAsk {
                    budget: budget.def.id(),
                    customer: None,
                    unit: budget.def.unit,
                    amount,
                    limit: budget.limit,
                    enforce: budget.enforce,
                    window: None,
                })
                .collect(),
            ..AmountAsk::default()
        }),
        hold_for_ms: 130_000,
        max_open_holds: u32::MAX,
    }
}

/// Reserves, and answers the permission or the code of the refusal.
pub async fn reserve(
    ledger: &dyn Ledger,
    request: ReserveRequest,
) -> keybrake::Result<Result<Grant, String>> {
    Ok(match ledger.reserve(request).await? {
        ReserveAnswer::Granted(grant) => Ok(*grant),
        ReserveAnswer::Denied(denial) => Err(format!("{:?}", denial.code)),
        other => Err(format!("{other:?}")),
    })
}

/// Reserves what is asked of a key, with the key read again if the ledger has another version of it, as after it was opened
/// by hand.
pub async fn reserve_anew(
    ledger: &dyn Ledger,
    key: &KeyRecord,
    asked: impl Fn(&KeyRecord) -> ReserveRequest,
) -> keybrake::Result<Result<Grant, String>> {
    let answer = reserve(ledger, asked(key)).await?;
    if answer.as_ref().is_err_and(|why| why == "Stale")
        && let Some(key) = ledger.key(&key.id).await?
    {
        return reserve(ledger, asked(&key)).await;
    }
    Ok(answer)
}

/// What an attempt proved.
pub fn settlement(call_id: &str, proof: Proof) -> Settlement {
    Settlement {
        call_id: call_id.to_owned(),
        attempt: 1,
        proof,
        object: None,
        reply: None,
        facts: ReplyFacts::default(),
    }
}

/// Charged in full.
pub fn charged(call_id: &str, amount: i64) -> Settlement {
    settlement(
        call_id,
        Proof::Charged {
            actual: Usd::from_micros(amount),
        },
    )
}
