//! The curves that have a name: ours, and the schedules that mail services publish.
//!
//! They stand in `conf/curves.toml`, which is part of the program; the operator may replace it. Every curve says who
//! published its numbers. A curve that falls, or that is none for another reason, is refused with its line.
//!
//! Reads no files: a text comes in.

use std::sync::LazyLock;

use serde::Deserialize;
use toml::Spanned;

use super::curve::{Curve, CurveError};
use super::rule_file::{self, Faults, FileFault};

/// What is used when the settings name no other file.
pub const EMBEDDED: &str = include_str!("../../conf/curves.toml");
/// Names that stand for numbers in the settings themselves.
pub const RESERVED: [&str; 2] = ["formula", "custom"];

/// A named curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    pub name: String,
    /// One line for people.
    pub about: String,
    /// Who published the numbers, and where; never empty.
    pub source: Vec<String>,
    /// Year and month in which the source was read, `2026-11`.
    pub date: String,
    pub curve: Curve,
    /// Largest part of a day that its source lets leave in one hour, above 0 up to 1. `None`: it says nothing of hours.
    pub hourly: Option<f64>,
}

/// All curves of one file, in its order; names are unique.
#[derive(Clone, Debug, PartialEq)]
pub struct Presets(Vec<Preset>);

static PARSED: LazyLock<Presets> =
    LazyLock::new(|| Presets::parse(EMBEDDED).expect("a test reads the curves of the program"));

/// Each number with its place.
type Numbers = Spanned<Vec<Spanned<f64>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    curves: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    about: Spanned<String>,
    source: Spanned<Vec<String>>,
    date: Spanned<String>,
    per_day: Option<Numbers>,
    per_hour: Option<Numbers>,
    days: Option<Spanned<Vec<(u32, f64)>>>,
    growth: Spanned<f64>,
    hourly: Option<Numbers>,
}

impl Presets {
    /// The curves of the program.
    pub fn embedded() -> &'static Presets {
        &PARSED
    }

    /// Reads a file's text. All that is wrong is reported, in the order of the file.
    pub fn parse(text: &str) -> Result<Presets, Vec<FileFault>> {
        let file: File = rule_file::tables(text)?;
        let mut faults = Faults::new(text);
        if !(1..=CURVES_MAX).contains(&file.curves.len()) {
            faults.at(0, format!("must hold 1 to {CURVES_MAX} curves, each beginning with [[curves]]"));
        }
        let mut presets: Vec<Preset> = Vec::new();
        for entry in &file.curves {
            let at = entry.span().start;
            let Some(preset) = preset(entry.get_ref(), at, &mut faults) else { continue };
            if presets.iter().any(|known| known.name == preset.name) {
                let name = &entry.get_ref().name;
                faults.value(
                    "a curve",
                    "name",
                    name.span(),
                    "must differ from the names before it; rename one of them",
                );
                continue;
            }
            presets.push(preset);
        }
        faults.or(Presets(presets))
    }

    pub fn find(&self, name: &str) -> Option<&Preset> {
        self.0.iter().find(|preset| preset.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Preset> {
        self.0.iter()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|preset| preset.name.as_str())
    }
}

fn preset(entry: &Entry, at: usize, faults: &mut Faults<'_>) -> Option<Preset> {
    let name = entry.name.get_ref();
    if !is_name(name) {
        let must = format!(
            "must be 1 to {NAME_MAX_CHARS} small letters, digits or hyphens, and neither \"formula\" nor \"custom\""
        );
        faults.value("a curve", "name", entry.name.span(), &must);
        return None;
    }
    let called = format!("curve `{name}`");
    let about = entry.about.get_ref();
    if about.is_empty() || about.chars().any(char::is_control) {
        faults.value(&called, "about", entry.about.span(), "must say on one line what the curve is");
    }
    if entry.source.get_ref().iter().all(|source| source.trim().is_empty()) {
        faults.value(
            &called,
            "source",
            entry.source.span(),
            "must name who published the numbers, such as [\"ourselves\"]",
        );
    }
    if !is_month(entry.date.get_ref()) {
        let must = "must be the year and month in which the source was read, such as \"2026-11\"";
        faults.value(&called, "date", entry.date.span(), must);
    }
    let curve = shape(entry, &called, at, faults)?;
    let hourly = match &entry.hourly {
        Some(list) => Some(hourly(entry, list, &called, faults)?),
        None => None,
    };
    Some(Preset {
        name: name.clone(),
        about: about.clone(),
        source: entry.source.get_ref().clone(),
        date: entry.date.get_ref().clone(),
        curve,
        hourly,
    })
}

