//! What senders hear (RFC 3461, RFC 3464): the whole relay, with next hops that report themselves and such that do not.

#[path = "common/application.rs"]
mod application;
#[path = "common/bench.rs"]
mod bench;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::time::Duration;

use bench::{Bench, Setup};
use bytes::Bytes;
use mailramp::admin::api::ItemState;
use mailramp::clock::{Clock, ManualClock, SystemClock};
use mailramp::message::{LaneId, Recipient, StreamId, Timestamp};
use mailramp::metrics::ReportResult;
use mailramp::spool::body::NewBody;
use mailramp::spool::{Accept, Part};
use scripted::{Script, Scripted, Step, Taken, say};

const BODY: &[u8] = b"Subject: hello\r\n\r\nnobody's business\r\n";
const SENDER: &str = "sender@example.com";
const NOON: Timestamp = Timestamp::from_seconds(1_780_000_000 / 86_400 * 86_400 + 43_200);

/// Stores a message as the front door would: sender, parameters of MAIL, recipients with theirs.
async fn accept(bench: &Bench, clock: &dyn Clock, sender: &str, mail: &str, recipients: &[(&str, &str)]) {
    let octets = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let backend = &bench.relay().backend;
    let recipients =
        recipients.iter().map(|(path, parameters)| Recipient { path: octets(path), parameters: octets(parameters) });
    let part = Part { lane: LaneId::TOTAL, stream: StreamId::DEFAULT, recipients: recipients.collect(), only: None };
    let accept = Accept {
        id: backend.routes.current().fresh_id(clock.now()),
        reverse_path: octets(sender),
        parameters: octets(mail),
        parts: vec![part],
        body: NewBody::small(Bytes::from_static(BODY)),
    };
    backend.spool.accept(accept).await.expect("stored");
}

/// Mail of the application, and reports.
fn taken(server: &Scripted) -> (Vec<Taken>, Vec<Taken>) {
    server.messages().into_iter().partition(|message| !message.mail.starts_with("MAIL FROM:<>"))
}

