//! Logins at the real binary: who gets in, what guessing costs, and what the log does not say.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use application::Application;
use base64::prelude::{BASE64_STANDARD, Engine};
use process::{PATIENCE, Running, Settings, run, until};
use scripted::{Script, Scripted};
use socket2::{Domain, Socket, Type};
use tokio::runtime::Runtime;

const BODY: &[u8] = b"Subject: hello\r\n\r\nhello\r\n";
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const REQUIRED: &str = "auth = \"required\"\nauth_clear = true";

/// A relay with one listener, a users file and a server behind it.
struct Bench {
    folder: tempfile::TempDir,
    text: String,
    hop: Scripted,
    _runtime: Runtime,
}

impl Bench {
    /// `listener` stands in the place of `allow_from`, `more` below `[smtp]`.
    fn new(listener: &str, more: &str, users: &[(&str, &str)]) -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let hop = runtime.block_on(Script::new().start());
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings::new(folder.path(), hop.address, None);
        settings.smtp = format!("[smtp.users]\nfile = \"users\"\n{more}");
        let text = settings.text().replace("allow_from = [\"127.0.0.0/8\"]", listener);
        let text = text.replace("format = \"json\"", "format = \"json\"\nlevel = \"trace\"");
        let bench = Bench { folder, text, hop, _runtime: runtime };
        bench.write_users(&users.iter().map(|(user, password)| line(user, password)).collect::<String>());
        bench
    }

    fn write_users(&self, text: &str) {
        let path = self.folder.path().join("users");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn start(&self) -> Running {
        let config = self.folder.path().join("mailramp.toml");
        fs::write(&config, &self.text).unwrap();
        Running::start(&config)
    }
}

/// A line of the users file with the cheapest hash there is.
fn line(user: &str, password: &str) -> String {
    use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, Version};
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
    let hash: PasswordHash = argon2.hash_password_with_salt(password.as_bytes(), b"0123456789abcdef").unwrap();
    format!("{user}:{hash}\n")
}

fn connect(relay: SocketAddr, from: Ipv4Addr) -> Application {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect_timeout(&relay.into(), PATIENCE).unwrap();
    Application::over(TcpStream::from(socket))
}

fn plain(user: &str, password: &str) -> String {
    BASE64_STANDARD.encode(format!("\0{user}\0{password}"))
}

/// The reply to a login.
fn login(application: &mut Application, user: &str, password: &str) -> String {
    application.write(format!("AUTH PLAIN {}\r\n", plain(user, password)).as_bytes());
    application.lines().remove(0)
}

const TAKEN: &str = "235 2.7.0 Authentication successful";
const WRONG: &str = "535 5.7.8 Authentication failed";

#[test]
fn who_logs_in_may_send_and_who_does_not_is_asked_to() {
    let bench = Bench::new(REQUIRED, "", &[("app", "secret"), ("b\u{e9}a", "p\u{e4}ss")]);
    let relay = bench.start();
    let mut app = connect(relay.smtp, HERE);
    app.say("MAIL FROM:<app@example.com>\r\n", "530 5.7.0 Authentication required");
    app.write(b"EHLO app.example\r\n");
    assert!(app.lines().iter().any(|line| line == "250-AUTH PLAIN LOGIN" || line == "250 AUTH PLAIN LOGIN"));
    assert_eq!(login(&mut app, "app", "secret"), TAKEN);
    app.send("app@example.com", &["you@example.net"], BODY);
    let mut bea = connect(relay.smtp, HERE);
    bea.say("AUTH LOGIN\r\n", "334 ");
    bea.say(&format!("{}\r\n", BASE64_STANDARD.encode("b\u{e9}a")), "334 ");
    bea.say(&format!("{}\r\n", BASE64_STANDARD.encode("p\u{e4}ss")), TAKEN);
    bea.send("bea@example.com", &["you@example.net"], BODY);
    until("both are relayed", || bench.hop.messages().len() == 2, || relay.whole_log());
    relay.stop();
}

