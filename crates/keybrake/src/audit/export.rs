//! Rows as CSV or JSON lines, safe to open in a spreadsheet and to print on a terminal.

use std::io::Write;
use std::str::FromStr;

use super::row::{AuditRow, COLUMNS, time_text};
use super::rows::Rows;
use crate::error::{Error, ErrorKind, Result};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values, every field quoted, with a header line.
    Csv,
    /// One JSON object on each line.
    Jsonl,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "csv" => Ok(Self::Csv),
            "jsonl" => Ok(Self::Jsonl),
            "parquet" | "sql" => Err(Error::config(format!(
                "export as {name} is not available yet; use csv or jsonl"
            ))),
            _ => Err(Error::config(format!(
                "unknown export format {name:?}; use csv or jsonl"
            ))),
        }
    }
}

/// How much was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Rows written.
    pub rows: u64,
}

/// Writes all rows; `progress` hears the number of events read so far, now and then.
///
/// # Errors
/// As [`Rows::next`], and `Config` when the output cannot be written.
pub async fn write_rows(
    rows: &mut Rows<'_>,
    format: Format,
    out: &mut (dyn Write + Send),
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Exported> {
    let mut done = Exported::default();
    let mut buffer = Vec::new();
    if format == Format::Csv {
        write_csv(&mut buffer, &COLUMNS.map(str::to_owned))?;
    }
    while let Some(row) = rows.next().await? {
        match format {
            Format::Csv => write_csv(&mut buffer, &csv_fields(&row))?,
            Format::Jsonl => write_json(&mut buffer, &row)?,
        }
        done.rows = done.rows.saturating_add(1);
        if buffer.len() > 64 * 1024 {
            out.write_all(&buffer).map_err(cannot_write)?;
            buffer.clear();
            progress(rows.events_read);
        }
    }
    out.write_all(&buffer).map_err(cannot_write)?;
    out.flush().map_err(cannot_write)?;
    progress(rows.events_read);
    Ok(done)
}

fn write_csv(out: &mut Vec<u8>, fields: &[String]) -> Result<()> {
    let mut writer = csv::WriterBuilder::new()
        .quote_style(csv::QuoteStyle::Always)
        .from_writer(out);
    writer
        .write_record(fields)
        .map_err(|cause| Error::new(ErrorKind::Internal, "a row cannot be written as CSV").because(cause))?;
    writer.flush().map_err(cannot_write)
}

fn write_json(out: &mut Vec<u8>, row: &AuditRow) -> Result<()> {
    serde_json::to_writer(&mut *out, row)
        .map_err(|cause| Error::new(ErrorKind::Internal, "a row cannot be written as JSON").because(cause))?;
    out.push(b'\n');
    Ok(())
}

fn cannot_write(cause: std::io::Error) -> Error {
    Error::config("the output cannot be written").because(cause)
}

/// The fields of a row in the order of [`COLUMNS`]. Texts that came from outside are guarded; our own numbers
/// are not, so that a spreadsheet can add them up.
fn csv_fields(row: &AuditRow) -> Vec<String> {
    let text = |text: Option<&str>| guarded(text.unwrap_or_default());
    let number = |number: Option<String>| number.unwrap_or_default();
    vec![
        text(Some(&row.call_id)),
        time_text(row.called_at_ms),
        text(row.vault_key_id.as_deref()),
        text(row.agent_run_id.as_deref()),
        text(row.agent_label.as_deref()),
        text(row.vendor.as_deref()),
        text(Some(&row.operation)),
        text(row.customer_scope_id.as_deref()),
        text(Some(&row.policy_verdict)),
        number(row.status_code.map(|code| code.to_string())),
        number(row.cost_usd_parsed.map(|usd| usd.to_string())),
        cost_source(row).to_owned(),
        number(row.cap_usage_after_usd.map(|usd| usd.to_string())),
        text(row.vendor_request_id.as_deref()),
        text(row.idempotency_key.as_deref()),
        number(row.latency_ms.map(|ms| ms.to_string())),
        serde_json::to_string(&row.metadata).unwrap_or_default(),
    ]
}

const fn cost_source(row: &AuditRow) -> &'static str {
    use crate::ledger::CostSource::{Estimate, None, RateTable, Reconciled, Response};
    match row.cost_source {
        Response => "response",
        Estimate => "estimate",
        RateTable => "rate_table",
        Reconciled => "reconciled",
        None => "none",
    }
}

/// A text that no spreadsheet takes for a formula: those that begin with `= + - @` (also full-width, also after
/// blanks or control characters) get a `'` in front.
fn guarded(text: &str) -> String {
    let first = text.chars().find(|c| !c.is_whitespace() && !c.is_control());
    let formula = first.is_some_and(|c| "=+-@＝＋－＠".contains(c));
    let blank = text.starts_with(|c: char| c.is_control());
    if formula || blank {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}

/// A text that is safe on a terminal: control characters, line separators and marks that turn the direction of
/// writing are replaced by `�`, so that a name cannot move the cursor, recolour or reorder what a person reads.
pub fn printable(text: &str) -> String {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars()
        .map(|c| if hostile(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_guarded_and_plain_texts_are_not() {
        for hostile in ["=1+1", "+1", "-1", "@SUM", " =1", "\t=1", "\r1", "＝1"] {
            assert_eq!(guarded(hostile), format!("'{hostile}"));
        }
        for plain in ["run_42", "", "a=b", "0199f3-1"] {
            assert_eq!(guarded(plain), plain);
        }
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(
            printable("run\u{1b}[31m\r\n\u{202e}x"),
            "run\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}x"
        );
        assert_eq!(printable("zoë 日本"), "zoë 日本");
    }

    #[test]
    fn later_formats_are_refused_by_name() {
        let error = "parquet".parse::<Format>().unwrap_err();
        assert!(
            error.to_string().contains("parquet is not available yet"),
            "{error}"
        );
        assert!("xml".parse::<Format>().is_err());
    }
}
