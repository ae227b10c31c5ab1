//! Who wrote a message: the addresses in its `From:` (RFC 5322 §3.6.2), and how an operator names some of them.
//!
//! Reads what is sent, not only what is allowed: display names with anything in quotes, comments, folded lines, groups
//! (RFC 6854), UTF-8 (RFC 6532), dots where none may stand. What cannot be read is left out and takes nothing else along.
//! Work and memory rise with the length of the field and not faster.
//!
//! Upper and lower case are one here, in the local part too: nobody who writes a rule expects otherwise. Names of domains
//! are compared as they are written; `xn--` and UTF-8 forms of one name are two.

use std::str::FromStr;

/// Addresses of one field that are looked at.
pub const MAILBOXES_MAX: usize = 100;

/// An address in lower case, without comments and quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    local: String,
    domain: String,
}

impl Mailbox {
    /// An envelope's sender as the client sent it; `None` for the null sender and for what has no domain.
    pub fn of_path(path: &[u8]) -> Option<Mailbox> {
        mailboxes(path).into_iter().next()
    }
}

/// The addresses in a `From:`, in their order, of what stands behind its colon. Empty where none can be read.
pub fn mailboxes(field: &[u8]) -> Vec<Mailbox> {
    let mut found = Vec::new();
    let mut one = One::default();
    let mut lexer = Lexer { rest: field };
    while let Some(token) = lexer.next() {
        match (token, &one.angle) {
            (Token::Special(b'<'), Angle::Not) => one.angle = Angle::Open(Vec::new()),
            (Token::Special(b'>'), Angle::Open(_)) => one.close(),
            (Token::Special(b',' | b';'), Angle::Not | Angle::Closed(_)) => one.end(&mut found),
            // What stood before was the name of a group.
            (Token::Special(b':'), Angle::Not) => one = One::default(),
            (token, _) => one.take(token),
        }
        if found.len() == MAILBOXES_MAX {
            return found;
        }
    }
    one.end(&mut found);
    found
}

/// One address on its way: `local@domain`, or a display name and `<local@domain>`.
#[derive(Default)]
struct One<'a> {
    bare: Vec<Token<'a>>,
    angle: Angle<'a>,
}

#[derive(Default)]
enum Angle<'a> {
    #[default]
    Not,
    Open(Vec<Token<'a>>),
    Closed(Option<Mailbox>),
}

impl<'a> One<'a> {
    fn take(&mut self, token: Token<'a>) {
        match &mut self.angle {
            Angle::Not => self.bare.push(token),
            Angle::Open(tokens) => tokens.push(token),
            // Behind the address; nobody knows what it means.
            Angle::Closed(_) => {}
        }
    }

    fn close(&mut self) {
        if let Angle::Open(tokens) = &self.angle {
            // An old source route (RFC 5322 §4.4): `@relay,@other:local@domain`.
            let routed = tokens.first() == Some(&Token::Special(b'@'));
            let colon = tokens.iter().position(|token| *token == Token::Special(b':')).filter(|_| routed);
            self.angle = Angle::Closed(address(&tokens[colon.map_or(0, |at| at + 1)..]));
        }
    }

    /// The address is over.
    fn end(&mut self, found: &mut Vec<Mailbox>) {
        let One { bare, angle } = std::mem::take(self);
        found.extend(match angle {
            Angle::Not => address(&bare),
            Angle::Open(_) => None,
            Angle::Closed(mailbox) => mailbox,
        });
    }
}

