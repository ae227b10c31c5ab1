//! A relay that is not there, for tests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::api::*;
use super::explain::{ExplainOrder, Explained, ExplainedLane, ExplainedRecipient, MailServers};
use super::streams::{MoveAnswer, MoveOrder, Outlook, StreamPage, StreamRow, ToldMove, UndoOrder, Waiting, WayName};
use super::{Backend, BackendError, BoxFuture, ListenerProbe};
use crate::message::Timestamp;

/// Tuesday 10 March 2026, 17:48 in Berlin: the sample of the operator's manual.
pub fn snapshot() -> Snapshot {
    let now = Timestamp::from_seconds(1_773_161_280);
    let ago = |seconds: i64| Timestamp::from_seconds(now.seconds() - seconds);
    let totals = |messages, bytes, oldest| StateTotals { messages, recipients: messages, bytes, oldest };
    Snapshot {
        version: "0.1.0".into(),
        now,
        clock: ClockStatus { trusted: true, off_seconds: 0, shows: now },
        dry_run: None,
        warmup: Warmup {
            state: DayState::Ramping,
            day: Some(9),
            days_planned: Some(15),
            limit: Some(1281),
            used: 1019,
            sent: 1017,
            target: Some(12_000),
            tokens: Some(0),
            next_token_at: Some(ago(-41)),
            pace_per_hour: Some(256),
            day_ends: ago(-6 * 3600 - 12 * 60),
            zone: "Europe/Berlin".into(),
        },
        pause: None,
        lanes: lanes(now),
        days: days(),
        today: Today { new: 1019, legacy: 8402, held: 12 },
        oldest_held: Some(OldestHeld {
            accepted: ago(4320),
            stream: "digest".into(),
            deadline: Some(ago(4320 - 14_400)),
        }),
        new: RouteStatus { configured: true, up: true, connections: 3, last_error: None },
        legacy: RouteStatus { configured: true, up: true, connections: 5, last_error: None },
        queue: QueueTotals {
            held: totals(12, 96_000, Some(ago(4320))),
            ready: totals(0, 0, None),
            deferred: totals(3, 41_000, Some(ago(7380))),
            inflight: totals(1, 8_000, Some(ago(1))),
            ..QueueTotals::default()
        },
        spool: SpoolStatus { free_bytes: 18_200_000_000, required_bytes: 1_000_000_000, accepting: true },
    }
}

/// The total and four providers, of which one is braked for 52 minutes more.
fn lanes(now: Timestamp) -> Vec<LaneStatus> {
    let lane = |provider: &str, limit, used, sent, offered, share| LaneStatus {
        provider: provider.into(),
        state: DayState::Ramping,
        day: Some(9),
        limit: Some(limit),
        used,
        sent,
        offered,
        share,
        brake: BrakeStatus::default(),
        braked_days: 0,
    };
    let brake = BrakeStatus {
        level: BrakeWord::Suspended,
        since: Some(Timestamp::from_seconds(now.seconds() - 480)),
        until: Some(Timestamp::from_seconds(now.seconds() + 3120)),
        reason: "451 4.7.650 x14".into(),
    };
    vec![
        lane("all", 1281, 1019, 1017, 9433, 1.0),
        lane("google", 590, 471, 470, 4339, 0.46),
        LaneStatus { brake, braked_days: 2, ..lane("microsoft", 269, 214, 214, 1981, 0.21) },
        lane("yahoo", 102, 81, 81, 754, 0.08),
        lane("other", 320, 253, 252, 2359, 0.25),
    ]
}

fn days() -> Vec<DayStatus> {
    let day = |date: &str, day, limit, new, legacy, braked| DayStatus {
        date: date.into(),
        day: Some(day),
        limit: Some(limit),
        offered: new + legacy,
        new,
        legacy,
        braked,
    };
    vec![
        day("2026-03-08", 8, 854, 850, 8910, true),
        day("2026-03-09", 8, 854, 854, 9106, false),
        day("2026-03-10", 9, 1281, 1017, 8402, false),
    ]
}

