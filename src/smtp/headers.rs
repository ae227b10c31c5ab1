//! The header block: the line we add, and what in the lines already there speaks against taking the message.
//!
//! A loop shows in two ways: very many `Received:` fields, or one that we wrote ourselves. The block itself is bounded,
//! because whoever reads it later keeps it in memory. Of what it says `From:` is remembered, for whoever asks whose mail
//! this is.

use core::net::IpAddr;

use memchr::{memchr, memmem};

use crate::message::{QueueId, Timestamp};

const RECEIVED_MAX: u32 = 50; // RFC 5321 §6.3 asks for at least 100 hops of patience; a relay at the edge sees few
const LINES_MAX: u32 = 10_000;
/// A `From:` of more octets is not remembered. Enough for hundreds of authors.
pub const FROM_MAX_OCTETS: usize = 16 * 1024;
/// So much of a field is looked at for our own name.
const FIELD_KEPT_OCTETS: usize = 2048;
/// What makes a `Received:` field ours, together with our host name.
const SIGN: &str = "mailramp id";
const HELO_MAX_OCTETS: usize = 255;

/// Who sent the message, as the `Received:` line tells it.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// What the client called itself.
    pub helo: &'a [u8],
    /// It said EHLO.
    pub extended: bool,
    pub secure: bool,
    pub authenticated: bool,
    /// MAIL asked for SMTPUTF8.
    pub utf8: bool,
    pub client: IpAddr,
}

impl Origin<'_> {
    /// The word behind `with` (RFC 3848, RFC 6531 §4.3). HELO has no variants: what they tell came with EHLO.
    fn protocol(&self) -> &'static str {
        match (self.utf8, self.extended, self.secure, self.authenticated) {
            (true, _, false, false) => "UTF8SMTP",
            (true, _, false, true) => "UTF8SMTPA",
            (true, _, true, false) => "UTF8SMTPS",
            (true, _, true, true) => "UTF8SMTPSA",
            (false, false, _, _) => "SMTP",
            (false, true, false, false) => "ESMTP",
            (false, true, false, true) => "ESMTPA",
            (false, true, true, false) => "ESMTPS",
            (false, true, true, true) => "ESMTPSA",
        }
    }
}

/// The trace line for message `id` (RFC 5321 §4.4), folded, with its last CRLF.
///
/// The client's name is written only when it consists of what host names and address literals consist of, so it cannot
/// add comments, fields or lines. The date is in UTC.
pub fn received_line(origin: Origin<'_>, hostname: &str, id: QueueId, now: Timestamp) -> String {
    let plain = |octet: &u8| octet.is_ascii_alphanumeric() || b".-_:[]".contains(octet);
    let helo = match std::str::from_utf8(origin.helo) {
        Ok(name) if (1..=HELO_MAX_OCTETS).contains(&name.len()) && name.as_bytes().iter().all(plain) => name,
        _ => "unknown",
    };
    let tag = if origin.client.is_ipv6() { "IPv6:" } else { "" };
    let client = origin.client;
    let protocol = origin.protocol();
    let date = rfc5322_date(now);
    format!("Received: from {helo} ([{tag}{client}])\r\n\tby {hostname} with {protocol} ({SIGN} {id});\r\n\t{date}\r\n")
}

/// `Tue, 1 Jul 2025 10:00:00 +0000`.
fn rfc5322_date(now: Timestamp) -> String {
    jiff::Timestamp::from_second(now.seconds()).unwrap_or_default().strftime("%a, %-d %b %Y %H:%M:%S +0000").to_string()
}

/// Watches the header block as it passes by. Fed with the runs of the scanner, in any chunks.
#[derive(Debug)]
pub struct HeaderWatch {
    max_octets: u64,
    /// The empty line has come.
    over: bool,
    at_line_start: bool,
    /// The line so far is nothing but a CR.
    only_cr: bool,
    octets: u64,
    lines: u32,
    received: u32,
    own: bool,
    /// The current field, as far as `keeping` wants it.
    field: Vec<u8>,
    keeping: Keep,
    /// The first `From:`, what is behind its colon.
    from: Option<Box<[u8]>>,
    from_seen: bool,
}

