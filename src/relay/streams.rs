//! The streams of the settings with the numbers they have in the spool.
//!
//! A number belongs to its name for ever: mail that waits, and what the ledger has counted, go on when the settings are
//! written in another order. What waits of a stream that the settings no longer have goes by the rules of the last resort.

use super::StartError;
use crate::config::{self, MaxWait, OverflowPolicy, Settings};
use crate::message::StreamId;
use crate::policy::classify::{DEFAULT_STREAM, Named, Streams};
use crate::policy::{Overflow, StreamRoute, StreamRules};
use crate::spool::{Ledger, Spool, SpoolError, Store};

/// A wait that nobody can know yet.
const AUTO_WAIT_LEAST: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// Names of streams by id, of this configuration and of those before. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamNames(Vec<String>);

impl StreamNames {
    /// As a spool would have them that has seen none before.
    pub fn fresh(settings: &Settings) -> StreamNames {
        StreamNames(wanted(settings))
    }

    /// As they are in the ledger, which has been told of all that the settings name.
    pub fn of_ledger(ledger: &Ledger) -> StreamNames {
        match ledger.stream_names() {
            [] => StreamNames(vec![DEFAULT_STREAM.to_owned()]),
            names => StreamNames(names.to_vec()),
        }
    }

    pub fn all(&self) -> &[String] {
        &self.0
    }

    fn id(&self, name: &str) -> StreamId {
        let place = self.0.iter().position(|known| known == name);
        place.and_then(|place| u8::try_from(place).ok()).map_or(StreamId::DEFAULT, StreamId)
    }

    /// Those that the settings have, the last resort first.
    pub fn configured(&self, settings: &Settings) -> Vec<(StreamId, String)> {
        wanted(settings).into_iter().map(|name| (self.id(&name), name)).collect()
    }

    /// By id, what the gate goes by.
    pub fn rules(&self, settings: &Settings) -> Vec<StreamRules> {
        let mut rules = vec![last_resort(settings); self.0.len()];
        for stream in &settings.streams {
            rules[usize::from(self.id(&stream.name).0)] = of_stream(stream);
        }
        rules
    }

    /// What tells whose mail a message is.
    pub fn classifier(&self, settings: &Settings) -> Streams {
        let named = |stream: &config::Stream| Named {
            id: self.id(&stream.name),
            name: stream.name.clone(),
            rule: stream.rule.clone(),
        };
        let of_listener = |listener: &config::Listener| listener.stream.as_ref().map(|name| self.id(name));
        Streams::new(settings.streams.iter().map(named).collect(), settings.listeners.iter().map(of_listener).collect())
    }
}

/// All names that the settings need; the last resort is the first, so that its number is 0.
pub fn wanted(settings: &Settings) -> Vec<String> {
    let names = settings.streams.iter().map(|stream| stream.name.clone());
    [DEFAULT_STREAM.to_owned()].into_iter().chain(names).collect()
}

/// Gives numbers to the streams of the settings that have none yet. Before anybody else has the spool.
pub fn name_streams<S: Store>(
    spool: &mut Spool<S>,
    settings: &Settings,
) -> Result<Result<StreamNames, StartError>, SpoolError> {
    let wanted = wanted(settings);
    if wanted.iter().any(|name| spool.ledger().stream_named(name).is_none()) && !spool.name_streams(&wanted)? {
        return Ok(Err(too_many()));
    }
    Ok(Ok(StreamNames::of_ledger(spool.ledger())))
}

/// The numbers are used up.
pub fn too_many() -> StartError {
    StartError::Settings(
        "[[streams]]: this data directory has known 255 names of streams, and cannot take another; use names it has had"
            .into(),
    )
}

fn of_stream(stream: &config::Stream) -> StreamRules {
    StreamRules {
        route: match stream.route {
            config::StreamRoute::Legacy => StreamRoute::Legacy,
            config::StreamRoute::Ramp => StreamRoute::Ramp,
            config::StreamRoute::New => StreamRoute::New,
        },
        priority: stream.priority,
        max_share: stream.max_share,
        overflow: overflow(stream.overflow),
        auto_wait: stream.overflow.max_wait == MaxWait::Auto,
    }
}

/// The stream of mail that no rule matches.
fn last_resort(settings: &Settings) -> StreamRules {
    let Some(warmup) = &settings.warmup else { return StreamRules::default() };
    let auto_wait = warmup.overflow.max_wait == MaxWait::Auto;
    StreamRules { overflow: overflow(warmup.overflow), auto_wait, ..StreamRules::default() }
}

