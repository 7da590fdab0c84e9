//! `simulate`: the vendors' simulators, for people and other programs.

use std::collections::BTreeMap;

use keybrake_testkit::stripe::{Simulator, SimulatorOptions, Totals};
use keybrake_testkit::{SentKind, SimulatedVendor};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::SimulateArgs;
use crate::context::Context;
use crate::failure::{Failure, Outcome, exit};
use crate::show::Rows;

pub(crate) async fn run(context: &mut Context<'_>, args: SimulateArgs) -> Outcome {
    let vendors = args.vendor.iter().map(|name| name.parse::<SimulatedVendor>());
    let vendors = vendors.collect::<Result<Vec<_>, _>>().map_err(Failure::usage)?;
    let simulators = start(&vendors, args.port)?;
    // Before anyone is told that it runs, so that whoever ends it at once is heard.
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    if context.json {
        let all = simulators.iter().map(|simulator| {
            let vendor = simulator.vendor();
            json!({"vendor": vendor.name(), "url": simulator.url(), "port": simulator.port(), "secret": vendor.test_secret()})
        });
        let all: Vec<Value> = all.collect();
        // The first one's url, port and secret stand beside the list, for those who ask for one.
        let mut answer = all.first().cloned().unwrap_or_default();
        if let Some(members) = answer.as_object_mut() {
            members.insert("simulators".to_owned(), json!(all));
        }
        context.answer(answer)?;
    } else {
        for simulator in &simulators {
            context.line(simulator.banner())?;
        }
        context.line("Ctrl-C ends it.")?;
    }
    context.io.out.flush()?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    let done = Done::of(&simulators);
    if context.json {
        context.answer(done.json())?;
    } else {
        context.line("")?;
        done.tell(context)?;
    }
    Ok(exit::OK)
}

/// One simulator for each vendor, on ports that follow each other; with port 0 each takes a free one.
pub(super) fn start(vendors: &[SimulatedVendor], port: u16) -> Result<Vec<Simulator>, Failure> {
    let mut simulators = Vec::new();
    for (vendor, after) in vendors.iter().zip(0_u16..) {
        let port = if port == 0 { 0 } else { port.saturating_add(after) };
        let options = SimulatorOptions {
            vendor: *vendor,
            port,
            ..SimulatorOptions::default()
        };
        let simulator = Simulator::start(options)
            .map_err(|cause| Failure::usage(format!("127.0.0.1:{port}: {cause}; another port: --port 0")))?;
        simulators.push(simulator);
    }
    Ok(simulators)
}

/// What the simulators did, by their own journals.
pub(super) struct Done {
    moved: Option<Totals>,
    sent: BTreeMap<&'static str, BTreeMap<SentKind, u64>>,
}

impl Done {
    pub(super) fn of(simulators: &[Simulator]) -> Self {
        let mut done = Self {
            moved: None,
            sent: BTreeMap::new(),
        };
        for simulator in simulators {
            match simulator.vendor() {
                SimulatedVendor::Stripe => done.moved = Some(simulator.totals()),
                other => {
                    let kinds = done.sent.entry(other.name()).or_default();
                    for row in simulator.sent() {
                        let times = kinds.entry(row.kind).or_default();
                        *times = times.saturating_add(1);
                    }
                }
            }
        }
        done
    }

    /// For scripts.
    pub(super) fn json(&self) -> Value {
        let mut answer = json!({});
        if let Some(members) = answer.as_object_mut() {
            if let Some(totals) = &self.moved {
                members.insert("moved".to_owned(), totals_json(totals));
            }
            if !self.sent.is_empty() {
                members.insert("sent".to_owned(), json!(self.sent));
            }
        }
        answer
    }

    /// For people.
    pub(super) fn tell(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        if let Some(totals) = &self.moved {
            tell_totals(context, totals)?;
        }
        let mut rows = Rows::new(&["SENT BY", "WHAT", ">TIMES"]);
        let mut any = false;
        for (vendor, kinds) in &self.sent {
            for (kind, times) in kinds {
                any = true;
                rows.row([(*vendor).to_owned(), word(kind), times.to_string()]);
            }
        }
        if any {
            let text = rows.text(context.paint);
            context.line(text)
        } else if self.moved.is_none() {
            context.line("nothing was sent")
        } else {
            Ok(())
        }
    }
}

/// What moved, for people.
fn tell_totals(context: &mut Context<'_>, totals: &Totals) -> Result<(), Failure> {
    let mut rows = Rows::new(&["MOVED", ">TIMES", ">AMOUNT", ">CAME BACK", ">NET", "CURRENCY"]);
    let mut any = false;
    for (kind, currencies) in totals {
        for (currency, sum) in currencies {
            any = true;
            let [moved, returned, net] =
                [sum.moved, sum.returned, sum.net].map(|minor| major(minor, currency));
            rows.row([
                word(kind),
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
fn totals_json(totals: &Totals) -> Value {
    let lines = totals.iter().flat_map(|(kind, currencies)| {
        currencies.iter().map(move |(currency, sum)| {
            json!({"kind": word(kind), "currency": currency, "moved_minor": sum.moved,
                   "returned_minor": sum.returned, "net_minor": sum.net, "times": sum.count})
        })
    });
    lines.collect()
}

fn word(kind: &impl Serialize) -> String {
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
