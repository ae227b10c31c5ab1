//! What was accepted, kept until it is settled; and the numbers that say how much may leave.
//!
//! Promises: what [`Spool::apply`] returned is durable. Tokens are reserved in the transaction that marks the items
//! in flight, and given back in the transaction that settles them, so no caller can send without a reservation or get
//! the order wrong. Every item is in one state; a body is stored once and lives as long as an item names it.
//!
//! One algorithm ([`Spool`]) over one trait of rows ([`Store`]): in memory for tests and simulations, SQLite with body
//! segments for real. It knows nothing of curves: the [`Gate`] it is handed decides, inside the transaction.
//!
//! Plain: [`item`], [`ledger`], [`engine`], [`by_hand`], [`standing`], [`bursts`], `restored`. I/O: [`sqlite`], [`segment`], [`committer`], [`body`], [`disk`],
//! [`identity`], [`backup`].

pub mod backup;
pub mod body;
pub mod bursts;
pub mod by_hand;
mod checkpoint;
pub mod committer;
mod database;
pub mod disk;
pub mod engine;
pub mod identity;
pub mod item;
pub mod ledger;
pub mod memory;
pub mod reader;
mod restored;
pub mod segment;
pub mod sqlite;
pub mod standing;

use std::io;
use std::time::Duration;

use bytes::Bytes;

pub use body::BodySource;
pub use engine::Spool;
pub use item::{BodyId, Item, ItemId, Reservation, Shift, State};
pub use ledger::{Ledger, Row, Turn};
pub use standing::{SetLane, Telling, Told, What};

use crate::clock::reckoning::Mark;
use crate::message::{DaySpan, LaneId, LaneRecord, Queue, QueueId, Reason, Recipient, Route, StreamId, Timestamp};
use body::NewBody;

/// Why the spool could not take or return something.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Too little room; nothing was written. Applications get 452 4.3.1.
    #[error("the spool has {free_bytes} bytes free and {used_bytes} in use; it keeps {required_bytes} free")]
    Full {
        /// Free on the file system.
        free_bytes: u64,
        /// Kept free (`queue.disk.min_free`).
        required_bytes: u64,
        /// Bodies in the queue.
        used_bytes: u64,
    },
    /// The operating system refused. `doing` completes the sentence "while …". Fatal when it was a commit or a sync:
    /// what is on disk is then unknown, and only a restart finds out.
    #[error("while {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The database refused. Fatal like [`SpoolError::Io`].
    #[error("while {doing}: {source}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// What the database has on disk is not what was written: bits that flipped, or a file that was cut. Fatal, and
    /// starting again finds the same.
    #[error(
        "the database spool.db is damaged (while {doing}: {source}). Starting again does not help: keep a copy of the data \
         directory as it is, and start on the last backup, or on what `sqlite3 spool.db .recover` can save"
    )]
    Damaged {
        /// What was being done.
        doing: &'static str,
        /// What SQLite said, or the value that no row can have.
        source: rusqlite::Error,
    },
    /// Another process holds the data directory.
    #[error("the data directory {0} is in use by another mailramp process")]
    Locked(String),
    /// The data directory cannot be used as it is: the text says what to mend.
    #[error("{0}")]
    Directory(String),
    /// The spool has stopped.
    #[error("the spool has stopped")]
    Stopped,
}

/// Who is asking for tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The lane of the recipients.
    pub lane: LaneId,
    /// Their stream.
    pub stream: StreamId,
    /// How many.
    pub recipients: u64,
}

/// Where the recipients of a fresh message go: the first `new` of them to the lane, the rest to the legacy server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Recipients for the lane, now or within the longest wait.
    pub new: u64,
    /// When those that still wait go to the legacy server; `None`: never.
    pub deadline: Option<Timestamp>,
    /// Why the `new` ones are.
    pub new_reason: Reason,
    /// Why the rest are not.
    pub rest_reason: Reason,
    /// They count as offered to the ramp.
    pub offered: bool,
}

