//! The delivery client against a scripted server over loopback: each row of what a next hop may do to us.

#[path = "common/scripted.rs"]
mod scripted;

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailramp::delivery::client::{Connection, Transaction};
use mailramp::delivery::opening::{Credentials, Host, OpenError, Target, Timeouts};
use mailramp::delivery::outcome::{Cause, Fate, Fault, Report, Stage, Verdict};
use mailramp::delivery::tls::{TlsConnectors, TlsLevel, TlsPolicy};
use mailramp::message::{Envelope, QueueId, Recipient, Route};
use mailramp::spool::body::BodySource;
use scripted::{Act, Script, Scripted, Step, say};

const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";
/// Long enough that a loaded machine does not trip over it; no test waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(60);

fn target_at(address: SocketAddr) -> Target {
    Target {
        route: Route::New,
        hosts: vec![Host { name: address.ip().to_string(), port: address.port() }],
        helo: "relay.example".into(),
        source_ip: None,
        credentials: None,
        tls: TlsPolicy { level: TlsLevel::Off, implicit: false, connectors: connectors(None) },
        timeouts: Timeouts { connect: PATIENCE, command: PATIENCE, data: PATIENCE },
        resolver: mailramp::dns::resolver(&[], PATIENCE),
    }
}

fn impatient(server: &Scripted) -> Target {
    let mut target = target_at(server.address);
    target.timeouts = Timeouts { connect: PATIENCE, command: SHORT, data: SHORT };
    target
}

/// Opening is not what is timed, so on a busy machine it gets more than one chance.
async fn open_impatient(server: &Scripted) -> Connection {
    for _ in 0..50 {
        if let Ok(connection) = Connection::open(&impatient(server)).await {
            return connection;
        }
    }
    panic!("no connection within {SHORT:?} in 50 tries");
}

fn connectors(ca_file: Option<&Path>) -> TlsConnectors {
    static SYSTEM: std::sync::OnceLock<TlsConnectors> = std::sync::OnceLock::new();
    let new = || TlsConnectors::new(ca_file).expect("TLS can be set up");
    if ca_file.is_some() { new() } else { SYSTEM.get_or_init(new).clone() }
}

fn message(recipients: usize, body: impl Into<Bytes>) -> Transaction {
    let recipient =
        |i| Recipient { path: format!("r{i}@b.example").into(), parameters: Bytes::from_static(b"NOTIFY=FAILURE") };
    Transaction {
        id: QueueId(1),
        envelope: Envelope {
            reverse_path: Bytes::from_static(b"a@a.example"),
            parameters: Bytes::new(),
            recipients: (0..recipients).map(recipient).collect(),
        },
        body: BodySource::Memory(body.into()),
    }
}

async fn open(server: &Scripted) -> Connection {
    Connection::open(&target_at(server.address)).await.expect("opens")
}

async fn refused(target: &Target) -> OpenError {
    match Connection::open(target).await {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// One message with that many recipients to a server with this script.
async fn deliver(script: Script, recipients: usize) -> (Report, Scripted) {
    let server = script.start().await;
    let report = open(&server).await.transact(&message(recipients, BODY)).await;
    (report, server)
}

fn names(report: &Report) -> Vec<&'static str> {
    report.verdicts.iter().map(Verdict::name).collect()
}

/// The same script with and without PIPELINING.
fn both_ways(edit: impl Fn(Script) -> Script) -> [Script; 2] {
    [edit(Script::new()), edit(Script::offering(&["SIZE 0", "8BITMIME", "SMTPUTF8", "DSN"]))]
}

#[tokio::test]
async fn a_message_arrives_as_it_was_with_its_parameters() {
    for script in both_ways(|s| s) {
        let (report, server) = deliver(script, 2).await;
        assert_eq!(names(&report), ["delivered", "delivered"]);
        assert!(report.reached_final_dot && report.connection == Fate::Keep && report.ended_by.is_none());
        let taken = &server.messages()[0];
        assert_eq!(taken.body, BODY);
        assert_eq!(taken.mail, format!("MAIL FROM:<a@a.example> SIZE={}", BODY.len()));
        assert_eq!(taken.rcpts, ["RCPT TO:<r0@b.example> NOTIFY=FAILURE", "RCPT TO:<r1@b.example> NOTIFY=FAILURE"]);
        assert_eq!(server.commands()[0], "EHLO relay.example");
    }
}

#[tokio::test]
async fn commands_go_together_only_when_pipelining_is_offered() {
    let [with, without] = both_ways(|s| s);
    assert!(deliver(with, 3).await.1.saw_pipelining());
    assert!(!deliver(without, 3).await.1.saw_pipelining());
}

#[tokio::test]
async fn more_recipients_than_one_batch_are_all_named_once() {
    let (report, server) = deliver(Script::new(), 250).await;
    assert_eq!(names(&report), ["delivered"; 250]);
    assert_eq!(server.messages()[0].rcpts.len(), 250);
}

#[tokio::test]
async fn two_messages_go_over_one_connection() {
    for script in both_ways(|s| s) {
        let server = script.start().await;
        let mut connection = open(&server).await;
        for n in 1..=2 {
            assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["delivered"]);
            assert_eq!(connection.messages(), n);
        }
        connection.quit().await;
        assert_eq!((server.connections(), server.messages().len()), (1, 2));
        assert_eq!(server.commands().last().map(String::as_str), Some("QUIT"));
    }
}

