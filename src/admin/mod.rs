//! What operators and monitoring see of a running relay.
//!
//! [`api`], [`queue`] and [`warmup`] have the plain types; [`server`] answers HTTP (metrics and probes; nothing there changes anything);
//! [`control`] answers the commands of the same machine's operator over a Unix socket. Both know the relay only as a
//! [`Backend`], so they work the same on a fake one.
//!
//! Not here: pages and tokens.

pub mod api;
pub mod control;
pub mod explain;
#[cfg(test)]
pub(crate) mod fake;
pub mod queue;
mod readiness;
pub mod server;
pub mod streams;
pub mod warmup;
pub mod when;

use std::any::Any;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use crate::message::Route;
use crate::metrics::{Label, Metrics, Mirrored, Provider, QueueState, seconds};
use api::{
    AuditPage, ChangeAnswer, ChangeOrder, ClockAnswer, QueueAction, QueueFilter, QueuePage, QueueStep, Selection,
    ShownMessage, Snapshot, StepAnswer,
};
use explain::{ExplainOrder, Explained};
use streams::{MoveAnswer, MoveOrder, StreamPage, UndoOrder};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The relay, as the admin plane asks it.
pub trait Backend: Send + Sync + 'static {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, BackendError>>;

    /// The oldest messages that match, at most `limit`.
    fn queue(&self, filter: QueueFilter, limit: usize) -> BoxFuture<'_, Result<QueuePage, BackendError>>;

    /// One message. With `headers`, its header block too.
    fn show(&self, id: String, headers: bool) -> BoxFuture<'_, Result<ShownMessage, BackendError>>;

    /// What matches now and what `action` would do with it; changes nothing. `all`: an empty filter is meant. `ids`:
    /// for [`Backend::step`], not only the numbers.
    fn select(
        &self,
        filter: QueueFilter,
        action: QueueAction,
        all: bool,
        ids: bool,
    ) -> BoxFuture<'_, Result<Selection, BackendError>>;

    /// Does a piece of what was selected, for the user `actor`.
    fn step(&self, step: QueueStep, actor: u32) -> BoxFuture<'_, Result<StepAnswer, BackendError>>;

    /// As long as the answer lives, the spool removes no file: a backup copies them.
    fn hold_files(&self) -> Box<dyn Any + Send>;

    /// From here on the machine's clock is right. Refused while it is not in doubt.
    fn accept_clock(&self) -> BoxFuture<'_, Result<ClockAnswer, BackendError>>;

    /// Tells the ramp something, for the user `actor`. The reason has been checked.
    fn change(&self, order: ChangeOrder, actor: u32) -> BoxFuture<'_, Result<ChangeAnswer, BackendError>>;

    /// What operators did in the last `since_seconds`, as far as it is kept.
    fn audit(&self, since_seconds: u64) -> BoxFuture<'_, Result<AuditPage, BackendError>>;

    /// Why a message goes where it goes, or what would happen to one now.
    fn explain(&self, order: ExplainOrder) -> BoxFuture<'_, Result<Explained, BackendError>>;

    /// Every stream, and where its mail goes.
    fn streams(&self) -> BoxFuture<'_, Result<StreamPage, BackendError>>;

    /// What moving a stream means; with `yes` it is done, for the user `actor`.
    fn move_stream(&self, order: MoveOrder, actor: u32) -> BoxFuture<'_, Result<MoveAnswer, BackendError>>;

    /// What taking back the last move of a stream means; with `yes` it is done, for the user `actor`.
    fn undo_move(&self, order: UndoOrder, actor: u32) -> BoxFuture<'_, Result<MoveAnswer, BackendError>>;

    /// Everything goes by legacy, and the ramp only says what it would do.
    fn is_dry_run(&self) -> bool {
        false
    }

    /// The SMTP listeners that should be answering now; none once the relay is stopping.
    fn listeners(&self) -> Vec<ListenerProbe>;
}

/// Why the relay has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Not ready yet, stopping, or the spool does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// What was asked for makes no sense here, such as a stream that does not exist.
    #[error("{0}")]
    Refused(String),
    /// It is as it was asked to be already.
    #[error("{0}")]
    NoChange(String),
}

/// How readiness tests one SMTP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerProbe {
    /// As bound; an unspecified address is tried on loopback.
    pub address: SocketAddr,
    pub depth: ProbeDepth,
}

/// How far a probe goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeDepth {
    /// The listener admits loopback without AUTH: up to RCPT of this address, then RSET.
    Recipient(String),
    /// Greeting and EHLO.
    Greeting,
    /// TLS from the first octet: that it takes a connection.
    Connect,
}

