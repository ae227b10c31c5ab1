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
    /// Who may relay; empty means nobody.
    pub allow_from: Vec<IpNet>,
    /// Whose lone CR and LF in DATA are mended to CRLF instead of refused.
    pub normalize: Vec<IpNet>,
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
            normalize: Vec::new(),
            timeouts: Timeouts::default(),
        }
    }
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
