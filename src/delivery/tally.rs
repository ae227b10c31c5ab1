//! Keeps the verdicts of one transaction while its replies arrive, by the table in [`super::outcome`].
//!
//! Every recipient is in one place: not yet named, taken by RCPT, or with its verdict. Whatever ends the transaction
//! closes the places that are open, so the report has a verdict for everybody. No I/O.

use super::outcome::{Cause, Fate, Fault, Meaning, Report, Stage, Verdict, meaning};
use crate::reply::Reply;

/// A refusal of that one RCPT which only says "not so many at once" (RFC 5321 §4.5.3.1.10 wants 552 read as 452).
/// X.2.X speaks of that one mailbox (full, disabled), so it is not that.
fn is_too_many(reply: &Reply) -> bool {
    matches!(reply.code, 452 | 552) && reply.enhanced.is_none_or(|e| e.1 != 2)
}

/// What the transaction does after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GoOn,
    /// This transaction is over; the connection is good once the answers still owed are read and RSET is said.
    Over,
    /// Nothing more can be said on this connection.
    Close,
}

/// One recipient while its transaction runs.
#[derive(Clone, Debug)]
enum Place {
    Unsaid,
    /// RCPT accepted: whatever ends the transaction ends it for this one.
    Taken,
    Said(Verdict),
}

/// Keeps the verdicts of one transaction while its replies arrive.
#[derive(Debug)]
pub struct Tally {
    places: Vec<Place>,
    reused: bool,
    stop_naming: bool,
    dot_written: bool,
    fate: Fate,
    ended_by: Option<(Stage, Cause)>,
}

impl Tally {
    /// `reused`: an earlier message went over this connection, so losing it before the reply to MAIL says nothing
    /// about this one.
    pub fn new(recipients: usize, reused: bool) -> Self {
        Tally {
            places: vec![Place::Unsaid; recipients],
            reused,
            stop_naming: false,
            dot_written: false,
            fate: Fate::Keep,
            ended_by: None,
        }
    }

    /// At least one RCPT was accepted and its fate is open.
    pub fn any_taken(&self) -> bool {
        self.places.iter().any(|p| matches!(p, Place::Taken))
    }

    /// The next hop wants no more recipients in this transaction.
    pub fn stop_naming(&self) -> bool {
        self.stop_naming
    }

    pub fn is_unsaid(&self, recipient: usize) -> bool {
        matches!(self.places[recipient], Place::Unsaid)
    }

    /// We refuse this recipient ourselves before anything is written.
    pub fn refuse(&mut self, recipient: usize, reply: Reply) {
        self.places[recipient] = Place::Said(Verdict::Rejected { stage: Stage::Check, reply });
    }

    /// We refuse the message ourselves before anything is written.
    pub fn refuse_all(&mut self, reply: Reply) {
        self.ended_by = Some((Stage::Check, Cause::Reply(reply.clone())));
        self.close_open(|| Verdict::Rejected { stage: Stage::Check, reply: reply.clone() });
    }

    pub fn mail(&mut self, reply: Reply) -> Next {
        if self.reused && reply.code == 421 {
            return self.hang_up(Stage::Mail, Cause::Reply(reply), |_| Verdict::Untouched);
        }
        self.whole(Stage::Mail, reply, true)
    }

    pub fn rcpt(&mut self, recipient: usize, reply: Reply) -> Next {
        let stage = Stage::Rcpt;
        self.places[recipient] = match meaning(stage, reply.code) {
            Meaning::Proceed => Place::Taken,
            Meaning::Temporary | Meaning::Permanent if is_too_many(&reply) && self.any_taken() => {
                self.stop_naming = true;
                Place::Said(Verdict::Untouched)
            }
            Meaning::Temporary => Place::Said(Verdict::Deferred { stage, cause: Cause::Reply(reply) }),
            Meaning::Permanent => Place::Said(Verdict::Rejected { stage, reply }),
            Meaning::Shutdown => {
                self.places[recipient] = Place::Taken;
                return self.whole(stage, reply, false);
            }
            Meaning::Wrong => {
                self.fault(stage, Fault::WrongReply(reply));
                return Next::Close;
            }
        };
        Next::GoOn
    }

