//! Sixty days of warm-up in a moment: the real policy, gate, schedule and spool, driven by a clock of their own.
//!
//! The rules alone are held against the oracle in `tests/warmup_vectors`; here the same day patterns go through the
//! spool, and random mail meets faults, restarts and days of 23 and 25 hours. What was promised is checked after every
//! event. A failing run prints its seed; `MAILRAMP_SIMULATION_SEED=<seed>` runs that one alone.

mod simulation;

use std::time::Duration;

use jiff::civil::date;
use jiff::tz::TimeZone;
use mailramp::message::{Day, NANOS_PER_SECOND, Route, Timestamp};
use mailramp::policy::calendar::day_of_date;
use mailramp::policy::{Calendar, Curve, Overflow, Rules, StallReason, State, StreamRoute, StreamRules};
use serde_json::Value;
use simulation::hop::Hop;
use simulation::scenario::Scenario;
use simulation::traffic::{self, Arrival, Mix};
use simulation::{HOUR, Outcome, Setup, World};

/// The first of March, of a year that is no leap year.
const START: Day = Day(20_513);
/// Without optimisation a ramp takes twenty times as long, so two must do.
const SEEDS: u64 = if cfg!(debug_assertions) { 1 } else { 6 };
/// Evenings before a smaller limit. Few show anything: number 34 opens the hour when the pace forgets what it owes.
const EVENINGS: std::ops::Range<u64> = 30..40;
/// The last resort of the default configuration, with another wait.
fn waiting(max_wait: Duration) -> StreamRules {
    StreamRules { overflow: Overflow::HoldThenLegacy { max_wait }, ..StreamRules::default() }
}

/// Says the seed of a run that failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was MAILRAMP_SIMULATION_SEED={}", self.0);
        }
    }
}

fn each_seed(run: impl Fn(u64)) {
    let only = std::env::var("MAILRAMP_SIMULATION_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    for seed in only.map_or(1..=SEEDS, |seed: u64| seed..=seed) {
        let _says = Seed(seed);
        run(seed);
    }
}

// --- random mail, faults, restarts, days of 23 and 25 hours -----------------------------------------------------------

/// Without optimisation they take a minute.
const DAYS: usize = if cfg!(debug_assertions) { 12 } else { 60 };
/// There is more mail every day.
const MESSAGES: u64 = if cfg!(debug_assertions) { 12_000 } else { 100_000 };

/// A ramp whose settings the seed picks. Every zone changes its clocks within the sixty days.
fn random_setup(seed: u64) -> Setup {
    let mut random = fastrand::Rng::with_seed(seed);
    let zones = [
        ("Europe/Berlin", date(2026, 3, 1)),
        ("Europe/Berlin", date(2026, 9, 20)),
        ("Australia/Lord_Howe", date(2026, 3, 10)), // by half an hour
        ("America/New_York", date(2026, 2, 20)),
    ];
    let (zone, start) = zones[seed as usize % zones.len()];
    let pick = |random: &mut fastrand::Rng, values: &[f64]| values[random.usize(..values.len())];
    let hourly = pick(&mut random, &[0.1, 0.2, 0.2, 0.3, 1.0]);
    let window = if hourly >= 0.2 && random.u8(..4) == 0 { "07:30-21:00" } else { "00:00-24:00" };
    let rules = Rules {
        curve: Curve::formula(pick(&mut random, &[20.0, 50.0, 200.0]), pick(&mut random, &[1.15, 1.3, 1.5])).unwrap(),
        target: if random.bool() { 3_000 } else { 1_000_000 },
        min_used: pick(&mut random, &[0.3, 0.5, 0.7]),
        max_step: pick(&mut random, &[1.5, 2.0, 3.0, 0.0]),
        hourly,
        burst: if hourly == 1.0 { 1.0 } else { pick(&mut random, &[0.02, 0.02, 0.05, 0.01]) },
        window: window.parse().unwrap(),
        start: Some(day_of_date(start)),
        calendar: Calendar::new(TimeZone::get(zone).unwrap()),
        ..Rules::default()
    };
    let stream = |priority, hours: u32| StreamRules { priority, ..waiting(HOUR * hours) };
    let streams = vec![
        StreamRules { max_share: random.bool().then_some(0.7), ..StreamRules::default() },
        StreamRules { priority: 90, ..StreamRules::default() },
        stream(20, 6),
        if random.bool() { StreamRules { overflow: Overflow::Hold, ..stream(10, 0) } } else { stream(10, 72) },
        StreamRules { route: StreamRoute::Legacy, ..StreamRules::default() },
        StreamRules { route: StreamRoute::New, ..StreamRules::default() },
    ];
    rules.check(&[], &streams).expect("a ramp that can work");
    let together = Duration::from_secs(30);
    let legacy = Hop { rcpt_4xx: 0.005, slow: 0.001, connections: 60, together, ..Hop::FAULTY };
    Setup { seed, hops: [Hop::FAULTY, legacy], crashes_per_day: 1.0, ..Setup::new(rules, streams) }
}

