//! A run in which everything really goes by legacy, and the ramp only says what it would have done.
//!
//! Two parts. The gate of a dry run ([`turn`], [`admit`], [`gives_back`]) lets nothing leave by new and leaves the ramp
//! where it stands: days pass, but none of them has a limit, so none counts, and a later real run begins where the last one
//! ended, or with day 1. Beside it the same mail, without its octets, goes through a spool in memory with the gate of a real
//! run ([`DryRun`]): it reserves, waits, overflows and turns days as if. What it decides goes to the log and the metrics,
//! and is forgotten at the end of the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Notify;

use super::gate::WarmupGate;
use super::reload::LiveGate;
use crate::admin::api::AsIf;
use crate::clock::Clock;
use crate::message::{
    DaySpan, LaneId, LaneRecord, Queue, QueueId, Reason, Recipient, Route, StreamId, StreamWay, Timestamp,
};
use crate::metrics::Metrics;
use crate::spool::body::NewBody;
use crate::spool::memory::MemoryStore;
use crate::spool::{
    Accept, Admission, Ask, Batch, Chore, Claim, Claimed, Fate, Gate, Grant, Ledger, Part, Placed, Row, SetLane,
    Settle, Slots, Spool, SpoolError, State, Store, Telling, Turn, What,
};

/// Messages of which it is remembered that they would wait; beyond, decisions are no longer followed.
const WAITING_MOST_ITEMS: u64 = 100_000;
/// Items looked at in one transaction.
const STEP_ITEMS: usize = 256;
/// Transactions in one look; what is left is looked at a moment later.
const STEPS_MOST: usize = 64;
/// How often what would wait is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The same while nothing would wait: days turn all the same.
const LOOK_AROUND: Duration = Duration::from_secs(60);

// --- the gate of a dry run ------------------------------------------------------------------------------------------

/// The change of day: every lane keeps its stage, and a lane with a limit has none left to give.
pub fn turn(gate: &WarmupGate, ledger: &Ledger, now: Timestamp) -> Option<Turn> {
    // Within a day nothing changes, whatever the settings say: it is for a real run to act on them.
    if ledger.span().is_some_and(|span| now < span.ends) {
        return None;
    }
    let turn = gate.turn(ledger, now)?;
    let frozen = |record: &LaneRecord| {
        let known = match ledger.lane(record.lane) {
            Some(lane) => lane.record,
            None if record.lane == LaneId::TOTAL => {
                LaneRecord { limit: record.limit, ..LaneRecord::unmetered(record.lane) }
            }
            // A lane that is new begins with a real run.
            None => return None,
        };
        let limit = if known.complete { None } else { record.limit.map(|_| 0) };
        Some(LaneRecord { limit, ..known })
    };
    Some(Turn { lanes: turn.lanes.iter().filter_map(frozen).collect(), ..turn })
}

/// All of it goes to legacy, and nothing counts as offered.
pub fn admit() -> Admission {
    Admission { new: 0, deadline: None, new_reason: Reason::Manual, rest_reason: Reason::Manual, offered: false }
}

/// What waits for new from a real run goes to legacy, unless its stream is to wait for new however long.
pub fn gives_back(gate: &WarmupGate, ledger: &Ledger, stream: StreamId, now: Timestamp) -> Option<Reason> {
    let rules = gate.stream(ledger, stream, now);
    let may = rules.route == StreamWay::Legacy || rules.overflow().max_wait().is_some();
    may.then_some(Reason::Manual)
}

// --- the run as if --------------------------------------------------------------------------------------------------

/// See the module's header.
pub struct DryRun {
    spool: Mutex<Spool<MemoryStore>>,
    gate: Arc<LiveGate>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// By id.
    names: ArcSwap<Vec<String>>,
    /// Something waits that did not before.
    news: Notify,
}

/// What the ramp would have done with some recipients.
struct Decided {
    id: QueueId,
    stream: StreamId,
    would: Route,
    recipients: u64,
    held: bool,
    reason: Reason,
}

impl DryRun {
    /// Begins where the ramp stands in the real ledger, whose `rows` these are.
    pub fn new(
        rows: &[Row],
        gate: Arc<LiveGate>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        names: Vec<String>,
    ) -> Result<Arc<DryRun>, SpoolError> {
        let mut store = MemoryStore::new();
        store.begin()?;
        // What really waits and what is really on its way is no part of it, and its clock is never in doubt.
        let of_ramp = |row: &&Row| !matches!(row, Row::Total { .. } | Row::Outstanding { .. } | Row::Clock { .. });
        for row in rows.iter().filter(of_ramp) {
            store.save(row)?;
        }
        store.commit()?;
        let (spool, _) = Spool::open(store, clock.now())?;
        let names = ArcSwap::from_pointee(names);
        Ok(Arc::new(DryRun { spool: Mutex::new(spool), gate, clock, metrics, names, news: Notify::new() }))
    }

