//! Drives one session over a socket: reads, writes, waits, shakes hands, and hands messages to the intake.
//!
//! Promises: one wake-up and one write per batch of pipelined commands; while a message is being made durable nothing
//! more is read, so replies stay in order and a slow disk slows the client down; a connection that waits holds no
//! buffer; what was read before TLS is gone before the handshake begins. Every wait has a deadline
//! ([`super::Timeouts`]).

use core::net::IpAddr;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::counts::Slot;
use super::rejections::RejectionLog;
use super::server::Terms;
use super::session::{Event, Session};
use super::settings::contains;
use super::stream::{Input, Stream};
use super::tls::HandshakeError;
use super::{
    AuthVerdict, BodySink, Heading, Intake, Login, Note, Observer, RejectReason, Replies, Submission, TlsMode,
};
use crate::log;
use crate::message::{Envelope, QueueId, Timestamp};

/// What all connections of a listener have in common.
pub(super) struct Shared<I> {
    pub intake: Arc<I>,
    pub terms: Arc<Terms>,
    pub observer: Arc<dyn Observer>,
    /// One for all connections of the listener, whatever their terms.
    pub rejections: Arc<RejectionLog>,
    pub listener: usize,
}

/// One client. While it waits for input this, the socket and two small boxes are all it costs.
pub(super) struct Connection<I: Intake> {
    stream: Stream,
    slot: Slot,
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
    /// When the client could first say something: the connection, or the end of its handshake.
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

/// What follows when all that was read is worked off. Holds none of it.
enum Next {
    Read,
    StartTls,
    Close,
}

/// Why there is nothing more to read.
enum Ended {
    /// The session has said why; its last replies are to be sent.
    ByUs,
    ByClient,
    /// 220 is sent; from the next octet on it is TLS.
    ForTls,
}

impl<I: Intake> Connection<I> {
    pub fn new(
        socket: TcpStream,
        client: IpAddr,
        slot: Slot,
        shared: Arc<Shared<I>>,
        shutdown: CancellationToken,
    ) -> Self {
        let opened = Instant::now();
        let settings = shared.terms.settings.clone();
        Connection {
            stream: Stream::new(socket),
            slot,
            client,
            session: Session::new(settings, client),
            replies: Replies::default(),
            open: None,
            timer: Box::pin(sleep_until(opened + shared.terms.settings.timeouts.first_command)),
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
        if self.shared.terms.settings.tls == TlsMode::Implicit {
            match Box::pin(self.secure()).await {
                Some(secured) => self = secured,
                None => return,
            }
        }
        self.session.greet(&mut self.replies);
        loop {
            match self.talk().await {
                Ok(Ended::ForTls) => match Box::pin(self.secure()).await {
                    Some(secured) => self = secured,
                    None => return,
                },
                Ok(Ended::ByUs) => return Box::pin(self.stream.close()).await,
                Ok(Ended::ByClient) => return Box::pin(self.stream.leave()).await,
                Err(error) => {
                    return tracing::debug!(event = "smtp.connection_lost", client = %self.client, %error);
                }
            }
        }
    }

    /// The handshake. The connection in clear ends here, whatever comes of it; there is one through TLS, or none.
    async fn secure(mut self) -> Option<Self> {
        let (Stream::Plain(plain), Some(tls)) = (self.stream, &self.shared.terms.tls) else { return None };
        let patience = self.shared.terms.settings.timeouts.handshake;
        let secured = tokio::select! {
            biased;
            () = &mut self.shutdown => return None,
            secured = tls.handshake(plain, patience) => secured,
        };
        match secured {
            Ok(stream) => {
                self.session.secured();
                Some(Connection { stream: Stream::Tls(stream), opened: Instant::now(), ..self })
            }
            Err(HandshakeError::Untried) => {
                tracing::debug!(event = "smtp.connection_lost", client = %self.client);
                None
            }
            Err(error) => {
                self.shared.reject(RejectReason::Tls, self.client, None, None, Some(&error));
                None
            }
        }
    }

    async fn talk(&mut self) -> io::Result<Ended> {
        loop {
            self.flush().await?;
            let next = match self.read().await? {
                Some(input) if input.octets().is_empty() => return Ok(Ended::ByClient),
                Some(input) => self.work(input).await?,
                None => Next::Close,
            };
            let ended = match next {
                Next::Read => continue,
                Next::StartTls => Ended::ForTls,
                Next::Close => Ended::ByUs,
            };
            self.flush().await?;
            return Ok(ended);
        }
    }

    /// Runs all of `input` through the session, and ends it.
    async fn work(&mut self, input: Input) -> io::Result<Next> {
        let mut rest = input.octets();
        loop {
            match self.session.next(&mut rest, &mut self.replies) {
                Event::NeedInput => break,
                Event::Close => return Ok(Next::Close),
                Event::StartTls => return Ok(Next::StartTls),
                Event::Flush => self.flush().await?,
                // A client that sends its next envelope along with each final dot would never be between two messages.
                Event::Mail if self.grace_until.is_some() => {
                    self.session.shut_down(&mut self.replies);
                    return Ok(Next::Close);
                }
                Event::Mail => self.session.sender(self.shared.intake.ready(), &mut self.replies),
                Event::Data => self.begin().await,
                Event::Text(text) => self.write_body(&text).await,
                Event::Message(envelope, heading) => self.accept(envelope, heading).await,
                Event::Auth(login) => Box::pin(self.authenticate(login)).await?,
                Event::Refused => {
                    let id = self.open.take().map(|open| open.id);
                    self.report_rejections(id);
                }
            }
        }
        if !self.replies.bytes.is_empty() {
            self.command_since = None; // a command has ended; what follows is another one
        }
        if self.session.user().is_some() {
            self.slot.authenticated();
        }
        Ok(Next::Read)
    }

    /// A wrong password is answered late, by a timer: the thread that checked it is free by then.
    async fn authenticate(&mut self, login: Login) -> io::Result<()> {
        self.flush().await?;
        let verdict = match &self.shared.terms.authenticator {
            Some(authenticator) => authenticator.check(self.client, login).await,
            None => AuthVerdict::Wrong,
        };
        let verdict = match verdict {
            // Whom we take mail from without AUTH can go on without it.
            AuthVerdict::Blocked if contains(&self.shared.terms.settings.allow_from, self.client) => AuthVerdict::Busy,
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
        self.window = RateWindow { left: self.shared.terms.settings.timeouts.data_window, octets: 0 };
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

    async fn accept(&mut self, envelope: Envelope, heading: Heading) {
        let Open { id, body, size, received_at } = *self.open.take().expect("a message ends after it began");
        let recipients = envelope.recipients.len() as u64;
        let (client, listener) = (self.client, self.shared.listener);
        let user = self.session.user().cloned();
        let from = log::mask(&envelope.reverse_path);
        let submission = Submission { id, envelope, body, size, received_at, client, user, listener, heading };
        let end_of_data = Instant::now();
        let result = Box::pin(self.shared.intake.accept(submission)).await;
        if result.is_ok() {
            self.shared.observer.accepted(recipients, size, end_of_data.elapsed());
            // Sender, user and listener tell the jobs of one host apart.
            let user = self.session.user().map(|user| tracing::field::display(log::mask(user.as_bytes())));
            tracing::info!(event = "smtp.accepted", %id, rcpts = recipients, bytes = size, %client, listener, user, from);
        }
        self.session.finish(id, result, &mut self.replies);
        self.report_rejections(Some(id));
    }

    fn report_rejections(&mut self, id: Option<QueueId>) {
        let mut notes = self.replies.notes.drain(..).peekable();
        for reason in self.replies.rejected.drain(..) {
            let detail = notes.next_if(|note| note.is_about(reason)).map(|note| match note {
                Note::BareNewline { hex } => format!("octets {hex}"),
                Note::PasswordExposed { user: None } => "password exposed".into(),
                Note::PasswordExposed { user: Some(user) } => {
                    format!("password exposed of {}", log::mask(user.as_bytes()))
                }
            });
            let detail = detail.as_ref().map(|detail| detail as &dyn std::fmt::Display);
            self.shared.reject(reason, self.client, self.session.user(), id, detail);
        }
    }

    /// Sends what has gathered, in one write if the socket takes it.
    async fn flush(&mut self) -> io::Result<()> {
        self.report_rejections(None);
        if !self.replies.bytes.is_empty() {
            self.stream.write(&self.replies.bytes, self.shared.terms.settings.timeouts.idle).await?;
            self.replies.bytes.clear();
            self.replies.bytes.shrink_to(REPLIES_KEPT_OCTETS);
        }
        Ok(())
    }

    /// Waits for input; empty: the client has closed. `None`: the session has ended it, by timeout or shutdown.
    async fn read(&mut self) -> io::Result<Option<Input>> {
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
                    self.grace_until = Some(Instant::now() + self.shared.terms.settings.timeouts.shutdown_grace);
                }
                input = self.stream.read() => {
                    let input = input?;
                    // Between two chunks of a message the client owes no rate.
                    if self.session.is_in_data() {
                        self.window.octets += input.octets().len() as u64;
                        self.window.left = self.window.left.saturating_sub(since.elapsed());
                    }
                    return Ok(Some(input));
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
        let timeouts = &self.shared.terms.settings.timeouts;
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
        let timeouts = &self.shared.terms.settings.timeouts;
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

impl<I> Shared<I> {
    /// Counts a refusal, and logs it unless there are too many of its kind.
    pub fn reject(
        &self,
        reason: RejectReason,
        client: IpAddr,
        user: Option<&Arc<str>>,
        id: Option<QueueId>,
        detail: Option<&dyn std::fmt::Display>,
    ) {
        self.observer.rejected(reason);
        let Some(unlogged) = self.rejections.admit(reason, Instant::now()) else { return };
        tracing::info!(
            event = "smtp.rejected",
            id = id.map(display),
            reason = reason.name(),
            %client,
            listener = self.listener,
            user = user.map(|user| display(log::mask(user.as_bytes()))),
            detail = detail.map(display),
            unlogged = (unlogged > 0).then_some(unlogged),
        );
    }
}

const REPLIES_KEPT_OCTETS: usize = 512;
/// Before a wrong password is answered.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_secs(1);
