//! How one value is written, and what it means: "25MB" is 25,000,000 bytes, "5m" is 300 seconds.
//!
//! Every kind of value is a [`Setting`]. The strict pass and the final typed reading use the same
//! [`Setting::read`], so what passed the one cannot mean something else to the other. Nothing is rounded and no
//! text becomes a number, except from the environment, which knows text only ([`Shape`] says how).

use core::net::{IpAddr, SocketAddr};
use std::fmt::{self, Write as _};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use secrecy::SecretString;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One value as written, before it has a meaning.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Text(String),
    Integer(i64),
    Decimal(f64),
    Switch(bool),
    /// A TOML date or time, as written.
    Date(String),
    List(Vec<Raw>),
    /// In the order of the file, as far as that is known.
    Table(Vec<(String, Raw)>),
    /// What no setting takes: an integer beyond 64 bits. The text says so.
    Other(String),
}

/// What an environment variable's text is turned into before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Integer,
    Decimal,
    Switch,
    /// Separated by commas; an empty text is an empty list.
    TextList,
    IntegerList,
}

/// A kind of value.
pub(super) trait Setting {
    /// What the program works with.
    type Value;
    const SHAPE: Shape = Shape::Text;
    /// `Err` starts with "must" and says what to write instead.
    fn read(raw: &Raw) -> Result<Self::Value, String>;
}

/// For `#[serde(deserialize_with = "de::<Size, _>")]`.
pub(super) fn de<'de, S: Setting, D: Deserializer<'de>>(deserializer: D) -> Result<S::Value, D::Error> {
    S::read(&Raw::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Like [`de`], for a key that may be unset.
pub(super) fn de_some<'de, S: Setting, D: Deserializer<'de>>(deserializer: D) -> Result<Option<S::Value>, D::Error> {
    de::<S, D>(deserializer).map(Some)
}

impl Shape {
    /// The text of an environment variable as the value a file would have. Strict: `0123`, `+5` and ` 7` are no
    /// integers; they stay text, which [`Setting::read`] then refuses.
    pub(super) fn type_text(self, text: &str) -> Raw {
        let items = || text.split(',').filter(|_| !text.trim().is_empty()).map(str::trim);
        let as_text = || Raw::Text(text.to_owned());
        match self {
            Shape::Text => as_text(),
            Shape::Integer => integer(text).map_or_else(as_text, Raw::Integer),
            Shape::Decimal => decimal(text).map_or_else(as_text, Raw::Decimal),
            Shape::Switch => text.parse().map_or_else(|_| as_text(), Raw::Switch),
            Shape::TextList => Raw::List(items().map(|item| Raw::Text(item.to_owned())).collect()),
            Shape::IntegerList => Raw::List(items().map(|item| Shape::Integer.type_text(item)).collect()),
        }
    }
}

/// Decimal digits without sign, spaces or leading zeros.
fn integer(text: &str) -> Option<i64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|c| c.is_ascii_digit()));
    if plain { text.parse().ok() } else { None }
}

/// `50`, `2.5`: digits, at most one dot with digits on both sides.
fn decimal(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = !fraction.is_empty() && fraction.len() <= 9 && fraction.bytes().all(|c| c.is_ascii_digit());
    if digits && integer(whole).is_some() { text.parse().ok() } else { None }
}

