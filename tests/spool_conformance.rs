//! One suite for every back end of the spool: kill, full disk, two claimers, midnight, a clock that goes back.
//!
//! `harness` has the bench and a plain gate, `rules` what holds everywhere, `by_hand` what operators do, `restored` what
//! came back, `clock` what a clock that was wrong may not do, `faults` what a full disk and a crash may not do, `quota`
//! the ledger's promises, `random` all of it mixed from a seed, `standing` what was told and
//! stands, `on_disk` what only SQLite and segments have to promise.

#[path = "spool_conformance/harness.rs"]
mod harness;

/// Runs each sentence on both back ends.
macro_rules! on_both {
    ($($sentence:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $sentence() { super::$sentence::<crate::harness::Memory>() })*
        }
        mod in_sqlite {
            $(#[test] fn $sentence() { super::$sentence::<crate::harness::Sqlite>() })*
        }
    };
}

#[path = "spool_conformance/by_hand.rs"]
mod by_hand;
#[path = "spool_conformance/clock.rs"]
mod clock;
#[path = "spool_conformance/faults.rs"]
mod faults;
#[path = "spool_conformance/on_disk.rs"]
mod on_disk;
#[path = "spool_conformance/quota.rs"]
mod quota;
#[path = "spool_conformance/random.rs"]
mod random;
#[path = "spool_conformance/restored.rs"]
mod restored;
#[path = "spool_conformance/rules.rs"]
mod rules;
#[path = "spool_conformance/standing.rs"]
mod standing;
