//! A full disk and a crash: what they may not do.

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::*;

on_both! {
    a_full_disk_refuses_new_mail_while_settles_go_on,
    a_batch_that_fails_anywhere_leaves_nothing_half_written,
    connections_taken_by_a_batch_that_fails_are_given_back,
    ids_are_never_used_again_even_when_the_queue_is_empty,
}

fn a_full_disk_refuses_new_mail_while_settles_go_on<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    bench.put(1);
    bench.put(1);
    let claimed = bench.claim(1).remove(0);
    bench.faults().full = true;
    let settles = vec![bench.outcome(&claimed, &[Fate::Relayed])];
    let accepts = vec![bench.message(LANE, STREAM, 1, 10)];
    let both = Batch { settles, accepts, ..Batch::default() };
    assert!(matches!(bench.apply(&both), Err(SpoolError::Full { .. })));
    assert_eq!(bench.items().len(), 2, "nothing of the batch happened");
    assert_eq!(bench.reserved(), (1, 1));
    bench.check();
    bench.apply(&Batch { accepts: Vec::new(), ..both }).unwrap();
    assert_eq!(bench.items().len(), 1);
    assert_eq!(bench.claim(9).len(), 1, "what is there still leaves");
    bench.check();
    bench.faults().full = false;
    bench.put(1);
    bench.check();
}

/// A batch of everything, on a spool with everything in it.
fn a_busy_bench<B: Backend>() -> (Bench<B>, Batch) {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(12) });
    for size in [10, 6000, 9000, 10] {
        let message = bench.message(LANE, STREAM, 2, size);
        bench.accept(message).unwrap();
    }
    let claimed = bench.claim(3);
    bench.settle(&claimed[0], &[deferred(bench.now), Fate::Dead { until: bench.now }]);
    bench.pass(2 * HOUR);
    bench.put(2);
    let message = bench.message(LANE, STREAM, 2, 50);
    bench.accept(message).unwrap();
    let settles = vec![
        bench.outcome(&claimed[1], &[Fate::Relayed, deferred(bench.now)]),
        bench.outcome(&claimed[2], &[Fate::Relayed, Fate::Relayed]),
    ];
    let claims = vec![Claim { queue: Queue::New(LANE), streams: vec![STREAM], most_items: 2 }];
    let chores = vec![Chore::MoveOverdue { most_items: 9 }, Chore::DropDead { most_items: 9 }];
    let large = bench.message(OTHER_LANE, STREAM, 3, 8000);
    let accepts = vec![large, bench.message(OTHER_LANE, STREAM, 1, 10)];
    (bench, Batch { settles, claims, chores, accepts, ..Batch::default() })
}

fn a_batch_that_fails_anywhere_leaves_nothing_half_written<B: Backend>() {
    let (mut bench, batch) = a_busy_bench::<B>();
    let before = bench.items();
    let mut steps = 0;
    loop {
        bench.faults().fail_after = Some(steps);
        match bench.apply(&batch) {
            Ok(done) => {
                assert_eq!((done.accepts.len(), done.claims[0].items), (2, 2));
                break;
            }
            Err(SpoolError::Full { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        assert_eq!(bench.items(), before, "after {steps} steps");
        bench.check();
        if steps % 7 == 0 {
            bench.crash();
            // A crash marks what was in flight; the batch still fits, since it names the items.
            assert_eq!(bench.items().len(), before.len());
            (bench, _) = a_busy_bench::<B>();
        }
        steps += 1;
    }
    assert!(steps > 30, "only {steps} steps");
    bench.faults().fail_after = None;
    bench.check();
}

fn connections_taken_by_a_batch_that_fails_are_given_back<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { admitted: 1, ..FixedGate::of(10) });
    bench.ready.set(Route::New, 5);
    bench.ready.set(Route::Legacy, 5);
    let accepts: Vec<_> = [LANE, OTHER_LANE].into_iter().map(|lane| bench.message(lane, STREAM, 2, 10)).collect();
    let batch = Batch { accepts, ..Batch::default() };
    for steps in 0.. {
        bench.faults().fail_after = Some(steps);
        let result = bench.apply(&batch);
        if result.is_ok() {
            break;
        }
        assert_eq!((bench.ready.left(Route::New), bench.ready.left(Route::Legacy)), (5, 5), "after {steps} steps");
        if let Some(lane) = bench.ledger().lane(LANE) {
            assert_eq!((lane.reserved_today(), lane.outstanding()), (0, 0));
        }
    }
    assert_eq!((bench.ready.left(Route::New), bench.ready.left(Route::Legacy)), (3, 3));
    bench.faults().fail_after = None;
    bench.check();
}

fn ids_are_never_used_again_even_when_the_queue_is_empty<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    for _ in 0..3 {
        bench.put(1);
    }
    let highest = bench.items().last().unwrap().id;
    for claimed in bench.claim(9) {
        bench.settle_all(&claimed, Fate::Relayed);
    }
    bench.crash();
    assert_eq!(bench.spool().last_message(), QueueId(3), "a clock that went back must not name a message twice");
    let message = bench.message(LANE, STREAM, 1, 10);
    bench.accept(message).unwrap();
    assert!(bench.items()[0].id > highest);
}
