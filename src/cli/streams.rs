//! `mailramp streams list`, `move` and `undo`: which way each kind of the application's mail goes, and moving one.
//!
//! A move is said first and done with `--yes`; what is said is what the relay itself expects of today and tomorrow.

use jiff::tz::TimeZone;

use super::text::{self, count, counted, span};
use super::{Context, Failure, exit};
use crate::admin::api::{Answer, Command};
use crate::admin::streams::{MoveAnswer, MoveOrder, Outlook, StreamPage, StreamRow, ToldMove, UndoOrder, WayName};
use crate::config::{Settings, process_environment};
use crate::log::printable;
use crate::message::Timestamp;

#[derive(Debug, clap::Subcommand)]
pub enum Streams {
    /// Every stream: which way it goes and since when, what it sends, what waits
    List(List),
    /// Send a stream another way, now or at a set time; it stays so until it is moved again or taken back
    Move(Move),
    /// Take back the last move of a stream that was told
    Undo(Undo),
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Move {
    /// As in the settings; `default` is the mail that no stream matches
    stream: String,
    /// Which way
    #[arg(long, value_name = "WAY")]
    to: WayName,
    /// When, in the zone of the day: "2026-03-05 22:00", "22:00" (the next one) or "tomorrow 22:00" [default: now]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Why, for the log and the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Do it; without this only what it means is said
    #[arg(long)]
    yes: bool,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Undo {
    /// As in the settings
    stream: String,
    /// Do it; without this only what it means is said
    #[arg(long)]
    yes: bool,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Streams, context: &mut Context<'_>) -> Result<(), Failure> {
    match command {
        Streams::List(List { json }) => {
            let Answer::StreamList(mut page) = context.call(Command::StreamList)? else {
                return Err(Failure::strange_answer());
            };
            name_places(&mut page, context);
            let text = if *json { super::json(&page)? } else { listing(&page) };
            context.write(&text)
        }
        Streams::Move(Move { stream, to, at, reason, yes, json }) => {
            let (stream, at, reason) = (stream.clone(), at.clone(), reason.clone());
            change(Command::StreamMove(MoveOrder { stream, to: *to, at, reason, yes: *yes }), *json, context)
        }
        Streams::Undo(Undo { stream, yes, json }) => {
            change(Command::StreamUndo(UndoOrder { stream: stream.clone(), yes: *yes }), *json, context)
        }
    }
}

/// Where the settings say it: in the file, as far as it can be read and says the same as the relay.
fn name_places(page: &mut StreamPage, context: &Context<'_>) {
    let Some(loaded) = context.config_path().ok().and_then(|path| Settings::load(&path, process_environment()).ok())
    else {
        return;
    };
    for row in &mut page.streams {
        let Some(index) = loaded.settings.streams.iter().position(|stream| stream.name == row.name) else { continue };
        if loaded.settings.streams[index].route.name() == row.configured.text() {
            row.configured_at = loaded.origin(&format!("streams[{index}].route")).map(ToString::to_string);
        }
    }
}

fn change(command: Command, json: bool, context: &mut Context<'_>) -> Result<(), Failure> {
    // A stream that is not there, a time that has passed, a way it goes already: the answer is no, the usage was right.
    let negative = |failure: Failure| match failure.code {
        exit::USAGE => Failure { code: exit::NEGATIVE, ..failure },
        _ => failure,
    };
    let Answer::StreamMove(answer) = context.call(command).map_err(negative)? else {
        return Err(Failure::strange_answer());
    };
    let text = if json { super::json(&answer)? } else { said(&answer) };
    context.write(&text)
}

/// What a change means or did: two lines of what happens, then what can be done about it.
fn said(answer: &MoveAnswer) -> String {
    let (zone, zone_name) = text::zone(&answer.zone);
    let MoveAnswer { stream, from, to, now, .. } = answer;
    let mut out = String::new();
    if let Some(undone) = &answer.undone {
        let what = if answer.dry_run { "would be taken back" } else { "is taken back" };
        out += &format!("{}, {what}\n", told(undone, *now, &zone));
    }
    let when = match answer.at {
        Some(at) => format!("{}, {zone_name} (in {})", at_time(at, *now, &zone), span(at.since(*now).as_secs())),
        None => "now".into(),
    };
    if from == to {
        out += &format!("{stream}: stays on {}\n", to.text());
    } else {
        let joint = if answer.at.is_some() { " at " } else { " " };
        out += &format!("{stream}: {} -> {}{joint}{when}\n", from.text(), to.text());
    }
    if let Some(note) = &answer.note {
        out += &format!("note: {note}\n");
    }
    for (outlook, whole) in [(&answer.today, false), (&answer.first_day, true)] {
        out += &outlook.as_ref().map_or(String::new(), |outlook| day(outlook, whole, &zone));
    }
    out += &match answer.waiting.recipients {
        0 => String::new(),
        n if answer.waiting.goes_to_legacy => {
            let go = if answer.dry_run { "would go" } else { "go" };
            format!("{} of it wait for new; they {go} to legacy at once.\n", counted(n, "recipient"))
        }
        n => format!("{} of it wait for new and go on waiting.\n", counted(n, "recipient")),
    };
    for next in &answer.then {
        out += &format!("After that: {}.\n", told(next, *now, &zone));
    }
    match (answer.dry_run, &answer.undone) {
        (true, _) => out += "Nothing was changed. Add --yes.\n",
        (false, None) => out += &format!("undo: mailramp streams undo {stream} --yes\n"),
        (false, Some(_)) => {}
    }
    out
}

/// `Tomorrow (day 10): ramp streams offer 9,800, quota 1,922, 7,878 stay on legacy.`
fn day(outlook: &Outlook, whole: bool, zone: &TimeZone) -> String {
    let name = match outlook.ahead {
        0 => "Today".into(),
        1 => "Tomorrow".into(),
        _ => text::local(outlook.date, zone, "%a %Y-%m-%d"),
    };
    let number = outlook.day.map_or(String::new(), |day| format!(" (day {day})"));
    if outlook.unknown {
        let seen = "what the streams send is not known before they have run for a day";
        return format!("{name}{number}: {}, {seen}.\n", quota(outlook));
    }
    let mut parts = vec![format!("ramp streams offer {}", count(outlook.ramp_offers))];
    if outlook.new_offers > 0 {
        parts.push(format!("streams on new {}", count(outlook.new_offers)));
    }
    parts.push(quota(outlook));
    if outlook.limit.is_some() {
        parts.push(format!("{} stay on legacy", count(outlook.stays_on_legacy)));
    }
    if outlook.waits > 0 {
        parts.push(format!("{} find no token and wait on", count(outlook.waits)));
    }
    let condition = if whole && outlook.ahead > 1 { ", if every day until then counts" } else { "" };
    format!("{name}{number}: {}{condition}.\n", parts.join(", "))
}

fn quota(outlook: &Outlook) -> String {
    outlook.limit.map_or("no limit".into(), |limit| format!("quota {}", count(limit)))
}

/// `to ramp at Tue 22:00 by uid 0 "first one"`
fn told(told: &ToldMove, now: Timestamp, zone: &TimeZone) -> String {
    let reason = match told.reason.as_str() {
        "" => String::new(),
        reason => format!(" \"{}\"", printable(reason)),
    };
    format!("to {} at {} by uid {}{reason}", told.to.text(), at_time(told.at, now, zone), told.actor)
}

/// With its day, and with its year unless that is clear.
fn at_time(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let day = |at| text::local(at, zone, "%Y-%m-%d");
    if day(at) == day(now) {
        return text::local(at, zone, "%H:%M");
    }
    text::local(at, zone, "%a %Y-%m-%d %H:%M")
}

fn listing(page: &StreamPage) -> String {
    let (zone, _) = text::zone(&page.zone);
    let head = ["STREAM", "WAY", "PRIO", "SHARE", "WAIT", "TODAY", "YESTERDAY", "7 DAYS", "NEW", "HELD"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(page.streams.iter().map(columns));
    let mut right = [true; 10];
    (right[0], right[1]) = (false, false);
    let mut out = text::table(&rows, &right);
    for row in &page.streams {
        out += &format!("{}: {}\n", row.name, source(row, page.now, &zone));
    }
    out
}

fn columns(row: &StreamRow) -> Vec<String> {
    vec![
        row.name.clone(),
        row.way.text().into(),
        row.priority.to_string(),
        row.max_share.map_or("all".into(), |share| format!("{:.0}%", share * 100.0)),
        waits(row),
        count(row.offered_today),
        count(row.offered_yesterday),
        count(row.offered_7d),
        count(row.new_today),
        count(row.held),
    ]
}

/// The longest wait of what finds no token.
fn waits(row: &StreamRow) -> String {
    let auto = if row.max_wait_auto { "auto " } else { "" };
    match row.max_wait_seconds {
        _ if row.way == WayName::Legacy => "-".into(),
        None => "any".into(),
        Some(0) => "none".into(),
        Some(seconds) => format!("{auto}{}", span(seconds)),
    }
}

/// Where its way comes from, and what comes next.
fn source(row: &StreamRow, now: Timestamp, zone: &TimeZone) -> String {
    let place = row.configured_at.as_ref().map_or(String::new(), |place| format!(" ({place})"));
    let mut parts = vec![match &row.moved {
        None => format!("{} by the settings{place}", row.way.text()),
        Some(moved) => {
            let settings = match row.configured == row.way {
                true => format!("as the settings say{place}"),
                false => format!("the settings say {}{place}", row.configured.text()),
            };
            format!("moved {}; {settings}; undo: mailramp streams undo {}", told(moved, now, zone), row.name)
        }
    }];
    parts.extend(row.to_come.iter().map(|next| format!("then {}", told(next, now, zone))));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::{move_answer, snapshot, stream_page};
    use crate::admin::streams::Waiting;

    #[test]
    fn a_move_says_what_it_means_before_it_is_done() {
        let want = "\
digest: legacy -> ramp at 22:00, Europe/Berlin (in 4h12)
Tomorrow (day 10): ramp streams offer 9,800, quota 1,922, 7,878 stay on legacy.
Nothing was changed. Add --yes.
";
        assert_eq!(said(&move_answer(WayName::Ramp, true)), want);
        let done = said(&move_answer(WayName::Ramp, false));
        assert!(done.ends_with(" stay on legacy.\nundo: mailramp streams undo digest --yes\n"), "{done}");
    }

    #[test]
    fn what_waits_what_comes_later_and_what_clocks_do_is_said() {
        let mut answer = move_answer(WayName::Legacy, true);
        (answer.from, answer.at) = (WayName::Ramp, None);
        answer.waiting = Waiting { recipients: 12, goes_to_legacy: true };
        answer.today = answer.first_day.map(|day| Outlook { ahead: 0, day: Some(9), limit: None, ..day });
        answer.first_day = answer.first_day.map(|day| Outlook { ahead: 6, new_offers: 5_000, waits: 3_078, ..day });
        answer.then = vec![stream_page().streams[0].to_come[0].clone()];
        answer.note = Some("clocks skip 02:30 that day; 03:00 is meant".into());
        let want = "\
digest: ramp -> legacy now
note: clocks skip 02:30 that day; 03:00 is meant
Today (day 9): ramp streams offer 9,800, no limit.
Wed 2026-03-11 (day 10): ramp streams offer 9,800, streams on new 5,000, quota 1,922, 7,878 stay on legacy, 3,078 find no token and wait on, if every day until then counts.
12 recipients of it wait for new; they would go to legacy at once.
After that: to new at Wed 2026-03-11 23:48 by uid 1000.
Nothing was changed. Add --yes.
";
        assert_eq!(said(&answer), want);
    }

    #[test]
    fn taking_back_says_which_move_it_was() {
        let mut answer = move_answer(WayName::Legacy, false);
        (answer.from, answer.at, answer.first_day) = (WayName::Ramp, None, None);
        answer.undone = stream_page().streams[0].moved.clone();
        let want = "\
to ramp at Mon 2026-03-09 21:48 by uid 1000 \"the first one\", is taken back
digest: ramp -> legacy now
";
        assert_eq!(said(&answer), want);
        answer.undone.as_mut().unwrap().reason = "x\x1b[2J".into();
        (answer.to, answer.dry_run) = (WayName::Ramp, true);
        let said = said(&answer);
        assert!(said.contains("digest: stays on ramp\n") && !said.contains('\x1b'), "{said}");
    }

    #[test]
    fn a_day_that_nobody_can_foresee_is_called_so() {
        let zone = TimeZone::UTC;
        let unknown = Outlook { unknown: true, ramp_offers: 0, ..move_answer(WayName::Ramp, true).first_day.unwrap() };
        let want =
            "Tomorrow (day 10): quota 1,922, what the streams send is not known before they have run for a day.\n";
        assert_eq!(day(&unknown, true, &zone), want);
    }

    #[test]
    fn the_list_fits_a_terminal_and_says_where_each_way_comes_from() {
        let mut page = stream_page();
        page.streams[0].configured_at = Some("m.toml:31".into());
        page.streams[2].max_wait_auto = true;
        let want = "\
STREAM    WAY   PRIO  SHARE         WAIT  TODAY  YESTERDAY  7 DAYS  NEW  HELD
digest    ramp    40    70%           4h  4,600      4,500  23,000  400    12
password  new     90    all          any  4,600      4,500  23,000  400     0
default   ramp    50    all  auto 15 min  4,600      4,500  23,000  400     0
digest: moved to ramp at Mon 2026-03-09 21:48 by uid 1000 \"the first one\"; the settings say legacy (m.toml:31); undo: mailramp streams undo digest; then to new at Wed 2026-03-11 23:48 by uid 1000
password: new by the settings
default: ramp by the settings
";
        let listed = listing(&page);
        assert_eq!(listed, want);
        assert!(listed.lines().take(4).all(|line| line.chars().count() <= 80), "{listed}");
        assert_eq!(page.now, snapshot().now);
    }
}
