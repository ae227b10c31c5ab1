//! What the log says of refusals: each one while they are few, one a second of a kind under flood.
//!
//! The metrics count all of them; this is about lines, and about the disk they end on.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Duration, Instant};

use super::RejectReason;

/// One listener's right to log refusals, by reason.
#[derive(Debug, Default)]
pub(super) struct RejectionLog {
    reasons: [Mutex<Lines>; RejectReason::ALL.len()],
}

#[derive(Debug, Default)]
struct Lines {
    /// Written since `counted_from`, less one for each second since.
    written: u64,
    counted_from: Option<Instant>,
    unlogged: u64,
}

impl RejectionLog {
    /// May a line be written now, and how many were not since the last one?
    pub fn admit(&self, reason: RejectReason, now: Instant) -> Option<u64> {
        let slot = RejectReason::ALL.iter().position(|known| *known == reason)?;
        // Plain numbers that no panic leaves half written.
        self.reasons[slot].lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }
}

impl Lines {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let from = *self.counted_from.get_or_insert(now);
        let seconds = now.saturating_duration_since(from).as_secs();
        self.written = self.written.saturating_sub(seconds);
        self.counted_from = Some(from + Duration::from_secs(seconds));
        if self.written >= LINES_AT_ONCE {
            self.unlogged += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

const LINES_AT_ONCE: u64 = 10; // what an operator can read of one second

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_once_a_second_with_the_number_left_out_and_other_reasons_are_not_touched() {
        let log = RejectionLog::default();
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let lines: Vec<_> = (0..3000).filter_map(|ms| log.admit(RejectReason::Busy, at(ms))).collect();
        assert_eq!(lines.len(), 12, "ten at once, then one after each second");
        assert_eq!(lines[9..], [0, 990, 999]);
        assert_eq!(log.admit(RejectReason::Tls, at(2999)), Some(0));
        assert_eq!(log.admit(RejectReason::Busy, at(3000)), Some(999));
        // After a quiet hour it is as at the start.
        let later: Vec<_> = (0..20).filter_map(|_| log.admit(RejectReason::Busy, at(3_600_000))).collect();
        assert_eq!(later.len(), 10);
    }
}
