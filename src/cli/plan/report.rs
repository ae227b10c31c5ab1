//! A plan in words and as JSON, and the comparison of curves. Pure.

use jiff::civil::Date;
use serde::Serialize;

use crate::cli::text::{count, counted, table};
use crate::policy::Curve;
use crate::policy::calendar::date_of_day;
use crate::policy::plan::{Demand, Plan, PlanDay, STEP_ADVISED, Warning, weekday_name};

/// Daily volumes whose days the comparison names.
const VOLUMES: [u64; 3] = [2_000, 10_000, 100_000];

/// What was planned.
#[derive(Clone, Debug)]
pub struct Subject {
    pub curve: String,
    /// What the curve is, when it has a name.
    pub about: Option<String>,
    pub target: u64,
    pub demand: Demand,
    pub start: Date,
    pub max_step: f64,
    pub min_used: f64,
    /// There is no legacy server: mail over the limit waits.
    pub holds: bool,
    /// Part of a day that the settings let leave in one hour, 0 to 1.
    pub hourly: f64,
    /// What the source of the curve lets leave in one hour, if it says so.
    pub published_hourly: Option<f64>,
}

impl Subject {
    /// `12,000 on weekdays, 4,800 on weekends`
    pub fn mail(&self) -> String {
        match self.demand {
            Demand { weekday, weekend } if weekday == weekend => format!("{} a day", count(weekday)),
            Demand { weekday, weekend } => format!("{} on weekdays, {} on weekends", count(weekday), count(weekend)),
        }
    }

    /// Everything worth a warning, in sentences.
    pub fn warnings(&self, plan: &Plan) -> Vec<(&'static str, Option<u32>, String)> {
        let of_plan =
            plan.warnings.iter().map(|warning| (warning.name(), warning.day().map(|d| d.number), said(warning)));
        let hourly =
            self.published_hourly.filter(|published| *published + HOURLY_SLACK < self.hourly).map(|published| {
                let percent = |share: f64| (share * 100.0).round();
                let text = format!(
                    "warmup.pace.hourly lets {} % of a day leave in an hour; the source of this curve says {} %",
                    percent(self.hourly),
                    percent(published)
                );
                ("hourly", None, text)
            });
        of_plan.chain(hourly).collect()
    }
}

/// Published shares of an hour are rounded to whole recipients.
const HOURLY_SLACK: f64 = 0.015;

/// `day 14 (Sun)`
fn called(day: PlanDay) -> String {
    format!("day {} ({})", day.number, weekday_name(day.day))
}

fn said(warning: &Warning) -> String {
    let days_of = |days: u32| counted(u64::from(days), "day");
    match *warning {
        Warning::Step { day, before, allowed } => format!(
            "{}: {} is x{:.2} of the mail really sent ({}); max_step = {STEP_ADVISED:.1} would allow {}",
            called(day),
            count(day.new),
            day.new as f64 / before.max(1) as f64,
            count(before),
            count(allowed),
        ),
        Warning::Capped { day, days, max_step } => format!(
            "max_step = {max_step:.1} holds the limit below the curve on {}, first on {}: {} instead of {}",
            days_of(days),
            called(day),
            count(day.limit),
            count(day.curve),
        ),
        Warning::Repeats { day, days, min_used } => format!(
            "{} not count, because less than {} % of the limit is sent; first {}: {} of {}",
            if days == 1 { "1 day does".to_owned() } else { format!("{} do", days_of(days)) },
            (min_used * 100.0).round(),
            called(day),
            count(day.new),
            count(day.limit),
        ),
        Warning::Waiting { day, recipients } => format!(
            "there is no legacy server, so mail over the limit waits; most at the end of {}: {}",
            called(day),
            counted(recipients, "recipient"),
        ),
        Warning::DemandAbove { demand, target } => format!(
            "the busiest day has mail for {}, the target is {}: the ramp goes on beyond it",
            count(demand),
            count(target)
        ),
        Warning::Ample { day } => format!(
            "the target is not reached, because no day has so much mail; from {} on nothing goes over the limit",
            called(day)
        ),
        Warning::CurveEnds { highest } => {
            format!("the target is not reached: the curve stands still at {}; choose one that grows on", count(highest))
        }
        Warning::NotReached { day, days } => format!(
            "the target is not reached in {}; the limit was last raised on {}, to {}",
            days_of(days),
            called(day),
            count(day.limit)
        ),
    }
}

