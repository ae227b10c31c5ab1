//! Every key: how its value is written and what it is when nobody sets it.
//!
//! The one table that the strict pass, the default layer, the environment and `config show` share. A key that is
//! documented but not built yet stands in [`LATER`], so that its refusal can say so.

use std::sync::LazyLock;

use super::choices::*;
use super::providers::ProviderLanes;
use super::values::*;

/// One key of a table of the settings file.
#[derive(Debug)]
pub(super) struct Key {
    /// Relative to its section, such as `limits.message`.
    path: &'static str,
    pub shape: Shape,
    pub check: fn(&Raw) -> Result<(), String>,
    /// As TOML; `None` when there is no default.
    pub default: Option<&'static str>,
    /// Its value is never printed.
    pub secret: bool,
}

const fn key<S: Setting>(path: &'static str, default: &'static str) -> Key {
    Key { path, shape: S::SHAPE, check: check::<S>, default: Some(default), secret: false }
}

const fn unset<S: Setting>(path: &'static str) -> Key {
    Key { path, shape: S::SHAPE, check: check::<S>, default: None, secret: false }
}

const fn secret(key: Key) -> Key {
    Key { secret: true, ..key }
}

fn check<S: Setting>(raw: &Raw) -> Result<(), String> {
    S::read(raw).map(drop)
}

