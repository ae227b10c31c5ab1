//! The octets of a message, from DATA or from BDAT: what is handed on, what speaks against it, and when that is said.
//!
//! A message that came with DATA is refused at its true end; one in chunks at the end of the chunk that makes it bad.

use std::borrow::Cow;

use super::{Event, Session, Stage, TOO_LARGE};
use crate::message::{QueueId, Timestamp};
use crate::reply::{EnhancedCode, Reply};
use crate::smtp::data::{DataScanner, Piece};
use crate::smtp::headers::{HeaderWatch, Origin, received_line};
use crate::smtp::replies::Note;
use crate::smtp::settings::contains;
use crate::smtp::tag::TagFilter;
use crate::smtp::{Heading, Refusal, RejectReason, Replies, SessionSettings};

#[derive(Debug)]
pub(super) struct Content {
    scanner: DataScanner,
    headers: HeaderWatch,
    /// Where the listener's clients may choose their stream.
    tags: Option<TagFilter>,
    /// As sent, dots and all.
    pub octets_read: u64,
    octets_kept: u64,
    /// The last two octets that came.
    tail: [u8; 2],
    /// The body could not be kept.
    refusal: Option<Refusal>,
}

impl Session {
    /// The answer to [`Event::Data`]: replies 354 to DATA, and returns the `Received:` line, the first octets of the body.
    pub fn begin(&mut self, id: QueueId, now: Timestamp, replies: &mut Replies) -> String {
        let settings = &self.settings;
        let normalize = contains(&settings.normalize, self.client);
        let scanner = if self.chunk.is_some() {
            self.stage = Stage::Chunk;
            DataScanner::chunked(normalize)
        } else {
            self.stage = Stage::Data;
            replies.text("354 End data with <CR><LF>.<CR><LF>");
            DataScanner::new(normalize)
        };
        self.content = Some(Box::new(Content {
            scanner,
            headers: HeaderWatch::new(settings.max_header_bytes),
            tags: settings.stream_header.then(TagFilter::default),
            octets_read: 0,
            octets_kept: 0,
            tail: *b"\r\n", // a message without octets has no line that lacks its end
            refusal: None,
        }));
        let helo = self.helo.as_ref();
        let origin = Origin {
            helo: helo.map_or(b"", |helo| &helo.name),
            extended: helo.is_some_and(|helo| helo.extended),
            secure: self.secure,
            authenticated: self.user.is_some(),
            utf8: self.utf8,
            client: self.client,
        };
        received_line(origin, &settings.hostname, id, now)
    }

    /// The body could not be kept: the message is read to its end and refused there.
    pub fn refuse_message(&mut self, refusal: Refusal) {
        if let Some(content) = &mut self.content {
            content.refusal.get_or_insert(refusal);
        }
    }

    /// The answer to [`Event::Message`]. `Ok` promises the client that the message is durable.
    pub fn finish(&mut self, id: QueueId, result: Result<(), Refusal>, replies: &mut Replies) {
        self.stage = Stage::Commands;
        match result {
            Ok(()) => replies.text(&format!("250 2.0.0 Queued as {id}")),
            Err(refusal) => self.refuse(&refusal, replies),
        }
    }

