//! The spool on disk: one SQLite database for rows, segments for bodies, files of their own for the largest.
//!
//! Durable means: the segment's octets are synced and the database's commit is synced, both at the same time, before
//! [`Store::commit`] returns. A row may therefore survive a power cut that its body did not; but only a row of the
//! last transaction, whose 250 was never said. So each transaction stores how far its segments were known to be synced
//! before it, and opening checks what lies beyond: good bodies are copied to a fresh segment, bad ones are put aside.
//!
//! One writer. A second connection, in a thread of its own, moves the write-ahead log into the database.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, OptionalExtension, ToSql, params};

use super::backup::{Holds, UNFINISHED};
use super::body::NewBody;
use super::bursts::KEPT_SLOTS;
use super::checkpoint::Checkpointer;
use super::database::{
    ADDED, AUDIT_MOST, ITEM, SCHEMA_VERSION, clock_text, connect, create, database, ledger_rows, read_item, rows,
    system,
};
use super::disk::{Ballast, DataDirectory, Watermark, free_and_size, share_of};
use super::identity::{Identity, Since};
use super::item::{BodyId, Item, ItemId, Shift, State, encode_envelope};
use super::ledger::{HISTORY_DAYS, Row};
use super::segment::{self, SegmentId, Segments, read_body};
use super::{BodySource, ChoreAnswer, SpoolError, Store, by_hand};
use crate::message::{Queue, QueueId, StreamId, Timestamp};

/// Bodies up to here lie in the database; larger ones in segments.
const INLINE_MAX: u64 = 4 << 10;
/// Write-ahead log at which the checkpoint thread is woken, on a file system with room for it.
const CHECKPOINT_BYTES: u64 = 32 << 20;
/// Transactions between two looks at how much of the database is free.
const SHRINK_EVERY: u32 = 64;
/// Pages of 4 KiB given back to the file system at once.
const SHRINK_PAGES: i64 = 256;
/// Free pages that are kept, since they are used again soon; and never less than half of all.
const KEPT_FREE_PAGES: i64 = 1024;
/// `seg.tail` of a segment that is synced to its end.
const NO_TAIL: i64 = i64::MAX;

/// Room the spool may use.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// `queue.disk.min_free` in octets.
    pub min_free: u64,
    /// `queue.disk.max` in octets.
    pub max_used: u64,
}

/// See the module's header.
pub struct SqliteStore {
    connection: Connection,
    segments: Segments,
    live: BTreeMap<SegmentId, i64>,
    change: HashMap<SegmentId, i64>,
    tails: HashMap<SegmentId, i64>,
    /// Segments whose last bodies the next start would have to look at.
    open_tails: BTreeSet<SegmentId>,
    /// Files that this transaction leaves without a row.
    unlink: Vec<PathBuf>,
    /// Files that no row names any more; kept only while a backup holds them.
    garbage: Vec<PathBuf>,
    last_body: i64,
    /// Highest item id and queue id ever stored, and what of it is on disk: rows that are gone must not free their ids.
    last_ids: (i64, i64),
    saved_ids: (i64, i64),
    damaged: Vec<BodyId>,
    /// This transaction's bodies are synced before its rows.
    bodies_first: bool,
    transactions: u32,
    watermark: Watermark,
    ballast: Ballast,
    ballast_is_out: bool,
    checkpointer: Checkpointer,
    sync_hook: Option<SyncHook>,
    identity: Identity,
    since: Since,
    holds: Holds,
    /// Every statement that was used.
    #[cfg(test)]
    seen: std::cell::RefCell<BTreeSet<String>>,
    /// The last to be dropped: its lock goes when the database is closed.
    directory: DataDirectory,
}

/// Told of each step of a commit, in order: tests use it to see that nothing is answered before it is synced.
pub type SyncHook = Box<dyn FnMut(CommitStep) + Send>;

/// A step of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitStep {
    /// The bodies of this transaction were handed to the system.
    BodiesWritten,
    /// The database's commit has returned: its log is synced.
    DatabaseSynced,
    /// The segments' sync has returned.
    BodiesSynced,
}

/// Which sync a commit waits for before it starts the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Neither: no body in this transaction was answered for before.
    SideBySide,
    BodiesFirst,
}

impl SqliteStore {
    /// Opens or makes the spool in `directory`, and mends what a power cut may have torn.
    pub fn open(directory: DataDirectory, limits: DiskLimits) -> Result<Self, SpoolError> {
        let watermark = Watermark::new(directory.path().to_owned(), limits.min_free, limits.max_used);
        SqliteStore::open_with(directory, watermark)
    }

