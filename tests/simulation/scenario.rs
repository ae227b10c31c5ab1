//! Random ramps: what the seed picks of settings, mail, faults and operators.
//!
//! Short and small, so that a thousand of them are lived through in a minute; between them they come by every mixture of
//! lanes, streams, brakes, pauses and deaths of the process.

use std::time::Duration;

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use mailramp::message::{BrakeLevel, DaySpan, LaneId, Route, StageStep, StreamId, StreamWay, Timestamp};
use mailramp::policy::calendar::day_of_date;
use mailramp::policy::{
    AfterBrake, BrakeRules, Calendar, Curve, Lanes, Overflow, Provider, Rules, StreamRoute, StreamRules,
};
use mailramp::spool::State;

use super::hop::Hop;
use super::operator::Act;
use super::places::Places;
use super::traffic::Arrival;
use super::{Event, HOUR, Setup, World};

const MINUTE: Duration = Duration::from_secs(60);
/// Days without mail at the end, in which everything that may leave has left.
const QUIET_DAYS: usize = 5;

/// A ramp to be lived through.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub setup: Setup,
    pub days: usize,
    mail: Vec<Mail>,
    /// Each so long after the beginning.
    acts: Vec<(Duration, Act)>,
    outages: Vec<(Duration, Route, Duration)>,
}

/// What one stream is sent.
#[derive(Clone, Debug)]
struct Mail {
    stream: StreamId,
    /// Messages a day.
    messages: f64,
    /// Of these hours of the day; equal: all at once.
    hours: (f64, f64),
    /// Most recipients of one message.
    recipients: u32,
}

/// Replies by which providers ask for less, and one that no rule knows.
const PRESSURES: [(Provider, &str); 9] = [
    (Provider::Google, "421 4.7.28 [192.0.2.1] unusual rate of unsolicited mail originating from your IP address"),
    (Provider::Google, "421 4.7.0 suspicious due to the very low reputation of the sending IP address"),
    (Provider::Google, "421 4.7.23 The sending IP address doesn't have a PTR record"),
    (
        Provider::Microsoft,
        "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation (S775)",
    ),
    (Provider::Microsoft, "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS761)"),
    (
        Provider::Yahoo,
        "421 4.7.0 [TSS04] Messages from ip temporarily deferred due to unexpected volume or user complaints",
    ),
    (Provider::Yahoo, "421 4.7.1 [TS03] All messages from ip will be permanently deferred; Retrying will NOT succeed"),
    (Provider::Other, "451 4.7.1 Please try again slower"),
    (Provider::Other, "451 4.3.0 something is wrong"),
];

fn pick<T: Clone>(random: &mut fastrand::Rng, values: &[T]) -> T {
    values[random.usize(..values.len())].clone()
}

fn up_to(random: &mut fastrand::Rng, longest: Duration) -> Duration {
    longest.mul_f64(random.f64())
}

impl Scenario {
    pub fn random(seed: u64) -> Scenario {
        let mut random = fastrand::Rng::with_seed(seed);
        let days = random.usize(3..=12);
        let rules = rules(&mut random);
        let streams = streams(&mut random, &rules);
        let places = places(&mut random);
        let brake = BrakeRules { min_attempts: pick(&mut random, &[5, 20]), ..BrakeRules::default() };
        let connections = random.usize(3..40);
        let hop =
            Hop { connections, latency: pick(&mut random, &[Duration::ZERO, Hop::FAULTY.latency]), ..Hop::FAULTY };
        let legacy = Hop { rcpt_4xx: 0.005, slow: 0.001, connections: 40, together: MINUTE / 2, ..Hop::FAULTY };
        let mail = mail(&mut random, streams.len(), days);
        let acts = acts(&mut random, &places, streams.len(), HOUR * 24 * days as u32);
        let outages = (0..random.usize(..3)).map(|_| {
            let route = pick(&mut random, &[Route::New, Route::New, Route::Legacy]);
            (up_to(&mut random, HOUR * 24 * days as u32), route, up_to(&mut random, HOUR * 3))
        });
        let outages = outages.collect();
        let setup = Setup {
            seed,
            rules,
            streams,
            places,
            brake,
            hops: [hop, legacy],
            crashes_per_day: pick(&mut random, &[0.0, 0.3, 2.0]),
            crash_at_each: pick(&mut random, &[0.0, 0.0, 0.001, 0.01]),
        };
        Scenario { setup, days, mail, acts, outages }
    }

