//! Ramps with several providers and streams, each made for one thing that was promised.

use std::time::Duration;

use mailramp::message::{BrakeLevel, Day, DaySpan, LaneId, StageStep, StreamId, StreamWay, Timestamp};
use mailramp::policy::{Lanes, Overflow, Provider, Rules, StreamRoute, StreamRules};

use super::operator::Act;
use super::places::{Domain, Places};
use super::traffic::Arrival;
use super::{HOUR, Outcome, Setup, World};

/// A day in the zone without changes of clocks.
const START: Day = Day(20_513);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MAIN: StreamId = StreamId(0);
const SECOND: StreamId = StreamId(1);

fn rules() -> Rules {
    Rules { start: Some(START), target: 12_000, ..Rules::default() }
}

/// Google, Microsoft, Yahoo, all others; domains 0 to 3.
fn four(lanes: Lanes) -> Places {
    let mix = [(Provider::Google, 0.4), (Provider::Microsoft, 0.3), (Provider::Yahoo, 0.1), (Provider::Other, 0.2)];
    Places::new(lanes, &mix)
}

/// `volume` recipients evenly over the day, one by one, to these domains in turn.
fn even(day: DaySpan, stream: StreamId, volume: u64, domains: &[Domain]) -> Vec<Arrival> {
    let step = (day.ends.0 - day.starts.0) / volume.max(1) as i64;
    let at = |n: u64| Timestamp(day.starts.0 + step * n as i64);
    let domain = |n: u64| Some(domains[n as usize % domains.len()]);
    (0..volume).map(|n| Arrival { domain: domain(n), ..Arrival::new(at(n), stream, 1) }).collect()
}

