//! What the client wants its sender to hear (RFC 3461): NOTIFY, ORCPT and ENVID, read from the parameters as received.
//!
//! The parameters themselves are never rewritten; they are passed on, octet by octet, to a next hop that offers DSN.
//! One word of our own may stand behind them, `TOLD_OF_DELAY`; it is never written to a next hop. Plain.

use bytes::Bytes;

use super::wire::{name_of, parameters, printable};

/// Stored behind the parameters of a recipient whose sender has heard that it is late.
const TOLD_OF_DELAY: &[u8] = b"X-MAILRAMP-TOLD-OF-DELAY";

/// Of what the sender wants to hear (RFC 3461 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    pub success: bool,
    pub failure: bool,
    pub delay: bool,
}

impl Wishes {
    /// Without NOTIFY: failures, and delays as far as we tell them.
    const UNSAID: Wishes = Wishes { success: false, failure: true, delay: true };

    /// Read from the parameters of RCPT. What makes no sense counts as unsaid: better one report too many.
    pub fn of(rcpt_parameters: &[u8]) -> Wishes {
        let Some(value) = value_of(rcpt_parameters, b"NOTIFY") else { return Wishes::UNSAID };
        let has = |word: &[u8]| value.split(|c| *c == b',').any(|w| w.eq_ignore_ascii_case(word));
        let wishes = Wishes { success: has(b"SUCCESS"), failure: has(b"FAILURE"), delay: has(b"DELAY") };
        let nothing = Wishes { success: false, failure: false, delay: false };
        if wishes == nothing && !has(b"NEVER") { Wishes::UNSAID } else { wishes }
    }
}

/// ORCPT as the field `Original-Recipient` has it: `type; address` (RFC 3464 §2.3.1), printable ASCII.
pub fn original_recipient(rcpt_parameters: &[u8]) -> Option<String> {
    let value = value_of(rcpt_parameters, b"ORCPT")?;
    let at = value.iter().position(|c| *c == b';')?;
    let (kind, address) = (&value[..at], &value[at + 1..]);
    if kind.is_empty() || !kind.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-') {
        return None;
    }
    // The utf-8 forms have an encoding of their own, which stays (RFC 6533 §3).
    let address = if kind.eq_ignore_ascii_case(b"utf-8") { utf8_address(address) } else { decoded(address) };
    Some(format!("{}; {address}", printable(kind)))
}

/// ENVID as the field `Original-Envelope-Id` has it (RFC 3464 §2.2.1), printable ASCII.
pub fn envelope_id(mail_parameters: &[u8]) -> Option<String> {
    value_of(mail_parameters, b"ENVID").map(decoded)
}

/// The sender has heard that this recipient is late.
pub fn is_told_of_delay(rcpt_parameters: &[u8]) -> bool {
    parameters(rcpt_parameters).any(|p| p == TOLD_OF_DELAY)
}

/// The same parameters, with the note that the sender has heard.
pub fn told_of_delay(rcpt_parameters: &[u8]) -> Bytes {
    Bytes::from([rcpt_parameters, b" ", TOLD_OF_DELAY].concat())
}

/// An address for a field that takes `utf-8-addr-xtext` (RFC 6533 §3): ASCII, with everything else, and what the form
/// uses itself, as `\x{…}`. Octets that are no UTF-8 become `\xNN`.
pub fn utf8_address(octets: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(octets) else { return printable(octets) };
    if text.is_ascii() {
        return printable(octets);
    }
    let mut out = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '!'..='~' if !matches!(c, '\\' | '+' | '=') => out.push(c),
            c => out.push_str(&format!("\\x{{{:X}}}", u32::from(c))),
        }
    }
    out
}

fn value_of<'a>(all: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    parameters(all).find(|p| name_of(p) == name).and_then(|p| p.get(name.len() + 1..)).filter(|v| !v.is_empty())
}

/// xtext (RFC 3461 §4) read, as long as what comes out is printable ASCII; otherwise as it was written, so that nothing
/// hidden in it gets a meaning.
fn decoded(value: &[u8]) -> String {
    xtext(value).unwrap_or_else(|| printable(value))
}