#[tokio::test]
async fn bodies_with_leading_dots_arrive_unchanged() {
    let mut long = b".first\r\n".to_vec();
    while long.len() < 300_000 {
        long.extend_from_slice(b"..\r\n.\r\nplain line\r\n.x\r\n");
    }
    let plain = [b"x".repeat(998), b"\r\n".to_vec()].concat().repeat(300);
    let bodies: [&[u8]; 7] =
        [b".\r\n", b".\r\nMAIL FROM:<x@y>\r\n", b"..\r\n.", b"", b"a\r\n.\r\nb\r\n", &long, &plain];
    for script in both_ways(|s| s) {
        let server = script.start().await;
        let mut connection = open(&server).await;
        for (n, body) in bodies.iter().enumerate() {
            let report = connection.transact(&message(1, body.to_vec())).await;
            assert_eq!(names(&report), ["delivered"], "body {n}");
            let mut expected = body.to_vec();
            if !expected.is_empty() && !expected.ends_with(b"\r\n") {
                expected.extend_from_slice(b"\r\n");
            }
            assert!(server.messages()[n].body == expected, "body {n} changed on the way");
        }
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn a_body_in_a_file_arrives_unchanged_from_its_offset() {
    let mut file = tempfile::tempfile().unwrap();
    let body = b".line\r\n".repeat(20_000);
    file.write_all(b"before").unwrap();
    file.write_all(&body).unwrap();
    file.write_all(b"after").unwrap();
    let server = Script::new().start().await;
    let mut transaction = message(1, BODY);
    transaction.body = BodySource::File { file: Arc::new(file), offset: 6, size: body.len() as u64 };
    assert_eq!(names(&open(&server).await.transact(&transaction).await), ["delivered"]);
    assert!(server.messages()[0].body == body);
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_deferred_and_never_ended_with_a_dot() {
    let server = Script::new().start().await;
    let mut transaction = message(1, BODY);
    transaction.body = BodySource::File { file: Arc::new(tempfile::tempfile().unwrap()), offset: 0, size: 10 };
    let report = open(&server).await.transact(&transaction).await;
    assert_eq!((names(&report), report.connection), (vec!["deferred"], Fate::Close));
    assert!(!report.reached_final_dot && server.messages().is_empty());
}

#[tokio::test]
async fn a_refused_connection_is_deferred_and_the_next_host_is_tried() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let mut target = target_at(closed);
    let error = refused(&target).await;
    assert_eq!((error.stage, error.verdict().name()), (Stage::Connect, "deferred"));
    assert_eq!(error.cause, Cause::Fault(Fault::Io(std::io::ErrorKind::ConnectionRefused)));

    let server = Script::new().start().await;
    target.hosts.push(Host { name: "127.0.0.1".into(), port: server.address.port() });
    let connection = Connection::open(&target).await.expect("the second host answers");
    assert_eq!(connection.peer().address, server.address);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_deferred() {
    let mut target = target_at("127.0.0.1:25".parse().unwrap());
    target.hosts[0].name = "no such name".into();
    let error = refused(&target).await;
    assert!(matches!(error.cause, Cause::Fault(Fault::Unresolved(_))), "{error}");
}

#[tokio::test]
async fn a_refused_greeting_or_ehlo_is_a_failed_connection() {
    for (step, stage) in [(Step::Greeting, Stage::Greeting), (Step::Ehlo, Stage::Ehlo)] {
        for reply in ["421 4.3.2 busy", "451 4.3.0 later", "554 5.7.1 go away"] {
            let server = Script::new().always(step, say(reply)).start().await;
            let error = refused(&target_at(server.address)).await;
            assert_eq!((error.stage, error.verdict().name()), (stage, "deferred"), "{reply}");
            assert_eq!(error.cause.reply().unwrap().to_string(), reply);
        }
        for (act, kind) in [(Act::Cut, "closed"), (say("354 what"), "bad-peer"), (say("SSH-2.0-x"), "bad-peer")] {
            let server = Script::new().always(step, act).start().await;
            let error = refused(&target_at(server.address)).await;
            assert_eq!((error.stage, error.cause.kind()), (stage, kind));
        }
        let server = Script::new().always(step, Act::Hang).start().await;
        assert_eq!(refused(&impatient(&server)).await.cause, Cause::Fault(Fault::TimedOut));
    }
}

#[tokio::test]
async fn a_refused_mail_is_every_recipients_refusal_and_the_connection_goes_on() {
    for (reply, expected) in [("451 4.3.0 later", "deferred"), ("550 5.7.1 no", "rejected")] {
        for script in both_ways(|s| s.at(Step::Mail, 1, say(reply)).at(Step::Rcpt, 1, say("503 5.5.1 no MAIL"))) {
            // A server that refused MAIL refuses what follows; ours is told so for RCPT, and DATA has no recipients.
            let server = script.start().await;
            let mut connection = open(&server).await;
            let report = connection.transact(&message(1, BODY)).await;
            assert_eq!((names(&report), report.connection), (vec![expected], Fate::Keep));
            assert_eq!(report.ended_by.unwrap().1.to_string(), reply);
        }
    }
}

#[tokio::test]
async fn the_next_message_follows_a_refused_one_after_rset() {
    for script in both_ways(|s| s.at(Step::Rcpt, 1, say("550 5.1.1 nobody"))) {
        let server = script.start().await;
        let mut connection = open(&server).await;
        assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["rejected"]);
        assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["delivered"]);
        assert!(server.commands().contains(&"RSET".to_string()));
        assert_eq!(server.connections(), 1);
    }
}

#[tokio::test]
async fn refused_recipients_stand_alone_and_the_others_get_the_message() {
    for script in
        both_ways(|s| s.at(Step::Rcpt, 1, say("550 5.1.1 nobody")).at(Step::Rcpt, 3, say("450 4.2.1 greylisted")))
    {
        let (report, server) = deliver(script, 4).await;
        assert_eq!(names(&report), ["rejected", "delivered", "deferred", "delivered"]);
        assert_eq!(server.messages()[0].rcpts.len(), 2);
        let Verdict::Rejected { stage, reply } = &report.verdicts[0] else { panic!() };
        assert_eq!((*stage, reply.to_string().as_str()), (Stage::Rcpt, "550 5.1.1 nobody"));
    }
}

#[tokio::test]
async fn too_many_recipients_go_in_the_next_transaction() {
    for script in both_ways(|s| (3..=4).fold(s, |s, n| s.at(Step::Rcpt, n, say("452 4.5.3 too many recipients")))) {
        let server = script.start().await;
        let mut connection = open(&server).await;
        let report = connection.transact(&message(4, BODY)).await;
        assert_eq!(names(&report), ["delivered", "delivered", "untouched", "untouched"]);
        assert_eq!(report.connection, Fate::Keep);
        // Without PIPELINING the third RCPT is the last one said, so the 4th of the script is the first said now.
        if connection.capabilities().pipelining {
            assert_eq!(names(&connection.transact(&message(2, BODY)).await), ["delivered", "delivered"]);
        }
    }
}

#[tokio::test]
async fn too_many_recipients_in_the_first_batch_keep_the_second_from_being_named() {
    let script = (51..=100).fold(Script::new(), |s, n| s.at(Step::Rcpt, n, say("452 4.5.3 too many recipients")));
    let (report, server) = deliver(script, 150).await;
    assert_eq!(names(&report), [vec!["delivered"; 50], vec!["untouched"; 100]].concat());
    assert_eq!(server.messages()[0].rcpts.len(), 50);
    assert_eq!(server.commands().iter().filter(|c| c.starts_with("RCPT")).count(), 100);
}

#[tokio::test]
async fn mail_leaves_from_the_source_address_and_only_for_addresses_of_its_kind() {
    let server = Script::new().start().await;
    let mut target = target_at(server.address);
    target.source_ip = Some("127.0.0.2".parse().unwrap());
    Connection::open(&target).await.expect("the whole of 127/8 is ours");
    assert_eq!(server.clients(), ["127.0.0.2"]);
    target.source_ip = Some("::1".parse().unwrap());
    assert!(matches!(refused(&target).await.cause, Cause::Fault(Fault::Unresolved(_))));
}

#[tokio::test]
async fn a_refused_data_or_message_is_the_refusal_of_those_taken() {
    for step in [Step::Data, Step::Dot] {
        for (reply, expected) in [("451 4.3.0 later", "deferred"), ("554 5.7.1 spam", "rejected")] {
            for script in both_ways(|s| s.at(step, 1, say(reply)).at(Step::Rcpt, 1, say("550 5.1.1 nobody"))) {
                let server = script.start().await;
                let mut connection = open(&server).await;
                let report = connection.transact(&message(2, BODY)).await;
                assert_eq!(names(&report), ["rejected", expected], "{step:?} {reply}");
                assert_eq!(report.reached_final_dot, step == Step::Dot);
                assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["delivered"], "goes on");
            }
        }
    }
}

