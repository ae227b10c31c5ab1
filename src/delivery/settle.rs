//! From the verdicts of an attempt to what the spool writes: the fate of each recipient, and the report on failures.
//!
//! Until signal rules judge replies, the class decides: 5xx is final, everything else is tried again. Plain: time,
//! randomness and the fresh id come in.

use std::time::Duration;

use super::dsn::{self, FailedRecipient, ReportRequest};
use super::fallback::FallbackRules;
use super::outcome::{Cause, Verdict};
use crate::message::{LaneId, QueueId, Reason, Recipient, Route, StreamId, Timestamp};
use crate::policy::RetrySchedule;
use crate::reply::{EnhancedCode, Reply};
use crate::spool::body::NewBody;
use crate::spool::{Accept, Fate, Item, Part, Settle};

/// Longest part of a peer's reply that is stored and logged, in characters.
const REPLY_KEPT: usize = 512;
/// How long a message with nobody to report to is kept after it failed.
const DEAD_LETTER_DAYS: u64 = 5;
/// RFC 3463 §3.5: delivery time expired.
const EXPIRED: EnhancedCode = EnhancedCode(4, 4, 7);
/// A refusal without an enhanced code.
const UNDEFINED: EnhancedCode = EnhancedCode(5, 0, 0);

/// What failure means here.
#[derive(Clone, Debug)]
pub struct SettleRules {
    /// When to try again.
    pub retry: RetrySchedule,
    /// `queue.max_age`, from the first attempt.
    pub max_age: Duration,
    /// Our name in reports.
    pub hostname: String,
    /// The route our own reports take.
    pub reports_by: Route,
    /// Failures of the new server after which the legacy server takes the mail at once.
    pub fallback: FallbackRules,
    /// Also mail without a deadline, which is all mail where there is no ramp; where there is one, it is mail that is
    /// to wait for the new server however long.
    pub undated_falls_back: bool,
}

/// An attempt, or the end of a life, that is to be written down.
pub struct Ended<'a> {
    /// As claimed.
    pub item: Item,
    /// One for each recipient.
    pub verdicts: &'a [Verdict],
    /// Who answered.
    pub remote: Option<&'a str>,
    /// The first octets of the message, for the report; may be empty.
    pub header: &'a [u8],
    /// There is another route, and it is not down.
    pub fallback: bool,
}

impl SettleRules {
    /// Without a fallback.
    pub fn new(retry: RetrySchedule, max_age: Duration, hostname: String, reports_by: Route) -> Self {
        let fallback = FallbackRules::default();
        SettleRules { retry, max_age, hostname, reports_by, fallback, undated_falls_back: false }
    }

    /// What the spool writes after an attempt.
    pub fn settle(&self, ended: Ended<'_>, now: Timestamp, random: &mut fastrand::Rng, fresh: QueueId) -> Settle {
        let item = ended.item;
        let expires = item.expires.unwrap_or(now.after(self.max_age));
        // Together they stay one item: the same moment for all that wait.
        let due = now.after(self.retry.delay(item.attempts + 1, random)).min(expires);
        // What may have left by this route, or was sent here by an operator, stays on it.
        let falls_back = ended.fallback
            && !item.maybe
            && item.reason != Reason::Manual
            && (item.deadline.is_some() || self.undated_falls_back);
        let mut failed = Vec::new();
        let mut fates = Vec::with_capacity(ended.verdicts.len());
        for (recipient, verdict) in item.envelope.recipients.iter().zip(ended.verdicts) {
            let fate = match verdict {
                Verdict::Delivered { .. } => Fate::Relayed,
                Verdict::Untouched => Fate::Untouched,
                Verdict::Unknown { .. } => Fate::Unknown { due },
                verdict if falls_back && now < expires && self.fallback.apply_to(verdict) => {
                    Fate::Rerouted { reason: Reason::Fallback }
                }
                Verdict::Deferred { .. } if now < expires => Fate::Deferred { due },
                Verdict::Deferred { cause, .. } => {
                    failed.push((recipient, EXPIRED, cause.reply().cloned()));
                    self.final_fate(&item, now)
                }
                Verdict::Rejected { reply, .. } => {
                    failed.push((recipient, reply.enhanced.unwrap_or(UNDEFINED), Some(reply.clone())));
                    self.final_fate(&item, now)
                }
            };
            fates.push(fate);
        }
        let reply = ended.verdicts.iter().find_map(said).unwrap_or_default();
        let report = self.report(&item, &failed, ended.remote, ended.header, now, fresh);
        Settle { item, fates, reply, expires, report }
    }

