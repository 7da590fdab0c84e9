//! What came back, turned into proof for the ledger.

use super::Brake;
use super::keys::CachedKey;
use super::permit::{CallRecord, Permit, SendEnd, Settled, known_vendor};
use super::price::{object_name, to_usd};
use super::replay::{self, Binding};
use crate::error::Result;
use crate::ledger::{
    CostSource, ObjectState, Proof, ReplyFacts, Reservation, SettleAnswer, Settlement, State, Stop,
};
use crate::money::{Usd, VendorAmount};
use crate::policy::Denial;
use crate::vendors::{Class, Outcome, Reading, Reply, Vendor};

/// A cost that a vendor has not changed for so long is final: 35 days, as long as windows are kept.
const FINAL_AFTER_MS: i64 = 35 * 24 * 60 * 60 * 1_000;

impl Brake {
    /// Records what became of an attempt. The caller gets its answer only afterwards.
    ///
    /// A ledger that cannot record it does not lose it: it is written to the journal of this machine first, to be
    /// delivered later, and the record says `journaled`. If that cannot be done either, the hold stands, counted, until it
    /// is reconciled, and the record says `unrecorded`.
    ///
    /// # Errors
    /// `Internal` for defects only; the vendor's answer is then in the log of the vendor alone.
    pub async fn settle(&self, permit: Permit, end: SendEnd) -> Result<Settled> {
        let vendor = known_vendor(&permit.job)?;
        let mut record = allowed(&permit);
        let (settlement, reply) = self.settlement(&permit, vendor, end);
        record.status_code = settlement.facts.status_code;
        record.replayed = settlement.facts.replayed;
        match self.recorder.record(&settlement).await {
            Ok(answer) => {
                self.in_contact();
                record.cost = answer.used;
                record.held = answer.held;
                record.state = Some(answer.state);
                record.tightest = answer.tightest;
            }
            Err(error) => {
                record.journaled = self.recorder.keep(settlement, &error).await;
                record.unrecorded = !record.journaled;
                record.held = permit.grant.amount;
            }
        }
        let reply = reply.map(|reply| marked(reply, &record));
        Ok(Settled { record, reply })
    }

    /// The call as it stands while the body of its reply is on its way, and the head of the reply with the headers that
    /// are known by then. Nothing is recorded: [`settle`](Self::settle) follows at the body's end.
    pub fn begun(&self, permit: &Permit, head: Reply) -> Settled {
        let mut record = allowed(permit);
        record.status_code = Some(head.status);
        record.held = permit.grant.amount;
        record.state = Some(State::Held);
        Settled {
            reply: Some(marked(head, &record)),
            record,
        }
    }

    /// What the caller of a call is told that a hard stop aborted in flight, and the same in the vendor's error shape. Never
    /// that no money moved: [`settle`](Self::settle) it as lost.
    pub fn aborted(&self, permit: &Permit, stop: &Stop) -> (Denial, Reply) {
        let mut denial = crate::ledger::rules::aborted(stop, &permit.grant);
        permit.job.complete(&mut denial);
        denial.call_id.clone_from(&permit.grant.call_id);
        let vendor = permit
            .job
            .vendor
            .unwrap_or_else(|| crate::vendors::fallback(&permit.job.call.url));
        let status = denial.code.http_status(permit.job.cap_status());
        let reply = vendor.refusal(&denial, status, self.clock().now_ms());
        (denial, reply)
    }

