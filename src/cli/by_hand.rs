//! `mailramp queue flush`, `reroute` and `drop`: what an operator does to queued mail by hand.
//!
//! Without `--yes` only the numbers are said. With it, what matched at the start is worked on piece by piece; Ctrl-C
//! ends it between two pieces, and the answer says how far it came.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::queue::Filter;
use super::text::{self, counted};
use super::{Context, Failure, exit};
use crate::admin::api::{
    ActionAnswer, Answer, Command, LeftAlone, QueueAction, QueueStep, RouteName, Selection, StepAnswer,
};
use crate::admin::queue::STEP_MOST_ITEMS;

#[derive(Debug, clap::Args)]
pub struct Change {
    #[command(flatten)]
    filter: Filter,
    /// The whole queue
    #[arg(long, conflicts_with_all = ["stream", "rcpt_domain", "state", "older_than", "id"])]
    all: bool,
    /// Do it; without this only the number is said
    #[arg(long)]
    yes: bool,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Reroute {
    /// By which route
    #[arg(long, value_name = "ROUTE")]
    to: RouteName,
    #[command(flatten)]
    change: Change,
}

impl Reroute {
    pub(super) fn run(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.change.run(QueueAction::Reroute(self.to), context)
    }
}

impl Change {
    pub(super) fn flush(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.run(QueueAction::Flush, context)
    }

    pub(super) fn drop(&self, context: &mut Context<'_>) -> Result<(), Failure> {
        self.run(QueueAction::Drop, context)
    }

    fn run(&self, action: QueueAction, context: &mut Context<'_>) -> Result<(), Failure> {
        let asked = Command::QueueSelect { filter: self.filter.wire(), action, all: self.all, ids: self.yes };
        let Answer::QueueSelect(selected) = context.call(asked)? else { return Err(Failure::strange_answer()) };
        if !self.yes {
            let Selection { messages, recipients, bytes, left, .. } = selected;
            let answer = ActionAnswer { action, dry_run: true, messages, recipients, bytes, left, not_reached: 0 };
            return self.say(&answer, context);
        }
        let interrupt = Interrupt::listen()?;
        let (done, failed) = self.work(action, &selected, &interrupt, context);
        self.say(&done, context)?;
        match failed {
            Some(failure) => Err(failure),
            None if done.not_reached > 0 => Err(Failure::new(exit::INTERRUPTED, "stopped; what is done stays done")),
            None => Ok(()),
        }
    }

    /// Has the selected messages worked on until there are no more, it was stopped, or the relay could not.
    fn work(
        &self,
        action: QueueAction,
        selected: &Selection,
        interrupt: &Interrupt,
        context: &Context<'_>,
    ) -> (ActionAnswer, Option<Failure>) {
        let mut done = ActionAnswer {
            action,
            dry_run: false,
            messages: 0,
            recipients: 0,
            bytes: 0,
            left: selected.left,
            not_reached: selected.ids.len() as u64,
        };
        let mut progress = Progress::new(selected.ids.len());
        for ids in selected.ids.chunks(STEP_MOST_ITEMS) {
            if interrupt.was_heard() {
                break;
            }
            let step = QueueStep { job: selected.job, action, filter: self.filter.wire(), ids: ids.to_vec() };
            let StepAnswer { messages, recipients, bytes, left } = match context.call(Command::QueueStep(step)) {
                Ok(Answer::QueueStep(answer)) => answer,
                Ok(_) => return (done, Some(Failure::strange_answer())),
                Err(failure) => return (done, Some(failure)),
            };
            done.messages += messages;
            done.recipients += recipients;
            done.bytes += bytes;
            done.left.add(&left);
            done.not_reached -= ids.len() as u64;
            progress.step(ids.len());
        }
        (done, None)
    }

