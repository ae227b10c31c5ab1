//! `config show`: every key with its effective value, as a settings file that loads again.

use std::io::{self, Write};

use super::Loaded;
use super::keys;

impl Loaded {
    /// Writes every key that has a value, secrets hidden; with `with_origin` each is followed by where it came from.
    pub fn show(&self, out: &mut dyn Write, with_origin: bool) -> io::Result<()> {
        for (path, _) in keys::all() {
            self.line(out, path, path, with_origin)?;
        }
        for (array, keys) in keys::ARRAYS {
            for index in 0..self.tables.get(array).copied().unwrap_or(0) {
                writeln!(out, "[[{array}]]")?;
                for key in keys {
                    self.line(out, key.name(), &format!("{array}[{index}].{}", key.name()), with_origin)?;
                }
            }
        }
        Ok(())
    }

    fn line(&self, out: &mut dyn Write, name: &str, path: &str, with_origin: bool) -> io::Result<()> {
        let Some((raw, origin)) = self.effective.get(path) else { return Ok(()) };
        let setting = format!("{name} = {}", raw);
        if with_origin { writeln!(out, "{setting:<WIDTH$}  # {origin}") } else { writeln!(out, "{setting}") }
    }
}

const WIDTH: usize = 56;
