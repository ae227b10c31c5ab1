//! `mailramp warmup explain`: why a message goes where it goes, or what would happen to one now.

use jiff::tz::TimeZone;

use super::text::{self, count};
use super::{Context, Failure, exit};
use crate::admin::api::{Answer, Command};
use crate::admin::explain::{ExplainOrder, Explained, ExplainedLane, ExplainedRecipient, MailServers, Subject};
use crate::admin::warmup::TOTAL;
use crate::log::printable;
use crate::message::Timestamp;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// A queue id as in the 250 and the log; or an address, for what would happen to a message to it now
    #[arg(value_name = "ID|ADDRESS")]
    subject: String,
    /// For an address: of which stream the message would be [default: the one of mail that no other matches]
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let Options { subject, stream, json } = options;
    let is_address = subject.contains('@');
    if stream.is_some() && !is_address {
        return Err(Failure::new(exit::USAGE, "--stream goes with an address: a message has its stream already"));
    }
    let subject = if is_address { Subject::Address(subject.clone()) } else { Subject::Message(subject.clone()) };
    let order = ExplainOrder { subject, stream: stream.clone() };
    let Answer::Explain(explained) = context.call(Command::Explain(order))? else {
        return Err(Failure::strange_answer());
    };
    if *json {
        return context.write(&super::json(&explained)?);
    }
    match (&explained.id, explained.recipients.is_empty()) {
        (Some(id), true) => Err(Failure::new(exit::NEGATIVE, left(id))),
        _ => context.write(&render(&explained)),
    }
}

/// It is not in the queue, and nothing is kept of what was.
fn left(id: &str) -> String {
    let id = printable(id);
    format!(
        "{id} is not in the queue: it has left, was removed, or was never here. What became of it stands in the log only:\n\
         grep {id} in it, such as `journalctl -u mailramp | grep {id}`: route.decided has route and reason, delivery.result \
         the replies"
    )
}

