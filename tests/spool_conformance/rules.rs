//! What accept, claim, settle and the chores do to items and bodies.

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::*;

on_both! {
    accepted_mail_is_there_after_a_crash,
    items_leave_in_the_order_in_which_they_came,
    streams_are_served_in_the_order_asked_for,
    a_stream_at_its_share_is_stepped_over_and_does_not_block_the_others,
    a_partial_grant_splits_the_item_over_one_body,
    mixed_fates_leave_exactly_the_right_remainders,
    a_body_disappears_with_its_last_item,
    two_claims_never_get_the_same_item,
    an_item_goes_out_at_once_only_when_nobody_waits,
    connections_are_taken_and_given_back_exactly,
    a_deadline_moves_an_item_to_the_legacy_server,
    mail_falls_back_in_order_but_not_what_may_have_left_nor_what_is_not_due,
    mail_without_a_deadline_falls_back_only_where_that_is_asked_for,
    the_life_of_mail_that_needs_no_token_begins_when_it_waits_for_its_server,
    expired_items_are_handed_out_to_fail_and_dead_letters_are_kept_for_their_time,
    a_report_is_stored_with_the_settle_that_caused_it,
    a_flush_makes_deferred_items_due_now,
    an_item_whose_octets_are_gone_is_put_aside_and_takes_no_connection,
    a_message_for_nobody_leaves_nothing_behind,
    every_stream_asked_about_is_answered_also_when_the_lane_refuses,
    a_maybe_item_never_changes_its_route,
}

fn accepted_mail_is_there_after_a_crash<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    for size in [0, 1, 4096, 4097, 30_000] {
        let message = bench.message(LANE, STREAM, 2, size);
        bench.accept(message).unwrap();
    }
    let before = bench.items();
    bench.crash();
    assert_eq!(bench.recovered, Recovered::default());
    assert_eq!(bench.items(), before);
    bench.check();
    let claimed = bench.claim(10);
    assert_eq!(claimed.len(), 5);
    claimed.iter().for_each(assert_octets);
}

fn items_leave_in_the_order_in_which_they_came<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(10_000));
    let mut sent = Vec::new();
    for n in 0..150 {
        sent.push(bench.put(1));
        if n % 3 == 0 {
            bench.pass(MINUTE);
        }
    }
    let mut claimed = bench.claim(100);
    claimed.extend(bench.claim(100));
    assert_eq!(claimed.iter().map(|c| c.item.message).collect::<Vec<_>>(), sent);
    // What nothing was said about goes back to the front.
    bench.settle_all(&claimed[7], Fate::Untouched);
    bench.put(1);
    assert_eq!(bench.claim(1)[0].item.message, sent[7]);
}

fn streams_are_served_in_the_order_asked_for<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    for stream in [STREAM, OTHER_STREAM, STREAM, OTHER_STREAM] {
        let message = bench.message(LANE, stream, 1, 10);
        bench.accept(message).unwrap();
    }
    let done = bench.claim_from(Queue::New(LANE), &[OTHER_STREAM, STREAM], 3);
    let order: Vec<_> = done.handed.iter().map(|c| c.item.message.0).collect();
    assert_eq!(order, [2, 4, 1]);
    let answer = &done.claims[0];
    assert_eq!((answer.items, answer.blocked), (3, None));
    assert_eq!(answer.next_due, [(OTHER_STREAM, None), (STREAM, Some(bench.now))]);
}

fn a_stream_at_its_share_is_stepped_over_and_does_not_block_the_others<B: Backend>() {
    let mut gate = FixedGate::of(100);
    gate.stream_limits.insert(STREAM, 3);
    let mut bench = Bench::<B>::new(gate);
    bench.put(2);
    bench.put(2);
    let message = bench.message(LANE, OTHER_STREAM, 1, 10);
    bench.accept(message).unwrap();
    let done = bench.claim_from(Queue::New(LANE), &[STREAM, OTHER_STREAM], 10);
    let sizes: Vec<_> = done.handed.iter().map(|c| (c.item.stream, c.item.recipients())).collect();
    assert_eq!(sizes, [(STREAM, 2), (STREAM, 1), (OTHER_STREAM, 1)]);
    let answer = &done.claims[0];
    assert_eq!(answer.next_due, [(STREAM, Some(MIDNIGHT.after(DAY))), (OTHER_STREAM, None)]);
    assert_eq!(answer.blocked, None);
    bench.check();
}

