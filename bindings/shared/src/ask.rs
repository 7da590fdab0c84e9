//! Questions and orders to the ledger: JSON in, JSON out, so that every front of every language shares one door.

use std::future::IntoFuture;
use std::path::Path;

use keybrake::audit::RowFilter;
use keybrake::brake::CallContext;
use keybrake::ledger::{AdminNote, BudgetDef, HoldFilter, State, StopScope, Told};
use keybrake::policy::{Policy, Scope, Unit, WindowKind, validate_id};
use keybrake::request::Call;
use keybrake::vendors;
use keybrake::{Error, ErrorKind, Keybrake, Result, Usd};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::core::Core;

/// Answers one question.
///
/// # Errors
/// The library's own; a question that does not exist, or arguments that do not fit it, are a defect in a package.
pub async fn answer(core: &Core, what: &str, arguments: &str) -> Result<String> {
    let keybrake = core.keybrake().await?;
    let answer = match what {
        "issue" => issue(keybrake, read(arguments)?).await?,
        "open" => open(keybrake, read(arguments)?).await?,
        "check" => check(keybrake, read(arguments)?).await?,
        "usage" => usage(keybrake, read(arguments)?).await?,
        "audit" => audit(keybrake, read(arguments)?).await?,
        "holds" => holds(keybrake, read(arguments)?).await?,
        "stop" => stop(keybrake, read(arguments)?).await?,
        "resume" => resume(keybrake, read(arguments)?).await?,
        "stops" => json!(keybrake.stops().await?),
        "revoke" => revoke(keybrake, read(arguments)?).await?,
        "budgets" => budgets(keybrake, read(arguments)?).await?,
        "set_budgets" => set_budgets(keybrake, read(arguments)?).await?,
        "flush" => json!(keybrake.flush().await?),
        other => return Err(defect(&format!("no question {other:?}"))),
    };
    Ok(answer.to_string())
}

fn read<T: DeserializeOwned>(arguments: &str) -> Result<T> {
    serde_json::from_str(arguments).map_err(|e| defect("arguments that do not fit").because(e))
}

fn defect(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("a defect in the package: {what}"))
}

/// A policy and what binds the key to be issued.
#[derive(Deserialize)]
struct Ties {
    policy: Option<Value>,
    policy_file: Option<String>,
    run: Option<String>,
    agent: Option<String>,
    label: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    narrow: Option<Value>,
    expires_in: Option<String>,
    #[serde(default)]
    by: String,
}

impl Ties {
    fn document(&self) -> Result<Policy> {
        match (&self.policy, &self.policy_file) {
            (Some(document), _) => Policy::from_value(document),
            (None, Some(path)) => Policy::from_file(Path::new(path)),
            (None, None) => Err(defect("neither a token nor a policy")),
        }
    }
}

/// Applies what binds a key to either builder; both have the same methods.
macro_rules! tie {
    ($builder:expr, $ties:expr) => {{
        let ties = $ties;
        let mut builder = $builder.admin(AdminNote {
            by: ties.by,
            reason: String::new(),
        });
        if let Some(run) = ties.run {
            builder = builder.run(run);
        }
        if let Some(agent) = ties.agent {
            builder = builder.agent(agent);
        }
        if let Some(label) = ties.label {
            builder = builder.label(label);
        }
        for group in ties.groups {
            builder = builder.group(group);
        }
        if let Some(narrow) = ties.narrow {
            builder = builder.narrow(narrow);
        }
        if let Some(lifetime) = ties.expires_in {
            builder = builder.expires_in(lifetime);
        }
        builder
    }};
}

async fn issue(keybrake: &Keybrake, ties: Ties) -> Result<Value> {
    let policy = ties.document()?;
    let key = tie!(keybrake.issue(policy), ties).into_future().await?;
    Ok(json!({
        "id": key.id, "token": key.token.expose(), "expires_at_ms": key.expires_at_ms, "run": key.run,
    }))
}

