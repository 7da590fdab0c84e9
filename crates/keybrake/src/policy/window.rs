//! Calendar windows in IANA time zones, from the zone data that is compiled in, so that every process of one
//! version agrees. Windows of one kind and zone tile time: each moment is in exactly one.

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};

use super::budget::{Window, WindowKind};
use super::reader::did_you_mean;
use crate::error::{Error, ErrorKind, Result};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// The time zone of this name.
///
/// # Errors
/// `Policy` with the nearest name.
pub fn zone(name: &str) -> Result<TimeZone> {
    if name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let zones = TimeZoneDatabase::bundled();
    zones.get(name).map_err(|_e| {
        let names: Vec<String> = zones.available().map(|name| name.to_string()).collect();
        let near = did_you_mean(name, names.iter().map(String::as_str));
        Error::policy(format!("{name:?} is not a time zone{near}"))
    })
}

/// The window of a kind that contains a moment; `None` for kinds without windows (rolling, run, lifetime).
///
/// A day has 23 to 25 hours where clocks change. An hour is a calendar hour, cut where the zone's offset
/// changes, so that zones which shift by half an hour still tile.
///
/// # Errors
/// `Policy` for an unknown zone (names the nearest), `Internal` for a time outside the years 1 to 9998.
pub fn current(kind: WindowKind, timezone: &str, now_ms: i64) -> Result<Option<Window>> {
    let window = match (kind, timezone) {
        (WindowKind::Rolling24h | WindowKind::Run | WindowKind::Lifetime, _) => return Ok(None),
        (WindowKind::Hour, "UTC") => even(now_ms, HOUR_MS),
        (WindowKind::Day, "UTC") => even(now_ms, DAY_MS),
        (WindowKind::Hour, name) => hour(&zone(name)?, now_ms),
        (WindowKind::Day, name) => calendar(&zone(name)?, now_ms, |date| date, |date| date.tomorrow().ok()),
        (WindowKind::Month, name) => calendar(&zone(name)?, now_ms, Date::first_of_month, |date| {
            date.last_of_month().tomorrow().ok()
        }),
    };
    window.map(Some).ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            format!("no {} window for the time {now_ms} ms", kind.as_str()),
        )
    })
}

/// Windows of one length since the epoch.
fn even(now_ms: i64, length_ms: i64) -> Option<Window> {
    let start_ms = now_ms.checked_sub(now_ms.checked_rem_euclid(length_ms)?)?;
    Some(Window {
        start_ms,
        end_ms: start_ms.checked_add(length_ms)?,
    })
}

/// From the first moment of one date to the first moment of another. Where a zone set its clocks back over
/// midnight, a date's moments are in two pieces; the later piece belongs to the next window, so that windows
/// still tile.
fn calendar(
    zone: &TimeZone,
    now_ms: i64,
    first: impl Fn(Date) -> Date,
    next: impl Fn(Date) -> Option<Date>,
) -> Option<Window> {
    let begins = |date: Date| -> Option<i64> {
        Some(
            date.to_zoned(zone.clone())
                .ok()?
                .start_of_day()
                .ok()?
                .timestamp()
                .as_millisecond(),
        )
    };
    let now: Zoned = Timestamp::from_millisecond(now_ms).ok()?.to_zoned(zone.clone());
    let mut date = first(now.date());
    let mut start_ms = begins(date)?;
    loop {
        let following = next(date)?;
        let end_ms = begins(following)?;
        if now_ms < end_ms {
            return (start_ms <= now_ms).then_some(Window { start_ms, end_ms });
        }
        (date, start_ms) = (following, end_ms);
    }
}

