//! `keys issue|list|show|revoke`.

use keybrake::audit::{printable, time_text};
use keybrake::facade::Keybrake;
use keybrake::ledger::{BudgetUsage, KeyRecord, Stop, StopScope};
use keybrake::policy::Policy;
use serde_json::{Value, json};

use super::budget;
use crate::args::{IssueArgs, KeysCommand};
use crate::context::{Context, Open};
use crate::failure::{Failure, Outcome, exit};
use crate::show::{Rows, time};

pub(crate) async fn run(context: &mut Context<'_>, command: KeysCommand) -> Outcome {
    match command {
        KeysCommand::Issue(args) => issue(context, args).await,
        KeysCommand::List { all } => list(context, all).await,
        KeysCommand::Show { id } => show(context, &id).await,
        KeysCommand::Revoke { id, reason } => revoke(context, &id, &reason).await,
    }
}

async fn issue(context: &mut Context<'_>, args: IssueArgs) -> Outcome {
    let policy = Policy::from_file(&args.policy)?;
    let narrow = args.narrow.as_deref().map(|text| {
        serde_json::from_str::<Value>(text)
            .map_err(|cause| Failure::usage(format!("--narrow is not JSON: {cause}")))
    });
    let narrow = narrow.transpose()?;
    let open = context.open().await?;
    let keybrake = Keybrake::builder()
        .shared_ledger(open.ledger.clone())
        .build()
        .await?;
    let mut issue = keybrake.issue(policy).admin(Context::admin(&args.reason));
    if let Some(run) = args.run {
        issue = issue.run(run);
    }
    if let Some(agent) = args.agent {
        issue = issue.agent(agent);
    }
    if let Some(label) = args.label {
        issue = issue.label(label);
    }
    for group in args.group {
        issue = issue.group(group);
    }
    for group in args.attribution_group {
        issue = issue.attribution_group(group);
    }
    if let Some(narrow) = narrow {
        issue = issue.narrow(narrow);
    }
    if let Some(lifetime) = args.expires_in {
        issue = issue.expires_in(lifetime);
    }
    let key = issue.await?;
    let usage = open.ledger.usage(&key.id).await?;
    if context.json {
        context.answer(json!({
            "id": key.id, "token": key.token.expose(), "run": key.run,
            "expires_at": time_text(key.expires_at_ms),
            "budgets": usage.iter().map(budget::usage_json).collect::<Vec<_>>(),
        }))?;
    } else if args.token_only {
        context.line(key.token.expose())?;
    } else {
        context.line(format!("key      {}", key.id))?;
        context.line(format!("token    {}", key.token.expose()))?;
        context.line(format!("expires  {}", time(key.expires_at_ms)))?;
        if let Some(run) = &key.run {
            context.line(format!("run      {}", printable(run)))?;
        }
        tell_budgets(context, &usage)?;
        context.line(
            "\nThe token is shown this once. Give it to the agent where the vendor's API key used to go.",
        )?;
    }
    Ok(exit::OK)
}

fn tell_budgets(context: &mut Context<'_>, usage: &[BudgetUsage]) -> Result<(), Failure> {
    let text = budget::table(usage).text(context.paint);
    context.line(format!("\n{text}"))
}

/// What a key may do now, in a word.
fn standing(key: &KeyRecord, stops: &[Stop], now_ms: i64) -> String {
    if key.revoked_at_ms.is_some() {
        return "revoked".to_owned();
    }
    if now_ms >= key.expires_at_ms {
        return "expired".to_owned();
    }
    let covers = |scope: &StopScope| match scope {
        StopScope::Run(run) => key.run.as_ref() == Some(run),
        StopScope::Agent(agent) => key.agent.as_ref() == Some(agent),
        StopScope::Label(label) => key.label.as_ref() == Some(label),
        StopScope::Group(group) => key.groups.contains(group),
        StopScope::Key(id) => &key.id == id || key.ancestors.contains(id),
        StopScope::Vendor(_) => false,
        StopScope::All => true,
    };
    match stops.iter().find(|stop| covers(&stop.scope)) {
        Some(stop) => format!("stopped ({})", stop.scope.name()),
        None => "open".to_owned(),
    }
}

