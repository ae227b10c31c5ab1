//! Do the settings go together, and are they safe? Each rule says what the value must be, that is, the remedy.
//!
//! Every rule is judged, whatever the others found; only what depends on a key that is already known to be wrong is
//! left out, so that one mistake is one line.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::ExposeSecret;

use super::choices::*;
use super::keys;
use super::model::*;
use super::streams;
use super::tables::{Tables, UpstreamTable};
use super::values::Raw;
use super::{Fault, Origin};
use crate::message::Timestamp;
use crate::policy::Curve;

/// Collects what is wrong, and knows where each value stands.
pub(super) struct Judge<'a> {
    name: &'a str,
    effective: &'a BTreeMap<String, (Raw, Origin)>,
    sections: BTreeMap<String, Origin>,
    spoiled: Vec<String>,
    pub faults: Vec<Fault>,
    pub warnings: Vec<String>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        name: &'a str,
        effective: &'a BTreeMap<String, (Raw, Origin)>,
        sections: BTreeMap<String, Origin>,
        spoiled: Vec<String>,
    ) -> Self {
        Judge { name, effective, sections, spoiled, faults: Vec::new(), warnings: Vec::new() }
    }

    /// Where the key was set; for a default or an unset key the section it belongs to.
    pub(super) fn origin(&self, key: &str) -> Origin {
        match self.effective.get(key) {
            Some((_, origin)) if *origin != Origin::Default => return origin.clone(),
            _ => {}
        }
        let holds = |section: &str| section == key || keys::is_below(key, section);
        let sections = self.sections.iter().filter(|(section, _)| holds(section));
        let nearest = sections.max_by_key(|(section, _)| section.len()).map(|(_, origin)| origin.clone());
        nearest.unwrap_or_else(|| Origin::WholeFile(self.name.to_owned()))
    }

    /// The first key is the one to change, the others take part; unless one of them is already known to be wrong.
    pub(super) fn fault(&mut self, involved: &[&str], must: &str) {
        let spoiled = |key: &&str| self.spoiled.iter().any(|bad| bad == key || keys::is_below(key, bad));
        if involved.iter().any(spoiled) {
            return;
        }
        let key = involved[0];
        let fault = match self.effective.get(key) {
            Some((raw, _)) => Fault::of_value(self.origin(key), key, &raw.to_string(), must),
            None => Fault::new(self.origin(key), format!("`{key}` is missing: {must}")),
        };
        self.faults.push(fault);
    }

    pub(super) fn require(&mut self, holds: bool, involved: &[&str], must: &str) {
        if !holds {
            self.fault(involved, must);
        }
    }

    /// `unit` turns a bound into what the operator would write.
    fn range<T: PartialOrd + Copy>(&mut self, key: &str, value: T, min: T, max: T, unit: impl Fn(T) -> String) {
        if value < min || value > max {
            self.fault(&[key], &format!("must be from {} to {}", unit(min), unit(max)));
        }
    }

    pub(super) fn count(&mut self, key: &str, value: u64, min: u64, max: u64) {
        self.range(key, value, min, max, |n| n.to_string());
    }

    fn size(&mut self, key: &str, bytes: u64, min: u64, max: u64) {
        self.range(key, bytes, min, max, written_size);
    }

    fn span(&mut self, key: &str, span: Duration, min: Duration, max: Duration) {
        self.range(key, span, min, max, written_span);
    }

    /// `section` is `warmup.overflow` or a stream's.
    pub(super) fn max_wait(&mut self, section: &str, policy: OverflowPolicy, max_wait: MaxWait) {
        let least = match policy {
            OverflowPolicy::HoldThenLegacy => SECOND,
            OverflowPolicy::Legacy | OverflowPolicy::Hold => Duration::ZERO,
        };
        if let MaxWait::Time(time) = max_wait {
            self.span(&format!("{section}.max_wait"), time, least, 7 * DAY);
        }
    }

    /// hold-then-legacy is the default, and without a legacy server it simply means hold.
    pub(super) fn overflow_policy(&mut self, section: &str, policy: OverflowPolicy, has_legacy: bool) {
        if policy == OverflowPolicy::Legacy && !has_legacy {
            let must = "must be \"hold\" or left out when there is no [legacy]; or add [legacy]";
            self.fault(&[&format!("{section}.policy"), "legacy"], must);
        }
    }

    /// The key has a value, be it a default.
    pub(super) fn has(&self, key: &str) -> bool {
        self.effective.contains_key(key)
    }

    pub(super) fn warn(&mut self, key: &str, text: impl fmt::Display) {
        self.warnings.push(format!("{}  {text}", self.origin(key)));
    }
}

