//! What the application sends: the patterns of the oracle, and random mail of several kinds.

use std::time::Duration;

use mailramp::message::{DaySpan, StreamId, Timestamp};

use super::places::Domain;

/// One message.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Timestamp,
    pub stream: StreamId,
    pub recipients: u32,
    /// To this domain; `None`: to each as often as its part of the mail says.
    pub domain: Option<Domain>,
}

impl Arrival {
    pub fn new(at: Timestamp, stream: StreamId, recipients: u32) -> Arrival {
        Arrival { at, stream, recipients, domain: None }
    }
}

/// Of one message of [`even`].
const RECIPIENTS_MOST: u32 = 20;

/// `volume` recipients evenly over each of `hours` (of the day, counted from its start); equal hours: all at once.
/// One message every `step` for all that came in it, or several of at most [`RECIPIENTS_MOST`].
pub fn even(day: DaySpan, volume: u64, hours: &[(u64, u64)], step: Duration) -> Vec<Arrival> {
    let per_part = volume / hours.len() as u64;
    let mut arrivals = Vec::new();
    for &(from, until) in hours {
        let steps = ((until - from) * 3600 / step.as_secs()).max(1);
        for n in 0..steps {
            let at = day.starts.after(Duration::from_secs(from * 3600) + step * n as u32);
            let mut left = (per_part * (n + 1) / steps - per_part * n / steps) as u32;
            while left > 0 && at < day.ends {
                let recipients = left.min(RECIPIENTS_MOST);
                arrivals.push(Arrival::new(at, super::ONLY, recipients));
                left -= recipients;
            }
        }
    }
    arrivals
}

/// Streams of [`random_day`], by their use.
pub const OFFICE: StreamId = StreamId(0);
pub const PASSWORDS: StreamId = StreamId(1);
pub const CRON: StreamId = StreamId(2);
pub const CAMPAIGN: StreamId = StreamId(3);
pub const STAYS: StreamId = StreamId(4);
pub const CUT_OVER: StreamId = StreamId(5);

/// How much of each kind there is.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Messages a day, grows by the day.
    pub office: f64,
    pub growth: f64,
    pub passwords: f64,
    pub cron: f64,
    pub campaign: u32,
}

/// Day `number` (from 0) of a business: people write in office hours, less at weekends; passwords at any time; cron
/// jobs at full hours in one burst each; now and then a campaign in one message with many recipients.
pub fn random_day(day: DaySpan, number: usize, mix: &Mix, random: &mut fastrand::Rng) -> Vec<Arrival> {
    let length = day.ends.0 - day.starts.0;
    let weekend = number % 7 >= 5;
    let factor = mix.growth.powi(number as i32) * if weekend { 0.4 } else { 1.0 };
    let mut arrivals = Vec::new();
    let mut add = |at: i64, stream, recipients| {
        arrivals.push(Arrival::new(Timestamp(day.starts.0 + at.min(length - 1)), stream, recipients));
    };
    for _ in 0..(mix.office * factor) as u64 {
        // Two thirds between 9 and 17 o'clock.
        let part = if random.u8(..3) > 0 { (9.0 + 8.0 * random.f64()) / 24.0 } else { random.f64() };
        add((part * length as f64) as i64, OFFICE, several(random));
    }
    for _ in 0..(mix.passwords * factor) as u64 {
        add(random.i64(0..length), PASSWORDS, 1);
    }
    for hour in [2, 6, 14] {
        for _ in 0..(mix.cron * factor / 3.0) as u64 {
            add(hour * 3_600_000_000_000, CRON, several(random));
        }
    }
    if number % 8 == 3 {
        add(random.i64(0..length), CAMPAIGN, mix.campaign);
    }
    for _ in 0..10 {
        add(random.i64(0..length), STAYS, several(random));
        add(random.i64(0..length), CUT_OVER, 1);
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

fn several(random: &mut fastrand::Rng) -> u32 {
    match random.u8(..80) {
        0 => random.u32(5..30),
        1..8 => random.u32(2..5),
        _ => 1,
    }
}
