//! One call on its way to a decision: the checks in the order of the contract.

use super::allowed::{account_check, customer_check, endpoint_check, params_check};
use super::identity::Parts;
use super::job::Job;
use super::keys::CachedKey;
use super::price::{Price, Priced, amount, owner_lookup, price};
use super::{Brake, Purpose, unavailable};
use crate::error::Result;
use crate::ledger::{Ask, IdentityAsk};
use crate::money::Usd;
use crate::policy::{Code, Denial};
use crate::request::Refusal;
use crate::token::{NotAToken, Token};
use crate::vendors::{self, Class, Estimate, Exposure, Lookup, Recognised, Vendor};

/// What to ask the ledger next.
pub(super) enum Stage {
    Ask {
        ask: Ask,
        identity: Option<IdentityAsk>,
    },
    Lookup {
        lookup: Lookup,
        purpose: Purpose,
        identity: Option<IdentityAsk>,
    },
    Unreachable(Box<Denial>),
}

impl Brake {
    /// Runs the checks in order and says what to ask the ledger. The first check that fails names the denial.
    pub(super) async fn judge(&self, job: &mut Job) -> Result<Stage> {
        if let Err(refusal) = self.identify(job).await? {
            return Ok(refusal);
        }
        let Some(key) = job.key.clone() else {
            return Ok(refuse(
                Refusal::new(Code::KeyUnknown, "this vault key is not known to the ledger"),
                true,
            ));
        };
        if let Err(refusal) = self.recognise(job, &key)? {
            return Ok(refuse(refusal, true));
        }
        let identity = match identity(self, job, &key) {
            Ok(identity) => identity,
            Err(refusal) => return Ok(refuse(refusal, true)),
        };
        if let Some(refusal) = job.lookup_refusal.clone().filter(|_| !key.observes()) {
            return Ok(Stage::Ask {
                ask: refusal_ask(refusal, false),
                identity,
            });
        }
        // An observing policy sends what it could not look up, and notes what it would have said.
        let priced = job.lookup_refusal.clone().map_or_else(|| price(job, &key), Err);
        match priced {
            Ok(Price::Lookup(lookup)) => Ok(Stage::Lookup {
                lookup,
                purpose: Purpose::Amount,
                identity,
            }),
            Ok(Price::Known(priced)) => match owner_lookup(job, &key) {
                Some(lookup) => Ok(Stage::Lookup {
                    lookup,
                    purpose: Purpose::Owner,
                    identity,
                }),
                None => amount(job, &key, priced, identity),
            },
            Err(refusal) if key.observes() => {
                note_would_deny(job, refusal.into());
                let free = Priced {
                    usd: Usd::ZERO,
                    exposure: Exposure::Own,
                    pins: Vec::new(),
                    by_policy: true,
                };
                amount(job, &key, free, identity)
            }
            Err(refusal) => Ok(Stage::Ask {
                ask: refusal_ask(refusal, false),
                identity,
            }),
        }
    }

    /// Whose call it is: the vendor by its host, the token where the vendor's key used to be, the key's record.
    async fn identify(&self, job: &mut Job) -> Result<std::result::Result<(), Stage>> {
        self.restore_host(job);
        job.vendor = vendors::by_url(&job.call.url).ok();
        let token = job
            .vendor
            .unwrap_or_else(|| vendors::fallback(&job.call.url))
            .token(&job.call);
        let Some(token) = token else {
            let message = "no vault key on the call; give it where the vendor's API key goes";
            return Ok(Err(refuse(Refusal::new(Code::KeyMissing, message), true)));
        };
        if let Err(reason) = Token::parse(&token, &self.ledger_tag) {
            let message = match reason {
                NotAToken::Foreign => {
                    "what stands where the vault key goes is not one; a vendor's own secret is never accepted here"
                }
                NotAToken::Damaged => "the vault key is mistyped or cut off",
                NotAToken::OtherLedger => {
                    "the vault key belongs to another ledger or namespace; check KEYBRAKE_LEDGER"
                }
            };
            return Ok(Err(refuse(Refusal::new(Code::KeyUnknown, message), true)));
        }
        let hash = self.keys.token_hash(&token);
        match self.cache.get(self.ledger.as_ref(), &hash).await {
            Ok(key) => {
                job.key = key;
                job.token_hash = Some(hash);
                Ok(Ok(()))
            }
            Err(error) => match unavailable(&error) {
                Some(denial) => Ok(Err(Stage::Unreachable(Box::new(denial)))),
                None => Err(error),
            },
        }
    }

