//! Files of rules that an operator may put in the place of the program's: read here, judged by those who know them.

use std::path::Path;

use super::load;
use super::{Fault, Origin};
use crate::policy::rule_file::FileFault;

/// Why there are no rules.
#[derive(Debug)]
pub enum Unread {
    /// The file itself; the text says what it must be.
    File(String),
    /// What it holds, each fault with its place.
    Faults(Vec<Fault>),
}

/// Reads the rules in `path`. `what` they are, in the words of the operator, such as "curves".
pub fn read<R>(path: &Path, what: &str, parse: impl FnOnce(&str) -> Result<R, Vec<FileFault>>) -> Result<R, Unread> {
    let shown = path.display().to_string();
    let bytes = load::read_bounded(path, load::FILE_MAX_BYTES).map_err(|why| {
        Unread::File(format!(
            "must be a file of {what} that can be read, or \"\" for those of the program; {shown}: {why}"
        ))
    })?;
    let text =
        String::from_utf8(bytes).map_err(|_| Unread::File(format!("must be a file of UTF-8 text; {shown} is not")))?;
    parse(&text).map_err(|faults| {
        let place = |line, column| Origin::File { name: shown.clone(), line, column };
        Unread::Faults(
            faults.into_iter().map(|f| Fault { origin: place(f.line, f.column), message: f.message }).collect(),
        )
    })
}
