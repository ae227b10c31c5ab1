//! Bits that flip on the disk, with the real binary: what is damaged is put aside, counted and said, never sent; the rest
//! goes on. A damaged database ends the process with words that say what to do.
//!
//! `MAILRAMP_ROT_SEED` repeats where the bits flip.

#[path = "common/application.rs"]
mod application;
#[path = "common/process.rs"]
mod process;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use application::Application;
use process::{Running, Settings, run, until};
use rusqlite::Connection;
use scripted::{Script, Scripted};

const MESSAGES: usize = 60;
const IO: Option<i32> = Some(74);

/// In a row, in a segment, or in a file of its own.
fn body(n: usize) -> Vec<u8> {
    let lines = match n % 30 {
        11 | 29 => 40_000,
        k if k % 3 == 0 => 5,
        _ => 300,
    };
    format!("Subject: {n}\r\n\r\n{}", format!("line of message {n}, and no other\r\n").repeat(lines)).into_bytes()
}

fn seeded() -> fastrand::Rng {
    let seed = std::env::var("MAILRAMP_ROT_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().expect("a number"));
    println!("MAILRAMP_ROT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn flip(file: &Path, at: u64, random: &mut fastrand::Rng) {
    let file = fs::OpenOptions::new().read(true).write(true).open(file).expect("is there");
    let mut octet = [0];
    file.read_exact_at(&mut octet, at).expect("inside");
    octet[0] ^= 1 << random.u8(..8);
    file.write_all_at(&octet, at).expect("writes");
}

/// A data directory with mail that waits, its relay stopped in order.
fn filled(folder: &Path) -> (Settings, PathBuf) {
    let (_reserved, down) = Scripted::reserve();
    let settings = Settings::new(folder, down, None);
    let relay = Running::start(&settings.save(folder));
    let mut application = Application::connect(relay.smtp);
    for n in 0..MESSAGES {
        application.send("sender@example.com", &[&format!("m{n}@example.net")], &body(n));
    }
    relay.stop();
    let data = settings.data_dir.clone();
    (settings, data)
}

struct Body {
    number: usize,
    size: u64,
    /// File and offset; none: in the database.
    place: Option<(PathBuf, u64)>,
}

fn bodies(data: &Path) -> Vec<Body> {
    let rows = Connection::open(data.join("spool.db")).unwrap();
    let sql = "SELECT size, seg, off, data IS NULL, message FROM body ORDER BY id";
    let mut statement = rows.prepare(sql).unwrap();
    type Row = (u64, Option<i64>, Option<u64>, bool, i64);
    let read = |r: &rusqlite::Row<'_>| -> rusqlite::Result<Row> {
        Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?))
    };
    let found = statement.query_map([], read).unwrap().map(Result::unwrap).enumerate();
    let place = |(number, (size, seg, off, elsewhere, message)): (usize, Row)| {
        let name = mailramp::message::QueueId(message as u64).to_string();
        let place = match (seg, elsewhere) {
            (Some(seg), _) => Some((data.join(format!("segments/{seg:08}.seg")), off.unwrap())),
            (None, true) => Some((data.join("large").join(name), 0)),
            (None, false) => None,
        };
        Body { number, size, place }
    };
    found.map(place).collect()
}

