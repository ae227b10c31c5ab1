//! What operators see of the lanes: where each stands, how its brake is, and what setting the day would do. Plain
//! functions of the ledger and the gate.

use super::gate::WarmupGate;
use crate::admin::api::{BrakeStatus, DayState, DayStatus, LaneChange, LaneStatus, PauseStatus, StallReason};
use crate::admin::warmup::TOTAL;
use crate::message::{BrakeLevel, BrakeRecord, Day, DayRecord, LaneId, LaneRecord, Queue, StageStep, Timestamp};
use crate::policy::{self, Boundary, BrakeRules, Provider, Rules};
use crate::spool::ledger::LaneLedger;
use crate::spool::standing::SetLane;
use crate::spool::{Gate, Ledger};

/// Days of the total that are shown, with today.
const DAYS_SHOWN: usize = 7;

/// The name of a lane; `None` for one that nobody has.
pub fn name(lane: LaneId) -> Option<&'static str> {
    if lane == LaneId::TOTAL { Some(TOTAL) } else { Provider::of_lane(lane).map(Provider::name) }
}

/// The lane of this name, if the ledger has it.
pub fn named(ledger: &Ledger, wanted: &str) -> Option<LaneId> {
    ledger.lanes().map(|(id, _)| id).find(|id| name(*id) == Some(wanted))
}

/// Names of all lanes there are.
pub fn names(ledger: &Ledger) -> Vec<&'static str> {
    ledger.lanes().filter_map(|(id, _)| name(id)).collect()
}

/// The pause in force.
pub fn pause(ledger: &Ledger) -> Option<PauseStatus> {
    let pause = ledger.pause()?;
    Some(PauseStatus { since: pause.since, actor: pause.actor, reason: pause.reason.clone() })
}

/// Every lane, the total first.
pub fn lanes(gate: &WarmupGate, ledger: &Ledger, now: Timestamp) -> Vec<LaneStatus> {
    let status = |(id, lane): (LaneId, &LaneLedger)| {
        let record = &lane.record;
        Some(LaneStatus {
            provider: name(id)?.into(),
            state: state(gate, ledger, lane, now),
            day: day(gate, record),
            limit: record.limit,
            used: lane.reserved_today(),
            sent: lane.today.sent,
            offered: lane.today.offered,
            share: record.share,
            brake: brake(gate.brake_rules(), &lane.brake, now),
            braked_days: record.braked_run,
        })
    };
    ledger.lanes().filter_map(status).collect()
}

/// Sending day from 1; `None` before the start and without a ramp.
pub fn day(gate: &WarmupGate, record: &LaneRecord) -> Option<u32> {
    gate.rules().filter(|_| record.limit != Some(0)).map(|_| record.stage + 1)
}

/// What kind of day it is for a lane. A pause stands over everything.
pub fn state(gate: &WarmupGate, ledger: &Ledger, lane: &LaneLedger, now: Timestamp) -> DayState {
    if let Some(pause) = ledger.pause() {
        return DayState::Paused { reason: pause.reason.clone() };
    }
    match gate.state(ledger, lane, now) {
        None => DayState::Unlimited,
        Some(policy::State::NotStarted) => {
            let start = gate.rules().and_then(|rules| rules.start);
            DayState::NotStarted { starts: start.map_or(Timestamp::NEVER, |day| gate.calendar().span(day).starts) }
        }
        Some(policy::State::Paused) => DayState::Paused { reason: String::new() },
        Some(policy::State::Ramping) => DayState::Ramping,
        Some(policy::State::Ample) => DayState::Ample,
        Some(policy::State::Complete) => DayState::Complete,
        Some(policy::State::Stalled(reason)) => DayState::stalled(match reason {
            policy::StallReason::WaitTooShort => StallReason::WaitTooShort,
            policy::StallReason::Share => StallReason::Share,
            policy::StallReason::Brake => StallReason::Brake,
            policy::StallReason::Day24h => StallReason::Day,
            policy::StallReason::Paused => StallReason::Paused,
        }),
    }
}

/// What is left of a brake at `now`.
pub fn brake(rules: &BrakeRules, record: &BrakeRecord, now: Timestamp) -> BrakeStatus {
    let (level, until) = rules.phase(record, now);
    if level == BrakeLevel::Open {
        return BrakeStatus::default();
    }
    BrakeStatus {
        level: level.into(),
        since: Some(record.since),
        until: (until != Timestamp::NEVER).then_some(until),
        reason: record.reason.clone(),
    }
}

/// The last days of the total, oldest first, today last.
pub fn days(gate: &WarmupGate, ledger: &Ledger) -> Vec<DayStatus> {
    let Some(total) = ledger.lane(LaneId::TOTAL) else { return Vec::new() };
    let all: Vec<&DayRecord> = total.history.iter().chain([&total.today]).collect();
    let shown = &all[all.len().saturating_sub(DAYS_SHOWN)..];
    let row = |record: &&DayRecord| DayStatus {
        date: date(record.day),
        day: gate.rules().filter(|_| record.limit != Some(0)).map(|_| record.stage + 1),
        limit: record.limit,
        offered: record.offered,
        new: record.sent,
        legacy: record.legacy,
        braked: record.braked,
    };
    shown.iter().map(row).collect()
}

fn date(day: Day) -> String {
    let since = jiff::Span::new().try_days(i64::from(day.0));
    let date = since.and_then(|days| jiff::civil::date(1970, 1, 1).checked_add(days));
    date.map_or_else(|_| format!("day {}", day.0), |date| date.to_string())
}

/// Recipients that wait for new, on this lane or (the total) on any.
pub fn waiting(ledger: &Ledger, lane: LaneId) -> u64 {
    ledger.waiting_recipients(|queue, _| match queue {
        Queue::Legacy => false,
        Queue::New(id) => lane == LaneId::TOTAL || id == lane,
    })
}

