//! The settings as an operator meets them: the samples load, the documented defaults are the coded ones, and
//! everything that is wrong is said at once, with file, line, key, value and remedy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mailramp::cli::config as command;
use mailramp::config::{
    CurveName, EXIT_CONFIG, Loaded, MaxWait, Origin, OverflowPolicy, Settings, StreamRoute, TlsLevel, Window,
};
use mailramp::message::Timestamp;
use mailramp::policy::{Lanes, Provider};
use secrecy::ExposeSecret;

/// Files in conf/ that are no settings; the program is made with them and tests of its own read them.
const RULES: [&str; 3] = ["curves.toml", "providers.toml", "signals.toml"];
const NEW: &str = "[new]\nhost = \"mail2.example.com\"\n";

fn load(text: &str) -> Loaded {
    Settings::from_toml(text, "test.toml").unwrap_or_else(|faults| panic!("refused:\n{faults}\n{text}"))
}

fn faults(text: &str) -> Vec<String> {
    match Settings::from_toml(text, "test.toml") {
        Ok(_) => Vec::new(),
        Err(faults) => faults.to_string().lines().map(str::to_owned).collect(),
    }
}

fn samples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let files = fs::read_dir(folder).expect("conf/ is there").map(|entry| entry.expect("conf/ can be listed").path());
    let is_rules = |path: &PathBuf| RULES.iter().any(|name| path.ends_with(name));
    files.filter(|path| path.extension().is_some_and(|ending| ending == "toml") && !is_rules(path)).collect()
}

/// A folder with the settings in `mailramp.toml` and a secret file beside it that others cannot read.
fn folder(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mailramp.toml");
    fs::write(&path, text).expect("the settings can be written");
    write_secret(&folder.path().join("new.pass"), "0123\n", 0o600);
    (folder, path)
}

fn write_secret(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("the secret can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode can be set");
}

