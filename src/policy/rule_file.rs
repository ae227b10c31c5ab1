//! Reading the files that an operator may replace: curves, signals, providers. What is wrong, and where it stands.
//!
//! The text comes in, faults go out; who reads the file and who prints the faults are elsewhere. A file that is not
//! TOML or lacks a key is one fault; what its values mean is judged entry by entry, and all of that is reported.

use std::ops::Range;

use serde::de::DeserializeOwned;

/// One thing that is wrong with a file of rules, for the operator. Line and column count from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{line}:{column}  {message}")]
pub struct FileFault {
    pub line: usize,
    pub column: usize,
    /// Names key and value, and says what to write instead.
    pub message: String,
}

/// The faults of one text, collected.
#[derive(Debug)]
pub(super) struct Faults<'a> {
    text: &'a str,
    list: Vec<FileFault>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Faults { text, list: Vec::new() }
    }

    /// The key `key` of the entry `entry`, whose value stands at `span`, must be something else.
    pub(super) fn value(&mut self, entry: &str, key: &str, span: Range<usize>, must: &str) {
        let written = self.text.get(span.clone()).unwrap_or_default();
        let mut shown = written.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = shown.char_indices().nth(VALUE_MAX_CHARS) {
            shown.replace_range(end.., "…");
        }
        self.at(span.start, format!("`{key}` of {entry} = {shown}: {must}"));
    }

    /// Something about the entry as a whole.
    pub(super) fn at(&mut self, offset: usize, message: String) {
        self.list.push(place(self.text, offset, message));
    }

    /// `good` if nothing was wrong.
    pub(super) fn or<T>(self, good: T) -> Result<T, Vec<FileFault>> {
        if self.list.is_empty() { Ok(good) } else { Err(self.list) }
    }
}

/// The text as tables. One fault at most: the parser stops at the first.
pub(super) fn tables<T: DeserializeOwned>(text: &str) -> Result<T, Vec<FileFault>> {
    toml::from_str(text).map_err(|error| {
        let message = error.message().replace('\n', "; ");
        vec![place(text, error.span().map_or(0, |span| span.start), message)]
    })
}

fn place(text: &str, offset: usize, message: String) -> FileFault {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    FileFault {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message: message.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
    }
}

/// Longest value that a fault repeats.
const VALUE_MAX_CHARS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_line_column_and_value_on_one_line() {
        let text = "a = 1\né = [1,\n  2]\n";
        let mut faults = Faults::new(text);
        faults.value("curve `x`", "é", 11..19, "must be one number");
        faults.at(0, "first\nsecond".into());
        let found = faults.or(()).unwrap_err();
        assert_eq!(found[0].to_string(), "2:5  `é` of curve `x` = [1, 2]: must be one number");
        assert_eq!(found[1].to_string(), "1:1  first\u{fffd}second");
        assert_eq!(Faults::new(text).or(7), Ok(7));
    }

    #[test]
    fn what_is_no_toml_has_a_place_too() {
        let fault = tables::<toml::Table>("a = 1\nb = [2\n").unwrap_err();
        assert!(fault.len() == 1 && fault[0].line >= 2, "{fault:?}");
    }
}
