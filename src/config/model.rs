//! The settings as the program uses them: parsed, resolved, checked. Durations are `Duration`, sizes bytes, shares
//! 0 to 1. What each key means to an operator, with its default, stands in `conf/mailramp.toml`.

use core::net::{IpAddr, SocketAddr};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ipnet::IpNet;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::SecretString;
use serde::Deserialize;

use super::choices::*;
use super::providers::ProviderLanes;
use super::values::{self, *};
use crate::policy::classify::Rule;
use crate::policy::{Curve, Lanes, Providers, Signals};

/// Everything the relay is told at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Spool, ledger and control socket. Relative paths were resolved against the settings file's folder.
    pub data_dir: PathBuf,
    /// Where a day begins and ends.
    pub timezone: TimeZone,
    pub log: Log,
    pub http: Http,
    pub smtp: Smtp,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// The server or address being warmed.
    pub new: Upstream,
    /// The old, trusted server. Without it over-quota mail is held.
    pub legacy: Option<Upstream>,
    /// `None`: nothing is limited.
    pub warmup: Option<Warmup>,
    /// In the order in which their rules are tried; what matches none is the stream "default".
    pub streams: Vec<Stream>,
    pub queue: QueueSettings,
    pub dns: Dns,
}

impl Settings {
    /// Certificate chain and key for the front door, when a listener has TLS.
    pub fn tls_files(&self) -> Option<(&Path, &Path)> {
        self.listeners.iter().find(|listener| listener.tls != ListenerTls::Off)?;
        Some((self.smtp.tls.cert.as_deref()?, self.smtp.tls.key.as_deref()?))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    #[serde(deserialize_with = "de::<LogFormat, _>")]
    pub format: LogFormat,
    #[serde(deserialize_with = "de::<LogLevel, _>")]
    pub level: LogLevel,
    /// How mail addresses appear in the log.
    #[serde(deserialize_with = "de::<LogAddresses, _>")]
    pub addresses: LogAddresses,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Metrics and probes. A loopback address.
    #[serde(deserialize_with = "de::<Bind, _>")]
    pub bind: SocketAddr,
}

/// What every listener shares.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smtp {
    /// In the greeting and in `Received:`; never empty, the system's name when none was configured.
    #[serde(deserialize_with = "de::<MailName, _>")]
    pub hostname: String,
    pub limits: Limits,
    pub timeouts: SmtpTimeouts,
    pub tls: SmtpTls,
    /// How long sessions may finish after a request to stop.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub stop_grace: Duration,
    #[serde(deserialize_with = "de::<BareNewline, _>")]
    pub bare_newline: BareNewline,
    /// Clients whose bare LF is mended whatever `bare_newline` says.
    #[serde(deserialize_with = "de::<List<Net>, _>")]
    pub normalize_from: Vec<IpNet>,
    pub users: UsersSettings,
    pub auth: AuthLimits,
}

/// Who may log in at a listener with AUTH.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsersSettings {
    /// `None`: nobody.
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub file: Option<PathBuf>,
    /// What stood in the file when the settings were read; its lines are not judged yet. Not printed: hashes can be guessed at.
    #[serde(skip)]
    pub text: Option<SecretString>,
}

/// When an address that guesses passwords is kept from AUTH.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthLimits {
    /// Failures from one address (an IPv6 /64 is one) after which it is kept out.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub failures: u64,
    /// The time in which they must come.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub within: Duration,
    /// How long it is kept out.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub block: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest message in bytes, as SIZE counts them (RFC 1870).
    #[serde(deserialize_with = "de::<Size, _>")]
    pub message: u64,
    /// Recipients per message; at least 100 (RFC 5321 §4.5.3.1.8).
    #[serde(deserialize_with = "de::<Count, _>")]
    pub recipients: u64,
    /// Client connections open at once, all listeners together.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub connections: u64,
    /// Connections open at once from one address.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub per_ip: u64,
    /// Refused commands after which the session is closed.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub errors: u64,
    /// Bytes of the message's header.
    #[serde(deserialize_with = "de::<Size, _>")]
    pub headers: u64,
    /// Bytes of memory that bodies being received share; beyond it they go straight to disk.
    #[serde(deserialize_with = "de::<Size, _>")]
    pub body_buffer: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpTimeouts {
    /// To the first command after the greeting.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub first: Duration,
    /// Between commands.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub idle: Duration,
    /// For one command line to arrive in full.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub command: Duration,
    /// For a TLS handshake.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub handshake: Duration,
    /// Slowest that a message may arrive, in bytes per second over any minute.
    #[serde(deserialize_with = "de::<Rate, _>")]
    pub data_rate: u64,
}

