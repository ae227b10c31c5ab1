//! Everything at once, from a seed: batches of all kinds, full disks, crashes and a clock that is not to be trusted.
//!
//! `SPOOL_SEED=n` runs one seed again, `SPOOL_SEEDS=n` so many new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::*;

const STEPS: usize = 250;
const LIMIT: u64 = 40;

#[test]
fn whatever_happens_in_memory_no_mail_is_lost_and_no_limit_broken() {
    run_seeds::<Memory>(5);
}

#[test]
fn whatever_happens_in_sqlite_no_mail_is_lost_and_no_limit_broken() {
    run_seeds::<Sqlite>(2);
}

fn run_seeds<B: Backend>(usual: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match (number("SPOOL_SEED"), number("SPOOL_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).map(|_| fastrand::u64(..)).collect(),
        (None, None) => (1..=usual).collect(),
    };
    for seed in seeds {
        println!("SPOOL_SEED={seed}"); // Shown when the test fails.
        Run::<B>::new(seed).all();
    }
}

struct Run<B: Backend> {
    bench: Bench<B>,
    random: fastrand::Rng,
    /// Every accepted recipient, and whether it has come to its end.
    recipients: BTreeMap<String, bool>,
    in_flight: Vec<Claimed>,
    /// When recipients left on a lane: the final dot, as late as it may have been.
    dots: Vec<(LaneId, Timestamp, u64)>,
    /// The latest moment this process has seen, and any process.
    seen: Timestamp,
    peak: Timestamp,
}

impl<B: Backend> Run<B> {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut gate = FixedGate { wait: Some(3 * HOUR), ..FixedGate::of(LIMIT) };
        gate.limits.insert(OTHER_LANE, random.bool().then_some(LIMIT / 2));
        gate.spacing = (random.u8(..4) == 0).then_some(5 * MINUTE);
        if random.bool() {
            gate.stream_limits.insert(OTHER_STREAM, LIMIT / 4);
        }
        let bench = Bench::new(gate);
        let (seen, peak) = (bench.now, bench.now);
        let (recipients, in_flight, dots) = (BTreeMap::new(), Vec::new(), Vec::new());
        Run { bench, random, recipients, in_flight, dots, seen, peak }
    }

    fn all(mut self) {
        for _ in 0..STEPS {
            self.move_clock();
            if self.random.u8(..25) == 0 {
                self.crash();
            }
            let batch = self.batch();
            self.apply(batch);
            self.check();
        }
        self.drain();
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.u32(..n) == 0
    }

    fn move_clock(&mut self) {
        let seconds = match self.random.u8(..40) {
            0 => 86_400 + self.random.i64(0..7200),
            1 => -self.random.i64(0..5 * 3600),
            _ => self.random.i64(0..1800),
        };
        self.bench.now = Timestamp(self.bench.now.0 + seconds * NANOS_PER_SECOND);
        self.seen = self.seen.max(self.bench.now);
        self.peak = self.peak.max(self.seen);
    }

    fn crash(&mut self) {
        if self.one_in(4) {
            self.bench.now = Timestamp(self.bench.now.0 - self.random.i64(0..5 * 3600) * NANOS_PER_SECOND);
        }
        if self.bench.now < self.seen {
            // What has left, left at moments that are now to come. The ledger knows; a list of moments does not.
            self.dots.clear();
            self.seen = self.bench.now;
        }
        let lost = std::mem::take(&mut self.in_flight);
        self.bench.crash();
        assert_eq!(self.bench.recovered, Recovered { in_flight: lost.len(), damaged: 0 });
        let back = self.bench.items();
        for claimed in lost {
            let item = back.iter().find(|i| i.id == claimed.item.id).expect("comes back");
            assert!(item.maybe && item.queue == claimed.item.queue && item.state.is_waiting(), "{item:?}");
            if claimed.item.reservation.is_some() {
                self.leave(claimed.item.lane, claimed.item.recipients());
            }
        }
        self.check();
    }

    // --- a batch of anything ------------------------------------------------------------------------------------

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for n in (0..self.in_flight.len()).rev() {
            if self.one_in(3) {
                let claimed = self.in_flight[n].clone();
                let settle = self.outcome(&claimed);
                batch.settles.push(settle);
            }
        }
        for _ in 0..self.random.usize(..3) {
            let queue = [Queue::Legacy, Queue::New(LANE), Queue::New(OTHER_LANE)][self.random.usize(..3)];
            let mut streams = vec![STREAM, OTHER_STREAM];
            self.random.shuffle(&mut streams);
            batch.claims.push(Claim { queue, streams, most_items: 1 + self.random.usize(..5) });
        }
        if self.one_in(2) {
            let most_items = 1 + self.random.usize(..6);
            batch.chores.push(match self.random.u8(..4) {
                0 => Chore::MoveOverdue { most_items },
                1 => Chore::TakeExpired { most_items },
                2 => Chore::DropDead { most_items },
                _ => Chore::Flush { message: None, most_items },
            });
        }
        for _ in 0..self.random.usize(..4) {
            let accept = self.message();
            batch.accepts.push(accept);
        }
        batch
    }

    fn message(&mut self) -> Accept {
        let lane = [LANE, OTHER_LANE][self.random.usize(..2)];
        let stream = [STREAM, OTHER_STREAM][self.random.usize(..2)];
        let size = [0, 10, 4096, 4097, 20_000][self.random.usize(..5)];
        let recipients = 1 + self.random.usize(..6);
        let mut message = self.bench.message(lane, stream, recipients, size);
        if recipients > 2 && self.one_in(3) {
            let rest = message.parts[0].recipients.split_off(1);
            message.parts.push(Part { lane: OTHER_LANE, stream, recipients: rest, only: None });
        }
        if self.one_in(10) {
            message.parts[0].only = Some(Route::ALL[self.random.usize(..2)]);
        }
        let large = self.one_in(8);
        message.body = self.bench.backend.body(octets(message.id, size), message.id, large);
        message
    }

    fn outcome(&mut self, claimed: &Claimed) -> Settle {
        let now = self.seen;
        let due = now.after(Duration::from_secs(self.random.u64(..7200)));
        let until = now.after(self.random.u32(..48) * HOUR);
        let expired = claimed.item.expires.is_some_and(|e| e <= now) && claimed.item.reservation.is_none();
        let fates: Vec<_> = (0..claimed.item.recipients())
            .map(|_| match self.random.u8(..if expired { 2 } else { 40 }) {
                0 => Fate::Failed,
                1 => Fate::Dead { until },
                2 => Fate::Damaged,
                3..=9 => Fate::Deferred { due },
                10..=13 => Fate::Unknown { due },
                14..=16 => Fate::Untouched,
                17..=19 => Fate::Rerouted { reason: Reason::Fallback },
                _ => Fate::Relayed,
            })
            .collect();
        let mut settle = self.bench.outcome(claimed, &fates);
        settle.expires = now.after(6 * HOUR);
        if fates.contains(&Fate::Failed) && self.one_in(2) {
            let mut report = self.message();
            report.parts.iter_mut().for_each(|part| part.only = Some(Route::Legacy));
            settle.report = Some(report);
        }
        settle
    }

    // --- apply, and what must follow ----------------------------------------------------------------------------

    fn apply(&mut self, batch: Batch) {
        let ready = Route::ALL.map(|route| {
            let count = self.random.usize(..3);
            self.bench.ready.set(route, count);
            count
        });
        self.bench.faults().full = self.random.u8(..12) == 0;
        self.bench.faults().fail_after = (self.random.u8(..6) == 0).then(|| self.random.u32(..50));
        let before = self.bench.items();
        let result = self.bench.apply(&batch);
        self.bench.faults().fail_after = None;
        let left = Route::ALL.map(|route| self.bench.ready.left(route));
        match result {
            Ok(done) => {
                let at_once = |route: Route| {
                    let placed = done.accepts.iter().flatten();
                    placed.filter(|p| p.state == State::InFlight && p.queue.route() == route).count()
                };
                let claimed: usize = done.claims.iter().map(|c| c.items).sum();
                let reports = done.handed.len() - claimed - at_once(Route::New) - at_once(Route::Legacy);
                let taken = Route::ALL.map(|route| ready[route as usize] - left[route as usize]);
                assert_eq!(taken[0], at_once(Route::New), "connections taken and used");
                assert_eq!(taken[1], at_once(Route::Legacy) + reports, "connections taken and used");
                self.committed(batch, done);
            }
            Err(SpoolError::Full { .. }) => {
                assert_eq!(left, ready, "a batch that failed keeps no connection");
                assert_eq!(self.bench.items(), before, "a batch that failed leaves nothing");
                let reports = batch.settles.into_iter().filter_map(|s| s.report);
                for accept in batch.accepts.into_iter().chain(reports) {
                    if let body::NewBody::File { path, .. } = accept.body {
                        std::fs::remove_file(path).unwrap();
                    }
                }
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn committed(&mut self, batch: Batch, done: Done) {
        for settle in batch.settles {
            self.in_flight.retain(|c| c.item.id != settle.item.id);
            let mut used = 0;
            for (fate, name) in settle.fates.iter().zip(names(&settle.item)) {
                if matches!(fate, Fate::Relayed | Fate::Failed) {
                    let end = self.recipients.insert(name, true);
                    assert_eq!(end, Some(false), "settled twice");
                }
                used += u64::from(matches!(fate, Fate::Relayed | Fate::Unknown { .. }));
            }
            if settle.item.reservation.is_some() {
                self.leave(settle.item.lane, used);
            }
            self.accepted(settle.report.as_ref());
        }
        self.accepted(&batch.accepts);
        for claimed in done.handed.iter().chain(&done.expired) {
            assert_octets(claimed);
        }
        self.in_flight.extend(done.handed);
        self.in_flight.extend(done.expired);
        if batch.chores.iter().any(|c| matches!(c, Chore::DropDead { .. })) && done.chores[0].items > 0 {
            let kept: BTreeSet<_> = self.bench.items().iter().flat_map(names).collect();
            let mut dropped = 0;
            for (name, end) in self.recipients.iter_mut().filter(|(name, end)| !**end && !kept.contains(*name)) {
                assert!(!name.is_empty());
                (*end, dropped) = (true, dropped + 1);
            }
            assert_eq!(dropped, done.chores[0].recipients, "only dead letters were dropped");
        }
    }

    fn accepted<'a>(&mut self, messages: impl IntoIterator<Item = &'a Accept>) {
        for part in messages.into_iter().flat_map(|m| &m.parts) {
            for recipient in &part.recipients {
                let name = String::from_utf8(recipient.path.to_vec()).unwrap();
                assert_eq!(self.recipients.insert(name, false), None);
            }
        }
    }

    /// Recipients left, now at the latest: no day and no 24 hours may hold more than the limit.
    fn leave(&mut self, lane: LaneId, recipients: u64) {
        for id in [lane, LaneId::TOTAL] {
            self.dots.push((id, self.seen, recipients));
            let Some(limit) = self.bench.gate.limits[&id] else { continue };
            let day = |t: Timestamp| t.seconds() / 86_400;
            let sum = |which: &dyn Fn(Timestamp) -> bool| -> u64 {
                self.dots.iter().filter(|(l, t, _)| *l == id && which(*t)).map(|d| d.2).sum()
            };
            let today = sum(&|t| day(t) == day(self.seen));
            assert!(today <= limit, "{today} left in a day on {id:?}");
            let hours = sum(&|t| t.0 > self.seen.0 - DAY.as_nanos() as i64);
            assert!(hours <= limit, "{hours} left in 24 hours on {id:?}");
        }
    }

    fn check(&mut self) {
        self.bench.check();
        let mut stored: BTreeMap<String, u32> = BTreeMap::new();
        for name in self.bench.items().iter().flat_map(names) {
            *stored.entry(name).or_default() += 1;
        }
        for (name, end) in &self.recipients {
            assert_eq!(stored.remove(name).unwrap_or(0), u32::from(!end), "{name}");
        }
        assert_eq!(stored, BTreeMap::new(), "stored and never accepted");
        let flying: u64 = self.in_flight.iter().filter_map(|c| c.item.reservation).map(|r| r.recipients).sum();
        for (id, lane) in self.bench.ledger().lanes() {
            if let Some(limit) = self.bench.gate.limits[&id] {
                assert!(lane.reserved_today() <= limit, "{id:?} today {}", lane.reserved_today());
                let sum = lane.reserved_24h(self.peak);
                assert!(sum <= limit, "{id:?} in 24 hours {sum}");
            }
            if id == LaneId::TOTAL {
                assert_eq!(lane.outstanding(), flying, "reserved and in flight");
            }
        }
    }

    /// With time and a friendly next hop everything comes to its end, apart from what is put aside.
    fn drain(mut self) {
        self.bench.faults().full = false;
        self.bench.gate.spacing = None;
        for _ in 0..400 {
            self.bench.pass(8 * HOUR);
            self.seen = self.seen.max(self.bench.now);
            self.peak = self.peak.max(self.seen);
            let claims = [Queue::Legacy, Queue::New(LANE), Queue::New(OTHER_LANE)]
                .map(|queue| Claim { queue, streams: vec![STREAM, OTHER_STREAM], most_items: 100 })
                .to_vec();
            let settles: Vec<_> = std::mem::take(&mut self.in_flight)
                .iter()
                .map(|c| self.bench.outcome(c, &vec![Fate::Relayed; c.item.envelope.recipients.len()]))
                .collect();
            let batch =
                Batch { settles, claims, chores: vec![Chore::DropDead { most_items: 1000 }], ..Batch::default() };
            let done = self.bench.apply(&batch).unwrap();
            self.committed(batch, done);
            if self.in_flight.is_empty() && self.bench.items().iter().all(|i| i.state == State::Quarantined) {
                self.check();
                return;
            }
        }
        panic!("{} items are left", self.bench.items().len());
    }
}
