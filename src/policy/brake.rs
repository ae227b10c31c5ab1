//! The brake of a lane: slower, then nothing, for as long as the provider's replies ask for, and a day that does not count.
//!
//! ```text
//!          signal or ratio           again, after the settling time
//!   open ──────────────────▶ slow ─────────────────────────────────▶ suspended ──▶ slow ──▶ open
//!     └────────── a rule that says "suspend" ───────────────────────────▲  its time is over
//!     └────────── a rule that says "pause" ──▶ paused ──▶ open   only when a person releases it
//! ```
//!
//! Promises: a braked lane never gets more tokens than an open one; every brake but a pause ends by itself; a rule for
//! every provider brakes only when several recipient domains agree; only what concerns the new path brakes, since nobody is
//! helped by moving mail away from a limit on a domain or a mailbox. A plain state machine: the time comes in, the caller
//! keeps the record and what was heard. What the day boundary makes of a braked day is in `stage`.

use std::collections::VecDeque;
use std::time::Duration;

use super::pace::Pace;
use super::signal::{Action, Class, Scope, Signal};
use super::{Closed, Rules};
pub use crate::message::BrakeLevel as Level;
use crate::message::{BrakeRecord, Reason, StageStep, Timestamp};

/// `warmup.brake`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BrakeRules {
    /// Attempts of this time are judged together.
    pub window: Duration,
    /// Part of them that may be deferred, above 0 up to 1.
    pub defer_ratio: f64,
    /// Fewer attempts in the window say nothing.
    pub min_attempts: u64,
    /// How long a brake lasts for which no rule says how long, and how long a lane goes slow after a suspension.
    pub hold: Duration,
}

/// The documented defaults.
impl Default for BrakeRules {
    fn default() -> Self {
        BrakeRules {
            window: Duration::from_secs(15 * 60),
            defer_ratio: 0.1,
            min_attempts: 20,
            hold: Duration::from_secs(3600),
        }
    }
}

/// One recipient's attempt by `new`, as the brake sees it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Stands for the recipient's domain: the same number for the same domain.
    pub domain: u64,
    /// It was put off (4xx), whatever for.
    pub deferred: bool,
    /// What its reply means, if a rule knows.
    pub signal: Option<&'a Signal>,
}

/// What was heard of late about one lane. Bounded, whatever the replies; forgotten by a restart. Whether the brake is on
/// stands in the lane's [`BrakeRecord`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Brake {
    /// Attempts by sixteenths of the window, oldest first; at most 17 of them.
    tallies: VecDeque<Tally>,
    /// Replies of the last hour by rule; at most [`RULES_REMEMBERED`].
    hits: VecDeque<Hits>,
}

