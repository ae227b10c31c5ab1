//! No 250 before the message is on disk: seen from inside, with the commit held up at each of its steps, and from
//! outside, in the system calls of the real binary.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use application::Application;
use mailramp::clock::{Clock, SystemClock, TrustedClock};
use mailramp::delivery::dispatcher::QueueIds;
use mailramp::message::{Queue, QueueId, Route, Timestamp};
use mailramp::metrics::{Build, Metrics};
use mailramp::operators::Operators;
use mailramp::policy::{Calendar, StreamRules};
use mailramp::relay::gate::WarmupGate;
use mailramp::relay::intake::{DoorCounter, SpoolIntake};
use mailramp::smtp::{ConnectionCounts, ListenerSettings, Server, SessionSettings};
use mailramp::spool::body::BodyBuffer;
use mailramp::spool::committer::{self, Outlet};
use mailramp::spool::disk::{DataDirectory, Watermark};
use mailramp::spool::sqlite::{CommitStep, DiskLimits, SqliteStore};
use mailramp::spool::{Claimed, Slots, Spool, Touched};
use process::{PATIENCE, Running, Settings, until};
use tokio_util::sync::CancellationToken;

const SMALL: usize = 100;
/// Large enough to lie in a segment.
const IN_SEGMENT: usize = 10 << 10;

/// A message with about so many octets of body.
fn body(octets: usize) -> Vec<u8> {
    let line = "a line of a message, of no interest\r\n";
    format!("Subject: x\r\n\r\n{}", line.repeat(octets / line.len() + 1)).into_bytes()
}

// --- from inside ----------------------------------------------------------------------------------------------------

/// No next hop: what is accepted stays.
struct NoRoutes;

impl Slots for NoRoutes {
    fn take(&self, _: Route) -> bool {
        false
    }
    fn give_back(&self, _: Route, _: usize) {}
}

impl Outlet for NoRoutes {
    fn deliver(&self, _: Vec<Claimed>) {}
    fn expired(&self, _: Vec<Claimed>) {}
    fn touched(&self, _: Vec<Touched>, _: Vec<Queue>, _: Option<Timestamp>) {}
}

/// Stops the committer at one step until it is let go.
#[derive(Default)]
struct Brake {
    at: Option<CommitStep>,
    reached: Option<mpsc::Sender<()>>,
    go_on: Option<mpsc::Receiver<()>>,
    seen: Vec<CommitStep>,
}

/// Front door, committer and store as the relay joins them, without delivery.
struct Door {
    relay: SocketAddr,
    brake: Arc<Mutex<Brake>>,
    runtime: Option<tokio::runtime::Runtime>,
    _folder: tempfile::TempDir,
}

