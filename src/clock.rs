//! The only place that asks the system for the time.
//!
//! Everything that decides takes `now` as an argument. A manual clock lets a test live through sixty days; a fast
//! clock lets the demonstration squeeze a day into seconds.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::message::Timestamp;

/// Tells the time of the ramp. Network deadlines do not use it: they are real time always.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;

    /// How long to sleep in real time until the clock shows `then`; zero when it already does.
    fn real_time_until(&self, then: Timestamp) -> Duration;

    /// How much real time has passed since the clock showed `then`; zero when it is still to come.
    fn real_time_since(&self, then: Timestamp) -> Duration {
        self.now().since(then)
    }
}

/// Wall clock of the machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    fn real_time_until(&self, then: Timestamp) -> Duration {
        then.since(self.now())
    }
}

/// Runs `speed` times as fast as real time, from a start of its own.
#[derive(Debug, Clone)]
pub struct FastClock {
    start: Timestamp,
    /// Empty: it stands still at `start`.
    origin: OnceLock<Instant>,
    speed: f64,
}

impl FastClock {
    /// `speed` is 1 for real time, 7200 for a day in twelve seconds; values below 1 are taken as 1.
    pub fn new(start: Timestamp, speed: f64) -> Self {
        let clock = FastClock::standing(start, speed);
        clock.go();
        clock
    }

    /// Stands still at `start` until [`FastClock::go`], so that what takes real time to set up takes none of the first
    /// day.
    pub fn standing(start: Timestamp, speed: f64) -> Self {
        FastClock { start, origin: OnceLock::new(), speed: speed.max(1.0) }
    }

    /// Starts it. A clock that runs already is left alone.
    pub fn go(&self) {
        self.origin.get_or_init(Instant::now);
    }
}

impl Clock for FastClock {
    fn now(&self) -> Timestamp {
        let elapsed = self.origin.get().map(Instant::elapsed).unwrap_or_default();
        self.start.after(elapsed.mul_f64(self.speed))
    }

    fn real_time_until(&self, then: Timestamp) -> Duration {
        then.since(self.now()).div_f64(self.speed)
    }

    fn real_time_since(&self, then: Timestamp) -> Duration {
        self.now().since(then).div_f64(self.speed)
    }
}

/// Never goes back: while the clock behind it is behind what it has shown, it stands still.
///
/// Spool, delivery and front door share one, or each would wait for a different time to come.
pub struct MonotoneClock {
    inner: Arc<dyn Clock>,
    latest: AtomicI64,
}

impl MonotoneClock {
    /// Shows what `inner` shows, from now on.
    pub fn new(inner: Arc<dyn Clock>) -> Self {
        let latest = AtomicI64::new(inner.now().0);
        MonotoneClock { inner, latest }
    }
}

impl Clock for MonotoneClock {
    fn now(&self) -> Timestamp {
        let now = self.inner.now();
        Timestamp(self.latest.fetch_max(now.0, Ordering::SeqCst).max(now.0))
    }

    fn real_time_until(&self, then: Timestamp) -> Duration {
        self.inner.real_time_until(then)
    }

    fn real_time_since(&self, earlier: Timestamp) -> Duration {
        self.inner.real_time_since(earlier)
    }
}

/// A clock that a test moves by hand.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    pub fn at(now: Timestamp) -> Self {
        ManualClock(AtomicI64::new(now.0))
    }

    pub fn set(&self, now: Timestamp) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn real_time_until(&self, then: Timestamp) -> Duration {
        then.since(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_sleeps_a_fraction_of_the_time_it_shows() {
        let clock = FastClock::new(Timestamp::from_seconds(1_000_000), 3600.0);
        let wait = clock.real_time_until(clock.now().after(Duration::from_secs(3600)));
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(500), "{wait:?}");
        assert!(clock.now() >= Timestamp::from_seconds(1_000_000));
    }

    #[test]
    fn a_clock_that_steps_back_stands_still_until_it_has_caught_up() {
        let hand = Arc::new(ManualClock::at(Timestamp(100)));
        let clock = MonotoneClock::new(hand.clone());
        for (set, shown) in [(90, 100), (100, 100), (101, 101), (50, 101)] {
            hand.set(Timestamp(set));
            assert_eq!(clock.now(), Timestamp(shown), "set to {set}");
        }
    }

    #[test]
    fn a_fast_clock_stands_until_it_is_started() {
        let start = Timestamp::from_seconds(1_000_000);
        let clock = FastClock::standing(start, 1e9);
        assert_eq!(clock.now(), start);
        clock.go();
        while clock.now() == start {
            std::hint::spin_loop();
        }
        assert!(clock.real_time_since(start) < Duration::from_secs(60));
    }
}
