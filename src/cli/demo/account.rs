//! The final account of the demonstration: what the application was promised, held against what the servers saw.
//!
//! Pure. The relay's own ledger is one witness among three and gets no benefit of the doubt: the application's 250s,
//! the two servers' notebooks and the ledger must all tell the same story.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::application::Letter;
use super::sink::Sighting;
use crate::cli::text::{Paint, count, counted};
use crate::message::{Day, DayRecord, Route, SLOT_NANOS, Timestamp};

/// Offenders that are named; the others are only counted.
const NAMED_MAX: usize = 5;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What is held against each other.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Messages that got their 250, with the number of their recipients.
    pub accepted: Vec<(u32, u16)>,
    /// What the application was told instead of 250.
    pub refused: Vec<String>,
    /// What the two servers took.
    pub seen: Vec<Sighting>,
    /// The relay's ledger, oldest day first. Days are those of UTC.
    pub days: Vec<DayRecord>,
    /// Recipients still in the relay's queue.
    pub queued: u64,
    /// What a second of real time is by the demo's clock.
    pub second: Duration,
}

/// One thing that was looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub good: bool,
    pub text: String,
    /// Named when it is not good, at most five.
    pub offenders: Vec<String>,
}

/// The result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub messages: u64,
    pub recipients: u64,
    pub new: u64,
    pub legacy: u64,
    /// Of a visitor's own mail, at both servers.
    pub visitors: u64,
    pub queued: u64,
    pub checks: Vec<Check>,
}

impl Account {
    pub fn of(evidence: &Evidence) -> Account {
        let at = |route| evidence.seen.iter().filter(|s| s.route == route && s.letter.is_some()).count() as u64;
        let checks = vec![
            nothing_refused(evidence),
            exactly_once(evidence),
            queue_is_empty(evidence),
            no_day_over_its_limit(evidence),
            no_24_hours_over_a_limit(evidence),
            ledger_agrees(evidence),
        ];
        Account {
            messages: evidence.accepted.len() as u64,
            recipients: evidence.accepted.iter().map(|(_, recipients)| u64::from(*recipients)).sum(),
            new: at(Route::New),
            legacy: at(Route::Legacy),
            visitors: evidence.seen.iter().filter(|s| s.letter.is_none()).count() as u64,
            queued: evidence.queued,
            checks,
        }
    }

    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.good)
    }

    pub fn render(&self, paint: Paint) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} with 250: {} to {}",
            paint.bold("accepted"),
            counted(self.messages, "message"),
            counted(self.recipients, "recipient")
        );
        let _ = write!(
            out,
            "found at new: {}   at legacy: {}   still in the queue: {}",
            paint.good(&count(self.new)),
            count(self.legacy),
            count(self.queued)
        );
        if self.visitors > 0 {
            let _ = write!(out, "   of visitors: {}", count(self.visitors));
        }
        out.push('\n');
        for check in &self.checks {
            let verdict = if check.good { paint.good("PASS") } else { paint.bad("FAIL") };
            let _ = writeln!(out, " {verdict}  {}", check.text);
            for offender in &check.offenders {
                let _ = writeln!(out, "       {offender}");
            }
        }
        out
    }
}

/// Good, or not with the first few of those to blame.
fn check(good_text: String, bad_text: impl FnOnce(usize) -> String, mut offenders: Vec<String>) -> Check {
    if offenders.is_empty() {
        return Check { good: true, text: good_text, offenders };
    }
    let all = offenders.len();
    offenders.truncate(NAMED_MAX);
    Check { good: false, text: bad_text(all), offenders }
}

/// Over the limit is no error to the application.
fn nothing_refused(evidence: &Evidence) -> Check {
    let refused = evidence.refused.clone();
    check(
        "the application got 250 for everything, over the limit or not".into(),
        |all| format!("{} not accepted", counted(all as u64, "message")),
        refused,
    )
}

fn exactly_once(evidence: &Evidence) -> Check {
    let mut found: BTreeMap<Letter, [u64; 2]> = BTreeMap::new();
    for &(message, recipients) in &evidence.accepted {
        found.extend((0..recipients).map(|recipient| (Letter { message, recipient }, [0, 0])));
    }
    let mut strangers = 0;
    for sighting in &evidence.seen {
        let Some(letter) = sighting.letter else { continue };
        match found.get_mut(&letter) {
            Some(at) => at[sighting.route as usize] += 1,
            // Its answer was lost, so the application does not count on it. It shows among the refused.
            None => strangers += 1,
        }
    }
    let wrong = found.iter().filter(|(_, at)| at.iter().sum::<u64>() != 1);
    let mut offenders: Vec<String> = wrong
        .map(|(letter, [new, legacy])| match (new, legacy) {
            (0, 0) => format!("{} was accepted and is at neither server", letter.address()),
            _ => format!("{} is {new} x at new and {legacy} x at legacy", letter.address()),
        })
        .collect();
    if strangers > 0 {
        offenders.push(format!("{} arrived that got no 250", counted(strangers, "recipient")));
    }
    check(
        "every accepted recipient is at one of the two servers, exactly once".into(),
        |all| format!("{} not at exactly one server", counted(all as u64, "recipient")),
        offenders,
    )
}

