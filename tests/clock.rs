//! A machine whose clock is wrong: the whole relay with a clock that the test sets, steps and reboots.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use application::Application;
use mailramp::admin::Backend;
use mailramp::admin::api::{QueueFilter, QueueRow, Snapshot};
use mailramp::clock::ManualClock;
use mailramp::message::{NANOS_PER_SECOND, Timestamp};
use mailramp::relay::Relay;
use process::{PATIENCE, Running, Settings};
use scripted::{Script, Scripted, Step, say};

/// Noon of a day in UTC.
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const TEN_YEARS: i64 = 3652 * DAY;
const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";

fn at(seconds: i64) -> Timestamp {
    Timestamp(NOON.0 + seconds * NANOS_PER_SECOND)
}

/// A relay, its machine, and two servers.
struct Bench {
    clock: Arc<ManualClock>,
    relay: Option<Relay>,
    settings: Settings,
    folder: tempfile::TempDir,
    new: Scripted,
    legacy: Scripted,
    sent: u32,
}

impl Bench {
    /// A limit of three a day.
    async fn start(clock: Timestamp, overflow: &str, new: Script) -> Bench {
        let (new, legacy) = (new.start().await, Script::new().start().await);
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = Settings::new(folder.path(), new.address, Some(legacy.address)).limit(3, overflow);
        settings.queue = "retry = [\"1h\"]\njitter = \"0%\"".into();
        let clock = Arc::new(ManualClock::at(clock));
        let mut bench = Bench { clock, relay: None, settings, folder, new, legacy, sent: 0 };
        bench.restart().await;
        bench
    }

    /// Stops it if it runs, and starts it on what it left.
    async fn restart(&mut self) {
        self.stop().await;
        let text = self.settings.text().replace(&process::zone_where_it_is_noon(), "UTC");
        let path = self.folder.path().join("mailramp.toml");
        std::fs::write(&path, text).expect("writes");
        let loaded = mailramp::config::Settings::load(&path, std::iter::empty()).expect("good settings");
        self.relay = Some(Relay::start(&loaded.settings, self.clock.clone()).await.expect("starts"));
    }

    async fn stop(&mut self) {
        if let Some(relay) = self.relay.take() {
            tokio::time::timeout(PATIENCE, relay.stop()).await.expect("within its grace").expect("in order");
        }
    }

    fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("runs")
    }

    fn smtp(&self) -> SocketAddr {
        self.relay().smtp[0]
    }

    fn send(&mut self, messages: u32) {
        tokio::task::block_in_place(|| {
            for _ in 0..messages {
                self.sent += 1;
                let to = format!("r{}@example.net", self.sent);
                Application::connect(self.smtp()).send("sender@example.com", &[&to], BODY);
            }
        });
    }

    async fn status(&self) -> Snapshot {
        self.relay().backend.snapshot().await.expect("answers")
    }

    async fn queue(&self) -> Vec<QueueRow> {
        self.relay().backend.queue(QueueFilter::default(), 100).await.expect("answers").rows
    }

    /// Until so much has left by each of the two, and so much is left in the queue.
    async fn until(&self, new: usize, legacy: usize, queued: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.relay().backend.routes.current().nudge();
            let found = (self.new.messages().len(), self.legacy.messages().len(), self.queue().await.len());
            if found == (new, legacy, queued) {
                return;
            }
            assert!(Instant::now() < deadline, "{found:?}, not {:?}: {:#?}", (new, legacy, queued), self.queue().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Until two messages lie there that were tried so often.
    async fn attempted(&self, attempts: u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.relay().backend.routes.current().nudge();
            let rows = self.queue().await;
            if rows.len() == 2 && rows.iter().all(|row| row.attempts == attempts) {
                return;
            }
            assert!(Instant::now() < deadline, "not {attempts} attempts: {rows:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn is_trusted(&self) -> bool {
        self.status().await.clock.trusted
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_steps_shuts_new_until_it_agrees_again_and_legacy_goes_on() {
    for off in [TEN_YEARS, DAY, -DAY, 2 * HOUR] {
        let mut bench = Bench::start(NOON, "policy = \"hold-then-legacy\"\nmax_wait = \"15m\"", Script::new()).await;
        bench.send(1);
        bench.until(1, 0, 0).await;
        bench.clock.step(at(off));
        bench.send(2);
        bench.until(1, 2, 0).await;
        let clock = bench.status().await.clock;
        assert!(!clock.trusted && clock.off_seconds == off && clock.shows == at(off), "{clock:?}");
        assert_eq!(bench.status().await.warmup.tokens, Some(0));
        // Restarted meanwhile: it still knows.
        bench.restart().await;
        bench.send(1);
        bench.until(1, 3, 0).await;
        bench.clock.step(at(1));
        bench.send(3);
        bench.until(3, 4, 0).await;
        assert_eq!(bench.status().await.warmup.used, 3, "a step of {off} s has not opened the day again");
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_holds_waits_for_the_clock_and_then_goes() {
    let mut bench = Bench::start(NOON, "policy = \"hold\"", Script::new()).await;
    bench.clock.step(at(-DAY));
    bench.send(2);
    bench.until(0, 0, 2).await;
    bench.clock.set(at(-DAY + HOUR));
    bench.until(0, 0, 2).await;
    bench.clock.step(at(HOUR));
    bench.clock.set(at(HOUR + 10));
    bench.until(2, 0, 0).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_ten_years_ahead_expires_nothing_and_opens_no_second_day_when_it_is_set_right() {
    let refuse = Script::new().always(Step::Rcpt, say("451 4.7.1 later"));
    let mut bench = Bench::start(at(TEN_YEARS), "policy = \"hold\"", refuse).await;
    bench.send(2);
    bench.attempted(1).await;
    let stage = bench.status().await.warmup.day;
    bench.clock.step(NOON);
    assert!(!bench.is_trusted().await, "what has passed says otherwise");
    let answer = bench.relay().backend.accept_clock().await.expect("accepted");
    assert_eq!((answer.moved_seconds, answer.now), (-TEN_YEARS, NOON));
    let status = bench.status().await;
    assert!(status.clock.trusted && status.now == NOON);
    assert_eq!(status.warmup.day, stage, "the ramp stands where it stood");
    assert_eq!(status.warmup.day_ends, at(12 * HOUR), "the day is the one of the clock that is right");
    for row in bench.queue().await {
        let next = row.next.expect("deferred");
        assert!(next > NOON && next <= at(HOUR), "{row:?}");
    }
    // An hour later by the right clock they are tried again.
    bench.clock.set(at(HOUR + 1));
    bench.attempted(2).await;
    assert_eq!(bench.queue().await.len(), 2, "none has expired");
    // And their lives end when five days are over, by the clock that is right.
    bench.clock.set(at(5 * DAY - HOUR));
    bench.attempted(3).await;
    bench.clock.set(at(5 * DAY + HOUR));
    bench.until(0, 2, 0).await;
    assert!(bench.legacy.messages().iter().all(|report| report.rcpts == ["RCPT TO:<sender@example.com>"]));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_ten_years_ahead_once_leaves_the_ramp_and_the_mail_as_they_were() {
    let mut bench = Bench::start(NOON, "policy = \"hold\"", Script::new()).await;
    bench.send(5);
    bench.until(3, 0, 2).await;
    // The battery of the machine's clock is dead: it comes back in another decade, and is set right an hour later.
    bench.stop().await;
    bench.clock.reboot(at(TEN_YEARS));
    bench.restart().await;
    bench.until(3, 0, 2).await;
    assert!(!bench.is_trusted().await);
    bench.clock.step(at(HOUR));
    bench.until(3, 0, 2).await;
    let status = bench.status().await;
    assert!(status.clock.trusted && status.now == at(HOUR), "{status:?}");
    assert_eq!((status.warmup.used, status.warmup.day), (3, Some(1)));
    bench.clock.set(at(DAY + 16 * 60));
    bench.until(5, 0, 0).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_into_an_earlier_time_waits_until_the_clock_has_passed_what_was_stored() {
    let mut bench = Bench::start(NOON, "policy = \"hold\"", Script::new()).await;
    bench.send(1);
    bench.until(1, 0, 0).await;
    bench.stop().await;
    bench.clock.reboot(at(-DAY));
    bench.restart().await;
    bench.send(1);
    bench.until(1, 0, 1).await;
    assert!(bench.status().await.clock.off_seconds <= -DAY);
    bench.clock.set(at(2));
    bench.clock.set(at(10));
    // A day has passed by its own count, so it has caught up with itself but not with the time reckoned.
    assert!(!bench.is_trusted().await);
    bench.clock.step(at(DAY + 20));
    bench.clock.set(at(DAY + 30));
    bench.until(2, 0, 0).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_used_before_an_accepted_step_forward_counts_for_24_hours_after_it() {
    let mut bench = Bench::start(NOON, "policy = \"hold\"", Script::new()).await;
    bench.send(4);
    bench.until(3, 0, 1).await;
    bench.clock.step(at(DAY));
    bench.relay().backend.accept_clock().await.expect("accepted");
    assert!(bench.is_trusted().await);
    bench.until(3, 0, 1).await;
    bench.clock.set(at(DAY + 23 * HOUR));
    bench.until(3, 0, 1).await;
    bench.clock.set(at(DAY + 25 * HOUR));
    bench.until(4, 0, 0).await;
    assert!(bench.relay().backend.accept_clock().await.is_err(), "nothing is in doubt");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_slept_or_was_off_for_a_night_goes_on_at_once() {
    let mut bench = Bench::start(NOON, "policy = \"hold\"", Script::new()).await;
    bench.send(4);
    bench.until(3, 0, 1).await;
    bench.clock.set(at(DAY + 16 * 60));
    bench.until(4, 0, 0).await;
    bench.send(3);
    bench.until(6, 0, 1).await;
    bench.stop().await;
    bench.clock.reboot(at(3 * DAY));
    bench.restart().await;
    bench.until(7, 0, 0).await;
    bench.stop().await;
}

#[test]
fn the_command_is_refused_while_the_clock_is_right_and_needs_a_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let settings = Settings::new(folder.path(), nobody.local_addr().expect("bound"), None);
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    assert_eq!(relay.status()["clock"]["trusted"], true);
    let ended = process::run(&["warmup", "accept-clock", "--reason", "the battery was dead"], &config);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.errors.contains("not in doubt"), "{ended:?}");
    assert_eq!(process::run(&["warmup", "accept-clock"], &config).code, Some(2));
    relay.stop();
}
