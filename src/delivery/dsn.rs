//! The report to the sender that a message failed, is late, or went on to a server that will not report (RFC 3464): a
//! text for people, fields for programs, the header of the original and never its body, whatever RET says.
//!
//! One report may hold several recipients, each with its own action. Addresses beyond ASCII stand in it as
//! `utf-8-addr-xtext` in an ordinary message/delivery-status (RFC 6533 §3), so a report can pass every server.
//!
//! Everything in it is ASCII with CRLF line ends; what came from outside (addresses, replies, the header) is escaped,
//! so it cannot add a field, a line or a part. The null sender never gets one: that is for the caller to see to, since
//! a report about a report could go round for ever. Knows no clock; the dates are handed in.

use bytes::Bytes;
use memchr::memmem;

use super::notify::utf8_address;
use super::wire::printable;
use crate::message::{QueueId, Timestamp};
use crate::reply::{EnhancedCode, Reply};

/// Octets of the original's header that are returned, cut at the end of a line.
pub const HEADER_MAX_OCTETS: usize = 64 * 1024;
/// RFC 5322 §2.1.1, without CRLF.
const LINE_MAX_OCTETS: usize = 998;
/// RFC 2045 §6.7, without CRLF.
const QUOTED_PRINTABLE_LINE: usize = 76;

/// What became of a recipient (RFC 3464 §2.3.3). The gravest comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Handed to a server that does not report.
    Relayed,
    /// Late, still being tried.
    Delayed,
    Failed,
}

impl Action {
    const ALL: [Action; 3] = [Action::Failed, Action::Delayed, Action::Relayed];

    const fn name(self) -> &'static str {
        match self {
            Action::Relayed => "relayed",
            Action::Delayed => "delayed",
            Action::Failed => "failed",
        }
    }

    const fn subject(self) -> &'static str {
        match self {
            Action::Relayed => "Delivery report: message passed on",
            Action::Delayed => "Delivery delayed: message is still being tried",
            Action::Failed => "Delivery failed: message returned to sender",
        }
    }

    const fn explanation(self) -> [&'static str; 2] {
        match self {
            Action::Relayed => [
                "Your message was handed to the next server for the recipients below. That server",
                "does not say what becomes of it, so this is the last you hear of it.",
            ],
            Action::Delayed => [
                "Your message could not yet be delivered to the recipients below. It is still being",
                "tried; you need not do anything.",
            ],
            Action::Failed => [
                "Your message could not be delivered to the recipients below. It will not be",
                "tried again for them. Its header is at the end of this report.",
            ],
        }
    }
}

/// One recipient that is reported.
#[derive(Clone, Debug)]
pub struct Reported<'a> {
    pub action: Action,
    /// As in the envelope.
    pub path: &'a [u8],
    /// What `Original-Recipient` says (`rfc822; …`), when the client gave one; printable ASCII.
    pub original: Option<String>,
    pub status: EnhancedCode,
    /// The last thing a next hop said about it; `None` when it never said anything.
    pub reply: Option<&'a Reply>,
    /// Whose reply it is.
    pub remote_mta: Option<&'a str>,
    pub last_attempt: Option<Timestamp>,
    /// For those that are late: when they fail.
    pub retried_until: Option<Timestamp>,
}

/// All that a report is made of.
#[derive(Clone, Debug)]
pub struct ReportRequest<'a> {
    /// Our host name.
    pub reporting_mta: &'a str,
    /// Names the report itself: its Message-ID is made of it, so it must be a fresh one.
    pub report_id: QueueId,
    /// Names the message that failed.
    pub original_id: QueueId,
    /// Reverse path of the original; not empty.
    pub sender: &'a [u8],
    /// What `Original-Envelope-Id` says, when the client gave one; printable ASCII.
    pub envelope_id: Option<String>,
    pub arrived: Timestamp,
    pub now: Timestamp,
    pub recipients: &'a [Reported<'a>],
    /// The original, or at least its first [`HEADER_MAX_OCTETS`]; what follows the header is not looked at.
    pub original: &'a [u8],
}

/// The report, ready to be spooled with the null reverse path.
pub fn report(request: &ReportRequest<'_>) -> Bytes {
    let header = header_block(request.original);
    let boundary = boundary(request, header);
    let mut out = String::with_capacity(2048 + header.len());
    write_header(&mut out, request, &boundary);
    write_text(&mut out, request, &boundary);
    write_status(&mut out, request, &boundary);
    write_original(&mut out, header, &boundary);
    out.push_str(&format!("\r\n--{boundary}--\r\n"));
    Bytes::from(out)
}

