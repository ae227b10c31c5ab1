//! What deliveries leave behind in the log and in the metrics. Changes nothing else.

use std::time::Duration;

use super::client::Transaction;
use super::feedback::{About, Heard, Judgement};
use super::outcome::{Cause, Report, Verdict};
use super::settle::{Settled, said};
use super::telling::Reports;
use crate::message::{LaneId, Reason, Route};
use crate::metrics::{AttemptResult, Category, DayOutcome, Label, Metrics, Provider, ReplyClass, ReportResult};
use crate::reply::Reply;
use crate::spool::Done;

/// One attempt, as it ended.
pub struct Told<'a> {
    pub route: Route,
    /// Why it took this route.
    pub why: Reason,
    pub transaction: &'a Transaction,
    pub report: &'a Report,
    /// What is known about each recipient; empty: nothing.
    pub heard: &'a [Heard],
    pub took: Duration,
    /// Who answered.
    pub remote: &'a str,
    /// From 1.
    pub attempt: u32,
}

/// Recipients one after the other that got the same answer: one line of the log.
struct Run {
    result: &'static str,
    category: Category,
    provider: Provider,
    reason: String,
    rcpts: u64,
}

impl Run {
    fn says_the_same(&self, other: &Run) -> bool {
        (self.result, self.category, self.provider) == (other.result, other.category, other.provider)
            && self.reason == other.reason
    }
}

/// Counts and logs an attempt.
pub fn of_attempt(metrics: &Metrics, told: Told<'_>) {
    let Told { route, why, transaction, report, took, remote, attempt, .. } = told;
    metrics.delivery_duration_seconds.of(route).observe(took.as_secs_f64());
    let mut runs: Vec<Run> = Vec::new();
    let unheard = Heard::default();
    for (place, verdict) in report.verdicts.iter().enumerate() {
        let heard = told.heard.get(place).unwrap_or(&unheard);
        let judgement = heard.judgement.as_deref();
        let provider = provider_of(heard.lane);
        let (result, category) = match verdict {
            Verdict::Delivered { reply } => (AttemptResult::Delivered, of_answer(metrics, route, reply, None)),
            Verdict::Deferred { cause: Cause::Reply(reply), .. } => {
                (AttemptResult::Deferred, of_answer(metrics, route, reply, judgement))
            }
            Verdict::Deferred { cause: Cause::Fault(_), .. } => (AttemptResult::Deferred, of_silence(metrics, route)),
            Verdict::Rejected { reply, .. } => (AttemptResult::Rejected, of_answer(metrics, route, reply, judgement)),
            Verdict::Unknown { .. } => (AttemptResult::Unknown, of_silence(metrics, route)),
            Verdict::Untouched => continue,
        };
        let attempts = metrics.delivery_attempts.of(route);
        attempts.of(Provider::All).of(result).inc();
        if provider != Provider::All {
            attempts.of(provider).of(result).inc();
        }
        let reason = match verdict {
            Verdict::Delivered { reply } => reply.to_string(),
            other => said(other).unwrap_or_default(),
        };
        let run = Run { result: verdict.name(), category, provider, reason, rcpts: 1 };
        match runs.last_mut() {
            Some(last) if last.says_the_same(&run) => last.rcpts += 1,
            _ => runs.push(run),
        }
    }
    for run in runs {
        tracing::info!(
            event = "delivery.result",
            id = %transaction.id,
            route = route.name(),
            routed = why.name(),
            result = run.result,
            category = run.category.text(),
            provider = run.provider.text(),
            rcpts = run.rcpts,
            attempt,
            upstream = remote,
            latency_ms = took.as_millis() as u64,
            reason = run.reason,
        );
    }
    if report.verdicts.iter().any(|v| matches!(v, Verdict::Unknown { .. })) {
        tracing::warn!(event = "delivery.maybe", id = %transaction.id, route = route.name(),
            "no answer to the final dot: maybe-delivered, it keeps its route");
    }
}

