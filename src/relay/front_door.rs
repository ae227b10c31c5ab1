//! The front door as configured: by which terms each listener takes connections, and how they are exchanged.
//!
//! Built at start and again at a reload; connections keep the terms they were opened by.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use secrecy::ExposeSecret;

use super::StartError;
use super::intake::admits_loopback;
use crate::admin::{ListenerProbe, ProbeDepth};
use crate::config::{self, Settings};
use crate::message::Timestamp;
use crate::smtp::guessing::GuessRules;
use crate::smtp::user_file::UserFile;
use crate::smtp::users::Users;
use crate::smtp::{AuthPolicy, Authenticator, ConnectionCounts, ServerTls, SessionSettings, Terms, TlsMode};

/// Descriptors beside those of connections: database, segments, large bodies, listeners, the log.
const DESCRIPTORS_BESIDE: u64 = 200;
/// A certificate with less time left is worth a warning.
const CERTIFICATE_SHORT: Duration = Duration::from_secs(14 * 86_400);

/// What all listeners share, and the terms of each.
pub(super) struct FrontDoor {
    pub counts: Arc<ConnectionCounts>,
    users: Option<Arc<Users>>,
    /// By index of the listener.
    terms: Vec<Arc<ArcSwap<Terms>>>,
}

/// What a front door needs of files, read and found good.
pub(super) struct DoorFiles {
    tls: Option<Arc<ServerTls>>,
    users: Option<UserFile>,
}

impl DoorFiles {
    /// Blocks on the disk.
    pub fn read(settings: &Settings, now: Timestamp) -> Result<DoorFiles, StartError> {
        let tls = server_tls(settings)?;
        if let Some(tls) = &tls {
            warn_of_expiry(tls, now);
        }
        Ok(DoorFiles { tls, users: user_file(settings)? })
    }
}

impl FrontDoor {
    pub fn new(settings: &Settings, files: DoorFiles) -> Result<FrontDoor, StartError> {
        let counts = Arc::new(ConnectionCounts::new(most_connections(settings), settings.smtp.limits.per_ip as usize));
        let mut door = FrontDoor { counts, users: None, terms: Vec::new() };
        let terms = door.terms_of(settings, files)?;
        door.terms = terms.into_iter().map(|terms| Arc::new(ArcSwap::from_pointee(terms))).collect();
        Ok(door)
    }

    /// By what the listener takes its next connection.
    pub fn terms(&self, listener: usize) -> Arc<ArcSwap<Terms>> {
        self.terms[listener].clone()
    }

    /// From the next connection on. There must be as many listeners as before. On `Err` nothing has changed.
    pub fn change(&mut self, settings: &Settings, files: DoorFiles) -> Result<(), StartError> {
        let fresh = self.terms_of(settings, files)?;
        for (terms, fresh) in self.terms.iter().zip(fresh) {
            terms.store(Arc::new(fresh));
        }
        self.counts.change(most_connections(settings), settings.smtp.limits.per_ip as usize);
        Ok(())
    }

    /// Takes the users in, who are the same for sessions that go by older terms: whoever is gone cannot log in there.
    fn terms_of(&mut self, settings: &Settings, files: DoorFiles) -> Result<Vec<Terms>, StartError> {
        match (&self.users, files.users) {
            (Some(users), Some(file)) => users.change(file, guess_rules(settings)),
            (None, Some(file)) => {
                let users = Users::new(file, guess_rules(settings)).map_err(StartError::Io)?;
                self.users = Some(Arc::new(users));
            }
            (_, None) => self.users = None,
        }
        let authenticator = self.users.clone().map(|users| users as Arc<dyn Authenticator>);
        let terms = |listener| Terms {
            settings: Arc::new(session_settings(settings, listener)),
            authenticator: authenticator.clone(),
            tls: files.tls.clone(),
        };
        Ok(settings.listeners.iter().map(terms).collect())
    }
}

/// The certificate that the settings name, checked as a start does. `None`: no listener has TLS.
pub fn server_tls(settings: &Settings) -> Result<Option<Arc<ServerTls>>, StartError> {
    let Some((cert, key)) = settings.tls_files() else { return Ok(None) };
    match ServerTls::load(cert, key) {
        Ok(tls) => Ok(Some(Arc::new(tls))),
        Err(error) => Err(StartError::Settings(error.to_string())),
    }
}

