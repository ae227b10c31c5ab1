//! The policy as the spool asks for it: fills the ledger's numbers into the rules, and writes nothing.
//!
//! One lane for everything as long as `providers = "off"`: the total. The lane of the recipients and the total are
//! looked at apart all the same, so that more lanes need nothing but their records.

use std::time::Duration;

use crate::message::{Day, DayRecord, DaySpan, LaneId, LaneRecord, Queue, Reason, StreamId, Timestamp};
use crate::policy::{
    self, AtDeadline, Boundary, Bounds, Calendar, Closed, LaneView, Outlook, Pace, Rules, State, StreamRules, admit,
};
use crate::spool::ledger::LaneLedger;
use crate::spool::{Admission, Ask, Gate, Grant, Ledger, Turn};

/// Mail that found its token at once but no connection: how long it may look for one before the legacy server takes it.
/// Longer waits are kept to the second.
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// Days nobody saw that are turned one by one; older ones are out of every memory.
const GAP_DAYS: i32 = 40;
/// Stages looked at for the number of days to the target.
const STAGES_MAX: u32 = 3650;
const WEEK_DAYS: i32 = 7;
/// A clock in doubt may agree at any time: how soon a lane that it shuts is worth another look.
const CLOCK_LOOK: Duration = Duration::from_secs(5);
/// After midnight an hour may still reach into yesterday, with yesterday's pace.
const PACE_CHANGES: Duration = Duration::from_secs(3600);

/// The warm-up as configured.
#[derive(Clone, Debug)]
pub struct WarmupGate {
    /// `None`: no warm-up, nothing is limited.
    rules: Option<Rules>,
    calendar: Calendar,
    /// By stream id.
    streams: Vec<StreamRules>,
    life: Option<Duration>,
}

impl WarmupGate {
    /// `streams` by id, the last resort first; at least one.
    pub fn new(rules: Option<Rules>, calendar: Calendar, streams: Vec<StreamRules>) -> Self {
        assert!(!streams.is_empty(), "there is always the stream of last resort");
        WarmupGate { rules, calendar, streams, life: None }
    }

    /// The same, for mail that waits for a server at most so long.
    pub fn with_life(self, life: Duration) -> Self {
        WarmupGate { life: Some(life), ..self }
    }

    /// The settings of the ramp.
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// Days and their ends.
    pub fn calendar(&self) -> &Calendar {
        &self.calendar
    }

    /// Streams in the order in which they are served.
    pub fn order(&self) -> Vec<StreamId> {
        let mut ids: Vec<StreamId> = (0..self.streams.len() as u8).map(StreamId).collect();
        ids.sort_by_key(|id| std::cmp::Reverse(self.configured(*id).rank()));
        ids
    }

    /// Sending days from the start to the target.
    pub fn days_planned(&self) -> Option<u32> {
        let rules = self.rules.as_ref()?;
        (0..STAGES_MAX).find(|stage| rules.curve.at(*stage) >= rules.target as f64).map(|stage| stage + 1)
    }

    /// What the lane's day is called.
    pub fn state(&self, lane: &LaneLedger) -> Option<State> {
        let today = lane.today;
        let week = lane.history.iter().filter(|r| today.day.0 - r.day.0 <= WEEK_DAYS).chain([&today]);
        let peak = week.map(|r| r.offered).max().unwrap_or(0);
        let refusals = policy::Refusals { braked: lane.today.braked, ..Default::default() };
        let state = self.rules.as_ref()?.state(&lane.record, peak, false, refusals);
        // Before the first mail nobody knows what would be enough.
        Some(if state == State::Ample && peak == 0 { State::Ramping } else { state })
    }

    /// The total as `stream` sees it; `None` before the first day.
    pub fn view_of_total(&self, ledger: &Ledger, stream: StreamId, now: Timestamp) -> Option<LaneView> {
        Some(self.view(ledger, ledger.lane(LaneId::TOTAL)?, ledger.span()?, stream, now))
    }

    /// The stream as the settings have it. One that they do not know is treated as the last resort.
    pub fn configured(&self, id: StreamId) -> &StreamRules {
        self.streams.get(usize::from(id.0)).unwrap_or(&self.streams[0])
    }

    /// The stream as it is treated at `now`.
    pub fn stream(&self, ledger: &Ledger, id: StreamId, now: Timestamp) -> StreamRules {
        let rules = *self.configured(id);
        StreamRules { route: ledger.way_of(id, now).unwrap_or(rules.route), ..rules }
    }

