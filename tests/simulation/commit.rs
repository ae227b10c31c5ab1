//! One transaction: what goes into it, and what came of it.

use mailramp::message::Queue;
use mailramp::spool::{Batch, Chore, Claim, Done, Fate, Settle};

use super::{CHORE_MOST, CLAIM_MOST, CONNECTION_GRACE, Event, World};

impl World {
    /// What keeps the house, if it is time.
    pub(super) fn chores(&self) -> Vec<Chore> {
        let most_items = CHORE_MOST;
        match self.schedule.housekeeping_is_due(self.now) {
            true => vec![
                Chore::GiveBack { most_items },
                Chore::MoveOverdue { most_items },
                Chore::TakeExpired { most_items },
                Chore::DropDead { most_items },
            ],
            false => Vec::new(),
        }
    }

    /// Asks for what is due, as far as connections stand ready; returns how many were taken for each claim. A line that
    /// comes again is left for the next batch: by then it may be shut.
    pub(super) fn claims(&mut self, batch: &mut Batch) -> Vec<usize> {
        let mut taken = Vec::new();
        for (queue, streams) in self.schedule.due(self.now) {
            if batch.claims.iter().any(|claim| claim.queue == queue) {
                break;
            }
            let ready = self.pools.take_up_to(queue.route(), CLAIM_MOST);
            if ready > 0 {
                batch.claims.push(Claim { queue, streams, most_items: ready });
                taken.push(ready);
            }
        }
        taken
    }

    pub(super) fn commit(&mut self, batch: Batch, ready: &[usize]) -> Done {
        let lines = self.lines_ready(&batch);
        let spool = self.spool.as_mut().expect("only away while it is opened anew");
        let mut done = spool.apply(&batch, &self.gate, &self.pools, self.now).expect("memory takes everything");
        for (claim, (answer, ready)) in batch.claims.iter().zip(done.claims.iter().zip(ready)) {
            self.pools.give_back_some(claim.queue.route(), ready - answer.items);
            self.schedule.claimed(claim.queue, answer);
        }
        if !done.days.is_empty() {
            self.left.turned(self.spool.as_ref().expect("just used").ledger());
            self.stages_turned();
        }
        self.count(&batch, &done);
        if batch.chores.iter().any(|chore| matches!(chore, Chore::MoveOverdue { .. })) {
            let next = done.chores.iter().filter_map(|answer| answer.next).min();
            self.schedule.housekept(next);
        }
        self.schedule.touched(std::mem::take(&mut done.touched), done.wake);
        if let Some(order) = done.order.take() {
            self.schedule.serve_in(order);
        }
        for queue in std::mem::take(&mut done.refunded) {
            self.schedule.refunded(queue);
        }
        self.nobody_was_passed_over(&lines, &done);
        for claimed in std::mem::take(&mut done.handed) {
            let item = &claimed.item;
            if let Queue::New(lane) = item.queue {
                assert_eq!(lane, item.lane, "waits for one lane, and is another's: {item:?}");
                let shut = self.is_shut(lane);
                assert_eq!(shut, None, "{lane:?} is shut at {:?}, and yet this goes out: {item:?}", self.now);
            }
            if let (Queue::New(lane), Some(reservation)) = (item.queue, item.reservation) {
                assert!(!self.stands.doubtful, "the clock is in doubt, and tokens are given out: {item:?}");
                self.left.reserved(lane, item.stream, self.now, reservation.recipients);
            }
            let pickup = self.hops[item.queue.route() as usize].pickup(&mut self.random);
            self.push(self.now.after(pickup), Event::Mail(Box::new(claimed)));
        }
        self.expired.append(&mut done.expired);
        self.balance.check(self.spool.as_ref().expect("just used").ledger(), self.now);
        done
    }

    fn count(&mut self, batch: &Batch, done: &Done) {
        let today = self.outcomes.last_mut().expect("a day has begun");
        for (accept, placed) in batch.accepts.iter().zip(&done.accepts) {
            self.messages += 1;
            self.balance.accepted(accept);
            today.offered += placed.iter().map(|p| p.recipients).sum::<u64>();
            let legacy = placed.iter().filter(|p| p.queue == Queue::Legacy);
            today.legacy_at_once += legacy.map(|p| p.recipients).sum::<u64>();
            let ledger = self.spool.as_ref().expect("just used").ledger();
            let stream = self.gate.stream(ledger, accept.parts[0].stream, self.now);
            let wait = stream.overflow().max_wait().map(|wait| self.now.after(wait.max(CONNECTION_GRACE)));
            self.waits.insert(accept.id, wait);
        }
        for (chore, answer) in batch.chores.iter().zip(&done.chores) {
            match chore {
                Chore::MoveOverdue { .. } => today.legacy_late += answer.recipients,
                Chore::GiveBack { .. } => {
                    today.legacy_late += answer.recipients;
                    self.given_back += answer.recipients;
                }
                Chore::DropDead { .. } => self.balance.dropped(answer.recipients),
                _ => {}
            }
        }
        for settle in &batch.settles {
            self.balance.settled(settle);
            self.tokens_came_back(settle);
        }
    }

    fn tokens_came_back(&mut self, settle: &Settle) {
        let item = &settle.item;
        let Some(reservation) = item.reservation else { return };
        let used = settle.fates.iter().filter(|fate| matches!(fate, Fate::Relayed | Fate::Unknown { .. })).count();
        self.left.refunded(item.lane, item.stream, reservation, reservation.recipients - used as u64);
    }
}
