//! What a reply of a mailbox provider means for the ramp: who is limited, why, and what helps.
//!
//! The digit of the code alone never decides: 5xx that are rate limits and 4xx that are blocks both exist. The rules stand in
//! `conf/signals.toml`, each with its source and with examples that are checked whenever the file is read. A reply that no
//! rule knows is an ordinary result. What is done about a signal is the brake's business.

use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use toml::Spanned;

use super::provider::Providers;
use super::rule_file::{self, Faults, FileFault};
pub use crate::message::StageStep;
use crate::reply::{EnhancedCode, Reply};

/// The rules of the program.
pub const EMBEDDED: &str = include_str!("../../conf/signals.toml");
/// Stands for every provider.
pub const ANY: &str = "*";

/// What the provider objects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Too much at once.
    Rate,
    /// Who sends.
    Reputation,
    /// One mailbox is flooded or closed for now; says nothing of the sender.
    Mailbox,
    /// What is sent.
    Content,
    /// SPF, DKIM or DMARC.
    Auth,
    /// Our settings or DNS: reverse names, TLS, connections.
    Config,
    /// The provider is busy.
    Load,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The address that connects, so the other server may help.
    Ip,
    /// A domain in the mail, whichever server sends it.
    Domain,
    /// One recipient.
    Mailbox,
}

/// What to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// An ordinary retry.
    Retry,
    Slow,
    /// Slow first, suspend when it repeats.
    SlowThenSuspend,
    Suspend,
    /// Until a person acts: waiting does not cure it.
    Pause,
    FewerConnections,
    FewerMessages,
    RequireTls,
}

impl Action {
    /// It holds back what may leave by new, so the ramp is concerned.
    pub fn brakes(self) -> bool {
        matches!(self, Action::Slow | Action::SlowThenSuspend | Action::Suspend | Action::Pause)
    }
}

/// What a reply means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// The rule's name.
    pub id: String,
    pub class: Class,
    pub scope: Scope,
    pub action: Action,
    /// Replies within an hour before the action; 1 or more.
    pub after: u32,
    /// How long the action lasts; zero where it has no end of its own.
    pub lasts: Duration,
    pub step: StageStep,
    /// The legacy server is likely to be better received.
    pub legacy_helps: bool,
    /// A 5xx that means later.
    pub temporary: bool,
    /// The rule is for every provider, so it says less than one of the provider's own.
    pub generic: bool,
}

/// A rule: when it holds, and what it then means.
#[derive(Clone, Debug)]
struct Rule {
    provider: String,
    codes: Vec<u16>,
    /// Empty: any or none.
    enhanced: Vec<RangeInclusive<(u8, u16, u16)>>,
    text: Option<Regex>,
    signal: Signal,
}

/// All rules of one file, in its order.
#[derive(Clone, Debug)]
pub struct Signals(Vec<Rule>);

static PARSED: LazyLock<Signals> =
    LazyLock::new(|| Signals::parse(EMBEDDED, Providers::embedded()).expect("a test reads the rules of the program"));

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    signals: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: Spanned<String>,
    provider: Spanned<String>,
    reply: Spanned<Vec<u16>>,
    enhanced: Option<Spanned<Vec<String>>>,
    text: Option<Spanned<String>>,
    class: Class,
    scope: Scope,
    action: Action,
    after: Option<Spanned<u32>>,
    minutes: Option<Spanned<u32>>,
    #[serde(default)]
    step: StageStep,
    legacy: Option<bool>,
    #[serde(default)]
    temporary: bool,
    // Kept in the file for whoever edits it; read so that a wrong one is noticed.
    #[allow(dead_code)]
    basis: Basis,
    examples: Spanned<Vec<Spanned<String>>>,
    source: Spanned<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Basis {
    Published,
    Ours,
}

