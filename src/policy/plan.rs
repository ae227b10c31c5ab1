//! What the ramp would do: day by day until the target, under a demand that repeats every week.
//!
//! Each day boundary is [`Rules::day_boundary`] itself, with a history that the plan writes; nothing of the rules
//! stands here a second time. What differs from a real ramp: mail comes all day long, so no token is left because of
//! the hour; there are no brakes, no pauses and no providers; and the plan ends on the day whose limit reaches the
//! target, where the real ramp grows on a little so that there is no cliff. Its limits are clipped at the target.

use super::curve::Curve;
use super::stage::{FORGOTTEN_AFTER_DAYS, best};
use super::state::{Refusals, State};
use super::{Boundary, Rules};
use crate::message::{Day, DayRecord, LaneId, LaneRecord};

/// Most days that are planned.
pub const DAYS_MAX: u32 = 3_650;
/// A step that is larger than this many times the mail really sent is worth a warning where no `max_step` holds it.
pub const STEP_ADVISED: f64 = 2.0;
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Recipients a day that the application has mail for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Monday to Friday.
    pub weekday: u64,
    /// Saturday and Sunday.
    pub weekend: u64,
}

impl Demand {
    pub fn on(self, day: Day) -> u64 {
        if weekday(day) < 5 { self.weekday } else { self.weekend }
    }
}

/// 0 is Monday.
fn weekday(day: Day) -> usize {
    (i64::from(day.0) + 3).rem_euclid(7) as usize // 1970-01-01 was a Thursday
}

/// `Mon` to `Sun`.
pub fn weekday_name(day: Day) -> &'static str {
    WEEKDAYS[weekday(day)]
}

/// What is planned.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// With the start date.
    pub rules: &'a Rules,
    pub demand: Demand,
    /// Mail over the limit waits for the next days, because there is no legacy server to take it.
    pub holds: bool,
    /// Plans at most this many days, and at most [`DAYS_MAX`].
    pub days_max: u32,
}

/// One day. Recipients throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanDay {
    /// Days since the start, from 1.
    pub number: u32,
    pub day: Day,
    /// From 0.
    pub stage: u32,
    /// Clipped at the target.
    pub limit: u64,
    /// What the curve gives for the stage, clipped likewise; above the limit where `max_step` holds it.
    pub curve: u64,
    /// New mail of that day.
    pub offered: u64,
    pub new: u64,
    pub legacy: u64,
    /// Still waiting when the day ends.
    pub waiting: u64,
    /// Enough was sent for the ramp to move on.
    pub counted: bool,
}

impl PlanDay {
    /// Part of the limit that was sent, 0 to 1.
    pub fn used(&self) -> f64 {
        self.new as f64 / self.limit.max(1) as f64
    }
}

/// The ramp as it would go.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// At least one; the last is the day that reaches the target, if one does.
    pub days: Vec<PlanDay>,
    /// The calendar day, from 1, whose limit is the target.
    pub full_on: Option<u32>,
    /// In the order of their days; why the target is not reached stands last.
    pub warnings: Vec<Warning>,
}

impl Plan {
    fn sum(&self, of: impl Fn(&PlanDay) -> u64) -> u64 {
        self.days.iter().map(of).fold(0, u64::saturating_add)
    }

    pub fn new_total(&self) -> u64 {
        self.sum(|day| day.new)
    }

    pub fn legacy_total(&self) -> u64 {
        self.sum(|day| day.legacy)
    }

    pub fn offered_total(&self) -> u64 {
        self.sum(|day| day.offered)
    }

    /// The last day as a sending day: one more than the days that counted before it.
    pub fn sending_day(&self) -> u32 {
        let before = &self.days[..self.days.len() - 1];
        before.iter().filter(|day| day.counted).count() as u32 + 1
    }

    /// The first calendar day, from 1, whose limit is at least `recipients`.
    pub fn first_day_of(&self, recipients: u64) -> Option<u32> {
        self.days.iter().find(|day| day.limit >= recipients).map(|day| day.number)
    }
}

/// Something in a plan that the operator should know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warning {
    /// More than [`STEP_ADVISED`] x the mail really sent before leaves on this day, and no `max_step` holds it.
    Step { day: PlanDay, before: u64, allowed: u64 },
    /// `max_step` keeps the limit below the curve, first on this day.
    Capped { day: PlanDay, days: u32, max_step: f64 },
    /// Less than `min_used` of the limit is sent, first on this day.
    Repeats { day: PlanDay, days: u32, min_used: f64 },
    /// More mail waits than a day may send: most of all at the end of this day.
    Waiting { day: PlanDay, recipients: u64 },
    /// The target is less than the busiest day; the real ramp goes on beyond it.
    DemandAbove { demand: u64, target: u64 },
    /// The target is not reached, because no day has so much mail; but nothing overflows any more.
    Ample { day: PlanDay },
    /// The target is not reached, because the curve ends below it.
    CurveEnds { highest: u64 },
    /// The target is not reached in the days planned; the limit was last raised on this day.
    NotReached { day: PlanDay, days: u32 },
}

