//! The brakes of all lanes as this process knows them: what was heard, and the record that the ledger has or is to get.
//!
//! A record that was changed here counts from that moment; until the ledger has it, what the ledger says of that lane is
//! old. Plain: no clock, nobody to tell.

use std::collections::BTreeMap;

use crate::message::{BrakeLevel, BrakeRecord, LaneId, StageStep, Timestamp};
use crate::policy::brake::Attempt;
use crate::policy::{Brake, BrakeRules};

/// Longest part of a reply that is kept as a reason, in characters.
const REASON_REPLY_CHARS: usize = 200;

#[derive(Debug, Default)]
struct Lane {
    heard: Brake,
    record: BrakeRecord,
    /// The ledger does not have the record yet.
    untold: bool,
    /// What was last said about it, in log and metrics.
    said: BrakeLevel,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: BTreeMap<LaneId, Lane>,
    /// The end of the day that the records are about.
    day_ends: Option<Timestamp>,
}

/// A lane's brake went on, off, or to another level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub lane: LaneId,
    pub level: BrakeLevel,
    /// When that changes by itself; `None`: it does not.
    pub until: Option<Timestamp>,
    pub harder: bool,
    pub reason: String,
}

impl Lanes {
    /// Takes in one attempt; `said` is the reply to it. `true`: the ledger is to get the lane's record.
    pub fn observe(
        &mut self,
        rules: &BrakeRules,
        lane: LaneId,
        attempt: &Attempt<'_>,
        said: &str,
        now: Timestamp,
    ) -> bool {
        self.turn(rules, now);
        let lane = self.lanes.entry(lane).or_default();
        let Some(braked) = lane.heard.observe(rules, &lane.record, attempt, now) else { return false };
        let reply: String = said.chars().take(REASON_REPLY_CHARS).collect();
        let reason = match &braked.rule {
            Some((rule, replies)) => format!("{rule}: {reply} ({replies}x)"),
            None => format!("too large a part was put off, last by: {reply}"),
        };
        let reason = if braked.harder || lane.record.reason.is_empty() { reason } else { lane.record.reason.clone() };
        lane.record = BrakeRecord { reason, ..braked.record };
        lane.untold = true;
        true
    }

    /// The level in force.
    pub fn level(&self, rules: &BrakeRules, lane: LaneId, now: Timestamp) -> BrakeLevel {
        self.lanes.get(&lane).map_or(BrakeLevel::Open, |lane| rules.level(&lane.record, now))
    }

    /// Lanes of which anything is known.
    pub fn known(&self) -> Vec<LaneId> {
        self.lanes.keys().copied().collect()
    }

    /// What the ledger has is about another day by now.
    pub fn day_is_over(&self, now: Timestamp) -> bool {
        self.day_ends.is_none_or(|ends| now >= ends)
    }

    /// The stage is frozen until a person acts.
    pub fn is_frozen(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(|lane| lane.record.step == StageStep::Freeze)
    }

    /// An operator has changed the lane's record in the ledger: what was heard before is done with.
    pub fn forget(&mut self, lane: LaneId) {
        let lane = self.lanes.entry(lane).or_default();
        lane.heard.forget();
        lane.untold = false;
    }

    /// Records that the ledger is to get. From here on they count as told.
    pub fn take_untold(&mut self) -> Vec<(LaneId, BrakeRecord)> {
        let told = |lane: &mut Lane| std::mem::take(&mut lane.untold).then(|| lane.record.clone());
        self.lanes.iter_mut().filter_map(|(id, lane)| told(lane).map(|record| (*id, record))).collect()
    }

