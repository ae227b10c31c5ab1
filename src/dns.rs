//! Names of next hops to addresses, with a memory that outlives the name servers; and domains to their mail servers.
//!
//! The last good answer is kept for its TTL, from one minute to one hour, and served beyond that as long as no name
//! server gives a better one: a relay does not stop because DNS does. Names are asked for as they are, with the dot at
//! the end, so that no search list can turn one into another; `/etc/hosts` comes first. A name without a dot is
//! a local one (`localhost`, a container) and is left to the system. An address is never looked up.
//!
//! Never decides about mail: a name that does not resolve is a next hop that cannot be reached. Mail servers ([`MailServers`])
//! are asked for without a memory; `operators` has one, which also outlives the process.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, Record};
use tokio::time::{Instant, timeout};

/// Shortest and longest time an answer is taken for fresh, whatever its TTL.
const FRESH_MIN: Duration = Duration::from_secs(60);
const FRESH_MAX: Duration = Duration::from_secs(3600);
/// How long an old answer serves before the name servers are asked again.
const STALE_PAUSE: Duration = Duration::from_secs(30);
/// Names remembered. A relay has a handful of next hops.
const NAMES_MAX: usize = 256;
/// Addresses kept of one answer.
const ADDRESSES_MAX: usize = 32;
/// RFC 1035 §3.1, without the dot at the end.
const NAME_MAX_OCTETS: usize = 253;

/// A future that is handed out by a trait.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Turns names into addresses.
pub trait Resolver: Send + Sync + fmt::Debug {
    /// The addresses of a host, at least one, those to be tried first in front. A literal address is its own answer.
    fn addresses<'a>(&'a self, name: &'a str) -> Pending<'a, Result<Vec<IpAddr>, Unresolved>>;
}

/// Why a name has no address. Completes the sentence "cannot resolve the name: ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unresolved(pub String);

/// One look-up, without memory.
pub trait Source: Send + Sync {
    /// Asks for `name`, in lower case and without a dot at the end.
    fn look_up<'a>(&'a self, name: &'a str) -> Pending<'a, Result<Found, Unresolved>>;
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub addresses: Vec<IpAddr>,
    pub ttl: Duration,
}

/// One question for the mail servers of a domain, without memory.
pub trait MailServers: Send + Sync {
    /// Asks for the MX of `domain`: ASCII in lower case, without a dot at the end.
    fn mail_servers<'a>(&'a self, domain: &'a str) -> Pending<'a, Result<Exchanges, Unresolved>>;
}

/// What name servers say about the mail servers of a domain (RFC 5321 §5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchanges {
    /// At least one and at most [`SERVERS_MAX`], the most preferred first. A single one called `.` says that the domain
    /// takes no mail (RFC 7505).
    Found { servers: Vec<Exchange>, ttl: Duration },
    /// The domain is there without an MX, so it is its own mail server.
    Itself,
    /// There is no such domain.
    NoDomain,
}

/// One MX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The lower is tried first.
    pub preference: u16,
    /// With the dot at the end; what is no host name is escaped.
    pub host: String,
}

/// Longest time that name servers are believed about mail servers: RFC 2181 §8 asks for a bound, a week is usual.
const SERVERS_TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Mail servers kept of one answer; a domain has a handful.
pub const SERVERS_MAX: usize = 64;

/// Asks `servers`, or those of the system when there are none. All tries of one question together take about `timeout`.
pub fn mail_servers(servers: &[SocketAddr], timeout: Duration) -> Arc<dyn MailServers> {
    Arc::new(Network::remembering(0, SERVERS_TTL_MAX, servers, timeout))
}

/// The answers so far, in front of a [`Source`].
pub struct Remembering<S> {
    source: S,
    /// For one look-up, all its tries together.
    timeout: Duration,
    /// Each name has a lock of its own, so that one that hangs holds up only itself.
    names: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Known>>>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Empty: there never was an answer.
    addresses: Vec<IpAddr>,
    ask_after: Option<Instant>,
}

/// The resolver of the relay: `servers`, or those of the system when there are none.
pub fn resolver(servers: &[SocketAddr], timeout: Duration) -> Arc<dyn Resolver> {
    Arc::new(Remembering::new(Network::new(servers, timeout), timeout))
}

impl<S: Source> Remembering<S> {
    pub fn new(source: S, timeout: Duration) -> Self {
        Remembering { source, timeout, names: Mutex::default() }
    }

