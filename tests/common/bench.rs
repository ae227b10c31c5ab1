//! A whole relay in this process, with settings of the test's own, asked and awaited. Everything has a bound.
#![allow(dead_code)] // each test binary uses its part

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailramp::admin::Backend;
use mailramp::admin::api::{ItemState, QueueAction, QueueFilter, QueueRow, QueueStep, Snapshot};
use mailramp::clock::{Clock, SystemClock};
use mailramp::message::{Reason, Route, StreamId};
use mailramp::metrics::Metrics;
use mailramp::relay::{Relay, StartError};

use crate::application::Application;
use crate::process::zone_where_it_is_noon;

/// A debug build on a busy machine needs some of it; no test waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// What a test says about its relay; TOML throughout.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Inside `[new]`.
    pub new: String,
    /// Inside `[legacy]`; `None`: there is none.
    pub legacy: Option<String>,
    /// Inside `[queue]`.
    pub queue: String,
    pub bind: String,
    /// Whole sections.
    pub more: String,
}

impl Setup {
    pub fn new(new: impl ToString, legacy: Option<&dyn ToString>) -> Setup {
        let host = |address: String| format!("host = \"{address}\"\ntls = {{ level = \"off\" }}\n");
        Setup {
            new: host(new.to_string()),
            legacy: legacy.map(|address| host(address.to_string())),
            queue: "retry = [\"1s\"]\n".into(),
            bind: "127.0.0.1:0".into(),
            more: String::new(),
        }
    }

    /// A ramp that stands at `limit`, without a pace; `overflow` is what stands in its table.
    pub fn limit(mut self, limit: u64, overflow: &str) -> Setup {
        self.more.push_str(&format!(
            "[warmup]\ncurve = \"custom\"\ncustom = [{limit}]\ngrowth = 1.0\ntarget = {limit}\nproviders = \"off\"\n\
             pace = {{ hourly = \"100%\", burst = \"100%\" }}\noverflow = {{ {overflow} }}\n"
        ));
        self
    }

    pub fn queue(mut self, line: &str) -> Setup {
        self.queue.push_str(line);
        self.queue.push('\n');
        self
    }

    fn text(&self) -> String {
        let Setup { new, legacy, queue, bind, more } = self;
        let legacy = legacy.as_ref().map(|inside| format!("[legacy]\n{inside}\n")).unwrap_or_default();
        format!(
            "data_dir = \"data\"\ntimezone = \"{}\"\n[http]\nbind = \"127.0.0.1:0\"\n[smtp]\nhostname = \"relay.example\"\n\
             [[listeners]]\nbind = \"{bind}\"\nallow_from = [\"127.0.0.0/8\"]\n[new]\n{new}\n{legacy}[queue]\n{queue}\n\
             disk = {{ min_free = \"1MiB\" }}\n{more}",
            zone_where_it_is_noon()
        )
    }
}

/// A relay in a folder of its own.
pub struct Bench {
    relay: Option<Relay>,
    settings: mailramp::config::Settings,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub async fn start(setup: &Setup) -> Bench {
        Bench::start_at(setup, Arc::new(SystemClock)).await
    }

    pub async fn start_at(setup: &Setup, clock: Arc<dyn Clock>) -> Bench {
        Bench::try_start(setup, clock).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub async fn try_start(setup: &Setup, clock: Arc<dyn Clock>) -> Result<Bench, StartError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mailramp.toml");
        std::fs::write(&path, setup.text()).expect("writes the settings");
        // A password in it may not be read by others.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its own file");
        let loaded = mailramp::config::Settings::load(&path, std::iter::empty())
            .unwrap_or_else(|faults| panic!("{faults}\n{}", setup.text()));
        let relay = Relay::start(&loaded.settings, clock).await?;
        Ok(Bench { relay: Some(relay), settings: loaded.settings, _folder: folder })
    }

    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("until it is stopped")
    }

    pub fn metrics(&self) -> &Metrics {
        &self.relay().metrics
    }

    /// Recipients that left by `route` for this reason.
    pub fn routed(&self, route: Route, reason: Reason) -> u64 {
        self.metrics().routed_recipients.of(StreamId::DEFAULT).of(route).of(reason).get()
    }

    /// Hands over one message on a connection of its own; returns the queue id of the 250. Blocks for a moment.
    pub fn send(&self, from: &str, recipients: &[&str], body: &[u8]) -> String {
        let address = self.relay().smtp[0];
        tokio::task::block_in_place(|| Application::connect(address).send(from, recipients, body))
    }

    pub async fn status(&self) -> Snapshot {
        self.relay().backend.snapshot().await.expect("answers")
    }

    pub async fn queue(&self) -> Vec<QueueRow> {
        self.relay().backend.queue(QueueFilter::default(), 100).await.expect("answers").rows
    }

    /// Makes what was deferred due, and next hops worth another look.
    pub async fn flush(&self) {
        let (backend, filter) = (&self.relay().backend, QueueFilter::default());
        let found = backend.select(filter.clone(), QueueAction::Flush, true, true).await.expect("answers");
        let step = QueueStep { job: found.job, action: QueueAction::Flush, filter, ids: found.ids };
        backend.step(step, 0).await.expect("answers");
        backend.routes.current().nudge();
    }

    /// Until `yes` says so about the queue.
    pub async fn until(&self, what: &str, yes: impl Fn(&[QueueRow]) -> bool) -> Vec<QueueRow> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = self.queue().await;
            if yes(&rows) {
                return rows;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {rows:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Until the snapshot is as wanted.
    pub async fn until_status(&self, what: &str, yes: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if yes(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {status:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Until one row is in this state.
    pub async fn row(&self, state: ItemState) -> QueueRow {
        let rows = self.until(&format!("a row is {state:?}"), |rows| rows.iter().any(|r| r.state == state)).await;
        rows.into_iter().find(|row| row.state == state).expect("just seen")
    }

    pub async fn empty(&self) {
        self.until("the queue is empty", <[QueueRow]>::is_empty).await;
    }

    /// Ends it in order, and starts it again where it was.
    pub async fn restart(mut self, clock: Arc<dyn Clock>) -> Bench {
        let settings = self.settings.clone();
        let relay = self.relay.take().expect("stopped once");
        tokio::time::timeout(PATIENCE, relay.stop()).await.expect("within its grace").expect("in order");
        let relay = Relay::start(&settings, clock).await.unwrap_or_else(|error| panic!("{error}"));
        Bench { relay: Some(relay), ..self }
    }

    /// Ends it in order.
    pub async fn stop(mut self) {
        let relay = self.relay.take().expect("stopped once");
        tokio::time::timeout(PATIENCE, relay.stop()).await.expect("within its grace").expect("in order");
    }
}
