//! Puts replies into bytes (RFC 5321 §4.2, RFC 2034).
//!
//! Promises: what is sent is printable ASCII, whatever the intake's refusals contain.

use super::RejectReason;
use crate::reply::Reply;

/// What gathers until it is sent in one write.
#[derive(Debug, Default)]
pub struct Replies {
    pub bytes: Vec<u8>,
    /// One entry for each command or message refused, in order.
    pub rejected: Vec<RejectReason>,
    /// What the log should know beyond that, at most one for each entry in `rejected`. To be drained with it.
    pub notes: Vec<Note>,
}

/// Something a client did that is worth a line in the log. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A message was refused for a lone CR or LF.
    BareNewline {
        /// It and what stood behind it, at most 32 octets, two digits each.
        hex: String,
    },
    /// A password was sent in clear where AUTH is not allowed. It has to be considered known to others.
    PasswordExposed {
        /// As the client sent it, at most 255 octets; to be escaped.
        user: Option<Box<str>>,
    },
}

impl Note {
    /// Belongs to a refusal for `reason`. The last error allowed is refused for [`RejectReason::Limit`].
    pub(super) fn is_about(&self, reason: RejectReason) -> bool {
        match self {
            Note::BareNewline { .. } => reason == RejectReason::BareNewline,
            Note::PasswordExposed { .. } => matches!(reason, RejectReason::Auth | RejectReason::Limit),
        }
    }

    pub(super) fn bare_newline(octets: &[u8]) -> Self {
        Note::BareNewline { hex: octets.iter().map(|octet| format!("{octet:02x}")).collect() }
    }
}

impl Replies {
    pub(super) fn text(&mut self, line: &str) {
        self.bytes.extend_from_slice(line.as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    pub(super) fn refuse(&mut self, reason: RejectReason, line: &str) {
        self.rejected.push(reason);
        self.text(line);
    }

    /// All lines of `reply`, each with both codes. What is not printable ASCII becomes `?`.
    pub(super) fn reply(&mut self, reply: &Reply) {
        let lines = reply.text.split('\n').count();
        for (i, line) in reply.text.split('\n').enumerate() {
            let separator = if i + 1 == lines { ' ' } else { '-' };
            let line: String = line.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
            match reply.enhanced {
                Some(enhanced) => self.text(&format!("{}{separator}{enhanced} {line}", reply.code)),
                None => self.text(&format!("{}{separator}{line}", reply.code)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::EnhancedCode;

    #[test]
    fn offending_octets_are_noted_in_hex() {
        assert_eq!(Note::bare_newline(b"\n.\r\xff"), Note::BareNewline { hex: "0a2e0dff".into() });
    }

    #[test]
    fn a_refusal_of_several_lines_has_its_codes_on_each() {
        let mut replies = Replies::default();
        replies.reply(&Reply::new(452, EnhancedCode(4, 3, 1), "one\ntwo\r\u{e9}"));
        assert_eq!(replies.bytes, b"452-4.3.1 one\r\n452 4.3.1 two??\r\n");
    }
}
