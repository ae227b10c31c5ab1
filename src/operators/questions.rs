//! Asks name servers about the domains on the list: a few at a time, each domain once at a time.
//!
//! Also keeps the file of answers: at most once a minute while there are new ones, and at the end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Operators;
use crate::dns::{Exchange, Exchanges, Unresolved};
use crate::metrics::{Metrics, MxResult};

/// Questions on their way at once.
const ASKED_AT_ONCE: usize = 8;
/// Shortest and longest time an answer is taken for fresh, whatever its TTL.
pub(super) const FRESH_MIN: Duration = Duration::from_secs(3600);
pub(super) const FRESH_MAX: Duration = Duration::from_secs(7 * 86_400);
/// How long "no such domain" and "no MX" are: they may be a slip that is soon mended.
const NONE_FRESH: Duration = Duration::from_secs(3600);
/// When name servers that failed are asked again about the same domain.
pub(super) const FAILED_AGAIN: Duration = Duration::from_secs(300);
/// Answers are saved so often, if there are any.
const SAVED_EVERY: Duration = Duration::from_secs(60);
/// One line of the log about failures in this time, with the number left out.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The task that asks.
pub struct Questions {
    asking: Arc<Asking>,
    list: mpsc::Receiver<Box<str>>,
    path: PathBuf,
}

struct Asking {
    operators: Arc<Operators>,
    metrics: Arc<Metrics>,
    /// Something is to be saved.
    changed: AtomicBool,
    /// When a failure was last logged, and how many were not since.
    logged: Mutex<(Option<Instant>, u64)>,
}

/// A domain whose question is on its way; whatever becomes of it, it may be put on the list again then.
struct OnItsWay<'a>(&'a Asking, Box<str>);

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.operators.waiting().remove(&self.1);
    }
}

impl Questions {
    pub(super) fn new(
        operators: Arc<Operators>,
        list: mpsc::Receiver<Box<str>>,
        path: PathBuf,
        metrics: Arc<Metrics>,
    ) -> Self {
        let asking = Asking { operators, metrics, changed: AtomicBool::new(false), logged: Mutex::default() };
        Questions { asking: Arc::new(asking), list, path }
    }

    /// Until `stop`; then what is on its way is given up and the answers are saved.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut asked = JoinSet::new();
        let mut save = interval(SAVED_EVERY);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(domain) = self.list.recv(), if asked.len() < ASKED_AT_ONCE => {
                    let asking = self.asking.clone();
                    asked.spawn(async move { asking.ask(domain).await });
                }
                Some(_) = asked.join_next(), if !asked.is_empty() => {}
                _ = save.tick() => self.save().await,
            }
        }
        asked.shutdown().await;
        self.save().await;
    }

    async fn save(&self) {
        if !self.asking.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let (operators, path) = (self.asking.operators.clone(), self.path.clone());
        let written = tokio::task::spawn_blocking(move || operators.lines().write(&path)).await;
        if let Ok(Err(error)) = written {
            let path = self.path.display().to_string();
            tracing::warn!(event = "mx.file", path, reason = %error, "cannot be saved: a restart looks the domains up again");
        }
    }
}

impl Asking {
    async fn ask(&self, domain: Box<str>) {
        let domain = OnItsWay(self, domain);
        let name: &str = &domain.1;
        let terms = self.operators.terms.load_full();
        let Some(servers) = &terms.servers else { return };
        let answer = match timeout(terms.timeout, servers.mail_servers(name)).await {
            Ok(answer) => answer,
            Err(_) => Err(Unresolved(format!("no answer within {:?}", terms.timeout))),
        };
        let result = match answer {
            Ok(Exchanges::Found { servers, ttl }) => {
                self.operators.answered(name, most_preferred(servers), ttl.clamp(FRESH_MIN, FRESH_MAX));
                MxResult::Found
            }
            Ok(Exchanges::Itself) => {
                self.operators.answered(name, std::iter::once(name.to_owned()), NONE_FRESH);
                MxResult::None
            }
            Ok(Exchanges::NoDomain) => {
                self.operators.answered(name, std::iter::empty(), NONE_FRESH);
                MxResult::None
            }
            Err(why) => {
                self.operators.failed(name);
                self.log_failure(name, &why);
                MxResult::Failed
            }
        };
        self.metrics.mx_lookups.of(result).inc();
        self.metrics.mx_cache_domains.set(self.operators.known_domains() as i64);
        self.changed.fetch_or(result != MxResult::Failed, Ordering::Relaxed);
    }

    fn log_failure(&self, domain: &str, why: &Unresolved) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if logged.0.is_some_and(|at| now.saturating_duration_since(at) < LOGGED_EVERY) {
            logged.1 += 1;
            return;
        }
        let (_, unlogged) = std::mem::replace(&mut *logged, (Some(now), 0));
        tracing::warn!(
            event = "mx.failed", domain, reason = %why, unlogged,
            "mail goes on in the lane known so far, or in that of the other providers"
        );
    }
}

/// The hosts of the lowest preference. `.` is nobody's (RFC 7505).
fn most_preferred(servers: Vec<Exchange>) -> impl Iterator<Item = String> {
    let best = servers.iter().map(|server| server.preference).min();
    servers.into_iter().filter(move |server| Some(server.preference) == best && server.host != ".").map(|s| s.host)
}
