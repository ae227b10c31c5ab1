//! The front door: what applications talk to.
//!
//! Promises: envelope bytes are kept as they came; a message ends where RFC 5321 says and nowhere else; 250 after the
//! final dot only when [`Intake::accept`] has said that the message is durable; replies come in the order of the
//! commands and never repeat the client's octets. One session never costs more than 64 KiB beside its body sink.
//!
//! [`session`] decides and does no I/O; [`server`] moves bytes between it, the sockets and the [`Intake`]. Knows
//! neither spool nor policy.

pub mod auth;
pub mod chunk;
pub mod command;
mod connection;
pub mod counts;
pub mod data;
pub mod guessing;
pub mod headers;
pub mod line;
pub mod parameters;
pub mod path;
mod rejections;
pub mod replies;
pub mod sasl;
pub mod server;
pub mod session;
pub mod settings;
mod stream;
pub mod tag;
pub mod tls;
pub mod user_file;
pub mod users;

use core::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Envelope, QueueId, Timestamp};
use crate::reply::Reply;

pub use auth::{AuthVerdict, Authenticator, Login};
pub use counts::ConnectionCounts;
pub use replies::{Note, Replies};
pub use server::{Door, ListenerSettings, Server, Terms};
pub use settings::{AuthPolicy, SessionSettings, Timeouts, TlsMode};
pub use tls::{CertificateError, ServerTls};

/// Takes accepted mail. The one thing behind the front door.
pub trait Intake: Send + Sync + 'static {
    type Body: BodySink;

    /// Asked at each MAIL: can a message be taken now?
    fn ready(&self) -> Result<(), Refusal>;

    /// Asked when DATA begins.
    fn new_id(&self) -> QueueId;

    /// Where the octets of message `id` go. Dropping the sink without [`Intake::accept`] forgets them.
    fn body(&self, id: QueueId) -> Self::Body;

    /// Resolves to `Ok` only when the message is durable: the client is told 250 right after.
    fn accept(&self, message: Submission<Self::Body>) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// For the date in the `Received:` line.
    fn now(&self) -> Timestamp;
}

/// Takes the octets of one message, dots un-stuffed, line ends as sent; the `Received:` line comes first.
pub trait BodySink: Send + 'static {
    /// May wait until there is room. After an error it is not called again; the message is refused at its true end.
    fn write(&mut self, chunk: &[u8]) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// A whole message that nothing speaks against.
#[derive(Debug)]
pub struct Submission<B> {
    pub id: QueueId,
    pub envelope: Envelope,
    pub body: B,
    /// Octets given to `body`, the `Received:` line included.
    pub size: u64,
    /// When DATA began; the date in the `Received:` line.
    pub received_at: Timestamp,
    pub client: IpAddr,
    /// Who the client authenticated as.
    pub user: Option<Arc<str>>,
    /// [`ListenerSettings::index`] of the listener the client came by.
    pub listener: usize,
    pub heading: Heading,
}

/// What the header block says about whose mail this is. Octets as they came, not judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heading {
    /// What stands behind the colon of the first `From:`, folded as it came. `None` where there is none, and where it is
    /// larger than [`headers::FROM_MAX_OCTETS`].
    pub from: Option<Box<[u8]>>,
    /// The value of the first `X-Mailramp-Stream:`, without white space around it. `None` also where the listener's
    /// clients may not choose.
    pub tag: Option<Box<[u8]>>,
}

/// Why something is not taken, and what the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RejectReason,
    pub reply: Reply,
}

/// A closed set: the label of the rejection metric and the word in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Message, header block or announced size over the limit.
    Size,
    Auth,
    RelayDenied,
    /// The spool is full or failing.
    Disk,
    /// A command that is unknown, malformed or out of order.
    Syntax,
    /// Too many recipients, or too many errors.
    Limit,
    BareNewline,
    /// Octets behind STARTTLS that came before the handshake.
    StarttlsInjection,
    /// NUL, a line of more than 64 KiB, or one in chunks that does not end.
    Content,
    Loop,
    Timeout,
    /// Too many connections.
    Busy,
    /// Not SMTP: HTTP or TLS on this port.
    Protocol,
    /// A TLS handshake that failed or took too long.
    Tls,
    /// mailramp is stopping.
    Shutdown,
}

impl RejectReason {
    pub const ALL: [RejectReason; 15] = [
        RejectReason::Size,
        RejectReason::Auth,
        RejectReason::RelayDenied,
        RejectReason::Disk,
        RejectReason::Syntax,
        RejectReason::Limit,
        RejectReason::BareNewline,
        RejectReason::StarttlsInjection,
        RejectReason::Content,
        RejectReason::Loop,
        RejectReason::Timeout,
        RejectReason::Busy,
        RejectReason::Protocol,
        RejectReason::Tls,
        RejectReason::Shutdown,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            RejectReason::Size => "size",
            RejectReason::Auth => "auth",
            RejectReason::RelayDenied => "relay_denied",
            RejectReason::Disk => "disk",
            RejectReason::Syntax => "syntax",
            RejectReason::Limit => "limit",
            RejectReason::BareNewline => "bare_newline",
            RejectReason::StarttlsInjection => "starttls_injection",
            RejectReason::Content => "content",
            RejectReason::Loop => "loop",
            RejectReason::Timeout => "timeout",
            RejectReason::Busy => "busy",
            RejectReason::Protocol => "protocol",
            RejectReason::Tls => "tls",
            RejectReason::Shutdown => "shutdown",
        }
    }
}

/// What became of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opened {
    Accepted,
    /// Over the limit of all connections.
    TooMany,
    /// Over the limit of connections from one address.
    TooManyFromAddress,
    /// accept() failed, for want of descriptors or memory; the client waits in the backlog.
    Failed,
}

impl Opened {
    pub const ALL: [Opened; 4] = [Opened::Accepted, Opened::TooMany, Opened::TooManyFromAddress, Opened::Failed];

    pub const fn name(self) -> &'static str {
        match self {
            Opened::Accepted => "accepted",
            Opened::TooMany => "too_many",
            Opened::TooManyFromAddress => "too_many_from_address",
            Opened::Failed => "failed",
        }
    }
}

/// Hears what happens at the front door, for metrics. Called from the sessions: must not wait.
pub trait Observer: Send + Sync + 'static {
    fn connection_opened(&self, _listener: usize, _result: Opened) {}

    /// Once for each `connection_opened` with [`Opened::Accepted`].
    fn connection_closed(&self, _listener: usize) {}

    /// A command, a message or a connection was refused.
    fn rejected(&self, _reason: RejectReason) {}

    /// A message was taken; `took` is the time from the end of its data to its 250.
    fn accepted(&self, _recipients: u64, _bytes: u64, _took: Duration) {}

    /// A session ended in a panic: a bug of ours. The others go on.
    fn session_panicked(&self, _listener: usize) {}
}

/// Observes nothing.
impl Observer for () {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name() {
        let mut names: Vec<_> = RejectReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RejectReason::ALL.len());
    }
}
