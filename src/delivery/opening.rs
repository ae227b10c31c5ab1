//! Opening a connection to a next hop: name, TCP, greeting, EHLO, TLS, login.
//!
//! `mail-send` makes the TCP connection, the TLS handshake and the login. Greeting, EHLO and STARTTLS are ours: it
//! drops octets behind a reply, and behind the 220 to STARTTLS those are an attack. Nothing that goes wrong here is
//! permanent for a message; a password is said only inside verified TLS, or to a loopback address.
//!
//! The hosts of a route are tried in order, and of each host its addresses; those whose breaker is open are passed over.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mail_send::SmtpClient;
use secrecy::{ExposeSecret, SecretString};

use super::breaker::Hop;
use super::outcome::{Cause, Fault, Stage, Verdict, judge_opening};
use super::pool::Hops;
use super::session::{Session, Stream, connect_fault};
use super::tls::{TlsLevel, TlsPolicy};
use super::wire::Capabilities;
use crate::dns::Resolver;
use crate::message::Route;

/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

/// One server of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or literal address; also what the certificate must be good for.
    pub name: String,
    pub port: u16,
}

/// What we log in with.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub user: String,
    pub password: SecretString,
}

/// Bounds on waiting. Each covers one whole step, however slowly octets trickle in.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Connecting to one address.
    pub connect: Duration,
    /// Greeting, TLS handshake, login step, one command and its reply.
    pub command: Duration,
    /// 64 KiB of a message; the reply to the final dot.
    pub data: Duration,
}

/// Where a route leads and how to get there.
#[derive(Clone, Debug)]
pub struct Target {
    pub route: Route,
    /// Tried in order.
    pub hosts: Vec<Host>,
    /// Our name in EHLO.
    pub helo: String,
    pub source_ip: Option<IpAddr>,
    /// Used only inside verified TLS or to a loopback address.
    pub credentials: Option<Credentials>,
    pub tls: TlsPolicy,
    pub timeouts: Timeouts,
    /// Turns the names of the hosts into addresses; has a bound of its own on waiting.
    pub resolver: Arc<dyn Resolver>,
}

/// No connection came about with any host; this is what the last one tried gave.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{host}{}: {}: {cause}", .address.map(|a| format!(" [{a}]")).unwrap_or_default(), .stage.name())]
pub struct OpenError {
    pub host: String,
    pub address: Option<SocketAddr>,
    pub stage: Stage,
    pub cause: Cause,
    /// No server of the route may be tried again sooner.
    pub retry_in: Duration,
}

impl OpenError {
    /// What it means for a message that was to go over it. Never permanent.
    pub fn verdict(&self) -> Verdict {
        Verdict::Deferred { stage: self.stage, cause: self.cause.clone() }
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub route: Route,
    pub host: String,
    pub address: SocketAddr,
    pub tls: bool,
}

/// A session that is ready for MAIL.
pub(super) struct Opened {
    pub session: Session,
    pub offered: Capabilities,
    pub peer: Peer,
}

/// Tries the target's hosts in order, and the addresses of each, as far as their breakers let it. A refused login ends
/// the search: the next host would count it as another failure of the same account.
pub(super) async fn open(target: &Target, hops: &Hops) -> Result<Opened, OpenError> {
    let mut search = Search { target, hops, tried: Vec::new(), last: None };
    for host in &target.hosts {
        for address in search.addresses(host).await {
            match search.open(host, address).await {
                Some(opened) => return Ok(opened),
                None if search.login_was_refused() => return Err(search.failure()),
                None => {}
            }
        }
    }
    Err(search.failure())
}

/// One look for a server that takes us.
struct Search<'a> {
    target: &'a Target,
    hops: &'a Hops,
    /// Whom it has come by, asked or not.
    tried: Vec<Hop>,
    last: Option<OpenError>,
}

