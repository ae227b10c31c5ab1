//! Looks at the relay while the application sends, and draws what it sees.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::application::Diary;
use super::picture::{Live, Picture, Row};
use super::stage::{START, Stage};
use super::{DAY, Options, StopSignals};
use crate::cli::text::{self, count, counted};
use crate::cli::{Context, Failure, exit};
use crate::clock::Clock;
use crate::relay::backend::Course;

/// How often the relay is looked at; so short that what waits for its token is seen.
const LOOK: Duration = Duration::from_millis(20);
/// Looks for each drawing.
const LOOKS_PER_DRAWING: u32 = 5;
/// How long the queue may take to become empty once the application has finished.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// Draws until the application has finished and the queue is empty; says how it stands then.
pub async fn watch(
    options: &Options,
    stage: &mut Stage,
    diary: &Diary,
    application: &mut JoinHandle<()>,
    stop: &mut StopSignals,
    context: &mut Context<'_>,
) -> Result<Course, Failure> {
    let picture = Picture::new(options.target, context.paint);
    let mut view = View { picture, live: Live::default(), held: vec![0; options.days as usize], drawn: 0 };
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut finished: Option<Instant> = None;
    let mut looks = 0_u32;
    loop {
        tokio::select! {
            biased;
            () = stop.asked() => {
                return Err(Failure::new(exit::INTERRUPTED, "interrupted; nothing is left behind"));
            }
            () = stage.relay.died() => return Err(Failure::new(exit::IO, "the spool has stopped")),
            _ = &mut *application, if finished.is_none() => finished = Some(Instant::now()),
            _ = ticks.tick() => {}
        }
        let seen_before = stage.notebook.taken();
        let course = stage.relay.backend.course().await.map_err(|error| Failure::new(exit::IO, error.to_string()))?;
        view.note(&course);
        // A server takes note before the ledger does: with nothing queued, and nothing new at the servers while the
        // ledger was read, both are about the same mail, that of visitors included.
        let settled = course.queued == 0 && stage.notebook.taken() == seen_before;
        let over = finished.is_some_and(|since| settled || since.elapsed() > DRAIN_MAX);
        if over || looks.is_multiple_of(LOOKS_PER_DRAWING) {
            let rows = view.finished_rows(&course, over);
            let drawing = match (context.terminal, over) {
                (false, _) => rows,
                (true, true) => view.live.draw(&rows, ""),
                (true, false) => {
                    let running = view.running_row(&course);
                    view.live.draw(&rows, &format!("{running}\n{}", status(stage, diary, &course)))
                }
            };
            if !drawing.is_empty() {
                context.write(&drawing)?;
            }
        }
        if over {
            return Ok(course);
        }
        looks = looks.wrapping_add(1);
    }
}

/// ` Wed 14:20   1,204 messages to 8,010 recipients accepted   118 wait for a token`
fn status(stage: &Stage, diary: &Diary, course: &Course) -> String {
    let (messages, recipients) = {
        let accepted = diary.accepted.lock().expect("no holder panics");
        (accepted.len() as u64, accepted.iter().map(|(_, n)| u64::from(*n)).sum::<u64>())
    };
    let skipped = match diary.skipped.load(Ordering::Relaxed) {
        0 => String::new(),
        skipped => format!("   too slow for {}", count(skipped)),
    };
    let now = stage.clock.now();
    format!(
        " day {} {}   {} to {} accepted   {} held{skipped}\n",
        now.since(START).as_secs() / DAY.as_secs() + 1,
        text::local(now, &jiff::tz::TimeZone::UTC, "%a %H:%M"),
        counted(messages, "message"),
        counted(recipients, "recipient"),
        count(course.held)
    )
}

struct View {
    picture: Picture,
    live: Live,
    /// Most recipients seen waiting for a token at one time, by day.
    held: Vec<u64>,
    /// Days whose rows stand.
    drawn: usize,
}

impl View {
    fn note(&mut self, course: &Course) {
        if let Some(held) = course.days.len().checked_sub(1).and_then(|today| self.held.get_mut(today)) {
            *held = (*held).max(course.held);
        }
    }

    /// Rows that have not been drawn yet of days that are over; with `all`, of the last one too.
    fn finished_rows(&mut self, course: &Course, all: bool) -> String {
        let known = course.days.len();
        let end = if all { known } else { known.saturating_sub(1) }.min(self.held.len());
        let rows: String = (self.drawn..end).map(|day| self.row(course, day)).collect();
        self.drawn = self.drawn.max(end);
        rows
    }

    fn running_row(&self, course: &Course) -> String {
        let today = course.days.len().checked_sub(1).filter(|today| *today < self.held.len());
        today.map_or(String::new(), |today| self.row(course, today))
    }

    fn row(&self, course: &Course, day: usize) -> String {
        let record = &course.days[day];
        let (limit, new, legacy) = (record.limit, record.sent, record.legacy);
        self.picture.row(&Row { day: day as u32, limit, new, legacy, held: self.held[day] })
    }
}