#[derive(Deserialize)]
struct Opening {
    token: Option<String>,
    #[serde(default)]
    allow_run_caps_only: bool,
    #[serde(flatten)]
    ties: Ties,
}

async fn open(keybrake: &Keybrake, opening: Opening) -> Result<Value> {
    let run = if let Some(token) = opening.token {
        keybrake.open_key(&token).await?
    } else {
        let policy = opening.ties.document()?;
        let mut builder = tie!(keybrake.open(policy), opening.ties);
        if opening.allow_run_caps_only {
            builder = builder.allow_run_caps_only();
        }
        builder.into_future().await?
    };
    let answer = json!({"id": run.key_id(), "token": run.token().expose(), "run": run.id()});
    // The host's handle closes the run; this one only named it.
    run.leave_open();
    Ok(answer)
}

/// A call to judge without consequences: `path` with its query, `body` as the vendor's SDK encodes it.
#[derive(Deserialize)]
struct CheckAsk {
    token: String,
    vendor: String,
    method: String,
    path: String,
    body: String,
    /// What the body is; a form when it is not said.
    content_type: Option<String>,
}

async fn check(keybrake: &Keybrake, asked: CheckAsk) -> Result<Value> {
    let vendor = vendors::vendor(&asked.vendor)
        .ok_or_else(|| Error::config(format!("no vendor {:?}", asked.vendor)))?;
    let host = vendor.hosts().first().copied().unwrap_or_default();
    let mut headers = vec![("Authorization".to_owned(), format!("Bearer {}", asked.token))];
    if !asked.body.is_empty() {
        let form = || "application/x-www-form-urlencoded".to_owned();
        headers.push(("Content-Type".to_owned(), asked.content_type.unwrap_or_else(form)));
    }
    let call = Call {
        method: asked.method.to_ascii_uppercase(),
        url: format!("https://{host}{}", asked.path),
        headers,
        body: asked.body.into(),
    };
    Ok(
        match keybrake.brake().check(call, CallContext::default()).await? {
            Ok(amount) => json!({"amount_micros": amount.map(Usd::micros)}),
            Err(denial) => json!({"denial": denial, "amount_micros": denial.requested_micros}),
        },
    )
}

#[derive(Deserialize)]
struct OfKey {
    key_id: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    by: String,
}

async fn usage(keybrake: &Keybrake, asked: OfKey) -> Result<Value> {
    Ok(json!(keybrake.usage(&asked.key_id).await?))
}

async fn revoke(keybrake: &Keybrake, asked: OfKey) -> Result<Value> {
    let admin = AdminNote {
        by: asked.by,
        reason: asked.reason,
    };
    Ok(json!(keybrake.revoke(&asked.key_id, admin).await?))
}

#[derive(Deserialize)]
struct AuditAsk {
    run: Option<String>,
    call_id: Option<String>,
    key_id: Option<String>,
    agent: Option<String>,
    denied: Option<bool>,
    since_ms: Option<i64>,
    limit: usize,
}

async fn audit(keybrake: &Keybrake, asked: AuditAsk) -> Result<Value> {
    let filter = RowFilter {
        run: asked.run,
        call_id: asked.call_id,
        key: asked.key_id,
        agent: asked.agent,
        denied: asked.denied,
        since_ms: asked.since_ms,
        ..RowFilter::default()
    };
    Ok(json!(keybrake.audit(filter, asked.limit).await?))
}

#[derive(Deserialize)]
struct HoldsAsk {
    run: Option<String>,
    state: Option<State>,
}

async fn holds(keybrake: &Keybrake, asked: HoldsAsk) -> Result<Value> {
    let filter = HoldFilter {
        run: asked.run,
        state: asked.state,
        limit: 0,
    };
    Ok(json!(keybrake.holds(filter).await?))
}

#[derive(Deserialize)]
struct StopAsk {
    scope: StopScope,
    reason: String,
    by: String,
    #[serde(default)]
    hard: bool,
}

