//! When to try again after a delivery that was put off.
//!
//! A schedule of delays whose last one repeats, each spread a little so that a thousand messages refused in one
//! second do not come back in one second. Says nothing about giving up; that is the queue's `max_age`.

use std::time::Duration;

/// `queue.retry` and `queue.jitter`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySchedule {
    /// Never empty; see [`RetrySchedule::new`].
    delays: Vec<Duration>,
    /// Up to this part of a delay is added or taken away, 0 to 1.
    jitter: f64,
}

/// What is wrong with a schedule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RetryError {
    #[error("a retry schedule needs at least one delay")]
    Empty,
    #[error("a retry delay of less than one second would be a busy loop")]
    TooShort,
    #[error("jitter is {jitter}; it must be from 0 to below 1")]
    Jitter { jitter: f64 },
}

impl RetrySchedule {
    pub fn new(delays: Vec<Duration>, jitter: f64) -> Result<Self, RetryError> {
        if delays.is_empty() {
            return Err(RetryError::Empty);
        }
        if delays.iter().any(|delay| *delay < Duration::from_secs(1)) {
            return Err(RetryError::TooShort);
        }
        if !(0.0..1.0).contains(&jitter) {
            return Err(RetryError::Jitter { jitter });
        }
        Ok(RetrySchedule { delays, jitter })
    }

    /// No delay is longer.
    pub fn longest(&self) -> Duration {
        self.delays.iter().max().expect("never empty").mul_f64(1.0 + self.jitter)
    }

    /// How long to wait after the `failed_attempts`-th failure, counted from 1 (0 is taken as 1). The last delay
    /// repeats for ever. `random` spreads it by the jitter, evenly to both sides.
    pub fn delay(&self, failed_attempts: u32, random: &mut fastrand::Rng) -> Duration {
        let index = (failed_attempts.max(1) as usize - 1).min(self.delays.len() - 1);
        let spread = 1.0 + self.jitter * (2.0 * random.f64() - 1.0);
        self.delays[index].mul_f64(spread)
    }
}

/// 1, 5, 15, 30, 60 minutes, spread by 10 %.
impl Default for RetrySchedule {
    fn default() -> Self {
        let delays = [1, 5, 15, 30, 60].map(|minutes| Duration::from_secs(minutes * 60));
        RetrySchedule { delays: delays.to_vec(), jitter: 0.1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        let schedule = RetrySchedule::new([60, 600, 300].map(Duration::from_secs).to_vec(), 0.5).unwrap();
        assert_eq!(schedule.longest(), Duration::from_secs(900));
        let mut random = fastrand::Rng::with_seed(1);
        assert!((0..1000).all(|n| schedule.delay(n % 4, &mut random) <= schedule.longest()));
    }

    #[test]
    fn the_last_delay_repeats() {
        let schedule = RetrySchedule::new(vec![Duration::from_secs(60), Duration::from_secs(300)], 0.0).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        for (failed_attempts, expect) in [(0, 60), (1, 60), (2, 300), (3, 300), (u32::MAX, 300)] {
            assert_eq!(schedule.delay(failed_attempts, &mut random), Duration::from_secs(expect), "{failed_attempts}");
        }
    }

    #[test]
    fn jitter_spreads_to_both_sides_and_no_further_than_said() {
        let schedule = RetrySchedule::new(vec![Duration::from_secs(100)], 0.1).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let delays: Vec<f64> = (0..1000).map(|_| schedule.delay(1, &mut random).as_secs_f64()).collect();
        assert!(delays.iter().all(|d| (90.0..=110.0).contains(d)));
        assert!(delays.iter().any(|d| *d < 91.0) && delays.iter().any(|d| *d > 109.0));
    }

    #[test]
    fn the_same_seed_gives_the_same_delays() {
        let schedule = RetrySchedule::default();
        let run = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (1..9).map(|n| schedule.delay(n, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn schedules_that_would_spin_are_refused() {
        assert_eq!(RetrySchedule::new(vec![], 0.1), Err(RetryError::Empty));
        assert_eq!(RetrySchedule::new(vec![Duration::ZERO], 0.1), Err(RetryError::TooShort));
        let minute = vec![Duration::from_secs(60)];
        for jitter in [-0.1, 1.0, 5.0] {
            assert_eq!(RetrySchedule::new(minute.clone(), jitter), Err(RetryError::Jitter { jitter }));
        }
    }
}
