//! What happens to a ramp beside mail: operators, providers that ask for less, domains that become known, and what of
//! it must hold from that moment on.

use std::collections::BTreeMap;
use std::time::Duration;

use mailramp::delivery::outcome::{Cause, Verdict};
use mailramp::message::{
    BrakeLevel, BrakeRecord, LaneId, Pause, Queue, Reason, Route, StageStep, StreamId, StreamMove, StreamWay,
};
use mailramp::policy::brake::Attempt;
use mailramp::policy::{Brake, Provider, Signals};
use mailramp::reply::Reply;
use mailramp::spool::{Batch, Chore, ClockNote, Telling, Told, What};

use super::World;
use super::hop::Flight;
use super::places::{self, Domain};

/// Something that is done or happens at a moment.
#[derive(Clone, Debug)]
pub enum Act {
    Pause,
    Resume,
    SetDay {
        stage: u32,
    },
    Brake {
        lane: LaneId,
        level: BrakeLevel,
        lasts: Duration,
        step: StageStep,
    },
    Release {
        lane: LaneId,
    },
    /// From so much later on.
    Move {
        stream: StreamId,
        to: StreamWay,
        later: Duration,
    },
    Undo {
        stream: StreamId,
    },
    /// The lane of a domain is found out, or has become another one.
    Learn {
        domain: Domain,
        lane: LaneId,
    },
    /// A part of what a lane is sent gets this reply, until another act says otherwise.
    Pressure {
        lane: LaneId,
        part: f64,
        reply: &'static str,
    },
    /// The machine's clock cannot be right; or it is again.
    Doubt(bool),
    /// The data is copied, as a backup does.
    Copy,
    /// The process dies, and starts again on the copy.
    Restore,
}

/// What a provider answers to a part of what it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    pub part: f64,
    pub reply: &'static str,
}

/// What was told and must hold; kept apart from the ledger.
#[derive(Clone, Debug, Default)]
pub struct Stands {
    pub paused: bool,
    pub brakes: BTreeMap<LaneId, BrakeRecord>,
    /// Lanes that were braked or paused at any time of the day.
    pub braked_today: BTreeMap<LaneId, bool>,
    /// What was heard of each lane; forgotten with the process.
    pub heard: BTreeMap<LaneId, Brake>,
    pub doubtful: bool,
}

impl World {
    pub(super) fn act(&mut self, act: Act) {
        let (now, reason) = (self.now, || "simulated".to_string());
        // If a day has begun meanwhile, that comes first.
        self.commit(Batch::default(), &[]);
        match act {
            Act::Pause => {
                self.stands.paused = true;
                self.tell(What::Pause(Pause { since: now, actor: 0, reason: reason() }));
            }
            Act::Resume => {
                self.stands.paused = false;
                self.tell(What::Resume);
            }
            Act::SetDay { stage } => {
                self.tell(What::SetDay { stage });
                let ledger = self.spool.as_ref().expect("there is a spool").ledger();
                self.left.limits_changed(ledger);
                self.stages = ledger.lanes().map(|(id, lane)| (id, lane.record.stage)).collect();
            }
            Act::Brake { lane, level, lasts, step } => {
                let until = now.after(lasts);
                self.brake(lane, BrakeRecord { level, since: now, until, step, touched: true, reason: reason() });
            }
            Act::Release { lane } => {
                self.stands.heard.remove(&lane);
                if let Some(ledger) = self.spool().ledger().lane(lane) {
                    let released = self.gate.brake_rules().released(&ledger.brake);
                    self.brake(lane, BrakeRecord { touched: true, ..released });
                }
            }
            Act::Move { stream, to, later } => {
                let to = StreamMove { id: 0, to, at: now.after(later), told: now, actor: 0, reason: reason() };
                self.tell(What::Move { stream, to });
            }
            Act::Undo { stream } => drop(self.tell(What::UndoMove { stream })),
            Act::Learn { domain, lane } => self.places.known.learn(domain, lane),
            Act::Pressure { lane, part, reply } => drop(self.pressures.insert(lane, Pressure { part, reply })),
            Act::Doubt(doubtful) => {
                self.stands.doubtful = doubtful;
                let mark = mailramp::clock::reckoning::Mark {
                    time: now,
                    boot: mailramp::clock::reckoning::BootId::UNKNOWN,
                    since_boot: Duration::ZERO,
                };
                let note = ClockNote { mark, doubtful, missed: Duration::ZERO, moved: 0 };
                // The clock alone is no work: somebody looks at something.
                let chores = vec![Chore::DropDead { most_items: 1 }];
                self.commit(Batch { clock: Some(note), chores, ..Batch::default() }, &[]);
            }
            Act::Copy => self.copy = Some((self.spool_mut().store().clone(), self.balance)),
            Act::Restore => self.restore(),
        }
    }

