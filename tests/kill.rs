//! kill -9 of the real binary under load, again and again on one data directory: nothing that was acknowledged is lost,
//! nothing goes by both routes, the limit holds, and only what was in flight may come twice. An orderly stop repeats
//! nothing at all.
//!
//! `MAILRAMP_KILL_SEED` repeats a run's choices (the machine's timing still differs); `MAILRAMP_KILLS` is the number of
//! kills of each campaign, for a longer one.

#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use process::{PATIENCE, Running, Settings};
use scripted::{Script, Scripted, Taken};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 6;
/// Where a message is, out of the three places that matter to the spool: rows, segments, files of their own.
const IN_SEGMENT_EVERY: u64 = 10;
const IN_FILE_EVERY: u64 = 400;
const SEVERAL_RECIPIENTS_EVERY: u64 = 5;
/// Messages by which a queue must get shorter within [`PATIENCE`].
const DRAIN_STEP: u64 = 10_000;

/// Start to greeting after a kill, median and worst: what we want to reach on a machine that does nothing else.
const GREETING_GOALS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// One after the other: each wants the whole machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn body(id: u64) -> Vec<u8> {
    let size = match id {
        id if id % IN_FILE_EVERY == 0 => 1_100_000,
        id if id % IN_SEGMENT_EVERY == 0 => 12_000,
        _ => 400,
    };
    let line = format!(".{id} the quick brown fox jumps over the lazy dog\r\n");
    let text = format!("Subject: {id}\r\n\r\n{}", line.repeat(size / line.len() + 1));
    text.into_bytes()
}

fn recipients(id: u64) -> Vec<String> {
    let count = if id.is_multiple_of(SEVERAL_RECIPIENTS_EVERY) { 3 } else { 1 };
    (0..count).map(|n| format!("m{id}r{n}@example.net")).collect()
}

fn envelope(id: u64) -> Vec<u8> {
    let rcpts: String = recipients(id).iter().map(|r| format!("RCPT TO:<{r}>\r\n")).collect();
    format!("MAIL FROM:<sender@example.com>\r\n{rcpts}DATA\r\n").into_bytes()
}

fn stuffed(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + body.len() / 16);
    for line in body.split_inclusive(|octet| *octet == b'\n') {
        if line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out
}

/// The application: a few connections that send without a pause, each message once.
struct Load {
    relay: watch::Sender<Option<SocketAddr>>,
    acknowledged: Arc<std::sync::Mutex<Vec<u64>>>,
    senders: JoinSet<()>,
}

impl Load {
    fn start() -> Load {
        let (relay, address) = watch::channel(None);
        let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
        let next = Arc::new(AtomicU64::new(1));
        let mut senders = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (mut address, acknowledged, next) = (address.clone(), acknowledged.clone(), next.clone());
            senders.spawn(async move {
                // Ends when the load is dropped.
                while address.wait_for(Option::is_some).await.is_ok() {
                    let relay = address.borrow_and_update().expect("just seen");
                    let _ = send_until_cut(relay, &next, &acknowledged).await;
                    // What was cut stays cut: wait for another relay.
                    while *address.borrow() == Some(relay) && address.changed().await.is_ok() {}
                }
            });
        }
        Load { relay, acknowledged, senders }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().expect("nobody panics with it").len()
    }

    async fn end(self) -> Vec<u64> {
        drop(self.relay);
        self.senders.join_all().await;
        Arc::into_inner(self.acknowledged).expect("the senders are gone").into_inner().expect("nobody panicked")
    }
}

/// Sends pipelined, the next envelope in one write with the final dot of the message before it.
async fn send_until_cut(
    relay: SocketAddr,
    next: &AtomicU64,
    acknowledged: &std::sync::Mutex<Vec<u64>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(relay).await?);
    stream.get_ref().set_nodelay(true)?;
    expect(&mut stream, 220).await?;
    stream.write_all(b"EHLO app.example\r\n").await?;
    expect(&mut stream, 250).await?;
    let mut id = next.fetch_add(1, Ordering::Relaxed);
    stream.write_all(&envelope(id)).await?;
    loop {
        for _ in 0..=recipients(id).len() {
            expect(&mut stream, 250).await?;
        }
        expect(&mut stream, 354).await?;
        let after = next.fetch_add(1, Ordering::Relaxed);
        let octets = [stuffed(&body(id)), b".\r\n".to_vec(), envelope(after)].concat();
        stream.write_all(&octets).await?;
        expect(&mut stream, 250).await?;
        acknowledged.lock().expect("nobody panics with it").push(id);
        id = after;
    }
}