impl Warning {
    /// The word for scripts.
    pub const fn name(&self) -> &'static str {
        match self {
            Warning::Step { .. } => "step",
            Warning::Capped { .. } => "capped",
            Warning::Repeats { .. } => "repeats",
            Warning::Waiting { .. } => "waiting",
            Warning::DemandAbove { .. } => "demand-above-target",
            Warning::Ample { .. } => "ample",
            Warning::CurveEnds { .. } => "curve-ends",
            Warning::NotReached { .. } => "not-reached",
        }
    }

    /// The day it is about, if it is about one.
    pub fn day(&self) -> Option<PlanDay> {
        match self {
            Warning::Step { day, .. }
            | Warning::Capped { day, .. }
            | Warning::Repeats { day, .. }
            | Warning::Waiting { day, .. }
            | Warning::Ample { day }
            | Warning::NotReached { day, .. } => Some(*day),
            Warning::DemandAbove { .. } | Warning::CurveEnds { .. } => None,
        }
    }
}

/// Lives through the days. The rules must pass [`Rules::check`]; without a start date nothing would leave, so one day
/// with a limit of 0 comes out.
pub fn plan(case: &Case<'_>) -> Plan {
    let (rules, target) = (case.rules, case.rules.target);
    let first = rules.start.unwrap_or_default();
    let mut lane = LaneRecord::unmetered(LaneId::TOTAL);
    let mut history: Vec<DayRecord> = Vec::new();
    let mut plan = Plan { days: Vec::new(), full_on: None, warnings: Vec::new() };
    let mut waiting = 0u64;
    for number in 1..=case.days_max.clamp(1, DAYS_MAX) {
        let today = Day(first.0.saturating_add(number as i32 - 1));
        lane = rules.day_boundary(&Boundary {
            lane: &lane,
            history: &history,
            set_day: None,
            asked: super::StageStep::None,
            share: 1.0,
            total_complete: false,
            today,
        });
        let limit = lane.limit.unwrap_or(u64::MAX);
        let offered = case.demand.on(today);
        let (today_legacy, sent);
        if case.holds {
            sent = limit.min(target).min(waiting.saturating_add(offered));
            today_legacy = 0;
            waiting = waiting.saturating_add(offered) - sent;
        } else {
            sent = limit.min(target).min(offered);
            today_legacy = offered - sent;
        }
        let day = PlanDay {
            number,
            day: today,
            stage: lane.stage,
            limit: limit.min(target),
            curve: (rules.curve.at(lane.stage) as u64).min(target),
            offered,
            new: sent,
            legacy: today_legacy,
            waiting,
            counted: rules.counts(sent, lane.limit),
        };
        warn_of_step(rules, &history, day, &mut plan.warnings);
        plan.days.push(day);
        if limit >= target {
            plan.full_on = Some(number);
            break;
        }
        history.push(DayRecord {
            day: today,
            limit: lane.limit,
            stage: lane.stage,
            offered,
            reserved: sent,
            sent,
            legacy: today_legacy,
            braked: false,
        });
        if history.len() > FORGOTTEN_AFTER_DAYS as usize {
            history.remove(0);
        }
    }
    warn(case, &lane, &mut plan);
    plan
}

fn warn_of_step(rules: &Rules, history: &[DayRecord], day: PlanDay, warnings: &mut Vec<Warning>) {
    let before = best(history.iter().map(|record| (record.day, record.sent)), day.day);
    let allowed = (STEP_ADVISED * before).max(rules.curve.first());
    if rules.max_step == 0.0 && day.new as f64 > allowed {
        warnings.push(Warning::Step { day, before: before as u64, allowed: allowed as u64 });
    }
}

