//! Streams as an operator sees and moves them.
//!
//! A move is asked for, told to the spool, and stands from then on; what it means for mail is for the gate to say. Here
//! it is judged, described before it is done, and written to the log when it is told and when its time has come.

use std::sync::Arc;
use std::time::Duration;

use super::backend::{RelayBackend, unavailable};
use super::gate::WarmupGate;
use super::outlook::{Going, outlook};
use crate::admin::BackendError;
use crate::admin::streams::{
    MoveAnswer, MoveOrder, StreamPage, StreamRow, ToldMove, UndoOrder, WORDS_MOST_CHARS, Waiting, WayName,
};
use crate::admin::when;
use crate::clock::Clock;
use crate::log::printable;
use crate::message::{Day, LaneId, Queue, Route, StreamId, StreamMove, StreamWay, Timestamp};
use crate::metrics::StreamAction;
use crate::policy::Overflow;
use crate::spool::by_hand::Audit;
use crate::spool::{Chore, Ledger, State, Telling, Told, What};

/// Whoever waits for the time of a move looks at the clock at least so often.
const LOOK_AROUND: Duration = Duration::from_secs(30);
const WEEK_DAYS: i32 = 7;

impl RelayBackend {
    pub(super) async fn stream_page(&self) -> Result<StreamPage, BackendError> {
        let (gate, names) = (self.gate.current(), self.known_streams());
        let zone = (*self.zone.load_full()).clone();
        let look = move |ledger: &Ledger, now| StreamPage {
            now,
            zone,
            streams: names.into_iter().map(|(id, name)| row(&gate, ledger, id, name, now)).collect(),
        };
        self.spool.look(look).await.map_err(unavailable)
    }

    pub(super) async fn stream_moved(&self, order: MoveOrder, actor: u32) -> Result<MoveAnswer, BackendError> {
        let (stream, name) = self.stream_called(&order.stream)?;
        let reason = in_few_words(&order.reason)?;
        let to = StreamWay::from(order.to);
        if to == StreamWay::Legacy && self.routes.current().pool(Route::Legacy).is_none() {
            return Err(BackendError::Refused("there is no legacy server: [legacy] is not configured".into()));
        }
        let (gate, names) = (self.gate.current(), self.known_streams());
        let zone = (*self.zone.load_full()).clone();
        let answer = {
            let (name, typed) = (name.clone(), order.at.clone());
            let look = move |ledger: &Ledger, now| {
                let moment = typed.map(|at| when::parse(&at, gate.calendar().zone(), now)).transpose();
                let moment = moment.map_err(|error| BackendError::Refused(error.to_string()))?;
                let at = moment.as_ref().map_or(now, |moment| moment.at);
                let from = way(&gate, ledger, stream, at);
                if from == to {
                    return Err(BackendError::NoChange(already(&gate, ledger, stream, &name, to, at, now)));
                }
                let told = StreamMove { id: i64::MAX, to, at, told: now, actor, reason: String::new() };
                let mut moves = ledger.moves(stream).to_vec();
                moves.push(told);
                let mut answer = described(&gate, ledger, &names, (stream, &moves), at, now);
                answer.from = from.into();
                answer.to = to.into();
                answer.note = moment.and_then(|moment| moment.note);
                Ok(MoveAnswer { stream: name, zone, ..answer })
            };
            self.spool.look(look).await.map_err(unavailable)??
        };
        if !order.yes {
            return Ok(answer);
        }
        let at = answer.at.unwrap_or(answer.now);
        let to = StreamMove { id: 0, to, at, told: answer.now, actor, reason: reason.clone() };
        let detail = format!("{name} to {}{}{}", order.to.text(), from_when(answer.at), because(&reason));
        self.tell(What::Move { stream, to }, actor, detail).await?;
        self.metrics.stream_admin_actions.of(StreamAction::Move).inc();
        tracing::info!(
            event = "stream.moved", stream = %name, from = answer.from.text(), to = answer.to.text(),
            at = %utc(at), in_force = answer.at.is_none(), actor, reason = %reason
        );
        Ok(MoveAnswer { dry_run: false, ..answer })
    }

