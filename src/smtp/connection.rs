//! Drives one session over a socket: reads, writes, waits, and hands messages to the intake.
//!
//! Promises: one wake-up and one write per batch of pipelined commands; while a message is being made durable nothing
//! more is read, so replies stay in order and a slow disk slows the client down; a connection that waits holds no
//! buffer. Every wait has a deadline ([`super::Timeouts`]).

use core::net::IpAddr;
use std::cell::RefCell;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::session::{Event, Session};
use super::settings::contains;
use super::{AuthVerdict, Authenticator, BodySink, Intake, Login, Observer, Replies, SessionSettings, Submission};
use crate::message::{Envelope, QueueId, Timestamp};

/// What all connections of a listener have in common.
pub(super) struct Shared<I> {
    pub intake: Arc<I>,
    pub settings: Arc<SessionSettings>,
    /// `None`: nobody can log in.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    pub observer: Arc<dyn Observer>,
    pub listener: usize,
}

/// One client. While it waits for input this, the socket and two small boxes are all it costs.
pub(super) struct Connection<I: Intake> {
    stream: TcpStream,
    client: IpAddr,
    shared: Arc<Shared<I>>,
    session: Session,
    replies: Replies,
    open: Option<Box<Open<I::Body>>>,
    /// Rarely moved: it is let run out and then set to the true deadline.
    timer: Pin<Box<Sleep>>,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Shutdown was asked for; sessions in DATA may go on until then.
    grace_until: Option<Instant>,
    opened: Instant,
    /// When the first octets of a command without its end had come.
    command_since: Option<Instant>,
    window: RateWindow,
}

/// A message between 354 and the final dot.
struct Open<B> {
    id: QueueId,
    body: B,
    size: u64,
    received_at: Timestamp,
}

/// How fast the client sends DATA. Only time spent waiting for the client counts.
#[derive(Default)]
struct RateWindow {
    left: Duration,
    octets: u64,
}

/// Why there is nothing more to read.
enum Ended {
    /// The session has said why; its last replies are to be sent.
    ByUs,
    ByClient,
}

impl<I: Intake> Connection<I> {
    pub fn new(stream: TcpStream, client: IpAddr, shared: Arc<Shared<I>>, shutdown: CancellationToken) -> Self {
        let opened = Instant::now();
        let settings = shared.settings.clone();
        Connection {
            stream,
            client,
            session: Session::new(settings, client),
            replies: Replies::default(),
            open: None,
            timer: Box::pin(sleep_until(opened + shared.settings.timeouts.first_command)),
            shutdown: Box::pin(shutdown.cancelled_owned()),
            grace_until: None,
            opened,
            command_since: None,
            window: RateWindow::default(),
            shared,
        }
    }

    /// Until either side closes.
    pub async fn run(mut self) {
        self.session.greet(&mut self.replies);
        match self.talk().await {
            Ok(Ended::ByUs) => Box::pin(linger(self.stream)).await,
            Ok(Ended::ByClient) => {}
            Err(error) => tracing::debug!(event = "smtp.connection_lost", client = %self.client, %error),
        }
    }

    async fn talk(&mut self) -> io::Result<Ended> {
        loop {
            self.flush().await?;
            let mut buffer = None;
            let octets = self.read(&mut buffer).await?;
            let Some(octets) = octets else {
                self.flush().await?;
                return Ok(Ended::ByUs);
            };
            let Some(buffer) = buffer.filter(|_| octets > 0) else {
                return Ok(Ended::ByClient);
            };
            let goes_on = self.work(&buffer[..octets]).await?;
            give_back(buffer);
            if !goes_on {
                self.flush().await?;
                return Ok(Ended::ByUs);
            }
        }
    }

    /// Runs all of `input` through the session. False when the session has ended.
    async fn work(&mut self, mut input: &[u8]) -> io::Result<bool> {
        loop {
            match self.session.next(&mut input, &mut self.replies) {
                Event::NeedInput => break,
                Event::Close => return Ok(false),
                Event::Flush => self.flush().await?,
                Event::Mail => self.session.sender(self.shared.intake.ready(), &mut self.replies),
                Event::Data => self.begin().await,
                Event::Text(text) => self.write_body(text).await,
                Event::Message(envelope) => self.accept(envelope).await,
                Event::Auth(login) => Box::pin(self.authenticate(login)).await?,
                Event::StartTls => unreachable!("not offered yet"),
                Event::Refused => {
                    let id = self.open.take().map(|open| open.id);
                    self.report_rejections(id);
                }
            }
        }
        if !self.replies.bytes.is_empty() {
            self.command_since = None; // a command has ended; what follows is another one
        }
        Ok(true)
    }

