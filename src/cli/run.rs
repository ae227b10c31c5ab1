//! `mailramp run`: the relay, until it is told to stop.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Failure, exit};
use crate::clock::{Clock, SystemClock};
use crate::config::{Loaded, LogAddresses, LogFormat, LogLevel, Settings, process_environment};
use crate::log;
use crate::relay::{Data, Relay, StartError};
use crate::spool::SpoolError;

/// Arguments of `mailramp run`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The data comes from a snapshot of its volume: count the last 24 hours as used up and keep all mail back, paused.
    /// Other copies and backups are recognised without this. For one start only: each start with it pauses again
    #[arg(long)]
    restored: bool,
}

/// Runs until SIGTERM or SIGINT.
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
    runtime.block_on(serve(&loaded.settings, Arc::new(SystemClock), data))
}

async fn serve(settings: &Settings, clock: Arc<dyn Clock>, data: Data) -> Result<(), Failure> {
    let unusable = |error: std::io::Error| Failure::new(exit::IO, format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(unusable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unusable)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(unusable)?;
    let mut relay = Relay::start_on(settings, clock, data).await.map_err(failure)?;
    for address in &relay.smtp {
        tracing::info!(event = "relay.listening", address = %address, protocol = "smtp");
    }
    tracing::info!(event = "relay.listening", address = %relay.http, protocol = "http");
    let died = loop {
        tokio::select! {
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
            _ = hang_up.recv() => reload(&relay, settings).await,
            () = relay.died() => break true,
        }
    };
    tracing::info!(event = "relay.stopping");
    let stopped = relay.stop().await;
    match stopped {
        Ok(()) if !died => {
            tracing::info!(event = "relay.stopped");
            Ok(())
        }
        Ok(()) => Err(Failure::new(exit::IO, "the spool has stopped; start again to recover")),
        Err(error) => {
            tracing::error!(event = "spool.failed", reason = %error);
            if matches!(error, SpoolError::Damaged { .. }) {
                return Err(Failure::new(exit::IO, error.to_string()));
            }
            Err(Failure::new(exit::IO, format!("the spool failed {error}; start again to recover")))
        }
    }
}

/// What SIGHUP asks for. So far the certificate is all that is read again.
async fn reload(relay: &Relay, settings: &Settings) {
    match relay.reload_certificate(settings).await {
        Ok(()) => {
            let reason = "the certificate was read again; new settings need a restart in this version";
            tracing::info!(event = "config.reloaded", reason);
        }
        Err(error) => {
            relay.metrics.settings_refused();
            tracing::error!(event = "tls.reload_failed", reason = %error, "the old certificate stays in use");
        }
    }
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
    let settings = &loaded.settings.log;
    let format = match settings.format {
        LogFormat::Auto => log::Format::Auto,
        LogFormat::Json => log::Format::Json,
        LogFormat::Logfmt => log::Format::Logfmt,
        LogFormat::Pretty => log::Format::Pretty,
    };
    let level = match settings.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let addresses = match settings.addresses {
        LogAddresses::Masked => log::Addresses::Masked,
        LogAddresses::Hashed => log::Addresses::Hashed,
        LogAddresses::Full => log::Addresses::Full,
    };
    log::init(format, level, addresses);
    for warning in &loaded.warnings {
        tracing::warn!(event = "config.warning", reason = %warning);
    }
}