fn a_partial_grant_splits_the_item_over_one_body<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(3));
    let message = bench.message(LANE, STREAM, 5, 9000);
    bench.accept(message).unwrap();
    let claimed = bench.claim(10);
    assert_eq!(claimed.len(), 1);
    assert_eq!(names(&claimed[0].item).len(), 3);
    assert_eq!(claimed[0].item.reservation.unwrap().recipients, 3);
    assert_octets(&claimed[0]);
    let items = bench.items();
    assert_eq!(items.len(), 2);
    assert_eq!(bench.bodies(), 1);
    assert_eq!((items[0].state, items[0].recipients()), (State::Held, 2));
    let mut all: Vec<_> = items.iter().flat_map(names).collect();
    all.sort();
    assert_eq!(all, (0..5).map(|n| format!("{n}.of-1@example.net")).collect::<Vec<_>>());
    bench.check();
    bench.settle_all(&claimed[0], Fate::Relayed);
    assert_eq!(bench.bodies(), 1, "two recipients still need it");
    bench.check();
}

fn mixed_fates_leave_exactly_the_right_remainders<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(100) });
    let message = bench.message(LANE, STREAM, 10, 5000);
    bench.accept(message).unwrap();
    bench.pass(MINUTE);
    let claimed = bench.claim(1).remove(0);
    let (soon, later) = (bench.now.after(MINUTE), bench.now.after(HOUR));
    let dead_until = bench.now.after(30 * DAY);
    bench.pass(MINUTE);
    let fates = [
        Fate::Relayed,
        deferred(soon),
        Fate::Unknown { due: later },
        Fate::Untouched,
        Fate::Rerouted { reason: Reason::Fallback },
        Fate::Failed,
        Fate::Dead { until: dead_until },
        Fate::Damaged,
        deferred(soon),
        deferred(later),
    ];
    bench.settle(&claimed, &fates);
    bench.check();
    let items = bench.items();
    let of = |n: usize| items.iter().find(|i| names(i).contains(&format!("{n}.of-1@example.net")));
    assert!(of(0).is_none() && of(5).is_none(), "relayed and failed have no remainder");
    assert_eq!(items.len(), 7);
    let deadline = Some(MIDNIGHT.after(HOUR));
    let expires = Some(bench.now.after(5 * DAY));
    let tried = |i: &Item| {
        assert_eq!((i.attempts, i.last_reply.as_str(), i.reservation), (1, "the reply", None), "{i:?}");
    };
    let deferred = of(1).unwrap();
    tried(deferred);
    assert_eq!(names(deferred).len(), 2, "the same fate stays together");
    assert!(names(deferred).contains(&"8.of-1@example.net".to_string()));
    assert_eq!((deferred.state, deferred.due, deferred.deadline), (State::Deferred, soon, deadline));
    assert_eq!((deferred.maybe, deferred.expires), (false, expires));
    let unknown = of(2).unwrap();
    tried(unknown);
    assert_eq!((unknown.state, unknown.due, unknown.deadline), (State::Deferred, later, None));
    assert_eq!((unknown.maybe, unknown.queue, unknown.expires), (true, Queue::New(LANE), expires));
    let untouched = of(3).unwrap();
    assert_eq!((untouched.attempts, untouched.last_reply.as_str(), untouched.expires), (0, "", None));
    assert_eq!((untouched.state, untouched.due, untouched.deadline), (State::Held, MIDNIGHT, deadline));
    assert_eq!((untouched.maybe, untouched.reservation), (false, None));
    let rerouted = of(4).unwrap();
    tried(rerouted);
    assert_eq!((rerouted.state, rerouted.queue, rerouted.lane), (State::Ready, Queue::Legacy, LANE));
    assert_eq!((rerouted.reason, rerouted.due, rerouted.deadline), (Reason::Fallback, bench.now, None));
    let dead = of(6).unwrap();
    tried(dead);
    assert_eq!((dead.state, dead.expires), (State::Dead, Some(dead_until)));
    let damaged = of(7).unwrap();
    tried(damaged);
    assert_eq!(damaged.state, State::Quarantined);
    tried(of(9).unwrap());
    assert_eq!(of(9).unwrap().due, later);

    // A second attempt counts on and keeps the end of life of the first.
    bench.pass(2 * HOUR);
    let again = bench.claim(10).into_iter().find(|c| names(&c.item).contains(&"9.of-1@example.net".into())).unwrap();
    bench.settle_all(&again, Fate::Deferred { due: later });
    let item = bench.items().into_iter().find(|i| i.id == again.item.id).unwrap();
    assert_eq!((item.attempts, item.expires), (2, expires));
    bench.crash();
    bench.check();
}

