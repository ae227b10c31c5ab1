//! Makes inputs out of the transcripts: whole lines first, octets later.

use std::fs;

/// Stands in what the client sends and never in what we say ourselves.
pub const MARK: &str = "zq7x";

const INPUT_MAX_OCTETS: usize = 64 * 1024;
const REPEATS_MAX: usize = 30;

/// The client's lines of one transcript, with their line ends.
pub type Dialogue = Vec<Vec<u8>>;

pub fn corpus() -> Vec<Dialogue> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogues");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("is there").map(|entry| entry.expect("can be read").path()).collect();
    paths.sort(); // a seed means the same everywhere
    paths.iter().map(|path| dialogue(&fs::read_to_string(path).expect("a transcript is text"))).collect()
}

fn dialogue(transcript: &str) -> Dialogue {
    let mut lines = Vec::new();
    for line in transcript.lines().filter(|line| line.starts_with('C')) {
        let (mark, text) = line.split_once(' ').unwrap_or((line, ""));
        let repeats = mark.split_once('*').and_then(|(_, n)| n.trim_end_matches(':').parse().ok()).unwrap_or(1usize);
        let mut octets = unescape(text);
        if !mark.starts_with("C-") {
            octets.extend_from_slice(b"\r\n");
        }
        // One octet repeated thousands of times tests a limit; a line repeated as often only takes time.
        let repeats = if octets.len() == 1 { repeats } else { repeats.min(REPEATS_MAX) };
        lines.push(octets.repeat(repeats));
    }
    lines
}

fn unescape(text: &str) -> Vec<u8> {
    let (mut octets, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        let (octet, length) = match (first, behind) {
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'0', ..]) => (0, 2),
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            (b'\\', [b'x', high, low, ..]) => {
                let digits = [*high, *low];
                let text = std::str::from_utf8(&digits).expect("digits are ASCII");
                (u8::from_str_radix(text, 16).expect("two hex digits"), 4)
            }
            (other, _) => (*other, 1),
        };
        octets.push(octet);
        rest = &rest[length..];
    }
    octets
}

/// An input that nobody wrote, most often close to one that somebody did.
pub fn input(corpus: &[Dialogue], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut lines = corpus[random.usize(..corpus.len())].clone();
    for _ in 0..random.usize(0..8) {
        change_lines(&mut lines, corpus, random);
    }
    let mut octets = lines.concat();
    octets.truncate(INPUT_MAX_OCTETS);
    for _ in 0..random.usize(0..4) {
        change_octets(&mut octets, random);
    }
    octets
}

fn change_lines(lines: &mut Vec<Vec<u8>>, corpus: &[Dialogue], random: &mut fastrand::Rng) {
    let at = random.usize(..=lines.len());
    let known = at.min(lines.len().saturating_sub(1));
    match random.u8(..9) {
        // The beginning of this one, the end of another.
        0 => {
            let other = &corpus[random.usize(..corpus.len())];
            lines.truncate(at);
            lines.extend_from_slice(&other[random.usize(..=other.len())..]);
        }
        // A few lines of another one in the middle of this.
        1 => {
            let other = &corpus[random.usize(..corpus.len())];
            let from = random.usize(..=other.len());
            let to = random.usize(from..=other.len());
            lines.splice(at..at, other[from..to].iter().cloned());
        }
        2 if !lines.is_empty() => {
            lines.remove(known);
        }
        3 if !lines.is_empty() => lines.insert(at, lines[known].clone()),
        4 if !lines.is_empty() => {
            let other = random.usize(..lines.len());
            lines.swap(known, other);
        }
        5 => {
            let text = text(random);
            lines.insert(at, chunk(&text, random));
        }
        6 => lines.insert(at, transaction(random)),
        // Another length in a line that has one.
        7 if !lines.is_empty() => {
            let line = &mut lines[known];
            if let Some(digit) = line.iter().rposition(u8::is_ascii_digit) {
                line[digit] = b'0' + random.u8(..10);
            }
        }
        _ => lines.insert(at, COMMANDS[random.usize(..COMMANDS.len())].as_bytes().to_vec()),
    }
}

