//! The database of the spool: its tables, how it is opened, and how its rows are read.
//!
//! Nothing here writes rows; the store does.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, Row as SqlRow};

use super::SpoolError;
use super::item::{BodyId, Item, ItemId, Reservation, State, decode_envelope};
use super::ledger::{Row, StreamDay, Total};
use crate::clock::reckoning::{BootId, Mark};
use crate::message::{
    BrakeLevel, BrakeRecord, Day, DayRecord, DaySpan, Envelope, LaneId, LaneRecord, Pause, Queue, QueueId, Reason,
    Slot, StageStep, StreamId, StreamMove, StreamWay, Timestamp,
};

pub(super) const SCHEMA_VERSION: i64 = 1;
const STATEMENTS: usize = 64;

const SCHEMA: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- data: inline; seg and off: in a segment; neither: the file large/<message>
CREATE TABLE body(id INTEGER PRIMARY KEY, message INT, refs INT, size INT, crc INT, seg INT, off INT, data BLOB);
-- synced: end known to be on disk; tail: first body that may lie beyond it, the largest integer when none does
CREATE INDEX body_large ON body(message) WHERE seg IS NULL AND data IS NULL;
CREATE TABLE seg(id INTEGER PRIMARY KEY, live INT, synced INT, tail INT);
CREATE TABLE item(id INTEGER PRIMARY KEY, message INT, body INT, size INT, queue INT, lane INT, stream INT, state INT,
  maybe INT, reason INT, accepted INT, due INT, deadline INT, expires INT, attempts INT, slot INT, day INT,
  reserved INT, rcpts INT, envelope BLOB, reply TEXT);
CREATE INDEX item_line ON item(queue, stream, due, id) WHERE state < 3;
CREATE INDEX item_deadline ON item(deadline, id) WHERE state < 3 AND deadline IS NOT NULL;
CREATE INDEX item_expires ON item(expires, id) WHERE state < 3 AND expires IS NOT NULL;
CREATE INDEX item_dead ON item(expires, id) WHERE state = 4;
CREATE INDEX item_state ON item(state, id);
CREATE TABLE total(queue INT, stream INT, state INT, items INT, rcpts INT, bytes INT,
  PRIMARY KEY(queue, stream, state)) WITHOUT ROWID;
CREATE TABLE span(one INTEGER PRIMARY KEY CHECK(one = 1), day INT, starts INT, ends INT);
CREATE TABLE lane(id INTEGER PRIMARY KEY, stage INT, max INT, share REAL, braked_run INT, last_braked INT,
  complete_run INT, complete INT, stalled_run INT, arrival INT);
CREATE TABLE slot(lane INT, slot INT, reserved INT, PRIMARY KEY(lane, slot)) WITHOUT ROWID;
CREATE TABLE day(lane INT, day INT, max INT, stage INT, offered INT, reserved INT, sent INT, legacy INT, braked INT,
  PRIMARY KEY(lane, day)) WITHOUT ROWID;
CREATE TABLE stream_day(lane INT, stream INT, day INT, offered INT, reserved INT,
  PRIMARY KEY(lane, stream, day)) WITHOUT ROWID;
";

/// What came after the first tables; laid when a database is opened that has it not. Versions that do not know it can
/// still use the database.
pub(super) const ADDED: &str = "
CREATE INDEX IF NOT EXISTS item_message ON item(message, id);
-- what operators did by hand; one row for each command
CREATE TABLE IF NOT EXISTS audit(job INTEGER PRIMARY KEY, at INT, actor INT, action TEXT, detail TEXT, items INT,
  rcpts INT, bytes INT);
-- what was told and stands
CREATE TABLE IF NOT EXISTS brake(lane INTEGER PRIMARY KEY, level INT, since INT, until INT, step INT, touched INT,
  reason TEXT);
