//! What an operator does to queued mail by hand: hurry it, send it by the other route, remove it.
//!
//! Promises: only the items that were named are touched, and each only as far as [`judge`] allows at that very moment.
//! What is on the wire is left alone, and so is the route of what may have been delivered already. Tokens are not
//! touched: nothing here is in flight. Each step is written to the audit in the transaction that does it.

use super::engine::{Spool, Work, begin_life};
use super::item::{Item, ItemId, State};
use super::{ChoreAnswer, SpoolError, Store};
use crate::message::{Queue, QueueId, Reason, Recipient, Route, Timestamp};

/// Most items of one [`Order`], so that no transaction keeps deliveries waiting for long.
pub const ORDER_MOST_ITEMS: usize = 1_000;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Due now: what was delayed, and what was paused. Route and quota stay as they are.
    Flush,
    /// By this route, now; `new` through the gate like all mail. Dead letters and paused mail come back to life.
    Reroute(Route),
    /// Removed for good, nobody is told.
    Drop,
}

impl Action {
    /// The word used in the audit, the log and the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Flush => "flush",
            Action::Reroute(_) => "reroute",
            Action::Drop => "drop",
        }
    }
}

/// Why an item is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftAlone {
    /// It is being sent.
    InFlight,
    /// An answer to a final dot was lost, so it keeps its route: never by both.
    MaybeDelivered,
    /// It has what was asked for: it is due, or stands in that route's line.
    Already,
    /// Failed for good; only a reroute brings it back.
    Dead,
    /// Damaged on disk; it can only be removed.
    Damaged,
}

/// Whether `action` may be done to `item` as it is now.
pub fn judge(item: &Item, action: Action) -> Result<(), LeftAlone> {
    let unreadable = item.envelope.recipients.is_empty();
    match (action, item.state) {
        (_, State::InFlight) => Err(LeftAlone::InFlight),
        (Action::Drop, _) => Ok(()),
        (_, State::Quarantined) => Err(LeftAlone::Damaged),
        _ if unreadable => Err(LeftAlone::Damaged),
        (Action::Flush, State::Deferred | State::Paused) => Ok(()),
        (Action::Flush, State::Dead) => Err(LeftAlone::Dead),
        (Action::Flush, _) => Err(LeftAlone::Already),
        (Action::Reroute(to), _) if item.maybe && item.queue.route() != to => Err(LeftAlone::MaybeDelivered),
        (Action::Reroute(_), State::Dead | State::Paused) => Ok(()),
        (Action::Reroute(to), _) if item.queue.route() == to => Err(LeftAlone::Already),
        (Action::Reroute(_), _) => Ok(()),
    }
}

/// The recipient's domain is `domain`, whatever the case of its letters.
pub fn is_at(recipient: &Recipient, domain: &str) -> bool {
    let path = &recipient.path[..];
    let at = memchr::memrchr(b'@', path);
    at.is_some_and(|at| path[at + 1..].eq_ignore_ascii_case(domain.as_bytes()))
}

/// One step of what an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub action: Action,
    /// To these, at most [`ORDER_MOST_ITEMS`].
    pub ids: Vec<ItemId>,
    /// Only to their recipients of this domain; the others stay as they are.
    pub domain: Option<String>,
    /// What the audit says about it; steps of one job are one entry.
    pub audit: Audit,
}

/// An entry of the audit, without what was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Names it; rises with time.
    pub job: i64,
    /// User id of who asked.
    pub actor: u32,
    /// What was asked, such as `reroute to legacy` and the filter.
    pub detail: String,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acted {
    /// Octets of the bodies of the items touched.
    pub bytes: u64,
    /// Items left alone, by reason.
    pub left: Left,
    /// The messages that were touched.
    pub messages: Vec<QueueId>,
    /// The audit had no entry for this job before.
    pub is_first: bool,
}

/// Items left alone, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Left {
    pub in_flight: u64,
    pub maybe_delivered: u64,
    pub already: u64,
    pub dead: u64,
    pub damaged: u64,
    /// Delivered or otherwise gone since they were named.
    pub gone: u64,
}

impl Left {
    /// One more.
    pub fn count(&mut self, why: LeftAlone) {
        *match why {
            LeftAlone::InFlight => &mut self.in_flight,
            LeftAlone::MaybeDelivered => &mut self.maybe_delivered,
            LeftAlone::Already => &mut self.already,
            LeftAlone::Dead => &mut self.dead,
            LeftAlone::Damaged => &mut self.damaged,
        } += 1;
    }
}

impl<S: Store> Spool<S> {
    pub(super) fn by_hand(&mut self, order: &Order, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer::default();
        let mut acted = Acted::default();
        for id in order.ids.iter().take(ORDER_MOST_ITEMS) {
            let Some(old) = self.store.get(*id)? else {
                acted.left.gone += 1;
                continue;
            };
            if let Err(why) = judge(&old, order.action) {
                acted.left.count(why);
                continue;
            }
            let (meant, rest) = split(&old, order.domain.as_deref());
            if meant.is_empty() && order.domain.is_some() {
                // Its recipients there were sent meanwhile, as an item of their own.
                acted.left.gone += 1;
                continue;
            }
            answer.items += 1;
            answer.recipients += meant.len() as u64;
            acted.bytes += old.size;
            acted.messages.push(old.message);
            self.act(order.action, old, meant, rest, work)?;
        }
        acted.is_first = self.store.audit(order.action.name(), &order.audit, work.now, &answer, acted.bytes)?;
        answer.by_hand = Some(Box::new(acted));
        Ok(answer)
    }

