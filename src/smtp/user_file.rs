//! The users file: who may log in, and the argon2id hash of each one's password.
//!
//! A line is `user:$argon2id$…` (a PHC string, as `mailramp user hash` prints it), a comment that begins with `#`, or
//! empty. Nothing is guessed: a line that is none of these, or a user that stands there twice, is a fault with its line
//! number, and no fault repeats a hash. Names are compared octet by octet; nothing is folded or normalised.
//!
//! Reads no file; who does hands over the text.

use std::collections::HashMap;
use std::fmt;

use argon2::{Algorithm, Argon2, Params, PasswordHash, Version};
use subtle::{Choice, ConstantTimeEq};

/// Users and their hashes.
#[derive(Debug)]
pub struct UserFile {
    users: HashMap<Box<str>, Hash>,
    /// Costs what the costliest user costs, and never matches: for names that are not there.
    nobody: Hash,
}

/// Not printed: hashes can be guessed at.
struct Hash {
    version: Version,
    /// With the length of `output`.
    params: Params,
    salt: Box<[u8]>,
    output: Box<[u8]>,
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hash").field("params", &self.params).finish_non_exhaustive()
    }
}

impl UserFile {
    /// All that is wrong with `text`, one line each, or the users. `name` is what the operator calls the file.
    pub fn parse(text: &str, name: &str) -> Result<UserFile, Vec<String>> {
        let mut users: HashMap<Box<str>, Hash> = HashMap::new();
        let mut first_line: HashMap<&str, usize> = HashMap::new();
        let mut faults = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (line, number) in text.lines().zip(1..) {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fault = |what: String| faults.push(format!("{name}:{number}  {what}"));
            let Some((user, hash)) = line.split_once(':') else {
                fault("must be `user:hash`, such as `mailramp user hash --user app` prints".into());
                continue;
            };
            if let Err(must) = check_name(user) {
                fault(format!("the user name {must}"));
                continue;
            }
            if let Some(first) = first_line.get(user) {
                fault(format!("the user of line {first} again; keep one of the two"));
                continue;
            }
            first_line.insert(user, number);
            match Hash::parse(hash.trim_end()) {
                Ok(hash) => drop(users.insert(user.into(), hash)),
                Err(must) => fault(format!("the hash {must}")),
            }
        }
        if faults.is_empty() && users.is_empty() {
            faults.push(format!("{name}  holds no user; add what `mailramp user hash --user app` prints"));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let nobody = Hash::of_nobody(users.values().max_by_key(|hash| hash.cost()));
        Ok(UserFile { users, nobody })
    }

    /// Is it the password of `user`? Costs tens of milliseconds and tens of megabytes, for an unknown user as much as for
    /// the costliest known one.
    pub fn verify(&self, user: &str, password: &str) -> bool {
        let (hash, known) = match self.users.get(user) {
            Some(hash) => (hash, Choice::from(1)),
            None => (&self.nobody, Choice::from(0)),
        };
        (hash.matches(password) & known).into()
    }

    /// How many users there are; never 0.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Not all hashes cost the same, so that the time a refusal takes tells which users are there.
    pub fn tells_by_time(&self) -> bool {
        self.users.values().any(|hash| hash.cost() != self.nobody.cost())
    }
}

/// What a user may be called. `Err` completes "the user name ...".
pub fn check_name(user: &str) -> Result<(), String> {
    match user {
        "" => Err("must not be empty".into()),
        _ if user.len() > NAME_MAX_OCTETS => Err(format!("must not be longer than {NAME_MAX_OCTETS} octets")),
        _ if user.contains(':') => Err("must not hold a colon".into()),
        _ if user.chars().any(char::is_control) => Err("must not hold control characters".into()),
        _ if user.starts_with('#') => Err("must not begin with #, which begins a comment".into()),
        _ if user.trim() != user => Err("must not begin or end with a space".into()),
        _ => Ok(()),
    }
}

impl Hash {
    /// `Err` completes "the hash ...".
    fn parse(text: &str) -> Result<Hash, String> {
        let not_phc =
            || "must be a line that `mailramp user hash` prints: $argon2id$v=19$m=...,t=...,p=...$salt$hash".into();
        let parsed = PasswordHash::new(text).map_err(|_| not_phc())?;
        if parsed.algorithm != argon2::ARGON2ID_IDENT {
            return Err("must be an argon2id hash; make one with `mailramp user hash`".into());
        }
        let version = parsed.version.map_or(Ok(Version::default()), Version::try_from).map_err(|_| not_phc())?;
        let params = Params::try_from(&parsed).map_err(|_| not_phc())?;
        if params.m_cost() > MEMORY_MAX_KIB || params.t_cost() > PASSES_MAX || params.p_cost() > LANES_MAX {
            return Err(format!(
                "must not cost more than m={MEMORY_MAX_KIB},t={PASSES_MAX},p={LANES_MAX} for each login"
            ));
        }
        let (Some(salt), Some(output)) = (parsed.salt, parsed.hash) else { return Err(not_phc()) };
        if salt.len() < argon2::MIN_SALT_LEN || output.len() < OUTPUT_MIN_OCTETS {
            return Err(format!(
                "must have a salt of {} octets or more and a hash of {OUTPUT_MIN_OCTETS} or more",
                argon2::MIN_SALT_LEN
            ));
        }
        Ok(Hash { version, params, salt: salt[..].into(), output: output.as_bytes().into() })
    }

