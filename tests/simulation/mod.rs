//! Lives through a ramp with the real gate, schedule and spool, from one event to the next.
//!
//! What the committer and the dispatcher do with threads and sockets, [`World`] does in one loop with a clock of its
//! own: everything that happens at one moment is one batch, and between two moments nothing is looked at. The next hops
//! are [`hop::Hop`]s; what was promised is checked by [`checks`] after every event, not from the ledger's numbers but
//! from what left.

pub mod checks;
pub mod hop;
mod idle;
mod restart;
pub mod traffic;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use mailramp::delivery::budget::ReportBudget;
use mailramp::delivery::schedule::Schedule;
use mailramp::delivery::settle::{Ended, SettleRules};
use mailramp::message::{DaySpan, LaneId, Queue, QueueId, Recipient, Route, StreamId, Timestamp};
use mailramp::policy::{Calendar, RetrySchedule, Rules, StreamRules};
use mailramp::relay::gate::WarmupGate;
use mailramp::spool::body::NewBody;
use mailramp::spool::ledger::LaneLedger;
use mailramp::spool::memory::MemoryStore;
use mailramp::spool::{Accept, Batch, Chore, Claim, Claimed, Done, Fate, Part, Settle, Spool};

use checks::{Balance, Book, Left};
use hop::{Flight, Hop, Pools};
use traffic::Arrival;

pub const HOUR: Duration = Duration::from_secs(3600);
/// As the dispatcher's.
const CLAIM_MOST: usize = 64;
const CHORE_MOST: usize = 256;
const CLAIM_FRESH: Duration = Duration::from_secs(60);
/// As the gate's.
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// As the committer's.
const ACCEPT_MOST: usize = 1024;
/// Batches at one moment; more would be a dispatcher that spins.
const BATCHES_MOST: usize = 20_000;
/// One in so many moments is looked at for mail that lies idle.
const LOOKED_AT: u64 = 8;

/// One ramp to live through.
pub struct Setup {
    pub seed: u64,
    pub rules: Rules,
    /// By stream id.
    pub streams: Vec<StreamRules>,
    /// In the order of [`Route::ALL`].
    pub hops: [Hop; 2],
    /// Deaths of the process a day, on average.
    pub crashes_per_day: f64,
}

/// What one day came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    pub limit: Option<u64>,
    pub offered: u64,
    /// Final dots of the new server.
    pub new: u64,
    pub legacy_at_once: u64,
    pub legacy_late: u64,
}

enum Event {
    /// A connection begins with what it was handed.
    Mail(Box<Claimed>),
    /// The final dot leaves: the octets are gone, whatever is said about them.
    Dot(Box<Flight>),
    /// The answer, or the loss of it.
    Answer(Box<Flight>),
    /// A next hop cannot be reached for a while.
    Down(Route, Duration),
    /// And now it can again.
    Back,
}

pub struct World {
    gate: WarmupGate,
    /// `None` only while it is being opened anew.
    spool: Option<Spool<MemoryStore>>,
    schedule: Schedule,
    pools: Pools,
    settle: SettleRules,
    hops: [Hop; 2],
    crashes_per_day: f64,
    random: fastrand::Rng,
    events: BTreeMap<(Timestamp, u64), Event>,
    sequence: u64,
    moments: u64,
    arrivals: VecDeque<Arrival>,
    expired: Vec<Claimed>,
    last_id: u64,
    last_recipient: u64,
    crash_at: Timestamp,
    /// Tokens of today that went down with a crash.
    lost_today: u64,
    streams: Vec<StreamRules>,
    body: NewBody,
    /// What happened, for the tests.
    pub now: Timestamp,
    pub outcomes: Vec<Outcome>,
    pub left: Left,
    pub balance: Balance,
    pub book: Book,
    pub messages: u64,
    pub crashes: u64,
    /// Each recipient has a name of its own, so that the book can tell who got what twice.
    pub names: bool,
}