/// Exactly one of the three ways to write the numbers.
fn shape(entry: &Entry, called: &str, at: usize, faults: &mut Faults<'_>) -> Option<Curve> {
    let growth = *entry.growth.get_ref();
    let plain = |list: &Numbers, times: f64| {
        let stages = list.get_ref().iter().map(|value| value.get_ref() * times).collect();
        let spans = list.get_ref().iter().map(Spanned::span).collect::<Vec<_>>();
        (list.span(), spans, Curve::new(stages, growth))
    };
    let (key, (whole, spans, made)) = match (&entry.per_day, &entry.per_hour, &entry.days) {
        (Some(list), None, None) => ("per_day", plain(list, 1.0)),
        (None, Some(list), None) => ("per_hour", plain(list, HOURS_PER_DAY)),
        (None, None, Some(list)) => {
            // A stage of the curve is not an entry of the list here; the whole list is shown.
            ("days", (list.span(), Vec::new(), Curve::from_days(list.get_ref(), growth)))
        }
        _ => {
            faults.at(at, format!("{called} must have one of `per_day`, `per_hour` and `days`, and only one"));
            return None;
        }
    };
    match made {
        Ok(curve) => Some(curve),
        Err(error) => {
            let (key, span) = match error {
                CurveError::Growth { .. } => ("growth", entry.growth.span()),
                CurveError::NotPositive { stage, .. } | CurveError::Falling { stage, .. } => {
                    (key, spans.get(stage).cloned().unwrap_or(whole))
                }
                CurveError::Length | CurveError::DayOrder { .. } => (key, whole),
            };
            faults.value(called, key, span, &format!("{error} (stages count from 0); {}", remedy(&error)));
            None
        }
    }
}

fn remedy(error: &CurveError) -> String {
    match error {
        CurveError::Length => "write some numbers, or fewer".to_owned(),
        CurveError::NotPositive { .. } => "write 1 or more, or take it out".to_owned(),
        CurveError::Falling { before, .. } => format!("write at least {before}, or take it out"),
        CurveError::Growth { .. } => "write 1.0 for a curve that stands still after its last number".to_owned(),
        CurveError::DayOrder { .. } => "put the days in order, each once".to_owned(),
    }
}

/// The largest part of a day that an hour carries.
fn hourly(entry: &Entry, list: &Numbers, called: &str, faults: &mut Faults<'_>) -> Option<f64> {
    let days: &[Spanned<f64>] = entry.per_day.as_ref().map_or(&[], |days| days.get_ref());
    if list.get_ref().len() != days.len() {
        let must = "must have one number for each of `per_day`; take it out if there are none";
        faults.value(called, "hourly", list.span(), must);
        return None;
    }
    let mut largest = 0.0f64;
    for (hour, day) in list.get_ref().iter().zip(days) {
        if !(*hour.get_ref() >= 1.0 && hour.get_ref() <= day.get_ref()) {
            let must = format!("must be from 1 to the {} of its day", day.get_ref());
            faults.value(called, "hourly", hour.span(), &must);
            return None;
        }
        largest = largest.max(hour.get_ref() / day.get_ref());
    }
    Some(largest)
}

/// Whether a text could be the name of a curve.
pub fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=NAME_MAX_CHARS).contains(&text.len()) && text.bytes().all(plain) && !RESERVED.contains(&text)
}

fn is_month(text: &str) -> bool {
    let digits = |part: &str, len: usize| part.len() == len && part.bytes().all(|c| c.is_ascii_digit());
    text.split_once('-').is_some_and(|(year, month)| {
        digits(year, 4) && digits(month, 2) && month.parse().is_ok_and(|month: u8| (1..=12).contains(&month))
    })
}

