//! The only place that asks the system for the time.
//!
//! Everything that decides takes `now` as an argument. A manual clock lets a test live through sixty days; a fast
//! clock lets the demonstration squeeze a day into seconds. [`TrustedClock`] stands between the machine's clock and all
//! who decide, and says when that clock cannot be right; [`reckoning`] has its rules.

pub mod reckoning;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::message::Timestamp;
use reckoning::{BootId, Look, Mark, Reading, Reckoning, Standing};

/// Where Linux names the boot; made anew at each.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Tells the time of the ramp. Network deadlines do not use it: they are real time always.
pub trait Clock: Send + Sync + 'static {
    fn now(&self) -> Timestamp;

    /// Which boot of the machine this is, and how long ago it was: time that nobody can set.
    fn boot(&self) -> (BootId, Duration);

    /// Both together.
    fn reading(&self) -> Reading {
        let (boot, since_boot) = self.boot();
        Reading { wall: self.now(), boot, since_boot }
    }

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

    fn boot(&self) -> (BootId, Duration) {
        static BOOT: OnceLock<BootId> = OnceLock::new();
        let read = || {
            let text = std::fs::read_to_string(BOOT_ID_FILE).unwrap_or_default();
            u128::from_str_radix(&text.trim().replace('-', ""), 16).map_or(BootId::UNKNOWN, BootId)
        };
        let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let since = Duration::try_from(since).unwrap_or_default();
        (*BOOT.get_or_init(read), since)
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

    fn boot(&self) -> (BootId, Duration) {
        // One that nobody sets is never in doubt.
        (BootId(1), self.now().since(self.start))
    }

    fn real_time_until(&self, then: Timestamp) -> Duration {
        then.since(self.now()).div_f64(self.speed)
    }

    fn real_time_since(&self, then: Timestamp) -> Duration {
        self.now().since(then).div_f64(self.speed)
    }
}

/// The time everybody goes by: that of the clock behind it as long as it can be right, otherwise what has passed.
///
/// Spool, delivery and front door share one, or each would wait for a different time to come. Never goes back, except
/// when an operator accepts an earlier clock.
pub struct TrustedClock {
    inner: Arc<dyn Clock>,
    reckoning: Mutex<(Reckoning, bool)>,
}

impl TrustedClock {
    /// Goes on from what was stored, if anything was.
    pub fn new(inner: Arc<dyn Clock>, stored: Option<Mark>) -> Self {
        let reckoning = Reckoning::new(stored, inner.reading());
        TrustedClock { inner, reckoning: Mutex::new((reckoning, false)) }
    }

    /// The time, and what is thought of the clock. The first to see it change its standing writes it to the log.
    pub fn look(&self) -> Look {
        let mut state = self.lock();
        let look = state.0.look(self.inner.reading());
        let told = std::mem::replace(&mut state.1, look.standing.is_doubtful());
        drop(state);
        match look.standing {
            Standing::Doubtful { .. } if !told => tracing::error!(
                event = "clock.step",
                off_seconds = look.standing.off_seconds(),
                "the machine's clock cannot be right: nothing under a limit leaves by new until it agrees again or \
                 `mailramp warmup accept-clock` says that it is right"
            ),
            Standing::Agrees if told => tracing::warn!(event = "clock.agrees", "new sends again"),
            _ => {}
        }
        look
    }

    /// See [`Reckoning::take_missed`].
    pub fn take_missed(&self) -> Duration {
        self.lock().0.take_missed()
    }

    /// What accepting the clock would do: how many nanoseconds everything moves by, and the clock from then on. `None`:
    /// it is not in doubt. Nothing is changed before [`TrustedClock::adopt`].
    pub fn proposal(&self) -> Option<(i64, Reckoning)> {
        let mut reckoning = self.lock().0.clone();
        let by = reckoning.accept(self.inner.reading())?;
        Some((by, reckoning))
    }