    /// The same with a mark that may change while the spool is open.
    pub fn open_with(directory: DataDirectory, watermark: Watermark) -> Result<Self, SpoolError> {
        let path = directory.path().to_owned();
        if path.join(UNFINISHED).exists() {
            return Err(SpoolError::Directory(format!(
                "{}: a backup that was not finished; nothing can be said about what is in it. Take another one",
                path.display()
            )));
        }
        let (_, size) = free_and_size(&path).map_err(system("asking for free space"))?;
        let share = share_of(size);
        let file = path.join("spool.db");
        let mut connection = connect(&file)?;
        let log_bytes = CHECKPOINT_BYTES.min(share);
        // It is the writer that cuts a log which has grown when it starts over at the front.
        connection.pragma_update(None, "journal_size_limit", log_bytes).map_err(database("setting up the database"))?;
        let checkpointer = Checkpointer::start(&file, log_bytes)?;
        let log_pages = checkpointer.log_pages.clone();
        let note = move |_: &mut rusqlite::hooks::Wal, pages: std::ffi::c_int| {
            log_pages.store(u64::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        };
        connection.wal_hook(Some(note)).map_err(database("watching the log"))?;
        let fresh: bool = connection
            .query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |r| r.get(0))
            .map_err(database("reading the database"))?;
        if fresh {
            create(&connection)?;
        }
        let version: i64 = connection
            .query_row("SELECT value FROM meta WHERE key = 'schema'", [], |r| r.get(0))
            .map_err(database("reading the schema's version"))?;
        if version != SCHEMA_VERSION {
            return Err(SpoolError::Directory(format!(
                "{}: written by another version of mailramp (schema {version}, this one knows {SCHEMA_VERSION})",
                file.display()
            )));
        }
        connection.execute_batch(ADDED).map_err(database("adding what is new to the database"))?;
        super::disk::sync_directory(&path).map_err(system("syncing the data directory"))?;
        let (identity, since) = at_home(&connection, &file)?;
        let last_body = connection
            .query_row("SELECT ifnull(max(id), 0) FROM body", [], |r| r.get(0))
            .map_err(database("reading bodies"))?;
        let last_ids = connection
            .query_row(
                "SELECT ifnull((SELECT value FROM meta WHERE key = 'last_item'), 0),
                   ifnull((SELECT value FROM meta WHERE key = 'last_message'), 0)",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .map_err(database("reading the last ids"))?;
        let live: BTreeMap<SegmentId, i64> =
            rows(&connection, "SELECT id, live FROM seg", |r| Ok((r.get(0)?, r.get(1)?)))?.into_iter().collect();
        let directory_of_segments = path.join("segments");
        let on_disk = segment::on_disk(&directory_of_segments).map_err(system("listing segments"))?;
        let next = on_disk.iter().chain(live.keys()).max().map_or(1, |last| last + 1);
        let segments = Segments::open(directory_of_segments, share, next).map_err(system("opening segments"))?;
        let mut store = SqliteStore {
            ballast: Ballast::lay(&path, share, watermark.min_free()).map_err(system("laying the ballast"))?,
            watermark,
            ballast_is_out: false,
            checkpointer,
            directory,
            connection,
            segments,
            live,
            change: HashMap::new(),
            tails: HashMap::new(),
            open_tails: BTreeSet::new(),
            unlink: Vec::new(),
            garbage: Vec::new(),
            bodies_first: false,
            transactions: 0,
            last_body,
            last_ids,
            saved_ids: last_ids,
            damaged: Vec::new(),
            sync_hook: None,
            identity,
            since,
            holds: Holds::default(),
            #[cfg(test)]
            seen: Default::default(),
        };
        match store.mend(&on_disk) {
            // Killed on a full disk: what frees room is delivery, and that needs a start.
            Err(SpoolError::Full { .. }) if store.ballast.free() => {
                store.rollback()?;
                store.mend(&on_disk)?;
            }
            result => result?,
        }
        Ok(store)
    }

    /// What became of the data since it was last opened.
    pub fn since(&self) -> Since {
        self.since
    }

    /// Keeps files from being removed while a backup copies them.
    pub fn holds(&self) -> Holds {
        self.holds.clone()
    }

    /// Tells `hook` of each step of each commit from here on.
    pub fn set_sync_hook(&mut self, hook: SyncHook) {
        self.sync_hook = Some(hook);
    }

    /// Begins a new segment after so many octets, so that a test need not write many MiB to see one change.
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.segments.set_most_bytes(bytes);
    }

