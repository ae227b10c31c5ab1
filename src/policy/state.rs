//! What a lane's position is called: not started, ramping, ample, complete, stalled, paused.
//!
//! Only *complete* changes what may be sent (nothing is bounded any more); the others are for people and alerts.
//! Small demand never completes a ramp: the next stream that moves over must still ramp.

use super::Rules;
use crate::message::LaneRecord;

/// A limit must be this many times the busiest day of the week before it is called enough.
const HEADROOM: f64 = 1.25;
/// Boundaries in a row before a lane is complete.
const COMPLETE_BOUNDARIES: u32 = 3;
/// Days in a row before a lane is stalled.
const STALLED_DAYS: u32 = 2;
const ROUNDING: f64 = 1e-9;

/// Why mail was there for the whole limit and the day did not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StallReason {
    /// Bursts wait too short a time for the day's tokens to come.
    WaitTooShort,
    /// The streams' `max_share` keeps the limit from being used.
    Share,
    Brake,
    /// Yesterday's mail fills the last 24 hours.
    Day24h,
    Paused,
}

impl StallReason {
    /// The word for `status`, alerts and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            StallReason::WaitTooShort => "wait-too-short",
            StallReason::Share => "share",
            StallReason::Brake => "brake",
            StallReason::Day24h => "24h",
            StallReason::Paused => "paused",
        }
    }
}

/// What kept mail from leaving by `new` on the last day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    pub paused: bool,
    pub braked: bool,
    /// A stream was stepped over at its `max_share` while the lane had room.
    pub share: bool,
    /// The 24-hour bound refused while the day had room.
    pub day24h: bool,
}

impl Refusals {
    /// The strongest of them; with none, mail can only have waited too short a time.
    fn stall_reason(self) -> StallReason {
        match self {
            Refusals { paused: true, .. } => StallReason::Paused,
            Refusals { braked: true, .. } => StallReason::Brake,
            Refusals { share: true, .. } => StallReason::Share,
            Refusals { day24h: true, .. } => StallReason::Day24h,
            _ => StallReason::WaitTooShort,
        }
    }
}

/// Where a lane stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The start date is to come; nothing leaves by `new`.
    NotStarted,
    /// An operator stopped `new`; the day will not count.
    Paused,
    Ramping,
    /// The limit is clearly more than the mail there is, but below target: nothing overflows, nothing to do.
    Ample,
    /// No limit any more.
    Complete,
    /// Two days offered enough and did not count.
    Stalled(StallReason),
}

impl State {
    /// The word for `status` and metrics, without the reason of a stall.
    pub const fn name(self) -> &'static str {
        match self {
            State::NotStarted => "not-started",
            State::Paused => "paused",
            State::Ramping => "ramping",
            State::Ample => "ample",
            State::Complete => "complete",
            State::Stalled(_) => "stalled",
        }
    }
}

impl Rules {
    /// The limit is what the lane will ever need: of the total max(target, 1.25 x busiest day), of a provider lane
    /// max(target x share, 1.25 x its busiest day, c(0)). `peak_offered` is the largest of its last 7 days.
    pub fn could_complete(&self, is_total: bool, limit: u64, share: f64, peak_offered: u64) -> bool {
        let enough = if is_total {
            self.target as f64
        } else {
            // Without c(0) a provider never mailed before would be complete at a limit of 1.
            (self.target as f64 * share).max(self.curve.first())
        };
        limit as f64 + ROUNDING >= enough.max(HEADROOM * peak_offered as f64)
    }

    /// Where the lane stands now. `peak_offered` is the largest of its last 7 days.
    pub fn state(&self, lane: &LaneRecord, peak_offered: u64, paused: bool, refusals: Refusals) -> State {
        match lane.limit {
            _ if paused => State::Paused,
            None => State::Complete,
            Some(0) => State::NotStarted,
            Some(_) if lane.stalled_run >= STALLED_DAYS => State::Stalled(refusals.stall_reason()),
            Some(limit) if limit as f64 >= HEADROOM * peak_offered as f64 && self.is_below_target(lane, limit) => {
                State::Ample
            }
            Some(_) => State::Ramping,
        }
    }

    fn is_below_target(&self, lane: &LaneRecord, limit: u64) -> bool {
        (limit as f64) < self.target as f64 * lane.share
    }
}

/// Complete after three boundaries in a row at which the limit was enough; a provider lane only with the total.
pub fn is_complete(is_total: bool, boundaries_in_a_row: u32, total_complete: bool) -> bool {
    boundaries_in_a_row >= COMPLETE_BOUNDARIES && (is_total || total_complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::LaneId;

    fn lane(limit: Option<u64>, stalled_run: u32) -> LaneRecord {
        LaneRecord {
            lane: LaneId::TOTAL,
            stage: 3,
            limit,
            share: 1.0,
            braked_run: 0,
            last_braked: None,
            complete_run: 0,
            complete: limit.is_none(),
            stalled_run,
        }
    }

    #[test]
    fn a_lane_is_called_by_the_strongest_thing_that_is_true_of_it() {
        let rules = Rules { target: 12_000, ..Rules::default() };
        let braked = Refusals { braked: true, share: true, ..Refusals::default() };
        let cases = [
            (lane(Some(0), 0), 500, false, Refusals::default(), State::NotStarted),
            (lane(Some(800), 0), 12_000, false, Refusals::default(), State::Ramping),
            (lane(Some(800), 0), 640, false, Refusals::default(), State::Ample),
            (lane(Some(800), 0), 641, false, Refusals::default(), State::Ramping),
            (lane(Some(12_000), 0), 400, false, Refusals::default(), State::Ramping),
            (lane(Some(800), 1), 12_000, false, Refusals::default(), State::Ramping),
            (lane(Some(800), 2), 12_000, false, Refusals::default(), State::Stalled(StallReason::WaitTooShort)),
            (lane(Some(800), 2), 12_000, false, braked, State::Stalled(StallReason::Brake)),
            (lane(Some(800), 2), 12_000, true, braked, State::Paused),
            (lane(None, 0), 12_000, false, Refusals::default(), State::Complete),
        ];
        for (lane, peak_offered, paused, refusals, expect) in cases {
            assert_eq!(rules.state(&lane, peak_offered, paused, refusals), expect, "{lane:?}");
        }
    }

    #[test]
    fn every_refusal_names_its_reason() {
        let cases = [
            (Refusals::default(), "wait-too-short"),
            (Refusals { share: true, ..Refusals::default() }, "share"),
            (Refusals { day24h: true, ..Refusals::default() }, "24h"),
            (Refusals { braked: true, ..Refusals::default() }, "brake"),
            (Refusals { paused: true, braked: true, ..Refusals::default() }, "paused"),
        ];
        for (refusals, expect) in cases {
            assert_eq!(refusals.stall_reason().name(), expect);
        }
    }

    #[test]
    fn a_lane_without_mail_does_not_complete_at_a_limit_of_one() {
        let rules = Rules { target: 12_000, ..Rules::default() };
        assert!(!rules.could_complete(false, 1, 0.00005, 0));
        assert!(rules.could_complete(false, 50, 0.00005, 0));
        assert!(!is_complete(false, 40, false));
        assert!(is_complete(false, 3, true));
    }
}