fn environment(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> + use<> {
    variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<Vec<_>>().into_iter()
}

#[test]
fn every_sample_loads() {
    assert!(samples().len() >= 2);
    for sample in samples() {
        let (_folder, path) = folder(&fs::read_to_string(&sample).expect("a sample can be read"));
        if let Err(faults) = Settings::load(&path, std::iter::empty()) {
            panic!("{}:\n{faults}", sample.display());
        }
    }
}

#[test]
fn documented_defaults_equal_coded_ones() {
    const EXAMPLES: [&str; 3] = ["new.host", "legacy.host", "warmup.target"];
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/mailramp.toml")).expect("a sample");
    let documented = load(&text);
    let coded = load("new = { host = 'a' }\nlegacy = { host = 'b' }\nwarmup = { target = 1 }");
    let keys = |loaded: &Loaded| {
        let mut shown = Vec::new();
        loaded.show(&mut shown, false).expect("a vector takes everything");
        String::from_utf8(shown).expect("UTF-8").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let is_example = |line: &&String| EXAMPLES.iter().any(|key| line.starts_with(&format!("{key} =")));
    let without_examples =
        |lines: Vec<String>| lines.iter().filter(|line| !is_example(line)).cloned().collect::<Vec<_>>();
    assert_eq!(without_examples(keys(&documented)), without_examples(keys(&coded)));

    for line in keys(&coded) {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        let key = if ["bind", "allow_from", "tls", "auth", "auth_clear", "stream", "stream_header"].contains(&key) {
            format!("listeners[0].{key}")
        } else {
            key.to_owned()
        };
        assert!(matches!(documented.origin(&key), Some(Origin::File { .. })), "conf/mailramp.toml does not say {key}");
    }
    assert!(text.contains("# start = 2026-03-02"), "a key without a default is shown in a comment");
}

#[test]
fn the_smallest_file_gets_the_documented_values() {
    let settings = load(NEW).settings;
    assert_eq!(settings.data_dir, Path::new("data"));
    assert_eq!(settings.smtp.limits.message, 25_000_000);
    assert_eq!(settings.smtp.limits.headers, 256 << 10);
    assert_eq!(settings.smtp.timeouts.data_rate, 500);
    assert!(!settings.smtp.hostname.is_empty());
    assert_eq!(settings.listeners.len(), 1);
    assert_eq!(settings.listeners[0].bind, ["127.0.0.1:2525".parse().expect("an address")]);
    assert_eq!(settings.listeners[0].allow_from.len(), 2);
    assert_eq!(settings.new.hosts[0].to_string(), "mail2.example.com:25");
    assert_eq!(settings.new.helo, settings.smtp.hostname);
    assert_eq!(settings.new.tls.level, TlsLevel::May);
    assert_eq!(settings.new.connections, 20);
    assert!(settings.legacy.is_none() && settings.warmup.is_none());
    assert_eq!(settings.queue.retry.first(), Some(&Duration::from_secs(60)));
    assert_eq!(settings.queue.jitter, 0.1);
}

#[test]
fn the_minimal_sample_becomes_typed_settings() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/minimal.toml")).expect("a sample");
    let (_folder, path) = folder(&text);
    let settings = Settings::load(&path, std::iter::empty()).expect("the sample is right").settings;
    let credentials = settings.new.credentials.as_ref().expect("a login");
    assert_eq!((credentials.user.as_str(), credentials.password.expose_secret()), ("relay", "0123"));
    assert_eq!(settings.new.tls.level, TlsLevel::Verify);
    let warmup = settings.warmup.expect("a ramp");
    assert_eq!(warmup.start, Some(jiff::civil::date(2026, 3, 2)));
    assert_eq!((warmup.curve, warmup.target, warmup.growth), (CurveName::Named("standard".to_owned()), 12_000, 1.5));
    assert_eq!((warmup.providers, warmup.overflow.policy), (Lanes::Auto, OverflowPolicy::HoldThenLegacy));
    assert_eq!(warmup.pace.window, Window { opens_minute: 0, closes_minute: 1440 });
    assert_eq!((warmup.pace.hourly, warmup.pace.burst, warmup.pace.is_off()), (0.2, 0.02, false));
    assert_eq!(settings.data_dir, path.parent().expect("a folder").join("data"));
    assert!(!format!("{:?}", settings.new).contains("0123"), "a password is not printed by accident");
}

#[test]
fn one_server_for_both_routes_and_a_ramp_without_pace_are_legal() {
    let loaded = load(
        r#"
        data_dir = "/var/tmp/x/data"
        http = { bind = "127.0.0.1:9001" }
        [smtp]
        limits = { connections = 20000, per_ip = 20000 }
        [[listeners]]
        bind = "127.0.0.1:9000"
        allow_from = ["127.0.0.0/8"]
        [new]
        host = "127.0.0.1:9002"
        connections = 100
        [queue]
        disk = { max = "100GB", min_free = "100MB" }
        [legacy]
        host = "127.0.0.1:9002"
        [warmup]
        start = 2026-01-01
        curve = "custom"
        custom = [1000000000]
        target = 1000000000
        providers = "off"
        pace = { window = "00:00-24:00", hourly = "100%", burst = "100%" }
        "#,
    );
    assert!(loaded.settings.warmup.expect("a ramp").pace.is_off());
    assert!(loaded.warnings.iter().any(|warning| warning.contains("same server")), "{:?}", loaded.warnings);
}

#[test]
fn without_legacy_the_default_overflow_means_hold() {
    let warmup = load(&format!("{NEW}[warmup]\ntarget = 10")).settings.warmup.expect("a ramp");
    assert_eq!(warmup.overflow.policy, OverflowPolicy::Hold);
}

#[test]
fn without_warmup_a_warning_says_that_nothing_is_limited() {
    assert!(load(NEW).warnings.iter().any(|warning| warning.contains("nothing is limited")));
}

/// Below `[new]` in lines 1 and 2. Each: what follows, line, and words that must appear in its only fault.
const BROKEN: &[(&str, usize, &[&str])] = &[
    // Not well-formed.
    ("[warmup]\ntarget = 1\ngrowht = 2.0", 5, &["unknown key `warmup.growht`", "did you mean `growth`?"]),
    ("[warmup]\ntarket = 5", 4, &["unknown key `warmup.tarket`", "did you mean `target`?"]),
    ("[colour]\nx = 1", 3, &["unknown key `colour`", "remove it"]),
    ("[preflight]\ngate = 'warn'", 3, &["`preflight` does not work in this version yet"]),
    ("[dns]\nservers = ['ns.example']", 4, &["`dns.servers`", "an IP address in quotes"]),
    ("[queue]\nfallback_on = ['dns']", 4, &["`queue.fallback_on`", "must be one of \"connect\", \"tls\""]),
    ("[queue.dsn]\ndelay_notice = '4'", 4, &["`queue.dsn.delay_notice`", "\"off\", or a time"]),
    ("[queue.dsn]\ndelay_notice = '9d'", 4, &["`queue.dsn.delay_notice`", "less than `queue.max_age`, \"5d\""]),
    ("[new.tls]\n[queue.dsn]\nper_sender_per_hour = 0", 5, &["`queue.dsn.per_sender_per_hour`", "from 1"]),
    ("[warmup]\ntarget = 50.7", 4, &["`warmup.target` = 50.7", "must be a whole number"]),
    ("[warmup]\ntarget = \"50\"", 4, &["`warmup.target` = \"50\"", "without quotes"]),
    ("[warmup]\ntarget = -5", 4, &["`warmup.target` = -5", "must be a whole number, 0 or more"]),
    ("[warmup]\ntarget = 99999999999999999999", 4, &["`warmup.target` = 99999999999999999999", "whole number"]),
    ("[warmup]\ntarget = 5\nstart = 2026-03-02T10:00:00", 5, &["`warmup.start`", "a date such as 2026-03-02"]),
    ("[warmup]\ntarget = 5\ngrowth = nan", 5, &["`warmup.growth` = nan", "must be a number"]),
    ("[warmup]\ntarget = 5\npace = { window = '20:00-08:00' }", 5, &["`warmup.pace.window`", "08:00-20:00"]),
    (
        "[warmup]\ntarget = 5\npace = { window = '08:00-08:00' }",
        5,
        &["`warmup.pace.window`", "such as \"08:00-20:00\""],
    ),
    (
        "[warmup]\ntarget = 5\nproviders = 'on'",
        5,
        &["`warmup.providers` = 'on'", "must be \"auto\", \"off\", or shares"],
    ),
    (
        "[warmup]\ntarget = 5\nproviders = { gogle = '5%' }",
        5,
        &["{ gogle = '5%' }", "must name only google, ", "not gogle"],
    ),
    ("[warmup]\ntarget = 5\nproviders = { google = 0.4 }", 5, &["`warmup.providers`", "\"20%\", for google"]),
    (
        "[warmup]\ntarget = 5\nproviders = { google = '0%' }",
        5,
        &["`warmup.providers`", "above \"0%\"; leave google out"],
    ),
    ("[warmup]\ntarget = 5\nproviders = {}", 5, &["`warmup.providers` = {}", "must name at least one provider"]),
    (
        "[warmup]\ntarget = 5\nproviders = { google = '60%', microsoft = '40.5%' }",
        5,
        &["`warmup.providers`", "must add up to at most 100 %, not 100.5 %; lower one"],
    ),
    (
        "[warmup]\ntarget = 5\nproviders = { google = '60%', microsoft = '40%' }",
        5,
        &["`warmup.providers`", "must leave a part for all others", "or name other"],
    ),
    (
        "[warmup]\ntarget = 5\nproviders_file = 'none/such.toml'",
        5,
        &["`warmup.providers_file`", "a file of providers", "No such file"],
    ),
    (
        "[warmup]\ntarget = 5\noverflow = { max_wait = 'oft' }",
        5,
        &["`warmup.overflow.max_wait`", "must be \"auto\", or a time"],
    ),
    ("[queue]\nmax_age = 5", 4, &["`queue.max_age` = 5", "must be a time in quotes"]),
    ("[queue]\nretry = ['1m', '5']", 4, &["`queue.retry`", "item 2 (\"5\") must be a time"]),
    ("[queue]\ndisk = '20GB'", 4, &["`queue.disk` = '20GB'", "must be a table"]),
    ("[smtp]\nlimits = { message = '25' }", 4, &["`smtp.limits.message` = '25'", "such as \"25MB\""]),
    ("[smtp]\nhostname = 'a b'", 4, &["`smtp.hostname` = 'a b'", "must be a host name"]),
    ("[log]\nformat = 'xml'", 4, &["`log.format` = 'xml'", "must be one of \"auto\", \"json\""]),
    ("[[listeners]]\nbind = 'localhost:25'\nallow_from = ['::1']", 4, &["`listeners[0].bind`", "IP address and port"]),
    (
        "[[listeners]]\nbind = '127.0.0.1:25'\nallow_from = ['10.0.0.1/8']",
        5,
        &["`listeners[0].allow_from`", "host bits"],
    ),
    ("[[listeners]]\nbind = '127.0.0.1:25'\nalow_from = ['::1']", 5, &["`listeners[0].alow_from`", "`allow_from`"]),
    (
        "[[listeners]]\nbind = '127.0.0.1:25'\nallow_from = ['::1']\ntls = 'starttls'",
        6,
        &["`listeners[0].tls` = \"starttls\"", "set `smtp.tls.cert` and `smtp.tls.key`"],
    ),
    (
        "[[listeners]]\nbind = '127.0.0.1:25'\nallow_from = ['::1']\ntls = 'on'",
        6,
        &["tls`", "one of \"off\", \"starttls\", \"implicit\""],
    ),
    (
        "[[listeners]]\nbind = '127.0.0.1:25'\nauth = 'required'\nauth_clear = true",
        5,
        &["`listeners[0].auth` = \"required\"", "set `smtp.users.file`"],
    ),
    (
        "[[listeners]]\nbind = '127.0.0.1:25'\nallow_from = ['::1']\nauth_clear = true",
        6,
        &["`listeners[0].auth_clear` = true", "when `auth` is \"off\""],
    ),
    ("[smtp.tls]\ncert = '/dev/null'", 3, &["`smtp.tls.key`", "when `smtp.tls.cert` is"]),
    ("[smtp]\ntimeouts = { handshake = '2h' }", 4, &["`smtp.timeouts.handshake` = \"2h\"", "from \"1s\" to \"1h\""]),
    ("[listeners]\nbind = '127.0.0.1:25'", 3, &["`listeners`", "[[listeners]]"]),
    ("[queue]\nretry = ['1m', '2m', '3m', '4m', '5m', '6m', '7m', '8m', '9m', '10m', 5]", 4, &["…: item 11 (5)"]),
    ("x = [1", 3, &["not TOML"]),
    // Well-formed, and impossible or unsafe.
    ("[legacy]\nhelo = 'a'", 3, &["`legacy.host` is missing", "must name a server"]),
    ("[legacy]\nhost = []", 4, &["`legacy.host` = []", "must name a server"]),
    ("[warmup]\ncurve = 'standard'", 3, &["`warmup.target` is missing", "such as 12000"]),
    ("[warmup]\ntarget = 0", 4, &["`warmup.target` = 0", "such as 12000"]),
    ("[warmup]\ntarget = 5\ncurve = 'custom'", 3, &["`warmup.custom` = []", "such as [50, 100, 200]"]),
    ("[warmup]\ntarget = 5\ncurve = 'custom'\ncustom = [5, 0, 9]\n", 6, &["`warmup.custom` = [5, 0, 9]", "not 0"]),
    ("[warmup]\ntarget = 5\ncurve = 'custom'\ncustom = [5, 4]", 6, &["`warmup.custom`", "4 comes after 5"]),
    ("[warmup]\ntarget = 5\ncurve = 5", 5, &["`warmup.curve` = 5", "the name of a curve"]),
    (
        "[warmup]\ntarget = 5\ncurve = 'steep'",
        5,
        &["`warmup.curve` = \"steep\": must be one of gentle, standard, fast,"],
    ),
    (
        "[warmup]\ntarget = 5\ncurve = 'onesignl'",
        5,
        &["did you mean \"onesignal\"? It must be one of gentle,", ", custom"],
    ),
    (
        "[warmup]\ntarget = 5\ncurves_file = 'none/such.toml'",
        5,
        &["`warmup.curves_file`", "a file of curves", "No such file"],
    ),
    (
        "[warmup]\ntarget = 5\nsignals_file = 'none/such.toml'",
        5,
        &["`warmup.signals_file`", "a file of rules for replies", "No such file"],
    ),
    ("[warmup]\ntarget = 5\nbrake = { window = '59s' }", 5, &["`warmup.brake.window`", "from \"1m\" to \"1d\""]),
    ("[warmup]\ntarget = 5\nbrake = { defer_ratio = '0%' }", 5, &["`warmup.brake.defer_ratio`", "above \"0%\""]),
    ("[warmup]\ntarget = 5\nbrake = { min_attempts = 0 }", 5, &["`warmup.brake.min_attempts` = 0", "from 1 to"]),
    ("[warmup]\ntarget = 5\nbrake = { hold = '8d' }", 5, &["`warmup.brake.hold` = \"8d\"", "to \"7d\""]),
    ("[warmup]\ntarget = 5\nbrake = { next_day = 'on' }", 5, &["`warmup.brake.next_day`", "\"repeat\", \"step-back\""]),
    ("[warmup]\ntarget = 5\ncustom = [5]", 5, &["`warmup.custom` = [5]", "the curve be \"custom\""]),
    ("[warmup]\ntarget = 5\nfirst_day = 0", 5, &["`warmup.first_day` = 0", "must be from 1"]),
    ("[warmup]\ntarget = 5\ngrowth = 0.9", 5, &["`warmup.growth` = 0.9", "must be from 1 to 10"]),
    ("[warmup]\ntarget = 5\nmax_step = 0.5", 5, &["`warmup.max_step` = 0.5", "above 1"]),
    ("[warmup]\ntarget = 5\nadvance = { min_used = '0%' }", 5, &["`warmup.advance.min_used`", "calendar"]),
    ("[warmup]\ntarget = 5\npace = { hourly = '4%' }", 5, &["`warmup.pace.hourly` = \"4%\"", "at least \"4.6%\""]),
    ("[warmup]\ntarget = 5\npace = { window = '08:00-09:00' }", 5, &["`warmup.pace.hourly`", "widen the window"]),
    ("[warmup]\ntarget = 5\npace = { burst = '30%' }", 5, &["`warmup.pace.burst` = \"30%\"", "\"20%\""]),
    ("[warmup]\ntarget = 5\noverflow = { policy = 'legacy' }", 5, &["`warmup.overflow.policy`", "\"hold\""]),
    (
        "[warmup]\ntarget = 5\noverflow = { max_wait = '0s' }",
        5,
        &["`warmup.overflow.max_wait`", "from \"1s\" to \"7d\""],
    ),
    ("[warmup]\ntarget = 5\nstart = 2199-01-01", 5, &["`warmup.start` = 2199-01-01", "without [legacy]"]),
    ("[queue]\nretry = []", 4, &["`queue.retry` = []", "must hold 1 to 100 delays"]),
    ("[queue]\ndisk = { max = '1MB' }", 4, &["`queue.disk.max` = \"1MB\"", "at least `smtp.limits.message`, \"25MB\""]),
    ("[queue]\ndisk = { min_free = '0B' }", 4, &["`queue.disk.min_free`", "from \"1MiB\""]),
    ("[smtp]\nlimits = { recipients = 50 }", 4, &["`smtp.limits.recipients` = 50", "from 100 to 100000"]),
    ("[smtp]\nlimits = { connections = 0 }", 4, &["`smtp.limits.connections` = 0", "from 1"]),
    ("[smtp]\nlimits = { message = '1KiB' }", 4, &["`smtp.limits.message` = \"1KiB\"", "from \"64KiB\" to \"4GiB\""]),
    ("[smtp]\ntimeouts = { idle = '0s' }", 4, &["`smtp.timeouts.idle` = \"0s\"", "from \"1s\" to \"1h\""]),
    ("[http]\nbind = '0.0.0.0:8825'", 4, &["`http.bind` = \"0.0.0.0:8825\"", "must be a loopback address"]),
    ("[[listeners]]\nbind = '0.0.0.0:25'", 3, &["`listeners[0].allow_from` = []", "must name the networks"]),
    ("[[listeners]]\nallow_from = ['::1']", 3, &["`listeners[0].bind` is missing", "127.0.0.1:2525"]),
    ("[[listeners]]\nbind = '0.0.0.0:25'\nallow_from = ['0.0.0.0/0']", 5, &["`listeners[0].allow_from`", "open relay"]),
    ("[[listeners]]\nbind = '[::]:25'\nallow_from = ['::/0']", 5, &["`listeners[0].allow_from`", "open relay"]),
    ("[[listeners]]\nbind = '[::]:25'\nallow_from = ['::ffff:0:0/96']", 5, &["allow_from", "open relay"]),
    ("[[listeners]]\nbind = '[::]:25'\nallow_from = ['::/80']", 5, &["allow_from", "open relay"]),
    ("[[listeners]]\nbind = '127.0.0.1:8825'\nallow_from = ['::1']", 4, &["`listeners[0].bind`", "`http.bind` has it"]),
    ("[[listeners]]\nbind = ['127.0.0.1:25', '127.0.0.1:25']\nallow_from = ['::1']", 4, &["again"]),
    ("[legacy]\nhost = 'localhost:2525'", 4, &["`legacy.host`", "one of our own listeners"]),
    (
        "[legacy]\nhost = 'a'\ntls = { level = 'off', implicit = true }",
        5,
        &["`legacy.tls.implicit` = true", "must be false"],
    ),
    (
        "[legacy]\nhost = 'a'\nauth = { user = 'x' }",
        5,
        &["`legacy.auth.user` = \"x\"", "set `legacy.auth.password_file`"],
    ),
    ("[legacy]\nhost = 'a'\nauth = { password = 'x' }", 5, &["`legacy.auth.user` = \"\"", "must name the user"]),
    (
        "[legacy]\nhost = 'a'\nauth = { user = 'x', password = 'y' }\ntls = { level = 'may' }",
        6,
        &["`legacy.tls.level` = \"may\"", "verified TLS only"],
    ),
    ("[legacy]\nhost = '192.0.2.1'\nsource_ip = '::1'", 5, &["`legacy.source_ip` = \"::1\"", "IPv4 or IPv6"]),
    ("[legacy]\nhost = 'a'\ntls = { ca_file = '/none.pem' }", 5, &["`legacy.tls.ca_file`", "PEM", "/none.pem"]),
];

#[test]
fn each_fault_names_file_line_key_value_and_remedy() {
    for (text, line, words) in BROKEN {
        let found = faults(&format!("{NEW}{text}"));
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        assert!(found[0].starts_with(&format!("test.toml:{line}:")), "line {line}: {}", found[0]);
        for word in *words {
            assert!(found[0].contains(word), "{word:?} is not in: {}", found[0]);
        }
    }
}

#[test]
fn faults_at_the_top_of_the_file_are_found_too() {
    for (text, words) in [
        ("", "test.toml  `new.host` is missing: must name a server"),
        ("data_dir = ''\nnew = { host = 'a' }", "test.toml:1:12  `data_dir` = \"\": must name a directory"),
        (
            "timezone = 'Mars/Base'\nnew = { host = 'a' }",
            "test.toml:1:12  `timezone` = 'Mars/Base': must be an IANA time zone",
        ),
        (
            "hostname = 'a'\nnew = { host = 'a' }",
            "test.toml:1:1  unknown key `hostname`, did you mean `smtp.hostname`?",
        ),
        (
            "new = { host = '127.0.0.1:2525' }",
            "test.toml:1:16  `new.host` = \"127.0.0.1:2525\": must not be one of our own",
        ),
        ("[nwe]\nhost = 'a'", "test.toml:1:2  unknown key `nwe`, did you mean `new`?"),
    ] {
        let found = faults(text);
        assert!(found.len() == 1 && found[0].starts_with(words), "{found:#?}");
    }
}

#[test]
fn a_missing_section_is_reported_beside_an_unknown_one() {
    let found = faults("[colour]\nx = 1");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("`colour`") && found[1].contains("`new.host` is missing"), "{found:#?}");
}

