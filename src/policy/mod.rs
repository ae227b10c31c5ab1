//! How the warm-up decides: how much may leave by the new server today, how fast, and what happens to the rest.
//!
//! Everything here is a plain function of (rules, stored state, event, now). Nothing is remembered, nothing asks the
//! time, nothing touches a disk or a socket, and the functions a claim calls neither allocate nor loop over the
//! queue. The state lives in the spool's ledger; an adapter fills its numbers into [`allowance::LaneView`] and
//! [`stage::Boundary`], and writes back what comes out.
//!
//! | file | answers |
//! |---|---|
//! | [`curve`], [`presets`] | what a stage allows; the curves that have a name |
//! | [`calendar`] | when a day begins and ends |
//! | [`stage`] | at a day boundary: the new stage and limit of a lane |
//! | [`state`] | what that is called, and when a lane is complete |
//! | [`pace`] | how fast within the day, and in which hours |
//! | [`allowance`] | how much a stream may send now, and when to look again |
//! | [`wait`] | how much of what arrives may wait, and until when; the rest overflows |
//! | [`stream`] | what the operator says about one kind of mail |
//! | [`classify`], [`mailbox`] | which kind a message is; who wrote it |
//! | [`retry`] | when to try a refused delivery again |
//! | [`plan`] | what all of this would do with a given demand |
//! | [`lanes`] | which mailbox providers have a limit of their own |
//! | [`provider`] | who runs a domain's mail servers |
//! | [`signal`] | what a reply of theirs means for the ramp |
//! | [`brake`] | how that slows a lane down, and for how long |
//!
//! Deliberately not here: counting, and looking anything up. The rules know no provider by name; files in `conf/` do.

pub mod allowance;
pub mod brake;
pub mod calendar;
pub mod classify;
pub mod curve;
pub mod lanes;
pub mod mailbox;
pub mod pace;
pub mod plan;
pub mod presets;
pub mod provider;
pub mod retry;
pub mod rule_file;
pub mod signal;
pub mod stage;
pub mod state;
pub mod stream;
pub mod wait;

pub use allowance::{Bound, Bounds, Closed, LaneView, Wake};
pub use brake::{Brake, BrakeRules, Braked};
pub use calendar::Calendar;
pub use curve::Curve;
pub use lanes::{Lanes, SharesError};
pub use pace::{OpenHours, Pace, Window};
pub use presets::{Preset, Presets};
pub use provider::{Operator, Provider, Providers};
pub use retry::RetrySchedule;
pub use signal::{Signal, Signals, StageStep};
pub use stage::{Boundary, NextDay, Step};
pub use state::{Refusals, StallReason, State};
pub use stream::{Overflow, StreamRoute, StreamRules};
pub use wait::{Admission, AtDeadline, Outlook, admit};

use crate::message::Day;

/// Products of a share and a limit that should be whole are off by less than this.
const ROUNDING: f64 = 1e-9;
/// The hourly share must leave this much room above "exactly the whole day, evenly".
const HOURLY_HEADROOM: f64 = 1.1;
/// Ramp streams whose shares add up to less than this could never use the 75 % of a day that full speed needs.
const STREAM_SHARES_MIN: f64 = 0.75;

/// What moves the ramp on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Advance {
    /// A day on which at least `min_used` of the limit was sent.
    #[default]
    SendingDay,
    /// Every day without a brake or a pause. The step cap still holds.
    Calendar,
}

/// What the first braked day does to the stage; every further one in a row steps back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AfterBrake {
    #[default]
    Repeat,
    StepBack,
}

/// The settings of the warm-up, already parsed. `relay` builds it from the configuration; [`Rules::check`] before
/// use.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub curve: Curve,
    /// Recipients a day at which the ramp is done.
    pub target: u64,
    /// Part of the limit that must be sent for a day to count, above 0 and up to 1.
    pub min_used: f64,
    pub advance: Advance,
    /// A day allows at most this many times the best day remembered: 1 or more; 0 is no cap.
    pub max_step: f64,
    pub after_brake: AfterBrake,
    /// Part of the day's limit that may leave in any 60 minutes, above 0 and up to 1.
    pub hourly: f64,
    /// Part of the day's limit that may leave at once, above 0 and up to 1.
    pub burst: f64,
    pub window: Window,
    /// First day of the ramp. `None`: not remembered yet, so nothing may leave by `new`.
    pub start: Option<Day>,
    pub calendar: Calendar,
    /// For streams that say nothing else.
    pub overflow: Overflow,
    pub retry: RetrySchedule,
}

/// The documented defaults; `target` and `start` have none and must be set.
impl Default for Rules {
    fn default() -> Self {
        Rules {
            curve: Curve::standard(),
            target: 0,
            min_used: 0.5,
            advance: Advance::SendingDay,
            max_step: 2.0,
            after_brake: AfterBrake::Repeat,
            hourly: 0.2,
            burst: 0.02,
            window: Window::WHOLE_DAY,
            start: None,
            calendar: Calendar::utc(),
            overflow: Overflow::default(),
            retry: RetrySchedule::default(),
        }
    }
}

