//! The queue as an operator sees and changes it: listings, one message, and what is done by hand.
//!
//! A change is two calls: what matches is named as of one moment, then worked on piece by piece. The pieces go through
//! the committer as chores, so deliveries go on between them.

use std::sync::atomic::Ordering;

use super::backend::{RelayBackend, unavailable};
use crate::admin::BackendError;
use crate::admin::api::{
    ItemState, LeftAlone, MaskedAddress, QueueAction, QueueFilter, QueuePage, QueueRow, QueueStep, Selection,
    ShownMessage, ShownPart, StepAnswer,
};
use crate::admin::queue::{SELECTION_MOST_ITEMS, STEP_MOST_ITEMS};
use crate::clock::Clock;
use crate::log::{Addresses, printable};
use crate::message::{QueueId, Route, StreamId, Timestamp};
use crate::metrics::AdminAction;
use crate::spool::by_hand::{Action, Audit, Left, Order, judge};
use crate::spool::reader::{Count, ItemFilter};
use crate::spool::{BodySource, Chore, Item, ItemId, State};

/// Recipients of one part that `queue show` names.
const SHOWN_RECIPIENTS: usize = 50;
/// Octets of a message looked at for its header block.
const HEADER_MOST_OCTETS: usize = 64 << 10;

impl RelayBackend {
    pub(super) async fn list(&self, filter: QueueFilter, limit: usize) -> Result<QueuePage, BackendError> {
        let wanted = self.filter(&filter)?;
        let reader = self.reader.clone();
        let (items, count) = self
            .blocking(move || Ok((reader.list(&wanted, ItemId(0), limit)?, reader.count(&wanted)?)))
            .await?
            .map_err(unavailable)?;
        Ok(QueuePage {
            rows: items.iter().map(|item| self.row(item)).collect(),
            messages: count.items,
            recipients: count.recipients,
            now: self.clock.now(),
        })
    }

    fn row(&self, item: &Item) -> QueueRow {
        let first = item.envelope.recipients.first().map(|r| r.path.clone()).unwrap_or_default();
        QueueRow {
            id: item.message.to_string(),
            accepted: item.accepted,
            stream: self.stream_name(item.stream),
            state: shown_state(item.state),
            route: Some(item.queue.route().name().into()),
            to: MaskedAddress::of(&first),
            recipients: item.recipients(),
            bytes: item.size,
            attempts: item.attempts,
            next: match item.state {
                State::Deferred => Some(item.due),
                State::Held => item.deadline,
                _ => None,
            },
            last_reply: last_reply(item),
        }
    }

    pub(super) async fn shown(&self, id: &str, headers: bool) -> Result<ShownMessage, BackendError> {
        let wanted = self.filter(&QueueFilter { id: Some(id.into()), ..QueueFilter::default() })?;
        let reader = self.reader.clone();
        let (items, header) = self
            .blocking(move || {
                let items = reader.list(&wanted, ItemId(0), STEP_MOST_ITEMS)?;
                let body = match items.first().filter(|_| headers) {
                    Some(item) => reader.body(item.body)?,
                    None => None,
                };
                Ok((items, body.and_then(|body| header_lines(&body).ok())))
            })
            .await?
            .map_err(unavailable)?;
        let Some(first) = items.first() else {
            return Err(BackendError::Refused(format!("no message {} is in the queue", printable(id))));
        };
        Ok(ShownMessage {
            id: first.message.to_string(),
            now: self.clock.now(),
            accepted: first.accepted,
            stream: self.stream_name(first.stream),
            from: MaskedAddress::of(&first.envelope.reverse_path),
            bytes: first.size,
            parts: items.iter().map(part).collect(),
            headers: header,
        })
    }

    pub(super) async fn selected(
        &self,
        filter: QueueFilter,
        action: QueueAction,
        all: bool,
        ids: bool,
    ) -> Result<Selection, BackendError> {
        let wanted = self.filter(&filter)?;
        let action = self.action(action)?;
        let unfiltered = filter.is_empty() && !all;
        if unfiltered && action != Action::Flush {
            return Err(BackendError::Refused(format!(
                "{} of the whole queue needs --all; or say which messages, by --id, --stream, --state, --rcpt-domain or \
                 --older-than",
                action.name()
            )));
        }
        let reader = self.reader.clone();
        let mut selection = self
            .blocking(move || {
                let (mut count, mut left, mut chosen) = (Count::default(), LeftAlone::default(), Vec::new());
                reader.each(&wanted, |item| {
                    match judge(&item, action) {
                        // Whoever releases what came back with restored data has to say so.
                        Ok(()) if unfiltered && item.state == State::Paused => left.paused += 1,
                        Ok(()) => {
                            count.add(&item, wanted.recipients_of(&item));
                            chosen.push(item.id.0);
                        }
                        Err(why) => {
                            let mut one = Left::default();
                            one.count(why);
                            left.add(&shown_left(&one));
                        }
                    }
                    chosen.len() <= SELECTION_MOST_ITEMS
                })?;
                let Count { items: messages, recipients, bytes } = count;
                Ok(Selection { messages, recipients, bytes, left, job: 0, ids: chosen })
            })
            .await?
            .map_err(unavailable)?;
        if selection.ids.len() > SELECTION_MOST_ITEMS {
            return Err(BackendError::Refused(format!(
                "more than {SELECTION_MOST_ITEMS} messages match; say more narrowly which, such as by --older-than"
            )));
        }
        if !ids {
            selection.ids = Vec::new();
        }
        selection.job = self.next_job();
        Ok(selection)
    }

