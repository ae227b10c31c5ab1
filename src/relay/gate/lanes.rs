//! What each lane is allowed on the day that begins.
//!
//! The total is one lane and has share 1. Each provider's lane has a part of the curve, set at the day boundary: the
//! configured one, or what was offered in the last week. A lane that comes into a ramp under way stands where the total
//! stands, as if it had always had its share.

use super::{WEEK_DAYS, WarmupGate};
use crate::message::{BrakeLevel, Day, DayRecord, DaySpan, LaneId, LaneRecord, StageStep, Timestamp};
use crate::policy::stage::{auto_share, best};
use crate::policy::{Boundary, Lanes, Provider, Rules};
use crate::spool::ledger::LaneLedger;
use crate::spool::{Ledger, SetLane, Turn};

/// Days nobody saw that are turned one by one; older ones are out of every memory.
pub(super) const GAP_DAYS: i32 = 40;

/// Lanes that come into a ramp under way.
#[derive(Default)]
struct Joining {
    records: Vec<LaneRecord>,
    /// What they remember, as if they had sent it on that day.
    memories: Vec<(LaneId, (Day, u64))>,
}

/// What a provider gets of the first days, before its own mail is known. They add up to 1.
const fn prior(provider: Provider) -> f64 {
    match provider {
        Provider::Google => 0.45,
        Provider::Microsoft => 0.25,
        Provider::Yahoo => 0.08,
        Provider::Apple => 0.03,
        Provider::GmxWebde => 0.02,
        Provider::OrangeFr => 0.01,
        Provider::Mimecast => 0.02,
        Provider::Other => 0.14,
    }
}

impl WarmupGate {
    /// Whether mail is limited by provider.
    pub fn has_provider_lanes(&self) -> bool {
        self.rules.is_some() && self.lanes != Lanes::Off
    }

