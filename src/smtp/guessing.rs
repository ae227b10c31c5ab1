//! Who guesses passwords, and for how long it is kept from trying.
//!
//! After so many failures within a while, an address may not authenticate for a while. Only that address: one IPv4
//! address, or one IPv6 /64, which is what one customer has and can change at will. A success clears nothing, or one good
//! account would buy guesses at all others.
//!
//! Promises a bound: at most [`NETWORKS_MAX`] addresses, each with at most `failures` times of 8 octets, so 18 MiB with the
//! default of 20; when it is full, the address that is soonest forgotten anyway goes first. Has no clock; callers pass `now`.

use core::net::IpAddr;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::message::Timestamp;

/// How many failures are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessRules {
    /// Failures that make a block; at least 1.
    pub failures: usize,
    /// Only those younger than this count.
    pub within: Duration,
    /// How long the block lasts, counted from the failure that made it.
    pub block: Duration,
}

impl Default for GuessRules {
    fn default() -> Self {
        let ten_minutes = Duration::from_secs(600);
        GuessRules { failures: 20, within: ten_minutes, block: ten_minutes }
    }
}

/// The failures of late.
#[derive(Debug)]
pub struct Guesses {
    rules: GuessRules,
    most: usize,
    known: HashMap<Network, Failures>,
    /// The same addresses by the time from which nothing of them counts any more.
    by_end: BTreeSet<(Timestamp, Network)>,
}

/// What counts as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Network {
    V4(u32),
    /// The upper 64 bits.
    V6(u64),
}

#[derive(Debug, Default)]
struct Failures {
    /// Oldest first; no more than the rules ask for.
    at: VecDeque<Timestamp>,
    /// Exclusive; in the past if there is no block.
    blocked_until: Timestamp,
    /// As in [`Guesses::by_end`].
    end: Timestamp,
}

impl Guesses {
    pub fn new(rules: GuessRules) -> Self {
        Self::of_at_most(rules, NETWORKS_MAX)
    }

    fn of_at_most(rules: GuessRules, most: usize) -> Self {
        Guesses { rules, most, known: HashMap::new(), by_end: BTreeSet::new() }
    }

    /// From here on; what is known stays, and so do the blocks.
    pub fn change(&mut self, rules: GuessRules) {
        self.rules = rules;
    }

    /// May `client` not try now?
    pub fn is_blocked(&self, client: IpAddr, now: Timestamp) -> bool {
        self.known.get(&Network::of(client)).is_some_and(|failures| now < failures.blocked_until)
    }

    /// Counts a failure. True when it is the one that blocks the address. While it is blocked nothing is counted.
    pub fn failed(&mut self, client: IpAddr, now: Timestamp) -> bool {
        let network = Network::of(client);
        self.forget(now);
        if self.known.len() >= self.most && !self.known.contains_key(&network) {
            self.forget_first();
        }
        let rules = self.rules;
        let failures = self.known.entry(network).or_default();
        if now < failures.blocked_until {
            return false;
        }
        self.by_end.remove(&(failures.end, network));
        failures.at.retain(|at| now < at.after(rules.within));
        failures.at.push_back(now);
        let blocks = failures.at.len() >= rules.failures;
        if blocks {
            failures.at = VecDeque::new();
            failures.blocked_until = now.after(rules.block);
        }
        failures.end = if blocks { failures.blocked_until } else { now.after(rules.within) };
        self.by_end.insert((failures.end, network));
        blocks
    }

    /// Addresses of which something counts, or counted until a short while ago.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn forget(&mut self, now: Timestamp) {
        while self.by_end.first().is_some_and(|(end, _)| *end <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, network)) = self.by_end.pop_first() {
            self.known.remove(&network);
        }
    }
}