    /// Costs as much as `costliest`. What it matches does not matter: whoever is compared with it is refused anyway.
    fn of_nobody(costliest: Option<&Hash>) -> Hash {
        let params = costliest.map_or(Params::DEFAULT, |hash| hash.params.clone());
        let output = vec![0; params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN)];
        let salt = vec![0; argon2::RECOMMENDED_SALT_LEN];
        Hash { version: Version::default(), params, salt: salt.into(), output: output.into() }
    }

    /// Memory times passes, which is about the time.
    fn cost(&self) -> u64 {
        u64::from(self.params.m_cost()) * u64::from(self.params.t_cost())
    }

    fn matches(&self, password: &str) -> Choice {
        let argon2 = Argon2::new(Algorithm::Argon2id, self.version, self.params.clone());
        let mut output = vec![0; self.output.len()];
        match argon2.hash_password_into(password.as_bytes(), &self.salt, &mut output) {
            Ok(()) => output.ct_eq(&self.output),
            Err(_) => Choice::from(0),
        }
    }
}

/// Longest user name; RFC 4616 asks for no more.
const NAME_MAX_OCTETS: usize = 255;
/// 256 MiB; two passwords are checked at once.
const MEMORY_MAX_KIB: u32 = 256 * 1024;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;
/// Below this, other passwords match by chance.
const OUTPUT_MIN_OCTETS: usize = 16;

#[cfg(test)]
mod tests {
    use argon2::PasswordHasher;

    use super::*;

    /// As cheap as argon2 can be.
    fn hashed(password: &str, passes: u32) -> String {
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, passes, 1, None).unwrap());
        let hash: PasswordHash = argon2.hash_password_with_salt(password.as_bytes(), b"0123456789abcdef").unwrap();
        hash.to_string()
    }

    #[test]
    fn a_password_belongs_to_its_user_and_to_nobody_else() {
        let text = format!("# team\n\nann:{}\r\nb\u{e9}a:{}\n", hashed("secret", 1), hashed("p\u{e4}ss", 2));
        let users = UserFile::parse(&text, "users").unwrap();
        assert_eq!(users.len(), 2);
        assert!(users.verify("ann", "secret") && users.verify("b\u{e9}a", "p\u{e4}ss"));
        for (user, password) in [("ann", "p\u{e4}ss"), ("Ann", "secret"), ("ann", ""), ("eve", "secret"), ("", "")] {
            assert!(!users.verify(user, password), "{user} {password}");
        }
    }

    #[test]
    fn an_unknown_user_is_refused_even_with_a_password_that_fits_the_hash_of_nobody() {
        let mut users = UserFile::parse(&format!("ann:{}", hashed("secret", 1)), "users").unwrap();
        users.nobody = Hash::parse(&hashed("guess", 1)).unwrap();
        assert!(bool::from(users.nobody.matches("guess")));
        assert!(!users.verify("eve", "guess"));
    }

    #[test]
    fn an_unknown_user_costs_as_much_as_the_costliest_known_one() {
        let text = format!("ann:{}\nbea:{}\n", hashed("a", 1), hashed("b", 3));
        let users = UserFile::parse(&text, "users").unwrap();
        assert_eq!((users.nobody.params.m_cost(), users.nobody.params.t_cost()), (8, 3));
        assert!(users.tells_by_time());
        assert!(!UserFile::parse(&format!("ann:{}", hashed("a", 1)), "users").unwrap().tells_by_time());
    }

    #[test]
    fn what_argon2_prints_by_default_is_taken() {
        let hash: PasswordHash = Argon2::default().hash_password_with_salt(b"secret", b"0123456789abcdef").unwrap();
        let users = UserFile::parse(&format!("ann:{hash}"), "users").unwrap();
        assert!(users.verify("ann", "secret") && !users.verify("ann", "Secret"));
    }

    #[test]
    fn every_bad_line_is_named_with_its_number_and_no_hash_is_repeated() {
        let good = hashed("secret", 1);
        let dear = good.replace("m=8,", "m=9999999,");
        let lines = [
            "no colon",
            &format!(":{good}"),
            "bob:$2y$10$abcdefghijklmnopqrstuu",
            &format!("carl:{}", good.replace("argon2id", "argon2i")),
            &format!("dan:{dear}"),
            &format!("ann:{good}"),
            &format!("ann:{good}"),
            &format!("#eve:{good}"),
            &format!("e\u{7}ve:{good}"),
            "fay:$argon2id$v=19$m=8,t=1,p=1",
        ];
        let faults = UserFile::parse(&lines.join("\n"), "users.txt").unwrap_err();
        let numbers: Vec<&str> = faults.iter().map(|fault| fault.split_once("  ").unwrap().0).collect();
        let expected = [1, 2, 3, 4, 5, 7, 9, 10].map(|number| format!("users.txt:{number}"));
        assert_eq!(numbers, expected, "{faults:#?}");
        assert!(faults[3].contains("mailramp user hash") && faults[5].contains("line 6"), "{faults:#?}");
        let secret = good.rsplit('$').next().unwrap();
        assert!(!faults.iter().any(|fault| fault.contains(secret) || fault.contains('\u{7}')), "{faults:#?}");
    }

    #[test]
    fn a_file_without_users_is_refused() {
        assert!(UserFile::parse("# nobody yet\n", "users").unwrap_err()[0].contains("holds no user"));
    }
}
