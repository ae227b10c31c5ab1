//! From the verdicts of an attempt to what the spool writes: the fate of each recipient. What its sender is told about it
//! is in [`super::telling`].
//!
//! Where a rule knows what a refusal means ([`super::feedback`]) that decides; else its class: 5xx is final, everything
//! else is tried again, or goes by the other route where [`super::fallback`] lets it. Plain: time, randomness and the
//! fresh id come in.

use std::borrow::Cow;
use std::time::Duration;

use super::budget::ReportBudget;
use super::fallback::FallbackRules;
use super::feedback::Heard;
use super::notify::told_of_delay;
use super::outcome::{Cause, Stage, Verdict};
use super::telling::{ReportRules, Reports, Telling, Told};
use crate::message::{QueueId, Reason, Route, Timestamp};
use crate::policy::RetrySchedule;
use crate::reply::{EnhancedCode, Reply};
use crate::spool::{Fate, Item, Settle};

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
    /// `queue.max_age`, from the first attempt where it has not begun before.
    pub max_age: Duration,
    /// What senders are told.
    pub reports: ReportRules,
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
    /// What is known about each of them; empty: nothing.
    pub heard: &'a [Heard],
    /// Who answered.
    pub remote: Option<&'a str>,
    /// The first octets of the message, for the report; may be empty.
    pub header: &'a [u8],
    /// There is another route, and it is not down.
    pub fallback: bool,
    /// There is another route, down or not.
    pub has_legacy: bool,
    /// The next hop offers DSN: what was delivered is its to report.
    pub reports_itself: bool,
}

/// What the spool writes, and what there is to count.
#[derive(Debug)]
pub struct Settled {
    pub settle: Settle,
    pub reports: Reports,
    /// Recipients given up for age.
    pub expired: u64,
}

impl SettleRules {
    /// Without a fallback, and without notices of delay.
    pub fn new(retry: RetrySchedule, max_age: Duration, hostname: String, reports_by: Route) -> Self {
        let fallback = FallbackRules::default();
        let reports = ReportRules { hostname, by: reports_by, late_after: None };
        SettleRules { retry, max_age, reports, fallback, undated_falls_back: false }
    }

    /// What the spool writes after an attempt.
    pub fn settle(
        &self,
        ended: Ended<'_>,
        now: Timestamp,
        random: &mut fastrand::Rng,
        fresh: QueueId,
        budget: &mut ReportBudget,
    ) -> Settled {
        let item = ended.item;
        let expires = item.expires.unwrap_or(now.after(self.max_age));
        // Together they stay one item: the same moment for all that wait.
        let due = now.after(self.retry.delay(item.attempts + 1, random)).min(expires);
        // What may have left by this route, or was sent here by an operator, stays on it.
        let may_leave = !item.maybe
            && item.reason != Reason::Manual
            && (item.deadline.is_some() || self.undated_falls_back || item.reason == Reason::Pinned);
        let falls_back = ended.fallback && may_leave && item.reason != Reason::Pinned;
        let mut telling = Telling::new(&item, ended.remote, expires, now);
        let mut expired = 0;
        let mut fates = Vec::with_capacity(ended.verdicts.len());
        for (place, verdict) in ended.verdicts.iter().enumerate().take(item.envelope.recipients.len()) {
            let heard = ended.heard.get(place);
            let verdict = &*as_judged(verdict, heard);
            let judgement = heard.and_then(|heard| heard.judgement.as_deref());
            let leaves = may_leave && ended.has_legacy && now < expires;
            let instead = heard.filter(|_| leaves).and_then(|heard| self.legacy_instead(verdict, heard));
            let fate = match verdict {
                Verdict::Delivered { reply } => {
                    if !ended.reports_itself {
                        telling.relayed(place, reply);
                    }
                    Fate::Relayed
                }
                Verdict::Untouched => Fate::Untouched,
                Verdict::Unknown { .. } => Fate::Unknown { due },
                _ if instead.is_some() => Fate::Rerouted { reason: instead.unwrap_or(Reason::Fallback) },
                verdict if falls_back && now < expires && self.fallback.apply_to(verdict) => {
                    Fate::Rerouted { reason: Reason::Fallback }
                }
                Verdict::Deferred { stage, cause } if now < expires => {
                    if self.reports.is_late(&item, now) {
                        telling.delayed(place, *stage, cause);
                    }
                    match judgement {
                        Some(judged) if judged.of_domain && !judged.legacy_helps => Fate::Kept { due },
                        _ => Fate::Deferred { due },
                    }
                }
                Verdict::Deferred { cause, .. } => {
                    expired += 1;
                    telling.failed(place, EXPIRED, cause.reply().cloned(), true);
                    Fate::Failed
                }
                Verdict::Rejected { stage, reply } => {
                    let status = reply.enhanced.filter(|code| code.0 == 5).unwrap_or(UNDEFINED);
                    telling.failed(place, status, Some(reply.clone()), *stage != Stage::Check);
                    Fate::Failed
                }
            };
            fates.push(fate);
        }
        let reply = ended.verdicts.iter().find_map(said).unwrap_or_default();
        let told = telling.tell(&self.reports, ended.header, fresh, budget);
        self.settled(item, fates, reply, expires, told, expired, now)
    }

