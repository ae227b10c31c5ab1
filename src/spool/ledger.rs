//! What was offered, reserved and sent, by lane: the numbers every decision about quota is made from.
//!
//! Promises: a token counts from the moment it is reserved, in its own quarter-hour and day and, while it is not
//! settled, in every later one. It is given back only when the caller says the recipient was definitely not accepted.
//! Clocks that go back reopen nothing: sums take every slot from the window's start on, later ones included.
//!
//! Plain numbers in memory, one lane after another; the rows that changed are handed to the store in the same
//! transaction as the items they belong to. Knows no limits: those are the gate's business.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bursts::{Burst, Bursts};
use super::item::{Item, Reservation, Shift, State};
use super::standing::{STREAM_NAMES_MOST, SetLane, Standing};
use crate::clock::reckoning::Mark;
use crate::message::{
    BrakeLevel, BrakeRecord, Day, DayRecord, DaySpan, LaneId, LaneRecord, Pause, Queue, Slot, StageStep, StreamId,
    StreamMove, StreamWay, Timestamp,
};

/// Quarter-hours before the current one that the rolling day spans: 96, since an event may lie anywhere in its slot.
pub const ROLLING_SLOTS: i64 = 96;
/// Days of history that the rules look back on.
pub const HISTORY_DAYS: usize = 31;
/// Days of a stream's offers that are kept: the same weekday of last week, with one to spare.
const STREAM_DAYS: i32 = 9;

/// Days before today that the last 24 hours, and an hour more for a change of clocks, can touch.
const RECENT_DAYS: usize = 2;

/// Items, recipients and octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Items.
    pub items: u64,
    /// Recipients.
    pub recipients: u64,
    /// Octets of body, counted once for each item.
    pub bytes: u64,
}

/// What one stream did on one lane on one day. Recipients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamDay {
    /// Accepted, whichever way the stream goes.
    pub offered: u64,
    /// Reserved and not given back.
    pub reserved: u64,
}

/// Everything about one lane.
#[derive(Clone, Debug)]
pub struct LaneLedger {
    /// Where it stands in the ramp.
    pub record: LaneRecord,
    /// The day in force.
    pub today: DayRecord,
    /// Days before today, oldest first, without gaps, at most [`HISTORY_DAYS`].
    pub history: VecDeque<DayRecord>,
    /// Theoretical arrival time of the pace; survives restarts.
    pub arrival: Timestamp,
    /// Its brake, as it was put on last.
    pub brake: BrakeRecord,
    /// Recipients that count as if they had been sent on that day, since an operator set the day.
    pub memory: Option<(Day, u64)>,
    slots: BTreeMap<Slot, u64>,
    outstanding: BTreeMap<(Slot, Day), u64>,
    streams: BTreeMap<(StreamId, Day), StreamDay>,
}