/// Reads one reply. The relay must not refuse anything here: over the limit is no error to the application.
async fn expect(stream: &mut BufReader<TcpStream>, code: u16) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || !line.ends_with('\n') {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.starts_with("421 ") {
            // It stops in order: as good as a cut, and said so.
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        assert!(line.starts_with(&code.to_string()), "{code} was expected, not {line}");
        if line.as_bytes().get(3) == Some(&b' ') {
            return Ok(());
        }
    }
}

/// What arrived, by message and recipient, with the number of copies.
#[derive(Default)]
struct Arrived {
    copies: HashMap<(u64, String), usize>,
    /// Transactions that brought a recipient what it had already.
    repeated: usize,
}

impl Arrived {
    fn at(server: &Scripted) -> Arrived {
        let mut arrived = Arrived::default();
        for message in server.messages() {
            let id = identify(&message);
            let mut repeated = false;
            for rcpt in &message.rcpts {
                let address = rcpt.strip_prefix("RCPT TO:<").and_then(|r| r.split('>').next()).expect("a path");
                let copies = arrived.copies.entry((id, address.to_owned())).or_default();
                *copies += 1;
                repeated |= *copies > 1;
            }
            arrived.repeated += usize::from(repeated);
        }
        arrived
    }

    /// Copies of all recipients.
    fn recipients(&self) -> u64 {
        self.copies.values().sum::<usize>() as u64
    }
}

/// The number of the message, if it came as it was sent, below one line of ours.
fn identify(message: &Taken) -> u64 {
    let (ours, sent) = message.body.split_at(received_line(&message.body));
    assert!(ours.starts_with(b"Received: from app.example"), "{}", String::from_utf8_lossy(ours));
    let subject = sent.strip_prefix(b"Subject: ").expect("the first line sent");
    let digits = subject.iter().take_while(|c| c.is_ascii_digit()).count();
    let id = std::str::from_utf8(&subject[..digits]).expect("digits").parse().expect("a number");
    assert!(sent == body(id), "message {id} was changed on the way");
    id
}

/// Octets of the first field with its folded lines.
fn received_line(body: &[u8]) -> usize {
    let mut end = 0;
    for line in body.split_inclusive(|octet| *octet == b'\n') {
        if end > 0 && line.first() != Some(&b'\t') {
            break;
        }
        end += line.len();
    }
    end
}

/// The two next hops, which live through all of it.
struct Hops {
    new: Scripted,
    legacy: Scripted,
}

/// One campaign of kills on one data directory.
struct Campaign {
    folder: tempfile::TempDir,
    settings: Settings,
    random: fastrand::Rng,
    seed: u64,
    limit: u64,
    load: Load,
    greetings: Vec<Duration>,
    /// Items that the starts after a kill found in flight.
    in_flight: u64,
}

