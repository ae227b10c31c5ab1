//! What operators do to queued mail by hand: hurry, reroute, remove. Each only as far as it is safe, and counted.

use super::harness::*;
use mailramp::message::*;
use mailramp::spool::by_hand::{Acted, Action, Audit, Left, Order};
use mailramp::spool::*;

on_both! {
    mail_that_waits_goes_by_the_other_route_and_back_through_the_gate,
    what_is_on_its_way_or_may_have_been_delivered_is_left_alone_and_counted,
    only_the_recipients_of_a_domain_are_moved_or_removed_and_the_others_stay,
    what_was_removed_is_gone_with_its_body_and_nothing_else,
    a_dead_letter_comes_back_with_a_new_life,
    a_delayed_message_is_due_at_once_after_a_flush,
    an_order_that_the_disk_refuses_did_nothing,
}

fn order(action: Action, ids: &[ItemId], domain: Option<&str>) -> Order {
    let audit = Audit { job: 7, actor: 1000, detail: action.name().into() };
    Order { action, ids: ids.to_vec(), domain: domain.map(String::from), audit }
}

fn act<B: Backend>(bench: &mut Bench<B>, order: Order) -> (usize, u64, Acted) {
    let (answer, _) = bench.chore(Chore::ByHand(order));
    (answer.items, answer.recipients, *answer.by_hand.expect("an answer to it"))
}

/// Items of a message, in the order of their ids.
fn of<B: Backend>(bench: &mut Bench<B>, message: QueueId) -> Vec<Item> {
    bench.items().into_iter().filter(|item| item.message == message).collect()
}

fn id_of<B: Backend>(bench: &mut Bench<B>, message: QueueId) -> ItemId {
    of(bench, message)[0].id
}

const TO_LEGACY: Action = Action::Reroute(Route::Legacy);
const TO_NEW: Action = Action::Reroute(Route::New);

fn mail_that_waits_goes_by_the_other_route_and_back_through_the_gate<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate { wait: Some(HOUR), ..FixedGate::of(2) });
    let messages = [bench.put(1), bench.put(3)];
    let ids = messages.map(|message| id_of(&mut bench, message));
    let (items, recipients, acted) = act(&mut bench, order(TO_LEGACY, &ids, None));
    assert_eq!((items, recipients, acted.bytes, acted.left), (2, 4, 200, Left::default()));
    assert_eq!(acted.messages, messages);
    bench.check();
    assert!(bench.claim(9).is_empty(), "nothing is left in the line of new");
    let by_legacy = bench.claim_from(Queue::Legacy, &[STREAM], 1).handed.remove(0);
    assert_eq!(
        (by_legacy.item.message, by_legacy.item.reason, by_legacy.item.reservation),
        (messages[0], Reason::Manual, None)
    );
    assert_octets(&by_legacy);
    bench.settle_all(&by_legacy, Fate::Relayed);
    // Back again: three recipients, and the limit is two.
    assert_eq!(act(&mut bench, order(TO_NEW, &ids, None)).1, 3);
    let item = of(&mut bench, messages[1]).remove(0);
    assert_eq!((item.queue, item.state, item.deadline), (Queue::New(LANE), State::Held, None));
    assert_eq!(bench.claim(9).iter().map(|c| c.item.recipients()).sum::<u64>(), 2, "the limit holds");
    assert_eq!(bench.reserved(), (2, 2));
    bench.check();
}

