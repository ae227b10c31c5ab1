//! How fast a lane may send within the day.
//!
//! A bucket of `depth` tokens that refills one per `spacing`: in any 60 minutes at most `hour_cap` come out, so no
//! sum over the hour is kept. Its whole state is one arrival time, stored with the ledger; a limiter is built anew
//! for every decision, so a restart cannot reopen the burst and a new limit takes effect at once.
//!
//! Knows nothing of the day's limit beyond its size; that is the ledger's (`allowance`).

use std::cell::Cell;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use super::whole;
use crate::message::{DaySpan, Timestamp};

const HOUR_NANOS: u64 = 3_600_000_000_000;
pub(super) const DAY_NANOS: i64 = 24 * HOUR_NANOS as i64;
const MINUTES_PER_DAY: u16 = 24 * 60;

/// The pace of one lane on one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Tokens when nothing was sent for long: 1 or more.
    depth: NonZeroU32,
    /// No more than this many recipients in any 60 minutes: 1 or more.
    hour_cap: u64,
    /// Nanoseconds until one more token: 1 to one hour.
    spacing_nanos: u64,
}

impl Pace {
    /// `hourly` and `burst` are shares of the day's `limit`, above 0 and up to 1. H = max(1, ⌊hourly x limit⌋), depth
    /// = max(1, min(⌊burst x limit⌋, ⌊H / 2⌋)), spacing = 1 h / (H − depth + 1) rounded up.
    ///
    /// `None`, no pace, when both are 100 %: then only the ledger decides. A limit of 0 has the pace of 1; it is the
    /// ledger that refuses.
    pub fn of(limit: u64, hourly: f64, burst: f64) -> Option<Pace> {
        if hourly >= 1.0 && burst >= 1.0 {
            return None;
        }
        let hour_cap = whole(hourly * limit as f64).max(1);
        let depth = whole(burst * limit as f64).min(hour_cap / 2).clamp(1, u64::from(u32::MAX));
        let per_hour = hour_cap - depth + 1;
        Some(Pace {
            depth: NonZeroU32::new(depth as u32).unwrap_or(NonZeroU32::MIN),
            hour_cap,
            spacing_nanos: HOUR_NANOS.div_ceil(per_hour).max(1),
        })
    }

    pub fn depth(&self) -> u32 {
        self.depth.get()
    }

    pub fn hour_cap(&self) -> u64 {
        self.hour_cap
    }

    pub fn spacing(&self) -> Duration {
        Duration::from_nanos(self.spacing_nanos)
    }

    /// Tokens there are at `now`, 0 to `depth`. `arrival` as [`Pace::charge`] returned it; any time in the past, and
    /// `Timestamp(0)` for a lane that never sent, is a full bucket.
    pub fn tokens_at(&self, arrival: Timestamp, now: Timestamp) -> u64 {
        self.limiter(arrival, now).check().map_or(0, |state| u64::from(state.remaining_burst_capacity()) + 1)
    }

    /// The arrival time after `recipients` left at `now`. Always charges, also more than there were: then the debt
    /// is waited for.
    pub fn charge(&self, arrival: Timestamp, now: Timestamp, recipients: u64) -> Timestamp {
        let nanos = i64::try_from(u128::from(recipients) * u128::from(self.spacing_nanos)).unwrap_or(i64::MAX);
        Timestamp(arrival.max(now).0.saturating_add(nanos))
    }

    /// When there is a token: `now` if there is one already.
    pub fn next(&self, arrival: Timestamp, now: Timestamp) -> Timestamp {
        match self.limiter(arrival, now).check() {
            Ok(_) => now,
            Err(refused) => now.after(refused.wait_time_from(nanos(now))),
        }
    }

    /// Tokens that come to light from `now` until `then`, what there is now included, if each is used as it comes.
    ///
    /// Counted by the rate, before the spacing is rounded up: after a wait of whole hours the last of them comes some
    /// nanoseconds after `then`.
    pub fn tokens_until(&self, arrival: Timestamp, now: Timestamp, then: Timestamp) -> u64 {
        let depth = u64::from(self.depth.get());
        let elapsed = i128::from(then.0) - i128::from(arrival.max(now).0);
        let refilled = (elapsed * i128::from(self.hour_cap - depth + 1)).div_euclid(i128::from(HOUR_NANOS));
        u64::try_from(refilled.saturating_add(i128::from(depth)).max(0)).unwrap_or(u64::MAX)
    }