impl Network {
    fn of(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(v4) => Network::V4(v4.to_bits()),
            IpAddr::V6(v6) => Network::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

/// Addresses remembered at once.
pub const NETWORKS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: GuessRules =
        GuessRules { failures: 3, within: Duration::from_secs(10), block: Duration::from_secs(5) };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_last_of_too_many_failures_blocks_for_the_time_and_no_longer() {
        let (mut guesses, client) = (Guesses::new(RULES), ip("192.0.2.1"));
        assert!(!guesses.failed(client, at(0)) && !guesses.failed(client, at(1)));
        assert!(!guesses.is_blocked(client, at(1)));
        assert!(guesses.failed(client, at(2)));
        assert!(guesses.is_blocked(client, at(2)) && guesses.is_blocked(client, at(6)));
        assert!(!guesses.is_blocked(client, at(7)));
        assert!(!guesses.failed(client, at(7)), "it begins anew after the block");
    }

    #[test]
    fn failures_that_are_too_old_do_not_count() {
        let (mut guesses, client) = (Guesses::new(RULES), ip("192.0.2.1"));
        guesses.failed(client, at(0));
        guesses.failed(client, at(9));
        assert!(!guesses.failed(client, at(10)), "the first is ten seconds old");
        assert!(guesses.failed(client, at(11)));
    }

    #[test]
    fn other_addresses_are_not_affected_but_a_whole_ipv6_64_is_one() {
        let mut guesses = Guesses::new(GuessRules { failures: 1, ..RULES });
        assert!(guesses.failed(ip("192.0.2.1"), at(0)) && guesses.failed(ip("2001:db8::1"), at(0)));
        for (client, blocked) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8::ffff:1:2:3", true),
            ("2001:db8:0:1::1", false),
        ] {
            assert_eq!(guesses.is_blocked(ip(client), at(1)), blocked, "{client}");
        }
    }

    #[test]
    fn a_full_table_forgets_the_address_that_is_soonest_forgotten_anyway() {
        let mut guesses = Guesses::of_at_most(GuessRules { failures: 2, ..RULES }, 2);
        guesses.failed(ip("192.0.2.1"), at(0));
        guesses.failed(ip("192.0.2.2"), at(1));
        guesses.failed(ip("192.0.2.3"), at(2));
        assert_eq!(guesses.len(), 2);
        assert!(!guesses.failed(ip("192.0.2.1"), at(3)), "its first failure was forgotten");
        assert!(guesses.failed(ip("192.0.2.3"), at(3)), "that of the younger one was not");
    }

    #[test]
    fn what_no_longer_counts_takes_no_room() {
        let mut guesses = Guesses::new(RULES);
        for n in 0..100u32 {
            guesses.failed(IpAddr::V4(n.into()), at(0));
        }
        guesses.failed(ip("192.0.2.1"), at(10));
        assert_eq!((guesses.len(), guesses.by_end.len()), (1, 1));
    }

    /// Every failure ever, looked through each time.
    #[derive(Default)]
    struct Naive(Vec<(IpAddr, Timestamp, bool)>);

    impl Naive {
        fn is_blocked(&self, client: IpAddr, now: Timestamp) -> bool {
            self.0.iter().any(|(who, at, blocked)| *who == client && *blocked && now < at.after(RULES.block))
        }

        fn failed(&mut self, client: IpAddr, now: Timestamp) -> bool {
            if self.is_blocked(client, now) {
                return false;
            }
            let last_block = self.0.iter().rposition(|(who, _, blocked)| *who == client && *blocked);
            let since = &self.0[last_block.map_or(0, |place| place + 1)..];
            let young = since.iter().filter(|(who, at, _)| *who == client && now < at.after(RULES.within)).count();
            let blocks = young + 1 >= RULES.failures;
            self.0.push((client, now, blocks));
            blocks
        }
    }

    proptest! {
        #[test]
        fn it_says_what_looking_through_all_failures_says(
            steps in prop::collection::vec((0u8..3, 0i64..4, any::<bool>()), 1..200)
        ) {
            let (mut guesses, mut naive, mut now) = (Guesses::new(RULES), Naive::default(), 0);
            for (who, pause, fails) in steps {
                now += pause;
                let client = IpAddr::from([192, 0, 2, who]);
                prop_assert_eq!(guesses.is_blocked(client, at(now)), naive.is_blocked(client, at(now)));
                if fails {
                    prop_assert_eq!(guesses.failed(client, at(now)), naive.failed(client, at(now)));
                }
                prop_assert_eq!(guesses.known.len(), guesses.by_end.len());
                prop_assert!(guesses.known.values().all(|failures| failures.at.len() < RULES.failures));
            }
        }
    }
}
