//! Which stream a message belongs to.
//!
//! In this order: the stream that its tag names; the first rule that matches; the stream of the listener; the last resort.
//! A rule names kinds of facts with values: every kind it names has to match, by any of its values.
//!
//! A tag counts only where its sender may give one; who has to make sure of that is the front door. One that names neither
//! a stream nor a rule's `header` changes nothing ([`Streams::knows_tag`]).

use core::net::IpAddr;

use ipnet::IpNet;

use super::mailbox::{Mailbox, Pattern, mailboxes};
use crate::message::StreamId;

/// What is known of a message when it is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What stands behind the colon of its `From:`.
    pub from: Option<&'a [u8]>,
    /// The envelope's; stands in for a `From:` that is missing or cannot be read.
    pub sender: &'a [u8],
    pub user: Option<&'a str>,
    /// The value of `X-Mailramp-Stream`.
    pub tag: Option<&'a [u8]>,
    /// Index of the listener it came by.
    pub listener: usize,
    pub client: IpAddr,
}

/// What mail of one stream has in common. An empty list is a kind that does not matter; at least one is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub from: Vec<Pattern>,
    /// Names of logins, exactly.
    pub users: Vec<String>,
    /// Values of the tag, in any case.
    pub tags: Vec<String>,
    /// Indices.
    pub listeners: Vec<usize>,
    pub clients: Vec<IpNet>,
}

impl Rule {
    /// Whatever `other` matches this one matches too, as far as the values alone tell.
    pub fn covers(&self, other: &Rule) -> bool {
        each_covered(&self.from, &other.from, Pattern::covers)
            && each_covered(&self.users, &other.users, |wide, narrow| wide == narrow)
            && each_covered(&self.tags, &other.tags, |wide, narrow| wide.eq_ignore_ascii_case(narrow))
            && each_covered(&self.listeners, &other.listeners, |wide, narrow| wide == narrow)
            && each_covered(&self.clients, &other.clients, |wide, narrow| wide.contains(narrow))
    }

    fn matches(&self, facts: &Facts<'_>, authors: &[Mailbox]) -> bool {
        let tag = |wanted: &String| facts.tag.is_some_and(|tag| tag.eq_ignore_ascii_case(wanted.as_bytes()));
        let user = |wanted: &String| facts.user == Some(wanted);
        let client = facts.client.to_canonical();
        any_or_empty(&self.tags, tag)
            && any_or_empty(&self.users, user)
            && any_or_empty(&self.listeners, |listener| *listener == facts.listener)
            && any_or_empty(&self.clients, |network| network.contains(&client))
            && any_or_empty(&self.from, |pattern| authors.iter().any(|author| pattern.matches(author)))
    }
}

/// Each of `narrow` lies in one of `wide`; an empty `wide` is everything, an empty `narrow` lies in nothing else.
fn each_covered<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    let in_one = |narrow| wide.iter().any(|wide| covers(wide, narrow));
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(in_one))
}

fn any_or_empty<T>(values: &[T], matches: impl FnMut(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(matches)
}

/// One stream with its id.
#[derive(Clone, Debug)]
pub struct Named {
    pub id: StreamId,
    /// In lower case.
    pub name: String,
    pub rule: Rule,
}

/// All streams that mail can belong to.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// In the order in which their rules are tried. The last resort is not among them.
    named: Vec<Named>,
    /// By index of the listener.
    listeners: Vec<Option<StreamId>>,
    /// A rule asks for `From:`.
    ask_from: bool,
}

/// The name of the last resort, which a tag may give too.
pub const DEFAULT_STREAM: &str = "default";

impl Streams {
    /// `listeners` by index: the stream of mail that no rule matches.
    pub fn new(named: Vec<Named>, listeners: Vec<Option<StreamId>>) -> Self {
        let ask_from = named.iter().any(|stream| !stream.rule.from.is_empty());
        Streams { named, listeners, ask_from }
    }

