//! A bench with one spool on it, whatever its back end; a gate of fixed limits; and a store that fails when told to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mailramp::message::*;
use mailramp::spool::body::NewBody;
use mailramp::spool::disk::DataDirectory;
use mailramp::spool::ledger::Total;
use mailramp::spool::memory::MemoryStore;
use mailramp::spool::sqlite::{DiskLimits, SqliteStore};
use mailramp::spool::*;
use rusqlite::Connection;

pub const LANE: LaneId = LaneId(1);
pub const OTHER_LANE: LaneId = LaneId(2);
pub const STREAM: StreamId = StreamId(0);
pub const OTHER_STREAM: StreamId = StreamId(1);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3600);
pub const DAY: Duration = Duration::from_secs(86_400);

/// A midnight of UTC.
pub const MIDNIGHT: Timestamp = Timestamp::from_seconds(20_000 * 86_400);

// --- back ends --------------------------------------------------------------------------------------------------

/// A place where a spool can be kept.
pub trait Backend {
    type Store: Store + 'static;
    /// An empty place and its first process.
    fn fresh() -> (Self, Self::Store)
    where
        Self: Sized;
    /// The process dies; what the next one opens.
    fn crash(&mut self, store: Self::Store) -> Self::Store;
    /// Bodies that are kept.
    fn bodies(&self, store: &Self::Store) -> usize;
    /// Octets for message `id`: `large` ones in a file where the back end has files.
    fn body(&self, octets: Bytes, id: QueueId, large: bool) -> NewBody;
    /// Checks what only this back end has: reference counts, segments, files.
    fn check(&self, _items: &[Item]) {}
}

pub struct Memory;

impl Backend for Memory {
    type Store = MemoryStore;
    fn fresh() -> (Self, MemoryStore) {
        (Memory, MemoryStore::new())
    }
    fn crash(&mut self, store: MemoryStore) -> MemoryStore {
        store.crash()
    }
    fn bodies(&self, store: &MemoryStore) -> usize {
        store.bodies()
    }
    fn body(&self, octets: Bytes, _: QueueId, _: bool) -> NewBody {
        NewBody::small(octets)
    }
}

pub struct Sqlite {
    pub directory: tempfile::TempDir,
}

/// No ballast is laid for a test: more must stay free than any disk has. [`Faulty`] answers for the room.
const LIMITS: DiskLimits = DiskLimits { min_free: u64::MAX / 2, max_used: u64::MAX };

pub fn open_sqlite(directory: &Path) -> Result<SqliteStore, SpoolError> {
    let mut store = SqliteStore::open(DataDirectory::open(directory)?, LIMITS)?;
    store.set_segment_bytes(64 << 10);
    Ok(store)
}

/// What kill -9 leaves of a data directory, and the lock gone with the process.
pub fn copy_directory(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for sub in ["", "segments", "large"] {
        fs::create_dir_all(to.path().join(sub)).unwrap();
        for entry in fs::read_dir(from.join(sub)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            // The index of the log is shared memory of processes that are gone.
            if entry.file_type().unwrap().is_file() && name != "lock" && name != "spool.db-shm" {
                fs::copy(entry.path(), to.path().join(sub).join(name)).unwrap();
            }
        }
    }
    to
}

impl Sqlite {
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn rows(&self) -> Connection {
        Connection::open(self.path().join("spool.db")).unwrap()
    }

    pub fn number(&self, sql: &str) -> i64 {
        self.rows().query_row(sql, [], |r| r.get(0)).unwrap()
    }

