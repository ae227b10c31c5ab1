//! The policy as the spool asks for it: fills the ledger's numbers into the rules, and writes nothing.
//!
//! Every recipient's lane and the total are looked at apart: with `providers = "off"` the total is the only lane.
//! [`lanes`] says what each lane is allowed on a day, `view` how a stream sees a lane at a moment.

pub mod lanes;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Day, DaySpan, LaneId, Queue, Reason, Recipient, StreamId, StreamWay, Timestamp};
use crate::policy::{
    self, AtDeadline, Bounds, BrakeRules, Calendar, LaneView, Lanes, Outlook, Rules, State, StreamRules, admit,
};
use crate::spool::ledger::LaneLedger;
use crate::spool::{Admission, Ask, Gate, Grant, Ledger, SetLane, Turn};
use lanes::GAP_DAYS;

/// Mail that found its token at once but no connection: how long it may look for one before the legacy server takes it.
/// Longer waits are kept to the second.
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// Stages looked at for the number of days to the target.
const STAGES_MAX: u32 = 3650;
const WEEK_DAYS: i32 = 7;

/// Knows whose mail servers a recipient's domain has. Asked while the spool holds its transaction: must not wait.
pub trait Directory: Send + Sync {
    /// The recipient's lane; `None`: not known yet.
    fn lane_of(&self, recipient: &Recipient) -> Option<LaneId>;
}

/// The warm-up as configured.
#[derive(Clone)]
pub struct WarmupGate {
    /// `None`: no warm-up, nothing is limited.
    rules: Option<Rules>,
    calendar: Calendar,
    /// By stream id.
    streams: Vec<StreamRules>,
    lanes: Lanes,
    brake: BrakeRules,
    directory: Option<Arc<dyn Directory>>,
    life: Option<Duration>,
}

impl fmt::Debug for WarmupGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WarmupGate { rules, calendar, streams, lanes, brake, life, directory: _ } = self;
        f.debug_struct("WarmupGate")
            .field("rules", rules)
            .field("calendar", calendar)
            .field("streams", streams)
            .field("lanes", lanes)
            .field("brake", brake)
            .field("life", life)
            .finish_non_exhaustive()
    }
}

impl WarmupGate {
    /// One lane for all. `streams` by id, the last resort first; at least one.
    pub fn new(rules: Option<Rules>, calendar: Calendar, streams: Vec<StreamRules>) -> Self {
        assert!(!streams.is_empty(), "there is always the stream of last resort");
        let (lanes, brake, directory, life) = (Lanes::Off, BrakeRules::default(), None, None);
        WarmupGate { rules, calendar, streams, lanes, brake, directory, life }
    }

    /// The same, for mail that waits for a server at most so long.
    pub fn with_life(self, life: Duration) -> Self {
        WarmupGate { life: Some(life), ..self }
    }

    /// The same with lanes for providers.
    pub fn with_lanes(self, lanes: Lanes) -> Self {
        WarmupGate { lanes, ..self }
    }

    /// The same with other rules for brakes.
    pub fn with_brake(self, brake: BrakeRules) -> Self {
        WarmupGate { brake, ..self }
    }

    /// The same; recipients whose lane is known better by now are moved when they are claimed.
    pub fn with_directory(self, directory: Arc<dyn Directory>) -> Self {
        WarmupGate { directory: Some(directory), ..self }
    }

    /// The settings of the ramp.
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// Days and their ends.
    pub fn calendar(&self) -> &Calendar {
        &self.calendar
    }

    /// How brakes behave.
    pub fn brake_rules(&self) -> &BrakeRules {
        &self.brake
    }

    /// Streams in the order in which they are served, as far as the settings say.
    pub fn order(&self) -> Vec<StreamId> {
        self.in_order(|id| self.configured(id).rank())
    }

    /// The same with the moves that are in force.
    pub fn order_now(&self, ledger: &Ledger, now: Timestamp) -> Vec<StreamId> {
        self.in_order(|id| self.rank(ledger, id, now))
    }

    /// Sending days from the start to the target.
    pub fn days_planned(&self) -> Option<u32> {
        let rules = self.rules.as_ref()?;
        (0..STAGES_MAX).find(|stage| rules.curve.at(*stage) >= rules.target as f64).map(|stage| stage + 1)
    }

    /// What the lane's day is called at `now`.
    pub fn state(&self, ledger: &Ledger, lane: &LaneLedger, now: Timestamp) -> Option<State> {
        let today = lane.today;
        let week = lane.history.iter().filter(|r| today.day.0 - r.day.0 <= WEEK_DAYS).chain([&today]);
        let peak = week.map(|r| r.offered).max().unwrap_or(0);
        let refusals = self.refusals(ledger, lane, now);
        let state = self.rules.as_ref()?.state(&lane.record, peak, ledger.pause().is_some(), refusals);
        // Before the first mail nobody knows what would be enough.
        Some(if state == State::Ample && peak == 0 { State::Ramping } else { state })
    }

