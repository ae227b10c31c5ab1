//! Wait or overflow: how much of what arrives may wait for room by the new server, and until when.
//!
//! The estimate looks at every bound, so that mail does not wait in vain. Where it is wrong mail goes to legacy at its
//! deadline; it can never make more leave by new, because only `allowance` grants that.

use super::allowance::{LaneView, left, less};
use super::pace::DAY_NANOS;
use super::stream::{StreamRoute, StreamRules};
use crate::message::{Reason, Timestamp};

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

impl LaneView {
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
        let day24h = less(left(then.limit_24h, then.reserved_24h), kept);
        less(tokens, expected).min(day.saturating_sub(kept)).min(day24h).min(share)
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

    /// Pace tokens that come while the sending window is open.
    fn tokens_until(&self, now: Timestamp, deadline: Timestamp) -> u64 {
        let open = self.open.open_nanos(now, deadline, self.day);
        if open == 0 && !self.open.is_open(now) {
            return 0;
        }
        let Some(pace) = self.pace else { return u64::MAX };
        let from = self.open.next_open(now).unwrap_or(self.day.ends);
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
        less(self.lane.within(&self.then, now, deadline), self.then.waiting_ahead)
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
    let deadline = now.after(max_wait);
    let new = offered.min(lane.free_until(now, deadline)).min(total.free_until(now, deadline));
    let reason = if new == offered { Reason::InQuota } else { Reason::OverQuota };
    Admission { new, legacy: offered - new, deadline, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Day, DaySpan, SLOT_NANOS};
    use crate::policy::allowance::Closed;
    use crate::policy::pace::OpenHours;
    use crate::policy::pace::Pace;
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
    #[test]
    fn only_tokens_of_open_hours_are_waited_for() {
        let office = OpenHours { early: (at(0), at(0)), late: (at(8), at(20)) };
        let lane = LaneView { open: office, ..lane() };
        for (from, until, expect) in [(3, 7, 0), (3, 8, 0), (3, 9, 201), (12, 12, 20), (19, 23, 201), (21, 25, 0)] {
            assert_eq!(lane.within(&free(), at(from), at(until)), expect, "{from} to {until}");
            let unpaced = LaneView { pace: None, ..lane }.within(&free(), at(from), at(until));
            assert_eq!(unpaced > 0, expect > 0, "{from} to {until} without a pace");
        }
        assert_eq!(lane.within(&free(), at(21), at(33)), 201, "an hour of tomorrow");
    }
    #[test]
    fn what_higher_priorities_will_take_meanwhile_is_left_to_them() {
        let lane = LaneView { expected_higher: 400, ..lane() };
        assert_eq!(
            lane.within(&free(), at(3), Timestamp(at(3).0 + SLOT_NANOS)),
            60,
            "65 tokens, 400 a day are 5 of them"
        );
        assert_eq!(lane.within(&free(), at(12), at(18)), 800, "R is 100 at the deadline, X another 100");
    }
}
