//! What is known of domains, within bounds: the least recently used go first.
//!
//! Cut into parts with a lock each, so that those who look do not wait for each other, and hardly for those who write. An
//! answer that has grown old still counts; whoever looks is told that it is time to ask.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::message::{NANOS_PER_SECOND, Timestamp};
use crate::policy::Operator;

/// Domains kept.
pub const DOMAINS_MAX: usize = 50_000;
/// Memory for them, as [`OVERHEAD_OCTETS`] counts it.
const OCTETS_MAX: usize = 16 << 20;
const PARTS: usize = 16;
/// What an entry takes beside its two texts, roughly.
const OVERHEAD_OCTETS: usize = 128;
/// A part that is full loses one in so many.
const LOST_OF: usize = 8;

/// The cache.
#[derive(Debug, Default)]
pub struct Cache {
    hasher: RandomState,
    parts: [RwLock<Part>; PARTS],
    domains: AtomicUsize,
}

#[derive(Debug, Default)]
struct Part {
    entries: HashMap<Box<str>, Entry>,
    octets: usize,
}

/// One domain.
#[derive(Debug)]
struct Entry {
    known: Known,
    /// Nanoseconds since the epoch, to the second or so.
    used: AtomicI64,
}

/// What is known of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its most preferred mail servers, in lower case, separated by spaces; empty when it has none. `None`: name servers have
    /// never answered, and the operator is a guess.
    pub hosts: Option<Box<str>>,
    pub operator: Arc<Operator>,
    /// From then on it is time to ask again.
    pub ask_after: Timestamp,
}

impl Entry {
    fn octets(&self, domain: &str) -> usize {
        OVERHEAD_OCTETS + domain.len() + self.known.hosts.as_ref().map_or(0, |hosts| hosts.len())
    }

    fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Cache {
    /// What `read` makes of it, and whether it is time to ask. `None`: nothing is known of `domain`.
    pub fn look<T>(&self, domain: &str, now: Timestamp, read: impl FnOnce(&Known) -> T) -> Option<(T, bool)> {
        let part = self.read(domain);
        let entry = part.entries.get(domain)?;
        // Written now and then only, so that readers of one domain do not take its memory from each other.
        if now.0.saturating_sub(entry.used()) > NANOS_PER_SECOND {
            entry.used.store(now.0, Ordering::Relaxed);
        }
        Some((read(&entry.known), entry.known.ask_after <= now))
    }

    /// All that is known of `domain`.
    pub fn known(&self, domain: &str) -> Option<Known> {
        self.read(domain).entries.get(domain).map(|entry| entry.known.clone())
    }

    /// Puts it in place of what was known before.
    pub fn put(&self, domain: &str, known: Known, now: Timestamp) {
        let mut part = self.part(domain).write().unwrap_or_else(PoisonError::into_inner);
        let before = part.entries.len();
        part.take_out(domain);
        let entry = Entry { known, used: AtomicI64::new(now.0) };
        let octets = entry.octets(domain);
        while part.entries.len() >= DOMAINS_MAX / PARTS || part.octets + octets > OCTETS_MAX / PARTS {
            part.forget_some();
        }
        part.octets += octets;
        part.entries.insert(domain.into(), entry);
        self.count(before, &part);
    }

    /// Domains known.
    pub fn len(&self) -> usize {
        self.domains.load(Ordering::Relaxed)
    }

    /// Calls `with` for each domain, a part at a time.
    pub fn for_each(&self, mut with: impl FnMut(&str, &Known)) {
        for part in &self.parts {
            let part = part.read().unwrap_or_else(PoisonError::into_inner);
            part.entries.iter().for_each(|(domain, entry)| with(domain, &entry.known));
        }
    }

    /// Gives each domain the operator that `of` finds.
    pub fn name_anew(&self, of: impl Fn(&str, &Known) -> Arc<Operator>) {
        for part in &self.parts {
            for (domain, entry) in &mut part.write().unwrap_or_else(PoisonError::into_inner).entries {
                entry.known.operator = of(domain, &entry.known);
            }
        }
    }

    fn count(&self, before: usize, part: &RwLockWriteGuard<'_, Part>) {
        let after = part.entries.len();
        self.domains.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    fn part(&self, domain: &str) -> &RwLock<Part> {
        &self.parts[self.hasher.hash_one(domain) as usize % PARTS]
    }

    fn read(&self, domain: &str) -> RwLockReadGuard<'_, Part> {
        // What a panic could leave half done is a count of octets.
        self.part(domain).read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    fn take_out(&mut self, domain: &str) {
        if let Some(entry) = self.entries.remove(domain) {
            self.octets -= entry.octets(domain);
        }
    }

    /// One in [`LOST_OF`], the least recently used; at least one, or all memory of an empty part is free.
    fn forget_some(&mut self) {
        let lost = (self.entries.len() / LOST_OF).max(1);
        let mut used: Vec<i64> = self.entries.values().map(Entry::used).collect();
        if used.is_empty() {
            self.octets = 0;
            return;
        }
        let (older, last, _) = used.select_nth_unstable(lost - 1);
        let last = *last;
        // Of those last used at the same moment only as many as must go.
        let mut ties = lost - older.iter().filter(|at| **at < last).count();
        let mut octets = self.octets;
        self.entries.retain(|domain, entry| {
            let tie = entry.used() == last && ties > 0;
            ties -= usize::from(tie);
            let stays = entry.used() >= last && !tie;
            octets -= if stays { 0 } else { entry.octets(domain) };
            stays
        });
        self.octets = octets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Providers;

    fn known(hosts: &str) -> Known {
        let operator = Providers::embedded().of_host(hosts).clone();
        Known { hosts: Some(hosts.into()), operator, ask_after: Timestamp::from_seconds(3600) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn an_old_answer_counts_and_says_that_it_is_old() {
        let cache = Cache::default();
        assert!(cache.look("a.example", at(0), |_| ()).is_none());
        cache.put("a.example", known("mx.google.com"), at(0));
        let look = |now| cache.look("a.example", at(now), |known| known.operator.name.clone());
        assert_eq!(look(3599), Some(("google".into(), false)));
        assert_eq!(look(3600), Some(("google".into(), true)));
        cache.put("a.example", known("mx.web.de"), at(0));
        assert_eq!((look(0), cache.len()), (Some(("gmx-webde".into(), false)), 1));
    }

    #[test]
    fn sixty_thousand_domains_leave_at_most_fifty_thousand_and_the_one_in_use() {
        let cache = Cache::default();
        cache.put("hot.example", known("mx.google.com"), at(0));
        cache.put("cold.example", known("mx.google.com"), at(0));
        for n in 0..60_000 {
            cache.put(&format!("d{n}.example"), known("mx.example.net"), at(n / 10));
            cache.look("hot.example", at(n / 10), |_| ());
            assert!(cache.len() <= DOMAINS_MAX, "{n}");
        }
        assert!(cache.len() > DOMAINS_MAX / 2, "{}", cache.len());
        let is_there = |domain: &str| cache.known(domain).is_some();
        assert!(is_there("hot.example") && is_there("d59999.example"));
        assert!(!is_there("cold.example") && !is_there("d0.example"));
        let mut counted = 0;
        cache.for_each(|_, _| counted += 1);
        assert_eq!(counted, cache.len());
    }

    #[test]
    fn at_one_moment_only_as_many_go_as_must() {
        let cache = Cache::default();
        for n in 0..DOMAINS_MAX + 1000 {
            cache.put(&format!("d{n}.example"), known("mx.example.net"), at(7));
        }
        assert!(cache.len() > DOMAINS_MAX * 3 / 4, "{}", cache.len());
    }

    #[test]
    fn long_names_are_bounded_by_their_octets() {
        let cache = Cache::default();
        let hosts = "x".repeat(600);
        for n in 0..60_000 {
            cache.put(&format!("d{n}.{}.example", "y".repeat(200)), known(&hosts), at(n));
        }
        let held = |part: &RwLock<Part>| {
            let part = part.read().unwrap();
            let counted: usize = part.entries.iter().map(|(domain, entry)| entry.octets(domain)).sum();
            assert_eq!(counted, part.octets);
            counted
        };
        let octets: usize = cache.parts.iter().map(held).sum();
        assert!(octets <= OCTETS_MAX && octets > OCTETS_MAX / 2, "{octets}");
    }

    #[test]
    fn other_names_for_the_operators_reach_all_that_is_known() {
        let cache = Cache::default();
        cache.put("a.example", known("mx.example.net"), at(0));
        cache.name_anew(|_, known| {
            assert_eq!(known.hosts.as_deref(), Some("mx.example.net"));
            Providers::embedded().of_host("x.yahoodns.net").clone()
        });
        assert_eq!(cache.known("a.example").unwrap().operator.name, "yahoo");
    }
}
