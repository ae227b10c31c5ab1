//! The parameters of MAIL and RCPT (RFC 5321 §4.1.2): SIZE, BODY, SMTPUTF8, AUTH and those of DSN.
//!
//! Promises: each at most once, each with a value that its RFC allows; what is to be repeated to the next hop is kept
//! octet by octet. A parameter of an extension that EHLO does not name is told apart from one that is malformed.

const ENVID_MAX_OCTETS: usize = 100; // RFC 3461 §4.4
const ORCPT_MAX_OCTETS: usize = 500; // RFC 3461 §4.2
const AUTH_MAX_OCTETS: usize = 500; // RFC 4954 §5

/// What the parameters of MAIL ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// SIZE= (RFC 1870). A number too great for 64 bits is `u64::MAX`: over every limit.
    pub size: Option<u64>,
    /// SMTPUTF8 (RFC 6531): addresses may go beyond ASCII.
    pub utf8: bool,
    /// Those to repeat to the next hop, octet by octet, joined by single spaces. SIZE is counted anew by whoever sends,
    /// and AUTH= (RFC 4954 §5) vouches for somebody whom we did not check.
    pub repeated: Vec<u8>,
}

/// Why parameters were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterError {
    Syntax,
    /// Belongs to an extension that EHLO did not offer.
    Unknown,
}

/// Reads the parameters of MAIL.
pub fn mail_parameters(text: &[u8]) -> Result<MailParameters, ParameterError> {
    let mut read = MailParameters::default();
    let mut seen = Seen::default();
    for word in words(text) {
        let (keyword, value) = split_parameter(word)?;
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        let repeat = if is("SIZE") {
            seen.once(1)?;
            read.size = Some(value.and_then(decimal).ok_or(ParameterError::Syntax)?);
            false
        } else if is("BODY") {
            seen.once(2)?;
            one_of(value, &["7BIT", "8BITMIME"])?
        } else if is("SMTPUTF8") {
            seen.once(4)?;
            read.utf8 = true;
            good(value.is_none())?
        } else if is("RET") {
            seen.once(8)?;
            one_of(value, &["FULL", "HDRS"])?
        } else if is("ENVID") {
            seen.once(16)?;
            good(value.is_some_and(|v| v.len() <= ENVID_MAX_OCTETS && is_printable_xtext(v)))?
        } else if is("AUTH") {
            seen.once(32)?;
            good(value.is_some_and(|v| v == b"<>" || (v.len() <= AUTH_MAX_OCTETS && is_printable_xtext(v))))?;
            false
        } else {
            return Err(ParameterError::Unknown);
        };
        if repeat {
            append(&mut read.repeated, word);
        }
    }
    Ok(read)
}

/// Reads the parameters of RCPT and returns those to repeat, which is all. `utf8`: MAIL asked for SMTPUTF8.
pub fn rcpt_parameters(text: &[u8], utf8: bool) -> Result<Vec<u8>, ParameterError> {
    let mut repeated = Vec::new();
    let mut seen = Seen::default();
    for word in words(text) {
        let (keyword, value) = split_parameter(word)?;
        if keyword.eq_ignore_ascii_case(b"NOTIFY") {
            seen.once(1)?;
            good(value.is_some_and(is_notify))?;
        } else if keyword.eq_ignore_ascii_case(b"ORCPT") {
            seen.once(2)?;
            good(value.is_some_and(|v| v.len() <= ORCPT_MAX_OCTETS && is_original_recipient(v, utf8)))?;
        } else {
            return Err(ParameterError::Unknown);
        }
        append(&mut repeated, word);
    }
    Ok(repeated)
}

/// Which parameters have come, one bit each.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    fn once(&mut self, bit: u8) -> Result<(), ParameterError> {
        let twice = self.0 & bit != 0;
        self.0 |= bit;
        good(!twice).map(|_| ())
    }
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|octet| *octet == b' ').filter(|word| !word.is_empty())
}

fn append(repeated: &mut Vec<u8>, word: &[u8]) {
    if !repeated.is_empty() {
        repeated.push(b' ');
    }
    repeated.extend_from_slice(word);
}

/// `Ok(true)`, or a syntax error.
fn good(condition: bool) -> Result<bool, ParameterError> {
    if condition { Ok(true) } else { Err(ParameterError::Syntax) }
}

fn one_of(value: Option<&[u8]>, names: &[&str]) -> Result<bool, ParameterError> {
    good(value.is_some_and(|v| names.iter().any(|name| v.eq_ignore_ascii_case(name.as_bytes()))))
}

