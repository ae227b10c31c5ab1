//! Why a message goes where it goes, asked of the same functions that decide it.

use super::backend::{RelayBackend, unavailable};
use super::gate::WarmupGate;
use crate::admin::BackendError;
use crate::admin::api::{MaskedAddress, QueueFilter};
use crate::admin::explain::{ExplainOrder, Explained, ExplainedLane, ExplainedRecipient, MailServers, Subject};
use crate::clock::Clock;
use crate::log::printable;
use crate::message::{LaneId, Queue, Reason, Recipient, Route, StreamId, Timestamp};
use crate::policy::{Bounds, LaneView, Provider, StreamRules, Wake};
use crate::spool::{Admission, Ask, Gate, Item, ItemId, Ledger};

/// Recipients of one message that are shown.
const SHOWN_RECIPIENTS: usize = 50;
/// Items of one message that are read: far more than it can have lanes and attempts apart.
const ITEMS_MOST: usize = 1_000;
/// RFC 5321 §4.5.3.1.3
const PATH_MOST_OCTETS: usize = 256;

/// What the gate says to an ask at one moment, and the bounds it says it by.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The stream as it is treated now.
    pub stream: StreamRules,
    /// Where fresh recipients would go.
    pub admission: Admission,
    /// The total, and the lane that was asked about if that is another.
    pub lanes: Vec<BoundLane>,
}

/// A lane as a stream sees it, and what refuses.
#[derive(Clone, Copy, Debug)]
pub struct BoundLane {
    pub lane: LaneId,
    pub view: LaneView,
    pub bounds: Bounds,
    /// `None`: nothing refuses one recipient.
    pub wake: Option<Wake>,
}

impl WarmupGate {
    /// What happens to `ask` at `now`, and why. Decides nothing and changes nothing.
    pub fn explain(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Explanation {
        let bound = |lane| {
            let view = self.view_of(ledger, lane, ask.stream, now)?;
            Some(BoundLane { lane, view, bounds: view.bounds(now), wake: view.wake(now) })
        };
        let mut lanes: Vec<BoundLane> = bound(LaneId::TOTAL).into_iter().collect();
        if ask.lane != LaneId::TOTAL {
            lanes.extend(bound(ask.lane));
        }
        Explanation { stream: self.stream(ledger, ask.stream, now), admission: self.admit(ledger, ask, now), lanes }
    }
}

impl RelayBackend {
    pub(super) async fn explained(&self, order: ExplainOrder) -> Result<Explained, BackendError> {
        match order.subject {
            Subject::Message(id) => self.explained_message(&id).await,
            Subject::Address(address) => self.explained_address(address, order.stream).await,
        }
    }

    async fn explained_message(&self, id: &str) -> Result<Explained, BackendError> {
        let wanted = self.filter(&QueueFilter { id: Some(id.into()), ..QueueFilter::default() })?;
        let reader = self.reader.clone();
        let read = self.blocking(move || reader.list(&wanted, ItemId(0), ITEMS_MOST)).await?;
        let items = read.map_err(unavailable)?;
        let stream = items.first().map_or(StreamId::DEFAULT, |item| item.stream);
        let mut recipients = Vec::new();
        for item in &items {
            let room = SHOWN_RECIPIENTS - recipients.len();
            recipients.extend(item.envelope.recipients.iter().take(room).map(|to| self.of_item(item, to)));
        }
        let lanes = items.iter().filter(|item| item.queue != Queue::Legacy).map(|item| item.lane).collect();
        let answer = self.as_of_now(stream, lanes).await?;
        let all: u64 = items.iter().map(Item::recipients).sum();
        Ok(Explained { id: Some(id.to_ascii_uppercase()), more: all - recipients.len() as u64, recipients, ..answer })
    }

    async fn explained_address(&self, address: String, stream: Option<String>) -> Result<Explained, BackendError> {
        let plain = address.len() <= PATH_MOST_OCTETS && address.bytes().all(|c| c > b' ' && c != 0x7f);
        if !plain || !address.contains('@') {
            return Err(BackendError::Refused(format!("`{}` is no address", printable(&address))));
        }
        let (stream, _) = match stream {
            Some(name) => self.stream_called(&name)?,
            None => (StreamId::DEFAULT, String::new()),
        };
        let gate = self.gate.current();
        let recipient = Recipient { path: address.clone().into(), parameters: Default::default() };
        let lane = self.operators.lane_of(&recipient.path);
        let ask = Ask { lane, stream, recipients: 1 };
        let look = move |ledger: &Ledger, now| (gate.explain(ledger, ask, now), now);
        let (explanation, now) = self.look_at_ramp(look).await?;
        let answer = self.as_of_now(stream, vec![lane]).await?;
        let Admission { new, new_reason, rest_reason, deadline, .. } = explanation.admission;
        let (route, reason) = if new > 0 { (Route::New, new_reason) } else { (Route::Legacy, rest_reason) };
        let waits = route == Route::New && explanation.lanes.iter().any(|lane| lane.wake.is_some());
        let due = explanation.lanes.iter().filter_map(|lane| lane.wake).map(|wake| wake.at).max();
        let recipient = ExplainedRecipient {
            to: MaskedAddress::of(address.as_bytes()),
            provider: provider(lane),
            mail_servers: self.mail_servers(&recipient),
            route: route.name().into(),
            state: None,
            reason: reason.name().into(),
            meaning: if waits { "waits for its token".into() } else { meaning(reason, route).into() },
            attempts: 0,
            due: due.filter(|_| waits).or(Some(now)).filter(|at| *at != Timestamp::NEVER),
            deadline: deadline.filter(|_| route == Route::New),
            expires: None,
            maybe_delivered: false,
            last_reply: String::new(),
        };
        Ok(Explained { recipients: vec![recipient], ..answer })
    }

