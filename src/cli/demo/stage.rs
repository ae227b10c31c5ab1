//! Where the demonstration takes place: a private directory, two receiving servers, the real relay between them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Options;
use super::sink::{self, Notebook};
use crate::cli::{Failure, exit, run};
use crate::clock::FastClock;
use crate::config::Settings;
use crate::message::{Route, Timestamp};
use crate::relay::Relay;
use crate::smtp::{ListenerSettings, Server};

/// Monday, 2 March 2026, 00:00 UTC.
pub const START: Timestamp = Timestamp::from_seconds(1_772_409_600);
/// Names tried for the directory.
const TRIES: u32 = 100;

/// A directory that nobody else can look into and that goes when this goes.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn make() -> io::Result<Scratch> {
        let mut result = Err(io::ErrorKind::AlreadyExists.into());
        for n in 0..TRIES {
            let path = std::env::temp_dir().join(format!("mailramp-demo-{}-{n}", std::process::id()));
            // Fails on whatever is there already, a symbolic link included.
            result = std::fs::DirBuilder::new().mode(0o700).create(&path).map(|()| Scratch(path));
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
                break;
            }
        }
        result
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything that runs, but for the application.
pub struct Stage {
    pub relay: Relay,
    pub clock: Arc<FastClock>,
    pub notebook: Arc<Notebook>,
    pub new: SocketAddr,
    pub legacy: SocketAddr,
    /// The relay's settings file.
    pub settings: PathBuf,
    stop: CancellationToken,
}

impl Stage {
    /// The clock stands still.
    pub async fn set(options: &Options, dir: &Path) -> Result<Stage, Failure> {
        for (port, name) in [(options.port, "--port"), (options.http_port, "--http-port")] {
            check_port(port, name)?;
        }
        let (stop, notebook) = (CancellationToken::new(), Arc::new(Notebook::default()));
        let clock = Arc::new(FastClock::standing(START, options.speed.factor()));
        let server = |route| {
            sink::start(route, notebook.clone(), clock.clone(), stop.clone())
                .map_err(|error| Failure::new(exit::IO, format!("the receiving server {route} cannot start: {error}")))
        };
        let (new, legacy) = (server(Route::New)?, server(Route::Legacy)?);
        let settings = dir.join("mailramp.toml");
        std::fs::write(&settings, text(options, new, legacy))
            .map_err(|error| Failure::new(exit::DATA_DIR, format!("{}: {error}", settings.display())))?;
        let loaded = Settings::load(&settings, std::iter::empty())
            .map_err(|faults| Failure::new(exit::CONFIG, faults.to_string()))?;
        let relay = Relay::start(&loaded.settings, clock.clone()).await.map_err(run::failure)?;
        Ok(Stage { relay, clock, notebook, new, legacy, settings, stop })
    }

    /// Ends it all. `Err`: the spool had failed.
    pub async fn clear(self) -> Result<(), Failure> {
        let stopped = self.relay.stop().await;
        self.stop.cancel();
        stopped.map_err(|error| Failure::new(exit::IO, format!("the spool failed {error}")))
    }
}

/// Says which option helps; the relay, which would find it out too, only knows its settings.
fn check_port(port: u16, option: &str) -> Result<(), Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match Server::bind(ListenerSettings { address, index: 0 }) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let text = format!("{address} is in use by another program; choose another port with {option} N (0: any)");
            Err(Failure::new(exit::BUSY, text))
        }
        // Any other trouble is the relay's to tell.
        _ => Ok(()),
    }
}

/// The relay's settings: what an operator would write, but for the longer wait. A quarter of an hour is an eighth of a
/// second here, in which a busy machine may not get round to anything.
fn text(options: &Options, new: SocketAddr, legacy: SocketAddr) -> String {
    format!(
        r#"data_dir = "data"
http.bind = "127.0.0.1:{http_port}"

[smtp]
hostname = "relay.example"
stop_grace = "2s"

[[listeners]]
bind = "127.0.0.1:{port}"
allow_from = ["127.0.0.0/8"]

[new]
host = "{new}"
tls.level = "off"
messages_per_connection = 10000

[legacy]
host = "{legacy}"
tls.level = "off"
messages_per_connection = 10000

[warmup]
curve = "standard"
target = {target}
providers = "off"
overflow.max_wait = "1h"
"#,
        http_port = options.http_port,
        port = options.port,
        target = options.target,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_goes_with_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let (one, two) = (Scratch::make().unwrap(), Scratch::make().unwrap());
        let path = one.path().to_owned();
        assert_ne!(path, two.path());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("file"), "x").unwrap();
        drop(one);
        assert!(!path.exists() && two.path().exists());
    }

    #[test]
    fn a_port_in_use_is_named_with_the_option_that_helps() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let failure = check_port(taken.local_addr().unwrap().port(), "--port").unwrap_err();
        assert!(failure.code == exit::BUSY && failure.text.contains("--port N"), "{failure:?}");
        assert_eq!(check_port(0, "--port"), Ok(()));
    }
}
