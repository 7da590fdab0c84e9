//! `simulate`: the vendor simulator, for people and other programs.

use keybrake_testkit::stripe::{MovementKind, Simulator, SimulatorOptions, TEST_SECRET, Totals};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::SimulateArgs;
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::show::Rows;

pub(crate) async fn run(context: &mut Context<'_>, args: SimulateArgs) -> Outcome {
    for vendor in &args.vendor {
        match vendor.as_str() {
            "stripe" => {}
            "twilio" | "resend" => return Err(Failure::later(&format!("the simulator of {vendor}"))),
            other => {
                return Err(Failure::usage(format!(
                    "there is no simulator of {other:?}; there is stripe"
                )));
            }
        }
    }
    let port = args.port;
    let simulator = Simulator::start(SimulatorOptions {
        port,
        ..SimulatorOptions::default()
    })
    .map_err(|cause| Failure::usage(format!("127.0.0.1:{port}: {cause}; another port: --port 0")))?;
    // Before anyone is told that it runs, so that whoever ends it at once is heard.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    if context.json {
        context.answer(json!({"url": simulator.url(), "port": simulator.port(), "secret": TEST_SECRET}))?;
    } else {
        context.line(simulator.banner())?;
        context.line("Ctrl-C ends it.")?;
    }
    context.io.out.flush()?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    if context.json {
        context.answer(json!({"moved": totals_json(&simulator.totals())}))?;
    } else {
        context.line("")?;
        tell_totals(context, &simulator.totals())?;
    }
    Ok(exit::OK)
}

/// What moved, for people.
pub(super) fn tell_totals(context: &mut Context<'_>, totals: &Totals) -> Result<(), Failure> {
    let mut rows = Rows::new(&["MOVED", ">TIMES", ">AMOUNT", ">CAME BACK", ">NET", "CURRENCY"]);
    let mut any = false;
    for (kind, currencies) in totals {
        for (currency, sum) in currencies {
            any = true;
            let [moved, returned, net] =
                [sum.moved, sum.returned, sum.net].map(|minor| major(minor, currency));
            rows.row([
                word(*kind),
                sum.count.to_string(),
                moved,
                returned,
                net,
                currency.to_uppercase(),
            ]);
        }
    }
    if !any {
        return context.line("no money moved");
    }
    let text = rows.text(context.paint);
    context.line(text)
}

/// What moved, for scripts: smallest units, as the vendor counts.
pub(super) fn totals_json(totals: &Totals) -> Value {
    let lines = totals.iter().flat_map(|(kind, currencies)| {
        currencies.iter().map(move |(currency, sum)| {
            json!({"kind": word(*kind), "currency": currency, "moved_minor": sum.moved,
                   "returned_minor": sum.returned, "net_minor": sum.net, "times": sum.count})
        })
    });
    lines.collect()
}

fn word(kind: MovementKind) -> String {
    let name = serde_json::to_value(kind).ok();
    name.and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Smallest units as a person reads them, by the vendor's decimals.
fn major(minor: i64, currency: &str) -> String {
    let decimals = keybrake::vendors::vendor("stripe")
        .and_then(|vendor| vendor.exponent(keybrake::money::Currency::parse(currency)?))
        .map_or(2, usize::from);
    if decimals == 0 {
        return minor.to_string();
    }
    let digits = format!(
        "{:0>width$}",
        minor.unsigned_abs(),
        width = decimals.saturating_add(1)
    );
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(decimals));
    let sign = if minor < 0 { "-" } else { "" };
    format!("{sign}{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_units_read_by_the_vendors_decimals() {
        assert_eq!(major(5_000, "usd"), "50.00");
        assert_eq!(major(-7, "usd"), "-0.07");
        assert_eq!(major(500, "jpy"), "500");
    }
}
