//! A clock that was wrong and is accepted: what waits keeps its waiting times, what was used stays used.

use std::time::Duration;

use super::harness::*;
use mailramp::clock::reckoning::{BootId, Mark};
use mailramp::message::*;
use mailramp::spool::*;

on_both! {
    what_waits_keeps_its_waiting_times_when_the_clock_is_accepted,
    what_was_used_stays_used_when_the_clock_is_accepted,
    a_calendar_that_goes_back_a_little_waits_and_one_that_goes_back_far_moves_with_all_its_days,
    what_was_in_flight_when_the_clock_was_accepted_settles_by_the_new_one,
    time_in_which_the_machine_was_off_lengthens_lives_and_nothing_else,
    what_the_clock_was_is_there_after_a_restart,
    nothing_is_due_later_than_the_longest_delay_after_a_start_that_knows_no_time,
    a_clock_that_cannot_be_stored_changes_nothing,
}

const TEN_YEARS: i64 = 3652 * 86_400 * NANOS_PER_SECOND;

fn mark(time: Timestamp) -> Mark {
    Mark { time, boot: BootId(7), since_boot: Duration::from_secs(5) }
}

/// An operator accepts a clock that is off by so much.
fn accept_clock<B: Backend>(bench: &mut Bench<B>, moved: i64) {
    bench.now.0 += moved;
    let clock = Some(ClockNote { mark: mark(bench.now), doubtful: false, missed: Duration::ZERO, moved });
    bench.apply(&Batch { clock, ..Batch::default() }).unwrap();
}

/// Two that wait for a token, one that was delayed, and a dead letter.
fn waiting<B: Backend>() -> Bench<B> {
    let mut gate = FixedGate::of(2);
    gate.wait = Some(4 * HOUR);
    let mut bench = Bench::<B>::new(gate);
    bench.pass(10 * HOUR);
    bench.put(1);
    bench.put(1);
    for claimed in bench.claim(2) {
        let fate = if claimed.item.id.0 == 1 {
            Fate::Dead { until: bench.now.after(DAY) }
        } else {
            deferred(bench.now.after(HOUR))
        };
        bench.settle_all(&claimed, fate);
    }
    bench.put(1);
    bench
}

fn what_waits_keeps_its_waiting_times_when_the_clock_is_accepted<B: Backend>() {
    for moved in [TEN_YEARS, -TEN_YEARS, 90 * NANOS_PER_SECOND] {
        let mut bench = waiting::<B>();
        let times = |bench: &mut Bench<B>| -> Vec<_> {
            let now = bench.now.0;
            let from_now = |time: Option<Timestamp>| time.map(|time| time.0 - now);
            let of = |i: &Item| (i.accepted.0 - now, i.due.0 - now, from_now(i.deadline), from_now(i.expires));
            bench.items().iter().map(of).collect()
        };
        let before = times(&mut bench);
        assert!(before.iter().any(|t| t.2.is_some()) && before.iter().filter(|t| t.3.is_some()).count() == 2);
        accept_clock(&mut bench, moved);
        assert_eq!(times(&mut bench), before, "moved by {moved}");
        bench.crash();
        assert_eq!(times(&mut bench), before, "moved by {moved}, and a restart");
        assert_eq!(bench.chore(Chore::TakeExpired { most_items: 9 }).0.items, 0);
        assert_eq!(bench.chore(Chore::DropDead { most_items: 9 }).0.items, 0);
        bench.check();
    }
}

fn what_was_used_stays_used_when_the_clock_is_accepted<B: Backend>() {
    for moved in [TEN_YEARS, 86_400 * NANOS_PER_SECOND, -TEN_YEARS, -3600 * NANOS_PER_SECOND] {
        let mut bench = Bench::<B>::new(FixedGate::of(3));
        bench.pass(10 * HOUR);
        for _ in 0..9 {
            bench.put(1);
        }
        for claimed in bench.claim(9) {
            bench.settle_all(&claimed, Fate::Relayed);
        }
        accept_clock(&mut bench, moved);
        for restart in [false, true] {
            if restart {
                bench.crash();
            }
            let lane = bench.ledger().lane(LANE).unwrap();
            assert_eq!(lane.reserved_24h(bench.now), 3, "moved by {moved}, restart {restart}");
            assert_eq!(bench.claim(9).len(), 0, "moved by {moved}, restart {restart}");
        }
        let moment = bench.now;
        bench.pass(DAY - HOUR);
        assert_eq!(bench.claim(9).len(), 0, "not 24 hours after, moved by {moved}");
        bench.now = moment.after(DAY + HOUR / 2 + HOUR);
        assert_eq!(bench.claim(9).len(), 3, "but then, moved by {moved}");
        bench.check();
    }
}