/// `local@domain`, with white space and comments anywhere but inside words.
fn address(tokens: &[Token<'_>]) -> Option<Mailbox> {
    let at = tokens.iter().position(|token| *token == Token::Special(b'@'))?;
    let (local, domain) = (joined(&tokens[..at])?, joined(&tokens[at + 1..])?);
    let well_formed = !local.is_empty() && !domain.is_empty() && !domain.starts_with('.') && !domain.ends_with('.');
    well_formed.then(|| Mailbox { local: local.to_lowercase(), domain: domain.to_lowercase() })
}

/// Words with dots between them. Two words side by side are a display name and no address.
fn joined(tokens: &[Token<'_>]) -> Option<String> {
    let mut octets = Vec::new();
    let mut behind_word = false;
    for token in tokens {
        let is_dot = *token == Token::Special(b'.');
        match token {
            Token::Special(b'.') => octets.push(b'.'),
            Token::Word(_) | Token::Quoted(_) if behind_word => return None,
            Token::Word(word) => octets.extend_from_slice(word),
            Token::Quoted(word) => octets.extend_from_slice(word),
            Token::Special(_) => return None,
        }
        behind_word = !is_dot;
    }
    String::from_utf8(octets).ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    /// An atom, or a domain literal with its brackets.
    Word(&'a [u8]),
    /// What stood in quotes, without them.
    Quoted(Vec<u8>),
    /// One of `<>,;:@.` and whatever has no place in an address.
    Special(u8),
}

/// Cuts a field into tokens, without white space and comments.
struct Lexer<'a> {
    rest: &'a [u8],
}

impl<'a> Lexer<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            match *self.rest.first()? {
                b' ' | b'\t' | b'\r' | b'\n' => self.rest = &self.rest[1..],
                b'(' => self.comment(),
                b'"' => return Some(self.quoted()),
                b'[' => {
                    let end = self.rest.iter().position(|octet| *octet == b']').map_or(self.rest.len(), |at| at + 1);
                    return Some(Token::Word(self.split(end)));
                }
                octet if is_special(octet) => {
                    self.rest = &self.rest[1..];
                    return Some(Token::Special(octet));
                }
                _ => {
                    let ends = |octet: &u8| is_special(*octet) || matches!(octet, b' ' | b'(' | b'"' | b'[');
                    let end = self.rest.iter().position(ends).unwrap_or(self.rest.len());
                    return Some(Token::Word(self.split(end)));
                }
            }
        }
    }

    fn split(&mut self, end: usize) -> &'a [u8] {
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Up to the parenthesis that closes the first; comments may stand in comments.
    fn comment(&mut self) {
        let mut depth = 0u32;
        let mut escaped = false;
        let end = self.rest.iter().position(|octet| {
            match octet {
                _ if escaped => {
                    escaped = false;
                    return false;
                }
                b'\\' => escaped = true,
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        self.split(end.map_or(self.rest.len(), |at| at + 1));
    }

    fn quoted(&mut self) -> Token<'a> {
        let (mut word, mut escaped) = (Vec::new(), false);
        let mut at = 1;
        while let Some(octet) = self.rest.get(at) {
            at += 1;
            match octet {
                b'\r' | b'\n' => {}
                octet if escaped => {
                    word.push(*octet);
                    escaped = false;
                }
                b'\\' => escaped = true,
                b'"' => break,
                octet => word.push(*octet),
            }
        }
        self.split(at.min(self.rest.len()));
        Token::Quoted(word)
    }
}

/// Stands for itself: `<>,;:@.`, and what no atom has (RFC 5322 §3.2.3).
fn is_special(octet: u8) -> bool {
    matches!(octet, b'<' | b'>' | b',' | b';' | b':' | b'@' | b'.' | b')' | b']' | b'\\') || octet.is_ascii_control()
}

/// Some addresses, as an operator names them: `user@example.com`, `*@example.com`, or `*@*.example.com`, which are all
/// domains below that one and not itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// `None`: any.
    local: Option<String>,
    domain: String,
    /// Domains below `domain`.
    below: bool,
}