/// Sets the scrape-time gauges.
pub fn mirror(metrics: &Metrics, snapshot: &Snapshot) {
    let Mirrored {
        upstream_up,
        upstream_connections,
        warmup_day,
        warmup_limit_recipients,
        warmup_sent_recipients,
        warmup_target_recipients,
        warmup_tokens,
        warmup_provider_limit_recipients,
        warmup_provider_sent_recipients,
        warmup_paused,
        warmup_complete,
        warmup_day_end_timestamp_seconds,
        clock_trusted,
        dry_run,
        queue_messages,
        queue_bytes,
        queue_oldest_message_timestamp_seconds,
        spool_free_bytes,
    } = &metrics.mirrored;

    for (route, status) in [(Route::New, &snapshot.new), (Route::Legacy, &snapshot.legacy)] {
        // A route that is not there is not down: an alert on 0 must stay quiet for a relay without legacy server.
        upstream_up.of(route).set(i64::from(!status.configured || status.up));
        upstream_connections.of(route).set(i64::from(status.connections));
    }

    let warmup = &snapshot.warmup;
    warmup_day.set(warmup.day.map_or(0, i64::from));
    warmup_limit_recipients.set(warmup.limit.map_or(f64::INFINITY, |limit| limit as f64));
    warmup_sent_recipients.set(whole(warmup.sent));
    warmup_target_recipients.set(warmup.target.map_or(0, whole));
    warmup_tokens.set(warmup.tokens.map_or(f64::INFINITY, |tokens| tokens as f64));
    warmup_paused.set(i64::from(snapshot.pause.is_some()));
    // A pause does not make a ramp that is done go on.
    warmup_complete.set(i64::from(warmup.day.is_some() && warmup.limit.is_none()));
    for provider in Provider::ALL {
        let lane = snapshot.lanes.iter().find(|lane| lane.provider == provider.text());
        // A provider without a lane has no limit of its own.
        let limit = lane.and_then(|lane| lane.limit).map_or(f64::INFINITY, |limit| limit as f64);
        warmup_provider_limit_recipients.of(*provider).set(limit);
        warmup_provider_sent_recipients.of(*provider).set(lane.map_or(0, |lane| whole(lane.sent)));
    }
    warmup_day_end_timestamp_seconds.set(seconds(warmup.day_ends));

    clock_trusted.set(i64::from(snapshot.clock.trusted));
    dry_run.set(i64::from(snapshot.dry_run.is_some()));

    for state in QueueState::ALL {
        let totals = snapshot.queue.of(*state);
        queue_messages.of(*state).set(whole(totals.messages));
        queue_bytes.of(*state).set(whole(totals.bytes));
        queue_oldest_message_timestamp_seconds.of(*state).set(totals.oldest.map_or(0.0, seconds));
    }
    spool_free_bytes.set(whole(snapshot.spool.free_bytes));
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Build;

    #[test]
    fn gauges_repeat_what_the_snapshot_says() {
        let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
        mirror(&metrics, &fake::snapshot());
        let text = metrics.render();
        for line in [
            "mailramp_warmup_day 9",
            "mailramp_warmup_limit_recipients 1281",
            "mailramp_warmup_sent_recipients 1017",
            "mailramp_warmup_tokens 0",
            "mailramp_warmup_paused 0",
            "mailramp_warmup_provider_limit_recipients{provider=\"all\"} 1281",
            "mailramp_warmup_provider_limit_recipients{provider=\"microsoft\"} 269",
            "mailramp_warmup_provider_sent_recipients{provider=\"google\"} 470",
            "mailramp_warmup_provider_sent_recipients{provider=\"apple\"} 0",
            "mailramp_clock_trusted 1",
            "mailramp_queue_messages{state=\"held\"} 12",
            "mailramp_queue_oldest_message_timestamp_seconds{state=\"ready\"} 0",
            "mailramp_queue_oldest_message_timestamp_seconds{state=\"held\"} 1773156960",
            "mailramp_upstream_connections{route=\"legacy\"} 5",
            "mailramp_spool_free_bytes 18200000000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        let without_lane = metrics.mirrored.warmup_provider_limit_recipients.of(Provider::Apple).get();
        assert_eq!(without_lane, f64::INFINITY);
    }

    #[test]
    fn a_route_that_is_not_configured_does_not_count_as_down() {
        let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
        let mut snapshot = fake::snapshot();
        snapshot.new.up = false;
        snapshot.legacy = api::RouteStatus::default();
        mirror(&metrics, &snapshot);
        let up = &metrics.mirrored.upstream_up;
        assert_eq!((up.of(Route::New).get(), up.of(Route::Legacy).get()), (0, 1));
    }

    #[test]
    fn a_pause_is_seen_and_takes_nothing_from_a_ramp_that_is_done() {
        let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
        let mut snapshot = fake::snapshot();
        let pause = api::PauseStatus { since: snapshot.now, actor: 0, reason: "complaints".into() };
        snapshot.warmup.state = api::DayState::Paused { reason: pause.reason.clone() };
        snapshot.warmup.limit = None;
        snapshot.pause = Some(pause);
        mirror(&metrics, &snapshot);
        let gauges = &metrics.mirrored;
        assert_eq!((gauges.warmup_paused.get(), gauges.warmup_complete.get()), (1, 1));
    }

    #[test]
    fn a_clock_in_doubt_is_seen() {
        let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
        let mut snapshot = fake::snapshot();
        snapshot.clock.trusted = false;
        mirror(&metrics, &snapshot);
        assert_eq!(metrics.mirrored.clock_trusted.get(), 0);
    }

    #[test]
    fn a_complete_ramp_has_an_infinite_limit_and_no_number_that_is_none() {
        let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
        let mut snapshot = fake::snapshot();
        snapshot.warmup.state = api::DayState::Complete;
        snapshot.warmup.limit = None;
        snapshot.warmup.tokens = None;
        mirror(&metrics, &snapshot);
        let gauges = &metrics.mirrored;
        assert_eq!(gauges.warmup_complete.get(), 1);
        assert_eq!(gauges.warmup_limit_recipients.get(), f64::INFINITY);
        assert_eq!(gauges.warmup_tokens.get(), f64::INFINITY);
        assert!(!metrics.render().contains("NaN"));
    }
}