    fn brake(&mut self, lane: LaneId, record: BrakeRecord) {
        if self.tell(What::Brake { lane, record: record.clone() }) == Told::Done {
            self.stands.brakes.insert(lane, record);
        }
        self.note_brakes();
    }

    pub(super) fn tell(&mut self, what: What) -> Told {
        let chores = vec![Chore::Tell(Telling { what, audit: None })];
        let done = self.commit(Batch { chores, ..Batch::default() }, &[]);
        *done.chores[0].told.clone().expect("something came of it")
    }

    /// What the replies to one transaction by the new server say about its lane's brake.
    pub(super) fn listen(&mut self, flight: &Flight) {
        let lane = flight.claimed.item.lane;
        let Some(provider) = Provider::of_lane(lane).filter(|_| flight.route() == Route::New) else { return };
        let recipients = flight.claimed.item.envelope.recipients.iter();
        for (recipient, verdict) in recipients.zip(&flight.verdicts) {
            let (deferred, reply) = match verdict {
                Verdict::Delivered { reply } | Verdict::Rejected { reply, .. } => (false, Some(reply)),
                Verdict::Deferred { cause: Cause::Reply(reply), .. } => (true, Some(reply)),
                _ => continue,
            };
            let signal = reply.and_then(|reply| Signals::embedded().classify(provider.name(), reply));
            let domain = places::domain_of(recipient).map_or(0, u64::from);
            let Some(record) = self.spool().ledger().lane(lane).map(|lane| lane.brake.clone()) else { return };
            let attempt = Attempt { domain, deferred, signal };
            let heard = self.stands.heard.entry(lane).or_default();
            let rules = *self.gate.brake_rules();
            if let Some(braked) = heard.observe(&rules, &record, &attempt, self.now) {
                self.braked_by_replies += 1;
                self.brake(lane, braked.record);
            }
        }
    }

    /// Nothing may be said to this lane's provider now, whatever for.
    pub(super) fn is_shut(&self, lane: LaneId) -> Option<Reason> {
        if self.stands.paused {
            return Some(Reason::Paused);
        }
        let shut = |id: LaneId| self.level(id) >= BrakeLevel::Suspended;
        super::windows::both(lane).any(shut).then_some(Reason::Brake)
    }

    pub(super) fn level(&self, lane: LaneId) -> BrakeLevel {
        let rules = self.gate.brake_rules();
        self.stands.brakes.get(&lane).map_or(BrakeLevel::Open, |record| rules.level(record, self.now))
    }

    /// Keeps in mind which lanes cannot count this day.
    pub(super) fn note_brakes(&mut self) {
        for id in self.stages.keys().copied().collect::<Vec<_>>() {
            let level = self.level(id);
            self.left.is_slow(id, level == BrakeLevel::Slow, self.now);
            if level > BrakeLevel::Open || self.stands.paused {
                self.stands.braked_today.insert(id, true);
            }
        }
    }

    /// Days have turned: no stage rose over a day that cannot count.
    pub(super) fn stages_turned(&mut self) {
        let ledger = self.spool.as_ref().expect("just used").ledger();
        for (id, lane) in ledger.lanes() {
            let before = self.stages.insert(id, lane.record.stage);
            let braked = self.stands.braked_today.remove(&id).unwrap_or(false);
            if let Some(before) = before.filter(|_| braked) {
                let after = lane.record.stage;
                assert!(
                    after <= before,
                    "{id:?} rose from stage {before} to {after} over a braked day: {:?}",
                    self.now
                );
                self.braked_days += 1;
            }
        }
        self.note_brakes();
    }

    /// What the gate gives back does not wait for the new server any more.
    pub(super) fn nothing_waits_for_a_shut_lane(&mut self) {
        let lines: Vec<_> = self.spool().ledger().totals().filter(|(_, _, state, _)| state.is_waiting()).collect();
        for (queue, stream, _, total) in lines {
            let Queue::New(lane) = queue else { continue };
            let holds = self.gate.stream(self.spool().ledger(), stream, self.now).overflow().max_wait().is_none();
            let moved_away = self.spool().ledger().way_of(stream, self.now) == Some(StreamWay::Legacy);
            if total.items == 0 || !(moved_away || self.is_shut(lane).is_some() && !holds) {
                continue;
            }
            let now = self.now;
            let stays = |item: &mailramp::spool::Item| item.maybe || item.reason == Reason::Manual;
            let mut here = self.spool_mut().store().items().filter(|i| (i.queue, i.stream) == (queue, stream));
            if let Some(item) = here.find(|item| item.state.is_waiting() && !stays(item)) {
                panic!("at {now:?} {lane:?} is shut for {stream:?}, and yet this waits for it: {item:?}");
            }
        }
    }
}

/// The reply as the next hop's client would have read it.
pub fn reply(line: &str) -> Reply {
    Reply::from_line(line).expect("a reply")
}
