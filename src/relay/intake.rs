//! What the front door hands its mail to: the body into memory or a file, the message to the committer, the numbers to
//! the metrics.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::directory::by_lane;
use super::dry_run::DryRun;
use super::lanes;
use crate::clock::Clock;
use crate::delivery::dispatcher::QueueIds;
use crate::message::{Queue, QueueId, StreamId, Timestamp};
use crate::metrics::{ConnectionResult, Metrics, Rejection};
use crate::operators::Operators;
use crate::policy::classify::{Facts, Streams};
use crate::reply::{EnhancedCode, Reply};
use crate::smtp::{BodySink, Intake, Observer, Opened, Refusal, RejectReason, Submission};
use crate::spool::body::{BodyBuffer, BodyWriter};
use crate::spool::committer::SpoolHandle;
use crate::spool::disk::Watermark;
use crate::spool::{Accept, Part, Placed, SpoolError, State};

/// See the module's header.
pub struct SpoolIntake {
    /// Where accepted mail goes.
    pub spool: SpoolHandle,
    /// Memory for messages on their way in.
    pub buffer: Arc<BodyBuffer>,
    /// Names for messages.
    pub ids: Arc<QueueIds>,
    /// The time in `Received:`.
    pub clock: Arc<dyn Clock>,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// Room on the disk, asked at each MAIL.
    pub watermark: Watermark,
    /// Whose mailboxes they are.
    pub operators: Arc<Operators>,
    /// Which stream a message belongs to; exchanged at a reload.
    pub streams: Arc<ArcSwap<Streams>>,
    /// What the ramp would do; then everything goes by legacy.
    pub dry_run: Option<Arc<DryRun>>,
}

/// A body on its way in.
pub struct SpoolBody {
    writer: BodyWriter,
    metrics: Arc<Metrics>,
}

impl BodySink for SpoolBody {
    async fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        self.writer.write(chunk).await.map_err(|error| disk_refused(&error, &self.metrics))
    }
}

impl Intake for SpoolIntake {
    type Body = SpoolBody;

    fn ready(&self) -> Result<(), Refusal> {
        self.watermark.check(self.spool.queued_bytes()).map_err(|error| disk_refused(&error, &self.metrics))
    }

    fn new_id(&self) -> QueueId {
        self.ids.next(self.clock.now())
    }

    fn body(&self, id: QueueId) -> SpoolBody {
        SpoolBody { writer: BodyWriter::new(self.buffer.clone(), id), metrics: self.metrics.clone() }
    }

