//! The one place that joins the concrete pieces: front door, spool, policy, delivery, admin plane.
//!
//! Everything that can refuse (data directory, ports, certificates) is tried before anything runs, so a relay is
//! started as a whole or not at all. Stopping goes the way of a message: first no new mail, then no new claims, then
//! the transactions under way end, then the committer.

pub mod backend;
pub mod gate;
pub mod intake;
mod queue;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, ListenerProbe, ProbeDepth};
use crate::clock::{Clock, TrustedClock};
use crate::config::{self, OverflowPolicy, Settings, TlsLevel as ConfiguredTls, Upstream};
use crate::delivery::dispatcher::{Dispatcher, Plan, QueueIds, RoutePlan};
use crate::delivery::fallback::FallbackRules;
use crate::delivery::opening::{Credentials, Host, Target, Timeouts};
use crate::delivery::settle::SettleRules;
use crate::delivery::tls::{TlsConnectors, TlsLevel, TlsPolicy};
use crate::dns::Resolver;
use crate::message::{Day, Queue, Route, StreamId, Timestamp};
use crate::metrics::{Build, Metrics};
use crate::policy::{self, Calendar, Overflow, RetrySchedule, Rules, StreamRules};
use crate::smtp::guessing::GuessRules;
use crate::smtp::user_file::UserFile;
use crate::smtp::users::Users;
use crate::smtp::{
    AuthPolicy, Authenticator, CertificateError, ConnectionCounts, Door, ListenerSettings, Server, ServerTls,
    SessionSettings, TlsMode,
};
use crate::spool::body::BodyBuffer;
use crate::spool::committer::{self, Committer, SpoolHandle};
use crate::spool::disk::{DataDirectory, Watermark};
use crate::spool::identity::Since;
use crate::spool::reader::QueueReader;
use crate::spool::sqlite::{DiskLimits, SqliteStore};
use crate::spool::{Ledger, Row, Spool, SpoolError, Store};
use backend::RelayBackend;
use gate::WarmupGate;
use intake::{DoorCounter, SpoolIntake, admits_loopback};

