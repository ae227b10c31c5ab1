//! How much of one stream a lane may send now, and when to look again.
//!
//! Four bounds hold together: the pace, the day's limit, the last 24 hours, and the stream's own share; from the day
//! and the 24 hours a reserve is kept for streams of higher priority. Every mail passes its provider's lane and the
//! total, which is a lane too. The numbers come from the ledger; this file only compares them.
//!
//! The promise "the limit holds" rests on this file. How much may wait for room to come is an estimate; see `wait`.

use super::pace::{OpenHours, Pace};
use crate::message::{DaySpan, Reason, Slot, Timestamp};

/// Quarter-hours before the current one that count as the last 24 hours. 96, not 95: 02:14:50 on one day and
/// 02:00:00 on the next are less than 24 hours apart.
pub const SLOTS_BACK: i64 = 96;

/// The oldest quarter-hour that still counts at `now`. The 24-hour sum runs from here to the current one, both
/// included: 97 of them.
pub fn oldest_counted(now: Timestamp) -> Slot {
    Slot(now.slot().0 - SLOTS_BACK)
}

/// R: recipients kept for streams of higher priority, with `day_left` nanoseconds of a day of `day_length` to go.
/// Shrinks to 0 over the day; never more than half the limit.
pub fn reserve(expected_higher: u64, limit: u64, day_left: i64, day_length: i64) -> u64 {
    let length = day_length.max(1) as u128; // a date that the zone skipped is empty
    let left = (day_left.max(0) as u128).min(length);
    let twice = u128::from(expected_higher).saturating_mul(2).min(u128::from(limit));
    (twice * left).div_ceil(2 * length) as u64
}

/// Why a lane is shut, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// `Timestamp::NEVER` when only an event opens it.
    pub until: Timestamp,
    /// [`Reason::Brake`], [`Reason::Manual`] for a pause, or [`Reason::Clock`].
    pub reason: Reason,
}

/// One lane as one stream sees it, filled in from the ledger and the lane's record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaneView {
    /// Recipients today; `None`: complete or no warm-up, nothing is bounded.
    pub limit: Option<u64>,
    /// A brake, a pause, or a clock in doubt. One that is over counts as none.
    pub closed: Option<Closed>,
    /// The day `now` lies in.
    pub day: DaySpan,
    /// When the sending window is open on that day.
    pub open: OpenHours,
    /// `Rules::pace(limit)`; `None`: no pace.
    pub pace: Option<Pace>,
    /// The bucket's stored arrival time, clamped when it was loaded.
    pub arrival: Timestamp,
    /// Reserved since the day began and not given back, all streams.
    pub reserved_today: u64,
    /// Largest limit of the days that the last 97 quarter-hours touch; `None`: one of them had no limit.
    pub limit_24h: Option<u64>,
    /// Reserved in those quarter-hours and not given back.
    pub reserved_24h: u64,
    /// The oldest of those quarter-hours with a reservation; `None`: there is none.
    pub oldest_slot: Option<Slot>,
    /// E: what streams of strictly higher rank are expected to offer to this lane today.
    pub expected_higher: u64,
    /// `StreamRules::share_of(limit)`; `None`: the stream has no bound of its own.
    pub stream_share: Option<u64>,
    /// Reserved today by this stream on this lane.
    pub stream_reserved_today: u64,
}

/// One of the things that can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// Brake, pause, or a clock in doubt.
    Closed,
    Window,
    Pace,
    Day,
    Day24h,
    /// What is left is kept for streams of higher priority.
    Reserve,
    /// The stream's `max_share`. The only one that does not hold up other streams.
    Share,
}

impl Bound {
    /// The word for `explain` and the log.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::Closed => "closed",
            Bound::Window => "window",
            Bound::Pace => "pace",
            Bound::Day => "day",
            Bound::Day24h => "24h",
            Bound::Reserve => "reserve",
            Bound::Share => "share",
        }
    }
}

/// When a refused lane is worth another look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    pub at: Timestamp,
    /// The bound that takes longest.
    pub bound: Bound,
}

/// What each bound of a lane leaves to a stream at one moment; `u64::MAX` where it does not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Pace tokens; 0 while the lane is shut or the window is not open.
    pub pace: u64,
    /// Limit − reserved today.
    pub day_left: u64,
    /// 24-hour limit − reserved in the last 97 quarter-hours.
    pub left_24h: u64,
    /// R; taken off the day and the 24 hours.
    pub reserve: u64,
    /// The stream's share − what it used.
    pub share_left: u64,
}