    /// Why the legacy server takes what was refused, if a rule says that it is likely to be better received.
    fn legacy_instead(&self, verdict: &Verdict, heard: &Heard) -> Option<Reason> {
        let judgement = heard.judgement.as_deref()?;
        match verdict {
            Verdict::Rejected { .. } if self.fallback.forgive(judgement) => Some(Reason::Fallback),
            Verdict::Deferred { .. } if heard.braked && judgement.legacy_helps => Some(Reason::Brake),
            _ => None,
        }
    }

    /// What the spool writes when a message was not delivered in its time.
    pub fn expire(
        &self,
        item: Item,
        header: &[u8],
        now: Timestamp,
        fresh: QueueId,
        budget: &mut ReportBudget,
    ) -> Settled {
        let last = Reply::from_line(&item.last_reply);
        let expires = item.expires.unwrap_or(now);
        let recipients = item.envelope.recipients.len();
        let mut telling = Telling::new(&item, None, expires, now);
        (0..recipients).for_each(|place| telling.failed(place, EXPIRED, last.clone(), true));
        let told = telling.tell(&self.reports, header, fresh, budget);
        let reply = item.last_reply.clone();
        self.settled(item, vec![Fate::Failed; recipients], reply, expires, told, recipients as u64, now)
    }

    #[allow(clippy::too_many_arguments)] // the end of two functions, nothing of its own
    fn settled(
        &self,
        mut item: Item,
        mut fates: Vec<Fate>,
        reply: String,
        expires: Timestamp,
        told: Told,
        expired: u64,
        now: Timestamp,
    ) -> Settled {
        // Whoever should have been told and was not: kept for the operator.
        let dead = Fate::Dead { until: now.after(Duration::from_secs(DEAD_LETTER_DAYS * 24 * 3600)) };
        told.kept.iter().for_each(|place| fates[*place] = dead);
        for place in told.late {
            let parameters = &mut item.envelope.recipients[place].parameters;
            *parameters = told_of_delay(parameters);
        }
        let settle = Settle { item, fates, reply, expires, report: told.report };
        Settled { settle, reports: told.counts, expired }
    }
}

