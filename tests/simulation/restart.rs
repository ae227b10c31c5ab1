//! Deaths of the process: what is on its way is not heard of again, what was not committed did not happen.

use std::time::Duration;

use mailramp::delivery::schedule::Schedule;
use mailramp::message::Timestamp;
use mailramp::spool::{Spool, State, Touched};

use super::hop::Pools;
use super::{Event, HOUR, World};

impl World {
    pub(super) fn plan_crash(&mut self) {
        if self.crashes_per_day > 0.0 && self.crash_at == Timestamp::NEVER {
            let seconds = -(1.0 - self.random.f64()).ln() * 86_400.0 / self.crashes_per_day;
            // Who dies once may soon die again.
            let soon = self.crashes > 0 && self.random.u8(..5) < 2;
            self.crash_at = self.now.after(Duration::from_secs_f64(if soon { seconds / 200.0 } else { seconds }));
        }
    }

    /// Something is on its way, or has not been for an hour.
    pub(super) fn is_worth_a_crash(&self) -> bool {
        let flies = |event: &Event| !matches!(event, Event::Down(..) | Event::Back);
        self.events.values().any(flies) || self.now.since(self.crash_at) > HOUR
    }

    /// The process dies, sometimes in the middle of a transaction, and comes back after a while.
    pub(super) fn crash(&mut self) {
        self.crashes += 1;
        self.nothing_more_is_heard();
        if self.random.bool() {
            let mut batch = self.answers();
            let waiting = self.arrivals.clone();
            self.take_arrivals(&mut batch);
            self.claims(&mut batch);
            let spool = self.spool.as_mut().expect("there is a spool");
            spool.store().fail_commits(1);
            let lost = spool.apply(&batch, &self.gate, &self.pools, self.now);
            assert!(lost.is_err(), "the commit was to fail");
            // Nobody was told 250: the application comes again.
            self.arrivals = waiting;
        }
        let in_flight = self.spool().ledger().total_of(State::InFlight).items as usize;
        self.nothing_more_is_heard();
        self.events.retain(|_, event| matches!(event, Event::Down(..)));
        self.expired.clear();
        self.lost_today += self.total().outstanding();
        let down = if self.random.u8(..8) == 0 { HOUR * self.random.u32(1..30) } else { Duration::from_secs(2) };
        self.now = self.now.after(down);
        let store = self.spool.take().expect("there is a spool").into_store().crash();
        let (spool, recovered) = Spool::open(store, self.now).expect("memory opens");
        assert_eq!(recovered.in_flight, in_flight);
        self.pools = Pools::new([self.hops[0].connections, self.hops[1].connections]);
        self.schedule = Schedule::new(self.gate.order());
        let lines = spool.ledger().totals().filter(|(_, _, state, _)| state.is_waiting());
        let lines: Vec<_> = lines.map(|(queue, stream, ..)| Touched { queue, stream, due: Timestamp(0) }).collect();
        self.schedule.touched(lines, Some(Timestamp(0)));
        self.spool = Some(spool);
        self.crash_at = Timestamp::NEVER;
        self.plan_crash();
    }

    /// Of what left and was not written down as answered.
    pub(super) fn nothing_more_is_heard(&mut self) {
        for event in self.events.values() {
            if let Event::Answer(flight) = event {
                self.book.unanswered(flight);
            }
        }
    }
}