/// What is to be said of the days together.
fn warn(case: &Case<'_>, last: &LaneRecord, plan: &mut Plan) {
    let (rules, target) = (case.rules, case.rules.target);
    // Once nothing overflows any more, a limit that stands still costs nothing.
    let over = plan.days.iter().rposition(|day| day.legacy > 0 || day.waiting > 0).map_or(0, |last| last + 1);
    let some = |is: &dyn Fn(&&PlanDay) -> bool| {
        let mut days = plan.days[..over].iter().filter(is);
        days.next().map(|day| (*day, 1 + days.count() as u32))
    };
    let mut found = Vec::new();
    if let Some((day, days)) = some(&|day| day.limit < day.curve && rules.max_step > 0.0) {
        found.push(Warning::Capped { day, days, max_step: rules.max_step });
    }
    if let Some((day, days)) = some(&|day| !day.counted) {
        found.push(Warning::Repeats { day, days, min_used: rules.min_used });
    }
    if let Some(day) = plan.days.iter().max_by_key(|day| (day.waiting, std::cmp::Reverse(day.number)))
        && day.waiting > 0
    {
        found.push(Warning::Waiting { day: *day, recipients: day.waiting });
    }
    let demand = case.demand.weekday.max(case.demand.weekend);
    let reason = if plan.full_on.is_none() { why_not(rules, last, plan, demand, over) } else { None };
    plan.warnings.extend(found);
    plan.warnings.sort_by_key(|warning| warning.day().map_or(u32::MAX, |day| day.number));
    if demand > target {
        plan.warnings.push(Warning::DemandAbove { demand, target });
    }
    plan.warnings.extend(reason);
}

/// Why the target is not reached. Nothing goes over the limit on the days from index `over` on.
fn why_not(rules: &Rules, last: &LaneRecord, plan: &Plan, demand: u64, over: usize) -> Option<Warning> {
    let highest = plan.days.iter().map(|day| day.limit).max()?;
    let raised = *plan.days.iter().find(|day| day.limit == highest)?;
    let days = plan.days.len() as u32;
    if ends_below(&rules.curve, rules.target) && raised.limit >= raised.curve {
        return Some(Warning::CurveEnds { highest });
    }
    if rules.state(last, demand, false, Refusals::default()) == State::Ample {
        return plan.days.get(over).map(|day| Warning::Ample { day: *day });
    }
    Some(Warning::NotReached { day: raised, days })
}

