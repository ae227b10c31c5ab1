//! Refuses a next hop that is one of our own listeners: mail would come back to us, as fast as we can send it.
//!
//! The settings alone show the plain cases; here names are resolved and the listeners are bound, so port 0, names of this
//! machine and its other addresses are seen too. A name that does not resolve now is no reason not to start.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::StartError;
use crate::delivery::dispatcher::Plan;

/// A name server that does not answer must not hold up the start.
const LOOK_UP_MOST: Duration = Duration::from_secs(2);

/// `bound`: where we listen for SMTP.
pub async fn refuse_loops(plan: &Plan, bound: &[SocketAddr]) -> Result<(), StartError> {
    for target in [Some(&plan.new), plan.legacy.as_ref()].into_iter().flatten().map(|route| &route.target) {
        for host in target.hosts.iter().filter(|host| bound.iter().any(|ours| ours.port() == host.port)) {
            let found = tokio::time::timeout(LOOK_UP_MOST, target.resolver.addresses(&host.name)).await;
            let addresses = match found {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => {
                    tracing::warn!(event = "dns.unresolved", name = host.name, reason = %error, "not checked for a loop");
                    continue;
                }
                Err(_) => continue,
            };
            for ip in addresses {
                if let Some(ours) = bound.iter().find(|ours| ours.port() == host.port && is_reached_by(ours.ip(), ip)) {
                    return Err(StartError::Settings(format!(
                        "[{}] host {}:{} is {ip}, where our own listener {ours} takes it: mail would go round for ever; name \
                         the next server, or move the listener (`bind`) to another port",
                        target.route, host.name, host.port
                    )));
                }
            }
        }
    }
    Ok(())
}

/// A connection to `ip` ends at a listener on `ours` (of the same port).
fn is_reached_by(ours: IpAddr, ip: IpAddr) -> bool {
    let (ours, ip) = (ours.to_canonical(), ip.to_canonical());
    // To connect to 0.0.0.0 or :: is to connect to this machine.
    let ip = if ip.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { ip };
    if ours.is_unspecified() {
        return (ours.is_ipv6() || ip.is_ipv4()) && is_own(ip);
    }
    ours == ip || (ours.is_loopback() && ours.is_ipv6() && ip.is_loopback() && ip.is_ipv6())
}

/// One of this machine's addresses: the system lets nobody bind another.
fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_reached_by_its_address_and_one_on_all_addresses_by_each_of_this_machine() {
        let rows = [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "0.0.0.0", true),
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("127.0.0.1", "192.0.2.1", false),
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "127.9.9.9", true),
            ("0.0.0.0", "192.0.2.1", false),
            ("0.0.0.0", "::1", false),
            ("::", "127.0.0.1", true),
            ("::", "::1", true),
            ("::1", "::1", true),
            ("::1", "127.0.0.1", false),
        ];
        for (ours, ip, expected) in rows {
            assert_eq!(is_reached_by(ours.parse().unwrap(), ip.parse().unwrap()), expected, "{ours} by {ip}");
        }
    }
}