    /// What the spool writes when a message was not delivered in its time.
    pub fn expire(&self, item: Item, header: &[u8], now: Timestamp, fresh: QueueId) -> Settle {
        let last = Reply::from_line(&item.last_reply);
        let failed: Vec<_> = item.envelope.recipients.iter().map(|r| (r, EXPIRED, last.clone())).collect();
        let report = self.report(&item, &failed, None, header, now, fresh);
        let fates = vec![self.final_fate(&item, now); item.envelope.recipients.len()];
        let (reply, expires) = (item.last_reply.clone(), item.expires.unwrap_or(now));
        drop(failed);
        Settle { item, fates, reply, expires, report }
    }

    /// Nobody is told about a report that cannot be delivered: it is kept for the operator.
    fn final_fate(&self, item: &Item, now: Timestamp) -> Fate {
        match item.envelope.reverse_path.is_empty() {
            false => Fate::Failed,
            true => Fate::Dead { until: now.after(Duration::from_secs(DEAD_LETTER_DAYS * 24 * 3600)) },
        }
    }

    fn report(
        &self,
        item: &Item,
        failed: &[(&Recipient, EnhancedCode, Option<Reply>)],
        remote: Option<&str>,
        header: &[u8],
        now: Timestamp,
        fresh: QueueId,
    ) -> Option<Accept> {
        if failed.is_empty() || item.envelope.reverse_path.is_empty() {
            return None;
        }
        let recipients: Vec<_> = failed
            .iter()
            .map(|(recipient, status, reply)| FailedRecipient {
                path: &recipient.path,
                original: None,
                status: *status,
                reply: reply.as_ref(),
                remote_mta: remote,
                last_attempt: Some(now),
            })
            .collect();
        let octets = dsn::report(&ReportRequest {
            reporting_mta: &self.hostname,
            report_id: fresh,
            original_id: item.message,
            sender: &item.envelope.reverse_path,
            envelope_id: None,
            arrived: item.accepted,
            now,
            failed: &recipients,
            original: header,
        });
        let sender = Recipient { path: item.envelope.reverse_path.clone(), parameters: Default::default() };
        let part = Part {
            lane: LaneId::TOTAL,
            stream: StreamId::DEFAULT,
            recipients: vec![sender],
            only: Some(self.reports_by),
        };
        Some(Accept {
            id: fresh,
            reverse_path: Default::default(),
            parameters: Default::default(),
            parts: vec![part],
            body: NewBody::small(octets),
        })
    }
}

