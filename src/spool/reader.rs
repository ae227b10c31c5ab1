//! Listings of the queue, on a read-only connection of their own, so that nobody's 250 waits for one.

use std::path::Path;
use std::sync::Mutex;

use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};

use super::SpoolError;
use super::database::{ITEM, database, read_item};
use super::item::{Item, ItemId, State};
use crate::message::{QueueId, StreamId, Timestamp};

/// Which items are meant: those that match all that is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemFilter {
    /// Of this stream.
    pub stream: Option<StreamId>,
    /// In this state; none: any.
    pub state: Option<State>,
    /// Accepted at or before.
    pub accepted_until: Option<Timestamp>,
    /// Of this message.
    pub message: Option<QueueId>,
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

/// Reads the queue beside the committer.
pub struct QueueReader(Mutex<Connection>);

impl QueueReader {
    /// Opens the database of a spool that exists.
    pub fn open(data_dir: &Path) -> Result<Self, SpoolError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(data_dir.join("spool.db"), flags).map_err(database("opening the database"))?;
        Ok(QueueReader(Mutex::new(connection)))
    }

    /// Up to `most` matching items with an id above `above`, oldest first.
    pub fn list(&self, filter: ItemFilter, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError> {
        let (clause, values) = clause(filter);
        let sql = format!("SELECT {ITEM} FROM item WHERE id > {} AND {clause} ORDER BY id LIMIT {most}", above.0);
        let connection = self.connection();
        let mut statement = connection.prepare_cached(&sql).map_err(database("listing the queue"))?;
        let values: Vec<&dyn ToSql> = values.iter().map(|v| v as &dyn ToSql).collect();
        let found = statement.query_map(&values[..], read_item).map_err(database("listing the queue"))?;
        found.collect::<rusqlite::Result<_>>().map_err(database("listing the queue"))
    }

    /// How many items match.
    pub fn count(&self, filter: ItemFilter) -> Result<Count, SpoolError> {
        let (clause, values) = clause(filter);
        let sql = format!("SELECT count(*), ifnull(sum(rcpts), 0), ifnull(sum(size), 0) FROM item WHERE {clause}");
        let values: Vec<&dyn ToSql> = values.iter().map(|v| v as &dyn ToSql).collect();
        self.connection()
            .query_row(&sql, &values[..], |r| Ok(Count { items: r.get(0)?, recipients: r.get(1)?, bytes: r.get(2)? }))
            .map_err(database("counting the queue"))
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

    fn connection(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn clause(filter: ItemFilter) -> (String, Vec<i64>) {
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
