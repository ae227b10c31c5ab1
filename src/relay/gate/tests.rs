//! The gate over a spool in memory: lanes, pauses, brakes, set days and moves as decisions see them.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::message::{BrakeLevel, BrakeRecord, Pause, QueueId, StageStep, StreamMove};
use crate::policy::{Curve, Overflow, Provider};
use crate::spool::body::NewBody;
use crate::spool::memory::MemoryStore;
use crate::spool::{Accept, Batch, Chore, Claim, Fate, NoSlots, Part, Placed, Settle, Spool, Telling, Told, What};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const GOOGLE: LaneId = Provider::Google.lane();
const YAHOO: LaneId = Provider::Yahoo.lane();
const BULK: StreamId = StreamId(1);

struct Bench {
    spool: Spool<MemoryStore>,
    gate: WarmupGate,
    now: Timestamp,
    messages: u64,
}

/// No pace, so that a day's limit leaves at once.
fn rules() -> Rules {
    Rules {
        target: 100_000,
        start: Some(crate::message::Day(20_000)),
        curve: Curve::formula(1000.0, 2.0).unwrap(),
        hourly: 1.0,
        burst: 1.0,
        ..Rules::default()
    }
}

fn gate(lanes: Lanes) -> WarmupGate {
    let streams = vec![StreamRules::default(), StreamRules { priority: 10, ..StreamRules::default() }];
    WarmupGate::new(Some(rules()), Calendar::utc(), streams).with_lanes(lanes)
}

impl Bench {
    /// At 10:00 of the first day.
    fn new(gate: WarmupGate) -> Bench {
        let now = Timestamp::from_seconds(20_000 * 86_400).after(HOUR * 10);
        let (spool, _) = Spool::open(MemoryStore::new(), now).unwrap();
        let mut bench = Bench { spool, gate, now, messages: 0 };
        bench.apply(Batch { chores: vec![Chore::DropDead { most_items: 1 }], ..Batch::default() });
        bench
    }

    fn apply(&mut self, batch: Batch) -> crate::spool::Done {
        self.spool.apply(&batch, &self.gate, &NoSlots, self.now).unwrap()
    }

    fn tell(&mut self, what: What) -> Told {
        let telling = Telling { what, audit: None };
        let mut done = self.apply(Batch { chores: vec![Chore::Tell(telling)], ..Batch::default() });
        *done.chores.remove(0).told.unwrap()
    }

    fn put(&mut self, lane: LaneId, stream: StreamId, count: usize) -> Vec<Placed> {
        self.messages += 1;
        let recipient =
            |n| crate::message::Recipient { path: format!("{n}@example.com").into(), parameters: Bytes::new() };
        let recipients = (0..count).map(recipient).collect();
        let accept = Accept {
            id: QueueId(self.messages),
            reverse_path: Bytes::new(),
            parameters: Bytes::new(),
            parts: vec![Part { lane, stream, recipients, only: None }],
            body: NewBody::small(Bytes::from_static(b"x\r\n")),
        };
        self.apply(Batch { accepts: vec![accept], ..Batch::default() }).accepts.remove(0)
    }

    /// Everything leaves that may. Returns the recipients.
    fn send(&mut self, lane: LaneId) -> u64 {
        let claim = Claim { queue: Queue::New(lane), streams: vec![StreamId::DEFAULT, BULK], most_items: 64 };
        let done = self.apply(Batch { claims: vec![claim], ..Batch::default() });
        let settle = |claimed: crate::spool::Claimed| {
            let fates = vec![Fate::Relayed; claimed.item.envelope.recipients.len()];
            Settle { item: claimed.item, reply: String::new(), expires: Timestamp::NEVER, fates, report: None }
        };
        let settles: Vec<Settle> = done.handed.into_iter().map(settle).collect();
        let sent = settles.iter().map(|settle| settle.fates.len() as u64).sum();
        self.apply(Batch { settles, ..Batch::default() });
        sent
    }

    /// Offers and sends the whole limit of a lane, and goes on to the next day.
    fn full_day(&mut self, lanes: &[LaneId]) {
        for lane in lanes {
            let limit = self.limit(*lane).unwrap();
            self.put(*lane, StreamId::DEFAULT, limit as usize);
            assert_eq!(self.send(*lane), limit, "{lane:?}");
        }
        self.next_day();
    }

    fn next_day(&mut self) {
        // Later in the day, so that the last 24 hours hold nothing of the day before.
        self.now = self.now.after(DAY + HOUR / 2);
        self.apply(Batch { chores: vec![Chore::DropDead { most_items: 1 }], ..Batch::default() });
    }

    fn lane(&self, lane: LaneId) -> &LaneLedger {
        self.spool.ledger().lane(lane).unwrap()
    }