fn queue_is_empty(evidence: &Evidence) -> Check {
    let left = (evidence.queued > 0).then(|| format!("{} left", counted(evidence.queued, "recipient")));
    check(
        "nothing is left in the queue".into(),
        |_| "the queue did not become empty".into(),
        left.into_iter().collect(),
    )
}

/// By the ledger: neither what was reserved on a day nor what was acknowledged on it.
fn no_day_over_its_limit(evidence: &Evidence) -> Check {
    let over = |day: &&DayRecord| day.limit.is_some_and(|limit| day.sent.max(day.reserved) > limit);
    let offenders = evidence.days.iter().filter(over).map(|day| {
        let limit = count(day.limit.unwrap_or(0));
        format!("day {}: limit {limit}, reserved {}, sent {}", day.stage + 1, count(day.reserved), count(day.sent))
    });
    check(
        "no day over its limit, by the ledger".into(),
        |all| format!("{} over the limit", counted(all as u64, "day")),
        offenders.collect(),
    )
}

/// By the new server alone.
///
/// No tolerance in the number is needed: a token is reserved before its final dot, and counts for 24 hours from the time
/// at which the answer to the dot was written down, which is after the dot. The only thing that the squeeze of days into
/// seconds blurs is which days those 24 hours touch: the relay decided a moment earlier, and in whole quarter-hours, so a
/// day that had ended that much before counts as touched.
fn no_24_hours_over_a_limit(evidence: &Evidence) -> Check {
    let mut times: Vec<Timestamp> = evidence.seen.iter().filter(|s| s.route == Route::New).map(|s| s.at).collect();
    times.sort_unstable();
    let limits: BTreeMap<Day, Option<u64>> = evidence.days.iter().map(|day| (day.day, day.limit)).collect();
    let margin = evidence.second + Duration::from_nanos(SLOT_NANOS as u64);
    let (mut first, mut most, mut offenders) = (0, 0, Vec::new());
    for (last, at) in times.iter().enumerate() {
        while at.since(times[first]) >= DAY {
            first += 1;
        }
        let used = (last - first + 1) as u64;
        most = most.max(used);
        let earliest = Timestamp(at.0.saturating_sub((DAY + margin).as_nanos() as i64));
        let mut touched = limits.range(day_of(earliest)..=day_of(*at)).map(|(_, limit)| *limit).peekable();
        let largest = match touched.peek() {
            // A day the ledger does not know has no limit to its name.
            None => Some(0),
            Some(_) => touched.try_fold(0, |largest: u64, limit| limit.map(|limit| largest.max(limit))),
        };
        if largest.is_some_and(|largest| used > largest) {
            offenders.push(format!("{} in 24 hours, limit {}", count(used), count(largest.unwrap_or(0))));
        }
    }
    check(
        format!("no 24 hours over a limit, by the new server (most: {})", count(most)),
        |all| format!("{} came to new over the limit of 24 hours", counted(all as u64, "recipient")),
        offenders,
    )
}

fn day_of(at: Timestamp) -> Day {
    Day(at.seconds().div_euclid(DAY.as_secs() as i64) as i32)
}

