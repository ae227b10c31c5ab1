//! Listens, counts connections, and starts a task for each one that is let in.
//!
//! Promises: a port in use is an error before anything has started; a connection beyond the limits is told so and costs
//! no task; a session that panics takes nobody with it; after shutdown nothing new is taken and what is in DATA gets
//! its time. What a session does is `session`'s and `connection`'s matter.

use core::net::{IpAddr, SocketAddr};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Connection, Shared};
use super::counts::{ConnectionCounts, Standing};
use super::rejections::RejectionLog;
use super::settings::contains;
use super::tls::ServerTls;
use super::{AuthPolicy, Authenticator, Intake, Observer, Opened, RejectReason, SessionSettings, TlsMode};

/// Where to listen.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// An IPv6 address takes IPv6 only. Port 0 takes any free one.
    pub address: SocketAddr,
    /// Repeated in each [`super::Submission`] and to the observer.
    pub index: usize,
}

/// What all listeners share.
pub struct Door<I> {
    pub intake: Arc<I>,
    pub counts: Arc<ConnectionCounts>,
    pub observer: Arc<dyn Observer>,
    /// `None`: nobody can log in.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Needed by listeners whose [`SessionSettings::tls`] is not `Off`.
    pub tls: Option<Arc<ServerTls>>,
}

/// What a connection goes by from beginning to end, whatever the next ones go by.
pub struct Terms {
    pub settings: Arc<SessionSettings>,
    /// As in [`Door`].
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// As in [`Door`].
    pub tls: Option<Arc<ServerTls>>,
}

/// A bound socket that is not served yet.
#[derive(Debug)]
pub struct Server {
    listener: std::net::TcpListener,
    index: usize,
}

impl Server {
    /// Takes the port. Clients can connect from here on, and wait.
    pub fn bind(settings: ListenerSettings) -> io::Result<Server> {
        let socket = Socket::new(Domain::for_address(settings.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if settings.address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&settings.address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Server { listener: socket.into(), index: settings.index })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, and then until the sessions have ended or the grace time is over.
    pub async fn run<I: Intake>(
        self,
        door: Door<I>,
        settings: Arc<SessionSettings>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let Door { authenticator, tls, .. } = &door;
        let terms = Terms { settings, authenticator: authenticator.clone(), tls: tls.clone() };
        self.run_by(door, Arc::new(ArcSwap::from_pointee(terms)), shutdown).await
    }

    /// The same by terms that may be exchanged. They stand for those in `door`.
    pub async fn run_by<I: Intake>(
        self,
        door: Door<I>,
        terms: Arc<ArcSwap<Terms>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let tasks = TaskTracker::new();
        let Door { intake, counts, observer, .. } = door;
        let rejections = Arc::new(RejectionLog::default());
        let share = |terms: &Arc<Terms>| {
            Arc::new(Shared {
                intake: intake.clone(),
                terms: terms.clone(),
                observer: observer.clone(),
                rejections: rejections.clone(),
                listener: self.index,
            })
        };
        let mut shared = share(&terms.load());
        let mut failures = Failures::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let terms = terms.load();
                    if !Arc::ptr_eq(&terms, &shared.terms) {
                        shared = share(&terms);
                    }
                    // An IPv4 client is the same client on every listener.
                    let client = peer.ip().to_canonical();
                    match counts.enter(client, standing(&shared.terms.settings, client)) {
                        Ok(slot) => {
                            let open = OpenConnection::new(shared.observer.clone(), self.index);
                            // Without it each reply would wait for the acknowledgement of the one before. If it fails,
                            // the client is gone, and the session will notice.
                            let _ = stream.set_nodelay(true);
                            let connection = Connection::new(stream, client, slot, shared.clone(), shutdown.clone());
                            tasks.spawn(async move {
                                let _open = open;
                                connection.run().await;
                            });
                        }
                        Err(result) => {
                            turn_away(&stream, shared.terms.settings.tls);
                            shared.observer.connection_opened(self.index, result);
                            shared.reject(RejectReason::Busy, client, None, None, Some(&result.name()));
                        }
                    }
                }
                // The client was gone before we took it.
                Err(error) if is_about_one_client(&error) => {}
                Err(error) => {
                    shared.observer.connection_opened(self.index, Opened::Failed);
                    failures.log(self.index, &error);
                    // Descriptors or memory are used up; at once it would fail again, and cost all of a processor.
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = sleep(ACCEPT_BACKOFF) => {}
                    }
                }
            }
        }
        drop(listener);
        tasks.close();
        let grace = terms.load().settings.timeouts.shutdown_grace;
        if timeout(grace + GRACE_MARGIN, tasks.wait()).await.is_err() {
            tracing::warn!(event = "smtp.sessions_left", listener = self.index, sessions = tasks.len());
        }
        Ok(())
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// One line in a while, however often accept() fails in it.
#[derive(Default)]
struct Failures {
    logged: Option<Instant>,
    unlogged: u64,
}

