//! What was told and stands until something else is told: a pause, moves of streams, brakes, a set day.
//!
//! Promises: it takes effect in the transaction that stores it, together with its entry in the audit, so a restart
//! changes nothing; and what waits is looked at again at once. What it means for quota is the gate's business.

use std::collections::BTreeMap;

use super::by_hand::Audit;
use super::engine::{Spool, Work};
use super::{ChoreAnswer, SpoolError, Store};
use crate::message::{
    BrakeRecord, Day, LaneId, LaneRecord, Pause, Queue, Reason, StreamId, StreamMove, StreamWay, Timestamp,
};

/// Names of streams that are kept; beyond it a new stream is refused.
pub const STREAM_NAMES_MOST: usize = 255;
/// Moves of one stream that are kept. The oldest go: nobody undoes a hundred moves one by one.
const MOVES_MOST: usize = 100;
/// How much further a line is searched for items that may go to legacy when those in front may not.
const SEARCH_DEPTH: usize = 16;

/// Something to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Telling {
    /// What.
    pub what: What,
    /// Who says so and why, if it was a person.
    pub audit: Option<Audit>,
}

/// See [`Telling`].
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A lane's brake is now like this.
    Brake {
        /// Whose.
        lane: LaneId,
        /// From here on.
        record: BrakeRecord,
    },
    /// Nothing leaves by new.
    Pause(Pause),
    /// The pause is over.
    Resume,
    /// Every lane stands at this stage; what that allows is for the gate to say.
    SetDay {
        /// From 0.
        stage: u32,
    },
    /// Streams of these names exist; each keeps its number for ever.
    NameStreams(Vec<String>),
    /// A stream goes another way, now or later.
    Move {
        /// Which.
        stream: StreamId,
        /// Its `id` is given here.
        to: StreamMove,
    },
    /// The last move of a stream that was told is taken back.
    UndoMove {
        /// Which.
        stream: StreamId,
    },
}

impl What {
    /// The word used in the audit, the log and the metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            What::Brake { .. } => "brake",
            What::Pause(_) => "pause",
            What::Resume => "resume",
            What::SetDay { .. } => "set-day",
            What::NameStreams(_) => "name-streams",
            What::Move { .. } => "stream-move",
            What::UndoMove { .. } => "stream-undo",
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// It stands.
    Done,
    /// This move is no more.
    Undone(StreamMove),
    /// Nothing was changed.
    Nothing(&'static str),
}

/// A lane as an operator's `set-day` leaves it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SetLane {
    /// Stage, and a limit that is lower or the same as it was.
    pub record: LaneRecord,
    /// Recipients that count as if they had been sent on that day.
    pub memory: (Day, u64),
}

/// Everything that stands, beside what belongs to a lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing {
    pub pause: Option<Pause>,
    pub names: Vec<String>,
    pub moves: BTreeMap<StreamId, Vec<StreamMove>>,
}

impl Standing {
    /// The move in force at `now`: of those whose time has come, the latest, and of several at one time the one told last.
    pub fn move_of(&self, stream: StreamId, now: Timestamp) -> Option<&StreamMove> {
        self.moves.get(&stream)?.iter().filter(|told| told.at <= now).max_by_key(|told| (told.at, told.id))
    }

    pub fn way_of(&self, stream: StreamId, now: Timestamp) -> Option<StreamWay> {
        self.move_of(stream, now).map(|told| told.to)
    }

    pub fn next_move(&self, now: Timestamp) -> Option<Timestamp> {
        self.moves.values().flatten().map(|told| told.at).filter(|at| *at > now).min()
    }

    pub fn add(&mut self, stream: StreamId, to: &StreamMove) {
        let last = self.moves.values().flatten().map(|told| told.id).max().unwrap_or(0);
        let moves = self.moves.entry(stream).or_default();
        moves.push(StreamMove { id: last + 1, ..to.clone() });
        if moves.len() > MOVES_MOST {
            moves.remove(0);
        }
    }

    pub fn undo(&mut self, stream: StreamId) -> Option<StreamMove> {
        self.moves.get_mut(&stream)?.pop()
    }
}

impl<S: Store> Spool<S> {
    /// Streams of these names exist from here on, as by [`What::NameStreams`]. `false`: there is no room for so many. For
    /// the start, before the first batch.
    pub fn name_streams(&mut self, names: &[String]) -> Result<bool, SpoolError> {
        self.in_one_transaction(|spool| Ok(spool.ledger.name_streams(names)))
    }