/// As TOML would have it, on one line.
impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raw::Text(text) => write_string(f, text),
            Raw::Integer(n) => write!(f, "{n}"),
            Raw::Decimal(n) => write!(f, "{n:?}"),
            Raw::Switch(on) => write!(f, "{on}"),
            Raw::Date(text) | Raw::Other(text) => f.write_str(text),
            Raw::List(items) => {
                f.write_char('[')?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_char(']')
            }
            Raw::Table(entries) => {
                f.write_str("{ ")?;
                for (i, (name, value)) in entries.iter().enumerate() {
                    write!(f, "{}{name} = {value}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(" }")
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, number, switch, list or table")
            }
            fn visit_bool<E>(self, on: bool) -> Result<Raw, E> {
                Ok(Raw::Switch(on))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Raw, E> {
                Ok(Raw::Integer(n))
            }
            fn visit_f64<E>(self, n: f64) -> Result<Raw, E> {
                Ok(Raw::Decimal(n))
            }
            fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Table(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Writes a kind of value that is a text: its name, what it becomes, how it reads, what a wrong one is told.
macro_rules! text_setting {
    ($(#[$doc:meta])* $name:ident -> $value:ty, $wanted:literal, $parse:expr) => {
        $(#[$doc])*
        pub(super) struct $name;
        impl Setting for $name {
            type Value = $value;
            fn read(raw: &Raw) -> Result<$value, String> {
                let parse: fn(&str) -> Option<$value> = $parse;
                match raw {
                    Raw::Text(text) => parse(text),
                    _ => None,
                }
                .ok_or_else(|| concat!("must be ", $wanted).to_owned())
            }
        }
    };
}

text_setting!(
    /// Any text without control characters.
    Text -> String, "a text in quotes, without control characters",
    |text| (!text.chars().any(char::is_control)).then(|| text.to_owned())
);
text_setting!(
    /// A password. Never printed.
    Secret -> SecretString, "a text in quotes",
    |text| (!text.contains(['\0', '\r', '\n'])).then(|| SecretString::from(text))
);
text_setting!(
    /// Bytes. MB is 10^6, MiB is 2^20.
    Size -> u64, "a size in quotes, a whole number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as \"25MB\"",
    size
);
text_setting!(Span -> Duration, "a time in quotes with ms, s, m, h or d, such as \"30s\", \"5m\" or \"1h30m\"", span);
text_setting!(
    /// A part of a whole: 0 to 1.
    Share -> f64, "a share in quotes from \"0%\" to \"100%\", such as \"20%\"",
    |text| decimal(text.strip_suffix('%')?).map(|n| n / 100.0).filter(|part| *part <= 1.0)
);
text_setting!(
    /// Bytes per second.
    Rate -> u64, "a rate in quotes, a size and \"/s\", such as \"500B/s\"",
    |text| size(text.strip_suffix("/s")?)
);
text_setting!(
    /// How old mail is when its sender hears that it is late; "off": never.
    DelayNotice -> Option<Duration>, "\"off\", or a time in quotes with m, h or d, such as \"4h\"",
    |text| if text == "off" { Some(None) } else { span(text).map(Some) }
);
text_setting!(
    /// A server to ask for names; the port is 53 if left out.
    DnsServer -> SocketAddr, "an IP address in quotes, with or without a port, such as \"192.0.2.53\" or \"192.0.2.53:5353\"",
    |text| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53)))
);
text_setting!(
    /// The longest wait for a token.
    LongestWait -> super::MaxWait, "\"auto\", or a time in quotes with ms, s, m, h or d, such as \"15m\" or \"4h\"",
    |text| if text == "auto" { Some(super::MaxWait::Auto) } else { span(text).map(super::MaxWait::Time) }
);
text_setting!(
    /// A label of metrics too.
    StreamName -> String, "a name in quotes of 1 to 32 lower-case letters, digits and hyphens, such as \"digest\"",
    |text| is_stream_name(text).then(|| text.to_owned())
);
text_setting!(
    /// A stream, or "" for none.
    OptionalStreamName -> Option<String>, "the name of a stream in quotes, such as \"digest\", or \"\"",
    |text| (text.is_empty() || is_stream_name(text)).then(|| Some(text.to_owned()).filter(|name| !name.is_empty()))
);
text_setting!(
    /// Addresses of authors.
    Author -> crate::policy::mailbox::Pattern,
    "an address in quotes such as \"digest@example.com\", \"*@example.com\" for a whole domain, or \"*@*.example.com\" for \
     all domains below it",
    |text| text.parse().ok()
);
text_setting!(
    /// Text with something in it, that one line of a message or of a file can hold.
    Word -> String, "a text in quotes, not empty, without white space at its ends and without control characters",
    |text| (!text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)).then(|| text.to_owned())
);
text_setting!(Hours -> super::Window, "two times of day in quotes, the first before the second, such as \"08:00-20:00\"", window);
text_setting!(Zone -> TimeZone, "an IANA time zone in quotes, such as \"UTC\" or \"Europe/Berlin\"", |text| {
    TimeZone::get(text).ok()
});
text_setting!(Bind -> SocketAddr, "an IP address and port in quotes, such as \"127.0.0.1:2525\" or \"[::1]:2525\"", |text| {
    text.parse().ok()
});
text_setting!(
    /// A server to connect to; the port is 25 if left out.
    Host -> super::HostPort, "a host and port in quotes, such as \"mail2.example.com:587\" (port 25 if left out)",
    host_port
);
text_setting!(
    /// A network, or a single address.
    Net -> IpNet, "a network in quotes whose host bits are zero, such as \"10.1.0.0/16\", or one address",
    |text| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).filter(|net| net.addr() == net.network())
);
text_setting!(
    /// A local address, or "" for the system's choice.
    LocalIp -> Option<IpAddr>, "an IP address in quotes without a port, or \"\"",
    |text| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
);
text_setting!(
    /// A name for a greeting, EHLO or Received: a host name or an address literal, or "" for the default.
    MailName -> String, "a host name such as \"mail2.example.com\", an address literal such as \"[203.0.113.25]\", or \"\"",
    |text| {
        let literal = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = literal.is_some_and(|inner| inner.trim_start_matches("IPv6:").parse::<IpAddr>().is_ok());
        (text.is_empty() || address || is_host_name(text)).then(|| text.to_owned())
    }
);
text_setting!(
    /// A file, or "" for none. Relative paths are relative to the settings file.
    OptionalPath -> Option<PathBuf>, "a path in quotes, or \"\"",
    |text| (!text.contains('\0')).then(|| Some(text).filter(|t| !t.is_empty()).map(PathBuf::from))
);

