//! `mailramp audit`: who changed what, when and why, newest last.

use super::queue::duration;
use super::text::{self, Paint, counted};
use super::{Context, Failure};
use crate::admin::api::{Answer, AuditEntry, AuditPage, Command};
use crate::log::printable;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How far to look back, such as 12h, 7d or 90d; the newest 10,000 entries are kept
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    since: u64,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let Answer::Audit(page) = context.call(Command::Audit { since_seconds: options.since })? else {
        return Err(Failure::strange_answer());
    };
    let zone = jiff::tz::TimeZone::system();
    let text = if options.json { super::json(&page)? } else { render(&page, context.paint, &zone) };
    context.write(&text)
}

/// The table; times are of this machine's zone, as with `ls`.
fn render(page: &AuditPage, paint: Paint, zone: &jiff::tz::TimeZone) -> String {
    if page.entries.is_empty() {
        return "nobody changed anything in that time\n".into();
    }
    let mut rows = vec![["WHEN", "WHO", "ACTION", "WHAT AND WHY"].map(String::from).to_vec()];
    rows.extend(page.entries.iter().map(|entry| cells(entry, zone)));
    let table = text::table(&rows, &[false; 4]);
    let (head, body) = table.split_once('\n').expect("the table has its headings");
    format!("{}\n{body}", paint.dim(head))
}

fn cells(entry: &AuditEntry, zone: &jiff::tz::TimeZone) -> Vec<String> {
    let did = match (entry.messages, entry.recipients) {
        (0, 0) => String::new(),
        (messages, recipients) => {
            format!(" ({}, {})", counted(messages, "message"), counted(recipients, "recipient"))
        }
    };
    vec![
        text::local(entry.at, zone, "%Y-%m-%d %H:%M:%S"),
        text::user(entry.actor),
        printable(&entry.action),
        printable(&entry.detail) + &did,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;

    #[test]
    fn entries_are_listed_with_who_what_and_why_and_cannot_move_the_cursor() {
        let want = "\
WHEN                 WHO       ACTION   WHAT AND WHY
2026-03-09 15:48:00  uid 1000  reroute  reroute to legacy, stream digest (2 messages, 2 recipients)
2026-03-10 15:41:20  root      pause    complaints\\u001b[2J
2026-03-10 16:47:00  root      resume   mended
";
        assert_eq!(render(&fake::audit_page(), Paint::PLAIN, &jiff::tz::TimeZone::UTC), want);
        let nothing = render(&AuditPage::default(), Paint::PLAIN, &jiff::tz::TimeZone::UTC);
        assert_eq!(nothing, "nobody changed anything in that time\n");
    }
}
