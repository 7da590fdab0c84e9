//! Compilation: a document and the vendors that there are become matchers, rules and budgets, or an error that
//! says what to write instead. Both forms, single- and multi-vendor, compile to the same.

use std::collections::{BTreeMap, BTreeSet};

use super::amounts::{Moment, time_text};
use super::budget::{BudgetRef, OnRepeat, Scope};
use super::caps::{Line, Whose, at, known_vendor};
use super::catalogue::Catalogue;
use super::compiled::{CompiledPolicy, CostRule, IdList, LayerRules, Lifetime, RateRule, VendorRules};
use super::document::{ByVendor, Document};
use super::endpoint::{EndpointSet, Entry, Routes};
use super::file::Policy;
use super::narrow::{last, least, only, standing_lines};
use super::options::{Mode, ModelDetail, OnLedgerUnavailable, Recurring, RecurringWord};
use super::reader::{did_you_mean, validate_id};
use super::rule::Rules;
use super::window;
use crate::error::{Error, Result};
use crate::money::Currency;

impl CompiledPolicy {
    /// Compiles a policy and its narrowings for the vendors of a catalogue.
    ///
    /// # Errors
    /// `Policy`, with the field, its place and what to write instead, when the document contradicts itself,
    /// names something that does not exist, allows nothing, or asks for something that is not enforced yet.
    pub fn compile(policy: &Policy, catalogue: &dyn Catalogue) -> Result<Self> {
        let base = &policy.document;
        let layers = base.narrowed.as_slice();
        for (place, document) in documents(base) {
            refuse_unenforced(document, &place)?;
            refuse_contradictions(document, &place)?;
        }
        let vendors = opened(base, catalogue)?
            .into_iter()
            .map(|name| vendor_rules(base, Routes::new(name, catalogue.operations(name))))
            .collect::<Result<Vec<_>>>()?;
        let timezone = base.timezone.clone().unwrap_or_else(|| "UTC".to_owned());
        window::zone(&timezone).map_err(|e| Error::policy(format!("`timezone`: {}", e.message())))?;
        Ok(Self {
            vendors,
            lines: merge_lines(base)?,
            timezone,
            ceiling: least(base, layers, |d| d.max_amount_per_call_usd).map(|ceiling| ceiling.0),
            rates: rates(base)?,
            idempotency: last(base, layers, |d| d.idempotency).unwrap_or_default(),
            on_repeat: last(base, layers, |d| d.on_repeat).unwrap_or(OnRepeat::Replay),
            unknown_cost: last(base, layers, |d| d.unknown_cost).unwrap_or_default(),
            count_intents: last(base, layers, |d| d.count_intents).unwrap_or_default(),
            caller_keys: base.caller_keys,
            cap_status: base.cap_status.unwrap_or(429),
            full_detail: last(base, layers, |d| d.model_detail).unwrap_or_default() == ModelDetail::Full,
            observe: last(base, layers, |d| d.mode).unwrap_or_default() == Mode::Observe,
            lifetime: Lifetime {
                in_ms: least(base, layers, |d| d.expires_in).map(|span| span.0),
                at_ms: least(base, layers, |d| d.expires_at).map(|moment| moment.0),
            },
            label: base.label.clone(),
            agent_id: base.agent_id.clone(),
            run: base.agent_run_id.clone(),
            parent: base.parent.clone(),
            groups: groups(base)?,
            attribution_only: base
                .groups
                .iter()
                .flatten()
                .filter(|g| g.attribution_only)
                .map(|g| g.name.clone())
                .collect(),
            metadata: base.metadata.clone().unwrap_or_default(),
        })
    }
}

/// The document and its narrowings, each with the place that errors name.
fn documents(base: &Document) -> impl Iterator<Item = (String, &Document)> {
    let layers = base
        .narrowed
        .iter()
        .enumerate()
        .map(|(index, layer)| (format!("narrowed[{index}]"), layer));
    std::iter::once((String::new(), base)).chain(layers)
}

