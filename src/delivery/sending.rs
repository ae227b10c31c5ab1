//! The life of a connection: opened, kept busy with what is claimed for it, closed; and what becomes of each message.
//!
//! What is claimed is sent or given back. A claim that has become stale before MAIL goes back to the line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::account::{self, Told};
use super::breaker::Hop;
use super::client::{Connection, Transaction};
use super::dispatcher::{Dispatcher, RouteState, lock};
use super::feedback::{Ending, Said};
use super::outcome::{Cause, Stage, Verdict};
use super::settle::Ended;
use crate::message::{Envelope, Route, Timestamp};
use crate::spool::{BodySource, Claimed, Fate, Settle};

/// A connection that had nothing to send for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// A claim older than this, or of an earlier quarter-hour, is given back before MAIL. Real time: it is about connections
/// that are slow, not about the ramp.
const CLAIM_FRESH: Duration = Duration::from_secs(60);
/// Bodies up to here are read into memory before they are sent.
const IN_MEMORY_MAX: u64 = 1 << 20;
/// Octets of a message that a report can quote from.
const HEADER_READ: usize = super::dsn::HEADER_MAX_OCTETS;

impl Dispatcher {
    /// The life of one connection.
    pub(super) async fn connection(self: Arc<Self>, route: Route) {
        let state = self.route(route).expect("only configured routes open connections");
        let opened = tokio::select! {
            opened = Connection::open_along(&state.plan.target, state.pool.hops()) => opened,
            () = self.stopping.cancelled() => return state.pool.not_opened(),
        };
        match opened {
            Ok(connection) => {
                if state.pool.reached() {
                    tracing::warn!(event = "upstream.up", route = route.name());
                }
                let hop = Hop::Address(connection.peer().address);
                self.work(route, state, connection).await;
                state.pool.closed(&hop);
            }
            Err(error) => {
                let text = error.to_string();
                if state.pool.not_reached(&error, crate::log::printable(&text)) {
                    tracing::error!(event = "upstream.down", route = route.name(), reason = %text);
                }
                account::of_reply(&self.metrics, route, &error.cause);
                state.pool.not_opened();
            }
        }
        self.wake.notify_one();
    }

    async fn work(&self, route: Route, state: &RouteState, mut connection: Connection) {
        while let Some(claimed) = self.next_work(state).await {
            self.send(route, &mut connection, claimed).await;
            if !connection.is_usable() || connection.messages() >= state.plan.messages_per_connection {
                break;
            }
        }
        connection.quit().await;
    }

    /// Stands ready until there is something to send; `None`: time to close.
    async fn next_work(&self, state: &RouteState) -> Option<Claimed> {
        let (seat, mut work) = state.pool.sit();
        // Work may have been waiting for just this.
        self.wake.notify_one();
        let mut patience = IDLE;
        loop {
            tokio::select! {
                biased;
                claimed = &mut work => return claimed.ok(),
                () = tokio::time::sleep(patience) => {}
                () = self.stopping.cancelled() => {}
            }
            if state.pool.leave(seat) {
                return None;
            }
            // Taken at this very moment: what it was taken for comes, or it is given back.
            patience = Duration::from_millis(50);
            if self.stopping.is_cancelled() {
                match tokio::time::timeout(patience, &mut work).await {
                    Ok(claimed) => return claimed.ok(),
                    Err(_) => continue,
                }
            }
        }
    }

