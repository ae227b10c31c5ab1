//! What the mailbox providers say, taken to where it counts: to the mail it is about, and to the brake of their lane.
//!
//! Delivery tells how every attempt ended and gets its answer at once, from memory. A brake that goes on counts from that
//! moment; the ledger gets its record from a task of its own, in order, and again when the spool could not take it, so no
//! delivery waits for a disk and nothing is lost. What the ledger has is the truth after a restart, and what an operator
//! has put there is read back.
//!
//! Only the provider's lane brakes, never the total; where there are no lanes for providers, the total is the lane.

pub mod lanes;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, OnceCell};
use tokio_util::sync::CancellationToken;

use super::brake_rules;
use crate::clock::Clock;
use crate::config::Settings;
use crate::delivery::feedback::{About, Ending, Feedback, Heard, Judgement, Said};
use crate::log;
use crate::message::{BrakeLevel, BrakeRecord, LaneId, Recipient, Route, Timestamp};
use crate::metrics::{BrakeStep, Label, Metrics, Provider};
use crate::operators::Operators;
use crate::policy::brake::Attempt;
use crate::policy::signal::{Action, Class, Scope};
use crate::policy::{BrakeRules, Operator, Signal, Signals};
use crate::reply::Reply;
use crate::spool::committer::SpoolHandle;
use crate::spool::{Chore, Ledger, SpoolError, Telling, Told, What};
use lanes::Lanes;

/// After a spool error that passes (a full disk), before it is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(1);
/// Levels are looked at again at least this often: the clock may have been set.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// What the ledger has is read again so often, for what an operator has told it.
const READ_EVERY: Duration = Duration::from_secs(60);
/// Advice of one rule is logged once in this time.
const ADVICE_EVERY: Duration = Duration::from_secs(3600);

/// Whose mailbox it is.
pub trait Directory: Send + Sync {
    /// Who runs the mail servers of the recipient's domain.
    fn operator(&self, recipient: &Recipient) -> Arc<Operator>;
    /// The lane that counts for it.
    fn lane(&self, recipient: &Recipient) -> LaneId;
}

impl Directory for Operators {
    fn operator(&self, recipient: &Recipient) -> Arc<Operator> {
        self.of_recipient(&recipient.path)
    }

    fn lane(&self, recipient: &Recipient) -> LaneId {
        self.lane_of(&recipient.path)
    }
}

/// By what replies are judged.
#[derive(Clone, Debug)]
pub struct Terms {
    pub signals: Arc<Signals>,
    /// `None`: there is no ramp, so nothing is braked.
    pub brake: Option<BrakeRules>,
}

impl Terms {
    /// As configured; without a ramp the rules of the program.
    pub fn of(settings: &Settings) -> Terms {
        match &settings.warmup {
            Some(warmup) => Terms { signals: warmup.signals.clone(), brake: Some(brake_rules(&warmup.brake)) },
            None => Terms { signals: Arc::new(Signals::embedded().clone()), brake: None },
        }
    }
}

/// Why a level is another one now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Heard,
    ByHand,
    /// Its time is over.
    Time,
    /// It was on before the start.
    Restart,
}

impl Why {
    const fn text(self) -> &'static str {
        match self {
            Why::Heard => "heard",
            Why::ByHand => "by hand",
            Why::Time => "its time is over",
            Why::Restart => "since before the start",
        }
    }
}

/// See the module's header.
pub struct Brakes {
    terms: ArcSwap<Terms>,
    directory: Arc<dyn Directory>,
    lanes: Mutex<Lanes>,
    /// Whoever tells the ledger something holds it, so that records reach it in their order.
    telling: tokio::sync::Mutex<()>,
    spool: OnceCell<SpoolHandle>,
    advised: Mutex<BTreeMap<String, Instant>>,
    domains: RandomState,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    wake: Notify,
}

impl Brakes {
    /// Nothing is on until [`Brakes::run`] has read the ledger.
    pub fn new(terms: Terms, directory: Arc<dyn Directory>, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Brakes {
            terms: ArcSwap::from_pointee(terms),
            directory,
            lanes: Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            spool: OnceCell::new(),
            advised: Mutex::default(),
            domains: RandomState::new(),
            clock,
            metrics,
            wake: Notify::new(),
        }
    }

    /// From now on replies are judged by these.
    pub fn change(&self, terms: Terms) {
        self.terms.store(Arc::new(terms));
        self.wake.notify_one();
    }

    /// Goes on from these records, those of a start.
    pub fn begin(&self, ledger: &Ledger) {
        let (day_ends, records) = standing(ledger);
        self.lanes().read(day_ends, records);
        self.say_changes(Why::Restart);
    }