impl Search<'_> {
    /// The addresses of a host that we can send from; none when it has none, or had none a moment ago.
    async fn addresses(&mut self, host: &Host) -> Vec<SocketAddr> {
        let hop = Hop::Name(host.name.clone());
        let Some(attempt) = self.hops.attempt(&hop) else {
            self.tried.push(hop);
            return Vec::new();
        };
        let found = self.target.resolver.addresses(&host.name).await;
        let kind = self.target.source_ip;
        let fits = |ip: &IpAddr| kind.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
        let why = match found {
            Ok(found) => {
                let with_port = |ip| SocketAddr::new(ip, host.port);
                let usable: Vec<_> = found.into_iter().filter(fits).take(ADDRESSES_MAX).map(with_port).collect();
                if !usable.is_empty() {
                    attempt.resolved();
                    return usable;
                }
                "no address of the kind we send from".to_owned()
            }
            Err(error) => error.to_string(),
        };
        attempt.failed();
        self.tried.push(hop);
        self.note(host, None, Stage::Connect, Cause::Fault(Fault::Unresolved(why)));
        Vec::new()
    }

    async fn open(&mut self, host: &Host, address: SocketAddr) -> Option<Opened> {
        let hop = Hop::Address(address);
        let attempt = self.hops.attempt(&hop);
        self.tried.push(hop);
        let attempt = attempt?;
        match open_address(self.target, host, address).await {
            Ok(opened) => {
                attempt.opened();
                Some(opened)
            }
            Err((stage, cause)) => {
                attempt.failed();
                self.note(host, Some(address), stage, cause);
                None
            }
        }
    }

    fn note(&mut self, host: &Host, address: Option<SocketAddr>, stage: Stage, cause: Cause) {
        let error = OpenError { host: host.name.clone(), address, stage, cause, retry_in: Duration::ZERO };
        log_failure(self.target.route, &error);
        self.last = Some(error);
    }

    fn login_was_refused(&self) -> bool {
        let refused = |e: &OpenError| e.stage == Stage::Auth && e.cause.reply().is_some_and(|r| r.is_permanent());
        self.last.as_ref().is_some_and(refused)
    }

    fn failure(self) -> OpenError {
        let resting = || OpenError {
            host: self.target.hosts.first().map(|host| host.name.clone()).unwrap_or_default(),
            address: None,
            stage: Stage::Connect,
            cause: Cause::Fault(Fault::Resting),
            retry_in: Duration::ZERO,
        };
        let retry_in = self.tried.iter().map(|hop| self.hops.wait(hop)).min().unwrap_or_default();
        OpenError { retry_in, ..self.last.unwrap_or_else(resting) }
    }
}

async fn open_address(target: &Target, host: &Host, address: SocketAddr) -> Result<Opened, (Stage, Cause)> {
    match open_session(target, host, address, target.tls.level).await {
        // A handshake cannot be taken back: in clear only over a new connection, and only where that is allowed.
        Err((Stage::Tls, Cause::Fault(Fault::Tls(_)))) if target.tls.level == TlsLevel::May && !target.tls.implicit => {
            open_session(target, host, address, TlsLevel::Off).await
        }
        result => result,
    }
}

async fn open_session(
    target: &Target,
    host: &Host,
    address: SocketAddr,
    level: TlsLevel,
) -> Result<Opened, (Stage, Cause)> {
    let limit = target.timeouts.command;
    let at = |stage| move |fault| (stage, Cause::Fault(fault));
    let connector = target.tls.connectors.for_level(level);
    let mut session = connect(target, address).await.map_err(at(Stage::Connect))?;
    let implicit = target.tls.implicit && level != TlsLevel::Off;
    if implicit {
        session = session.into_tls(connector, &host.name, limit).await.map_err(at(Stage::Tls))?;
    }
    let greeting = session.reply(limit).await.map_err(at(Stage::Greeting))?;
    judge_opening(Stage::Greeting, greeting.to_reply()).map_err(|cause| (Stage::Greeting, cause))?;
    let mut offered = ehlo(&mut session, &target.helo, limit).await?;
    if level != TlsLevel::Off && !implicit {
        match start_tls(&mut session, &offered, level, limit).await {
            Ok(true) => {
                session = session.into_tls(connector, &host.name, limit).await.map_err(at(Stage::Tls))?;
                offered = ehlo(&mut session, &target.helo, limit).await?;
            }
            Ok(false) => {}
            Err(cause) => return Err((Stage::Tls, cause)),
        }
    }
    let tls = session.is_tls();
    if let Some(credentials) = &target.credentials {
        if !may_log_in(tls, level, address.ip()) {
            return Err((Stage::Auth, Cause::Fault(Fault::Login("a password needs TLS with a verified certificate"))));
        }
        let password = credentials.password.expose_secret();
        session = session
            .authenticate(&credentials.user, password, &offered.auth, limit)
            .await
            .map_err(|cause| (Stage::Auth, cause))?;
    }
    let peer = Peer { route: target.route, host: host.name.clone(), address, tls };
    Ok(Opened { session, offered, peer })
}