impl World {
    pub fn new(setup: Setup) -> World {
        let Setup { seed, rules, streams, hops, crashes_per_day } = setup;
        let calendar: Calendar = rules.calendar.clone();
        let start = calendar.span(rules.start.expect("a ramp has a start")).starts;
        let left = Left::new(rules.clone());
        let gate = WarmupGate::new(Some(rules), calendar, streams.clone());
        let (spool, _) = Spool::open(MemoryStore::new(), start).expect("memory opens");
        let retry = RetrySchedule::default();
        let max_age = HOUR * 24 * 5;
        World {
            schedule: Schedule::new(gate.order()),
            gate,
            spool: Some(spool),
            pools: Pools::new([hops[0].connections, hops[1].connections]),
            settle: SettleRules::new(retry, max_age, "relay.example".into(), Route::Legacy),
            hops,
            crashes_per_day,
            random: fastrand::Rng::with_seed(seed),
            events: BTreeMap::new(),
            sequence: 0,
            moments: 0,
            arrivals: VecDeque::new(),
            expired: Vec::new(),
            last_id: 0,
            last_recipient: 0,
            crash_at: Timestamp::NEVER,
            lost_today: 0,
            streams,
            body: NewBody::small(Bytes::from_static(b"Subject: simulated\r\n\r\nHello.\r\n")),
            now: start,
            outcomes: Vec::new(),
            left,
            balance: Balance::default(),
            book: Book::default(),
            messages: 0,
            crashes: 0,
            names: false,
        }
    }

    /// Lives through one more day of mail, given in the order of time.
    pub fn live(&mut self, day: DaySpan, arrivals: Vec<Arrival>) {
        self.arrivals.extend(arrivals);
        self.outcomes.push(Outcome::default());
        self.plan_crash();
        self.now = self.now.max(day.starts);
        // Any operation makes the day turn.
        self.commit(Batch::default(), &[]);
        self.moment();
        self.nobody_sleeps_in_vain();
        while let Some(now) = self.next_moment(day) {
            self.now = now;
            if now >= self.crash_at && self.is_worth_a_crash() {
                self.crash();
            }
            self.moment();
        }
        let limit = self.total().record.limit;
        self.outcomes.last_mut().expect("just pushed").limit = limit;
        self.balance.recount(self.spool.as_mut().expect("there is a spool").store());
        self.left.day_ends();
        self.nobody_waits_too_long();
        self.refunds_came_back(day);
    }

    /// The day `number` of the ramp, from 0.
    pub fn day(&self, number: usize) -> DaySpan {
        let start = self.gate.rules().and_then(|rules| rules.start).expect("a ramp has a start");
        self.gate.calendar().span(mailramp::message::Day(start.0 + number as i32))
    }

    pub fn total(&self) -> &LaneLedger {
        self.spool().ledger().lane(LaneId::TOTAL).expect("a day has begun")
    }

    pub fn state(&self) -> mailramp::policy::State {
        self.gate.state(self.spool().ledger(), self.total(), self.now).expect("there is a ramp")
    }

    fn spool(&self) -> &Spool<MemoryStore> {
        self.spool.as_ref().expect("only away while it is opened anew")
    }

    fn spool_mut(&mut self) -> &mut Spool<MemoryStore> {
        self.spool.as_mut().expect("only away while it is opened anew")
    }

    fn next_moment(&self, day: DaySpan) -> Option<Timestamp> {
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        let arrival = self.arrivals.front().map(|arrival| arrival.at);
        let wake = self.schedule.wake_at(self.now, |queue| self.pools.ready(queue.route()) > 0);
        assert!(
            wake.is_none_or(|at| at > self.now),
            "nothing is left to do at {:?}, yet it wakes at {wake:?}",
            self.now
        );
        let crash = Some(self.crash_at).filter(|at| *at > self.now);
        let next = [event, arrival, wake, crash].into_iter().flatten().min()?;
        (next < day.ends).then_some(next.max(self.now))
    }

