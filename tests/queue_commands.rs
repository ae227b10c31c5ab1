//! The queue by hand with the real binary: look, reroute, remove, hurry; first said, then done.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::io::{Read, Write};
use std::path::PathBuf;

use application::Application;
use process::{Ended, Running, Settings, run, until};
use scripted::{Act, Script, Scripted, Step};

const BODY: &[u8] = b"From: App <app@example.com>\r\nSubject: hello\r\n\r\nthe body is nobody's business\r\n";

/// A relay whose new server takes connections from nobody, so that mail waits.
struct Bench {
    relay: Running,
    config: PathBuf,
    folder: tempfile::TempDir,
    legacy: Scripted,
}

async fn bench(legacy: Script) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let (_reserved, down) = Scripted::reserve();
    let legacy = legacy.start().await;
    let mut settings = Settings::new(folder.path(), down, Some(legacy.address)).limit(100, "policy = \"hold\"");
    settings.queue = "retry = [\"1h\"]".into();
    let config = settings.save(folder.path());
    let relay = tokio::task::block_in_place(|| Running::start(&config));
    Bench { relay, config, folder, legacy }
}

impl Bench {
    fn send(&self, to: &[&str]) -> String {
        tokio::task::block_in_place(|| Application::connect(self.relay.smtp).send("app@example.com", to, BODY))
    }

    fn ask(&self, arguments: &[&str]) -> Ended {
        let all = [&["queue"], arguments].concat();
        tokio::task::block_in_place(|| run(&all, &self.config))
    }

    fn says(&self, arguments: &[&str], want: &str) {
        let ended = self.ask(arguments);
        assert_eq!((ended.code, sizes_hidden(&ended.out).as_str()), (Some(0), want), "{arguments:?}: {ended:?}");
    }

    fn queued(&self) -> usize {
        tokio::task::block_in_place(|| self.relay.queue().len())
    }

    fn metric(&self, line: &str) -> bool {
        let mut stream = std::net::TcpStream::connect(self.relay.http).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().any(|found| found == line)
    }
}

/// The size of a message depends on the date in our line.
fn sizes_hidden(text: &str) -> String {
    match text.split_once(" B").and_then(|(head, tail)| Some((head.rsplit_once(' ')?, tail))) {
        Some(((before, number), after)) if number.parse::<u64>().is_ok() => format!("{before} N B{after}"),
        _ => text.into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_is_looked_at_rerouted_and_removed_and_nothing_happens_without_yes() {
    let bench = bench(Script::new()).await;
    let first = bench.send(&["dora@one.example"]);
    let second = bench.send(&["al@one.example", "bo@two.example"]);
    let third = bench.send(&["cy@three.example"]);

    let shown = bench.ask(&["show", &second, "--headers"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for words in
        [&second, "from a***@example.com", "held   by new (in_quota)", "to a***@one.example", "to b***@two.example"]
    {
        assert!(shown.out.contains(words), "{words:?} is missing in\n{}", shown.out);
    }
    assert!(shown.out.contains("From: App <a***@example.com>\nSubject: hello\n"), "{}", shown.out);
    assert!(!shown.out.contains("nobody's business") && !shown.out.contains("bo@"), "{}", shown.out);
    assert!(!bench.ask(&["show", &second]).out.contains("Subject"), "no headers unless asked for");
    let unknown = bench.ask(&["show", "000000000000"]);
    assert!(unknown.code == Some(2) && unknown.errors.contains("no message 000000000000"), "{unknown:?}");

    let whole = bench.ask(&["reroute", "--to", "legacy"]);
    assert!(whole.code == Some(2) && whole.errors.contains("--all"), "{whole:?}");
    let reroute = ["reroute", "--to", "legacy", "--rcpt-domain", "ONE.example"];
    bench.says(&reroute, "2 messages, 2 recipients, N B would go to legacy now. Add --yes.\n");
    assert!(bench.legacy.messages().is_empty() && bench.queued() == 3, "a dry run changes nothing");
    bench.says(&[&reroute[..], &["--yes"]].concat(), "2 messages, 2 recipients, N B: go to legacy now\n");
    until("both by legacy", || bench.legacy.messages().len() == 2, String::new);
    let mut taken: Vec<String> =
        bench.legacy.commands().into_iter().filter(|command| command.starts_with("RCPT")).collect();
    taken.sort();
    assert_eq!(taken, ["RCPT TO:<al@one.example>", "RCPT TO:<dora@one.example>"], "only those of that domain");
    until("settled", || bench.queued() == 2, String::new);
    bench.says(&["reroute", "--to", "legacy", "--id", &first, "--yes"], "nothing waits that matches\n");

    bench.says(&["drop", "--id", &third], "1 message, 1 recipient, N B would be removed for good now. Add --yes.\n");
    assert_eq!(bench.queued(), 2);
    let json = bench.ask(&["drop", "--id", &third, "--yes", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((&value["messages"], &value["dry_run"], &value["action"]), (&1.into(), &false.into(), &"drop".into()));
    assert_eq!(bench.queued(), 1);
    let dropped = bench.relay.logged("queue.dropped");
    assert!(dropped.len() == 1 && dropped[0]["id"] == third.as_str(), "{dropped:?}");
    let actions = bench.relay.logged("admin.action");
    assert_eq!(
        actions.iter().map(|a| a["action"].as_str().unwrap()).collect::<Vec<_>>(),
        ["queue.reroute", "queue.drop"]
    );
    for (action, count) in [("reroute", 1), ("drop", 1), ("flush", 0)] {
        let line = format!("mailramp_queue_admin_actions_total{{action=\"{action}\"}} {count}");
        assert!(bench.metric(&line), "{line}");
    }

    bench.says(&["drop", "--all", "--yes"], "1 message, 1 recipient, N B: removed for good\n");
    assert_eq!(bench.queued(), 0);
    tokio::task::block_in_place(|| bench.relay.stop());
    let rows = rusqlite::Connection::open(bench.folder.path().join("data/spool.db")).unwrap();
    let audit: String = rows
        .query_row(
            "SELECT group_concat(detail || ': ' || rcpts, '; ') FROM (SELECT * FROM audit ORDER BY job)",
            [],
            |r| r.get(0),
        )
        .unwrap();
    let want = format!("reroute to legacy, recipient domain ONE.example: 2; drop, id {third}: 1; drop: 1");
    assert_eq!(audit, want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_delivered_keeps_its_route_and_may_be_hurried() {
    let bench = bench(Script::new().at(Step::Dot, 1, Act::Cut)).await;
    let id = bench.send(&["dora@one.example"]);
    assert_eq!(bench.ask(&["reroute", "--to", "legacy", "--id", &id, "--yes"]).code, Some(0));
    let maybe = || bench.ask(&["show", &id]).out.contains("may have been delivered already");
    until("the answer to the final dot is lost", maybe, || bench.ask(&["show", &id]).out);
    let want = "nothing of what matches can be changed\nleft alone: 1 maybe delivered, they keep their route\n";
    bench.says(&["reroute", "--to", "new", "--id", &id], want);
    bench.says(
        &["reroute", "--to", "new", "--all", "--yes"],
        &want.replace("nothing of what matches can be", "nothing was"),
    );
    let want = "1 message, 1 recipient, N B: tried now, as far as the quota allows\n";
    bench.says(&["flush", "--state", "deferred", "--yes"], want);
    until("delivered by its own route", || bench.queued() == 0, String::new);
    assert_eq!(bench.legacy.messages().len(), 2, "the one whose answer was lost, and its repetition");
}