    fn limit(&self, lane: LaneId) -> Option<u64> {
        self.lane(lane).record.limit
    }

    fn admit(&self, lane: LaneId, stream: StreamId, recipients: u64) -> (u64, Reason) {
        let admission = self.gate.admit(self.spool.ledger(), Ask { lane, stream, recipients }, self.now);
        (admission.new, admission.rest_reason)
    }
}

fn placed(placed: &[Placed]) -> Vec<(Queue, u64, Reason)> {
    placed.iter().map(|part| (part.queue, part.recipients, part.reason)).collect()
}

fn brake(level: BrakeLevel, until: Timestamp) -> BrakeRecord {
    let (step, reason) = (StageStep::Hold, "421 4.7.28".to_owned());
    BrakeRecord { level, since: Timestamp(0), until, step, touched: true, reason }
}

#[test]
fn the_lanes_of_the_first_day_share_the_curve_and_the_total_holds_too() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    let limits = [LaneId::TOTAL, GOOGLE, YAHOO].map(|lane| bench.limit(lane));
    assert_eq!(limits, [Some(1000), Some(450), Some(80)]);
    bench.put(GOOGLE, StreamId::DEFAULT, 700);
    assert_eq!(bench.send(GOOGLE), 450);
    bench.put(YAHOO, StreamId::DEFAULT, 500);
    assert_eq!(bench.send(YAHOO), 80);
    assert_eq!(bench.lane(LaneId::TOTAL).reserved_today(), 530);
}

#[test]
fn a_share_follows_what_was_offered_and_a_given_one_does_not() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    bench.put(GOOGLE, StreamId::DEFAULT, 9_000);
    bench.send(GOOGLE);
    bench.next_day();
    let share = bench.lane(GOOGLE).record.share;
    assert!((share - (9_000.0 + 450.0) / (9_000.0 + 1_000.0)).abs() < 1e-9, "{share}");
    let mut bench = Bench::new(gate(Lanes::given(&[(Provider::Google, 0.25)]).unwrap()));
    assert_eq!((bench.limit(GOOGLE), bench.limit(Provider::Other.lane())), (Some(250), Some(750)));
    assert!(bench.spool.ledger().lane(YAHOO).is_none(), "yahoo's mail counts as other");
    bench.put(GOOGLE, StreamId::DEFAULT, 9_000);
    bench.next_day();
    assert_eq!(bench.lane(GOOGLE).record.share, 0.25);
}

#[test]
fn lanes_that_come_into_a_ramp_under_way_stand_where_the_total_stands() {
    let mut bench = Bench::new(gate(Lanes::Off));
    for _ in 0..3 {
        bench.full_day(&[LaneId::TOTAL]);
    }
    assert_eq!(bench.limit(LaneId::TOTAL), Some(8_000));
    bench.gate = gate(Lanes::Auto);
    bench.apply(Batch { chores: vec![Chore::DropDead { most_items: 1 }], ..Batch::default() });
    let limits = [LaneId::TOTAL, GOOGLE, YAHOO].map(|lane| (bench.limit(lane), bench.lane(lane).record.stage));
    assert_eq!(limits, [(Some(8_000), 3), (Some(3_600), 3), (Some(640), 3)], "within the day");
    // A day without much mail forgets nothing of what the total had earned.
    bench.next_day();
    assert_eq!([LaneId::TOTAL, GOOGLE, YAHOO].map(|lane| bench.limit(lane)), [Some(8_000), Some(3_600), Some(640)]);
}

#[test]
fn without_lanes_what_waited_in_one_goes_by_the_total() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    bench.put(GOOGLE, StreamId::DEFAULT, 5);
    bench.gate = gate(Lanes::Off);
    assert_eq!((bench.send(GOOGLE), bench.send(LaneId::TOTAL)), (0, 5));
    assert_eq!(bench.lane(GOOGLE).today.reserved, 0);
}

#[test]
fn a_set_day_lowers_at_once_and_raises_tomorrow() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    let lanes = [GOOGLE, YAHOO];
    assert_eq!(bench.tell(What::SetDay { stage: 2 }), Told::Done);
    assert_eq!(bench.limit(LaneId::TOTAL), Some(1000), "not today");
    bench.next_day();
    assert_eq!([LaneId::TOTAL, GOOGLE].map(|lane| bench.limit(lane)), [Some(4_000), Some(1_800)]);
    bench.full_day(&lanes);
    bench.tell(What::SetDay { stage: 0 });
    assert_eq!([LaneId::TOTAL, GOOGLE].map(|lane| bench.lane(lane).record.stage), [0, 0]);
    assert_eq!(bench.limit(LaneId::TOTAL), Some(1_000), "at once");
    assert!(bench.limit(GOOGLE).unwrap() <= 1_000);
    bench.next_day();
    assert!(bench.limit(LaneId::TOTAL).unwrap() <= 1_000, "what was sent before does not bring it back");
    assert!(bench.limit(GOOGLE).unwrap() <= 1_000);
}

