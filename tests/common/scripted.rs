//! An SMTP server of our own that does as it is told: answers, cuts, hangs, drips or talks nonsense at any step.
//!
//! Without a script it takes every message. It is strict about what it reads (only CRLF ends a line, only CRLF.CRLF a
//! message), so a body that comes out changed was sent changed. Waits are bounded; dropping it ends all of it.
#![allow(dead_code)] // each test binary uses its part

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Nothing in a script waits longer.
const HANG_MOST: Duration = Duration::from_secs(5);

/// Where in a session something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Instead of the 220.
    Greeting,
    Ehlo,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// After the 354, before any of the message is read.
    Body,
    /// Instead of the 250 to the final dot.
    Dot,
    Rset,
    Quit,
    /// Once the reply to the final dot is out.
    AfterDot,
}

/// What the server does there.
#[derive(Clone, Debug)]
pub enum Act {
    /// A reply; CRLF is added. Lines joined by `\r\n` make one of several lines.
    Say(String),
    /// These octets and nothing else.
    Raw(Vec<u8>),
    /// Closes the connection.
    Cut,
    /// Closes it with a reset, so that what is on its way is lost.
    Reset,
    /// A reply, then closes.
    SayThenCut(String),
    /// Reads that many octets of the message, then closes. Only at [`Step::Body`].
    CutAfter(usize),
    /// Says nothing more and reads nothing more.
    Hang,
    /// Reads nothing for that long, then goes on. Only at [`Step::Body`].
    Pause(Duration),
    /// The reply, an octet at a time, with this pause between them.
    Drip(String, Duration),
}

pub fn say(reply: &str) -> Act {
    Act::Say(reply.to_string())
}

/// What to do when; everything else is answered as by a server that takes all mail.
#[derive(Clone, Default)]
pub struct Script {
    always: HashMap<Step, Act>,
    nth: HashMap<(Step, usize), Act>,
    extensions: Vec<String>,
    tls: Option<Arc<rustls::ServerConfig>>,
    implicit_tls: bool,
    no_handshake: bool,
    receive_buffer: Option<u32>,
}

impl Script {
    /// Offers PIPELINING, SIZE without a limit, 8BITMIME, SMTPUTF8, DSN.
    pub fn new() -> Self {
        Script::offering(&["PIPELINING", "SIZE 0", "8BITMIME", "SMTPUTF8", "DSN"])
    }

    pub fn offering(extensions: &[&str]) -> Self {
        Script { extensions: extensions.iter().map(|e| e.to_string()).collect(), ..Script::default() }
    }

    /// Each time the step is reached.
    pub fn always(mut self, step: Step, act: Act) -> Self {
        self.always.insert(step, act);
        self
    }

    /// The `n`th time (from 1) the step is reached, counted over all connections.
    pub fn at(mut self, step: Step, n: usize, act: Act) -> Self {
        self.nth.insert((step, n), act);
        self
    }

    /// Offers STARTTLS.
    pub fn tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// TLS from the first octet.
    pub fn implicit_tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.implicit_tls = true;
        self.tls(config)
    }

    /// Hangs up where the handshake should begin.
    pub fn without_handshake(mut self) -> Self {
        self.no_handshake = true;
        self
    }

    /// Octets the system takes in for us before we read them, roughly.
    pub fn receive_buffer(mut self, octets: u32) -> Self {
        self.receive_buffer = Some(octets);
        self
    }

    /// TLS from the first octet is on.
    pub fn implicit(&self) -> bool {
        self.implicit_tls
    }

    pub async fn start(self) -> Scripted {
        Scripted::start(self).await
    }
}

/// A message as it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// `MAIL` and its accepted `RCPT`s, as they were written.
    pub mail: String,
    pub rcpts: Vec<String>,
    /// Leading dots taken off, without the final dot.
    pub body: Vec<u8>,
    pub tls: bool,
}

#[derive(Default)]
struct Seen {
    counts: HashMap<Step, usize>,
    clients: Vec<String>,
    commands: Vec<String>,
    messages: Vec<Taken>,
    pipelined: bool,
    ended: usize,
}

/// A running server.
pub struct Scripted {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    pub async fn start(script: Script) -> Scripted {
        let (socket, _) = Scripted::reserve();
        Scripted::start_on(socket, script).await
    }

