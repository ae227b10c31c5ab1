//! Cuts what the client sends into command lines.
//!
//! Promises: a line ends at CRLF and at nothing else; each line that is too long or holds a bare CR, a bare LF or a NUL
//! is reported once, at the octet that made it so, and the rest of it is thrown away. A whole line in the input is
//! returned without being copied; at most [`COMMAND_MAX_OCTETS`] are held back, or [`AUTH_MAX_OCTETS`] where a client
//! authenticates. What was held back is wiped from memory, because it may be a password.

use std::fmt;

use memchr::{memchr, memchr3};
use zeroize::Zeroizing;

/// RFC 5321 §4.5.3.1.4 asks for 512, extensions add to it. With CRLF.
pub const COMMAND_MAX_OCTETS: usize = 2048;
/// Of an AUTH command and of each answer in its exchange (RFC 4954 §4), with CRLF.
pub const AUTH_MAX_OCTETS: usize = 12_288;

/// What the next line is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Command,
    /// The client's answer in an AUTH exchange.
    Response,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Without CRLF.
    Whole(&'a [u8]),
    /// More than [`COMMAND_MAX_OCTETS`].
    TooLong,
    /// An AUTH command or an answer of more than [`AUTH_MAX_OCTETS`].
    AuthTooLong,
    /// A CR without LF, a LF without CR, or a NUL.
    BareNewlineOrNul,
}

#[derive(Default)]
pub struct LineReader {
    /// The beginning of a line whose end has not come.
    partial: Zeroizing<Vec<u8>>,
    /// `partial` was returned as a line and has to go.
    returned: bool,
    skipping: Option<Skip>,
    /// The bad line reported last began with BDAT.
    bad_chunk: bool,
}

/// Octets held are counted and not shown.
impl fmt::Debug for LineReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineReader")
            .field("held_octets", &self.held().len())
            .field("skipping", &self.skipping)
            .finish_non_exhaustive()
    }
}

/// Throwing away the rest of a bad line.
#[derive(Debug, Clone, Copy)]
struct Skip {
    behind_cr: bool,
    /// A client that ends all its lines with LF alone never sends the CRLF we wait for. It hears of the second line too.
    report_bare: bool,
}

impl LineReader {
    /// Part of a line has come, its end has not.
    pub fn is_inside_line(&self) -> bool {
        (!self.partial.is_empty() && !self.returned) || self.skipping.is_some()
    }

    /// The beginning of a line whose end has not come.
    pub fn held(&self) -> &[u8] {
        if self.returned { &[] } else { &self.partial }
    }

    /// The bad line reported last was a BDAT: octets that are no commands may follow, and nobody knows how many.
    pub fn announced_chunk(&self) -> bool {
        self.bad_chunk
    }