/// So many days of it. All promises are checked on the way.
fn random_days(seed: u64, days: usize) -> World {
    let mut world = World::new(random_setup(seed));
    world.names = true;
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let mix = Mix { office: 650.0, growth: 1.015, passwords: 150.0, cron: 450.0, campaign: 500 };
    for number in 0..days {
        let day = world.day(number);
        if random.u8(..5) == 0 {
            let at = day.starts.after(HOUR * random.u32(..23));
            let length = Duration::from_secs(random.u64(60..3 * 3600));
            world.outage(at, if random.u8(..3) > 0 { Route::New } else { Route::Legacy }, length);
        }
        let arrivals = traffic::random_day(day, number, &mix, &mut random);
        world.live(day, arrivals);
    }
    world
}

#[test]
fn many_days_of_random_mail_with_faults_and_restarts_keep_every_promise() {
    each_seed(|seed| {
        let began = std::time::Instant::now();
        let world = random_days(seed, DAYS);
        let new: u64 = world.outcomes.iter().map(|day| day.new).sum();
        println!(
            "seed {seed}: {} messages, {} recipients, {new} by new, {} restarts, {} duplicates, at most {:?} of an \
             hour, a day and 24 hours were used, {:?}",
            world.messages,
            world.balance.accepted,
            world.crashes,
            world.book.duplicates,
            world.left.worst,
            began.elapsed(),
        );
        assert!(world.messages >= MESSAGES, "{} messages", world.messages);
        assert!(world.crashes > DAYS as u64 / 6, "{} restarts", world.crashes);
        assert!(DAYS < 60 || new * 5 > world.balance.accepted, "only {new} of {} left by new", world.balance.accepted);
        assert!(world.left.worst[2] > 0.8, "the limit was never near: {:?}", world.left.worst);
        assert!(world.book.copies_by(Route::New) * 2 > new, "the book is kept");
    });
}

#[test]
fn the_same_seed_is_the_same_life() {
    let summary = |world: World| (world.outcomes, world.messages, world.crashes, world.balance.relayed);
    assert_eq!(summary(random_days(3, 10)), summary(random_days(3, 10)));
}

// --- a thousand short ones: lanes, streams, brakes, operators ---------------------------------------------------------

/// Lived through in two threads.
const SHORT_LIVES: u64 = if cfg!(debug_assertions) { 24 } else { 1_000 };
const THREADS: u64 = 2;

/// What a number of lives came by.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    messages: u64,
    new: u64,
    crashes: u64,
    restores: u64,
    braked: u64,
    braked_days: u64,
    given_back: u64,
    orders: u64,
    worst: [f64; 3],
}

