//! What was promised, checked from what happened: sliding windows, the balance of recipients, and who got what.

use std::collections::VecDeque;
use std::time::Duration;

use mailramp::delivery::outcome::Verdict;
use mailramp::message::{DaySpan, LaneId, Route, Timestamp};
use mailramp::policy::Rules;
use mailramp::spool::memory::MemoryStore;
use mailramp::spool::{Accept, Fate, Ledger, Settle, State};

use super::hop::Flight;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Recipients of the last hour or the last 24, exactly.
struct Window {
    length: Duration,
    moments: VecDeque<(Timestamp, u64)>,
    sum: u64,
}

impl Window {
    fn new(length: Duration) -> Self {
        Window { length, moments: VecDeque::new(), sum: 0 }
    }

    /// Adds `recipients`; returns how many there are in the window that ends now, and where it begins.
    fn add(&mut self, now: Timestamp, recipients: u64) -> (u64, Timestamp) {
        let begins = Timestamp(now.0 - self.length.as_nanos() as i64);
        while self.moments.front().is_some_and(|(at, _)| *at <= begins) {
            self.sum -= self.moments.pop_front().expect("there is a front").1;
        }
        self.moments.push_back((now, recipients));
        self.sum += recipients;
        (self.sum, begins)
    }
}

/// The limits, held against the final dots and the reservations.
pub struct Left {
    rules: Rules,
    days: Vec<(DaySpan, Option<u64>)>,
    hour: Window,
    day: Window,
    today: (Timestamp, u64),
    /// Largest part of what was allowed that was ever used, in an hour, a day and 24 hours. 1 is all of it.
    pub worst: [f64; 3],
}

impl Left {
    pub fn new(rules: Rules) -> Self {
        let (hour, day) = (Window::new(HOUR), Window::new(DAY));
        Left { rules, days: Vec::new(), hour, day, today: (Timestamp(0), 0), worst: [0.0; 3] }
    }

    /// A day began, or several did while the process was down.
    pub fn turned(&mut self, ledger: &Ledger) {
        let lane = ledger.lane(LaneId::TOTAL).expect("the total is always there");
        let known = self.days.last().map(|(span, _)| span.day);
        for record in lane.history.iter().chain([&lane.today]).filter(|r| known.is_none_or(|known| r.day > known)) {
            self.days.push((self.rules.calendar.span(record.day), record.limit));
        }
    }

    pub fn day_ends(&mut self) {
        if self.days.len() > 40 {
            self.days.remove(0);
        }
    }

    /// Recipients whose tokens were reserved.
    pub fn reserved(&mut self, now: Timestamp, recipients: u64) {
        let (sum, begins) = self.hour.add(now, recipients);
        let Some(limit) = self.largest_limit(begins) else { return };
        if self.rules.pace(Some(limit)).is_some() {
            let cap = ((self.rules.hourly * limit as f64 + 1e-9) as u64).max(1);
            self.worst[0] = self.worst[0].max(sum as f64 / cap as f64);
            assert!(sum <= cap, "{sum} reserved in the 60 minutes up to {now:?}, {cap} allowed");
        }
        let (today, _) = *self.days.last().expect("a day has begun");
        assert!(self.rules.calendar.open_hours(today, self.rules.window).is_open(now), "{now:?} is out of hours");
    }

    /// Recipients that left by the new server with a final dot.
    pub fn left(&mut self, now: Timestamp, recipients: u64) {
        let (sum, begins) = self.day.add(now, recipients);
        // The spool may not have heard of midnight yet.
        let span = self.rules.calendar.span_at(now);
        if self.today.0 != span.starts {
            self.today = (span.starts, 0);
        }
        self.today.1 += recipients;
        if let Some(limit) = self.largest_limit(begins) {
            self.worst[2] = self.worst[2].max(sum as f64 / limit.max(1) as f64);
            assert!(sum <= limit, "{sum} left in the 24 hours up to {now:?}, {limit} allowed");
        }
        if let Some((_, Some(limit))) = self.days.iter().rev().find(|(day, _)| day.day == span.day) {
            let sum = self.today.1;
            self.worst[1] = self.worst[1].max(sum as f64 / (*limit).max(1) as f64);
            assert!(sum <= *limit, "{sum} left on the day of {now:?}, {limit} allowed");
        }
    }