impl Door {
    fn open() -> Door {
        let folder = tempfile::tempdir().unwrap();
        let limits = DiskLimits { min_free: 0, max_used: u64::MAX };
        let directory = DataDirectory::open(folder.path()).unwrap();
        let mut store = SqliteStore::open(directory, limits).unwrap();
        let brake = Arc::new(Mutex::new(Brake::default()));
        let shared = brake.clone();
        store.set_sync_hook(Box::new(move |step| {
            let mut brake = shared.lock().unwrap();
            brake.seen.push(step);
            if brake.at == Some(step) {
                brake.at = None;
                let (reached, go_on) = (brake.reached.take().unwrap(), brake.go_on.take().unwrap());
                drop(brake);
                reached.send(()).unwrap();
                go_on.recv_timeout(PATIENCE).unwrap();
            }
        }));
        let clock = Arc::new(TrustedClock::new(Arc::new(SystemClock), None));
        let (spool, _) = Spool::open(store, clock.now()).unwrap();
        let gate = Arc::new(WarmupGate::new(None, Calendar::utc(), vec![StreamRules::default()]));
        let metrics = Arc::new(Metrics::new(&Build::default(), &["default".into()]).unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (spool, _committer) = committer::start(spool, gate, Arc::new(NoRoutes), clock.clone()).unwrap();
        let intake = Arc::new(SpoolIntake {
            spool,
            buffer: Arc::new(BodyBuffer::new(1 << 24, folder.path().join("large"))),
            ids: Arc::new(QueueIds::after(QueueId(0))),
            clock,
            metrics: metrics.clone(),
            watermark: Watermark::new(folder.path().into(), 0, u64::MAX),
            operators: Operators::without_lanes(Arc::new(SystemClock)),
            streams: Default::default(),
            dry_run: None,
        });
        let settings = SessionSettings { allow_from: vec!["127.0.0.0/8".parse().unwrap()], ..Default::default() };
        let listener = ListenerSettings { address: SocketAddr::from(([127, 0, 0, 1], 0)), index: 0 };
        let server = Server::bind(listener).unwrap();
        let relay = server.local_addr().unwrap();
        let counts = Arc::new(ConnectionCounts::new(10, 10));
        let observer = Arc::new(DoorCounter(metrics));
        let door = mailramp::smtp::Door { intake, counts, observer, authenticator: None, tls: None };
        runtime.spawn(server.run(door, Arc::new(settings), CancellationToken::new()));
        Door { relay, brake, runtime: Some(runtime), _folder: folder }
    }

    /// Sends one message while the commit stands still at `step`; returns the steps of the whole commit.
    fn accept_held_at(&self, step: CommitStep, octets: usize) -> Vec<CommitStep> {
        let (reached, has_reached) = mpsc::channel();
        let (go, go_on) = mpsc::channel();
        let brake = Brake { at: Some(step), reached: Some(reached), go_on: Some(go_on), seen: Vec::new() };
        *self.brake.lock().unwrap() = brake;
        let mut application = Application::connect(self.relay);
        application.offer("a@example.com", &["b@example.net"], &body(octets));
        has_reached.recv_timeout(PATIENCE).expect("the commit comes by");
        application.hears_nothing();
        go.send(()).unwrap();
        application.hear("250 2.0.0 ");
        // Whatever is to be seen of the commit was seen before the 250.
        self.brake.lock().unwrap().seen.clone()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

#[test]
fn no_250_before_the_commit_is_synced() {
    use CommitStep::{BodiesSynced, BodiesWritten, DatabaseSynced};
    let door = Door::open();
    assert_eq!(door.accept_held_at(DatabaseSynced, SMALL), [DatabaseSynced]);
    for step in [BodiesWritten, DatabaseSynced, BodiesSynced] {
        assert_eq!(door.accept_held_at(step, IN_SEGMENT), [BodiesWritten, DatabaseSynced, BodiesSynced]);
    }
}

// --- from outside ---------------------------------------------------------------------------------------------------

/// What matters of a trace, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    /// The relay has read the final dot.
    Dot,
    /// It is about to write the 250 to it.
    Said250,
    /// The last octets were handed to the system for this file.
    Written(String),
    /// A sync of this file has returned; all that was written when it was called is on disk.
    Synced { file: String, covers: usize },
}

/// Reads what `strace -f -y` has written. A call that is interrupted by another thread's stands on two lines.
fn events(trace: &str) -> Vec<Event> {
    let mut events = Vec::new();
    let mut unfinished: HashMap<&str, (&str, usize)> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (call, began, result) = if let Some(call) = rest.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (call, events.len()));
            (call, events.len(), None)
        } else if rest.starts_with("<... ") {
            let Some((call, began)) = unfinished.remove(thread) else { continue };
            (call, began, Some(rest))
        } else {
            (rest, events.len(), Some(rest))
        };
        let name = call.split('(').next().unwrap_or("");
        let file = call.split_once('<').and_then(|(_, r)| r.split_once('>')).map_or("", |(f, _)| f).to_owned();
        let done = result.filter(|r| !r.contains(" = -1 ") && r.contains(" = "));
        match name {
            // What was read stands on the line on which the call ends.
            "read" | "recvfrom" if done.is_some_and(|r| r.contains(r"\r\n.\r\n")) => events.push(Event::Dot),
            // The 250 counts from the moment at which it is handed over.
            "write" | "sendto" | "writev"
                if call.contains("\"250 2.0.0 Queued") && began == events.len() && !rest.starts_with("<...") =>
            {
                events.push(Event::Said250);
            }
            "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2" if done.is_some() => {
                events.push(Event::Written(file));
            }
            "fsync" | "fdatasync" if done.is_some_and(|r| r.ends_with("= 0")) => {
                events.push(Event::Synced { file, covers: began });
            }
            _ => {}
        }
    }
    events
}

