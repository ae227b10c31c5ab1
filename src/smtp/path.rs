//! The syntax of reverse-path and forward-path (RFC 5321 §4.1.2, RFC 6531 §3.3), to know where one ends and whether it
//! is one.
//!
//! Promises: a [`Path`] is what the client sent, octet by octet, UTF-8 without CR, LF, NUL or any other control, and
//! with quotes balanced, so it can be repeated to the next hop between `<` and `>` and means the same there. There is no
//! other way to build one than to read it.
//!
//! Source routes (`<@a,@b:c@d>`) are refused; lengths are not judged beyond what DNS allows, because bounce addresses
//! in use exceed the 64 octets of a local part. An underscore in a domain passes: such hosts exist. Whether a domain in
//! UTF-8 is a good one (IDNA) is the next hop's matter.

use core::net::{Ipv4Addr, Ipv6Addr};

const DOMAIN_MAX_OCTETS: usize = 255; // RFC 1035 §2.3.4
const LABEL_MAX_OCTETS: usize = 63; // RFC 1035 §2.3.4

/// A path that was read and found good: what stands between `<` and `>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a>(&'a [u8]);

impl<'a> Path<'a> {
    /// Without the angle brackets; empty for the null sender.
    pub fn octets(self) -> &'a [u8] {
        self.0
    }

    /// `<>`, the sender of reports. Not `<postmaster>`, which has a name.
    pub fn is_null(self) -> bool {
        self.0.is_empty()
    }

    /// False: may only be used when the client asked for SMTPUTF8 (RFC 6531 §3.4).
    pub fn is_ascii(self) -> bool {
        self.0.is_ascii()
    }
}

/// Why a path was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    Syntax,
    /// Octets beyond ASCII that are no UTF-8.
    NotUtf8,
}

/// Splits a path off the front of `text`, and returns the rest with it. `<>` gives the null path.
pub fn reverse_path(text: &[u8]) -> Result<(Path<'_>, &[u8]), PathError> {
    match text.strip_prefix(b"<>") {
        Some(rest) => Ok((Path(&[]), rest)),
        None => bracketed(text, mailbox),
    }
}

/// As [`reverse_path`], but `<>` is refused and `<postmaster>`, in any case, needs no domain.
pub fn forward_path(text: &[u8]) -> Result<(Path<'_>, &[u8]), PathError> {
    bracketed(text, |inner| postmaster(inner).or_else(|| mailbox(inner)))
}

/// `<`, as many octets as `length` says, `>`.
fn bracketed(text: &[u8], length: impl Fn(&[u8]) -> Option<usize>) -> Result<(Path<'_>, &[u8]), PathError> {
    let inner = text.strip_prefix(b"<").ok_or(PathError::Syntax)?;
    let end = length(inner).filter(|end| inner.get(*end) == Some(&b'>')).ok_or(PathError::Syntax)?;
    let path = &inner[..end];
    let text = std::str::from_utf8(path).map_err(|_| PathError::NotUtf8)?;
    // Beyond ASCII there are 32 more controls, U+0080 to U+009F, which terminals obey.
    if text.chars().any(char::is_control) {
        return Err(PathError::Syntax);
    }
    Ok((Path(path), &inner[end + 1..]))
}

fn postmaster(text: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"postmaster";
    let name = text.get(..NAME.len())?;
    (name.eq_ignore_ascii_case(NAME) && text.get(NAME.len()) == Some(&b'>')).then_some(NAME.len())
}

/// Length of the `local@domain` at the start of `text`.
fn mailbox(text: &[u8]) -> Option<usize> {
    let local = if text.first() == Some(&b'"') { quoted_string(text)? } else { dot_string(text)? };
    let domain = text[local..].strip_prefix(b"@")?;
    let length = if domain.first() == Some(&b'[') { address_literal(domain)? } else { domain_name(domain)? };
    Some(local + 1 + length)
}

/// Atoms joined by single dots.
fn dot_string(text: &[u8]) -> Option<usize> {
    let end = text.iter().position(|octet| !is_atext(*octet) && *octet != b'.')?;
    text[..end].split(|octet| *octet == b'.').all(|atom| !atom.is_empty()).then_some(end)
}

