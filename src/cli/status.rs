//! `mailramp status`: one screen that answers "how far is it, and is anything wrong".

use std::fmt::Write;

use super::text::{self, Paint, count, span};
use super::{Context, Failure};
use crate::admin::api::{
    Answer, BrakeWord, Command, DayState, LaneStatus, OldestHeld, QueueTotals, RouteStatus, Snapshot,
};
use crate::admin::warmup::TOTAL;
use crate::log::printable;

const BAR_WIDTH: usize = 20;
/// What a reason may fill.
const LINE_WIDTH: usize = 80;
/// Of 26 characters each.
const PROVIDERS_A_LINE: usize = 3;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// For programs: everything, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let Answer::Status(snapshot) = context.call(Command::Status)? else {
        return Err(Failure::strange_answer());
    };
    let text = if options.json { super::json(&*snapshot)? } else { render(&snapshot, context.paint) };
    context.write(&text)
}

/// The screen.
pub fn render(snapshot: &Snapshot, paint: Paint) -> String {
    let mut out = String::new();
    clock(&mut out, snapshot, paint);
    dry_run(&mut out, snapshot, paint);
    headline(&mut out, snapshot, paint);
    today(&mut out, snapshot, paint);
    providers(&mut out, snapshot, paint);
    for (name, route) in [("new", &snapshot.new), ("legacy", &snapshot.legacy)] {
        out.push_str(&route_line(name, route, paint));
    }
    let queue = &snapshot.queue;
    let states =
        [("held", &queue.held), ("ready", &queue.ready), ("deferred", &queue.deferred), ("in flight", &queue.inflight)];
    let (mut bytes, mut oldest) = (0, None);
    out.push_str("queue   ");
    for (name, totals) in states {
        let _ = write!(out, "  {} {name}", count(totals.messages));
        bytes += totals.bytes;
        oldest = [oldest, totals.oldest].into_iter().flatten().min();
    }
    let _ = write!(out, "   {}", text::size(bytes));
    if let Some(oldest) = oldest {
        let _ = write!(out, "   oldest {}", span(snapshot.now.since(oldest).as_secs()));
    }
    out.push('\n');
    out.push_str(&put_aside(queue, paint));
    let spool = &snapshot.spool;
    let verdict = if spool.accepting {
        paint.good("accepting")
    } else {
        paint.bad(&format!("FULL: applications get 452; {} free is the least", text::size(spool.required_bytes)))
    };
    let _ = writeln!(out, "spool     {} free   {verdict}", text::size(spool.free_bytes));
    out
}

/// What waits for an operator and for nothing else; usually nothing.
fn put_aside(queue: &QueueTotals, paint: Paint) -> String {
    let mut out = String::new();
    for (name, messages, what) in [
        (
            "paused",
            queue.paused.messages,
            "came back with restored data, maybe delivered since: `queue flush --state paused` or `queue drop --state paused`",
        ),
        ("damaged", queue.quarantined.messages, "on disk, never sent: `queue list --state quarantined`"),
        ("dead", queue.dead.messages, "failed with nobody to tell: `queue list --state dead`"),
    ] {
        if messages > 0 {
            let _ = writeln!(out, "{name:<9} {} {what}", paint.warn(&text::counted(messages, "message")));
        }
    }
    out
}

/// Only in one, and then before the ramp: its numbers stand still.
pub(super) fn dry_run(out: &mut String, snapshot: &Snapshot, paint: Paint) {
    let Some(as_if) = &snapshot.dry_run else { return };
    let _ = writeln!(out, "{} everything goes by legacy, and nothing counts as sent", paint.warn("DRY RUN:"));
    let day = as_if.day.map_or(String::new(), |day| format!("day {day}, "));
    let limit = as_if.limit.map_or("no limit".into(), |limit| format!("limit {}", count(limit)));
    let (new, legacy, held) = (count(as_if.new), count(as_if.legacy), count(as_if.held));
    let _ = writeln!(out, "today as if   {day}{limit}: {new} by new, {legacy} by legacy, {held} held");
}

/// Only when it is wrong, and then first: whatever follows is told by the time that has passed.
fn clock(out: &mut String, snapshot: &Snapshot, paint: Paint) {
    let clock = &snapshot.clock;
    if clock.trusted {
        return;
    }
    let (zone, name) = text::zone(&snapshot.warmup.zone);
    let shows = text::local(clock.shows, &zone, "%A %-d %B %Y, %H:%M");
    let side = if clock.off_seconds < 0 { "behind" } else { "ahead of" };
    let off = span(clock.off_seconds.unsigned_abs());
    let _ = writeln!(
        out,
        "{} it shows {shows} {name}, {off} {side} what has passed. New is shut until it agrees;\nset it right, or \
         accept it: mailramp warmup accept-clock --reason TEXT",
        paint.bad("CLOCK IN DOUBT:")
    );
}

