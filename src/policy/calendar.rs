//! Days in the configured zone: where they begin and end, and when mail may leave during them.
//!
//! A day has the length it has: 23 or 25 hours when clocks change, none at all where a zone skipped a date. Days
//! follow each other without gap or overlap, also where clocks are set back across midnight.

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, ToSpan};

use super::pace::{OpenHours, Window};
use crate::message::{Day, DaySpan, Timestamp};

const EPOCH: Date = date(1970, 1, 1);
const HOURS_PER_DAY: i64 = 24;
/// The moments a [`Timestamp`] can name end here (2262), so every day of interest is less than this from the epoch.
const DAYS_MAX: i32 = 110_000;

/// The zone days are counted in.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    zone: TimeZone,
}

impl Calendar {
    pub fn new(zone: TimeZone) -> Self {
        Calendar { zone }
    }

    pub fn utc() -> Self {
        Calendar { zone: TimeZone::UTC }
    }

    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The day `now` lies in. Never goes back while time goes on.
    pub fn day_of(&self, now: Timestamp) -> Day {
        self.span_at(now).day
    }

    /// The day `now` lies in, with its ends. Callers keep it until `now` reaches `ends`.
    pub fn span_at(&self, now: Timestamp) -> DaySpan {
        let mut span = self.span(day_of_date(self.zone.to_datetime(instant(now)).date()));
        // Where clocks go back across midnight the local date of a moment is not the day it belongs to.
        while now >= span.ends {
            span = self.span(span.day.next());
        }
        while now < span.starts {
            span = self.span(Day(span.day.0 - 1));
        }
        span
    }

    /// Where `day` begins and ends. Empty when the zone skipped that date.
    pub fn span(&self, day: Day) -> DaySpan {
        DaySpan { day, starts: self.moment(day, 0), ends: self.moment(day.next(), 0) }
    }

    /// When `window` is open on the day of `span`.
    pub fn open_hours(&self, span: DaySpan, window: Window) -> OpenHours {
        if window.is_whole_day() {
            return OpenHours::ALWAYS;
        }
        let (from, until) = (self.moment(span.day, window.from_minute()), self.moment(span.day, window.until_minute()));
        if window.from_minute() < window.until_minute() {
            OpenHours { early: (span.starts, span.starts), late: (from, until) }
        } else {
            OpenHours { early: (span.starts, until), late: (from, span.ends) }
        }
    }

    /// `minute` minutes after local midnight by the clock on the wall. A time that clocks skip is the moment they
    /// skip it; one they show twice is the first.
    fn moment(&self, day: Day, minute: u16) -> Timestamp {
        let day = if minute >= 24 * 60 { day.next() } else { day };
        let (hour, minute) = ((minute / 60 % 24) as i8, (minute % 60) as i8);
        let local = date_of_day(day).at(hour, minute, 0, 0);
        let moment = self.zone.to_timestamp(local).map_or(i128::from(i64::MAX), jiff::Timestamp::as_nanosecond);
        Timestamp(moment.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
    }
}

/// The civil date of a day; stops at the years a [`Timestamp`] can name.
pub fn date_of_day(day: Day) -> Date {
    EPOCH.saturating_add(day.0.clamp(-DAYS_MAX, DAYS_MAX).days())
}

/// The day of a civil date.
pub fn day_of_date(date: Date) -> Day {
    let since: SignedDuration = date.duration_since(EPOCH);
    Day((since.as_hours() / HOURS_PER_DAY) as i32)
}

fn instant(now: Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_nanosecond(i128::from(now.0)).expect("64-bit nanoseconds end in 2262, jiff in 9999")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000_000;

    fn calendar(zone: &str) -> Calendar {
        Calendar::new(TimeZone::get(zone).unwrap())
    }

    fn hours(calendar: &Calendar, date: Date) -> f64 {
        let span = calendar.span(day_of_date(date));
        (span.ends.0 - span.starts.0) as f64 / HOUR as f64
    }

    #[test]
    fn a_date_reads_back_from_its_day() {
        for date in [date(1970, 1, 1), date(1969, 12, 31), date(2026, 3, 2), date(2262, 4, 11), date(1700, 1, 1)] {
            assert_eq!(date_of_day(day_of_date(date)), date);
        }
        assert_eq!(day_of_date(date(1970, 1, 2)), Day(1));
        assert_eq!(day_of_date(date(1969, 12, 31)), Day(-1));
    }

    #[test]
    fn days_are_as_long_as_the_zone_makes_them() {
        let cases = [
            ("UTC", date(2026, 3, 29), 24.0),
            ("Europe/Berlin", date(2026, 3, 29), 23.0),
            ("Europe/Berlin", date(2026, 10, 25), 25.0),
            ("Europe/Berlin", date(2026, 3, 30), 24.0),
            ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
            ("America/Sao_Paulo", date(2018, 11, 4), 23.0), // midnight itself is skipped
            ("Pacific/Apia", date(2011, 12, 30), 0.0),      // the whole date is skipped
        ];
        for (zone, date, expect) in cases {
            assert_eq!(hours(&calendar(zone), date), expect, "{zone} {date}");
        }
    }

    #[test]
    fn days_follow_each_other_also_where_clocks_go_back_across_midnight() {
        // St. John's set clocks back at 00:01, to 23:01 of the day before, until 2011.
        let zones = [
            ("America/St_Johns", date(2010, 11, 6)),
            ("Europe/Berlin", date(2026, 3, 28)),
            ("Pacific/Apia", date(2011, 12, 28)),
        ];
        for (zone, first) in zones {
            let calendar = calendar(zone);
            let mut now = calendar.span(day_of_date(first)).starts;
            let mut before = calendar.day_of(now);
            for _ in 0..(4 * 24 * 60) {
                let span = calendar.span_at(now);
                assert!(span.starts <= now && now < span.ends, "{zone} {now:?} {span:?}");
                assert!(span.day >= before, "{zone} {now:?}: day {:?} after {before:?}", span.day);
                before = span.day;
                now = Timestamp(now.0 + 60_000_000_000);
            }
        }
    }

    #[test]
    fn the_last_moment_of_time_has_a_day() {
        for now in [Timestamp(i64::MAX - 1), Timestamp(0), Timestamp(-1)] {
            let span = Calendar::utc().span_at(now);
            assert!(span.starts <= now && now < span.ends, "{now:?} {span:?}");
        }
    }

    #[test]
    fn open_hours_follow_the_clock_on_the_wall() {
        let berlin = calendar("Europe/Berlin");
        let spring = berlin.span(day_of_date(date(2026, 3, 29)));
        let open = berlin.open_hours(spring, "08:00-20:00".parse().unwrap());
        assert_eq!(open.late.0.0 - spring.starts.0, 7 * HOUR, "eight o'clock comes after seven hours");
        let night = berlin.open_hours(spring, "22:00-06:00".parse().unwrap());
        assert_eq!(night.early, (spring.starts, Timestamp(spring.starts.0 + 5 * HOUR)));
        assert_eq!(night.late.1, spring.ends);
        assert_eq!(berlin.open_hours(spring, Window::WHOLE_DAY), OpenHours::ALWAYS);
    }
}