    /// The stream's name, for the log. One that the settings do not know is treated as the last resort.
    pub fn name(&self, id: StreamId) -> &str {
        self.named.iter().find(|stream| stream.id == id).map_or(DEFAULT_STREAM, |stream| &stream.name)
    }

    pub fn classify(&self, facts: &Facts<'_>) -> StreamId {
        if let Some(stream) = facts.tag.and_then(|tag| self.tagged(tag)) {
            return stream;
        }
        let authors = if self.ask_from { authors(facts) } else { Vec::new() };
        let rule = self.named.iter().find(|stream| stream.rule.matches(facts, &authors)).map(|stream| stream.id);
        rule.or_else(|| self.listeners.get(facts.listener).copied().flatten()).unwrap_or(StreamId::DEFAULT)
    }

    /// The tag names a stream, or a rule asks for it.
    pub fn knows_tag(&self, tag: &[u8]) -> bool {
        let asks = |stream: &Named| stream.rule.tags.iter().any(|wanted| tag.eq_ignore_ascii_case(wanted.as_bytes()));
        self.tagged(tag).is_some() || self.named.iter().any(asks)
    }

    fn tagged(&self, tag: &[u8]) -> Option<StreamId> {
        let is = |name: &str| tag.eq_ignore_ascii_case(name.as_bytes());
        let named = self.named.iter().find(|stream| is(&stream.name)).map(|stream| stream.id);
        named.or_else(|| is(DEFAULT_STREAM).then_some(StreamId::DEFAULT))
    }
}

