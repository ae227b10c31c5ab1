//! Reads one command line (RFC 5321 §4.1.1) without changing an octet of what will be relayed.
//!
//! Knows syntax only: what a command means at this point of the session, and what is allowed, is the session's matter.

use super::chunk;
use super::path::{Path, PathError, forward_path, reverse_path};
use super::sasl::Response;

/// A command, with slices of the line it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The name the client gives itself; not checked, never trusted.
    Ehlo(&'a [u8]),
    Helo(&'a [u8]),
    /// `parameters`: the rest of the line without surrounding spaces.
    Mail {
        path: Path<'a>,
        parameters: &'a [u8],
    },
    Rcpt {
        path: Path<'a>,
        parameters: &'a [u8],
    },
    Data,
    /// BDAT (RFC 3030): so many octets follow the line, which are no commands.
    Chunk {
        octets: u64,
        last: bool,
    },
    /// STARTTLS (RFC 3207).
    StartTls,
    /// AUTH (RFC 4954).
    Auth {
        mechanism: &'a [u8],
        initial: Option<Response<'a>>,
    },
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
    /// STARTTLS with a parameter.
    Parameter,
    /// BDAT without a good size: nobody knows how many octets follow that are no commands.
    ChunkSize,
    SenderPath,
    RecipientPath,
    /// An address with octets beyond ASCII which are no UTF-8, or to VRFY without saying SMTPUTF8.
    NotUtf8,
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
        4 if is("BDAT") => {
            let (octets, last) = chunk::announced(argument).ok_or(CommandError::ChunkSize)?;
            Ok(Command::Chunk { octets, last })
        }
        4 if is("EHLO") => named(Command::Ehlo(argument)),
        4 if is("HELO") => named(Command::Helo(argument)),
        4 if is("RSET") => alone(Command::Rset),
        4 if is("QUIT") => alone(Command::Quit),
        4 if is("NOOP") => Ok(Command::Noop),
        4 if is("HELP") => Ok(Command::Help),
        4 if is("VRFY") => vrfy(argument),
        4 if is("AUTH") => auth(argument),
        8 if is("STARTTLS") => alone(Command::StartTls).map_err(|_| CommandError::Parameter),
        4 if is("EXPN") || is("ETRN") => Ok(Command::NotOffered),
        7 | 8 if is("XCLIENT") || is("XFORWARD") => Ok(Command::NotOffered),
        3 | 4 | 7 if ["GET", "POST", "HEAD", "PUT", "CONNECT"].into_iter().any(is) => Ok(Command::Http),
        _ => Err(CommandError::Unknown),
    }
}

/// The name of a mechanism, perhaps with an initial response. Nothing else may stand there (RFC 4954 §4).
fn auth(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let mut words = argument.split(|octet| *octet == b' ').filter(|word| !word.is_empty());
    match (words.next(), words.next(), words.next()) {
        (Some(mechanism), initial, None) => Ok(Command::Auth { mechanism, initial: initial.map(Response) }),
        _ => Err(CommandError::Syntax),
    }
}

/// Octets beyond ASCII need SMTPUTF8 at the end (RFC 6531 §3.7.4.2).
fn vrfy(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let last = argument.rsplit(|octet| *octet == b' ').next().unwrap_or_default();
    let asks_for_utf8 = last.eq_ignore_ascii_case(b"SMTPUTF8") && std::str::from_utf8(argument).is_ok();
    match argument {
        [] => Err(CommandError::Syntax),
        _ if argument.is_ascii() || asks_for_utf8 => Ok(Command::Vrfy),
        _ => Err(CommandError::NotUtf8),
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
        PathError::NotUtf8 => CommandError::NotUtf8,
    }
}

