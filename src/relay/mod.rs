//! The one place that joins the concrete pieces: front door, spool, policy, delivery, admin plane.
//!
//! Everything that can refuse (data directory, ports, certificates) is tried before anything runs, so a relay is
//! started as a whole or not at all. Stopping goes the way of a message: first no new mail, then no new claims, then
//! the transactions under way end, then the committer.

pub mod backend;
mod directory;
pub mod dry_run;
mod explain;
pub mod feedback;
pub mod front_door;
pub mod gate;
pub mod intake;
mod lanes;
mod moves;
pub mod notify;
mod ourselves;
mod outlook;
mod queue;
mod ramp;
pub mod reload;
pub mod streams;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::clock::{Clock, TrustedClock};
use crate::config::{self, Settings, TlsLevel as ConfiguredTls, Upstream};
use crate::delivery::dispatcher::{Dispatcher, Plan, QueueIds, RoutePlan};
use crate::delivery::fallback::FallbackRules;
use crate::delivery::feedback::NoFeedback;
use crate::delivery::opening::{Credentials, Host, Target, Timeouts};
use crate::delivery::settle::SettleRules;
use crate::delivery::telling::ReportRules;
use crate::delivery::tls::{TlsConnectors, TlsLevel, TlsPolicy};
use crate::dns::Resolver;
use crate::message::{Day, Queue, Route, StreamId, Timestamp};
use crate::metrics::{Build, Metrics};
use crate::operators::Operators;
use crate::policy::classify::{DEFAULT_STREAM, Streams};
use crate::policy::{self, Calendar, RetrySchedule, Rules};
use crate::smtp::{Door, ListenerSettings, Server};
use crate::spool::body::BodyBuffer;
use crate::spool::committer::{self, Committer};
use crate::spool::disk::{DataDirectory, Watermark};
use crate::spool::identity::Since;
use crate::spool::reader::QueueReader;
use crate::spool::sqlite::SqliteStore;
use crate::spool::{Ledger, Row, Spool, SpoolError, Store};
use backend::RelayBackend;
use dry_run::DryRun;
use feedback::Brakes;
use front_door::{DoorFiles, FrontDoor, probes};
use gate::WarmupGate;
use intake::{DoorCounter, SpoolIntake};
use reload::{LiveGate, LiveRoutes};
use streams::StreamNames;

/// Transactions under way when the last session has ended get at least this long, if the grace time is not shorter.
const TRANSACTIONS_GRACE: Duration = Duration::from_secs(5);
/// A start date nobody set: the first day the relay runs is the first of the ramp, since a lane begins at stage 0.
const STARTED_ALREADY: Day = Day(i32::MIN);

/// Why a relay did not start. Nothing runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings make no sense together, or a file they name cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The data directory cannot be read or written.
    #[error("{0}")]
    DataDirectory(String),
    /// Somebody else has the data directory or the port.
    #[error("{0}")]
    Busy(String),
    /// The system refused something; starting again may help.
    #[error("{0}")]
    Io(String),
}

impl StartError {
    /// There is nowhere for the mail of a dry run to go.
    fn no_dry_run() -> StartError {
        let text = "a dry run sends everything by the legacy server, and there is no [legacy]; add it, or run without --dry-run";
        StartError::Settings(text.into())
    }

    fn of_spool(error: SpoolError, directory: &std::path::Path) -> StartError {
        let directory = directory.display();
        match error {
            SpoolError::Locked(path) => StartError::Busy(format!(
                "the data directory {path} is in use by another mailramp process; stop that one, or set another data_dir"
            )),
            SpoolError::Directory(text) => StartError::DataDirectory(text),
            damaged @ SpoolError::Damaged { .. } => StartError::Io(format!("{directory}: {damaged}")),
            other => StartError::Io(format!("the spool in {directory} cannot be opened: {other}")),
        }
    }
}