#[tokio::test]
async fn a_data_accepted_for_nobody_gets_a_lone_dot_and_no_message() {
    let script = Script::new().always(Step::Rcpt, say("550 5.1.1 nobody")).always(Step::Data, say("354 go on"));
    let server = script.start().await;
    let mut connection = open(&server).await;
    let report = connection.transact(&message(2, BODY)).await;
    assert_eq!((names(&report), report.connection), (vec!["rejected", "rejected"], Fate::Keep));
    assert!(!report.reached_final_dot && server.messages().is_empty());
    assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["rejected"], "the session is in step");
}

#[tokio::test]
async fn a_data_accepted_without_a_sender_gets_nothing_at_all() {
    let script = Script::new().always(Step::Mail, say("451 4.3.0 later")).always(Step::Data, say("354 go on"));
    let (report, server) = deliver(script, 1).await;
    assert_eq!((names(&report), report.connection), (vec!["deferred"], Fate::Close));
    assert!(server.messages().is_empty());
}

#[tokio::test]
async fn a_reply_of_the_wrong_class_is_temporary_and_closes() {
    for (step, reply) in [(Step::Mail, "354 go on"), (Step::Rcpt, "354 go on"), (Step::Data, "250 ok")] {
        for script in both_ways(|s| s.always(step, say(reply))) {
            let (report, server) = deliver(script, 1).await;
            assert_eq!((names(&report), report.connection), (vec!["deferred"], Fate::Close), "{step:?}");
            assert_eq!(report.ended_by.unwrap().1.kind(), "bad-peer");
            assert!(!report.reached_final_dot && server.messages().is_empty());
        }
    }
}

