//! Money: integer micro-USD, checked arithmetic, decimal text in and out. No float touches an amount.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Micro-USD in one US dollar.
pub const MICROS_PER_USD: i64 = 1_000_000;

/// An amount of US dollars in micro-USD (one millionth of a dollar).
///
/// Range: about ±9.2 trillion dollars. Arithmetic is checked only: an overflow answers `None` and the caller
/// refuses the call. Serialised as an integer of micro-USD; shown and parsed as decimal dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(i64);

impl Usd {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// An amount given in micro-USD.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The amount in micro-USD.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole dollars; `None` on overflow.
    pub fn from_dollars(dollars: i64) -> Option<Self> {
        dollars.checked_mul(MICROS_PER_USD).map(Self)
    }

    /// Sum; `None` on overflow.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Difference; `None` on overflow.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// The opposite amount; `None` on overflow.
    pub fn checked_neg(self) -> Option<Self> {
        self.0.checked_neg().map(Self)
    }

    /// Whether the amount is below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an amount in US dollars: write digits with at most six decimals, such as 250 or 0.59")]
pub struct ParseUsdError(String);

impl FromStr for Usd {
    type Err = ParseUsdError;

    /// Reads decimal dollars: an optional minus, digits, and at most six decimals (`250`, `0.59`, `-1.5`).
    ///
    /// Exponents, separators, a leading plus, and a bare point are refused, as is anything out of range.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_micros(text)
            .map(Self)
            .ok_or_else(|| ParseUsdError(text.chars().take(40).collect()))
    }
}

fn parse_micros(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || fraction.len() > 6 {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let micros = whole.checked_mul(MICROS_PER_USD)?.checked_add(fraction)?;
    if negative {
        micros.checked_neg()
    } else {
        Some(micros)
    }
}

impl fmt::Display for Usd {
    /// Decimal dollars with two decimals, or as many as the amount needs: `50.00`, `0.0083`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let micros = self.0.unsigned_abs();
        let scale = MICROS_PER_USD.unsigned_abs();
        let whole = micros.checked_div(scale).unwrap_or(0);
        let mut fraction = micros.checked_rem(scale).unwrap_or(0);
        let mut decimals = 6_usize;
        while decimals > 2 && fraction.is_multiple_of(10) {
            fraction = fraction.checked_div(10).unwrap_or(0);
            decimals = decimals.saturating_sub(1);
        }
        write!(f, "{sign}{whole}.{fraction:0decimals$}")
    }
}

/// An ISO 4217 currency code, kept in lower-case ASCII.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// US dollars.
    pub const USD: Self = Self(*b"usd");

    /// Reads three ASCII letters of either case; anything else is `None` (`uſd` upper-cases to `USD`, so no
    /// Unicode folding is ever applied).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 3] = text.as_bytes().try_into().ok()?;
        bytes
            .iter()
            .all(u8::is_ascii_alphabetic)
            .then(|| Self(bytes.map(|b| b.to_ascii_lowercase())))
    }

    /// The code in lower case, such as `usd`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("???")
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_str().to_ascii_uppercase())
    }
}

/// An amount as a vendor counts it: minor units of a currency, with that vendor's own number of decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorAmount {
    /// Minor units, as in the request or the reply; never negative.
    pub minor: i64,
    /// The currency.
    pub currency: Currency,
    /// Decimals of one unit by the vendor's rules (2 for USD, 0 for JPY, 3 for KWD).
    pub exponent: u8,
}

/// US dollars per unit of a currency, in nano-USD (10⁻⁹ dollars), so that small units keep their digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    nanos_per_unit: i64,
}

impl Rate {
    /// One dollar per unit.
    pub const USD: Self = Self {
        nanos_per_unit: 1_000_000_000,
    };

    /// Reads a positive decimal number of dollars per unit with at most nine decimals, such as `0.006713`.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !plain(whole) || !plain(fraction) || fraction.len() > 9 {
            return None;
        }
        let whole: i64 = whole.parse().ok()?;
        let fraction: i64 = format!("{fraction:0<9}").parse().ok()?;
        let nanos = whole.checked_mul(1_000_000_000)?.checked_add(fraction)?;
        (nanos > 0).then_some(Self {
            nanos_per_unit: nanos,
        })
    }

    /// The value in US dollars, rounded up to the next micro-USD; `None` on overflow.
    pub fn to_usd(self, amount: VendorAmount) -> Option<Usd> {
        let scale = 10_i128
            .checked_pow(u32::from(amount.exponent))?
            .checked_mul(1_000)?;
        let nanos = i128::from(amount.minor).checked_mul(i128::from(self.nanos_per_unit))?;
        let micros = nanos.checked_add(scale.checked_sub(1)?)?.checked_div(scale)?;
        i64::try_from(micros).ok().map(Usd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usd_reads_and_shows_decimals_exactly() {
        for (text, micros, shown) in [
            ("250", 250_000_000, "250.00"),
            ("0.59", 590_000, "0.59"),
            ("0.0083", 8_300, "0.0083"),
            ("-1.5", -1_500_000, "-1.50"),
            ("0.000001", 1, "0.000001"),
        ] {
            let usd: Usd = text.parse().unwrap();
            assert_eq!((usd.micros(), usd.to_string().as_str()), (micros, shown));
        }
    }

    #[test]
    fn usd_refuses_what_is_not_plain_decimal() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "+1",
            "1e3",
            "1,000",
            "0.0000001",
            "9223372036855",
            "٣",
            "1 ",
            "--1",
        ] {
            assert!(text.parse::<Usd>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn currency_folds_ascii_only() {
        assert_eq!(Currency::parse("USD"), Some(Currency::USD));
        for text in ["u\u{17f}d", "us", "usdd", "u5d"] {
            assert_eq!(Currency::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn rates_round_up_and_refuse_overflow() {
        let jpy = VendorAmount {
            minor: 1,
            currency: Currency::parse("jpy").unwrap(),
            exponent: 0,
        };
        assert_eq!(
            Rate::parse("0.0067139").unwrap().to_usd(jpy),
            Some(Usd::from_micros(6_714))
        );
        let cents = VendorAmount {
            minor: 1_050,
            currency: Currency::USD,
            exponent: 2,
        };
        assert_eq!(Rate::USD.to_usd(cents), Some(Usd::from_micros(10_500_000)));
        let huge = VendorAmount {
            minor: i64::MAX,
            currency: Currency::USD,
            exponent: 0,
        };
        assert_eq!(Rate::USD.to_usd(huge), None);
        assert_eq!(Rate::parse("0"), None);
        assert_eq!(Rate::parse("-1"), None);
    }
}
