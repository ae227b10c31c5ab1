//! `mailramp backup DIR`: a consistent copy of the data directory while the relay runs.
//!
//! This process reads and writes; the relay only holds its files back for as long as the connection to it stands.
//! Killed at any moment, it leaves a relay that goes on and a directory that no relay starts on.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::text::{self, counted};
use super::{Context, Failure, exit, explained};
use crate::admin::api::{Answer, Command};
use crate::admin::control::{CallError, Line, socket_path};
use crate::spool::SpoolError;
use crate::spool::backup::{BackupError, Copied, copy};

/// The relay lets go after 30 seconds of silence.
const ASK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where to; must be empty, or not exist
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// For programs: as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let data_dir = context.data_dir()?;
    let hold = Hold::take(&socket_path(&data_dir))?;
    let shown = std::io::stderr().is_terminal();
    let mut step = |done: u64, whole: u64| {
        if shown && whole > 0 {
            let end = if done == whole { "\n" } else { "" };
            let bar = text::bar(done, whole, 24);
            // A terminal that is gone is no reason to stop.
            let _ = write!(std::io::stderr(), "\r[{bar}] {} of {}{end}", text::count(done), counted(whole, "file"));
        }
    };
    let copied = copy(&data_dir, &options.to, &|| hold.stands(), &mut step).map_err(|error| failure(&error))?;
    let text = if options.json { super::json(&shape(&copied))? } else { render(&copied, &options.to) };
    context.write(&text)?;
    match copied.damaged {
        0 => Ok(()),
        damaged => {
            let bodies = counted(damaged, "body");
            let text = format!(
                "{} cannot be read as stored, in the data directory as in the copy; the rest is sound",
                bodies.replace("bodys", "bodies")
            );
            Err(Failure::new(exit::NEGATIVE, text))
        }
    }
}

/// The relay holds its files back as long as this lives.
struct Hold {
    line: Arc<Mutex<Line>>,
    /// Dropped: the thread ends, and with it the connection.
    _end: mpsc::Sender<()>,
}

impl Hold {
    fn take(socket: &Path) -> Result<Hold, Failure> {
        let line = Arc::new(Mutex::new(Line::open(socket).map_err(|error| unreachable(&error))?));
        ask(&line).map_err(|error| unreachable(&error))?;
        let (end, ended) = mpsc::channel();
        let hold = Hold { line: line.clone(), _end: end };
        std::thread::spawn(move || {
            // Whether it still answers is asked by who needs to know.
            while ended.recv_timeout(ASK_AGAIN) == Err(mpsc::RecvTimeoutError::Timeout) && ask(&line).is_ok() {}
        });
        Ok(hold)
    }

    /// All this time no file was removed.
    fn stands(&self) -> Result<(), String> {
        ask(&self.line).map_err(|error| error.to_string())
    }
}

fn ask(line: &Mutex<Line>) -> Result<(), CallError> {
    match line.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).ask(Command::HoldFiles)? {
        Answer::FilesHeld => Ok(()),
        _ => Err(CallError::Garbled("something else than asked".into())),
    }
}

fn unreachable(error: &CallError) -> Failure {
    let failure = explained(error);
    match error {
        CallError::Unreachable { .. } => Failure::new(
            failure.code,
            format!("{}\na relay that does not run needs none of this: copy its data directory as it is", failure.text),
        ),
        _ => failure,
    }
}

fn failure(error: &BackupError) -> Failure {
    let code = match error {
        BackupError::Place(_) => exit::DATA_DIR,
        BackupError::Spool(SpoolError::Full { .. }) => exit::DATA_DIR,
        _ => exit::IO,
    };
    let text = match error {
        BackupError::Spool(SpoolError::Full { .. }) => "there is no room for the backup".into(),
        other => other.to_string(),
    };
    Failure::new(code, format!("no backup was made: {}", crate::log::printable(&text)))
}

/// What `--json` writes.
#[derive(serde::Serialize)]
struct Shape {
    messages: u64,
    recipients: u64,
    segments: u64,
    large: u64,
    bytes: u64,
    bodies_sound: u64,
    bodies_damaged: u64,
}

fn shape(copied: &Copied) -> Shape {
    let Copied { items, recipients, segments, large, bytes, sound, damaged } = *copied;
    Shape { messages: items, recipients, segments, large, bytes, bodies_sound: sound, bodies_damaged: damaged }
}

fn render(copied: &Copied, to: &Path) -> String {
    format!(
        "{}, {}: the database, {} and {} of their own, {} in all, read back and sound\n\
         {} is a data directory: a relay that starts on it keeps its mail back, paused, and counts the last 24 hours as \
         used up\n",
        counted(copied.items, "message"),
        counted(copied.recipients, "recipient"),
        counted(copied.segments, "segment"),
        counted(copied.large, "file"),
        text::size(copied.bytes),
        to.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_says_what_was_copied() {
        let copied =
            Copied { items: 1_200, recipients: 1_300, segments: 1, large: 2, bytes: 41_000_000, sound: 9, damaged: 0 };
        let want = "1,200 messages, 1,300 recipients: the database, 1 segment and 2 files of their own, 41 MB in all, \
                    read back and sound\n";
        let text = render(&copied, Path::new("/backup"));
        assert!(text.starts_with(want) && text.contains("\n/backup is a data directory"), "{text}");
    }
}