/// Judges everything that can be judged without reading further files.
pub(super) fn tables(tables: &Tables, now: Timestamp, judge: &mut Judge<'_>) {
    judge.require(tables.data_dir.is_some(), &["data_dir"], "must name a directory on a durable volume");
    let http = tables.http.bind;
    judge.require(
        http.ip().is_loopback(),
        &["http.bind"],
        &format!(
            "must be a loopback address in this version, such as \"127.0.0.1:{}\": there is no token yet",
            http.port()
        ),
    );
    smtp(&tables.smtp, judge);
    listeners(tables, judge);
    upstream("new", &tables.new, tables, judge);
    if let Some(legacy) = &tables.legacy {
        upstream("legacy", legacy, tables, judge);
        if legacy.host.iter().any(|host| tables.new.host.contains(host)) {
            judge.warn("legacy.host", "new and legacy are the same server: nothing is gained from a ramp");
        }
    }
    match &tables.warmup {
        Some(warmup) => self::warmup(warmup, tables, now, judge),
        None => judge.warnings.push(format!("{}  no [warmup]: nothing is limited", judge.name)),
    }
    streams::judge(tables, judge);
    queue(&tables.queue, &tables.smtp, judge);
    judge.span("dns.timeout", tables.dns.timeout, Duration::from_millis(100), MINUTE);
    judge.require(tables.dns.servers.len() <= DNS_SERVERS_MAX, &["dns.servers"], "must hold at most 8 servers");
}

fn smtp(smtp: &Smtp, judge: &mut Judge<'_>) {
    let Limits { message, recipients, connections, per_ip, errors, headers, body_buffer } = smtp.limits;
    judge.size("smtp.limits.message", message, 64 * KIB, 4 * GIB);
    judge.count("smtp.limits.recipients", recipients, 100, 100_000); // RFC 5321 §4.5.3.1.8
    judge.count("smtp.limits.connections", connections, 1, 1_000_000);
    judge.count("smtp.limits.per_ip", per_ip, 1, 1_000_000);
    judge.count("smtp.limits.errors", errors, 1, 10_000);
    judge.size("smtp.limits.headers", headers, 4 * KIB, 64 * MIB);
    judge.size("smtp.limits.body_buffer", body_buffer, MIB, 64 * GIB);
    let SmtpTimeouts { first, idle, command, handshake, data_rate } = smtp.timeouts;
    for (key, span) in [("first", first), ("idle", idle), ("command", command), ("handshake", handshake)] {
        judge.span(&format!("smtp.timeouts.{key}"), span, SECOND, HOUR);
    }
    judge.range("smtp.timeouts.data_rate", data_rate, 1, GIB, |rate| format!("\"{rate}B/s\""));
    judge.span("smtp.stop_grace", smtp.stop_grace, Duration::ZERO, HOUR);
    let (cert, key) = ("smtp.tls.cert", "smtp.tls.key");
    judge.require(
        smtp.tls.cert.is_some() || smtp.tls.key.is_none(),
        &[cert, key],
        "must be set when `smtp.tls.key` is",
    );
    judge.require(
        smtp.tls.key.is_some() || smtp.tls.cert.is_none(),
        &[key, cert],
        "must be set when `smtp.tls.cert` is",
    );
    let AuthLimits { failures, within, block } = smtp.auth;
    judge.count("smtp.auth.failures", failures, 1, 100);
    judge.span("smtp.auth.within", within, SECOND, DAY);
    judge.span("smtp.auth.block", block, SECOND, DAY);
}

fn listeners(tables: &Tables, judge: &mut Judge<'_>) {
    let mut taken = vec![("http.bind".to_owned(), tables.http.bind)];
    for (index, listener) in tables.listeners.iter().enumerate() {
        let bind = format!("listeners[{index}].bind");
        let allow_from = format!("listeners[{index}].allow_from");
        judge.require(!listener.bind.is_empty(), &[&bind], "must be an address such as \"127.0.0.1:2525\"");
        listener_tls(index, listener, &tables.smtp.tls, judge);
        listener_auth(index, listener, judge);
        for net in listener.allow_from.iter().filter(|net| serves_strangers(net)) {
            judge.fault(&[&allow_from], &format!("must not hold {net}: that is an open relay; name your own networks"));
        }
        for address in &listener.bind {
            if let Some((other, _)) = taken.iter().find(|(_, other)| other == address && address.port() > 0) {
                judge.fault(&[&bind, other], &format!("must not name {address} again, `{other}` has it"));
            }
            taken.push((bind.clone(), *address));
        }
    }
}

