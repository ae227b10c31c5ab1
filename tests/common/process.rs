//! The real binary with a settings file in a directory of its own: started, asked, stopped and killed as a test likes.
//!
//! Every wait is bounded; dropping a running relay kills it.
#![allow(dead_code)] // each test binary uses its part

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A debug build on a busy machine needs some of it; no test waits for it to pass.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// The settings of one relay, with ports chosen by the system and a clock zone in which it is about noon.
#[derive(Clone)]
pub struct Settings {
    pub new: SocketAddr,
    pub legacy: Option<SocketAddr>,
    /// Text of `[warmup]` and its tables; empty: no ramp.
    pub warmup: String,
    /// Text of `[smtp]` beside the host name.
    pub smtp: String,
    /// Text of `[queue]`.
    pub queue: String,
    pub bind: String,
    pub data_dir: PathBuf,
}

impl Settings {
    pub fn new(folder: &Path, new: SocketAddr, legacy: Option<SocketAddr>) -> Self {
        let queue = "retry = [\"1s\"]".into();
        let (warmup, smtp, bind) = (String::new(), String::new(), "127.0.0.1:0".into());
        Settings { new, legacy, warmup, smtp, queue, bind, data_dir: folder.join("data") }
    }

    /// A ramp that stands at `limit`, without a pace.
    pub fn limit(mut self, limit: u64, overflow: &str) -> Self {
        self.warmup = format!(
            "[warmup]\ncurve = \"custom\"\ncustom = [{limit}]\ngrowth = 1.0\ntarget = {limit}\nproviders = \"off\"\n\
             [warmup.pace]\nhourly = \"100%\"\nburst = \"100%\"\n[warmup.overflow]\n{overflow}\n"
        );
        self
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "data_dir = \"{}\"\ntimezone = \"{}\"\n[log]\nformat = \"json\"\naddresses = \"full\"\n\
             [http]\nbind = \"127.0.0.1:0\"\n[smtp]\nhostname = \"relay.example\"\n{}\n\
             [[listeners]]\nbind = \"{}\"\nallow_from = [\"127.0.0.0/8\"]\n[queue]\n{}\n[queue.disk]\nmin_free = \"1MiB\"\n",
            self.data_dir.display(),
            zone_where_it_is_noon(),
            self.smtp,
            self.bind,
            self.queue,
        );
        for (name, server) in [("new", Some(self.new)), ("legacy", self.legacy)] {
            if let Some(server) = server {
                let _ = write!(text, "[{name}]\nhost = \"{server}\"\n[{name}.tls]\nlevel = \"off\"\n");
            }
        }
        text + &self.warmup
    }

    /// Writes them to `mailramp.toml` in `folder`.
    pub fn save(&self, folder: &Path) -> PathBuf {
        let path = folder.join("mailramp.toml");
        fs::write(&path, self.text()).expect("writes the settings");
        path
    }
}

/// No midnight of this zone is near, so a day begins in no test.
pub fn zone_where_it_is_noon() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    // The names have the sign of POSIX: GMT-5 is five hours ahead of UTC.
    match 12 - i64::try_from(since.as_secs() / 3600 % 24).expect("small") {
        0 => "UTC".into(),
        ahead if ahead > 0 => format!("Etc/GMT-{ahead}"),
        behind => format!("Etc/GMT+{}", -behind),
    }
}

/// `before` is a program and its arguments that the relay's command line is given to; usually nothing.
fn command(before: &[&str], arguments: &[&str], config: &Path) -> Command {
    let words: Vec<&str> = before.iter().copied().chain([env!("CARGO_BIN_EXE_mailramp")]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAILRAMP_")) {
        command.env_remove(name);
    }
    command.args(arguments).arg("--config").arg(config).stdin(Stdio::null());
    command
}

/// What a command that has ended left behind.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub errors: String,
}

/// Runs a command to its end.
pub fn run(arguments: &[&str], config: &Path) -> Ended {
    let mut child = command(&[], arguments, config)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let (mut out, mut errors) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = out.read_to_string(&mut text);
        text
    });
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let code = wait(&mut child);
    Ended { code, out: read.join().expect("reads"), errors: errors.join().expect("reads") }
}

/// Waits for the end, within [`PATIENCE`].
fn wait(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("can be waited for") {
            return status.code();
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("did not end within {PATIENCE:?}");
        }
        std::thread::sleep(POLL);
    }
}

