//! Which next hops are worth a connection now: one breaker for each address, and for each name that does not resolve.
//!
//! A next hop that failed is left alone for two seconds, then longer and longer up to a minute; then one connection,
//! the probe, tries it for all. While other connections to it stand it is not down but has enough of us. A 421 rests
//! that one next hop and no other.
//!
//! Plain: times are what has passed since some beginning, and come in.

use core::net::SocketAddr;
use std::collections::HashMap;
use std::time::Duration;

/// Between two attempts to reach a next hop that is down: at least, and at most.
pub const PROBE_MIN: Duration = Duration::from_secs(2);
const PROBE_MAX: Duration = Duration::from_secs(60);
/// Next hops remembered; beyond it those that have been tried longest ago are forgotten.
const HOPS_MAX: usize = 256;

/// Something a connection is tried to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hop {
    /// A name while it has no address.
    Name(String),
    Address(SocketAddr),
}

#[derive(Clone, Copy, Debug, Default)]
struct Breaker {
    /// In a row.
    failures: u32,
    /// Not to be tried before.
    until: Duration,
    /// The probe is under way.
    probing: bool,
    /// Connections that stand.
    open: usize,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Breakers(HashMap<Hop, Breaker>);

impl Breakers {
    /// Whether a connection may be tried at `at`. When the next hop is down this is its probe: until one of
    /// [`Breakers::opened`], [`Breakers::failed`] or [`Breakers::given_up`] there is no other.
    pub fn may_try(&mut self, hop: &Hop, at: Duration) -> bool {
        let Some(breaker) = self.0.get_mut(hop) else { return true };
        if breaker.probing || at < breaker.until {
            return false;
        }
        breaker.probing = breaker.failures > 0;
        true
    }

    /// A session came about.
    pub fn opened(&mut self, hop: &Hop) {
        let breaker = self.0.entry(hop.clone()).or_default();
        (breaker.failures, breaker.probing) = (0, false);
        breaker.open += 1;
    }

    /// A name has addresses.
    pub fn resolved(&mut self, hop: &Hop) {
        self.0.remove(hop);
    }

    /// A session that came about is over.
    pub fn closed(&mut self, hop: &Hop) {
        if let Some(breaker) = self.0.get_mut(hop) {
            breaker.open = breaker.open.saturating_sub(1);
        }
    }

    /// No session came about. Attempts that fail together count as one.
    pub fn failed(&mut self, hop: &Hop, at: Duration) {
        self.make_room(at);
        let breaker = self.0.entry(hop.clone()).or_default();
        let together = !breaker.probing && at < breaker.until;
        breaker.probing = false;
        if breaker.open > 0 {
            breaker.until = breaker.until.max(at + PROBE_MIN);
        } else if !together {
            breaker.until = at + PROBE_MIN.saturating_mul(1 << breaker.failures.min(5)).min(PROBE_MAX);
            breaker.failures += 1;
        }
    }

    /// An attempt ended without a result.
    pub fn given_up(&mut self, hop: &Hop) {
        if let Some(breaker) = self.0.get_mut(hop) {
            breaker.probing = false;
        }
    }

    /// The next hop wants less of us: no new connection for a moment.
    pub fn rest(&mut self, hop: &Hop, at: Duration) {
        self.make_room(at);
        let breaker = self.0.entry(hop.clone()).or_default();
        breaker.until = breaker.until.max(at + PROBE_MIN);
    }

    /// How long until the next hop may be tried; zero: now, or when its probe has ended.
    pub fn wait(&self, hop: &Hop, at: Duration) -> Duration {
        self.0.get(hop).map_or(Duration::ZERO, |breaker| breaker.until.saturating_sub(at))
    }

    /// Everything may be tried at once, whatever happened before.
    pub fn forget_failures(&mut self) {
        for breaker in self.0.values_mut() {
            (breaker.failures, breaker.until) = (0, Duration::ZERO);
        }
    }

