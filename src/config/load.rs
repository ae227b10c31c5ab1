//! Defaults, file and environment over each other; then names, paths and secrets resolved.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use config::{ConfigError, Map, Source, Value, ValueKind};
use secrecy::{ExposeSecret, SecretString};

use super::curves;
use super::keys;
use super::rules::{self, Unread};
use super::streams;
use super::strict::{self, Layer};
use super::tables::{AuthTable, Tables, UpstreamTable};
use super::validate::{self, Judge};
use super::values::Raw;
use super::{
    ConfigFaults, Credentials, CurveName, Fault, HostPort, Loaded, Origin, Settings, SmtpTls, TlsLevel, Upstream,
    UpstreamTls, UsersSettings, Warmup,
};
use crate::message::Timestamp;
use crate::policy::{Providers, Signals};

/// A settings file that was read, and what its surroundings are.
pub(super) struct Input<'a> {
    pub text: &'a str,
    pub name: &'a str,
    /// Relative paths start here.
    pub folder: PathBuf,
    /// `None` when the text comes from the program itself.
    pub file: Option<&'a Path>,
    pub now: Timestamp,
}

pub(super) fn read_text(path: &Path) -> Result<String, Fault> {
    let fault = |message| Fault::new(Origin::WholeFile(path.display().to_string()), message);
    let bytes = read_bounded(path, FILE_MAX_BYTES).map_err(|why| fault(format!("cannot read the settings: {why}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.iter().filter(|c| **c == b'\n').count() + 1;
        fault(format!("line {line} is not UTF-8; save the file as UTF-8"))
    })
}

pub(super) fn load(input: Input<'_>, env: impl Iterator<Item = (String, String)>) -> Result<Loaded, ConfigFaults> {
    let mut file = strict::file(input.text, input.name);
    let mut environment = strict::environment(env);
    let mut faults = std::mem::take(&mut file.faults);
    faults.append(&mut environment.faults);
    if file.syntax_error {
        return Err(ConfigFaults(faults));
    }
    let mut spoiled = std::mem::take(&mut file.spoiled);
    spoiled.append(&mut environment.spoiled);

    let defaults = defaults(&file, &environment);
    let mut tables_of = file.tables.clone();
    tables_of.extend(&defaults.tables);
    let tables = merge([&defaults, &file, &environment])
        .map_err(|error| ConfigFaults(vec![Fault::new(Origin::WholeFile(input.name.to_owned()), error.to_string())]))?;
    let sections = file.sections.iter().cloned().collect();
    let layers = [defaults, file, environment];
    let mut effective = BTreeMap::new();
    for (key, raw, origin) in layers.into_iter().flat_map(|layer| layer.entries) {
        let raw = if is_secret(&key, &raw) { Raw::Text(strict::HIDDEN.to_owned()) } else { raw };
        effective.insert(key, (raw, origin));
    }

    let mut judge = Judge::new(input.name, &effective, sections, spoiled);
    validate::tables(&tables, input.now, &mut judge);
    let settings = resolve(tables, &input, &mut judge);
    let warnings = std::mem::take(&mut judge.warnings);
    faults.append(&mut judge.faults);
    if faults.is_empty() {
        return Ok(Loaded { settings, warnings, name: input.name.to_owned(), effective, tables: tables_of });
    }
    faults.sort();
    faults.dedup();
    Err(ConfigFaults(faults))
}

/// From here on nobody prints it, not even by mistake.
fn is_secret(key: &str, raw: &Raw) -> bool {
    keys::find(key).is_some_and(|key| key.secret) && *raw != Raw::Text(String::new())
}

/// The coded defaults; those of an optional section only where the file or the environment opens it.
fn defaults(file: &Layer, environment: &Layer) -> Layer {
    let opened = |section: &str| {
        file.sections.iter().any(|(path, _)| path == section)
            || environment.entries.iter().any(|(key, ..)| keys::is_below(key, section))
    };
    let absent = keys::OPTIONAL_SECTIONS.into_iter().filter(|section| !opened(section)).collect::<Vec<_>>();
    let mut layer = Layer::default();
    let mut add = |path: String, default: &str| layer.entries.push((path, strict::literal(default), Origin::Default));
    for (path, key) in keys::all() {
        if let Some(default) = key.default
            && !absent.iter().any(|section| keys::is_below(path, section))
        {
            add(path.clone(), default);
        }
    }
    let written = |array| file.tables.get(array).copied().unwrap_or(0);
    for (array, least) in [("listeners", 1), ("streams", 0)] {
        let (_, keys) = keys::ARRAYS.into_iter().find(|(name, _)| *name == array).expect("both are in there");
        for index in 0..written(array).max(least) {
            for key in keys {
                if let Some(default) = key.default {
                    add(format!("{array}[{index}].{}", key.name()), default);
                }
            }
        }
    }
    if written("listeners") == 0 {
        for (name, default) in keys::DEFAULT_LISTENER {
            add(format!("listeners[0].{name}"), default);
        }
        layer.tables.insert("listeners", 1);
    }
    layer
}

/// Later layers win. The values were checked one by one before, so `config` finds nothing to convert.
fn merge(layers: [&Layer; 3]) -> Result<Tables, ConfigError> {
    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer.clone());
    }
    builder.build()?.try_deserialize()
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.entries.iter().map(|(key, raw, origin)| (key.clone(), value(raw, &origin.to_string()))).collect())
    }
}