#[test]
fn listeners_with_tls_and_login_name_their_files_and_keep_passwords_off_the_network() {
    let listener = |text: &str| {
        let text = format!("{NEW}[smtp]\n{text}");
        let (folder, path) = folder(&text);
        write_secret(&folder.path().join("chain.pem"), "a chain", 0o644);
        write_secret(&folder.path().join("key.pem"), "a key", 0o600);
        write_secret(&folder.path().join("users"), "", 0o600);
        (Settings::load(&path, std::iter::empty()), folder)
    };
    let files = "tls = { cert = 'chain.pem', key = 'key.pem' }\nusers = { file = 'users' }\n";
    let (loaded, folder) = listener(&format!(
        "{files}[[listeners]]\nbind = ['0.0.0.0:587', '[::]:587']\ntls = 'starttls'\nauth = 'required'\n\
         [[listeners]]\nbind = '127.0.0.1:25'\nauth = 'optional'\nauth_clear = true"
    ));
    let settings = loaded.expect("this is right").settings;
    assert_eq!(settings.listeners[0].bind.len(), 2);
    assert!(!settings.listeners[0].auth_clear && settings.listeners[1].auth_clear);
    let (chain, key) = settings.tls_files().expect("a listener has TLS");
    assert_eq!((chain, key), (&*folder.path().join("chain.pem"), &*folder.path().join("key.pem")));

    let table: [(&str, &str, &str); 8] = [
        ("tls = { key = 'key.pem' }\n", "", "`smtp.tls.cert` = \"\": must be set"),
        ("tls = { cert = 'none.pem', key = 'key.pem' }\n", "", "`smtp.tls.cert` = \"none.pem\": must be a PEM file"),
        ("tls = { cert = 'chain.pem', key = 'chain.pem' }\n", "", "mode 644; chmod 600"),
        ("users = { file = 'users' }\n", "tls = 'implicit'", "set `smtp.tls.cert` and `smtp.tls.key`"),
        (&files[..46], "tls = 'implicit'\nauth = 'required'", "must be \"off\" without users; set `smtp.users.file`"),
        (files, "auth = 'required'", "must be \"starttls\" or \"implicit\" when there is a login"),
        (files, "auth = 'optional'\nauth_clear = true", "passwords would cross a network in clear by 10.0.0.1:25"),
        (files, "tls = 'starttls'\nauth = 'required'\nauth_clear = true", "passwords would cross a network in clear"),
    ];
    for (smtp, keys, words) in table {
        let text = format!("{smtp}[[listeners]]\nbind = '10.0.0.1:25'\nallow_from = ['::1']\n{keys}");
        let faults = listener(&text).0.expect_err(&text).to_string();
        assert_eq!(faults.lines().count(), 1, "{text}\n{faults}");
        assert!(faults.contains(words), "{words:?} is not in: {faults}");
    }
}

