//! What the relay tells the admin plane: one snapshot of the ledger, the pools and the disk. The queue is next door, in
//! `relay::queue`.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use arc_swap::ArcSwap;

use super::dry_run::DryRun;
use super::feedback::Brakes;
use super::gate::WarmupGate;
use super::lanes;
use super::reload::{LiveGate, LiveRoutes};
use crate::admin::api::{
    AuditPage, BrakeWord, ChangeAnswer, ChangeOrder, ClockAnswer, ClockStatus, DayState, DayStatus, LaneStatus,
    OldestHeld, PauseStatus, QueueAction, QueueFilter, QueuePage, QueueStep, QueueTotals, RouteStatus, Selection,
    ShownMessage, Snapshot, SpoolStatus, StateTotals, StepAnswer, Today, Warmup,
};
use crate::admin::explain::{ExplainOrder, Explained};
use crate::admin::streams::{MoveAnswer, MoveOrder, StreamPage, UndoOrder};
use crate::admin::{Backend, BackendError, BoxFuture, ListenerProbe};
use crate::clock::{Clock, TrustedClock};
use crate::message::{DayRecord, LaneId, NANOS_PER_SECOND, Route, StreamId, Timestamp};
use crate::metrics::{Metrics, WarmupAction};
use crate::operators::Operators;
use crate::spool::backup::Holds;
use crate::spool::committer::SpoolHandle;
use crate::spool::disk::{Watermark, free_and_size};
use crate::spool::ledger::{Ledger, Total};
use crate::spool::reader::QueueReader;
use crate::spool::{SpoolError, State};

/// See the module's header.
pub struct RelayBackend {
    /// The relay's spool.
    pub spool: SpoolHandle,
    /// Reads the queue beside the committer.
    pub reader: Arc<QueueReader>,
    /// The ramp.
    pub gate: Arc<LiveGate>,
    /// What providers say, and the brakes of their lanes.
    pub brakes: Arc<Brakes>,
    /// Whose mail servers a domain has.
    pub operators: Arc<Operators>,
    /// The routes.
    pub routes: Arc<LiveRoutes>,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
    /// The last job of an operator; they rise, also within one tick of the clock.
    pub last_job: AtomicI64,
    /// A move of a stream was told: whoever waits for the time of one looks again.
    pub moves_told: tokio::sync::Notify,
    /// What the ramp would do, in a run in which everything goes by legacy.
    pub dry_run: Option<Arc<DryRun>>,
    /// The time of the ramp.
    pub clock: Arc<TrustedClock>,
    /// Keeps the spool's files from being removed.
    pub holds: Holds,
    /// Room on the disk.
    pub watermark: Watermark,
    /// Names of the streams, by id; those are among them that the settings no longer have.
    pub streams: ArcSwap<Vec<String>>,
    /// Those that the settings have, the last resort first.
    pub configured: ArcSwap<Vec<(StreamId, String)>>,
    /// Name of the zone of the day.
    pub zone: ArcSwap<String>,
    /// What readiness tries; emptied once the relay is stopping.
    pub listeners: ArcSwap<Vec<ListenerProbe>>,
    /// Cancelled once the relay is stopping.
    pub stopping: tokio_util::sync::CancellationToken,
}

/// What the snapshot needs of the ledger, copied out on the committer's thread.
struct Numbers {
    warmup: Option<Warmup>,
    pause: Option<PauseStatus>,
    lanes: Vec<LaneStatus>,
    days: Vec<DayStatus>,
    today: Today,
    totals: [Total; SHOWN.len()],
    queued_bytes: u64,
}

/// The ramp so far, as the ledger has it.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Days of the total, oldest first, without gaps, today last; as many as the ledger keeps.
    pub days: Vec<DayRecord>,
    /// Recipients that wait for their token.
    pub held: u64,
    /// Recipients in the queue, in whatever state.
    pub queued: u64,
}

const SHOWN: [State; 7] =
    [State::Held, State::Ready, State::Deferred, State::InFlight, State::Paused, State::Dead, State::Quarantined];

