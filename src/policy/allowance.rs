//! How much of one stream a lane may send now, how much may wait for it, and when to look again.
//!
//! Four bounds hold together: the pace, the day's limit, the last 24 hours, and the stream's own share; from the day
//! and the 24 hours a reserve is kept for streams of higher priority. Every mail passes its provider's lane and the
//! total, which is a lane too. The numbers come from the ledger; this file only compares them.
//!
//! An estimate of what may wait can be wrong, and then mail goes to legacy at its deadline. The room cannot: it is
//! what the promise "the limit holds" rests on.

use std::time::Duration;

use super::pace::{OpenHours, Pace};
use super::stream::{StreamRoute, StreamRules};
use crate::message::{DaySpan, Reason, SLOT_NANOS, Slot, Timestamp};

/// Quarter-hours before the current one that count as the last 24 hours. 96, not 95: 02:14:50 on one day and
/// 02:00:00 on the next are less than 24 hours apart.
pub const SLOTS_BACK: i64 = 96;
const DAY_NANOS: i64 = SLOTS_BACK * SLOT_NANOS;

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
    /// [`Reason::Brake`], or [`Reason::Manual`] for a pause.
    pub reason: Reason,
}

/// One lane as one stream sees it, filled in from the ledger and the lane's record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaneView {
    /// Recipients today; `None`: complete or no warm-up, nothing is bounded.
    pub limit: Option<u64>,
    /// A brake or a pause. One that is over counts as none.
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

/// What else must be known of a lane to say how much may wait until a deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtDeadline {
    /// As `limit_24h`, at the deadline; days to come count with today's limit.
    pub limit_24h: Option<u64>,
    /// Already reserved, and at the deadline still within the last 97 quarter-hours.
    pub reserved_24h: u64,
    /// Recipients waiting with equal or higher rank: on this lane, or for the total on all lanes.
    pub waiting_ahead: u64,
    /// Of those, this stream's own.
    pub stream_waiting: u64,
}

