//! `mailramp warmup status`: every lane today, what stops it, and the last days. Fits 80 columns.

use std::fmt::Write;

use jiff::tz::TimeZone;

use super::super::status as overview;
use super::super::text::{self, Paint, count, span};
use super::super::{Context, Failure, json};
use crate::admin::api::{
    Answer, BrakeWord, Command, DayState, DayStatus, LaneStatus, PauseStatus, Snapshot, Warmup as WarmupStatus,
};
use crate::admin::warmup::TOTAL;
use crate::log::printable;
use crate::message::Timestamp;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes: the part of the snapshot that is about the ramp.
#[derive(serde::Serialize)]
struct Shown<'a> {
    warmup: &'a WarmupStatus,
    pause: &'a Option<PauseStatus>,
    lanes: &'a [LaneStatus],
    days: &'a [DayStatus],
}

pub(super) fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let Answer::Status(snapshot) = context.call(Command::Status)? else {
        return Err(Failure::strange_answer());
    };
    let Snapshot { warmup, pause, lanes, days, .. } = &*snapshot;
    let text =
        if options.json { json(&Shown { warmup, pause, lanes, days })? } else { render(&snapshot, context.paint) };
    context.write(&text)
}

fn render(snapshot: &Snapshot, paint: Paint) -> String {
    let (zone, zone_name) = text::zone(&snapshot.warmup.zone);
    let mut out = String::new();
    overview::dry_run(&mut out, snapshot, paint);
    headline(&mut out, snapshot, &zone, zone_name);
    if let Some(pause) = &snapshot.pause {
        out.push_str(&pause_line(pause, snapshot.now, &zone, paint));
    }
    out.push('\n');
    out.push_str(&lanes(&snapshot.lanes, paint));
    for lane in &snapshot.lanes {
        out.push_str(&trouble(lane, snapshot.now, &zone, paint));
    }
    if !snapshot.days.is_empty() {
        out.push('\n');
        out.push_str(&days(&snapshot.days, paint));
    }
    out
}

/// Where it is on its way, and when the next step is due.
fn headline(out: &mut String, snapshot: &Snapshot, zone: &TimeZone, zone_name: &str) {
    let warmup = &snapshot.warmup;
    let place = match (&warmup.state, warmup.day, warmup.days_planned) {
        (DayState::NotStarted { .. }, ..) if snapshot.dry_run.is_some() => {
            "the ramp stands still; lanes are shown as if".into()
        }
        (DayState::NotStarted { starts }, ..) => {
            format!("not started: day 1 begins {}", text::local(*starts, zone, "%A %-d %B %Y, %H:%M"))
        }
        (_, Some(day), Some(planned)) if planned >= day => format!("day {day} of {planned}"),
        (_, Some(day), _) => format!("day {day}"),
        (DayState::Unlimited, ..) => "no [warmup] is configured: new has no limit".into(),
        (_, None, _) => "no sending day yet".into(),
    };
    let target = warmup.target.map(|target| format!("   target {} a day", count(target))).unwrap_or_default();
    let _ = writeln!(out, "{place}{target}");
    let _ = writeln!(
        out,
        "next day begins {} {zone_name} (in {})",
        text::local(warmup.day_ends, zone, "%A %H:%M"),
        span(warmup.day_ends.since(snapshot.now).as_secs())
    );
}

fn pause_line(pause: &PauseStatus, now: Timestamp, zone: &TimeZone, paint: Paint) -> String {
    format!(
        "{} since {} ({} ago) by {}: {}\nnothing leaves by new until: mailramp warmup resume --reason TEXT\n",
        paint.warn("PAUSED"),
        text::local(pause.since, zone, "%a %-d %b %H:%M"),
        span(now.since(pause.since).as_secs()),
        text::user(pause.actor),
        printable(&pause.reason)
    )
}

