//! mailramp: an SMTP relay that moves an application's mail from an old server to a new one at warm-up pace.
//!
//! # The path of a message
//!
//! **accept → spool → decide → deliver → settle.** One way; one loop back, for what waits or is retried.
//!
//! | step | where | what happens |
//! |---|---|---|
//! | accept | [`smtp`] | a session without I/O, driven by tokio; envelope bytes kept verbatim; strict CRLF |
//! | spool | [`spool`] | group commit: bodies to the segment, one SQLite transaction for all that waited; then 250 |
//! | decide | [`policy`] | pure: per recipient new, legacy, or wait until a deadline |
//! | deliver | [`delivery`] | claim (reserves tokens) → pooled, pipelined transaction → each recipient's own outcome |
//! | settle | [`spool`] | delivered: row gone; delayed: new due time; failed: report; token refunded or kept |
//!
//! # Layers
//!
//! Everyone knows [`message`] and [`reply`]; [`policy`] knows nothing else; [`spool`] asks about quota through a
//! [`spool::Gate`] it is handed, so it does not know the policy; [`smtp`] hands what it accepts to an
//! `smtp::Intake`, so it does not know the spool. [`relay`] is the one place that joins the concrete pieces, for the
//! commands in [`cli`] and for the tests. `tests/layering.rs` checks the directions.
//!
//! # Promises (each has tests that fail without it; how they are kept is in `docs/architecture.md`)
//!
//! 1. Accepted means on disk: 250 after the final dot only when the message is synced.
//! 2. The limit holds: a token is reserved durably before the first byte, given back only on a definite refusal.
//! 3. Every accepted recipient ends in exactly one state: relayed, failed (with a report), or removed by an operator.
//! 4. No needless duplicate: only when the answer to the final dot was lost; then the retry keeps its route.
//! 5. The application never pays for the limit: over quota is no error to it.
//! 6. Unchanged: octets leave as they came, under one added `Received:` line; only a tag that is for us is taken out.
//! 7. No open relay, no smuggling, nothing logged or echoed unescaped.
//!
//! # Glossary
//!
//! * **route**: `new` (the server being warmed) or `legacy` (the old one).
//! * **lane**: one source sending to one mailbox provider; the thing that has a limit. The *total* is a lane too.
//! * **stage**: how far up the curve a lane has come, counted from 0. **limit**: recipients a lane may send today.
//! * **pace**: how fast within the day. **ledger**: what was reserved and sent, by quarter-hour and by day.
//! * **stream**: one kind of the application's mail. **tag**: the application's own word for it, `X-Mailramp-Stream`. **item**: one message × one lane, with its recipients.
//! * **claim**: take items for delivery and reserve their tokens, in one transaction. **settle**: write the outcome.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod dns;
pub mod log;
pub mod message;
pub mod metrics;
pub mod operators;
pub mod policy;
pub mod relay;
pub mod reply;
pub mod smtp;
pub mod spool;
