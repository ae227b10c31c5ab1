//! The application of the demonstration: it has mail for its customers, and knows nothing of ramps.
//!
//! A day's mail is drawn at random (seeded, so a run can be repeated): passwords and receipts during working hours, a
//! digest to many recipients in the early morning, less at weekends. It goes out over a few connections as real SMTP,
//! at the times drawn. What the relay answered is kept for the account: only what got its 250 counts as accepted.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::client::Client;
use crate::clock::Clock;
use crate::message::Timestamp;

/// The header that names a message.
pub const HEADER: &str = "X-Demo-Id";
/// Connections to the relay.
const CONNECTIONS: usize = 6;
/// Messages that wait for a connection before the next one is drawn.
const AT_HAND: usize = 64;
/// Mail that this machine is too slow to hand over on its day is not sent at all: the day would not be the day.
const LATE_HOURS: u64 = 6;
const WEEKEND_PERCENT: u64 = 60;
const DAY_SECONDS: u64 = 24 * 3600;
/// The last day's mail ends so early that what waits for a token leaves before midnight.
const LAST_MINUTES: u64 = 90;
/// Share of each hour in the day's mail: the digest, and all that a person's click sets off.
const DIGEST_HOURS: [u32; 24] = [1, 1, 1, 1, 2, 5, 8, 8, 6, 5, 5, 5, 4, 5, 5, 5, 4, 3, 3, 3, 2, 2, 1, 1];
const CLICK_HOURS: [u32; 24] = [1, 1, 1, 1, 1, 2, 4, 6, 8, 9, 9, 8, 8, 9, 9, 8, 7, 6, 5, 5, 4, 3, 2, 1];
const PROVIDERS: [&str; 5] = ["gmail.example", "outlook.example", "yahoo.example", "gmail.example", "corp.example"];
const DIGEST_OCTETS: usize = 6_000;

/// One recipient of one message. Its address says which, so that a server can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Letter {
    pub message: u32,
    pub recipient: u16,
}

impl Letter {
    pub fn address(self) -> String {
        let provider = PROVIDERS[(self.message as usize + usize::from(self.recipient)) % PROVIDERS.len()];
        format!("m{}.r{}@{provider}", self.message, self.recipient)
    }

    /// `None`: not an address of ours.
    pub fn of_address(address: &[u8]) -> Option<Letter> {
        let (local, _) = std::str::from_utf8(address).ok()?.split_once('@')?;
        let (message, recipient) = local.strip_prefix('m')?.split_once(".r")?;
        Some(Letter { message: message.parse().ok()?, recipient: recipient.parse().ok()? })
    }
}

/// A message to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    pub number: u32,
    pub recipients: u16,
    pub at: Timestamp,
}