fn metric(relay: &Running, name: &str) -> Option<u64> {
    let mut stream = std::net::TcpStream::connect(relay.http).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn numbers(server: &Scripted) -> BTreeSet<usize> {
    let number = |message: &scripted::Taken| {
        let to = message.rcpts[0].strip_prefix("RCPT TO:<m").and_then(|rest| rest.split_once('@'));
        let n: usize = to.expect("ours").0.parse().expect("a number");
        assert!(message.body.ends_with(&body(n)), "message {n} was sent damaged");
        n
    };
    server.messages().iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_has_damaged_is_put_aside_and_counted_and_the_rest_is_delivered() {
    let mut random = seeded();
    let folder = tempfile::tempdir().unwrap();
    let (mut settings, data) = tokio::task::block_in_place(|| filled(folder.path()));
    let stored = bodies(&data);
    assert_eq!(stored.len(), MESSAGES);
    let mut damaged = BTreeSet::new();
    // Flipped bits in segments and in large files, wherever they fall.
    let outside: Vec<&Body> = stored.iter().filter(|body| body.place.is_some()).collect();
    for _ in 0..6 {
        let body = outside[random.usize(..outside.len())];
        let (file, offset) = body.place.as_ref().unwrap();
        // Twice the same bit would mend it.
        if damaged.insert(body.number) {
            flip(file, offset + random.u64(..body.size), &mut random);
        }
    }
    // A large file that is gone, and one in a row.
    let large = |body: &&&Body| body.size > 1 << 20 && !damaged.contains(&body.number);
    if let Some(body) = outside.iter().find(large) {
        let number = body.number;
        fs::remove_file(&body.place.as_ref().unwrap().0).unwrap();
        damaged.insert(number);
    }
    let rows = Connection::open(data.join("spool.db")).unwrap();
    let in_row = stored.iter().filter(|body| body.place.is_none()).nth(random.usize(..10)).unwrap();
    rows.execute(
        "UPDATE body SET data = CAST(replace(data, 'line of', 'lime of') AS BLOB) WHERE id = ?1",
        [in_row.number + 1],
    )
    .unwrap();
    damaged.insert(in_row.number);
    // An address that is another by one letter.
    let envelope = stored.iter().filter(|body| !damaged.contains(&body.number)).nth(random.usize(..20)).unwrap();
    rows.execute(
        "UPDATE item SET envelope = CAST(replace(envelope, 'example.net', 'exbmple.net') AS BLOB) WHERE id = ?1",
        [envelope.number + 1],
    )
    .unwrap();
    damaged.insert(envelope.number);
    drop(rows);

    let new = Script::new().start().await;
    settings.new = new.address;
    let config = settings.save(folder.path());
    tokio::task::block_in_place(|| {
        let relay = Running::start(&config);
        let sound = MESSAGES - damaged.len();
        until("the rest is delivered", || new.messages().len() >= sound, || relay.status().to_string());
        let aside = || relay.status()["queue"]["quarantined"]["messages"].as_u64().unwrap() as usize;
        until("the damaged is put aside", || aside() == damaged.len(), || relay.status().to_string());
        let rows = relay.queue();
        assert!(rows.len() == damaged.len() && rows.iter().all(|row| row["state"] == "quarantined"), "{rows:?}");
        // What a start finds has no counter yet; it is in the gauge and in the log.
        let (at_start, later): (Vec<_>, Vec<_>) =
            relay.logged("spool.damaged").into_iter().partition(|entry| entry.get("id").is_none());
        let at_start = at_start.iter().map(|entry| entry["messages"].as_u64().unwrap()).sum::<u64>();
        assert_eq!(at_start + later.len() as u64, damaged.len() as u64);
        assert_eq!(metric(&relay, "mailramp_spool_errors_total"), Some(later.len() as u64));
        let gauge = "mailramp_queue_messages{state=\"quarantined\"}";
        assert_eq!(metric(&relay, gauge), Some(damaged.len() as u64));
        // They stay where they are: not sent, not due by a flush, and new mail goes by.
        assert!(run(&["queue", "flush", "--all", "--yes"], &config).out.contains("damaged"));
        Application::connect(relay.smtp).send("sender@example.com", &["m60@example.net"], &body(60));
        until("new mail goes by", || new.messages().len() > sound, || relay.status().to_string());
        relay.stop();
    });
    let want: BTreeSet<usize> = (0..=MESSAGES).filter(|n| !damaged.contains(n)).collect();
    assert_eq!(numbers(&new), want);
    assert!(new.messages().iter().all(|message| message.rcpts[0].ends_with("@example.net>")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_ends_the_process_with_74_and_says_what_to_do() {
    let mut random = seeded();
    let folder = tempfile::tempdir().unwrap();
    tokio::task::block_in_place(|| {
        let (settings, data) = filled(folder.path());
        let config = settings.save(folder.path());
        let database = data.join("spool.db");
        let sound = fs::read(&database).unwrap();
        for (what, pages) in [("the first page", 0..1), ("all but the first", 1..sound.len() / 4096)] {
            let mut octets = sound.clone();
            random.fill(&mut octets[pages.start * 4096..pages.end * 4096]);
            fs::write(&database, octets).unwrap();
            let ended = run(&["run"], &config);
            assert_eq!(ended.code, IO, "{what}: {ended:?}");
            for words in ["spool.db is damaged", "Starting again does not help", "backup"] {
                assert!(ended.errors.contains(words), "{what}, {words:?}: {ended:?}");
            }
        }
        // Mended, it goes on: nothing else was touched.
        fs::write(&database, sound).unwrap();
        let relay = Running::start(&config);
        assert_eq!(relay.queue().len(), MESSAGES);
        relay.stop();
    });
}