/// A field whose enforcement does not exist is refused by name, never ignored.
fn refuse_unenforced(d: &Document, place: &str) -> Result<()> {
    let given = [
        ("daily_send_cap", d.daily_send_cap.is_some()),
        ("allowed_to_prefixes", d.allowed_to_prefixes.is_some()),
        ("allowed_from_domains", d.allowed_from_domains.is_some()),
        ("allowed_to_domains", d.allowed_to_domains.is_some()),
        ("dedup_window", d.dedup_window.is_some()),
        ("approval_over_usd", d.approval_over_usd.is_some()),
    ];
    if let Some((field, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(Error::policy(format!(
            "`{}` is not enforced yet; remove it",
            at(place, field)
        )));
    }
    match d.recurring {
        None | Some(Recurring::Word(RecurringWord::Deny)) => {}
        Some(_) => {
            return Err(Error::policy(format!(
                "`{}` other than `deny` is not enforced yet; remove it",
                at(place, "recurring")
            )));
        }
    }
    if d.on_ledger_unavailable == Some(OnLedgerUnavailable::AllowReads) {
        return Err(Error::policy(format!(
            "`{}` other than `deny` is not enforced yet; remove it",
            at(place, "on_ledger_unavailable")
        )));
    }
    Ok(())
}

fn refuse_contradictions(d: &Document, place: &str) -> Result<()> {
    if d.expires_in.is_some() && d.expires_at.is_some() {
        return Err(Error::policy(format!(
            "`{}` and `{}` are both given; keep one",
            at(place, "expires_in"),
            at(place, "expires_at")
        )));
    }
    for (kind, field, id) in [
        ("label", "label", &d.label),
        ("agent", "agent_id", &d.agent_id),
        ("run", "agent_run_id", &d.agent_run_id),
        ("key", "parent", &d.parent),
    ] {
        if let Some(id) = id {
            validate_id(kind, id)
                .map_err(|e| Error::policy(format!("`{}`: {}", at(place, field), e.message())))?;
        }
    }
    for group in d.groups.iter().flatten() {
        validate_id("group", &group.name)
            .map_err(|e| Error::policy(format!("`{}`: {}", at(place, "groups"), e.message())))?;
    }
    Ok(())
}

/// The vendors that a document names, without asking whether they exist.
pub(crate) fn vendor_names(d: &Document) -> Result<Vec<String>> {
    let by_endpoints = match &d.allowed_endpoints {
        Some(ByVendor::By(by)) => by.keys().cloned().collect(),
        _ => Vec::new(),
    };
    let names = match (&d.vendor, &d.vendors) {
        (Some(one), None) => vec![one.clone()],
        (None, Some(several)) => several.clone(),
        (Some(one), Some(several)) if several == std::slice::from_ref(one) => several.clone(),
        (Some(_), Some(_)) => {
            return Err(Error::policy("`vendor` and `vendors` are both given; keep one"));
        }
        (None, None) => by_endpoints,
    };
    if names.is_empty() {
        return Err(Error::policy(
            "the policy opens no vendor; add \"vendor\": \"stripe\"",
        ));
    }
    let distinct: BTreeSet<_> = names.iter().collect();
    if distinct.len() != names.len() {
        return Err(Error::policy("`vendors` names a vendor twice"));
    }
    Ok(names)
}

/// The vendors that the key opens: those of the document, narrowed.
fn opened(base: &Document, catalogue: &dyn Catalogue) -> Result<Vec<&'static str>> {
    let known = catalogue.vendors();
    let mut opened = Vec::new();
    for name in vendor_names(base)? {
        let vendor = known.iter().find(|vendor| **vendor == name).ok_or_else(|| {
            Error::policy(format!(
                "{name:?} is not a vendor that is built in; there is {}{}",
                known.join(", "),
                did_you_mean(&name, known.iter().copied())
            ))
        })?;
        let narrowed_away = base.narrowed.iter().any(|layer| {
            let mut wanted = layer.vendors.iter().flatten().chain(&layer.vendor).peekable();
            wanted.peek().is_some() && !wanted.any(|w| *w == name)
        });
        if !narrowed_away {
            opened.push(*vendor);
        }
    }
    if opened.is_empty() {
        return Err(Error::policy("the narrowings leave no vendor"));
    }
    for (place, document) in documents(base) {
        vendor_keys(document, &place, &vendor_names(base)?)?;
    }
    Ok(opened)
}