impl RelayBackend {
    /// Every day so far in one look.
    pub async fn course(&self) -> Result<Course, BackendError> {
        let look = |ledger: &Ledger, _| Course {
            days: ledger
                .lane(LaneId::TOTAL)
                .map(|lane| lane.history.iter().chain([&lane.today]).copied().collect())
                .unwrap_or_default(),
            held: ledger.total_of(State::Held).recipients,
            queued: ledger.totals().map(|(.., total)| total.recipients).sum(),
        };
        self.spool.look(look).await.map_err(unavailable)
    }

    /// `day 9, 1019/1281 used, 412 held`. Asks the committer, and nobody else.
    pub async fn status_line(&self) -> Result<String, BackendError> {
        let (gate, zone) = (self.gate.current(), self.zone.load_full());
        let look = move |ledger: &Ledger, now| status_line(&numbers(&gate, ledger, &zone, now));
        let line = self.spool.look(look).await.map_err(unavailable)?;
        Ok(if self.dry_run.is_some() { format!("dry run, {line}") } else { line })
    }

    async fn take_snapshot(&self) -> Result<Snapshot, BackendError> {
        let look = self.clock.look();
        let now = look.time;
        let (gate, zone) = (self.gate.current(), self.zone.load_full());
        let numbers =
            self.spool.look(move |ledger, now| numbers(&gate, ledger, &zone, now)).await.map_err(unavailable)?;
        let gate = self.gate.current();
        let as_if = |dry_run: &Arc<DryRun>| dry_run.look(|ledger, now| lanes::lanes(&gate, ledger, now));
        let lanes = self.dry_run.as_ref().map_or(numbers.lanes, as_if);
        let reader = self.reader.clone();
        let oldest = self.blocking(move || SHOWN.map(|state| reader.oldest(state).ok().flatten())).await?;
        let totals = |index: usize| StateTotals {
            messages: numbers.totals[index].items,
            recipients: numbers.totals[index].recipients,
            bytes: numbers.totals[index].bytes,
            oldest: oldest[index].as_ref().map(|item| item.accepted),
        };
        let free_bytes = free_and_size(&self.watermark.path).map_or(0, |(free, _)| free);
        Ok(Snapshot {
            version: env!("CARGO_PKG_VERSION").into(),
            now,
            clock: ClockStatus {
                trusted: !look.standing.is_doubtful(),
                off_seconds: look.standing.off_seconds(),
                shows: self.clock.reading().wall,
            },
            dry_run: self.dry_run.as_ref().map(|dry_run| dry_run.status()),
            warmup: numbers.warmup.ok_or_else(|| BackendError::Unavailable("the first day has not begun".into()))?,
            pause: numbers.pause,
            lanes,
            days: numbers.days,
            today: numbers.today,
            oldest_held: oldest[0].as_ref().map(|item| OldestHeld {
                accepted: item.accepted,
                stream: self.stream_name(item.stream),
                deadline: item.deadline,
            }),
            new: self.route_status(Route::New),
            legacy: self.route_status(Route::Legacy),
            queue: QueueTotals {
                held: totals(0),
                ready: totals(1),
                deferred: totals(2),
                inflight: totals(3),
                paused: totals(4),
                dead: totals(5),
                quarantined: totals(6),
            },
            spool: SpoolStatus {
                free_bytes,
                required_bytes: self.watermark.min_free(),
                accepting: self.watermark.check(numbers.queued_bytes).is_ok(),
            },
        })
    }

    fn route_status(&self, route: Route) -> RouteStatus {
        let dispatcher = self.routes.current();
        let Some(pool) = dispatcher.pool(route) else { return RouteStatus::default() };
        let health = pool.health().clone();
        RouteStatus {
            configured: true,
            up: health.up,
            connections: pool.open() as u32,
            last_error: health.last_error.filter(|_| !health.up),
        }
    }

    pub(super) fn stream_name(&self, id: StreamId) -> String {
        self.streams.load().get(usize::from(id.0)).cloned().unwrap_or_else(|| format!("stream {}", id.0))
    }

