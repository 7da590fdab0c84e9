//! Issuing vault keys: a policy, narrowed, bound to who will use it, recorded in the ledger.

use std::future::{Future, IntoFuture};
use std::pin::Pin;

use serde_json::Value;

use super::{Keybrake, Run};
use crate::brake::CachedKey;
use crate::error::{Error, Result};
use crate::ledger::{AdminNote, IssueKey, KeyRecord};
use crate::policy::{Binding, CompiledPolicy, Policy, lineage, validate_id};
use crate::token::{Token, random_base62};
use crate::vendors::Builtin;

/// A key opened as a run lives an hour unless the policy says otherwise.
const RUN_LIFETIME_MS: i64 = 60 * 60 * 1_000;
/// Any other key lives a day.
const KEY_LIFETIME_MS: i64 = 24 * RUN_LIFETIME_MS;

/// A new key. The token is shown here and never again.
#[derive(Clone, Debug)]
pub struct IssuedKey {
    /// Public id.
    pub id: String,
    /// The key itself; hand it to the agent where the vendor's key used to go.
    pub token: Token,
    /// When it ends, Unix milliseconds.
    pub expires_at_ms: i64,
    /// The run it is bound to.
    pub run: Option<String>,
}

/// What binds a key besides its policy.
#[derive(Clone, Debug, Default)]
struct Ties {
    run: Option<String>,
    agent: Option<String>,
    label: Option<String>,
    groups: Vec<String>,
    attribution_only: Vec<String>,
    narrow: Option<Value>,
    expires_in: Option<String>,
    admin: AdminNote,
}

/// A key about to be issued; `.await` it.
#[derive(Clone, Debug)]
#[must_use = "await it to issue the key"]
pub struct IssueBuilder {
    keybrake: Keybrake,
    policy: Policy,
    ties: Ties,
}

/// A run about to be opened; `.await` it.
#[derive(Clone, Debug)]
#[must_use = "await it to open the run"]
pub struct OpenBuilder {
    issue: IssueBuilder,
    run_caps_only: bool,
}

macro_rules! ties {
    ($($path:ident).+) => {
        /// Binds the key to a run; its holder cannot change it.
        pub fn run(mut self, run: impl Into<String>) -> Self {
            self.$($path).+.run = Some(run.into());
            self
        }

        /// The agent it spends as.
        pub fn agent(mut self, agent: impl Into<String>) -> Self {
            self.$($path).+.agent = Some(agent.into());
            self
        }

        /// Its label.
        pub fn label(mut self, label: impl Into<String>) -> Self {
            self.$($path).+.label = Some(label.into());
            self
        }

        /// Adds a group, such as `tenant:acme`, with its budgets.
        pub fn group(mut self, group: impl Into<String>) -> Self {
            self.$($path).+.groups.push(group.into());
            self
        }

        /// Adds a group that may have no budget: it only tells in the audit whose call it was.
        pub fn attribution_group(mut self, group: impl Into<String>) -> Self {
            let group = group.into();
            self.$($path).+.groups.push(group.clone());
            self.$($path).+.attribution_only.push(group);
            self
        }

        /// Narrows the policy for this key: lists intersect, caps take the lower, a wider value is an error.
        pub fn narrow(mut self, narrow: Value) -> Self {
            self.$($path).+.narrow = Some(narrow);
            self
        }

        /// Lifetime, such as `2h`; never longer than the policy's.
        pub fn expires_in(mut self, lifetime: impl Into<String>) -> Self {
            self.$($path).+.expires_in = Some(lifetime.into());
            self
        }

        /// By whom and why, for the audit.
        pub fn admin(mut self, admin: AdminNote) -> Self {
            self.$($path).+.admin = admin;
            self
        }
    };
}

impl IssueBuilder {
    pub(super) fn new(keybrake: Keybrake, policy: Policy) -> Self {
        Self {
            keybrake,
            policy,
            ties: Ties::default(),
        }
    }

    ties!(ties);

