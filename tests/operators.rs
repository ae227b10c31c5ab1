//! Whose mailboxes they are: the directory of operators against a name server of our own over loopback, and the relay that goes by
//! it. Nothing outside is asked.

#[path = "common/application.rs"]
mod application;
#[path = "common/bench.rs"]
mod bench;
#[path = "common/name_server.rs"]
mod name_server;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::{Bench, PATIENCE, Setup};
use mailramp::clock::ManualClock;
use mailramp::dns;
use mailramp::message::{LaneId, Timestamp};
use mailramp::metrics::{Build, Metrics, MxResult};
use mailramp::operators::{DOMAINS_MAX, Operators, Terms};
use mailramp::policy::{Lanes, Provider, Providers};
use mailramp::spool::Ledger;
use name_server::{NameServer, Say, mx};
use scripted::{Script, Scripted};
use tokio_util::sync::CancellationToken;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const START: Timestamp = Timestamp::from_seconds(1_780_000_000);
const GOOGLE: &str = "aspmx.l.google.com";
const MICROSOFT: &str = "contoso-com.mail.protection.outlook.com";

/// A directory whose task runs.
struct Directory {
    operators: Arc<Operators>,
    metrics: Arc<Metrics>,
    clock: Arc<ManualClock>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn terms(server: &NameServer, timeout: Duration) -> Terms {
    let servers = Some(dns::mail_servers(&[server.address], timeout));
    Terms { providers: Providers::embedded().clone(), lanes: Lanes::Auto, servers, timeout }
}

impl Directory {
    fn open(folder: &Path, terms: Terms, now: Timestamp) -> Directory {
        let clock = Arc::new(ManualClock::at(now));
        let metrics = Arc::new(Metrics::new(&Build::default(), &["default".into()]).expect("metrics"));
        let (operators, questions) = Operators::new(folder, terms, clock.clone(), metrics.clone());
        let stop = CancellationToken::new();
        let task = tokio::spawn(questions.run(stop.clone()));
        Directory { operators, metrics, clock, stop, task }
    }

    fn name(&self, domain: &str) -> String {
        self.operators.of(domain.as_bytes()).name.clone()
    }

