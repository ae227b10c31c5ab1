//! What a day of the ramp will look like if streams go this way or that: what they will offer, what the limit will be, and
//! what goes another way.
//!
//! An estimate for an operator who is about to move a stream; nothing is decided by it. Limits come from the same rules
//! as on the day itself, under the assumption that every day until then counts, unless today is known not to. Plain.

use super::gate::WarmupGate;
use crate::admin::streams::Outlook;
use crate::message::{Day, DayRecord, LaneId, LaneRecord, StageStep, StreamId, StreamWay, Timestamp};
use crate::policy::{Boundary, Overflow, Rules};
use crate::spool::Ledger;
use crate::spool::ledger::LaneLedger;

const WEEK_DAYS: i32 = 7;

/// A stream as it is on the day that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Going {
    pub stream: StreamId,
    pub way: StreamWay,
    pub overflow: Overflow,
}

/// What is known of a coming day: `ahead` days from today, which is 0. `None` before the first day.
pub fn outlook(gate: &WarmupGate, ledger: &Ledger, streams: &[Going], ahead: u32) -> Option<Outlook> {
    let (span, lane) = (ledger.span()?, ledger.lane(LaneId::TOTAL)?);
    let day = Day(span.day.0.saturating_add(i32::try_from(ahead).ok()?));
    let offers = |going: &Going| {
        offered_on(lane, going.stream, day).max(if ahead == 0 { lane.stream_today(going.stream).offered } else { 0 })
    };
    let sum = |which: &dyn Fn(&Going) -> bool| streams.iter().filter(|going| which(going)).map(offers).sum::<u64>();
    let ramp_offers = sum(&|going| going.way == StreamWay::Ramp);
    let new_offers = sum(&|going| going.way == StreamWay::New);
    let holding = sum(&|going| going.way == StreamWay::Ramp && going.overflow == Overflow::Hold);
    let record = match gate.rules() {
        Some(rules) => record_on(rules, lane, ahead, ramp_offers),
        None => LaneRecord { limit: None, ..lane.record },
    };
    let beyond = record.limit.map_or((0, 0), |limit| beyond(limit, ramp_offers, holding, new_offers));
    let seen = |going: &Going| lane.stream_since(going.stream).is_some_and(|since| since < span.day);
    let middle = gate.calendar().span(day);
    Some(Outlook {
        date: Timestamp(middle.starts.0 + (middle.ends.0 - middle.starts.0) / 2),
        ahead,
        day: gate.rules().filter(|_| record.limit.is_some_and(|limit| limit > 0)).map(|_| record.stage + 1),
        ramp_offers,
        new_offers,
        limit: record.limit,
        stays_on_legacy: beyond.0,
        waits: beyond.1,
        unknown: !streams.iter().any(|going| going.way != StreamWay::Legacy && seen(going)),
    })
}

/// Recipients beyond the limit: those that stay on legacy, and those that wait. Streams on new are served first.
fn beyond(limit: u64, ramp: u64, holding: u64, new: u64) -> (u64, u64) {
    let ramp_beyond = ramp.saturating_sub(limit.saturating_sub(new));
    // Who of the ramp finds no token is not known; as many of those that hold as there are of them.
    let holds = (u128::from(ramp_beyond) * u128::from(holding) / u128::from(ramp.max(1))) as u64;
    (ramp_beyond - holds, new.saturating_sub(limit) + holds)
}

/// What the stream offered on the same day of the last week; one that is younger, on its last whole day; one that is
/// of today, today.
fn offered_on(lane: &LaneLedger, stream: StreamId, day: Day) -> u64 {
    let (today, Some(since)) = (lane.today.day, lane.stream_since(stream)) else { return 0 };
    let weeks = (day.0 - today.0) / WEEK_DAYS + 1;
    let same = Day(day.0 - weeks * WEEK_DAYS);
    let yesterday = Day(today.0 - 1);
    let best = [same, yesterday, today].into_iter().find(|day| since <= *day).unwrap_or(today);
    lane.stream_on(stream, best).offered
}

/// The total's record `ahead` days from today, if every day until then counts. Today does not if it was braked.
fn record_on(rules: &Rules, lane: &LaneLedger, ahead: u32, offered: u64) -> LaneRecord {
    let mut record = lane.record;
    let mut history: Vec<DayRecord> = lane.history.iter().copied().collect();
    let mut ending = lane.today;
    for _ in 0..ahead {
        let limit = ending.limit.unwrap_or(0);
        let least = (rules.min_used * limit as f64).ceil() as u64;
        let used = if offered == 0 { limit } else { offered.min(limit) };
        history.push(DayRecord { sent: ending.sent.max(used).max(least), ..ending });
        let today = ending.day.next();
        let boundary = Boundary {
            lane: &record,
            history: &history,
            set_day: lane.memory,
            share: 1.0,
            total_complete: false,
            asked: if ending.day == lane.today.day { lane.brake.step } else { StageStep::None },
            today,
        };
        record = rules.day_boundary(&boundary);
        ending = DayRecord { day: today, limit: record.limit, stage: record.stage, offered, ..DayRecord::default() };
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_limit_stays_on_legacy_or_waits_and_none_is_lost() {
        for (limit, ramp, holding, new, stays, waits) in [
            (1_922, 9_800, 0, 0, 7_878, 0),
            (1_922, 9_800, 9_800, 0, 0, 7_878),
            (1_922, 1_000, 0, 0, 0, 0),
            // Streams on new come first, and have no other way.
            (1_922, 9_800, 0, 922, 8_800, 0),
            (1_922, 9_800, 0, 5_000, 9_800, 3_078),
            (1_000, 3_000, 1_500, 0, 1_000, 1_000),
            (0, 10, 0, 5, 10, 5),
        ] {
            let found = beyond(limit, ramp, holding, new);
            assert_eq!(found, (stays, waits), "{limit} {ramp} {holding} {new}");
            assert_eq!(found.0 + found.1 + (ramp + new).min(limit), ramp + new);
        }
    }
}
