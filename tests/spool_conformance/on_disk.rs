//! What only SQLite and segments have to promise: syncs in order, power cuts, strays, one process, a log that ends.

use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};

use super::harness::*;
use mailramp::clock::{ManualClock, TrustedClock};
use mailramp::message::*;
use mailramp::spool::body::{BodyBuffer, BodyWriter, NewBody};
use mailramp::spool::committer::{self, Committer, Outlet, SpoolHandle};
use mailramp::spool::disk::DataDirectory;
use mailramp::spool::sqlite::{CommitStep, DiskLimits, SqliteStore};
use mailramp::spool::*;

fn bench() -> Bench<Sqlite> {
    Bench::new(FixedGate::of(10_000))
}

fn accept_sized(bench: &mut Bench<Sqlite>, sizes: &[usize]) {
    let accepts = sizes.iter().map(|size| bench.message(LANE, STREAM, 1, *size)).collect();
    bench.apply(&Batch { accepts, ..Batch::default() }).unwrap();
}

/// Segment and offset of the body of each message.
fn places(bench: &Bench<Sqlite>) -> Vec<(u64, i64, u64)> {
    let rows = bench.backend.rows();
    let mut statement = rows.prepare("SELECT message, seg, off FROM body WHERE seg IS NOT NULL ORDER BY id").unwrap();
    statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap().map(Result::unwrap).collect()
}

fn damage(bench: &Bench<Sqlite>, message: u64) {
    let (_, segment, offset) = places(bench).into_iter().find(|p| p.0 == message).unwrap();
    let path = bench.backend.path().join(format!("segments/{segment:08}.seg"));
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"torn", offset + 17).unwrap();
}

#[test]
fn a_commit_syncs_bodies_and_database_and_says_so_in_order() {
    let mut bench = bench();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let log = steps.clone();
    bench.faults().inner.set_sync_hook(Box::new(move |step| log.lock().unwrap().push(step)));
    accept_sized(&mut bench, &[9000, 10]);
    accept_sized(&mut bench, &[10]);
    use CommitStep::*;
    assert_eq!(*steps.lock().unwrap(), [BodiesWritten, DatabaseSynced, BodiesSynced, DatabaseSynced]);
}

// --- the committer ----------------------------------------------------------------------------------------------

#[derive(Default)]
struct Connections {
    ready: Ready,
    handed: Mutex<Vec<Claimed>>,
}

impl Slots for Connections {
    fn take(&self, route: Route) -> bool {
        self.ready.take(route)
    }
    fn give_back(&self, route: Route, count: usize) {
        self.ready.give_back(route, count);
    }
}

impl Outlet for Connections {
    fn deliver(&self, items: Vec<Claimed>) {
        self.handed.lock().unwrap().extend(items);
    }
    fn expired(&self, _: Vec<Claimed>) {}
    fn touched(&self, _: Vec<Touched>, _: Vec<Queue>, _: Option<Timestamp>) {}
}

fn started<S: Store + 'static>(store: S) -> (SpoolHandle, Committer, Arc<Connections>) {
    let connections = Arc::new(Connections::default());
    let (spool, _) = Spool::open(store, MIDNIGHT).unwrap();
    let clock = Arc::new(TrustedClock::new(Arc::new(ManualClock::at(MIDNIGHT)), None));
    let gate = Arc::new(FixedGate::of(10_000));
    let (handle, thread) = committer::start(spool, gate, connections.clone(), clock).unwrap();
    (handle, thread, connections)
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn no_accept_is_answered_before_its_batch_is_synced() {
    let mut bench = bench();
    let (reached, steps) = mpsc::channel();
    let (go, may_go) = mpsc::channel();
    let message = bench.message(LANE, STREAM, 1, 9000);
    let mut store = bench.spool.take().unwrap().into_store();
    let armed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let listening = armed.clone();
    store.inner.set_sync_hook(Box::new(move |step| {
        if listening.load(std::sync::atomic::Ordering::SeqCst) {
            reached.send(step).unwrap();
            may_go.recv().unwrap();
        }
    }));
    let (handle, thread, _) = started(store);
    armed.store(true, std::sync::atomic::Ordering::SeqCst);
    {
        let mut answer = pin!(handle.accept(message));
        let mut context = Context::from_waker(Waker::noop());
        // The committer stands still at each step, so an answer that was given by then would be seen here.
        assert!(answer.as_mut().poll(&mut context).is_pending());
        for step in [CommitStep::BodiesWritten, CommitStep::DatabaseSynced, CommitStep::BodiesSynced] {
            assert_eq!(steps.recv().unwrap(), step);
            assert!(matches!(answer.as_mut().poll(&mut context), Poll::Pending), "answered before {step:?}");
            go.send(()).unwrap();
        }
        drop(go); // A step too many would stop the committer instead of waiting for ever.
        assert_eq!(block_on(answer).unwrap().len(), 1);
    }
    drop(handle);
    thread.join().unwrap();
}