fn a_body_disappears_with_its_last_item<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    for (size, large) in [(10, false), (9000, false), (2 << 20, true)] {
        let mut message = bench.message(LANE, STREAM, 2, size);
        message.body = bench.backend.body(octets(message.id, size), message.id, large);
        bench.accept(message).unwrap();
        let claimed = bench.claim(1).remove(0);
        assert_octets(&claimed);
        bench.settle(&claimed, &[Fate::Relayed, deferred(bench.now)]);
        bench.check();
        let rest = bench.claim(1).remove(0);
        assert_eq!(bench.bodies(), 1);
        bench.settle(&rest, &[Fate::Failed]);
        bench.check();
        assert_eq!((bench.bodies(), bench.items().len()), (0, 0), "{size} octets");
    }
}

fn two_claims_never_get_the_same_item<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(1000));
    for _ in 0..20 {
        bench.put(1);
    }
    let claim = Claim { queue: Queue::New(LANE), streams: vec![STREAM], most_items: 6 };
    let one = bench.apply(&Batch { claims: vec![claim.clone(), claim.clone()], ..Batch::default() }).unwrap();
    let two = bench.apply(&Batch { claims: vec![claim.clone(), claim], ..Batch::default() }).unwrap();
    let mut ids: Vec<_> = one.handed.iter().chain(&two.handed).map(|c| c.item.id).collect();
    assert_eq!(ids.len(), 20);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20);
    assert_eq!(two.claims.iter().map(|c| c.items).collect::<Vec<_>>(), [6, 2]);
}

fn an_item_goes_out_at_once_only_when_nobody_waits<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.ready.set(Route::New, 9);
    let message = bench.message(LANE, STREAM, 3, 10);
    let done = bench.apply(&Batch { accepts: vec![message], ..Batch::default() }).unwrap();
    assert_eq!(done.handed.len(), 1);
    assert_eq!(done.accepts[0][0].state, State::InFlight);
    assert_eq!(done.handed[0].item.reservation.unwrap().recipients, 3);
    assert_octets(&done.handed[0]);
    assert_eq!(done.touched, []);
    // Somebody waits in this line, of another stream even: nobody overtakes.
    bench.ready.set(Route::New, 0);
    let message = bench.message(LANE, OTHER_STREAM, 1, 10);
    bench.accept(message).unwrap();
    bench.ready.set(Route::New, 9);
    let message = bench.message(LANE, STREAM, 1, 10);
    assert_eq!(bench.accept(message).unwrap()[0].state, State::Held);
    // Nor in another line, since the total's tokens are everybody's: a claim goes by the order of the streams.
    let message = bench.message(OTHER_LANE, STREAM, 1, 10);
    assert_eq!(bench.accept(message).unwrap()[0].state, State::Held);
    assert_eq!(bench.ready.left(Route::New), 9);
    // Two parts of one message: the second does not overtake the first either.
    let mut bench = Bench::<B>::new(FixedGate { stream_limits: [(STREAM, 0)].into(), ..FixedGate::of(100) });
    bench.ready.set(Route::New, 9);
    let mut message = bench.message(LANE, STREAM, 1, 10);
    message.parts.push(Part { stream: OTHER_STREAM, ..message.parts[0].clone() });
    let states: Vec<_> = bench.accept(message).unwrap().iter().map(|p| p.state).collect();
    assert_eq!(states, [State::Held, State::Held]);
    assert_eq!(bench.ready.left(Route::New), 9);
}

