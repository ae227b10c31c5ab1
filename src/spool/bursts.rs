//! Whether a stream's mail comes in bursts: what it offered in each quarter-hour of the last week.
//!
//! Only of streams that ask for it. The answer changes with the day and not during it, so every decision of a day is made
//! from the same one, before and after a restart.

use std::collections::BTreeMap;

use crate::message::{Slot, StreamId, Timestamp};

/// A week of quarter-hours.
pub(super) const KEPT_SLOTS: i64 = 7 * 96;
/// As many quarter-hours as a stream's bursts may fill.
const BUSIEST: usize = 8;

/// How a stream's last week was spread. Recipients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burst {
    /// In its 8 busiest quarter-hours.
    pub busiest_eight: u64,
    /// In all of the 7 days before today.
    pub offered: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Bursts {
    slots: BTreeMap<(StreamId, Slot), u64>,
    known: BTreeMap<StreamId, Burst>,
}

impl Bursts {
    /// As of the beginning of the day.
    pub fn of(&self, stream: StreamId) -> Burst {
        self.known.get(&stream).copied().unwrap_or_default()
    }

    /// Returns what the quarter-hour holds now.
    pub fn add(&mut self, stream: StreamId, slot: Slot, recipients: u64) -> u64 {
        let held = self.slots.entry((stream, slot)).or_default();
        *held += recipients;
        *held
    }

    pub fn at(&self, stream: StreamId, slot: Slot) -> u64 {
        self.slots.get(&(stream, slot)).copied().unwrap_or(0)
    }

    /// A day begins. Quarter-hours that no day looks at any more go.
    pub fn turn(&mut self, day_starts: Timestamp) {
        let (first, end) = (day_starts.slot().0 - KEPT_SLOTS, day_starts.slot().0);
        self.slots.retain(|(_, slot), _| slot.0 >= first);
        let mut by_stream: BTreeMap<StreamId, Vec<u64>> = BTreeMap::new();
        for ((stream, slot), recipients) in &self.slots {
            if slot.0 < end {
                by_stream.entry(*stream).or_default().push(*recipients);
            }
        }
        let burst = |mut slots: Vec<u64>| {
            slots.sort_unstable_by(|a, b| b.cmp(a));
            Burst { busiest_eight: slots.iter().take(BUSIEST).sum(), offered: slots.iter().sum() }
        };
        self.known = by_stream.into_iter().map(|(stream, slots)| (stream, burst(slots))).collect();
    }

    /// The clock was wrong by so many quarter-hours.
    pub fn shift(&mut self, slots: i64) -> Vec<(StreamId, Slot)> {
        let old = std::mem::take(&mut self.slots);
        let mut changed: Vec<_> = old.keys().copied().collect();
        self.slots = old.into_iter().map(|((stream, slot), n)| ((stream, Slot(slot.0 + slots)), n)).collect();
        changed.extend(self.slots.keys());
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: StreamId = StreamId(1);

    #[test]
    fn a_week_in_few_quarter_hours_is_told_from_one_that_is_spread() {
        let mut bursts = Bursts::default();
        let today = Slot(10_000);
        for back in 1..=7 {
            bursts.add(DIGEST, Slot(today.0 - 96 * back), 500);
            for slot in 0..96 {
                bursts.add(StreamId(2), Slot(today.0 - 96 * back + slot), 5);
            }
        }
        bursts.add(DIGEST, today, 9_000);
        assert_eq!(bursts.of(DIGEST), Burst::default(), "the day has not begun");
        bursts.turn(today.start());
        assert_eq!(bursts.of(DIGEST), Burst { busiest_eight: 3_500, offered: 3_500 }, "today does not count");
        assert_eq!(bursts.of(StreamId(2)), Burst { busiest_eight: 40, offered: 7 * 480 });
        bursts.turn(Slot(today.0 + 96).start());
        assert_eq!(bursts.of(DIGEST).offered, 6 * 500 + 9_000, "the oldest day is forgotten");
        assert_eq!(bursts.at(DIGEST, Slot(today.0 - 7 * 96)), 0);
    }
}
