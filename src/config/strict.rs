//! The strict pass over a settings file and over the environment: finds every unknown key and every value of the
//! wrong kind, and says where it stands.
//!
//! Walks the parsed file itself, because serde stops at the first fault and `config` rounds 50.7 to 51 and takes
//! "50" for 50. What comes out is a [`Layer`] of values that are each well-formed; whether they go together is
//! `validate`'s question.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Key};
use super::values::{Raw, Shape};
use super::{Fault, Origin};

/// Values from one place, by full key, and what was wrong there.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub entries: Vec<(String, Raw, Origin)>,
    /// Tables that the file opens, and where.
    pub sections: Vec<(String, Origin)>,
    /// How many tables each array has.
    pub tables: BTreeMap<&'static str, usize>,
    pub faults: Vec<Fault>,
    /// The text is not TOML; there are no entries.
    pub syntax_error: bool,
    /// Keys and sections whose value is not known because of a fault; what depends on them is not judged.
    pub spoiled: Vec<String>,
}

/// Reads a file's text. `name` is what faults call it.
pub(super) fn file(text: &str, name: &str) -> Layer {
    let mut walk = Walk { text, name, layer: Layer::default() };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        walk.layer
            .faults
            .push(Fault::new(walk.origin(at), format!("not TOML: {}", error.message().replace('\n', "; "))));
    }
    walk.layer.syntax_error = !errors.is_empty();
    // After a syntax error the rest of the file may be read as belonging elsewhere; judging it would mislead.
    if errors.is_empty() {
        walk.table(table.get_ref(), "");
    }
    walk.layer
}

struct Walk<'a> {
    text: &'a str,
    name: &'a str,
    layer: Layer,
}

