//! Whether a failure of the new server lets the legacy server take the mail.
//!
//! Only a definite non-acceptance does, never an unknown outcome; and only a failure of the kind that the operator
//! named. What the next hop cannot carry at all goes by the other route in any case. Plain.

use super::feedback::{About, Judgement};
use super::outcome::{Cause, Fault, Stage, Verdict};

/// Kinds of failure, by what the operator would call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No session came about, or it was lost.
    Connect,
    /// Not secured as the policy asks.
    Tls,
    /// The login was refused, or could not be made.
    Auth,
}

/// `queue.fallback_on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FallbackRules {
    pub connect: bool,
    pub tls: bool,
    pub auth: bool,
    /// A 5xx that a rule knows to be about who sends.
    pub reputation: bool,
}

impl FallbackRules {
    pub const ALL: FallbackRules = FallbackRules { connect: true, tls: true, auth: true, reputation: true };

    /// The operator named failures of this kind.
    pub fn allow(&self, kind: Kind) -> bool {
        match kind {
            Kind::Connect => self.connect,
            Kind::Tls => self.tls,
            Kind::Auth => self.auth,
        }
    }

    /// A recipient that was refused for good may go to the other route: the refusal is about this one.
    pub fn forgive(&self, judgement: &Judgement) -> bool {
        let about_sender = matches!(judgement.about, About::Rate | About::Reputation | About::Auth | About::Config);
        self.reputation && judgement.legacy_helps && about_sender
    }

    /// A recipient with this verdict may go to the other route at once.
    pub fn apply_to(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Deferred { stage, cause } => kind_of(*stage, cause).is_some_and(|kind| self.allow(kind)),
            Verdict::Rejected { stage, .. } => *stage == Stage::Check,
            Verdict::Delivered { .. } | Verdict::Unknown { .. } | Verdict::Untouched => false,
        }
    }
}

/// The table: what kind of failure of the next hop this is; `None`: it works, and said no to this mail for now, or the
/// fault is ours.
pub fn kind_of(stage: Stage, cause: &Cause) -> Option<Kind> {
    match (stage, cause) {
        (_, Cause::Fault(Fault::Body(_) | Fault::Resting)) => None,
        (_, Cause::Fault(Fault::Tls(_) | Fault::TlsMissing | Fault::ResponseInjection)) => Some(Kind::Tls),
        (_, Cause::Fault(Fault::Login(_))) => Some(Kind::Auth),
        (Stage::Tls, Cause::Reply(_)) => Some(Kind::Tls),
        (Stage::Auth, Cause::Reply(_)) => Some(Kind::Auth),
        (Stage::Connect | Stage::Greeting | Stage::Ehlo, _) | (_, Cause::Fault(_)) => Some(Kind::Connect),
        (Stage::Check | Stage::Mail | Stage::Rcpt | Stage::Data | Stage::Dot | Stage::Rset, Cause::Reply(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::{EnhancedCode, Reply};
    use std::io::ErrorKind;

    fn reply(code: u16) -> Cause {
        Cause::Reply(Reply { code, enhanced: None, text: "said".into() })
    }

    #[test]
    fn the_table_says_what_each_failure_is_called() {
        let rows = [
            (Stage::Connect, Cause::Fault(Fault::Io(ErrorKind::ConnectionRefused)), Some(Kind::Connect)),
            (Stage::Connect, Cause::Fault(Fault::Unresolved("x".into())), Some(Kind::Connect)),
            (Stage::Greeting, reply(554), Some(Kind::Connect)),
            (Stage::Greeting, reply(421), Some(Kind::Connect)),
            (Stage::Ehlo, Cause::Fault(Fault::TimedOut), Some(Kind::Connect)),
            (Stage::Tls, Cause::Fault(Fault::Tls("bad certificate".into())), Some(Kind::Tls)),
            (Stage::Tls, Cause::Fault(Fault::TlsMissing), Some(Kind::Tls)),
            (Stage::Tls, Cause::Fault(Fault::ResponseInjection), Some(Kind::Tls)),
            (Stage::Tls, reply(454), Some(Kind::Tls)),
            (Stage::Auth, reply(535), Some(Kind::Auth)),
            (Stage::Auth, Cause::Fault(Fault::Login("no mechanism")), Some(Kind::Auth)),
            (Stage::Auth, Cause::Fault(Fault::Closed), Some(Kind::Connect)),
            (Stage::Mail, Cause::Fault(Fault::Closed), Some(Kind::Connect)),
            (Stage::Data, Cause::Fault(Fault::BadReply("x")), Some(Kind::Connect)),
            (Stage::Dot, Cause::Fault(Fault::TimedOut), Some(Kind::Connect)),
            (Stage::Mail, reply(451), None),
            (Stage::Rcpt, reply(421), None),
            (Stage::Dot, reply(452), None),
            (Stage::Dot, Cause::Fault(Fault::Body(ErrorKind::Other)), None),
            (Stage::Connect, Cause::Fault(Fault::Resting), None),
        ];
        for (stage, cause, expected) in rows {
            assert_eq!(kind_of(stage, &cause), expected, "{stage:?} {cause}");
        }
    }

    #[test]
    fn an_unknown_outcome_never_changes_its_route_and_what_cannot_be_carried_always_may() {
        let none = FallbackRules::default();
        let unknown = Verdict::Unknown { fault: Fault::Closed };
        assert!(!FallbackRules::ALL.apply_to(&unknown) && !FallbackRules::ALL.apply_to(&Verdict::Untouched));
        let too_large = Reply::new(552, EnhancedCode(5, 3, 4), "too large");
        assert!(none.apply_to(&Verdict::Rejected { stage: Stage::Check, reply: too_large.clone() }));
        assert!(!FallbackRules::ALL.apply_to(&Verdict::Rejected { stage: Stage::Rcpt, reply: too_large }));
        let cut = Verdict::Deferred { stage: Stage::Mail, cause: Cause::Fault(Fault::Closed) };
        assert!(FallbackRules::ALL.apply_to(&cut) && !none.apply_to(&cut));
    }
}