fn what_is_on_its_way_or_may_have_been_delivered_is_left_alone_and_counted<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let unknown = bench.put(1);
    let claimed = bench.claim(1).remove(0);
    let due = bench.now.after(HOUR);
    bench.settle(&claimed, &[Fate::Unknown { due }]);
    let on_its_way = bench.put(1);
    let flying = bench.claim(1).remove(0);
    let waiting = bench.put(1);
    let ids = [unknown, on_its_way, waiting].map(|message| id_of(&mut bench, message));
    let missing = ItemId(999);
    let (items, _, acted) = act(&mut bench, order(TO_LEGACY, &[ids[0], ids[1], ids[2], missing], None));
    assert_eq!(items, 1);
    assert_eq!(acted.left, Left { in_flight: 1, maybe_delivered: 1, gone: 1, ..Left::default() });
    let kept = of(&mut bench, unknown).remove(0);
    assert_eq!((kept.queue, kept.maybe, kept.due), (Queue::New(LANE), true, due), "never by both routes");
    // On its own route it may be hurried.
    assert_eq!(act(&mut bench, order(Action::Flush, &ids[..1], None)).0, 1);
    assert_eq!(of(&mut bench, unknown)[0].queue, Queue::New(LANE));
    // What is on the wire is settled as if nobody had asked.
    let (_, _, acted) = act(&mut bench, order(Action::Drop, &ids[1..2], None));
    assert_eq!(acted.left.in_flight, 1);
    bench.settle_all(&flying, Fate::Relayed);
    assert!(of(&mut bench, on_its_way).is_empty());
    assert_eq!(bench.reserved().0, 2, "tokens of what was sent or may have been stay used");
    bench.check();
}

fn only_the_recipients_of_a_domain_are_moved_or_removed_and_the_others_stay<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let mut message = bench.message(LANE, STREAM, 0, 9000);
    let all = ["a@one.example", "b@two.example", "c@ONE.example", "d@three.example"];
    message.parts[0].recipients = all.map(recipient).into();
    let id = message.id;
    bench.accept(message).unwrap();
    let item = id_of(&mut bench, id);
    let (items, recipients, _) = act(&mut bench, order(TO_LEGACY, &[item], Some("one.example")));
    assert_eq!((items, recipients), (1, 2));
    let there = |bench: &mut Bench<B>| -> Vec<(Queue, Vec<String>)> {
        of(bench, id).iter().map(|item| (item.queue, names(item))).collect()
    };
    let new = (Queue::New(LANE), vec![all[1].to_owned(), all[3].to_owned()]);
    assert_eq!(there(&mut bench), [new, (Queue::Legacy, vec![all[0].to_owned(), all[2].to_owned()])]);
    bench.check();
    assert_eq!(act(&mut bench, order(Action::Drop, &[item], Some("two.example"))).1, 1);
    assert_eq!(there(&mut bench)[0].1, [all[3]]);
    // Nobody is there any more: nothing is done, and it is said.
    let (items, _, acted) = act(&mut bench, order(Action::Drop, &[item], Some("two.example")));
    assert_eq!((items, acted.left.gone), (0, 1));
    bench.check();
    bench.claim_from(Queue::Legacy, &[STREAM], 9).handed.iter().for_each(assert_octets);
    bench.claim(9).iter().for_each(assert_octets);
}

fn what_was_removed_is_gone_with_its_body_and_nothing_else<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(1));
    let messages = [bench.put(1), bench.put(2), bench.put(1)];
    // Split by the limit: one recipient on the wire, one that waits; both name one body.
    let first = bench.claim(1).remove(0);
    bench.settle_all(&first, Fate::Untouched);
    let ids = messages.map(|message| id_of(&mut bench, message));
    let before = bench.reserved();
    let (items, recipients, acted) = act(&mut bench, order(Action::Drop, &ids[..2], None));
    assert_eq!((items, recipients, &acted.messages[..]), (2, 3, &messages[..2]));
    assert_eq!((bench.bodies(), bench.reserved()), (1, before), "tokens are not touched");
    bench.check();
    bench.crash();
    assert_eq!(bench.items().iter().map(|item| item.message).collect::<Vec<_>>(), [messages[2]]);
    bench.check();
}

fn a_dead_letter_comes_back_with_a_new_life<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let message = bench.put(1);
    let claimed = bench.claim(1).remove(0);
    bench.settle_all(&claimed, Fate::Dead { until: bench.now.after(DAY) });
    let id = id_of(&mut bench, message);
    let (items, _, acted) = act(&mut bench, order(Action::Flush, &[id], None));
    assert_eq!((items, acted.left.dead), (0, 1), "a flush wakes nobody");
    assert_eq!(act(&mut bench, order(TO_NEW, &[id], None)).0, 1);
    let item = of(&mut bench, message).remove(0);
    assert_eq!((item.state, item.expires, item.attempts), (State::Held, None, 0));
    bench.pass(2 * DAY);
    assert_eq!(bench.chore(Chore::TakeExpired { most_items: 9 }).0.items, 0, "its old end does not count");
    let again = bench.claim(1).remove(0);
    bench.settle_all(&again, Fate::Dead { until: bench.now.after(DAY) });
    assert_eq!(act(&mut bench, order(Action::Drop, &[id], None)).0, 1);
    assert_eq!(bench.bodies(), 0);
    bench.check();
}

