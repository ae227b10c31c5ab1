//! Whole sessions fed with mutated transcripts: what must hold whatever a client sends.
//!
//! The corpus are the client's lines of `tests/dialogues/`; [`mutator`] splices commands, lengths, chunk boundaries and
//! STARTTLS, AUTH and BDAT into each other, [`drive`] runs the session twice, octet by octet and in random parts, and
//! [`model`] counts the replies with a reader of its own. What was accepted is written as delivery writes it and read by the
//! laxest reader there is ([`smuggling`]).
//!
//! `MAILRAMP_FUZZ_SECONDS=n` goes on for so long (default 2). The seed of a failing case is printed; `MAILRAMP_FUZZ_SEED=n`
//! runs that case alone.

mod drive;
mod model;
mod mutator;
mod smuggling;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use drive::{Outcome, Setup};

/// Different reply lines that there may be. Far more of them would mean that clients can write into replies.
const REPLY_LINES_MAX: usize = 100;

#[test]
fn no_input_breaks_a_session() {
    let corpus = mutator::corpus();
    let mut lines = BTreeSet::new();
    if let Some(seed) = number("MAILRAMP_FUZZ_SEED") {
        case(seed, &corpus, &mut lines);
        return;
    }
    let seconds = number("MAILRAMP_FUZZ_SECONDS").unwrap_or(2);
    let started = Instant::now();
    let first = fastrand::u64(..) >> 16;
    println!("first seed {first}, {seconds} s");
    let (mut cases, mut accepted) = (0u64, 0u64);
    while started.elapsed() < Duration::from_secs(seconds) {
        accepted += case(first + cases, &corpus, &mut lines);
        cases += 1;
    }
    println!("{cases} cases, {accepted} messages accepted, {} different reply lines", lines.len());
    assert!(lines.len() <= REPLY_LINES_MAX, "{lines:#?}");
    assert!(cases < 100 || accepted > 0, "nothing is ever accepted: the corpus has lost its point");
}

/// Runs one case and returns how many messages it got accepted.
fn case(seed: u64, corpus: &[mutator::Dialogue], lines: &mut BTreeSet<String>) -> u64 {
    let _named = Named(seed);
    let mut random = fastrand::Rng::with_seed(seed);
    let setup = Setup::random(&mut random);
    let input = mutator::input(corpus, &mut random);
    let single = drive::run(&setup, &input, |_| 1);
    let parted = drive::run(&setup, &input, |left| random.usize(1..=left.min(400)));
    for outcome in [&single, &parted] {
        model::check(&input, outcome);
        for (envelope, text) in &outcome.accepted {
            smuggling::check(envelope, text, &mut random);
        }
    }
    compare(&single, &parted);
    lines.extend(single.replies.iter().flat_map(|reply| reply.lines.iter().cloned()));
    single.accepted.len() as u64
}

/// However the input is cut, the outcome is the same, but where the session says that it is not.
fn compare(single: &Outcome, parted: &Outcome) {
    let cut_short = parted.replies.last().is_some_and(|reply| {
        let last = reply.lines.last().map_or("", String::as_str);
        parted.closed && (last == "421 4.7.0 Commands behind STARTTLS" || last.starts_with("550 5.6.11 "))
    });
    if !cut_short {
        assert_eq!(single, parted, "octet by octet, and in parts");
        return;
    }
    // The last reply to STARTTLS differs, the one to a refused look-alike does not.
    let same = parted.replies.len() - 1;
    assert_eq!(single.replies[..same], parted.replies[..same]);
    assert!(single.accepted.starts_with(&parted.accepted));
}

/// Prints the seed when a case panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed: run again with MAILRAMP_FUZZ_SEED={}", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
