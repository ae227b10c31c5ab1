//! The warm-up rules against the oracle in `tests/data/warmup-vectors.json`.
//!
//! Every function case is asserted as it stands there. Every day pattern is lived through by `simulator` and compared
//! within the tolerance of the file; on the way the simulator checks the file's invariants by exact sliding windows.

mod simulator;

use std::fmt::Debug;

use mailramp::message::{Day, DaySpan, NANOS_PER_SECOND, SLOT_NANOS, Slot, Timestamp};
use mailramp::policy::allowance::{self, oldest_counted};
use mailramp::policy::stage::{auto_share, best};
use mailramp::policy::state::is_complete;
use mailramp::policy::{
    AtDeadline, Bounds, Curve, LaneView, OpenHours, Outlook, Pace, Rules, Step, StreamRules, admit,
};
use serde_json::Value;
use simulator::{START, Scenario, Simulation, Stream, waiting};

const DAY_SECONDS: i64 = 86_400;
/// Days over which the file gives the waits.
const WAITS_DAYS: usize = 60;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../data/warmup-vectors.json")).expect("the oracle is JSON")
}

/// The cases of one group, checked to be as many as the file had when this was written.
fn cases(group: &str, count: usize) -> Vec<Value> {
    let cases = vectors()["functions"][group].as_array().expect("a group of cases").clone();
    assert_eq!(cases.len(), count, "{group}");
    cases
}

fn number(case: &Value, key: &str) -> u64 {
    case[key].as_u64().unwrap_or_else(|| panic!("{key} in {case}"))
}

fn float(case: &Value, key: &str) -> f64 {
    case[key].as_f64().unwrap_or_else(|| panic!("{key} in {case}"))
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().expect("a list").iter().map(|n| n.as_u64().expect("a whole number")).collect()
}

fn floats(list: &Value) -> Vec<f64> {
    list.as_array().expect("a list").iter().map(|n| n.as_f64().expect("a number")).collect()
}

fn close(actual: f64, expect: f64, off: f64, case: &dyn Debug) {
    assert!((actual - expect).abs() <= off, "{actual} instead of {expect}: {case:?}");
}

#[test]
fn pace_has_the_depth_cap_and_spacing_of_the_oracle() {
    for case in cases("pace", 13) {
        let pace = Pace::of(number(&case, "limit"), float(&case, "hourly"), float(&case, "burst"));
        let expect = &case["expect"];
        let Some(pace) = pace else {
            assert!(expect.is_null(), "{case}");
            continue;
        };
        assert_eq!(pace.hour_cap(), number(expect, "hour_cap"), "{case}");
        assert_eq!(u64::from(pace.depth()), number(expect, "depth"), "{case}");
        assert_eq!(pace.hour_cap() - u64::from(pace.depth()) + 1, number(expect, "per_hour"), "{case}");
        assert_eq!(pace.spacing().as_nanos() as u64, number(expect, "spacing_ns"), "{case}");
    }
}

/// Days 1, 2, … with what was sent on them, and the day after.
fn sent_days(list: &Value) -> (Vec<(Day, u64)>, Day) {
    let days: Vec<(Day, u64)> = numbers(list).into_iter().zip(1..).map(|(sent, day)| (Day(day), sent)).collect();
    let today = Day(days.len() as i32 + 1);
    (days, today)
}

#[test]
fn the_memory_fades_as_the_oracle_says() {
    for case in cases("best", 9) {
        let (days, today) = sent_days(&case["sent_oldest_first"]);
        close(best(days, today), float(&case, "expect"), 0.001, &case);
    }
}

#[test]
fn the_next_day_has_the_stage_and_limit_of_the_oracle() {
    for case in cases("next_day", 12) {
        let (days, today) = sent_days(&case["sent"]);
        let last_braked = case["last_braked_day"].as_i64().map(|day| Day(day as i32));
        let since_brake = days.iter().copied().filter(|(day, _)| last_braked.is_none_or(|braked| *day > braked));
        let rules =
            Rules { curve: Curve::new(floats(&case["curve"]), float(&case, "growth")).unwrap(), ..Rules::default() };
        let next = rules.next_day(&Step {
            asked: mailramp::policy::StageStep::None,
            share: case["share_next"].as_f64().unwrap_or(float(&case, "share")),
            stage: number(&case, "stage") as u32,
            limit: Some(number(&case, "limit")),
            sent: days.last().unwrap().1,
            braked_run: number(&case, "braked_run") as u32,
            best: best(days.iter().copied(), today),
            floor: case["lane"].as_bool().unwrap_or(false).then(|| best(since_brake, today)),
        });
        assert_eq!(u64::from(next.stage), number(&case["expect"], "stage"), "{case}");
        assert_eq!(next.limit, number(&case["expect"], "limit"), "{case}");
    }
}