/// A whole number, 0 or more.
pub(super) struct Count;
impl Setting for Count {
    type Value = u64;
    const SHAPE: Shape = Shape::Integer;
    fn read(raw: &Raw) -> Result<u64, String> {
        match raw {
            Raw::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        }
        .ok_or_else(|| "must be a whole number, 0 or more, without quotes and without a fraction".to_owned())
    }
}

/// A number with or without a fraction, 0 or more, finite.
pub(super) struct Decimal;
impl Setting for Decimal {
    type Value = f64;
    const SHAPE: Shape = Shape::Decimal;
    fn read(raw: &Raw) -> Result<f64, String> {
        match raw {
            Raw::Integer(n) => i32::try_from(*n).ok().map(f64::from),
            Raw::Decimal(n) => Some(*n),
            _ => None,
        }
        .filter(|n| n.is_finite() && *n >= 0.0)
        .ok_or_else(|| "must be a number, 0 or more, without quotes, such as 1.5".to_owned())
    }
}

pub(super) struct Switch;
impl Setting for Switch {
    type Value = bool;
    const SHAPE: Shape = Shape::Switch;
    fn read(raw: &Raw) -> Result<bool, String> {
        match raw {
            Raw::Switch(on) => Ok(*on),
            _ => Err("must be true or false, without quotes".to_owned()),
        }
    }
}

/// A calendar day. A TOML date; also the same in quotes, which is what the environment gives.
pub(super) struct Day;
impl Setting for Day {
    type Value = Date;
    fn read(raw: &Raw) -> Result<Date, String> {
        match raw {
            // jiff reads times of day and offsets too and drops them; a start is a whole day.
            Raw::Date(text) | Raw::Text(text) if text.len() == "2026-03-02".len() => text.parse().ok(),
            _ => None,
        }
        .ok_or_else(|| "must be a date such as 2026-03-02".to_owned())
    }
}

/// A list, `[…]`.
pub(super) struct List<S>(PhantomData<S>);
impl<S: Setting> Setting for List<S> {
    type Value = Vec<S::Value>;
    const SHAPE: Shape = match S::SHAPE {
        Shape::Integer => Shape::IntegerList,
        _ => Shape::TextList,
    };
    fn read(raw: &Raw) -> Result<Self::Value, String> {
        let Raw::List(items) = raw else { return Err("must be a list in square brackets".to_owned()) };
        let read = |(i, item)| S::read(item).map_err(|must| format!("item {} ({item}) {must}", i + 1));
        items.iter().enumerate().map(read).collect()
    }
}