    pub fn data(&mut self, reply: Reply) -> Next {
        self.whole(Stage::Data, reply, false)
    }

    /// From here on a lost answer means *unknown*.
    pub fn dot_may_be_written(&mut self) {
        self.dot_written = true;
    }

    /// The reply to the final dot, or one that came before it was written: then a refusal counts (the next hop had
    /// enough) and an acceptance does not (it cannot have the whole message).
    pub fn dot(&mut self, reply: Reply) -> Next {
        let stage = Stage::Dot;
        match meaning(stage, reply.code) {
            Meaning::Proceed if self.dot_written => {
                self.close_taken(|| Verdict::Delivered { reply: reply.clone() });
                Next::GoOn
            }
            Meaning::Proceed | Meaning::Wrong => {
                self.fault(stage, Fault::WrongReply(reply));
                Next::Close
            }
            _ => {
                let next = self.whole(stage, reply, false);
                if self.dot_written {
                    next
                } else {
                    self.fate = Fate::Close;
                    Next::Close
                }
            }
        }
    }

    /// No proper reply at `stage`. The connection is done for.
    pub fn fault(&mut self, stage: Stage, fault: Fault) {
        if self.dot_written {
            self.close_taken(|| Verdict::Unknown { fault: fault.clone() });
            self.hang_up(stage, Cause::Fault(fault), |_| Verdict::Untouched);
        } else if self.reused && matches!(stage, Stage::Mail | Stage::Rset) && fault.is_loss() {
            self.hang_up(stage, Cause::Fault(fault), |_| Verdict::Untouched);
        } else {
            self.hang_up(stage, Cause::Fault(fault), |cause| Verdict::Deferred { stage, cause: cause.clone() });
        }
    }

    /// The connection turned out to be unusable before a word was said about this message.
    pub fn stale(&mut self, stage: Stage, cause: Cause) {
        self.hang_up(stage, cause, |_| Verdict::Untouched);
    }

    /// The connection cannot be trusted for another transaction; says nothing about this one's recipients.
    pub fn close_after(&mut self, stage: Stage, fault: Fault) {
        self.fate = Fate::Close;
        self.ended_by.get_or_insert((stage, Cause::Fault(fault)));
    }

    pub fn report(self) -> Report {
        let verdict = |place| match place {
            Place::Said(verdict) => verdict,
            Place::Unsaid | Place::Taken => Verdict::Untouched,
        };
        Report {
            verdicts: self.places.into_iter().map(verdict).collect(),
            connection: self.fate,
            reached_final_dot: self.dot_written,
            ended_by: self.ended_by,
        }
    }

    /// A reply that answers for the whole transaction: for those taken, and with `unsaid` for those not yet named.
    fn whole(&mut self, stage: Stage, reply: Reply, unsaid: bool) -> Next {
        let verdict = match meaning(stage, reply.code) {
            Meaning::Proceed => return Next::GoOn,
            Meaning::Wrong => {
                self.fault(stage, Fault::WrongReply(reply));
                return Next::Close;
            }
            Meaning::Permanent => Verdict::Rejected { stage, reply: reply.clone() },
            Meaning::Temporary | Meaning::Shutdown => Verdict::Deferred { stage, cause: Cause::Reply(reply.clone()) },
        };
        self.close_taken(|| verdict.clone());
        if unsaid {
            self.close_open(|| verdict.clone());
        }
        if reply.code == 421 {
            return self.hang_up(stage, Cause::Reply(reply), |_| Verdict::Untouched);
        }
        self.ended_by = Some((stage, Cause::Reply(reply)));
        Next::Over
    }

    fn hang_up(&mut self, stage: Stage, cause: Cause, verdict: impl Fn(&Cause) -> Verdict) -> Next {
        self.close_open(|| verdict(&cause));
        self.fate = Fate::Close;
        self.ended_by = Some((stage, cause));
        Next::Close
    }

    /// Everybody whose fate is open.
    fn close_open(&mut self, verdict: impl Fn() -> Verdict) {
        for place in &mut self.places {
            if !matches!(place, Place::Said(_)) {
                *place = Place::Said(verdict());
            }
        }
    }