    /// Names a command of an operator; rises with time.
    pub(super) fn next_job(&self) -> i64 {
        let now = self.clock.now().0;
        let later = |last: i64| Some(now.max(last + 1));
        let last = self.last_job.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later).expect("always some");
        now.max(last + 1)
    }

    pub(super) async fn stepped(&self, step: QueueStep, actor: u32) -> Result<StepAnswer, BackendError> {
        if step.ids.len() > STEP_MOST_ITEMS {
            return Err(BackendError::Refused(format!("at most {STEP_MOST_ITEMS} messages in one step")));
        }
        let action = self.action(step.action)?;
        let wanted = self.filter(&step.filter)?;
        let audit = Audit { job: step.job, actor, detail: detail(action, &step.filter) };
        let ids = step.ids.into_iter().map(ItemId).collect();
        let order = Order { action, ids, domain: wanted.domain, audit };
        let answer = self.spool.chore(Chore::ByHand(order)).await.map_err(unavailable)?;
        let acted = answer.by_hand.unwrap_or_default();
        if acted.is_first {
            self.metrics.queue_admin_actions.of(label(action)).inc();
        }
        tracing::info!(
            event = "admin.action",
            action = %format_args!("queue.{}", action.name()),
            actor,
            job = step.job,
            messages = answer.items,
            rcpts = answer.recipients,
            reason = %detail(action, &step.filter)
        );
        if action == Action::Drop {
            for id in &acted.messages {
                tracing::info!(event = "queue.dropped", id = %id, actor, "removed by an operator");
            }
        } else if answer.items > 0 {
            self.routes.current().nudge();
        }
        Ok(StepAnswer {
            messages: answer.items as u64,
            recipients: answer.recipients,
            bytes: acted.bytes,
            left: shown_left(&acted.left),
        })
    }

    fn action(&self, action: QueueAction) -> Result<Action, BackendError> {
        match action {
            QueueAction::Flush => Ok(Action::Flush),
            QueueAction::Drop => Ok(Action::Drop),
            QueueAction::Reroute(to) => {
                let route = Route::from(to);
                if route == Route::New && self.dry_run.is_some() {
                    return Err(BackendError::Refused("this is a dry run: nothing goes by new".into()));
                }
                if self.routes.current().pool(route).is_none() {
                    return Err(BackendError::Refused("there is no legacy server: [legacy] is not configured".into()));
                }
                Ok(Action::Reroute(route))
            }
        }
    }

    pub(super) fn filter(&self, filter: &QueueFilter) -> Result<ItemFilter, BackendError> {
        let stream = match &filter.stream {
            None => None,
            Some(name) => {
                let streams = self.streams.load();
                let place = streams.iter().position(|known| known == name);
                let known = || format!("there is no stream `{}`; there are: {}", printable(name), streams.join(", "));
                Some(StreamId(place.ok_or_else(|| BackendError::Refused(known()))? as u8))
            }
        };
        let message = match &filter.id {
            None => None,
            Some(id) => Some(id.parse::<QueueId>().map_err(|()| {
                BackendError::Refused(format!("`{}` is no queue id: twelve letters and digits", printable(id)))
            })?),
        };
        let old = filter.older_than_seconds.map(|s| i64::try_from(s).unwrap_or(i64::MAX));
        let accepted_until = old.map(|s| Timestamp(self.clock.now().0.saturating_sub(s.saturating_mul(1_000_000_000))));
        let state = filter.state.map(stored_state);
        let domain = filter.rcpt_domain.as_ref().map(|domain| domain.trim_start_matches('@').to_owned());
        Ok(ItemFilter { stream, state, accepted_until, message, domain })
    }
}

/// Last reply of a next hop, or why it waits.
fn last_reply(item: &Item) -> String {
    match (item.last_reply.is_empty(), item.maybe, item.state) {
        (_, _, State::Paused) => "came back with restored data; release it with `queue flush`".into(),
        (false, ..) => item.last_reply.clone(),
        (_, true, _) => "maybe delivered, stays on its route".into(),
        (.., State::Held) => item.reason.name().into(),
        _ => String::new(),
    }
}