CREATE TABLE IF NOT EXISTS memory(lane INTEGER PRIMARY KEY, day INT, rcpts INT);
CREATE TABLE IF NOT EXISTS pause(one INTEGER PRIMARY KEY CHECK(one = 1), since INT, actor INT, reason TEXT);
CREATE TABLE IF NOT EXISTS stream(id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE IF NOT EXISTS offered(stream INT, slot INT, rcpts INT, PRIMARY KEY(stream, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS move(id INTEGER PRIMARY KEY, stream INT, way INT, at INT, told INT, actor INT, reason TEXT);
";

/// Entries of the audit that are kept.
pub(super) const AUDIT_MOST: i64 = 10_000;

pub(super) const ITEM: &str = "id, message, body, size, queue, lane, stream, state, maybe, reason, accepted, due, deadline, \
                    expires, attempts, slot, day, reserved, envelope, reply";

pub(super) const IN_FLIGHT: &str = "SELECT lane, slot, day, reserved FROM item WHERE state = 3 AND slot IS NOT NULL";

pub(super) fn database(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> SpoolError {
    move |source| match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => full(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            SpoolError::Damaged { doing, source }
        }
        // SQLite has no checksums: a flipped bit may also be a value that we never write.
        None if is_strange(&source) => SpoolError::Damaged { doing, source },
        _ => SpoolError::Database { doing, source },
    }
}

fn is_strange(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    matches!(error, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..))
}

pub(super) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> SpoolError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => full(),
        // Passes as a full disk does: nothing was written, and it may go better in a moment.
        _ if source.raw_os_error().is_some_and(out_of_descriptors) => full(),
        _ => SpoolError::Io { doing, source },
    }
}

/// EMFILE and ENFILE.
fn out_of_descriptors(code: i32) -> bool {
    [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].iter().any(|errno| errno.raw_os_error() == code)
}

fn full() -> SpoolError {
    SpoolError::Full { free_bytes: 0, required_bytes: 0, used_bytes: 0 }
}

pub(super) fn connect(file: &Path) -> Result<Connection, SpoolError> {
    let connection = Connection::open(file).map_err(database("opening the database"))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection
        .execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY; PRAGMA busy_timeout = 5000;",
        )
        .map_err(database("setting up the database"))?;
    Ok(connection)
}

pub(super) fn create(connection: &Connection) -> Result<(), SpoolError> {
    connection
        .execute_batch(&format!(
            "BEGIN; {SCHEMA} INSERT INTO meta(key, value) VALUES('schema', {SCHEMA_VERSION}); COMMIT;"
        ))
        .map_err(database("creating the database"))
}

pub(super) fn rows<T>(
    connection: &Connection,
    sql: &str,
    read: impl FnMut(&SqlRow<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, SpoolError> {
    let mut statement = connection.prepare(sql).map_err(database("preparing a statement"))?;
    let found = statement.query_map([], read).map_err(database("reading rows"))?;
    found.collect::<rusqlite::Result<_>>().map_err(database("reading a row"))
}

/// A stored item. One whose envelope cannot be read comes back without recipients; the engine puts it aside.
pub(super) fn read_item(row: &SqlRow<'_>) -> rusqlite::Result<Item> {
    let damaged = |column, what: &'static str| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Integer, what.into())
    };
    let time =
        |column| -> rusqlite::Result<Option<Timestamp>> { Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp)) };
    let envelope: Option<Envelope> = decode_envelope(row.get_ref(18)?.as_blob()?);
    let slot: Option<i64> = row.get(15)?;
    Ok(Item {
        id: ItemId(row.get(0)?),
        message: QueueId(row.get::<_, i64>(1)? as u64),
        body: BodyId(row.get(2)?),
        size: row.get(3)?,
        queue: Queue::from_code(row.get(4)?).ok_or_else(|| damaged(4, "unknown line"))?,
        lane: LaneId(row.get(5)?),
        stream: StreamId(row.get(6)?),
        state: State::from_code(row.get(7)?).ok_or_else(|| damaged(7, "unknown state"))?,
        maybe: row.get(8)?,
        reason: Reason::ALL.get(row.get::<_, usize>(9)?).copied().ok_or_else(|| damaged(9, "unknown reason"))?,
        accepted: Timestamp(row.get(10)?),
        due: Timestamp(row.get(11)?),
        deadline: time(12)?,
        expires: time(13)?,
        attempts: row.get(14)?,
        reservation: match slot {
            Some(slot) => Some(Reservation { slot: Slot(slot), day: Day(row.get(16)?), recipients: row.get(17)? }),
            None => None,
        },
        envelope: envelope.unwrap_or_else(Envelope::unreadable),
        last_reply: row.get(19)?,
    })
}

