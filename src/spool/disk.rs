//! The data directory: made for us alone, locked by one process, watched for room, with a reserve for a full disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};

use super::SpoolError;

const MIB: u64 = 1 << 20;
/// Segments and ballast take 1/64 of the file system each, between these.
const SHARE: u64 = 64;
const SHARE_MIN: u64 = MIB;
const SHARE_MAX: u64 = 64 * MIB;

/// The data directory of one process. Dropping it lets the next one in.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Makes the directory (0700) if it is not there, checks that it is ours alone, and locks it.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let say =
            |doing: &str, e: io::Error| SpoolError::Directory(format!("data_dir {}: {doing}: {e}", path.display()));
        if !path.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| say("cannot create it", e))?;
        }
        let facts = fs::metadata(path).map_err(|e| say("cannot read it", e))?;
        if !facts.is_dir() {
            return Err(SpoolError::Directory(format!("data_dir {}: is not a directory", path.display())));
        }
        let own = rustix::process::geteuid().as_raw();
        if facts.uid() != own {
            return Err(SpoolError::Directory(format!(
                "data_dir {}: belongs to user id {}, mailramp runs as {own}; give it to the user who runs mailramp",
                path.display(),
                facts.uid()
            )));
        }
        if facts.mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|e| say("cannot set mode 0700", e))?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(path.join("lock"))
            .map_err(|e| say("cannot write in it", e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SpoolError::Locked(path.display().to_string())),
            Err(e) => return Err(say("cannot lock it", e.into())),
        }
        for name in ["segments", "large"] {
            let sub = path.join(name);
            if !sub.exists() {
                fs::DirBuilder::new().mode(0o700).create(&sub).map_err(|e| say("cannot write in it", e))?;
            }
        }
        sync_directory(path).map_err(|e| say("cannot sync it", e))?;
        Ok(DataDirectory { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Octets that unprivileged users can still write, and the size of the file system.
pub fn free_and_size(path: &Path) -> io::Result<(u64, u64)> {
    let facts = rustix::fs::statvfs(path)?;
    Ok((facts.f_bavail.saturating_mul(facts.f_frsize), facts.f_blocks.saturating_mul(facts.f_frsize)))
}

/// 1/64 of the file system, between 1 and 64 MiB.
pub fn share_of(file_system_bytes: u64) -> u64 {
    (file_system_bytes / SHARE).clamp(SHARE_MIN, SHARE_MAX)
}

/// How much room new mail needs. Clones are one mark: it changes for all of them.
#[derive(Clone, Debug)]
pub struct Watermark {
    /// Any path on the file system.
    pub path: PathBuf,
    marks: Arc<Marks>,
}

#[derive(Debug)]
struct Marks {
    min_free: AtomicU64,
    max_used: AtomicU64,
}

impl Watermark {
    /// `min_free` octets stay free (`queue.disk.min_free`), and at most `max_used` octets of body are queued
    /// (`queue.disk.max`).
    pub fn new(path: PathBuf, min_free: u64, max_used: u64) -> Self {
        Watermark { path, marks: Arc::new(Marks { min_free: min_free.into(), max_used: max_used.into() }) }
    }

    /// From the next message on.
    pub fn change(&self, min_free: u64, max_used: u64) {
        self.marks.min_free.store(min_free, Ordering::Relaxed);
        self.marks.max_used.store(max_used, Ordering::Relaxed);
    }

    pub fn min_free(&self) -> u64 {
        self.marks.min_free.load(Ordering::Relaxed)
    }

    pub fn max_used(&self) -> u64 {
        self.marks.max_used.load(Ordering::Relaxed)
    }

    /// `Err(Full)` with the figures when new mail must wait. A file system without free inodes is full too.
    pub fn check(&self, used_bytes: u64) -> Result<(), SpoolError> {
        let facts = rustix::fs::statvfs(&self.path)
            .map_err(|e| SpoolError::Io { doing: "asking for free space", source: e.into() })?;
        let free_bytes = facts.f_bavail.saturating_mul(facts.f_frsize);
        // Some file systems have no inodes to count: they say zero of zero.
        let no_inodes = facts.f_files > 0 && facts.f_favail < INODES_MIN;
        if free_bytes < self.min_free() || used_bytes > self.max_used() || no_inodes {
            return Err(SpoolError::Full { free_bytes, required_bytes: self.min_free(), used_bytes });
        }
        Ok(())
    }
}

const INODES_MIN: u64 = 16;

/// A file of no content that is given up when a settle finds the disk full.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// Lays the reserve, `bytes` long, if there is room for it beside what must stay free.
    pub fn lay(directory: &Path, bytes: u64, min_free: u64) -> io::Result<Ballast> {
        let ballast = Ballast { path: directory.join("ballast"), bytes };
        let there = fs::metadata(&ballast.path).map_or(0, |m| m.blocks() * 512);
        let (free, _) = free_and_size(directory)?;
        if there < bytes && free > bytes + min_free {
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&ballast.path)?;
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => file.sync_all()?,
                // A file system that cannot allocate ahead has no reserve; the watermark still holds.
                Err(_) => drop(fs::remove_file(&ballast.path)),
            }
        }
        Ok(ballast)
    }

    /// Gives the reserve up. `false`: it was not there.
    pub fn free(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }

    /// It is there.
    pub fn is_laid(&self) -> bool {
        self.path.exists()
    }

    /// Lays it again once there is plenty of room.
    pub fn restore(&self, directory: &Path, min_free: u64) {
        if !self.is_laid() {
            let _ = Ballast::lay(directory, self.bytes, min_free + self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_kept_out_until_the_first_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirectory::open(dir.path()).unwrap();
        assert!(matches!(DataDirectory::open(dir.path()), Err(SpoolError::Locked(_))));
        drop(first);
        DataDirectory::open(dir.path()).unwrap();
    }

    #[test]
    fn the_directory_is_made_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        DataDirectory::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "x").unwrap();
        let error = DataDirectory::open(&path).unwrap_err().to_string();
        assert!(error.contains("is not a directory") && error.contains("file"), "{error}");
    }

    #[test]
    fn the_watermark_refuses_below_the_free_space_it_keeps_and_above_its_maximum() {
        let path = std::env::temp_dir();
        let mark = |min_free, max_used| Watermark::new(path.clone(), min_free, max_used);
        assert!(mark(0, 10).check(10).is_ok());
        assert!(matches!(mark(0, 10).check(11), Err(SpoolError::Full { used_bytes: 11, .. })));
        assert!(matches!(mark(u64::MAX, 10).check(0), Err(SpoolError::Full { .. })));
    }

    #[test]
    fn ballast_is_laid_freed_once_and_laid_again() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::lay(dir.path(), MIB, 0).unwrap();
        assert!(ballast.free());
        assert!(!ballast.free());
        ballast.restore(dir.path(), 0);
        assert!(ballast.free());
    }
}