    fn close_taken(&mut self, verdict: impl Fn() -> Verdict) {
        for place in &mut self.places {
            if matches!(place, Place::Taken) {
                *place = Place::Said(verdict());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::EnhancedCode;

    fn say(code: u16) -> Reply {
        Reply { code, enhanced: None, text: "said".into() }
    }

    /// Runs MAIL 250, the given RCPT codes, and returns the tally.
    fn named(codes: &[u16]) -> Tally {
        let mut tally = Tally::new(codes.len(), false);
        assert_eq!(tally.mail(say(250)), Next::GoOn);
        for (i, code) in codes.iter().enumerate() {
            tally.rcpt(i, say(*code));
        }
        tally
    }

    fn names(report: &Report) -> Vec<&'static str> {
        report.verdicts.iter().map(Verdict::name).collect()
    }

    #[test]
    fn a_fault_before_the_final_dot_defers_everybody_and_closes() {
        for stage in [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot] {
            let mut tally = named(&[250, 250]);
            tally.fault(stage, Fault::Closed);
            let report = tally.report();
            assert_eq!(names(&report), ["deferred", "deferred"], "{stage:?}");
            assert_eq!(report.connection, Fate::Close);
            assert!(!report.reached_final_dot);
            assert!(report.verdicts.iter().all(|v| !v.may_have_left()));
        }
    }

    #[test]
    fn no_proper_reply_to_the_final_dot_is_unknown_for_those_taken_and_only_for_them() {
        for fault in [Fault::Closed, Fault::TimedOut, Fault::BadReply("x"), Fault::Io(std::io::ErrorKind::Other)] {
            let mut tally = named(&[250, 550, 450]);
            assert_eq!(tally.data(say(354)), Next::GoOn);
            tally.dot_may_be_written();
            tally.fault(Stage::Dot, fault);
            let report = tally.report();
            assert_eq!(names(&report), ["unknown", "rejected", "deferred"]);
            assert_eq!(report.connection, Fate::Close);
            assert!(report.reached_final_dot && report.verdicts[0].may_have_left());
        }
    }

    #[test]
    fn the_reply_to_the_final_dot_speaks_for_all_that_were_taken() {
        for (code, expected, fate) in [
            (250, "delivered", Fate::Keep),
            (451, "deferred", Fate::Keep),
            (554, "rejected", Fate::Keep),
            (421, "deferred", Fate::Close),
            (354, "unknown", Fate::Close),
        ] {
            let mut tally = named(&[250, 550, 250]);
            tally.data(say(354));
            tally.dot_may_be_written();
            tally.dot(say(code));
            let report = tally.report();
            assert_eq!(names(&report), [expected, "rejected", expected], "{code}");
            assert_eq!(report.connection, fate, "{code}");
        }
    }

    #[test]
    fn a_reply_before_the_final_dot_can_refuse_but_not_accept() {
        for (code, expected) in [(250, "deferred"), (354, "deferred"), (451, "deferred"), (552, "rejected")] {
            let mut tally = named(&[250]);
            tally.data(say(354));
            assert_eq!(tally.dot(say(code)), Next::Close);
            let report = tally.report();
            assert_eq!(names(&report), [expected], "{code}");
            assert_eq!(report.connection, Fate::Close);
        }
    }

    #[test]
    fn a_refused_mail_or_data_is_every_recipients_refusal() {
        for (code, expected) in [(451, "deferred"), (550, "rejected")] {
            let mut tally = Tally::new(2, false);
            assert_eq!(tally.mail(say(code)), Next::Over);
            assert_eq!(names(&tally.report()), [expected; 2]);

            let mut tally = named(&[250, 250]);
            assert_eq!(tally.data(say(code)), Next::Over);
            let report = tally.report();
            assert_eq!(names(&report), [expected; 2]);
            assert_eq!(report.connection, Fate::Keep);
        }
    }

    #[test]
    fn a_refused_recipient_stands_alone() {
        let report = named(&[250, 550, 450]).report();
        assert_eq!(report.verdicts[1], Verdict::Rejected { stage: Stage::Rcpt, reply: say(550) });
        assert_eq!(report.verdicts[2], Verdict::Deferred { stage: Stage::Rcpt, cause: Cause::Reply(say(450)) });
        assert_eq!(report.connection, Fate::Keep);
    }

    #[test]
    fn too_many_recipients_after_some_were_taken_leaves_the_rest_untouched() {
        let mut tally = named(&[250, 452, 552]);
        assert!(tally.stop_naming());
        tally.data(say(354));
        tally.dot_may_be_written();
        tally.dot(say(250));
        assert_eq!(names(&tally.report()), ["delivered", "untouched", "untouched"]);

        assert_eq!(names(&named(&[452, 250]).report())[0], "deferred", "nobody was taken before");
        let mut tally = named(&[250]);
        tally.places.push(Place::Unsaid);
        tally.rcpt(1, Reply::new(452, EnhancedCode(4, 2, 2), "mailbox full"));
        assert_eq!(names(&tally.report())[1], "deferred", "4.2.2 is about that mailbox");
    }

    #[test]
    fn a_421_to_a_recipient_defers_those_named_and_leaves_the_others_untouched() {
        let mut tally = Tally::new(4, false);
        tally.mail(say(250));
        tally.rcpt(0, say(250));
        tally.rcpt(1, say(550));
        assert_eq!(tally.rcpt(2, say(421)), Next::Close);
        let report = tally.report();
        assert_eq!(names(&report), ["deferred", "rejected", "deferred", "untouched"]);
        assert_eq!(report.connection, Fate::Close);
    }

    #[test]
    fn a_421_to_mail_or_data_is_temporary_and_closes() {
        let mut tally = Tally::new(1, false);
        assert_eq!(tally.mail(say(421)), Next::Close);
        assert_eq!(names(&tally.report()), ["deferred"]);
        let mut tally = named(&[250]);
        assert_eq!(tally.data(say(421)), Next::Close);
        assert_eq!(names(&tally.report()), ["deferred"]);
    }

    #[test]
    fn losing_a_reused_connection_before_the_reply_to_mail_says_nothing_about_the_message() {
        let mut tally = Tally::new(1, true);
        tally.fault(Stage::Mail, Fault::Closed);
        assert_eq!(names(&tally.report()), ["untouched"]);
        let mut tally = Tally::new(1, true);
        assert_eq!(tally.mail(say(421)), Next::Close);
        assert_eq!(names(&tally.report()), ["untouched"]);

        let mut tally = Tally::new(1, true);
        tally.fault(Stage::Mail, Fault::BadReply("x"));
        assert_eq!(names(&tally.report()), ["deferred"], "garbage is no idle timeout");
        let mut tally = Tally::new(1, true);
        tally.mail(say(250));
        tally.rcpt(0, say(250));
        tally.fault(Stage::Data, Fault::Closed);
        assert_eq!(names(&tally.report()), ["deferred"], "it was alive for MAIL");
    }

    #[test]
    fn the_wrong_class_of_reply_is_temporary_and_closes() {
        let mut tally = Tally::new(1, false);
        assert_eq!(tally.mail(say(354)), Next::Close);
        assert_eq!(names(&tally.report()), ["deferred"]);
        let mut tally = named(&[250]);
        assert_eq!(tally.data(say(250)), Next::Close);
        let report = tally.report();
        let cause = Cause::Fault(Fault::WrongReply(say(250)));
        assert_eq!(report.verdicts, [Verdict::Deferred { stage: Stage::Data, cause: cause.clone() }]);
        assert_eq!(cause.kind(), "bad-peer");
        assert_eq!(names(&named(&[250, 354]).report()), ["deferred", "deferred"]);
    }

    #[test]
    fn what_we_refuse_ourselves_is_permanent_and_keeps_the_connection() {
        let mut tally = Tally::new(2, false);
        tally.refuse_all(Reply::new(554, EnhancedCode(5, 6, 3), "no 8BITMIME"));
        let report = tally.report();
        assert_eq!(names(&report), ["rejected", "rejected"]);
        assert_eq!((report.connection, report.reached_final_dot), (Fate::Keep, false));
    }
}