impl Bounds {
    const NONE: Bounds =
        Bounds { pace: u64::MAX, day_left: u64::MAX, left_24h: u64::MAX, reserve: 0, share_left: u64::MAX };
    const SHUT: Bounds = Bounds { pace: 0, ..Bounds::NONE };

    /// Recipients that may leave.
    pub fn room(&self) -> u64 {
        self.room_of_lane().min(self.share_left)
    }

    /// The same without the stream's own share: at 0 the lane is done for now; when only `room` is 0 the next stream
    /// has its turn.
    pub fn room_of_lane(&self) -> u64 {
        self.pace.min(less(self.day_left.min(self.left_24h), self.reserve))
    }

    /// After `recipients` more of the same stream were granted in the same claim.
    pub fn after(&self, recipients: u64) -> Bounds {
        Bounds {
            pace: less(self.pace, recipients),
            day_left: less(self.day_left, recipients),
            left_24h: less(self.left_24h, recipients),
            reserve: self.reserve,
            share_left: less(self.share_left, recipients),
        }
    }

    /// Of `wanted` recipients those that both the lane and the total let through. Without provider lanes pass the
    /// total twice.
    pub fn grant(wanted: u64, lane: &Bounds, total: &Bounds) -> u64 {
        wanted.min(lane.room()).min(total.room())
    }
}

impl LaneView {
    /// What each bound leaves at `now`.
    pub fn bounds(&self, now: Timestamp) -> Bounds {
        if self.shut(now).is_some() {
            return Bounds::SHUT;
        }
        let Some(limit) = self.limit else { return Bounds::NONE };
        let tokens = match self.pace {
            _ if !self.open.is_open(now) => 0,
            Some(pace) => pace.tokens_at(self.arrival, now),
            None => u64::MAX,
        };
        Bounds {
            pace: tokens,
            day_left: limit.saturating_sub(self.reserved_today),
            left_24h: left(self.limit_24h, self.reserved_24h),
            reserve: self.reserve_at(limit, now),
            share_left: left(self.stream_share, self.stream_reserved_today),
        }
    }

    /// Recipients of the stream that may leave now.
    pub fn room(&self, now: Timestamp) -> u64 {
        self.bounds(now).room()
    }

    /// The latest of the next times of the bounds that refuse one recipient at `now`, but never beyond midnight: the
    /// new day's limit is another, and with it the room in the last 24 hours and the pace. `None` when none refuses.
    ///
    /// Never too late for a bound that opens by itself; events (a refund, an operator) wake the lane besides.
    pub fn wake(&self, now: Timestamp) -> Option<Wake> {
        let closed = self.shut(now).map(|closed| Wake { at: closed.until, bound: Bound::Closed });
        if closed.is_some() || self.limit.is_none() {
            return closed;
        }
        let bounds = self.bounds(now);
        let day = (bounds.day_left == 0).then_some(Wake { at: self.day.ends, bound: Bound::Day });
        let share = (bounds.share_left == 0).then_some(Wake { at: self.day.ends, bound: Bound::Share });
        let wakes = [self.wake_of_pace(now), day, self.wake_of_24h(&bounds), self.wake_of_reserve(&bounds), share];
        let latest = wakes.into_iter().flatten().max_by_key(|wake| wake.at)?;
        Some(Wake { at: latest.at.min(self.day.ends), ..latest })
    }

    /// The brake or pause in force at `now`.
    pub(super) fn shut(&self, now: Timestamp) -> Option<Closed> {
        self.closed.filter(|closed| now < closed.until)
    }

    fn wake_of_pace(&self, now: Timestamp) -> Option<Wake> {
        let token = self.pace.map_or(now, |pace| pace.next(self.arrival, now));
        let open = self.open.next_open(token).unwrap_or(self.day.ends);
        match () {
            () if open > token => Some(Wake { at: open, bound: Bound::Window }),
            () if token > now => Some(Wake { at: token, bound: Bound::Pace }),
            () => None,
        }
    }

    fn wake_of_24h(&self, bounds: &Bounds) -> Option<Wake> {
        (bounds.left_24h == 0).then(|| Wake { at: self.oldest_slot_leaves(), bound: Bound::Day24h })
    }

    /// Something is left, but not beyond the reserve: wait until it has shrunk, or the 24 hours have more room.
    fn wake_of_reserve(&self, bounds: &Bounds) -> Option<Wake> {
        let refuses = |left: u64| left > 0 && left <= bounds.reserve;
        let day = refuses(bounds.day_left).then(|| self.reserve_shrinks_below(bounds.day_left));
        let day24h = refuses(bounds.left_24h)
            .then(|| self.reserve_shrinks_below(bounds.left_24h).min(self.oldest_slot_leaves()));
        day.max(day24h).map(|at| Wake { at, bound: Bound::Reserve })
    }

