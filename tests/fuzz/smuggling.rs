//! What delivery writes, read by a server that takes anything for the end of data.

use mailramp::delivery::wire::{MailPassing, Stuffer, mail_command, rcpt_command};
use mailramp::message::Envelope;

pub fn check(envelope: &Envelope, text: &[u8], random: &mut fastrand::Rng) {
    let passing = MailPassing { body: true, smtputf8: true, dsn: true, size: Some(text.len() as u64) };
    let mut commands = Vec::new();
    mail_command(&mut commands, &envelope.reverse_path, &envelope.parameters, passing).expect("MAIL can be written");
    for recipient in &envelope.recipients {
        rcpt_command(&mut commands, &recipient.path, &recipient.parameters, true).expect("RCPT can be written");
    }
    let lines = commands.split(|octet| matches!(octet, b'\r' | b'\n' | 0)).filter(|line| !line.is_empty()).count();
    assert_eq!(lines, 1 + envelope.recipients.len(), "{:?}", commands.escape_ascii().to_string());

    let (mut stuffer, mut scratch, mut sent) = (Stuffer::default(), Vec::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let chunk;
        (chunk, rest) = rest.split_at(random.usize(1..=rest.len()));
        sent.extend_from_slice(stuffer.chunk(chunk, &mut scratch));
    }
    assert_eq!(stuffer.ending(), b".\r\n", "nothing has to be added to the text to end it");
    sent.extend_from_slice(stuffer.ending());
    assert_eq!(lax_end(&sent), Some(sent.len()), "{:?}", sent.escape_ascii().to_string());
}

/// Where the laxest reader sees the first end of data: a dot between any two of CRLF, LF, CR and NUL.
pub fn lax_end(sent: &[u8]) -> Option<usize> {
    let ends_line = |octet: &u8| matches!(octet, b'\r' | b'\n' | 0);
    let dot = (0..sent.len()).find(|at| {
        sent[*at] == b'.' && (*at == 0 || ends_line(&sent[at - 1])) && sent.get(at + 1).is_some_and(ends_line)
    })?;
    let end = if sent[dot + 1..].starts_with(b"\r\n") { dot + 3 } else { dot + 2 };
    Some(end)
}

#[test]
fn the_lax_reader_takes_each_lookalike_for_the_end() {
    for sent in ["a\n.\nb", "a\r.\rb", "a\r\n.\nb", "a\n.\r\nb", "a\r.\r\nb", "a\r\n.\0b", ".\nb"] {
        assert_eq!(lax_end(sent.as_bytes()), sent.find('b'), "{sent:?}");
    }
    assert_eq!(lax_end(b"a\r\n..\r\n.b\r\n"), None);
}