#[test]
fn automatic_shares_are_those_of_the_oracle() {
    for case in cases("auto_share", 4) {
        let offered = numbers(&case["offered_7d"]);
        let all = offered.iter().sum();
        let lanes = offered.iter().zip(floats(&case["prior"])).zip(floats(&case["expect"]));
        for ((offered, prior), expect) in lanes {
            close(auto_share(*offered, all, prior, float(&case, "first_stage")), expect, 1e-6, &case);
        }
    }
}

#[test]
fn the_reserve_is_that_of_the_oracle() {
    for case in cases("reserve", 6) {
        let day_left = (float(&case, "day_left") * DAY_SECONDS as f64) as i64;
        let reserve =
            allowance::reserve(number(&case, "expected_higher"), number(&case, "limit"), day_left, DAY_SECONDS);
        assert_eq!(reserve, number(&case, "expect"), "{case}");
    }
}

/// A lane on a day of 24 hours with nothing used and no bound but its limit.
fn open_lane(limit: u64) -> LaneView {
    LaneView {
        limit: Some(limit),
        closed: None,
        day: DaySpan {
            day: Day(1),
            starts: Timestamp::from_seconds(DAY_SECONDS),
            ends: Timestamp::from_seconds(2 * DAY_SECONDS),
        },
        open: OpenHours::ALWAYS,
        pace: None,
        arrival: Timestamp(0),
        reserved_today: 0,
        limit_24h: Some(limit),
        reserved_24h: 0,
        oldest_slot: None,
        expected_higher: 0,
        stream_share: None,
        stream_reserved_today: 0,
    }
}

#[test]
fn the_last_24_hours_leave_what_the_oracle_says() {
    for case in cases("rolling", 5) {
        let now = Slot(number(&case, "now_quarter") as i64).start();
        let limits = numbers(&case["limits_touched"]);
        let ledger = case["ledger"].as_object().unwrap();
        let slots = ledger.iter().map(|(slot, n)| (Slot(slot.parse().unwrap()), n.as_u64().unwrap()));
        let counted: Vec<(Slot, u64)> = slots.filter(|(slot, _)| *slot >= oldest_counted(now)).collect();
        let lane = LaneView {
            limit_24h: limits.iter().copied().max(),
            reserved_24h: counted.iter().map(|(_, n)| n).sum(),
            oldest_slot: counted.iter().map(|(slot, _)| *slot).min(),
            ..open_lane(*limits.last().unwrap())
        };
        assert_eq!(lane.bounds(now).left_24h, number(&case, "expect_left"), "{case}");
        if let Some(wake) = lane.wake(now) {
            assert_eq!(wake.at.0 - lane.oldest_slot.unwrap().start().0, 97 * SLOT_NANOS, "{case}");
        }
    }
}

#[test]
fn a_claim_is_granted_what_the_oracle_says() {
    for case in cases("claim", 6) {
        let bounds = |lane: &Value| Bounds {
            pace: number(lane, "pace"),
            day_left: number(lane, "day_left"),
            left_24h: number(lane, "left24"),
            reserve: number(lane, "reserve"),
            share_left: u64::MAX,
        };
        let share_left = case["stream_share_left"].as_u64().unwrap_or(u64::MAX);
        let lane = Bounds { share_left, ..bounds(&case["lane"]) };
        let granted = Bounds::grant(number(&case, "wanted"), &lane, &bounds(&case["total"]));
        assert_eq!(granted, number(&case, "expect_granted"), "{case}");
    }
}

