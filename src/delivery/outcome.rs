//! What a reply or a fault, at each stage of a session, means for each recipient and for the connection.
//!
//! One table, [`meaning`]; the tally of a transaction that goes by it is in [`super::tally`]. The line that matters: until
//! the final dot may have been written every fault is a definite *not accepted*; from then on only a proper reply is
//! definite, and anything else is [`Verdict::Unknown`], because a second try could be a duplicate.
//!
//! No I/O. Whether a refusal goes to the sender, to the other route or to the brake is for the signal rules to say.

use std::fmt;

use crate::reply::Reply;

/// How far a session had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Our own look before anything is written: capabilities, size, well-formed paths.
    Check,
    Connect,
    Greeting,
    Ehlo,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// From the 354 to the reply that answers the final dot.
    Dot,
    Rset,
}

impl Stage {
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Check => "check",
            Stage::Connect => "connect",
            Stage::Greeting => "greeting",
            Stage::Ehlo => "ehlo",
            Stage::Tls => "tls",
            Stage::Auth => "auth",
            Stage::Mail => "mail",
            Stage::Rcpt => "rcpt",
            Stage::Data => "data",
            Stage::Dot => "dot",
            Stage::Rset => "rset",
        }
    }
}

/// What stopped us that was not a proper reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("cannot resolve the name: {0}")]
    Unresolved(String),
    #[error("{0}")]
    Io(std::io::ErrorKind),
    #[error("connection closed by the next hop")]
    Closed,
    #[error("timed out")]
    TimedOut,
    /// Not an SMTP reply, too long, or one that nobody asked for. The text is ours.
    #[error("bad reply: {0}")]
    BadReply(&'static str),
    /// A well-formed reply of a class that cannot answer the command.
    #[error("reply of the wrong class: {0}")]
    WrongReply(Reply),
    /// Octets behind the 220 to STARTTLS: somebody writes into the clear part of the session.
    #[error("octets after the reply to STARTTLS")]
    ResponseInjection,
    #[error("TLS: {0}")]
    Tls(String),
    /// Not offered, or refused, while the policy asks for it.
    #[error("next hop does not offer STARTTLS")]
    TlsMissing,
    /// No way to log in that we may use. A refused login is a reply, not this.
    #[error("login: {0}")]
    Login(&'static str),
    /// Nobody was asked: each server of the route failed or said 421 a moment ago.
    #[error("every server of the route is left alone for a moment")]
    Resting,
    /// Our own disk did not give the message.
    #[error("cannot read the message: {0}")]
    Body(std::io::ErrorKind),
}

impl Fault {
    /// One word of a closed set, for logs and metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Fault::Unresolved(_) => "dns",
            Fault::Io(_) => "io",
            Fault::Closed => "closed",
            Fault::TimedOut => "timeout",
            Fault::BadReply(_) | Fault::WrongReply(_) => "bad-peer",
            Fault::ResponseInjection => "response-injection",
            Fault::Tls(_) | Fault::TlsMissing => "tls",
            Fault::Login(_) => "auth",
            Fault::Resting => "resting",
            Fault::Body(_) => "body",
        }
    }

    /// The connection went away, as an idle one may at any time.
    pub(super) const fn is_loss(&self) -> bool {
        matches!(self, Fault::Io(_) | Fault::Closed | Fault::TimedOut)
    }
}

/// Why something was put off: the next hop said so, or it could not say anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Reply(Reply),
    Fault(Fault),
}

impl Cause {
    pub fn reply(&self) -> Option<&Reply> {
        match self {
            Cause::Reply(reply) => Some(reply),
            Cause::Fault(_) => None,
        }
    }

    /// One word of a closed set, for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Cause::Reply(_) => "reply",
            Cause::Fault(fault) => fault.kind(),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Reply(reply) => reply.fmt(f),
            Cause::Fault(fault) => fault.fmt(f),
        }
    }
}

/// How one attempt ended for one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Acknowledged after the final dot.
    Delivered { reply: Reply },
    /// Definitely not accepted; may be tried again.
    Deferred { stage: Stage, cause: Cause },
    /// Definitely not accepted, and the next hop (at [`Stage::Check`] we ourselves) says it never will be.
    Rejected { stage: Stage, reply: Reply },
    /// The final dot may have arrived and no proper answer came: it may have been delivered.
    Unknown { fault: Fault },
    /// Nothing was said about it. Stays queued, the attempt is not charged; may go at once in another transaction.
    Untouched,
}

