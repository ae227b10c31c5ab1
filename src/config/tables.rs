//! The settings as they stand in the file, before secrets are read and names and paths resolved.

use core::net::IpAddr;
use std::path::PathBuf;

use jiff::tz::TimeZone;
use secrecy::SecretString;
use serde::Deserialize;

use super::choices::*;
use super::model::*;
use super::values::*;

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
    pub queue: QueueSettings,
    pub dns: Dns,
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
