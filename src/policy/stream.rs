//! What an operator says about one kind of mail: where it goes, who goes first, how long it may wait.
//!
//! Which message belongs to which stream is not decided here, nor which of several streams is served first; see
//! [`StreamRules::rank`] for what the dispatcher sorts by.

use std::time::Duration;

pub use crate::message::StreamWay as StreamRoute;

const QUARTER: Duration = Duration::from_secs(15 * 60);
/// Streams with fewer recipients in a week are never taken for bursts.
const AUTO_RECIPIENTS_MIN: u64 = 50;

/// What happens to mail that finds no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// To the legacy server at once.
    Legacy,
    /// Waits up to `max_wait` if a token can be expected by then; to the legacy server otherwise.
    HoldThenLegacy { max_wait: Duration },
    /// Waits as long as it takes, never by the legacy server.
    Hold,
}

impl Overflow {
    /// Longest wait before the mail goes to legacy; `None`: it never does.
    pub const fn max_wait(self) -> Option<Duration> {
        match self {
            Overflow::Legacy => Some(Duration::ZERO),
            Overflow::HoldThenLegacy { max_wait } => Some(max_wait),
            Overflow::Hold => None,
        }
    }
}

/// Waits a quarter of an hour.
impl Default for Overflow {
    fn default() -> Self {
        Overflow::HoldThenLegacy { max_wait: QUARTER }
    }
}

/// The settings of one stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamRules {
    pub route: StreamRoute,
    /// 0 to 100; the higher is served first.
    pub priority: u8,
    /// Part of a lane's daily limit this stream may use, above 0 and up to 1. `None`: all of it.
    pub max_share: Option<f64>,
    pub overflow: Overflow,
    /// `max_wait = "auto"`: the longest wait follows from when its mail comes, see [`auto_max_wait`]. Without meaning
    /// unless `overflow` is [`Overflow::HoldThenLegacy`].
    pub auto_wait: bool,
}

impl StreamRules {
    /// What the policy really is: a stream on route `new` holds, whatever it says.
    pub fn overflow(&self) -> Overflow {
        if self.route == StreamRoute::New { Overflow::Hold } else { self.overflow }
    }

    /// The same stream with the longest wait that `"auto"` comes to.
    pub fn waiting(self, auto: impl FnOnce() -> Duration) -> Self {
        match self.overflow {
            Overflow::HoldThenLegacy { .. } if self.auto_wait => {
                StreamRules { overflow: Overflow::HoldThenLegacy { max_wait: auto() }, ..self }
            }
            _ => self,
        }
    }

    /// The order in which streams are served and kept for: priority, and before all of them those on route `new`.
    pub fn rank(&self) -> u8 {
        if self.route == StreamRoute::New { u8::MAX } else { self.priority }
    }

    /// Its mail counts as *offered* to the ramp.
    pub fn takes_part(&self) -> bool {
        self.route == StreamRoute::Ramp
    }

    /// Most recipients of a day with `limit` that this stream may use of a lane, rounded up; `None`: no bound of its
    /// own.
    pub fn share_of(&self, limit: u64) -> Option<u64> {
        self.max_share.map(|share| (share * limit as f64 - 1e-9).ceil() as u64)
    }
}

/// The stream of all mail that no configured one matches.
impl Default for StreamRules {
    fn default() -> Self {
        StreamRules {
            route: StreamRoute::Ramp,
            priority: 50,
            max_share: None,
            overflow: Overflow::default(),
            auto_wait: false,
        }
    }
}

/// `max_wait = "auto"`: 15 minutes, but long enough to spread one burst over its day (1 / hourly + 1 h: 6 h at 20 %)
/// for a stream whose 8 busiest quarter-hours held over half of its last 7 days' mail, and at least 50 recipients.
pub fn auto_max_wait(busiest_eight: u64, offered_7d: u64, hourly: f64) -> Duration {
    if offered_7d >= AUTO_RECIPIENTS_MIN && u128::from(busiest_eight) * 2 > u128::from(offered_7d) {
        Duration::from_secs_f64((1.0 / hourly + 1.0) * 3600.0)
    } else {
        QUARTER
    }
}

/// E for one stream of higher priority: what it offered on the same weekday of last week; one that is younger than a
/// week, what it offered yesterday.
pub fn expected(offered_week_ago: Option<u64>, offered_yesterday: u64) -> u64 {
    offered_week_ago.unwrap_or(offered_yesterday)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_stream_ramps_and_waits_a_quarter_of_an_hour() {
        let stream = StreamRules::default();
        assert_eq!((stream.route, stream.rank()), (StreamRoute::Ramp, 50));
        assert_eq!(stream.overflow().max_wait(), Some(Duration::from_secs(900)));
        assert_eq!(stream.share_of(1000), None);
    }

    #[test]
    fn a_stream_on_the_new_route_holds_and_goes_first() {
        let new = StreamRules { route: StreamRoute::New, priority: 0, ..StreamRules::default() };
        let urgent = StreamRules { priority: 100, ..StreamRules::default() };
        assert_eq!(new.overflow(), Overflow::Hold);
        assert!(new.rank() > urgent.rank());
        assert!(!new.takes_part() && urgent.takes_part());
    }

    #[test]
    fn a_share_is_rounded_up_so_no_stream_is_shut_out() {
        let stream = |share| StreamRules { max_share: Some(share), ..StreamRules::default() };
        for (share, limit, expect) in [(0.7, 1000, 700), (0.01, 50, 1), (0.1, 30, 3), (1.0, 75, 75), (0.5, 75, 38)] {
            assert_eq!(stream(share).share_of(limit), Some(expect), "{share} of {limit}");
        }
    }

    #[test]
    fn only_bursts_wait_longer_on_auto() {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        for (busiest, offered, hourly, expect) in [
            (36_400, 36_400, 0.2, hours(6)),
            (51, 100, 0.5, hours(3)),
            (50, 100, 0.2, QUARTER),
            (49, 49, 0.2, QUARTER),
            (8, 672, 0.2, QUARTER),
        ] {
            assert_eq!(auto_max_wait(busiest, offered, hourly), expect, "{busiest} of {offered}");
        }
    }

    #[test]
    fn a_young_stream_is_expected_to_do_what_it_did_yesterday() {
        assert_eq!(expected(Some(5), 900), 5);
        assert_eq!(expected(None, 900), 900);
    }
}
