//! Rules on request fields (`params`): what each condition asks of a value. Fails closed: a value that cannot
//! be read as the condition needs it does not hold.

use regex_lite::Regex;

use super::document::ParamRules;
use super::lines::RuleLine;
use super::reader::{did_you_mean, nearest};
use crate::error::{Error, Result};

/// A plain decimal number in millionths: an optional minus, digits without a leading zero, at most six
/// decimals. Exact; anything else is `None`.
pub(crate) fn decimal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = digits.split('.').next().unwrap_or_default();
    if whole.len() > 1 && whole.starts_with('0') {
        return None;
    }
    text.parse::<crate::money::Usd>()
        .ok()
        .map(crate::money::Usd::micros)
}

/// Whether the fields that a lookup may still pin are looked at as absent, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before a lookup: a field that is not there yet passes, unless `required` says otherwise.
    Early,
    /// The last look: everything that will be sent is there.
    Final,
}

/// One rule, compiled.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Where it stands, such as `params.refunds.create.amount`.
    pub(crate) place: String,
    pub(crate) field: String,
    equals: Option<String>,
    one_of: Option<Vec<String>>,
    max: Option<(String, i64)>,
    min: Option<(String, i64)>,
    matches: Option<(String, Regex)>,
    required: Option<bool>,
    forbidden: bool,
    /// Under `*` a rule judges only calls that carry the field, unless it is `required`.
    for_all: bool,
}

impl Rule {
    pub(crate) fn compile(line: &RuleLine, place: &str, field: &str, for_all: bool) -> Result<Self> {
        let at = |name: &str| format!("`{place}.{name}`");
        if field.is_empty() {
            return Err(Error::policy(format!("`{place}` names no field")));
        }
        if line.one_of.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::policy(format!(
                "{} is empty, so nothing would pass; name values or use `forbidden`",
                at("one_of")
            )));
        }
        let forbidden = line.forbidden == Some(true);
        let asks = line.equals.is_some()
            || line.one_of.is_some()
            || line.max.is_some()
            || line.min.is_some()
            || line.matches.is_some()
            || line.required == Some(true);
        if forbidden && asks {
            return Err(Error::policy(format!(
                "{} contradicts the other conditions of `{place}`",
                at("forbidden")
            )));
        }
        let bound = |text: &Option<String>, name: &str| {
            text.as_ref()
                .map(|text| {
                    decimal(text)
                        .map(|number| (text.clone(), number))
                        .ok_or_else(|| Error::policy(format!("{} is not a number", at(name))))
                })
                .transpose()
        };
        let (max, min) = (bound(&line.max, "max")?, bound(&line.min, "min")?);
        if let (Some((max_text, max)), Some((min_text, min))) = (&max, &min)
            && max < min
        {
            return Err(Error::policy(format!(
                "{} {max_text} is below `min` {min_text}, so nothing would pass",
                at("max")
            )));
        }
        let matches = line
            .matches
            .as_ref()
            .map(|pattern| {
                whole_value(pattern)
                    .map(|regex| (pattern.clone(), regex))
                    .map_err(|e| Error::policy(format!("{} is not a regular expression: {e}", at("matches"))))
            })
            .transpose()?;
        Ok(Self {
            place: place.to_owned(),
            field: field.to_owned(),
            equals: line.equals.clone(),
            one_of: line.one_of.clone(),
            max,
            min,
            matches,
            required: line.required,
            forbidden,
            for_all,
        })
    }

    /// Checks the rule against the fields of a request. `Err` says what failed, without the value.
    pub(crate) fn check(&self, fields: &[&[(String, String)]], stage: Stage) -> Result<(), String> {
        let all = || fields.iter().copied().flatten();
        if self.forbidden {
            let nested = |name: &str| {
                name == self.field
                    || name
                        .strip_prefix(&self.field)
                        .is_some_and(|rest| rest.starts_with('['))
            };
            if all().any(|(name, _)| nested(name)) {
                return Err(format!("`{}` must not be given", self.field));
            }
            return Ok(());
        }
        let mut values = all()
            .filter(|(name, _)| *name == self.field)
            .map(|(_, value)| value)
            .peekable();
        if values.peek().is_none() {
            return self.check_absent(&all(), stage);
        }
        values.try_for_each(|value| self.check_value(value))
    }

    fn check_absent<'f>(
        &self,
        fields: &(impl Iterator<Item = &'f (String, String)> + Clone),
        stage: Stage,
    ) -> Result<(), String> {
        let only_presence = self.equals.is_none()
            && self.one_of.is_none()
            && self.max.is_none()
            && self.min.is_none()
            && self.matches.is_none();
        let nested = fields.clone().any(|(name, _)| {
            name.strip_prefix(&self.field)
                .is_some_and(|rest| rest.starts_with('['))
        });
        if nested {
            return if only_presence {
                Ok(())
            } else {
                Err(format!("`{}` must be one value, not a structure", self.field))
            };
        }
        let needed = match self.required {
            Some(required) => required,
            None => !self.for_all && !only_presence,
        };
        if needed && stage == Stage::Final {
            Err(format!("`{}` must be given", self.field))
        } else {
            Ok(())
        }
    }

    fn check_value(&self, value: &str) -> Result<(), String> {
        let field = &self.field;
        if let Some(expected) = &self.equals
            && value != expected
        {
            return Err(format!("`{field}` must be {expected:?}"));
        }
        if let Some(allowed) = &self.one_of
            && !allowed.iter().any(|item| item == value)
        {
            return Err(format!("`{field}` must be one of {}", allowed.join(", ")));
        }
        if self.max.is_some() || self.min.is_some() {
            let number = decimal(value).ok_or_else(|| format!("`{field}` must be a plain number"))?;
            if let Some((text, max)) = &self.max
                && number > *max
            {
                return Err(format!("`{field}` must be at most {text}"));
            }
            if let Some((text, min)) = &self.min
                && number < *min
            {
                return Err(format!("`{field}` must be at least {text}"));
            }
        }
        match &self.matches {
            Some((pattern, regex)) if !regex.is_match(value) => {
                Err(format!("`{field}` must match {pattern}"))
            }
            _ => Ok(()),
        }
    }

    /// What this rule would let pass that `base` does not, said in words: a narrowing may not be wider.
    pub(crate) fn wider_than(&self, base: &Self) -> Option<String> {
        let place = &self.place;
        if let (Some((text, mine)), Some((limit, base))) = (&self.max, &base.max)
            && mine > base
        {
            return Some(format!(
                "`{place}.max` {text} is above the {limit} that the policy allows"
            ));
        }
        if let (Some((text, mine)), Some((limit, base))) = (&self.min, &base.min)
            && mine < base
        {
            return Some(format!(
                "`{place}.min` {text} is below the {limit} that the policy asks for"
            ));
        }
        let allowed = base
            .one_of
            .as_deref()
            .or(base.equals.as_ref().map(std::slice::from_ref))?;
        let mine = self
            .one_of
            .as_deref()
            .or(self.equals.as_ref().map(std::slice::from_ref))?;
        mine.iter()
            .find(|value| !allowed.contains(value))
            .map(|value| format!("`{place}` allows {value:?}, which the policy does not"))
    }
}