    pub fn files(&self, sub: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path().join(sub)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Backend for Sqlite {
    type Store = SqliteStore;
    fn fresh() -> (Self, SqliteStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = open_sqlite(directory.path()).unwrap();
        (Sqlite { directory }, store)
    }
    fn crash(&mut self, store: SqliteStore) -> SqliteStore {
        let left = copy_directory(self.path());
        drop(store);
        self.directory = left;
        open_sqlite(self.path()).unwrap()
    }
    fn bodies(&self, _: &SqliteStore) -> usize {
        self.number("SELECT count(*) FROM body") as usize
    }
    fn body(&self, octets: Bytes, id: QueueId, large: bool) -> NewBody {
        if !large {
            return NewBody::small(octets);
        }
        let path = self.path().join("large").join(id.to_string());
        fs::write(&path, &octets).unwrap();
        NewBody::File { path, size: octets.len() as u64, crc: crc32fast::hash(&octets) }
    }
    fn check(&self, items: &[Item]) {
        let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
        for item in items {
            *counts.entry(item.body.0).or_default() += 1;
        }
        let pairs = |sql: &str| -> Vec<(i64, i64)> {
            let rows = self.rows();
            let mut statement = rows.prepare(sql).unwrap();
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect()
        };
        let stored = pairs("SELECT id, refs FROM body ORDER BY id");
        assert_eq!(stored, counts.into_iter().collect::<Vec<_>>(), "reference counts");
        let live = pairs("SELECT id, live FROM seg WHERE live <> 0 ORDER BY id");
        let named = pairs("SELECT seg, count(*) FROM body WHERE seg IS NOT NULL GROUP BY seg ORDER BY seg");
        assert_eq!(live, named, "bodies in segments");
        let large = self.number("SELECT count(*) FROM body WHERE seg IS NULL AND data IS NULL");
        assert_eq!(self.files("large").len() as i64, large, "files of their own");
        for (segment, _) in named {
            assert!(self.path().join(format!("segments/{segment:08}.seg")).exists(), "segment {segment}");
        }
    }
}

// --- faults -----------------------------------------------------------------------------------------------------

/// A store that can be told to be full: for new mail, or at any step of a transaction.
pub struct Faulty<S> {
    pub inner: S,
    /// New mail finds no room.
    pub full: bool,
    /// Steps that still work before one finds the disk full; `None`: all.
    pub fail_after: Option<u32>,
    /// The next commits of something find the disk full, so many of them.
    pub fail_commits: u32,
    /// Something was written since the transaction began.
    wrote: bool,
}

pub fn disk_full() -> SpoolError {
    SpoolError::Full { free_bytes: 0, required_bytes: 1, used_bytes: 0 }
}

impl<S> Faulty<S> {
    pub fn new(inner: S) -> Self {
        Faulty { inner, full: false, fail_after: None, fail_commits: 0, wrote: false }
    }

    fn step(&mut self) -> Result<(), SpoolError> {
        self.wrote = true;
        match &mut self.fail_after {
            Some(0) => {
                self.fail_after = None;
                Err(disk_full())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl<S: Store> Store for Faulty<S> {
    fn ledger_rows(&mut self) -> Result<Vec<Row>, SpoolError> {
        self.inner.ledger_rows()
    }
    fn last_ids(&mut self) -> Result<(ItemId, QueueId), SpoolError> {
        self.inner.last_ids()
    }
    fn begin(&mut self) -> Result<(), SpoolError> {
        self.wrote = false;
        self.inner.begin()
    }
    fn commit(&mut self) -> Result<(), SpoolError> {
        if self.fail_commits > 0 && self.wrote {
            self.fail_commits -= 1;
            return Err(disk_full());
        }
        self.step()?;
        self.inner.commit()
    }
    fn rollback(&mut self) -> Result<(), SpoolError> {
        self.inner.rollback()
    }
    fn save(&mut self, row: &Row) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.save(row)
    }
    fn insert_body(&mut self, body: &NewBody, message: QueueId, references: u64) -> Result<BodyId, SpoolError> {
        self.step()?;
        self.inner.insert_body(body, message, references)
    }
    fn bodies_first(&mut self) {
        self.inner.bodies_first();
    }
    fn reference_body(&mut self, body: BodyId, change: i64) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.reference_body(body, change)
    }
    fn body(&mut self, body: BodyId) -> Result<Option<(BodySource, u32)>, SpoolError> {
        self.inner.body(body)
    }
    fn insert(&mut self, item: &Item) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.insert(item)
    }
    fn update(&mut self, item: &Item) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.update(item)
    }
    fn set_state(&mut self, id: ItemId, state: State) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.set_state(id, state)
    }
    fn get(&mut self, id: ItemId) -> Result<Option<Item>, SpoolError> {
        self.step()?;
        self.inner.get(id)
    }
    fn remove(&mut self, id: ItemId) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.remove(id)
    }
    fn due(&mut self, queue: Queue, stream: StreamId, now: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.inner.due(queue, stream, now, most)
    }
    fn next_due(&mut self, queue: Queue, stream: StreamId) -> Result<Option<Timestamp>, SpoolError> {
        self.inner.next_due(queue, stream)
    }
    fn overdue(&mut self, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.inner.overdue(until, most)
    }
    fn expired(&mut self, dead: bool, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.inner.expired(dead, until, most)
    }
    fn in_state(&mut self, state: State, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.inner.in_state(state, above, most)
    }
    fn damaged(&mut self) -> Vec<BodyId> {
        self.inner.damaged()
    }
    fn shift(&mut self, shift: &Shift) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.shift(shift)
    }
    fn due_by(&mut self, latest: Timestamp) -> Result<usize, SpoolError> {
        self.step()?;
        self.inner.due_by(latest)
    }
    fn of_body(&mut self, body: BodyId) -> Result<Vec<Item>, SpoolError> {
        self.inner.of_body(body)
    }
    fn of_message(&mut self, message: QueueId) -> Result<Vec<Item>, SpoolError> {
        self.inner.of_message(message)
    }
    fn audit(
        &mut self,
        action: &str,
        audit: &by_hand::Audit,
        now: Timestamp,
        did: &ChoreAnswer,
        bytes: u64,
    ) -> Result<bool, SpoolError> {
        self.step()?;
        self.inner.audit(action, audit, now, did, bytes)
    }
    fn disown(&mut self) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.disown()
    }
    fn adopt(&mut self) -> Result<(), SpoolError> {
        self.step()?;
        self.inner.adopt()
    }
    fn room(&mut self, queued: u64) -> Result<(), SpoolError> {
        if self.full { Err(SpoolError::Full { free_bytes: 0, required_bytes: 1, used_bytes: queued }) } else { Ok(()) }
    }
    fn free_ballast(&mut self) -> bool {
        false
    }
}

