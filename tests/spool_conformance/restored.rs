//! Data that came back from a backup or a copy: its mail waits for an operator, and its ledger gives nothing out again.

use std::time::Duration;

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::backup::copy;
use mailramp::spool::by_hand::{Action, Audit, Order};
use mailramp::spool::identity::Since;
use mailramp::spool::*;

on_both! {
    what_came_back_is_paused_and_goes_only_when_it_is_released,
    the_last_24_hours_count_as_used_up_and_no_longer,
    a_start_that_dies_half_way_begins_anew_and_does_nothing_twice,
}

const QUARTER: Duration = Duration::from_secs(15 * 60);

/// Something in every state that waits, and in those that do not.
fn filled<B: Backend>() -> Bench<B> {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(10) });
    bench.put(2);
    let in_flight = bench.claim(1).remove(0);
    bench.put(1);
    let deferred_one = bench.claim(1).remove(0);
    bench.settle_all(&deferred_one, deferred(bench.now.after(HOUR)));
    bench.put(1);
    let dead = bench.claim(2).into_iter().find(|c| c.item.message == QueueId(3)).unwrap();
    bench.settle_all(&dead, Fate::Dead { until: bench.now.after(9 * DAY) });
    bench.put(3);
    bench.gate.admitted = 0;
    bench.put(1);
    bench.gate.admitted = u64::MAX;
    assert_eq!(in_flight.item.message, QueueId(1));
    bench
}

fn bring_back<B: Backend>(bench: &mut Bench<B>) -> Result<u64, SpoolError> {
    let (gate, now) = (bench.gate.clone(), bench.now);
    bench.spool().bring_back_paused(&gate, now).map(|total| total.items)
}

fn what_came_back_is_paused_and_goes_only_when_it_is_released<B: Backend>() {
    let mut bench = filled::<B>();
    bench.crash();
    bench.gate = FixedGate::unmetered();
    assert_eq!(bring_back(&mut bench).unwrap(), 4, "all but the dead letter");
    bench.check();
    bench.pass(30 * DAY);
    for queue in [Queue::New(LANE), Queue::Legacy] {
        assert!(bench.claim_from(queue, &[STREAM], 9).handed.is_empty());
    }
    assert_eq!(bench.chore(Chore::MoveOverdue { most_items: 9 }).0.items, 0);
    assert_eq!(bench.chore(Chore::TakeExpired { most_items: 9 }).0.items, 0, "no report for what may have arrived");
    bench.crash();
    let paused: Vec<_> = bench.items().into_iter().filter(|i| i.state == State::Paused).collect();
    assert_eq!(paused.len(), 4);
    assert!(paused[0].maybe && paused[0].queue == Queue::New(LANE), "what was in flight keeps its mark and its route");
    let audit = Audit { job: 1, actor: 0, detail: "flush".into() };
    let order = Order { action: Action::Flush, ids: paused.iter().map(|i| i.id).collect(), domain: None, audit };
    assert_eq!(bench.chore(Chore::ByHand(order)).0.items, 4);
    assert_eq!(bench.chore(Chore::TakeExpired { most_items: 9 }).0.items, 0, "released to be sent, not to be reported");
    let mut sent: Vec<_> = [Queue::New(LANE), Queue::Legacy]
        .into_iter()
        .flat_map(|queue| bench.claim_from(queue, &[STREAM], 9).handed)
        .collect();
    sent.iter().for_each(assert_octets);
    sent.sort_by_key(|claimed| claimed.item.message);
    assert_eq!(sent.iter().map(|c| c.item.message.0).collect::<Vec<_>>(), [1, 2, 4, 5]);
    bench.check();
}

fn the_last_24_hours_count_as_used_up_and_no_longer<B: Backend>() {
    let mut bench = filled::<B>();
    bench.crash();
    bench.pass(3 * DAY + 20 * HOUR + Duration::from_secs(100));
    bench.gate = FixedGate::of(12);
    bring_back(&mut bench).unwrap();
    assert_eq!(bench.reserved(), (12, 12));
    let came_back = bench.now;
    bench.put(1);
    // Across midnight, and to the end of the window: the quarter-hour of the start and 96 after it.
    while bench.now.since(came_back) < DAY {
        assert!(bench.claim(1).is_empty(), "{:?} after", bench.now.since(came_back));
        bench.pass(QUARTER);
    }
    bench.crash();
    assert_eq!(bench.reserved().1, 12, "a restart reopens nothing");
    bench.pass(QUARTER);
    assert_eq!(bench.claim(1).len(), 1);
    bench.check();
}

fn a_start_that_dies_half_way_begins_anew_and_does_nothing_twice<B: Backend>() {
    let mut steps = 0;
    loop {
        let mut bench = filled::<B>();
        bench.crash();
        bench.faults().fail_after = Some(steps);
        let failed = bring_back(&mut bench).is_err();
        bench.crash();
        assert_eq!(bring_back(&mut bench).unwrap(), 4, "after {steps} steps");
        assert_eq!(bench.reserved(), (10, 10), "after {steps} steps");
        bench.check();
        if !failed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 15, "{steps} steps");
}

// --- only on disk -----------------------------------------------------------------------------------------------