impl Verdict {
    /// False on a definite "not accepted": then, and only then, a reservation is given back or the route may change.
    pub const fn may_have_left(&self) -> bool {
        matches!(self, Verdict::Delivered { .. } | Verdict::Unknown { .. })
    }

    pub const fn name(&self) -> &'static str {
        match self {
            Verdict::Delivered { .. } => "delivered",
            Verdict::Deferred { .. } => "deferred",
            Verdict::Rejected { .. } => "rejected",
            Verdict::Unknown { .. } => "unknown",
            Verdict::Untouched => "untouched",
        }
    }
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Keep,
    Close,
}

/// How a transaction ended.
#[derive(Clone, Debug)]
pub struct Report {
    /// One per recipient, in the order of the envelope.
    pub verdicts: Vec<Verdict>,
    pub connection: Fate,
    /// The final dot of this message may have been written.
    pub reached_final_dot: bool,
    /// What ended the transaction early or closed the connection, for the log.
    pub ended_by: Option<(Stage, Cause)>,
}

/// What a reply means where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Proceed,
    Temporary,
    Permanent,
    /// 421: temporary, and the next hop hangs up.
    Shutdown,
    /// Cannot be an answer to this: bad peer.
    Wrong,
}

/// The table: what a reply with `code` means at `stage`. Before MAIL nothing is permanent: it is a failed connection.
pub fn meaning(stage: Stage, code: u16) -> Meaning {
    let before_mail = matches!(stage, Stage::Connect | Stage::Greeting | Stage::Ehlo | Stage::Tls | Stage::Auth);
    match (code, stage) {
        (421, _) => Meaning::Shutdown,
        (300..400, Stage::Data) => Meaning::Proceed,
        (200..300, Stage::Data) => Meaning::Wrong,
        (200..300, _) => Meaning::Proceed,
        (400..500, _) => Meaning::Temporary,
        (500..600, _) if before_mail => Meaning::Temporary,
        (500..600, _) => Meaning::Permanent,
        _ => Meaning::Wrong,
    }
}

/// A reply before MAIL: go on, or why not.
pub fn judge_opening(stage: Stage, reply: Reply) -> Result<Reply, Cause> {
    match meaning(stage, reply.code) {
        Meaning::Proceed => Ok(reply),
        Meaning::Wrong => Err(Cause::Fault(Fault::WrongReply(reply))),
        _ => Err(Cause::Reply(reply)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(code: u16) -> Reply {
        Reply { code, enhanced: None, text: "said".into() }
    }

    #[test]
    fn the_table_says_what_each_class_means_at_each_stage() {
        use Meaning::*;
        let rows = [
            // stage            2xx      3xx      4xx        421       5xx        1xx
            (Stage::Greeting, [Proceed, Wrong, Temporary, Shutdown, Temporary, Wrong]),
            (Stage::Ehlo, [Proceed, Wrong, Temporary, Shutdown, Temporary, Wrong]),
            (Stage::Tls, [Proceed, Wrong, Temporary, Shutdown, Temporary, Wrong]),
            (Stage::Auth, [Proceed, Wrong, Temporary, Shutdown, Temporary, Wrong]),
            (Stage::Mail, [Proceed, Wrong, Temporary, Shutdown, Permanent, Wrong]),
            (Stage::Rcpt, [Proceed, Wrong, Temporary, Shutdown, Permanent, Wrong]),
            (Stage::Data, [Wrong, Proceed, Temporary, Shutdown, Permanent, Wrong]),
            (Stage::Dot, [Proceed, Wrong, Temporary, Shutdown, Permanent, Wrong]),
            (Stage::Rset, [Proceed, Wrong, Temporary, Shutdown, Permanent, Wrong]),
        ];
        for (stage, expected) in rows {
            let got = [250, 354, 451, 421, 554, 150].map(|code| meaning(stage, code));
            assert_eq!(got, expected, "{stage:?}");
        }
    }

    #[test]
    fn a_refused_greeting_or_login_is_a_failed_connection_never_a_rejected_message() {
        for (stage, code) in [(Stage::Greeting, 554), (Stage::Ehlo, 502), (Stage::Auth, 535), (Stage::Greeting, 421)] {
            assert_eq!(judge_opening(stage, say(code)), Err(Cause::Reply(say(code))));
        }
        assert_eq!(judge_opening(Stage::Greeting, say(220)), Ok(say(220)));
        assert_eq!(judge_opening(Stage::Ehlo, say(354)), Err(Cause::Fault(Fault::WrongReply(say(354)))));
    }
}