    /// Moves the log into the database from so many octets on, for a test that cannot write many MiB.
    pub fn set_log_bytes(&mut self, bytes: u64) -> Result<(), SpoolError> {
        self.checkpointer.every_bytes = bytes;
        self.connection.pragma_update(None, "journal_size_limit", bytes).map_err(database("setting up the database"))
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Checks what lay beyond the synced end of each segment, and removes files that no row names.
    ///
    /// In order, not side by side: the copies are synced before the rows that name them, since these bodies may have
    /// been answered for, and the old segment is removed after both.
    fn mend(&mut self, on_disk: &[SegmentId]) -> Result<(), SpoolError> {
        self.begin()?;
        let mut marks = BTreeMap::new();
        let beyond = rows(
            &self.connection,
            "SELECT b.id, b.size, b.crc, b.seg, b.off FROM seg s CROSS JOIN body b ON b.id >= s.tail AND b.seg = s.id",
            |r| Ok((r.get::<_, i64>(0)?, r.get::<_, u64>(1)?, r.get::<_, u32>(2)?, r.get::<_, i64>(3)?, r.get(4)?)),
        )?;
        for (id, size, crc, segment, offset) in beyond {
            match read_body(&self.segments.path(segment), offset, size) {
                Ok(octets) if crc32fast::hash(&octets) == crc => {
                    let (to, at) = self.segments.append(octets.into()).map_err(system("copying a body"))?;
                    *self.change.entry(segment).or_default() -= 1;
                    *self.change.entry(to).or_default() += 1;
                    self.execute("UPDATE body SET seg = ?2, off = ?3 WHERE id = ?1", params![id, to, at])?;
                }
                _ => {
                    self.damaged.push(BodyId(id));
                    marks.entry(segment).and_modify(|first: &mut i64| *first = id.min(*first)).or_insert(id);
                }
            }
        }
        self.execute("UPDATE seg SET tail = ?1 WHERE tail <> ?1", params![NO_TAIL])?;
        // Found again by the next start, in case this one ends before the items are put aside.
        for (segment, first) in marks {
            self.execute("UPDATE seg SET tail = ?2 WHERE id = ?1", params![segment, first])?;
        }
        self.finish(Order::BodiesFirst)?;
        for id in on_disk {
            if !self.live.contains_key(id) {
                self.segments.remove(*id).map_err(system("removing a segment that no row names"))?;
            }
        }
        self.remove_strays()
    }

    /// Large files whose message was never committed, or is gone.
    fn remove_strays(&mut self) -> Result<(), SpoolError> {
        let large = self.directory.path().join("large");
        for entry in fs::read_dir(&large).map_err(system("listing large bodies"))? {
            let entry = entry.map_err(system("listing large bodies"))?;
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse::<QueueId>().ok()) else { continue };
            let named = self
                .statement("SELECT 1 FROM body WHERE message = ?1 AND seg IS NULL AND data IS NULL")?
                .exists([id.0 as i64])
                .map_err(database("looking for a large body"))?;
            if !named {
                fs::remove_file(entry.path()).map_err(system("removing a stray body"))?;
            }
        }
        Ok(())
    }

