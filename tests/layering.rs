//! Who may know whom. Reads the source files; comments, literals and `#[cfg(test)]` items are left out.
//!
//! Three rules. Each folder uses only the modules that [`MAY_USE`] gives it. A plain file touches no file, no socket, no
//! runtime, no clock and no dice of its own, and knows no I/O file of ours except as [`KNOWN`] says. Every file stands in [`PLAIN`]
//! or [`IO`], so whoever adds one has to say which it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// For each top-level module, what else of the crate it may use: a module, or only one name of it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("message", &[]),
    ("reply", &[]),
    ("clock", &["message"]),
    ("dns", &[]),
    ("log", &["clock", "message"]),
    ("metrics", &["message"]),
    ("policy", &["message", "reply"]),
    ("spool", &["clock", "log", "message", "metrics", "reply"]),
    ("smtp", &["log", "message", "metrics", "reply"]),
    // Of the policy only when to try again; how much may leave is decided in the spool's transaction.
    (
        "delivery",
        &["clock", "dns", "log", "message", "metrics", "policy::RetrySchedule", "policy::retry", "reply", "spool"],
    ),
    ("operators", &["clock", "dns", "message", "metrics", "policy"]),
    ("admin", &["clock", "log", "message", "metrics", "reply"]),
    // Of the policy only what a settings file names: curves, providers, files of rules, and which mail a stream is.
    (
        "config",
        &[
            "clock",
            "message",
            "policy::Curve",
            "policy::Lanes",
            "policy::Presets",
            "policy::Provider",
            "policy::Providers",
            "policy::Signals",
            "policy::classify",
            "policy::mailbox",
            "policy::presets",
            "policy::rule_file",
        ],
    ),
    // The place that joins the concrete pieces.
    (
        "relay",
        &[
            "admin",
            "clock",
            "config",
            "delivery",
            "dns",
            "log",
            "message",
            "metrics",
            "operators",
            "policy",
            "reply",
            "smtp",
            "spool",
        ],
    ),
    (
        "cli",
        &[
            "admin", "clock", "config", "delivery", "log", "message", "metrics", "policy", "relay", "reply", "smtp",
            "spool",
        ],
    ),
    ("main", &["cli", "config"]),
    ("lib", &[]),
];

/// Files without I/O: plain functions, state machines, values. Time and randomness come in as arguments.
/// A name that ends in `/` stands for the whole folder; the longest name that fits counts.
const PLAIN: &[&str] = &[
    "lib.rs",
    "message.rs",
    "reply.rs",
    "clock/reckoning.rs",
    "metrics/labels.rs",
    "policy/",
    "smtp/mod.rs",
    "smtp/auth.rs",
    "smtp/chunk.rs",
    "smtp/command.rs",
    "smtp/counts.rs",
    "smtp/data.rs",
    "smtp/guessing.rs",
    "smtp/headers.rs",
    "smtp/line.rs",
    "smtp/parameters.rs",
    "smtp/path.rs",
    "smtp/replies.rs",
    "smtp/sasl.rs",
    "smtp/session.rs",
    "smtp/session/",
    "smtp/settings.rs",
    "smtp/tag.rs",
    "smtp/user_file.rs",
    "spool/mod.rs",
    "spool/by_hand.rs",
    "spool/engine.rs",
    "spool/item.rs",
    "spool/ledger.rs",
    "spool/memory.rs",
    "spool/restored.rs",
    "spool/bursts.rs",
    "spool/standing.rs",
    "delivery/mod.rs",
    "delivery/breaker.rs",
    "delivery/budget.rs",
    "delivery/cap.rs",
    "delivery/dsn.rs",
    "delivery/fallback.rs",
    "delivery/feedback.rs",
    "delivery/notify.rs",
    "delivery/outcome.rs",
    "delivery/schedule.rs",
    "delivery/settle.rs",
    "delivery/tally.rs",
    "delivery/telling.rs",
    "delivery/wire.rs",
    "admin/api.rs",
    "admin/explain.rs",
    "admin/fake.rs",
    "admin/queue.rs",
    "admin/warmup.rs",
    "admin/streams.rs",
    "admin/when.rs",
    "operators/cache.rs",
    "operators/domain.rs",
    "relay/gate.rs",
    "relay/gate/lanes.rs",
    "relay/gate/view.rs",
    "relay/feedback/lanes.rs",
    "relay/lanes.rs",
    "relay/outlook.rs",
    "relay/streams.rs",
    "config/choices.rs",
    "config/keys.rs",
    "config/model.rs",
    "config/providers.rs",
    "config/show.rs",
    "config/streams.rs",
    "config/strict.rs",
    "config/tables.rs",
    "config/validate.rs",
    "config/values.rs",
    "cli/plan/draw.rs",
    "cli/plan/report.rs",
    "cli/plan/svg.rs",
    "cli/text.rs",
];