/// What a [`Pattern`] must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an address in quotes such as \"digest@example.com\", \"*@example.com\" for a whole domain, or \
     \"*@*.example.com\" for all domains below it"
)]
pub struct PatternError;

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (local, domain) = text.rsplit_once('@').ok_or(PatternError)?;
        let local = match local {
            "*" => None,
            local => Some(local.to_lowercase()),
        };
        let (domain, below) = match domain.strip_prefix("*.") {
            Some(domain) if local.is_none() => (domain, true),
            _ => (domain, false),
        };
        // What no message can be from would be a rule that never matches.
        let whole = Mailbox { local: local.clone().unwrap_or("x".to_owned()), domain: domain.to_lowercase() };
        let as_address = format!("{}@{domain}", local.as_deref().unwrap_or("x"));
        let stars = domain.contains('*') || local.as_deref().is_some_and(|local| local.contains('*'));
        let read = mailboxes(as_address.as_bytes());
        let quoted = local.as_deref().is_some_and(|local| local.starts_with('"'));
        match &read[..] {
            [one] if !stars && (*one == whole || quoted) => {
                let local = local.map(|_| one.local.clone());
                Ok(Pattern { local, domain: one.domain.clone(), below })
            }
            _ => Err(PatternError),
        }
    }
}

impl Pattern {
    pub fn matches(&self, mailbox: &Mailbox) -> bool {
        let domain = match self.below {
            false => mailbox.domain == self.domain,
            true => is_below(&mailbox.domain, &self.domain),
        };
        domain && self.local.as_ref().is_none_or(|local| *local == mailbox.local)
    }

    /// Whatever `other` matches this one matches too.
    pub fn covers(&self, other: &Pattern) -> bool {
        let domain = match (self.below, other.below) {
            (false, below) => !below && self.domain == other.domain,
            (true, true) => self.domain == other.domain || is_below(&other.domain, &self.domain),
            (true, false) => is_below(&other.domain, &self.domain),
        };
        domain && (self.local.is_none() || self.local == other.local)
    }
}