    async fn accept(&self, message: Submission<SpoolBody>) -> Result<(), Refusal> {
        let id = message.id;
        let facts = Facts {
            from: message.heading.from.as_deref(),
            sender: &message.envelope.reverse_path,
            user: message.user.as_deref(),
            tag: message.heading.tag.as_deref(),
            listener: message.listener,
            client: message.client,
        };
        let stream = self.stream_of(id, &facts);
        let body = message.body.writer.finish().await.map_err(|error| disk_refused(&error, &self.metrics))?;
        let recipients = message.envelope.recipients.len() as u64;
        let now = self.clock.now();
        let lanes = by_lane(message.envelope.recipients, |recipient| self.operators.lane_at(&recipient.path, now));
        let part = |(lane, recipients)| Part { lane, stream, recipients, only: None };
        let accept = Accept {
            id,
            reverse_path: message.envelope.reverse_path,
            parameters: message.envelope.parameters,
            parts: lanes.into_iter().map(part).collect(),
            body,
        };
        let of_part = |part: &Part| (part.lane, part.stream, part.recipients.len() as u64);
        let parts: Option<Vec<_>> = self.dry_run.as_ref().map(|_| accept.parts.iter().map(of_part).collect());
        match self.spool.accept(accept).await {
            Ok(placed) => {
                self.metrics.smtp_messages_received.of(stream).inc();
                self.metrics.smtp_recipients_received.of(stream).inc_by(recipients);
                match (&self.dry_run, parts) {
                    (Some(dry_run), Some(parts)) => dry_run.accepted(id, &parts),
                    _ => tell(id, self.streams.load().name(stream), &placed),
                }
                Ok(())
            }
            Err(error @ SpoolError::Full { .. }) => Err(disk_refused(&error, &self.metrics)),
            Err(error) => {
                tracing::error!(event = "smtp.rejected", id = %id, reason = %error);
                let reply = Reply::new(451, EnhancedCode(4, 3, 0), "Try again later");
                Err(Refusal { reason: RejectReason::Disk, reply })
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl SpoolIntake {
    fn stream_of(&self, id: QueueId, facts: &Facts<'_>) -> StreamId {
        let streams = self.streams.load();
        if let Some(tag) = facts.tag.filter(|tag| !streams.knows_tag(tag)) {
            tracing::debug!(event = "smtp.unknown_stream", id = %id, tag = %tag.escape_ascii());
        }
        streams.classify(facts)
    }
}

fn tell(id: QueueId, stream: &str, placed: &[Placed]) {
    for part in placed {
        let held = part.state == State::Held;
        let (route, provider) = match part.queue {
            Queue::New(lane) => ("new", lanes::name(lane)),
            Queue::Legacy => ("legacy", None),
        };
        tracing::info!(
            event = "route.decided", id = %id, stream, route, provider, rcpts = part.recipients, held,
            reason = part.reason.name()
        );
    }
}

fn disk_refused(error: &dyn std::error::Error, metrics: &Metrics) -> Refusal {
    metrics.spool_errors.inc();
    tracing::error!(event = "spool.full", reason = %error);
    let reply = Reply::new(452, EnhancedCode(4, 3, 1), "Insufficient system storage");
    Refusal { reason: RejectReason::Disk, reply }
}

/// Counts what happens at the front door.
pub struct DoorCounter(pub Arc<Metrics>);

impl Observer for DoorCounter {
    fn connection_opened(&self, _listener: usize, result: Opened) {
        let result = match result {
            Opened::Accepted => {
                self.0.smtp_connections.inc();
                ConnectionResult::Accepted
            }
            Opened::TooMany | Opened::TooManyFromAddress | Opened::Failed => ConnectionResult::TooMany,
        };
        self.0.smtp_connections_total.of(result).inc();
    }

    fn connection_closed(&self, _listener: usize) {
        self.0.smtp_connections.dec();
    }

    fn rejected(&self, reason: RejectReason) {
        let label = match reason {
            RejectReason::Size => Rejection::Size,
            RejectReason::Auth => Rejection::Auth,
            RejectReason::RelayDenied => Rejection::RelayDenied,
            RejectReason::Disk => Rejection::Disk,
            RejectReason::Syntax | RejectReason::Content | RejectReason::Protocol => Rejection::Syntax,
            RejectReason::BareNewline | RejectReason::StarttlsInjection => Rejection::Smuggling,
            RejectReason::Loop => Rejection::Loop,
            RejectReason::Limit | RejectReason::Busy => Rejection::TooMany,
            RejectReason::Timeout => Rejection::Timeout,
            RejectReason::Tls => Rejection::Tls,
            RejectReason::Shutdown => Rejection::Other,
        };
        self.0.smtp_rejections.of(label).inc();
    }

    fn accepted(&self, _recipients: u64, _bytes: u64, took: Duration) {
        self.0.smtp_accept_duration_seconds.observe(took.as_secs_f64());
    }

    fn session_panicked(&self, _listener: usize) {
        self.0.smtp_rejections.of(Rejection::Other).inc();
    }
}

/// Whether readiness may try a whole envelope from this machine.
pub fn admits_loopback(allow_from: &[ipnet::IpNet], bound: IpAddr) -> bool {
    let from: IpAddr = match bound {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    allow_from.iter().any(|net| net.contains(&from))
}
