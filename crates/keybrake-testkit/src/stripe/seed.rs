//! What is there before the first request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cards::{self, Payment};
use super::charge::{Charge, ChargeStatus};
use super::currency;
use super::customer::Customer;
use super::error::ApiError;
use super::number::seconds;
use super::payment_intent::{PaymentIntent, Status};
use super::world::{Notes, PLATFORM, World};

/// Objects to create without any request. They are not movements: the journal does not show them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seed {
    /// Whose they are; the platform's when absent.
    pub account: Option<String>,
    /// Customers.
    pub customers: Vec<SeedCustomer>,
    /// Charges.
    pub charges: Vec<SeedCharge>,
    /// Payment intents.
    pub payment_intents: Vec<SeedIntent>,
    /// Available balance by currency, in the smallest unit; replaces what was there.
    pub balance: BTreeMap<String, i64>,
}

/// A customer to create.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeedCustomer {
    /// Its id; made up when absent.
    pub id: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// E-mail address.
    pub email: Option<String>,
    /// What it pays with by default; a plain Visa when absent.
    pub payment_method: Option<String>,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
}

/// A charge to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedCharge {
    /// Its id; made up when absent.
    #[serde(default)]
    pub id: Option<String>,
    /// Amount in the currency's smallest unit.
    pub amount: i64,
    /// Currency.
    #[serde(default = "usd")]
    pub currency: String,
    /// Captured, or only authorised.
    #[serde(default = "yes")]
    pub captured: bool,
    /// Whose charge.
    #[serde(default)]
    pub customer: Option<String>,
    /// What it was paid with; decides how refunds go (`pm_card_pendingRefund`).
    #[serde(default = "visa")]
    pub payment_method: String,
    /// Metadata.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// A `PaymentIntent` to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedIntent {
    /// Its id; made up when absent.
    #[serde(default)]
    pub id: Option<String>,
    /// Amount in the currency's smallest unit.
    pub amount: i64,
    /// Currency.
    #[serde(default = "usd")]
    pub currency: String,
    /// `requires_payment_method`, `requires_confirmation`, `requires_capture` or `succeeded`.
    #[serde(default = "succeeded")]
    pub status: String,
    /// Whose intent.
    #[serde(default)]
    pub customer: Option<String>,
    /// Its method.
    #[serde(default = "visa")]
    pub payment_method: String,
}

fn usd() -> String {
    "usd".to_owned()
}

const fn yes() -> bool {
    true
}

fn visa() -> String {
    "pm_card_visa".to_owned()
}

fn succeeded() -> String {
    "succeeded".to_owned()
}

impl SeedCharge {
    /// A captured charge.
    pub fn new(id: &str, amount: i64, currency: &str) -> Self {
        Self {
            id: Some(id.to_owned()),
            amount,
            currency: currency.to_owned(),
            captured: true,
            customer: Some("cus_1".to_owned()),
            payment_method: visa(),
            metadata: BTreeMap::new(),
        }
    }
}

impl Seed {
    /// Two customers (`cus_1`, `cus_2`); captured charges `ch_1` to `ch_6` of $50.00, `ch_eur` of €25.00, `ch_jpy` of
    /// ¥5000, `ch_kwd` of 10.000 KWD, `ch_hold` authorised only; `pi_1` succeeded ($120.00), `pi_2` to be confirmed
    /// ($30.00), `pi_hold` to be captured ($100.00); a balance in four currencies.
    pub fn standard() -> Self {
        let customer = |id: &str, name: &str, email: &str| SeedCustomer {
            id: Some(id.to_owned()),
            name: Some(name.to_owned()),
            email: Some(email.to_owned()),
            ..SeedCustomer::default()
        };
        let intent = |id: &str, amount: i64, status: &str| SeedIntent {
            id: Some(id.to_owned()),
            amount,
            currency: usd(),
            status: status.to_owned(),
            customer: Some("cus_1".to_owned()),
            payment_method: visa(),
        };
        let mut charges: Vec<SeedCharge> = (1..=6)
            .map(|number| SeedCharge::new(&format!("ch_{number}"), 5_000, "usd"))
            .collect();
        charges.push(SeedCharge::new("ch_eur", 2_500, "eur"));
        charges.push(SeedCharge::new("ch_jpy", 5_000, "jpy"));
        charges.push(SeedCharge::new("ch_kwd", 10_000, "kwd"));
        charges.push(SeedCharge {
            captured: false,
            ..SeedCharge::new("ch_hold", 8_000, "usd")
        });
        Self {
            account: None,
            customers: vec![
                customer("cus_1", "Ada Lovelace", "ada@example.com"),
                customer("cus_2", "Charles Babbage", "charles@example.com"),
            ],
            charges,
            payment_intents: vec![
                intent("pi_1", 12_000, "succeeded"),
                intent("pi_2", 3_000, "requires_confirmation"),
                intent("pi_hold", 10_000, "requires_capture"),
            ],
            balance: [
                ("usd", 10_000_000),
                ("eur", 5_000_000),
                ("gbp", 5_000_000),
                ("jpy", 500_000_000),
            ]
            .into_iter()
            .map(|(currency, amount)| (currency.to_owned(), amount))
            .collect(),
        }
    }
}

