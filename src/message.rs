//! The words every part of mailramp shares: ids, time, envelope, route, lane, and what a day of warm-up looks like.
//!
//! Knows nothing else in this crate, and does no I/O. Bytes of an envelope are kept as the client sent them; they
//! are parsed to be understood, never to be rewritten.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

pub const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// Length of a ledger slot: a quarter of an hour.
pub const SLOT_NANOS: i64 = 15 * 60 * NANOS_PER_SECOND;

/// A moment: nanoseconds since 1970-01-01T00:00:00Z, good until the year 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Later than any time that is ever compared with it; means "never".
    pub const NEVER: Timestamp = Timestamp(i64::MAX);

    pub const fn from_seconds(seconds: i64) -> Self {
        Timestamp(seconds * NANOS_PER_SECOND)
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(NANOS_PER_SECOND)
    }

    /// The quarter-hour of UTC this moment lies in.
    pub const fn slot(self) -> Slot {
        Slot(self.0.div_euclid(SLOT_NANOS))
    }

    /// This moment plus `duration`; stops at [`Timestamp::NEVER`].
    pub fn after(self, duration: Duration) -> Self {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this moment; zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A quarter-hour of UTC, counted from the epoch. Zones with odd offsets share the same slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub i64);

impl Slot {
    pub const fn start(self) -> Timestamp {
        Timestamp(self.0 * SLOT_NANOS)
    }
}

/// A calendar day in the configured zone, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i32);

impl Day {
    pub fn next(self) -> Day {
        Day(self.0 + 1)
    }
}

/// Where one day begins and ends. `ends` is the first moment of the next day, so a day has 23, 24 or 25 hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaySpan {
    pub day: Day,
    pub starts: Timestamp,
    pub ends: Timestamp,
}

/// Names one accepted message, from the 250 to the last log line. 60 bits, rising with time, written as twelve
/// characters of Crockford's base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u64);

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const QUEUE_ID_CHARS: usize = 12;

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; QUEUE_ID_CHARS];
        for (i, c) in text.iter_mut().enumerate() {
            let shift = 5 * (QUEUE_ID_CHARS - 1 - i);
            *c = CROCKFORD[(self.0 >> shift) as usize & 31];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for QueueId {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != QUEUE_ID_CHARS {
            return Err(());
        }
        text.bytes().try_fold(QueueId(0), |id, c| {
            let c = c.to_ascii_uppercase();
            let digit = CROCKFORD.iter().position(|x| *x == c).ok_or(())?;
            Ok(QueueId(id.0 << 5 | digit as u64))
        })
    }
}

/// The two servers mail can leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// The server or address being warmed.
    New,
    /// The old, trusted server.
    Legacy,
}

impl Route {
    pub const ALL: [Route; 2] = [Route::New, Route::Legacy];

    pub const fn name(self) -> &'static str {
        match self {
            Route::New => "new",
            Route::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A lane: one source sending to one mailbox provider; the thing that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u16);

impl LaneId {
    /// The total: a lane with share 1 that every claim passes. With `providers = "off"` the only one.
    pub const TOTAL: LaneId = LaneId(0);
}

/// A stream: one kind of the application's mail. Index into the configured list; the last resort is `DEFAULT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u8);

impl StreamId {
    /// Mail that no configured stream matches.
    pub const DEFAULT: StreamId = StreamId(0);
}

/// The line an item waits in: one per lane of the new server, and one for the legacy server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Queue {
    Legacy,
    New(LaneId),
}

impl Queue {
    pub const fn route(self) -> Route {
        match self {
            Queue::Legacy => Route::Legacy,
            Queue::New(_) => Route::New,
        }
    }

    /// As stored: 0 is legacy, lane n is n + 1.
    pub const fn code(self) -> i64 {
        match self {
            Queue::Legacy => 0,
            Queue::New(lane) => lane.0 as i64 + 1,
        }
    }

    pub fn from_code(code: i64) -> Option<Queue> {
        match code {
            0 => Some(Queue::Legacy),
            n => u16::try_from(n - 1).ok().map(|lane| Queue::New(LaneId(lane))),
        }
    }
}

