//! Lives through a ramp in steps of 10 seconds with the real rules and a ledger of 97 quarter-hours.
//!
//! Everything that decides comes from `mailramp::policy`; this file only counts, queues and hands the numbers over.
//! After each send it checks what was promised, by exact sliding windows over what left, not by the ledger.

use std::collections::VecDeque;
use std::time::Duration;

use mailramp::message::{
    Day, DayRecord, DaySpan, LaneId, LaneRecord, NANOS_PER_SECOND, Reason, SLOT_NANOS, Slot, Timestamp,
};
use mailramp::policy::allowance::{SLOTS_BACK, oldest_counted};
use mailramp::policy::stage::{PRIOR_SHARES, auto_share};
use mailramp::policy::stream::expected;
use mailramp::policy::{
    AtDeadline, Boundary, Bounds, Closed, LaneView, OpenHours, Outlook, Overflow, Pace, Rules, StreamRules, admit,
};

pub const STEP_NANOS: i64 = 10 * NANOS_PER_SECOND;
const STEPS_PER_HOUR: i64 = 360;
const HOUR_NANOS: i64 = STEPS_PER_HOUR * STEP_NANOS;
const SLOTS: usize = 128; // at least 97; a power of two keeps the ring simple
/// A Monday.
pub const START: Day = Day(20_513);

/// When and how much one stream offers.
pub struct Stream {
    pub rules: StreamRules,
    /// Recipients on simulated day 1, 2, …
    pub volume: fn(usize) -> u64,
    /// Even arrivals over these hours after local midnight; equal: all at once at that hour.
    pub hours: &'static [(i64, i64)],
    /// Part for each lane; `[1.0]` when only the total is bounded.
    pub mix: &'static [f64],
    /// The first day it exists.
    pub from_day: usize,
}

impl Stream {
    pub fn even(volume: fn(usize) -> u64, hours: &'static [(i64, i64)]) -> Stream {
        Stream { rules: waiting(50, 900), volume, hours, mix: &[1.0], from_day: 1 }
    }

    /// What arrives for lane `lane` in step `step` of day `day`. Fractions add up over the day.
    fn arrivals(&self, day: usize, step: i64, lane: usize) -> u64 {
        let per_part = ((self.volume)(day) as f64 * self.mix[lane] / self.hours.len() as f64).round() as i64;
        let part = |&(from, until): &(i64, i64)| {
            let (first, steps) = (from * STEPS_PER_HOUR, ((until - from) * STEPS_PER_HOUR).max(1));
            let so_far = |step: i64| per_part * (step - first).clamp(0, steps) / steps;
            so_far(step + 1) - so_far(step)
        };
        self.hours.iter().map(part).sum::<i64>() as u64
    }
}

/// A ramping stream that waits for up to `max_wait_s` seconds.
pub fn waiting(priority: u8, max_wait_s: u64) -> StreamRules {
    let overflow = Overflow::HoldThenLegacy { max_wait: Duration::from_secs(max_wait_s) };
    StreamRules { priority, overflow, ..StreamRules::default() }
}

/// One case to live through.
pub struct Scenario {
    pub rules: Rules,
    pub streams: Vec<Stream>,
    /// Hours of the days that do not have 24: (day, hours).
    pub odd_days: &'static [(usize, i64)],
    /// Provider lanes with automatic shares, besides the total.
    pub providers: bool,
    /// (lane of the mix, day): braked that whole day.
    pub braked: &'static [(usize, usize)],
    /// Look at every step, also those at which nothing can happen.
    pub every_step: bool,
}

/// What one day of one lane came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// As computed, also on days on which the lane is complete and it does not bound.
    pub limit: u64,
    pub new: u64,
    pub legacy_at_once: u64,
    pub legacy_late: u64,
    pub offered: u64,
}

/// Sends of one lane in the last hour and the last 24 hours, exactly.
#[derive(Default)]
struct Windows {
    hour: VecDeque<(i64, u64)>,
    in_hour: u64,
    day: VecDeque<(i64, u64)>,
    in_day: u64,
}

