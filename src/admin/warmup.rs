//! What an operator sees of the ramp's lanes, and what can be told to the ramp: the types that go over the control
//! socket. Plain values, no I/O.

use serde::{Deserialize, Serialize};

use super::api::{DayState, time};
use crate::log::printable;
use crate::message::{BrakeLevel, Timestamp};

/// Longest reason of an operator, in characters.
pub const REASON_MOST_CHARS: usize = 200;
/// The largest day that can be set: ten years of sending days.
pub const DAY_MOST: u32 = 3650;
/// How long a brake may be set for: long enough to be of use, short enough that it cannot be forgotten for good.
pub const BRAKE_SECONDS: std::ops::RangeInclusive<u64> = 60..=30 * 86_400;
/// The total among the names of providers.
pub const TOTAL: &str = "all";

/// An operator has stopped the new server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseStatus {
    #[serde(with = "time")]
    pub since: Timestamp,
    /// User id of who did it.
    pub actor: u32,
    pub reason: String,
}

/// One lane of the ramp today. Recipients, where nothing else is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// [`TOTAL`] is the lane that every claim passes.
    pub provider: String,
    pub state: DayState,
    /// Sending day, from 1; `None` before the start and without a ramp.
    pub day: Option<u32>,
    /// `None`: no limit.
    pub limit: Option<u64>,
    /// Reserved today and not given back.
    pub used: u64,
    /// Acknowledged by the new server today.
    pub sent: u64,
    /// Accepted today on streams that take part in the ramp.
    pub offered: u64,
    /// Its part of the curve, 0 to 1.
    pub share: f64,
    pub brake: BrakeStatus,
    /// Days in a row with a brake or a pause, up to yesterday.
    pub braked_days: u32,
}

/// A lane's brake as it is at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrakeStatus {
    pub level: BrakeWord,
    /// When it was put on.
    #[serde(with = "time::option", default)]
    pub since: Option<Timestamp>,
    /// When this level ends; `None`: it is open, or only a person ends it.
    #[serde(with = "time::option", default)]
    pub until: Option<Timestamp>,
    pub reason: String,
}

/// How much a braked lane may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrakeWord {
    #[default]
    Open,
    /// A part of its pace.
    Slow,
    /// Nothing, until a time.
    Suspended,
    /// Nothing, until a person releases it.
    Paused,
}

impl From<BrakeLevel> for BrakeWord {
    fn from(level: BrakeLevel) -> Self {
        match level {
            BrakeLevel::Open => BrakeWord::Open,
            BrakeLevel::Slow => BrakeWord::Slow,
            BrakeLevel::Suspended => BrakeWord::Suspended,
            BrakeLevel::Paused => BrakeWord::Paused,
        }
    }
}

impl BrakeWord {
    pub fn text(self) -> &'static str {
        match self {
            BrakeWord::Open => "open",
            BrakeWord::Slow => "slow",
            BrakeWord::Suspended => "suspended",
            BrakeWord::Paused => "paused",
        }
    }
}

/// One day of the total. Recipients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayStatus {
    /// Of the calendar, in the zone of the ramp: `2026-03-10`.
    pub date: String,
    /// Sending day, from 1; `None` before the start and without a ramp.
    pub day: Option<u32>,
    /// The largest of the day; `None`: no limit.
    pub limit: Option<u64>,
    pub offered: u64,
    /// Taken by the new server.
    pub new: u64,
    /// Taken by the legacy server.
    pub legacy: u64,
    /// Braked or paused at any time of it, so that it does not count.
    pub braked: bool,
}

/// What an operator tells the ramp.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Nothing leaves by new.
    Pause,
    Resume,
    /// Every lane stands at this sending day, from 1.
    SetDay {
        day: u32,
    },
    /// Nothing of this provider leaves by new for so long.
    BrakeSet {
        provider: String,
        for_seconds: u64,
    },
    BrakeRelease {
        provider: String,
    },
}

/// A change with the operator's own words for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeOrder {
    pub change: Change,
    pub reason: String,
    /// Only say what it would do.
    pub dry_run: bool,
}

/// What a change did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeAnswer {
    pub change: Change,
    pub dry_run: bool,
    #[serde(with = "time")]
    pub now: Timestamp,
    /// Recipients that wait for new and are concerned.
    pub waiting: u64,
    /// There is a legacy server to take them.
    pub has_legacy: bool,
    /// What becomes of the lanes' limits, the total first; only where limits change.
    pub lanes: Vec<LaneChange>,
    /// When it ends by itself.
    #[serde(with = "time::option", default)]
    pub until: Option<Timestamp>,
}

/// A lane's limits before and after a day is set. `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneChange {
    pub provider: String,
    pub day_before: u32,
    pub day: u32,
    pub limit_before: Option<u64>,
    pub limit: Option<u64>,
    /// Tomorrow's, if all that today allows is sent.
    pub tomorrow_before: Option<u64>,
    pub tomorrow: Option<u64>,
}

/// What operators did, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    pub entries: Vec<AuditEntry>,
}

/// One command of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    #[serde(with = "time")]
    pub at: Timestamp,
    /// User id of who did it.
    pub actor: u32,
    pub action: String,
    /// What was asked for, and why where a reason was asked for.
    pub detail: String,
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
}

/// A reason as it is kept: one printable line, not empty, of at most [`REASON_MOST_CHARS`]. Both ends of the socket ask
/// for it.
pub fn checked_reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("say in a few words why; whoever looks later will ask".into());
    }
    let chars = text.chars().count();
    if chars > REASON_MOST_CHARS {
        return Err(format!("a reason has at most {REASON_MOST_CHARS} characters, this one {chars}"));
    }
    if printable(text) != text {
        return Err("a reason is one line without control characters".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_printable_line_of_bounded_length() {
        assert_eq!(checked_reason("  Beschwerden von GMX – Ticket 12 "), Ok("Beschwerden von GMX – Ticket 12".into()));
        assert!(checked_reason(&"ü".repeat(REASON_MOST_CHARS)).is_ok(), "characters are counted, not octets");
        for (text, why) in [
            ("", "in a few words"),
            (" \t\n", "in a few words"),
            ("two\nlines", "one line"),
            ("\x1b[2J", "control"),
            ("right\u{202e}left", "control"),
        ] {
            let refusal = checked_reason(text).unwrap_err();
            assert!(refusal.contains(why), "{text:?}: {refusal}");
        }
        let long = checked_reason(&"x".repeat(REASON_MOST_CHARS + 1)).unwrap_err();
        assert!(long.contains("at most 200 characters, this one 201"), "{long}");
    }

    #[test]
    fn the_words_of_a_brake_are_those_of_the_ledger() {
        for level in BrakeLevel::ALL {
            let word = BrakeWord::from(level);
            assert_eq!((word.text(), serde_json::to_value(word).unwrap()), (level.name(), level.name().into()));
        }
    }

    #[test]
    fn a_change_reads_back_from_its_line() {
        for change in [
            Change::Pause,
            Change::Resume,
            Change::SetDay { day: 9 },
            Change::BrakeSet { provider: "microsoft".into(), for_seconds: 7200 },
            Change::BrakeRelease { provider: TOTAL.into() },
        ] {
            let order = ChangeOrder { change, reason: "complaints".into(), dry_run: true };
            let line = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<ChangeOrder>(&line).unwrap(), order, "{line}");
        }
    }
}