    /// Records what reconciliation read about a call.
    ///
    /// # Errors
    /// `LedgerUnavailable`; repeating is harmless.
    pub(crate) async fn settle_found(
        &self,
        hold: &Reservation,
        key: &CachedKey,
        vendor: &'static dyn Vendor,
        reading: &Reading,
    ) -> Result<SettleAnswer> {
        let now_ms = self.clock().now_ms();
        // At the rate of its own day: today's may be too old, or another.
        let usd = |amount: VendorAmount| to_usd(key, amount, hold.reserved_at_ms).ok();
        let mut facts = ReplyFacts {
            vendor_request_id: reading.request_id.clone(),
            vendor_object: reading.vendor_object.clone(),
            ..hold.reply_facts.clone()
        };
        let by_policy = !vendor
            .operations()
            .iter()
            .any(|operation| operation.name == hold.facts.operation && operation.class != Class::Unknown);
        let mut proof = proof_of(reading, hold.reserved, by_policy, usd, &mut facts);
        if hold.state == State::Provisional {
            proof = match proof {
                // It was done, and the vendor's object says that it is undone.
                Proof::FailedForGood => Proof::Reversed,
                Proof::ChargedProvisionally { actual }
                    if now_ms >= hold.reserved_at_ms.saturating_add(FINAL_AFTER_MS) =>
                {
                    Proof::Charged { actual }
                }
                other => other,
            };
        }
        facts.cost_source = CostSource::Reconciled;
        let mode = if hold.facts.livemode { "live" } else { "test" };
        let account = hold.facts.account.as_deref().unwrap_or("-");
        let object = reading.object.as_ref().and_then(|(id, moved, closed)| {
            let object = format!("{}|{mode}|{account}|{id}", vendor.name());
            Some(ObjectState {
                object,
                moved: usd(*moved)?,
                closed: *closed,
            })
        });
        self.ledger().settle(resolution(hold, proof, object, facts)).await
    }

    /// Records that a complete listing does not have a call.
    ///
    /// # Errors
    /// `LedgerUnavailable`; repeating is harmless.
    pub(crate) async fn settle_absent(&self, hold: &Reservation, evidence: String) -> Result<SettleAnswer> {
        let facts = ReplyFacts {
            cost_source: CostSource::Reconciled,
            ..hold.reply_facts.clone()
        };
        self.ledger()
            .settle(resolution(
                hold,
                Proof::Absent {
                    evidence,
                    attempts: hold.attempts,
                },
                None,
                facts,
            ))
            .await
    }

    fn settlement(
        &self,
        permit: &Permit,
        vendor: &'static dyn Vendor,
        end: SendEnd,
    ) -> (Settlement, Option<Reply>) {
        let elapsed = self.clock().boot_ms().saturating_sub(permit.job.started_ms);
        let mut facts = ReplyFacts {
            idempotency_key: permit.sent_key.clone(),
            latency_ms: Some(elapsed),
            ..ReplyFacts::default()
        };
        let (proof, object, sealed, reply) = match end {
            SendEnd::NeverSent => (Proof::NeverSent, None, None, None),
            SendEnd::Lost { reason } => (Proof::NoProof { reason }, None, None, None),
            SendEnd::Reply(reply) => {
                let (proof, object, sealed) = self.proof(permit, vendor, &reply, &mut facts);
                // The books let go of it: nothing in the reply may still make its money move.
                let reply = match proof {
                    Proof::DidNotExecute | Proof::FailedForGood => vendor.redact(reply),
                    _ => reply,
                };
                (proof, object, sealed, Some(reply))
            }
        };
        let settlement = Settlement {
            call_id: permit.grant.call_id.clone(),
            attempt: permit.grant.attempt,
            proof,
            object,
            reply: sealed,
            facts,
        };
        (settlement, reply)
    }

    fn proof(
        &self,
        permit: &Permit,
        vendor: &'static dyn Vendor,
        reply: &Reply,
        facts: &mut ReplyFacts,
    ) -> (Proof, Option<ObjectState>, Option<Vec<u8>>) {
        facts.status_code = Some(reply.status);
        let Some(recognised) = &permit.job.recognised else {
            return (
                Proof::NoProof {
                    reason: "unrecognised".to_owned(),
                },
                None,
                None,
            );
        };
        let reading = vendor.read(recognised, reply);
        facts.vendor_request_id.clone_from(&reading.request_id);
        facts.vendor_object.clone_from(&reading.vendor_object);
        facts.replayed = reading.replayed;
        let estimate = permit.grant.amount;
        let by_policy = permit.job.priced.as_ref().is_some_and(|priced| priced.by_policy);
        let usd = |amount: VendorAmount| actual(permit, amount);
        let proof = proof_of(&reading, estimate, by_policy, usd, facts);
        let object = reading.object.as_ref().and_then(|(id, moved, closed)| {
            let moved = actual(permit, *moved)?;
            Some(ObjectState {
                object: object_name(&permit.job, id),
                moved,
                closed: *closed,
            })
        });
        let sealed = self.seal(permit, vendor, reply);
        (proof, object, sealed)
    }