/// Curves in one file.
const CURVES_MAX: usize = 200;
const NAME_MAX_CHARS: usize = 40;
const HOURS_PER_DAY: f64 = 24.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn first_day_with(name: &str, recipients: f64) -> usize {
        let curve = &Presets::embedded().find(name).expect("an embedded curve").curve;
        (0..).find(|stage| curve.at(*stage) >= recipients).expect("it rises") as usize + 1
    }

    #[test]
    fn the_curves_of_the_program_are_curves_with_their_sources() {
        let presets = Presets::parse(EMBEDDED).unwrap_or_else(|faults| panic!("{faults:?}"));
        let names: Vec<&str> = presets.names().collect();
        let expect = [
            "gentle",
            "standard",
            "fast",
            "sendgrid-auto",
            "sparkpost",
            "braze-conservative",
            "braze-moderate",
            "braze-aggressive",
            "mailtrap",
            "onesignal",
            "ses-like",
        ];
        assert_eq!(names, expect);
        for (name, curve) in [("gentle", Curve::gentle()), ("standard", Curve::standard()), ("fast", Curve::fast())] {
            assert_eq!(presets.find(name).expect("ours").curve, curve, "{name}");
        }
        for preset in presets.iter() {
            let is_address = |source: &String| source.starts_with("https://") || source == "mailramp";
            assert!(preset.source.iter().all(is_address), "{}: {:?}", preset.name, preset.source);
        }
    }

    /// The first days on which the published numbers reach 2,000, 10,000 and 100,000 a day, read off the sources by
    /// hand; days count from 1. SendGrid's own count begins with day 0.
    #[test]
    fn published_curves_reach_what_they_publish() {
        for (name, days) in [
            ("sparkpost", [4, 6, 11]),
            ("braze-aggressive", [5, 6, 10]),
            ("braze-moderate", [5, 8, 13]),
            ("sendgrid-auto", [6, 11, 17]),
            ("mailtrap", [9, 15, 24]),
            ("braze-conservative", [13, 22, 31]),
        ] {
            assert_eq!([2e3, 1e4, 1e5].map(|n| first_day_with(name, n)), days, "{name}");
        }
        assert_eq!(first_day_with("onesignal", 2e3), 10);
        assert_eq!(first_day_with("ses-like", 5e4), 45);
        assert_eq!(Presets::embedded().find("ses-like").unwrap().curve.highest(), Some(50_000.0));
    }

    #[test]
    fn numbers_per_hour_are_times_24_and_gaps_hold() {
        let at = |name: &str, stage| Presets::embedded().find(name).unwrap().curve.at(stage);
        assert_eq!((at("sendgrid-auto", 0), at("sendgrid-auto", 41)), (480.0, 470_425_344.0));
        assert_eq!([0, 2, 3, 5, 6].map(|stage| at("braze-conservative", stage)), [50.0, 50.0, 100.0, 100.0, 500.0]);
        let mailtrap = Presets::embedded().find("mailtrap").unwrap();
        assert!(mailtrap.hourly.is_some_and(|share| (0.2..0.21).contains(&share)), "{:?}", mailtrap.hourly);
    }

    fn faults(body: &str) -> String {
        let text = format!("[[curves]]\nname = \"x\"\nabout = \"a\"\nsource = [\"we\"]\ndate = \"2026-11\"\n{body}\n");
        match Presets::parse(&text) {
            Ok(_) => String::new(),
            Err(faults) => faults.iter().map(|fault| format!("{fault}\n")).collect(),
        }
    }

    #[test]
    fn what_is_no_curve_is_refused_with_line_key_value_and_remedy() {
        assert_eq!(faults("per_day = [5, 5]\ngrowth = 1"), "");
        for (body, place, words) in [
            (
                "per_day = [50, 100, 99]\ngrowth = 1.5",
                "6:21  ",
                "`per_day` of curve `x` = 99: stage 2 falls from 100 to 99",
            ),
            ("per_day = [50, 0]\ngrowth = 1.5", "6:16  ", "write 1 or more"),
            ("per_day = []\ngrowth = 1.5", "6:11  ", "at least one stage"),
            ("per_hour = [2, 1]\ngrowth = 1.5", "6:16  ", "falls from 48 to 24"),
            ("days = [[1, 9], [3, 8]]\ngrowth = 1.5", "6:8  ", "falls from 9 to 8"),
            ("days = [[3, 9], [1, 10]]\ngrowth = 1.5", "6:8  ", "put the days in order"),
            ("per_day = [50]\ngrowth = 0.5", "7:10  ", "`growth` of curve `x` = 0.5"),
            ("growth = 1.5", "1:1  ", "must have one of `per_day`, `per_hour` and `days`"),
            ("per_day = [1]\nper_hour = [1]\ngrowth = 1.5", "1:1  ", "only one"),
            ("per_day = [50, 60]\nhourly = [10]\ngrowth = 1.5", "7:10  ", "one number for each"),
            ("per_day = [50]\nhourly = [60]\ngrowth = 1.5", "7:11  ", "from 1 to the 50"),
            ("per_day = [50]", "1:1  ", "growth"),
            ("per_day = [50]\ngrowth = 1\ncolour = 3", "8:1  ", "colour"),
            (
                "per_day = [50]\ngrowth = 1\n[[curves]]\nname = \"x\"\nabout = \"a\"\nsource = [\"we\"]\ndate = \"2026-11\"\nper_day = [1]\ngrowth = 1",
                "9:8  ",
                "must differ",
            ),
        ] {
            let found = faults(body);
            assert!(found.lines().count() == 1 && found.contains(words), "{body}: {found:?}");
            assert!(found.starts_with(place), "{body}: {found:?}");
        }
        for name in ["", "formula", "Custom", "a b"] {
            let text = EMBEDDED.replace("name = \"gentle\"", &format!("name = \"{name}\""));
            let found = Presets::parse(&text).unwrap_err();
            assert!(found[0].message.contains("small letters"), "{name}: {found:?}");
        }
        assert!(Presets::parse("curves = []").unwrap_err()[0].message.contains("1 to 200 curves"));
    }

    #[test]
    fn every_fault_of_a_file_is_reported() {
        let text = EMBEDDED
            .replace("growth = 1.25", "growth = 0")
            .replace("date = \"2026-11\"\nper_day = [200]", "date = \"lately\"\nper_day = [0]");
        let found = Presets::parse(&text).unwrap_err();
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
