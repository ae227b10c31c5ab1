//! What an operator tells the ramp, and who told it what: the [`crate::admin::Backend`]'s part of `mailramp warmup` and
//! `mailramp audit`.
//!
//! A change is one transaction of the spool, with its entry in the audit, its line in the log and its count. What would
//! change nothing is refused before.

use std::time::Duration;

use super::backend::{RelayBackend, unavailable};
use super::gate::WarmupGate;
use super::lanes;
use crate::admin::BackendError;
use crate::admin::api::{AuditEntry, AuditPage, Change, ChangeAnswer, ChangeOrder};
use crate::admin::warmup::{BRAKE_SECONDS, DAY_MOST};
use crate::clock::Clock;
use crate::message::{BrakeLevel, BrakeRecord, LaneId, Pause, Route, StageStep, Timestamp};
use crate::metrics::WarmupAction;
use crate::spool::by_hand::Audit;
use crate::spool::{Chore, Ledger, Telling, Told, What};

/// Entries of the audit in one answer: all that are kept.
const AUDIT_MOST: usize = 10_000;

impl RelayBackend {
    pub(super) async fn changed(&self, order: ChangeOrder, actor: u32) -> Result<ChangeAnswer, BackendError> {
        if self.dry_run.is_some() && matches!(order.change, Change::SetDay { .. }) && !order.dry_run {
            return Err(BackendError::Refused(
                "this is a dry run: the ramp stands still, its day cannot be set".into(),
            ));
        }
        let (gate, asked, has_legacy) =
            (self.gate.current(), order.clone(), self.routes.current().pool(Route::Legacy).is_some());
        let look = move |ledger: &Ledger, now| prepared(&gate, ledger, &asked, actor, now);
        let (what, answer) = self.spool.look(look).await.map_err(unavailable)??;
        let answer = ChangeAnswer { has_legacy, ..answer };
        if order.dry_run {
            return Ok(answer);
        }
        let audit = Audit { job: self.next_job(), actor, detail: detail(&order, &answer) };
        let same = self.dry_run.as_ref().map(|_| what.clone());
        let braked = if let What::Brake { lane, .. } = &what { Some(*lane) } else { None };
        let told = self.spool.chore(Chore::Tell(Telling { what, audit: Some(audit) })).await.map_err(unavailable)?.told;
        if let Some(Told::Nothing(why)) = told.as_deref() {
            return Err(BackendError::NoChange((*why).into()));
        }
        if let (Some(dry_run), Some(what)) = (&self.dry_run, same) {
            dry_run.tell(&what);
        }
        self.metrics.warmup_admin_actions.of(label(&order.change)).inc();
        log(&order, actor);
        self.routes.current().nudge();
        if let Some(lane) = braked {
            self.brakes.told_by_hand(lane).await.map_err(unavailable)?;
        }
        Ok(answer)
    }

    pub(super) async fn audited(&self, since_seconds: u64) -> Result<AuditPage, BackendError> {
        let since = Timestamp(self.clock.now().0.saturating_sub_unsigned(since_seconds.saturating_mul(1_000_000_000)));
        let reader = self.reader.clone();
        let found = self.blocking(move || reader.audit(since, AUDIT_MOST)).await?.map_err(unavailable)?;
        let entry = |audited: crate::spool::reader::Audited| AuditEntry {
            at: audited.at,
            actor: audited.actor,
            action: audited.action,
            detail: audited.detail,
            messages: audited.did.items,
            recipients: audited.did.recipients,
            bytes: audited.did.bytes,
        };
        Ok(AuditPage { entries: found.into_iter().map(entry).collect() })
    }
}

