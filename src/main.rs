//! The thin binary: everything is in the library.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mailramp::config::{Settings, process_environment};

fn main() -> ExitCode {
    mailramp::cli::main(data_dir_of)
}

fn data_dir_of(config: &Path) -> Result<PathBuf, String> {
    Settings::load(config, process_environment()).map(|loaded| loaded.settings.data_dir).map_err(|e| e.to_string())
}
