//! `mailramp plan`: how a ramp would go, before anything is sent. Asks no server and no running relay.
//!
//! What is not said on the command line is taken from the settings file if there is one. The days come from
//! `policy::plan`, which lives through them with the rules of the relay itself.

mod draw;
mod report;
mod svg;

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::value_parser;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{Context, Failure, exit, json};
use crate::clock::{Clock, SystemClock};
use crate::config::{
    self, AdvanceOn, CurveName, Loaded, OverflowPolicy, Settings, Warmup, curves, process_environment, rules::Unread,
};
use crate::policy::calendar::day_of_date;
use crate::policy::plan::{Case, Demand, Plan, plan};
use crate::policy::{Advance, Curve, Presets, Rules};
use report::{Compared, Subject};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Recipients a day that the new server shall carry in the end
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=RECIPIENTS_MAX))]
    target: Option<u64>,
    /// Curve: a name of the curves file, `formula`, or `custom` with the numbers of the settings
    #[arg(long, value_name = "NAME")]
    curve: Option<String>,
    /// Recipients that the application has mail for on every day [default: the target]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=RECIPIENTS_MAX), conflicts_with_all = ["weekday", "weekend"])]
    per_day: Option<u64>,
    /// The same, from Monday to Friday
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(0..=RECIPIENTS_MAX), requires = "weekend")]
    weekday: Option<u64>,
    /// The same, on Saturday and Sunday
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(0..=RECIPIENTS_MAX), requires = "weekday")]
    weekend: Option<u64>,
    /// First day, such as 2026-03-02 [default: that of the settings, or today]
    #[arg(long, value_name = "DATE", value_parser = date)]
    start: Option<Date>,
    /// Times the best day remembered that a limit may reach; 0 is off [default: 2]
    #[arg(long, value_name = "X", value_parser = max_step)]
    max_step: Option<f64>,
    /// Part of its limit that a day must use to count [default: 50%]
    #[arg(long, value_name = "SHARE", value_parser = min_used)]
    min_used: Option<f64>,
    /// Plan at most so many days
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Also draw the plan into this file, replacing it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// The plan as one JSON object
    #[arg(long)]
    json: bool,
    /// The same mail under every curve there is, side by side
    #[arg(long, conflicts_with_all = ["curve", "svg"])]
    compare: bool,
}

const RECIPIENTS_MAX: u64 = 1_000_000_000_000; // as the settings
const COLUMNS_DEFAULT: usize = 80;

fn date(text: &str) -> Result<Date, String> {
    let whole_day = text.len() == "2026-03-02".len(); // jiff reads times of day too, and drops them
    text.parse().ok().filter(|_| whole_day).ok_or_else(|| "must be a date such as 2026-03-02".to_owned())
}

fn max_step(text: &str) -> Result<f64, String> {
    let fits = |step: &f64| *step == 0.0 || (*step > 1.0 && *step <= 100.0);
    text.parse().ok().filter(fits).ok_or_else(|| "must be above 1 up to 100, or 0 for none".to_owned())
}

fn min_used(text: &str) -> Result<f64, String> {
    match config::read_share(text) {
        Ok(share) if share > 0.0 => Ok(share),
        _ => Err("must be a share above 0% up to 100%, such as 50%".to_owned()),
    }
}

/// Plans, and writes what was asked for.
pub fn run(options: &Options, context: &mut Context<'_>) -> Result<(), Failure> {
    let loaded = settings(context)?;
    let settings = loaded.as_ref().map(|loaded| &loaded.settings);
    let warmup = settings.and_then(|settings| settings.warmup.as_ref());
    let presets = curves::read(warmup.and_then(|warmup| warmup.curves_file.as_deref())).map_err(|why| unread(&why))?;
    let request = Request { options, settings, warmup, presets: &presets };
    if options.compare {
        let compared = request.compare()?;
        let text = if options.json { json(&compared)? } else { compared.text() };
        return context.write(&text);
    }
    let (subject, plan) = request.one()?;
    if let Some(path) = &options.svg {
        fs::write(path, svg::picture(&subject, &plan))
            .map_err(|error| Failure::new(exit::IO, format!("while writing {}: {error}", path.display())))?;
    }
    let text = match options.json {
        true => json(&report::Report::new(&subject, &plan))?,
        false => draw::picture(&subject, &plan, columns(context.terminal), context.paint),
    };
    context.write(&text)
}

/// The settings, where there are some. A file that cannot be used is an error: its numbers would be missed.
fn settings(context: &Context<'_>) -> Result<Option<Loaded>, Failure> {
    let Ok(path) = context.config_path() else { return Ok(None) };
    let loaded = Settings::load(&path, process_environment());
    loaded.map(Some).map_err(|faults| Failure::new(exit::CONFIG, faults.to_string()))
}

fn unread(why: &Unread) -> Failure {
    let text = match why {
        Unread::File(must) => format!("`warmup.curves_file` {must}"),
        Unread::Faults(faults) => faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    };
    Failure::new(exit::CONFIG, text)
}

/// Columns of the terminal.
fn columns(terminal: bool) -> usize {
    let size = terminal.then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten();
    size.map_or(COLUMNS_DEFAULT, |size| usize::from(size.ws_col)).clamp(draw::COLUMNS_MIN, draw::COLUMNS_MAX)
}