    fn view(&self, ledger: &Ledger, lane: &LaneLedger, day: DaySpan, stream: StreamId, now: Timestamp) -> LaneView {
        let limit = lane.record.limit;
        let pace = self.rules.as_ref().and_then(|rules| self.pace(rules, lane, day, now));
        let open = self.rules.as_ref().map_or(policy::OpenHours::ALWAYS, |r| self.calendar.open_hours(day, r.window));
        LaneView {
            limit,
            // Without a limit there is none that a wrong clock could give out twice.
            closed: (ledger.clock_is_doubtful() && limit.is_some())
                .then(|| Closed { until: now.after(CLOCK_LOOK), reason: Reason::Clock }),
            day,
            open,
            pace,
            // A wrong clock may have stored a time years ahead; that must not shut the lane for years.
            arrival: pace.map_or(lane.arrival, |pace| pace.clamp(lane.arrival, now)),
            reserved_today: lane.reserved_today(),
            limit_24h: self.limit_24h(lane, day, now),
            reserved_24h: lane.reserved_24h(now),
            oldest_slot: lane.oldest_slot(now),
            expected_higher: self.expected_higher(lane, stream, day.day),
            stream_share: limit.and_then(|limit| self.configured(stream).share_of(limit)),
            stream_reserved_today: lane.stream_today(stream).reserved,
        }
    }

    fn pace(&self, rules: &Rules, lane: &LaneLedger, day: DaySpan, now: Timestamp) -> Option<Pace> {
        let pace = rules.pace(lane.record.limit)?;
        let yesterday = lane.history.back().filter(|_| now.since(day.starts) < PACE_CHANGES);
        let before = yesterday.and_then(|yesterday| rules.pace(yesterday.limit));
        Some(before.map_or(pace, |before| pace.no_deeper_than(before)))
    }

    /// The largest limit of the days that the 97 quarter-hours up to `at` touch; days to come count with today's.
    fn limit_24h(&self, lane: &LaneLedger, day: DaySpan, at: Timestamp) -> Option<u64> {
        let mut largest = lane.record.limit?.max(lane.today.limit.unwrap_or(0));
        let oldest = policy::allowance::oldest_counted(at).start();
        if oldest < day.starts {
            let first = self.calendar.day_of(oldest);
            for record in lane.history.iter().rev().take_while(|record| record.day >= first) {
                largest = largest.max(record.limit?);
            }
        }
        Some(largest)
    }

    /// E: what streams of strictly higher rank offered to this lane a week ago, or yesterday if they are younger.
    fn expected_higher(&self, lane: &LaneLedger, stream: StreamId, today: Day) -> u64 {
        let rank = self.configured(stream).rank();
        (0..self.streams.len() as u8)
            .map(StreamId)
            .filter(|other| {
                self.configured(*other).rank() > rank && self.configured(*other).route != policy::StreamRoute::Legacy
            })
            .map(|other| {
                let week_ago = Day(today.0 - WEEK_DAYS);
                let known = lane.stream_since(other).is_some_and(|since| since <= week_ago);
                let offered = |day| lane.stream_on(other, day).offered;
                policy::stream::expected(known.then(|| offered(week_ago)), offered(Day(today.0 - 1)))
            })
            .sum()
    }

    fn at_deadline(
        &self,
        ledger: &Ledger,
        lane: &LaneLedger,
        ask: Ask,
        all_lanes: bool,
        deadline: Timestamp,
        day: DaySpan,
    ) -> AtDeadline {
        let rank = self.configured(ask.stream).rank();
        let here = |queue: Queue| match queue {
            Queue::Legacy => false,
            Queue::New(id) => all_lanes || id == ask.lane,
        };
        AtDeadline {
            limit_24h: self.limit_24h(lane, day, deadline),
            reserved_24h: lane.reserved_24h(deadline),
            waiting_ahead: ledger.waiting_recipients(|q, s| here(q) && self.configured(s).rank() >= rank),
            stream_waiting: ledger.waiting_recipients(|q, s| here(q) && s == ask.stream),
        }
    }

    /// The records of the day that begins.
    fn records(&self, ledger: &Ledger, today: Day) -> Vec<LaneRecord> {
        let record = |rules: &Rules| {
            let known = ledger.lane(LaneId::TOTAL);
            let fresh = LaneRecord::unmetered(LaneId::TOTAL);
            let lane = known.map_or(&fresh, |l| &l.record);
            let history: Vec<DayRecord> =
                known.iter().flat_map(|l| l.history.iter().chain([&l.today])).copied().collect();
            let ended = known.filter(|l| l.today.day < today);
            let boundary = Boundary {
                lane,
                history: &history,
                asked: ended.map_or(policy::StageStep::None, |l| l.brake.step),
                set_day: None,
                share: 1.0,
                total_complete: false,
                today,
            };
            rules.day_boundary(&boundary)
        };
        match &self.rules {
            Some(rules) => vec![record(rules)],
            None => {
                let known = ledger.lane(LaneId::TOTAL).map_or(LaneRecord::unmetered(LaneId::TOTAL), |l| l.record);
                vec![LaneRecord { limit: None, ..known }]
            }
        }
    }

