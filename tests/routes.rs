//! Which way mail goes when a next hop fails: the other server of the route, the other route by rule, or nowhere yet.
//! The whole relay in this process against scripted servers.

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
use mailramp::admin::api::ItemState;
use mailramp::clock::{Clock, ManualClock};
use mailramp::message::{Reason, Route, Timestamp};
use scripted::{Act, Script, Scripted, Step, say};

const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";
const SENDER: &str = "sender@example.com";
const WAITS: &str = "policy = \"hold-then-legacy\", max_wait = \"15m\"";
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);

fn recipients(server: &Scripted) -> Vec<String> {
    let address = |rcpt: &String| rcpt.trim_start_matches("RCPT TO:<").split('>').next().unwrap_or_default().to_owned();
    server.messages().iter().flat_map(|message| message.rcpts.iter().map(address).collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_new_is_down_its_mail_goes_to_legacy_at_once_and_a_probe_finds_out_when_it_is_back() {
    let (socket, address) = Scripted::reserve();
    let legacy = Script::new().start().await;
    let bench = Bench::start(&Setup::new(address, Some(&legacy.address)).limit(10, WAITS)).await;
    let began = Instant::now();
    bench.send(SENDER, &["first@example.net", "second@example.net"], BODY);
    bench.empty().await;
    bench.send(SENDER, &["third@example.net"], BODY);
    bench.empty().await;
    assert!(began.elapsed() < Duration::from_secs(60), "its deadline is 15 minutes away");
    assert_eq!(recipients(&legacy), ["first@example.net", "second@example.net", "third@example.net"]);
    assert_eq!(bench.routed(Route::Legacy, Reason::Fallback), 3);
    let status = bench.status().await;
    assert!(!status.new.up && status.legacy.up);
    assert_eq!((status.warmup.used, status.today.new, status.today.legacy), (0, 0, 3), "no token is spent");
    // No mail is needed to find out that it is back.
    let new = Scripted::start_on(socket, Script::new()).await;
    bench.until_status("new is up", |status| status.new.up).await;
    bench.send(SENDER, &["fourth@example.net"], BODY);
    bench.empty().await;
    assert_eq!(recipients(&new), ["fourth@example.net"]);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_is_not_named_leaves_the_mail_waiting_for_its_deadline() {
    // Each: what new does, what is said inside [new], the rule that fits.
    let rows = [
        (Script::new().always(Step::Greeting, say("554 5.7.1 go away")), "", "connect"),
        (Script::new().always(Step::Ehlo, Act::Cut), "", "connect"),
        (Script::new(), "encrypt", "tls"),
        (Script::offering(&["AUTH PLAIN"]).always(Step::Auth, say("535 5.7.8 no")), "auth", "auth"),
    ];
    for (script, inside, rule) in rows {
        let all = ["connect", "tls", "auth", "reputation"];
        let but = all.iter().filter(|r| **r != rule).map(|r| format!("\"{r}\"")).collect::<Vec<_>>().join(", ");
        for (rules, falls_back) in [(format!("\"{rule}\""), true), (but, false)] {
            let new = script.clone().start().await;
            let legacy = Script::new().start().await;
            let mut setup = Setup::new(new.address, Some(&legacy.address)).limit(10, WAITS);
            setup = setup.queue(&format!("fallback_on = [{rules}]"));
            match inside {
                "encrypt" => setup.new = setup.new.replace("\"off\"", "\"encrypt\""),
                "auth" => setup.new.push_str("auth = { user = \"app\", password = \"secret\" }\n"),
                _ => {}
            }
            let bench = Bench::start(&setup).await;
            bench.send(SENDER, &["a@example.net"], BODY);
            if falls_back {
                bench.empty().await;
                assert_eq!(recipients(&legacy), ["a@example.net"], "{rule}");
            } else {
                bench.until_status("new is down", |status| !status.new.up).await;
                bench.relay().backend.routes.current().nudge();
                let row = bench.row(ItemState::Held).await;
                assert_eq!(row.route.as_deref(), Some("new"), "{rule}");
                assert!(legacy.messages().is_empty(), "{rule}");
            }
            assert!(new.messages().is_empty());
            bench.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_is_to_wait_for_new_however_long_does_not_fall_back() {
    let (socket, address) = Scripted::reserve();
    let legacy = Script::new().start().await;
    let setup = Setup::new(address, Some(&legacy.address)).limit(10, "policy = \"hold\"");
    let bench = Bench::start(&setup).await;
    bench.send(SENDER, &["patient@example.net"], BODY);
    bench.until_status("new is down", |status| !status.new.up).await;
    bench.relay().backend.routes.current().nudge();
    let row = bench.row(ItemState::Held).await;
    assert_eq!(row.route.as_deref(), Some("new"));
    let new = Scripted::start_on(socket, Script::new()).await;
    bench.empty().await;
    assert_eq!((recipients(&new), recipients(&legacy)), (vec!["patient@example.net".into()], vec![]));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_ramp_mail_falls_back_too() {
    let (_closed, address) = Scripted::reserve();
    let legacy = Script::new().start().await;
    let bench = Bench::start(&Setup::new(address, Some(&legacy.address))).await;
    bench.send(SENDER, &["a@example.net"], BODY);
    bench.empty().await;
    assert_eq!((recipients(&legacy), bench.routed(Route::Legacy, Reason::Fallback)), (vec!["a@example.net".into()], 1));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_left_by_new_stays_there_also_when_new_goes_down() {
    // The first connection takes a message and never says so; then the server is gone.
    let new = Script::new()
        .at(Step::Greeting, 1, say("220 hello"))
        .always(Step::Greeting, say("554 5.3.2 closed"))
        .at(Step::Dot, 1, Act::Cut)
        .start()
        .await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&Setup::new(new.address, Some(&legacy.address)).limit(10, WAITS)).await;
    let id = bench.send(SENDER, &["maybe@example.net"], BODY);
    bench.row(ItemState::Deferred).await;
    bench.send(SENDER, &["later@example.net"], BODY);
    bench.until_status("new is down", |status| !status.new.up).await;
    let rows = bench.until("the other one has left", |rows| rows.len() == 1).await;
    bench.flush().await;
    bench.until_status("new was tried again", |status| !status.new.up).await;
    assert_eq!((&rows[0].id, rows[0].route.as_deref()), (&id, Some("new")));
    assert_eq!(recipients(&legacy), ["later@example.net"], "never by both routes");
    assert_eq!(bench.status().await.warmup.used, 1, "its token stays spent");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_new_that_breaks_before_the_final_dot_sends_its_message_to_legacy_and_only_that() {
    let new = Script::new().at(Step::Data, 1, Act::Cut).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&Setup::new(new.address, Some(&legacy.address)).limit(10, WAITS)).await;
    bench.send(SENDER, &["cut@example.net"], BODY);
    bench.empty().await;
    bench.send(SENDER, &["next@example.net"], BODY);
    bench.empty().await;
    assert_eq!(
        (recipients(&legacy), recipients(&new)),
        (vec!["cut@example.net".into()], vec!["next@example.net".into()])
    );
    let status = bench.status().await;
    assert_eq!((status.warmup.used, status.warmup.sent), (1, 1), "the token of the broken session came back");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_refusal_of_new_is_tried_again_there() {
    let new = Script::new().at(Step::Rcpt, 1, say("451 4.7.1 greylisted")).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&Setup::new(new.address, Some(&legacy.address)).limit(10, WAITS)).await;
    bench.send(SENDER, &["grey@example.net"], BODY);
    bench.row(ItemState::Deferred).await;
    bench.empty().await;
    assert_eq!((recipients(&new), recipients(&legacy)), (vec!["grey@example.net".into()], vec![]));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_legacy_is_down_its_mail_stays_on_it_and_intake_goes_on() {
    let new = Script::new().start().await;
    let (socket, address) = Scripted::reserve();
    let setup = Setup::new(new.address, Some(&address)).limit(1, "policy = \"legacy\"");
    let bench = Bench::start(&setup).await;
    bench.send(SENDER, &["in-quota@example.net"], BODY);
    for n in 0..5 {
        bench.send(SENDER, &[&format!("over{n}@example.net")], BODY);
    }
    let status = bench.until_status("legacy is down", |status| !status.legacy.up).await;
    assert!(status.legacy.last_error.is_some());
    let rows = bench.until("all in quota has left", |rows| rows.len() == 5).await;
    assert!(rows.iter().all(|row| row.route.as_deref() == Some("legacy")), "{rows:?}");
    assert_eq!(recipients(&new), ["in-quota@example.net"]);
    let legacy = Scripted::start_on(socket, Script::new()).await;
    bench.empty().await;
    assert_eq!((recipients(&legacy).len(), recipients(&new).len()), (5, 1));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_both_servers_down_intake_goes_on_and_nothing_is_lost() {
    let ((new_socket, new), (legacy_socket, legacy)) = (Scripted::reserve(), Scripted::reserve());
    let bench = Bench::start(&Setup::new(new, Some(&legacy)).limit(100, WAITS)).await;
    // The first goes to legacy before anybody knows that it is down too; the others wait where they are.
    bench.send(SENDER, &["r0@example.net"], BODY);
    bench.until_status("both are down", |status| !status.new.up && !status.legacy.up).await;
    for n in 1..10 {
        bench.send(SENDER, &[&format!("r{n}@example.net")], BODY);
    }
    let rows = bench.queue().await;
    assert_eq!(rows.len(), 10);
    let on_legacy: Vec<_> = rows.iter().filter(|row| row.route.as_deref() == Some("legacy")).collect();
    assert_eq!(on_legacy.len(), 1, "{rows:?}");
    let (new, legacy) =
        (Scripted::start_on(new_socket, Script::new()).await, Scripted::start_on(legacy_socket, Script::new()).await);
    bench.empty().await;
    let mut all = [recipients(&new), recipients(&legacy)].concat();
    all.sort();
    assert_eq!(all, (0..10).map(|n| format!("r{n}@example.net")).collect::<Vec<_>>(), "each once");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_hop_that_is_down_is_not_tried_more_than_once_in_two_seconds_however_much_mail_comes() {
    let new = Script::new().always(Step::Greeting, say("554 5.3.2 not today")).start().await;
    let bench = Bench::start(&Setup::new(new.address, None)).await;
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_millis(2500) {
        bench.send(SENDER, &["a@example.net"], BODY);
        sent += 1;
    }
    let tried = new.connections() as u64;
    let most = began.elapsed().as_secs() / 2 + 1;
    assert!((1..=most).contains(&tried), "{tried} connections in {:?}", began.elapsed());
    assert_eq!(bench.queue().await.len(), sent.min(100));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_of_a_route_are_tried_in_order_and_a_421_rests_only_the_one_that_said_it() {
    let (_closed, down) = Scripted::reserve();
    let busy = Script::new().at(Step::Mail, 1, Act::SayThenCut("421 4.3.2 busy".into())).start().await;
    let spare = Script::new().start().await;
    let mut setup = Setup::new(down, None);
    setup.new = setup
        .new
        .replace(&format!("\"{down}\""), &format!("[\"{down}\", \"{}\", \"{}\"]", busy.address, spare.address));
    let bench = Bench::start(&setup).await;
    bench.send(SENDER, &["a@example.net"], BODY);
    bench.empty().await;
    assert_eq!((busy.messages().len(), recipients(&spare)), (0, vec!["a@example.net".into()]));
    assert!(bench.status().await.new.up, "the route is not down");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_new_cannot_carry_goes_by_legacy_and_fails_when_that_cannot_either() {
    let eight_bit = "Subject: x\r\n\r\n\u{fc}\r\n".as_bytes();
    for (legacy_offers, taken) in [(&["8BITMIME"][..], 1), (&[][..], 0)] {
        let new = Script::offering(&["PIPELINING"]).start().await;
        let legacy = Script::offering(legacy_offers).start().await;
        // Even where no failure is named: new works, it only cannot do this.
        let setup = Setup::new(new.address, Some(&legacy.address)).limit(10, WAITS).queue("fallback_on = []");
        let bench = Bench::start(&setup).await;
        bench.send(SENDER, &["a@example.net"], eight_bit);
        bench.empty().await;
        let (mail, reports): (Vec<_>, Vec<_>) =
            legacy.messages().into_iter().partition(|message| message.mail.contains(SENDER));
        assert_eq!((mail.len(), reports.len()), (taken, 1 - taken));
        for report in reports {
            assert!(String::from_utf8_lossy(&report.body).contains("Status: 5.6.3"));
        }
        assert!(new.messages().is_empty());
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn legacy_gets_no_more_recipients_in_a_minute_than_it_may() {
    let (_closed, new) = Scripted::reserve();
    let legacy = Script::new().start().await;
    let clock = Arc::new(ManualClock::at(NOON));
    let mut setup = Setup::new(new, Some(&legacy.address));
    setup.legacy.as_mut().expect("there is one").push_str("max_per_minute = 3\n");
    let bench = Bench::start_at(&setup, clock.clone()).await;
    let names: Vec<String> = (0..5).map(|n| format!("r{n}@example.net")).collect();
    bench.send(SENDER, &names.iter().map(String::as_str).collect::<Vec<_>>(), BODY);
    bench.send(SENDER, &["r5@example.net"], BODY);
    let count = async |expected: usize| {
        let deadline = Instant::now() + PATIENCE;
        while recipients(&legacy).len() < expected {
            assert!(Instant::now() < deadline, "{expected} recipients: {:?}", recipients(&legacy));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Whoever could send more would have been woken by now.
        bench.relay().backend.routes.current().nudge();
        bench
            .until("the rest waits", |rows| rows.iter().map(|r| r.recipients).sum::<u64>() == 6 - expected as u64)
            .await;
        assert_eq!(recipients(&legacy).len(), expected);
    };
    count(3).await;
    clock.set(NOON.after(Duration::from_secs(59)));
    count(3).await;
    clock.set(NOON.after(Duration::from_secs(62)));
    bench.relay().backend.routes.current().nudge();
    count(6).await;
    bench.empty().await;
    let mut all = recipients(&legacy);
    all.sort();
    assert_eq!(all, (0..6).map(|n| format!("r{n}@example.net")).collect::<Vec<_>>(), "each once");
    assert!(clock.now() >= NOON);
    bench.stop().await;
}
