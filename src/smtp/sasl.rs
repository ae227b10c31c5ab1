//! PLAIN (RFC 4616) and LOGIN as exchanges of lines: what the client is asked, and the [`Login`] that comes of it.
//!
//! Promises: strict base64, UTF-8 without NUL, every part bounded; whoever asks to act for somebody else is refused.
//! What was decoded is wiped from memory when it is no longer needed, and nothing here can be printed.
//!
//! Knows neither users nor passwords: it only takes lines apart.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::Login;

/// Of a name or a password (RFC 4616 §2).
const PART_MAX_OCTETS: usize = 255;

/// The mechanisms as EHLO names them.
pub const MECHANISMS: &str = "PLAIN LOGIN";

/// What the client sent in an exchange, still in base64. Never printed: it may hold a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Response<'a>(pub &'a [u8]);

impl fmt::Debug for Response<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Response(hidden)")
    }
}

/// An exchange that waits for the client's next line.
#[derive(Debug, PartialEq, Eq)]
pub enum Exchange {
    Plain,
    LoginUser,
    LoginPassword { user: Box<str> },
}

/// How an exchange goes on.
#[derive(Debug)]
pub enum Step {
    Ask(Exchange),
    Done(Login),
}

/// Why an exchange has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslError {
    /// The client sent `*`.
    Cancelled,
    /// No base64, no UTF-8, a NUL too many or too few, an empty or overlong part.
    Malformed,
    /// The client wants to act for another user.
    OtherIdentity,
}

impl Exchange {
    /// The exchange for a mechanism, in any case; `None` when it is not known.
    pub fn begin(mechanism: &[u8]) -> Option<Exchange> {
        if mechanism.eq_ignore_ascii_case(b"PLAIN") {
            Some(Exchange::Plain)
        } else if mechanism.eq_ignore_ascii_case(b"LOGIN") {
            Some(Exchange::LoginUser)
        } else {
            None
        }
    }

    /// The text behind 334, in base64.
    pub fn challenge(&self) -> &'static str {
        match self {
            Exchange::Plain => "",
            Exchange::LoginUser => "VXNlcm5hbWU6",            // Username:
            Exchange::LoginPassword { .. } => "UGFzc3dvcmQ6", // Password:
        }
    }

    /// Takes a line of its own.
    pub fn answer(self, line: Response<'_>) -> Result<Step, SaslError> {
        if line.0 == b"*" {
            return Err(SaslError::Cancelled);
        }
        self.take(line.0)
    }

    /// Takes what stood behind the mechanism in the command; `=` stands for nothing (RFC 4954 §4).
    pub fn initial(self, response: Response<'_>) -> Result<Step, SaslError> {
        self.take(if response.0 == b"=" { b"" } else { response.0 })
    }

    fn take(self, encoded: &[u8]) -> Result<Step, SaslError> {
        let decoded = decode(encoded)?;
        match self {
            Exchange::Plain => plain(&decoded).map(Step::Done),
            Exchange::LoginUser => Ok(Step::Ask(Exchange::LoginPassword { user: part(&decoded)?.into() })),
            Exchange::LoginPassword { user } => {
                Ok(Step::Done(Login { user, password: SecretString::from(part(&decoded)?) }))
            }
        }
    }
}

/// The user that a PLAIN response names, for the log, when it names one at all.
pub fn user_of_plain(response: Response<'_>) -> Option<Box<str>> {
    let decoded = decode(response.0).ok()?;
    let user = decoded.split(|octet| *octet == 0).nth(1)?;
    part(user).ok().map(Into::into)
}

/// `[authorization identity] NUL user NUL password` (RFC 4616 §2).
fn plain(message: &[u8]) -> Result<Login, SaslError> {
    let mut parts = message.split(|octet| *octet == 0);
    let (Some(identity), Some(user), Some(password), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError::Malformed);
    };
    let (user, password) = (part(user)?, part(password)?);
    if !identity.is_empty() && part(identity)? != user {
        return Err(SaslError::OtherIdentity);
    }
    Ok(Login { user: user.into(), password: SecretString::from(password) })
}

