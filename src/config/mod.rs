//! Settings: one TOML file, overridden by `MAILRAMP__SECTION__KEY` variables, over coded defaults.
//!
//! Promises that nothing is guessed: an unknown key, a value of the wrong kind, an impossible combination is a
//! fault with file, line, key, value and remedy; *all* faults are reported at once, and the program does not start.
//! Secrets are read here and never printed.
//!
//! `strict` finds what is malformed and where; the `config` crate lays defaults, file and environment over each
//! other; `validate` judges the whole, `curves` finds the curve, `rules` reads files of rules. `values` and `keys` say what is well-formed, `model` and `choices` are what comes out.

mod choices;
pub mod curves;
mod keys;
mod load;
mod model;
mod providers;
pub mod rules;
mod show;
mod streams;
mod strict;
mod tables;
mod validate;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use choices::*;
pub use model::*;

use crate::clock::{Clock, SystemClock};
use crate::message::Timestamp;

/// Settings that are not used: invalid or unsafe. The program's exit code (sysexits.h, EX_CONFIG).
pub const EXIT_CONFIG: u8 = 78;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    /// Line and column count from 1.
    File {
        name: String,
        line: usize,
        column: usize,
    },
    /// The settings file, no particular line of it.
    WholeFile(String),
    /// Of the environment.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Origin::WholeFile(name) => f.write_str(name),
            Origin::Variable(name) => write!(f, "environment variable {}", name.escape_debug()),
        }
    }
}

/// One thing that is wrong with the settings, for the operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    pub origin: Origin,
    pub message: String,
}

impl Fault {
    fn new(origin: Origin, message: String) -> Self {
        Fault { origin, message }
    }

    fn of_value(origin: Origin, key: &str, written: &str, must: &str) -> Self {
        let mut shown: String = written.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if let Some((end, _)) = shown.char_indices().nth(VALUE_MAX_CHARS) {
            shown.replace_range(end.., "…");
        }
        Fault { origin, message: format!("`{key}` = {shown}: {must}") }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.origin, self.message)
    }
}

/// Everything that is wrong with the settings, in the order of the file; never empty. One line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<Fault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}

/// Settings that passed, and where they come from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub settings: Settings,
    /// Worth a line in the start-up log; nothing that stops the program. One line each.
    pub warnings: Vec<String>,
    /// What the operator calls the file.
    pub name: String,
    /// Secrets are not in here.
    effective: BTreeMap<String, (values::Raw, Origin)>,
    /// How many tables each array has.
    tables: BTreeMap<&'static str, usize>,
}

impl Loaded {
    /// Where the value of this key (`smtp.limits.message`, `listeners[0].bind`) comes from; `None` when it is unset.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.effective.get(key).map(|(_, origin)| origin)
    }

    /// The value of this key as TOML; a secret as `"(hidden)"`; `None` when it is unset.
    pub fn value(&self, key: &str) -> Option<String> {
        self.effective.get(key).map(|(raw, _)| raw.to_string())
    }
}

impl Settings {
    /// Reads the file at `path`, lets `env` override it, and checks the result. Relative paths in it are relative to
    /// its folder.
    pub fn load(path: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Loaded, ConfigFaults> {
        Self::load_at(path, env, SystemClock.now())
    }

    /// Like [`Settings::load`] at a given time, which decides whether the start date is still to come.
    pub fn load_at(
        path: &Path,
        env: impl Iterator<Item = (String, String)>,
        now: Timestamp,
    ) -> Result<Loaded, ConfigFaults> {
        let name = path.display().to_string();
        let text = load::read_text(path).map_err(|fault| ConfigFaults(vec![fault]))?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        load::load(load::Input { text: &text, name: &name, folder, file: Some(path), now }, env)
    }

    /// Reads settings from a text, without environment, for tests and the demonstration. Faults call it `name`;
    /// relative paths stay relative to the working directory.
    pub fn from_toml(text: &str, name: &str) -> Result<Loaded, ConfigFaults> {
        let input = load::Input { text, name, folder: PathBuf::new(), file: None, now: SystemClock.now() };
        load::load(input, std::iter::empty())
    }
}

/// A share such as "50%", 0 to 1, as the settings write it. `Err` says what it must be.
pub fn read_share(text: &str) -> Result<f64, String> {
    <values::Share as values::Setting>::read(&values::Raw::Text(text.to_owned()))
}

/// This process' environment, for [`Settings::load`]. What is not UTF-8 is replaced, so that it is refused by name
/// instead of ending the program.
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Longest value that a fault repeats.
const VALUE_MAX_CHARS: usize = 60;
