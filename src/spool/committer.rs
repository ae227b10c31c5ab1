//! One thread owns the spool and commits everything that arrived while the previous commit ran.
//!
//! It waits on a channel, never on a timer: with one writer the latency is one sync, with a hundred the batches form
//! by themselves. Answers are given after the commit and not before. When a commit fails for want of room, the batch is
//! applied again without new mail; when it fails in any other way the thread ends with that error, and the process with
//! it: what is on disk is then unknown, and only a start finds out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::body::NewBody;
use super::ledger::Ledger;
use super::{
    Accept, Batch, Chore, ChoreAnswer, Claim, ClaimAnswer, Claimed, ClockNote, Done, Gate, Placed, Settle, Slots,
    Spool, SpoolError, Store, Touched,
};
use crate::clock::reckoning::{Look as ClockLook, Mark};
use crate::clock::{Clock, TrustedClock};
use crate::message::{Queue, Timestamp};

/// Octets of body in one batch, beyond which the rest waits for the next.
const BATCH_BYTES: u64 = 8 << 20;
/// Questions in one batch.
const BATCH_OPERATIONS: usize = 1024;
/// The stored time is written anew with a batch when it is older than this.
const CLOCK_ROW_FRESH: Duration = Duration::from_secs(60);
/// A machine that was off for less takes nothing from the life of a message worth a look at every row.
const MISSED_LEAST: Duration = Duration::from_secs(3600);
/// Questions that may wait; beyond it those who ask wait.
const CHANNEL: usize = 4096;

/// Where claimed items go. Called on the committer's thread, after the commit; must not block.
pub trait Outlet: Slots {
    /// Items in flight, each for a connection that was taken.
    fn deliver(&self, items: Vec<Claimed>);
    /// Items in flight that have expired: to be settled as failed.
    fn expired(&self, items: Vec<Claimed>);
    /// Lines that got items, lines whose lane got tokens back, and the earliest deadline or expiry of the items.
    fn touched(&self, lines: Vec<Touched>, refunded: Vec<Queue>, wake: Option<Timestamp>);
    /// An operator accepted the clock: every time that was told before is off.
    fn clock_moved(&self) {}
    /// A batch was committed, syncs included, within `took`. For numbers and the log.
    fn committed(&self, _done: &Done, _took: Duration) {}
}

/// A look at the ledger, run on the committer's thread between two batches.
type Look = Box<dyn FnOnce(&Ledger, Timestamp) + Send>;

enum Operation {
    Accept(Box<Accept>, oneshot::Sender<Result<Vec<Placed>, SpoolError>>),
    Claim(Claim, oneshot::Sender<Result<ClaimAnswer, SpoolError>>),
    Settle(Box<Settle>),
    Chore(Chore, oneshot::Sender<Result<ChoreAnswer, SpoolError>>),
    Look(Look),
    AcceptClock(oneshot::Sender<Result<Option<i64>, SpoolError>>),
    Stop,
}

/// The way into the committer. Cheap to clone; the thread ends when it is told to, or when the last one is gone.
#[derive(Clone)]
pub struct SpoolHandle {
    operations: mpsc::Sender<Operation>,
    queued_bytes: Arc<AtomicU64>,
}

impl SpoolHandle {
    /// Stores a message. `Ok` means it is on disk; the answer says where its recipients went.
    pub async fn accept(&self, accept: Accept) -> Result<Vec<Placed>, SpoolError> {
        let file = match &accept.body {
            NewBody::File { path, .. } => Some(path.clone()),
            NewBody::Memory { .. } => None,
        };
        let result = self.ask(|answer| Operation::Accept(Box::new(accept), answer)).await;
        // Only this answer means that no row names the file. Otherwise the next start looks whether one does.
        if let (Err(SpoolError::Full { .. }), Some(path)) = (&result, file) {
            let _ = std::fs::remove_file(path);
        }
        result
    }

    /// Takes items for connections that stand ready; they come through the outlet.
    pub async fn claim(&self, claim: Claim) -> Result<ClaimAnswer, SpoolError> {
        self.ask(|answer| Operation::Claim(claim, answer)).await
    }

    /// Hands in the outcome of an item. It is written with the next batch; nobody waits for it.
    pub async fn settle(&self, settle: Settle) -> Result<(), SpoolError> {
        self.operations.send(Operation::Settle(Box::new(settle))).await.map_err(|_| SpoolError::Stopped)
    }

    /// Does a piece of housekeeping.
    pub async fn chore(&self, chore: Chore) -> Result<ChoreAnswer, SpoolError> {
        self.ask(|answer| Operation::Chore(chore, answer)).await
    }

