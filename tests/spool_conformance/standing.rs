//! What operators and brakes tell: in force at once, kept over a crash, and what waits goes the way it means.

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::by_hand::Audit;
use mailramp::spool::*;

on_both! {
    what_was_told_stands_after_a_crash,
    what_changes_nothing_says_so_and_leaves_no_trace,
    the_latest_move_whose_time_has_come_is_in_force_and_the_last_one_told_is_undone,
    a_stream_keeps_its_number_whatever_stands_in_the_settings,
    a_day_with_a_pause_or_a_brake_is_a_braked_day_also_when_it_begins_with_one,
    what_must_not_wait_for_new_goes_to_legacy_and_the_rest_stays,
    recipients_whose_provider_is_known_by_now_are_claimed_on_its_lane,
    every_lane_is_looked_at_again_when_something_was_told,
}

fn tell<B: Backend>(bench: &mut Bench<B>, what: What) -> (Told, Done) {
    let audit = Some(Audit { job: 1, actor: 1000, detail: what.name().into() });
    let (answer, done) = bench.chore(Chore::Tell(Telling { what, audit }));
    (*answer.told.expect("an answer to it"), done)
}

fn pause() -> Pause {
    Pause { since: Timestamp(5), actor: 1000, reason: "the new address is listed".into() }
}

fn brake(level: BrakeLevel) -> BrakeRecord {
    BrakeRecord {
        level,
        since: Timestamp(7),
        until: Timestamp(9),
        step: StageStep::Back,
        touched: true,
        reason: "421 4.7.28".into(),
    }
}

fn moved(to: StreamWay, at: Timestamp) -> StreamMove {
    StreamMove { id: 0, to, at, told: Timestamp(3), actor: 1000, reason: String::new() }
}

fn what_was_told_stands_after_a_crash<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(1);
    let later = bench.now.after(DAY);
    for what in [
        What::Pause(pause()),
        What::Brake { lane: LANE, record: brake(BrakeLevel::Suspended) },
        What::SetDay { stage: 6 },
        What::NameStreams(vec!["default".into(), "digest".into()]),
        What::Move { stream: STREAM, to: moved(StreamWay::Legacy, bench.now) },
        What::Move { stream: STREAM, to: moved(StreamWay::Ramp, later) },
    ] {
        assert_eq!(tell(&mut bench, what.clone()).0, Told::Done, "{what:?}");
    }
    for _ in 0..2 {
        let now = bench.now;
        let ledger = bench.spool().ledger();
        assert_eq!(ledger.pause(), Some(&pause()));
        let lane = ledger.lane(LANE).unwrap();
        assert_eq!(lane.brake, brake(BrakeLevel::Suspended));
        assert_eq!((lane.record.stage, lane.record.limit, lane.memory), (6, Some(1), Some((Day(9), 77))));
        assert_eq!(ledger.stream_named("digest"), Some(StreamId(1)));
        assert_eq!(ledger.moves(STREAM).iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((ledger.way_of(STREAM, now), ledger.next_move(now)), (Some(StreamWay::Legacy), Some(later)));
        bench.crash();
    }
    assert_eq!(tell(&mut bench, What::Resume).0, Told::Done);
    assert!(matches!(tell(&mut bench, What::UndoMove { stream: STREAM }).0, Told::Undone(m) if m.at == later));
    bench.crash();
    assert_eq!(bench.spool().ledger().pause(), None);
    let now = bench.now;
    assert_eq!(bench.spool().ledger().next_move(now), None);
}

fn what_changes_nothing_says_so_and_leaves_no_trace<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(1);
    let nowhere = What::Brake { lane: LaneId(40), record: brake(BrakeLevel::Slow) };
    for what in [What::Resume, What::UndoMove { stream: STREAM }, nowhere] {
        let (told, done) = tell(&mut bench, what);
        assert!(matches!(told, Told::Nothing(_)), "{told:?}");
        assert_eq!(done.refunded, []);
    }
    let names: Vec<String> = (0..256).map(|n| format!("stream{n}")).collect();
    assert!(matches!(tell(&mut bench, What::NameStreams(names)).0, Told::Nothing(_)));
    assert!(bench.spool().ledger().stream_names().is_empty());
}

fn the_latest_move_whose_time_has_come_is_in_force_and_the_last_one_told_is_undone<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let now = bench.now;
    let in_hours = |n: u32| now.after(HOUR * n);
    for (to, at) in [(StreamWay::New, in_hours(8)), (StreamWay::Ramp, in_hours(2)), (StreamWay::Legacy, in_hours(4))] {
        tell(&mut bench, What::Move { stream: STREAM, to: moved(to, at) });
    }
    let ways = |bench: &mut Bench<B>| {
        let ledger = bench.spool().ledger();
        [1, 2, 5, 9].map(|n| ledger.way_of(STREAM, in_hours(n)))
    };
    use StreamWay::*;
    assert_eq!(ways(&mut bench), [None, Some(Ramp), Some(Legacy), Some(New)]);
    tell(&mut bench, What::UndoMove { stream: STREAM });
    assert_eq!(ways(&mut bench), [None, Some(Ramp), Some(Ramp), Some(New)]);
    assert_eq!(bench.spool().ledger().way_of(OTHER_STREAM, in_hours(9)), None);
    // Mail asks at the moment it is there: nothing has to happen at the time itself but a look at what waits.
    let (answer, _) = bench.chore(Chore::GiveBack { most_items: 9 });
    assert_eq!(answer.next, Some(in_hours(2)));
    bench.pass(HOUR * 3);
    let message = bench.message(LANE, STREAM, 1, 10);
    let done = bench.apply(&Batch { accepts: vec![message], ..Batch::default() }).unwrap();
    assert_eq!(done.order, Some(vec![OTHER_STREAM, STREAM]), "a move has come into force: the order is told");
}

