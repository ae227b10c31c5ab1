//! Whether a data directory is where it was: a restored or copied one must not send its day, or its mail, again.
//!
//! The database stores its own device, inode and time of birth, and the boot in which it was last opened. A file that
//! was copied, unpacked or restored has another inode and another birth. Only what copies whole block devices keeps
//! both; then an operator has to say so (`run --restored`).

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, StatxFlags};

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a file is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970; 0 on a file system that does not keep it.
    born: i64,
    /// Device numbers are given out anew in each boot.
    boot: String,
}

/// What became of a database since it was last opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// It is where it was.
    Same,
    /// The same file on a device with another number, after another boot: such numbers are not kept from boot to boot.
    Renumbered,
    /// Another file: restored, copied or unpacked.
    Copied,
}

impl Identity {
    /// The identity of the file at `path`, now.
    pub fn of(path: &Path) -> io::Result<Identity> {
        let facts = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
        let born = match facts.stx_mask & StatxFlags::BTIME.bits() {
            0 => 0,
            _ => facts.stx_btime.tv_sec.saturating_mul(1_000_000_000) + i64::from(facts.stx_btime.tv_nsec),
        };
        let device = u64::from(facts.stx_dev_major) << 32 | u64::from(facts.stx_dev_minor);
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Ok(Identity { device, inode: facts.stx_ino, born, boot })
    }

    /// What became of the file that was known as `self` and is now `found`.
    pub fn compare(&self, found: &Identity) -> Since {
        match (self.inode == found.inode && self.born == found.born, self.device == found.device) {
            (false, _) => Since::Copied,
            (true, true) => Since::Same,
            // A move of the volume to another machine or slot; a copy within one boot has another device at once.
            (true, false) if self.boot != found.boot => Since::Renumbered,
            (true, false) => Since::Copied,
        }
    }
}

/// As stored.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.device, self.inode, self.born, self.boot)
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(text: &str) -> Result<Identity, ()> {
        let mut fields = text.split(' ');
        let mut next = || fields.next().ok_or(());
        let (device, inode) = (next()?.parse().map_err(drop)?, next()?.parse().map_err(drop)?);
        let (born, boot) = (next()?.parse().map_err(drop)?, next()?.to_owned());
        Ok(Identity { device, inode, born, boot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_itself_after_a_move_and_a_rewrite_and_its_copy_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "x").unwrap();
        let before = Identity::of(&path).unwrap();
        std::fs::write(&path, "yy").unwrap();
        let moved = dir.path().join("b");
        std::fs::rename(&path, &moved).unwrap();
        assert_eq!(before.compare(&Identity::of(&moved).unwrap()), Since::Same);
        std::fs::copy(&moved, &path).unwrap();
        assert_eq!(before.compare(&Identity::of(&path).unwrap()), Since::Copied);
        assert_eq!(before.to_string().parse(), Ok(before));
    }

    #[test]
    fn a_device_number_alone_tells_a_copy_only_within_one_boot() {
        let here = Identity { device: 1, inode: 2, born: 3, boot: "a".into() };
        let other = |device, inode, born, boot: &str| Identity { device, inode, born, boot: boot.into() };
        assert_eq!(here.compare(&other(1, 2, 3, "b")), Since::Same);
        assert_eq!(here.compare(&other(9, 2, 3, "b")), Since::Renumbered);
        assert_eq!(here.compare(&other(9, 2, 3, "a")), Since::Copied);
        assert_eq!(here.compare(&other(1, 9, 3, "a")), Since::Copied);
        assert_eq!(here.compare(&other(1, 2, 9, "b")), Since::Copied);
        for broken in ["", "1 2 x a", "1 2", "restored"] {
            assert_eq!(broken.parse::<Identity>(), Err(()), "{broken}");
        }
    }
}
