//! What the real binary does when it cannot or should not start: the exit code, the words, and nothing left half done.

#[path = "common/certificate.rs"]
mod certificate;
#[path = "common/process.rs"]
mod process;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use process::{Ended, Running, Settings, run};

const CONFIG: Option<i32> = Some(78);
const DATA_DIR: Option<i32> = Some(73);
const IO: Option<i32> = Some(74);
const BUSY: Option<i32> = Some(75);
const RAMP: &str = "[warmup]\ntarget = 1000\nproviders = \"off\"\n";

/// Next hops that no test here speaks to.
fn nowhere(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn settings(folder: &Path) -> Settings {
    let mut settings = Settings::new(folder, nowhere(9), Some(nowhere(11)));
    settings.warmup = RAMP.into();
    settings
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound")
}

/// `run` with this text as settings; it must end by itself.
fn refused(folder: &Path, text: &str) -> Ended {
    let path = folder.join("mailramp.toml");
    fs::write(&path, text).expect("writes the settings");
    run(&["run"], &path)
}

fn says(ended: &Ended, code: Option<i32>, words: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    for word in words {
        assert!(ended.errors.contains(word), "{word:?} is missing: {ended:?}");
    }
}

/// Line and column of the value of `key = ` in the settings.
fn place(text: &str, key: &str) -> String {
    let (number, line) = text.lines().enumerate().find(|(_, l)| l.starts_with(key)).expect("the key is there");
    format!("mailramp.toml:{}:{}", number + 1, line.find("= ").expect("a value") + 3)
}

#[test]
fn settings_without_the_new_server_end_with_78_and_name_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let text = settings(folder.path()).text().replace("[new]\nhost = \"127.0.0.1:9\"\n", "");
    says(&refused(folder.path(), &text), CONFIG, &["mailramp.toml", "`new.host`", "is missing"]);
    assert!(!folder.path().join("data").exists(), "nothing is made for settings that cannot be used");
}

#[test]
fn a_limit_of_zero_ends_with_78_and_names_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.warmup = "[warmup]\ntarget = 0\n".into();
    let text = settings.text();
    says(&refused(folder.path(), &text), CONFIG, &[&place(&text, "target"), "`warmup.target` = 0"]);
    settings.warmup = "[warmup]\ntarget = 100\ncurve = \"custom\"\ncustom = [0, 10]\n".into();
    let text = settings.text();
    says(&refused(folder.path(), &text), CONFIG, &[&place(&text, "custom"), "`warmup.custom`"]);
}

#[test]
fn a_data_directory_that_is_no_directory_ends_with_73_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data"), "a file").unwrap();
    let mut settings = settings(folder.path());
    says(&refused(folder.path(), &settings.text()), DATA_DIR, &["data", "is not a directory"]);
    settings.data_dir.push("below");
    says(&refused(folder.path(), &settings.text()), DATA_DIR, &["below", "cannot create it"]);
    assert_eq!(fs::read_to_string(folder.path().join("data")).unwrap(), "a file", "it is left alone");
}

#[test]
fn a_database_that_is_none_ends_the_start_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let garbage = "not a database, but somebody's only copy of something\n".repeat(100);
    fs::write(folder.path().join("data/spool.db"), &garbage).unwrap();
    let ended = refused(folder.path(), &settings(folder.path()).text());
    says(&ended, IO, &["the database spool.db is damaged", "keep a copy of the data directory"]);
    assert_eq!(fs::read_to_string(folder.path().join("data/spool.db")).unwrap(), garbage);
}

#[test]
fn a_port_in_use_ends_with_75_and_the_next_start_finds_everything_free() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut settings = settings(folder.path());
    settings.bind = address.clone();
    says(&refused(folder.path(), &settings.text()), BUSY, &[&address, "in use by another program"]);
    // The lock was taken before the port was tried; it must not stay.
    drop(taken);
    let config = settings.save(folder.path());
    let relay = Running::start(&config);
    assert_eq!(relay.smtp.to_string(), address);
    relay.stop();
}

#[test]
fn a_second_process_on_the_same_directory_ends_with_75_and_leaves_the_first_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    let first = Running::start(&settings.save(folder.path()));
    let port = free_port();
    settings.bind = port.to_string();
    let second = refused(folder.path(), &settings.text());
    says(&second, BUSY, &["data", "in use by another mailramp process", "data_dir"]);
    drop(TcpListener::bind(port).expect("the second one holds no port"));
    // The control socket is still that of the first.
    assert_eq!(first.status()["spool"]["accepting"], true);
    drop(process::greeting(first.smtp));
    first.stop();
}