fn listener_tls(index: usize, listener: &Listener, files: &SmtpTls, judge: &mut Judge<'_>) {
    if listener.tls != ListenerTls::Off && (files.cert.is_none() || files.key.is_none()) {
        judge.fault(
            &[&format!("listeners[{index}].tls"), "smtp.tls.cert", "smtp.tls.key"],
            "must be \"off\" without a certificate; set `smtp.tls.cert` and `smtp.tls.key`",
        );
    }
}

fn listener_auth(index: usize, listener: &Listener, judge: &mut Judge<'_>) {
    let key = |name: &str| format!("listeners[{index}].{name}");
    let (bind, tls, auth, clear) = (key("bind"), key("tls"), key("auth"), key("auth_clear"));
    if listener.auth == ListenerAuth::Off {
        let allow_from = "must name the networks whose clients may relay, such as [\"127.0.0.0/8\", \"::1\"]: \
                          without them and without a login (`auth`) this listener serves nobody";
        judge.require(!listener.allow_from.is_empty(), &[&key("allow_from"), &auth], allow_from);
        judge.require(!listener.auth_clear, &[&clear, &auth], "must be false when `auth` is \"off\"");
        return;
    }
    let users = "smtp.users.file";
    let has_users = judge.effective.get(users).is_some_and(|(raw, _)| *raw != Raw::Text(String::new()));
    judge.require(has_users, &[&auth, users], "must be \"off\" without users; set `smtp.users.file`");
    if let Some(address) = listener.bind.iter().find(|address| !address.ip().is_loopback())
        && listener.auth_clear
    {
        let must = format!("must be false: passwords would cross a network in clear by {address}; set `tls`");
        judge.fault(&[&clear, &bind], &must);
    } else if listener.tls == ListenerTls::Off && !listener.auth_clear {
        let must = "must be \"starttls\" or \"implicit\" when there is a login; \
                    or set `auth_clear`, on a loopback address";
        judge.fault(&[&tls, &auth, &clear], must);
    }
}

/// Networks so wide that nobody owns them: everybody, and what lets everybody in piece by piece or in disguise.
/// The widest private ones are 10.0.0.0/8 and fc00::/7.
fn serves_strangers(net: &IpNet) -> bool {
    match net {
        IpNet::V4(v4) => v4.prefix_len() < 8,
        IpNet::V6(v6) if v6.contains(&EVERY_IPV4) || v6.addr().to_ipv4_mapped().is_some() => v6.prefix_len() < 96 + 8,
        IpNet::V6(v6) => v6.prefix_len() < 7,
    }
}

fn upstream(section: &str, server: &UpstreamTable, tables: &Tables, judge: &mut Judge<'_>) {
    let key = |name: &str| format!("{section}.{name}");
    let host = key("host");
    if server.host.is_empty() {
        judge.fault(&[&host], "must name a server, such as \"mail2.example.com:587\"");
    }
    for address in &server.host {
        if tables.listeners.iter().flat_map(|l| &l.bind).any(|bind| is_ourselves(address, *bind, &tables.smtp.hostname))
        {
            judge.fault(&[&host], &format!("must not be one of our own listeners: mail to {address} would come back"));
        }
        if let (Some(ip), Some(source)) = (address.ip(), server.source_ip)
            && ip.is_ipv4() != source.is_ipv4()
        {
            let must = format!("must be of the same kind as {address}, IPv4 or IPv6, or \"\"");
            judge.fault(&[&key("source_ip"), &host], &must);
        }
    }
    credentials(section, server, judge);
    judge.count(&key("connections"), server.connections, 1, 10_000);
    judge.count(&key("messages_per_connection"), server.messages_per_connection, 1, 1_000_000);
    judge.range(&key("max_per_minute"), server.max_per_minute, 0, 1_000_000_000, |n| n.to_string());
    let UpstreamTimeouts { connect, command, data } = server.timeouts;
    for (name, span) in [("connect", connect), ("command", command), ("data", data)] {
        judge.span(&key(&format!("timeouts.{name}")), span, SECOND, HOUR);
    }
}

