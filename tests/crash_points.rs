//! A short session, stopped at every point: what kill -9 and what a power cut leaves is started on, and everything that
//! was acknowledged must be there, octet by octet.
//!
//! The session accepts mail of all three sizes, claims, settles in every way, reports, changes segments, checkpoints,
//! removes by hand and starts again. Each operation is known by the files before it and after it, and by what the store
//! said in between ([`CommitStep`]: bodies written, log synced, bodies synced). From these come the states of the disk:
//!
//! * kill: what was handed to the system stays, in the order it was handed over: each file's change cut after every frame
//!   of the log, inside every frame, and at every few KiB of a body;
//! * power cut: of what is not synced any subset of 512-octet sectors stays, of each file on its own; names that were
//!   removed may be back.
//!
//! SQLite's part is taken from its protocol: the log is synced by each commit and its new header before the first frame,
//! the database by each checkpoint, and the index of the log is made anew by whoever opens it first. `MAILRAMP_CRASH_SEED` repeats the subsets.

#[allow(dead_code)] // the conformance suite uses the rest
#[path = "spool_conformance/harness.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use harness::*;
use mailramp::message::*;
use mailramp::spool::body::{BodyBuffer, BodyWriter, NewBody};
use mailramp::spool::by_hand::{Action, Audit, Order};
use mailramp::spool::sqlite::CommitStep;
use mailramp::spool::*;

const SECTOR: usize = 512;
/// A frame of the log: its header and a page.
const FRAME: usize = 24 + 4096;
const LOG_HEADER: usize = 32;
const LOG: &str = "spool.db-wal";
const DATABASE: &str = "spool.db";
/// Random subsets of sectors for each pair of files in doubt.
const SUBSETS: usize = 6;

// --- files ------------------------------------------------------------------------------------------------------

/// Names below the data directory, and what is in them.
type Files = BTreeMap<String, Vec<u8>>;