#[tokio::test]
async fn a_cut_before_the_final_dot_defers() {
    for step in [Step::Mail, Step::Rcpt, Step::Data] {
        for script in both_ways(|s| s.always(step, Act::Cut)) {
            let (report, _server) = deliver(script, 2).await;
            assert_eq!((names(&report), report.connection), (vec!["deferred"; 2], Fate::Close), "{step:?}");
            assert!(!report.reached_final_dot);
        }
    }
    // More than the buffers between us hold, so that the dot cannot have left.
    let server = Script::new().always(Step::Body, Act::CutAfter(100_000)).start().await;
    let report = open(&server).await.transact(&message(2, b"x\r\n".repeat(10_000_000))).await;
    assert_eq!((names(&report), report.reached_final_dot), (vec!["deferred"; 2], false));
}

#[tokio::test]
async fn a_lost_answer_to_the_final_dot_is_unknown_for_those_taken() {
    let overlong = Act::Raw([b"250-".to_vec(), vec![b'x'; 70_000]].concat());
    let acts = [Act::Cut, say("354 go on"), say("150 wait"), say("blah"), overlong, Act::Hang];
    for act in acts {
        for script in both_ways(|s| s.always(Step::Dot, act.clone()).at(Step::Rcpt, 1, say("550 5.1.1 nobody"))) {
            let server = script.start().await;
            // Only what hangs is waited for; the limit need not be short for the others to answer at once.
            let mut target = target_at(server.address);
            if matches!(act, Act::Hang) {
                target.timeouts.data = SHORT;
            }
            let mut connection = Connection::open(&target).await.unwrap();
            let report = connection.transact(&message(3, BODY)).await;
            assert_eq!(names(&report), ["rejected", "unknown", "unknown"], "{act:?}");
            assert!(report.reached_final_dot && report.connection == Fate::Close);
            assert!(!connection.is_usable());
        }
    }
}

/// What the client says about the dot against what the other end finds when it reads on after the client has left.
async fn left_while_sending(body: Bytes) -> &'static str {
    let script = Script::new().receive_buffer(32 * 1024).at(Step::Body, 1, Act::Pause(SHORT * 2));
    let server = script.always(Step::Dot, Act::Cut).start().await;
    let size = body.len();
    let mut target = target_at(server.address);
    target.timeouts.data = SHORT;
    let mut connection = Connection::open(&target).await.expect("opens");
    let report = connection.transact(&message(1, body)).await;
    drop(connection);
    while server.ended() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let verdict = names(&report)[0];
    let expected = if server.messages().is_empty() { "deferred" } else { "unknown" };
    assert_eq!(verdict, expected, "{size} octets");
    assert_eq!(report.reached_final_dot, expected == "unknown");
    verdict
}

