//! A spool in memory: for simulations and for the conformance suite. Loses everything with the process, by design.
//!
//! It can be told to fail, or to crash: [`MemoryStore::crash`] gives what a disk would hold.

use std::collections::{BTreeMap, BTreeSet};

use super::body::NewBody;
use super::engine::row_key;
use super::item::{BodyId, Item, ItemId, Shift, State};
use super::{BodySource, Row, SpoolError, Store};
use crate::message::{Queue, QueueId, StreamId, Timestamp};

#[derive(Clone, Debug, Default)]
struct Body {
    source: Option<(BodySource, u32)>,
    references: i64,
}

#[derive(Debug)]
enum Undo {
    Item(ItemId, Option<Box<Item>>),
    Body(BodyId, Option<Body>),
    Row((u8, i64, i64, i64), Option<Row>),
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct MemoryStore {
    items: BTreeMap<ItemId, Item>,
    lines: BTreeSet<(i64, StreamId, Timestamp, ItemId)>,
    deadlines: BTreeSet<(Timestamp, ItemId)>,
    ends: BTreeSet<(bool, Timestamp, ItemId)>,
    states: BTreeSet<(State, ItemId)>,
    bodies: BTreeMap<BodyId, Body>,
    rows: BTreeMap<(u8, i64, i64, i64), Row>,
    last_item: i64,
    last_body: i64,
    last_message: u64,
    undo: Option<Vec<Undo>>,
    fail_commits: u32,
    full: bool,
}

impl MemoryStore {
    /// An empty spool.
    pub fn new() -> Self {
        MemoryStore::default()
    }

    /// The process dies: what was not committed is gone, the rest is what the next one opens.
    pub fn crash(mut self) -> Self {
        self.roll_back();
        self
    }

    /// The next `count` commits fail as a full disk does.
    pub fn fail_commits(&mut self, count: u32) {
        self.fail_commits = count;
    }

    /// Refuse new mail as a full disk does, or stop refusing.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// All items, in the order of their ids.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// Bodies that are still kept.
    pub fn bodies(&self) -> usize {
        self.bodies.len()
    }

    fn put(&mut self, id: ItemId, item: Option<Item>) {
        let old = self.items.remove(&id);
        if let Some(old) = &old {
            self.index(old, false);
        }
        if let Some(item) = item {
            self.index(&item, true);
            self.items.insert(id, item);
        }
        if let Some(undo) = &mut self.undo {
            undo.push(Undo::Item(id, old.map(Box::new)));
        }
    }

    fn index(&mut self, item: &Item, add: bool) {
        let waits = item.state.is_waiting();
        let line = (item.queue.code(), item.stream, item.due, item.id);
        set(&mut self.lines, line, add && waits);
        if let Some(deadline) = item.deadline {
            set(&mut self.deadlines, (deadline, item.id), add && waits);
        }
        if let Some(end) = item.expires {
            let dead = item.state == State::Dead;
            set(&mut self.ends, (dead, end, item.id), add && (waits || dead));
        }
        set(&mut self.states, (item.state, item.id), add);
    }

    fn put_body(&mut self, id: BodyId, body: Option<Body>) {
        let old = match body {
            Some(body) => self.bodies.insert(id, body),
            None => self.bodies.remove(&id),
        };
        if let Some(undo) = &mut self.undo {
            undo.push(Undo::Body(id, old));
        }
    }

    fn roll_back(&mut self) {
        for step in self.undo.take().unwrap_or_default().into_iter().rev() {
            match step {
                Undo::Item(id, old) => self.put(id, old.map(|item| *item)),
                Undo::Body(id, old) => self.put_body(id, old),
                Undo::Row(key, Some(row)) => drop(self.rows.insert(key, row)),
                Undo::Row(key, None) => drop(self.rows.remove(&key)),
            }
        }
    }

    fn pick(&self, ids: impl Iterator<Item = ItemId>) -> Vec<Item> {
        ids.filter_map(|id| self.items.get(&id).cloned()).collect()
    }
}

fn set<T: Ord>(index: &mut BTreeSet<T>, key: T, present: bool) {
    if present {
        index.insert(key);
    } else {
        index.remove(&key);
    }
}

const LOWEST: ItemId = ItemId(i64::MIN);
const HIGHEST: ItemId = ItemId(i64::MAX);

impl Store for MemoryStore {
    fn ledger_rows(&mut self) -> Result<Vec<Row>, SpoolError> {
        let mut rows: Vec<Row> = self.rows.values().cloned().collect();
        for item in self.items.values().filter(|i| i.state == State::InFlight) {
            rows.extend(item.reservation.map(|reservation| Row::Outstanding { lane: item.lane, reservation }));
        }
        Ok(rows)
    }

    fn last_ids(&mut self) -> Result<(ItemId, QueueId), SpoolError> {
        Ok((ItemId(self.last_item), QueueId(self.last_message)))
    }

    fn begin(&mut self) -> Result<(), SpoolError> {
        self.undo = Some(Vec::new());
        Ok(())
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        if self.fail_commits > 0 {
            self.fail_commits -= 1;
            return Err(SpoolError::Full { free_bytes: 0, required_bytes: 1, used_bytes: 0 });
        }
        self.undo = None;
        Ok(())
    }

