//! How long a start takes with a long queue. Not run by default: it stores a million messages.
//!
//! `cargo test --release --test start_speed -- --ignored --nocapture`; `MAILRAMP_QUEUED` sets another number.

#[path = "common/process.rs"]
mod process;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use mailramp::clock::{Clock, SystemClock};
use mailramp::message::*;
use mailramp::policy::{Calendar, StreamRules};
use mailramp::relay::gate::WarmupGate;
use mailramp::spool::body::NewBody;
use mailramp::spool::disk::DataDirectory;
use mailramp::spool::sqlite::{DiskLimits, SqliteStore};
use mailramp::spool::{Accept, Batch, NoSlots, Part, Spool};
use process::{Running, Settings, run};

const AT_ONCE: u64 = 1_000;
const BODY_OCTETS: usize = 1_000;

/// Stores so many messages as an application would have, without the front door.
fn fill(data_dir: &Path, messages: u64) {
    let limits = DiskLimits { min_free: 1 << 20, max_used: u64::MAX };
    let store = SqliteStore::open(DataDirectory::open(data_dir).unwrap(), limits).unwrap();
    let now = SystemClock.now();
    let (mut spool, _) = Spool::open(store, now).unwrap();
    let gate = WarmupGate::new(None, Calendar::new(jiff::tz::TimeZone::UTC), vec![StreamRules::default()]);
    for first in (1..=messages).step_by(AT_ONCE as usize) {
        let accept = |n: u64| Accept {
            id: QueueId(n),
            reverse_path: "sender@example.com".into(),
            parameters: Default::default(),
            parts: vec![Part {
                lane: LaneId::TOTAL,
                stream: StreamId::DEFAULT,
                recipients: vec![Recipient {
                    path: format!("m{n}@example.net").into(),
                    parameters: Default::default(),
                }],
                only: None,
            }],
            body: NewBody::small(vec![b'x'; BODY_OCTETS].into()),
        };
        let accepts = (first..first + AT_ONCE).map(accept).collect();
        spool.apply(&Batch { accepts, ..Batch::default() }, &gate, &NoSlots, now).unwrap();
    }
}

#[test]
#[ignore = "stores a million messages; for a release build"]
fn a_start_with_a_million_queued_takes_well_under_a_second() {
    let queued = std::env::var("MAILRAMP_QUEUED").map_or(1_000_000, |n| n.parse().expect("a number"));
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap(); // nobody listens there
    let mut worst = Vec::new();
    for messages in [0, queued] {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::new(folder.path(), nowhere, None);
        let config = settings.save(folder.path());
        let began = Instant::now();
        fill(&settings.data_dir, messages);
        println!("{messages} queued: stored within {:.1?}", began.elapsed());
        let mut took = Vec::new();
        for round in 0..6 {
            let relay = Running::start(&config);
            took.push(relay.greeted_after);
            if round % 2 == 0 { relay.kill() } else { relay.stop() }
        }
        println!("{messages} queued: greeted after {took:.1?}, killed and stopped by turns");
        worst.push(*took.iter().max().expect("several"));
        let relay = Running::start(&config);
        for arguments in [
            &["status"][..],
            &["queue", "list"],
            &["queue", "flush", "--state", "deferred"],
            &["queue", "drop", "--all"],
        ] {
            let began = Instant::now();
            let ended = run(arguments, &config);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            println!("{messages} queued: {arguments:?} took {:.1?}", began.elapsed());
        }
        relay.stop();
    }
    assert!(worst[1].as_secs_f64() < 2.0, "{worst:?}");
}
