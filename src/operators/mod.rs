//! Who runs the mail servers of a recipient's domain, answered at once.
//!
//! Nobody waits for DNS: what is not known yet is answered with the best guess (the domain is one of an operator's own, or
//! else `other`), and the domain is put on a bounded list that a task works off. What was known once counts until name servers say
//! something else, also across restarts.
//!
//! Without lanes for providers nobody is asked. Deliberately not here: limits, and whether mail waits.

mod cache;
mod domain;
mod questions;
mod saved;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

pub use cache::DOMAINS_MAX;
pub use questions::Questions;

use crate::clock::Clock;
use crate::dns::MailServers;
use crate::message::{LaneId, Timestamp};
use crate::metrics::Metrics;
use crate::policy::provider::Mx;
use crate::policy::{Lanes, Operator, Providers};
use cache::{Cache, Known};
use questions::{FAILED_AGAIN, FRESH_MAX};
use saved::{Lines, Saved};

/// Domains that wait for their question. Beyond it a domain is put on the list when it is next seen.
const WAITING_MAX: usize = 10_000;
/// Octets kept of the names of one domain's mail servers; those of a known operator come first.
const HOSTS_MAX_OCTETS: usize = 512;

/// By what the directory goes, and whom it asks.
pub struct Terms {
    pub providers: Arc<Providers>,
    pub lanes: Lanes,
    /// `None`: nobody is asked.
    pub servers: Option<Arc<dyn MailServers>>,
    /// For one question, all tries together.
    pub timeout: std::time::Duration,
}

/// The directory. Cheap to ask from any thread.
pub struct Operators {
    cache: Cache,
    terms: ArcSwap<Terms>,
    /// On the list, or being asked about.
    waiting: Mutex<HashSet<Box<str>>>,
    list: mpsc::Sender<Box<str>>,
    clock: Arc<dyn Clock>,
}

impl Operators {
    /// Reads what was saved in `folder`; blocks on the disk. The task that asks must be run ([`Questions::run`]).
    pub fn new(
        folder: &Path,
        terms: Terms,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Operators>, Questions) {
        let (list, waiting) = mpsc::channel(WAITING_MAX);
        let operators = Arc::new(Operators::with(list, terms, clock));
        let path = folder.join(saved::FILE);
        operators.take_saved(&path);
        metrics.mx_cache_domains.set(operators.cache.len() as i64);
        let questions = Questions::new(operators.clone(), waiting, path, metrics);
        (operators, questions)
    }

    /// One that has no lanes and asks nobody.
    pub fn without_lanes(clock: Arc<dyn Clock>) -> Arc<Operators> {
        let providers = Providers::embedded().clone();
        let terms = Terms { providers, lanes: Lanes::Off, servers: None, timeout: std::time::Duration::ZERO };
        Arc::new(Operators::with(mpsc::channel(1).0, terms, clock))
    }

    fn with(list: mpsc::Sender<Box<str>>, terms: Terms, clock: Arc<dyn Clock>) -> Operators {
        let (cache, waiting) = Default::default();
        Operators { cache, terms: ArcSwap::from_pointee(terms), waiting, list, clock }
    }

    /// Who runs the mail servers of `domain`, as it stands in an address.
    pub fn of(&self, domain: &[u8]) -> Arc<Operator> {
        self.look(domain, self.clock.now(), |operator, _| operator.clone())
    }

    /// The same for the path of a recipient.
    pub fn of_recipient(&self, path: &[u8]) -> Arc<Operator> {
        self.of(domain::of_path(path))
    }

    /// The lane of a recipient, by the best guess if need be; the total when there is no other.
    pub fn lane_at(&self, path: &[u8], now: Timestamp) -> LaneId {
        self.lane(path, now, |lane, _| lane)
    }

    /// The same now.
    pub fn lane_of(&self, path: &[u8]) -> LaneId {
        self.lane_at(path, self.clock.now())
    }

    /// The lane of a recipient as name servers have told; `None` while they have not.
    pub fn known_lane(&self, path: &[u8]) -> Option<LaneId> {
        self.lane(path, self.clock.now(), |lane, is_known| is_known.then_some(lane))
    }

    fn lane<T>(&self, path: &[u8], now: Timestamp, read: impl Fn(LaneId, bool) -> T) -> T {
        let terms = self.terms.load();
        match terms.lanes {
            Lanes::Off => read(LaneId::TOTAL, true),
            _ => self
                .look(domain::of_path(path), now, |operator, is_known| read(terms.lanes.lane(operator.lane), is_known)),
        }
    }

    /// Domains of which something is known.
    pub fn known_domains(&self) -> usize {
        self.cache.len()
    }

