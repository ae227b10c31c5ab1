//! Where a message ends, and what it contains: the octets between 354 and the final dot, or those of BDAT chunks.
//!
//! Promises: a message ends at CRLF `.` CRLF (or `.` CRLF as its very first line) and at nothing that merely looks
//! like it, so that no server behind us can see an end, and commands after it, where we saw text (SMTP smuggling). The
//! result does not depend on how the network cut the input. Text is handed on in whole runs, not line by line.
//!
//! Judges nothing: it flags what the session then refuses at the true end. Un-stuffs leading dots (RFC 5321 §4.5.2),
//! which mean nothing in a chunk (RFC 3030 §2).

use memchr::{memchr, memchr2};

/// A longer line is flagged. RFC 5321 §4.5.3.1.6 allows 998 octets and CRLF; applications send more, and a relay that
/// folds breaks DKIM, so up to here lines pass as they are.
pub const LINE_MAX_OCTETS: u64 = 64 * 1024;

/// Of what stood around a lone CR or LF, for the log.
pub const OFFENCE_MAX_OCTETS: usize = 32;

const CR: u8 = b'\r';
const LF: u8 = b'\n';

/// What the scanner found next.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Part of the message; never empty.
    Text(&'a [u8]),
    /// The true end of the message. What is left of the input are commands.
    End,
}

/// Reads one message. `Default` starts at the first octet of one that ends with a dot.
#[derive(Debug, Default)]
pub struct DataScanner {
    state: State,
    /// The message comes in chunks: leading dots are text and nothing in it is its end.
    chunked: bool,
    /// Mend a lone CR or LF to CRLF instead of flagging it. A mended line end never ends the message.
    normalize: bool,
    bare_newline: bool,
    nul: bool,
    long_line: bool,
    /// Octets of the current line so far.
    line_octets: u64,
    /// The lone CR or LF that came first, with what stood behind it.
    offence: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// At the start of the message, or right behind a CRLF.
    #[default]
    LineStart,
    /// Behind a leading dot, which is not part of the text.
    Dot,
    /// Behind a leading dot and a CR, which is not handed on yet.
    DotCr,
    /// Inside a line.
    Inside,
    /// The input ended at a CR, which was handed on.
    Cr,
}

impl DataScanner {
    pub fn new(normalize: bool) -> Self {
        DataScanner { normalize, ..DataScanner::default() }
    }

    /// For a message that comes in chunks.
    pub fn chunked(normalize: bool) -> Self {
        DataScanner { normalize, chunked: true, ..DataScanner::default() }
    }

    /// What a log may show of the first lone CR or LF: it and what was behind it in the same read, at most
    /// [`OFFENCE_MAX_OCTETS`]; empty while there was none.
    pub fn offence(&self) -> &[u8] {
        &self.offence
    }

    /// The last chunk has ended: a CR that was the last octet stays alone.
    pub fn end(&mut self) {
        if matches!(self.state, State::Cr) {
            self.offend(b"\r", b"");
        }
    }

    /// A CR or LF stood alone; never set when mending.
    pub fn bare_newline(&self) -> bool {
        self.bare_newline
    }

    pub fn nul(&self) -> bool {
        self.nul
    }

    /// A line had more than [`LINE_MAX_OCTETS`].
    pub fn long_line(&self) -> bool {
        self.long_line
    }

