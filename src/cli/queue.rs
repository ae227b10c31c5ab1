//! `mailramp queue list` and `queue show`: look at what waits. What is done to it by hand is in [`super::by_hand`].

use super::by_hand::{Change, Reroute};
use super::text::{self, Paint, counted, span};
use super::{Context, Failure};
use crate::admin::api::{Answer, Command, ItemState, QueueFilter, QueuePage, QueueRow, ShownMessage, ShownPart};
use crate::log::printable;
use crate::message::QueueId;

#[derive(Debug, clap::Subcommand)]
pub enum Queue {
    /// Show what waits, oldest first
    List(List),
    /// Show one message: where it stands, and its header lines if asked for; never its body
    Show(Show),
    /// Make messages due now, and release paused ones. Quota and route stay as they are
    Flush(Change),
    /// Send messages by the other route. Dead letters and paused mail come back to life
    Reroute(Reroute),
    /// Remove messages for good. Nobody is told
    Drop(Change),
}

#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only this stream
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Only recipients in this domain
    #[arg(long, value_name = "DOMAIN")]
    rcpt_domain: Option<String>,
    /// Only messages in this state
    #[arg(long)]
    state: Option<ItemState>,
    /// Only messages accepted at least this long ago, such as 90s, 15m, 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<u64>,
    /// Only this message
    #[arg(long, value_parser = queue_id)]
    id: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    /// Most rows to show
    #[arg(long, default_value_t = 100, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct Show {
    /// Which message: twelve characters, as in the 250, the log and the list
    #[arg(value_parser = queue_id)]
    id: String,
    /// Its header lines too, with masked addresses
    #[arg(long)]
    headers: bool,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &Queue, context: &mut Context<'_>) -> Result<(), Failure> {
    match command {
        Queue::List(list) => {
            let asked = Command::QueueList { filter: list.filter.wire(), limit: list.limit as usize };
            let Answer::QueueList(page) = context.call(asked)? else { return Err(Failure::strange_answer()) };
            let text = if list.json { super::json(&page)? } else { render_page(&page, context.paint) };
            context.write(&text)
        }
        Queue::Show(show) => {
            let asked = Command::QueueShow { id: show.id.clone(), headers: show.headers };
            let Answer::QueueShow(shown) = context.call(asked)? else { return Err(Failure::strange_answer()) };
            let zone = jiff::tz::TimeZone::system();
            let text = if show.json { super::json(&shown)? } else { render_message(&shown, show.headers, &zone) };
            context.write(&text)
        }
        Queue::Flush(change) => change.flush(context),
        Queue::Reroute(reroute) => reroute.run(context),
        Queue::Drop(change) => change.drop(context),
    }
}

impl Filter {
    pub(super) fn wire(&self) -> QueueFilter {
        QueueFilter {
            stream: self.stream.clone(),
            state: self.state,
            older_than_seconds: self.older_than,
            id: self.id.clone(),
            rcpt_domain: self.rcpt_domain.clone(),
        }
    }
}

/// Seconds; a number with s, m, h or d.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let wrong = || "a time is a whole number with s, m, h or d, such as 15m".to_string();
    let unit = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3_600,
        Some(b'd') => 86_400,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(wrong());
    }
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

fn queue_id(text: &str) -> Result<String, String> {
    let id: Result<QueueId, ()> = text.parse();
    id.map(|id| id.to_string()).map_err(|()| "an id has twelve characters, such as 01K5Y7Q2M8R4".into())
}

/// The table; times are of this machine's zone, as with `ls`.
fn render_page(page: &QueuePage, paint: Paint) -> String {
    render_page_in(page, paint, &jiff::tz::TimeZone::system())
}

fn render_page_in(page: &QueuePage, paint: Paint, zone: &jiff::tz::TimeZone) -> String {
    if page.rows.is_empty() {
        return "nothing waits that matches\n".into();
    }
    let headings = ["ID", "AGE", "STREAM", "STATE", "TO", "TRY", "NEXT", "LAST REPLY"];
    let mut rows = vec![headings.map(String::from).to_vec()];
    rows.extend(page.rows.iter().map(|row| cells(row, page, zone)));
    let right = [false, true, false, false, false, true, false, false];
    let table = text::table(&rows, &right);
    let (head, body) = table.split_once('\n').expect("the table has its headings");
    let mut out = format!("{}\n{body}", paint.dim(head));
    let shown = page.rows.len() as u64;
    if shown < page.messages {
        out.push_str(&format!("{} of {}; --limit shows more\n", text::count(shown), counted(page.messages, "message")));
    }
    out
}

fn cells(row: &QueueRow, page: &QueuePage, zone: &jiff::tz::TimeZone) -> Vec<String> {
    let more = if row.recipients > 1 { format!(" +{}", row.recipients - 1) } else { String::new() };
    let next = match row.next {
        None => "-".into(),
        Some(at) if at <= page.now => "now".into(),
        Some(at) if at.since(page.now).as_secs() < 20 * 3_600 => text::local(at, zone, "%H:%M"),
        Some(at) => text::local(at, zone, "%b %-d %H:%M"),
    };
    let reply = match &row.route {
        Some(route) => format!("{} ({})", printable(&row.last_reply), printable(route)),
        None => printable(&row.last_reply),
    };
    vec![
        printable(&row.id),
        span(page.now.since(row.accepted).as_secs()),
        printable(&row.stream),
        row.state.text().into(),
        printable(row.to.as_str()) + &more,
        row.attempts.to_string(),
        next,
        reply,
    ]
}