/// What may leave now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The lane has no limit: no reservation is needed.
    Unmetered,
    /// `recipients` (at least one) are granted; the lanes' pace moves to `arrivals`.
    Some {
        /// How many, at most as many as asked for.
        recipients: u64,
        /// New arrival times of the pace, by lane.
        arrivals: Vec<(LaneId, Timestamp)>,
    },
    /// None before `until`. `stream_only`: other streams of the lane may have some.
    None {
        /// The earliest time at which asking again can help.
        until: Timestamp,
        /// Only this stream is out of tokens.
        stream_only: bool,
    },
}

/// Decides about quota while the spool holds its transaction. Implementations are pure: same ledger, same answer.
pub trait Gate: Send + Sync {
    /// The next change of day that is due at `now`; `None` while the day in force lasts. One day at a time.
    fn turn(&self, ledger: &Ledger, now: Timestamp) -> Option<Turn>;
    /// Where fresh recipients go.
    fn admit(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Admission;
    /// How many of the asked-for recipients may leave by `new` now.
    fn grant(&self, ledger: &Ledger, ask: Ask, now: Timestamp) -> Grant;
    /// How long mail may wait for a server; `None`: for ever.
    fn life(&self) -> Option<Duration>;
    /// Why waiting mail of this stream must not wait for the lane any more: the legacy server takes it. `None`: it may.
    fn gives_back(&self, _ledger: &Ledger, _lane: LaneId, _stream: StreamId, _now: Timestamp) -> Option<Reason> {
        None
    }
    /// The recipient's lane, as far as it is known now; `None`: the one it was put in.
    fn lane_of(&self, _recipient: &Recipient) -> Option<LaneId> {
        None
    }
    /// How the stream's mail is spread over the day is asked for.
    fn watches_bursts(&self, _stream: StreamId) -> bool {
        false
    }
    /// Streams in the order in which they are served; `None`: as the dispatcher has it.
    fn order(&self, _ledger: &Ledger, _now: Timestamp) -> Option<Vec<StreamId>> {
        None
    }
    /// Every lane as it stands when an operator sets the ramp to `stage`; none without a ramp.
    fn set_day(&self, _ledger: &Ledger, _stage: u32, _now: Timestamp) -> Vec<SetLane> {
        Vec::new()
    }
    /// The day that `now` lies in; `None` where days do not follow the clock.
    fn span_at(&self, _now: Timestamp) -> Option<DaySpan> {
        None
    }
}

/// Connections that stand ready. What is accepted while one does is handed over at once, in the same transaction.
pub trait Slots: Send + Sync {
    /// Takes one ready connection of `route`, if there is one.
    fn take(&self, route: Route) -> bool;
    /// Gives back what was taken and not used.
    fn give_back(&self, route: Route, count: usize);
}

/// No connection ever stands ready: everything waits for a claim.
pub struct NoSlots;

impl Slots for NoSlots {
    fn take(&self, _: Route) -> bool {
        false
    }
    fn give_back(&self, _: Route, _: usize) {}
}

/// Recipients of one message that share a lane and a stream.
#[derive(Clone, Debug)]
pub struct Part {
    /// Their lane.
    pub lane: LaneId,
    /// Their stream.
    pub stream: StreamId,
    /// At least one.
    pub recipients: Vec<Recipient>,
    /// Set: the gate is not asked, they go there (our own reports, an operator's test).
    pub only: Option<Route>,
}

/// A message to be stored.
#[derive(Clone, Debug)]
pub struct Accept {
    /// Its name.
    pub id: QueueId,
    /// Envelope sender as received; empty for the null sender.
    pub reverse_path: Bytes,
    /// Parameters of MAIL worth repeating.
    pub parameters: Bytes,
    /// Its recipients by lane and stream.
    pub parts: Vec<Part>,
    /// Its octets.
    pub body: NewBody,
}

/// Where a part of an accepted message went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The line.
    pub queue: Queue,
    /// Its stream.
    pub stream: StreamId,
    /// What it does there.
    pub state: State,
    /// How many recipients.
    pub recipients: u64,
    /// Why.
    pub reason: Reason,
}

