//! What the reference model makes of a proof.

use keybrake::ledger::table::{self, Effect};
use keybrake::ledger::{ObjectState, Proof, Settlement, State, Unit};
use keybrake::money::Usd;

use super::reference::{End, Model, exposure};

/// State, used and held afterwards.
type Answer = (State, Usd, Usd);

impl Model {
    /// `None` where the ledger must refuse.
    pub(super) fn settle(&mut self, settlement: &Settlement) -> Option<Answer> {
        self.lapse();
        let index = self.calls.iter().position(|call| call.id == settlement.call_id)?;
        let own_object = self.calls[index].object.clone();
        let foreign = |seen: &ObjectState| own_object.as_ref().is_some_and(|own| *own != seen.object);
        let settlement = &Settlement {
            object: settlement.object.clone().filter(|seen| !foreign(seen)),
            ..settlement.clone()
        };
        let kind = settlement.proof.kind();
        let key = (settlement.attempt, kind);
        let undone = undone(&self.calls[index], settlement);
        if self.calls[index].applied.contains(&key) && (undone || !self.says_more(index, settlement)) {
            return Some(self.answer(index));
        }
        let of_an_attempt = matches!(settlement.proof, Proof::DidNotExecute | Proof::NeverSent);
        if of_an_attempt && settlement.attempt == 0 {
            return None;
        }
        let effect = table::effect(kind, self.calls[index].state)?;
        if matches!(effect, Effect::VoidSameGeneration | Effect::Decide)
            && self.now_ms < self.calls[index].not_after_ms
        {
            return None;
        }
        let effect = if undone { Effect::Note } else { effect };
        if settlement.proof == Proof::Accepted {
            // What was found or decided before is about another time.
            self.calls[index].applied.retain(|(attempt, _)| *attempt != 0);
        }
        self.calls[index].applied.insert(key);
        self.calls[index].changed_at_ms = self.now_ms;
        if settlement.reply.is_some() {
            self.calls[index].has_reply = true;
        }
        let seen = settlement.object.as_ref();
        self.own_part(index, settlement, effect, seen.is_some());
        let shown = settlement.facts.vendor_object.clone();
        let call = &mut self.calls[index];
        call.vendor_object = shown.or(call.vendor_object.take());
        if let Some(seen) = seen {
            let object = self.objects.entry(seen.object.clone()).or_default();
            if !object.calls.contains(&index) {
                object.calls.push(index);
            }
            object.moved = object.moved.max(seen.moved.micros());
            object.closed |= seen.closed;
            self.calls[index].object = Some(seen.object.clone());
            self.spread(index, &seen.object, effect);
        }
        Some(self.answer(index))
    }

    fn answer(&self, index: usize) -> Answer {
        let call = &self.calls[index];
        (call.state, call.used, call.held)
    }

    fn says_more(&self, index: usize, settlement: &Settlement) -> bool {
        let call = &self.calls[index];
        if let Some(seen) = &settlement.object {
            let known = self.objects.get(&seen.object);
            return seen.moved.micros() > known.map_or(0, |object| object.moved)
                || (seen.closed && !known.is_some_and(|object| object.closed));
        }
        match settlement.proof {
            Proof::Charged { actual } | Proof::ChargedProvisionally { actual } => {
                actual > call.used && call.end != End::Replayed
            }
            _ => false,
        }
    }

    /// The proof's effect on the call itself, before an object's state is looked at.
    fn own_part(&mut self, index: usize, settlement: &Settlement, effect: Effect, with_object: bool) {
        let shown = &settlement.facts.vendor_object;
        let elsewhere = settlement.facts.replayed && self.settled_elsewhere(index, shown.as_ref());
        let read = self.calls[index].is_read();
        let call = &mut self.calls[index];
        let actual = match settlement.proof {
            Proof::Charged { actual } | Proof::ChargedProvisionally { actual } => Some(actual),
            Proof::Operator { spent, .. } => spent,
            _ => None,
        };
        match effect {
            Effect::Settle | Effect::SettleProvisionally => {
                call.state = match effect {
                    Effect::SettleProvisionally => State::Provisional,
                    _ => State::Settled,
                };
                call.end = End::Charged;
                spend_counts(call);
                if elsewhere {
                    (call.state, call.end) = (State::Settled, End::Replayed);
                    (call.held, call.used) = (Usd::ZERO, Usd::ZERO);
                } else if !with_object {
                    (call.held, call.used) = (Usd::ZERO, actual.unwrap());
                }
            }
            Effect::Correct => {
                spend_counts(call);
                call.state = State::Settled;
                if call.end == End::Replayed || elsewhere {
                    call.end = End::Replayed;
                } else {
                    call.end = End::Charged;
                    if !with_object {
                        call.used = call.used.max(actual.unwrap());
                    }
                }
                call.held = Usd::ZERO;
            }
            Effect::Wait => {
                call.state = State::Pending;
                call.end = End::None;
                spend_counts(call);
            }
            Effect::HoldAgain => {
                (call.state, call.end, call.held) = (State::Pending, End::None, call.reserved);
                spend_counts(call);
            }
            Effect::Note => {}
            Effect::Doubt => {
                call.state = State::Unknown;
                if read {
                    spend_counts(call);
                }
            }
            Effect::VoidIfAllProven | Effect::VoidUnsent => {
                let unsent = settlement.proof == Proof::NeverSent;
                let earlier = call.proven.get(&settlement.attempt).copied().unwrap_or(true);
                call.proven.insert(settlement.attempt, unsent && earlier);
                if call.proven.len() == call.attempts as usize {
                    if call.proven.values().all(|unsent| *unsent) {
                        for part in &mut call.parts {
                            (part.held, part.used) = (0, 0);
                        }
                        void(call, End::NeverSent);
                    } else {
                        void(call, End::NotExecuted);
                    }
                }
            }
            Effect::VoidForGood => void(call, End::Declined),
            Effect::Reverse if with_object || call.object.is_some() => {}
            Effect::Reverse => {
                call.used = Usd::ZERO;
                void(call, End::Declined);
            }
            Effect::VoidSameGeneration => void(call, End::Absent),
            Effect::Decide => match actual {
                None => void(call, End::Operator),
                Some(spent) => {
                    (call.state, call.end) = (State::Settled, End::Operator);
                    (call.held, call.used) = (Usd::ZERO, spent);
                    spend_counts(call);
                }
            },
        }
    }

