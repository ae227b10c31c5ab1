//! What a session says and asks for, with an intake that takes everything.

use proptest::prelude::*;

use secrecy::ExposeSecret;

use super::*;
use crate::message::{QueueId, Timestamp};
use crate::reply::{EnhancedCode, Reply};
use crate::smtp::{AuthVerdict, Note, TlsMode};

/// Drives a session with an intake that takes everything, and keeps what came of it.
struct Talk {
    session: Session,
    replies: Replies,
    body: Vec<u8>,
    taken: Vec<(Envelope, Vec<u8>)>,
    ready: Result<(), Refusal>,
    closed: bool,
}

impl Talk {
    fn new(change: impl FnOnce(&mut SessionSettings)) -> Self {
        let mut settings = SessionSettings {
            hostname: "relay.example".into(),
            allow_from: vec!["192.0.2.0/24".parse().unwrap()],
            ..SessionSettings::default()
        };
        change(&mut settings);
        Talk {
            session: Session::new(Arc::new(settings), "192.0.2.1".parse().unwrap()),
            replies: Replies::default(),
            body: Vec::new(),
            taken: Vec::new(),
            ready: Ok(()),
            closed: false,
        }
    }

    /// Sends `input` and returns the replies.
    fn say(&mut self, mut input: &[u8]) -> String {
        let mut sent = Vec::new();
        loop {
            match self.session.next(&mut input, &mut self.replies) {
                Event::NeedInput => break,
                Event::Flush => sent.append(&mut self.replies.bytes),
                Event::Mail => self.session.sender(self.ready.clone(), &mut self.replies),
                Event::Data => {
                    let line = self.session.begin(QueueId(7), Timestamp::default(), &mut self.replies);
                    assert!(line.starts_with("Received: "));
                }
                Event::Text(text) => self.body.extend_from_slice(&text),
                Event::Message(envelope, _) => {
                    self.taken.push((envelope, std::mem::take(&mut self.body)));
                    self.session.finish(QueueId(7), Ok(()), &mut self.replies);
                }
                Event::Refused => self.body.clear(),
                Event::StartTls => {
                    assert!(input.is_empty(), "nothing read in clear is left");
                    self.session.secured();
                }
                Event::Auth(login) => {
                    let known = (&*login.user, login.password.expose_secret()) == ("anna", "secret");
                    let verdict = if known { AuthVerdict::Accepted(login.user.into()) } else { AuthVerdict::Wrong };
                    self.session.authenticated(verdict, &mut self.replies);
                }
                Event::Close => {
                    self.closed = true;
                    break;
                }
            }
        }
        sent.append(&mut self.replies.bytes);
        String::from_utf8(sent).unwrap()
    }