    fn make_room(&mut self, at: Duration) {
        if self.0.len() < HOPS_MAX {
            return;
        }
        self.0.retain(|_, breaker| breaker.open > 0 || breaker.probing || at < breaker.until);
        if self.0.len() >= HOPS_MAX {
            self.0.retain(|_, breaker| breaker.open > 0 || breaker.probing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(port: u16) -> Hop {
        Hop::Address(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_next_hop_that_is_down_is_probed_by_one_connection_and_at_most_every_two_seconds() {
        let (mut breakers, hop) = (Breakers::default(), hop(25));
        let mut probes = Vec::new();
        for millis in (0..600_000).step_by(100) {
            let at = Duration::from_millis(millis);
            if breakers.may_try(&hop, at) {
                assert!(probes.is_empty() || !breakers.may_try(&hop, at), "one at a time");
                probes.push(at);
                breakers.failed(&hop, at);
            }
        }
        let gaps: Vec<Duration> = probes.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps[..5], [s(2), s(4), s(8), s(16), s(32)]);
        assert!(gaps[5..].iter().all(|gap| *gap == s(60)), "{gaps:?}");
    }

    #[test]
    fn each_next_hop_has_a_state_of_its_own() {
        let mut breakers = Breakers::default();
        breakers.failed(&hop(1), s(0));
        breakers.rest(&hop(2), s(0));
        assert!(
            !breakers.may_try(&hop(1), s(1)) && !breakers.may_try(&hop(2), s(1)) && breakers.may_try(&hop(3), s(1))
        );
        assert_eq!(breakers.wait(&hop(1), s(1)), s(1));
        assert!(breakers.may_try(&hop(2), s(2)), "a rest is no failure");
        assert!(breakers.may_try(&hop(2), s(2)), "so it needs no probe");
    }

    #[test]
    fn a_probe_that_gets_through_opens_the_way_for_all() {
        let (mut breakers, hop) = (Breakers::default(), hop(25));
        breakers.failed(&hop, s(0));
        breakers.failed(&hop, s(1));
        assert!(breakers.may_try(&hop, s(2)), "what failed together counts once");
        assert!(!breakers.may_try(&hop, s(100)), "the probe is under way");
        breakers.opened(&hop);
        assert!(breakers.may_try(&hop, s(100)) && breakers.may_try(&hop, s(100)));
    }

    #[test]
    fn a_probe_that_was_given_up_leaves_room_for_another() {
        let (mut breakers, hop) = (Breakers::default(), hop(25));
        breakers.failed(&hop, s(0));
        assert!(breakers.may_try(&hop, s(2)) && !breakers.may_try(&hop, s(3)));
        breakers.given_up(&hop);
        assert!(breakers.may_try(&hop, s(3)));
    }

    #[test]
    fn a_next_hop_with_connections_is_not_down_when_it_takes_no_more() {
        let (mut breakers, hop) = (Breakers::default(), hop(25));
        breakers.opened(&hop);
        for n in 0..20 {
            assert!(breakers.may_try(&hop, s(2 * n)));
            breakers.failed(&hop, s(2 * n));
            assert_eq!(breakers.wait(&hop, s(2 * n)), PROBE_MIN, "it never has to wait longer");
        }
        breakers.closed(&hop);
        breakers.failed(&hop, s(100));
        breakers.failed(&hop, s(102));
        assert_eq!(breakers.wait(&hop, s(102)), s(4));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgets_no_open_connection() {
        let mut breakers = Breakers::default();
        breakers.opened(&hop(0));
        for port in 1..5000 {
            breakers.failed(&hop(port), s(1));
        }
        assert!(breakers.0.len() <= HOPS_MAX);
        assert_eq!(breakers.0[&hop(0)].open, 1);
    }

    #[test]
    fn failures_can_be_forgotten() {
        let (mut breakers, hop) = (Breakers::default(), hop(25));
        breakers.failed(&hop, s(0));
        breakers.forget_failures();
        assert!(breakers.may_try(&hop, s(0)) && breakers.may_try(&hop, s(0)));
    }
}
