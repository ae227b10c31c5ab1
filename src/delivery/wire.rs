//! Octets of a session, without the session: commands out, replies in, dots doubled.
//!
//! Nothing that could become a second command gets through [`mail_command`] and [`rcpt_command`], whatever was stored.
//! [`ReplyReader`] hands out replies one by one and keeps what follows; [`Stuffer`] alters nothing but leading dots.

use memchr::{memchr, memmem};

use crate::reply::{EnhancedCode, Reply};

/// Octets of one reply, all lines. A next hop that says more is broken or means harm.
pub const REPLY_MAX_OCTETS: usize = 64 * 1024;
/// Octets of a reply's text that are kept, for the log and the report to the sender.
pub const REPLY_TEXT_OCTETS: usize = 512;

/// A reply as it came: code and the text of each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReply {
    /// 200 to 599.
    pub code: u16,
    /// Without codes and line ends.
    pub lines: Vec<Vec<u8>>,
}

impl RawReply {
    /// The reply made printable and cut to [`REPLY_TEXT_OCTETS`].
    pub fn to_reply(&self) -> Reply {
        let lines: Vec<String> = self.lines.iter().map(|line| printable(line)).collect();
        let first = lines.first().map_or("", String::as_str);
        let enhanced = EnhancedCode::split(first).map(|(code, _)| code);
        let mut text = String::new();
        for (i, line) in lines.iter().enumerate() {
            let line = match EnhancedCode::split(line) {
                Some((code, rest)) if Some(code) == enhanced => rest,
                _ => line,
            };
            if i > 0 {
                text.push('\n');
            }
            text.push_str(line);
            if text.len() > REPLY_TEXT_OCTETS {
                text.truncate(REPLY_TEXT_OCTETS - 3); // ASCII, so any octet is a boundary
                text.push_str("...");
                break;
            }
        }
        Reply { code: self.code, enhanced, text }
    }
}

/// Any octets as printable ASCII: a tab becomes a space, everything else outside it `\xNN`.
pub fn printable(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len());
    for octet in octets {
        match octet {
            b' '..=b'~' => text.push(char::from(*octet)),
            b'\t' => text.push(' '),
            _ => text.push_str(&format!("\\x{octet:02x}")),
        }
    }
    text
}

/// Why octets from the next hop are no reply. Completes the sentence "bad reply: ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply(pub &'static str);

/// Turns octets into replies, one by one, and keeps what follows. Takes CRLF or LF as the end of a line.
#[derive(Debug, Default)]
pub struct ReplyReader {
    octets: Vec<u8>,
    /// Everything before this has been read into `lines`.
    line_start: usize,
    /// Everything before this has been searched for a line end.
    searched: usize,
    code: Option<u16>,
    lines: Vec<Vec<u8>>,
}