fn trim_spaces(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(b" ") {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = Result<Command<'static>, CommandError>;
    type ReadPath = fn(&[u8]) -> Result<(Path<'_>, &[u8]), PathError>;

    /// Paths come from their own reader only, so that is how the expected ones are built.
    fn path(text: &str, read: ReadPath) -> Path<'static> {
        read(format!("<{text}>").leak().as_bytes()).unwrap().0
    }

    fn mail(text: &str, parameters: &'static str) -> Read {
        Ok(Command::Mail { path: path(text, reverse_path), parameters: parameters.as_bytes() })
    }

    fn rcpt(text: &str, parameters: &'static str) -> Read {
        Ok(Command::Rcpt { path: path(text, forward_path), parameters: parameters.as_bytes() })
    }

    fn auth(mechanism: &'static str, initial: Option<&'static str>) -> Read {
        let initial = initial.map(|text| Response(text.as_bytes()));
        Ok(Command::Auth { mechanism: mechanism.as_bytes(), initial })
    }

    #[test]
    fn commands_are_read_in_any_case_and_keep_their_octets() {
        let table: [(&str, Result<Command<'_>, CommandError>); 35] = [
            ("EHLO client.example", Ok(Command::Ehlo(b"client.example"))),
            ("helo [192.0.2.1]", Ok(Command::Helo(b"[192.0.2.1]"))),
            ("MAIL FROM:<a@b.example>", mail("a@b.example", "")),
            ("mail from:<A@b.Example> size=1  BODY=7bit ", mail("A@b.Example", "size=1  BODY=7bit")),
            ("MAIL FROM: <a@b.example>", mail("a@b.example", "")),
            ("MAIL FROM:<>", mail("", "")),
            ("RCPT TO:<\"a b>\"@c.example> NOTIFY=NEVER", rcpt("\"a b>\"@c.example", "NOTIFY=NEVER")),
            ("RCPT TO:<Postmaster>", rcpt("Postmaster", "")),
            ("DATA", Ok(Command::Data)),
            ("data ", Ok(Command::Data)),
            ("BDAT 0", Ok(Command::Chunk { octets: 0, last: false })),
            ("bdat 86  last", Ok(Command::Chunk { octets: 86, last: true })),
            ("BDAT 18446744073709551615", Ok(Command::Chunk { octets: u64::MAX, last: false })),
            ("STARTTLS", Ok(Command::StartTls)),
            ("starttls ", Ok(Command::StartTls)),
            ("AUTH PLAIN", auth("PLAIN", None)),
            ("auth plain =", auth("plain", Some("="))),
            ("AUTH LOGIN YW5uYQ==", auth("LOGIN", Some("YW5uYQ=="))),
            ("MAIL FROM:<jürgen@b.example>", mail("jürgen@b.example", "")),
            ("RCPT TO:<jürgen@b.example>", rcpt("jürgen@b.example", "")),
            ("VRFY jürgen smtputf8", Ok(Command::Vrfy)),
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
            ("STARTTLSX", CommandError::Unknown),
            ("STARTTLS now", CommandError::Parameter),
            ("AUTH", CommandError::Syntax),
            ("AUTH PLAIN a b", CommandError::Syntax),
            ("VRFY", CommandError::Syntax),
            ("VRFY jürgen", CommandError::NotUtf8),
            ("BDAT", CommandError::ChunkSize),
            ("BDAT LAST", CommandError::ChunkSize),
            ("BDAT -1", CommandError::ChunkSize),
            ("BDAT 1 2", CommandError::ChunkSize),
            ("BDAT 18446744073709551616", CommandError::ChunkSize),
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
        ] {
            assert_eq!(parse(line.as_bytes()), Err(error), "{line}");
        }
        assert_eq!(parse(b"RCPT TO:<\xff@b.example>"), Err(CommandError::NotUtf8));
        assert_eq!(parse(b"VRFY \xff SMTPUTF8"), Err(CommandError::NotUtf8));
    }

    /// What a line is, told by its words alone: the name of the command, or of the error.
    fn reference(line: &str) -> &'static str {
        let line = line.trim_ascii_end();
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        let verb = verb.to_ascii_uppercase();
        let words: Vec<&str> = argument.split(' ').filter(|word| !word.is_empty()).collect();
        let alone = |name, error| if words.is_empty() { name } else { error };
        match (verb.as_str(), words.as_slice()) {
            ("DATA", _) => alone("data", "syntax"),
            ("RSET", _) => alone("rset", "syntax"),
            ("QUIT", _) => alone("quit", "syntax"),
            ("STARTTLS", _) => alone("starttls", "parameter"),
            ("NOOP", _) => "noop",
            ("HELP", _) => "help",
            ("EHLO" | "HELO" | "VRFY", []) => "syntax",
            ("EHLO", _) => "ehlo",
            ("HELO", _) => "helo",
            ("VRFY", [.., last]) if !argument.is_ascii() && !last.eq_ignore_ascii_case("SMTPUTF8") => "utf8",
            ("VRFY", _) => "vrfy",
            ("AUTH", [_] | [_, _]) => "auth",
            ("AUTH", _) => "syntax",
            ("BDAT", [octets, rest @ ..]) => {
                let last = rest.is_empty() || matches!(rest, [word] if word.eq_ignore_ascii_case("LAST"));
                let digits = octets.bytes().all(|c| c.is_ascii_digit());
                if digits && last && octets.parse::<u64>().is_ok() { "bdat" } else { "chunk" }
            }
            ("BDAT", _) => "chunk",
            ("EXPN" | "ETRN" | "XCLIENT" | "XFORWARD", _) => "not offered",
            ("GET" | "POST" | "HEAD" | "PUT" | "CONNECT", _) => "http",
            _ => "unknown",
        }
    }

    fn name(read: Result<Command<'_>, CommandError>) -> &'static str {
        match read {
            Ok(Command::Ehlo(_)) => "ehlo",
            Ok(Command::Helo(_)) => "helo",
            Ok(Command::Mail { .. }) => "mail",
            Ok(Command::Rcpt { .. }) => "rcpt",
            Ok(Command::Data) => "data",
            Ok(Command::Chunk { .. }) => "bdat",
            Ok(Command::StartTls) => "starttls",
            Ok(Command::Auth { .. }) => "auth",
            Ok(Command::Rset) => "rset",
            Ok(Command::Noop) => "noop",
            Ok(Command::Quit) => "quit",
            Ok(Command::Vrfy) => "vrfy",
            Ok(Command::Help) => "help",
            Ok(Command::NotOffered) => "not offered",
            Ok(Command::Http) => "http",
            Err(CommandError::Unknown) => "unknown",
            Err(CommandError::Syntax) => "syntax",
            Err(CommandError::Parameter) => "parameter",
            Err(CommandError::ChunkSize) => "chunk",
            Err(CommandError::SenderPath | CommandError::RecipientPath) => "path",
            Err(CommandError::NotUtf8) => "utf8",
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn commands_agree_with_a_reference_that_looks_at_words(
            verb in proptest::sample::select(vec![
                "EHLO", "helo", "DATA", "rset", "QUIT", "noop", "HELP", "VRFY", "vrfy", "EXPN", "Etrn", "XCLIENT", "XFORWARD",
                "GET", "POST", "head", "PUT", "CONNECT", "STARTTLS", "AUTH", "bdat", "BDAT", "DAT", "DATAX", "",
            ]),
            words in proptest::collection::vec(proptest::sample::select(vec![
                " ", "  ", "a", "7", "LAST", "last", "ü", "SMTPUTF8", "=", "\t", "18446744073709551616", "-", "0",
            ]), 0..6),
        ) {
            let separator = if words.is_empty() { "" } else { " " };
            let line = format!("{verb}{separator}{}", words.concat());
            prop_assert_eq!(name(parse(line.as_bytes())), reference(&line), "{:?}", line);
        }
    }
}