    /// When the oldest quarter-hour is out of the last 97; a bound without any reservation opens at midnight.
    fn oldest_slot_leaves(&self) -> Timestamp {
        self.oldest_slot.map_or(self.day.ends, |slot| Slot(slot.0 + SLOTS_BACK + 1).start())
    }

    /// The first moment at which R < `left`, with `left` of 1 or more.
    fn reserve_shrinks_below(&self, left: u64) -> Timestamp {
        let twice = u128::from(self.expected_higher).saturating_mul(2).min(u128::from(self.limit.unwrap_or(0)));
        let length = (self.day.ends.0 - self.day.starts.0).max(1) as u128;
        let day_left = (u128::from(left - 1) * 2 * length).checked_div(twice).unwrap_or(length).min(length);
        Timestamp(self.day.ends.0 - day_left as i64)
    }

    /// R at `t`, which may lie tomorrow: then tomorrow's, as if it were as long as today.
    pub(super) fn reserve_at(&self, limit: u64, t: Timestamp) -> u64 {
        if self.expected_higher == 0 {
            return 0;
        }
        let length = self.day.ends.0 - self.day.starts.0;
        let left = self.day.ends.0.saturating_sub(t.0);
        reserve(self.expected_higher, limit, if left > 0 { left } else { left.saturating_add(length) }, length)
    }
}

/// What a bound leaves after `used`; `u64::MAX` where there is none.
pub(super) fn left(bound: Option<u64>, used: u64) -> u64 {
    bound.map_or(u64::MAX, |bound| bound.saturating_sub(used))
}