#[test]
fn as_many_may_wait_as_the_oracle_says() {
    for case in cases("admit", 8) {
        let limit = number(&case, "limit");
        let lane = LaneView {
            pace: Rules::default().pace(Some(limit)),
            reserved_today: number(&case, "used_today"),
            expected_higher: number(&case, "expected_higher"),
            ..open_lane(limit)
        };
        assert_eq!(number(&case, "day_s") as i64, DAY_SECONDS);
        let now = Timestamp(lane.day.ends.0 - number(&case, "day_left_s") as i64 * NANOS_PER_SECOND);
        let arrival = Timestamp(now.0 + number(&case, "pace_backlog_s") as i64 * NANOS_PER_SECOND);
        let lane = LaneView { arrival, ..lane };
        let then = AtDeadline {
            limit_24h: Some(number(&case, "left24_at_deadline")),
            reserved_24h: 0,
            waiting_ahead: number(&case, "ahead"),
            stream_waiting: 0,
        };
        let outlook = Outlook { lane: &lane, then };
        let stream = waiting(50, number(&case, "max_wait_s"));
        let admission = admit(&stream, number(&case, "offered"), &outlook, &outlook, now);
        assert_eq!(admission.new, number(&case, "expect_wait"), "{case}");
    }
}

#[test]
fn a_lane_is_complete_when_the_oracle_says() {
    for case in cases("complete", 8) {
        let rules = Rules {
            target: number(&case, "target"),
            curve: Curve::formula(float(&case, "first_stage"), 1.5).unwrap(),
            ..Rules::default()
        };
        let is_total = case["lane"] == "total";
        let could = rules.could_complete(
            is_total,
            number(&case, "limit"),
            float(&case, "share"),
            number(&case, "peak_offered_7d"),
        );
        let in_a_row = if could { number(&case, "boundaries_in_a_row") as u32 } else { 0 };
        let complete = is_complete(is_total, in_a_row, case["total_complete"].as_bool().unwrap());
        assert_eq!(complete, case["expect"].as_bool().unwrap(), "{case}");
    }
}

/// One stream, standard curve, 15 minutes, target 12,000: what most patterns start from.
fn scenario(streams: Vec<Stream>, target: u64) -> Scenario {
    let rules = Rules { start: Some(START), target, ..Rules::default() };
    Scenario { rules, streams, odd_days: &[], providers: false, braked: &[], every_step: false }
}

const MIX: &[f64] = &[0.46, 0.21, 0.08, 0.25];
const BURSTS: &[(i64, i64)] = &[(6, 6), (10, 10), (14, 14), (18, 18)];