/// A 5xx that means later is a 4xx.
fn as_judged<'a>(verdict: &'a Verdict, heard: Option<&Heard>) -> Cow<'a, Verdict> {
    let temporary = heard.and_then(|heard| heard.judgement.as_deref()).is_some_and(|judgement| judgement.temporary);
    match verdict {
        Verdict::Rejected { stage, reply } if temporary => {
            Cow::Owned(Verdict::Deferred { stage: *stage, cause: Cause::Reply(reply.clone()) })
        }
        verdict => Cow::Borrowed(verdict),
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
    use crate::delivery::feedback::{About, Judgement};
    use crate::delivery::outcome::Fault;
    use crate::message::{Envelope, LaneId, Queue, Recipient, StreamId};
    use crate::spool::body::NewBody;
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

    fn settled(rules: &SettleRules, item: Item, verdicts: &[Verdict], now: Timestamp, fallback: bool) -> Settled {
        let (remote, header) = (Some("mx.example"), b"Subject: x\r\n\r\n");
        let heard = &[];
        let ended =
            Ended { item, verdicts, heard, remote, header, fallback, has_legacy: fallback, reports_itself: true };
        rules.settle(ended, now, &mut fastrand::Rng::with_seed(1), FRESH, &mut ReportBudget::unlimited())
    }

    fn settle(item: Item, verdicts: &[Verdict], now: Timestamp) -> Settle {
        settled(&rules(), item, verdicts, now, false).settle
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
        let settled = rules().expire(old, b"", NOW, FRESH, &mut ReportBudget::unlimited());
        assert_eq!(settled.expired, 2);
        let settle = settled.settle;
        assert_eq!(settle.fates, [Fate::Failed, Fate::Failed]);
        let NewBody::Memory { bytes, .. } = settle.report.expect("a report").body else { panic!("in memory") };
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("Status: 4.4.7") && text.contains("greylisted"), "{text}");
    }

    #[test]
    fn a_broken_session_goes_by_the_other_route_only_where_everything_lets_it() {
        let cut = [Verdict::Deferred { stage: Stage::Data, cause: Cause::Fault(Fault::Closed) }];
        let refused =
            [Verdict::Deferred { stage: Stage::Data, cause: Cause::Reply(reply(451, EnhancedCode(4, 3, 0))) }];
        let all = SettleRules { fallback: FallbackRules::ALL, ..rules() };
        let dated = || Item { deadline: Some(NOW), ..item("a@example.com", 1) };
        let fate = |rules: &SettleRules, item, verdicts: &[Verdict], fallback| {
            settled(rules, item, verdicts, NOW, fallback).settle.fates[0]
        };
        let rerouted = Fate::Rerouted { reason: Reason::Fallback };
        assert_eq!(fate(&all, dated(), &cut, true), rerouted);
        assert_ne!(fate(&all, dated(), &cut, false), rerouted, "there is no other route");
        assert_ne!(fate(&all, dated(), &refused, true), rerouted, "it works and said no");
        assert_ne!(fate(&rules(), dated(), &cut, true), rerouted, "no rule");
        assert_ne!(fate(&all, Item { maybe: true, ..dated() }, &cut, true), rerouted, "it may have left");
        assert_ne!(fate(&all, Item { reason: Reason::Manual, ..dated() }, &cut, true), rerouted, "an operator said so");
        assert_ne!(fate(&all, item("a@example.com", 1), &cut, true), rerouted, "it is to wait");
        let undated = SettleRules { undated_falls_back: true, ..all.clone() };
        assert_eq!(fate(&undated, item("a@example.com", 1), &cut, true), rerouted);
        let old = Item { expires: Some(NOW), ..dated() };
        assert_eq!(fate(&all, old, &cut, true), Fate::Failed, "its time is over");
        let unknown = [Verdict::Unknown { fault: Fault::Closed }];
        assert!(matches!(fate(&all, dated(), &unknown, true), Fate::Unknown { .. }));
    }

    /// What becomes of one refusal by a server with a legacy beside it, the rule saying this.
    fn judged(code: u16, judgement: Judgement, braked: bool, item: Item, rules: &SettleRules) -> Fate {
        let reply = reply(code, EnhancedCode((code / 100) as u8, 7, 1));
        let verdict = match code {
            400..500 => Verdict::Deferred { stage: Stage::Dot, cause: Cause::Reply(reply) },
            _ => Verdict::Rejected { stage: Stage::Dot, reply },
        };
        let heard = [Heard { lane: LaneId(1), judgement: Some(judgement.into()), braked }];
        let (verdicts, heard) = (&[verdict][..], &heard[..]);
        // Legacy is down just now: no reason to bounce what it will take later.
        let (fallback, has_legacy, reports_itself) = (false, true, true);
        let ended = Ended { item, verdicts, heard, remote: None, header: b"", fallback, has_legacy, reports_itself };
        let budget = &mut ReportBudget::unlimited();
        rules.settle(ended, NOW, &mut fastrand::Rng::with_seed(1), FRESH, budget).settle.fates[0]
    }

    fn about(about: About) -> Judgement {
        Judgement { rule: "x".into(), about, temporary: false, of_domain: false, legacy_helps: true }
    }

    #[test]
    fn class_and_scope_decide_what_becomes_of_a_refusal_and_never_its_digit_alone() {
        let all = SettleRules { fallback: FallbackRules::ALL, ..rules() };
        let due = NOW.after(Duration::from_secs(60));
        let (later, by_fallback) = (Fate::Deferred { due }, Fate::Rerouted { reason: Reason::Fallback });
        let by_brake = Fate::Rerouted { reason: Reason::Brake };
        let domain = |class| Judgement { of_domain: true, legacy_helps: false, ..about(class) };
        let mailbox = Judgement { legacy_helps: false, ..about(About::Mailbox) };
        let temporary = Judgement { temporary: true, ..about(About::Rate) };
        // Code and meaning; the fate while the lane is open, and while its brake is on.
        let rows = [
            (421, about(About::Rate), later, by_brake),
            (451, about(About::Reputation), later, by_brake),
            (550, about(About::Reputation), by_fallback, by_fallback),
            (550, about(About::Auth), by_fallback, by_fallback),
            (554, about(About::Config), by_fallback, by_fallback),
            (550, temporary.clone(), later, by_brake),
            (
                550,
                Judgement { of_domain: true, legacy_helps: false, ..temporary },
                Fate::Kept { due },
                Fate::Kept { due },
            ),
            (421, domain(About::Rate), Fate::Kept { due }, Fate::Kept { due }),
            (550, domain(About::Reputation), Fate::Failed, Fate::Failed),
            (450, mailbox.clone(), later, later),
            (552, mailbox, Fate::Failed, Fate::Failed),
            (550, Judgement { legacy_helps: false, ..about(About::Content) }, Fate::Failed, Fate::Failed),
            (554, about(About::Content), Fate::Failed, Fate::Failed),
        ];
        for (code, judgement, open, braked) in rows {
            let item = || Item { deadline: Some(NOW), ..item("a@example.com", 1) };
            let fate = |on| judged(code, judgement.clone(), on, item(), &all);
            assert_eq!((fate(false), fate(true)), (open, braked), "{code} {judgement:?}");
        }
    }

    #[test]
    fn a_refusal_for_reputation_stays_one_where_the_other_route_may_not_be_taken() {
        let all = SettleRules { fallback: FallbackRules::ALL, ..rules() };
        let fate = |item, rules: &SettleRules| judged(550, about(About::Reputation), true, item, rules);
        let dated = || Item { deadline: Some(NOW), ..item("a@example.com", 1) };
        let rerouted = Fate::Rerouted { reason: Reason::Fallback };
        assert_eq!(fate(dated(), &all), rerouted);
        assert_eq!(fate(Item { reason: Reason::Pinned, ..item("a@example.com", 1) }, &all), rerouted, "it waited here");
        assert_eq!(fate(item("a@example.com", 1), &all), Fate::Failed, "policy hold: never legacy");
        assert_eq!(fate(Item { maybe: true, ..dated() }, &all), Fate::Failed, "it may have left");
        assert_eq!(fate(Item { reason: Reason::Manual, ..dated() }, &all), Fate::Failed, "an operator said so");
        assert_eq!(fate(Item { expires: Some(NOW), ..dated() }, &all), Fate::Failed, "its time is over");
        let no_rule = SettleRules { fallback: FallbackRules { reputation: false, ..FallbackRules::ALL }, ..rules() };
        assert_eq!(fate(dated(), &no_rule), Fate::Failed);
        let maybe = Item { maybe: true, ..dated() };
        assert!(matches!(judged(421, about(About::Rate), true, maybe, &all), Fate::Deferred { .. }));
    }
}
