//! How much may leave, held against what left: exact sliding windows of every lane, kept from final dots and reservations.
//!
//! The limits are those of the lanes' records; nothing else is taken from the ledger.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mailramp::message::{Day, DaySpan, LaneId, StreamId, Timestamp};
use mailramp::policy::{Pace, Rules, StreamRules};
use mailramp::spool::{Ledger, Reservation};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A slow lane has this part of its pace.
const SLOW_PART: f64 = 0.25;
/// Days that are remembered: more than any window touches.
const DAYS_KEPT: usize = 5;

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

    /// What is in the window that ends at `now`.
    fn sum(&mut self, now: Timestamp) -> u64 {
        let begins = self.begins(now);
        while self.moments.front().is_some_and(|(at, _)| *at <= begins) {
            self.sum -= self.moments.pop_front().expect("there is a front").1;
        }
        self.sum
    }

    fn add(&mut self, now: Timestamp, recipients: u64) -> u64 {
        self.moments.push_back((now, recipients));
        self.sum += recipients;
        self.sum(now)
    }

    fn begins(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0 - self.length.as_nanos() as i64)
    }

    /// Those of the window that came after `from`.
    fn since(&self, from: Timestamp) -> u64 {
        self.moments.iter().rev().take_while(|(at, _)| *at > from).map(|(_, n)| n).sum()
    }
}

/// One lane.
struct Lane {
    /// The largest limit of each day; the last one is today.
    days: VecDeque<(DaySpan, Option<u64>)>,
    /// In force now.
    limit: Option<u64>,
    /// Reserved in the last hour.
    hour: Window,
    /// Left in the last 24 hours.
    day: Window,
    /// The beginning of the day, and what left since.
    today: (Timestamp, u64),
    /// Reserved, and neither left nor given back.
    pending: u64,
    /// Reserved today and not given back, by stream.
    shares: BTreeMap<StreamId, (Day, u64)>,
    slow_since: Option<Timestamp>,
}

impl Lane {
    fn new() -> Lane {
        Lane {
            days: VecDeque::new(),
            limit: None,
            hour: Window::new(HOUR),
            day: Window::new(DAY),
            today: (Timestamp(0), 0),
            pending: 0,
            shares: BTreeMap::new(),
            slow_since: None,
        }
    }

    /// The largest limit of the days since `from`; `None` when one of them has none.
    fn largest_limit(&self, from: Timestamp) -> Option<u64> {
        let touched = self.days.iter().rev().take_while(|(span, _)| span.ends > from);
        touched.map(|(_, limit)| *limit).try_fold(0, |largest, limit| Some(largest.max(limit?)))
    }

    fn left_today(&mut self, day: DaySpan) -> &mut u64 {
        if self.today.0 != day.starts {
            self.today = (day.starts, 0);
        }
        &mut self.today.1
    }
}

/// The limits, held against the final dots and the reservations.
pub struct Left {
    rules: Rules,
    streams: Vec<StreamRules>,
    lanes: BTreeMap<LaneId, Lane>,
    /// Largest part of what was allowed that was ever used by any lane, in an hour, a day and 24 hours. 1 is all of it.
    pub worst: [f64; 3],
}

impl Left {
    pub fn new(rules: Rules, streams: Vec<StreamRules>) -> Self {
        Left { rules, streams, lanes: BTreeMap::new(), worst: [0.0; 3] }
    }

    /// A day began, or several did while the process was down.
    pub fn turned(&mut self, ledger: &Ledger) {
        for (id, lane) in ledger.lanes() {
            let seen = self.lanes.entry(id).or_insert_with(Lane::new);
            for record in lane.history.iter().chain([&lane.today]) {
                let newest = seen.days.back().map(|(span, _)| span.day);
                match seen.days.iter_mut().find(|(span, _)| span.day == record.day) {
                    // Restored data may know less of a day than we do.
                    Some((_, limit)) => *limit = limit.and_then(|known| Some(known.max(record.limit?))),
                    None if newest.is_none_or(|newest| newest < record.day) => {
                        seen.days.push_back((self.rules.calendar.span(record.day), record.limit));
                    }
                    None => {}
                }
            }
            while seen.days.len() > DAYS_KEPT {
                seen.days.pop_front();
            }
        }
        self.limits_changed(ledger);
    }

    /// All that left by the new server on that day, the last one on which anything did; on others nothing.
    pub fn left_on(&self, day: DaySpan) -> u64 {
        let total = self.lanes.get(&LaneId::TOTAL).map(|lane| lane.today);
        total.filter(|(starts, _)| *starts == day.starts).map_or(0, |(_, recipients)| recipients)
    }

    /// An operator has set the day.
    pub fn limits_changed(&mut self, ledger: &Ledger) {
        for (id, lane) in ledger.lanes() {
            self.lanes.entry(id).or_insert_with(Lane::new).limit = lane.record.limit;
        }
    }

