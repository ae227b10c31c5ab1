//! The whole relay in this process, from an application's first octet to what the next hops hold in the end.
//!
//! One of the next hops is somebody else's server, so that what we write is judged by code that is not ours; it can be
//! started once in a process and knows no pipelining and no null sender. The other is scripted, for everything that
//! goes wrong.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use application::Application;
use mailin_embedded::response::{NO_MAILBOX, OK};
use mailin_embedded::{Handler, Response, Server, SslConfig};
use mailramp::admin::Backend;
use mailramp::admin::api::{ItemState, QueueAction, QueueFilter, QueueRow, QueueStep, Snapshot};
use mailramp::clock::{Clock, ManualClock, SystemClock};
use mailramp::message::Timestamp;
use mailramp::relay::{Relay, StartError};
use process::{PATIENCE, Running, Settings};
use scripted::{Act, Script, Scripted, Step, Taken, say};

const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";
const SENDER: &str = "sender@example.com";

// --- somebody else's server -----------------------------------------------------------------------------------------

/// Sender, recipients, octets.
type Message = (String, Vec<String>, Vec<u8>);

#[derive(Clone, Debug, Default)]
struct Foreign {
    from: String,
    to: Vec<String>,
    body: Vec<u8>,
    taken: Arc<Mutex<Vec<Message>>>,
}

impl Handler for Foreign {
    fn mail(&mut self, _: IpAddr, _: &str, from: &str) -> Response {
        (self.from, self.to, self.body) = (from.to_owned(), Vec::new(), Vec::new());
        OK
    }

    fn rcpt(&mut self, to: &str) -> Response {
        if to.starts_with("nobody") {
            return NO_MAILBOX;
        }
        self.to.push(to.to_owned());
        OK
    }

    fn data(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.body.extend_from_slice(line);
        Ok(())
    }

    fn data_end(&mut self) -> Response {
        let message = (self.from.clone(), std::mem::take(&mut self.to), std::mem::take(&mut self.body));
        self.taken.lock().expect("no test panics inside").push(message);
        OK
    }
}

/// The one foreign server of this process, and what it has taken from all tests.
fn foreign() -> &'static (SocketAddr, Foreign) {
    static SERVER: OnceLock<(SocketAddr, Foreign)> = OnceLock::new();
    SERVER.get_or_init(|| {
        // It brings a second TLS library into the test build; then none is the default unless one is chosen.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let handler = Foreign::default();
        let mut server = Server::new(handler.clone());
        server.with_name("foreign.example").with_num_threads(32).with_tcp_listener(listener);
        server.with_ssl(SslConfig::None).expect("no TLS needs nothing");
        std::thread::spawn(move || drop(server.serve()));
        (address, handler)
    })
}

/// What the foreign server took for this recipient.
fn foreign_took(recipient: &str) -> Vec<Message> {
    let taken = foreign().1.taken.lock().expect("no test panics inside");
    taken.iter().filter(|(_, to, _)| to.iter().any(|t| t == recipient)).cloned().collect()
}

// --- helpers --------------------------------------------------------------------------------------------------------

/// A relay in a folder of its own.
struct Bench {
    relay: Option<Relay>,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn start(new: SocketAddr, legacy: Option<SocketAddr>, edit: impl FnOnce(Settings) -> Settings) -> Bench {
        Bench::start_at(new, legacy, Arc::new(SystemClock), edit).await
    }

    async fn start_at(
        new: SocketAddr,
        legacy: Option<SocketAddr>,
        clock: Arc<dyn Clock>,
        edit: impl FnOnce(Settings) -> Settings,
    ) -> Bench {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = edit(Settings::new(folder.path(), new, legacy));
        let relay = start(&settings, folder.path(), clock).await.expect("starts");
        Bench { relay: Some(relay), _folder: folder }
    }

    fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("until it is stopped")
    }

    fn connect(&self) -> Application {
        tokio::task::block_in_place(|| Application::connect(self.relay().smtp[0]))
    }

    /// Hands over one message on a connection of its own; returns the queue id of the 250.
    fn send(&self, from: &str, recipients: &[&str], body: &[u8]) -> String {
        let mut application = self.connect();
        tokio::task::block_in_place(|| application.send(from, recipients, body))
    }

    async fn status(&self) -> Snapshot {
        self.relay().backend.snapshot().await.expect("answers")
    }

    async fn queue(&self) -> Vec<QueueRow> {
        self.relay().backend.queue(QueueFilter::default(), 100).await.expect("answers").rows
    }

    /// Until one row is in this state.
    async fn row(&self, state: ItemState) -> QueueRow {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = self.queue().await;
            if let Some(row) = rows.iter().find(|row| row.state == state) {
                return row.clone();
            }
            assert!(Instant::now() < deadline, "no row is {state:?}: {rows:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn empty(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = self.queue().await;
            if rows.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still there: {rows:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it in order; everything has a bound, so a test that hangs fails here.
    async fn stop(mut self) {
        let relay = self.relay.take().expect("stopped once");
        tokio::time::timeout(PATIENCE, relay.stop()).await.expect("within its grace").expect("in order");
    }
}

async fn start(settings: &Settings, folder: &std::path::Path, clock: Arc<dyn Clock>) -> Result<Relay, StartError> {
    let loaded = mailramp::config::Settings::load(&settings.save(folder), std::iter::empty()).expect("good settings");
    Relay::start(&loaded.settings, clock).await
}

/// The octets below our line, which must be the first and the only one of ours.
fn below_our_line<'a>(body: &'a [u8], id: &str) -> &'a [u8] {
    let mut end = 0;
    for line in body.split_inclusive(|octet| *octet == b'\n') {
        if end > 0 && line.first() != Some(&b'\t') {
            break;
        }
        end += line.len();
    }
    let ours = String::from_utf8_lossy(&body[..end]).into_owned();
    assert!(ours.starts_with("Received: from app.example ([127.0.0.1])\r\n\tby relay.example with ESMTP"), "{ours}");
    assert!(ours.contains(&format!(" id {id})")), "{ours} has not the id of the 250, {id}");
    &body[end..]
}

fn subjects(messages: &[Taken]) -> usize {
    messages.iter().filter(|m| m.body.windows(9).any(|w| w == b"Subject: ")).count()
}

fn rcpt(address: &str) -> String {
    format!("RCPT TO:<{address}>")
}

/// Noon of a day in UTC, for tests that move the clock themselves.
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