fn ends_below(curve: &Curve, target: u64) -> bool {
    curve.highest().is_some_and(|highest| highest < target as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Presets;
    use crate::policy::calendar::day_of_date;
    use jiff::civil::date;

    /// A Monday.
    fn rules() -> Rules {
        Rules { target: 12_000, start: Some(day_of_date(date(2026, 3, 2))), ..Rules::default() }
    }

    const WEEKS: Demand = Demand { weekday: 12_000, weekend: 4_800 };

    fn steady(recipients: u64) -> Demand {
        Demand { weekday: recipients, weekend: recipients }
    }

    fn planned(rules: &Rules, demand: Demand) -> Plan {
        plan(&Case { rules, demand, holds: false, days_max: 120 })
    }

    #[test]
    fn weeks_with_quiet_weekends_give_the_documented_totals() {
        let uncapped = planned(&Rules { max_step: 0.0, ..rules() }, WEEKS);
        assert_eq!((uncapped.new_total(), uncapped.legacy_total()), (44_200, 119_000));
        assert_eq!((uncapped.full_on, uncapped.sending_day()), (Some(16), 15));
        let limits: Vec<u64> = uncapped.days.iter().map(|day| day.limit).collect();
        let expect = [50, 75, 112, 168, 253, 379, 569, 854, 1_281, 1_922, 2_883, 4_324, 6_487, 9_730, 9_730, 12_000];
        assert_eq!(limits, expect);
        assert_eq!(uncapped.days[15].limit, 12_000, "clipped at the target");
        let repeats: Vec<u32> = uncapped.days[..15].iter().filter(|day| !day.counted).map(|day| day.number).collect();
        assert_eq!(repeats, [14], "74 % of day 13 is used, 49 % of day 14");
        let [Warning::Repeats { day: repeated, days: 1, .. }, Warning::Step { day, before: 4_800, allowed: 9_600 }] =
            uncapped.warnings[..]
        else {
            panic!("{:?}", uncapped.warnings)
        };
        assert_eq!((repeated.number, day.number, day.new), (14, 15, 9_730));

        let capped = planned(&rules(), WEEKS);
        assert_eq!((capped.new_total(), capped.legacy_total(), capped.full_on), (44_070, 119_130, Some(16)));
        assert_eq!((capped.days[13].limit, capped.days[14].limit), (9_600, 9_600));
        assert!(capped.days[13].counted, "4,800 is half of 9,600");
        let names: Vec<&str> = capped.warnings.iter().map(Warning::name).collect();
        assert_eq!(names, ["capped"]);
    }

    #[test]
    fn every_day_s_mail_goes_somewhere() {
        for holds in [false, true] {
            let plan = plan(&Case { rules: &rules(), demand: WEEKS, holds, days_max: 120 });
            let mut waiting = 0;
            for day in &plan.days {
                assert_eq!(waiting + day.offered, day.new + day.legacy + day.waiting, "{day:?}");
                assert!(day.new <= day.limit && (holds || day.waiting == 0), "{day:?}");
                waiting = day.waiting;
            }
            assert_eq!(plan.offered_total(), plan.new_total() + plan.legacy_total() + waiting);
        }
    }

    #[test]
    fn without_legacy_all_of_the_mail_waits_its_turn() {
        let plan = plan(&Case { rules: &rules(), demand: steady(12_000), holds: true, days_max: 120 });
        assert_eq!((plan.full_on, plan.legacy_total()), (Some(15), 0));
        let warning = plan.warnings.iter().find(|warning| warning.name() == "waiting").expect("mail waits");
        assert_eq!(warning.day().map(|day| day.number), Some(14), "on day 15 as much leaves as comes");
    }

    /// Days on which steady mail has the whole day's limit, as the simulator of the rules gives them.
    #[test]
    fn published_curves_take_as_long_as_the_simulated_ones() {
        for (name, target, expect) in [
            ("sendgrid-auto", 2_000, 6),
            ("sendgrid-auto", 12_000, 11),
            ("sendgrid-auto", 100_000, 17),
            ("braze-aggressive", 2_000, 7),
            ("braze-aggressive", 12_000, 9),
            ("braze-aggressive", 100_000, 12),
            ("braze-moderate", 12_000, 9),
            ("braze-moderate", 100_000, 14),
            ("braze-conservative", 2_000, 14),
            ("sparkpost", 2_000, 5),
            ("sparkpost", 12_000, 7),
            ("sparkpost", 100_000, 11),
            ("mailtrap", 12_000, 16),
            ("onesignal", 2_000, 10),
            ("standard", 12_000, 15),
            ("standard", 100_000, 20),
        ] {
            let curve = Presets::embedded().find(name).expect("an embedded curve").curve.clone();
            let plan = planned(&Rules { curve, target, ..rules() }, steady(target));
            assert_eq!(plan.full_on, Some(expect), "{name} to {target}");
            assert_eq!(plan.first_day_of(target), Some(expect));
        }
    }

    #[test]
    fn a_target_that_is_never_reached_says_why() {
        let name = |rules: &Rules, demand| {
            let plan = planned(rules, demand);
            assert_eq!((plan.full_on, plan.days.len()), (None, 120));
            plan.warnings.last().map(|warning| (warning.name(), warning.day().map_or(0, |day| day.number)))
        };
        assert_eq!(name(&rules(), steady(1_000)), Some(("ample", 9)), "854 on day 8, 1,281 on day 9");
        let ends = Rules { curve: Curve::new(vec![50.0, 60.0], 1.0).unwrap(), ..rules() };
        assert_eq!(name(&ends, steady(12_000)), Some(("curve-ends", 0)));
        let slow = Rules { curve: Curve::formula(50.0, 1.01).unwrap(), ..rules() };
        assert_eq!(name(&slow, steady(12_000)), Some(("not-reached", 120)));
        let more = planned(&rules(), steady(20_000));
        assert_eq!(more.warnings.last().map(Warning::name), Some("demand-above-target"));
        let last = more.days[more.days.len() - 1];
        assert_eq!((last.limit, last.new, last.legacy), (12_000, 12_000, 8_000), "a plan ends at its target");
    }

    #[test]
    fn random_plans_never_send_more_than_the_step_allows() {
        for seed in 0..200u64 {
            let mut random = fastrand::Rng::with_seed(seed);
            let demand = Demand { weekday: random.u64(1..100_000), weekend: random.u64(0..100_000) };
            let rules = Rules { max_step: 1.1 + 3.0 * random.f64(), target: random.u64(1..200_000), ..rules() };
            let plan = planned(&rules, demand);
            let mut most = 0;
            for day in &plan.days {
                let allowed = (rules.max_step * most as f64).max(rules.curve.first());
                assert!(day.new as f64 <= allowed, "seed {seed}: {day:?} after at most {most}");
                most = most.max(day.new);
            }
            assert!(plan.days.len() <= 120, "seed {seed}");
        }
    }

    #[test]
    fn weekdays_are_those_of_the_calendar() {
        for (date, name) in [(date(2026, 3, 2), "Mon"), (date(1970, 1, 1), "Thu"), (date(1969, 12, 28), "Sun")] {
            assert_eq!(weekday_name(day_of_date(date)), name);
        }
    }
}