#[test]
fn a_wildcard_listener_is_recognised_as_ourselves() {
    let text = "[[listeners]]\nbind = ['0.0.0.0:25', '[::]:25']\nallow_from = ['10.0.0.0/8']\n[new]\nhost = 'HOST'\n";
    for ourselves in ["127.0.0.1", "localhost", "[::1]:25", "0.0.0.0"] {
        assert!(faults(&text.replace("HOST", ourselves))[0].contains("`new.host`"), "{ourselves}");
    }
    assert_eq!(faults(&text.replace("HOST", "192.0.2.1")), [""; 0]);
    assert_eq!(faults(&text.replace("HOST", "127.0.0.1:26")), [""; 0]);
}

#[test]
fn a_start_in_the_future_is_legal_with_a_legacy_server() {
    load(&format!("{NEW}[legacy]\nhost = 'b'\n[warmup]\nstart = 2199-01-01\ntarget = 5"));
}

#[test]
fn the_start_is_judged_by_the_day_in_the_configured_zone() {
    let (_folder, path) = folder(&format!("timezone = 'Asia/Tokyo'\n{NEW}[warmup]\nstart = 2026-03-02\ntarget = 5"));
    let evening_before_in_utc = Timestamp::from_seconds(1_772_380_800); // 2026-03-01T16:00Z, 2026-03-02T01:00 in Tokyo
    assert!(Settings::load_at(&path, std::iter::empty(), evening_before_in_utc).is_ok());
    let earlier = Timestamp::from_seconds(1_772_380_800 - 2 * 3600);
    assert!(Settings::load_at(&path, std::iter::empty(), earlier).is_err());
}