impl Campaign {
    fn new(new: SocketAddr, legacy: SocketAddr, limit: u64) -> Campaign {
        let seed = std::env::var("MAILRAMP_KILL_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("MAILRAMP_KILL_SEED={seed}");
        let folder = tempfile::tempdir().expect("a folder");
        let settings = Settings::new(folder.path(), new, Some(legacy)).limit(limit, "");
        let random = fastrand::Rng::with_seed(seed);
        Campaign { folder, settings, random, seed, limit, load: Load::start(), greetings: Vec::new(), in_flight: 0 }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the relay on what the one before it left, and has the load go to it.
    async fn start(&mut self, warmup: &str) -> Running {
        self.settings.warmup = warmup.to_owned();
        let config = self.settings.save(self.path());
        let relay = blocking(move || Running::start(&config)).await;
        self.greetings.push(relay.greeted_after);
        let opened = relay.logged("spool.opened");
        assert_eq!(opened[0]["damaged"], 0, "kill -9 damages nothing: {opened:?}");
        self.in_flight += opened[0]["in_flight"].as_u64().expect("a number");
        relay
    }

    /// Kills one relay after the other in the middle of its work; `look` is asked of each after its start.
    async fn kill(&mut self, kills: usize, warmups: &[String], mut look: impl FnMut(&serde_json::Value)) {
        for round in 0..kills {
            let relay = self.start(&warmups[round % warmups.len()]).await;
            let before = self.load.acknowledged();
            self.load.relay.send_replace(Some(relay.smtp));
            let moment = Duration::from_millis(self.random.u64(50..700));
            let (relay, status) = blocking(move || {
                let status = relay.status();
                (relay, status)
            })
            .await;
            look(&status);
            tokio::time::sleep(moment).await;
            // A kill before the first message says little; the wait is for slow machines.
            until(|| self.load.acknowledged() > before).await;
            self.load.relay.send_replace(None);
            relay.kill();
        }
    }

    fn report(&mut self, name: &str, kills: usize, acknowledged: usize, repeated: usize) {
        self.greetings.sort();
        let median = self.greetings[self.greetings.len() / 2];
        let worst = self.greetings[self.greetings.len() - 1];
        println!(
            "{name}: {kills} ends, {acknowledged} messages acknowledged, 0 lost, {repeated} came twice of {} in flight \
             at the ends; start to greeting {median:.0?} median, {worst:.0?} worst (goals {:.0?}, {:.0?})",
            self.in_flight, GREETING_GOALS[0], GREETING_GOALS[1]
        );
    }
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    tokio::task::spawn_blocking(work).await.expect("does not panic")
}

async fn until(mut yes: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !yes() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn waiting(status: &serde_json::Value, states: &[&str]) -> u64 {
    states.iter().map(|state| status["queue"][state]["messages"].as_u64().expect("a number")).sum()
}

/// Until nothing waits in these states. A long campaign leaves a long queue, so patience is for each part of it.
async fn drained(relay: Running, states: &'static [&'static str]) -> Running {
    blocking(move || {
        let mut left = waiting(&relay.status(), states);
        while left > 0 {
            let goal = left.saturating_sub(DRAIN_STEP);
            let shorter = || {
                left = waiting(&relay.status(), states);
                left <= goal
            };
            process::until("the queue drains", shorter, || format!("{:#}", relay.status()));
        }
        relay
    })
    .await
}

/// Nothing acknowledged is missing, and nothing went both ways.
fn check(acknowledged: &[u64], new: &Arrived, legacy: &Arrived, seed: u64) {
    let both: Vec<_> = new.copies.keys().filter(|key| legacy.copies.contains_key(*key)).collect();
    let some = &both[..both.len().min(10)];
    assert!(both.is_empty(), "{} went by both routes, such as {some:?} (seed {seed})", both.len());
    let arrived: HashSet<_> = new.copies.keys().chain(legacy.copies.keys()).collect();
    let wanted = acknowledged.iter().flat_map(|id| recipients(*id).into_iter().map(move |r| (*id, r)));
    let lost: Vec<_> = wanted.filter(|key| !arrived.contains(key)).collect();
    let some = &lost[..lost.len().min(10)];
    assert!(lost.is_empty(), "{} acknowledged and lost, such as {some:?} (seed {seed})", lost.len());
}

fn kills(usual: usize) -> usize {
    std::env::var("MAILRAMP_KILLS").ok().and_then(|s| s.parse().ok()).unwrap_or(usual)
}

fn limited(limit: u64, hourly: &str, burst: &str, overflow: &str) -> String {
    format!(
        "[warmup]\ncurve = \"custom\"\ncustom = [{limit}]\ngrowth = 1.0\ntarget = {limit}\nproviders = \"off\"\n\
         [warmup.pace]\nhourly = \"{hourly}\"\nburst = \"{burst}\"\n[warmup.overflow]\n{overflow}\n"
    )
}

const LEGACY: &str = "policy = \"legacy\"";
const HOLD_THEN_LEGACY: &str = "policy = \"hold-then-legacy\"\nmax_wait = \"1s\"";

/// The common part of the campaigns whose next hops are up all the time.
async fn kills_under_load(name: &str, usual_kills: usize, limit: u64, warmups: &[String]) {
    let _alone = ALONE.lock().await;
    let hops = Hops { new: Script::new().start().await, legacy: Script::new().start().await };
    let mut campaign = Campaign::new(hops.new.address, hops.legacy.address, limit);
    let kills = kills(usual_kills);
    let mut seen_before = 0;
    campaign
        .kill(kills, warmups, |status| {
            let used = status["warmup"]["used"].as_u64().expect("a number");
            assert!(used >= seen_before, "new had seen {seen_before}, the ledger of the restart says {used}");
            assert!(used <= limit, "{used} used of {limit}");
            seen_before = Arrived::at(&hops.new).recipients();
        })
        .await;
    // Everything but what waits for tomorrow's tokens on the route that may have it.
    let relay = campaign.start(&warmups[0]).await;
    let relay = drained(relay, &["ready", "deferred", "inflight"]).await;
    let (relay, status) = blocking(move || {
        let status = relay.status();
        (relay, status)
    })
    .await;
    let used = status["warmup"]["used"].as_u64().expect("a number");
    blocking(move || relay.stop()).await;
    let seen = Arrived::at(&hops.new).recipients();
    assert!(seen > 0, "some must have gone by new");
    assert!(seen <= limit, "new saw {seen} recipients, the limit is {limit} (seed {})", campaign.seed);
    assert!(used >= seen && used <= limit, "the ledger says {used}, new saw {seen}, the limit is {limit}");
    // Without a ramp nothing waits any more.
    let relay = campaign.start("").await;
    let relay = drained(relay, &["held", "ready", "deferred", "inflight"]).await;
    blocking(move || relay.stop()).await;
    let load = std::mem::replace(&mut campaign.load, Load::start());
    let acknowledged = load.end().await;
    let (new, legacy) = (Arrived::at(&hops.new), Arrived::at(&hops.legacy));
    check(&acknowledged, &new, &legacy, campaign.seed);
    let repeated = new.repeated + legacy.repeated;
    campaign.report(name, kills, acknowledged.len(), repeated);
    println!("{name}: new saw {seen} of {limit}, {used} used; {} in all by legacy", legacy.recipients());
    assert!(repeated as u64 <= campaign.in_flight, "{repeated} came twice, {} were in flight", campaign.in_flight);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_around_the_moment_the_limit_is_reached_lose_nothing_and_never_exceed_it() {
    let warmups = [LEGACY, HOLD_THEN_LEGACY].map(|overflow| limited(1500, "100%", "100%", overflow));
    kills_under_load("limit reached", 14, 1500, &warmups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_a_pace_lets_mail_out_one_by_one_lose_nothing() {
    // Ten a second, so that at every kill some wait for a token and some are on their way to new.
    let warmups = [HOLD_THEN_LEGACY, LEGACY].map(|overflow| limited(36_000, "100%", "0.2%", overflow));
    kills_under_load("paced", 10, 36_000, &warmups).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_with_both_next_hops_down_lose_nothing_and_repeat_nothing() {
    let _alone = ALONE.lock().await;
    let [(new, new_address), (legacy, legacy_address)] = [Scripted::reserve(), Scripted::reserve()];
    const LIMIT: u64 = 150;
    let mut campaign = Campaign::new(new_address, legacy_address, LIMIT);
    let warmups = [LEGACY, HOLD_THEN_LEGACY].map(|overflow| limited(LIMIT, "100%", "100%", overflow));
    let kills = kills(6);
    campaign
        .kill(kills, &warmups, |status| assert_eq!(status["warmup"]["used"], 0, "nothing can leave: {status}"))
        .await;
    let hops = Hops {
        new: Scripted::start_on(new, Script::new()).await,
        legacy: Scripted::start_on(legacy, Script::new()).await,
    };
    let relay = campaign.start(&warmups[0]).await;
    let relay = drained(relay, &["held", "ready", "deferred", "inflight"]).await;
    blocking(move || relay.stop()).await;
    let load = std::mem::replace(&mut campaign.load, Load::start());
    let acknowledged = load.end().await;
    let (new, legacy) = (Arrived::at(&hops.new), Arrived::at(&hops.legacy));
    check(&acknowledged, &new, &legacy, campaign.seed);
    let seen = new.recipients();
    assert!(seen > 0 && seen <= LIMIT, "new saw {seen} of {}", campaign.limit);
    let repeated = new.repeated + legacy.repeated;
    campaign.report("next hops down", kills, acknowledged.len(), repeated);
    assert_eq!(repeated, 0, "nothing was ever in flight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orderly_stops_under_load_lose_nothing_and_repeat_nothing() {
    let _alone = ALONE.lock().await;
    const STOPS: usize = 5;
    const LIMIT: u64 = 800;
    let hops = Hops { new: Script::new().start().await, legacy: Script::new().start().await };
    let mut campaign = Campaign::new(hops.new.address, hops.legacy.address, LIMIT);
    let warmup = limited(LIMIT, "100%", "100%", LEGACY);
    for _ in 0..STOPS {
        let relay = campaign.start(&warmup).await;
        let before = campaign.load.acknowledged();
        campaign.load.relay.send_replace(Some(relay.smtp));
        let moment = Duration::from_millis(campaign.random.u64(100..700));
        tokio::time::sleep(moment).await;
        until(|| campaign.load.acknowledged() > before).await;
        campaign.load.relay.send_replace(None);
        blocking(move || relay.stop()).await;
    }
    let relay = campaign.start("").await;
    let relay = drained(relay, &["held", "ready", "deferred", "inflight"]).await;
    blocking(move || relay.stop()).await;
    let load = std::mem::replace(&mut campaign.load, Load::start());
    let acknowledged = load.end().await;
    let (new, legacy) = (Arrived::at(&hops.new), Arrived::at(&hops.legacy));
    check(&acknowledged, &new, &legacy, campaign.seed);
    let repeated = new.repeated + legacy.repeated;
    campaign.report("orderly stops", STOPS, acknowledged.len(), repeated);
    assert_eq!((campaign.in_flight, repeated), (0, 0), "whatever was on its way had its answer written down");
}