/// The last line: when the ramp is done, and what goes where.
pub fn verdict(plan: &Plan, holds: bool) -> String {
    let done = match plan.full_on {
        Some(day) => format!("full volume on sending day {} (calendar day {day})", plan.sending_day()),
        None => format!("full volume is not reached in {}", counted(plan.days.len() as u64, "day")),
    };
    let rest = match holds {
        true => format!("{} still waiting", count(plan.days.last().map_or(0, |day| day.waiting))),
        false => format!("{} via legacy", count(plan.legacy_total())),
    };
    format!("{done}; ramp total: {} via new, {rest}", count(plan.new_total()))
}

/// One plan for scripts. Recipients throughout; `null` where the target is not reached.
#[derive(Debug, Serialize)]
pub struct Report {
    curve: String,
    start: String,
    target: u64,
    max_step: f64,
    min_used: f64,
    days_to_target: Option<u32>,
    sending_days_to_target: Option<u32>,
    offered: u64,
    via_new: u64,
    via_legacy: u64,
    waiting: u64,
    warnings: Vec<Said>,
    days: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Said {
    kind: &'static str,
    day: Option<u32>,
    text: String,
}

#[derive(Debug, Serialize)]
struct Line {
    day: u32,
    date: String,
    weekday: &'static str,
    stage: u32,
    limit: u64,
    offered: u64,
    new: u64,
    legacy: u64,
    waiting: u64,
    counted: bool,
}

impl Report {
    pub fn new(subject: &Subject, plan: &Plan) -> Report {
        let line = |day: &PlanDay| Line {
            day: day.number,
            date: date_of_day(day.day).to_string(),
            weekday: weekday_name(day.day),
            stage: day.stage,
            limit: day.limit,
            offered: day.offered,
            new: day.new,
            legacy: day.legacy,
            waiting: day.waiting,
            counted: day.counted,
        };
        Report {
            curve: subject.curve.clone(),
            start: subject.start.to_string(),
            target: subject.target,
            max_step: subject.max_step,
            min_used: subject.min_used,
            days_to_target: plan.full_on,
            sending_days_to_target: plan.full_on.map(|_| plan.sending_day()),
            offered: plan.offered_total(),
            via_new: plan.new_total(),
            via_legacy: plan.legacy_total(),
            waiting: plan.days.last().map_or(0, |day| day.waiting),
            warnings: subject.warnings(plan).into_iter().map(|(kind, day, text)| Said { kind, day, text }).collect(),
            days: plan.days.iter().map(line).collect(),
        }
    }
}

/// Several curves under the same mail.
#[derive(Debug, Serialize)]
pub struct Compared {
    days_planned: u32,
    volumes: [u64; 3],
    curves: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    curve: String,
    /// Calendar days, from 1, on which the limit reaches the volumes.
    reached_on: [Option<u32>; 3],
    /// The same by the numbers of the curve alone: all mail there is, every day counts, no step too large.
    numbers_alone: [Option<u32>; 3],
    /// Until the target is reached, or in all the days planned.
    via_legacy: u64,
}

impl Compared {
    pub fn new(days_planned: u32) -> Compared {
        Compared { days_planned, volumes: VOLUMES, curves: Vec::new() }
    }

    pub fn add(&mut self, name: &str, curve: &Curve, plan: &Plan) {
        let alone = |volume: u64| (0..self.days_planned).find(|stage| curve.at(*stage) >= volume as f64).map(|s| s + 1);
        self.curves.push(Row {
            curve: name.to_owned(),
            reached_on: VOLUMES.map(|volume| plan.first_day_of(volume)),
            numbers_alone: VOLUMES.map(alone),
            via_legacy: plan.legacy_total(),
        });
    }

    /// A table; `-` where a volume is not reached in the days planned.
    pub fn text(&self) -> String {
        let day = |day: &Option<u32>| day.map_or("-".to_owned(), |day| day.to_string());
        let mut heading = vec!["curve".to_owned()];
        heading.extend(VOLUMES.iter().map(|volume| count(*volume)));
        heading.extend(VOLUMES.iter().map(|volume| format!("({})", count(*volume))));
        heading.push("via legacy".to_owned());
        let mut rows = vec![heading];
        for row in &self.curves {
            let mut cells = vec![row.curve.clone()];
            cells.extend(row.reached_on.iter().map(day));
            cells.extend(row.numbers_alone.iter().map(|number| format!("({})", day(number))));
            cells.push(count(row.via_legacy));
            rows.push(cells);
        }
        let right = [false, true, true, true, true, true, true, true];
        format!(
            "calendar day on which so many recipients a day are allowed, within {}; in brackets by the curve's numbers alone\n{}",
            counted(u64::from(self.days_planned), "day"),
            table(&rows, &right)
        )
    }
}
