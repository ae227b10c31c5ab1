//! Lives through a ramp with the real gate, schedule and spool, from one event to the next.
//!
//! What the committer and the dispatcher do with threads and sockets, [`World`] does in one loop with a clock of its
//! own: everything that happens at one moment is one batch, and between two moments nothing is looked at. The next hops
//! are [`hop::Hop`]s, what operators and providers do beside mail is in [`operator`]. What was promised is checked after
//! every event, not from the ledger's numbers but from what left: [`windows`], [`checks`], [`rank`], [`idle`], [`restart`].

pub mod checks;
mod commit;
pub mod hop;
mod idle;
mod named;
pub mod operator;
mod oracle;
pub mod places;
mod rank;
mod restart;
pub mod scenario;
pub mod traffic;
pub mod windows;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use mailramp::delivery::budget::ReportBudget;
use mailramp::delivery::schedule::Schedule;
use mailramp::delivery::settle::{Ended, SettleRules};
use mailramp::message::{Day, DaySpan, LaneId, QueueId, Route, StreamId, Timestamp};
use mailramp::policy::{BrakeRules, Calendar, RetrySchedule, Rules, StreamRules};
use mailramp::relay::gate::WarmupGate;
use mailramp::spool::body::NewBody;
use mailramp::spool::ledger::LaneLedger;
use mailramp::spool::memory::MemoryStore;
use mailramp::spool::{Accept, Batch, Claimed, Fate, Part, Settle, Spool};

use checks::{Balance, Book};
use hop::{Flight, Hop, Pools};
use operator::{Act, Pressure, Stands};
use places::Places;
use traffic::Arrival;
use windows::Left;

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
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub rules: Rules,
    /// By stream id.
    pub streams: Vec<StreamRules>,
    pub places: Places,
    pub brake: BrakeRules,
    /// In the order of [`Route::ALL`].
    pub hops: [Hop; 2],
    /// Deaths of the process a day, on average.
    pub crashes_per_day: f64,
    /// And at each moment at which something happens, with this probability.
    pub crash_at_each: f64,
}

impl Setup {
    /// One lane, perfect servers, no deaths.
    pub fn new(rules: Rules, streams: Vec<StreamRules>) -> Setup {
        Setup {
            seed: 1,
            rules,
            streams,
            places: Places::one(),
            brake: BrakeRules::default(),
            hops: [Hop::PERFECT, Hop::PERFECT],
            crashes_per_day: 0.0,
            crash_at_each: 0.0,
        }
    }
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

/// A life.
pub struct World {
    gate: WarmupGate,
    /// `None` only while it is being opened anew.
    spool: Option<Spool<MemoryStore>>,
    schedule: Schedule,
    pools: Pools,
    settle: SettleRules,
    hops: [Hop; 2],
    places: Places,
    pressures: BTreeMap<LaneId, Pressure>,
    crashes_per_day: f64,
    crash_at_each: f64,
    random: fastrand::Rng,
    events: BTreeMap<(Timestamp, u64), Event>,
    acts: BTreeMap<(Timestamp, u64), Act>,
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
    stands: Stands,
    /// By lane, of the day in force.
    stages: BTreeMap<LaneId, u32>,
    /// Until when each message may wait for the new server, by what its stream was when it was accepted.
    waits: HashMap<QueueId, Option<Timestamp>>,
    copy: Option<(MemoryStore, Balance)>,
    /// The day whose limits count as used up, whatever left.
    used_up: Option<Day>,
    /// What happened, for the tests.
    pub now: Timestamp,
    pub outcomes: Vec<Outcome>,
    /// Limit and final dots of each lane, day by day.
    pub lanes: Vec<BTreeMap<LaneId, Outcome>>,
    pub left: Left,
    pub balance: Balance,
    pub book: Book,
    pub messages: u64,
    pub crashes: u64,
    pub restores: u64,
    /// Times a reply put a brake on, days of lanes that could not count, items the legacy server was given.
    pub braked_by_replies: u64,
    pub braked_days: u64,
    pub given_back: u64,
    /// Times a lane was served on which several streams were ready.
    pub orders_seen: u64,
    /// Each recipient has a name of its own, so that the book can tell who got what twice.
    pub names: bool,
}

impl World {
    pub fn new(setup: Setup) -> World {
        let Setup { seed, rules, streams, places, brake, hops, crashes_per_day, crash_at_each } = setup;
        let calendar: Calendar = rules.calendar.clone();
        let start = calendar.span(rules.start.expect("a ramp has a start")).starts;
        let left = Left::new(rules.clone(), streams.clone());
        let gate = WarmupGate::new(Some(rules), calendar, streams.clone())
            .with_lanes(places.lanes.clone())
            .with_brake(brake)
            .with_directory(places.known.clone());
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
            places,
            pressures: BTreeMap::new(),
            crashes_per_day,
            crash_at_each,
            random: fastrand::Rng::with_seed(seed),
            events: BTreeMap::new(),
            acts: BTreeMap::new(),
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
            stands: Stands::default(),
            stages: BTreeMap::new(),
            waits: HashMap::new(),
            copy: None,
            used_up: None,
            now: start,
            outcomes: Vec::new(),
            lanes: Vec::new(),
            left,
            balance: Balance::default(),
            book: Book::default(),
            messages: 0,
            crashes: 0,
            restores: 0,
            braked_by_replies: 0,
            braked_days: 0,
            given_back: 0,
            orders_seen: 0,
            names: false,
        }
    }

