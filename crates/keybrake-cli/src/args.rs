//! What can be typed.
#![expect(
    clippy::doc_markdown,
    reason = "these comments are the help that a terminal shows"
)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  keybrake dev -- python agent.py                     try it: simulator, throw-away ledger, your program
  keybrake keys issue --policy policies/support.json --run run_42
  keybrake stop run_42 --reason \"refund loop\"         the next call of run_42 is refused
  keybrake why run_42                                 what happened, and which rule decided
  keybrake spend --by agent --since 7d

The ledger: --ledger, else KEYBRAKE_LEDGER, else keybrake.toml (named by KEYBRAKE_CONFIG, or owner-only at the
project root), else a file in your data directory on a workstation.
Exit codes: 0 ok, 1 refused, 2 usage, 3 ledger unreachable, 4 not found.
Later: top, drill, proxy, dashboard, approvals, secrets, master-key.";

/// Spending limits for the API keys that agents hold.
#[derive(Debug, Parser)]
#[command(name = "keybrake", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// The ledger, such as sqlite:/var/lib/keybrake/spend.db or memory:
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) ledger: Option<String>,
    /// Answer as JSON; amounts are decimal strings in US dollars
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write keybrake.toml and policies/support.json here
    Init(InitArgs),
    /// Check, explain and describe policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Issue, list, show and revoke vault keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Refuse everything a run, agent, label, group, vendor or key asks for, until resumed
    #[command(after_help = STOP_EXAMPLES)]
    Stop(StopArgs),
    /// End a stop
    Resume(ResumeArgs),
    /// List standing stops
    Stops,
    /// What happened in a run or to a call, which rule decided, and do the books agree
    Why(WhyArgs),
    /// List, verify and export the audit
    #[command(subcommand)]
    Audit(AuditCommand),
    /// What was spent, and where it is going
    Spend(SpendArgs),
    /// Set, list and show budgets
    #[command(subcommand)]
    Budget(BudgetCommand),
    /// List open holds, and resolve those that nobody can look up
    #[command(subcommand)]
    Holds(HoldsCommand),
    /// Ask the vendors what became of unknown calls; reads only, never sends a write
    Reconcile(ReconcileArgs),
    /// Run the vendor simulator on the loopback
    Simulate(SimulateArgs),
    /// Run a program against the simulator and a throw-away ledger, and tell what it moved
    #[command(after_help = "Example:\n  keybrake dev -- python agent.py")]
    Dev(DevArgs),
    /// Open a ledger that its server's restart has closed
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Check the ledger, secrets, clock, permissions and versions, and say what to do
    Doctor(DoctorArgs),
    /// Not available yet
    #[command(hide = true)]
    Top(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    Drill(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    Proxy(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    Dashboard(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    Approvals(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    Secrets(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    MasterKey(LaterArgs),
}

const STOP_EXAMPLES: &str = "\
Examples:
  keybrake stop run_42 --reason \"refund loop\"
  keybrake stop --agent support-v2
  keybrake stop --all --yes";

/// Whatever follows a command that does not exist yet.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub(crate) struct LaterArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// The directory to write into
    #[arg(default_value = ".")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Read and compile a policy; say what it allows and which budgets it has
    Check {
        /// Policy file: .json, .yaml, .yml or .toml
        file: PathBuf,
    },
    /// Say whether a policy allows a request, and which rule decides
    #[command(after_help = "Example:\n  keybrake policy explain policies/support.json \"POST /v1/refunds\"")]
    Explain {
        /// Policy file
        file: PathBuf,
        /// Method and path, such as "POST /v1/refunds"
        request: String,
        /// The vendor, when the policy opens several
        #[arg(long)]
        vendor: Option<String>,
    },
    /// Print the JSON Schema of policies
    Schema,
    /// Not available yet
    #[command(hide = true)]
    Suggest(LaterArgs),
    /// Not available yet
    #[command(hide = true)]
    Replay(LaterArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Issue a vault key; its token is shown once
    Issue(IssueArgs),
    /// List keys, newest first
    List {
        /// Also revoked and expired ones
        #[arg(long)]
        all: bool,
    },
    /// Show one key and its budgets
    Show {
        /// Key id, vk_…
        id: String,
    },
    /// End a key for good, and its children with it
    Revoke {
        /// Key id, vk_…
        id: String,
        /// Why; goes into the audit
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct IssueArgs {
    /// Policy file: .json, .yaml, .yml or .toml
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// Bind it to a run
    #[arg(long, alias = "agent-run-id")]
    pub(crate) run: Option<String>,
    /// The agent it spends as
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// Its label
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// A group with its budgets, such as tenant:acme; may be repeated
    #[arg(long)]
    pub(crate) group: Vec<String>,
    /// A group that may have no budget; may be repeated
    #[arg(long, value_name = "GROUP")]
    pub(crate) attribution_group: Vec<String>,
    /// Narrow the policy, such as '{"run_usd_cap": 25}'
    #[arg(long, value_name = "JSON")]
    pub(crate) narrow: Option<String>,
    /// Lifetime, such as 2h
    #[arg(long, value_name = "DURATION")]
    pub(crate) expires_in: Option<String>,
    /// Why; goes into the audit
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Print the token alone, for TOKEN=$(keybrake keys issue … --token-only)
    #[arg(long)]
    pub(crate) token_only: bool,
}

/// What a stop covers: exactly one of these.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct ScopeArgs {
    /// The run
    pub(crate) run: Option<String>,
    /// Every key of this agent
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// Every key with this label
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Every key in this group
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Every call to this vendor
    #[arg(long)]
    pub(crate) vendor: Option<String>,
    /// One key and its children, by id
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Everything in the ledger's namespace
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    /// Why; callers and the audit are told
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Also abort calls in flight, in every process; whether they took effect is then unknown
    #[arg(long)]
    pub(crate) hard: bool,
    /// Do not ask before --all
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    /// Why; goes into the audit
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Args, Debug)]
pub(crate) struct WhyArgs {
    #[command(flatten)]
    pub(crate) source: FromArgs,
    /// A run, or a call id (or enough of its beginning or end)
    pub(crate) subject: String,
    /// At most this many steps
    #[arg(long, default_value_t = 200)]
    pub(crate) limit: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// One row for each call, the newest last
    List {
        #[command(flatten)]
        source: FromArgs,
        #[command(flatten)]
        filter: FilterArgs,
        /// At most this many, the newest
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Do checkpoints plus later events equal the counters?
    Verify {
        #[command(flatten)]
        source: FromArgs,
    },
    /// Write all rows as CSV or JSON lines
    #[command(
        after_help = "Example:\n  keybrake audit export --format csv --since 30d --output november.csv"
    )]
    Export {
        #[command(flatten)]
        source: FromArgs,
        #[command(flatten)]
        filter: FilterArgs,
        /// csv or jsonl
        #[arg(long)]
        format: String,
        /// The file to write; standard output if absent
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Budgets that refused calls, the most often first
    Caps {
        #[command(flatten)]
        source: FromArgs,
        /// Such as 24h, 7d or 2026-11-01
        #[arg(long, default_value = "24h")]
        since: String,
    },
    /// How long vendors took: p50, p95 and the slowest
    Slow {
        #[command(flatten)]
        source: FromArgs,
        /// Such as 24h, 7d or 2026-11-01
        #[arg(long, default_value = "24h")]
        since: String,
    },
    /// Take the log to durable storage, exactly once, and trim it behind that
    #[command(after_help = "Examples:
  keybrake audit drain --to sqlite:audit.db
  keybrake audit drain --to postgres://keybrake@db/audit --keep 7d --follow
  keybrake audit drain --forget 5f0c… --reason \"its disk is gone\"

Any number may run at once. Without --keep or --trim the ledger keeps its log. What is trimmed is in every archive
that the log is drained to, and a signed checkpoint stands for it.")]
    Drain(DrainArgs),
}

#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    /// The archive: sqlite:FILE or postgres://user@host/database; else KEYBRAKE_ARCHIVE, else archive in keybrake.toml
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<String>,
    /// Go on until stopped, and look for new events every second
    #[arg(long)]
    pub(crate) follow: bool,
    /// Then trim the ledger's log, but keep what is younger, such as 7d
    #[arg(long, value_name = "SPAN", conflicts_with = "trim")]
    pub(crate) keep: Option<String>,
    /// Then trim all of the ledger's log that every archive has
    #[arg(long)]
    pub(crate) trim: bool,
    /// Events in one transaction of the archive
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=9_000))]
    pub(crate) batch: u32,
    /// Go on although the ledger no longer has events that this archive lacks
    #[arg(long)]
    pub(crate) accept_gap: bool,
    /// Drain nothing: give up the archive with this id, so that trimming no longer waits for it
    #[arg(long, value_name = "ARCHIVE", conflicts_with_all = ["to", "follow", "keep", "trim", "accept_gap"], requires = "reason")]
    pub(crate) forget: Option<String>,
    /// Why; goes into the audit
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

/// Where a question is answered from.
#[derive(Args, Debug, Default)]
pub(crate) struct FromArgs {
    /// Answer from an archive alone: sqlite:FILE or postgres://user@host/database
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// Which log of the archive, when it has several: LEDGER-ID or LEDGER-ID/NAMESPACE
    #[arg(long, value_name = "LOG", requires = "from")]
    pub(crate) log: Option<String>,
}

#[derive(Args, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Only this run
    #[arg(long, alias = "agent-run-id")]
    pub(crate) run: Option<String>,
    /// Only this agent
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// Only this label
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Only this vendor
    #[arg(long)]
    pub(crate) vendor: Option<String>,
    /// Only this customer
    #[arg(long)]
    pub(crate) customer: Option<String>,
    /// Only this key, by id
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Only refused calls
    #[arg(long)]
    pub(crate) denied: bool,
    /// Such as 24h, 7d or 2026-11-01
    #[arg(long)]
    pub(crate) since: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum By {
    Run,
    Agent,
    Vendor,
    Day,
    Customer,
    Label,
    Group,
}

#[derive(Args, Debug)]
pub(crate) struct SpendArgs {
    #[command(flatten)]
    pub(crate) source: FromArgs,
    /// Added up by
    #[arg(long, value_enum, default_value_t = By::Agent)]
    pub(crate) by: By,
    /// Such as 24h, 7d or 2026-11-01
    #[arg(long, default_value = "30d")]
    pub(crate) since: String,
    /// At most this many lines, the largest
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
    /// Only this run
    #[arg(long)]
    pub(crate) run: Option<String>,
    /// Only this agent
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// Only this vendor
    #[arg(long)]
    pub(crate) vendor: Option<String>,
    /// Only this customer
    #[arg(long)]
    pub(crate) customer: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BudgetCommand {
    /// Create a budget or change its cap; works on the next call, for everyone
    #[command(after_help = "Examples:
  keybrake budget set tenant:acme --usd 500 --per month
  keybrake budget set lineage:support-v2 --usd 250 --per day --vendor stripe --reason \"new plan\"")]
    Set(BudgetSetArgs),
    /// Budgets as they stand
    List,
    /// One scope's budgets as they stand
    Show {
        /// A group such as tenant:acme, or lineage:…, run:…, customer:*
        name: String,
    },
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("cap").required(true).multiple(false))]
pub(crate) struct BudgetSetArgs {
    /// A group such as tenant:acme, or lineage:…, run:…, customer:*
    pub(crate) name: String,
    /// The cap in US dollars, such as 500 or 0.50
    #[arg(long, group = "cap")]
    pub(crate) usd: Option<String>,
    /// The cap as a number of calls
    #[arg(long, group = "cap")]
    pub(crate) calls: Option<i64>,
    /// The cap as a number of calls that change something
    #[arg(long, group = "cap")]
    pub(crate) writes: Option<i64>,
    /// hour, day, rolling_24h, month, run or lifetime
    #[arg(long)]
    pub(crate) per: String,
    /// Count only this vendor
    #[arg(long)]
    pub(crate) vendor: Option<String>,
    /// IANA time zone of calendar windows
    #[arg(long, default_value = "UTC")]
    pub(crate) timezone: String,
    /// Why; goes into the audit
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HoldsCommand {
    /// Open holds, the oldest first, each with its reason
    List {
        /// Only this run
        #[arg(long)]
        run: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 200)]
        limit: u32,
    },
    /// Settle or void a hold by hand, with evidence that goes into the audit
    #[command(after_help = "Example:
  keybrake holds resolve 0199f3a0-… --not-spent --evidence \"dashboard: no refund of ch_1, checked by Ada\"")]
    Resolve(ResolveArgs),
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("decision").required(true).multiple(false))]
pub(crate) struct ResolveArgs {
    /// The call's id
    pub(crate) call_id: String,
    /// Money moved: this many US dollars
    #[arg(long, value_name = "USD", group = "decision")]
    pub(crate) spent: Option<String>,
    /// No money moved
    #[arg(long, group = "decision")]
    pub(crate) not_spent: bool,
    /// How you know
    #[arg(long, value_name = "TEXT")]
    pub(crate) evidence: String,
}