/// Why mail went where it went. A closed set: `explain`, the log and the metrics use the same word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The limit has room.
    InQuota,
    /// The limit has none within the longest wait.
    OverQuota,
    /// Its token did not come before the deadline.
    MaxWait,
    /// The provider's brake is on.
    Brake,
    /// The message stays on the route it was first tried on.
    Pinned,
    /// The other route could not take it.
    Fallback,
    /// An operator, or a stream set to one route, said so.
    Manual,
    /// The machine's clock cannot be right, so nobody knows what the limit leaves.
    Clock,
    /// An operator has stopped the new server.
    Paused,
}

impl Reason {
    pub const ALL: [Reason; 9] = [
        Reason::InQuota,
        Reason::OverQuota,
        Reason::MaxWait,
        Reason::Brake,
        Reason::Pinned,
        Reason::Fallback,
        Reason::Manual,
        Reason::Clock,
        Reason::Paused,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Reason::InQuota => "in_quota",
            Reason::OverQuota => "over_quota",
            Reason::MaxWait => "max_wait",
            Reason::Brake => "brake",
            Reason::Pinned => "pinned",
            Reason::Fallback => "fallback",
            Reason::Manual => "manual",
            Reason::Clock => "clock",
            Reason::Paused => "paused",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much a lane may do while its provider asks for less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BrakeLevel {
    #[default]
    Open,
    /// A part of the pace.
    Slow,
    /// Nothing, until a time.
    Suspended,
    /// Nothing, until a person acts.
    Paused,
}

impl BrakeLevel {
    /// In the order of their stored code.
    pub const ALL: [BrakeLevel; 4] = [BrakeLevel::Open, BrakeLevel::Slow, BrakeLevel::Suspended, BrakeLevel::Paused];

    pub const fn name(self) -> &'static str {
        match self {
            BrakeLevel::Open => "open",
            BrakeLevel::Slow => "slow",
            BrakeLevel::Suspended => "suspended",
            BrakeLevel::Paused => "paused",
        }
    }
}

/// What the ramp does with a lane's stage at the end of a braked day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageStep {
    #[default]
    None,
    Hold,
    Back,
    BackTwo,
    /// Stands until a person acts.
    Freeze,
}

impl StageStep {
    /// In the order of their stored code.
    pub const ALL: [StageStep; 5] =
        [StageStep::None, StageStep::Hold, StageStep::Back, StageStep::BackTwo, StageStep::Freeze];
}

/// A lane's brake, as it is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrakeRecord {
    /// As it was put on; what is left of it at a later time is for the policy to say.
    pub level: BrakeLevel,
    /// The last time it was put on harder.
    pub since: Timestamp,
    /// When `level` ends. Without meaning while open or paused.
    pub until: Timestamp,
    /// The strongest that was asked for since the day began.
    pub step: StageStep,
    /// On at any time since the day began: the day cannot count.
    pub touched: bool,
    /// What put it on, one printable line.
    pub reason: String,
}

/// An operator has stopped the new server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    pub since: Timestamp,
    /// User id of who did it.
    pub actor: u32,
    pub reason: String,
}

/// Where a stream's mail goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamWay {
    /// Stays on the old server; takes no part in the ramp.
    Legacy,
    /// By the new server as far as the limit allows.
    #[default]
    Ramp,
    /// Only by the new server, with the first claim on its tokens, but never beyond the limit.
    New,
}

impl StreamWay {
    /// In the order of their stored code.
    pub const ALL: [StreamWay; 3] = [StreamWay::Legacy, StreamWay::Ramp, StreamWay::New];

    pub const fn name(self) -> &'static str {
        match self {
            StreamWay::Legacy => "legacy",
            StreamWay::Ramp => "ramp",
            StreamWay::New => "new",
        }
    }
}

/// An operator has moved a stream, now or for a time to come. Stands over the settings until it is undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamMove {
    /// Rises in the order in which moves were told.
    pub id: i64,
    pub to: StreamWay,
    /// From when on.
    pub at: Timestamp,
    /// When it was told.
    pub told: Timestamp,
    /// User id of who did it.
    pub actor: u32,
    pub reason: String,
}