    /// This pace in the first hour after `before` was in force. A slower bucket may be deeper, measured in time; since
    /// used tokens are owed in time, that would forgive a part of what went out just before, and one recipient too many
    /// could leave in an hour.
    pub fn no_deeper_than(self, before: Pace) -> Pace {
        if self.spacing_nanos <= before.spacing_nanos {
            return self;
        }
        let depth = before.depth_nanos() / u128::from(self.spacing_nanos);
        let depth = u32::try_from(depth).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        Pace { depth: self.depth.min(depth), ..self }
    }

    fn depth_nanos(&self) -> u128 {
        u128::from(self.depth.get()) * u128::from(self.spacing_nanos)
    }

    /// A stored arrival time as far ahead as the bucket of any day can be at `now`: an hour. Without this one start
    /// under a wrong clock could shut a lane for years; with less, midnight would forgive what yesterday's bucket owes.
    pub fn clamp(&self, arrival: Timestamp, now: Timestamp) -> Timestamp {
        arrival.min(Timestamp(now.0.saturating_add(HOUR_NANOS as i64)))
    }

    /// governor as a pure function of (stored arrival time, now): its clock says 0 while it is built, because it
    /// counts from there, and `now` from then on.
    fn limiter(&self, arrival: Timestamp, now: Timestamp) -> Limiter {
        let quota = Quota::with_period(self.spacing()).expect("spacing is at least 1 ns").allow_burst(self.depth);
        let limiter = RateLimiter::new(quota, Stored(Cell::new(nanos(arrival))), Moment(Cell::new(Nanos::new(0))));
        limiter.clock().0.set(nanos(now));
        limiter
    }
}

type Limiter = RateLimiter<NotKeyed, Stored, Moment, StateInformationMiddleware>;

/// The bucket's arrival time, as a governor state of one cell.
struct Stored(Cell<Nanos>);

impl StateStore for Stored {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        decide(Some(self.0.get())).map(|(outcome, arrival)| {
            self.0.set(arrival);
            outcome
        })
    }
}

/// A clock that shows what it was told.
struct Moment(Cell<Nanos>);

impl Clock for Moment {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.get()
    }
}

/// Times before 1970 count as 1970: governor has no earlier ones.
fn nanos(t: Timestamp) -> Nanos {
    Nanos::new(u64::try_from(t.0).unwrap_or(0))
}

/// The sending window in local time, `08:00-20:00`. `22:00-06:00` runs through the night; `00:00-24:00` is always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Minutes after local midnight, 0 to 1,440; never equal.
    from: u16,
    until: u16,
}

/// The text is not `HH:MM-HH:MM` with two different times from 00:00 to 24:00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sending window looks like 08:00-20:00, with two different times from 00:00 to 24:00")]
pub struct WindowError;

impl Window {
    pub const WHOLE_DAY: Window = Window { from: 0, until: MINUTES_PER_DAY };

    pub fn is_whole_day(self) -> bool {
        self == Window::WHOLE_DAY
    }

    /// Minutes after local midnight at which the window opens.
    pub fn from_minute(self) -> u16 {
        self.from
    }

    /// Minutes after local midnight at which it closes; less than `from_minute` when it runs through the night.
    pub fn until_minute(self) -> u16 {
        self.until
    }

    /// Length on a day of 24 hours, above 0 and up to 24.
    pub fn hours(self) -> f64 {
        let minutes = (self.until + MINUTES_PER_DAY - self.from) % MINUTES_PER_DAY;
        f64::from(if minutes == 0 { MINUTES_PER_DAY } else { minutes }) / 60.0
    }
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let (from, until) = text.split_once('-').ok_or(WindowError)?;
        let (from, until) = (minute_of_day(from)?, minute_of_day(until)?);
        if from % MINUTES_PER_DAY == until % MINUTES_PER_DAY && (from, until) != (0, MINUTES_PER_DAY) {
            return Err(WindowError);
        }
        Ok(Window { from: from % MINUTES_PER_DAY, until: if until == 0 { MINUTES_PER_DAY } else { until } })
    }
}

fn minute_of_day(text: &str) -> Result<u16, WindowError> {
    let (hour, minute) = text.trim().split_once(':').ok_or(WindowError)?;
    let two_digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
    if !two_digits(hour) || !two_digits(minute) {
        return Err(WindowError);
    }
    let number = |part: &str| part.parse::<u16>().map_err(|_| WindowError);
    let (hour, minute) = (number(hour)?, number(minute)?);
    let minutes = hour * 60 + minute;
    if minute > 59 || minutes > MINUTES_PER_DAY { Err(WindowError) } else { Ok(minutes) }
}

