//! Moves the write-ahead log into the database, beside the committer and in a thread of its own, so that no commit
//! pays for it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use rusqlite::Connection;

use super::SpoolError;
use super::database::{connect, database, system};

const PAGE_BYTES: u64 = 4096;
/// Times that size at which the committer helps, between two batches, so that the log cannot grow for ever.
const CHECKPOINT_HELP: u64 = 4;

/// See the module's header. Dropping it ends the thread.
pub(super) struct Checkpointer {
    /// Taken when the store is dropped: the thread ends.
    wake: Option<mpsc::SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    running: Arc<AtomicBool>,
    errors: mpsc::Sender<rusqlite::Error>,
    failed: mpsc::Receiver<rusqlite::Error>,
    /// Octets of log at which the thread is woken.
    pub(super) every_bytes: u64,
    /// Pages in the log after the last commit.
    pub(super) log_pages: Arc<AtomicU64>,
}

impl Checkpointer {
    pub(super) fn start(file: &Path, every_bytes: u64) -> Result<Self, SpoolError> {
        let connection = connect(file)?;
        let (wake, jobs) = mpsc::sync_channel::<()>(1);
        let (errors, failed) = mpsc::channel();
        let running = Arc::new(AtomicBool::new(false));
        let (busy, failures) = (running.clone(), errors.clone());
        let work = move || {
            for () in jobs {
                checkpoint(&connection, &failures);
                busy.store(false, Ordering::Release);
            }
        };
        let thread =
            std::thread::Builder::new().name("checkpoint".into()).spawn(work).map_err(system("starting a thread"))?;
        let (wake, thread) = (Some(wake), Some(thread));
        Ok(Checkpointer { wake, thread, running, errors, failed, every_bytes, log_pages: Arc::default() })
    }

    /// A checkpoint that failed is as fatal as a commit that failed.
    pub(super) fn check(&self) -> Result<(), SpoolError> {
        match self.failed.try_recv() {
            Ok(source) => Err(database("moving the log into the database")(source)),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn after_commit(&self, connection: &Connection) {
        let log_bytes = self.log_pages.load(Ordering::Relaxed) * PAGE_BYTES;
        if log_bytes < self.every_bytes || self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        // Steady writing never lets the thread catch up with the very end, and only then can the log start over.
        if log_bytes > self.every_bytes * CHECKPOINT_HELP {
            checkpoint(connection, &self.errors);
        }
        let _ = self.wake.as_ref().expect("until dropped").try_send(());
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer says how much was moved; busy readers make it less, which the next round catches up.
fn checkpoint(connection: &Connection, errors: &mpsc::Sender<rusqlite::Error>) {
    match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        // No room to let the database grow: the log keeps what it has, and new mail is refused anyway.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => {}
        Err(error) => drop(errors.send(error)),
        Ok(()) => {}
    }
}