/// One of the things that can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bound {
    /// Brake or pause.
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
        let ledger = self.day_left.min(self.left_24h);
        // Kept for others is taken off what there is, so it means nothing where nothing is bounded.
        let ledger = if ledger == u64::MAX { ledger } else { ledger.saturating_sub(self.reserve) };
        self.pace.min(ledger)
    }

    /// After `recipients` more of the same stream were granted in the same claim.
    pub fn after(&self, recipients: u64) -> Bounds {
        let less = |left: u64| if left == u64::MAX { left } else { left.saturating_sub(recipients) };
        Bounds {
            pace: less(self.pace),
            day_left: less(self.day_left),
            left_24h: less(self.left_24h),
            reserve: self.reserve,
            share_left: less(self.share_left),
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

    /// Recipients the lane can give the stream from `now` until `deadline`, what waits ahead of it included.
    ///
    /// An estimate over all bounds, so that no mail waits in vain: E x wait / day is expected to be taken by higher
    /// priorities meanwhile, and each midnight on the way brings another day with today's limit. A wait of a day or
    /// longer takes off neither that nor R nor the 24 hours: they are about the next day, the wait is about many,
    /// and today's limit already says too little of a ramp that grows.
    pub fn within(&self, then: &AtDeadline, now: Timestamp, deadline: Timestamp) -> u64 {
        if self.shut(now).is_some() {
            return 0;
        }
        let Some(limit) = self.limit else { return u64::MAX };
        let wait = deadline.0.saturating_sub(now.0).max(0);
        let midnights = self.midnights_until(deadline);
        let tokens = self.tokens_until(now, deadline);
        let days = |per_day: u64| per_day.saturating_mul(midnights.saturating_add(1));
        let day = days(limit).saturating_sub(self.reserved_today);
        let share = left(self.stream_share.map(days), self.stream_reserved_today.saturating_add(then.stream_waiting))
            .saturating_add(then.waiting_ahead);
        if wait >= DAY_NANOS {
            return tokens.min(day).min(share);
        }
        let expected = self.expected_until(wait);
        let kept = self.reserve_at(limit, deadline).saturating_add(expected);
        let day24h = left(then.limit_24h, then.reserved_24h);
        tokens
            .saturating_sub(expected)
            .min(day.saturating_sub(kept))
            .min(if day24h == u64::MAX { day24h } else { day24h.saturating_sub(kept) })
            .min(share)
    }

    /// The latest of the next times of the bounds that refuse one recipient at `now`; `None` when none refuses.
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
        wakes.into_iter().flatten().max_by_key(|wake| wake.at)
    }

    /// The brake or pause in force at `now`.
    fn shut(&self, now: Timestamp) -> Option<Closed> {
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
    fn reserve_at(&self, limit: u64, t: Timestamp) -> u64 {
        if self.expected_higher == 0 {
            return 0;
        }
        let length = self.day.ends.0 - self.day.starts.0;
        let left = self.day.ends.0.saturating_sub(t.0);
        reserve(self.expected_higher, limit, if left > 0 { left } else { left.saturating_add(length) }, length)
    }

    /// X: what higher priorities are expected to take in `wait` nanoseconds, rounded up.
    fn expected_until(&self, wait: i64) -> u64 {
        let length = (self.day.ends.0 - self.day.starts.0).max(1) as u128;
        u64::try_from((u128::from(self.expected_higher) * wait as u128).div_ceil(length)).unwrap_or(u64::MAX)
    }

    fn midnights_until(&self, deadline: Timestamp) -> u64 {
        let beyond = deadline.0.saturating_sub(self.day.ends.0);
        if beyond < 0 { 0 } else { 1 + (beyond / DAY_NANOS) as u64 }
    }

    fn tokens_until(&self, now: Timestamp, deadline: Timestamp) -> u64 {
        let from = self.open.next_open(now).unwrap_or(self.day.ends);
        if from > deadline {
            return 0;
        }
        let Some(pace) = self.pace else { return u64::MAX };
        let open = self.open.open_nanos(now, deadline, self.day);
        pace.tokens_until(self.arrival, from, Timestamp(from.0.saturating_add(open)))
    }
}

/// A lane and what is known of it at the deadline.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'a> {
    pub lane: &'a LaneView,
    pub then: AtDeadline,
}

impl Outlook<'_> {
    fn free_until(&self, now: Timestamp, deadline: Timestamp) -> u64 {
        let within = self.lane.within(&self.then, now, deadline);
        if within == u64::MAX { within } else { within.saturating_sub(self.then.waiting_ahead) }
    }
}

/// What happens to the recipients of one message on one lane. `new` + `legacy` is what was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Go by the new server, at once or when their token comes: the first in order.
    pub new: u64,
    /// Go by the legacy server at once: the rest.
    pub legacy: u64,
    /// Those of `new` that found no token by then go to legacy. `NEVER`: they hold.
    pub deadline: Timestamp,
    /// Of the rest if there is any, otherwise of those that go by new.
    pub reason: Reason,
}

/// Wait or overflow. Without provider lanes pass the total's outlook twice; both as seen by `stream`.
pub fn admit(stream: &StreamRules, offered: u64, lane: &Outlook, total: &Outlook, now: Timestamp) -> Admission {
    let all_new = |reason| Admission { new: offered, legacy: 0, deadline: Timestamp::NEVER, reason };
    let all_legacy = |reason| Admission { new: 0, legacy: offered, deadline: now, reason };
    match stream.route {
        StreamRoute::Legacy => return all_legacy(Reason::Manual),
        StreamRoute::New => return all_new(Reason::Manual),
        StreamRoute::Ramp => {}
    }
    let Some(max_wait) = stream.overflow().max_wait() else { return all_new(Reason::InQuota) };
    if let Some(closed) = lane.lane.shut(now).or(total.lane.shut(now)) {
        return all_legacy(closed.reason);
    }
    let deadline = deadline(now, max_wait);
    let new = offered.min(lane.free_until(now, deadline)).min(total.free_until(now, deadline));
    let reason = if new == offered { Reason::InQuota } else { Reason::OverQuota };
    Admission { new, legacy: offered - new, deadline, reason }
}