impl LaneLedger {
    fn new(record: LaneRecord, day: Day) -> Self {
        LaneLedger {
            record,
            today: DayRecord { day, limit: record.limit, stage: record.stage, ..DayRecord::default() },
            history: VecDeque::new(),
            arrival: Timestamp(0),
            brake: BrakeRecord::default(),
            memory: None,
            slots: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Adds to `slot` and drops the slots that left every window. Returns all that changed.
    fn charge(&mut self, slot: Slot, recipients: u64) -> impl Iterator<Item = Slot> + use<> {
        *self.slots.entry(slot).or_default() += recipients;
        let kept = self.slots.split_off(&Slot(slot.0 - ROLLING_SLOTS - 1));
        let gone = std::mem::replace(&mut self.slots, kept);
        gone.into_keys().chain([slot])
    }

    /// Recipients that count against today: reserved today, and reserved on earlier days but not settled yet.
    pub fn reserved_today(&self) -> u64 {
        let carried: u64 = self.outstanding.iter().filter(|((_, day), _)| *day < self.today.day).map(|(_, n)| n).sum();
        self.today.reserved + carried
    }

    /// Recipients that count in the 97 quarter-hours that end with the one of `at`.
    pub fn reserved_24h(&self, at: Timestamp) -> u64 {
        let first = Slot(at.slot().0 - ROLLING_SLOTS);
        let inside: u64 = self.slots.range(first..).map(|(_, n)| n).sum();
        let carried: u64 = self.outstanding.range(..(first, Day(i32::MIN))).map(|(_, n)| n).sum();
        inside + carried
    }

    /// How much of the limit is used today, in thousandths; 0 without a limit.
    pub fn used_permille(&self) -> u64 {
        self.record.limit.map_or(0, |limit| self.reserved_today().saturating_mul(1000) / limit.max(1))
    }

    /// The oldest quarter-hour with reservations in the window that ends with the slot of `at`.
    pub fn oldest_slot(&self, at: Timestamp) -> Option<Slot> {
        let first = Slot(at.slot().0 - ROLLING_SLOTS);
        self.slots.range(first..).find(|(_, n)| **n > 0).map(|(slot, _)| *slot)
    }

    /// Reserved by `stream` on this lane today.
    pub fn stream_today(&self, stream: StreamId) -> StreamDay {
        self.stream_on(stream, self.today.day)
    }

    /// What `stream` did on `day`; zero beyond the days kept.
    pub fn stream_on(&self, stream: StreamId, day: Day) -> StreamDay {
        self.streams.get(&(stream, day)).copied().unwrap_or_default()
    }

    /// The first day of which offers of `stream` are remembered.
    pub fn stream_since(&self, stream: StreamId) -> Option<Day> {
        self.streams.range((stream, Day(i32::MIN))..).next().filter(|((s, _), _)| *s == stream).map(|((_, d), _)| *d)
    }

    /// Recipients in flight with a reservation.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.values().sum()
    }
}

/// The change of day: the span that begins, and every lane's record for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// The day that begins.
    pub span: DaySpan,
    /// One record for each lane that exists from now on.
    pub lanes: Vec<LaneRecord>,
    /// Lanes whose brake is on as the day begins.
    pub braked: Vec<LaneId>,
    /// What lanes that are new remember, as if they had sent it on that day.
    pub memories: Vec<(LaneId, (Day, u64))>,
}

/// One stored row. What `Ledger::take_changes` gives and `Ledger::restore` takes.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Row {
    Span(DaySpan),
    Lane {
        record: LaneRecord,
        arrival: Timestamp,
    },
    Day {
        lane: LaneId,
        record: DayRecord,
    },
    /// `reserved` 0: the row may be dropped.
    Slot {
        lane: LaneId,
        slot: Slot,
        reserved: u64,
    },
    Stream {
        lane: LaneId,
        stream: StreamId,
        day: Day,
        counts: StreamDay,
    },
    Total {
        queue: Queue,
        stream: StreamId,
        state: State,
        total: Total,
    },
    /// What is known of the time.
    Clock {
        mark: Mark,
        doubtful: bool,
    },
    /// A lane's brake.
    Brake {
        lane: LaneId,
        record: BrakeRecord,
    },
    /// What counts as sent by an operator's word.
    Memory {
        lane: LaneId,
        day: Day,
        recipients: u64,
    },
    /// What a stream offered in one quarter-hour.
    Offered {
        stream: StreamId,
        slot: Slot,
        recipients: u64,
    },
    Pause(Option<Pause>),
    StreamName {
        stream: StreamId,
        name: String,
    },
    /// All moves of a stream that stand, in the order in which they were told.
    Moves {
        stream: StreamId,
        moves: Vec<StreamMove>,
    },
    /// An item in flight holds this reservation. Never given as a change; read from the items.
    Outstanding {
        lane: LaneId,
        reservation: Reservation,
    },
}

#[derive(Clone, Debug, Default)]
struct Changes {
    clock: bool,
    pause: bool,
    brakes: BTreeSet<LaneId>,
    memories: BTreeSet<LaneId>,
    names: BTreeSet<StreamId>,
    moves: BTreeSet<StreamId>,
    offered: BTreeSet<(StreamId, Slot)>,
    span: bool,
    lanes: BTreeSet<LaneId>,
    days: BTreeSet<(LaneId, Day)>,
    slots: BTreeSet<(LaneId, Slot)>,
    streams: BTreeSet<(LaneId, StreamId, Day)>,
    totals: BTreeSet<(Queue, StreamId, State)>,
}