#[tokio::test]
async fn unknown_is_said_exactly_when_the_final_dot_has_left() {
    // The buffers between us take a short one whole and not a long one. Halving the distance comes to those whose last
    // write, the one with the dot, broke off half way.
    let body = Bytes::from([b"x".repeat(1022), b"\r\n".to_vec()].concat().repeat(8 * 1024));
    let (mut whole, mut broken) = (1, 8 * 1024);
    assert_eq!(left_while_sending(body.slice(..whole * 1024)).await, "unknown");
    assert_eq!(left_while_sending(body.slice(..broken * 1024)).await, "deferred");
    while broken - whole > 24 {
        let half = (whole + broken) / 2;
        match left_while_sending(body.slice(..half * 1024)).await {
            "unknown" => whole = half,
            _ => broken = half,
        }
    }
}

#[tokio::test]
async fn a_peer_that_hangs_or_drips_costs_one_timeout() {
    let slow = Act::Drip("250 ok, but every octet takes its time".into(), Duration::from_millis(10));
    for step in [Step::Mail, Step::Rcpt, Step::Data] {
        for act in [Act::Hang, slow.clone()] {
            let server = Script::new().always(step, act).start().await;
            let mut connection = open_impatient(&server).await;
            let begun = Instant::now();
            let report = connection.transact(&message(2, BODY)).await;
            assert_eq!(names(&report), ["deferred"; 2], "{step:?}");
            assert_eq!(report.ended_by.unwrap().1, Cause::Fault(Fault::TimedOut));
            assert!(begun.elapsed() < Duration::from_secs(3), "bounded");
        }
    }
}

#[tokio::test]
async fn a_peer_that_stops_reading_the_message_is_left_before_the_dot() {
    let server = Script::new().always(Step::Body, Act::Hang).start().await;
    let mut connection = open_impatient(&server).await;
    let report = connection.transact(&message(1, b"x\r\n".repeat(10_000_000))).await;
    assert_eq!((names(&report), report.reached_final_dot), (vec!["deferred"], false));
}

#[tokio::test]
async fn a_421_closes_and_leaves_those_not_yet_answered_untouched() {
    for script in both_ways(|s| s.at(Step::Rcpt, 2, Act::SayThenCut("421 4.3.2 shutting down".into()))) {
        let (report, _server) = deliver(script, 4).await;
        assert_eq!(names(&report), ["deferred", "deferred", "untouched", "untouched"]);
        assert_eq!(report.connection, Fate::Close);
        assert_eq!(report.ended_by.unwrap().1.to_string(), "421 4.3.2 shutting down");
    }
    for step in [Step::Mail, Step::Data, Step::Dot] {
        for script in both_ways(|s| s.always(step, Act::SayThenCut("421 4.3.2 shutting down".into()))) {
            let (report, server) = deliver(script, 1).await;
            assert_eq!((names(&report), report.connection), (vec!["deferred"], Fate::Close), "{step:?}");
            drop(server);
        }
    }
}

#[tokio::test]
async fn a_reply_in_the_middle_of_the_message_refuses_but_never_accepts() {
    for (reply, expected) in
        [("552 5.3.4 too large", "rejected"), ("421 4.3.2 bye", "deferred"), ("250 2.0.0 thanks", "deferred")]
    {
        let server = Script::new().at(Step::Body, 1, Act::SayThenCut(reply.into())).start().await;
        let report = open(&server).await.transact(&message(1, b"x\r\n".repeat(10_000_000))).await;
        assert_eq!((names(&report), report.connection), (vec![expected], Fate::Close), "{reply}");
        assert!(!report.reached_final_dot);
    }
}

#[tokio::test]
async fn replies_nobody_asked_for_never_answer_the_final_dot() {
    let data = Act::Raw(b"354 go on\r\n250 2.0.0 taken before it was sent\r\n".to_vec());
    let server = Script::new().always(Step::Data, data).start().await;
    let report = open(&server).await.transact(&message(1, BODY)).await;
    assert_eq!((names(&report), report.connection), (vec!["deferred"], Fate::Close));
    assert!(server.messages().is_empty());
}

#[tokio::test]
async fn a_reused_connection_that_was_hung_up_leaves_the_message_untouched() {
    for act in [Act::Cut, Act::SayThenCut("421 4.4.2 idle too long".into())] {
        let server = Script::new().at(Step::AfterDot, 1, act).start().await;
        let mut connection = open(&server).await;
        assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["delivered"]);
        let report = connection.transact(&message(1, BODY)).await;
        assert_eq!((names(&report), report.connection), (vec!["untouched"], Fate::Close));
        let again = connection.transact(&message(1, BODY)).await;
        assert_eq!(names(&again), ["untouched"], "a closed connection takes nothing more");
    }
}

