//! SMTP replies: a code, an enhanced code, one or more lines of text (RFC 5321 §4.2, RFC 3463).
//!
//! The same type is what we say to applications and what next hops say to us. Holds no sockets and parses no streams.

use std::fmt;

/// `class.subject.detail` of RFC 3463, for example 4.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EnhancedCode(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl EnhancedCode {
    /// Reads `5.1.1` from the start of `text`; the rest of the text is returned trimmed.
    pub fn split(text: &str) -> Option<(EnhancedCode, &str)> {
        let end = text.find(' ').unwrap_or(text.len());
        let mut parts = text[..end].splitn(3, '.');
        let class = parts.next()?.parse().ok().filter(|c| matches!(c, 2 | 4 | 5))?;
        let subject = parts.next().filter(|p| p.len() <= 3)?.parse().ok()?;
        let detail = parts.next().filter(|p| p.len() <= 3)?.parse().ok()?;
        Some((EnhancedCode(class, subject, detail), text[end..].trim_start()))
    }
}

/// What a server says to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    pub enhanced: Option<EnhancedCode>,
    /// Lines joined by `\n`, without code and enhanced code. From a peer: any octets, made printable.
    pub text: String,
}

impl Reply {
    pub fn new(code: u16, enhanced: EnhancedCode, text: impl Into<String>) -> Self {
        Reply { code, enhanced: Some(enhanced), text: text.into() }
    }

    /// Reads what [`Reply`]'s `Display` wrote; `None` when it is something else.
    pub fn from_line(line: &str) -> Option<Reply> {
        let (code, rest) = line.split_once(' ')?;
        let code = code.parse().ok().filter(|code| (200..600).contains(code))?;
        let (enhanced, text) = match EnhancedCode::split(rest) {
            Some((enhanced, text)) => (Some(enhanced), text),
            None => (None, rest),
        };
        Some(Reply { code, enhanced, text: text.into() })
    }

    pub fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }
}

/// One line: `451 4.7.1 greylisted`. Line breaks become ` / `.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for (i, line) in self.text.split('\n').enumerate() {
            write!(f, "{}{}", if i == 0 { " " } else { " / " }, line)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enhanced_code_is_split_from_the_text_and_nothing_else_is_taken_for_one() {
        assert_eq!(EnhancedCode::split("4.7.1 try later"), Some((EnhancedCode(4, 7, 1), "try later")));
        assert_eq!(EnhancedCode::split("5.1.1"), Some((EnhancedCode(5, 1, 1), "")));
        for text in ["", "hello", "3.1.1 x", "5.1 x", "5.1.1.1 x", "5.1.1111 x", "192.0.2.1 refused"] {
            assert_eq!(EnhancedCode::split(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_reply_of_several_lines_is_shown_on_one() {
        let reply = Reply::new(451, EnhancedCode(4, 7, 1), "wait\nlonger");
        assert_eq!(reply.to_string(), "451 4.7.1 wait / longer");
    }

    #[test]
    fn a_stored_line_reads_back_as_the_reply_it_was() {
        let reply = Reply::new(451, EnhancedCode(4, 7, 1), "try later");
        assert_eq!(Reply::from_line(&reply.to_string()), Some(reply));
        assert_eq!(Reply::from_line("connection closed"), None);
    }
}
