//! `mailramp demo`: the real relay between an application and two servers, all of them on this machine, and a ramp of
//! fifteen days with a day squeezed into seconds.
//!
//! Only the clock is not real: sockets, spool, ledger and decisions are those of `mailramp run`. Nothing leaves the
//! machine and nothing stays on it. In the end every accepted message is accounted for, or the exit code is 1.

mod account;
mod application;
mod client;
mod picture;
mod sink;
mod stage;
mod watch;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::interval;

use self::account::{Account, Evidence};
use self::application::Diary;
use self::picture::Picture;
use self::stage::{START, Scratch, Stage};
use super::text::{self, count, counted};
use super::{Context, Failure, exit};
use crate::log;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Arguments of `mailramp demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long a day takes
    #[arg(long, default_value = "1d=12s", value_name = "1d=TIME")]
    speed: Speed,
    /// How many days
    #[arg(long, default_value_t = 15, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=30))]
    days: u32,
    /// Recipients on a working day, and the target of the ramp
    #[arg(long, default_value_t = 12_000, value_name = "N", value_parser = clap::value_parser!(u64).range(50..=1_000_000))]
    target: u64,
    /// Draw the same mail again
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stay open afterwards, for mail of your own
    #[arg(long)]
    keep: bool,
    /// Where the relay listens on 127.0.0.1; 0: any free port
    #[arg(long, default_value_t = 2525, value_name = "PORT")]
    port: u16,
    /// Where metrics and probes are on 127.0.0.1; 0: any free port
    #[arg(long, default_value_t = 8825, value_name = "PORT")]
    http_port: u16,
}

/// How long a day takes, `1d=12s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    day: Duration,
}

impl Speed {
    fn factor(self) -> f64 {
        DAY.as_secs_f64() / self.day.as_secs_f64()
    }
}

impl FromStr for Speed {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let time = text.strip_prefix("1d=").ok_or("write it as 1d=12s: a day in twelve seconds")?;
        let digits = time.find(|c: char| !c.is_ascii_digit()).unwrap_or(time.len());
        let (number, unit) = time.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            _ => return Err("the time for a day needs its unit: ms, s or m".into()),
        };
        let millis = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis));
        match millis.map(Duration::from_millis) {
            Some(day) if (Duration::from_millis(200)..=DAY).contains(&day) => Ok(Speed { day }),
            _ => Err("a day takes from 200ms to 1440m".into()),
        }
    }
}

/// Runs it to its end.
pub fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let scratch =
        Scratch::make().map_err(|error| Failure::new(exit::DATA_DIR, format!("no temporary directory: {error}")))?;
    if let Ok(file) = std::fs::File::create(scratch.path().join("log")) {
        log::init_file(file, tracing::Level::WARN, log::Addresses::Full);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::IO, format!("cannot start threads: {error}")))?;
    runtime.block_on(demo(options, scratch.path(), context))
}

async fn demo(options: &Options, dir: &Path, context: &mut Context<'_>) -> Result<(), Failure> {
    let mut stop = StopSignals::listen()?;
    let mut stage = Stage::set(options, dir).await?;
    let shown = show(options, dir, &mut stage, &mut stop, context).await;
    let cleared = stage.clear().await;
    shown.and(cleared)
}

