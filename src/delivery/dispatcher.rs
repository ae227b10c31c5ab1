//! Keeps mail moving: claims when a connection stands ready, opens connections when mail waits, settles every outcome.
//!
//! One loop decides; one task per open connection sends. There is no task, timer or entry per queued message. A claim
//! is only made for connections that stand ready, so tokens are not reserved for a next hop that cannot be reached.
//! What is claimed is sent or given back: a claim that has become stale before MAIL goes back to the line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::{Connection, Transaction};
use super::opening::Target;
use super::outcome::{Cause, Report, Verdict};
use super::pool::Pool;
use super::schedule::Schedule;
use super::settle::{Ended, SettleRules, said};
use crate::clock::Clock;
use crate::message::{Queue, QueueId, Route, StreamId, Timestamp};
use crate::metrics::{AttemptResult, Category, DayOutcome, Label, Metrics, Provider, ReplyClass};
use crate::reply::Reply;
use crate::spool::committer::{Outlet, SpoolHandle};
use crate::spool::{BodySource, Chore, Claim, Claimed, Done, Fate, Settle, Slots, SpoolError, Touched};

/// Items taken with one claim.
const CLAIM_MOST: usize = 64;
/// Items moved, expired or dropped in one transaction.
const CHORE_MOST: usize = 256;
/// A connection that had nothing to send for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// A claim older than this, or of an earlier quarter-hour, is given back before MAIL. Real time: it is about connections
/// that are slow, not about the ramp.
const CLAIM_FRESH: Duration = Duration::from_secs(60);
/// Bodies up to here are read into memory before they are sent.
const IN_MEMORY_MAX: u64 = 1 << 20;
/// After a spool error that passes (a full disk), before asking again.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);
/// The loop looks around at least this often: other processes may have made room on the disk.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// Octets of a message that a report can quote from.
const HEADER_READ: usize = super::dsn::HEADER_MAX_OCTETS;

/// One route and its connections.
pub struct RoutePlan {
    /// Where it leads.
    pub target: Target,
    /// Most connections at once.
    pub connections: usize,
    /// Transactions after which a connection is closed.
    pub messages_per_connection: u64,
}

/// What the dispatcher is made of.
pub struct Plan {
    /// The server being warmed.
    pub new: RoutePlan,
    /// The old one, if there is one.
    pub legacy: Option<RoutePlan>,
    /// What failure means.
    pub settle: SettleRules,
    /// Streams in the order in which they are served.
    pub order: Vec<StreamId>,
}

/// Hands out queue ids: rising with time, never the same twice.
#[derive(Debug)]
pub struct QueueIds(AtomicU64);

/// 2020-01-01T00:00:00Z in milliseconds: 42 bits from there reach the year 2159.
const QUEUE_ID_EPOCH_MILLIS: i64 = 1_577_836_800_000;
const QUEUE_ID_COUNTER_BITS: u32 = 18;

impl QueueIds {
    /// Ids above `last`.
    pub fn after(last: QueueId) -> Self {
        QueueIds(AtomicU64::new(last.0))
    }

    /// A fresh one.
    pub fn next(&self, now: Timestamp) -> QueueId {
        let millis = u64::try_from(now.0 / 1_000_000 - QUEUE_ID_EPOCH_MILLIS).unwrap_or(0);
        let by_time = (millis << QUEUE_ID_COUNTER_BITS) & ((1 << 60) - 1);
        let next = |last: u64| Some(by_time.max(last + 1));
        let last = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).expect("always some");
        QueueId(by_time.max(last + 1))
    }
}

struct RouteState {
    plan: RoutePlan,
    pool: Pool,
}

#[derive(Default)]
struct News {
    touched: Vec<Touched>,
    refunded: Vec<Queue>,
    wake: Option<Timestamp>,
    expired: Vec<Claimed>,
    /// Claimed for connections that died in between.
    stranded: Vec<Claimed>,
}

