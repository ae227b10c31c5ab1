//! Reads one command line (RFC 5321 §4.1.1) without changing an octet of what will be relayed.
//!
//! Knows syntax only: what a command means at this point of the session, and what is allowed, is the session's matter.

use super::path::{PathError, forward_path, reverse_path};

/// A command, with slices of the line it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The name the client gives itself; not checked, never trusted.
    Ehlo(&'a [u8]),
    Helo(&'a [u8]),
    /// `path`: what stood between `<` and `>`. `parameters`: the rest of the line without surrounding spaces.
    Mail {
        path: &'a [u8],
        parameters: &'a [u8],
    },
    Rcpt {
        path: &'a [u8],
        parameters: &'a [u8],
    },
    Data,
    Rset,
    Noop,
    Quit,
    Vrfy,
    Help,
    /// XCLIENT, XFORWARD, ETRN, EXPN: known and never offered.
    NotOffered,
    /// A browser, a health check or a proxy that takes this port for a web server.
    Http,
}

/// Why a line is no command. Each has its own reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    Unknown,
    Syntax,
    SenderPath,
    RecipientPath,
    /// An address with octets beyond ASCII.
    EightBit,
}

/// Reads a line that has lost its CRLF.
pub fn parse(line: &[u8]) -> Result<Command<'_>, CommandError> {
    let line = line.trim_ascii_end();
    let end = line.iter().position(|octet| *octet == b' ').unwrap_or(line.len());
    let (verb, argument) = (&line[..end], trim_spaces(&line[end..]));
    let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
    let alone = |command| if argument.is_empty() { Ok(command) } else { Err(CommandError::Syntax) };
    let named = |command| if argument.is_empty() { Err(CommandError::Syntax) } else { Ok(command) };
    // In the order of how often they come.
    match verb.len() {
        4 if is("RCPT") => {
            let text = path_behind(argument, "TO:")?;
            let (path, rest) = forward_path(text).map_err(|e| path_error(e, CommandError::RecipientPath))?;
            Ok(Command::Rcpt { path, parameters: parameters_behind(rest)? })
        }
        4 if is("MAIL") => {
            let text = path_behind(argument, "FROM:")?;
            let (path, rest) = reverse_path(text).map_err(|e| path_error(e, CommandError::SenderPath))?;
            Ok(Command::Mail { path, parameters: parameters_behind(rest)? })
        }
        4 if is("DATA") => alone(Command::Data),
        4 if is("EHLO") => named(Command::Ehlo(argument)),
        4 if is("HELO") => named(Command::Helo(argument)),
        4 if is("RSET") => alone(Command::Rset),
        4 if is("QUIT") => alone(Command::Quit),
        4 if is("NOOP") => Ok(Command::Noop),
        4 if is("HELP") => Ok(Command::Help),
        4 if is("VRFY") => named(Command::Vrfy),
        4 if is("EXPN") || is("ETRN") => Ok(Command::NotOffered),
        7 | 8 if is("XCLIENT") || is("XFORWARD") => Ok(Command::NotOffered),
        3 | 4 | 7 if ["GET", "POST", "HEAD", "PUT", "CONNECT"].into_iter().any(is) => Ok(Command::Http),
        _ => Err(CommandError::Unknown),
    }
}

/// The path behind `FROM:` or `TO:`. A space before it is wrong and common, and takes nothing away.
fn path_behind<'a>(argument: &'a [u8], keyword: &str) -> Result<&'a [u8], CommandError> {
    let (found, rest) = argument.split_at_checked(keyword.len()).ok_or(CommandError::Syntax)?;
    if !found.eq_ignore_ascii_case(keyword.as_bytes()) {
        return Err(CommandError::Syntax);
    }
    Ok(trim_spaces(rest))
}

fn parameters_behind(rest: &[u8]) -> Result<&[u8], CommandError> {
    match rest.first() {
        None => Ok(rest),
        Some(b' ') => Ok(trim_spaces(rest)),
        Some(_) => Err(CommandError::Syntax),
    }
}

fn path_error(error: PathError, syntax: CommandError) -> CommandError {
    match error {
        PathError::Syntax => syntax,
        PathError::EightBit => CommandError::EightBit,
    }
}

