//! What the ledger promises: a token counts from its reservation on, and nothing reopens what was used.

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::*;

on_both! {
    a_claim_reserves_and_a_restart_does_not_reopen_the_day,
    tokens_come_back_only_for_a_definite_refusal,
    items_in_flight_come_back_as_maybe_with_their_tokens_used,
    a_reservation_carried_over_midnight_counts_for_both_days,
    a_message_sent_at_a_quarter_past_two_counts_until_a_quarter_past_two,
    a_carried_reservation_counts_in_24_hours_until_it_is_settled,
    a_clock_that_goes_back_reopens_nothing_within_a_run,
    a_clock_that_goes_back_reopens_nothing_over_a_restart,
    the_pace_survives_a_restart,
    a_lane_without_a_limit_needs_no_reservation_but_is_counted,
    many_days_asleep_leave_a_history_without_gaps,
    the_ledger_does_not_grow_with_the_years,
    everything_the_ledger_knows_is_there_after_a_restart,
}

fn a_claim_reserves_and_a_restart_does_not_reopen_the_day<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(3));
    for _ in 0..5 {
        bench.put(1);
    }
    assert_eq!(bench.claim(9).len(), 3);
    assert_eq!(bench.reserved(), (3, 3));
    bench.crash();
    assert_eq!(bench.reserved(), (3, 3));
    assert_eq!(bench.claim(9).len(), 0);
    bench.pass(23 * HOUR);
    bench.crash();
    assert_eq!(bench.claim(9).len(), 0);
    // After midnight the day is new, but not yet 24 hours are over since the crash found them in flight.
    bench.now = MIDNIGHT.after(DAY);
    assert_eq!(bench.claim(9).len(), 0);
    bench.pass(16 * MINUTE);
    assert_eq!(bench.claim(9).len(), 3);
    bench.check();
}

fn tokens_come_back_only_for_a_definite_refusal<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    bench.put(8);
    let claimed = bench.claim(1).remove(0);
    assert_eq!(bench.reserved(), (8, 8));
    let later = bench.now.after(HOUR);
    let until = bench.now.after(DAY);
    let fates = [
        Fate::Relayed,
        Fate::Unknown { due: later },
        deferred(later),
        Fate::Untouched,
        Fate::Rerouted { reason: Reason::Fallback },
        Fate::Failed,
        Fate::Dead { until },
        Fate::Damaged,
    ];
    bench.settle(&claimed, &fates);
    assert_eq!(bench.reserved(), (2, 2), "the relayed one and the one nobody knows about");
    let lane = bench.ledger().lane(LANE).unwrap();
    assert_eq!((lane.today.sent, lane.today.legacy, lane.outstanding()), (1, 0, 0));
    assert_eq!(lane.stream_today(STREAM).reserved, 2);
    let total = bench.ledger().lane(LaneId::TOTAL).unwrap();
    assert_eq!((total.reserved_today(), total.reserved_24h(bench.now), total.today.sent), (2, 2, 1));
    bench.crash();
    assert_eq!(bench.reserved(), (2, 2));
    // Legacy mail is counted apart and needs no token.
    let legacy = bench.claim_from(Queue::Legacy, &[STREAM], 9).handed.remove(0);
    bench.settle_all(&legacy, Fate::Relayed);
    assert_eq!(bench.reserved(), (2, 2));
    assert_eq!(bench.ledger().lane(LANE).unwrap().today.legacy, 1);
}

fn items_in_flight_come_back_as_maybe_with_their_tokens_used<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(10) });
    bench.put(4);
    bench.claim(1);
    bench.pass(MINUTE);
    bench.crash();
    assert_eq!(bench.recovered.in_flight, 1);
    let item = bench.items().remove(0);
    assert_eq!((item.state, item.maybe, item.queue), (State::Held, true, Queue::New(LANE)));
    assert_eq!((item.reservation, item.deadline, item.attempts), (None, None, 0));
    assert_eq!(bench.reserved(), (4, 4));
    assert_eq!(bench.ledger().lane(LANE).unwrap().outstanding(), 0);
    bench.check();
    // The next attempt takes tokens of its own.
    assert_eq!(bench.claim(1).len(), 1);
    assert_eq!(bench.reserved(), (8, 8));
}

