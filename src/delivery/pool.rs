//! The connections of one route: which stand ready, how many there may be, whether the next hop is up.
//!
//! A connection that is open and idle *stands ready*. The committer takes ready ones while it decides, and delivers
//! exactly as many items as it took; what was taken must therefore not go away in between, which is what
//! [`Pool::leave`] sees to. The last one to become idle is used first, so that the others can close.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::spool::Claimed;

/// Between two attempts to reach a next hop that is down: at least, and at most.
const PROBE_MIN: Duration = Duration::from_secs(2);
const PROBE_MAX: Duration = Duration::from_secs(60);

/// Names a connection while it is idle.
pub type Seat = u64;

/// Connections of one route.
#[derive(Debug)]
pub struct Pool {
    most: usize,
    open: AtomicUsize,
    established: AtomicUsize,
    idle: Mutex<Idle>,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Idle {
    stack: Vec<(Seat, oneshot::Sender<Claimed>)>,
    taken: usize,
    next: Seat,
}

/// Whether the next hop can be reached.
#[derive(Clone, Debug)]
pub struct Health {
    /// The last attempt to connect worked, or none was made.
    pub up: bool,
    /// What it said otherwise.
    pub last_error: Option<String>,
    failures: u32,
    probe_at: Instant,
}

impl Pool {
    /// At most `most` connections, at least one.
    pub fn new(most: usize) -> Self {
        let health = Health { up: true, last_error: None, failures: 0, probe_at: Instant::now() };
        Pool {
            most: most.max(1),
            open: AtomicUsize::new(0),
            established: AtomicUsize::new(0),
            idle: Mutex::default(),
            health: Mutex::new(health),
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Open connections, and those being opened.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Idle connections that nobody has taken.
    pub fn ready(&self) -> usize {
        let idle = self.idle();
        idle.stack.len() - idle.taken
    }

    /// Takes a ready connection. Each one taken is followed by [`Pool::deliver`] or [`Pool::give_back`].
    pub fn take(&self) -> bool {
        self.take_up_to(1) == 1
    }

    /// Takes up to `most` ready connections; returns how many.
    pub fn take_up_to(&self, most: usize) -> usize {
        let mut idle = self.idle();
        let count = most.min(idle.stack.len() - idle.taken);
        idle.taken += count;
        count
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, count: usize) {
        let mut idle = self.idle();
        idle.taken = idle.taken.saturating_sub(count);
    }

    /// Hands an item to a connection that was taken. `Err`: it has died, the item is still ours.
    pub fn deliver(&self, claimed: Claimed) -> Result<(), Box<Claimed>> {
        let sender = {
            let mut idle = self.idle();
            idle.taken = idle.taken.saturating_sub(1);
            idle.stack.pop()
        };
        match sender {
            Some((_, sender)) => sender.send(claimed).map_err(Box::new),
            None => Err(Box::new(claimed)),
        }
    }

    /// An open connection becomes ready; its work comes through the receiver.
    pub fn sit(&self) -> (Seat, oneshot::Receiver<Claimed>) {
        let (sender, receiver) = oneshot::channel();
        let mut idle = self.idle();
        idle.next += 1;
        let seat = idle.next;
        idle.stack.push((seat, sender));
        (seat, receiver)
    }

    /// The connection is about to close. `false`: it may just have been taken, so work may come; ask again later.
    pub fn leave(&self, seat: Seat) -> bool {
        let mut idle = self.idle();
        if idle.stack.len() <= idle.taken {
            return false;
        }
        let before = idle.stack.len();
        idle.stack.retain(|(s, _)| *s != seat);
        idle.stack.len() < before
    }

    /// Room for another connection, and the next hop may be tried: counts it in.
    pub fn begin_opening(&self) -> bool {
        let probing = {
            let health = self.health();
            if Instant::now() < health.probe_at {
                return false;
            }
            !health.up
        };
        // While it is down one probe at a time is enough.
        let most = if probing { 1 } else { self.most };
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < most).then_some(open + 1)).is_ok()
    }