    /// A port that is ours and refuses connections, until something is started on it.
    pub fn reserve() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a loopback port");
        let address = socket.local_addr().expect("bound");
        (socket, address)
    }

    pub async fn start_on(socket: TcpSocket, script: Script) -> Scripted {
        if let Some(octets) = script.receive_buffer {
            socket.set_recv_buffer_size(octets).expect("a buffer");
        }
        let listener = socket.listen(64).expect("listens");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (script, shared) = (Arc::new(script), seen.clone());
        let task = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, client)) = listener.accept().await {
                lock(&shared).clients.push(client.ip().to_string());
                let session = Session { script: script.clone(), seen: shared.clone(), tls: false, buffer: Vec::new() };
                let shared = shared.clone();
                sessions.spawn(async move {
                    session.run(stream).await;
                    lock(&shared).ended += 1;
                });
            }
        });
        Scripted { address, seen, task }
    }

    pub fn messages(&self) -> Vec<Taken> {
        lock(&self.seen).messages.clone()
    }

    /// Every command line read, in order, over all connections.
    pub fn commands(&self) -> Vec<String> {
        lock(&self.seen).commands.clone()
    }

    pub fn connections(&self) -> usize {
        lock(&self.seen).clients.len()
    }

    /// Connections that are over, and all that was to be seen of them has been.
    pub fn ended(&self) -> usize {
        lock(&self.seen).ended
    }

    /// Where each connection came from.
    pub fn clients(&self) -> Vec<String> {
        lock(&self.seen).clients.clone()
    }

    /// Some command had arrived before the one ahead of it was answered.
    pub fn saw_pipelining(&self) -> bool {
        lock(&self.seen).pipelined
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("no test panics inside")
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {
    fn socket(&self) -> &TcpStream;
}

impl Io for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Io for tokio_rustls::server::TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

struct Session {
    script: Arc<Script>,
    seen: Arc<Mutex<Seen>>,
    tls: bool,
    buffer: Vec<u8>,
}

/// The session is over, by the script or by the client.
struct Ended;

impl Session {
    async fn run(mut self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        if self.script.implicit_tls {
            if let Some(mut inside) = self.accept_tls(stream).await {
                let _ = self.greet_and_talk(&mut inside).await;
            }
            return;
        }
        let mut stream = stream;
        if let Ok(true) = self.greet_and_talk(&mut stream).await
            && let Some(mut inside) = self.accept_tls(stream).await
        {
            let _ = self.talk(&mut inside).await;
        }
    }

    async fn accept_tls(&mut self, stream: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
        if self.script.no_handshake {
            return None;
        }
        self.buffer.clear();
        self.tls = true;
        TlsAcceptor::from(self.script.tls.clone()?).accept(stream).await.ok()
    }

    async fn greet_and_talk(&mut self, io: &mut impl Io) -> Result<bool, Ended> {
        self.answer(io, Step::Greeting, "220 scripted.example ESMTP").await?;
        self.talk(io).await
    }

    /// `Ok(true)`: go on inside TLS.
    async fn talk(&mut self, io: &mut impl Io) -> Result<bool, Ended> {
        let (mut mail, mut rcpts) = (String::new(), Vec::new());
        loop {
            let line = self.line(io).await?;
            let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
            lock(&self.seen).commands.push(line.clone());
            match verb.as_str() {
                "EHLO" => {
                    let reply = self.ehlo_reply();
                    self.answer(io, Step::Ehlo, &reply).await?;
                }
                "STARTTLS" => {
                    if self.answer(io, Step::StartTls, "220 2.0.0 go on").await? < 300 {
                        return Ok(true);
                    }
                }
                "AUTH" => {
                    self.answer(io, Step::Auth, "235 2.7.0 welcome").await?;
                }
                "MAIL" => {
                    if self.answer(io, Step::Mail, "250 2.1.0 sender ok").await? < 300 {
                        (mail, rcpts) = (line, Vec::new());
                    }
                }
                "RCPT" => {
                    let default = if mail.is_empty() { "503 5.5.1 no sender" } else { "250 2.1.5 recipient ok" };
                    if self.answer(io, Step::Rcpt, default).await? < 300 {
                        rcpts.push(line);
                    }
                }
                "DATA" => {
                    let default = if rcpts.is_empty() { "503 5.5.1 no recipients" } else { "354 go on" };
                    if (300..400).contains(&self.answer(io, Step::Data, default).await?) {
                        let body = self.body(io).await?;
                        let default = if rcpts.is_empty() { "554 5.5.1 no recipients" } else { "250 2.0.0 taken" };
                        // Noted before the answer: whoever has read the answer finds the message here.
                        let message = Taken { mail: mail.clone(), rcpts: rcpts.clone(), body, tls: self.tls };
                        let at = lock(&self.seen).messages.len();
                        lock(&self.seen).messages.push(message);
                        if self.answer(io, Step::Dot, default).await? >= 300 {
                            lock(&self.seen).messages.remove(at);
                        }
                        (mail, rcpts) = (String::new(), Vec::new());
                        self.act_if_told(io, Step::AfterDot).await?;
                    }
                }
                "RSET" => {
                    self.answer(io, Step::Rset, "250 2.0.0 forgotten").await?;
                    (mail, rcpts) = (String::new(), Vec::new());
                }
                "QUIT" => {
                    self.answer(io, Step::Quit, "221 2.0.0 bye").await?;
                    return Err(Ended);
                }
                _ => {
                    write(io, b"500 5.5.1 what\r\n").await?;
                }
            }
        }
    }

    fn ehlo_reply(&self) -> String {
        let mut lines = vec!["scripted.example".to_string()];
        lines.extend(self.script.extensions.iter().cloned());
        if self.script.tls.is_some() && !self.tls {
            lines.push("STARTTLS".into());
        }
        let last = lines.len() - 1;
        let numbered = lines.iter().enumerate().map(|(i, l)| format!("250{}{l}", if i == last { ' ' } else { '-' }));
        numbered.collect::<Vec<_>>().join("\r\n")
    }

    fn told(&self, step: Step) -> Option<Act> {
        let n = {
            let mut seen = lock(&self.seen);
            let count = seen.counts.entry(step).or_default();
            *count += 1;
            *count
        };
        self.script.nth.get(&(step, n)).or_else(|| self.script.always.get(&step)).cloned()
    }

    /// Answers as told, or with `default`; returns the code that was said (0 when it was no reply).
    async fn answer(&mut self, io: &mut impl Io, step: Step, default: &str) -> Result<u16, Ended> {
        let act = self.told(step).unwrap_or_else(|| say(default));
        self.perform(io, act).await
    }

    async fn act_if_told(&mut self, io: &mut impl Io, step: Step) -> Result<(), Ended> {
        if let Some(act) = self.told(step) {
            self.perform(io, act).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, io: &mut impl Io, act: Act) -> Result<u16, Ended> {
        let code = |text: &str| text.get(..3).and_then(|c| c.parse().ok()).unwrap_or(0);
        match act {
            Act::Say(text) => {
                write(io, format!("{text}\r\n").as_bytes()).await?;
                Ok(code(&text))
            }
            Act::Raw(octets) => {
                write(io, &octets).await?;
                Ok(code(&String::from_utf8_lossy(&octets)))
            }
            Act::SayThenCut(text) => {
                write(io, format!("{text}\r\n").as_bytes()).await?;
                // Read what is there, so that closing does not reset the connection and destroy the reply.
                while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(20), io.read(&mut [0; 4096])).await {
                }
                Err(Ended)
            }
            Act::Drip(text, pause) => {
                for octet in format!("{text}\r\n").bytes() {
                    write(io, &[octet]).await?;
                    tokio::time::sleep(pause).await;
                }
                Ok(code(&text))
            }
            Act::CutAfter(octets) => {
                while self.buffer.len() < octets {
                    self.fill(io).await?;
                }
                Err(Ended)
            }
            Act::Cut => Err(Ended),
            Act::Reset => {
                let socket = socket2::SockRef::from(io.socket());
                socket.set_linger(Some(Duration::ZERO)).expect("can be set");
                Err(Ended)
            }
            Act::Pause(pause) => {
                tokio::time::sleep(pause).await;
                Ok(0)
            }
            Act::Hang => {
                tokio::time::sleep(HANG_MOST).await;
                Err(Ended)
            }
        }
    }

    async fn fill(&mut self, io: &mut impl Io) -> Result<(), Ended> {
        match io.read_buf(&mut self.buffer).await {
            Ok(1..) => Ok(()),
            _ => Err(Ended),
        }
    }

    /// One line, which ends in CRLF and nothing else.
    async fn line(&mut self, io: &mut impl Io) -> Result<String, Ended> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                if !self.buffer.is_empty() {
                    lock(&self.seen).pipelined = true;
                }
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.fill(io).await?;
        }
    }

    async fn body(&mut self, io: &mut impl Io) -> Result<Vec<u8>, Ended> {
        self.act_if_told(io, Step::Body).await?;
        let mut body = Vec::new();
        let mut searched = 0;
        loop {
            let Some(at) = self.buffer[searched..].windows(2).position(|w| w == b"\r\n") else {
                searched = self.buffer.len().saturating_sub(1);
                self.fill(io).await?;
                continue;
            };
            let line: Vec<u8> = self.buffer.drain(..searched + at + 2).collect();
            searched = 0;
            match line.as_slice() {
                b".\r\n" => return Ok(body),
                [b'.', rest @ ..] => body.extend_from_slice(rest),
                _ => body.extend_from_slice(&line),
            }
        }
    }
}

async fn write(io: &mut impl Io, octets: &[u8]) -> Result<(), Ended> {
    let written = io.write_all(octets).await;
    written.and(io.flush().await).map_err(|_| Ended)
}
