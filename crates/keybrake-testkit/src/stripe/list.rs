//! Pages of a list: newest first, with cursors and `created` filters.

use serde_json::{Value, json};

use super::error::ApiError;
use super::form::Params;
use super::number::usize_of;
use super::world::{Record, Table};

/// One page of a table's rows that `keep` wants.
pub(super) fn page<T: Record>(
    table: &Table<T>,
    params: &Params,
    url: &str,
    keep: impl Fn(&T) -> bool,
) -> Result<Value, ApiError> {
    let limit = limit(params)?;
    let created = created(params)?;
    let wanted = |row: &&T| keep(row) && created.iter().all(|bound| bound.holds(row.created()));
    let cursor = |name: &str| -> Result<Option<usize>, ApiError> {
        match params.text(name)? {
            None => Ok(None),
            Some(id) => match table.position(id) {
                Some(at) => Ok(Some(at)),
                None => Err(ApiError::no_such_param(name, T::NOUN, id)),
            },
        }
    };
    let (after, before) = (cursor("starting_after")?, cursor("ending_before")?);
    let rows = table.rows();
    let more = limit.saturating_add(1);
    // One row more than asked for tells whether there are more.
    let mut found: Vec<&T> = match (after, before) {
        (Some(_), Some(_)) => {
            return Err(ApiError::request(
                "You may only specify one of these parameters: starting_after, ending_before.",
            ));
        }
        (None, None) => rows.iter().rev().filter(wanted).take(more).collect(),
        (Some(at), None) => rows
            .get(..at)
            .unwrap_or_default()
            .iter()
            .rev()
            .filter(wanted)
            .take(more)
            .collect(),
        (None, Some(at)) => {
            let newer = rows.get(at.saturating_add(1)..).unwrap_or_default();
            newer.iter().filter(wanted).take(more).collect()
        }
    };
    let has_more = found.len() > limit;
    found.truncate(limit);
    if before.is_some() {
        found.reverse();
    }
    let data: Vec<Value> = found.into_iter().map(Record::render).collect();
    Ok(json!({"object": "list", "data": data, "has_more": has_more, "url": url}))
}

/// `limit`, 1 to 100, 10 by default.
pub(super) fn limit(params: &Params) -> Result<usize, ApiError> {
    match params.integer("limit")? {
        None => Ok(10),
        Some(limit) if (1..=100).contains(&limit) => Ok(usize_of(limit)),
        Some(limit) if limit < 1 => Err(ApiError::invalid(
            "limit",
            "This value must be greater than or equal to 1.",
        )
        .code("parameter_invalid_integer")),
        Some(_) => Err(
            ApiError::invalid("limit", "This value must be less than or equal to 100.")
                .code("parameter_invalid_integer"),
        ),
    }
}

#[derive(Debug)]
enum Bound {
    At(i64),
    After(i64),
    From(i64),
    Before(i64),
    Until(i64),
}

impl Bound {
    fn holds(&self, created: i64) -> bool {
        match *self {
            Self::At(time) => created == time,
            Self::After(time) => created > time,
            Self::From(time) => created >= time,
            Self::Before(time) => created < time,
            Self::Until(time) => created <= time,
        }
    }
}

/// `created=…` or `created[gt|gte|lt|lte]=…`, Unix seconds.
fn created(params: &Params) -> Result<Vec<Bound>, ApiError> {
    if !params.has("created") {
        return Ok(Vec::new());
    }
    if let Ok(Some(_)) = params.text("created") {
        return Ok(params.integer("created")?.map(Bound::At).into_iter().collect());
    }
    let pairs = params.map("created")?.unwrap_or_default();
    pairs
        .into_iter()
        .map(|(name, value)| {
            let time = value
                .trim()
                .parse()
                .map_err(|_| ApiError::invalid_integer("created", value))?;
            match name {
                "gt" => Ok(Bound::After(time)),
                "gte" => Ok(Bound::From(time)),
                "lt" => Ok(Bound::Before(time)),
                "lte" => Ok(Bound::Until(time)),
                other => Err(ApiError::invalid(
                    "created",
                    format!("Received unknown parameter: created[{other}]"),
                )
                .code("parameter_unknown")),
            }
        })
        .collect()
}
