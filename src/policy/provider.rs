//! Whose mailbox it is: the operator of a domain's mail servers, told by their names.
//!
//! A domain is not enough: tenants of Google Workspace and Microsoft 365 have domains of their own and count as Google and
//! Microsoft, because that is who judges the address that sends. Looks nothing up; the MX names come in.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use toml::Spanned;

use super::rule_file::{self, Faults, FileFault};
use crate::message::LaneId;

/// The operators of the program.
pub const EMBEDDED: &str = include_str!("../../conf/providers.toml");
/// The operator of a domain that no suffix knows.
pub const OTHER: &str = "other";

/// A provider lane; the set is closed, because lanes are labels of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    Google,
    Microsoft,
    Yahoo,
    Apple,
    GmxWebde,
    OrangeFr,
    Mimecast,
    #[default]
    Other,
}

impl Provider {
    pub const ALL: [Provider; 8] = [
        Provider::Google,
        Provider::Microsoft,
        Provider::Yahoo,
        Provider::Apple,
        Provider::GmxWebde,
        Provider::OrangeFr,
        Provider::Mimecast,
        Provider::Other,
    ];

    /// Its lane: from 1, since 0 is the total.
    pub const fn lane(self) -> LaneId {
        LaneId(self as u16 + 1)
    }

    /// Whose lane it is; `None` for the total, and for a lane that nobody has.
    pub fn of_lane(lane: LaneId) -> Option<Provider> {
        Provider::ALL.get(usize::from(lane.0).checked_sub(1)?).copied()
    }

    /// The word for settings, pages and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Google => "google",
            Provider::Microsoft => "microsoft",
            Provider::Yahoo => "yahoo",
            Provider::Apple => "apple",
            Provider::GmxWebde => "gmx-webde",
            Provider::OrangeFr => "orange-fr",
            Provider::Mimecast => "mimecast",
            Provider::Other => OTHER,
        }
    }
}

/// Who runs mail servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// What the rules for replies call it; [`OTHER`] for the unknown one.
    pub name: String,
    /// Where its mail is limited.
    pub lane: Provider,
}

/// One MX of a domain (RFC 5321 §5.1).
#[derive(Clone, Copy, Debug)]
pub struct Mx<'a> {
    /// The lower is tried first.
    pub preference: u16,
    /// With or without the dot at the end.
    pub host: &'a str,
}

/// All operators of one file.
#[derive(Clone, Debug)]
pub struct Providers {
    operators: Vec<Arc<Operator>>,
    /// Index into `operators` by suffix: lower case, no dot at either end.
    suffixes: BTreeMap<String, usize>,
    /// Index into `operators` by domain of mail addresses: lower case.
    domains: BTreeMap<String, usize>,
    other: Arc<Operator>,
}

static PARSED: LazyLock<Arc<Providers>> =
    LazyLock::new(|| Arc::new(Providers::parse(EMBEDDED).expect("a test reads the operators of the program")));

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    #[serde(default)]
    lane: Provider,
    mx: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    domains: Vec<Spanned<String>>,
    examples: Vec<Spanned<String>>,
    source: Spanned<Vec<String>>,
}

