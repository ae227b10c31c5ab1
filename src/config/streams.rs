//! `[[streams]]`: can each of them ever match, and what it comes to once the rest of the settings is known.
//!
//! A stream that no mail can reach is a mistake somebody would find out weeks later, so it is refused like any other.

use std::time::Duration;

use super::choices::*;
use super::keys;
use super::model::*;
use super::tables::{MatchTable, StreamOverflow, StreamTable, Tables};
use super::validate::Judge;
use crate::policy::classify::{DEFAULT_STREAM, Rule};

/// Most of them. With the last resort they are the label values of metrics.
const STREAMS_MAX: usize = 32;
const DEFAULT_WAIT: Duration = Duration::from_secs(15 * 60);
const KINDS: [&str; 5] = ["from", "auth_user", "header", "listener", "client"];

/// Judges the streams and what listeners say of them.
pub(super) fn judge(tables: &Tables, judge: &mut Judge<'_>) {
    if tables.streams.len() > STREAMS_MAX {
        let must = format!("must not be: there may be at most {STREAMS_MAX} streams; remove the rest");
        judge.fault(&[&format!("streams[{STREAMS_MAX}].name")], &must);
    }
    for (index, stream) in tables.streams.iter().take(STREAMS_MAX).enumerate() {
        name(index, stream, tables, judge);
        reachable(index, &stream.matches, tables, judge);
        shadowed(index, tables, judge);
        rules(index, stream, tables, judge);
    }
    let names: Vec<String> = (0..tables.streams.len()).map(|index| key(index, "name")).collect();
    for (index, listener) in tables.listeners.iter().enumerate() {
        let Some(wanted) = &listener.stream else { continue };
        let known = || tables.streams.iter().map(|stream| stream.name.as_str()).chain([DEFAULT_STREAM]);
        if !known().any(|known| known == wanted) {
            let meant = keys::nearest(wanted, known()).map(|name| format!(", did you mean \"{name}\"?"));
            let must = format!("must be the name of one of [[streams]], or \"\"{}", meant.unwrap_or_default());
            let of_listener = format!("listeners[{index}].stream");
            let involved: Vec<&str> =
                [of_listener.as_str()].into_iter().chain(names.iter().map(String::as_str)).collect();
            judge.fault(&involved, &must);
        }
    }
}

fn key(index: usize, name: &str) -> String {
    format!("streams[{index}].{name}")
}

fn name(index: usize, stream: &StreamTable, tables: &Tables, judge: &mut Judge<'_>) {
    let here = key(index, "name");
    match stream.name.as_str() {
        "" => judge.fault(&[&here], "must be a name of its own, such as \"digest\""),
        DEFAULT_STREAM => {
            let must = "must be another name: this one is of all mail that no rule matches, which goes by [warmup]";
            judge.fault(&[&here], must);
        }
        name => {
            if let Some(other) = tables.streams[..index].iter().position(|other| other.name == name) {
                judge.fault(&[&here, &key(other, "name")], &format!("must be another name: `streams[{other}]` has it"));
            }
        }
    }
}

/// Each kind that the rule names can match some mail.
fn reachable(index: usize, matches: &MatchTable, tables: &Tables, judge: &mut Judge<'_>) {
    let keys = KINDS.map(|kind| key(index, &format!("match.{kind}")));
    let [_, user, header, listener, client] = keys.each_ref().map(String::as_str);
    let set: Vec<&String> = keys.iter().filter(|key| judge.has(key)).collect();
    if set.is_empty() {
        let whole = key(index, "match");
        let involved: Vec<&str> = [whole.as_str()].into_iter().chain(keys.iter().map(String::as_str)).collect();
        judge.fault(&involved, "must name at least one of from, auth_user, header, listener and client");
    }
    let lengths = [
        matches.from.len(),
        matches.auth_user.len(),
        matches.header.len(),
        matches.listener.len(),
        matches.client.len(),
    ];
    for (key, _) in keys.iter().zip(lengths).filter(|(key, length)| set.contains(key) && *length == 0) {
        judge.fault(&[key], "must hold at least one value; or leave it out");
    }
    for address in &matches.listener {
        if !tables.listeners.iter().any(|listener| listener.bind.contains(address)) {
            judge.fault(&[listener], &format!("must hold addresses as in `bind` of [[listeners]]; none has {address}"));
        }
    }
    let by_any = matches.listener.is_empty();
    let comes_by = |l: &&Listener| by_any || l.bind.iter().any(|bind| matches.listener.contains(bind));
    let doors: Vec<&Listener> = tables.listeners.iter().filter(comes_by).collect();
    if doors.is_empty() {
        return;
    }
    let of_theirs = if by_any { "a listener" } else { "one of these listeners" };
    if !matches.header.is_empty() && !doors.iter().any(|l| l.stream_header) {
        judge.fault(&[header], &format!("must be left out unless {of_theirs} has `stream_header = true`"));
    }
    if !matches.auth_user.is_empty() && doors.iter().all(|l| l.auth == ListenerAuth::Off) {
        judge.fault(&[user], &format!("must be left out unless {of_theirs} has a login; set its `auth`"));
    }
    for tag in &matches.header {
        let other = |(at, stream): &(usize, &StreamTable)| *at != index && stream.name.eq_ignore_ascii_case(tag);
        if tables.streams.iter().enumerate().any(|stream| other(&stream)) || tag.eq_ignore_ascii_case(DEFAULT_STREAM) {
            let must = format!("must not hold \"{tag}\": mail with this tag belongs to the stream of that name");
            judge.fault(&[header], &must);
        }
    }
    let admits = |net: &ipnet::IpNet| {
        let overlaps = |allowed: &ipnet::IpNet| allowed.contains(net) || net.contains(allowed);
        doors.iter().any(|l| l.auth != ListenerAuth::Off || l.allow_from.iter().any(overlaps))
    };
    if let Some(net) = matches.client.iter().find(|net| !admits(net)) {
        let must = format!("must hold networks that may send: no `allow_from` of {of_theirs} admits {net}");
        judge.fault(&[client], &must);
    }
}

