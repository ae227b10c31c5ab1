//! Streams at the real binary: which mail is whose, what leaves of the tag, and what a reload or a start changes.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use application::Application;
use base64::prelude::{BASE64_STANDARD, Engine};
use process::{Running, Settings, run, until};
use scripted::{Script, Scripted};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;

const SENDER: &str = "app@example.com";
/// The first lets its clients choose and log in, the second is of one stream.
const LISTENERS: &str = "allow_from = [\"127.0.0.0/8\"]\nauth = \"optional\"\nauth_clear = true\nstream_header = true\n\
                         [[listeners]]\nbind = \"127.0.0.1:0\"\nallow_from = [\"127.0.0.0/8\"]\nstream = \"batch\"\n";
const STREAMS: &str = "[[streams]]\nname = \"digest\"\nmatch.from = \"*@news.example.com\"\n\
                       [[streams]]\nname = \"crm\"\nmatch.auth_user = \"crm\"\n\
                       [[streams]]\nname = \"batch\"\nmatch.header = [\"nightly\"]\nroute = \"ramp\"\n";

/// A folder with settings, and whatever is at the other end.
struct Bench {
    folder: tempfile::TempDir,
    settings: Settings,
    runtime: Runtime,
    hop: Option<Scripted>,
    _reserved: Option<TcpSocket>,
}

impl Bench {
    /// A server that takes everything.
    fn open() -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let hop = runtime.block_on(Script::new().start());
        Bench::with(runtime, hop.address, Some(hop), None)
    }

    /// The same, and one behind it that is the legacy server.
    fn with_legacy() -> (Bench, Scripted) {
        let mut bench = Bench::open();
        let legacy = bench.runtime.block_on(Script::new().start());
        bench.settings.legacy = Some(legacy.address);
        (bench, legacy)
    }

    /// Nobody answers: what was accepted can be looked at.
    fn shut() -> Bench {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (reserved, down) = Scripted::reserve();
        Bench::with(runtime, down, None, Some(reserved))
    }

    fn with(runtime: Runtime, server: SocketAddr, hop: Option<Scripted>, reserved: Option<TcpSocket>) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(folder.path(), server, None);
        settings.smtp = "[smtp.users]\nfile = \"users\"\n".into();
        settings.queue = "retry = [\"1d\"]".into();
        let users = folder.path().join("users");
        fs::write(&users, user_line("crm", "secret")).unwrap();
        fs::set_permissions(&users, fs::Permissions::from_mode(0o600)).unwrap();
        Bench { folder, settings, runtime, hop, _reserved: reserved }
    }

    fn save(&self, streams: &str) -> PathBuf {
        let path = self.folder.path().join("mailramp.toml");
        let text = self.settings.text().replace("allow_from = [\"127.0.0.0/8\"]", LISTENERS);
        let text = text.replace("format = \"json\"", "format = \"json\"\nlevel = \"debug\"");
        fs::write(&path, text + streams).unwrap();
        path
    }

    fn start(&self, streams: &str) -> Running {
        Running::start(&self.save(streams))
    }

    /// The ids that `queue list --stream` shows, in the order of the queue ids.
    fn queued(&self, stream: &str) -> Vec<String> {
        let config = self.folder.path().join("mailramp.toml");
        let answer = run(&["queue", "list", "--json", "--stream", stream], &config);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        let page: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
        let rows = page["rows"].as_array().expect("rows");
        assert!(rows.iter().all(|row| row["stream"] == stream), "{rows:#?}");
        let mut ids: Vec<String> = rows.iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect();
        ids.sort();
        ids
    }

    /// The header and body that the server got, without our own line.
    fn relayed(&self, count: usize, relay: &Running) -> Vec<String> {
        let hop = self.hop.as_ref().expect("open");
        until("all of it is relayed", || hop.messages().len() == count, || relay.whole_log());
        let mut texts: Vec<String> =
            hop.messages().iter().map(|m| String::from_utf8(m.body.clone()).unwrap()).collect();
        texts.iter_mut().for_each(|text| *text = text.split_once("+0000\r\n").expect("our line").1.to_owned());
        texts.sort();
        texts
    }
}

/// A line of the users file with the cheapest hash there is.
fn user_line(user: &str, password: &str) -> String {
    use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, Version};
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
    let hash: PasswordHash = argon2.hash_password_with_salt(password.as_bytes(), b"0123456789abcdef").unwrap();
    format!("{user}:{hash}\n")
}

fn log_in(application: &mut Application) {
    let answer = BASE64_STANDARD.encode("\0crm\0secret");
    application.say(&format!("AUTH PLAIN {answer}\r\n"), "235 ");
}