    /// The lane goes slow, or does not any more.
    pub fn is_slow(&mut self, lane: LaneId, slow: bool, now: Timestamp) {
        let since = &mut self.lanes.entry(lane).or_insert_with(Lane::new).slow_since;
        *since = slow.then(|| since.unwrap_or(now));
    }

    /// The process died: what was on its way and had not left never will by these tokens.
    pub fn forget_pending(&mut self) {
        self.lanes.values_mut().for_each(|lane| lane.pending = 0);
    }

    /// Tokens were reserved.
    pub fn reserved(&mut self, lane: LaneId, stream: StreamId, now: Timestamp, recipients: u64) {
        let span = self.rules.calendar.span_at(now);
        assert!(self.rules.calendar.open_hours(span, self.rules.window).is_open(now), "{now:?} is out of hours");
        for id in both(lane) {
            let Left { rules, streams, lanes, worst } = self;
            let lane = lanes.get_mut(&id).expect("no tokens of a lane that is not there");
            lane.pending += recipients;
            let in_hour = lane.hour.add(now, recipients);
            if let Some(limit) = lane.largest_limit(lane.hour.begins(now))
                && rules.pace(Some(limit)).is_some()
            {
                let cap = hour_cap(rules.hourly, limit);
                worst[0] = worst[0].max(in_hour as f64 / cap as f64);
                assert!(in_hour <= cap, "{id:?}: {in_hour} reserved in the 60 minutes up to {now:?}, {cap} allowed");
                if let Some(since) = lane.slow_since {
                    let (slow, cap) = (lane.hour.since(since), hour_cap(rules.hourly * SLOW_PART, limit));
                    assert!(slow <= cap, "{id:?} goes slow since {since:?}: {slow} up to {now:?}, {cap} allowed");
                }
            }
            let Some(limit) = lane.limit else { continue };
            let day = *lane.left_today(span) + lane.pending;
            assert!(day <= limit, "{id:?}: {day} left or reserved today at {now:?}, {limit} allowed");
            let in_24h = lane.day.sum(now) + lane.pending;
            if let Some(limit) = lane.largest_limit(lane.day.begins(now)) {
                assert!(in_24h <= limit, "{id:?}: {in_24h} left or reserved in 24 hours at {now:?}, {limit} allowed");
            }
            let used = lane.shares.entry(stream).or_insert((span.day, 0));
            *used = if used.0 == span.day { (used.0, used.1 + recipients) } else { (span.day, recipients) };
            if let Some(share) = streams[usize::from(stream.0)].share_of(limit) {
                let used = used.1;
                assert!(used <= share, "{id:?}: {stream:?} used {used} today at {now:?}, its share is {share}");
            }
        }
    }

    /// Tokens were given back.
    pub fn refunded(&mut self, lane: LaneId, stream: StreamId, reservation: Reservation, recipients: u64) {
        for id in both(lane) {
            let lane = self.lanes.get_mut(&id).expect("it had tokens");
            lane.pending -= recipients;
            if let Some((_, used)) = lane.shares.get_mut(&stream).filter(|(day, _)| *day == reservation.day) {
                *used = used.saturating_sub(recipients);
            }
        }
    }

    /// Recipients that left by the new server with a final dot; with or without tokens.
    pub fn left(&mut self, lane: LaneId, now: Timestamp, recipients: u64, reserved: bool) {
        // The spool may not have heard of midnight yet.
        let span = self.rules.calendar.span_at(now);
        for id in both(lane) {
            let worst = &mut self.worst;
            let lane = self.lanes.get_mut(&id).expect("what leaves has a lane");
            if reserved {
                lane.pending -= recipients;
            }
            let in_24h = lane.day.add(now, recipients);
            *lane.left_today(span) += recipients;
            if let Some(limit) = lane.largest_limit(lane.day.begins(now)) {
                worst[2] = worst[2].max(in_24h as f64 / limit.max(1) as f64);
                assert!(in_24h <= limit, "{id:?}: {in_24h} left in the 24 hours up to {now:?}, {limit} allowed");
            }
            if let Some((_, Some(limit))) = lane.days.iter().rev().find(|(day, _)| day.day == span.day) {
                let sum = lane.today.1;
                worst[1] = worst[1].max(sum as f64 / (*limit).max(1) as f64);
                assert!(sum <= *limit, "{id:?}: {sum} left on the day of {now:?}, {limit} allowed");
            }
        }
    }
}

/// Most of any 60 minutes.
fn hour_cap(hourly: f64, limit: u64) -> u64 {
    Pace::of(limit, hourly, 0.0).map_or(u64::MAX, |pace| pace.hour_cap())
}

/// A lane and the total; the total alone is its own lane.
pub fn both(lane: LaneId) -> impl Iterator<Item = LaneId> {
    std::iter::once(LaneId::TOTAL).chain((lane != LaneId::TOTAL).then_some(lane))
}