    async fn believe_the_clock(&self) -> Result<ClockAnswer, BackendError> {
        match self.spool.accept_clock().await.map_err(unavailable)? {
            Some(moved) => {
                self.metrics.warmup_admin_actions.of(WarmupAction::AcceptClock).inc();
                self.routes.current().nudge();
                Ok(ClockAnswer { moved_seconds: moved / NANOS_PER_SECOND, now: self.clock.now() })
            }
            None => Err(BackendError::Refused("the clock is not in doubt: there is nothing to accept".into())),
        }
    }

    pub(super) async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, BackendError> {
        tokio::task::spawn_blocking(work).await.map_err(|error| BackendError::Unavailable(error.to_string()))
    }
}

fn numbers(gate: &WarmupGate, ledger: &Ledger, zone: &str, now: Timestamp) -> Numbers {
    let total = ledger.lane(LaneId::TOTAL);
    let held = ledger.total_of(State::Held);
    Numbers {
        warmup: total.and_then(|_| warmup(gate, ledger, zone, now)),
        pause: lanes::pause(ledger),
        lanes: lanes::lanes(gate, ledger, now),
        days: lanes::days(gate, ledger),
        today: Today {
            new: total.map_or(0, |l| l.today.sent),
            legacy: total.map_or(0, |l| l.today.legacy),
            held: held.recipients,
        },
        totals: SHOWN.map(|state| ledger.total_of(state)),
        queued_bytes: ledger.queued_bytes(),
    }
}

fn status_line(numbers: &Numbers) -> String {
    let held = format!("{} held", numbers.today.held);
    let line = match &numbers.warmup {
        None => format!("no day yet, {held}"),
        Some(Warmup { day: Some(day), limit: Some(limit), used, .. }) => {
            format!("day {day}, {used}/{limit} used, {held}")
        }
        Some(Warmup { day: Some(day), used, .. }) => format!("day {day}, {used} used, no limit, {held}"),
        Some(Warmup { state: DayState::Unlimited, used, .. }) => format!("no ramp, {used} used, {held}"),
        Some(Warmup { used, .. }) => format!("not started, {used} used, {held}"),
    };
    let braked = numbers.lanes.iter().filter(|lane| lane.brake.level != BrakeWord::Open);
    let brakes = braked.map(|lane| format!(", {} {}", lane.provider, lane.brake.level.text()));
    let paused = if numbers.pause.is_some() { "PAUSED, " } else { "" };
    format!("{paused}{line}{}", brakes.collect::<String>())
}

fn warmup(gate: &WarmupGate, ledger: &Ledger, zone: &str, now: Timestamp) -> Option<Warmup> {
    let (span, lane) = (ledger.span()?, ledger.lane(LaneId::TOTAL)?);
    let view = gate.view_of_total(ledger, StreamId::DEFAULT, now)?;
    let limit = lane.record.limit;
    let room = view.room(now);
    Some(Warmup {
        state: lanes::state(gate, ledger, lane, now),
        day: lanes::day(gate, &lane.record),
        days_planned: gate.days_planned(),
        limit,
        used: lane.reserved_today(),
        sent: lane.today.sent,
        target: gate.rules().map(|rules| rules.target),
        tokens: limit.map(|_| room),
        next_token_at: limit
            .filter(|_| room == 0)
            .and_then(|_| view.wake(now))
            .map(|w| w.at)
            .filter(|at| *at < span.ends),
        pace_per_hour: view.pace.filter(|_| limit != Some(0)).map(|pace| pace.hour_cap()),
        day_ends: span.ends,
        zone: zone.to_owned(),
    })
}

pub(super) fn unavailable(error: SpoolError) -> BackendError {
    BackendError::Unavailable(error.to_string())
}

impl Backend for RelayBackend {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, BackendError>> {
        Box::pin(self.take_snapshot())
    }

