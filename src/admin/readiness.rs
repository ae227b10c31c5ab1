//! Whether the relay would take mail now, found out the way an application does: by asking its listeners.
//!
//! A process can be alive while each RCPT fails, so a probe speaks SMTP as far as it gets without sending anything. One
//! look serves everybody who asks within [`FRESH`], so probes cannot be used to load the relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Backend, ListenerProbe, ProbeDepth};

/// For all of a look: disk and every listener, side by side.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long a verdict is given again.
const FRESH: Duration = Duration::from_secs(1);
/// Longest answer to one command, all lines together.
const REPLY_MAX_BYTES: u64 = 8 * 1024;

/// What keeps the relay from taking mail, one line each; empty when it is ready.
pub(super) type Faults = Vec<String>;

pub(super) struct Readiness {
    backend: Arc<dyn Backend>,
    last: Mutex<Option<(Instant, Faults)>>,
}

impl Readiness {
    pub(super) fn new(backend: Arc<dyn Backend>) -> Self {
        Readiness { backend, last: Mutex::new(None) }
    }

    pub(super) async fn faults(&self) -> Faults {
        // Held while looking: those who come meanwhile wait for this look instead of starting their own.
        let mut last = self.last.lock().await;
        if let Some((at, faults)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return faults.clone();
        }
        let faults = self.look().await;
        *last = Some((Instant::now(), faults.clone()));
        faults
    }

    async fn look(&self) -> Faults {
        let listeners = self.backend.listeners();
        let mut faults = Faults::new();
        if listeners.is_empty() {
            faults.push("no listener is open".into());
        }
        let mut probes = JoinSet::new();
        for listener in listeners {
            probes.spawn(async move {
                let outcome = timeout(DEADLINE, probe(&listener)).await.unwrap_or_else(|_| Err(late()));
                outcome.err().map(|fault| format!("listener {}: {fault}", listener.address))
            });
        }
        match timeout(DEADLINE, self.backend.snapshot()).await {
            Ok(Ok(snapshot)) if snapshot.spool.accepting => {}
            Ok(Ok(snapshot)) => faults.push(format!(
                "spool: takes no mail; {} bytes free, {} required",
                snapshot.spool.free_bytes, snapshot.spool.required_bytes
            )),
            Ok(Err(error)) => faults.push(format!("spool: {error}")),
            Err(_) => faults.push(format!("spool: {}", late())),
        }
        while let Some(outcome) = probes.join_next().await {
            faults.extend(outcome.unwrap_or_else(|error| Some(format!("listener: {error}"))));
        }
        faults.sort_unstable();
        faults
    }
}

fn late() -> String {
    format!("no answer within {} s", DEADLINE.as_secs())
}

async fn probe(listener: &ListenerProbe) -> Result<(), String> {
    let stream = TcpStream::connect(reachable(listener.address)).await.map_err(|error| error.to_string())?;
    let mut session = Session(BufReader::new(stream));
    let recipient = match &listener.depth {
        ProbeDepth::Connect => return Ok(()),
        ProbeDepth::Greeting => None,
        ProbeDepth::Recipient(recipient) => Some(recipient),
    };
    session.reply("greeting").await?;
    session.command("EHLO localhost").await?;
    if let Some(recipient) = recipient {
        session.command("MAIL FROM:<>").await?;
        session.command(&format!("RCPT TO:<{recipient}>")).await?;
        session.command("RSET").await?;
    }
    session.command("QUIT").await
}

/// `0.0.0.0` and `[::]` are not places to connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

struct Session(BufReader<TcpStream>);

