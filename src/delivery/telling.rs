//! What the sender is told about the recipients of one item, and whether it is (RFC 3461 §5, RFC 3464).
//!
//! A failure is reported unless NOTIFY says otherwise. A success is reported as *relayed* when it was asked for and the
//! next hop does not report itself (RFC 3461 §5.2.2). A delay is reported once, when the operator wants such notices.
//! The null sender is never told: a report about a report could go round for ever. Whatever fails and cannot be told is
//! kept as a dead letter. Plain.

use std::time::Duration;

use super::budget::ReportBudget;
use super::dsn::{self, Action, ReportRequest, Reported};
use super::notify::{Wishes, envelope_id, is_told_of_delay, original_recipient};
use super::outcome::{Cause, Fault, Stage};
use crate::message::{LaneId, QueueId, Recipient, Route, StreamId, Timestamp};
use crate::reply::{EnhancedCode, Reply};
use crate::spool::body::NewBody;
use crate::spool::{Accept, Item, Part};

/// RFC 3463 §3.5: no answer from host; bad connection; unable to route.
const NO_ANSWER: EnhancedCode = EnhancedCode(4, 4, 1);
const BAD_CONNECTION: EnhancedCode = EnhancedCode(4, 4, 2);
const NO_ROUTE: EnhancedCode = EnhancedCode(4, 4, 4);
/// Replies without an enhanced code.
const TAKEN: EnhancedCode = EnhancedCode(2, 0, 0);
const PUT_OFF: EnhancedCode = EnhancedCode(4, 0, 0);

/// What senders are told, and how.
#[derive(Clone, Debug)]
pub struct ReportRules {
    /// Our name.
    pub hostname: String,
    /// The route that reports take.
    pub by: Route,
    /// Age of mail at which a delay is told; `None`: never.
    pub late_after: Option<Duration>,
}

impl ReportRules {
    /// The sender is to hear, if it has not, that this is late.
    pub fn is_late(&self, item: &Item, now: Timestamp) -> bool {
        self.late_after.is_some_and(|age| now >= item.accepted.after(age))
    }
}

/// Recipients whose sender was to be told, by what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reports {
    pub sent: u64,
    /// Failed, and NOTIFY does not ask for it.
    pub unwanted: u64,
    pub null_sender: u64,
    pub rate_limited: u64,
}

/// What came of a [`Telling`]. Places are those of the envelope.
#[derive(Debug, Default)]
pub struct Told {
    pub report: Option<Accept>,
    /// Failed and could not be told: to be kept as dead letters.
    pub kept: Vec<usize>,
    /// Told that they are late.
    pub late: Vec<usize>,
    pub counts: Reports,
}

struct Event {
    place: usize,
    action: Action,
    status: EnhancedCode,
    reply: Option<Reply>,
    /// The reply is the next hop's, not ours.
    by_remote: bool,
}

/// Collects what there is to tell about one item.
pub struct Telling<'a> {
    item: &'a Item,
    remote: Option<&'a str>,
    expires: Timestamp,
    now: Timestamp,
    events: Vec<Event>,
    unwanted: u64,
}

impl<'a> Telling<'a> {
    /// `remote`: who answered.
    pub fn new(item: &'a Item, remote: Option<&'a str>, expires: Timestamp, now: Timestamp) -> Self {
        Telling { item, remote, expires, now, events: Vec::new(), unwanted: 0 }
    }

    /// A next hop that does not report took it.
    pub fn relayed(&mut self, place: usize, reply: &Reply) {
        if self.wishes(place).success {
            let status = reply.enhanced.filter(|code| code.0 == 2).unwrap_or(TAKEN);
            self.push(place, Action::Relayed, status, Some(reply.clone()), true);
        }
    }

    /// Put off, and late by now.
    pub fn delayed(&mut self, place: usize, stage: Stage, cause: &Cause) {
        if !self.wishes(place).delay || is_told_of_delay(&self.recipient(place).parameters) {
            return;
        }
        let status = match cause {
            Cause::Reply(reply) => reply.enhanced.filter(|code| code.0 == 4).unwrap_or(PUT_OFF),
            Cause::Fault(Fault::Unresolved(_)) => NO_ROUTE,
            Cause::Fault(_) if stage == Stage::Connect => NO_ANSWER,
            Cause::Fault(_) => BAD_CONNECTION,
        };
        self.push(place, Action::Delayed, status, cause.reply().cloned(), true);
    }

    /// Final. `by_remote`: the reply is the next hop's.
    pub fn failed(&mut self, place: usize, status: EnhancedCode, reply: Option<Reply>, by_remote: bool) {
        // A report that fails is kept whatever its parameters say.
        if self.wishes(place).failure || self.item.envelope.reverse_path.is_empty() {
            self.push(place, Action::Failed, status, reply, by_remote);
        } else {
            self.unwanted += 1;
        }
    }

