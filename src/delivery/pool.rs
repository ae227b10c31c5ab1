//! The connections of one route: which stand ready, how many there may be, whether the next hop is up.
//!
//! A connection that is open and idle *stands ready*. The committer takes ready ones while it decides, and delivers
//! exactly as many items as it took; what was taken must therefore not go away in between, which is what
//! [`Pool::leave`] sees to. The last one to become idle is used first, so that the others can close.
//!
//! Each next hop of the route has a breaker of its own ([`Hops`]); the route is down when none of them can be reached.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::breaker::{Breakers, Hop};
use super::fallback::Kind;
use super::opening::OpenError;
use super::outcome::{Cause, Fault};
use crate::spool::Claimed;

/// However soon a next hop may be tried again, the route as a whole is left alone for so long after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(100);

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
    hops: Hops,
}

/// The breakers of a route's next hops, and the clock they go by.
#[derive(Debug)]
pub struct Hops {
    breakers: Mutex<Breakers>,
    began: Instant,
}

/// One try at a next hop. Dropped without a result, it was given up.
#[derive(Debug)]
pub struct Attempt<'a> {
    hops: &'a Hops,
    hop: Option<Hop>,
}

impl Default for Hops {
    fn default() -> Self {
        Hops { breakers: Mutex::default(), began: Instant::now() }
    }
}

impl Hops {
    fn with<R>(&self, act: impl FnOnce(&mut Breakers, Duration) -> R) -> R {
        act(&mut self.breakers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), self.began.elapsed())
    }

    /// `None`: it is to be left alone.
    pub fn attempt(&self, hop: &Hop) -> Option<Attempt<'_>> {
        let may = self.with(|breakers, at| breakers.may_try(hop, at));
        may.then(|| Attempt { hops: self, hop: Some(hop.clone()) })
    }

    /// How long until `hop` may be tried.
    pub fn wait(&self, hop: &Hop) -> Duration {
        self.with(|breakers, at| breakers.wait(hop, at))
    }

    /// It wants less of us: no new connection to it for two seconds.
    pub fn rest(&self, hop: &Hop) {
        self.with(|breakers, at| breakers.rest(hop, at));
    }
}

impl Attempt<'_> {
    /// A session came about.
    pub fn opened(mut self) {
        if let Some(hop) = self.hop.take() {
            self.hops.with(|breakers, _| breakers.opened(&hop));
        }
    }

    /// A name has addresses.
    pub fn resolved(mut self) {
        if let Some(hop) = self.hop.take() {
            self.hops.with(|breakers, _| breakers.resolved(&hop));
        }
    }

    /// It did not come to that.
    pub fn failed(mut self) {
        if let Some(hop) = self.hop.take() {
            self.hops.with(|breakers, at| breakers.failed(&hop, at));
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(hop) = self.hop.take() {
            self.hops.with(|breakers, _| breakers.given_up(&hop));
        }
    }
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
    /// What kind of failure made it go down.
    pub kind: Option<Kind>,
    probe_at: Instant,
}

impl Pool {
    /// At most `most` connections, at least one.
    pub fn new(most: usize) -> Self {
        let health = Health { up: true, last_error: None, kind: None, probe_at: Instant::now() };
        Pool {
            most: most.max(1),
            open: AtomicUsize::new(0),
            established: AtomicUsize::new(0),
            idle: Mutex::default(),
            health: Mutex::new(health),
            hops: Hops::default(),
        }
    }

    /// The breakers of its next hops.
    pub fn hops(&self) -> &Hops {
        &self.hops
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

    /// An open connection to `hop` closed.
    pub fn closed(&self, hop: &Hop) {
        self.hops.with(|breakers, _| breakers.closed(hop));
        self.established.fetch_sub(1, Ordering::AcqRel);
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// A connection that was counted in did not come about.
    pub fn not_opened(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// A connection was opened. `true`: the route had been down.
    pub fn reached(&self) -> bool {
        self.established.fetch_add(1, Ordering::AcqRel);
        let mut health = self.health();
        let was_down = !health.up;
        (health.up, health.kind) = (true, None);
        was_down
    }

    /// A connection could not be opened. `true`: the route had been up.
    ///
    /// While others are open it is not down: it has enough of us. Neither is it when nobody was asked.
    pub fn not_reached(&self, error: &OpenError, text: String) -> bool {
        let enough = self.established.load(Ordering::Acquire) > 0;
        let mut health = self.health();
        health.probe_at = health.probe_at.max(Instant::now() + error.retry_in.max(PAUSE_MIN));
        if enough || matches!(error.cause, Cause::Fault(Fault::Resting)) {
            return false;
        }
        let was_up = health.up;
        (health.up, health.kind) = (false, super::fallback::kind_of(error.stage, &error.cause));
        health.last_error = Some(text);
        was_up
    }

    /// Try again at once, whatever happened before.
    pub fn forget_failures(&self) {
        self.hops.with(|breakers, _| breakers.forget_failures());
        self.health().probe_at = Instant::now();
    }

    /// The route is down and it is time to see whether it still is.
    pub fn wants_probe(&self) -> bool {
        let health = self.health();
        !health.up && Instant::now() >= health.probe_at
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
    use crate::delivery::breaker::PROBE_MIN;
    use crate::delivery::outcome::Stage;

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

    fn refused(cause: Cause, retry_in: Duration) -> OpenError {
        OpenError { host: "mx.example".into(), address: None, stage: Stage::Connect, cause, retry_in }
    }

    fn closed() -> OpenError {
        refused(Cause::Fault(Fault::Closed), PROBE_MIN)
    }

    #[test]
    fn a_route_that_limits_our_connections_is_not_down() {
        let pool = Pool::new(5);
        assert!(pool.begin_opening() && pool.begin_opening());
        assert!(!pool.reached());
        assert!(!pool.not_reached(&closed(), "421 too many connections".into()));
        pool.not_opened();
        assert!(pool.health().up);
        assert!(!pool.begin_opening(), "not at once");
        pool.forget_failures();
        assert!(pool.begin_opening());
    }

    #[test]
    fn a_route_of_which_nobody_was_asked_is_not_down() {
        let pool = Pool::new(5);
        assert!(!pool.not_reached(&refused(Cause::Fault(Fault::Resting), PROBE_MIN), "resting".into()));
        assert!(pool.health().up && !pool.begin_opening() && !pool.wants_probe());
    }

    #[test]
    fn a_route_that_is_down_is_probed_by_one_connection_and_not_before_its_time() {
        let pool = Pool::new(5);
        assert!(pool.not_reached(&closed(), "refused".into()), "it was up");
        assert!(!pool.not_reached(&closed(), "refused".into()), "it was down already");
        assert_eq!(pool.health().kind, Some(Kind::Connect));
        assert!(!pool.begin_opening() && !pool.wants_probe());
        assert!(pool.probe_in().is_some());
        pool.forget_failures();
        assert!(pool.wants_probe() && pool.begin_opening());
        assert!(!pool.begin_opening(), "one probe at a time");
        assert!(pool.reached());
        assert!(pool.begin_opening());
    }

    #[test]
    fn an_attempt_that_is_dropped_leaves_room_for_the_next_probe() {
        let hops = Hops::default();
        let hop = Hop::Name("mx.example".into());
        hops.attempt(&hop).expect("nothing is known").failed();
        assert!(hops.attempt(&hop).is_none() && hops.wait(&hop) > Duration::ZERO);
        hops.with(|breakers, _| breakers.resolved(&hop));
        assert!(hops.attempt(&hop).is_some());
    }
}