    /// What keeps mail from leaving, for the reason of a stall.
    fn refusals(&self, ledger: &Ledger, lane: &LaneLedger, now: Timestamp) -> policy::Refusals {
        let yesterday = lane.history.back();
        let braked = lane.today.braked || yesterday.is_some_and(|day| day.braked);
        let mut refusals = policy::Refusals { paused: ledger.pause().is_some(), braked, ..Default::default() };
        let Some(day) = ledger.span() else { return refusals };
        for id in (0..self.streams.len() as u8).map(StreamId) {
            let bounds = self.view(ledger, lane, day, id, now).bounds(now);
            refusals.share |= bounds.share_left == 0 && bounds.room_of_lane() > 0;
            refusals.day24h |= bounds.left_24h == 0 && bounds.day_left > 0;
        }
        refusals
    }

    /// The total as `stream` sees it; `None` before the first day.
    pub fn view_of_total(&self, ledger: &Ledger, stream: StreamId, now: Timestamp) -> Option<LaneView> {
        self.view_of(ledger, LaneId::TOTAL, stream, now)
    }

    /// A lane as `stream` sees it; `None` before the first day, and for a lane that does not exist.
    pub fn view_of(&self, ledger: &Ledger, lane: LaneId, stream: StreamId, now: Timestamp) -> Option<LaneView> {
        Some(self.view(ledger, ledger.lane(lane)?, ledger.span()?, stream, now))
    }

    /// The stream as the settings have it. One that they do not know is treated as the last resort.
    pub fn configured(&self, id: StreamId) -> &StreamRules {
        self.streams.get(usize::from(id.0)).unwrap_or(&self.streams[0])
    }

    /// The stream as it is at `now`: moved, and with the wait that its bursts ask for.
    pub fn stream(&self, ledger: &Ledger, id: StreamId, now: Timestamp) -> StreamRules {
        let configured = *self.configured(id);
        let hourly = self.rules.as_ref().map_or(1.0, |rules| rules.hourly);
        let burst = ledger.burst_of(id);
        let rules = configured.waiting(|| policy::stream::auto_max_wait(burst.busiest_eight, burst.offered, hourly));
        StreamRules { route: ledger.way_of(id, now).unwrap_or(rules.route), ..rules }
    }

    fn rank(&self, ledger: &Ledger, id: StreamId, now: Timestamp) -> u8 {
        let configured = self.configured(id);
        StreamRules { route: ledger.way_of(id, now).unwrap_or(configured.route), ..*configured }.rank()
    }

    fn in_order(&self, rank: impl Fn(StreamId) -> u8) -> Vec<StreamId> {
        let mut ids: Vec<StreamId> = (0..self.streams.len() as u8).map(StreamId).collect();
        ids.sort_by_key(|id| std::cmp::Reverse(rank(*id)));
        ids
    }

    fn at_deadline(
        &self,
        ledger: &Ledger,
        lane: &LaneLedger,
        ask: Ask,
        day: DaySpan,
        [now, deadline]: [Timestamp; 2],
    ) -> AtDeadline {
        let all_lanes = lane.record.lane == LaneId::TOTAL;
        let rank = self.rank(ledger, ask.stream, now);
        let here = |queue: Queue| match queue {
            Queue::Legacy => false,
            Queue::New(id) => all_lanes || id == ask.lane,
        };
        AtDeadline {
            limit_24h: self.limit_24h(lane, day, deadline),
            reserved_24h: lane.reserved_24h(deadline),
            waiting_ahead: ledger.waiting_recipients(|q, s| here(q) && self.rank(ledger, s, now) >= rank),
            stream_waiting: ledger.waiting_recipients(|q, s| here(q) && s == ask.stream),
        }
    }
}

impl Gate for WarmupGate {
    fn turn(&self, ledger: &Ledger, now: Timestamp) -> Option<Turn> {
        let span = match ledger.span() {
            None => self.calendar.span_at(now),
            Some(span) if now < span.ends => {
                return self.contradicts(ledger, span.day).then(|| self.turn_within(ledger, span, now));
            }
            Some(span) => {
                let today = self.calendar.day_of(now);
                let next = span.day.next().max(Day(today.0 - GAP_DAYS));
                let fresh = self.calendar.span(next);
                // A change of zone may put the end of the next day behind the one we are in; never go back.
                DaySpan { ends: fresh.ends.max(Timestamp(span.ends.0 + 1)), ..fresh }
            }
        };
        Some(self.turn_to(ledger, span))
    }

    fn life(&self) -> Option<Duration> {
        self.life
    }

    fn span_at(&self, now: Timestamp) -> Option<DaySpan> {
        Some(self.calendar.span_at(now))
    }

