//! The vendor's state: accounts with their objects, the journal, kept idempotency keys, faults and the request log.
//! One lock holds it all, so that every request is one atomic step and the journal cannot disagree with the objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keybrake::clock::{Clock, SystemClock};
use serde_json::{Map, Value, json};

use super::charge::Charge;
use super::customer::Customer;
use super::error::ApiError;
use super::faults::Faults;
use super::file::File;
use super::form::Params;
use super::idempotency::Keys;
use super::ids::Ids;
use super::journal::{Journal, Movement, MovementKind, MovementOutcome};
use super::number::seconds;
use super::payment_intent::PaymentIntent;
use super::payout::Payout;
use super::refund::Refund;
use super::requests::Requests;
use super::topup::Topup;
use super::transfer::{Reversal, Transfer};
use crate::vendors::{Api, Sent};

/// The account that every test key belongs to.
pub(super) const PLATFORM: &str = "acct_sim";

/// Something that has an id and a JSON form.
pub(super) trait Record {
    /// Stripe's name for it in messages, such as `charge`.
    const NOUN: &'static str;
    fn id(&self) -> &str;
    /// Unix seconds.
    fn created(&self) -> i64;
    fn render(&self) -> Value;
}

/// Objects in order of creation, found by id.
#[derive(Debug)]
pub(super) struct Table<T> {
    rows: Vec<T>,
    index: HashMap<String, usize>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            index: HashMap::new(),
        }
    }
}

impl<T: Record> Table<T> {
    /// Adds an object; one with the same id is replaced.
    pub(super) fn insert(&mut self, row: T) {
        if let Some(old) = self.get_mut(row.id()) {
            *old = row;
            return;
        }
        self.index.insert(row.id().to_owned(), self.rows.len());
        self.rows.push(row);
    }

    pub(super) fn get(&self, id: &str) -> Option<&T> {
        self.rows.get(*self.index.get(id)?)
    }

    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.rows.get_mut(*self.index.get(id)?)
    }

    /// The object, or Stripe's 404.
    pub(super) fn find(&self, id: &str) -> Result<&T, ApiError> {
        self.get(id).ok_or_else(|| ApiError::no_such(T::NOUN, id))
    }

    /// The object, or Stripe's 404.
    pub(super) fn find_mut(&mut self, id: &str) -> Result<&mut T, ApiError> {
        self.get_mut(id).ok_or_else(|| ApiError::no_such(T::NOUN, id))
    }

    /// Oldest first.
    pub(super) fn rows(&self) -> &[T] {
        &self.rows
    }

    /// Where an object stands in `rows`.
    pub(super) fn position(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }
}

/// A change of an account's balance.
#[derive(Debug)]
pub(super) struct BalanceTransaction {
    pub(super) id: String,
    /// Signed, in the currency's smallest unit.
    pub(super) amount: i64,
    pub(super) currency: String,
    pub(super) kind: &'static str,
    pub(super) source: String,
    pub(super) created: i64,
}

impl Record for BalanceTransaction {
    const NOUN: &'static str = "balance transaction";

    fn id(&self) -> &str {
        &self.id
    }

    fn created(&self) -> i64 {
        self.created
    }

    fn render(&self) -> Value {
        json!({
            "id": self.id, "object": "balance_transaction", "amount": self.amount, "available_on": self.created,
            "balance_type": "payments", "created": self.created, "currency": self.currency, "description": null,
            "exchange_rate": null, "fee": 0, "fee_details": [], "net": self.amount, "reporting_category": self.kind,
            "source": self.source, "status": "available", "type": self.kind,
        })
    }
}

