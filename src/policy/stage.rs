//! How far a lane has come, and what that allows tomorrow.
//!
//! Decided once per lane at each day boundary. The stage rises only on a day whose limit was used, never runs ahead
//! of what was really sent, and sinks again when nothing is sent: the memory `best` fades. What a lane is *called*
//! (complete, ample, stalled) is in `state`.

use super::signal::StageStep;
use super::state;
use super::{Advance, AfterBrake, Rules, whole};
use crate::message::{Day, DayRecord, LaneId, LaneRecord};

/// A day counts in full up to this age; yesterday is 1 day old.
const FRESH_DAYS: i32 = 8;
/// At this age a day is forgotten. History older than this need not be kept for the ramp.
pub const FORGOTTEN_AFTER_DAYS: i32 = 31;
/// Comparisons of a share of a limit with a whole number forgive this much, so 50 % of 254 is 127.
const ROUNDING: f64 = 1e-9;

/// Part of a first day each mailbox provider gets before its own mail is known. Further lanes take theirs from
/// `other`.
pub const PRIOR_SHARES: [(&str, f64); 4] = [("google", 0.45), ("microsoft", 0.25), ("yahoo", 0.08), ("other", 0.22)];

/// What a day `age` days ago still counts for: 1 to 8 days, then evenly down to 0 at 31 days.
fn weight(age_days: i32) -> f64 {
    let fading = f64::from(FORGOTTEN_AFTER_DAYS - age_days) / f64::from(FORGOTTEN_AFTER_DAYS - FRESH_DAYS);
    fading.clamp(0.0, 1.0)
}

/// The memory: the largest of `sent` x weight over the days before `today`. One number is both the guard of the
/// next step and the decay of an idle lane. 0 when nothing was sent in 30 days.
pub fn best(days: impl IntoIterator<Item = (Day, u64)>, today: Day) -> f64 {
    days.into_iter().map(|(day, sent)| sent as f64 * weight(today.0.saturating_sub(day.0))).fold(0.0, f64::max)
}

/// A lane's automatic share of the curve, 0 to 1. `offered` and `offered_all` are recipients of the last 7 days, of
/// this lane and of all; `prior` as in [`PRIOR_SHARES`]. The shares of all lanes add up to that of their priors.
pub fn auto_share(offered: u64, offered_all: u64, prior: f64, first_stage: f64) -> f64 {
    (offered as f64 + first_stage * prior) / (offered_all as f64 + first_stage)
}

/// What `next_day` looks at: a lane, the day that ended, and what is remembered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Share of the curve for the new day, 0 to 1; the total's is 1.
    pub share: f64,
    /// Stage of the day that ended.
    pub stage: u32,
    /// Largest limit of the day that ended; `None` when there was none or the day is not known: it does not count.
    pub limit: Option<u64>,
    /// Sent on the day that ended.
    pub sent: u64,
    /// Braked or paused days in a row up to and with the one that ended.
    pub braked_run: u32,
    /// The strongest step that signals asked for on the day that ended.
    pub asked: StageStep,
    /// [`best`] of all days.
    pub best: f64,
    /// [`best`] of the days after the last braked one: a provider lane keeps at least this. `None` for the total.
    pub floor: Option<f64>,
}

/// Stage and limit of the new day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDay {
    pub stage: u32,
    /// Recipients; 1 or more.
    pub limit: u64,
    /// The day that ended moved the ramp on.
    pub counted: bool,
}

/// A lane at a day boundary.
#[derive(Clone, Copy, Debug)]
pub struct Boundary<'a> {
    /// As it stood during the day that ended.
    pub lane: &'a LaneRecord,
    /// Its last 31 days in any order; the one that ended among them if mailramp ran.
    pub history: &'a [DayRecord],
    /// The strongest step that signals asked for on the day that ended.
    pub asked: StageStep,
    /// `set-day N` enters [`Rules::memory_of_set_day`] as if sent on that day.
    pub set_day: Option<(Day, u64)>,
    /// Share of the new day. Ignored for the total.
    pub share: f64,
    /// The total is complete on the new day. Ignored for the total, so the total is done first.
    pub total_complete: bool,
    /// The day that begins.
    pub today: Day,
}

impl Rules {
    /// Stage and limit of the day that begins.
    pub fn next_day(&self, step: &Step) -> NextDay {
        let braked = step.braked_run > 0 || step.asked != StageStep::None;
        let counted = !braked && self.counts(step.sent, step.limit);
        let mut stage = match counted {
            true => step.stage.saturating_add(1),
            false => step.stage.saturating_sub(self.stages_back(step.braked_run, step.asked)),
        };
        let allowed = |stage| self.curve.at(stage) * step.share;
        let cap = self.cap(step.best, allowed(0));
        let kept = step.floor.unwrap_or(0.0).min(cap);
        let limit = allowed(stage).min(cap).max(kept);
        // A stage that ran ahead of what was sent would jump once mail comes, or call the ramp complete without it.
        while stage > 0 && allowed(stage - 1) >= cap {
            stage -= 1;
        }
        NextDay { stage, limit: whole(limit).max(1), counted }
    }