#[test]
fn a_wrong_password_and_an_unknown_user_are_told_the_same_and_a_second_late() {
    let bench = Bench::new(REQUIRED, "", &[("app", "secret")]);
    let relay = bench.start();
    let mut app = connect(relay.smtp, HERE);
    for (user, password) in [("app", "wrong"), ("nobody\u{1b}[2J", "secret")] {
        let asked = Instant::now();
        assert_eq!(login(&mut app, user, password), WRONG);
        assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    let third = login(&mut app, "app", "again");
    assert!(third.starts_with("421 4.7.0"), "{third}");
    let failed = relay.logged("smtp.auth_failed");
    let users: Vec<&str> = failed.iter().map(|entry| entry["user"].as_str().unwrap()).collect();
    assert_eq!(users, ["app", "nobody\u{1b}[2J", "app"]);
    assert!(failed.iter().all(|entry| entry["client"] == "127.0.0.1" && entry["level"] == "warn"), "{failed:?}");
    assert_eq!(relay.metric("mailramp_smtp_rejections_total{reason=\"auth\"}"), 3.0);
    relay.stop();
}

#[test]
fn a_login_that_is_broken_off_is_no_failure() {
    let bench = Bench::new(REQUIRED, "[smtp.auth]\nfailures = 1\n", &[("app", "secret")]);
    let relay = bench.start();
    let mut app = connect(relay.smtp, HERE);
    app.say("AUTH PLAIN\r\n", "334 ");
    app.say("*\r\n", "501 5.7.0");
    app.say("AUTH PLAIN not-base64\r\n", "501 5.5.2");
    assert_eq!(login(&mut app, "app", "secret"), TAKEN);
    assert!(relay.logged("smtp.auth_failed").is_empty());
    relay.stop();
}

#[test]
fn twenty_failures_keep_one_address_from_logging_in_and_no_other() {
    let bench = Bench::new(REQUIRED, "", &[("app", "secret")]);
    let relay = bench.start();
    let guessers: Vec<_> = (0..10)
        .map(|n| {
            let relay = relay.smtp;
            std::thread::spawn(move || {
                let mut guesser = connect(relay, HERE);
                for guess in 0..2 {
                    assert_eq!(login(&mut guesser, "app", &format!("guess {n} {guess}")), WRONG);
                }
            })
        })
        .collect();
    guessers.into_iter().for_each(|guesser| guesser.join().unwrap());
    let here = login(&mut connect(relay.smtp, HERE), "app", "secret");
    assert_eq!(here, "421 4.7.0 Too many failures");
    assert_eq!(login(&mut connect(relay.smtp, ELSEWHERE), "app", "secret"), TAKEN);
    assert_eq!(relay.logged("smtp.auth_failed").len(), 20);
    let blocked = relay.logged("smtp.auth_blocked");
    assert_eq!((blocked.len(), &blocked[0]["client"]), (1, &"127.0.0.1".into()));
    relay.stop();
}

#[test]
fn who_is_admitted_by_address_sends_mail_although_its_logins_are_blocked() {
    let listener = "allow_from = [\"127.0.0.1\"]\nauth = \"optional\"\nauth_clear = true";
    let bench = Bench::new(listener, "[smtp.auth]\nfailures = 1\n", &[("app", "secret")]);
    let relay = bench.start();
    let mut app = connect(relay.smtp, HERE);
    assert_eq!(login(&mut app, "app", "wrong"), WRONG);
    assert_eq!(login(&mut app, "app", "secret"), "454 4.7.0 Try again later");
    app.send("app@example.com", &["you@example.net"], BODY);
    relay.stop();
}

#[test]
fn no_password_reaches_the_log_even_at_trace() {
    let bench = Bench::new(REQUIRED, "", &[("app", "open sesame")]);
    let relay = bench.start();
    let mut app = connect(relay.smtp, HERE);
    let response = BASE64_STANDARD.encode("\0app\0almost sesame");
    app.say(&format!("AUTH CRAM-MD5 {response}\r\n"), "504 ");
    app.say(&format!("AUTH PLAIN {response} more\r\n"), "501 ");
    assert_eq!(login(&mut app, "app", "almost sesame"), WRONG);
    assert_eq!(login(&mut app, "app", "open sesame"), TAKEN);
    app.say(&format!("{response}\r\n"), "500 ");
    app.send("app@example.com", &["you@example.net"], BODY);
    until("the mail is relayed", || bench.hop.messages().len() == 1, || relay.whole_log());
    let log = relay.whole_log();
    assert!(log.contains("smtp.auth_failed") && log.contains("smtp.accepted"), "{log}");
    for secret in ["sesame", &response, &plain("app", "open sesame"), "argon2id"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
    relay.stop();
}

#[test]
fn users_come_and_go_with_a_reload_and_sessions_stay_logged_in() {
    let bench = Bench::new(REQUIRED, "", &[("app", "old"), ("bea", "b")]);
    let relay = bench.start();
    let mut open = connect(relay.smtp, HERE);
    assert_eq!(login(&mut open, "app", "old"), TAKEN);
    bench.write_users(&line("app", "new"));
    assert!(relay.reload());
    let mut app = connect(relay.smtp, HERE);
    assert_eq!(login(&mut app, "app", "old"), WRONG, "not remembered either");
    assert_eq!(login(&mut app, "bea", "b"), WRONG);
    assert_eq!(login(&mut app, "app", "new"), TAKEN);
    open.send("app@example.com", &["you@example.net"], BODY);

    bench.write_users(&format!("{}app:$1$md5\n", line("eve", "e")));
    assert!(!relay.reload());
    let reason = relay.logged("config.refused")[0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("/users:2  "), "{reason}");
    assert_eq!(login(&mut connect(relay.smtp, HERE), "app", "new"), TAKEN);
    assert_eq!(login(&mut connect(relay.smtp, HERE), "eve", "e"), WRONG);
    relay.stop();
}

#[test]
fn a_users_file_that_others_can_read_or_with_a_bad_line_keeps_the_relay_from_starting() {
    let bench = Bench::new(REQUIRED, "", &[]);
    let config = bench.folder.path().join("mailramp.toml");
    fs::write(&config, &bench.text).unwrap();
    bench.write_users("# team\napp\n");
    for command in [&["run"][..], &["config", "check"]] {
        let ended = run(command, &config);
        assert_eq!(ended.code, Some(78), "{ended:?}");
        assert!(format!("{}{}", ended.out, ended.errors).contains("/users:2  must be `user:hash`"), "{ended:?}");
    }
    bench.write_users(&line("app", "secret"));
    fs::set_permissions(bench.folder.path().join("users"), fs::Permissions::from_mode(0o644)).unwrap();
    let ended = run(&["run"], &config);
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.errors.contains("`smtp.users.file`") && ended.errors.contains("chmod 600"), "{ended:?}");
}

#[test]
fn the_line_that_user_hash_prints_logs_in() {
    let hashed = |arguments: &[&str], typed: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mailramp"))
            .args(["user", "hash"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(typed).unwrap();
        let ended = child.wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stdout).unwrap())
    };
    let (code, printed) = hashed(&["--user", "app"], b"correct horse\n");
    assert_eq!(code, Some(0));
    let bench = Bench::new(REQUIRED, "", &[]);
    bench.write_users(&format!("# made today\n{printed}"));
    let relay = bench.start();
    let mut app = connect(relay.smtp, HERE);
    assert_eq!(login(&mut app, "app", "correct horse"), TAKEN);
    relay.stop();
    assert!(hashed(&[], b"x\n").1.starts_with("$argon2id$"));
    for (arguments, typed) in [(&[][..], &b"\n"[..]), (&["--user", "a:b"], b"x\n")] {
        let (code, printed) = hashed(arguments, typed);
        assert_eq!((code, printed.as_str()), (Some(2), ""));
    }
}