#[tokio::test]
async fn an_overlong_reply_is_a_bad_peer_and_a_long_one_is_cut_for_the_log() {
    let overlong = |_| Act::Raw(b"250-no end of this\r\n".repeat(4_000));
    let (report, _server) = deliver(Script::new().always(Step::Mail, overlong(())), 1).await;
    assert_eq!((names(&report), report.ended_by.unwrap().1.kind()), (vec!["deferred"], "bad-peer"));

    let (report, _server) =
        deliver(Script::new().always(Step::Rcpt, say(&format!("550 {}", "x".repeat(9_000)))), 1).await;
    let Verdict::Rejected { reply, .. } = &report.verdicts[0] else { panic!("{report:?}") };
    assert_eq!(reply.text.len(), 512);
}

#[tokio::test]
async fn what_the_next_hop_cannot_carry_is_refused_before_anything_is_written() {
    let eight_bit = "Subject: x\r\n\r\nü\r\n".as_bytes();
    type Row<'a> = (&'a [&'a str], &'static [u8], &'static [u8], &'a [u8], &'a str);
    // offered, parameters of MAIL, recipient, message, reply
    let rows: [Row<'_>; 7] = [
        (&["SIZE 10"], b"", b"r@b.example", BODY, "552 5.3.4"),
        (&["SIZE 0"], b"", b"r@b.example", BODY, "250"),
        (&[], b"BODY=8BITMIME", b"r@b.example", eight_bit, "554 5.6.3"),
        (&[], b"BODY=8BITMIME", b"r@b.example", BODY, "250"),
        (&["8BITMIME"], b"SMTPUTF8", "ü@b.example".as_bytes(), BODY, "553 5.6.7"),
        (&["8BITMIME"], b"SMTPUTF8", b"r@b.example", BODY, "250"),
        (&["8BITMIME", "SMTPUTF8"], b"BODY=8BITMIME SMTPUTF8", "ü@b.example".as_bytes(), eight_bit, "250"),
    ];
    for (offered, parameters, path, body, expected) in rows {
        let server = Script::offering(offered).start().await;
        let mut transaction = message(1, body.to_vec());
        transaction.envelope.parameters = Bytes::from_static(parameters);
        transaction.envelope.recipients[0].path = Bytes::from_static(path);
        let mut connection = open(&server).await;
        let report = connection.transact(&transaction).await;
        let (Verdict::Rejected { reply, .. } | Verdict::Delivered { reply }) = &report.verdicts[0] else {
            panic!("{offered:?} {report:?}")
        };
        assert!(reply.to_string().starts_with(expected), "{offered:?}: {reply}");
        assert_eq!(server.messages().len(), usize::from(expected == "250"));
        assert_eq!(server.commands().len() > 1, expected == "250", "nothing written after EHLO when refused");
        assert!(connection.is_usable());
    }
}

#[tokio::test]
async fn a_path_with_a_second_command_in_it_is_refused_and_the_others_go() {
    let server = Script::new().start().await;
    let mut transaction = message(3, BODY);
    transaction.envelope.recipients[1].path = Bytes::from_static(b"x@y>\r\nRCPT TO:<evil@b.example");
    let report = open(&server).await.transact(&transaction).await;
    assert_eq!(names(&report), ["delivered", "rejected", "delivered"]);
    assert!(!server.commands().iter().any(|c| c.contains("evil")));

    transaction.envelope.reverse_path = Bytes::from_static(b"x\r\nRSET");
    let report = open(&server).await.transact(&transaction).await;
    assert_eq!(names(&report), ["rejected"; 3]);
}

/// What the next hop does, and what that is called in the log.
fn what_can_happen() -> Vec<(Act, &'static str)> {
    vec![
        (say("451 4.3.0 later"), "reply"),
        (say("554 5.7.1 never"), "reply"),
        (Act::SayThenCut("421 4.3.2 bye".into()), "reply"),
        (Act::Cut, "closed"),
        (Act::Reset, "closed"),
        (Act::Hang, "timeout"),
        (Act::Drip("250 2.0.0 all right but far too slow".into(), Duration::from_millis(40)), "timeout"),
        (say("250"), "-"),
        (say("150 that is no answer"), "bad-peer"),
        (say("354 send more"), "bad-peer"),
        (say("hello, is this the web server?"), "bad-peer"),
        (Act::Raw(b"250-never\r\n550 the same\r\n".to_vec()), "bad-peer"),
        (Act::Raw(vec![b'2'; 70_000]), "bad-peer"),
        (Act::Raw(b"250-and so on\r\n".repeat(5_000)), "bad-peer"),
        (Act::Raw(b"\x00\xff\xfe\r\n".to_vec()), "bad-peer"),
    ]
}

#[tokio::test]
async fn whatever_happens_at_a_stage_gets_the_verdict_of_the_table() {
    // One letter for each row of `what_can_happen`: d deferred, r rejected, D delivered, u unknown.
    let table = [
        (Step::Mail, "drdddddDddddddd"),
        (Step::Rcpt, "drdddddDddddddd"),
        (Step::Data, "drdddddddDddddd"),
        (Step::Dot, "drduuuuDuuuuuuu"),
    ];
    for (step, row) in table {
        let row: Vec<char> = row.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(row.len(), what_can_happen().len());
        for ((act, kind), expected) in what_can_happen().into_iter().zip(row) {
            let slow = matches!(act, Act::Hang | Act::Drip(..));
            let server = Script::new().always(step, act.clone()).start().await;
            let mut connection = if slow { open_impatient(&server).await } else { open(&server).await };
            let report = connection.transact(&message(1, BODY)).await;
            let name = match expected {
                'd' => "deferred",
                'r' => "rejected",
                'D' => "delivered",
                _ => "unknown",
            };
            assert_eq!(names(&report), [name], "{step:?} {act:?}");
            // DATA is the one command that 354 answers and 250 does not.
            let kind = match (&act, step) {
                (Act::Say(text), Step::Data) if text == "250" => "bad-peer",
                (Act::Say(text), Step::Data) if text.starts_with("354") => "-",
                _ => kind,
            };
            match &report.ended_by {
                Some((at, cause)) => {
                    assert_eq!(cause.kind(), kind, "{step:?} {act:?}");
                    let stage = match step {
                        Step::Mail => Stage::Mail,
                        Step::Rcpt => Stage::Rcpt,
                        Step::Data => Stage::Data,
                        _ => Stage::Dot,
                    };
                    // Refused recipients leave nothing that could end the transaction but DATA.
                    assert!(*at == stage, "{step:?} {act:?} ended at {at:?}");
                }
                // Each recipient was answered by itself.
                None => assert!(kind == "-" || (step == Step::Rcpt && kind == "reply"), "{step:?} {act:?}"),
            }
            let closes = !matches!(kind, "-" | "reply") || matches!(act, Act::SayThenCut(_));
            assert_eq!(report.connection == Fate::Close, closes, "{step:?} {act:?}");
            assert_eq!(report.reached_final_dot, step == Step::Dot || expected == 'D', "{step:?} {act:?}");
        }
    }
}

#[tokio::test]
async fn whatever_happens_before_mail_is_a_failed_connection() {
    for step in [Step::Greeting, Step::Ehlo] {
        for (act, kind) in what_can_happen() {
            let slow = matches!(act, Act::Hang | Act::Drip(..));
            let server = Script::new().always(step, act.clone()).start().await;
            let mut target = if slow { impatient(&server) } else { target_at(server.address) };
            target.timeouts.connect = PATIENCE;
            match Connection::open(&target).await {
                Ok(_) => assert_eq!(kind, "-", "{step:?} {act:?}"),
                Err(error) => {
                    assert_eq!((error.cause.kind(), error.verdict().name()), (kind, "deferred"), "{step:?} {act:?}");
                }
            }
            assert!(server.messages().is_empty());
        }
    }
}

#[tokio::test]
async fn a_transaction_dropped_half_way_leaves_the_connection_unusable() {
    let server = Script::new().always(Step::Rcpt, Act::Hang).start().await;
    let mut connection = open(&server).await;
    let _ = tokio::time::timeout(SHORT, connection.transact(&message(1, BODY))).await;
    assert!(!connection.is_usable());
    assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["untouched"]);
}