/// All lanes, the day in force, and what waits.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    clock: Option<(Mark, bool)>,
    span: Option<DaySpan>,
    lanes: BTreeMap<LaneId, LaneLedger>,
    totals: BTreeMap<(Queue, StreamId, State), Total>,
    standing: Standing,
    bursts: Bursts,
    changes: Changes,
}

impl Ledger {
    /// The day in force; `None` before the first one.
    pub fn span(&self) -> Option<DaySpan> {
        self.span
    }

    /// Which time it was when it was stored last; `None`: never.
    pub fn clock(&self) -> Option<Mark> {
        self.clock.map(|(mark, _)| mark)
    }

    /// The machine's clock cannot be right: nobody knows which part of the limit is used up.
    pub fn clock_is_doubtful(&self) -> bool {
        self.clock.is_some_and(|(_, doubtful)| doubtful)
    }

    /// The lane's numbers; `None` for a lane that no turn has named yet.
    pub fn lane(&self, lane: LaneId) -> Option<&LaneLedger> {
        self.lanes.get(&lane)
    }

    /// All lanes with their ids.
    pub fn lanes(&self) -> impl Iterator<Item = (LaneId, &LaneLedger)> {
        self.lanes.iter().map(|(id, lane)| (*id, lane))
    }

    /// How the stream's last week was spread, if that is asked for.
    pub fn burst_of(&self, stream: StreamId) -> Burst {
        self.bursts.of(stream)
    }

    /// An operator has stopped the new server.
    pub fn pause(&self) -> Option<&Pause> {
        self.standing.pause.as_ref()
    }

    /// Every name a stream ever had, by id; empty before any was named.
    pub fn stream_names(&self) -> &[String] {
        &self.standing.names
    }

    /// The stream of this name.
    pub fn stream_named(&self, name: &str) -> Option<StreamId> {
        self.standing.names.iter().position(|known| known == name).map(|id| StreamId(id as u8))
    }

    /// Moves of the stream that stand, in the order in which they were told; those to come are among them.
    pub fn moves(&self, stream: StreamId) -> &[StreamMove] {
        self.standing.moves.get(&stream).map_or(&[], Vec::as_slice)
    }

    /// The move of the stream that is in force at `now`.
    pub fn move_of(&self, stream: StreamId, now: Timestamp) -> Option<&StreamMove> {
        self.standing.move_of(stream, now)
    }

    /// Where an operator has moved the stream; `None`: the settings say it.
    pub fn way_of(&self, stream: StreamId, now: Timestamp) -> Option<StreamWay> {
        self.standing.way_of(stream, now)
    }

    /// When the next move that was told comes into force.
    pub fn next_move(&self, now: Timestamp) -> Option<Timestamp> {
        self.standing.next_move(now)
    }

    /// What waits or lies in the given state, by line and stream.
    pub fn totals(&self) -> impl Iterator<Item = (Queue, StreamId, State, Total)> {
        self.totals.iter().map(|((queue, stream, state), total)| (*queue, *stream, *state, *total))
    }

    /// Sum over all lines and streams of what is in `state`.
    pub fn total_of(&self, state: State) -> Total {
        self.sum(|_, _, s| s == state)
    }

    /// Recipients that wait (ready, held or deferred) in the lines and streams that `which` picks.
    pub fn waiting_recipients(&self, which: impl Fn(Queue, StreamId) -> bool) -> u64 {
        self.sum(|queue, stream, state| state.is_waiting() && which(queue, stream)).recipients
    }

    /// Octets of body in the queue, once for each item.
    pub fn queued_bytes(&self) -> u64 {
        self.sum(|_, _, _| true).bytes
    }