    /// Everything that can be done at this moment.
    fn moment(&mut self) {
        let mut wrote = false;
        for batches in 0.. {
            assert!(batches < BATCHES_MOST, "the dispatcher spins at {:?}", self.now);
            let mut batch = self.answers();
            self.take_arrivals(&mut batch);
            if self.schedule.housekeeping_is_due(self.now) {
                let most_items = CHORE_MOST;
                let drop_dead = Chore::DropDead { most_items };
                batch.chores = vec![Chore::MoveOverdue { most_items }, Chore::TakeExpired { most_items }, drop_dead];
            }
            let ready = self.claims(&mut batch);
            if batch.is_empty() {
                break;
            }
            self.commit(batch, &ready);
            wrote = true;
        }
        // A line that was forgotten stays so; there is no need to look at every moment.
        self.moments += 1;
        if wrote && self.moments.is_multiple_of(LOOKED_AT) {
            self.nobody_sleeps_in_vain();
        }
    }

    /// Lets the events of this moment happen; the outcomes to be written are the batch.
    fn answers(&mut self) -> Batch {
        let mut batch = Batch::default();
        for claimed in std::mem::take(&mut self.expired) {
            let fresh = self.fresh();
            batch
                .settles
                .push(self.settle.expire(claimed.item, b"", self.now, fresh, &mut ReportBudget::unlimited()).settle);
        }
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Event::Mail(claimed) => self.mail(*claimed, &mut batch),
                Event::Dot(flight) => self.dot(flight),
                Event::Answer(flight) => {
                    self.pools.give_back_one(flight.route());
                    let fresh = self.fresh();
                    self.book.answered(&flight);
                    let Flight { claimed, verdicts, .. } = *flight;
                    let ended = Ended {
                        heard: &[],
                        has_legacy: false,
                        item: claimed.item,
                        verdicts: &verdicts,
                        remote: None,
                        header: b"",
                        fallback: false,
                        reports_itself: true,
                    };
                    batch.settles.push(
                        self.settle
                            .settle(ended, self.now, &mut self.random, fresh, &mut ReportBudget::unlimited())
                            .settle,
                    );
                }
                Event::Down(route, length) => {
                    let until = self.now.after(length);
                    self.pools.shut(route, until);
                    self.push(until, Event::Back);
                }
                Event::Back => self.pools.look_again(self.now),
            }
        }
        batch
    }

    fn mail(&mut self, claimed: Claimed, batch: &mut Batch) {
        let route = claimed.item.queue.route();
        let stale = |slot| self.now.slot() > slot || self.now.since(claimed.at) >= CLAIM_FRESH;
        if claimed.item.reservation.is_some_and(|reservation| stale(reservation.slot)) {
            self.pools.give_back_one(route);
            let fates = vec![Fate::Untouched; claimed.item.envelope.recipients.len()];
            let (item, reply) = (claimed.item, String::new());
            batch.settles.push(Settle { item, fates, reply, expires: Timestamp::NEVER, report: None });
            return;
        }
        let flight = Box::new(self.hops[route as usize].fly(claimed, self.now, &mut self.random));
        match flight.dot_at {
            Some(at) => self.push(at, Event::Dot(flight)),
            None => self.push(flight.answer_at, Event::Answer(flight)),
        }
    }

    fn dot(&mut self, flight: Box<Flight>) {
        if flight.route() == Route::New {
            let recipients = flight.left();
            self.left.left(self.now, recipients);
            self.outcomes.last_mut().expect("a day has begun").new += recipients;
        }
        self.book.arrived(&flight);
        self.push(flight.answer_at, Event::Answer(flight));
    }

    fn take_arrivals(&mut self, batch: &mut Batch) {
        while batch.accepts.len() < ACCEPT_MOST && self.arrivals.front().is_some_and(|a| a.at <= self.now) {
            let arrival = self.arrivals.pop_front().expect("there is a front");
            let recipients: Vec<_> = (0..arrival.recipients).map(|_| self.recipient()).collect();
            let part = Part { lane: LaneId::TOTAL, stream: arrival.stream, recipients, only: None };
            batch.accepts.push(Accept {
                id: self.fresh(),
                reverse_path: Bytes::from_static(b"app@example.com"),
                parameters: Bytes::new(),
                parts: vec![part],
                body: self.body.clone(),
            });
        }
    }

    fn recipient(&mut self) -> Recipient {
        self.last_recipient += 1;
        let path = match self.names {
            true => Bytes::from(self.last_recipient.to_string()),
            false => Bytes::from_static(b"someone@example.net"),
        };
        Recipient { path, parameters: Bytes::new() }
    }

    /// Asks for what is due, as far as connections stand ready; returns how many were taken for each claim.
    fn claims(&mut self, batch: &mut Batch) -> Vec<usize> {
        let mut taken = Vec::new();
        for (queue, streams) in self.schedule.due(self.now) {
            let ready = self.pools.take_up_to(queue.route(), CLAIM_MOST);
            if ready > 0 {
                batch.claims.push(Claim { queue, streams, most_items: ready });
                taken.push(ready);
            }
        }
        taken
    }

    fn commit(&mut self, batch: Batch, ready: &[usize]) {
        let spool = self.spool.as_mut().expect("only away while it is opened anew");
        let done = spool.apply(&batch, &self.gate, &self.pools, self.now).expect("memory takes everything");
        for (claim, (answer, ready)) in batch.claims.iter().zip(done.claims.iter().zip(ready)) {
            self.pools.give_back_some(claim.queue.route(), ready - answer.items);
            self.schedule.claimed(claim.queue, answer);
        }
        self.count(&batch, &done);
        self.schedule.touched(done.touched, done.wake);
        for queue in done.refunded {
            self.schedule.refunded(queue);
        }
        if !batch.chores.is_empty() {
            let next = done.chores.iter().filter_map(|answer| answer.next).min();
            self.schedule.housekept(next);
        }
        for claimed in done.handed {
            if let (Queue::New(_), Some(reservation)) = (claimed.item.queue, claimed.item.reservation) {
                self.left.reserved(self.now, reservation.recipients);
            }
            let pickup = self.hops[claimed.item.queue.route() as usize].pickup(&mut self.random);
            self.push(self.now.after(pickup), Event::Mail(Box::new(claimed)));
        }
        self.expired.extend(done.expired);
        self.balance.check(self.spool.as_ref().expect("just used").ledger(), self.now);
    }

    fn count(&mut self, batch: &Batch, done: &Done) {
        if !done.days.is_empty() {
            self.left.turned(self.spool.as_ref().expect("just used").ledger());
        }
        let today = self.outcomes.last_mut().expect("a day has begun");
        for (accept, placed) in batch.accepts.iter().zip(&done.accepts) {
            self.messages += 1;
            self.balance.accepted(accept);
            today.offered += placed.iter().map(|p| p.recipients).sum::<u64>();
            let legacy = placed.iter().filter(|p| p.queue == Queue::Legacy);
            today.legacy_at_once += legacy.map(|p| p.recipients).sum::<u64>();
        }
        for settle in &batch.settles {
            self.balance.settled(settle);
        }
        if let [moved, _, dropped] = &done.chores[..] {
            today.legacy_late += moved.recipients;
            self.balance.dropped(dropped.recipients);
        }
    }

    /// From `at` on the next hop of `route` cannot be reached for `length`.
    pub fn outage(&mut self, at: Timestamp, route: Route, length: Duration) {
        self.push(at, Event::Down(route, length));
    }

    fn fresh(&mut self) -> QueueId {
        self.last_id += 1;
        QueueId(self.last_id)
    }

    fn push(&mut self, at: Timestamp, event: Event) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }
}

/// The stream of tests that need one only.
pub const ONLY: StreamId = StreamId::DEFAULT;