async fn stop(keybrake: &Keybrake, asked: StopAsk) -> Result<Value> {
    let admin = AdminNote {
        by: asked.by,
        reason: asked.reason,
    };
    let answer = if asked.hard {
        keybrake.stop_hard(asked.scope, admin).await?
    } else {
        keybrake.stop(asked.scope, admin).await?
    };
    let told = match answer.told {
        Told::Processes(told) => Some(told),
        Told::NotAsked | Told::TheyLook | Told::Failed(_) => None,
    };
    Ok(json!({
        "stop": answer.stop,
        "keys_refused": answer.keys_refused,
        "in_flight": answer.in_flight,
        "other_runs": answer.other_runs,
        "processes_told": told,
    }))
}

async fn resume(keybrake: &Keybrake, asked: StopAsk) -> Result<Value> {
    let admin = AdminNote {
        by: asked.by,
        reason: asked.reason,
    };
    Ok(json!(keybrake.resume(&asked.scope, admin).await?))
}

#[derive(Deserialize)]
struct BudgetsAsk {
    scope: Option<String>,
}

async fn budgets(keybrake: &Keybrake, asked: BudgetsAsk) -> Result<Value> {
    let scope = asked.scope.as_deref().map(scope_of).transpose()?;
    Ok(json!(keybrake.budgets(scope.as_ref()).await?))
}

#[derive(Deserialize)]
struct SetBudgets {
    budgets: Vec<BudgetEntry>,
    reason: String,
    by: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BudgetEntry {
    scope: String,
    vendor: Option<String>,
    usd: Option<Value>,
    calls: Option<i64>,
    writes: Option<i64>,
    sends: Option<i64>,
    per: WindowKind,
    timezone: Option<String>,
}

async fn set_budgets(keybrake: &Keybrake, asked: SetBudgets) -> Result<Value> {
    // All are read before the first is set, so that a mistake in the last changes nothing.
    let defs: Vec<BudgetDef> = asked
        .budgets
        .into_iter()
        .map(BudgetEntry::definition)
        .collect::<Result<_>>()?;
    for def in defs {
        let admin = AdminNote {
            by: asked.by.clone(),
            reason: asked.reason.clone(),
        };
        keybrake.set_budget(def, admin).await?;
    }
    Ok(Value::Null)
}

impl BudgetEntry {
    fn definition(self) -> Result<BudgetDef> {
        let usd = self.usd.as_ref().map(dollars).transpose()?;
        let given = [
            usd.map(|usd| (Unit::Usd, usd.micros())),
            self.calls.map(|calls| (Unit::Calls, calls)),
            self.writes.map(|writes| (Unit::Writes, writes)),
            self.sends.map(|sends| (Unit::Sends, sends)),
        ];
        let mut given = given.into_iter().flatten();
        let (Some((unit, cap)), None) = (given.next(), given.next()) else {
            return Err(Error::policy(
                "a budget has exactly one of usd, calls, writes and sends",
            ));
        };
        if cap < 0 {
            return Err(Error::policy("a cap is zero or more"));
        }
        Ok(BudgetDef {
            vendor: self.vendor,
            scope: scope_of(&self.scope)?,
            unit,
            window: self.per,
            timezone: self.timezone.unwrap_or_else(|| "UTC".to_owned()),
            cap,
        })
    }
}

fn dollars(value: &Value) -> Result<Usd> {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.parse()
        .map_err(|e| Error::policy("a budget's usd").because(e))
}

/// A scope as it is typed: `lineage:…`, `run:…`, `customer:*`, `group:…`; anything else names a group.
fn scope_of(name: &str) -> Result<Scope> {
    let (kind, id) = match name.split_once(':') {
        Some((kind @ ("lineage" | "run" | "group"), id)) => (kind, id),
        Some(("customer", "*")) => return Ok(Scope::Customer("*".to_owned())),
        _ => ("group", name),
    };
    validate_id(kind, id)?;
    Ok(match kind {
        "lineage" => Scope::Lineage(id.to_owned()),
        "run" => Scope::Run(id.to_owned()),
        _ => Scope::Group(id.to_owned()),
    })
}
