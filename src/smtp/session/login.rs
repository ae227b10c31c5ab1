//! STARTTLS (RFC 3207) and AUTH (RFC 4954): how a client becomes one that is known.
//!
//! What a client sent before TLS is forgotten with it. What it sends in an exchange is taken apart in [`sasl`] and goes
//! to the driver as a [`Login`](crate::smtp::Login), never into a reply or a note.

use super::{Event, Session, Stage};
use crate::smtp::line::LineReader;
use crate::smtp::replies::Note;
use crate::smtp::sasl::{self, Exchange, Response, SaslError, Step};
use crate::smtp::{AuthPolicy, AuthVerdict, RejectReason, Replies, TlsMode};

impl Session {
    /// The connection has become TLS: after [`Event::StartTls`], or before the greeting of an implicit listener. What
    /// the client said before is forgotten (RFC 3207 §4.2).
    pub fn secured(&mut self) {
        self.stage = Stage::Commands;
        self.secure = true;
        self.lines = LineReader::default();
        self.helo = None;
        self.user = None;
        self.exchange = None;
        self.envelope = None;
    }

    /// The answer to [`Event::Auth`].
    pub fn authenticated(&mut self, verdict: AuthVerdict, replies: &mut Replies) {
        self.stage = Stage::Commands;
        match verdict {
            AuthVerdict::Accepted(user) => {
                self.user = Some(user);
                replies.text("235 2.7.0 Authentication successful");
            }
            AuthVerdict::Wrong => self.wrong_login(replies),
            AuthVerdict::Blocked => self.close(RejectReason::Auth, "421 4.7.0 Too many failures", replies),
            // No error of the client's.
            AuthVerdict::Busy => replies.refuse(RejectReason::Auth, "454 4.7.0 Try again later"),
        }
    }

    /// `was_all`: nothing of what was read is left behind the command. What is there came in clear, perhaps from
    /// somebody between the client and us, and would be taken for the client's own words inside TLS.
    pub(super) fn start_tls<'a>(&mut self, was_all: bool, replies: &mut Replies) -> Option<Event<'a>> {
        if self.secure {
            self.error("503 5.5.1 TLS is on already", replies);
        } else if self.settings.tls != TlsMode::StartTls {
            self.error("502 5.5.1 Not implemented", replies);
        } else if self.envelope.is_some() {
            self.error("503 5.5.1 Not inside a transaction", replies);
        } else if !was_all {
            self.close(RejectReason::StarttlsInjection, "421 4.7.0 Commands behind STARTTLS", replies);
        } else {
            replies.text("220 2.0.0 Ready to start TLS");
            self.stage = Stage::Waiting;
            return Some(Event::StartTls);
        }
        None
    }

    pub(super) fn auth<'a>(
        &mut self,
        mechanism: &[u8],
        initial: Option<Response<'_>>,
        replies: &mut Replies,
    ) -> Option<Event<'a>> {
        let exchange = Exchange::begin(mechanism);
        if !self.may_authenticate_here() {
            self.expose(exchange.as_ref(), initial, replies);
        }
        let fault = match () {
            () if self.settings.auth == AuthPolicy::Off => "502 5.5.1 Not implemented",
            () if self.helo.is_none() => "503 5.5.1 Say EHLO first",
            () if self.user.is_some() => "503 5.5.1 Already authenticated",
            () if self.envelope.is_some() => "503 5.5.1 Not inside a transaction",
            () if !self.may_authenticate_here() && self.offers_tls() => "530 5.7.0 Must issue STARTTLS first",
            () if !self.may_authenticate_here() => "538 5.7.11 Encryption required",
            () if exchange.is_none() => "504 5.5.4 Unknown mechanism",
            () => "",
        };
        let Some(exchange) = exchange.filter(|_| fault.is_empty()) else {
            self.error_because(RejectReason::Auth, fault, replies);
            return None;
        };
        match initial {
            Some(response) => self.step(exchange.initial(response), replies),
            None => self.step(Ok(Step::Ask(exchange)), replies),
        }
    }

    /// Goes on with an exchange.
    pub(super) fn step<'a>(&mut self, step: Result<Step, SaslError>, replies: &mut Replies) -> Option<Event<'a>> {
        match step {
            Ok(Step::Ask(exchange)) => {
                replies.text(&format!("334 {}", exchange.challenge()));
                self.exchange = Some(exchange);
            }
            Ok(Step::Done(login)) => {
                self.stage = Stage::Waiting;
                return Some(Event::Auth(login));
            }
            Err(SaslError::Cancelled) => {
                self.error_because(RejectReason::Auth, "501 5.7.0 Authentication cancelled", replies);
            }
            Err(SaslError::Malformed) => {
                self.error_because(RejectReason::Auth, "501 5.5.2 Bad authentication data", replies);
            }
            Err(SaslError::OtherIdentity) => self.wrong_login(replies),
        }
        None
    }

    fn wrong_login(&mut self, replies: &mut Replies) {
        self.failures += 1;
        if self.failures >= FAILURES_MAX {
            self.close(RejectReason::Auth, "421 4.7.0 Too many failures", replies);
        } else {
            self.error_because(RejectReason::Auth, "535 5.7.8 Authentication failed", replies);
        }
    }

    /// A password that came with the command in clear counts as known to others. LOGIN sends none along.
    fn expose(&mut self, exchange: Option<&Exchange>, initial: Option<Response<'_>>, replies: &mut Replies) {
        let Some(initial) = initial.filter(|_| exchange != Some(&Exchange::LoginUser)) else { return };
        self.exposed = true;
        let user = exchange.and_then(|_| sasl::user_of_plain(initial));
        replies.notes.push(Note::PasswordExposed { user });
    }
}

/// Wrong logins, the last of which closes the session.
const FAILURES_MAX: u32 = 3;
