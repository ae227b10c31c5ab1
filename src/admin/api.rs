//! What the relay tells about itself: the types that go over the control socket and come out with `--json`.
//!
//! Plain values, no I/O. Times are RFC 3339 in UTC, durations are seconds, names are kebab-case. Fields may be added;
//! one that is there keeps its name and meaning as long as [`VERSION`] stays.

use serde::{Deserialize, Serialize};

use super::explain::{ExplainOrder, Explained};
pub use super::queue::{
    ActionAnswer, LeftAlone, QueueAction, QueueStep, RouteName, Selection, ShownMessage, ShownPart, StepAnswer,
};
use super::streams::{MoveAnswer, MoveOrder, StreamPage, UndoOrder};
pub use super::warmup::{
    AuditEntry, AuditPage, BrakeStatus, BrakeWord, Change, ChangeAnswer, ChangeOrder, DayStatus, LaneChange,
    LaneStatus, PauseStatus,
};
use crate::log::Addresses;
use crate::message::Timestamp;
use crate::metrics::QueueState;

/// Version of requests and answers. Both sides refuse another one.
pub const VERSION: u32 = 1;

/// The state of the relay at one moment: what `status` shows and the scrape-time gauges are set from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Of the running program.
    pub version: String,
    #[serde(with = "time")]
    pub now: Timestamp,
    pub clock: ClockStatus,
    /// Everything goes by legacy; this is what the ramp would do. `None`: a real run.
    #[serde(default)]
    pub dry_run: Option<AsIf>,
    pub warmup: Warmup,
    /// By an operator, over everything else.
    #[serde(default)]
    pub pause: Option<PauseStatus>,
    /// The total first, then the provider lanes.
    #[serde(default)]
    pub lanes: Vec<LaneStatus>,
    /// The last seven days of the total, oldest first, today last.
    #[serde(default)]
    pub days: Vec<DayStatus>,
    pub today: Today,
    /// The held message that has waited longest.
    pub oldest_held: Option<OldestHeld>,
    pub new: RouteStatus,
    pub legacy: RouteStatus,
    pub queue: QueueTotals,
    pub spool: SpoolStatus,
}

/// How far the ramp would be today, if this run had been a real one since its start. Recipients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsIf {
    /// Sending day, from 1; `None` before the start and without a limit.
    pub day: Option<u32>,
    /// `None`: no limit.
    pub limit: Option<u64>,
    pub new: u64,
    pub legacy: u64,
    /// They would wait for a token now.
    pub held: u64,
}

/// What is thought of the machine's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStatus {
    /// While it is not, nothing under a limit leaves by new.
    pub trusted: bool,
    /// Ahead of what has passed, or (negative) behind it; 0 while it is trusted.
    pub off_seconds: i64,
    /// What it shows, right or wrong.
    #[serde(with = "time")]
    pub shows: Timestamp,
}

/// Where the ramp stands. Recipients throughout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warmup {
    pub state: DayState,
    /// Sending day, from 1; `None` before the start and without a ramp.
    pub day: Option<u32>,
    /// Sending days from the start to the target, if all goes well.
    pub days_planned: Option<u32>,
    /// `None`: no limit.
    pub limit: Option<u64>,
    /// Reserved today and not given back.
    pub used: u64,
    /// Acknowledged by the new server today.
    pub sent: u64,
    pub target: Option<u64>,
    /// May go at once. `None`: no limit.
    pub tokens: Option<u64>,
    /// When the next token comes; `None` when one is there, or none comes today.
    #[serde(with = "time::option", default)]
    pub next_token_at: Option<Timestamp>,
    /// Most that may leave in any 60 minutes; `None`: no pace.
    pub pace_per_hour: Option<u64>,
    #[serde(with = "time")]
    pub day_ends: Timestamp,
    /// IANA name of the zone the day is counted in.
    pub zone: String,
}

/// What kind of day it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DayState {
    /// Before the start date: everything takes the legacy route, or waits.
    NotStarted {
        #[serde(with = "time")]
        starts: Timestamp,
    },
    Ramping,
    /// Below the target, but nothing overflows.
    Ample,
    /// At the target for days; no limit any more.
    Complete,
    /// Two days offered the limit and did not count.
    Stalled {
        reason: StallReason,
        advice: String,
    },
    /// By an operator. The reason is the operator's own words.
    Paused {
        reason: String,
    },
    /// No warm-up is configured.
    Unlimited,
}

/// Why days do not count towards the next stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StallReason {
    WaitTooShort,
    Share,
    Brake,
    #[serde(rename = "24h")]
    Day,
    Paused,
}

