//! The one algorithm of the spool: what accept, claim and settle do to rows and ledger, in one transaction.
//!
//! Written once over [`Store`], so that every back end behaves alike. The ledger in memory is changed along the way;
//! when a transaction fails it is read anew from the store, so that the two can never drift apart.

use std::collections::BTreeMap;
use std::time::Duration;

use super::body::{BodySource, NewBody};
use super::item::{BodyId, Item, ItemId, Shift, State};
use super::ledger::{Ledger, Row};
use super::{
    Accept, Admission, Ask, Batch, Chore, ChoreAnswer, Claim, ClaimAnswer, Claimed, ClockNote, Done, Fate, Gate, Grant,
    Part, Placed, Settle, Slots, SpoolError, Store, Touched,
};
use crate::message::{
    DaySpan, Envelope, LaneId, Queue, QueueId, Reason, Recipient, Route, SLOT_NANOS, StreamId, Timestamp,
};

/// Items read from a line at once, so that a claim for one never reads thousands.
const READ_AHEAD: usize = 64;
/// The same at first where tokens come one by one: most claims end with the first item.
const READ_AHEAD_METERED: usize = 2;
/// Items in flight at a crash that are put back in one transaction.
const RECOVER_AT_ONCE: usize = 1000;
/// A `maybe` item that was to change its route is tried again on its own one after this.
const MAYBE_RETRY: Duration = Duration::from_secs(15 * 60);
/// A calendar that goes back by fewer days waits until it has caught up; the day in force lasts until then.
const DAYS_BACK: i32 = 2;
/// How much further a line is searched for items that may fall back when those in front may not.
const FALL_BACK_DEPTH: usize = 16;
/// A process that slept for longer than this closes no more than so many empty days.
const MOST_TURNS: usize = 64;

/// A spool over one back end. Not shared: the committer, or a simulation, owns it.
pub struct Spool<S> {
    pub(super) store: S,
    pub(super) ledger: Ledger,
    last_item: ItemId,
    last_message: QueueId,
    latest: Timestamp,
    /// Items that were in flight when times moved: their copies outside are told by the old clock.
    moved: BTreeMap<ItemId, Shift>,
}

/// What recovery found when the spool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Items that were in flight when the last process ended; marked `maybe` and back in line.
    pub in_flight: usize,
    /// Items whose octets a power cut has damaged; put aside.
    pub damaged: usize,
}

impl<S: Store> Spool<S> {
    /// Opens what `store` holds. Items in flight go back in line: their tokens stay used, their route stays, and they
    /// are marked `maybe`, since the next hop may have them.
    pub fn open(mut store: S, now: Timestamp) -> Result<(Self, Recovered), SpoolError> {
        let ledger = Ledger::restore(&store.ledger_rows()?);
        let (last_item, last_message) = store.last_ids()?;
        let mut spool = Spool { store, ledger, last_item, last_message, latest: now, moved: BTreeMap::new() };
        let mut recovered = Recovered::default();
        loop {
            spool.store.begin()?;
            let items = spool.store.in_state(State::InFlight, ItemId(0), RECOVER_AT_ONCE)?;
            recovered.in_flight += items.len();
            let done = items.is_empty();
            for old in items {
                let mut item = old.clone();
                if let Some(reservation) = item.reservation.take() {
                    spool.ledger.release(item.lane, item.stream, reservation, 0, now);
                }
                item.state = spool.waiting_state(item.queue);
                (item.maybe, item.reason) = (true, Reason::Pinned);
                item.deadline = None;
                item.due = now;
                if item.envelope.recipients.is_empty() {
                    spool.put_aside_unreadable(&old)?;
                    recovered.damaged += 1;
                } else {
                    spool.replace(&old, &item)?;
                }
            }
            if done {
                for body in spool.store.damaged() {
                    // Those of an earlier start are found again; they are no news.
                    let fresh = |i: &Item| i.state != State::Quarantined;
                    for old in spool.store.of_body(body)?.into_iter().filter(fresh) {
                        let item = Item { state: State::Quarantined, ..old.clone() };
                        spool.replace(&old, &item)?;
                        recovered.damaged += 1;
                    }
                }
            }
            spool.save_and_commit()?;
            if done {
                return Ok((spool, recovered));
            }
        }
    }

    /// The numbers as of the last committed batch.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The highest queue id that was ever stored here; new ones must be above it.
    pub fn last_message(&self) -> QueueId {
        self.last_message
    }

    /// The rows themselves, for tests and listings.
    pub fn store(&mut self) -> &mut S {
        &mut self.store
    }