impl ReplyReader {
    pub fn push(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// No octet is left over, no reply half read.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// The next whole reply; `None` when more octets are needed.
    pub fn next_reply(&mut self) -> Result<Option<RawReply>, BadReply> {
        loop {
            let line = match memchr(b'\n', &self.octets[self.searched..]) {
                Some(at) => self.line_start..self.searched + at,
                None => {
                    self.searched = self.octets.len();
                    return self.wait_for_more();
                }
            };
            if line.end >= REPLY_MAX_OCTETS {
                return Err(BadReply("longer than 64 KiB"));
            }
            self.searched = line.end + 1;
            self.line_start = line.end + 1;
            let line = &self.octets[line];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (code, last) = parse_line(line)?;
            if *self.code.get_or_insert(code) != code {
                return Err(BadReply("lines with different codes"));
            }
            self.lines.push(line.get(4..).unwrap_or_default().to_vec());
            if last {
                self.octets.drain(..self.line_start);
                self.line_start = 0;
                self.searched = 0;
                self.code = None;
                return Ok(Some(RawReply { code, lines: std::mem::take(&mut self.lines) }));
            }
        }
    }

    /// Tells early what can never become a reply, so that a banner of some other protocol needs no timeout.
    fn wait_for_more(&self) -> Result<Option<RawReply>, BadReply> {
        let begun = &self.octets[self.line_start..];
        if !begun.iter().take(3).all(u8::is_ascii_digit) || !matches!(begun.first(), None | Some(b'2'..=b'5')) {
            return Err(BadReply("not a reply code"));
        }
        if self.octets.len() > REPLY_MAX_OCTETS {
            return Err(BadReply("longer than 64 KiB"));
        }
        Ok(None)
    }
}

/// Code and whether it is the last line of the reply.
fn parse_line(line: &[u8]) -> Result<(u16, bool), BadReply> {
    let code = match line {
        [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ => return Err(BadReply("not a reply code")),
    };
    match line.get(3) {
        None | Some(b' ') => Ok((code, true)),
        Some(b'-') => Ok((code, false)),
        Some(_) => Err(BadReply("no space or dash after the code")),
    }
}

/// What the next hop offered in its answer to EHLO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub pipelining: bool,
    /// `Some(0)`: SIZE offered, no limit given.
    pub size: Option<u64>,
    pub eight_bit_mime: bool,
    pub smtputf8: bool,
    pub dsn: bool,
    pub chunking: bool,
    pub starttls: bool,
    /// Mechanisms, in upper case.
    pub auth: Vec<String>,
}

impl Capabilities {
    /// Reads the lines after the first; what is not known is passed over.
    pub fn parse(reply: &RawReply) -> Self {
        let mut offered = Capabilities::default();
        for line in reply.lines.iter().skip(1) {
            let line = String::from_utf8_lossy(line).to_ascii_uppercase();
            // "AUTH=LOGIN" is what some old servers say besides "AUTH LOGIN".
            let line = line.replacen("AUTH=", "AUTH ", 1);
            let mut words = line.split_ascii_whitespace();
            match words.next().unwrap_or("") {
                "PIPELINING" => offered.pipelining = true,
                "SIZE" => offered.size = Some(words.next().and_then(|n| n.parse().ok()).unwrap_or(0)),
                "8BITMIME" => offered.eight_bit_mime = true,
                "SMTPUTF8" => offered.smtputf8 = true,
                "DSN" => offered.dsn = true,
                "CHUNKING" => offered.chunking = true,
                "STARTTLS" => offered.starttls = true,
                "AUTH" => offered.auth.extend(words.map(str::to_string)),
                _ => {}
            }
        }
        offered
    }
}

/// May this stand between `<` and `>`: no control octet (RFC 5321 §4.1.2 has none), no `<`, `>` or space outside
/// quotes, every quote closed. Says nothing about whether it is a good address.
pub fn is_safe_path(path: &[u8]) -> bool {
    let mut quoted = false;
    let mut octets = path.iter();
    while let Some(octet) = octets.next() {
        match octet {
            0..=31 | 127 => return false,
            b'"' => quoted = !quoted,
            b'\\' if quoted => match octets.next() {
                Some(b' '..=b'~') => {}
                _ => return false,
            },
            b'<' | b'>' | b' ' if !quoted => return false,
            _ => {}
        }
    }
    !quoted
}

/// One `NAME` or `NAME=value` that may follow a path (RFC 5321 §4.1.2 `esmtp-param`; with SMTPUTF8 also octets over 127).
fn is_safe_parameter(parameter: &[u8]) -> bool {
    parameter.iter().all(|c| matches!(c, 33..=126 | 128..))
}

pub(super) fn parameters(octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    octets.split(|c| *c == b' ').filter(|p| !p.is_empty())
}

pub(super) fn name_of(parameter: &[u8]) -> Vec<u8> {
    parameter.split(|c| *c == b'=').next().unwrap_or_default().to_ascii_uppercase()
}

/// `parameters` has one of this name, and with this value where one is given. Case does not count.
pub fn has_parameter(octets: &[u8], name: &str, value: Option<&str>) -> bool {
    parameters(octets).any(|p| match value {
        None => name_of(p) == name.as_bytes(),
        Some(value) => p.eq_ignore_ascii_case(format!("{name}={value}").as_bytes()),
    })
}

/// Something in the envelope could become a second command; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsafe;

/// What of the client's MAIL parameters is passed on, and with what.
#[derive(Clone, Copy, Debug)]
pub struct MailPassing {
    pub body: bool,
    pub smtputf8: bool,
    pub dsn: bool,
    /// Octets, when SIZE is offered.
    pub size: Option<u64>,
}

/// Appends `MAIL FROM:<…> …CRLF`.
pub fn mail_command(out: &mut Vec<u8>, path: &[u8], params: &[u8], passing: MailPassing) -> Result<(), Unsafe> {
    command(out, b"MAIL FROM:<", path, params, |name| match name {
        b"BODY" => passing.body,
        b"SMTPUTF8" => passing.smtputf8,
        b"RET" | b"ENVID" => passing.dsn,
        _ => false,
    })?;
    if let Some(size) = passing.size {
        out.extend_from_slice(format!(" SIZE={size}").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Appends `RCPT TO:<…> …CRLF`.
pub fn rcpt_command(out: &mut Vec<u8>, path: &[u8], params: &[u8], dsn: bool) -> Result<(), Unsafe> {
    if path.is_empty() {
        return Err(Unsafe);
    }
    command(out, b"RCPT TO:<", path, params, |name| dsn && matches!(name, b"NOTIFY" | b"ORCPT"))?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn command(
    out: &mut Vec<u8>,
    verb: &[u8],
    path: &[u8],
    params: &[u8],
    passed: impl Fn(&[u8]) -> bool,
) -> Result<(), Unsafe> {
    if !is_safe_path(path) || !parameters(params).all(is_safe_parameter) {
        return Err(Unsafe);
    }
    out.extend_from_slice(verb);
    out.extend_from_slice(path);
    out.push(b'>');
    for parameter in parameters(params).filter(|p| passed(&name_of(p))) {
        out.push(b' ');
        out.extend_from_slice(parameter);
    }
    Ok(())
}

/// Where the last octet written left us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// After a CR.
    Cr,
    Mid,
}

/// Doubles the dot of every line that begins with one (RFC 5321 §4.5.2), chunk by chunk.
#[derive(Debug)]
pub struct Stuffer {
    at: At,
}

impl Default for Stuffer {
    /// The first octet of a message is at the start of a line.
    fn default() -> Self {
        Stuffer { at: At::LineStart }
    }
}

impl Stuffer {
    /// `chunk` as it goes on the wire: itself when no line in it begins with a dot, else a copy in `scratch`.
    pub fn chunk<'a>(&mut self, chunk: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let first = match (self.at, chunk) {
            (At::LineStart, [b'.', ..]) => Some(0),
            (At::Cr, [b'\n', b'.', ..]) => Some(1),
            _ => None,
        };
        self.at = match (self.at, chunk) {
            (at, []) => at,
            (At::Cr, [b'\n']) | (_, [.., b'\r', b'\n']) => At::LineStart,
            (_, [.., b'\r']) => At::Cr,
            _ => At::Mid,
        };
        let mut dots = first.into_iter().chain(memmem::find_iter(chunk, b"\r\n.").map(|at| at + 2)).peekable();
        if dots.peek().is_none() {
            return chunk;
        }
        scratch.clear();
        let mut copied = 0;
        for dot in dots {
            scratch.extend_from_slice(&chunk[copied..=dot]);
            copied = dot; // so the dot is copied once more
        }
        scratch.extend_from_slice(&chunk[copied..]);
        scratch
    }

    /// What ends the message after the last chunk. Adds a CRLF only when the message does not end in one.
    pub fn ending(&self) -> &'static [u8] {
        match self.at {
            At::LineStart => b".\r\n",
            At::Cr | At::Mid => b"\r\n.\r\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(octets: &[u8]) -> Result<Vec<RawReply>, BadReply> {
        let mut reader = ReplyReader::default();
        let mut replies = Vec::new();
        for octet in octets {
            reader.push(&[*octet]);
            replies.extend(reader.next_reply()?);
        }
        Ok(replies)
    }

    #[test]
    fn replies_are_handed_out_one_by_one_and_the_rest_is_kept() {
        let mut reader = ReplyReader::default();
        reader.push(b"250-2.1.0 a\r\n250 2.1.0 b\r\n550 5.1.1 no\r\n4");
        let first = reader.next_reply().unwrap().unwrap().to_reply();
        assert_eq!(first, Reply::new(250, EnhancedCode(2, 1, 0), "a\nb"));
        assert_eq!(reader.next_reply().unwrap().unwrap().code, 550);
        assert_eq!(reader.next_reply(), Ok(None));
        assert!(!reader.is_empty());
        reader.push(b"21\n");
        assert_eq!(reader.next_reply().unwrap().unwrap(), RawReply { code: 421, lines: vec![vec![]] });
        assert!(reader.is_empty());
    }

    #[test]
    fn what_is_no_reply_is_told_as_soon_as_it_can_be() {
        for octets in ["SSH-2.0", "HTTP/1.1 400", "150 x\r\n", "25", "2a", "650 x\r\n", "250_x\r\n", "25\r\n", "\r\n"] {
            assert_eq!(read(octets.as_bytes()).is_err(), octets != "25", "{octets:?}");
        }
        assert_eq!(read(b"250-a\r\n550 b\r\n"), Err(BadReply("lines with different codes")));
    }

    #[test]
    fn a_reply_over_64_kib_is_refused_in_one_line_or_many() {
        let mut reader = ReplyReader::default();
        reader.push(b"250 ");
        reader.push(&[b'x'; REPLY_MAX_OCTETS]);
        assert!(reader.next_reply().is_err());

        let mut reader = ReplyReader::default();
        let mut result = Ok(None);
        for _ in 0..REPLY_MAX_OCTETS / 8 {
            reader.push(b"250-xxxxxx\r\n");
            result = reader.next_reply();
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(BadReply("longer than 64 KiB")));
    }

    #[test]
    fn a_reply_is_kept_printable_and_short() {
        let raw = RawReply { code: 550, lines: vec![b"5.7.1 a\x1b[2J\xff\tb".to_vec(), vec![b'y'; 600]] };
        let reply = raw.to_reply();
        assert!(reply.text.starts_with("a\\x1b[2J\\xff b\nyyy"), "{}", reply.text);
        assert_eq!(reply.text.len(), REPLY_TEXT_OCTETS);
        assert!(reply.text.ends_with("..."));
    }

    #[test]
    fn capabilities_are_read_without_regard_to_case() {
        let raw = read(b"250-mx PIPELINING\r\n250-pipelining\r\n250-Size 1000\r\n250-AUTH=login\r\n250 AUTH PLAIN\r\n");
        let offered = Capabilities::parse(&raw.unwrap()[0]);
        assert_eq!(
            offered,
            Capabilities {
                pipelining: true,
                size: Some(1000),
                auth: vec!["LOGIN".into(), "PLAIN".into()],
                ..Capabilities::default()
            }
        );
        let bare = RawReply { code: 250, lines: vec![b"PIPELINING".to_vec()] };
        assert_eq!(Capabilities::parse(&bare), Capabilities::default(), "the first line is the host name");
    }

    #[test]
    fn only_what_the_next_hop_offers_is_passed_on() {
        let mut out = Vec::new();
        let all = MailPassing { body: true, smtputf8: true, dsn: true, size: Some(7) };
        let params = b"BODY=8BITMIME  ret=HDRS ENVID=q AUTH=<> SMTPUTF8 X=1".as_slice();
        mail_command(&mut out, b"a@b.example", params, all).unwrap();
        assert_eq!(out, b"MAIL FROM:<a@b.example> BODY=8BITMIME ret=HDRS ENVID=q SMTPUTF8 SIZE=7\r\n");
        out.clear();
        let none = MailPassing { body: false, smtputf8: false, dsn: false, size: None };
        mail_command(&mut out, b"", params, none).unwrap();
        rcpt_command(&mut out, b"c@d.example", b"NOTIFY=NEVER ORCPT=rfc822;c@d.example", false).unwrap();
        rcpt_command(&mut out, b"c@d.example", b"NOTIFY=NEVER", true).unwrap();
        assert_eq!(out, b"MAIL FROM:<>\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<c@d.example> NOTIFY=NEVER\r\n");
    }

    #[test]
    fn a_path_that_could_become_a_second_command_is_never_written() {
        let bad: [&[u8]; 12] = [
            b"a\r\nRCPT TO:<b@c.d>",
            b"a\n",
            b"a\0",
            b"a> NOTIFY=NEVER",
            b"a<b",
            b"a b",
            b"\"a",
            b"\"a\\",
            b"\"a\\\r\"@b",
            b"\"a\r\"@b",
            b"a\x7f",
            b"",
        ];
        for path in bad {
            let mut out = Vec::new();
            assert_eq!(rcpt_command(&mut out, path, b"", true), Err(Unsafe), "{path:?}");
            assert_eq!(out, b"");
        }
        for path in
            [&b"\"a> NOTIFY=NEVER\"@b.example"[..], b"\"a\\\"b\"@c", "ü@b.example".as_bytes(), b"a'b@[192.0.2.1]"]
        {
            assert_eq!(rcpt_command(&mut Vec::new(), path, b"", true), Ok(()), "{path:?}");
        }
        for params in [&b"X=1\r\nDATA"[..], b"NOTIFY=\0", b"ORCPT=a\tb"] {
            assert_eq!(rcpt_command(&mut Vec::new(), b"a@b", params, true), Err(Unsafe), "{params:?}");
        }
    }

    fn stuffed(chunks: &[&[u8]]) -> Vec<u8> {
        let (mut stuffer, mut scratch, mut out) = (Stuffer::default(), Vec::new(), Vec::new());
        for chunk in chunks {
            out.extend_from_slice(stuffer.chunk(chunk, &mut scratch));
        }
        out.extend_from_slice(stuffer.ending());
        out
    }

    #[test]
    fn a_leading_dot_is_doubled_wherever_chunks_meet() {
        let rows: [(&[&[u8]], &[u8]); 9] = [
            (&[], b".\r\n"),
            (&[b"."], b"..\r\n.\r\n"),
            (&[b".\r\nMAIL"], b"..\r\nMAIL\r\n.\r\n"),
            (&[b"a\r\n", b".b\r\n"], b"a\r\n..b\r\n.\r\n"),
            (&[b"a\r", b"\n", b".b\r\n"], b"a\r\n..b\r\n.\r\n"),
            (&[b"a\r", b"\n.b\r", b"\n"], b"a\r\n..b\r\n.\r\n"),
            (&[b"a.\r\n..\r\n.\r\n"], b"a.\r\n...\r\n..\r\n.\r\n"),
            (&[b"a\r", b".b"], b"a\r.b\r\n.\r\n"),
            (&[b"a\r", b"", b"\n.b"], b"a\r\n..b\r\n.\r\n"),
        ];
        for (chunks, expected) in rows {
            assert_eq!(stuffed(chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn a_chunk_without_leading_dots_is_not_copied() {
        let mut scratch = Vec::new();
        let chunk = b"a.b\r\nc\r\n";
        assert!(std::ptr::eq(Stuffer::default().chunk(chunk, &mut scratch), chunk));
        assert_eq!(scratch.capacity(), 0);
    }

    /// Where a reader that takes CRLF, LF or CR for the end of a line, and a lone dot for the end of the message, stops.
    fn laxest_end(octets: &[u8]) -> Option<usize> {
        let mut start = 0;
        while start < octets.len() {
            let end = start + octets[start..].iter().position(|c| matches!(c, b'\r' | b'\n'))?;
            let after = end + if octets[end..].starts_with(b"\r\n") { 2 } else { 1 };
            if &octets[start..end] == b"." {
                return Some(after);
            }
            start = after;
        }
        None
    }

    proptest! {
        /// What the front door takes has no bare CR or LF; with these alone even the laxest reader sees one message, and
        /// a strict one gets what went in.
        #[test]
        fn what_is_written_is_one_message_even_to_the_laxest_reader(
            lines in proptest::collection::vec("[.a \t]{0,4}|\\.|\\.\\.|\\.MAIL FROM:<x@y>", 0..12),
            ended in any::<bool>(),
            cut in 0usize..60,
        ) {
            let mut body = lines.join("\r\n").into_bytes();
            if ended && !body.is_empty() {
                body.extend_from_slice(b"\r\n");
            }
            let (first, second) = body.split_at(cut.min(body.len()));
            let out = stuffed(&[first, second]);
            prop_assert_eq!(laxest_end(&out), Some(out.len()), "{:?}", String::from_utf8_lossy(&out));
            // RFC 5321 §4.5.2, read backwards.
            let text = out.strip_suffix(b".\r\n").expect("the final dot");
            let mut back = Vec::new();
            for line in String::from_utf8_lossy(text).split_inclusive("\r\n") {
                back.extend_from_slice(line.strip_prefix('.').unwrap_or(line).as_bytes());
            }
            let whole = body.is_empty() || body.ends_with(b"\r\n");
            prop_assert_eq!(back, if whole { body } else { [body.as_slice(), b"\r\n"].concat() });
        }

        #[test]
        fn stuffing_does_not_depend_on_the_chunks_and_is_undone_by_the_other_end(
            body in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(b'a')], 0..40),
            cuts in proptest::collection::vec(0usize..40, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(body.len())).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &body[w[0]..w[1]]).collect();
            let out = stuffed(&chunks);
            prop_assert_eq!(&out, &stuffed(&[&body]));
            // Reading back: lines end in CRLF, a lone dot ends the message, a leading dot is dropped.
            let mut back = Vec::new();
            let mut rest = out.as_slice();
            loop {
                let end = memmem::find(rest, b"\r\n").expect("every line ends") + 2;
                let (line, after) = rest.split_at(end);
                rest = after;
                if line == b".\r\n" { break; }
                back.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            }
            prop_assert_eq!(rest, b"");
            let whole = body.is_empty() || body.ends_with(b"\r\n");
            prop_assert_eq!(back, if whole { body } else { [body.as_slice(), b"\r\n"].concat() });
        }
    }
}