/// What the spool is to be told, and what it will do; refused when it makes no sense or no difference.
fn prepared(
    gate: &WarmupGate,
    ledger: &Ledger,
    order: &ChangeOrder,
    actor: u32,
    now: Timestamp,
) -> Result<(What, ChangeAnswer), BackendError> {
    let brakes = gate.brake_rules();
    let unchanged = |why: String| Err(BackendError::NoChange(why));
    let mut answer = ChangeAnswer {
        change: order.change.clone(),
        dry_run: order.dry_run,
        now,
        waiting: lanes::waiting(ledger, LaneId::TOTAL),
        has_legacy: false,
        lanes: Vec::new(),
        until: None,
    };
    if gate.rules().is_none() && matches!(order.change, Change::BrakeSet { .. } | Change::BrakeRelease { .. }) {
        let why = "no [warmup] is configured, so no lane has a brake; `mailramp warmup pause` stops new";
        return Err(BackendError::Refused(why.into()));
    }
    let what = match &order.change {
        Change::Pause => {
            if let Some(pause) = ledger.pause() {
                return unchanged(format!("new is paused already, by {}: {}", user(pause.actor), pause.reason));
            }
            What::Pause(Pause { since: now, actor, reason: order.reason.clone() })
        }
        Change::Resume if ledger.pause().is_none() => return unchanged("new is not paused".into()),
        Change::Resume => What::Resume,
        Change::SetDay { day } => {
            if !(1..=DAY_MOST).contains(day) {
                return Err(BackendError::Refused(format!("a day is a number from 1 to {DAY_MOST}")));
            }
            answer.lanes = lanes::set_day(gate, ledger, day - 1, now);
            if answer.lanes.is_empty() {
                return unchanged("there is no ramp to set: it has not begun, or no [warmup] is configured".into());
            }
            if answer.lanes.iter().all(lanes::changes_nothing) {
                return unchanged(format!("the ramp stands at day {day}: neither today nor tomorrow would change"));
            }
            What::SetDay { stage: day - 1 }
        }
        Change::BrakeSet { provider, for_seconds } => {
            if !BRAKE_SECONDS.contains(for_seconds) {
                return Err(BackendError::Refused("a brake can be set for one minute up to 30 days".into()));
            }
            let lane = lane(ledger, provider)?;
            let until = now.after(Duration::from_secs(*for_seconds));
            let before = standing(ledger, lane);
            let (level, ends) = brakes.phase(&before, now);
            if level >= BrakeLevel::Suspended && ends >= until {
                let ends = if ends == Timestamp::NEVER { "until it is released" } else { "for longer than that" };
                return unchanged(format!("{provider} is braked already, {ends}: {}", before.reason));
            }
            (answer.until, answer.waiting) = (Some(until), lanes::waiting(ledger, lane));
            let reason = format!("by {}: {}", user(actor), order.reason);
            let record = BrakeRecord {
                level: BrakeLevel::Suspended,
                since: now,
                until,
                step: before.step,
                touched: true,
                reason,
            };
            What::Brake { lane, record }
        }
        Change::BrakeRelease { provider } => {
            let lane = lane(ledger, provider)?;
            let before = standing(ledger, lane);
            if brakes.level(&before, now) == BrakeLevel::Open && before.step != StageStep::Freeze {
                return unchanged(format!("no brake of {provider} is on"));
            }
            answer.waiting = lanes::waiting(ledger, lane);
            What::Brake { lane, record: BrakeRecord { touched: true, ..brakes.released(&before) } }
        }
    };
    Ok((what, answer))
}

fn lane(ledger: &Ledger, provider: &str) -> Result<LaneId, BackendError> {
    lanes::named(ledger, provider).ok_or_else(|| {
        let provider = crate::log::printable(provider);
        let known = lanes::names(ledger).join(", ");
        BackendError::Refused(format!("there is no lane `{provider}`; there are: {known}"))
    })
}

fn standing(ledger: &Ledger, lane: LaneId) -> BrakeRecord {
    ledger.lane(lane).map(|lane| lane.brake.clone()).unwrap_or_default()
}

fn log(order: &ChangeOrder, actor: u32) {
    let (action, reason) = (format_args!("warmup.{}", word(&order.change)), &order.reason);
    match &order.change {
        Change::Pause | Change::Resume => {
            tracing::warn!(event = "admin.action", action = %action, actor, reason = %reason);
        }
        Change::SetDay { day } => {
            tracing::warn!(event = "admin.action", action = %action, actor, day, reason = %reason);
        }
        Change::BrakeSet { provider, .. } | Change::BrakeRelease { provider } => {
            tracing::warn!(event = "admin.action", action = %action, actor, provider = %provider, reason = %reason);
        }
    }
}

/// The word of the log.
fn word(change: &Change) -> &'static str {
    match change {
        Change::Pause => "pause",
        Change::Resume => "resume",
        Change::SetDay { .. } => "set-day",
        Change::BrakeSet { .. } => "brake-set",
        Change::BrakeRelease { .. } => "brake-release",
    }
}

fn label(change: &Change) -> WarmupAction {
    match change {
        Change::Pause => WarmupAction::Pause,
        Change::Resume => WarmupAction::Resume,
        Change::SetDay { .. } => WarmupAction::SetDay,
        Change::BrakeSet { .. } => WarmupAction::BrakeSet,
        Change::BrakeRelease { .. } => WarmupAction::BrakeRelease,
    }
}

/// What the audit says was asked for, and why.
fn detail(order: &ChangeOrder, answer: &ChangeAnswer) -> String {
    let reason = &order.reason;
    match &order.change {
        Change::Pause | Change::Resume => reason.clone(),
        Change::SetDay { day } => match answer.lanes.first() {
            Some(total) => format!("day {} -> {day}: {reason}", total.day_before),
            None => format!("day {day}: {reason}"),
        },
        Change::BrakeSet { provider, for_seconds } => format!("{provider} suspended for {for_seconds} s: {reason}"),
        Change::BrakeRelease { provider } => format!("{provider} released: {reason}"),
    }
}

/// A user as people read it.
fn user(id: u32) -> String {
    if id == 0 { "root".into() } else { format!("uid {id}") }
}
