//! Getting a message to a next hop: the connection, the transaction, what each answer means, the report on failure.
//!
//! Deterministic: [`outcome`] (what a reply or a fault means), [`wire`] (octets of commands, replies and bodies),
//! [`dsn`] (the report to the sender), [`settle`] (what the spool writes after an attempt), [`schedule`] (which lines are
//! worth a claim). Doing I/O: [`session`] (one stream, replies one by one), [`tls`] (connectors), [`opening`] (from name to
//! login), [`client`] (one transaction after the other), [`pool`] (connections of a route), [`dispatcher`] (the loop).
//!
//! Promises: every recipient gets its own verdict; *unknown* is said only when the final dot may have been written
//! and no proper answer came; a path or parameter that could become a second command is never written.
pub mod client;
pub mod dispatcher;
pub mod dsn;
pub mod opening;
pub mod outcome;
pub mod pool;
pub mod schedule;
pub mod session;
pub mod settle;
pub mod tls;
pub mod wire;