    async fn issue(self, default_lifetime_ms: i64) -> Result<(IssuedKey, KeyRecord)> {
        let Self {
            keybrake,
            policy,
            ties,
        } = self;
        let brake = keybrake.brake();
        let mut narrow = ties
            .narrow
            .clone()
            .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        if let (Some(lifetime), Some(fields)) = (&ties.expires_in, narrow.as_object_mut()) {
            fields.insert("expires_in".to_owned(), lifetime.clone().into());
        }
        // Its own mistakes are said to be its own, and not those of the narrowing.
        CompiledPolicy::compile(&policy, &Builtin)?;
        let narrowed = policy.narrow(&narrow)?;
        let compiled = CompiledPolicy::compile(&narrowed, &Builtin)?;
        let parent = match compiled.parent() {
            Some(id) => Some(keybrake.ledger().key(id).await?.ok_or_else(|| {
                Error::policy(format!(
                    "`parent` is {id:?}, which is no key of this ledger; give a key id (vk_…)"
                ))
            })?),
            None => None,
        };
        let token = Token::generate(brake.ledger_tag())?;
        let mut record = tied(&compiled, &ties)?;
        record.id = format!("vk_{}", random_base62(20)?);
        record.token_hash = brake.keys().token_hash(token.expose());
        record.policy_json = narrowed.to_json();
        if compiled.has_run_budget() && record.run.is_none() {
            return Err(Error::policy(
                "this policy has a cap for each run: issue the key with a run (`run(\"…\")`, `--run`)",
            ));
        }
        let binding = Binding {
            lineage: record.lineage.clone(),
            run: record.run.clone(),
        };
        record.budgets = compiled.budget_refs(&binding)?;
        let now_ms = keybrake.ledger().info().await?.now_ms;
        let ends_at_ms = compiled.lifetime().ends_at_ms(now_ms, default_lifetime_ms)?;
        let mut lifetime_ms = ends_at_ms.saturating_sub(now_ms);
        if let Some(parent) = parent {
            lifetime_ms = lifetime_ms.min(parent.expires_at_ms.saturating_sub(now_ms));
            refuse_other_secrets(&compiled, &parent)?;
            inherit(&mut record, &parent);
        }
        let issue = IssueKey {
            key: record,
            expires_in_ms: Some(lifetime_ms),
            attribution_only: [compiled.attribution_only(), &ties.attribution_only].concat(),
            admin: ties.admin,
        };
        let record = keybrake.ledger().issue_key(issue).await?;
        let issued = IssuedKey {
            id: record.id.clone(),
            token,
            expires_at_ms: record.expires_at_ms,
            run: record.run.clone(),
        };
        Ok((issued, record))
    }
}

impl OpenBuilder {
    pub(super) fn new(keybrake: Keybrake, policy: Policy) -> Self {
        Self {
            issue: IssueBuilder::new(keybrake, policy),
            run_caps_only: false,
        }
    }

    ties!(issue.ties);

    /// Accepts a policy whose every budget is scoped to the run. Ten runs are then ten caps.
    pub const fn allow_run_caps_only(mut self) -> Self {
        self.run_caps_only = true;
        self
    }

    async fn open(mut self) -> Result<Run> {
        if self.issue.ties.run.is_none() && self.issue.policy.run().is_none() {
            self.issue.ties.run = Some(format!("run_{}", random_base62(12)?));
        }
        let keybrake = self.issue.keybrake.clone();
        if !self.run_caps_only {
            refuse_run_caps_only(&self.issue)?;
        }
        let (key, record) = self.issue.issue(RUN_LIFETIME_MS).await?;
        Ok(Run::issued(keybrake, key, record))
    }
}

impl IntoFuture for IssueBuilder {
    type Output = Result<IssuedKey>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.issue(KEY_LIFETIME_MS).await?.0) })
    }
}

