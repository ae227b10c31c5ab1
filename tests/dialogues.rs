//! Runs every transcript in `tests/dialogues/` against a session, cut into random chunks. No sockets, no clock.
//!
//! Lines of a transcript:
//!
//! * `# text`: a comment. The first one says which behaviour the file shows.
//! * `set: key value`: changes a setting (see `Setup`); stands before the first `C:`. `set: user anna secret` may log in.
//! * `C: text`: the client sends the text and CRLF. `\r`, `\n`, `\0`, `\\` and `\xNN` stand for octets.
//! * `C- text`: the same without CRLF. `C*50: text`: fifty times.
//! * `S: text`: the server's next reply line, whole. `S*50: text`: fifty times.
//! * `M: text`: a line of the message accepted last, below our `Received:` line.
//! * `E: from <a> to <b> NOTIFY=NEVER <c> with BODY=8BITMIME`: the envelope accepted last; `E: closed`: the server has
//!   closed; `E: nothing accepted`; `E: secure`: TLS is on; `E: user anna`: is logged in; `E: refused for loop`: the reason
//!   of the last refusal; `E: received with ESMTPS`: the `Received:` line written last has that; `E: client named x`: and
//!   that; `E: noted …`: the note for the log made last; `E: tagged x`, `E: untagged`: the stream that the client chose for
//!   the message accepted last; `E: written by x`: its From, with escapes.
//!
//! A handshake succeeds as soon as the server asks for it.
//!
//! Client lines up to the next other line are one batch. Nothing but what the transcript says may be sent.

use std::fs;
use std::sync::Arc;

use mailramp::message::{Envelope, QueueId, Timestamp};
use mailramp::reply::{EnhancedCode, Reply};
use mailramp::smtp::session::{Event, Session};
use mailramp::smtp::{
    AuthPolicy, AuthVerdict, Heading, Login, Note, Refusal, RejectReason, Replies, SessionSettings, TlsMode,
};
use secrecy::ExposeSecret;

const RUNS_PER_DIALOGUE: u64 = 20;

/// What `set:` lines say.
struct Setup {
    settings: SessionSettings,
    client: String,
    /// `set: spool full`: the intake refuses at MAIL. `set: spool breaks`: at the end of data.
    spool: String,
    /// `set: input whole`: batches are not cut, because what is in the buffer matters.
    cut: bool,
    users: Vec<(String, String)>,
    /// `set: checks blocked` or `busy`: what every login is told.
    checks: String,
}

impl Setup {
    fn new() -> Self {
        let settings = SessionSettings {
            hostname: "relay.example".into(),
            allow_from: vec!["192.0.2.0/24".parse().unwrap()],
            ..SessionSettings::default()
        };
        Setup {
            settings,
            client: "192.0.2.1".into(),
            spool: "ok".into(),
            cut: true,
            users: Vec::new(),
            checks: "ok".into(),
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            "max_message_bytes" => self.settings.max_message_bytes = value.parse().unwrap(),
            "max_recipients" => self.settings.max_recipients = value.parse().unwrap(),
            "max_header_bytes" => self.settings.max_header_bytes = value.parse().unwrap(),
            "normalize" => self.settings.normalize = vec![value.parse().unwrap()],
            "client" => self.client = value.into(),
            "stream_header" => self.settings.stream_header = value == "yes",
            "spool" => self.spool = value.into(),
            "input" => self.cut = value != "whole",
            "tls" => {
                self.settings.tls = match value {
                    "starttls" => TlsMode::StartTls,
                    "implicit" => TlsMode::Implicit,
                    other => panic!("unknown kind of TLS {other}"),
                }
            }
            "auth" => {
                self.settings.auth = match value {
                    "optional" => AuthPolicy::Optional,
                    "required" => AuthPolicy::Required,
                    other => panic!("unknown policy {other}"),
                }
            }
            "auth_in_clear" => self.settings.auth_in_clear = value == "yes",
            "user" => {
                let (user, password) = value.split_once(' ').expect("set: user name password");
                self.users.push((user.into(), password.into()));
            }
            "checks" => self.checks = value.into(),
            _ => panic!("unknown setting {key}"),
        }
    }
}

/// A session with its intake played by the test.
struct Talk {
    session: Session,
    spool: String,
    replies: Replies,
    /// Reply lines that the transcript has not mentioned yet.
    said: Vec<u8>,
    body: Vec<u8>,
    received: String,
    accepted: Option<(Envelope, Vec<u8>)>,
    /// Of the message accepted last.
    heading: Heading,
    users: Vec<(String, String)>,
    checks: String,
    secure: bool,
    closed: bool,
}