fn read_files(directory: &Path) -> Files {
    let mut files = Files::new();
    for sub in ["", "segments/", "large/"] {
        let Ok(entries) = fs::read_dir(directory.join(sub)) else { continue };
        for entry in entries.map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_file()) {
            let name = entry.file_name().into_string().unwrap();
            if name != "lock" && name != "spool.db-shm" {
                files.insert(format!("{sub}{name}"), fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

fn write_files(files: &Files) -> tempfile::TempDir {
    // Nothing here is about the disk below: memory is faster.
    let place = Path::new("/dev/shm");
    let made = if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() };
    let directory = made.unwrap();
    for sub in ["segments", "large"] {
        fs::create_dir(directory.path().join(sub)).unwrap();
    }
    for (name, octets) in files {
        fs::write(directory.path().join(name), octets).unwrap();
    }
    directory
}

/// How much of a file's change is on the disk.
#[derive(Clone, Debug)]
enum Part {
    Nothing,
    /// What lies before this octet of the file.
    UpTo(usize),
    Sectors(u64),
    Everything,
}

/// `before` with a part of what makes it `after`. `None`: the file is not there.
fn changed(before: Option<&Vec<u8>>, after: Option<&Vec<u8>>, part: &Part) -> Option<Vec<u8>> {
    let Some(after) = after else { return before.cloned() };
    let old = before.map_or(&[][..], |octets| octets);
    let take = |chosen: &mut dyn FnMut(usize) -> bool| {
        let mut octets = old.to_vec();
        for (number, sector) in after.chunks(SECTOR).enumerate() {
            let at = number * SECTOR;
            let same = old.get(at..at + sector.len()) == Some(sector);
            if !same && chosen(number) {
                octets.resize(octets.len().max(at + sector.len()), 0);
                octets[at..at + sector.len()].copy_from_slice(sector);
            }
        }
        octets
    };
    Some(match part {
        Part::Nothing => return before.cloned(),
        Part::Everything => after.clone(),
        Part::UpTo(end) => {
            let mut octets = old.to_vec();
            let end = (*end).min(after.len());
            octets.resize(octets.len().max(end), 0);
            octets[..end].copy_from_slice(&after[..end]);
            octets
        }
        Part::Sectors(seed) => {
            let mut random = fastrand::Rng::with_seed(*seed);
            let share = random.f64();
            take(&mut |_| random.f64() < share)
        }
    })
}

/// Where a change of this file can be cut: the ends and the insides of what is written at once.
fn cuts(name: &str, before: Option<&Vec<u8>>, after: &[u8]) -> Vec<Part> {
    let old = before.map_or(&[][..], |octets| octets);
    let first = old.iter().zip(after).take_while(|(a, b)| a == b).count();
    let mut ends = BTreeSet::new();
    if name == LOG {
        ends.extend([1, LOG_HEADER - 1, LOG_HEADER]);
        for frame in 0..after.len() / FRAME {
            let at = LOG_HEADER + frame * FRAME;
            ends.extend([at + 24 + frame * 97 % 4096, at + FRAME]);
        }
    } else if name == DATABASE {
        ends.extend((0..after.len()).step_by(4096).flat_map(|page| [page + 100, page + 4096]));
    } else {
        ends.extend((first..after.len()).step_by(4096));
    }
    ends.retain(|end| *end > first && *end < after.len());
    ends.into_iter().map(Part::UpTo).collect()
}

// --- what must be there -----------------------------------------------------------------------------------------

/// An item as the next start must find it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    message: QueueId,
    names: Vec<String>,
    queue: Queue,
    state: State,
    maybe: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Expectation {
    items: BTreeMap<ItemId, Expected>,
    /// Reserved today and in 24 hours.
    reserved: (u64, u64),
}

fn expected(item: &Item) -> Expected {
    let (state, maybe) = match (item.state, item.queue) {
        (State::InFlight, Queue::Legacy) => (State::Ready, true),
        (State::InFlight, Queue::New(_)) => (State::Held, true),
        (state, _) => (state, item.maybe),
    };
    Expected { message: item.message, names: names(item), queue: item.queue, state, maybe }
}

fn all_items(store: &mut impl Store) -> Vec<Item> {
    State::ALL.into_iter().flat_map(|state| store.in_state(state, ItemId(0), 10_000).unwrap()).collect()
}

fn reserved(ledger: &Ledger, now: Timestamp) -> (u64, u64) {
    ledger.lane(LANE).map_or((0, 0), |lane| (lane.reserved_today(), lane.reserved_24h(now)))
}

// --- the session ------------------------------------------------------------------------------------------------

struct Session {
    bench: Bench<Sqlite>,
    steps: Arc<Mutex<Vec<(CommitStep, Files)>>>,
    sizes: BTreeMap<QueueId, usize>,
    random: fastrand::Rng,
    points: BTreeMap<&'static str, usize>,
    torn: usize,
}

impl Session {
    fn begin(seed: u64) -> Session {
        let bench = Bench::<Sqlite>::new(FixedGate { wait: Some(DAY), ..FixedGate::of(1000) });
        let mut session = Session {
            bench,
            steps: Arc::default(),
            sizes: BTreeMap::new(),
            random: fastrand::Rng::with_seed(seed),
            points: BTreeMap::new(),
            torn: 0,
        };
        let nothing = Expectation::default();
        let made = session.files();
        // The making of the database itself: no mail yet, whatever is there must open.
        let mut states = vec![Files::new(), Files::from([(DATABASE.into(), Vec::new())])];
        for part in cuts(LOG, None, &made[LOG]).into_iter().chain(session.subsets()) {
            let log = changed(None, made.get(LOG), &part).unwrap_or_default();
            states.push(Files::from([(DATABASE.into(), made[DATABASE].clone()), (LOG.into(), log)]));
        }
        for state in states {
            session.start_on("make", &state, &[&nothing], &BTreeSet::new(), "the making of the database");
        }
        session.listen();
        session
    }

    fn listen(&mut self) {
        let (steps, directory) = (self.steps.clone(), self.directory());
        let hook = move |step| steps.lock().unwrap().push((step, read_files(&directory)));
        self.bench.faults().inner.set_sync_hook(Box::new(hook));
    }

    fn directory(&self) -> PathBuf {
        self.bench.backend.path().to_owned()
    }

    fn files(&self) -> Files {
        read_files(&self.directory())
    }

    fn expectation(&mut self) -> Expectation {
        let items = self.bench.items();
        let reserved = reserved(self.bench.ledger(), self.bench.now);
        Expectation { items: items.iter().map(|item| (item.id, expected(item))).collect(), reserved }
    }

    fn subsets(&mut self) -> Vec<Part> {
        (0..SUBSETS).map(|_| Part::Sectors(self.random.u64(..))).collect()
    }

    fn message(&mut self, recipients: usize, size: usize) -> Accept {
        let message = self.bench.message(LANE, STREAM, recipients, size);
        self.sizes.insert(message.id, size);
        message
    }

    /// Applies `batch` and starts on every state that a stop in the middle of it can leave.
    fn apply(&mut self, what: &'static str, batch: Batch) -> Done {
        let (files, expectation) = (self.files(), self.expectation());
        self.steps.lock().unwrap().clear();
        let done = self.bench.apply(&batch).unwrap();
        let steps = std::mem::take(&mut *self.steps.lock().unwrap());
        let order: Vec<CommitStep> = steps.iter().map(|(step, _)| *step).collect();
        let after = self.expectation();
        let fresh: BTreeSet<QueueId> = after.items.values().map(|item| item.message).collect();
        let known: BTreeSet<QueueId> = expectation.items.values().map(|item| item.message).collect();
        let fresh = &fresh - &known;
        use CommitStep::*;
        let synced = steps.iter().find(|(step, _)| *step == DatabaseSynced).expect("every batch is committed");
        let bodies_first = match order[..] {
            [DatabaseSynced] => true,
            [BodiesWritten, BodiesSynced, DatabaseSynced] => true,
            [BodiesWritten, DatabaseSynced, BodiesSynced] => false,
            _ => panic!("{what}: {order:?}"),
        };
        // A report stands for a message that goes in the same transaction.
        let in_doubt = if batch.settles.iter().any(|s| s.report.is_some()) { BTreeSet::new() } else { fresh };
        let change = Change { what, before: &files, after: &synced.1, bodies_first };
        let either = [&expectation, &after];
        self.stop_inside(&change, &either, &in_doubt);
        // Acknowledged: everything is synced, only names that were removed may be back.
        let mut end = self.files();
        self.start_on("acknowledged", &end, &[&after], &BTreeSet::new(), what);
        end.extend(
            synced
                .1
                .iter()
                .filter(|(name, _)| !end.contains_key(*name))
                .map(|(n, o)| (n.clone(), o.clone()))
                .collect::<Vec<_>>(),
        );
        self.start_on("names are back", &end, &[&after], &BTreeSet::new(), what);
        done
    }

    fn stop_inside(&mut self, change: &Change<'_>, either: &[&Expectation], in_doubt: &BTreeSet<QueueId>) {
        let before = either[0];
        let log_cuts = cuts(LOG, change.before.get(LOG), &change.after[LOG]);
        // Bodies on their way, no row yet.
        for name in change.bodies() {
            let parts = cuts(name, change.before.get(name), &change.after[name]);
            for part in parts.into_iter().chain(self.subsets()).chain([Part::Nothing, Part::Everything]) {
                let state = change.state(&Part::Nothing, &part);
                self.start_on("bodies on their way", &state, &[before], in_doubt, change.what);
            }
        }
        // Killed while the log is written: its bodies have been handed over.
        for part in &log_cuts {
            let state = change.state(part, &Part::Everything);
            self.start_on("killed in a commit", &state, either, &BTreeSet::new(), change.what);
        }
        // The power goes: each file has what it has.
        let mut logs = self.subsets();
        logs.extend([Part::Nothing, Part::Everything]);
        if !change.bodies_first {
            let whole_frames =
                |part: &Part| matches!(part, Part::UpTo(end) if (end - LOG_HEADER.min(*end)) % FRAME == 0);
            logs.extend(log_cuts.into_iter().filter(whole_frames));
        }
        for log in logs {
            let mut bodies = vec![Part::Everything];
            if !change.bodies_first {
                bodies.push(Part::Nothing);
                bodies.extend(self.subsets().into_iter().take(1));
            }
            for body in bodies {
                let state = change.state(&log, &body);
                self.start_on("power cut in a commit", &state, either, in_doubt, change.what);
            }
        }
    }

    /// Streams a body to a file of its own, then accepts it.
    fn accept_large(&mut self, size: usize) {
        let mut message = self.message(1, 0);
        let content = octets(message.id, size);
        self.sizes.insert(message.id, size);
        let expectation = self.expectation();
        let large = self.directory().join("large");
        // One piece of memory: the rest goes to a file.
        let buffer = Arc::new(BodyBuffer::new(16 << 10, large));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let before = self.files();
        let mut writer = BodyWriter::new(buffer, message.id);
        for chunk in content.chunks(10_000) {
            runtime.block_on(writer.write(chunk)).unwrap();
            let state = self.files();
            self.start_on("a large body arrives", &state, &[&expectation], &BTreeSet::new(), "large");
        }
        message.body = runtime.block_on(writer.finish()).unwrap();
        assert!(matches!(message.body, NewBody::File { .. }));
        let written = self.files();
        let name = format!("large/{}", message.id);
        for part in cuts(&name, None, &written[&name]).into_iter().chain(self.subsets()).chain([Part::Nothing]) {
            let mut state = before.clone();
            state.extend(changed(None, written.get(&name), &part).map(|octets| (name.clone(), octets)));
            self.start_on("a large body is not synced", &state, &[&expectation], &BTreeSet::new(), "large");
        }
        self.apply("accept large", Batch { accepts: vec![message], ..Batch::default() });
    }

    /// Moves the log into the database, as the thread for it does. The log stays until it is written anew.
    fn checkpoint(&mut self) {
        let (before, expectation) = (self.files(), self.expectation());
        let rows = self.bench.backend.rows();
        let busy: i64 = rows.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| r.get(0)).unwrap();
        assert_eq!(busy, 0);
        // Kept open: the last to close would remove the log.
        std::mem::forget(rows);
        let after = self.files();
        assert!(before[DATABASE] != after[DATABASE] && before[LOG] == after[LOG], "only the database was written");
        let parts = cuts(DATABASE, before.get(DATABASE), &after[DATABASE]);
        for part in parts.into_iter().chain(self.subsets()).chain(self.subsets()).chain([Part::Everything]) {
            let mut state = before.clone();
            let database = changed(before.get(DATABASE), after.get(DATABASE), &part);
            state.insert(DATABASE.into(), database.expect("it is there"));
            self.start_on("checkpoint", &state, &[&expectation], &BTreeSet::new(), "checkpoint");
        }
    }

    /// kill -9 and a start, stopped at every point of itself.
    fn start_again(&mut self) {
        let (before, expectation) = (self.files(), self.expectation());
        self.bench.crash();
        let after = self.files();
        let what = "start";
        self.start_on("started", &after, &[&expectation], &BTreeSet::new(), what);
        let change = Change { what, before: &before, after: &after, bodies_first: true };
        self.stop_inside(&change, &[&expectation, &expectation], &BTreeSet::new());
        self.listen();
    }

    /// A start on this state must find one of these expectations. Messages `in_doubt` were not acknowledged: a power cut
    /// may have torn them, and then they are put aside.
    fn start_on(
        &mut self,
        kind: &'static str,
        files: &Files,
        either: &[&Expectation],
        in_doubt: &BTreeSet<QueueId>,
        what: &str,
    ) {
        let number = self.points.values().sum::<usize>();
        *self.points.entry(kind).or_default() += 1;
        let place = write_files(files);
        let context = || format!("{what}, {kind}, point {number}");
        let found = self.open_and_look(place.path(), in_doubt, &context);
        if !either.contains(&&found) {
            panic!("{}:\n{found:#?}\nis none of\n{either:#?}", context());
        }
        // A second start finds the same.
        if number.is_multiple_of(7) {
            let again = self.open_and_look(place.path(), in_doubt, &context);
            assert_eq!(again, found, "{}, started twice", context());
        }
    }

    fn open_and_look(
        &mut self,
        place: &Path,
        in_doubt: &BTreeSet<QueueId>,
        context: &dyn Fn() -> String,
    ) -> Expectation {
        let now = self.bench.now;
        let store = open_sqlite(place).unwrap_or_else(|error| panic!("{}: does not open: {error}", context()));
        let (mut spool, _) =
            Spool::open(store, now).unwrap_or_else(|error| panic!("{}: does not open: {error}", context()));
        let mut found = Expectation { reserved: reserved(spool.ledger(), now), ..Expectation::default() };
        let items = all_items(spool.store());
        let mut bodies = BTreeSet::new();
        for item in &items {
            bodies.insert(item.body);
            let mut this = expected(item);
            if item.state == State::Quarantined && in_doubt.contains(&item.message) {
                self.torn += 1;
                this.state = State::Held;
                found.items.insert(item.id, this);
                continue;
            }
            assert!(item.state != State::Quarantined, "{}: {} was put aside", context(), item.message);
            let (body, crc) = spool.store().body(item.body).unwrap().expect("every item has its body");
            let size = self.sizes[&item.message];
            let read = body.read_at(0, size + 1).unwrap();
            let same = read == octets(item.message, size) && body.crc().unwrap() == crc;
            assert!(same, "{}: {} has other octets than were accepted", context(), item.message);
            found.items.insert(item.id, this);
        }
        let kept = spool.ledger().totals().map(|(.., total)| total.items).sum::<u64>();
        assert_eq!(kept, items.len() as u64, "{}: totals and a recount", context());
        drop(spool);
        let rows = rusqlite::Connection::open(place.join(DATABASE)).unwrap();
        let stored: i64 = rows.query_row("SELECT count(*) FROM body", [], |r| r.get(0)).unwrap();
        assert_eq!(stored, bodies.len() as i64, "{}: bodies that nobody names", context());
        found
    }
}

/// What an operation does to the files.
struct Change<'a> {
    what: &'static str,
    before: &'a Files,
    /// With the log written, and nothing removed yet.
    after: &'a Files,
    /// Bodies are synced before the log is written.
    bodies_first: bool,
}

impl Change<'_> {
    /// Files with bodies that it writes.
    fn bodies(&self) -> Vec<&String> {
        let differs = |name: &&String| self.before.get(*name) != self.after.get(*name);
        self.after.keys().filter(|name| name.starts_with("segments/")).filter(differs).collect()
    }

    /// The disk with so much of the log and so much of the bodies. Names of new segments are synced before their use.
    fn state(&self, log: &Part, bodies: &Part) -> Files {
        let mut state = self.before.clone();
        for (name, octets) in self.after {
            let part = match name.as_str() {
                LOG => log,
                DATABASE => &Part::Everything,
                _ => bodies,
            };
            let headed = (name == LOG).then(|| with_new_header(self.before.get(name), octets));
            let before = headed.as_ref().filter(|_| matches!(part, Part::Sectors(_))).or(self.before.get(name));
            let made = changed(before, Some(octets), part);
            state.insert(name.clone(), made.unwrap_or_default());
        }
        state
    }
}