fn write_header(out: &mut String, request: &ReportRequest<'_>, boundary: &str) {
    let mta = atom(request.reporting_mta);
    let gravest = request.recipients.iter().map(|r| r.action).max().unwrap_or(Action::Failed);
    let to = match std::str::from_utf8(request.sender) {
        Ok(sender) if sender.is_ascii() && super::wire::is_safe_path(request.sender) => format!("<{sender}>"),
        // Cannot be written in ASCII; the envelope has it.
        _ => "sender:;".into(),
    };
    let lines = [
        format!("Date: {}", date(request.now)),
        format!("From: Mail Delivery System <MAILER-DAEMON@{mta}>"),
        format!("To: {to}"),
        format!("Subject: {}", gravest.subject()),
        format!("Message-ID: <{}.dsn@{mta}>", request.report_id),
        "Auto-Submitted: auto-replied".into(),
        "MIME-Version: 1.0".into(),
        "Content-Type: multipart/report; report-type=delivery-status;".into(),
        format!("\tboundary=\"{boundary}\""),
        String::new(),
        "This is a report in MIME format.".into(),
    ];
    push_lines(out, &lines);
}

fn write_text(out: &mut String, request: &ReportRequest<'_>, boundary: &str) {
    let mut lines = vec![
        String::new(),
        format!("--{boundary}"),
        "Content-Type: text/plain; charset=us-ascii".into(),
        "Content-Description: Notification".into(),
        String::new(),
        format!("This is the mail relay at {}.", atom(request.reporting_mta)),
        String::new(),
        format!("Accepted: {}", date(request.arrived)),
        format!("Queue id: {}", request.original_id),
    ];
    for action in Action::ALL {
        let mut those = request.recipients.iter().filter(|r| r.action == action).peekable();
        if those.peek().is_some() {
            lines.push(String::new());
            lines.extend(action.explanation().map(String::from));
        }
        for recipient in those {
            lines.push(String::new());
            lines.push(format!("<{}>", utf8_address(recipient.path)));
            lines.push(match (recipient.reply, recipient.remote_mta) {
                (Some(reply), Some(mta)) => format!("    {} said: {}", atom(mta), one_line(reply)),
                (Some(reply), None) => format!("    {}", one_line(reply)),
                (None, _) => format!("    {} {}", recipient.status, meaning_of(recipient.status)),
            });
        }
    }
    push_lines(out, &lines);
}

fn write_status(out: &mut String, request: &ReportRequest<'_>, boundary: &str) {
    let mut lines = vec![
        String::new(),
        format!("--{boundary}"),
        "Content-Type: message/delivery-status".into(),
        "Content-Description: Delivery report".into(),
        String::new(),
        format!("Reporting-MTA: dns; {}", atom(request.reporting_mta)),
    ];
    if let Some(id) = &request.envelope_id {
        lines.push(format!("Original-Envelope-Id: {}", printable(id.as_bytes())));
    }
    lines.push(format!("Arrival-Date: {}", date(request.arrived)));
    for recipient in request.recipients {
        lines.push(String::new());
        if let Some(original) = &recipient.original {
            lines.push(format!("Original-Recipient: {}", printable(original.as_bytes())));
        }
        let kind = if recipient.path.is_ascii() { "rfc822" } else { "utf-8" };
        lines.push(format!("Final-Recipient: {kind}; {}", utf8_address(recipient.path)));
        lines.push(format!("Action: {}", recipient.action.name()));
        lines.push(format!("Status: {}", recipient.status));
        if let Some(mta) = recipient.remote_mta {
            lines.push(format!("Remote-MTA: dns; {}", atom(mta)));
        }
        if let Some(reply) = recipient.reply {
            lines.push(format!("Diagnostic-Code: smtp; {}", one_line(reply)));
        }
        if let Some(at) = recipient.last_attempt {
            lines.push(format!("Last-Attempt-Date: {}", date(at)));
        }
        lines.push(format!("Final-Log-ID: {}", request.original_id));
        if let Some(until) = recipient.retried_until {
            lines.push(format!("Will-Retry-Until: {}", date(until)));
        }
    }
    push_lines(out, &lines);
}