    /// Gives back the rows; what was applied stays applied.
    pub fn into_store(self) -> S {
        self.store
    }

    /// Applies the batch in one transaction and returns when it is durable. On `Err` nothing of it happened.
    pub fn apply(
        &mut self,
        batch: &Batch,
        gate: &dyn Gate,
        slots: &dyn Slots,
        now: Timestamp,
    ) -> Result<Done, SpoolError> {
        // A clock that steps back stands still for us until it has caught up, unless an operator says that it is right.
        let now = if batch.clock.is_some_and(|note| note.moved != 0) { now } else { now.max(self.latest) };
        let moved = self.moved.clone();
        self.store.begin()?;
        let mut work = Work { done: Done::default(), gate, slots, now, taken: [0; 2] };
        match self.run(batch, &mut work).and_then(|()| self.save_and_commit()) {
            Ok(()) => {
                self.latest = now;
                self.moved.retain(|id, _| batch.settles.iter().all(|settle| settle.item.id != *id));
                Ok(work.done)
            }
            Err(error) => {
                for route in Route::ALL {
                    slots.give_back(route, work.taken[route as usize]);
                }
                self.moved = moved;
                self.store.rollback()?;
                self.ledger = Ledger::restore(&self.store.ledger_rows()?);
                Err(error)
            }
        }
    }