impl Signals {
    /// The rules of the program.
    pub fn embedded() -> &'static Signals {
        &PARSED
    }

    /// Reads a file's text. A rule for a provider that `providers` does not know, one whose pattern is none, and one
    /// that misses an example of its own are refused; all of them are reported.
    pub fn parse(text: &str, providers: &Providers) -> Result<Signals, Vec<FileFault>> {
        let file: File = rule_file::tables(text)?;
        let mut faults = Faults::new(text);
        if file.signals.len() > RULES_MAX {
            faults.at(0, format!("must hold at most {RULES_MAX} rules"));
        }
        let mut signals = Signals(Vec::new());
        for entry in &file.signals {
            let (at, entry) = (entry.span().start, entry.get_ref());
            if signals.0.iter().any(|rule| rule.signal.id == *entry.id.get_ref()) {
                faults.value("a signal", "id", entry.id.span(), "must differ from those before it; rename one of them");
            }
            if let Some(rule) = rule(entry, at, providers, &mut faults) {
                signals.0.push(rule);
            }
        }
        for entry in &file.signals {
            signals.check_examples(entry.get_ref(), &mut faults);
        }
        faults.or(signals)
    }

    /// What `reply` of `provider` (the name of an operator) means. The first rule that holds, the provider's own before
    /// those for all; `None`: nothing is known, an ordinary result. Time is linear in the length of the reply.
    pub fn classify(&self, provider: &str, reply: &Reply) -> Option<&Signal> {
        let text = one_line(&reply.text);
        let holds = |of: &str| self.0.iter().find(|rule| rule.provider == of && rule.holds(reply, &text));
        let rule = holds(provider).or_else(|| holds(ANY));
        rule.map(|rule| &rule.signal)
    }

    fn check_examples(&self, entry: &Entry, faults: &mut Faults<'_>) {
        let id = entry.id.get_ref();
        if !self.0.iter().any(|rule| rule.signal.id == *id) {
            return; // what is wrong with it was said
        }
        for example in entry.examples.get_ref() {
            let must = match Reply::from_line(example.get_ref()) {
                None => "must be a whole reply, such as \"421 4.7.0 try later\"".to_owned(),
                Some(reply) => match self.classify(entry.provider.get_ref(), &reply) {
                    Some(signal) if signal.id == *id => continue,
                    Some(signal) => {
                        format!("must be caught by this rule, but `{}` catches it first; reorder them", signal.id)
                    }
                    None => "must be caught by this rule, but is not; mend `reply`, `enhanced` or `text`".to_owned(),
                },
            };
            faults.value(&called(entry), "examples", example.span(), &must);
        }
    }
}

impl Rule {
    fn holds(&self, reply: &Reply, text: &str) -> bool {
        let enhanced = |EnhancedCode(class, subject, detail)| {
            self.enhanced.iter().any(|range| range.contains(&(class, subject, detail)))
        };
        self.codes.contains(&reply.code)
            && (self.enhanced.is_empty() || reply.enhanced.is_some_and(enhanced))
            && self.text.as_ref().is_none_or(|pattern| pattern.is_match(text))
    }
}

fn called(entry: &Entry) -> String {
    format!("signal `{}`", entry.id.get_ref())
}

/// Lines joined by blanks, and cut: a reply that has said nothing by then says nothing.
fn one_line(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn rule(entry: &Entry, at: usize, providers: &Providers, faults: &mut Faults<'_>) -> Option<Rule> {
    let called = called(entry);
    let id = entry.id.get_ref();
    let mut good = true;
    let mut fault = |key: &str, span, must: &str| {
        faults.value(&called, key, span, must);
        good = false;
    };
    if id.is_empty() || !id.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        fault("id", entry.id.span(), "must be of small letters, digits and hyphens");
    }
    let provider = entry.provider.get_ref();
    if provider != ANY && !providers.is_operator(provider) {
        fault("provider", entry.provider.span(), "must be \"*\" or a provider of conf/providers.toml");
    }
    let codes = entry.reply.get_ref();
    if codes.is_empty() || !codes.iter().all(|code| (400..600).contains(code)) {
        fault("reply", entry.reply.span(), "must list codes from 400 to 599, such as [421, 451]");
    }
    let mut enhanced = Vec::new();
    for range in entry.enhanced.iter().flat_map(|list| list.get_ref()) {
        match codes_between(range) {
            Some(range) => enhanced.push(range),
            None => {
                let span = entry.enhanced.as_ref().map_or(at..at, Spanned::span);
                fault("enhanced", span, "must list codes such as \"4.7.28\" or ranges such as \"4.7.500-4.7.699\"");
            }
        }
    }
    let text = match entry.text.as_ref().map(|text| (text.span(), pattern(text.get_ref()))) {
        None => None,
        Some((_, Ok(pattern))) => Some(pattern),
        Some((span, Err(must))) => {
            fault("text", span, &must);
            None
        }
    };
    if let Some(after) = entry.after.as_ref().filter(|after| !(1..=AFTER_MAX).contains(after.get_ref())) {
        fault("after", after.span(), &format!("must be from 1 to {AFTER_MAX} replies within an hour"));
    }
    let minutes = entry.minutes.as_ref().map_or(0, |minutes| *minutes.get_ref());
    if let Some(wrong) = entry.minutes.as_ref().filter(|m| !(1..=MINUTES_MAX).contains(m.get_ref())) {
        fault(
            "minutes",
            wrong.span(),
            &format!("must be from 1 to {MINUTES_MAX}; leave it out where waiting does not help"),
        );
    }
    if entry.examples.get_ref().is_empty() {
        fault("examples", entry.examples.span(), "must hold a reply that this rule is about");
    }
    if entry.source.get_ref().iter().all(|source| source.trim().is_empty()) {
        fault("source", entry.source.span(), "must say where the reply was found");
    }
    if entry.text.is_none() && entry.enhanced.as_ref().is_none_or(|list| list.get_ref().is_empty()) {
        faults.at(at, format!("{called} must have `text` or `enhanced`: the code alone says nothing"));
        good = false;
    }
    let timed = matches!(entry.action, Action::Slow | Action::SlowThenSuspend | Action::Suspend);
    if timed && minutes == 0 && entry.minutes.is_none() {
        faults.at(at, format!("{called} must have `minutes`: what it does would never end"));
        good = false;
    }
    let signal = Signal {
        id: id.clone(),
        class: entry.class,
        scope: entry.scope,
        action: entry.action,
        after: entry.after.as_ref().map_or(1, |after| *after.get_ref()),
        lasts: Duration::from_secs(u64::from(minutes) * 60),
        step: entry.step,
        legacy_helps: entry.legacy.unwrap_or(entry.scope == Scope::Ip),
        temporary: entry.temporary,
        generic: provider == ANY,
    };
    good.then(|| Rule { provider: provider.clone(), codes: codes.clone(), enhanced, text, signal })
}