/// The hours of one day in which mail may leave by `new`, as moments. Each part is [from, until); either may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHours {
    pub early: (Timestamp, Timestamp),
    pub late: (Timestamp, Timestamp),
}

impl OpenHours {
    /// The window `00:00-24:00`, on any day.
    pub const ALWAYS: OpenHours =
        OpenHours { early: (Timestamp(i64::MIN), Timestamp::NEVER), late: (Timestamp::NEVER, Timestamp::NEVER) };

    /// The first moment, `now` or later, at which the window is open; `None` when it stays shut for the rest of the
    /// day.
    pub fn next_open(&self, now: Timestamp) -> Option<Timestamp> {
        let opens = |(from, until): (Timestamp, Timestamp)| (from < until && now < until).then(|| now.max(from));
        opens(self.early).or_else(|| opens(self.late))
    }

    pub fn is_open(&self, now: Timestamp) -> bool {
        self.next_open(now) == Some(now)
    }

    /// Nanoseconds the window is open from `now` until `then`. Days after that of `day` count as open at the same
    /// hours, 24 hours apart.
    pub fn open_nanos(&self, now: Timestamp, then: Timestamp, day: DaySpan) -> i64 {
        if *self == OpenHours::ALWAYS {
            return then.0.saturating_sub(now.0).max(0);
        }
        let today = self.overlap(now, then.min(day.ends));
        let beyond = then.0.saturating_sub(day.ends.0.max(now.0)).max(0);
        let whole_days = (beyond / DAY_NANOS).saturating_mul(self.overlap(day.starts, day.ends));
        let last_day = self.overlap(day.starts, Timestamp(day.starts.0.saturating_add(beyond % DAY_NANOS)));
        today.saturating_add(whole_days).saturating_add(last_day)
    }

    fn overlap(&self, from: Timestamp, until: Timestamp) -> i64 {
        let part =
            |(opens, closes): (Timestamp, Timestamp)| closes.min(until).0.saturating_sub(opens.max(from).0).max(0);
        part(self.early) + part(self.late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Day;

    const HOUR: i64 = HOUR_NANOS as i64;

    /// One hour, as a bucket sees it, of a sender that tries every nanosecond a token comes.
    fn sent_in(pace: &Pace, from: Timestamp, until: Timestamp, arrival: Timestamp) -> u64 {
        let (mut now, mut arrival, mut sent) = (from, arrival, 0);
        while now < until {
            let tokens = pace.tokens_at(arrival, now);
            assert!(tokens > 0 && tokens <= u64::from(pace.depth()));
            arrival = pace.charge(arrival, now, tokens);
            sent += tokens;
            let next = pace.next(arrival, now);
            assert!(next > now, "all tokens were taken, so the next comes later");
            now = next;
        }
        sent
    }

    #[test]
    fn no_hour_lets_more_out_than_its_cap_and_a_greedy_one_reaches_it() {
        for limit in [1, 4, 5, 10, 50, 75, 253, 1000, 12_000, 100_000] {
            for (hourly, burst) in [(0.2, 0.02), (0.05, 0.005), (0.5, 0.5), (1.0, 0.02), (0.1, 1.0)] {
                let pace = Pace::of(limit, hourly, burst).unwrap();
                let start = Timestamp::from_seconds(1_000_000);
                let sent = sent_in(&pace, start, start.after(Duration::from_secs(3600)), Timestamp(0));
                assert!(sent <= pace.hour_cap(), "limit {limit} at {hourly}, {burst}: {sent} > {}", pace.hour_cap());
                assert!(sent + 1 >= pace.hour_cap(), "limit {limit} at {hourly}, {burst}: only {sent}");
            }
        }
    }

    /// Random senders against an exact sliding window of 60 minutes.
    #[test]
    fn any_sixty_minutes_of_a_random_sender_stay_under_the_cap() {
        for seed in 0..200u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limit = 1 + (random.f64() * random.f64() * 5_000.0) as u64;
            let pace =
                Pace::of(limit, [0.05, 0.2, 0.7][random.usize(..3)], [0.005, 0.02, 0.5][random.usize(..3)]).unwrap();
            let mut now = Timestamp::from_seconds(1_000_000);
            let mut arrival = Timestamp(random.i64(0..now.0 * 2).min(now.0 + HOUR));
            let mut window: std::collections::VecDeque<(i64, u64)> = Default::default();
            let mut in_window = 0;
            for _ in 0..500 {
                let wanted = random.u64(1..=limit);
                let granted = pace.tokens_at(arrival, now).min(wanted);
                if granted > 0 {
                    arrival = pace.charge(arrival, now, granted);
                    window.push_back((now.0, granted));
                    in_window += granted;
                }
                while window.front().is_some_and(|(at, _)| *at <= now.0 - HOUR) {
                    in_window -= window.pop_front().unwrap().1;
                }
                assert!(in_window <= pace.hour_cap(), "seed {seed}: {in_window} > {} at {now:?}", pace.hour_cap());
                now = if random.bool() { pace.next(arrival, now) } else { Timestamp(now.0 + random.i64(0..HOUR / 3)) };
            }
        }
    }

    #[test]
    fn charging_is_what_a_long_lived_limiter_does() {
        for seed in 0..50u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let pace = Pace::of(random.u64(1..10_000_000), 0.2, 0.02).unwrap();
            let mut now = Timestamp::from_seconds(1_800_000_000);
            let long_lived = pace.limiter(Timestamp(0), now);
            let mut arrival = Timestamp(0);
            for _ in 0..200 {
                long_lived.clock().0.set(nanos(now));
                let wanted = NonZeroU32::new(random.u32(1..=pace.depth())).unwrap();
                let granted = long_lived.check_n(wanted).unwrap().is_ok();
                assert_eq!(granted, pace.tokens_at(arrival, now) >= u64::from(wanted.get()), "seed {seed}");
                if granted {
                    arrival = pace.charge(arrival, now, u64::from(wanted.get()));
                }
                now = Timestamp(now.0 + random.i64(0..2 * pace.spacing_nanos as i64));
            }
        }
    }