/// As the policy has it.
pub fn overflow(overflow: config::Overflow) -> Overflow {
    match (overflow.policy, overflow.max_wait) {
        (OverflowPolicy::Legacy, _) => Overflow::Legacy,
        (OverflowPolicy::Hold, _) => Overflow::Hold,
        (OverflowPolicy::HoldThenLegacy, MaxWait::Time(max_wait)) => Overflow::HoldThenLegacy { max_wait },
        (OverflowPolicy::HoldThenLegacy, MaxWait::Auto) => Overflow::HoldThenLegacy { max_wait: AUTO_WAIT_LEAST },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(streams: &str) -> Settings {
        let text = format!(
            "[new]\nhost = 'a'\n[legacy]\nhost = 'b'\n[warmup]\ntarget = 10\n\
             [[listeners]]\nbind = '127.0.0.1:25'\nallow_from = ['127.0.0.0/8']\nstream = 'bulk'\n{streams}"
        );
        Settings::from_toml(&text, "m.toml").unwrap_or_else(|faults| panic!("{faults}")).settings
    }

    const BULK: &str = "[[streams]]\nname = 'bulk'\nmatch = { from = '*@bulk.example' }\npriority = 10\n";
    const MAIL: &str = "[[streams]]\nname = 'mail'\nmatch = { from = '*@mail.example' }\nroute = 'new'\n";

    #[test]
    fn numbers_follow_the_names_whatever_the_order_of_the_settings() {
        let names = StreamNames(["default", "gone", "mail", "bulk"].map(str::to_owned).to_vec());
        let settings = settings(&format!("{BULK}{MAIL}"));
        let ids: Vec<(u8, String)> = names.configured(&settings).into_iter().map(|(id, name)| (id.0, name)).collect();
        assert_eq!(ids, [(0, "default".into()), (3, "bulk".into()), (2, "mail".into())]);
        let rules = names.rules(&settings);
        assert_eq!(rules.iter().map(|rules| rules.priority).collect::<Vec<_>>(), [50, 50, 50, 10]);
        assert_eq!((rules[1], rules[2].route), (rules[0], StreamRoute::New), "what is gone is the last resort's");
        assert_eq!(StreamNames::fresh(&settings).all(), ["default", "bulk", "mail"]);
    }

    #[test]
    fn what_a_stream_does_not_say_is_as_in_the_ramp() {
        let hour = |n: u64| std::time::Duration::from_secs(n * 3600);
        let wait = |max_wait| Overflow::HoldThenLegacy { max_wait };
        let rules = |ramp: &str, stream: &str| {
            let text = format!("{BULK}{stream}\n[warmup.overflow]\n{ramp}");
            let settings = settings(&text);
            let rules = StreamNames::fresh(&settings).rules(&settings);
            (rules[0].overflow, rules[1].overflow)
        };
        let default = Overflow::default();
        assert_eq!(rules("", ""), (default, default));
        assert_eq!(rules("max_wait = '2h'", ""), (wait(hour(2)), wait(hour(2))));
        assert_eq!(rules("max_wait = '2h'", "overflow.max_wait = '4h'"), (wait(hour(2)), wait(hour(4))));
        assert_eq!(rules("policy = 'hold'", "overflow.policy = 'legacy'"), (Overflow::Hold, Overflow::Legacy));
        assert_eq!(rules("policy = 'legacy'", "overflow.policy = 'hold-then-legacy'"), (Overflow::Legacy, default));
    }

    #[test]
    fn an_automatic_wait_is_told_to_the_policy_and_one_of_its_own_is_not() {
        let auto = |ramp: &str, stream: &str| {
            let settings = settings(&format!("{BULK}{stream}\n[warmup.overflow]\n{ramp}"));
            let rules = StreamNames::fresh(&settings).rules(&settings);
            (rules[0].auto_wait, rules[1].auto_wait)
        };
        assert_eq!(auto("", ""), (false, false));
        assert_eq!(auto("max_wait = 'auto'", ""), (true, true));
        assert_eq!(auto("max_wait = 'auto'", "overflow.max_wait = '4h'"), (true, false));
        assert_eq!(auto("", "overflow.max_wait = 'auto'"), (false, true));
    }
}