impl IntoFuture for OpenBuilder {
    type Output = Result<Run>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

/// The record's attribution: what is given here, else what the policy says. Both at once must agree.
fn tied(policy: &CompiledPolicy, ties: &Ties) -> Result<KeyRecord> {
    let agent = agree("agent", ties.agent.as_deref(), policy.agent_id())?;
    let label = agree("label", ties.label.as_deref(), policy.label())?;
    let run = agree("run", ties.run.as_deref(), policy.run())?;
    let mut groups = policy.groups().to_vec();
    groups.extend(
        ties.groups
            .iter()
            .filter(|group| !policy.groups().contains(group))
            .cloned(),
    );
    for group in &groups {
        validate_id("group", group)?;
    }
    let lineage = lineage(agent.as_deref(), label.as_deref()).to_owned();
    Ok(KeyRecord {
        id: String::new(),
        token_hash: crate::ledger::TokenHash(String::new()),
        policy_json: String::new(),
        ancestor_policies_json: Vec::new(),
        version: 1,
        lineage,
        agent,
        label,
        run,
        groups,
        ancestors: Vec::new(),
        budgets: Vec::new(),
        issued_at_ms: 0,
        expires_at_ms: 0,
        revoked_at_ms: None,
        metadata: policy.metadata().clone(),
    })
}

fn agree(kind: &str, given: Option<&str>, policy: Option<&str>) -> Result<Option<String>> {
    if let (Some(given), Some(policy)) = (given, policy)
        && given != policy
    {
        return Err(Error::policy(format!(
            "{kind} is {given:?} here and {policy:?} in the policy; give it once"
        )));
    }
    let value = given.or(policy);
    value.map_or(Ok(()), |value| validate_id(kind, value))?;
    Ok(value.map(str::to_owned))
}

/// A child that named another secret would act on another account than its parent was given.
fn refuse_other_secrets(child: &CompiledPolicy, parent: &KeyRecord) -> Result<()> {
    let parent = CachedKey::compile(parent.clone())?;
    for vendor in child.vendors() {
        let (own, its) = (child.secret_name(vendor), parent.secret_name(vendor));
        if let Some(own) = own
            && its != Some(own)
        {
            let its = its.map_or_else(|| "not given".to_owned(), |its| format!("{its:?}"));
            return Err(Error::policy(format!(
                "`secret` is {own:?} here and {its} in the parent key's policy; a child uses its parent's"
            )));
        }
    }
    Ok(())
}

/// A child draws on its ancestors' budgets too, and every one of their policies must allow its calls.
fn inherit(record: &mut KeyRecord, parent: &KeyRecord) {
    record.ancestors = std::iter::once(&parent.id)
        .chain(&parent.ancestors)
        .cloned()
        .collect();
    record.ancestor_policies_json = std::iter::once(&parent.policy_json)
        .chain(&parent.ancestor_policies_json)
        .cloned()
        .collect();
    for budget in &parent.budgets {
        match record
            .budgets
            .iter_mut()
            .find(|own| own.def.id() == budget.def.id())
        {
            Some(own) => {
                own.enforce |= budget.enforce;
                own.limit = match (own.limit, budget.limit) {
                    (Some(own), Some(other)) => Some(own.min(other)),
                    (own, other) => own.or(other),
                };
            }
            None => record.budgets.push(budget.clone()),
        }
    }
    for group in &parent.groups {
        if !record.groups.contains(group) {
            record.groups.push(group.clone());
        }
    }
}

/// Ten refreshes of a web page would be ten caps.
fn refuse_run_caps_only(issue: &IssueBuilder) -> Result<()> {
    let compiled = CompiledPolicy::compile(&issue.policy, &Builtin)?;
    if compiled.only_run_budgets() && issue.ties.groups.is_empty() && compiled.groups().is_empty() {
        return Err(Error::policy(
            "every budget of this policy is scoped to the run, so every new run would have a new cap: add one wider \
             budget (for example \"daily_usd_cap\"), or open it with allow_run_caps_only",
        ));
    }
    Ok(())
}
