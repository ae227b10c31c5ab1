//! Keeps mail moving: claims when a connection stands ready, opens connections when mail waits, settles every outcome.
//!
//! One loop decides; one task per open connection sends. There is no task, timer or entry per queued message. A claim
//! is only made for connections that stand ready, so tokens are not reserved for a next hop that cannot be reached.
//! While the new server cannot be reached, its waiting mail goes to the legacy server by rule, and one probe at a time
//! finds out when it is back. What a connection does with its claims is in `sending`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::account;
use super::budget::ReportBudget;
use super::cap::RecipientCap;
use super::feedback::Feedback;
use super::opening::Target;
use super::pool::Pool;
use super::schedule::Schedule;
use super::sending::read_header;
use super::settle::SettleRules;
use crate::clock::Clock;
use crate::message::{Queue, QueueId, Reason, Route, StreamId, Timestamp};
use crate::metrics::Metrics;
use crate::spool::committer::{Outlet, SpoolHandle};
use crate::spool::{Chore, Claim, Claimed, Done, Fate, Slots, SpoolError, Touched};

/// Items taken with one claim.
const CLAIM_MOST: usize = 64;
/// Items moved, expired or dropped in one transaction.
const CHORE_MOST: usize = 256;
/// After a spool error that passes (a full disk), before asking again.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);
/// A line in which nothing may fall back is not searched again for so long.
const FALLBACK_PAUSE: Duration = Duration::from_secs(1);
/// The loop looks around at least this often: other processes may have made room on the disk.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// One route and its connections.
pub struct RoutePlan {
    /// Where it leads.
    pub target: Target,
    /// Most connections at once.
    pub connections: usize,
    /// Transactions after which a connection is closed.
    pub messages_per_connection: u64,
    /// Recipients in any 60 seconds; `None`: no cap.
    pub max_per_minute: Option<u64>,
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
    /// Reports to one sender in any hour.
    pub reports_per_hour: u64,
    /// Who knows what replies mean.
    pub feedback: Arc<dyn Feedback>,
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

pub(super) struct RouteState {
    pub(super) plan: RoutePlan,
    pub(super) pool: Pool,
    pub(super) cap: Option<Mutex<RecipientCap>>,
}

#[derive(Default)]
struct News {
    touched: Vec<Touched>,
    refunded: Vec<Queue>,
    wake: Option<Timestamp>,
    expired: Vec<Claimed>,
    /// Every time told before is off.
    clock_moved: bool,
    /// Streams are served in this order from here on.
    order: Option<Vec<StreamId>>,
    /// Claimed for connections that died in between.
    stranded: Vec<Claimed>,
}

/// See the module's header. Shared by the committer (as its outlet), the loop and the connections' tasks.
pub struct Dispatcher {
    new: RouteState,
    legacy: Option<RouteState>,
    pub(super) settle: SettleRules,
    pub(super) reports: Mutex<ReportBudget>,
    pub(super) feedback: Arc<dyn Feedback>,
    order: Vec<StreamId>,
    spool: OnceLock<SpoolHandle>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<QueueIds>,
    pub(super) metrics: Arc<Metrics>,
    news: Mutex<News>,
    /// Lines in which nothing was found that may fall back, and until when that is taken for granted.
    nothing_falls_back: Mutex<BTreeMap<Queue, Instant>>,
    pub(super) wake: Notify,
    pub(super) stopping: CancellationToken,
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
        let route = |plan: RoutePlan| RouteState {
            pool: Pool::new(plan.connections),
            cap: plan.max_per_minute.map(|most| Mutex::new(RecipientCap::new(most))),
            plan,
        };
        Arc::new(Dispatcher {
            new: route(plan.new),
            legacy: plan.legacy.map(route),
            settle: plan.settle,
            reports: Mutex::new(ReportBudget::new(plan.reports_per_hour)),
            feedback: plan.feedback,
            order: plan.order,
            spool: OnceLock::new(),
            clock,
            ids,
            metrics,
            news: Mutex::default(),
            nothing_falls_back: Mutex::default(),
            wake: Notify::new(),
            stopping,
            claims_over: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// A name for a message of our own.
    pub fn fresh_id(&self, now: Timestamp) -> QueueId {
        self.ids.next(now)
    }

    /// The pool of a route; `None` for a legacy server that is not configured.
    pub fn pool(&self, route: Route) -> Option<&Pool> {
        self.route(route).map(|r| &r.pool)
    }

    /// Looks at every line again at once, next hops that are down included.
    pub fn nudge(&self) {
        lock(&self.nothing_falls_back).clear();
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
                // What was asked for before may have shut the line.
                if schedule.is_open(queue, streams[0]) {
                    claimed += self.serve(queue, streams, schedule).await?;
                }
            }
            if claimed == 0 {
                break;
            }
        }
        // Also when nothing waits: mail that comes then need not be the one that finds out.
        for route in Route::ALL {
            if self.pool(route).is_some_and(Pool::wants_probe) {
                self.open_connections(route, 1);
            }
        }
        Ok(())
    }

