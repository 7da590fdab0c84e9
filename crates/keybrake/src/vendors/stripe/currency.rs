//! How many decimals Stripe's amounts have. Not ISO 4217: Iceland and Uganda differ by a factor of 100.
//!
//! Sources: docs.stripe.com/currencies, read 2026-11-21 (zero-decimal list and special cases); the page as archived
//! on 2022-12-31 (three-decimal currencies, which the present page does not mention any more).

use crate::money::Currency;

/// Amounts are whole units.
const ZERO_DECIMAL: [&str; 15] = [
    "bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf",
];

/// Amounts are thousandths, the last digit 0.
const THREE_DECIMAL: [&str; 5] = ["bhd", "jod", "kwd", "omr", "tnd"];

/// Decimals of an amount in this currency.
///
/// UGX and ISK have none, yet Stripe takes them "for backwards compatibility" as two-decimal: 500 is 5 units. HUF and
/// TWD are two-decimal; only payouts of them must be divisible by 100, which Stripe checks. All others are
/// two-decimal "unless otherwise specified".
pub(super) fn exponent(currency: Currency) -> u8 {
    let code = currency.as_str();
    if ZERO_DECIMAL.contains(&code) {
        0
    } else if THREE_DECIMAL.contains(&code) {
        3
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::{Rate, Usd, VendorAmount};

    #[test]
    fn currencies_by_stripes_rules() {
        for (code, decimals) in [
            ("usd", 2),
            ("eur", 2),
            ("jpy", 0),
            ("krw", 0),
            ("ugx", 2),
            ("isk", 2),
            ("huf", 2),
            ("twd", 2),
            ("kwd", 3),
            ("tnd", 3),
        ] {
            assert_eq!(exponent(Currency::parse(code).unwrap()), decimals, "{code}");
        }
    }

    #[test]
    fn the_same_number_is_worth_what_the_currency_says() {
        // 5,000 minor units are 50 dollars, 5,000 yen, 5 dinars and 50 krónur.
        for (code, rate, micros) in [
            ("usd", "1", 50_000_000),
            ("jpy", "0.0067", 33_500_000),
            ("kwd", "3.25", 16_250_000),
            ("isk", "0.0072", 360_000),
            ("ugx", "0.00027", 13_500),
        ] {
            let currency = Currency::parse(code).unwrap();
            let amount = VendorAmount {
                minor: 5_000,
                currency,
                exponent: exponent(currency),
            };
            let usd = Rate::parse(rate).unwrap().to_usd(amount);
            assert_eq!(usd, Some(Usd::from_micros(micros)), "{code}");
        }
    }
}