    #[test]
    fn one_a_day_and_ten_million_a_day_are_exact() {
        let slow = Pace::of(1, 0.2, 0.02).unwrap();
        let now = Timestamp::from_seconds(1_800_000_000);
        let arrival = slow.charge(Timestamp(0), now, 1);
        assert_eq!(slow.tokens_at(arrival, Timestamp(now.0 + HOUR - 1)), 0);
        assert_eq!(slow.tokens_at(arrival, Timestamp(now.0 + HOUR)), 1);
        assert_eq!(slow.next(arrival, now), Timestamp(now.0 + HOUR));

        let fast = Pace::of(10_000_000, 0.2, 0.02).unwrap();
        let arrival = fast.charge(Timestamp(0), now, 200_000);
        assert_eq!(fast.tokens_at(arrival, now), 0);
        assert_eq!(fast.next(arrival, now), Timestamp(now.0 + 1_999_999));
        assert_eq!(fast.tokens_at(arrival, Timestamp(now.0 + 1_999_998)), 0);
        assert_eq!(fast.tokens_at(arrival, Timestamp(now.0 + 1_999_999)), 1);
    }

    #[test]
    fn tokens_until_a_time_are_those_a_greedy_sender_would_get() {
        let now = Timestamp::from_seconds(1_800_000_000);
        for limit in [1, 50, 253, 1000] {
            let pace = Pace::of(limit, 0.2, 0.02).unwrap();
            for minutes in [1, 15, 60, 240] {
                let then = now.after(Duration::from_secs(minutes * 60));
                let just_after = Timestamp(then.0 + 1000); // the spacing is rounded up, by less than 1 ns a token
                assert_eq!(pace.tokens_until(Timestamp(0), now, then), sent_in(&pace, now, just_after, Timestamp(0)));
            }
        }
        let pace = Pace::of(50, 0.2, 0.02).unwrap();
        assert_eq!(
            pace.tokens_until(now.after(Duration::from_secs(600)), now, now),
            0,
            "in debt until after the deadline"
        );
        assert!(pace.tokens_until(Timestamp(0), now, Timestamp::NEVER) > 0);
    }

    #[test]
    fn a_wrong_clock_cannot_shut_a_lane_for_long() {
        let pace = Pace::of(1000, 0.2, 0.02).unwrap();
        let now = Timestamp::from_seconds(1_800_000_000);
        let clamped = pace.clamp(Timestamp::from_seconds(9_000_000_000), now);
        assert_eq!(clamped, Timestamp(now.0 + HOUR_NANOS as i64));
        assert_eq!(pace.clamp(Timestamp(5), now), Timestamp(5));
    }

