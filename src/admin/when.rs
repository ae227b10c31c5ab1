//! A time as an operator types it: `2026-03-05 22:00`, `22:00`, `tomorrow 22:00`, in the zone of the day.
//!
//! Times that clocks skip and times they show twice are taken like the bounds of a day are: the moment clocks skip, and
//! the first of two. Which it is stands in a note for whoever typed it. Pure.

use jiff::ToSpan;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};

use crate::message::Timestamp;

/// Furthest ahead that anything can be planned, in days.
pub const AHEAD_MOST_DAYS: i64 = 366;

/// A time that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    pub at: Timestamp,
    /// What is peculiar about it.
    pub note: Option<String>,
}

/// Why a time cannot be used; says what to type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    #[error("`{0}` is no time; write \"2026-03-05 22:00\", \"22:00\" or \"tomorrow 22:00\"")]
    Unknown(String),
    #[error("{0} has passed: it is {1}")]
    Past(String, String),
    #[error("{0} is more than a year ahead")]
    TooFar(String),
}

/// The moment that `text` names. A time alone is the next one that the clock on the wall shows.
pub fn parse(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Moment, WhenError> {
    let today = local(now, zone);
    let moment =
        match understood(text, today.date()).ok_or_else(|| WhenError::Unknown(text.escape_debug().to_string()))? {
            Typed::At(when) => moment(when, zone),
            Typed::Next(time) => {
                let first = moment(today.date().to_datetime(time), zone);
                let next = || today.date().checked_add(1.day()).map(|date| moment(date.to_datetime(time), zone));
                if first.at > now { first } else { next().unwrap_or(first) }
            }
        };
    let shown = || local(moment.at, zone).strftime("%Y-%m-%d %H:%M").to_string();
    if moment.at <= now {
        return Err(WhenError::Past(shown(), today.strftime("%Y-%m-%d %H:%M").to_string()));
    }
    if moment.at.since(now).as_secs() > AHEAD_MOST_DAYS as u64 * 86_400 {
        return Err(WhenError::TooFar(shown()));
    }
    Ok(moment)
}

enum Typed {
    At(DateTime),
    /// Today, or tomorrow if it has passed.
    Next(Time),
}

fn understood(text: &str, today: Date) -> Option<Typed> {
    // Between a date and a time a `T` is as good as a blank.
    let words: Vec<&str> = text.split([' ', 'T']).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        [clock] => Some(Typed::Next(time(clock)?)),
        [day, clock] => {
            let date = match *day {
                "today" => today,
                "tomorrow" => today.checked_add(1.day()).ok()?,
                date => written(date)?,
            };
            Some(Typed::At(date.to_datetime(time(clock)?)))
        }
        _ => None,
    }
}

/// `2026-03-05` and no other form.
fn written(text: &str) -> Option<Date> {
    let plain = text.len() == 10 && text.bytes().all(|c| c.is_ascii_digit() || c == b'-');
    text.parse().ok().filter(|_| plain)
}

/// `22:00`, `7:30` or `22:00:30`.
fn time(text: &str) -> Option<Time> {
    let mut parts = text.split(':').map(|part| {
        let plain = (1..=2).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit());
        part.parse::<i8>().ok().filter(|_| plain)
    });
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    if parts.next().is_some() {
        return None;
    }
    Time::new(hour, minute, second, 0).ok()
}

fn moment(when: DateTime, zone: &TimeZone) -> Moment {
    let ambiguous = zone.to_ambiguous_timestamp(when);
    let offset = ambiguous.offset();
    let Ok(at) = ambiguous.compatible() else { return Moment { at: Timestamp::NEVER, note: None } };
    let shown = when.strftime("%H:%M");
    match offset {
        AmbiguousOffset::Unambiguous { .. } => Moment { at: stored(at), note: None },
        AmbiguousOffset::Fold { .. } => {
            let note = format!("clocks show {shown} twice that day; the first is meant");
            Moment { at: stored(at), note: Some(note) }
        }
        AmbiguousOffset::Gap { .. } => {
            let at = zone.preceding(at).next().map_or(at, |skip| skip.timestamp());
            let then = zone.to_datetime(at).strftime("%H:%M").to_string();
            Moment { at: stored(at), note: Some(format!("clocks skip {shown} that day; {then} is meant")) }
        }
    }
}

fn stored(at: jiff::Timestamp) -> Timestamp {
    i64::try_from(at.as_nanosecond()).map_or(Timestamp::NEVER, Timestamp)
}