impl Windows {
    fn sent(&mut self, now: Timestamp, recipients: u64) {
        let slide = |sends: &mut VecDeque<(i64, u64)>, sum: &mut u64, length: i64| {
            while sends.front().is_some_and(|(at, _)| *at <= now.0 - length) {
                *sum -= sends.pop_front().expect("there is a front").1;
            }
            sends.push_back((now.0, recipients));
            *sum += recipients;
        };
        slide(&mut self.hour, &mut self.in_hour, HOUR_NANOS);
        slide(&mut self.day, &mut self.in_day, 24 * HOUR_NANOS);
    }
}

struct Lane {
    record: LaneRecord,
    history: Vec<DayRecord>,
    outcomes: Vec<Outcome>,
    limit: u64,
    pace: Option<Pace>,
    arrival: Timestamp,
    reserved_today: u64,
    slots: [u64; SLOTS],
    reserved_24h: u64,
    windows: Windows,
    complete_on_day: Option<usize>,
    braked: bool,
    /// Cached per quarter-hour of now and of the deadline: what falls out of the 24 hours between them.
    leaving: (Slot, Slot, u64),
}

impl Lane {
    fn new(lane: u16) -> Lane {
        let record = LaneRecord {
            lane: LaneId(lane),
            stage: 0,
            limit: Some(0),
            share: 1.0,
            braked_run: 0,
            last_braked: None,
            complete_run: 0,
            complete: false,
            stalled_run: 0,
        };
        Lane {
            record,
            history: Vec::new(),
            outcomes: Vec::new(),
            limit: 0,
            pace: None,
            arrival: Timestamp(0),
            reserved_today: 0,
            slots: [0; SLOTS],
            reserved_24h: 0,
            windows: Windows::default(),
            complete_on_day: None,
            braked: false,
            leaving: (Slot(0), Slot(0), 0),
        }
    }

    fn bound(&self) -> Option<u64> {
        if self.complete_on_day.is_some() { None } else { Some(self.limit) }
    }

    fn slot(&mut self, slot: i64) -> &mut u64 {
        &mut self.slots[slot as usize % SLOTS]
    }

    fn today(&mut self) -> &mut Outcome {
        self.outcomes.last_mut().expect("a day has begun")
    }

    /// What is in the 24 hours now but no longer at `deadline`.
    fn leaving(&mut self, now: Timestamp, deadline: Timestamp) -> u64 {
        let key = (now.slot(), deadline.slot());
        if (self.leaving.0, self.leaving.1) != key {
            let ahead = (key.1.0 - key.0.0).min(SLOTS_BACK);
            let oldest = oldest_counted(now).0;
            let sum = (oldest..oldest + ahead).map(|slot| *self.slot(slot)).sum();
            self.leaving = (key.0, key.1, sum);
        }
        self.leaving.2
    }
}

/// Recipients of one stream on one lane that arrived together.
struct Waiting {
    arrived: Timestamp,
    deadline: Timestamp,
    recipients: u64,
}

pub struct Simulation {
    scenario: Scenario,
    /// The total, then one per provider.
    lanes: Vec<Lane>,
    /// By stream and lane of the mix.
    queues: Vec<Vec<VecDeque<Waiting>>>,
    /// Recipients in each of the queues.
    queued: Vec<Vec<u64>>,
    /// Offered by stream, lane of the mix and day (from 0).
    offered: Vec<Vec<Vec<u64>>>,
    /// E by stream and lane (0 is the total) for today.
    expected: Vec<Vec<u64>>,
    days: Vec<DaySpan>,
    /// Streams by falling priority.
    order: Vec<usize>,
    /// (seconds waited, recipients) of all mail that left by new.
    waits: std::collections::BTreeMap<u64, u64>,
    /// Until then the first waiting stream cannot be served.
    asleep_until: Timestamp,
}

