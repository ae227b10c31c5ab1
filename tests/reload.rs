//! SIGHUP to the real binary: new settings take effect as a whole or not at all, and nothing under way suffers.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use application::Application;
use process::{Running, Settings, until};
use scripted::{Act, Script, Scripted, Step};
use tokio::runtime::Runtime;

const BODY: &[u8] = b"Subject: hello\r\n\r\nhello\r\n";

/// Servers of ours live on threads of their own; the tests themselves wait.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn settings(folder: &Path, new: SocketAddr) -> Settings {
    Settings::new(folder, new, None)
}

fn size_offered(relay: SocketAddr) -> String {
    let mut application = Application::connect(relay);
    application.write(b"EHLO again.example\r\n");
    application
        .lines()
        .into_iter()
        .find_map(|line| Some(line.get(4..)?.strip_prefix("SIZE ")?.to_owned()))
        .expect("SIZE")
}

fn taken(server: &Scripted) -> usize {
    server.messages().len()
}

#[test]
fn new_limits_hold_for_new_connections_and_open_sessions_go_on_as_they_began() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let mut settings = settings(folder.path(), hop.address);
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    let before = size_offered(relay.smtp);
    let mut open = Application::connect(relay.smtp);
    open.say("MAIL FROM:<app@example.com>\r\n", "250 ");

    settings.smtp = "[smtp.limits]\nmessage = \"1MB\"\n".into();
    settings.save(folder.path());
    assert!(relay.reload());
    assert_eq!((before.as_str(), size_offered(relay.smtp).as_str()), ("25000000", "1000000"));
    open.say("RCPT TO:<you@example.net>\r\n", "250 ");
    open.say("DATA\r\n", "354 ");
    open.write(b"Subject: x\r\n\r\n.\r\n");
    open.hear("250 2.0.0 Queued");
    until("the mail is relayed", || taken(&hop) == 1, || relay.whole_log());
    relay.stop();
}

#[test]
fn a_mistake_leaves_everything_as_it_was_and_is_named_with_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path(), "127.0.0.1:9".parse().unwrap());
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    let successful = || relay.metric("mailramp_config_last_reload_successful");
    let loaded_at = || relay.metric("mailramp_config_last_reload_success_timestamp_seconds");
    let started = loaded_at();
    assert_eq!(successful(), 1.0);

    settings.smtp = "[smtp.limits]\nmessage = \"1MB\"\nrecipients = 3\n".into();
    settings.save(folder.path());
    assert!(!relay.reload());
    assert_eq!((successful(), loaded_at(), size_offered(relay.smtp).as_str()), (0.0, started, "25000000"));
    let refused = relay.logged("config.refused");
    let reason = refused[0]["reason"].as_str().unwrap();
    let line =
        1 + fs::read_to_string(&config).unwrap().lines().position(|line| line.starts_with("recipients")).unwrap();
    assert!(
        reason.contains(&format!("mailramp.toml:{line}:")) && reason.contains("`smtp.limits.recipients`"),
        "{reason}"
    );

    settings.smtp = "[smtp.limits]\nmessage = \"1MB\"\n".into();
    settings.save(folder.path());
    assert!(relay.reload());
    assert_eq!((successful(), size_offered(relay.smtp).as_str()), (1.0, "1000000"));
    assert!(loaded_at() > started);
    relay.stop();
}

#[test]
fn what_needs_a_restart_is_refused_with_all_that_came_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path(), "127.0.0.1:9".parse().unwrap()).limit(10, "policy = \"hold\"");
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    settings.smtp = "[smtp.limits]\nmessage = \"1MB\"\n".into();
    let good = settings.clone();
    settings.data_dir = folder.path().join("elsewhere");
    settings.warmup = String::new();
    settings.save(folder.path());
    assert!(!relay.reload());
    let reasons: Vec<String> =
        relay.logged("config.refused").iter().map(|entry| entry["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].contains("mailramp.toml:1:") && reasons[0].contains("`data_dir`"), "{reasons:?}");
    assert!(reasons.iter().all(|reason| reason.ends_with("needs a restart")), "{reasons:?}");
    assert_eq!(size_offered(relay.smtp), "25000000");
    assert!(!folder.path().join("elsewhere").exists());
    good.save(folder.path());
    assert!(relay.reload());
    relay.stop();
}

#[test]
fn mail_under_way_and_mail_that_comes_meanwhile_is_relayed_once_whatever_server_is_named() {
    const RELOADS: usize = 6;
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    // Slow enough that each exchange finds transactions under way.
    let slow = || Script::new().always(Step::Body, Act::Pause(Duration::from_millis(20)));
    let hops = [runtime.block_on(slow().start()), runtime.block_on(slow().start())];
    let mut settings = settings(folder.path(), hops[0].address);
    let config = settings.save(folder.path());
    let relay = Arc::new(Running::start(&config));
    let (over, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let senders: Vec<_> = (0..3)
        .map(|_| {
            let (relay, over, sent) = (relay.smtp, over.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut application = Application::connect(relay);
                while !over.load(Ordering::SeqCst) {
                    let id = sent.fetch_add(1, Ordering::SeqCst);
                    application.send("app@example.com", &[&format!("m{id}@example.net")], BODY);
                }
            })
        })
        .collect();
    let relayed = || hops.iter().map(taken).sum::<usize>();
    for turn in 1..=RELOADS {
        let (before, hop) = (taken(&hops[turn % 2]), &hops[turn % 2]);
        settings.new = hop.address;
        settings.save(folder.path());
        assert!(relay.reload());
        until("mail goes to the server named last", || taken(hop) > before + 10, || relay.whole_log());
    }
    over.store(true, Ordering::SeqCst);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    let sent = sent.load(Ordering::SeqCst);
    until("all of it is relayed", || relayed() >= sent, || format!("{} of {sent}", relayed()));
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for message in hops.iter().flat_map(Scripted::messages) {
        *times.entry(message.rcpts[0].clone()).or_default() += 1;
    }
    assert_eq!((times.len(), times.values().max()), (sent, Some(&1)));
    let old = &hops[(RELOADS + 1) % 2];
    let last = taken(old);
    Application::connect(relay.smtp).send("app@example.com", &["last@example.net"], BODY);
    until("the last one is relayed", || relayed() == sent + 1, || relay.whole_log());
    assert_eq!(taken(old), last, "nothing goes to the old server any more");
    assert_eq!(relay.logged("delivery.stranded").len(), 0);
    Arc::into_inner(relay).unwrap().stop();
}

#[test]
fn mail_that_waits_for_a_server_that_is_down_goes_to_the_one_named_by_a_reload() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let (_nobody, down) = Scripted::reserve();
    let mut settings = settings(folder.path(), down);
    settings.queue = "retry = [\"1d\"]".into();
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    Application::connect(relay.smtp).send("app@example.com", &["you@example.net"], BODY);
    until("the server is found down", || !relay.logged("upstream.down").is_empty(), || relay.whole_log());
    settings.new = hop.address;
    settings.save(folder.path());
    assert!(relay.reload());
    until("the mail is relayed", || taken(&hop) == 1, || relay.whole_log());
    relay.stop();
}

