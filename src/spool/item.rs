//! What the spool keeps: items, and the envelope's bytes as they are stored.
//!
//! One *item* is one message × one lane with the recipients that share its fate so far. A body is stored once and
//! counted by its items. Nothing here does I/O.

use bytes::{Buf, BufMut, Bytes};

use crate::message::{Day, Envelope, LaneId, Queue, QueueId, Reason, Recipient, Slot, StreamId, Timestamp};

/// Row id of an item; rises in the order of insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(pub i64);

/// Row id of a body; rises in the order of commit, so the newest rows are the last batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyId(pub i64);

/// What an item is doing. The first three wait for something; [`State::InFlight`] is being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits for a connection only.
    Ready,
    /// Waits for a token of its lane.
    Held,
    /// Was tried and delayed; due again later.
    Deferred,
    /// Claimed: its tokens are reserved and it may be on the wire.
    InFlight,
    /// Failed, and nobody to report to: kept for a while for the operator.
    Dead,
    /// Its octets are damaged; never sent, never deleted by us.
    Quarantined,
    /// Waits for the operator.
    Paused,
}

impl State {
    /// Every state, in the order of its stored code.
    pub const ALL: [State; 7] =
        [State::Ready, State::Held, State::Deferred, State::InFlight, State::Dead, State::Quarantined, State::Paused];

    /// As stored. States below [`State::InFlight`] are those a claim may take; an index relies on it.
    pub const fn code(self) -> i64 {
        self as i64
    }

    /// The state stored as `code`.
    pub fn from_code(code: i64) -> Option<State> {
        usize::try_from(code).ok().and_then(|i| State::ALL.get(i).copied())
    }

    /// The word used in listings, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Held => "held",
            State::Deferred => "deferred",
            State::InFlight => "inflight",
            State::Dead => "dead",
            State::Quarantined => "quarantined",
            State::Paused => "paused",
        }
    }

    /// A claim may take it.
    pub const fn is_waiting(self) -> bool {
        matches!(self, State::Ready | State::Held | State::Deferred)
    }
}

/// Tokens taken from the ledger for an item in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The quarter-hour it was charged to.
    pub slot: Slot,
    /// The day it was charged to.
    pub day: Day,
    /// How many.
    pub recipients: u64,
}

/// By how much the times of every item move, since the clock they were told by was wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Every time. Nanoseconds.
    pub by: i64,
    /// The end of life only, beside that: time in which nobody could have sent anything. Nanoseconds.
    pub life: i64,
    /// Quarter-hours of reservations.
    pub slots: i64,
    /// Days of reservations.
    pub days: i32,
}

impl Shift {
    /// Times beyond this one, in the year 2255, mean "never" and do not move.
    pub const NEVER_FROM: i64 = 9_000_000_000_000_000_000;

    /// One after the other.
    pub fn and(self, then: Shift) -> Shift {
        Shift {
            by: self.by.saturating_add(then.by),
            life: self.life.saturating_add(then.life),
            slots: self.slots + then.slots,
            days: self.days + then.days,
        }
    }

    /// The item as it is afterwards.
    pub fn of(self, mut item: Item) -> Item {
        let moved = |time: Timestamp, by: i64| match time.0 {
            never if never >= Shift::NEVER_FROM => time,
            nanos => Timestamp(nanos.saturating_add(by)),
        };
        item.accepted = moved(item.accepted, self.by);
        item.due = moved(item.due, self.by);
        item.deadline = item.deadline.map(|time| moved(time, self.by));
        item.expires = item.expires.map(|time| moved(time, self.by.saturating_add(self.life)));
        if let Some(reservation) = &mut item.reservation {
            reservation.slot.0 += self.slots;
            reservation.day.0 += self.days;
        }
        item
    }
}

/// One message × one lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Row id.
    pub id: ItemId,
    /// The message it belongs to.
    pub message: QueueId,
    /// Its octets.
    pub body: BodyId,
    /// Octets of the body.
    pub size: u64,
    /// The line it waits in; for an item in flight, the route it is on.
    pub queue: Queue,
    /// The lane of its recipients, also while it is on the legacy server's line.
    pub lane: LaneId,
    /// The kind of mail.
    pub stream: StreamId,
    /// What it is doing.
    pub state: State,
    /// An answer to a final dot was lost: it keeps its route.
    pub maybe: bool,
    /// Why it stands in this line.
    pub reason: Reason,
    /// When the 250 was earned.
    pub accepted: Timestamp,
    /// Not to be tried before.
    pub due: Timestamp,
    /// From here on the legacy server takes it.
    pub deadline: Option<Timestamp>,
    /// From here on it has failed; set at the first attempt.
    pub expires: Option<Timestamp>,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Present while in flight on a lane with a limit.
    pub reservation: Option<Reservation>,
    /// Who it is for.
    pub envelope: Envelope,
    /// What the last next hop said, one printable line; empty before the first attempt.
    pub last_reply: String,
}

