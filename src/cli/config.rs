//! `mailramp config check` and `mailramp config show`: what the settings mean, without starting anything.

use std::io::{self, Write};
use std::path::Path;

use super::{Context, Failure, exit};
use crate::config::{EXIT_CONFIG, Settings, process_environment};
use crate::relay;
use crate::smtp::user_file::UserFile;

/// Arguments of `mailramp config`. The settings file itself is an option of every command.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with the settings; exit 78 if anything is
    Check,
    /// Print every setting with its effective value, secrets hidden
    Show {
        /// Also say where each value comes from: default, file and line, or environment variable
        #[arg(long)]
        origin: bool,
    },
}

/// Runs `mailramp config …` on the file at `path` with the variables `env`; the result goes to `out`. Returns the
/// exit code: 0, or 78 when the settings cannot be used.
pub fn run(
    args: &ConfigArgs,
    path: &Path,
    env: impl Iterator<Item = (String, String)>,
    out: &mut dyn Write,
) -> io::Result<u8> {
    match args.command {
        ConfigCommand::Check => check(path, env, out),
        ConfigCommand::Show { origin } => show(path, env, origin, out),
    }
}

/// [`run`] as a command of the tree.
pub fn command(args: &ConfigArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let path = context.config_path()?;
    let mut text = Vec::new();
    let code = run(args, &path, process_environment(), &mut text)
        .map_err(|error| Failure::new(exit::IO, format!("{}: {error}", path.display())))?;
    context.write(&String::from_utf8_lossy(&text))?;
    if code == exit::OK { Ok(()) } else { Err(Failure::new(code, "the settings cannot be used")) }
}

/// Prints every fault, or that there is none, and the warnings.
pub fn check(path: &Path, env: impl Iterator<Item = (String, String)>, out: &mut dyn Write) -> io::Result<u8> {
    match Settings::load(path, env) {
        Ok(loaded) => {
            // What a start would read beside the settings.
            let users = match relay::front_door::server_tls(&loaded.settings)
                .and_then(|_| relay::front_door::user_file(&loaded.settings))
            {
                Ok(users) => users,
                Err(faults) => {
                    writeln!(out, "{faults}")?;
                    return Ok(EXIT_CONFIG);
                }
            };
            for warning in &loaded.warnings {
                writeln!(out, "{warning}  (warning)")?;
            }
            if let Some(users) = users.filter(UserFile::tells_by_time) {
                let text =
                    "not all hashes cost the same: a refused login takes a time that tells which users there are";
                writeln!(out, "{}  {} users, {text}  (warning)", loaded.name, users.len())?;
            }
            writeln!(out, "{}  the settings are valid", loaded.name)?;
            Ok(0)
        }
        Err(faults) => {
            writeln!(out, "{faults}")?;
            Ok(EXIT_CONFIG)
        }
    }
}

/// Prints the effective settings as a file that loads again, each line with its origin if asked.
pub fn show(
    path: &Path,
    env: impl Iterator<Item = (String, String)>,
    with_origin: bool,
    out: &mut dyn Write,
) -> io::Result<u8> {
    match Settings::load(path, env) {
        Ok(loaded) => {
            loaded.show(out, with_origin)?;
            Ok(0)
        }
        Err(faults) => {
            writeln!(out, "{faults}")?;
            Ok(EXIT_CONFIG)
        }
    }
}