fn part(item: &Item) -> ShownPart {
    let recipients = item.envelope.recipients.iter();
    ShownPart {
        state: shown_state(item.state),
        route: item.queue.route().name().into(),
        reason: item.reason.name().into(),
        maybe_delivered: item.maybe,
        to: recipients.take(SHOWN_RECIPIENTS).map(|r| MaskedAddress::of(&r.path)).collect(),
        recipients: item.recipients(),
        attempts: item.attempts,
        due: item.due,
        deadline: item.deadline,
        expires: item.expires,
        last_reply: item.last_reply.clone(),
    }
}

fn header_lines(body: &BodySource) -> std::io::Result<Vec<String>> {
    let octets = body.read_at(0, HEADER_MOST_OCTETS)?;
    let end = memchr::memmem::find(&octets, b"\r\n\r\n").unwrap_or(octets.len());
    let text = String::from_utf8_lossy(&octets[..end]).into_owned();
    Ok(text.split("\r\n").map(masked).collect())
}

/// The text with every address in it masked.
fn masked(text: &str) -> String {
    let between = |c: char| c.is_whitespace() || "<>()[],;:\"'=".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(between).unwrap_or(rest.len()));
        if word.contains('@') {
            out.push_str(&Addresses::Masked.show(word.as_bytes()));
        } else {
            out.push_str(word);
        }
        let separators = after.find(|c| !between(c)).unwrap_or(after.len());
        out.push_str(&after[..separators]);
        rest = &after[separators..];
    }
    out
}

/// What the audit says was asked for. Which addresses is nobody's business there; the domain is.
fn detail(action: Action, filter: &QueueFilter) -> String {
    let mut text = match action {
        Action::Reroute(to) => format!("reroute to {to}"),
        other => other.name().into(),
    };
    let conditions = [
        ("stream", filter.stream.clone()),
        ("state", filter.state.map(|state| state.text().into())),
        ("older than", filter.older_than_seconds.map(|seconds| format!("{seconds} s"))),
        ("id", filter.id.clone()),
        ("recipient domain", filter.rcpt_domain.clone()),
    ];
    for (name, value) in conditions {
        if let Some(value) = value {
            text.push_str(&format!(", {name} {}", printable(&value)));
        }
    }
    text
}

fn label(action: Action) -> AdminAction {
    match action {
        Action::Flush => AdminAction::Flush,
        Action::Reroute(_) => AdminAction::Reroute,
        Action::Drop => AdminAction::Drop,
    }
}

fn shown_left(left: &Left) -> LeftAlone {
    let Left { in_flight, maybe_delivered, already, dead, damaged, gone } = *left;
    LeftAlone { in_flight, maybe_delivered, already, dead, damaged, paused: 0, gone }
}

const STATES: [(ItemState, State); 7] = [
    (ItemState::Held, State::Held),
    (ItemState::Ready, State::Ready),
    (ItemState::Deferred, State::Deferred),
    (ItemState::Inflight, State::InFlight),
    (ItemState::Paused, State::Paused),
    (ItemState::Dead, State::Dead),
    (ItemState::Quarantined, State::Quarantined),
];

fn stored_state(state: ItemState) -> State {
    STATES.into_iter().find(|(shown, _)| *shown == state).expect("every state is listed").1
}

pub(super) fn shown_state(state: State) -> ItemState {
    STATES.into_iter().find(|(_, stored)| *stored == state).expect("every state is listed").0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_header_lines_are_masked_and_the_rest_stays() {
        for (line, want) in [
            ("To: Dora <dora@example.net>, al@corp.ex", "To: Dora <d***@example.net>, a***@corp.ex"),
            ("Message-ID: <a.b.c@host.example>", "Message-ID: <a***@host.example>"),
            ("\tfor <dora@example.net>; Tue, 10 Mar", "\tfor <d***@example.net>; Tue, 10 Mar"),
            ("Subject: no address", "Subject: no address"),
            (
                "List-Unsubscribe: <mailto:u@x.example?subject=a@b>",
                "List-Unsubscribe: <mailto:u***@x.example?subject=a***@b>",
            ),
            ("", ""),
        ] {
            assert_eq!(masked(line), want);
        }
    }

    #[test]
    fn the_audit_says_what_was_asked_for() {
        let filter = QueueFilter {
            stream: Some("digest\x1b".into()),
            state: Some(ItemState::Held),
            older_than_seconds: Some(3600),
            id: None,
            rcpt_domain: Some("example.net".into()),
        };
        assert_eq!(
            detail(Action::Reroute(Route::Legacy), &filter),
            "reroute to legacy, stream digest\\u001b, state held, older than 3600 s, recipient domain example.net"
        );
        assert_eq!(detail(Action::Drop, &QueueFilter::default()), "drop");
    }
}