/// `day 9 of 15 (Tue)  ramping   1,019 / 1,281 used  ####-   next token 41 s   resets 00:00 Europe/Berlin (in 6h12)`,
/// and a line below it when the state needs a word.
fn headline(out: &mut String, snapshot: &Snapshot, paint: Paint) {
    let warmup = &snapshot.warmup;
    let (zone, zone_name) = text::zone(&warmup.zone);
    let until = |at| span(snapshot.now_until(at));

    if let DayState::NotStarted { starts } = warmup.state {
        if snapshot.dry_run.is_some() {
            return; // the ramp stands still, whenever it starts
        }
        let day = text::local(starts, &zone, "%A %-d %B %Y, %H:%M");
        let _ = writeln!(
            out,
            "{}   day 1 begins {day} {zone_name} (in {}){}",
            paint.bold("not started"),
            until(starts),
            warmup.target.map(|target| format!("   target {} a day", count(target))).unwrap_or_default()
        );
        let _ = writeln!(out, "until then nothing leaves by new: legacy takes it, or it waits");
        return;
    }
    if warmup.state == DayState::Unlimited {
        let _ = writeln!(out, "{}   no [warmup] is configured: new has no limit", paint.warn("unlimited"));
        return;
    }

    let weekday = text::local(snapshot.now, &zone, "%a");
    let _ = match (warmup.day, warmup.days_planned) {
        (Some(day), Some(planned)) if planned >= day => write!(out, "day {day} of {planned} ({weekday})  "),
        (Some(day), _) => write!(out, "day {day} ({weekday})  "),
        (None, _) => write!(out, "({weekday})  "),
    };
    out.push_str(&match warmup.state {
        DayState::Complete => paint.good("complete"),
        DayState::Stalled { .. } => paint.bad("STALLED"),
        DayState::Paused { .. } => paint.warn("PAUSED"),
        DayState::Ample => paint.good("ample"),
        _ => paint.bold("ramping"),
    });
    let _ = match warmup.limit {
        Some(limit) => write!(
            out,
            "   {} / {} used  {}",
            count(warmup.used),
            count(limit),
            text::bar(warmup.used, limit, BAR_WIDTH)
        ),
        None => write!(out, "   {} used, no limit", count(warmup.used)),
    };
    if let Some(at) = warmup.next_token_at {
        let _ = write!(out, "   next token {}", until(at));
    }
    let resets = text::local(warmup.day_ends, &zone, "%H:%M");
    let _ = writeln!(out, "   resets {resets} {zone_name} (in {})", until(warmup.day_ends));

    match &warmup.state {
        DayState::Stalled { reason, advice } => {
            let _ = writeln!(out, "{} {}", paint.bad(&format!("stalled ({}):", reason.text())), printable(advice));
        }
        DayState::Paused { reason } => {
            let who = snapshot.pause.as_ref().map_or(String::new(), |pause| {
                let ago = span(snapshot.now.since(pause.since).as_secs());
                format!(" (by {}, {ago} ago; `mailramp warmup resume` ends it)", text::user(pause.actor))
            });
            let _ = writeln!(out, "{} {}{who}", paint.warn("paused:"), printable(reason));
        }
        DayState::Ample => out.push_str("the limit is well above the mail of a day: moving the next stream ramps on\n"),
        DayState::Complete => out.push_str("new takes everything; legacy can go once its queue is empty\n"),
        _ => {}
    }
}

/// The row of the day, under its headings. Also says what the feedback is, because the ramp knows nothing else.
fn today(out: &mut String, snapshot: &Snapshot, paint: Paint) {
    let today = &snapshot.today;
    let heading = format!("{:>15} {:>11} {:>6}", "new", "legacy", "held");
    let _ = writeln!(out, "{}   {}", paint.dim(&heading), paint.dim("feedback: SMTP replies of new only"));
    let _ = write!(out, "today {:>9} {:>11} {:>6}", count(today.new), count(today.legacy), count(today.held));
    if let Some(held) = &snapshot.oldest_held {
        let _ = write!(out, "   {}", oldest(held, snapshot));
    }
    out.push('\n');
}

