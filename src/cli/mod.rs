//! The command line. One file per command; this one has the tree, the exit codes, and what all commands share.
//!
//! Commands that speak to the running relay find its socket in the configured data directory. They write to standard
//! output what was asked for, to standard error what went wrong and what to do about it.

pub mod audit;
pub mod backup;
pub mod by_hand;
pub mod config;
pub mod demo;
pub mod explain;
pub mod plan;
pub mod queue;
pub mod run;
pub mod status;
pub mod streams;
pub mod text;
pub mod user;
pub mod warmup;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::admin::api::{self, Answer};
use crate::admin::control::{self, CallError};
use text::Paint;

/// Where a settings file is looked for when none is named.
pub const CONFIG_PLACES: [&str; 2] = ["./mailramp.toml", "/etc/mailramp/mailramp.toml"];

/// Exit codes (after `sysexits.h` where it has one).
pub mod exit {
    pub const OK: u8 = 0;
    /// A check whose verdict is no; a change that would change nothing.
    pub const NEGATIVE: u8 = 1;
    pub const USAGE: u8 = 2;
    /// The relay does not run, or not for us.
    pub const UNREACHABLE: u8 = 69;
    /// The data directory cannot be read or written.
    pub const DATA_DIR: u8 = 73;
    /// Input or output; starting again may help.
    pub const IO: u8 = 74;
    /// The data directory is locked by another process, or a port is in use.
    pub const BUSY: u8 = 75;
    /// Settings invalid or unsafe.
    pub const CONFIG: u8 = 78;
    /// Ended by Ctrl-C before there was a result (128 + SIGINT).
    pub const INTERRUPTED: u8 = 130;
}

/// Reads the settings file at a path for its data directory; the error is for the operator's eyes.
pub type DataDirOf = fn(&Path) -> Result<PathBuf, String>;

/// SMTP relay that moves an application's mail from an old server to a new one at warm-up pace
#[derive(Debug, Parser)]
#[command(name = "mailramp", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Settings file [default: ./mailramp.toml, then /etc/mailramp/mailramp.toml]
    #[arg(long, global = true, env = "MAILRAMP_CONFIG", value_name = "FILE", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Colours in what is written
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN")]
    pub color: Colour,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The main job on embedded defaults: a 15-day ramp in minutes, nothing leaves the machine
    Demo(demo::Options),
    /// How a ramp would go: days to the target, mail by either server
    Plan(plan::Options),
    /// The relay
    Run(run::Options),
    /// How far the ramp is, on one screen
    Status(status::Options),
    /// The ramp's lanes and days; pause it, set its day, put brakes on and take them off
    #[command(subcommand)]
    Warmup(warmup::Warmup),
    /// Who changed what, when and why
    Audit(audit::Options),
    /// Look at the streams; move one to another way, now or at a set time
    #[command(subcommand)]
    Streams(streams::Streams),
    /// Look at what waits; hurry it, send it by the other route, remove it
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Copy the data directory while the relay runs
    Backup(backup::Options),
    /// Check or show the settings
    Config(config::ConfigArgs),
    /// Hash a password for the users file
    #[command(subcommand)]
    User(user::User),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Colour {
    /// `no_color`: the variable is set and not empty (no-color.org).
    pub fn paint(self, terminal: bool, no_color: bool) -> Paint {
        let colour = match self {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => terminal && !no_color,
        };
        Paint { colour }
    }
}

/// Reads the arguments of this process, does what they say.
pub fn main(data_dir_of: DataDirOf) -> ExitCode {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // Not locked: the relay's log goes to standard output too, from other threads.
    let mut stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let code = run(std::env::args_os(), data_dir_of, terminal, no_color, &mut stdout, &mut io::stderr());
    ExitCode::from(code)
}

