//! What becomes of mail, and of the lane it left by, when a mailbox provider says more than yes or no. The whole relay in
//! this process against scripted servers. There is one lane, the total, so any provider's brake shuts it; only the last test has more.

#[path = "common/application.rs"]
mod application;
#[path = "common/bench.rs"]
mod bench;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::{Bench, PATIENCE, Setup};
use mailramp::admin::Backend;
use mailramp::admin::api::{Change, ChangeOrder, ItemState};
use mailramp::clock::{ManualClock, SystemClock};
use mailramp::message::{BrakeLevel, BrakeRecord, LaneId, Reason, Route, StageStep, Timestamp};
use mailramp::metrics::{AttemptResult, BrakeStep, Category, Provider, ReplyClass};
use scripted::{Act, Script, Scripted, Step, say};

const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";
const SENDER: &str = "sender@example.com";
const WAITS: &str = "policy = \"hold-then-legacy\", max_wait = \"15m\"";
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);

const GMAIL_RATE: &str =
    "421 4.7.28 unusual rate of unsolicited mail originating from your IP address, temporarily rate limited";
const GMAIL_DKIM: &str = "421 4.7.28 Gmail has detected an unusual rate of mail originating from your DKIM domain";
const OUTLOOK_RATE: &str =
    "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation (S775)";
const OUTLOOK_BANNED: &str = "550 5.7.606 Access denied, banned sending IP [192.0.2.1]";
const SLOWER: &str = "451 4.7.1 Please try again slower";

fn recipients(server: &Scripted) -> Vec<String> {
    let address = |rcpt: &String| rcpt.trim_start_matches("RCPT TO:<").split('>').next().unwrap_or_default().to_owned();
    server.messages().iter().flat_map(|message| message.rcpts.iter().map(address).collect::<Vec<_>>()).collect()
}

/// Reports to the sender.
fn reports(server: &Scripted) -> usize {
    recipients(server).iter().filter(|recipient| *recipient == SENDER).count()
}

/// A ramp in which only rules brake, never the part that was put off.
fn setup(new: &Scripted, legacy: Option<&Scripted>) -> Setup {
    let legacy = legacy.map(|legacy| &legacy.address as &dyn ToString);
    let mut setup = Setup::new(new.address, legacy).limit(1_000, WAITS);
    setup.more.push_str("brake = { min_attempts = 1000000 }\n");
    setup
}

/// The record of the brake, as the ledger has it.
async fn stored(bench: &Bench) -> BrakeRecord {
    let look = |ledger: &mailramp::spool::Ledger, _| ledger.lane(LaneId::TOTAL).map(|lane| lane.brake.clone());
    bench.relay().backend.spool.look(look).await.expect("answers").expect("there is a total")
}