/// Fields that are given by vendor may name only vendors that the policy opens.
fn vendor_keys(d: &Document, place: &str, names: &[String]) -> Result<()> {
    fn check<T>(field: Option<&ByVendor<T>>, name: &str, vendors: &[&str]) -> Result<()> {
        match field {
            Some(ByVendor::By(by)) => by
                .keys()
                .try_for_each(|vendor| known_vendor(vendor, vendors, name)),
            Some(ByVendor::All(_)) if vendors.len() > 1 => Err(Error::policy(format!(
                "`{name}` must say which vendor it is for, because the policy opens {}; write {{\"{}\": …}}",
                vendors.join(", "),
                vendors.first().copied().unwrap_or("stripe")
            ))),
            _ => Ok(()),
        }
    }
    let vendors: Vec<&str> = names.iter().map(String::as_str).collect();
    check(
        d.allowed_endpoints.as_ref(),
        &at(place, "allowed_endpoints"),
        &vendors,
    )?;
    check(
        d.denied_endpoints.as_ref(),
        &at(place, "denied_endpoints"),
        &vendors,
    )?;
    check(
        d.allowed_customers.as_ref(),
        &at(place, "allowed_customers"),
        &vendors,
    )?;
    check(
        d.allowed_accounts.as_ref(),
        &at(place, "allowed_accounts"),
        &vendors,
    )?;
    check(d.params.as_ref(), &at(place, "params"), &vendors)?;
    check(
        d.operation_costs.as_ref(),
        &at(place, "operation_costs"),
        &vendors,
    )?;
    check(d.secret.as_ref(), &at(place, "secret"), &vendors)
}

/// A field's value for one vendor, with its place.
fn for_vendor<'d, T>(
    field: Option<&'d ByVendor<T>>,
    place: &str,
    name: &str,
    vendor: &str,
) -> Option<(String, &'d T)> {
    match field? {
        ByVendor::All(value) => Some((at(place, name), value)),
        ByVendor::By(by) => by
            .get(vendor)
            .map(|value| (at(place, &format!("{name}.{vendor}")), value)),
    }
}

fn vendor_rules(base: &Document, routes: Routes) -> Result<VendorRules> {
    let mut layers = Vec::new();
    let mut costs: Vec<CostRule> = Vec::new();
    for (place, document) in documents(base) {
        merge_costs(document, &place, &routes, &mut costs)?;
        let layer = layer_rules(document, &place, &routes, &costs)?;
        refuse_wider(&layer, &layers, &routes)?;
        layers.push(layer);
    }
    let possible = |operation| {
        layers
            .iter()
            .all(|layer: &LayerRules| layer.endpoints.may_allow(operation))
    };
    let unknown = costs.iter().any(|cost| cost.entry.is_pattern());
    if !unknown && !routes.operations.iter().any(possible) {
        return Err(nothing_allowed(base, routes.vendor));
    }
    for cost in &costs {
        let recurring = routes
            .operations
            .iter()
            .find(|o| o.recurring && cost.entry.covers(o) != Some(false));
        if let Some(operation) = recurring {
            return Err(Error::policy(format!(
                "`{}` gives a cost to {}, which starts repeated billing; `recurring` other than `deny` is not enforced yet, so remove it",
                cost.entry.place, operation.name
            )));
        }
    }
    let secret = for_vendor(base.secret.as_ref(), "", "secret", routes.vendor);
    if let Some((place, name)) = &secret {
        validate_id("name", name).map_err(|e| Error::policy(format!("`{place}`: {}", e.message())))?;
    }
    let secret = secret.map(|(_, name)| name.clone());
    Ok(VendorRules {
        routes,
        secret,
        layers,
        costs,
    })
}

fn nothing_allowed(base: &Document, vendor: &str) -> Error {
    let line = match &base.allowed_endpoints {
        Some(ByVendor::By(_)) => format!("\"allowed_endpoints\": {{\"{vendor}\": [\"reads\"]}}"),
        _ => "\"allowed_endpoints\": [\"reads\"]".to_owned(),
    };
    Error::policy(format!("the policy allows nothing at {vendor}; add {line}"))
}

fn layer_rules(d: &Document, place: &str, routes: &Routes, costs: &[CostRule]) -> Result<LayerRules> {
    let vendor = routes.vendor;
    let entries = |field: Option<&ByVendor<Vec<String>>>, name: &str| -> Result<Option<Vec<Entry>>> {
        for_vendor(field, place, name, vendor)
            .map(|(place, items)| {
                let parse = |(index, text): (usize, &String)| {
                    let entry = Entry::parse(text, format!("{place}[{index}]"), routes)?;
                    means_something(&entry, routes, costs)?;
                    Ok(entry)
                };
                items.iter().enumerate().map(parse).collect()
            })
            .transpose()
    };
    // A document that names vendors by itself but nothing for this one allows nothing; a narrowing that says
    // nothing of endpoints restricts nothing.
    let allow = match entries(d.allowed_endpoints.as_ref(), "allowed_endpoints")? {
        None if place.is_empty() || d.allowed_endpoints.is_some() => Some(Vec::new()),
        given => given,
    };
    let deny = entries(d.denied_endpoints.as_ref(), "denied_endpoints")?.unwrap_or_default();
    let operations: Vec<_> = routes.operations.iter().map(|operation| operation.name).collect();
    let params = for_vendor(d.params.as_ref(), place, "params", vendor)
        .map(|(place, rules)| Rules::compile(rules, &place, vendor, &operations))
        .transpose()?;
    Ok(LayerRules {
        endpoints: EndpointSet::new(allow, deny, routes),
        customers: id_list(d.allowed_customers.as_ref(), place, "allowed_customers", vendor)?,
        accounts: id_list(d.allowed_accounts.as_ref(), place, "allowed_accounts", vendor)?,
        params: params.unwrap_or_default(),
    })
}

