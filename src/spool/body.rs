//! The octets of a message on their way in and out: in memory while small, in a file when large.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::message::QueueId;

/// Where the octets of an accepted message can be read: header and body with CRLF line ends, not dot-stuffed.
#[derive(Clone, Debug)]
pub enum BodySource {
    /// All of it, in memory.
    Memory(Bytes),
    /// `size` octets of `file` from `offset` on: a part of a segment, or a file of its own.
    File {
        /// Open for reading; shared by all who read this segment.
        file: Arc<File>,
        /// First octet.
        offset: u64,
        /// Octets.
        size: u64,
    },
}

impl BodySource {
    /// Octets in all.
    pub fn size(&self) -> u64 {
        match self {
            BodySource::Memory(bytes) => bytes.len() as u64,
            BodySource::File { size, .. } => *size,
        }
    }

    /// Reads up to `most` octets from `position` on; empty at the end. Blocks on the disk when it is a file.
    pub fn read_at(&self, position: u64, most: usize) -> io::Result<Bytes> {
        let left = self.size().saturating_sub(position);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        match self {
            BodySource::Memory(bytes) => {
                let from = usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(from..from + len))
            }
            BodySource::File { file, offset, .. } => {
                let mut buffer = vec![0; len];
                file.read_exact_at(&mut buffer, offset + position)?;
                Ok(buffer.into())
            }
        }
    }

    /// CRC-32 of all octets. Reads everything; blocks.
    pub fn crc(&self) -> io::Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        let mut position = 0;
        while position < self.size() {
            let chunk = self.read_at(position, READ_CHUNK)?;
            hasher.update(&chunk);
            position += chunk.len() as u64;
        }
        Ok(hasher.finalize())
    }
}

/// The octets of a message that is about to be stored.
#[derive(Clone, Debug)]
pub enum NewBody {
    /// In memory. `permit` is its part of the shared buffer, given back when the last copy is dropped.
    Memory {
        /// The octets.
        bytes: Bytes,
        /// CRC-32 of them.
        crc: u32,
        /// Kept only to be dropped.
        permit: Option<Arc<OwnedSemaphorePermit>>,
    },
    /// In a file of its own, synced with its directory.
    File {
        /// Below the data directory, named by the message.
        path: PathBuf,
        /// Octets.
        size: u64,
        /// CRC-32 of them.
        crc: u32,
    },
}

impl NewBody {
    /// A body that is small enough not to be counted against the shared buffer: our own reports.
    pub fn small(bytes: Bytes) -> NewBody {
        let crc = crc32fast::hash(&bytes);
        NewBody::Memory { bytes, crc, permit: None }
    }

    /// Octets.
    pub fn size(&self) -> u64 {
        match self {
            NewBody::Memory { bytes, .. } => bytes.len() as u64,
            NewBody::File { size, .. } => *size,
        }
    }

    /// CRC-32 of the octets.
    pub fn crc(&self) -> u32 {
        match self {
            NewBody::Memory { crc, .. } | NewBody::File { crc, .. } => *crc,
        }
    }
}

/// Bodies up to here stay in memory while they arrive; larger ones stream to a file.
const IN_MEMORY_MAX: usize = 1 << 20;
/// The shared buffer is handed out in pieces of this size.
const PIECE: usize = 16 << 10;
const READ_CHUNK: usize = 256 << 10;
const FIRST_CAPACITY: usize = 4 << 10;

/// The memory that all messages on their way in share, and the directory of those that do not fit.
#[derive(Debug)]
pub struct BodyBuffer {
    pieces: ArcSwap<Semaphore>,
    large: PathBuf,
}

impl BodyBuffer {
    /// `bytes` of memory in all (`smtp.limits.body_buffer`), rounded down to 16 KiB; `large` must exist.
    pub fn new(bytes: u64, large: PathBuf) -> Self {
        BodyBuffer { pieces: ArcSwap::new(pieces_in(bytes)), large }
    }

    /// From the next message on. Messages that are arriving keep what they have of the old memory.
    pub fn change(&self, bytes: u64) {
        self.pieces.store(pieces_in(bytes));
    }
}

fn pieces_in(bytes: u64) -> Arc<Semaphore> {
    let pieces = usize::try_from(bytes).unwrap_or(usize::MAX) / PIECE;
    Arc::new(Semaphore::new(pieces.clamp(1, Semaphore::MAX_PERMITS)))
}

/// Takes one message's octets as they arrive.
#[derive(Debug)]
pub struct BodyWriter {
    buffer: Arc<BodyBuffer>,
    /// Of the buffer as it was when the message began.
    pieces: Arc<Semaphore>,
    id: QueueId,
    memory: Vec<u8>,
    permit: Option<OwnedSemaphorePermit>,
    file: Option<(tokio::fs::File, TemporaryFile)>,
    size: u64,
    crc: crc32fast::Hasher,
}

