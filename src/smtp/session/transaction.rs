//! EHLO, MAIL, RCPT, DATA and BDAT: what is offered, who may relay, and in which order things come.

use bytes::Bytes;

use super::{Event, Helo, NOT_ASCII, Session, Stage, TOO_LARGE};
use crate::message::{Envelope, Recipient};
use crate::smtp::chunk::Chunk;
use crate::smtp::parameters::{ParameterError, mail_parameters, rcpt_parameters};
use crate::smtp::path::Path;
use crate::smtp::sasl::MECHANISMS;
use crate::smtp::{AuthPolicy, Refusal, RejectReason, Replies, TlsMode};

impl Session {
    /// The answer to [`Event::Mail`].
    pub fn sender(&mut self, ready: Result<(), Refusal>, replies: &mut Replies) {
        self.stage = Stage::Commands;
        match ready {
            Ok(()) => replies.text("250 2.1.0 Sender ok"),
            Err(refusal) => {
                self.envelope = None;
                self.refuse(&refusal, replies);
            }
        }
    }

    pub(super) fn hello<'a>(&mut self, name: &[u8], extended: bool, replies: &mut Replies) -> Option<Event<'a>> {
        self.helo = Some(Helo { name: name.into(), extended });
        let hostname = &self.settings.hostname;
        if !extended {
            replies.text(&format!("250 {hostname}"));
            return self.give_up();
        }
        let size = self.settings.max_message_bytes;
        replies.text(&format!("250-{hostname}\r\n250-PIPELINING\r\n250-SIZE {size}"));
        for name in ["8BITMIME", "SMTPUTF8", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES"] {
            replies.text(&format!("250-{name}"));
        }
        if self.offers_tls() {
            replies.text("250-STARTTLS");
        }
        if self.settings.auth != AuthPolicy::Off && self.may_authenticate_here() {
            replies.text(&format!("250-AUTH {MECHANISMS}"));
        }
        replies.text(&format!("250-LIMITS RCPTMAX={}", self.settings.max_recipients)); // RFC 9422
        replies.text("250 HELP");
        self.give_up()
    }

    /// STARTTLS makes sense: it works, and the connection is not TLS yet.
    pub(super) fn offers_tls(&self) -> bool {
        self.settings.tls == TlsMode::StartTls && !self.secure
    }

    /// A password may come over this connection.
    pub(super) fn may_authenticate_here(&self) -> bool {
        self.secure || self.settings.auth_in_clear
    }

    pub(super) fn mail<'a>(&mut self, path: Path<'_>, parameters: &[u8], replies: &mut Replies) -> Option<Event<'a>> {
        if self.envelope.is_some() {
            self.error("503 5.5.1 Nested MAIL command", replies);
            return None;
        }
        if self.helo.is_none() {
            self.error("503 5.5.1 Say EHLO first", replies);
            return None;
        }
        if !self.may_relay() {
            self.error_because(RejectReason::RelayDenied, self.why_not_relay(), replies);
            return None;
        }
        let parameters = match mail_parameters(parameters) {
            Ok(parameters) => parameters,
            Err(error) => {
                self.parameter_error(error, replies);
                return None;
            }
        };
        if !path.is_ascii() && !parameters.utf8 {
            self.error(NOT_ASCII, replies);
            return None;
        }
        if parameters.size.is_some_and(|size| size > self.settings.max_message_bytes) {
            self.error_because(RejectReason::Size, TOO_LARGE, replies);
            return None;
        }
        self.envelope = Some(Envelope {
            reverse_path: Bytes::copy_from_slice(path.octets()),
            parameters: parameters.repeated.into(),
            recipients: Vec::new(),
        });
        self.utf8 = parameters.utf8;
        self.stage = Stage::Waiting;
        Some(Event::Mail)
    }

    fn why_not_relay(&self) -> &'static str {
        match self.settings.auth {
            AuthPolicy::Off => "550 5.7.1 Relaying denied",
            _ if self.offers_tls() => "530 5.7.0 Must issue STARTTLS first",
            _ => "530 5.7.0 Authentication required",
        }
    }

    pub(super) fn rcpt(&mut self, path: Path<'_>, parameters: &[u8], replies: &mut Replies) {
        let Some(envelope) = &mut self.envelope else {
            return self.error("503 5.5.1 MAIL first", replies);
        };
        if self.content.is_some() {
            return self.error("503 5.5.1 Message already begun", replies);
        }
        let parameters = match rcpt_parameters(parameters, self.utf8) {
            Ok(parameters) => parameters,
            Err(error) => return self.parameter_error(error, replies),
        };
        if !path.is_ascii() && !self.utf8 {
            return self.error(NOT_ASCII, replies);
        }
        // No error of the client's: it may go on with those taken, and send the rest in another transaction.
        if envelope.recipients.len() >= self.settings.max_recipients {
            return replies.refuse(RejectReason::Limit, "452 4.5.3 Too many recipients");
        }
        let path = Bytes::copy_from_slice(path.octets());
        envelope.recipients.push(Recipient { path, parameters: parameters.into() });
        replies.text("250 2.1.5 Recipient ok");
    }

    pub(super) fn data<'a>(&mut self, replies: &mut Replies) -> Option<Event<'a>> {
        if self.content.is_some() {
            // What the client now sends as text would be run as commands, and what it sent before is half a message.
            self.error("503 5.5.1 DATA after BDAT", replies);
            return self.give_up();
        }
        if let Some(fault) = self.why_no_message() {
            self.error(fault, replies);
            return None;
        }
        self.stage = Stage::Waiting;
        Some(Event::Data)
    }

    fn why_no_message(&self) -> Option<&'static str> {
        match &self.envelope {
            None => Some("503 5.5.1 MAIL first"),
            Some(envelope) if envelope.recipients.is_empty() => Some("503 5.5.1 No valid recipients"),
            Some(_) => None,
        }
    }

    /// A chunk of `octets` is announced (RFC 3030 §2). Whatever speaks against it, its octets are read and are no
    /// commands; only where there are too many of them the session closes.
    pub(super) fn bdat<'a>(&mut self, octets: u64, last: bool, replies: &mut Replies) -> Option<Event<'a>> {
        let max = self.settings.max_message_bytes;
        if let Some(fault) = self.why_no_message() {
            if octets > max {
                self.close(RejectReason::Size, "521 5.5.1 Chunk refused and too large to read", replies);
                return None;
            }
            self.stage = Stage::Chunk;
            self.chunk = Some(Chunk::refused(octets, RejectReason::Syntax, fault));
            return None;
        }
        let octets_read = self.content.as_ref().map_or(0, |content| content.octets_read);
        let octets_in_all = octets_read.saturating_add(octets);
        if octets_in_all > max.saturating_mul(2) {
            self.close(RejectReason::Size, TOO_LARGE, replies);
            return None;
        }
        if octets_in_all > max {
            self.stage = Stage::Chunk;
            self.chunk = Some(Chunk::refused(octets, RejectReason::Size, TOO_LARGE));
            return None;
        }
        self.chunk = Some(Chunk::new(octets, last));
        if self.content.is_some() {
            self.stage = Stage::Chunk;
            return None;
        }
        self.stage = Stage::Waiting;
        Some(Event::Data)
    }

    fn parameter_error(&mut self, error: ParameterError, replies: &mut Replies) {
        match error {
            ParameterError::Syntax => self.error("501 5.5.4 Bad parameter", replies),
            ParameterError::Unknown => self.error("555 5.5.4 Unknown parameter", replies),
        }
    }
}