#[test]
fn all_faults_of_a_file_are_reported_at_once_in_its_order() {
    let text = r#"
colour = "red"
[new]
host = 25
[smtp]
limits = { recipients = 50.7, errors = "20", per_ip = 0 }
[warmup]
tarket = 5
growth = 0.5
pace = { burst = "50%" }
[queue]
retry = []
"#;
    let found = faults(text);
    let expected = [
        "test.toml:2:1  unknown key `colour`",
        "test.toml:4:8  `new.host` = 25",
        "test.toml:6:25  `smtp.limits.recipients` = 50.7",
        "test.toml:6:40  `smtp.limits.errors` = \"20\"",
        "test.toml:6:55  `smtp.limits.per_ip` = 0",
        "test.toml:8:1  unknown key `warmup.tarket`, did you mean `target`?",
        "test.toml:9:10  `warmup.growth` = 0.5",
        "test.toml:10:18  `warmup.pace.burst` = \"50%\"",
        "test.toml:12:9  `queue.retry` = []",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\nshould start with\n{expected}");
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let (_folder, path) = folder(&format!("{NEW}[smtp]\nhostname = 'file.example'\nlimits = {{ errors = 5 }}"));
    let variables = [
        ("MAILRAMP__SMTP__HOSTNAME", "env.example"),
        ("MAILRAMP__SMTP__LIMITS__RECIPIENTS", "500"),
        ("MAILRAMP__SMTP__NORMALIZE_FROM", "10.0.0.0/8, ::1"),
        ("MAILRAMP__NEW__HOST", "a.example:587,b.example"),
        ("MAILRAMP__NEW__AUTH__USER", "0123"),
        ("MAILRAMP__NEW__AUTH__PASSWORD", "0123"),
        ("MAILRAMP__LEGACY__HOST", "old.example"),
        ("MAILRAMP__WARMUP__TARGET", "12000"),
        ("MAILRAMP__WARMUP__START", "2026-03-02"),
        ("MAILRAMP__WARMUP__GROWTH", "2"),
        ("MAILRAMP__QUEUE__RETRY", "1m,2m"),
        ("MAILRAMP_CONFIG", "is another's"),
        ("PATH", "is none of ours"),
    ];
    let loaded = Settings::load(&path, environment(&variables)).unwrap_or_else(|faults| panic!("{faults}"));
    let settings = &loaded.settings;
    assert_eq!(settings.smtp.hostname, "env.example");
    assert_eq!((settings.smtp.limits.recipients, settings.smtp.limits.errors), (500, 5));
    assert_eq!(settings.smtp.normalize_from.len(), 2);
    assert_eq!(
        settings.new.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["a.example:587", "b.example:25"]
    );
    let credentials = settings.new.credentials.as_ref().expect("a login");
    assert_eq!((credentials.user.as_str(), credentials.password.expose_secret()), ("0123", "0123"));
    assert!(settings.legacy.is_some());
    let warmup = settings.warmup.as_ref().expect("a ramp");
    assert_eq!((warmup.target, warmup.growth, warmup.start), (12_000, 2.0, Some(jiff::civil::date(2026, 3, 2))));
    assert_eq!(settings.queue.retry.len(), 2);
    assert_eq!(loaded.origin("smtp.hostname"), Some(&Origin::Variable("MAILRAMP__SMTP__HOSTNAME".to_owned())));
    assert!(matches!(loaded.origin("smtp.limits.errors"), Some(Origin::File { line: 5, .. })));
    assert_eq!(loaded.origin("smtp.limits.per_ip"), Some(&Origin::Default));
}

#[test]
fn a_fault_in_the_environment_names_the_variable() {
    let (_folder, path) = folder(NEW);
    for (variable, value, words) in [
        ("MAILRAMP__SMTP__LIMITS__RECIPIENTS", "50.7", "`smtp.limits.recipients` = \"50.7\": must be a whole number"),
        ("MAILRAMP__SMTP__LIMITS__RECIPIENTS", "0500", "`smtp.limits.recipients` = \"0500\": must be a whole number"),
        ("MAILRAMP__SMTP__LIMITS__RECIPIENTS", "5", "`smtp.limits.recipients` = 5: must be from 100"),
        ("MAILRAMP__NEW__TLS__IMPLICIT", "yes", "`new.tls.implicit` = \"yes\": must be true or false"),
        ("MAILRAMP__WARMUP__TARKET", "5", "unknown key `warmup.tarket`, did you mean MAILRAMP__WARMUP__TARGET?"),
        ("MAILRAMP__HOSTNAME", "a", "unknown key `hostname`, did you mean MAILRAMP__SMTP__HOSTNAME?"),
        ("MAILRAMP__SMTP__hostname", "a", "write it in capitals: MAILRAMP__SMTP__HOSTNAME"),
        ("MAILRAMP__SMTP", "a", "`smtp` is a table; set one of its keys"),
        ("MAILRAMP__PREFLIGHT__EVERY", "6h", "`preflight.every` does not work in this version yet"),
        ("MAILRAMP__DNS__TIMEOUT", "5", "`dns.timeout` = \"5\": must be a time in quotes"),
        ("MAILRAMP__LISTENERS__0__BIND", "a", "listeners come from the settings file only"),
        ("MAILRAMP__STREAMS__0__NAME", "a", "streams come from the settings file only"),
        ("MAILRAMP__QUEUE__RETRY", "1m 2m", "items separated by commas"),
    ] {
        let faults = Settings::load(&path, environment(&[(variable, value)])).expect_err(variable).to_string();
        assert!(faults.starts_with(&format!("environment variable {variable}  ")), "{faults}");
        assert!(faults.contains(words) && faults.lines().count() == 1, "{words:?} is not in: {faults}");
    }
}

#[test]
fn faults_of_file_and_environment_are_reported_together_without_secrets() {
    let (_folder, path) =
        folder(&format!("{NEW}auth = {{ user = 'x', password = 77 }}\n[smtp]\nlimits = {{ errors = 0 }}"));
    let variables = [("MAILRAMP__LEGACY__AUTH__PASSWORD", "sesame\n"), ("MAILRAMP__QUEUE__JITTER", "ten")];
    let faults = Settings::load(&path, environment(&variables)).expect_err("four faults").0;
    let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(!text.contains("sesame") && !text.contains("77"), "{text}");
    for key in [
        "`new.auth.password` = (hidden)",
        "`smtp.limits.errors`",
        "`legacy.auth.password` = (hidden)",
        "`queue.jitter`",
    ] {
        assert!(text.contains(key), "{key}: {text}");
    }
}

#[test]
fn shares_of_providers_are_read_shown_and_overridden() {
    let text = format!("{NEW}[warmup]\ntarget = 5\nproviders = {{ microsoft = '21%', google = '46%' }}\n");
    let (_folder, path) = folder(&text);
    let loaded = Settings::load(&path, std::iter::empty()).expect("shares");
    let lanes = loaded.settings.warmup.as_ref().expect("a ramp").providers.clone();
    assert_eq!(lanes, Lanes::given(&[(Provider::Google, 0.46), (Provider::Microsoft, 0.21)]).expect("shares"));
    let mut shown = Vec::new();
    loaded.show(&mut shown, false).expect("a vector takes everything");
    let shown = String::from_utf8(shown).expect("UTF-8");
    assert_eq!(load(&shown).settings.warmup.expect("a ramp").providers, lanes, "{shown}");

    let off = Settings::load(&path, environment(&[("MAILRAMP__WARMUP__PROVIDERS", "off")])).expect("off");
    assert_eq!(off.settings.warmup.expect("a ramp").providers, Lanes::Off);
    let headed = load(&format!("{NEW}[warmup]\ntarget = 5\n[warmup.providers]\ngoogle = '46%'\nother = '10%'"));
    let lanes = headed.settings.warmup.expect("a ramp").providers;
    assert_eq!(lanes.share(Provider::Other), Some(0.1));
}

#[test]
fn a_providers_file_replaces_the_operators_of_the_program() {
    let entry = |name, mx| {
        format!(
            "[[providers]]\nname = \"{name}\"\nlane = \"yahoo\"\nmx = [\"{mx}\"]\nexamples = [\"a.example.net\"]\nsource = [\"x\"]\n"
        )
    };
    let (own, path) = folder(&format!("{NEW}[warmup]\ntarget = 500\nproviders_file = 'own.toml'\n"));
    let write = |text: String| fs::write(own.path().join("own.toml"), text).expect("the providers can be written");
    write(entry("ours", ".example.net"));
    let warmup = Settings::load(&path, std::iter::empty()).expect("a file").settings.warmup.expect("a ramp");
    let operator = warmup.operators.of_host("mx.example.net");
    assert_eq!((operator.name.as_str(), operator.lane), ("ours", Provider::Yahoo));
    assert_eq!(warmup.operators.of_host("aspmx.l.google.com").lane, Provider::Other, "only those of the file");

    write(entry("ours", ".net"));
    let faults = Settings::load(&path, std::iter::empty()).expect_err("a suffix that takes in strangers").to_string();
    let place = own.path().join("own.toml").display().to_string();
    assert!(
        faults.contains(&format!("{place}:4:7  `mx` of provider `ours` = \".net\": must be two labels")),
        "{faults}"
    );
}

#[test]
fn a_curves_file_replaces_the_curves_of_the_program() {
    let curve = |name, numbers| {
        let about = "about = \"ours\"\nsource = [\"ourselves\"]\ndate = \"2026-11\"\n";
        format!("[[curves]]\nname = \"{name}\"\n{about}per_day = {numbers}\ngrowth = 1.0\n")
    };
    let settings = |name| format!("{NEW}[warmup]\ntarget = 500\ncurves_file = 'own.toml'\ncurve = '{name}'\n");
    let (own, path) = folder(&settings("calm"));
    let write = |text: String| fs::write(own.path().join("own.toml"), text).expect("the curves can be written");
    write(curve("calm", "[10, 20, 30]"));
    let loaded = Settings::load(&path, std::iter::empty()).expect("a curve of the file");
    let warmup = loaded.settings.warmup.expect("a ramp");
    assert_eq!([0, 1, 2, 9].map(|stage| warmup.shape.at(stage)), [10.0, 20.0, 30.0, 30.0]);
    assert!(loaded.warnings.iter().any(|warning| warning.contains("stands still below the target")));

    write(curve("calm", "[10, 20, 15]") + &curve("other", "[0]"));
    let faults = Settings::load(&path, std::iter::empty()).expect_err("a curve that falls").to_string();
    let place = own.path().join("own.toml").display().to_string();
    let falls = "`per_day` of curve `calm` = 15: stage 2 falls from 20 to 15";
    assert!(faults.contains(&format!("{place}:6:20  {falls}")) && faults.contains("write at least 20"), "{faults}");
    assert!(faults.contains(&format!("{place}:13:12  `per_day` of curve `other` = 0")), "{faults}");

    fs::write(&path, settings("standard")).expect("the settings can be written");
    write(curve("calm", "[10]"));
    let faults = Settings::load(&path, std::iter::empty()).expect_err("not in the file").to_string();
    assert!(faults.contains("`warmup.curve` = \"standard\": must be one of calm, formula, custom"), "{faults}");
}

#[test]
fn a_signals_file_replaces_the_rules_of_the_program() {
    let rule = |minutes: &str, example: &str| {
        format!(
            "[[signals]]\nid = \"house-rate\"\nprovider = \"*\"\nreply = [451]\ntext = 'house rate'\nclass = \"rate\"\n\
             scope = \"ip\"\naction = \"slow\"\nminutes = {minutes}\nbasis = \"ours\"\nexamples = [\"{example}\"]\n\
             source = [\"ourselves\"]\n"
        )
    };
    let (own, path) = folder(&format!("{NEW}[warmup]\ntarget = 500\nsignals_file = 'own.toml'\n"));
    let write = |text: String| fs::write(own.path().join("own.toml"), text).expect("the rules can be written");
    let said = |text: &str| mailramp::reply::Reply::from_line(text).expect("a reply");
    write(rule("30", "451 the house rate is reached"));
    let loaded = Settings::load(&path, std::iter::empty()).expect("a rule");
    let signals = loaded.settings.warmup.expect("a ramp").signals;
    assert!(signals.classify("google", &said("451 house rate")).is_some_and(|signal| signal.id == "house-rate"));
    let of_the_program = said("421 4.7.28 unusual rate of mail originating from your IP address");
    assert!(signals.classify("google", &of_the_program).is_none(), "replaced, not added to");

    write(rule("0", "250 taken"));
    let faults = Settings::load(&path, std::iter::empty()).expect_err("wrong rules").to_string();
    let place = own.path().join("own.toml").display().to_string();
    let minutes = format!("{place}:9:11  `minutes` of signal `house-rate` = 0: must be from 1 to");
    assert!(faults.contains(&minutes), "{faults}");

    let none = Settings::from_toml(&format!("{NEW}[warmup]\ntarget = 500\n"), "m.toml").expect("settings");
    let signals = none.settings.warmup.expect("a ramp").signals;
    assert!(signals.classify("google", &of_the_program).is_some(), "without a file the rules of the program hold");
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let (folder, path) = folder(&format!("{NEW}auth = {{ user = 'x', password_file = 'new.pass' }}"));
    assert!(Settings::load(&path, std::iter::empty()).is_ok());
    for (text, mode, words) in
        [("0123\n", 0o644, "must not be readable by others"), ("", 0o600, "one line"), ("a\nb\n", 0o600, "one line")]
    {
        write_secret(&folder.path().join("new.pass"), text, mode);
        let faults = Settings::load(&path, std::iter::empty()).expect_err(words).to_string();
        assert!(faults.contains("`new.auth.password_file` = \"new.pass\"") && faults.contains(words), "{faults}");
    }
    fs::remove_file(folder.path().join("new.pass")).expect("it was there");
    let faults = Settings::load(&path, std::iter::empty()).expect_err("no file").to_string();
    assert!(faults.contains("No such file"), "{faults}");
}

#[test]
fn a_password_in_the_settings_needs_settings_that_others_cannot_read() {
    let (_folder, path) = folder(&format!("{NEW}auth = {{ user = 'x', password = 'sesame' }}"));
    write_secret(&path, &fs::read_to_string(&path).expect("it was written"), 0o644);
    let faults = Settings::load(&path, std::iter::empty()).expect_err("readable").to_string();
    assert!(faults.contains("`new.auth.password` = \"(hidden)\"") && faults.contains("chmod 600"), "{faults}");
    write_secret(&path, &fs::read_to_string(&path).expect("it was written"), 0o600);
    let loaded = Settings::load(&path, std::iter::empty()).expect("private");
    assert!(!format!("{loaded:?}").contains("sesame"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_with_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("none.toml");
    for (path, words) in [(missing.as_path(), "No such file"), (folder.path(), "is a directory")] {
        let faults = Settings::load(path, std::iter::empty()).expect_err(words).to_string();
        assert!(faults.starts_with(&path.display().to_string()) && faults.contains(words), "{faults}");
    }
    fs::write(&missing, b"a = 1\nb = \"\xff\"").expect("it can be written");
    let faults = Settings::load(&missing, std::iter::empty()).expect_err("not UTF-8").to_string();
    assert!(faults.contains("line 2 is not UTF-8"), "{faults}");
}

#[test]
fn config_check_ends_with_78_and_every_fault() {
    let (_folder, path) = folder("[warmup]\ntarket = 5\ngrowth = 0.5");
    let mut out = Vec::new();
    assert_eq!(command::check(&path, std::iter::empty(), &mut out).expect("a vector"), EXIT_CONFIG);
    let out = String::from_utf8(out).expect("UTF-8");
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains(&format!("{}:2:1  unknown key `warmup.tarket`, did you mean `target`?\n", path.display())));

    let (_folder, path) = self::folder(NEW);
    let mut out = Vec::new();
    assert_eq!(command::check(&path, std::iter::empty(), &mut out).expect("a vector"), 0);
    assert!(String::from_utf8(out).expect("UTF-8").contains("the settings are valid"));
}

#[test]
fn config_show_prints_every_key_with_its_origin_and_no_secret() {
    let (_folder, path) = folder(&format!("{NEW}auth = {{ user = 'x', password_file = 'new.pass' }}"));
    let variables = [
        ("MAILRAMP__LEGACY__HOST", "b"),
        ("MAILRAMP__LEGACY__AUTH__PASSWORD", "sesame"),
        ("MAILRAMP__LEGACY__AUTH__USER", "y"),
    ];
    let mut out = Vec::new();
    assert_eq!(command::show(&path, environment(&variables), true, &mut out).expect("a vector"), 0);
    let out = String::from_utf8(out).expect("UTF-8");
    let line =
        |start: &str| out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}\n{out}"));
    assert!(line("new.host = \"mail2.example.com\"").ends_with(&format!("# {}:2:8", path.display())));
    assert!(line("legacy.host = [\"b\"]").ends_with("# environment variable MAILRAMP__LEGACY__HOST"));
    assert!(line("queue.max_age = \"5d\"").ends_with("# default"));
    assert!(line("bind = \"127.0.0.1:2525\"").ends_with("# default"));
    assert!(line("legacy.auth.password = \"(hidden)\"").contains("MAILRAMP__LEGACY__AUTH__PASSWORD"));
    assert!(!out.contains("sesame") && !out.contains("0123"));
}

#[test]
fn what_config_show_prints_loads_again_and_means_the_same() {
    let text = "[[listeners]]\nbind = ['10.0.0.1:25']\nallow_from = ['10.0.0.0/8']\n[[listeners]]\nbind = '127.0.0.1:25'\n\
                allow_from = ['::1']\n[new]\nhost = ['a:1', 'b']\n[warmup]\nstart = 2026-03-02\ntarget = 5\n";
    let shown = |loaded: &Loaded| {
        let mut out = Vec::new();
        loaded.show(&mut out, false).expect("a vector takes everything");
        String::from_utf8(out).expect("UTF-8")
    };
    let first = load(text);
    let again = load(&shown(&first));
    assert_eq!(format!("{:?}", first.settings), format!("{:?}", again.settings));
}

// --- [[streams]] ----------------------------------------------------------------------------------------------------

/// Two listeners, the second with a login and tags, and a legacy server; what follows begins in line 11.
fn with_streams(text: &str) -> String {
    format!(
        "[new]\nhost = 'a'\n[[listeners]]\nbind = ['127.0.0.1:25', '[::1]:25']\nallow_from = ['10.0.0.0/8']\n\
         [[listeners]]\nbind = '127.0.0.1:26'\nallow_from = ['192.0.2.0/24']\nLISTENER2 = true\n\n{text}"
    )
    .replace("LISTENER2", "stream_header")
}

#[test]
fn streams_become_rules_with_the_defaults_of_the_ramp() {
    let loaded = load(&with_streams(
        "[[streams]]\nname = 'digest'\n\
         match = { from = ['Digest@example.com', '*@news.example.com'], listener = '127.0.0.1:26', header = 'weekly' }\n\
         route = 'new'\npriority = 80\nmax_share = '70%'\noverflow = { max_wait = 'auto' }\n\
         [[streams]]\nname = 'crm'\nmatch.client = '10.1.0.0/16'\n\
         [warmup]\ntarget = 10\noverflow = { max_wait = '2h' }\n[legacy]\nhost = 'b'\n",
    ));
    let [digest, crm] = &loaded.settings.streams[..] else { panic!("{:?}", loaded.settings.streams) };
    assert_eq!((digest.name.as_str(), digest.route, digest.priority), ("digest", StreamRoute::New, 80));
    assert_eq!((digest.max_share, digest.overflow.max_wait), (Some(0.7), MaxWait::Auto));
    assert_eq!(
        (digest.rule.from.len(), &digest.rule.listeners[..], &digest.rule.tags[..]),
        (2, &[1][..], &["weekly".into()][..])
    );
    assert_eq!((crm.route, crm.priority, crm.max_share), (StreamRoute::Ramp, 50, None));
    assert_eq!(crm.overflow.policy, OverflowPolicy::HoldThenLegacy);
    assert_eq!(crm.overflow.max_wait, MaxWait::Time(Duration::from_secs(7200)));
    assert_eq!(crm.rule.clients, ["10.1.0.0/16".parse().expect("a network")]);
    assert!(matches!(loaded.origin("streams[0].match.from"), Some(Origin::File { line: 13, .. })));
    assert_eq!(loaded.origin("streams[1].priority"), Some(&Origin::Default));
    let mut shown = Vec::new();
    loaded.show(&mut shown, false).expect("a vector takes everything");
    let again = load(&String::from_utf8(shown).expect("UTF-8"));
    assert_eq!(format!("{:?}", loaded.settings), format!("{:?}", again.settings));
}

#[test]
fn the_example_of_a_stream_in_the_sample_loads_with_the_documented_defaults() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/mailramp.toml")).expect("a sample");
    let example: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("# [[streams]]"))
        .take_while(|line| line.starts_with("# ") || line.starts_with("#  "))
        .map(|line| line.trim_start_matches("# "))
        .collect();
    let users = "[smtp]\nusers.file = 'users'\n";
    let listener = "[[listeners]]\nbind = '127.0.0.1:2525'\nallow_from = ['10.0.0.0/8']\nauth = 'optional'\n\
                    auth_clear = true\nstream_header = true\n";
    let (folder, path) = folder(&format!("{NEW}{users}{listener}{}\n", example.join("\n")));
    write_secret(&folder.path().join("users"), "", 0o600);
    let loaded = Settings::load(&path, std::iter::empty()).unwrap_or_else(|faults| panic!("{faults}"));
    let [stream] = &loaded.settings.streams[..] else { panic!("one stream") };
    assert_eq!((stream.name.as_str(), stream.rule.from.len(), stream.rule.users.len()), ("digest", 3, 1));
    let smallest = load(&format!("{NEW}[[streams]]\nname = 'x'\nmatch.from = '*@x.example'"));
    for key in ["route", "priority", "max_share"] {
        let key = format!("streams[0].{key}");
        assert_eq!(loaded.value(&key), smallest.value(&key), "{key}");
    }
}

