//! The identity of a call: the tuple that makes two attempts one spend.

use crate::idempotency::{Keys, fingerprint};
use crate::ledger::{IdentityAsk, IdentityKind, OnRepeat};
use crate::policy::{CallerKeys, Code, CompiledPolicy, Idempotency};
use crate::request::{Call, Refusal, headers};
use crate::vendors::{Class, Recognised, Vendor};

use super::keys::CachedKey;
use super::{CallContext, KeyOrigin};

/// A derived identity lives for the run, at most a day.
const CONTENT_MS: i64 = 24 * 60 * 60 * 1_000;
/// An identity is remembered 30 days.
const REMEMBER_MS: i64 = 30 * CONTENT_MS;
/// Generations of one identity.
const GENERATIONS: u32 = 5;

/// What an identity is made of.
pub(super) struct Parts<'a> {
    pub(super) keys: &'a Keys,
    pub(super) key: &'a CachedKey,
    pub(super) policy: &'a CompiledPolicy,
    pub(super) call: &'a Call,
    pub(super) call_id: &'a str,
    pub(super) context: &'a CallContext,
    pub(super) vendor: &'static dyn Vendor,
    pub(super) livemode: bool,
    pub(super) run: Option<&'a str>,
    pub(super) recognised: &'a Recognised,
    /// Whether what it costs is known from the policy's `operation_costs` alone: an operation of unknown cost, or a
    /// free one with a field that gives credit.
    pub(super) priced_by_policy: bool,
}