/// Files that touch the disk, the network, the runtime or a clock, or that join those that do.
const IO: &[&str] = &[
    "main.rs",
    "clock.rs",
    "log.rs",
    "metrics.rs",
    "smtp/connection.rs",
    "smtp/rejections.rs",
    "smtp/server.rs",
    "smtp/stream.rs",
    "smtp/tls.rs",
    "smtp/users.rs",
    "spool/backup.rs",
    "spool/body.rs",
    "spool/checkpoint.rs",
    "spool/committer.rs",
    "spool/database.rs",
    "spool/disk.rs",
    "spool/identity.rs",
    "spool/reader.rs",
    "spool/segment.rs",
    "spool/sqlite.rs",
    "dns.rs",
    "operators/mod.rs",
    "operators/questions.rs",
    "operators/saved.rs",
    "delivery/account.rs",
    "delivery/client.rs",
    "delivery/dispatcher.rs",
    "delivery/opening.rs",
    "delivery/pool.rs",
    "delivery/sending.rs",
    "delivery/session.rs",
    "delivery/tls.rs",
    "admin/mod.rs",
    "admin/control.rs",
    "admin/readiness.rs",
    "admin/server.rs",
    "relay/mod.rs",
    "relay/backend.rs",
    "relay/dry_run.rs",
    "relay/explain.rs",
    "relay/directory.rs",
    "relay/gate/tests.rs",
    "relay/front_door.rs",
    "relay/notify.rs",
    "relay/feedback.rs",
    "relay/reload.rs",
    "relay/intake.rs",
    "relay/ourselves.rs",
    "relay/moves.rs",
    "relay/queue.rs",
    "relay/ramp.rs",
    "config/mod.rs",
    "config/curves.rs",
    "config/load.rs",
    "config/rules.rs",
    "cli/",
];

/// Where a plain file knows a name of an I/O file all the same: the file, the name, why.
const KNOWN: &[(&str, &str, &str)] = &[
    ("spool/engine.rs", "spool::body::BodySource", "where octets lie; handed on, never read here"),
    ("spool/engine.rs", "spool::body::NewBody", "octets with their size and checksum; handed on, never read here"),
    ("spool/memory.rs", "spool::body::NewBody", "the same; octets in a file are refused"),
    ("delivery/telling.rs", "spool::body::NewBody", "a report is a body in memory"),
    ("admin/api.rs", "log::Addresses", "how an address is masked, a plain function"),
    ("admin/warmup.rs", "log::printable", "what may stand in a line, a plain function"),
    ("admin/api.rs", "metrics::QueueState", "a closed set of names; the counters themselves stay out"),
];

/// What no plain file may name, with all that is below it. Addresses are values: `core::net` has them.
const OUTSIDE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "tokio",
    "tokio_util",
    "tokio_rustls",
    "fastrand::Rng::new",
];
/// Clocks, wherever they come from.
const CLOCKS: &[&str] = &["SystemTime", "Instant", "now"];
/// The one file that asks the system what time it is.
const CLOCK_FILE: &str = "clock.rs";

#[test]
fn folders_use_only_what_they_may() {
    let mut faults = Vec::new();
    for file in sources() {
        let own = file.module.first().map_or(file.stem(), String::as_str);
        let Some((_, may)) = MAY_USE.iter().find(|(module, _)| *module == own) else {
            faults.push(format!("src/{}: MAY_USE in tests/layering.rs does not know the module `{own}`", file.name));
            continue;
        };
        for used in &file.paths {
            let Some(path) = used.of_ours(&file) else { continue };
            let Some(other) = path.first() else { continue };
            if other != own && !may.iter().any(|allowed| is_at_or_below(&path, allowed)) {
                faults.push(format!("src/{}:{}: `{own}` may not use `{}`", file.name, used.line, path.join("::")));
            }
        }
    }
    none(faults);
}

