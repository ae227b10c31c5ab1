//! Checks logins against the users file, two at a time.
//!
//! A check costs tens of milliseconds of a processor and 19 MiB with the defaults, so it runs on a thread that may block,
//! at most `CHECKS_AT_ONCE` do, and at most `LINE_MOST` logins wait; more are told to try again. A password that was
//! right is remembered for `REMEMBERED` as a keyed hash, never as itself, so an application that logs in for each message
//! pays once. An address that guesses is kept out ([`super::guessing`]).
//!
//! Promises: an unknown user costs as much as a known one; nothing of a password is logged; new users take effect for the
//! next login, and what was remembered of the old ones is gone.

use core::net::IpAddr;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use argon2::{Algorithm, Argon2, Params, Version};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::guessing::{GuessRules, Guesses};
use super::user_file::UserFile;
use super::{AuthVerdict, Authenticator, Login};
use crate::message::Timestamp;

/// See the module's header. One for all listeners.
#[derive(Debug)]
pub struct Users {
    known: ArcSwap<Known>,
    guesses: Mutex<Guesses>,
    checks: Arc<Semaphore>,
    line: Semaphore,
    /// Of this process.
    key: Key,
    /// What the time of the guesses is counted from.
    began: Instant,
}

/// A users file, and who has logged in with it of late.
#[derive(Debug)]
struct Known {
    file: UserFile,
    remembered: Mutex<HashMap<Arc<str>, Remembered>>,
    /// How many passwords were hashed.
    #[cfg(test)]
    hashed: std::sync::atomic::AtomicUsize,
}

#[derive(Debug)]
struct Remembered {
    tag: Tag,
    until: Instant,
}

/// A keyed hash of user and password.
type Tag = [u8; 32];

struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Users {
    /// `Err`: the system has no random numbers.
    pub fn new(file: UserFile, rules: GuessRules) -> Result<Self, String> {
        let half = || argon2::password_hash::try_generate_salt().map_err(|error| format!("no random numbers: {error}"));
        let (first, second) = (half()?, half()?);
        let mut key = [0; 32];
        key[..16].copy_from_slice(&first);
        key[16..].copy_from_slice(&second);
        Ok(Users {
            known: ArcSwap::from_pointee(Known::new(file)),
            guesses: Mutex::new(Guesses::new(rules)),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            line: Semaphore::new(LINE_MOST),
            key: Key(key),
            began: Instant::now(),
        })
    }

    /// From here on. Sessions that have logged in stay; blocks stay.
    pub fn change(&self, file: UserFile, rules: GuessRules) {
        self.known.store(Arc::new(Known::new(file)));
        self.guesses().change(rules);
    }

    async fn judge(&self, client: IpAddr, login: Login) -> AuthVerdict {
        if self.is_blocked(client) {
            return AuthVerdict::Blocked;
        }
        let known = self.known.load_full();
        let tag = self.tag(&login);
        if let Some(user) = known.remembers(&login.user, &tag) {
            return AuthVerdict::Accepted(user);
        }
        let Ok(_place) = self.line.try_acquire() else {
            tracing::info!(event = "smtp.auth_busy", %client, waiting = LINE_MOST);
            return AuthVerdict::Busy;
        };
        let check = self.checks.clone().acquire_owned().await.expect("never closed");
        // Meanwhile others may have guessed from the same address, or logged in with the same password.
        if self.is_blocked(client) {
            return AuthVerdict::Blocked;
        }
        if let Some(user) = known.remembers(&login.user, &tag) {
            return AuthVerdict::Accepted(user);
        }
        let hashing = known;
        let checked = tokio::task::spawn_blocking(move || {
            // Held here, so that two is two even if the client's task ends meanwhile.
            let _check = check;
            // Remembered before the next one has its turn, which then need not hash the same password again.
            if hashing.verify(&login) { Ok(hashing.remember(login.user, tag)) } else { Err(login.user) }
        });
        match checked.await {
            Ok(Ok(user)) => AuthVerdict::Accepted(user),
            Ok(Err(user)) => {
                self.failed(client, &user);
                AuthVerdict::Wrong
            }
            Err(error) => {
                tracing::error!(event = "smtp.auth_broken", %error);
                AuthVerdict::Busy
            }
        }
    }

    fn failed(&self, client: IpAddr, user: &str) {
        let user: String = user.chars().take(USER_SHOWN_CHARS).collect();
        tracing::warn!(event = "smtp.auth_failed", %client, user);
        let blocks = self.guesses().failed(client, self.now());
        if blocks {
            tracing::warn!(event = "smtp.auth_blocked", %client, reason = "auth-block", "too many failures from this address");
        }
    }

    /// Argon2 at its cheapest, some microseconds: here it is only a hash with a key and with lengths before its parts.
    fn tag(&self, login: &Login) -> Tag {
        let mut tag = Tag::default();
        let params = Params::new(Params::MIN_M_COST, 1, 1, Some(tag.len())).expect("within the bounds of argon2");
        let hash = Argon2::new_with_secret(&self.key.0, Algorithm::Argon2id, Version::V0x13, params);
        // A salt has 8 octets at least, a user's name one.
        let salt = ["mailramp", &login.user].concat();
        hash.expect("a key of 32 octets is short enough")
            .hash_password_into(login.password.expose_secret().as_bytes(), salt.as_bytes(), &mut tag)
            .expect("salt and output have lengths that argon2 takes");
        tag
    }

    fn now(&self) -> Timestamp {
        Timestamp(0).after(self.began.elapsed())
    }

    fn guesses(&self) -> MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authenticator for Users {
    fn is_blocked(&self, client: IpAddr) -> bool {
        self.guesses().is_blocked(client, self.now())
    }

    fn check<'a>(&'a self, client: IpAddr, login: Login) -> Pin<Box<dyn Future<Output = AuthVerdict> + Send + 'a>> {
        Box::pin(self.judge(client, login))
    }
}

