//! `mailramp backup` with the real binary: taken under load, killed in the middle, started on, released.
//!
//! `MAILRAMP_BACKUP_SEED` repeats the moments of the kills; the machine's timing still differs.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use application::Application;
use process::{Running, Settings, run, until};
use scripted::{Script, Scripted};
use serde_json::Value;

const LIMIT: u64 = 60;

/// The body of message `n`: in a row, in a segment or in a file of its own.
fn body(n: usize) -> Vec<u8> {
    let lines = match n % 20 {
        19 => 40_000,
        2 | 7 | 12 => 300,
        _ => 5,
    };
    format!("Subject: {n}\r\n\r\n{}", format!("line of message {n}, and no other\r\n").repeat(lines)).into_bytes()
}

fn recipient(n: usize) -> String {
    format!("m{n}@example.net")
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, |entries| entries.count())
}

/// Sends until it is told to stop; counts what was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    fn start(relay: std::net::SocketAddr) -> Load {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let mut application = Application::connect(relay);
            for n in 0.. {
                if until.load(Ordering::SeqCst) {
                    return;
                }
                application.send("sender@example.com", &[&recipient(n)], &body(n));
                count.store(n + 1, Ordering::SeqCst);
            }
        });
        Load { stop, acknowledged, thread }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("every message was taken");
    }
}

/// Numbers of the messages that a server has taken, each with the right octets.
fn taken(server: &Scripted) -> Vec<usize> {
    let number = |message: &scripted::Taken| -> usize {
        let n = message.rcpts[0].strip_prefix("RCPT TO:<m").and_then(|rest| rest.split_once('@')).expect("ours").0;
        let n = n.parse().expect("a number");
        assert!(message.body.ends_with(&body(n)), "other octets than were accepted: message {n}");
        n
    };
    server.messages().iter().map(number).collect()
}

