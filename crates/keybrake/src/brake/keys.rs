//! Cached key records with their compiled policies. The record is cached, the permission never: every decision
//! names the record's version, and the ledger answers `Stale` when it is out of date.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::ledger::{KeyRecord, Ledger, TokenHash};
use crate::policy::{CompiledPolicy, Idempotency, OnRepeat, Policy};
use crate::vendors::Builtin;

/// Keys kept; beyond it the cache starts anew.
const MOST: usize = 10_000;

/// A key with its own policy first, then its ancestors'.
#[derive(Debug)]
pub(crate) struct CachedKey {
    pub(crate) record: KeyRecord,
    pub(crate) policies: Vec<CompiledPolicy>,
}

impl CachedKey {
    pub(crate) fn compile(record: KeyRecord) -> Result<Self> {
        let documents = std::iter::once(&record.policy_json).chain(&record.ancestor_policies_json);
        let policies = documents
            .map(|json| CompiledPolicy::compile(&Policy::from_json(json)?, &Builtin))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { record, policies })
    }

    /// Whether every policy only observes; one that enforces is enough to enforce its own rules.
    pub(crate) fn observes(&self) -> bool {
        self.policies.iter().all(CompiledPolicy::observe)
    }

    /// The policies that refuse; all of them when all only observe, so that there is something to note.
    pub(crate) fn judging(&self) -> impl Iterator<Item = &CompiledPolicy> {
        let all = self.observes();
        self.policies
            .iter()
            .filter(move |policy| all || !policy.observe())
    }

    /// What the first policy that fails a check says, and whether it is only to be noted: a policy that enforces speaks
    /// before one that observes, so that an observing child hides nothing from its parent's rules.
    pub(crate) fn failing<T>(&self, check: impl Fn(&CompiledPolicy) -> Option<T>) -> Option<(T, bool)> {
        let of = |observing: bool| {
            let mut policies = self
                .policies
                .iter()
                .filter(|policy| policy.observe() == observing);
            policies.find_map(&check).map(|failure| (failure, observing))
        };
        of(false).or_else(|| of(true))
    }

    /// The secret that the key or an ancestor names for a vendor (issuing refuses two that differ).
    pub(crate) fn secret_name(&self, vendor: &str) -> Option<&str> {
        self.policies.iter().find_map(|policy| policy.secret_name(vendor))
    }

    /// How repeats are recognised: the strictest of the policies that refuse.
    pub(crate) fn idempotency(&self) -> Idempotency {
        let rank = |mode: &Idempotency| match mode {
            Idempotency::Require => 2,
            Idempotency::Auto => 1,
            Idempotency::Off => 0,
        };
        self.judging()
            .map(CompiledPolicy::idempotency)
            .max_by_key(rank)
            .unwrap_or(Idempotency::Auto)
    }

    /// What a settled twin leads to: the strictest of the policies that refuse.
    pub(crate) fn on_repeat(&self) -> OnRepeat {
        let rank = |mode: &OnRepeat| match mode {
            OnRepeat::Refuse => 2,
            OnRepeat::Replay => 1,
            OnRepeat::Execute => 0,
        };
        self.judging()
            .map(CompiledPolicy::on_repeat)
            .max_by_key(rank)
            .unwrap_or_default()
    }

    /// The key's own policy.
    pub(crate) fn own(&self) -> Option<&CompiledPolicy> {
        self.policies.first()
    }
}

/// Keys by token hash.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    keys: Mutex<HashMap<TokenHash, Arc<CachedKey>>>,
}

impl KeyCache {
    /// The key with this hash, from the cache or the ledger.
    pub(crate) async fn get(&self, ledger: &dyn Ledger, hash: &TokenHash) -> Result<Option<Arc<CachedKey>>> {
        if let Some(key) = self.keys.lock().unwrap_or_else(PoisonError::into_inner).get(hash) {
            return Ok(Some(Arc::clone(key)));
        }
        let Some(record) = ledger.key_by_token(hash).await? else {
            return Ok(None);
        };
        let key = Arc::new(CachedKey::compile(record)?);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= MOST {
            keys.clear();
        }
        keys.insert(hash.clone(), Arc::clone(&key));
        Ok(Some(key))
    }

    /// Forgets a key that was out of date.
    pub(crate) fn forget(&self, hash: &TokenHash) {
        self.keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(hash);
    }
}