/// The pattern as the `traffic` text of the file describes it.
fn pattern(id: &str) -> Scenario {
    let twelve_thousand: fn(usize) -> u64 = |_| 12_000;
    let burst = |max_wait| Stream { rules: waiting(50, max_wait), ..Stream::even(twelve_thousand, &[(2, 2)]) };
    let one = |stream| scenario(vec![stream], 12_000);
    let with_curve = |curve: Curve, scenario: Scenario| {
        let rules = Rules { curve, ..scenario.rules.clone() };
        Scenario { rules, ..scenario }
    };
    match id {
        "steady" => one(Stream::even(twelve_thousand, &[(0, 24)])),
        "office" => one(Stream::even(twelve_thousand, &[(9, 17)])),
        "dst" => Scenario { odd_days: &[(7, 23), (13, 25)], ..one(Stream::even(twelve_thousand, &[(9, 17)])) },
        "cron-6h" => one(burst(6 * 3600)),
        "cron-4h" => one(burst(4 * 3600)),
        "cron-15m-stall" => one(burst(900)),
        "bursts-6h" => one(Stream { rules: waiting(50, 6 * 3600), ..Stream::even(twelve_thousand, BURSTS) }),
        "weekdays" => one(Stream::even(|day| if (day - 1) % 7 < 5 { 12_000 } else { 4800 }, &[(8, 18)])),
        "gap" => {
            scenario(vec![Stream::even(|day| if (21..=55).contains(&day) { 0 } else { 12_000 }, &[(9, 17)])], 50_000)
        }
        "tiny" => scenario(vec![Stream::even(|_| 100, &[(8, 20)])], 100),
        "huge" => scenario(vec![Stream::even(|_| 2_000_000, &[(0, 24)])], 2_000_000),
        "sparkpost" => {
            let curve = vec![
                200., 500., 1000., 2000., 5000., 10000., 20000., 40000., 50000., 75000., 100000., 150000., 200000.,
                250000., 325000., 400000., 500000., 600000., 750000., 1000000., 1250000., 1750000., 2000000., 3000000.,
                4250000., 5000000., 6000000., 7500000., 10000000.,
            ];
            let steady = scenario(vec![Stream::even(|_| 100_000, &[(0, 24)])], 100_000);
            with_curve(Curve::new(curve, 1.5).unwrap(), steady)
        }
        "braze-aggressive" => {
            let curve = vec![
                50., 100., 500., 1000., 5000., 10000., 20000., 40000., 70000., 100000., 150000., 250000., 400000.,
                600000., 1000000., 2000000., 4000000.,
            ];
            with_curve(Curve::new(curve, 2.0).unwrap(), one(Stream::even(twelve_thousand, &[(0, 24)])))
        }
        "campaign-6d" => {
            let campaign = Stream::even(|day| if day % 7 == 2 { 200_000 } else { 0 }, &[(9, 9)]);
            let campaign = Stream { rules: waiting(10, 6 * 86_400), ..campaign };
            let trickle = Stream { rules: waiting(80, 900), ..Stream::even(|_| 300, &[(0, 24)]) };
            scenario(vec![campaign, trickle], 200_000)
        }
        "late-stream" => {
            let passwords = Stream { rules: waiting(90, 900), ..Stream::even(|_| 400, &[(0, 24)]) };
            let digest = Stream::even(|day| if day >= 21 { 5200 } else { 0 }, &[(6, 6)]);
            let digest = Stream { rules: waiting(10, 6 * 3600), from_day: 21, ..digest };
            scenario(vec![passwords, digest], 12_000)
        }
        "providers" => {
            let stream = Stream { mix: MIX, ..Stream::even(twelve_thousand, &[(0, 24)]) };
            Scenario { providers: true, ..one(stream) }
        }
        "brake" => {
            let stream = Stream { mix: MIX, ..Stream::even(twelve_thousand, &[(8, 20)]) };
            Scenario { providers: true, braked: &[(0, 8), (0, 9), (0, 10)], ..one(stream) }
        }
        "new-mix" => {
            let b2b = Stream { mix: &[0.1, 0.8, 0.0, 0.1], ..Stream::even(|_| 1000, &[(8, 20)]) };
            let b2c = Stream::even(|day| if day >= 26 { 10_000 } else { 0 }, &[(8, 20)]);
            let b2c = Stream { mix: &[0.9, 0.02, 0.06, 0.02], from_day: 26, ..b2c };
            Scenario { providers: true, ..scenario(vec![b2b, b2c], 11_000) }
        }
        other => panic!("the oracle has a pattern {other} this test does not know"),
    }
}