    fn sum(&self, which: impl Fn(Queue, StreamId, State) -> bool) -> Total {
        let mut sum = Total::default();
        for ((queue, stream, state), total) in &self.totals {
            if which(*queue, *stream, *state) {
                sum.items += total.items;
                sum.recipients += total.recipients;
                sum.bytes += total.bytes;
            }
        }
        sum
    }

    /// Begins the day of `turn`. The day that was in force joins the history; days nobody saw join it as empty ones.
    pub(super) fn roll(&mut self, turn: &Turn) {
        let before = self.span.replace(turn.span);
        self.changes.span = true;
        for record in &turn.lanes {
            let day = turn.span.day;
            let lane = self.lanes.entry(record.lane).or_insert_with(|| LaneLedger::new(*record, day));
            if before.is_some() && lane.today.day < day {
                let mut closing = lane.today;
                while closing.day < day {
                    let next = closing.day.next();
                    lane.history.push_back(closing);
                    // A gap longer than the memory leaves nothing but empty days of it.
                    closing =
                        DayRecord { day: next.max(Day(day.0 - HISTORY_DAYS as i32)).min(day), ..DayRecord::default() };
                    self.changes.days.insert((record.lane, lane.history.back().expect("just pushed").day));
                }
                while lane.history.len() > HISTORY_DAYS {
                    lane.history.pop_front();
                }
                lane.today = DayRecord { day, ..DayRecord::default() };
                // What is frozen stays so until a person acts, and no day of it counts.
                let frozen = lane.brake.step == StageStep::Freeze;
                lane.brake.touched = frozen || turn.braked.contains(&record.lane);
                lane.brake.step = if frozen { StageStep::Freeze } else { StageStep::None };
                lane.today.braked = lane.brake.touched || self.standing.pause.is_some();
                self.changes.brakes.insert(record.lane);
                lane.streams.retain(|(_, d), _| d.0 >= day.0 - STREAM_DAYS);
            }
            lane.record = *record;
            lane.today.stage = record.stage;
            lane.today.limit = record.limit;
            self.changes.lanes.insert(record.lane);
            self.changes.days.insert((record.lane, day));
        }
        for (id, memory) in &turn.memories {
            if let Some(lane) = self.lanes.get_mut(id) {
                lane.memory = Some(*memory);
                self.changes.memories.insert(*id);
            }
        }
        self.bursts.turn(turn.span.starts);
    }

    /// A lane's brake is now like this. `false`: there is no such lane.
    pub(super) fn set_brake(&mut self, lane: LaneId, record: BrakeRecord) -> bool {
        let Some(entry) = self.lanes.get_mut(&lane) else { return false };
        if record.level > BrakeLevel::Open || record.touched {
            entry.today.braked = true;
            self.changes.days.insert((lane, entry.today.day));
        }
        entry.brake = record;
        self.changes.brakes.insert(lane);
        true
    }

    /// Stops the new server, or lets it go on. A day with a pause does not count.
    pub(super) fn set_pause(&mut self, pause: Option<Pause>) {
        for (id, entry) in self.lanes.iter_mut().filter(|_| pause.is_some()) {
            entry.today.braked = true;
            self.changes.days.insert((*id, entry.today.day));
        }
        self.standing.pause = pause;
        self.changes.pause = true;
    }

    /// A lane as an operator wants it.
    pub(super) fn set_lane(&mut self, lane: &SetLane) {
        let id = lane.record.lane;
        let Some(entry) = self.lanes.get_mut(&id) else { return };
        entry.record = lane.record;
        entry.today.stage = lane.record.stage;
        entry.memory = Some(lane.memory);
        self.changes.lanes.insert(id);
        self.changes.memories.insert(id);
        self.changes.days.insert((id, entry.today.day));
    }