    /// A wrong password is answered late, by a timer: the thread that checked it is free by then.
    async fn authenticate(&mut self, login: Login) -> io::Result<()> {
        self.flush().await?;
        let verdict = match &self.shared.authenticator {
            Some(authenticator) => authenticator.check(self.client, login).await,
            None => AuthVerdict::Wrong,
        };
        let verdict = match verdict {
            // Whom we take mail from without AUTH can go on without it.
            AuthVerdict::Blocked if contains(&self.shared.settings.allow_from, self.client) => AuthVerdict::Busy,
            verdict => verdict,
        };
        if verdict == AuthVerdict::Wrong {
            sleep(WRONG_PASSWORD_DELAY).await;
        }
        self.session.authenticated(verdict, &mut self.replies);
        Ok(())
    }

    async fn begin(&mut self) {
        self.report_rejections(None);
        let intake = &self.shared.intake;
        let id = intake.new_id();
        let received_at = intake.now();
        self.open = Some(Box::new(Open { id, body: intake.body(id), size: 0, received_at }));
        self.window = RateWindow { left: self.shared.settings.timeouts.data_window, octets: 0 };
        let line = self.session.begin(id, received_at, &mut self.replies);
        self.write_body(line.as_bytes()).await;
    }

    async fn write_body(&mut self, text: &[u8]) {
        let Some(open) = &mut self.open else { return };
        open.size += text.len() as u64;
        // Boxed, here and below: the futures of the intake would otherwise make every idle connection larger.
        if let Err(refusal) = Box::pin(open.body.write(text)).await {
            self.session.refuse_message(refusal);
        }
    }

    async fn accept(&mut self, envelope: Envelope) {
        let Open { id, body, size, received_at } = *self.open.take().expect("a message ends after it began");
        let recipients = envelope.recipients.len() as u64;
        let (client, listener) = (self.client, self.shared.listener);
        let user = self.session.user().cloned();
        let submission = Submission { id, envelope, body, size, received_at, client, user, listener };
        let end_of_data = Instant::now();
        let result = Box::pin(self.shared.intake.accept(submission)).await;
        if result.is_ok() {
            self.shared.observer.accepted(recipients, size, end_of_data.elapsed());
            tracing::info!(event = "smtp.accepted", %id, rcpts = recipients, bytes = size, %client);
        }
        self.session.finish(id, result, &mut self.replies);
        self.report_rejections(Some(id));
    }

    fn report_rejections(&mut self, id: Option<QueueId>) {
        for reason in self.replies.rejected.drain(..) {
            self.shared.observer.rejected(reason);
            let (client, reason) = (self.client, reason.name());
            match id {
                Some(id) => tracing::info!(event = "smtp.rejected", %id, %client, reason),
                None => tracing::info!(event = "smtp.rejected", %client, reason),
            }
        }
    }