    /// The settings have other streams from now on.
    pub fn rename(&self, names: Vec<String>) {
        self.names.store(Arc::new(names));
    }

    /// Says of an accepted message what the ramp would have done with it: lane, stream and number of recipients of each
    /// part.
    pub fn accepted(&self, id: QueueId, parts: &[(LaneId, StreamId, u64)]) {
        let now = self.clock.now();
        let mut spool = self.lock();
        self.catch_up(&mut spool, now);
        if spool.ledger().totals().map(|(.., total)| total.items).sum::<u64>() >= WAITING_MOST_ITEMS {
            tracing::warn!(event = "dry_run.full", %id, "so much would wait that this message is not followed");
            return;
        }
        let part = |(lane, stream, recipients): &(LaneId, StreamId, u64)| Part {
            lane: *lane,
            stream: *stream,
            recipients: vec![nobody(); usize::try_from(*recipients).unwrap_or(usize::MAX)],
            only: None,
        };
        let accept = Accept {
            id,
            reverse_path: Bytes::new(),
            parameters: Bytes::new(),
            parts: parts.iter().map(part).collect(),
            body: NewBody::small(Bytes::new()),
        };
        let batch = Batch { accepts: vec![accept], ..Batch::default() };
        let Some((placed, handed)) = self.apply(&mut spool, &batch, now) else { return };
        for Placed { queue, stream, state, recipients, reason } in placed {
            let held = matches!(queue, Queue::New(_)) && state != State::InFlight;
            self.say(&Decided { id, stream, would: queue.route(), recipients, held, reason });
        }
        self.settle(&mut spool, handed, now);
        self.catch_up(&mut spool, now);
        self.news.notify_one();
    }

    /// An operator told the relay something; it holds here too.
    pub fn tell(&self, what: &What) {
        let telling = Telling { what: what.clone(), audit: None };
        let batch = Batch { chores: vec![Chore::Tell(telling)], ..Batch::default() };
        let now = self.clock.now();
        let mut spool = self.lock();
        let _ = self.apply(&mut spool, &batch, now);
        self.catch_up(&mut spool, now);
    }