/// One recipient as the client named it (RFC 5321 §4.1.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recipient {
    /// What stood between `<` and `>`, octet by octet. Never contains CR, LF, NUL or other controls.
    pub path: Bytes,
    /// The ESMTP parameters after the path (`NOTIFY=… ORCPT=…`), octet by octet, without the leading space.
    pub parameters: Bytes,
}

/// Who sends to whom (RFC 5321 §2.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What stood between `<` and `>` of MAIL FROM; empty for the null sender.
    pub reverse_path: Bytes,
    /// The ESMTP parameters of MAIL worth repeating (`BODY=…`, `SMTPUTF8`, `RET=…`, `ENVID=…`), not SIZE and AUTH.
    pub parameters: Bytes,
    pub recipients: Vec<Recipient>,
}

impl Envelope {
    /// Stands for one that was stored and cannot be read back: nobody to send to, nobody to tell.
    pub fn unreadable() -> Envelope {
        Envelope { reverse_path: Bytes::new(), parameters: Bytes::new(), recipients: Vec::new() }
    }
}

/// What one lane remembers of one day. Recipients throughout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DayRecord {
    pub day: Day,
    /// Largest limit in force that day; `None` when there was none (complete, or no warm-up).
    pub limit: Option<u64>,
    pub stage: u32,
    /// Accepted on streams that take part in the ramp.
    pub offered: u64,
    /// Reserved and not given back.
    pub reserved: u64,
    /// Acknowledged by the new server after its final dot.
    pub sent: u64,
    /// Acknowledged by the legacy server.
    pub legacy: u64,
    /// Braked or paused at any time of the day, so the day cannot count.
    pub braked: bool,
}

/// Where a lane stands in the ramp. Written at each day boundary, read by every decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaneRecord {
    pub lane: LaneId,
    pub stage: u32,
    /// Today's limit. `Some(0)` before the start date; `None`: unmetered.
    pub limit: Option<u64>,
    /// The lane's part of the curve, 0 to 1.
    pub share: f64,
    /// Days in a row with a brake or a pause, up to yesterday.
    pub braked_run: u32,
    pub last_braked: Option<Day>,
    /// Day boundaries in a row at which the lane could have been called complete.
    pub complete_run: u32,
    pub complete: bool,
    /// Days in a row that offered the limit and did not count.
    pub stalled_run: u32,
}

impl LaneRecord {
    /// At the foot of the curve, without a limit.
    pub const fn unmetered(lane: LaneId) -> Self {
        LaneRecord {
            lane,
            stage: 0,
            limit: None,
            share: 1.0,
            braked_run: 0,
            last_braked: None,
            complete_run: 0,
            complete: false,
            stalled_run: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_id_is_twelve_characters_that_read_back() {
        for id in [0, 1, 31, 32, 0x0123_4567_89ab_cdef >> 4, (1 << 60) - 1] {
            let text = QueueId(id).to_string();
            assert_eq!(text.len(), 12);
            assert_eq!(text.parse(), Ok(QueueId(id)));
        }
        assert_eq!("short".parse::<QueueId>(), Err(()));
        assert_eq!("01K5Y7Q2M8RU".parse::<QueueId>(), Err(()), "U is not in the alphabet");
    }

    #[test]
    fn queue_ids_sort_as_text_in_the_order_of_time() {
        assert!(QueueId(999).to_string() < QueueId(1000).to_string());
    }

    #[test]
    fn a_queue_reads_back_from_its_stored_code() {
        for queue in [Queue::Legacy, Queue::New(LaneId::TOTAL), Queue::New(LaneId(8))] {
            assert_eq!(Queue::from_code(queue.code()), Some(queue));
        }
        assert_eq!(Queue::from_code(-1), None);
    }

    #[test]
    fn slots_before_the_epoch_round_down() {
        assert_eq!(Timestamp(-1).slot(), Slot(-1));
        assert_eq!(Timestamp(SLOT_NANOS).slot(), Slot(1));
    }
}
