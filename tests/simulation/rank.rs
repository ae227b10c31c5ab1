//! Who goes first: no token of a lane for a stream while one of higher rank waits that could have used it.

use mailramp::message::{LaneId, Queue, StreamId};
use mailramp::spool::{Ask, Batch, Done, Gate, Grant, ItemId, Store};

use super::World;

/// A line that could have been served before a batch.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    lane: LaneId,
    stream: StreamId,
    rank: u8,
    first: ItemId,
}

impl World {
    /// Lines whose first item is due and would be let go.
    pub(super) fn lines_ready(&mut self, batch: &Batch) -> Vec<Ready> {
        if self.streams.len() == 1 || (batch.claims.is_empty() && batch.accepts.is_empty()) {
            return Vec::new();
        }
        let mut lines: Vec<_> = self.spool().ledger().totals().filter(|t| t.2.is_waiting() && t.3.items > 0).collect();
        lines.dedup_by_key(|line| (line.0, line.1));
        let mut ready = Vec::new();
        for (queue, stream, ..) in lines {
            let Queue::New(lane) = queue else { continue };
            let now = self.now;
            let due = self.spool_mut().store().due(queue, stream, now, 1).expect("memory answers");
            let Some(first) = due.first().map(|item| item.id) else { continue };
            let ledger = self.spool().ledger();
            let ask = Ask { lane, stream, recipients: 1 };
            if matches!(self.gate.grant(ledger, ask, now), Grant::Some { .. }) {
                ready.push(Ready { lane, stream, rank: self.gate.stream(ledger, stream, now).rank(), first });
            }
        }
        ready
    }

    /// None of them was passed over.
    pub(super) fn nobody_was_passed_over(&mut self, ready: &[Ready], done: &Done) {
        if ready.is_empty() {
            return;
        }
        let now = self.now;
        let handed = done.handed.iter().filter(|claimed| claimed.item.reservation.is_some());
        let mut served: Vec<_> = handed.map(|claimed| (claimed.item.lane, claimed.item.stream)).collect();
        served.dedup();
        for (lane, stream) in served {
            let rank = self.gate.stream(self.spool().ledger(), stream, now).rank();
            self.orders_seen += u64::from(ready.iter().filter(|one| one.lane == lane).count() > 1);
            for one in ready.iter().filter(|one| one.lane == lane && one.rank > rank) {
                let waits = self.spool_mut().store().get(one.first).expect("memory answers");
                let waits =
                    waits.filter(|item| item.state.is_waiting() && item.due <= now && item.queue == Queue::New(lane));
                let has_share = super::windows::both(lane).all(|id| {
                    let view = self.gate.view_of(self.spool().ledger(), id, one.stream, now);
                    view.is_some_and(|view| view.bounds(now).share_left > 0)
                });
                if let Some(item) = waits.filter(|_| has_share) {
                    panic!("at {now:?} {stream:?} got tokens of {lane:?} while {:?} waited: {item:?}", one.stream);
                }
            }
        }
    }
}