    fn statement(&self, sql: &str) -> Result<CachedStatement<'_>, SpoolError> {
        #[cfg(test)]
        self.seen.borrow_mut().insert(sql.to_string());
        self.connection.prepare_cached(sql).map_err(database("preparing a statement"))
    }

    fn execute(&self, sql: &str, values: &[&dyn ToSql]) -> Result<usize, SpoolError> {
        self.statement(sql)?.execute(values).map_err(database("writing a row"))
    }

    fn items(&self, tail: &str, values: &[&dyn ToSql]) -> Result<Vec<Item>, SpoolError> {
        let mut statement = self.statement(&format!("SELECT {ITEM} FROM item {tail}"))?;
        let found = statement.query_map(values, read_item).map_err(database("reading items"))?;
        found.collect::<rusqlite::Result<_>>().map_err(database("reading an item"))
    }

    fn large_path(&self, message: QueueId) -> PathBuf {
        self.directory.path().join("large").join(message.to_string())
    }

    fn hook(&mut self, step: CommitStep) {
        if let Some(hook) = &mut self.sync_hook {
            hook(step);
        }
    }

    /// Segments that this transaction leaves without a body, apart from the one being written.
    fn emptied(&self) -> Vec<SegmentId> {
        let left = |id: &SegmentId| self.live.get(id).copied().unwrap_or(0) + self.change.get(id).copied().unwrap_or(0);
        let candidates = self.live.keys().chain(self.change.keys());
        let mut ids: Vec<_> =
            candidates.filter(|id| left(id) == 0 && !self.segments.is_current(**id)).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Writes what this transaction did to segments; returns those that it left empty, and those that were written.
    fn write_segment_rows(&mut self) -> Result<(Vec<SegmentId>, Vec<SegmentId>), SpoolError> {
        let written: Vec<_> = self.segments.written().collect();
        // Finished by an earlier transaction, so synced to its end: the next start need not look at it.
        let closed: Vec<_> = self.open_tails.iter().filter(|id| !self.segments.is_current(**id)).copied().collect();
        for id in &closed {
            self.execute("UPDATE seg SET tail = ?2 WHERE id = ?1", params![id, NO_TAIL])?;
        }
        for w in &written {
            let tail = self.tails.get(&w.segment).copied().unwrap_or(NO_TAIL);
            self.execute(
                "INSERT INTO seg(id, live, synced, tail) VALUES(?1, 0, ?2, ?3)
                 ON CONFLICT(id) DO UPDATE SET synced = ?2, tail = ?3",
                params![w.segment, w.synced, tail],
            )?;
        }
        let emptied = self.emptied();
        for (id, change) in self.change.iter().filter(|(id, change)| **change != 0 && !emptied.contains(id)) {
            self.execute("UPDATE seg SET live = live + ?2 WHERE id = ?1", params![id, change])?;
        }
        for id in &emptied {
            self.execute("DELETE FROM seg WHERE id = ?1", params![id])?;
        }
        Ok((emptied, written.iter().map(|w| w.segment).collect()))
    }

    fn write_last_ids(&mut self) -> Result<(), SpoolError> {
        let ((item, message), saved) = (self.last_ids, self.saved_ids);
        for (key, id, saved) in [("last_item", item, saved.0), ("last_message", message, saved.1)] {
            if id != saved {
                self.execute("INSERT OR REPLACE INTO meta(key, value) VALUES(?1, ?2)", params![key, id])?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, order: Order) -> Result<(), SpoolError> {
        let (emptied, written) = self.write_segment_rows()?;
        self.write_last_ids()?;
        let bodies = !written.is_empty();
        let mut pending = self.segments.write().map_err(system("writing bodies"))?;
        if bodies {
            self.hook(CommitStep::BodiesWritten);
        }
        let mut order = order;
        if std::mem::take(&mut self.bodies_first) {
            order = Order::BodiesFirst;
        }
        if order == Order::BodiesFirst {
            pending.wait_all().map_err(|source| SpoolError::Io { doing: "syncing a segment", source })?;
            if bodies {
                self.hook(CommitStep::BodiesSynced);
            }
        }
        // Both syncs run at once: the segment's in its thread, the database's in here.
        let committed = self.connection.prepare_cached("COMMIT").and_then(|mut s| s.execute([]).map(drop));
        let synced = pending.wait_all();
        // Looked at first: a full database can be tried again, a sync that failed never. If the commit stands and its
        // bodies do not, nobody may be told that it worked, and only a restart can mend it.
        synced.map_err(|source| SpoolError::Io { doing: "syncing a segment", source })?;
        committed.map_err(database("committing"))?;
        self.hook(CommitStep::DatabaseSynced);
        if bodies && order == Order::SideBySide {
            self.hook(CommitStep::BodiesSynced);
        }
        self.saved_ids = self.last_ids;
        for (id, change) in self.change.drain() {
            *self.live.entry(id).or_default() += change;
        }
        self.tails.clear();
        self.open_tails.retain(|id| self.segments.is_current(*id));
        self.open_tails.extend(written);
        // The transaction stands. An error from here on would have it undone in memory and applied again.
        for id in emptied {
            self.live.remove(&id);
            self.segments.forget(id);
            self.garbage.push(self.segments.path(id));
        }
        self.garbage.append(&mut self.unlink);
        // Asked after the commit: a backup that reads rows from before it has said so before.
        if !self.holds.any() {
            for path in self.garbage.drain(..) {
                left_behind(&path, fs::remove_file(&path));
            }
        }
        self.checkpointer.after_commit(&self.connection);
        Ok(())
    }

    /// After a spike the file gets smaller again, a little at a time, so that no commit waits for long.
    fn shrink(&self) -> Result<(), SpoolError> {
        let doing = "giving room back to the file system";
        let number = |sql: &str| self.connection.query_row(sql, [], |r| r.get::<_, i64>(0)).map_err(database(doing));
        let (free, all) = (number("PRAGMA freelist_count")?, number("PRAGMA page_count")?);
        if free < KEPT_FREE_PAGES || free < all / 2 {
            return Ok(());
        }
        let sql = format!("PRAGMA incremental_vacuum({SHRINK_PAGES})");
        let vacuum = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(&sql)?;
            let mut pages = statement.query([])?;
            // A page with each step.
            while pages.next()?.is_some() {}
            Ok(())
        };
        match vacuum().map_err(database(doing)) {
            // It needs room in the log first; another time.
            Err(SpoolError::Full { .. }) => Ok(()),
            result => result,
        }
    }

    fn forget_transaction(&mut self) {
        self.segments.discard();
        self.change.clear();
        self.tails.clear();
        self.unlink.clear();
        self.bodies_first = false;
    }
}

impl Store for SqliteStore {
    fn ledger_rows(&mut self) -> Result<Vec<Row>, SpoolError> {
        ledger_rows(&self.connection)
    }

    fn last_ids(&mut self) -> Result<(ItemId, QueueId), SpoolError> {
        Ok((ItemId(self.last_ids.0), QueueId(self.last_ids.1 as u64)))
    }

    fn begin(&mut self) -> Result<(), SpoolError> {
        self.checkpointer.check()?;
        self.transactions = self.transactions.wrapping_add(1);
        if self.transactions.is_multiple_of(SHRINK_EVERY) {
            self.shrink()?;
        }
        self.statement("BEGIN IMMEDIATE")?.execute([]).map_err(database("beginning a transaction"))?;
        Ok(())
    }

    fn commit(&mut self) -> Result<(), SpoolError> {
        self.finish(Order::SideBySide)
    }

    fn rollback(&mut self) -> Result<(), SpoolError> {
        self.forget_transaction();
        // SQLite may have rolled back by itself, on a full disk for one.
        if !self.connection.is_autocommit() {
            self.statement("ROLLBACK")?.execute([]).map_err(database("rolling back"))?;
        }
        Ok(())
    }

    fn save(&mut self, row: &Row) -> Result<(), SpoolError> {
        match row {
            Row::Clock { mark, doubtful } => {
                let text = clock_text(mark, *doubtful);
                self.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('clock', ?1)", params![text])?;
            }
            Row::Span(span) => {
                self.execute(
                    "INSERT OR REPLACE INTO span(one, day, starts, ends) VALUES(1, ?1, ?2, ?3)",
                    params![span.day.0, span.starts.0, span.ends.0],
                )?;
                // Also days to come: a calendar that went back has called them so before.
                let kept = [span.day.0 - HISTORY_DAYS as i32, span.day.0];
                self.execute("DELETE FROM day WHERE day < ?1 OR day > ?2", params![kept[0], kept[1]])?;
                self.execute("DELETE FROM stream_day WHERE day < ?1 OR day > ?2", params![kept[0], kept[1]])?;
                self.execute("DELETE FROM offered WHERE slot < ?1", params![span.starts.slot().0 - KEPT_SLOTS])?;
            }
            Row::Lane { record: r, arrival } => {
                self.execute(
                    "INSERT OR REPLACE INTO lane VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                    params![
                        r.lane.0,
                        r.stage,
                        r.limit,
                        r.share,
                        r.braked_run,
                        r.last_braked.map(|d| d.0),
                        r.complete_run,
                        r.complete,
                        r.stalled_run,
                        arrival.0
                    ],
                )?;
            }
            Row::Day { lane, record: r } => {
                self.execute(
                    "INSERT OR REPLACE INTO day VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![lane.0, r.day.0, r.limit, r.stage, r.offered, r.reserved, r.sent, r.legacy, r.braked],
                )?;
            }
            Row::Slot { lane, slot, reserved: 0 } => {
                self.execute("DELETE FROM slot WHERE lane = ?1 AND slot = ?2", params![lane.0, slot.0])?;
            }
            Row::Slot { lane, slot, reserved } => {
                self.execute("INSERT OR REPLACE INTO slot VALUES(?1, ?2, ?3)", params![lane.0, slot.0, reserved])?;
            }
            Row::Stream { lane, stream, day, counts } => {
                self.execute(
                    "INSERT OR REPLACE INTO stream_day VALUES(?1, ?2, ?3, ?4, ?5)",
                    params![lane.0, stream.0, day.0, counts.offered, counts.reserved],
                )?;
            }
            Row::Total { queue, stream, state, total } => {
                self.execute(
                    "INSERT OR REPLACE INTO total VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
                    params![queue.code(), stream.0, state.code(), total.items, total.recipients, total.bytes],
                )?;
            }
            Row::Brake { lane, record: r } => {
                self.execute(
                    "INSERT OR REPLACE INTO brake VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![lane.0, r.level as u8, r.since.0, r.until.0, r.step as u8, r.touched, r.reason],
                )?;
            }
            Row::Memory { lane, day, recipients } => {
                self.execute("INSERT OR REPLACE INTO memory VALUES(?1, ?2, ?3)", params![lane.0, day.0, recipients])?;
            }
            Row::Offered { stream, slot, recipients: 0 } => {
                self.execute("DELETE FROM offered WHERE stream = ?1 AND slot = ?2", params![stream.0, slot.0])?;
            }
            Row::Offered { stream, slot, recipients } => {
                self.execute(
                    "INSERT OR REPLACE INTO offered VALUES(?1, ?2, ?3)",
                    params![stream.0, slot.0, recipients],
                )?;
            }
            Row::Pause(None) => drop(self.execute("DELETE FROM pause", &[])?),
            Row::Pause(Some(p)) => {
                self.execute(
                    "INSERT OR REPLACE INTO pause VALUES(1, ?1, ?2, ?3)",
                    params![p.since.0, p.actor, p.reason],
                )?;
            }
            Row::StreamName { stream, name } => {
                self.execute("INSERT OR REPLACE INTO stream VALUES(?1, ?2)", params![stream.0, name])?;
            }
            Row::Moves { stream, moves } => {
                self.execute("DELETE FROM move WHERE stream = ?1", params![stream.0])?;
                for told in moves {
                    self.execute(
                        "INSERT INTO move VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                        params![told.id, stream.0, told.to as u8, told.at.0, told.told.0, told.actor, told.reason],
                    )?;
                }
            }
            Row::Outstanding { .. } => {}
        }
        Ok(())
    }

    fn insert_body(&mut self, body: &NewBody, message: QueueId, references: u64) -> Result<BodyId, SpoolError> {
        let id = self.last_body + 1;
        let mut place: (Option<SegmentId>, Option<u64>, Option<&Bytes>) = (None, None, None);
        if let NewBody::Memory { bytes, .. } = body {
            if body.size() <= INLINE_MAX {
                place.2 = Some(bytes);
            } else {
                let (segment, offset) = self.segments.append(bytes.clone()).map_err(system("making a segment"))?;
                *self.change.entry(segment).or_default() += 1;
                self.tails.entry(segment).or_insert(id);
                (place.0, place.1) = (Some(segment), Some(offset));
            }
        }
        self.execute(
            "INSERT INTO body(id, message, refs, size, crc, seg, off, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id,
                message.0 as i64,
                references,
                body.size(),
                body.crc(),
                place.0,
                place.1,
                place.2.map(|b| &b[..])
            ],
        )?;
        self.last_body = id;
        self.last_ids.1 = self.last_ids.1.max(message.0 as i64);
        Ok(BodyId(id))
    }

    fn bodies_first(&mut self) {
        self.bodies_first = true;
    }

    fn reference_body(&mut self, body: BodyId, change: i64) -> Result<(), SpoolError> {
        if change < 0 {
            // The common end: the last item goes, and the body with it, in one statement.
            let gone = self
                .statement("DELETE FROM body WHERE id = ?1 AND refs <= ?2 RETURNING seg, data IS NULL, message")?
                .query_row(params![body.0, -change], |r| {
                    Ok((r.get::<_, Option<i64>>(0)?, r.get::<_, bool>(1)?, r.get::<_, i64>(2)?))
                })
                .optional()
                .map_err(database("removing a body"))?;
            match gone {
                Some((Some(segment), ..)) => *self.change.entry(segment).or_default() -= 1,
                Some((None, true, message)) => self.unlink.push(self.large_path(QueueId(message as u64))),
                Some(_) => {}
                None => drop(self.execute("UPDATE body SET refs = refs + ?2 WHERE id = ?1", params![body.0, change])?),
            }
        } else {
            self.execute("UPDATE body SET refs = refs + ?2 WHERE id = ?1", params![body.0, change])?;
        }
        Ok(())
    }

    fn body(&mut self, body: BodyId) -> Result<Option<(BodySource, u32)>, SpoolError> {
        let found = self
            .statement("SELECT size, crc, seg, off, data, message FROM body WHERE id = ?1")?
            .query_row([body.0], |r| {
                let data = r.get_ref(4)?.as_blob_or_null()?.map(Bytes::copy_from_slice);
                let segment = r.get::<_, Option<i64>>(2)?.zip(r.get::<_, Option<u64>>(3)?);
                Ok((r.get::<_, u64>(0)?, r.get::<_, u32>(1)?, segment, data, QueueId(r.get::<_, i64>(5)? as u64)))
            })
            .optional()
            .map_err(database("reading a body"))?;
        let Some((size, crc, segment, data, message)) = found else { return Ok(None) };
        if let Some(data) = data {
            return Ok(Some((BodySource::Memory(data), crc)));
        }
        let opened = match segment {
            Some((segment, _)) => self.segments.reader(segment),
            None => fs::File::open(self.large_path(message)).map(Arc::new),
        };
        match opened {
            Ok(file) => {
                let offset = segment.map_or(0, |(_, offset)| offset);
                Ok(Some((BodySource::File { file, offset, size }, crc)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(system("opening a body")(e)),
        }
    }

    fn insert(&mut self, item: &Item) -> Result<(), SpoolError> {
        self.last_ids.0 = self.last_ids.0.max(item.id.0);
        self.write_item("INSERT", item)
    }

    fn update(&mut self, item: &Item) -> Result<(), SpoolError> {
        self.write_item("REPLACE", item)
    }

    fn set_state(&mut self, id: ItemId, state: State) -> Result<(), SpoolError> {
        self.execute("UPDATE item SET state = ?2 WHERE id = ?1", params![id.0, state.code()]).map(drop)
    }

    fn get(&mut self, id: ItemId) -> Result<Option<Item>, SpoolError> {
        Ok(self.items("WHERE id = ?1", params![id.0])?.pop())
    }

    fn remove(&mut self, id: ItemId) -> Result<(), SpoolError> {
        self.execute("DELETE FROM item WHERE id = ?1", params![id.0]).map(drop)
    }

    fn due(&mut self, queue: Queue, stream: StreamId, now: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.items(
            "WHERE state < 3 AND queue = ?1 AND stream = ?2 AND due <= ?3 ORDER BY due, id LIMIT ?4",
            params![queue.code(), stream.0, now.0, most],
        )
    }

    fn next_due(&mut self, queue: Queue, stream: StreamId) -> Result<Option<Timestamp>, SpoolError> {
        self.statement("SELECT due FROM item WHERE state < 3 AND queue = ?1 AND stream = ?2 ORDER BY due LIMIT 1")?
            .query_row(params![queue.code(), stream.0], |r| r.get(0).map(Timestamp))
            .optional()
            .map_err(database("reading the next due time"))
    }

    fn overdue(&mut self, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.items(
            "WHERE state < 3 AND deadline IS NOT NULL AND deadline <= ?1 ORDER BY deadline, id LIMIT ?2",
            params![until.0, most],
        )
    }

    fn expired(&mut self, dead: bool, until: Timestamp, most: usize) -> Result<Vec<Item>, SpoolError> {
        let tail = match dead {
            false => "WHERE state < 3 AND expires IS NOT NULL AND expires <= ?1 ORDER BY expires, id LIMIT ?2",
            true => "WHERE state = 4 AND expires <= ?1 ORDER BY expires, id LIMIT ?2",
        };
        self.items(tail, params![until.0, most])
    }

    fn in_state(&mut self, state: State, above: ItemId, most: usize) -> Result<Vec<Item>, SpoolError> {
        self.items("WHERE state = ?1 AND id > ?2 ORDER BY id LIMIT ?3", params![state.code(), above.0, most])
    }

    fn damaged(&mut self) -> Vec<BodyId> {
        std::mem::take(&mut self.damaged)
    }

    fn shift(&mut self, shift: &Shift) -> Result<(), SpoolError> {
        let Shift { by, life, slots, days } = *shift;
        if by != 0 || slots != 0 || days != 0 {
            self.execute(
                "UPDATE item SET accepted = accepted + ?1, due = due + ?1, slot = slot + ?2, day = day + ?3,
                   deadline = CASE WHEN deadline < ?4 THEN deadline + ?1 ELSE deadline END",
                params![by, slots, days, Shift::NEVER_FROM],
            )?;
        }
        self.execute(
            "UPDATE item SET expires = expires + ?1 WHERE expires < ?2",
            params![by.saturating_add(life), Shift::NEVER_FROM],
        )?;
        Ok(())
    }

    fn due_by(&mut self, latest: Timestamp) -> Result<usize, SpoolError> {
        self.execute("UPDATE item SET due = ?1 WHERE state < 3 AND due > ?1", params![latest.0])
    }

    fn of_body(&mut self, body: BodyId) -> Result<Vec<Item>, SpoolError> {
        self.items(
            "WHERE message = (SELECT message FROM body WHERE id = ?1) AND body = ?1 ORDER BY id",
            params![body.0],
        )
    }

    fn of_message(&mut self, message: QueueId) -> Result<Vec<Item>, SpoolError> {
        self.items("WHERE message = ?1 ORDER BY id", params![message.0 as i64])
    }

    fn audit(
        &mut self,
        action: &str,
        audit: &by_hand::Audit,
        now: Timestamp,
        did: &ChoreAnswer,
        bytes: u64,
    ) -> Result<bool, SpoolError> {
        let known = self.execute(
            "UPDATE audit SET items = items + ?2, rcpts = rcpts + ?3, bytes = bytes + ?4 WHERE job = ?1",
            params![audit.job, did.items, did.recipients, bytes],
        )?;
        if known > 0 {
            return Ok(false);
        }
        self.execute(
            "INSERT INTO audit VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![audit.job, now.0, audit.actor, action, audit.detail, did.items, did.recipients, bytes],
        )?;
        // The newest are kept; jobs rise with time.
        self.execute(
            "DELETE FROM audit WHERE job < (SELECT job FROM audit ORDER BY job DESC LIMIT 1 OFFSET ?1)",
            params![AUDIT_MOST - 1],
        )?;
        Ok(true)
    }

    fn disown(&mut self) -> Result<(), SpoolError> {
        self.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('home', 'nowhere')", &[]).map(drop)
    }

    fn adopt(&mut self) -> Result<(), SpoolError> {
        let home = self.identity.to_string();
        self.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('home', ?1)", params![home]).map(drop)
    }

    fn room(&mut self, queued: u64) -> Result<(), SpoolError> {
        self.watermark.check(queued)?;
        if self.ballast_is_out {
            self.ballast.restore(self.directory.path(), self.watermark.min_free());
            self.ballast_is_out = !self.ballast.is_laid();
        }
        Ok(())
    }

    fn free_ballast(&mut self) -> bool {
        self.ballast_is_out = true;
        self.ballast.free()
    }
}

/// Compares the database with what it says of itself. One that says nothing yet is at home.
fn at_home(connection: &Connection, file: &Path) -> Result<(Identity, Since), SpoolError> {
    let found = Identity::of(file).map_err(system("looking at the database"))?;
    let stored: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'home'", [], |r| r.get(0))
        .optional()
        .map_err(database("reading where the database was"))?;
    // Words that are no identity: restored, and not brought back to the end.
    let since = match &stored {
        None => Since::Same,
        Some(text) => text.parse().map_or(Since::Copied, |known: Identity| known.compare(&found)),
    };
    if since != Since::Copied && stored.as_deref() != Some(found.to_string().as_str()) {
        connection
            .execute("INSERT OR REPLACE INTO meta(key, value) VALUES('home', ?1)", params![found.to_string()])
            .map_err(database("noting where the database is"))?;
    }
    Ok((found, since))
}

/// A file that should be gone is removed at the next start, which looks for files that no row names.
fn left_behind(path: &Path, removed: io::Result<()>) {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(event = "spool.left_behind", path = %path.display(), %error, "could not remove a file");
        }
        _ => {}
    }
}