/// Settings under which the ramp could not work. Each says what to change.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RulesError {
    #[error("target is 0; set the recipients a day the new server shall carry in the end")]
    NoTarget,
    #[error("{name} is {value}; it must be above 0 % and at most 100 %")]
    Share { name: &'static str, value: f64 },
    #[error("max_step is {0}; it must be at least 1, or 0 for none")]
    MaxStep(f64),
    #[error(
        "hourly is {hourly_percent:.1} %: a day's limit would not fit into a window of {window_hours} hours; use at least {least_percent:.1} %"
    )]
    HourlyTooSmall { hourly_percent: f64, window_hours: f64, least_percent: f64 },
    #[error("the shares of the providers add up to {0:.1} %; at most 100 % can be given")]
    ProviderShares(f64),
    #[error("the max_share of the ramp streams add up to {0:.1} %; below 75 % the ramp cannot move at full speed")]
    StreamShares(f64),
}

impl Rules {
    /// Refuses what could not ramp. `provider_shares` are the configured ones, empty when automatic or off;
    /// `streams` all of them, with the last resort.
    pub fn check(&self, provider_shares: &[f64], streams: &[StreamRules]) -> Result<(), RulesError> {
        if self.target == 0 {
            return Err(RulesError::NoTarget);
        }
        for (name, value) in [("min_used", self.min_used), ("hourly", self.hourly), ("burst", self.burst)] {
            is_share(name, value)?;
        }
        if !(self.max_step == 0.0 || (self.max_step >= 1.0 && self.max_step.is_finite())) {
            return Err(RulesError::MaxStep(self.max_step));
        }
        let least = (HOURLY_HEADROOM / self.window.hours()).min(1.0);
        if self.hourly + ROUNDING < least {
            return Err(RulesError::HourlyTooSmall {
                hourly_percent: self.hourly * 100.0,
                window_hours: self.window.hours(),
                least_percent: least * 100.0,
            });
        }
        for value in provider_shares {
            is_share("a provider's share", *value)?;
        }
        let providers: f64 = provider_shares.iter().sum();
        if providers > 1.0 + ROUNDING {
            return Err(RulesError::ProviderShares(providers * 100.0));
        }
        let mut ramp = streams.iter().filter(|stream| stream.takes_part()).peekable();
        let any = ramp.peek().is_some();
        let mut sum = 0.0;
        for share in ramp.map(|stream| stream.max_share.unwrap_or(1.0)) {
            is_share("max_share", share)?;
            sum += share;
        }
        if any && sum + ROUNDING < STREAM_SHARES_MIN {
            return Err(RulesError::StreamShares(sum * 100.0));
        }
        Ok(())
    }

    /// The pace of a lane on a day with `limit`; `None` where only the ledger bounds.
    pub fn pace(&self, limit: Option<u64>) -> Option<Pace> {
        limit.and_then(|limit| Pace::of(limit, self.hourly, self.burst))
    }
}

fn is_share(name: &'static str, value: f64) -> Result<(), RulesError> {
    if value > 0.0 && value <= 1.0 { Ok(()) } else { Err(RulesError::Share { name, value }) }
}

/// Whole recipients of a computed number: rounded down, but 2.9999999999 is 3.
fn whole(recipients: f64) -> u64 {
    (recipients + ROUNDING) as u64 // a cast from a float stops at the ends of the range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_could_not_ramp_are_refused_with_the_number_to_use() {
        let good = Rules { target: 12_000, ..Rules::default() };
        let streams = [StreamRules::default()];
        assert_eq!(good.check(&[0.46, 0.21, 0.08, 0.25], &streams), Ok(()));
        assert_eq!(good.check(&[], &[]), Ok(()));
        assert_eq!(Rules::default().check(&[], &streams), Err(RulesError::NoTarget));
        let share = |name, value| Err(RulesError::Share { name, value });
        assert_eq!(Rules { min_used: 0.0, ..good.clone() }.check(&[], &streams), share("min_used", 0.0));
        assert_eq!(Rules { burst: 1.5, ..good.clone() }.check(&[], &streams), share("burst", 1.5));
        for max_step in [0.5, -1.0, f64::INFINITY] {
            assert_eq!(Rules { max_step, ..good.clone() }.check(&[], &streams), Err(RulesError::MaxStep(max_step)));
        }
        let too_slow = Rules { hourly: 0.0416, ..good.clone() }.check(&[], &streams).unwrap_err();
        assert!(too_slow.to_string().contains("use at least 4.6 %"), "{too_slow}");
        let short_window = Rules { window: "09:00-12:00".parse().unwrap(), ..good.clone() };
        assert!(matches!(short_window.check(&[], &streams), Err(RulesError::HourlyTooSmall { .. })));
        assert!(matches!(good.check(&[0.6, 0.6], &streams), Err(RulesError::ProviderShares(_))));
        let half = StreamRules { max_share: Some(0.5), ..StreamRules::default() };
        assert_eq!(good.check(&[], &[half]), Err(RulesError::StreamShares(50.0)));
        assert_eq!(good.check(&[], &[half, half]), Ok(()));
    }

    #[test]
    fn products_that_should_be_whole_are() {
        for (number, expect) in [(0.29 * 100.0, 29), (0.2 * 10.0, 2), (2.999, 2), (0.0, 0), (-1.0, 0), (1e30, u64::MAX)]
        {
            assert_eq!(whole(number), expect, "{number}");
        }
    }
}
