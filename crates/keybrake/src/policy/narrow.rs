//! Narrowing: a run, or a child, gets less than the policy it was opened from. What was narrowed is kept beside
//! the document as a further document, and a call must pass each of them; so a narrowing can never widen.

use serde_json::Value;

use super::budget::OnRepeat;
use super::caps::{Line, lines};
use super::compile::vendor_names;
use super::document::Document;
use super::file::Policy;
use super::options::{CountIntents, Idempotency, Mode, ModelDetail, UnknownCost};
use super::source;
use crate::error::{Error, Result};

impl Policy {
    /// The same policy with less: lists intersect, caps take the lower, expiry the earlier.
    ///
    /// # Errors
    /// `Policy` when a value is wider than the policy's, or when the field is not one that narrows; the message
    /// names both values. A list entry that the policy allows nothing of is found by
    /// [`CompiledPolicy::compile`](super::CompiledPolicy::compile).
    pub fn narrow(&self, narrow: &Value) -> Result<Self> {
        source::depth(narrow, source::MAX_DEPTH)?;
        source::no_secrets(narrow, "narrow")?;
        let layer =
            Document::read(narrow, "").map_err(|e| Error::policy(format!("narrow: {}", e.message())))?;
        if !layer.narrowed.is_empty() {
            return Err(Error::policy(
                "narrow: `narrowed` cannot be given; narrow once more instead",
            ));
        }
        check(&self.document, &self.document.narrowed, &layer)
            .map_err(|e| Error::policy(format!("narrow: {}", e.message())))?;
        let mut document = self.document.clone();
        document.narrowed.push(layer);
        Ok(Self { document })
    }
}

/// Checks the narrowings that stand in a document as they would have been checked one by one.
pub(crate) fn check_all(base: &Document) -> Result<()> {
    for (index, layer) in base.narrowed.iter().enumerate() {
        let earlier = base.narrowed.get(..index).unwrap_or_default();
        check(base, earlier, layer)
            .map_err(|e| Error::policy(format!("`narrowed[{index}]`: {}", e.message())))?;
    }
    Ok(())
}

/// Refuses a layer that is wider than what stands before it.
fn check(base: &Document, earlier: &[Document], layer: &Document) -> Result<()> {
    only_narrowing_fields(base, layer)?;
    words(base, earlier, layer)?;
    caps(base, earlier, layer)?;
    lifetimes(base, earlier, layer)?;
    let standing = vendor_names(base)?;
    for vendor in layer.vendors.iter().flatten().chain(&layer.vendor) {
        if !standing.contains(vendor) {
            return Err(Error::policy(format!(
                "vendor {vendor:?} is not one that the policy opens"
            )));
        }
    }
    Ok(())
}

/// What the documents say last; `None` when none says anything.
pub(crate) fn last<'d, T>(
    base: &'d Document,
    layers: &'d [Document],
    field: impl Fn(&'d Document) -> Option<T>,
) -> Option<T> {
    layers.iter().rev().find_map(&field).or_else(|| field(base))
}

/// The smallest of what the documents say.
pub(crate) fn least<T: Ord>(
    base: &Document,
    layers: &[Document],
    field: impl Fn(&Document) -> Option<T>,
) -> Option<T> {
    std::iter::once(base).chain(layers).filter_map(field).min()
}

fn only_narrowing_fields(base: &Document, layer: &Document) -> Result<()> {
    let changed: [(&str, bool); 13] = [
        ("secret", layer.secret.is_some() && layer.secret != base.secret),
        (
            "window",
            layer
                .window
                .is_some_and(|window| window != base.window.unwrap_or_default()),
        ),
        (
            "timezone",
            layer
                .timezone
                .as_deref()
                .is_some_and(|zone| zone != base.timezone.as_deref().unwrap_or("UTC")),
        ),
        (
            "caller_keys",
            layer.caller_keys.is_some() && layer.caller_keys != base.caller_keys,
        ),
        (
            "currency_rates",
            layer.currency_rates.is_some() && layer.currency_rates != base.currency_rates,
        ),
        (
            "cap_status",
            layer
                .cap_status
                .is_some_and(|status| status != base.cap_status.unwrap_or(429)),
        ),
        ("label", layer.label.is_some() && layer.label != base.label),
        (
            "agent_id",
            layer.agent_id.is_some() && layer.agent_id != base.agent_id,
        ),
        (
            "agent_run_id",
            layer.agent_run_id.is_some() && layer.agent_run_id != base.agent_run_id,
        ),
        (
            "metadata",
            layer.metadata.is_some() && layer.metadata != base.metadata,
        ),
        ("parent", layer.parent.is_some() && layer.parent != base.parent),
        ("groups", layer.groups.is_some() && layer.groups != base.groups),
        (
            "recurring",
            layer.recurring.is_some() && layer.recurring != base.recurring,
        ),
    ];
    match changed.into_iter().find(|(_, changed)| *changed) {
        Some((field, _)) => Err(Error::policy(format!(
            "`{field}` cannot be narrowed, only repeated as it is in the policy; remove it"
        ))),
        None => Ok(()),
    }
}

