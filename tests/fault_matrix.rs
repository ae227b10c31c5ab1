//! Every stage of a session × every kind of fault × both routes, on the whole relay: where does each recipient end?
//!
//! The fault happens once; then the server works. One message to two recipients, `a` and `b`; where one RCPT is hit it
//! is `a`'s. What must come of it stands in one table, written from the promises and not from the code. In all cases the
//! limit holds, nobody gets mail by both routes, and nobody gets it twice unless an answer to a final dot was lost.

#[path = "common/application.rs"]
mod application;
#[path = "common/bench.rs"]
mod bench;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::{Bench, PATIENCE, Setup};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivateKeyDer;
use scripted::{Act, Script, Scripted, Step, say};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";
const SENDER: &str = "sender@example.com";
const RECIPIENTS: [&str; 2] = ["a@example.net", "b@example.net"];
/// Relays at a time: enough to wait for timeouts together, few enough that nothing else times out.
const TOGETHER: usize = 12;
/// Recipients new may take: two, and two again when the first answer was lost.
const LIMIT: u64 = 4;
/// The whole matrix, in a debug build.
const TIME_MOST: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Temporary,
    Permanent,
    Cut,
    Hang,
    Garbage,
}

const FAULTS: [Fault; 5] = [Fault::Temporary, Fault::Permanent, Fault::Cut, Fault::Hang, Fault::Garbage];

/// For each stage what becomes of `a` and `b` when the fault is new's, and when it is legacy's.
///
/// N, L: exactly once by new, by legacy. n, l: by that route only, and perhaps twice, since an answer was lost.
/// F: refused for good, the sender has one report. `--`: there is no such fault.
///
/// Before MAIL nothing is permanent: it is a failed connection, and new's mail falls back. A session of new that breaks
/// before the final dot falls back too; a proper "later" is tried again where it was said. Legacy's mail stays.
#[rustfmt::skip]
const EXPECTED: &[(&str, [&str; 5], [&str; 5])] = &[
    //               new: 4xx   5xx   cut   hang  junk     legacy: 4xx  5xx   cut   hang  junk
    ("connect",  ["--", "--", "LL", "LL", "--"], ["--", "--", "LL", "--", "--"]),
    ("greeting", ["LL", "LL", "LL", "LL", "LL"], ["LL", "LL", "LL", "LL", "LL"]),
    ("ehlo",     ["LL", "LL", "LL", "LL", "LL"], ["LL", "LL", "LL", "LL", "LL"]),
    ("starttls", ["LL", "LL", "LL", "LL", "LL"], ["LL", "LL", "LL", "LL", "LL"]),
    ("auth",     ["LL", "LL", "LL", "LL", "LL"], ["LL", "LL", "LL", "LL", "LL"]),
    ("mail",     ["NN", "FF", "LL", "LL", "LL"], ["LL", "FF", "LL", "LL", "LL"]),
    ("rcpt",     ["NN", "FN", "LL", "LL", "LL"], ["LL", "FL", "LL", "LL", "LL"]),
    ("data",     ["NN", "FF", "LL", "LL", "LL"], ["LL", "FF", "LL", "LL", "LL"]),
    ("dot",      ["NN", "FF", "nn", "nn", "nn"], ["LL", "FF", "ll", "ll", "ll"]),
    ("quit",     ["NN", "NN", "NN", "NN", "NN"], ["LL", "LL", "LL", "LL", "LL"]),
];

struct Case {
    stage: &'static str,
    fault: Fault,
    on_new: bool,
    expected: &'static str,
}

impl Case {
    fn name(&self) -> String {
        format!("{} {:?} on {}", self.stage, self.fault, if self.on_new { "new" } else { "legacy" })
    }

    fn step(&self) -> Step {
        match self.stage {
            "greeting" => Step::Greeting,
            "ehlo" => Step::Ehlo,
            "starttls" => Step::StartTls,
            "auth" => Step::Auth,
            "mail" => Step::Mail,
            "rcpt" => Step::Rcpt,
            "data" => Step::Data,
            "dot" => Step::Dot,
            "quit" => Step::Quit,
            other => unreachable!("{other} has no step"),
        }
    }