fn xtext(value: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut octets = value.iter().copied();
    while let Some(octet) = octets.next() {
        let octet = match octet {
            b'+' => {
                let mut digit = || octets.next().filter(|c| !c.is_ascii_lowercase());
                let (high, low) = (char::from(digit()?).to_digit(16)?, char::from(digit()?).to_digit(16)?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'=' => return None,
            octet => octet,
        };
        if !(b' '..=b'~').contains(&octet) {
            return None;
        }
        out.push(char::from(octet));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wishes(text: &str) -> (bool, bool, bool) {
        let Wishes { success, failure, delay } = Wishes::of(text.as_bytes());
        (success, failure, delay)
    }

    #[test]
    fn notify_says_what_the_sender_wants_to_hear() {
        for (parameters, expected) in [
            ("", (false, true, true)),
            ("ORCPT=rfc822;a@b", (false, true, true)),
            ("NOTIFY=NEVER", (false, false, false)),
            ("notify=never ORCPT=rfc822;a@b", (false, false, false)),
            ("NOTIFY=SUCCESS", (true, false, false)),
            ("ORCPT=rfc822;a NOTIFY=success,FAILURE", (true, true, false)),
            ("NOTIFY=DELAY", (false, false, true)),
            ("NOTIFY=FAILURE,DELAY", (false, true, true)),
            ("NOTIFY=", (false, true, true)),
            ("NOTIFY=SOMETIMES", (false, true, true)),
        ] {
            assert_eq!(wishes(parameters), expected, "{parameters}");
        }
    }

    #[test]
    fn the_original_recipient_is_read_from_its_xtext_unless_something_hides_in_it() {
        for (parameters, expected) in [
            ("ORCPT=rfc822;a@b.example NOTIFY=NEVER", Some("rfc822; a@b.example")),
            ("NOTIFY=NEVER orcpt=RFC822;a+2Bb+3Dc@b.example", Some("RFC822; a+b=c@b.example")),
            ("ORCPT=rfc822;a+20b@c", Some("rfc822; a b@c")),
            ("ORCPT=rfc822;x+0D+0AStatus:+202.0.0", Some("rfc822; x+0D+0AStatus:+202.0.0")),
            ("ORCPT=rfc822;x+00", Some("rfc822; x+00")),
            ("ORCPT=rfc822;x+C3+BC", Some("rfc822; x+C3+BC")),
            ("ORCPT=rfc822;x+2", Some("rfc822; x+2")),
            ("ORCPT=rfc822;x+2b", Some("rfc822; x+2b")),
            ("ORCPT=utf-8;\\x{FC}@b.example", Some("utf-8; \\x{FC}@b.example")),
            ("ORCPT=utf-8;\u{fc}+@b.example", Some("utf-8; \\x{FC}\\x{2B}@b.example")),
            ("ORCPT=a@b.example", None),
            ("ORCPT=;a@b", None),
            ("ORCPT=", None),
            ("", None),
        ] {
            assert_eq!(original_recipient(parameters.as_bytes()).as_deref(), expected, "{parameters}");
        }
        assert_eq!(envelope_id(b"RET=HDRS ENVID=order+2B17 BODY=8BITMIME").as_deref(), Some("order+17"));
        assert_eq!(envelope_id(b"RET=HDRS"), None);
    }

    #[test]
    fn an_address_beyond_ascii_is_written_so_that_it_can_be_read_back() {
        assert_eq!(
            utf8_address("\u{fc}+a=b\\c d@b.example".as_bytes()),
            "\\x{FC}\\x{2B}a\\x{3D}b\\x{5C}c\\x{20}d@b.example"
        );
        assert_eq!(utf8_address(b"a+b@c"), "a+b@c");
        assert_eq!(utf8_address(b"a\xff"), "a\\xff");
    }

    #[test]
    fn the_note_on_a_delay_is_seen_and_changes_no_wish() {
        let before = b"NOTIFY=DELAY ORCPT=rfc822;a@b".as_slice();
        let after = told_of_delay(before);
        assert!(!is_told_of_delay(before) && is_told_of_delay(&after) && is_told_of_delay(&told_of_delay(b"")));
        assert_eq!(Wishes::of(&after), Wishes::of(before));
        assert_eq!(original_recipient(&after), original_recipient(before));
        let mut out = Vec::new();
        super::super::wire::rcpt_command(&mut out, b"a@b", &after, true).unwrap();
        assert_eq!(out, b"RCPT TO:<a@b> NOTIFY=DELAY ORCPT=rfc822;a@b\r\n", "nobody else sees it");
    }

    proptest! {
        #[test]
        fn no_parameter_can_bring_more_than_printable_ascii_into_a_report(octets in proptest::collection::vec(any::<u8>(), 0..60)) {
            for prefix in [&b"ORCPT=rfc822;"[..], b"ORCPT=utf-8;", b"ENVID=", b"ORCPT="] {
                let parameters = [prefix, &octets].concat();
                for text in [original_recipient(&parameters), envelope_id(&parameters)].into_iter().flatten() {
                    prop_assert!(text.bytes().all(|c| (b' '..=b'~').contains(&c)), "{:?}", text);
                }
            }
        }
    }
}
