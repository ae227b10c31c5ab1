//! What an operator tells the ramp, on a whole relay: pause and resume, the day set by hand, brakes, and the audit.

#[path = "common/application.rs"]
mod application;
#[path = "common/bench.rs"]
mod bench;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use application::Application;
use bench::{Bench, Setup};
use mailramp::admin::api::{BrakeWord, Change, ChangeAnswer, ChangeOrder, ItemState};
use mailramp::admin::{Backend, BackendError};
use mailramp::clock::{Clock, ManualClock, SystemClock};
use mailramp::message::{Reason, Route, Timestamp};
use process::{Ended, PATIENCE, Running, Settings, run, until};
use scripted::{Script, Scripted};
use serde_json::Value;

const BODY: &[u8] = b"Subject: hello\r\n\r\nhello\r\n";
const SENDER: &str = "app@example.com";
/// Noon of a day in UTC, for tests that move the clock themselves.
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);
const DAY: Duration = Duration::from_secs(86_400);

fn rcpt(address: &str) -> String {
    format!("RCPT TO:<{address}>")
}

fn taken(server: &Scripted) -> Vec<String> {
    server.messages().into_iter().flat_map(|message| message.rcpts).collect()
}

// --- the real binary ------------------------------------------------------------------------------------------------

/// A relay that is told things by its commands.
struct Told {
    relay: Running,
    config: PathBuf,
}

impl Told {
    fn start(config: &Path) -> Told {
        Told { relay: tokio::task::block_in_place(|| Running::start(config)), config: config.to_owned() }
    }