    /// The largest limit of the days since `from`; `None` when one of them has none.
    fn largest_limit(&self, from: Timestamp) -> Option<u64> {
        let touched = self.days.iter().rev().take_while(|(span, _)| span.ends > from);
        touched.map(|(_, limit)| *limit).try_fold(0, |largest, limit| Some(largest.max(limit?)))
    }
}

/// Every accepted recipient is in one place.
#[derive(Debug, Default)]
pub struct Balance {
    pub accepted: u64,
    pub relayed: u64,
    pub failed: u64,
}

impl Balance {
    pub fn accepted(&mut self, accept: &Accept) {
        self.accepted += accept.parts.iter().map(|part| part.recipients.len() as u64).sum::<u64>();
    }

    pub fn settled(&mut self, settle: &Settle) {
        for fate in &settle.fates {
            match fate {
                Fate::Relayed => self.relayed += 1,
                Fate::Failed => self.failed += 1,
                _ => {}
            }
        }
        if let Some(report) = &settle.report {
            self.accepted(report);
        }
    }

    /// Dead letters whose time is over.
    pub fn dropped(&mut self, recipients: u64) {
        self.failed += recipients;
    }

    pub fn check(&self, ledger: &Ledger, now: Timestamp) {
        let waiting: u64 = ledger.totals().map(|(.., total)| total.recipients).sum();
        let Balance { accepted, relayed, failed } = *self;
        assert_eq!(accepted, relayed + failed + waiting, "{relayed} relayed, {failed} failed, {waiting} wait: {now:?}");
    }

    /// The same with what really lies in the store.
    pub fn recount(&self, store: &mut MemoryStore) {
        let waiting: u64 = store.items().map(|item| item.recipients()).sum();
        assert_eq!(self.accepted, self.relayed + self.failed + waiting, "counted item by item");
        let metered = |state| state == State::InFlight;
        let reserved = store.items().filter(|i| i.reservation.is_some());
        assert!(reserved.into_iter().all(|i| metered(i.state)), "a reservation belongs to an item in flight");
        let mut bodies: Vec<_> = store.items().map(|item| item.body).collect();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(bodies.len(), store.bodies(), "a body lives exactly as long as an item names it");
    }
}

/// Copies that next hops hold of what was meant for one recipient.
#[derive(Clone, Copy, Debug, Default)]
struct Copies {
    by: [u8; 2],
    /// Answers that we never heard.
    lost: u8,
}

/// Who got what, as far as recipients have names.
#[derive(Default)]
pub struct Book {
    /// By name, which is a number.
    copies: Vec<Copies>,
    pub duplicates: u64,
}

impl Book {
    /// The final dot came to a next hop.
    pub fn arrived(&mut self, flight: &Flight) {
        if !flight.kept {
            return;
        }
        let route = flight.route();
        let maybe = flight.claimed.item.maybe;
        for name in names(flight) {
            let copies = self.of(name);
            copies.by[route as usize] += 1;
            assert!(copies.by.contains(&0), "recipient {name} was sent by both routes");
            let all = copies.by[route as usize];
            assert!(all <= 1 + copies.lost, "recipient {name} got {all} copies, {} answers were lost", copies.lost);
            assert!(all == 1 || maybe, "recipient {name} got another copy without a mark that it might");
            self.duplicates += u64::from(all > 1);
        }
    }

    /// The answer came, or it is known that none will.
    pub fn answered(&mut self, flight: &Flight) {
        if flight.verdicts.iter().any(|verdict| matches!(verdict, Verdict::Unknown { .. })) {
            self.unanswered(flight);
        }
    }

    pub fn unanswered(&mut self, flight: &Flight) {
        for name in names(flight) {
            self.of(name).lost += 1;
        }
    }

    fn of(&mut self, name: usize) -> &mut Copies {
        if self.copies.len() <= name {
            self.copies.resize(name + 1024, Copies::default());
        }
        &mut self.copies[name]
    }

    pub fn copies_by(&self, route: Route) -> u64 {
        self.copies.iter().map(|copies| u64::from(copies.by[route as usize])).sum()
    }
}

/// Those that leave with the final dot, by number; reports of ours have none.
fn names(flight: &Flight) -> impl Iterator<Item = usize> {
    let recipients = flight.claimed.item.envelope.recipients.iter().zip(&flight.verdicts);
    let left = recipients.filter(|(_, verdict)| verdict.may_have_left());
    left.filter_map(|(recipient, _)| std::str::from_utf8(&recipient.path).ok()?.parse().ok())
}