/// [`main`] without the process around it.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    data_dir_of: DataDirOf,
    terminal: bool,
    no_color: bool,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" of the parser that go to standard output.
            let text = error.render();
            let _ = if error.use_stderr() { write!(errors, "{text}") } else { write!(out, "{text}") };
            return u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
        }
    };
    let paint = cli.color.paint(terminal, no_color);
    let mut context = Context { config: cli.config, data_dir_of, paint, terminal, out };
    let outcome = match &cli.command {
        Command::Demo(options) => demo::run(options, &mut context),
        Command::Plan(options) => plan::run(options, &mut context),
        Command::Run(options) => run::run(options, &mut context),
        Command::Config(options) => config::command(options, &mut context),
        Command::Status(options) => status::run(options, &mut context),
        Command::Warmup(command) => warmup::run(command, &mut context),
        Command::Audit(options) => audit::run(options, &mut context),
        Command::Streams(command) => streams::run(command, &mut context),
        Command::Queue(command) => queue::run(command, &mut context),
        Command::Backup(options) => backup::run(options, &mut context),
        Command::User(command) => user::run(command, &mut context),
    };
    match outcome {
        Ok(()) => exit::OK,
        Err(failure) => {
            let _ = writeln!(errors, "mailramp: {}", failure.text);
            failure.code
        }
    }
}

/// What a command works with.
pub struct Context<'a> {
    config: Option<PathBuf>,
    data_dir_of: DataDirOf,
    paint: Paint,
    /// Standard output is a terminal.
    terminal: bool,
    out: &'a mut dyn Write,
}

/// Why a command ends with another code than 0.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    /// For standard error; says what to do.
    pub text: String,
}

impl Failure {
    pub fn new(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, text: text.into() }
    }

    fn strange_answer() -> Failure {
        Failure::new(exit::IO, "the relay answered something else than asked; use the same mailramp for both")
    }
}

impl Context<'_> {
    /// The settings file: as named, else the first that exists.
    pub fn config_path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.config {
            return Ok(path.clone());
        }
        CONFIG_PLACES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
            let text = format!(
                "no settings file: tried {} and {}; name yours with --config FILE",
                CONFIG_PLACES[0], CONFIG_PLACES[1]
            );
            Failure::new(exit::CONFIG, text)
        })
    }

    /// Where the relay keeps its data.
    fn data_dir(&self) -> Result<PathBuf, Failure> {
        (self.data_dir_of)(&self.config_path()?).map_err(|text| Failure::new(exit::CONFIG, text))
    }

    /// Asks the running relay.
    fn call(&self, command: api::Command) -> Result<Answer, Failure> {
        control::call(&control::socket_path(&self.data_dir()?), command).map_err(|error| explained(&error))
    }

    /// Writes the result. A reader that has seen enough (`| head`) is no failure.
    pub fn write(&mut self, text: &str) -> Result<(), Failure> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(exit::IO, format!("while writing the result: {error}")))
            }
            _ => Ok(()),
        }
    }
}