/// The calendar hour around a moment, cut at changes of the offset.
fn hour(zone: &TimeZone, now_ms: i64) -> Option<Window> {
    let now = Timestamp::from_millisecond(now_ms).ok()?;
    let offset_ms = i64::from(zone.to_offset(now).seconds()).checked_mul(1_000)?;
    let local = even(now_ms.checked_add(offset_ms)?, HOUR_MS)?;
    let mut window = Window {
        start_ms: local.start_ms.checked_sub(offset_ms)?,
        end_ms: local.end_ms.checked_sub(offset_ms)?,
    };
    // `preceding` is exclusive, so a change at this very moment is found by asking one later.
    let later = Timestamp::from_millisecond(now_ms.checked_add(1)?).ok()?;
    if let Some(change) = zone.preceding(later).next() {
        window.start_ms = window.start_ms.max(change.timestamp().as_millisecond());
    }
    if let Some(change) = zone.following(now).next() {
        window.end_ms = window.end_ms.min(change.timestamp().as_millisecond());
    }
    Some(window)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn hours(window: Window) -> i64 {
        (window.end_ms - window.start_ms) / HOUR_MS
    }

    #[test]
    fn days_have_23_to_25_hours_where_clocks_change() {
        for (zone, at, length) in [
            ("America/New_York", "2026-03-08T12:00:00Z", 23),
            ("America/New_York", "2026-11-01T12:00:00Z", 25),
            ("America/New_York", "2026-06-01T12:00:00Z", 24),
            ("Asia/Tokyo", "2026-03-08T12:00:00Z", 24),
            ("UTC", "2026-03-08T12:00:00Z", 24),
        ] {
            let day = current(WindowKind::Day, zone, ms(at)).unwrap().unwrap();
            assert_eq!(hours(day), length, "{zone} {at}");
        }
    }

    #[test]
    fn midnight_in_three_zones_is_three_moments() {
        let now = ms("2026-11-22T23:59:59.990Z");
        let ends = |zone: &str| current(WindowKind::Day, zone, now).unwrap().unwrap().end_ms;
        assert_eq!(ends("UTC"), ms("2026-11-23T00:00:00Z"));
        assert_eq!(ends("America/New_York"), ms("2026-11-23T05:00:00Z"));
        assert_eq!(ends("Asia/Tokyo"), ms("2026-11-23T15:00:00Z"));
    }

    #[test]
    fn months_and_hours() {
        let month = current(WindowKind::Month, "Europe/Berlin", ms("2026-03-15T00:00:00Z"))
            .unwrap()
            .unwrap();
        assert_eq!(
            (month.start_ms, month.end_ms),
            (ms("2026-02-28T23:00:00Z"), ms("2026-03-31T22:00:00Z"))
        );
        let hour = current(WindowKind::Hour, "Asia/Kolkata", ms("2026-03-15T12:10:00Z"))
            .unwrap()
            .unwrap();
        assert_eq!(
            (hour.start_ms, hour.end_ms),
            (ms("2026-03-15T11:30:00Z"), ms("2026-03-15T12:30:00Z"))
        );
        for kind in [WindowKind::Rolling24h, WindowKind::Run, WindowKind::Lifetime] {
            assert_eq!(current(kind, "UTC", 0).unwrap(), None);
        }
    }

    #[test]
    fn an_hour_is_cut_where_the_offset_changes() {
        let hour = |zone: &str, at: &str| {
            let window = current(WindowKind::Hour, zone, ms(at)).unwrap().unwrap();
            [window.start_ms, window.end_ms].map(|at| Timestamp::from_millisecond(at).unwrap().to_string())
        };
        // St. John's changed its clocks at one minute past midnight; Lord Howe shifts them by half an hour.
        for (zone, at, start, end) in [
            (
                "America/St_Johns",
                "2010-03-14T03:30:30Z",
                "2010-03-14T03:30:00Z",
                "2010-03-14T03:31:00Z",
            ),
            (
                "America/St_Johns",
                "2010-03-14T03:31:00Z",
                "2010-03-14T03:31:00Z",
                "2010-03-14T04:30:00Z",
            ),
            (
                "Australia/Lord_Howe",
                "2026-04-04T14:59:59Z",
                "2026-04-04T14:00:00Z",
                "2026-04-04T15:00:00Z",
            ),
            (
                "Australia/Lord_Howe",
                "2026-04-04T15:00:00Z",
                "2026-04-04T15:00:00Z",
                "2026-04-04T15:30:00Z",
            ),
        ] {
            assert_eq!(hour(zone, at), [start, end], "{zone} {at}");
        }
    }

    #[test]
    fn an_unknown_zone_names_the_nearest() {
        let message = zone("America/New_Yrok").unwrap_err().to_string();
        assert_eq!(
            message,
            "\"America/New_Yrok\" is not a time zone; did you mean `America/New_York`?"
        );
    }

    proptest! {
        /// Every moment is in its window, and the windows beside it begin and end where it does.
        #[test]
        fn windows_tile_time(
            zone in prop::sample::select(vec![
                "UTC", "America/New_York", "Asia/Tokyo", "Australia/Lord_Howe", "America/St_Johns", "Africa/Cairo",
                "America/Havana", "Pacific/Apia", "Asia/Kathmandu", "America/Sao_Paulo", "Antarctica/Troll",
            ]),
            kind in prop::sample::select(vec![WindowKind::Hour, WindowKind::Day, WindowKind::Month]),
            seconds in 0_i64..4_000_000_000,
        ) {
            let now = seconds * 1_000 + 7;
            let at = |time| current(kind, zone, time).unwrap().unwrap();
            let window = at(now);
            prop_assert!(window.start_ms <= now && now < window.end_ms);
            prop_assert_eq!(at(window.start_ms), window);
            prop_assert_eq!(at(window.end_ms - 1), window);
            prop_assert_eq!(at(window.end_ms).start_ms, window.end_ms);
            prop_assert_eq!(at(window.start_ms - 1).end_ms, window.start_ms);
        }
    }
}