#[test]
fn a_next_hop_that_is_ourselves_ends_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let ourselves = free_port();
    for section in ["new", "legacy"] {
        for host in [ourselves.to_string(), format!("localhost:{}", ourselves.port())] {
            let mut settings = settings(folder.path());
            settings.bind = ourselves.to_string();
            let other = if section == "new" { nowhere(9) } else { nowhere(11) };
            let text = settings.text().replace(&other.to_string(), &host);
            let key = format!("`{section}.host`");
            says(&refused(folder.path(), &text), CONFIG, &["mailramp.toml:", &key, "one of our own listeners"]);
        }
    }
    drop(TcpListener::bind(ourselves).expect("no port is held"));
}

#[test]
fn a_start_in_the_future_without_a_legacy_server_ends_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.legacy = None;
    settings.warmup = format!("{RAMP}start = 2999-01-01\n");
    let text = settings.text();
    says(&refused(folder.path(), &text), CONFIG, &[&place(&text, "start"), "`warmup.start`", "[legacy]"]);
}

#[test]
fn until_a_start_in_the_future_the_limit_is_zero_and_status_says_when_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.warmup = format!("{RAMP}start = 2199-01-01\n");
    let relay = Running::start(&settings.save(folder.path()));
    let status = relay.status();
    assert_eq!(status["warmup"]["state"]["name"], "not-started");
    let starts = status["warmup"]["state"]["starts"].as_str().expect("a time");
    assert!(starts.starts_with("2198-12-31T") || starts.starts_with("2199-01-01T"), "{starts}");
    assert_eq!((&status["warmup"]["limit"], &status["warmup"]["day"]), (&0.into(), &serde_json::Value::Null));
    let screen = run(&["status"], &folder.path().join("mailramp.toml"));
    assert!(screen.out.contains("not started") && screen.out.contains("1 January 2199"), "{screen:?}");
    relay.stop();
}

#[test]
fn an_empty_directory_begins_with_day_one_also_when_the_start_lies_in_the_past() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    for start in ["", "start = 2020-01-01\n"] {
        settings.data_dir = folder.path().join(format!("data{}", start.len()));
        settings.warmup = format!("[warmup]\n{start}target = 1000\nproviders = \"off\"\n");
        let relay = Running::start(&settings.save(folder.path()));
        let status = relay.status();
        assert_eq!((&status["warmup"]["day"], &status["warmup"]["limit"]), (&1.into(), &50.into()), "{start:?}");
        assert_eq!(status["warmup"]["state"]["name"], "ramping");
        relay.stop();
    }
}

#[test]
fn a_next_hop_that_is_our_own_listener_in_disguise_ends_with_78_and_says_how_to_mend_it() {
    let folder = tempfile::tempdir().unwrap();
    let listener = free_port();
    let mut settings = settings(folder.path());
    settings.bind = listener.to_string();
    let ours = format!("[::ffff:127.0.0.1]:{}", listener.port());
    for (section, address) in [("new", nowhere(9)), ("legacy", nowhere(11))] {
        let text = settings.text().replace(&format!("\"{address}\""), &format!("\"{ours}\""));
        let words = [&format!("[{section}] host ")[..], "our own listener", "would go round", "`bind`"];
        says(&refused(folder.path(), &text), CONFIG, &words);
    }
    let text = settings
        .text()
        .replace(&format!("\"{}\"", nowhere(9)), &format!("\"[::ffff:127.0.0.1]:{}\"", free_port().port()));
    fs::write(folder.path().join("mailramp.toml"), text).unwrap();
    Running::start(&folder.path().join("mailramp.toml")).stop();
}

#[test]
fn a_certificate_that_cannot_be_used_ends_the_start_and_the_check_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let (files, other) = (certificate::Files::new(), certificate::Files::new());
    let mut settings = settings(folder.path());
    let mut with = |chain: &Path, key: &Path| {
        settings.smtp = format!("tls = {{ cert = \"{}\", key = \"{}\" }}", chain.display(), key.display());
        settings.text().replace("[[listeners]]", "[[listeners]]\ntls = \"implicit\"")
    };
    let open = folder.path().join("open.pem");
    fs::copy(&files.key, &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let table: [(&Path, &Path, &[&str]); 4] = [
        (&files.chain, &other.key, &["`smtp.tls.key`", "the PEM key of the certificate"]),
        (&files.key, &files.key, &["`smtp.tls.cert`", "no certificate in it"]),
        (&files.chain, &open, &["`smtp.tls.key`", "mode 644", "chmod 600"]),
        (&files.chain, Path::new("none.pem"), &["mailramp.toml:", "`smtp.tls.key` = \"none.pem\"", "No such file"]),
    ];
    for (chain, key, words) in table {
        says(&refused(folder.path(), &with(chain, key)), CONFIG, words);
        let checked = run(&["config", "check"], &folder.path().join("mailramp.toml"));
        assert_eq!(checked.code, CONFIG, "{checked:?}");
        assert!(words.iter().all(|word| checked.out.contains(word)), "{words:?}: {checked:?}");
    }
    assert!(!folder.path().join("data").exists(), "nothing is made for settings that cannot be used");
}