    /// Looks at the ledger by which mail is decided: in a dry run at that of the ramp as if, since the real one stands still.
    async fn look_at_ramp<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Ledger, Timestamp) -> T + Send + 'static,
    ) -> Result<T, BackendError> {
        match &self.dry_run {
            Some(dry_run) => Ok(dry_run.look(look)),
            None => self.spool.look(look).await.map_err(unavailable),
        }
    }

    fn of_item(&self, item: &Item, to: &Recipient) -> ExplainedRecipient {
        ExplainedRecipient {
            to: MaskedAddress::of(&to.path),
            provider: provider(item.lane),
            mail_servers: self.mail_servers(to),
            route: item.queue.route().name().into(),
            state: Some(super::queue::shown_state(item.state)),
            reason: item.reason.name().into(),
            meaning: meaning(item.reason, item.queue.route()).into(),
            attempts: item.attempts,
            due: Some(item.due),
            deadline: item.deadline,
            expires: item.expires,
            maybe_delivered: item.maybe,
            last_reply: item.last_reply.clone(),
        }
    }

    /// Who runs the mail servers of the recipient's domain, as far as it is known.
    fn mail_servers(&self, recipient: &Recipient) -> MailServers {
        MailServers {
            operator: self.operators.of_recipient(&recipient.path).name.clone(),
            known: self.operators.known_lane(&recipient.path).is_some(),
        }
    }

    /// Stream and lanes; no recipients yet.
    async fn as_of_now(&self, stream: StreamId, mut lanes: Vec<LaneId>) -> Result<Explained, BackendError> {
        lanes.push(LaneId::TOTAL);
        lanes.sort_unstable();
        lanes.dedup();
        let gate = self.gate.current();
        let look = move |ledger: &Ledger, now| {
            let ask = |lane| Ask { lane, stream, recipients: 1 };
            let mut shown: Vec<ExplainedLane> = Vec::new();
            for lane in lanes {
                let explanation = gate.explain(ledger, ask(lane), now);
                shown.extend(
                    explanation.lanes.iter().filter(|found| found.lane == lane).map(|found| of_lane(found, now)),
                );
            }
            (gate.stream(ledger, stream, now).route, ledger.move_of(stream, now).cloned(), shown)
        };
        let (way, moved, lanes) = self.look_at_ramp(look).await?;
        Ok(Explained {
            now: self.clock.now(),
            zone: (*self.zone.load_full()).clone(),
            dry_run: self.dry_run.is_some(),
            id: None,
            stream: self.stream_name(stream),
            way: way.into(),
            moved: moved.as_ref().map(super::moves::shown),
            recipients: Vec::new(),
            more: 0,
            lanes,
        })
    }
}

fn of_lane(found: &BoundLane, now: Timestamp) -> ExplainedLane {
    let BoundLane { lane, view, bounds, wake } = found;
    let bounded = |left: u64| (left != u64::MAX).then_some(left);
    ExplainedLane {
        lane: provider(*lane),
        limit: view.limit,
        used_today: view.reserved_today,
        closed: view.closed.filter(|closed| now < closed.until).map(|closed| closed.reason.name().into()),
        pace_left: bounded(bounds.pace),
        day_left: bounded(bounds.day_left),
        left_24h: bounded(bounds.left_24h),
        reserve: bounds.reserve,
        share_left: bounded(bounds.share_left),
        refuses: wake.map(|wake| wake.bound.name().into()),
        until: wake.map(|wake| wake.at).filter(|at| *at != Timestamp::NEVER),
    }
}

fn provider(lane: LaneId) -> String {
    Provider::of_lane(lane).map_or("all", Provider::name).into()
}

fn meaning(reason: Reason, route: Route) -> &'static str {
    match (reason, route) {
        (Reason::InQuota, _) => "the limit has room, now or within the longest wait",
        (Reason::OverQuota, _) => "the limit has no room within the longest wait",
        (Reason::MaxWait, _) => "its token did not come in time",
        (Reason::Brake, _) => "the provider's brake is on",
        (Reason::Pinned, _) => "it stays on the route it was first tried on",
        (Reason::Fallback, _) => "the other route could not take it",
        (Reason::Manual, Route::New) => "an operator sent it there, or its stream goes only by new",
        (Reason::Manual, Route::Legacy) => "an operator sent it there, or its stream stays on legacy",
        (Reason::Clock, _) => "the machine's clock cannot be right, so nobody knows what the limit leaves",
        (Reason::Paused, _) => "an operator has paused new",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_sentence_of_its_own() {
        for route in Route::ALL {
            let mut all: Vec<_> = Reason::ALL.iter().map(|reason| meaning(*reason, route)).collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), Reason::ALL.len());
        }
    }
}
