//! The domain of a mail address, as it is looked up.
//!
//! Every way to write a domain leads to one key: lower case, ASCII (IDNA), no dot at the end. What cannot have an MX gives none
//! and is never asked about: address literals, `postmaster` alone, single labels, IP addresses without brackets, what DNS
//! would not take.

use std::borrow::Cow;

const DOMAIN_MAX_OCTETS: usize = 253; // RFC 1035 §3.1, without the dot at the end
const LABEL_MAX_OCTETS: usize = 63; // RFC 1035 §2.3.4

/// Room for one domain in lower case, so that the look at a recipient needs no memory of its own.
pub type Room = [u8; DOMAIN_MAX_OCTETS];

/// Empty room.
pub const ROOM: Room = [0; DOMAIN_MAX_OCTETS];

/// What stands behind the last `@` of a path (RFC 5321 §4.1.2); empty for `postmaster`.
pub fn of_path(path: &[u8]) -> &[u8] {
    memchr::memrchr(b'@', path).map_or(&[], |at| &path[at + 1..])
}

/// The key of a domain; `None` when it cannot have an MX.
pub fn key<'a>(domain: &'a [u8], room: &'a mut Room) -> Option<Cow<'a, str>> {
    let domain = domain.strip_suffix(b".").unwrap_or(domain);
    if !domain.is_ascii() {
        let text = std::str::from_utf8(domain).ok().filter(|text| text.len() <= 4 * DOMAIN_MAX_OCTETS)?;
        let ascii = idna::domain_to_ascii(text).ok()?;
        return has_mail_servers(ascii.as_bytes()).then_some(Cow::Owned(ascii));
    }
    if domain.len() > DOMAIN_MAX_OCTETS {
        return None;
    }
    let lower = if domain.iter().any(u8::is_ascii_uppercase) {
        let lower = &mut room[..domain.len()];
        lower.copy_from_slice(domain);
        lower.make_ascii_lowercase();
        lower
    } else {
        domain
    };
    if !has_mail_servers(lower) {
        return None;
    }
    std::str::from_utf8(lower).ok().map(Cow::Borrowed)
}

/// Whether it is a name of DNS with two labels or more. Lower case comes in.
fn has_mail_servers(domain: &[u8]) -> bool {
    let (mut labels, mut start) = (0, 0);
    if domain.len() > DOMAIN_MAX_OCTETS {
        return false;
    }
    for end in memchr::memchr_iter(b'.', domain).chain([domain.len()]) {
        let label = &domain[start..end];
        let plain = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
        if label.is_empty() || label.len() > LABEL_MAX_OCTETS || !label.iter().all(plain) {
            return false;
        }
        (labels, start) = (labels + 1, end + 1);
    }
    let last = domain.rsplit(|c| *c == b'.').next().unwrap_or_default();
    // No top-level domain is a number: this is an IP address.
    labels >= 2 && !last.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(path: &str) -> Option<String> {
        key(of_path(path.as_bytes()), &mut ROOM.clone()).map(Cow::into_owned)
    }

    #[test]
    fn a_domain_has_one_key_however_it_is_written() {
        for (path, expected) in [
            ("a@example.org", "example.org"),
            ("a@Example.ORG.", "example.org"),
            ("\"a@b\"@example.org", "example.org"),
            ("a@bücher.example", "xn--bcher-kva.example"),
            ("a@BÜCHER.example", "xn--bcher-kva.example"),
            ("a@XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("a@例え.テスト", "xn--r8jz45g.xn--zckzah"),
            ("a@bücher。example", "xn--bcher-kva.example"),
            ("a@my_host.example", "my_host.example"),
        ] {
            assert_eq!(of(path).as_deref(), Some(expected), "{path}");
        }
    }

    #[test]
    fn what_cannot_have_a_mail_server_has_no_key() {
        let (long_label, long) = (format!("a@{}.example", "x".repeat(64)), format!("a@{}", "x.".repeat(130)));
        for path in [
            "postmaster",
            "a@[192.0.2.1]",
            "a@[IPv6:2001:db8::1]",
            "a@192.0.2.1",
            "a@localhost",
            "a@localhost.",
            "a@",
            "a@.",
            "a@a..b",
            "a@a b.example",
            "a@\u{ad}.example",
            "a@xn--\u{fc}.example",
            &long_label,
            &long,
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        assert_eq!(key(b"\xff\xfe.example", &mut ROOM.clone()), None, "no UTF-8");
    }

    #[test]
    fn lower_case_needs_no_memory() {
        assert!(matches!(key(b"example.org", &mut ROOM.clone()), Some(Cow::Borrowed("example.org"))));
        assert!(matches!(key(b"Example.org", &mut ROOM.clone()), Some(Cow::Borrowed("example.org"))));
    }

    proptest! {
        #[test]
        fn a_key_is_its_own_key_and_a_name_that_dns_takes(domain in "\\PC{0,80}") {
            if let Some(key) = key(domain.as_bytes(), &mut ROOM.clone()) {
                prop_assert!(key.len() <= DOMAIN_MAX_OCTETS && key.is_ascii() && !key.contains(char::is_whitespace));
                let (again, mut room) = (key.as_bytes().to_vec(), ROOM);
                prop_assert_eq!(super::key(&again, &mut room), Some(key));
            }
        }
    }
}
