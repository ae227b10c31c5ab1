//! Drives a session as a connection does, and checks each step.

use std::sync::Arc;

use mailramp::message::{Envelope, QueueId, Timestamp};
use mailramp::smtp::session::{Event, Session};
use mailramp::smtp::{AuthPolicy, AuthVerdict, RejectReason, Replies, SessionSettings, TlsMode};
use secrecy::ExposeSecret;

use crate::mutator::MARK;

/// Replies may gather up to the flush mark and one more reply.
const REPLIES_MAX_OCTETS: usize = 8 * 1024 + 1024;
/// RFC 5321 §4.5.3.1.5, with CRLF.
const REPLY_LINE_MAX_OCTETS: usize = 512;
/// The longest line that may be held back.
const HELD_MAX_OCTETS: usize = 12_288;

pub struct Setup {
    settings: Arc<SessionSettings>,
    allowed: bool,
}

impl Setup {
    /// Small limits, so that all of them are met.
    pub fn random(random: &mut fastrand::Rng) -> Self {
        let allowed = random.u8(..4) != 0;
        let networks = |yes: bool| if yes { vec!["192.0.2.0/24".parse().unwrap()] } else { Vec::new() };
        let settings = SessionSettings {
            hostname: "relay.example".into(),
            max_message_bytes: [20, 60, 500, 100_000][random.usize(..4)],
            max_recipients: random.usize(1..4),
            max_header_bytes: [30, 1000][random.usize(..2)],
            max_errors: [5, 20, 1000][random.usize(..3)],
            allow_from: networks(allowed),
            tls: [TlsMode::Off, TlsMode::StartTls, TlsMode::Implicit][random.usize(..3)],
            auth: [AuthPolicy::Off, AuthPolicy::Optional, AuthPolicy::Required][random.usize(..3)],
            auth_in_clear: random.bool(),
            normalize: networks(random.u8(..5) == 0),
            stream_header: random.bool(),
            ..SessionSettings::default()
        };
        Setup { settings: Arc::new(settings), allowed }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub lines: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Without the greeting.
    pub replies: Vec<Reply>,
    /// With the `Received:` line.
    pub accepted: Vec<(Envelope, Vec<u8>)>,
    pub closed: bool,
}

/// Runs `input` in parts whose sizes `part` chooses, given how much is left.
pub fn run(setup: &Setup, input: &[u8], mut part: impl FnMut(usize) -> usize) -> Outcome {
    let mut run = Run::new(setup);
    let mut rest = input;
    while !rest.is_empty() && !run.closed {
        let now;
        (now, rest) = rest.split_at(part(rest.len()));
        run.hear(now);
    }
    let shown = format!("{:?}", run.session);
    let held = shown.split("held_octets: ").nth(1).and_then(|text| text.split(',').next()).expect("is shown");
    assert!(held.parse::<usize>().expect("a number") <= HELD_MAX_OCTETS, "holds {held} octets back");
    Outcome { replies: replies(&run.said), accepted: run.accepted, closed: run.closed }
}

struct Run<'s> {
    setup: &'s Setup,
    session: Session,
    replies: Replies,
    said: Vec<u8>,
    /// The body of the message that is open.
    body: Option<Vec<u8>>,
    accepted: Vec<(Envelope, Vec<u8>)>,
    secure: bool,
    closed: bool,
}

impl<'s> Run<'s> {
    fn new(setup: &'s Setup) -> Self {
        let session = Session::new(setup.settings.clone(), "192.0.2.1".parse().unwrap());
        let secure = setup.settings.tls == TlsMode::Implicit;
        let (replies, said, accepted) = (Replies::default(), Vec::new(), Vec::new());
        let mut run = Run { setup, session, replies, said, body: None, accepted, secure, closed: false };
        if secure {
            run.session.secured();
        }
        run
    }