fn words(base: &Document, earlier: &[Document], layer: &Document) -> Result<()> {
    fn wider<T: PartialEq + Copy + std::fmt::Debug>(
        field: &str,
        narrow_last: &[T],
        standing: T,
        wanted: Option<T>,
    ) -> Result<()> {
        let rank = |word: T| narrow_last.iter().position(|item| *item == word);
        match wanted {
            Some(wanted) if rank(wanted) < rank(standing) => Err(Error::policy(format!(
                "`{field}` {} is wider than {}",
                snake(&format!("{wanted:?}")),
                snake(&format!("{standing:?}"))
            ))),
            _ => Ok(()),
        }
    }
    wider(
        "idempotency",
        &[Idempotency::Off, Idempotency::Auto, Idempotency::Require],
        last(base, earlier, |d| d.idempotency).unwrap_or_default(),
        layer.idempotency,
    )?;
    wider(
        "on_repeat",
        &[OnRepeat::Execute, OnRepeat::Replay, OnRepeat::Refuse],
        last(base, earlier, |d| d.on_repeat).unwrap_or_default(),
        layer.on_repeat,
    )?;
    wider(
        "unknown_cost",
        &[UnknownCost::Lookup, UnknownCost::Deny],
        last(base, earlier, |d| d.unknown_cost).unwrap_or_default(),
        layer.unknown_cost,
    )?;
    wider(
        "count_intents",
        &[CountIntents::AtConfirm, CountIntents::AtCreation],
        last(base, earlier, |d| d.count_intents).unwrap_or_default(),
        layer.count_intents,
    )?;
    wider(
        "model_detail",
        &[ModelDetail::Full, ModelDetail::Reason],
        last(base, earlier, |d| d.model_detail).unwrap_or_default(),
        layer.model_detail,
    )?;
    wider(
        "mode",
        &[Mode::Observe, Mode::Enforce],
        last(base, earlier, |d| d.mode).unwrap_or_default(),
        layer.mode,
    )
}

/// `AtConfirm` as policies write it: `at_confirm`.
fn snake(word: &str) -> String {
    word.chars().fold(String::new(), |mut text, c| {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
        text
    })
}

fn caps(base: &Document, earlier: &[Document], layer: &Document) -> Result<()> {
    let standing = standing_lines(base, earlier)?;
    let names = vendor_names(base)?;
    let vendors: Vec<&str> = names.iter().map(String::as_str).collect();
    let only = only(&vendors);
    for line in lines(layer, &vendors, base.window.unwrap_or_default(), "")? {
        let lower = standing
            .iter()
            .filter(|other| other.same_as(&line, only))
            .min_by_key(|other| other.cap);
        if let Some(lower) = lower
            && line.cap > lower.cap
        {
            return Err(Error::policy(format!(
                "`{}` {} is above the {} of `{}`",
                line.field,
                line.cap_text(),
                lower.cap_text(),
                lower.field
            )));
        }
    }
    let ceiling = least(base, earlier, |d| d.max_amount_per_call_usd);
    match (layer.max_amount_per_call_usd, ceiling) {
        (Some(mine), Some(ceiling)) if mine > ceiling => Err(Error::policy(format!(
            "`max_amount_per_call_usd` ${} is above the ${} of the policy",
            mine.0, ceiling.0
        ))),
        _ => Ok(()),
    }
}

/// All budget lines of a document and its narrowings so far.
pub(crate) fn standing_lines(base: &Document, layers: &[Document]) -> Result<Vec<Line>> {
    let names = vendor_names(base)?;
    let vendors: Vec<&str> = names.iter().map(String::as_str).collect();
    let day = base.window.unwrap_or_default();
    let mut all = lines(base, &vendors, day, "")?;
    for (index, layer) in layers.iter().enumerate() {
        all.extend(lines(layer, &vendors, day, &format!("narrowed[{index}]"))?);
    }
    Ok(all)
}

pub(crate) fn only<'v>(vendors: &[&'v str]) -> Option<&'v str> {
    match vendors {
        [one] => Some(one),
        _ => None,
    }
}

fn lifetimes(base: &Document, earlier: &[Document], layer: &Document) -> Result<()> {
    if let (Some(mine), Some(standing)) = (layer.expires_in, least(base, earlier, |d| d.expires_in))
        && mine > standing
    {
        return Err(Error::policy(format!(
            "`expires_in` {} is longer than {}",
            mine.text(),
            standing.text()
        )));
    }
    if let (Some(mine), Some(standing)) = (layer.expires_at, least(base, earlier, |d| d.expires_at))
        && mine > standing
    {
        return Err(Error::policy(format!(
            "`expires_at` {} is later than {}",
            mine.text(),
            standing.text()
        )));
    }
    Ok(())
}