mod tls {
    use super::*;
    use rcgen::{CertificateParams, Issuer, KeyPair};
    use rustls_pki_types::PrivateKeyDer;

    /// A server certificate for `name`, and a file with the authority that signed it.
    fn certificate_for(name: &str) -> (Arc<rustls::ServerConfig>, tempfile::NamedTempFile) {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_string()]).unwrap();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(ca_certificate.pem().as_bytes()).unwrap();
        (Arc::new(config), file)
    }

    fn secured(server: &Scripted, level: TlsLevel, ca_file: Option<&Path>) -> Target {
        let mut target = target_at(server.address);
        target.hosts[0].name = "localhost".into();
        target.tls = TlsPolicy { level, implicit: false, connectors: connectors(ca_file) };
        target
    }

    #[tokio::test]
    async fn a_verified_certificate_lets_mail_through_by_starttls_and_from_the_first_octet() {
        let (config, ca) = certificate_for("localhost");
        for script in [Script::new().tls(config.clone()), Script::new().implicit_tls(config)] {
            let implicit = script.implicit();
            let server = script.start().await;
            let mut target = secured(&server, TlsLevel::Verify, Some(ca.path()));
            target.tls.implicit = implicit;
            let mut connection = Connection::open(&target).await.expect("verified");
            assert!(connection.peer().tls);
            let body = b".\r\nline\r\n".repeat(30_000);
            for _ in 0..2 {
                assert_eq!(names(&connection.transact(&message(2, body.clone())).await), ["delivered"; 2]);
            }
            let messages = server.messages();
            assert!(messages.len() == 2 && messages.iter().all(|m| m.tls && m.body == body));
        }
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_trusted_or_for_another_name_is_never_good_enough_for_verify() {
        let (config, ca) = certificate_for("other.example");
        let server = Script::new().tls(config).start().await;
        for ca_file in [None, Some(ca.path())] {
            let error = refused(&secured(&server, TlsLevel::Verify, ca_file)).await;
            assert_eq!((error.stage, error.verdict().name()), (Stage::Tls, "deferred"));
            assert!(matches!(error.cause, Cause::Fault(Fault::Tls(_))), "{error}");
        }
        for level in [TlsLevel::Encrypt, TlsLevel::May] {
            let connection = Connection::open(&secured(&server, level, None)).await.expect("any certificate");
            assert!(connection.peer().tls);
        }
        assert!(server.messages().is_empty());
    }

    #[tokio::test]
    async fn without_starttls_only_may_and_off_go_on() {
        let server = Script::new().start().await;
        for level in [TlsLevel::Encrypt, TlsLevel::Verify] {
            let error = refused(&secured(&server, level, None)).await;
            assert_eq!(error.cause, Cause::Fault(Fault::TlsMissing));
        }
        assert!(Connection::open(&secured(&server, TlsLevel::May, None)).await.is_ok());
    }

    #[tokio::test]
    async fn a_refused_starttls_or_a_failed_handshake_goes_on_in_clear_only_with_may() {
        let (config, _ca) = certificate_for("localhost");
        for act in [say("454 4.7.0 not now"), Act::Raw(b"220 go on\r\n".to_vec())] {
            // The second act is followed by a handshake that a cut ends.
            let broken = matches!(act, Act::Raw(_));
            let script = Script::new().tls(config.clone()).always(Step::StartTls, act);
            let server = if broken { script.without_handshake() } else { script }.start().await;
            for level in [TlsLevel::Encrypt, TlsLevel::Verify] {
                assert_eq!(refused(&secured(&server, level, None)).await.stage, Stage::Tls);
            }
            let mut connection = Connection::open(&secured(&server, TlsLevel::May, None)).await.expect("in clear");
            assert!(!connection.peer().tls);
            assert_eq!(names(&connection.transact(&message(1, BODY)).await), ["delivered"]);
        }
    }

    #[tokio::test]
    async fn octets_after_the_reply_to_starttls_close_the_connection_at_every_level() {
        let (config, ca) = certificate_for("localhost");
        for reply in ["220 go on", "454 4.7.0 not now"] {
            let injected = Act::Raw(format!("{reply}\r\n250 injected\r\n").into_bytes());
            let server = Script::new().tls(config.clone()).always(Step::StartTls, injected).start().await;
            for level in [TlsLevel::May, TlsLevel::Encrypt, TlsLevel::Verify] {
                let error = refused(&secured(&server, level, Some(ca.path()))).await;
                assert_eq!((error.stage, error.cause), (Stage::Tls, Cause::Fault(Fault::ResponseInjection)));
            }
        }
    }

    #[tokio::test]
    async fn a_password_is_said_and_a_refused_one_is_temporary() {
        let (config, ca) = certificate_for("localhost");
        let script = Script::offering(&["AUTH PLAIN LOGIN"]).tls(config);
        let server = script.clone().start().await;
        let mut target = secured(&server, TlsLevel::Verify, Some(ca.path()));
        target.credentials = Some(Credentials { user: "app".into(), password: "secret".into() });
        assert!(Connection::open(&target).await.is_ok());
        assert!(server.commands().contains(&"AUTH PLAIN AGFwcABzZWNyZXQ=".to_string()));

        let server = script.always(Step::Auth, say("535 5.7.8 no")).start().await;
        target.hosts = vec![Host { name: "localhost".into(), port: server.address.port() }; 2];
        let error = refused(&target).await;
        assert_eq!((error.stage, error.verdict().name()), (Stage::Auth, "deferred"));
        assert_eq!(error.cause.to_string(), "535 5.7.8 no");
        assert_eq!(server.commands().iter().filter(|c| c.starts_with("AUTH")).count(), 1, "not tried elsewhere");

        let server = Script::new().start().await;
        let mut target = target_at(server.address);
        target.credentials = Some(Credentials { user: "app".into(), password: "secret".into() });
        let error = refused(&target).await;
        assert!(matches!(error.cause, Cause::Fault(Fault::Login(_))), "no mechanism offered: {error}");
    }
}