impl Simulation {
    pub fn new(scenario: Scenario) -> Simulation {
        let mixed = scenario.streams[0].mix.len();
        let lanes = if scenario.providers { 1 + mixed } else { 1 };
        let streams = scenario.streams.len();
        let mut order: Vec<usize> = (0..streams).collect();
        order.sort_by_key(|s| std::cmp::Reverse(scenario.streams[*s].rules.rank()));
        Simulation {
            lanes: (0..lanes as u16).map(Lane::new).collect(),
            queues: (0..streams).map(|_| (0..mixed).map(|_| VecDeque::new()).collect()).collect(),
            queued: vec![vec![0; mixed]; streams],
            offered: vec![vec![Vec::new(); mixed]; streams],
            expected: vec![vec![0; lanes]; streams],
            days: Vec::new(),
            order,
            waits: Default::default(),
            asleep_until: Timestamp(0),
            scenario,
        }
    }

    /// The lane that mail of lane `m` of the mix goes by.
    fn lane_of(&self, m: usize) -> usize {
        if self.scenario.providers { m + 1 } else { 0 }
    }

    pub fn run(&mut self, days: usize) {
        for day in 1..=days {
            self.begin_day(day);
            let span = *self.days.last().expect("just begun");
            for step in 0..(span.ends.0 - span.starts.0) / STEP_NANOS {
                self.step(day, step, Timestamp(span.starts.0 + step * STEP_NANOS));
            }
            self.end_day();
        }
    }

    fn step(&mut self, day: usize, step: i64, now: Timestamp) {
        if now.0 % SLOT_NANOS == 0 {
            self.next_slot(now);
        }
        self.expire(now);
        for s in self.order.clone() {
            for m in 0..self.queues[s].len() {
                let recipients = self.scenario.streams[s].arrivals(day, step, m);
                if recipients > 0 && day >= self.scenario.streams[s].from_day {
                    self.arrive(s, m, recipients, now);
                }
            }
        }
        if now >= self.asleep_until || self.scenario.every_step {
            self.serve(now);
        }
    }

    fn begin_day(&mut self, day: usize) {
        let starts = self.days.last().map_or(Timestamp(i64::from(START.0) * 24 * HOUR_NANOS), |span| span.ends);
        let hours = self.scenario.odd_days.iter().find(|(odd, _)| *odd == day).map_or(24, |(_, hours)| *hours);
        let today = Day(START.0 + day as i32 - 1);
        self.days.push(DaySpan { day: today, starts, ends: Timestamp(starts.0 + hours * HOUR_NANOS) });
        self.asleep_until = starts;

        let week_of = |lane: &Lane| lane.history.iter().rev().take(7).map(|record| record.offered).sum::<u64>();
        let offered_all = week_of(&self.lanes[0]);
        let mut total_complete = false;
        for l in 0..self.lanes.len() {
            let lane = &self.lanes[l];
            let prior = if l > 0 { PRIOR_SHARES[l - 1].1 } else { 1.0 };
            let share = auto_share(week_of(lane), offered_all, prior, self.scenario.rules.curve.first());
            let boundary = |record: &LaneRecord| {
                let recent = &lane.history[lane.history.len().saturating_sub(31)..];
                let boundary = Boundary {
                    lane: record,
                    history: recent,
                    asked: mailramp::policy::StageStep::None,
                    set_day: None,
                    share,
                    total_complete,
                    today,
                };
                self.scenario.rules.day_boundary(&boundary)
            };
            let record = boundary(&lane.record);
            // The arrays go on after the end of the ramp, as if the lane had not been called complete.
            let bounded = LaneRecord { complete: false, complete_run: 0, ..lane.record };
            let limit = boundary(&bounded).limit.expect("not complete after one boundary");
            total_complete |= record.complete;

            let lane = &mut self.lanes[l];
            if record.complete {
                lane.complete_on_day.get_or_insert(day);
            }
            lane.record = record;
            lane.limit = limit;
            lane.pace = self.scenario.rules.pace(Some(limit));
            lane.reserved_today = 0;
            lane.braked = l > 0 && self.scenario.braked.contains(&(l - 1, day));
            lane.outcomes.push(Outcome { limit, ..Outcome::default() });
        }
        self.expect_today(day);
        for per_lane in self.offered.iter_mut().flatten() {
            per_lane.push(0);
        }
        self.overflow_braked();
    }