    fn rollback(&mut self) -> Result<(), SpoolError> {
        self.roll_back();
        Ok(())
    }

    fn save(&mut self, row: &Row) -> Result<(), SpoolError> {
        let key = row_key(row);
        let old = match row {
            Row::Slot { reserved: 0, .. } | Row::Offered { recipients: 0, .. } => self.rows.remove(&key),
            _ => self.rows.insert(key, row.clone()),
        };
        if let Some(undo) = &mut self.undo {
            undo.push(Undo::Row(key, old));
        }
        Ok(())
    }

    fn insert_body(&mut self, body: &NewBody, message: QueueId, references: u64) -> Result<BodyId, SpoolError> {
        let NewBody::Memory { bytes, crc, .. } = body else {
            return Err(SpoolError::Directory("a spool in memory takes no files".into()));
        };
        self.last_body += 1;
        self.last_message = self.last_message.max(message.0);
        let id = BodyId(self.last_body);
        let source = Some((BodySource::Memory(bytes.clone()), *crc));
        self.put_body(id, Some(Body { source, references: references as i64 }));
        Ok(id)
    }

    fn reference_body(&mut self, id: BodyId, change: i64) -> Result<(), SpoolError> {
        if let Some(mut body) = self.bodies.get(&id).cloned() {
            body.references += change;
            self.put_body(id, (body.references > 0).then_some(body));
        }
        Ok(())
    }

    fn body(&mut self, id: BodyId) -> Result<Option<(BodySource, u32)>, SpoolError> {
        Ok(self.bodies.get(&id).and_then(|b| b.source.clone()))
    }

    fn insert(&mut self, item: &Item) -> Result<(), SpoolError> {
        self.last_item = self.last_item.max(item.id.0);
        self.put(item.id, Some(item.clone()));
        Ok(())
    }

    fn update(&mut self, item: &Item) -> Result<(), SpoolError> {
        self.put(item.id, Some(item.clone()));
        Ok(())
    }

    fn set_state(&mut self, id: ItemId, state: State) -> Result<(), SpoolError> {
        if let Some(item) = self.items.get(&id).cloned() {
            self.put(id, Some(Item { state, ..item }));
        }
        Ok(())
    }

    fn get(&mut self, id: ItemId) -> Result<Option<Item>, SpoolError> {
        Ok(self.items.get(&id).cloned())
    }

    fn remove(&mut self, id: ItemId) -> Result<(), SpoolError> {
        self.put(id, None);
        Ok(())
    }

    fn due(&mut self, queue: Queue, stream: StreamId, now: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        let (from, to) = ((queue.code(), stream, Timestamp(i64::MIN), LOWEST), (queue.code(), stream, now, HIGHEST));
        Ok(self.pick(self.lines.range(from..=to).take(most).map(|(.., id)| *id)))
    }

    fn next_due(&mut self, queue: Queue, stream: StreamId) -> Result<Option<Timestamp>, SpoolError> {
        let from = (queue.code(), stream, Timestamp(i64::MIN), LOWEST);
        let first = self.lines.range(from..).next();
        Ok(first.filter(|(q, s, ..)| (*q, *s) == (queue.code(), stream)).map(|(_, _, due, _)| *due))
    }

    fn overdue(&mut self, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        Ok(self.pick(self.deadlines.range(..=(until, HIGHEST)).take(most).map(|(_, id)| *id)))
    }

    fn expired(&mut self, dead: bool, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        let range = (dead, Timestamp(i64::MIN), LOWEST)..=(dead, until, HIGHEST);
        Ok(self.pick(self.ends.range(range).take(most).map(|(.., id)| *id)))
    }

    fn in_state(&mut self, state: State, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError> {
        let range = (state, ItemId(above.0 + 1))..=(state, HIGHEST);
        Ok(self.pick(self.states.range(range).take(most).map(|(_, id)| *id)))
    }

    fn shift(&mut self, shift: &Shift) -> Result<(), SpoolError> {
        for item in self.items.values().cloned().collect::<Vec<_>>() {
            self.put(item.id, Some(shift.of(item)));
        }
        Ok(())
    }

    fn due_by(&mut self, latest: Timestamp) -> Result<usize, SpoolError> {
        let late: Vec<_> = self.items.values().filter(|i| i.state.is_waiting() && i.due > latest).cloned().collect();
        let count = late.len();
        for item in late {
            self.put(item.id, Some(Item { due: latest, ..item }));
        }
        Ok(count)
    }

    fn of_body(&mut self, body: BodyId) -> Result<Vec<Item>, SpoolError> {
        Ok(self.items.values().filter(|i| i.body == body).cloned().collect())
    }

    fn of_message(&mut self, message: QueueId) -> Result<Vec<Item>, SpoolError> {
        Ok(self.items.values().filter(|i| i.message == message).cloned().collect())
    }

    fn room(&mut self, queued: u64) -> Result<(), SpoolError> {
        match self.full {
            true => Err(SpoolError::Full { free_bytes: 0, required_bytes: 1, used_bytes: queued }),
            false => Ok(()),
        }
    }

    fn free_ballast(&mut self) -> bool {
        false
    }
}
