//! Counts the replies: reads the whole input with rules of its own, line by line, and takes one reply for each command.
//!
//! Knows how many octets belong to a command, a message, a chunk or an answer to AUTH; not what the replies have to say, but
//! which of them change that.

use crate::drive::{Outcome, Reply};

const COMMAND_MAX_OCTETS: usize = 2048;
const AUTH_MAX_OCTETS: usize = 12_288;

enum Line<'a> {
    Whole(&'a [u8], usize),
    /// Reported once; where it goes on, if its end is there.
    TooLong(Option<usize>),
    /// As before, with how many bare LF come behind the octet that made it bad.
    Bare(Option<usize>, usize),
    Unfinished,
}

pub fn check(input: &[u8], outcome: &Outcome) {
    let shown = || format!("{:?}\n{:#?}", input.escape_ascii().to_string(), outcome.replies);
    let mut walk = Walk { replies: &outcome.replies, closed: outcome.closed };
    if let Err(fault) = walk.walk(input) {
        panic!("{fault}: {}", shown());
    }
    if !walk.replies.is_empty() {
        panic!("{} replies to nothing: {}", walk.replies.len(), shown());
    }
    if outcome.closed {
        assert!(outcome.replies.last().is_some_and(may_close), "closed without a reason: {}", shown());
    }
}

/// A reply behind which the session may be closed.
fn may_close(reply: &Reply) -> bool {
    let line = reply.lines[0].as_str();
    let bad_chunk = line == "501 5.5.4 Bad chunk size" || line.starts_with("500 5.5.2 ");
    matches!(reply.code, 221 | 421 | 521)
        || bad_chunk
        || line.starts_with("552 5.3.4 ")
        || line.starts_with("550 5.6.11 ")
}

struct Walk<'r> {
    replies: &'r [Reply],
    closed: bool,
}

/// The session has been closed by the last reply.
struct Over;

impl<'r> Walk<'r> {
    fn walk(&mut self, input: &[u8]) -> Result<(), &'static str> {
        if input.starts_with(&[0x16, 0x03]) {
            self.reply()?.err().ok_or("a TLS handshake has to end the session")?;
            return Ok(());
        }
        let (mut at, mut exchange) = (0, false);
        loop {
            let rest = &input[at..];
            let auth = exchange || rest.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
            let answer = std::mem::take(&mut exchange);
            let (line, next) = match line(rest, if auth { AUTH_MAX_OCTETS } else { COMMAND_MAX_OCTETS }) {
                Line::Unfinished => return Ok(()),
                Line::Whole(line, next) => (line, next),
                Line::TooLong(next) => {
                    let Ok(_) = self.reply()? else { return Ok(()) };
                    let Some(next) = next else { return Ok(()) };
                    at += next;
                    continue;
                }
                Line::Bare(next, again) => {
                    let Ok(_) = self.reply()? else { return Ok(()) };
                    if again > 0 {
                        return self.reply()?.err().map(|_| ()).ok_or("a second bare LF has to end the session");
                    }
                    let Some(next) = next else { return Ok(()) };
                    at += next;
                    continue;
                }
            };
            at += next;
            if answer {
                let Ok(reply) = self.reply()? else { return Ok(()) };
                exchange = reply.code == 334;
                continue;
            }
            let words: Vec<&[u8]> =
                line.trim_ascii_end().split(|octet| *octet == b' ').filter(|word| !word.is_empty()).collect();
            let verb = if line.starts_with(b" ") { b"" } else { words.first().copied().unwrap_or_default() };
            if verb.eq_ignore_ascii_case(b"BDAT") {
                let Some(octets) = chunk(&words[1..]) else {
                    return self.reply()?.err().map(|_| ()).ok_or("a chunk of unknown size has to end the session");
                };
                let left = (input.len() - at) as u64;
                if octets > left {
                    // Its reply comes behind its octets, unless there are too many of them.
                    return if self.closed { self.reply()?.err().map(|_| ()).ok_or("closed too late") } else { Ok(()) };
                }
                at += usize::try_from(octets).expect("not more than is left");
                let Ok(_) = self.reply()? else { return Ok(()) };
                continue;
            }
            let Ok(reply) = self.reply()? else { return Ok(()) };
            exchange = verb.eq_ignore_ascii_case(b"AUTH") && reply.code == 334;
            if verb.eq_ignore_ascii_case(b"DATA") && reply.code == 354 {
                let Some(end) = end_of_data(&input[at..]) else {
                    return if self.closed { self.reply()?.err().map(|_| ()).ok_or("closed too late") } else { Ok(()) };
                };
                at += end;
                let Ok(_) = self.reply()? else { return Ok(()) };
            }
        }
    }

    /// The next reply; `Over` when the session was closed with it.
    fn reply(&mut self) -> Result<Result<&'r Reply, Over>, &'static str> {
        let (reply, rest) = self.replies.split_first().ok_or("a command without a reply")?;
        self.replies = rest;
        if self.closed && rest.is_empty() {
            return Ok(Err(Over));
        }
        if matches!(reply.code, 221 | 421 | 521) {
            return Err("goes on behind a reply that closes");
        }
        Ok(Ok(reply))
    }
}

/// The first line of `rest`, which may have `max` octets with its CRLF.
fn line(rest: &[u8], max: usize) -> Line<'_> {
    let Some(at) = rest.iter().take(max).position(|octet| matches!(octet, b'\r' | b'\n' | 0)) else {
        return if rest.len() >= max { Line::TooLong(end(rest, max, &mut 0)) } else { Line::Unfinished };
    };
    match (rest[at], rest.get(at + 1)) {
        (b'\r', _) if at + 1 == max => Line::TooLong(end(rest, at, &mut 0)),
        (b'\r', None) => Line::Unfinished,
        (b'\r', Some(b'\n')) => Line::Whole(&rest[..at], at + 2),
        _ => {
            let mut again = 0;
            let next = end(rest, at + 1, &mut again);
            Line::Bare(next, again)
        }
    }
}

/// Where the first CRLF at or behind `from` ends. Counts the bare LF before it.
fn end(rest: &[u8], from: usize, bare: &mut usize) -> Option<usize> {
    for at in from..rest.len() {
        if rest[at] == b'\n' {
            if at > from && rest[at - 1] == b'\r' {
                return Some(at + 1);
            }
            *bare += 1;
        }
    }
    None
}

fn chunk(words: &[&[u8]]) -> Option<u64> {
    let octets = match words {
        [octets] => octets,
        [octets, last] if last.eq_ignore_ascii_case(b"LAST") => octets,
        _ => return None,
    };
    let text = std::str::from_utf8(octets).ok().filter(|text| text.bytes().all(|c| c.is_ascii_digit()))?;
    text.parse().ok()
}

/// Behind the first line that is a dot and nothing else.
fn end_of_data(text: &[u8]) -> Option<usize> {
    if text.starts_with(b".\r\n") {
        return Some(3);
    }
    text.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 5)
}