/// Whatever the rule matches goes to an earlier stream.
fn shadowed(index: usize, tables: &Tables, judge: &mut Judge<'_>) {
    let later = rule(&tables.streams[index].matches, &tables.listeners);
    if later == Rule::default() {
        return;
    }
    let earlier = tables.streams[..index].iter().position(|earlier| {
        let earlier = rule(&earlier.matches, &tables.listeners);
        earlier != Rule::default() && earlier.covers(&later)
    });
    let Some(other) = earlier else { return };
    let of = |index: usize| KINDS.map(|kind| key(index, &format!("match.{kind}")));
    let (mut involved, others) = (of(index).to_vec(), of(other));
    // The fault stands at a value there is.
    involved.sort_by_key(|key| !judge.has(key));
    involved.extend(others);
    let name = &tables.streams[other].name;
    let must = format!(
        "must match something that stream \"{name}\" (`streams[{other}]`) does not: the first that matches wins, so no \
         mail would get here; put this stream before that one, or remove it"
    );
    judge.fault(&involved.iter().map(String::as_str).collect::<Vec<_>>(), &must);
}

fn rules(index: usize, stream: &StreamTable, tables: &Tables, judge: &mut Judge<'_>) {
    judge.count(&key(index, "priority"), stream.priority, 0, 100);
    let share = key(index, "max_share");
    judge.require(
        stream.max_share > 0.0,
        &[&share],
        "must be above \"0%\"; to keep a stream back, set `route` to \"legacy\"",
    );
    let route = key(index, "route");
    judge.require(
        stream.route != StreamRoute::Legacy || tables.legacy.is_some(),
        &[&route, "legacy"],
        "must be \"ramp\" or \"new\" when there is no [legacy]; or add [legacy]",
    );
    let section = key(index, "overflow");
    if let Some(policy) = stream.overflow.policy {
        judge.overflow_policy(&section, policy, tables.legacy.is_some());
    }
    if let Some(max_wait) = stream.overflow.max_wait {
        judge.max_wait(&section, stream.overflow.policy.unwrap_or(base(tables.warmup.as_ref()).policy), max_wait);
    }
}

/// What streams do that say nothing else.
fn base(warmup: Option<&Warmup>) -> Overflow {
    let default = Overflow { policy: OverflowPolicy::HoldThenLegacy, max_wait: MaxWait::Time(DEFAULT_WAIT) };
    warmup.map_or(default, |warmup| warmup.overflow)
}

/// The streams as they take effect. `warmup` as it stands in the file.
pub(super) fn resolve(
    streams: Vec<StreamTable>,
    listeners: &[Listener],
    warmup: Option<&Warmup>,
    has_legacy: bool,
) -> Vec<Stream> {
    let base = base(warmup);
    let stream = |table: StreamTable| {
        let StreamOverflow { policy, max_wait } = table.overflow;
        let overflow = Overflow { policy: policy.unwrap_or(base.policy), max_wait: max_wait.unwrap_or(base.max_wait) };
        Stream {
            rule: rule(&table.matches, listeners),
            name: table.name,
            route: table.route,
            priority: u8::try_from(table.priority).unwrap_or(u8::MAX),
            max_share: Some(table.max_share).filter(|share| *share < 1.0),
            overflow: overflow.in_effect(has_legacy),
        }
    };
    streams.into_iter().map(stream).collect()
}

fn rule(matches: &MatchTable, listeners: &[Listener]) -> Rule {
    let named = |listener: &Listener| listener.bind.iter().any(|bind| matches.listener.contains(bind));
    Rule {
        from: matches.from.clone(),
        users: matches.auth_user.clone(),
        tags: matches.header.clone(),
        listeners: (0..listeners.len()).filter(|index| named(&listeners[*index])).collect(),
        clients: matches.client.clone(),
    }
}