/// A running relay.
pub struct Relay {
    /// Where it listens for SMTP, as bound.
    pub smtp: Vec<SocketAddr>,
    /// Where it answers HTTP, as bound.
    pub http: SocketAddr,
    /// Its view of itself.
    pub backend: Arc<RelayBackend>,
    /// Its numbers.
    pub metrics: Arc<Metrics>,
    /// Who runs the mail servers of recipients' domains.
    pub operators: Arc<Operators>,
    /// The settings in force.
    settings: Arc<Settings>,
    front_door: FrontDoor,
    /// Where the listeners are, with their indices.
    bound: Vec<(SocketAddr, usize)>,
    buffer: Arc<BodyBuffer>,
    /// Which stream a message belongs to.
    streams: Arc<ArcSwap<Streams>>,
    ids: Arc<QueueIds>,
    clock: Arc<TrustedClock>,
    committer: Committer,
    servers: JoinSet<io::Result<()>>,
    /// The one in force, and those before it whose last transactions are under way.
    dispatchers: JoinSet<()>,
    admin: JoinSet<io::Result<()>>,
    /// Asks for the directory of operators, and saves it.
    lookups: JoinSet<()>,
    no_more_mail: CancellationToken,
    no_more_claims: CancellationToken,
    no_more_questions: CancellationToken,
}

/// What is known about the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Look whether it is where it was.
    AsFound,
    /// It was restored, even if it looks the same: from a snapshot of its volume.
    Restored,
}

/// Sockets are taken before the spool is opened.
struct Sockets {
    smtp: Vec<(Server, SocketAddr, usize)>,
    http: std::net::TcpListener,
    control: admin::control::ControlSocket,
}

impl Relay {
    /// Starts everything. On `Err` nothing of it runs.
    pub async fn start(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Relay, StartError> {
        Relay::start_on(settings, clock, Data::AsFound).await
    }

    /// The same, but everything goes by legacy, and what the ramp would have done is only said.
    pub async fn start_dry(settings: &Settings, clock: Arc<dyn Clock>, data: Data) -> Result<Relay, StartError> {
        if settings.legacy.is_none() {
            return Err(StartError::no_dry_run());
        }
        Relay::start_as(settings, clock, data, true).await
    }

    /// The same; `data` says what an operator knows about the data directory and the relay cannot see.
    pub async fn start_on(settings: &Settings, clock: Arc<dyn Clock>, data: Data) -> Result<Relay, StartError> {
        Relay::start_as(settings, clock, data, false).await
    }

    async fn start_as(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        data: Data,
        dry_run: bool,
    ) -> Result<Relay, StartError> {
        raise_descriptor_limit();
        let gate = warmup_gate(settings, &StreamNames::fresh(settings))?;
        let plan = plan(settings, &gate)?;
        let front_door = FrontDoor::new(settings, DoorFiles::read(settings, clock.now())?)?;
        let unusable = |error| StartError::of_spool(error, &settings.data_dir);
        let directory = DataDirectory::open(&settings.data_dir).map_err(unusable)?;
        let sockets = Sockets::take(settings)?;
        let bound: Vec<SocketAddr> = sockets.smtp.iter().map(|(_, bound, _)| *bound).collect();
        ourselves::refuse_loops(&plan, &bound).await?;
        let disk = &settings.queue.disk;
        let watermark = Watermark::new(settings.data_dir.clone(), disk.min_free, disk.max);
        let mut store = SqliteStore::open_with(directory, watermark.clone()).map_err(unusable)?;
        // One clock for all, which goes on from what the spool has seen.
        let stored = store.ledger_rows().map_err(unusable)?;
        let mark = stored.iter().find_map(|row| if let Row::Clock { mark, .. } = row { Some(*mark) } else { None });
        let clock = Arc::new(TrustedClock::new(clock, mark));
        let since = store.since();
        let (mut spool, recovered) = Spool::open(store, clock.now()).map_err(unusable)?;
        if mark.is_none() {
            let latest = clock.now().after(plan.settle.retry.longest());
            spool.due_by(latest).map_err(unusable)?;
        }
        refuse_stranded(settings, spool.ledger())?;
        tracing::info!(
            event = "spool.opened",
            in_flight = recovered.in_flight,
            damaged = recovered.damaged,
            queued = spool.ledger().totals().map(|(.., total)| total.items).sum::<u64>()
        );
        if recovered.damaged > 0 {
            tracing::error!(
                event = "spool.damaged",
                messages = recovered.damaged,
                "what a power cut or the disk has damaged was put aside: `mailramp queue list --state quarantined`"
            );
        }
        if data == Data::Restored || since == Since::Copied {
            bring_back_paused(&mut spool, &gate, clock.now(), data).map_err(unusable)?;
        } else if since == Since::Renumbered {
            tracing::warn!(
                event = "spool.moved",
                "the data directory is on a device with another number; if it is from a snapshot of its volume, stop \
                 and start with --restored"
            );
        }
        let names = streams::name_streams(&mut spool, settings).map_err(unusable)??;
        let gate = warmup_gate(settings, &names)?;
        let plan = Plan { order: gate.order(), ..plan };
        let rows = if dry_run { Some(spool.store().ledger_rows().map_err(unusable)?) } else { None };
        assemble(settings, clock, gate, plan, front_door, sockets, watermark, spool, &names, rows)
    }

    /// Resolves when the committer has died: the process must end with 74.
    pub async fn died(&mut self) {
        self.committer.ended().await;
    }

    /// How long sessions and transactions under way may go on after a request to stop.
    pub fn grace(&self) -> Duration {
        self.settings.smtp.stop_grace
    }

    /// Stops in order, within the grace time. `Err`: the spool failed, start again to recover.
    pub async fn stop(self) -> Result<(), SpoolError> {
        self.stop_or_hurry(std::future::pending()).await
    }

    /// The same; once `hurry` resolves nobody is waited for any more. What is broken off then is found in flight by the
    /// next start, and marked so.
    pub async fn stop_or_hurry(mut self, hurry: impl Future<Output = ()>) -> Result<(), SpoolError> {
        tokio::select! {
            () = self.wind_down() => {}
            () = hurry => {}
        }
        self.no_more_claims.cancel();
        self.servers.shutdown().await;
        self.dispatchers.shutdown().await;
        self.no_more_questions.cancel();
        let ended =
            async { while self.admin.join_next().await.is_some() || self.lookups.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
        self.admin.shutdown().await;
        self.lookups.shutdown().await;
        self.backend.spool.stop().await;
        let committer = self.committer;
        tokio::task::spawn_blocking(move || committer.join()).await.unwrap_or(Err(SpoolError::Stopped))
    }

    /// No new mail, then no new claims; waits for what is under way.
    async fn wind_down(&mut self) {
        let grace = self.grace();
        let deadline = tokio::time::Instant::now() + grace;
        self.no_more_mail.cancel();
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, self.servers.join_next()).await {}
        self.servers.shutdown().await;
        self.no_more_claims.cancel();
        // A client that used up the grace time must not take it from the transactions under way: cut now, they would be
        // sent twice. What does not end in time is found in flight by the next start, and marked so.
        let deadline = deadline.max(tokio::time::Instant::now() + TRANSACTIONS_GRACE.min(grace));
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, self.dispatchers.join_next()).await {}
    }
}