/// Asks until the answer is yes, or panics with what `describe` says.
pub fn until(what: &str, mut yes: impl FnMut() -> bool, describe: impl FnOnce() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !yes() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", describe());
        std::thread::sleep(POLL * 4);
    }
}

/// A relay that runs.
pub struct Running {
    child: Child,
    config: PathBuf,
    log: Arc<Mutex<Vec<Value>>>,
    pub smtp: SocketAddr,
    pub http: SocketAddr,
    /// From the start of the process to its 220.
    pub greeted_after: Duration,
}

impl Running {
    /// Starts it and waits for the greeting.
    pub fn start(config: &Path) -> Running {
        Running::start_as(command(&[], &["run"], config), config)
    }

    /// The same under another program, which must become the relay (as `strace -D` does) so that it can be killed.
    pub fn start_under(program: &[&str], config: &Path) -> Running {
        Running::start_as(command(program, &["run"], config), config)
    }

    /// The same with these variables.
    pub fn start_with(config: &Path, variables: &[(&str, &str)]) -> Running {
        let mut command = command(&[], &["run"], config);
        command.envs(variables.iter().copied());
        Running::start_as(command, config)
    }

    fn start_as(mut command: Command, config: &Path) -> Running {
        let began = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, shared) = (BufReader::new(child.stdout.take().expect("piped")).lines(), log.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                shared.lock().expect("nobody panics with it").push(entry);
            }
        });
        let deadline = began + PATIENCE;
        let [smtp, http] = ["smtp", "http"].map(|protocol| {
            loop {
                let found = log.lock().expect("nobody panics with it").iter().find_map(|entry: &Value| {
                    let address = entry.get("address")?.as_str()?.parse().ok()?;
                    (entry["event"] == "relay.listening" && entry["protocol"] == protocol).then_some(address)
                });
                if let Some(address) = found {
                    break address;
                }
                if Instant::now() > deadline {
                    let _ = child.kill();
                    panic!("no listener of {protocol} within {PATIENCE:?}: {:?}", log.lock());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        greeting(smtp);
        Running { child, config: config.to_owned(), log, smtp, http, greeted_after: began.elapsed() }
    }

    /// `mailramp status --json`.
    pub fn status(&self) -> Value {
        self.ask(&["status", "--json"])
    }

    /// The rows of `mailramp queue list --json`.
    pub fn queue(&self) -> Vec<Value> {
        self.ask(&["queue", "list", "--json"])["rows"].as_array().expect("rows").clone()
    }

    fn ask(&self, arguments: &[&str]) -> Value {
        let answer = run(arguments, &self.config);
        assert_eq!(answer.code, Some(0), "{arguments:?}: {answer:?}");
        serde_json::from_str(&answer.out).expect("JSON")
    }

    /// The lines of the log with this event.
    pub fn logged(&self, event: &str) -> Vec<Value> {
        let log = self.log.lock().expect("nobody panics with it");
        log.iter().filter(|entry| entry["event"] == event).cloned().collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("still runs");
        self.child.wait().expect("ends");
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("still runs");
    }

    /// SIGHUP; waits until it is done, and returns whether the new settings are in force.
    pub fn reload(&self) -> bool {
        let done = || (self.logged("config.reloaded").len(), self.logged("config.refused").len());
        let before = done();
        self.signal(rustix::process::Signal::HUP);
        until("the settings are read", || done() != before, || format!("{:#?}", self.logged("config.warning")));
        done().0 > before.0
    }

    /// The value of one series on `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        let mut stream = TcpStream::connect(self.http).expect("listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("can be set");
        let ask = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        std::io::Write::write_all(&mut stream, ask.as_bytes()).expect("is read");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().expect("a number")
    }

    /// Everything it has logged.
    pub fn whole_log(&self) -> String {
        let log = self.log.lock().expect("nobody panics with it");
        log.iter().map(|entry| format!("{entry}\n")).collect()
    }

    /// Waits for the end and returns the exit code.
    pub fn ended(mut self) -> Option<i32> {
        wait(&mut self.child)
    }

    /// SIGTERM, and an orderly end.
    pub fn stop(self) {
        self.terminate();
        assert_eq!(self.ended(), Some(0), "an orderly stop");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects and reads the 220.
pub fn greeting(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("can be set");
    let mut octet = [0; 1];
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        assert_eq!(stream.read(&mut octet).expect("a greeting"), 1, "hung up before the greeting");
        line.extend_from_slice(&octet);
    }
    assert!(line.starts_with(b"220 "), "{}", String::from_utf8_lossy(&line));
    stream
}