fn trim_spaces(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(b" ") {
        text = rest;
    }
    text
}

/// What the parameters of MAIL ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// SIZE= (RFC 1870). A number too great for 64 bits is `u64::MAX`: over every limit.
    pub size: Option<u64>,
    /// Those to repeat to the next hop, octet by octet, joined by single spaces.
    pub repeated: Vec<u8>,
}

/// Why parameters were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterError {
    Syntax,
    /// Belongs to an extension that EHLO did not offer.
    Unknown,
}

/// Reads the parameters of MAIL: SIZE and BODY, each at most once.
pub fn mail_parameters(text: &[u8]) -> Result<MailParameters, ParameterError> {
    let mut read = MailParameters::default();
    let mut body = false;
    for word in text.split(|octet| *octet == b' ').filter(|word| !word.is_empty()) {
        let (keyword, value) = split_parameter(word)?;
        if keyword.eq_ignore_ascii_case(b"SIZE") {
            let size = value.and_then(decimal).ok_or(ParameterError::Syntax)?;
            if read.size.replace(size).is_some() {
                return Err(ParameterError::Syntax);
            }
        } else if keyword.eq_ignore_ascii_case(b"BODY") {
            let known = |v: &[u8]| v.eq_ignore_ascii_case(b"7BIT") || v.eq_ignore_ascii_case(b"8BITMIME");
            if std::mem::replace(&mut body, true) || !value.is_some_and(known) {
                return Err(ParameterError::Syntax);
            }
            read.repeated.extend_from_slice(word);
        } else {
            return Err(ParameterError::Unknown);
        }
    }
    Ok(read)
}

/// Reads the parameters of RCPT: none is offered.
pub fn rcpt_parameters(text: &[u8]) -> Result<(), ParameterError> {
    match text.split(|octet| *octet == b' ').find(|word| !word.is_empty()) {
        None => Ok(()),
        Some(word) => split_parameter(word).and(Err(ParameterError::Unknown)),
    }
}

/// `keyword` or `keyword=value` (RFC 5321 §4.1.2, esmtp-param).
fn split_parameter(word: &[u8]) -> Result<(&[u8], Option<&[u8]>), ParameterError> {
    let equals = word.iter().position(|octet| *octet == b'=');
    let (keyword, value) = match equals {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    };
    let keyword_is_good = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
        && keyword.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-');
    let value_is_good =
        value.is_none_or(|v| !v.is_empty() && v.iter().all(|octet| matches!(octet, 33..=60 | 62..=126)));
    if keyword_is_good && value_is_good { Ok((keyword, value)) } else { Err(ParameterError::Syntax) }
}