fn render_message(shown: &ShownMessage, headers: bool, zone: &jiff::tz::TimeZone) -> String {
    let mut out = format!(
        "{}   {}   stream {}   from {}\naccepted {} ({} ago)\n",
        printable(&shown.id),
        text::size(shown.bytes),
        printable(&shown.stream),
        printable(shown.from.as_str()),
        text::local(shown.accepted, zone, "%Y-%m-%d %H:%M:%S"),
        span(shown.now.since(shown.accepted).as_secs()),
    );
    for part in &shown.parts {
        out.push_str(&render_part(part, zone));
    }
    match &shown.headers {
        Some(lines) => {
            out.push('\n');
            lines.iter().for_each(|line| out.push_str(&format!("{}\n", printable(line))));
        }
        None if headers => out.push_str("\nits octets cannot be read\n"),
        None => {}
    }
    out
}

fn render_part(part: &ShownPart, zone: &jiff::tz::TimeZone) -> String {
    let time = |at| text::local(at, zone, "%Y-%m-%d %H:%M:%S");
    let mut facts = vec![
        format!("by {} ({})", printable(&part.route), printable(&part.reason)),
        counted(u64::from(part.attempts), "attempt"),
    ];
    match part.state {
        ItemState::Deferred => facts.push(format!("next {}", time(part.due))),
        ItemState::Held => facts.extend(part.deadline.map(|at| format!("legacy from {}", time(at)))),
        _ => {}
    }
    facts.extend(part.expires.map(|at| format!("given up {}", time(at))));
    let mut out = format!("\n{}   {}\n", part.state.text(), facts.join("   "));
    if part.maybe_delivered {
        out.push_str("   may have been delivered already: it keeps its route\n");
    }
    for to in &part.to {
        out.push_str(&format!("   to {}\n", printable(to.as_str())));
    }
    let more = part.recipients.saturating_sub(part.to.len() as u64);
    if more > 0 {
        out.push_str(&format!("   and {} more\n", text::count(more)));
    }
    if !part.last_reply.is_empty() {
        out.push_str(&format!("   {}\n", printable(&part.last_reply)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;

    #[test]
    fn the_table_masks_addresses_and_lines_up() {
        let mut page = fake::page();
        page.rows[1].route = Some("new".into());
        page.rows[1].recipients = 3;
        page.rows[1].next = None;
        page.messages = 1_200;
        let want = "\
ID             AGE  STREAM  STATE     TO                TRY  NEXT   LAST REPLY
01K5Y7Q2M8R4  1h12  digest  held      d***@outlook.com    0  17:40  over quota
01K5Y6ZZ01AB  2h03  notify  deferred  a***@corp.ex +2     4  -      451 4.7.1 grey\\u001b[2Jlisted (new)
2 of 1,200 messages; --limit shows more
";
        assert_eq!(render_page_in(&page, Paint::PLAIN, &jiff::tz::TimeZone::UTC), want);
    }

    #[test]
    fn an_empty_queue_is_said_in_words() {
        assert_eq!(render_page(&QueuePage::default(), Paint::PLAIN), "nothing waits that matches\n");
    }

    #[test]
    fn a_message_is_shown_with_its_parts_and_headers_and_nothing_moves_the_cursor() {
        let want = "\
01K5Y6ZZ01AB   20 kB   stream notify   from a***@example.com
accepted 2026-03-10 14:45:00 (2h03 ago)

deferred   by new (in_quota)   4 attempts   next 2026-03-10 17:02:00   given up 2026-03-15 07:54:40
   may have been delivered already: it keeps its route
   to a***@corp.ex
   to b***@corp.ex
   and 1 more
   451 4.7.1 grey\\u001b[2Jlisted

From: a***@example.com
Subject: x\\u001b[2J
";
        let mut shown = fake::shown_message();
        assert_eq!(render_message(&shown, true, &jiff::tz::TimeZone::UTC), want);
        shown.headers = None;
        assert!(render_message(&shown, true, &jiff::tz::TimeZone::UTC).ends_with("\nits octets cannot be read\n"));
        assert!(render_message(&shown, false, &jiff::tz::TimeZone::UTC).ends_with("listed\n"));
    }

    #[test]
    fn times_and_ids_are_read_strictly() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3_600), ("2d", 172_800)] {
            assert_eq!(duration(text), Ok(seconds));
        }
        for text in ["", "h", "15", "-1h", "1.5h", "1 h", "+1h", "99999999999999999999d", "9999999999999999d", "1é"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        assert_eq!(queue_id("01k5y7q2m8r4"), Ok("01K5Y7Q2M8R4".into()));
        assert!(queue_id("' OR 1=1").is_err());
    }
}