/// Lives through a pattern of the file; lists every value that is outside the tolerance.
fn deviations(id: &str) -> Vec<String> {
    let file = vectors();
    let expect =
        file["days"].as_array().unwrap().iter().find(|p| p["id"] == id).expect("a pattern of the file").clone();
    let days = numbers(&expect["limit"]).len();
    let mut simulation = Simulation::new(pattern(id));
    let completes = !expect["complete_on_day"].is_null();
    simulation.run(if completes { days } else { days.max(WAITS_DAYS) });

    let mut off = Vec::new();
    let mut compare = |what: String, lists: &Value, actual: Vec<u64>, tolerance: &dyn Fn(usize, u64) -> f64| {
        for (i, (actual, expect)) in actual.into_iter().zip(numbers(lists)).enumerate() {
            if (actual as f64 - expect as f64).abs() > tolerance(i, expect) {
                off.push(format!("{id} day {} {what}: {actual} instead of {expect}", i + 1));
            }
        }
    };
    let total = simulation.outcomes(0).to_vec();
    let limits = numbers(&expect["limit"]);
    let exactly_used = |i: usize, new: u64| new == limits[i] && new == limits[i].min(total[i].offered);
    let around = |_: usize, n: u64| (n as f64 * 0.01).max(3.0);
    let new_around = |i: usize, n: u64| if exactly_used(i, n) { 0.0 } else { around(i, n) };
    let of_offered = |i: usize, _: u64| (total[i].offered as f64 * 0.01).max(0.0);
    compare("limit".into(), &expect["limit"], total.iter().map(|d| d.limit).collect(), &around);
    compare("new".into(), &expect["new"], total.iter().map(|d| d.new).collect(), &new_around);
    let at_once = total.iter().map(|d| d.legacy_at_once).collect();
    compare("legacy at once".into(), &expect["legacy_at_once"], at_once, &of_offered);
    compare("legacy late".into(), &expect["legacy_late"], total.iter().map(|d| d.legacy_late).collect(), &of_offered);
    for (l, name) in ["google", "microsoft", "yahoo", "other"].iter().enumerate() {
        if let Some(lane) = expect["lanes"].get(name) {
            let outcomes = simulation.outcomes(l + 1);
            compare(format!("{name} limit"), &lane["limit"], outcomes.iter().map(|d| d.limit).collect(), &around);
            compare(format!("{name} new"), &lane["new"], outcomes.iter().map(|d| d.new).collect(), &around);
        }
    }
    let complete = (simulation.complete_on_day(), expect["complete_on_day"].as_u64().map(|day| day as usize));
    if complete.0.is_some() != complete.1.is_some() || complete.0.unwrap_or(0).abs_diff(complete.1.unwrap_or(0)) > 1 {
        off.push(format!("{id} complete on day {:?} instead of {:?}", complete.0, complete.1));
    }
    let waits = simulation.waits(WAITS_DAYS);
    for (name, actual) in ["p50", "p99", "max"].into_iter().zip(waits) {
        let expect = number(&expect["wait_s_60d"], name);
        if actual.abs_diff(expect) > 60 {
            off.push(format!("{id} wait {name}: {actual} s instead of {expect} s"));
        }
    }
    if id == "cron-15m-stall" {
        assert!(simulation.stalled_days() >= 2, "a ramp that cannot start must say so");
    }
    off
}

macro_rules! patterns {
    ($($name:ident: $id:literal,)*) => {
        $(#[test]
        fn $name() {
            let off = deviations($id);
            assert!(off.is_empty(), "{} values outside the tolerance:\n{}", off.len(), off.join("\n"));
        })*

        #[test]
        fn no_pattern_of_the_oracle_is_left_out() {
            let mut ids: Vec<String> =
                vectors()["days"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap().into()).collect();
            let mut covered = vec![$($id.to_string()),*];
            ids.sort();
            covered.sort();
            assert_eq!(ids, covered);
        }
    };
}

patterns! {
    steady_mail_ramps_as_the_curve_says: "steady",
    office_hours_use_the_whole_limit: "office",
    a_nightly_burst_that_may_wait_six_hours_ramps_at_full_speed: "cron-6h",
    a_nightly_burst_that_may_wait_four_hours_ramps: "cron-4h",
    a_nightly_burst_that_may_wait_a_quarter_hour_stalls_and_says_so: "cron-15m-stall",
    four_bursts_a_day_ramp: "bursts-6h",
    weekends_slow_the_ramp_and_no_more: "weekdays",
    a_weekly_campaign_waits_for_days_and_ramps: "campaign-6d",
    tiny_volumes_ramp: "tiny",
    huge_volumes_ramp: "huge",
    a_published_curve_with_large_steps_is_held_to_twice_a_day: "sparkpost",
    another_published_curve_is_held_to_twice_a_day: "braze-aggressive",
    days_of_23_and_25_hours_change_nothing: "dst",
    five_idle_weeks_forget_the_ramp: "gap",
    a_stream_that_comes_late_ramps_again: "late-stream",
    providers_ramp_side_by_side: "providers",
    a_braked_provider_steps_back_and_holds_no_other: "brake",
    a_stream_with_another_mix_ramps_its_own_provider: "new-mix",
}

#[test]
fn skipping_steps_at_which_nothing_can_happen_changes_nothing() {
    for id in ["cron-4h", "tiny"] {
        let live = |every_step| {
            let mut simulation = Simulation::new(Scenario { every_step, ..pattern(id) });
            simulation.run(12);
            (simulation.outcomes(0).to_vec(), simulation.waits(12))
        };
        assert_eq!(live(true), live(false), "{id}");
    }
}

/// The last resort of the configuration is the stream the patterns use.
#[test]
fn the_patterns_use_the_default_stream() {
    assert_eq!(waiting(50, 900), StreamRules::default());
}
