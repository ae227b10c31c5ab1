//! A copy of a data directory while the relay runs: rows as of one moment, and the octets they name.
//!
//! The rows are copied in one read transaction. From before it until the end the relay holds back the removal of files
//! ([`Holds`]), so every segment and large body that the copied rows name is still there. What was copied is synced and
//! read back, and only then the mark of an unfinished copy is taken off: a relay refuses to start on one that has it.
//!
//! A relay that starts on a copy finds that its database lies elsewhere ([`super::identity`]) and keeps its mail back.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::{Connection, OpenFlags};

use super::SpoolError;
use super::body::BodySource;
use super::database::{database, rows, system};
use super::disk::sync_directory;
use super::reader::read_only;
use super::segment::{self, SegmentId};
use crate::message::QueueId;

/// The file that marks a copy as not finished.
pub(super) const UNFINISHED: &str = "unfinished-backup";

/// Who wants files that no row names any more to stay for a while. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<AtomicUsize>);

impl Holds {
    /// From here on, and as long as the answer lives, no file is removed.
    pub fn hold(&self) -> Hold {
        self.0.fetch_add(1, Ordering::SeqCst);
        Hold(self.clone())
    }

    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}

/// See [`Holds::hold`].
#[derive(Debug)]
pub struct Hold(Holds);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why there is no backup. What was written of it is removed again.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The place cannot be used; the text says why.
    #[error("{0}")]
    Place(String),
    /// What was copied does not hold together.
    #[error("the copy is not sound: {0}")]
    Unsound(String),
    /// The relay no longer holds the files back.
    #[error("the relay stopped meanwhile, so files may be missing: {0}")]
    Released(String),
    /// Reading the one or writing the other.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Items in the queue.
    pub items: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Segment files.
    pub segments: u64,
    /// Bodies in files of their own.
    pub large: u64,
    /// Octets of all files of the copy.
    pub bytes: u64,
    /// Bodies read back and found as their checksum says.
    pub sound: u64,
    /// Bodies that do not match their checksum, in the original as in the copy.
    pub damaged: u64,
}

/// Copies the data directory `from` to `to`, which must not exist or be empty. `held` is asked again and again whether
/// the relay still holds its files back; `step` hears how many octets of how many files are done.
pub fn copy(
    from: &Path,
    to: &Path,
    held: &dyn Fn() -> Result<(), String>,
    step: &mut dyn FnMut(u64, u64),
) -> Result<Copied, BackupError> {
    let place = Place::take(from, to)?;
    let copied = place.fill(from, held, step)?;
    place.finish()?;
    Ok(copied)
}

/// The directory that is being filled. Dropped before the end, it takes away what was written.
struct Place {
    path: PathBuf,
    made: bool,
    finished: bool,
}