/// One value, or a list of them.
pub(super) struct OneOrMore<S>(PhantomData<S>);
impl<S: Setting> Setting for OneOrMore<S> {
    type Value = Vec<S::Value>;
    const SHAPE: Shape = Shape::TextList;
    fn read(raw: &Raw) -> Result<Self::Value, String> {
        match raw {
            Raw::List(_) => List::<S>::read(raw),
            one => S::read(one).map(|value| vec![value]).map_err(|must| format!("{must}, or a list of these")),
        }
    }
}

pub(super) fn must_be_one_of(words: &[&str]) -> String {
    match words {
        [only] => format!("must be \"{only}\", all that works in this version"),
        words => format!("must be one of \"{}\"", words.join("\", \"")),
    }
}

fn is_stream_name(text: &str) -> bool {
    let plain = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    (1..=STREAM_NAME_MAX_CHARS).contains(&text.len()) && text.bytes().all(plain)
}

fn size(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let bytes: u64 = match unit {
        "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    u64::try_from(integer(digits)?).ok()?.checked_mul(bytes)
}

/// Parts from large to small, each unit once: `1h30m`, not `30m1h`.
fn span(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let (mut rest, mut millis, mut smallest) = (text, 0u64, u64::MAX);
    while !rest.is_empty() {
        let (digits, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let unit = &tail[..tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len())];
        let (_, worth) = UNITS.into_iter().find(|(name, worth)| *name == unit && *worth < smallest)?;
        smallest = worth;
        millis = u64::try_from(integer(digits)?).ok()?.checked_mul(worth)?.checked_add(millis)?;
        rest = &tail[unit.len()..];
    }
    (!text.is_empty()).then(|| Duration::from_millis(millis))
}

fn window(text: &str) -> Option<super::Window> {
    let minute = |part: &str| {
        let (hours, minutes) = part.split_once(':')?;
        let two = |s: &str| (s.len() == 2 && s.bytes().all(|c| c.is_ascii_digit())).then(|| s.parse::<u16>().ok())?;
        let (hours, minutes) = (two(hours)?, two(minutes)?);
        (minutes < 60 && (hours < 24 || (hours, minutes) == (24, 0))).then_some(hours * 60 + minutes)
    };
    let (from, to) = text.split_once('-')?;
    let (opens_minute, closes_minute) = (minute(from)?, minute(to)?);
    (opens_minute < closes_minute).then_some(super::Window { opens_minute, closes_minute })
}

fn host_port(text: &str) -> Option<super::HostPort> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(super::HostPort { host: ip.to_string(), port: SMTP_PORT });
    }
    if let Some(ip) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return host_port(ip).filter(|host| host.host.contains(':'));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() > 0).then(|| super::HostPort { host: address.ip().to_string(), port: address.port() });
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, u16::try_from(integer(port)?).ok().filter(|port| *port > 0)?),
        None => (text, SMTP_PORT),
    };
    is_host_name(host).then(|| super::HostPort { host: host.to_owned(), port })
}

/// Letters, digits, `-` and `_` in dotted labels of 1 to 63 octets, 253 in all (RFC 1035 §2.3.4); a text that looks
/// like an IPv4 address but is none, such as `10.0.0.256`, is no name.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_a_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|c| c.is_ascii_digit()));
    text.len() <= 253 && !last_is_a_number && text.split('.').all(label)
}