impl Providers {
    /// The operators of the program.
    pub fn embedded() -> &'static Arc<Providers> {
        &PARSED
    }

    /// Reads a file's text. All that is wrong is reported.
    pub fn parse(text: &str) -> Result<Providers, Vec<FileFault>> {
        let file: File = rule_file::tables(text)?;
        let mut faults = Faults::new(text);
        let other = Arc::new(Operator { name: OTHER.to_owned(), lane: Provider::Other });
        let mut providers =
            Providers { operators: Vec::new(), suffixes: BTreeMap::new(), domains: BTreeMap::new(), other };
        if file.providers.len() > OPERATORS_MAX {
            faults.at(0, format!("must hold at most {OPERATORS_MAX} providers"));
        }
        for entry in &file.providers {
            providers.add(entry, &mut faults);
        }
        for entry in &file.providers {
            for example in &entry.examples {
                let found = &providers.of_host(example.get_ref()).name;
                if found != entry.name.get_ref() {
                    let must =
                        format!("must be the name of one of its servers, but it belongs to `{found}`; mend `mx`");
                    faults.value(&called(entry), "examples", example.span(), &must);
                }
            }
        }
        faults.or(providers)
    }

    fn add(&mut self, entry: &Entry, faults: &mut Faults<'_>) {
        let name = entry.name.get_ref();
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if name.is_empty() || name == OTHER || !name.bytes().all(plain) || self.is_operator(name) {
            let must =
                "must be of small letters, digits and hyphens, differ from those before it, and not be \"other\"";
            return faults.value("a provider", "name", entry.name.span(), must);
        }
        if entry.source.get_ref().is_empty() {
            faults.value(&called(entry), "source", entry.source.span(), "must say where the names were found");
        }
        if entry.mx.get_ref().is_empty() || entry.examples.is_empty() {
            let must =
                "must name the end of its servers' names, such as [\".example.net\"], and `examples` one of them";
            faults.value(&called(entry), "mx", entry.mx.span(), must);
        }
        self.operators.push(Arc::new(Operator { name: name.clone(), lane: entry.lane }));
        for suffix in entry.mx.get_ref() {
            let host = normal(suffix.get_ref()).trim_start_matches('.').to_owned();
            let labels = host.split('.').filter(|label| !label.is_empty()).count();
            if labels < 2 || host.contains("..") || host.contains(char::is_whitespace) {
                let must = "must be two labels or more, such as \".example.net\"; less would take in strangers";
                faults.value(&called(entry), "mx", suffix.span(), must);
            } else if self.suffixes.insert(host, self.operators.len() - 1).is_some() {
                faults.value(
                    &called(entry),
                    "mx",
                    suffix.span(),
                    "must stand only once in the file; take one of them out",
                );
            }
        }
        self.add_domains(entry, faults);
    }

    fn add_domains(&mut self, entry: &Entry, faults: &mut Faults<'_>) {
        for domain in &entry.domains {
            let name = normal(domain.get_ref());
            let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.');
            if !name.contains('.') || name.split('.').any(str::is_empty) || !name.bytes().all(plain) {
                let must = "must be a whole domain of mail addresses, such as \"example.net\"";
                faults.value(&called(entry), "domains", domain.span(), must);
            } else if self.domains.insert(name, self.operators.len() - 1).is_some() {
                let must = "must stand only once in the file; take one of them out";
                faults.value(&called(entry), "domains", domain.span(), must);
            }
        }
    }

    /// Whether rules may speak of an operator of this name.
    pub fn is_operator(&self, name: &str) -> bool {
        self.operators.iter().any(|operator| operator.name == name)
    }

    /// Who runs the server of this name. The longest suffix of whole labels counts.
    pub fn of_host(&self, host: &str) -> &Arc<Operator> {
        self.known(host).map_or(&self.other, |index| &self.operators[index])
    }

    /// The best guess for a domain of mail addresses (lower case, no dot at the end) before its mail servers are known: one
    /// of the file's `domains`, or under the name of an operator's servers.
    pub fn guess(&self, domain: &str) -> &Arc<Operator> {
        self.domains.get(domain).map_or_else(|| self.of_host(domain), |index| &self.operators[*index])
    }

    /// Who runs the most preferred servers of a domain. Where several are equally preferred and belong to several known
    /// operators, the one that stands first in the file, whatever the order of the answer. Nobody in an empty set; for a
    /// domain without MX pass the domain itself (RFC 5321 §5.1).
    pub fn of_domain<'a>(&self, servers: impl IntoIterator<Item = Mx<'a>> + Clone) -> &Arc<Operator> {
        let best = servers.clone().into_iter().map(|mx| mx.preference).min();
        let preferred = servers.into_iter().filter(|mx| Some(mx.preference) == best);
        preferred.filter_map(|mx| self.known(mx.host)).min().map_or(&self.other, |index| &self.operators[index])
    }

    fn known(&self, host: &str) -> Option<usize> {
        if host.len() > HOST_MAX_OCTETS {
            return None;
        }
        let host = normal(host);
        let mut rest = host.as_str();
        loop {
            if let Some(index) = self.suffixes.get(rest) {
                return Some(*index);
            }
            (_, rest) = rest.split_once('.')?;
        }
    }
}

