//! What was promised, checked from what happened: the balance of recipients, and who got what.

use mailramp::delivery::outcome::Verdict;
use mailramp::message::{Route, Timestamp};
use mailramp::spool::memory::MemoryStore;
use mailramp::spool::{Accept, Fate, Ledger, Settle, State};

use super::hop::Flight;
use super::places;

/// Every accepted recipient is in one place.
#[derive(Clone, Copy, Debug, Default)]
pub struct Balance {
    pub accepted: u64,
    pub relayed: u64,
    pub failed: u64,
}

impl Balance {
    pub fn accepted(&mut self, accept: &Accept) {
        self.accepted += accept.parts.iter().map(|part| part.recipients.len() as u64).sum::<u64>();
    }

    pub fn settled(&mut self, settle: &Settle) {
        for fate in &settle.fates {
            match fate {
                Fate::Relayed => self.relayed += 1,
                Fate::Failed => self.failed += 1,
                _ => {}
            }
        }
        if let Some(report) = &settle.report {
            self.accepted(report);
        }
    }

    /// Dead letters whose time is over.
    pub fn dropped(&mut self, recipients: u64) {
        self.failed += recipients;
    }

    pub fn check(&self, ledger: &Ledger, now: Timestamp) {
        let waiting: u64 = ledger.totals().map(|(.., total)| total.recipients).sum();
        let Balance { accepted, relayed, failed } = *self;
        assert_eq!(accepted, relayed + failed + waiting, "{relayed} relayed, {failed} failed, {waiting} wait: {now:?}");
    }

    /// The same with what really lies in the store.
    pub fn recount(&self, store: &mut MemoryStore) {
        let waiting: u64 = store.items().map(|item| item.recipients()).sum();
        assert_eq!(self.accepted, self.relayed + self.failed + waiting, "counted item by item");
        let metered = |state| state == State::InFlight;
        let reserved = store.items().filter(|i| i.reservation.is_some());
        assert!(reserved.into_iter().all(|i| metered(i.state)), "a reservation belongs to an item in flight");
        let mut bodies: Vec<_> = store.items().map(|item| item.body).collect();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(bodies.len(), store.bodies(), "a body lives exactly as long as an item names it");
    }
}

/// Copies that next hops hold of what was meant for one recipient.
#[derive(Clone, Copy, Debug, Default)]
struct Copies {
    by: [u8; 2],
    /// Answers that we never heard.
    lost: u8,
}

/// Who got what, as far as recipients have names.
#[derive(Default)]
pub struct Book {
    /// By name, which is a number.
    copies: Vec<Copies>,
    pub duplicates: u64,
}

impl Book {
    /// The final dot came to a next hop.
    pub fn arrived(&mut self, flight: &Flight) {
        if !flight.kept {
            return;
        }
        let route = flight.route();
        let maybe = flight.claimed.item.maybe;
        for name in names(flight) {
            let copies = self.of(name);
            copies.by[route as usize] += 1;
            assert!(copies.by.contains(&0), "recipient {name} was sent by both routes");
            let all = copies.by[route as usize];
            assert!(all <= 1 + copies.lost, "recipient {name} got {all} copies, {} answers were lost", copies.lost);
            assert!(all == 1 || maybe, "recipient {name} got another copy without a mark that it might");
            self.duplicates += u64::from(all > 1);
        }
    }

    /// The answer came, or it is known that none will.
    pub fn answered(&mut self, flight: &Flight) {
        if flight.verdicts.iter().any(|verdict| matches!(verdict, Verdict::Unknown { .. })) {
            self.unanswered(flight);
        }
    }

    pub fn unanswered(&mut self, flight: &Flight) {
        for name in names(flight) {
            self.of(name).lost += 1;
        }
    }

    fn of(&mut self, name: usize) -> &mut Copies {
        if self.copies.len() <= name {
            self.copies.resize(name + 1024, Copies::default());
        }
        &mut self.copies[name]
    }

    pub fn copies_by(&self, route: Route) -> u64 {
        self.copies.iter().map(|copies| u64::from(copies.by[route as usize])).sum()
    }
}

/// Those that leave with the final dot, by number; reports of ours have none.
fn names(flight: &Flight) -> impl Iterator<Item = usize> {
    let recipients = flight.claimed.item.envelope.recipients.iter().zip(&flight.verdicts);
    let left = recipients.filter(|(_, verdict)| verdict.may_have_left());
    left.filter_map(|(recipient, _)| places::name_of(recipient))
}