    /// The ledger did not take this lane's record.
    pub fn not_told(&mut self, lane: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.untold = true;
        }
    }

    /// What the ledger has: the end of the day in force, and each lane's record.
    pub fn read(&mut self, day_ends: Option<Timestamp>, records: Vec<(LaneId, BrakeRecord)>) {
        self.day_ends = day_ends;
        for (id, record) in records {
            let lane = self.lanes.entry(id).or_default();
            if !lane.untold {
                lane.record = record;
            }
        }
    }

    /// Levels that differ from what was last said of them. From here on they count as said.
    pub fn changes(&mut self, rules: &BrakeRules, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, lane) in &mut self.lanes {
            let (level, until) = rules.phase(&lane.record, now);
            if level != lane.said {
                let harder = level > lane.said;
                lane.said = level;
                let until = Some(until).filter(|until| *until < Timestamp::NEVER);
                changes.push(Change { lane: *id, level, until, harder, reason: lane.record.reason.clone() });
            }
        }
        changes
    }

    /// When something changes by itself: a level ends, or the day.
    pub fn next_change(&self, rules: &BrakeRules, now: Timestamp) -> Option<Timestamp> {
        let ends = self.lanes.values().map(|lane| rules.phase(&lane.record, now).1);
        ends.chain(self.day_ends).filter(|at| *at > now && *at < Timestamp::NEVER).min()
    }

    /// The day is over and the ledger has not been read since: what was asked of the stage is not asked again.
    fn turn(&mut self, rules: &BrakeRules, now: Timestamp) {
        if self.day_ends.is_some_and(|ends| now >= ends) {
            self.day_ends = None;
            self.lanes.values_mut().for_each(|lane| lane.record = rules.next_day(&lane.record, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Signal, Signals};
    use crate::reply::Reply;

    const GOOGLE: LaneId = LaneId(1);
    const LOW: &str = "421 4.7.0 suspicious due to the very low reputation of the sending IP address";

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + 60 * minute)
    }

    fn rules() -> BrakeRules {
        BrakeRules::default()
    }

    fn low() -> &'static Signal {
        let reply = Reply::from_line(LOW).expect("a reply");
        Signals::embedded().classify("google", &reply).expect("a rule")
    }

    fn hear(lanes: &mut Lanes, now: Timestamp) -> bool {
        let attempt = Attempt { domain: 1, deferred: true, signal: Some(low()) };
        lanes.observe(&rules(), GOOGLE, &attempt, LOW, now)
    }

    #[test]
    fn what_was_heard_is_told_once_with_its_reason_and_said_once() {
        let mut lanes = Lanes::default();
        lanes.read(Some(at(1_440)), vec![(GOOGLE, BrakeRecord::default())]);
        assert!(hear(&mut lanes, at(0)));
        let told = lanes.take_untold();
        let [(GOOGLE, record)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((record.level, record.step), (BrakeLevel::Suspended, StageStep::Back));
        assert_eq!(record.reason, format!("google-lowrep: {LOW} (1x)"));
        assert_eq!(lanes.take_untold(), []);
        let changes = lanes.changes(&rules(), at(0));
        assert!(changes.len() == 1 && changes[0].harder && changes[0].until == Some(at(240)), "{changes:?}");
        assert_eq!(lanes.changes(&rules(), at(1)), []);
        assert_eq!(lanes.next_change(&rules(), at(1)), Some(at(240)));
        let levels = [240, 300].map(|minute| lanes.changes(&rules(), at(minute)).pop().map(|c| (c.level, c.harder)));
        assert_eq!(levels, [Some((BrakeLevel::Slow, false)), Some((BrakeLevel::Open, false))]);
    }

    #[test]
    fn what_the_ledger_says_does_not_undo_what_it_does_not_have_yet() {
        let mut lanes = Lanes::default();
        hear(&mut lanes, at(0));
        lanes.read(Some(at(1_440)), vec![(GOOGLE, BrakeRecord::default())]);
        assert_eq!(lanes.level(&rules(), GOOGLE, at(0)), BrakeLevel::Suspended);
        let told = lanes.take_untold();
        lanes.not_told(GOOGLE);
        assert_eq!(lanes.take_untold(), told, "a spool that was busy gets it again");
        lanes.read(Some(at(1_440)), vec![(GOOGLE, BrakeRecord::default())]);
        assert_eq!(lanes.level(&rules(), GOOGLE, at(0)), BrakeLevel::Open, "an operator has released it");
    }

    #[test]
    fn a_new_day_asks_nothing_of_the_stage_before_its_own_signals() {
        let mut lanes = Lanes::default();
        lanes.read(Some(at(100)), Vec::new());
        hear(&mut lanes, at(0));
        assert_eq!(lanes.lanes[&GOOGLE].record.step, StageStep::Back);
        let rate = Reply::from_line("421 4.7.28 unusual rate of mail originating from your IP address").unwrap();
        let signal = Signals::embedded().classify("google", &rate);
        let attempt = Attempt { domain: 1, deferred: true, signal };
        assert!(!lanes.observe(&rules(), GOOGLE, &attempt, "", at(400)), "the rule waits for two");
        assert!(lanes.observe(&rules(), GOOGLE, &attempt, "", at(401)));
        let record = &lanes.lanes[&GOOGLE].record;
        assert_eq!((record.level, record.step), (BrakeLevel::Slow, StageStep::Hold), "yesterday's step is yesterday's");
        assert!(lanes.day_is_over(at(401)), "the ledger is to be read");
    }
}