    /// Stages that a lane loses for a day that did not count: none for one without a brake.
    fn stages_back(&self, braked_run: u32, asked: StageStep) -> u32 {
        let by_run = match braked_run {
            0 => 0,
            1 if self.after_brake == AfterBrake::Repeat => 0,
            _ => 1,
        };
        match asked {
            StageStep::None | StageStep::Hold => by_run,
            StageStep::Back => 1,
            StageStep::BackTwo => 2,
            // Whoever mends the fault finds the lane where it was.
            StageStep::Freeze => 0,
        }
    }

    /// The record of the day that begins. Call it once per boundary, the total first; for days mailramp was not
    /// running call it for each of them, or at most for the last 31.
    pub fn day_boundary(&self, boundary: &Boundary) -> LaneRecord {
        let Boundary { lane, history, today, .. } = *boundary;
        let is_total = lane.lane == LaneId::TOTAL;
        let share = if is_total { 1.0 } else { boundary.share };
        let Some(start) = self.start.filter(|start| *start <= today) else {
            return not_started(lane.lane, share);
        };
        let ended = history.iter().find(|record| record.day.next() == today && record.day >= start);
        let braked = ended.filter(|record| record.braked);
        let braked_run = if braked.is_some() { lane.braked_run.saturating_add(1) } else { 0 };
        let last_braked = braked.map(|record| record.day).or(lane.last_braked);

        let remembered = |after: Option<Day>| {
            let sent = history.iter().map(|record| (record.day, record.sent)).chain(boundary.set_day);
            let counted =
                sent.filter(|(day, _)| *day >= start && *day < today && after.is_none_or(|after| *day > after));
            best(counted, today)
        };
        let next = self.next_day(&Step {
            share,
            stage: if today == start { 0 } else { lane.stage },
            limit: ended.and_then(|record| record.limit),
            sent: ended.map_or(0, |record| record.sent),
            braked_run,
            asked: boundary.asked,
            best: remembered(None),
            floor: (!is_total).then(|| remembered(last_braked)),
        });

        let week = |record: &&DayRecord| record.day >= start && (1..=7).contains(&(today.0 - record.day.0));
        let peak_offered = history.iter().filter(week).map(|record| record.offered).max().unwrap_or(0);
        let could_complete = self.could_complete(is_total, next.limit, share, peak_offered);
        let complete_run = if could_complete { lane.complete_run.saturating_add(1) } else { 0 };
        let complete =
            (lane.complete && today != start) || state::is_complete(is_total, complete_run, boundary.total_complete);
        let stalled =
            ended.is_some_and(|record| record.limit.is_some_and(|limit| limit > 0 && record.offered >= limit));
        LaneRecord {
            lane: lane.lane,
            stage: next.stage,
            limit: (!complete).then_some(next.limit),
            share,
            braked_run,
            last_braked,
            complete_run,
            complete,
            stalled_run: if stalled && !next.counted { lane.stalled_run.saturating_add(1) } else { 0 },
        }
    }

    /// Sent enough of the limit for the day to move the ramp on. In calendar mode every day with a limit does.
    pub(super) fn counts(&self, sent: u64, limit: Option<u64>) -> bool {
        match (limit, self.advance) {
            (None | Some(0), _) => false,
            (Some(_), Advance::Calendar) => true,
            (Some(limit), Advance::SendingDay) => sent as f64 + ROUNDING >= self.min_used * limit as f64,
        }
    }

    /// Most a day may allow after `best`: `max_step` x as much, but never less than a first day. `max_step = 0`: no cap.
    fn cap(&self, best: f64, first_day: f64) -> f64 {
        if self.max_step == 0.0 { f64::INFINITY } else { (self.max_step * best).max(first_day).max(1.0) }
    }

    /// What `set-day` remembers as sent today, so that tomorrow's cap is c(stage) x share.
    pub fn memory_of_set_day(&self, stage: u32, share: f64) -> u64 {
        let allowed = self.curve.at(stage) * share;
        if self.max_step == 0.0 { whole(allowed) } else { (allowed / self.max_step).ceil() as u64 }
    }
}