fn change_octets(octets: &mut Vec<u8>, random: &mut fastrand::Rng) {
    let at = random.usize(..=octets.len());
    match random.u8(..4) {
        0 => {
            let piece = PIECES[random.usize(..PIECES.len())];
            octets.splice(at..at, piece.iter().copied());
        }
        1 if at < octets.len() => octets[at] ^= 1 << random.u8(..8),
        2 if at < octets.len() => {
            octets.remove(at);
        }
        3 if random.u8(..4) == 0 => octets.truncate(at),
        _ => {}
    }
}

/// BDAT with the right length, most often.
fn chunk(text: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let announced = match random.u8(..6) {
        0 => text.len() + 1,
        1 => text.len().saturating_sub(1),
        _ => text.len(),
    };
    let last = if random.bool() { " LAST" } else { "" };
    [format!("BDAT {announced}{last}\r\n").as_bytes(), text].concat()
}

/// A whole message, in a session that allows it, by DATA or in chunks.
fn transaction(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut octets = b"EHLO c\r\nRSET\r\nMAIL FROM:<zq7x@b.example>\r\nRCPT TO:<zq7x@d.example>\r\n".to_vec();
    if random.bool() {
        octets.extend_from_slice(b"DATA\r\n");
        octets.extend_from_slice(&text(random));
        octets.extend_from_slice(b"\r\n.\r\n");
    } else {
        for _ in 0..random.usize(1..4) {
            let text = text(random);
            octets.extend_from_slice(&chunk(&text, random));
        }
    }
    octets
}

fn text(random: &mut fastrand::Rng) -> Vec<u8> {
    // Mostly good ones, so that something is accepted.
    let pieces = if random.u8(..3) == 0 { PIECES } else { &PIECES[..GOOD_PIECES] };
    (0..random.usize(0..6)).flat_map(|_| pieces[random.usize(..pieces.len())].to_vec()).collect()
}

/// The first of [`PIECES`], which leave a message good.
const GOOD_PIECES: usize = 6;
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b".\r\n",
    b"..\r\n",
    b"zq7x\r\n",
    b"X: y\r\n",
    b"\r\n\r\nMAIL FROM:<evil@b.example>\r\n",
    b".",
    b"\r",
    b"\n",
    b"\0",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\xff",
    b"\xc3\xbc",
    b"\"",
    b">",
    b" ",
    b"=",
    b"*",
];

const COMMANDS: &[&str] = &[
    "EHLO zq7x\r\n",
    "HELO zq7x\r\n",
    "RSET\r\n",
    "NOOP zq7x\r\n",
    "DATA\r\n",
    "QUIT\r\n",
    "STARTTLS\r\n",
    "AUTH PLAIN AGFubmEAc2VjcmV0\r\n",
    "AUTH PLAIN AGFubmEAd3Jvbmc=\r\n",
    "AUTH PLAIN\r\nAGFubmEAc2VjcmV0\r\n",
    "AUTH LOGIN\r\nYW5uYQ==\r\nc2VjcmV0\r\n",
    "AUTH LOGIN YW5uYQ==\r\n",
    "AUTH PLAIN\r\n",
    "*\r\n",
    "MAIL FROM:<zq7x@b.example> SMTPUTF8 ENVID=zq7x RET=HDRS\r\n",
    "MAIL FROM:<\"zq7x>\\\" \"@b.example> SIZE=10\r\n",
    "MAIL FROM:<> BODY=8BITMIME AUTH=<>\r\n",
    "RCPT TO:<zq7x\u{fc}@d.example> NOTIFY=NEVER\r\n",
    "RCPT TO:<zq7x@d.example> ORCPT=rfc822;zq7x+2B@d.example\r\n",
    "ZQ7X zq7x\r\n",
    "VRFY zq7x\r\n",
    "BDAT 0\r\n",
    "BDAT 0 LAST\r\n",
    "BDAT 5 LAST\r\nzq7\r\n",
    "BDAT 18446744073709551615\r\n",
    "BDAT 18446744073709551616\r\n",
];
