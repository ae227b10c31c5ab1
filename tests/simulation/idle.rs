//! What must not lie still: mail that could go, mail whose wait is over, tokens that were not used.

use mailramp::message::{DaySpan, LaneId, Queue, Route};
use mailramp::spool::{Ask, Gate, Grant, Item, Store};

use super::{CONNECTION_GRACE, World};

impl World {
    /// While a connection stands ready and the gate would let something go, nothing that is due may be left lying.
    pub(super) fn nobody_sleeps_in_vain(&mut self) {
        if self.pools.ready(Route::New) == 0 {
            return;
        }
        let queue = Queue::New(LaneId::TOTAL);
        for stream in self.gate.order() {
            let now = self.now;
            let due = self.spool_mut().store().next_due(queue, stream).expect("memory answers");
            if due.is_none_or(|due| due > now) {
                continue;
            }
            let ask = Ask { lane: LaneId::TOTAL, stream, recipients: 1 };
            match self.gate.grant(self.spool().ledger(), ask, now) {
                Grant::None { stream_only: true, .. } => {}
                Grant::None { .. } => return,
                granted => panic!(
                    "at {now:?} mail of {stream:?} is due since {due:?} and could go: {granted:?}; the schedule looks \
                     again at {:?}",
                    self.schedule.wake_at(now, |q| q == queue)
                ),
            }
        }
    }

    /// Whoever found no token in time, and was never on the wire with its final dot, has gone to the legacy server.
    pub(super) fn nobody_waits_too_long(&mut self) {
        let (now, streams) = (self.now, self.streams.clone());
        let on_new = |item: &&Item| item.queue.route() == Route::New && item.state.is_waiting() && !item.maybe;
        for item in self.spool_mut().store().items().filter(on_new) {
            let Some(wait) = streams[usize::from(item.stream.0)].overflow().max_wait() else { continue };
            let deadline = item.accepted.after(wait.max(CONNECTION_GRACE));
            assert!(deadline > now, "should have gone to the legacy server at {deadline:?}: {item:?}, now {now:?}");
        }
    }

    /// What was definitely not accepted is free again: hardly more is used up than has left.
    pub(super) fn refunds_came_back(&mut self, day: DaySpan) {
        let (lane, new) = (self.total(), self.outcomes.last().expect("a day has begun").new);
        if lane.today.day == day.day {
            let explained = new + lane.outstanding() + self.lost_today;
            // Final dots of last night whose answers came today count for both days.
            let used = lane.today.reserved;
            assert!(used <= explained + new / 50 + 20, "{used} are used up, {explained} left or are on their way");
        }
        self.lost_today = 0;
    }
}
