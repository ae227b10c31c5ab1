//! Deaths of the process: what is on its way is not heard of again, what was not committed did not happen, and the next
//! process decides as the last one would have.

use std::time::Duration;

use mailramp::delivery::schedule::Schedule;
use mailramp::message::{StreamId, Timestamp};
use mailramp::spool::memory::MemoryStore;
use mailramp::spool::{Admission, Ask, Gate, Grant, Ledger, Spool, State, Touched};

use super::hop::Pools;
use super::{Event, HOUR, World};

/// Recipients that are asked about.
const ASKED: u64 = 1_000;

impl World {
    pub(super) fn plan_crash(&mut self) {
        if self.crashes_per_day > 0.0 && self.crash_at == Timestamp::NEVER {
            let seconds = -(1.0 - self.random.f64()).ln() * 86_400.0 / self.crashes_per_day;
            // Who dies once may soon die again.
            let soon = self.crashes > 0 && self.random.u8(..5) < 2;
            self.crash_at = self.now.after(Duration::from_secs_f64(if soon { seconds / 200.0 } else { seconds }));
        }
    }

    /// No more deaths.
    pub(super) fn lives_on(&mut self) {
        (self.crashes_per_day, self.crash_at_each, self.crash_at) = (0.0, 0.0, Timestamp::NEVER);
    }

    /// Something is on its way, or has not been for an hour.
    pub(super) fn is_worth_a_crash(&self) -> bool {
        let flies = |event: &Event| matches!(event, Event::Mail(_) | Event::Dot(_) | Event::Answer(_));
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
        self.nothing_more_is_heard();
        let in_flight = self.spool().ledger().total_of(State::InFlight).items as usize;
        self.lost_today += self.total().outstanding();
        let moment = self.now;
        let before = self.decisions(self.spool().ledger(), moment);
        let store = self.spool.take().expect("there is a spool").into_store().crash();
        // At the same moment first, so that nothing but the restart can make a difference.
        let (spool, recovered) = Spool::open(store, moment).expect("memory opens");
        assert_eq!(recovered.in_flight, in_flight);
        let after = self.decisions(spool.ledger(), moment);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.granted(), after.granted(), "tokens before and after a restart at {moment:?}");
            // Those that were on their way wait now, so what comes fresh finds more before it.
            assert!(in_flight > 0 || before == after, "restart at {moment:?}: {before:?} became {after:?}");
        }
        assert_eq!(before.len(), after.len());
        let down = if self.random.u8(..8) == 0 { HOUR * self.random.u32(1..30) } else { Duration::from_secs(2) };
        self.now = self.now.after(down);
        self.begin_anew(spool.into_store());
    }

    /// The process begins on this data. What was on its way has been forgotten.
    fn begin_anew(&mut self, store: MemoryStore) {
        self.events.retain(|_, event| matches!(event, Event::Down(..)));
        self.expired.clear();
        self.left.forget_pending();
        self.stands.heard.clear();
        let (spool, _) = Spool::open(store, self.now).expect("memory opens");
        self.pools = Pools::new([self.hops[0].connections, self.hops[1].connections]);
        self.schedule = Schedule::new(self.gate.order_now(spool.ledger(), self.now));
        let lines = spool.ledger().totals().filter(|(_, _, state, _)| state.is_waiting());
        let lines: Vec<_> = lines.map(|(queue, stream, ..)| Touched { queue, stream, due: Timestamp(0) }).collect();
        self.schedule.touched(lines, Some(Timestamp(0)));
        self.spool = Some(spool);
        self.crash_at = Timestamp::NEVER;
        self.plan_crash();
    }

    /// The process dies, and the next one begins on the copy that was made before.
    pub(super) fn restore(&mut self) {
        let Some((store, balance)) = self.copy.take() else { return };
        self.restores += 1;
        self.nothing_more_is_heard();
        self.begin_anew(store.crash());
        self.balance = balance;
        let (gate, now) = (self.gate.clone(), self.now);
        self.spool_mut().bring_back_paused(&gate, now).expect("memory takes everything");
        let ledger = self.spool.as_ref().expect("just opened").ledger();
        self.used_up = ledger.span().map(|span| span.day);
        self.left.turned(ledger);
        self.stands.paused = ledger.pause().is_some();
        self.stands.brakes = ledger.lanes().map(|(id, lane)| (id, lane.brake.clone())).collect();
        self.stands.doubtful = ledger.clock_is_doubtful();
        self.stages = ledger.lanes().map(|(id, lane)| (id, lane.record.stage)).collect();
        self.stands.braked_today = ledger.lanes().map(|(id, lane)| (id, lane.today.braked)).collect();
        self.note_brakes();
        let ledger = self.spool.as_ref().expect("just opened").ledger();
        let later = now.after(HOUR * 20);
        for (lane, entry) in ledger.lanes().filter(|(_, lane)| lane.record.limit.is_some()) {
            for at in [now, later].into_iter().filter(|at| ledger.span().is_some_and(|span| *at < span.ends)) {
                let ask = Ask { lane, stream: StreamId::DEFAULT, recipients: 1 };
                let grant = self.gate.grant(ledger, ask, at);
                assert!(
                    matches!(grant, Grant::None { .. }),
                    "restored at {now:?}, and {at:?} has {grant:?}: {entry:?}"
                );
            }
        }
    }

    /// Of what left and was not written down as answered.
    pub(super) fn nothing_more_is_heard(&mut self) {
        for event in self.events.values() {
            if let Event::Answer(flight) = event {
                self.book.unanswered(flight);
            }
        }
    }

    /// Everything that the gate would answer now, and a while later.
    fn decisions(&self, ledger: &Ledger, now: Timestamp) -> Vec<Decision> {
        let mut all = Vec::new();
        let streams = (0..self.streams.len() as u8).map(StreamId);
        for (lane, stream) in ledger.lanes().flat_map(|(lane, _)| streams.clone().map(move |stream| (lane, stream))) {
            let ask = Ask { lane, stream, recipients: ASKED };
            for at in [now, now.after(HOUR / 2)] {
                let gate = &self.gate;
                let (admission, grant) = (gate.admit(ledger, ask, at), gate.grant(ledger, ask, at));
                all.push(Decision {
                    now: at == now,
                    admission,
                    grant,
                    gone: gate.gives_back(ledger, lane, stream, at).is_some(),
                });
            }
        }
        all
    }
}

#[derive(Debug, PartialEq)]
struct Decision {
    now: bool,
    admission: Admission,
    grant: Grant,
    gone: bool,
}

impl Decision {
    /// What does not depend on who waits. Later on, what was on its way and is not heard of again counts as sent now.
    fn granted(&self) -> Option<(u64, bool)> {
        let recipients = match &self.grant {
            Grant::Unmetered => u64::MAX,
            Grant::Some { recipients, .. } => *recipients,
            Grant::None { .. } => 0,
        };
        self.now.then_some((recipients, self.gone))
    }
}
