//! The two receiving servers of the demonstration: mailramp's own front door, with a notebook behind it.
//!
//! A sink says 250 to everything and writes down which recipient of which message it took, and when by the demo's
//! clock. It believes the envelope only as far as the header agrees: what does not name itself in both is somebody
//! else's mail (a visitor's own client), counted apart.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::application::{HEADER, Letter};
use crate::clock::Clock;
use crate::message::{QueueId, Route, Timestamp};
use crate::smtp::{
    BodySink, ConnectionCounts, Door, Intake, ListenerSettings, Refusal, Server, SessionSettings, Submission, Timeouts,
};

/// Octets of a message that are searched for its number: both `Received:` lines and the application's header fit well.
const HEAD_OCTETS: usize = 4096;
/// Visitors' messages that are described for `--keep`; beyond, they are only counted.
const VISITS_MAX: usize = 1000;
const CONNECTIONS_MAX: usize = 100;

/// One recipient that a server took responsibility for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub at: Timestamp,
    pub route: Route,
    /// `None`: not from the demo's application.
    pub letter: Option<Letter>,
}

/// A message of somebody else's.
#[derive(Clone, Debug)]
pub struct Visit {
    pub at: Timestamp,
    pub route: Route,
    pub sender: String,
    pub recipients: usize,
}

/// What both servers have seen.
#[derive(Debug, Default)]
pub struct Notebook {
    pub seen: Mutex<Vec<Sighting>>,
    pub visits: Mutex<Vec<Visit>>,
}

impl Notebook {
    /// Recipients taken so far.
    pub fn taken(&self) -> usize {
        self.seen.lock().expect("no holder panics").len()
    }
}

/// Starts a receiving server on a free port of this machine; it runs until `stop`.
pub fn start(
    route: Route,
    notebook: Arc<Notebook>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> io::Result<SocketAddr> {
    let server = Server::bind(ListenerSettings { address: (Ipv4Addr::LOCALHOST, 0).into(), index: 0 })?;
    let address = server.local_addr()?;
    let settings = SessionSettings {
        hostname: format!("{route}.example"),
        allow_from: vec![ipnet::Ipv4Net::new(Ipv4Addr::LOCALHOST, 8).expect("8 bits of 32").into()],
        // The relay has gone by then.
        timeouts: Timeouts { shutdown_grace: std::time::Duration::ZERO, ..Timeouts::default() },
        ..SessionSettings::default()
    };
    let sink = Arc::new(Sink { route, notebook, clock, last_id: AtomicU64::new(0) });
    let counts = Arc::new(ConnectionCounts::new(CONNECTIONS_MAX, CONNECTIONS_MAX));
    let door = Door { intake: sink, counts, observer: Arc::new(()), tls: None, authenticator: None };
    tokio::spawn(server.run(door, Arc::new(settings), stop));
    Ok(address)
}

struct Sink {
    route: Route,
    notebook: Arc<Notebook>,
    clock: Arc<dyn Clock>,
    last_id: AtomicU64,
}

/// The beginning of a message.
struct Head(Vec<u8>);

impl BodySink for Head {
    async fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        let room = HEAD_OCTETS.saturating_sub(self.0.len());
        self.0.extend_from_slice(&chunk[..chunk.len().min(room)]);
        Ok(())
    }
}

impl Intake for Sink {
    type Body = Head;

    fn ready(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn new_id(&self) -> QueueId {
        QueueId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn body(&self, _: QueueId) -> Head {
        Head(Vec::new())
    }

    async fn accept(&self, message: Submission<Head>) -> Result<(), Refusal> {
        let (at, route) = (self.clock.now(), self.route);
        let number = number_in(&message.body.0);
        let letters = message.envelope.recipients.iter().map(|r| Letter::of_address(&r.path));
        // Mail whose envelope and header name different messages would have been mixed up on the way.
        let letters: Vec<_> = letters.map(|l| l.filter(|letter| Some(letter.message) == number)).collect();
        if letters.iter().any(Option::is_none) {
            let mut visits = self.notebook.visits.lock().expect("no holder panics");
            if visits.len() < VISITS_MAX {
                let sender = crate::log::printable(&String::from_utf8_lossy(&message.envelope.reverse_path));
                visits.push(Visit { at, route, sender, recipients: letters.len() });
            }
        }
        let sightings = letters.into_iter().map(|letter| Sighting { at, route, letter });
        self.notebook.seen.lock().expect("no holder panics").extend(sightings);
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// The number the application wrote into the header.
fn number_in(head: &[u8]) -> Option<u32> {
    let name = format!("\n{HEADER}: ");
    let start = memchr::memmem::find(head, name.as_bytes())? + name.len();
    let line = head[start..].split(|octet| *octet == b'\r').next()?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_from_the_header_line_alone() {
        assert_eq!(number_in(b"Received: x\r\nX-Demo-Id: 17\r\nTo: y\r\n\r\n"), Some(17));
        assert_eq!(number_in(b"Received: x\r\nSubject: X-Demo-Id: 17\r\n\r\n"), None);
        assert_eq!(number_in(b"Received: x\r\nX-Demo-Id: many\r\n"), None);
    }
}