#[test]
fn plain_files_touch_nothing_outside_and_ask_no_clock() {
    let mut faults = Vec::new();
    for file in sources() {
        for used in &file.paths {
            let touches = OUTSIDE.iter().any(|name| is_at_or_below(&used.path, name));
            // `Self::Instant` is a name that a trait of another crate asks for, not a clock.
            let is_clock = used.path[0] != "Self" && used.path.iter().any(|part| CLOCKS.contains(&part.as_str()));
            if file.kind() == Some(Kind::Plain) && (touches || is_clock) {
                let what = used.path.join("::");
                faults.push(format!("src/{}:{}: a plain file touches `{what}`", file.name, used.line));
            }
            if file.name != CLOCK_FILE && used.path.iter().any(|part| part == "SystemTime") {
                faults.push(format!("src/{}:{}: only {CLOCK_FILE} asks the system for the time", file.name, used.line));
            }
        }
    }
    none(faults);
}

#[test]
fn plain_files_do_not_know_io_files() {
    let sources = sources();
    let files: BTreeMap<&[String], &Source> = sources.iter().map(|file| (&file.module[..], file)).collect();
    let (mut faults, mut needed) = (Vec::new(), BTreeSet::new());
    for file in sources.iter().filter(|file| file.kind() == Some(Kind::Plain)) {
        for used in &file.paths {
            let Some(path) = used.of_ours(file) else { continue };
            // The deepest file that the path goes through. A `mod.rs` is where a folder keeps what its files share.
            let Some(other) = (0..=path.len()).rev().find_map(|depth| files.get(&path[..depth])) else { continue };
            if other.kind() == Some(Kind::Plain) || other.name.ends_with("mod.rs") {
                continue;
            }
            let name = path.join("::");
            match KNOWN.iter().find(|(from, known, _)| *from == file.name && *known == name) {
                Some(known) => drop(needed.insert(known)),
                None => faults.push(format!(
                    "src/{}:{}: a plain file knows `{name}` of src/{}, which does I/O",
                    file.name, used.line, other.name
                )),
            }
        }
    }
    let unused = KNOWN.iter().filter(|known| !needed.contains(known));
    faults.extend(
        unused.map(|(from, name, _)| format!("src/{from} does not use `{name}` any more: take it out of KNOWN")),
    );
    none(faults);
}

#[test]
fn every_file_is_called_plain_or_io() {
    let sources = sources();
    assert!(sources.len() > 50, "the source files were not found");
    let mut faults: Vec<String> = sources
        .iter()
        .filter(|file| file.kind().is_none())
        .map(|file| {
            format!(
                "src/{} stands in neither list of tests/layering.rs: put it into PLAIN if it does no I/O and gets the \
                 time as an argument, else into IO",
                file.name
            )
        })
        .collect();
    for entry in PLAIN.iter().chain(IO) {
        let fits = |file: &Source| file.name == *entry || (entry.ends_with('/') && file.name.starts_with(entry));
        if !sources.iter().any(fits) {
            faults.push(format!("tests/layering.rs names src/{entry}, which does not exist"));
        }
        if PLAIN.contains(entry) && IO.contains(entry) {
            faults.push(format!("tests/layering.rs calls src/{entry} both plain and I/O"));
        }
    }
    none(faults);
}