fn connections_are_taken_and_given_back_exactly<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { admitted: 4, ..FixedGate::of(3) });
    bench.ready.set(Route::New, 2);
    bench.ready.set(Route::Legacy, 1);
    // Three tokens of four admitted recipients, two recipients to the legacy server: one connection each.
    let message = bench.message(LANE, STREAM, 6, 10);
    let placed = bench.accept(message).unwrap();
    let states: Vec<_> = placed.iter().map(|p| (p.queue, p.state, p.recipients, p.reason)).collect();
    assert_eq!(
        states,
        [
            (Queue::New(LANE), State::InFlight, 3, Reason::InQuota),
            (Queue::New(LANE), State::Held, 1, Reason::InQuota),
            (Queue::Legacy, State::InFlight, 2, Reason::OverQuota)
        ]
    );
    assert_eq!((bench.ready.left(Route::New), bench.ready.left(Route::Legacy)), (1, 0));
    // No token, no connection: what was taken to try is back.
    let message = bench.message(OTHER_LANE, STREAM, 1, 10);
    assert_eq!(bench.accept(message).unwrap()[0].state, State::Held);
    assert_eq!(bench.ready.left(Route::New), 1);
    bench.check();
}

fn a_deadline_moves_an_item_to_the_legacy_server<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(0) });
    bench.put(2);
    bench.pass(MINUTE);
    bench.put(1);
    let first = MIDNIGHT.after(HOUR);
    bench.now = Timestamp(first.0 - 1);
    let (answer, _) = bench.chore(Chore::MoveOverdue { most_items: 10 });
    assert_eq!(answer, ChoreAnswer { items: 0, recipients: 0, next: Some(first), ..ChoreAnswer::default() });
    bench.now = first;
    let (answer, done) = bench.chore(Chore::MoveOverdue { most_items: 10 });
    assert_eq!(
        answer,
        ChoreAnswer { items: 1, recipients: 2, next: Some(first.after(MINUTE)), ..ChoreAnswer::default() }
    );
    assert_eq!(done.touched, [Touched { queue: Queue::Legacy, stream: STREAM, due: first }]);
    let moved = bench.claim_from(Queue::Legacy, &[STREAM], 10).handed;
    assert_eq!(moved.len(), 1);
    let item = &moved[0].item;
    assert_eq!((item.lane, item.reason, item.deadline, item.reservation), (LANE, Reason::MaxWait, None, None));
    bench.check();
}

fn fall_back(undated: bool, most_items: usize) -> Chore {
    Chore::FallBack { queue: Queue::New(LANE), streams: vec![STREAM], undated, most_items }
}

fn mail_falls_back_in_order_but_not_what_may_have_left_nor_what_is_not_due<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(DAY), ..FixedGate::of(100) });
    bench.put(1);
    let maybe = bench.claim(1).remove(0);
    bench.settle_all(&maybe, Fate::Unknown { due: bench.now });
    bench.put(1);
    for claimed in bench.claim(2) {
        let fate = if claimed.item.maybe { Fate::Untouched } else { deferred(bench.now.after(HOUR)) };
        bench.settle_all(&claimed, fate);
    }
    bench.put(2);
    bench.put(3);
    let (answer, done) = bench.chore(fall_back(false, 1));
    assert_eq!((answer.items, answer.recipients), (1, 2), "the oldest first, one in a transaction");
    assert_eq!(done.touched, [Touched { queue: Queue::Legacy, stream: STREAM, due: bench.now }]);
    let (answer, _) = bench.chore(fall_back(false, 9));
    assert_eq!((answer.items, answer.recipients), (1, 3));
    assert_eq!(bench.chore(fall_back(true, 9)).0.items, 0, "neither what may have left nor what waits for its time");
    let moved = bench.claim_from(Queue::Legacy, &[STREAM], 9).handed;
    assert_eq!(moved.iter().map(|c| c.item.recipients()).collect::<Vec<_>>(), [2, 3]);
    for claimed in &moved {
        let item = &claimed.item;
        assert_eq!((item.lane, item.reason, item.deadline, item.reservation), (LANE, Reason::Fallback, None, None));
    }
    bench.now = bench.now.after(HOUR);
    assert_eq!(bench.chore(fall_back(false, 9)).0.items, 1, "its time has come");
    bench.check();
}