    /// Domains whose question has not been answered.
    pub fn waiting_domains(&self) -> usize {
        self.waiting().len()
    }

    /// Goes by other terms from now on. What is known stays, under the names of the new ones.
    pub fn change(&self, terms: Terms) {
        let providers = terms.providers.clone();
        self.terms.store(Arc::new(terms));
        self.cache.name_anew(|domain, known| match &known.hosts {
            Some(hosts) => named(&providers, hosts).clone(),
            None => providers.guess(domain).clone(),
        });
    }

    /// What `read` makes of the operator; the second argument is false for a guess.
    fn look<T>(&self, domain: &[u8], now: Timestamp, read: impl Fn(&Arc<Operator>, bool) -> T) -> T {
        let mut room = domain::ROOM;
        let terms = self.terms.load();
        let Some(domain) = domain::key(domain, &mut room) else { return read(terms.providers.of_host(""), true) };
        if terms.lanes == Lanes::Off {
            return read(terms.providers.guess(&domain), false);
        }
        match self.cache.look(&domain, now, |known| read(&known.operator, known.hosts.is_some())) {
            Some((found, false)) => found,
            Some((found, true)) => {
                self.ask_about(&domain);
                found
            }
            None => {
                self.ask_about(&domain);
                read(terms.providers.guess(&domain), false)
            }
        }
    }

    /// Puts it on the list, unless it is there or the list is full.
    fn ask_about(&self, domain: &str) {
        let mut waiting = self.waiting();
        if waiting.contains(domain) {
            return;
        }
        let domain: Box<str> = domain.into();
        if self.list.try_send(domain.clone()).is_ok() {
            waiting.insert(domain);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<Box<str>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Name servers have said that these are the most preferred mail servers; none: the domain takes no mail.
    fn answered(&self, domain: &str, hosts: impl Iterator<Item = String>, fresh: std::time::Duration) {
        let (providers, now) = (self.terms.load().providers.clone(), self.clock.now());
        let hosts = kept(hosts, &providers);
        let operator = named(&providers, &hosts).clone();
        self.cache.put(domain, Known { hosts: Some(hosts), operator, ask_after: now.after(fresh) }, now);
    }

    /// Name servers have said nothing: what was known stays.
    fn failed(&self, domain: &str) {
        let now = self.clock.now();
        let known = self.cache.known(domain).map(|known| (known.hosts, known.operator));
        let (hosts, operator) = known.unwrap_or_else(|| (None, self.terms.load().providers.guess(domain).clone()));
        self.cache.put(domain, Known { hosts, operator, ask_after: now.after(FAILED_AGAIN) }, now);
    }

    fn take_saved(&self, path: &Path) {
        let saved = saved::read(path).unwrap_or_else(|why| {
            let path = path.display().to_string();
            tracing::warn!(event = "mx.file", path, reason = %why, "begins anew: all domains are looked up again");
            Vec::new()
        });
        let (providers, now) = (self.terms.load().providers.clone(), self.clock.now());
        for Saved { domain, hosts, ask_after } in saved {
            let operator = named(&providers, &hosts).clone();
            // A clock that was wrong may have saved a time years ahead.
            let ask_after = ask_after.min(now.after(FRESH_MAX));
            self.cache.put(&domain, Known { hosts: Some(hosts.into()), operator, ask_after }, now);
        }
    }

    /// All answers, for the file.
    fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        self.cache.for_each(|domain, known| {
            if let Some(hosts) = &known.hosts {
                lines.add(domain, hosts, known.ask_after);
            }
        });
        lines
    }
}

/// Who runs these servers, all of them equally preferred.
fn named<'a>(providers: &'a Providers, hosts: &str) -> &'a Arc<Operator> {
    let equal = |host| Mx { preference: 0, host };
    providers.of_domain(hosts.split_ascii_whitespace().map(equal))
}

/// Plain host names in lower case, separated by spaces, those of a known operator first, as many as fit.
fn kept(hosts: impl Iterator<Item = String>, providers: &Providers) -> Box<str> {
    let plain = |host: &String| !host.is_empty() && host.bytes().all(|c| c.is_ascii_graphic());
    let mut hosts: Vec<String> = hosts.map(|host| lower(&host)).filter(plain).collect();
    let other = providers.of_host("");
    hosts.sort_by_cached_key(|host| (Arc::ptr_eq(providers.of_host(host), other), host.clone()));
    hosts.dedup();
    let mut kept = String::new();
    for host in hosts {
        if kept.len() + host.len() < HOSTS_MAX_OCTETS {
            kept.push_str(if kept.is_empty() { "" } else { " " });
            kept.push_str(&host);
        }
    }
    kept.into()
}

fn lower(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