/// What was asked, over what is configured.
struct Request<'a> {
    options: &'a Options,
    settings: Option<&'a Settings>,
    warmup: Option<&'a Warmup>,
    presets: &'a Presets,
}

impl Request<'_> {
    fn one(&self) -> Result<(Subject, Plan), Failure> {
        let (name, curve) = self.curve()?;
        let preset = self.presets.find(&name);
        let about = preset.map(|preset| preset.about.clone());
        let rules = self.rules(curve)?;
        let plan = self.plan(&rules);
        let subject = Subject {
            curve: name,
            about,
            target: rules.target,
            demand: self.demand(rules.target),
            start: self.start(),
            max_step: rules.max_step,
            min_used: rules.min_used,
            holds: self.holds(),
            hourly: rules.hourly,
            published_hourly: preset.and_then(|preset| preset.hourly),
        };
        Ok((subject, plan))
    }

    fn compare(&self) -> Result<Compared, Failure> {
        let mut compared = Compared::new(self.options.days);
        for preset in self.presets.iter() {
            let rules = self.rules(preset.curve.clone())?;
            compared.add(&preset.name, &preset.curve, &self.plan(&rules));
        }
        Ok(compared)
    }

    fn plan(&self, rules: &Rules) -> Plan {
        plan(&Case { rules, demand: self.demand(rules.target), holds: self.holds(), days_max: self.options.days })
    }

    fn rules(&self, curve: Curve) -> Result<Rules, Failure> {
        let target = self.options.target.or(self.warmup.map(|warmup| warmup.target));
        let Some(target) = target else {
            let text = "say which volume the new server shall carry in the end: --target N, in recipients a day";
            return Err(Failure::new(exit::USAGE, text));
        };
        let defaults = Rules::default();
        let rules = Rules {
            curve,
            target,
            min_used: self.options.min_used.or(self.warmup.map(|w| w.advance.min_used)).unwrap_or(defaults.min_used),
            max_step: self.options.max_step.or(self.warmup.map(|w| w.max_step)).unwrap_or(defaults.max_step),
            advance: match self.warmup.map(|warmup| warmup.advance.on) {
                Some(AdvanceOn::Calendar) => Advance::Calendar,
                Some(AdvanceOn::SendingDay) | None => Advance::SendingDay,
            },
            hourly: self.warmup.map_or(defaults.hourly, |warmup| warmup.pace.hourly),
            start: Some(day_of_date(self.start())),
            ..defaults
        };
        rules.check(&[], &[]).map_err(|error| Failure::new(exit::USAGE, error.to_string()))?;
        Ok(rules)
    }

    /// The curve and its name.
    fn curve(&self) -> Result<(String, Curve), Failure> {
        let numbers = |name: &str, curve: Option<Curve>, without: &str| match curve {
            Some(curve) => Ok((name.to_owned(), curve)),
            None => Err(Failure::new(exit::USAGE, format!("--curve {name}: {without}"))),
        };
        let asked = match (self.options.curve.as_deref(), self.warmup) {
            (None, Some(warmup)) => return Ok((warmup.curve.name().to_owned(), warmup.shape.clone())),
            (None, None) => CurveName::DEFAULT,
            (Some(name), _) => name,
        };
        match asked {
            "formula" => {
                let (first_day, growth) = self.warmup.map_or(FORMULA, |w| (w.first_day as f64, w.growth));
                numbers(asked, Curve::formula(first_day, growth).ok(), "the settings' numbers are no curve")
            }
            "custom" => {
                let curve = self.warmup.filter(|warmup| warmup.curve == CurveName::Custom).map(|w| w.shape.clone());
                numbers(
                    asked,
                    curve,
                    "its numbers are those of the settings, and these have none; name them with --config FILE",
                )
            }
            name => match curves::named(name, self.presets) {
                Ok(curve) => Ok((name.to_owned(), curve)),
                Err(must) => Err(Failure::new(exit::USAGE, format!("--curve {}: {must}", crate::log::printable(name)))),
            },
        }
    }

    fn demand(&self, target: u64) -> Demand {
        match (self.options.weekday, self.options.weekend) {
            (Some(weekday), Some(weekend)) => Demand { weekday, weekend },
            _ => {
                let per_day = self.options.per_day.unwrap_or(target);
                Demand { weekday: per_day, weekend: per_day }
            }
        }
    }

    /// As asked, as configured, or today.
    fn start(&self) -> Date {
        self.options.start.or(self.warmup.and_then(|warmup| warmup.start)).unwrap_or_else(|| {
            let zone = self.settings.map_or(TimeZone::UTC, |settings| settings.timezone.clone());
            let now = jiff::Timestamp::from_second(SystemClock.now().seconds()).unwrap_or_default();
            zone.to_datetime(now).date()
        })
    }

    fn holds(&self) -> bool {
        self.warmup.is_some_and(|warmup| warmup.overflow.policy == OverflowPolicy::Hold)
    }
}

/// First day and growth of `formula` where no settings say otherwise.
const FORMULA: (f64, f64) = (50.0, 1.5);