fn ledger_agrees(evidence: &Evidence) -> Check {
    let sum = |of: fn(&DayRecord) -> u64| evidence.days.iter().map(of).sum::<u64>();
    let at = |route| evidence.seen.iter().filter(|s| s.route == route).count() as u64;
    let sides = [(Route::New, sum(|day| day.sent)), (Route::Legacy, sum(|day| day.legacy))];
    let differing = sides.iter().filter(|(route, ledger)| at(*route) != *ledger);
    let offenders =
        differing.map(|(route, ledger)| format!("{route}: ledger {}, server {}", count(*ledger), count(at(*route))));
    check(
        "the relay's ledger and the two servers have counted the same".into(),
        |_| "the relay's ledger and the servers have not counted the same".into(),
        offenders.collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 4 * SLOT_NANOS;

    fn seen(message: u32, recipient: u16, route: Route, hour: i64) -> Sighting {
        Sighting { at: Timestamp(hour * HOUR), route, letter: Some(Letter { message, recipient }) }
    }

    fn day(n: i32, limit: u64, sent: u64, legacy: u64) -> DayRecord {
        DayRecord { day: Day(n), limit: Some(limit), reserved: sent, sent, legacy, ..DayRecord::default() }
    }

    /// Two messages, three recipients: two at new, one at legacy.
    fn evidence() -> Evidence {
        Evidence {
            accepted: vec![(1, 2), (2, 1)],
            seen: vec![seen(1, 0, Route::New, 1), seen(1, 1, Route::Legacy, 1), seen(2, 0, Route::New, 20)],
            days: vec![day(0, 2, 2, 1)],
            second: Duration::from_secs(7200),
            ..Evidence::default()
        }
    }

    /// The one check that is not good, and its first offender.
    fn verdict(change: impl FnOnce(&mut Evidence)) -> (String, String) {
        let mut evidence = evidence();
        change(&mut evidence);
        let bad: Vec<Check> = Account::of(&evidence).checks.into_iter().filter(|check| !check.good).collect();
        assert_eq!(bad.len(), 1, "{bad:#?}");
        (bad[0].text.clone(), bad[0].offenders.first().cloned().unwrap_or_default())
    }

    #[test]
    fn a_true_story_adds_up() {
        let account = Account::of(&evidence());
        assert!(account.is_good(), "{}", account.render(Paint::PLAIN));
        let text = account.render(Paint::PLAIN);
        assert!(text.starts_with(
            "accepted with 250: 2 messages to 3 recipients\nfound at new: 2   at legacy: 1   still in the queue: 0\n PASS"
        ));
        assert!(!text.contains("FAIL") && !text.contains("visitors"));
    }

    #[test]
    fn a_recipient_at_neither_server_is_missed() {
        let (text, who) = verdict(|e| {
            e.seen.remove(1);
            e.days[0].legacy = 0;
        });
        assert_eq!(text, "1 recipient not at exactly one server");
        assert_eq!(who, "m1.r1@yahoo.example was accepted and is at neither server");
    }

    #[test]
    fn a_recipient_at_both_servers_or_twice_at_one_is_a_duplicate() {
        let (_, who) = verdict(|e| {
            e.seen.push(seen(1, 0, Route::Legacy, 2));
            e.days[0].legacy += 1;
        });
        assert_eq!(who, "m1.r0@outlook.example is 1 x at new and 1 x at legacy");
        let (_, who) = verdict(|e| {
            e.seen.push(seen(1, 1, Route::Legacy, 2));
            e.days[0].legacy += 1;
        });
        assert_eq!(who, "m1.r1@yahoo.example is 0 x at new and 2 x at legacy");
    }

    #[test]
    fn mail_without_a_250_must_not_arrive_and_a_refusal_is_told() {
        let (_, what) = verdict(|e| {
            e.seen.push(seen(9, 0, Route::Legacy, 2));
            e.days[0].legacy += 1;
        });
        assert_eq!(what, "1 recipient arrived that got no 250");
        let (text, what) = verdict(|e| e.refused.push("message 9: the relay said 452 4.3.1".into()));
        assert_eq!((text.as_str(), what.as_str()), ("1 message not accepted", "message 9: the relay said 452 4.3.1"));
    }

    #[test]
    fn a_day_over_its_limit_is_found_by_what_was_sent_and_by_what_was_reserved() {
        let (text, what) = verdict(|e| e.days[0].reserved = 3);
        assert_eq!((text.as_str(), what.as_str()), ("1 day over the limit", "day 1: limit 2, reserved 3, sent 2"));
        let account = Account::of(&Evidence { days: vec![day(0, 1, 2, 1)], ..evidence() });
        // The new server knows it too.
        assert_eq!(account.checks.iter().filter(|check| !check.good).count(), 2);
    }

    #[test]
    fn too_many_within_24_hours_are_found_although_each_day_is_within_its_limit() {
        // Two at the end of one day and two at the start of the next, with a limit of two each.
        let (text, _) = verdict(|e| {
            e.accepted = vec![(1, 4)];
            e.seen = vec![
                seen(1, 0, Route::New, 20),
                seen(1, 1, Route::New, 22),
                seen(1, 2, Route::New, 25),
                seen(1, 3, Route::New, 26),
            ];
            e.days = vec![day(0, 2, 2, 0), day(1, 2, 2, 0)];
        });
        assert_eq!(text, "2 recipients came to new over the limit of 24 hours");
    }

    #[test]
    fn a_ledger_that_counts_otherwise_than_the_servers_is_not_believed() {
        let (_, what) = verdict(|e| e.days[0].legacy = 0);
        assert_eq!(what, "legacy: ledger 0, server 1");
    }

    #[test]
    fn what_is_left_in_the_queue_fails_and_mail_of_visitors_does_not() {
        assert_eq!(verdict(|e| e.queued = 4).1, "4 recipients left");
        let mut visited = evidence();
        visited.seen.push(Sighting { letter: None, ..seen(0, 0, Route::Legacy, 3) });
        visited.days[0].legacy += 1;
        let account = Account::of(&visited);
        assert!(account.is_good() && account.visitors == 1, "{}", account.render(Paint::PLAIN));
    }

    #[test]
    fn of_many_offenders_five_are_named() {
        let account = Account::of(&Evidence { accepted: vec![(1, 40)], ..Evidence::default() });
        let check = account.checks.iter().find(|check| !check.good).unwrap();
        assert_eq!((check.text.as_str(), check.offenders.len()), ("40 recipients not at exactly one server", 5));
    }
}
