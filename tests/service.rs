//! What a service manager sees of the real binary: its notices, its signs of life, and how it stops.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use application::Application;
use process::{PATIENCE, Running, Settings, until};
use rustix::process::Signal;
use scripted::{Act, Script, Step};
use tokio::runtime::Runtime;

const BODY: &[u8] = b"Subject: hello\r\n\r\nhello\r\n";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The service manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn listen(folder: &Path) -> Manager {
        let path = folder.join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path: path.to_str().unwrap().to_owned() }
    }

    /// The next notice, if one comes in time.
    fn hear_within(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut octets = [0; 4096];
        let read = self.socket.recv(&mut octets).ok()?;
        Some(String::from_utf8_lossy(&octets[..read]).into_owned())
    }

    /// Hears notices until one has this line; returns it.
    fn hear(&self, line: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while Instant::now() < deadline {
            if let Some(notice) = self.hear_within(Duration::from_secs(1)) {
                if notice.lines().any(|said| said == line) {
                    return notice;
                }
                heard.push(notice);
            }
        }
        panic!("no {line} within {PATIENCE:?}, but {heard:?}");
    }
}

#[test]
fn the_service_manager_hears_when_it_is_ready_reloads_and_stops_and_how_far_it_is() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let manager = Manager::listen(folder.path());
    let settings = Settings::new(folder.path(), hop.address, None).limit(10, "policy = \"hold\"");
    let config = settings.save(folder.path());
    let relay = Running::start_with(&config, &[("NOTIFY_SOCKET", &manager.path)]);
    manager.hear("READY=1");
    Application::connect(relay.smtp).send("app@example.com", &["a@example.net", "b@example.net"], BODY);
    manager.hear("STATUS=day 1, 2/10 used, 0 held");

    relay.reload();
    let notice = manager.hear("RELOADING=1");
    let since = notice.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("the time");
    assert!(since.parse::<u64>().unwrap() > 0, "{notice}");
    manager.hear("READY=1");

    relay.terminate();
    let notice = manager.hear("STOPPING=1");
    assert!(notice.contains("EXTEND_TIMEOUT_USEC=40000000"), "{notice}");
    assert_eq!(relay.ended(), Some(0));
}

#[test]
fn a_committer_that_hangs_gives_no_sign_of_life_until_it_goes_on() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let manager = Manager::listen(folder.path());
    let settings = Settings::new(folder.path(), hop.address, None);
    let config = settings.save(folder.path());
    let variables = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let relay = Running::start_with(&config, &variables);
    for _ in 0..3 {
        manager.hear("WATCHDOG=1");
    }
    // Nobody can write while we hold this.
    let database = rusqlite::Connection::open(folder.path().join("data/spool.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut application = Application::connect(relay.smtp);
    application.offer("app@example.com", &["a@example.net"], BODY);
    until("it gives no more signs of life", || manager.hear_within(Duration::from_secs(1)).is_none(), String::new);
    assert_eq!(relay.logged("relay.silent").len(), 1);
    database.execute_batch("ROLLBACK").unwrap();
    application.hear("250 2.0.0 Queued");
    manager.hear("WATCHDOG=1");
    relay.stop();
}

#[test]
fn a_stop_lets_messages_and_deliveries_under_way_end_and_exits_with_0() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let slow = Script::new().always(Step::Body, Act::Pause(Duration::from_millis(700)));
    let hop = runtime.block_on(slow.start());
    let config = Settings::new(folder.path(), hop.address, None).save(folder.path());
    let relay = Running::start(&config);
    let mut idle = Application::connect(relay.smtp);
    let mut sending = Application::connect(relay.smtp);
    let say = |application: &mut Application, text: &str, reply| drop(application.say(text, reply));
    say(&mut sending, "MAIL FROM:<app@example.com>\r\n", "250 ");
    say(&mut sending, "RCPT TO:<late@example.net>\r\n", "250 ");
    say(&mut sending, "DATA\r\n", "354 ");
    Application::connect(relay.smtp).send("app@example.com", &["early@example.net"], BODY);
    let under_way = || hop.commands().iter().any(|command| command.starts_with("DATA"));
    until("the delivery is under way", under_way, || relay.whole_log());
    relay.terminate();
    idle.hear("421 4.3.2");
    sending.write(b"Subject: late\r\n\r\n.\r\n");
    sending.hear("250 2.0.0 Queued");
    assert_eq!(relay.ended(), Some(0));
    let early = |message: &scripted::Taken| message.rcpts[0].contains("early");
    assert_eq!(hop.messages().iter().filter(|message| early(message)).count(), 1);

    let relay = Running::start(&config);
    until("the late one is relayed", || hop.messages().len() == 2, || relay.whole_log());
    assert_eq!(hop.messages().iter().filter(|message| early(message)).count(), 1, "not a second time");
    relay.stop();
}

#[test]
fn a_second_signal_ends_the_wait_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(folder.path(), "127.0.0.1:9".parse().unwrap(), None);
    settings.smtp = "stop_grace = \"1h\"\n".into();
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    let mut sending = Application::connect(relay.smtp);
    sending.say("MAIL FROM:<app@example.com>\r\n", "250 ");
    sending.say("RCPT TO:<you@example.net>\r\n", "250 ");
    sending.say("DATA\r\n", "354 ");
    relay.terminate();
    until("it is stopping", || relay.logged("relay.stopping").len() == 1, || relay.whole_log());
    sending.hears_nothing();
    relay.signal(Signal::INT);
    assert_eq!(relay.ended(), Some(0));
}
