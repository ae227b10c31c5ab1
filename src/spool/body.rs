//! The octets of a message on their way in and out: in memory while small, in a file when large.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

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
}