// --- gate and slots ---------------------------------------------------------------------------------------------

/// Fixed limits a day, days of UTC, and if asked for a pace, a limit for a stream and a deadline.
#[derive(Clone, Debug)]
pub struct FixedGate {
    /// By lane; `None`: no limit. Lanes that are not named do not exist.
    pub limits: BTreeMap<LaneId, Option<u64>>,
    /// Most recipients of a stream on a lane in a day.
    pub stream_limits: BTreeMap<StreamId, u64>,
    /// Time between two recipients of a lane.
    pub spacing: Option<Duration>,
    /// What waits goes to the legacy server after this.
    pub wait: Option<Duration>,
    /// Recipients of a part that are admitted to `new`.
    pub admitted: u64,
    /// How long what needs no token may wait.
    pub life: Option<Duration>,
    /// Streams whose mail must not wait for the lane any more.
    pub gives_back: BTreeMap<(LaneId, StreamId), Reason>,
    /// Recipients, by their first letter, whose lane is known.
    pub known: BTreeMap<u8, LaneId>,
}

impl FixedGate {
    pub fn of(limit: u64) -> Self {
        let limits = [LaneId::TOTAL, LANE, OTHER_LANE].map(|lane| (lane, Some(limit)));
        FixedGate {
            limits: limits.into(),
            stream_limits: BTreeMap::new(),
            spacing: None,
            wait: None,
            admitted: u64::MAX,
            life: None,
            gives_back: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    pub fn unmetered() -> Self {
        let mut gate = FixedGate::of(0);
        gate.limits.values_mut().for_each(|limit| *limit = None);
        gate
    }

    fn record(lane: LaneId, limit: Option<u64>) -> LaneRecord {
        LaneRecord {
            lane,
            stage: 3,
            limit,
            share: 0.5,
            braked_run: 1,
            last_braked: Some(Day(7)),
            complete_run: 2,
            complete: false,
            stalled_run: 4,
        }
    }
}

impl Gate for FixedGate {
    fn life(&self) -> Option<Duration> {
        self.life
    }

    fn gives_back(&self, _: &Ledger, lane: LaneId, stream: StreamId, _: Timestamp) -> Option<Reason> {
        self.gives_back.get(&(lane, stream)).copied()
    }

    fn lane_of(&self, recipient: &Recipient) -> Option<LaneId> {
        self.known.get(&recipient.path[0]).copied()
    }

    fn order(&self, _: &Ledger, _: Timestamp) -> Option<Vec<StreamId>> {
        Some(vec![OTHER_STREAM, STREAM])
    }

    fn set_day(&self, ledger: &Ledger, stage: u32, _: Timestamp) -> Vec<SetLane> {
        let lane = ledger.lane(LANE).expect("a lane of the gate").record;
        vec![SetLane { record: LaneRecord { stage, limit: Some(1), ..lane }, memory: (Day(9), 77) }]
    }

    fn span_at(&self, now: Timestamp) -> Option<DaySpan> {
        let day = Day(now.seconds().div_euclid(86_400) as i32);
        let starts = Timestamp::from_seconds(i64::from(day.0) * 86_400);
        Some(DaySpan { day, starts, ends: starts.after(DAY) })
    }

    fn turn(&self, ledger: &Ledger, now: Timestamp) -> Option<Turn> {
        let day = match ledger.span() {
            None => Day((now.seconds() / 86_400) as i32),
            Some(span) if now >= span.ends => span.day.next(),
            Some(_) => return None,
        };
        let starts = Timestamp::from_seconds(i64::from(day.0) * 86_400);
        let span = DaySpan { day, starts, ends: starts.after(DAY) };
        Some(Turn {
            span,
            lanes: self.limits.iter().map(|(lane, limit)| Self::record(*lane, *limit)).collect(),
            braked: vec![],
            memories: vec![],
        })
    }

    fn admit(&self, _: &Ledger, ask: Ask, now: Timestamp) -> Admission {
        Admission {
            new: ask.recipients.min(self.admitted),
            deadline: self.wait.map(|wait| now.after(wait)),
            new_reason: Reason::InQuota,
            rest_reason: Reason::OverQuota,
            offered: true,
        }
    }

    fn grant(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Grant {
        let mut granted = ask.recipients;
        let mut arrivals = Vec::new();
        let mut metered = false;
        let own = (ask.lane != LaneId::TOTAL).then_some(ask.lane);
        for id in own.into_iter().chain([LaneId::TOTAL]) {
            let lane = ledger.lane(id).expect("a lane of the gate");
            let Some(limit) = self.limits[&id] else { continue };
            metered = true;
            let room = limit.saturating_sub(lane.reserved_today()).min(limit.saturating_sub(lane.reserved_24h(now)));
            granted = granted.min(room);
            if room == 0 {
                let midnight = ledger.span().expect("a day").ends;
                let leaves = lane.oldest_slot(now).map(|s| Slot(s.0 + ledger::ROLLING_SLOTS + 1).start());
                return Grant::None { until: leaves.map_or(midnight, |l| l.min(midnight)), stream_only: false };
            }
        }
        if let Some(most) = self.stream_limits.get(&ask.stream) {
            let used = ledger.lane(ask.lane).expect("a lane").stream_today(ask.stream).reserved;
            granted = granted.min(most.saturating_sub(used));
            if granted == 0 {
                return Grant::None { until: ledger.span().expect("a day").ends, stream_only: true };
            }
        }
        if let Some(spacing) = self.spacing {
            let arrival = ledger.lane(ask.lane).expect("a lane").arrival;
            if arrival > now {
                return Grant::None { until: arrival, stream_only: false };
            }
            granted = granted.min(1);
            arrivals.push((ask.lane, now.after(spacing)));
        }
        if metered { Grant::Some { recipients: granted, arrivals } } else { Grant::Unmetered }
    }
}

/// Connections that stand ready, and how many were ever lent.
#[derive(Debug, Default)]
pub struct Ready([AtomicUsize; 2]);

impl Ready {
    pub fn set(&self, route: Route, count: usize) {
        self.0[route as usize].store(count, Ordering::SeqCst);
    }

    pub fn left(&self, route: Route) -> usize {
        self.0[route as usize].load(Ordering::SeqCst)
    }
}

impl Slots for Ready {
    fn take(&self, route: Route) -> bool {
        self.0[route as usize].fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
    }
    fn give_back(&self, route: Route, count: usize) {
        self.0[route as usize].fetch_add(count, Ordering::SeqCst);
    }
}

// --- bench ------------------------------------------------------------------------------------------------------

/// One spool, its gate, its connections and its clock.
pub struct Bench<B: Backend> {
    pub backend: B,
    pub spool: Option<Spool<Faulty<B::Store>>>,
    pub gate: FixedGate,
    pub ready: Ready,
    pub now: Timestamp,
    pub recovered: Recovered,
    next: u64,
}

pub use mailramp::spool::engine::Recovered;

impl<B: Backend> Bench<B> {
    /// At a midnight, with a limit for each lane and the total.
    pub fn new(gate: FixedGate) -> Self {
        let (backend, store) = B::fresh();
        let (spool, recovered) = Spool::open(Faulty::new(store), MIDNIGHT).unwrap();
        Bench { backend, spool: Some(spool), gate, ready: Ready::default(), now: MIDNIGHT, recovered, next: 1 }
    }

    pub fn spool(&mut self) -> &mut Spool<Faulty<B::Store>> {
        self.spool.as_mut().expect("open")
    }

    pub fn faults(&mut self) -> &mut Faulty<B::Store> {
        self.spool().store()
    }

    pub fn ledger(&self) -> &Ledger {
        self.spool.as_ref().expect("open").ledger()
    }

    /// kill -9, and a new process.
    pub fn crash(&mut self) {
        let store = self.spool.take().expect("open").into_store();
        let left = self.backend.crash(store.inner);
        let (spool, recovered) = Spool::open(Faulty::new(left), self.now).unwrap();
        (self.spool, self.recovered) = (Some(spool), recovered);
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    pub fn apply(&mut self, batch: &Batch) -> Result<Done, SpoolError> {
        let spool = self.spool.as_mut().expect("open");
        spool.apply(batch, &self.gate, &self.ready, self.now)
    }

    // What to ask for.

    /// A message of `size` octets to so many recipients of one lane and stream; none is ever named twice.
    pub fn message(&mut self, lane: LaneId, stream: StreamId, recipients: usize, size: usize) -> Accept {
        let id = QueueId(self.next);
        let names = (0..recipients).map(|n| recipient(&format!("{n}.of-{}@example.net", self.next))).collect();
        self.next += 1;
        Accept {
            id,
            reverse_path: "sender@example.com".into(),
            parameters: "BODY=8BITMIME".into(),
            parts: vec![Part { lane, stream, recipients: names, only: None }],
            body: NewBody::small(octets(id, size)),
        }
    }

    pub fn accept(&mut self, accept: Accept) -> Result<Vec<Placed>, SpoolError> {
        let done = self.apply(&Batch { accepts: vec![accept], ..Batch::default() })?;
        Ok(done.accepts.into_iter().next().expect("one answer"))
    }

    /// Accepts a small message for [`LANE`] and [`STREAM`] that has to wait.
    pub fn put(&mut self, recipients: usize) -> QueueId {
        let message = self.message(LANE, STREAM, recipients, 100);
        let id = message.id;
        self.accept(message).unwrap();
        id
    }

    pub fn claim_from(&mut self, queue: Queue, streams: &[StreamId], most_items: usize) -> Done {
        let claims = vec![Claim { queue, streams: streams.to_vec(), most_items }];
        self.apply(&Batch { claims, ..Batch::default() }).unwrap()
    }

    /// Claims from [`LANE`] and [`STREAM`].
    pub fn claim(&mut self, most_items: usize) -> Vec<Claimed> {
        self.claim_from(Queue::New(LANE), &[STREAM], most_items).handed
    }

    pub fn settle(&mut self, claimed: &Claimed, fates: &[Fate]) {
        let settle = self.outcome(claimed, fates);
        self.apply(&Batch { settles: vec![settle], ..Batch::default() }).unwrap();
    }

    pub fn outcome(&self, claimed: &Claimed, fates: &[Fate]) -> Settle {
        let item = claimed.item.clone();
        Settle { item, reply: "the reply".into(), expires: self.now.after(5 * DAY), fates: fates.into(), report: None }
    }

    /// The same fate for every recipient.
    pub fn settle_all(&mut self, claimed: &Claimed, fate: Fate) {
        self.settle(claimed, &vec![fate; claimed.item.envelope.recipients.len()]);
    }

    pub fn chore(&mut self, chore: Chore) -> (ChoreAnswer, Done) {
        let done = self.apply(&Batch { chores: vec![chore], ..Batch::default() }).unwrap();
        (done.chores[0].clone(), done)
    }

    // What is there.

    pub fn items(&mut self) -> Vec<Item> {
        let store = self.faults();
        let mut items = Vec::new();
        for state in State::ALL {
            items.extend(store.in_state(state, ItemId(0), usize::MAX >> 1).unwrap());
        }
        items.sort_by_key(|item| item.id);
        items
    }

    pub fn bodies(&mut self) -> usize {
        self.backend.bodies(&self.spool.as_mut().expect("open").store().inner)
    }

    /// Reserved today and in 24 hours on [`LANE`].
    pub fn reserved(&self) -> (u64, u64) {
        let lane = self.ledger().lane(LANE).expect("after the first turn");
        (lane.reserved_today(), lane.reserved_24h(self.now))
    }

    /// Totals equal a recount, every item has its body and no body is left over.
    pub fn check(&mut self) {
        let items = self.items();
        let mut counted: BTreeMap<(Queue, StreamId, State), Total> = BTreeMap::new();
        let mut bodies = std::collections::BTreeSet::new();
        for item in &items {
            let total = counted.entry((item.queue, item.stream, item.state)).or_default();
            total.items += 1;
            total.recipients += item.recipients();
            total.bytes += item.size;
            bodies.insert(item.body);
            assert!(item.recipients() > 0, "an item for nobody: {item:?}");
            assert!(!item.maybe || item.deadline.is_none(), "a maybe item that may move: {item:?}");
            assert!(item.reservation.is_none() || item.state == State::InFlight, "{item:?}");
        }
        let kept =
            self.ledger().totals().filter(|t| t.3 != Total::default()).map(|(q, s, state, t)| ((q, s, state), t));
        assert_eq!(kept.collect::<BTreeMap<_, _>>(), counted, "totals and a recount");
        assert_eq!(self.bodies(), bodies.len(), "bodies kept and bodies named");
        for body in bodies {
            assert!(self.faults().body(body).unwrap().is_some(), "the octets of {body:?}");
        }
        self.backend.check(&items);
    }
}

pub fn recipient(path: &str) -> Recipient {
    Recipient { path: Bytes::copy_from_slice(path.as_bytes()), parameters: "NOTIFY=FAILURE".into() }
}

/// Octets that belong to message `id` and to no other.
pub fn octets(id: QueueId, size: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(id.0);
    let mut octets = vec![0; size];
    random.fill(&mut octets);
    octets.into()
}

/// Reads what was handed over and compares it with what was accepted.
pub fn assert_octets(claimed: &Claimed) {
    let size = claimed.body.size();
    assert_eq!(size, claimed.item.size);
    assert_eq!(claimed.body.crc().unwrap(), claimed.crc);
    let read = claimed.body.read_at(0, size as usize).unwrap();
    assert!(read == octets(claimed.item.message, size as usize), "other octets than were accepted");
}

pub fn names(item: &Item) -> Vec<String> {
    item.envelope.recipients.iter().map(|r| String::from_utf8_lossy(&r.path).into_owned()).collect()
}

pub fn deferred(due: Timestamp) -> Fate {
    Fate::Deferred { due }
}
