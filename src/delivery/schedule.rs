//! Which line is served next, and when to look again. Plain: no clocks, no sockets.
//!
//! In memory there is one entry for each line and stream that has mail, not one for each message: when its first item
//! may be due. The entry is a hint that a claim corrects.

use std::collections::BTreeMap;

use crate::message::{Queue, StreamId, Timestamp};
use crate::spool::{ClaimAnswer, Touched};

/// See the module's header.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Streams in the order in which they are served.
    order: Vec<StreamId>,
    heads: BTreeMap<(Queue, StreamId), Timestamp>,
    /// The lane refused this stream, and so all that come after it, until then.
    blocked: BTreeMap<Queue, (usize, Timestamp)>,
    /// How much of its limit each lane had used when it was asked last, in thousandths.
    used: BTreeMap<Queue, u64>,
    housekeeping: Option<Timestamp>,
}

impl Schedule {
    /// Serves streams in `order`; others come last.
    pub fn new(order: Vec<StreamId>) -> Self {
        Schedule { order, ..Schedule::default() }
    }

    /// Lines got items; deadlines or expiries come up at `wake`.
    pub fn touched(&mut self, lines: impl IntoIterator<Item = Touched>, wake: Option<Timestamp>) {
        for line in lines {
            let head = self.heads.entry((line.queue, line.stream)).or_insert(line.due);
            *head = (*head).min(line.due);
        }
        if let Some(wake) = wake {
            self.housekeeping = Some(self.housekeeping.map_or(wake, |h| h.min(wake)));
        }
    }

    /// Tokens came back: every line of the route is worth another look, since the total is everybody's; so are the
    /// streams that were stepped over at their share, whose heads say midnight.
    pub fn refunded(&mut self, queue: Queue) {
        let route = queue.route();
        self.blocked.retain(|line, _| line.route() != route);
        for ((line, _), due) in &mut self.heads {
            if line.route() == route {
                *due = Timestamp(0);
            }
        }
    }

    /// Every time told before is off: all is worth a look at once.
    pub fn clock_moved(&mut self) {
        self.blocked.clear();
        self.heads.values_mut().for_each(|due| *due = Timestamp(i64::MIN));
        self.housekeeping = Some(Timestamp(i64::MIN));
    }

    /// Streams are served in this order from here on.
    pub fn serve_in(&mut self, order: Vec<StreamId>) {
        // Who is shut out behind whom was said in the old order.
        self.blocked.clear();
        self.order = order;
    }

    /// Lines with something to claim at `now`, and the streams to ask for: by the order of the streams, and of several
    /// lanes the least used one first. Neighbours of one line come together.
    pub fn due(&mut self, now: Timestamp) -> Vec<(Queue, Vec<StreamId>)> {
        self.blocked.retain(|_, (_, until)| *until > now);
        let mut found: Vec<(usize, u64, Queue, StreamId)> = Vec::new();
        for (&(queue, stream), due) in &self.heads {
            let rank = self.rank(stream);
            if *due <= now && self.blocked.get(&queue).is_none_or(|(first, _)| rank < *first) {
                found.push((rank, self.used.get(&queue).copied().unwrap_or(0), queue, stream));
            }
        }
        found.sort_unstable();
        let mut lines: Vec<(Queue, Vec<StreamId>)> = Vec::new();
        for (.., queue, stream) in found {
            match lines.last_mut() {
                Some((last, streams)) if *last == queue => streams.push(stream),
                _ => lines.push((queue, vec![stream])),
            }
        }
        lines
    }

    /// The line has not refused this stream, nor one before it.
    pub fn is_open(&self, queue: Queue, stream: StreamId) -> bool {
        self.blocked.get(&queue).is_none_or(|(first, _)| self.rank(stream) < *first)
    }