    async fn send(&self, route: Route, connection: &mut Connection, claimed: Claimed) {
        let began = Instant::now();
        if self.is_stale(&claimed) {
            let fates = vec![Fate::Untouched; claimed.item.envelope.recipients.len()];
            return self.give_back(claimed, fates).await;
        }
        let allowed = self.allowed(route, claimed.item.recipients());
        if allowed == 0 {
            let fates = vec![Fate::Untouched; claimed.item.envelope.recipients.len()];
            return self.give_back(claimed, fates).await;
        }
        let Claimed { item, body, crc, .. } = claimed;
        let body = match load(body, crc).await {
            Ok(body) => body,
            Err(error) => {
                self.metrics.spool_errors.inc();
                tracing::error!(event = "spool.damaged", id = %item.message, reason = %error, "put aside, not sent");
                let fates = vec![Fate::Damaged; item.envelope.recipients.len()];
                let expires = item.expires.unwrap_or(Timestamp::NEVER);
                let settle = Settle { item, fates, reply: error.to_string(), expires, report: None };
                return drop(self.spool().settle(settle).await);
            }
        };
        let mut transaction = Transaction { id: item.message, envelope: item.envelope.clone(), body };
        transaction.envelope.recipients.truncate(allowed);
        let mut report = connection.transact(&transaction).await;
        let took = began.elapsed();
        let peer = connection.peer().clone();
        let attempt = item.attempts + 1;
        let heard = self.feedback.hear(route, &endings(&transaction.envelope, &report.verdicts));
        let (heard, remote) = (&heard[..], &peer.host[..]);
        let why = item.reason;
        let told = Told { route, why, transaction: &transaction, report: &report, heard, took, remote, attempt };
        account::of_attempt(&self.metrics, told);
        // Those beyond the cap of the minute: back in line as they were.
        report.verdicts.resize(item.envelope.recipients.len(), Verdict::Untouched);
        if let (Some((_, Cause::Reply(reply))), Some(pool)) = (&report.ended_by, self.pool(route))
            && reply.code == 421
        {
            // Those it said nothing about are due at once; they must not come back to it at once.
            pool.hops().rest(&Hop::Address(peer.address));
        }
        let now = self.clock.now();
        let reports_itself = connection.capabilities().dsn;
        let may_be_told = report.verdicts.iter().any(|verdict| match verdict {
            Verdict::Rejected { .. } | Verdict::Deferred { .. } => true,
            Verdict::Delivered { .. } => !reports_itself,
            Verdict::Unknown { .. } | Verdict::Untouched => false,
        });
        let header = if may_be_told { read_header(transaction.body).await } else { Bytes::new() };
        let delivered = report.verdicts.iter().filter(|v| matches!(v, Verdict::Delivered { .. })).count();
        if delivered > 0 {
            self.metrics.routed_recipients.of(item.stream).of(route).of(item.reason).inc_by(delivered as u64);
            self.metrics.queue_wait_seconds.of(route).observe(now.since(item.accepted).as_secs_f64());
        }
        let (fallback, has_legacy) = (self.has_fallback(route), self.has_legacy(route));
        let (verdicts, remote) = (&report.verdicts[..], Some(remote));
        let ended = Ended { item, verdicts, heard, remote, header: &header, fallback, has_legacy, reports_itself };
        let settled = {
            let budget = &mut lock(&self.reports);
            self.settle.settle(ended, now, &mut fastrand::Rng::new(), self.ids.next(now), budget)
        };
        account::of_settled(&self.metrics, &settled);
        let _ = self.spool().settle(settled.settle).await;
    }

    /// How many of so many recipients the route takes in this minute.
    fn allowed(&self, route: Route, recipients: u64) -> usize {
        let cap = self.route(route).and_then(|state| state.cap.as_ref());
        let allowed = cap.map_or(recipients, |cap| lock(cap).take(recipients, self.clock.now()));
        usize::try_from(allowed).unwrap_or(usize::MAX)
    }

    /// The reservation belongs to an earlier quarter-hour, or is old: the final dot would come too late for it.
    fn is_stale(&self, claimed: &Claimed) -> bool {
        claimed.item.reservation.is_some_and(|reservation| {
            self.clock.now().slot() > reservation.slot || self.clock.real_time_since(claimed.at) >= CLAIM_FRESH
        })
    }

    pub(super) async fn give_back(&self, claimed: Claimed, fates: Vec<Fate>) {
        let item = claimed.item;
        let (reply, expires) = (item.last_reply.clone(), item.expires.unwrap_or(Timestamp::NEVER));
        let _ = self.spool().settle(Settle { item, fates, reply, expires, report: None }).await;
    }
}

/// How the attempt ended for each recipient. Our own refusals, and a connection that was lost, say nothing of it.
fn endings<'a>(envelope: &'a Envelope, verdicts: &'a [Verdict]) -> Vec<Ending<'a>> {
    let said = |verdict: &'a Verdict| match verdict {
        Verdict::Delivered { .. } => Said::Accepted,
        Verdict::Rejected { stage: Stage::Check, .. } => Said::Nothing,
        Verdict::Deferred { cause: Cause::Reply(reply), .. } | Verdict::Rejected { reply, .. } => Said::Refused(reply),
        Verdict::Deferred { .. } | Verdict::Unknown { .. } | Verdict::Untouched => Said::Nothing,
    };
    let ending = |(recipient, verdict)| Ending { recipient, said: said(verdict) };
    envelope.recipients.iter().zip(verdicts).map(ending).collect()
}

/// Small bodies are read and checked before anything is sent; large ones are checked, then streamed.
async fn load(body: BodySource, crc: u32) -> std::io::Result<BodySource> {
    let check = move |body: &BodySource| match body.crc() {
        Ok(found) if found == crc => Ok(()),
        Ok(_) => Err(std::io::Error::other("the stored octets do not match their checksum")),
        Err(error) => Err(error),
    };
    match body {
        BodySource::Memory(_) => check(&body).map(|()| body),
        BodySource::File { .. } => {
            let work = move || {
                let body = match body.size() {
                    size if size <= IN_MEMORY_MAX => BodySource::Memory(body.read_at(0, size as usize)?),
                    _ => body,
                };
                check(&body).map(|()| body)
            };
            tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
        }
    }
}

pub(super) async fn read_header(body: BodySource) -> Bytes {
    let work = move || body.read_at(0, HEADER_READ).unwrap_or_default();
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}