    /// Looks at the ledger as of the last commit. `look` runs on the committer's thread and should be short.
    pub async fn look<R: Send + 'static>(
        &self,
        look: impl FnOnce(&Ledger, Timestamp) -> R + Send + 'static,
    ) -> Result<R, SpoolError> {
        let (answer, result) = oneshot::channel();
        let look: Look = Box::new(move |ledger, now| drop(answer.send(look(ledger, now))));
        self.operations.send(Operation::Look(look)).await.map_err(|_| SpoolError::Stopped)?;
        result.await.map_err(|_| SpoolError::Stopped)
    }

    /// From here on the machine's clock is right. Returns by how many nanoseconds the time moved; `None`: the clock was
    /// not in doubt, and nothing has changed.
    pub async fn accept_clock(&self) -> Result<Option<i64>, SpoolError> {
        self.ask(Operation::AcceptClock).await
    }

    /// Ends the committer after what was asked before; questions asked later get [`SpoolError::Stopped`].
    pub async fn stop(&self) {
        // Already gone is as good.
        let _ = self.operations.send(Operation::Stop).await;
    }

    /// Octets of body in the queue as of the last commit.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    async fn ask<R>(
        &self,
        operation: impl FnOnce(oneshot::Sender<Result<R, SpoolError>>) -> Operation,
    ) -> Result<R, SpoolError> {
        let (answer, result) = oneshot::channel();
        self.operations.send(operation(answer)).await.map_err(|_| SpoolError::Stopped)?;
        result.await.unwrap_or(Err(SpoolError::Stopped))
    }
}

/// The committer's thread; joining it says why it ended.
pub struct Committer {
    thread: JoinHandle<Result<(), SpoolError>>,
    died: oneshot::Receiver<()>,
}

impl Committer {
    /// Resolves when the thread has ended, on purpose or not.
    pub async fn ended(&mut self) {
        let _ = (&mut self.died).await;
    }

    /// Waits for the end. `Err`: the spool is in an unknown state and the process must end (exit 74).
    pub fn join(self) -> Result<(), SpoolError> {
        self.thread.join().unwrap_or(Err(SpoolError::Stopped))
    }
}

/// Starts the thread that owns `spool`.
pub fn start<S: Store + 'static>(
    spool: Spool<S>,
    gate: Arc<dyn Gate>,
    outlet: Arc<dyn Outlet>,
    clock: Arc<TrustedClock>,
) -> std::io::Result<(SpoolHandle, Committer)> {
    let (operations, inbox) = mpsc::channel(CHANNEL);
    let queued_bytes = Arc::new(AtomicU64::new(spool.ledger().queued_bytes()));
    let handle = SpoolHandle { operations, queued_bytes: queued_bytes.clone() };
    let (alive, died) = oneshot::channel();
    let worker = Worker { spool, gate, outlet, clock, missed: Duration::ZERO, queued_bytes, unsettled: Vec::new() };
    let thread = std::thread::Builder::new().name("committer".into()).spawn(move || {
        let result = worker.run(inbox);
        drop(alive);
        result
    })?;
    Ok((handle, Committer { thread, died }))
}

struct Worker<S> {
    spool: Spool<S>,
    gate: Arc<dyn Gate>,
    outlet: Arc<dyn Outlet>,
    clock: Arc<TrustedClock>,
    /// Time in which the machine was off, not written down yet.
    missed: Duration,
    queued_bytes: Arc<AtomicU64>,
    /// Outcomes that a full disk could not take. While there are any, nothing is claimed.
    unsettled: Vec<Settle>,
}

/// Who waits for which answer, in the order of the batch.
#[derive(Default)]
struct Waiting {
    accepts: Vec<oneshot::Sender<Result<Vec<Placed>, SpoolError>>>,
    claims: Vec<oneshot::Sender<Result<ClaimAnswer, SpoolError>>>,
    chores: Vec<oneshot::Sender<Result<ChoreAnswer, SpoolError>>>,
}

impl<S: Store> Worker<S> {
    fn run(mut self, mut inbox: mpsc::Receiver<Operation>) -> Result<(), SpoolError> {
        let mut stopping = false;
        while !stopping {
            let Some(first) = inbox.blocking_recv() else { break };
            let mut batch = Batch { settles: std::mem::take(&mut self.unsettled), ..Batch::default() };
            let mut waiting = Waiting::default();
            let mut bytes = 0;
            let mut next = Some(first);
            let mut count = 0;
            while let Some(operation) = next {
                match operation {
                    Operation::Accept(accept, answer) => {
                        bytes += accept.body.size();
                        batch.accepts.push(*accept);
                        waiting.accepts.push(answer);
                    }
                    Operation::Claim(claim, answer) => {
                        batch.claims.push(claim);
                        waiting.claims.push(answer);
                    }
                    Operation::Settle(settle) => batch.settles.push(*settle),
                    Operation::Chore(chore, answer) => {
                        batch.chores.push(chore);
                        waiting.chores.push(answer);
                    }
                    Operation::Look(look) => look(self.spool.ledger(), self.clock.now()),
                    Operation::AcceptClock(answer) => drop(answer.send(self.accept_clock()?)),
                    Operation::Stop => stopping = true,
                }
                count += 1;
                let more = !stopping && bytes < BATCH_BYTES && count < BATCH_OPERATIONS;
                next = more.then(|| inbox.try_recv().ok()).flatten();
            }
            if !batch.is_empty() {
                self.commit(batch, waiting)?;
            }
        }
        // What cannot be settled now either is found in flight by the next start.
        if !self.unsettled.is_empty() {
            let settles = std::mem::take(&mut self.unsettled);
            self.commit(Batch { settles, ..Batch::default() }, Waiting::default())?;
        }
        Ok(())
    }