    /// E of every stream on every lane.
    fn expect_today(&mut self, day: usize) {
        let streams = &self.scenario.streams;
        for s in 0..streams.len() {
            self.expected[s].fill(0);
            for higher in (0..streams.len()).filter(|h| streams[*h].rules.rank() > streams[s].rules.rank()) {
                for (m, offered) in self.offered[higher].iter().enumerate() {
                    let week_ago = (day >= streams[higher].from_day + 7).then(|| offered[day - 8]);
                    let expected = expected(week_ago, offered.last().copied().unwrap_or(0));
                    self.expected[s][0] += expected;
                    if self.scenario.providers {
                        self.expected[s][m + 1] += expected;
                    }
                }
            }
        }
    }

    fn end_day(&mut self) {
        let day = self.days.last().expect("a day has begun").day;
        for lane in &mut self.lanes {
            let limit = lane.limit;
            let today = *lane.today();
            lane.history.push(DayRecord {
                day,
                limit: Some(limit),
                stage: lane.record.stage,
                offered: today.offered,
                reserved: lane.reserved_today,
                sent: today.new,
                legacy: today.legacy_at_once + today.legacy_late,
                braked: lane.braked,
            });
            assert!(lane.complete_on_day.is_some() || today.new <= limit, "day {day:?}: {today:?}");
        }
        let accounted: u64 =
            self.lanes[0].outcomes.iter().map(|day| day.new + day.legacy_at_once + day.legacy_late).sum();
        let offered: u64 = self.lanes[0].outcomes.iter().map(|day| day.offered).sum();
        let queued: u64 = self.queued.iter().flatten().sum();
        assert_eq!(offered, accounted + queued, "every recipient is in exactly one place");
    }

    fn next_slot(&mut self, now: Timestamp) {
        for lane in &mut self.lanes {
            // The slot that has just fallen out of the 97; what was this slot's place 128 slots ago is empty by now.
            let gone = now.slot().0 - SLOTS_BACK - 1;
            lane.reserved_24h -= std::mem::take(lane.slot(gone));
        }
    }

    /// A step stands for the 10 seconds from `now` on, so a deadline on it is over with the next: after a wait of whole
    /// hours the last token comes some nanoseconds after the deadline, because spacings are rounded up.
    fn expire(&mut self, now: Timestamp) {
        let over = Timestamp(now.0 - STEP_NANOS);
        for s in 0..self.queues.len() {
            for m in 0..self.queues[s].len() {
                while self.queues[s][m].front().is_some_and(|waiting| waiting.deadline < over) {
                    self.give_up(s, m);
                }
            }
        }
    }

    fn overflow_braked(&mut self) {
        for m in 0..self.queues[0].len() {
            if self.lanes[self.lane_of(m)].braked {
                for s in 0..self.queues.len() {
                    while !self.queues[s][m].is_empty() {
                        self.give_up(s, m);
                    }
                }
            }
        }
    }

    fn give_up(&mut self, s: usize, m: usize) {
        let waiting = self.queues[s][m].pop_front().expect("looked at the front");
        self.queued[s][m] -= waiting.recipients;
        self.count(m, |day| day.legacy_late += waiting.recipients);
    }

    /// Enters something in the day of the lane and of the total.
    fn count(&mut self, m: usize, mut enter: impl FnMut(&mut Outcome)) {
        let lane = self.lane_of(m);
        if lane != 0 {
            enter(self.lanes[lane].today());
        }
        enter(self.lanes[0].today());
    }