    /// All promises are checked on the way.
    pub fn live(&self) -> World {
        let mut world = World::new(self.setup.clone());
        world.names = true;
        let mut random = fastrand::Rng::with_seed(self.setup.seed ^ 0x5eed);
        let begin = world.day(0).starts;
        for (later, act) in &self.acts {
            world.plan(begin.after(*later), act.clone());
        }
        for (later, route, length) in &self.outages {
            world.outage(begin.after(*later), *route, *length);
        }
        for number in 0..self.days {
            let day = world.day(number);
            world.live(day, self.arrivals(day, &mut random));
        }
        self.let_go(&mut world);
        for number in self.days..self.days + QUIET_DAYS {
            world.live(world.day(number), Vec::new());
        }
        self.everything_has_left(&mut world);
        world
    }

    fn arrivals(&self, day: DaySpan, random: &mut fastrand::Rng) -> Vec<Arrival> {
        let length = (day.ends.0 - day.starts.0) as f64;
        let mut arrivals = Vec::new();
        for mail in &self.mail {
            let messages = mail.messages as usize + usize::from(random.f64() < mail.messages.fract());
            for _ in 0..messages {
                let (from, until) = mail.hours;
                let part = (from + (until - from) * random.f64()) / 24.0;
                let at = Timestamp(day.starts.0 + (part * length) as i64);
                let recipients = if random.u8(..4) == 0 { random.u32(1..=mail.recipients) } else { 1 };
                arrivals.push(Arrival::new(at, mail.stream, recipients));
            }
        }
        arrivals.sort_by_key(|arrival| arrival.at);
        arrivals
    }

    /// Whatever keeps mail from leaving ends.
    fn let_go(&self, world: &mut World) {
        let now = world.now;
        world.lives_on();
        world.plan(now, Act::Doubt(false));
        world.plan(now, Act::Resume);
        for lane in all_lanes() {
            world.plan(now, Act::Pressure { lane, part: 0.0, reply: PRESSURES[0].1 });
            world.plan(now, Act::Release { lane });
        }
    }

    /// What may go by the legacy server has gone, by this or the other one.
    fn everything_has_left(&self, world: &mut World) {
        let now = world.now;
        let waits = world.waiting_items();
        for item in waits {
            let holds = item.queue.route() == Route::New && (item.deadline.is_none() || item.maybe);
            assert!(holds, "at {now:?}, {QUIET_DAYS} days after the last mail, this still waits: {item:?}");
        }
        let stuck = world.total_of(State::InFlight);
        assert_eq!(stuck, world.on_its_way(), "recipients are in flight, and nobody sends them");
    }
}

fn all_lanes() -> impl Iterator<Item = LaneId> {
    std::iter::once(LaneId::TOTAL).chain(Provider::ALL.into_iter().map(Provider::lane))
}