fn a_delayed_message_is_due_at_once_after_a_flush<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let message = bench.put(2);
    let claimed = bench.claim(1).remove(0);
    bench.settle_all(&claimed, deferred(bench.now.after(HOUR)));
    assert!(bench.claim(1).is_empty());
    let id = id_of(&mut bench, message);
    let (answer, done) = bench.chore(Chore::ByHand(order(Action::Flush, &[id], None)));
    assert_eq!((answer.items, answer.recipients), (1, 2));
    assert_eq!(
        done.touched,
        [Touched { queue: Queue::New(LANE), stream: STREAM, due: bench.now }],
        "its line hears of it"
    );
    assert_eq!(act(&mut bench, order(Action::Flush, &[id], None)).2.left.already, 1);
    assert_eq!(bench.claim(1).len(), 1);
    bench.check();
}

fn an_order_that_the_disk_refuses_did_nothing<B: Backend>() {
    let mut bench = Bench::<B>::new(FixedGate::of(100));
    let messages = [bench.put(1), bench.put(1)];
    let ids = messages.map(|message| id_of(&mut bench, message));
    let before = bench.items();
    for step in 0.. {
        bench.faults().fail_after = Some(step);
        let chores = vec![Chore::ByHand(order(Action::Drop, &ids, None))];
        let failed = bench.apply(&Batch { chores, ..Batch::default() }).is_err();
        bench.faults().fail_after = None;
        if !failed {
            assert!(step > 5, "each of its steps was refused once");
            break;
        }
        assert_eq!(bench.items(), before);
        bench.check();
    }
    assert_eq!(bench.bodies(), 0);
}

#[test]
fn the_audit_has_one_entry_for_all_steps_of_a_job() {
    let mut bench = Bench::<Sqlite>::new(FixedGate::of(100));
    let messages = [bench.put(1), bench.put(2), bench.put(1)];
    let ids = messages.map(|message| id_of(&mut bench, message));
    assert!(act(&mut bench, order(Action::Drop, &ids[..1], None)).2.is_first);
    assert!(!act(&mut bench, order(Action::Drop, &ids[1..2], None)).2.is_first);
    let mut other = order(TO_LEGACY, &ids[2..], None);
    other.audit.job = 8;
    assert!(act(&mut bench, other).2.is_first);
    bench.crash();
    let rows = bench.backend.rows();
    let mut statement = rows.prepare("SELECT job, actor, action, detail, items, rcpts, bytes FROM audit").unwrap();
    type Entry = (i64, u32, String, String, u64, u64, u64);
    let read =
        |r: &rusqlite::Row<'_>| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?, r.get(6)?));
    let entries: Vec<Entry> = statement.query_map([], read).unwrap().map(Result::unwrap).collect();
    let entry =
        |job, action: &str, items, rcpts| (job, 1000, action.to_owned(), action.to_owned(), items, rcpts, items * 100);
    assert_eq!(entries, [entry(7, "drop", 2, 3), entry(8, "reroute", 1, 1)]);
}

#[test]
fn the_audit_keeps_its_newest_entries_only() {
    let mut bench = Bench::<Sqlite>::new(FixedGate::of(100));
    let mut nothing = order(Action::Drop, &[], None);
    for jobs in 0..11 {
        let chores = (0..1_000).map(|n| {
            nothing.audit.job = jobs * 1_000 + n;
            Chore::ByHand(nothing.clone())
        });
        let chores = chores.collect();
        bench.apply(&Batch { chores, ..Batch::default() }).unwrap();
    }
    assert_eq!(bench.backend.number("SELECT count(*) FROM audit"), 10_000);
    assert_eq!(bench.backend.number("SELECT min(job) FROM audit"), 1_000);
}
