//! Streams that are moved, on a whole relay: now, at a set time, taken back, across a restart; and a dry run.
//!
//! The clock is moved by hand, the next hops are scripted.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use application::Application;
use mailramp::admin::api::{ItemState, QueueAction, QueueFilter, RouteName};
use mailramp::admin::explain::{ExplainOrder, Explained, Subject};
use mailramp::admin::streams::{MoveAnswer, MoveOrder, StreamRow, UndoOrder, WayName};
use mailramp::admin::{Backend, BackendError};
use mailramp::clock::ManualClock;
use mailramp::message::Timestamp;
use mailramp::relay::{Data, Relay, StartError};
use process::{PATIENCE, Settings};
use scripted::{Script, Scripted};

/// Noon of Thursday, 28 May 2026, in UTC.
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);
const UID: u32 = 4711;
const STREAMS: &str = "[[streams]]\nname = \"digest\"\nmatch = { from = \"digest@example.com\" }\nroute = \"legacy\"\n\
                       [[streams]]\nname = \"password\"\nmatch = { from = \"password@example.com\" }\nroute = \"new\"\n";

struct Bench {
    relay: Option<Relay>,
    folder: tempfile::TempDir,
    settings: String,
    clock: Arc<ManualClock>,
    new: Scripted,
    legacy: Scripted,
}

impl Bench {
    async fn start(limit: u64, overflow: &str) -> Bench {
        Bench::start_as(limit, overflow, false).await
    }

    async fn start_as(limit: u64, overflow: &str, dry_run: bool) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let (new, legacy) = (Script::new().start().await, Script::new().start().await);
        let settings = Settings::new(folder.path(), new.address, Some(legacy.address)).limit(limit, overflow);
        let zone = format!("timezone = \"{}\"", process::zone_where_it_is_noon());
        let settings = settings.text().replace(&zone, "timezone = \"UTC\"") + STREAMS;
        let clock = Arc::new(ManualClock::at(NOON));
        let mut bench = Bench { relay: None, folder, settings, clock, new, legacy };
        bench.go_on(dry_run).await.expect("starts");
        bench
    }

    /// The same data directory and the same time.
    async fn go_on(&mut self, dry_run: bool) -> Result<(), StartError> {
        let settings = loaded(&self.settings, self.folder.path());
        let relay = match dry_run {
            true => Relay::start_dry(&settings, self.clock.clone(), Data::AsFound).await?,
            false => Relay::start(&settings, self.clock.clone()).await?,
        };
        self.relay = Some(relay);
        Ok(())
    }

    async fn stop(&mut self) {
        let relay = self.relay.take().expect("runs");
        tokio::time::timeout(PATIENCE, relay.stop()).await.expect("within its grace").expect("in order");
    }

    fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("runs")
    }

    /// One message of a stream, to one recipient of that name.
    fn send(&self, stream: &str, to: &str) -> String {
        let body = format!("From: {stream}@example.com\r\nSubject: x\r\n\r\nhello\r\n");
        let to = format!("{to}@example.net");
        tokio::task::block_in_place(|| {
            Application::connect(self.relay().smtp[0]).send("app@example.com", &[&to], body.as_bytes())
        })
    }

    async fn move_to(
        &self,
        stream: &str,
        to: WayName,
        at: Option<&str>,
        yes: bool,
    ) -> Result<MoveAnswer, BackendError> {
        let (stream, at, reason) = (stream.into(), at.map(String::from), "a test".into());
        self.relay().backend.move_stream(MoveOrder { stream, to, at, reason, yes }, UID).await
    }

    async fn undo(&self, stream: &str) -> Result<MoveAnswer, BackendError> {
        self.relay().backend.undo_move(UndoOrder { stream: stream.into(), yes: true }, UID).await
    }

    async fn stream(&self, name: &str) -> StreamRow {
        let page = self.relay().backend.streams().await.expect("answers");
        page.streams.into_iter().find(|row| row.name == name).expect("is configured")
    }

    async fn explain(&self, subject: Subject, stream: Option<&str>) -> Result<Explained, BackendError> {
        self.relay().backend.explain(ExplainOrder { subject, stream: stream.map(String::from) }).await
    }

    async fn held(&self) -> u64 {
        let filter = QueueFilter { state: Some(ItemState::Held), ..QueueFilter::default() };
        self.relay().backend.queue(filter, 0).await.expect("answers").recipients
    }

    fn pass(&self, minutes: u64) {
        self.clock.set(mailramp::clock::Clock::now(&*self.clock).after(Duration::from_secs(60 * minutes)));
        self.relay().backend.routes.current().nudge();
    }
}

