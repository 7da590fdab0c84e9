//! `policy check|explain|schema`. Needs no ledger.

use std::path::Path;

use keybrake::audit::printable;
use keybrake::policy::{Binding, Catalogue, CompiledPolicy, Explanation, Policy, Question, lineage, schema};
use keybrake::vendors::Builtin;
use serde_json::json;

use crate::args::PolicyCommand;
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::show::{Rows, in_unit, plain};

pub(crate) fn run(context: &mut Context<'_>, command: PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Check { file } => check(context, &file),
        PolicyCommand::Explain {
            file,
            request,
            vendor,
        } => explain(context, &file, &request, vendor.as_deref()),
        PolicyCommand::Schema => print_schema(context),
        PolicyCommand::Suggest(_) => Err(Failure::later("keybrake policy suggest")),
        PolicyCommand::Replay(_) => Err(Failure::later("keybrake policy replay")),
    }
}

fn check(context: &mut Context<'_>, file: &Path) -> Outcome {
    let policy = CompiledPolicy::compile(&Policy::from_file(file)?, &Builtin)?;
    let spends_as = lineage(policy.agent_id(), policy.label()).to_owned();
    let run = Some(policy.run().unwrap_or("RUN").to_owned());
    let budgets = policy.budget_refs(&Binding {
        lineage: spends_as.clone(),
        run,
    })?;
    let (writes, reads) = allowed_operations(&policy);
    let mode = if policy.observe() { "observe" } else { "enforce" };
    if context.json {
        let budgets = budgets.iter().map(|budget| {
            let unit = budget.def.unit.as_str();
            json!({"id": budget.def.id().0, "unit": unit, "per": budget.def.window.as_str(),
                   "cap": plain(budget.def.cap, unit), "enforce": budget.enforce})
        });
        context.answer(json!({
            "ok": true, "file": file, "mode": mode, "vendors": policy.vendors(), "spends_as": spends_as,
            "per_call_ceiling_usd": policy.per_call_ceiling().map(|usd| usd.to_string()),
            "budgets": budgets.collect::<Vec<_>>(), "writes": writes, "reads": reads,
        }))?;
        return Ok(exit::OK);
    }
    let headline = context.paint.green("OK");
    context.line(format!(
        "{headline} {} opens {} ({mode})",
        printable(&file.display().to_string()),
        policy.vendors().join(", ")
    ))?;
    context.line(format!("  spends as  {}", printable(&spends_as)))?;
    if let Some(ceiling) = policy.per_call_ceiling() {
        context.line(format!("  one call   at most ${ceiling}"))?;
    }
    if !writes.is_empty() {
        context.line(format!("  writes     {}", few(&writes)))?;
    }
    if !reads.is_empty() {
        let reads = match reads.len() {
            0..=12 => reads.join(", "),
            number => format!("{number} operations (see --json)"),
        };
        context.line(format!("  reads      {reads}"))?;
    }
    if budgets.is_empty() {
        let headline = context.paint.yellow("no budget");
        return context
            .line(format!("  {headline}: nothing limits what these calls add up to"))
            .map(|()| exit::OK);
    }
    let mut rows = Rows::new(&["BUDGET", ">CAP", "PER", "TIME ZONE"]);
    for budget in &budgets {
        let def = &budget.def;
        rows.row([
            def.display_name(),
            in_unit(def.cap, def.unit.as_str()),
            def.window.as_str().to_owned(),
            def.timezone.clone(),
        ]);
    }
    let text = rows.text(context.paint);
    context.line(format!("\n{text}"))?;
    Ok(exit::OK)
}

/// The known operations that the policy lets through, by vendor: those that change something, and reads.
fn allowed_operations(policy: &CompiledPolicy) -> (Vec<String>, Vec<String>) {
    let several = policy.vendors().len() > 1;
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for vendor in policy.vendors() {
        let prefix = if several {
            format!("{vendor}:")
        } else {
            String::new()
        };
        for operation in Builtin.operations(vendor) {
            if policy
                .check_endpoint(vendor, operation.name, operation.method, operation.path)
                .is_ok()
            {
                let names = if operation.read { &mut reads } else { &mut writes };
                names.push(format!("{prefix}{}", operation.name));
            }
        }
    }
    (writes, reads)
}

/// The first few names, and how many more there are.
fn few(names: &[String]) -> String {
    match names.split_at_checked(12) {
        Some((first, rest)) if !rest.is_empty() => {
            format!("{} and {} more (see --json)", first.join(", "), rest.len())
        }
        _ => names.join(", "),
    }
}

fn explain(context: &mut Context<'_>, file: &Path, request: &str, vendor: Option<&str>) -> Outcome {
    let policy = CompiledPolicy::compile(&Policy::from_file(file)?, &Builtin)?;
    let wrong = || {
        Failure::usage(format!(
            "{request:?}: write method and path, such as \"POST /v1/refunds\""
        ))
    };
    let (method, path) = request.trim().split_once(' ').ok_or_else(wrong)?;
    let (method, path) = (method.to_ascii_uppercase(), path.trim());
    if !path.starts_with('/') || path.contains(['?', ' ']) {
        return Err(wrong());
    }
    let vendors = policy.vendors();
    let vendor = match (vendor, vendors.as_slice()) {
        (Some(vendor), _) => vendor,
        (None, [one]) => one,
        (None, several) => {
            return Err(Failure::usage(format!(
                "the policy opens {}; say which with --vendor",
                several.join(", ")
            )));
        }
    };
    let explanation = policy.explain(Question {
        vendor,
        method: &method,
        path,
        ..Question::default()
    });
    if context.json {
        let answer = serde_json::to_value(&explanation).map_err(|cause| {
            Failure::refused(format!("the explanation cannot be written as JSON: {cause}"))
        })?;
        context.answer(answer)?;
    } else {
        tell(context, &explanation, &format!("{method} {path}"))?;
    }
    Ok(if explanation.allowed {
        exit::OK
    } else {
        exit::REFUSED
    })
}

fn tell(context: &mut Context<'_>, explanation: &Explanation, request: &str) -> Result<(), Failure> {
    let headline = match explanation.code {
        None => context.paint.green("ALLOWED"),
        Some(code) => context.paint.red(&format!("REFUSED {code}")),
    };
    let operation = explanation
        .operation
        .as_deref()
        .unwrap_or("no operation that Keybrake knows");
    context.line(format!("{headline} {} ({operation})", printable(request)))?;
    for step in &explanation.steps {
        let mark = if step.passed { "ok     " } else { "refused" };
        context.line(format!("  {mark} {:<9} {}", step.check, printable(&step.because)))?;
    }
    if explanation.allowed {
        for limit in &explanation.limits {
            context.line(format!("  then    {}", printable(limit)))?;
        }
    }
    Ok(())
}

fn print_schema(context: &mut Context<'_>) -> Outcome {
    let text = serde_json::to_string_pretty(&schema())
        .map_err(|cause| Failure::refused(format!("the schema cannot be written: {cause}")))?;
    context.line(text)?;
    Ok(exit::OK)
}
