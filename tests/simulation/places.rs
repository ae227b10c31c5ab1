//! Whom mail goes to: domains, who runs their mail servers, and what is known of that by now.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use mailramp::message::{LaneId, Recipient};
use mailramp::policy::{Lanes, Provider};
use mailramp::relay::gate::Directory;

/// The number of a domain.
pub type Domain = u8;

/// What is known of domains. Stands for the real directory, which asks the DNS.
#[derive(Debug, Default)]
pub struct Known(RwLock<BTreeMap<Domain, LaneId>>);

impl Known {
    fn lane(&self, domain: Domain) -> Option<LaneId> {
        self.0.read().expect("nobody panics with it").get(&domain).copied()
    }

    pub fn learn(&self, domain: Domain, lane: LaneId) {
        self.0.write().expect("nobody panics with it").insert(domain, lane);
    }
}

impl Directory for Known {
    fn lane_of(&self, recipient: &Recipient) -> Option<LaneId> {
        self.lane(domain_of(recipient)?)
    }
}

/// All domains there are.
#[derive(Clone, Debug)]
pub struct Places {
    pub lanes: Lanes,
    pub known: Arc<Known>,
    /// How much of the mail goes to each, in parts of any size.
    mix: Vec<(Domain, f64)>,
}

impl Places {
    /// Everything goes to one place, and there is no lane but the total.
    pub fn one() -> Places {
        Places { lanes: Lanes::Off, known: Arc::default(), mix: vec![(0, 1.0)] }
    }

    /// Domain 0 is run by the first of these providers, and so on; all are known.
    pub fn new(lanes: Lanes, mix: &[(Provider, f64)]) -> Places {
        let known = Known::default();
        for (domain, (provider, _)) in mix.iter().enumerate() {
            known.learn(domain as Domain, lanes.lane(*provider));
        }
        let mix = mix.iter().enumerate().map(|(domain, (_, part))| (domain as Domain, *part)).collect();
        Places { lanes, known: Arc::new(known), mix }
    }

    /// The same with one more domain, of which nothing is known yet.
    pub fn and_unknown(mut self, part: f64) -> Places {
        self.mix.push((self.mix.len() as Domain, part));
        self
    }

    pub fn domains(&self) -> usize {
        self.mix.len()
    }

    /// One of the domains, as often as its part of the mail says.
    pub fn pick(&self, random: &mut fastrand::Rng) -> Domain {
        let all: f64 = self.mix.iter().map(|(_, part)| part).sum();
        let mut dice = random.f64() * all;
        for (domain, part) in &self.mix {
            dice -= part;
            if dice < 0.0 {
                return *domain;
            }
        }
        self.mix.last().expect("there is a place").0
    }

    /// Where the front door puts mail to it: with all others as long as nothing is known.
    pub fn lane(&self, domain: Domain) -> LaneId {
        match &self.lanes {
            Lanes::Off => LaneId::TOTAL,
            lanes => self.known.lane(domain).unwrap_or(lanes.lane(Provider::Other)),
        }
    }
}

/// A recipient with a name that is a number, if it has one.
pub fn recipient(name: Option<u64>, domain: Domain) -> Recipient {
    let path = match name {
        Some(name) => Bytes::from(format!("{name}@{domain}")),
        None => Bytes::from(format!("x@{domain}")),
    };
    Recipient { path, parameters: Bytes::new() }
}

pub fn name_of(recipient: &Recipient) -> Option<usize> {
    parts_of(recipient)?.0.parse().ok()
}

pub fn domain_of(recipient: &Recipient) -> Option<Domain> {
    parts_of(recipient)?.1.parse().ok()
}

fn parts_of(recipient: &Recipient) -> Option<(&str, &str)> {
    std::str::from_utf8(&recipient.path).ok()?.split_once('@')
}