    /// Keeps the ledger informed until `stop`; what is to be told then is told first.
    pub async fn run(self: Arc<Self>, spool: SpoolHandle, stop: CancellationToken) {
        let spool = self.spool.get_or_init(async || spool).await;
        let mut read = Instant::now();
        loop {
            let told = self.tell(spool).await;
            if read.elapsed() >= READ_EVERY || self.lanes().day_is_over(self.clock.now()) {
                if self.read(spool).await.is_err() {
                    return;
                }
                read = Instant::now();
            }
            self.say_changes(Why::Time);
            let pause = match told {
                Err(SpoolError::Stopped) => return,
                Err(_) => TOLD_AGAIN,
                Ok(()) if stop.is_cancelled() => return,
                Ok(()) => self.until_next_change(),
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    /// An operator has told the ledger something about this lane's brake: it holds at once, and what was heard before
    /// says nothing about what comes.
    pub async fn told_by_hand(&self, lane: LaneId) -> Result<(), SpoolError> {
        let spool = self.spool.get().ok_or(SpoolError::Stopped)?;
        self.lanes().forget(lane);
        self.read(spool).await?;
        self.say_changes(Why::ByHand);
        self.wake.notify_one();
        Ok(())
    }

    /// How brakes behave.
    pub fn rules(&self) -> BrakeRules {
        self.terms.load().brake.unwrap_or_default()
    }

    /// Tells the ledger what it does not have yet.
    async fn tell(&self, spool: &SpoolHandle) -> Result<(), SpoolError> {
        let _order = self.telling.lock().await;
        let untold = self.lanes().take_untold();
        for (place, (lane, record)) in untold.iter().enumerate() {
            let what = What::Brake { lane: *lane, record: record.clone() };
            match spool.chore(Chore::Tell(Telling { what, audit: None })).await {
                Ok(answer) => {
                    if let Some(Told::Nothing(why)) = answer.told.as_deref() {
                        tracing::warn!(event = "brake.lost", provider = name(*lane), reason = why);
                    }
                }
                Err(error) => {
                    let mut lanes = self.lanes();
                    untold[place..].iter().for_each(|(lane, _)| lanes.not_told(*lane));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads what the ledger has.
    async fn read(&self, spool: &SpoolHandle) -> Result<(), SpoolError> {
        let _order = self.telling.lock().await;
        let (day_ends, records) = spool.look(|ledger, _| standing(ledger)).await?;
        self.lanes().read(day_ends, records);
        Ok(())
    }

    /// Logs and counts each level that has changed.
    fn say_changes(&self, why: Why) {
        let terms = self.terms.load();
        let Some(rules) = &terms.brake else { return };
        let now = self.clock.now();
        let mut lanes = self.lanes();
        let changes = lanes.changes(rules, now);
        for lane in lanes.known() {
            let on = lanes.level(rules, lane, now) > BrakeLevel::Open || lanes.is_frozen(lane);
            self.metrics.warmup_brake_active.of(provider(lane)).set(i64::from(on));
        }
        drop(lanes);
        for change in &changes {
            let (provider, level) = (provider(change.lane), change.level.name());
            let until = change.until.map_or_else(|| "-".to_owned(), log::rfc3339);
            match step(change.level).filter(|_| change.harder) {
                Some(step) => {
                    if why != Why::Restart {
                        self.metrics.warmup_brakes.of(provider).of(step).inc();
                    }
                    let (provider, reason) = (provider.text(), log::printable(&change.reason));
                    tracing::warn!(event = "brake.on", provider, level, until, reason, "{}", why.text());
                }
                None => {
                    tracing::info!(event = "brake.off", provider = provider.text(), level, until, reason = why.text());
                }
            }
        }
    }

    fn until_next_change(&self) -> Duration {
        let terms = self.terms.load();
        let next = terms.brake.as_ref().and_then(|rules| self.lanes().next_change(rules, self.clock.now()));
        let pause = next.map_or(LOOK_AROUND, |at| self.clock.real_time_until(at));
        pause.clamp(Duration::from_millis(1), LOOK_AROUND)
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the brake cannot do for the operator, said once an hour for each rule.
    fn advise(&self, signal: &Signal, operator: &Operator, reply: &Reply) {
        let advice = match signal.action {
            Action::FewerConnections => "open fewer connections at once ([new] connections)",
            Action::FewerMessages => "send fewer messages over one connection ([new] messages_per_connection)",
            Action::RequireTls => "mail must leave through TLS ([new.tls] level)",
            action if action.brakes() && !signal.legacy_helps => {
                "a domain in the mail is limited, whichever server sends it: send less of it"
            }
            _ => return,
        };
        let mut advised = self.advised.lock().unwrap_or_else(PoisonError::into_inner);
        if advised.get(&signal.id).is_some_and(|at| at.elapsed() < ADVICE_EVERY) {
            return;
        }
        advised.insert(signal.id.clone(), Instant::now());
        drop(advised);
        let reason = log::printable(&reply.to_string());
        tracing::warn!(event = "signal.advice", provider = operator.name, rule = signal.id, reason, "{advice}");
    }
}

/// What a reply means. Recipients of one message often get one reply, so the last one is remembered.
#[derive(Default)]
struct Meant<'a> {
    of: Option<(Arc<Operator>, &'a Reply)>,
    signal: Option<&'a Signal>,
    judgement: Option<Arc<Judgement>>,
}

impl<'a> Meant<'a> {
    /// `true`: it is another reply than the last one.
    fn look(&mut self, signals: &'a Signals, operator: &Arc<Operator>, reply: &'a Reply) -> bool {
        if self.of.as_ref().is_some_and(|(of, before)| of.name == operator.name && *before == reply) {
            return false;
        }
        self.signal = signals.classify(&operator.name, reply);
        self.judgement = self.signal.map(|signal| Arc::new(judged(signal)));
        self.of = Some((operator.clone(), reply));
        true
    }
}

impl Feedback for Brakes {
    fn hear(&self, route: Route, endings: &[Ending<'_>]) -> Vec<Heard> {
        let (terms, now) = (self.terms.load(), self.clock.now());
        let brake = terms.brake.filter(|_| route == Route::New);
        let (mut untold, mut meant) = (false, Meant::default());
        let mut heard = Vec::with_capacity(endings.len());
        let mut lanes = self.lanes();
        for Ending { recipient, said } in endings {
            let lane = self.directory.lane(recipient);
            let mut one = Heard { lane, judgement: None, braked: false };
            let attempt = match said {
                Said::Nothing => None,
                Said::Accepted => Some((false, None, String::new())),
                Said::Refused(reply) => {
                    let operator = self.directory.operator(recipient);
                    if meant.look(&terms.signals, &operator, reply)
                        && let Some(signal) = meant.signal.filter(|_| route == Route::New)
                    {
                        self.advise(signal, &operator, reply);
                    }
                    one.judgement.clone_from(&meant.judgement);
                    Some((put_off(reply, meant.signal), meant.signal, log::printable(&reply.to_string())))
                }
            };
            if let (Some(rules), Some((deferred, signal, text))) = (&brake, attempt) {
                let domain = self.domains.hash_one(domain(&recipient.path).to_ascii_lowercase());
                untold |= lanes.observe(rules, lane, &Attempt { domain, deferred, signal }, &text, now);
            }
            heard.push(one);
        }
        // After all of them: those at the front of a message are no better off than those at its end.
        if let Some(rules) = &brake {
            for one in &mut heard {
                one.braked = lanes.level(rules, one.lane, now) > BrakeLevel::Open;
            }
        }
        drop(lanes);
        if untold {
            self.say_changes(Why::Heard);
            self.wake.notify_one();
        }
        heard
    }
}

/// The end of the day in force, and each lane's brake.
fn standing(ledger: &Ledger) -> (Option<Timestamp>, Vec<(LaneId, BrakeRecord)>) {
    (ledger.span().map(|span| span.ends), ledger.lanes().map(|(id, lane)| (id, lane.brake.clone())).collect())
}

fn judged(signal: &Signal) -> Judgement {
    let about = match signal.class {
        Class::Rate => About::Rate,
        Class::Reputation => About::Reputation,
        Class::Mailbox => About::Mailbox,
        Class::Content => About::Content,
        Class::Auth => About::Auth,
        Class::Config => About::Config,
        Class::Load => About::Load,
    };
    Judgement {
        rule: signal.id.clone(),
        about,
        temporary: signal.temporary,
        of_domain: signal.scope == Scope::Domain,
        legacy_helps: signal.legacy_helps,
    }
}

/// The recipient waits, for something that may be about the sender. A full or flooded mailbox is about itself.
fn put_off(reply: &Reply, signal: Option<&Signal>) -> bool {
    let of_mailbox = match reply.enhanced {
        Some(code) => matches!(code.1, 1 | 2), // RFC 3463 §3.2 and §3.3: address, mailbox
        None => reply.code == 450,             // RFC 5321 §4.2.3: mailbox unavailable
    };
    match signal {
        Some(signal) => reply.is_transient() || matches!(signal.class, Class::Rate | Class::Reputation),
        None => reply.is_transient() && !of_mailbox,
    }
}

fn domain(path: &[u8]) -> &[u8] {
    path.rsplit(|octet| *octet == b'@').next().unwrap_or_default()
}

fn provider(lane: LaneId) -> Provider {
    Provider::ALL.get(usize::from(lane.0)).copied().unwrap_or(Provider::Other)
}

fn name(lane: LaneId) -> &'static str {
    provider(lane).text()
}

fn step(level: BrakeLevel) -> Option<BrakeStep> {
    match level {
        BrakeLevel::Open => None,
        BrakeLevel::Slow => Some(BrakeStep::Slow),
        BrakeLevel::Suspended => Some(BrakeStep::Suspended),
        BrakeLevel::Paused => Some(BrakeStep::Paused),
    }
}
