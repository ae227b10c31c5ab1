//! Cuts what the client sends into command lines.
//!
//! Promises: a line ends at CRLF and at nothing else; each line that is too long or holds a bare CR, a bare LF or a NUL
//! is reported once, at the octet that made it so, and the rest of it is thrown away. A whole line in the input is
//! returned without being copied; at most [`COMMAND_MAX_OCTETS`] are held back.

use memchr::{memchr, memchr3};

/// RFC 5321 §4.5.3.1.4 asks for 512, extensions add to it. With CRLF.
pub const COMMAND_MAX_OCTETS: usize = 2048;

#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Without CRLF.
    Command(&'a [u8]),
    /// More than [`COMMAND_MAX_OCTETS`].
    TooLong,
    /// A CR without LF, a LF without CR, or a NUL.
    BareNewlineOrNul,
}

#[derive(Debug, Default)]
pub struct LineReader {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// `partial` was returned as a line and has to go.
    returned: bool,
    skipping: Option<Skip>,
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

    /// The next line at the front of `input`; `None` when all of it is used up.
    pub fn next<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Option<Line<'s>> {
        if std::mem::take(&mut self.returned) {
            self.partial = Vec::new();
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
                return Some(self.bad(Line::BareNewlineOrNul, false));
            }
            *input = &input[1..];
            self.partial.pop();
            self.returned = true;
            return Some(Line::Command(&self.partial));
        }
        let bytes = *input;
        let room = COMMAND_MAX_OCTETS - self.partial.len();
        let window = &bytes[..room.min(bytes.len())];
        match memchr3(b'\r', b'\n', 0, window) {
            Some(at) if window[at] == b'\r' && at + 1 == window.len() => self.hold(window, input),
            Some(at) if window[at] == b'\r' && window[at + 1] == b'\n' => {
                *input = &bytes[at + 2..];
                if self.partial.is_empty() {
                    return Some(Line::Command(&bytes[..at]));
                }
                self.partial.extend_from_slice(&bytes[..at]);
                self.returned = true;
                Some(Line::Command(&self.partial))
            }
            Some(at) => {
                *input = &bytes[at + 1..];
                let ended_by_cr = window[at] == b'\r';
                debug_assert!(!ended_by_cr || window[at + 1] != b'\n');
                Some(self.bad(Line::BareNewlineOrNul, false))
            }
            None => self.hold(window, input),
        }
    }

    /// Keeps `window`, which has no line end, unless it fills the line.
    fn hold(&mut self, window: &[u8], input: &mut &[u8]) -> Option<Line<'static>> {
        *input = &input[window.len()..];
        if self.partial.len() + window.len() < COMMAND_MAX_OCTETS {
            self.partial.extend_from_slice(window);
            return None;
        }
        Some(self.bad(Line::TooLong, window.last() == Some(&b'\r')))
    }

    fn bad(&mut self, line: Line<'static>, behind_cr: bool) -> Line<'static> {
        self.partial = Vec::new();
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
            while let Some(line) = reader.next(&mut chunk) {
                lines.push(match line {
                    Line::Command(text) => String::from_utf8(text.to_vec()).unwrap(),
                    Line::TooLong => "!long".into(),
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
