//! The log: one event per line on standard output, as logfmt, JSON or, for people, with colours.
//!
//! Write an event as `tracing::info!(event = "smtp.accepted", id = %id, stream, rcpts = 2, bytes)`. The names of events
//! and fields are those of the operator's manual; `ts` and `level` are added here, free text comes out as `msg`.
//!
//! Promises: no control octet, line break or direction mark of a value reaches the output, whatever a client or a next
//! hop sent (neither the log nor the reader's terminal can be injected into); a value is cut at
//! [`VALUE_MAX_CHARS`]; addresses pass [`mask`] and show no more than the configured [`Addresses`].
//!
//! Each line is one write. Spans are not shown: a line must mean something by itself.

use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::clock::{Clock, SystemClock};
use crate::message::Timestamp;

/// Longest value in a line; the rest becomes `…`.
pub const VALUE_MAX_CHARS: usize = 1_024;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Pretty on a terminal, else logfmt.
    #[default]
    Auto,
    Json,
    Logfmt,
    Pretty,
}

/// How much of an address is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// `d***@outlook.com`
    #[default]
    Masked,
    /// `h-5f1c9a03b7e2@outlook.com`: equal addresses are equal within one run of the program, and cannot be guessed
    /// back by trying, as the key is drawn at start and never leaves the process.
    Hashed,
    Full,
}

impl FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Format::Auto),
            "json" => Ok(Format::Json),
            "logfmt" => Ok(Format::Logfmt),
            "pretty" => Ok(Format::Pretty),
            _ => Err(format!("`{text}` is not a log format: auto, json, logfmt or pretty")),
        }
    }
}

impl FromStr for Addresses {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "masked" => Ok(Addresses::Masked),
            "hashed" => Ok(Addresses::Hashed),
            "full" => Ok(Addresses::Full),
            _ => Err(format!("`{text}` is not a way to show addresses: masked, hashed or full")),
        }
    }
}

static ADDRESSES: AtomicU8 = AtomicU8::new(Addresses::Masked as u8);

type ChangeLevel = Box<dyn Fn(Level) + Send + Sync>;
static CHANGE_LEVEL: OnceLock<ChangeLevel> = OnceLock::new();

/// Starts the log of this process. Once; a second call changes nothing and returns false.
///
/// `level` applies to mailramp; libraries are heard from `warn` on.
pub fn init(format: Format, level: Level, addresses: Addresses) -> bool {
    let terminal = io::stdout().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    show_addresses(addresses);
    let (subscriber, change) = subscriber(Lines::new(format, terminal, colour), level, io::stdout);
    let _ = CHANGE_LEVEL.set(change);
    // Also brings in what libraries say through the `log` crate.
    subscriber.try_init().is_ok()
}

/// Like [`init`], into a file: as logfmt, for a command that has the terminal for itself.
pub fn init_file(file: std::fs::File, level: Level, addresses: Addresses) -> bool {
    show_addresses(addresses);
    subscriber(Lines::new(Format::Logfmt, false, false), level, std::sync::Mutex::new(file)).0.try_init().is_ok()
}

/// From the next event on; nothing when the log was not started by [`init`].
pub fn change_level(level: Level) {
    if let Some(change) = CHANGE_LEVEL.get() {
        change(level);
    }
}

/// How addresses appear from the next event on.
pub fn show_addresses(addresses: Addresses) {
    ADDRESSES.store(addresses as u8, Ordering::Relaxed);
}

fn subscriber<W>(lines: Lines, level: Level, writer: W) -> (impl Subscriber + Send + Sync, ChangeLevel)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .event_format(lines)
        .with_writer(writer)
        .with_env_filter(filter(level))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // It fails only when the subscriber is gone, and with it whoever would notice.
    (builder.finish(), Box::new(move |level| drop(handle.reload(filter(level)))))
}

fn filter(level: Level) -> EnvFilter {
    let others = level.min(Level::WARN);
    EnvFilter::new(format!("{others},mailramp={level}"))
}

/// An address as the log and the queue listing show it. `<>` for the null sender.
pub fn mask(address: &[u8]) -> String {
    let shown = ADDRESSES.load(Ordering::Relaxed);
    [Addresses::Hashed, Addresses::Full].into_iter().find(|a| *a as u8 == shown).unwrap_or_default().show(address)
}

impl Addresses {
    pub fn show(self, address: &[u8]) -> String {
        if address.is_empty() {
            return "<>".into();
        }
        // The last @ parts them: a quoted local part may hold others (RFC 5321 §4.1.2).
        let (local, domain) = match memchr::memrchr(b'@', address) {
            Some(at) => (&address[..at], &address[at..]),
            None => (address, &[][..]),
        };
        let domain = printable(&String::from_utf8_lossy(domain));
        match self {
            Addresses::Full => printable(&String::from_utf8_lossy(address)),
            Addresses::Masked => {
                let first = String::from_utf8_lossy(local).chars().next().map(String::from).unwrap_or_default();
                format!("{}***{domain}", printable(&first))
            }
            Addresses::Hashed => {
                static KEY: OnceLock<RandomState> = OnceLock::new();
                let hash = KEY.get_or_init(RandomState::new).hash_one(address.to_ascii_lowercase());
                format!("h-{:012x}{domain}", hash >> 16)
            }
        }
    }
}