/// What became of one recipient of an item that was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The next hop took it.
    Relayed,
    /// Definitely not accepted, not yet final: try again at `due`.
    Deferred {
        /// Earliest next attempt.
        due: Timestamp,
    },
    /// The same, and only by this route: the other one would be refused as well.
    Kept {
        /// Earliest next attempt.
        due: Timestamp,
    },
    /// No answer to the final dot: used up, try again at `due` on the same route.
    Unknown {
        /// Earliest next attempt.
        due: Timestamp,
    },
    /// Nothing was said about it: back in line as it was.
    Untouched,
    /// Definitely not accepted by this route; the legacy server takes it. An item that is `maybe` keeps its route
    /// all the same, and is deferred.
    Rerouted {
        /// Why.
        reason: Reason,
    },
    /// Final: failed. A report goes with the settle, or the caller asks for a dead letter.
    Failed,
    /// Final: failed with nobody to tell. Kept as a dead letter until `until`.
    Dead {
        /// How long it is kept.
        until: Timestamp,
    },
    /// Its octets are damaged.
    Damaged,
}

/// The outcome of one item that was in flight.
#[derive(Clone, Debug)]
pub struct Settle {
    /// As claimed.
    pub item: Item,
    /// What the next hop said, one printable line.
    pub reply: String,
    /// End of life of what remains, unless an earlier attempt has set it.
    pub expires: Timestamp,
    /// One for each recipient, in order.
    pub fates: Vec<Fate>,
    /// A report to the sender about those that failed, stored in the same transaction.
    pub report: Option<Accept>,
}

/// Asks for items to send.
#[derive(Clone, Debug)]
pub struct Claim {
    /// From this line.
    pub queue: Queue,
    /// Of these streams, in the order in which they are served.
    pub streams: Vec<StreamId>,
    /// At most so many items; connections stand ready for them.
    pub most_items: usize,
}

/// What a claim found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimAnswer {
    /// Items handed over.
    pub items: usize,
    /// For each stream asked about, in that order, when asking about it again can help as far as the stream alone is
    /// concerned: when its first item is due, or its share has room. `None`: nothing waits.
    pub next_due: Vec<(StreamId, Option<Timestamp>)>,
    /// The lane refused this stream: asking again for it, or for those after it, helps from here on, whatever
    /// `next_due` says.
    pub blocked: Option<(StreamId, Timestamp)>,
    /// How much of the lane's limit is used, in thousandths: the least used lane is served first.
    pub used_permille: u64,
}

/// An item on its way to a connection, its tokens reserved.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// As stored, in flight.
    pub item: Item,
    /// Its octets.
    pub body: BodySource,
    /// CRC-32 of the octets.
    pub crc: u32,
    /// When the tokens were reserved.
    pub at: Timestamp,
}

/// Work beside accept, claim and settle.
#[derive(Clone, Debug, PartialEq)]
pub enum Chore {
    /// Give waiting items whose deadline has passed to the legacy server, at most so many.
    MoveOverdue {
        /// Items in one transaction.
        most_items: usize,
    },
    /// Give due items of a line to the legacy server, since the new one cannot be reached. Never those that may have
    /// left, nor those an operator sent here.
    FallBack {
        /// From this line.
        queue: Queue,
        /// Of these streams.
        streams: Vec<StreamId>,
        /// Also those without a deadline.
        undated: bool,
        /// Items in one transaction.
        most_items: usize,
    },
    /// Hand over items that have expired, in flight and without tokens, so that they can be settled as failed.
    TakeExpired {
        /// Items in one transaction.
        most_items: usize,
    },
    /// Make deferred items due now, at most so many; `message`: only this one.
    Flush {
        /// One message only.
        message: Option<QueueId>,
        /// Items in one transaction.
        most_items: usize,
    },
    /// What an operator asked for.
    ByHand(by_hand::Order),
    /// Keep what was told.
    Tell(Telling),
    /// Give to the legacy server what must not wait for the new one any more: a brake, a pause, a stream that was moved.
    /// Never what may have left, nor what an operator sent there.
    GiveBack {
        /// Items in one transaction.
        most_items: usize,
    },
    /// Drop dead letters whose time is over, at most so many.
    DropDead {
        /// Items in one transaction.
        most_items: usize,
    },
}