/// `METHOD /path` that no known operation fits is a typing error, unless its cost is given, which says that it
/// is meant.
fn means_something(entry: &Entry, routes: &Routes, costs: &[CostRule]) -> Result<()> {
    let known = routes
        .operations
        .iter()
        .any(|operation| entry.covers(operation) != Some(false));
    if known || !entry.is_pattern() || costs.iter().any(|cost| cost.entry.text == entry.text) {
        return Ok(());
    }
    let all: Vec<String> = routes
        .operations
        .iter()
        .map(|o| format!("{} {}", o.method, o.path))
        .collect();
    Err(Error::policy(format!(
        "`{}` {:?} fits no operation of {} that Keybrake knows{} If it is meant, give its cost: \"operation_costs\": {{{:?}: 20}}",
        entry.place,
        entry.text,
        routes.vendor,
        did_you_mean(&entry.text, all.iter().map(String::as_str)),
        entry.text,
    )))
}

fn id_list(
    field: Option<&ByVendor<Vec<String>>>,
    place: &str,
    name: &str,
    vendor: &str,
) -> Result<Option<IdList>> {
    let Some((place, ids)) = for_vendor(field, place, name, vendor) else {
        return Ok(None);
    };
    if ids.is_empty() {
        return Err(Error::policy(format!(
            "`{place}` is empty, so nothing would pass; name ids or remove it"
        )));
    }
    for id in ids {
        validate_id("id", id).map_err(|e| Error::policy(format!("`{place}`: {}", e.message())))?;
    }
    Ok(Some(IdList {
        place,
        ids: ids.iter().cloned().collect(),
    }))
}

/// A narrowing's entry that the documents before it allow nothing of is wider, and named.
fn refuse_wider(layer: &LayerRules, before: &[LayerRules], routes: &Routes) -> Result<()> {
    for base in before {
        for entry in layer.endpoints.allow.iter().flatten() {
            let mut covered = routes
                .operations
                .iter()
                .filter(|o| entry.covers(o) != Some(false))
                .peekable();
            if covered.peek().is_some() && !covered.any(|o| base.endpoints.may_allow(o)) {
                return Err(Error::policy(format!(
                    "`{}` {:?} is wider than the policy, which does not allow it",
                    entry.place, entry.text
                )));
            }
        }
        for (mine, standing) in [
            (&layer.customers, &base.customers),
            (&layer.accounts, &base.accounts),
        ] {
            if let (Some(mine), Some(standing)) = (mine, standing)
                && let Some(id) = mine.ids.difference(&standing.ids).next()
            {
                return Err(Error::policy(format!(
                    "`{}` {id:?} is wider than `{}`",
                    mine.place, standing.place
                )));
            }
        }
        for (operation, rule) in layer.params.all() {
            let standing = base
                .params
                .all()
                .filter(|(other, b)| *other == operation && b.field == rule.field);
            if let Some(why) = standing.into_iter().find_map(|(_, b)| rule.wider_than(b)) {
                return Err(Error::policy(why));
            }
        }
    }
    Ok(())
}

/// Adds a document's `operation_costs`; a narrowing may only lower what is there.
fn merge_costs(d: &Document, place: &str, routes: &Routes, costs: &mut Vec<CostRule>) -> Result<()> {
    let Some((list_place, lines)) = for_vendor(
        d.operation_costs.as_ref(),
        place,
        "operation_costs",
        routes.vendor,
    ) else {
        return Ok(());
    };
    for (text, line) in lines {
        let entry = Entry::parse(text, format!("{list_place}.{text}"), routes)?;
        let max = line.max.0;
        if let Some(ceiling) = d.max_amount_per_call_usd
            && max > ceiling.0
        {
            return Err(Error::policy(format!(
                "`{}` ${max} is above `{}` ${}, so it would never pass; lower one or raise the other",
                entry.place,
                at(place, "max_amount_per_call_usd"),
                ceiling.0
            )));
        }
        if place.is_empty() {
            costs.push(CostRule { entry, max });
            continue;
        }
        let standing = costs.iter_mut().find(|cost| cost.entry.text == *text);
        match standing {
            Some(standing) if max <= standing.max => standing.max = max,
            Some(standing) => {
                return Err(Error::policy(format!(
                    "`{}` ${max} is above the ${} of the policy",
                    entry.place, standing.max
                )));
            }
            None => {
                return Err(Error::policy(format!(
                    "`{}` is not in the policy's `operation_costs`",
                    entry.place
                )));
            }
        }
    }
    Ok(())
}