/// `text` with everything escaped that could move a cursor, end a line, or make text read in another order.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        push_printable(&mut out, c);
    }
    out
}

fn push_printable(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if is_unsafe(c) => {
            // Always four hexadecimal digits: all of these lie in the first plane, and JSON wants four.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
        c => out.push(c),
    }
}

/// Controls (C0, DEL, C1), line and paragraph separators, marks that change the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Writes events as lines.
struct Lines {
    format: Format,
    colour: bool,
}

impl Lines {
    fn new(format: Format, terminal: bool, colour: bool) -> Self {
        let format = match format {
            Format::Auto if terminal => Format::Pretty,
            Format::Auto => Format::Logfmt,
            chosen => chosen,
        };
        Lines { format, colour }
    }

    fn line(&self, at: Timestamp, level: Level, fields: &Fields) -> String {
        match self.format {
            Format::Json => json_line(at, level, fields),
            Format::Pretty => pretty_line(at, level, fields, self.colour),
            Format::Logfmt | Format::Auto => logfmt_line(at, level, fields),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.event.is_empty() {
            fields.event = event.metadata().target().to_string();
        }
        writer.write_str(&self.line(SystemClock.now(), *event.metadata().level(), &fields))?;
        writer.write_char('\n')
    }
}

/// The fields of one event, in the order they were written.
#[derive(Default)]
struct Fields {
    event: String,
    others: Vec<(&'static str, Value)>,
}

enum Value {
    Text(String),
    /// Numbers and booleans: no quotes in JSON.
    Bare(String),
}

impl Fields {
    fn text(&mut self, field: &Field, value: String) {
        match field.name() {
            "event" => self.event = value,
            "message" => self.others.push(("msg", Value::Text(value))),
            // Records of the `log` crate carry their origin in fields of these names.
            "log.target" if self.event.is_empty() => self.event = value,
            name if name.starts_with("log.") => {}
            name => self.others.push((name, Value::Text(value))),
        }
    }

    fn bare(&mut self, field: &Field, value: impl ToString) {
        if !field.name().starts_with("log.") {
            self.others.push((field.name(), Value::Bare(value.to_string())));
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_string());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.text(field, text);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON knows no infinity.
        if value.is_finite() { self.bare(field, value) } else { self.text(field, value.to_string()) }
    }
}

fn logfmt_line(at: Timestamp, level: Level, fields: &Fields) -> String {
    let mut line = format!("ts={} level={} event=", rfc3339(at), level_name(level));
    push_logfmt(&mut line, &fields.event);
    for (name, value) in &fields.others {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            Value::Text(text) => push_logfmt(&mut line, text),
            Value::Bare(text) => line.push_str(text),
        }
    }
    line
}

fn push_logfmt(out: &mut String, text: &str) {
    let plain = |c: char| !c.is_whitespace() && !matches!(c, '=' | '"' | '\\') && !is_unsafe(c);
    if !text.is_empty() && text.chars().all(plain) && text.len() <= VALUE_MAX_CHARS {
        out.push_str(text);
    } else {
        push_quoted(out, text);
    }
}

fn json_line(at: Timestamp, level: Level, fields: &Fields) -> String {
    let mut line = format!("{{\"ts\":\"{}\",\"level\":\"{}\",\"event\":", rfc3339(at), level_name(level));
    push_quoted(&mut line, &fields.event);
    for (name, value) in &fields.others {
        line.push(',');
        push_quoted(&mut line, name);
        line.push(':');
        match value {
            Value::Text(text) => push_quoted(&mut line, text),
            Value::Bare(text) => line.push_str(text),
        }
    }
    line.push('}');
    line
}

/// In double quotes, valid as JSON and as logfmt.
fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for (n, c) in text.chars().enumerate() {
        if n == VALUE_MAX_CHARS {
            out.push('…');
            break;
        }
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => push_printable(out, c),
        }
    }
    out.push('"');
}