/// What the current field may be, by its first letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Nothing,
    /// `Received:`
    Trace,
    /// `From:`
    Author,
}

impl Keep {
    /// Octets of the field that are kept.
    fn room(self) -> usize {
        match self {
            Keep::Nothing => 0,
            Keep::Trace => FIELD_KEPT_OCTETS,
            // One too many tells that it is too large.
            Keep::Author => b"From:".len() + FROM_MAX_OCTETS + 1,
        }
    }
}

impl HeaderWatch {
    pub fn new(max_octets: u64) -> Self {
        HeaderWatch {
            max_octets,
            over: false,
            at_line_start: true,
            only_cr: false,
            octets: 0,
            lines: 0,
            received: 0,
            own: false,
            field: Vec::new(),
            keeping: Keep::Nothing,
            from: None,
            from_seen: false,
        }
    }

    /// More octets or lines than allowed.
    pub fn too_large(&self) -> bool {
        self.octets > self.max_octets || self.lines > LINES_MAX
    }

    pub fn looped(&self) -> bool {
        self.received > RECEIVED_MAX || self.own
    }

    /// The first `From:`, what is behind its colon; ask when the message has ended.
    pub fn take_from(&mut self) -> Option<Box<[u8]>> {
        self.from.take()
    }

    /// Looks at the next part of the message. Costs nothing once the header block is over.
    pub fn observe(&mut self, mut text: &[u8], hostname: &str) {
        while !self.over && !text.is_empty() && !self.too_large() {
            // Exactly up to the octet that is too much: what stands behind it would count or not as the input is cut.
            let room = usize::try_from(self.max_octets - self.octets).map_or(usize::MAX, |left| left.saturating_add(1));
            let window = &text[..room.min(text.len())];
            let end = memchr(b'\n', window).map_or(window.len(), |at| at + 1);
            let (part, rest) = text.split_at(end);
            text = rest;
            self.part_of_line(part, hostname);
        }
    }

    /// The message has ended, with or without an empty line.
    pub fn end(&mut self, hostname: &str) {
        if !self.over {
            self.end_field(hostname);
        }
    }

    fn part_of_line(&mut self, part: &[u8], hostname: &str) {
        self.octets += part.len() as u64;
        if self.at_line_start {
            self.only_cr = true;
            if !matches!(part[0], b' ' | b'\t') {
                self.end_field(hostname);
                self.keeping = match part[0] {
                    b'R' | b'r' => Keep::Trace,
                    b'F' | b'f' if !self.from_seen => Keep::Author,
                    _ => Keep::Nothing,
                };
            }
        }
        let room = self.keeping.room().saturating_sub(self.field.len());
        self.field.extend_from_slice(&part[..part.len().min(room)]);
        self.at_line_start = part.ends_with(b"\n");
        let content = part.strip_suffix(b"\n").unwrap_or(part);
        self.only_cr &= content.iter().all(|octet| *octet == b'\r');
        if self.at_line_start {
            self.lines += 1;
            self.over = self.only_cr;
        }
    }

    fn end_field(&mut self, hostname: &str) {
        match std::mem::replace(&mut self.keeping, Keep::Nothing) {
            Keep::Nothing => return,
            Keep::Trace => self.end_trace(hostname),
            Keep::Author => self.end_author(),
        }
        self.field.clear();
    }

    fn end_trace(&mut self, hostname: &str) {
        self.field.make_ascii_lowercase();
        if let Some(rest) = value(&self.field, b"received") {
            self.received += 1;
            self.own |= memmem::find(rest, SIGN.as_bytes()).is_some() && names_receiver(rest, hostname);
        }
    }