fn lanes(lanes: &[LaneStatus], paint: Paint) -> String {
    let headings = ["PROVIDER", "DAY", "STATE", "LIMIT", "USED", "SENT", "OFFERED", "SHARE", "BRAKE"];
    let mut rows = vec![headings.map(String::from).to_vec()];
    rows.extend(lanes.iter().map(|lane| {
        vec![
            printable(&lane.provider),
            lane.day.map_or("-".into(), |day| day.to_string()),
            state(&lane.state).into(),
            lane.limit.map_or("none".into(), count),
            count(lane.used),
            count(lane.sent),
            count(lane.offered),
            format!("{:.0}%", lane.share * 100.0),
            if lane.brake.level == BrakeWord::Open { "-".into() } else { lane.brake.level.text().into() },
        ]
    }));
    let right = [false, true, false, true, true, true, true, true, false];
    dim_head(&text::table(&rows, &right), paint)
}

fn state(state: &DayState) -> &'static str {
    match state {
        DayState::NotStarted { .. } => "not started",
        DayState::Ramping => "ramping",
        DayState::Ample => "ample",
        DayState::Complete => "complete",
        DayState::Stalled { .. } => "STALLED",
        DayState::Paused { .. } => "PAUSED",
        DayState::Unlimited => "unlimited",
    }
}

/// A line for each thing that keeps a lane back; usually none.
fn trouble(lane: &LaneStatus, now: Timestamp, zone: &TimeZone, paint: Paint) -> String {
    let mut out = String::new();
    let provider = printable(&lane.provider);
    if lane.brake.level != BrakeWord::Open {
        let _ = writeln!(out, "{provider}: {}", paint.bad(&brake(lane, now, zone)));
    }
    if lane.braked_days > 0 {
        let days = text::counted(u64::from(lane.braked_days), "day");
        let _ = writeln!(out, "{provider}: braked or paused on the last {days}, which did not count");
    }
    // What stalls the total is said once.
    if let DayState::Stalled { reason, advice } = &lane.state {
        let advice = if lane.provider == TOTAL { format!(": {}", printable(advice)) } else { String::new() };
        let _ = writeln!(out, "{provider}: {}{advice}", paint.bad(&format!("stalled ({})", reason.text())));
    }
    out
}

/// `suspended until 18:40 (52 min more), since 17:40: 451 4.7.650 x14`
pub(super) fn brake(lane: &LaneStatus, now: Timestamp, zone: &TimeZone) -> String {
    let brake = &lane.brake;
    let until = match brake.until {
        Some(until) => format!("until {} ({} more)", moment(until, now, zone), span(until.since(now).as_secs())),
        None => "until it is released".into(),
    };
    let since = brake.since.map(|since| format!(", since {}", moment(since, now, zone))).unwrap_or_default();
    format!("{} {until}{since}: {}", brake.level.text(), printable(&brake.reason))
}

/// The hour, and the day unless it is less than 20 hours away.
fn moment(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    const NEAR_SECONDS: u64 = 20 * 3600;
    let away = at.since(now).max(now.since(at)).as_secs();
    text::local(at, zone, if away < NEAR_SECONDS { "%H:%M" } else { "%b %-d %H:%M" })
}

fn days(days: &[DayStatus], paint: Paint) -> String {
    let headings = ["DATE", "DAY", "LIMIT", "OFFERED", "NEW", "LEGACY", ""];
    let mut rows = vec![headings.map(String::from).to_vec()];
    let last = days.len() - 1;
    rows.extend(days.iter().enumerate().map(|(place, day)| {
        let mut remarks = Vec::new();
        remarks.extend((place == last).then_some("today"));
        remarks.extend(day.braked.then_some("braked or paused: does not count"));
        vec![
            printable(&day.date),
            day.day.map_or("-".into(), |day| day.to_string()),
            day.limit.map_or("none".into(), count),
            count(day.offered),
            count(day.new),
            count(day.legacy),
            remarks.join(", "),
        ]
    }));
    dim_head(&text::table(&rows, &[false, true, true, true, true, true, false]), paint)
}