/// `left` without `recipients`; what is not bounded stays so.
pub(super) fn less(left: u64, recipients: u64) -> u64 {
    if left == u64::MAX { left } else { left.saturating_sub(recipients) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Day, SLOT_NANOS};
    use crate::policy::pace::DAY_NANOS;
    use crate::policy::wait::AtDeadline;

    const HOUR: i64 = 4 * SLOT_NANOS;
    const DAY: i64 = 20_000;

    fn at(hour: i64) -> Timestamp {
        Timestamp(DAY * DAY_NANOS + hour * HOUR)
    }

    /// A lane of 1,000 with nothing used, on a day of 24 hours, without priorities.
    fn lane() -> LaneView {
        LaneView {
            limit: Some(1000),
            closed: None,
            day: DaySpan { day: Day(DAY as i32), starts: at(0), ends: at(24) },
            open: OpenHours::ALWAYS,
            pace: Pace::of(1000, 0.2, 0.02),
            arrival: Timestamp(0),
            reserved_today: 0,
            limit_24h: Some(1000),
            reserved_24h: 0,
            oldest_slot: None,
            expected_higher: 0,
            stream_share: None,
            stream_reserved_today: 0,
        }
    }

    #[test]
    fn the_least_bound_is_the_room() {
        let cases: [(LaneView, u64); 11] = [
            (lane(), 20),
            (LaneView { pace: None, ..lane() }, 1000),
            (LaneView { reserved_today: 995, ..lane() }, 5),
            (LaneView { reserved_today: 2000, ..lane() }, 0),
            (LaneView { reserved_24h: 993, ..lane() }, 7),
            (LaneView { expected_higher: 5000, pace: None, ..lane() }, 750),
            (LaneView { expected_higher: 5000, reserved_today: 800, ..lane() }, 0),
            (LaneView { stream_share: Some(12), stream_reserved_today: 3, ..lane() }, 9),
            (LaneView { limit: None, stream_share: None, ..lane() }, u64::MAX),
            (LaneView { closed: Some(Closed { until: at(13), reason: Reason::Brake }), ..lane() }, 0),
            (LaneView { open: OpenHours { early: (at(0), at(12)), late: (at(0), at(0)) }, ..lane() }, 0),
        ];
        for (lane, expect) in cases {
            assert_eq!(lane.room(at(12)), expect, "{lane:?}");
        }
    }

    #[test]
    fn a_brake_that_is_over_and_a_lane_without_limit_do_not_refuse() {
        let closed = Some(Closed { until: at(12), reason: Reason::Brake });
        assert_eq!(LaneView { closed, ..lane() }.room(at(12)), 20);
        assert_eq!(LaneView { closed, limit: None, ..lane() }.room(at(11)), 0, "a brake holds without a limit too");
    }

    #[test]
    fn random_ledgers_never_give_a_room_beyond_any_bound() {
        for seed in 0..2000u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limit = random.u64(0..3000);
            let lane = LaneView {
                limit: Some(limit),
                pace: Pace::of(limit, 0.2, 0.02),
                arrival: Timestamp(at(0).0 + random.i64(0..DAY_NANOS)),
                reserved_today: random.u64(0..4000),
                limit_24h: Some(random.u64(0..3000)),
                reserved_24h: random.u64(0..4000),
                oldest_slot: Some(Slot(at(0).slot().0 - random.i64(0..96))),
                expected_higher: random.u64(0..3000),
                stream_share: random.bool().then_some(random.u64(0..3000)),
                stream_reserved_today: random.u64(0..3000),
                ..lane()
            };
            let now = Timestamp(at(0).0 + random.i64(0..DAY_NANOS));
            let room = lane.room(now);
            assert!(room <= limit.saturating_sub(lane.reserved_today), "seed {seed}");
            assert!(room <= lane.limit_24h.unwrap().saturating_sub(lane.reserved_24h), "seed {seed}");
            assert!(room <= lane.pace.unwrap().depth().into(), "seed {seed}");
            assert_eq!(
                room == 0,
                lane.wake(now).is_some(),
                "seed {seed}: refused exactly when there is a time to wait for"
            );
            let then =
                AtDeadline { limit_24h: lane.limit_24h, reserved_24h: lane.reserved_24h, ..AtDeadline::default() };
            assert!(lane.within(&then, now, now) <= room, "seed {seed}: more could wait no time at all than may go");
        }
    }

    #[test]
    fn granting_in_pieces_gives_no_more_than_at_once() {
        let bounds = LaneView { stream_share: Some(12), ..lane() }.bounds(at(3));
        let first = Bounds::grant(5, &bounds, &bounds);
        let second = Bounds::grant(500, &bounds.after(first), &bounds.after(first));
        assert_eq!((first, second), (5, 7));
        let rest = bounds.after(12);
        assert_eq!((rest.room(), rest.room_of_lane()), (0, 8), "only the stream's share is used up");
        assert_eq!(Bounds::NONE.after(5), Bounds::NONE);
    }

    #[test]
    fn the_latest_of_the_refusing_bounds_says_when_to_look_again() {
        let full = Some(Slot(at(-20).slot().0));
        let wake = |at, bound| Some(Wake { at, bound });
        let cases = [
            (lane(), None),
            (LaneView { arrival: at(14), ..lane() }, wake(Timestamp(at(14).0 - 19 * 19_889_502_763), Bound::Pace)),
            (LaneView { reserved_today: 1000, ..lane() }, wake(at(24), Bound::Day)),
            // All of it was sent this morning. Tomorrow's larger limit makes room long before 02:15.
            (
                LaneView { reserved_today: 1000, reserved_24h: 1000, oldest_slot: Some(at(2).slot()), ..lane() },
                wake(at(24), Bound::Day24h),
            ),
            (
                LaneView { reserved_24h: 1000, oldest_slot: full, ..lane() },
                wake(Timestamp(at(4).0 + SLOT_NANOS), Bound::Day24h),
            ),
            (LaneView { stream_share: Some(5), stream_reserved_today: 5, ..lane() }, wake(at(24), Bound::Share)),
            // R is half of 1,000 x what is left of the day: below 125 with less than a quarter left.
            (
                LaneView { expected_higher: 5000, reserved_today: 875, ..lane() },
                wake(Timestamp(at(24).0 - DAY_NANOS * 124 / 500), Bound::Reserve),
            ),
            (
                LaneView { open: OpenHours { early: (at(0), at(0)), late: (at(15), at(20)) }, ..lane() },
                wake(at(15), Bound::Window),
            ),
            (
                LaneView { closed: Some(Closed { until: Timestamp::NEVER, reason: Reason::Manual }), ..lane() },
                wake(Timestamp::NEVER, Bound::Closed),
            ),
            (LaneView { limit: None, reserved_today: 5000, ..lane() }, None),
        ];
        for (lane, expect) in cases {
            assert_eq!(lane.wake(at(3)), expect, "{lane:?}");
        }
    }

    #[test]
    fn at_the_wake_time_of_the_reserve_one_recipient_may_go_and_not_before() {
        for (expected_higher, reserved_today) in [(5000, 875), (400, 700), (700, 700), (300, 750)] {
            let lane = LaneView { expected_higher, reserved_today, ..lane() };
            let Some(Wake { at: woken, bound }) = lane.wake(at(3)) else { panic!("{lane:?}") };
            assert_eq!(bound, Bound::Reserve);
            assert_eq!((lane.room(Timestamp(woken.0 - 1)), lane.room(woken)), (0, 1), "{lane:?}");
        }
    }
}