#[derive(Args, Debug)]
pub(crate) struct ReconcileArgs {
    /// Only this run
    #[arg(long)]
    pub(crate) run: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct SimulateArgs {
    /// Vendors to simulate: stripe, twilio, resend
    #[arg(long, value_delimiter = ',', default_value = "stripe")]
    pub(crate) vendor: Vec<String>,
    /// Port on 127.0.0.1 of the first vendor, the next one's follows it; 0 takes free ones
    #[arg(long, default_value_t = 12111)]
    pub(crate) port: u16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Open it by hand, when no process that saw its last state is left to do it
    #[command(after_help = "Example:
  keybrake ledger open --reason \"compared with Stripe's dashboard after the restart\"")]
    Open {
        /// Why; goes into the audit
        #[arg(long)]
        reason: String,
    },
    /// Tell it again, from an archive, what its server lost
    #[command(after_help = "Examples:
  keybrake ledger restore --from postgres://keybrake@db/audit
  keybrake ledger restore --from sqlite:audit.db --ledger \"redis://kb-prod:6379?ns=prod\"

What the archive has and the ledger lacks is said again: calls, keys, revocations, stops, caps. Nothing in the ledger is
lowered, and nothing counts twice: it may be killed, begun again, and run while programs use the ledger. A ledger whose
data is gone is made again with the same id; that needs KEYBRAKE_MASTER_KEY. It never opens the ledger: what happened after
the archive was drained last is not in it. The programs that saw that open it, or a person: keybrake ledger open.")]
    Restore(RestoreArgs),
}

#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The archive: sqlite:FILE or postgres://user@host/database; else KEYBRAKE_ARCHIVE, else archive in keybrake.toml
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// Which log of the archive, when that is not clear: LEDGER-ID or LEDGER-ID/NAMESPACE
    #[arg(long, value_name = "LOG")]
    pub(crate) log: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Trust the machine's clock as it stands, after it jumped and was put right
    #[arg(long)]
    pub(crate) accept_clock: bool,
    /// Why; goes into the audit
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

#[cfg(test)]
mod tests;