    /// The same for work that asks nobody.
    pub(super) fn in_one_transaction<R>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<R, SpoolError>,
    ) -> Result<R, SpoolError> {
        self.store.begin()?;
        let result = work(self).and_then(|found| self.save_and_commit().map(|()| found));
        if result.is_err() {
            self.store.rollback()?;
            self.ledger = Ledger::restore(&self.store.ledger_rows()?);
        }
        result
    }

    fn save_and_commit(&mut self) -> Result<(), SpoolError> {
        for row in self.ledger.take_changes() {
            self.store.save(&row)?;
        }
        self.store.commit()
    }

    /// After a start on data that no time is stored with: what was delayed by a clock that was ahead does not wait for
    /// it. Nothing is delayed beyond `latest` by the rules.
    pub fn due_by(&mut self, latest: Timestamp) -> Result<usize, SpoolError> {
        self.store.begin()?;
        let items = self.store.due_by(latest)?;
        self.store.commit()?;
        Ok(items)
    }

    fn note_clock(&mut self, note: &ClockNote, day: Option<DaySpan>) -> Result<(), SpoolError> {
        self.ledger.note_clock(note.mark, note.doubtful);
        let life = i64::try_from(note.missed.as_nanos()).unwrap_or(i64::MAX);
        if note.moved == 0 && life == 0 {
            return Ok(());
        }
        // Rounded up: what was used must not leave a window earlier.
        let slots = note.moved.div_euclid(SLOT_NANOS) + i64::from(note.moved.rem_euclid(SLOT_NANOS) != 0);
        let earlier = |day: &DaySpan| self.ledger.span().filter(|span| day.day.0 + DAYS_BACK <= span.day.0);
        let day = day.filter(|day| note.moved < 0 && earlier(day).is_some());
        let days = day.and_then(|day| Some(day.day.0 - self.ledger.span()?.day.0)).unwrap_or(0);
        let shift = Shift { by: note.moved, life, slots, days };
        self.store.shift(&shift)?;
        if note.moved != 0 {
            self.ledger.shift(shift, day);
        }
        let mut above = ItemId(i64::MIN + 1);
        loop {
            let items = self.store.in_state(State::InFlight, above, RECOVER_AT_ONCE)?;
            let Some(last) = items.last() else { return Ok(()) };
            above = last.id;
            for item in items {
                let entry = self.moved.entry(item.id).or_default();
                *entry = entry.and(shift);
            }
        }
    }

    fn run(&mut self, batch: &Batch, work: &mut Work<'_>) -> Result<(), SpoolError> {
        if let Some(note) = &batch.clock {
            self.note_clock(note, work.gate.span_at(work.now))?;
        }
        for _ in 0..MOST_TURNS {
            let Some(turn) = work.gate.turn(&self.ledger, work.now) else { break };
            let total = |ledger: &Ledger| ledger.lane(LaneId::TOTAL).map(|lane| lane.record);
            let before = total(&self.ledger);
            self.ledger.roll(&turn);
            work.done.days.extend(total(&self.ledger).map(|after| (before, after)));
        }
        if !batch.chores.is_empty() || !work.done.days.is_empty() {
            // Whoever keeps house looks in again when the day ends, mail or no mail.
            work.wake_at(self.ledger.span().map(|span| span.ends));
        }
        for settle in &batch.settles {
            self.settle(settle, work)?;
        }
        for claim in &batch.claims {
            let answer = self.claim(claim, work)?;
            work.done.claims.push(answer);
        }
        for chore in &batch.chores {
            let answer = self.chore(chore, work)?;
            work.done.chores.push(answer);
        }
        if !batch.accepts.is_empty() {
            self.store.room(self.ledger.queued_bytes())?;
        }
        for accept in &batch.accepts {
            let placed = self.accept(accept, work)?;
            work.done.accepts.push(placed);
        }
        if work.done.touched.iter().any(|t| self.must_go_back(t, work)) {
            work.wake_at(Some(work.now));
        }
        let told = batch.chores.iter().any(|chore| matches!(chore, Chore::Tell(_)));
        if told || self.ledger.next_move(self.latest).is_some_and(|at| at <= work.now) {
            work.done.order = work.gate.order(&self.ledger, work.now);
        }
        Ok(())
    }

    fn must_go_back(&self, touched: &Touched, work: &Work<'_>) -> bool {
        match touched.queue {
            Queue::Legacy => false,
            Queue::New(lane) => work.gate.gives_back(&self.ledger, lane, touched.stream, work.now).is_some(),
        }
    }

    // --- accept -------------------------------------------------------------------------------------------------

    fn accept(&mut self, accept: &Accept, work: &mut Work<'_>) -> Result<Vec<Placed>, SpoolError> {
        let mut items = Vec::with_capacity(accept.parts.len());
        for part in &accept.parts {
            self.place(accept, part, &mut items, work);
        }
        if items.is_empty() {
            // A body that no item names would stay for ever.
            return Ok(Vec::new());
        }
        let body = self.store.insert_body(&accept.body, accept.id, items.len() as u64)?;
        self.last_message = self.last_message.max(accept.id);
        let mut placed = Vec::with_capacity(items.len());
        for mut item in items {
            item.body = body;
            begin_life(&mut item, work);
            self.store.insert(&item)?;
            self.ledger.enter(&item);
            placed.push(Placed {
                queue: item.queue,
                stream: item.stream,
                state: item.state,
                recipients: item.recipients(),
                reason: item.reason,
            });
            if item.state == State::InFlight {
                let route = item.queue.route();
                match &accept.body {
                    // It is in memory already: no need to read it back.
                    NewBody::Memory { bytes, crc, .. } => {
                        let body = BodySource::Memory(bytes.clone());
                        work.done.handed.push(Claimed { item, body, crc: *crc, at: work.now });
                    }
                    NewBody::File { .. } => {
                        if matches!(self.hand_over(item, work)?, Claiming::Damaged) {
                            work.untake(route);
                        }
                    }
                }
            } else {
                work.touch(&item);
            }
        }
        Ok(placed)
    }

    /// Splits a part into what goes at once, what waits and what the legacy server takes.
    fn place(&mut self, accept: &Accept, part: &Part, items: &mut Vec<Item>, work: &mut Work<'_>) {
        let ask = Ask { lane: part.lane, stream: part.stream, recipients: part.recipients.len() as u64 };
        let admission = match part.only {
            Some(route) => Admission {
                new: if route == Route::New { ask.recipients } else { 0 },
                deadline: None,
                new_reason: Reason::Manual,
                rest_reason: Reason::Manual,
                offered: false,
            },
            None => work.gate.admit(&self.ledger, ask, work.now),
        };
        if part.only.is_none() {
            self.ledger.count_accepted(part.lane, part.stream, ask.recipients);
        }
        if admission.offered {
            self.ledger.count_offered(part.lane, ask.recipients);
            if work.gate.watches_bursts(part.stream) {
                self.ledger.count_burst(part.stream, ask.recipients, work.now);
            }
        }
        let split = usize::try_from(admission.new).unwrap_or(usize::MAX).min(part.recipients.len());
        let (mut new, rest) = part.recipients.split_at(split);
        let lane_queue = Queue::New(part.lane);
        let ahead = |queue| items.iter().any(|i| i.queue == queue && i.state.is_waiting());
        let (new_is_free, legacy_is_free) = (!ahead(lane_queue), !ahead(Queue::Legacy));
        if !new.is_empty() && new_is_free && self.nobody_waits(lane_queue) && work.take(Route::New) {
            let (granted, reservation) = self.grant(Ask { recipients: new.len() as u64, ..ask }, work);
            if granted == 0 {
                work.untake(Route::New);
            } else {
                let (now, later) = new.split_at(granted);
                let mut item =
                    self.fresh(accept, part, now, lane_queue, State::InFlight, admission.new_reason, work.now);
                item.deadline = admission.deadline;
                item.reservation = reservation;
                items.push(item);
                new = later;
            }
        }
        if !new.is_empty() {
            let state = self.waiting_state(lane_queue);
            let mut item = self.fresh(accept, part, new, lane_queue, state, admission.new_reason, work.now);
            item.deadline = admission.deadline;
            items.push(item);
        }
        if !rest.is_empty() {
            let at_once = legacy_is_free && self.nobody_waits(Queue::Legacy) && work.take(Route::Legacy);
            let state = if at_once { State::InFlight } else { State::Ready };
            items.push(self.fresh(accept, part, rest, Queue::Legacy, state, admission.rest_reason, work.now));
        }
    }

    #[allow(clippy::too_many_arguments)] // one call site each for the three fields that differ
    fn fresh(
        &mut self,
        accept: &Accept,
        part: &Part,
        recipients: &[Recipient],
        queue: Queue,
        state: State,
        reason: Reason,
        now: Timestamp,
    ) -> Item {
        Item {
            id: self.next_item(),
            message: accept.id,
            body: BodyId(0),
            size: accept.body.size(),
            queue,
            lane: part.lane,
            stream: part.stream,
            state,
            maybe: false,
            reason,
            accepted: now,
            due: now,
            deadline: None,
            expires: None,
            attempts: 0,
            reservation: None,
            envelope: Envelope {
                reverse_path: accept.reverse_path.clone(),
                parameters: accept.parameters.clone(),
                recipients: recipients.to_vec(),
            },
            last_reply: String::new(),
        }
    }

    // --- claim --------------------------------------------------------------------------------------------------

    fn claim(&mut self, claim: &Claim, work: &mut Work<'_>) -> Result<ClaimAnswer, SpoolError> {
        let mut answer = ClaimAnswer::default();
        let metered = self.waiting_state(claim.queue) == State::Held;
        let mut read_ahead = if metered { READ_AHEAD_METERED } else { READ_AHEAD };
        'streams: for &stream in &claim.streams {
            while answer.items < claim.most_items && answer.blocked.is_none() {
                let most = (claim.most_items - answer.items).min(read_ahead);
                read_ahead = (read_ahead * 2).min(READ_AHEAD);
                let items = self.store.due(claim.queue, stream, work.now, most)?;
                if items.is_empty() {
                    break;
                }
                for item in items {
                    match self.claim_item(item, work)? {
                        Claiming::Claimed => answer.items += 1,
                        Claiming::Damaged => {}
                        Claiming::StreamBlocked(until) => {
                            answer.next_due.push((stream, Some(until)));
                            continue 'streams;
                        }
                        Claiming::Blocked(until) => {
                            answer.blocked = Some((stream, until));
                            break;
                        }
                    }
                }
            }
            answer.next_due.push((stream, self.store.next_due(claim.queue, stream)?));
        }
        if let Queue::New(lane) = claim.queue {
            answer.used_permille = self.ledger.lane(lane).map_or(0, |lane| lane.used_permille());
        }
        Ok(answer)
    }

    fn claim_item(&mut self, old: Item, work: &mut Work<'_>) -> Result<Claiming, SpoolError> {
        if old.envelope.recipients.is_empty() {
            self.put_aside_unreadable(&old)?;
            work.done.quarantined.push(old.message);
            return Ok(Claiming::Damaged);
        }
        if self.moves_to_its_lanes(&old, work)? {
            return Ok(Claiming::Damaged);
        }
        let ask = Ask { lane: old.lane, stream: old.stream, recipients: old.recipients() };
        let mut item = old.clone();
        if let Queue::New(_) = old.queue {
            match work.gate.grant(&self.ledger, ask, work.now) {
                Grant::None { until, stream_only } => {
                    // Never in the past, or the caller would ask again at once and for ever.
                    let until = until.max(Timestamp(work.now.0 + 1));
                    return Ok(if stream_only { Claiming::StreamBlocked(until) } else { Claiming::Blocked(until) });
                }
                Grant::Unmetered => {}
                Grant::Some { recipients, arrivals } => {
                    let granted = recipients.min(ask.recipients);
                    item.reservation = self.ledger.reserve(ask.lane, ask.stream, granted, &arrivals, work.now);
                    let granted = granted as usize;
                    if granted < old.envelope.recipients.len() {
                        let mut remainder = old.clone();
                        remainder.envelope.recipients = item.envelope.recipients.split_off(granted);
                        item.id = self.next_item();
                        item.state = State::InFlight;
                        self.replace(&old, &remainder)?;
                        self.store.reference_body(item.body, 1)?;
                        self.store.insert(&item)?;
                        self.ledger.enter(&item);
                        return self.hand_over(item, work);
                    }
                }
            }
        }
        item.state = State::InFlight;
        self.replace(&old, &item)?;
        self.hand_over(item, work)
    }

    /// Recipients whose provider has become known since, or is another one now, move to its lane, where they are claimed.
    /// `true`: the item has changed.
    fn moves_to_its_lanes(&mut self, old: &Item, work: &mut Work<'_>) -> Result<bool, SpoolError> {
        let Queue::New(_) = old.queue else { return Ok(false) };
        let lane = |recipient: &Recipient| work.gate.lane_of(recipient).unwrap_or(old.lane);
        if old.envelope.recipients.iter().all(|recipient| lane(recipient) == old.lane) {
            return Ok(false);
        }
        let mut by_lane: Vec<(LaneId, Vec<Recipient>)> = Vec::new();
        for recipient in &old.envelope.recipients {
            let lane = lane(recipient);
            match by_lane.iter_mut().find(|(known, _)| *known == lane) {
                Some((_, recipients)) => recipients.push(recipient.clone()),
                None => by_lane.push((lane, vec![recipient.clone()])),
            }
        }
        for (index, (lane, recipients)) in by_lane.into_iter().enumerate() {
            let mut item = old.clone();
            (item.lane, item.queue) = (lane, Queue::New(lane));
            item.envelope.recipients = recipients;
            if matches!(item.state, State::Held | State::Ready) {
                item.state = self.waiting_state(item.queue);
            }
            if index == 0 {
                self.replace(old, &item)?;
            } else {
                item.id = self.next_item();
                self.store.reference_body(item.body, 1)?;
                self.store.insert(&item)?;
                self.ledger.enter(&item);
            }
            work.touch(&item);
        }
        Ok(true)
    }

    /// Tokens for a fresh message: how many recipients, and the reservation when the lane is metered.
    fn grant(&mut self, ask: Ask, work: &Work<'_>) -> (usize, Option<super::Reservation>) {
        match work.gate.grant(&self.ledger, ask, work.now) {
            Grant::None { .. } => (0, None),
            Grant::Unmetered => (ask.recipients as usize, None),
            Grant::Some { recipients, arrivals } => {
                let granted = recipients.min(ask.recipients);
                let reservation = self.ledger.reserve(ask.lane, ask.stream, granted, &arrivals, work.now);
                (granted as usize, reservation)
            }
        }
    }

    fn hand_over(&mut self, item: Item, work: &mut Work<'_>) -> Result<Claiming, SpoolError> {
        let Some(claimed) = self.with_body(item, work)? else { return Ok(Claiming::Damaged) };
        work.done.handed.push(claimed);
        Ok(Claiming::Claimed)
    }

    /// Joins an item with its octets. An item whose body is gone is damaged: it is put aside, not sent.
    fn with_body(&mut self, item: Item, work: &mut Work<'_>) -> Result<Option<Claimed>, SpoolError> {
        match self.store.body(item.body)? {
            Some((body, crc)) => Ok(Some(Claimed { item, body, crc, at: work.now })),
            None => {
                let mut broken = item.clone();
                if let Some(reservation) = broken.reservation.take() {
                    self.ledger.release(item.lane, item.stream, reservation, reservation.recipients, work.now);
                }
                broken.state = State::Quarantined;
                self.replace(&item, &broken)?;
                work.done.quarantined.push(item.message);
                Ok(None)
            }
        }
    }

    // --- settle -------------------------------------------------------------------------------------------------

    fn settle(&mut self, settle: &Settle, work: &mut Work<'_>) -> Result<(), SpoolError> {
        // Told by a clock that has moved since. The fates may be, too: then they must not wait for it.
        let retold = self.moved.get(&settle.item.id).map(|shift| {
            let (item, soon) = (shift.of(settle.item.clone()), work.now.after(MAYBE_RETRY));
            let mut fates = settle.fates.clone();
            for fate in &mut fates {
                if let Fate::Deferred { due } | Fate::Kept { due } | Fate::Unknown { due } = fate {
                    *due = (*due).min(soon);
                }
            }
            Settle { item, fates, ..settle.clone() }
        });
        let settle = retold.as_ref().unwrap_or(settle);
        let old = &settle.item;
        debug_assert_eq!(settle.fates.len(), old.envelope.recipients.len());
        let count = |pick: fn(&Fate) -> bool| settle.fates.iter().filter(|f| pick(f)).count() as u64;
        let relayed = count(|f| matches!(f, Fate::Relayed));
        let used = relayed + count(|f| matches!(f, Fate::Unknown { .. }));
        match old.reservation {
            Some(reservation) => {
                let refund = reservation.recipients.saturating_sub(used);
                self.ledger.release(old.lane, old.stream, reservation, refund, work.now);
                if refund > 0 && !work.done.refunded.contains(&old.queue) {
                    work.done.refunded.push(old.queue);
                }
            }
            None if old.queue.route() == Route::New && used > 0 => {
                self.ledger.count_unmetered(old.lane, used, work.now);
            }
            None => {}
        }
        if relayed > 0 {
            self.ledger.count_relayed(old.lane, old.queue, relayed);
            let total = self.ledger.lane(LaneId::TOTAL).filter(|_| old.queue.route() == Route::New);
            let beyond = total.and_then(|t| Some(t.today.sent.saturating_sub(t.record.limit?))).unwrap_or(0);
            work.done.overrun_recipients += beyond.min(relayed);
        }
        let mut rest = self.remainders(settle, work.now);
        rest.iter_mut().for_each(|item| begin_life(item, work));
        let mut rest = rest.into_iter();
        match rest.next() {
            None => {
                self.store.remove(old.id)?;
                self.ledger.leave(old);
                self.store.reference_body(old.body, -1)?;
            }
            Some(first) => {
                self.replace(old, &first)?;
                work.touch(&first);
                for mut more in rest {
                    more.id = self.next_item();
                    self.store.reference_body(more.body, 1)?;
                    self.store.insert(&more)?;
                    self.ledger.enter(&more);
                    work.touch(&more);
                }
            }
        }
        if let Some(report) = &settle.report {
            // The failed message goes with this transaction: all that is left of it is the report.
            self.store.bodies_first();
            self.accept(report, work)?;
        }
        Ok(())
    }

    /// The items that remain of a settled one: recipients with the same fate stay together.
    fn remainders(&self, settle: &Settle, now: Timestamp) -> Vec<Item> {
        let mut groups: Vec<(Fate, Item)> = Vec::new();
        for (fate, recipient) in settle.fates.iter().zip(&settle.item.envelope.recipients) {
            if matches!(fate, Fate::Relayed | Fate::Failed) {
                continue;
            }
            match groups.iter_mut().find(|(f, _)| f == fate) {
                Some((_, item)) => item.envelope.recipients.push(recipient.clone()),
                None => groups.push((*fate, self.remainder(settle, *fate, recipient, now))),
            }
        }
        groups.into_iter().map(|(_, item)| item).collect()
    }

    fn remainder(&self, settle: &Settle, fate: Fate, recipient: &Recipient, now: Timestamp) -> Item {
        let mut item = settle.item.clone();
        item.reservation = None;
        item.envelope.recipients = vec![recipient.clone()];
        if fate != Fate::Untouched {
            item.attempts += 1;
            item.last_reply.clone_from(&settle.reply);
            item.expires = item.expires.or(Some(settle.expires));
        }
        match fate {
            Fate::Deferred { due } => (item.state, item.due) = (State::Deferred, due),
            Fate::Kept { due } => {
                (item.state, item.due) = (State::Deferred, due);
                // An operator's word stands.
                let reason = if item.reason == Reason::Manual { Reason::Manual } else { Reason::Pinned };
                (item.deadline, item.reason) = (None, reason);
            }
            Fate::Unknown { due } => {
                (item.state, item.due) = (State::Deferred, due);
                // Only the route that may have it may try again.
                (item.maybe, item.deadline, item.reason) = (true, None, Reason::Pinned);
            }
            Fate::Untouched => item.state = self.waiting_state(item.queue),
            // The refusal is this attempt's; an earlier one may have been taken. Never by both routes.
            Fate::Rerouted { .. } if item.maybe => {
                (item.state, item.due) = (State::Deferred, now.after(MAYBE_RETRY));
            }
            Fate::Rerouted { reason } => {
                (item.state, item.queue, item.reason) = (State::Ready, Queue::Legacy, reason);
                (item.due, item.deadline) = (now, None);
            }
            Fate::Dead { until } => (item.state, item.expires) = (State::Dead, Some(until)),
            Fate::Damaged => item.state = State::Quarantined,
            Fate::Relayed | Fate::Failed => unreachable!("has no remainder"),
        }
        item
    }

    // --- chores -------------------------------------------------------------------------------------------------

    fn chore(&mut self, chore: &Chore, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        match chore {
            Chore::MoveOverdue { most_items } => self.move_overdue(*most_items, work),
            Chore::FallBack { queue, streams, undated, most_items } => {
                self.fall_back(*queue, streams, *undated, *most_items, work)
            }
            Chore::TakeExpired { most_items } => self.take_expired(*most_items, work),
            Chore::Flush { message, most_items } => self.flush(*message, *most_items, work),
            Chore::ByHand(order) => self.by_hand(order, work),
            Chore::DropDead { most_items } => self.drop_dead(*most_items, work),
            Chore::Tell(telling) => self.tell(telling, work),
            Chore::GiveBack { most_items } => self.give_back(*most_items, work),
        }
    }

    fn move_overdue(&mut self, most: usize, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer::default();
        for old in self.store.overdue(work.now, most)? {
            self.give_to_legacy(&old, Reason::MaxWait, &mut answer, work)?;
        }
        answer.next = self.store.overdue(Timestamp::NEVER, 1)?.first().and_then(|i| i.deadline);
        Ok(answer)
    }

    fn fall_back(
        &mut self,
        queue: Queue,
        streams: &[StreamId],
        undated: bool,
        most: usize,
        work: &mut Work<'_>,
    ) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer::default();
        let may = |i: &Item| !i.maybe && i.reason != Reason::Manual && (undated || i.deadline.is_some());
        for &stream in streams {
            let room = most - answer.items;
            if room == 0 {
                break;
            }
            let mut found = self.store.due(queue, stream, work.now, room)?;
            if found.len() == room && !found.iter().any(may) {
                // Those that have to stay may stand in front of those that may go.
                found = self.store.due(queue, stream, work.now, room * FALL_BACK_DEPTH)?;
            }
            for old in found.into_iter().filter(may).take(room) {
                self.give_to_legacy(&old, Reason::Fallback, &mut answer, work)?;
            }
        }
        Ok(answer)
    }

    /// The legacy server takes what waited for the new one.
    pub(super) fn give_to_legacy(
        &mut self,
        old: &Item,
        reason: Reason,
        answer: &mut ChoreAnswer,
        work: &mut Work<'_>,
    ) -> Result<(), SpoolError> {
        let mut item = old.clone();
        (item.queue, item.state, item.reason) = (Queue::Legacy, State::Ready, reason);
        (item.due, item.deadline) = (work.now, None);
        begin_life(&mut item, work);
        self.replace(old, &item)?;
        work.touch(&item);
        answer.items += 1;
        answer.recipients += item.recipients();
        Ok(())
    }

    fn take_expired(&mut self, most: usize, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer::default();
        for old in self.store.expired(false, work.now, most)? {
            if old.envelope.recipients.is_empty() {
                self.put_aside_unreadable(&old)?;
                work.done.quarantined.push(old.message);
                continue;
            }
            let mut item = old.clone();
            item.state = State::InFlight;
            self.replace(&old, &item)?;
            answer.items += 1;
            answer.recipients += item.recipients();
            if let Some(claimed) = self.with_body(item, work)? {
                work.done.expired.push(claimed);
            }
        }
        answer.next = self.store.expired(false, Timestamp::NEVER, 1)?.first().and_then(|i| i.expires);
        Ok(answer)
    }

    fn flush(&mut self, message: Option<QueueId>, most: usize, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let items = match message {
            Some(id) => self.store.of_message(id)?,
            None => self.store.in_state(State::Deferred, ItemId(0), most)?,
        };
        self.make_due(items, work)
    }

    fn make_due(&mut self, items: Vec<Item>, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer::default();
        for old in items.into_iter().filter(|i| i.state == State::Deferred) {
            let mut item = old.clone();
            (item.state, item.due) = (self.waiting_state(item.queue), work.now);
            self.replace(&old, &item)?;
            work.touch(&item);
            answer.items += 1;
            answer.recipients += item.recipients();
        }
        Ok(answer)
    }

    fn drop_dead(&mut self, most: usize, work: &Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer::default();
        for old in self.store.expired(true, work.now, most)? {
            self.store.remove(old.id)?;
            self.ledger.leave(&old);
            self.store.reference_body(old.body, -1)?;
            answer.items += 1;
            answer.recipients += old.recipients();
        }
        answer.next = self.store.expired(true, Timestamp::NEVER, 1)?.first().and_then(|i| i.expires);
        Ok(answer)
    }

    /// An item whose envelope could not be read has nobody to go to: put aside, and the rest goes on. Only its state is
    /// written: the octets that cannot be read stay as they are.
    fn put_aside_unreadable(&mut self, old: &Item) -> Result<(), SpoolError> {
        self.store.set_state(old.id, State::Quarantined)?;
        self.ledger.leave(old);
        self.ledger.enter(&Item { state: State::Quarantined, ..old.clone() });
        Ok(())
    }

    // --- helpers ------------------------------------------------------------------------------------------------

    pub(super) fn replace(&mut self, old: &Item, item: &Item) -> Result<(), SpoolError> {
        self.store.update(item)?;
        self.ledger.leave(old);
        self.ledger.enter(item);
        Ok(())
    }

    pub(super) fn next_item(&mut self) -> ItemId {
        self.last_item = ItemId(self.last_item.0 + 1);
        self.last_item
    }

    /// What waiting is called in this line: for a token, or only for a connection.
    pub(super) fn waiting_state(&self, queue: Queue) -> State {
        match queue {
            Queue::Legacy => State::Ready,
            Queue::New(lane) => {
                let metered = |id| self.ledger.lane(id).is_some_and(|l| l.record.limit.is_some());
                if metered(lane) || metered(LaneId::TOTAL) { State::Held } else { State::Ready }
            }
        }
    }

    /// Nothing in the route's lines is waiting for a token or a connection, so a fresh message overtakes nobody: the
    /// total's tokens are everybody's.
    fn nobody_waits(&self, queue: Queue) -> bool {
        self.ledger.totals().all(|(q, _, state, total)| {
            q.route() != queue.route() || total.items == 0 || !matches!(state, State::Ready | State::Held)
        })
    }
}

