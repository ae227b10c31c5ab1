//! The tag by which an application says what kind of mail a message is: `X-Mailramp-Stream`, for us alone.
//!
//! Promises: no field of this name leaves, in whatever case, folded or not, however the input was cut; every other octet
//! leaves as it came. A message without the field is not copied. What is held back is at most one name with the white
//! space behind it, and no line is held once it cannot be the field.
//!
//! Used only where the listener lets its clients choose. Elsewhere the field is one like any other.

use std::borrow::Cow;

use memchr::memchr;

const NAME: &[u8] = b"x-mailramp-stream";
/// Of a line that may still be the field. White space may stand between name and colon (RFC 5322 §4.5); a longer line
/// than this without a colon is none (§2.1.1).
const HELD_MAX_OCTETS: usize = 998;
/// Of a value. Names of streams are shorter; a longer value names none.
const VALUE_MAX_OCTETS: usize = 256;

/// Takes the field out of a header block that passes by in parts of lines.
#[derive(Debug, Default)]
pub struct TagFilter {
    place: Place,
    /// The line so far consists of CRs.
    only_cr: bool,
    /// The field that ended last, or goes on, is ours: a line that begins with white space belongs to it.
    ours: bool,
    /// The start of a line that may be our field.
    held: Vec<u8>,
    /// What our field holds so far, one octet more than allowed at most.
    value: Vec<u8>,
    first: Option<Box<[u8]>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    LineStart,
    /// In a line that may be our field.
    Naming,
    /// In a line that passes.
    Passing,
    /// In a line of our field.
    Dropping,
    /// Behind the header block.
    Body,
}

impl TagFilter {
    /// The header block is over: nothing is looked at any more.
    pub fn is_over(&self) -> bool {
        self.place == Place::Body
    }