    /// Spreads what the object has moved over its calls in order, and lets the rest fall on the settling one.
    fn spread(&mut self, index: usize, object: &str, effect: Effect) {
        let (calls, moved, closed) = {
            let object = &self.objects[object];
            (object.calls.clone(), object.moved, object.closed)
        };
        let mut rest = moved;
        for &contributor in &calls {
            let exposed = exposure(&self.calls[contributor]);
            let call = &mut self.calls[contributor];
            let before = (call.held, call.used);
            let part = exposed.min(rest);
            rest -= part;
            call.used = Usd::from_micros(call.used.micros().max(part));
            call.held = Usd::from_micros(if closed { 0 } else { exposed - call.used.micros() });
            if contributor != index && before != (call.held, call.used) {
                call.changed_at_ms = self.now_ms;
                let open = matches!(call.state, State::Held | State::Unknown | State::Pending);
                if open && call.held == Usd::ZERO {
                    spend_counts(call);
                    close(call);
                }
            }
        }
        let call = &mut self.calls[index];
        let held_before = call.reserved > Usd::ZERO;
        call.used = Usd::from_micros(call.used.micros() + rest);
        let executed = matches!(
            effect,
            Effect::Settle | Effect::SettleProvisionally | Effect::Wait | Effect::Correct | Effect::HoldAgain
        );
        if call.held > Usd::ZERO {
            if executed {
                (call.state, call.end) = (State::Pending, End::None);
            }
        } else if executed && closed && call.used == Usd::ZERO && held_before {
            (call.state, call.end) = (State::Voided, End::Closed);
        } else if executed && effect != Effect::SettleProvisionally {
            (call.state, call.end) = (State::Settled, End::Charged);
        } else if call.used > Usd::ZERO && call.state != State::Provisional {
            (call.state, call.end) = (State::Settled, End::Charged);
            spend_counts(call);
        } else if closed && call.is_waiting() && held_before {
            (call.state, call.end) = (State::Voided, End::Closed);
            spend_counts(call);
        }
    }

    /// Whether another call that was sent with the same caller's key stands for the money already: for the same object.
    /// No request of the model names one.
    fn settled_elsewhere(&self, index: usize, shown: Option<&String>) -> bool {
        let call = &self.calls[index];
        let (Some(own), true) = (call.identity.as_ref(), shown.is_some()) else {
            return false;
        };
        self.same_caller_key(own, &call.facts).any(|other| {
            other.id != call.id
                && other.vendor_object.as_ref() == shown
                && matches!(other.state, State::Settled | State::Provisional | State::Pending)
        })
    }
}

impl super::reference::ModelCall {
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Held | State::Unknown | State::Pending)
    }
}

/// Whether a provisional success comes after the vendor itself, and not one attempt, showed that it failed.
fn undone(call: &super::reference::ModelCall, settlement: &Settlement) -> bool {
    matches!(settlement.proof, Proof::ChargedProvisionally { .. })
        && settlement.object.is_none()
        && call.end == End::Declined
        && (call.applied.contains(&(0, "reversed")) || call.applied.contains(&(0, "failed_for_good")))
}

fn spend_counts(call: &mut super::reference::ModelCall) {
    for part in call.parts.iter_mut().filter(|part| part.unit != Unit::Usd) {
        part.used += std::mem::take(&mut part.held);
    }
}

/// Nothing moved, or what an object has moved stays.
fn void(call: &mut super::reference::ModelCall, end: End) {
    call.held = Usd::ZERO;
    spend_counts(call);
    if call.used > Usd::ZERO {
        (call.state, call.end) = (State::Settled, End::Charged);
    } else {
        (call.state, call.end) = (State::Voided, end);
    }
}

fn close(call: &mut super::reference::ModelCall) {
    void(call, End::Closed);
}
