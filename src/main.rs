//! The thin binary: everything is in the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    mailramp::cli::main(data_dir_of)
}

/// The `data_dir` of a settings file; a relative one is relative to the file.
fn data_dir_of(config: &Path) -> Result<PathBuf, String> {
    let text = std::fs::read_to_string(config).map_err(|error| format!("{}: {error}", config.display()))?;
    let settings: toml::Table = toml::from_str(&text).map_err(|error| format!("{}: {error}", config.display()))?;
    let data_dir = match settings.get("data_dir") {
        None => "data",
        Some(toml::Value::String(data_dir)) => data_dir,
        Some(other) => return Err(format!("{}: `data_dir` is a path in quotes, not {other}", config.display())),
    };
    Ok(config.parent().unwrap_or(Path::new("")).join(data_dir))
}