async fn show(
    options: &Options,
    dir: &Path,
    stage: &mut Stage,
    stop: &mut StopSignals,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(0..10_000));
    context.write(&introduction(options, stage, seed, context))?;
    let began = Instant::now();
    let diary = Arc::new(Diary::default());
    let plan = application::Plan {
        relay: stage.relay.smtp[0],
        per_day: options.target,
        days: options.days,
        start: START,
        seed,
    };
    stage.clock.go();
    let mut application = tokio::spawn(application::run(plan, stage.clock.clone(), diary.clone()));
    let watched = watch::watch(options, stage, &diary, &mut application, stop, context).await;
    application.abort();
    let course = watched?;
    let account = Account::of(&Evidence {
        accepted: diary.accepted.lock().expect("no holder panics").clone(),
        refused: diary.refused.lock().expect("no holder panics").clone(),
        seen: stage.notebook.seen.lock().expect("no holder panics").clone(),
        days: course.days,
        queued: course.queued,
        second: Duration::from_secs_f64(options.speed.factor()),
    });
    let held = context.paint.dim("held: most recipients that waited for a token at one time");
    let mut text = format!(" {held}\n\n{}", account.render(context.paint));
    let skipped = diary.skipped.load(Ordering::Relaxed);
    if skipped > 0 {
        let note = format!("this machine was too slow for {}", counted(skipped, "message"));
        text.push_str(&format!(" {}  {note}, never sent; try a longer --speed\n", context.paint.warn("NOTE")));
    }
    text.push_str(&format!("took {}; nothing left this machine\n", minutes(began.elapsed())));
    context.write(&text)?;
    if options.keep {
        keep(dir, stage, stop, context).await?;
    }
    if account.is_good() {
        return Ok(());
    }
    Err(Failure::new(exit::NEGATIVE, "the account does not add up: see FAIL above"))
}

fn minutes(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

fn introduction(options: &Options, stage: &Stage, seed: u64, context: &Context<'_>) -> String {
    format!(
        "{}: {} of {} recipients, a day in {:?} (seed {seed})\n\
         application -> mailramp at {} -> new at :{}, legacy at :{}\n\n{}",
        context.paint.bold("mailramp demo"),
        counted(u64::from(options.days), "day"),
        count(options.target),
        options.speed.day,
        stage.relay.smtp[0],
        stage.new.port(),
        stage.legacy.port(),
        Picture::new(options.target, context.paint).heading()
    )
}

/// Stays until it is told to stop, and says what mail of others came where.
async fn keep(dir: &Path, stage: &mut Stage, stop: &mut StopSignals, context: &mut Context<'_>) -> Result<(), Failure> {
    context.write(&format!(
        "\nStill open, days go by as before; Ctrl-C ends it. Send mail to {}\n\
         or try, from another terminal:\n\
         \x20 mailramp status --config {settings}\n\
         \x20 mailramp queue list --config {settings}\n\
         \x20 curl http://{}/metrics\n\
         \x20 cat {}\n\n",
        stage.relay.smtp[0],
        stage.relay.http,
        dir.join("log").display(),
        settings = stage.settings.display(),
    ))?;
    let mut told = stage.notebook.visits.lock().expect("no holder panics").len();
    let mut ticks = interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(()),
            () = stage.relay.died() => return Err(Failure::new(exit::IO, "the spool has stopped")),
            _ = ticks.tick() => {}
        }
        let fresh: Vec<_> = stage.notebook.visits.lock().expect("no holder panics")[told..].to_vec();
        told += fresh.len();
        for visit in fresh {
            let day = visit.at.since(START).as_secs() / DAY.as_secs();
            context.write(&format!(
                "day {} {}  at {}: from <{}> to {}\n",
                day + 1,
                text::local(visit.at, &jiff::tz::TimeZone::UTC, "%a %H:%M"),
                visit.route,
                visit.sender,
                counted(visit.recipients as u64, "recipient")
            ))?;
        }
    }
}

/// SIGINT, SIGTERM, and SIGHUP when the terminal is closed: all of them leave nothing behind.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl StopSignals {
    fn listen() -> Result<StopSignals, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::new(exit::IO, format!("cannot listen for signals: {error}")));
        Ok(StopSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_how_long_a_day_takes() {
        let day = |text: &str| text.parse::<Speed>().map(|speed| speed.day);
        assert_eq!(day("1d=12s"), Ok(Duration::from_secs(12)));
        assert_eq!(day("1d=500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(day("1d=2m"), Ok(Duration::from_secs(120)));
        assert_eq!("1d=12s".parse::<Speed>().unwrap().factor(), 7200.0);
        for text in
            ["", "12s", "1d=", "1d=12", "1d=s", "1d=0s", "1d=-1s", "1d=9d", "1d=99999999999999999999s", "1d=199ms"]
        {
            assert!(day(text).is_err(), "{text}");
        }
    }
}