/// The listener of this index.
fn listener(relay: &Running, index: usize) -> SocketAddr {
    let listening = relay.logged("relay.listening");
    let smtp: Vec<_> = listening.iter().filter(|entry| entry["protocol"] == "smtp").collect();
    smtp[index]["address"].as_str().expect("an address").parse().expect("an address")
}

fn mail(header: &str) -> Vec<u8> {
    format!("{header}\r\nSubject: hello\r\n\r\nhello\r\n").into_bytes()
}

fn received(relay: &Running, stream: &str) -> f64 {
    relay.metric(&format!("mailramp_smtp_messages_received_total{{stream=\"{stream}\"}}"))
}

#[test]
fn mail_is_found_under_the_stream_of_its_author_its_login_its_tag_or_its_listener() {
    let bench = Bench::shut();
    let relay = bench.start(STREAMS);
    let mut app = Application::connect(relay.smtp);
    let mut send = |header: &str| app.send(SENDER, &["you@example.net", "me@example.net"], &mail(header));
    let by_from = send("From: \"News, daily\"\r\n <Today@News.Example.COM>");
    let by_tag = send("From: a@example.com\r\nX-Mailramp-Stream: digest");
    let by_value = send("From: a@example.com\r\nX-Mailramp-Stream: nightly");
    let by_nothing = send("From: a@example.com\r\nX-Mailramp-Stream: unheard-of");
    let not_the_sender = send("From: today@example.com");
    let mut crm = Application::connect(relay.smtp);
    log_in(&mut crm);
    let by_login = crm.send(SENDER, &["you@example.net"], &mail("From: a@example.com"));
    let first_rule = crm.send(SENDER, &["you@example.net"], &mail("From: x@news.example.com"));
    let no_from = crm.send("x@news.example.com", &["you@example.net"], &mail("To: you@example.net"));
    let mut batch = Application::connect(listener(&relay, 1));
    let by_listener = batch.send(SENDER, &["you@example.net"], &mail("X-Mailramp-Stream: digest"));
    let rule_before_listener = batch.send(SENDER, &["you@example.net"], &mail("From: x@news.example.com"));

    assert_eq!(bench.queued("digest"), [by_from, by_tag, first_rule, no_from, rule_before_listener]);
    assert_eq!(bench.queued("crm"), [by_login]);
    assert_eq!(bench.queued("batch"), [by_value, by_listener]);
    assert_eq!(bench.queued("default"), [by_nothing, not_the_sender]);
    assert_eq!(["digest", "crm", "batch", "default"].map(|name| received(&relay, name)), [5.0, 1.0, 2.0, 2.0]);
    let recipients = "mailramp_smtp_recipients_received_total{stream=\"digest\"}";
    assert_eq!(relay.metric(recipients), 7.0);
    let unknown = relay.logged("smtp.unknown_stream");
    assert_eq!(unknown.iter().map(|entry| entry["tag"].as_str().unwrap()).collect::<Vec<_>>(), ["unheard-of"]);
    let answer = run(&["queue", "list", "--stream", "gone"], &bench.folder.path().join("mailramp.toml"));
    assert!(answer.code != Some(0) && answer.errors.contains("default, digest, crm, batch"), "{answer:?}");
    relay.stop();
}

#[test]
fn the_tag_stays_here_where_clients_may_give_one_and_goes_along_where_they_may_not() {
    let bench = Bench::open();
    let relay = bench.start(STREAMS);
    let mut app = Application::connect(relay.smtp);
    let folded = "From: a@example.com\r\nx-mailramp-STREAM:\r\n\tdigest\r\nX-Mailramp-Streams: other";
    app.send(SENDER, &["you@example.net"], &mail(folded));
    let chunk = b"A: first\r\nX-Mailramp-Stream: crm\r\n\r\nX-Mailramp-Stream: body\r\n";
    app.say(&format!("MAIL FROM:<{SENDER}>\r\n"), "250 ");
    app.say("RCPT TO:<you@example.net>\r\n", "250 ");
    let (first, last) = chunk.split_at(15);
    for (part, word, reply) in [(first, "", "250 2.0.0 Chunk"), (last, " LAST", "250 2.0.0 Queued")] {
        app.write(format!("BDAT {}{word}\r\n", part.len()).as_bytes());
        app.write(part);
        app.hear(reply);
    }
    let mut batch = Application::connect(listener(&relay, 1));
    batch.send(SENDER, &["you@example.net"], &mail("Z: last\r\nX-Mailramp-Stream: digest"));
    let rest = "Subject: hello\r\n\r\nhello\r\n";
    let expected = [
        "A: first\r\n\r\nX-Mailramp-Stream: body\r\n".to_owned(),
        format!("From: a@example.com\r\nX-Mailramp-Streams: other\r\n{rest}"),
        format!("Z: last\r\nX-Mailramp-Stream: digest\r\n{rest}"),
    ];
    assert_eq!(bench.relayed(3, &relay), expected);
    assert_eq!(["digest", "crm", "batch", "default"].map(|name| received(&relay, name)), [1.0, 1.0, 1.0, 0.0]);
    let routed = |stream: &str| {
        let labels = format!("reason=\"in_quota\",route=\"new\",stream=\"{stream}\"");
        relay.metric(&format!("mailramp_routed_recipients_total{{{labels}}}"))
    };
    until("each counts under its stream", || ["digest", "crm", "batch"].map(routed) == [1.0; 3], || relay.whole_log());
    relay.stop();
}

