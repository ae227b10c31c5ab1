//! What delivery asks about the replies to its mail, and whom: it knows SMTP, but no mailbox provider and no ramp.
//!
//! Whoever implements [`Feedback`] learns how each recipient's attempt ended, and answers what that means. The answer
//! decides about the mail only; what it does to the ramp is not delivery's business. Plain.

use std::sync::Arc;

use crate::message::{LaneId, Recipient, Route};
use crate::reply::Reply;

/// What a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Too much at once.
    Rate,
    /// Who sends.
    Reputation,
    /// One mailbox.
    Mailbox,
    /// What is sent.
    Content,
    /// SPF, DKIM or DMARC.
    Auth,
    /// Our settings or DNS.
    Config,
    /// The provider is busy.
    Load,
}

/// What a refusal means, as a rule knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Name of the rule.
    pub rule: String,
    pub about: About,
    /// A 5xx that means later.
    pub temporary: bool,
    /// A domain in the mail is limited, whichever server sends it.
    pub of_domain: bool,
    /// The other server is likely to be better received.
    pub legacy_helps: bool,
}

/// How an attempt ended for one recipient.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    pub recipient: &'a Recipient,
    pub said: Said<'a>,
}

/// See [`Ending`].
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    Accepted,
    /// 4xx or 5xx to this recipient or to the transaction it was in.
    Refused(&'a Reply),
    /// No proper reply that was about it.
    Nothing,
}

/// What is known about a recipient after its attempt.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Its provider's lane; the total where there is only that.
    pub lane: LaneId,
    /// `None`: an ordinary result.
    pub judgement: Option<Arc<Judgement>>,
    /// The brake of its lane is on now.
    pub braked: bool,
}

impl Default for Heard {
    fn default() -> Self {
        Heard { lane: LaneId::TOTAL, judgement: None, braked: false }
    }
}

/// Takes in how attempts end. Called on the path of the mail: it must neither wait nor ask anybody.
pub trait Feedback: Send + Sync {
    /// One answer for each ending, in order.
    fn hear(&self, route: Route, endings: &[Ending<'_>]) -> Vec<Heard>;
}

/// Nobody listens: every reply is an ordinary result.
pub struct NoFeedback;

impl Feedback for NoFeedback {
    fn hear(&self, _: Route, endings: &[Ending<'_>]) -> Vec<Heard> {
        vec![Heard::default(); endings.len()]
    }
}