/// An attempt has changed a lane's brake.
#[derive(Clone, Debug, PartialEq)]
pub struct Braked {
    /// To be kept from here on. Its `reason` is still that of before.
    pub record: BrakeRecord,
    /// The lane now may do less than before.
    pub harder: bool,
    /// The rule that did it, and how many replies it took; `None`: too many attempts were put off.
    pub rule: Option<(String, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Tally {
    /// Sixteenths of the window since the epoch.
    number: i64,
    attempts: u64,
    deferred: u64,
}

/// Replies that one rule has caught.
#[derive(Clone, Debug, PartialEq)]
struct Hits {
    rule: String,
    /// As many as the rule waits for, oldest first; of a generic rule one for each domain.
    times: VecDeque<(u64, Timestamp)>,
}

/// The level in force at `now` of a brake that was put on at `level` until `until`, and when that ends.
pub fn phase(level: Level, until: Timestamp, rules: &BrakeRules, now: Timestamp) -> (Level, Timestamp) {
    match level {
        Level::Paused => (Level::Paused, Timestamp::NEVER),
        Level::Suspended if now < until => (Level::Suspended, until),
        // Not from nothing to everything: the provider has just asked for less.
        Level::Suspended if now < until.after(rules.hold) => (Level::Slow, until.after(rules.hold)),
        Level::Slow if now < until => (Level::Slow, until),
        _ => (Level::Open, Timestamp::NEVER),
    }
}

/// The pace of a lane with `limit` that goes slow. `None`: only the ledger bounds.
pub fn slow_pace(warmup: &Rules, limit: Option<u64>) -> Option<Pace> {
    // A lane that is complete has no limit to take a part of; its brake is the suspension.
    limit.and_then(|limit| Pace::of(limit, warmup.hourly / SLOW_DIVISOR, warmup.burst / SLOW_DIVISOR))
}

impl BrakeRules {
    /// The level in force at `now` and when it ends.
    pub fn phase(&self, record: &BrakeRecord, now: Timestamp) -> (Level, Timestamp) {
        phase(record.level, record.until, self, now)
    }

    /// The level in force at `now`.
    pub fn level(&self, record: &BrakeRecord, now: Timestamp) -> Level {
        self.phase(record, now).0
    }

    /// What a lane is told while nothing may leave.
    pub fn closed(&self, record: &BrakeRecord, now: Timestamp) -> Option<Closed> {
        let (level, until) = self.phase(record, now);
        (level >= Level::Suspended).then_some(Closed { until, reason: Reason::Brake })
    }

    /// The pace of a lane with `limit` at `now`. `None`: only the ledger bounds. Closed lanes have
    /// [`BrakeRules::closed`].
    pub fn pace(&self, record: &BrakeRecord, warmup: &Rules, limit: Option<u64>, now: Timestamp) -> Option<Pace> {
        match self.level(record, now) {
            Level::Open => warmup.pace(limit),
            _ => slow_pace(warmup, limit),
        }
    }

    /// The record with which a day begins. A brake that is still on makes the new day a braked one too, and so does a
    /// fault that stands until a person acts.
    pub fn next_day(&self, record: &BrakeRecord, now: Timestamp) -> BrakeRecord {
        let step = if record.step == StageStep::Freeze { StageStep::Freeze } else { StageStep::None };
        let touched = step == StageStep::Freeze || self.level(record, now) > Level::Open;
        BrakeRecord { touched, step, ..record.clone() }
    }

    /// The record after a person has said that what was wrong is mended. The day stays braked.
    pub fn released(&self, record: &BrakeRecord) -> BrakeRecord {
        // What a rule wanted frozen until now is an ordinary braked day.
        let step = if record.step == StageStep::Freeze { StageStep::Hold } else { record.step };
        BrakeRecord { level: Level::Open, step, reason: String::new(), ..record.clone() }
    }
}

impl Brake {
    /// Takes in one attempt. `Some`: the lane's record is another one now.
    pub fn observe(
        &mut self,
        rules: &BrakeRules,
        record: &BrakeRecord,
        attempt: &Attempt<'_>,
        now: Timestamp,
    ) -> Option<Braked> {
        let mut after = settled(rules, record, now);
        let mut rule = None;
        let mut again = false;
        let known = attempt.signal.filter(|signal| signal.legacy_helps && signal.action.brakes());
        if let Some(signal) = known
            && let Some(replies) = self.is_enough(signal, attempt.domain, now)
        {
            put_on(&mut after, signal.action, signal.lasts, now);
            after.step = after.step.max(signal.step);
            (rule, again) = (Some((signal.id.clone(), replies)), true);
        }
        if counts(attempt) && self.too_many(rules, attempt, now) {
            put_on(&mut after, Action::SlowThenSuspend, rules.hold, now);
            after.step = after.step.max(StageStep::Hold);
            self.tallies.clear(); // the same attempts must not brake twice
            again = true;
        }
        if !again {
            return None;
        }
        after.touched |= after.level > Level::Open;
        let harder = rules.level(&after, now) > rules.level(record, now);
        // Of many replies to what was under way not each is worth a row.
        let longer = after.until.since(record.until) >= SETTLING;
        let stronger = after.step > record.step || after.touched && !record.touched;
        (harder || longer || stronger).then_some(Braked { record: after, harder, rule })
    }

    /// Forgets what was heard: a person has said that what was wrong is mended.
    pub fn forget(&mut self) {
        *self = Brake::default();
    }

    /// The rule has caught as many replies within an hour as it waits for; a rule for every provider, from as many
    /// domains as it takes to blame the sender.
    fn is_enough(&mut self, signal: &Signal, domain: u64, now: Timestamp) -> Option<u32> {
        let needed =
            if signal.generic { GENERIC_DOMAINS.max(signal.after as usize) } else { signal.after.max(1) as usize };
        let index = match self.hits.iter().position(|hits| hits.rule == signal.id) {
            Some(index) => index,
            None => {
                if self.hits.len() >= RULES_REMEMBERED {
                    self.hits.pop_front();
                }
                self.hits.push_back(Hits { rule: signal.id.clone(), times: VecDeque::new() });
                self.hits.len() - 1
            }
        };
        let times = &mut self.hits[index].times;
        times.retain(|(of, at)| now.since(*at) < HOUR && !(signal.generic && *of == domain));
        times.push_back((domain, now));
        if times.len() < needed {
            return None;
        }
        times.clear();
        Some(needed as u32)
    }

    /// Counts the attempt; `true` when too large a part of the window was put off.
    fn too_many(&mut self, rules: &BrakeRules, attempt: &Attempt<'_>, now: Timestamp) -> bool {
        let part = (i64::try_from(rules.window.as_nanos()).unwrap_or(i64::MAX) / WINDOW_PARTS).max(1);
        let number = now.0.div_euclid(part);
        self.tallies.retain(|tally| tally.number > number - WINDOW_PARTS && tally.number <= number);
        match self.tallies.back_mut() {
            Some(tally) if tally.number == number => {
                tally.attempts += 1;
                tally.deferred += u64::from(attempt.deferred);
            }
            _ => self.tallies.push_back(Tally { number, attempts: 1, deferred: u64::from(attempt.deferred) }),
        }
        let attempts: u64 = self.tallies.iter().map(|tally| tally.attempts).sum();
        let deferred: u64 = self.tallies.iter().map(|tally| tally.deferred).sum();
        attempts >= rules.min_attempts.max(1) && deferred > 0 && deferred as f64 >= rules.defer_ratio * attempts as f64
    }
}

/// The record with what time has made of it: a brake that has ended is no ground for a harder one.
fn settled(rules: &BrakeRules, record: &BrakeRecord, now: Timestamp) -> BrakeRecord {
    match rules.phase(record, now) {
        (Level::Suspended, _) => record.clone(),
        (Level::Open, _) => BrakeRecord { level: Level::Open, until: now, ..record.clone() },
        (level, until) => BrakeRecord { level, until, ..record.clone() },
    }
}

fn put_on(record: &mut BrakeRecord, action: Action, lasts: Duration, now: Timestamp) {
    let harder = match (action, record.level) {
        (Action::Pause, _) | (_, Level::Paused) => Level::Paused,
        (Action::Suspend, _) | (_, Level::Suspended) => Level::Suspended,
        (Action::SlowThenSuspend, Level::Slow) if now.since(record.since) >= SETTLING => Level::Suspended,
        _ => Level::Slow,
    };
    // What a stronger level replaces says nothing about how long; the same level lasts as long as its longest reason.
    record.until = if harder > record.level { now.after(lasts) } else { record.until.max(now.after(lasts)) };
    if harder > record.level {
        (record.level, record.since) = (harder, now);
    }
}

/// Whether the attempt says something about the sender: not when its reply is known to be about something else.
fn counts(attempt: &Attempt<'_>) -> bool {
    attempt
        .signal
        .is_none_or(|signal| matches!(signal.class, Class::Rate | Class::Reputation) && signal.scope == Scope::Ip)
}

/// A slow lane has this part of its pace: low enough to be felt, high enough to see when it is over.
const SLOW_DIVISOR: f64 = 4.0;
/// Replies to what was under way when the brake was put on do not put it on harder.
const SETTLING: Duration = Duration::from_secs(120);
/// Recipient domains whose replies a rule for every provider needs.
pub const GENERIC_DOMAINS: usize = 5;
const RULES_REMEMBERED: usize = 32;
const WINDOW_PARTS: i64 = 16;
const HOUR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Signals;
    use crate::reply::Reply;
    use proptest::prelude::*;

    const RULES: BrakeRules = BrakeRules {
        window: Duration::from_secs(900),
        defer_ratio: 0.1,
        min_attempts: 20,
        hold: Duration::from_secs(3600),
    };

    /// A lane's brake as it is kept: what was heard, and the record.
    #[derive(Default)]
    struct Lane {
        heard: Brake,
        record: BrakeRecord,
    }

    impl Lane {
        /// `true` when the lane now may do less than before.
        fn observe(&mut self, rules: &BrakeRules, attempt: &Attempt<'_>, now: Timestamp) -> bool {
            let braked = self.heard.observe(rules, &self.record, attempt, now);
            let harder = braked.as_ref().is_some_and(|braked| braked.harder);
            self.record = braked.map_or(std::mem::take(&mut self.record), |braked| braked.record);
            harder
        }

        fn level(&self, rules: &BrakeRules, now: Timestamp) -> Level {
            rules.level(&self.record, now)
        }

        fn closed(&self, rules: &BrakeRules, now: Timestamp) -> Option<Closed> {
            rules.closed(&self.record, now)
        }

        fn release(&mut self) {
            self.heard.forget();
            self.record = RULES.released(&self.record);
        }

        /// Whether the day that ends was braked, and what it asks of the stage.
        fn next_day(&mut self, rules: &BrakeRules, now: Timestamp) -> (bool, StageStep) {
            let day = (self.record.touched, self.record.step);
            self.record = rules.next_day(&self.record, now);
            day
        }
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000 + 60 * minute)
    }