impl StallReason {
    pub fn text(self) -> &'static str {
        match self {
            StallReason::WaitTooShort => "wait-too-short",
            StallReason::Share => "share",
            StallReason::Brake => "brake",
            StallReason::Day => "24h",
            StallReason::Paused => "paused",
        }
    }

    /// What the operator can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            StallReason::WaitTooShort => {
                "mail comes in bursts and leaves by legacy before its token comes: set a longer `max_wait` for the stream that sends them"
            }
            StallReason::Share => {
                "a stream reached its `max_share` while tokens were left: raise it, or move another stream to ramp"
            }
            StallReason::Brake => {
                "the receiving side pushes back: read the last replies with `mailramp queue list`, and mend what they name before going on"
            }
            StallReason::Day => {
                "yesterday's late mail still counts in the last 24 hours: nothing to set, it resolves as sending times settle"
            }
            StallReason::Paused => "the ramp was paused for part of the day: resume it",
        }
    }
}

impl DayState {
    /// Stalled, with the advice that goes with the reason.
    pub fn stalled(reason: StallReason) -> DayState {
        DayState::Stalled { reason, advice: reason.advice().into() }
    }
}

/// Recipients of today, by route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Today {
    pub new: u64,
    pub legacy: u64,
    /// Waiting for a token now.
    pub held: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OldestHeld {
    #[serde(with = "time")]
    pub accepted: Timestamp,
    pub stream: String,
    /// When its wait ends and it takes the legacy route; `None`: it waits for its token however long.
    #[serde(with = "time::option", default)]
    pub deadline: Option<Timestamp>,
}

/// One of the two next hops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteStatus {
    pub configured: bool,
    /// Reachable when last tried; true until the first attempt.
    pub up: bool,
    /// Pooled connections.
    pub connections: u32,
    /// What went wrong last, if it is still wrong. From a peer: printable text only reaches the screen.
    pub last_error: Option<String>,
}

/// Messages that are queued, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueTotals {
    pub held: StateTotals,
    pub ready: StateTotals,
    pub deferred: StateTotals,
    pub inflight: StateTotals,
    /// Came back with restored data; waits for an operator.
    pub paused: StateTotals,
    /// Failed, and nobody to tell.
    pub dead: StateTotals,
    /// Damaged on disk.
    pub quarantined: StateTotals,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTotals {
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
    /// When the oldest was accepted.
    #[serde(with = "time::option", default)]
    pub oldest: Option<Timestamp>,
}

impl QueueTotals {
    pub fn of(&self, state: QueueState) -> &StateTotals {
        match state {
            QueueState::Held => &self.held,
            QueueState::Ready => &self.ready,
            QueueState::Deferred => &self.deferred,
            QueueState::Inflight => &self.inflight,
            QueueState::Paused => &self.paused,
            QueueState::Dead => &self.dead,
            QueueState::Quarantined => &self.quarantined,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    pub free_bytes: u64,
    /// Below this much free, applications get 452.
    pub required_bytes: u64,
    /// Whether new mail is taken now.
    pub accepting: bool,
}

/// Where a queued message stands. The first four are what mail goes through; the rest wait for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ItemState {
    /// Waits for a token of the new route.
    Held,
    /// Waits for a connection.
    Ready,
    /// Waits for the next attempt.
    Deferred,
    /// On its way at this moment.
    Inflight,
    /// Came back with a restored spool; may have been delivered since.
    Paused,
    /// Could not be delivered, and there is nobody to tell.
    Dead,
    /// Damaged on disk.
    Quarantined,
}

impl ItemState {
    pub fn text(self) -> &'static str {
        match self {
            ItemState::Held => "held",
            ItemState::Ready => "ready",
            ItemState::Deferred => "deferred",
            ItemState::Inflight => "inflight",
            ItemState::Paused => "paused",
            ItemState::Dead => "dead",
            ItemState::Quarantined => "quarantined",
        }
    }
}

/// Which messages are meant: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueFilter {
    pub stream: Option<String>,
    pub state: Option<ItemState>,
    /// Accepted at least this long ago.
    pub older_than_seconds: Option<u64>,
    /// Twelve characters, as in the 250 and the log.
    pub id: Option<String>,
    /// With a recipient in this domain.
    pub rcpt_domain: Option<String>,
}

impl QueueFilter {
    /// Everything matches.
    pub fn is_empty(&self) -> bool {
        *self == QueueFilter::default()
    }
}

/// The oldest of the matching messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueuePage {
    pub rows: Vec<QueueRow>,
    /// All that match, shown or not.
    pub messages: u64,
    pub recipients: u64,
    #[serde(with = "time")]
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueRow {
    pub id: String,
    #[serde(with = "time")]
    pub accepted: Timestamp,
    pub stream: String,
    pub state: ItemState,
    /// `new` or `legacy`, once decided.
    pub route: Option<String>,
    /// The first recipient.
    pub to: MaskedAddress,
    pub recipients: u64,
    pub bytes: u64,
    /// Attempts so far.
    pub attempts: u32,
    /// When it is tried next, or its token is expected.
    #[serde(with = "time::option", default)]
    pub next: Option<Timestamp>,
    /// Last reply of a next hop, or why it waits.
    pub last_reply: String,
}

