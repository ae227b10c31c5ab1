//! The directory of mail servers' operators as the settings say, and recipients by the lane it finds for them.

use super::gate::Directory;
use crate::config::Settings;
use crate::dns;
use crate::message::{LaneId, Recipient};
use crate::operators::{Operators, Terms};
use crate::policy::{Lanes, Providers};

/// By what the directory goes. Without a ramp, and with `warmup.providers = "off"`, it asks nobody.
pub(super) fn terms(settings: &Settings) -> Terms {
    let (providers, lanes) = match &settings.warmup {
        Some(warmup) => (warmup.operators.clone(), warmup.providers.clone()),
        None => (Providers::embedded().clone(), Lanes::Off),
    };
    let asks = lanes != Lanes::Off;
    let servers = asks.then(|| dns::mail_servers(&settings.dns.servers, settings.dns.timeout));
    Terms { providers, lanes, servers, timeout: settings.dns.timeout }
}

impl Directory for Operators {
    fn lane_of(&self, recipient: &Recipient) -> Option<LaneId> {
        self.known_lane(&recipient.path)
    }
}

/// Recipients that share a lane: the lanes in the order of their first recipients, the recipients in the order in which they
/// came.
pub(super) fn by_lane(
    recipients: Vec<Recipient>,
    lane_of: impl Fn(&Recipient) -> LaneId,
) -> Vec<(LaneId, Vec<Recipient>)> {
    let mut lanes: Vec<(LaneId, Vec<Recipient>)> = Vec::new();
    for recipient in recipients {
        let lane = lane_of(&recipient);
        // There are nine lanes at most.
        match lanes.iter_mut().find(|(known, _)| *known == lane) {
            Some((_, those)) => those.push(recipient),
            None => lanes.push((lane, vec![recipient])),
        }
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_thousand_recipients_of_three_lanes_are_three_parts_in_order() {
        let recipient =
            |n: usize| Recipient { path: Bytes::from(format!("r{n}@example.org")), parameters: Bytes::new() };
        let lane_of = |recipient: &Recipient| LaneId(u16::from(recipient.path[recipient.path.len() - 13] % 3) + 1);
        let parts = by_lane((0..1000).map(recipient).collect(), lane_of);
        assert_eq!(parts.iter().map(|(lane, _)| lane.0).collect::<Vec<_>>(), [1, 2, 3]);
        let mut all = Vec::new();
        for (lane, those) in &parts {
            assert!(those.iter().all(|recipient| lane_of(recipient) == *lane));
            let numbers: Vec<usize> = those
                .iter()
                .map(|r| std::str::from_utf8(&r.path).unwrap()[1..].split('@').next().unwrap().parse().unwrap())
                .collect();
            assert!(numbers.is_sorted());
            all.extend(numbers);
        }
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn only_a_ramp_with_lanes_for_providers_asks_name_servers() {
        let terms = |text: &str| terms(&Settings::from_toml(text, "m.toml").unwrap().settings);
        let new = "[new]\nhost = \"192.0.2.1\"\n[dns]\nservers = [\"127.0.0.1:9\"]\n";
        assert!(terms(new).servers.is_none());
        assert!(terms(&format!("{new}[warmup]\ntarget = 5\nproviders = \"off\"\n")).servers.is_none());
        assert!(terms(&format!("{new}[warmup]\ntarget = 5\n")).servers.is_some());
        assert!(terms(&format!("{new}[warmup]\ntarget = 5\nproviders = {{ google = \"50%\" }}\n")).servers.is_some());
    }
}
