//! How a stream sees a lane at a moment.

use std::time::Duration;

use super::{WEEK_DAYS, WarmupGate};
use crate::message::{BrakeLevel, Day, DaySpan, Reason, StreamId, StreamWay, Timestamp};
use crate::policy::{self, Closed, LaneView, OpenHours, Pace, Rules};
use crate::spool::Ledger;
use crate::spool::ledger::LaneLedger;

/// A clock in doubt may agree at any time: how soon a lane that it shuts is worth another look.
const CLOCK_LOOK: Duration = Duration::from_secs(5);
/// After midnight an hour may still reach into yesterday, with yesterday's pace.
const PACE_CHANGES: Duration = Duration::from_secs(3600);

impl WarmupGate {
    pub(super) fn view(
        &self,
        ledger: &Ledger,
        lane: &LaneLedger,
        day: DaySpan,
        stream: StreamId,
        now: Timestamp,
    ) -> LaneView {
        let limit = lane.record.limit;
        let pace = self.rules.as_ref().and_then(|rules| self.pace(rules, lane, day, now));
        let open = self.rules.as_ref().map_or(OpenHours::ALWAYS, |r| self.calendar.open_hours(day, r.window));
        LaneView {
            limit,
            closed: self.closed(ledger, lane, now),
            day,
            open,
            pace,
            // A wrong clock may have stored a time years ahead; that must not shut the lane for years.
            arrival: pace.map_or(lane.arrival, |pace| pace.clamp(lane.arrival, now)),
            reserved_today: lane.reserved_today(),
            limit_24h: self.limit_24h(lane, day, now),
            reserved_24h: lane.reserved_24h(now),
            oldest_slot: lane.oldest_slot(now),
            expected_higher: self.expected_higher(ledger, lane, stream, day.day, now),
            stream_share: limit.and_then(|limit| self.configured(stream).share_of(limit)),
            stream_reserved_today: lane.stream_today(stream).reserved,
        }
    }

    /// Why nothing leaves by the lane: the clock, an operator, its brake.
    fn closed(&self, ledger: &Ledger, lane: &LaneLedger, now: Timestamp) -> Option<Closed> {
        // Without a limit there is none that a wrong clock could give out twice.
        if ledger.clock_is_doubtful() && lane.record.limit.is_some() {
            return Some(Closed { until: now.after(CLOCK_LOOK), reason: Reason::Clock });
        }
        if ledger.pause().is_some() {
            return Some(Closed { until: Timestamp::NEVER, reason: Reason::Paused });
        }
        self.brake_closes(lane, now)
    }

    pub(super) fn brake_closes(&self, lane: &LaneLedger, now: Timestamp) -> Option<Closed> {
        let (level, until) = self.brake_of(lane, now);
        (level >= BrakeLevel::Suspended).then_some(Closed { until, reason: Reason::Brake })
    }

    /// The lane's brake as it is at `now`, and when that changes.
    pub fn brake_of(&self, lane: &LaneLedger, now: Timestamp) -> (BrakeLevel, Timestamp) {
        match self.rules {
            // Without a ramp nothing is held back.
            None => (BrakeLevel::Open, Timestamp::NEVER),
            Some(_) => self.brake.phase(&lane.brake, now),
        }
    }

    fn pace(&self, rules: &Rules, lane: &LaneLedger, day: DaySpan, now: Timestamp) -> Option<Pace> {
        let of = |limit| self.brake.pace(&lane.brake, rules, limit, now);
        let pace = of(lane.record.limit)?;
        let yesterday = lane.history.back().filter(|_| now.since(day.starts) < PACE_CHANGES);
        let before = yesterday.and_then(|yesterday| of(yesterday.limit));
        Some(before.map_or(pace, |before| pace.no_deeper_than(before)))
    }

    /// When a lane that goes slow, or that still owes yesterday, has another pace; `None`: not before midnight.
    pub(super) fn pace_changes(&self, lane: &LaneLedger, day: DaySpan, now: Timestamp) -> Option<Timestamp> {
        let (level, ends) = self.brake_of(lane, now);
        let slow = (level == BrakeLevel::Slow).then_some(ends);
        let first_hour = (now.since(day.starts) < PACE_CHANGES).then(|| day.starts.after(PACE_CHANGES));
        slow.into_iter().chain(first_hour).min()
    }

    /// The largest limit of the days that the 97 quarter-hours up to `at` touch; days to come count with today's.
    pub(super) fn limit_24h(&self, lane: &LaneLedger, day: DaySpan, at: Timestamp) -> Option<u64> {
        let mut largest = lane.record.limit?.max(lane.today.limit.unwrap_or(0));
        let oldest = policy::allowance::oldest_counted(at).start();
        if oldest < day.starts {
            let first = self.calendar.day_of(oldest);
            for record in lane.history.iter().rev().take_while(|record| record.day >= first) {
                largest = largest.max(record.limit?);
            }
        }
        Some(largest)
    }

    /// E: what streams of strictly higher rank offered to this lane a week ago, or yesterday if they are younger.
    fn expected_higher(&self, ledger: &Ledger, lane: &LaneLedger, stream: StreamId, today: Day, now: Timestamp) -> u64 {
        let rank = self.rank(ledger, stream, now);
        let way = |id| ledger.way_of(id, now).unwrap_or(self.configured(id).route);
        (0..self.streams.len() as u8)
            .map(StreamId)
            .filter(|other| self.rank(ledger, *other, now) > rank && way(*other) != StreamWay::Legacy)
            .map(|other| {
                let week_ago = Day(today.0 - WEEK_DAYS);
                let known = lane.stream_since(other).is_some_and(|since| since <= week_ago);
                let offered = |day| lane.stream_on(other, day).offered;
                policy::stream::expected(known.then(|| offered(week_ago)), offered(Day(today.0 - 1)))
            })
            .sum()
    }
}