/// The certificate of all listeners with TLS, both files or none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SmtpTls {
    /// PEM chain, the server's own certificate first.
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub cert: Option<PathBuf>,
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub key: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// At least one. Port 0 lets the system choose.
    #[serde(default, deserialize_with = "de::<OneOrMore<Bind>, _>")]
    pub bind: Vec<SocketAddr>,
    /// Clients that may relay without AUTH. Never everybody.
    #[serde(deserialize_with = "de::<List<Net>, _>")]
    pub allow_from: Vec<IpNet>,
    #[serde(deserialize_with = "de::<ListenerTls, _>")]
    pub tls: ListenerTls,
    #[serde(deserialize_with = "de::<ListenerAuth, _>")]
    pub auth: ListenerAuth,
    /// A login is taken without TLS too. Loopback only.
    #[serde(deserialize_with = "de::<Switch, _>")]
    pub auth_clear: bool,
    /// Of mail that no rule of `[[streams]]` matches.
    #[serde(deserialize_with = "de::<OptionalStreamName, _>")]
    pub stream: Option<String>,
    /// Clients may choose a stream by `X-Mailramp-Stream`.
    #[serde(deserialize_with = "de::<Switch, _>")]
    pub stream_header: bool,
}

/// One kind of the application's mail, and what is special about it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Never "default"; no two have the same.
    pub name: String,
    /// Never empty. Listeners by index.
    pub rule: Rule,
    pub route: StreamRoute,
    /// 0 to 100; the higher is served first.
    pub priority: u8,
    /// Part of a day's limit, above 0 up to 1; `None`: all of it.
    pub max_share: Option<f64>,
    /// As it takes effect, like that of `[warmup]`.
    pub overflow: Overflow,
}

/// A server to hand mail to.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// At least one; tried in order.
    pub hosts: Vec<HostPort>,
    /// Name in EHLO; never empty.
    pub helo: String,
    /// Local address to connect from.
    pub source_ip: Option<IpAddr>,
    pub credentials: Option<Credentials>,
    pub tls: UpstreamTls,
    /// Connections open at once.
    pub connections: usize,
    /// Messages sent over one connection before it is closed.
    pub messages_per_connection: u64,
    pub timeouts: UpstreamTimeouts,
    /// Recipients in any 60 seconds; `None`: no cap. Only ever set for the legacy server.
    pub max_per_minute: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Credentials {
    pub user: String,
    pub password: SecretString,
}

#[derive(Clone, Debug)]
pub struct UpstreamTls {
    pub level: TlsLevel,
    /// TLS from the first byte (port 465), no STARTTLS.
    pub implicit: bool,
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTimeouts {
    #[serde(deserialize_with = "de::<Span, _>")]
    pub connect: Duration,
    /// For the reply to one command.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub command: Duration,
    /// For the reply to the final dot (RFC 5321 §4.5.3.2.6).
    #[serde(deserialize_with = "de::<Span, _>")]
    pub data: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// Day 1 in the configured zone. `None`: the day of the first run, which the spool remembers.
    #[serde(default, deserialize_with = "values::de_some::<Day, _>")]
    pub start: Option<Date>,
    #[serde(deserialize_with = "de::<CurveName, _>")]
    pub curve: CurveName,
    /// Recipients per stage, rising; empty unless `curve` is `Custom`. After the last one it grows by `growth`.
    #[serde(deserialize_with = "de::<List<Count>, _>")]
    pub custom: Vec<u64>,
    /// Recipients on day 1 of the `Formula` curve.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub first_day: u64,
    /// Factor from one stage to the next, 1 or more.
    #[serde(deserialize_with = "de::<Decimal, _>")]
    pub growth: f64,
    /// Recipients per day needed in the end; never 0.
    #[serde(default, deserialize_with = "de::<Count, _>")]
    pub target: u64,
    pub advance: Advance,
    /// Times the best day remembered that a limit may reach; 0 is off.
    #[serde(deserialize_with = "de::<Decimal, _>")]
    pub max_step: f64,
    /// Which mailbox providers have a limit of their own beside the total.
    #[serde(deserialize_with = "de::<ProviderLanes, _>")]
    pub providers: Lanes,
    pub pace: Pace,
    pub overflow: Overflow,
    /// Where named curves are looked up; `None`: those of the program.
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub curves_file: Option<PathBuf>,
    /// Where the operators of mail servers are looked up; `None`: those of the program.
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub providers_file: Option<PathBuf>,
    pub brake: BrakeSettings,
    /// Where the meaning of replies is looked up; `None`: the rules of the program.
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub signals_file: Option<PathBuf>,
    /// The rules of `signals_file`, or of the program; filled in when they were read.
    #[serde(skip, default = "program_signals")]
    pub signals: Arc<Signals>,
    /// What `curve` and its numbers come to; filled in when the curves were read.
    #[serde(skip)]
    pub shape: Curve,
    /// What stands in `providers_file`; filled in when it was read.
    #[serde(skip, default = "those_of_the_program")]
    pub operators: Arc<Providers>,
}

fn those_of_the_program() -> Arc<Providers> {
    Providers::embedded().clone()
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advance {
    #[serde(deserialize_with = "de::<AdvanceOn, _>")]
    pub on: AdvanceOn,
    /// Part of the day's limit that must have been sent for the day to count, above 0 up to 1.
    #[serde(deserialize_with = "de::<Share, _>")]
    pub min_used: f64,
}

/// When replies of a provider slow its lane down.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrakeSettings {
    /// Attempts of this time are judged together.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub window: Duration,
    /// Part of them that may be deferred, above 0 up to 1.
    #[serde(deserialize_with = "de::<Share, _>")]
    pub defer_ratio: f64,
    /// Fewer attempts in the window say nothing.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub min_attempts: u64,
    /// How long a brake lasts for which no rule says how long.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub hold: Duration,
    #[serde(deserialize_with = "de::<NextDay, _>")]
    pub next_day: NextDay,
}

fn program_signals() -> Arc<Signals> {
    static SHARED: LazyLock<Arc<Signals>> = LazyLock::new(|| Arc::new(Signals::embedded().clone()));
    SHARED.clone()
}

/// How fast within the day.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    #[serde(deserialize_with = "de::<Hours, _>")]
    pub window: Window,
    /// Part of the day's limit that may leave in any 60 minutes.
    #[serde(deserialize_with = "de::<Share, _>")]
    pub hourly: f64,
    /// Part of the day's limit that may leave at once; never more than `hourly`.
    #[serde(deserialize_with = "de::<Share, _>")]
    pub burst: f64,
}

