//! What deliveries leave behind in the log and in the metrics. Changes nothing else.

use std::time::Duration;

use super::client::Transaction;
use super::outcome::{Cause, Report, Verdict};
use super::settle::{Settled, said};
use super::telling::Reports;
use crate::message::Route;
use crate::metrics::{AttemptResult, Category, DayOutcome, Label, Metrics, Provider, ReplyClass, ReportResult};
use crate::reply::Reply;
use crate::spool::Done;

/// One attempt, as it ended.
pub struct Told<'a> {
    pub route: Route,
    pub transaction: &'a Transaction,
    pub report: &'a Report,
    pub took: Duration,
    /// Who answered.
    pub remote: &'a str,
    /// From 1.
    pub attempt: u32,
}

/// Counts and logs an attempt.
pub fn of_attempt(metrics: &Metrics, told: Told<'_>) {
    let Told { route, transaction, report, took, remote, attempt } = told;
    metrics.delivery_duration_seconds.of(route).observe(took.as_secs_f64());
    let attempts = metrics.delivery_attempts.of(route).of(Provider::All);
    let mut said_before: Option<(&'static str, String)> = None;
    for verdict in &report.verdicts {
        let result = match verdict {
            Verdict::Delivered { reply } => {
                of_reply(metrics, route, &Cause::Reply(reply.clone()));
                AttemptResult::Delivered
            }
            Verdict::Deferred { cause, .. } => {
                of_reply(metrics, route, cause);
                AttemptResult::Deferred
            }
            Verdict::Rejected { reply, .. } => {
                of_reply(metrics, route, &Cause::Reply(reply.clone()));
                AttemptResult::Rejected
            }
            Verdict::Unknown { fault } => {
                of_reply(metrics, route, &Cause::Fault(fault.clone()));
                AttemptResult::Unknown
            }
            Verdict::Untouched => continue,
        };
        attempts.of(result).inc();
        // One line for each different answer, with the number of recipients that got it.
        let text = match verdict {
            Verdict::Delivered { reply } => reply.to_string(),
            other => said(other).unwrap_or_default(),
        };
        let this = (verdict.name(), text);
        if said_before.as_ref() == Some(&this) {
            continue;
        }
        let rcpts = report.verdicts.iter().filter(|v| v.name() == verdict.name()).count();
        tracing::info!(
            event = "delivery.result",
            id = %transaction.id,
            route = route.name(),
            result = this.0,
            rcpts,
            attempt,
            upstream = remote,
            latency_ms = took.as_millis() as u64,
            reason = this.1,
        );
        said_before = Some(this);
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

/// Counts the last word of a next hop on a recipient or a connection.
pub fn of_reply(metrics: &Metrics, route: Route, cause: &Cause) {
    let (class, category) = match cause {
        Cause::Fault(_) => (ReplyClass::Missing, Category::Network),
        Cause::Reply(reply) => (class_of(reply), category_of(reply)),
    };
    metrics.upstream_replies.of(route).of(class).of(category).inc();
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

/// What a reply is about, by its code alone; the signal rules will know better.
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
