//! Bodies over a few KiB: appended to segment files, which have no index, no tombstones and no recovery scan.
//!
//! A segment is written once, front to back. The rows say where a body lies; a segment that no row names any more is
//! unlinked. A fresh process always begins a fresh segment. The name of a new segment is synced before its first use.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;

use super::disk::sync_directory;

/// Number of a segment; rises, never used twice.
pub type SegmentId = i64;

/// What one transaction wrote to one segment.
#[derive(Debug)]
pub struct Written {
    /// The segment.
    pub segment: SegmentId,
    /// Its end before this transaction: everything before it is known to be synced.
    pub synced: u64,
    /// Its end now.
    pub end: u64,
}

#[derive(Debug)]
struct Current {
    id: SegmentId,
    file: Arc<File>,
    end: u64,
    /// Written by this transaction from here on.
    start: u64,
    pending: Vec<Bytes>,
}

/// All segments of one spool. One writer.
#[derive(Debug)]
pub struct Segments {
    directory: PathBuf,
    most_bytes: u64,
    next: SegmentId,
    current: Option<Current>,
    finished: Vec<Current>,
    readers: HashMap<SegmentId, Arc<File>>,
    syncer: Syncer,
}

impl Segments {
    /// Segments in `directory`, each up to about `most_bytes`; the first new one is `next`.
    pub fn open(directory: PathBuf, most_bytes: u64, next: SegmentId) -> io::Result<Self> {
        let syncer = Syncer::start()?;
        Ok(Segments {
            directory,
            most_bytes,
            next,
            current: None,
            finished: Vec::new(),
            readers: HashMap::new(),
            syncer,
        })
    }

    /// Begins a new segment after so many octets from here on.
    pub fn set_most_bytes(&mut self, bytes: u64) {
        self.most_bytes = bytes;
    }

    /// The file of a segment.
    pub fn path(&self, id: SegmentId) -> PathBuf {
        path_in(&self.directory, id)
    }

    /// Queues `bytes` for this transaction; returns where they will lie. Written by [`Segments::write`].
    pub fn append(&mut self, bytes: Bytes) -> io::Result<(SegmentId, u64)> {
        if self.current.as_ref().is_none_or(|c| c.end >= self.most_bytes) {
            let fresh = self.create()?;
            self.finished.extend(self.current.replace(fresh).filter(|c| !c.pending.is_empty()));
        }
        let current = self.current.as_mut().expect("just made");
        let offset = current.end;
        current.end += bytes.len() as u64;
        current.pending.push(bytes);
        Ok((current.id, offset))
    }

    /// What this transaction has appended so far, segment by segment.
    pub fn written(&self) -> impl Iterator<Item = Written> {
        self.finished.iter().chain(&self.current).filter(|c| !c.pending.is_empty()).map(|c| Written {
            segment: c.id,
            synced: c.start,
            end: c.end,
        })
    }

    /// Writes what was appended, and starts its sync. [`Pending::wait`] says when it is on disk.
    pub fn write(&mut self) -> io::Result<Pending> {
        let mut pending = Pending(Vec::new());
        for current in self.finished.iter_mut().chain(&mut self.current).filter(|c| !c.pending.is_empty()) {
            write_all_at(&current.file, &current.pending, current.start)?;
            current.pending.clear();
            current.start = current.end;
            pending.0.push(self.syncer.sync(current.file.clone())?);
        }
        self.finished.clear();
        Ok(pending)
    }

    /// Forgets what was appended and not written. What was written stays as octets that no row names.
    pub fn discard(&mut self) {
        for current in self.finished.iter_mut().chain(&mut self.current) {
            current.pending.clear();
            current.end = current.start;
        }
        self.finished.clear();
    }

    /// The segment that is being written, which must not be removed.
    pub fn is_current(&self, id: SegmentId) -> bool {
        self.current.as_ref().is_some_and(|c| c.id == id)
    }

    /// The file to read a body of segment `id` from.
    pub fn reader(&mut self, id: SegmentId) -> io::Result<Arc<File>> {
        if let Some(current) = self.current.as_ref().filter(|c| c.id == id) {
            return Ok(current.file.clone());
        }
        if let Some(file) = self.readers.get(&id) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.path(id))?);
        if self.readers.len() >= READERS_MAX {
            self.readers.clear();
        }
        self.readers.insert(id, file.clone());
        Ok(file)
    }

    /// A segment that no row names is about to be unlinked. Who still reads it keeps reading.
    pub fn forget(&mut self, id: SegmentId) {
        self.readers.remove(&id);
    }

    /// Unlinks a segment that no row names.
    pub fn remove(&mut self, id: SegmentId) -> io::Result<()> {
        self.forget(id);
        match std::fs::remove_file(self.path(id)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn create(&mut self) -> io::Result<Current> {
        // Also when this fails half-way: the name may be taken then.
        let id = self.next;
        self.next += 1;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.path(id))?;
        // Its name must survive a power cut before a 250 depends on what is in it.
        sync_directory(&self.directory)?;
        Ok(Current { id, file: Arc::new(file), end: 0, start: 0, pending: Vec::new() })
    }
}