/// A password goes only where nobody between can read it, and nobody else can have answered.
fn may_log_in(tls: bool, level: TlsLevel, address: IpAddr) -> bool {
    tls && level == TlsLevel::Verify || address.is_loopback()
}

async fn connect(target: &Target, address: SocketAddr) -> Result<Session, Fault> {
    let limit = target.timeouts.connect;
    let client = match target.source_ip {
        Some(ip) => SmtpClient::connect_using(ip, address, limit).await,
        None => SmtpClient::connect(address, limit).await,
    };
    let stream = client.map_err(connect_fault)?.stream;
    // A transaction is a few small writes; with Nagle's algorithm each would wait for a delayed acknowledgement.
    stream.set_nodelay(true).map_err(|e| Fault::Io(e.kind()))?;
    Ok(Session::new(Stream::Plain(stream)))
}

async fn ehlo(session: &mut Session, helo: &str, limit: Duration) -> Result<Capabilities, (Stage, Cause)> {
    let helo: String = helo.chars().filter(char::is_ascii_graphic).collect();
    let at = |fault| (Stage::Ehlo, Cause::Fault(fault));
    let raw = session.command(format!("EHLO {helo}\r\n").as_bytes(), limit).await.map_err(at)?;
    judge_opening(Stage::Ehlo, raw.to_reply()).map_err(|cause| (Stage::Ehlo, cause))?;
    if session.has_surplus() {
        return Err(at(Fault::BadReply("more replies than commands")));
    }
    Ok(Capabilities::parse(&raw))
}

/// Asks for TLS. `Ok(false)`: not to be had, and the level allows to go on in clear.
async fn start_tls(
    session: &mut Session,
    offered: &Capabilities,
    level: TlsLevel,
    limit: Duration,
) -> Result<bool, Cause> {
    if !offered.starttls {
        return if level == TlsLevel::May { Ok(false) } else { Err(Cause::Fault(Fault::TlsMissing)) };
    }
    let raw = session.command(b"STARTTLS\r\n", limit).await.map_err(Cause::Fault)?;
    if session.has_surplus() {
        return Err(Cause::Fault(Fault::ResponseInjection));
    }
    match judge_opening(Stage::Tls, raw.to_reply()) {
        Ok(_) => Ok(true),
        Err(Cause::Reply(reply)) if level == TlsLevel::May && reply.code != 421 => Ok(false),
        Err(cause) => Err(cause),
    }
}

fn log_failure(route: Route, error: &OpenError) {
    let (host, stage, cause) = (error.host.as_str(), error.stage.name(), &error.cause);
    let address = error.address.map(|a| a.to_string()).unwrap_or_default();
    match cause.kind() {
        event @ ("bad-peer" | "response-injection") => {
            tracing::warn!(event, %route, host, address, stage, %cause);
        }
        event => tracing::info!(event, %route, host, address, stage, %cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_goes_only_into_verified_tls_or_to_a_loopback_address() {
        let (far, near) = ("192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap());
        for (tls, level, allowed) in [
            (true, TlsLevel::Verify, true),
            (true, TlsLevel::Encrypt, false),
            (true, TlsLevel::May, false),
            (false, TlsLevel::Off, false),
            (false, TlsLevel::Verify, false),
        ] {
            assert_eq!(may_log_in(tls, level, far), allowed, "{tls} {level:?}");
            assert!(may_log_in(tls, level, near));
        }
    }
}