fn local(at: Timestamp, zone: &TimeZone) -> DateTime {
    let at = jiff::Timestamp::from_nanosecond(i128::from(at.0)).expect("64-bit nanoseconds end in 2262, jiff in 9999");
    zone.to_datetime(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn utc(text: &str) -> Timestamp {
        stored(text.parse().unwrap())
    }

    /// Tuesday 10 March 2026, 17:48 in Berlin.
    const NOW: &str = "2026-03-10T16:48:00Z";

    #[test]
    fn a_time_is_that_of_the_clock_on_the_wall() {
        for (text, at) in [
            ("2026-03-12 22:00", "2026-03-12T21:00:00Z"),
            ("2026-03-12T22:00", "2026-03-12T21:00:00Z"),
            ("2026-03-12  22:00:30", "2026-03-12T21:00:30Z"),
            ("2026-07-01 22:00", "2026-07-01T20:00:00Z"),
            ("22:00", "2026-03-10T21:00:00Z"),
            ("17:49", "2026-03-10T16:49:00Z"),
            ("today 22:00", "2026-03-10T21:00:00Z"),
            ("tomorrow 7:30", "2026-03-11T06:30:00Z"),
        ] {
            let moment = parse(text, &zone("Europe/Berlin"), utc(NOW));
            assert_eq!(moment, Ok(Moment { at: utc(at), note: None }), "{text}");
        }
    }

    #[test]
    fn a_time_alone_that_has_passed_today_is_tomorrows() {
        for text in ["17:48", "07:00"] {
            let moment = parse(text, &zone("Europe/Berlin"), utc(NOW)).unwrap();
            assert!(moment.at > utc(NOW) && moment.at <= utc("2026-03-11T16:48:00Z"), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_has_passed_or_is_too_far_is_refused_with_what_to_type() {
        let refused = |text: &str| parse(text, &zone("Europe/Berlin"), utc(NOW)).unwrap_err();
        for text in [
            "",
            "soon",
            "22",
            "25:00",
            "22:60",
            "22:00:00:00",
            "+1:00",
            "2026-02-30 22:00",
            "26-03-12 22:00",
            "22:00 tomorrow",
            "tomorrow",
            "2026-03-12",
            "20260312 22:00",
            "-00001-01-01 22:00",
            "\u{1b}[2J",
        ] {
            assert!(matches!(refused(text), WhenError::Unknown(_)), "{text}");
        }
        assert!(!refused("\u{1b}[2J").to_string().contains('\u{1b}'));
        let past = refused("2026-03-10 17:00").to_string();
        assert_eq!(past, "2026-03-10 17:00 has passed: it is 2026-03-10 17:48");
        assert!(matches!(refused("today 17:48"), WhenError::Past(..)));
        assert!(matches!(refused("2027-03-20 12:00"), WhenError::TooFar(_)));
        assert!(parse("2027-03-10 12:00", &zone("Europe/Berlin"), utc(NOW)).is_ok());
        assert!(matches!(refused("9999-12-31 23:59"), WhenError::TooFar(_)));
    }

    #[test]
    fn a_time_that_clocks_skip_is_the_moment_they_skip_it() {
        let moment = parse("2026-03-29 02:30", &zone("Europe/Berlin"), utc(NOW)).unwrap();
        assert_eq!(moment.at, utc("2026-03-29T01:00:00Z"));
        assert_eq!(moment.note.as_deref(), Some("clocks skip 02:30 that day; 03:00 is meant"));
        let odd = parse("2026-10-04 02:15", &zone("Australia/Lord_Howe"), utc("2026-10-01T00:00:00Z")).unwrap();
        assert_eq!(odd.note.as_deref(), Some("clocks skip 02:15 that day; 02:30 is meant"), "half an hour only");
    }

    #[test]
    fn a_time_that_clocks_show_twice_is_the_first_of_them() {
        let now = utc("2026-10-20T00:00:00Z");
        let moment = parse("2026-10-25 02:30", &zone("Europe/Berlin"), now).unwrap();
        assert_eq!(moment.at, utc("2026-10-25T00:30:00Z"));
        assert_eq!(moment.note.as_deref(), Some("clocks show 02:30 twice that day; the first is meant"));
        let between = parse("02:30", &zone("Europe/Berlin"), utc("2026-10-25T00:45:00Z")).unwrap();
        assert_eq!(between.at, utc("2026-10-26T01:30:00Z"), "the first has passed: the next day's");
    }
}