    /// The next line at the front of `input`; `None` when all of it is used up.
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8], expected: Expected) -> Option<Line<'s>> {
        if std::mem::take(&mut self.returned) {
            self.partial = Zeroizing::default();
        }
        if let Some(skip) = self.skipping
            && self.skip(skip, input)
        {
            return Some(Line::BareNewlineOrNul);
        }
        if input.is_empty() {
            return None;
        }
        if self.partial.last() == Some(&b'\r') {
            if input[0] != b'\n' {
                return Some(self.bad(Line::BareNewlineOrNul, false, b""));
            }
            *input = &input[1..];
            self.partial.pop();
            self.returned = true;
            return Some(Line::Whole(&self.partial));
        }
        let bytes = *input;
        let auth = expected == Expected::Response || self.begins_with(b"AUTH ", bytes);
        let room = if auth { AUTH_MAX_OCTETS } else { COMMAND_MAX_OCTETS } - self.partial.len();
        let window = &bytes[..room.min(bytes.len())];
        match memchr3(b'\r', b'\n', 0, window) {
            Some(at) if window[at] == b'\r' && at + 1 == window.len() => self.hold(window, input, room, auth),
            Some(at) if window[at] == b'\r' && window[at + 1] == b'\n' => {
                *input = &bytes[at + 2..];
                if self.partial.is_empty() {
                    return Some(Line::Whole(&bytes[..at]));
                }
                self.keep(&bytes[..at]);
                self.returned = true;
                Some(Line::Whole(&self.partial))
            }
            Some(at) => {
                *input = &bytes[at + 1..];
                let ended_by_cr = window[at] == b'\r';
                debug_assert!(!ended_by_cr || window[at + 1] != b'\n');
                Some(self.bad(Line::BareNewlineOrNul, false, window))
            }
            None => self.hold(window, input, room, auth),
        }
    }

    /// The line so far, of which `bytes` come next, begins with `name`, in any case.
    fn begins_with(&self, name: &[u8], bytes: &[u8]) -> bool {
        let line = self.partial.iter().chain(bytes).take(name.len());
        line.clone().count() == name.len() && line.zip(name).all(|(a, b)| a.eq_ignore_ascii_case(b))
    }

    /// A vector that grows by itself would leave a copy of what it held behind.
    fn keep(&mut self, bytes: &[u8]) {
        let octets = self.partial.len() + bytes.len();
        if octets > self.partial.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(octets.next_power_of_two()));
            larger.extend_from_slice(&self.partial);
            self.partial = larger;
        }
        self.partial.extend_from_slice(bytes);
    }

    /// Keeps `window`, which has no line end, unless it fills the line, in which `room` octets are left.
    fn hold(&mut self, window: &[u8], input: &mut &[u8], room: usize, auth: bool) -> Option<Line<'static>> {
        *input = &input[window.len()..];
        if window.len() < room {
            self.keep(window);
            return None;
        }
        let line = if auth { Line::AuthTooLong } else { Line::TooLong };
        Some(self.bad(line, window.last() == Some(&b'\r'), window))
    }

    fn bad(&mut self, line: Line<'static>, behind_cr: bool, window: &[u8]) -> Line<'static> {
        self.bad_chunk = self.begins_with(b"BDAT", window);
        self.partial = Zeroizing::default();
        self.skipping = Some(Skip { behind_cr, report_bare: line == Line::BareNewlineOrNul });
        line
    }

    /// Throws away up to and with the next CRLF. True when a bare LF has to be reported on the way.
    fn skip(&mut self, mut skip: Skip, input: &mut &[u8]) -> bool {
        while let Some(at) = memchr(b'\n', input) {
            let crlf = if at == 0 { skip.behind_cr } else { input[at - 1] == b'\r' };
            *input = &input[at + 1..];
            skip.behind_cr = false;
            self.skipping = (!crlf).then_some(skip);
            if crlf {
                return false;
            }
            if skip.report_bare {
                return true;
            }
        }
        if let Some(last) = input.last() {
            skip.behind_cr = *last == b'\r';
        }
        self.skipping = Some(skip);
        *input = &[];
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines as text; `!long` and `!bare` for the bad ones.
    fn lines(input: &[u8], size: usize) -> Vec<String> {
        let mut reader = LineReader::default();
        let mut lines = Vec::new();
        for mut chunk in input.chunks(size) {
            while let Some(line) = reader.next(&mut chunk, Expected::Command) {
                lines.push(match line {
                    Line::Whole(text) => String::from_utf8(text.to_vec()).unwrap(),
                    Line::TooLong => "!long".into(),
                    Line::AuthTooLong => "!auth".into(),
                    Line::BareNewlineOrNul => "!bare".into(),
                });
            }
            assert!(chunk.is_empty());
        }
        lines
    }

    #[test]
    fn a_line_ends_at_crlf_only() {
        for (input, expected) in [
            ("NOOP\r\nQUIT\r\n", &["NOOP", "QUIT"][..]),
            ("\r\n\r\n", &["", ""]),
            ("NOOP\r\nQUI", &["NOOP"]),
            ("a\nb\r\nQUIT\r\n", &["!bare", "QUIT"]),
            ("a\rb\r\nQUIT\r\n", &["!bare", "QUIT"]),
            ("a\r\r\nQUIT\r\n", &["!bare", "QUIT"]),
            ("a\0b\r\nQUIT\r\n", &["!bare", "QUIT"]),
            ("a\nb\nc\r\nQUIT\r\n", &["!bare", "!bare", "QUIT"]),
            ("\n", &["!bare"]),
        ] {
            for size in [1, 2, 3, 100] {
                assert_eq!(lines(input.as_bytes(), size), expected, "{input:?} in chunks of {size}");
            }
        }
    }

    #[test]
    fn a_line_may_have_2048_octets_with_its_crlf() {
        for (octets, expected_long) in [(2046, false), (2047, true), (2048, true), (9000, true)] {
            let input = format!("{}\r\nQUIT\r\n", "x".repeat(octets));
            for size in [1, 7, 2047, 2048, 2049, 20_000] {
                let lines = lines(input.as_bytes(), size);
                assert_eq!(lines.len(), 2, "{octets} octets in chunks of {size}");
                assert_eq!(lines[0] == "!long", expected_long, "{octets} octets in chunks of {size}");
                assert_eq!(lines[1], "QUIT");
            }
        }
    }

    #[test]
    fn an_auth_line_may_have_12288_octets_with_its_crlf() {
        for (octets, expected) in [(12_286, "auth "), (12_287, "!auth"), (30_000, "!auth")] {
            let input = format!("auth {}\r\nQUIT\r\n", "x".repeat(octets - 5));
            for size in [1, 7, 2048, 12_288, 20_000, 50_000] {
                let lines = lines(input.as_bytes(), size);
                assert_eq!(lines.len(), 2, "{octets} octets in chunks of {size}");
                assert_eq!(&lines[0][..5], expected, "{octets} octets in chunks of {size}");
                assert_eq!(lines[1], "QUIT");
            }
        }
    }

    #[test]
    fn an_answer_to_auth_may_be_as_long_whatever_it_begins_with() {
        for (octets, expected) in [(12_286, Line::Whole(&[b'x'; 12_286])), (12_287, Line::AuthTooLong)] {
            let input = [vec![b'x'; octets], b"\r\n".to_vec()].concat();
            let mut reader = LineReader::default();
            let mut first = &input[..5000];
            assert_eq!(reader.next(&mut first, Expected::Response), None);
            assert_eq!(reader.next(&mut &input[5000..], Expected::Response), Some(expected));
        }
    }

    #[test]
    fn a_bad_line_tells_whether_it_announced_a_chunk() {
        for (input, chunk) in
            [("BDAT 5\nx", true), ("bdat\0", true), ("NOOP\n", false), ("NOOP BDAT\n", false), ("BDA\n", false)]
        {
            for size in [1, 2, 100] {
                let mut reader = LineReader::default();
                let mut bad = 0;
                for mut part in input.as_bytes().chunks(size) {
                    while reader.next(&mut part, Expected::Command).is_some() {
                        bad += 1;
                        assert_eq!(reader.announced_chunk(), chunk, "{input:?} in chunks of {size}");
                    }
                }
                assert_eq!(bad, 1);
            }
        }
    }

    #[test]
    fn what_is_held_back_is_not_printed() {
        let mut reader = LineReader::default();
        assert_eq!(reader.next(&mut &b"AUTH PLAIN AGFu"[..], Expected::Command), None);
        let shown = format!("{reader:?}");
        assert!(shown.contains("held_octets: 15") && !shown.contains("65"), "{shown}");
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_input_is_cut(
            input in proptest::collection::vec(
                proptest::sample::select(vec![b'\r', b'\n', b'\r', b'\n', b'a', 0u8]), 0..40),
            size in 1usize..6,
        ) {
            prop_assert_eq!(lines(&input, size), lines(&input, 1000));
        }
    }
}