fn mail_without_a_deadline_falls_back_only_where_that_is_asked_for<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: None, ..FixedGate::of(0) });
    let messages = [bench.put(1), bench.put(2)];
    assert_eq!(bench.chore(fall_back(false, 9)).0, ChoreAnswer::default());
    assert!(bench.items().iter().all(|i| i.queue == Queue::New(LANE)));
    let (answer, _) = bench.chore(fall_back(true, 9));
    assert_eq!((answer.items, answer.recipients), (2, 3));
    let moved = bench.claim_from(Queue::Legacy, &[STREAM], 9).handed;
    assert_eq!(moved.iter().map(|c| c.item.message).collect::<Vec<_>>(), messages);
    bench.check();
}

fn the_life_of_mail_that_needs_no_token_begins_when_it_waits_for_its_server<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { life: Some(DAY), wait: Some(HOUR), ..FixedGate::of(0) });
    bench.put(1);
    assert_eq!(bench.items()[0].expires, None, "waiting for a token does not use it up");
    bench.now = bench.now.after(HOUR);
    bench.chore(Chore::MoveOverdue { most_items: 9 });
    let end = bench.now.after(DAY);
    assert_eq!(bench.items()[0].expires, Some(end), "handed to the legacy server, which never answers");
    bench.now = bench.now.after(HOUR);
    let claimed = bench.claim_from(Queue::Legacy, &[STREAM], 9).handed.remove(0);
    bench.settle_all(&claimed, Fate::Untouched);
    assert_eq!(bench.items()[0].expires, Some(end), "no connection after all: it goes on");
    bench.now = end;
    let (answer, done) = bench.chore(Chore::TakeExpired { most_items: 9 });
    assert_eq!((answer.items, done.expired.len()), (1, 1));
    bench.check();

    let mut bench = Bench::<B>::new(FixedGate { life: Some(DAY), ..FixedGate::unmetered() });
    bench.put(1);
    assert_eq!(bench.items()[0].expires, Some(bench.now.after(DAY)));
}

fn expired_items_are_handed_out_to_fail_and_dead_letters_are_kept_for_their_time<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(2);
    bench.put(1);
    let claimed = bench.claim(1).remove(0);
    bench.settle_all(&claimed, deferred(bench.now.after(10 * DAY)));
    let end = bench.now.after(5 * DAY);
    assert_eq!(bench.chore(Chore::TakeExpired { most_items: 9 }).0.next, Some(end));
    bench.now = end;
    let (answer, done) = bench.chore(Chore::TakeExpired { most_items: 9 });
    assert_eq!(answer, ChoreAnswer { items: 1, recipients: 2, next: None, ..ChoreAnswer::default() });
    assert_eq!((done.handed.len(), done.expired.len()), (0, 1));
    let expired = &done.expired[0];
    assert_eq!((expired.item.state, expired.item.reservation), (State::InFlight, None));
    let until = end.after(DAY);
    bench.settle(expired, &[Fate::Failed, Fate::Dead { until }]);
    bench.check();
    assert_eq!(bench.ledger().total_of(State::Dead).recipients, 1);
    assert_eq!(bench.reserved().0, 0, "it took no token");
    bench.crash();
    assert_eq!(
        bench.chore(Chore::DropDead { most_items: 9 }).0,
        ChoreAnswer { next: Some(until), ..Default::default() }
    );
    bench.now = until;
    let (answer, _) = bench.chore(Chore::DropDead { most_items: 9 });
    assert_eq!(answer, ChoreAnswer { items: 1, recipients: 1, next: None, ..ChoreAnswer::default() });
    assert_eq!((bench.items().len(), bench.bodies()), (1, 1), "the other message is still there");
    bench.check();
}

fn a_report_is_stored_with_the_settle_that_caused_it<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(1);
    let claimed = bench.claim(1).remove(0);
    let mut report = bench.message(LaneId::TOTAL, OTHER_STREAM, 1, 600);
    report.parts[0].only = Some(Route::Legacy);
    let mut settle = bench.outcome(&claimed, &[Fate::Failed]);
    settle.report = Some(report);
    let batch = Batch { settles: vec![settle], ..Batch::default() };
    // Both or neither, and a full disk refuses neither.
    bench.faults().full = true;
    for fail_after in 0..6 {
        bench.faults().fail_after = Some(fail_after);
        assert!(matches!(bench.apply(&batch), Err(SpoolError::Full { .. })));
        assert_eq!(bench.items().len(), 1);
        assert_eq!(bench.items()[0].state, State::InFlight);
        bench.check();
    }
    bench.faults().fail_after = None;
    let done = bench.apply(&batch).unwrap();
    assert_eq!(done.touched, [Touched { queue: Queue::Legacy, stream: OTHER_STREAM, due: bench.now }]);
    bench.crash();
    let items = bench.items();
    assert_eq!(items.len(), 1);
    assert_eq!((items[0].queue, items[0].reason), (Queue::Legacy, Reason::Manual));
    bench.check();
}

