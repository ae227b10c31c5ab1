//! Listings of the queue, on read-only connections of their own, so that nobody's 250 waits for one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};

use super::body::BodySource;
use super::by_hand;
use super::database::{ITEM, database, read_item, system};
use super::item::{BodyId, Item, ItemId, State};
use super::{SpoolError, segment};
use crate::message::{QueueId, StreamId, Timestamp};

/// Which items are meant: those that match all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemFilter {
    /// Of this stream.
    pub stream: Option<StreamId>,
    /// In this state; none: any.
    pub state: Option<State>,
    /// Accepted at or before.
    pub accepted_until: Option<Timestamp>,
    /// Of this message.
    pub message: Option<QueueId>,
    /// With a recipient in this domain.
    pub domain: Option<String>,
}

impl ItemFilter {
    /// What the database cannot see, since envelopes are octets to it.
    fn matches_recipients(&self, item: &Item) -> bool {
        let domain = self.domain.as_deref();
        domain.is_none_or(|domain| item.envelope.recipients.iter().any(|r| by_hand::is_at(r, domain)))
    }

    /// Recipients of a matching item that are meant.
    pub fn recipients_of(&self, item: &Item) -> u64 {
        match &self.domain {
            None => item.recipients(),
            Some(domain) => item.envelope.recipients.iter().filter(|r| by_hand::is_at(r, domain)).count() as u64,
        }
    }
}

/// How many match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Items.
    pub items: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Octets of their bodies.
    pub bytes: u64,
}

impl Count {
    /// One more item, of which so many recipients are meant.
    pub fn add(&mut self, item: &Item, recipients: u64) {
        self.items += 1;
        self.recipients += recipients;
        self.bytes += item.size;
    }
}

/// A command of an operator, as the audit keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// When its first step was done.
    pub at: Timestamp,
    /// User id of who asked.
    pub actor: u32,
    /// The word for it.
    pub action: String,
    /// What was asked for.
    pub detail: String,
    /// What it did to queued mail.
    pub did: Count,
}

/// Reads the queue beside the committer.
pub struct QueueReader {
    data_dir: PathBuf,
    connection: Mutex<Connection>,
}

impl QueueReader {
    /// Opens the database of a spool that exists.
    pub fn open(data_dir: &Path) -> Result<Self, SpoolError> {
        Ok(QueueReader { data_dir: data_dir.to_owned(), connection: Mutex::new(read_only(data_dir)?) })
    }

    /// Up to `most` matching items with an id above `above`, oldest first.
    pub fn list(&self, filter: &ItemFilter, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError> {
        if filter.domain.is_none() {
            return page(&self.connection(), filter, above, most);
        }
        let mut found = Vec::new();
        self.each(filter, |item| {
            if item.id > above {
                found.push(item);
            }
            found.len() < most
        })?;
        Ok(found)
    }

    /// How many items match.
    pub fn count(&self, filter: &ItemFilter) -> Result<Count, SpoolError> {
        if filter.domain.is_some() {
            let mut count = Count::default();
            self.each(filter, |item| {
                count.add(&item, filter.recipients_of(&item));
                true
            })?;
            return Ok(count);
        }
        let (clause, values) = clause(filter);
        let sql = format!("SELECT count(*), ifnull(sum(rcpts), 0), ifnull(sum(size), 0) FROM item WHERE {clause}");
        let values: Vec<&dyn ToSql> = values.iter().map(|v| v as &dyn ToSql).collect();
        self.connection()
            .query_row(&sql, &values[..], |r| Ok(Count { items: r.get(0)?, recipients: r.get(1)?, bytes: r.get(2)? }))
            .map_err(database("counting the queue"))
    }

    /// Shows every matching item to `look`, oldest first, until it says `false`. All as of one moment: a connection of
    /// its own reads one snapshot, so that others can list meanwhile.
    pub fn each(&self, filter: &ItemFilter, mut look: impl FnMut(Item) -> bool) -> Result<(), SpoolError> {
        let connection = read_only(&self.data_dir)?;
        let (clause, values) = clause(filter);
        let sql = format!("SELECT {ITEM} FROM item WHERE {clause} ORDER BY id");
        let mut statement = connection.prepare(&sql).map_err(database("listing the queue"))?;
        let values: Vec<&dyn ToSql> = values.iter().map(|v| v as &dyn ToSql).collect();
        for item in statement.query_map(&values[..], read_item).map_err(database("listing the queue"))? {
            let item = item.map_err(database("listing the queue"))?;
            if filter.matches_recipients(&item) && !look(item) {
                break;
            }
        }
        Ok(())
    }

    /// The item that has been in `state` with the lowest id: the oldest one.
    pub fn oldest(&self, state: State) -> Result<Option<Item>, SpoolError> {
        self.connection()
            .query_row(
                &format!("SELECT {ITEM} FROM item WHERE state = ?1 ORDER BY id LIMIT 1"),
                params![state.code()],
                read_item,
            )
            .optional()
            .map_err(database("looking for the oldest message"))
    }

    /// What operators did since `since`, oldest first; of more than `most` the newest.
    pub fn audit(&self, since: Timestamp, most: usize) -> Result<Vec<Audited>, SpoolError> {
        let connection = self.connection();
        let sql = "SELECT at, actor, action, detail, items, rcpts, bytes FROM audit WHERE at >= ?1 ORDER BY job DESC LIMIT ?2";
        let mut statement = connection.prepare_cached(sql).map_err(database("reading the audit"))?;
        let read = |r: &rusqlite::Row<'_>| {
            Ok(Audited {
                at: Timestamp(r.get(0)?),
                actor: r.get(1)?,
                action: r.get(2)?,
                detail: r.get(3)?,
                did: Count { items: r.get(4)?, recipients: r.get(5)?, bytes: r.get(6)? },
            })
        };
        let newest = statement.query_map(params![since.0, most], read).map_err(database("reading the audit"))?;
        let mut found: Vec<_> = newest.collect::<rusqlite::Result<_>>().map_err(database("reading the audit"))?;
        found.reverse();
        Ok(found)
    }