impl Item {
    /// Recipients of this item.
    pub fn recipients(&self) -> u64 {
        self.envelope.recipients.len() as u64
    }
}

/// Fields only. Still read, no longer written.
const ENVELOPE_UNCHECKED: u8 = 1;
/// Fields, then the CRC-32 of all octets before it: a flipped bit must not send mail to somebody else.
const ENVELOPE_CHECKED: u8 = 2;
const CRC_OCTETS: usize = 4;

/// The envelope as stored: a version octet, then fields with their length in front, then a checksum.
pub fn encode_envelope(envelope: &Envelope) -> Vec<u8> {
    let guess = 24 + envelope.reverse_path.len() + envelope.recipients.iter().map(|r| r.path.len() + 8).sum::<usize>();
    let mut out = Vec::with_capacity(guess);
    out.put_u8(ENVELOPE_CHECKED);
    put(&mut out, &envelope.reverse_path);
    put(&mut out, &envelope.parameters);
    out.put_u32(envelope.recipients.len() as u32);
    for recipient in &envelope.recipients {
        put(&mut out, &recipient.path);
        put(&mut out, &recipient.parameters);
    }
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    out
}

/// Reads back what [`encode_envelope`] wrote. `None`: damaged, or of a version this program does not know.
pub fn decode_envelope(stored: &[u8]) -> Option<Envelope> {
    let fields = match *stored.first()? {
        ENVELOPE_UNCHECKED => stored,
        ENVELOPE_CHECKED => {
            let (fields, crc) = stored.split_at_checked(stored.len().checked_sub(CRC_OCTETS)?)?;
            (crc32fast::hash(fields).to_be_bytes() == crc).then_some(fields)?
        }
        _ => return None,
    };
    let mut rest = Bytes::copy_from_slice(&fields[1..]);
    let (reverse_path, parameters) = (take(&mut rest)?, take(&mut rest)?);
    let count = rest.try_get_u32().ok()? as usize;
    // Each recipient takes at least eight octets, so a damaged count cannot make us reserve gigabytes.
    if count > rest.len() / 8 {
        return None;
    }
    let mut recipients = Vec::with_capacity(count);
    for _ in 0..count {
        recipients.push(Recipient { path: take(&mut rest)?, parameters: take(&mut rest)? });
    }
    rest.is_empty().then_some(Envelope { reverse_path, parameters, recipients })
}

fn put(out: &mut Vec<u8>, field: &[u8]) {
    out.put_u32(field.len() as u32);
    out.put_slice(field);
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let len = rest.try_get_u32().ok()? as usize;
    (len <= rest.len()).then(|| rest.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        let recipient = |p: &'static str| Recipient { path: p.into(), parameters: Bytes::new() };
        Envelope {
            reverse_path: "\"a b\"@example.com".into(),
            parameters: "BODY=8BITMIME".into(),
            recipients: vec![recipient("x@example.net"), recipient("postmaster")],
        }
    }

    #[test]
    fn an_envelope_reads_back_octet_by_octet() {
        assert_eq!(decode_envelope(&encode_envelope(&envelope())), Some(envelope()));
    }

    #[test]
    fn a_damaged_envelope_is_refused_and_never_half_read() {
        let stored = encode_envelope(&envelope());
        for cut in 0..stored.len() {
            assert_eq!(decode_envelope(&stored[..cut]), None, "cut at {cut}");
        }
        assert_eq!(decode_envelope(&[&stored[..], b"x"].concat()), None, "octets left over");
        assert_eq!(decode_envelope(&[9, 0, 0, 0, 0]), None, "unknown version");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_envelope(&flipped), None, "bit {bit} flipped");
        }
    }

    #[test]
    fn an_envelope_from_before_there_was_a_checksum_is_still_read() {
        let mut stored = encode_envelope(&envelope());
        stored.truncate(stored.len() - CRC_OCTETS);
        stored[0] = ENVELOPE_UNCHECKED;
        assert_eq!(decode_envelope(&stored), Some(envelope()));
    }

    #[test]
    fn states_read_back_from_their_codes_and_waiting_ones_come_first() {
        for state in State::ALL {
            assert_eq!(State::from_code(state.code()), Some(state));
            assert_eq!(state.is_waiting(), state.code() < State::InFlight.code());
        }
    }
}