    async fn hear_news(self: &Arc<Self>, schedule: &mut Schedule) -> Result<(), SpoolError> {
        let news = std::mem::take(&mut *lock(&self.news));
        schedule.touched(news.touched, news.wake);
        if let Some(order) = news.order {
            schedule.serve_in(order);
        }
        if news.clock_moved {
            schedule.clock_moved();
        }
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
        let overdue = [Chore::GiveBack { most_items: CHORE_MOST }, Chore::MoveOverdue { most_items: CHORE_MOST }];
        let overdue = overdue.into_iter().filter(|_| self.legacy.is_some());
        let rest = [Chore::TakeExpired { most_items: CHORE_MOST }, Chore::DropDead { most_items: CHORE_MOST }];
        overdue.chain(rest)
    }

    /// Claims for the connections that stand ready; opens more when there is more to do. Returns the items claimed.
    async fn serve(
        self: &Arc<Self>,
        queue: Queue,
        streams: Vec<StreamId>,
        schedule: &mut Schedule,
    ) -> Result<usize, SpoolError> {
        let Some(route) = self.route(queue.route()) else { return Ok(0) };
        if self.room_at(queue.route()).is_some() {
            return Ok(0);
        }
        let ready = route.pool.take_up_to(CLAIM_MOST);
        if ready == 0 {
            self.open_connections(queue.route(), 1);
            return self.fall_back(queue, streams).await;
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

    /// Gives waiting mail of a line to the legacy server while the new one cannot be reached, if a rule says so.
    /// Returns the items moved. Nothing was said about them to anybody, and no token is reserved for them.
    async fn fall_back(&self, queue: Queue, streams: Vec<StreamId>) -> Result<usize, SpoolError> {
        let kind = self.pool(queue.route()).and_then(|pool| pool.health().kind);
        let by_rule = kind.is_some_and(|kind| self.settle.fallback.allow(kind));
        let paused = lock(&self.nothing_falls_back).get(&queue).is_some_and(|until| Instant::now() < *until);
        if !by_rule || paused || !self.has_fallback(queue.route()) {
            return Ok(0);
        }
        let undated = self.settle.undated_falls_back;
        let answer = self.spool().chore(Chore::FallBack { queue, streams, undated, most_items: CHORE_MOST }).await?;
        if answer.items == 0 {
            lock(&self.nothing_falls_back).insert(queue, Instant::now() + FALLBACK_PAUSE);
        } else {
            let route = queue.route().name();
            tracing::warn!(
                event = "fallback.used",
                route,
                items = answer.items,
                rcpts = answer.recipients,
                reason = Reason::Fallback.name(),
                "the legacy server takes what waits"
            );
        }
        Ok(answer.items)
    }

    /// There is another route for mail that this one fails to take, and it is not down itself.
    pub(super) fn has_fallback(&self, route: Route) -> bool {
        route == Route::New && self.legacy.as_ref().is_some_and(|legacy| legacy.pool.health().up)
    }

    /// There is another route for mail that this one refuses, down or not.
    pub(super) fn has_legacy(&self, route: Route) -> bool {
        route == Route::New && self.legacy.is_some()
    }

    /// When the route may begin another recipient; `None`: now.
    fn room_at(&self, route: Route) -> Option<Timestamp> {
        lock(self.route(route)?.cap.as_ref()?).next_room(self.clock.now())
    }

    fn sleep_until(&self, schedule: &Schedule) -> Duration {
        let now = self.clock.now();
        let full = Route::ALL.map(|route| self.room_at(route));
        // A line that is due and waits for a connection is woken by it, or by the time of the next probe; one that
        // waits for the cap of the minute by that.
        let served = |queue: Queue| {
            full[queue.route() as usize].is_none() && self.pool(queue.route()).is_some_and(|pool| pool.ready() > 0)
        };
        let by_line = schedule.wake_at(now, served);
        let by_clock = full.into_iter().flatten().chain(by_line).min().map(|at| self.clock.real_time_until(at));
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

    async fn expire(&self, claimed: Claimed) -> Result<(), SpoolError> {
        let now = self.clock.now();
        let item = claimed.item;
        tracing::warn!(
            event = "queue.expired", id = %item.message, route = item.queue.route().name(), rcpts = item.recipients(),
            attempt = item.attempts, reason = item.last_reply
        );
        let header = read_header(claimed.body).await;
        let settled = self.settle.expire(item, &header, now, self.ids.next(now), &mut lock(&self.reports));
        account::of_settled(&self.metrics, &settled);
        self.spool().settle(settled.settle).await
    }

    pub(super) fn route(&self, route: Route) -> Option<&RouteState> {
        match route {
            Route::New => Some(&self.new),
            Route::Legacy => self.legacy.as_ref(),
        }
    }

    pub(super) fn spool(&self) -> &SpoolHandle {
        self.spool.get().expect("set before the first connection")
    }

    fn tell_news(&self, change: impl FnOnce(&mut News)) {
        change(&mut lock(&self.news));
        self.wake.notify_one();
    }
}

/// Nothing that holds one of these locks can leave its data half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Slots for Dispatcher {
    fn take(&self, route: Route) -> bool {
        !self.stopping.is_cancelled() && self.room_at(route).is_none() && self.pool(route).is_some_and(Pool::take)
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

    fn clock_moved(&self) {
        self.tell_news(|news| news.clock_moved = true);
    }

    fn committed(&self, done: &Done, took: Duration) {
        account::of_commit(&self.metrics, done, took);
        if let Some(order) = &done.order {
            self.tell_news(|news| news.order = Some(order.clone()));
        }
    }
}