    /// What a claim has found.
    pub fn claimed(&mut self, queue: Queue, answer: &ClaimAnswer) {
        for (stream, next) in &answer.next_due {
            match next {
                Some(due) => drop(self.heads.insert((queue, *stream), *due)),
                None => drop(self.heads.remove(&(queue, *stream))),
            }
        }
        self.used.insert(queue, answer.used_permille);
        if let Some((stream, until)) = answer.blocked {
            self.blocked.insert(queue, (self.rank(stream), until));
        }
    }

    /// Deadlines or expiries may have come by `now`.
    pub fn housekeeping_is_due(&self, now: Timestamp) -> bool {
        self.housekeeping.is_some_and(|at| at <= now)
    }

    /// Housekeeping was done; the next is due at `next`.
    pub fn housekept(&mut self, next: Option<Timestamp>) {
        self.housekeeping = next;
    }

    /// The next time at which anything here is due. Lines that are due at `now` and that `serves` says cannot be served
    /// are left out: time alone does not help them.
    pub fn wake_at(&self, now: Timestamp, serves: impl Fn(Queue) -> bool) -> Option<Timestamp> {
        let lines = self.heads.iter().map(|((queue, stream), due)| match self.blocked.get(queue) {
            Some((first, until)) if self.rank(*stream) >= *first => (*queue, (*due).max(*until)),
            _ => (*queue, *due),
        });
        let helped = lines.filter(|(queue, at)| *at > now || serves(*queue)).map(|(_, at)| at);
        helped.chain(self.housekeeping).min()
    }