    /// The next part of a message that ends with a dot.
    pub(super) fn next_text<'a>(&mut self, input: &mut &'a [u8], replies: &mut Replies) -> Option<Event<'a>> {
        let content = self.content.as_mut().expect("set whenever the stage is Data");
        let piece = content.next_piece(input);
        match piece {
            None if !input.is_empty() => None,
            None => Some(Event::NeedInput),
            Some(Piece::End) => Some(self.end_of_data(input.is_empty(), replies)),
            Some(Piece::Text(text)) => {
                let kept = content.take(text, &self.settings);
                if content.octets_read > self.settings.max_message_bytes.saturating_mul(2) {
                    self.close(RejectReason::Size, TOO_LARGE, replies);
                    return None;
                }
                (!kept.is_empty() && content.is_good(&self.settings)).then_some(Event::Text(kept))
            }
        }
    }

    /// The next octets of a chunk, or the reply behind its last one.
    pub(super) fn next_of_chunk<'a>(&mut self, input: &mut &'a [u8], replies: &mut Replies) -> Option<Event<'a>> {
        let chunk = self.chunk.as_mut().expect("set whenever the stage is Chunk");
        if chunk.is_over() {
            return self.end_of_chunk(replies);
        }
        let part = chunk.part(input);
        if part.is_empty() {
            return Some(Event::NeedInput);
        }
        if chunk.fault.is_some() {
            chunk.used(part.len());
            *input = &input[part.len()..];
            return None;
        }
        let content = self.content.as_mut().expect("begun with the first chunk that had no fault");
        let mut rest = part;
        let piece = content.next_piece(&mut rest);
        let used = part.len() - rest.len();
        chunk.used(used);
        *input = &input[used..];
        let Some(Piece::Text(text)) = piece else { return None };
        let kept = content.take(text, &self.settings);
        (!kept.is_empty() && content.is_good(&self.settings)).then_some(Event::Text(kept))
    }

    fn end_of_chunk<'a>(&mut self, replies: &mut Replies) -> Option<Event<'a>> {
        let chunk = self.chunk.take().expect("set whenever the stage is Chunk");
        self.stage = Stage::Commands;
        if let Some((reason, reply)) = chunk.fault {
            self.error_because(reason, reply, replies);
            return self.give_up();
        }
        if chunk.last {
            if let Some(content) = &mut self.content {
                content.end_of_chunks();
            }
            return Some(self.end_of_message(replies).0);
        }
        let refusal = self.content.as_ref().and_then(|content| content.verdict(&self.settings));
        let Some(refusal) = refusal else {
            replies.text("250 2.0.0 Chunk taken");
            return None;
        };
        self.note_offence(&refusal, replies);
        self.refuse(&refusal, replies);
        self.give_up()
    }

    fn end_of_data<'a>(&mut self, was_all: bool, replies: &mut Replies) -> Event<'a> {
        let (event, reason) = self.end_of_message(replies);
        // Commands right behind a look-alike of the end are what a smuggler wants us to run.
        if reason == Some(RejectReason::BareNewline) && !was_all {
            self.stage = Stage::Closed;
        }
        event
    }

    fn end_of_message<'a>(&mut self, replies: &mut Replies) -> (Event<'a>, Option<RejectReason>) {
        let content = self.content.as_mut().expect("a message ends after it began");
        content.headers.end(&self.settings.hostname);
        let Some(refusal) = content.verdict(&self.settings) else {
            let tag = content.tags.as_mut().and_then(TagFilter::take);
            let heading = Heading { from: content.headers.take_from(), tag };
            self.content = None;
            self.stage = Stage::Waiting;
            let envelope = self.envelope.take().expect("a message begins with an envelope");
            return (Event::Message(envelope, heading), None);
        };
        self.note_offence(&refusal, replies);
        self.content = None;
        self.envelope = None;
        self.stage = Stage::Commands;
        self.refuse(&refusal, replies);
        (Event::Refused, Some(refusal.reason))
    }

    fn note_offence(&self, refusal: &Refusal, replies: &mut Replies) {
        if let Some(content) = self.content.as_ref().filter(|_| refusal.reason == RejectReason::BareNewline) {
            replies.notes.push(Note::bare_newline(content.scanner.offence()));
        }
    }
}

impl Content {
    /// The next piece, taken off the front of `input`; `None` also where a line has to be looked at by itself.
    fn next_piece<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        let mut window = self.tags.as_ref().map_or(*input, |tags| tags.window(input));
        let before = window.len();
        let piece = self.scanner.next(&mut window);
        let used = before - window.len();
        self.octets_read += used as u64;
        *input = &input[used..];
        piece
    }

    /// Looks at the next part of the message; returns what of it is kept.
    fn take<'a>(&mut self, text: &'a [u8], settings: &SessionSettings) -> Cow<'a, [u8]> {
        self.headers.observe(text, &settings.hostname);
        // Of what came, so that a line without its end is seen also where it is not kept.
        self.tail = match text {
            [.., a, b] => [*a, *b],
            [b] => [self.tail[1], *b],
            [] => self.tail,
        };
        let kept = match &mut self.tags {
            Some(tags) => tags.pass(text),
            None => Cow::Borrowed(text),
        };
        self.octets_kept += kept.len() as u64;
        kept
    }

    /// The last chunk has ended, and with it the message. Its last line has to end, too: whoever sends it on with DATA
    /// would have to add a CRLF, and nothing that we relay gains octets.
    fn end_of_chunks(&mut self) {
        self.scanner.end();
        if self.tail != *b"\r\n" {
            let reply = Reply::new(550, EnhancedCode(5, 6, 0), "Last line must end with CRLF");
            self.refusal.get_or_insert(Refusal { reason: RejectReason::Content, reply });
        }
    }

    /// Nothing speaks against the message so far. Once it is bad its text is thrown away.
    fn is_good(&self, settings: &SessionSettings) -> bool {
        self.verdict(settings).is_none()
    }

    /// Why the message is refused. The order is fixed, so that the reply does not depend on where chunks end.
    fn verdict(&self, settings: &SessionSettings) -> Option<Refusal> {
        let refusal =
            |reason, code, enhanced, text: &str| Some(Refusal { reason, reply: Reply::new(code, enhanced, text) });
        if self.scanner.bare_newline() {
            return refusal(RejectReason::BareNewline, 550, EnhancedCode(5, 6, 11), "Bare LF or CR");
        }
        if self.octets_kept > settings.max_message_bytes {
            return refusal(RejectReason::Size, 552, EnhancedCode(5, 3, 4), "Message too large");
        }
        if self.scanner.nul() {
            return refusal(RejectReason::Content, 550, EnhancedCode(5, 6, 0), "NUL not allowed");
        }
        if self.scanner.long_line() {
            return refusal(RejectReason::Content, 552, EnhancedCode(5, 6, 0), "Line too long");
        }
        if self.headers.looped() {
            return refusal(RejectReason::Loop, 554, EnhancedCode(5, 4, 6), "Routing loop");
        }
        if self.headers.too_large() {
            return refusal(RejectReason::Size, 552, EnhancedCode(5, 3, 4), "Header block too large");
        }
        self.refusal.clone()
    }
}