    fn known(&self, name: &str) -> Arc<tokio::sync::Mutex<Known>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if !names.contains_key(name) && names.len() >= NAMES_MAX {
            names.clear();
        }
        names.entry(name.to_owned()).or_default().clone()
    }

    async fn find(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        if let Ok(address) = name.trim_matches(['[', ']']).parse() {
            return Ok(vec![address]);
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if name.is_empty() || name.len() > NAME_MAX_OCTETS {
            return Err(Unresolved("not a host name".into()));
        }
        let known = self.known(&name);
        let mut known = known.lock().await;
        if known.ask_after.is_some_and(|at| Instant::now() < at) {
            return Ok(known.addresses.clone());
        }
        let found = match timeout(self.timeout, self.source.look_up(&name)).await {
            Ok(Ok(found)) if found.addresses.is_empty() => Err(Unresolved("it has no address".into())),
            Ok(result) => result,
            Err(_) => Err(Unresolved(format!("no answer within {:?}", self.timeout))),
        };
        match found {
            Ok(mut found) => {
                found.addresses.truncate(ADDRESSES_MAX);
                known.addresses = found.addresses;
                known.ask_after = Some(Instant::now() + found.ttl.clamp(FRESH_MIN, FRESH_MAX));
            }
            Err(why) if known.addresses.is_empty() => return Err(why),
            Err(why) => {
                let addresses = known.addresses.len();
                tracing::warn!(event = "dns.stale", name, addresses, reason = %why, "the last good answer serves on");
                known.ask_after = Some(Instant::now() + STALE_PAUSE);
            }
        }
        Ok(known.addresses.clone())
    }
}

impl<S: Source> Resolver for Remembering<S> {
    fn addresses<'a>(&'a self, name: &'a str) -> Pending<'a, Result<Vec<IpAddr>, Unresolved>> {
        Box::pin(self.find(name))
    }
}

impl<S> fmt::Debug for Remembering<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remembering")
    }
}

/// `/etc/hosts`, then name servers; for names without a dot whatever the system uses.
pub struct Network {
    /// `None`: the system names no server, so it has to find its own way.
    hickory: Option<TokioResolver>,
}

impl Network {
    pub fn new(servers: &[SocketAddr], timeout: Duration) -> Network {
        Network::remembering(NAMES_MAX, FRESH_MAX, servers, timeout)
    }

    /// The library keeps so many answers itself, and says of none that it is good for longer than `ttl_max`.
    fn remembering(answers: usize, ttl_max: Duration, servers: &[SocketAddr], timeout: Duration) -> Network {
        let builder = match servers {
            [] => TokioResolver::builder_tokio(),
            servers => Ok(TokioResolver::builder_with_config(configured(servers), TokioRuntimeProvider::default())),
        };
        let hickory = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            // Two tries with each server have to fit into the time there is.
            (options.timeout, options.attempts) = (timeout / 2, 1);
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            // Ours is the memory that counts; a name that was missing is asked for again when it is wanted again.
            options.positive_max_ttl = Some(ttl_max);
            (options.cache_size, options.negative_max_ttl) = (answers as u64, Some(Duration::from_secs(5)));
            builder.build()
        });
        if let Err(error) = &hickory {
            tracing::warn!(event = "dns.system", reason = %error, "no name servers known: names are left to the system");
        }
        Network { hickory: hickory.ok() }
    }
}

fn configured(servers: &[SocketAddr]) -> ResolverConfig {
    let server = |address: &SocketAddr| {
        let at = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        NameServerConfig::new(address.ip(), true, vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())])
    };
    ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect())
}

impl Source for Network {
    fn look_up<'a>(&'a self, name: &'a str) -> Pending<'a, Result<Found, Unresolved>> {
        Box::pin(async move {
            match &self.hickory {
                Some(hickory) if name.contains('.') => {
                    let found = hickory.lookup_ip(format!("{name}.")).await.map_err(|e| Unresolved(e.to_string()))?;
                    let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
                    Ok(Found { addresses: found.iter().collect(), ttl })
                }
                _ => {
                    let found = tokio::net::lookup_host((name, 0)).await.map_err(|e| Unresolved(e.to_string()))?;
                    let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
                    addresses.dedup();
                    Ok(Found { addresses, ttl: FRESH_MIN })
                }
            }
        })
    }
}

impl MailServers for Network {
    fn mail_servers<'a>(&'a self, domain: &'a str) -> Pending<'a, Result<Exchanges, Unresolved>> {
        Box::pin(async move {
            let Some(hickory) = &self.hickory else { return Err(Unresolved("no name servers known".into())) };
            let found = match hickory.mx_lookup(format!("{domain}.")).await {
                Ok(found) => found,
                Err(error) if error.is_nx_domain() => return Ok(Exchanges::NoDomain),
                Err(error) if error.is_no_records_found() => return Ok(Exchanges::Itself),
                Err(error) => return Err(Unresolved(error.to_string())),
            };
            let mut servers: Vec<Exchange> = found.answers().iter().filter_map(exchange).collect();
            servers.sort_by(|a, b| (a.preference, &a.host).cmp(&(b.preference, &b.host)));
            servers.truncate(SERVERS_MAX);
            if servers.is_empty() {
                return Ok(Exchanges::Itself);
            }
            let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
            Ok(Exchanges::Found { servers, ttl })
        })
    }
}