pub fn page() -> QueuePage {
    let now = snapshot().now;
    let row = |id: &str, age: i64, stream: &str, state, to: &str, attempts, next: i64, reply: &str| QueueRow {
        id: id.into(),
        accepted: Timestamp::from_seconds(now.seconds() - age),
        stream: stream.into(),
        state,
        route: None,
        to: MaskedAddress::of(to.as_bytes()),
        recipients: 1,
        bytes: 20_500,
        attempts,
        next: Some(Timestamp::from_seconds(now.seconds() + next)),
        last_reply: reply.into(),
    };
    QueuePage {
        rows: vec![
            row("01K5Y7Q2M8R4", 4320, "digest", ItemState::Held, "dora@outlook.com", 0, 3120, "over quota"),
            row(
                "01K5Y6ZZ01AB",
                7380,
                "notify",
                ItemState::Deferred,
                "al@corp.ex",
                4,
                840,
                "451 4.7.1 grey\x1b[2Jlisted",
            ),
        ],
        messages: 2,
        recipients: 2,
        now,
    }
}

pub fn shown_message() -> ShownMessage {
    let now = snapshot().now;
    let at = |seconds: i64| Timestamp::from_seconds(now.seconds() + seconds);
    ShownMessage {
        id: "01K5Y6ZZ01AB".into(),
        now,
        accepted: at(-7380),
        stream: "notify".into(),
        from: MaskedAddress::of(b"app@example.com"),
        bytes: 20_500,
        parts: vec![ShownPart {
            state: ItemState::Deferred,
            route: "new".into(),
            reason: "in_quota".into(),
            maybe_delivered: true,
            to: vec![MaskedAddress::of(b"al@corp.ex"), MaskedAddress::of(b"bo@corp.ex")],
            recipients: 3,
            attempts: 4,
            due: at(840),
            deadline: None,
            expires: Some(at(400_000)),
            last_reply: "451 4.7.1 grey\x1b[2Jlisted".into(),
        }],
        headers: Some(vec!["From: a***@example.com".into(), "Subject: x\x1b[2J".into()]),
    }
}

/// What the change would do to a ramp like the sample's.
pub fn change_answer(change: Change, dry_run: bool) -> ChangeAnswer {
    let now = snapshot().now;
    let lane = |provider: &str, limit_before, limit, tomorrow_before, tomorrow| LaneChange {
        provider: provider.into(),
        day_before: 9,
        day: 5,
        limit_before: Some(limit_before),
        limit: Some(limit),
        tomorrow_before: Some(tomorrow_before),
        tomorrow: Some(tomorrow),
    };
    let lanes = match change {
        Change::SetDay { .. } => vec![lane("all", 1281, 253, 1922, 379), lane("google", 590, 116, 885, 174)],
        _ => Vec::new(),
    };
    let until = match change {
        Change::BrakeSet { for_seconds, .. } => Some(Timestamp::from_seconds(now.seconds() + for_seconds as i64)),
        _ => None,
    };
    ChangeAnswer { change, dry_run, now, waiting: 12, has_legacy: true, lanes, until }
}

pub fn audit_page() -> AuditPage {
    let now = snapshot().now;
    let entry = |age: i64, actor, action: &str, detail: &str, messages| AuditEntry {
        at: Timestamp::from_seconds(now.seconds() - age),
        actor,
        action: action.into(),
        detail: detail.into(),
        messages,
        recipients: messages,
        bytes: messages * 20_500,
    };
    AuditPage {
        entries: vec![
            entry(90_000, 1000, "reroute", "reroute to legacy, stream digest", 2),
            entry(4_000, 0, "pause", "complaints\x1b[2J", 0),
            entry(60, 0, "resume", "mended", 0),
        ],
    }
}

/// A message that waits for its provider's lane.
pub fn explained() -> Explained {
    let now = snapshot().now;
    let at = |seconds: i64| Timestamp::from_seconds(now.seconds() + seconds);
    let lane = |name: &str, limit, used, refuses: Option<&str>| ExplainedLane {
        lane: name.into(),
        limit: Some(limit),
        used_today: used,
        closed: None,
        pace_left: Some(3).filter(|_| refuses.is_none()),
        day_left: Some(limit - used),
        left_24h: Some(limit - used),
        reserve: if refuses.is_none() { 40 } else { 0 },
        share_left: None,
        refuses: refuses.map(String::from),
        until: refuses.map(|_| at(6 * 3600 + 12 * 60)),
    };
    let recipient = ExplainedRecipient {
        to: MaskedAddress::of(b"dora@outlook.com"),
        provider: "microsoft".into(),
        mail_servers: MailServers { operator: "microsoft".into(), known: true },
        route: "new".into(),
        state: Some(ItemState::Held),
        reason: "in_quota".into(),
        meaning: "the limit has room, now or within the longest wait".into(),
        attempts: 0,
        due: Some(now),
        deadline: Some(at(10_080)),
        expires: None,
        maybe_delivered: false,
        last_reply: String::new(),
    };
    let streams = stream_page();
    Explained {
        now,
        zone: streams.zone,
        dry_run: false,
        id: Some("01K5Y7Q2M8R4".into()),
        stream: "digest".into(),
        way: WayName::Ramp,
        moved: streams.streams[0].moved.clone(),
        recipients: vec![recipient],
        more: 0,
        lanes: vec![lane("all", 1_281, 1_019, None), lane("microsoft", 269, 269, Some("day"))],
    }
}