/// `4.7.28`, or `4.7.500-4.7.699`.
fn codes_between(text: &str) -> Option<RangeInclusive<(u8, u16, u16)>> {
    let code = |text: &str| match EnhancedCode::split(text) {
        Some((EnhancedCode(class, subject, detail), "")) => Some((class, subject, detail)),
        _ => None,
    };
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (code(from)?, code(to)?);
    (from <= to && from.0 == to.0 && from.1 == to.1).then_some(from..=to)
}

/// `Err` says what the pattern must be.
fn pattern(text: &str) -> Result<Regex, String> {
    if text.chars().count() > PATTERN_MAX_CHARS {
        return Err(format!("must have at most {PATTERN_MAX_CHARS} characters"));
    }
    let made = RegexBuilder::new(text).case_insensitive(true).size_limit(PATTERN_MAX_BYTES).build();
    match made {
        Ok(pattern) if pattern.is_match("") => Err("must not fit an empty text: it would fit every reply".to_owned()),
        Ok(pattern) => Ok(pattern),
        Err(error) => {
            // The library draws the place over several lines; its last line says what is wrong.
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("must be a regular expression: {why}; write \\ before a bracket or dot that means itself"))
        }
    }
}

/// Rules in one file.
const RULES_MAX: usize = 500;
/// Of a reply's text, all its lines together.
const TEXT_MAX_CHARS: usize = 2_048;
const PATTERN_MAX_CHARS: usize = 300;
/// A compiled pattern.
const PATTERN_MAX_BYTES: usize = 1 << 20;
const AFTER_MAX: u32 = 1_000;
const MINUTES_MAX: u32 = 7 * 24 * 60;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(provider: &str, line: &str) -> Option<&'static str> {
        let reply = Reply::from_line(line).expect("a reply");
        Signals::embedded().classify(provider, &reply).map(|signal| signal.id.as_str())
    }

    fn signal(id: &str) -> &'static Signal {
        let rule = Signals::embedded().0.iter().find(|rule| rule.signal.id == id);
        &rule.unwrap_or_else(|| panic!("no rule {id}")).signal
    }

    #[test]
    fn every_rule_of_the_program_catches_its_examples() {
        let signals = Signals::parse(EMBEDDED, Providers::embedded()).unwrap_or_else(|faults| panic!("{faults:#?}"));
        assert_eq!(signals.0.len(), 58);
        let file: File = rule_file::tables(EMBEDDED).unwrap();
        let mut examples = 0;
        for entry in &file.signals {
            let entry = entry.get_ref();
            for example in entry.examples.get_ref() {
                assert_eq!(id(entry.provider.get_ref(), example.get_ref()), Some(entry.id.get_ref().as_str()));
                examples += 1;
            }
        }
        assert!(examples >= 58, "{examples}");
    }

    #[test]
    fn the_class_digit_alone_decides_nothing() {
        assert_eq!(id("qq", "550 Ip frequency limited"), Some("qq-freq"));
        assert!(signal("qq-freq").temporary && signal("qq-freq").class == Class::Rate);
        assert_eq!(signal("yahoo-ts03").class, Class::Reputation);
        assert_eq!(
            id("yahoo", "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred"),
            Some("yahoo-ts03")
        );
        for line in ["421 4.7.0 closing", "451 try later", "550 no such user", "550 5.1.1 unknown", "554 5.7.1 no"] {
            for provider in ["google", "yahoo", "microsoft", "other"] {
                assert_eq!(id(provider, line), None, "{provider} {line}");
            }
        }
    }

    #[test]
    fn the_same_words_mean_other_things_by_code_and_by_what_they_name() {
        let rate = "Gmail has detected an unusual rate of unsolicited mail originating from your";
        for (line, rule) in [
            (format!("421 4.7.28 {rate} IP address."), "google-rate-ip"),
            (format!("421 4.7.28 {rate} IP Netblock."), "google-rate-netblock"),
            (format!("421 4.7.28 {rate} DKIM domain."), "google-rate-dkim"),
            (format!("421 4.7.28 {rate} SPF domain."), "google-rate-spf"),
            (format!("550 5.7.28 {rate} IP address. Your mail has been blocked."), "google-block-ip"),
            ("550 5.7.1 very low reputation of the sending domain.".into(), "google-lowrep-domain"),
        ] {
            assert_eq!(id("google", &line), Some(rule), "{line}");
        }
        assert!(signal("google-rate-ip").legacy_helps && signal("google-lowrep").legacy_helps);
        for own_domain in
            ["google-rate-dkim", "google-rate-spf", "google-rate-url", "google-lowrep-domain", "google-rcpt-rate"]
        {
            assert!(!signal(own_domain).legacy_helps, "{own_domain}");
        }
        assert!(signal("google-auth").legacy_helps, "the old server may well be in the SPF record");
    }

    #[test]
    fn lines_are_joined_and_case_does_not_count() {
        let reply = Reply {
            code: 421,
            enhanced: Some(EnhancedCode(4, 7, 28)),
            text: "Gmail has detected an UNUSUAL RATE of\nunsolicited mail originating from your\r\nip address.".into(),
        };
        assert!(Signals::embedded().classify("google", &reply).is_none(), "two control characters are two blanks");
        let reply = Reply { text: reply.text.replace('\r', ""), ..reply };
        let found = Signals::embedded().classify("google", &reply).map(|signal| signal.id.as_str());
        assert_eq!(found, Some("google-rate-ip"));
    }

    #[test]
    fn an_enhanced_code_counts_where_the_text_is_not_enough() {
        assert_eq!(id("microsoft", "451 4.7.500 Server busy. Please try again later. (AS761)"), Some("ms-as-range"));
        assert_eq!(id("microsoft", "451 4.7.699 Server busy"), Some("ms-as-range"));
        for line in ["451 4.7.499 Server busy", "451 4.3.2 Server busy", "451 Server busy", "451 4.7.500 later"] {
            assert_eq!(id("microsoft", line), None, "{line}");
        }
        assert_eq!(id("microsoft", "550 5.7.515 whatever it says"), Some("ms-515"));
        assert_eq!(id("microsoft", "550 5.7.516 whatever it says"), None);
    }

    #[test]
    fn a_providers_rules_come_before_those_for_all() {
        let general = "421 4.7.0 temporarily rate limited due to IP reputation";
        assert_eq!(id("other", general), Some("generic-ratelimited"));
        assert_eq!(id("microsoft", &general.replace("421", "451")), Some("ms-s775"));
        assert_eq!(id("microsoft", general), Some("generic-ratelimited"), "its own rule is about 451");
        assert!(signal("generic-ratelimited").generic && !signal("ms-s775").generic);
        let text = EMBEDDED.replacen(
            "[[signals]]",
            &format!("{}\n[[signals]]", rule_text("any", "*", "451", "text = 'rate limited'", "451 rate limited")),
            1,
        );
        let first = Signals::parse(&text, Providers::embedded()).unwrap();
        let reply = Reply::from_line("451 4.7.650 temporarily rate limited due to IP reputation").unwrap();
        assert_eq!(first.classify("microsoft", &reply).map(|s| s.id.as_str()), Some("ms-s775"), "wherever it stands");
    }

    fn rule_text(id: &str, provider: &str, reply: &str, with: &str, example: &str) -> String {
        format!(
            "[[signals]]\nid = \"{id}\"\nprovider = \"{provider}\"\nreply = [{reply}]\n{with}\nclass = \"rate\"\nscope = \"ip\"\n\
             action = \"suspend\"\nminutes = 60\nstep = \"hold\"\nbasis = \"ours\"\nexamples = [\"{example}\"]\nsource = [\"x\"]\n"
        )
    }

    fn faults(text: &str) -> Vec<String> {
        match Signals::parse(text, Providers::embedded()) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_rule_that_cannot_work_is_refused_with_line_value_and_remedy() {
        let good = rule_text("x", "google", "421", "text = 'a.b'", "421 a.b");
        assert_eq!(faults(&good), Vec::<String>::new());
        for (from, to, place, words) in [
            ("'a.b'", "'a(b'", "5:8  ", "must be a regular expression: unclosed group; write \\"),
            ("'a.b'", "'a*'", "5:8  ", "must not fit an empty text"),
            ("'a.b'", "'(a{200}){200}'", "5:8  ", "must be a regular expression"),
            ("[\"421 a.b\"]", "[]", "12:12  ", "`examples` of signal `x` = []"),
            ("421 a.b", "421 c", "12:13  ", "must be caught by this rule, but is not"),
            ("421 a.b", "a.b", "12:13  ", "must be a whole reply"),
            ("[421]", "[250]", "4:9  ", "codes from 400 to 599"),
            ("[421]", "[]", "4:9  ", "codes from 400 to 599"),
            ("google", "gogle", "3:12  ", "must be \"*\" or a provider"),
            ("\"x\"\nprovider", "\"X\"\nprovider", "2:6  ", "small letters"),
            ("text = 'a.b'\n", "", "1:1  ", "must have `text` or `enhanced`"),
            ("text = 'a.b'", "enhanced = [\"4.7\"]", "5:12  ", "must list codes such as \"4.7.28\""),
            ("text = 'a.b'", "enhanced = [\"4.7.9-4.7.1\"]", "5:12  ", "must list codes such as \"4.7.28\""),
            ("minutes = 60", "minutes = 0", "9:11  ", "must be from 1 to 10080"),
            ("minutes = 60\n", "", "1:1  ", "would never end"),
            ("minutes = 60", "minutes = 60\nafter = 0", "10:9  ", "must be from 1 to 1000"),
            ("\"rate\"", "\"fast\"", "6:9  ", "unknown variant `fast`"),
            ("source = [\"x\"]", "source = []", "13:10  ", "where the reply was found"),
            ("step", "stepp", "10:1  ", "unknown field `stepp`"),
        ] {
            let found = faults(&good.replacen(from, to, 1));
            assert!(found.len() == 1, "{to}: {found:#?}");
            assert!(found[0].starts_with(place) && found[0].contains(words), "{to}: {found:#?}");
        }
        let same = faults(&(good.clone() + &good));
        assert!(same[0].contains("must differ") && same[0].starts_with("15:6"), "{same:#?}");
        let hidden = faults(&(good.clone() + &rule_text("y", "google", "421", "text = 'a.b c'", "421 a.b c")));
        assert!(hidden.len() == 1 && hidden[0].contains("but `x` catches it first; reorder"), "{hidden:#?}");
    }

    #[test]
    fn all_faults_of_a_file_are_reported() {
        let text = rule_text("x", "nobody", "200", "text = '('", "421 a")
            + &rule_text("y", "google", "421", "text = 'a'", "421 b");
        assert_eq!(faults(&text).len(), 4, "{:#?}", faults(&text));
    }

    proptest! {
        #[test]
        fn no_reply_breaks_the_rules(code in 400u16..600, text in "\\PC{0,400}", provider in 0usize..8) {
            let reply = Reply { code, enhanced: None, text };
            let provider = super::super::provider::Provider::ALL[provider].name();
            let found = Signals::embedded().classify(provider, &reply);
            prop_assert!(found.is_none_or(|signal| signal.after >= 1));
        }
    }

    #[test]
    fn a_reply_as_long_as_a_peer_can_make_it_is_cut_not_searched_to_its_end() {
        let far = "x".repeat(TEXT_MAX_CHARS) + " [TSS04]";
        let reply = |text: &str| Reply { code: 421, enhanced: None, text: text.to_owned() };
        assert!(Signals::embedded().classify("yahoo", &reply(&far)).is_none());
        assert!(Signals::embedded().classify("yahoo", &reply(&far[TEXT_MAX_CHARS - 900..])).is_some());
    }
}