    /// Takes the next piece off the front of `input`; `None` when all of it is used up and the message goes on.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        loop {
            let first = *input.first()?;
            match self.state {
                State::LineStart if first == b'.' && !self.chunked => {
                    *input = &input[1..];
                    self.state = State::Dot;
                }
                State::Dot if first == CR => {
                    *input = &input[1..];
                    self.state = State::DotCr;
                }
                State::LineStart | State::Dot => self.state = State::Inside,
                State::DotCr if first == LF => {
                    *input = &input[1..];
                    self.state = State::LineStart;
                    return Some(Piece::End);
                }
                State::DotCr => {
                    // The octet is looked at again as part of the line: it may be the CR of a true CRLF.
                    self.state = State::Inside;
                    return Some(Piece::Text(self.lone(b"\r", input)));
                }
                State::Cr if first == LF => {
                    let text;
                    (text, *input) = input.split_at(1);
                    self.state = State::LineStart;
                    self.line_octets = 0;
                    return Some(Piece::Text(text));
                }
                State::Cr => {
                    self.state = State::Inside;
                    if self.normalize {
                        self.line_octets = 0;
                        return Some(Piece::Text(b"\n"));
                    }
                    self.offend(b"\r", input);
                }
                State::Inside => return Some(Piece::Text(self.run(input))),
            }
        }
    }

    /// Text up to the next place where something other than copying has to happen.
    fn run<'a>(&mut self, input: &mut &'a [u8]) -> &'a [u8] {
        let bytes = *input;
        let mut line_start = 0;
        let mut at = 0;
        let end = loop {
            let Some(found) = memchr2(CR, LF, &bytes[at..]).map(|offset| at + offset) else {
                break bytes.len();
            };
            let next = bytes.get(found + 1).copied();
            match (bytes[found], next) {
                (CR, Some(LF)) => {
                    self.count_line(found - line_start);
                    self.line_octets = 0;
                    at = found + 2;
                    line_start = at;
                    // Only a dot, or the end of what we have, makes the next line start special.
                    if matches!(bytes.get(at), None | Some(b'.')) {
                        self.state = State::LineStart;
                        break at;
                    }
                }
                (CR, None) => {
                    self.state = State::Cr;
                    break bytes.len();
                }
                (lone, _) if self.normalize => {
                    if found == 0 {
                        *input = &bytes[1..];
                        return self.lone(if lone == CR { b"\r" } else { b"\n" }, b"");
                    }
                    break found;
                }
                (lone, _) => {
                    self.offend(&[lone], &bytes[found + 1..]);
                    at = found + 1;
                }
            }
        };
        self.count_line(end - line_start);
        let (text, rest) = bytes.split_at(end);
        *input = rest;
        self.nul |= memchr(0, text).is_some();
        text
    }

    /// A CR or LF stands alone, in front of `behind`.
    fn offend(&mut self, lone: &[u8], behind: &[u8]) {
        if !self.bare_newline {
            self.offence = lone.iter().chain(behind).take(OFFENCE_MAX_OCTETS).copied().collect();
        }
        self.bare_newline = true;
    }

    /// What a lone CR or LF in front of `behind` becomes.
    fn lone(&mut self, octet: &'static [u8], behind: &[u8]) -> &'static [u8] {
        if self.normalize {
            self.line_octets = 0;
            return b"\r\n";
        }
        self.offend(octet, behind);
        self.line_octets += 1;
        octet
    }

    fn count_line(&mut self, octets: usize) {
        self.line_octets += octets as u64;
        // A CR at the end of a chunk is counted before it is known to end the line, hence one to spare in that state.
        let line_end = u64::from(matches!(self.state, State::Cr));
        self.long_line |= self.line_octets > LINE_MAX_OCTETS + line_end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Read {
        text: Vec<u8>,
        /// Octets used up to and with the final dot; `None` when the message goes on.
        end: Option<usize>,
        bare: bool,
        nul: bool,
    }

    /// Feeds `input` in chunks of the given sizes, over and over.
    fn scan(input: &[u8], normalize: bool, sizes: &[usize]) -> Read {
        let mut scanner = DataScanner::new(normalize);
        let mut text = Vec::new();
        let (mut at, mut turn) = (0, 0);
        let mut end = None;
        'all: while at < input.len() {
            let size = sizes[turn % sizes.len()].max(1).min(input.len() - at);
            turn += 1;
            let mut chunk = &input[at..at + size];
            at += size;
            while let Some(piece) = scanner.next(&mut chunk) {
                match piece {
                    Piece::Text(run) => {
                        assert!(!run.is_empty());
                        text.extend_from_slice(run);
                    }
                    Piece::End => {
                        end = Some(at - chunk.len());
                        break 'all;
                    }
                }
            }
            assert!(chunk.is_empty());
        }
        Read { text, end, bare: scanner.bare_newline(), nul: scanner.nul() }
    }

    /// The same rules octet by octet, looking at the whole input: slow and plain.
    fn reference(input: &[u8], normalize: bool) -> Read {
        let mut read = Read { text: Vec::new(), end: None, bare: false, nul: false };
        let mut line_start = true;
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            if line_start && rest.starts_with(b".\r\n") {
                read.end = Some(at + 3);
                return read;
            }
            if line_start && rest[0] == b'.' {
                if rest == b".\r" {
                    return read; // the CR is held back until the next octet is known
                }
                line_start = false;
                at += 1;
                continue;
            }
            line_start = false;
            if rest.starts_with(b"\r\n") {
                read.text.extend_from_slice(b"\r\n");
                line_start = true;
                at += 2;
                continue;
            }
            let octet = rest[0];
            at += 1;
            match octet {
                b'\r' if rest.len() == 1 => read.text.push(b'\r'), // not known to be bare yet
                b'\r' | b'\n' if normalize => read.text.extend_from_slice(b"\r\n"),
                b'\r' | b'\n' => {
                    read.bare = true;
                    read.text.push(octet);
                }
                _ => {
                    read.nul |= octet == 0;
                    read.text.push(octet);
                }
            }
        }
        read
    }

    #[test]
    fn only_crlf_dot_crlf_ends_a_message() {
        for lookalike in [
            &b"\n.\n"[..],
            b"\n.\r\n",
            b"\r.\r",
            b"\r\n.\n",
            b"\r\n.\r\r\n",
            b"\r\n.\r",
            b"\n\r.\r\n",
            b"\r\n.\rX",
            b"\r.\r\n",
            b"\r\n.\0\r\n",
            b"\r\n. \r\n",
        ] {
            let input = [b"text", lookalike, b"MAIL FROM:<evil@example.org>"].concat();
            for size in [1, 2, 3, 100] {
                assert_eq!(scan(&input, false, &[size]).end, None, "{lookalike:?} in chunks of {size}");
                assert_eq!(scan(&input, true, &[size]).end, None, "mended {lookalike:?} in chunks of {size}");
            }
            let ended = [&input[..], b"\r\n.\r\n"].concat();
            assert_eq!(scan(&ended, false, &[3]).end, Some(ended.len()), "the true end after {lookalike:?}");
        }
    }

    #[test]
    fn a_lookalike_of_the_end_is_flagged() {
        for input in ["\n.\n", "\n.\r\n", "\r.\r\r\n", "\r\n.\n", "\r\n.\r\r\n", "\r\n.\rX", "\n\r.\r\n"] {
            for size in [1, 2, 100] {
                assert!(scan(input.as_bytes(), false, &[size]).bare, "{input:?} in chunks of {size}");
                assert!(!scan(input.as_bytes(), true, &[size]).bare, "mended {input:?} in chunks of {size}");
            }
        }
    }

    #[test]
    fn the_first_lone_newline_is_kept_for_the_log() {
        for (input, size, kept) in [
            (&b"ab\ncd\ne"[..], 100, &b"\ncd\ne"[..]),
            (b"ab\rcd", 3, b"\rcd"),
            (b"ab\r\n.\rcd", 100, b"\rcd"),
            (b"ab\r\n", 1, b""),
            (&[b"\n".to_vec(), vec![b'x'; 100]].concat(), 200, &[b"\n".to_vec(), vec![b'x'; 31]].concat()),
        ] {
            let mut scanner = DataScanner::default();
            for mut chunk in input.chunks(size) {
                while scanner.next(&mut chunk).is_some() {}
            }
            assert_eq!(scanner.offence(), kept, "{input:?} in parts of {size}");
        }
    }

    /// Feeds a chunked message in parts of the given sizes.
    fn scan_chunked(input: &[u8], normalize: bool, sizes: &[usize]) -> (Vec<u8>, bool, bool) {
        let mut scanner = DataScanner::chunked(normalize);
        let (mut text, mut rest, mut turn) = (Vec::new(), input, 0);
        while !rest.is_empty() {
            let (mut part, behind) = rest.split_at(sizes[turn % sizes.len()].clamp(1, rest.len()));
            (rest, turn) = (behind, turn + 1);
            while let Some(piece) = scanner.next(&mut part) {
                let Piece::Text(run) = piece else { panic!("a chunk has no end of its own") };
                text.extend_from_slice(run);
            }
        }
        scanner.end();
        (text, scanner.bare_newline(), scanner.nul())
    }

    #[test]
    fn dots_in_chunks_are_text() {
        for text in [".\r\n", "a\r\n.\r\nQUIT\r\n", "..\r\n.", "\r\n.\r\n"] {
            for size in [1, 2, 3, 100] {
                let read = scan_chunked(text.as_bytes(), false, &[size]);
                assert_eq!(read, (text.into(), false, false), "{text:?} in parts of {size}");
            }
        }
    }

    #[test]
    fn a_cr_as_the_very_last_octet_stands_alone() {
        for size in [1, 100] {
            assert!(scan_chunked(b"a\r\nb\r", false, &[size]).1);
            assert!(scan_chunked(b"a\r\nb\r", true, &[size]).1, "there is nothing to mend it with any more");
        }
    }

    #[test]
    fn dots_are_unstuffed_and_nothing_else_changes() {
        for (sent, text) in [
            (".\r\n", ""),
            ("\r\n.\r\n", "\r\n"),
            ("..x\r\n.\r\n", ".x\r\n"),
            ("...\r\n.\r\n", "..\r\n"),
            ("a\r\n..\r\nb\r\n.\r\n", "a\r\n.\r\nb\r\n"),
            ("a.b\r\n.c\r\n.\r\n", "a.b\r\nc\r\n"),
        ] {
            for size in [1, 2, 3, 100] {
                let read = scan(sent.as_bytes(), false, &[size]);
                assert_eq!((read.text, read.end), (text.into(), Some(sent.len())), "{sent:?} in chunks of {size}");
                assert!(!read.bare);
            }
        }
    }

    #[test]
    fn mending_turns_each_lone_newline_into_crlf() {
        for (sent, text) in [
            ("a\nb\r\n.\r\n", "a\r\nb\r\n"),
            ("a\rb\r\n.\r\n", "a\r\nb\r\n"),
            ("a\r\r\n.\r\n", "a\r\n\r\n"),
            ("a\n.\nb\r\n.\r\n", "a\r\n.\r\nb\r\n"),
            ("a\r\n.\rb\r\n.\r\n", "a\r\n\r\nb\r\n"),
        ] {
            for size in [1, 2, 3, 100] {
                let read = scan(sent.as_bytes(), true, &[size]);
                assert_eq!((read.text, read.end), (text.into(), Some(sent.len())), "{sent:?} in chunks of {size}");
            }
        }
    }

    #[test]
    fn a_line_is_long_beyond_64_kib_however_it_is_cut() {
        let max = usize::try_from(LINE_MAX_OCTETS).unwrap();
        for (octets, long) in [(999, false), (max, false), (max + 1, true)] {
            let mut input = vec![b'x'; octets];
            input.extend_from_slice(b"\r\nshort\r\n.\r\n");
            for size in [1, octets, octets + 1, octets + 2, 4096, input.len()] {
                let mut scanner = DataScanner::default();
                for mut chunk in input.chunks(size) {
                    while scanner.next(&mut chunk).is_some() {}
                }
                assert_eq!(scanner.long_line(), long, "{octets} octets in chunks of {size}");
            }
        }
    }

    #[test]
    fn text_without_dots_comes_in_one_run_per_chunk() {
        let message = b"line\r\nanother\r\n\r\nlast\r\n";
        let mut input = &message[..];
        assert_eq!(DataScanner::default().next(&mut input), Some(Piece::Text(message)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn the_scanner_agrees_with_the_octet_wise_reference(
            input in proptest::collection::vec(
                proptest::sample::select(vec![b'\r', b'\n', b'\r', b'\n', b'.', b'.', b'a', 0u8]), 0..40),
            sizes in proptest::collection::vec(1usize..6, 1..5),
            normalize: bool,
        ) {
            prop_assert_eq!(scan(&input, normalize, &sizes), reference(&input, normalize));
        }

        #[test]
        fn chunks_agree_with_an_octet_wise_reference(
            input in proptest::collection::vec(
                proptest::sample::select(vec![b'\r', b'\n', b'\r', b'\n', b'.', b'.', b'a', 0u8]), 0..40),
            sizes in proptest::collection::vec(1usize..6, 1..5),
            normalize: bool,
        ) {
            let (mut text, mut bare, mut at) = (Vec::new(), false, 0);
            while at < input.len() {
                let rest = &input[at..];
                if rest.starts_with(b"\r\n") {
                    text.extend_from_slice(b"\r\n");
                    at += 2;
                    continue;
                }
                at += 1;
                match rest[0] {
                    b'\r' if rest.len() == 1 => { bare = true; text.push(b'\r') }
                    b'\r' | b'\n' if normalize => text.extend_from_slice(b"\r\n"),
                    lone @ (b'\r' | b'\n') => { bare = true; text.push(lone) }
                    other => text.push(other),
                }
            }
            let nul = input.contains(&0);
            prop_assert_eq!(scan_chunked(&input, normalize, &sizes), (text, bare, nul));
        }
    }
}