fn a_reservation_carried_over_midnight_counts_for_both_days<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    bench.pass(23 * HOUR + 50 * MINUTE);
    bench.put(4);
    let claimed = bench.claim(1).remove(0);
    bench.pass(20 * MINUTE);
    bench.put(1); // A batch: the day turns.
    let lane = |bench: &Bench<B>| bench.ledger().lane(LANE).unwrap().clone();
    assert_eq!(lane(&bench).today.reserved, 0);
    assert_eq!(lane(&bench).reserved_today(), 4, "not settled yet, it may leave today");
    bench.settle(&claimed, &[Fate::Relayed, Fate::Relayed, Fate::Failed, Fate::Unknown { due: bench.now }]);
    assert_eq!(lane(&bench).reserved_today(), 3);
    assert_eq!(lane(&bench).history.back().unwrap().reserved, 3);
    assert_eq!(lane(&bench).today.sent, 2);
    bench.crash();
    assert_eq!(lane(&bench).reserved_today(), 3);
    assert_eq!(lane(&bench).history.back().unwrap().reserved, 3);
    assert_eq!(bench.reserved().1, 3);
}

fn a_message_sent_at_a_quarter_past_two_counts_until_a_quarter_past_two<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    bench.now = MIDNIGHT.after(2 * HOUR + 14 * MINUTE + 50 * (MINUTE / 60));
    bench.put(4);
    let claimed = bench.claim(1).remove(0);
    bench.settle_all(&claimed, Fate::Relayed);
    for restart in [false, true] {
        if restart {
            bench.crash();
        }
        let lane = bench.ledger().lane(LANE).unwrap();
        let next_day = MIDNIGHT.after(DAY);
        assert_eq!(lane.reserved_24h(next_day.after(2 * HOUR)), 4);
        assert_eq!(lane.reserved_24h(next_day.after(2 * HOUR + 14 * MINUTE + 59 * (MINUTE / 60))), 4);
        assert_eq!(lane.reserved_24h(next_day.after(2 * HOUR + 15 * MINUTE)), 0);
        assert_eq!(lane.oldest_slot(next_day.after(2 * HOUR)), Some(MIDNIGHT.after(2 * HOUR).slot()));
    }
}

fn a_carried_reservation_counts_in_24_hours_until_it_is_settled<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    bench.put(4);
    let claimed = bench.claim(1).remove(0);
    bench.pass(3 * DAY);
    bench.put(4);
    let other = bench.claim(1).remove(0);
    assert_eq!(bench.reserved(), (8, 8));
    bench.settle_all(&claimed, Fate::Relayed);
    assert_eq!(bench.reserved(), (8, 8), "it may have left this very moment");
    bench.settle_all(&other, Fate::Failed);
    assert_eq!(bench.reserved(), (4, 4));
    bench.crash();
    assert_eq!(bench.reserved(), (4, 4));
}

fn a_clock_that_goes_back_reopens_nothing_within_a_run<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(3));
    bench.pass(DAY + HOUR);
    bench.put(6);
    let claimed = bench.claim(1).remove(0);
    let late = bench.now;
    bench.now = MIDNIGHT;
    assert_eq!(bench.claim(9).len(), 0);
    bench.settle_all(&claimed, Fate::Relayed);
    assert_eq!(bench.claim(9).len(), 0);
    assert_eq!(bench.ledger().span().unwrap().day, Day(20_001));
    // Mail goes on: what was accepted at the later time is not made to wait for it again.
    let mut message = bench.message(LANE, STREAM, 1, 10);
    message.parts[0].only = Some(Route::Legacy);
    bench.now = late;
    bench.accept(message).unwrap();
    bench.now = MIDNIGHT;
    assert_eq!(bench.claim_from(Queue::Legacy, &[STREAM], 9).handed.len(), 1);
    // For us it stood still: the use counts until a day after the latest moment seen.
    assert_eq!(bench.ledger().lane(LANE).unwrap().reserved_24h(late.after(24 * HOUR)), 3);
    bench.check();
}

fn a_clock_that_goes_back_reopens_nothing_over_a_restart<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(3));
    bench.put(3);
    bench.pass(DAY + HOUR);
    let claimed = bench.claim(1).remove(0);
    bench.settle(&claimed, &[Fate::Relayed, Fate::Relayed, Fate::Untouched]);
    bench.claim(1);
    bench.now = MIDNIGHT.after(2 * HOUR);
    bench.crash();
    assert_eq!(bench.ledger().span().unwrap().day, Day(20_001), "the day in force stays");
    bench.put(1);
    assert_eq!(bench.claim(9).len(), 0);
    assert_eq!(bench.reserved(), (3, 3), "also what lies in quarter-hours to come");
    bench.now = MIDNIGHT.after(DAY + 20 * HOUR);
    assert_eq!(bench.claim(9).len(), 0);
}