/// The file of segment `id` in the folder of segments.
pub(super) fn path_in(directory: &Path, id: SegmentId) -> PathBuf {
    directory.join(format!("{id:08}.seg"))
}

/// Numbers of the segment files that exist.
pub fn on_disk(directory: &Path) -> io::Result<Vec<SegmentId>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|n| n.strip_suffix(".seg")).and_then(|n| n.parse::<SegmentId>().ok()));
    }
    Ok(ids)
}

/// Files of old segments kept open for reading.
const READERS_MAX: usize = 64;
/// Most parts of one vectored write (IOV_MAX is 1024 on Linux).
const VECTORS_MAX: usize = 512;

fn write_all_at(file: &File, parts: &[Bytes], mut offset: u64) -> io::Result<()> {
    for parts in parts.chunks(VECTORS_MAX) {
        let mut vectors: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        let mut rest = &mut vectors[..];
        // Takes empty parts off the front; later ones go with the part before them.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// Reads `size` octets at `offset` of a segment that may be damaged: short files are an error, not a panic.
pub fn read_body(path: &Path, offset: u64, size: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let mut octets = vec![0; size];
    File::open(path)?.read_exact_at(&mut octets, offset)?;
    Ok(octets)
}

/// Syncs on their way. Dropping it without waiting is only right when the process is about to end, or when no row will
/// ever name what was written.
#[must_use]
#[derive(Debug)]
pub struct Pending(Vec<mpsc::Receiver<io::Result<()>>>);

impl Pending {
    /// Returns when everything is on disk. An error is fatal: what the disk holds is unknown, and asking again lies.
    pub fn wait(mut self) -> io::Result<()> {
        self.wait_all()
    }

    /// Like [`Pending::wait`]; a second time there is nothing left to wait for.
    pub fn wait_all(&mut self) -> io::Result<()> {
        for answer in self.0.drain(..) {
            answer.recv().map_err(|_| io::Error::other("the sync thread has ended"))??;
        }
        Ok(())
    }
}

/// A thread that syncs files while the committer commits.
#[derive(Debug)]
struct Syncer(mpsc::Sender<(Arc<File>, mpsc::Sender<io::Result<()>>)>);

impl Syncer {
    fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<(Arc<File>, mpsc::Sender<io::Result<()>>)>();
        std::thread::Builder::new().name("segment-sync".into()).spawn(move || {
            for (file, answer) in queue {
                let _ = answer.send(file.sync_data());
            }
        })?;
        Ok(Syncer(jobs))
    }

    fn sync(&self, file: Arc<File>) -> io::Result<mpsc::Receiver<io::Result<()>>> {
        let (answer, receiver) = mpsc::channel();
        self.0.send((file, answer)).map_err(|_| io::Error::other("the sync thread has ended"))?;
        Ok(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(most: u64) -> (tempfile::TempDir, Segments) {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path().to_owned(), most, 5).unwrap();
        (dir, segments)
    }

    #[test]
    fn bodies_lie_where_append_said_also_over_a_change_of_segment() {
        let (_dir, mut segments) = segments(10);
        let places: Vec<_> = ["aaaaaa", "bbbbbb", "cc", ""]
            .iter()
            .map(|text| (*text, segments.append(Bytes::from_static(text.as_bytes())).unwrap()))
            .collect();
        assert_eq!(places[2].1, (6, 0), "twelve octets are over ten: a new segment");
        segments.write().unwrap().wait().unwrap();
        for (text, (segment, offset)) in places {
            let read = read_body(&segments.path(segment), offset, text.len() as u64).unwrap();
            assert_eq!(read, text.as_bytes());
        }
    }

    #[test]
    fn what_is_discarded_leaves_no_gap() {
        let (_dir, mut segments) = segments(100);
        segments.append("lost".into()).unwrap();
        segments.discard();
        assert_eq!(segments.append("kept".into()).unwrap(), (5, 0));
        segments.write().unwrap().wait().unwrap();
        assert_eq!(segments.append("more".into()).unwrap(), (5, 4));
        let written: Vec<_> = segments.written().map(|w| (w.segment, w.synced, w.end)).collect();
        assert_eq!(written, [(5, 4, 8)]);
    }

    #[test]
    fn a_removed_segment_can_still_be_read_by_who_has_it_open() {
        let (dir, mut segments) = segments(1);
        segments.append("old".into()).unwrap();
        segments.write().unwrap().wait().unwrap();
        segments.append("new".into()).unwrap();
        segments.write().unwrap().wait().unwrap();
        let file = segments.reader(5).unwrap();
        segments.remove(5).unwrap();
        let source = super::super::BodySource::File { file, offset: 0, size: 3 };
        assert_eq!(source.read_at(0, 10).unwrap(), "old");
        assert_eq!(on_disk(dir.path()).unwrap(), [6]);
    }
}