#[test]
fn a_large_body_survives_and_its_file_goes_with_the_settle() {
    let mut bench = bench();
    let mut message = bench.message(LANE, STREAM, 1, 0);
    let content = octets(message.id, 3 << 20);
    let buffer = Arc::new(BodyBuffer::new(64 << 20, bench.backend.path().join("large")));
    let (handle, thread, connections) = started(bench.spool.take().unwrap().into_store());
    connections.ready.set(Route::New, 1);
    block_on(async {
        let mut writer = BodyWriter::new(buffer, message.id);
        for chunk in content.chunks(100_000) {
            writer.write(chunk).await.unwrap();
        }
        message.body = writer.finish().await.unwrap();
        assert!(matches!(message.body, NewBody::File { .. }));
        handle.accept(message).await.unwrap();
    });
    let claimed = connections.handed.lock().unwrap().remove(0);
    assert_octets(&claimed);
    let left = copy_directory(bench.backend.path());
    let (mut spool, recovered) = Spool::open(open_sqlite(left.path()).unwrap(), MIDNIGHT).unwrap();
    assert_eq!(recovered.in_flight, 1);
    let item = spool.store().in_state(State::Held, ItemId(0), 9).unwrap().remove(0);
    let (body, crc) = spool.store().body(item.body).unwrap().unwrap();
    assert_octets(&Claimed { item, body, crc, at: MIDNIGHT });
    // Settled in the first process: the file goes, and who still reads it keeps reading.
    let settle = bench.outcome(&claimed, &[Fate::Relayed]);
    block_on(handle.settle(settle)).unwrap();
    drop(handle);
    thread.join().unwrap();
    assert_eq!(bench.backend.files("large"), Vec::<String>::new());
    assert_octets(&claimed);
}

#[test]
fn a_full_disk_refuses_mail_and_its_file_while_the_settle_of_the_same_batch_is_written() {
    let mut bench = bench();
    bench.put(1);
    let claimed = bench.claim(1).remove(0);
    let mut message = bench.message(LANE, STREAM, 1, 0);
    message.body = bench.backend.body(octets(message.id, 5000), message.id, true);
    let settle = bench.outcome(&claimed, &[Fate::Relayed]);
    let mut store = bench.spool.take().unwrap().into_store();
    // Recovery would take the item back; this is the same process for it.
    store.begin().unwrap();
    store.update(&Item { state: State::Held, ..claimed.item.clone() }).unwrap();
    store.commit().unwrap();
    store.full = true;
    let (handle, thread, _) = started(store);
    block_on(async {
        handle.settle(settle).await.unwrap();
        assert!(matches!(handle.accept(message).await, Err(SpoolError::Full { .. })));
    });
    drop(handle);
    thread.join().unwrap();
    assert_eq!(bench.backend.files("large"), Vec::<String>::new());
    assert_eq!(bench.backend.number("SELECT count(*) FROM item"), 0);
    assert_eq!(bench.backend.number("SELECT count(*) FROM body"), 0);
}

