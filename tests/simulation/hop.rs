//! A next hop that answers late, refuses, or hangs up; and the connections to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mailramp::delivery::outcome::{Cause, Fault, Stage, Verdict};
use mailramp::message::{Route, Timestamp};
use mailramp::reply::{EnhancedCode, Reply};
use mailramp::spool::{Claimed, Slots};

use super::operator::{self, Pressure};

/// How a next hop behaves. Probabilities from 0 to 1, for each transaction or recipient.
#[derive(Clone, Debug)]
pub struct Hop {
    pub connections: usize,
    /// From the claim to MAIL, from there to the final dot, and from there to the answer: up to so long each.
    pub latency: Duration,
    /// Answers are heard of at whole multiples of this; zero: each at its own moment.
    pub together: Duration,
    /// A step that takes four hundred times as long: minutes, not seconds.
    pub slow: f64,
    pub rcpt_4xx: f64,
    pub rcpt_5xx: f64,
    /// 4xx to MAIL or DATA, or after the final dot.
    pub refused: f64,
    /// 421 before the recipients were looked at.
    pub shut_down: f64,
    /// No answer to the final dot.
    pub lost_reply: f64,
}

impl Hop {
    /// Takes everything at once.
    pub const PERFECT: Hop = Hop {
        connections: 1000,
        latency: Duration::ZERO,
        together: Duration::ZERO,
        slow: 0.0,
        rcpt_4xx: 0.0,
        rcpt_5xx: 0.0,
        refused: 0.0,
        shut_down: 0.0,
        lost_reply: 0.0,
    };

    pub const FAULTY: Hop = Hop {
        connections: 12,
        latency: Duration::from_millis(1500),
        together: Duration::ZERO,
        slow: 0.02,
        rcpt_4xx: 0.03,
        rcpt_5xx: 0.02,
        refused: 0.02,
        shut_down: 0.01,
        lost_reply: 0.01,
    };

    /// From the claim to MAIL; mostly at once, rarely so late that the claim is stale.
    pub fn pickup(&self, random: &mut fastrand::Rng) -> Duration {
        let short = self.latency.mul_f64(random.f64());
        if random.u8(..100) == 0 { short * 100 } else { short }
    }

    fn wait(&self, random: &mut fastrand::Rng) -> Duration {
        if self.latency.is_zero() {
            return Duration::ZERO;
        }
        let long = self.latency.mul_f64(random.f64());
        if random.f64() < self.slow { long * 400 } else { long }
    }

    /// Answers that come close together are written down together.
    fn with_others(&self, at: Timestamp) -> Timestamp {
        let every = self.together.as_nanos() as i64;
        if every == 0 { at } else { Timestamp((at.0 / every + 1) * every) }
    }

    /// What will become of the item that MAIL was said for at `now`.
    pub fn fly(
        &self,
        claimed: Claimed,
        pressure: Option<&Pressure>,
        now: Timestamp,
        random: &mut fastrand::Rng,
    ) -> Flight {
        let recipients = claimed.item.envelope.recipients.len();
        let first = now.after(self.wait(random));
        let all = |verdict: Verdict| vec![verdict; recipients];
        if random.f64() < self.shut_down {
            return Flight { claimed, verdicts: all(Verdict::Untouched), dot_at: None, answer_at: first, kept: false };
        }
        let refusal = || Cause::Reply(Reply::new(451, EnhancedCode(4, 7, 1), "later"));
        if random.f64() < self.refused {
            let verdicts = all(Verdict::Deferred { stage: Stage::Data, cause: refusal() });
            return Flight { claimed, verdicts, dot_at: None, answer_at: first, kept: false };
        }
        let lost = random.f64() < self.lost_reply;
        let pressed = |random: &mut fastrand::Rng| {
            let reply = pressure.filter(|pressure| random.f64() < pressure.part).map(|p| operator::reply(p.reply))?;
            Some(match reply.code {
                500.. => Verdict::Rejected { stage: Stage::Rcpt, reply },
                _ => Verdict::Deferred { stage: Stage::Rcpt, cause: Cause::Reply(reply) },
            })
        };
        let verdict = |dice: f64| match dice {
            d if d < self.rcpt_4xx => Verdict::Deferred { stage: Stage::Rcpt, cause: refusal() },
            d if d < self.rcpt_4xx + self.rcpt_5xx => {
                Verdict::Rejected { stage: Stage::Rcpt, reply: Reply::new(550, EnhancedCode(5, 1, 1), "no such user") }
            }
            _ if lost => Verdict::Unknown { fault: Fault::Closed },
            _ => Verdict::Delivered { reply: Reply::new(250, EnhancedCode(2, 0, 0), "ok") },
        };
        let verdicts: Vec<_> =
            (0..recipients).map(|_| pressed(random).unwrap_or_else(|| verdict(random.f64()))).collect();
        let dot_at = verdicts.iter().any(Verdict::may_have_left).then_some(first);
        let answer_at = self.with_others(dot_at.map_or(first, |dot| dot.after(self.wait(random))));
        // An answer that was lost may have been a 250.
        let kept = !lost || random.bool();
        Flight { claimed, verdicts, dot_at, answer_at, kept }
    }
}

/// A transaction on its way.
#[derive(Debug)]
pub struct Flight {
    pub claimed: Claimed,
    pub verdicts: Vec<Verdict>,
    /// `None`: it never comes to that.
    pub dot_at: Option<Timestamp>,
    pub answer_at: Timestamp,
    /// The next hop keeps what comes with the final dot.
    pub kept: bool,
}

impl Flight {
    pub fn route(&self) -> Route {
        self.claimed.item.queue.route()
    }

    /// Recipients that leave with the final dot.
    pub fn left(&self) -> u64 {
        self.verdicts.iter().filter(|verdict| verdict.may_have_left()).count() as u64
    }
}

/// Connections that stand ready, by route.
#[derive(Debug)]
pub struct Pools {
    ready: [AtomicUsize; 2],
    shut_until: [Timestamp; 2],
}

impl Pools {
    pub fn new(connections: [usize; 2]) -> Self {
        Pools { ready: connections.map(AtomicUsize::new), shut_until: [Timestamp(0); 2] }
    }

    pub fn ready(&self, route: Route) -> usize {
        if self.shut_until[route as usize] > Timestamp(0) {
            return 0;
        }
        self.ready[route as usize].load(Ordering::Relaxed)
    }

    pub fn take_up_to(&self, route: Route, most: usize) -> usize {
        let count = self.ready(route).min(most);
        self.ready[route as usize].fetch_sub(count, Ordering::Relaxed);
        count
    }

    pub fn give_back_some(&self, route: Route, count: usize) {
        self.ready[route as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub fn give_back_one(&self, route: Route) {
        self.give_back_some(route, 1);
    }

    pub fn shut(&mut self, route: Route, until: Timestamp) {
        self.shut_until[route as usize] = until;
    }

    pub fn look_again(&mut self, now: Timestamp) {
        for until in &mut self.shut_until {
            if *until <= now {
                *until = Timestamp(0);
            }
        }
    }
}

impl Slots for Pools {
    fn take(&self, route: Route) -> bool {
        self.take_up_to(route, 1) == 1
    }

    fn give_back(&self, route: Route, count: usize) {
        self.give_back_some(route, count);
    }
}
