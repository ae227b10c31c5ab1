//! One SMTP session as a state machine: bytes in, replies and events out (RFC 5321).
//!
//! Promises: the same replies however the input is cut into chunks, but for octets right behind STARTTLS or a refused
//! look-alike of the end of data, where what was read at once closes the session; exactly one reply per command, in order;
//! nothing of what the client sent is ever part of a reply.
//!
//! Does no I/O and has no clock. Whoever drives it calls [`Session::next`] until it needs more input, does what the
//! event says, and sends what has gathered in [`Replies`]. Here stand the stages and the lines; what a transaction
//! allows is in `transaction`, what a message contains in `content`, STARTTLS and AUTH in `login`.

mod content;
mod login;
#[cfg(test)]
mod tests;
mod transaction;

use core::net::IpAddr;
use std::borrow::Cow;
use std::sync::Arc;

use super::chunk::Chunk;
use super::command::{self, Command, CommandError};
use super::line::{Expected, Line, LineReader};
use super::sasl::{Exchange, Response};
use super::settings::contains;
use super::{AuthPolicy, Heading, Login, Refusal, RejectReason, Replies, SessionSettings};
use crate::message::Envelope;

/// What the driver does next.
#[derive(Debug)]
pub enum Event<'a> {
    /// All input is used up. Send the replies, then read.
    NeedInput,
    /// Send the replies, then go on with the rest of the input; keeps a flood of commands from filling memory.
    Flush,
    /// A MAIL that nothing speaks against: ask the intake and answer with [`Session::sender`].
    Mail,
    /// DATA or the first BDAT: open a body and answer with [`Session::begin`].
    Data,
    /// The next part of the message, never empty; on failure call [`Session::refuse_message`] and go on.
    Text(Cow<'a, [u8]>),
    /// The message has ended and nothing speaks against it: hand it over and answer with [`Session::finish`].
    Message(Envelope, Heading),
    /// The message was refused, or given up between two chunks: forget its body.
    Refused,
    /// STARTTLS was answered with 220 and the input is used up: send the replies, shake hands, forget every octet read
    /// before, and answer with [`Session::secured`].
    StartTls,
    /// A login to check; answer with [`Session::authenticated`].
    Auth(Login),
    /// Send the replies, then close.
    Close,
}

/// State of one connection. Small while idle: what a message needs is allocated when DATA begins.
#[derive(Debug)]
pub struct Session {
    settings: Arc<SessionSettings>,
    client: IpAddr,
    stage: Stage,
    lines: LineReader,
    /// A whole line has come.
    started: bool,
    helo: Option<Helo>,
    /// The connection is TLS.
    secure: bool,
    /// AUTH has begun: the next line is the client's answer.
    exchange: Option<Exchange>,
    user: Option<Arc<str>>,
    /// Logins that were wrong.
    failures: u32,
    /// A password came over a connection that was no place for it.
    exposed: bool,
    /// From the accepted MAIL to the end of data.
    envelope: Option<Envelope>,
    /// MAIL asked for SMTPUTF8.
    utf8: bool,
    /// From DATA or the first BDAT to the end of the message.
    content: Option<Box<content::Content>>,
    /// The chunk whose octets are coming.
    chunk: Option<Chunk>,
    errors: u64,
    long_lines: u32,
    bare_lines: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Commands,
    /// The driver owes the answer to an event.
    Waiting,
    Data,
    /// The octets of a chunk are coming.
    Chunk,
    Closed,
}

#[derive(Debug)]
struct Helo {
    name: Box<[u8]>,
    extended: bool,
}

impl Session {
    /// A session with `client`, which is not greeted yet.
    pub fn new(settings: Arc<SessionSettings>, client: IpAddr) -> Self {
        Session {
            settings,
            client,
            stage: Stage::Commands,
            lines: LineReader::default(),
            started: false,
            helo: None,
            secure: false,
            exchange: None,
            user: None,
            failures: 0,
            exposed: false,
            envelope: None,
            utf8: false,
            content: None,
            chunk: None,
            errors: 0,
            long_lines: 0,
            bare_lines: 0,
        }
    }

    pub fn greet(&mut self, replies: &mut Replies) {
        replies.text(&format!("220 {} ESMTP mailramp", self.settings.hostname));
    }

    /// A whole line has come, so the client is more than an open connection.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Part of a command has come, its end has not. The octets of a chunk that is thrown away are part of its command.
    pub fn is_inside_command(&self) -> bool {
        self.lines.is_inside_line() || (self.stage == Stage::Chunk && !self.is_in_data())
    }