/// Between the dot at `dot` and its 250: the last write to a file whose name contains `file` is covered by a sync.
fn synced_before_250(events: &[Event], dot: usize, file: &str) -> bool {
    let end = dot + events[dot..].iter().position(|e| *e == Event::Said250).expect("a 250");
    let last_write = (dot..end).rev().find(|i| matches!(&events[*i], Event::Written(f) if f.contains(file)));
    last_write.is_some_and(|write| {
        events[write..end]
            .iter()
            .any(|event| matches!(event, Event::Synced { file: f, covers } if f.contains(file) && *covers > write))
    })
}

fn strace_works() -> bool {
    let trial = Command::new("strace")
        .args(["-D", "-f", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    trial.is_ok_and(|status| status.success())
}

/// The trace is whole once the last thread's end is in it.
fn whole_trace(path: &Path, pid: u32) -> String {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    let whole = || read().lines().any(|l| l.starts_with(&format!("{pid} ")) && l.ends_with("+++ exited with 0 +++"));
    until("strace has written everything", whole, || format!("{} octets so far", read().len()));
    read()
}

#[test]
fn in_the_system_calls_a_completed_sync_lies_between_every_message_and_its_250() {
    if !strace_works() {
        println!("skipped: strace is not here, or may not trace");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Next hops that refuse: what is accepted stays, and nothing else is written meanwhile.
    let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    closed.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let hop = closed.local_addr().unwrap().as_socket().unwrap();
    let config = Settings::new(folder.path(), hop, None).limit(100, "").save(folder.path());
    let trace = folder.path().join("trace");
    let strace = [
        "strace",
        "-D",
        "-f",
        "-y",
        "-s",
        "65536",
        "-e",
        "signal=none",
        "-e",
        "trace=read,recvfrom,write,writev,sendto,pwrite64,pwritev,pwritev2,fsync,fdatasync",
        "-o",
        trace.to_str().unwrap(),
    ];
    let relay = Running::start_under(&strace, &config);
    let pid = relay.pid();
    let mut application = Application::connect(relay.smtp);
    let sizes = [SMALL, IN_SEGMENT, SMALL, IN_SEGMENT, IN_SEGMENT, SMALL];
    for octets in sizes {
        application.send("a@example.com", &["b@example.net"], &body(octets));
    }
    drop(application);
    relay.stop();
    let events = events(&whole_trace(&trace, pid));
    let dots: Vec<usize> = (0..events.len()).filter(|i| events[*i] == Event::Dot).collect();
    assert_eq!(dots.len(), sizes.len(), "{events:?}");
    for (octets, dot) in sizes.into_iter().zip(dots) {
        assert!(synced_before_250(&events, dot, "spool.db-wal"), "the log, {octets} octets: {:?}", &events[dot..]);
        if octets == IN_SEGMENT {
            assert!(synced_before_250(&events, dot, "/segments/"), "the segment: {:?}", &events[dot..]);
        }
    }
}

#[test]
fn the_reading_of_a_trace_tells_a_sync_from_one_that_came_too_late() {
    let dot = r#"7 recvfrom(9<socket:[1]>, "x\r\n.\r\n", 4096, 0, NULL, NULL) = 6"#;
    let write = r#"8 pwrite64(5</d/spool.db-wal>, "..."..., 4096, 0) = 4096"#;
    let sync = "8 fsync(5</d/spool.db-wal>) = 0";
    let failed = "8 fsync(5</d/spool.db-wal>) = -1 EIO (Input/output error)";
    let (begun, ended) = ("8 fsync(5</d/spool.db-wal> <unfinished ...>", "8 <... fsync resumed>) = 0");
    let said = r#"7 sendto(9<socket:[1]>, "250 2.0.0 Queued as 0\r\n", 23, MSG_NOSIGNAL, NULL, 0) = 23"#;
    let good = |lines: &[&str]| synced_before_250(&events(&lines.join("\n")), 0, "spool.db-wal");
    assert!(good(&[dot, write, sync, said]));
    assert!(good(&[dot, write, begun, ended, said]));
    assert!(!good(&[dot, write, said, sync]));
    assert!(!good(&[dot, sync, write, said]));
    assert!(!good(&[dot, write, failed, said]));
    assert!(!good(&[dot, write, begun, said, ended]));
    assert!(!good(&[dot, begun, write, ended, said]), "the sync began before the write");
    assert!(!good(&[dot, said]));
}