#[test]
fn without_a_ramp_mail_has_no_deadline_and_a_pause_stops_it_all_the_same() {
    let gate = WarmupGate::new(None, Calendar::utc(), vec![StreamRules::default(), StreamRules::default()]);
    let mut bench = Bench::new(gate);
    let ask = Ask { lane: LaneId::TOTAL, stream: BULK, recipients: 5 };
    let admission = bench.gate.admit(bench.spool.ledger(), ask, bench.now);
    assert_eq!((admission.new, admission.deadline), (5, None), "only the server keeps it waiting");
    bench.tell(What::Pause(Pause { since: bench.now, actor: 0, reason: "listed".into() }));
    assert_eq!(bench.admit(LaneId::TOTAL, BULK, 5), (0, Reason::Paused));
    bench.tell(What::Resume);
    let told = bench.now;
    let to = StreamMove { id: 0, to: StreamWay::Legacy, at: told, told, actor: 0, reason: String::new() };
    bench.tell(What::Move { stream: BULK, to });
    assert_eq!(bench.admit(LaneId::TOTAL, BULK, 5), (0, Reason::Manual));
}

#[test]
fn before_the_start_no_day_can_be_set() {
    let mut late = rules();
    late.start = Some(crate::message::Day(20_005));
    let mut bench = Bench::new(WarmupGate::new(Some(late), Calendar::utc(), vec![StreamRules::default()]));
    assert!(matches!(bench.tell(What::SetDay { stage: 3 }), Told::Nothing(_)));
    assert_eq!(bench.limit(LaneId::TOTAL), Some(0));
}

#[test]
fn a_pause_lets_nothing_out_and_what_does_not_hold_goes_to_legacy() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    bench.put(GOOGLE, StreamId::DEFAULT, 3);
    bench.gate.streams[1].overflow = Overflow::Hold;
    let held = bench.put(GOOGLE, BULK, 2);
    assert_eq!(held[0].queue, Queue::New(GOOGLE));
    bench.tell(What::Pause(Pause { since: bench.now, actor: 0, reason: "listed".into() }));
    assert_eq!(bench.send(GOOGLE), 0);
    assert_eq!(placed(&bench.put(YAHOO, StreamId::DEFAULT, 4)), [(Queue::Legacy, 4, Reason::Paused)]);
    let done = bench.apply(Batch { chores: vec![Chore::GiveBack { most_items: 9 }], ..Batch::default() });
    assert_eq!((done.chores[0].items, done.chores[0].recipients), (1, 3), "the stream that holds stays");
    assert_eq!(bench.gate.state(bench.spool.ledger(), bench.lane(GOOGLE), bench.now), Some(State::Paused));
    bench.next_day();
    assert_eq!(bench.lane(LaneId::TOTAL).record.braked_run, 1, "the day does not count");
    bench.tell(What::Resume);
    assert_eq!(bench.send(GOOGLE), 2);
}

#[test]
fn a_brake_shuts_its_lane_alone_until_its_time_and_then_lets_it_go_slow() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    let until = bench.now.after(HOUR);
    bench.tell(What::Brake { lane: GOOGLE, record: brake(BrakeLevel::Suspended, until) });
    assert_eq!(bench.admit(GOOGLE, StreamId::DEFAULT, 5), (0, Reason::Brake));
    assert_eq!(bench.admit(YAHOO, StreamId::DEFAULT, 5), (5, Reason::InQuota));
    let ask = Ask { lane: GOOGLE, stream: StreamId::DEFAULT, recipients: 5 };
    let refused = bench.gate.grant(bench.spool.ledger(), ask, bench.now);
    assert_eq!(refused, Grant::None { until, stream_only: false });
    bench.now = until;
    let slow = bench.gate.view_of(bench.spool.ledger(), GOOGLE, StreamId::DEFAULT, bench.now).unwrap();
    assert_eq!(slow.pace.map(|pace| pace.hour_cap()), Some(112), "a quarter of 450 an hour");
    bench.now = until.after(HOUR);
    assert_eq!(bench.admit(GOOGLE, StreamId::DEFAULT, 450), (450, Reason::InQuota));
}