    fn act(
        &mut self,
        action: Action,
        old: Item,
        meant: Vec<Recipient>,
        rest: Vec<Recipient>,
        work: &mut Work<'_>,
    ) -> Result<(), SpoolError> {
        let whole = rest.is_empty();
        if !whole {
            let mut remainder = old.clone();
            remainder.envelope.recipients = rest;
            self.replace(&old, &remainder)?;
        }
        let mut item = old.clone();
        item.envelope.recipients = meant;
        match action {
            Action::Drop if whole => {
                self.store.remove(old.id)?;
                self.ledger.leave(&old);
                return self.store.reference_body(old.body, -1);
            }
            // Those that remain have the body.
            Action::Drop => return Ok(()),
            Action::Flush => {}
            Action::Reroute(to) => {
                item.queue = match to {
                    Route::New => Queue::New(item.lane),
                    Route::Legacy => Queue::Legacy,
                };
                // The operator's word stands: no deadline takes it to the other route.
                (item.reason, item.deadline) = (if item.maybe { Reason::Pinned } else { Reason::Manual }, None);
            }
        }
        revive(&mut item, work.now);
        (item.state, item.due) = (self.waiting_state(item.queue), work.now);
        begin_life(&mut item, work);
        if whole {
            self.replace(&old, &item)?;
        } else {
            item.id = self.next_item();
            self.store.reference_body(item.body, 1)?;
            self.store.insert(&item)?;
            self.ledger.enter(&item);
        }
        work.touch(&item);
        Ok(())
    }
}

/// Its recipients of that domain and the others; without a domain all are meant.
fn split(item: &Item, domain: Option<&str>) -> (Vec<Recipient>, Vec<Recipient>) {
    let all = item.envelope.recipients.iter().cloned();
    match domain {
        None => (all.collect(), Vec::new()),
        Some(domain) => all.partition(|recipient| is_at(recipient, domain)),
    }
}

/// A dead letter starts anew. Mail whose life ended while it was paused does too: the operator wants it sent, not
/// reported as expired in the same moment.
fn revive(item: &mut Item, now: Timestamp) {
    let over = item.expires.is_some_and(|end| end <= now);
    if item.state == State::Dead || (item.state == State::Paused && over) {
        (item.expires, item.attempts) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Envelope, LaneId, StreamId};
    use crate::spool::BodyId;
    use bytes::Bytes;

    fn item(state: State, queue: Queue, maybe: bool) -> Item {
        let recipient = Recipient { path: "a@example.net".into(), parameters: Bytes::new() };
        Item {
            id: ItemId(1),
            message: QueueId(1),
            body: BodyId(1),
            size: 1,
            queue,
            lane: LaneId::TOTAL,
            stream: StreamId::DEFAULT,
            state,
            maybe,
            reason: Reason::InQuota,
            accepted: Timestamp(0),
            due: Timestamp(0),
            deadline: None,
            expires: None,
            attempts: 0,
            reservation: None,
            envelope: Envelope { reverse_path: Bytes::new(), parameters: Bytes::new(), recipients: vec![recipient] },
            last_reply: String::new(),
        }
    }

    #[test]
    fn each_action_leaves_alone_what_it_must() {
        use Action::*;
        use LeftAlone::*;
        const NEW: Queue = Queue::New(LaneId::TOTAL);
        let to_legacy = Reroute(Route::Legacy);
        for (action, state, queue, maybe, want) in [
            (Flush, State::Deferred, NEW, true, Ok(())),
            (Flush, State::Paused, NEW, false, Ok(())),
            (Flush, State::Held, NEW, false, Err(Already)),
            (Flush, State::Ready, NEW, false, Err(Already)),
            (Flush, State::InFlight, NEW, false, Err(InFlight)),
            (Flush, State::Dead, NEW, false, Err(Dead)),
            (Flush, State::Quarantined, NEW, false, Err(Damaged)),
            (to_legacy, State::Held, NEW, false, Ok(())),
            (to_legacy, State::Deferred, NEW, true, Err(MaybeDelivered)),
            (to_legacy, State::Dead, NEW, true, Err(MaybeDelivered)),
            (to_legacy, State::Dead, Queue::Legacy, true, Ok(())),
            (to_legacy, State::Paused, Queue::Legacy, false, Ok(())),
            (to_legacy, State::Deferred, Queue::Legacy, true, Err(Already)),
            (to_legacy, State::InFlight, NEW, false, Err(InFlight)),
            (to_legacy, State::Quarantined, NEW, false, Err(Damaged)),
            (Reroute(Route::New), State::Ready, Queue::Legacy, false, Ok(())),
            (Reroute(Route::New), State::Held, NEW, false, Err(Already)),
            (Drop, State::InFlight, NEW, false, Err(InFlight)),
            (Drop, State::Quarantined, NEW, true, Ok(())),
            (Drop, State::Dead, NEW, true, Ok(())),
        ] {
            assert_eq!(judge(&item(state, queue, maybe), action), want, "{action:?} {state:?} {queue:?} {maybe}");
        }
    }

    #[test]
    fn a_domain_is_what_follows_the_last_at_sign_in_any_case() {
        let at = |path: &'static str, domain| is_at(&Recipient { path: path.into(), parameters: Bytes::new() }, domain);
        assert!(at("a@Example.NET", "example.net") && at("\"b@example.com\"@example.net", "EXAMPLE.net"));
        assert!(!at("a@sub.example.net", "example.net") && !at("postmaster", "postmaster"));
        assert!(!at("\"b@example.com\"@example.net", "example.com"));
    }
}