impl Pace {
    /// Both shares are 100 %: only the day's limit holds.
    pub fn is_off(&self) -> bool {
        self.hourly >= 1.0 && self.burst >= 1.0
    }
}

/// The part of the day in which mail may leave by the new server. `opens_minute < closes_minute <= 1440`, minutes
/// since midnight in the configured zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub opens_minute: u16,
    pub closes_minute: u16,
}

impl Window {
    pub fn hours(self) -> f64 {
        f64::from(self.closes_minute - self.opens_minute) / 60.0
    }
}

/// What happens to mail for which the limit has no room.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overflow {
    /// As it takes effect: without `[legacy]`, `hold-then-legacy` is `Hold`.
    #[serde(deserialize_with = "de::<OverflowPolicy, _>")]
    pub policy: OverflowPolicy,
    /// Longest wait for a token before legacy takes the mail; zero with `Legacy`, without meaning with `Hold`.
    #[serde(deserialize_with = "de::<LongestWait, _>")]
    pub max_wait: MaxWait,
}

impl Overflow {
    /// What it means with or without a legacy server.
    pub(super) fn in_effect(self, has_legacy: bool) -> Overflow {
        match self.policy {
            OverflowPolicy::HoldThenLegacy if !has_legacy => Overflow { policy: OverflowPolicy::Hold, ..self },
            OverflowPolicy::Legacy => Overflow { max_wait: MaxWait::Time(Duration::ZERO), ..self },
            OverflowPolicy::HoldThenLegacy | OverflowPolicy::Hold => self,
        }
    }
}

/// The longest wait for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxWait {
    /// Long enough for a stream that comes in bursts, 15 minutes for others.
    Auto,
    Time(Duration),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSettings {
    /// From when only the server keeps it waiting until a recipient fails; waiting for a token does not use it up.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub max_age: Duration,
    /// Delay after the n-th failed attempt; the last one repeats. Never empty.
    #[serde(deserialize_with = "de::<List<Span>, _>")]
    pub retry: Vec<Duration>,
    /// Part of a delay by which it is varied, 0 to 1.
    #[serde(deserialize_with = "de::<Share, _>")]
    pub jitter: f64,
    pub disk: Disk,
    /// Failures of the new server after which the legacy server may take the mail.
    #[serde(deserialize_with = "de::<List<FallbackOn>, _>")]
    pub fallback_on: Vec<FallbackOn>,
    pub dsn: Dsn,
}

/// Reports to senders.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dsn {
    /// Reports to one sender in any hour; beyond it what failed is kept as a dead letter.
    #[serde(deserialize_with = "de::<Count, _>")]
    pub per_sender_per_hour: u64,
    /// Age of mail at which its sender is told, once, that it is late; `None`: never.
    #[serde(deserialize_with = "de::<DelayNotice, _>")]
    pub delay_notice: Option<Duration>,
}

/// How next hops' names become addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Asked instead of the system's; empty: the system's.
    #[serde(deserialize_with = "de::<List<DnsServer>, _>")]
    pub servers: Vec<SocketAddr>,
    /// For one question, all tries together.
    #[serde(deserialize_with = "de::<Span, _>")]
    pub timeout: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Largest spool, in bytes. Beyond it applications get 452.
    #[serde(deserialize_with = "de::<Size, _>")]
    pub max: u64,
    /// Bytes of the file system that stay free. Below it applications get 452.
    #[serde(deserialize_with = "de::<Size, _>")]
    pub min_free: u64,
}

/// A server's name or IP address, and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A host name, or an IP address without brackets.
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// The address, when the host is one and needs no lookup.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// 127.0.0.0/8, ::1 or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.ip().map_or_else(|| self.host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
