//! What the built-in vendors tell the policy of themselves.

use super::{Class, vendor, vendors};
use crate::policy::{Catalogue, OperationInfo};

/// The built-in vendors, as a policy sees them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtin;

impl Catalogue for Builtin {
    fn vendors(&self) -> Vec<&'static str> {
        vendors().iter().map(|vendor| vendor.name()).collect()
    }

    fn operations(&self, name: &str) -> Vec<OperationInfo> {
        let operations = vendor(name).map(super::Vendor::operations).unwrap_or_default();
        let info = operations.iter().map(|operation| OperationInfo {
            name: operation.name,
            method: operation.method,
            path: operation.path,
            read: operation.class == Class::Read,
            recurring: RECURRING.contains(&(name, operation.name)),
        });
        info.collect()
    }
}

/// Operations that start repeated billing, or change what is billed repeatedly. A checkout session and a payment
/// link do so by their parameters, so they are among them.
const RECURRING: &[(&str, &str)] = &[
    ("stripe", "checkout.sessions.create"),
    ("stripe", "payment_links.create"),
    ("stripe", "payment_links.update"),
    ("stripe", "quotes.accept"),
    ("stripe", "subscription_items.create"),
    ("stripe", "subscription_items.update"),
    ("stripe", "subscription_schedules.create"),
    ("stripe", "subscription_schedules.update"),
    ("stripe", "subscriptions.create"),
    ("stripe", "subscriptions.resume"),
    ("stripe", "subscriptions.update"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recurring_operation_exists() {
        for (vendor, name) in RECURRING {
            let operations = Builtin.operations(vendor);
            assert!(
                operations.iter().any(|o| o.name == *name && o.recurring),
                "{vendor} has no {name}"
            );
        }
        assert!(
            Builtin
                .operations("stripe")
                .iter()
                .any(|o| !o.recurring && o.read)
        );
        assert!(Builtin.operations("no such vendor").is_empty());
    }
}
