//! The settings as they stand in the file, before secrets are read and names and paths resolved.

use core::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use secrecy::SecretString;
use serde::Deserialize;

use super::choices::*;
use super::model::*;
use super::values::*;
use crate::policy::mailbox::Pattern;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tables {
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub data_dir: Option<PathBuf>,
    #[serde(deserialize_with = "de::<Zone, _>")]
    pub timezone: TimeZone,
    pub log: Log,
    pub http: Http,
    pub smtp: Smtp,
    pub listeners: Vec<Listener>,
    pub new: UpstreamTable,
    pub legacy: Option<UpstreamTable>,
    pub warmup: Option<Warmup>,
    #[serde(default)]
    pub streams: Vec<StreamTable>,
    pub queue: QueueSettings,
    pub dns: Dns,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamTable {
    #[serde(default, deserialize_with = "de::<StreamName, _>")]
    pub name: String,
    #[serde(default, rename = "match")]
    pub matches: MatchTable,
    #[serde(deserialize_with = "de::<StreamRoute, _>")]
    pub route: StreamRoute,
    #[serde(deserialize_with = "de::<Count, _>")]
    pub priority: u64,
    #[serde(deserialize_with = "de::<Share, _>")]
    pub max_share: f64,
    #[serde(default)]
    pub overflow: StreamOverflow,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MatchTable {
    #[serde(deserialize_with = "de::<OneOrMore<Author>, _>")]
    pub from: Vec<Pattern>,
    #[serde(deserialize_with = "de::<OneOrMore<Word>, _>")]
    pub auth_user: Vec<String>,
    #[serde(deserialize_with = "de::<OneOrMore<Word>, _>")]
    pub header: Vec<String>,
    #[serde(deserialize_with = "de::<OneOrMore<Bind>, _>")]
    pub listener: Vec<SocketAddr>,
    #[serde(deserialize_with = "de::<OneOrMore<Net>, _>")]
    pub client: Vec<IpNet>,
}

/// What is left out is as in `[warmup]`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StreamOverflow {
    #[serde(deserialize_with = "de_some::<OverflowPolicy, _>")]
    pub policy: Option<OverflowPolicy>,
    #[serde(deserialize_with = "de_some::<LongestWait, _>")]
    pub max_wait: Option<super::MaxWait>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpstreamTable {
    #[serde(default, deserialize_with = "de::<OneOrMore<Host>, _>")]
    pub host: Vec<HostPort>,
    #[serde(deserialize_with = "de::<MailName, _>")]
    pub helo: String,
    #[serde(deserialize_with = "de::<LocalIp, _>")]
    pub source_ip: Option<IpAddr>,
    pub auth: AuthTable,
    pub tls: TlsTable,
    #[serde(deserialize_with = "de::<Count, _>")]
    pub connections: u64,
    #[serde(deserialize_with = "de::<Count, _>")]
    pub messages_per_connection: u64,
    pub timeouts: UpstreamTimeouts,
    /// Of `[legacy]` only.
    #[serde(default, deserialize_with = "de::<Count, _>")]
    pub max_per_minute: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthTable {
    #[serde(deserialize_with = "de::<Text, _>")]
    pub user: String,
    #[serde(deserialize_with = "de::<Secret, _>")]
    pub password: SecretString,
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub password_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    #[serde(deserialize_with = "de::<OptionalTlsLevel, _>")]
    pub level: Option<TlsLevel>,
    #[serde(deserialize_with = "de::<Switch, _>")]
    pub implicit: bool,
    #[serde(deserialize_with = "de::<OptionalPath, _>")]
    pub ca_file: Option<PathBuf>,
}