/// As stored in `meta`: time, boot, time since the boot in nanoseconds, 1 when the clock is in doubt.
pub(super) fn clock_text(mark: &Mark, doubtful: bool) -> String {
    format!("{} {:032x} {} {}", mark.time.0, mark.boot.0, mark.since_boot.as_nanos(), u8::from(doubtful))
}

/// `None` for a text that is none of ours: then nothing is known of the time.
fn read_clock(text: &str) -> Option<Row> {
    let mut words = text.split(' ');
    let time = Timestamp(words.next()?.parse().ok()?);
    let boot = BootId(u128::from_str_radix(words.next()?, 16).ok()?);
    let since_boot = Duration::from_nanos(words.next()?.parse().ok()?);
    let doubtful = words.next()? == "1";
    Some(Row::Clock { mark: Mark { time, boot, since_boot }, doubtful })
}

/// Everything the ledger was stored as, and the reservations of items in flight.
pub(super) fn ledger_rows(c: &Connection) -> Result<Vec<Row>, SpoolError> {
    let mut all = Vec::new();
    let clock = rows(c, "SELECT value FROM meta WHERE key = 'clock'", |r| r.get::<_, String>(0))?;
    all.extend(clock.first().and_then(|text| read_clock(text)));
    all.extend(rows(c, "SELECT day, starts, ends FROM span", |r| {
        let (starts, ends) = (Timestamp(r.get(1)?), Timestamp(r.get(2)?));
        Ok(Row::Span(DaySpan { day: Day(r.get(0)?), starts, ends }))
    })?);
    all.extend(rows(
        c,
        "SELECT id, stage, max, share, braked_run, last_braked, complete_run, complete, stalled_run, arrival FROM lane",
        |r| {
            let record = LaneRecord {
                lane: LaneId(r.get(0)?),
                stage: r.get(1)?,
                limit: r.get(2)?,
                share: r.get(3)?,
                braked_run: r.get(4)?,
                last_braked: r.get::<_, Option<i32>>(5)?.map(Day),
                complete_run: r.get(6)?,
                complete: r.get(7)?,
                stalled_run: r.get(8)?,
            };
            Ok(Row::Lane { record, arrival: Timestamp(r.get(9)?) })
        },
    )?);
    all.extend(rows(
        c,
        "SELECT lane, day, max, stage, offered, reserved, sent, legacy, braked FROM day ORDER BY lane, day",
        |r| {
            let record = DayRecord {
                day: Day(r.get(1)?),
                limit: r.get(2)?,
                stage: r.get(3)?,
                offered: r.get(4)?,
                reserved: r.get(5)?,
                sent: r.get(6)?,
                legacy: r.get(7)?,
                braked: r.get(8)?,
            };
            Ok(Row::Day { lane: LaneId(r.get(0)?), record })
        },
    )?);
    all.extend(rows(c, "SELECT lane, slot, reserved FROM slot", |r| {
        Ok(Row::Slot { lane: LaneId(r.get(0)?), slot: Slot(r.get(1)?), reserved: r.get(2)? })
    })?);
    all.extend(rows(c, "SELECT lane, stream, day, offered, reserved FROM stream_day", |r| {
        let counts = StreamDay { offered: r.get(3)?, reserved: r.get(4)? };
        Ok(Row::Stream { lane: LaneId(r.get(0)?), stream: StreamId(r.get(1)?), day: Day(r.get(2)?), counts })
    })?);
    let totals = rows(c, "SELECT queue, stream, state, items, rcpts, bytes FROM total", |r| {
        let total = Total { items: r.get(3)?, recipients: r.get(4)?, bytes: r.get(5)? };
        Ok((r.get(0)?, r.get(1)?, r.get(2)?, total))
    })?;
    for (queue, stream, state, total) in totals {
        if let (Some(queue), Some(state)) = (Queue::from_code(queue), State::from_code(state)) {
            all.push(Row::Total { queue, stream: StreamId(stream), state, total });
        }
    }
    standing_rows(c, &mut all)?;
    all.extend(rows(c, IN_FLIGHT, |r| {
        let reservation = Reservation { slot: Slot(r.get(1)?), day: Day(r.get(2)?), recipients: r.get(3)? };
        Ok(Row::Outstanding { lane: LaneId(r.get(0)?), reservation })
    })?);
    Ok(all)
}

