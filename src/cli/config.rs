//! `mailramp config check` and `mailramp config show`: what the settings mean, without starting anything.

use std::io::{self, Write};
use std::path::Path;

use super::{Context, Failure, exit, text};
use crate::admin::api::{Answer, Command};
use crate::admin::streams::StreamPage;
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
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if matches!(args.command, ConfigCommand::Show { origin: true })
        && let Ok(Answer::StreamList(page)) = context.call(Command::StreamList)
    {
        text = with_moves(&text, &page);
    }
    context.write(&text)?;
    if code == exit::OK { Ok(()) } else { Err(Failure::new(code, "the settings cannot be used")) }
}

/// The same lines, but a stream that was moved has the way it goes now. Nothing is said without a relay that knows.
fn with_moves(shown: &str, page: &StreamPage) -> String {
    let (zone, _) = text::zone(&page.zone);
    let (mut out, mut stream) = (String::new(), None);
    for line in shown.lines() {
        let moved = stream.and_then(|name| page.streams.iter().find(|row| row.name == name)?.moved.as_ref());
        match (line.split_once("  # "), moved) {
            (Some((setting, origin)), Some(moved)) if setting.starts_with("route = ") => {
                let setting = format!("route = \"{}\"", moved.to.text());
                let (actor, at) = (moved.actor, text::local(moved.at, &zone, "%Y-%m-%d %H:%M"));
                let name = stream.unwrap_or_default();
                out += &format!("{setting:<56}  # moved by uid {actor} at {at} over {origin} (streams undo {name})\n");
            }
            _ => out += &format!("{line}\n"),
        }
        if line.starts_with("[[") {
            stream = None;
        } else if let Some(rest) = line.strip_prefix("name = \"") {
            stream = rest.split('"').next();
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::stream_page;

    #[test]
    fn a_stream_that_was_moved_shows_its_way_and_what_it_stands_over() {
        let shown = "\
route = \"x\"                                               # default
[[streams]]
name = \"digest\"                                         # m.toml:30:8
route = \"legacy\"                                        # m.toml:31:9
[[streams]]
name = \"password\"                                       # m.toml:33:8
route = \"new\"                                           # m.toml:34:9
";
        let found = with_moves(shown, &stream_page());
        let differs: Vec<_> = found.lines().zip(shown.lines()).filter(|(now, before)| now != before).collect();
        assert_eq!(differs.len(), 1, "{found}");
        let words: Vec<_> = differs[0].0.split_whitespace().collect();
        let wanted = "route = \"ramp\" # moved by uid 1000 at 2026-03-09 21:48 over m.toml:31:9 (streams undo digest)";
        assert_eq!(words.join(" "), wanted);
    }
}