/// `keyword` or `keyword=value` (RFC 5321 §4.1.2, esmtp-param; RFC 6531 §3.3 adds UTF-8 to values).
fn split_parameter(word: &[u8]) -> Result<(&[u8], Option<&[u8]>), ParameterError> {
    let equals = word.iter().position(|octet| *octet == b'=');
    let (keyword, value) = match equals {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    };
    let keyword_is_good = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
        && keyword.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-');
    let value_is_good =
        value.is_none_or(|v| !v.is_empty() && v.iter().all(|octet| matches!(octet, 33..=60 | 62..=126 | 128..)));
    if keyword_is_good && value_is_good { Ok((keyword, value)) } else { Err(ParameterError::Syntax) }
}

/// `NEVER` alone, or some of the three others, each once (RFC 3461 §4.1).
fn is_notify(value: &[u8]) -> bool {
    if value.eq_ignore_ascii_case(b"NEVER") {
        return true;
    }
    let mut seen = Seen::default();
    value.split(|octet| *octet == b',').all(|word| {
        let at = ["SUCCESS", "FAILURE", "DELAY"].iter().position(|name| word.eq_ignore_ascii_case(name.as_bytes()));
        at.is_some_and(|at| seen.once(1 << at).is_ok())
    })
}

/// `addr-type;address` (RFC 3461 §4.2). The type `utf-8` may have code points as `\x{…}` and, when the client asked for
/// SMTPUTF8, as they are (RFC 6533 §3). Postfix writes UTF-8 as xtext of the type `rfc822`, so an encoded octet over 127 is
/// taken with every type; what is repeated stays encoded.
fn is_original_recipient(value: &[u8], utf8: bool) -> bool {
    let Some(at) = value.iter().position(|octet| *octet == b';') else { return false };
    let (kind, address) = (&value[..at], &value[at + 1..]);
    let is_atom = |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(octet);
    if kind.is_empty() || address.is_empty() || !kind.iter().all(is_atom) {
        return false;
    }
    if kind.eq_ignore_ascii_case(b"utf-8") && utf8 && !address.is_ascii() {
        return std::str::from_utf8(address).is_ok_and(|text| !text.chars().any(char::is_control));
    }
    is_xtext_of(address, |octet| matches!(octet, b' '..=b'~' | 128..))
}

/// xtext (RFC 3461 §4) of nothing but printable ASCII: what it stands for ends up in reports.
fn is_printable_xtext(text: &[u8]) -> bool {
    is_xtext_of(text, |octet| matches!(octet, b' '..=b'~'))
}

/// xtext (RFC 3461 §4), not empty, whose encoded octets stand for nothing but what is `allowed`. Itself printable ASCII.
fn is_xtext_of(text: &[u8], allowed: impl Fn(u8) -> bool) -> bool {
    let hex = |octet: u8| match octet {
        b'0'..=b'9' => Some(octet - b'0'),
        b'A'..=b'F' => Some(octet - b'A' + 10),
        _ => None,
    };
    let mut octets = text.iter();
    while let Some(octet) = octets.next() {
        let good = match octet {
            b'+' => match (octets.next().and_then(|o| hex(*o)), octets.next().and_then(|o| hex(*o))) {
                (Some(high), Some(low)) => allowed(high << 4 | low),
                _ => false,
            },
            octet => matches!(octet, b'!'..=b'~') && *octet != b'=',
        };
        if !good {
            return false;
        }
    }
    !text.is_empty()
}