/// Mail that waits for no token waits for its server, so its life begins here: a server that never answers would otherwise
/// keep it for ever without an attempt. Elsewhere a life begins with the first attempt.
pub(super) fn begin_life(item: &mut Item, work: &Work<'_>) {
    if item.state == State::Ready && item.expires.is_none() {
        item.expires = work.gate.life().map(|life| work.now.after(life));
    }
}

enum Claiming {
    Claimed,
    /// Put aside, or moved to another line; the connection is for the next one.
    Damaged,
    StreamBlocked(Timestamp),
    Blocked(Timestamp),
}

pub(super) struct Work<'a> {
    done: Done,
    gate: &'a dyn Gate,
    slots: &'a dyn Slots,
    pub(super) now: Timestamp,
    taken: [usize; 2],
}

impl Work<'_> {
    fn take(&mut self, route: Route) -> bool {
        let took = self.slots.take(route);
        self.taken[route as usize] += usize::from(took);
        took
    }

    fn untake(&mut self, route: Route) {
        self.taken[route as usize] -= 1;
        self.slots.give_back(route, 1);
    }

    /// Notes that an item waits, so that whoever serves its line hears of it.
    pub(super) fn touch(&mut self, item: &Item) {
        if item.state.is_waiting() {
            self.done.touched.push(Touched { queue: item.queue, stream: item.stream, due: item.due });
        }
        self.wake_at(item.deadline);
        self.wake_at(item.expires);
    }

    pub(super) fn gate(&self) -> &dyn Gate {
        self.gate
    }

    /// These lines are worth another look.
    pub(super) fn open_all_lanes(&mut self, queues: impl Iterator<Item = Queue>) {
        for queue in queues {
            if !self.done.refunded.contains(&queue) {
                self.done.refunded.push(queue);
            }
        }
    }

    pub(super) fn wake_at(&mut self, time: Option<Timestamp>) {
        self.done.wake = [self.done.wake, time].into_iter().flatten().min();
    }
}