/// See the module's header. Shared by the committer (as its outlet), the loop and the connections' tasks.
pub struct Dispatcher {
    new: RouteState,
    legacy: Option<RouteState>,
    settle: SettleRules,
    order: Vec<StreamId>,
    spool: OnceLock<SpoolHandle>,
    clock: Arc<dyn Clock>,
    ids: Arc<QueueIds>,
    metrics: Arc<Metrics>,
    news: Mutex<News>,
    wake: Notify,
    stopping: CancellationToken,
    /// The loop has ended: nothing is claimed any more.
    claims_over: CancellationToken,
    tasks: TaskTracker,
}

impl Dispatcher {
    /// A dispatcher without a spool: hand it to the committer, then call [`Dispatcher::run`].
    pub fn new(
        plan: Plan,
        clock: Arc<dyn Clock>,
        ids: Arc<QueueIds>,
        metrics: Arc<Metrics>,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        let route = |plan: RoutePlan| RouteState { pool: Pool::new(plan.connections), plan };
        Arc::new(Dispatcher {
            new: route(plan.new),
            legacy: plan.legacy.map(route),
            settle: plan.settle,
            order: plan.order,
            spool: OnceLock::new(),
            clock,
            ids,
            metrics,
            news: Mutex::default(),
            wake: Notify::new(),
            stopping,
            claims_over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// The pool of a route; `None` for a legacy server that is not configured.
    pub fn pool(&self, route: Route) -> Option<&Pool> {
        self.route(route).map(|r| &r.pool)
    }

    /// Looks at every line again at once, next hops that are down included.
    pub fn nudge(&self) {
        for route in Route::ALL {
            if let Some(pool) = self.pool(route) {
                pool.forget_failures();
            }
        }
        self.wake.notify_one();
    }

    /// Moves mail until the dispatcher is stopped. `lines` has mail from before the start.
    pub async fn run(self: Arc<Self>, spool: SpoolHandle, lines: Vec<(Queue, StreamId)>) {
        assert!(self.spool.set(spool).is_ok(), "a dispatcher runs once");
        let mut schedule = Schedule::new(self.order.clone());
        let from_before = lines.into_iter().map(|(queue, stream)| Touched { queue, stream, due: Timestamp(0) });
        // Housekeeping finds out by itself what is due next.
        schedule.touched(from_before, Some(Timestamp(0)));
        while !self.stopping.is_cancelled() {
            let pause = match self.round(&mut schedule).await {
                Ok(()) => self.sleep_until(&schedule),
                Err(SpoolError::Stopped) => break,
                Err(_) => SPOOL_PAUSE,
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.stopping.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.claims_over.cancel();
        // What the last chore handed over, and what lost its connection, would else be in flight until the next start.
        let _ = self.hear_news(&mut schedule).await;
        self.tasks.close();
        self.tasks.wait().await;
        let _ = self.hear_news(&mut schedule).await;
    }

    /// Ends the claims, so that another dispatcher can take the place of this one. When it returns, every item that was
    /// claimed has its connection; each connection closes after the message it is at, and [`Dispatcher::run`] returns
    /// after the last.
    pub async fn retire(&self) {
        self.stopping.cancel();
        self.claims_over.cancelled().await;
        // Mail accepted in a batch that had begun may still be on its way to a connection; this one comes after it.
        let _ = self.spool().chore(Chore::DropDead { most_items: CHORE_MOST }).await;
    }

    /// Everything that can be done now.
    async fn round(self: &Arc<Self>, schedule: &mut Schedule) -> Result<(), SpoolError> {
        loop {
            self.hear_news(schedule).await?;
            self.keep_house(schedule).await?;
            let mut claimed = 0;
            for (queue, streams) in schedule.due(self.clock.now()) {
                claimed += self.serve(queue, streams, schedule).await?;
            }
            if claimed == 0 {
                return Ok(());
            }
        }
    }

    async fn hear_news(self: &Arc<Self>, schedule: &mut Schedule) -> Result<(), SpoolError> {
        let news = std::mem::take(&mut *self.news.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        schedule.touched(news.touched, news.wake);
        for queue in news.refunded {
            schedule.refunded(queue);
        }
        for claimed in news.expired {
            self.expire(claimed).await?;
        }
        for claimed in news.stranded {
            let fates = vec![Fate::Untouched; claimed.item.envelope.recipients.len()];
            self.give_back(claimed, fates).await;
        }
        Ok(())
    }

    async fn keep_house(&self, schedule: &mut Schedule) -> Result<(), SpoolError> {
        if !schedule.housekeeping_is_due(self.clock.now()) {
            return Ok(());
        }
        let mut next = None;
        for chore in self.chores() {
            let answer = self.spool().chore(chore).await?;
            next = [next, answer.next].into_iter().flatten().min();
        }
        schedule.housekept(next);
        Ok(())
    }

    fn chores(&self) -> impl Iterator<Item = Chore> {
        // Without a legacy server nothing may be moved to it, whatever deadline an item was stored with.
        let overdue = self.legacy.is_some().then_some(Chore::MoveOverdue { most_items: CHORE_MOST });
        let rest = [Chore::TakeExpired { most_items: CHORE_MOST }, Chore::DropDead { most_items: CHORE_MOST }];
        overdue.into_iter().chain(rest)
    }

    /// Claims for the connections that stand ready; opens more when there is more to do. Returns the items claimed.
    async fn serve(
        self: &Arc<Self>,
        queue: Queue,
        streams: Vec<StreamId>,
        schedule: &mut Schedule,
    ) -> Result<usize, SpoolError> {
        let Some(route) = self.route(queue.route()) else { return Ok(0) };
        let ready = route.pool.take_up_to(CLAIM_MOST);
        if ready == 0 {
            self.open_connections(queue.route(), 1);
            return Ok(0);
        }
        let claim = Claim { queue, streams, most_items: ready };
        let answer = match self.spool().claim(claim).await {
            Ok(answer) => answer,
            Err(error) => {
                route.pool.give_back(ready);
                return Err(error);
            }
        };
        route.pool.give_back(ready - answer.items);
        schedule.claimed(queue, &answer);
        let now = self.clock.now();
        if answer.items == ready && answer.next_due.iter().any(|(_, due)| due.is_some_and(|due| due <= now)) {
            self.open_connections(queue.route(), ready);
        }
        Ok(answer.items)
    }

    fn sleep_until(&self, schedule: &Schedule) -> Duration {
        // A line that is due and waits for a connection is woken by it, or by the time of the next probe.
        let served = |queue: Queue| self.pool(queue.route()).is_some_and(|pool| pool.ready() > 0);
        let by_clock = schedule.wake_at(self.clock.now(), served).map(|at| self.clock.real_time_until(at));
        let by_probe = Route::ALL.into_iter().filter_map(|r| self.pool(r)?.probe_in()).min();
        [by_clock, by_probe]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(LOOK_AROUND)
            .clamp(Duration::from_millis(1), LOOK_AROUND)
    }

    fn open_connections(self: &Arc<Self>, route: Route, count: usize) {
        let Some(state) = self.route(route) else { return };
        for _ in 0..count {
            if self.stopping.is_cancelled() || !state.pool.begin_opening() {
                return;
            }
            self.tasks.spawn(Arc::clone(self).connection(route));
        }
    }

    /// The life of one connection.
    async fn connection(self: Arc<Self>, route: Route) {
        let state = self.route(route).expect("only configured routes open connections");
        let opened = tokio::select! {
            opened = Connection::open(&state.plan.target) => opened,
            () = self.stopping.cancelled() => return state.pool.not_opened(),
        };
        match opened {
            Ok(connection) => {
                if state.pool.reached() {
                    tracing::warn!(event = "upstream.up", route = route.name());
                }
                self.work(route, state, connection).await;
                state.pool.closed();
            }
            Err(error) => {
                let text = error.to_string();
                if state.pool.not_reached(crate::log::printable(&text)) {
                    tracing::error!(event = "upstream.down", route = route.name(), reason = %text);
                }
                self.count_reply(route, &error.cause);
                state.pool.not_opened();
            }
        }
        self.wake.notify_one();
    }

    async fn work(&self, route: Route, state: &RouteState, mut connection: Connection) {
        while let Some(claimed) = self.next_work(state).await {
            self.send(route, &mut connection, claimed).await;
            if !connection.is_usable() || connection.messages() >= state.plan.messages_per_connection {
                break;
            }
        }
        connection.quit().await;
    }

    /// Stands ready until there is something to send; `None`: time to close.
    async fn next_work(&self, state: &RouteState) -> Option<Claimed> {
        let (seat, mut work) = state.pool.sit();
        // Work may have been waiting for just this.
        self.wake.notify_one();
        let mut patience = IDLE;
        loop {
            tokio::select! {
                biased;
                claimed = &mut work => return claimed.ok(),
                () = tokio::time::sleep(patience) => {}
                () = self.stopping.cancelled() => {}
            }
            if state.pool.leave(seat) {
                return None;
            }
            // Taken at this very moment: what it was taken for comes, or it is given back.
            patience = Duration::from_millis(50);
            if self.stopping.is_cancelled() {
                match tokio::time::timeout(patience, &mut work).await {
                    Ok(claimed) => return claimed.ok(),
                    Err(_) => continue,
                }
            }
        }
    }

    async fn send(&self, route: Route, connection: &mut Connection, claimed: Claimed) {
        let began = Instant::now();
        if self.is_stale(&claimed) {
            let fates = vec![Fate::Untouched; claimed.item.envelope.recipients.len()];
            return self.give_back(claimed, fates).await;
        }
        let Claimed { item, body, crc, .. } = claimed;
        let body = match load(body, crc).await {
            Ok(body) => body,
            Err(error) => {
                self.metrics.spool_errors.inc();
                tracing::error!(event = "spool.damaged", id = %item.message, reason = %error, "put aside, not sent");
                let fates = vec![Fate::Damaged; item.envelope.recipients.len()];
                let expires = item.expires.unwrap_or(Timestamp::NEVER);
                let settle = Settle { item, fates, reply: error.to_string(), expires, report: None };
                return drop(self.spool().settle(settle).await);
            }
        };
        let transaction = Transaction { id: item.message, envelope: item.envelope.clone(), body };
        let report = connection.transact(&transaction).await;
        let took = began.elapsed();
        let remote = connection.peer().host.clone();
        self.tell(route, &transaction, &report, took, &remote, item.attempts + 1);
        if let (Some((_, Cause::Reply(reply))), Some(pool)) = (&report.ended_by, self.pool(route))
            && reply.code == 421
        {
            // Those it said nothing about are due at once; they must not come back at once.
            pool.pause();
        }
        let now = self.clock.now();
        let rejected = report.verdicts.iter().any(|v| matches!(v, Verdict::Rejected { .. } | Verdict::Deferred { .. }));
        let header = if rejected { read_header(transaction.body).await } else { Bytes::new() };
        let delivered = report.verdicts.iter().filter(|v| matches!(v, Verdict::Delivered { .. })).count();
        if delivered > 0 {
            self.metrics.routed_recipients.of(item.stream).of(route).of(item.reason).inc_by(delivered as u64);
            self.metrics.queue_wait_seconds.of(route).observe(now.since(item.accepted).as_secs_f64());
        }
        let ended = Ended { item, verdicts: &report.verdicts, remote: Some(&remote), header: &header };
        let settle = self.settle.settle(ended, now, &mut fastrand::Rng::new(), self.ids.next(now));
        let _ = self.spool().settle(settle).await;
    }

    /// The reservation belongs to an earlier quarter-hour, or is old: the final dot would come too late for it.
    fn is_stale(&self, claimed: &Claimed) -> bool {
        claimed.item.reservation.is_some_and(|reservation| {
            self.clock.now().slot() > reservation.slot || self.clock.real_time_since(claimed.at) >= CLAIM_FRESH
        })
    }

    async fn give_back(&self, claimed: Claimed, fates: Vec<Fate>) {
        let item = claimed.item;
        let (reply, expires) = (item.last_reply.clone(), item.expires.unwrap_or(Timestamp::NEVER));
        let _ = self.spool().settle(Settle { item, fates, reply, expires, report: None }).await;
    }

    async fn expire(&self, claimed: Claimed) -> Result<(), SpoolError> {
        let now = self.clock.now();
        let item = claimed.item;
        self.metrics.queue_expired.inc();
        tracing::warn!(
            event = "queue.expired", id = %item.message, route = item.queue.route().name(), rcpts = item.recipients(),
            attempt = item.attempts, reason = item.last_reply
        );
        let header = read_header(claimed.body).await;
        self.spool().settle(self.settle.expire(item, &header, now, self.ids.next(now))).await
    }

    fn tell(
        &self,
        route: Route,
        transaction: &Transaction,
        report: &Report,
        took: Duration,
        remote: &str,
        attempt: u32,
    ) {
        self.metrics.delivery_duration_seconds.of(route).observe(took.as_secs_f64());
        let attempts = self.metrics.delivery_attempts.of(route).of(Provider::All);
        let mut said_before: Option<(&'static str, String)> = None;
        for verdict in &report.verdicts {
            let result = match verdict {
                Verdict::Delivered { reply } => {
                    self.count_reply(route, &Cause::Reply(reply.clone()));
                    AttemptResult::Delivered
                }
                Verdict::Deferred { cause, .. } => {
                    self.count_reply(route, cause);
                    AttemptResult::Deferred
                }
                Verdict::Rejected { reply, .. } => {
                    self.count_reply(route, &Cause::Reply(reply.clone()));
                    AttemptResult::Rejected
                }
                Verdict::Unknown { fault } => {
                    self.count_reply(route, &Cause::Fault(fault.clone()));
                    AttemptResult::Unknown
                }
                Verdict::Untouched => continue,
            };
            attempts.of(result).inc();
            // One line for each different answer, with the number of recipients that got it.
            let text = match verdict {
                Verdict::Delivered { reply } => reply.to_string(),
                other => said(other).unwrap_or_default(),
            };
            let this = (verdict.name(), text);
            if said_before.as_ref() == Some(&this) {
                continue;
            }
            let rcpts = report.verdicts.iter().filter(|v| v.name() == verdict.name()).count();
            tracing::info!(
                event = "delivery.result",
                id = %transaction.id,
                route = route.name(),
                result = this.0,
                rcpts,
                attempt,
                upstream = remote,
                latency_ms = took.as_millis() as u64,
                reason = this.1,
            );
            said_before = Some(this);
        }
        if report.verdicts.iter().any(|v| matches!(v, Verdict::Unknown { .. })) {
            tracing::warn!(event = "delivery.maybe", id = %transaction.id, route = route.name(),
                "no answer to the final dot: maybe-delivered, it keeps its route");
        }
    }

    fn count_reply(&self, route: Route, cause: &Cause) {
        let (class, category) = match cause {
            Cause::Fault(_) => (ReplyClass::Missing, Category::Network),
            Cause::Reply(reply) => (class_of(reply), category_of(reply)),
        };
        self.metrics.upstream_replies.of(route).of(class).of(category).inc();
    }

    fn route(&self, route: Route) -> Option<&RouteState> {
        match route {
            Route::New => Some(&self.new),
            Route::Legacy => self.legacy.as_ref(),
        }
    }

    fn spool(&self) -> &SpoolHandle {
        self.spool.get().expect("set before the first connection")
    }

    fn tell_news(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.news.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.wake.notify_one();
    }
}

fn class_of(reply: &Reply) -> ReplyClass {
    match reply.code {
        200..400 => ReplyClass::Positive,
        400..500 => ReplyClass::Transient,
        _ => ReplyClass::Permanent,
    }
}

/// What a reply is about, by its code alone; the signal rules will know better.
fn category_of(reply: &Reply) -> Category {
    match (reply.code, reply.enhanced.map(|e| e.1)) {
        (200..400, _) => Category::Ok,
        (530 | 534 | 535 | 538 | 454, _) => Category::Auth,
        (_, Some(1 | 2)) => Category::Recipient,
        (_, Some(6)) => Category::Content,
        (_, Some(4)) => Category::Network,
        _ => Category::Other,
    }
}

/// Small bodies are read and checked before anything is sent; large ones are checked, then streamed.
async fn load(body: BodySource, crc: u32) -> std::io::Result<BodySource> {
    let check = move |body: &BodySource| match body.crc() {
        Ok(found) if found == crc => Ok(()),
        Ok(_) => Err(std::io::Error::other("the stored octets do not match their checksum")),
        Err(error) => Err(error),
    };
    match body {
        BodySource::Memory(_) => check(&body).map(|()| body),
        BodySource::File { .. } => {
            let work = move || {
                let body = match body.size() {
                    size if size <= IN_MEMORY_MAX => BodySource::Memory(body.read_at(0, size as usize)?),
                    _ => body,
                };
                check(&body).map(|()| body)
            };
            tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
        }
    }
}

async fn read_header(body: BodySource) -> Bytes {
    let work = move || body.read_at(0, HEADER_READ).unwrap_or_default();
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

impl Slots for Dispatcher {
    fn take(&self, route: Route) -> bool {
        !self.stopping.is_cancelled() && self.pool(route).is_some_and(Pool::take)
    }

    fn give_back(&self, route: Route, count: usize) {
        if let Some(pool) = self.pool(route) {
            pool.give_back(count);
        }
    }
}

impl Outlet for Dispatcher {
    fn deliver(&self, items: Vec<Claimed>) {
        for claimed in items {
            let route = claimed.item.queue.route();
            let Some(pool) = self.pool(route) else { continue };
            if let Err(claimed) = pool.deliver(claimed) {
                // Its connection's task has died between the two, which only a fault of ours can bring about.
                tracing::error!(event = "delivery.stranded", id = %claimed.item.message);
                self.tell_news(|news| news.stranded.push(*claimed));
            }
        }
    }

    fn expired(&self, items: Vec<Claimed>) {
        self.tell_news(|news| news.expired.extend(items));
    }

    fn touched(&self, lines: Vec<Touched>, refunded: Vec<Queue>, wake: Option<Timestamp>) {
        self.tell_news(|news| {
            for line in lines {
                match news.touched.iter_mut().find(|t| (t.queue, t.stream) == (line.queue, line.stream)) {
                    Some(known) => known.due = known.due.min(line.due),
                    None => news.touched.push(line),
                }
            }
            news.refunded.extend(refunded);
            news.wake = [news.wake, wake].into_iter().flatten().min();
        });
    }

    fn committed(&self, done: &Done, took: Duration) {
        self.metrics.spool_sync_duration_seconds.observe(took.as_secs_f64());
        self.metrics.warmup_overrun_recipients.inc_by(done.overrun_recipients);
        for id in &done.quarantined {
            self.metrics.spool_errors.inc();
            tracing::error!(event = "spool.damaged", id = %id, "unreadable envelope: put aside, not sent");
        }
        for (before, after) in &done.days {
            let outcome = match before {
                Some(before) if after.stage > before.stage => DayOutcome::Advanced,
                Some(before) if after.stage < before.stage => DayOutcome::SteppedBack,
                Some(before) if before.limit == Some(0) || before.limit.is_none() => DayOutcome::Skipped,
                Some(_) => DayOutcome::Repeated,
                None => DayOutcome::Skipped,
            };
            self.metrics.warmup_day_boundaries.of(outcome).inc();
            let limit = after.limit.map_or("none".into(), |limit| limit.to_string());
            tracing::info!(event = "warmup.day", day = after.stage + 1, limit, result = outcome.text());
        }
    }
}