fn write_original(out: &mut String, header: &[u8], boundary: &str) {
    let plain = is_plain(header);
    let encoding = if plain { "7bit" } else { "quoted-printable" };
    push_lines(
        out,
        &[
            String::new(),
            format!("--{boundary}"),
            "Content-Type: text/rfc822-headers".into(),
            "Content-Description: Header of the message".into(),
            format!("Content-Transfer-Encoding: {encoding}"),
            String::new(),
        ],
    );
    match std::str::from_utf8(header) {
        Ok(text) if plain => out.push_str(text),
        _ => quoted_printable(out, header),
    }
}

fn push_lines(out: &mut String, lines: &[String]) {
    for line in lines {
        // Cut, not folded: only a reply or an address somebody made long gets here.
        out.push_str(line.get(..LINE_MAX_OCTETS).unwrap_or(line));
        out.push_str("\r\n");
    }
}

/// The lines before the empty one, at most [`HEADER_MAX_OCTETS`] of them, ending with a line end where there is one.
fn header_block(message: &[u8]) -> &[u8] {
    if message.starts_with(b"\r\n") {
        return b"";
    }
    let end = memmem::find(message, b"\r\n\r\n").map_or(message.len(), |at| at + 2);
    if end <= HEADER_MAX_OCTETS {
        return &message[..end];
    }
    let cut = &message[..HEADER_MAX_OCTETS];
    match memmem::rfind(cut, b"\r\n") {
        Some(at) => &cut[..at + 2],
        None => cut,
    }
}

/// A separator that does not occur in the header it separates.
fn boundary(request: &ReportRequest<'_>, header: &[u8]) -> String {
    let mut boundary = format!("=_{}", request.report_id);
    while memmem::find(header, boundary.as_bytes()).is_some() {
        boundary.push('_');
    }
    boundary
}

/// `Mon, 23 Nov 2026 18:51:07 +0000` (RFC 5322 §3.3).
fn date(at: Timestamp) -> String {
    // Only a time beyond the year 9999 has no such form, and a `Timestamp` ends in 2262.
    jiff::Timestamp::from_second(at.seconds())
        .map(|t| t.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string())
        .unwrap_or_default()
}

/// A host name or address literal; anything else in it is dropped.
fn atom(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']')).collect()
}

fn one_line(reply: &Reply) -> String {
    printable(reply.to_string().as_bytes())
}

/// For a recipient about whom no next hop said anything.
fn meaning_of(status: EnhancedCode) -> &'static str {
    match (status.1, status.2) {
        (4, 7) => "It could not be delivered in the time allowed",
        (0, 0) => "The next server took it",
        (4, _) => "The next server could not be reached",
        (3, 4) => "It is larger than the next server takes",
        (6, _) => "The next server cannot take this kind of message",
        (1, _) => "The address is not valid",
        _ => "It could not be delivered",
    }
}

/// Printable ASCII and tabs in CRLF lines of lawful length.
fn is_plain(header: &[u8]) -> bool {
    let mut rest = header;
    while !rest.is_empty() {
        let end = memmem::find(rest, b"\r\n");
        let (line, after) = rest.split_at(end.unwrap_or(rest.len()));
        if line.len() > LINE_MAX_OCTETS || !line.iter().all(|c| matches!(c, b' '..=b'~' | b'\t')) {
            return false;
        }
        rest = after.get(2..).unwrap_or_default();
    }
    true
}