/// Name of the stream of mail that matches no other.
const DEFAULT_STREAM: &str = "default";
/// Transactions under way when the last session has ended get at least this long, if the grace time is not shorter.
const TRANSACTIONS_GRACE: Duration = Duration::from_secs(5);
/// Descriptors beside those of connections: database, segments, large bodies, listeners, the log.
const DESCRIPTORS_BESIDE: u64 = 200;
/// A start date nobody set: the first day the relay runs is the first of the ramp, since a lane begins at stage 0.
const STARTED_ALREADY: Day = Day(i32::MIN);
/// A certificate with less time left is worth a warning.
const CERTIFICATE_SHORT: Duration = Duration::from_secs(14 * 86_400);

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
    fn of_spool(error: SpoolError) -> StartError {
        match error {
            SpoolError::Locked(path) => StartError::Busy(format!(
                "the data directory {path} is in use by another mailramp process; stop that one, or set another data_dir"
            )),
            SpoolError::Directory(text) => StartError::DataDirectory(text),
            damaged @ SpoolError::Damaged { .. } => StartError::Io(damaged.to_string()),
            other => StartError::Io(format!("the spool cannot be opened: {other}")),
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
    /// The certificate that listeners with TLS show.
    tls: Option<Arc<ServerTls>>,
    clock: Arc<dyn Clock>,
    committer: Committer,
    servers: JoinSet<io::Result<()>>,
    dispatcher: tokio::task::JoinHandle<()>,
    admin: JoinSet<io::Result<()>>,
    no_more_mail: CancellationToken,
    no_more_claims: CancellationToken,
    no_more_questions: CancellationToken,
    grace: Duration,
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

/// What the front door needs beside its sockets; `None` when no listener needs it.
struct FrontDoor {
    tls: Option<Arc<ServerTls>>,
    users: Option<Arc<Users>>,
}

impl Relay {
    /// Starts everything. On `Err` nothing of it runs.
    pub async fn start(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Relay, StartError> {
        Relay::start_on(settings, clock, Data::AsFound).await
    }

    /// The same; `data` says what an operator knows about the data directory and the relay cannot see.
    pub async fn start_on(settings: &Settings, clock: Arc<dyn Clock>, data: Data) -> Result<Relay, StartError> {
        raise_descriptor_limit();
        let gate = Arc::new(warmup_gate(settings)?);
        let plan = plan(settings, &gate)?;
        let tls = server_tls(settings)?;
        if let Some(tls) = &tls {
            warn_of_expiry(tls, clock.now());
        }
        let users = users(settings)?;
        let directory = DataDirectory::open(&settings.data_dir).map_err(StartError::of_spool)?;
        let sockets = Sockets::take(settings)?;
        let limits = DiskLimits { min_free: settings.queue.disk.min_free, max_used: settings.queue.disk.max };
        let mut store = SqliteStore::open(directory, limits).map_err(StartError::of_spool)?;
        // One clock for all, which goes on from what the spool has seen.
        let stored = store.ledger_rows().map_err(StartError::of_spool)?;
        let mark = stored.iter().find_map(|row| if let Row::Clock { mark, .. } = row { Some(*mark) } else { None });
        let clock = Arc::new(TrustedClock::new(clock, mark));
        let since = store.since();
        let (mut spool, recovered) = Spool::open(store, clock.now()).map_err(StartError::of_spool)?;
        if mark.is_none() {
            let latest = clock.now().after(plan.settle.retry.longest());
            spool.due_by(latest).map_err(StartError::of_spool)?;
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
            bring_back_paused(&mut spool, &gate, clock.now(), data)?;
        } else if since == Since::Renumbered {
            tracing::warn!(
                event = "spool.moved",
                "the data directory is on a device with another number; if it is from a snapshot of its volume, stop \
                 and start with --restored"
            );
        }
        assemble(settings, clock, gate, plan, FrontDoor { tls, users }, sockets, spool)
    }

    /// Reads the certificate for the front door anew; sessions under way keep theirs. On `Err` the old one stays in
    /// use. Does nothing when no listener has TLS.
    pub async fn reload_certificate(&self, settings: &Settings) -> Result<(), CertificateError> {
        let (Some(tls), Some((cert, key))) = (self.tls.clone(), settings.tls_files()) else { return Ok(()) };
        let (reloading, cert, key) = (tls.clone(), cert.to_owned(), key.to_owned());
        let reload = tokio::task::spawn_blocking(move || reloading.reload(&cert, &key));
        reload.await.expect("reading a certificate does not panic")?;
        let days_left = days_left(&tls, self.clock.now());
        tracing::info!(event = "tls.reloaded", days_left);
        warn_of_expiry(&tls, self.clock.now());
        Ok(())
    }

    /// Resolves when the committer has died: the process must end with 74.
    pub async fn died(&mut self) {
        self.committer.ended().await;
    }

    /// Stops in order, within the grace time. `Err`: the spool failed, start again to recover.
    pub async fn stop(mut self) -> Result<(), SpoolError> {
        let deadline = tokio::time::Instant::now() + self.grace;
        self.no_more_mail.cancel();
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, self.servers.join_next()).await {}
        self.servers.shutdown().await;
        self.no_more_claims.cancel();
        // A client that used up the grace time must not take it from the transactions under way: cut now, they would be
        // sent twice. What does not end in time is found in flight by the next start, and marked so.
        let least = tokio::time::Instant::now() + TRANSACTIONS_GRACE.min(self.grace);
        let _ = tokio::time::timeout_at(deadline.max(least), &mut self.dispatcher).await;
        self.dispatcher.abort();
        self.no_more_questions.cancel();
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(1), self.admin.join_next()).await {}
        self.admin.shutdown().await;
        self.backend.spool.stop().await;
        let committer = self.committer;
        tokio::task::spawn_blocking(move || committer.join()).await.unwrap_or(Err(SpoolError::Stopped))
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
) -> Result<(), StartError> {
    let paused = spool.bring_back_paused(gate, now).map_err(StartError::of_spool)?;
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

/// The certificate that the settings name, checked as a start does. `None`: no listener has TLS.
pub fn server_tls(settings: &Settings) -> Result<Option<Arc<ServerTls>>, StartError> {
    let Some((cert, key)) = settings.tls_files() else { return Ok(None) };
    match ServerTls::load(cert, key) {
        Ok(tls) => Ok(Some(Arc::new(tls))),
        Err(error) => Err(StartError::Settings(error.to_string())),
    }
}

/// Whole days until the certificate expires; negative when it has.
fn days_left(tls: &ServerTls, now: Timestamp) -> i64 {
    (tls.not_after().seconds() - now.seconds()).div_euclid(86_400)
}

fn warn_of_expiry(tls: &ServerTls, now: Timestamp) {
    if tls.not_after() < now.after(CERTIFICATE_SHORT) {
        let days_left = days_left(tls, now);
        tracing::warn!(event = "tls.expiring", days_left, "renew `smtp.tls.cert`, then send SIGHUP");
    }
}

/// Clients we can serve at once without running out of descriptors for the mail itself.
fn most_connections(settings: &Settings) -> usize {
    let wanted = settings.smtp.limits.connections;
    let upstream = settings.new.connections + settings.legacy.as_ref().map_or(0, |legacy| legacy.connections);
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = descriptors.saturating_sub(DESCRIPTORS_BESIDE + upstream as u64).max(1);
    if wanted > room {
        tracing::warn!(
            event = "relay.descriptors",
            limit = room,
            "fewer connections than smtp.limits.connections: the limit on open files is too low"
        );
    }
    usize::try_from(wanted.min(room)).unwrap_or(usize::MAX)
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

fn assemble(
    settings: &Settings,
    clock: Arc<TrustedClock>,
    gate: Arc<WarmupGate>,
    plan: Plan,
    front_door: FrontDoor,
    sockets: Sockets,
    mut spool: Spool<SqliteStore>,
) -> Result<Relay, StartError> {
    let io = |error: io::Error| StartError::Io(error.to_string());
    let streams = vec![DEFAULT_STREAM.to_owned()];
    let metrics = Metrics::new(&Build::default(), &streams).map_err(|e| StartError::Io(e.to_string()))?;
    let metrics = Arc::new(metrics);
    metrics.settings_loaded(clock.now());
    let (no_more_mail, no_more_claims, no_more_questions) = Default::default();
    let ids = Arc::new(QueueIds::after(spool.last_message()));
    let lines = waiting_lines(spool.ledger());
    let reader = Arc::new(QueueReader::open(&settings.data_dir).map_err(StartError::of_spool)?);
    let no_claims: CancellationToken = no_more_claims;
    let holds = spool.store().holds();
    let dispatcher = Dispatcher::new(plan, clock.clone(), ids.clone(), metrics.clone(), no_claims.clone());
    let (handle, committer) = committer::start(spool, gate.clone(), dispatcher.clone(), clock.clone()).map_err(io)?;
    let watermark = Watermark {
        path: settings.data_dir.clone(),
        min_free: settings.queue.disk.min_free,
        max_used: settings.queue.disk.max,
    };
    let intake = Arc::new(SpoolIntake {
        spool: handle.clone(),
        buffer: Arc::new(BodyBuffer::new(settings.smtp.limits.body_buffer, settings.data_dir.join("large"))),
        ids,
        clock: clock.clone(),
        metrics: metrics.clone(),
        watermark: watermark.clone(),
    });
    let stopping: CancellationToken = no_more_mail;
    let backend = Arc::new(RelayBackend {
        spool: handle.clone(),
        reader,
        gate,
        dispatcher: dispatcher.clone(),
        metrics: metrics.clone(),
        last_job: Default::default(),
        clock: clock.clone(),
        holds,
        watermark,
        streams,
        zone: settings.timezone.iana_name().unwrap_or("UTC").to_owned(),
        listeners: probes(settings, &sockets.smtp),
        stopping: stopping.clone(),
    });
    let smtp = sockets.smtp.iter().map(|(_, bound, _)| *bound).collect();
    let FrontDoor { tls, users } = front_door;
    let counts = Arc::new(ConnectionCounts::new(most_connections(settings), settings.smtp.limits.per_ip as usize));
    let door = || Door {
        intake: intake.clone(),
        counts: counts.clone(),
        observer: Arc::new(DoorCounter(metrics.clone())),
        authenticator: users.clone().map(|users| users as Arc<dyn Authenticator>),
        tls: tls.clone(),
    };
    let servers = serve(settings, sockets.smtp, door, &stopping);
    let dispatcher = tokio::spawn(run_dispatcher(dispatcher, handle, lines));
    let quiet: CancellationToken = no_more_questions;
    let http = sockets.http.local_addr().map_err(io)?;
    let listener = tokio::net::TcpListener::from_std(sockets.http).map_err(io)?;
    let mut admin = JoinSet::new();
    admin.spawn(admin::server::serve(listener, backend.clone(), metrics.clone(), quiet.clone().cancelled_owned()));
    let control = sockets.control.serve(backend.clone(), quiet.clone().cancelled_owned());
    admin.spawn(async move {
        control.await;
        Ok(())
    });
    Ok(Relay {
        smtp,
        http,
        backend,
        metrics,
        tls,
        clock,
        committer,
        servers,
        dispatcher,
        admin,
        no_more_mail: stopping,
        no_more_claims: no_claims,
        no_more_questions: quiet,
        grace: settings.smtp.stop_grace,
    })
}

async fn run_dispatcher(dispatcher: Arc<Dispatcher>, spool: SpoolHandle, lines: Vec<(Queue, StreamId)>) {
    dispatcher.run(spool, lines).await;
}

fn waiting_lines(ledger: &Ledger) -> Vec<(Queue, StreamId)> {
    let waiting = ledger.totals().filter(|(_, _, state, total)| state.is_waiting() && total.items > 0);
    let mut lines: Vec<_> = waiting.map(|(queue, stream, ..)| (queue, stream)).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

fn serve(
    settings: &Settings,
    sockets: Vec<(Server, SocketAddr, usize)>,
    door: impl Fn() -> Door<SpoolIntake>,
    stopping: &CancellationToken,
) -> JoinSet<io::Result<()>> {
    let mut servers = JoinSet::new();
    for (server, _, index) in sockets {
        let session = Arc::new(session_settings(settings, &settings.listeners[index]));
        servers.spawn(server.run(door(), session, stopping.clone()));
    }
    servers
}

fn users(settings: &Settings) -> Result<Option<Arc<Users>>, StartError> {
    let Some(file) = user_file(settings)? else { return Ok(None) };
    Ok(Some(Arc::new(Users::new(file, guess_rules(settings)).map_err(StartError::Io)?)))
}

/// Who may log in; `None` when the settings name no file.
pub fn user_file(settings: &Settings) -> Result<Option<UserFile>, StartError> {
    let users = &settings.smtp.users;
    let (Some(path), Some(text)) = (&users.file, &users.text) else { return Ok(None) };
    let file = UserFile::parse(text.expose_secret(), &path.display().to_string());
    file.map(Some).map_err(|faults| StartError::Settings(faults.join("\n")))
}

fn guess_rules(settings: &Settings) -> GuessRules {
    let auth = &settings.smtp.auth;
    GuessRules { failures: auth.failures as usize, within: auth.within, block: auth.block }
}

/// What sessions of one listener go by.
fn session_settings(settings: &Settings, listener: &config::Listener) -> SessionSettings {
    let (limits, timeouts) = (&settings.smtp.limits, &settings.smtp.timeouts);
    SessionSettings {
        hostname: settings.smtp.hostname.clone(),
        max_message_bytes: limits.message,
        max_recipients: limits.recipients as usize,
        max_header_bytes: limits.headers,
        max_errors: limits.errors,
        allow_from: listener.allow_from.clone(),
        tls: match listener.tls {
            config::ListenerTls::Off => TlsMode::Off,
            config::ListenerTls::StartTls => TlsMode::StartTls,
            config::ListenerTls::Implicit => TlsMode::Implicit,
        },
        auth: match listener.auth {
            config::ListenerAuth::Off => AuthPolicy::Off,
            config::ListenerAuth::Optional => AuthPolicy::Optional,
            config::ListenerAuth::Required => AuthPolicy::Required,
        },
        auth_in_clear: listener.auth_clear,
        normalize: match settings.smtp.bare_newline {
            config::BareNewline::Reject => settings.smtp.normalize_from.clone(),
            config::BareNewline::Normalize => everybody(),
        },
        timeouts: crate::smtp::Timeouts {
            first_command: timeouts.first,
            idle: timeouts.idle,
            command: timeouts.command,
            data_min_rate: timeouts.data_rate,
            handshake: timeouts.handshake,
            shutdown_grace: settings.smtp.stop_grace,
            ..Default::default()
        },
    }
}

fn everybody() -> Vec<ipnet::IpNet> {
    vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}

fn probes(settings: &Settings, bound: &[(Server, SocketAddr, usize)]) -> Vec<ListenerProbe> {
    let probe = |(_, address, index): &(Server, SocketAddr, usize)| {
        let listener = &settings.listeners[*index];
        let depth = match admits_loopback(&listener.allow_from, address.ip()) {
            _ if listener.tls == config::ListenerTls::Implicit => ProbeDepth::Connect,
            true => ProbeDepth::Recipient(format!("postmaster@{}", settings.smtp.hostname)),
            false => ProbeDepth::Greeting,
        };
        ListenerProbe { address: *address, depth }
    };
    bound.iter().map(probe).collect()
}

/// The ramp as configured.
pub fn warmup_gate(settings: &Settings) -> Result<WarmupGate, StartError> {
    let calendar = Calendar::new(settings.timezone.clone());
    let Some(warmup) = &settings.warmup else {
        return Ok(WarmupGate::new(None, calendar, vec![StreamRules::default()]));
    };
    let wrong = |error: &dyn std::error::Error| StartError::Settings(format!("[warmup]: {error}"));
    let overflow = match warmup.overflow.policy {
        OverflowPolicy::Legacy => Overflow::Legacy,
        OverflowPolicy::HoldThenLegacy => Overflow::HoldThenLegacy { max_wait: warmup.overflow.max_wait },
        OverflowPolicy::Hold => Overflow::Hold,
    };
    let stream = StreamRules { overflow, ..StreamRules::default() };
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
        hourly: warmup.pace.hourly,
        burst: warmup.pace.burst,
        window: clock_times(window.opens_minute, window.closes_minute).parse().map_err(|e| wrong(&e))?,
        start: Some(warmup.start.map_or(STARTED_ALREADY, policy::calendar::day_of_date)),
        calendar: calendar.clone(),
        overflow,
        retry: retry_schedule(settings)?,
        ..Rules::default()
    };
    rules.check(&[], &[stream]).map_err(|e| wrong(&e))?;
    Ok(WarmupGate::new(Some(rules), calendar, vec![stream]))
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
            ..rules
        },
        new: route(Route::New, &settings.new)?,
        legacy,
        order: gate.order(),
    })
}

fn fallback_rules(on: &[config::FallbackOn]) -> FallbackRules {
    FallbackRules {
        connect: on.contains(&config::FallbackOn::Connect),
        tls: on.contains(&config::FallbackOn::Tls),
        auth: on.contains(&config::FallbackOn::Auth),
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
