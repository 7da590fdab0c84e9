//! `budget set|list|show`.

use keybrake::Usd;
use keybrake::ledger::{BudgetDef, BudgetUsage, Scope, Unit, WindowKind};
use serde_json::{Value, json};

use crate::args::{BudgetCommand, BudgetSetArgs};
use crate::context::{Context, Open};
use crate::failure::{Failure, Outcome, exit};
use crate::show::{Rows, in_unit, plain, time, view_json};

pub(crate) async fn run(context: &mut Context<'_>, command: BudgetCommand) -> Outcome {
    match command {
        BudgetCommand::Set(args) => set(context, args).await,
        BudgetCommand::List => list(context, None).await,
        BudgetCommand::Show { name } => list(context, Some(scope_of(&name)?)).await,
    }
}

async fn set(context: &mut Context<'_>, args: BudgetSetArgs) -> Outcome {
    let budget = budget_of(&args)?;
    let open = context.open().await?;
    let id = budget.id();
    let before = standing(&open, &budget).await?;
    let set = open
        .ledger
        .put_budget(budget, Context::admin(&args.reason))
        .await?;
    let unit = set.unit.as_str();
    let old = before.first().map(|usage| usage.def.cap);
    if context.json {
        context.answer(json!({
            "budget": id.0, "unit": unit, "per": set.window.as_str(), "timezone": set.timezone,
            "cap": plain(set.cap, unit), "cap_before": old.map(|cap| plain(cap, unit)),
        }))?;
        return Ok(exit::OK);
    }
    let was = old.map_or_else(|| "new".to_owned(), |cap| format!("was {}", in_unit(cap, unit)));
    context.line(format!(
        "{} is {} per {} ({was}); it holds from the next call on",
        keybrake::audit::printable(&set.display_name()),
        in_unit(set.cap, unit),
        set.window.as_str(),
    ))?;
    for usage in &before {
        let taken = usage.view.used.saturating_add(usage.view.held);
        if taken > set.cap {
            let until = usage
                .view
                .resets_at_ms
                .map_or_else(String::new, |ms| format!(" until {}", time(ms)));
            let taken = in_unit(taken, unit);
            context.line(format!(
                "  {taken} of it are taken already: nothing more fits{until}"
            ))?;
        }
    }
    Ok(exit::OK)
}

/// The same budget as it stands before the change, in both modes.
async fn standing(open: &Open, budget: &BudgetDef) -> Result<Vec<BudgetUsage>, Failure> {
    let all = open.ledger.budgets(Some(&budget.scope)).await?;
    Ok(all
        .into_iter()
        .filter(|usage| usage.def.id() == budget.id())
        .collect())
}

fn budget_of(args: &BudgetSetArgs) -> Result<BudgetDef, Failure> {
    let counted = |cap: Option<i64>, unit| cap.map(|cap| (unit, cap));
    let money = args.usd.as_deref().map(|text| {
        let usd: Usd = text
            .parse()
            .map_err(|cause| Failure::usage(format!("--usd: {cause}")))?;
        Ok::<_, Failure>((Unit::Usd, usd.micros()))
    });
    let cap = money.transpose()?;
    let cap = cap
        .or(counted(args.calls, Unit::Calls))
        .or(counted(args.writes, Unit::Writes));
    let (unit, cap) = cap.ok_or_else(|| Failure::usage("give a cap: --usd, --calls or --writes"))?;
    if cap < 0 {
        return Err(Failure::usage("a cap is zero or more"));
    }
    Ok(BudgetDef {
        vendor: args.vendor.clone(),
        scope: scope_of(&args.name)?,
        unit,
        window: window_of(&args.per)?,
        timezone: args.timezone.clone(),
        cap,
    })
}