fn value(raw: &Raw, origin: &String) -> Value {
    let kind = match raw {
        Raw::Text(text) | Raw::Date(text) | Raw::Other(text) => ValueKind::String(text.clone()),
        Raw::Integer(n) => ValueKind::I64(*n),
        Raw::Decimal(n) => ValueKind::Float(*n),
        Raw::Switch(on) => ValueKind::Boolean(*on),
        Raw::List(items) => ValueKind::Array(items.iter().map(|item| value(item, origin)).collect()),
        Raw::Table(entries) => {
            ValueKind::Table(entries.iter().map(|(name, inner)| (name.clone(), value(inner, origin))).collect())
        }
    };
    Value::new(Some(origin), kind)
}

fn resolve(tables: Tables, input: &Input<'_>, judge: &mut Judge<'_>) -> Settings {
    let mut smtp = tables.smtp;
    if smtp.hostname.is_empty() {
        smtp.hostname = system_hostname();
    }
    front_tls(&mut smtp.tls, input, judge);
    users(&mut smtp.users, input, judge);
    let legacy = tables.legacy.map(|table| upstream("legacy", table, &smtp.hostname, input, judge));
    let streams = streams::resolve(tables.streams, &tables.listeners, tables.warmup.as_ref(), legacy.is_some());
    let warmup = tables.warmup.map(|mut warmup| {
        warmup.overflow = warmup.overflow.in_effect(legacy.is_some());
        warmup.curves_file = warmup.curves_file.map(|path| input.folder.join(path));
        warmup.signals_file = warmup.signals_file.map(|path| input.folder.join(path));
        shape(&mut warmup, judge);
        warmup.providers_file = warmup.providers_file.map(|path| input.folder.join(path));
        operators(&mut warmup, judge);
        signals(&mut warmup, judge);
        warmup
    });
    Settings {
        data_dir: input.folder.join(tables.data_dir.unwrap_or_default()),
        timezone: tables.timezone,
        log: tables.log,
        http: tables.http,
        listeners: tables.listeners,
        new: upstream("new", tables.new, &smtp.hostname, input, judge),
        legacy,
        warmup,
        streams,
        queue: tables.queue,
        dns: tables.dns,
        smtp,
    }
}

/// Looks the curve up. Numbers that `validate` has refused get no second fault.
fn shape(warmup: &mut Warmup, judge: &mut Judge<'_>) {
    let presets = match curves::read(warmup.curves_file.as_deref()) {
        Ok(presets) => presets,
        Err(unread) => return refuse("warmup.curves_file", unread, judge),
    };
    match curves::shape(warmup, &presets) {
        Ok(curve) => warmup.shape = curve,
        Err(must) if matches!(warmup.curve, CurveName::Named(_)) => judge.fault(&["warmup.curve"], &must),
        Err(_) => return,
    }
    if warmup.shape.highest().is_some_and(|highest| highest < warmup.target as f64) {
        judge.warn("warmup.curve", "the curve stands still below the target and never ends; choose one that grows on");
    }
}

/// Reads who runs which mail servers.
fn operators(warmup: &mut Warmup, judge: &mut Judge<'_>) {
    let Some(path) = &warmup.providers_file else { return };
    match rules::read(path, "providers", Providers::parse) {
        Ok(providers) => warmup.operators = Arc::new(providers),
        Err(unread) => refuse("warmup.providers_file", unread, judge),
    }
}

/// Without a file of the operator's the rules of the program stay.
fn signals(warmup: &mut Warmup, judge: &mut Judge<'_>) {
    let Some(path) = &warmup.signals_file else { return };
    let operators = warmup.operators.clone();
    match rules::read(path, "rules for replies", |text| Signals::parse(text, &operators)) {
        Ok(signals) => warmup.signals = Arc::new(signals),
        Err(unread) => refuse("warmup.signals_file", unread, judge),
    }
}

fn refuse(key: &str, unread: Unread, judge: &mut Judge<'_>) {
    match unread {
        Unread::File(must) => judge.fault(&[key], &must),
        Unread::Faults(mut faults) => judge.faults.append(&mut faults),
    }
}

/// Finds the files; what is in them is read at start.
fn front_tls(tls: &mut SmtpTls, input: &Input<'_>, judge: &mut Judge<'_>) {
    for (key, path) in [("smtp.tls.cert", &mut tls.cert), ("smtp.tls.key", &mut tls.key)] {
        let Some(path) = path else { continue };
        *path = input.folder.join(&*path);
        if let Err(why) = fs::File::open(&path) {
            judge.fault(&[key], &format!("must be a PEM file that can be read; {}: {why}", path.display()));
        }
    }
    if let Some(path) = &tls.key
        && let Some(mode) = mode_open_to_others(path)
    {
        let shown = path.display();
        let must = format!("must not be readable by others: {shown} has mode {mode:03o}; chmod 600 {shown}");
        judge.fault(&["smtp.tls.key"], &must);
    }
}