    pub(super) fn tell(&mut self, telling: &Telling, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let told = self.keep(&telling.what, work);
        let mut answer = ChoreAnswer::default();
        if !matches!(told, Told::Nothing(_)) {
            if let Some(audit) = &telling.audit {
                self.store.audit(telling.what.name(), audit, work.now, &answer, 0)?;
            }
            // What waits may go now, or has to leave the line.
            work.open_all_lanes(self.ledger.lanes().map(|(id, _)| Queue::New(id)));
            work.wake_at(Some(work.now));
        }
        answer.told = Some(Box::new(told));
        Ok(answer)
    }

    fn keep(&mut self, what: &What, work: &Work<'_>) -> Told {
        match what {
            What::Brake { lane, record } => match self.ledger.set_brake(*lane, record.clone()) {
                true => Told::Done,
                false => Told::Nothing("there is no such lane"),
            },
            What::Pause(pause) => {
                self.ledger.set_pause(Some(pause.clone()));
                Told::Done
            }
            What::Resume => match self.ledger.pause().is_some() {
                true => {
                    self.ledger.set_pause(None);
                    Told::Done
                }
                false => Told::Nothing("it is not paused"),
            },
            What::SetDay { stage } => {
                let lanes = work.gate().set_day(&self.ledger, *stage, work.now);
                lanes.iter().for_each(|lane| self.ledger.set_lane(lane));
                if lanes.is_empty() { Told::Nothing("there is no ramp, or it has not begun") } else { Told::Done }
            }
            What::NameStreams(names) => match self.ledger.name_streams(names) {
                true => Told::Done,
                false => Told::Nothing("too many streams have been named in the life of this spool"),
            },
            What::Move { stream, to } => {
                self.ledger.add_move(*stream, to);
                Told::Done
            }
            What::UndoMove { stream } => match self.ledger.undo_move(*stream) {
                Some(undone) => Told::Undone(undone),
                None => Told::Nothing("no move of this stream stands"),
            },
        }
    }

    /// Gives to the legacy server what the gate says must not wait for the new one.
    pub(super) fn give_back(&mut self, most: usize, work: &mut Work<'_>) -> Result<ChoreAnswer, SpoolError> {
        let mut answer = ChoreAnswer { next: self.ledger.next_move(work.now), ..ChoreAnswer::default() };
        for (queue, stream, reason) in self.to_give_back(work) {
            let room = most.saturating_sub(answer.items);
            if room == 0 {
                answer.next = Some(work.now);
                break;
            }
            // What the other route would be refused as well waits for its brake.
            let stays = |item: &super::Item| reason == Reason::Brake && item.reason == Reason::Pinned;
            // What was sent here by hand stays. But what came in while its stream went only by new has the same reason, and goes
            // when the stream is moved: it was due by then.
            let moved = self.ledger.move_of(stream, work.now).map(|told| told.at);
            let by_stream = |item: &super::Item| reason == Reason::Manual && moved.is_none_or(|at| item.due <= at);
            let by_hand = |item: &super::Item| item.reason == Reason::Manual && !by_stream(item);
            let may = |item: &super::Item| !item.maybe && !by_hand(item) && !stays(item);
            let mut found = self.store.due(queue, stream, Timestamp::NEVER, room)?;
            let full = found.len() == room;
            if full && !found.iter().any(may) {
                // Those that have to stay may stand in front of those that may go.
                found = self.store.due(queue, stream, Timestamp::NEVER, room * SEARCH_DEPTH)?;
            }
            let before = answer.items;
            for old in found.into_iter().filter(may).take(room) {
                self.give_to_legacy(&old, reason, &mut answer, work)?;
            }
            if full && answer.items > before {
                answer.next = Some(work.now);
            }
        }
        Ok(answer)
    }

    /// Lines and streams of the new server with mail that has to go to legacy, and why.
    pub(super) fn to_give_back(&self, work: &Work<'_>) -> Vec<(Queue, StreamId, Reason)> {
        let mut found: Vec<(Queue, StreamId, Reason)> = Vec::new();
        for (queue, stream, state, total) in self.ledger.totals() {
            let Queue::New(lane) = queue else { continue };
            if total.items == 0 || !state.is_waiting() || found.iter().any(|f| (f.0, f.1) == (queue, stream)) {
                continue;
            }
            if let Some(reason) = work.gate().gives_back(&self.ledger, lane, stream, work.now) {
                found.push((queue, stream, reason));
            }
        }
        found
    }
}
