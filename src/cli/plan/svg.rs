//! A plan as a picture for documents and browsers: one column per day. Pure.
//!
//! Readable without colour (new is filled, legacy is hatched, the limit is a dashed line), and without sight: title
//! and description say what it shows. No script, no fonts and nothing else from elsewhere.

use std::fmt::Write;

use super::report::{Subject, verdict};
use crate::cli::text::count;
use crate::policy::plan::{Plan, PlanDay};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;
/// Labels below the columns, at most.
const LABELS_MAX: usize = 20;
/// Lines across the picture.
const GRID: u64 = 4;

/// The whole file.
pub fn picture(subject: &Subject, plan: &Plan) -> String {
    let rest = if subject.holds { "waiting" } else { "legacy" };
    let total = |day: &PlanDay| day.new.saturating_add(day.legacy).saturating_add(day.waiting);
    let largest = plan.days.iter().map(|day| total(day).max(day.limit)).max().unwrap_or(1).max(1);
    let column = (WIDTH - LEFT - RIGHT) / plan.days.len() as f64;
    let x = |index: usize| LEFT + column * index as f64;
    let y = |recipients: u64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * recipients as f64 / largest as f64;

    let title = format!("Plan of a warm-up: curve {}, target {} a day", subject.curve, count(subject.target));
    let description =
        format!("From {}, mail {}. {}.", subject.start, subject.mail(), capital(&verdict(plan, subject.holds)));
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title desc" font-family="sans-serif" font-size="12">
<title id="title">{}</title>
<desc id="desc">{}</desc>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6" fill="#fff"/><line x1="0" y1="0" x2="0" y2="6" stroke="#666" stroke-width="2"/></pattern></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="22" font-size="15">{}</text>
"##,
        escaped(&title),
        escaped(&description),
        escaped(&title),
    );
    legend(&mut out, rest);
    for step in 0..=GRID {
        let value = (u128::from(largest) * u128::from(step) / u128::from(GRID)) as u64;
        let at = y(value);
        line(
            &mut out,
            format_args!(
                r##"<line x1="{LEFT}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="#ccc"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                count(value)
            ),
        );
    }
    let inner = (column * 0.8).max(0.1);
    let every = plan.days.len().div_ceil(LABELS_MAX).max(1);
    for (index, day) in plan.days.iter().enumerate() {
        let (left, new, all) = (x(index) + (column - inner) / 2.0, y(day.new), y(total(day)));
        line(
            &mut out,
            format_args!(
                r##"<rect x="{left:.1}" y="{new:.1}" width="{inner:.1}" height="{:.1}" fill="#1b5e20"/><rect x="{left:.1}" y="{all:.1}" width="{inner:.1}" height="{:.1}" fill="url(#hatch)" stroke="#666" stroke-width="0.5"/>"##,
                y(0) - new,
                new - all
            ),
        );
        if index % every == 0 || index + 1 == plan.days.len() {
            line(
                &mut out,
                format_args!(
                    r##"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
                    left + inner / 2.0,
                    HEIGHT - BOTTOM + 16.0,
                    day.number
                ),
            );
        }
    }
    let mut steps = String::new();
    for (index, day) in plan.days.iter().enumerate() {
        let to = if index == 0 { 'M' } else { 'L' };
        // Writing into a text cannot fail.
        let _ = write!(steps, "{to}{:.1} {:.1}H{:.1}", x(index), y(day.limit), x(index + 1));
    }
    line(
        &mut out,
        format_args!(r##"<path d="{steps}" fill="none" stroke="#000" stroke-width="2" stroke-dasharray="5 3"/>"##),
    );
    line(
        &mut out,
        format_args!(
            r##"<text x="{:.1}" y="{:.1}" text-anchor="middle">day</text>"##,
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 14.0
        ),
    );
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String, rest: &str) {
    line(
        out,
        format_args!(
            r##"<rect x="{LEFT}" y="34" width="14" height="12" fill="#1b5e20"/><text x="100" y="45">new</text><rect x="150" y="34" width="14" height="12" fill="url(#hatch)" stroke="#666" stroke-width="0.5"/><text x="170" y="45">{rest}</text><line x1="240" y1="40" x2="264" y2="40" stroke="#000" stroke-width="2" stroke-dasharray="5 3"/><text x="270" y="45">limit, recipients a day</text>"##
        ),
    );
}

fn line(out: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(what); // writing into a text cannot fail
    out.push('\n');
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