/// What a seeding made, by kind, in the order asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seeded {
    /// Customers' ids.
    pub customers: Vec<String>,
    /// Charges' ids.
    pub charges: Vec<String>,
    /// Payment intents' ids.
    pub payment_intents: Vec<String>,
}

/// Creates the objects. An error may leave those before it created.
pub(super) fn plant(world: &mut World, seed: &Seed) -> Result<Seeded, ApiError> {
    let account = seed.account.as_deref().unwrap_or(PLATFORM);
    let now = seconds(world.now_ms());
    let mut made = Seeded::default();
    for customer in &seed.customers {
        let id = customer.id.clone().unwrap_or_else(|| world.ids.short("cus"));
        world.account(account).customers.insert(Customer {
            id: id.clone(),
            name: customer.name.clone(),
            email: customer.email.clone(),
            phone: None,
            balance: 0,
            default_method: Some(customer.payment_method.clone().unwrap_or_else(visa)),
            deleted: false,
            created: now,
            notes: notes(&customer.metadata),
        });
        made.customers.push(id);
    }
    for charge in &seed.charges {
        made.charges
            .push(plant_charge(world, account, charge, None, now)?);
    }
    for intent in &seed.payment_intents {
        made.payment_intents
            .push(plant_intent(world, account, intent, now)?);
    }
    for (currency, amount) in &seed.balance {
        let currency = currency::currency(currency)?;
        world.account(account).balance.insert(currency, *amount);
    }
    Ok(made)
}

fn notes(metadata: &BTreeMap<String, String>) -> Notes {
    Notes {
        metadata: metadata.clone(),
        ..Notes::default()
    }
}

fn plant_charge(
    world: &mut World,
    account: &str,
    charge: &SeedCharge,
    intent: Option<String>,
    now: i64,
) -> Result<String, ApiError> {
    let currency = currency::currency(&charge.currency)?;
    let amount = currency::positive("amount", charge.amount, &currency)?;
    let id = charge.id.clone().unwrap_or_else(|| world.ids.next("ch"));
    world.account(account).charges.insert(Charge {
        id: id.clone(),
        amount,
        amount_captured: if charge.captured { amount } else { 0 },
        amount_refunded: 0,
        currency,
        status: ChargeStatus::Succeeded,
        captured: charge.captured,
        released: false,
        customer: charge.customer.clone(),
        payment_intent: intent,
        method: charge.payment_method.clone(),
        decline: match cards::payment(&charge.payment_method) {
            Payment::Declines(_) => {
                return Err(ApiError::invalid("payment_method", "A seeded charge succeeded."));
            }
            Payment::Succeeds | Payment::NeedsAction | Payment::Processing => None,
        },
        balance_transaction: None,
        created: now,
        notes: notes(&charge.metadata),
    });
    Ok(id)
}

fn plant_intent(world: &mut World, account: &str, intent: &SeedIntent, now: i64) -> Result<String, ApiError> {
    let currency = currency::currency(&intent.currency)?;
    let amount = currency::positive("amount", intent.amount, &currency)?;
    let status = [
        Status::RequiresPaymentMethod,
        Status::RequiresConfirmation,
        Status::RequiresCapture,
        Status::Succeeded,
    ]
    .into_iter()
    .find(|status| status.word() == intent.status)
    .ok_or_else(|| ApiError::invalid("status", format!("A seeded intent cannot be {}.", intent.status)))?;
    let id = intent.id.clone().unwrap_or_else(|| world.ids.next("pi"));
    let captured = status == Status::Succeeded;
    let latest_charge = if captured || status == Status::RequiresCapture {
        let charge = SeedCharge {
            id: None,
            amount,
            currency: currency.clone(),
            captured,
            customer: intent.customer.clone(),
            payment_method: intent.payment_method.clone(),
            metadata: BTreeMap::new(),
        };
        Some(plant_charge(world, account, &charge, Some(id.clone()), now)?)
    } else {
        None
    };
    world.account(account).intents.insert(PaymentIntent {
        id: id.clone(),
        amount,
        amount_capturable: if status == Status::RequiresCapture {
            amount
        } else {
            0
        },
        amount_received: if captured { amount } else { 0 },
        currency,
        status,
        capture_method: if status == Status::RequiresCapture {
            "manual".to_owned()
        } else {
            "automatic_async".to_owned()
        },
        customer: intent.customer.clone(),
        method: (status != Status::RequiresPaymentMethod).then(|| intent.payment_method.clone()),
        latest_charge,
        last_error: None,
        canceled_at: None,
        cancellation_reason: None,
        created: now,
        notes: Notes::default(),
    });
    Ok(id)
}