    fn say(&self, answer: &ActionAnswer, context: &mut Context<'_>) -> Result<(), Failure> {
        let text = if self.json { super::json(answer)? } else { render(answer) };
        context.write(&text)
    }
}

/// Whether Ctrl-C was pressed since this was made.
struct Interrupt {
    heard: Arc<AtomicBool>,
    /// Listens for as long as it lives.
    _runtime: tokio::runtime::Runtime,
}

impl Interrupt {
    fn listen() -> Result<Interrupt, Failure> {
        let cannot = |error: std::io::Error| Failure::new(exit::IO, format!("cannot listen for Ctrl-C: {error}"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().map_err(cannot)?;
        let heard = Arc::new(AtomicBool::new(false));
        let flag = heard.clone();
        // Made here and not in the task: from here on the signal no longer ends the process.
        let mut signals = {
            let _inside = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(cannot)?
        };
        runtime.spawn(async move {
            if signals.recv().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
        Ok(Interrupt { heard, _runtime: runtime })
    }

    fn was_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }
}

/// How far long work is, on standard error if that is a terminal.
struct Progress {
    whole: usize,
    done: usize,
    shown: bool,
}

impl Progress {
    fn new(whole: usize) -> Progress {
        Progress { whole, done: 0, shown: whole > STEP_MOST_ITEMS && std::io::stderr().is_terminal() }
    }

    fn step(&mut self, items: usize) {
        self.done += items;
        if self.shown {
            let (done, whole) = (self.done as u64, self.whole as u64);
            let end = if self.done == self.whole { "\n" } else { "" };
            let bar = text::bar(done, whole, 24);
            // A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r[{bar}] {} of {}{end}", text::count(done), text::count(whole));
        }
    }
}

/// `2 messages, 2 recipients, 41 kB would go to legacy now. Add --yes.`
fn render(answer: &ActionAnswer) -> String {
    let ActionAnswer { action, dry_run, messages, recipients, bytes, left, not_reached } = answer;
    let what =
        format!("{}, {}, {}", counted(*messages, "message"), counted(*recipients, "recipient"), text::size(*bytes));
    let mut out = match (dry_run, messages) {
        (_, 0) if left.is_none() && *not_reached == 0 => return "nothing waits that matches\n".into(),
        (true, 0) => "nothing of what matches can be changed\n".into(),
        (false, 0) => "nothing was changed\n".into(),
        (true, _) => format!("{what} would {} now. Add --yes.\n", verb(*action)),
        (false, _) => format!("{what}: {}\n", done(*action)),
    };
    if *not_reached > 0 {
        out.push_str(&format!("not reached: {}, as {} before\n", counted(*not_reached, "message"), were(*not_reached)));
    }
    if !left.is_none() {
        out.push_str(&format!("left alone: {}\n", reasons(left, *action).join(", ")));
    }
    out
}

fn were(number: u64) -> &'static str {
    if number == 1 { "it was" } else { "they were" }
}

fn verb(action: QueueAction) -> &'static str {
    match action {
        QueueAction::Flush => "be tried",
        QueueAction::Reroute(RouteName::Legacy) => "go to legacy",
        QueueAction::Reroute(RouteName::New) => "go to new, as far as the quota allows,",
        QueueAction::Drop => "be removed for good",
    }
}

fn done(action: QueueAction) -> &'static str {
    match action {
        QueueAction::Flush => "tried now, as far as the quota allows",
        QueueAction::Reroute(RouteName::Legacy) => "go to legacy now",
        QueueAction::Reroute(RouteName::New) => "go to new, as far as the quota allows",
        QueueAction::Drop => "removed for good",
    }
}

fn reasons(left: &LeftAlone, action: QueueAction) -> Vec<String> {
    let already = match action {
        QueueAction::Reroute(_) => "on that route already",
        _ => "due already",
    };
    let LeftAlone { in_flight, maybe_delivered, already: there, dead, damaged, paused, gone } = *left;
    [
        (in_flight, "on their way"),
        (maybe_delivered, "maybe delivered, they keep their route"),
        (there, already),
        (dead, "dead letters, which `queue reroute` brings back"),
        (damaged, "damaged"),
        (paused, "paused, which `queue flush --state paused` releases"),
        (gone, "gone since"),
    ]
    .into_iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, why)| format!("{} {why}", text::count(number)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(action: QueueAction, dry_run: bool, messages: u64) -> ActionAnswer {
        let left = LeftAlone::default();
        ActionAnswer { action, dry_run, messages, recipients: messages, bytes: messages * 20_500, left, not_reached: 0 }
    }

    #[test]
    fn an_action_says_what_it_would_do_and_what_it_did() {
        let to = |route| QueueAction::Reroute(route);
        for (action, dry, want) in [
            (QueueAction::Flush, true, "2 messages, 2 recipients, 41 kB would be tried now. Add --yes.\n"),
            (to(RouteName::Legacy), true, "2 messages, 2 recipients, 41 kB would go to legacy now. Add --yes.\n"),
            (
                to(RouteName::New),
                true,
                "2 messages, 2 recipients, 41 kB would go to new, as far as the quota allows, now. Add --yes.\n",
            ),
            (QueueAction::Drop, true, "2 messages, 2 recipients, 41 kB would be removed for good now. Add --yes.\n"),
            (QueueAction::Flush, false, "2 messages, 2 recipients, 41 kB: tried now, as far as the quota allows\n"),
            (to(RouteName::Legacy), false, "2 messages, 2 recipients, 41 kB: go to legacy now\n"),
            (QueueAction::Drop, false, "2 messages, 2 recipients, 41 kB: removed for good\n"),
        ] {
            assert_eq!(render(&answer(action, dry, 2)), want);
        }
        assert_eq!(render(&answer(QueueAction::Drop, true, 0)), "nothing waits that matches\n");
    }

    #[test]
    fn what_is_left_alone_and_what_was_not_reached_is_said_with_its_reason() {
        let mut reroute = answer(QueueAction::Reroute(RouteName::Legacy), false, 1);
        reroute.left = LeftAlone { in_flight: 1, maybe_delivered: 2_000, already: 3, gone: 4, ..LeftAlone::default() };
        reroute.not_reached = 500;
        let want = "\
1 message, 1 recipient, 20 kB: go to legacy now
not reached: 500 messages, as they were before
left alone: 1 on their way, 2,000 maybe delivered, they keep their route, 3 on that route already, 4 gone since
";
        assert_eq!(render(&reroute), want);
        let mut flush = answer(QueueAction::Flush, true, 0);
        flush.left.paused = 7;
        let want = "nothing of what matches can be changed\nleft alone: 7 paused, which `queue flush --state paused` releases\n";
        assert_eq!(render(&flush), want);
    }
}