fn a_stream_keeps_its_number_whatever_stands_in_the_settings<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let names = |names: &[&str]| What::NameStreams(names.iter().map(|name| (*name).to_owned()).collect());
    tell(&mut bench, names(&["default", "digest", "receipts"]));
    tell(&mut bench, names(&["receipts", "default", "alerts"]));
    bench.crash();
    assert_eq!(bench.spool().ledger().stream_names(), ["default", "digest", "receipts", "alerts"]);
}

fn a_day_with_a_pause_or_a_brake_is_a_braked_day_also_when_it_begins_with_one<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(1);
    let braked = |bench: &mut Bench<B>, lane| bench.spool().ledger().lane(lane).unwrap().today.braked;
    assert!(!braked(&mut bench, LANE));
    tell(&mut bench, What::Brake { lane: LANE, record: brake(BrakeLevel::Slow) });
    assert!(braked(&mut bench, LANE) && !braked(&mut bench, LaneId::TOTAL), "one lane's brake is not the total's");
    tell(&mut bench, What::Pause(pause()));
    assert!(braked(&mut bench, LaneId::TOTAL));
    bench.pass(DAY);
    bench.put(1);
    assert!(braked(&mut bench, LaneId::TOTAL), "the day begins with the pause");
    tell(&mut bench, What::Resume);
    bench.crash();
    assert!(braked(&mut bench, LANE), "a pause that is over was one all the same");
    bench.pass(DAY);
    bench.put(1);
    assert!(!braked(&mut bench, LANE));
    let lane = bench.spool().ledger().lane(LANE).unwrap();
    assert_eq!((lane.brake.step, lane.brake.touched), (StageStep::None, false), "a new day asks for nothing yet");
    assert!(lane.history.iter().rev().take(2).all(|day| day.braked));
}

fn what_must_not_wait_for_new_goes_to_legacy_and_the_rest_stays<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(3));
    let maybe = bench.put(1);
    let delayed = bench.put(1);
    let claimed = bench.claim(2);
    bench.settle_all(&claimed[0], Fate::Unknown { due: bench.now.after(HOUR) });
    bench.settle_all(&claimed[1], Fate::Deferred { due: bench.now.after(HOUR) });
    let waiting = [bench.put(2), bench.put(2)];
    let message = bench.message(LANE, OTHER_STREAM, 1, 10);
    let other = message.id;
    bench.accept(message).unwrap();
    bench.gate.gives_back.insert((LANE, STREAM), Reason::Brake);
    let (first, done) = bench.chore(Chore::GiveBack { most_items: 2 });
    assert_eq!((first.items, first.next), (2, Some(bench.now)), "there is more");
    assert!(done.touched.iter().all(|t| t.queue == Queue::Legacy));
    let (second, _) = bench.chore(Chore::GiveBack { most_items: 2 });
    assert_eq!(second.items, 1);
    let mut by_queue = bench.items();
    by_queue.sort_by_key(|item| item.message);
    for item in &by_queue {
        let expected = if item.message == maybe || item.message == other { Queue::New(LANE) } else { Queue::Legacy };
        assert_eq!(item.queue, expected, "{item:?}");
        let back = item.message == delayed || waiting.contains(&item.message);
        assert_eq!((item.reason == Reason::Brake, item.due <= bench.now), (back, back || item.message == other));
    }
    bench.check();
    // What comes to the line later is noticed by itself.
    let message = bench.message(LANE, STREAM, 1, 10);
    let done = bench.apply(&Batch { accepts: vec![message], ..Batch::default() }).unwrap();
    assert_eq!(done.wake, Some(bench.now));
}

fn recipients_whose_provider_is_known_by_now_are_claimed_on_its_lane<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let mut message = bench.message(LANE, STREAM, 3, 10);
    let names = ["google@example.com", "other@example.com", "gmail@example.com"];
    for (recipient, name) in message.parts[0].recipients.iter_mut().zip(names) {
        recipient.path = name.into();
    }
    bench.accept(message).unwrap();
    bench.gate.known.insert(b'g', OTHER_LANE);
    let done = bench.claim_from(Queue::New(LANE), &[STREAM], 5);
    let paths = |claimed: &Claimed| claimed.item.envelope.recipients.iter().map(|r| r.path.clone()).collect::<Vec<_>>();
    assert_eq!(done.handed.iter().map(paths).collect::<Vec<_>>(), [vec!["other@example.com"]]);
    assert!(done.touched.iter().any(|touched| touched.queue == Queue::New(OTHER_LANE)));
    let moved = bench.claim_from(Queue::New(OTHER_LANE), &[STREAM], 5).handed.remove(0);
    assert_eq!(paths(&moved), ["google@example.com", "gmail@example.com"]);
    assert_eq!(moved.item.lane, OTHER_LANE);
    let reserved = |bench: &mut Bench<B>, lane| bench.spool().ledger().lane(lane).unwrap().today.reserved;
    assert_eq!([LANE, OTHER_LANE, LaneId::TOTAL].map(|lane| reserved(&mut bench, lane)), [1, 2, 3]);
    assert_octets(&moved);
    bench.check();
}

fn every_lane_is_looked_at_again_when_something_was_told<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    bench.put(1);
    let (_, done) = tell(&mut bench, What::Pause(pause()));
    for lane in [LaneId::TOTAL, LANE, OTHER_LANE] {
        assert!(done.refunded.contains(&Queue::New(lane)), "{lane:?}");
    }
    assert_eq!(done.wake, Some(bench.now));
}