    /// Sends what has gathered, in one write if the socket takes it.
    async fn flush(&mut self) -> io::Result<()> {
        self.report_rejections(None);
        let mut rest = &self.replies.bytes[..];
        while !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let patience = self.shared.settings.timeouts.idle;
                    timeout(patience, self.stream.writable()).await??;
                }
                Err(error) => return Err(error),
            }
        }
        self.replies.bytes.clear();
        self.replies.bytes.shrink_to(REPLIES_KEPT_OCTETS);
        Ok(())
    }

    /// Waits for input. `None`: the session has ended it, by timeout or shutdown. `Some(0)`: the client has closed.
    async fn read(&mut self, buffer: &mut Option<Box<[u8]>>) -> io::Result<Option<usize>> {
        let since = Instant::now();
        if !self.session.is_inside_command() {
            self.command_since = None;
        } else if self.command_since.is_none() {
            self.command_since = Some(since);
        }
        loop {
            if self.grace_until.is_some() && !self.session.is_in_data() {
                self.session.shut_down(&mut self.replies);
                return Ok(None);
            }
            let deadline = self.deadline(since);
            if self.timer.is_elapsed() || self.timer.deadline() > deadline {
                self.timer.as_mut().reset(deadline);
            }
            tokio::select! {
                biased;
                () = &mut self.shutdown, if self.grace_until.is_none() => {
                    self.grace_until = Some(Instant::now() + self.shared.settings.timeouts.shutdown_grace);
                }
                ready = self.stream.readable() => {
                    ready?;
                    let target = buffer.get_or_insert_with(take_buffer);
                    match read_drained(&self.stream, target) {
                        Ok(octets) => {
                            self.window.octets += octets as u64;
                            self.window.left = self.window.left.saturating_sub(since.elapsed());
                            return Ok(Some(octets));
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            give_back(buffer.take().expect("taken above"));
                        }
                        Err(error) => return Err(error),
                    }
                }
                () = &mut self.timer => {
                    let now = Instant::now();
                    if now < deadline || self.next_window(now, since) {
                        continue;
                    }
                    if self.is_past_grace(now) {
                        self.session.shut_down(&mut self.replies);
                    } else {
                        self.session.time_out(&mut self.replies);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// When waiting since `since` has been too long.
    fn deadline(&self, since: Instant) -> Instant {
        let timeouts = &self.shared.settings.timeouts;
        let mut deadline = since + timeouts.idle;
        if self.session.is_in_data() {
            deadline = deadline.min(since + self.window.left);
            return self.grace_until.map_or(deadline, |grace| deadline.min(grace));
        }
        if !self.session.is_started() {
            deadline = deadline.min(self.opened + timeouts.first_command);
        }
        self.command_since.map_or(deadline, |first| deadline.min(first + timeouts.command))
    }

    /// The window has passed and the client was fast enough in it: it gets another one.
    fn next_window(&mut self, now: Instant, since: Instant) -> bool {
        let timeouts = &self.shared.settings.timeouts;
        let enough = timeouts.data_min_rate * timeouts.data_window.as_secs();
        let fast = self.session.is_in_data() && self.window.octets >= enough;
        if !fast || now >= since + timeouts.idle || self.is_past_grace(now) {
            return false;
        }
        // Counted from `since`, like every deadline of this wait.
        self.window = RateWindow { left: (now - since) + timeouts.data_window, octets: 0 };
        true
    }

    fn is_past_grace(&self, now: Instant) -> bool {
        self.grace_until.is_some_and(|grace| now >= grace)
    }
}

/// Closes so that the client gets to read our last reply: input that is still on its way when a socket is closed
/// makes the kernel reset the connection, and the reply is lost.
async fn linger(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut buffer = take_buffer();
        let mut drained = 0;
        while drained < LINGER_MAX_OCTETS {
            stream.readable().await?;
            match stream.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(octets) => drained += octets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        give_back(buffer);
        Ok(())
    };
    // Whether the client went away in order or not, we are done with it.
    let _: Result<io::Result<()>, _> = timeout(LINGER, drain).await;
}

/// Reads once. A read that does not fill the buffer has drained the socket: the runtime is told so at once, which saves
/// the second read that would only find it empty.
fn read_drained(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut octets = None;
    let size = buffer.len();
    let done = stream.try_io(Interest::READABLE, || {
        let read = (&*SockRef::from(stream)).read(buffer)?;
        octets = Some(read);
        if read > 0 && read < size { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (octets, done) {
        (Some(octets), _) => Ok(octets),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A read buffer; from this thread's few spare ones, which need no clearing.
fn take_buffer() -> Box<[u8]> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ_BUFFER_OCTETS].into())
}

fn give_back(buffer: Box<[u8]>) {
    BUFFERS.with_borrow_mut(|spare| {
        if spare.len() < BUFFERS_SPARE_PER_THREAD {
            spare.push(buffer);
        }
    });
}

const READ_BUFFER_OCTETS: usize = 16 * 1024;
const BUFFERS_SPARE_PER_THREAD: usize = 16;
const REPLIES_KEPT_OCTETS: usize = 512;
/// Before a wrong password is answered.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX_OCTETS: usize = 1024 * 1024;