/// One account's data.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) charges: Table<Charge>,
    pub(super) intents: Table<PaymentIntent>,
    pub(super) refunds: Table<Refund>,
    pub(super) transfers: Table<Transfer>,
    pub(super) reversals: Table<Reversal>,
    pub(super) payouts: Table<Payout>,
    pub(super) topups: Table<Topup>,
    pub(super) customers: Table<Customer>,
    pub(super) files: Table<File>,
    pub(super) transactions: Table<BalanceTransaction>,
    /// Available balance by currency.
    pub(super) balance: BTreeMap<String, i64>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) accounts: BTreeMap<String, Account>,
    pub(super) journal: Journal,
    pub(super) keys: Keys,
    pub(super) faults: Faults,
    pub(super) requests: Requests,
    pub(super) ids: Ids,
    pub(super) clock: Arc<dyn Clock>,
    /// How far the simulator's time is ahead of the clock's, in milliseconds.
    pub(super) ahead_ms: i64,
    /// v2 event destinations by id.
    pub(super) destinations: BTreeMap<String, Value>,
    /// Length of a quote's PDF.
    pub(super) pdf_bytes: usize,
    /// Another vendor's API in the place of Stripe's.
    pub(super) api: Option<Box<dyn Api>>,
    /// What that one sent.
    pub(super) sent: Vec<Sent>,
    /// Counts resets, so that a request which was waiting during one does not act in the new world.
    pub(super) epoch: u64,
}

impl World {
    /// An empty world.
    pub(super) fn new(id_seed: u64, pdf_bytes: usize) -> Self {
        Self {
            accounts: BTreeMap::new(),
            journal: Journal::default(),
            keys: Keys::default(),
            faults: Faults::default(),
            requests: Requests::default(),
            ids: Ids::new(id_seed),
            clock: Arc::new(SystemClock),
            ahead_ms: 0,
            destinations: BTreeMap::new(),
            pdf_bytes,
            api: None,
            sent: Vec::new(),
            epoch: 0,
        }
    }

    /// Forgets everything but the next ids; requests that wait are dropped.
    pub(super) fn reset(&mut self) {
        self.accounts.clear();
        self.journal.clear();
        self.keys = Keys::default();
        self.faults.clear();
        self.requests = Requests::default();
        self.destinations.clear();
        self.ahead_ms = 0;
        self.sent.clear();
        if let Some(api) = &mut self.api {
            api.objects_mut().clear();
        }
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// The simulator's time, Unix milliseconds.
    pub(super) fn now_ms(&self) -> i64 {
        self.clock.now_ms().saturating_add(self.ahead_ms)
    }

    /// One account's data, made when first named.
    pub(super) fn account(&mut self, id: &str) -> &mut Account {
        self.accounts.entry(id.to_owned()).or_default()
    }
}

/// What a handler works with: the world, and who asks.
#[derive(Debug)]
pub(super) struct Ctx<'a> {
    pub(super) world: &'a mut World,
    /// Whose data: the platform, or the connected account in `Stripe-Account`.
    pub(super) account: &'a str,
    /// Ids in the path, in order.
    pub(super) ids: &'a [&'a str],
    pub(super) idempotency_key: Option<&'a str>,
    /// `None` for a control endpoint.
    pub(super) request_id: Option<&'a str>,
    pub(super) now_ms: i64,
}