fn standing_rows(c: &Connection, all: &mut Vec<Row>) -> Result<(), SpoolError> {
    let strange = |column, what: &'static str| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Integer, what.into())
    };
    all.extend(rows(c, "SELECT lane, level, since, until, step, touched, reason FROM brake", |r| {
        let level = BrakeLevel::ALL.get(r.get::<_, usize>(1)?).ok_or_else(|| strange(1, "unknown level"))?;
        let step = StageStep::ALL.get(r.get::<_, usize>(4)?).ok_or_else(|| strange(4, "unknown step"))?;
        let record = BrakeRecord {
            level: *level,
            since: Timestamp(r.get(2)?),
            until: Timestamp(r.get(3)?),
            step: *step,
            touched: r.get(5)?,
            reason: r.get(6)?,
        };
        Ok(Row::Brake { lane: LaneId(r.get(0)?), record })
    })?);
    all.extend(rows(c, "SELECT lane, day, rcpts FROM memory", |r| {
        Ok(Row::Memory { lane: LaneId(r.get(0)?), day: Day(r.get(1)?), recipients: r.get(2)? })
    })?);
    all.extend(rows(c, "SELECT stream, slot, rcpts FROM offered", |r| {
        Ok(Row::Offered { stream: StreamId(r.get(0)?), slot: Slot(r.get(1)?), recipients: r.get(2)? })
    })?);
    all.extend(rows(c, "SELECT since, actor, reason FROM pause", |r| {
        Ok(Row::Pause(Some(Pause { since: Timestamp(r.get(0)?), actor: r.get(1)?, reason: r.get(2)? })))
    })?);
    all.extend(rows(c, "SELECT id, name FROM stream ORDER BY id", |r| {
        Ok(Row::StreamName { stream: StreamId(r.get(0)?), name: r.get(1)? })
    })?);
    let moves = rows(c, "SELECT stream, id, way, at, told, actor, reason FROM move ORDER BY id", |r| {
        let to = *StreamWay::ALL.get(r.get::<_, usize>(2)?).ok_or_else(|| strange(2, "unknown way"))?;
        let told = StreamMove {
            id: r.get(1)?,
            to,
            at: Timestamp(r.get(3)?),
            told: Timestamp(r.get(4)?),
            actor: r.get(5)?,
            reason: r.get(6)?,
        };
        Ok((StreamId(r.get(0)?), told))
    })?;
    let mut by_stream: BTreeMap<StreamId, Vec<StreamMove>> = BTreeMap::new();
    for (stream, told) in moves {
        by_stream.entry(stream).or_default().push(told);
    }
    all.extend(by_stream.into_iter().map(|(stream, moves)| Row::Moves { stream, moves }));
    Ok(())
}
