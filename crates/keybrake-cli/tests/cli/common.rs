//! A throw-away ledger, the binary run against it, and calls made on it as an engine would make them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use keybrake::SystemClock;
use keybrake::Usd;
use keybrake::ledger::{
    AmountAsk, Ask, CallFacts, ChargeAsk, CostSource, Grant, KeyRecord, Ledger, Proof, ReplyFacts,
    ReserveAnswer, ReserveRequest, Settlement, WindowKind,
};
use keybrake::policy::window;
use serde_json::Value;

/// A policy with a cap of $100 a day for refunds.
pub(crate) const POLICY: &str = r#"{"vendor": "stripe", "agent_id": "support", "daily_usd_cap": 100, "max_amount_per_call_usd": 80,
  "allowed_endpoints": ["refunds.create", "reads"]}"#;

/// A directory with a ledger in it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) url: String,
}

/// What the binary answered.
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|cause| panic!("{cause}: {}\n{}", self.out, self.err))
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("ledger.db").display());
        std::fs::write(directory.path().join("policy.json"), POLICY).unwrap();
        Self { directory, url }
    }

    /// A directory whose commands use the ledger of this URL.
    pub(crate) fn on(url: String) -> Self {
        Self { url, ..Self::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary with no settings but those given here.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keybrake"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path())
            .env("USER", "ada")
            .current_dir(self.path());
        command
    }

    /// Runs the binary against the ledger.
    pub(crate) fn run(&self, arguments: &[&str]) -> Answer {
        answer(
            self.command()
                .env("KEYBRAKE_LEDGER", &self.url)
                .args(arguments)
                .output()
                .unwrap(),
        )
    }

    /// Runs it with `--json` and expects exit code 0.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let answer = self.run(&[&["--json"], arguments].concat());
        assert_eq!(answer.code, 0, "{arguments:?}: {}{}", answer.out, answer.err);
        answer.json()
    }

    pub(crate) fn ledger(&self) -> Arc<dyn Ledger> {
        keybrake::ledger::open(&self.url, Arc::new(SystemClock)).unwrap()
    }

    /// Issues a key for a run by the command; answers its id.
    pub(crate) fn issue(&self, run: &str) -> String {
        let key = self.json(&["keys", "issue", "--policy", "policy.json", "--run", run]);
        key["id"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn answer(output: Output) -> Answer {
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A reserve of a refund by this key.
pub(crate) async fn reserve(ledger: &dyn Ledger, key: &str, call_id: &str, dollars: i64) -> ReserveAnswer {
    reserve_for(ledger, key, (call_id, dollars), 130_000).await
}

/// As [`reserve`], with the time after which its request can no longer be under way.
async fn reserve_for(
    ledger: &dyn Ledger,
    key: &str,
    (call_id, dollars): (&str, i64),
    hold_for_ms: i64,
) -> ReserveAnswer {
    let key = ledger.key(key).await.unwrap().unwrap();
    let now_ms = ledger.info().await.unwrap().now_ms;
    let usd = Usd::from_dollars(dollars).unwrap();
    let request = ReserveRequest {
        facts: Arc::new(facts(&key, call_id)),
        identity: None,
        ask: Ask::Amount(AmountAsk {
            usd,
            charges: charges(&key, usd, now_ms),
            ..AmountAsk::default()
        }),
        hold_for_ms,
        max_open_holds: 1_000,
    };
    ledger.reserve(request).await.unwrap()
}

/// A reserve that must be granted.
pub(crate) async fn granted(ledger: &dyn Ledger, key: &str, call_id: &str, dollars: i64) -> Grant {
    match reserve(ledger, key, call_id, dollars).await {
        ReserveAnswer::Granted(grant) => *grant,
        other => panic!("not granted: {other:?}"),
    }
}

/// A reserve that must be granted, and whose deadline has passed at once.
pub(crate) async fn granted_and_over(ledger: &dyn Ledger, key: &str, call_id: &str, dollars: i64) {
    let answer = reserve_for(ledger, key, (call_id, dollars), 0).await;
    assert!(matches!(answer, ReserveAnswer::Granted(_)), "{answer:?}");
}

/// A settlement by the vendor's answer.
pub(crate) async fn charged(ledger: &dyn Ledger, call_id: &str, dollars: i64) {
    settle(
        ledger,
        call_id,
        Proof::Charged {
            actual: Usd::from_dollars(dollars).unwrap(),
        },
    )
    .await;
}

pub(crate) async fn settle(ledger: &dyn Ledger, call_id: &str, proof: Proof) {
    let facts = ReplyFacts {
        status_code: Some(200),
        vendor_request_id: Some("req_1".to_owned()),
        vendor_object: Some("re_1".to_owned()),
        idempotency_key: Some("kb_1".to_owned()),
        latency_ms: Some(12),
        cost_source: CostSource::Response,
        replayed: false,
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

fn facts(key: &KeyRecord, call_id: &str) -> CallFacts {
    CallFacts {
        call_id: call_id.to_owned(),
        key_id: Some(key.id.clone()),
        key_version: key.version,
        vendor: Some("stripe".to_owned()),
        operation: "refunds.create".to_owned(),
        agent: key.agent.clone(),
        label: key.label.clone(),
        run: key.run.clone(),
        groups: key.groups.clone(),
        customer: Some("cus_1".to_owned()),
        direction: -1,
        moves_money: true,
        ..CallFacts::default()
    }
}

fn charges(key: &KeyRecord, usd: Usd, now_ms: i64) -> Vec<ChargeAsk> {
    let asks = key.budgets.iter().map(|budget| ChargeAsk {
        budget: budget.def.id(),
        customer: None,
        unit: budget.def.unit,
        amount: usd.micros(),
        limit: budget.limit,
        enforce: budget.enforce,
        window: match budget.def.window {
            WindowKind::Run | WindowKind::Lifetime | WindowKind::Rolling24h => None,
            kind => window::current(kind, &budget.def.timezone, now_ms).unwrap(),
        },
    });
    asks.collect()
}

/// The text with times, keys, durations and the ledger's place masked, so that it can be compared.
pub(crate) fn masked(text: &str, place: &Place) -> String {
    let mut text = text.replace(&place.path().display().to_string(), "DIR");
    let patterns = [
        (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r"vk_[0-9A-Za-z]{16,}", "KEY"),
        (r"vault_key_[0-9A-Za-z]+", "TOKEN"),
        (r"\b\d+ ms\b", "N ms"),
        (r"\b\d+ s\b", "N s"),
    ];
    for (pattern, mask) in patterns {
        text = regex_lite::Regex::new(pattern)
            .unwrap()
            .replace_all(&text, mask)
            .into_owned();
    }
    let lines = text.lines().map(str::trim_end).collect::<Vec<_>>();
    lines.join("\n")
}
