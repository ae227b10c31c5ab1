//! `legacy.max_per_minute`: no more than so many recipients in any 60 seconds.
//!
//! A sliding window, exact to the second, so the cap holds in every minute and not only in those of the clock. Plain:
//! the time comes in.

use std::collections::VecDeque;
use std::time::Duration;

use crate::message::Timestamp;

/// What "a minute" is.
const WINDOW_SECONDS: i64 = 60;

/// See the module's header.
#[derive(Debug)]
pub struct RecipientCap {
    most: u64,
    /// Second, and recipients begun in it; rising, at most 61 of them.
    taken: VecDeque<(i64, u64)>,
    sum: u64,
}

impl RecipientCap {
    /// At most `most` recipients in any 60 seconds.
    pub fn new(most: u64) -> Self {
        RecipientCap { most, taken: VecDeque::new(), sum: 0 }
    }

    /// How many may be begun at `now`.
    pub fn room(&mut self, now: Timestamp) -> u64 {
        while let Some((second, count)) = self.taken.front().copied()
            && now.seconds() - second > WINDOW_SECONDS
        {
            self.taken.pop_front();
            self.sum -= count;
        }
        self.most.saturating_sub(self.sum)
    }

    /// Takes up to `wanted` and says how many.
    pub fn take(&mut self, wanted: u64, now: Timestamp) -> u64 {
        let granted = self.room(now).min(wanted);
        if granted > 0 {
            match self.taken.back_mut() {
                Some((second, count)) if *second >= now.seconds() => *count += granted,
                _ => self.taken.push_back((now.seconds(), granted)),
            }
            self.sum += granted;
        }
        granted
    }

    /// When there will be room; `None`: there is some at `now`.
    pub fn next_room(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.room(now) > 0 {
            return None;
        }
        let (second, _) = self.taken.front()?;
        Some(Timestamp::from_seconds(second + 1).after(Duration::from_secs(WINDOW_SECONDS as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000 + millis * 1_000_000)
    }

    #[test]
    fn no_sixty_seconds_see_more_than_the_cap() {
        let mut cap = RecipientCap::new(100);
        let mut random = fastrand::Rng::with_seed(5);
        let mut begun = Vec::new();
        let mut now = 0;
        while now < 600_000 {
            now += random.i64(0..900);
            begun.push((now, cap.take(random.u64(0..9), at(now))));
        }
        for (start, _) in &begun {
            let within: u64 = begun.iter().filter(|(t, _)| (0..60_000).contains(&(t - start))).map(|(_, n)| n).sum();
            assert!(within <= 100, "{within} from {start} on");
        }
        let total: u64 = begun.iter().map(|(_, n)| n).sum();
        assert!(total >= 950, "the cap is used: {total} in ten minutes");
        assert!(cap.taken.len() <= 61);
    }

    #[test]
    fn a_message_gets_what_is_left_and_there_is_room_again_when_the_minute_is_over() {
        let mut cap = RecipientCap::new(3);
        assert_eq!((cap.take(2, at(0)), cap.next_room(at(0))), (2, None));
        assert_eq!((cap.take(5, at(10)), cap.take(5, at(10))), (1, 0));
        let next = cap.next_room(at(10)).expect("full");
        assert_eq!(cap.room(Timestamp(next.0 - 1)), 0);
        assert_eq!(cap.room(next), 3);
        assert!(next <= at(61_000));
    }
}