fn quoted_string(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if matches!(text.get(at + 1), Some(32..=126)) => at += 2,
            b'\\' => return None,
            32..=126 | 128.. => at += 1,
            _ => return None,
        }
    }
}

fn domain_name(text: &[u8]) -> Option<usize> {
    let end = text
        .iter()
        .position(|octet| !octet.is_ascii_alphanumeric() && !matches!(octet, b'-' | b'_' | b'.' | 128..))
        .unwrap_or(text.len());
    let label_is_good = |label: &[u8]| {
        // The limit is one of ASCII labels; the same label may take more octets in UTF-8.
        let fits = label.len() <= LABEL_MAX_OCTETS || !label.is_ascii();
        !label.is_empty() && fits && !label.starts_with(b"-") && !label.ends_with(b"-")
    };
    let good = end <= DOMAIN_MAX_OCTETS && text[..end].split(|octet| *octet == b'.').all(label_is_good);
    good.then_some(end)
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]`; no other kind is registered.
fn address_literal(text: &[u8]) -> Option<usize> {
    let end = text.iter().position(|octet| *octet == b']')?;
    let inner = std::str::from_utf8(&text[1..end]).ok()?;
    let good = match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => inner[5..].parse::<Ipv6Addr>().is_ok(),
        _ => inner.parse::<Ipv4Addr>().is_ok(),
    };
    good.then_some(end + 1)
}

fn is_atext(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || octet >= 128 || b"!#$%&'*+-/=?^_`{|}~".contains(&octet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_comes_back_as_it_was_sent() {
        for path in [
            "a@example.org",
            "first.last+tag@Example.ORG",
            "o'hara=x!y@sub-domain.example.org",
            "\"a b\"@example.org",
            "\"a> NOTIFY=NEVER\"@example.org",
            "\"quote\\\"and\\\\\"@example.org",
            "\"\"@example.org",
            "a@[192.0.2.1]",
            "a@[IPv6:2001:db8::1]",
            "a@[ipv6:::1]",
            "a@host_name.example.org",
            "a@localhost",
            "jürgen@example.org",
            "a@exämple.org",
            "\"ü ö\"@example.org",
            "用户@例子.公司",
        ] {
            let text = format!("<{path}> SIZE=1");
            for parse in [reverse_path, forward_path] {
                let read = parse(text.as_bytes());
                assert_eq!(read, Ok((Path(path.as_bytes()), &b" SIZE=1"[..])), "{path}");
            }
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let long_label = format!("<a@{}.org>", "x".repeat(64));
        let long_domain = format!("<a@{}org>", "x.".repeat(127));
        for text in [
            "",
            "a@example.org",
            "<a@example.org",
            "<a>",
            "<@example.org>",
            "<a@>",
            "<a@b@c>",
            "<a b@example.org>",
            "<a..b@example.org>",
            "<.a@example.org>",
            "<a.@example.org>",
            "<a@example..org>",
            "<a@example.org.>",
            "<a@-example.org>",
            "<a@example-.org>",
            "<a@exa mple.org>",
            "<\"a@example.org>",
            "<\"a\"b@example.org>",
            "<\"a\\\"@example.org>",
            "<\"a\tb\"@example.org>",
            "<\"a\x7f\"@example.org>",
            "<a\x01@example.org>",
            "<a@[192.0.2]>",
            "<a@[192.0.2.1>",
            "<a@[IPv6:192.0.2.1]>",
            "<a@[tag:x]>",
            "<@relay.example:a@example.org>",
            "<<a@example.org>>",
            "<ü ü@example.org>",
            "<a\u{85}@example.org>",
            "<a@exa\u{9b}mple.org>",
            &long_label,
            &long_domain,
        ] {
            assert_eq!(reverse_path(text.as_bytes()), Err(PathError::Syntax), "{text:?}");
            assert_eq!(forward_path(text.as_bytes()), Err(PathError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn the_null_sender_and_postmaster_are_told_apart() {
        let (null, rest) = reverse_path(b"<> SIZE=1").unwrap();
        assert!(null.is_null() && null.octets().is_empty());
        assert_eq!(rest, b" SIZE=1");
        assert_eq!(forward_path(b"<>"), Err(PathError::Syntax));
        let (postmaster, _) = forward_path(b"<PostMaster>").unwrap();
        assert_eq!((postmaster.octets(), postmaster.is_null()), (&b"PostMaster"[..], false));
        assert_eq!(forward_path(b"<postmasters>"), Err(PathError::Syntax));
        assert_eq!(reverse_path(b"<postmaster>"), Err(PathError::Syntax));
    }

    #[test]
    fn octets_beyond_ascii_have_to_be_utf8() {
        for text in [&b"<\xff@example.org>"[..], b"<a@\xc3.org>", b"<\"\xed\xa0\x80\"@example.org>"] {
            assert_eq!(reverse_path(text), Err(PathError::NotUtf8), "{text:?}");
            assert_eq!(forward_path(text), Err(PathError::NotUtf8), "{text:?}");
        }
        assert!(!forward_path("<jürgen@example.org>".as_bytes()).unwrap().0.is_ascii());
        assert!(forward_path(b"<a@example.org>").unwrap().0.is_ascii());
    }

    /// The same rules character by character over the whole text, as a list of what may follow what; `None` for every
    /// kind of fault. Of literals and lengths of labels it knows nothing, so the inputs have none.
    fn reference(text: &[u8], forward: bool) -> Option<(&[u8], &[u8])> {
        #[derive(PartialEq)]
        enum At {
            Open,
            AtomStart,
            Atom,
            Quoted,
            Escaped,
            Unquoted,
            LabelStart,
            Label,
            LabelDash,
        }
        let whole = std::str::from_utf8(text).ok()?;
        let mut at = At::Open;
        for (offset, c) in whole.char_indices() {
            let plain = c.is_ascii_alphanumeric() || (!c.is_ascii() && !c.is_control());
            let atext = plain || "!#$%&'*+-/=?^_`{|}~".contains(c);
            at = match (at, c) {
                (At::Open, '<') => At::AtomStart,
                (At::AtomStart, '>') if offset == 1 && !forward => return Some((&text[1..1], &text[2..])),
                (At::Atom, '>') if forward && whole[1..offset].eq_ignore_ascii_case("postmaster") => {
                    return Some((&text[1..offset], &text[offset + 1..]));
                }
                (At::AtomStart, '"') if offset == 1 => At::Quoted,
                (At::AtomStart | At::Atom, _) if atext => At::Atom,
                (At::Atom, '.') => At::AtomStart,
                (At::Atom | At::Unquoted, '@') => At::LabelStart,
                (At::Quoted, '"') => At::Unquoted,
                (At::Quoted, '\\') => At::Escaped,
                (At::Quoted, _) if !c.is_control() => At::Quoted,
                (At::Escaped, ' '..='~') => At::Quoted,
                (At::LabelStart | At::Label | At::LabelDash, _) if plain || c == '_' => At::Label,
                (At::Label | At::LabelDash, '-') => At::LabelDash,
                (At::Label, '.') => At::LabelStart,
                (At::Label, '>') => return Some((&text[1..offset], &text[offset + 1..])),
                _ => return None,
            };
        }
        None
    }

    fn piece() -> impl Strategy<Value = &'static str> {
        proptest::sample::select(vec![
            "a",
            "B",
            "1",
            "\"",
            "\\",
            "@",
            ".",
            "-",
            "_",
            " ",
            ">",
            "<",
            ",",
            ":",
            "ü",
            "\u{85}",
            "\r",
            "\n",
            "\0",
            "\t",
            "\u{7f}",
            "a@b",
            "postmaster",
            "example.org",
            "=",
            "(",
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn paths_agree_with_a_reference_read_character_by_character(
            pieces in proptest::collection::vec(piece(), 0..8),
            ending in proptest::sample::select(vec!["", ">", "@b.example>", "\"@b>", "@b.example> X=1"]),
        ) {
            let text = format!("<{}{ending}", pieces.concat());
            for (read, forward) in [(reverse_path(text.as_bytes()), false), (forward_path(text.as_bytes()), true)] {
                let read = read.ok().map(|(path, rest)| (path.octets(), rest));
                prop_assert_eq!(read, reference(text.as_bytes(), forward), "{:?}, forward: {}", text, forward);
                if let Some((path, _)) = read {
                    prop_assert!(!path.iter().any(|octet| octet.is_ascii_control()));
                }
            }
        }
    }
}