fn a_flush_makes_deferred_items_due_now<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let ids: Vec<_> = (0..3).map(|_| bench.put(1)).collect();
    for claimed in bench.claim(3) {
        bench.settle_all(&claimed, deferred(bench.now.after(DAY)));
    }
    let (answer, done) = bench.chore(Chore::Flush { message: Some(ids[1]), most_items: 1 });
    assert_eq!((answer.items, done.touched.len()), (1, 1));
    assert_eq!(bench.claim(9).iter().map(|c| c.item.message).collect::<Vec<_>>(), [ids[1]]);
    assert_eq!(bench.chore(Chore::Flush { message: None, most_items: 1 }).0.items, 1);
    assert_eq!(bench.chore(Chore::Flush { message: None, most_items: 9 }).0.items, 1);
    assert_eq!(bench.chore(Chore::Flush { message: None, most_items: 9 }).0.items, 0);
    assert_eq!(bench.claim(9).len(), 2);
    bench.check();
}

fn an_item_whose_octets_are_gone_is_put_aside_and_takes_no_connection<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(2);
    bench.put(1);
    let body = bench.items()[0].body;
    let store = bench.faults();
    store.begin().unwrap();
    store.inner.reference_body(body, -1).unwrap();
    store.inner.commit().unwrap();
    let done = bench.claim_from(Queue::New(LANE), &[STREAM], 1);
    assert_eq!((done.claims[0].items, done.handed.len()), (1, 1), "the next one goes instead");
    assert_eq!(done.handed[0].item.message, QueueId(2));
    assert_eq!(bench.items()[0].state, State::Quarantined);
    assert_eq!(bench.reserved(), (1, 1), "its tokens are back");
}

fn a_message_for_nobody_leaves_nothing_behind<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let mut message = bench.message(LANE, STREAM, 0, 5000);
    assert_eq!(bench.accept(message.clone()).unwrap(), []);
    message.parts.clear();
    message.id = QueueId(99);
    assert_eq!(bench.accept(message).unwrap(), []);
    bench.check();
}

fn every_stream_asked_about_is_answered_also_when_the_lane_refuses<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(1));
    bench.put(2);
    let message = bench.message(LANE, OTHER_STREAM, 1, 10);
    bench.accept(message).unwrap();
    let done = bench.claim_from(Queue::New(LANE), &[STREAM, OTHER_STREAM], 10);
    let answer = &done.claims[0];
    assert_eq!(answer.items, 1);
    assert_eq!(answer.blocked.map(|(_, until)| until), Some(MIDNIGHT.after(DAY)));
    assert_eq!(answer.next_due, [(STREAM, Some(MIDNIGHT)), (OTHER_STREAM, Some(MIDNIGHT))]);
}

fn a_maybe_item_never_changes_its_route<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(100) });
    bench.put(1);
    bench.put(1);
    let claimed = bench.claim(2);
    bench.settle_all(&claimed[0], Fate::Unknown { due: bench.now });
    bench.crash(); // The second was in flight.
    bench.pass(2 * DAY);
    let (answer, _) = bench.chore(Chore::MoveOverdue { most_items: 10 });
    assert_eq!((answer.items, answer.next), (0, None));
    // Not even when the next attempt is refused: the first one may have arrived.
    let claimed = bench.claim(2);
    assert_eq!(claimed.len(), 2);
    for claimed in &claimed {
        assert!(claimed.item.maybe);
        bench.settle_all(claimed, Fate::Rerouted { reason: Reason::Fallback });
    }
    let items = bench.items();
    assert!(items.iter().all(|i| i.queue == Queue::New(LANE) && i.maybe && i.state == State::Deferred), "{items:?}");
    assert!(items.iter().all(|i| i.due > bench.now), "no hot loop: {items:?}");
    bench.check();
}
