//! What sessions are told: names, limits, who may relay, how long to wait.
//!
//! Plain values, valid already; where they come from is the configuration's matter.

use core::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// The same for all sessions of a listener.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// What we call ourselves in greeting, EHLO and `Received:`. ASCII without spaces.
    pub hostname: String,
    /// Octets of one message as it will be relayed, without our `Received:` line.
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    pub max_header_bytes: u64,
    /// Refused commands and messages, the last of which closes the session.
    pub max_errors: u64,
    /// Who may relay without AUTH; empty means nobody.
    pub allow_from: Vec<IpNet>,
    pub tls: TlsMode,
    pub auth: AuthPolicy,
    /// AUTH is offered without TLS too; for loopback listeners only.
    pub auth_in_clear: bool,
    /// Whose lone CR and LF in DATA are mended to CRLF instead of refused.
    pub normalize: Vec<IpNet>,
    /// Clients may choose a stream by `X-Mailramp-Stream`; the field is taken out of what they send.
    pub stream_header: bool,
    pub timeouts: Timeouts,
}

impl Default for SessionSettings {
    fn default() -> Self {
        SessionSettings {
            hostname: "localhost".into(),
            max_message_bytes: 50 * 1024 * 1024,
            max_recipients: 1000,
            max_header_bytes: 256 * 1024,
            max_errors: 20,
            allow_from: Vec::new(),
            tls: TlsMode::Off,
            auth: AuthPolicy::Off,
            auth_in_clear: false,
            normalize: Vec::new(),
            stream_header: false,
            timeouts: Timeouts::default(),
        }
    }
}

/// How a listener comes to TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    #[default]
    Off,
    /// Offered after EHLO (RFC 3207); needs a certificate.
    StartTls,
    /// From the first octet (RFC 8314 §3.3).
    Implicit,
}

/// What a listener wants to know of a client's user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthPolicy {
    /// AUTH is not offered; only `allow_from` admits.
    #[default]
    Off,
    /// `allow_from` admits without AUTH, a user is admitted from anywhere; others are told to authenticate.
    Optional,
    /// As `Optional`, and a client that is neither has fewer errors free.
    Required,
}

/// How long a client may take. Kept by the driver; the session has no clock.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From the connection to the end of the first command.
    pub first_command: Duration,
    /// Without a single octet, and without taking a single octet of a reply.
    pub idle: Duration,
    /// From the first octet of a command to its CRLF.
    pub command: Duration,
    /// Slowest DATA, in octets per second, over any [`Timeouts::data_window`] of waiting for the client.
    pub data_min_rate: u64,
    pub data_window: Duration,
    /// For a TLS handshake, from its first octet or the 220 to STARTTLS.
    pub handshake: Duration,
    /// How long sessions in DATA may go on after shutdown was asked for.
    pub shutdown_grace: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            first_command: Duration::from_secs(10),
            idle: Duration::from_secs(5 * 60),
            command: Duration::from_secs(5 * 60),
            data_min_rate: 500,
            data_window: Duration::from_secs(60),
            handshake: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Is `client` in one of `networks`? An IPv4 address that came mapped into IPv6 counts as IPv4.
pub(super) fn contains(networks: &[IpNet], client: IpAddr) -> bool {
    let client = client.to_canonical();
    networks.iter().any(|network| network.contains(&client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_ipv4_address_counts_as_ipv4() {
        assert!(contains(&["192.0.2.0/24".parse().unwrap()], "::ffff:192.0.2.9".parse().unwrap()));
        assert!(!contains(&[], "192.0.2.9".parse().unwrap()));
    }
}