/// RFC 2045 §6.7. CRLF stays a line end; every other octet that is not plainly printable is encoded.
fn quoted_printable(out: &mut String, octets: &[u8]) {
    let mut column = 0;
    let mut rest = octets;
    while let Some((&octet, after)) = rest.split_first() {
        if rest.starts_with(b"\r\n") {
            out.push_str("\r\n");
            column = 0;
            rest = &rest[2..];
            continue;
        }
        let at_line_end = after.is_empty() || after.starts_with(b"\r\n");
        let literal = matches!(octet, b'!'..=b'<' | b'>'..=b'~') || matches!(octet, b' ' | b'\t') && !at_line_end;
        let width = if literal { 1 } else { 3 };
        if column + width >= QUOTED_PRINTABLE_LINE {
            out.push_str("=\r\n");
            column = 0;
        }
        if literal {
            out.push(char::from(octet));
        } else {
            out.push_str(&format!("={octet:02X}"));
        }
        column += width;
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"From: a@a.example\r\nSubject: hello\r\n";

    fn request<'a>(recipients: &'a [Reported<'a>], original: &'a [u8]) -> ReportRequest<'a> {
        ReportRequest {
            reporting_mta: "relay.example",
            report_id: QueueId(7),
            original_id: QueueId(6),
            sender: b"a@a.example",
            envelope_id: Some("order-17".into()),
            arrived: Timestamp::from_seconds(0),
            now: Timestamp::from_seconds(1_000_000_100),
            recipients,
            original,
        }
    }

    /// The report, which is ASCII in lawful lines whatever went in.
    fn made(request: &ReportRequest<'_>) -> String {
        let text = String::from_utf8(report(request).to_vec()).unwrap();
        assert!(text.is_ascii(), "{text}");
        assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "only CRLF ends a line");
        assert!(text.split("\r\n").all(|line| line.len() <= LINE_MAX_OCTETS));
        text
    }

    /// One recipient refused by a next hop, one never answered for.
    fn ordinary() -> String {
        let reply = Reply::new(550, EnhancedCode(5, 1, 1), "nobody\nof that name");
        let failed = [
            Reported {
                action: Action::Failed,
                path: b"r@b.example",
                original: Some("rfc822; r@b.example".into()),
                status: EnhancedCode(5, 1, 1),
                reply: Some(&reply),
                remote_mta: Some("mx.b.example"),
                last_attempt: Some(Timestamp::from_seconds(1_000_000_000)),
                retried_until: None,
            },
            Reported {
                action: Action::Failed,
                path: "ü@b.example".as_bytes(),
                original: None,
                status: EnhancedCode(4, 4, 7),
                reply: None,
                remote_mta: None,
                last_attempt: None,
                retried_until: None,
            },
        ];
        made(&request(&failed, &[HEADER, b"\r\nthe body is nobody's business\r\n"].concat()))
    }

    fn parts(text: &str) -> Vec<&str> {
        let boundary = text.split("boundary=\"").nth(1).unwrap().split('"').next().unwrap();
        let parts: Vec<&str> = text.split(&format!("\r\n--{boundary}")).collect();
        assert_eq!(parts.len(), 5, "header, three parts, end: {text}");
        assert_eq!(parts[4], "--\r\n");
        parts
    }

    #[test]
    fn a_report_has_a_header_that_no_auto_reply_answers() {
        let text = ordinary();
        let header = parts(&text)[0];
        for line in [
            "Date: Sun, 09 Sep 2001 01:48:20 +0000\r\n",
            "From: Mail Delivery System <MAILER-DAEMON@relay.example>\r\n",
            "To: <a@a.example>\r\n",
            "Message-ID: <000000000007.dsn@relay.example>\r\n",
            "Auto-Submitted: auto-replied\r\n",
            "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"=_000000000007\"\r\n",
        ] {
            assert!(header.contains(line), "{line} in {header}");
        }
    }

    #[test]
    fn the_fields_for_programs_are_grouped_by_message_and_recipient() {
        let text = ordinary();
        let status = parts(&text)[2];
        let groups: Vec<&str> = status.split("\r\n\r\n").collect();
        assert_eq!(
            groups[1],
            "Reporting-MTA: dns; relay.example\r\nOriginal-Envelope-Id: order-17\r\n\
             Arrival-Date: Thu, 01 Jan 1970 00:00:00 +0000"
        );
        assert_eq!(
            groups[2],
            "Original-Recipient: rfc822; r@b.example\r\nFinal-Recipient: rfc822; r@b.example\r\nAction: failed\r\n\
             Status: 5.1.1\r\nRemote-MTA: dns; mx.b.example\r\n\
             Diagnostic-Code: smtp; 550 5.1.1 nobody / of that name\r\n\
             Last-Attempt-Date: Sun, 09 Sep 2001 01:46:40 +0000\r\nFinal-Log-ID: 000000000006"
        );
        assert_eq!(
            groups[3].trim_end(),
            "Final-Recipient: utf-8; \\x{FC}@b.example\r\nAction: failed\r\nStatus: 4.4.7\r\nFinal-Log-ID: 000000000006"
        );
    }

    #[test]
    fn each_recipient_has_its_own_action_and_the_gravest_makes_the_subject() {
        let recipient = |action, status| Reported {
            action,
            path: b"r@b.example",
            original: None,
            status,
            reply: None,
            remote_mta: None,
            last_attempt: None,
            retried_until: (action == Action::Delayed).then_some(Timestamp::from_seconds(2_000_000_000)),
        };
        let relayed = recipient(Action::Relayed, EnhancedCode(2, 0, 0));
        let delayed = recipient(Action::Delayed, EnhancedCode(4, 4, 1));
        let failed = recipient(Action::Failed, EnhancedCode(5, 1, 1));
        for (recipients, subject) in [
            (vec![relayed.clone()], "Delivery report: message passed on"),
            (vec![relayed.clone(), delayed.clone()], "Delivery delayed: message is still being tried"),
            (vec![relayed, delayed, failed], "Delivery failed: message returned to sender"),
        ] {
            let text = made(&request(&recipients, HEADER));
            assert!(text.contains(&format!("\r\nSubject: {subject}\r\n")), "{text}");
            let actions: Vec<&str> = text.split("\r\n").filter_map(|line| line.strip_prefix("Action: ")).collect();
            assert_eq!(actions, ["relayed", "delayed", "failed"][..recipients.len()]);
            let until = "Will-Retry-Until: Wed, 18 May 2033 03:33:20 +0000\r\n";
            assert_eq!(text.matches(until).count(), usize::from(recipients.len() > 1));
        }
    }

    #[test]
    fn people_read_who_failed_and_why_and_get_the_header_but_no_body() {
        let text = ordinary();
        let parts = parts(&text);
        assert!(parts[1].contains("<r@b.example>\r\n    mx.b.example said: 550 5.1.1 nobody / of that name\r\n"));
        assert!(parts[1].contains("4.4.7 It could not be delivered in the time allowed"));
        assert!(parts[3].ends_with("7bit\r\n\r\nFrom: a@a.example\r\nSubject: hello\r\n"), "{}", parts[3]);
        assert!(!text.contains("business"));
    }

    #[test]
    fn nothing_from_outside_adds_a_line_a_field_or_a_part() {
        let reply = Reply { code: 550, enhanced: None, text: "x\r\nAction: delivered\x1b\u{202e}".into() };
        let failed = [Reported {
            action: Action::Failed,
            path: b"a\r\nStatus: 2.0.0@b",
            original: Some("rfc822; x\r\n\r\n--=_000000000007".into()),
            status: EnhancedCode(5, 0, 0),
            reply: Some(&reply),
            remote_mta: Some("mx\r\nAction: relayed"),
            last_attempt: None,
            retried_until: None,
        }];
        let text = made(&ReportRequest {
            sender: b"a@a.example>\r\nBcc: <victim@b.example",
            envelope_id: Some("x\r\nY: z".into()),
            ..request(&failed, b"X: y\r\n--=_000000000007--\r\n\r\nbody")
        });
        parts(&text);
        let starts = |name: &str| text.split("\r\n").filter(|line| line.starts_with(name)).count();
        assert_eq!((starts("Action:"), starts("Status:"), starts("Bcc:"), starts("Y:")), (1, 1, 0, 0));
        assert!(text.contains("To: sender:;\r\n"));
    }

    #[test]
    fn a_header_that_is_not_plain_ascii_is_returned_quoted_printable() {
        let original = ["Subject: gr\u{fc}n=1 \r\nX: ", &"y".repeat(1200), "\r\n\r\nbody"].concat();
        let text = made(&request(&[], original.as_bytes()));
        let part = parts(&text)[3];
        assert!(part.contains("quoted-printable\r\n\r\nSubject: gr=C3=BCn=3D1=20\r\nX: y"), "{part}");
        assert!(part.split("\r\n").all(|line| line.len() <= QUOTED_PRINTABLE_LINE), "{part}");
        let unfolded = part.replace("=\r\n", "");
        assert!(unfolded.ends_with(&format!("X: {}\r\n", "y".repeat(1200))));
    }

    #[test]
    fn a_long_header_is_cut_at_the_end_of_a_line() {
        let line = b"X-Filler: 0123456789\r\n";
        let long = line.repeat(10_000);
        assert_eq!(header_block(&long).len(), HEADER_MAX_OCTETS / line.len() * line.len());
        assert_eq!(header_block(&vec![b'x'; 100_000]).len(), HEADER_MAX_OCTETS);
        assert_eq!(header_block(b"\r\nbody"), b"");
        assert_eq!(header_block(b"A: b\r\n\r\nbody"), b"A: b\r\n");
        assert_eq!(header_block(b"A: b"), b"A: b");
    }
}
