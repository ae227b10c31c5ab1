//! The answers of name servers as a file, so that a start asks nothing anew.
//!
//! One line for each domain: when it is time to ask again (seconds since the epoch), the domain, its most preferred mail servers.
//! The first line has the version, and the number and the checksum of the rest: a file that was cut or altered is none. It
//! is written under another name and renamed, without a sync: after a power cut it may be gone, which costs questions.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::cache::DOMAINS_MAX;
use crate::message::Timestamp;

/// Its name in the data directory.
pub const FILE: &str = "mail-servers";
const TITLE: &str = "mailramp mail servers, version 1:";
/// Far beyond what [`super::cache`] holds.
const FILE_MAX_BYTES: u64 = 64 << 20;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub domain: String,
    /// Separated by spaces; may be empty.
    pub hosts: String,
    pub ask_after: Timestamp,
}

/// The lines of a file, collected.
#[derive(Debug, Default)]
pub struct Lines {
    text: String,
    count: usize,
}

impl Lines {
    /// The parts must have no line ends in them, and the domain no space.
    pub fn add(&mut self, domain: &str, hosts: &str, ask_after: Timestamp) {
        let _ = writeln!(self.text, "{} {domain} {hosts}", ask_after.seconds());
        self.count += 1;
    }

    fn title(&self) -> String {
        format!("{TITLE} {} domains, checksum {:08x}\n", self.count, crc32fast::hash(self.text.as_bytes()))
    }

    /// Puts them in place of the file at `path`.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(self.title().as_bytes())?;
        file.write_all(self.text.as_bytes())?;
        drop(file);
        fs::rename(&fresh, path)
    }
}

/// What the file at `path` holds; nothing when there is none. `Err` says what is wrong with it.
pub fn read(path: &Path) -> Result<Vec<Saved>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(format!("it is larger than {FILE_MAX_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    parse(&text).ok_or_else(|| "it was cut or altered, or is of another version".to_owned())
}

fn parse(text: &str) -> Option<Vec<Saved>> {
    let (title, rest) = text.split_once('\n')?;
    let lines = Lines { text: rest.to_owned(), count: rest.lines().count() };
    if lines.title().trim_end() != title || lines.count > DOMAINS_MAX {
        return None;
    }
    rest.lines().map(saved).collect()
}

fn saved(line: &str) -> Option<Saved> {
    let mut parts = line.splitn(3, ' ');
    let ask_after = parts.next()?.parse().ok().filter(|seconds| *seconds < i64::MAX / 1_000_000_000)?;
    let (domain, hosts) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    Some(Saved { domain, hosts, ask_after: Timestamp::from_seconds(ask_after) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        let mut lines = Lines::default();
        lines.add("a.example", "mx1.example.net mx2.example.net", Timestamp::from_seconds(100));
        lines.add("null.example", "", Timestamp::from_seconds(-5));
        lines
    }

    #[test]
    fn what_was_written_reads_back_and_nobody_else_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(read(&path), Ok(Vec::new()), "none is as good as an empty one");
        for _ in 0..2 {
            lines().write(&path).unwrap();
        }
        let saved = read(&path).unwrap();
        let shown: Vec<_> =
            saved.iter().map(|s| (s.domain.as_str(), s.hosts.as_str(), s.ask_after.seconds())).collect();
        assert_eq!(shown, [("a.example", "mx1.example.net mx2.example.net", 100), ("null.example", "", -5)]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn every_octet_that_is_missing_or_other_is_noticed() {
        let whole = lines().title() + &lines().text;
        assert!(parse(&whole).is_some());
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut altered = whole.clone().into_bytes();
            altered[at] ^= 1;
            assert_eq!(parse(std::str::from_utf8(&altered).unwrap()), None, "octet {at}");
        }
    }
}