impl Walk<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &str) {
        for (name, value) in table {
            let at = name.span().start;
            let full = join(path, name.get_ref());
            if let Some((array, _)) = keys::ARRAYS.into_iter().find(|(array, _)| *array == full) {
                self.array(array, value, at);
            } else if let Some(key) = keys::find(&full) {
                self.value(full, key, value);
            } else if keys::is_section(&full) {
                self.section(full, value, at);
            } else {
                self.unknown(path, name.get_ref(), at);
            }
        }
    }

    fn section(&mut self, path: String, value: &Spanned<DeValue<'_>>, at: usize) {
        let origin = self.origin(at);
        match value.get_ref() {
            DeValue::Table(inner) => {
                self.layer.sections.push((path.clone(), origin));
                self.table(inner, &path);
            }
            _ => {
                let must = "must be a table: put its keys in braces or under a heading in square brackets";
                self.fault(path, origin, self.written(value), must);
            }
        }
    }

    fn value(&mut self, path: String, key: &Key, value: &Spanned<DeValue<'_>>) {
        let (raw, origin) = (raw(value.get_ref()), self.origin(value.span().start));
        match (key.check)(&raw) {
            Ok(()) => self.layer.entries.push((path, raw, origin)),
            Err(must) => {
                let written = if key.secret { HIDDEN.to_owned() } else { self.written(value) };
                self.fault(path, origin, written, &must);
            }
        }
    }

    fn array(&mut self, array: &'static str, value: &Spanned<DeValue<'_>>, at: usize) {
        let tables = value.get_ref().as_array().map(|items| items.iter().map(|item| (item.span(), item.get_ref())));
        let Some(tables) =
            tables.filter(|_| value.get_ref().as_array().is_some_and(|a| a.iter().all(|i| i.get_ref().is_table())))
        else {
            let must = format!("must be an array of tables: begin each of them with [[{array}]]");
            return self.fault(array.to_owned(), self.origin(at), self.written(value), &must);
        };
        for (index, (span, item)) in tables.enumerate() {
            let path = format!("{array}[{index}]");
            self.layer.sections.push((path.clone(), self.origin(span.start)));
            self.layer.tables.insert(array, index + 1);
            self.table(item.as_table().expect("all items were seen to be tables"), &path);
        }
    }

    fn unknown(&mut self, table: &str, name: &str, at: usize) {
        let full = join(table, name);
        let in_every_table = full.split_once('[').zip(full.split_once("]."));
        let in_every_table = in_every_table.map(|((array, _), (_, rest))| format!("{array}.{rest}"));
        let shown: String = full.escape_debug().take(NAME_MAX_CHARS).collect();
        let message = if keys::is_later(in_every_table.as_deref().unwrap_or(&full)) {
            format!("`{shown}` does not work in this version yet; remove it")
        } else if let Some(meant) = keys::suggestion(table, name) {
            self.layer.spoiled.push(if keys::find(&meant).is_some() { meant.clone() } else { join(table, &meant) });
            format!("unknown key `{shown}`, did you mean `{meant}`?")
        } else {
            format!("unknown key `{shown}`; remove it")
        };
        self.layer.faults.push(Fault::new(self.origin(at), message));
    }

    fn fault(&mut self, path: String, origin: Origin, written: String, must: &str) {
        self.layer.faults.push(Fault::of_value(origin, &path, &written, must));
        self.layer.spoiled.push(path);
    }

    /// The value as it stands in the file, on one line.
    fn written(&self, value: &Spanned<DeValue<'_>>) -> String {
        let text = self.text.get(value.span()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn origin(&self, at: usize) -> Origin {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin::File {
            name: self.name.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Reads the variables that start with `MAILRAMP__`; the others are none of ours.
pub(super) fn environment(variables: impl Iterator<Item = (String, String)>) -> Layer {
    let mut layer = Layer::default();
    for (variable, text) in variables {
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        let path = rest.split("__").map(str::to_ascii_lowercase).collect::<Vec<_>>().join(".");
        let origin = Origin::Variable(variable.clone());
        let fault = |message| Fault::new(origin.clone(), message);
        let Some(key) = keys::find(&path).filter(|_| rest.bytes().all(|c| !c.is_ascii_lowercase())) else {
            layer.faults.push(fault(unknown_variable(rest, &path)));
            continue;
        };
        let raw = key.shape.type_text(&text);
        match (key.check)(&raw) {
            Ok(()) => layer.entries.push((path, raw, origin)),
            Err(must) => {
                let must = match key.shape {
                    Shape::TextList | Shape::IntegerList => format!("{must} (here: items separated by commas)"),
                    _ => must,
                };
                let written = if key.secret { HIDDEN.to_owned() } else { Raw::Text(text).to_string() };
                layer.faults.push(Fault::of_value(origin.clone(), &path, &written, &must));
                layer.spoiled.push(path);
            }
        }
    }
    layer
}

fn unknown_variable(rest: &str, path: &str) -> String {
    let shown: String = path.escape_debug().take(NAME_MAX_CHARS).collect();
    let variable = |path: &str| format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"));
    let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
    if keys::find(path).is_some() {
        return format!("unknown key `{}`; write it in capitals: {}", rest.escape_debug(), variable(path));
    }
    let array = keys::ARRAYS.into_iter().find(|(array, _)| path == *array || keys::is_below(path, array));
    if let Some((array, _)) = array {
        return format!("{array} come from the settings file only; remove the variable");
    }
    if keys::is_section(path) {
        return format!("`{shown}` is a table; set one of its keys, such as {}__…", variable(path));
    }
    if keys::is_later(path) {
        return format!("`{shown}` does not work in this version yet; remove the variable");
    }
    match keys::suggestion(table, name) {
        Some(meant) if keys::find(&meant).is_some() => {
            format!("unknown key `{shown}`, did you mean {}?", variable(&meant))
        }
        Some(meant) => format!("unknown key `{shown}`, did you mean {}?", variable(&join(table, &meant))),
        None => format!("unknown key `{shown}`; remove the variable"),
    }
}

/// The value that `text` is in TOML. For defaults, which are known to be well-formed.
pub(super) fn literal(text: &str) -> Raw {
    raw(DeValue::parse(text).expect("a default is TOML; a test reads them all").get_ref())
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => Raw::Integer(n),
            Err(_) => Raw::Other("an integer beyond 64 bits".to_owned()),
        },
        DeValue::Float(n) => n.as_str().parse().map_or_else(|_| Raw::Other(n.as_str().to_owned()), Raw::Decimal),
        DeValue::Boolean(on) => Raw::Switch(*on),
        DeValue::Datetime(date) => Raw::Date(date.to_string()),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref())).collect()),
        DeValue::Table(table) => {
            Raw::Table(table.iter().map(|(name, value)| (name.get_ref().to_string(), raw(value.get_ref()))).collect())
        }
    }
}

fn join(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

const PREFIX: &str = "MAILRAMP__";
/// Stands where a secret would.
pub(super) const HIDDEN: &str = "(hidden)";
const NAME_MAX_CHARS: usize = 100;