    /// Keeps a 2xx for replays.
    fn seal(&self, permit: &Permit, vendor: &'static dyn Vendor, reply: &Reply) -> Option<Vec<u8>> {
        let identity = permit.grant.identity.as_deref()?;
        if !(200..300).contains(&reply.status) || !self.ledger.records_replies() {
            return None;
        }
        let binding = Binding {
            call_id: &permit.grant.call_id,
            identity,
            generation: permit.grant.generation,
        };
        let nonce = self.chance().nonce()?;
        replay::seal(self.keys(), &binding, nonce, &vendor.strip(reply))
    }
}

/// The record of a call that was let through, before anything is known of its end.
fn allowed(permit: &Permit) -> CallRecord {
    let verdict = if permit.grant.would_deny.is_some() {
        "would_deny"
    } else {
        "allowed"
    };
    CallRecord::of(&permit.job, &permit.grant.call_id, verdict)
}

/// A settlement by reconciliation: attempt 0 stands for no attempt of ours.
fn resolution(
    hold: &Reservation,
    proof: Proof,
    object: Option<ObjectState>,
    facts: ReplyFacts,
) -> Settlement {
    Settlement {
        call_id: hold.facts.call_id.clone(),
        attempt: 0,
        proof,
        object,
        reply: None,
        facts,
    }
}

/// US dollars by the rates that the permit was judged by.
fn actual(permit: &Permit, amount: VendorAmount) -> Option<Usd> {
    let key = permit.job.key.as_ref()?;
    to_usd(key, amount, permit.job.now_ms).ok()
}

/// The ledger's proof for a reading. A cost that cannot be read stands at the estimate, never at zero.
fn proof_of(
    reading: &Reading,
    estimate: Usd,
    by_policy: bool,
    usd: impl Fn(VendorAmount) -> Option<Usd>,
    facts: &mut ReplyFacts,
) -> Proof {
    let mut charge = |amount: Option<Usd>| {
        facts.cost_source = if amount.is_some() {
            CostSource::Response
        } else {
            CostSource::Estimate
        };
        amount.unwrap_or(estimate)
    };
    match &reading.outcome {
        Outcome::Charged(amount) => Proof::Charged {
            actual: charge(usd(*amount)),
        },
        Outcome::ChargedProvisionally(amount) => Proof::ChargedProvisionally {
            actual: charge(usd(*amount)),
        },
        Outcome::Executed => Proof::Charged { actual: charge(None) },
        Outcome::Free if by_policy => Proof::Charged { actual: charge(None) },
        Outcome::Free => Proof::Charged { actual: Usd::ZERO },
        Outcome::Accepted => Proof::Accepted,
        Outcome::DidNotExecute => Proof::DidNotExecute,
        Outcome::FailedForGood => Proof::FailedForGood,
        Outcome::Unknown(reason) => Proof::NoProof {
            reason: reason.clone(),
        },
    }
}

/// The reply with our headers on it.
fn marked(mut reply: Reply, record: &CallRecord) -> Reply {
    let mut add = |name: &str, value: String| reply.headers.push((name.to_owned(), value));
    add("x-keybrake-verdict", record.verdict.clone());
    add("x-keybrake-call-id", record.call_id.clone());
    if let Some(view) = &record.tightest {
        let show = |amount: i64| {
            if view.unit == "usd" {
                Usd::from_micros(amount).to_string()
            } else {
                amount.to_string()
            }
        };
        add("x-keybrake-cap-used", show(view.used.saturating_add(view.held)));
        add("x-keybrake-cap-limit", show(view.cap));
        if let Some(reset) = view.resets_at_ms {
            add(
                "x-keybrake-cap-reset",
                reset.checked_div(1_000).unwrap_or(0).to_string(),
            );
        }
    }
    reply
}