    pub(super) async fn stream_undone(&self, order: UndoOrder, actor: u32) -> Result<MoveAnswer, BackendError> {
        let (stream, name) = self.stream_called(&order.stream)?;
        let (gate, names) = (self.gate.current(), self.known_streams());
        let zone = (*self.zone.load_full()).clone();
        let legacy = self.routes.current().pool(Route::Legacy).is_some();
        let answer = {
            let name = name.clone();
            let look = move |ledger: &Ledger, now| {
                let Some((last, before)) = ledger.moves(stream).split_last() else {
                    let why = format!("no move of {name} stands: it goes where the settings say");
                    return Err(BackendError::NoChange(why));
                };
                let at = last.at.max(now);
                let (from, to) = (way(&gate, ledger, stream, at), way_by(&gate, before, stream, at));
                if to == StreamWay::Legacy && !legacy {
                    let why = "there is no legacy server: [legacy] is not configured";
                    return Err(BackendError::Refused(why.into()));
                }
                let mut answer = described(&gate, ledger, &names, (stream, before), at, now);
                (answer.from, answer.to, answer.undone) = (from.into(), to.into(), Some(shown(last)));
                answer.waiting.goes_to_legacy &= from != to;
                Ok(MoveAnswer { stream: name, zone, ..answer })
            };
            self.spool.look(look).await.map_err(unavailable)??
        };
        if !order.yes {
            return Ok(answer);
        }
        let last = answer.undone.as_ref().map_or(answer.to, |undone| undone.to);
        let detail = format!("{name} to {}, taken back", last.text());
        let Told::Undone(undone) = self.tell(What::UndoMove { stream }, actor, detail).await? else {
            return Err(BackendError::Refused(format!("no move of {name} stands any more")));
        };
        self.metrics.stream_admin_actions.of(StreamAction::Undo).inc();
        tracing::info!(
            event = "stream.moved", stream = %name, from = answer.from.text(), to = answer.to.text(),
            at = %utc(answer.at.unwrap_or(answer.now)), in_force = answer.at.is_none(), actor,
            reason = "the last move was taken back"
        );
        Ok(MoveAnswer { dry_run: false, undone: Some(shown(&undone)), ..answer })
    }

    async fn tell(&self, what: What, actor: u32, detail: String) -> Result<Told, BackendError> {
        let audit = Some(Audit { job: self.next_job(), actor, detail });
        let answer = self.spool.chore(Chore::Tell(Telling { what: what.clone(), audit })).await.map_err(unavailable)?;
        self.moves_told.notify_one();
        if let Some(dry_run) = &self.dry_run {
            dry_run.tell(&what);
        }
        match answer.told.map(|told| *told) {
            Some(Told::Nothing(why)) => Err(BackendError::NoChange(why.into())),
            Some(told) => Ok(told),
            None => Err(BackendError::Unavailable("the spool did not say what it did".into())),
        }
    }

    /// Streams of the settings, the last resort last.
    fn known_streams(&self) -> Vec<(StreamId, String)> {
        let mut all = (*self.configured.load_full()).clone();
        let last_resort = usize::from(!all.is_empty());
        all.rotate_left(last_resort);
        all
    }

    pub(super) fn stream_called(&self, name: &str) -> Result<(StreamId, String), BackendError> {
        let all = self.known_streams();
        let known = || all.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
        let found = all.iter().find(|(_, known)| known == name).cloned();
        found.ok_or_else(|| {
            BackendError::Refused(format!("there is no stream `{}`; there are: {}", printable(name), known()))
        })
    }

    /// Writes to the log when the time of a move has come; `since` is the time up to which that was done. For ever.
    pub(super) async fn tell_of_moves(self: Arc<Self>, mut since: Timestamp) {
        loop {
            let (gate, names, from) = (self.gate.current(), self.known_streams(), since);
            let look = move |ledger: &Ledger, now: Timestamp| {
                let come = names.iter().flat_map(|(id, name)| {
                    let come = ledger.moves(*id).iter().filter(move |m| m.told < m.at && from < m.at && m.at <= now);
                    come.map(|m| (name.clone(), way(&gate, ledger, *id, Timestamp(m.at.0 - 1)), m.clone()))
                });
                (now, come.collect::<Vec<_>>(), ledger.next_move(now))
            };
            let Ok((now, come, next)) = self.spool.look(look).await else { return };
            for (stream, from, told) in come {
                tracing::info!(
                    event = "stream.moved", stream = %stream, from = from.name(), to = told.to.name(),
                    at = %utc(told.at), in_force = true, actor = told.actor, reason = %told.reason
                );
            }
            since = since.max(now);
            let wait = next.map_or(LOOK_AROUND, |at| self.clock.real_time_until(at));
            tokio::select! {
                () = self.moves_told.notified() => {}
                () = tokio::time::sleep(wait.clamp(Duration::from_millis(1), LOOK_AROUND)) => {}
            }
        }
    }
}

/// What holds for any change of a stream's way at `at`. `changed`: the moves of one stream as they would stand then.
fn described(
    gate: &WarmupGate,
    ledger: &Ledger,
    names: &[(StreamId, String)],
    changed: (StreamId, &[StreamMove]),
    at: Timestamp,
    now: Timestamp,
) -> MoveAnswer {
    let (stream, moves) = changed;
    let going = |then: Timestamp| -> Vec<Going> {
        let way_then = |id| if id == stream { way_by(gate, moves, id, then) } else { way(gate, ledger, id, then) };
        let one = |id| Going { stream: id, way: way_then(id), overflow: gate.stream(ledger, id, now).overflow };
        names.iter().map(|(id, _)| one(*id)).collect()
    };
    let today = ledger.span().unwrap_or_else(|| gate.calendar().span_at(now));
    let first = gate.calendar().span_at(at).day.next();
    let ahead = u32::try_from(first.0 - today.day.0).unwrap_or(0);
    let later = at > now;
    let waiting = ledger.waiting_recipients(|queue, s| s == stream && queue != Queue::Legacy);
    MoveAnswer {
        stream: String::new(),
        dry_run: true,
        now,
        zone: String::new(),
        from: WayName::Ramp,
        to: WayName::Ramp,
        at: later.then_some(at),
        note: None,
        undone: None,
        then: to_come(moves, at),
        waiting: Waiting {
            recipients: waiting,
            goes_to_legacy: !later && way_by(gate, moves, stream, at) == StreamWay::Legacy,
        },
        today: if later { None } else { outlook(gate, ledger, &going(now), 0) },
        first_day: outlook(gate, ledger, &going(gate.calendar().span(first).starts), ahead),
    }
}