    #[test]
    fn numbers_far_out_neither_overflow_nor_divide_by_zero() {
        let now = Timestamp::from_seconds(1_800_000_000);
        for limit in [0, 1, u64::MAX] {
            let pace = Pace::of(limit, 0.2, 0.02).unwrap();
            assert!(pace.tokens_at(Timestamp(0), now) >= 1);
            assert!(pace.charge(Timestamp::NEVER, now, u64::MAX) == Timestamp::NEVER);
            assert_eq!(pace.tokens_at(Timestamp::NEVER, now), 0);
        }
    }

    #[test]
    fn windows_are_read_strictly() {
        for (text, from, until, hours) in [
            ("00:00-24:00", 0, 1440, 24.0),
            ("08:00-20:30", 480, 1230, 12.5),
            ("22:00-06:00", 1320, 360, 8.0),
            ("22:00-00:00", 1320, 1440, 2.0),
        ] {
            let window: Window = text.parse().unwrap();
            assert_eq!((window.from_minute(), window.until_minute(), window.hours()), (from, until, hours), "{text}");
        }
        for text in
            ["", "08:00", "8:00-20:00", "08:00-08:00", "08:60-09:00", "08:00-24:01", "+8:00-09:00", "00:00-00:00"]
        {
            assert_eq!(text.parse::<Window>(), Err(WindowError), "{text:?}");
        }
    }

    #[test]
    fn open_hours_say_when_they_open_and_how_long_they_last() {
        let at = |hour: i64| Timestamp(hour * HOUR);
        let day = DaySpan { day: Day(0), starts: at(0), ends: at(24) };
        let office = OpenHours { early: (at(0), at(0)), late: (at(8), at(20)) };
        let night = OpenHours { early: (at(0), at(6)), late: (at(22), at(24)) };
        assert_eq!(office.next_open(at(3)), Some(at(8)));
        assert_eq!(office.next_open(at(20)), None);
        assert!(office.is_open(at(8)) && !office.is_open(at(20)));
        assert_eq!(night.next_open(at(7)), Some(at(22)));
        for (hours, from, until, expect) in [
            (office, 7, 9, 1),
            (office, 19, 32, 1),
            (office, 19, 33, 2),
            (office, 0, 72, 36),
            (night, 23, 25, 2),
            (OpenHours::ALWAYS, 7, 100, 93),
            (office, 9, 7, 0),
        ] {
            assert_eq!(hours.open_nanos(at(from), at(until), day), expect * HOUR, "{from} to {until}");
        }
    }

    #[test]
    fn another_pace_at_midnight_lets_no_more_out_in_an_hour_than_the_larger_of_both() {
        for seed in 0..3000u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limits = [random.u64(1..600), random.u64(1..600)];
            let (hourly, burst) =
                if random.bool() { (0.2, 0.02) } else { (0.05 + 0.9 * random.f64(), 0.3 * random.f64() + 0.001) };
            let paces = limits.map(|limit| Pace::of(limit, hourly, burst).expect("a pace"));
            let midnight = Timestamp(20_000 * DAY_NANOS);
            let mut now = Timestamp(midnight.0 - random.i64(0..2 * HOUR_NANOS as i64));
            let mut arrival = Timestamp(0);
            let mut sent: Vec<Timestamp> = Vec::new();
            let eager = random.bool();
            while now.0 < midnight.0 + HOUR_NANOS as i64 {
                let pace = if now < midnight { paces[0] } else { paces[1].no_deeper_than(paces[0]) };
                arrival = pace.clamp(arrival, now);
                let tokens = pace.tokens_at(arrival, now);
                let used = if eager || random.u8(..4) == 0 { tokens } else { random.u64(..=tokens) };
                if used > 0 {
                    arrival = pace.charge(arrival, now, used);
                    sent.extend(std::iter::repeat_n(now, used as usize));
                }
                let next = pace.next(arrival, Timestamp(now.0 + 1));
                let next = if now < midnight { next.min(midnight) } else { next };
                now = if random.u8(..if eager { 40 } else { 4 }) == 0 {
                    Timestamp(next.0 + random.i64(0..HOUR_NANOS as i64 / 4))
                } else {
                    next
                };
            }
            let cap = paces[0].hour_cap().max(paces[1].hour_cap()) as usize;
            for (i, from) in sent.iter().enumerate() {
                let within = sent[i..].iter().take_while(|at| at.0 < from.0 + HOUR_NANOS as i64).count();
                assert!(
                    within <= cap,
                    "seed {seed}: {within} in an hour, {cap} allowed, limits {limits:?} {hourly} {burst}"
                );
            }
        }
    }
}