#[test]
fn a_settle_that_found_no_room_is_written_when_there_is_some_at_the_latest_at_the_end() {
    let mut bench = bench();
    bench.put(1);
    let claimed = bench.claim(1).remove(0);
    let settle = bench.outcome(&claimed, &[Fate::Relayed]);
    let mut store = bench.spool.take().unwrap().into_store();
    store.begin().unwrap();
    store.update(&Item { state: State::Held, ..claimed.item.clone() }).unwrap();
    store.commit().unwrap();
    // With the mail and without; there is no reserve to give up.
    store.fail_commits = 2;
    let (handle, thread, _) = started(store);
    block_on(handle.settle(settle)).unwrap();
    drop(handle);
    thread.join().unwrap();
    assert_eq!(bench.backend.number("SELECT count(*) FROM item"), 0);
}

// --- power cuts and strays --------------------------------------------------------------------------------------

#[test]
fn a_power_cut_puts_aside_what_it_tore_and_nothing_else() {
    let mut bench = bench();
    accept_sized(&mut bench, &[9000, 9001]);
    accept_sized(&mut bench, &[9002, 9003, 9004, 20]);
    let before = places(&bench);
    let store = bench.spool.take().unwrap().into_store();
    bench.backend.directory = copy_directory(bench.backend.path());
    drop(store);
    damage(&bench, 4);
    // A start that ends before it has put anything aside is no start: the next one finds the damage again.
    drop(open_sqlite(bench.backend.path()).unwrap());
    let (spool, recovered) = Spool::open(Faulty::new(open_sqlite(bench.backend.path()).unwrap()), MIDNIGHT).unwrap();
    bench.spool = Some(spool);
    assert_eq!(recovered, Recovered { in_flight: 0, damaged: 1 });
    let after = places(&bench);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).map(|(_, a)| a.0).collect();
    assert_eq!(moved, [3, 5], "good bodies of the last batch are copied, the others stay");
    assert!(after.iter().filter(|p| moved.contains(&p.0)).all(|p| p.1 > before[0].1), "to a fresh segment");
    bench.check();
    let claimed = bench.claim(10);
    assert_eq!(claimed.iter().map(|c| c.item.message.0).collect::<Vec<_>>(), [1, 2, 3, 5, 6]);
    claimed.iter().for_each(assert_octets);
    let aside = bench.items().into_iter().find(|i| i.message == QueueId(4)).unwrap();
    assert_eq!(aside.state, State::Quarantined);
    // Once put aside it is no news, and never deleted.
    bench.crash();
    assert_eq!(bench.recovered, Recovered { in_flight: 5, damaged: 0 });
    bench.check();
}