/// A ramp that changes its clocks within the first days, in most cases.
fn rules(random: &mut fastrand::Rng) -> Rules {
    let changes: [(&str, Date); 5] = [
        ("UTC", date(2026, 6, 1)),
        ("Europe/Berlin", date(2026, 3, 29)),
        ("Europe/Berlin", date(2026, 10, 25)),
        ("Australia/Lord_Howe", date(2026, 4, 5)), // by half an hour
        ("America/New_York", date(2026, 3, 8)),
    ];
    let (zone, change) = pick(random, &changes);
    let start = mailramp::message::Day(day_of_date(change).0 - random.i32(0..4));
    let first = pick(random, &[1.0, 3.0, 10.0, 30.0, 60.0, 200.0, 10_000_000.0]);
    let growth = pick(random, &[1.0, 1.3, 1.5, 2.0]);
    let hourly = pick(random, &[0.1, 0.2, 0.2, 0.3, 1.0]);
    let window = if hourly >= 0.2 && random.u8(..5) == 0 { "07:30-21:00" } else { "00:00-24:00" };
    Rules {
        curve: Curve::formula(first, growth).expect("a curve"),
        // Small ones are reached within days.
        target: if random.u8(..3) == 0 { (first * growth * growth).ceil() as u64 } else { 100_000_000 },
        min_used: pick(random, &[0.3, 0.5, 0.7]),
        max_step: pick(random, &[1.5, 2.0, 3.0, 0.0]),
        after_brake: pick(random, &[AfterBrake::Repeat, AfterBrake::StepBack]),
        hourly,
        burst: if hourly == 1.0 { 1.0 } else { pick(random, &[0.02, 0.02, 0.05, 0.3]) },
        window: window.parse().expect("a window"),
        start: Some(start),
        calendar: Calendar::new(TimeZone::get(zone).expect("a zone")),
        ..Rules::default()
    }
}

fn streams(random: &mut fastrand::Rng, rules: &Rules) -> Vec<StreamRules> {
    let mut streams = vec![StreamRules { overflow: overflow(random), ..StreamRules::default() }];
    for _ in 0..random.usize(..5) {
        let route = match random.u8(..10) {
            0 => StreamRoute::New,
            1 => StreamRoute::Legacy,
            _ => StreamRoute::Ramp,
        };
        let max_share = (random.u8(..4) == 0).then(|| pick(random, &[0.1, 0.5, 0.8]));
        let overflow = overflow(random);
        let auto_wait = random.u8(..5) == 0;
        streams.push(StreamRules {
            route,
            priority: pick(random, &[10, 20, 50, 80, 90]),
            max_share,
            overflow,
            auto_wait,
        });
    }
    rules.check(&[], &streams).expect("a ramp that can work");
    streams
}

fn overflow(random: &mut fastrand::Rng) -> Overflow {
    match random.u8(..8) {
        0 => Overflow::Legacy,
        1 => Overflow::Hold,
        _ => {
            Overflow::HoldThenLegacy { max_wait: pick(random, &[MINUTE * 15, MINUTE * 15, HOUR, HOUR * 6, HOUR * 72]) }
        }
    }
}

fn places(random: &mut fastrand::Rng) -> Places {
    let lanes = match random.u8(..5) {
        0 => Lanes::Off,
        1 | 2 => Lanes::Auto,
        _ => {
            let shares =
                [(Provider::Google, 0.2 + 0.3 * random.f64()), (Provider::Microsoft, 0.05 + 0.3 * random.f64())];
            Lanes::given(&shares[..random.usize(1..=2)]).expect("less than all of it")
        }
    };
    let mix =
        [Provider::Google, Provider::Microsoft, Provider::Yahoo, Provider::Other, Provider::Google, Provider::Mimecast];
    let mix: Vec<_> = mix[..random.usize(3..=6)].iter().map(|provider| (*provider, random.f64().powi(2))).collect();
    Places::new(lanes, &mix).and_unknown(0.3 * random.f64())
}

fn mail(random: &mut fastrand::Rng, streams: usize, days: usize) -> Vec<Mail> {
    // Longer lives get less a day.
    let all = random.f64() * 4_000.0 / days as f64;
    let part = |random: &mut fastrand::Rng, stream| {
        let hour = f64::from(random.u8(..24));
        let hours = pick(random, &[(0.0, 24.0), (9.0, 17.0), (hour, hour), (22.0, 24.0)]);
        let recipients = pick(random, &[1, 3, 12, 40]);
        Mail { stream: StreamId(stream as u8), messages: all * random.f64() / streams as f64, hours, recipients }
    };
    (0..streams).map(|stream| part(random, stream)).collect()
}

