//! The day patterns of the oracle that have several lanes or streams, through the spool.
//!
//! Those of one lane and one stream are in `tests/warmup_simulation.rs`; `tests/warmup_vectors` has all of them for the rules
//! alone. The oracle knows four lanes, the program eight: what the oracle calls `other` is spread over the four smallest
//! and `other` as their first shares are, and compared as one.

use std::time::Duration;

use mailramp::message::{BrakeLevel, Day, DaySpan, LaneId, StageStep, StreamId};
use mailramp::policy::{Lanes, Overflow, Provider, Rules, StreamRules};
use serde_json::Value;

use super::operator::Act;
use super::places::{Domain, Places};
use super::traffic::Arrival;
use super::{HOUR, Outcome, Setup, World};

const START: Day = Day(20_513);
/// Between two looks at what has come.
const STEP_SECONDS: u64 = 60;
/// See the one of the other patterns.
const ROUNDING: Duration = Duration::from_millis(10);
/// Of one message.
const RECIPIENTS_MOST: u64 = 20;
/// Lanes that the oracle has as one.
const OTHERS: [(Provider, f64); 5] = [
    (Provider::Apple, 0.03),
    (Provider::GmxWebde, 0.02),
    (Provider::OrangeFr, 0.01),
    (Provider::Mimecast, 0.02),
    (Provider::Other, 0.14),
];

/// What one stream is sent.
struct Mail {
    rules: StreamRules,
    volume: fn(usize) -> u64,
    hours: (u64, u64),
    /// Parts for google, microsoft, yahoo and all others; empty: there is but one lane.
    mix: &'static [f64],
}

impl Mail {
    fn new(priority: u8, max_wait: Duration, hours: (u64, u64), volume: fn(usize) -> u64) -> Mail {
        let overflow = Overflow::HoldThenLegacy { max_wait: max_wait + ROUNDING };
        Mail { rules: StreamRules { priority, overflow, ..StreamRules::default() }, volume, hours, mix: &[] }
    }

    fn arrivals(&self, day: DaySpan, number: usize, stream: StreamId, into: &mut Vec<Arrival>) {
        let all = (self.volume)(number) as f64;
        for (domain, part) in self.parts() {
            let volume = (all * part).round() as u64;
            let (from, until) = self.hours;
            let steps = ((until - from) * 3600 / STEP_SECONDS).max(1);
            for n in 0..steps {
                let mut left = volume * (n + 1) / steps - volume * n / steps;
                let at = day.starts.after(HOUR * from as u32 + Duration::from_secs(STEP_SECONDS * n));
                while left > 0 {
                    let recipients = left.min(RECIPIENTS_MOST);
                    into.push(Arrival { domain: Some(domain), ..Arrival::new(at, stream, recipients as u32) });
                    left -= recipients;
                }
            }
        }
    }

    fn parts(&self) -> Vec<(Domain, f64)> {
        let [google, microsoft, yahoo, others] = *self.mix else { return vec![(0, 1.0)] };
        let sum: f64 = OTHERS.iter().map(|(_, part)| part).sum();
        let others = OTHERS.iter().enumerate().map(|(n, (_, part))| (3 + n as Domain, others * part / sum));
        [(0, google), (1, microsoft), (2, yahoo)].into_iter().chain(others).collect()
    }
}

const QUARTER: Duration = Duration::from_secs(900);
const MIX: &[f64] = &[0.46, 0.21, 0.08, 0.25];

fn pattern(id: &str) -> (u64, Vec<Mail>) {
    let all = |hours| Mail { mix: MIX, ..Mail::new(50, QUARTER, hours, |_| 12_000) };
    match id {
        "late-stream" => {
            let passwords = Mail::new(90, QUARTER, (0, 24), |_| 400);
            let digest = Mail::new(10, HOUR * 6, (6, 6), |day| if day >= 21 { 5200 } else { 0 });
            (12_000, vec![passwords, digest])
        }
        "providers" => (12_000, vec![all((0, 24))]),
        "brake" => (12_000, vec![all((8, 20))]),
        "new-mix" => {
            let b2b = Mail { mix: &[0.1, 0.8, 0.0, 0.1], ..Mail::new(50, QUARTER, (8, 20), |_| 1000) };
            let b2c = Mail::new(50, QUARTER, (8, 20), |day| if day >= 26 { 10_000 } else { 0 });
            (11_000, vec![b2b, Mail { mix: &[0.9, 0.02, 0.06, 0.02], ..b2c }])
        }
        other => panic!("the pattern {other} has one lane and one stream"),
    }
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().expect("a list").iter().map(|n| n.as_u64().expect("a whole number")).collect()
}