impl Seen {
    fn and(mut self, other: Seen) -> Seen {
        self.messages += other.messages;
        self.new += other.new;
        self.crashes += other.crashes;
        self.restores += other.restores;
        self.braked += other.braked;
        self.braked_days += other.braked_days;
        self.given_back += other.given_back;
        self.orders += other.orders;
        self.worst = std::array::from_fn(|n| self.worst[n].max(other.worst[n]));
        self
    }
}

fn short_life(seed: u64) -> Seen {
    let scenario = Scenario::random(seed);
    let _says = Says(seed, &scenario);
    let world = scenario.live();
    Seen {
        messages: world.messages,
        new: world.outcomes.iter().map(|day| day.new).sum(),
        crashes: world.crashes,
        restores: world.restores,
        braked: world.braked_by_replies,
        braked_days: world.braked_days,
        given_back: world.given_back,
        orders: world.orders_seen,
        worst: world.left.worst,
    }
}

/// Says the seed of a life that failed, and what it was made of.
struct Says<'a>(u64, &'a Scenario);

impl Drop for Says<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was MAILRAMP_SIMULATION_SEED={}: {:#?}", self.0, self.1);
        }
    }
}

#[test]
fn short_lives_with_lanes_streams_brakes_operators_and_deaths_keep_every_promise() {
    let only = std::env::var("MAILRAMP_SIMULATION_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    if let Some(seed) = only {
        println!("seed {seed}: {:?}", short_life(seed));
        return;
    }
    let began = std::time::Instant::now();
    let lives =
        |first| (first..=SHORT_LIVES).step_by(THREADS as usize).map(short_life).fold(Seen::default(), Seen::and);
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS).map(|first| scope.spawn(move || lives(first))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a life failed")).fold(Seen::default(), Seen::and)
    });
    println!("{SHORT_LIVES} lives in {:?}: {seen:?}", began.elapsed());
    let each = |number: u64| number >= SHORT_LIVES;
    assert!(
        each(seen.messages / 50) && each(seen.new / 10) && each(seen.crashes),
        "hardly anything happened: {seen:?}"
    );
    assert!(each(seen.given_back) && each(seen.orders) && seen.braked > 0, "hardly anything happened: {seen:?}");
    assert!(seen.restores > 0 && each(seen.braked_days), "hardly anything happened: {seen:?}");
    assert!(seen.worst.iter().all(|part| *part == 1.0), "no limit was ever used: {seen:?}");
}

// --- all mail in one burst --------------------------------------------------------------------------------------------

/// 12,000 recipients at 02:00 every day, with faults, for so many days.
fn nightly_burst(seed: u64, max_wait: Duration, days: usize) -> World {
    let rules = Rules { start: Some(START), target: 12_000, ..Rules::default() };
    let hop = Hop { connections: 40, rcpt_5xx: 0.0, ..Hop::FAULTY };
    let hops = [hop.clone(), hop];
    let mut world =
        World::new(Setup { seed, hops, crashes_per_day: 0.2, ..Setup::new(rules, vec![waiting(max_wait)]) });
    for number in 0..days {
        let day = world.day(number);
        let at = day.starts.after(HOUR * 2);
        let arrivals = (0..400).map(|_| Arrival::new(at, simulation::ONLY, 30)).collect();
        world.live(day, arrivals);
    }
    world
}

#[test]
fn all_mail_in_one_burst_reaches_the_target_when_it_may_wait_six_hours() {
    each_seed(|seed| {
        let world = nightly_burst(seed, HOUR * 6, 26);
        let reached = world.outcomes.iter().position(|day| day.new >= 11_500);
        let limits: Vec<_> = world.outcomes.iter().map(|day| (day.limit, day.new)).collect();
        assert!(reached.is_some_and(|day| day < 20), "seed {seed}: {limits:?}");
        assert_eq!(world.state(), State::Complete, "seed {seed}: {limits:?}");
    });
}