    fn signal(provider: &str, line: &str) -> &'static Signal {
        Signals::embedded().classify(provider, &Reply::from_line(line).unwrap()).unwrap_or_else(|| panic!("{line}"))
    }

    fn said(signal: &Signal, domain: u64) -> Attempt<'_> {
        Attempt { domain, deferred: true, signal: Some(signal) }
    }

    const DELIVERED: Attempt<'_> = Attempt { domain: 1, deferred: false, signal: None };
    const PUT_OFF: Attempt<'_> = Attempt { domain: 1, deferred: true, signal: None };

    #[test]
    fn a_rate_reply_slows_and_one_that_comes_again_later_suspends() {
        let rate = signal("google", "421 4.7.28 unusual rate of mail originating from your IP address");
        assert_eq!((rate.action, rate.after), (Action::SlowThenSuspend, 2));
        let mut brake = Lane::default();
        assert!(!brake.observe(&RULES, &said(rate, 1), at(0)), "the rule waits for two within an hour");
        assert!(brake.observe(&RULES, &said(rate, 1), at(30)));
        assert_eq!(brake.level(&RULES, at(30)), Level::Slow);
        for _ in 0..4 {
            assert!(!brake.observe(&RULES, &said(rate, 1), at(31)), "these were under way");
        }
        assert_eq!(brake.level(&RULES, at(31)), Level::Slow);
        brake.observe(&RULES, &said(rate, 1), at(40));
        assert!(brake.observe(&RULES, &said(rate, 1), at(41)));
        assert_eq!(brake.level(&RULES, at(41)), Level::Suspended);
        assert_eq!(brake.closed(&RULES, at(41)), Some(Closed { until: at(101), reason: Reason::Brake }));
        let levels = [100, 101, 160, 161].map(|minute| brake.level(&RULES, at(minute)));
        assert_eq!(levels, [Level::Suspended, Level::Slow, Level::Slow, Level::Open], "slow for an hour after it");
    }

    #[test]
    fn two_replies_more_than_an_hour_apart_are_not_two_within_an_hour() {
        let rate = signal("google", "421 4.7.28 unusual rate of mail originating from your IP address");
        let mut brake = Lane::default();
        for hour in 0..5 {
            assert!(!brake.observe(&RULES, &said(rate, 1), at(60 * hour)), "hour {hour}");
        }
        assert!(brake.observe(&RULES, &said(rate, 1), at(60 * 4 + 59)));
    }

    #[test]
    fn a_rule_for_every_provider_brakes_only_when_five_domains_agree() {
        let generic = signal("other", "451 4.7.1 Please try again slower");
        assert!(generic.generic);
        let calm = BrakeRules { defer_ratio: 1.0, min_attempts: 1_000_000, ..RULES };
        let mut brake = Lane::default();
        for minute in 0..100 {
            assert!(
                !brake.observe(&calm, &said(generic, minute as u64 % 4), at(minute)),
                "four domains, minute {minute}"
            );
        }
        assert!(brake.observe(&calm, &said(generic, 4), at(100)));
        assert_eq!(brake.level(&calm, at(100)), Level::Slow);
        let mut brake = Lane::default();
        for domain in 0..20 {
            assert!(!brake.observe(&calm, &said(generic, domain), at(15 * domain as i64)), "never five within an hour");
        }
    }

    #[test]
    fn a_limit_on_a_domain_or_a_mailbox_is_no_reason_to_brake_the_lane() {
        let mut brake = Lane::default();
        for line in [
            "421 4.7.28 unusual rate of mail originating from your DKIM domain",
            "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
            "421 4.7.0 Try again later, closing connection",
        ] {
            for minute in 0..200 {
                assert!(!brake.observe(&RULES, &said(signal("google", line), 1), at(minute)), "{line}");
            }
        }
        assert_eq!(brake.next_day(&RULES, at(200)), (false, StageStep::None));
    }

    #[test]
    fn too_large_a_part_of_a_window_slows_and_the_same_attempts_do_not_brake_twice() {
        let mut brake = Lane::default();
        for _ in 0..18 {
            assert!(!brake.observe(&RULES, &DELIVERED, at(0)));
        }
        assert!(!brake.observe(&RULES, &PUT_OFF, at(1)), "19 attempts say nothing");
        assert!(brake.observe(&RULES, &PUT_OFF, at(1)), "2 of 20");
        assert_eq!(brake.level(&RULES, at(60)), Level::Slow);
        assert_eq!(brake.level(&RULES, at(61)), Level::Open);
        for _ in 0..19 {
            assert!(!brake.observe(&RULES, &PUT_OFF, at(5)));
        }
        assert!(brake.observe(&RULES, &PUT_OFF, at(6)), "20 more while slow");
        assert_eq!(brake.level(&RULES, at(6)), Level::Suspended);

        let mut steady = Lane::default();
        for minute in 0..2_000 {
            let attempt = if minute % 11 == 0 { PUT_OFF } else { DELIVERED };
            let braked = (0..3).any(|_| steady.observe(&RULES, &DELIVERED, at(minute)))
                | steady.observe(&RULES, &attempt, at(minute));
            assert!(!braked, "1 of 44 is put off, minute {minute}");
        }
    }

    #[test]
    fn attempts_older_than_the_window_do_not_count() {
        let mut brake = Lane::default();
        for _ in 0..19 {
            brake.observe(&RULES, &PUT_OFF, at(0));
        }
        assert!(!brake.observe(&RULES, &PUT_OFF, at(16)), "one attempt in the last 15 minutes");
    }

    #[test]
    fn a_fault_of_ours_pauses_until_a_person_says_it_is_mended() {
        let mut brake = Lane::default();
        let reverse_name = signal("google", "421 4.7.23 The sending IP address doesn't have a PTR record");
        assert!(brake.observe(&RULES, &said(reverse_name, 1), at(0)));
        assert_eq!(
            brake.closed(&RULES, at(1_000_000)),
            Some(Closed { until: Timestamp::NEVER, reason: Reason::Brake })
        );
        assert_eq!(brake.next_day(&RULES, at(10)), (true, StageStep::Freeze));
        assert_eq!(brake.next_day(&RULES, at(15)), (true, StageStep::Freeze), "until a person acts");
        brake.release();
        assert_eq!((brake.level(&RULES, at(20)), brake.closed(&RULES, at(20))), (Level::Open, None));
        assert_eq!(brake.next_day(&RULES, at(30)), (true, StageStep::Hold), "it was on when that day began");
        assert_eq!(brake.next_day(&RULES, at(40)), (false, StageStep::None));
    }

    #[test]
    fn a_frozen_stage_outlasts_its_brake() {
        let banned = signal("microsoft", "550 5.7.606 Access denied, banned sending IP [192.0.2.1]");
        assert_eq!((banned.action, banned.step), (Action::Suspend, StageStep::Freeze));
        let mut brake = Lane::default();
        assert!(brake.observe(&RULES, &said(banned, 1), at(0)));
        assert_eq!(brake.level(&RULES, at(3 * 1_440)), Level::Open);
        assert_eq!(brake.next_day(&RULES, at(3 * 1_440)), (true, StageStep::Freeze));
        assert_eq!(brake.next_day(&RULES, at(4 * 1_440)), (true, StageStep::Freeze));
    }

    #[test]
    fn replies_that_go_on_lengthen_a_brake_without_a_row_for_each() {
        let suspends = signal(
            "microsoft",
            "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation (S775)",
        );
        assert_eq!((suspends.action, suspends.after), (Action::Suspend, 1));
        let mut heard = Brake::default();
        let mut record = heard.observe(&RULES, &BrakeRecord::default(), &said(suspends, 1), at(0)).unwrap().record;
        let first_until = record.until;
        let mut rows = 0;
        for second in 0..600 {
            let now = at(0).after(Duration::from_secs(second));
            if let Some(braked) = heard.observe(&RULES, &record, &said(suspends, 1), now) {
                assert!(!braked.harder);
                (record, rows) = (braked.record, rows + 1);
            }
        }
        assert_eq!(rows, 4, "every two minutes of ten");
        assert_eq!(record.until.since(first_until), Duration::from_secs(480));
    }

    #[test]
    fn the_strongest_step_of_a_day_counts_and_a_brake_over_midnight_makes_two_braked_days() {
        let suspend = signal("yahoo", "421 4.7.0 [TSS05] unexpected volume or user complaints");
        let slow = signal("yahoo", "421 4.7.0 [TS01] Messages temporarily deferred");
        let mut brake = Lane::default();
        for _ in 0..2 {
            brake.observe(&RULES, &said(suspend, 1), at(0));
        }
        brake.observe(&RULES, &said(slow, 1), at(1));
        assert_eq!(brake.level(&RULES, at(239)), Level::Suspended, "four hours; the weaker rule changes nothing");
        assert_eq!(brake.next_day(&RULES, at(100)), (true, StageStep::Back));
        assert_eq!(brake.next_day(&RULES, at(1_540)), (true, StageStep::None));
        assert_eq!(brake.next_day(&RULES, at(2_980)), (false, StageStep::None));
    }

    /// Any replies at all: rules by their place, or none.
    fn replies() -> impl Strategy<Value = Vec<(u8, u8, bool, u16)>> {
        proptest::collection::vec((0u8..12, 0u8..8, any::<bool>(), 0u16..30), 1..200)
    }

    /// Signals of all kinds; none of them pauses.
    fn some_signal(number: u8) -> Option<&'static Signal> {
        const LINES: [(&str, &str); 8] = [
            ("google", "421 4.7.28 unusual rate of mail originating from your IP address"),
            ("google", "550 5.7.1 very low reputation of the sending IP address"),
            ("yahoo", "421 4.7.0 [TSS05] unexpected volume or user complaints"),
            ("yahoo", "421 4.7.0 [TS01] Messages temporarily deferred"),
            ("microsoft", "451 4.7.500 Server busy. (AS761)"),
            ("other", "451 4.7.1 Please try again slower"),
            ("google", "421 4.7.28 unusual rate of mail originating from your SPF domain"),
            ("apple", "421 4.7.1 Messages deferred due to excessive volume"),
        ];
        LINES.get(usize::from(number)).map(|(provider, line)| signal(provider, line))
    }

    proptest! {
        #[test]
        fn a_brake_ends_by_itself_and_stays_small(replies in replies()) {
            let (mut brake, mut minute) = (Lane::default(), 0);
            for (number, domain, deferred, wait) in replies {
                minute += i64::from(wait);
                let attempt = Attempt { domain: domain.into(), deferred, signal: some_signal(number) };
                let before = brake.level(&RULES, at(minute));
                let harder = brake.observe(&RULES, &attempt, at(minute));
                prop_assert_eq!(harder, brake.level(&RULES, at(minute)) > before);
                prop_assert!(brake.level(&RULES, at(minute)) >= before, "an attempt never opens a lane");
                prop_assert!(brake.heard.tallies.len() <= WINDOW_PARTS as usize && brake.heard.hits.len() <= RULES_REMEMBERED);
                prop_assert!(brake.heard.hits.iter().all(|hits| hits.times.len() <= 8));
            }
            // The longest of these rules lasts four hours; an hour of going slow comes after it.
            prop_assert_eq!(brake.level(&RULES, at(minute + 5 * 60)), Level::Open);
        }

        #[test]
        fn a_braked_lane_never_has_more_tokens_than_an_open_one(
            replies in replies(), limit in 1u64..5_000_000, hourly in 0.05f64..1.0, part in 0.01f64..1.0, used in 0u64..4_000,
        ) {
            let warmup = Rules { hourly, burst: hourly * part, ..Rules::default() };
            let (mut brake, mut minute) = (Lane::default(), 0);
            for (number, domain, deferred, wait) in replies {
                minute += i64::from(wait);
                let attempt = Attempt { domain: domain.into(), deferred, signal: some_signal(number) };
                brake.observe(&RULES, &attempt, at(minute));
                let now = at(minute);
                let arrival = Timestamp(now.0 - 2_000_000_000_000 + used as i64 * 1_000_000_000);
                let open = warmup.pace(Some(limit)).map_or(u64::MAX, |pace| pace.tokens_at(arrival, now));
                let pace = RULES.pace(&brake.record, &warmup, Some(limit), now);
                let braked = match brake.closed(&RULES, now) {
                    Some(_) => 0,
                    None => pace.map_or(u64::MAX, |pace| pace.tokens_at(arrival, now)),
                };
                prop_assert!(braked <= open, "{braked} of {open} at {:?}", brake.level(&RULES, now));
                if let (Some(open), Some(braked)) = (warmup.pace(Some(limit)), pace) {
                    prop_assert!(braked.hour_cap() <= open.hour_cap());
                }
            }
        }
    }
}