    /// Between 354 and the final dot, or inside a chunk that belongs to a message.
    pub fn is_in_data(&self) -> bool {
        let thrown_away = self.chunk.is_none_or(|chunk| chunk.fault.is_some());
        self.stage == Stage::Data || (self.stage == Stage::Chunk && !thrown_away)
    }

    /// Who the client authenticated as.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.user.as_ref()
    }

    /// A password came in clear where that is not allowed: it has to be considered known to others.
    pub fn has_exposed_password(&self) -> bool {
        self.exposed
    }

    /// Goes on with the input until there is something to do. Takes what it used off the front of `input`.
    pub fn next<'a>(&mut self, input: &mut &'a [u8], replies: &mut Replies) -> Event<'a> {
        loop {
            let event = match self.stage {
                Stage::Closed => return Event::Close,
                Stage::Data => self.next_text(input, replies),
                Stage::Chunk => self.next_of_chunk(input, replies),
                Stage::Commands if replies.bytes.len() >= REPLIES_FLUSH_OCTETS => return Event::Flush,
                Stage::Commands => self.next_line(input, replies),
                Stage::Waiting => unreachable!("the driver answers an event before it goes on"),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// The client was too slow.
    pub fn time_out(&mut self, replies: &mut Replies) {
        self.close(RejectReason::Timeout, "421 4.4.2 Timeout", replies);
    }

    /// mailramp is stopping.
    pub fn shut_down(&mut self, replies: &mut Replies) {
        self.close(RejectReason::Shutdown, "421 4.3.2 Shutting down", replies);
    }

    fn next_line<'a>(&mut self, input: &mut &'a [u8], replies: &mut Replies) -> Option<Event<'a>> {
        if !self.started && self.looks_like_tls(input) {
            self.close(RejectReason::Protocol, NOT_SMTP, replies);
            return None;
        }
        let expected = if self.exchange.is_some() { Expected::Response } else { Expected::Command };
        // Taken out so that the line can be borrowed from it while the session changes.
        let mut lines = std::mem::take(&mut self.lines);
        let event = match lines.next(input, expected) {
            None => Some(Event::NeedInput),
            Some(Line::Whole(line)) => {
                let event = match self.exchange.take() {
                    Some(exchange) => self.step(exchange.answer(Response(line)), replies),
                    None => self.line(line, input.is_empty(), replies),
                };
                self.started = true;
                event
            }
            Some(line) => {
                self.exchange = None;
                self.bad_line(&line, replies);
                if lines.announced_chunk() {
                    self.stage = Stage::Closed;
                }
                self.started = true;
                None
            }
        };
        self.lines = lines;
        event
    }

    /// The first two octets are those of a TLS record with a handshake.
    fn looks_like_tls(&self, input: &[u8]) -> bool {
        let mut first = self.lines.held().iter().chain(input);
        first.next() == Some(&0x16) && first.next() == Some(&0x03)
    }

    fn line<'a>(&mut self, line: &[u8], was_all: bool, replies: &mut Replies) -> Option<Event<'a>> {
        match command::parse(line) {
            Ok(command) => return self.command(command, was_all, replies),
            Err(CommandError::Unknown) => self.error("500 5.5.1 Unknown command", replies),
            Err(CommandError::Syntax) => self.error("501 5.5.2 Syntax error", replies),
            Err(CommandError::Parameter) => self.error("501 5.5.4 No parameters allowed", replies),
            Err(CommandError::ChunkSize) => {
                self.error("501 5.5.4 Bad chunk size", replies);
                self.stage = Stage::Closed;
            }
            Err(CommandError::SenderPath) => self.error("501 5.1.7 Bad sender address syntax", replies),
            Err(CommandError::RecipientPath) => self.error("501 5.1.3 Bad recipient address syntax", replies),
            Err(CommandError::NotUtf8) => self.error(NOT_ASCII, replies),
        }
        None
    }

    fn bad_line(&mut self, line: &Line<'_>, replies: &mut Replies) {
        let (count, max, again, reply) = match line {
            Line::BareNewlineOrNul => {
                (&mut self.bare_lines, BARE_LINES_MAX, "421 4.7.0 Bare CR, LF or NUL again", BARE_LINE)
            }
            Line::AuthTooLong => (&mut self.long_lines, LONG_LINES_MAX, TOO_MANY_LONG, "500 5.5.6 Line too long"),
            _ => (&mut self.long_lines, LONG_LINES_MAX, TOO_MANY_LONG, "500 5.5.2 Line too long"),
        };
        *count += 1;
        if *count >= max {
            self.close(RejectReason::Syntax, again, replies);
        } else {
            self.error(reply, replies);
        }
    }

    /// `was_all`: nothing of what was read is left behind the command.
    fn command<'a>(&mut self, command: Command<'_>, was_all: bool, replies: &mut Replies) -> Option<Event<'a>> {
        match command {
            Command::Ehlo(name) => return self.hello(name, true, replies),
            Command::Helo(name) => return self.hello(name, false, replies),
            Command::Mail { path, parameters } => return self.mail(path, parameters, replies),
            Command::Rcpt { path, parameters } => self.rcpt(path, parameters, replies),
            Command::Data => return self.data(replies),
            Command::Chunk { octets, last } => return self.bdat(octets, last, replies),
            Command::StartTls => return self.start_tls(was_all, replies),
            Command::Auth { mechanism, initial } => return self.auth(mechanism, initial, replies),
            Command::Rset => {
                replies.text("250 2.0.0 Ok");
                return self.give_up();
            }
            Command::Noop => replies.text("250 2.0.0 Ok"),
            Command::Quit => {
                replies.text("221 2.0.0 Bye");
                self.stage = Stage::Closed;
            }
            Command::Vrfy => replies.text("252 2.1.5 Not verified, send some mail to find out"),
            Command::Help => {
                replies.text("214 2.0.0 EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT");
            }
            Command::NotOffered => self.error("502 5.5.1 Not implemented", replies),
            Command::Http if !self.started => self.close(RejectReason::Protocol, NOT_SMTP, replies),
            Command::Http => self.error("500 5.5.1 Unknown command", replies),
        }
        None
    }

    fn error(&mut self, line: &str, replies: &mut Replies) {
        self.error_because(RejectReason::Syntax, line, replies);
    }

    /// Counts towards the limit of errors; the last one is answered with 421 instead.
    fn error_because(&mut self, reason: RejectReason, line: &str, replies: &mut Replies) {
        self.errors += 1;
        if self.errors >= self.errors_allowed() {
            return self.close(RejectReason::Limit, "421 4.7.0 Too many errors", replies);
        }
        replies.refuse(reason, line);
    }

    /// Whoever has yet to say who it is has less patience to hope for.
    fn errors_allowed(&self) -> u64 {
        let max = self.settings.max_errors;
        let stranger = self.settings.auth == AuthPolicy::Required && !self.may_relay();
        if stranger { max.min(STRANGER_ERRORS_MAX) } else { max }
    }

    /// Is in `allow_from`, or has authenticated.
    fn may_relay(&self) -> bool {
        self.user.is_some() || contains(&self.settings.allow_from, self.client)
    }

    fn refuse(&mut self, refusal: &Refusal, replies: &mut Replies) {
        replies.rejected.push(refusal.reason);
        replies.reply(&refusal.reply);
        if refusal.reply.code == 421 {
            self.stage = Stage::Closed;
        }
    }

    fn close(&mut self, reason: RejectReason, line: &str, replies: &mut Replies) {
        replies.refuse(reason, line);
        self.stage = Stage::Closed;
        self.envelope = None;
        self.content = None;
        self.chunk = None;
        self.exchange = None;
    }

    /// Forgets the transaction, if there is one.
    fn give_up<'a>(&mut self) -> Option<Event<'a>> {
        self.envelope = None;
        self.content.take().map(|_| Event::Refused)
    }
}

const LONG_LINES_MAX: u32 = 3;
const BARE_LINES_MAX: u32 = 2;
/// Of a client that has to authenticate and has not.
const STRANGER_ERRORS_MAX: u64 = 10;
/// Replies to send before more commands are looked at.
const REPLIES_FLUSH_OCTETS: usize = 8 * 1024;
const TOO_LARGE: &str = "552 5.3.4 Message too large";
const NOT_SMTP: &str = "421 4.7.0 This port speaks SMTP";
const NOT_ASCII: &str = "553 5.6.7 Address must be ASCII, or UTF-8 with SMTPUTF8";
const BARE_LINE: &str = "500 5.5.2 Bare CR, LF or NUL";
const TOO_MANY_LONG: &str = "421 4.7.0 Too many long lines";