fn called(entry: &Entry) -> String {
    format!("provider `{}`", entry.name.get_ref())
}

/// In lower case, without the dot at the end.
fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Operators in one file.
const OPERATORS_MAX: usize = 200;
const HOST_MAX_OCTETS: usize = 255; // RFC 1035 §2.3.4

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of_host(host: &str) -> (&'static str, &'static str) {
        let operator = Providers::embedded().of_host(host);
        (&operator.name, operator.lane.name())
    }

    #[test]
    fn the_operators_of_the_program_know_their_own_servers() {
        let providers = Providers::parse(EMBEDDED).unwrap_or_else(|faults| panic!("{faults:?}"));
        for lane in Provider::ALL {
            assert!(lane == Provider::Other || providers.is_operator(lane.name()), "{}", lane.name());
        }
    }

    #[test]
    fn every_lane_is_a_label_of_the_metrics() {
        use crate::metrics::{self, Label};
        let labels = metrics::Provider::ALL.iter().map(|label| label.text()).filter(|label| *label != "all");
        assert_eq!(Provider::ALL.map(Provider::name).to_vec(), labels.collect::<Vec<_>>());
    }

    #[test]
    fn servers_belong_to_their_operator_whatever_their_case_and_last_dot() {
        for (host, operator, lane) in [
            ("gmail-smtp-in.l.google.com", "google", "google"),
            ("ASPMX.L.Google.Com.", "google", "google"),
            ("hotmail-com.olc.protection.outlook.com", "microsoft", "microsoft"),
            ("contoso-com.mail.protection.outlook.com.", "microsoft", "microsoft"),
            ("contoso-com.o-v1.mx.microsoft", "microsoft", "microsoft"),
            ("mta7.am0.yahoodns.net", "yahoo", "yahoo"),
            ("mx02.mail.icloud.com", "apple", "apple"),
            ("mx-ha03.web.de", "gmx-webde", "gmx-webde"),
            ("mx01.emig.gmx.net", "gmx-webde", "gmx-webde"),
            ("smtp-in.orange.fr", "orange-fr", "orange-fr"),
            ("eu-smtp-inbound-2.mimecast.com", "mimecast", "mimecast"),
            ("mx1.qq.com", "qq", "other"),
            ("web.de", "gmx-webde", "gmx-webde"),
            // Only whole labels, and only at the end.
            ("mx.notgoogle.com", "other", "other"),
            ("google.com.example.net", "other", "other"),
            ("mail.outlook.com", "other", "other"),
            ("protection.outlook.com", "other", "other"),
            ("com", "other", "other"),
            ("", "other", "other"),
            (".", "other", "other"),
        ] {
            assert_eq!(of_host(host), (operator, lane), "{host}");
        }
        assert_eq!(of_host(&format!("{}.google.com", "a.".repeat(200))).0, OTHER, "no name is that long");
    }

    #[test]
    fn the_longest_suffix_counts() {
        let entry = |name, mx, example| {
            format!("[[providers]]\nname = \"{name}\"\nmx = [\"{mx}\"]\nexamples = [\"{example}\"]\nsource = [\"x\"]\n")
        };
        for order in [[0, 1], [1, 0]] {
            let both =
                [entry("wide", ".example.net", "a.example.net"), entry("narrow", "mx.example.net", "b.mx.example.net")];
            let providers = Providers::parse(&order.map(|i| both[i].as_str()).concat()).unwrap();
            assert_eq!(providers.of_host("c.mx.example.net").name, "narrow");
            assert_eq!(providers.of_host("c.smtp.example.net").name, "wide");
        }
    }

    #[test]
    fn a_domain_belongs_to_the_operator_of_its_most_preferred_servers() {
        let of = |servers: &[(u16, &str)]| {
            let servers = servers.iter().map(|(preference, host)| Mx { preference: *preference, host });
            Providers::embedded().of_domain(servers).name.clone()
        };
        let (google, microsoft) = ("aspmx.l.google.com", "x.mail.protection.outlook.com");
        assert_eq!(of(&[(20, google), (10, microsoft)]), "microsoft");
        assert_eq!(of(&[(5, google), (10, microsoft)]), "google");
        assert_eq!(of(&[(10, microsoft), (10, google)]), of(&[(10, google), (10, microsoft)]));
        assert_eq!(of(&[(10, "mx.example.org"), (10, google)]), "google");
        assert_eq!(of(&[(10, "mx.example.org"), (20, google)]), OTHER, "the second choice says nothing");
        assert_eq!(of(&[]), OTHER);
        assert_eq!(of(&[(0, ".")]), OTHER, "a domain that takes no mail (RFC 7505)");
    }

    #[test]
    fn a_domain_of_their_own_mailboxes_is_known_before_its_servers_are() {
        let guess = |domain: &str| Providers::embedded().guess(domain).name.clone();
        assert_eq!((guess("gmail.com").as_str(), guess("hotmail.com").as_str()), ("google", "microsoft"));
        assert_eq!((guess("web.de").as_str(), guess("x.web.de").as_str()), ("gmx-webde", "gmx-webde"));
        assert_eq!(
            (guess("mail.gmail.com").as_str(), guess("example.org").as_str()),
            (OTHER, OTHER),
            "whole domains only"
        );
        for (domains, words) in [
            ("[\"com\"]", "3:12  `domains` of provider `x` = \"com\": must be a whole domain"),
            ("[\"a..b\"]", "must be a whole domain"),
            ("[\"a b.c\"]", "must be a whole domain"),
            ("[\"a.b\", \"A.B\"]", "only once"),
        ] {
            let text = format!(
                "[[providers]]\nname = \"x\"\ndomains = {domains}\nmx = [\".a.b\"]\nexamples = [\"c.a.b\"]\nsource = [\"x\"]\n"
            );
            let faults = Providers::parse(&text).unwrap_err();
            assert!(faults.len() == 1 && faults[0].to_string().contains(words), "{faults:?}");
        }
    }

    #[test]
    fn what_would_take_in_strangers_is_refused_with_its_line() {
        let faults = |name: &str, mx: &str, example: &str| {
            let text =
                format!("[[providers]]\nname = \"{name}\"\nmx = {mx}\nexamples = [\"{example}\"]\nsource = [\"x\"]\n");
            Providers::parse(&text).map(drop).map_err(|faults| faults[0].to_string())
        };
        assert_eq!(faults("x", "[\".example.net\"]", "mx.example.net"), Ok(()));
        for (name, mx, example, place, words) in [
            ("x", "[\".net\"]", "mx.example.net", "3:7  ", "two labels or more"),
            ("x", "[\"\"]", "mx.example.net", "3:7  ", "two labels or more"),
            ("x", "[]", "mx.example.net", "3:6  ", "such as [\".example.net\"]"),
            ("x", "[\"a.b\", \"A.B.\"]", "mx.a.b", "3:14  ", "only once"),
            ("other", "[\"a.b\"]", "mx.a.b", "2:8  ", "not be \"other\""),
            ("X y", "[\"a.b\"]", "mx.a.b", "2:8  ", "small letters"),
            ("x", "[\"a.b\"]", "mx.b.a", "4:13  ", "belongs to `other`"),
        ] {
            let found = faults(name, mx, example).unwrap_err();
            assert!(found.starts_with(place) && found.contains(words), "{mx}: {found}");
        }
    }

    proptest! {
        #[test]
        fn no_name_breaks_the_search(host in "\\PC{0,300}") {
            let operator = Providers::embedded().of_host(&host);
            let below = format!("{host}.invalid");
            prop_assert_eq!(&Providers::embedded().of_host(&below).name, OTHER);
            prop_assert!(operator.name == OTHER || Providers::embedded().is_operator(&operator.name));
        }
    }
}