async fn until_stored(bench: &Bench, level: BrakeLevel) -> BrakeRecord {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let record = stored(bench).await;
        if record.level == level {
            return record;
        }
        assert!(Instant::now() < deadline, "not {level:?} within {PATIENCE:?}: {record:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_taken(server: &Scripted, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while recipients(server).len() < count {
        assert!(Instant::now() < deadline, "{count} recipients: {:?}", recipients(server));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn brakes(bench: &Bench, step: BrakeStep) -> u64 {
    bench.metrics().warmup_brakes.of(Provider::All).of(step).get()
}

fn is_braked(bench: &Bench) -> bool {
    bench.metrics().warmup_brake_active.of(Provider::All).get() == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gmails_rate_limit_slows_when_it_comes_twice_and_suspends_when_it_goes_on() {
    let new = Script::new().always(Step::Dot, say(GMAIL_RATE)).start().await;
    let legacy = Script::new().start().await;
    let clock = Arc::new(ManualClock::at(NOON));
    let bench = Bench::start_at(&setup(&new, Some(&legacy)), clock.clone()).await;
    bench.send(SENDER, &["first@gmail.com"], BODY);
    let row = bench.row(ItemState::Deferred).await;
    assert_eq!((row.route.as_deref(), is_braked(&bench)), (Some("new"), false), "one is none");

    bench.relay().backend.routes.current().nudge();
    bench.send(SENDER, &["second@gmail.com"], BODY);
    let record = until_stored(&bench, BrakeLevel::Slow).await;
    assert!(record.reason.starts_with("google-rate-ip: 421 4.7.28") && record.reason.ends_with("(2x)"), "{record:?}");
    assert_eq!((record.step, record.touched), (StageStep::Hold, true));
    until_taken(&legacy, 1).await;
    assert_eq!(recipients(&legacy), ["second@gmail.com"], "the one that was just refused");
    assert_eq!((brakes(&bench, BrakeStep::Slow), brakes(&bench, BrakeStep::Suspended)), (1, 0));

    // What was under way then is over by now; these are new.
    clock.set(NOON.after(Duration::from_secs(180)));
    for recipient in ["third@gmail.com", "fourth@gmail.com"] {
        bench.send(SENDER, &[recipient], BODY);
        bench.flush().await;
    }
    until_stored(&bench, BrakeLevel::Suspended).await;
    bench.flush().await;
    bench.empty().await;
    assert_eq!((brakes(&bench, BrakeStep::Slow), brakes(&bench, BrakeStep::Suspended)), (1, 1));
    assert!(is_braked(&bench) && new.messages().is_empty());
    let mut all = recipients(&legacy);
    all.sort();
    assert_eq!(all, ["first@gmail.com", "fourth@gmail.com", "second@gmail.com", "third@gmail.com"], "each once");
    assert_eq!(bench.routed(Route::Legacy, Reason::Brake), 4);
    let replies = bench.metrics().upstream_replies.of(Route::New).of(ReplyClass::Transient);
    assert!(replies.of(Category::Rate).get() >= 4 && replies.of(Category::Other).get() == 0);
    let attempts = bench.metrics().delivery_attempts.of(Route::New).of(Provider::All);
    assert!(attempts.of(AttemptResult::Deferred).get() >= 4 && attempts.of(AttemptResult::Delivered).get() == 0);

    // Suspended for an hour, slow for another, then it is over by itself.
    clock.set(NOON.after(Duration::from_secs(3 * 3600)));
    let deadline = Instant::now() + PATIENCE;
    while is_braked(&bench) {
        assert!(Instant::now() < deadline, "the brake never ends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(stored(&bench).await.touched, "the day stays a braked one");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_of_outlook_sends_the_lanes_mail_to_legacy_and_the_brake_outlives_a_restart() {
    let new = Script::new().always(Step::Rcpt, say(OUTLOOK_RATE)).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&setup(&new, Some(&legacy))).await;
    bench.send(SENDER, &["refused@outlook.com"], BODY);
    let record = until_stored(&bench, BrakeLevel::Suspended).await;
    assert_eq!(record.until.since(record.since), Duration::from_secs(90 * 60));
    bench.empty().await;
    assert_eq!(bench.routed(Route::Legacy, Reason::Brake), 1);

    let bench = bench.restart(Arc::new(SystemClock)).await;
    assert_eq!(stored(&bench).await, record);
    assert!(is_braked(&bench) && brakes(&bench, BrakeStep::Suspended) == 0, "on, but not put on again");
    let commands = new.commands().len();
    bench.send(SENDER, &["next@outlook.com"], BODY);
    bench.empty().await;
    assert_eq!(recipients(&legacy), ["refused@outlook.com", "next@outlook.com"]);
    assert_eq!(new.commands().len(), commands, "new is not asked any more");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_5xx_for_reputation_is_delivered_by_legacy_and_the_sender_is_not_told() {
    let new = Script::new().always(Step::Dot, say(OUTLOOK_BANNED)).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&setup(&new, Some(&legacy))).await;
    bench.send(SENDER, &["a@outlook.com", "b@outlook.com"], BODY);
    bench.empty().await;
    assert_eq!(recipients(&legacy), ["a@outlook.com", "b@outlook.com"]);
    assert_eq!((bench.routed(Route::Legacy, Reason::Fallback), reports(&legacy)), (2, 0));
    let record = until_stored(&bench, BrakeLevel::Suspended).await;
    assert_eq!(record.step, StageStep::Freeze);
    let replies = bench.metrics().upstream_replies.of(Route::New).of(ReplyClass::Permanent);
    assert_eq!(replies.of(Category::Reputation).get(), 2);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_legacy_refuses_as_well_is_final_and_so_it_is_without_the_rule_or_without_legacy() {
    // Whether legacy takes mail, what fallback_on says; then whom the report goes by.
    for (legacy_refuses, rules) in [(true, "\"connect\", \"reputation\""), (false, "\"connect\"")] {
        let new = Script::new().always(Step::Dot, say(OUTLOOK_BANNED)).start().await;
        let script = if legacy_refuses { Script::new().at(Step::Dot, 1, say(OUTLOOK_BANNED)) } else { Script::new() };
        let legacy = script.start().await;
        let bench = Bench::start(&setup(&new, Some(&legacy)).queue(&format!("fallback_on = [{rules}]"))).await;
        bench.send(SENDER, &["a@outlook.com"], BODY);
        bench.empty().await;
        assert_eq!(recipients(&legacy), [SENDER], "one report and nothing else: {rules}");
        bench.stop().await;
    }
    // The report itself must find a way: the second message is taken.
    let new = Script::new().at(Step::Dot, 1, say(OUTLOOK_BANNED)).start().await;
    let bench = Bench::start(&setup(&new, None)).await;
    bench.send(SENDER, &["a@outlook.com"], BODY);
    until_stored(&bench, BrakeLevel::Suspended).await;
    let rows = bench.until("only the report is left", |rows| rows.len() <= 1).await;
    assert!(rows.iter().all(|row| row.id != "a@outlook.com"), "{rows:?}");
    assert!(recipients(&new).iter().all(|recipient| recipient == SENDER));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_mailbox_that_is_full_or_busy_is_its_own_affair() {
    let new = Script::new()
        .at(Step::Rcpt, 1, say("450 4.2.1 The user you are trying to contact is receiving mail at a rate that"))
        .at(Step::Rcpt, 2, say("552 5.2.2 mailbox full"))
        .start()
        .await;
    let legacy = Script::new().start().await;
    let mut setup = setup(&new, Some(&legacy));
    setup.more = setup.more.replace("1000000", "1").replace("min_attempts", "defer_ratio = \"1%\", min_attempts");
    let bench = Bench::start(&setup).await;
    bench.send(SENDER, &["busy@gmail.com", "full@gmail.com", "fine@gmail.com"], BODY);
    bench.empty().await;
    let mut taken = recipients(&new);
    taken.sort();
    assert_eq!(taken, ["busy@gmail.com", "fine@gmail.com"], "tried again where it was");
    assert_eq!(recipients(&legacy), [SENDER], "one report, about the full one");
    assert_eq!((is_braked(&bench), stored(&bench).await), (false, BrakeRecord::default()));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_domain_is_limited_for_waits_for_new_also_while_the_lane_is_braked() {
    let new = Script::new().at(Step::Dot, 1, say(GMAIL_DKIM)).always(Step::Dot, say(OUTLOOK_RATE)).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&setup(&new, Some(&legacy))).await;
    let id = bench.send(SENDER, &["domain@gmail.com"], BODY);
    let row = bench.row(ItemState::Deferred).await;
    assert_eq!((row.route.as_deref(), is_braked(&bench)), (Some("new"), false), "legacy would be refused too");
    bench.relay().backend.routes.current().nudge();
    bench.send(SENDER, &["ip@outlook.com"], BODY);
    until_stored(&bench, BrakeLevel::Suspended).await;
    let rows = bench.until("the other one has left", |rows| rows.len() == 1).await;
    bench.flush().await;
    bench.send(SENDER, &["more@outlook.com"], BODY);
    until_taken(&legacy, 2).await;
    let after = bench.until("only the first waits", |rows| rows.len() == 1).await;
    assert_eq!((&rows[0].id, &after[0].id, after[0].route.as_deref()), (&id, &id, Some("new")));
    assert_eq!(recipients(&legacy), ["ip@outlook.com", "more@outlook.com"]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hostile_receiver_brakes_nobody_and_five_that_agree_do() {
    let new = Script::new().always(Step::Rcpt, say(SLOWER)).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&setup(&new, Some(&legacy))).await;
    let hostile: Vec<String> =
        (0..40).map(|n| format!("r{n}@Hostile{}.example", if n % 2 == 0 { "" } else { "2" })).collect();
    bench.send(SENDER, &hostile.iter().map(String::as_str).collect::<Vec<_>>(), BODY);
    bench.row(ItemState::Deferred).await;
    assert!(!is_braked(&bench) && legacy.messages().is_empty());
    let others: Vec<String> = (0..3).map(|n| format!("a@other{n}.example")).collect();
    bench.send(SENDER, &others.iter().map(String::as_str).collect::<Vec<_>>(), BODY);
    let record = until_stored(&bench, BrakeLevel::Slow).await;
    assert!(record.reason.starts_with("generic-ratelimited: 451"), "{record:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_left_by_new_stays_there_whatever_the_signal() {
    let new = Script::new()
        .at(Step::Dot, 1, Act::Cut)
        .at(Step::Rcpt, 2, say(OUTLOOK_RATE))
        .always(Step::Rcpt, say("250 2.1.5 fine"))
        .start()
        .await;
    let legacy = Script::new().start().await;
    let mut setup = setup(&new, Some(&legacy));
    setup.queue = "retry = [\"1s\", \"1h\"]\n".into();
    let bench = Bench::start(&setup).await;
    let id = bench.send(SENDER, &["maybe@outlook.com"], BODY);
    until_stored(&bench, BrakeLevel::Suspended).await;
    bench.send(SENDER, &["later@outlook.com"], BODY);
    let rows = bench.until("the other one has left", |rows| rows.len() == 1).await;
    bench.flush().await;
    assert_eq!((&rows[0].id, rows[0].route.as_deref()), (&id, Some("new")));
    assert_eq!(recipients(&legacy), ["later@outlook.com"], "never by both routes");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_legacy_server_mail_waits_for_the_end_of_the_brake_or_an_operators_word() {
    let new = Script::new().at(Step::Rcpt, 1, say(OUTLOOK_RATE)).start().await;
    let bench = Bench::start(&setup(&new, None)).await;
    bench.send(SENDER, &["a@outlook.com"], BODY);
    until_stored(&bench, BrakeLevel::Suspended).await;
    bench.send(SENDER, &["b@outlook.com"], BODY);
    bench.flush().await;
    let rows = bench.until("both wait", |rows| rows.len() == 2).await;
    assert!(rows.iter().all(|row| row.route.as_deref() == Some("new")), "{rows:?}");
    assert!(new.messages().is_empty());

    let change = async |change| {
        let order = ChangeOrder { change, reason: "complaints".into(), dry_run: false };
        bench.relay().backend.change(order, 0).await
    };
    let release = || Change::BrakeRelease { provider: "all".into() };
    change(release()).await.expect("it is on");
    change(release()).await.expect_err("there is none any more");
    let record = stored(&bench).await;
    assert_eq!((record.level, record.touched), (BrakeLevel::Open, true));
    assert!(!is_braked(&bench));
    bench.flush().await;
    bench.empty().await;
    let mut taken = recipients(&new);
    taken.sort();
    assert_eq!(taken, ["a@outlook.com", "b@outlook.com"]);

    change(Change::BrakeSet { provider: "all".into(), for_seconds: 3600 }).await.expect("can be set");
    assert!(stored(&bench).await.reason.ends_with("complaints") && is_braked(&bench));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_lane_of_the_provider_that_said_it_is_braked() {
    let new = Script::new().at(Step::Rcpt, 1, say(OUTLOOK_RATE)).start().await;
    let legacy = Script::new().start().await;
    let mut setup = setup(&new, Some(&legacy));
    // Nobody answers about domains there: what is well known has to do.
    setup.more = setup.more.replace("providers = \"off\"", "providers = \"auto\"");
    setup.more.push_str("[dns]\nservers = [\"127.0.0.1:9\"]\n");
    let bench = Bench::start(&setup).await;
    bench.send(SENDER, &["refused@outlook.com"], BODY);
    until_taken(&legacy, 1).await;
    bench.send(SENDER, &["next@outlook.com"], BODY);
    bench.send(SENDER, &["fine@gmail.com"], BODY);
    bench.empty().await;
    assert_eq!(recipients(&legacy), ["refused@outlook.com", "next@outlook.com"]);
    assert_eq!(recipients(&new), ["fine@gmail.com"]);
    let active = |provider| bench.metrics().warmup_brake_active.of(provider).get();
    assert_eq!([Provider::Microsoft, Provider::Google, Provider::All].map(active), [1, 0, 0]);
    let attempts = |provider| {
        let of = bench.metrics().delivery_attempts.of(Route::New).of(provider);
        (of.of(AttemptResult::Delivered).get(), of.of(AttemptResult::Deferred).get())
    };
    assert_eq!([Provider::Microsoft, Provider::Google, Provider::All].map(attempts), [(0, 1), (1, 0), (1, 1)]);
    bench.stop().await;
}