    /// Goes by `accepted` from now on.
    pub fn adopt(&self, accepted: Reckoning) {
        self.lock().0 = accepted;
    }

    /// What the machine's clock says, right or wrong.
    pub fn reading(&self) -> Reading {
        self.inner.reading()
    }

    fn lock(&self) -> MutexGuard<'_, (Reckoning, bool)> {
        self.reckoning.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `then` as the clock behind this one will show it.
    fn behind(&self, then: Timestamp) -> Timestamp {
        let off = self.inner.now().0.saturating_sub(self.look().time.0);
        Timestamp(then.0.saturating_add(off))
    }
}

impl Clock for TrustedClock {
    fn now(&self) -> Timestamp {
        self.look().time
    }

    fn boot(&self) -> (BootId, Duration) {
        self.inner.boot()
    }

    fn real_time_until(&self, then: Timestamp) -> Duration {
        self.inner.real_time_until(self.behind(then))
    }

    fn real_time_since(&self, earlier: Timestamp) -> Duration {
        self.inner.real_time_since(self.behind(earlier))
    }
}

/// A clock that a test moves by hand, and a machine that it reboots.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicI64,
    /// What the clock shows beyond the time since the boot.
    booted: AtomicI64,
    boots: AtomicU64,
}

impl ManualClock {
    /// The machine has been up since 1970.
    pub fn at(now: Timestamp) -> Self {
        ManualClock { now: AtomicI64::new(now.0), ..ManualClock::default() }
    }

    /// Time passes until `now`.
    pub fn set(&self, now: Timestamp) {
        self.now.store(now.0, Ordering::SeqCst);
    }

    /// Somebody sets the clock, and no time passes.
    pub fn step(&self, now: Timestamp) {
        let by = now.0 - self.now.swap(now.0, Ordering::SeqCst);
        self.booted.fetch_add(by, Ordering::SeqCst);
    }

    /// The machine starts anew, and its clock shows `now`.
    pub fn reboot(&self, now: Timestamp) {
        self.boots.fetch_add(1, Ordering::SeqCst);
        self.now.store(now.0, Ordering::SeqCst);
        self.booted.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    fn boot(&self) -> (BootId, Duration) {
        let id = BootId(1 + u128::from(self.boots.load(Ordering::SeqCst)));
        (id, self.now().since(Timestamp(self.booted.load(Ordering::SeqCst))))
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
    fn a_trusted_clock_never_goes_back_until_an_operator_accepts_it() {
        let hand = Arc::new(ManualClock::at(Timestamp::from_seconds(10_000)));
        let clock = TrustedClock::new(hand.clone(), None);
        hand.set(Timestamp::from_seconds(10_100));
        for (set, shown) in [(10_100, 10_100), (10_090, 10_100), (10_101, 10_101), (10_050, 10_101)] {
            hand.step(Timestamp::from_seconds(set));
            assert_eq!(clock.now(), Timestamp::from_seconds(shown), "set to {set}");
        }
        hand.step(Timestamp::from_seconds(5_000));
        assert_eq!(clock.now(), Timestamp::from_seconds(10_101));
        let wait = clock.real_time_until(Timestamp::from_seconds(10_111));
        assert_eq!(wait, Duration::from_secs(10), "waits go by what passes");
        let (by, accepted) = clock.proposal().expect("in doubt");
        assert_eq!(by, -5_101_000_000_000);
        assert!(clock.look().standing.is_doubtful(), "a proposal changes nothing");
        clock.adopt(accepted);
        assert_eq!(clock.now(), Timestamp::from_seconds(5_000));
    }

    #[test]
    fn the_system_knows_its_boot_and_how_long_ago_it_was() {
        let (boot, before) = SystemClock.boot();
        assert_ne!(boot, BootId::UNKNOWN);
        let (same, after) = SystemClock.boot();
        assert!(same == boot && after >= before && before > Duration::ZERO);
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