/// Section and its keys, in the order of the documentation. `""` is the top of the file.
const SECTIONS: &[(&str, &[Key])] = &[
    (
        "",
        &[
            key::<OptionalPath>("data_dir", r#""data""#),
            key::<Zone>("timezone", r#""UTC""#),
            key::<LogFormat>("log.format", r#""auto""#),
            key::<LogLevel>("log.level", r#""info""#),
            key::<LogAddresses>("log.addresses", r#""masked""#),
            key::<Bind>("http.bind", r#""127.0.0.1:8825""#),
        ],
    ),
    (
        "smtp",
        &[
            key::<MailName>("hostname", r#""""#),
            key::<Size>("limits.message", r#""25MB""#),
            key::<Count>("limits.recipients", "1000"),
            key::<Count>("limits.connections", "2000"),
            key::<Count>("limits.per_ip", "100"),
            key::<Count>("limits.errors", "20"),
            key::<Size>("limits.headers", r#""256KiB""#),
            key::<Size>("limits.body_buffer", r#""32MiB""#),
            key::<Span>("timeouts.first", r#""10s""#),
            key::<Span>("timeouts.idle", r#""5m""#),
            key::<Span>("timeouts.command", r#""5m""#),
            key::<Span>("timeouts.handshake", r#""30s""#),
            key::<Rate>("timeouts.data_rate", r#""500B/s""#),
            key::<OptionalPath>("tls.cert", r#""""#),
            key::<OptionalPath>("tls.key", r#""""#),
            key::<Span>("stop_grace", r#""30s""#),
            key::<List<Net>>("normalize_from", "[]"),
            key::<BareNewline>("bare_newline", r#""reject""#),
            key::<OptionalPath>("users.file", r#""""#),
            key::<Count>("auth.failures", "20"),
            key::<Span>("auth.within", r#""10m""#),
            key::<Span>("auth.block", r#""10m""#),
        ],
    ),
    ("new", UPSTREAM),
    ("legacy", UPSTREAM),
    ("legacy", &[key::<Count>("max_per_minute", "0")]),
    (
        "warmup",
        &[
            unset::<Day>("start"),
            key::<CurveName>("curve", r#""standard""#),
            key::<List<Count>>("custom", "[]"),
            key::<Count>("first_day", "50"),
            key::<Decimal>("growth", "1.5"),
            unset::<Count>("target"),
            key::<AdvanceOn>("advance.on", r#""sending-day""#),
            key::<Share>("advance.min_used", r#""50%""#),
            key::<Decimal>("max_step", "2.0"),
            key::<ProviderLanes>("providers", r#""auto""#),
            key::<Hours>("pace.window", r#""00:00-24:00""#),
            key::<Share>("pace.hourly", r#""20%""#),
            key::<Share>("pace.burst", r#""2%""#),
            key::<OverflowPolicy>("overflow.policy", r#""hold-then-legacy""#),
            key::<LongestWait>("overflow.max_wait", r#""15m""#),
            key::<OptionalPath>("curves_file", r#""""#),
            key::<OptionalPath>("providers_file", r#""""#),
            key::<Span>("brake.window", r#""15m""#),
            key::<Share>("brake.defer_ratio", r#""10%""#),
            key::<Count>("brake.min_attempts", "20"),
            key::<Span>("brake.hold", r#""1h""#),
            key::<NextDay>("brake.next_day", r#""repeat""#),
            key::<OptionalPath>("signals_file", r#""""#),
        ],
    ),
    (
        "queue",
        &[
            key::<Span>("max_age", r#""5d""#),
            key::<List<Span>>("retry", r#"["1m", "5m", "15m", "30m", "1h"]"#),
            key::<Share>("jitter", r#""10%""#),
            key::<Size>("disk.max", r#""20GB""#),
            key::<Size>("disk.min_free", r#""500MB""#),
            key::<List<FallbackOn>>("fallback_on", r#"["connect", "tls", "auth", "reputation"]"#),
            key::<Count>("dsn.per_sender_per_hour", "60"),
            key::<DelayNotice>("dsn.delay_notice", r#""off""#),
        ],
    ),
    ("dns", &[key::<List<DnsServer>>("servers", "[]"), key::<Span>("timeout", r#""5s""#)]),
];

const UPSTREAM: &[Key] = &[
    unset::<OneOrMore<Host>>("host"),
    key::<MailName>("helo", r#""""#),
    key::<LocalIp>("source_ip", r#""""#),
    key::<Text>("auth.user", r#""""#),
    secret(key::<Secret>("auth.password", r#""""#)),
    key::<OptionalPath>("auth.password_file", r#""""#),
    key::<OptionalTlsLevel>("tls.level", r#""""#),
    key::<Switch>("tls.implicit", "false"),
    key::<OptionalPath>("tls.ca_file", r#""""#),
    key::<Count>("connections", "20"),
    key::<Count>("messages_per_connection", "100"),
    key::<Span>("timeouts.connect", r#""30s""#),
    key::<Span>("timeouts.command", r#""5m""#),
    key::<Span>("timeouts.data", r#""10m""#),
];

/// The keys of one `[[listeners]]`.
pub(super) const LISTENER: &[Key] = &[
    unset::<OneOrMore<Bind>>("bind"),
    key::<List<Net>>("allow_from", "[]"),
    key::<ListenerTls>("tls", r#""off""#),
    key::<ListenerAuth>("auth", r#""off""#),
    key::<Switch>("auth_clear", "false"),
    key::<OptionalStreamName>("stream", r#""""#),
    key::<Switch>("stream_header", "false"),
];

/// The keys of one `[[streams]]`.
pub(super) const STREAM: &[Key] = &[
    unset::<StreamName>("name"),
    unset::<OneOrMore<Author>>("match.from"),
    unset::<OneOrMore<Word>>("match.auth_user"),
    unset::<OneOrMore<Word>>("match.header"),
    unset::<OneOrMore<Bind>>("match.listener"),
    unset::<OneOrMore<Net>>("match.client"),
    key::<StreamRoute>("route", r#""ramp""#),
    key::<Count>("priority", "50"),
    key::<Share>("max_share", r#""100%""#),
    unset::<OverflowPolicy>("overflow.policy"),
    unset::<LongestWait>("overflow.max_wait"),
];

/// Arrays of tables, each with the keys of one of its tables. They come from the file only.
pub(super) const ARRAYS: [(&str, &[Key]); 2] = [("listeners", LISTENER), ("streams", STREAM)];

/// The listener there is when the file has none.
pub(super) const DEFAULT_LISTENER: &[(&str, &str)] =
    &[("bind", r#""127.0.0.1:2525""#), ("allow_from", r#"["127.0.0.0/8", "::1"]"#)];

/// Sections that are switched on by being there.
pub(super) const OPTIONAL_SECTIONS: [&str; 2] = ["legacy", "warmup"];

/// Documented, not built yet. A name stands for all that is below it.
const LATER: &[&str] = &["http.token_file", "http.allowed_hosts", "preflight"];

static ALL: LazyLock<Vec<(String, &'static Key)>> = LazyLock::new(|| {
    let path = |section: &str, key: &Key| match section {
        "" => key.path.to_owned(),
        section => format!("{section}.{}", key.path),
    };
    SECTIONS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (path(section, key), key))).collect()
});

impl Key {
    /// Its name inside its table, for the keys of an array of tables.
    pub(super) fn name(&self) -> &'static str {
        self.path
    }
}

/// Every key outside the [`ARRAYS`] with its full path, in the order of the documentation.
pub(super) fn all() -> &'static [(String, &'static Key)] {
    &ALL
}

/// The key of this full path; `listeners[0].bind` finds the listener's `bind`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    match in_array(path) {
        Some((keys, name)) => keys.iter().find(|key| key.path == name),
        None => all().iter().find(|(known, _)| known == path).map(|(_, key)| *key),
    }
}

/// The keys of the array that `listeners[0].bind` lies in, and what it is called there.
fn in_array(path: &str) -> Option<(&'static [Key], &str)> {
    let (array, rest) = path.split_once('[')?;
    let (_, keys) = ARRAYS.into_iter().find(|(name, _)| *name == array)?;
    rest.split_once("].").map(|(_, name)| (keys, name))
}

/// Whether this path is a table that holds keys.
pub(super) fn is_section(path: &str) -> bool {
    match in_array(path) {
        Some((keys, name)) => keys.iter().any(|key| is_below(key.path, name)),
        None => all().iter().any(|(known, _)| is_below(known, path)),
    }
}

/// Whether `path` is documented for a later version.
pub(super) fn is_later(path: &str) -> bool {
    LATER.iter().any(|later| *later == path || is_below(path, later))
}

/// Whether `path` lies in the table `section`.
pub(super) fn is_below(path: &str, section: &str) -> bool {
    path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.') || rest.starts_with('['))
}

/// What an unknown key may have been meant to be: a name like it in the same table, or the same name in another.
/// The answer is relative to `table` in the first case and a full path in the second.
pub(super) fn suggestion(table: &str, name: &str) -> Option<String> {
    let same_table = || all().iter().filter_map(|(path, _)| inside(path, table));
    let (array, inner) = match table.split_once('[') {
        Some((array, rest)) => (array, rest.split_once("].").map_or("", |(_, inner)| inner)),
        None => ("", ""),
    };
    let keys = ARRAYS.iter().filter(|(name, _)| *name == array).flat_map(|(_, keys)| keys.iter());
    let in_array = keys.filter_map(|key| inside(key.path, inner));
    let top = ARRAYS.iter().map(|(name, _)| *name).filter(|_| table.is_empty());
    if let Some(known) = nearest(name, same_table().chain(in_array).chain(top)) {
        return Some(known.to_owned());
    }
    let elsewhere = all().iter().map(|(path, _)| path).find(|path| path.rsplit('.').next() == Some(name));
    elsewhere.cloned()
}

/// The one of `known` that `name` may have been meant to be.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, known) = known.map(|known| (distance(known, name), known)).min()?;
    (distance <= (name.chars().count() / 3).clamp(1, 2)).then_some(known)
}

/// The next name of `path` after `table`.
fn inside<'a>(path: &'a str, table: &str) -> Option<&'a str> {
    let rest = if table.is_empty() { path } else { path.strip_prefix(table)?.strip_prefix('.')? };
    rest.split('.').next()
}

/// Letters to insert, drop, replace or swap with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_its_key_takes() {
        for (path, key) in all()
            .iter()
            .map(|(path, key)| (path.as_str(), *key))
            .chain(ARRAYS.iter().flat_map(|(_, keys)| keys.iter()).map(|k| (k.path, k)))
        {
            let Some(default) = key.default else { continue };
            assert_eq!((key.check)(&super::super::strict::literal(default)), Ok(()), "{path}");
        }
    }

    #[test]
    fn a_slip_of_the_pen_finds_its_key() {
        assert_eq!(suggestion("warmup", "tarket").as_deref(), Some("target"));
        assert_eq!(suggestion("warmup", "max-step").as_deref(), Some("max_step"));
        assert_eq!(suggestion("", "wramup").as_deref(), Some("warmup"));
        assert_eq!(suggestion("", "listener").as_deref(), Some("listeners"));
        assert_eq!(suggestion("listeners[0]", "alow_from").as_deref(), Some("allow_from"));
        assert_eq!(suggestion("streams[3]", "max-share").as_deref(), Some("max_share"));
        assert_eq!(suggestion("streams[3].match", "form").as_deref(), Some("from"));
        assert_eq!(suggestion("", "stream").as_deref(), Some("streams"));
        assert_eq!(suggestion("", "hostname").as_deref(), Some("smtp.hostname"));
        assert_eq!(suggestion("warmup", "colour"), None);
    }

    #[test]
    fn a_key_for_later_is_known_with_all_below_it() {
        assert!(is_later("preflight") && is_later("preflight.lists"));
        assert!(!is_later("preflightx") && !is_later("smtp.hostname"));
    }
}