/// The budgets of the document, each with the lowest cap that a narrowing gave it; budgets that only a
/// narrowing names are added.
fn merge_lines(base: &Document) -> Result<Vec<(Line, Option<i64>)>> {
    let names = vendor_names(base)?;
    let vendors: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut merged: Vec<(Line, Option<i64>)> = Vec::new();
    for line in standing_lines(base, &base.narrowed)? {
        match merged
            .iter_mut()
            .find(|(standing, _)| standing.same_as(&line, only(&vendors)))
        {
            Some((_, limit)) => *limit = Some(limit.map_or(line.cap, |limit| limit.min(line.cap))),
            None => merged.push((line, None)),
        }
    }
    Ok(merged)
}

fn rates(base: &Document) -> Result<BTreeMap<Currency, RateRule>> {
    let mut rates = BTreeMap::new();
    for (name, line) in base.currency_rates.iter().flatten() {
        let place = format!("currency_rates.{name}");
        let currency = Currency::parse(name).ok_or_else(|| {
            Error::policy(format!(
                "`{place}`: write a currency as three letters, such as eur"
            ))
        })?;
        if currency == Currency::USD {
            return Err(Error::policy(format!(
                "`{place}`: US dollars need no rate; remove it"
            )));
        }
        let ends_ms = line.as_of.0.checked_add(line.max_age.0).ok_or_else(|| {
            Error::policy(format!(
                "`{place}`: {} and {} is out of range",
                time_text(line.as_of.0),
                line.max_age.text()
            ))
        })?;
        let rule = RateRule {
            rate: line.usd.rate,
            as_of: line.as_of,
            ends: Moment(ends_ms),
            max_age: line.max_age,
        };
        if rates.insert(currency, rule).is_some() {
            return Err(Error::policy(format!("`{place}` stands twice, in two spellings")));
        }
    }
    Ok(rates)
}

/// The groups of a document: those it names, and those it gives a budget.
fn groups(base: &Document) -> Result<Vec<String>> {
    let mut groups: Vec<String> = base
        .groups
        .iter()
        .flatten()
        .map(|group| group.name.clone())
        .collect();
    for line in standing_lines(base, &base.narrowed)? {
        if let Whose::Group(name) = line.whose
            && !groups.contains(&name)
        {
            groups.push(name);
        }
    }
    Ok(groups)
}

/// Who and what a key is issued for; what the caller of `issue` says wins over the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binding {
    /// Whose budgets the key draws on: see [`lineage`].
    pub lineage: String,
    /// The run fixed at issue, if any.
    pub run: Option<String>,
}

/// Who a key spends as: its agent, else its label, else `default`.
pub fn lineage<'a>(agent: Option<&'a str>, label: Option<&'a str>) -> &'a str {
    agent.or(label).unwrap_or("default")
}

impl CompiledPolicy {
    /// The budgets of a key issued for this binding, in the order of the document, with the lower limits that
    /// narrowing set for this key alone. A group's budget always refuses, even under an observing policy.
    ///
    /// A budget per customer has the scope id `*`: one counter for each customer. So has a budget per run when
    /// the binding has no run: the run then comes from the call's context, and a call without one must be
    /// refused (`request_malformed`).
    ///
    /// # Errors
    /// `Policy` when the lineage or the run is not an id.
    pub fn budget_refs(&self, binding: &Binding) -> Result<Vec<BudgetRef>> {
        validate_id("lineage", &binding.lineage)?;
        if let Some(run) = &binding.run {
            validate_id("run", run)?;
        }
        let refs = self.lines.iter().map(|(line, limit)| {
            let def = line.def(&binding.lineage, binding.run.as_deref(), &self.timezone);
            let enforce = !self.observe || matches!(def.scope, Scope::Group(_));
            BudgetRef {
                def,
                limit: *limit,
                enforce,
            }
        });
        Ok(refs.collect())
    }
}