fn is_below(domain: &str, parent: &str) -> bool {
    domain.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn read(field: &str) -> Vec<String> {
        mailboxes(field.as_bytes()).into_iter().map(|m| format!("{}@{}", m.local, m.domain)).collect()
    }

    #[test]
    fn addresses_are_found_however_they_are_written() {
        let table: &[(&str, &[&str])] = &[
            (" a@b.example\r\n", &["a@b.example"]),
            ("Anna <Anna@B.Example>", &["anna@b.example"]),
            ("\"Doe, <Jane>\" <jane@b.example>", &["jane@b.example"]),
            ("\"a \\\" <x@y.example>\" <jane@b.example>", &["jane@b.example"]),
            ("=?utf-8?q?a=2C_b?= <a@b.example>", &["a@b.example"]),
            ("Anna\r\n\t<a@b.example>\r\n", &["a@b.example"]),
            ("a@b.example (Anna (the <x@y.example>) Great \\) )", &["a@b.example"]),
            ("a (c) @ (d) b . (e) example", &["a@b.example"]),
            ("\"john doe\"@b.example", &["john doe@b.example"]),
            ("\"John\".doe@b.example", &["john.doe@b.example"]),
            ("<@relay.example,@other.example:a@b.example>", &["a@b.example"]),
            ("a@b.example, Carl <c@d.example>", &["a@b.example", "c@d.example"]),
            ("Team: a@b.example, C <c@d.example>;", &["a@b.example", "c@d.example"]),
            ("Nobody:;", &[]),
            ("Nobody:;, a@b.example", &["a@b.example"]),
            ("Foo, Inc. <a@b.example>", &["a@b.example"]),
            ("Grüße <grüße@BÜCHER.example>", &["grüße@bücher.example"]),
            ("foo..bar.@docomo.example", &["foo..bar.@docomo.example"]),
            ("a@[192.0.2.1]", &["a@[192.0.2.1]"]),
            ("a@[IPv6:2001:db8::1]", &["a@[ipv6:2001:db8::1]"]),
            ("\"Anna\" a@b.example", &[]),
            ("Anna Smith", &[]),
            ("<>", &[]),
            ("<a@b.example", &[]),
            ("\"a@b.example", &[]),
            ("(a@b.example", &[]),
            ("<a@>, <@b.example>, a@.example, c@d.example", &["c@d.example"]),
            ("a@b@c.example", &[]),
            ("a\\b@c.example, a\0b@c.example", &[]),
            ("<a@b.example> trailing <x@y.example>", &["a@b.example"]),
            ("", &[]),
        ];
        for (field, expected) in table {
            assert_eq!(read(field), *expected, "{field:?}");
        }
        assert_eq!(mailboxes(b"\xff\xfe <a@b.example>, \xff@b.example").len(), 1, "what is no UTF-8 is left out");
    }

    #[test]
    fn the_sender_of_the_envelope_is_read_the_same_way() {
        assert_eq!(Mailbox::of_path(b"\"A b\"@C.example"), mailboxes(b"\"a b\"@c.example").pop());
        assert_eq!(Mailbox::of_path(b""), None);
    }

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_pattern_is_an_address_a_domain_or_all_below_one() {
        let table = [
            ("digest@example.com", "Digest@EXAMPLE.com", true),
            ("Digest@example.com", "digest@example.com", true),
            ("digest@example.com", "digest@news.example.com", false),
            ("*@example.com", "any.thing@example.com", true),
            ("*@example.com", "a@news.example.com", false),
            ("*@*.example.com", "a@news.example.com", true),
            ("*@*.example.com", "a@x.news.example.com", true),
            ("*@*.example.com", "a@example.com", false),
            ("*@*.example.com", "a@badexample.com", false),
            ("*@bücher.example", "a@BÜCHER.example", true),
            ("\"John Doe\"@example.com", "\"john doe\"@example.com", true),
        ];
        for (text, address, matches) in table {
            let mailbox = Mailbox::of_path(address.as_bytes()).unwrap();
            assert_eq!(pattern(text).matches(&mailbox), matches, "{text} and {address}");
        }
        for text in [
            "",
            "example.com",
            "@example.com",
            "*",
            "*@",
            "a@*.example.com",
            "a*@example.com",
            "*@news.*.com",
            "*@*",
            "a b@example.com",
            "a@b@example.com",
            "<a@example.com>",
            "a@example.com, b@example.com",
            "a@.example",
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(PatternError), "{text:?}");
        }
    }

    #[test]
    fn a_wider_pattern_covers_a_narrower_one() {
        for (wide, narrow, covers) in [
            ("*@example.com", "a@example.com", true),
            ("a@example.com", "A@Example.com", true),
            ("a@example.com", "*@example.com", false),
            ("*@*.example.com", "*@news.example.com", true),
            ("*@*.example.com", "a@news.example.com", true),
            ("*@*.example.com", "*@*.news.example.com", true),
            ("*@*.news.example.com", "*@*.example.com", false),
            ("*@*.example.com", "*@example.com", false),
            ("*@news.example.com", "*@*.example.com", false),
        ] {
            assert_eq!(pattern(wide).covers(&pattern(narrow)), covers, "{wide} and {narrow}");
        }
    }

    #[test]
    fn a_field_of_64_kib_costs_time_by_its_length() {
        let started = Instant::now();
        for part in
            ["(", "\"", "<", "[", "\\", ",", "@", ":", "a", "a ", "()", "\"\"", "<>", "a@b.example,", "(\\", ";:"]
        {
            let field = part.repeat(64 * 1024 / part.len());
            assert!(mailboxes(field.as_bytes()).len() <= MAILBOXES_MAX, "{part:?}");
            let mut closed = field.clone();
            closed.push_str(")\"> <a@b.example>");
            let _ = mailboxes(closed.as_bytes());
        }
        // Quadratic work would be 4 x 10^9 steps for each.
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn no_octets_break_the_reader(
            octets in proptest::collection::vec(
                prop_oneof![any::<u8>(), proptest::sample::select(b"<>,;:@.()[]\"\\ \r\na".to_vec())], 0..200),
        ) {
            for mailbox in mailboxes(&octets) {
                prop_assert!(!mailbox.local.is_empty() && !mailbox.domain.is_empty());
            }
            if let Ok(text) = std::str::from_utf8(&octets) {
                let _ = text.parse::<Pattern>();
            }
        }

        #[test]
        fn an_address_is_found_behind_any_quoted_name(name in "[ -~]{0,40}", local in "[a-z]{1,8}") {
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            let field = format!("\"{quoted}\"\r\n <{local}@b.example>");
            prop_assert_eq!(read(&field), [format!("{local}@b.example")]);
        }
    }
}
