//! Stripe's rules for amounts in each currency, written from its documentation for the simulator alone.

use super::error::ApiError;

/// Amounts are at most twelve digits.
const AMOUNT_MAX: i64 = 999_999_999_999;

const TWO_DECIMALS: &str = "aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bmd bnd bob brl bsd bwp byn bzd cad \
    cdf chf cny cop crc cve czk dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd hnl hrk htg huf idr ils inr isk jmd \
    kes kgs khr kyd kzt lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk \
    php pkr pln qar ron rsd rub sar sbd scr sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs uah ugx usd uyu uzs wst \
    xcd xcg yer zar zmw";
const ZERO_DECIMALS: &str = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf";
const THREE_DECIMALS: &str = "bhd jod kwd omr tnd";

/// A currency code as sent, in lower case.
pub(super) fn currency(text: &str) -> Result<String, ApiError> {
    let code = text.to_ascii_lowercase();
    let known = code.len() == 3
        && [TWO_DECIMALS, ZERO_DECIMALS, THREE_DECIMALS]
            .iter()
            .any(|list| list.split(' ').any(|known| known == code));
    if known {
        return Ok(code);
    }
    Err(ApiError::invalid(
        "currency",
        format!("Invalid currency: {text}. Stripe does not support this currency."),
    ))
}

/// Checks that an amount may be charged.
pub(super) fn chargeable(param: &str, amount: i64, currency: &str) -> Result<i64, ApiError> {
    let amount = positive(param, amount, currency)?;
    let least = match currency {
        "usd" | "eur" | "cad" | "aud" | "chf" | "jpy" => 50,
        "gbp" => 30,
        "huf" => 17_500,
        _ => 1,
    };
    if amount < least {
        return Err(ApiError::invalid(
            param,
            format!("Amount must be at least {least} {currency} in the smallest unit."),
        )
        .code("amount_too_small"));
    }
    Ok(amount)
}

/// Checks that an amount is positive, not too long and a multiple of what the currency takes.
pub(super) fn positive(param: &str, amount: i64, currency: &str) -> Result<i64, ApiError> {
    if amount < 1 {
        return Err(
            ApiError::invalid(param, "This value must be greater than or equal to 1.")
                .code("parameter_invalid_integer"),
        );
    }
    if amount > AMOUNT_MAX {
        return Err(
            ApiError::invalid(param, "Amount must be no more than 999,999,999,999.").code("amount_too_large"),
        );
    }
    let step = match currency {
        "isk" | "ugx" => 100,
        code if THREE_DECIMALS.split(' ').any(|known| known == code) => 10,
        _ => 1,
    };
    if amount.checked_rem(step) != Some(0) {
        return Err(ApiError::invalid(
            param,
            format!("Invalid amount: {currency} amounts must be a multiple of {step}."),
        )
        .code("invalid_charge_amount"));
    }
    Ok(amount)
}

/// Payouts in HUF and TWD must be whole units.
pub(super) fn payable_out(param: &str, amount: i64, currency: &str) -> Result<i64, ApiError> {
    let amount = positive(param, amount, currency)?;
    if matches!(currency, "huf" | "twd") && amount.checked_rem(100) != Some(0) {
        return Err(ApiError::invalid(
            param,
            format!("Payouts in {currency} must be divisible by 100."),
        ));
    }
    Ok(amount)
}
