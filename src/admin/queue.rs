//! What operators ask of the queue by hand, and what they are told: the types behind `queue show`, `flush`, `reroute`
//! and `drop`.
//!
//! A change goes in two steps. The relay names what matches at that moment ([`Selection`]); the command then has it
//! worked on piece by piece ([`QueueStep`]), so that mail goes on between the pieces, later mail is never touched, and
//! a command that is stopped knows how far it came. Plain values, no I/O.

use serde::{Deserialize, Serialize};

use super::api::{ItemState, MaskedAddress, QueueFilter, time};
use crate::message::{Route, Timestamp};

/// Most items of one [`QueueStep`].
pub const STEP_MOST_ITEMS: usize = 500;
/// Most items of one [`Selection`]; their ids fit an answer of 64 MiB.
pub const SELECTION_MOST_ITEMS: usize = 4_000_000;

/// One of the two routes, as named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RouteName {
    /// The server being warmed; as far as its limit allows.
    New,
    /// The old server.
    Legacy,
}

impl From<RouteName> for Route {
    fn from(name: RouteName) -> Route {
        match name {
            RouteName::New => Route::New,
            RouteName::Legacy => Route::Legacy,
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueAction {
    /// Due now; paused mail is released.
    Flush,
    /// By the other route; brings dead letters and paused mail back.
    Reroute(RouteName),
    /// Removed for good.
    Drop,
}

/// What matches now, and what an action would do with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
    pub left: LeftAlone,
    /// Names the action in the audit.
    pub job: i64,
    /// What to hand to [`QueueStep`]; empty for a dry run.
    pub ids: Vec<i64>,
}

/// Messages that match and are left alone, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftAlone {
    /// On their way at that moment.
    pub in_flight: u64,
    /// The answer to a final dot was lost: they keep their route.
    pub maybe_delivered: u64,
    /// Due already, or on that route already.
    pub already: u64,
    /// Dead letters, which only a reroute brings back.
    pub dead: u64,
    /// Damaged on disk.
    pub damaged: u64,
    /// Paused; a flush without a filter does not release them.
    pub paused: u64,
    /// Delivered or otherwise gone since they were counted.
    pub gone: u64,
}

impl LeftAlone {
    pub fn add(&mut self, other: &LeftAlone) {
        let LeftAlone { in_flight, maybe_delivered, already, dead, damaged, paused, gone } = other;
        self.in_flight += in_flight;
        self.maybe_delivered += maybe_delivered;
        self.already += already;
        self.dead += dead;
        self.damaged += damaged;
        self.paused += paused;
        self.gone += gone;
    }

    pub fn is_none(&self) -> bool {
        *self == LeftAlone::default()
    }
}

/// A piece of the work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStep {
    /// As the selection named it.
    pub job: i64,
    pub action: QueueAction,
    /// As selected by; for the audit, and for which recipients of a message are meant.
    pub filter: QueueFilter,
    /// At most [`STEP_MOST_ITEMS`].
    pub ids: Vec<i64>,
}

/// What a piece did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepAnswer {
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
    pub left: LeftAlone,
}

/// What an action did, or would do: what the command writes with `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionAnswer {
    pub action: QueueAction,
    /// Nothing was changed.
    pub dry_run: bool,
    pub messages: u64,
    pub recipients: u64,
    pub bytes: u64,
    pub left: LeftAlone,
    /// Messages that were selected and not reached, since the command was stopped.
    pub not_reached: u64,
}

/// Everything about one message, without its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownMessage {
    pub id: String,
    #[serde(with = "time")]
    pub now: Timestamp,
    #[serde(with = "time")]
    pub accepted: Timestamp,
    pub stream: String,
    pub from: MaskedAddress,
    pub bytes: u64,
    /// What shares a fate, one by one.
    pub parts: Vec<ShownPart>,
    /// If asked for: lines with masked addresses. `None` also when the octets cannot be read.
    pub headers: Option<Vec<String>>,
}

/// Recipients of a message that share a fate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownPart {
    pub state: ItemState,
    pub route: String,
    /// Why that route; the words of the log and the metrics.
    pub reason: String,
    /// The answer to a final dot was lost.
    pub maybe_delivered: bool,
    /// The first of them, at most 50.
    pub to: Vec<MaskedAddress>,
    pub recipients: u64,
    pub attempts: u32,
    /// Not tried before.
    #[serde(with = "time")]
    pub due: Timestamp,
    /// Then legacy takes it.
    #[serde(with = "time::option", default)]
    pub deadline: Option<Timestamp>,
    /// Then it has failed; set by the first attempt.
    #[serde(with = "time::option", default)]
    pub expires: Option<Timestamp>,
    pub last_reply: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_and_its_route_read_back() {
        for action in [
            QueueAction::Flush,
            QueueAction::Drop,
            QueueAction::Reroute(RouteName::New),
            QueueAction::Reroute(RouteName::Legacy),
        ] {
            let json = serde_json::to_string(&action).unwrap();
            assert_eq!(serde_json::from_str::<QueueAction>(&json).unwrap(), action, "{json}");
        }
    }

    #[test]
    fn what_is_left_alone_adds_up_field_by_field() {
        let mut sum =
            LeftAlone { in_flight: 1, maybe_delivered: 2, already: 3, dead: 4, damaged: 5, paused: 6, gone: 7 };
        sum.add(&sum.clone());
        let want =
            LeftAlone { in_flight: 2, maybe_delivered: 4, already: 6, dead: 8, damaged: 10, paused: 12, gone: 14 };
        assert_eq!(sum, want);
        assert!(!sum.is_none() && LeftAlone::default().is_none());
    }
}