fn window_of(text: &str) -> Result<WindowKind, Failure> {
    Ok(match text {
        "hour" => WindowKind::Hour,
        "day" => WindowKind::Day,
        "rolling_24h" => WindowKind::Rolling24h,
        "month" => WindowKind::Month,
        "run" => WindowKind::Run,
        "lifetime" => WindowKind::Lifetime,
        other => {
            return Err(Failure::usage(format!(
                "--per {other:?}: write hour, day, rolling_24h, month, run or lifetime"
            )));
        }
    })
}

/// A scope as it is typed: `lineage:…`, `run:…`, `customer:*`, `group:…`; anything else names a group.
fn scope_of(name: &str) -> Result<Scope, Failure> {
    let scope = match name.split_once(':') {
        Some(("lineage", id)) => Scope::Lineage(id.to_owned()),
        Some(("run", "*")) => return Ok(Scope::Run("*".to_owned())),
        Some(("run", id)) => Scope::Run(id.to_owned()),
        Some(("group", id)) => Scope::Group(id.to_owned()),
        Some(("customer", "*")) => Scope::Customer("*".to_owned()),
        Some(("customer", _)) => {
            return Err(Failure::usage(
                "a customer budget is one cap for each customer: write customer:*",
            ));
        }
        _ => Scope::Group(name.to_owned()),
    };
    let (kind, id) = match &scope {
        Scope::Lineage(id) => ("lineage", id),
        Scope::Run(id) => ("run", id),
        Scope::Group(id) => ("group", id),
        Scope::Customer(_) => return Ok(scope),
    };
    keybrake::policy::validate_id(kind, id).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(scope)
}

async fn list(context: &mut Context<'_>, scope: Option<Scope>) -> Outcome {
    let open = context.open().await?;
    let found = open.ledger.budgets(scope.as_ref()).await?;
    if found.is_empty()
        && let Some(scope) = &scope
    {
        return Err(Failure::not_found(format!(
            "no budget counts {}; see keybrake budget list",
            scope.name()
        )));
    }
    if context.json {
        context.answer(json!({"budgets": found.iter().map(usage_json).collect::<Vec<_>>()}))?;
    } else if found.is_empty() {
        context.line("no budgets")?;
    } else {
        let text = table(&found).text(context.paint);
        context.line(text)?;
    }
    Ok(exit::OK)
}

/// A budget as it stands, for scripts.
pub(crate) fn usage_json(usage: &BudgetUsage) -> Value {
    json!({"id": usage.id.0, "livemode": usage.livemode, "timezone": usage.def.timezone,
           "budget": view_json(&usage.view)})
}

/// Budgets as they stand, for people.
pub(crate) fn table(usages: &[BudgetUsage]) -> Rows {
    let mut rows = Rows::new(&["BUDGET", "MONEY", ">CAP", ">USED", ">HELD", ">LEFT", "RESETS"]);
    for usage in usages {
        let view = &usage.view;
        let amounts = [view.cap, view.used, view.held, view.remaining()];
        let [cap, used, held, left] = amounts.map(|amount| in_unit(amount, &view.unit));
        let resets = match (view.resets_at_ms, usage.def.window) {
            (Some(ms), _) => time(ms),
            (None, WindowKind::Rolling24h) => "rolling".to_owned(),
            (None, WindowKind::Run | WindowKind::Lifetime) => "never".to_owned(),
            // Its window begins with the first call in it.
            (None, _) => "-".to_owned(),
        };
        let mode = if usage.livemode { "live" } else { "test" };
        rows.row([view.name.as_str(), mode, &cap, &used, &held, &left, &resets]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_read_as_they_are_typed() {
        assert_eq!(
            scope_of("tenant:acme").unwrap(),
            Scope::Group("tenant:acme".into())
        );
        assert_eq!(scope_of("lineage:a").unwrap(), Scope::Lineage("a".into()));
        assert_eq!(scope_of("customer:*").unwrap(), Scope::Customer("*".into()));
        for wrong in ["customer:cus_1", "run:a::b", "", "a b", "a|b"] {
            assert_eq!(scope_of(wrong).unwrap_err().code, 2, "{wrong:?}");
        }
    }
}