    fn commit(&mut self, mut batch: Batch, waiting: Waiting) -> Result<(), SpoolError> {
        match self.apply(&mut batch) {
            Ok(done) => {
                self.answer(done, waiting);
                Ok(())
            }
            Err(SpoolError::Full { free_bytes, required_bytes, used_bytes }) => {
                let why = || SpoolError::Full { free_bytes, required_bytes, used_bytes };
                for answer in waiting.accepts {
                    let _ = answer.send(Err(why()));
                }
                let rest = Batch { accepts: Vec::new(), ..batch };
                let waiting = Waiting { accepts: Vec::new(), ..waiting };
                self.commit_without_mail(rest, waiting, why)
            }
            Err(fatal) => Err(fatal),
        }
    }

    /// The disk is full: what frees room goes first, at the cost of the ballast if need be.
    fn commit_without_mail(
        &mut self,
        mut batch: Batch,
        waiting: Waiting,
        why: impl Fn() -> SpoolError,
    ) -> Result<(), SpoolError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut result = self.apply(&mut batch);
        if matches!(result, Err(SpoolError::Full { .. })) && self.spool.store().free_ballast() {
            tracing::warn!(event = "spool.ballast", "the disk is full: the reserve was given up to settle deliveries");
            result = self.apply(&mut batch);
        }
        match result {
            Ok(done) => self.answer(done, waiting),
            Err(SpoolError::Full { .. }) => {
                // Nothing more leaves until these can be written, or a crash now would send them twice.
                self.unsettled = batch.settles;
                for answer in waiting.claims {
                    let _ = answer.send(Err(why()));
                }
                for answer in waiting.chores {
                    let _ = answer.send(Err(why()));
                }
            }
            Err(fatal) => return Err(fatal),
        }
        Ok(())
    }

    /// `Ok(Err)`: not now, the disk is full.
    fn accept_clock(&mut self) -> Result<Result<Option<i64>, SpoolError>, SpoolError> {
        let Some((moved, mut accepted)) = self.clock.proposal() else { return Ok(Ok(None)) };
        let look = accepted.look(self.clock.reading());
        let clock = Some(ClockNote { mark: look.mark, doubtful: false, missed: self.missed, moved });
        let batch = Batch { clock, ..Batch::default() };
        match self.spool.apply(&batch, &*self.gate, &*self.outlet, look.time) {
            Ok(done) => {
                self.clock.adopt(accepted);
                self.missed = Duration::ZERO;
                self.outlet.committed(&done, Duration::ZERO);
                self.outlet.clock_moved();
                Ok(Ok(Some(moved)))
            }
            Err(full @ SpoolError::Full { .. }) => Ok(Err(full)),
            Err(fatal) => Err(fatal),
        }
    }

    /// What the clock says now, if it is worth a row: its standing changed, or the row is old.
    fn news_of_the_clock(&mut self, look: ClockLook) -> Option<ClockNote> {
        self.missed += self.clock.take_missed();
        if self.missed < MISSED_LEAST {
            self.missed = Duration::ZERO;
        }
        let (ledger, doubtful) = (self.spool.ledger(), look.standing.is_doubtful());
        let fresh = |stored: Mark| stored.boot == look.mark.boot && look.time.since(stored.time) < CLOCK_ROW_FRESH;
        let known = ledger.clock().is_some_and(fresh) && ledger.clock_is_doubtful() == doubtful;
        (!known || !self.missed.is_zero()).then_some(ClockNote {
            mark: look.mark,
            doubtful,
            missed: self.missed,
            moved: 0,
        })
    }

    fn apply(&mut self, batch: &mut Batch) -> Result<Done, SpoolError> {
        let began = Instant::now();
        let look = self.clock.look();
        batch.clock = self.news_of_the_clock(look);
        let done = self.spool.apply(batch, &*self.gate, &*self.outlet, look.time)?;
        self.missed = Duration::ZERO;
        self.queued_bytes.store(self.spool.ledger().queued_bytes(), Ordering::Relaxed);
        self.outlet.committed(&done, began.elapsed());
        Ok(done)
    }

    fn answer(&self, done: Done, waiting: Waiting) {
        // Connections first: they can work while the applications read their 250.
        if !done.handed.is_empty() {
            self.outlet.deliver(done.handed);
        }
        for (placed, answer) in done.accepts.into_iter().zip(waiting.accepts) {
            let _ = answer.send(Ok(placed));
        }
        if !done.expired.is_empty() {
            self.outlet.expired(done.expired);
        }
        if !done.touched.is_empty() || !done.refunded.is_empty() || done.wake.is_some() {
            self.outlet.touched(done.touched, done.refunded, done.wake);
        }
        for (found, answer) in done.claims.into_iter().zip(waiting.claims) {
            let _ = answer.send(Ok(found));
        }
        for (found, answer) in done.chores.into_iter().zip(waiting.chores) {
            let _ = answer.send(Ok(found));
        }
    }
}
