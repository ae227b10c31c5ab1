//! Getting a message to a next hop: the connection, the transaction, what each answer means, the report on failure.
//!
//! Deterministic: [`outcome`] (what a reply or a fault means), [`tally`] (the verdicts of a transaction), [`wire`] (octets
//! of commands, replies and bodies), [`notify`] (what the sender wants to hear), [`telling`] (whether it does), [`dsn`] (the report to it), [`budget`]
//! (reports an hour), [`settle`] (what the spool writes after an attempt), [`schedule`] (which lines are worth a claim), [`breaker`] (which next hops are worth a connection),
//! [`fallback`] (which failures let the other route take the mail), [`feedback`] (who knows what a refusal means), [`cap`] (recipients a minute). Doing I/O:
//! [`session`] (one stream, replies one by one), [`tls`] (connectors), [`opening`] (from name to login), [`client`] (one
//! transaction after the other), [`pool`] (connections of a route), [`dispatcher`] (the loop), `sending` (the life of a
//! connection), [`account`] (what is counted and logged).
//!
//! Promises: every recipient gets its own verdict; *unknown* is said only when the final dot may have been written
//! and no proper answer came; a path or parameter that could become a second command is never written.
pub mod account;
pub mod breaker;
pub mod budget;
pub mod cap;
pub mod client;
pub mod dispatcher;
pub mod dsn;
pub mod fallback;
pub mod feedback;
pub mod notify;
pub mod opening;
pub mod outcome;
pub mod pool;
pub mod schedule;
mod sending;
pub mod session;
pub mod settle;
pub mod tally;
pub mod telling;
pub mod tls;
pub mod wire;