/// As a relay would: opens, and brings back if it has to. `true`: it had to.
fn start(
    directory: &std::path::Path,
    gate: &FixedGate,
    now: Timestamp,
) -> (bool, Spool<mailramp::spool::sqlite::SqliteStore>) {
    let store = open_sqlite(directory).unwrap();
    let copied = store.since() == Since::Copied;
    let (mut spool, _) = Spool::open(store, now).unwrap();
    if copied {
        spool.bring_back_paused(gate, now).unwrap();
    }
    (copied, spool)
}

#[test]
fn a_copied_directory_is_recognised_until_it_was_brought_back_and_a_moved_one_is_not() {
    let mut bench = filled::<Sqlite>();
    let gate = bench.gate.clone();
    drop(bench.spool.take());
    let copied = copy_directory(bench.backend.path());
    // Opened and not brought back: the next start finds it again.
    drop(open_sqlite(copied.path()).unwrap());
    let (had_to, spool) = start(copied.path(), &gate, bench.now);
    assert!(had_to);
    drop(spool);
    assert!(!start(copied.path(), &gate, bench.now).0, "it is at home now");
    assert!(!start(bench.backend.path(), &gate, bench.now).0, "the original never left");
    let moved = copied.path().with_extension("moved");
    std::fs::rename(copied.path(), &moved).unwrap();
    assert!(!start(&moved, &gate, bench.now).0, "the same files under another name");
    std::fs::remove_dir_all(&moved).unwrap();
}

#[test]
fn a_start_that_was_told_of_a_snapshot_and_died_is_not_forgotten() {
    let mut bench = filled::<Sqlite>();
    let (gate, now) = (bench.gate.clone(), bench.now);
    let store = bench.spool.take().unwrap().into_store().inner;
    assert_eq!(store.since(), Since::Same);
    let (mut spool, _) = Spool::open(Faulty::new(store), now).unwrap();
    spool.store().fail_after = Some(6);
    assert!(spool.bring_back_paused(&gate, now).is_err());
    drop(spool);
    // The operator does not say it a second time.
    let (had_to, spool) = start(bench.backend.path(), &gate, now);
    assert!(had_to);
    assert_eq!(spool.ledger().total_of(State::Paused).items, 4);
}

#[test]
fn a_backup_holds_all_there_was_at_its_moment_while_bodies_go_and_come() {
    let mut bench = Bench::<Sqlite>::new(FixedGate::unmetered());
    let holds = bench.faults().inner.holds();
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("copy");
    for n in 0..30 {
        let mut message = bench.message(LANE, STREAM, 1, if n % 3 == 0 { 100 } else { 9000 });
        if n % 10 == 9 {
            message.body = bench.backend.body(octets(message.id, 70_000), message.id, true);
        }
        bench.accept(message).unwrap();
    }
    let hold = holds.hold();
    let from = bench.backend.path().to_owned();
    // Between the copy of the rows and that of the files, everything is delivered and other mail comes.
    let once = std::cell::Cell::new(false);
    let mut step = |_, _| {
        if !once.replace(true) {
            for claimed in bench.claim(100) {
                bench.settle_all(&claimed, Fate::Relayed);
            }
            for _ in 0..10 {
                let message = bench.message(LANE, STREAM, 1, 9000);
                bench.accept(message).unwrap();
            }
        }
    };
    let copied = copy(&from, &to, &|| Ok(()), &mut step).unwrap();
    drop(hold);
    assert_eq!((copied.items, copied.large, copied.sound, copied.damaged), (30, 3, 30, 0));
    assert!(copied.segments >= 3, "{copied:?}");
    // What was held back goes with the next commit.
    bench.put(1);
    bench.check();
    let segments = bench.backend.number("SELECT count(*) FROM seg");
    assert_eq!(bench.backend.files("segments").len() as i64, segments);
    assert!(bench.backend.files("large").is_empty());

    let (had_to, spool) = start(&to, &FixedGate::unmetered(), bench.now);
    assert!(had_to);
    assert_eq!(spool.ledger().total_of(State::Paused).items, 30);
    let mut store = spool.into_store();
    for item in store.in_state(State::Paused, ItemId(0), 99).unwrap() {
        let (body, crc) = store.body(item.body).unwrap().unwrap();
        assert_octets(&Claimed { item, body, crc, at: MIDNIGHT });
    }
}

#[test]
fn a_backup_counts_what_was_damaged_before_and_an_unfinished_one_is_refused() {
    let mut bench = Bench::<Sqlite>::new(FixedGate::unmetered());
    for _ in 0..3 {
        let message = bench.message(LANE, STREAM, 1, 9000);
        bench.accept(message).unwrap();
    }
    let segment = bench.backend.path().join("segments").join(&bench.backend.files("segments")[0]);
    let mut octets = std::fs::read(&segment).unwrap();
    octets[10_000] ^= 1;
    std::fs::write(&segment, octets).unwrap();
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("copy");
    let copied = copy(bench.backend.path(), &to, &|| Ok(()), &mut |_, _| {}).unwrap();
    assert_eq!((copied.sound, copied.damaged), (2, 1));
    std::fs::write(to.join("unfinished-backup"), "").unwrap();
    match open_sqlite(&to) {
        Err(SpoolError::Directory(text)) => assert!(text.contains("not finished"), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}
