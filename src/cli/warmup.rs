//! `mailramp warmup`: what an operator tells the ramp.

use super::text::{self, span};
use super::{Context, Failure};
use crate::admin::api::{Answer, ClockAnswer, Command};

#[derive(Debug, clap::Subcommand)]
pub enum Warmup {
    /// The machine's clock is right, although it stepped: go by it from now on
    ///
    /// While the clock cannot be right, nothing under a limit leaves by new. It agrees again by itself when it is set
    /// right; this is for a clock that was wrong before. What waits keeps its waiting times, what was used of the limit
    /// stays used.
    AcceptClock(Reason),
}

#[derive(Debug, clap::Args)]
pub struct Reason {
    /// Why, for the log
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) fn run(command: &Warmup, context: &mut Context<'_>) -> Result<(), Failure> {
    let Warmup::AcceptClock(Reason { reason }) = command;
    let Answer::AcceptClock(done) = context.call(Command::AcceptClock { reason: reason.clone() })? else {
        return Err(Failure::strange_answer());
    };
    context.write(&accepted(&done))
}

fn accepted(done: &ClockAnswer) -> String {
    let way = if done.moved_seconds < 0 { "back" } else { "on" };
    let (zone, _) = text::zone("UTC");
    let now = text::local(done.now, &zone, "%Y-%m-%d %H:%M:%S");
    format!(
        "the time moved {way} by {}: it is {now} UTC, and new sends again\n",
        span(done.moved_seconds.unsigned_abs())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Timestamp;

    #[test]
    fn it_says_by_how_much_the_time_moved_and_which_way() {
        let now = Timestamp::from_seconds(1_773_161_280);
        let want = "the time moved back by 2h: it is 2026-03-10 16:48:00 UTC, and new sends again\n";
        assert_eq!(accepted(&ClockAnswer { moved_seconds: -7200, now }), want);
        let want = "the time moved on by 3 min: it is 2026-03-10 16:48:00 UTC, and new sends again\n";
        assert_eq!(accepted(&ClockAnswer { moved_seconds: 180, now }), want);
    }
}