    /// The settings have changed so that today's record cannot stand: the ramp came, went, or its start moved.
    fn contradicts(&self, ledger: &Ledger, today: Day) -> bool {
        let Some(lane) = ledger.lane(LaneId::TOTAL) else { return true };
        match &self.rules {
            None => lane.record.limit.is_some(),
            Some(rules) => {
                let started = rules.start.is_some_and(|start| start <= today);
                match lane.record.limit {
                    None => !lane.record.complete,
                    Some(limit) => (limit > 0) != started,
                }
            }
        }
    }
}

impl Gate for WarmupGate {
    fn turn(&self, ledger: &Ledger, now: Timestamp) -> Option<Turn> {
        let span = match ledger.span() {
            None => self.calendar.span_at(now),
            Some(span) if now < span.ends => {
                let lanes = || self.records(ledger, span.day);
                return self.contradicts(ledger, span.day).then(|| Turn { span, lanes: lanes(), braked: Vec::new() });
            }
            Some(span) => {
                let today = self.calendar.day_of(now);
                let next = span.day.next().max(Day(today.0 - GAP_DAYS));
                let fresh = self.calendar.span(next);
                // A change of zone may put the end of the next day behind the one we are in; never go back.
                DaySpan { ends: fresh.ends.max(Timestamp(span.ends.0 + 1)), ..fresh }
            }
        };
        Some(Turn { span, lanes: self.records(ledger, span.day), braked: Vec::new() })
    }

    fn life(&self) -> Option<Duration> {
        self.life
    }

    fn span_at(&self, now: Timestamp) -> Option<DaySpan> {
        Some(self.calendar.span_at(now))
    }

    fn admit(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Admission {
        let stream = self.configured(ask.stream);
        let offered = stream.takes_part();
        let all_new = |reason| Admission {
            new: ask.recipients,
            deadline: None,
            new_reason: reason,
            rest_reason: reason,
            offered,
        };
        let (Some(_), Some(day)) = (&self.rules, ledger.span()) else { return all_new(Reason::InQuota) };
        let (Some(lane), Some(total)) = (ledger.lane(ask.lane), ledger.lane(LaneId::TOTAL)) else {
            return all_new(Reason::InQuota);
        };
        let deadline = stream.overflow().max_wait().map_or(now, |wait| now.after(wait));
        let lane_view = self.view(ledger, lane, day, ask.stream, now);
        let lane_then = self.at_deadline(ledger, lane, ask, ask.lane == LaneId::TOTAL, deadline, day);
        let total_view =
            if ask.lane == LaneId::TOTAL { lane_view } else { self.view(ledger, total, day, ask.stream, now) };
        let total_then = self.at_deadline(ledger, total, ask, true, deadline, day);
        let lane = Outlook { lane: &lane_view, then: lane_then };
        let total = Outlook { lane: &total_view, then: total_then };
        let admission = admit(stream, ask.recipients, &lane, &total, now);
        let holds = admission.deadline == Timestamp::NEVER;
        Admission {
            new: admission.new,
            deadline: (!holds).then(|| admission.deadline.max(now.after(CONNECTION_GRACE))),
            new_reason: if stream.takes_part() { Reason::InQuota } else { admission.reason },
            rest_reason: admission.reason,
            offered,
        }
    }

    fn grant(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Grant {
        let (Some(day), Some(lane), Some(total)) = (ledger.span(), ledger.lane(ask.lane), ledger.lane(LaneId::TOTAL))
        else {
            // No day has begun: in doubt, wait.
            return Grant::None { until: now.after(CONNECTION_GRACE), stream_only: false };
        };
        if lane.record.limit.is_none() && total.record.limit.is_none() {
            return Grant::Unmetered;
        }
        let lane_view = self.view(ledger, lane, day, ask.stream, now);
        let total_view =
            if ask.lane == LaneId::TOTAL { lane_view } else { self.view(ledger, total, day, ask.stream, now) };
        let (of_lane, of_total) = (lane_view.bounds(now), total_view.bounds(now));
        let recipients = Bounds::grant(ask.recipients, &of_lane, &of_total);
        if recipients == 0 {
            let wakes = [lane_view.wake(now), total_view.wake(now)];
            let until = wakes.into_iter().flatten().map(|wake| wake.at).max().unwrap_or(now);
            let stream_only = of_lane.room_of_lane() > 0 && of_total.room_of_lane() > 0;
            return Grant::None { until, stream_only };
        }
        let charge = |id, view: &LaneView| view.pace.map(|pace| (id, pace.charge(view.arrival, now, recipients)));
        let mut arrivals: Vec<_> = charge(LaneId::TOTAL, &total_view).into_iter().collect();
        if ask.lane != LaneId::TOTAL {
            arrivals.extend(charge(ask.lane, &lane_view));
        }
        Grant::Some { recipients, arrivals }
    }
}