impl SqliteStore {
    fn write_item(&mut self, verb: &str, item: &Item) -> Result<(), SpoolError> {
        let sql = match verb {
            "INSERT" => concat!(
                "INSERT",
                " INTO item VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
            ),
            _ => concat!(
                "REPLACE",
                " INTO item VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
            ),
        };
        self.execute(
            sql,
            params![
                item.id.0,
                item.message.0 as i64,
                item.body.0,
                item.size,
                item.queue.code(),
                item.lane.0,
                item.stream.0,
                item.state.code(),
                item.maybe,
                item.reason as i64,
                item.accepted.0,
                item.due.0,
                item.deadline.map(|t| t.0),
                item.expires.map(|t| t.0),
                item.attempts,
                item.reservation.map(|r| r.slot.0),
                item.reservation.map(|r| r.day.0),
                item.reservation.map(|r| r.recipients),
                item.recipients(),
                encode_envelope(&item.envelope),
                item.last_reply
            ],
        )
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::IN_FLIGHT;
    use super::*;
    use crate::message::{Envelope, LaneId, Reason, Recipient, Slot};

    fn item(n: i64) -> Item {
        let (queue, state) = match n % 7 {
            0 => (Queue::Legacy, State::Ready),
            1 => (Queue::New(LaneId(1)), State::Deferred),
            2 => (Queue::New(LaneId(1)), State::Dead),
            _ => (Queue::New(LaneId(1)), State::Held),
        };
        let recipient = Recipient { path: "a@example.net".into(), parameters: Bytes::new() };
        Item {
            id: ItemId(n),
            message: QueueId(n as u64),
            body: BodyId(n),
            size: 1,
            queue,
            lane: LaneId(1),
            stream: StreamId((n % 3) as u8),
            state,
            maybe: false,
            reason: Reason::InQuota,
            accepted: Timestamp(n),
            due: Timestamp(n),
            deadline: (n % 2 == 0).then_some(Timestamp(n)),
            expires: (state != State::Held).then_some(Timestamp(n)),
            attempts: 0,
            reservation: None,
            envelope: Envelope { reverse_path: Bytes::new(), parameters: Bytes::new(), recipients: vec![recipient] },
            last_reply: String::new(),
        }
    }

    /// Every statement that the store uses between start and end, apart from those that open the ledger.
    #[test]
    fn nothing_that_runs_with_the_mail_reads_more_rows_than_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let limits = DiskLimits { min_free: u64::MAX / 2, max_used: u64::MAX };
        let mut store = SqliteStore::open(DataDirectory::open(directory.path()).unwrap(), limits).unwrap();
        let (line, stream, most) = (Queue::New(LaneId(1)), StreamId(1), 10);
        store.begin().unwrap();
        for n in 1..=20_000 {
            let size = if n % 1000 == 0 { 5000 } else { 10 };
            store.insert_body(&NewBody::small(vec![b'x'; size].into()), QueueId(n as u64), 1).unwrap();
            store.insert(&item(n)).unwrap();
        }
        store.commit().unwrap();
        // As after a long time: SQLite knows how many rows there are, and still chooses the same.
        store.connection.execute_batch("ANALYZE").unwrap();

        store.begin().unwrap();
        assert_eq!(store.due(line, stream, Timestamp(15_000), most).unwrap().len(), most);
        assert!(store.next_due(line, stream).unwrap().is_some());
        assert_eq!(store.overdue(Timestamp::NEVER, most).unwrap().len(), most);
        assert_eq!(store.expired(false, Timestamp::NEVER, most).unwrap().len(), most);
        assert_eq!(store.expired(true, Timestamp::NEVER, most).unwrap().len(), most);
        assert_eq!(store.in_state(State::Deferred, ItemId(7), most).unwrap().len(), most);
        assert_eq!(store.of_message(QueueId(9)).unwrap().len(), 1);
        store.body(BodyId(3)).unwrap().unwrap();
        store.reference_body(BodyId(3), 1).unwrap();
        store.reference_body(BodyId(3), -1).unwrap();
        store.reference_body(BodyId(3), -1).unwrap();
        store.remove(ItemId(3)).unwrap();
        store.update(&item(4)).unwrap();
        let slot = Row::Slot { lane: LaneId(1), slot: Slot(1), reserved: 0 };
        store.save(&slot).unwrap();
        store.commit().unwrap();
        fs::write(store.large_path(QueueId(99_999)), "stray").unwrap();
        store.remove_strays().unwrap();

        let index = |sql: &str| match sql {
            // Small, and read whole at each start only.
            _ if sql.starts_with("UPDATE seg SET tail") => None,
            _ if sql.contains("deadline <= ?1") => Some("item_deadline"),
            _ if sql.contains("state < 3 AND expires") => Some("item_expires"),
            _ if sql.contains("state = 4") => Some("item_dead"),
            _ if sql.contains("state = ?1 AND id") => Some("item_state"),
            _ if sql.contains("state < 3 AND queue") => Some("item_line"),
            _ if sql.contains("WHERE message = ?1 ORDER") => Some("item_message"),
            _ if sql.contains("message = ?1 AND seg IS NULL") => Some("body_large"),
            _ => Some("PRIMARY KEY"),
        };
        let mut explained = 0;
        let seen = store.seen.take();
        for sql in seen.iter().filter(|sql| !sql.starts_with("INSERT") && !sql.starts_with("REPLACE")) {
            let Some(index) = index(sql).filter(|_| !sql.starts_with("BEGIN")) else { continue };
            explained += 1;
            let plan = plan(&store.connection, sql);
            assert!(plan.contains("SEARCH") && plan.contains(index), "{sql}: {plan}");
            assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
        assert_eq!(explained, 14, "{seen:#?}");
        let in_flight = plan(&store.connection, IN_FLIGHT);
        assert!(in_flight.contains("item_state") && !in_flight.contains("SCAN"), "{in_flight}");
    }

    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let nothing = vec![None::<i64>; statement.parameter_count()];
        let details = statement.query_map(rusqlite::params_from_iter(nothing), |r| r.get("detail")).unwrap();
        details.collect::<rusqlite::Result<Vec<String>>>().unwrap().join("; ")
    }
}