/// Digits only; saturates, because a size beyond 64 bits is still a size, and refused as one.
fn decimal(text: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for octet in text {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        value = value.checked_mul(10).and_then(|v| v.checked_add(digit)).unwrap_or(u64::MAX);
        if value == u64::MAX {
            return text.iter().all(u8::is_ascii_digit).then_some(u64::MAX);
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_and_keep_their_octets() {
        let mail = |path, parameters| Ok(Command::Mail { path, parameters });
        let rcpt = |path, parameters| Ok(Command::Rcpt { path, parameters });
        let table: [(&str, Result<Command<'_>, CommandError>); 24] = [
            ("EHLO client.example", Ok(Command::Ehlo(b"client.example"))),
            ("helo [192.0.2.1]", Ok(Command::Helo(b"[192.0.2.1]"))),
            ("MAIL FROM:<a@b.example>", mail(b"a@b.example", b"")),
            ("mail from:<A@b.Example> size=1  BODY=7bit ", mail(b"A@b.Example", b"size=1  BODY=7bit")),
            ("MAIL FROM: <a@b.example>", mail(b"a@b.example", b"")),
            ("MAIL FROM:<>", mail(b"", b"")),
            ("RCPT TO:<\"a b>\"@c.example> NOTIFY=NEVER", rcpt(b"\"a b>\"@c.example", b"NOTIFY=NEVER")),
            ("RCPT TO:<Postmaster>", rcpt(b"Postmaster", b"")),
            ("DATA", Ok(Command::Data)),
            ("data ", Ok(Command::Data)),
            ("NOOP whatever", Ok(Command::Noop)),
            ("HELP MAIL", Ok(Command::Help)),
            ("VRFY postmaster", Ok(Command::Vrfy)),
            ("RSET", Ok(Command::Rset)),
            ("QUIT", Ok(Command::Quit)),
            ("XCLIENT ADDR=192.0.2.1", Ok(Command::NotOffered)),
            ("XFORWARD NAME=x", Ok(Command::NotOffered)),
            ("ETRN example.org", Ok(Command::NotOffered)),
            ("EXPN staff", Ok(Command::NotOffered)),
            ("GET / HTTP/1.1", Ok(Command::Http)),
            ("POST / HTTP/1.1", Ok(Command::Http)),
            ("HEAD / HTTP/1.1", Ok(Command::Http)),
            ("PUT / HTTP/1.1", Ok(Command::Http)),
            ("CONNECT mail.example:25 HTTP/1.1", Ok(Command::Http)),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn each_fault_has_its_own_error() {
        for (line, error) in [
            ("", CommandError::Unknown),
            (" NOOP", CommandError::Unknown),
            ("NOOPS", CommandError::Unknown),
            ("MA\tIL FROM:<a@b.example>", CommandError::Unknown),
            ("STARTTLS", CommandError::Unknown),
            ("EHLO", CommandError::Syntax),
            ("DATA junk", CommandError::Syntax),
            ("RSET now", CommandError::Syntax),
            ("MAIL", CommandError::Syntax),
            ("MAIL <a@b.example>", CommandError::Syntax),
            ("MAIL FROM <a@b.example>", CommandError::Syntax),
            ("MAIL FROM:<a@b.example>SIZE=1", CommandError::Syntax),
            ("MAIL FROM:a@b.example", CommandError::SenderPath),
            ("MAIL FROM:", CommandError::SenderPath),
            ("RCPT TO:<a>", CommandError::RecipientPath),
            ("RCPT TO:<>", CommandError::RecipientPath),
            ("RCPT TO:<@relay.example:a@b.example>", CommandError::RecipientPath),
            ("RCPT TO:<jürgen@b.example>", CommandError::EightBit),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(error), "{line}");
        }
    }

    #[test]
    fn size_is_read_and_body_is_repeated() {
        for (text, size, repeated) in [
            ("", None, ""),
            ("SIZE=10", Some(10), ""),
            ("size=0", Some(0), ""),
            ("SIZE=10 BODY=8BITMIME", Some(10), "BODY=8BITMIME"),
            ("body=7bit  SIZE=10", Some(10), "body=7bit"),
            ("SIZE=18446744073709551616", Some(u64::MAX), ""),
            ("SIZE=99999999999999999999999", Some(u64::MAX), ""),
        ] {
            let expected = MailParameters { size, repeated: repeated.into() };
            assert_eq!(mail_parameters(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn parameters_that_are_malformed_or_not_offered_are_told_apart() {
        for (text, error) in [
            ("SIZE", ParameterError::Syntax),
            ("SIZE=", ParameterError::Syntax),
            ("SIZE=1x", ParameterError::Syntax),
            ("SIZE=99999999999999999999999x", ParameterError::Syntax),
            ("SIZE=-1", ParameterError::Syntax),
            ("SIZE=1 SIZE=2", ParameterError::Syntax),
            ("BODY=BINARYMIME", ParameterError::Syntax),
            ("=x", ParameterError::Syntax),
            ("A=b=c", ParameterError::Syntax),
            ("-A=b", ParameterError::Syntax),
            ("RET=\u{1}", ParameterError::Syntax),
            ("SMTPUTF8", ParameterError::Unknown),
            ("RET=HDRS", ParameterError::Unknown),
            ("AUTH=<>", ParameterError::Unknown),
        ] {
            assert_eq!(mail_parameters(text.as_bytes()), Err(error), "{text}");
        }
        assert_eq!(rcpt_parameters(b""), Ok(()));
        assert_eq!(rcpt_parameters(b"NOTIFY=NEVER"), Err(ParameterError::Unknown));
        assert_eq!(rcpt_parameters(b"=NEVER"), Err(ParameterError::Syntax));
    }
}