/// A file that is removed when it is dropped, unless it was kept.
#[derive(Debug)]
struct TemporaryFile(Option<PathBuf>);

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl BodyWriter {
    /// An empty body for message `id`.
    pub fn new(buffer: Arc<BodyBuffer>, id: QueueId) -> Self {
        let pieces = buffer.pieces.load_full();
        BodyWriter {
            buffer,
            pieces,
            id,
            memory: Vec::new(),
            permit: None,
            file: None,
            size: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// Appends. Goes to a file when the message is large or the shared buffer is used up.
    pub async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.crc.update(chunk);
        self.size += chunk.len() as u64;
        if self.file.is_none() && !self.reserve(self.memory.len() + chunk.len()) {
            self.spill().await?;
        }
        match &mut self.file {
            Some((file, _)) => file.write_all(chunk).await,
            None => {
                if self.memory.capacity() == 0 {
                    self.memory.reserve(FIRST_CAPACITY.max(chunk.len()));
                }
                self.memory.extend_from_slice(chunk);
                Ok(())
            }
        }
    }

    /// All octets are there. A file is synced, and its directory too, before this returns.
    pub async fn finish(mut self) -> io::Result<NewBody> {
        let crc = self.crc.clone().finalize();
        let Some((mut file, mut temporary)) = self.file.take() else {
            let permit = self.permit.take().map(Arc::new);
            return Ok(NewBody::Memory { bytes: std::mem::take(&mut self.memory).into(), crc, permit });
        };
        file.flush().await?;
        file.sync_data().await?;
        let large = self.buffer.large.clone();
        tokio::task::spawn_blocking(move || File::open(large)?.sync_all()).await.map_err(io::Error::other)??;
        let path = temporary.0.take().expect("set when the file was made");
        Ok(NewBody::File { path, size: self.size, crc })
    }

    /// Memory for `bytes` in all; `false`: it must go to a file.
    fn reserve(&mut self, bytes: usize) -> bool {
        if bytes > IN_MEMORY_MAX {
            return false;
        }
        let have = self.permit.as_ref().map_or(0, |p| p.num_permits());
        let want = bytes.div_ceil(PIECE);
        if want <= have {
            return true;
        }
        let Ok(more) = Arc::clone(&self.pieces).try_acquire_many_owned((want - have) as u32) else {
            return false;
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        true
    }

    async fn spill(&mut self) -> io::Result<()> {
        let path = self.buffer.large.join(self.id.to_string());
        let mut file = tokio::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await?;
        let temporary = TemporaryFile(Some(path));
        file.write_all(&self.memory).await?;
        self.memory = Vec::new();
        self.permit = None;
        self.file = Some((file, temporary));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes: u64) -> (tempfile::TempDir, Arc<BodyBuffer>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let buffer = Arc::new(BodyBuffer::new(bytes, dir.path().to_owned()));
        (dir, buffer)
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        std::fs::read_dir(dir.path()).expect("readable").count()
    }

    #[tokio::test]
    async fn a_small_body_stays_in_memory_and_gives_its_part_of_the_buffer_back() {
        let (dir, buffer) = buffer(64 << 10);
        let mut writer = BodyWriter::new(buffer.clone(), QueueId(7));
        writer.write(b"hello ").await.unwrap();
        writer.write(b"world").await.unwrap();
        let body = writer.finish().await.unwrap();
        assert_eq!((body.size(), body.crc()), (11, crc32fast::hash(b"hello world")));
        assert_eq!(buffer.pieces.load().available_permits(), 3);
        drop(body);
        assert_eq!(buffer.pieces.load().available_permits(), 4);
        assert_eq!(files(&dir), 0);
    }

    #[tokio::test]
    async fn a_body_goes_to_a_file_when_the_shared_buffer_is_used_up_and_reads_back_the_same() {
        let (dir, buffer) = buffer(32 << 10);
        let mut writer = BodyWriter::new(buffer.clone(), QueueId(7));
        let octets: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        for chunk in octets.chunks(7_000) {
            writer.write(chunk).await.unwrap();
        }
        let NewBody::File { path, size, crc } = writer.finish().await.unwrap() else { panic!("not a file") };
        assert_eq!((size, crc), (200_000, crc32fast::hash(&octets)));
        let source = BodySource::File { file: Arc::new(File::open(&path).unwrap()), offset: 0, size };
        assert_eq!(source.read_at(199_990, 100).unwrap(), &octets[199_990..]);
        assert_eq!(source.crc().unwrap(), crc);
        assert_eq!(files(&dir), 1);
        assert_eq!(buffer.pieces.load().available_permits(), 2, "a file takes no memory");
    }

    #[tokio::test]
    async fn an_abandoned_body_leaves_no_file() {
        let (dir, buffer) = buffer(16 << 10);
        let mut writer = BodyWriter::new(buffer, QueueId(7));
        writer.write(&vec![b'x'; 100_000]).await.unwrap();
        assert_eq!(files(&dir), 1);
        drop(writer);
        assert_eq!(files(&dir), 0);
    }
}