    fn arrive(&mut self, s: usize, m: usize, recipients: u64, now: Timestamp) {
        *self.offered[s][m].last_mut().expect("a day has begun") += recipients;
        self.count(m, |day| day.offered += recipients);
        let rules = self.scenario.streams[s].rules;
        let deadline = now.after(rules.overflow().max_wait().expect("no stream of the patterns holds"));
        let l = self.lane_of(m);
        let (lane, lane_then) = (self.view(l, s, now), self.at_deadline(l, s, now, deadline));
        let lane = Outlook { lane: &lane, then: lane_then };
        let admission = if l == 0 {
            admit(&rules, recipients, &lane, &lane, now)
        } else {
            let (total, then) = (self.view(0, s, now), self.at_deadline(0, s, now, deadline));
            admit(&rules, recipients, &lane, &Outlook { lane: &total, then }, now)
        };
        self.count(m, |day| day.legacy_at_once += admission.legacy);
        if admission.new > 0 {
            self.queued[s][m] += admission.new;
            let deadline = admission.deadline;
            self.queues[s][m].push_back(Waiting { arrived: now, deadline, recipients: admission.new });
        }
    }

    fn serve(&mut self, now: Timestamp) {
        let mut asleep_until = Timestamp::NEVER;
        for i in 0..self.order.len() {
            let s = self.order[i];
            let mut lanes: Vec<usize> = (0..self.queues[s].len()).filter(|m| self.queued[s][*m] > 0).collect();
            let used = |m: &usize| {
                let lane = &self.lanes[self.lane_of(*m)];
                lane.reserved_today as f64 / lane.limit.max(1) as f64
            };
            lanes.sort_by(|a, b| used(a).total_cmp(&used(b)));
            for m in lanes {
                let (lane, total) = (self.view(self.lane_of(m), s, now), self.view(0, s, now));
                let granted = Bounds::grant(self.queued[s][m], &lane.bounds(now), &total.bounds(now));
                if granted > 0 {
                    self.send(s, m, granted, now);
                }
                if granted < self.queued[s][m] + granted {
                    let again = |l: usize| self.view(l, s, now).wake(now).map_or(now, |wake| wake.at);
                    asleep_until = asleep_until.min(again(0).max(again(self.lane_of(m))));
                }
            }
        }
        // Whoever arrives from now on may be of another stream, and the lanes of several change each other.
        let alone = self.queues.len() == 1 && self.queues[0].len() == 1 && self.queued[0][0] > 0;
        self.asleep_until = if alone { asleep_until } else { now };
    }

    fn send(&mut self, s: usize, m: usize, granted: u64, now: Timestamp) {
        let mut left = granted;
        self.queued[s][m] -= granted;
        while left > 0 {
            let first = self.queues[s][m].front_mut().expect("no more was granted than waits");
            let k = left.min(first.recipients);
            let waited = now.since(first.arrived).as_secs();
            *self.waits.entry(waited).or_default() += k;
            first.recipients -= k;
            left -= k;
            if first.recipients == 0 {
                self.queues[s][m].pop_front();
            }
        }
        self.reserve(0, granted, now);
        let lane = self.lane_of(m);
        if lane != 0 {
            self.reserve(lane, granted, now);
        }
    }

    fn reserve(&mut self, l: usize, granted: u64, now: Timestamp) {
        let lane = &mut self.lanes[l];
        lane.reserved_today += granted;
        *lane.slot(now.slot().0) += granted;
        lane.reserved_24h += granted;
        if let Some(pace) = lane.pace {
            lane.arrival = pace.charge(lane.arrival, now, granted);
        }
        lane.today().new += granted;
        lane.windows.sent(now, granted);
        if lane.complete_on_day.is_none() {
            let (in_hour, in_day) = (lane.windows.in_hour, lane.windows.in_day);
            let touched = |length: i64| self.largest_limit(l, Timestamp(now.0 - length + 1)).expect("not complete");
            let hour_cap = ((self.scenario.rules.hourly * touched(HOUR_NANOS) as f64 + 1e-9) as u64).max(1);
            assert!(in_hour <= hour_cap, "lane {l}: {in_hour} in 60 minutes, {hour_cap} allowed, at {now:?}");
            let limit = touched(24 * HOUR_NANOS);
            assert!(in_day <= limit, "lane {l}: {in_day} in 24 hours, {limit} allowed, at {now:?}");
        }
    }