impl Failures {
    fn log(&mut self, listener: usize, error: &io::Error) {
        if self.logged.is_some_and(|logged| logged.elapsed() < ACCEPT_LOG_PAUSE) {
            self.unlogged += 1;
            return;
        }
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(event = "smtp.accept_failed", listener, %error, unlogged);
        self.logged = Some(Instant::now());
    }
}

/// What counts before the client has said anything.
fn standing(settings: &SessionSettings, client: IpAddr) -> Standing {
    match settings.auth {
        AuthPolicy::Required if !contains(&settings.allow_from, client) => Standing::Stranger,
        AuthPolicy::Off | AuthPolicy::Optional | AuthPolicy::Required => Standing::Admitted,
    }
}

/// Says so and forgets the client: no task, no waiting. A fresh socket has room for one line. Who expects TLS could not
/// read it.
fn turn_away(stream: &TcpStream, tls: TlsMode) {
    if tls != TlsMode::Implicit {
        let _ = SockRef::from(stream).send(b"421 4.7.0 Too many connections\r\n");
    }
}

/// Tells the observer when the connection opens and, however its task ends, when it closes.
struct OpenConnection {
    observer: Arc<dyn Observer>,
    listener: usize,
}

impl OpenConnection {
    fn new(observer: Arc<dyn Observer>, listener: usize) -> Self {
        observer.connection_opened(listener, Opened::Accepted);
        OpenConnection { observer, listener }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.observer.session_panicked(self.listener);
            tracing::error!(event = "smtp.session_panicked", listener = self.listener);
        }
        self.observer.connection_closed(self.listener);
    }
}