#[test]
fn a_lane_without_a_limit_is_held_back_by_a_brake_and_a_pause_all_the_same() {
    let mut bench = Bench::new(gate(Lanes::Off));
    bench.gate.rules.as_mut().unwrap().target = 1;
    for _ in 0..4 {
        bench.next_day();
    }
    assert_eq!(bench.limit(LaneId::TOTAL), None, "complete");
    let ask = Ask { lane: LaneId::TOTAL, stream: StreamId::DEFAULT, recipients: 5 };
    assert_eq!(bench.gate.grant(bench.spool.ledger(), ask, bench.now), Grant::Unmetered);
    bench.tell(What::Brake { lane: LaneId::TOTAL, record: brake(BrakeLevel::Paused, Timestamp(0)) });
    assert!(matches!(bench.gate.grant(bench.spool.ledger(), ask, bench.now), Grant::None { .. }));
    assert_eq!(bench.admit(LaneId::TOTAL, StreamId::DEFAULT, 5), (0, Reason::Brake));
}

#[test]
fn a_stream_goes_where_it_was_moved_from_that_moment_on_and_back_when_it_is_undone() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    let (told, later) = (bench.now, bench.now.after(HOUR));
    let to = |to, at| StreamMove { id: 0, to, at, told, actor: 0, reason: String::new() };
    bench.tell(What::Move { stream: BULK, to: to(StreamWay::New, later) });
    assert_eq!(bench.gate.order_now(bench.spool.ledger(), bench.now), [StreamId::DEFAULT, BULK]);
    bench.now = later;
    assert_eq!(bench.gate.order_now(bench.spool.ledger(), bench.now), [BULK, StreamId::DEFAULT], "the first claim");
    assert_eq!(bench.admit(GOOGLE, BULK, 9_000), (9_000, Reason::Manual), "it holds");
    bench.tell(What::Move { stream: BULK, to: to(StreamWay::Legacy, later) });
    assert_eq!(placed(&bench.put(GOOGLE, BULK, 9)), [(Queue::Legacy, 9, Reason::Manual)]);
    assert_eq!(bench.lane(GOOGLE).today.offered, 0, "no part of the ramp");
    for _ in 0..2 {
        assert!(matches!(bench.tell(What::UndoMove { stream: BULK }), Told::Undone(_)));
    }
    assert_eq!(bench.admit(GOOGLE, BULK, 9), (9, Reason::InQuota));
}

#[test]
fn what_waits_of_a_stream_that_is_moved_to_legacy_goes_there() {
    let mut bench = Bench::new(gate(Lanes::Auto));
    bench.put(GOOGLE, BULK, 9);
    bench.put(GOOGLE, StreamId::DEFAULT, 1);
    let told = bench.now;
    let to = StreamMove { id: 0, to: StreamWay::Legacy, at: told, told, actor: 0, reason: String::new() };
    bench.tell(What::Move { stream: BULK, to });
    let done = bench.apply(Batch { chores: vec![Chore::GiveBack { most_items: 9 }], ..Batch::default() });
    assert_eq!(done.chores[0].recipients, 9);
    assert_eq!(bench.send(GOOGLE), 1);
}

#[test]
fn a_stream_whose_mail_comes_at_once_waits_longer_on_auto() {
    let mut bench = Bench::new(gate(Lanes::Off));
    bench.gate.streams[1].auto_wait = true;
    bench.gate.rules.as_mut().unwrap().hourly = 0.2;
    let wait = |bench: &Bench, stream| bench.gate.stream(bench.spool.ledger(), stream, bench.now).overflow().max_wait();
    bench.put(LaneId::TOTAL, BULK, 500);
    assert_eq!(wait(&bench, BULK), Some(HOUR / 4), "nothing is known on the first day");
    bench.next_day();
    assert_eq!(wait(&bench, BULK), Some(HOUR * 6));
    assert_eq!(wait(&bench, StreamId::DEFAULT), Some(HOUR / 4));
    // A restart changes no answer.
    let store = std::mem::replace(&mut bench.spool, Spool::open(MemoryStore::new(), bench.now).unwrap().0).into_store();
    bench.spool = Spool::open(store, bench.now).unwrap().0;
    assert_eq!(wait(&bench, BULK), Some(HOUR * 6));
}

#[test]
fn recipients_go_to_the_lane_that_the_directory_knows_by_now() {
    struct Known;
    impl Directory for Known {
        fn lane_of(&self, recipient: &Recipient) -> Option<LaneId> {
            recipient.path.starts_with(b"1").then_some(YAHOO)
        }
    }
    let mut bench = Bench::new(gate(Lanes::Auto).with_directory(Arc::new(Known)));
    let other = Provider::Other.lane();
    bench.put(other, StreamId::DEFAULT, 3);
    assert_eq!((bench.send(other), bench.send(YAHOO)), (2, 1));
    assert_eq!([other, YAHOO, LaneId::TOTAL].map(|lane| bench.lane(lane).today.sent), [2, 1, 3]);
}