fn together(mut all: Vec<Vec<Arrival>>) -> Vec<Arrival> {
    let mut arrivals: Vec<Arrival> = all.drain(..).flatten().collect();
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

fn of(world: &World, provider: Provider) -> Vec<Outcome> {
    world.lanes.iter().map(|day| day.get(&provider.lane()).copied().unwrap_or_default()).collect()
}

fn limits(days: &[Outcome]) -> Vec<u64> {
    days.iter().map(|day| day.limit.unwrap_or(u64::MAX)).collect()
}

fn sent(days: &[Outcome]) -> Vec<u64> {
    days.iter().map(|day| day.new).collect()
}

#[test]
fn the_mail_of_a_braked_lane_goes_to_legacy_while_the_others_ramp() {
    let places = four(Lanes::Auto);
    let mut world = World::new(Setup { places, ..Setup::new(rules(), vec![StreamRules::default()]) });
    let google = Provider::Google.lane();
    let on = Act::Brake { lane: google, level: BrakeLevel::Suspended, lasts: DAY * 2, step: StageStep::Hold };
    world.plan(world.day(3).starts, on);
    for number in 0..7 {
        let day = world.day(number);
        world.live(day, even(day, MAIN, 1_200, &[0, 1, 0, 2, 1, 3]));
    }
    let (google, microsoft) = (of(&world, Provider::Google), of(&world, Provider::Microsoft));
    assert_eq!(sent(&google)[3..5], [0, 0], "{google:?}");
    assert!(limits(&google)[4] <= limits(&google)[3], "a braked day does not count: {google:?}");
    assert!(limits(&microsoft).is_sorted_by(|a, b| a < b), "{microsoft:?}");
    assert!(sent(&microsoft)[3..5].iter().zip(&limits(&microsoft)[3..5]).all(|(sent, limit)| sent * 10 >= limit * 9));
    assert!(sent(&google)[6] > 0, "and goes on after it: {google:?}");
}

#[test]
fn a_brake_that_steps_back_takes_a_stage_and_the_next_days_climb_again() {
    let places = four(Lanes::Auto);
    let mut world = World::new(Setup { places, ..Setup::new(rules(), vec![StreamRules::default()]) });
    let lane = Provider::Google.lane();
    let on = Act::Brake { lane, level: BrakeLevel::Suspended, lasts: HOUR, step: StageStep::Back };
    world.plan(world.day(4).starts.after(HOUR * 12), on);
    for number in 0..8 {
        let day = world.day(number);
        world.live(day, even(day, MAIN, 2_400, &[0, 1, 0, 2, 1, 3]));
    }
    let limits = limits(&of(&world, Provider::Google));
    assert!(limits[5] < limits[4] && limits[5] <= limits[3] + 2, "{limits:?}");
    assert!(limits[6] > limits[5] && limits[7] > limits[6], "{limits:?}");
}

#[test]
fn a_pressed_lane_is_braked_by_its_replies_and_by_nothing_else() {
    let places = four(Lanes::Auto);
    let mut world = World::new(Setup { places, ..Setup::new(rules(), vec![StreamRules::default()]) });
    let lane = Provider::Microsoft.lane();
    let reply = "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation (S775)";
    let begins = world.day(3).starts.after(HOUR);
    world.plan(begins, Act::Pressure { lane, part: 1.0, reply });
    world.plan(begins.after(HOUR * 8), Act::Pressure { lane, part: 0.0, reply });
    for number in 0..6 {
        let day = world.day(number);
        world.live(day, even(day, MAIN, 1_200, &[0, 1, 0, 2, 1, 3]));
    }
    let (microsoft, google) = (of(&world, Provider::Microsoft), of(&world, Provider::Google));
    assert!(world.braked_by_replies > 0 && world.given_back > 0, "nobody heard of it");
    assert!(limits(&microsoft)[4] <= limits(&microsoft)[3], "{microsoft:?}");
    assert!(limits(&google)[4] > limits(&google)[3], "{google:?}");
}

#[test]
fn a_stream_that_is_moved_in_on_the_fifth_day_makes_no_day_jump() {
    let streams = vec![StreamRules::default(), StreamRules { route: StreamRoute::Legacy, ..StreamRules::default() }];
    let mut world = World::new(Setup { places: four(Lanes::Auto), ..Setup::new(rules(), streams) });
    let moved = world.day(4).starts;
    world.plan(
        world.day(2).starts,
        Act::Move { stream: SECOND, to: StreamWay::Ramp, later: moved.since(world.day(2).starts) },
    );
    for number in 0..9 {
        let day = world.day(number);
        let both = vec![even(day, MAIN, 100, &[0, 1, 0, 2, 1, 3]), even(day, SECOND, 2_000, &[1, 0])];
        world.live(day, together(both));
    }
    let total: Vec<Outcome> = world.outcomes.clone();
    for pair in total.windows(2) {
        let (before, after) = (pair[0].limit.unwrap(), pair[1].limit.unwrap());
        assert!(after <= (before * 2).max(50), "{:?}", limits(&total));
    }
    assert!(total[3].new <= 100 && total[4].new > 100, "{total:?}");
    assert!(total[4].limit.unwrap() <= 253, "what was on legacy was not offered to the ramp: {total:?}");
    assert!(total[8].new > total[4].new * 2, "and it ramps: {total:?}");
}

#[test]
fn the_higher_priority_goes_first_on_every_lane_when_there_is_too_little() {
    let low =
        StreamRules { priority: 10, overflow: Overflow::HoldThenLegacy { max_wait: DAY }, ..StreamRules::default() };
    let high =
        StreamRules { priority: 90, overflow: Overflow::HoldThenLegacy { max_wait: DAY }, ..StreamRules::default() };
    let places = four(Lanes::given(&[(Provider::Google, 0.4), (Provider::Microsoft, 0.3)]).unwrap());
    let mut world = World::new(Setup { places, ..Setup::new(rules(), vec![low, high]) });
    for number in 0..6 {
        let day = world.day(number);
        // The low one asks for everything in the morning, the high one for a little all day.
        let burst = vec![Arrival::new(day.starts.after(HOUR), MAIN, 100); 20];
        world.live(day, together(vec![burst, even(day, SECOND, 30, &[0, 1, 2, 3])]));
    }
    let ledger = world.spool().ledger();
    for (id, lane) in ledger.lanes().filter(|(id, _)| *id == LaneId::TOTAL) {
        let high: u64 = (2..6).map(|n| lane.stream_on(SECOND, Day(START.0 + n)).reserved).sum();
        let low: u64 = (2..6).map(|n| lane.stream_on(MAIN, Day(START.0 + n)).reserved).sum();
        assert!(high >= 4 * 30 * 9 / 10, "{id:?}: {high} of the high one's 120 left, and {low} of the low one's");
        assert!(low > high, "{id:?}: what the high one leaves is used: {low}");
    }
    assert!(world.orders_seen > 10, "hardly anybody met: {}", world.orders_seen);
}

#[test]
fn a_provider_that_was_never_sent_to_before_starts_at_the_foot() {
    let places = four(Lanes::Auto);
    let mut world = World::new(Setup { places, ..Setup::new(rules(), vec![StreamRules::default()]) });
    for number in 0..14 {
        let day = world.day(number);
        let domains: &[Domain] = if number < 10 { &[0, 1] } else { &[0, 1, 2] };
        world.live(day, even(day, MAIN, 3_000, domains));
    }
    let (yahoo, google) = (of(&world, Provider::Yahoo), of(&world, Provider::Google));
    assert!(limits(&google)[10] > 300, "{google:?}");
    assert!(limits(&yahoo)[10] <= 4, "{yahoo:?}");
    assert!(sent(&yahoo)[10] > 0 && limits(&yahoo)[11] <= 2 * limits(&yahoo)[10].max(50), "{yahoo:?}");
    assert!(limits(&yahoo)[13] > limits(&yahoo)[10], "{yahoo:?}");
}

#[test]
fn mail_to_a_domain_that_becomes_known_moves_to_its_lane() {
    let places = four(Lanes::Auto).and_unknown(0.2);
    let hold = StreamRules { overflow: Overflow::Hold, ..StreamRules::default() };
    let mut world = World::new(Setup { places, ..Setup::new(rules(), vec![hold]) });
    world.plan(world.day(1).starts.after(HOUR), Act::Learn { domain: 4, lane: Provider::Yahoo.lane() });
    for number in 0..4 {
        let day = world.day(number);
        // More than the others' lane can take on the first day, and nothing after it.
        world.live(day, even(day, MAIN, if number == 0 { 40 } else { 0 }, &[4]));
    }
    let (yahoo, other) = (of(&world, Provider::Yahoo), of(&world, Provider::Other));
    assert!(sent(&other)[0] > 0 && sent(&yahoo)[0] == 0, "{other:?}");
    assert!(sent(&yahoo)[1..].iter().sum::<u64>() > 0, "{yahoo:?}");
}

#[test]
fn a_pause_of_two_days_sends_nothing_and_the_ramp_goes_on_where_it_was() {
    let mut world =
        World::new(Setup { places: four(Lanes::Auto), ..Setup::new(rules(), vec![StreamRules::default()]) });
    world.plan(world.day(4).starts, Act::Pause);
    // Just before midnight: a day that begins with a pause does not count either.
    world.plan(Timestamp(world.day(6).starts.0 - 1_000_000_000), Act::Resume);
    for number in 0..9 {
        let day = world.day(number);
        world.live(day, even(day, MAIN, 2_400, &[0, 1, 0, 2, 1, 3]));
    }
    let (new, limits) = (sent(&world.outcomes), limits(&world.outcomes));
    assert_eq!(new[4..6], [0, 0]);
    assert!(limits[5] <= limits[4] && limits[6] <= limits[5], "paused days do not count: {limits:?}");
    assert!(new[6] * 10 >= limits[6] * 9 && limits[7] > limits[6] && limits[8] > limits[7], "{limits:?}");
}

#[test]
fn a_day_that_is_set_holds_downwards_at_once_and_upwards_tomorrow() {
    let mut world =
        World::new(Setup { places: four(Lanes::Auto), ..Setup::new(rules(), vec![StreamRules::default()]) });
    world.plan(world.day(2).starts.after(HOUR * 12), Act::SetDay { stage: 6 });
    world.plan(world.day(5).starts.after(HOUR * 6), Act::SetDay { stage: 1 });
    for number in 0..8 {
        let day = world.day(number);
        world.live(day, even(day, MAIN, 4_800, &[0, 1, 0, 2, 1, 3]));
    }
    let limits = limits(&world.outcomes);
    assert_eq!(limits[2], 112, "upwards not before tomorrow: {limits:?}");
    assert!(limits[3] >= 500, "{limits:?}");
    assert_eq!(limits[5], 75, "downwards at once: {limits:?}");
    assert!(limits[6] <= 168, "{limits:?}");
}

#[test]
fn a_stream_at_its_share_does_not_shut_the_next_one_out() {
    let share = StreamRules { priority: 90, max_share: Some(0.2), overflow: Overflow::Hold, ..StreamRules::default() };
    let rest = StreamRules { priority: 10, overflow: Overflow::Hold, ..StreamRules::default() };
    let mut world = World::new(Setup::new(rules(), vec![rest, share]));
    let day = world.day(0);
    let burst = |stream| Arrival::new(day.starts, stream, 100);
    world.live(day, vec![burst(SECOND), burst(MAIN)]);
    // 10 of the first, by then the hour is over; and not at midnight but with the next token the other one goes on.
    let lane = world.total();
    let used = [SECOND, MAIN].map(|stream| lane.stream_today(stream).reserved);
    assert_eq!(used, [10, 40], "{lane:?}");
}

#[test]
fn restored_data_opens_no_day_again() {
    let mut world =
        World::new(Setup { places: four(Lanes::Auto), ..Setup::new(rules(), vec![StreamRules::default()]) });
    world.plan(world.day(3).starts.after(HOUR * 2), Act::Copy);
    world.plan(world.day(3).starts.after(HOUR * 20), Act::Restore);
    for number in 0..6 {
        let day = world.day(number);
        world.live(day, even(day, MAIN, 2_400, &[0, 1, 0, 2, 1, 3]));
    }
    assert_eq!(world.restores, 1);
    let (new, limits) = (sent(&world.outcomes), limits(&world.outcomes));
    assert!(new[3] <= limits[3] && new[3] * 2 > limits[3], "{new:?} of {limits:?}");
    assert!(new[5] > 0, "and it goes on: {new:?}");
}
