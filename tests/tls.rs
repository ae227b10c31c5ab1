//! The front door through TLS, over real sockets: handshakes, their limits, what a session gets through them, and how
//! it ends. The real binary, its settings and SIGHUP are in `tests/front_door.rs`.

#[path = "common/certificate.rs"]
mod certificate;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mailramp::message::{QueueId, Timestamp};
use mailramp::smtp::{
    AuthPolicy, AuthVerdict, Authenticator, BodySink, ConnectionCounts, Door, Intake, ListenerSettings, Login,
    Observer, Opened, Refusal, RejectReason, Server, ServerTls, SessionSettings, Submission, Timeouts, TlsMode,
};
use rustls::{HandshakeKind, ProtocolVersion, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use certificate::Files;

/// A debug build on a busy machine needs some of it; no test waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(20);
const GREETING: &str = "220 relay.example ESMTP mailramp\r\n";

/// Keeps messages in memory.
#[derive(Default)]
struct Memory {
    taken: Mutex<Vec<Vec<u8>>>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Body(Vec<u8>);

impl BodySink for Body {
    async fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
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
        QueueId(self.next_id.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn body(&self, _id: QueueId) -> Body {
        Body::default()
    }

    async fn accept(&self, message: Submission<Body>) -> Result<(), Refusal> {
        self.taken.lock().unwrap().push(message.body.0);
        Ok(())
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(1_751_364_000)
    }
}

#[derive(Default)]
struct Counts {
    rejected: Mutex<Vec<RejectReason>>,
    opened: Mutex<Vec<Opened>>,
}

impl Observer for Counts {
    fn connection_opened(&self, _listener: usize, result: Opened) {
        self.opened.lock().unwrap().push(result);
    }

    fn rejected(&self, reason: RejectReason) {
        self.rejected.lock().unwrap().push(reason);
    }
}

struct Running {
    address: SocketAddr,
    files: Files,
    intake: Arc<Memory>,
    counts: Arc<ConnectionCounts>,
    observer: Arc<Counts>,
    shutdown: CancellationToken,
}

fn start(tls_mode: TlsMode, timeouts: Timeouts) -> Running {
    let allow_from = vec!["127.0.0.0/8".parse().unwrap()];
    let settings = SessionSettings { allow_from, tls: tls_mode, timeouts, ..SessionSettings::default() };
    start_with(settings, ConnectionCounts::new(1000, 1000), None)
}

fn start_with(
    settings: SessionSettings,
    counts: ConnectionCounts,
    authenticator: Option<Arc<dyn Authenticator>>,
) -> Running {
    let files = Files::new();
    let tls = Arc::new(ServerTls::load(&files.chain, &files.key).unwrap());
    let server = Server::bind(ListenerSettings { address: "127.0.0.1:0".parse().unwrap(), index: 0 }).unwrap();
    let address = server.local_addr().unwrap();
    let settings = SessionSettings { hostname: "relay.example".into(), ..settings };
    let (intake, observer, shutdown) = <(Arc<Memory>, Arc<Counts>, _)>::default();
    let counts = Arc::new(counts);
    let door = Door {
        intake: intake.clone(),
        counts: counts.clone(),
        observer: observer.clone(),
        authenticator,
        tls: Some(tls),
    };
    let stop: CancellationToken = shutdown;
    tokio::spawn(server.run(door, Arc::new(settings), stop.clone()));
    Running { address, files, intake, counts, observer, shutdown: stop }
}

fn implicit() -> Running {
    start(TlsMode::Implicit, Timeouts::default())
}

impl Running {
    async fn connect(&self) -> Client<TcpStream> {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// Through the handshake, not greeted yet.
    async fn secure(&self) -> Client<TlsStream<TcpStream>> {
        self.connect().await.secure(&self.files, rustls::ALL_VERSIONS).await.expect("a handshake")
    }

    async fn greeted(&self) -> Client<TlsStream<TcpStream>> {
        let mut client = self.secure().await;
        client.expect(GREETING).await;
        client
    }

    fn rejected(&self) -> Vec<RejectReason> {
        self.observer.rejected.lock().unwrap().clone()
    }
}

struct Client<S>(S);

impl Client<TcpStream> {
    async fn secure(
        self,
        files: &Files,
        versions: &[&'static SupportedProtocolVersion],
    ) -> io::Result<Client<TlsStream<TcpStream>>> {
        let connecting = files.connector(versions).connect("relay.example".try_into().unwrap(), self.0);
        Ok(Client(timeout(PATIENCE, connecting).await.expect("in time")?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Sends a command and reads all lines of the reply.
    async fn ask(&mut self, command: &str) -> String {
        self.send(command).await;
        let mut reply = Vec::new();
        let last_line = |reply: &[u8]| {
            reply.ends_with(b"\r\n") && {
                let line = reply[..reply.len() - 2].rsplit(|octet| *octet == b'\n').next().unwrap_or_default();
                line.get(3) == Some(&b' ')
            }
        };
        while !last_line(&reply) {
            let octet = timeout(PATIENCE, self.0.read_u8()).await.expect("a reply in time");
            reply.push(octet.expect("the whole reply"));
        }
        String::from_utf8(reply).unwrap()
    }

    async fn expect(&mut self, text: &str) {
        let mut read = vec![0; text.len()];
        let octets = timeout(PATIENCE, self.0.read_exact(&mut read)).await.expect("a reply in time");
        octets.unwrap_or_else(|error| panic!("{error} instead of {text:?}"));
        assert_eq!(String::from_utf8_lossy(&read), text);
    }

    async fn begin(&mut self) {
        self.send("HELO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n").await;
        self.expect("250 relay.example\r\n250 2.1.0 Sender ok\r\n250 2.1.5 Recipient ok\r\n").await;
        self.expect("354 End data with <CR><LF>.<CR><LF>\r\n").await;
    }

    /// The end of the connection. Through TLS an end without close_notify is an error.
    async fn expect_closed(mut self) {
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("closed in time");
        assert!(end.is_ok() && rest.is_empty(), "{end:?} {:?}", String::from_utf8_lossy(&rest));
    }
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("in time");
}

#[tokio::test]
async fn an_implicit_listener_greets_inside_tls_and_takes_mail_and_ends_with_close_notify() {
    let running = implicit();
    let mut client = running.greeted().await;
    client.begin().await;
    // Larger than a TLS record and than a read buffer, in pieces that end anywhere.
    let text = "line of a large message\r\n".repeat(4000);
    for part in text.as_bytes().chunks(17_777) {
        client.0.write_all(part).await.unwrap();
    }
    client.send(".\r\nQUIT\r\n").await;
    client.expect("250 2.0.0 Queued as 000000000001\r\n221 2.0.0 Bye\r\n").await;
    client.expect_closed().await;
    let taken = running.intake.taken.lock().unwrap();
    let message = String::from_utf8(taken[0].clone()).unwrap();
    assert_eq!(message.splitn(4, "\r\n").nth(3).unwrap(), text, "below three lines of Received");
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_sessions_resume_in_both() {
    let running = implicit();
    let versions =
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)];
    for (version, name) in versions {
        let connector = running.files.connector(&[version]);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let socket = TcpStream::connect(running.address).await.unwrap();
            let stream = connector.connect("relay.example".try_into().unwrap(), socket).await.unwrap();
            let mut client = Client(stream);
            client.expect(GREETING).await;
            let session = client.0.get_ref().1;
            assert_eq!(session.protocol_version(), Some(name));
            assert_eq!(session.handshake_kind(), Some(kind), "{name:?}");
            assert_eq!(session.alpn_protocol(), None);
            client.send("QUIT\r\n").await;
            client.expect("221 2.0.0 Bye\r\n").await;
            client.expect_closed().await;
        }
    }
}

#[tokio::test]
async fn pipelined_commands_through_tls_are_answered_in_one_record() {
    let running = implicit();
    let mut client = running.greeted().await;
    client.send("EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n").await;
    let mut read = vec![0; 4096];
    let octets = client.0.read(&mut read).await.unwrap();
    let replies = String::from_utf8_lossy(&read[..octets]);
    assert!(replies.starts_with("250-relay.example\r\n"), "{replies}");
    assert!(replies.ends_with("354 End data with <CR><LF>.<CR><LF>\r\n"), "{replies}");
}

#[tokio::test]
async fn garbage_and_silence_are_no_handshake_and_are_counted_but_a_probe_is_not() {
    let timeouts = Timeouts { handshake: Duration::from_millis(200), ..Timeouts::default() };
    let running = start(TlsMode::Implicit, timeouts);
    let mut garbage = running.connect().await;
    garbage.send("EHLO c\r\n").await;
    let mut answer = Vec::new();
    timeout(PATIENCE, garbage.0.read_to_end(&mut answer)).await.expect("closed in time").unwrap();
    assert_eq!(answer.first(), Some(&0x15), "an alert, and nothing in clear: {answer:?}");
    until(|| running.rejected() == [RejectReason::Tls]).await;

    drop(running.connect().await);
    until(|| running.counts.open() == 0).await;
    assert_eq!(running.rejected(), [RejectReason::Tls], "who says nothing and goes has tried nothing");

    // Half a hello, then nothing.
    let mut slow = running.connect().await;
    slow.0.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, slow.0.read_to_end(&mut rest)).await.expect("closed in time");
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    until(|| running.rejected() == [RejectReason::Tls, RejectReason::Tls]).await;
    // Nothing at all.
    let mut silent = running.connect().await;
    let _ = timeout(PATIENCE, silent.0.read_to_end(&mut rest)).await.expect("closed in time");
    assert_eq!(rest, b"");
    until(|| running.rejected().len() == 3 && running.counts.open() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_handshakes_keep_nobody_from_a_whole_one() {
    let running = implicit();
    let hello = running.files.client_hello();
    let mut half = Vec::new();
    for number in 0..200 {
        let mut client = running.connect().await;
        // Some stop inside the hello; the others have been answered and say no more.
        let upto = if number % 2 == 0 { hello.len() / 2 } else { hello.len() };
        client.0.write_all(&hello[..upto]).await.unwrap();
        half.push(client);
    }
    until(|| running.counts.open() == 200).await;
    for _ in 0..5 {
        let mut client = running.greeted().await;
        client.send("QUIT\r\n").await;
        client.expect("221 2.0.0 Bye\r\n").await;
    }
    assert_eq!(running.rejected(), [], "the halves are still there, within their time");
    drop(half);
    until(|| running.counts.open() == 0).await;
}

#[tokio::test]
async fn slowness_has_the_same_timeouts_inside_tls() {
    let short = Duration::from_millis(20);
    let long = Timeouts::default;
    let table = [
        (Timeouts { first_command: short, ..long() }, "", ""),
        (Timeouts { idle: short, ..long() }, "NOOP\r\n", "250 2.0.0 Ok\r\n"),
        (Timeouts { command: short, ..long() }, "NOOP\r\nNO", "250 2.0.0 Ok\r\n"),
        (Timeouts { first_command: short, ..long() }, "NO", ""),
    ];
    for (timeouts, said, reply) in table {
        let running = start(TlsMode::Implicit, timeouts);
        let mut client = running.greeted().await;
        client.send(said).await;
        client.expect(reply).await;
        client.expect("421 4.4.2 Timeout\r\n").await;
        client.expect_closed().await;
        assert_eq!(running.rejected(), [RejectReason::Timeout], "{said:?}");
    }
    let rate = Timeouts { data_min_rate: 1_000_000, data_window: Duration::from_secs(1), ..long() };
    let running = start(TlsMode::Implicit, rate);
    let mut client = running.greeted().await;
    client.begin().await;
    client.send("text\r\n").await;
    client.expect("421 4.4.2 Timeout\r\n").await;
    client.expect_closed().await;
}

#[tokio::test]
async fn the_time_to_the_first_command_begins_after_the_handshake() {
    let timeouts = Timeouts { first_command: Duration::from_millis(300), ..Timeouts::default() };
    let running = start(TlsMode::Implicit, timeouts);
    let client = running.connect().await;
    sleep(Duration::from_millis(400)).await;
    let mut client = client.secure(&running.files, rustls::ALL_VERSIONS).await.unwrap();
    client.expect(GREETING).await;
    client.send("NOOP\r\n").await;
    client.expect("250 2.0.0 Ok\r\n").await;
}

#[tokio::test]
async fn shutdown_ends_handshakes_at_once_and_says_goodbye_inside_tls() {
    let running = implicit();
    let mut idle = running.greeted().await;
    let mut waiting = running.connect().await;
    until(|| running.counts.open() == 2).await;
    running.shutdown.cancel();
    idle.expect("421 4.3.2 Shutting down\r\n").await;
    idle.expect_closed().await;
    let mut rest = Vec::new();
    timeout(PATIENCE, waiting.0.read_to_end(&mut rest)).await.expect("closed in time").unwrap();
    assert_eq!(rest, b"");
    until(|| running.counts.open() == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_held_back_inside_tls_too() {
    let running = implicit();
    let client = running.greeted().await;
    let (mut reader, mut writer) = tokio::io::split(client.0);
    let sending = async {
        writer.write_all("HELP\r\n".repeat(50_000).as_bytes()).await.unwrap();
        writer.write_all(b"QUIT\r\n").await.unwrap();
        writer.flush().await.unwrap();
    };
    let reading = async {
        sleep(Duration::from_millis(50)).await;
        let mut replies = Vec::new();
        reader.read_to_end(&mut replies).await.unwrap();
        replies
    };
    let (_, replies) = timeout(PATIENCE, async { tokio::join!(sending, reading) }).await.expect("in time");
    assert_eq!(replies.iter().filter(|octet| **octet == b'\n').count(), 50_001);
    assert!(replies.ends_with(b"221 2.0.0 Bye\r\n"));
}

/// As [`Running::greeted`], by STARTTLS.
async fn upgraded(running: &Running) -> Client<TlsStream<TcpStream>> {
    let mut client = running.connect().await;
    client.expect(GREETING).await;
    let offered = client.ask("EHLO before.tls\r\n").await;
    assert!(offered.contains("250-STARTTLS\r\n"), "{offered}");
    client.send("STARTTLS\r\n").await;
    client.expect("220 2.0.0 Ready to start TLS\r\n").await;
    client.secure(&running.files, rustls::ALL_VERSIONS).await.expect("a handshake")
}

#[tokio::test]
async fn starttls_begins_anew_inside_tls() {
    let running = start(TlsMode::StartTls, Timeouts::default());
    let mut client = upgraded(&running).await;
    // What was said before is forgotten, the greeting is not repeated, and STARTTLS is not offered again.
    client.send("MAIL FROM:<a@b.example>\r\n").await;
    client.expect("503 5.5.1 Say EHLO first\r\n").await;
    let offered = client.ask("EHLO inside.tls\r\n").await;
    assert!(!offered.contains("STARTTLS"), "{offered}");
    client.begin().await;
    client.send("text\r\n.\r\nQUIT\r\n").await;
    client.expect("250 2.0.0 Queued as 000000000001\r\n221 2.0.0 Bye\r\n").await;
    client.expect_closed().await;
    let taken = String::from_utf8(running.intake.taken.lock().unwrap()[0].clone()).unwrap();
    assert!(!taken.contains("before.tls") && taken.ends_with("\r\ntext\r\n"), "{taken}");
}

#[tokio::test]
async fn commands_sent_in_clear_behind_starttls_are_not_run() {
    let running = start(TlsMode::StartTls, Timeouts::default());
    let mut client = running.connect().await;
    client.expect(GREETING).await;
    client.send("STARTTLS\r\nHELO evil\r\nNOOP\r\n").await;
    client.expect("421 4.7.0 Commands behind STARTTLS\r\n").await;
    client.expect_closed().await;
    assert_eq!(running.rejected(), [RejectReason::StarttlsInjection]);

    // On their own, between the 220 and the hello: no handshake, and nothing of them is ever answered.
    let mut client = running.connect().await;
    client.expect(GREETING).await;
    client.send("STARTTLS\r\n").await;
    client.expect("220 2.0.0 Ready to start TLS\r\n").await;
    client.send("NOOP\r\n").await;
    let refused = client.secure(&running.files, rustls::ALL_VERSIONS).await;
    assert!(refused.is_err(), "a handshake in spite of them");
    until(|| running.rejected() == [RejectReason::StarttlsInjection, RejectReason::Tls]).await;
}

#[tokio::test]
async fn a_handshake_after_starttls_has_its_time_and_no_more() {
    let timeouts = Timeouts { handshake: Duration::from_millis(100), ..Timeouts::default() };
    let running = start(TlsMode::StartTls, timeouts);
    let mut client = running.connect().await;
    client.expect(GREETING).await;
    client.send("STARTTLS\r\n").await;
    client.expect("220 2.0.0 Ready to start TLS\r\n").await;
    client.expect_closed().await;
    assert_eq!(running.rejected(), [RejectReason::Tls]);
}

/// Takes every password.
struct Everybody;

impl Authenticator for Everybody {
    fn is_blocked(&self, _client: IpAddr) -> bool {
        false
    }

    fn check<'a>(&'a self, _: IpAddr, login: Login) -> Pin<Box<dyn Future<Output = AuthVerdict> + Send + 'a>> {
        Box::pin(async move { AuthVerdict::Accepted(login.user.into()) })
    }
}

#[tokio::test]
async fn who_must_log_in_has_half_of_the_places_until_then() {
    let settings = SessionSettings { auth: AuthPolicy::Required, auth_in_clear: true, ..SessionSettings::default() };
    let running = start_with(settings, ConnectionCounts::new(100, 4), Some(Arc::new(Everybody)));
    let mut first = running.connect().await;
    first.expect(GREETING).await;
    let mut second = running.connect().await;
    second.expect(GREETING).await;
    let mut third = running.connect().await;
    third.expect("421 4.7.0 Too many connections\r\n").await;
    third.expect_closed().await;
    assert_eq!(running.rejected(), [RejectReason::Busy]);

    first.ask("EHLO c\r\n").await;
    first.send("AUTH PLAIN AGEAYg==\r\n").await;
    first.expect("235 2.7.0 Authentication successful\r\n").await;
    first.send("NOOP\r\n").await;
    first.expect("250 2.0.0 Ok\r\n").await;
    let mut fourth = running.connect().await;
    fourth.expect(GREETING).await;
    let mut fifth = running.connect().await;
    fifth.expect("421 4.7.0 Too many connections\r\n").await;
}