    /// The server that fails once.
    fn script(&self, tls: &Arc<rustls::ServerConfig>) -> Script {
        let act = match self.fault {
            Fault::Temporary => say("451 4.3.0 later"),
            Fault::Permanent => say("554 5.7.0 never"),
            Fault::Cut => Act::Cut,
            Fault::Hang => Act::Hang,
            Fault::Garbage => say("what is this"),
        };
        let script = match self.stage {
            "auth" => Script::offering(&["PIPELINING", "DSN", "AUTH PLAIN"]),
            "starttls" => Script::new().tls(tls.clone()),
            _ => Script::new(),
        };
        if self.stage == "connect" { script } else { script.at(self.step(), 1, act) }
    }

    /// What the relay is told about that server.
    fn inside(&self, address: impl std::fmt::Display) -> String {
        let level = if self.stage == "starttls" { "encrypt" } else { "off" };
        let mut inside = format!("host = \"{address}\"\ntls = {{ level = \"{level}\" }}\n");
        if self.stage == "auth" {
            inside.push_str("auth = { user = \"app\", password = \"secret\" }\n");
        }
        if self.stage == "quit" {
            inside.push_str("messages_per_connection = 1\n");
        }
        if self.fault == Fault::Hang {
            inside.push_str("timeouts = { connect = \"1s\", command = \"2s\", data = \"2s\" }\n");
        }
        inside
    }
}

/// A port that takes no more connections, and whatever keeps it so.
fn full_port() -> (std::net::SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    listener.listen(0).expect("listens");
    let address = listener.local_addr().expect("bound");
    let mut held = vec![listener];
    for _ in 0..4 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.set_nonblocking(true).expect("can be");
        let _ = client.connect(&address);
        held.push(client);
    }
    (address.as_socket().expect("an address"), held)
}

/// How often each of [`RECIPIENTS`] was taken, and how many reports there are to the sender about which of them.
#[derive(Debug, Default)]
struct Seen {
    copies: [usize; 2],
    reports: usize,
    reported: [bool; 2],
}

fn seen(server: Option<&Scripted>) -> Seen {
    let mut seen = Seen::default();
    for message in server.map(Scripted::messages).unwrap_or_default() {
        let is_report = message.mail.starts_with("MAIL FROM:<>");
        seen.reports += usize::from(is_report);
        let text = String::from_utf8_lossy(&message.body).into_owned();
        for (place, recipient) in RECIPIENTS.iter().enumerate() {
            if is_report {
                seen.reported[place] |= text.contains(&format!("Final-Recipient: rfc822; {recipient}\r\n"));
            } else {
                seen.copies[place] += message.rcpts.iter().filter(|rcpt| rcpt.contains(recipient)).count();
            }
        }
    }
    seen
}