impl Parts<'_> {
    /// The identity, or `None` for what is never deduplicated: reads, and calls under `idempotency: off` that
    /// carry no key at all.
    pub(super) fn identity(&self) -> Result<Option<IdentityAsk>, Refusal> {
        if self.recognised.operation.class == Class::Read {
            return Ok(None);
        }
        let Some((kind, discriminator)) = self.discriminator()? else {
            return Ok(None);
        };
        let fields = self.fields();
        let content = content_of(&fields);
        let scope = self.keys.scope(&self.scope());
        let content_id = scope.identity(&[kind_name(IdentityKind::Content), &content]);
        let id = match kind {
            IdentityKind::Content => content_id.clone(),
            _ => scope.identity(&[kind_name(kind), &discriminator]),
        };
        // Forwarded unchanged; the SDK's own too when nothing is derived (`idempotency: off`).
        let forwarded = matches!(kind, IdentityKind::CallerKey | IdentityKind::Transport);
        let caller_key = forwarded.then_some(discriminator);
        Ok(Some(IdentityAsk {
            id,
            kind,
            content_id,
            fields,
            wire: self.wire(),
            caller_key,
            on_repeat: if kind == IdentityKind::Content && self.sets_fields() {
                OnRepeat::Execute
            } else {
                self.key.on_repeat()
            },
            remember_ms: if kind == IdentityKind::Content {
                CONTENT_MS
            } else {
                REMEMBER_MS
            },
            max_generations: GENERATIONS,
        }))
    }

    /// The caller's own key, a step, an item, or nothing but the content.
    fn discriminator(&self) -> Result<Option<(IdentityKind, String)>, Refusal> {
        let own_key = self.own_key()?;
        let explicit = own_key
            .map(|key| (IdentityKind::CallerKey, key))
            .or_else(|| self.context.step.clone().map(|step| (IdentityKind::Step, step)))
            .or_else(|| self.context.item.clone().map(|item| (IdentityKind::Item, item)));
        match (explicit, self.key.idempotency()) {
            (Some(explicit), _) => Ok(Some(explicit)),
            (None, _) if !self.repeats_spend() => Ok(None),
            (None, Idempotency::Auto) => Ok(Some((IdentityKind::Content, String::new()))),
            (None, Idempotency::Require) => Err(Refusal::new(
                Code::ParamNotAllowed,
                "this policy has `idempotency: require`: give the call an idempotency key of your own, a step or an item \
                 (a key that the SDK made at random does not count)",
            )),
            (None, Idempotency::Off) => Ok(self
                .recognised
                .idempotency_key
                .clone()
                .map(|key| (IdentityKind::Transport, key))),
        }
    }

    /// Whether doing it twice spends twice. Setting a customer's name or an intent's fields does not: replaying an
    /// earlier answer there would silently drop a change, and an intent's exposure is a total, not a sum.
    fn repeats_spend(&self) -> bool {
        let money = self.recognised.operation.class == Class::Money && !self.sets_fields();
        money || self.priced_by_policy
    }

    /// An update. What is priced by the policy joins an attempt whose outcome is not known; once it is done, the same
    /// content is a change of its own again: A, then B, then A are three.
    fn sets_fields(&self) -> bool {
        self.recognised.operation.name.ends_with(".update")
    }

    fn own_key(&self) -> Result<Option<String>, Refusal> {
        let Some(key) = self.recognised.idempotency_key.clone() else {
            return Ok(None);
        };
        match (self.context.key_origin, self.policy.caller_keys()) {
            (KeyOrigin::Caller, _) | (KeyOrigin::Unknown, Some(CallerKeys::Trust)) => Ok(Some(key)),
            (KeyOrigin::Generated, _) | (KeyOrigin::Unknown, Some(CallerKeys::Replace)) => Ok(None),
            (KeyOrigin::Unknown, None) => Err(Refusal::new(
                Code::RequestMalformed,
                "it cannot be known whether the SDK or the caller made this idempotency key; say `caller_keys: trust` or \
                 `caller_keys: replace` in the policy",
            )),
        }
    }

    /// Lineage and run, vendor, its secret's name and mode, connected account, operation, target.
    fn scope(&self) -> Vec<&str> {
        let mut scope = vec![
            self.key.record.lineage.as_str(),
            self.run.unwrap_or_default(),
            self.vendor.name(),
            self.key.secret_name(self.vendor.name()).unwrap_or_default(),
            if self.livemode { "live" } else { "test" },
            self.recognised.account.as_deref().unwrap_or_default(),
            self.recognised.operation.name,
        ];
        scope.extend(self.recognised.ids.iter().map(String::as_str));
        if self.recognised.operation.class == Class::Unknown {
            // Operations that are known by their path alone are told apart by it.
            scope.push(&self.recognised.path);
        }
        scope
    }

    /// The declared identity fields by name, as the caller gave them, each with all that is below it, and the ids in
    /// the path. An operation that declares none is identified by every field.
    fn fields(&self) -> Vec<(String, String)> {
        let ids = self
            .recognised
            .ids
            .iter()
            .enumerate()
            .map(|(n, id)| (format!("path.{n}"), id.clone()));
        let declared = self.recognised.operation.identity_fields;
        let counts = |name: &str| declared.is_empty() || declared.iter().any(|field| is_within(name, field));
        let chosen = self
            .recognised
            .fields
            .iter()
            .filter(|(name, _)| counts(name))
            .cloned();
        let mut fields: Vec<(String, String)> = ids.chain(chosen).collect();
        if !self.vendor.compares_fields() {
            for (name, value) in &mut fields {
                *value = self.keys.kept_field(name, value);
            }
        }
        fields.sort();
        fields
    }

    /// All bytes of the caller's request but the credential and the key: method, URL, account, version, body.
    ///
    /// A spend that its vendor could not recognise again, because it takes no idempotency key, is unlike every other
    /// attempt: nothing joins it, so that it is sent once. (A DELETE is the same when it is done twice.)
    fn wire(&self) -> String {
        let header = |name: &str| {
            headers::get(&self.call.headers, name)
                .unwrap_or_default()
                .as_bytes()
        };
        let mut parts = vec![self.call.method.as_bytes(), self.call.url.as_bytes()];
        parts.extend(self.vendor.read_headers().iter().map(|name| header(name)));
        parts.extend([header("content-type"), &self.call.body]);
        let recognisable = self.vendor.takes_idempotency_key(self.call) || self.call.method == "DELETE";
        if self.repeats_spend() && !recognisable {
            parts.push(self.call_id.as_bytes());
        }
        fingerprint(&parts)
    }
}

fn content_of(fields: &[(String, String)]) -> String {
    let parts: Vec<&[u8]> = fields
        .iter()
        .flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()])
        .collect();
    fingerprint(&parts)
}

fn is_within(name: &str, field: &str) -> bool {
    name.strip_prefix(field)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
}

const fn kind_name(kind: IdentityKind) -> &'static str {
    match kind {
        IdentityKind::CallerKey => "caller_key",
        IdentityKind::Step => "step",
        IdentityKind::Item => "item",
        IdentityKind::Content => "content",
        IdentityKind::Transport => "transport",
    }
}