fn upstream(section: &str, table: UpstreamTable, hostname: &str, input: &Input<'_>, judge: &mut Judge<'_>) -> Upstream {
    let credentials = credentials(section, table.auth, input, judge);
    let ca_file = table.tls.ca_file.map(|path| input.folder.join(path));
    if let Some(path) = &ca_file
        && let Err(why) = fs::File::open(path)
    {
        let must = format!("must be a file of PEM certificates that can be read; {}: {why}", path.display());
        judge.fault(&[&format!("{section}.tls.ca_file")], &must);
    }
    let level = table.tls.level.unwrap_or(if credentials.is_some() { TlsLevel::Verify } else { TlsLevel::May });
    let helo = if table.helo.is_empty() { hostname.to_owned() } else { table.helo };
    if !helo.contains(['.', ':']) && !table.host.iter().all(HostPort::is_loopback) {
        let text = "is not a full host name, and servers may refuse it; set smtp.hostname";
        judge.warn(&format!("{section}.helo"), format!("the EHLO name `{helo}` {text} or {section}.helo"));
    }
    Upstream {
        hosts: table.host,
        helo,
        source_ip: table.source_ip,
        credentials,
        tls: UpstreamTls { level, implicit: table.tls.implicit, ca_file },
        connections: usize::try_from(table.connections).unwrap_or(usize::MAX),
        messages_per_connection: table.messages_per_connection,
        timeouts: table.timeouts,
        max_per_minute: Some(table.max_per_minute).filter(|most| *most > 0),
    }
}

/// Reads the users file, so that the settings are one thing with it; who is in it is judged where users are known.
fn users(users: &mut UsersSettings, input: &Input<'_>, judge: &mut Judge<'_>) {
    let Some(file) = &mut users.file else { return };
    *file = input.folder.join(&*file);
    match read_private_text(file, USERS_MAX_BYTES, "the users, one a line") {
        Ok(text) => users.text = Some(text),
        Err(must) => judge.fault(&["smtp.users.file"], &must),
    }
}

/// The combinations were judged before; here the secret itself is fetched.
fn credentials(section: &str, auth: AuthTable, input: &Input<'_>, judge: &mut Judge<'_>) -> Option<Credentials> {
    let key = |name: &str| format!("{section}.auth.{name}");
    let mut password = auth.password;
    if !password.expose_secret().is_empty()
        && matches!(judge.origin(&key("password")), Origin::File { .. })
        && let Some(mode) = input.file.and_then(mode_open_to_others)
    {
        let must = format!(
            "must not stand in a file that others can read (mode {mode:03o}); chmod 600 {}, or use password_file",
            input.name
        );
        judge.fault(&[&key("password")], &must);
    }
    if let Some(path) = auth.password_file {
        match read_secret(&input.folder.join(path)) {
            Ok(secret) => password = secret,
            Err(must) => judge.fault(&[&key("password_file")], &must),
        }
    }
    (!auth.user.is_empty()).then_some(Credentials { user: auth.user, password })
}

/// The first and only line of a file that others cannot read. `Err` says what it must be.
fn read_secret(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let text = read_private_text(path, SECRET_MAX_BYTES, "the password")?;
    let text = text.expose_secret();
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.contains(['\0', '\r', '\n']) {
        return Err(format!("must be a file of one line, the password; {shown} is empty or has more"));
    }
    Ok(SecretString::from(line))
}

/// A file that others cannot read. `Err` says what it must be.
fn read_private_text(path: &Path, max_bytes: u64, holds: &str) -> Result<SecretString, String> {
    let shown = path.display();
    if let Some(mode) = mode_open_to_others(path) {
        return Err(format!("must not be readable by others: {shown} has mode {mode:03o}; chmod 600 {shown}"));
    }
    let bytes =
        read_bounded(path, max_bytes).map_err(|why| format!("must be a file that holds {holds}; {shown}: {why}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("must be a file of UTF-8 text; {shown} is not"))?;
    Ok(SecretString::from(text))
}

/// The permission bits, when anybody but owner and group has one. A file that cannot be looked at has none: reading
/// it will say why.
fn mode_open_to_others(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o007 != 0).then_some(mode)
}

pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let about = file.metadata().map_err(|error| error.to_string())?;
    if about.is_dir() {
        return Err("is a directory".to_owned());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.size().min(max_bytes)).unwrap_or(0));
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!("is larger than {max_bytes} bytes"));
    }
    Ok(bytes)
}

/// What the kernel calls this machine; `localhost` where it does not say.
fn system_hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
    let name = name.unwrap_or_default().trim().to_owned();
    let usable = name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if name.is_empty() || !usable { "localhost".to_owned() } else { name }
}

pub(super) const FILE_MAX_BYTES: u64 = 1 << 20; // far beyond any settings file, small enough to read whole
const SECRET_MAX_BYTES: u64 = 4096;
const USERS_MAX_BYTES: u64 = 1 << 20; // about 8,000 users