    /// Streams of these names exist. `false`: there is no room for so many, and none was added.
    pub(super) fn name_streams(&mut self, names: &[String]) -> bool {
        let mut all = self.standing.names.clone();
        for name in names {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        if all.len() > STREAM_NAMES_MOST {
            return false;
        }
        self.changes.names.extend((self.standing.names.len()..all.len()).map(|id| StreamId(id as u8)));
        self.standing.names = all;
        true
    }

    pub(super) fn add_move(&mut self, stream: StreamId, to: &StreamMove) {
        self.standing.add(stream, to);
        self.changes.moves.insert(stream);
    }

    pub(super) fn undo_move(&mut self, stream: StreamId) -> Option<StreamMove> {
        let undone = self.standing.undo(stream)?;
        self.changes.moves.insert(stream);
        Some(undone)
    }

    /// Keeps what is known of the time.
    pub(super) fn note_clock(&mut self, mark: Mark, doubtful: bool) {
        self.clock = Some((mark, doubtful));
        self.changes.clock = true;
    }

    /// The clock was wrong by `shift`: what was used keeps its distance from now. `day`, if the calendar goes back too,
    /// is what today is called from now on; what was used of it stays used, and the days before it move along.
    pub(super) fn shift(&mut self, shift: Shift, day: Option<DaySpan>) {
        self.changes.span |= day.is_some();
        self.span = day.or(self.span);
        self.changes.offered.extend(self.bursts.shift(shift.slots));
        for (id, lane) in &mut self.lanes {
            lane.arrival.0 = lane.arrival.0.saturating_add(shift.by).max(0);
            for time in [&mut lane.brake.since, &mut lane.brake.until] {
                time.0 = time.0.saturating_add(shift.by).max(0);
            }
            self.changes.brakes.insert(*id);
            let (slots, outstanding) = (std::mem::take(&mut lane.slots), std::mem::take(&mut lane.outstanding));
            self.changes.slots.extend(slots.keys().map(|slot| (*id, *slot)));
            lane.slots = slots.into_iter().map(|(slot, n)| (Slot(slot.0 + shift.slots), n)).collect();
            self.changes.slots.extend(lane.slots.keys().map(|slot| (*id, *slot)));
            let moved = |((slot, day), n): ((Slot, Day), u64)| {
                ((Slot(slot.0 + shift.slots), Day(day.0.saturating_add(shift.days))), n)
            };
            lane.outstanding = outstanding.into_iter().map(moved).collect();
            self.changes.lanes.insert(*id);
            if shift.days == 0 {
                continue;
            }
            for record in lane.history.iter_mut().chain([&mut lane.today]) {
                record.day.0 += shift.days;
                self.changes.days.insert((*id, record.day));
            }
            if let Some(braked) = &mut lane.record.last_braked {
                braked.0 += shift.days;
            }
            if let Some((day, _)) = &mut lane.memory {
                day.0 += shift.days;
                self.changes.memories.insert(*id);
            }
            let streams = std::mem::take(&mut lane.streams);
            self.changes.streams.extend(streams.keys().map(|(stream, day)| (*id, *stream, *day)));
            let moved = |((stream, day), n): ((StreamId, Day), StreamDay)| ((stream, Day(day.0 + shift.days)), n);
            lane.streams = streams.into_iter().map(moved).collect();
            self.changes.streams.extend(lane.streams.keys().map(|(stream, day)| (*id, *stream, *day)));
        }
    }

    /// Charges `recipients` of `stream` to `lane` and the total, at `now`.
    pub(super) fn reserve(
        &mut self,
        lane: LaneId,
        stream: StreamId,
        recipients: u64,
        arrivals: &[(LaneId, Timestamp)],
        now: Timestamp,
    ) -> Option<Reservation> {
        let day = self.span?.day;
        let slot = now.slot();
        for id in both(lane) {
            let Some(entry) = self.lanes.get_mut(&id) else { continue };
            self.changes.slots.extend(entry.charge(slot, recipients).map(|slot| (id, slot)));
            *entry.outstanding.entry((slot, day)).or_default() += recipients;
            entry.today.reserved += recipients;
            entry.streams.entry((stream, day)).or_default().reserved += recipients;
            if let Some((_, arrival)) = arrivals.iter().find(|(l, _)| *l == id) {
                // Never backwards: a clock that stepped back must not refill the bucket.
                entry.arrival = entry.arrival.max(*arrival);
            }
            self.changes.days.insert((id, day));
            self.changes.streams.insert((id, stream, day));
            self.changes.lanes.insert(id);
        }
        Some(Reservation { slot, day, recipients })
    }

    /// Ends a reservation: `refund` of it were definitely not accepted, the rest count as used, now and not earlier.
    pub(super) fn release(
        &mut self,
        lane: LaneId,
        stream: StreamId,
        reservation: Reservation,
        refund: u64,
        now: Timestamp,
    ) {
        let Reservation { slot, day, recipients } = reservation;
        let used = recipients.saturating_sub(refund);
        let slot_now = now.slot().max(slot);
        for id in both(lane) {
            let Some(entry) = self.lanes.get_mut(&id) else { continue };
            if let Some(open) = entry.outstanding.get_mut(&(slot, day)) {
                *open = open.saturating_sub(recipients);
                if *open == 0 {
                    entry.outstanding.remove(&(slot, day));
                }
            }
            // The final dot may have come as late as now: what was used moves to this quarter-hour, and counts for
            // this day too when midnight lay between.
            let moved = if slot_now > slot { recipients } else { refund };
            if let Some(reserved) = entry.slots.get_mut(&slot) {
                *reserved = reserved.saturating_sub(moved);
                self.changes.slots.insert((id, slot));
            }
            if slot_now > slot && used > 0 {
                self.changes.slots.extend(entry.charge(slot_now, used).map(|slot| (id, slot)));
            }
            let today = entry.today.day;
            if day == today {
                entry.today.reserved = entry.today.reserved.saturating_sub(refund);
            } else {
                entry.today.reserved += used;
                if let Some(record) = entry.history.iter_mut().find(|r| r.day == day) {
                    record.reserved = record.reserved.saturating_sub(refund);
                    self.changes.days.insert((id, day));
                }
            }
            if let Some(counts) = entry.streams.get_mut(&(stream, day)) {
                counts.reserved = counts.reserved.saturating_sub(refund);
                self.changes.streams.insert((id, stream, day));
            }
            self.changes.days.insert((id, today));
        }
    }

    /// Counts what left by `new` without a reservation: lanes that are complete, or no warm-up at all.
    pub(super) fn count_unmetered(&mut self, lane: LaneId, recipients: u64, now: Timestamp) {
        for id in both(lane) {
            let Some(entry) = self.lanes.get_mut(&id) else { continue };
            self.changes.slots.extend(entry.charge(now.slot(), recipients).map(|slot| (id, slot)));
            entry.today.reserved += recipients;
            self.changes.days.insert((id, entry.today.day));
        }
    }

    /// Counts every lane's limit as used, today and for the 24 hours from `now` on: what was sent meanwhile is not known
    /// here. Doing it twice changes nothing.
    pub(super) fn use_up(&mut self, now: Timestamp) {
        for (id, entry) in &mut self.lanes {
            let recent = entry.history.iter().rev().take(RECENT_DAYS).map(|record| record.limit);
            let limits = recent.chain([entry.record.limit, entry.today.limit]);
            let most = limits.flatten().max().unwrap_or(0);
            let slot = now.slot();
            let missing = most.saturating_sub(entry.slots.get(&slot).copied().unwrap_or(0));
            self.changes.slots.extend(entry.charge(slot, missing).map(|slot| (*id, slot)));
            entry.today.reserved = entry.today.reserved.max(most);
            self.changes.days.insert((*id, entry.today.day));
        }
    }

    /// Counts what a server acknowledged.
    pub(super) fn count_relayed(&mut self, lane: LaneId, queue: Queue, recipients: u64) {
        self.on_today(lane, |today| match queue {
            Queue::New(_) => today.sent += recipients,
            Queue::Legacy => today.legacy += recipients,
        });
    }

    /// Counts what the application offered to the ramp.
    pub(super) fn count_offered(&mut self, lane: LaneId, recipients: u64) {
        self.on_today(lane, |today| today.offered += recipients);
    }

    /// Counts what the application sent on a stream, whichever way the stream goes: what it would offer to the ramp must
    /// be known before it is moved there.
    pub(super) fn count_accepted(&mut self, lane: LaneId, stream: StreamId, recipients: u64) {
        let Some(span) = self.span else { return };
        for id in both(lane) {
            if let Some(entry) = self.lanes.get_mut(&id) {
                entry.streams.entry((stream, span.day)).or_default().offered += recipients;
                self.changes.streams.insert((id, stream, span.day));
            }
        }
    }

    /// Counts when it was offered.
    pub(super) fn count_burst(&mut self, stream: StreamId, recipients: u64, now: Timestamp) {
        self.bursts.add(stream, now.slot(), recipients);
        self.changes.offered.insert((stream, now.slot()));
    }

    fn on_today(&mut self, lane: LaneId, mut change: impl FnMut(&mut DayRecord)) {
        for id in both(lane) {
            if let Some(entry) = self.lanes.get_mut(&id) {
                change(&mut entry.today);
                self.changes.days.insert((id, entry.today.day));
            }
        }
    }

    /// An item came into its state.
    pub(super) fn enter(&mut self, item: &Item) {
        let total = self.totals.entry((item.queue, item.stream, item.state)).or_default();
        total.items += 1;
        total.recipients += item.recipients();
        total.bytes += item.size;
        self.changes.totals.insert((item.queue, item.stream, item.state));
    }

    /// An item left its state.
    pub(super) fn leave(&mut self, item: &Item) {
        let total = self.totals.entry((item.queue, item.stream, item.state)).or_default();
        total.items = total.items.saturating_sub(1);
        total.recipients = total.recipients.saturating_sub(item.recipients());
        total.bytes = total.bytes.saturating_sub(item.size);
        self.changes.totals.insert((item.queue, item.stream, item.state));
    }

    /// The rows that changed since the last call, as they are now.
    pub(super) fn take_changes(&mut self) -> Vec<Row> {
        let changes = std::mem::take(&mut self.changes);
        let mut rows = Vec::with_capacity(changes.slots.len() + changes.totals.len() + 4);
        if changes.clock {
            rows.extend(self.clock.map(|(mark, doubtful)| Row::Clock { mark, doubtful }));
        }
        if changes.span {
            rows.extend(self.span.map(Row::Span));
        }
        for (stream, slot) in changes.offered {
            rows.push(Row::Offered { stream, slot, recipients: self.bursts.at(stream, slot) });
        }
        if changes.pause {
            rows.push(Row::Pause(self.standing.pause.clone()));
        }
        for id in changes.brakes {
            rows.extend(self.lanes.get(&id).map(|l| Row::Brake { lane: id, record: l.brake.clone() }));
        }
        for id in changes.memories {
            let memory = self.lanes.get(&id).and_then(|l| l.memory);
            rows.extend(memory.map(|(day, recipients)| Row::Memory { lane: id, day, recipients }));
        }
        for stream in changes.names {
            let name = self.standing.names[usize::from(stream.0)].clone();
            rows.push(Row::StreamName { stream, name });
        }
        for stream in changes.moves {
            rows.push(Row::Moves { stream, moves: self.moves(stream).to_vec() });
        }
        for id in changes.lanes {
            rows.extend(self.lanes.get(&id).map(|l| Row::Lane { record: l.record, arrival: l.arrival }));
        }
        for (lane, day) in changes.days {
            let Some(entry) = self.lanes.get(&lane) else { continue };
            let record = (entry.today.day == day)
                .then_some(entry.today)
                .or_else(|| entry.history.iter().find(|r| r.day == day).copied());
            rows.extend(record.map(|record| Row::Day { lane, record }));
        }
        for (lane, slot) in changes.slots {
            let reserved = self.lanes.get(&lane).and_then(|l| l.slots.get(&slot)).copied().unwrap_or(0);
            rows.push(Row::Slot { lane, slot, reserved });
        }
        for (lane, stream, day) in changes.streams {
            let Some(entry) = self.lanes.get(&lane) else { continue };
            rows.push(Row::Stream { lane, stream, day, counts: entry.stream_on(stream, day) });
        }
        for (queue, stream, state) in changes.totals {
            let total = self.totals.get(&(queue, stream, state)).copied().unwrap_or_default();
            rows.push(Row::Total { queue, stream, state, total });
        }
        rows
    }

    /// The ledger as stored. Rows may come in any order; those of lanes without a record are left out.
    pub(super) fn restore(rows: &[Row]) -> Ledger {
        let mut ledger = Ledger::default();
        let day = rows.iter().find_map(|r| if let Row::Span(span) = r { Some(*span) } else { None });
        ledger.span = day;
        for row in rows {
            if let Row::Lane { record, arrival } = row {
                let mut lane = LaneLedger::new(*record, day.map_or(Day(0), |s| s.day));
                lane.arrival = *arrival;
                ledger.lanes.insert(record.lane, lane);
            }
        }
        for row in rows {
            match row {
                Row::Span(_) | Row::Lane { .. } => {}
                Row::Clock { mark, doubtful } => ledger.clock = Some((*mark, *doubtful)),
                Row::Offered { stream, slot, recipients } => {
                    ledger.bursts.add(*stream, *slot, *recipients);
                }
                Row::Pause(pause) => ledger.standing.pause = pause.clone(),
                Row::Brake { lane, record } => {
                    if let Some(entry) = ledger.lanes.get_mut(lane) {
                        entry.brake = record.clone();
                    }
                }
                Row::Memory { lane, day, recipients } => {
                    if let Some(entry) = ledger.lanes.get_mut(lane) {
                        entry.memory = Some((*day, *recipients));
                    }
                }
                Row::StreamName { stream, name } => {
                    let names = &mut ledger.standing.names;
                    let id = usize::from(stream.0);
                    names.resize(names.len().max(id + 1), String::new());
                    names[id].clone_from(name);
                }
                Row::Moves { stream, moves } => drop(ledger.standing.moves.insert(*stream, moves.clone())),
                Row::Day { lane, record } => {
                    let Some(entry) = ledger.lanes.get_mut(lane) else { continue };
                    if record.day == entry.today.day {
                        entry.today = *record;
                    } else if record.day < entry.today.day {
                        // Later ones are what days were called before the calendar went back.
                        entry.history.push_back(*record);
                    }
                }
                Row::Slot { lane, slot, reserved } => {
                    if let Some(entry) = ledger.lanes.get_mut(lane) {
                        entry.slots.insert(*slot, *reserved);
                    }
                }
                Row::Stream { lane, stream, day, counts } => {
                    if let Some(entry) = ledger.lanes.get_mut(lane) {
                        entry.streams.insert((*stream, *day), *counts);
                    }
                }
                Row::Total { queue, stream, state, total } => {
                    ledger.totals.insert((*queue, *stream, *state), *total);
                }
                Row::Outstanding { lane, reservation } => {
                    for id in both(*lane) {
                        if let Some(entry) = ledger.lanes.get_mut(&id) {
                            *entry.outstanding.entry((reservation.slot, reservation.day)).or_default() +=
                                reservation.recipients;
                        }
                    }
                }
            }
        }
        for entry in ledger.lanes.values_mut() {
            entry.history.make_contiguous().sort_by_key(|r| r.day);
            while entry.history.len() > HISTORY_DAYS {
                entry.history.pop_front();
            }
            // As a turn leaves it, so that a restart changes no answer.
            let today = entry.today.day;
            entry.streams.retain(|(_, day), _| day.0 >= today.0 - STREAM_DAYS);
        }
        if let Some(span) = ledger.span {
            ledger.bursts.turn(span.starts);
        }
        ledger
    }
}

/// A lane and the total; the total alone is its own lane.
fn both(lane: LaneId) -> impl Iterator<Item = LaneId> {
    std::iter::once(LaneId::TOTAL).chain((lane != LaneId::TOTAL).then_some(lane))
}