    /// Lives through one more day of mail, given in the order of time.
    pub fn live(&mut self, day: DaySpan, arrivals: Vec<Arrival>) {
        self.arrivals.extend(arrivals);
        self.outcomes.push(Outcome::default());
        self.lanes.push(BTreeMap::new());
        self.plan_crash();
        self.now = self.now.max(day.starts);
        // Any operation makes the day turn.
        self.commit(Batch::default(), &[]);
        self.moment();
        self.nobody_sleeps_in_vain();
        while let Some(now) = self.next_moment(day) {
            self.now = now;
            let dies = self.crash_at_each > 0.0 && self.random.f64() < self.crash_at_each;
            if (now >= self.crash_at || dies) && self.is_worth_a_crash() {
                self.crash();
            }
            self.moment();
        }
        let limit = self.total().record.limit;
        self.outcomes.last_mut().expect("just pushed").limit = limit;
        let limits: Vec<_> = self.spool().ledger().lanes().map(|(id, lane)| (id, lane.record.limit)).collect();
        for (id, limit) in limits {
            self.lanes.last_mut().expect("just pushed").entry(id).or_default().limit = limit;
        }
        self.balance.recount(self.spool.as_mut().expect("there is a spool").store());
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
        let act = self.acts.first_key_value().map(|((at, _), _)| *at);
        let arrival = self.arrivals.front().map(|arrival| arrival.at);
        let wake = self.schedule.wake_at(self.now, |queue| self.pools.ready(queue.route()) > 0);
        assert!(
            wake.is_none_or(|at| at > self.now),
            "nothing is left to do at {:?}, yet it wakes at {wake:?}",
            self.now
        );
        let crash = Some(self.crash_at).filter(|at| *at > self.now);
        let next = [event, act, arrival, wake, crash].into_iter().flatten().min()?;
        (next < day.ends).then_some(next.max(self.now))
    }

    /// Everything that can be done at this moment.
    fn moment(&mut self) {
        let mut wrote = false;
        while let Some(entry) = self.acts.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let act = entry.remove();
            self.act(act);
        }
        self.note_brakes();
        for batches in 0.. {
            assert!(batches < BATCHES_MOST, "the dispatcher spins at {:?}", self.now);
            let mut batch = self.answers();
            self.take_arrivals(&mut batch);
            batch.chores = self.chores();
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
                    self.listen(&flight);
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
        let pressure = self.pressures.get(&claimed.item.lane).filter(|_| route == Route::New);
        let flight = Box::new(self.hops[route as usize].fly(claimed, pressure, self.now, &mut self.random));
        match flight.dot_at {
            Some(at) => self.push(at, Event::Dot(flight)),
            None => self.push(flight.answer_at, Event::Answer(flight)),
        }
    }

    fn dot(&mut self, flight: Box<Flight>) {
        if flight.route() == Route::New {
            let (recipients, item) = (flight.left(), &flight.claimed.item);
            self.left.left(item.lane, self.now, recipients, item.reservation.is_some());
            self.outcomes.last_mut().expect("a day has begun").new += recipients;
            let lanes = self.lanes.last_mut().expect("a day has begun");
            windows::both(item.lane).for_each(|id| lanes.entry(id).or_default().new += recipients);
        }
        self.book.arrived(&flight);
        self.push(flight.answer_at, Event::Answer(flight));
    }

    fn take_arrivals(&mut self, batch: &mut Batch) {
        while batch.accepts.len() < ACCEPT_MOST && self.arrivals.front().is_some_and(|a| a.at <= self.now) {
            let arrival = self.arrivals.pop_front().expect("there is a front");
            let mut parts: Vec<Part> = Vec::new();
            for _ in 0..arrival.recipients {
                let domain = arrival.domain.unwrap_or_else(|| self.places.pick(&mut self.random));
                self.last_recipient += 1;
                let recipient = places::recipient(self.names.then_some(self.last_recipient), domain);
                let (lane, stream) = (self.places.lane(domain), arrival.stream);
                match parts.iter_mut().find(|part| part.lane == lane) {
                    Some(part) => part.recipients.push(recipient),
                    None => parts.push(Part { lane, stream, recipients: vec![recipient], only: None }),
                }
            }
            batch.accepts.push(Accept {
                id: self.fresh(),
                reverse_path: Bytes::from_static(b"app@example.com"),
                parameters: Bytes::new(),
                parts,
                body: self.body.clone(),
            });
        }
    }

    /// From `at` on the next hop of `route` cannot be reached for `length`.
    pub fn outage(&mut self, at: Timestamp, route: Route, length: Duration) {
        self.push(at, Event::Down(route, length));
    }

    /// This happens at `at`.
    pub fn plan(&mut self, at: Timestamp, act: Act) {
        self.sequence += 1;
        self.acts.insert((at, self.sequence), act);
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