fn not_started(lane: LaneId, share: f64) -> LaneRecord {
    LaneRecord {
        lane,
        stage: 0,
        limit: Some(0),
        share,
        braked_run: 0,
        last_braked: None,
        complete_run: 0,
        complete: false,
        stalled_run: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Day = Day(20_000);

    fn rules() -> Rules {
        Rules { start: Some(START), target: 12_000, ..Rules::default() }
    }

    fn record(lane: LaneId) -> LaneRecord {
        not_started(lane, 1.0)
    }

    fn day(n: i32, limit: u64, sent: u64) -> DayRecord {
        DayRecord { day: Day(START.0 + n), limit: Some(limit), offered: sent, sent, ..DayRecord::default() }
    }

    /// Lives through `days` days, on each of which `sent(day, limit)` were sent and offered.
    fn live(rules: &Rules, days: i32, mut on: impl FnMut(i32, u64) -> DayRecord) -> (LaneRecord, Vec<u64>) {
        let (mut lane, mut history, mut limits) = (record(LaneId::TOTAL), Vec::new(), Vec::new());
        for n in 0..days {
            let today = Day(START.0 + n);
            lane = rules.day_boundary(&Boundary {
                lane: &lane,
                history: &history,
                set_day: None,
                asked: StageStep::None,
                share: 1.0,
                total_complete: false,
                today,
            });
            limits.push(lane.limit.unwrap_or(u64::MAX));
            history.push(on(n, lane.limit.unwrap_or(1_000_000)));
        }
        (lane, limits)
    }

    #[test]
    fn a_start_date_in_the_future_means_a_limit_of_zero_until_then() {
        let mut lane = record(LaneId::TOTAL);
        lane.stage = 9;
        let early = [day(-1, 5000, 5000), day(-2, 5000, 5000)];
        let at = |n: i32, rules: &Rules| {
            rules.day_boundary(&Boundary {
                lane: &lane,
                history: &early,
                set_day: None,
                asked: StageStep::None,
                share: 1.0,
                total_complete: true,
                today: Day(START.0 + n),
            })
        };
        assert_eq!(at(-1, &rules()).limit, Some(0));
        assert_eq!(at(0, &Rules { start: None, ..rules() }).limit, Some(0), "no start is remembered yet");
        let first = at(0, &rules());
        assert_eq!((first.stage, first.limit), (0, Some(50)), "days before the start are not part of the history");
        assert_eq!(at(0, &Rules { max_step: 0.0, ..rules() }).stage, 0, "nor do they count where no step is capped");
    }

    #[test]
    fn days_before_the_start_neither_count_nor_are_remembered_later() {
        let lane = record(LaneId::TOTAL);
        let history = [day(-1, 5000, 5000), day(0, 50, 50)];
        let second = rules().day_boundary(&Boundary {
            lane: &lane,
            history: &history,
            set_day: None,
            asked: StageStep::None,
            share: 1.0,
            total_complete: false,
            today: START.next(),
        });
        assert_eq!((second.stage, second.limit), (1, Some(75)));
    }

    #[test]
    fn the_memory_fades_evenly_and_only_downwards() {
        let mut before = f64::INFINITY;
        for age in 1..40 {
            let now = best([(Day(0), 12_000)], Day(age));
            assert!(now <= before, "age {age}");
            assert_eq!(now == 12_000.0, age <= 8, "age {age}");
            assert_eq!(now == 0.0, age >= 31, "age {age}");
            before = now;
        }
        assert_eq!(best([], Day(5)), 0.0);
        assert_eq!(best([(Day(i32::MIN), 5)], Day(i32::MAX)), 0.0);
    }

    #[test]
    fn random_days_never_give_more_than_the_curve_nor_than_the_step() {
        for seed in 0..300u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let rules = Rules { target: u64::MAX, ..rules() };
            let mut best_sent = 0;
            let (mut counted_days, demand) = (0, 1 + (random.f64().powi(3) * 1e6) as u64);
            live(&rules, 60, |n, limit| {
                let on_curve = rules.curve.at(counted_days);
                assert!(limit as f64 <= on_curve, "seed {seed} day {n}: {limit} over the curve's {on_curve}");
                assert!(limit <= (2 * best_sent).max(50), "seed {seed} day {n}: {limit} after at most {best_sent}");
                let sent = if random.u8(..4) == 0 { 0 } else { random.u64(..=limit.min(demand)) };
                let braked = random.u8(..8) == 0;
                best_sent = best_sent.max(sent);
                counted_days += u32::from(2 * sent >= limit && !braked);
                DayRecord { offered: demand, braked, ..day(n, limit, sent) }
            });
        }
    }

    #[test]
    fn calendar_mode_moves_on_unused_days_but_never_past_the_step() {
        let calendar = Rules { advance: Advance::Calendar, ..rules() };
        let (_, limits) = live(&calendar, 6, |n, limit| day(n, limit, if n < 3 { limit / 4 } else { limit }));
        assert_eq!(limits[..4], [50, 50, 50, 50], "best 12 x 2 is less than a first day: the stage waits too");
        assert_eq!(limits[4..], [75, 112]);
        let uncapped = Rules { advance: Advance::Calendar, max_step: 0.0, ..rules() };
        let (_, limits) = live(&uncapped, 5, |n, limit| day(n, limit, 0));
        assert_eq!(limits, [50, 75, 112, 168, 253]);
    }

    #[test]
    fn a_first_braked_day_repeats_unless_configured_to_step_back() {
        let stages = |rules: &Rules, braked_days: std::ops::Range<i32>| {
            let (lane, _) =
                live(rules, 8, |n, limit| DayRecord { braked: braked_days.contains(&n), ..day(n, limit, limit) });
            lane.stage
        };
        assert_eq!(stages(&rules(), 0..0), 7);
        assert_eq!(stages(&rules(), 4..5), 6);
        assert_eq!(stages(&rules(), 4..7), 2);
        assert_eq!(stages(&Rules { after_brake: AfterBrake::StepBack, ..rules() }, 4..5), 5);
    }

    #[test]
    fn signals_ask_for_more_than_a_braked_day_does() {
        let next = |braked_run, asked, after_brake| {
            let (share, sent, best) = (1.0, 1_000, 1_000.0);
            let rules = Rules { after_brake, ..rules() };
            let step = Step { share, stage: 8, limit: Some(1_000), sent, braked_run, asked, best, floor: Option::None };
            let next = rules.next_day(&step);
            assert_eq!(next.counted, braked_run == 0 && asked == StageStep::None);
            next.stage
        };
        use StageStep::{Back, BackTwo, Freeze, Hold, None};
        // What was asked for; the stage of 8 after no braked day, a first and a second one; the first with `step-back`.
        let rows = [
            (None, [9, 8, 7, 7]),
            (Hold, [8, 8, 7, 7]),
            (Back, [7, 7, 7, 7]),
            (BackTwo, [6, 6, 6, 6]),
            (Freeze, [8, 8, 8, 8]),
        ];
        for (asked, expected) in rows {
            let by_run = [0, 1, 2].map(|run| next(run, asked, AfterBrake::Repeat));
            let stages = [by_run[0], by_run[1], by_run[2], next(1, asked, AfterBrake::StepBack)];
            assert_eq!(stages, expected, "{asked:?}");
        }
        let foot = Step {
            share: 1.0,
            stage: 1,
            limit: Some(75),
            sent: 75,
            braked_run: 1,
            asked: BackTwo,
            best: 75.0,
            floor: Option::None,
        };
        assert_eq!(rules().next_day(&foot).stage, 0, "not below the foot of the curve");
    }

    #[test]
    fn steady_mail_completes_on_the_third_boundary_and_then_has_no_limit() {
        let (_, limits) =
            live(&rules(), 19, |n, limit| DayRecord { offered: 12_000, ..day(n, limit, limit.min(12_000)) });
        assert_eq!(limits[14..], [14_596, 21_894, 24_000, u64::MAX, u64::MAX]);
    }

    #[test]
    fn an_unused_offer_stalls_and_a_used_one_does_not() {
        let (lane, _) = live(&rules(), 4, |n, limit| DayRecord { offered: 12_000, ..day(n, limit, 3) });
        assert_eq!(lane.stalled_run, 3);
        let (lane, _) = live(&rules(), 4, |n, limit| day(n, limit, 3));
        assert_eq!(lane.stalled_run, 0, "little was offered");
        let (lane, _) = live(&rules(), 4, |n, limit| DayRecord { offered: 12_000, ..day(n, limit, limit) });
        assert_eq!(lane.stalled_run, 0);
    }

    #[test]
    fn set_day_is_remembered_so_that_the_step_allows_it() {
        let rules = rules();
        let memory = rules.memory_of_set_day(10, 1.0);
        let lane = LaneRecord { stage: 10, ..record(LaneId::TOTAL) };
        let next = rules.day_boundary(&Boundary {
            lane: &lane,
            history: &[day(0, 50, 50)],
            set_day: Some((START, memory)),
            asked: StageStep::None,
            share: 1.0,
            total_complete: false,
            today: START.next(),
        });
        assert_eq!(next.limit, Some(2884), "twice the 1,442 that stand for c(10) / 2");
        assert_eq!(rules.memory_of_set_day(10, 1.0), 1442);
    }

    #[test]
    fn automatic_shares_of_all_lanes_add_up_to_one() {
        let offered = [4600, 2100, 800, 2500];
        let all = offered.iter().sum();
        let shares = offered.iter().zip(PRIOR_SHARES).map(|(o, (_, prior))| auto_share(*o, all, prior, 50.0));
        assert!((shares.sum::<f64>() - 1.0).abs() < 1e-12);
    }
}