impl Talk {
    fn new(setup: Setup) -> Self {
        let secure = setup.settings.tls == TlsMode::Implicit;
        let mut talk = Talk {
            session: Session::new(Arc::new(setup.settings), setup.client.parse().unwrap()),
            spool: setup.spool,
            replies: Replies::default(),
            said: Vec::new(),
            body: Vec::new(),
            received: String::new(),
            accepted: None,
            heading: Heading::default(),
            users: setup.users,
            checks: setup.checks,
            secure,
            closed: false,
        };
        if secure {
            talk.session.secured();
        }
        talk.session.greet(&mut talk.replies);
        talk.said.append(&mut talk.replies.bytes);
        talk
    }

    fn hear(&mut self, mut input: &[u8]) {
        let id = QueueId(1);
        loop {
            match self.session.next(&mut input, &mut self.replies) {
                Event::NeedInput => break,
                Event::Flush => {}
                Event::Mail => self.session.sender(refuse_if(self.spool == "full"), &mut self.replies),
                Event::Data => {
                    let line = self.session.begin(id, Timestamp::default(), &mut self.replies);
                    assert!(line.starts_with("Received: from ") && line.ends_with("\r\n"), "{line:?}");
                    self.received = line;
                    self.body.clear();
                }
                Event::Text(text) => self.body.extend_from_slice(&text),
                Event::Message(envelope, heading) => {
                    let result = refuse_if(self.spool == "breaks");
                    if result.is_ok() {
                        self.accepted = Some((envelope, self.body.clone()));
                        self.heading = heading;
                    }
                    self.session.finish(id, result, &mut self.replies);
                }
                Event::Refused => {}
                Event::StartTls => {
                    assert!(input.is_empty(), "octets read in clear would be taken for what came inside TLS");
                    self.secure = true;
                    self.session.secured();
                }
                Event::Auth(login) => {
                    let verdict = self.check(&login);
                    self.session.authenticated(verdict, &mut self.replies);
                }
                Event::Close => {
                    self.closed = true;
                    break;
                }
            }
            self.said.append(&mut self.replies.bytes);
        }
        self.said.append(&mut self.replies.bytes);
    }

    fn check(&self, login: &Login) -> AuthVerdict {
        let known =
            |(user, password): &(String, String)| **user == *login.user && password == login.password.expose_secret();
        match self.checks.as_str() {
            "blocked" => AuthVerdict::Blocked,
            "busy" => AuthVerdict::Busy,
            _ if self.users.iter().any(known) => AuthVerdict::Accepted(login.user.as_ref().into()),
            _ => AuthVerdict::Wrong,
        }
    }

    /// Is what `E: text` says true?
    fn fulfils(&self, text: &str) -> bool {
        match text.split_once(' ') {
            Some(("user", name)) => self.session.user().is_some_and(|user| **user == *name),
            Some(("refused", reason)) => {
                let last = self.replies.rejected.last();
                last.is_some_and(|last| format!("for {}", last.name()) == reason)
            }
            Some(("client", named)) => {
                let name = named.strip_prefix("named ").expect("client named …");
                self.received.starts_with(&format!("Received: from {name} (["))
            }
            Some(("tagged", tag)) => self.heading.tag.as_deref() == Some(tag.as_bytes()),
            Some(("written", by)) => {
                let from = self.heading.from.as_ref().map(|from| from.escape_ascii().to_string());
                from.as_deref() == by.strip_prefix("by ")
            }
            Some(("received", part)) => self.received.contains(&format!(" {part} (mailramp id ")),
            Some(("noted", expected)) => match self.replies.notes.last() {
                Some(Note::BareNewline { hex }) => expected == format!("octets {hex}"),
                Some(Note::PasswordExposed { user }) => {
                    expected == format!("password of {}", user.as_deref().unwrap_or("somebody"))
                }
                None => expected == "nothing",
            },
            _ if text == "untagged" => self.heading == Heading { tag: None, ..self.heading.clone() },
            _ if text == "closed" => self.closed,
            _ if text == "secure" => self.secure,
            _ => self.envelope() == text,
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.said.windows(2).position(|pair| pair == b"\r\n")?;
        let line = String::from_utf8(self.said.drain(..end).collect()).unwrap();
        self.said.drain(..2);
        Some(line)
    }

    fn envelope(&self) -> String {
        let Some((envelope, _)) = &self.accepted else { return "nothing accepted".into() };
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        let mut line = format!("from <{}> to", text(&envelope.reverse_path));
        for recipient in &envelope.recipients {
            line += &format!(" <{}>", text(&recipient.path));
            if !recipient.parameters.is_empty() {
                line += &format!(" {}", text(&recipient.parameters));
            }
        }
        if !envelope.parameters.is_empty() {
            line += &format!(" with {}", text(&envelope.parameters));
        }
        line
    }
}

fn refuse_if(broken: bool) -> Result<(), Refusal> {
    let reply = Reply::new(452, EnhancedCode(4, 3, 1), "Insufficient storage");
    if broken { Err(Refusal { reason: RejectReason::Disk, reply }) } else { Ok(()) }
}

/// `\n` and the like to octets.
fn unescape(text: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        octets.extend_from_slice(&rest.as_bytes()[..at]);
        let (octet, length) = match rest.as_bytes()[at + 1] {
            b'r' => (b'\r', 2),
            b'n' => (b'\n', 2),
            b'0' => (0, 2),
            b'\\' => (b'\\', 2),
            b'x' => (u8::from_str_radix(&rest[at + 2..at + 4], 16).expect("two hex digits"), 4),
            other => panic!("unknown escape {:?}", char::from(other)),
        };
        octets.push(octet);
        rest = &rest[at + length..];
    }
    octets.extend_from_slice(rest.as_bytes());
    octets
}

