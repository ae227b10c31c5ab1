//! Data that came back: restored from a backup, copied, or from a snapshot of its volume.
//!
//! Its ledger is old and its mail may have been delivered since. So the last 24 hours count as used up, and whatever
//! waits is paused until an operator releases it. Done in small transactions, the last of which makes the database at
//! home again: if the process ends before, the next start begins anew, and nothing is done twice.

use super::engine::Spool;
use super::item::{Item, ItemId, State};
use super::ledger::Total;
use super::{Batch, Gate, NoSlots, SpoolError, Store};
use crate::message::Timestamp;

/// Items paused in one transaction.
const PAUSE_AT_ONCE: usize = 1_000;

impl<S: Store> Spool<S> {
    /// Counts every limit as used up to `now`, pauses all that waits, and takes the data directory as its own. Returns
    /// what is paused.
    pub fn bring_back_paused(&mut self, gate: &dyn Gate, now: Timestamp) -> Result<Total, SpoolError> {
        self.in_one_transaction(|spool| spool.store.disown())?;
        // The days since the backup; the limit that counts as used is that of the day in force.
        self.apply(&Batch::default(), gate, &NoSlots, now)?;
        self.in_one_transaction(|spool| {
            spool.ledger.use_up(now);
            Ok(())
        })?;
        for state in [State::Ready, State::Held, State::Deferred] {
            while self.in_one_transaction(|spool| spool.pause_some(state))? > 0 {}
        }
        self.in_one_transaction(|spool| spool.store.adopt())?;
        Ok(self.ledger().total_of(State::Paused))
    }

    fn pause_some(&mut self, state: State) -> Result<usize, SpoolError> {
        let items = self.store.in_state(state, ItemId(0), PAUSE_AT_ONCE)?;
        let count = items.len();
        for item in items {
            // Only the state: an envelope that cannot be read stays as it is.
            self.store.set_state(item.id, State::Paused)?;
            self.ledger.leave(&item);
            self.ledger.enter(&Item { state: State::Paused, ..item });
        }
        Ok(count)
    }
}
