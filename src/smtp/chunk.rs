//! BDAT (RFC 3030): how many octets a chunk has, how many of them have come, and what becomes of them.
//!
//! Promises: exactly the announced octets are taken for text, however they are cut, and exactly what follows them for
//! commands. Where nobody can know how many octets are meant there is no number to go on with, so the session closes.
//!
//! BODY=BINARYMIME is not offered: a message is lines. One whose last line has no CRLF is refused, because whoever sends
//! it on with DATA would have to add one, and what we relay gains no octets.

use super::RejectReason;

/// Reads what stands behind BDAT: a decimal number of octets, perhaps LAST. `None` when that is not what stands there,
/// or when the number does not fit into 64 bits.
pub fn announced(argument: &[u8]) -> Option<(u64, bool)> {
    let mut words = argument.split(|octet| *octet == b' ').filter(|word| !word.is_empty());
    let octets = words.next().and_then(decimal)?;
    match (words.next(), words.next()) {
        (None, _) => Some((octets, false)),
        (Some(word), None) if word.eq_ignore_ascii_case(b"LAST") => Some((octets, true)),
        _ => None,
    }
}

/// Digits only, and nothing that overflows: a size that wraps around or saturates would turn text into commands.
fn decimal(text: &[u8]) -> Option<u64> {
    let digits = |value: u64, octet: &u8| match octet {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(octet - b'0')),
        _ => None,
    };
    if text.is_empty() { None } else { text.iter().try_fold(0, digits) }
}

/// A chunk whose octets are coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    left: u64,
    /// The message ends with it.
    pub last: bool,
    /// Why its octets are thrown away, and the reply behind them.
    pub fault: Option<(RejectReason, &'static str)>,
}

impl Chunk {
    pub fn new(octets: u64, last: bool) -> Self {
        Chunk { left: octets, last, fault: None }
    }

    /// Its octets are read and thrown away; then comes the reply.
    pub fn refused(octets: u64, reason: RejectReason, reply: &'static str) -> Self {
        Chunk { left: octets, last: false, fault: Some((reason, reply)) }
    }

    /// All its octets have come.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// As much of `input` as belongs to the chunk.
    pub fn part<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        let octets = usize::try_from(self.left).map_or(input.len(), |left| left.min(input.len()));
        &input[..octets]
    }

    /// So many octets of it were used; never more than [`Chunk::part`] gave.
    pub fn used(&mut self, octets: usize) {
        self.left -= octets as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_is_digits_and_fits_into_64_bits() {
        for (text, read) in [
            ("0", Some((0, false))),
            ("0 LAST", Some((0, true))),
            ("0000000000000000000000086 last", Some((86, true))),
            ("18446744073709551615", Some((u64::MAX, false))),
            ("18446744073709551616", None),
            ("99999999999999999999999 LAST", None),
            ("", None),
            ("LAST", None),
            ("+5", None),
            ("-5", None),
            ("5x", None),
            ("0x5", None),
            ("5 LASTS", None),
            ("5 LAST 6", None),
            ("5\tLAST", None),
            ("٥", None),
        ] {
            assert_eq!(announced(text.as_bytes()), read, "{text:?}");
        }
    }

    #[test]
    fn a_chunk_takes_its_octets_and_no_more() {
        let mut chunk = Chunk::new(5, false);
        assert_eq!(chunk.part(b"abc"), b"abc");
        chunk.used(3);
        assert_eq!(chunk.part(b"deQUIT"), b"de");
        chunk.used(2);
        assert!(chunk.is_over());
        assert_eq!(chunk.part(b"QUIT"), b"");
        assert_eq!(Chunk::new(u64::MAX, false).part(b"abc"), b"abc");
    }

    proptest! {
        #[test]
        fn sizes_are_read_as_the_standard_library_reads_them(digits in "[0-9]{1,22}", last: bool) {
            let text = if last { format!("{digits} LAST") } else { digits.clone() };
            let expected = digits.parse::<u64>().ok().map(|octets| (octets, last));
            prop_assert_eq!(announced(text.as_bytes()), expected);
        }
    }
}
