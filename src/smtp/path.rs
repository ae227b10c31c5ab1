//! The syntax of reverse-path and forward-path (RFC 5321 §4.1.2), to know where one ends and whether it is one.
//!
//! Promises: what is returned is what the client sent, octet by octet, without CR, LF, NUL or any other control, and
//! with quotes balanced, so it can be repeated to the next hop between `<` and `>` and means the same there.
//!
//! Source routes (`<@a,@b:c@d>`) are refused; lengths are not judged beyond what DNS allows, because bounce addresses
//! in use exceed the 64 octets of a local part. An underscore in a domain passes: such hosts exist.

use core::net::{Ipv4Addr, Ipv6Addr};

const DOMAIN_MAX_OCTETS: usize = 255; // RFC 1035 §2.3.4
const LABEL_MAX_OCTETS: usize = 63; // RFC 1035 §2.3.4

/// Why a path was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    Syntax,
    /// Well formed but with octets beyond ASCII, for which the client did not ask (RFC 6531).
    EightBit,
}

/// Splits a path off the front of `text`: what stands between `<` and `>`, and the rest. `<>` gives an empty path.
pub fn reverse_path(text: &[u8]) -> Result<(&[u8], &[u8]), PathError> {
    match text.strip_prefix(b"<>") {
        Some(rest) => Ok((&[], rest)),
        None => bracketed(text, mailbox),
    }
}

/// As [`reverse_path`], but `<>` is refused and `<postmaster>`, in any case, needs no domain.
pub fn forward_path(text: &[u8]) -> Result<(&[u8], &[u8]), PathError> {
    bracketed(text, |inner| postmaster(inner).or_else(|| mailbox(inner)))
}

/// `<`, as many octets as `length` says, `>`.
fn bracketed(text: &[u8], length: impl Fn(&[u8]) -> Option<usize>) -> Result<(&[u8], &[u8]), PathError> {
    let inner = text.strip_prefix(b"<").ok_or(PathError::Syntax)?;
    let end = length(inner).filter(|end| inner.get(*end) == Some(&b'>')).ok_or(PathError::Syntax)?;
    let path = &inner[..end];
    if path.is_ascii() { Ok((path, &inner[end + 1..])) } else { Err(PathError::EightBit) }
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
        matches!(label.len(), 1..=LABEL_MAX_OCTETS) && !label.starts_with(b"-") && !label.ends_with(b"-")
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
        ] {
            let text = format!("<{path}> SIZE=1");
            for parse in [reverse_path, forward_path] {
                let read = parse(text.as_bytes());
                assert_eq!(read, Ok((path.as_bytes(), &b" SIZE=1"[..])), "{path}");
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
            &long_label,
            &long_domain,
        ] {
            assert_eq!(reverse_path(text.as_bytes()), Err(PathError::Syntax), "{text:?}");
            assert_eq!(forward_path(text.as_bytes()), Err(PathError::Syntax), "{text:?}");
        }
    }

    #[test]
    fn the_null_sender_and_postmaster_are_told_apart() {
        assert_eq!(reverse_path(b"<> SIZE=1"), Ok((&b""[..], &b" SIZE=1"[..])));
        assert_eq!(forward_path(b"<>"), Err(PathError::Syntax));
        assert_eq!(forward_path(b"<PostMaster>"), Ok((&b"PostMaster"[..], &b""[..])));
        assert_eq!(forward_path(b"<postmasters>"), Err(PathError::Syntax));
        assert_eq!(reverse_path(b"<postmaster>"), Err(PathError::Syntax));
    }

    #[test]
    fn octets_beyond_ascii_are_named_as_the_reason() {
        for text in ["<jürgen@example.org>", "<a@exämple.org>", "<\"ü\"@example.org>"] {
            assert_eq!(forward_path(text.as_bytes()), Err(PathError::EightBit), "{text}");
        }
        assert_eq!(reverse_path(b"<\xff@example.org>"), Err(PathError::EightBit), "not even UTF-8");
        assert_eq!(reverse_path("<ü ü@example.org>".as_bytes()), Err(PathError::Syntax));
    }
}