/// The lanes that have something to do, three to a line, and those that are braked, each with its reason.
fn providers(out: &mut String, snapshot: &Snapshot, paint: Paint) {
    let (zone, _) = text::zone(&snapshot.warmup.zone);
    let (open, braked): (Vec<&LaneStatus>, Vec<_>) =
        snapshot.lanes.iter().partition(|lane| lane.brake.level == BrakeWord::Open);
    let busy = |lane: &&&LaneStatus| lane.provider != TOTAL && lane.used + lane.offered > 0;
    let cells: Vec<String> = open.iter().filter(busy).map(|lane| format!("{} ok", used(lane))).collect();
    for line in cells.chunks(PROVIDERS_A_LINE) {
        let line: String = line.iter().map(|cell| format!("{cell:<26}")).collect();
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for lane in braked {
        let brake = &lane.brake;
        let word = match (brake.level, brake.until) {
            (BrakeWord::Slow, Some(at)) => format!("SLOW until {}", text::local(at, &zone, "%H:%M")),
            (_, Some(at)) => format!("BRAKE until {}", text::local(at, &zone, "%H:%M")),
            (_, None) => "BRAKE until it is released".into(),
        };
        let used = used(lane);
        let room = LINE_WIDTH.saturating_sub(used.chars().count() + word.chars().count() + " ()".len() + 1);
        let _ = writeln!(out, "{used} {} ({})", paint.bad(&word), cut(&printable(&brake.reason), room));
    }
}

/// At most so many characters; `warmup brakes` has them all.
fn cut(text: &str, room: usize) -> String {
    match text.char_indices().nth(room.max(1)) {
        None => text.to_owned(),
        Some(_) => text.chars().take(room.max(1) - 1).chain(['…']).collect(),
    }
}

/// `google    471/590`
fn used(lane: &LaneStatus) -> String {
    let limit = lane.limit.map_or("no limit".into(), count);
    format!("{:<9} {}/{limit}", printable(&lane.provider), count(lane.used))
}

fn oldest(held: &OldestHeld, snapshot: &Snapshot) -> String {
    let age = span(snapshot.now.since(held.accepted).as_secs());
    let stream = printable(&held.stream);
    let end = match held.deadline {
        Some(deadline) => format!("max wait {}, then legacy", span(deadline.since(held.accepted).as_secs())),
        None => "waits for its token".into(),
    };
    format!("oldest held {age} ({stream}, {end})")
}

fn route_line(name: &str, route: &RouteStatus, paint: Paint) -> String {
    if !route.configured {
        return format!("{name:<9} not configured\n");
    }
    let mut line = format!("{name:<9} {}", if route.up { paint.good("up  ") } else { paint.bad("DOWN") });
    let _ = write!(line, "   {}", text::counted(u64::from(route.connections), "connection"));
    if let Some(error) = &route.last_error {
        let _ = write!(line, "   {}", paint.warn(&printable(error)));
    }
    line.push('\n');
    line
}

impl Snapshot {
    /// Seconds from the snapshot to `then`; 0 when it is over.
    fn now_until(&self, then: crate::message::Timestamp) -> u64 {
        then.since(self.now).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{StallReason, Today};
    use crate::admin::fake;
    use crate::message::Timestamp;

    const REST: &str = "            new      legacy   held   feedback: SMTP replies of new only
today     1,019       8,402     12   oldest held 1h12 (digest, max wait 4h, then legacy)
google    471/590 ok      yahoo     81/102 ok       other     253/320 ok
microsoft 214/269 BRAKE until 18:40 (451 4.7.650 x14)
new       up     3 connections
legacy    up     5 connections
queue     12 held  0 ready  3 deferred  1 in flight   145 kB   oldest 2h03
spool     18 GB free   accepting
";

    fn shown(change: impl FnOnce(&mut Snapshot)) -> String {
        let mut snapshot = fake::snapshot();
        change(&mut snapshot);
        render(&snapshot, Paint::PLAIN)
    }

    #[test]
    fn a_brake_by_a_long_reply_fits_its_line() {
        let mut snapshot = fake::snapshot();
        let long = format!("ms-s775: 451 4.7.650 {} (1x)", "temporarily rate limited ".repeat(9));
        snapshot
            .lanes
            .iter_mut()
            .filter(|lane| lane.provider == "microsoft")
            .for_each(|lane| lane.brake.reason = long.clone());
        let mut out = String::new();
        providers(&mut out, &snapshot, Paint::PLAIN);
        let line = out.lines().find(|line| line.contains("BRAKE")).unwrap();
        assert!(line.ends_with("…)") && line.contains("(ms-s775: 451 4.7.650 temp"), "{line}");
        assert_eq!(line.chars().count(), LINE_WIDTH);
        assert_eq!((cut("four", 4), cut("five!", 4)), ("four".into(), "fiv…".into()));
    }

    #[test]
    fn a_ramping_day_fits_one_screen() {
        let want = "day 9 of 15 (Tue)  ramping   1,019 / 1,281 used  ###############-----   next token 41 s   \
                    resets 00:00 Europe/Berlin (in 6h12)\n";
        assert_eq!(shown(|_| ()), format!("{want}{REST}"));
    }

    #[test]
    fn before_the_start_it_says_when_it_starts() {
        let text = shown(|s| {
            s.warmup.state = DayState::NotStarted { starts: Timestamp::from_seconds(s.now.seconds() + 22_320) };
            s.warmup.day = None;
        });
        let want =
            "not started   day 1 begins Wednesday 11 March 2026, 00:00 Europe/Berlin (in 6h12)   target 12,000 a day
until then nothing leaves by new: legacy takes it, or it waits
";
        assert_eq!(text, format!("{want}{REST}"));
    }

    #[test]
    fn a_stalled_ramp_says_why_and_what_to_set() {
        let text = shown(|s| s.warmup.state = DayState::stalled(StallReason::WaitTooShort));
        assert!(text.starts_with("day 9 of 15 (Tue)  STALLED   1,019 / 1,281 used"), "{text}");
        let second = text.lines().nth(1).unwrap();
        assert!(second.starts_with("stalled (wait-too-short): ") && second.contains("`max_wait`"), "{second}");
    }

    #[test]
    fn an_ample_a_complete_and_a_paused_day_are_told_apart() {
        let text = shown(|s| s.warmup.state = DayState::Ample);
        assert!(
            text.contains("(Tue)  ample   1,019 / 1,281 used") && text.contains("moving the next stream"),
            "{text}"
        );

        let text = shown(|s| {
            s.warmup.state = DayState::Complete;
            s.warmup.day = Some(18);
            s.warmup.limit = None;
            s.warmup.next_token_at = None;
        });
        let want = "day 18 (Tue)  complete   1,019 used, no limit   resets 00:00 Europe/Berlin (in 6h12)\n";
        assert!(text.starts_with(want), "{text}");

        let text = shown(|s| s.warmup.state = DayState::Paused { reason: "complaints\x1b[2J".into() });
        assert!(text.contains("PAUSED   1,019 /") && text.contains("\npaused: complaints\\u001b[2J\n"), "{text}");
    }

    #[test]
    fn a_clock_in_doubt_comes_first_with_what_to_do() {
        let text = shown(|s| {
            s.clock.trusted = false;
            s.clock.off_seconds = -86_400;
            s.clock.shows = Timestamp::from_seconds(s.now.seconds() - 86_400);
        });
        let want = "CLOCK IN DOUBT: it shows Monday 9 March 2026, 17:48 Europe/Berlin, 1 d behind what has passed. \
                    New is shut until it agrees;\nset it right, or accept it: mailramp warmup accept-clock --reason TEXT\nday 9 ";
        assert!(text.starts_with(want), "{text}");
    }

    #[test]
    fn without_a_warm_up_it_says_that_nothing_is_limited() {
        let text = shown(|s| {
            s.warmup.state = DayState::Unlimited;
            s.warmup.day = None;
            s.legacy = RouteStatus::default();
            s.oldest_held = None;
            s.today = Today::default();
        });
        assert!(text.starts_with("unlimited   no [warmup] is configured: new has no limit\n"), "{text}");
        assert!(text.contains("\nlegacy    not configured\n"));
    }

    #[test]
    fn what_is_wrong_is_on_the_screen_and_cannot_move_the_cursor() {
        let text = shown(|s| {
            s.new.up = false;
            s.new.connections = 0;
            s.new.last_error = Some("connection refused\n\x1b[31m".into());
            s.spool.accepting = false;
            s.oldest_held.as_mut().unwrap().deadline = None;
        });
        assert!(text.contains("\nnew       DOWN   0 connections   connection refused\\n\\u001b[31m\n"), "{text}");
        assert!(text.contains("FULL: applications get 452"), "{text}");
        assert!(text.contains("(digest, waits for its token)"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn what_waits_for_an_operator_is_on_the_screen_with_what_to_do() {
        let text = shown(|s| {
            s.queue.paused.messages = 1;
            s.queue.quarantined.messages = 2;
        });
        let lines: Vec<&str> = text.lines().skip(8).collect();
        assert!(lines[0].starts_with("paused    1 message came back") && lines[0].contains("--state paused"), "{text}");
        assert!(lines[1].starts_with("damaged   2 messages on disk") && lines[2].starts_with("spool  "), "{text}");
    }

    #[test]
    fn an_unknown_zone_is_shown_as_utc_not_under_its_name() {
        let text = shown(|s| s.warmup.zone = "Mars/Olympus".into());
        assert!(text.contains("resets 23:00 UTC (in 6h12)"), "{text}");
    }
}