fn pretty_line(at: Timestamp, level: Level, fields: &Fields, colour: bool) -> String {
    let (dim, bold, reset) = if colour { ("\x1b[2m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
    let shade = match level {
        _ if !colour => "",
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[34m",
    };
    let time = rfc3339(at);
    let mut line = format!("{dim}{time}{reset} {shade}{:5}{reset} {bold}", level_name(level).to_uppercase());
    line.push_str(&printable(&fields.event));
    line.push_str(reset);
    for (name, value) in &fields.others {
        let _ = write!(line, "  {dim}{name}={reset}");
        match value {
            Value::Text(text) => push_logfmt(&mut line, text),
            Value::Bare(text) => line.push_str(text),
        }
    }
    line
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// UTC to the millisecond, always the same length.
pub fn rfc3339(at: Timestamp) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(at.0)) {
        Ok(at) => format!("{at:.3}"),
        Err(_) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: Level, write: impl FnOnce()) -> String {
        let sink = Sink::default();
        let copy = sink.clone();
        let lines = Lines::new(format, false, false);
        tracing::subscriber::with_default(subscriber(lines, level, move || copy.clone()).0, write);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_logfmt_line_with_its_fields_in_order() {
        let line = logged(Format::Auto, Level::INFO, || {
            tracing::info!(event = "smtp.accepted", id = "01K5Y7Q2M8R4", rcpts = 2, bytes = 4096u64, "two words");
        });
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("ts=20") && time.ends_with('Z') && time.len() == "ts=2026-03-02T10:11:12.123Z".len());
        let want = "level=info event=smtp.accepted msg=\"two words\" id=01K5Y7Q2M8R4 rcpts=2 bytes=4096\n";
        assert_eq!(rest, want);
    }

    #[test]
    fn what_a_peer_sent_cannot_start_a_line_or_move_the_cursor() {
        let evil = "451 x\r\nts=0 level=error event=fake\x1b[2J\x07\0\u{85}\u{2028}\u{202e}\u{7f}\"\\";
        for format in [Format::Logfmt, Format::Json, Format::Pretty] {
            let line = logged(format, Level::INFO, || {
                tracing::info!(event = evil, text = evil, shown = %evil, debug = ?evil, "{evil}");
            });
            assert_eq!(line.matches('\n').count(), 1, "{format:?}: {line:?}");
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.chars().any(is_unsafe), "{format:?}: {line:?}");
        }
    }

    #[test]
    fn json_lines_read_back_as_what_was_logged() {
        let evil = "a\"b\\c\r\n\u{1b}\u{202e}é";
        let line = logged(Format::Json, Level::INFO, || {
            tracing::warn!(event = "delivery.result", text = evil, ok = true, part = 0.5, bad = f64::INFINITY);
        });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "warn");
        assert_eq!(value["text"], evil);
        assert_eq!(value["ok"], true);
        assert_eq!(value["part"], 0.5);
        assert_eq!(value["bad"], "inf");
    }

    #[test]
    fn a_long_value_is_cut() {
        let long = "x".repeat(VALUE_MAX_CHARS * 3);
        for format in [Format::Logfmt, Format::Json, Format::Pretty] {
            let line = logged(format, Level::INFO, || tracing::info!(event = "e", text = %long));
            assert!(line.len() < VALUE_MAX_CHARS + 200, "{format:?}");
            assert!(line.contains('…'));
        }
    }

    #[test]
    fn libraries_are_heard_from_warn_on_and_mailramp_from_its_level() {
        let lines = logged(Format::Logfmt, Level::DEBUG, || {
            tracing::debug!(event = "ours");
            tracing::info!(target: "rustls", "theirs");
            tracing::warn!(target: "rustls", "loud");
        });
        assert!(lines.contains("event=ours") && !lines.contains("theirs") && lines.contains("event=rustls msg=loud"));
        let lines = logged(Format::Logfmt, Level::ERROR, || tracing::warn!(target: "rustls", "loud"));
        assert_eq!(lines, "");
    }

    #[test]
    fn the_level_can_be_changed_while_the_log_is_in_use() {
        let sink = Sink::default();
        let copy = sink.clone();
        let (subscriber, change) =
            subscriber(Lines::new(Format::Logfmt, false, false), Level::INFO, move || copy.clone());
        tracing::subscriber::with_default(subscriber, || {
            for (level, event) in [(Level::INFO, "one"), (Level::DEBUG, "two"), (Level::WARN, "three")] {
                change(level);
                tracing::debug!(event);
            }
        });
        let bytes = sink.0.lock().unwrap().clone();
        let lines = String::from_utf8(bytes).unwrap();
        assert!(
            lines.contains("event=two") && !lines.contains("event=one") && !lines.contains("event=three"),
            "{lines}"
        );
    }

    #[test]
    fn addresses_show_no_more_than_asked() {
        let cases: [(&[u8], &str); 8] = [
            (b"dora@outlook.com", "d***@outlook.com"),
            (b"d@x.example", "d***@x.example"),
            (b"", "<>"),
            (b"postmaster", "p***"),
            (b"\"a@b c\"@x.example", "\"***@x.example"),
            ("élan@x.example".as_bytes(), "é***@x.example"),
            (b"\xff\xfe@x\x1b[0m", "\u{fffd}***@x\\u001b[0m"),
            (b"@x.example", "***@x.example"),
        ];
        for (address, shown) in cases {
            assert_eq!(Addresses::Masked.show(address), shown);
        }
        assert_eq!(Addresses::Full.show(b"dora\n@x.example"), "dora\\n@x.example");
    }

    #[test]
    fn hashed_addresses_are_equal_when_the_addresses_are() {
        let one = Addresses::Hashed.show(b"Dora@outlook.com");
        assert_eq!(one, Addresses::Hashed.show(b"dora@outlook.com"));
        assert_ne!(one, Addresses::Hashed.show(b"nora@outlook.com"));
        assert!(one.starts_with("h-") && one.ends_with("@outlook.com") && !one.contains("ora@"), "{one}");
    }
}