async fn list(context: &mut Context<'_>, all: bool) -> Outcome {
    let open = context.open().await?;
    let stops = open.ledger.stops().await?;
    let keys = open.ledger.keys().await?;
    let now_ms = open.info.now_ms;
    let keys = keys.iter().map(|key| (key, standing(key, &stops, now_ms)));
    let keys: Vec<_> = keys
        .filter(|(_, state)| all || !matches!(state.as_str(), "revoked" | "expired"))
        .collect();
    if context.json {
        let keys = keys.iter().map(|(key, state)| key_json(key, state));
        context.answer(json!({"keys": keys.collect::<Vec<_>>()}))?;
    } else if keys.is_empty() {
        context.line(if all {
            "no keys"
        } else {
            "no open keys; --all shows revoked and expired ones"
        })?;
    } else {
        let mut rows = Rows::new(&["KEY", "STATE", "SPENDS AS", "RUN", "GROUPS", "ISSUED", "EXPIRES"]);
        for (key, state) in &keys {
            let dash = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text.to_owned()
                }
            };
            rows.row([
                key.id.clone(),
                state.clone(),
                key.lineage.clone(),
                dash(key.run.as_deref().unwrap_or_default()),
                dash(&key.groups.join(",")),
                time(key.issued_at_ms),
                time(key.expires_at_ms),
            ]);
        }
        let text = rows.text(context.paint);
        context.line(text)?;
    }
    Ok(exit::OK)
}

fn key_json(key: &KeyRecord, state: &str) -> Value {
    json!({
        "id": key.id, "state": state, "lineage": key.lineage, "agent": key.agent, "label": key.label,
        "run": key.run, "groups": key.groups, "ancestors": key.ancestors,
        "issued_at": time_text(key.issued_at_ms), "expires_at": time_text(key.expires_at_ms),
        "revoked_at": key.revoked_at_ms.map(time_text), "metadata": key.metadata,
    })
}

async fn known(open: &Open, id: &str) -> Result<KeyRecord, Failure> {
    if id.starts_with("vault_key_") {
        return Err(Failure::usage(
            "this is a token, not a key's id; ids begin with vk_. Tokens do not belong on a command line: \
             other users of this machine can read it. Consider revoking the key",
        ));
    }
    let key = open.ledger.key(id).await?;
    key.ok_or_else(|| {
        Failure::not_found(format!(
            "the ledger knows no key {id:?}; see keybrake keys list --all"
        ))
    })
}

async fn show(context: &mut Context<'_>, id: &str) -> Outcome {
    let open = context.open().await?;
    let key = known(&open, id).await?;
    let stops = open.ledger.stops().await?;
    let usage = open.ledger.usage(id).await?;
    let state = standing(&key, &stops, open.info.now_ms);
    let policy: Value = serde_json::from_str(&key.policy_json).unwrap_or(Value::Null);
    if context.json {
        let mut answer = key_json(&key, &state);
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("policy".into(), policy);
            fields.insert("budgets".into(), usage.iter().map(budget::usage_json).collect());
        }
        context.answer(json!({"key": answer}))?;
        return Ok(exit::OK);
    }
    let groups = key.groups.join(", ");
    let facts = [
        ("key", key.id.as_str()),
        ("state", &state),
        ("spends as", &key.lineage),
        ("run", key.run.as_deref().unwrap_or_default()),
        ("groups", &groups),
        ("parent", key.ancestors.first().map_or("", String::as_str)),
        ("issued", &time(key.issued_at_ms)),
        ("expires", &time(key.expires_at_ms)),
        ("revoked", &key.revoked_at_ms.map(time).unwrap_or_default()),
    ];
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        context.line(format!("{name:<10} {}", printable(value)))?;
    }
    let policy = serde_json::to_string_pretty(&policy).unwrap_or_default();
    context.line("policy")?;
    for line in policy.lines() {
        context.line(format!("  {}", printable(line)))?;
    }
    tell_budgets(context, &usage)?;
    Ok(exit::OK)
}

async fn revoke(context: &mut Context<'_>, id: &str, reason: &str) -> Outcome {
    let open = context.open().await?;
    known(&open, id).await?;
    let was_open = open.ledger.revoke(id, Context::admin(reason)).await?;
    if context.json {
        context.answer(json!({"revoked": id, "was_open": was_open}))?;
    } else if was_open {
        let headline = context.paint.red("REVOKED");
        context.line(format!(
            "{headline} {id} and its children, from the next call on, for good"
        ))?;
    } else {
        context.line(format!("{id} was not open any more"))?;
    }
    Ok(exit::OK)
}