    /// Makes the report, if there is anything to tell and somebody who may be told.
    pub fn tell(self, rules: &ReportRules, header: &[u8], fresh: QueueId, budget: &mut ReportBudget) -> Told {
        let mut told = Told { counts: Reports { unwanted: self.unwanted, ..Reports::default() }, ..Told::default() };
        let of = |action: Action| self.events.iter().filter(move |e| e.action == action).map(|e| e.place);
        let count = self.events.len() as u64;
        if count == 0 {
            return told;
        }
        let sender = &self.item.envelope.reverse_path;
        if sender.is_empty() {
            told.kept = of(Action::Failed).collect();
            told.counts.null_sender = told.kept.len() as u64;
        } else if !budget.take(sender, self.now) {
            told.kept = of(Action::Failed).collect();
            told.counts.rate_limited = count;
        } else {
            told.late = of(Action::Delayed).collect();
            told.counts.sent = count;
            told.report = Some(self.report(rules, header, fresh));
        }
        told
    }

    fn report(&self, rules: &ReportRules, header: &[u8], fresh: QueueId) -> Accept {
        let envelope = &self.item.envelope;
        let recipients: Vec<_> = self.events.iter().map(|event| self.reported(event)).collect();
        let octets = dsn::report(&ReportRequest {
            reporting_mta: &rules.hostname,
            report_id: fresh,
            original_id: self.item.message,
            sender: &envelope.reverse_path,
            envelope_id: envelope_id(&envelope.parameters),
            arrived: self.item.accepted,
            now: self.now,
            recipients: &recipients,
            original: header,
        });
        let sender = Recipient { path: envelope.reverse_path.clone(), parameters: Default::default() };
        let part =
            Part { lane: LaneId::TOTAL, stream: StreamId::DEFAULT, recipients: vec![sender], only: Some(rules.by) };
        // The report itself is ASCII; its recipient may not be.
        let parameters: &'static [u8] = if envelope.reverse_path.is_ascii() { b"" } else { b"SMTPUTF8" };
        Accept {
            id: fresh,
            reverse_path: Default::default(),
            parameters: parameters.into(),
            parts: vec![part],
            body: NewBody::small(octets),
        }
    }

    fn reported<'e>(&'e self, event: &'e Event) -> Reported<'e> {
        let recipient = self.recipient(event.place);
        Reported {
            action: event.action,
            path: &recipient.path,
            original: original_recipient(&recipient.parameters),
            status: event.status,
            reply: event.reply.as_ref(),
            remote_mta: self.remote.filter(|_| event.by_remote),
            last_attempt: Some(self.now),
            retried_until: (event.action == Action::Delayed).then_some(self.expires),
        }
    }

    fn wishes(&self, place: usize) -> Wishes {
        Wishes::of(&self.recipient(place).parameters)
    }

