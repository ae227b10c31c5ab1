//! Why a message goes where it goes: the types behind `warmup explain`. The words are those of the log and the metrics.

use serde::{Deserialize, Serialize};

use super::api::{ItemState, MaskedAddress, time};
use super::streams::{ToldMove, WayName};
use crate::message::Timestamp;

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A queue id.
    Message(String),
    /// What would happen now to a message to this address.
    Address(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainOrder {
    pub subject: Subject,
    /// For an address; `None`: the stream of mail that no other matches.
    pub stream: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    #[serde(with = "time")]
    pub now: Timestamp,
    pub zone: String,
    /// Everything goes by legacy, whatever stands here.
    pub dry_run: bool,
    /// The message; `None` for an address.
    pub id: Option<String>,
    pub stream: String,
    /// Which way the stream goes now.
    pub way: WayName,
    /// The move that says so; `None`: the settings.
    pub moved: Option<ToldMove>,
    /// What share a fate, one by one; none when the message is not in the queue (any more).
    pub recipients: Vec<ExplainedRecipient>,
    /// Recipients that are not shown.
    pub more: u64,
    /// The total, then the providers' lanes of these recipients, as the stream sees them now.
    pub lanes: Vec<ExplainedLane>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedRecipient {
    pub to: MaskedAddress,
    /// `all` where providers have no lanes of their own.
    pub provider: String,
    pub mail_servers: MailServers,
    /// `new` or `legacy`.
    pub route: String,
    /// `None` for an address.
    pub state: Option<ItemState>,
    /// The word of the log.
    pub reason: String,
    /// The same in a sentence.
    pub meaning: String,
    pub attempts: u32,
    /// Not tried before.
    #[serde(with = "time::option", default)]
    pub due: Option<Timestamp>,
    /// Then legacy takes it.
    #[serde(with = "time::option", default)]
    pub deadline: Option<Timestamp>,
    /// Then it has failed.
    #[serde(with = "time::option", default)]
    pub expires: Option<Timestamp>,
    /// The answer to a final dot was lost.
    pub maybe_delivered: bool,
    pub last_reply: String,
}

/// Who runs the mail servers of a recipient's domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailServers {
    /// As in the rules for replies; `other` for one that they do not name.
    pub operator: String,
    /// The name servers said so, and not the name of the domain.
    pub known: bool,
}

/// What bounds a lane for the stream now. Recipients; a bound that does not apply is `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExplainedLane {
    /// A provider, or `all` for the total.
    pub lane: String,
    /// Today's.
    pub limit: Option<u64>,
    pub used_today: u64,
    /// Why nothing leaves by it, if so.
    pub closed: Option<String>,
    /// Tokens that are there; 0 outside the hours of sending.
    pub pace_left: Option<u64>,
    pub day_left: Option<u64>,
    pub left_24h: Option<u64>,
    /// Kept for streams of higher priority; taken off the day and the 24 hours.
    pub reserve: u64,
    /// Of the stream's `max_share`.
    pub share_left: Option<u64>,
    /// The bound that refuses one recipient now and takes longest: closed, window, pace, day, 24h, reserve, share.
    pub refuses: Option<String>,
    /// Until then; `None`: until something happens.
    #[serde(with = "time::option", default)]
    pub until: Option<Timestamp>,
}