/// `C*50: text` to (`C:`, 50, `text`).
fn split(line: &str) -> (String, usize, &str) {
    let (mark, text) = line.split_once(' ').unwrap_or((line, ""));
    match mark.trim_end_matches(':').split_once('*') {
        Some((mark, times)) => (format!("{mark}:"), times.parse().expect("a number behind *"), text),
        None => (mark.to_owned(), 1, text),
    }
}

fn run(name: &str, transcript: &str, random: &mut fastrand::Rng) {
    let mut setup = Setup::new();
    let lines: Vec<_> = transcript.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let (settings, lines): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(|line| line.starts_with("set: "));
    for line in settings {
        let (key, value) = line["set: ".len()..].split_once(' ').expect("set: key value");
        setup.set(key, value);
    }
    let cut = setup.cut;
    let mut talk = Talk::new(setup);
    let mut batch = Vec::new();
    let mut message_at = 0;
    for line in lines {
        let (mark, times, text) = split(line);
        if mark.starts_with('C') {
            let line_end: &[u8] = if mark == "C:" { b"\r\n" } else { b"" };
            batch.extend_from_slice(&[&unescape(text), line_end].concat().repeat(times));
            continue;
        }
        if !batch.is_empty() {
            assert_eq!(String::from_utf8_lossy(&talk.said), "", "{name}: said and not in the transcript");
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let size = if cut { random.usize(1..=rest.len().min(200)) } else { rest.len() };
                talk.hear(&rest[..size]);
                rest = &rest[size..];
            }
            batch.clear();
            message_at = 0;
        }
        match mark.as_str() {
            "S:" => {
                for _ in 0..times {
                    assert_eq!(talk.next_line().as_deref(), Some(text), "{name}: {line}");
                }
            }
            "M:" => {
                let (_, body) = talk.accepted.as_ref().unwrap_or_else(|| panic!("{name}: nothing accepted"));
                let expected = [&unescape(text)[..], b"\r\n"].concat();
                assert!(
                    body[message_at..].starts_with(&expected),
                    "{name}: {line}: {:?}",
                    body.escape_ascii().to_string()
                );
                message_at += expected.len();
            }
            "E:" => {
                assert!(talk.fulfils(text), "{name}: {line}: {}, {:?}", talk.envelope(), talk.replies);
            }
            other => panic!("{name}: unknown mark {other:?}"),
        }
    }
    assert!(batch.is_empty(), "{name}: ends without a word of the server");
    assert_eq!(String::from_utf8_lossy(&talk.said), "", "{name}: said and not in the transcript");
}

#[test]
fn every_dialogue_goes_as_written_however_the_input_is_cut() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogues");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "smtp") {
            continue;
        }
        seen += 1;
        let transcript = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        for seed in 0..RUNS_PER_DIALOGUE {
            run(&format!("{name} (seed {seed})"), &transcript, &mut fastrand::Rng::with_seed(seed));
        }
    }
    assert!(seen > 80, "only {seen} dialogues found");
}
