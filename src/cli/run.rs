//! `mailramp run`: the relay, until it is told to stop.

use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Failure, exit};
use crate::clock::{Clock, SystemClock};
use crate::config::{Loaded, LogFormat, Settings, process_environment};
use crate::log;
use crate::relay::reload::{log_level, shown_addresses};
use crate::relay::{Data, Relay, StartError, notify};
use crate::spool::SpoolError;

/// Arguments of `mailramp run`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The data comes from a snapshot of its volume: count the last 24 hours as used up and keep all mail back, paused.
    /// Other copies and backups are recognised without this. For one start only: each start with it pauses again
    #[arg(long)]
    restored: bool,
    /// Everything really goes by legacy. What the ramp would have done is only said: in the log (dry_run=true), in the
    /// metrics and in `mailramp status`. Nothing counts as sent, and a later run without this begins with day 1
    #[arg(long)]
    dry_run: bool,
}

/// Runs until SIGTERM or SIGINT. SIGHUP: goes on with the settings as they are then.
pub fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let path = context.config_path()?;
    let loaded = Settings::load(&path, process_environment())
        .map_err(|faults| Failure::new(exit::CONFIG, format!("the settings cannot be used\n{faults}")))?;
    start_log(&loaded);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::IO, format!("cannot start threads: {error}")))?;
    let data = if options.restored { Data::Restored } else { Data::AsFound };
    runtime.block_on(serve(&path, &loaded.settings, Arc::new(SystemClock), data, options.dry_run))
}

async fn serve(
    path: &Path,
    settings: &Settings,
    clock: Arc<dyn Clock>,
    data: Data,
    dry_run: bool,
) -> Result<(), Failure> {
    let unusable = |error: std::io::Error| Failure::new(exit::IO, format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(unusable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unusable)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(unusable)?;
    let started = match dry_run {
        true => Relay::start_dry(settings, clock, data).await,
        false => Relay::start_on(settings, clock, data).await,
    };
    let mut relay = started.map_err(failure)?;
    if dry_run {
        tracing::warn!(event = "relay.dry_run", "everything goes by legacy; what the ramp would do is only said");
    }
    for address in &relay.smtp {
        tracing::info!(event = "relay.listening", address = %address, protocol = "smtp");
    }
    tracing::info!(event = "relay.listening", address = %relay.http, protocol = "http");
    notify::ready();
    let telling = tokio::spawn(notify::keep_telling(relay.backend.clone()));
    let died = loop {
        tokio::select! {
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
            _ = hang_up.recv() => {}
            () = relay.died() => break true,
        }
        // Who wants to stop need not wait for new settings.
        tokio::select! {
            () = reload(&mut relay, path) => {}
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
        }
    };
    tracing::info!(event = "relay.stopping");
    notify::stopping(relay.grace());
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!(
            event = "relay.stopping",
            reason = "asked again: sessions and deliveries under way are broken off"
        );
    };
    let stopped = relay.stop_or_hurry(again).await;
    telling.abort();
    match stopped {
        Ok(()) if !died => {
            tracing::info!(event = "relay.stopped");
            Ok(())
        }
        Ok(()) => Err(Failure::new(exit::IO, "the spool has stopped; start again to recover")),
        Err(error) => {
            let data_dir = settings.data_dir.display();
            tracing::error!(event = "spool.failed", reason = %error, %data_dir);
            if matches!(error, SpoolError::Damaged { .. }) {
                return Err(Failure::new(exit::IO, error.to_string()));
            }
            let advice = "look for the disk in the system's log, then start again to recover";
            Err(Failure::new(exit::IO, format!("the spool in {data_dir} failed {error}; {advice}")))
        }
    }
}

/// Reads the settings again. What is wrong with them is logged, one line for each fault, and the old ones stay.
async fn reload(relay: &mut Relay, path: &Path) {
    notify::reloading();
    let place = path.to_owned();
    let read = tokio::task::spawn_blocking(move || Settings::load(&place, process_environment())).await;
    let result = match read.expect("reading settings does not panic") {
        Ok(loaded) => match relay.reload(&loaded).await {
            Ok(()) => Ok(loaded),
            Err(error) => Err(error.to_string()),
        },
        Err(faults) => Err(faults.to_string()),
    };
    match result {
        Ok(loaded) => {
            tracing::info!(event = "config.reloaded", file = %loaded.name);
            warn(&loaded);
        }
        Err(faults) => {
            relay.metrics.settings_refused();
            for reason in faults.lines() {
                tracing::error!(event = "config.refused", reason, "the old settings stay in force");
            }
        }
    }
    notify::ready();
}

pub(super) fn failure(error: StartError) -> Failure {
    let code = match error {
        StartError::Settings(_) => exit::CONFIG,
        StartError::DataDirectory(_) => exit::DATA_DIR,
        StartError::Busy(_) => exit::BUSY,
        StartError::Io(_) => exit::IO,
    };
    Failure::new(code, error.to_string())
}

fn start_log(loaded: &Loaded) {
    let format = match loaded.settings.log.format {
        LogFormat::Auto => log::Format::Auto,
        LogFormat::Json => log::Format::Json,
        LogFormat::Logfmt => log::Format::Logfmt,
        LogFormat::Pretty => log::Format::Pretty,
    };
    log::init(format, log_level(&loaded.settings), shown_addresses(&loaded.settings));
    warn(loaded);
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!(event = "config.warning", reason = %warning);
    }
}