    /// The reply to a message with the given text, dots stuffed already.
    fn send(&mut self, text: &[u8]) -> String {
        self.say(b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
        self.say(&[text, b"\r\n.\r\n"].concat())
    }
}

const QUEUED: &str = "250 2.0.0 Queued as 000000000007\r\n";

#[test]
fn a_pipelined_transaction_is_answered_in_order_and_kept_verbatim() {
    let mut talk = Talk::new(|_| ());
    let replies = talk.say(
        b"EHLO c\r\nMAIL FROM:<\"A b\"@C.example> BODY=8BITMIME SIZE=9\r\nRCPT TO:<x@y.example>\r\nRCPT TO:<Z@y.example>\r\nDATA\r\n",
    );
    assert_eq!(
        replies,
        "250-relay.example\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
         250-CHUNKING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n250-LIMITS RCPTMAX=1000\r\n250 HELP\r\n\
         250 2.1.0 Sender ok\r\n250 2.1.5 Recipient ok\r\n250 2.1.5 Recipient ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
    );
    assert_eq!(talk.say(b"S: x\r\n\r\n..t\r\n.\r\nNOOP\r\n"), format!("{QUEUED}250 2.0.0 Ok\r\n"));
    let (envelope, text) = &talk.taken[0];
    assert_eq!(&envelope.reverse_path[..], b"\"A b\"@C.example");
    assert_eq!(&envelope.parameters[..], b"BODY=8BITMIME");
    let paths: Vec<&[u8]> = envelope.recipients.iter().map(|r| &r.path[..]).collect();
    assert_eq!(paths, [&b"x@y.example"[..], b"Z@y.example"]);
    assert_eq!(text, b"S: x\r\n\r\n.t\r\n");
}

#[test]
fn what_is_wrong_with_a_message_is_said_after_its_end() {
    let long_line = [vec![b'x'; 65_537], b"\r\n\r\n".to_vec()].concat();
    let good_line = [b"\r\n".to_vec(), vec![b'x'; 65_536]].concat();
    let loop_line = b"Received: from a by relay.example with ESMTP (mailramp id 1); x\r\n\r\n".to_vec();
    for (text, reply) in [
        (b"a\r\n\r\nb".to_vec(), QUEUED),
        (Vec::new(), QUEUED),
        (good_line, QUEUED),
        (b"a\nb".to_vec(), "550 5.6.11 Bare LF or CR\r\n"),
        (b"a\rb".to_vec(), "550 5.6.11 Bare LF or CR\r\n"),
        (b"a\0b".to_vec(), "550 5.6.0 NUL not allowed\r\n"),
        (long_line, "552 5.6.0 Line too long\r\n"),
        (loop_line, "554 5.4.6 Routing loop\r\n"),
        (b"Received: x\r\n".repeat(51), "554 5.4.6 Routing loop\r\n"),
        (b"X: yyyyyyyyyyyy\r\n".repeat(4000), "552 5.3.4 Header block too large\r\n"),
        (b"X: y\r\n".repeat(10_001), "552 5.3.4 Header block too large\r\n"),
        ([b"\r\n".to_vec(), b"0123456\r\n".repeat(12_000)].concat(), "552 5.3.4 Message too large\r\n"),
    ] {
        let mut talk = Talk::new(|settings| {
            settings.max_message_bytes = 100_000;
            settings.max_header_bytes = 60_000;
        });
        assert_eq!(talk.send(&text), reply, "{:?}", &text[..text.len().min(30)]);
        assert_eq!(talk.taken.len(), usize::from(reply == QUEUED));
        assert_eq!(talk.say(b"NOOP\r\n"), "250 2.0.0 Ok\r\n", "the session goes on");
    }
}

#[test]
fn data_beyond_twice_the_limit_is_not_read_to_its_end() {
    let mut talk = Talk::new(|settings| settings.max_message_bytes = 100);
    assert_eq!(talk.send(&b"12345678\r\n".repeat(21)), "552 5.3.4 Message too large\r\n");
    assert!(talk.closed);
}

#[test]
fn commands_behind_a_lookalike_of_the_end_are_not_run() {
    let mut talk = Talk::new(|_| ());
    let smuggled = b"a\r\n.\nMAIL FROM:<evil@b.example>\r\n.\r\nMAIL FROM:<evil@b.example>";
    assert_eq!(talk.send(smuggled), "550 5.6.11 Bare LF or CR\r\n");
    assert!(talk.closed);
    assert!(talk.taken.is_empty());
}

#[test]
fn a_listed_client_has_its_lone_newlines_mended() {
    let mut talk = Talk::new(|settings| settings.normalize = settings.allow_from.clone());
    assert_eq!(talk.send(b"a\n\nb"), QUEUED);
    assert_eq!(talk.taken[0].1, b"a\r\n\r\nb\r\n");
}

#[test]
fn a_client_that_may_not_relay_is_greeted_and_refused_at_mail() {
    let mut talk = Talk::new(|settings| settings.allow_from = vec!["198.51.100.0/24".parse().unwrap()]);
    assert!(talk.say(b"EHLO c\r\n").starts_with("250-relay.example\r\n"));
    assert_eq!(talk.say(b"MAIL FROM:<a@b.example>\r\n"), "550 5.7.1 Relaying denied\r\n");
    assert_eq!(talk.replies.rejected, [RejectReason::RelayDenied]);
    assert_eq!(talk.say(b"DATA\r\n"), "503 5.5.1 MAIL first\r\n");
}

#[test]
fn a_body_that_could_not_be_kept_is_refused_at_its_end() {
    let mut talk = Talk::new(|_| ());
    talk.say(b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
    talk.session.refuse_message(full());
    assert_eq!(talk.say(b"text\r\n"), "");
    assert_eq!(talk.say(b"more\r\n.\r\nNOOP\r\n"), "452 4.3.1 Insufficient storage\r\n250 2.0.0 Ok\r\n");
    assert!(talk.taken.is_empty());
}

#[test]
fn a_full_spool_refuses_mail_and_nothing_else() {
    let mut talk = Talk::new(|_| ());
    talk.ready = Err(full());
    assert!(talk.say(b"EHLO c\r\n").starts_with("250-"));
    assert_eq!(talk.say(b"MAIL FROM:<a@b.example>\r\n"), "452 4.3.1 Insufficient storage\r\n");
    talk.ready = Ok(());
    assert_eq!(talk.say(b"MAIL FROM:<a@b.example>\r\nQUIT\r\n"), "250 2.1.0 Sender ok\r\n221 2.0.0 Bye\r\n");
}

#[test]
fn a_flood_of_commands_is_answered_in_parts() {
    let mut talk = Talk::new(|_| ());
    let mut input = &b"EHLO c\r\n".repeat(2000)[..];
    let event = talk.session.next(&mut input, &mut talk.replies);
    assert!(matches!(event, Event::Flush));
    assert!(talk.replies.bytes.len() < REPLIES_FLUSH_OCTETS + 1024);
}

/// A listener that offers STARTTLS and wants a login; the client is not in `allow_from`.
fn submission() -> Talk {
    Talk::new(|settings| {
        settings.allow_from = Vec::new();
        settings.tls = TlsMode::StartTls;
        settings.auth = AuthPolicy::Required;
    })
}

/// `\0anna\0secret` and `\0anna\0wrong`.
const RIGHT: &str = "AUTH PLAIN AGFubmEAc2VjcmV0\r\n";
const WRONG: &str = "AUTH PLAIN AGFubmEAd3Jvbmc=\r\n";

#[test]
fn what_was_said_before_tls_is_forgotten() {
    let mut talk = submission();
    assert!(talk.say(b"EHLO c\r\n").contains("250-STARTTLS\r\n250-LIMITS"), "no AUTH in clear");
    assert_eq!(talk.say(b"STARTTLS\r\n"), "220 2.0.0 Ready to start TLS\r\n");
    assert_eq!(talk.say(RIGHT.as_bytes()), "503 5.5.1 Say EHLO first\r\n");
    assert!(talk.say(b"EHLO c\r\n").contains("250-AUTH PLAIN LOGIN\r\n250-LIMITS"), "no STARTTLS inside TLS");
    assert_eq!(talk.say(RIGHT.as_bytes()), "235 2.7.0 Authentication successful\r\n");
    assert_eq!(talk.session.user().map(|user| &**user), Some("anna"));
    assert_eq!(talk.say(b"MAIL FROM:<a@b.example>\r\n"), "250 2.1.0 Sender ok\r\n");
}

#[test]
fn whatever_is_read_with_starttls_ends_the_session() {
    for behind in ["\n", "N", "EHLO c\r\n", "\0"] {
        let mut talk = submission();
        let replies = talk.say(format!("STARTTLS\r\n{behind}").as_bytes());
        assert_eq!(replies, "421 4.7.0 Commands behind STARTTLS\r\n", "{behind:?}");
        assert!(talk.closed);
        assert_eq!(talk.replies.rejected, [RejectReason::StarttlsInjection]);
    }
}

#[test]
fn a_password_in_clear_is_refused_and_noted_without_itself() {
    for (tls, reply) in [
        (TlsMode::Off, "538 5.7.11 Encryption required\r\n"),
        (TlsMode::StartTls, "530 5.7.0 Must issue STARTTLS first\r\n"),
    ] {
        let mut talk = submission();
        talk.session.settings = Arc::new(SessionSettings { tls, ..(*talk.session.settings).clone() });
        talk.say(b"EHLO c\r\n");
        assert_eq!(talk.say(b"AUTH PLAIN\r\nAUTH LOGIN YW5uYQ==\r\n"), reply.repeat(2));
        assert!(!talk.session.has_exposed_password(), "none was sent");
        assert_eq!(talk.say(RIGHT.as_bytes()), reply);
        assert!(talk.session.has_exposed_password());
        assert_eq!(talk.replies.notes, [Note::PasswordExposed { user: Some("anna".into()) }]);
    }
}

#[test]
fn the_third_wrong_login_closes_the_session() {
    let mut talk = submission();
    talk.session.secured();
    talk.say(b"EHLO c\r\n");
    // `bert` wants to be `anna`: counts like a wrong password.
    let other = "AUTH PLAIN YmVydABhbm5hAHNlY3JldA==\r\n";
    let replies = talk.say([WRONG, other, WRONG, RIGHT].concat().as_bytes());
    let wrong = "535 5.7.8 Authentication failed\r\n";
    assert_eq!(replies, format!("{wrong}{wrong}421 4.7.0 Too many failures\r\n"));
    assert!(talk.closed);
}

#[test]
fn who_has_to_log_in_has_ten_errors_free_and_then_twenty() {
    let mut talk = submission();
    let replies = talk.say("WHAT\r\n".repeat(30).as_bytes());
    assert_eq!(replies.lines().count(), 10);
    assert!(replies.ends_with("421 4.7.0 Too many errors\r\n"));
    let mut talk = submission();
    talk.session.secured();
    talk.say(format!("EHLO c\r\n{RIGHT}").as_bytes());
    assert_eq!(talk.say("WHAT\r\n".repeat(30).as_bytes()).lines().count(), 20);
}

#[test]
fn an_answer_to_auth_is_no_command() {
    let mut talk = submission();
    talk.session.secured();
    talk.say(b"EHLO c\r\n");
    assert_eq!(talk.say(b"AUTH LOGIN\r\nQUIT\r\n"), "334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n", "QUIT is base64");
    assert_eq!(talk.say(b"*\r\n"), "501 5.7.0 Authentication cancelled\r\n");
    assert_eq!(talk.say(b"*\r\n"), "500 5.5.1 Unknown command\r\n");
}

/// In a transaction with one recipient.
fn with_recipient() -> Talk {
    let mut talk = Talk::new(|settings| settings.max_message_bytes = 100);
    talk.say(b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n");
    talk
}

const CHUNK: &str = "250 2.0.0 Chunk taken\r\n";

#[test]
fn chunks_make_a_message_and_dots_in_them_are_text() {
    let mut talk = with_recipient();
    assert_eq!(talk.say(b"BDAT 8\r\nab\r\n.\r\n"), "", "an octet is missing");
    assert_eq!(
        talk.say(b"\rBDAT 6\r\n\n.QUITBDAT 2 LAST\r\n\r\nNOOP\r\n"),
        format!("{CHUNK}{CHUNK}{QUEUED}250 2.0.0 Ok\r\n")
    );
    assert_eq!(talk.taken[0].1, b"ab\r\n.\r\n\r\n.QUIT\r\n");
    talk.say(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n");
    assert_eq!(talk.say(b"BDAT 3\r\na\r\nBDAT 0 LAST\r\n"), format!("{CHUNK}{QUEUED}"));
    assert_eq!(talk.taken[1].1, b"a\r\n");
}

#[test]
fn a_chunked_message_is_refused_by_the_chunk_that_makes_it_bad() {
    let spoiled = "503 5.5.1 MAIL first\r\n";
    for (chunks, replies) in [
        ("BDAT 2\r\na\nBDAT 2 LAST\r\n\r\n", format!("550 5.6.11 Bare LF or CR\r\n{spoiled}")),
        ("BDAT 2\r\na\rBDAT 1 LAST\r\nb", format!("{CHUNK}550 5.6.11 Bare LF or CR\r\n")),
        ("BDAT 2 LAST\r\na\r", "550 5.6.11 Bare LF or CR\r\n".into()),
        ("BDAT 1\r\n\0BDAT 4\r\nQUIT", format!("550 5.6.0 NUL not allowed\r\n{spoiled}")),
        ("BDAT 3 LAST\r\nabc", "550 5.6.0 Last line must end with CRLF\r\n".into()),
        ("BDAT 3\r\na\r\nDATA\r\nBDAT 4 LAST\r\nQUIT", format!("{CHUNK}503 5.5.1 DATA after BDAT\r\n{spoiled}")),
        ("BDAT 3\r\na\r\nRSET\r\nBDAT 4 LAST\r\nQUIT", format!("{CHUNK}250 2.0.0 Ok\r\n{spoiled}")),
        (
            "BDAT 3\r\na\r\nRCPT TO:<e@d.example>\r\nBDAT 0 LAST\r\n",
            format!("{CHUNK}503 5.5.1 Message already begun\r\n{QUEUED}"),
        ),
    ] {
        let mut talk = with_recipient();
        assert_eq!(talk.say(chunks.as_bytes()), replies, "{chunks:?}");
        assert_eq!(talk.taken.len(), usize::from(replies.ends_with(QUEUED)), "{chunks:?}");
        assert!(talk.session.content.is_none() && talk.body.is_empty(), "nothing is left of it: {chunks:?}");
        assert_eq!(talk.say(b"NOOP\r\n"), "250 2.0.0 Ok\r\n", "the session goes on: {chunks:?}");
    }
}

#[test]
fn chunks_over_the_limit_are_thrown_away_or_end_the_session() {
    let text = |octets: usize| "x".repeat(octets);
    let mut talk = with_recipient();
    assert_eq!(
        talk.say(format!("BDAT 101\r\n{}NOOP\r\n", text(101)).as_bytes()),
        "552 5.3.4 Message too large\r\n250 2.0.0 Ok\r\n"
    );
    let mut talk = with_recipient();
    let both = format!("BDAT 60\r\n{}BDAT 60 LAST\r\n{}NOOP\r\n", text(60), text(60));
    assert_eq!(talk.say(both.as_bytes()), format!("{CHUNK}552 5.3.4 Message too large\r\n250 2.0.0 Ok\r\n"));
    assert!(talk.body.is_empty());
    let mut talk = with_recipient();
    assert_eq!(talk.say(b"BDAT 201\r\n"), "552 5.3.4 Message too large\r\n");
    assert!(talk.closed);
    let mut talk = with_recipient();
    assert_eq!(talk.say(format!("BDAT {}\r\n", u64::MAX).as_bytes()), "552 5.3.4 Message too large\r\n");
    assert!(talk.closed);
    let mut talk = Talk::new(|settings| settings.max_message_bytes = 100);
    assert_eq!(
        talk.say(format!("BDAT 100\r\n{}BDAT 101\r\nQUIT\r\n", text(100)).as_bytes()),
        "503 5.5.1 MAIL first\r\n521 5.5.1 Chunk refused and too large to read\r\n"
    );
    assert!(talk.closed);
}

#[test]
fn a_chunk_of_unknown_size_ends_the_session() {
    for (line, reply) in [
        ("BDAT x\r\n", "501 5.5.4 Bad chunk size\r\n"),
        ("BDAT 99999999999999999999999 LAST\r\n", "501 5.5.4 Bad chunk size\r\n"),
        ("BDAT 5\nQUIT\r\n", "500 5.5.2 Bare CR, LF or NUL\r\n"),
    ] {
        let mut talk = with_recipient();
        assert_eq!(talk.say(format!("{line}QUIT\r\n").as_bytes()), reply, "{line:?}");
        assert!(talk.closed);
    }
}

#[test]
fn a_body_that_could_not_be_kept_is_refused_at_the_end_of_its_chunk() {
    let mut talk = with_recipient();
    assert_eq!(talk.say(b"BDAT 6\r\nabc"), "");
    assert!(talk.session.is_in_data() && !talk.session.is_inside_command());
    talk.session.refuse_message(full());
    assert_eq!(talk.say(b"de\nBDAT 2 LAST\r\n\r\n").lines().next(), Some("550 5.6.11 Bare LF or CR"));
    let mut talk = with_recipient();
    talk.say(b"BDAT 6\r\nabc");
    talk.session.refuse_message(full());
    assert_eq!(talk.say(b"d\r\nBDAT 2 LAST\r\n\r\n"), "452 4.3.1 Insufficient storage\r\n503 5.5.1 MAIL first\r\n");
    assert!(!talk.session.is_in_data() && !talk.session.is_inside_command());
}

#[test]
fn octets_that_are_thrown_away_are_part_of_their_command() {
    let mut talk = Talk::new(|_| ());
    assert_eq!(talk.say(b"BDAT 6\r\nabc"), "");
    assert!(!talk.session.is_in_data() && talk.session.is_inside_command());
}

#[test]
fn a_refused_newline_is_noted_in_hex() {
    let mut talk = Talk::new(|_| ());
    talk.send(b"a\n.\r\n");
    assert_eq!(talk.replies.notes, [Note::BareNewline { hex: "0a2e0d0a0d0a2e0d0a".into() }]);
}

fn full() -> Refusal {
    Refusal { reason: RejectReason::Disk, reply: Reply::new(452, EnhancedCode(4, 3, 1), "Insufficient storage") }
}

fn word() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "EHLO c\r\n",
        "MAIL FROM:<a@b.example>\r\n",
        "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n",
        "RCPT TO:<c@d.example>\r\n",
        "DATA\r\n",
        "RSET\r\n",
        "Subject: x\r\n\r\n",
        "text",
        "..\r\n",
        "\r\n.\r\n",
        "\r\n.\r\n",
        ".\r\n",
        "\r",
        "\n",
        "\0",
        "\r\n",
        "\r\n",
        "Received: x\r\n",
        "\x16",
        "\x03",
        "GET / HTTP/1.1\r\n",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn replies_do_not_depend_on_how_the_input_is_cut(
        greeted: bool,
        words in proptest::collection::vec(word(), 0..30),
        sizes in proptest::collection::vec(1usize..20, 1..6),
    ) {
        let hello = if greeted { "EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n" } else { "" };
        let input = [hello, &words.concat()].concat();
        let small = |settings: &mut SessionSettings| settings.max_message_bytes = 60;
        let mut whole = Talk::new(small);
        let expected = whole.say(input.as_bytes());
        let mut cut = Talk::new(small);
        let (mut rest, mut turn, mut replies) = (input.as_bytes(), 0, String::new());
        while !rest.is_empty() && !cut.closed {
            let chunk;
            (chunk, rest) = rest.split_at(sizes[turn % sizes.len()].min(rest.len()));
            turn += 1;
            replies += &cut.say(chunk);
        }
        // What is behind a refused look-alike closes the session when it is there already; else it is read.
        match expected.find("550 5.6.11 ") {
            Some(at) if whole.closed => {
                let end = at + "550 5.6.11 Bare LF or CR\r\n".len();
                prop_assert_eq!(replies.get(..end), Some(&expected[..end]));
            }
            _ => {
                prop_assert_eq!(replies, expected);
                prop_assert_eq!(&cut.taken, &whole.taken);
                prop_assert_eq!(cut.closed, whole.closed);
            }
        }
    }
}