/// Whole days until the certificate expires; negative when it has.
fn days_left(tls: &ServerTls, now: Timestamp) -> i64 {
    (tls.not_after().seconds() - now.seconds()).div_euclid(86_400)
}

fn warn_of_expiry(tls: &ServerTls, now: Timestamp) {
    if tls.not_after() < now.after(CERTIFICATE_SHORT) {
        let days_left = days_left(tls, now);
        tracing::warn!(event = "tls.expiring", days_left, "renew `smtp.tls.cert`, then send SIGHUP");
    }
}

/// Clients we can serve at once without running out of descriptors for the mail itself.
fn most_connections(settings: &Settings) -> usize {
    let wanted = settings.smtp.limits.connections;
    let upstream = settings.new.connections + settings.legacy.as_ref().map_or(0, |legacy| legacy.connections);
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = descriptors.saturating_sub(DESCRIPTORS_BESIDE + upstream as u64).max(1);
    if wanted > room {
        tracing::warn!(
            event = "relay.descriptors",
            limit = room,
            "fewer connections than smtp.limits.connections: the limit on open files is too low"
        );
    }
    usize::try_from(wanted.min(room)).unwrap_or(usize::MAX)
}

/// Who may log in; `None` when the settings name no file.
pub fn user_file(settings: &Settings) -> Result<Option<UserFile>, StartError> {
    let users = &settings.smtp.users;
    let (Some(path), Some(text)) = (&users.file, &users.text) else { return Ok(None) };
    let file = UserFile::parse(text.expose_secret(), &path.display().to_string());
    file.map(Some).map_err(|faults| StartError::Settings(faults.join("\n")))
}

fn guess_rules(settings: &Settings) -> GuessRules {
    let auth = &settings.smtp.auth;
    GuessRules { failures: auth.failures as usize, within: auth.within, block: auth.block }
}

/// What sessions of one listener go by.
fn session_settings(settings: &Settings, listener: &config::Listener) -> SessionSettings {
    let (limits, timeouts) = (&settings.smtp.limits, &settings.smtp.timeouts);
    SessionSettings {
        hostname: settings.smtp.hostname.clone(),
        max_message_bytes: limits.message,
        max_recipients: limits.recipients as usize,
        max_header_bytes: limits.headers,
        max_errors: limits.errors,
        allow_from: listener.allow_from.clone(),
        tls: match listener.tls {
            config::ListenerTls::Off => TlsMode::Off,
            config::ListenerTls::StartTls => TlsMode::StartTls,
            config::ListenerTls::Implicit => TlsMode::Implicit,
        },
        auth: match listener.auth {
            config::ListenerAuth::Off => AuthPolicy::Off,
            config::ListenerAuth::Optional => AuthPolicy::Optional,
            config::ListenerAuth::Required => AuthPolicy::Required,
        },
        auth_in_clear: listener.auth_clear,
        normalize: match settings.smtp.bare_newline {
            config::BareNewline::Reject => settings.smtp.normalize_from.clone(),
            config::BareNewline::Normalize => everybody(),
        },
        stream_header: listener.stream_header,
        timeouts: crate::smtp::Timeouts {
            first_command: timeouts.first,
            idle: timeouts.idle,
            command: timeouts.command,
            data_min_rate: timeouts.data_rate,
            handshake: timeouts.handshake,
            shutdown_grace: settings.smtp.stop_grace,
            ..Default::default()
        },
    }
}

fn everybody() -> Vec<ipnet::IpNet> {
    vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()]
}

/// What readiness tries at each bound address, with the index of its listener.
pub(super) fn probes(settings: &Settings, bound: &[(SocketAddr, usize)]) -> Vec<ListenerProbe> {
    let probe = |(address, index): &(SocketAddr, usize)| {
        let listener = &settings.listeners[*index];
        let depth = match admits_loopback(&listener.allow_from, address.ip()) {
            _ if listener.tls == config::ListenerTls::Implicit => ProbeDepth::Connect,
            true => ProbeDepth::Recipient(format!("postmaster@{}", settings.smtp.hostname)),
            false => ProbeDepth::Greeting,
        };
        ListenerProbe { address: *address, depth }
    };
    bound.iter().map(probe).collect()
}