/// Of the `From:`, or of the envelope where that says nothing.
fn authors(facts: &Facts<'_>) -> Vec<Mailbox> {
    let authors = facts.from.map(mailboxes).unwrap_or_default();
    if authors.is_empty() { Mailbox::of_path(facts.sender).into_iter().collect() } else { authors }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'static> = Facts {
        from: Some(b" Digest <digest@example.com>\r\n"),
        sender: b"bounces@example.com",
        user: Some("app"),
        tag: None,
        listener: 1,
        client: IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 7)),
    };

    fn from(patterns: &[&str]) -> Rule {
        Rule { from: patterns.iter().map(|text| text.parse().unwrap()).collect(), ..Rule::default() }
    }

    fn clients(networks: &[&str]) -> Rule {
        Rule { clients: networks.iter().map(|text| text.parse().unwrap()).collect(), ..Rule::default() }
    }

    fn users(users: &[&str]) -> Rule {
        Rule { users: users.iter().map(ToString::to_string).collect(), ..Rule::default() }
    }

    fn tags(tags: &[&str]) -> Rule {
        Rule { tags: tags.iter().map(ToString::to_string).collect(), ..Rule::default() }
    }

    /// Streams 5, 6, … in this order, called `s5`, `s6`, …; listener 1 belongs to stream 9.
    fn streams(rules: &[Rule]) -> Streams {
        let named = |(rule, id): (&Rule, u8)| Named { id: StreamId(id), name: format!("s{id}"), rule: rule.clone() };
        Streams::new(rules.iter().zip(5..).map(named).collect(), vec![None, Some(StreamId(9))])
    }

    #[test]
    fn every_kind_that_a_rule_names_has_to_match_by_any_of_its_values() {
        let digest = from(&["x@example.com", "digest@example.com"]);
        for (rule, matches) in [
            (digest.clone(), true),
            (Rule { users: vec!["other".into(), "app".into()], ..digest.clone() }, true),
            (Rule { users: vec!["other".into()], ..digest.clone() }, false),
            (Rule { users: vec!["App".into()], ..digest.clone() }, false),
            (Rule { listeners: vec![0, 1], ..digest.clone() }, true),
            (Rule { listeners: vec![0], ..digest.clone() }, false),
            (Rule { clients: clients(&["192.0.2.0/24"]).clients, ..digest.clone() }, true),
            (Rule { clients: clients(&["198.51.100.0/24"]).clients, ..digest.clone() }, false),
            (Rule { tags: vec!["weekly".into()], ..digest.clone() }, false),
            (from(&["*@example.org"]), false),
        ] {
            let expected = if matches { StreamId(5) } else { StreamId(9) };
            assert_eq!(streams(std::slice::from_ref(&rule)).classify(&FACTS), expected, "{rule:?}");
        }
    }

    #[test]
    fn the_tag_goes_first_then_the_rules_in_order_then_the_listener_then_the_last_resort() {
        let all = streams(&[users(&["app"]), from(&["*@example.com"]), tags(&["Weekly"])]);
        let by = |tag: Option<&'static str>, user, from, listener| {
            let tag = tag.map(str::as_bytes);
            all.classify(&Facts { tag, user, from, listener, ..FACTS })
        };
        assert_eq!(by(Some("S6"), Some("app"), FACTS.from, 1), StreamId(6), "the tag names a stream");
        assert_eq!(by(Some("default"), Some("app"), FACTS.from, 1), StreamId::DEFAULT);
        assert_eq!(by(Some("unknown"), Some("app"), FACTS.from, 1), StreamId(5), "an unknown tag is ignored");
        assert_eq!(by(None, Some("app"), FACTS.from, 1), StreamId(5), "the first rule wins");
        assert_eq!(by(Some("weekly"), Some("app"), FACTS.from, 1), StreamId(5), "a rule's header is one kind of many");
        assert_eq!(by(Some("weekly"), None, Some(b" a@b.example"), 1), StreamId(7));
        assert_eq!(by(None, None, FACTS.from, 1), StreamId(6));
        assert_eq!(by(None, None, Some(b" a@b.example"), 1), StreamId(9), "of the listener");
        assert_eq!(by(None, None, Some(b" a@b.example"), 0), StreamId::DEFAULT);
        assert!(all.knows_tag(b"WEEKLY") && all.knows_tag(b"s7") && !all.knows_tag(b"unknown") && !all.knows_tag(b""));
    }

    #[test]
    fn the_envelope_stands_in_where_from_says_nothing() {
        let all = streams(&[from(&["bounces@example.com"])]);
        for (from, expected) in [
            (None, 5),
            (Some(&b""[..]), 5),
            (Some(b" undisclosed"), 5),
            (Some(b" a@b.example"), 9),
            (Some(b" a@b.example, bounces@example.com"), 5),
        ] {
            assert_eq!(all.classify(&Facts { from, ..FACTS }), StreamId(expected), "{from:?}");
        }
        assert_eq!(all.classify(&Facts { from: None, sender: b"", ..FACTS }), StreamId(9), "a report");
    }

    #[test]
    fn an_ipv4_client_is_the_same_client_on_an_ipv6_listener() {
        let facts = Facts { client: "::ffff:192.0.2.7".parse().unwrap(), ..FACTS };
        assert_eq!(streams(&[clients(&["192.0.2.0/24"])]).classify(&facts), StreamId(5));
    }

    #[test]
    fn a_rule_covers_what_is_narrower_in_every_kind() {
        let (wide, app) = (from(&["*@example.com", "*@example.org"]), users(&["app", "web"]));
        for (earlier, later, covers) in [
            (&wide, &from(&["a@example.com", "b@example.org"]), true),
            (&wide, &from(&["a@example.com", "b@example.net"]), false),
            (&wide, &Rule { users: vec!["app".into()], ..from(&["a@example.com"]) }, true),
            (&app, &users(&["app"]), true),
            (&users(&["app"]), &app, false),
            (&app, &wide, false),
            (&clients(&["10.0.0.0/8"]), &clients(&["10.1.0.0/16"]), true),
            (&clients(&["10.1.0.0/16"]), &clients(&["10.0.0.0/8"]), false),
            (&tags(&["A"]), &tags(&["a"]), true),
        ] {
            assert_eq!(earlier.covers(later), covers, "{earlier:?} and {later:?}");
        }
    }
}