#[test]
fn all_mail_in_one_burst_stalls_and_says_so_when_it_may_wait_a_quarter_hour() {
    each_seed(|seed| {
        let world = nightly_burst(seed, HOUR / 4, 10);
        assert!(world.outcomes.iter().all(|day| day.limit == Some(50) && day.new < 25), "{:?}", world.outcomes);
        // Two days in a row; one that the process slept through has nothing on offer.
        let history = &world.total().history;
        let offered = history.iter().rev().take(2).all(|day| day.offered >= 50);
        let expect = if offered { State::Stalled(StallReason::WaitTooShort) } else { State::Ramping };
        assert_eq!(world.state(), expect, "{history:?}");
        assert!(history.iter().filter(|day| day.offered > 0).count() >= 5, "hardly a day was offered mail");
    });
}

// --- what was found by it ---------------------------------------------------------------------------------------------

/// One stream that holds its mail, 2,000 recipients at 02:00 of the first day, and nothing after that.
fn one_campaign(days: usize) -> World {
    let rules = Rules { start: Some(START), target: 12_000, ..Rules::default() };
    let streams = vec![StreamRules { overflow: Overflow::Hold, ..StreamRules::default() }];
    let mut world = World::new(Setup::new(rules, streams));
    for number in 0..days {
        let day = world.day(number);
        world.live(day, traffic::even(day, if number == 0 { 2_000 } else { 0 }, &[(2, 2)], STEP));
    }
    world
}

#[test]
fn what_waits_goes_on_at_midnight_and_not_when_yesterdays_first_quarter_hour_is_forgotten() {
    let world = one_campaign(8);
    let new: Vec<_> = world.outcomes.iter().map(|day| day.new).collect();
    assert_eq!(new[..6], [50, 75, 112, 168, 253, 379]);
}

/// A limit that stands still at 50, mail for all of it, no pace, and transactions of up to twenty minutes.
fn slow_transactions(seed: u64) -> World {
    let curve = Curve::formula(50.0, 1.0).unwrap();
    let rules = Rules { start: Some(START), target: 12_000, curve, hourly: 1.0, burst: 1.0, ..Rules::default() };
    let streams = vec![StreamRules { overflow: Overflow::Hold, ..StreamRules::default() }];
    let hop = Hop { slow: 1.0, connections: 100, ..Hop::FAULTY };
    let mut world =
        World::new(Setup { seed, hops: [hop.clone(), hop], crashes_per_day: 0.5, ..Setup::new(rules, streams) });
    for number in 0..30 {
        let day = world.day(number);
        world.live(day, traffic::even(day, 100, &[(1, 23)], STEP));
    }
    world
}

#[test]
fn a_final_dot_counts_when_it_leaves_and_not_when_its_token_was_taken() {
    each_seed(|seed| {
        let world = slow_transactions(seed);
        assert!(world.left.worst[2] == 1.0, "the limit was not used: {:?}", world.left.worst);
    });
}

/// 400 sent on the second day, and two idle weeks in which the memory of it begins to fade; then much mail late in an evening after which
/// the limit is a little smaller than before.
fn evening_before_a_smaller_limit(seed: u64) -> World {
    let mut random = fastrand::Rng::with_seed(seed);
    let (hourly, burst) = (0.06 + 0.3 * random.f64(), 0.3 * random.f64() + 0.01);
    let curve = Curve::new(vec![200.0, 600.0], 1.0).unwrap();
    let rules = Rules { start: Some(START), target: 12_000, curve, hourly, burst, ..Rules::default() };
    let streams = vec![StreamRules { overflow: Overflow::Hold, ..StreamRules::default() }];
    let mut world = World::new(Setup { seed, ..Setup::new(rules, streams) });
    for number in 0..17 {
        let day = world.day(number);
        let at = Timestamp(day.ends.0 - random.i64(60..7200) * NANOS_PER_SECOND);
        let messages = match number {
            0 | 1 => traffic::even(day, 200 * (number as u64 + 1), &[(0, 24)], HOUR),
            15 => vec![Arrival::new(at, simulation::ONLY, 100); 20],
            _ => Vec::new(),
        };
        world.live(day, messages);
    }
    world
}

