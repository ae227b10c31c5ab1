//! What operators ask of streams, and what they are told: the types behind `streams list`, `move` and `undo`.
//!
//! A move is asked for twice with the same words: first to hear what it would mean, then to have it done. Plain values,
//! no I/O.

use serde::{Deserialize, Serialize};

use super::api::time;
use crate::message::{StreamWay, Timestamp};

/// Longest reason and longest time of day that is taken, in characters.
pub const WORDS_MOST_CHARS: usize = 200;

/// Where a stream's mail goes, as named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum WayName {
    /// Stays on the old server
    Legacy,
    /// By the new server as far as the limit allows
    Ramp,
    /// Only by the new server, with the first claim on its tokens
    New,
}

impl WayName {
    pub const fn text(self) -> &'static str {
        match self {
            WayName::Legacy => "legacy",
            WayName::Ramp => "ramp",
            WayName::New => "new",
        }
    }
}

impl From<StreamWay> for WayName {
    fn from(way: StreamWay) -> WayName {
        match way {
            StreamWay::Legacy => WayName::Legacy,
            StreamWay::Ramp => WayName::Ramp,
            StreamWay::New => WayName::New,
        }
    }
}

impl From<WayName> for StreamWay {
    fn from(name: WayName) -> StreamWay {
        match name {
            WayName::Legacy => StreamWay::Legacy,
            WayName::Ramp => StreamWay::Ramp,
            WayName::New => StreamWay::New,
        }
    }
}

/// A move that was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldMove {
    pub to: WayName,
    /// From when on.
    #[serde(with = "time")]
    pub at: Timestamp,
    #[serde(with = "time")]
    pub told: Timestamp,
    /// User id of who did it.
    pub actor: u32,
    /// The operator's own words; may be empty.
    pub reason: String,
}

/// All streams, the last resort last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamPage {
    #[serde(with = "time")]
    pub now: Timestamp,
    /// IANA name of the zone the day is counted in.
    pub zone: String,
    pub streams: Vec<StreamRow>,
}

/// One stream. Recipients throughout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamRow {
    pub name: String,
    /// In force now.
    pub way: WayName,
    /// What the settings say.
    pub configured: WayName,
    /// File and line of that, as far as the command that asks can tell.
    #[serde(default)]
    pub configured_at: Option<String>,
    /// The move that is in force; `None`: the settings are.
    pub moved: Option<ToldMove>,
    /// Moves whose time has not come, in the order of their times.
    pub to_come: Vec<ToldMove>,
    /// 0 to 100; the higher is served first.
    pub priority: u8,
    /// Part of a day's limit the stream may use, 0 to 1; `None`: all of it.
    pub max_share: Option<f64>,
    /// `legacy`, `hold-then-legacy` or `hold`.
    pub overflow: String,
    /// Longest wait for a token; `None`: as long as it takes. For `auto` what it comes to today.
    pub max_wait_seconds: Option<u64>,
    /// The longest wait is found from when the stream's mail comes.
    pub max_wait_auto: bool,
    /// Accepted, whichever way it went.
    pub offered_today: u64,
    pub offered_yesterday: u64,
    /// The seven days before today.
    pub offered_7d: u64,
    /// Reserved for the new server today and not given back.
    pub new_today: u64,
    /// Waiting for a token now.
    pub held: u64,
}

/// A stream is to go another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOrder {
    pub stream: String,
    pub to: WayName,
    /// As typed, in the zone of the day: `2026-03-05 22:00`, `22:00` or `tomorrow 22:00`. `None`: now.
    pub at: Option<String>,
    pub reason: String,
    /// Do it. Otherwise only what it would mean is said.
    pub yes: bool,
}

/// The last move that was told is to be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoOrder {
    pub stream: String,
    /// Do it. Otherwise only what it would mean is said.
    pub yes: bool,
}

/// What a move, or taking one back, means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveAnswer {
    pub stream: String,
    /// Nothing was changed.
    pub dry_run: bool,
    #[serde(with = "time")]
    pub now: Timestamp,
    pub zone: String,
    /// The way it goes, or would go, just before.
    pub from: WayName,
    pub to: WayName,
    /// From when on; `None`: from now on.
    #[serde(with = "time::option", default)]
    pub at: Option<Timestamp>,
    /// What is peculiar about that time.
    pub note: Option<String>,
    /// The move that is taken back; `None` for a move.
    pub undone: Option<ToldMove>,
    /// Later moves that stand, and change the way again.
    pub then: Vec<ToldMove>,
    /// Waiting for new now, and what becomes of it.
    pub waiting: Waiting,
    /// The rest of today; `None` for a move to come.
    pub today: Option<Outlook>,
    /// The first whole day after it.
    pub first_day: Option<Outlook>,
}

/// Recipients of the stream that wait for the new server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub recipients: u64,
    /// They go to legacy at once.
    pub goes_to_legacy: bool,
}

/// A day of the ramp, as far as it can be told. Recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// Noon of that day.
    #[serde(with = "time")]
    pub date: Timestamp,
    /// Days from today.
    pub ahead: u32,
    /// Sending day from 1 if every day until then counts; `None` before the start and without a ramp.
    pub day: Option<u32>,
    /// What the streams on ramp will offer, by the same day of last week, or the last whole day.
    pub ramp_offers: u64,
    /// The same for the streams on new.
    pub new_offers: u64,
    /// `None`: no limit.
    pub limit: Option<u64>,
    /// Beyond the limit, and by legacy in the end.
    pub stays_on_legacy: u64,
    /// Beyond the limit, and without another way.
    pub waits: u64,
    /// No stream has been seen for a whole day.
    pub unknown: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_wire_are_those_of_the_settings() {
        for way in StreamWay::ALL {
            let name = WayName::from(way);
            assert_eq!((StreamWay::from(name), name.text()), (way, way.name()));
            assert_eq!(serde_json::to_value(name).unwrap(), way.name());
        }
    }
}