/// Digits only; saturates, because a size beyond 64 bits is still a size, and refused as one.
fn decimal(text: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for octet in text {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        value = value.saturating_mul(10).saturating_add(digit);
    }
    (!text.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_next_hop_has_to_know_is_kept_octet_by_octet() {
        for (text, size, utf8, repeated) in [
            ("", None, false, ""),
            ("SIZE=10", Some(10), false, ""),
            ("size=0", Some(0), false, ""),
            ("SIZE=10 BODY=8BITMIME", Some(10), false, "BODY=8BITMIME"),
            ("body=7bit  SIZE=10", Some(10), false, "body=7bit"),
            ("SIZE=18446744073709551616", Some(u64::MAX), false, ""),
            ("SIZE=99999999999999999999999", Some(u64::MAX), false, ""),
            ("SIZE=00000000000000000000000012", Some(12), false, ""),
            ("RET=hdrs  SMTPUTF8 SIZE=1 EnvId=Q+2BQ", Some(1), true, "RET=hdrs SMTPUTF8 EnvId=Q+2BQ"),
            ("AUTH=<> RET=FULL", None, false, "RET=FULL"),
            ("AUTH=e+3Dmc2@example.com BODY=8BITMIME", None, false, "BODY=8BITMIME"),
        ] {
            let expected = MailParameters { size, utf8, repeated: repeated.into() };
            assert_eq!(mail_parameters(text.as_bytes()), Ok(expected), "{text}");
        }
        for (text, repeated) in [
            ("", ""),
            ("NOTIFY=NEVER", "NOTIFY=NEVER"),
            (
                "notify=success,DELAY,Failure  ORCPT=rfc822;Bob+2B@x.example",
                "notify=success,DELAY,Failure ORCPT=rfc822;Bob+2B@x.example",
            ),
            ("ORCPT=utf-8;b\\x{FC}@x.example", "ORCPT=utf-8;b\\x{FC}@x.example"),
            ("ORCPT=rfc822;b+C3+BC@x.example", "ORCPT=rfc822;b+C3+BC@x.example"), // Postfix, with SMTPUTF8
        ] {
            assert_eq!(rcpt_parameters(text.as_bytes(), false).as_deref(), Ok(repeated.as_bytes()), "{text}");
        }
    }

    #[test]
    fn malformed_parameters_of_mail_are_told_from_those_not_offered() {
        let long = format!("ENVID={}", "x".repeat(101));
        for (text, error) in [
            ("SIZE", ParameterError::Syntax),
            ("SIZE=", ParameterError::Syntax),
            ("SIZE=1x", ParameterError::Syntax),
            ("SIZE=99999999999999999999999x", ParameterError::Syntax),
            ("SIZE=-1", ParameterError::Syntax),
            ("SIZE=1 SIZE=2", ParameterError::Syntax),
            ("BODY=7BIT BODY=7BIT", ParameterError::Syntax),
            ("BODY=BINARYMIME", ParameterError::Syntax),
            ("SMTPUTF8=yes", ParameterError::Syntax),
            ("SMTPUTF8 smtputf8", ParameterError::Syntax),
            ("RET=BOTH", ParameterError::Syntax),
            ("RET", ParameterError::Syntax),
            ("ENVID=a+0", ParameterError::Syntax),
            ("ENVID=a+0a", ParameterError::Syntax),
            ("ENVID=a+0A", ParameterError::Syntax),
            ("ENVID=ü", ParameterError::Syntax),
            (long.as_str(), ParameterError::Syntax),
            ("AUTH", ParameterError::Syntax),
            ("AUTH=+", ParameterError::Syntax),
            ("=x", ParameterError::Syntax),
            ("A=b=c", ParameterError::Syntax),
            ("-A=b", ParameterError::Syntax),
            ("RET=\u{1}", ParameterError::Syntax),
            ("NOTIFY=NEVER", ParameterError::Unknown),
            ("HOLDFOR=10", ParameterError::Unknown),
        ] {
            assert_eq!(mail_parameters(text.as_bytes()), Err(error), "{text}");
        }
        let most = format!("ENVID={}", "x".repeat(100));
        assert!(mail_parameters(most.as_bytes()).is_ok());
    }

    #[test]
    fn malformed_parameters_of_rcpt_are_told_from_those_not_offered() {
        let long = format!("ORCPT=rfc822;{}", "x".repeat(494));
        for (text, error) in [
            ("NOTIFY", ParameterError::Syntax),
            ("NOTIFY=NEVER,DELAY", ParameterError::Syntax),
            ("NOTIFY=DELAY,DELAY", ParameterError::Syntax),
            ("NOTIFY=DELAY,", ParameterError::Syntax),
            ("NOTIFY=NEVER NOTIFY=NEVER", ParameterError::Syntax),
            ("ORCPT=a@b.example", ParameterError::Syntax),
            ("ORCPT=;a@b.example", ParameterError::Syntax),
            ("ORCPT=rfc822;", ParameterError::Syntax),
            ("ORCPT=rfc(822;x", ParameterError::Syntax),
            ("ORCPT=rfc822;a+0D+0Ab", ParameterError::Syntax),
            ("ORCPT=rfc822;ü@b.example", ParameterError::Syntax),
            ("ORCPT=utf-8;ü@b.example", ParameterError::Syntax),
            (long.as_str(), ParameterError::Syntax),
            ("=NEVER", ParameterError::Syntax),
            ("RET=HDRS", ParameterError::Unknown),
        ] {
            assert_eq!(rcpt_parameters(text.as_bytes(), false), Err(error), "{text}");
        }
    }

    #[test]
    fn an_original_recipient_in_utf8_needs_smtputf8() {
        let text = "ORCPT=utf-8;ü@b.example".as_bytes();
        assert_eq!(rcpt_parameters(text, true).as_deref(), Ok(text));
        assert_eq!(rcpt_parameters(b"ORCPT=utf-8;\xff", true), Err(ParameterError::Syntax));
        assert_eq!(rcpt_parameters("ORCPT=rfc822;ü@b.example".as_bytes(), true), Err(ParameterError::Syntax));
        assert_eq!(rcpt_parameters("ORCPT=utf-8;a\u{85}b".as_bytes(), true), Err(ParameterError::Syntax));
    }
}