    fn queue(&self, filter: QueueFilter, limit: usize) -> BoxFuture<'_, Result<QueuePage, BackendError>> {
        Box::pin(self.list(filter, limit))
    }

    fn show(&self, id: String, headers: bool) -> BoxFuture<'_, Result<ShownMessage, BackendError>> {
        Box::pin(async move { self.shown(&id, headers).await })
    }

    fn select(
        &self,
        filter: QueueFilter,
        action: QueueAction,
        all: bool,
        ids: bool,
    ) -> BoxFuture<'_, Result<Selection, BackendError>> {
        Box::pin(self.selected(filter, action, all, ids))
    }

    fn step(&self, step: QueueStep, actor: u32) -> BoxFuture<'_, Result<StepAnswer, BackendError>> {
        Box::pin(self.stepped(step, actor))
    }

    fn hold_files(&self) -> Box<dyn Any + Send> {
        Box::new(self.holds.hold())
    }

    fn accept_clock(&self) -> BoxFuture<'_, Result<ClockAnswer, BackendError>> {
        Box::pin(self.believe_the_clock())
    }

    fn change(&self, order: ChangeOrder, actor: u32) -> BoxFuture<'_, Result<ChangeAnswer, BackendError>> {
        Box::pin(self.changed(order, actor))
    }

    fn audit(&self, since_seconds: u64) -> BoxFuture<'_, Result<AuditPage, BackendError>> {
        Box::pin(self.audited(since_seconds))
    }

    fn explain(&self, order: ExplainOrder) -> BoxFuture<'_, Result<Explained, BackendError>> {
        Box::pin(self.explained(order))
    }

    fn streams(&self) -> BoxFuture<'_, Result<StreamPage, BackendError>> {
        Box::pin(self.stream_page())
    }

    fn move_stream(&self, order: MoveOrder, actor: u32) -> BoxFuture<'_, Result<MoveAnswer, BackendError>> {
        Box::pin(self.stream_moved(order, actor))
    }

    fn undo_move(&self, order: UndoOrder, actor: u32) -> BoxFuture<'_, Result<MoveAnswer, BackendError>> {
        Box::pin(self.stream_undone(order, actor))
    }

    fn is_dry_run(&self) -> bool {
        self.dry_run.is_some()
    }

    fn listeners(&self) -> Vec<ListenerProbe> {
        if self.stopping.is_cancelled() { Vec::new() } else { self.listeners.load().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::BrakeStatus;

    #[test]
    fn the_line_for_the_service_manager_says_first_that_it_is_paused_and_last_who_is_braked() {
        let warmup = Warmup {
            state: DayState::Ramping,
            day: Some(9),
            days_planned: Some(15),
            limit: Some(1281),
            used: 1019,
            sent: 1017,
            target: Some(12_000),
            tokens: None,
            next_token_at: None,
            pace_per_hour: None,
            day_ends: Timestamp(0),
            zone: "UTC".into(),
        };
        let lane = |provider: &str, level| LaneStatus {
            provider: provider.into(),
            state: DayState::Ramping,
            day: Some(9),
            limit: Some(1),
            used: 0,
            sent: 0,
            offered: 0,
            share: 1.0,
            brake: BrakeStatus { level, ..BrakeStatus::default() },
            braked_days: 0,
        };
        let mut numbers = Numbers {
            warmup: Some(warmup),
            pause: None,
            lanes: vec![lane("all", BrakeWord::Open), lane("google", BrakeWord::Open)],
            days: Vec::new(),
            today: Today { held: 412, ..Today::default() },
            totals: Default::default(),
            queued_bytes: 0,
        };
        assert_eq!(status_line(&numbers), "day 9, 1019/1281 used, 412 held");
        numbers.lanes.extend([lane("microsoft", BrakeWord::Suspended), lane("yahoo", BrakeWord::Slow)]);
        assert_eq!(status_line(&numbers), "day 9, 1019/1281 used, 412 held, microsoft suspended, yahoo slow");
        numbers.lanes.clear();
        numbers.pause = Some(PauseStatus { since: Timestamp(0), actor: 0, reason: "x".into() });
        assert_eq!(status_line(&numbers), "PAUSED, day 9, 1019/1281 used, 412 held");
    }
}