/// A pattern that must match the whole value. It is compiled alone first, so that it cannot close our group.
fn whole_value(pattern: &str) -> Result<Regex, regex_lite::Error> {
    Regex::new(pattern)?;
    Regex::new(&format!(r"\A(?:{pattern})\z"))
}

/// All rules of one vendor in one document, by operation name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    by_operation: Vec<(String, Vec<Rule>)>,
    for_all: Vec<Rule>,
}

impl Rules {
    /// Compiles the rules; `operations` are the vendor's operation names.
    pub(crate) fn compile(
        lines: &ParamRules,
        place: &str,
        vendor: &str,
        operations: &[&'static str],
    ) -> Result<Self> {
        let mut rules = Self::default();
        for (operation, fields) in lines {
            let for_all = operation == "*";
            if !for_all && !operations.contains(&operation.as_str()) {
                let near = nearest(operation, operations.iter().copied().chain(["*"])).unwrap_or("*");
                return Err(Error::policy(format!(
                    "`{place}.{operation}` is not an operation of {vendor}{}",
                    did_you_mean(operation, std::iter::once(near))
                )));
            }
            let compiled = fields
                .iter()
                .map(|(field, line)| {
                    Rule::compile(line, &format!("{place}.{operation}.{field}"), field, for_all)
                })
                .collect::<Result<Vec<_>>>()?;
            if for_all {
                rules.for_all = compiled;
            } else {
                rules.by_operation.push((operation.clone(), compiled));
            }
        }
        Ok(rules)
    }

    /// The rules that apply to an operation.
    pub(crate) fn of(&self, operation: &str) -> impl Iterator<Item = &Rule> {
        let own = self
            .by_operation
            .iter()
            .find(|(name, _)| name == operation)
            .map(|(_, rules)| rules.as_slice());
        own.unwrap_or_default().iter().chain(&self.for_all)
    }

    /// Every rule with the operation it stands under.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Rule)> {
        let own = self
            .by_operation
            .iter()
            .flat_map(|(name, rules)| rules.iter().map(move |rule| (name.as_str(), rule)));
        own.chain(self.for_all.iter().map(|rule| ("*", rule)))
    }
}