impl Known {
    fn new(file: UserFile) -> Self {
        Known {
            file,
            remembered: Mutex::default(),
            #[cfg(test)]
            hashed: Default::default(),
        }
    }

    fn verify(&self, login: &Login) -> bool {
        #[cfg(test)]
        self.hashed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.file.verify(&login.user, login.password.expose_secret())
    }

    fn remembers(&self, user: &str, tag: &Tag) -> Option<Arc<str>> {
        let remembered = self.remembered();
        let (user, known) = remembered.get_key_value(user)?;
        let same = bool::from(known.tag.ct_eq(tag));
        (same && Instant::now() < known.until).then(|| user.clone())
    }

    fn remember(&self, user: Box<str>, tag: Tag) -> Arc<str> {
        let user: Arc<str> = user.into();
        let now = Instant::now();
        let mut remembered = self.remembered();
        if remembered.len() >= REMEMBERED_MOST && !remembered.contains_key(&user) {
            remembered.retain(|_, known| now < known.until);
            if remembered.len() >= REMEMBERED_MOST
                && let Some(oldest) =
                    remembered.iter().min_by_key(|(_, known)| known.until).map(|(user, _)| user.clone())
            {
                remembered.remove(&oldest);
            }
        }
        remembered.insert(user.clone(), Remembered { tag, until: now + REMEMBERED });
        user
    }