fn render(explained: &Explained) -> String {
    let (zone, zone_name) = text::zone(&explained.zone);
    let time = |at| near(at, explained.now, &zone);
    let mut out = String::new();
    if explained.dry_run {
        out += "dry run: everything goes by legacy, whatever the ramp would do\n";
    }
    let way = explained.way.text();
    out += &match &explained.moved {
        Some(moved) => {
            format!("stream {}: {way}, moved by uid {} at {}\n", explained.stream, moved.actor, time(moved.at))
        }
        None => format!("stream {}: {way} by the settings\n", explained.stream),
    };
    for recipient in &explained.recipients {
        out += &one(recipient, &time);
    }
    if explained.more > 0 {
        out += &format!("and {} more\n", text::counted(explained.more, "recipient"));
    }
    out += &format!("bounds for this stream now, {} {zone_name}:\n", text::local(explained.now, &zone, "%H:%M"));
    let head = ["LANE", "LIMIT", "USED", "PACE", "DAY LEFT", "24H LEFT", "RESERVE", "SHARE LEFT"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(explained.lanes.iter().map(columns));
    let mut right = [true; 8];
    right[0] = false;
    out += &text::table(&rows, &right);
    for lane in &explained.lanes {
        out += &verdict(lane, &time);
    }
    out
}

/// `d***@outlook.com  (microsoft)  new, held: in_quota, the limit …` and what times there are.
fn one(recipient: &ExplainedRecipient, time: &dyn Fn(Timestamp) -> String) -> String {
    let ExplainedRecipient { to, provider, route, state, reason, meaning, .. } = recipient;
    let state = state.map_or(String::new(), |state| format!(", {}", state.text()));
    let mut out = format!("{} ({provider}): {route}{state}: {reason}, {meaning}\n", printable(to.as_str()));
    if provider != TOTAL {
        out += &format!("  mail servers: {}\n", mail_servers(&recipient.mail_servers));
    }
    let mut times = Vec::new();
    if recipient.attempts > 0 {
        times.push(text::counted(recipient.attempts.into(), "attempt"));
    }
    let named =
        [("not before", recipient.due), ("then legacy at", recipient.deadline), ("fails at", recipient.expires)];
    times.extend(named.into_iter().filter_map(|(name, at)| Some(format!("{name} {}", time(at?)))));
    if !times.is_empty() {
        out += &format!("  {}\n", times.join(", "));
    }
    if recipient.maybe_delivered {
        out += "  maybe delivered: the answer to the final dot was lost, so it keeps its route\n";
    }
    if !recipient.last_reply.is_empty() {
        out += &format!("  last reply: {}\n", printable(&recipient.last_reply));
    }
    out
}

fn mail_servers(found: &MailServers) -> String {
    match (found.known, found.operator.as_str()) {
        (true, "other") => "nobody's whom the rules know".into(),
        (true, operator) => operator.into(),
        (false, "other") => "not known yet".into(),
        (false, operator) => format!("{operator}, by the name of the domain: the name servers have not told yet"),
    }
}

fn columns(lane: &ExplainedLane) -> Vec<String> {
    let left = |left: Option<u64>| left.map_or("-".into(), count);
    vec![
        lane.lane.clone(),
        lane.limit.map_or("none".into(), count),
        count(lane.used_today),
        left(lane.pace_left),
        left(lane.day_left),
        left(lane.left_24h),
        count(lane.reserve),
        left(lane.share_left),
    ]
}

fn verdict(lane: &ExplainedLane, time: &dyn Fn(Timestamp) -> String) -> String {
    let until = lane.until.map_or("until something changes".into(), |at| format!("until {}", time(at)));
    let closed = lane.closed.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    match &lane.refuses {
        None => format!("{}: nothing refuses\n", lane.lane),
        Some(bound) => format!("{}: {bound}{closed} refuses {until}\n", lane.lane),
    }
}

/// With the date unless it is today's.
fn near(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let day = |at| text::local(at, zone, "%Y-%m-%d");
    let pattern = if day(at) == day(now) { "%H:%M:%S" } else { "%a %Y-%m-%d %H:%M:%S" };
    text::local(at, zone, pattern)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::explained;

    #[test]
    fn a_guess_at_the_mail_servers_says_that_it_is_one() {
        let told = |operator: &str, known| mail_servers(&MailServers { operator: operator.into(), known });
        assert_eq!(told("google", true), "google");
        assert_eq!(told("other", true), "nobody's whom the rules know");
        assert_eq!(told("other", false), "not known yet");
        assert_eq!(told("google", false), "google, by the name of the domain: the name servers have not told yet");
    }

    #[test]
    fn a_message_is_explained_with_its_route_its_reason_and_what_refuses() {
        let want = "\
stream digest: ramp, moved by uid 1000 at Mon 2026-03-09 21:48:00
d***@outlook.com (microsoft): new, held: in_quota, the limit has room, now or within the longest wait
  mail servers: microsoft
  not before 17:48:00, then legacy at 20:36:00
bounds for this stream now, 17:48 Europe/Berlin:
LANE       LIMIT   USED  PACE  DAY LEFT  24H LEFT  RESERVE  SHARE LEFT
all        1,281  1,019     3       262       262       40           -
microsoft    269    269     -         0         0        0           -
all: nothing refuses
microsoft: day refuses until Wed 2026-03-11 00:00:00
";
        assert_eq!(render(&explained()), want);
    }

    #[test]
    fn what_has_left_is_to_be_found_in_the_log() {
        let text = left("01K5Y7Q2M8R4");
        assert!(text.contains("grep 01K5Y7Q2M8R4") && text.contains("route.decided"), "{text}");
    }

    #[test]
    fn a_lane_that_is_shut_says_by_what_and_a_reply_does_no_harm_to_the_screen() {
        let mut explained = explained();
        explained.dry_run = true;
        explained.more = 3;
        explained.lanes[0].closed = Some("paused".into());
        explained.lanes[0].refuses = Some("closed".into());
        explained.lanes[0].until = None;
        explained.recipients[0].last_reply = "451 x\x1b[2J".into();
        explained.recipients[0].maybe_delivered = true;
        let text = render(&explained);
        for line in [
            "dry run: everything goes by legacy",
            "and 3 recipients more",
            "all: closed (paused) refuses until something",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains('\x1b') && text.contains("maybe delivered"), "{text}");
    }
}