const STREAM_NAME_MAX_CHARS: usize = 32;
const SMTP_PORT: u16 = 25; // RFC 5321 §4.5.4.2

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    #[test]
    fn sizes_name_their_unit() {
        for (written, bytes) in [("25MB", 25_000_000), ("25MiB", 25 << 20), ("0B", 0), ("100GB", 100_000_000_000)] {
            assert_eq!(Size::read(&text(written)), Ok(bytes));
        }
        for wrong in ["", "25", "MB", "2.5MB", "25 MB", "25mb", "-1MB", "025MB", "99999999999TB"] {
            assert!(Size::read(&text(wrong)).is_err(), "{wrong}");
        }
        assert!(Size::read(&Raw::Integer(25)).is_err());
    }

    #[test]
    fn times_name_their_unit_and_go_from_large_to_small() {
        for (written, millis) in [("5m", 300_000), ("1h30m", 5_400_000), ("250ms", 250), ("5d", 432_000_000), ("0s", 0)]
        {
            assert_eq!(Span::read(&text(written)), Ok(Duration::from_millis(millis)), "{written}");
        }
        for wrong in ["", "5", "m", "30m1h", "5m5m", "1.5h", "5 m", "-5m", "5M", "99999999999999999d"] {
            assert!(Span::read(&text(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_and_rates_keep_their_sign_and_unit() {
        assert_eq!(Share::read(&text("2.5%")), Ok(0.025));
        assert_eq!(Share::read(&text("100%")), Ok(1.0));
        for wrong in ["20", "101%", "-1%", "%", "2.%", ".5%", "1e1%", "NaN%"] {
            assert!(Share::read(&text(wrong)).is_err(), "{wrong}");
        }
        assert!(Share::read(&Raw::Decimal(0.2)).is_err());
        assert_eq!(Rate::read(&text("500B/s")), Ok(500));
        assert!(Rate::read(&text("500B")).is_err());
    }

    #[test]
    fn a_window_has_a_length() {
        let read = |written| Hours::read(&text(written)).ok().map(|w| (w.opens_minute, w.closes_minute));
        assert_eq!(read("00:00-24:00"), Some((0, 1440)));
        assert_eq!(read("08:30-20:00"), Some((510, 1200)));
        for wrong in ["08:00-08:00", "20:00-08:00", "8:00-20:00", "08:00", "08:60-20:00", "00:00-24:01", "+8:00-20:00"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_host_without_a_port_means_port_25() {
        let read = |written| Host::read(&text(written)).ok().map(|host| host.to_string());
        for (written, meant) in [
            ("mail2.example.com:587", "mail2.example.com:587"),
            ("mail2.example.com", "mail2.example.com:25"),
            ("192.0.2.1", "192.0.2.1:25"),
            ("2001:db8::1", "[2001:db8::1]:25"),
            ("[2001:db8::1]", "[2001:db8::1]:25"),
            ("[2001:db8::1]:587", "[2001:db8::1]:587"),
        ] {
            assert_eq!(read(written).as_deref(), Some(meant));
        }
        for wrong in ["", ":25", "a:0", "a:70000", "a:025", "a b", "-a", "10.0.0.256", "smtp://a", "a..b", "[a]:25"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_network_with_host_bits_is_refused() {
        assert_eq!(Net::read(&text("::1")), Ok("::1/128".parse().expect("a network")));
        assert!(Net::read(&text("10.0.0.0/8")).is_ok());
        assert!(Net::read(&text("10.0.0.1/8")).is_err());
    }

    #[test]
    fn a_date_is_a_whole_day() {
        let day = Date::constant(2026, 3, 2);
        assert_eq!(Day::read(&Raw::Date("2026-03-02".into())), Ok(day));
        assert_eq!(Day::read(&text("2026-03-02")), Ok(day));
        for wrong in ["2026-03-02T10:00:00", "2026-02-30", "20260302", "tomorrow"] {
            assert!(Day::read(&Raw::Date(wrong.into())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn text_from_the_environment_becomes_a_number_only_where_it_is_one() {
        assert_eq!(Shape::Integer.type_text("50"), Raw::Integer(50));
        for not_a_number in ["0123", "+5", " 7", "50.7", "", "5_000"] {
            assert_eq!(Shape::Integer.type_text(not_a_number), text(not_a_number));
        }
        assert_eq!(Shape::Text.type_text("0123"), text("0123"));
        assert_eq!(Shape::TextList.type_text("1m, 5m"), Raw::List(vec![text("1m"), text("5m")]));
        assert_eq!(Shape::IntegerList.type_text(""), Raw::List(vec![]));
    }
}
