//! `queue.dsn.per_sender_per_hour`: how many reports one sender gets in any hour, so that a forged sender is not buried
//! and two machines that answer each other do not go on for ever.
//!
//! Kept in memory: a start forgets it. Exact to the minute. Plain: the time comes in.

use std::collections::{HashMap, VecDeque};

use crate::message::Timestamp;

/// Senders remembered. The one that was told longest ago makes room.
const SENDERS_MAX: usize = 10_000;
const MINUTE_SECONDS: i64 = 60;
const HOUR_MINUTES: i64 = 60;

/// See the module's header.
#[derive(Debug)]
pub struct ReportBudget {
    per_hour: u64,
    /// Minute, and reports in it; rising, at most 61 of them.
    senders: HashMap<Vec<u8>, VecDeque<(i64, u64)>>,
}

impl ReportBudget {
    pub fn new(per_hour: u64) -> Self {
        ReportBudget { per_hour, senders: HashMap::new() }
    }

    /// For simulations: everybody is told everything.
    pub fn unlimited() -> Self {
        ReportBudget::new(u64::MAX)
    }

    /// Counts one report to `sender` in. `false`: it has had enough.
    pub fn take(&mut self, sender: &[u8], now: Timestamp) -> bool {
        let minute = now.seconds().div_euclid(MINUTE_SECONDS);
        let sender = sender.to_ascii_lowercase();
        if !self.senders.contains_key(&sender) {
            self.make_room(minute);
        }
        let told = self.senders.entry(sender).or_default();
        while told.front().is_some_and(|(then, _)| minute - then > HOUR_MINUTES) {
            told.pop_front();
        }
        if told.iter().map(|(_, count)| count).sum::<u64>() >= self.per_hour {
            return false;
        }
        match told.back_mut() {
            Some((then, count)) if *then >= minute => *count += 1,
            _ => told.push_back((minute, 1)),
        }
        true
    }

    fn make_room(&mut self, minute: i64) {
        let last = |told: &VecDeque<(i64, u64)>| told.back().map_or(i64::MIN, |(then, _)| *then);
        if self.senders.len() >= SENDERS_MAX {
            self.senders.retain(|_, told| minute - last(told) <= HOUR_MINUTES);
        }
        if self.senders.len() >= SENDERS_MAX
            && let Some(oldest) = self.senders.iter().min_by_key(|(_, told)| last(told)).map(|(key, _)| key.clone())
        {
            self.senders.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_seconds(1_700_000_000 / 60 * 60 + minutes * 60)
    }

    #[test]
    fn a_sender_gets_so_many_reports_in_any_hour_and_others_their_own() {
        let mut budget = ReportBudget::new(3);
        let told = |budget: &mut ReportBudget, minute| budget.take(b"a@example.com", at(minute));
        assert!(told(&mut budget, 0) && told(&mut budget, 30) && told(&mut budget, 59));
        assert!(!told(&mut budget, 60) && !budget.take(b"A@EXAMPLE.com", at(60)), "however it is written");
        assert!(budget.take(b"b@example.com", at(60)));
        assert!(told(&mut budget, 61), "the first one is over an hour old");
        assert!(!told(&mut budget, 61) && told(&mut budget, 91));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut budget = ReportBudget::new(1);
        for n in 0..SENDERS_MAX * 2 {
            assert!(budget.take(format!("{n}@example.com").as_bytes(), at(0)));
        }
        assert!(budget.senders.len() <= SENDERS_MAX);
        assert!(budget.take(b"x@example.com", at(100)));
        assert_eq!(budget.senders.len(), 1, "those of an hour ago are forgotten together");
    }
}