fn the_pace_survives_a_restart<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { spacing: Some(HOUR), ..FixedGate::of(100) });
    bench.put(3);
    assert_eq!(bench.claim(9).len(), 1);
    bench.crash();
    bench.pass(59 * MINUTE);
    let done = bench.claim_from(Queue::New(LANE), &[STREAM], 9);
    assert_eq!(done.claims[0].blocked.map(|(_, until)| until), Some(MIDNIGHT.after(HOUR)));
    bench.pass(MINUTE);
    assert_eq!(bench.claim(9).len(), 1);
}

fn a_lane_without_a_limit_needs_no_reservation_but_is_counted<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::unmetered());
    bench.put(5);
    let claimed = bench.claim(1).remove(0);
    assert_eq!(claimed.item.reservation, None);
    bench.settle(
        &claimed,
        &[Fate::Relayed, Fate::Relayed, Fate::Unknown { due: bench.now }, Fate::Failed, Fate::Failed],
    );
    assert_eq!(bench.reserved(), (3, 3));
    bench.put(1);
    bench.claim(9);
    bench.crash();
    assert!(bench.items().iter().all(|i| i.maybe && i.state == State::Ready), "in flight without tokens is maybe too");
    bench.check();
}

fn many_days_asleep_leave_a_history_without_gaps<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10));
    bench.put(1);
    let claimed = bench.claim(1).remove(0);
    bench.settle_all(&claimed, Fate::Relayed);
    bench.pass(200 * DAY);
    for _ in 0..4 {
        bench.apply(&Batch::default()).unwrap();
    }
    assert_eq!(bench.ledger().span().unwrap().day, Day(20_200));
    for restart in [false, true] {
        if restart {
            bench.crash();
        }
        let lane = bench.ledger().lane(LANE).unwrap();
        let days: Vec<_> = lane.history.iter().map(|r| r.day.0).collect();
        assert_eq!(days, (20_169..20_200).collect::<Vec<_>>());
        assert_eq!(lane.today.day, Day(20_200));
    }
}

fn the_ledger_does_not_grow_with_the_years<B: Backend>() {
    for gate in [FixedGate::of(10), FixedGate::unmetered()] {
        let mut bench = Bench::<B>::new(gate);
        bench.ready.set(Route::New, 1_000_000);
        for _ in 0..250 {
            let message = bench.message(LANE, STREAM, 1, 10);
            let done = bench.apply(&Batch { accepts: vec![message], ..Batch::default() }).unwrap();
            bench.settle_all(&done.handed[0], Fate::Relayed);
            bench.pass(7 * HOUR);
        }
        let rows = bench.faults().ledger_rows().unwrap();
        let slots = rows.iter().filter(|r| matches!(r, Row::Slot { .. })).count();
        assert!(slots <= 2 * 5, "{slots} quarter-hours kept");
    }
}

fn everything_the_ledger_knows_is_there_after_a_restart<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { spacing: Some(MINUTE), ..FixedGate::of(5) });
    for _ in 0..20 {
        bench.put(3);
        let message = bench.message(OTHER_LANE, OTHER_STREAM, 2, 10);
        bench.accept(message).unwrap();
        for queue in [Queue::New(LANE), Queue::New(OTHER_LANE)] {
            for claimed in bench.claim_from(queue, &[STREAM, OTHER_STREAM], 2).handed {
                bench.settle_all(&claimed, Fate::Relayed);
            }
        }
        bench.pass(17 * HOUR);
    }
    let facts = |ledger: &Ledger, now: Timestamp| {
        let lanes: Vec<_> = ledger
            .lanes()
            .map(|(id, lane)| {
                let days = (0..40).map(|back| Day(lane.today.day.0 - back));
                let streams: Vec<_> =
                    days.map(|d| (lane.stream_on(STREAM, d), lane.stream_on(OTHER_STREAM, d))).collect();
                let sums: Vec<_> = (0..100).map(|n| lane.reserved_24h(now.after(n * 15 * MINUTE))).collect();
                let state = (lane.record, lane.today, lane.history.clone(), lane.arrival, lane.outstanding());
                (id, state, streams, sums, lane.reserved_today())
            })
            .collect();
        let totals: Vec<_> = ledger.totals().filter(|t| t.3.items > 0).collect();
        (ledger.span(), lanes, totals)
    };
    bench.apply(&Batch::default()).unwrap();
    let before = facts(bench.ledger(), bench.now);
    assert!(before.1[1].1.2.len() > 5, "some history");
    bench.crash();
    assert_eq!(facts(bench.ledger(), bench.now), before);
    // The same when a batch fails and the ledger is read anew.
    bench.faults().fail_after = Some(3);
    let message = bench.message(LANE, STREAM, 4, 10);
    bench.accept(message).unwrap_err();
    assert_eq!(facts(bench.ledger(), bench.now), before);
}