    /// So much of `input` may be given to [`TagFilter::pass`] at once: up to the end of its first line.
    pub fn window<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        match memchr(b'\n', input) {
            Some(end) if !self.is_over() => &input[..=end],
            _ => input,
        }
    }

    /// What is to be handed on now that `part` has come, with what was held back before; may be empty. `part` lies in
    /// one line, its end included.
    pub fn pass<'a>(&mut self, part: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(first) = part.first().filter(|_| !self.is_over()) else { return Cow::Borrowed(part) };
        if self.place == Place::LineStart {
            self.only_cr = true;
            let folded = matches!(first, b' ' | b'\t');
            if !folded {
                self.end_field();
            }
            self.place = match folded {
                true if self.ours => Place::Dropping,
                true => Place::Passing,
                false => Place::Naming,
            };
        }
        let kept = match self.place {
            Place::Naming => self.name(part),
            Place::Dropping => {
                self.keep_value(part);
                Cow::Borrowed(&[][..])
            }
            Place::Passing | Place::LineStart | Place::Body => Cow::Borrowed(part),
        };
        let content = part.strip_suffix(b"\n");
        self.only_cr &= content.unwrap_or(part).iter().all(|octet| *octet == b'\r');
        if content.is_some() {
            self.place = if self.only_cr { Place::Body } else { Place::LineStart };
        }
        kept
    }

    /// The value of the first such field, without white space around it; it may be anything. Ask when the message has
    /// ended.
    pub fn take(&mut self) -> Option<Box<[u8]>> {
        self.end_field();
        self.first.take()
    }

    fn name<'a>(&mut self, part: &'a [u8]) -> Cow<'a, [u8]> {
        let line = || self.held.iter().chain(part);
        let named = line().zip(NAME).all(|(octet, wanted)| octet.eq_ignore_ascii_case(wanted));
        let behind = line().enumerate().skip(NAME.len()).find(|(_, octet)| !matches!(octet, b' ' | b'\t'));
        match behind {
            // However the line is cut, it is held up to the same octet.
            Some((at, b':')) if named && at <= HELD_MAX_OCTETS => {
                let colon = memchr(b':', part).expect("what was held back has none");
                self.keep_value(&part[colon + 1..]);
                (self.ours, self.place) = (true, Place::Dropping);
                self.held.clear();
                Cow::Borrowed(&[])
            }
            None if named && self.held.len() + part.len() <= HELD_MAX_OCTETS => {
                self.held.extend_from_slice(part);
                Cow::Borrowed(&[])
            }
            _ => {
                self.place = Place::Passing;
                if self.held.is_empty() {
                    return Cow::Borrowed(part);
                }
                let mut line = std::mem::take(&mut self.held);
                line.extend_from_slice(part);
                Cow::Owned(line)
            }
        }
    }

    fn keep_value(&mut self, text: &[u8]) {
        let room = (VALUE_MAX_OCTETS + 1).saturating_sub(self.value.len());
        self.value.extend_from_slice(&text[..text.len().min(room)]);
    }

    fn end_field(&mut self) {
        let value = std::mem::take(&mut self.value);
        if self.ours && self.first.is_none() {
            // Where a line was folded its end is no part of the value (RFC 5322 §2.2.3).
            let unfolded: Vec<u8> = value.into_iter().filter(|octet| !matches!(octet, b'\r' | b'\n')).collect();
            self.first = Some(unfolded.trim_ascii().into());
        }
        self.ours = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What passes, the tag, and whether any octet was copied; `sizes` are those of the cuts, over and over.
    fn pass(text: &[u8], sizes: &[usize]) -> (Vec<u8>, Option<Vec<u8>>, bool) {
        let (mut filter, mut kept, mut copied) = (TagFilter::default(), Vec::new(), false);
        let (mut at, mut turn) = (0, 0);
        while at < text.len() {
            let size = sizes[turn % sizes.len()].clamp(1, text.len() - at);
            turn += 1;
            let mut chunk = &text[at..at + size];
            at += size;
            while !chunk.is_empty() {
                let part;
                (part, chunk) = chunk.split_at(filter.window(chunk).len());
                let on = filter.pass(part);
                copied |= matches!(on, Cow::Owned(_));
                kept.extend_from_slice(&on);
                assert!(filter.held.len() <= HELD_MAX_OCTETS && filter.value.len() <= VALUE_MAX_OCTETS + 1);
            }
        }
        (kept, filter.take().map(Vec::from), copied)
    }

    /// The same with the whole message at hand: the lines that are left, and the first value.
    fn reference(text: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
        let (mut kept, mut values, mut ours, mut body) = (Vec::new(), Vec::<Vec<u8>>::new(), false, false);
        for line in text.split_inclusive(|octet| *octet == b'\n') {
            let folded = matches!(line[0], b' ' | b'\t');
            let name_end = line.iter().position(|octet| *octet == b':').unwrap_or(0);
            let is_tag = line[..name_end].trim_ascii_end().eq_ignore_ascii_case(NAME)
                && line[NAME.len()..name_end].iter().all(|octet| matches!(octet, b' ' | b'\t'));
            ours = !body && (is_tag || (folded && ours));
            match () {
                () if !ours => kept.extend_from_slice(line),
                () if is_tag && !folded => values.push(line[name_end + 1..].to_vec()),
                () => values.last_mut().unwrap().extend_from_slice(line),
            }
            body |= line.ends_with(b"\n") && line[..line.len() - 1].iter().all(|octet| *octet == b'\r');
        }
        let clean = |value: Vec<u8>| value.into_iter().filter(|c| !b"\r\n".contains(c)).collect::<Vec<u8>>();
        let value = values.into_iter().next().map(|v| clean(v).trim_ascii().to_vec());
        (kept, value)
    }

    #[test]
    fn the_field_goes_and_its_value_is_known() {
        let before = "From: a@b.example\r\n";
        let after = "Subject: x\r\n\r\nX-Mailramp-Stream: in the body\r\n";
        for (field, value) in [
            ("X-Mailramp-Stream: digest\r\n", "digest"),
            ("x-MAILRAMP-stream:digest \r\n", "digest"),
            ("X-Mailramp-Stream \t: digest\r\n", "digest"),
            ("X-Mailramp-Stream:\r\n\tdigest\r\n", "digest"),
            ("X-Mailramp-Stream: dig\r\n \r\n est\r\n", "dig  est"),
            ("X-Mailramp-Stream: one\r\nX-Mailramp-Stream: two\r\n", "one"),
            ("X-Mailramp-Stream:\r\n", ""),
        ] {
            let text = format!("{before}{field}{after}");
            for size in [1, 2, 3, 7, 18, 1000] {
                let (kept, tag, _) = pass(text.as_bytes(), &[size]);
                let kept = String::from_utf8(kept).unwrap();
                assert_eq!((kept.as_str(), tag.as_deref()), (&*format!("{before}{after}"), Some(value.as_bytes())));
            }
        }
    }

    #[test]
    fn what_only_looks_like_the_field_stays() {
        let long = format!("X-Mailramp-Stream{}: digest\r\n", " ".repeat(1000));
        for line in [
            "X-Mailramp-Streams: digest\r\n",
            "X-Mailramp-Strea: digest\r\n",
            "X-Mailramp-Stream digest\r\n",
            "X-Mailramp-Stream\r\n",
            " X-Mailramp-Stream: digest\r\n",
            "X-Mailramp-Stream\r\n : digest\r\n",
            &long,
        ] {
            for size in [1, 3, 18, 5000] {
                let text = format!("A: b\r\n{line}\r\n");
                let (kept, tag, _) = pass(text.as_bytes(), &[size]);
                assert_eq!((kept, tag), (text.into_bytes(), None), "{line:?} in chunks of {size}");
            }
        }
    }

    #[test]
    fn a_message_without_the_field_is_not_copied() {
        let text = b"From: a@b.example\r\nX-Other: y\r\n z\r\n\r\nbody\r\n";
        assert_eq!(pass(text, &[1000]), (text.to_vec(), None, false));
    }

    #[test]
    fn a_value_is_bounded_and_a_cut_one_is_no_name() {
        let text = format!("X-Mailramp-Stream: {}\r\n\r\n", "x".repeat(5000));
        let (kept, tag, _) = pass(text.as_bytes(), &[100]);
        assert_eq!((kept, tag.unwrap().len()), (b"\r\n".to_vec(), VALUE_MAX_OCTETS));
    }

    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            Just("X-Mailramp-Stream: digest\r\n"),
            Just("x-mailramp-STREAM : other\r\n"),
            Just("X-Mailramp-Stream:\r\n"),
            Just("X-Mailramp-Streamer: a\r\n"),
            Just("X-Mail\r\n"),
            Just("X-Mailramp-Stream\t\r\n"),
            Just("x-mailramp-stream\n"),
            Just("X-\n"),
            Just(" folded\r\n"),
            Just("\tX-Mailramp-Stream: folded\r\n"),
            Just(" \r\n"),
            Just("From: a@b.example\r\n"),
            Just("\r\n"),
            Just("\r\r\n"),
            Just("\n"),
            Just("\rX-Mailramp-Stream: no\r\n"),
        ];
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn what_is_kept_is_the_input_without_those_fields(
            text in lines(),
            sizes in proptest::collection::vec(1usize..40, 1..6),
        ) {
            let (kept, tag, _) = pass(&text, &sizes);
            prop_assert_eq!((kept, tag), reference(&text));
        }
    }
}