fn a_calendar_that_goes_back_a_little_waits_and_one_that_goes_back_far_moves_with_all_its_days<B: Backend>() {
    let days = |bench: &Bench<B>| -> Vec<_> {
        let lane = bench.ledger().lane(LANE).unwrap();
        lane.history.iter().chain([&lane.today]).map(|r| (r.day.0, r.reserved)).collect()
    };
    for (back, moves) in [(1, false), (2, false), (3, true), (3652, true)] {
        let mut bench = Bench::<B>::new(FixedGate::of(5));
        for used in 1..=5 {
            bench.put(used);
            for claimed in bench.claim(1) {
                bench.settle_all(&claimed, Fate::Relayed);
            }
            bench.pass(DAY + 30 * MINUTE);
        }
        let before = days(&bench);
        assert_eq!(before.iter().map(|d| d.1).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        accept_clock(&mut bench, -i64::from(back) * 86_400 * NANOS_PER_SECOND);
        for restart in [false, true] {
            if restart {
                bench.crash();
            }
            let by = |day: i32| if moves { day - back + 1 } else { day };
            // The day that was not begun yet is begun by the clock that goes back, or not at all.
            let after = days(&bench);
            let want: Vec<_> = before.iter().map(|(day, used)| (by(*day), *used)).collect();
            assert_eq!(after, want, "{back} days back, restart {restart}");
        }
        bench.check();
    }
}

fn what_was_in_flight_when_the_clock_was_accepted_settles_by_the_new_one<B: Backend>() {
    for moved in [TEN_YEARS, -TEN_YEARS] {
        let mut bench = Bench::<B>::new(FixedGate::of(9));
        bench.pass(10 * HOUR);
        bench.put(2);
        bench.put(2);
        let claimed = bench.claim(2);
        let old = bench.now;
        accept_clock(&mut bench, moved);
        assert_eq!(bench.reserved(), (4, 4));
        // Decided by the old clock.
        bench.settle(&claimed[0], &[Fate::Relayed, deferred(old.after(HOUR))]);
        bench.settle_all(&claimed[1], Fate::Untouched);
        assert_eq!(bench.reserved().1, 1, "what came back is free again");
        let now = bench.now;
        for item in bench.items() {
            assert_eq!(item.accepted, now, "moved by {moved}");
            assert!(item.due <= now.after(15 * MINUTE), "moved by {moved}: due {:?}, now {now:?}", item.due);
        }
        bench.pass(15 * MINUTE);
        let again = bench.claim(9);
        assert_eq!(again.len(), 2);
        // Claimed anew, they are told by the new clock and nothing moves any more.
        bench.settle_all(&again[0], Fate::Untouched);
        assert_eq!(bench.items()[0].accepted, now);
        bench.check();
    }
}

fn time_in_which_the_machine_was_off_lengthens_lives_and_nothing_else<B: Backend>() {
    let mut bench = waiting::<B>();
    let before = bench.items();
    let clock = Some(ClockNote { mark: mark(bench.now), doubtful: false, missed: 6 * DAY, moved: 0 });
    bench.apply(&Batch { clock, ..Batch::default() }).unwrap();
    let longer = |i: &Item| Item { expires: i.expires.map(|end| end.after(6 * DAY)), ..i.clone() };
    assert_eq!(bench.items(), before.iter().map(longer).collect::<Vec<_>>());
}

fn what_the_clock_was_is_there_after_a_restart<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(9));
    assert_eq!((bench.ledger().clock(), bench.ledger().clock_is_doubtful()), (None, false));
    for doubtful in [true, false] {
        bench.pass(HOUR);
        let clock = Some(ClockNote { mark: mark(bench.now), doubtful, missed: Duration::ZERO, moved: 0 });
        bench.apply(&Batch { clock, ..Batch::default() }).unwrap();
        bench.crash();
        assert_eq!((bench.ledger().clock(), bench.ledger().clock_is_doubtful()), (Some(mark(bench.now)), doubtful));
    }
}

fn nothing_is_due_later_than_the_longest_delay_after_a_start_that_knows_no_time<B: Backend>() {
    let mut bench = waiting::<B>();
    // The clock was years ahead when it was delayed.
    bench.now.0 -= TEN_YEARS;
    bench.crash();
    let latest = bench.now.after(HOUR);
    let late = bench.items().iter().filter(|i| i.state.is_waiting() && i.due > latest).count();
    assert!(late > 0);
    assert_eq!(bench.spool().due_by(latest).unwrap(), late);
    assert!(bench.items().iter().all(|i| i.due <= latest || !i.state.is_waiting()));
    assert_eq!(bench.spool().due_by(latest).unwrap(), 0);
    bench.check();
}

fn a_clock_that_cannot_be_stored_changes_nothing<B: Backend>() {
    let mut bench = waiting::<B>();
    let (before, clock_before) = (bench.items(), bench.ledger().clock());
    for step in 0.. {
        bench.faults().fail_after = Some(step);
        let moved = Timestamp(bench.now.0 + TEN_YEARS);
        let clock = Some(ClockNote { mark: mark(moved), doubtful: false, missed: Duration::ZERO, moved: TEN_YEARS });
        let spool = bench.spool.as_mut().unwrap();
        match spool.apply(&Batch { clock, ..Batch::default() }, &bench.gate, &bench.ready, moved) {
            Ok(_) => {
                assert!(step > 3, "hardly anything was written");
                return;
            }
            Err(error) => assert!(matches!(error, SpoolError::Full { .. }), "{error}"),
        }
        assert_eq!((bench.items(), bench.ledger().clock()), (before.clone(), clock_before), "step {step}");
        bench.check();
    }
}