fn acts(random: &mut fastrand::Rng, places: &Places, streams: usize, life: Duration) -> Vec<(Duration, Act)> {
    let mut acts = Vec::new();
    let lanes: Vec<LaneId> = match places.lanes {
        Lanes::Off => vec![LaneId::TOTAL],
        _ => std::iter::once(LaneId::TOTAL).chain(places.lanes.providers().map(Provider::lane)).collect(),
    };
    let unknown = (places.domains() - 1) as u8;
    if random.bool() {
        let lane = places.lanes.lane(pick(random, &[Provider::Google, Provider::Yahoo]));
        acts.push((up_to(random, life), Act::Learn { domain: unknown, lane }));
    }
    for _ in 0..random.usize(..12) {
        let at = up_to(random, life);
        let (lane, stream) = (pick(random, &lanes), StreamId(random.u8(..streams as u8)));
        let mut then = |later: Duration, act| acts.push((at + later, act));
        match random.u8(..10) {
            0 => {
                then(Duration::ZERO, Act::Pause);
                then(up_to(random, HOUR * 40), Act::Resume);
            }
            1 => then(Duration::ZERO, Act::SetDay { stage: random.u32(..7) }),
            2 | 3 => {
                let level =
                    pick(random, &[BrakeLevel::Slow, BrakeLevel::Suspended, BrakeLevel::Suspended, BrakeLevel::Paused]);
                let step = pick(random, &[StageStep::Hold, StageStep::Back, StageStep::BackTwo, StageStep::Freeze]);
                then(Duration::ZERO, Act::Brake { lane, level, lasts: up_to(random, HOUR * 30), step });
                if level == BrakeLevel::Paused || random.bool() {
                    then(up_to(random, HOUR * 30), Act::Release { lane });
                }
            }
            4 | 5 => {
                let later = if random.bool() { Duration::ZERO } else { up_to(random, HOUR * 30) };
                let to = pick(random, &StreamWay::ALL);
                then(Duration::ZERO, Act::Move { stream, to, later });
                if random.u8(..3) == 0 {
                    then(up_to(random, HOUR * 40), Act::Undo { stream });
                }
            }
            6 => {
                let domain = random.u8(..places.domains() as u8);
                let lane = places.lanes.lane(pick(random, &Provider::ALL));
                then(Duration::ZERO, Act::Learn { domain, lane });
            }
            7 | 8 => {
                let (provider, reply) = pick(random, &PRESSURES);
                let (lane, part) = (places.lanes.lane(provider), pick(random, &[0.1, 0.5, 1.0]));
                then(Duration::ZERO, Act::Pressure { lane, part, reply });
                then(up_to(random, HOUR * 10), Act::Pressure { lane, part: 0.0, reply });
            }
            _ => {
                then(Duration::ZERO, Act::Doubt(true));
                then(up_to(random, MINUTE * 10), Act::Doubt(false));
            }
        }
    }
    if random.u8(..4) == 0 {
        let at = up_to(random, life);
        acts.push((at, Act::Copy));
        acts.push((at + up_to(random, HOUR * 30), Act::Restore));
    }
    acts
}

impl World {
    fn waiting_items(&mut self) -> Vec<mailramp::spool::Item> {
        self.spool_mut().store().items().filter(|item| item.state.is_waiting()).cloned().collect()
    }

    fn total_of(&self, state: State) -> u64 {
        self.spool().ledger().total_of(state).recipients
    }

    fn on_its_way(&self) -> u64 {
        let recipients = |event: &Event| match event {
            Event::Mail(claimed) => claimed.item.recipients(),
            Event::Dot(flight) | Event::Answer(flight) => flight.claimed.item.recipients(),
            Event::Down(..) | Event::Back => 0,
        };
        self.events.values().map(recipients).sum()
    }
}