    fn end_author(&mut self) {
        if let Some(text) = value(&self.field, b"from") {
            self.from_seen = true;
            self.from = (text.len() <= FROM_MAX_OCTETS).then(|| text.into());
        }
    }
}

/// What stands behind the colon, if the field has this name. White space before the colon is old syntax (RFC 5322 §4.5).
fn value<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = field.split_at_checked(name.len())?;
    let rest = start.eq_ignore_ascii_case(name).then_some(rest)?;
    rest.trim_ascii_start().strip_prefix(b":")
}

/// `by <hostname>` stands in the field, which is in lower case.
fn names_receiver(field: &[u8], hostname: &str) -> bool {
    let hostname = hostname.to_ascii_lowercase();
    memmem::find_iter(field, hostname.as_bytes()).any(|at| {
        let before = field[..at].trim_ascii_end();
        let is_word = before.len() < at && before.ends_with(b"by");
        let behind = field.get(at + hostname.len());
        is_word && !behind.is_some_and(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-' | b'_'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "relay.example";

    fn watch(text: &str, chunk: usize) -> HeaderWatch {
        let mut watch = HeaderWatch::new(10_000);
        for part in text.as_bytes().chunks(chunk) {
            watch.observe(part, HOST);
        }
        watch.end(HOST);
        watch
    }

    fn origin<'a>(helo: &'a str, client: &str) -> Origin<'a> {
        let (secure, authenticated, utf8) = (false, false, false);
        Origin { helo: helo.as_bytes(), extended: true, secure, authenticated, utf8, client: client.parse().unwrap() }
    }

    fn line(helo: &str, client: &str) -> String {
        let origin = origin(helo, client);
        received_line(origin, HOST, QueueId(1), Timestamp::from_seconds(1_751_364_000))
    }

    #[test]
    fn the_received_line_names_client_host_id_and_date() {
        assert_eq!(
            line("app.example", "192.0.2.1"),
            "Received: from app.example ([192.0.2.1])\r\n\tby relay.example with ESMTP (mailramp id 000000000001);\r\n\
             \tTue, 1 Jul 2025 10:00:00 +0000\r\n"
        );
        assert!(line("[IPv6:2001:db8::1]", "2001:db8::1").contains("from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])"));
    }

    #[test]
    fn the_protocol_tells_of_tls_login_and_utf8() {
        for (name, extended, secure, authenticated, utf8) in [
            ("SMTP", false, false, false, false),
            ("SMTP", false, true, true, false),
            ("ESMTP", true, false, false, false),
            ("ESMTPS", true, true, false, false),
            ("ESMTPA", true, false, true, false),
            ("ESMTPSA", true, true, true, false),
            ("UTF8SMTP", true, false, false, true),
            ("UTF8SMTPS", true, true, false, true),
            ("UTF8SMTPA", true, false, true, true),
            ("UTF8SMTPSA", true, true, true, true),
        ] {
            let origin = Origin { extended, secure, authenticated, utf8, ..origin("app.example", "192.0.2.1") };
            let line = received_line(origin, HOST, QueueId(1), Timestamp::from_seconds(0));
            assert!(line.contains(&format!("by {HOST} with {name} (mailramp id ")), "{line}");
        }
    }

    #[test]
    fn a_client_name_that_is_no_name_is_not_repeated() {
        for helo in ["a b", "a(b", "a;b", "a\u{7}b", "é", "", "<a>"] {
            assert!(line(helo, "192.0.2.1").starts_with("Received: from unknown ([192.0.2.1])"), "{helo:?}");
        }
    }

    #[test]
    fn our_own_received_line_is_a_loop() {
        let own = line("app.example", "192.0.2.1");
        let refolded = own.replace("\r\n\t", "\r\n        ").replace("by relay", "by  Relay");
        for text in
            [own.clone(), format!("Subject: x\r\n{own}\r\nbody"), refolded, own.replace("Received:", "RECEIVED :")]
        {
            for chunk in [1, 5, 1000] {
                assert!(watch(&text, chunk).looped(), "{text:?} in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn a_received_line_of_somebody_else_is_no_loop() {
        let own = line("app.example", "192.0.2.1");
        for text in [
            own.replace("by relay.example", "by other.example"),
            own.replace("by relay.example", "by relay.example.org"),
            own.replace("by relay.example", "by my.relay.example"),
            own.replace("mailramp id", "postfix id"),
            line("relay.example", "192.0.2.1").replace("by relay.example", "by other.example"),
            format!("Subject: x\r\n\r\n{own}"),
            format!("X-{own}"),
        ] {
            for chunk in [1, 5, 1000] {
                assert!(!watch(&text, chunk).looped(), "{text:?} in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn more_than_fifty_received_fields_are_a_loop() {
        for (fields, looped) in [(50, false), (51, true)] {
            let text = "Received: from a\r\n by b\r\n".repeat(fields) + "\r\nReceived: in the body\r\n";
            for chunk in [1, 7, 10_000] {
                assert_eq!(watch(&text, chunk).looped(), looped, "{fields} fields in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn what_stands_behind_the_limit_is_no_loop_however_it_is_cut() {
        let own = line("app.example", "192.0.2.1");
        for max in 0..own.len() as u64 + 2 {
            let judged = |chunk| {
                let mut watch = HeaderWatch::new(max);
                for part in own.as_bytes().chunks(chunk) {
                    watch.observe(part, HOST);
                }
                watch.end(HOST);
                (watch.too_large(), watch.looped())
            };
            for chunk in [2, 7, 50, 1000] {
                assert_eq!(judged(1), judged(chunk), "limit {max}, chunks of {chunk}");
            }
        }
    }

    #[test]
    fn the_first_from_is_remembered_as_it_came() {
        let large = format!("From: {}@b.example\r\n", "x".repeat(FROM_MAX_OCTETS));
        let just = format!("From:{}\r\n", "x".repeat(FROM_MAX_OCTETS - 2));
        for (text, from) in [
            ("From: a@b.example\r\nTo: x@y.example\r\n\r\n", Some(" a@b.example\r\n")),
            ("fROM \t:\"A,\"\r\n\t<a@b.example>\r\nFrom: c@d.example\r\n\r\n", Some("\"A,\"\r\n\t<a@b.example>\r\n")),
            ("Fro: a\r\nFromage: b\r\nF\r\nFrom:last\r\n", Some("last\r\n")),
            ("X: y\r\n From: folded\r\n\r\nFrom: in the body\r\n", None),
            (&large, None),
            (&format!("{large}From: second\r\n"), None),
            (&just, Some(&just[5..])),
        ] {
            for chunk in [1, 5, 100_000] {
                let mut watch = HeaderWatch::new(100_000);
                text.as_bytes().chunks(chunk).for_each(|part| watch.observe(part, HOST));
                watch.end(HOST);
                assert!(watch.field.capacity() <= 2 * FROM_MAX_OCTETS + 100, "{} octets", watch.field.capacity());
                assert_eq!(watch.take_from().as_deref(), from.map(str::as_bytes), "{chunk}: {text:.60}");
            }
        }
    }

    #[test]
    fn the_header_block_is_bounded_and_the_body_is_not() {
        let field = "X: y\r\n";
        for (text, too_large) in [
            (field.repeat(1000), false),
            (field.repeat(1700), true),
            ("\r\n".to_string() + &field.repeat(3000), false),
            ("X: y".to_string() + &"z".repeat(20_000), true),
        ] {
            for chunk in [1, 1000, 100_000] {
                assert_eq!(watch(&text, chunk).too_large(), too_large, "{} octets", text.len());
            }
        }
        let mut many = HeaderWatch::new(u64::MAX);
        many.observe("x\r\n".repeat(10_001).as_bytes(), HOST);
        assert!(many.too_large());
    }
}