fn credentials(section: &str, server: &UpstreamTable, judge: &mut Judge<'_>) {
    let key = |name: &str| format!("{section}.{name}");
    let (user, password, password_file) = (key("auth.user"), key("auth.password"), key("auth.password_file"));
    let (level, implicit) = (key("tls.level"), key("tls.implicit"));
    let has_password = !server.auth.password.expose_secret().is_empty();
    let has_file = server.auth.password_file.is_some();
    if has_password && has_file {
        judge.fault(&[&password_file, &password], &format!("must be left out when `{password}` is set"));
    }
    if server.auth.user.is_empty() && (has_password || has_file) {
        judge.fault(&[&user, &password, &password_file], "must name the user that the password belongs to");
    }
    if !server.auth.user.is_empty() && !has_password && !has_file {
        let must = format!("must come with a password: set `{password_file}`");
        judge.fault(&[&user, &password, &password_file], &must);
    }
    if !server.auth.user.is_empty()
        && server.tls.level.is_some_and(|level| level != TlsLevel::Verify)
        && let Some(host) = server.host.iter().find(|host| !host.is_loopback())
    {
        let must = format!("must be \"verify\" or left out: credentials go to {host} over verified TLS only");
        judge.fault(&[&level, &user, &key("host")], &must);
    }
    if server.tls.implicit && server.tls.level == Some(TlsLevel::Off) {
        judge.fault(&[&implicit, &level], &format!("must be false when `{level}` is \"off\""));
    }
}

/// Whether a connection to `server` would end at our listener on `bind`.
fn is_ourselves(server: &HostPort, bind: SocketAddr, hostname: &str) -> bool {
    let same_host = match server.ip() {
        Some(ip) if bind.ip().is_unspecified() => ip.is_loopback() || ip.is_unspecified(),
        // 127.0.0.1 and 127.0.0.2 differ, but 0.0.0.0 as a target reaches loopback.
        Some(ip) => ip == bind.ip() || (ip.is_unspecified() && bind.ip().is_loopback()),
        None if bind.ip().is_unspecified() => server.is_loopback() || server.host.eq_ignore_ascii_case(hostname),
        None => server.is_loopback() && LOCALHOST.contains(&bind.ip()),
    };
    same_host && server.port == bind.port()
}

fn warmup(warmup: &Warmup, tables: &Tables, now: Timestamp, judge: &mut Judge<'_>) {
    let recipients = "must be the recipients per day you need in the end, such as 12000";
    match judge.effective.get("warmup.target") {
        None => judge.fault(&["warmup.target"], recipients),
        Some(_) => judge.require((1..=RECIPIENTS_MAX).contains(&warmup.target), &["warmup.target"], recipients),
    }
    curve(warmup, judge);
    let used = "must be above \"0%\"; to count every day, set `warmup.advance.on` to \"calendar\"";
    judge.require(warmup.advance.min_used > 0.0, &["warmup.advance.min_used"], used);
    let step = warmup.max_step;
    judge.require(
        step == 0.0 || (step > 1.0 && step <= 100.0),
        &["warmup.max_step"],
        "must be above 1 up to 100, or 0 for none",
    );
    pace(&warmup.pace, judge);
    let Overflow { policy, max_wait } = warmup.overflow;
    judge.max_wait("warmup.overflow", policy, max_wait);
    judge.overflow_policy("warmup.overflow", policy, tables.legacy.is_some());
    brake(&warmup.brake, judge);
    let today = jiff::Timestamp::from_second(now.seconds()).map(|now| tables.timezone.to_datetime(now).date());
    if let (Some(start), Ok(today)) = (warmup.start, today)
        && start > today
        && tables.legacy.is_none()
    {
        let must = "must not lie in the future without [legacy]: until then no mail could leave; \
                    add [legacy] or begin today";
        judge.fault(&["warmup.start", "legacy"], must);
    }
}

fn curve(warmup: &Warmup, judge: &mut Judge<'_>) {
    let list = &warmup.custom;
    if warmup.curve == CurveName::Custom {
        if list.is_empty() {
            judge.fault(
                &["warmup.custom", "warmup.curve"],
                "must list the recipients of each stage, such as [50, 100, 200]",
            );
        }
        if let Some(bad) = list.iter().find(|n| !(1..=RECIPIENTS_MAX).contains(*n)) {
            judge.fault(&["warmup.custom"], &format!("must hold numbers from 1 to {RECIPIENTS_MAX}, not {bad}"));
        } else if let Some(pair) = list.windows(2).find(|pair| pair[1] < pair[0]) {
            let must = format!("must never fall from one stage to the next; {} comes after {}", pair[1], pair[0]);
            judge.fault(&["warmup.custom"], &must);
        } else if list.len() > Curve::STAGES_MAX {
            judge.fault(&["warmup.custom"], &format!("must hold at most {} numbers", Curve::STAGES_MAX));
        }
    } else if !list.is_empty() {
        let must = format!("must be left out with curve \"{}\", or the curve be \"custom\"", warmup.curve.name());
        judge.fault(&["warmup.custom", "warmup.curve"], &must);
    }
    judge.count("warmup.first_day", warmup.first_day, 1, RECIPIENTS_MAX);
    judge.range("warmup.growth", warmup.growth, 1.0, 10.0, |n| n.to_string());
}