#[test]
fn a_smaller_limit_does_not_open_the_hour_at_midnight() {
    let mut smaller = 0;
    for seed in EVENINGS {
        let _says = Seed(seed);
        let world = evening_before_a_smaller_limit(seed);
        let [before, after] = [15, 16].map(|day: usize| world.outcomes[day].limit);
        smaller += u32::from(after < before);
    }
    assert!(smaller > 5, "only {smaller} limits fell");
}

// --- the day patterns of the oracle, through the spool ----------------------------------------------------------------

/// A pattern of the file: its rules, and what comes on day 1, 2, …
struct Pattern {
    rules: Rules,
    max_wait: Duration,
    volume: fn(usize) -> u64,
    hours: &'static [(u64, u64)],
}

/// Between two messages of even mail.
const STEP: Duration = Duration::from_secs(120);

fn pattern(id: &str) -> Pattern {
    let rules = Rules { start: Some(START), target: 12_000, ..Rules::default() };
    let curve = |stages: Vec<f64>, growth| Curve::new(stages, growth).unwrap();
    let steady = Pattern { rules, max_wait: HOUR / 4, volume: |_| 12_000, hours: &[(0, 24)] };
    let with = |target: u64, pattern: Pattern| Pattern { rules: Rules { target, ..pattern.rules }, ..pattern };
    let burst = |hours: u32, steady| Pattern { max_wait: HOUR * hours, hours: &[(2, 2)], ..steady };
    match id {
        "steady" => steady,
        "office" => Pattern { hours: &[(9, 17)], ..steady },
        "cron-6h" => burst(6, steady),
        "cron-4h" => burst(4, steady),
        "cron-15m-stall" => Pattern { hours: &[(2, 2)], ..steady },
        "bursts-6h" => Pattern { max_wait: HOUR * 6, hours: &[(6, 6), (10, 10), (14, 14), (18, 18)], ..steady },
        "weekdays" => {
            let volume = |day| if (day - 1) % 7 < 5 { 12_000 } else { 4800 };
            Pattern { volume, hours: &[(8, 18)], ..steady }
        }
        "tiny" => with(100, Pattern { volume: |_| 100, hours: &[(8, 20)], ..steady }),
        "gap" => {
            let volume = |day| if (21..=55).contains(&day) { 0 } else { 12_000 };
            with(50_000, Pattern { volume, hours: &[(9, 17)], ..steady })
        }
        "dst" => {
            // Summer time for six days: from the seventh, which has 23 hours, to the thirteenth, which has 25.
            let zone = TimeZone::posix("STD0DST,J66/2,J72/3").unwrap();
            let rules = Rules { calendar: Calendar::new(zone), ..steady.rules };
            Pattern { rules, hours: &[(9, 17)], ..steady }
        }
        "sparkpost" => {
            let stages = vec![
                200., 500., 1000., 2000., 5000., 10000., 20000., 40000., 50000., 75000., 100000., 150000., 200000.,
                250000., 325000., 400000., 500000., 600000., 750000., 1000000., 1250000., 1750000., 2000000., 3000000.,
                4250000., 5000000., 6000000., 7500000., 10000000.,
            ];
            let rules = Rules { curve: curve(stages, 1.5), ..steady.rules };
            with(100_000, Pattern { rules, volume: |_| 100_000, ..steady })
        }
        "braze-aggressive" => {
            let stages = vec![
                50., 100., 500., 1000., 5000., 10000., 20000., 40000., 70000., 100000., 150000., 250000., 400000.,
                600000., 1000000., 2000000., 4000000.,
            ];
            Pattern { rules: Rules { curve: curve(stages, 2.0), ..steady.rules }, ..steady }
        }
        "huge" => with(2_000_000, Pattern { volume: |_| 2_000_000, ..steady }),
        other => panic!("the pattern {other} is not for one lane and one stream"),
    }
}