fn row(gate: &WarmupGate, ledger: &Ledger, id: StreamId, name: String, now: Timestamp) -> StreamRow {
    let rules = gate.stream(ledger, id, now);
    let total = ledger.lane(LaneId::TOTAL);
    let offered = |day: Day| total.map_or(0, |lane| lane.stream_on(id, day).offered);
    let today = total.map_or(Day(0), |lane| lane.today.day);
    let held = ledger.totals().filter(|(_, stream, state, _)| *stream == id && *state == State::Held);
    StreamRow {
        name,
        way: rules.route.into(),
        configured: gate.configured(id).route.into(),
        configured_at: None,
        moved: ledger.move_of(id, now).map(shown),
        to_come: to_come(ledger.moves(id), now),
        priority: rules.priority,
        max_share: rules.max_share,
        overflow: match rules.overflow() {
            Overflow::Legacy => "legacy",
            Overflow::HoldThenLegacy { .. } => "hold-then-legacy",
            Overflow::Hold => "hold",
        }
        .into(),
        max_wait_seconds: rules.overflow().max_wait().map(|wait| wait.as_secs()),
        max_wait_auto: rules.auto_wait,
        offered_today: offered(today),
        offered_yesterday: offered(Day(today.0 - 1)),
        offered_7d: (1..=WEEK_DAYS).map(|back| offered(Day(today.0 - back))).sum(),
        new_today: total.map_or(0, |lane| lane.stream_today(id).reserved),
        held: held.map(|(.., total)| total.recipients).sum(),
    }
}

/// Where the stream's mail goes at `at`, as things stand now.
fn way(gate: &WarmupGate, ledger: &Ledger, stream: StreamId, at: Timestamp) -> StreamWay {
    ledger.way_of(stream, at).unwrap_or(gate.configured(stream).route)
}

/// The same, if these were the moves.
fn way_by(gate: &WarmupGate, moves: &[StreamMove], stream: StreamId, at: Timestamp) -> StreamWay {
    let told = moves.iter().filter(|told| told.at <= at).max_by_key(|told| (told.at, told.id));
    told.map_or(gate.configured(stream).route, |told| told.to)
}

fn to_come(moves: &[StreamMove], after: Timestamp) -> Vec<ToldMove> {
    let mut all: Vec<&StreamMove> = moves.iter().filter(|told| told.at > after).collect();
    all.sort_by_key(|told| (told.at, told.id));
    all.into_iter().map(shown).collect()
}

pub(super) fn shown(told: &StreamMove) -> ToldMove {
    let StreamMove { to, at, told, actor, ref reason, .. } = *told;
    ToldMove { to: to.into(), at, told, actor, reason: reason.clone() }
}

/// Why a move changes nothing.
fn already(
    gate: &WarmupGate,
    ledger: &Ledger,
    stream: StreamId,
    name: &str,
    to: StreamWay,
    at: Timestamp,
    now: Timestamp,
) -> String {
    let source = match ledger.move_of(stream, at) {
        Some(told) => format!("uid {} has moved it there", told.actor),
        None => "the settings say so".into(),
    };
    let will = if at > now { "will be" } else { "is" };
    let mut text = format!("{name} {will} on {} already: {source}", to.name());
    if let Some(next) = to_come(ledger.moves(stream), at).first() {
        let zone = gate.calendar().zone();
        text += &format!(
            "; it goes to {} at {}, which `mailramp streams undo {name}` takes back if it was told last",
            next.to.text(),
            local(next.at, zone)
        );
    }
    text
}

fn in_few_words(reason: &str) -> Result<String, BackendError> {
    let reason = reason.trim();
    if reason.chars().count() > WORDS_MOST_CHARS || reason.chars().any(char::is_control) {
        return Err(BackendError::Refused(format!("a reason is one line of at most {WORDS_MOST_CHARS} characters")));
    }
    Ok(reason.to_owned())
}

fn from_when(at: Option<Timestamp>) -> String {
    at.map_or(String::new(), |at| format!(" from {} on", utc(at)))
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn utc(at: Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(|_| "never".into(), |at| format!("{at:.0}"))
}

fn local(at: Timestamp, zone: &jiff::tz::TimeZone) -> String {
    let at = jiff::Timestamp::from_nanosecond(i128::from(at.0)).expect("64-bit nanoseconds end in 2262, jiff in 9999");
    zone.to_datetime(at).strftime("%Y-%m-%d %H:%M").to_string()
}