/// What a chore did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoreAnswer {
    /// Items touched.
    pub items: usize,
    /// Recipients touched.
    pub recipients: u64,
    /// When the next item of this kind is due; `None`: there is none.
    pub next: Option<Timestamp>,
    /// The rest of the answer to [`Chore::ByHand`].
    pub by_hand: Option<Box<by_hand::Acted>>,
    /// The answer to [`Chore::Tell`].
    pub told: Option<Box<Told>>,
}

/// A line got items: its stream may have work at `due`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The line.
    pub queue: Queue,
    /// The stream.
    pub stream: StreamId,
    /// When the item is due.
    pub due: Timestamp,
}

/// News of the clock, to be stored. `now` of the batch goes by it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockNote {
    /// Which time it is, so that the next start knows.
    pub mark: Mark,
    /// The clock cannot be right: the gate is shut.
    pub doubtful: bool,
    /// The machine was off for so long: nobody could send, so lives of messages grow by it.
    pub missed: Duration,
    /// An operator accepted a clock that is off by so many nanoseconds: every stored time moves with it.
    pub moved: i64,
}

/// Everything that waited while the previous commit ran. Applied in the order of its fields, in one transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// What is new about the clock, before anything asks what time it is.
    pub clock: Option<ClockNote>,
    /// Outcomes first: they free room and tokens.
    pub settles: Vec<Settle>,
    /// Then what is owed to connections that stand ready.
    pub claims: Vec<Claim>,
    /// Then housekeeping.
    pub chores: Vec<Chore>,
    /// Then new mail.
    pub accepts: Vec<Accept>,
}

impl Batch {
    /// Nothing to do. The clock alone is none: its news can wait until somebody asks for something.
    pub fn is_empty(&self) -> bool {
        self.settles.is_empty() && self.claims.is_empty() && self.chores.is_empty() && self.accepts.is_empty()
    }
}

/// What a committed batch did; the answers stand in the order of the questions.
#[derive(Debug, Default)]
pub struct Done {
    /// One for each claim.
    pub claims: Vec<ClaimAnswer>,
    /// One for each chore.
    pub chores: Vec<ChoreAnswer>,
    /// One for each accept.
    pub accepts: Vec<Vec<Placed>>,
    /// Items to send, from claims and from accepts that found a connection ready.
    pub handed: Vec<Claimed>,
    /// Items that have expired: to be settled as failed.
    pub expired: Vec<Claimed>,
    /// Lines that got items.
    pub touched: Vec<Touched>,
    /// Lines whose lane got tokens back.
    pub refunded: Vec<Queue>,
    /// The earliest deadline and expiry among what was written; hints for timers.
    pub wake: Option<Timestamp>,
    /// Streams are served in this order from here on: one was moved, or named.
    pub order: Option<Vec<StreamId>>,
    /// The total at each change of day, oldest first: what it was, and what it is now.
    pub days: Vec<(Option<LaneRecord>, LaneRecord)>,
    /// Messages of items that were put aside, since their envelope or their octets cannot be read.
    pub quarantined: Vec<QueueId>,
    /// Recipients that the new server acknowledged beyond the day's limit. Counted from acknowledgements, not from the
    /// reservations that keep it from happening.
    pub overrun_recipients: u64,
}