/// Lives through a pattern of the file; lists every value that is outside the tolerance.
fn deviations(id: &str) -> Vec<String> {
    let file: Value = serde_json::from_str(include_str!("../data/warmup-vectors.json")).expect("the oracle is JSON");
    let expect = file["days"].as_array().unwrap().iter().find(|p| p["id"] == id).expect("a pattern of the file");
    let (target, mail) = pattern(id);
    let rules = Rules { start: Some(START), target, ..Rules::default() };
    let mix = [(Provider::Google, 0.4), (Provider::Microsoft, 0.2), (Provider::Yahoo, 0.1)];
    let mix: Vec<_> = mix.into_iter().chain(OTHERS).collect();
    let has_lanes = expect.get("lanes").is_some();
    let places = Places::new(if has_lanes { Lanes::Auto } else { Lanes::Off }, &mix);
    let streams = mail.iter().map(|mail| mail.rules).collect();
    let mut world = World::new(Setup { places, ..Setup::new(rules, streams) });
    if id == "brake" {
        // Three whole days: gone before the first moment of the fourth.
        let lasts = Duration::from_secs(3 * 86_400 - 1) - HOUR;
        let lane = Provider::Google.lane();
        let on = Act::Brake { lane, level: BrakeLevel::Suspended, lasts, step: StageStep::None };
        world.plan(world.day(7).starts, on);
    }
    let days = numbers(&expect["limit"]).len();
    for number in 0..days {
        let day = world.day(number);
        let mut arrivals = Vec::new();
        for (stream, mail) in mail.iter().enumerate() {
            mail.arrivals(day, number + 1, StreamId(stream as u8), &mut arrivals);
        }
        arrivals.sort_by_key(|arrival| arrival.at);
        world.live(day, arrivals);
    }

    let mut off = Vec::new();
    let mut compare = |what: &str, lists: &Value, values: &dyn Fn(usize) -> Option<u64>, least: f64, part: f64| {
        for (i, expect) in numbers(lists).into_iter().enumerate() {
            // Complete: there is no limit any more, and the file goes on as if there were.
            let Some(actual) = values(i) else { continue };
            let around = (expect as f64 * part).max(least);
            if (actual as f64 - expect as f64).abs() > around {
                off.push(format!("{id} day {} {what}: {actual} instead of {expect}", i + 1));
            }
        }
    };
    // Each of the lanes that the oracle does not have is rounded by itself.
    let least = if has_lanes { 3.0 + OTHERS.len() as f64 - 1.0 } else { 3.0 };
    compare("limit", &expect["limit"], &|i| world.outcomes[i].limit, least, 0.01);
    compare("new", &expect["new"], &|i| Some(world.outcomes[i].new), least, 0.01);
    let lanes = |of: &[Provider]| of.iter().map(|one| one.lane()).collect::<Vec<LaneId>>();
    let others: Vec<Provider> = OTHERS.iter().map(|(provider, _)| *provider).collect();
    let groups = [
        ("google", lanes(&[Provider::Google])),
        ("microsoft", lanes(&[Provider::Microsoft])),
        ("yahoo", lanes(&[Provider::Yahoo])),
        ("other", lanes(&others)),
    ];
    for (name, lanes) in groups.iter().filter(|_| has_lanes) {
        let sum = |i: usize, value: fn(&Outcome) -> Option<u64>| {
            lanes.iter().map(|lane| world.lanes[i].get(lane).and_then(value)).sum::<Option<u64>>()
        };
        // Each lane is rounded by itself.
        let least = 3.0 + lanes.len() as f64 - 1.0;
        let expect = &expect["lanes"][name];
        compare(&format!("{name} limit"), &expect["limit"], &|i| sum(i, |day| day.limit), least, 0.01);
        compare(&format!("{name} new"), &expect["new"], &|i| sum(i, |day| Some(day.new)).or(Some(0)), least, 0.01);
    }
    let complete = world.outcomes.iter().position(|day| day.limit.is_none()).map(|i| i as u64 + 1);
    let expected = expect["complete_on_day"].as_u64().filter(|day| *day <= days as u64);
    if complete.is_some() != expected.is_some() || complete.unwrap_or(0).abs_diff(expected.unwrap_or(0)) > 1 {
        off.push(format!("{id} complete on day {complete:?} instead of {expected:?}"));
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
    };
}

patterns! {
    a_stream_that_comes_late_ramps_again: "late-stream",
    providers_ramp_side_by_side: "providers",
    a_braked_provider_steps_back_and_holds_no_other: "brake",
    a_stream_with_another_mix_ramps_its_own_provider: "new-mix",
}