impl Sockets {
    fn take(settings: &Settings) -> Result<Sockets, StartError> {
        let mut smtp = Vec::new();
        for (index, listener) in settings.listeners.iter().enumerate() {
            for &address in &listener.bind {
                let server =
                    Server::bind(ListenerSettings { address, index }).map_err(|e| cannot_listen(address, &e))?;
                let bound = server.local_addr().map_err(|e| cannot_listen(address, &e))?;
                smtp.push((server, bound, index));
            }
        }
        let address = settings.http.bind;
        let http = std::net::TcpListener::bind(address).map_err(|e| cannot_listen(address, &e))?;
        http.set_nonblocking(true).map_err(|e| cannot_listen(address, &e))?;
        let control = admin::control::ControlSocket::bind(&settings.data_dir)
            .map_err(|e| StartError::DataDirectory(format!("the control socket cannot be made: {e}")))?;
        Ok(Sockets { smtp, http, control })
    }
}

/// Mail that may have been delivered since, and a ledger that knows nothing of it: neither may go on by itself.
fn bring_back_paused(
    spool: &mut Spool<SqliteStore>,
    gate: &WarmupGate,
    now: Timestamp,
    data: Data,
) -> Result<(), SpoolError> {
    let paused = spool.bring_back_paused(gate, now)?;
    let reason = match data {
        Data::Restored => "--restored",
        Data::AsFound => "the database is not the file it was: restored or copied",
    };
    tracing::warn!(
        event = "spool.restored",
        reason,
        messages = paused.items,
        rcpts = paused.recipients,
        "the last 24 hours count as used up; the mail is paused until `mailramp queue flush --state paused --yes`"
    );
    Ok(())
}

/// Connections are descriptors, and the usual soft limit is lower than the connections we may hold.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
        if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
            tracing::warn!(event = "relay.descriptors", reason = %error, "the limit on open files stays as it is");
        }
    }
}