    /// What the ledger would say by now.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger, Timestamp) -> T) -> T {
        let now = self.clock.now();
        let mut spool = self.lock();
        self.catch_up(&mut spool, now);
        look(spool.ledger(), now)
    }

    /// How far it would be by now.
    pub fn status(&self) -> AsIf {
        let now = self.clock.now();
        let mut spool = self.lock();
        self.catch_up(&mut spool, now);
        let ledger = spool.ledger();
        let total = ledger.lane(LaneId::TOTAL);
        let limit = total.and_then(|lane| lane.record.limit);
        AsIf {
            day: total.filter(|_| limit.is_some_and(|limit| limit > 0)).map(|lane| lane.record.stage + 1),
            limit,
            new: total.map_or(0, |lane| lane.today.sent),
            legacy: total.map_or(0, |lane| lane.today.legacy),
            held: ledger.total_of(State::Held).recipients,
        }
    }

    /// Gives tokens to what would wait, moves what would have waited too long, turns days. For ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            let waits = {
                let now = self.clock.now();
                let mut spool = self.lock();
                self.catch_up(&mut spool, now);
                spool.ledger().totals().any(|(.., total)| total.items > 0)
            };
            tokio::select! {
                () = tokio::time::sleep(if waits { LOOK } else { LOOK_AROUND }) => {}
                () = self.news.notified(), if !waits => {}
            }
        }
    }

    fn catch_up(&self, spool: &mut Spool<MemoryStore>, now: Timestamp) {
        for _ in 0..STEPS_MOST {
            let mut queues: Vec<Queue> = Vec::new();
            for (queue, _, state, total) in spool.ledger().totals() {
                if state.is_waiting() && total.items > 0 && !queues.contains(&queue) {
                    queues.push(queue);
                }
            }
            let before = items_in(spool.ledger());
            let streams = self.gate.current().order_now(spool.ledger(), now);
            let claims =
                queues.into_iter().map(|queue| Claim { queue, streams: streams.clone(), most_items: STEP_ITEMS });
            let chores =
                vec![Chore::GiveBack { most_items: STEP_ITEMS }, Chore::MoveOverdue { most_items: STEP_ITEMS }];
            let batch = Batch { claims: claims.collect(), chores, ..Batch::default() };
            let Some((_, handed)) = self.apply(spool, &batch, now) else { return };
            let idle = handed.is_empty() && before == items_in(spool.ledger());
            for claimed in &handed {
                let item = &claimed.item;
                // That it would go by new was said when it was accepted.
                if item.queue == Queue::Legacy {
                    let (id, stream, reason) = (item.message, item.stream, item.reason);
                    let recipients = item.recipients();
                    self.say(&Decided { id, stream, would: Route::Legacy, recipients, held: false, reason });
                }
            }
            self.settle(spool, handed, now);
            if idle {
                return;
            }
        }
    }

    fn apply(
        &self,
        spool: &mut Spool<MemoryStore>,
        batch: &Batch,
        now: Timestamp,
    ) -> Option<(Vec<Placed>, Vec<Claimed>)> {
        match spool.apply(batch, &Real(&self.gate.current()), &Always, now) {
            Ok(done) => Some((done.accepts.into_iter().flatten().collect(), done.handed)),
            Err(error) => {
                tracing::error!(event = "dry_run.failed", reason = %error);
                None
            }
        }
    }

    /// Everything that would have been sent was taken.
    fn settle(&self, spool: &mut Spool<MemoryStore>, handed: Vec<Claimed>, now: Timestamp) {
        if handed.is_empty() {
            return;
        }
        let names = self.names.load();
        let settles = handed.into_iter().map(|Claimed { item, .. }| {
            let name = names.get(usize::from(item.stream.0)).map_or("default", String::as_str);
            let (route, reason, recipients) = (item.queue.route(), item.reason, item.recipients());
            self.metrics.dry_run_recipients.count(name, route, reason, recipients);
            let fates = vec![Fate::Relayed; item.envelope.recipients.len()];
            Settle { item, reply: String::new(), expires: Timestamp::NEVER, fates, report: None }
        });
        let batch = Batch { settles: settles.collect(), ..Batch::default() };
        let _ = self.apply(spool, &batch, now);
    }

    fn say(&self, decided: &Decided) {
        let Decided { id, stream, would, recipients, held, reason } = decided;
        let names = self.names.load();
        let stream = names.get(usize::from(stream.0)).map_or("default", String::as_str);
        tracing::info!(
            event = "route.decided", id = %id, stream, route = "legacy", dry_run = true, would = would.name(),
            rcpts = recipients, held, reason = reason.name()
        );
    }

    fn lock(&self) -> MutexGuard<'_, Spool<MemoryStore>> {
        // A panic inside leaves numbers that nothing depends on.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn items_in(ledger: &Ledger) -> [u64; 2] {
    let waits = |queue_is: fn(Queue) -> bool| {
        let waiting = ledger.totals().filter(|(queue, _, state, _)| queue_is(*queue) && state.is_waiting());
        waiting.map(|(.., total)| total.items).sum()
    };
    [waits(|queue| queue == Queue::Legacy), waits(|queue| queue != Queue::Legacy)]
}

/// Stands for a recipient; only their number counts.
fn nobody() -> Recipient {
    Recipient { path: Bytes::from_static(b"nobody@invalid"), parameters: Bytes::new() }
}

/// A connection stands ready for everything.
struct Always;

impl Slots for Always {
    fn take(&self, _: Route) -> bool {
        true
    }
    fn give_back(&self, _: Route, _: usize) {}
}

/// The gate of a real run, for recipients without a name: they stay in the lane they were put in.
struct Real<'a>(&'a WarmupGate);

impl Gate for Real<'_> {
    fn turn(&self, ledger: &Ledger, now: Timestamp) -> Option<Turn> {
        self.0.turn(ledger, now)
    }

    fn admit(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Admission {
        self.0.admit(ledger, ask, now)
    }

    fn grant(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Grant {
        self.0.grant(ledger, ask, now)
    }

    fn life(&self) -> Option<Duration> {
        None
    }

    fn gives_back(&self, ledger: &Ledger, lane: LaneId, stream: StreamId, now: Timestamp) -> Option<Reason> {
        self.0.gives_back(ledger, lane, stream, now)
    }

    fn watches_bursts(&self, stream: StreamId) -> bool {
        self.0.watches_bursts(stream)
    }

    fn set_day(&self, ledger: &Ledger, stage: u32, now: Timestamp) -> Vec<SetLane> {
        self.0.set_day(ledger, stage, now)
    }

    fn span_at(&self, now: Timestamp) -> Option<DaySpan> {
        self.0.span_at(now)
    }
}