fn explained(error: &CallError) -> Failure {
    let code = match error {
        CallError::Unreachable { .. } => exit::UNREACHABLE,
        CallError::Garbled(_) | CallError::Failed(_) => exit::IO,
        CallError::Refused(_) => exit::USAGE,
        CallError::NoChange(_) => exit::NEGATIVE,
    };
    let remedy = match error {
        CallError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "\nrun this as the user of the relay, or as root"
        }
        CallError::Unreachable { .. } => "\nstart it with `mailramp run`, or name its settings file with --config FILE",
        CallError::Garbled(_) => "\nuse the same mailramp for the relay and for this command",
        _ => "",
    };
    Failure::new(code, format!("{}{remedy}", crate::log::printable(&error.to_string())))
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(exit::IO, error.to_string()))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::CommandFactory;

    use super::*;
    use crate::admin::control::ControlSocket;
    use crate::admin::fake::FakeBackend;

    /// The settings file stands in its data directory here.
    fn beside(config: &Path) -> Result<PathBuf, String> {
        Ok(config.parent().unwrap().into())
    }

    fn run_at(config: &Path, arguments: &[&str]) -> (u8, String, String) {
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let mut all: Vec<OsString> = vec!["mailramp".into()];
        all.extend(arguments.iter().map(OsString::from));
        all.extend(["--config".into(), config.into()]);
        let code = run(all, beside, false, false, &mut out, &mut errors);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(errors).unwrap())
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[tokio::test]
    async fn commands_go_through_the_socket_of_the_configured_data_directory() {
        let dir = tempfile::TempDir::new().unwrap();
        let backend = Arc::new(FakeBackend::default());
        let socket = ControlSocket::bind(dir.path()).unwrap();
        tokio::spawn(socket.serve(backend.clone(), std::future::pending()));
        let config = dir.path().join("mailramp.toml");
        let steps = || backend.steps.lock().unwrap().len();
        let said = |arguments: &'static [&'static str]| {
            let config = config.clone();
            async move { tokio::task::spawn_blocking(move || run_at(&config, arguments)).await.unwrap() }
        };

        let (code, out, _) = said(&["status"]).await;
        assert_eq!((code, out.lines().count()), (0, 9), "{out}");
        let (code, out, _) = said(&["status", "--json"]).await;
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &value["warmup"]["state"]["name"]), (0, &serde_json::json!("ramping")));

        let (code, out, _) = said(&["queue", "list", "--state", "held", "--older-than", "1h"]).await;
        assert_eq!((code, out.lines().count()), (0, 2), "{out}");

        let (code, out, _) = said(&["queue", "show", "01k5y7q2m8r4", "--headers"]).await;
        assert!(code == 0 && out.starts_with("01K5Y7Q2M8R4   ") && out.contains("From: a***@example.com"), "{out}");

        for verb in [&["flush"][..], &["reroute", "--to", "legacy"], &["drop"]] {
            let line = |last: &'static str| -> &'static [&'static str] {
                [&["queue"], verb, &["--stream", "digest", last]].concat().leak()
            };
            let (code, out, _) = said(line("--json")).await;
            let value: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert_eq!((code, &value["dry_run"], &value["left"]["in_flight"]), (0, &true.into(), &1.into()), "{out}");
            let before = steps();
            let (code, out, _) = said(line("--yes")).await;
            assert_eq!((code, steps()), (0, before + 1));
            assert!(out.starts_with("2 messages, 2 recipients, 41 kB: ") && out.contains("1 on their way"), "{out}");
        }
        assert_eq!(steps(), 3, "a dry run changes nothing");
        let (code, ..) = said(&["queue", "drop", "--all", "--id", "01k5y7q2m8r4"]).await;
        assert_eq!((code, steps()), (2, 3), "all and some contradict each other");

        let changes = || backend.changes.lock().unwrap().len();
        let set_day = &["warmup", "set-day", "5", "--reason", "too fast"];
        let (code, out, _) = said(set_day).await;
        assert!(code == 0 && out.starts_with("would be set to day 5:") && changes() == 0, "{out}");
        let (code, out, _) = said(&["warmup", "set-day", "5", "--reason", "too fast", "--yes"]).await;
        assert!(code == 0 && out.starts_with("set to day 5:") && changes() == 1, "{out}");
        let (code, _, errors) = said(&["warmup", "resume", "--reason", "mended"]).await;
        assert_eq!((code, errors.as_str()), (1, "mailramp: new is not paused\n"));
        for arguments in [
            &["warmup", "pause", "--reason", "complaints"][..],
            &["warmup", "resume", "--reason", "mended"],
            &["warmup", "brakes", "set", "microsoft", "--for", "2h", "--reason", "complaints"],
            &["warmup", "brakes", "release", "microsoft", "--reason", "mended"],
        ] {
            let before = changes();
            let (code, out, errors) = said(arguments.to_vec().leak()).await;
            assert_eq!((code, errors.as_str(), changes()), (0, "", before + 1), "{arguments:?}: {out}");
        }
        let (code, out, _) = said(&["warmup", "brakes"]).await;
        assert!(code == 0 && out.starts_with("microsoft  suspended until 18:40"), "{out}");
        let (code, out, _) = said(&["warmup", "status", "--json"]).await;
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &value["lanes"][2]["brake"]["level"]), (0, &serde_json::json!("suspended")));
        let (code, out, _) = said(&["audit", "--since", "2h"]).await;
        assert_eq!((code, out.lines().count()), (0, 3), "two of three entries are so young: {out}");

        let (code, out, _) = said(&["streams", "list"]).await;
        assert!(code == 0 && out.starts_with("STREAM ") && out.contains("default: ramp by the settings"), "{out}");
        let order = ["streams", "move", "digest", "--to", "ramp", "--at", "22:00"];
        let order: &'static [&'static str] = order.to_vec().leak();
        let (code, out, _) = said(order).await;
        assert!(code == 0 && out.contains("7,878 stay on legacy") && out.ends_with("Add --yes.\n"), "{out}");
        assert!(backend.moves.lock().unwrap().is_empty(), "a dry run changes nothing");
        let (code, out, _) = said([order, &["--yes"]].concat().leak()).await;
        assert!(code == 0 && out.ends_with("undo: mailramp streams undo digest --yes\n"), "{out}");
        assert_eq!(backend.moves.lock().unwrap()[0].0.at.as_deref(), Some("22:00"));
        let (code, out, _) = said(&["streams", "undo", "digest", "--yes", "--json"]).await;
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &value["undone"]["to"], &value["to"]), (0, &"ramp".into(), &"legacy".into()), "{out}");
        let (code, out, errors) = said(&["streams", "move", "nosuch", "--to", "new"]).await;
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(errors.contains("there are: digest, password, default"), "{errors}");

        let (code, out, errors) = said(&["queue", "flush", "--stream", "nosuch"]).await;
        assert_eq!((code, out.as_str(), errors.as_str()), (2, "", "mailramp: there is no stream `nosuch`\n"));
    }

    #[test]
    fn without_a_running_relay_the_code_is_69_and_the_message_says_what_to_do() {
        let dir = tempfile::TempDir::new().unwrap();
        let (code, out, errors) = run_at(&dir.path().join("mailramp.toml"), &["status"]);
        assert_eq!((code, out.as_str()), (69, ""));
        assert!(errors.contains("control.sock") && errors.contains("mailramp run"), "{errors}");
    }

    #[test]
    fn settings_that_cannot_be_read_end_with_78_and_bad_usage_with_2() {
        let arguments = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let refused: DataDirOf = |_| Err("x.toml:3:1  unknown key".into());
        let asked = arguments(&["mailramp", "status", "--config", "x.toml"]);
        assert_eq!(run(asked, refused, false, false, &mut out, &mut errors), 78);
        for list in [
            &["mailramp", "fly"][..],
            &["mailramp", "queue", "list", "--older-than", "soon"],
            &["mailramp", "warmup", "pause"],
            &["mailramp", "warmup", "pause", "--reason", " "],
            &["mailramp", "warmup", "set-day", "0", "--reason", "x"],
            &["mailramp", "warmup", "set-day", "3651", "--reason", "x"],
            &["mailramp", "warmup", "brakes", "set", "google", "--reason", "x"],
            &["mailramp"],
        ] {
            assert_eq!(run(arguments(list), refused, false, false, &mut out, &mut errors), 2, "{list:?}");
        }
        assert!(out.is_empty());
        assert_eq!(run(arguments(&["mailramp", "--version"]), refused, false, false, &mut out, &mut errors), 0);
        assert!(!out.is_empty());
    }

    #[test]
    fn colours_are_for_terminals_and_not_against_the_readers_wish() {
        let colour = |when: Colour, terminal, no_color| when.paint(terminal, no_color).colour;
        assert!(colour(Colour::Auto, true, false));
        assert!(!colour(Colour::Auto, true, true) && !colour(Colour::Auto, false, false));
        assert!(colour(Colour::Always, false, true) && !colour(Colour::Never, true, false));
    }
}