#[test]
fn an_envelope_that_cannot_be_read_is_put_aside_alone_and_its_octets_are_left_as_they_are() {
    let mut bench = bench();
    accept_sized(&mut bench, &[10, 10, 10]);
    let other = rusqlite::Connection::open(bench.backend.path().join("spool.db")).unwrap();
    other.execute("UPDATE item SET envelope = x'09' WHERE message = 2", []).unwrap();
    let claimed = bench.claim(10);
    assert_eq!(claimed.iter().map(|c| c.item.message.0).collect::<Vec<_>>(), [1, 3]);
    let aside = bench.items().into_iter().find(|i| i.message == QueueId(2)).unwrap();
    assert_eq!(aside.state, State::Quarantined);
    let stored: Vec<u8> = other.query_row("SELECT envelope FROM item WHERE message = 2", [], |row| row.get(0)).unwrap();
    assert_eq!(stored, [9], "whoever can mend it still finds it");
    // The same while it is in flight at a crash: the start goes on without it.
    other.execute("UPDATE item SET envelope = x'09' WHERE message = 3", []).unwrap();
    bench.crash();
    assert_eq!(bench.recovered, Recovered { in_flight: 2, damaged: 1 });
    assert_eq!(bench.claim(10).iter().map(|c| c.item.message.0).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_segment_that_is_missing_puts_its_items_aside_and_the_rest_opens() {
    let mut bench = bench();
    accept_sized(&mut bench, &[9000, 10]);
    let store = bench.spool.take().unwrap().into_store();
    bench.backend.directory = copy_directory(bench.backend.path());
    drop(store);
    for file in bench.backend.files("segments") {
        fs::remove_file(bench.backend.path().join("segments").join(file)).unwrap();
    }
    let (spool, recovered) = Spool::open(Faulty::new(open_sqlite(bench.backend.path()).unwrap()), MIDNIGHT).unwrap();
    bench.spool = Some(spool);
    assert_eq!(recovered.damaged, 1);
    assert_eq!(bench.claim(9).len(), 1);
}

#[test]
fn a_start_looks_only_at_the_last_batch_of_the_last_segment() {
    let mut bench = bench();
    for _ in 0..30 {
        accept_sized(&mut bench, &[9000, 9000]);
    }
    bench.put(1);
    let before = places(&bench);
    assert!(before.last().unwrap().1 > 5, "several segments");
    bench.crash();
    let moved = before.iter().zip(places(&bench)).filter(|(b, a)| *b != a).count();
    assert!(moved <= 2 + 2, "{moved} bodies were read and copied");
    bench.check();
    bench.claim(100).iter().for_each(assert_octets);
}

#[test]
fn files_that_no_row_names_are_removed_at_open() {
    let mut bench = bench();
    let mut message = bench.message(LANE, STREAM, 1, 0);
    message.body = bench.backend.body(octets(message.id, 5000), message.id, true);
    bench.accept(message).unwrap();
    accept_sized(&mut bench, &[9000]);
    bench.backend.body("never committed".into(), QueueId(77), true);
    fs::write(bench.backend.path().join("segments/00000099.seg"), "half a batch").unwrap();
    bench.crash();
    assert_eq!(bench.backend.files("large"), [QueueId(1).to_string()]);
    assert!(!bench.backend.files("segments").contains(&"00000099.seg".to_string()));
    bench.check();
    accept_sized(&mut bench, &[9000]);
    assert!(bench.backend.files("segments").iter().any(|name| name.as_str() > "00000099.seg"), "no name is used twice");
    bench.claim(9).iter().for_each(assert_octets);
}

#[test]
fn a_segment_goes_when_its_last_body_is_settled() {
    let mut bench = bench();
    for _ in 0..30 {
        accept_sized(&mut bench, &[9000]);
    }
    let segments = bench.backend.files("segments").len();
    assert!(segments > 3);
    for claimed in bench.claim(100) {
        bench.settle_all(&claimed, Fate::Relayed);
    }
    assert_eq!(bench.backend.files("segments").len(), 1, "the one being written stays");
    bench.crash();
    assert_eq!(bench.backend.files("segments").len(), 0);
    bench.check();
}

#[test]
fn a_file_that_cannot_be_removed_does_not_undo_the_settle() {
    let mut bench = bench();
    let mut message = bench.message(LANE, STREAM, 1, 0);
    message.body = bench.backend.body(octets(message.id, 5000), message.id, true);
    bench.accept(message).unwrap();
    let claimed = bench.claim(1).remove(0);
    let path = bench.backend.path().join("large").join(QueueId(1).to_string());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap(); // Not to be removed as a file, whoever runs the test.
    bench.settle_all(&claimed, Fate::Relayed);
    assert_eq!(bench.ledger().queued_bytes(), 0);
    fs::remove_dir(&path).unwrap();
    bench.check();
}

// --- directory and database -------------------------------------------------------------------------------------

#[test]
fn a_second_process_is_refused_until_the_first_has_closed_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_sqlite(directory.path()).unwrap();
    assert!(matches!(open_sqlite(directory.path()), Err(SpoolError::Locked(_))));
    drop(store);
    assert!(!directory.path().join("spool.db-wal").exists(), "the log is in the database, the last one has left");
    open_sqlite(directory.path()).unwrap();
}

#[test]
fn a_database_of_another_version_is_refused_and_named() {
    let mut bench = bench();
    bench.put(1);
    bench.spool = None;
    bench.backend.rows().execute("UPDATE meta SET value = 99 WHERE key = 'schema'", []).unwrap();
    match open_sqlite(bench.backend.path()) {
        Err(SpoolError::Directory(text)) => assert!(text.contains("spool.db") && text.contains("99"), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn the_log_does_not_grow_for_ever_under_steady_writing() {
    const LOG: u64 = 256 << 10;
    let mut bench = bench();
    bench.faults().inner.set_log_bytes(LOG).unwrap();
    let log = bench.backend.path().join("spool.db-wal");
    let mut largest = 0;
    for _ in 0..60 {
        accept_sized(&mut bench, &[4000; 20]);
        largest = largest.max(fs::metadata(&log).unwrap().len());
    }
    // Ten MiB were written. At four times its size the committer helps; a batch or two may come on top.
    assert!(largest < 7 * LOG, "{largest} octets");
    // One large batch makes it grow; when it starts over it is cut.
    accept_sized(&mut bench, &[4000; 1000]);
    assert!(fs::metadata(&log).unwrap().len() > 8 * LOG);
    for _ in 0..60 {
        accept_sized(&mut bench, &[4000; 20]);
    }
    let end = fs::metadata(&log).unwrap().len();
    assert!(end < 7 * LOG, "{end} octets");
    bench.check();
}

#[test]
fn the_database_gets_smaller_again_after_a_spike_and_keeps_what_it_will_need() {
    let mut bench = bench();
    for _ in 0..4 {
        accept_sized(&mut bench, &[4000; 1000]);
    }
    let most = bench.backend.number("PRAGMA page_count");
    assert!(most > 4000, "{most} pages");
    let settles = bench.claim(4000).iter().map(|claimed| bench.outcome(claimed, &[Fate::Relayed])).collect();
    bench.apply(&Batch { settles, ..Batch::default() }).unwrap();
    for _ in 0..40 * 64 {
        bench.apply(&Batch::default()).unwrap();
    }
    let left = bench.backend.number("PRAGMA page_count");
    assert!((500..most / 2).contains(&left), "{left} of {most} pages");
    bench.check();
}

#[test]
fn octets_that_are_gone_put_their_item_aside_and_it_is_said() {
    let mut bench = bench();
    let mut message = bench.message(LANE, STREAM, 1, 0);
    message.body = bench.backend.body(octets(message.id, 5000), message.id, true);
    let id = message.id;
    bench.accept(message).unwrap();
    bench.put(1);
    fs::remove_file(bench.backend.path().join("large").join(id.to_string())).unwrap();
    let done = bench.claim_from(Queue::New(LANE), &[STREAM], 9);
    assert_eq!((done.handed.len(), &done.quarantined[..]), (1, &[id][..]));
    assert_eq!(bench.reserved(), (1, 1), "its token is given back");
    let aside = bench.items().into_iter().find(|item| item.message == id).unwrap();
    assert_eq!((aside.state, aside.reservation), (State::Quarantined, None));
}

#[test]
fn the_reserve_is_given_up_once_and_laid_again_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let limits = DiskLimits { min_free: 0, max_used: 100 };
    let mut store = SqliteStore::open(DataDirectory::open(directory.path()).unwrap(), limits).unwrap();
    let ballast = directory.path().join("ballast");
    if !ballast.exists() {
        return; // This file system has too little room, or cannot allocate ahead.
    }
    assert!(store.free_ballast());
    assert!(!store.free_ballast());
    assert!(!ballast.exists());
    assert!(matches!(store.room(101), Err(SpoolError::Full { used_bytes: 101, .. })));
    assert!(!ballast.exists());
    store.room(100).unwrap();
    assert!(ballast.exists());
    assert!(store.free_ballast());
}
