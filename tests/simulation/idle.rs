//! What must not lie still: mail that could go, mail whose wait is over, tokens that were not used.

use std::time::Duration;

use mailramp::message::{DaySpan, LaneId, Queue, Route};
use mailramp::spool::{Ask, Gate, Grant, Item, Store};

use super::World;

/// How much later than a token the schedule may look.
const LEEWAY: Duration = Duration::from_secs(1);

impl World {
    /// While a connection stands ready and the gate would let something go, nothing that is due may be left lying.
    pub(super) fn nobody_sleeps_in_vain(&mut self) {
        self.nothing_waits_for_a_shut_lane();
        if self.pools.ready(Route::New) == 0 {
            return;
        }
        let now = self.now;
        let lanes: Vec<LaneId> = self.spool().ledger().lanes().map(|(id, _)| id).collect();
        let order = self.gate.order_now(self.spool().ledger(), now);
        for lane in lanes {
            let queue = Queue::New(lane);
            for &stream in &order {
                let due = self.spool_mut().store().next_due(queue, stream).expect("memory answers");
                if due.is_none_or(|due| due > now) {
                    continue;
                }
                let ask = Ask { lane, stream, recipients: 1 };
                match self.gate.grant(self.spool().ledger(), ask, now) {
                    Grant::None { stream_only: true, .. } => {}
                    Grant::None { .. } => break,
                    // Times are rounded up on the way, and several lanes take turns.
                    _ if self.schedule.wake_at(now, |q| q == queue).is_some_and(|at| at <= now.after(LEEWAY)) => {}
                    granted => panic!(
                        "at {now:?} mail of {stream:?} on {lane:?} is due since {due:?} and could go: {granted:?}; the \
                         schedule looks again at {:?}",
                        self.schedule.wake_at(now, |q| q == queue)
                    ),
                }
            }
        }
    }

    /// Whoever found no token in time, and was never on the wire with its final dot, has gone to the legacy server; whoever
    /// has no such time was accepted by a rule that holds.
    pub(super) fn nobody_waits_too_long(&mut self) {
        let now = self.now;
        let on_new = |item: &&Item| item.queue.route() == Route::New && item.state.is_waiting() && !item.maybe;
        let World { spool, waits, .. } = self;
        for item in spool.as_mut().expect("there is a spool").store().items().filter(on_new) {
            let wait = waits[&item.message];
            assert_eq!(item.deadline, wait, "waits until another time than its stream said: {item:?}");
            assert!(wait.is_none_or(|deadline| deadline > now), "should be with legacy: {item:?}, now {now:?}");
        }
    }

    /// What was definitely not accepted is free again: hardly more is used up than has left.
    pub(super) fn refunds_came_back(&mut self, day: DaySpan) {
        let (lane, new) = (self.total(), self.left.left_on(day));
        if lane.today.day == day.day && self.used_up != Some(day.day) {
            let explained = new + lane.outstanding() + self.lost_today;
            // Final dots of last night whose answers came today count for both days.
            let used = lane.today.reserved;
            assert!(used <= explained + new / 50 + 20, "{used} are used up, {explained} left or are on their way");
        }
        self.lost_today = 0;
    }
}