    fn rank(&self, stream: StreamId) -> usize {
        self.order.iter().position(|s| *s == stream).unwrap_or(self.order.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::LaneId;

    const LANE: Queue = Queue::New(LaneId::TOTAL);
    const URGENT: StreamId = StreamId(1);
    const BULK: StreamId = StreamId(2);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    fn schedule(heads: &[(Queue, StreamId, i64)]) -> Schedule {
        let mut schedule = Schedule::new(vec![URGENT, BULK]);
        let touched =
            heads.iter().map(|(queue, stream, due)| Touched { queue: *queue, stream: *stream, due: at(*due) });
        schedule.touched(touched, None);
        schedule
    }

    #[test]
    fn streams_are_asked_for_in_their_order_and_only_when_due() {
        let mut s = schedule(&[(LANE, BULK, 5), (LANE, URGENT, 5), (Queue::Legacy, BULK, 9)]);
        assert_eq!(s.due(at(4)), []);
        assert_eq!(s.due(at(5)), [(LANE, vec![URGENT, BULK])]);
        assert_eq!(s.wake_at(at(0), |_| true), Some(at(5)));
        assert_eq!(s.wake_at(at(5), |q| q == Queue::Legacy), Some(at(9)));
        assert_eq!(
            s.wake_at(at(0), |q| q == Queue::Legacy),
            Some(at(5)),
            "what is to come wakes also a line without connections"
        );
    }

    #[test]
    fn an_urgent_stream_goes_first_on_every_lane_and_the_least_used_lane_before_the_others() {
        let [google, yahoo] = [Queue::New(LaneId(1)), Queue::New(LaneId(3))];
        let mut s = schedule(&[(google, BULK, 0), (google, URGENT, 0), (yahoo, BULK, 0), (yahoo, URGENT, 0)]);
        s.claimed(google, &ClaimAnswer { used_permille: 700, ..ClaimAnswer::default() });
        let order = [(yahoo, vec![URGENT]), (google, vec![URGENT]), (yahoo, vec![BULK]), (google, vec![BULK])];
        assert_eq!(s.due(at(1)), order);
        s.claimed(yahoo, &ClaimAnswer { blocked: Some((URGENT, at(60))), ..ClaimAnswer::default() });
        assert!(!s.is_open(yahoo, URGENT) && !s.is_open(yahoo, BULK) && s.is_open(google, BULK));
        assert_eq!(s.due(at(1)), [(google, vec![URGENT, BULK])], "neighbours of one line are asked together");
    }

    #[test]
    fn a_stream_that_was_moved_to_the_front_is_not_shut_out_by_those_it_has_passed() {
        let mut s = schedule(&[(LANE, BULK, 0), (LANE, URGENT, 0)]);
        s.claimed(LANE, &ClaimAnswer { blocked: Some((URGENT, at(60))), ..ClaimAnswer::default() });
        s.serve_in(vec![BULK, URGENT]);
        assert_eq!(s.due(at(1)), [(LANE, vec![BULK, URGENT])]);
    }

    #[test]
    fn a_lane_that_refused_a_stream_is_left_alone_by_it_and_those_after_it_but_not_by_those_before() {
        let mut s = schedule(&[(LANE, BULK, 0)]);
        s.claimed(LANE, &ClaimAnswer { blocked: Some((BULK, at(60))), ..ClaimAnswer::default() });
        assert_eq!(s.due(at(10)), []);
        assert_eq!(s.wake_at(at(0), |_| true), Some(at(60)));
        s.touched([Touched { queue: LANE, stream: URGENT, due: at(10) }], None);
        assert_eq!(s.due(at(10)), [(LANE, vec![URGENT])]);
        assert_eq!(s.due(at(60)), [(LANE, vec![URGENT, BULK])]);
    }

    #[test]
    fn a_refund_opens_a_blocked_lane() {
        let mut s = schedule(&[(LANE, BULK, 0)]);
        s.claimed(LANE, &ClaimAnswer { blocked: Some((BULK, at(60))), ..ClaimAnswer::default() });
        s.refunded(LANE);
        assert_eq!(s.due(at(1)), [(LANE, vec![BULK])]);
    }

    #[test]
    fn a_refund_opens_the_other_lanes_and_the_streams_that_were_stepped_over() {
        let other = Queue::New(LaneId(3));
        let mut s = schedule(&[(LANE, BULK, 0), (other, URGENT, 0), (Queue::Legacy, BULK, 50)]);
        let stepped_over = vec![(BULK, Some(at(86_400)))];
        s.claimed(LANE, &ClaimAnswer { next_due: stepped_over, ..ClaimAnswer::default() });
        s.claimed(other, &ClaimAnswer { blocked: Some((URGENT, at(86_400))), ..ClaimAnswer::default() });
        assert_eq!(s.due(at(1)), []);
        s.refunded(LANE);
        assert_eq!(s.due(at(1)), [(other, vec![URGENT]), (LANE, vec![BULK])]);
    }

    #[test]
    fn a_claim_corrects_the_hint_and_an_empty_line_is_forgotten() {
        let mut s = schedule(&[(LANE, BULK, 0), (LANE, URGENT, 0)]);
        let next_due = vec![(URGENT, None), (BULK, Some(at(7)))];
        s.claimed(LANE, &ClaimAnswer { items: 3, next_due, ..ClaimAnswer::default() });
        assert_eq!(s.due(at(6)), []);
        assert_eq!(s.wake_at(at(0), |_| true), Some(at(7)));
    }

    #[test]
    fn a_clock_that_moved_opens_everything() {
        let mut s = schedule(&[(LANE, BULK, 500), (Queue::Legacy, URGENT, 500)]);
        s.claimed(LANE, &ClaimAnswer { blocked: Some((BULK, at(600))), ..ClaimAnswer::default() });
        s.clock_moved();
        assert_eq!(s.due(at(1)), [(Queue::Legacy, vec![URGENT]), (LANE, vec![BULK])]);
        assert!(s.housekeeping_is_due(at(1)));
    }

    #[test]
    fn housekeeping_wakes_at_the_earliest_deadline() {
        let mut s = Schedule::new(vec![]);
        s.touched([], Some(at(9)));
        s.touched([], Some(at(4)));
        assert!(!s.housekeeping_is_due(at(3)) && s.housekeeping_is_due(at(4)));
        s.housekept(Some(at(9)));
        assert_eq!(s.wake_at(at(0), |_| true), Some(at(9)));
    }
}