/// Rows of a ledger that a store keeps by key; equal keys replace each other.
pub(super) fn row_key(row: &Row) -> (u8, i64, i64, i64) {
    match row {
        Row::Span(_) => (0, 0, 0, 0),
        Row::Lane { record, .. } => (1, record.lane.0.into(), 0, 0),
        Row::Day { lane, record } => (2, lane.0.into(), record.day.0.into(), 0),
        Row::Slot { lane, slot, .. } => (3, lane.0.into(), slot.0, 0),
        Row::Stream { lane, stream, day, .. } => (4, lane.0.into(), stream.0.into(), day.0.into()),
        Row::Total { queue, stream, state, .. } => (5, queue.code(), stream.0.into(), state.code()),
        Row::Outstanding { .. } => (6, 0, 0, 0),
        Row::Clock { .. } => (7, 0, 0, 0),
        Row::Brake { lane, .. } => (8, lane.0.into(), 0, 0),
        Row::Memory { lane, .. } => (9, lane.0.into(), 0, 0),
        Row::Pause(_) => (10, 0, 0, 0),
        Row::StreamName { stream, .. } => (11, stream.0.into(), 0, 0),
        Row::Moves { stream, .. } => (12, stream.0.into(), 0, 0),
        Row::Offered { stream, slot, .. } => (13, stream.0.into(), slot.0, 0),
    }
}