    /// Providers with a lane of their own.
    pub fn providers(&self) -> impl Iterator<Item = Provider> + '_ {
        self.lanes.providers().filter(|_| self.rules.is_some())
    }

    /// The day that begins.
    pub(super) fn turn_to(&self, ledger: &Ledger, span: DaySpan) -> Turn {
        Turn { lanes: self.records(ledger, span.day), ..self.turn(ledger, span, span.starts) }
    }

    /// The settings have changed within the day: what they do not speak of stays as it is.
    pub(super) fn turn_within(&self, ledger: &Ledger, span: DaySpan, now: Timestamp) -> Turn {
        let whole_new = self.total_contradicts(ledger, span.day);
        let fresh = self.records(ledger, span.day);
        let kept = |record: LaneRecord| match ledger.lane(record.lane) {
            Some(lane) if !whole_new => lane.record,
            _ => record,
        };
        Turn { lanes: fresh.into_iter().map(kept).collect(), ..self.turn(ledger, span, now) }
    }

    fn turn(&self, ledger: &Ledger, span: DaySpan, at: Timestamp) -> Turn {
        let on = |lane: &LaneLedger| self.brake_of(lane, at).0 > BrakeLevel::Open;
        let braked = ledger.lanes().filter(|(_, lane)| on(lane)).map(|(id, _)| id).collect();
        Turn { span, lanes: Vec::new(), braked, memories: self.joining(ledger, span.day).memories }
    }

    /// The records of the day that begins, the total's first.
    fn records(&self, ledger: &Ledger, today: Day) -> Vec<LaneRecord> {
        let Some(rules) = &self.rules else {
            let known = ledger.lane(LaneId::TOTAL).map_or(LaneRecord::unmetered(LaneId::TOTAL), |l| l.record);
            return vec![LaneRecord { limit: None, ..known }];
        };
        let total = record(rules, ledger, LaneId::TOTAL, 1.0, false, today);
        let mut records = vec![total];
        let joining = self.joining(ledger, today).records;
        for provider in self.providers() {
            let id = provider.lane();
            let joined = joining.iter().find(|record| record.lane == id).copied();
            let share = self.share(rules, ledger, provider, today);
            records.push(joined.unwrap_or_else(|| record(rules, ledger, id, share, total.complete, today)));
        }
        records
    }

    /// Lanes of providers, when there were none and the total is on its way already.
    fn joining(&self, ledger: &Ledger, today: Day) -> Joining {
        let nothing = Joining::default();
        let (Some(rules), Some(total)) = (&self.rules, ledger.lane(LaneId::TOTAL)) else { return nothing };
        let under_way = total.record.stage > 0 || total.record.complete;
        if !under_way || ledger.lanes().any(|(id, _)| id != LaneId::TOTAL) {
            return nothing;
        }
        let total_now = record(rules, ledger, LaneId::TOTAL, 1.0, false, today);
        // Within the day the total stays as it is.
        let total_now = if total.today.day == today { total.record } else { total_now };
        let sent = total.history.iter().chain([&total.today]).map(|day| (day.day, day.sent)).chain(total.memory);
        let remembered = best(sent.filter(|(day, _)| *day < today), today);
        let mut joined = nothing;
        for provider in self.providers() {
            let (lane, share) = (provider.lane(), self.share(rules, ledger, provider, today));
            let limit = total_now.limit.map(|limit| if limit == 0 { 0 } else { part(limit, share).max(1) });
            joined.records.push(LaneRecord { lane, limit, share, last_braked: None, ..total_now });
            joined.memories.push((lane, (Day(today.0 - 1), (remembered * share) as u64)));
        }
        joined
    }

    fn share(&self, rules: &Rules, ledger: &Ledger, provider: Provider, today: Day) -> f64 {
        self.lanes.share(provider).unwrap_or_else(|| {
            let week = |id| {
                let days = ledger.lane(id).into_iter().flat_map(|lane| lane.history.iter().chain([&lane.today]));
                let recent = days.filter(|day| (1..=WEEK_DAYS).contains(&(today.0 - day.day.0)));
                recent.map(|day| day.offered).sum::<u64>()
            };
            // By the lanes' own sum: what was offered before there were lanes says nothing about any of them.
            let all = self.providers().map(|provider| week(provider.lane())).sum();
            auto_share(week(provider.lane()), all, prior(provider), rules.curve.first())
        })
    }

    /// The settings have changed so that today's records cannot stand: the ramp came, went, its start moved, or there
    /// are lanes now that were none.
    pub(super) fn contradicts(&self, ledger: &Ledger, today: Day) -> bool {
        self.total_contradicts(ledger, today) || self.providers().any(|one| ledger.lane(one.lane()).is_none())
    }

    fn total_contradicts(&self, ledger: &Ledger, today: Day) -> bool {
        let Some(lane) = ledger.lane(LaneId::TOTAL) else { return true };
        match &self.rules {
            None => lane.record.limit.is_some(),
            Some(rules) => {
                let started = rules.start.is_some_and(|start| start <= today);
                match lane.record.limit {
                    None => !lane.record.complete,
                    Some(limit) => (limit > 0) != started,
                }
            }
        }
    }

    /// Every lane at this stage: at once as far as that is less, and tomorrow as if it had earned it.
    pub(super) fn lanes_at(&self, ledger: &Ledger, stage: u32) -> Vec<SetLane> {
        let (Some(rules), Some(span)) = (&self.rules, ledger.span()) else { return Vec::new() };
        let ids = [LaneId::TOTAL].into_iter().chain(self.providers().map(Provider::lane));
        let lanes = ids.filter_map(|id| ledger.lane(id)).filter(|lane| lane.record.limit != Some(0));
        let set = |lane: &LaneLedger| {
            let old = lane.record;
            let allowed = part_of(rules.curve.at(stage), old.share).max(1);
            let limit = old.limit.map_or(allowed, |limit| limit.min(allowed));
            // A lane that goes back must not keep what it earned before.
            let last_braked = if stage < old.stage || old.complete { Some(span.day) } else { old.last_braked };
            let record = LaneRecord {
                stage,
                limit: Some(limit),
                complete: false,
                complete_run: 0,
                stalled_run: 0,
                last_braked,
                ..old
            };
            SetLane { record, memory: (span.day, rules.memory_of_set_day(stage, old.share)) }
        };
        lanes.map(set).collect()
    }
}

fn record(rules: &Rules, ledger: &Ledger, id: LaneId, share: f64, total_complete: bool, today: Day) -> LaneRecord {
    let known = ledger.lane(id);
    let fresh = LaneRecord { share, ..LaneRecord::unmetered(id) };
    let lane = known.map_or(&fresh, |l| &l.record);
    let days = known.into_iter().flat_map(|l| l.history.iter().chain([&l.today]));
    let history: Vec<DayRecord> = days.copied().collect();
    let set_day = known.and_then(|l| l.memory);
    let ended = known.filter(|l| l.today.day < today);
    let asked = ended.map_or(StageStep::None, |l| l.brake.step);
    rules.day_boundary(&Boundary { lane, history: &history, asked, set_day, share, total_complete, today })
}

fn part(limit: u64, share: f64) -> u64 {
    part_of(limit as f64, share)
}

/// Rounded down, but a product that should be whole is.
fn part_of(recipients: f64, share: f64) -> u64 {
    (recipients * share + 1e-9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_shares_are_all_there_is_and_agree_with_those_of_the_rules() {
        let sum: f64 = Provider::ALL.into_iter().map(prior).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        for (name, share) in crate::policy::stage::PRIOR_SHARES.iter().filter(|(name, _)| *name != "other") {
            let provider = Provider::ALL.into_iter().find(|provider| provider.name() == *name).unwrap();
            assert_eq!(prior(provider), *share, "{name}");
        }
        let further: f64 = Provider::ALL.into_iter().skip(3).map(prior).sum();
        assert!((further - 0.22).abs() < 1e-9, "further lanes take theirs from `other`: {further}");
    }
}