/// Counts what senders were told, and says where they were not.
pub fn of_settled(metrics: &Metrics, settled: &Settled) {
    let Reports { sent, unwanted, null_sender, rate_limited } = settled.reports;
    metrics.queue_expired.inc_by(settled.expired);
    for (result, count) in [
        (ReportResult::Sent, sent),
        (ReportResult::Unwanted, unwanted),
        (ReportResult::NullSender, null_sender),
        (ReportResult::RateLimited, rate_limited),
    ] {
        metrics.delivery_reports.of(result).inc_by(count);
        let id = settled.settle.item.message;
        match result {
            _ if count == 0 => {}
            ReportResult::RateLimited => tracing::warn!(
                event = "report.withheld", id = %id, result = result.text(), rcpts = count,
                "the sender has had its reports of this hour; what failed is kept as a dead letter"
            ),
            ReportResult::NullSender => tracing::warn!(
                event = "report.withheld", id = %id, result = result.text(), rcpts = count, "kept as a dead letter"
            ),
            ReportResult::Unwanted => {
                tracing::info!(event = "report.withheld", id = %id, result = result.text(), rcpts = count);
            }
            ReportResult::Sent => {
                let report = settled.settle.report.as_ref().map(|r| r.id.to_string()).unwrap_or_default();
                tracing::info!(event = "report.sent", id = %id, report, rcpts = count);
            }
        }
    }
}

/// Counts the last word of a next hop on a connection.
pub fn of_reply(metrics: &Metrics, route: Route, cause: &Cause) {
    match cause {
        Cause::Fault(_) => of_silence(metrics, route),
        Cause::Reply(reply) => of_answer(metrics, route, reply, None),
    };
}

fn of_silence(metrics: &Metrics, route: Route) -> Category {
    metrics.upstream_replies.of(route).of(ReplyClass::Missing).of(Category::Network).inc();
    Category::Network
}

fn of_answer(metrics: &Metrics, route: Route, reply: &Reply, judgement: Option<&Judgement>) -> Category {
    let category = match judgement.map(|judgement| judgement.about) {
        None => category_of(reply),
        Some(About::Rate) => Category::Rate,
        Some(About::Reputation) => Category::Reputation,
        Some(About::Mailbox) => Category::Recipient,
        Some(About::Content) => Category::Content,
        Some(About::Auth) => Category::Auth,
        Some(About::Config | About::Load) => Category::Other,
    };
    metrics.upstream_replies.of(route).of(class_of(reply)).of(category).inc();
    category
}

/// Lanes and label values stand in the same order, the total first.
fn provider_of(lane: LaneId) -> Provider {
    Provider::ALL.get(usize::from(lane.0)).copied().unwrap_or(Provider::Other)
}

/// Counts and logs what a commit of the spool did.
pub fn of_commit(metrics: &Metrics, done: &Done, took: Duration) {
    metrics.spool_sync_duration_seconds.observe(took.as_secs_f64());
    metrics.warmup_overrun_recipients.inc_by(done.overrun_recipients);
    for id in &done.quarantined {
        metrics.spool_errors.inc();
        tracing::error!(event = "spool.damaged", id = %id, "its envelope or its octets cannot be read: put aside, not sent");
    }
    for (before, after) in &done.days {
        let outcome = match before {
            Some(before) if after.stage > before.stage => DayOutcome::Advanced,
            Some(before) if after.stage < before.stage => DayOutcome::SteppedBack,
            Some(before) if before.limit == Some(0) || before.limit.is_none() => DayOutcome::Skipped,
            Some(_) => DayOutcome::Repeated,
            None => DayOutcome::Skipped,
        };
        metrics.warmup_day_boundaries.of(outcome).inc();
        let limit = after.limit.map_or("none".into(), |limit| limit.to_string());
        tracing::info!(event = "warmup.day", day = after.stage + 1, limit, result = outcome.text());
    }
}

fn class_of(reply: &Reply) -> ReplyClass {
    match reply.code {
        200..400 => ReplyClass::Positive,
        400..500 => ReplyClass::Transient,
        _ => ReplyClass::Permanent,
    }
}

/// What a reply is about, by its code alone, where no rule knows better.
fn category_of(reply: &Reply) -> Category {
    match (reply.code, reply.enhanced.map(|e| e.1)) {
        (200..400, _) => Category::Ok,
        (530 | 534 | 535 | 538 | 454, _) => Category::Auth,
        (_, Some(1 | 2)) => Category::Recipient,
        (_, Some(6)) => Category::Content,
        (_, Some(4)) => Category::Network,
        _ => Category::Other,
    }
}