fn pace(pace: &Pace, judge: &mut Judge<'_>) {
    if pace.is_off() {
        return;
    }
    judge.require(
        pace.burst <= pace.hourly,
        &["warmup.pace.burst", "warmup.pace.hourly"],
        &format!("must not be more than `warmup.pace.hourly`, {}", percent(pace.hourly)),
    );
    let least = USABLE_DAY / pace.window.hours();
    // A ten-thousandth of a percent of slack, so that what the message asks for passes.
    if pace.hourly + 1e-6 < least {
        let rounded_up = (least * 1000.0).ceil() / 1000.0;
        let must = if rounded_up <= 1.0 {
            format!("must be at least {} for this window, or the day's limit could not be used", percent(rounded_up))
        } else {
            "must be \"100%\" together with burst = \"100%\" for a window this short; or widen the window".to_owned()
        };
        judge.fault(&["warmup.pace.hourly", "warmup.pace.window"], &must);
    }
}

fn brake(brake: &BrakeSettings, judge: &mut Judge<'_>) {
    judge.span("warmup.brake.window", brake.window, MINUTE, DAY);
    let ratio = "must be above \"0%\"; to brake by rules alone, set it to \"100%\"";
    judge.require(brake.defer_ratio > 0.0, &["warmup.brake.defer_ratio"], ratio);
    judge.count("warmup.brake.min_attempts", brake.min_attempts, 1, 1_000_000);
    judge.span("warmup.brake.hold", brake.hold, MINUTE, 7 * DAY);
}

fn queue(queue: &QueueSettings, smtp: &Smtp, judge: &mut Judge<'_>) {
    judge.span("queue.max_age", queue.max_age, MINUTE, 60 * DAY);
    let retry = "must hold 1 to 100 delays from \"1s\" to \"1d\", such as [\"1m\", \"5m\", \"1h\"]";
    let delays = queue.retry.iter().all(|delay| (SECOND..=DAY).contains(delay));
    judge.require((1..=100).contains(&queue.retry.len()) && delays, &["queue.retry"], retry);
    let message = smtp.limits.message;
    judge.require(
        queue.disk.max >= message,
        &["queue.disk.max", "smtp.limits.message"],
        &format!("must be at least `smtp.limits.message`, {}", written_size(message)),
    );
    judge.size("queue.disk.min_free", queue.disk.min_free, MIB, 1024 * GIB);
    judge.count("queue.dsn.per_sender_per_hour", queue.dsn.per_sender_per_hour, 1, 1_000_000);
    if let Some(late) = queue.dsn.delay_notice {
        judge.span("queue.dsn.delay_notice", late, MINUTE, 60 * DAY);
        let must = format!("must be less than `queue.max_age`, {}", written_span(queue.max_age));
        judge.require(late < queue.max_age, &["queue.dsn.delay_notice", "queue.max_age"], &must);
    }
}

fn percent(share: f64) -> String {
    format!("\"{}%\"", (share * 1e5).round() / 1e3)
}

fn written_size(bytes: u64) -> String {
    let units = [("GiB", GIB), ("MB", 1_000_000), ("MiB", MIB), ("KiB", KIB), ("B", 1)];
    let (unit, worth) =
        units.into_iter().find(|(_, worth)| bytes >= *worth && bytes.is_multiple_of(*worth)).unwrap_or(("B", 1));
    format!("\"{}{unit}\"", bytes / worth)
}

fn written_span(span: Duration) -> String {
    let units = [("d", DAY), ("h", HOUR), ("m", MINUTE)];
    let seconds = span.as_secs();
    let whole = |worth: &Duration| seconds >= worth.as_secs() && seconds.is_multiple_of(worth.as_secs());
    let (unit, worth) = units.into_iter().find(|(_, worth)| whole(worth)).unwrap_or(("s", SECOND));
    format!("\"{}{unit}\"", seconds / worth.as_secs())
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const DNS_SERVERS_MAX: usize = 8;
const RECIPIENTS_MAX: u64 = 1_000_000_000_000; // far beyond any sender, and exact as f64
/// The hourly shares of a day together, at least: below 110 % a day that starts late could not be used.
const USABLE_DAY: f64 = 1.1;
/// Where ::ffff:0:0/96 begins, IPv4 in the clothes of IPv6.
const EVERY_IPV4: Ipv6Addr = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