impl Session {
    async fn command(&mut self, line: &str) -> Result<(), String> {
        let verb = line.split([' ', ':']).next().unwrap_or(line);
        let sent = self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).await;
        sent.map_err(|error| format!("{verb}: {error}"))?;
        self.reply(verb).await
    }

    async fn reply(&mut self, what: &str) -> Result<(), String> {
        let mut limited = (&mut self.0).take(REPLY_MAX_BYTES);
        loop {
            let mut line = Vec::new();
            let read = limited.read_until(b'\n', &mut line).await.map_err(|error| format!("{what}: {error}"))?;
            if read == 0 {
                return Err(format!("{what}: closed without a reply"));
            }
            if line.get(3) == Some(&b'-') {
                continue;
            }
            // Only the code: the rest is for the log of that session.
            return match line.first() {
                Some(b'2') => Ok(()),
                _ => Err(format!("{what}: {}", String::from_utf8_lossy(&line[..line.len().min(3)]).escape_default())),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::FakeBackend;
    use tokio::net::TcpListener;

    /// Listens and answers each line by `script`, which sees the line and returns the reply; `None` answers nothing.
    async fn listener(script: fn(&str) -> Option<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                loop {
                    if let Some(reply) = script(line.trim_end()) {
                        let _ = stream.get_mut().write_all(reply.as_bytes()).await;
                    }
                    line.clear();
                    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
            }
        });
        address
    }

    fn kind(line: &str) -> Option<&'static str> {
        Some(match line {
            "" => "220 hello\r\n",
            "EHLO localhost" => "250-hello\r\n250 SIZE 1000\r\n",
            "MAIL FROM:<>" | "RCPT TO:<postmaster@relay.example>" | "RSET" => "250 2.0.0 ok\r\n",
            "QUIT" => "221 bye\r\n",
            _ => "500 what\r\n",
        })
    }

    fn readiness(listeners: Vec<(SocketAddr, ProbeDepth)>) -> Readiness {
        let listeners = listeners.into_iter().map(|(address, depth)| ListenerProbe { address, depth }).collect();
        Readiness::new(Arc::new(FakeBackend { listeners, ..FakeBackend::default() }))
    }

    fn postmaster() -> ProbeDepth {
        ProbeDepth::Recipient("postmaster@relay.example".into())
    }

    #[tokio::test]
    async fn a_relay_that_takes_a_recipient_is_ready() {
        let address = listener(kind).await;
        let listeners = vec![(address, postmaster()), (address, ProbeDepth::Greeting), (address, ProbeDepth::Connect)];
        assert_eq!(readiness(listeners).faults().await, Faults::new());
    }

    #[tokio::test]
    async fn a_relay_that_refuses_each_recipient_is_not_ready_though_it_greets() {
        let refusing = |line: &str| if line.starts_with("RCPT") { Some("451 4.3.0 no\r\n") } else { kind(line) };
        let address = listener(refusing).await;
        assert_eq!(readiness(vec![(address, postmaster())]).faults().await, [format!("listener {address}: RCPT: 451")]);
        assert_eq!(readiness(vec![(address, ProbeDepth::Greeting)]).faults().await, Faults::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_does_not_answer_is_given_up_after_the_deadline() {
        let address = listener(|_| None).await;
        let before = Instant::now();
        let faults = readiness(vec![(address, ProbeDepth::Greeting)]).faults().await;
        assert_eq!(faults, [format!("listener {address}: no answer within 2 s")]);
        assert!(before.elapsed() < DEADLINE + Duration::from_millis(100));
    }

    #[tokio::test]
    async fn a_full_disk_and_a_missing_listener_are_both_named() {
        let backend = FakeBackend { full: true, ..FakeBackend::default() };
        let faults = Readiness::new(Arc::new(backend)).faults().await;
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert_eq!(faults[0], "no listener is open");
        assert!(faults[1].starts_with("spool: takes no mail"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_serves_all_who_ask_within_a_second() {
        use std::sync::atomic::{AtomicU32, Ordering};
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let address = listener(|line| {
            if line.is_empty() {
                ASKED.fetch_add(1, Ordering::SeqCst);
            }
            None
        })
        .await;
        let readiness = readiness(vec![(address, ProbeDepth::Greeting)]);
        readiness.faults().await;
        readiness.faults().await;
        assert_eq!(ASKED.load(Ordering::SeqCst), 1);
        tokio::time::advance(FRESH).await;
        readiness.faults().await;
        assert_eq!(ASKED.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_unspecified_address_is_probed_on_loopback() {
        assert_eq!(reachable("0.0.0.0:25".parse().unwrap()).to_string(), "127.0.0.1:25");
        assert_eq!(reachable("[::]:25".parse().unwrap()).to_string(), "[::1]:25");
        assert_eq!(reachable("192.0.2.1:25".parse().unwrap()).to_string(), "192.0.2.1:25");
    }
}