    /// An open connection closed.
    pub fn closed(&self) {
        self.established.fetch_sub(1, Ordering::AcqRel);
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// A connection that was counted in did not come about.
    pub fn not_opened(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// The next hop wants less of us: no more connections are opened for a moment.
    pub fn pause(&self) {
        let mut health = self.health();
        health.probe_at = health.probe_at.max(Instant::now() + PROBE_MIN);
    }

    /// A connection was opened. `true`: the next hop had been down.
    pub fn reached(&self) -> bool {
        self.established.fetch_add(1, Ordering::AcqRel);
        let mut health = self.health();
        let was_down = !health.up;
        (health.up, health.failures) = (true, 0);
        was_down
    }

    /// A connection could not be opened. `true`: the next hop had been up.
    ///
    /// While others are open it is not down: it has enough of us. Attempts that fail together count as one.
    pub fn not_reached(&self, error: String) -> bool {
        if self.established.load(Ordering::Acquire) > 0 {
            self.pause();
            return false;
        }
        let mut health = self.health();
        let was_up = health.up;
        if !was_up && Instant::now() < health.probe_at {
            return false;
        }
        let wait = PROBE_MIN.saturating_mul(1 << health.failures.min(5)).min(PROBE_MAX);
        health.failures += 1;
        health.up = false;
        health.last_error = Some(error);
        health.probe_at = Instant::now() + wait;
        was_up
    }

    /// Try again at once, whatever happened before.
    pub fn forget_failures(&self) {
        let mut health = self.health();
        (health.failures, health.probe_at) = (0, Instant::now());
    }

    /// How long until a connection may be tried; `None`: now.
    pub fn probe_in(&self) -> Option<Duration> {
        let health = self.health();
        Some(health.probe_at.saturating_duration_since(Instant::now())).filter(|wait| !wait.is_zero())
    }

    /// Whether the next hop is up, and what it said last.
    pub fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_taken_cannot_leave() {
        let pool = Pool::new(2);
        let (first, _work) = pool.sit();
        assert!(pool.take());
        assert!(!pool.take());
        assert!(!pool.leave(first));
        pool.give_back(1);
        assert!(pool.leave(first));
        assert!(!pool.take());
    }

    #[test]
    fn no_more_connections_than_allowed_are_opened() {
        let pool = Pool::new(2);
        assert!(pool.begin_opening() && pool.begin_opening());
        assert!(!pool.begin_opening());
        pool.not_opened();
        assert!(pool.begin_opening());
    }

    #[test]
    fn a_next_hop_that_limits_our_connections_is_not_down() {
        let pool = Pool::new(5);
        assert!(pool.begin_opening() && pool.begin_opening());
        assert!(!pool.reached());
        assert!(!pool.not_reached("421 too many connections".into()));
        pool.not_opened();
        assert!(pool.health().up);
        assert!(!pool.begin_opening(), "not at once");
        pool.forget_failures();
        assert!(pool.begin_opening());
    }

    #[test]
    fn attempts_that_fail_together_count_once() {
        let pool = Pool::new(9);
        assert!(pool.not_reached("refused".into()));
        for _ in 0..8 {
            assert!(!pool.not_reached("refused".into()));
        }
        assert!(pool.probe_in().unwrap() <= PROBE_MIN);
    }

    #[test]
    fn a_next_hop_that_is_down_is_probed_by_one_connection_and_not_before_its_time() {
        let pool = Pool::new(5);
        assert!(pool.not_reached("refused".into()), "it was up");
        assert!(!pool.not_reached("refused".into()), "it was down already");
        assert!(!pool.begin_opening());
        assert!(pool.probe_in().is_some());
        pool.forget_failures();
        assert!(pool.begin_opening());
        assert!(!pool.begin_opening(), "one probe at a time");
        assert!(pool.reached());
        assert!(pool.begin_opening());
    }
}