/// What becomes of every lane's limit when the ramp is set to `stage`; empty where there is no ramp to set.
pub fn set_day(gate: &WarmupGate, ledger: &Ledger, stage: u32, now: Timestamp) -> Vec<LaneChange> {
    let Some(rules) = gate.rules() else { return Vec::new() };
    let change = |set: &SetLane| {
        let lane = ledger.lane(set.record.lane)?;
        let days: Vec<DayRecord> = lane.history.iter().chain([&lane.today]).copied().collect();
        let asked = lane.brake.step;
        Some(LaneChange {
            provider: name(set.record.lane)?.into(),
            day_before: lane.record.stage + 1,
            day: set.record.stage + 1,
            limit_before: lane.record.limit,
            limit: set.record.limit,
            tomorrow_before: tomorrow(rules, &days, asked, &lane.record, lane.memory),
            tomorrow: tomorrow(rules, &days, asked, &set.record, Some(set.memory)),
        })
    };
    gate.set_day(ledger, stage, now).iter().filter_map(change).collect()
}

/// Nothing of it makes a difference.
pub fn changes_nothing(change: &LaneChange) -> bool {
    let LaneChange { day_before, day, limit_before, limit, tomorrow_before, tomorrow, .. } = change;
    (day_before, limit_before, tomorrow_before) == (day, limit, tomorrow)
}

/// A lane's limit tomorrow if all is sent that `record` allows today. `days`: oldest first, today last; `asked`: by the
/// brake today.
fn tomorrow(
    rules: &Rules,
    days: &[DayRecord],
    asked: StageStep,
    record: &LaneRecord,
    memory: Option<(Day, u64)>,
) -> Option<u64> {
    let mut days = days.to_vec();
    let today = days.last_mut()?;
    today.sent = today.sent.max(record.limit.unwrap_or(0));
    let next = today.day.next();
    let boundary = Boundary {
        lane: record,
        history: &days,
        asked,
        set_day: memory,
        share: record.share,
        total_complete: false,
        today: next,
    };
    rules.day_boundary(&boundary).limit
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(NOW.seconds() + seconds)
    }

    #[test]
    fn a_brake_is_shown_as_it_is_now_and_not_as_it_was_put_on() {
        let rules = BrakeRules::default();
        let record = |level, until| BrakeRecord { level, since: at(-60), until, ..BrakeRecord::default() };
        for (level, until, want, ends) in [
            (BrakeLevel::Open, at(60), BrakeLevel::Open, None),
            (BrakeLevel::Slow, at(60), BrakeLevel::Slow, Some(at(60))),
            (BrakeLevel::Slow, at(0), BrakeLevel::Open, None),
            (BrakeLevel::Suspended, at(60), BrakeLevel::Suspended, Some(at(60))),
            (BrakeLevel::Suspended, at(-60), BrakeLevel::Slow, Some(at(3540))),
            (BrakeLevel::Suspended, at(-3600), BrakeLevel::Open, None),
            (BrakeLevel::Paused, at(-9999), BrakeLevel::Paused, None),
        ] {
            let shown = brake(&rules, &record(level, until), NOW);
            assert_eq!((shown.level, shown.until), (want.into(), ends), "{level:?} until {until:?}");
            assert_eq!(shown.since.is_some(), want > BrakeLevel::Open);
        }
    }

    #[test]
    fn every_provider_has_a_lane_with_its_name_and_the_total_is_all() {
        assert_eq!(name(LaneId::TOTAL), Some("all"));
        for provider in Provider::ALL {
            assert_eq!(name(provider.lane()), Some(provider.name()));
        }
        assert_eq!(name(LaneId(9)), None);
    }

    #[test]
    fn a_day_is_written_as_a_date() {
        assert_eq!((date(Day(0)), date(Day(20_522))), ("1970-01-01".into(), "2026-03-10".into()));
        assert_eq!(date(Day(i32::MAX)), format!("day {}", i32::MAX), "beyond the calendar");
    }

    #[test]
    fn tomorrow_is_the_next_step_of_the_curve_unless_what_was_sent_does_not_allow_it() {
        let start = Day(20_000);
        let rules = Rules { start: Some(start), target: 12_000, ..Rules::default() };
        let record = |stage, limit| LaneRecord { stage, limit: Some(limit), ..LaneRecord::unmetered(LaneId::TOTAL) };
        let day = |n, limit, sent, braked| DayRecord {
            day: Day(20_000 + n),
            limit: Some(limit),
            sent,
            braked,
            ..DayRecord::default()
        };
        let (yesterday, on_8, on_10) = (day(7, 854, 854, false), record(8, 1281), record(10, 1281));
        let days = |braked| [yesterday, day(8, 1281, 1019, braked)];
        assert_eq!(tomorrow(&rules, &days(false), StageStep::None, &on_8, None), Some(1922));
        assert_eq!(
            tomorrow(&rules, &days(true), StageStep::None, &on_8, None),
            Some(1281),
            "a braked day does not count"
        );
        let asked_back = tomorrow(&rules, &days(true), StageStep::Back, &on_8, None);
        assert_eq!(asked_back, Some(854), "nor stays one where a signal asks for a step back");
        let back = tomorrow(&rules, &days(false), StageStep::None, &record(4, 253), None);
        assert_eq!(back, Some(379), "day 5 is used up already, so tomorrow is day 6");
        let ahead = tomorrow(&rules, &days(false), StageStep::None, &on_10, Some((Day(20_008), 1442)));
        assert_eq!(ahead, Some(2884), "no more than twice what counts as sent");
    }
}