fn text(report: &Taken) -> String {
    let text = String::from_utf8_lossy(&report.body).into_owned();
    assert!(!text.contains("business"), "never the body: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_hop_that_reports_gets_the_wishes_and_we_are_silent() {
    let new = Script::new().start().await;
    let bench = Bench::start(&Setup::new(new.address, None)).await;
    let recipients = [("a@example.net", "NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@example.net"), ("b@example.net", "")];
    accept(&bench, &SystemClock, SENDER, "RET=HDRS ENVID=order+2B17", &recipients).await;
    bench.empty().await;
    let (mail, reports) = taken(&new);
    assert!(mail[0].mail.starts_with("MAIL FROM:<sender@example.com> RET=HDRS ENVID=order+2B17"), "{}", mail[0].mail);
    let rcpts =
        ["RCPT TO:<a@example.net> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@example.net", "RCPT TO:<b@example.net>"];
    assert_eq!(mail[0].rcpts, rcpts, "octet by octet");
    assert!(reports.is_empty());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_a_next_hop_that_does_not_report_we_say_relayed_to_those_who_asked() {
    let new = Script::offering(&["PIPELINING"]).start().await;
    let bench = Bench::start(&Setup::new(new.address, None)).await;
    let recipients = [
        ("asked@example.net", "NOTIFY=SUCCESS ORCPT=rfc822;old+2Bname@example.org"),
        ("silent@example.net", ""),
        ("never@example.net", "NOTIFY=NEVER"),
    ];
    accept(&bench, &SystemClock, SENDER, "ENVID=order+2B17", &recipients).await;
    bench.empty().await;
    let (mail, reports) = taken(&new);
    assert_eq!((mail.len(), mail[0].mail.as_str()), (1, "MAIL FROM:<sender@example.com>"));
    assert_eq!(mail[0].rcpts[0], "RCPT TO:<asked@example.net>", "wishes are not passed to who does not know them");
    assert_eq!((reports.len(), &reports[0].rcpts[..]), (1, &["RCPT TO:<sender@example.com>".to_owned()][..]));
    let text = text(&reports[0]);
    for line in [
        "Original-Envelope-Id: order+17\r\n",
        "Original-Recipient: rfc822; old+name@example.org\r\n",
        "Final-Recipient: rfc822; asked@example.net\r\n",
        "Action: relayed\r\n",
        "Status: 2.0.0\r\n",
    ] {
        assert_eq!(text.matches(line).count(), 1, "{line}{text}");
    }
    assert!(!text.contains("silent@") && !text.contains("never@"), "{text}");
    assert_eq!(bench.metrics().delivery_reports.of(ReportResult::Sent).get(), 1);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_nobody_wants_to_hear_of_is_final_and_counted() {
    let new = Script::new().always(Step::Rcpt, say("550 5.1.1 nobody")).start().await;
    let legacy = Script::new().start().await;
    let bench = Bench::start(&Setup::new(new.address, Some(&legacy.address))).await;
    let recipients = [("a@example.net", "NOTIFY=NEVER"), ("b@example.net", "NOTIFY=SUCCESS,DELAY")];
    accept(&bench, &SystemClock, SENDER, "", &recipients).await;
    bench.empty().await;
    assert!(legacy.messages().is_empty());
    assert_eq!(bench.metrics().delivery_reports.of(ReportResult::Unwanted).get(), 2);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sender_gets_so_many_reports_an_hour_and_what_fails_beyond_is_kept() {
    let new = Script::new().always(Step::Rcpt, say("550 5.1.1 nobody")).start().await;
    let legacy = Script::new().start().await;
    let mut setup = Setup::new(new.address, Some(&legacy.address));
    setup.more.push_str("[queue.dsn]\nper_sender_per_hour = 2\n");
    let bench = Bench::start(&setup).await;
    for n in 0..4 {
        bench.send(SENDER, &[&format!("r{n}@example.net")], BODY);
    }
    bench.send("other@example.com", &["r9@example.net"], BODY);
    let rows = bench
        .until("two are dead letters", |rows| rows.len() == 2 && rows.iter().all(|r| r.state == ItemState::Dead))
        .await;
    assert!(rows.iter().all(|row| row.last_reply.contains("550 5.1.1 nobody")), "{rows:?}");
    let reports = legacy.messages();
    let to = |sender: &str| reports.iter().filter(|r| r.rcpts[0].contains(sender)).count();
    assert_eq!((to(SENDER), to("other@example.com")), (2, 1));
    let counted = |result| bench.metrics().delivery_reports.of(result).get();
    assert_eq!((counted(ReportResult::Sent), counted(ReportResult::RateLimited)), (3, 2));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_hears_once_that_its_mail_is_late_and_then_that_it_failed() {
    let new = Script::new().always(Step::Rcpt, say("450 4.2.1 come back later")).start().await;
    let legacy = Script::new().start().await;
    let clock = Arc::new(ManualClock::at(NOON));
    let mut setup = Setup::new(new.address, Some(&legacy.address)).queue("max_age = \"5h\"");
    setup.more.push_str("[queue.dsn]\ndelay_notice = \"4h\"\n");
    let bench = Bench::start_at(&setup, clock.clone()).await;
    accept(&bench, &*clock, SENDER, "", &[("a@example.net", ""), ("b@example.net", "NOTIFY=FAILURE")]).await;
    let hours = |count: u64| NOON.after(Duration::from_secs(3600 * count));
    for (n, time) in [NOON, hours(3), hours(4), Timestamp(hours(4).0 + 60_000_000_000)].into_iter().enumerate() {
        clock.set(time);
        bench.relay().backend.routes.current().nudge();
        let tried = n as u32 + 1;
        bench.until(&format!("attempt {tried}"), |rows| rows.iter().any(|r| r.attempts == tried)).await;
    }
    bench.until("the notice has left", |rows| rows.len() == 1).await;
    let reports = legacy.messages();
    assert_eq!(reports.len(), 1, "once");
    let notice = text(&reports[0]);
    for words in ["Action: delayed\r\n", "Status: 4.2.1\r\n", "Will-Retry-Until: ", "a@example.net"] {
        assert!(notice.contains(words), "{words} {notice}");
    }
    assert!(!notice.contains("b@example.net"), "it did not ask: {notice}");
    clock.set(hours(6));
    bench.relay().backend.routes.current().nudge();
    bench.empty().await;
    let reports = legacy.messages();
    assert_eq!(reports.len(), 2);
    let failure = text(&reports[1]);
    assert_eq!(failure.matches("Action: failed\r\n").count(), 2, "{failure}");
    assert_eq!(failure.matches("Status: 4.4.7\r\n").count(), 2, "{failure}");
    assert_eq!(bench.metrics().queue_expired.get(), 2);
    bench.stop().await;
}
