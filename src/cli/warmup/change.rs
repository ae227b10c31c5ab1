//! `mailramp warmup pause`, `resume`, `set-day` and `brakes`: what an operator tells the ramp.
//!
//! A pause and a brake stop something and are done at once; a day is set only with `--yes`, without it the command says
//! what would change.

use super::super::queue::duration;
use super::super::text::{self, count, counted, span};
use super::super::{Context, Failure, json};
use super::{Reason, status};
use crate::admin::api::{Answer, BrakeWord, Change, ChangeAnswer, ChangeOrder, Command, LaneStatus, Snapshot};
use crate::admin::warmup::DAY_MOST;
use crate::log::printable;

#[derive(Debug, clap::Args)]
pub struct Plain {
    #[command(flatten)]
    reason: Reason,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct SetDay {
    /// The sending day to stand at, from 1
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(DAY_MOST)))]
    day: u32,
    /// Do it; without this the command only says what would change
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    plain: Plain,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Brakes {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Nothing of a provider leaves by new for a time
    Set {
        /// Such as google, microsoft, other, or `all`
        provider: String,
        /// For how long, such as 30m, 2h or 1d
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        seconds: u64,
        #[command(flatten)]
        plain: Plain,
    },
    /// What was wrong is mended: the provider's lane is open again. The day still does not count
    Release {
        /// As `warmup brakes` names it
        provider: String,
        #[command(flatten)]
        plain: Plain,
    },
}

impl Plain {
    pub(super) fn pause(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.tell(Change::Pause, false, context)
    }

    pub(super) fn resume(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.tell(Change::Resume, false, context)
    }

    fn tell(&self, change: Change, dry_run: bool, context: &mut Context<'_>) -> Result<(), Failure> {
        let order = ChangeOrder { change, reason: self.reason.reason.clone(), dry_run };
        let Answer::Change(answer) = context.call(Command::Change(order))? else {
            return Err(Failure::strange_answer());
        };
        let text = if self.json { json(&answer)? } else { render(&answer) };
        context.write(&text)
    }
}

impl SetDay {
    pub(super) fn run(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.plain.tell(Change::SetDay { day: self.day }, !self.yes, context)
    }
}

impl Brakes {
    pub(super) fn run(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        match &self.verb {
            None => {
                let Answer::Status(snapshot) = context.call(Command::Status)? else {
                    return Err(Failure::strange_answer());
                };
                let braked = braked(&snapshot);
                let text = if self.json { json(&braked)? } else { list(&braked, &snapshot) };
                context.write(&text)
            }
            Some(Verb::Set { provider, seconds, plain }) => {
                let change = Change::BrakeSet { provider: provider.clone(), for_seconds: *seconds };
                plain.tell(change, false, context)
            }
            Some(Verb::Release { provider, plain }) => {
                plain.tell(Change::BrakeRelease { provider: provider.clone() }, false, context)
            }
        }
    }
}

fn braked(snapshot: &Snapshot) -> Vec<&LaneStatus> {
    snapshot.lanes.iter().filter(|lane| lane.brake.level != BrakeWord::Open).collect()
}

fn list(braked: &[&LaneStatus], snapshot: &Snapshot) -> String {
    if braked.is_empty() {
        return "no brake is on\n".into();
    }
    let (zone, _) = text::zone(&snapshot.warmup.zone);
    let width = braked.iter().map(|lane| lane.provider.chars().count()).max().unwrap_or(0);
    let line = |lane: &&LaneStatus| {
        format!("{:<width$}  {}\n", printable(&lane.provider), status::brake(lane, snapshot.now, &zone))
    };
    braked.iter().map(line).collect()
}

/// What was done, or would be, in words.
fn render(answer: &ChangeAnswer) -> String {
    let waits = counted(answer.waiting, "recipient");
    let meanwhile = match (answer.has_legacy, answer.waiting) {
        (true, 0) => "what comes goes by legacy, or waits where the settings say `hold`".into(),
        (true, _) => format!("what comes, and {waits} in the queue: by legacy, or held where the settings say `hold`"),
        (false, 0) => "what comes waits, since there is no legacy server".into(),
        (false, _) => format!("what comes, and {waits} in the queue: waits, since there is no legacy server"),
    };
    match &answer.change {
        Change::Pause => format!(
            "paused: nothing leaves by new any more, and today does not count\n{meanwhile}\n\
             to go on: mailramp warmup resume --reason TEXT\n"
        ),
        Change::Resume => format!("resumed: new sends again within its limit; {waits} in the queue\n"),
        Change::SetDay { day } => set_day(*day, answer),
        Change::BrakeSet { provider, .. } => {
            let lasts = answer.until.map_or(0, |until| until.since(answer.now).as_secs());
            format!(
                "{}: nothing leaves by new for {}, then slowly at first; today does not count\n{meanwhile}\n",
                printable(provider),
                span(lasts)
            )
        }
        Change::BrakeRelease { provider } => {
            format!("{}: open again; today still does not count; {waits} in the queue\n", printable(provider))
        }
    }
}