    /// A URL on an overridden base is judged as one on the vendor's own host.
    fn restore_host(&self, job: &mut Job) {
        for (vendor, base) in self.credentials.base_urls() {
            let Some(rest) = job.call.url.strip_prefix(base.as_str()) else {
                continue;
            };
            let host = vendors::vendor(vendor).and_then(|vendor| vendor.hosts().first().copied());
            if let (true, Some(host)) = (rest.starts_with('/'), host) {
                job.call.url = format!("https://{host}{rest}");
            }
        }
    }

    /// The checks that need the request alone: vendor, strict parsing, endpoint, account, customer, parameters.
    fn recognise(&self, job: &mut Job, key: &CachedKey) -> Result<std::result::Result<(), Refusal>> {
        if let Err(refusal) = bind_run(job, key) {
            return Ok(Err(refusal));
        }
        let vendor = match vendors::by_url(&job.call.url) {
            Ok(vendor) => vendor,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // Also an observing policy opens only its own vendors: their secrets are not lent to others.
        if let Some(refusal) = key
            .policies
            .iter()
            .find_map(|policy| policy.check_vendor(vendor.name()).err())
        {
            return Ok(Err(refusal));
        }
        if job.recognised.is_none() {
            let recognised = match vendor.recognise(&job.call) {
                Ok(recognised) => recognised,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let credential = self.credentials.of(vendor, key.secret_name(vendor.name()))?;
            job.livemode = credential.livemode;
            match in_own_account(job, vendor, recognised, credential.account.as_deref()) {
                Ok(recognised) => job.recognised = Some(recognised),
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
        job.would_deny = None;
        for check in [endpoint_check, account_check, params_check, customer_check] {
            match key.failing(|policy| check(job, vendor, policy).err()) {
                Some((refusal, false)) => return Ok(Err(refusal)),
                Some((refusal, true)) => note_would_deny(job, refusal.into()),
                None => {}
            }
        }
        Ok(Ok(()))
    }
}

/// A secret that belongs to one account reaches no other, whatever its vendor would let it do there. Where the caller
/// left the account open, it is the secret's, and the call is judged as it will be sent.
fn in_own_account(
    job: &mut Job,
    vendor: &'static dyn Vendor,
    mut recognised: Recognised,
    own: Option<&str>,
) -> std::result::Result<Recognised, Refusal> {
    let Some(own) = own else { return Ok(recognised) };
    if let Some(url) = vendor.with_account(&job.call.url, own) {
        job.call.url = url;
        recognised = vendor.recognise(&job.call)?;
    }
    match recognised.account.take() {
        Some(named) if named != own => Err(Refusal::new(
            Code::AccountNotAllowed,
            "the call names another account than the one that the secret belongs to; give this key a secret of that \
             account to work there",
        )),
        _ => Ok(recognised),
    }
}

/// The run is the key's; only a key that is bound to none takes the context's.
fn bind_run(job: &mut Job, key: &CachedKey) -> std::result::Result<(), Refusal> {
    match (&key.record.run, &job.context.run) {
        (Some(bound), Some(given)) if bound != given => Err(Refusal::new(
            Code::RequestMalformed,
            format!("this key is bound to the run {bound:?}; a call cannot move to another one"),
        )),
        (Some(bound), _) => {
            job.run = Some(bound.clone());
            Ok(())
        }
        (None, Some(given)) => crate::policy::validate_id("run", given)
            .map_err(|e| Refusal::new(Code::RequestMalformed, e.to_string())),
        (None, None) => Ok(()),
    }
}

fn identity(brake: &Brake, job: &Job, key: &CachedKey) -> std::result::Result<Option<IdentityAsk>, Refusal> {
    let (Some(vendor), Some(recognised), Some(policy)) = (job.vendor, &job.recognised, key.own()) else {
        return Ok(None);
    };
    if key.observes() {
        return Ok(None);
    }
    let estimate = || vendor.estimate(recognised, policy.count_at_creation());
    let priced_by_policy = match recognised.operation.class {
        Class::Unknown => true,
        Class::Free => matches!(estimate(), Ok(Estimate::Unknown(_))),
        Class::Read | Class::Money => false,
    };
    let parts = Parts {
        keys: &brake.keys,
        key,
        policy,
        call: &job.call,
        call_id: &job.call_id,
        context: &job.context,
        vendor,
        livemode: job.livemode,
        run: job.run.as_deref(),
        recognised,
        priced_by_policy,
    };
    parts.identity()
}

pub(super) fn note_would_deny(job: &mut Job, denial: Denial) {
    if job.would_deny.is_none() {
        job.would_deny = Some(denial);
    }
}

fn refuse(refusal: Refusal, early: bool) -> Stage {
    Stage::Ask {
        ask: refusal_ask(refusal, early),
        identity: None,
    }
}

pub(super) fn refusal_ask(refusal: Refusal, early: bool) -> Ask {
    Ask::Refuse {
        denial: Box::new(refusal.into()),
        early,
    }
}
