//! `mailramp warmup`: look at the ramp's lanes and days, and tell the ramp something.

mod change;
mod status;

use super::text::{self, span};
use super::{Context, Failure, explain};
use crate::admin::api::{Answer, ClockAnswer, Command};
use crate::admin::warmup::checked_reason;

#[derive(Debug, clap::Subcommand)]
pub enum Warmup {
    /// Every lane today, what stops it, and the last days
    Status(status::Options),
    /// Nothing leaves by new until it is resumed: what may goes by legacy at once, the rest waits. The day does not count
    Pause(change::Plain),
    /// New sends again
    Resume(change::Plain),
    /// Put every lane on another sending day: today's limit can only go down by it, tomorrow's follows the curve
    SetDay(change::SetDay),
    /// The brakes that are on; put one on by hand, take one off
    Brakes(change::Brakes),
    /// Why a queued message goes where it goes; or what would happen now to a message to an address
    Explain(explain::Options),
    /// The machine's clock is right, although it stepped: go by it from now on
    ///
    /// While the clock cannot be right, nothing under a limit leaves by new. It agrees again by itself when it is set
    /// right; this is for a clock that was wrong before. What waits keeps its waiting times, what was used of the limit
    /// stays used.
    AcceptClock(Reason),
}

#[derive(Debug, clap::Args)]
pub struct Reason {
    /// Why, for the log and the audit: one line of at most 200 characters
    #[arg(long, value_name = "TEXT", value_parser = checked_reason)]
    pub(super) reason: String,
}

pub(super) fn run(command: &Warmup, context: &mut Context<'_>) -> Result<(), Failure> {
    match command {
        Warmup::Status(options) => status::run(options, context),
        Warmup::Pause(plain) => plain.pause(context),
        Warmup::Resume(plain) => plain.resume(context),
        Warmup::SetDay(set_day) => set_day.run(context),
        Warmup::Brakes(brakes) => brakes.run(context),
        Warmup::Explain(options) => explain::run(options, context),
        Warmup::AcceptClock(Reason { reason }) => {
            let Answer::AcceptClock(done) = context.call(Command::AcceptClock { reason: reason.clone() })? else {
                return Err(Failure::strange_answer());
            };
            context.write(&accepted(&done))
        }
    }
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