fn set_day(day: u32, answer: &ChangeAnswer) -> String {
    let headings = ["PROVIDER", "DAY", "LIMIT TODAY", "TOMORROW AT MOST"];
    let mut rows = vec![headings.map(String::from).to_vec()];
    let limit = |limit: Option<u64>| limit.map_or("none".into(), count);
    let step = |before: String, after: String| if before == after { after } else { format!("{before} -> {after}") };
    rows.extend(answer.lanes.iter().map(|lane| {
        vec![
            printable(&lane.provider),
            step(lane.day_before.to_string(), lane.day.to_string()),
            step(limit(lane.limit_before), limit(lane.limit)),
            step(limit(lane.tomorrow_before), limit(lane.tomorrow)),
        ]
    }));
    let head = if answer.dry_run { format!("would be set to day {day}:") } else { format!("set to day {day}:") };
    let tail = match answer.dry_run {
        true => "Today's limit can only go down by this. Add --yes.\n",
        false => "Today's limit can only go down by this.\n",
    };
    format!("{head}\n{}{tail}", text::table(&rows, &[false; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;

    fn said(change: Change, edit: impl FnOnce(&mut ChangeAnswer)) -> String {
        let mut answer = fake::change_answer(change, false);
        edit(&mut answer);
        render(&answer)
    }

    #[test]
    fn a_day_is_set_with_what_it_means_for_today_and_tomorrow() {
        let want = "\
would be set to day 5:
PROVIDER  DAY     LIMIT TODAY   TOMORROW AT MOST
all       9 -> 5  1,281 -> 253  1,922 -> 379
google    9 -> 5  590           885 -> 174
Today's limit can only go down by this. Add --yes.
";
        let dry = said(Change::SetDay { day: 5 }, |answer| {
            answer.dry_run = true;
            answer.lanes[1].limit = Some(590);
        });
        assert_eq!(dry, want);
        let done = said(Change::SetDay { day: 5 }, |answer| answer.lanes[1].limit = Some(590));
        let expect = want.replace("would be set", "set").replace(" Add --yes.", "");
        assert_eq!(done, expect);
    }

    #[test]
    fn a_pause_says_what_becomes_of_the_mail_and_how_to_go_on() {
        let want = "\
paused: nothing leaves by new any more, and today does not count
what comes, and 12 recipients in the queue: by legacy, or held where the settings say `hold`
to go on: mailramp warmup resume --reason TEXT
";
        assert_eq!(said(Change::Pause, |_| ()), want);
        let alone = said(Change::Pause, |answer| (answer.has_legacy, answer.waiting) = (false, 0));
        assert!(alone.contains("\nwhat comes waits, since there is no legacy server\n"), "{alone}");
        let resumed = said(Change::Resume, |_| ());
        assert_eq!(resumed, "resumed: new sends again within its limit; 12 recipients in the queue\n");
    }

    #[test]
    fn a_brake_says_how_long_and_its_release_what_stays() {
        let set = Change::BrakeSet { provider: "microsoft".into(), for_seconds: 7200 };
        let text = said(set, |answer| answer.waiting = 0);
        let want = "microsoft: nothing leaves by new for 2h, then slowly at first; today does not count\n\
                    what comes goes by legacy, or waits where the settings say `hold`\n";
        assert_eq!(text, want);
        let text = said(Change::BrakeRelease { provider: "microsoft".into() }, |_| ());
        assert_eq!(text, "microsoft: open again; today still does not count; 12 recipients in the queue\n");
    }

    #[test]
    fn the_list_of_brakes_names_them_or_says_that_there_is_none() {
        let mut snapshot = fake::snapshot();
        let want = "microsoft  suspended until 18:40 (52 min more), since 17:40: 451 4.7.650 x14\n";
        assert_eq!(list(&braked(&snapshot), &snapshot), want);
        snapshot.lanes.truncate(2);
        assert_eq!(list(&braked(&snapshot), &snapshot), "no brake is on\n");
    }
}
