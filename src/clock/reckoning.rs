//! Which time it is when the machine's clock may be wrong: the stored time plus what has passed since, as long as the
//! clock on the wall agrees with that.
//!
//! Within one boot the machine knows how much time has passed (CLOCK_BOOTTIME: never stepped, counts sleep), so a clock
//! that is set forward or back is noticed. Over a reboot only one thing is known: it is not earlier than it was. A clock
//! that is up to [`DOWN_MOST`] later is believed, one that is earlier, or later than that, is in doubt.
//!
//! While the clock is in doubt, time goes on by what has passed. It agrees again by itself, or an operator accepts it.
//! Plain: looks at nothing; callers hand in a [`Reading`].

use std::time::Duration;

use crate::message::{NANOS_PER_SECOND, Timestamp};

/// The clock on the wall may be off by so much from what has passed; more is a step.
pub const TOLERANCE: Duration = Duration::from_secs(60);
/// After a reboot the clock is believed when it says that the machine was off for no longer than this.
pub const DOWN_MOST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Names one boot of the machine; 0: unknown, and then none is the same as another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootId(pub u128);

impl BootId {
    pub const UNKNOWN: BootId = BootId(0);

    fn is(self, other: BootId) -> bool {
        self == other && self != BootId::UNKNOWN
    }
}

/// One look at the machine's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub wall: Timestamp,
    pub boot: BootId,
    /// Since the boot, sleep included.
    pub since_boot: Duration,
}

/// What is stored: which time it was at which moment of which boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub time: Timestamp,
    pub boot: BootId,
    pub since_boot: Duration,
}

/// What is thought of the clock on the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Agrees,
    /// Off by so many nanoseconds: ahead of what has passed, or (negative) behind it.
    Doubtful {
        off: i64,
    },
}

impl Standing {
    pub fn is_doubtful(self) -> bool {
        self != Standing::Agrees
    }

    /// By how many seconds the clock is ahead of what has passed, or behind it; 0 while it agrees.
    pub fn off_seconds(self) -> i64 {
        match self {
            Standing::Agrees => 0,
            Standing::Doubtful { off } => off / NANOS_PER_SECOND,
        }
    }
}

/// The time, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub time: Timestamp,
    pub standing: Standing,
    /// To be stored.
    pub mark: Mark,
}

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Reckoning {
    anchor: Mark,
    /// The clock has not agreed since the last reboot.
    rebooted: bool,
    standing: Standing,
    /// The latest time shown; it is never gone back behind, except when an operator accepts an earlier clock.
    latest: Timestamp,
    /// Time while the machine was off, as the clock has it, that nobody has taken yet.
    missed: Duration,
}

impl Reckoning {
    /// Goes on from what was stored. Nothing stored: the clock is believed.
    pub fn new(stored: Option<Mark>, reading: Reading) -> Reckoning {
        let here = Mark { time: reading.wall, boot: reading.boot, since_boot: reading.since_boot };
        let (anchor, rebooted) = match stored {
            None => (here, false),
            Some(mark) if mark.boot.is(reading.boot) && mark.since_boot <= reading.since_boot => (mark, false),
            Some(mark) => (Mark { time: mark.time, ..here }, true),
        };
        let (standing, latest, missed) = (Standing::Agrees, anchor.time, Duration::ZERO);
        Reckoning { anchor, rebooted, standing, latest, missed }
    }

    /// The time at `reading`.
    pub fn look(&mut self, reading: Reading) -> Look {
        let passed = reading.since_boot.saturating_sub(self.anchor.since_boot);
        let reckoned = self.anchor.time.after(passed);
        let off = reading.wall.0.saturating_sub(reckoned.0);
        let ahead_most = if self.rebooted { DOWN_MOST } else { TOLERANCE };
        let time = if -nanos(TOLERANCE) <= off && off <= nanos(ahead_most) {
            if self.rebooted {
                self.missed += Duration::from_nanos(u64::try_from(off).unwrap_or(0));
            }
            (self.rebooted, self.standing) = (false, Standing::Agrees);
            self.anchor = Mark { time: reading.wall, boot: reading.boot, since_boot: reading.since_boot };
            reading.wall
        } else {
            self.standing = Standing::Doubtful { off };
            reckoned
        };
        self.latest = self.latest.max(time);
        let mark = Mark { time: self.latest, boot: reading.boot, since_boot: reading.since_boot };
        Look { time: self.latest, standing: self.standing, mark }
    }

    /// How long the machine was off in all reboots since this was asked last: time that passed without anybody who
    /// could have sent anything.
    pub fn take_missed(&mut self) -> Duration {
        std::mem::take(&mut self.missed)
    }