fn dim_head(table: &str, paint: Paint) -> String {
    let (head, body) = table.split_once('\n').expect("a table has its headings");
    format!("{}\n{body}", paint.dim(head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::StallReason;
    use crate::admin::fake;

    #[test]
    fn lanes_brakes_and_days_fit_a_terminal_of_eighty_columns() {
        let want = "\
day 9 of 15   target 12,000 a day
next day begins Wednesday 00:00 Europe/Berlin (in 6h12)

PROVIDER   DAY  STATE    LIMIT   USED   SENT  OFFERED  SHARE  BRAKE
all          9  ramping  1,281  1,019  1,017    9,433   100%  -
google       9  ramping    590    471    470    4,339    46%  -
microsoft    9  ramping    269    214    214    1,981    21%  suspended
yahoo        9  ramping    102     81     81      754     8%  -
other        9  ramping    320    253    252    2,359    25%  -
microsoft: suspended until 18:40 (52 min more), since 17:40: 451 4.7.650 x14
microsoft: braked or paused on the last 2 days, which did not count

DATE        DAY  LIMIT  OFFERED    NEW  LEGACY
2026-03-08    8    854    9,760    850   8,910  braked or paused: does not count
2026-03-09    8    854    9,960    854   9,106
2026-03-10    9  1,281    9,419  1,017   8,402  today
";
        let text = render(&fake::snapshot(), Paint::PLAIN);
        assert_eq!(text, want);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn the_widest_numbers_of_a_large_ramp_fit_too() {
        let mut snapshot = fake::snapshot();
        for lane in &mut snapshot.lanes {
            lane.provider = "gmx-webde".into();
            lane.day = Some(120);
            lane.state = DayState::stalled(StallReason::Brake);
            (lane.limit, lane.used, lane.sent, lane.offered) = (Some(999_999), 999_999, 999_999, 999_999);
        }
        let table = lanes(&snapshot.lanes, Paint::PLAIN);
        let widest = table.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{table}");
    }

    #[test]
    fn a_pause_says_who_why_and_how_it_ends() {
        let mut snapshot = fake::snapshot();
        let since = Timestamp::from_seconds(snapshot.now.seconds() - 26 * 3600);
        snapshot.pause = Some(PauseStatus { since, actor: 1000, reason: "complaints\x1b[2J".into() });
        let text = render(&snapshot, Paint::PLAIN);
        let want = "PAUSED since Mon 9 Mar 15:48 (1 d 2h ago) by uid 1000: complaints\\u001b[2J\n\
                    nothing leaves by new until: mailramp warmup resume --reason TEXT\n\n";
        assert!(text.contains(want), "{text}");
    }

    #[test]
    fn a_stalled_total_gives_advice_and_a_stalled_lane_its_reason() {
        let mut snapshot = fake::snapshot();
        snapshot.lanes[0].state = DayState::stalled(StallReason::WaitTooShort);
        snapshot.lanes[1].state = DayState::stalled(StallReason::Day);
        let text = render(&snapshot, Paint::PLAIN);
        assert!(text.contains("\nall: stalled (wait-too-short): mail comes in bursts"), "{text}");
        assert!(text.contains("\ngoogle: stalled (24h)\n"), "{text}");
    }

    #[test]
    fn without_limits_and_before_the_start_it_says_so_in_words() {
        let mut snapshot = fake::snapshot();
        snapshot.warmup.state = DayState::NotStarted { starts: snapshot.warmup.day_ends };
        let text = render(&snapshot, Paint::PLAIN);
        assert!(text.starts_with("not started: day 1 begins Wednesday 11 March 2026, 00:00   target 12,000"), "{text}");
        snapshot.warmup.state = DayState::Unlimited;
        (snapshot.warmup.day, snapshot.warmup.target) = (None, None);
        (snapshot.lanes[0].limit, snapshot.lanes[0].day) = (None, None);
        snapshot.lanes.truncate(1);
        let text = render(&snapshot, Paint::PLAIN);
        assert!(text.starts_with("no [warmup] is configured: new has no limit\n"), "{text}");
        assert!(text.contains("\nall         -  ramping   none"), "{text}");
    }

    #[test]
    fn a_brake_that_only_a_person_ends_says_so() {
        let snapshot = fake::snapshot();
        let mut lane = snapshot.lanes[2].clone();
        (lane.brake.level, lane.brake.until) = (BrakeWord::Paused, None);
        let (zone, _) = text::zone("UTC");
        let want = "paused until it is released, since 16:40: 451 4.7.650 x14";
        assert_eq!(brake(&lane, snapshot.now, &zone), want);
    }
}