impl Mail {
    /// As it goes over the wire, without the final dot.
    pub fn text(&self) -> String {
        let (subject, line) = match self.recipients {
            1 => ("Reset your password", "Somebody asked for a new password."),
            2..=9 => ("Your receipt", "Thank you for your order."),
            _ => ("What is new this week", "There is always something new."),
        };
        let lines = if self.recipients > 9 { DIGEST_OCTETS / line.len() } else { 3 };
        let mut text = format!(
            "From: Shop <shop@app.example>\r\nTo: {}\r\nSubject: {subject}\r\nMessage-ID: <{}@app.example>\r\n\
             {HEADER}: {}\r\n\r\n",
            if self.recipients > 9 { "customers:;".into() } else { Letter::address(self.letter(0)) },
            self.number,
            self.number
        );
        for _ in 0..lines {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text
    }

    pub fn letter(&self, recipient: u16) -> Letter {
        Letter { message: self.number, recipient }
    }
}

/// What the application remembers of what it sent.
#[derive(Debug, Default)]
pub struct Diary {
    /// Messages that got their 250, with the number of their recipients.
    pub accepted: Mutex<Vec<(u32, u16)>>,
    /// What went wrong otherwise; nothing should.
    pub refused: Mutex<Vec<String>>,
    /// Messages never sent because this machine was too slow.
    pub skipped: AtomicU64,
}

/// What is to be sent, where to and when.
#[derive(Clone, Debug)]
pub struct Plan {
    pub relay: SocketAddr,
    /// Recipients on a working day.
    pub per_day: u64,
    /// Days, the first of which is a Monday that begins at `start`.
    pub days: u32,
    pub start: Timestamp,
    pub seed: u64,
}

/// Sends everything; returns when the last answer is there.
pub async fn run(plan: Plan, clock: Arc<dyn Clock>, diary: Arc<Diary>) {
    let (hand, taken) = mpsc::channel(AT_HAND);
    let taken = Arc::new(tokio::sync::Mutex::new(taken));
    let workers: Vec<_> =
        (0..CONNECTIONS).map(|_| tokio::spawn(work(plan.relay, taken.clone(), clock.clone(), diary.clone()))).collect();
    let mut number = 0;
    for day in 0..plan.days {
        for mail in mail_of_day(&plan, day, number) {
            number = mail.number;
            tokio::time::sleep(clock.real_time_until(mail.at)).await;
            if hand.send(mail).await.is_err() {
                return;
            }
        }
    }
    drop(hand);
    for worker in workers {
        let _ = worker.await;
    }
}

/// One connection, opened anew when it breaks.
async fn work(
    relay: SocketAddr,
    mail: Arc<tokio::sync::Mutex<mpsc::Receiver<Mail>>>,
    clock: Arc<dyn Clock>,
    diary: Arc<Diary>,
) {
    let mut open: Option<Client> = None;
    loop {
        let next = mail.lock().await.recv().await;
        let Some(mail) = next else { break };
        if clock.now().since(mail.at) > Duration::from_secs(LATE_HOURS * 3600) {
            diary.skipped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let sent = async {
            let client = match open.take() {
                Some(client) => client,
                None => Client::connect(relay).await?,
            };
            client.send(&mail).await
        };
        match sent.await {
            Ok(client) => {
                open = Some(client);
                diary.accepted.lock().expect("no holder panics").push((mail.number, mail.recipients));
            }
            Err(error) => {
                let text = format!("message {}: {}", mail.number, crate::log::printable(&error.to_string()));
                diary.refused.lock().expect("no holder panics").push(text);
            }
        }
    }
    if let Some(client) = open {
        client.quit().await;
    }
}

/// The mail of day `day`, counted from 0, in the order of its times; numbers go on after `number`.
fn mail_of_day(plan: &Plan, day: u32, number: u32) -> Vec<Mail> {
    let mut random = fastrand::Rng::with_seed(plan.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(day)));
    let weekend = day % 7 >= 5;
    let volume = if weekend { plan.per_day * WEEKEND_PERCENT / 100 } else { plan.per_day };
    // No two days are alike; none is above the target.
    let mut left = volume - random.u64(0..=volume / 40);
    let last = if day + 1 == plan.days { DAY_SECONDS - LAST_MINUTES * 60 } else { DAY_SECONDS };
    let starts = plan.start.after(Duration::from_secs(u64::from(day) * DAY_SECONDS));
    let mut mails = Vec::new();
    while left > 0 {
        // Of a hundred messages 43 have one recipient, 37 a few, 20 many: those make four fifths of the recipients.
        let (recipients, hours) = match random.u32(0..100) {
            0..43 => (1, &CLICK_HOURS),
            43..80 => (random.u16(2..=5), &CLICK_HOURS),
            _ => (random.u16(20..=50), &DIGEST_HOURS),
        };
        let recipients = recipients.min(u16::try_from(left).unwrap_or(u16::MAX));
        left -= u64::from(recipients);
        let second = loop {
            let second = second_of_day(hours, &mut random);
            if second < last {
                break second;
            }
        };
        mails.push(Mail { number: 0, recipients, at: starts.after(Duration::from_secs(second)) });
    }
    mails.sort_by_key(|mail| mail.at);
    for (mail, number) in mails.iter_mut().zip(number + 1..) {
        mail.number = number;
    }
    mails
}

fn second_of_day(hours: &[u32; 24], random: &mut fastrand::Rng) -> u64 {
    let mut rest = random.u32(0..hours.iter().sum());
    let hour = hours.iter().position(|share| {
        let here = rest < *share;
        rest = rest.saturating_sub(*share);
        here
    });
    hour.expect("less than the sum") as u64 * 3600 + random.u64(0..3600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64) -> Plan {
        let relay = "127.0.0.1:0".parse().unwrap();
        Plan { relay, per_day: 12_000, days: 15, start: Timestamp(0), seed }
    }

    #[test]
    fn a_letter_reads_back_from_its_address() {
        let letter = Letter { message: 4711, recipient: 49 };
        assert_eq!(Letter::of_address(letter.address().as_bytes()), Some(letter));
        for other in ["me@example.com", "m1@example.com", "m1.rx@example.com", "m1.r2", ""] {
            assert_eq!(Letter::of_address(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_day_and_numbers_go_on() {
        let day = mail_of_day(&plan(7), 3, 100);
        assert_eq!(day, mail_of_day(&plan(7), 3, 100));
        assert_ne!(day, mail_of_day(&plan(8), 3, 100));
        assert!(day.iter().map(|mail| mail.number).eq(101..101 + day.len() as u32));
    }

    #[test]
    fn a_day_has_the_volume_of_its_weekday_and_stays_within_its_hours() {
        for day in 0..15 {
            let mails = mail_of_day(&plan(1), day, 0);
            let sum: u64 = mails.iter().map(|mail| u64::from(mail.recipients)).sum();
            let full = if day % 7 >= 5 { 7_200 } else { 12_000 };
            assert!(sum <= full && sum * 100 >= full * 97, "day {day}: {sum}");
            let (first, last) = (mails[0].at.seconds() / 86_400, mails.last().unwrap().at.seconds());
            assert_eq!((first, last / 86_400), (i64::from(day), i64::from(day)));
            assert!(day != 14 || last < 14 * 86_400 + 81_000);
        }
    }

    #[test]
    fn a_message_names_itself_in_its_header() {
        let text = Mail { number: 12, recipients: 30, at: Timestamp(0) }.text();
        assert!(text.contains("\r\nX-Demo-Id: 12\r\n") && text.ends_with("\r\n") && text.len() > 4096);
        assert!(text.lines().all(|line| !line.starts_with('.')));
    }
}