#[test]
fn a_legacy_server_can_come_with_a_reload_but_not_go_while_mail_waits_for_it() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let (_nobody, down) = Scripted::reserve();
    let mut settings = settings(folder.path(), hop.address).limit(1, "policy = \"hold\"");
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    settings.legacy = Some(down);
    let mut settings = settings.limit(1, "policy = \"legacy\"");
    settings.save(folder.path());
    assert!(relay.reload());
    let mut application = Application::connect(relay.smtp);
    for to in ["one@example.net", "two@example.net"] {
        application.send("app@example.com", &[to], BODY);
    }
    until("one goes by the new server", || taken(&hop) == 1, || relay.whole_log());
    settings.legacy = None;
    let without = settings.clone().limit(1, "policy = \"hold\"");
    without.save(folder.path());
    assert!(!relay.reload());
    let reason = relay.logged("config.refused")[0]["reason"].to_string();
    assert!(reason.contains("1 queued messages wait for the legacy server"), "{reason}");
    relay.stop();
}

#[test]
fn todays_limit_stays_when_the_curve_is_raised() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let settings = settings(folder.path(), hop.address).limit(2, "policy = \"hold\"");
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    let mut application = Application::connect(relay.smtp);
    for n in 0..3 {
        application.send("app@example.com", &[&format!("m{n}@example.net")], BODY);
    }
    until("the limit is used", || taken(&hop) == 2, || relay.whole_log());
    settings.limit(1000, "policy = \"hold\"").save(folder.path());
    assert!(relay.reload());
    let warmup = &relay.status()["warmup"];
    assert_eq!((&warmup["limit"], &warmup["used"], &warmup["target"]), (&2.into(), &2.into(), &1000.into()));
    application.send("app@example.com", &["m3@example.net"], BODY);
    assert_eq!(relay.queue().len(), 2);
    assert_eq!(taken(&hop), 2);
    relay.stop();
}

#[test]
fn the_level_of_the_log_and_the_disk_limit_change_at_once() {
    let (runtime, folder) = (runtime(), tempfile::tempdir().unwrap());
    let hop = runtime.block_on(Script::new().start());
    let mut settings = settings(folder.path(), hop.address);
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    Application::connect(relay.smtp).send("app@example.com", &["you@example.net"], BODY);
    until("the mail is relayed", || !relay.logged("smtp.accepted").is_empty(), || relay.whole_log());
    let text = settings.text().replace("min_free = \"1MiB\"", "min_free = \"1024GiB\"");
    fs::write(&config, text.replace("format = \"json\"", "format = \"json\"\nlevel = \"error\"")).unwrap();
    relay.signal(rustix::process::Signal::HUP);
    let full = || {
        let mut application = Application::connect(relay.smtp);
        application.write(b"MAIL FROM:<app@example.com>\r\n");
        application.lines()[0].starts_with("452 4.3.1")
    };
    until("the disk counts as full", full, || relay.whole_log());
    assert_eq!(relay.logged("config.reloaded").len(), 0, "an event of level info");
    settings.smtp = "[smtp.limits]\nmessage = \"1MB\"\n".into();
    settings.save(folder.path());
    assert!(relay.reload());
    Application::connect(relay.smtp).send("app@example.com", &["you@example.net"], BODY);
    until("the log says so again", || relay.logged("smtp.accepted").len() == 2, || relay.whole_log());
    relay.stop();
}