/// Mail that waits for a legacy server that the settings no longer know would wait for ever.
fn refuse_stranded(settings: &Settings, ledger: &Ledger) -> Result<(), StartError> {
    let stranded: u64 =
        ledger.totals().filter(|(q, _, state, _)| *q == Queue::Legacy && state.is_waiting()).map(|t| t.3.items).sum();
    if settings.legacy.is_none() && stranded > 0 {
        return Err(StartError::Settings(format!(
            "{stranded} queued messages wait for the legacy server, and there is no [legacy] any more; put it back until \
             `mailramp queue list` shows none of them"
        )));
    }
    Ok(())
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> StartError {
    match error.kind() {
        io::ErrorKind::AddrInUse => StartError::Busy(format!(
            "{address} is in use by another program; stop it, or choose another port (`bind`)"
        )),
        io::ErrorKind::PermissionDenied => StartError::Io(format!(
            "{address}: not allowed; ports below 1024 need CAP_NET_BIND_SERVICE, or choose one above"
        )),
        io::ErrorKind::AddrNotAvailable => {
            StartError::Settings(format!("{address}: this machine has no such address; change `bind`"))
        }
        _ => StartError::Io(format!("cannot listen on {address}: {error}")),
    }
}

#[expect(clippy::too_many_arguments, reason = "the pieces, each made by a step of the start that may fail")]
fn assemble(
    settings: &Settings,
    clock: Arc<TrustedClock>,
    gate: WarmupGate,
    mut plan: Plan,
    front_door: FrontDoor,
    sockets: Sockets,
    watermark: Watermark,
    mut spool: Spool<SqliteStore>,
    names: &StreamNames,
    dry_run: Option<Vec<Row>>,
) -> Result<Relay, StartError> {
    let io = |error: io::Error| StartError::Io(error.to_string());
    let default = [DEFAULT_STREAM.to_owned()];
    let metrics = Metrics::new(&Build::default(), &default).map_err(|e| StartError::Io(e.to_string()))?;
    metrics.count_streams(&names.configured(settings));
    let streams = Arc::new(ArcSwap::from_pointee(names.classifier(settings)));
    let metrics = Arc::new(metrics);
    metrics.settings_loaded(clock.now());
    let (no_more_mail, no_more_claims, no_more_questions) = Default::default();
    let ids = Arc::new(QueueIds::after(spool.last_message()));
    let lines = waiting_lines(spool.ledger());
    let unusable = |error| StartError::of_spool(error, &settings.data_dir);
    let reader = Arc::new(QueueReader::open(&settings.data_dir).map_err(unusable)?);
    let no_claims: CancellationToken = no_more_claims;
    let holds = spool.store().holds();
    let (operators, questions) =
        Operators::new(&settings.data_dir, directory::terms(settings), clock.clone(), metrics.clone());
    let heard_until = spool.ledger().clock().map_or(clock.now(), |mark| mark.time);
    let gate = gate.with_directory(operators.clone());
    let gate = Arc::new(if dry_run.is_some() { LiveGate::dry(gate) } else { LiveGate::new(gate) });
    let as_if = |rows: Vec<Row>| {
        DryRun::new(&rows, gate.clone(), clock.clone(), metrics.clone(), names.all().to_vec()).map_err(unusable)
    };
    let dry_run = dry_run.map(as_if).transpose()?;
    plan.order = gate.current().order_now(spool.ledger(), clock.now());
    let brakes = Brakes::new(feedback::Terms::of(settings), operators.clone(), clock.clone(), metrics.clone());
    brakes.begin(spool.ledger());
    let brakes = Arc::new(brakes);
    plan.feedback = brakes.clone();
    let dispatcher = Dispatcher::new(plan, clock.clone(), ids.clone(), metrics.clone(), no_claims.child_token());
    let routes = Arc::new(LiveRoutes::new(dispatcher.clone()));
    let (handle, committer) = committer::start(spool, gate.clone(), routes.clone(), clock.clone()).map_err(io)?;
    let buffer = Arc::new(BodyBuffer::new(settings.smtp.limits.body_buffer, settings.data_dir.join("large")));
    let intake = Arc::new(SpoolIntake {
        spool: handle.clone(),
        buffer: buffer.clone(),
        ids: ids.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        watermark: watermark.clone(),
        operators: operators.clone(),
        streams: streams.clone(),
        dry_run: dry_run.clone(),
    });
    let stopping: CancellationToken = no_more_mail;
    let bound: Vec<_> = sockets.smtp.iter().map(|(_, address, index)| (*address, *index)).collect();
    let backend = Arc::new(RelayBackend {
        operators: operators.clone(),
        brakes: brakes.clone(),
        spool: handle.clone(),
        reader,
        gate,
        routes,
        metrics: metrics.clone(),
        last_job: Default::default(),
        moves_told: Default::default(),
        dry_run: dry_run.clone(),
        clock: clock.clone(),
        holds,
        watermark,
        streams: ArcSwap::from_pointee(names.all().to_vec()),
        configured: ArcSwap::from_pointee(names.configured(settings)),
        zone: ArcSwap::from_pointee(zone_name(settings)),
        listeners: ArcSwap::from_pointee(probes(settings, &bound)),
        stopping: stopping.clone(),
    });
    let mut servers = JoinSet::new();
    for (server, _, index) in sockets.smtp {
        let door = Door {
            intake: intake.clone(),
            counts: front_door.counts.clone(),
            observer: Arc::new(DoorCounter(metrics.clone())),
            authenticator: None,
            tls: None,
        };
        servers.spawn(server.run_by(door, front_door.terms(index), stopping.clone()));
    }
    let mut dispatchers = JoinSet::new();
    dispatchers.spawn(dispatcher.run(handle.clone(), lines));
    let quiet: CancellationToken = no_more_questions;
    let mut lookups = JoinSet::new();
    lookups.spawn(questions.run(quiet.clone()));
    let http = sockets.http.local_addr().map_err(io)?;
    let listener = tokio::net::TcpListener::from_std(sockets.http).map_err(io)?;
    let mut admin = JoinSet::new();
    admin.spawn(admin::server::serve(listener, backend.clone(), metrics.clone(), quiet.clone().cancelled_owned()));
    if let Some(dry_run) = dry_run {
        let quiet = quiet.clone().cancelled_owned();
        admin.spawn(async move {
            tokio::select! {
                () = dry_run.run() => {}
                () = quiet => {}
            }
            Ok(())
        });
    }
    let telling = brakes.clone().run(handle, quiet.clone());
    admin.spawn(async move {
        telling.await;
        Ok(())
    });
    let (moves, quiet_moves) = (backend.clone().tell_of_moves(heard_until), quiet.clone().cancelled_owned());
    admin.spawn(async move {
        tokio::select! {
            () = moves => {}
            () = quiet_moves => {}
        }
        Ok(())
    });
    let control = sockets.control.serve(backend.clone(), quiet.clone().cancelled_owned());
    admin.spawn(async move {
        control.await;
        Ok(())
    });
    Ok(Relay {
        smtp: bound.iter().map(|(address, _)| *address).collect(),
        http,
        backend,
        metrics,
        operators,
        settings: Arc::new(settings.clone()),
        front_door,
        bound,
        buffer,
        streams,
        ids,
        clock,
        committer,
        servers,
        dispatchers,
        admin,
        lookups,
        no_more_mail: stopping,
        no_more_claims: no_claims,
        no_more_questions: quiet,
    })
}

fn zone_name(settings: &Settings) -> String {
    settings.timezone.iana_name().unwrap_or("UTC").to_owned()
}

fn waiting_lines(ledger: &Ledger) -> Vec<(Queue, StreamId)> {
    let waiting = ledger.totals().filter(|(_, _, state, total)| state.is_waiting() && total.items > 0);
    let mut lines: Vec<_> = waiting.map(|(queue, stream, ..)| (queue, stream)).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// The ramp as configured.
pub fn warmup_gate(settings: &Settings, names: &StreamNames) -> Result<WarmupGate, StartError> {
    let calendar = Calendar::new(settings.timezone.clone());
    let Some(warmup) = &settings.warmup else {
        return Ok(WarmupGate::new(None, calendar, names.rules(settings)).with_life(settings.queue.max_age));
    };
    let wrong = |error: &dyn std::error::Error| StartError::Settings(format!("[warmup]: {error}"));
    let overflow = streams::overflow(warmup.overflow);
    let window = &warmup.pace.window;
    let rules = Rules {
        curve: warmup.shape.clone(),
        target: warmup.target,
        min_used: warmup.advance.min_used,
        advance: match warmup.advance.on {
            config::AdvanceOn::SendingDay => policy::Advance::SendingDay,
            config::AdvanceOn::Calendar => policy::Advance::Calendar,
        },
        max_step: warmup.max_step,
        after_brake: match warmup.brake.next_day {
            config::NextDay::Repeat => policy::AfterBrake::Repeat,
            config::NextDay::StepBack => policy::AfterBrake::StepBack,
        },
        hourly: warmup.pace.hourly,
        burst: warmup.pace.burst,
        window: clock_times(window.opens_minute, window.closes_minute).parse().map_err(|e| wrong(&e))?,
        start: Some(warmup.start.map_or(STARTED_ALREADY, policy::calendar::day_of_date)),
        calendar: calendar.clone(),
        overflow,
        retry: retry_schedule(settings)?,
    };
    rules.check(&[], &StreamNames::fresh(settings).rules(settings)).map_err(|e| wrong(&e))?;
    let gate = WarmupGate::new(Some(rules), calendar, names.rules(settings)).with_life(settings.queue.max_age);
    Ok(gate.with_lanes(warmup.providers.clone()).with_brake(brake_rules(&warmup.brake)))
}

fn brake_rules(brake: &config::BrakeSettings) -> policy::BrakeRules {
    policy::BrakeRules {
        window: brake.window,
        defer_ratio: brake.defer_ratio,
        min_attempts: brake.min_attempts,
        hold: brake.hold,
    }
}

fn clock_times(opens_minute: u16, closes_minute: u16) -> String {
    let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!("{}-{}", time(opens_minute), time(closes_minute))
}

fn retry_schedule(settings: &Settings) -> Result<RetrySchedule, StartError> {
    RetrySchedule::new(settings.queue.retry.clone(), settings.queue.jitter)
        .map_err(|error| StartError::Settings(format!("[queue] retry: {error}")))
}

fn plan(settings: &Settings, gate: &WarmupGate) -> Result<Plan, StartError> {
    let resolver = crate::dns::resolver(&settings.dns.servers, settings.dns.timeout);
    let route = |route, upstream| route_plan(route, upstream, resolver.clone());
    let legacy = settings.legacy.as_ref().map(|legacy| route(Route::Legacy, legacy)).transpose()?;
    let reports_by = if legacy.is_some() { Route::Legacy } else { Route::New };
    let rules =
        SettleRules::new(retry_schedule(settings)?, settings.queue.max_age, settings.smtp.hostname.clone(), reports_by);
    Ok(Plan {
        settle: SettleRules {
            fallback: fallback_rules(&settings.queue.fallback_on),
            undated_falls_back: settings.warmup.is_none(),
            reports: ReportRules { late_after: settings.queue.dsn.delay_notice, ..rules.reports },
            ..rules
        },
        reports_per_hour: settings.queue.dsn.per_sender_per_hour,
        new: route(Route::New, &settings.new)?,
        legacy,
        order: gate.order(),
        feedback: Arc::new(NoFeedback),
    })
}

fn fallback_rules(on: &[config::FallbackOn]) -> FallbackRules {
    FallbackRules {
        connect: on.contains(&config::FallbackOn::Connect),
        tls: on.contains(&config::FallbackOn::Tls),
        auth: on.contains(&config::FallbackOn::Auth),
        reputation: on.contains(&config::FallbackOn::Reputation),
    }
}

fn route_plan(route: Route, upstream: &Upstream, resolver: Arc<dyn Resolver>) -> Result<RoutePlan, StartError> {
    let connectors = TlsConnectors::new(upstream.tls.ca_file.as_deref())
        .map_err(|error| StartError::Settings(format!("[{route}.tls]: {error}")))?;
    let level = match upstream.tls.level {
        ConfiguredTls::Off => TlsLevel::Off,
        ConfiguredTls::May => TlsLevel::May,
        ConfiguredTls::Encrypt => TlsLevel::Encrypt,
        ConfiguredTls::Verify => TlsLevel::Verify,
    };
    let target = Target {
        route,
        hosts: upstream.hosts.iter().map(|h| Host { name: h.host.clone(), port: h.port }).collect(),
        helo: upstream.helo.clone(),
        source_ip: upstream.source_ip,
        credentials: upstream
            .credentials
            .as_ref()
            .map(|c| Credentials { user: c.user.clone(), password: c.password.clone() }),
        tls: TlsPolicy { level, implicit: upstream.tls.implicit, connectors },
        timeouts: Timeouts {
            connect: upstream.timeouts.connect,
            command: upstream.timeouts.command,
            data: upstream.timeouts.data,
        },
        resolver,
    };
    Ok(RoutePlan {
        target,
        connections: upstream.connections,
        messages_per_connection: upstream.messages_per_connection,
        max_per_minute: upstream.max_per_minute,
    })
}
