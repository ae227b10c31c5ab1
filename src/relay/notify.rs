//! What the service manager is told (`sd_notify`): ready, reloading, stopping, a line of status, and that we are alive.
//!
//! Alive means that the committer answers: each round asks it for the numbers of the status line, and without its answer
//! there is no `WATCHDOG=1`, so a relay that cannot write any more is started anew. Without `NOTIFY_SOCKET` nothing of
//! this happens. A notice that cannot be sent changes nothing here; it is logged, for the service manager will act on it.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, sleep_until, timeout};

use super::backend::RelayBackend;

/// Everything listens: `systemctl start` returns.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// New settings are being read; ends with [`ready`], whatever came of them.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(event = "relay.notify_failed", %error),
    }
}

/// No new mail; the rest ends within `grace`, for which the service manager is asked to wait.
pub fn stopping(grace: Duration) {
    let patience = u32::try_from((grace + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::Stopping, NotifyState::Status("stopping"), NotifyState::ExtendTimeoutUsec(patience)]);
}

/// Tells the status when it changes, and that we are alive, until the task is ended. Returns at once when nobody listens.
pub async fn keep_telling(backend: Arc<RelayBackend>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let every = watchdog.map_or(STATUS_EVERY, |limit| (limit / 2).min(STATUS_EVERY));
    let (mut told, mut silent) = (String::new(), false);
    let mut next = Instant::now();
    loop {
        sleep_until(next).await;
        next = Instant::now() + every;
        match timeout(every, backend.status_line()).await {
            Ok(Ok(status)) => {
                let alive = watchdog.map(|_| NotifyState::Watchdog);
                let news = (status != told).then_some(NotifyState::Status(&status));
                send(&alive.into_iter().chain(news).collect::<Vec<_>>());
                told = status;
                silent = false;
            }
            Ok(Err(_)) | Err(_) if silent => {}
            Ok(Err(_)) | Err(_) => {
                tracing::error!(event = "relay.silent", "the committer does not answer");
                silent = true;
            }
        }
    }
}

fn send(notices: &[NotifyState<'_>]) {
    if notices.is_empty() {
        return;
    }
    if let Err(error) = sd_notify::notify(notices) {
        tracing::warn!(event = "relay.notify_failed", %error);
    }
}

/// At most this often, and as long as a new number may go untold.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Over the grace time: the last replies of sessions, and the last commit.
const STOP_MARGIN: Duration = Duration::from_secs(10);