    /// The largest limit of lane `l` on the days since `from`; `None` when the lane is complete.
    fn largest_limit(&self, l: usize, from: Timestamp) -> Option<u64> {
        let lane = &self.lanes[l];
        lane.bound()?;
        let touched = self.days.iter().zip(&lane.outcomes).rev().take_while(|(span, _)| span.ends > from);
        touched.map(|(_, outcome)| outcome.limit).max()
    }

    fn view(&self, l: usize, s: usize, now: Timestamp) -> LaneView {
        let lane = &self.lanes[l];
        let day = self.days[self.days.len() - 1];
        LaneView {
            limit: lane.bound(),
            closed: lane.braked.then_some(Closed { until: day.ends, reason: Reason::Brake }),
            day,
            open: OpenHours::ALWAYS,
            pace: lane.pace,
            arrival: lane.arrival,
            reserved_today: lane.reserved_today,
            limit_24h: self.largest_limit(l, oldest_counted(now).start()),
            reserved_24h: lane.reserved_24h,
            oldest_slot: (lane.reserved_24h > 0).then(|| oldest_counted(now)), // no later than the true one
            expected_higher: self.expected[s][l],
            stream_share: None,
            stream_reserved_today: 0,
        }
    }

    fn at_deadline(&mut self, l: usize, s: usize, now: Timestamp, deadline: Timestamp) -> AtDeadline {
        let streams = &self.scenario.streams;
        let ahead = streams.iter().enumerate().filter(|(_, other)| other.rules.rank() >= streams[s].rules.rank());
        let waiting_ahead =
            ahead.map(|(o, _)| if l == 0 { self.queued[o].iter().sum() } else { self.queued[o][l - 1] }).sum();
        AtDeadline {
            limit_24h: self.largest_limit(l, oldest_counted(deadline).start()).or(self.lanes[l].bound()),
            reserved_24h: self.lanes[l].reserved_24h - self.lanes[l].leaving(now, deadline),
            waiting_ahead,
            stream_waiting: 0,
        }
    }

    /// What each day of lane `l` (0 is the total) came to.
    pub fn outcomes(&self, l: usize) -> &[Outcome] {
        &self.lanes[l].outcomes
    }

    pub fn complete_on_day(&self) -> Option<usize> {
        self.lanes[0].complete_on_day
    }

    pub fn stalled_days(&self) -> u32 {
        self.lanes[0].record.stalled_run
    }

    /// p50, p99 and the longest wait of mail by new, in seconds, if a complete ramp went on until day `until`.
    pub fn waits(&self, until: usize) -> [u64; 3] {
        let mut waits = self.waits.clone();
        if self.complete_on_day().is_some() {
            let later = self.days.len() + 1..=until;
            let volume = |s: &Stream| later.clone().map(|day| (s.volume)(day)).sum::<u64>();
            *waits.entry(0).or_default() += self.scenario.streams.iter().map(volume).sum::<u64>();
        }
        let all: u64 = waits.values().sum();
        let percentile = |part: f64| {
            let mut seen = 0;
            let reached = |(_, n): &(&u64, &u64)| {
                seen += **n;
                seen as f64 >= part * all as f64
            };
            waits.iter().find(reached).map_or(0, |(wait, _)| *wait)
        };
        [percentile(0.5), percentile(0.99), waits.keys().last().copied().unwrap_or(0)]
    }
}
