//! A connection to a next hop, and one transaction after the other on it.
//!
//! Every recipient's reply is recorded as it arrives, so what was said before a peer dies is not lost. Surplus octets
//! are never dropped: they may be an injected reply, or one that would be taken for the answer to the final dot.
//!
//! Does not decide when to send, by which route, or what a refusal leads to. Dropping a [`Connection`] closes it.
//! Dropping the future of [`Connection::transact`] leaves the connection unusable and the outcome unknown.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::opening::{OpenError, Opened, Peer, Target, Timeouts};
use super::outcome::{Cause, Fate, Fault, Report, Stage};
use super::pool::Hops;
use super::session::Session;
use super::tally::{Next, Tally};
use super::wire::{Capabilities, MailPassing, Stuffer, has_parameter, mail_command, rcpt_command};
use crate::message::{Envelope, QueueId, Recipient};
use crate::reply::{EnhancedCode, Reply};
use crate::spool::body::BodySource;

/// Octets of a message read and written at a time.
const CHUNK_OCTETS: usize = 64 * 1024;
/// RCPT commands in one write: fewer octets than any send buffer, so peer and we never both wait to write.
const RCPT_BATCH: usize = 100;
/// `.CRLF`
const DOT_LINE: usize = 3;
/// How long to look for a last reply on a connection that has failed or is being left.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A connection idle for this long may have been given up by the next hop; that is no fault of the next message.
const IDLE: Duration = Duration::from_secs(5);

/// One message for one next hop.
#[derive(Clone, Debug)]
pub struct Transaction {
    pub id: QueueId,
    pub envelope: Envelope,
    pub body: BodySource,
}

/// What ends an attempt without a verdict from the next hop.
type Stop = (Stage, Fault);

/// An open session, ready for MAIL.
pub struct Connection {
    session: Session,
    offered: Capabilities,
    peer: Peer,
    timeouts: Timeouts,
    transactions: u64,
    last_used: Instant,
    needs_reset: bool,
    /// A transaction is under way, or was when its future was dropped.
    busy: bool,
    closed: bool,
}

impl Connection {
    /// Tries the target's hosts in order, and the addresses of each, whatever became of them before.
    pub async fn open(target: &Target) -> Result<Connection, OpenError> {
        Connection::open_along(target, &Hops::default()).await
    }

