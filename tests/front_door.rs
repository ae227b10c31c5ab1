//! The real binary's front door: its certificate and SIGHUP, several listeners, and a process without descriptors.

#[path = "common/certificate.rs"]
mod certificate;
#[path = "common/process.rs"]
mod process;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use certificate::Files;
use process::{PATIENCE, Running, Settings};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::CertificateDer;

type Secured = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// A plain listener, one with implicit TLS, and the certificate for it.
fn settings(folder: &std::path::Path, files: &Files) -> Settings {
    let mut settings = Settings::new(folder, SocketAddr::from(([192, 0, 2, 1], 25)), None);
    let (chain, key) = (files.chain.display(), files.key.display());
    settings.smtp = format!("tls = {{ cert = \"{chain}\", key = \"{key}\" }}");
    settings.warmup =
        "[[listeners]]\nbind = \"127.0.0.1:0\"\nallow_from = [\"127.0.0.0/8\"]\ntls = \"implicit\"\n".into();
    settings
}

fn start(files: &Files) -> (Running, SocketAddr, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let relay = Running::start(&settings(folder.path(), files).save(folder.path()));
    let listening = relay.logged("relay.listening");
    let addresses: Vec<SocketAddr> = listening
        .iter()
        .filter(|entry| entry["protocol"] == "smtp")
        .map(|entry| entry["address"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!((addresses.len(), addresses[0]), (2, relay.smtp));
    (relay, addresses[1], folder)
}

/// Through the handshake and the greeting, with a certificate that is verified.
fn secured(address: SocketAddr, files: &Files) -> Secured {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = files.config(rustls::ALL_VERSIONS);
    let client = ClientConnection::new(config, "relay.example".try_into().unwrap()).unwrap();
    let mut stream = BufReader::new(StreamOwned::new(client, socket));
    assert_eq!(line(&mut stream), "220 relay.example ESMTP mailramp\r\n");
    stream
}

fn shown(stream: &Secured) -> CertificateDer<'static> {
    stream.get_ref().conn.peer_certificates().unwrap()[0].clone().into_owned()
}

fn line(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a line in time");
    line
}

fn noop(stream: &mut Secured) {
    stream.get_mut().write_all(b"NOOP\r\n").unwrap();
    assert_eq!(line(stream), "250 2.0.0 Ok\r\n");
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What the relay's HTTP server answers, head and all.
fn page(relay: &Running, path: &str) -> String {
    let mut stream = TcpStream::connect(relay.http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn hang_up(relay: &Running) {
    let pid = Pid::from_raw(i32::try_from(relay.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
}

#[test]
fn sighup_exchanges_the_certificate_and_a_bad_one_changes_nothing() {
    let files = Files::new();
    let (relay, address, _folder) = start(&files);
    let mut old = secured(address, &files);
    let first = shown(&old);
    assert!(relay.logged("tls.expiring").is_empty());

    files.renew_for_days(3);
    hang_up(&relay);
    until("the exchange", || relay.logged("config.reloaded").len() == 1);
    assert_eq!(relay.logged("tls.expiring")[0]["days_left"], 3);
    let mut new = secured(address, &files);
    assert_ne!(shown(&new), first);
    noop(&mut old);

    let good = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, "no key").unwrap();
    hang_up(&relay);
    until("the refusal", || relay.logged("config.refused").len() == 1);
    let reason = relay.logged("config.refused")[0]["reason"].to_string();
    assert!(reason.contains("`smtp.tls.key`"), "{reason}");
    assert!(page(&relay, "/metrics").contains("mailramp_config_last_reload_successful 0\n"));
    std::fs::write(&files.key, good).unwrap();
    assert_eq!(shown(&secured(address, &files)), shown(&new), "the last good one stays in use");
    noop(&mut old);
    noop(&mut new);
    hang_up(&relay);
    until("the second exchange", || relay.logged("config.reloaded").len() == 2);
    until("the metric", || page(&relay, "/metrics").contains("mailramp_config_last_reload_successful 1\n"));
    relay.stop();
}

#[test]
fn a_relay_with_an_implicit_listener_is_ready_and_its_own_probes_are_no_rejections() {
    let files = Files::new();
    let (relay, _, _folder) = start(&files);
    for _ in 0..2 {
        let answer = page(&relay, "/readyz");
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
    assert!(relay.logged("smtp.rejected").is_empty(), "{:?}", relay.logged("smtp.rejected"));
    relay.stop();
}

/// Processor time used so far, in hundredths of a second.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn without_descriptors_the_open_sessions_go_on_and_who_waits_is_served_as_soon_as_one_is_free() {
    let files = Files::new();
    let (relay, _, _folder) = start(&files);
    let mut open: Vec<TcpStream> = (0..3).map(|_| process::greeting(relay.smtp)).collect();
    let used = std::fs::read_dir(format!("/proc/{}/fd", relay.pid())).unwrap().count() as u64;
    let pid = Pid::from_raw(i32::try_from(relay.pid()).unwrap());
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // The hard limit is inherited and stays what it is; the relay had raised its soft one to it.
    let few = Rlimit { current: Some(used + 2), maximum: limit.maximum };
    let before = rustix::process::prlimit(pid, Resource::Nofile, few).unwrap();
    assert!(before.current.unwrap_or(u64::MAX) > used + 2);

    // Some of these find a descriptor, the others wait in the backlog.
    let mut waiting: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(relay.smtp).unwrap()).collect();
    until("accept fails", || relay.logged("smtp.accept_failed").len() == 1);
    let last = waiting.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let (began, used_ticks) = (Instant::now(), ticks(relay.pid()));
    let nothing = last.read(&mut [0]);
    assert!(nothing.is_err(), "the last one must still wait: {nothing:?}");
    let (passed, used_ticks) = (began.elapsed(), ticks(relay.pid()) - used_ticks);
    // A loop without a pause would use all of a processor: a hundred of these a second.
    assert!(used_ticks < 15, "{used_ticks} ticks within {passed:?}");
    for stream in &mut open {
        stream.write_all(b"NOOP\r\n").unwrap();
        assert_eq!(line(&mut BufReader::new(stream)), "250 2.0.0 Ok\r\n");
    }

    drop(open);
    waiting.truncate(0);
    let mut served = process::greeting(relay.smtp);
    served.write_all(b"QUIT\r\n").unwrap();
    assert_eq!(line(&mut BufReader::new(&served)), "221 2.0.0 Bye\r\n");
    assert_eq!(relay.logged("smtp.accept_failed").len(), 1, "one line for the whole time");
    relay.stop();
}

#[test]
fn garbage_on_the_tls_port_is_logged_with_its_listener_and_counted() {
    let files = Files::new();
    let (relay, address, _folder) = start(&files);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"EHLO in.clear\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    until("the line", || relay.logged("smtp.rejected").len() == 1);
    let entry = &relay.logged("smtp.rejected")[0];
    assert_eq!((&entry["reason"], &entry["listener"]), (&"tls".into(), &1.into()), "{entry}");
    assert_eq!(entry["client"], "127.0.0.1");
    relay.stop();
}
