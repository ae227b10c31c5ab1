//! `mailramp user hash`: a line for the users file.
//!
//! The password comes from standard input, never from the arguments, which other users of the machine can read. On a
//! terminal it is asked for twice and not shown.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use argon2::{Argon2, PasswordHash, PasswordHasher};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{Context, Failure, exit};
use crate::smtp::user_file::check_name;

#[derive(Debug, clap::Subcommand)]
pub enum User {
    /// Read a password from standard input, print its argon2id hash
    Hash {
        /// Print the whole line of the users file
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
}

/// Runs `mailramp user …`.
pub fn run(command: &User, context: &mut Context<'_>) -> Result<(), Failure> {
    let User::Hash { user } = command;
    // Before anybody types a password for nothing.
    if let Some(user) = user {
        check_name(user).map_err(|must| Failure::new(exit::USAGE, format!("the user name {must}")))?;
    }
    let stdin = io::stdin();
    let password =
        if stdin.is_terminal() { ask_twice(&mut stdin.lock(), &mut io::stderr())? } else { only_line(stdin.lock())? };
    let line = line(user.as_deref(), &password)?;
    context.write(&line)
}

fn line(user: Option<&str>, password: &SecretString) -> Result<String, Failure> {
    let hash: PasswordHash = Argon2::default()
        .hash_password(password.expose_secret().as_bytes())
        .map_err(|error| Failure::new(exit::IO, format!("the password cannot be hashed: {error}")))?;
    Ok(user.map_or_else(|| format!("{hash}\n"), |user| format!("{user}:{hash}\n")))
}

/// All there is to read must be one line.
fn only_line(input: impl Read) -> Result<SecretString, Failure> {
    let mut octets = Zeroizing::new(Vec::with_capacity(PASSWORD_MAX_OCTETS + 3));
    input.take(PASSWORD_MAX_OCTETS as u64 + 3).read_to_end(&mut octets).map_err(|error| unreadable(&error))?;
    password_of(&octets)
}

fn password_of(octets: &[u8]) -> Result<SecretString, Failure> {
    let usage = |text: String| Err(Failure::new(exit::USAGE, text));
    let Ok(text) = std::str::from_utf8(octets) else { return usage("the password must be UTF-8".into()) };
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return usage("the password must not be empty; write it to standard input, on one line".into());
    }
    if line.contains(['\n', '\r', '\0']) {
        return usage("the password must be one line".into());
    }
    if line.len() > PASSWORD_MAX_OCTETS {
        return usage(format!("the password must not be longer than {PASSWORD_MAX_OCTETS} octets"));
    }
    Ok(SecretString::from(line))
}

/// On a terminal.
fn ask_twice(terminal: &mut io::StdinLock<'_>, prompt: &mut dyn Write) -> Result<SecretString, Failure> {
    let _silence = Silence::begin()?;
    let first = ask("password: ", terminal, prompt)?;
    let second = ask("once more: ", terminal, prompt)?;
    if first.expose_secret() != second.expose_secret() {
        return Err(Failure::new(exit::USAGE, "the two are not the same; nothing was hashed"));
    }
    Ok(first)
}

fn ask(text: &str, terminal: &mut impl BufRead, prompt: &mut dyn Write) -> Result<SecretString, Failure> {
    write!(prompt, "{text}").and_then(|()| prompt.flush()).map_err(|error| unreadable(&error))?;
    let mut octets = Zeroizing::new(Vec::with_capacity(PASSWORD_MAX_OCTETS + 3));
    // The terminal ends a line at Ctrl-C as well, see `Silence`.
    let read = loop {
        let mut octet = [0];
        match terminal.read(&mut octet) {
            Ok(0) => break Ok(()),
            Ok(_) if octet[0] == CTRL_C => break Err(Failure::new(exit::INTERRUPTED, "interrupted")),
            Ok(_) if octet[0] == b'\n' || octets.len() > PASSWORD_MAX_OCTETS => break Ok(()),
            Ok(_) => octets.push(octet[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(unreadable(&error)),
        }
    };
    let _ = writeln!(prompt);
    read?;
    password_of(&octets)
}

/// While it lives the terminal shows nothing of what is typed. Ctrl-C comes as a character that ends the line: as a
/// signal it would end us before the terminal is as it was.
struct Silence(Termios);

impl Silence {
    fn begin() -> Result<Self, Failure> {
        let error = |error: rustix::io::Errno| unreadable(&error.into());
        let before = tcgetattr(io::stdin()).map_err(error)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VEOL] = CTRL_C;
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).map_err(error)?;
        Ok(Silence(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(exit::IO, format!("the password cannot be read: {error}"))
}

/// In base64, with a user as long, it fits into one line of AUTH many times.
const PASSWORD_MAX_OCTETS: usize = 1_024;
const CTRL_C: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::user_file::UserFile;

    #[test]
    fn the_line_printed_is_one_that_the_users_file_takes_with_its_password() {
        let password = only_line(&b"cor rect\n"[..]).unwrap();
        let line = line(Some("app"), &password).unwrap();
        assert!(line.starts_with("app:$argon2id$v=19$m=19456,t=2,p=1$"), "{line}");
        let users = UserFile::parse(&line, "users").unwrap();
        assert!(users.verify("app", "cor rect") && !users.verify("app", "correct"));
        assert_ne!(line, super::line(Some("app"), &password).unwrap(), "each hash has a salt of its own");
    }

    #[test]
    fn a_password_is_one_line_that_is_neither_empty_nor_endless() {
        let read = |octets: &[u8]| only_line(octets).map(|password| password.expose_secret().to_owned());
        for (octets, password) in
            [(&b"a b\r\n"[..], "a b"), (b"a", "a"), (b" \n", " "), ("\u{e4}\n".as_bytes(), "\u{e4}")]
        {
            assert_eq!(read(octets).as_deref(), Ok(password));
        }
        let endless = [b'x'; 10_000];
        for octets in [&b""[..], b"\n", b"\r\n", b"a\nb\n", b"a\0\n", b"\xff\n", &endless, &endless[..1_026]] {
            assert_eq!(read(octets).unwrap_err().code, exit::USAGE, "{octets:?}");
        }
        assert_eq!(read(&endless[..1_024]).unwrap().len(), 1_024);
    }

    #[test]
    fn ctrl_c_at_the_prompt_ends_it_without_a_hash() {
        let (mut typed, mut prompt) = (&b"secre\x03"[..], Vec::new());
        assert_eq!(ask("password: ", &mut typed, &mut prompt).unwrap_err().code, exit::INTERRUPTED);
        let mut typed = &b"secret\nsecret\n"[..];
        assert_eq!(ask("password: ", &mut typed, &mut prompt).unwrap().expose_secret(), "secret");
        assert!(!String::from_utf8(prompt).unwrap().contains("secre"));
    }
}