    fn hear(&mut self, mut input: &[u8]) {
        loop {
            let event = self.session.next(&mut input, &mut self.replies);
            assert!(!contains(&self.replies.bytes, b"Queued"), "250 before the message was handed over");
            match event {
                Event::NeedInput => {
                    assert!(input.is_empty(), "wants more before it has read what there is");
                    return self.flush();
                }
                Event::Flush => self.flush(),
                Event::Mail => self.session.sender(Ok(()), &mut self.replies),
                Event::Data => {
                    assert!(self.body.is_none(), "the last message was not forgotten");
                    let line = self.session.begin(QueueId(1), Timestamp::default(), &mut self.replies);
                    assert!(!line.to_ascii_lowercase().contains("\r\n\r\n") && line.is_ascii(), "{line:?}");
                    self.body = Some(line.into_bytes());
                }
                Event::Text(text) => {
                    assert!(!text.is_empty());
                    self.body.as_mut().expect("text belongs to a message").extend_from_slice(&text);
                }
                Event::Message(envelope, _) => self.accept(envelope),
                Event::Refused => {
                    self.body.take().expect("what is refused has begun");
                }
                Event::StartTls => {
                    assert!(input.is_empty(), "octets read in clear would be taken for what came inside TLS");
                    assert!(!self.secure && self.setup.settings.tls == TlsMode::StartTls);
                    self.flush();
                    self.secure = true;
                    self.session.secured();
                }
                Event::Auth(login) => {
                    assert!(self.secure || self.setup.settings.auth_in_clear, "a password in clear");
                    let right = (&*login.user, login.password.expose_secret()) == ("anna", "secret");
                    let user = || AuthVerdict::Accepted(login.user.as_ref().into());
                    let verdict = if right { user() } else { AuthVerdict::Wrong };
                    self.session.authenticated(verdict, &mut self.replies);
                }
                Event::Close => {
                    self.closed = true;
                    return self.flush();
                }
            }
        }
    }

    fn accept(&mut self, envelope: Envelope) {
        let settings = &self.setup.settings;
        assert!(self.setup.allowed || self.session.user().is_some(), "relayed for a stranger");
        assert!((1..=settings.max_recipients).contains(&envelope.recipients.len()));
        let body = self.body.take().expect("what is accepted has begun");
        let received = body.windows(2).position(|pair| pair == b";\r").expect("our line") as u64;
        assert!(body.len() as u64 <= settings.max_message_bytes + received + 100, "larger than allowed");
        self.accepted.push((envelope, body));
        self.session.finish(QueueId(1), Ok(()), &mut self.replies);
        self.flush();
    }

    fn flush(&mut self) {
        assert!(self.replies.bytes.len() <= REPLIES_MAX_OCTETS, "{} octets of replies", self.replies.bytes.len());
        assert!(self.replies.notes.len() <= self.replies.rejected.len());
        let smuggled = self.replies.rejected.contains(&RejectReason::StarttlsInjection);
        assert!(!smuggled || !self.secure, "only what came in clear can be injected");
        self.replies.notes.clear();
        self.replies.rejected.clear();
        self.said.append(&mut self.replies.bytes);
    }
}

/// Takes the replies apart, and checks their form.
fn replies(said: &[u8]) -> Vec<Reply> {
    let text = std::str::from_utf8(said).expect("replies are ASCII");
    assert!(!contains(&said.to_ascii_lowercase(), MARK.as_bytes()), "the client's octets in a reply: {text}");
    assert!(text.is_empty() || text.ends_with("\r\n"), "a reply without its end");
    let (mut all, mut lines) = (Vec::new(), Vec::<String>::new());
    for line in text.split_terminator("\r\n") {
        assert!(line.len() + 2 <= REPLY_LINE_MAX_OCTETS && line.bytes().all(|c| matches!(c, b' '..=b'~')), "{line:?}");
        let code: u16 = line.get(..3).and_then(|code| code.parse().ok()).expect("a code");
        assert!(lines.last().is_none_or(|before| before.starts_with(&line[..3])), "one reply has one code");
        lines.push(line.into());
        match line.as_bytes().get(3) {
            Some(b'-') => {}
            Some(b' ') => all.push(Reply { code, lines: std::mem::take(&mut lines) }),
            _ => panic!("neither space nor dash behind the code: {line:?}"),
        }
    }
    assert!(lines.is_empty(), "a reply without its last line");
    all
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