    fn remembered(&self) -> MutexGuard<'_, HashMap<Arc<str>, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passwords hashed at once.
const CHECKS_AT_ONCE: usize = 2;
/// Logins that are checked or wait for it. More than one application opens connections at once.
const LINE_MOST: usize = 128;
/// How long a right password is remembered.
const REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// Users remembered at once.
const REMEMBERED_MOST: usize = 1_024;
/// Of a user's name in the log.
const USER_SHOWN_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use argon2::{PasswordHash, PasswordHasher};
    use secrecy::SecretString;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));

    fn file(users: &[(&str, &str)]) -> UserFile {
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(8, 1, 1, None).unwrap());
        let line = |(user, password): &(&str, &str)| {
            let hash: PasswordHash = argon2.hash_password_with_salt(password.as_bytes(), b"0123456789abcdef").unwrap();
            format!("{user}:{hash}\n")
        };
        UserFile::parse(&users.iter().map(line).collect::<String>(), "users").unwrap()
    }

    fn users() -> Users {
        Users::new(file(&[("ann", "secret"), ("bea", "other")]), GuessRules { failures: 3, ..Default::default() })
            .unwrap()
    }

    fn login(user: &str, password: &str) -> Login {
        Login { user: user.into(), password: SecretString::from(password) }
    }

    fn hashed(users: &Users) -> usize {
        users.known.load().hashed.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn a_right_password_is_hashed_once_and_then_remembered_for_five_minutes() {
        let users = users();
        tokio::time::pause();
        for _ in 0..3 {
            assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Accepted("ann".into()));
        }
        assert_eq!(hashed(&users), 1);
        tokio::time::advance(REMEMBERED).await;
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Accepted("ann".into()));
        assert_eq!(hashed(&users), 2);
    }

    #[tokio::test]
    async fn a_remembered_user_does_not_open_the_door_for_another_password_or_name() {
        let users = users();
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Accepted("ann".into()));
        assert_eq!(users.check(CLIENT, login("ann", "other")).await, AuthVerdict::Wrong);
        assert_eq!(users.check(CLIENT, login("bea", "secret")).await, AuthVerdict::Wrong);
    }

    #[tokio::test]
    async fn an_unknown_user_is_hashed_for_as_often_as_a_known_one_with_a_wrong_password() {
        let users = users();
        assert_eq!(users.check(CLIENT, login("ann", "wrong")).await, AuthVerdict::Wrong);
        assert_eq!(hashed(&users), 1);
        assert_eq!(users.check(CLIENT, login("eve", "wrong")).await, AuthVerdict::Wrong);
        assert_eq!(hashed(&users), 2);
    }

    #[tokio::test]
    async fn an_address_that_guesses_is_blocked_without_a_hash_and_others_are_not() {
        let users = users();
        for _ in 0..3 {
            assert_eq!(users.check(CLIENT, login("ann", "wrong")).await, AuthVerdict::Wrong);
        }
        assert!(users.is_blocked(CLIENT));
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Blocked);
        assert_eq!(hashed(&users), 3);
        let other = IpAddr::from([192, 0, 2, 2]);
        assert_eq!(users.check(other, login("ann", "secret")).await, AuthVerdict::Accepted("ann".into()));
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(601)).await;
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Accepted("ann".into()));
    }

    #[tokio::test]
    async fn many_logins_at_once_with_one_password_hash_it_hardly_more_than_once() {
        let users = Arc::new(users());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..LINE_MOST {
            let users = users.clone();
            tasks.spawn(async move { users.check(CLIENT, login("ann", "secret")).await });
        }
        let verdicts = tasks.join_all().await;
        assert!(verdicts.iter().all(|verdict| *verdict == AuthVerdict::Accepted("ann".into())));
        assert!(hashed(&users) <= CHECKS_AT_ONCE, "{}", hashed(&users));
    }

    #[tokio::test]
    async fn who_finds_the_line_full_is_told_to_try_again_and_nothing_is_checked() {
        let users = Arc::new(users());
        let both = users.checks.clone().acquire_many_owned(CHECKS_AT_ONCE as u32).await.unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..LINE_MOST {
            let users = users.clone();
            waiting.spawn(async move { users.check(CLIENT, login("ann", "secret")).await });
        }
        while users.line.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Busy);
        assert_eq!(hashed(&users), 0);
        drop(both);
        assert_eq!(waiting.join_all().await.len(), LINE_MOST);
        assert_eq!(users.line.available_permits(), LINE_MOST);
    }

    #[tokio::test]
    async fn a_new_file_takes_effect_at_once_and_forgets_who_was_remembered() {
        let users = users();
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Accepted("ann".into()));
        users.change(file(&[("ann", "changed")]), GuessRules::default());
        assert_eq!(users.check(CLIENT, login("ann", "secret")).await, AuthVerdict::Wrong);
        assert_eq!(users.check(CLIENT, login("ann", "changed")).await, AuthVerdict::Accepted("ann".into()));
        assert_eq!(users.check(CLIENT, login("bea", "other")).await, AuthVerdict::Wrong);
    }

    #[test]
    fn no_more_users_are_remembered_than_the_bound() {
        let known = Known::new(file(&[("ann", "secret")]));
        for n in 0..REMEMBERED_MOST + 10 {
            known.remember(format!("user{n}").into(), [0; 32]);
        }
        assert_eq!(known.remembered().len(), REMEMBERED_MOST);
        assert!(known.remembers(&format!("user{}", REMEMBERED_MOST + 9), &[0; 32]).is_some());
    }

    #[test]
    fn user_and_password_do_not_run_into_each_other_in_what_is_remembered() {
        let users = users();
        let tag = |user, password| users.tag(&login(user, password));
        assert_eq!(tag("ann", "secret"), tag("ann", "secret"));
        assert_ne!(tag("ann", "secret"), tag("anns", "ecret"));
        assert_ne!(tag("ann", ""), tag("", "ann"));
        assert_ne!(tag("ann", "secret"), self::users().tag(&login("ann", "secret")), "each process has its key");
    }
}