impl Place {
    fn take(from: &Path, to: &Path) -> Result<Place, BackupError> {
        let say = |what: &str| BackupError::Place(format!("{}: {what}", to.display()));
        let made = match fs::read_dir(to) {
            Ok(mut entries) => match entries.next() {
                None => false,
                Some(_) => return Err(say("is not empty; name a directory that is, or that does not exist")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().mode(0o700).create(to).map_err(|e| say(&format!("cannot make it: {e}")))?;
                true
            }
            Err(error) => return Err(say(&error.to_string())),
        };
        let place = Place { path: to.to_owned(), made, finished: false };
        let inside = |path: &Path| fs::canonicalize(path).map_err(|e| say(&e.to_string()));
        if inside(to)?.starts_with(inside(from)?) {
            return Err(say("lies in the data directory; a backup belongs elsewhere, best on another disk"));
        }
        let written = create(&to.join(UNFINISHED)).and_then(|file| file.sync_all()).and_then(|()| sync_directory(to));
        written.map_err(|e| say(&format!("cannot write in it: {e}")))?;
        Ok(place)
    }

    fn fill(
        &self,
        from: &Path,
        held: &dyn Fn() -> Result<(), String>,
        step: &mut dyn FnMut(u64, u64),
    ) -> Result<Copied, BackupError> {
        let still = || held().map_err(BackupError::Released);
        for sub in ["segments", "large"] {
            fs::DirBuilder::new().mode(0o700).create(self.path.join(sub)).map_err(system("making a directory"))?;
        }
        still()?;
        let database_file = self.path.join("spool.db");
        copy_rows(from, &database_file)?;
        still()?;
        let copy = open_copy(&database_file)?;
        let files = named_files(&copy)?;
        let mut copied = Copied { bytes: size_of(&database_file)?, ..count_items(&copy)? };
        for (done, file) in files.iter().enumerate() {
            step(done as u64, files.len() as u64);
            still()?;
            match file {
                Named::Segment(_) => copied.segments += 1,
                Named::Large(_) => copied.large += 1,
            }
            let name = file.path();
            match copy_file(&from.join(&name), &self.path.join(&name)) {
                Ok(bytes) => copied.bytes += bytes,
                // Its bodies count as damaged, here as there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(SpoolError::Io { doing: "copying a body", source: error }.into()),
            }
        }
        step(files.len() as u64, files.len() as u64);
        still()?;
        check_rows(&copy)?;
        (copied.sound, copied.damaged) = check_bodies(&copy, &self.path)?;
        Ok(copied)
    }

    fn finish(mut self) -> Result<(), BackupError> {
        let sync = || -> io::Result<()> {
            for sub in ["segments", "large", "."] {
                sync_directory(&self.path.join(sub))?;
            }
            fs::remove_file(self.path.join(UNFINISHED))?;
            sync_directory(&self.path)?;
            match self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => sync_directory(parent),
                None => sync_directory(Path::new(".")),
            }
        };
        sync().map_err(system("syncing the backup"))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The mark goes last, so that what stays is known for what it is.
        for name in ["segments", "large"] {
            let _ = fs::remove_dir_all(self.path.join(name));
        }
        for name in ["spool.db", "spool.db-journal", "spool.db-wal", "spool.db-shm", UNFINISHED] {
            let _ = fs::remove_file(self.path.join(name));
        }
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// A file that rows name.
enum Named {
    Segment(SegmentId),
    Large(QueueId),
}

impl Named {
    /// Below the data directory.
    fn path(&self) -> PathBuf {
        match self {
            Named::Segment(id) => segment::path_in(Path::new("segments"), *id),
            Named::Large(message) => Path::new("large").join(message.to_string()),
        }
    }
}

/// One statement, so one moment; it does not keep the relay from writing.
fn copy_rows(from: &Path, to: &Path) -> Result<(), BackupError> {
    let source = read_only(from)?;
    let name = to.to_str().ok_or_else(|| BackupError::Place(format!("{}: is not UTF-8", to.display())))?;
    create(to).map_err(system("making the copy of the database"))?;
    source.execute("VACUUM INTO ?1", [name]).map_err(database("copying the database"))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(system("syncing the copy of the database"))?;
    Ok(())
}

fn open_copy(file: &Path) -> Result<Connection, SpoolError> {
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(database("opening the copy"))
}

fn named_files(copy: &Connection) -> Result<Vec<Named>, SpoolError> {
    let segments = "SELECT DISTINCT seg FROM body WHERE seg IS NOT NULL ORDER BY seg";
    let large = "SELECT message FROM body WHERE seg IS NULL AND data IS NULL";
    let mut files = rows(copy, segments, |r| Ok(Named::Segment(r.get(0)?)))?;
    files.extend(rows(copy, large, |r| Ok(Named::Large(QueueId(r.get::<_, i64>(0)? as u64))))?);
    Ok(files)
}

fn count_items(copy: &Connection) -> Result<Copied, SpoolError> {
    copy.query_row("SELECT count(*), ifnull(sum(rcpts), 0) FROM item", [], |r| {
        Ok(Copied { items: r.get(0)?, recipients: r.get(1)?, ..Copied::default() })
    })
    .map_err(database("counting what was copied"))
}

fn size_of(file: &Path) -> Result<u64, SpoolError> {
    fs::metadata(file).map(|facts| facts.len()).map_err(system("looking at the copy"))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<u64> {
    let mut source = File::open(from)?;
    let mut target = create(to)?;
    let bytes = io::copy(&mut source, &mut target)?;
    target.sync_all()?;
    Ok(bytes)
}

fn check_rows(copy: &Connection) -> Result<(), BackupError> {
    let found = rows(copy, "PRAGMA integrity_check(10)", |r| r.get::<_, String>(0))?;
    if found != ["ok"] {
        return Err(BackupError::Unsound(found.join("; ")));
    }
    Ok(())
}

/// Reads every body of the copy back; how many match their checksum and how many do not.
fn check_bodies(copy: &Connection, place: &Path) -> Result<(u64, u64), BackupError> {
    let sql = "SELECT size, crc, seg, off, data, message FROM body ORDER BY seg, off";
    let mut statement = copy.prepare(sql).map_err(database("reading bodies back"))?;
    let mut found = statement.query([]).map_err(database("reading bodies back"))?;
    let (mut sound, mut damaged) = (0, 0);
    let mut open: Option<(SegmentId, Arc<File>)> = None;
    while let Some(row) = found.next().map_err(database("reading bodies back"))? {
        let mut look = || -> rusqlite::Result<bool> {
            let (size, crc): (u64, u32) = (row.get(0)?, row.get(1)?);
            if let Some(data) = row.get_ref(4)?.as_blob_or_null()? {
                return Ok(crc32fast::hash(data) == crc);
            }
            let segment = row.get::<_, Option<SegmentId>>(2)?;
            let file = match (segment, &open) {
                (Some(id), Some((known, file))) if id == *known => Ok(file.clone()),
                (Some(id), _) => File::open(place.join(Named::Segment(id).path())).map(Arc::new),
                (None, _) => {
                    let message = QueueId(row.get::<_, i64>(5)? as u64);
                    File::open(place.join(Named::Large(message).path())).map(Arc::new)
                }
            };
            let Ok(file) = file else { return Ok(false) };
            open = segment.map(|id| (id, file.clone()));
            let offset = row.get::<_, Option<u64>>(3)?.unwrap_or(0);
            Ok(BodySource::File { file, offset, size }.crc().is_ok_and(|found| found == crc))
        };
        match look().map_err(database("reading bodies back"))? {
            true => sound += 1,
            false => damaged += 1,
        }
    }
    Ok((sound, damaged))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: &dyn Fn() -> Result<(), String> = &|| Ok(());

    #[test]
    fn a_place_that_is_not_empty_or_lies_inside_is_refused_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (data, full) = (dir.path().join("data"), dir.path().join("full"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&full).unwrap();
        fs::write(full.join("precious"), "x").unwrap();
        for (to, words) in [(full.clone(), "is not empty"), (data.join("copy"), "lies in the data directory")] {
            let error = copy(&data, &to, HELD, &mut |_, _| {}).unwrap_err();
            assert!(matches!(&error, BackupError::Place(text) if text.contains(words)), "{error}");
        }
        assert!(full.join("precious").exists() && fs::read_dir(&data).unwrap().next().is_none());
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (data, to) = (dir.path().join("data"), dir.path().join("to"));
        fs::create_dir(&data).unwrap();
        assert!(copy(&data, &to, HELD, &mut |_, _| {}).is_err(), "there is no database");
        assert!(!to.exists());
        fs::create_dir(&to).unwrap();
        let gone: &dyn Fn() -> Result<(), String> = &|| Err("no answer".into());
        assert!(matches!(copy(&data, &to, gone, &mut |_, _| {}), Err(BackupError::Released(_))));
        assert!(fs::read_dir(&to).unwrap().next().is_none(), "a directory that was there stays");
    }
}