    fn recipient(&self, place: usize) -> &'a Recipient {
        &self.item.envelope.recipients[place]
    }

    fn push(&mut self, place: usize, action: Action, status: EnhancedCode, reply: Option<Reply>, by_remote: bool) {
        self.events.push(Event { place, action, status, reply, by_remote });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Envelope, Queue, Reason};
    use crate::spool::{BodyId, ItemId, State};

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn rules() -> ReportRules {
        ReportRules { hostname: "relay.example".into(), by: Route::Legacy, late_after: Some(Duration::from_secs(60)) }
    }

    /// One recipient for each set of parameters.
    fn item(sender: &'static str, parameters: &[&'static str]) -> Item {
        let recipient = |p: &&'static str| Recipient { path: "x@example.net".into(), parameters: p.as_bytes().into() };
        Item {
            id: ItemId(1),
            message: QueueId(7),
            body: BodyId(1),
            size: 10,
            queue: Queue::Legacy,
            lane: LaneId::TOTAL,
            stream: StreamId::DEFAULT,
            state: State::InFlight,
            maybe: false,
            reason: Reason::OverQuota,
            accepted: NOW,
            due: NOW,
            deadline: None,
            expires: None,
            attempts: 0,
            reservation: None,
            envelope: Envelope {
                reverse_path: sender.into(),
                parameters: "RET=FULL ENVID=order+2B17".into(),
                recipients: parameters.iter().map(recipient).collect(),
            },
            last_reply: String::new(),
        }
    }

    fn refused() -> Reply {
        Reply::new(550, EnhancedCode(5, 1, 1), "nobody")
    }

    /// Tells that everybody failed.
    fn all_failed(item: &Item, budget: &mut ReportBudget) -> Told {
        let mut telling = Telling::new(item, Some("mx.example"), NOW, NOW);
        let places = 0..item.envelope.recipients.len();
        places.for_each(|place| telling.failed(place, EnhancedCode(5, 1, 1), Some(refused()), true));
        telling.tell(&rules(), b"Subject: x\r\n", QueueId(9), budget)
    }

    fn text(told: &Told) -> String {
        let NewBody::Memory { bytes, .. } = &told.report.as_ref().expect("a report").body else { panic!("in memory") };
        String::from_utf8(bytes.to_vec()).expect("ASCII")
    }

    #[test]
    fn failures_are_told_as_notify_asks_and_with_what_the_client_called_them() {
        let parameters =
            ["", "NOTIFY=NEVER", "NOTIFY=SUCCESS,DELAY", "NOTIFY=FAILURE ORCPT=rfc822;old+2Bx@example.org"];
        let told = all_failed(&item("a@example.com", &parameters), &mut ReportBudget::unlimited());
        assert_eq!(told.counts, Reports { sent: 2, unwanted: 2, ..Reports::default() });
        assert!(told.kept.is_empty(), "who did not want to know is not kept");
        let text = text(&told);
        assert_eq!(text.matches("Final-Recipient:").count(), 2);
        for line in ["Original-Envelope-Id: order+17\r\n", "Original-Recipient: rfc822; old+x@example.org\r\n"] {
            assert_eq!(text.matches(line).count(), 1, "{line}{text}");
        }
    }

    #[test]
    fn nobody_told_is_no_report() {
        let told = all_failed(&item("a@example.com", &["NOTIFY=NEVER"]), &mut ReportBudget::unlimited());
        assert!(told.report.is_none() && told.counts.unwanted == 1);
    }

    #[test]
    fn the_null_sender_is_never_told_and_all_that_failed_is_kept() {
        let told = all_failed(&item("", &["", "NOTIFY=NEVER"]), &mut ReportBudget::unlimited());
        assert!(told.report.is_none());
        assert_eq!((told.kept, told.counts.null_sender), (vec![0, 1], 2));
    }

    #[test]
    fn a_sender_that_has_had_its_reports_gets_no_more_and_what_failed_is_kept() {
        let mut budget = ReportBudget::new(1);
        let item = item("a@example.com", &["", "NOTIFY=NEVER"]);
        assert!(all_failed(&item, &mut budget).report.is_some());
        let told = all_failed(&item, &mut budget);
        assert!(told.report.is_none());
        assert_eq!((told.kept, told.counts), (vec![0], Reports { rate_limited: 1, unwanted: 1, ..Reports::default() }));
    }

    #[test]
    fn a_success_is_told_only_when_it_was_asked_for() {
        let item = item("a@example.com", &["", "NOTIFY=NEVER", "NOTIFY=FAILURE", "NOTIFY=SUCCESS"]);
        let mut telling = Telling::new(&item, Some("mx.example"), NOW, NOW);
        let taken = Reply { code: 250, enhanced: None, text: "ok".into() };
        (0..4).for_each(|place| telling.relayed(place, &taken));
        let told = telling.tell(&rules(), b"", QueueId(9), &mut ReportBudget::unlimited());
        assert_eq!(told.counts.sent, 1);
        let text = text(&told);
        for line in ["Action: relayed\r\n", "Status: 2.0.0\r\n", "Remote-MTA: dns; mx.example\r\n"] {
            assert_eq!(text.matches(line).count(), 1, "{line}{text}");
        }
    }

    #[test]
    fn a_delay_is_told_once_to_those_who_want_it() {
        let mut item = item("a@example.com", &["", "NOTIFY=FAILURE", "NOTIFY=DELAY", "NOTIFY=NEVER"]);
        let late = |item: &Item| {
            let mut telling = Telling::new(item, None, NOW.after(Duration::from_secs(3600)), NOW);
            let cause = Cause::Fault(Fault::TimedOut);
            (0..4).for_each(|place| telling.delayed(place, Stage::Connect, &cause));
            telling.tell(&rules(), b"", QueueId(9), &mut ReportBudget::unlimited())
        };
        let told = late(&item);
        assert_eq!((told.late.clone(), told.counts.sent), (vec![0, 2], 2));
        let text = text(&told);
        for line in ["Action: delayed\r\n", "Status: 4.4.1\r\n", "Will-Retry-Until: "] {
            assert_eq!(text.matches(line).count(), 2, "{line}{text}");
        }
        for place in told.late {
            let parameters = &mut item.envelope.recipients[place].parameters;
            *parameters = super::super::notify::told_of_delay(parameters);
        }
        assert!(late(&item).report.is_none(), "they know");
        assert!(rules().is_late(&item, NOW.after(Duration::from_secs(60))));
        assert!(!rules().is_late(&item, NOW.after(Duration::from_secs(59))));
        assert!(!ReportRules { late_after: None, ..rules() }.is_late(&item, Timestamp::NEVER));
    }

    #[test]
    fn a_report_to_an_address_beyond_ascii_says_so() {
        let told = all_failed(&item("\u{fc}@example.com", &[""]), &mut ReportBudget::unlimited());
        assert_eq!(told.report.as_ref().expect("a report").parameters, "SMTPUTF8");
        assert!(text(&told).contains("To: sender:;\r\n"), "the text itself stays ASCII");
        let plain = all_failed(&item("a@example.com", &[""]), &mut ReportBudget::unlimited());
        assert!(plain.report.expect("a report").parameters.is_empty());
    }
}
