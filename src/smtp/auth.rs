//! What the front door asks about a user and a password, and what it is told (RFC 4954).
//!
//! Knows neither files nor hashes: who checks is behind [`Authenticator`].

use core::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use secrecy::SecretString;

/// What a client says it is.
#[derive(Debug)]
pub struct Login {
    /// The authentication identity, UTF-8 without NUL, as sent.
    pub user: Box<str>,
    pub password: SecretString,
}

/// The answer to a [`Login`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthVerdict {
    /// The name to be known by from here on.
    Accepted(Arc<str>),
    /// User or password; nobody is told which.
    Wrong,
    /// Too many failures from this address; nothing was checked.
    Blocked,
    /// Too many checks at once; nothing was checked.
    Busy,
}

/// Checks passwords. Takes as long for a user that does not exist as for one that does.
pub trait Authenticator: Send + Sync + 'static {
    /// Asked before a client may try: is its address kept out for its failures?
    fn is_blocked(&self, client: IpAddr) -> bool;

    /// Counts a failure against the address of `client`.
    fn check<'a>(&'a self, client: IpAddr, login: Login) -> Pin<Box<dyn Future<Output = AuthVerdict> + Send + 'a>>;
}