/// A log that begins anew has its new header synced before any frame is written: frames of before that came back under
/// the old header would take the database back in time.
fn with_new_header(before: Option<&Vec<u8>>, after: &[u8]) -> Vec<u8> {
    let mut octets = before.cloned().unwrap_or_default();
    octets.resize(octets.len().max(LOG_HEADER), 0);
    octets[..LOG_HEADER].copy_from_slice(&after[..LOG_HEADER]);
    octets
}

fn settle(bench: &Bench<Sqlite>, claimed: &Claimed, fate: Fate) -> Settle {
    bench.outcome(claimed, &vec![fate; claimed.item.envelope.recipients.len()])
}

#[test]
fn whatever_is_acknowledged_is_there_after_a_stop_at_any_point() {
    let seed =
        std::env::var("MAILRAMP_CRASH_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().expect("a number"));
    println!("MAILRAMP_CRASH_SEED={seed}");
    let mut session = Session::begin(seed);

    // All three sizes; alone, and as a batch that goes over the end of a segment.
    let small = session.message(1, 300);
    session.apply("accept small", Batch { accepts: vec![small], ..Batch::default() });
    let medium = session.message(2, 9_000);
    session.apply("accept in a segment", Batch { accepts: vec![medium], ..Batch::default() });
    session.accept_large(41_000);
    let accepts = [30_000, 500, 28_000, 12_000].map(|size| session.message(1, size)).into();
    session.apply("accept over the end of a segment", Batch { accepts, ..Batch::default() });

    // Tokens are reserved, and everything that can become of a claim.
    let claims = vec![Claim { queue: Queue::New(LANE), streams: vec![STREAM], most_items: 5 }];
    let claimed = session.apply("claim", Batch { claims, ..Batch::default() }).handed;
    assert_eq!(claimed.len(), 5);
    session.checkpoint();
    let now = session.bench.now;
    let due = now.after(HOUR);
    let fates = [Fate::Relayed, Fate::Deferred { due }, Fate::Relayed, Fate::Unknown { due }];
    let settles = claimed.iter().zip(fates).map(|(claimed, fate)| settle(&session.bench, claimed, fate)).collect();
    session.apply("settle", Batch { settles, ..Batch::default() });
    let report = session.message(1, 6_000);
    let mut failed = settle(&session.bench, &claimed[4], Fate::Failed);
    failed.report = Some(report);
    session.apply("fail with a report", Batch { settles: vec![failed], ..Batch::default() });

    session.start_again();
    // The log is written anew from its front, over what was moved into the database.
    session.checkpoint();
    let accepts = [200, 7_000].map(|size| session.message(3, size)).into();
    session.apply("accept after a checkpoint", Batch { accepts, ..Batch::default() });

    // By hand: one removed, one by the other route.
    let waiting: Vec<ItemId> = session.bench.items().iter().filter(|i| !i.maybe).map(|i| i.id).collect();
    let by_hand = |action, ids: &[ItemId]| {
        let audit = Audit { job: 1, actor: 0, detail: String::new() };
        Chore::ByHand(Order { action, ids: ids.to_vec(), domain: None, audit })
    };
    let chores = vec![by_hand(Action::Drop, &waiting[..1]), by_hand(Action::Reroute(Route::Legacy), &waiting[1..2])];
    session.apply("by hand", Batch { chores, ..Batch::default() });

    // Claims, settles and new mail in one batch; segments and large files go.
    session.bench.pass(2 * HOUR);
    let claims =
        [Queue::New(LANE), Queue::Legacy].map(|queue| Claim { queue, streams: vec![STREAM], most_items: 50 }).into();
    let claimed = session.apply("claim all", Batch { claims, ..Batch::default() }).handed;
    let settles = claimed.iter().map(|claimed| settle(&session.bench, claimed, Fate::Relayed)).collect();
    let accepts = [5_000, 100].map(|size| session.message(1, size)).into();
    session.apply("settle all and accept", Batch { settles, accepts, ..Batch::default() });
    assert_eq!(session.bench.items().len(), 2);
    session.start_again();
    session.bench.check();

    let points: usize = session.points.values().sum();
    println!("{points} points, {} torn messages that nobody was told of; {:?}", session.torn, session.points);
    assert!(points > 1_000 && session.torn > 20, "{points} points, {} torn", session.torn);
}