/// Tokens come some nanoseconds later than the rate says, so a wait of whole hours misses the last one. The file's steps
/// of 10 seconds do not see that; here one recipient less each day would add up, since the ramp grows by what was sent.
const ROUNDING: Duration = Duration::from_millis(10);
/// Days of `huge` that are lived through; from then on more mail would be moved than a test has time for.
const HUGE_DAYS: usize = 19;
const HUGE_VOLUME: u64 = 100_000;

/// Lives through a pattern of the file; lists every value that is outside the tolerance.
fn deviations(id: &str) -> Vec<String> {
    let file: Value = serde_json::from_str(include_str!("data/warmup-vectors.json")).expect("the oracle is JSON");
    let expect = file["days"].as_array().unwrap().iter().find(|p| p["id"] == id).expect("a pattern of the file");
    let numbers = |key: &str| -> Vec<u64> {
        expect[key].as_array().expect("a list").iter().map(|n| n.as_u64().expect("a whole number")).collect()
    };
    let mut pattern = pattern(id);
    let mut days = numbers("limit").len();
    let mut too_much = 0;
    if id == "huge" {
        (pattern.volume, days, too_much) = (|_| HUGE_VOLUME, HUGE_DAYS, 2_000_000 - HUGE_VOLUME);
    }
    let Pattern { rules, max_wait, volume, hours } = pattern;
    let mut world = World::new(Setup::new(rules, vec![waiting(max_wait + ROUNDING)]));
    for number in 0..days {
        let day = world.day(number);
        world.live(day, traffic::even(day, volume(number + 1), hours, STEP));
    }

    let mut off = Vec::new();
    let limits = numbers("limit");
    let mut compare = |what: &str, value: fn(&Outcome) -> Option<u64>, tolerance: &dyn Fn(usize, u64) -> f64| {
        let pairs = world.outcomes.iter().zip(numbers(&what.replace(' ', "_"))).enumerate();
        for (i, (outcome, expect)) in pairs {
            // Complete: there is no limit any more, and the file goes on as if there were.
            let Some(actual) = value(outcome) else { continue };
            if (actual as f64 - expect as f64).abs() > tolerance(i, expect) {
                off.push(format!("{id} day {} {what}: {actual} instead of {expect}", i + 1));
            }
        }
    };
    let around = |_: usize, n: u64| (n as f64 * 0.01).max(3.0);
    let offered = |i: usize| volume(i + 1);
    let new_around = |i: usize, n: u64| if n == limits[i] && n <= offered(i) { 0.0 } else { around(i, n) };
    compare("limit", |day| day.limit, &around);
    compare("new", |day| Some(day.new), &new_around);
    if too_much == 0 {
        let of_offered = |i: usize, _: u64| offered(i) as f64 * 0.01;
        compare("legacy at once", |day| Some(day.legacy_at_once), &of_offered);
        compare("legacy late", |day| Some(day.legacy_late), &of_offered);
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
    steady_mail_ramps_as_the_curve_says: "steady",
    office_hours_use_the_whole_limit: "office",
    a_nightly_burst_that_may_wait_six_hours_ramps_at_full_speed: "cron-6h",
    a_nightly_burst_that_may_wait_four_hours_ramps: "cron-4h",
    a_nightly_burst_that_may_wait_a_quarter_hour_stalls: "cron-15m-stall",
    four_bursts_a_day_ramp: "bursts-6h",
    weekends_slow_the_ramp_and_no_more: "weekdays",
    tiny_volumes_ramp: "tiny",
    huge_volumes_ramp: "huge",
    a_published_curve_with_large_steps_is_held_to_twice_a_day: "sparkpost",
    another_published_curve_is_held_to_twice_a_day: "braze-aggressive",
    days_of_23_and_25_hours_change_nothing: "dst",
    five_idle_weeks_forget_the_ramp: "gap",
}