/// Runs one case to its end. `Err`: what was wrong.
async fn run(case: &Case, tls: &Arc<rustls::ServerConfig>) -> Result<(), String> {
    let (socket, closed) = Scripted::reserve();
    let hangs = (case.stage == "connect" && case.fault == Fault::Hang).then(full_port);
    let good = Script::new().start().await;
    let mut faulty = None;
    let address = match (&hangs, case.stage) {
        (Some((address, _)), _) => *address,
        (None, "connect") => closed,
        _ => {
            let server = case.script(tls).start().await;
            let address = server.address;
            faulty = Some(server);
            address
        }
    };
    let mut setup = Setup::new(good.address, Some(&good.address));
    if case.on_new {
        setup.new = case.inside(address);
        setup = setup.limit(LIMIT, "policy = \"hold-then-legacy\", max_wait = \"15m\"");
    } else {
        setup.legacy = Some(case.inside(address));
        setup = setup.limit(1, "policy = \"legacy\"");
    }
    let bench = Bench::start(&setup).await;
    if !case.on_new {
        // New has no room left, so what follows is legacy's.
        bench.send(SENDER, &["first@example.net"], BODY);
        bench.empty().await;
    }
    bench.send(SENDER, &RECIPIENTS, BODY);
    let began = Instant::now();
    let mut socket = Some(socket);
    loop {
        let rows = bench.queue().await;
        if rows.is_empty() {
            break;
        }
        if !case.on_new {
            // It is not the time to the next probe that is looked at here.
            if case.stage == "connect"
                && !bench.status().await.legacy.up
                && let Some(socket) = socket.take()
            {
                faulty = Some(Scripted::start_on(socket, Script::new()).await);
            }
            bench.relay().backend.routes.current().nudge();
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("still queued: {rows:?}"));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    if case.stage == "quit" {
        let server = faulty.as_ref().expect("it runs");
        let said = || server.commands().iter().any(|command| command == "QUIT");
        while !said() {
            if began.elapsed() > PATIENCE {
                return Err("QUIT was not said".into());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    let (here, there) = (seen(faulty.as_ref()), seen(Some(&good)));
    let (new, legacy) = if case.on_new { (here, there) } else { (there, here) };
    let mut wrong = String::new();
    for (place, expected) in case.expected.bytes().enumerate() {
        let copies = (new.copies[place], legacy.copies[place]);
        let holds = match expected {
            b'N' => copies == (1, 0),
            b'L' => copies == (0, 1),
            b'n' => copies.0 >= 1 && copies.0 <= 2 && copies.1 == 0,
            b'l' => copies.1 >= 1 && copies.1 <= 2 && copies.0 == 0,
            b'F' => copies == (0, 0),
            other => unreachable!("{other} is no outcome"),
        };
        let failed = expected == b'F';
        if !holds || legacy.reported[place] != failed || new.reports > 0 {
            let expected = char::from(expected);
            let _ = write!(wrong, "{}: {expected} was expected, not (new, legacy) = {copies:?}; ", RECIPIENTS[place]);
        }
    }
    let reports = usize::from(case.expected.contains('F'));
    if legacy.reports != reports {
        let _ = write!(wrong, "{} reports instead of {reports}; ", legacy.reports);
    }
    let status = bench.status().await;
    let limit = if case.on_new { LIMIT } else { 1 };
    let by_new = new.copies.iter().sum::<usize>() as u64 + u64::from(!case.on_new);
    if by_new > limit || status.warmup.used > limit || bench.metrics().warmup_overrun_recipients.get() > 0 {
        let _ = write!(wrong, "over the limit: {by_new} taken, {} used; ", status.warmup.used);
    }
    if status.warmup.used != by_new {
        let _ = write!(wrong, "{by_new} left by new, but {} tokens are used; ", status.warmup.used);
    }
    bench.stop().await;
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn any_certificate() -> Arc<rustls::ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let certificate =
        CertificateParams::new(vec!["localhost".into()]).expect("a name").self_signed(&key).expect("signs");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()));
    Arc::new(config.expect("fits its key"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_recipient_ends_where_the_table_says_whatever_fails_at_whatever_stage() {
    let began = Instant::now();
    let tls = any_certificate();
    let turns = Arc::new(Semaphore::new(TOGETHER));
    let mut running = JoinSet::new();
    let mut count = 0;
    for (stage, on_new, on_legacy) in EXPECTED {
        for (on_new, row) in [(true, on_new), (false, on_legacy)] {
            for (fault, expected) in FAULTS.into_iter().zip(row).filter(|(_, expected)| **expected != "--") {
                let case = Case { stage, fault, on_new, expected };
                let (turns, tls) = (turns.clone(), tls.clone());
                count += 1;
                running.spawn(async move {
                    let _turn = turns.acquire_owned().await.expect("never closed");
                    run(&case, &tls).await.map_err(|wrong| format!("{}: {wrong}", case.name()))
                });
            }
        }
    }
    let mut faults = Vec::new();
    while let Some(ended) = running.join_next().await {
        faults.extend(ended.expect("a case that panics says why itself").err());
    }
    faults.sort();
    assert!(faults.is_empty(), "{} of {count}:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(count, 93, "cases were left out");
    println!("{count} cases in {:?}", began.elapsed());
    assert!(began.elapsed() < TIME_MOST * 3, "even on a busy machine: {:?}", began.elapsed());
}
