//! Texts for people: tables, times, amounts, colour.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use keybrake::Usd;
use keybrake::audit::printable;
use keybrake::policy::BudgetView;

use crate::failure::Failure;

/// Colour, if there is any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.with("33", text)
    }
}

/// A ledger's URL as it is said: `redis://kb-prod:6379 ns=prod`.
pub(crate) fn ledger_name(url: &str) -> String {
    match url.split_once("?ns=") {
        Some((place, name)) if url.starts_with("redis") => format!("{place} ns={name}"),
        _ => url.to_owned(),
    }
}

/// A table without lines: a header, then rows. Columns whose name starts with `>` are set to the right.
pub(crate) struct Rows {
    table: Table,
}

impl Rows {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.force_no_tty();
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
        for (at, name) in columns.iter().enumerate() {
            if let Some(column) = table.column_mut(at) {
                column.set_padding((0, 2));
                if name.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table }
    }

    /// Adds a row; hostile characters in it are replaced.
    pub(crate) fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.table
            .add_row(cells.into_iter().map(|cell| printable(cell.as_ref())));
    }

    /// The table as text, the header bold where there is colour.
    pub(crate) fn text(&self, paint: Paint) -> String {
        let mut lines = Vec::new();
        for (at, line) in self.table.lines().enumerate() {
            let line = line.trim_end();
            lines.push(if at == 0 {
                paint.bold(line)
            } else {
                line.to_owned()
            });
        }
        lines.join("\n")
    }
}

/// A moment for people: `2026-11-22 01:45:58Z`.
pub(crate) fn time(ms: i64) -> String {
    let text = keybrake::audit::time_text(ms);
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock}Z"),
        _ => text,
    }
}

/// A stretch of time for people: `4 ms`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn span(ms: i64) -> String {
    let ms = ms.max(0);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// An amount for people: `$50.00`, `-$50.00`.
pub(crate) fn usd(amount: Usd) -> String {
    let text = amount.to_string();
    match text.strip_prefix('-') {
        Some(rest) => format!("-${rest}"),
        None => format!("${text}"),
    }
}

/// An amount in a budget's unit.
pub(crate) fn in_unit(amount: i64, unit: &str) -> String {
    if unit == "usd" {
        usd(Usd::from_micros(amount))
    } else {
        format!("{amount} {unit}")
    }
}

/// An amount in a budget's unit for scripts: decimal dollars or a number.
pub(crate) fn plain(amount: i64, unit: &str) -> serde_json::Value {
    if unit == "usd" {
        Usd::from_micros(amount).to_string().into()
    } else {
        amount.into()
    }
}

/// A budget's view for scripts.
pub(crate) fn view_json(view: &BudgetView) -> serde_json::Value {
    serde_json::json!({
        "name": view.name, "unit": view.unit, "per": view.per,
        "cap": plain(view.cap, &view.unit), "used": plain(view.used, &view.unit),
        "held": plain(view.held, &view.unit), "remaining": plain(view.remaining(), &view.unit),
        "resets_at": view.resets_at_ms.map(keybrake::audit::time_text),
    })
}

/// The end of a call id that tells it from others at a glance: UUIDs begin with the time, so calls of one hour
/// begin alike.
pub(crate) fn short(call_id: &str) -> &str {
    let at = call_id.len().saturating_sub(8);
    call_id.get(at..).unwrap_or(call_id)
}

/// `1 call`, `2 calls`.
pub(crate) fn count(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {one}s")
    }
}

/// Reads `24h`, `7d`, `30m`, `90s`, a day (`2026-11-01`, UTC) or an RFC 3339 time, seen from `now_ms`.
pub(crate) fn since(text: &str, now_ms: i64) -> Result<i64, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--since {text:?}: write a span such as 24h or 7d, a day such as 2026-11-01, or an RFC 3339 time"
        ))
    };
    let unit = |suffix: &str, ms: i64| Some((text.strip_suffix(suffix)?, ms));
    let span = unit("d", 86_400_000)
        .or_else(|| unit("h", 3_600_000))
        .or_else(|| unit("m", 60_000))
        .or_else(|| unit("s", 1_000));
    if let Some((number, ms)) = span
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        let span = number
            .parse::<i64>()
            .ok()
            .and_then(|number| number.checked_mul(ms));
        return Ok(now_ms.saturating_sub(span.ok_or_else(wrong)?));
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let start = day.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| wrong())?;
        return Ok(start.timestamp().as_millisecond());
    }
    let time = text.parse::<jiff::Timestamp>().map_err(|_| wrong())?;
    Ok(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_reads_spans_days_and_times() {
        let now = 1_795_312_000_000;
        assert_eq!(since("24h", now).unwrap(), now - 86_400_000);
        assert_eq!(since("7d", now).unwrap(), now - 604_800_000);
        assert_eq!(since("2026-11-01", now).unwrap(), 1_793_491_200_000);
        assert_eq!(since("2026-11-01T00:00:01Z", now).unwrap(), 1_793_491_201_000);
        for wrong in ["", "d", "yesterday", "-1d", "1.5h", "99999999999999999999d"] {
            assert_eq!(since(wrong, now).unwrap_err().code, 2, "{wrong:?}");
        }
    }

    #[test]
    fn spans_and_amounts_read_well() {
        assert_eq!([span(4), span(61_000), span(7_300_000)], ["4 ms", "61 s", "2 h"]);
        assert_eq!(usd(Usd::from_micros(-50_000_000)), "-$50.00");
        assert_eq!(in_unit(3, "calls"), "3 calls");
        assert_eq!(count(1, "call"), "1 call");
    }

    #[test]
    fn a_table_strips_what_would_move_the_cursor() {
        let mut rows = Rows::new(&["run", ">usd"]);
        rows.row(["a\u{1b}[2J", "1.00"]);
        let text = rows.text(Paint(false));
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(rows.text(Paint(true)).starts_with("\u{1b}[1m"));
    }
}