/// What was said to a recipient that was not delivered, on one line.
pub fn said(verdict: &Verdict) -> Option<String> {
    let text = match verdict {
        Verdict::Delivered { .. } | Verdict::Untouched => return None,
        Verdict::Deferred { stage, cause: Cause::Fault(fault) } => format!("{} (at {})", fault, stage.name()),
        Verdict::Deferred { cause, .. } => cause.to_string(),
        Verdict::Rejected { reply, .. } => reply.to_string(),
        Verdict::Unknown { fault } => format!("no answer to the final dot: {fault}"),
    };
    Some(text.chars().take(REPLY_KEPT).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::outcome::{Fault, Stage};
    use crate::message::{Envelope, Queue};
    use crate::spool::{BodyId, ItemId, State};

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
    const FRESH: QueueId = QueueId(99);

    fn rules() -> SettleRules {
        let retry = RetrySchedule::new(vec![Duration::from_secs(60), Duration::from_secs(300)], 0.0).unwrap();
        SettleRules::new(retry, Duration::from_secs(3600), "relay.example".into(), Route::Legacy)
    }

    fn item(sender: &'static str, recipients: usize) -> Item {
        let recipient = Recipient { path: "x@example.net".into(), parameters: Default::default() };
        Item {
            id: ItemId(1),
            message: QueueId(7),
            body: BodyId(1),
            size: 10,
            queue: Queue::New(LaneId::TOTAL),
            lane: LaneId::TOTAL,
            stream: StreamId::DEFAULT,
            state: State::InFlight,
            maybe: false,
            reason: Reason::InQuota,
            accepted: NOW,
            due: NOW,
            deadline: None,
            expires: None,
            attempts: 0,
            reservation: None,
            envelope: Envelope {
                reverse_path: sender.into(),
                parameters: Default::default(),
                recipients: vec![recipient; recipients],
            },
            last_reply: String::new(),
        }
    }

    fn settle(item: Item, verdicts: &[Verdict], now: Timestamp) -> Settle {
        let header = b"Subject: x\r\n\r\n";
        let ended = Ended { item, verdicts, remote: Some("mx.example"), header, fallback: false };
        rules().settle(ended, now, &mut fastrand::Rng::with_seed(1), FRESH)
    }

    fn reply(code: u16, enhanced: EnhancedCode) -> Reply {
        Reply::new(code, enhanced, "text")
    }

    #[test]
    fn each_recipient_gets_the_fate_of_its_own_verdict() {
        let verdicts = [
            Verdict::Delivered { reply: reply(250, EnhancedCode(2, 0, 0)) },
            Verdict::Deferred { stage: Stage::Rcpt, cause: Cause::Reply(reply(451, EnhancedCode(4, 7, 1))) },
            Verdict::Rejected { stage: Stage::Rcpt, reply: reply(550, EnhancedCode(5, 1, 1)) },
            Verdict::Unknown { fault: Fault::Closed },
            Verdict::Untouched,
        ];
        let settle = settle(item("a@example.com", 5), &verdicts, NOW);
        let due = NOW.after(Duration::from_secs(60));
        let expect = [Fate::Relayed, Fate::Deferred { due }, Fate::Failed, Fate::Unknown { due }, Fate::Untouched];
        assert_eq!(settle.fates, expect);
        assert_eq!(settle.reply, "451 4.7.1 text");
        assert_eq!(settle.expires, NOW.after(Duration::from_secs(3600)));
        let report = settle.report.expect("one recipient failed");
        assert!(report.reverse_path.is_empty());
        assert_eq!(report.parts[0].only, Some(Route::Legacy));
        assert_eq!(report.parts[0].recipients[0].path, "a@example.com");
    }

    #[test]
    fn the_null_sender_gets_no_report_and_its_mail_is_kept() {
        let verdicts = [Verdict::Rejected { stage: Stage::Mail, reply: reply(550, EnhancedCode(5, 7, 1)) }];
        let settle = settle(item("", 1), &verdicts, NOW);
        assert!(matches!(settle.fates[..], [Fate::Dead { .. }]));
        assert!(settle.report.is_none());
    }

    #[test]
    fn a_refusal_after_the_lifetime_is_final_and_reported_as_expired() {
        let mut old = item("a@example.com", 1);
        (old.expires, old.attempts) = (Some(NOW), 9);
        let deferred =
            [Verdict::Deferred { stage: Stage::Rcpt, cause: Cause::Reply(reply(451, EnhancedCode(4, 7, 1))) }];
        let settle = settle(old, &deferred, NOW);
        assert_eq!(settle.fates, [Fate::Failed]);
        let report = settle.report.expect("a report");
        let NewBody::Memory { bytes, .. } = report.body else { panic!("in memory") };
        assert!(String::from_utf8_lossy(&bytes).contains("Status: 4.4.7"));
    }

    #[test]
    fn a_retry_is_never_due_after_the_end_of_the_lifetime() {
        let mut old = item("a@example.com", 1);
        old.expires = Some(NOW.after(Duration::from_secs(10)));
        let deferred = [Verdict::Deferred { stage: Stage::Connect, cause: Cause::Fault(Fault::TimedOut) }];
        let settle = settle(old, &deferred, NOW);
        assert_eq!(settle.fates, [Fate::Deferred { due: NOW.after(Duration::from_secs(10)) }]);
    }

    #[test]
    fn what_expires_is_reported_with_the_last_reply() {
        let mut old = item("a@example.com", 2);
        old.last_reply = "451 4.7.1 greylisted".into();
        let settle = rules().expire(old, b"", NOW, FRESH);
        assert_eq!(settle.fates, [Fate::Failed, Fate::Failed]);
        let NewBody::Memory { bytes, .. } = settle.report.expect("a report").body else { panic!("in memory") };
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("Status: 4.4.7") && text.contains("greylisted"), "{text}");
    }
}
