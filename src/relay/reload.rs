//! New settings for a relay that runs.
//!
//! Everything that can refuse is tried first; then all of it is replaced, so that the settings in force are always those
//! of one file. No session is cut and no delivery is broken off: sessions go on by the settings they began with, and each
//! connection to a next hop closes after the message it is at, while others are opened by the new settings.
//!
//! What other processes hold on to (directory, ports) and what would lift a limit within the day needs a restart, and is
//! refused here together with everything that came with it. The ledger and today's limit stay as they are.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use secrecy::ExposeSecret;

use super::dry_run;
use super::feedback::Terms;
use super::front_door::{DoorFiles, probes};
use super::gate::WarmupGate;
use super::ourselves::refuse_loops;
use super::streams::{self, StreamNames};
use super::{Relay, StartError, directory, plan, refuse_stranded, waiting_lines, warmup_gate, zone_name};
use crate::clock::Clock;
use crate::config::{self, Loaded, LogAddresses, LogLevel, Settings};
use crate::delivery::dispatcher::{Dispatcher, Plan};
use crate::log;
use crate::message::{DaySpan, LaneId, Queue, Reason, Recipient, Route, StreamId, Timestamp};
use crate::policy::classify::Rule;
use crate::spool::committer::Outlet;
use crate::spool::{
    Admission, Ask, Chore, Claimed, Done, Gate, Grant, Ledger, SetLane, Slots, Telling, Told, Touched, Turn, What,
};

/// Why the new settings are not used. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// They are valid, but only for a start. One line for each key.
    #[error("{0}")]
    NeedsRestart(String),
    /// A start would refuse them too.
    #[error("{0}")]
    Refused(StartError),
    /// The committer has ended, and with it the relay.
    #[error("the relay is stopping")]
    Stopping,
}

impl From<StartError> for ReloadError {
    fn from(error: StartError) -> Self {
        ReloadError::Refused(error)
    }
}

/// The ramp in force.
#[derive(Debug)]
pub struct LiveGate {
    gate: ArcSwap<WarmupGate>,
    /// Nothing leaves by new, and the ramp stands still.
    dry_run: bool,
}

impl LiveGate {
    pub fn new(gate: WarmupGate) -> Self {
        LiveGate { gate: ArcSwap::from_pointee(gate), dry_run: false }
    }

    /// The same for a run in which everything goes by legacy.
    pub fn dry(gate: WarmupGate) -> Self {
        LiveGate { dry_run: true, ..LiveGate::new(gate) }
    }

    pub fn current(&self) -> Arc<WarmupGate> {
        self.gate.load_full()
    }

    fn replace(&self, gate: WarmupGate) {
        self.gate.store(Arc::new(gate));
    }
}

impl Gate for LiveGate {
    fn turn(&self, ledger: &Ledger, now: Timestamp) -> Option<Turn> {
        match self.dry_run {
            true => dry_run::turn(&self.gate.load(), ledger, now),
            false => self.gate.load().turn(ledger, now),
        }
    }