    /// From here on the clock on the wall is right. Returns by how many nanoseconds the time moves; `None` when the
    /// clock was not in doubt.
    pub fn accept(&mut self, reading: Reading) -> Option<i64> {
        let before = self.look(reading);
        if !before.standing.is_doubtful() {
            return None;
        }
        *self = Reckoning { missed: self.missed, ..Reckoning::new(None, reading) };
        Some(reading.wall.0.saturating_sub(before.time.0))
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_770_000_000;
    const DAY: i64 = 86_400;
    const TEN_YEARS: i64 = 3652 * DAY;

    /// `passed` seconds after the first look, in boot `boot`, with a clock that is `off` by so many seconds.
    fn reading(boot: u128, passed: i64, off: i64) -> Reading {
        Reading {
            wall: Timestamp::from_seconds(START + passed + off),
            boot: BootId(boot),
            since_boot: Duration::from_secs(1000 + passed as u64),
        }
    }

    fn at(passed: i64) -> Timestamp {
        Timestamp::from_seconds(START + passed)
    }

    /// Runs from the start and has looked once, in boot 1.
    fn running() -> Reckoning {
        let mut reckoning = Reckoning::new(None, reading(1, 0, 0));
        reckoning.look(reading(1, 0, 0));
        reckoning
    }

    #[test]
    fn a_step_is_noticed_time_goes_on_by_what_has_passed_and_the_clock_may_come_to_agree_again() {
        for off in [61, 3600, TEN_YEARS, -61, -3600, -TEN_YEARS] {
            let mut reckoning = running();
            let look = reckoning.look(reading(1, 500, off));
            assert_eq!((look.time, look.standing.off_seconds()), (at(500), off));
            let look = reckoning.look(reading(1, 800, 0));
            assert_eq!((look.time, look.standing), (at(800), Standing::Agrees), "after {off}");
        }
    }

    #[test]
    fn small_corrections_are_followed_forward_at_once_and_backward_by_standing_still() {
        let mut reckoning = running();
        assert_eq!(reckoning.look(reading(1, 100, 59)).time, at(159));
        let back = reckoning.look(reading(1, 110, 0));
        assert_eq!((back.time, back.standing), (at(159), Standing::Agrees));
        assert_eq!(reckoning.look(reading(1, 160, 0)).time, at(160));
    }

    #[test]
    fn a_machine_that_slept_has_seen_the_time_pass() {
        let look = running().look(reading(1, 3 * DAY, 0));
        assert_eq!((look.time, look.standing), (at(3 * DAY), Standing::Agrees));
    }

    #[test]
    fn a_restart_in_the_same_boot_still_knows_what_has_passed() {
        let mark = running().look(reading(1, 10, 0)).mark;
        let mut reckoning = Reckoning::new(Some(mark), reading(1, 9 * DAY, TEN_YEARS));
        let look = reckoning.look(reading(1, 9 * DAY, TEN_YEARS));
        assert_eq!((look.time, look.standing.off_seconds()), (at(9 * DAY), TEN_YEARS));
        assert_eq!(reckoning.look(reading(1, 9 * DAY, 0)).standing, Standing::Agrees);
    }

    #[test]
    fn after_a_reboot_a_clock_that_is_a_little_later_is_believed_and_the_gap_is_told_once() {
        let mark = running().look(reading(1, 10, 0)).mark;
        let mut reckoning = Reckoning::new(Some(mark), reading(2, 6 * DAY, 0));
        let look = reckoning.look(reading(2, 6 * DAY, 0));
        assert_eq!((look.time, look.standing), (at(6 * DAY), Standing::Agrees));
        assert_eq!(reckoning.take_missed(), Duration::from_secs(6 * 86_400 - 10));
        assert_eq!(reckoning.take_missed(), Duration::ZERO);
    }

    #[test]
    fn after_a_reboot_an_earlier_clock_is_in_doubt_until_it_has_passed_what_was_stored() {
        let mark = running().look(reading(1, 1000, 0)).mark;
        let mut reckoning = Reckoning::new(Some(mark), reading(2, 0, -DAY));
        let look = reckoning.look(reading(2, 0, -DAY));
        assert_eq!((look.time, look.standing.off_seconds()), (at(1000), -DAY - 1000));
        assert_eq!(reckoning.look(reading(2, 300, -DAY)).time, at(1300), "what has passed since the start counts");
        let right = reckoning.look(reading(2, 5000, 1020));
        assert_eq!((right.time, right.standing), (at(6020), Standing::Agrees));
        assert_eq!(reckoning.take_missed(), Duration::from_secs(20));
    }

    #[test]
    fn after_a_reboot_a_clock_years_ahead_is_in_doubt_until_it_is_set_right() {
        let mark = running().look(reading(1, 1000, 0)).mark;
        let mut reckoning = Reckoning::new(Some(mark), reading(2, 2000, TEN_YEARS));
        assert!(reckoning.look(reading(2, 2000, TEN_YEARS)).standing.is_doubtful());
        let right = reckoning.look(reading(2, 2100, 0));
        assert_eq!((right.time, right.standing), (at(2100), Standing::Agrees));
        assert_eq!(reckoning.take_missed(), Duration::from_secs(1000), "of which the last 100 s were seen to pass");
    }

    #[test]
    fn an_unknown_boot_is_never_the_same_as_another() {
        let mark = Mark { boot: BootId::UNKNOWN, ..running().look(reading(1, 1000, 0)).mark };
        let unknown = Reading { boot: BootId::UNKNOWN, ..reading(1, 2000, 0) };
        let mut reckoning = Reckoning::new(Some(mark), unknown);
        assert_eq!(reckoning.look(unknown).standing, Standing::Agrees);
        assert_eq!(reckoning.take_missed(), Duration::from_secs(1000));
    }

    #[test]
    fn an_accepted_clock_is_the_time_from_then_on_also_when_it_is_earlier() {
        for off in [TEN_YEARS, -TEN_YEARS] {
            let mut reckoning = running();
            assert_eq!(reckoning.accept(reading(1, 5, 0)), None, "nothing was in doubt");
            let moved = reckoning.accept(reading(1, 100, off)).expect("in doubt");
            assert_eq!(moved, off * NANOS_PER_SECOND);
            let look = reckoning.look(reading(1, 160, off));
            assert_eq!((look.time, look.standing), (at(160 + off), Standing::Agrees));
            assert!(reckoning.look(reading(1, 200, 0)).standing.is_doubtful(), "and the old one is wrong now");
        }
    }
}