/// The deadline of mail that came at `now`.
pub fn deadline(now: Timestamp, max_wait: Duration) -> Timestamp {
    now.after(max_wait)
}

fn left(bound: Option<u64>, used: u64) -> u64 {
    bound.map_or(u64::MAX, |bound| bound.saturating_sub(used))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Day;
    use crate::policy::stream::Overflow;

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

    fn free() -> AtDeadline {
        AtDeadline { limit_24h: Some(1000), ..AtDeadline::default() }
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
            let then = AtDeadline { limit_24h: lane.limit_24h, reserved_24h: lane.reserved_24h, ..free() };
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

    #[test]
    fn policies_and_routes_that_need_no_estimate_make_none() {
        let lane = lane();
        let outlook = Outlook { lane: &lane, then: free() };
        let braked = LaneView { closed: Some(Closed { until: at(20), reason: Reason::Brake }), ..lane };
        let braked = Outlook { lane: &braked, then: free() };
        let stream = |route, overflow| StreamRules { route, overflow, ..StreamRules::default() };
        let wait = Overflow::default();
        let cases = [
            (stream(StreamRoute::Legacy, wait), outlook, 0, Reason::Manual),
            (stream(StreamRoute::New, wait), outlook, 5000, Reason::Manual),
            (stream(StreamRoute::Ramp, Overflow::Hold), outlook, 5000, Reason::InQuota),
            (stream(StreamRoute::Ramp, Overflow::Hold), braked, 5000, Reason::InQuota),
            (stream(StreamRoute::Ramp, wait), braked, 0, Reason::Brake),
            (stream(StreamRoute::Ramp, Overflow::Legacy), outlook, 20, Reason::OverQuota),
            (stream(StreamRoute::Ramp, wait), outlook, 65, Reason::OverQuota),
        ];
        for (stream, outlook, expect, reason) in cases {
            let admission = admit(&stream, 5000, &outlook, &outlook, at(3));
            assert_eq!((admission.new, admission.reason), (expect, reason), "{stream:?}");
            assert_eq!(admission.new + admission.legacy, 5000);
        }
    }

    #[test]
    fn the_total_and_the_lane_each_count_what_waits_ahead_of_them() {
        let lane = lane();
        let outlook = |waiting_ahead| Outlook { lane: &lane, then: AtDeadline { waiting_ahead, ..free() } };
        let stream = StreamRules::default();
        let admitted = |in_lane, in_all| admit(&stream, 100, &outlook(in_lane), &outlook(in_all), at(3)).new;
        assert_eq!((admitted(0, 0), admitted(10, 0), admitted(10, 60), admitted(0, 70)), (65, 55, 5, 0));
    }

    #[test]
    fn a_stream_at_its_share_does_not_wait_in_vain() {
        let lane = LaneView { stream_share: Some(30), stream_reserved_today: 10, ..lane() };
        let then = AtDeadline { waiting_ahead: 12, stream_waiting: 8, ..free() };
        let outlook = Outlook { lane: &lane, then };
        assert_eq!(admit(&StreamRules::default(), 100, &outlook, &outlook, at(3)).new, 12, "30 - 10 sent - 8 waiting");
    }

    #[test]
    fn tomorrow_counts_with_todays_limit() {
        let lane = LaneView { reserved_today: 1000, arrival: at(0), ..lane() };
        assert_eq!(lane.within(&free(), at(23), at(23)), 0);
        assert_eq!(lane.within(&free(), at(23), Timestamp(at(24).0 - 1)), 0);
        assert_eq!(lane.within(&free(), at(23), at(24)), 201);
        let long = LaneView { pace: None, ..lane };
        assert_eq!(long.within(&free(), at(9), at(9 + 6 * 24)), 6000);
    }
}