#[test]
fn a_stream_that_comes_with_a_reload_takes_mail_at_once_and_a_bad_one_changes_nothing() {
    let bench = Bench::shut();
    let relay = bench.start(STREAMS);
    let mut app = Application::connect(relay.smtp);
    let mut send = || app.send(SENDER, &["you@example.net"], &mail("From: alerts@example.com"));
    let before = send();
    let shadowed = format!("{STREAMS}[[streams]]\nname = \"more\"\nmatch.from = \"x@news.example.com\"\n");
    bench.save(&shadowed);
    assert!(!relay.reload());
    let reason = relay.logged("config.refused")[0]["reason"].as_str().unwrap().to_owned();
    let line = fs::read_to_string(bench.folder.path().join("mailramp.toml")).unwrap().lines().count();
    assert!(reason.contains(&format!("mailramp.toml:{line}:")) && reason.contains("stream \"digest\""), "{reason}");
    let still = send();

    bench.save(&format!(
        "[[streams]]\nname = \"alerts\"\nmatch.from = \"alerts@example.com\"\npriority = 90\n{STREAMS}"
    ));
    assert!(relay.reload());
    assert_eq!(received(&relay, "alerts"), 0.0);
    let after = send();
    assert_eq!((bench.queued("default"), bench.queued("alerts")), (vec![before, still], vec![after]));
    assert_eq!((received(&relay, "default"), received(&relay, "alerts")), (2.0, 1.0));
    relay.stop();
}

#[test]
fn waiting_mail_keeps_its_stream_when_the_settings_change_their_order_or_forget_it() {
    let bench = Bench::shut();
    let relay = bench.start(STREAMS);
    let mut app = Application::connect(relay.smtp);
    let digest = app.send(SENDER, &["you@example.net"], &mail("X-Mailramp-Stream: digest"));
    let batch = app.send(SENDER, &["you@example.net"], &mail("X-Mailramp-Stream: batch"));
    drop(app);
    relay.stop();

    let turned = "[[streams]]\nname = \"batch\"\nmatch.header = \"nightly\"\n\
                  [[streams]]\nname = \"fresh\"\nmatch.from = \"*@fresh.example\"\n";
    let relay = bench.start(turned);
    let fresh = Application::connect(relay.smtp).send(SENDER, &["you@example.net"], &mail("From: a@fresh.example"));
    assert_eq!(bench.queued("batch"), [batch]);
    assert_eq!(bench.queued("digest"), [digest], "a name that was is still known");
    assert_eq!(bench.queued("fresh"), [fresh]);
    assert_eq!((received(&relay, "batch"), received(&relay, "fresh")), (0.0, 1.0));
    relay.stop();
}

#[test]
fn a_stream_that_stays_on_legacy_goes_there_and_the_others_by_the_new_server_with_and_without_a_ramp() {
    for ramp in [false, true] {
        let (mut bench, legacy) = Bench::with_legacy();
        if ramp {
            bench.settings = bench.settings.clone().limit(100, "policy = \"hold-then-legacy\"");
        }
        let streams = STREAMS.replacen("match.from", "route = \"legacy\"\nmatch.from", 1);
        let relay = bench.start(&streams);
        let mut app = Application::connect(relay.smtp);
        app.send(SENDER, &["you@example.net"], &mail("From: x@news.example.com"));
        app.send(SENDER, &["me@example.net"], &mail("From: a@example.com"));
        assert_eq!(
            bench.relayed(1, &relay),
            ["From: a@example.com\r\nSubject: hello\r\n\r\nhello\r\n"],
            "ramp: {ramp}"
        );
        until("the other is relayed", || legacy.messages().len() == 1, || relay.whole_log());
        assert_eq!(legacy.messages()[0].rcpts, ["RCPT TO:<you@example.net>"], "ramp: {ramp}");
        relay.stop();
    }
}