/// An address of which only the first character and the domain are left. Made from the real one and by nothing else, so
/// that no listing shows an address by mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MaskedAddress(String);

impl MaskedAddress {
    pub fn of(address: &[u8]) -> MaskedAddress {
        MaskedAddress(Addresses::Masked.show(address))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What accepting the clock did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAnswer {
    /// By how much the time moved.
    pub moved_seconds: i64,
    #[serde(with = "time")]
    pub now: Timestamp,
}

/// One request: a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    pub command: Command,
}

impl Request {
    pub fn new(command: Command) -> Request {
        Request { version: VERSION, command }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    Status,
    QueueList {
        filter: QueueFilter,
        limit: usize,
    },
    QueueShow {
        id: String,
        headers: bool,
    },
    /// `all`: an empty filter is meant. `ids`: they are wanted, not only the numbers.
    QueueSelect {
        filter: QueueFilter,
        action: QueueAction,
        all: bool,
        ids: bool,
    },
    QueueStep(QueueStep),
    /// No file is removed as long as this connection stands and asks again within half a minute.
    HoldFiles,
    /// `reason`: the operator's own words, for the log.
    AcceptClock {
        reason: String,
    },
    /// Tell the ramp something.
    Change(ChangeOrder),
    /// What operators did in the last so many seconds.
    Audit {
        since_seconds: u64,
    },
    Explain(ExplainOrder),
    StreamList,
    StreamMove(MoveOrder),
    StreamUndo(UndoOrder),
}

/// One answer: a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    pub version: u32,
    pub answer: Answer,
}

impl Response {
    pub fn new(answer: Answer) -> Response {
        Response { version: VERSION, answer }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Status(Box<Snapshot>),
    QueueList(QueuePage),
    QueueShow(Box<ShownMessage>),
    QueueSelect(Selection),
    QueueStep(StepAnswer),
    FilesHeld,
    AcceptClock(ClockAnswer),
    Change(ChangeAnswer),
    Audit(AuditPage),
    /// Everything is as it was asked to be already; nothing was changed.
    NoChange(String),
    Explain(Box<Explained>),
    StreamList(StreamPage),
    StreamMove(Box<MoveAnswer>),
    /// The request was not understood or not allowed; asking again does not help.
    Refused(String),
    /// The relay could not do it now.
    Failed(String),
}

/// RFC 3339 in UTC.
pub(super) mod time {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::message::Timestamp;

    fn shown(at: Timestamp) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(i128::from(at.0)).expect("64 bits of nanoseconds end in the year 2262")
    }

    fn stored<E: serde::de::Error>(at: jiff::Timestamp) -> Result<Timestamp, E> {
        i64::try_from(at.as_nanosecond()).map(Timestamp).map_err(|_| E::custom("a time after the year 2262"))
    }

    pub fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        shown(*at).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        stored(jiff::Timestamp::deserialize(deserializer)?)
    }

    pub mod option {
        use super::*;

        pub fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
            at.map(shown).serialize(serializer)
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
            Option::<jiff::Timestamp>::deserialize(deserializer)?.map(stored).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;

    #[test]
    fn times_are_rfc_3339_and_read_back() {
        let snapshot = fake::snapshot();
        let json = serde_json::to_string(&snapshot).unwrap();
        assert!(json.contains("\"now\":\"2026-03-10T16:48:00Z\""), "{json}");
        assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
        assert!(
            serde_json::from_str::<Snapshot>(&json.replace("\"2026-03-10T16:48:00Z\"", "\"4000-01-01T00:00:00Z\""))
                .is_err()
        );
    }

    #[test]
    fn every_day_state_reads_back() {
        for state in [
            DayState::NotStarted { starts: Timestamp::from_seconds(1_772_406_000) },
            DayState::Ramping,
            DayState::stalled(StallReason::Day),
            DayState::Paused { reason: "complaints".into() },
        ] {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<DayState>(&json).unwrap(), state, "{json}");
        }
    }

    #[test]
    fn the_words_of_the_wire_are_the_words_of_the_screen() {
        for reason in
            [StallReason::WaitTooShort, StallReason::Share, StallReason::Brake, StallReason::Day, StallReason::Paused]
        {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.text());
        }
        for state in <ItemState as clap::ValueEnum>::value_variants() {
            assert_eq!(serde_json::to_value(state).unwrap(), state.text());
        }
    }
}