    fn ask(&self, arguments: &[&str]) -> Ended {
        tokio::task::block_in_place(|| run(arguments, &self.config))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.ask(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        serde_json::from_str(&ended.out).expect("JSON")
    }

    fn tells(&self, arguments: &[&str]) {
        let ended = self.ask(arguments);
        assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{arguments:?}: {ended:?}");
    }

    /// It is as it was asked to be already.
    fn changes_nothing(&self, arguments: &[&str], why: &str) {
        let ended = self.ask(arguments);
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{arguments:?}: {ended:?}");
        assert!(ended.errors.contains(why), "{why:?} is not said: {ended:?}");
    }

    fn send(&self, to: &str) -> String {
        tokio::task::block_in_place(|| Application::connect(self.relay.smtp).send(SENDER, &[to], BODY))
    }

    fn empty(&self) {
        let rows = || tokio::task::block_in_place(|| self.relay.queue());
        until("the queue is empty", || rows().is_empty(), || format!("{:?}", rows()));
    }

    fn state(&self) -> String {
        let status = self.json(&["warmup", "status", "--json"]);
        status["warmup"]["state"]["name"].as_str().expect("a name").to_owned()
    }

    fn metric(&self, series: &str) -> f64 {
        tokio::task::block_in_place(|| self.relay.metric(series))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_sends_held_and_fresh_mail_by_legacy_and_outlives_kills_until_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, down) = Scripted::reserve();
    let legacy = Script::new().start().await;
    let mut settings = Settings::new(folder.path(), down, Some(legacy.address))
        .limit(100, "policy = \"hold-then-legacy\"\nmax_wait = \"4h\"");
    settings.queue.push_str("\nfallback_on = []");
    let config = settings.save(folder.path());
    let told = Told::start(&config);
    told.send("held@example.net");
    assert_eq!(told.state(), "ramping");
    let held = tokio::task::block_in_place(|| told.relay.queue());
    assert_eq!((held.len(), &held[0]["state"]), (1, &"held".into()), "it waits for the new server: {held:?}");
    assert!(legacy.messages().is_empty());

    told.changes_nothing(&["warmup", "resume", "--reason", "why not"], "not paused");
    assert_eq!(told.ask(&["warmup", "pause"]).code, Some(2), "a reason is asked for");
    told.tells(&["warmup", "pause", "--reason", "complaints from gmx"]);
    told.changes_nothing(&["warmup", "pause", "--reason", "again"], "complaints from gmx");
    told.empty();
    assert_eq!(taken(&legacy), [rcpt("held@example.net")]);
    let new = Scripted::start_on(socket, Script::new()).await;
    told.send("fresh@example.net");
    told.empty();
    assert_eq!(taken(&legacy).len(), 2);
    assert_eq!(told.state(), "paused");
    assert_eq!(told.metric("mailramp_warmup_paused"), 1.0);
    assert_eq!(told.metric("mailramp_warmup_admin_actions_total{action=\"pause\"}"), 1.0);
    let by_legacy = "mailramp_routed_recipients_total{reason=\"paused\",route=\"legacy\",stream=\"default\"}";
    assert_eq!(told.metric(by_legacy), 2.0, "the one that waited and the fresh one");
    let actions = told.relay.logged("admin.action");
    assert_eq!(actions.len(), 1, "{actions:?}");
    assert_eq!((&actions[0]["action"], &actions[0]["reason"]), (&"warmup.pause".into(), &"complaints from gmx".into()));
    let status = told.ask(&["status"]).out;
    assert!(status.contains("PAUSED") && status.contains("\npaused: complaints from gmx (by "), "{status}");

    // The pause has to be found by a start after a kill as well as after an orderly end.
    told.relay.kill();
    for ending in ["kill", "stop"] {
        let told = Told::start(&config);
        assert_eq!(told.state(), "paused", "before the {ending}");
        told.send("later@example.net");
        told.empty();
        tokio::task::block_in_place(|| if ending == "kill" { told.relay.kill() } else { told.relay.stop() });
    }
    assert_eq!(taken(&legacy).len(), 4);
    assert!(new.messages().is_empty(), "nothing by new while it is paused");

    let told = Told::start(&config);
    told.tells(&["warmup", "resume", "--reason", "mended"]);
    assert_eq!((told.state().as_str(), told.metric("mailramp_warmup_paused")), ("ramping", 0.0));
    told.send("again@example.net");
    told.empty();
    assert_eq!(taken(&new), [rcpt("again@example.net")]);
    assert_eq!(taken(&legacy).len(), 4);

    let audit = told.json(&["audit", "--json"]);
    let own = rustix::process::geteuid().as_raw();
    let entries: Vec<_> = audit["entries"].as_array().expect("entries").iter().collect();
    let told_so: Vec<_> = entries.iter().map(|e| (e["action"].as_str(), e["detail"].as_str())).collect();
    assert_eq!(told_so, [(Some("pause"), Some("complaints from gmx")), (Some("resume"), Some("mended"))]);
    assert!(entries.iter().all(|entry| entry["actor"] == own), "{entries:?}");
    assert_eq!(told.json(&["audit", "--since", "0s", "--json"])["entries"], Value::Array(Vec::new()));
    tokio::task::block_in_place(|| told.relay.stop());
}

// --- the relay in this process --------------------------------------------------------------------------------------

async fn tell(bench: &Bench, change: Change, dry_run: bool) -> Result<ChangeAnswer, BackendError> {
    let order = ChangeOrder { change, reason: "a test".into(), dry_run };
    bench.relay().backend.change(order, 7).await
}

async fn done(bench: &Bench, change: Change) -> ChangeAnswer {
    tell(bench, change, false).await.expect("changes something")
}

async fn refused(bench: &Bench, change: Change) -> BackendError {
    tell(bench, change, false).await.expect_err("changes nothing")
}

/// A ramp by this curve, without a pace, that overflows at once.
fn ramp(new: &Scripted, legacy: &Scripted, curve: &str) -> Setup {
    let mut setup = Setup::new(new.address, Some(&legacy.address));
    setup.more = format!(
        "[warmup]\ncurve = \"custom\"\ncustom = {curve}\ngrowth = 1.5\ntarget = 5000\nproviders = \"off\"\n\
         pace = {{ hourly = \"100%\", burst = \"100%\" }}\noverflow = {{ policy = \"legacy\" }}\n"
    );
    setup
}

/// A relay whose first day has begun.
async fn start(setup: &Setup, clock: Arc<dyn Clock>) -> Bench {
    let bench = Bench::start_at(setup, clock).await;
    let deadline = Instant::now() + PATIENCE;
    while bench.relay().backend.snapshot().await.is_err() {
        assert!(Instant::now() < deadline, "no day begins");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench
}

/// The clock goes on by a day, and the ramp with it.
async fn next_day(bench: &Bench, clock: &ManualClock, days: u32) {
    clock.set(NOON.after(DAY * days));
    let ends = NOON.after(DAY * days);
    bench.relay().backend.routes.current().nudge();
    bench.until_status("the day has changed", |status| status.warmup.day_ends > ends).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_holds_waits_through_a_pause_and_leaves_by_new_after_it() {
    let (new, legacy) = (Script::new().start().await, Script::new().start().await);
    let setup = Setup::new(new.address, Some(&legacy.address)).limit(10, "policy = \"hold\"");
    let bench = start(&setup, Arc::new(SystemClock)).await;
    assert!(done(&bench, Change::Pause).await.has_legacy);
    let id = bench.send(SENDER, &["holds@example.net"], BODY);
    assert_eq!(bench.row(ItemState::Held).await.id, id);
    let status = bench.status().await;
    let pause = status.pause.expect("paused");
    assert_eq!((pause.actor, pause.reason.as_str()), (7, "a test"));
    let answer = done(&bench, Change::Resume).await;
    assert_eq!(answer.waiting, 1);
    bench.empty().await;
    assert_eq!((taken(&new), taken(&legacy)), (vec![rcpt("holds@example.net")], vec![]));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_set_back_lowers_todays_limit_at_once_and_one_set_ahead_raises_only_tomorrows() {
    let (new, legacy) = (Script::new().start().await, Script::new().start().await);
    let clock = Arc::new(ManualClock::at(NOON));
    let bench = start(&ramp(&new, &legacy, "[2, 6, 20, 60]"), clock.clone()).await;
    let at = async || {
        let warmup = bench.status().await.warmup;
        (warmup.day, warmup.limit)
    };
    assert_eq!(at().await, (Some(1), Some(2)));
    let said = tell(&bench, Change::SetDay { day: 3 }, true).await.expect("would change something");
    assert_eq!(at().await, (Some(1), Some(2)), "a dry run changes nothing");
    let lane = &said.lanes[0];
    assert_eq!((lane.limit_before, lane.limit, lane.tomorrow), (Some(2), Some(2), Some(20)));
    assert_eq!(lane.tomorrow_before, Some(4), "twice what can be sent today");
    assert_eq!(done(&bench, Change::SetDay { day: 3 }).await.lanes, said.lanes);
    assert_eq!(at().await, (Some(3), Some(2)), "today's limit does not grow");
    let again = refused(&bench, Change::SetDay { day: 3 }).await;
    assert!(matches!(&again, BackendError::NoChange(why) if why.contains("day 3")), "{again}");

    next_day(&bench, &clock, 1).await;
    assert_eq!(at().await, (Some(3), Some(20)));
    for n in 0..3 {
        bench.send(SENDER, &[&format!("before{n}@example.net")], BODY);
    }
    bench.empty().await;
    assert_eq!((taken(&new).len(), taken(&legacy).len()), (3, 0));
    let said = done(&bench, Change::SetDay { day: 1 }).await;
    assert_eq!((said.lanes[0].limit_before, said.lanes[0].limit), (Some(20), Some(2)));
    assert_eq!(at().await, (Some(1), Some(2)));
    bench.send(SENDER, &["after@example.net"], BODY);
    bench.empty().await;
    assert_eq!((taken(&new).len(), taken(&legacy).len()), (3, 1), "the lower limit holds from now on");

    let page = bench.relay().backend.audit(3600).await.expect("answers");
    let told: Vec<_> = page.entries.iter().map(|e| (e.actor, e.action.as_str(), e.detail.as_str())).collect();
    assert_eq!(told, [(7, "set-day", "day 3 -> 1: a test")], "the one of yesterday is older than an hour");
    let page = bench.relay().backend.audit(2 * 86_400).await.expect("answers");
    assert_eq!(page.entries.first().map(|e| e.detail.as_str()), Some("day 1 -> 3: a test"));
    let too_far = refused(&bench, Change::SetDay { day: 3651 }).await;
    assert!(matches!(&too_far, BackendError::Refused(why) if why.contains("3650")), "{too_far}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_a_pause_does_not_count() {
    for paused in [false, true] {
        let (new, legacy) = (Script::new().start().await, Script::new().start().await);
        let clock = Arc::new(ManualClock::at(NOON));
        let bench = start(&ramp(&new, &legacy, "[2, 4, 8]"), clock.clone()).await;
        if paused {
            done(&bench, Change::Pause).await;
            done(&bench, Change::Resume).await;
        }
        bench.send(SENDER, &["one@example.net", "two@example.net"], BODY);
        bench.empty().await;
        assert_eq!(taken(&new).len(), 2);
        next_day(&bench, &clock, 1).await;
        let status = bench.status().await;
        let want = if paused { (Some(1), Some(2)) } else { (Some(2), Some(4)) };
        assert_eq!((status.warmup.day, status.warmup.limit), want, "paused: {paused}");
        assert_eq!(status.days.iter().map(|day| day.braked).collect::<Vec<_>>(), [paused, false]);
        assert_eq!(status.lanes[0].braked_days, u32::from(paused));
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brake_set_by_hand_shuts_its_lane_until_its_time_or_its_release() {
    let (new, legacy) = (Script::new().start().await, Script::new().start().await);
    let clock = Arc::new(ManualClock::at(NOON));
    let bench = start(&ramp(&new, &legacy, "[100]"), clock.clone()).await;
    let set = |for_seconds| Change::BrakeSet { provider: "all".into(), for_seconds };
    let release = || Change::BrakeRelease { provider: "all".into() };
    let open = refused(&bench, release()).await;
    assert!(matches!(&open, BackendError::NoChange(why) if why.contains("no brake")), "{open}");
    let unknown = refused(&bench, Change::BrakeRelease { provider: "gogle".into() }).await;
    assert!(matches!(&unknown, BackendError::Refused(why) if why.contains("there are: all")), "{unknown}");
    for seconds in [59, 30 * 86_400 + 1] {
        assert!(matches!(refused(&bench, set(seconds)).await, BackendError::Refused(_)), "{seconds} s");
    }

    assert_eq!(done(&bench, set(7200)).await.until, Some(NOON.after(Duration::from_secs(7200))));
    let brake = bench.status().await.lanes.swap_remove(0).brake;
    assert_eq!((brake.level, brake.reason.as_str()), (BrakeWord::Suspended, "by uid 7: a test"));
    let shorter = refused(&bench, set(3600)).await;
    assert!(matches!(&shorter, BackendError::NoChange(why) if why.contains("longer")), "{shorter}");
    bench.send(SENDER, &["braked@example.net"], BODY);
    bench.empty().await;
    assert_eq!((taken(&new).len(), taken(&legacy).len()), (0, 1));
    assert_eq!(bench.routed(Route::Legacy, Reason::Brake), 1);

    done(&bench, release()).await;
    let status = bench.status().await;
    assert_eq!(status.lanes[0].brake.level, BrakeWord::Open);
    assert!(status.days[0].braked, "the day stays braked");
    bench.send(SENDER, &["released@example.net"], BODY);
    bench.empty().await;
    assert_eq!(taken(&new), [rcpt("released@example.net")]);

    done(&bench, set(7200)).await;
    clock.set(NOON.after(Duration::from_secs(7199)));
    assert_eq!(bench.status().await.lanes[0].brake.level, BrakeWord::Suspended);
    clock.set(NOON.after(Duration::from_secs(7200)));
    assert_eq!(bench.status().await.lanes[0].brake.level, BrakeWord::Slow, "not from nothing to everything");
    bench.send(SENDER, &["over@example.net"], BODY);
    bench.empty().await;
    assert_eq!(taken(&new).len(), 2);
    let page = bench.relay().backend.audit(86_400).await.expect("answers");
    let told: Vec<_> = page.entries.iter().map(|entry| entry.detail.as_str()).collect();
    let set = "all suspended for 7200 s: a test";
    assert_eq!(told, [set, "all released: a test", set]);
    bench.stop().await;
}