// --- the tests ------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_arrives_octet_for_octet_below_one_line_of_ours() {
    let bodies: [Vec<u8>; 9] = [
        BODY.to_vec(),
        b"Subject: dots\r\n\r\n.\r\n..\r\n.leading\r\nin . between\r\n...\r\n".to_vec(),
        b".begins: with a dot\r\n\r\n".to_vec(),
        b"".to_vec(),
        b"\r\n".to_vec(),
        b"Subject: only a header\r\n".to_vec(),
        [b"Subject: 8 bit\r\n\r\n", &(0x80..=0xff).collect::<Vec<u8>>()[..], b"\r\n"].concat(),
        format!("Subject: a long line\r\n\r\n{}\r\n", "x".repeat(998)).into_bytes(),
        format!("Subject: large\r\n\r\n{}", ".a line that begins with a dot\r\n".repeat(40_000)).into_bytes(),
    ];
    let (foreign_address, _) = foreign();
    let ours = Script::new().start().await;
    for next_hop in [*foreign_address, ours.address] {
        let bench = Bench::start(next_hop, None, |settings| settings).await;
        for (n, body) in bodies.iter().enumerate() {
            let recipient = format!("octets{n}@example.net");
            let id = bench.send(SENDER, &[&recipient], body);
            bench.empty().await;
            let arrived = if next_hop == ours.address {
                let taken = ours.messages().pop().expect("taken");
                assert_eq!(taken.rcpts, [rcpt(&recipient)]);
                taken.body
            } else {
                let mut taken = foreign_took(&recipient);
                assert_eq!(taken.len(), 1, "once");
                let (from, to, body) = taken.pop().expect("taken");
                assert_eq!((from.as_str(), to), (SENDER, vec![recipient]));
                body
            };
            assert!(below_our_line(&arrived, &id) == body, "body {n} was changed on the way");
        }
        bench.stop().await;
    }
    assert_eq!(ours.messages().len(), bodies.len(), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_recipient_is_reported_to_the_sender_and_the_others_get_their_mail_once() {
    let legacy = Script::new().start().await;
    let bench = Bench::start(foreign().0, Some(legacy.address), |settings| settings).await;
    let recipients = ["partly1@example.net", "nobody@example.net", "partly2@example.net"];
    let id = bench.send(SENDER, &recipients, BODY);
    bench.empty().await;
    let taken = foreign_took("partly1@example.net");
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].1, ["partly1@example.net", "partly2@example.net"], "in one transaction");
    assert_eq!(below_our_line(&taken[0].2, &id), BODY);
    let reports = legacy.messages();
    assert_eq!(reports.len(), 1, "one report, by the sender's own server");
    assert!(reports[0].mail.starts_with("MAIL FROM:<>"), "{}", reports[0].mail);
    assert_eq!(reports[0].rcpts, [rcpt(SENDER)]);
    let report = String::from_utf8_lossy(&reports[0].body);
    for words in ["multipart/report", "Final-Recipient: rfc822;", "nobody@example.net", "Action: failed", "550", &id] {
        assert!(report.contains(words), "{words:?} is missing in\n{report}");
    }
    assert!(!report.contains("partly"), "only who failed is named:\n{report}");
    assert!(!report.contains("how are you"), "no body goes back:\n{report}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_message_from_the_null_sender_is_kept_as_a_dead_letter() {
    let new = Script::new().always(Step::Rcpt, say("550 5.1.1 no such user")).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(new.address, Some(legacy.address), |settings| settings).await;
    let id = bench.send("", &["gone@example.net"], BODY);
    let row = bench.row(ItemState::Dead).await;
    assert_eq!((&row.id, row.recipients), (&id, 1));
    assert!(row.last_reply.contains("550 5.1.1 no such user"), "{row:?}");
    assert_eq!(bench.queue().await.len(), 1, "nothing else was made of it");
    assert!(legacy.messages().is_empty(), "nobody is told about a report");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_waits_for_its_retry_or_a_flush_and_its_id_is_the_same_everywhere() {
    let new = Script::new().at(Step::Rcpt, 1, say("451 4.7.1 come back later")).start().await;
    let bench = Bench::start(new.address, None, |mut settings| {
        settings.queue = "retry = [\"1h\"]".into();
        settings
    })
    .await;
    let id = bench.send(SENDER, &["later@example.net"], BODY);
    let row = bench.row(ItemState::Deferred).await;
    assert_eq!((&row.id, row.attempts), (&id, 1));
    assert!(row.last_reply.contains("451 4.7.1 come back later") && row.next.is_some(), "{row:?}");
    assert!(new.messages().is_empty());
    let only = QueueFilter { id: Some(id.clone()), ..QueueFilter::default() };
    let backend = &bench.relay().backend;
    let would = backend.select(only.clone(), QueueAction::Flush, false, true).await.expect("answers");
    assert_eq!((would.messages, would.ids.len()), (1, 1));
    assert_eq!(bench.row(ItemState::Deferred).await.id, id, "a selection changes nothing");
    let step = QueueStep { job: would.job, action: QueueAction::Flush, filter: only, ids: would.ids };
    let done = backend.step(step, 0).await.expect("answers");
    assert_eq!((done.messages, done.recipients), (1, 1));
    bench.empty().await;
    let taken = new.messages();
    assert_eq!(taken.len(), 1);
    assert_eq!(below_our_line(&taken[0].body, &id), BODY);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_waits_while_the_next_hop_is_down_and_leaves_once_when_it_is_up() {
    let (socket, address) = Scripted::reserve();
    let bench = Bench::start(address, None, |settings| settings.limit(10, "policy = \"hold\"")).await;
    let ids = [1, 2].map(|n| bench.send(SENDER, &[&format!("down{n}@example.net")], BODY));
    let deadline = Instant::now() + PATIENCE;
    while bench.status().await.new.up {
        assert!(Instant::now() < deadline, "a next hop that refuses connections is down");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = bench.status().await;
    assert_eq!((status.queue.held.messages, status.warmup.used), (2, 0), "no token is spent on a closed door");
    assert!(status.new.last_error.is_some());
    let rows = bench.queue().await;
    assert_eq!(rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>(), ids, "oldest first");
    let new = Scripted::start_on(socket, Script::new()).await;
    bench.empty().await;
    assert_eq!(new.messages().len(), 2, "each once");
    let status = bench.status().await;
    assert!(status.new.up && status.new.last_error.is_none());
    assert_eq!((status.warmup.used, status.warmup.sent), (2, 2));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exceeds_the_limit_leaves_by_legacy_at_once() {
    let (new, legacy) = (Script::new().start().await, Script::new().start().await);
    let bench =
        Bench::start(new.address, Some(legacy.address), |settings| settings.limit(2, "policy = \"legacy\"")).await;
    for n in 0..5 {
        bench.send(SENDER, &[&format!("over{n}@example.net")], BODY);
        bench.empty().await;
    }
    let at = |server: &Scripted| server.messages().into_iter().flat_map(|m| m.rcpts).collect::<Vec<_>>();
    assert_eq!(at(&new), [rcpt("over0@example.net"), rcpt("over1@example.net")]);
    assert_eq!(at(&legacy), [2, 3, 4].map(|n| rcpt(&format!("over{n}@example.net"))));
    let status = bench.status().await;
    assert_eq!((status.warmup.used, status.warmup.tokens), (2, Some(0)));
    assert_eq!((status.today.new, status.today.legacy), (2, 3));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_a_message_is_split_between_the_routes() {
    let (new, legacy) = (Script::new().start().await, Script::new().start().await);
    let bench =
        Bench::start(new.address, Some(legacy.address), |settings| settings.limit(1, "policy = \"legacy\"")).await;
    let id = bench.send(SENDER, &["one@example.net", "two@example.net"], BODY);
    bench.empty().await;
    let (by_new, by_legacy) = (new.messages(), legacy.messages());
    assert_eq!((by_new.len(), by_legacy.len()), (1, 1));
    assert_eq!(by_new[0].rcpts, [rcpt("one@example.net")]);
    assert_eq!(by_legacy[0].rcpts, [rcpt("two@example.net")]);
    for message in [&by_new[0], &by_legacy[0]] {
        assert_eq!(below_our_line(&message.body, &id), BODY);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_messages_at_the_same_time_get_one_token_between_them() {
    let (new, legacy) = (Script::new().start().await, Script::new().start().await);
    let bench =
        Bench::start(new.address, Some(legacy.address), |settings| settings.limit(1, "policy = \"legacy\"")).await;
    let mut applications: Vec<_> = (0..4).map(|_| bench.connect()).collect();
    tokio::task::block_in_place(|| {
        for (n, application) in applications.iter_mut().enumerate() {
            application.offer(SENDER, &[&format!("race{n}@example.net")], BODY);
        }
        for application in &mut applications {
            application.hear("250 2.0.0 ");
        }
    });
    bench.empty().await;
    assert_eq!((subjects(&new.messages()), subjects(&legacy.messages())), (1, 3));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_legacy_server_mail_over_the_limit_waits_for_the_next_tokens() {
    let new = Script::new().start().await;
    let clock = Arc::new(ManualClock::at(NOON));
    let bench =
        Bench::start_at(new.address, None, clock.clone(), |settings| settings.limit(1, "policy = \"hold\"")).await;
    bench.send(SENDER, &["first@example.net"], BODY);
    bench.empty().await;
    let id = bench.send(SENDER, &["second@example.net"], BODY);
    let row = bench.row(ItemState::Held).await;
    assert_eq!((&row.id, row.next), (&id, None), "no deadline");
    // A new day has begun by then, but the 24 hours are not over.
    clock.set(NOON.after(minutes(23 * 60)));
    bench.relay().backend.routes.current().nudge();
    assert_eq!(bench.row(ItemState::Held).await.id, id);
    assert_eq!(new.messages().len(), 1);
    clock.set(NOON.after(minutes(24 * 60 + 16)));
    bench.relay().backend.routes.current().nudge();
    bench.empty().await;
    assert_eq!(new.messages()[1].rcpts, [rcpt("second@example.net")]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_left_by_its_deadline_leaves_by_legacy() {
    let (_closed, new) = Scripted::reserve();
    let legacy = Script::new().start().await;
    let clock = Arc::new(ManualClock::at(NOON));
    let policy = "policy = \"hold-then-legacy\"\nmax_wait = \"15m\"";
    let bench = Bench::start_at(new, Some(legacy.address), clock.clone(), |mut settings| {
        settings.queue.push_str("\nfallback_on = []");
        settings.limit(10, policy)
    })
    .await;
    let id = bench.send(SENDER, &["late@example.net"], BODY);
    let row = bench.row(ItemState::Held).await;
    assert_eq!((&row.id, row.next), (&id, Some(NOON.after(minutes(15)))));
    clock.set(NOON.after(minutes(14)));
    bench.relay().backend.routes.current().nudge();
    assert_eq!(bench.row(ItemState::Held).await.id, id);
    assert!(legacy.messages().is_empty());
    clock.set(NOON.after(minutes(15)));
    bench.relay().backend.routes.current().nudge();
    bench.empty().await;
    let taken = legacy.messages();
    assert_eq!(taken.len(), 1);
    assert_eq!(below_our_line(&taken[0].body, &id), BODY);
    assert_eq!(bench.status().await.warmup.used, 0);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_after_as_many_errors_as_the_settings_say() {
    let new = Script::new().start().await;
    let bench = Bench::start(new.address, None, |mut settings| {
        settings.smtp = "[smtp.limits]\nerrors = 3".into();
        settings
    })
    .await;
    let mut application = bench.connect();
    tokio::task::block_in_place(|| {
        application.say("WHAT\r\n", "500 ");
        application.say("RCPT TO:<a@example.net>\r\n", "503 ");
        application.say("WHAT\r\n", "421 4.7.0 Too many errors");
    });
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_start_holds_neither_port_nor_lock() {
    let new = Script::new().start().await;
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut settings = Settings::new(folder.path(), new.address, None);
    // The first address can be had, the second not.
    settings.bind = format!("{free}\", \"{}", in_the_way.local_addr().unwrap());
    let text =
        settings.text().replace(&format!("bind = \"{}\"", settings.bind), &format!("bind = [\"{}\"]", settings.bind));
    let path = folder.path().join("mailramp.toml");
    std::fs::write(&path, text).unwrap();
    let loaded = mailramp::config::Settings::load(&path, std::iter::empty()).expect("good settings");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match Relay::start(&loaded.settings, clock.clone()).await {
        Err(StartError::Busy(text)) => assert!(text.contains("in use by another program"), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("started on a port in use"),
    }
    drop(TcpListener::bind(free).expect("the port that could be had is free again"));
    drop(in_the_way);
    let relay = Relay::start(&loaded.settings, clock).await.expect("the lock is free again");
    tokio::time::timeout(PATIENCE, relay.stop()).await.expect("in time").expect("in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_for_a_legacy_server_that_is_gone_from_the_settings_stops_the_start_with_words() {
    let new = Script::new().start().await;
    let (_port, nobody) = Scripted::reserve();
    let folder = tempfile::tempdir().unwrap();
    let with = Settings::new(folder.path(), new.address, Some(nobody)).limit(1, "policy = \"legacy\"");
    let relay = start(&with, folder.path(), Arc::new(SystemClock)).await.expect("starts");
    let bench = Bench { relay: Some(relay), _folder: tempfile::tempdir().unwrap() };
    bench.send(SENDER, &["first@example.net"], BODY);
    bench.send(SENDER, &["second@example.net"], BODY);
    assert_eq!(bench.row(ItemState::Ready).await.route.as_deref(), Some("legacy"));
    bench.stop().await;
    let without = Settings::new(folder.path(), new.address, None);
    match start(&without, folder.path(), Arc::new(SystemClock)).await {
        Err(StartError::Settings(text)) => assert!(text.contains("1 queued messages wait for the legacy"), "{text}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("started, and the mail would wait for ever"),
    }
    let relay = start(&with, folder.path(), Arc::new(SystemClock)).await.expect("starts with it again");
    tokio::time::timeout(PATIENCE, relay.stop()).await.expect("in time").expect("in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_next_hop_that_hangs_and_the_item_is_there_after_the_restart() {
    // The first message is taken, its answer never comes.
    let new = Script::new().at(Step::Dot, 1, Act::Hang).start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(folder.path(), new.address, None).limit(10, "policy = \"hold\"");
    settings.smtp = "stop_grace = \"1s\"".into();
    let config = settings.save(folder.path());
    let sent = tokio::task::spawn_blocking(move || {
        let relay = Running::start(&config);
        let id = Application::connect(relay.smtp).send(SENDER, &["hangs@example.net"], BODY);
        (relay, config, id)
    });
    let (relay, config, id) = sent.await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while new.messages().is_empty() {
        assert!(Instant::now() < deadline, "it reaches the final dot");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let again = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        relay.terminate();
        assert_eq!(relay.ended(), Some(0), "an orderly stop");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "the grace is one second, it took {took:?}");
        let relay = Running::start(&config);
        let opened = relay.logged("spool.opened");
        assert_eq!(opened[0]["in_flight"], 1, "it is marked: the next hop may have it");
        process::until("it is delivered", || relay.queue().is_empty(), || format!("{:?}", relay.queue()));
        let status = relay.status();
        // The token of the attempt nobody knows the end of stays spent.
        assert_eq!((&status["warmup"]["used"], &status["warmup"]["sent"]), (&2.into(), &1.into()));
        relay.stop();
    });
    again.await.unwrap();
    let taken = new.messages();
    assert_eq!(taken.len(), 2, "the copy whose answer was lost, and the one after the restart");
    for message in &taken {
        assert_eq!(below_our_line(&message.body, &id), BODY, "the same id tells the copies");
    }
}