/// Other records stand in an answer too: the CNAME that led to it.
fn exchange(record: &Record) -> Option<Exchange> {
    match &record.data {
        RData::MX(mx) => Some(Exchange { preference: mx.preference, host: mx.exchange.to_ascii() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Answers from a list, one for each question; the last one repeats.
    struct Scripted {
        answers: Vec<Result<Found, Unresolved>>,
        asked: Arc<AtomicUsize>,
    }

    impl Source for Scripted {
        fn look_up<'a>(&'a self, _: &'a str) -> Pending<'a, Result<Found, Unresolved>> {
            let n = self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = self.answers[n.min(self.answers.len() - 1)].clone();
            Box::pin(async move {
                if answer.as_ref().is_err_and(|e| e.0 == "hangs") {
                    tokio::time::sleep(Duration::from_secs(3600)).await;
                }
                answer
            })
        }
    }

    fn found(last: u8, ttl_seconds: u64) -> Result<Found, Unresolved> {
        Ok(Found { addresses: vec![IpAddr::from([192, 0, 2, last])], ttl: Duration::from_secs(ttl_seconds) })
    }

    fn failed(why: &str) -> Result<Found, Unresolved> {
        Err(Unresolved(why.into()))
    }

    fn scripted(answers: Vec<Result<Found, Unresolved>>) -> (Remembering<Scripted>, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let source = Scripted { answers, asked: asked.clone() };
        (Remembering::new(source, Duration::from_secs(5)), asked)
    }

    async fn last_octet(resolver: &impl Resolver, name: &str) -> Option<u8> {
        match resolver.addresses(name).await.ok()?[0] {
            IpAddr::V4(ip) => Some(ip.octets()[3]),
            IpAddr::V6(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_fresh_for_its_ttl_but_at_least_a_minute_and_at_most_an_hour() {
        for (ttl, fresh) in [(0, 60), (600, 600), (86_400, 3600)] {
            let (resolver, asked) = scripted(vec![found(1, ttl), found(2, ttl)]);
            assert_eq!(last_octet(&resolver, "mx.example").await, Some(1));
            tokio::time::advance(Duration::from_secs(fresh - 1)).await;
            assert_eq!(last_octet(&resolver, "MX.example.").await, Some(1), "one name, however it is written");
            assert_eq!(asked.load(Ordering::Relaxed), 1);
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(last_octet(&resolver, "mx.example").await, Some(2), "TTL {ttl}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_serves_on_while_name_servers_fail_lie_or_hang() {
        let empty = Ok(Found { addresses: vec![], ttl: FRESH_MAX });
        let answers = vec![found(1, 60), failed("SERVFAIL"), failed("hangs"), empty, failed("NXDOMAIN"), found(2, 60)];
        let (resolver, asked) = scripted(answers);
        assert_eq!(last_octet(&resolver, "mx.example").await, Some(1));
        tokio::time::advance(FRESH_MIN).await;
        for failures in 1..=4 {
            assert_eq!(last_octet(&resolver, "mx.example").await, Some(1));
            assert_eq!(last_octet(&resolver, "mx.example").await, Some(1));
            assert_eq!(asked.load(Ordering::Relaxed), 1 + failures, "not asked again at once");
            tokio::time::advance(STALE_PAUSE).await;
        }
        assert_eq!(last_octet(&resolver, "mx.example").await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_never_had_an_answer_is_unresolved_and_asked_for_again() {
        let (resolver, asked) = scripted(vec![failed("NXDOMAIN"), failed("hangs"), found(3, 60)]);
        assert_eq!(resolver.addresses("mx.example").await, Err(Unresolved("NXDOMAIN".into())));
        assert_eq!(resolver.addresses("mx.example").await, Err(Unresolved("no answer within 5s".into())));
        assert_eq!(last_octet(&resolver, "mx.example").await, Some(3));
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn an_address_is_never_looked_up() {
        let (resolver, asked) = scripted(vec![found(1, 60)]);
        for literal in ["198.51.100.7", "2001:db8::1", "[2001:db8::1]"] {
            let expected: IpAddr = literal.trim_matches(['[', ']']).parse().unwrap();
            assert_eq!(resolver.addresses(literal).await, Ok(vec![expected]));
        }
        assert!(resolver.addresses("").await.is_err() && resolver.addresses(&"x".repeat(254)).await.is_err());
        assert_eq!(asked.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let many = Found { addresses: vec![IpAddr::from([192, 0, 2, 1]); 10_000], ttl: FRESH_MAX };
        let (resolver, _) = scripted(vec![Ok(many)]);
        for n in 0..NAMES_MAX * 2 {
            assert_eq!(resolver.addresses(&format!("mx{n}.example")).await.unwrap().len(), ADDRESSES_MAX);
        }
        assert!(resolver.names.lock().unwrap().len() <= NAMES_MAX);
    }

    #[tokio::test]
    async fn localhost_is_found_without_any_name_server() {
        let resolver = resolver(&["127.0.0.1:9".parse().unwrap()], Duration::from_secs(5));
        let addresses = resolver.addresses("localhost").await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }
}