const BACKLOG: i32 = 1024;
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
const ACCEPT_LOG_PAUSE: Duration = Duration::from_secs(60);
/// For the last replies of sessions that used up their grace time.
const GRACE_MARGIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    use super::super::{BodySink, Refusal, Submission, Timeouts};
    use super::*;
    use crate::message::{QueueId, Timestamp};
    use crate::reply::{EnhancedCode, Reply};

    /// Keeps messages in memory; each accept takes a permit, and waits while there is none.
    struct Memory {
        taken: Mutex<Vec<Submission<Body>>>,
        permits: Semaphore,
        asked: AtomicUsize,
        next_id: AtomicU64,
    }

    #[derive(Debug, Default)]
    struct Body(Vec<u8>);

    impl BodySink for Body {
        async fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
            assert!(!chunk.starts_with(b"PANIC"), "a bug in the sink");
            if chunk.starts_with(b"FULL") {
                let reply = Reply::new(452, EnhancedCode(4, 3, 1), "Insufficient storage");
                return Err(Refusal { reason: RejectReason::Disk, reply });
            }
            self.0.extend_from_slice(chunk);
            Ok(())
        }
    }

    impl Intake for Memory {
        type Body = Body;

        fn ready(&self) -> Result<(), Refusal> {
            Ok(())
        }

        fn new_id(&self) -> QueueId {
            QueueId(self.next_id.fetch_add(1, Ordering::SeqCst))
        }

        fn body(&self, _id: QueueId) -> Body {
            Body::default()
        }

        async fn accept(&self, message: Submission<Body>) -> Result<(), Refusal> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.permits.acquire().await.expect("never closed").forget();
            self.taken.lock().unwrap().push(message);
            Ok(())
        }

        fn now(&self) -> Timestamp {
            Timestamp::from_seconds(1_751_364_000)
        }
    }

    #[derive(Default)]
    struct Counts {
        opened: AtomicUsize,
        refused: AtomicUsize,
        closed: AtomicUsize,
        panicked: AtomicUsize,
        accepted: AtomicU64,
        reasons: Mutex<Vec<RejectReason>>,
    }

    impl Observer for Counts {
        fn connection_opened(&self, _listener: usize, result: Opened) {
            let counter = if result == Opened::Accepted { &self.opened } else { &self.refused };
            counter.fetch_add(1, Ordering::SeqCst);
        }

        fn connection_closed(&self, _listener: usize) {
            self.closed.fetch_add(1, Ordering::SeqCst);
        }

        fn rejected(&self, reason: RejectReason) {
            self.reasons.lock().unwrap().push(reason);
        }

        fn accepted(&self, recipients: u64, _bytes: u64, _took: Duration) {
            self.accepted.fetch_add(recipients, Ordering::SeqCst);
        }

        fn session_panicked(&self, _listener: usize) {
            self.panicked.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Running {
        address: SocketAddr,
        intake: Arc<Memory>,
        gate: Arc<ConnectionCounts>,
        observer: Arc<Counts>,
        shutdown: CancellationToken,
        task: JoinHandle<io::Result<()>>,
    }

    async fn start(permits: usize, gate: ConnectionCounts, timeouts: Timeouts) -> Running {
        let server = Server::bind(ListenerSettings { address: "127.0.0.1:0".parse().unwrap(), index: 3 }).unwrap();
        let address = server.local_addr().unwrap();
        let intake = Arc::new(Memory {
            taken: Mutex::default(),
            permits: Semaphore::new(permits),
            asked: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
        });
        let settings = Arc::new(SessionSettings {
            hostname: "relay.example".into(),
            allow_from: vec!["127.0.0.0/8".parse().unwrap()],
            timeouts,
            ..SessionSettings::default()
        });
        let (gate, observer, shutdown) = (Arc::new(gate), Arc::new(Counts::default()), CancellationToken::new());
        let (intake_too, counts) = (intake.clone(), gate.clone());
        let door = Door { intake: intake_too, counts, observer: observer.clone(), authenticator: None, tls: None };
        let running = server.run(door, settings, shutdown.clone());
        let task = tokio::spawn(running);
        Running { address, intake, gate, observer, shutdown, task }
    }

    async fn plain() -> Running {
        start(1000, ConnectionCounts::new(100, 100), Timeouts::default()).await
    }

    struct Client(TcpStream);

    impl Client {
        /// Connects and reads the greeting.
        async fn greeted(address: SocketAddr) -> Client {
            let mut client = Client(TcpStream::connect(address).await.unwrap());
            client.expect("220 relay.example ESMTP mailramp\r\n").await;
            client
        }

        async fn send(&mut self, text: &str) {
            self.0.write_all(text.as_bytes()).await.unwrap();
        }

        async fn expect(&mut self, text: &str) {
            let mut read = vec![0; text.len()];
            let all = timeout(Duration::from_secs(10), self.0.read_exact(&mut read)).await.expect("a reply in time");
            assert!(all.is_ok(), "closed before {text:?}");
            assert_eq!(String::from_utf8_lossy(&read), text);
        }

        /// Up to and with the 354.
        async fn begin(&mut self) {
            self.send("HELO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n").await;
            self.expect("250 relay.example\r\n250 2.1.0 Sender ok\r\n250 2.1.5 Recipient ok\r\n").await;
            self.expect("354 End data with <CR><LF>.<CR><LF>\r\n").await;
        }

        async fn expect_closed(mut self) {
            let mut rest = Vec::new();
            let end = timeout(Duration::from_secs(10), self.0.read_to_end(&mut rest)).await.expect("closed in time");
            assert!(end.is_ok() && rest.is_empty(), "{end:?} {:?}", String::from_utf8_lossy(&rest));
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), waiting).await.expect("in time");
    }

    #[tokio::test]
    async fn a_pipelined_batch_is_answered_in_one_write() {
        let running = plain().await;
        let mut client = Client::greeted(running.address).await;
        client.send("EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n").await;
        let mut read = vec![0; 4096];
        let octets = client.0.read(&mut read).await.unwrap();
        let replies = String::from_utf8_lossy(&read[..octets]);
        assert!(replies.starts_with("250-relay.example\r\n"), "{replies}");
        assert!(replies.ends_with("354 End data with <CR><LF>.<CR><LF>\r\n"), "{replies}");
        assert_eq!(replies.lines().count(), 13, "{replies}");
    }

    #[tokio::test]
    async fn a_message_reaches_the_intake_below_its_received_line() {
        let running = plain().await;
        let mut client = Client::greeted(running.address).await;
        client.begin().await;
        client.send("Subject: x\r\n\r\n..text\r\n.\r\nQUIT\r\n").await;
        client.expect("250 2.0.0 Queued as 000000000001\r\n221 2.0.0 Bye\r\n").await;
        client.expect_closed().await;
        let taken = running.intake.taken.lock().unwrap().pop().unwrap();
        let expected = "Received: from c ([127.0.0.1])\r\n\tby relay.example with SMTP (mailramp id 000000000001);\r\n\
                        \tTue, 1 Jul 2025 10:00:00 +0000\r\nSubject: x\r\n\r\n.text\r\n";
        assert_eq!(String::from_utf8_lossy(&taken.body.0), expected);
        assert_eq!(taken.size, expected.len() as u64);
        assert_eq!((taken.id, taken.listener), (QueueId(1), 3));
        assert_eq!(running.observer.accepted.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn no_250_before_accept_resolves_and_no_command_overtakes_it() {
        let running = start(0, ConnectionCounts::new(100, 100), Timeouts::default()).await;
        let mut client = Client::greeted(running.address).await;
        client.begin().await;
        client.send("text\r\n.\r\nNOOP\r\n").await;
        until(|| running.intake.asked.load(Ordering::SeqCst) == 1).await;
        client.send("VRFY x\r\n").await;
        let mut octet = [0];
        assert!(timeout(Duration::from_millis(30), client.0.read(&mut octet)).await.is_err(), "a reply came early");
        running.intake.permits.add_permits(1);
        client.expect("250 2.0.0 Queued as 000000000001\r\n250 2.0.0 Ok\r\n252 2.1.5 ").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn five_clients_at_once_lose_nothing() {
        let running = plain().await;
        let clients: Vec<_> = (0..5)
            .map(|number| {
                let address = running.address;
                tokio::spawn(async move {
                    let mut client = Client::greeted(address).await;
                    for turn in 0..20 {
                        client.begin().await;
                        // Larger than a read buffer, in pieces that end anywhere.
                        let text = format!("client {number} turn {turn}\r\n").repeat(1500);
                        for part in text.as_bytes().chunks(9_999) {
                            client.0.write_all(part).await.unwrap();
                        }
                        client.send(".\r\n").await;
                        client.expect("250 2.0.0 Queued as 0000000000").await;
                        let mut rest = [0; 4];
                        client.0.read_exact(&mut rest).await.unwrap();
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        let mut texts: Vec<_> = running
            .intake
            .taken
            .lock()
            .unwrap()
            .iter()
            .map(|message| {
                let body = String::from_utf8(message.body.0.clone()).unwrap();
                body.splitn(4, "\r\n").nth(3).unwrap().to_owned()
            })
            .collect();
        texts.sort();
        let mut expected: Vec<_> =
            (0..5).flat_map(|n| (0..20).map(move |t| format!("client {n} turn {t}\r\n").repeat(1500))).collect();
        expected.sort();
        assert!(texts == expected, "{} of 100 came as sent", texts.iter().filter(|t| expected.contains(t)).count());
    }

    #[tokio::test]
    async fn connections_beyond_the_limits_are_told_so_and_places_are_given_back() {
        for gate in [ConnectionCounts::new(2, 100), ConnectionCounts::new(100, 2)] {
            let running = start(1000, gate, Timeouts::default()).await;
            let first = Client::greeted(running.address).await;
            let _second = Client::greeted(running.address).await;
            let mut third = Client(TcpStream::connect(running.address).await.unwrap());
            third.expect("421 4.7.0 Too many connections\r\n").await;
            third.expect_closed().await;
            assert_eq!(running.observer.refused.load(Ordering::SeqCst), 1);
            drop(first);
            until(|| running.gate.open() == 1).await;
            Client::greeted(running.address).await;
        }
    }

    #[tokio::test]
    async fn shutdown_says_so_to_the_idle_and_lets_data_finish() {
        let running = plain().await;
        let mut idle = Client::greeted(running.address).await;
        let mut sending = Client::greeted(running.address).await;
        sending.begin().await;
        running.shutdown.cancel();
        idle.expect("421 4.3.2 Shutting down\r\n").await;
        idle.expect_closed().await;
        until(|| !running.task.is_finished()).await;
        sending.send("text\r\n.\r\n").await;
        sending.expect("250 2.0.0 Queued as 000000000001\r\n421 4.3.2 Shutting down\r\n").await;
        sending.expect_closed().await;
        running.task.await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err(), "nobody listens");
        assert_eq!(running.observer.closed.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn data_that_outlasts_the_grace_time_is_cut_off() {
        let timeouts = Timeouts { shutdown_grace: Duration::from_millis(20), ..Timeouts::default() };
        let running = start(1000, ConnectionCounts::new(100, 100), timeouts).await;
        let mut client = Client::greeted(running.address).await;
        client.begin().await;
        running.shutdown.cancel();
        client.expect("421 4.3.2 Shutting down\r\n").await;
        client.expect_closed().await;
        running.task.await.unwrap().unwrap();
        assert!(running.intake.taken.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn each_kind_of_slowness_has_its_timeout() {
        let short = Duration::from_millis(20);
        let table: [(Timeouts, &str, &str); 4] = [
            (Timeouts { first_command: short, ..Timeouts::default() }, "", ""),
            (Timeouts { idle: short, ..Timeouts::default() }, "NOOP\r\n", "250 2.0.0 Ok\r\n"),
            (Timeouts { command: short, ..Timeouts::default() }, "NOOP\r\nNO", "250 2.0.0 Ok\r\n"),
            (Timeouts { first_command: short, ..Timeouts::default() }, "NO", ""),
        ];
        for (timeouts, said, reply) in table {
            let running = start(1000, ConnectionCounts::new(100, 100), timeouts).await;
            let mut client = Client::greeted(running.address).await;
            client.send(said).await;
            client.expect(reply).await;
            client.expect("421 4.4.2 Timeout\r\n").await;
            client.expect_closed().await;
            assert_eq!(*running.observer.reasons.lock().unwrap(), [RejectReason::Timeout]);
        }
    }

    #[tokio::test]
    async fn data_that_only_drips_is_cut_off() {
        let timeouts =
            Timeouts { data_min_rate: 1_000_000, data_window: Duration::from_secs(1), ..Timeouts::default() };
        let running = start(1000, ConnectionCounts::new(100, 100), timeouts).await;
        let mut client = Client::greeted(running.address).await;
        client.begin().await;
        client.send("text\r\n").await;
        client.expect("421 4.4.2 Timeout\r\n").await;
        client.expect_closed().await;
    }

    #[tokio::test]
    async fn a_sink_that_fails_refuses_the_message_at_its_end() {
        let running = plain().await;
        let mut client = Client::greeted(running.address).await;
        client.begin().await;
        client.send("FULL\r\n.\r\nNOOP\r\n").await;
        client.expect("452 4.3.1 Insufficient storage\r\n250 2.0.0 Ok\r\n").await;
        assert_eq!(*running.observer.reasons.lock().unwrap(), [RejectReason::Disk]);
    }

    #[tokio::test]
    async fn a_session_that_panics_is_counted_and_the_others_go_on() {
        let running = plain().await;
        let mut other = Client::greeted(running.address).await;
        let mut client = Client::greeted(running.address).await;
        client.begin().await;
        client.send("PANIC\r\n.\r\n").await;
        until(|| running.observer.panicked.load(Ordering::SeqCst) == 1).await;
        other.send("NOOP\r\n").await;
        other.expect("250 2.0.0 Ok\r\n").await;
        until(|| running.gate.open() == 1).await;
    }

    #[tokio::test]
    async fn a_tls_client_is_told_and_reads_it_although_more_is_on_its_way() {
        let running = plain().await;
        let mut client = Client::greeted(running.address).await;
        client.send(&format!("\x16\x03\x01{}", "x".repeat(40_000))).await;
        client.expect("421 4.7.0 This port speaks SMTP\r\n").await;
        client.expect_closed().await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_replies_is_held_back() {
        let running = plain().await;
        let mut client = Client::greeted(running.address).await;
        let (mut reader, mut writer) = client.0.split();
        let sending = async {
            writer.write_all("HELP\r\n".repeat(50_000).as_bytes()).await.unwrap();
            writer.write_all(b"QUIT\r\n").await.unwrap();
        };
        let reading = async {
            sleep(Duration::from_millis(20)).await;
            let mut replies = Vec::new();
            reader.read_to_end(&mut replies).await.unwrap();
            replies
        };
        let ((), replies) = tokio::join!(sending, reading);
        assert_eq!(replies.iter().filter(|octet| **octet == b'\n').count(), 50_001);
        assert!(replies.ends_with(b"221 2.0.0 Bye\r\n"));
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_of_bind() {
        let first = Server::bind(ListenerSettings { address: "127.0.0.1:0".parse().unwrap(), index: 0 }).unwrap();
        let second = Server::bind(ListenerSettings { address: first.local_addr().unwrap(), index: 1 });
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_connection_that_waits_is_small() {
        let running = plain().await;
        let stream = TcpStream::connect(running.address).await.unwrap();
        let terms = Terms { settings: Arc::default(), authenticator: None, tls: None };
        let shared = Arc::new(Shared {
            intake: running.intake.clone(),
            terms: Arc::new(terms),
            observer: running.observer.clone(),
            rejections: Arc::default(),
            listener: 0,
        });
        let client = "127.0.0.1".parse().unwrap();
        let slot = running.gate.enter(client, Standing::Admitted).unwrap();
        let connection = Connection::new(stream, client, slot, shared, running.shutdown.clone());
        let octets = std::mem::size_of_val(&connection.run());
        assert!(octets <= 2048, "{octets} octets");
    }
}