#[test]
fn a_stream_that_cannot_be_or_can_never_match_is_refused_with_line_and_remedy() {
    let from = |name: &str, from: &str| format!("[[streams]]\nname = '{name}'\nmatch.from = '{from}'\n");
    let a = from("a", "*@a.example");
    let of = |rest: &str| format!("[[streams]]\nname = 'a'\n{rest}\n");
    let many: String = (0..33).map(|n| from(&format!("s{n}"), &format!("*@s{n}.example"))).collect();
    let table: Vec<(String, usize, &[&str])> = vec![
        ("[[streams]]\nmatch.from = '*@a.example'".into(), 11, &["`streams[0].name` is missing", "such as \"digest\""]),
        ("[[streams]]\nname = ''\nmatch.from = '*@a.example'".into(), 12, &["`streams[0].name` = ''", "1 to 32"]),
        (from("Digest", "*@a.example"), 12, &["`streams[0].name` = 'Digest'", "lower-case letters"]),
        (from(&"x".repeat(33), "*@a.example"), 12, &["`streams[0].name`", "1 to 32"]),
        (from("default", "*@a.example"), 12, &["`streams[0].name` = \"default\"", "another name", "[warmup]"]),
        (format!("{a}{}", from("a", "*@b.example")), 15, &["`streams[1].name` = \"a\"", "`streams[0]` has it"]),
        (
            of(""),
            11,
            &["`streams[0].match` is missing", "at least one of from, auth_user, header, listener and client"],
        ),
        (of("match = {}"), 13, &["`streams[0].match` is missing"]),
        (of("match.from = []"), 13, &["`streams[0].match.from` = []", "at least one value"]),
        (of("match.from = 'example.com'"), 13, &["`streams[0].match.from` = 'example.com'", "*@*.example.com"]),
        (of("match.form = '*@a.example'"), 13, &["unknown key `streams[0].match.form`", "did you mean `from`?"]),
        (of("match = 'x'"), 13, &["`streams[0].match` = 'x'", "must be a table"]),
        (of("match.header = ' x'"), 13, &["`streams[0].match.header`", "without white space"]),
        (of("match.client = '10.0.0.1/8'"), 13, &["`streams[0].match.client`", "host bits"]),
        (
            format!("{a}{}", from("b", "x@A.example")),
            16,
            &["`streams[1].match.from`", "stream \"a\" (`streams[0]`)", "put this stream before that one"],
        ),
        (
            format!(
                "[[streams]]\nname = 'a'\nmatch.client = '10.0.0.0/8'\n{}",
                "[[streams]]\nname = 'b'\nmatch = { client = ['10.1.0.0/16', '10.2.0.0/16'], from = '*@b.example' }"
            ),
            16,
            &["`streams[1].match.from`", "stream \"a\""],
        ),
        (
            of("match = { header = 'x', listener = '127.0.0.1:25' }"),
            13,
            &["`streams[0].match.header`", "one of these listeners has `stream_header = true`"],
        ),
        (
            format!("{a}[[streams]]\nname = 'b'\nmatch.header = 'A'"),
            16,
            &["`streams[1].match.header`", "must not hold \"A\"", "belongs to the stream of that name"],
        ),
        (
            of("match.auth_user = 'app'"),
            13,
            &["`streams[0].match.auth_user`", "a listener has a login; set its `auth`"],
        ),
        (of("match.listener = '127.0.0.1:27'"), 13, &["`streams[0].match.listener`", "none has 127.0.0.1:27"]),
        (
            of("match.client = ['10.1.0.0/16', '172.16.0.0/12']"),
            13,
            &["`streams[0].match.client`", "no `allow_from` of a listener admits 172.16.0.0/12"],
        ),
        (
            of("match = { client = '10.1.0.0/16', listener = '127.0.0.1:26' }"),
            13,
            &["`streams[0].match.client`", "of one of these listeners admits 10.1.0.0/16"],
        ),
        (format!("{a}route = 'old'"), 14, &["`streams[0].route`", "one of \"legacy\", \"ramp\", \"new\""]),
        (format!("{a}route = 'legacy'"), 14, &["`streams[0].route`", "when there is no [legacy]; or add [legacy]"]),
        (format!("{a}priority = 101"), 14, &["`streams[0].priority` = 101", "from 0 to 100"]),
        (format!("{a}max_share = '0%'"), 14, &["`streams[0].max_share`", "above \"0%\"", "`route` to \"legacy\""]),
        (format!("{a}max_share = '101%'"), 14, &["`streams[0].max_share`", "from \"0%\" to \"100%\""]),
        (format!("{a}overflow.policy = 'legacy'"), 14, &["`streams[0].overflow.policy`", "when there is no [legacy]"]),
        (format!("{a}overflow.max_wait = '8d'"), 14, &["`streams[0].overflow.max_wait`", "from \"1s\" to \"7d\""]),
        (format!("{a}colour = 'red'"), 14, &["unknown key `streams[0].colour`; remove it"]),
        ("[streams]\nname = 'a'".into(), 11, &["`streams`", "begin each of them with [[streams]]"]),
        (many, 108, &["`streams[32].name`", "at most 32 streams"]),
    ];
    for (text, line, words) in table {
        let found = faults(&with_streams(&text));
        assert_eq!(found.len(), 1, "{text}\n{found:#?}");
        assert!(found[0].starts_with(&format!("test.toml:{line}:")), "line {line}: {}", found[0]);
        for word in words {
            assert!(found[0].contains(word), "{word:?} is not in: {}", found[0]);
        }
    }
}