    /// The same, as far as the breakers of `hops` allow it; they learn from what happens.
    pub async fn open_along(target: &Target, hops: &Hops) -> Result<Connection, OpenError> {
        let Opened { session, offered, peer } = super::opening::open(target, hops).await?;
        Ok(Connection {
            session,
            offered,
            peer,
            timeouts: target.timeouts,
            transactions: 0,
            last_used: Instant::now(),
            needs_reset: false,
            busy: false,
            closed: false,
        })
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub fn capabilities(&self) -> &Capabilities {
        &self.offered
    }

    /// Transactions begun on this connection.
    pub fn messages(&self) -> u64 {
        self.transactions
    }

    /// False once a report said close, or a transaction was dropped half way.
    pub fn is_usable(&self) -> bool {
        !self.busy && !self.closed
    }

    /// Offers one message. The report has a verdict for every recipient, whatever happens.
    pub async fn transact(&mut self, transaction: &Transaction) -> Report {
        let reused = self.transactions > 0 || self.last_used.elapsed() >= IDLE;
        let mut tally = Tally::new(transaction.envelope.recipients.len(), reused);
        if !self.is_usable() {
            tally.stale(Stage::Mail, Cause::Fault(Fault::Closed));
            return tally.report();
        }
        self.busy = true;
        if let Err((stage, fault)) = self.attempt(transaction, &mut tally).await {
            tally.fault(stage, fault);
        }
        self.busy = false;
        self.last_used = Instant::now();
        let report = tally.report();
        self.closed = report.connection == Fate::Close;
        self.warn_of_bad_peer(transaction.id, &report);
        report
    }

    /// Says goodbye, best effort, for a second at most.
    pub async fn quit(self) {
        if self.is_usable() {
            self.session.quit(LAST_WORDS.min(self.timeouts.command)).await;
        }
    }

    async fn attempt(&mut self, transaction: &Transaction, tally: &mut Tally) -> Result<(), Stop> {
        if let Some(refusal) = self.unfit(transaction).await.map_err(|e| (Stage::Check, e))? {
            tally.refuse_all(refusal);
            return Ok(());
        }
        let envelope = &transaction.envelope;
        let mut mail = Vec::new();
        if mail_command(&mut mail, &envelope.reverse_path, &envelope.parameters, self.passing(transaction)).is_err() {
            tracing::error!(queue_id = %transaction.id, "reverse path not fit to be written");
            tally.refuse_all(Reply::new(553, EnhancedCode(5, 1, 7), "Bad reverse path"));
            return Ok(());
        }
        let commands = self.rcpt_commands(&envelope.recipients, transaction.id, tally);
        if commands.is_empty() || !self.is_ready(tally).await? {
            return Ok(());
        }
        self.transactions += 1;
        self.say_envelope(mail, &commands, transaction, tally).await
    }

    /// Sends MAIL, RCPTs and DATA, in one write when PIPELINING is offered; then the message to whom it was taken for.
    async fn say_envelope(
        &mut self,
        mail: Vec<u8>,
        commands: &[(usize, Vec<u8>)],
        transaction: &Transaction,
        tally: &mut Tally,
    ) -> Result<(), Stop> {
        let pipelining = self.offered.pipelining;
        let mut out = mail;
        let mut mail_answered = false;
        let mut data_said = false;
        if !pipelining {
            self.say(&std::mem::take(&mut out), Stage::Mail).await?;
            mail_answered = true;
            if !self.hear_mail(tally, 0, false).await? {
                return Ok(());
            }
        }
        let mut batches = commands.chunks(if pipelining { RCPT_BATCH } else { 1 }).peekable();
        while let Some(batch) = batches.next() {
            batch.iter().for_each(|(_, command)| out.extend_from_slice(command));
            if pipelining && batches.peek().is_none() {
                out.extend_from_slice(b"DATA\r\n");
                data_said = true;
            }
            self.say(&std::mem::take(&mut out), if mail_answered { Stage::Rcpt } else { Stage::Mail }).await?;
            if !mail_answered {
                mail_answered = true;
                if !self.hear_mail(tally, batch.len(), data_said).await? {
                    return Ok(());
                }
            }
            for (recipient, _) in batch {
                if tally.rcpt(*recipient, self.hear(Stage::Rcpt).await?) == Next::Close {
                    return Ok(());
                }
            }
            if tally.stop_naming() {
                break;
            }
        }
        if !data_said {
            if !tally.any_taken() {
                self.needs_reset = true;
                return Ok(());
            }
            self.say(b"DATA\r\n", Stage::Data).await?;
        }
        let reply = self.hear(Stage::Data).await?;
        if !tally.any_taken() {
            return self.leave_data(reply).await;
        }
        match tally.data(reply) {
            Next::GoOn => self.send_body(&transaction.body, tally).await,
            Next::Over => {
                self.needs_reset = true;
                Ok(())
            }
            Next::Close => Ok(()),
        }
    }

    /// True: go on. False: refused; the answers to what was said along with MAIL have been read.
    async fn hear_mail(&mut self, tally: &mut Tally, rcpts: usize, data_said: bool) -> Result<bool, Stop> {
        match tally.mail(self.hear(Stage::Mail).await?) {
            Next::GoOn => Ok(true),
            Next::Close => Ok(false),
            Next::Over => {
                self.needs_reset = true;
                for _ in 0..rcpts {
                    self.hear(Stage::Rcpt).await?;
                }
                if data_said {
                    let reply = self.hear(Stage::Data).await?;
                    // 354 without a sender: even a lone dot could become an empty message to somebody. Hang up.
                    if reply.is_positive() {
                        return Err((Stage::Data, Fault::WrongReply(reply)));
                    }
                }
                Ok(false)
            }
        }
    }

    /// DATA was said along with RCPTs that were all refused. A peer that answers 354 waits for a message: it gets an
    /// empty one, which it has to refuse (RFC 2920 §3.1).
    async fn leave_data(&mut self, reply: Reply) -> Result<(), Stop> {
        match reply.code {
            421 => Err((Stage::Data, Fault::Closed)),
            300..400 => {
                self.say(b".\r\n", Stage::Data).await?;
                let reply = self.hear(Stage::Data).await?;
                if reply.is_positive() || reply.code == 421 {
                    return Err((Stage::Data, Fault::WrongReply(reply)));
                }
                Ok(())
            }
            400..600 => {
                self.needs_reset = true;
                Ok(())
            }
            _ => Err((Stage::Data, Fault::WrongReply(reply))),
        }
    }

    async fn send_body(&mut self, body: &BodySource, tally: &mut Tally) -> Result<(), Stop> {
        let (mut stuffer, mut scratch, mut position) = (Stuffer::default(), Vec::new(), 0);
        let mut reply_within = self.timeouts.data;
        loop {
            let chunk = read_chunk(body, position).await.map_err(|e| (Stage::Dot, Fault::Body(e.kind())))?;
            position += chunk.len() as u64;
            let last = position >= body.size();
            if chunk.is_empty() && !last {
                return Err((Stage::Dot, Fault::Body(std::io::ErrorKind::UnexpectedEof)));
            }
            // A reply that is here already would be taken for the answer to the final dot.
            if self.session.is_disturbed().await.map_err(|e| (Stage::Dot, e))? {
                return self.hear_early(Fault::BadReply("came before the message was sent"), tally).await;
            }
            let octets = stuffer.chunk(&chunk, &mut scratch);
            let ending = if last { stuffer.ending() } else { b"" };
            let written = self.session.write(&[octets, ending], self.timeouts.data).await;
            match written {
                Ok(()) if !last => continue,
                Ok(()) => {}
                // In clear the count is exact: if the dot was not taken from us, nobody has seen it. Inside TLS the
                // stream may have taken more than it counted.
                Err(e) if !last || (!self.session.is_tls() && e.taken <= octets.len() + ending.len() - DOT_LINE) => {
                    return self.hear_early(e.fault, tally).await;
                }
                Err(_) => reply_within = LAST_WORDS.min(reply_within),
            }
            break;
        }
        tally.dot_may_be_written();
        let reply = self.session.reply(reply_within).await.map_err(|e| (Stage::Dot, e))?;
        if tally.dot(reply.to_reply()) != Next::Close && self.session.has_surplus() {
            tally.close_after(Stage::Dot, Fault::BadReply("more replies than commands"));
        }
        Ok(())
    }

    /// Sending the message broke off before the final dot. The next hop may have said why.
    async fn hear_early(&mut self, fault: Fault, tally: &mut Tally) -> Result<(), Stop> {
        match self.session.reply(LAST_WORDS.min(self.timeouts.data)).await {
            Ok(reply) => {
                tally.dot(reply.to_reply());
                Ok(())
            }
            Err(_) => Err((Stage::Dot, fault)),
        }
    }

    /// Nothing unasked has arrived, the connection still stands, the last transaction is undone. False: it is stale,
    /// and the tally knows.
    async fn is_ready(&mut self, tally: &mut Tally) -> Result<bool, Stop> {
        if self.session.is_disturbed().await.map_err(|e| (Stage::Mail, e))? {
            let reply =
                self.session.reply(LAST_WORDS.min(self.timeouts.command)).await.map_err(|e| (Stage::Mail, e))?;
            return match reply.code {
                421 => {
                    tally.mail(reply.to_reply());
                    Ok(false)
                }
                _ => Err((Stage::Mail, Fault::BadReply("nobody asked for it"))),
            };
        }
        if self.needs_reset {
            self.say(b"RSET\r\n", Stage::Rset).await?;
            let reply = self.hear(Stage::Rset).await?;
            if !(200..300).contains(&reply.code) {
                tally.stale(Stage::Rset, Cause::Reply(reply));
                return Ok(false);
            }
            self.needs_reset = false;
        }
        Ok(true)
    }

    /// A write to a connection that is gone is no error yet: why it went may wait to be read (a 421).
    async fn say(&mut self, octets: &[u8], stage: Stage) -> Result<(), Stop> {
        match self.session.write(&[octets], self.timeouts.command).await {
            Err(e) if e.fault != Fault::Closed => Err((stage, e.fault)),
            _ => Ok(()),
        }
    }

    async fn hear(&mut self, stage: Stage) -> Result<Reply, Stop> {
        match self.session.reply(self.timeouts.command).await {
            Ok(reply) => Ok(reply.to_reply()),
            Err(fault) => Err((stage, fault)),
        }
    }

    /// Why this next hop can never take this message, seen before anything is written.
    async fn unfit(&self, transaction: &Transaction) -> Result<Option<Reply>, Fault> {
        let refuse = |code, enhanced, text| Ok(Some(Reply::new(code, enhanced, text)));
        let (envelope, body) = (&transaction.envelope, &transaction.body);
        if self.offered.size.is_some_and(|most| most > 0 && body.size() > most) {
            return refuse(552, EnhancedCode(5, 3, 4), "Message is larger than the next hop takes");
        }
        if has_parameter(&envelope.parameters, "BODY", Some("BINARYMIME")) {
            return refuse(554, EnhancedCode(5, 6, 3), "Binary messages cannot be passed on");
        }
        // Clients declare either by habit; what is plain ASCII needs neither.
        let lacks_utf8 = !self.offered.smtputf8 && has_parameter(&envelope.parameters, "SMTPUTF8", None);
        if lacks_utf8 && (!has_ascii_paths(envelope) || !is_ascii(body).await?) {
            return refuse(553, EnhancedCode(5, 6, 7), "Next hop does not offer SMTPUTF8");
        }
        let lacks_8bit = !self.offered.eight_bit_mime && has_parameter(&envelope.parameters, "BODY", Some("8BITMIME"));
        if lacks_8bit && !is_ascii(body).await? {
            return refuse(554, EnhancedCode(5, 6, 3), "Next hop does not offer 8BITMIME");
        }
        Ok(None)
    }

    fn passing(&self, transaction: &Transaction) -> MailPassing {
        MailPassing {
            body: self.offered.eight_bit_mime,
            smtputf8: self.offered.smtputf8,
            dsn: self.offered.dsn,
            size: self.offered.size.map(|_| transaction.body.size()),
        }
    }

    /// The RCPT of every recipient whose path may be written, with its place in the envelope.
    fn rcpt_commands(&self, recipients: &[Recipient], id: QueueId, tally: &mut Tally) -> Vec<(usize, Vec<u8>)> {
        let mut commands = Vec::with_capacity(recipients.len());
        for (i, recipient) in recipients.iter().enumerate() {
            let mut command = Vec::new();
            match rcpt_command(&mut command, &recipient.path, &recipient.parameters, self.offered.dsn) {
                Ok(()) => commands.push((i, command)),
                Err(_) => {
                    tracing::error!(queue_id = %id, recipient = i, "recipient not fit to be written");
                    tally.refuse(i, Reply::new(553, EnhancedCode(5, 1, 3), "Bad recipient address"));
                }
            }
        }
        commands
    }

    fn warn_of_bad_peer(&self, id: QueueId, report: &Report) {
        if let Some((stage, cause)) = &report.ended_by
            && cause.kind() == "bad-peer"
        {
            tracing::warn!(
                event = "bad-peer", queue_id = %id, route = %self.peer.route, host = self.peer.host,
                address = %self.peer.address, stage = stage.name(), %cause
            );
        }
    }
}

/// Reads on another thread when it means the disk.
async fn read_chunk(body: &BodySource, position: u64) -> std::io::Result<Bytes> {
    match body {
        BodySource::Memory(_) => body.read_at(position, CHUNK_OCTETS),
        BodySource::File { .. } => {
            let body = body.clone();
            tokio::task::spawn_blocking(move || body.read_at(position, CHUNK_OCTETS))
                .await
                .unwrap_or_else(|e| Err(std::io::Error::other(e)))
        }
    }
}

async fn is_ascii(body: &BodySource) -> Result<bool, Fault> {
    let mut position = 0;
    while position < body.size() {
        let chunk = read_chunk(body, position).await.map_err(|e| Fault::Body(e.kind()))?;
        if !chunk.is_ascii() {
            return Ok(false);
        }
        position += chunk.len().max(1) as u64;
    }
    Ok(true)
}

fn has_ascii_paths(envelope: &Envelope) -> bool {
    envelope.reverse_path.is_ascii() && envelope.recipients.iter().all(|r| r.path.is_ascii())
}