/// Three streams; one was moved, and will be again.
pub fn stream_page() -> StreamPage {
    let now = snapshot().now;
    let row = |name: &str, way, priority| StreamRow {
        name: name.into(),
        way,
        configured: way,
        configured_at: None,
        moved: None,
        to_come: Vec::new(),
        priority,
        max_share: None,
        overflow: "hold-then-legacy".into(),
        max_wait_seconds: Some(900),
        max_wait_auto: false,
        offered_today: 4_600,
        offered_yesterday: 4_500,
        offered_7d: 23_000,
        new_today: 400,
        held: 0,
    };
    let told = |to, hours: i64, reason: &str| ToldMove {
        to,
        at: Timestamp::from_seconds(now.seconds() + 3600 * hours),
        told: Timestamp::from_seconds(now.seconds() - 100_000),
        actor: 1000,
        reason: reason.into(),
    };
    let digest = StreamRow {
        configured: WayName::Legacy,
        moved: Some(told(WayName::Ramp, -20, "the first one")),
        to_come: vec![told(WayName::New, 30, "")],
        max_share: Some(0.7),
        max_wait_seconds: Some(14_400),
        held: 12,
        ..row("digest", WayName::Ramp, 40)
    };
    let hold = StreamRow { overflow: "hold".into(), max_wait_seconds: None, ..row("password", WayName::New, 90) };
    StreamPage { now, zone: "Europe/Berlin".into(), streams: vec![digest, hold, row("default", WayName::Ramp, 50)] }
}

/// The sample of the operator's manual.
pub fn move_answer(to: WayName, dry_run: bool) -> MoveAnswer {
    let now = snapshot().now;
    let at = Timestamp::from_seconds(now.seconds() + 4 * 3600 + 12 * 60);
    MoveAnswer {
        stream: "digest".into(),
        dry_run,
        now,
        zone: "Europe/Berlin".into(),
        from: WayName::Legacy,
        to,
        at: Some(at),
        note: None,
        undone: None,
        then: Vec::new(),
        waiting: Waiting::default(),
        today: None,
        first_day: Some(Outlook {
            date: Timestamp::from_seconds(now.seconds() + 68_000),
            ahead: 1,
            day: Some(10),
            ramp_offers: 9_800,
            new_offers: 0,
            limit: Some(1_922),
            stays_on_legacy: 7_878,
            waits: 0,
            unknown: false,
        }),
    }
}

/// Answers with the samples; remembers what was really done, and for whom.
#[derive(Default)]
pub struct FakeBackend {
    pub broken: bool,
    pub full: bool,
    pub listeners: Vec<ListenerProbe>,
    pub steps: Mutex<Vec<(QueueStep, u32)>>,
    /// What the ramp was told; a pause among it stands until a resume.
    pub changes: Mutex<Vec<(ChangeOrder, u32)>>,
    /// Moves that were really told.
    pub moves: Mutex<Vec<(MoveOrder, u32)>>,
    /// How often files are held now.
    pub holds: Arc<AtomicUsize>,
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FakeBackend {
    fn or_broken<T: Send + 'static>(&self, answer: T) -> BoxFuture<'_, Result<T, BackendError>> {
        let broken = self.broken;
        Box::pin(async move {
            if broken { Err(BackendError::Unavailable("the spool does not answer".into())) } else { Ok(answer) }
        })
    }
}

impl Backend for FakeBackend {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, BackendError>> {
        let mut snapshot = snapshot();
        snapshot.spool.accepting = !self.full;
        self.or_broken(snapshot)
    }

    fn queue(&self, filter: QueueFilter, limit: usize) -> BoxFuture<'_, Result<QueuePage, BackendError>> {
        let mut page = page();
        page.rows.retain(|row| filter.state.is_none_or(|state| state == row.state));
        page.messages = page.rows.len() as u64;
        page.rows.truncate(limit);
        self.or_broken(page)
    }