    fn admit(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Admission {
        if self.dry_run { dry_run::admit() } else { self.gate.load().admit(ledger, ask, now) }
    }

    fn grant(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Grant {
        match self.dry_run {
            true => Grant::None { until: Timestamp::NEVER, stream_only: false },
            false => self.gate.load().grant(ledger, ask, now),
        }
    }

    fn life(&self) -> Option<Duration> {
        self.gate.load().life()
    }

    fn gives_back(&self, ledger: &Ledger, lane: LaneId, stream: StreamId, now: Timestamp) -> Option<Reason> {
        match self.dry_run {
            true => dry_run::gives_back(&self.gate.load(), ledger, stream, now),
            false => self.gate.load().gives_back(ledger, lane, stream, now),
        }
    }

    fn lane_of(&self, recipient: &Recipient) -> Option<LaneId> {
        self.gate.load().lane_of(recipient)
    }

    fn watches_bursts(&self, stream: StreamId) -> bool {
        self.gate.load().watches_bursts(stream)
    }

    fn order(&self, ledger: &Ledger, now: Timestamp) -> Option<Vec<StreamId>> {
        Some(self.gate.load().order_now(ledger, now))
    }

    fn set_day(&self, ledger: &Ledger, stage: u32, now: Timestamp) -> Vec<SetLane> {
        // The ramp stands where it is until a real run.
        if self.dry_run { Vec::new() } else { self.gate.load().set_day(ledger, stage, now) }
    }

    fn span_at(&self, now: Timestamp) -> Option<DaySpan> {
        self.gate.load().span_at(now)
    }
}

/// The dispatcher in force, for the committer. It must not be replaced while a connection of the old one is taken
/// ([`Dispatcher::retire`]).
pub struct LiveRoutes(ArcSwap<Dispatcher>);

impl LiveRoutes {
    pub fn new(dispatcher: Arc<Dispatcher>) -> Self {
        LiveRoutes(ArcSwap::new(dispatcher))
    }

    pub fn current(&self) -> Arc<Dispatcher> {
        self.0.load_full()
    }
}

impl Slots for LiveRoutes {
    fn take(&self, route: Route) -> bool {
        self.0.load().take(route)
    }

    fn give_back(&self, route: Route, count: usize) {
        self.0.load().give_back(route, count);
    }
}

impl Outlet for LiveRoutes {
    fn deliver(&self, items: Vec<Claimed>) {
        self.0.load().deliver(items);
    }

    fn expired(&self, items: Vec<Claimed>) {
        self.0.load().expired(items);
    }

    fn touched(&self, lines: Vec<Touched>, refunded: Vec<Queue>, wake: Option<Timestamp>) {
        self.0.load().touched(lines, refunded, wake);
    }

    fn clock_moved(&self) {
        self.0.load().clock_moved();
    }

    fn committed(&self, done: &Done, took: std::time::Duration) {
        self.0.load().committed(done, took);
    }
}

impl Relay {
    /// Goes on with these settings. On `Err` the old ones stay in force, all of them.
    pub async fn reload(&mut self, loaded: &Loaded) -> Result<(), ReloadError> {
        let (old, new) = (self.settings.clone(), Arc::new(loaded.settings.clone()));
        if self.backend.dry_run.is_some() && new.legacy.is_none() {
            return Err(StartError::no_dry_run().into());
        }
        let faults = needs_restart(&old, loaded);
        if !faults.is_empty() {
            return Err(ReloadError::NeedsRestart(faults.join("\n")));
        }
        let plan = plan(&new, &warmup_gate(&new, &StreamNames::fresh(&new))?)?;
        refuse_loops(&plan, &self.smtp).await?;
        let (settings, now) = (new.clone(), self.clock.now());
        let files = tokio::task::spawn_blocking(move || DoorFiles::read(&settings, now)).await;
        let files = files.expect("reading a certificate does not panic")?;
        let settings = new.clone();
        let stranded = self.backend.spool.look(move |ledger, _| refuse_stranded(&settings, ledger)).await;
        stranded.map_err(|_| ReloadError::Stopping)??;
        let names = self.name_streams(&new).await?;
        let gate = warmup_gate(&new, &names)?;
        let plan = Plan { order: gate.order(), feedback: self.backend.brakes.clone(), ..plan };
        self.front_door.change(&new, files)?;

        // From here on nothing refuses.
        self.settings = new.clone();
        self.buffer.change(new.smtp.limits.body_buffer);
        self.backend.watermark.change(new.queue.disk.min_free, new.queue.disk.max);
        self.backend.listeners.store(Arc::new(probes(&new, &self.bound)));
        self.metrics.count_streams(&names.configured(&new));
        self.backend.streams.store(Arc::new(names.all().to_vec()));
        if let Some(dry_run) = &self.backend.dry_run {
            dry_run.rename(names.all().to_vec());
        }
        self.backend.configured.store(Arc::new(names.configured(&new)));
        log::show_addresses(shown_addresses(&new));
        log::change_level(log_level(&new));
        self.backend.brakes.change(Terms::of(&new));
        if delivery_differs(&old, &new) {
            self.backend.gate.replace(gate.with_directory(self.operators.clone()));
            // Behind the gate: it must know the lanes before anybody is put into one.
            self.operators.change(directory::terms(&new));
            self.backend.zone.store(Arc::new(zone_name(&new)));
            self.replace_routes(plan).await?;
        }
        // Behind the gate: what is taken for a new stream meets the rules of that stream.
        self.streams.store(Arc::new(names.classifier(&new)));
        self.metrics.settings_loaded(self.clock.now());
        Ok(())
    }

    /// Streams that came with the settings get their numbers. They keep them even if the settings are refused.
    async fn name_streams(&self, settings: &Settings) -> Result<StreamNames, ReloadError> {
        let telling = Telling { what: What::NameStreams(streams::wanted(settings)), audit: None };
        let known = |spool: &Ledger, wanted: &[String]| wanted.iter().all(|name| spool.stream_named(name).is_some());
        let spool = &self.backend.spool;
        let stopping = |_| ReloadError::Stopping;
        let wanted = streams::wanted(settings);
        if !spool.look(move |ledger, _| known(ledger, &wanted)).await.map_err(stopping)? {
            let answer = spool.chore(Chore::Tell(telling)).await.map_err(stopping)?;
            if !matches!(answer.told.as_deref(), Some(Told::Done)) {
                return Err(streams::too_many().into());
            }
        }
        spool.look(|ledger, _| StreamNames::of_ledger(ledger)).await.map_err(stopping)
    }

    async fn replace_routes(&mut self, mut plan: Plan) -> Result<(), ReloadError> {
        let gate = self.backend.gate.current();
        let order = self.backend.spool.look(move |ledger, now| gate.order_now(ledger, now)).await;
        plan.order = order.map_err(|_| ReloadError::Stopping)?;
        let (clock, ids, metrics) = (self.clock.clone(), self.ids.clone(), self.metrics.clone());
        let fresh = Dispatcher::new(plan, clock, ids, metrics, self.no_more_claims.child_token());
        let routes = &self.backend.routes;
        routes.current().retire().await;
        routes.0.store(fresh.clone());
        // Asked for after the exchange: what comes to wait from here on is told to the new one.
        let lines = self.backend.spool.look(|ledger, _| waiting_lines(ledger)).await;
        let lines = lines.map_err(|_| ReloadError::Stopping)?;
        while self.dispatchers.try_join_next().is_some() {}
        self.dispatchers.spawn(fresh.run(self.backend.spool.clone(), lines));
        Ok(())
    }
}

/// The level of the log.
pub fn log_level(settings: &Settings) -> tracing::Level {
    match settings.log.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    }
}

/// How the log shows addresses.
pub fn shown_addresses(settings: &Settings) -> log::Addresses {
    match settings.log.addresses {
        LogAddresses::Masked => log::Addresses::Masked,
        LogAddresses::Hashed => log::Addresses::Hashed,
        LogAddresses::Full => log::Addresses::Full,
    }
}

/// What has changed and cannot change while the relay runs, one line each.
fn needs_restart(old: &Settings, loaded: &Loaded) -> Vec<String> {
    let new = &loaded.settings;
    let mut faults = Vec::new();
    let mut fault = |key: &str, why: &str| {
        let place = loaded.origin(key).map_or_else(|| loaded.name.clone(), ToString::to_string);
        faults.push(format!("{place}  `{key}` {why} needs a restart"));
    };
    if old.data_dir != new.data_dir {
        fault("data_dir", "names another directory, which");
    }
    if old.http.bind != new.http.bind {
        fault("http.bind", "names another port, which");
    }
    if old.log.format != new.log.format {
        fault("log.format", "has changed, which");
    }
    for index in 0..old.listeners.len().max(new.listeners.len()) {
        let bind = |settings: &Settings| settings.listeners.get(index).map(|listener| listener.bind.clone());
        if bind(old) != bind(new) {
            fault(&format!("listeners[{index}].bind"), "names other ports, which");
        }
    }
    match (&old.warmup, &new.warmup) {
        (Some(_), None) => fault("warmup", "is gone: no limit today, which"),
        (Some(old), Some(new)) if old.start != new.start => fault("warmup.start", "is another day, which"),
        _ => {}
    }
    faults
}

/// Whether connections to next hops, the waits of the mail or the ramp go by other settings than before. The text of a
/// certificate file may have changed behind its name.
fn delivery_differs(old: &Settings, new: &Settings) -> bool {
    let shown = |settings: &Settings| {
        let Settings { new, legacy, warmup, queue, dns, timezone, smtp, streams, .. } = settings;
        // Which mail a stream is says nothing of where it goes.
        let streams: Vec<_> = streams.iter().map(|s| config::Stream { rule: Rule::default(), ..s.clone() }).collect();
        format!("{new:?}{legacy:?}{warmup:?}{queue:?}{dns:?}{timezone:?}{streams:?}{}", smtp.hostname)
    };
    let passwords = |settings: &Settings| -> Vec<String> {
        let upstreams = [Some(&settings.new), settings.legacy.as_ref()].into_iter().flatten();
        let credentials = upstreams.filter_map(|upstream| upstream.credentials.as_ref());
        credentials.map(|credentials| credentials.password.expose_secret().to_owned()).collect()
    };
    let reads_certificates =
        [Some(&new.new), new.legacy.as_ref()].into_iter().flatten().any(|u| u.tls.ca_file.is_some());
    reads_certificates || shown(old) != shown(new) || passwords(old) != passwords(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[new]\nhost = \"192.0.2.1\"\n[warmup]\ntarget = 1000\nstart = 2026-03-02\n";

    fn loaded(text: &str) -> Loaded {
        Settings::from_toml(text, "m.toml").unwrap()
    }

    #[test]
    fn what_needs_a_restart_is_named_with_file_line_and_key() {
        let old = loaded(BASE).settings;
        let cases = [
            ("data_dir = \"x\"\n", "m.toml:1:12  `data_dir`"),
            ("http = { bind = \"127.0.0.1:1\" }\n", "m.toml:1:17  `http.bind`"),
            ("log = { format = \"json\" }\n", "m.toml:1:18  `log.format`"),
            ("[[listeners]]\nbind = \"127.0.0.1:1\"\nallow_from = [\"::1\"]\n", "m.toml:2:8  `listeners[0].bind`"),
        ];
        for (text, expected) in cases {
            let faults = needs_restart(&old, &loaded(&format!("{text}{BASE}")));
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            assert!(faults[0].starts_with(expected) && faults[0].ends_with("needs a restart"), "{faults:?}");
        }
        assert!(needs_restart(&old, &loaded(BASE)).is_empty());
        assert!(needs_restart(&old, &loaded(&BASE.replace("1000", "2000"))).is_empty());
    }

    #[test]
    fn what_would_lift_todays_limit_at_once_needs_a_restart() {
        let old = loaded(BASE).settings;
        let gone = needs_restart(&old, &loaded("[new]\nhost = \"192.0.2.1\"\n"));
        assert!(gone.len() == 1 && gone[0].contains("`warmup` is gone"), "{gone:?}");
        let earlier = needs_restart(&old, &loaded(&BASE.replace("2026-03-02", "2026-02-02")));
        assert!(earlier.len() == 1 && earlier[0].contains("`warmup.start`"), "{earlier:?}");
        let none = loaded("[new]\nhost = \"192.0.2.1\"\n").settings;
        assert!(needs_restart(&none, &loaded(BASE)).is_empty(), "a ramp that comes only lowers");
    }

    #[test]
    fn only_what_delivery_goes_by_renews_its_connections() {
        let old = loaded(BASE).settings;
        let differs = |text: &str| delivery_differs(&old, &loaded(text).settings);
        assert!(!differs(BASE));
        assert!(!differs(&format!("[smtp.limits]\nrecipients = 200\n{BASE}")));
        assert!(differs(&BASE.replace("192.0.2.1", "192.0.2.2")));
        assert!(differs(&BASE.replace("1000", "2000")));
        assert!(differs(&format!("{BASE}[queue]\nmax_age = \"1d\"\n")));
        let with = |password| format!("{BASE}[new.auth]\nuser = \"relay\"\npassword = \"{password}\"\n");
        assert!(delivery_differs(&loaded(&with("one")).settings, &loaded(&with("two")).settings));
        assert!(!delivery_differs(&loaded(&with("one")).settings, &loaded(&with("one")).settings));
    }
}