#[test]
fn the_reader_finds_paths_and_leaves_out_what_does_not_run() {
    let text = r##"
        //! [`crate::gone`]
        /* crate::gone /* nested */ crate::gone */
        use super::{self, a::{B, c::*}, d as e};
        pub(crate) fn f<'a>(x: &'a str) -> crate::g::H { let _ = ('"', b'\'', "crate::gone \" //", r#"crate::gone""#); x.i::<crate::j::K>() }
        #[cfg(test)]
        #[allow(unused)]
        mod tests { use crate::gone; fn f() { "}"; } }
        #[cfg(test)]
        pub(crate) mod fake;
        impl L for M { type Instant = u8; }
        fn last() { <N as crate::o::P>::q(); std::time::Instant::now() }
    "##;
    let file = Source::read("x/y.rs", text);
    let found: Vec<String> = file.paths.iter().map(|used| used.path.join("::")).collect();
    let expect = [
        "super",
        "super::a::B",
        "super::a::c::*",
        "super::d",
        "crate::g::H",
        "crate::j::K",
        "crate::o::P",
        "std::time::Instant::now",
    ];
    assert_eq!(found, expect);
    assert_eq!(file.paths[0].line, 4);
    let ours = |index: usize| file.paths[index].of_ours(&file).map(|path| path.join("::"));
    assert_eq!((ours(1).as_deref(), ours(4).as_deref(), ours(7)), (Some("x::a::B"), Some("g::H"), None));
}

fn none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// `std::fs` and `std::fs::File` are at or below `std::fs`; `std::fsx` is not.
fn is_at_or_below(path: &[String], name: &str) -> bool {
    let mut parts = path.iter();
    name.split("::").all(|wanted| parts.next().is_some_and(|part| part == wanted))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Io,
}

/// A source file and the paths of two or more names in it.
struct Source {
    /// Below `src/`.
    name: String,
    /// `spool/item.rs` is `spool`, `item`; `spool/mod.rs` is `spool`; `lib.rs` and `main.rs` are nothing.
    module: Vec<String>,
    paths: Vec<Used>,
}

struct Used {
    path: Vec<String>,
    line: usize,
}

impl Used {
    /// The path from the root of the crate; `None` if it leads elsewhere.
    fn of_ours(&self, file: &Source) -> Option<Vec<String>> {
        let mut base = file.module.clone();
        let mut rest = &self.path[..];
        match rest[0].as_str() {
            "crate" => base.clear(),
            "mailramp" if file.name == "main.rs" => base.clear(),
            "self" => {}
            "super" => {
                while rest.len() > 1 && rest[1] == "super" {
                    base.pop();
                    rest = &rest[1..];
                }
                base.pop();
            }
            _ => return None,
        }
        base.extend_from_slice(&rest[1..]);
        Some(base)
    }
}

impl Source {
    fn read(name: &str, text: &str) -> Source {
        let trimmed = name.trim_end_matches(".rs").trim_end_matches("/mod");
        let module = match trimmed {
            "lib" | "main" => Vec::new(),
            path => path.split('/').map(str::to_owned).collect(),
        };
        let tokens = without_tests(tokens(text));
        Source { name: name.to_owned(), module, paths: paths(&tokens) }
    }

    fn stem(&self) -> &str {
        self.name.trim_end_matches(".rs")
    }

    fn kind(&self) -> Option<Kind> {
        let fits = |entry: &&&str| self.name == **entry || (entry.ends_with('/') && self.name.starts_with(**entry));
        let longest = |list: &[&str]| list.iter().filter(fits).map(|entry| entry.len()).max();
        match (longest(PLAIN), longest(IO)) {
            (None, None) => None,
            (plain, io) if plain > io => Some(Kind::Plain),
            _ => Some(Kind::Io),
        }
    }
}

fn sources() -> Vec<Source> {
    fn collect(root: &Path, folder: &Path, into: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).expect("the source folder can be read") {
            let path = entry.expect("the source folder can be read").path();
            if path.is_dir() {
                collect(root, &path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("it is below").to_str().expect("names are ASCII");
                into.push(Source::read(name, &fs::read_to_string(&path).expect("a source file can be read")));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    collect(&root, &root, &mut all);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Into,
    Mark(char),
}

/// Words and marks with their lines; comments, texts, characters and lifetimes are left out.
fn tokens(text: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let start = i;
        match (at(i), at(i + 1)) {
            ('/', '/') => i = end(&chars, i, |j| at(j) == '\n'),
            ('/', '*') => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            ('"', _) => i = end_of_text(&chars, i + 1, '"'),
            // A character, or a lifetime, which has no second quote.
            ('\'', '\\') => i = end_of_text(&chars, i + 1, '\''),
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            ('\'', _) => i = end(&chars, i + 1, |j| !is_word(at(j))),
            (':', ':') => {
                found.push((Token::Into, line));
                i += 2;
            }
            (c, _) if is_word(c) => {
                i = end(&chars, i, |j| !is_word(at(j)));
                let word: String = chars[start..i].iter().collect();
                let is_raw = matches!(word.as_str(), "r" | "br" | "cr") && matches!(at(i), '"' | '#');
                let hashes = end(&chars, i, |j| at(j) != '#') - i;
                if is_raw && at(i + hashes) == '"' {
                    let closes = |j: usize| at(j) == '"' && (1..=hashes).all(|n| at(j + n) == '#');
                    i = end(&chars, i + hashes + 1, closes) + 1 + hashes;
                } else {
                    found.push((Token::Word(word), line));
                }
            }
            (c, _) => {
                if !c.is_whitespace() {
                    found.push((Token::Mark(c), line));
                }
                i += 1;
            }
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// The first place from `i` on where `stops` holds, or the end.
fn end(chars: &[char], i: usize, stops: impl Fn(usize) -> bool) -> usize {
    (i..chars.len()).find(|j| stops(*j)).unwrap_or(chars.len())
}

/// Behind the closing `quote`; a backslash hides what follows it.
fn end_of_text(chars: &[char], mut i: usize, quote: char) -> usize {
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// Takes out every item under `#[cfg(test)]`.
fn without_tests(tokens: Vec<(Token, usize)>) -> Vec<(Token, usize)> {
    let is = |i: usize, mark: char| matches!(tokens.get(i), Some((Token::Mark(m), _)) if *m == mark);
    let is_word = |i: usize, word: &str| matches!(tokens.get(i), Some((Token::Word(w), _)) if w == word);
    let is_test = |i: usize| {
        is(i, '#')
            && is(i + 1, '[')
            && is_word(i + 2, "cfg")
            && is(i + 3, '(')
            && is_word(i + 4, "test")
            && is(i + 5, ')')
    };
    let (mut kept, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        if !is_test(i) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        i += 7;
        let mut depth = 0;
        while i < tokens.len() {
            match tokens[i].0 {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
            let ends = depth == 0 && matches!(tokens[i].0, Token::Mark('}' | ';'));
            i += 1;
            if ends {
                break;
            }
        }
    }
    kept
}

/// Every path of two or more names, groups spelled out.
fn paths(tokens: &[(Token, usize)]) -> Vec<Used> {
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let begins = matches!(tokens[i].0, Token::Word(_)) && matches!(tokens.get(i + 1), Some((Token::Into, _)));
        i = if begins { path(tokens, i, &[], &mut found) } else { i + 1 };
    }
    found
}

/// Reads the path at `i` below `before`; returns the place behind it.
fn path(tokens: &[(Token, usize)], mut i: usize, before: &[String], found: &mut Vec<Used>) -> usize {
    let mut path = before.to_vec();
    let line = tokens[i].1;
    let token = |i: usize| tokens.get(i).map(|(token, _)| token);
    loop {
        match token(i) {
            Some(Token::Word(word)) => {
                // `a::{self}` is `a`.
                if word != "self" || path.is_empty() {
                    path.push(word.clone());
                }
                i += 1;
            }
            Some(Token::Mark('*')) => {
                path.push("*".into());
                i += 1;
            }
            Some(Token::Mark('{')) => {
                i += 1;
                while i < tokens.len() && token(i) != Some(&Token::Mark('}')) {
                    let is_name = matches!(token(i), Some(Token::Word(_) | Token::Mark('*')));
                    let renames = matches!(token(i), Some(Token::Word(word)) if word == "as");
                    // A new name is no path.
                    i = if renames {
                        i + 2
                    } else if is_name {
                        self::path(tokens, i, &path, found)
                    } else {
                        i + 1
                    };
                }
                return i + 1;
            }
            // `collect::<…>`: only a name.
            _ if path.len() == 1 => return i,
            _ => break,
        }
        if token(i) != Some(&Token::Into) {
            break;
        }
        i += 1;
    }
    found.push(Used { path, line });
    i
}