    /// Until every question is answered or given up.
    async fn quiet(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.operators.waiting_domains() > 0 {
            assert!(Instant::now() < deadline, "{} domains still wait", self.operators.waiting_domains());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What is known of it once the name servers have been asked.
    async fn learn(&self, domain: &str) -> String {
        self.name(domain);
        self.quiet().await;
        self.name(domain)
    }

    /// The lane of a recipient as mail is accepted.
    fn lane(&self, path: &str) -> LaneId {
        self.operators.lane_at(path.as_bytes(), mailramp::clock::Clock::now(&*self.clock))
    }

    fn lookups(&self, result: MxResult) -> u64 {
        self.metrics.mx_lookups.of(result).get()
    }

    fn pass(&self, seconds: i64) {
        self.clock.set(Timestamp::from_seconds(mailramp::clock::Clock::now(&*self.clock).seconds() + seconds));
    }

    async fn close(self) {
        self.stop.cancel();
        self.task.await.expect("no panic inside");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_belong_to_who_runs_their_most_preferred_servers() {
    let server = NameServer::start(Say::NoDomain);
    let alias = |servers: &[(u16, &str)]| match mx(servers, 300) {
        Say::Mx(servers, ttl) => Say::Alias("mail.example.net".into(), servers, ttl),
        _ => unreachable!("mx() says Mx"),
    };
    let many: Vec<(u16, String)> = (0..1000).map(|n| (10, format!("mx{n}.example.net"))).collect();
    let cases = [
        ("workspace.example", mx(&[(1, GOOGLE), (5, "alt1.aspmx.l.google.com")], 300), "google"),
        ("contoso.example", mx(&[(0, MICROSOFT)], 300), "microsoft"),
        ("both.example", mx(&[(20, GOOGLE), (10, MICROSOFT)], 300), "microsoft"),
        ("backup.example", mx(&[(10, "mx.example.net"), (20, GOOGLE)], 300), "other"),
        ("equal.example", mx(&[(10, "mx.example.net"), (10, GOOGLE)], 300), "google"),
        ("alias.example", alias(&[(10, "mta5.am0.yahoodns.net")]), "yahoo"),
        ("capitals.example", mx(&[(10, "MX00.GMX.NET")], 300), "gmx-webde"),
        ("null.example", mx(&[(0, ".")], 300), "other"),
        ("customer.web.de", Say::NoMx, "gmx-webde"),
        ("nomx.example", Say::NoMx, "other"),
        ("gone.example", Say::NoDomain, "other"),
        ("broken.example", Say::Fail, "other"),
        ("large.example", Say::OverTcp(Box::new(mx(&[(10, GOOGLE)], 300))), "google"),
        ("crowd.example", Say::OverTcp(Box::new(Say::Mx(many, 300))), "other"),
        // A domain of their own mailboxes is theirs until name servers say something else.
        ("gmail.com", Say::Fail, "google"),
        ("outlook.com", mx(&[(10, GOOGLE)], 300), "google"),
    ];
    for (domain, say, _) in &cases {
        server.say(domain, say.clone());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::open(folder.path(), terms(&server, Duration::from_secs(5)), START);
    assert_eq!((directory.name("workspace.example"), directory.name("gmail.com")), ("other".into(), "google".into()));
    let known = |domain: &str| directory.operators.known_lane(format!("x@{domain}").as_bytes());
    assert_eq!((known("equal.example"), known("gmail.com")), (None, None), "a guess moves no mail");
    for (domain, _, expected) in cases {
        assert_eq!(directory.learn(domain).await, expected, "{domain}");
        assert_eq!(directory.name(&domain.to_uppercase()), expected, "{domain} in capitals");
    }
    let lane = |path: &str| directory.operators.known_lane(path.as_bytes()).expect("known");
    assert_eq!(lane("a@workspace.example"), Provider::Google.lane());
    assert_eq!(lane("\"a@b\"@Contoso.Example."), Provider::Microsoft.lane());
    assert_eq!((known("broken.example"), known("gmail.com")), (None, None), "neither does a failure");
    assert_eq!((lane("postmaster"), lane("a@[192.0.2.1]")), (Provider::Other.lane(), Provider::Other.lane()));
    let counted = [MxResult::Found, MxResult::None, MxResult::Failed].map(|result| directory.lookups(result));
    assert_eq!(counted, [11, 3, 2], "found, none, failed");
    assert_eq!(directory.metrics.mx_cache_domains.get(), 16);
    let mut asked = server.asked();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), 16, "nothing else was asked: {asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_in_utf_8_is_asked_for_by_its_name_in_dns() {
    let server = NameServer::start(Say::NoDomain);
    server.say("xn--bcher-kva.example", mx(&[(10, GOOGLE)], 300));
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::open(folder.path(), terms(&server, Duration::from_secs(5)), START);
    assert_eq!(directory.learn("bücher.example").await, "google");
    assert_eq!(directory.name("BÜCHER.example"), "google");
    assert_eq!(server.asked(), ["xn--bcher-kva.example."]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_no_answers_count_as_failures() {
    let server = NameServer::start(Say::NoDomain);
    let record = |rest: &[u8]| [&[0xC0, 12, 0, 15, 0, 1, 0, 0, 1, 44][..], rest].concat();
    for (n, octets) in [
        vec![],
        vec![0xFF; 40],
        // A name that points to itself, a length beyond the end, a record without a host.
        record(&[0, 4, 0, 10, 0xC0, 48]),
        record(&[0xFF, 0xFF, 0, 10, 0]),
        record(&[0, 2, 0, 10]),
    ]
    .into_iter()
    .enumerate()
    {
        server.say(&format!("hostile{n}.example"), Say::Octets(octets));
    }
    // Correct as a record, but no name of a host: spaces, line ends, an at sign.
    server.say("odd.example", mx(&[(10, "a b\nx@google.com")], 300));
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::open(folder.path(), terms(&server, Duration::from_millis(400)), START);
    for n in 0..5 {
        assert_eq!(directory.learn(&format!("hostile{n}.example")).await, "other", "{n}");
    }
    assert_eq!(directory.lookups(MxResult::Failed), 5);
    directory.learn("odd.example").await;
    directory.close().await;
    let again = Directory::open(folder.path(), terms(&server, Duration::from_millis(400)), START);
    assert_eq!(again.operators.known_domains(), 1, "what was saved of it reads back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_fresh_for_its_ttl_but_at_least_an_hour_and_at_most_a_week() {
    for (ttl, fresh) in [(0, HOUR), (2 * HOUR as u32, 2 * HOUR), (30 * DAY as u32, 7 * DAY)] {
        let server = NameServer::start(mx(&[(10, GOOGLE)], ttl));
        let folder = tempfile::tempdir().expect("a folder");
        let directory = Directory::open(folder.path(), terms(&server, Duration::from_secs(5)), START);
        assert_eq!(directory.learn("a.example").await, "google");
        server.say_otherwise(mx(&[(10, MICROSOFT)], ttl));
        // A TTL is counted in seconds, and one of them may have begun.
        directory.pass(fresh - 2);
        assert_eq!(directory.learn("a.example").await, "google", "TTL {ttl}");
        assert_eq!(server.asked().len(), 1, "TTL {ttl}");
        directory.pass(2);
        assert_eq!(directory.name("a.example"), "google", "nobody waits for the new answer");
        directory.quiet().await;
        assert_eq!(directory.name("a.example"), "microsoft", "TTL {ttl}");
        assert_eq!(server.asked().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_good_answer_stays_while_name_servers_fail_and_they_are_asked_again_in_five_minutes() {
    let server = NameServer::start(mx(&[(10, GOOGLE)], 0));
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::open(folder.path(), terms(&server, Duration::from_millis(300)), START);
    assert_eq!(directory.learn("a.example").await, "google");
    let distinct = |server: &NameServer| directory.lookups(MxResult::Failed) + u64::from(!server.asked().is_empty());
    for (failures, say) in [(1, Say::Fail), (2, Say::Silence)] {
        server.say_otherwise(say);
        directory.pass(HOUR);
        assert_eq!(directory.learn("a.example").await, "google");
        assert_eq!(directory.learn("a.example").await, "google");
        directory.pass(299);
        assert_eq!(directory.learn("a.example").await, "google");
        assert_eq!(directory.lookups(MxResult::Failed), failures, "once in five minutes");
        assert_eq!(distinct(&server), failures + 1);
    }
    server.say_otherwise(Say::NoDomain);
    directory.pass(1);
    assert_eq!(directory.learn("a.example").await, "other", "no such domain is an answer");
    server.say_otherwise(mx(&[(10, GOOGLE)], 0));
    directory.pass(HOUR - 1);
    assert_eq!(directory.learn("a.example").await, "other", "and kept for an hour");
    directory.pass(1);
    assert_eq!(directory.learn("a.example").await, "google");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_nothing_is_asked_again_before_its_time() {
    let server = NameServer::start(mx(&[(10, GOOGLE)], 3 * HOUR as u32));
    server.say("gone.example", Say::NoDomain);
    let folder = tempfile::tempdir().expect("a folder");
    let open = |after: i64| {
        let now = Timestamp::from_seconds(START.seconds() + after);
        Directory::open(folder.path(), terms(&server, Duration::from_secs(5)), now)
    };
    let directory = open(0);
    for n in 0..100 {
        directory.name(&format!("d{n}.example"));
    }
    assert_eq!(directory.learn("gone.example").await, "other");
    directory.close().await;
    let asked = server.asked().len();

    server.say_otherwise(Say::Silence);
    let directory = open(HOUR / 2);
    assert_eq!(directory.metrics.mx_cache_domains.get(), 101);
    assert!((0..100).all(|n| directory.name(&format!("d{n}.example")) == "google"));
    assert_eq!((directory.name("gone.example"), directory.operators.waiting_domains()), ("other".into(), 0));
    directory.close().await;
    assert_eq!(server.asked().len(), asked, "no question");

    server.say_otherwise(mx(&[(10, MICROSOFT)], 300));
    let directory = open(3 * HOUR);
    assert_eq!(directory.name("d7.example"), "google", "the old answer counts until there is another");
    directory.quiet().await;
    assert_eq!(directory.name("d7.example"), "microsoft");
    directory.close().await;
    server.say_otherwise(Say::Silence);
    let directory = open(-30 * DAY);
    directory.pass(7 * DAY);
    directory.name("d8.example");
    assert_eq!(directory.operators.waiting_domains(), 1, "a clock that went back does not keep an answer for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_damaged_or_cannot_be_read_is_no_file() {
    let server = NameServer::start(mx(&[(10, GOOGLE)], 300));
    let folder = tempfile::tempdir().expect("a folder");
    let open = || Directory::open(folder.path(), terms(&server, Duration::from_secs(5)), START);
    let directory = open();
    assert_eq!(directory.learn("a.example").await, "google");
    directory.close().await;
    let path = folder.path().join("mail-servers");
    let good = std::fs::read(&path).expect("it was saved");
    for damage in [good[..good.len() - 3].to_vec(), good.iter().map(|c| c ^ 1).collect(), vec![0xFF; 9], Vec::new()] {
        std::fs::write(&path, damage).expect("writes");
        let directory = open();
        assert_eq!((directory.operators.known_domains(), directory.name("a.example")), (0, "other".into()));
        directory.quiet().await;
        directory.close().await;
        assert_eq!(std::fs::read(&path).expect("it was saved anew"), good);
    }
    std::fs::remove_file(&path).expect("removes");
    std::fs::create_dir(&path).expect("something else is there");
    let directory = open();
    assert_eq!(directory.learn("a.example").await, "google", "it goes on without a file");
    directory.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_terms_name_what_is_known_anew_and_no_lanes_mean_no_questions() {
    let server = NameServer::start(mx(&[(10, "mx.example.net")], 300));
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::open(folder.path(), terms(&server, Duration::from_secs(5)), START);
    assert_eq!(directory.learn("a.example").await, "other");
    let text = "[[providers]]\nname = \"ours\"\nlane = \"apple\"\nmx = [\".example.net\"]\n\
                examples = [\"mx.example.net\"]\nsource = [\"x\"]\n";
    let providers = Arc::new(Providers::parse(text).expect("providers"));
    directory.operators.change(Terms { providers, ..terms(&server, Duration::from_secs(5)) });
    assert_eq!(directory.name("a.example"), "ours");
    assert_eq!(directory.lane("x@a.example"), Provider::Apple.lane());
    let lanes = Lanes::given(&[(Provider::Google, 0.4)]).expect("shares");
    directory.operators.change(Terms { lanes, ..terms(&server, Duration::from_secs(5)) });
    assert_eq!(directory.lane("x@gmail.com"), Provider::Google.lane());
    assert_eq!(directory.lane("x@yahoo.com"), Provider::Other.lane(), "it has no lane of its own");
    directory.quiet().await;
    let asked = server.asked().len();
    directory.operators.change(Terms { lanes: Lanes::Off, servers: None, ..terms(&server, Duration::from_secs(5)) });
    for n in 0..10 {
        assert_eq!(directory.lane(&format!("x@d{n}.example")), LaneId::TOTAL);
    }
    assert_eq!((directory.name("gmail.com"), directory.operators.waiting_domains()), ("google".into(), 0));
    assert_eq!(server.asked().len(), asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_domains_is_bounded_and_each_is_asked_for_once() {
    let server = NameServer::start(Say::Silence);
    let folder = tempfile::tempdir().expect("a folder");
    let directory = Directory::open(folder.path(), terms(&server, Duration::from_secs(20)), START);
    let began = Instant::now();
    for n in 0..100_000 {
        assert_eq!(directory.lane(&format!("x@d{n}.example")), Provider::Other.lane());
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}: nobody waits", began.elapsed());
    let waiting = directory.operators.waiting_domains();
    assert!((10_000..=10_008).contains(&waiting), "{waiting}");
    assert!(directory.operators.known_domains() <= DOMAINS_MAX);
    let deadline = Instant::now() + PATIENCE;
    while server.asked().len() < 8 {
        assert!(Instant::now() < deadline, "eight are asked at once");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut asked = server.asked();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), 8, "and no more");
    directory.close().await;
}

const BODY: &[u8] = b"Subject: hello\r\n\r\nhow are you\r\n";

/// A ramp with lanes for providers that stands at 100,000 a day, and asks `server`.
fn ramp(new: &Scripted, server: &NameServer, providers: &str) -> Setup {
    let mut setup = Setup::new(new.address, None);
    setup.more = format!(
        "[dns]\nservers = [\"{}\"]\ntimeout = \"300ms\"\n[warmup]\ncurve = \"custom\"\ncustom = [100000]\ngrowth = 1.0\n\
         target = 100000\nproviders = {providers}\npace = {{ hourly = \"100%\", burst = \"100%\" }}\n",
        server.address
    );
    setup
}

/// Recipients offered to each lane today, those of the total last.
async fn offered(bench: &Bench) -> Vec<(Option<Provider>, u64)> {
    let look = |ledger: &Ledger, _: Timestamp| {
        let lanes = ledger.lanes().map(|(id, lane)| (Provider::of_lane(id), lane.today.offered));
        lanes.filter(|(_, offered)| *offered > 0).collect::<Vec<_>>()
    };
    let mut lanes = bench.relay().backend.spool.look(look).await.expect("answers");
    lanes.sort_by_key(|(provider, _)| (provider.is_none(), *provider));
    lanes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_three_lanes_is_three_items_and_every_recipient_gets_it_once() {
    let new = Script::new().start().await;
    let server = NameServer::start(Say::NoDomain);
    server.say("workspace.example", mx(&[(1, GOOGLE)], 300));
    server.say("contoso.example", mx(&[(1, MICROSOFT)], 300));
    let bench = Bench::start(&ramp(&new, &server, "\"auto\"")).await;
    let operators = &bench.relay().operators;
    let deadline = Instant::now() + PATIENCE;
    for domain in ["workspace.example", "contoso.example", "example.net"] {
        operators.of(domain.as_bytes());
    }
    while operators.waiting_domains() > 0 {
        assert!(Instant::now() < deadline, "the name server answers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rcpts: Vec<String> =
        (0..90).map(|n| format!("r{n}@{}", ["workspace.example", "Contoso.example", "example.net"][n % 3])).collect();
    let rcpts: Vec<&str> = rcpts.iter().map(String::as_str).collect();
    bench.send("sender@example.com", &rcpts, BODY);
    bench.empty().await;
    let expected =
        [(Some(Provider::Google), 30), (Some(Provider::Microsoft), 30), (Some(Provider::Other), 30), (None, 90)];
    assert_eq!(offered(&bench).await, expected);
    let messages = new.messages();
    assert_eq!(messages.len(), 3, "one transaction for each lane");
    let number =
        |rcpt: &String| rcpt.trim_start_matches("RCPT TO:<r").split('@').next().unwrap().parse::<usize>().unwrap();
    let mut all = Vec::new();
    for message in &messages {
        let numbers: Vec<usize> = message.rcpts.iter().map(number).collect();
        assert!(numbers.is_sorted() && numbers.iter().all(|n| n % 3 == numbers[0] % 3), "{numbers:?}");
        all.extend(numbers);
    }
    all.sort_unstable();
    assert_eq!(all, (0..90).collect::<Vec<_>>());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_is_accepted_and_delivered_while_no_name_server_answers() {
    let new = Script::new().start().await;
    let server = NameServer::start(Say::Silence);
    let bench = Bench::start(&ramp(&new, &server, "\"auto\"")).await;
    for message in 0..20 {
        let rcpts: Vec<String> =
            (0..100).map(|n| format!("x@d{message}-{n}.example")).chain(["y@gmail.com".into()]).collect();
        bench.send("sender@example.com", &rcpts.iter().map(String::as_str).collect::<Vec<_>>(), BODY);
    }
    bench.empty().await;
    let taken: usize = new.messages().iter().map(|message| message.rcpts.len()).sum();
    assert_eq!(taken, 20 * 101);
    let expected = [(Some(Provider::Google), 20), (Some(Provider::Other), 2000), (None, 2020)];
    assert_eq!(offered(&bench).await, expected, "the best guess");
    let deadline = Instant::now() + PATIENCE;
    while bench.metrics().mx_lookups.of(MxResult::Failed).get() == 0 {
        assert!(Instant::now() < deadline, "the failures are counted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_lanes_for_providers_no_name_server_hears_of_the_recipients() {
    for providers in ["off", "no ramp"] {
        let new = Script::new().start().await;
        let server = NameServer::start(Say::NoDomain);
        let mut setup = ramp(&new, &server, "\"off\"");
        if providers == "no ramp" {
            setup.more.truncate(setup.more.find("[warmup]").expect("it is there"));
        }
        let bench = Bench::start(&setup).await;
        bench.send("sender@example.com", &["x@workspace.example", "y@contoso.example"], BODY);
        bench.empty().await;
        assert_eq!(new.messages().len(), 1, "one item");
        bench.stop().await;
        assert_eq!(server.asked(), Vec::<String>::new(), "{providers}");
    }
}