    fn show(&self, id: String, headers: bool) -> BoxFuture<'_, Result<ShownMessage, BackendError>> {
        let shown = ShownMessage { id, ..shown_message() };
        self.or_broken(ShownMessage { headers: shown.headers.filter(|_| headers), ..shown })
    }

    fn select(
        &self,
        filter: QueueFilter,
        _: QueueAction,
        _: bool,
        ids: bool,
    ) -> BoxFuture<'_, Result<Selection, BackendError>> {
        if filter.stream.as_deref() == Some("nosuch") {
            return Box::pin(async { Err(BackendError::Refused("there is no stream `nosuch`".into())) });
        }
        let left = LeftAlone { in_flight: 1, ..LeftAlone::default() };
        let ids = if ids { vec![7, 8] } else { Vec::new() };
        self.or_broken(Selection { messages: 2, recipients: 2, bytes: 41_000, left, job: 5, ids })
    }

    fn step(&self, step: QueueStep, actor: u32) -> BoxFuture<'_, Result<StepAnswer, BackendError>> {
        let messages = step.ids.len() as u64;
        self.steps.lock().unwrap().push((step, actor));
        self.or_broken(StepAnswer { messages, recipients: messages, bytes: 41_000, left: LeftAlone::default() })
    }

    fn hold_files(&self) -> Box<dyn std::any::Any + Send> {
        self.holds.fetch_add(1, Ordering::SeqCst);
        Box::new(Held(self.holds.clone()))
    }

    fn accept_clock(&self) -> BoxFuture<'_, Result<ClockAnswer, BackendError>> {
        self.or_broken(ClockAnswer { moved_seconds: -7200, now: snapshot().now })
    }

    fn change(&self, order: ChangeOrder, actor: u32) -> BoxFuture<'_, Result<ChangeAnswer, BackendError>> {
        let mut changes = self.changes.lock().unwrap();
        let stands = changes.iter().rev().find(|(o, _)| matches!(o.change, Change::Pause | Change::Resume));
        if order.change == Change::Resume && stands.is_none_or(|(o, _)| o.change == Change::Resume) {
            return Box::pin(async { Err(BackendError::NoChange("new is not paused".into())) });
        }
        let answer = change_answer(order.change.clone(), order.dry_run);
        if !order.dry_run {
            changes.push((order, actor));
        }
        self.or_broken(answer)
    }

    fn audit(&self, since_seconds: u64) -> BoxFuture<'_, Result<AuditPage, BackendError>> {
        let mut page = audit_page();
        page.entries.retain(|entry| snapshot().now.since(entry.at).as_secs() <= since_seconds);
        self.or_broken(page)
    }

    fn explain(&self, _: ExplainOrder) -> BoxFuture<'_, Result<Explained, BackendError>> {
        self.or_broken(explained())
    }

    fn streams(&self) -> BoxFuture<'_, Result<StreamPage, BackendError>> {
        self.or_broken(stream_page())
    }

    fn move_stream(&self, order: MoveOrder, actor: u32) -> BoxFuture<'_, Result<MoveAnswer, BackendError>> {
        if order.stream != "digest" {
            let known = "there is no stream `nosuch`; there are: digest, password, default";
            return Box::pin(async move { Err(BackendError::Refused(known.into())) });
        }
        let answer = move_answer(order.to, !order.yes);
        if order.yes {
            self.moves.lock().unwrap().push((order, actor));
        }
        self.or_broken(answer)
    }

    fn undo_move(&self, order: UndoOrder, _: u32) -> BoxFuture<'_, Result<MoveAnswer, BackendError>> {
        let undone = self.moves.lock().unwrap().pop();
        match undone {
            None => Box::pin(async { Err(BackendError::Refused("no move of digest stands".into())) }),
            Some((last, actor)) => {
                let mut answer = move_answer(last.to, !order.yes);
                let (to, at, told) = (last.to, answer.at.unwrap_or(answer.now), answer.now);
                answer.undone = Some(ToldMove { to, at, told, actor, reason: last.reason });
                (answer.from, answer.to) = (answer.to, answer.from);
                self.or_broken(answer)
            }
        }
    }

    fn listeners(&self) -> Vec<ListenerProbe> {
        self.listeners.clone()
    }
}