    fn admit(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Admission {
        let stream = self.stream(ledger, ask.stream, now);
        let offered = stream.takes_part();
        let all_new = |reason| Admission {
            new: ask.recipients,
            deadline: None,
            new_reason: reason,
            rest_reason: reason,
            offered,
        };
        // Without a ramp there is nothing to wait for but the server, and no deadline for that.
        if self.rules.is_none() && stream.route == StreamWay::Ramp && ledger.pause().is_none() {
            return all_new(Reason::InQuota);
        }
        let Some(day) = ledger.span() else { return all_new(Reason::InQuota) };
        let (Some(lane), Some(total)) = (ledger.lane(ask.lane), ledger.lane(LaneId::TOTAL)) else {
            return all_new(Reason::InQuota);
        };
        let deadline = stream.overflow().max_wait().map_or(now, |wait| now.after(wait));
        let lane_view = self.view(ledger, lane, day, ask.stream, now);
        let lane_then = self.at_deadline(ledger, lane, ask, day, [now, deadline]);
        let total_view =
            if ask.lane == LaneId::TOTAL { lane_view } else { self.view(ledger, total, day, ask.stream, now) };
        let total_then = self.at_deadline(ledger, total, ask, day, [now, deadline]);
        let lane = Outlook { lane: &lane_view, then: lane_then };
        let total = Outlook { lane: &total_view, then: total_then };
        let admission = admit(&stream, ask.recipients, &lane, &total, now);
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
        let lane_view = self.view(ledger, lane, day, ask.stream, now);
        let total_view =
            if ask.lane == LaneId::TOTAL { lane_view } else { self.view(ledger, total, day, ask.stream, now) };
        let is_shut = |view: &LaneView| view.closed.is_some_and(|closed| now < closed.until);
        if lane.record.limit.is_none() && total.record.limit.is_none() && !is_shut(&lane_view) && !is_shut(&total_view)
        {
            return Grant::Unmetered;
        }
        let (of_lane, of_total) = (lane_view.bounds(now), total_view.bounds(now));
        let recipients = Bounds::grant(ask.recipients, &of_lane, &of_total);
        if recipients == 0 {
            let stream_only = of_lane.room_of_lane() > 0 && of_total.room_of_lane() > 0;
            // While the lane refuses everybody, the stream's own share says nothing: it would shut the others out until
            // midnight.
            let refusing = |view: &LaneView| match stream_only {
                true => view.wake(now),
                false => LaneView { stream_share: None, ..*view }.wake(now),
            };
            let wakes = [refusing(&lane_view), refusing(&total_view)];
            let until = wakes.into_iter().flatten().map(|wake| wake.at).max().unwrap_or(now);
            // By then another pace is in force, by which a token may be there already.
            let changes = [self.pace_changes(lane, day, now), self.pace_changes(total, day, now)];
            let until = changes.into_iter().flatten().fold(until, Timestamp::min);
            return Grant::None { until, stream_only };
        }
        let charge = |id, view: &LaneView| view.pace.map(|pace| (id, pace.charge(view.arrival, now, recipients)));
        let mut arrivals: Vec<_> = charge(LaneId::TOTAL, &total_view).into_iter().collect();
        if ask.lane != LaneId::TOTAL {
            arrivals.extend(charge(ask.lane, &lane_view));
        }
        Grant::Some { recipients, arrivals }
    }

    fn gives_back(&self, ledger: &Ledger, lane: LaneId, stream: StreamId, now: Timestamp) -> Option<Reason> {
        let rules = self.stream(ledger, stream, now);
        if ledger.move_of(stream, now).is_some() && rules.route == StreamWay::Legacy {
            return Some(Reason::Manual);
        }
        // What holds waits, whatever shuts the lane.
        rules.overflow().max_wait()?;
        if ledger.pause().is_some() {
            return Some(Reason::Paused);
        }
        let shut = |id| self.brake_closes(ledger.lane(id)?, now);
        shut(lane).or_else(|| shut(LaneId::TOTAL)).map(|closed| closed.reason)
    }

    fn lane_of(&self, recipient: &Recipient) -> Option<LaneId> {
        match (self.has_provider_lanes(), &self.directory) {
            (false, _) => Some(LaneId::TOTAL),
            (true, directory) => directory.as_ref()?.lane_of(recipient),
        }
    }

    fn watches_bursts(&self, stream: StreamId) -> bool {
        self.configured(stream).auto_wait
    }

    fn order(&self, ledger: &Ledger, now: Timestamp) -> Option<Vec<StreamId>> {
        Some(self.order_now(ledger, now))
    }

    fn set_day(&self, ledger: &Ledger, stage: u32, _now: Timestamp) -> Vec<SetLane> {
        self.lanes_at(ledger, stage)
    }
}