/// Rows and bodies of one spool. One caller; `begin` … `commit` is one transaction, durable when `commit` returns.
pub trait Store: Send {
    /// Everything the ledger was stored as, and the reservations of items in flight.
    fn ledger_rows(&mut self) -> Result<Vec<Row>, SpoolError>;
    /// Highest item id ever given, and highest queue id seen.
    fn last_ids(&mut self) -> Result<(ItemId, QueueId), SpoolError>;
    /// Opens a transaction.
    fn begin(&mut self) -> Result<(), SpoolError>;
    /// Makes everything since `begin` durable.
    fn commit(&mut self) -> Result<(), SpoolError>;
    /// Forgets everything since `begin`.
    fn rollback(&mut self) -> Result<(), SpoolError>;
    /// Writes one row of the ledger.
    fn save(&mut self, row: &Row) -> Result<(), SpoolError>;
    /// Stores a body that `references` items will name.
    fn insert_body(&mut self, body: &NewBody, message: QueueId, references: u64) -> Result<BodyId, SpoolError>;
    /// In this transaction no row may be durable before its body is. Otherwise a power cut may leave a row whose body is
    /// not there, which is right only for what nobody was told of.
    fn bodies_first(&mut self) {}
    /// Changes how many items name the body; at zero it is gone.
    fn reference_body(&mut self, body: BodyId, change: i64) -> Result<(), SpoolError>;
    /// Where the octets are, and their CRC-32. `None`: the row is gone.
    fn body(&mut self, body: BodyId) -> Result<Option<(BodySource, u32)>, SpoolError>;
    /// Adds an item; its id was never used before.
    fn insert(&mut self, item: &Item) -> Result<(), SpoolError>;
    /// Replaces the item of that id.
    fn update(&mut self, item: &Item) -> Result<(), SpoolError>;
    /// Changes the state of an item and nothing else.
    fn set_state(&mut self, id: ItemId, state: State) -> Result<(), SpoolError>;
    /// One item.
    fn get(&mut self, id: ItemId) -> Result<Option<Item>, SpoolError>;
    /// Removes the item.
    fn remove(&mut self, id: ItemId) -> Result<(), SpoolError>;
    /// Waiting items of a line and stream that are due, oldest first.
    fn due(&mut self, queue: Queue, stream: StreamId, now: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError>;
    /// When the first waiting item of a line and stream is due.
    fn next_due(&mut self, queue: Queue, stream: StreamId) -> Result<Option<Timestamp>, SpoolError>;
    /// Waiting items with a deadline, earliest first, up to and with `until`.
    fn overdue(&mut self, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError>;
    /// Items that wait (or, with `dead`, dead letters) whose life ends at or before `until`, earliest first.
    fn expired(&mut self, dead: bool, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError>;
    /// Items in `state` with an id above `above`, in the order of their ids.
    fn in_state(&mut self, state: State, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError>;
    /// Bodies that were found damaged when the store was opened.
    fn damaged(&mut self) -> Vec<BodyId> {
        Vec::new()
    }
    /// Moves the times of every item.
    fn shift(&mut self, shift: &Shift) -> Result<(), SpoolError>;
    /// No waiting item is due later than `latest`. Returns how many were.
    fn due_by(&mut self, latest: Timestamp) -> Result<usize, SpoolError>;
    /// Items that name a body.
    fn of_body(&mut self, body: BodyId) -> Result<Vec<Item>, SpoolError>;
    /// Items of one message.
    fn of_message(&mut self, message: QueueId) -> Result<Vec<Item>, SpoolError>;
    /// Adds to the audit's entry of this job what a step of it did. `true`: it is the first step. A store that keeps
    /// nothing keeps no audit either.
    fn audit(
        &mut self,
        _action: &str,
        _audit: &by_hand::Audit,
        _now: Timestamp,
        _did: &ChoreAnswer,
        _bytes: u64,
    ) -> Result<bool, SpoolError> {
        Ok(true)
    }
    /// From here on, and until [`Store::adopt`], every start finds that the data was restored.
    fn disown(&mut self) -> Result<(), SpoolError> {
        Ok(())
    }
    /// The data is at home where it lies now.
    fn adopt(&mut self) -> Result<(), SpoolError> {
        Ok(())
    }
    /// Room for new mail; `Err(Full)` with the figures when there is too little. `queued` octets are in the queue.
    fn room(&mut self, queued: u64) -> Result<(), SpoolError>;
    /// Gives up the reserve that is kept for settles on a full disk. `false`: there is none left.
    fn free_ballast(&mut self) -> bool;
}