impl Ctx<'_> {
    /// The data of the acting account.
    pub(super) fn data(&mut self) -> &mut Account {
        self.world.account(self.account)
    }

    /// The first id in the path.
    pub(super) fn id(&self) -> &str {
        self.ids.first().copied().unwrap_or_default()
    }

    /// The object of this kind that the path names, or Stripe's 404.
    pub(super) fn named<T: Record>(
        &mut self,
        of_kind: fn(&mut Account) -> &mut Table<T>,
    ) -> Result<&mut T, ApiError> {
        let id = self.id().to_owned();
        of_kind(self.data()).find_mut(&id)
    }

    /// Unix seconds.
    pub(super) fn now(&self) -> i64 {
        seconds(self.now_ms)
    }

    /// Changes the balance and records the change; answers its id.
    pub(super) fn book(&mut self, kind: &'static str, source: &str, amount: i64, currency: &str) -> String {
        let id = self.world.ids.next("txn");
        let created = self.now();
        let account = self.data();
        let balance = account.balance.entry(currency.to_owned()).or_default();
        *balance = balance.saturating_add(amount);
        account.transactions.insert(BalanceTransaction {
            id: id.clone(),
            amount,
            currency: currency.to_owned(),
            kind,
            source: source.to_owned(),
            created,
        });
        id
    }

    /// Writes a journal row.
    pub(super) fn journal(&mut self, kind: MovementKind, outcome: MovementOutcome, row: Moved<'_>) {
        self.world.journal.write(Movement {
            seq: 0,
            at_ms: self.now_ms,
            kind,
            outcome,
            account: self.account.to_owned(),
            object: row.object.to_owned(),
            source: row.source.map(str::to_owned),
            amount: row.amount,
            currency: row.currency.to_owned(),
            idempotency_key: self.idempotency_key.map(str::to_owned),
            request_id: self.request_id.map(str::to_owned),
        });
    }
}

/// The part of a journal row that a handler knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved<'a> {
    pub(super) object: &'a str,
    pub(super) source: Option<&'a str>,
    pub(super) amount: i64,
    pub(super) currency: &'a str,
}

/// `metadata`, `description` and echoed fields that most objects have.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) description: Option<String>,
    /// Fields that are stored and shown and mean nothing here.
    pub(super) echoed: Map<String, Value>,
}

impl Notes {
    /// Takes over what the request says: a metadata key with an empty value is removed, an empty `metadata` clears all.
    /// An error changes nothing.
    pub(super) fn update(&mut self, params: &Params, echoed: &[&str]) -> Result<(), ApiError> {
        let mut new = self.clone();
        new.read(params, echoed)?;
        *self = new;
        Ok(())
    }

    fn read(&mut self, params: &Params, echoed: &[&str]) -> Result<(), ApiError> {
        if params.has("metadata") {
            match params.map("metadata") {
                Ok(Some(pairs)) => self.set_metadata(&pairs)?,
                Ok(None) => {}
                Err(_) if params.text("metadata").is_ok_and(|text| text.is_none()) => self.metadata.clear(),
                Err(error) => return Err(error),
            }
        }
        if params.has("description") {
            self.description = params.text("description")?.map(str::to_owned);
        }
        for name in echoed {
            if let Some(value) = params.json(name) {
                let value = if value == "" { Value::Null } else { value };
                self.echoed.insert((*name).to_owned(), value);
            }
        }
        Ok(())
    }

    fn set_metadata(&mut self, pairs: &[(&str, &str)]) -> Result<(), ApiError> {
        for (key, value) in pairs {
            if key.chars().count() > 40 || value.chars().count() > 500 {
                return Err(ApiError::invalid(
                    "metadata",
                    "Metadata keys can have up to 40 characters and values up to 500 characters.",
                ));
            }
            if value.is_empty() {
                self.metadata.remove(*key);
            } else {
                self.metadata.insert((*key).to_owned(), (*value).to_owned());
            }
        }
        if self.metadata.len() > 50 {
            return Err(ApiError::invalid(
                "metadata",
                "You can only have up to 50 metadata keys.",
            ));
        }
        Ok(())
    }

    /// Whether this is the object's `transfer_group`.
    pub(super) fn is_in_group(&self, group: &str) -> bool {
        self.echoed
            .get("transfer_group")
            .is_some_and(|value| value == group)
    }

    /// Puts the notes into a rendered object.
    pub(super) fn show(&self, object: &mut Value) {
        let Value::Object(fields) = object else {
            return;
        };
        for (key, value) in &self.echoed {
            fields.insert(key.clone(), value.clone());
        }
        fields.insert("metadata".to_owned(), json!(self.metadata));
        fields.insert("description".to_owned(), json!(self.description));
    }
}