/// One to 255 octets of UTF-8 without NUL.
fn part(octets: &[u8]) -> Result<&str, SaslError> {
    if octets.is_empty() || octets.len() > PART_MAX_OCTETS || octets.contains(&0) {
        return Err(SaslError::Malformed);
    }
    std::str::from_utf8(octets).map_err(|_| SaslError::Malformed)
}

/// Strict: the standard alphabet, padded, without stray bits at the end.
fn decode(encoded: &[u8]) -> Result<Zeroizing<Vec<u8>>, SaslError> {
    // Made large enough at once: a vector that grows leaves a copy behind.
    let mut decoded = Zeroizing::new(vec![0; encoded.len() / 4 * 3 + 3]);
    let octets = STANDARD.decode_slice(encoded, &mut decoded).map_err(|_| SaslError::Malformed)?;
    decoded.truncate(octets);
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    /// User and password, or the error; `?` before the next question.
    fn outcome(step: Result<Step, SaslError>) -> Result<(String, String), SaslError> {
        step.map(|step| match step {
            Step::Ask(exchange) => ("?".into(), exchange.challenge().into()),
            Step::Done(login) => (login.user.into(), login.password.expose_secret().into()),
        })
    }

    fn plain_answer(message: &[u8]) -> Result<(String, String), SaslError> {
        outcome(Exchange::Plain.answer(Response(STANDARD.encode(message).as_bytes())))
    }

    #[test]
    fn plain_names_a_user_and_a_password() {
        let anna = Ok(("anna".into(), "secret".into()));
        assert_eq!(plain_answer(b"\0anna\0secret"), anna);
        assert_eq!(plain_answer(b"anna\0anna\0secret"), anna);
        assert_eq!(plain_answer("\0jürgen\0pä ss".as_bytes()), Ok(("jürgen".into(), "pä ss".into())));
        let encoded = STANDARD.encode(b"\0anna\0secret");
        assert_eq!(outcome(Exchange::Plain.initial(Response(encoded.as_bytes()))), anna);
    }

    #[test]
    fn plain_of_any_other_form_is_malformed() {
        let long = [b"\0anna\0".to_vec(), vec![b'x'; 256]].concat();
        for message in [
            &b""[..],
            b"anna",
            b"\0anna",
            b"\0anna\0",
            b"\0\0secret",
            b"\0anna\0secret\0",
            b"\0anna\0sec\0ret",
            b"\0an\xffna\0secret",
            b"\0anna\0\xff",
            b"\xff\0anna\0secret",
            &long,
        ] {
            assert_eq!(plain_answer(message), Err(SaslError::Malformed), "{message:?}");
        }
        assert!(plain_answer(&long[..long.len() - 1]).is_ok());
    }

    #[test]
    fn nobody_acts_for_another_user() {
        for message in ["bert\0anna\0secret", "ANNA\0anna\0secret"] {
            assert_eq!(plain_answer(message.as_bytes()), Err(SaslError::OtherIdentity), "{message:?}");
        }
    }

    #[test]
    fn base64_is_strict() {
        for text in
            ["AGFubmEAc2VjcmV", "AGFubmEAc2VjcmV0=", " AGFubmEAc2VjcmV0", "AGFubmEAc2VjcmV0 ", "AGFu!", "=", "AB=="]
        {
            assert_eq!(
                outcome(Exchange::Plain.answer(Response(text.as_bytes()))),
                Err(SaslError::Malformed),
                "{text:?}"
            );
        }
        assert!(outcome(Exchange::Plain.answer(Response(b"AGFubmEAc2VjcmV0"))).is_ok());
    }

    #[test]
    fn login_asks_for_the_user_and_then_for_the_password() {
        let begun = Exchange::begin(b"login").unwrap();
        assert_eq!(begun.challenge(), "VXNlcm5hbWU6");
        let Ok(Step::Ask(asked)) = begun.answer(Response(b"YW5uYQ==")) else { panic!("no question") };
        assert_eq!(asked.challenge(), "UGFzc3dvcmQ6");
        assert_eq!(outcome(asked.answer(Response(b"c2VjcmV0"))), Ok(("anna".into(), "secret".into())));
        let with_user = outcome(Exchange::LoginUser.initial(Response(b"YW5uYQ==")));
        assert_eq!(with_user, Ok(("?".into(), "UGFzc3dvcmQ6".into())));
        for empty in [Exchange::LoginUser.initial(Response(b"=")), Exchange::LoginUser.answer(Response(b""))] {
            assert_eq!(outcome(empty), Err(SaslError::Malformed));
        }
    }

    #[test]
    fn a_star_cancels_and_is_no_initial_response() {
        assert_eq!(outcome(Exchange::Plain.answer(Response(b"*"))), Err(SaslError::Cancelled));
        assert_eq!(outcome(Exchange::LoginUser.answer(Response(b"*"))), Err(SaslError::Cancelled));
        assert_eq!(outcome(Exchange::Plain.initial(Response(b"*"))), Err(SaslError::Malformed));
    }

    #[test]
    fn only_known_mechanisms_begin() {
        assert_eq!(Exchange::begin(b"Plain"), Some(Exchange::Plain));
        for name in [&b""[..], b"CRAM-MD5", b"PLAINX", b"XOAUTH2"] {
            assert_eq!(Exchange::begin(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_response_cannot_be_printed() {
        let shown = format!("{:?}", Response(b"AGFubmEAc2VjcmV0"));
        assert!(!shown.contains("AGFu"), "{shown}");
        let Ok(Step::Done(login)) = Exchange::Plain.answer(Response(b"AGFubmEAc2VjcmV0")) else { panic!("no login") };
        assert!(!format!("{login:?}").contains("secret"));
    }

    #[test]
    fn the_user_of_a_refused_plain_is_known_to_the_log() {
        assert_eq!(user_of_plain(Response(b"AGFubmEAc2VjcmV0")).as_deref(), Some("anna"));
        assert_eq!(user_of_plain(Response(b"!")), None);
        assert_eq!(user_of_plain(Response(b"AAA=")), None);
    }

    /// Bit by bit, as RFC 4648 §4 tells it, without the library.
    fn reference_decode(text: &[u8]) -> Option<Vec<u8>> {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let padding = text.iter().rev().take_while(|octet| **octet == b'=').count();
        if !text.len().is_multiple_of(4) || padding > 2 {
            return None;
        }
        let mut bits = Vec::new();
        for octet in &text[..text.len() - padding] {
            let value = ALPHABET.iter().position(|letter| letter == octet)?;
            bits.extend((0..6).rev().map(|bit| value >> bit & 1));
        }
        let whole = bits.len() / 8 * 8;
        let stray = bits.split_off(whole);
        if stray.len() != padding * 2 || stray.contains(&1) {
            return None;
        }
        Some(bits.chunks(8).map(|octet| octet.iter().fold(0u8, |value, bit| value << 1 | *bit as u8)).collect())
    }

    /// What PLAIN means, looking at the positions of the two NULs.
    fn reference_plain(text: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let message = reference_decode(text)?;
        let nuls: Vec<usize> = (0..message.len()).filter(|at| message[*at] == 0).collect();
        let [first, second] = nuls[..] else { return None };
        let (identity, user, password) = (&message[..first], &message[first + 1..second], &message[second + 1..]);
        let fits = |text: &[u8]| (1..=255).contains(&text.len()) && String::from_utf8(text.to_vec()).is_ok();
        let allowed = identity.is_empty() || identity == user;
        (fits(user) && fits(password) && allowed).then(|| (user.to_vec(), password.to_vec()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_decoder_agrees_with_a_reference_written_bit_by_bit(
            message in proptest::collection::vec(proptest::sample::select(b"\0\0ab\xc3\xbc".to_vec()), 0..12),
            change in proptest::option::of((0usize..20, proptest::sample::select(b"=*A/ \xff".to_vec()))),
        ) {
            let mut text = STANDARD.encode(&message).into_bytes();
            if let Some((at, octet)) = change
                && at < text.len()
            {
                text[at] = octet;
            }
            prop_assert_eq!(decode(&text).ok().map(|octets| octets.to_vec()), reference_decode(&text));
            let read = outcome(Exchange::Plain.initial(Response(&text))).ok();
            let read = read.map(|(user, password)| (user.into_bytes(), password.into_bytes()));
            let expected = if text == b"=" { None } else { reference_plain(&text) };
            prop_assert_eq!(read, expected);
        }
    }
}