fn loaded(text: &str, folder: &Path) -> mailramp::config::Settings {
    let path = folder.join("mailramp.toml");
    std::fs::write(&path, text).expect("writes the settings");
    mailramp::config::Settings::load(&path, std::iter::empty()).unwrap_or_else(|faults| panic!("{faults}")).settings
}

/// Until the server has taken a message to that name.
async fn took(server: &Scripted, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !has(server, name) {
        assert!(Instant::now() < deadline, "{name} did not come: {:?}", server.messages());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn has(server: &Scripted, name: &str) -> bool {
    server.messages().iter().any(|message| message.rcpts.contains(&format!("RCPT TO:<{name}@example.net>")))
}

const WAITS: &str = "policy = \"hold-then-legacy\"\nmax_wait = \"6h\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_the_new_way_from_the_set_time_on_and_back_when_it_is_undone() {
    let mut bench = Bench::start(100, WAITS).await;
    bench.send("digest", "before");
    took(&bench.legacy, "before").await;

    let said = bench.move_to("digest", WayName::Ramp, Some("22:00"), false).await.unwrap();
    let at = NOON.after(Duration::from_secs(10 * 3600));
    assert_eq!((said.dry_run, said.from, said.to, said.at), (true, WayName::Legacy, WayName::Ramp, Some(at)));
    let tomorrow = said.first_day.expect("a day has begun");
    assert_eq!((tomorrow.ahead, tomorrow.ramp_offers, tomorrow.limit), (1, 1, Some(100)), "{tomorrow:?}");
    assert!(bench.stream("digest").await.to_come.is_empty(), "nothing was told");

    assert!(!bench.move_to("digest", WayName::Ramp, Some("22:00"), true).await.unwrap().dry_run);
    let row = bench.stream("digest").await;
    assert_eq!((row.way, row.to_come.len(), row.to_come[0].at, row.offered_today), (WayName::Legacy, 1, at, 1));
    bench.pass(10 * 60 - 1);
    bench.send("digest", "still");
    took(&bench.legacy, "still").await;
    bench.pass(1);
    bench.send("digest", "after");
    took(&bench.new, "after").await;
    let row = bench.stream("digest").await;
    let moved = row.moved.expect("in force");
    assert_eq!((row.way, row.configured, moved.actor, &*moved.reason), (WayName::Ramp, WayName::Legacy, UID, "a test"));
    assert_eq!(row.new_today, 1);

    bench.stop().await;
    bench.go_on(false).await.expect("starts again");
    bench.send("digest", "restarted");
    took(&bench.new, "restarted").await;
    let undone = bench.undo("digest").await.unwrap();
    assert_eq!(
        (undone.from, undone.to, undone.undone.map(|m| m.to)),
        (WayName::Ramp, WayName::Legacy, Some(WayName::Ramp))
    );
    bench.send("digest", "undone");
    took(&bench.legacy, "undone").await;
    assert!(matches!(bench.undo("digest").await, Err(BackendError::NoChange(_))), "there is nothing left to undo");
    assert!(bench.relay().metrics.render().contains("mailramp_stream_admin_actions_total{action=\"undo\"} 1"));
    let audit: Vec<_> = bench.relay().backend.audit(86_400 * 2).await.unwrap().entries;
    let words: Vec<_> = audit.iter().map(|entry| (entry.action.as_str(), entry.actor)).collect();
    assert_eq!(words, [("stream-move", UID), ("stream-undo", UID)]);
    assert!(audit[0].detail.contains("digest to ramp") && audit[0].detail.contains("a test"), "{}", audit[0].detail);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_goes_to_legacy_at_once_with_its_stream() {
    let mut bench = Bench::start(1, WAITS).await;
    bench.send("default", "first");
    took(&bench.new, "first").await;
    bench.move_to("digest", WayName::New, None, true).await.unwrap();
    bench.send("digest", "waits");
    bench.send("password", "too");
    let deadline = Instant::now() + PATIENCE;
    while bench.held().await < 2 {
        assert!(Instant::now() < deadline, "they do not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let said = bench.move_to("digest", WayName::Legacy, None, false).await.unwrap();
    assert_eq!((said.waiting.recipients, said.waiting.goes_to_legacy), (1, true));
    assert!(!has(&bench.legacy, "waits"), "so far it was only said");
    bench.move_to("digest", WayName::Legacy, None, true).await.unwrap();
    took(&bench.legacy, "waits").await;
    assert_eq!(bench.held().await, 1, "the other stream goes on waiting");
    assert!(!has(&bench.legacy, "too") && !has(&bench.new, "too"));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_changes_nothing_or_cannot_be_is_refused_and_says_why() {
    let mut bench = Bench::start(10, WAITS).await;
    let why = |result: Result<MoveAnswer, BackendError>| result.unwrap_err().to_string();
    let unknown = why(bench.move_to("nosuch", WayName::New, None, true).await);
    assert_eq!(unknown, "there is no stream `nosuch`; there are: digest, password, default");
    let already = why(bench.move_to("digest", WayName::Legacy, None, true).await);
    assert_eq!(already, "digest is on legacy already: the settings say so");
    assert!(why(bench.move_to("digest", WayName::Ramp, Some("2026-05-28 11:59"), true).await).contains("has passed"));
    assert!(why(bench.move_to("digest", WayName::Ramp, Some("soon"), true).await).contains("is no time"));
    // After a dated move the same way means something.
    bench.move_to("digest", WayName::Ramp, Some("14:00"), true).await.unwrap();
    bench.move_to("digest", WayName::Legacy, Some("16:00"), true).await.unwrap();
    let already = why(bench.move_to("digest", WayName::Legacy, Some("17:00"), true).await);
    assert_eq!(already, format!("digest will be on legacy already: uid {UID} has moved it there"));
    let week: Vec<_> = bench.stream("digest").await.to_come.iter().map(|told| told.to).collect();
    assert_eq!(week, [WayName::Ramp, WayName::Legacy]);
    bench.pass(180);
    assert_eq!(bench.stream("digest").await.way, WayName::Ramp);
    bench.pass(60);
    assert_eq!(bench.stream("digest").await.way, WayName::Legacy);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_explained_with_what_refuses_it_and_an_address_with_what_would_happen() {
    let mut bench = Bench::start(1, WAITS).await;
    let address = |name: &str| Subject::Address(format!("{name}@example.net"));
    let would = bench.explain(address("first"), None).await.unwrap();
    assert_eq!((&*would.recipients[0].route, &*would.recipients[0].reason), ("new", "in_quota"));
    assert!(would.lanes.iter().all(|lane| lane.refuses.is_none()), "{would:?}");
    let gone = bench.send("default", "first");
    took(&bench.new, "first").await;

    let id = bench.send("password", "waits");
    let held = bench.explain(Subject::Message(id), None).await.unwrap();
    assert_eq!((&*held.stream, held.way), ("password", WayName::New));
    let recipient = &held.recipients[0];
    assert_eq!((recipient.state, &*recipient.route, &*recipient.reason), (Some(ItemState::Held), "new", "manual"));
    assert_eq!(recipient.to.as_str(), "w***@example.net");
    let total = &held.lanes[0];
    assert_eq!((total.limit, total.used_today, total.refuses.as_deref()), (Some(1), 1, Some("24h")), "{total:?}");
    assert!(total.until.is_some_and(|until| until > NOON));

    let over = bench.explain(address("other"), Some("default")).await.unwrap();
    assert_eq!((&*over.recipients[0].route, &*over.recipients[0].reason), ("legacy", "over_quota"));
    let manual = bench.explain(address("other"), Some("digest")).await.unwrap();
    assert_eq!((&*manual.recipients[0].route, &*manual.recipients[0].reason), ("legacy", "manual"));
    let left = bench.explain(Subject::Message(gone), None).await.unwrap();
    assert!(left.recipients.is_empty());
    assert!(bench.explain(address("x"), Some("nosuch")).await.is_err());
    assert!(bench.explain(Subject::Message("rubbish".into()), None).await.is_err());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_would_be_sends_all_by_legacy_and_leaves_the_ramp_where_it_is() {
    let mut bench = Bench::start_as(2, "policy = \"legacy\"", true).await;
    for n in 0..3 {
        bench.send("default", &format!("dry{n}"));
    }
    bench.send("digest", "dry-digest");
    for name in ["dry0", "dry1", "dry2", "dry-digest"] {
        took(&bench.legacy, name).await;
    }
    let status = bench.relay().backend.snapshot().await.expect("answers");
    let as_if = status.dry_run.expect("is said");
    assert_eq!((as_if.day, as_if.limit, as_if.new, as_if.legacy, as_if.held), (Some(1), Some(2), 2, 2, 0));
    assert_eq!((status.warmup.used, status.warmup.sent, status.warmup.limit), (0, 0, Some(0)), "nothing counts");
    let metrics = bench.relay().metrics.render();
    for (labels, count) in [
        ("reason=\"in_quota\",route=\"new\",stream=\"default\"", 2),
        ("reason=\"over_quota\",route=\"legacy\",stream=\"default\"", 1),
        ("reason=\"manual\",route=\"legacy\",stream=\"digest\"", 1),
    ] {
        let line = format!("mailramp_dry_run_recipients_total{{{labels}}} {count}");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    assert_eq!((status.lanes[0].limit, status.lanes[0].used), (Some(2), 2), "lanes are shown as if");
    let explained = bench.explain(Subject::Address("somebody@example.net".into()), None).await.expect("answers");
    let (next, total) = (&explained.recipients[0], &explained.lanes[0]);
    assert_eq!((next.route.as_str(), next.reason.as_str()), ("legacy", "over_quota"), "{explained:?}");
    assert_eq!((total.limit, total.used_today), (Some(2), 2), "it goes by the ramp as if");
    let refused =
        bench.relay().backend.select(QueueFilter::default(), QueueAction::Reroute(RouteName::New), true, false);
    assert!(matches!(refused.await, Err(BackendError::Refused(why)) if why.contains("dry run")));
    // The day turns, as if and really, and with it nothing of the ramp.
    bench.pass(24 * 60 + 30);
    bench.send("default", "next-day");
    took(&bench.legacy, "next-day").await;
    let status = bench.relay().backend.snapshot().await.expect("answers");
    assert_eq!((status.warmup.used, status.warmup.limit), (0, Some(0)));
    assert_eq!(status.dry_run.and_then(|as_if| as_if.day), Some(2), "the day counted, as if");
    bench.stop().await;
    assert!(bench.new.messages().is_empty(), "nothing by new");

    bench.go_on(false).await.expect("starts again");
    bench.send("default", "real");
    took(&bench.new, "real").await;
    let status = bench.relay().backend.snapshot().await.expect("answers");
    assert_eq!(
        (status.warmup.day, status.warmup.limit, status.warmup.used),
        (Some(1), Some(2), 1),
        "it begins with day 1"
    );
    assert!(status.dry_run.is_none());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_gives_what_waited_to_legacy_and_keeps_what_holds() {
    let mut bench = Bench::start(1, WAITS).await;
    bench.send("default", "first");
    took(&bench.new, "first").await;
    bench.send("password", "holds");
    let deadline = Instant::now() + PATIENCE;
    while bench.held().await < 1 {
        assert!(Instant::now() < deadline, "it does not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.stop().await;
    bench.go_on(true).await.expect("starts again");
    bench.send("password", "dry");
    took(&bench.legacy, "dry").await;
    bench.pass(26 * 60);
    assert_eq!(bench.held().await, 1);
    bench.stop().await;
    assert!(!has(&bench.new, "holds") && !has(&bench.legacy, "holds"));
    bench.go_on(false).await.expect("starts again");
    took(&bench.new, "holds").await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_without_a_legacy_server_does_not_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let new = Script::new().start().await;
    let settings = loaded(&Settings::new(folder.path(), new.address, None).text(), folder.path());
    let refused = Relay::start_dry(&settings, Arc::new(ManualClock::at(NOON)), Data::AsFound).await;
    assert!(matches!(refused.err(), Some(StartError::Settings(why)) if why.contains("[legacy]")));
}
