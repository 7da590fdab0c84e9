//! One file for each command.

mod audit;
mod budget;
mod dev;
mod doctor;
mod drain;
mod holds;
mod init;
mod keys;
mod ledger;
mod policy;
mod reconcile;
mod restore;
mod simulate;
mod spend;
mod stop;
mod why;

use crate::args::Command;
use crate::context::Context;
use crate::failure::{Failure, Outcome};

/// Runs one command.
pub(crate) async fn run(context: &mut Context<'_>, command: Command) -> Outcome {
    match command {
        Command::Init(args) => init::run(context, &args),
        Command::Policy(command) => policy::run(context, command),
        Command::Keys(command) => keys::run(context, command).await,
        Command::Stop(args) => stop::stop(context, args).await,
        Command::Resume(args) => stop::resume(context, args).await,
        Command::Stops => stop::list(context).await,
        Command::Why(args) => why::run(context, args).await,
        Command::Audit(command) => audit::run(context, command).await,
        Command::Spend(args) => spend::run(context, args).await,
        Command::Budget(command) => budget::run(context, command).await,
        Command::Holds(command) => holds::run(context, command).await,
        Command::Reconcile(args) => reconcile::run(context, args).await,
        Command::Simulate(args) => simulate::run(context, args).await,
        Command::Dev(args) => dev::run(context, args).await,
        Command::Ledger(command) => ledger::run(context, command).await,
        Command::Doctor(args) => doctor::run(context, &args).await,
        Command::Top(_) => Err(Failure::later("keybrake top")),
        Command::Drill(_) => Err(Failure::later("keybrake drill")),
        Command::Proxy(_) => Err(Failure::later("keybrake proxy")),
        Command::Dashboard(_) => Err(Failure::later("keybrake dashboard")),
        Command::Approvals(_) => Err(Failure::later("keybrake approvals")),
        Command::Secrets(_) => Err(Failure::later("keybrake secrets")),
        Command::MasterKey(_) => Err(Failure::later("keybrake master-key")),
    }
}