    /// The octets of a stored body. `None`: it is gone, or its file is.
    pub fn body(&self, body: BodyId) -> Result<Option<BodySource>, SpoolError> {
        let place = self
            .connection()
            .query_row("SELECT size, seg, off, data, message FROM body WHERE id = ?1", [body.0], |r| {
                let data = r.get_ref(3)?.as_blob_or_null()?.map(Bytes::copy_from_slice);
                let segment = r.get::<_, Option<i64>>(1)?.zip(r.get::<_, Option<u64>>(2)?);
                Ok((r.get::<_, u64>(0)?, segment, data, QueueId(r.get::<_, i64>(4)? as u64)))
            })
            .optional()
            .map_err(database("reading a body"))?;
        let Some((size, segment, data, message)) = place else { return Ok(None) };
        if let Some(data) = data {
            return Ok(Some(BodySource::Memory(data)));
        }
        let (path, offset) = match segment {
            Some((segment, offset)) => (segment::path_in(&self.data_dir.join("segments"), segment), offset),
            None => (self.data_dir.join("large").join(message.to_string()), 0),
        };
        match File::open(path) {
            Ok(file) => Ok(Some(BodySource::File { file: Arc::new(file), offset, size })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(system("opening a body")(error)),
        }
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(super) fn read_only(data_dir: &Path) -> Result<Connection, SpoolError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(data_dir.join("spool.db"), flags).map_err(database("opening the database"))
}

fn page(connection: &Connection, filter: &ItemFilter, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError> {
    let (clause, values) = clause(filter);
    let sql = format!("SELECT {ITEM} FROM item WHERE id > {} AND {clause} ORDER BY id LIMIT {most}", above.0);
    let mut statement = connection.prepare_cached(&sql).map_err(database("listing the queue"))?;
    let values: Vec<&dyn ToSql> = values.iter().map(|v| v as &dyn ToSql).collect();
    let found = statement.query_map(&values[..], read_item).map_err(database("listing the queue"))?;
    found.collect::<rusqlite::Result<_>>().map_err(database("listing the queue"))
}

fn clause(filter: &ItemFilter) -> (String, Vec<i64>) {
    let conditions = [
        ("stream", "=", filter.stream.map(|s| i64::from(s.0))),
        ("state", "=", filter.state.map(State::code)),
        ("accepted", "<=", filter.accepted_until.map(|t| t.0)),
        ("message", "=", filter.message.map(|m| m.0 as i64)),
    ];
    let mut clause = String::from("1");
    let mut values = Vec::new();
    for (column, relation, value) in conditions {
        if let Some(value) = value {
            values.push(value);
            clause.push_str(&format!(" AND {column} {relation} ?{}", values.len()));
        }
    }
    (clause, values)
}