#[test]
fn the_stream_of_a_listener_is_one_that_there_is() {
    let text = |name: &str| {
        format!(
            "{NEW}[[listeners]]\nbind = '127.0.0.1:25'\nallow_from = ['::1']\nstream = '{name}'\n\
             [[streams]]\nname = 'digest'\nmatch.from = '*@a.example'"
        )
    };
    let known = |name: &str| load(&text(name)).settings.listeners[0].stream.clone();
    assert_eq!([known("digest"), known("default"), known("")], [Some("digest".into()), Some("default".into()), None]);
    let found = faults(&text("digets"));
    assert!(found.len() == 1 && found[0].starts_with("test.toml:6:"), "{found:#?}");
    assert!(found[0].contains("`listeners[0].stream` = \"digets\"") && found[0].contains("\"digest\"?"), "{found:#?}");
    let unreadable = faults(&text("digest").replace("name = 'digest'", "name = 'Digest!'"));
    assert_eq!(unreadable.len(), 1, "what follows from a fault is none: {unreadable:#?}");
}

#[test]
fn a_rule_with_a_login_may_come_from_any_network_and_a_tag_from_a_listener_that_takes_it() {
    load(&with_streams("[[streams]]\nname = 'a'\nmatch = { header = 'x', listener = '127.0.0.1:26' }\n"));
    load(&with_streams("[[streams]]\nname = 'a'\nmatch.header = ['x', 'a']\n"));
    let narrow_first =
        "[[streams]]\nname = 'a'\nmatch.from = 'x@a.example'\n[[streams]]\nname = 'b'\nmatch.from = '*@a.example'";
    assert_eq!(load(&with_streams(narrow_first)).settings.streams.len(), 2);
}