fn json(arguments: &[&str], config: &Path) -> Value {
    let answer = run(arguments, config);
    assert_eq!(answer.code, Some(0), "{arguments:?}: {answer:?}");
    serde_json::from_str(&answer.out).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_under_load_keeps_its_mail_back_and_delivers_each_message_once_released() {
    let folder = tempfile::tempdir().unwrap();
    let new = Script::new().start().await;
    let hold = "policy = \"hold\"";
    let config = Settings::new(folder.path(), new.address, None).limit(LIMIT, hold).save(folder.path());
    let copy = folder.path().join("copy");
    let (before, after) = tokio::task::block_in_place(|| {
        let relay = Running::start(&config);
        let load = Load::start(relay.smtp);
        // Some is delivered, and leaves files to be removed; the rest waits for its token.
        until("some mail waits", || load.acknowledged() > LIMIT as usize + 40, String::new);
        let before = load.acknowledged();
        let said = json(&["backup", copy.to_str().unwrap(), "--json"], &config);
        let after = load.acknowledged() + 1;
        assert!(said["messages"].as_u64().unwrap() >= 40 && said["large"].as_u64().unwrap() > 0, "{said}");
        assert_eq!((&said["bodies_damaged"], &said["bodies_sound"]), (&0.into(), &said["messages"]), "{said}");
        load.end();
        relay.kill();
        (before, after)
    });
    let by_new: BTreeSet<usize> = taken(&new).into_iter().collect();

    // On the copy: nothing leaves, and the day is used up.
    let second = Script::new().start().await;
    let place = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(place.path(), second.address, None).limit(LIMIT, hold);
    settings.data_dir = copy.clone();
    let config = settings.save(place.path());
    let copied: BTreeSet<usize> = tokio::task::block_in_place(|| {
        let relay = Running::start(&config);
        let rows = json(&["queue", "list", "--json", "--limit", "10000"], &config);
        let rows = rows["rows"].as_array().unwrap().clone();
        assert!(rows.iter().all(|row| row["state"] == "paused"), "{rows:?}");
        let status = relay.status();
        assert_eq!(status["queue"]["paused"]["messages"], rows.len());
        assert_eq!((&status["warmup"]["used"], &status["warmup"]["tokens"]), (&LIMIT.into(), &0.into()));
        assert_eq!(relay.logged("spool.restored").len(), 1);
        assert!(run(&["status"], &config).out.contains("came back with restored data"));
        let text = run(&["queue", "flush"], &config).out;
        assert!(text.contains("paused, which `queue flush --state paused` releases"), "{text}");
        relay.stop();
        let rows = rusqlite::Connection::open(copy.join("spool.db")).unwrap();
        let mut statement = rows.prepare("SELECT envelope FROM item").unwrap();
        let envelopes = statement.query_map([], |r| r.get::<_, Vec<u8>>(0)).unwrap();
        let number = |envelope: Vec<u8>| -> usize {
            let text = String::from_utf8_lossy(&envelope).into_owned();
            let at = text.find("@example.net").unwrap();
            let digits = text[..at].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
            digits.parse().unwrap()
        };
        envelopes.map(|envelope| number(envelope.unwrap())).collect()
    });
    for n in 0..before {
        assert!(copied.contains(&n) || by_new.contains(&n), "message {n} was acknowledged before the backup began");
    }
    assert!(copied.iter().all(|n| *n <= after), "nothing in it is from after its end");

    // Released, without a ramp: each of its messages, and each once.
    settings.warmup.clear();
    let config = settings.save(place.path());
    tokio::task::block_in_place(|| {
        let relay = Running::start(&config);
        assert!(relay.logged("spool.restored").is_empty(), "it is at home now");
        assert!(second.messages().is_empty());
        let said = run(&["queue", "flush", "--state", "paused", "--yes"], &config);
        assert!(said.out.starts_with(&format!("{} messages, ", copied.len())), "{said:?}");
        until(
            "all that was copied has left",
            || second.messages().len() >= copied.len(),
            || relay.status().to_string(),
        );
        until("and is settled", || relay.queue().is_empty(), || relay.status().to_string());
        relay.stop();
    });
    let mut delivered = taken(&second);
    delivered.sort_unstable();
    assert_eq!(delivered, copied.into_iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_killed_leaves_the_relay_going_and_nothing_that_starts() {
    let seed =
        std::env::var("MAILRAMP_BACKUP_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().expect("a number"));
    println!("MAILRAMP_BACKUP_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let (socket, address) = Scripted::reserve();
    let settings = Settings::new(folder.path(), address, None);
    let config = settings.save(folder.path());
    let relay = tokio::task::block_in_place(|| {
        let relay = Running::start(&config);
        let mut application = Application::connect(relay.smtp);
        for n in 0..200 {
            application.send("sender@example.com", &[&recipient(n)], &body(n));
        }
        relay
    });
    let mut unfinished = 0;
    let mut longest = Duration::from_millis(200);
    for round in 0..12 {
        let to = folder.path().join(format!("copy{round}"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_mailramp"))
            .args(["backup", to.to_str().unwrap(), "--config", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        until("it has begun", || to.exists(), String::new);
        std::thread::sleep(longest.mul_f64(random.f64()));
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        match ended {
            Some(status) => {
                assert!(status.success());
                assert!(!to.join("unfinished-backup").exists());
                longest /= 2;
            }
            None if to.join("unfinished-backup").exists() => {
                unfinished += 1;
                let place = tempfile::tempdir().unwrap();
                let mut other = Settings::new(place.path(), address, None);
                other.data_dir = to.clone();
                let refused = run(&["run"], &other.save(place.path()));
                assert_eq!(refused.code, Some(73), "{refused:?}");
                assert!(refused.errors.contains("not finished"), "{refused:?}");
            }
            // Killed before its mark, or after the mark was taken off.
            None => {}
        }
    }
    assert!(unfinished > 2, "{unfinished} of 12 were killed in the middle");
    // Nobody holds the relay's files any more: they go with the mail.
    let new = Scripted::start_on(socket, Script::new()).await;
    tokio::task::block_in_place(|| {
        until("everything has left", || new.messages().len() >= 200, || relay.status().to_string());
        Application::connect(relay.smtp).send("sender@example.com", &[&recipient(200)], &body(200));
        let data = folder.path().join("data");
        let left = || (files(&data.join("segments")), files(&data.join("large")));
        until("the last one too", || new.messages().len() > 200, || relay.status().to_string());
        until("the files are gone", || left().0 <= 1 && left().1 == 0, || format!("{:?}", left()));
        let mut numbers = taken(&new);
        numbers.sort_unstable();
        assert_eq!(numbers, (0..=200).collect::<Vec<_>>());
        relay.stop();
    });
}
