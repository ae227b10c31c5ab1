//! A plan as rows of characters: one row per day, new and legacy side by side, the limit as a line.
//!
//! Fits the width it is given, and says nothing by colour alone. Pure.

use super::report::{Subject, verdict};
use crate::cli::text::{Paint, count};
use crate::policy::plan::{Plan, PlanDay, weekday_name};

/// Narrower terminals wrap the lines.
pub const COLUMNS_MIN: usize = 60;
/// Wider bars say nothing more.
pub const COLUMNS_MAX: usize = 160;
/// A plan that never ends is shown up to so many days after its limit was last raised.
const DAYS_AFTER_LAST_RISE: usize = 14;
const BAR_MIN: usize = 16;
const GAP: &str = "   ";

/// The whole answer, lines with their ends.
pub fn picture(subject: &Subject, plan: &Plan, columns: usize, paint: Paint) -> String {
    let shown = shown(plan);
    let notes: Vec<String> = shown.iter().map(|day| note(day, plan)).collect();
    let numbers = Numbers::of(shown, subject.holds);
    let room = columns.saturating_sub(numbers.width() + GAP.len()).max(BAR_MIN);
    let per_char = per_char(shown, &notes, room);

    let mut text = heading(subject);
    let rest = if subject.holds { "waiting" } else { "legacy" };
    text.push_str(&format!(
        "{}{GAP}{} new  {} {rest}  {} limit  (1 character = {})\n",
        paint.bold(&numbers.heading()),
        paint.good("#"),
        paint.dim("."),
        paint.bold("|"),
        count(per_char),
    ));
    for (day, note) in shown.iter().zip(&notes) {
        let line = format!("{}{GAP}{}{note}", numbers.row(day), bar(day, per_char, paint));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if shown.len() < plan.days.len() {
        let highest = plan.days.iter().map(|day| day.limit).max().unwrap_or(0);
        text.push_str(&format!("   … {} more days, none above {}\n", plan.days.len() - shown.len(), count(highest)));
    }
    text.push_str(&paint.bold(&verdict(plan, subject.holds)));
    text.push('\n');
    for (_, _, warning) in subject.warnings(plan) {
        text.push_str(&format!("{}  {warning}\n", paint.warn("WARN")));
    }
    text
}

fn heading(subject: &Subject) -> String {
    let about = subject.about.as_ref().map(|about| format!(" ({about})")).unwrap_or_default();
    let step = if subject.max_step == 0.0 { "off".to_owned() } else { format!("{:.1}", subject.max_step) };
    format!(
        "curve {}{about}, target {} a day, from {}\nmail {}, all day long; max_step {step}, min_used {} %\n",
        subject.curve,
        count(subject.target),
        subject.start,
        subject.mail(),
        (subject.min_used * 100.0).round(),
    )
}

/// The days worth a row.
fn shown(plan: &Plan) -> &[PlanDay] {
    if plan.full_on.is_some() {
        return &plan.days;
    }
    let highest = plan.days.iter().map(|day| day.limit).max().unwrap_or(0);
    let raised = plan.days.iter().position(|day| day.limit == highest).unwrap_or(0);
    &plan.days[..plan.days.len().min(raised + 1 + DAYS_AFTER_LAST_RISE)]
}

/// What the bar does not say.
fn note(day: &PlanDay, plan: &Plan) -> String {
    let percent = day.used() * 100.0;
    let percent = if day.counted { percent.round() } else { percent.floor() }; // never rounded up to what it lacks
    match day.counted {
        _ if plan.full_on == Some(day.number) => String::new(),
        false => format!("  {percent} % used: day repeats"),
        true if day.new < day.limit => format!("  {percent} % used, day counts"),
        true => String::new(),
    }
}

fn bar_total(day: &PlanDay) -> u64 {
    day.new.saturating_add(day.legacy).saturating_add(day.waiting)
}

/// Characters of new mail, of all mail, and up to the limit.
fn lengths(day: &PlanDay, per_char: u64) -> [usize; 3] {
    let chars = |recipients: u64| (recipients.saturating_add(per_char / 2) / per_char) as usize;
    let new = chars(day.new);
    [new, chars(bar_total(day)).max(new), chars(day.limit)]
}

/// Recipients that a character stands for: a round number with which every bar has room before its note.
fn per_char(days: &[PlanDay], notes: &[String], room: usize) -> u64 {
    let fits = |per_char: u64| {
        days.iter().zip(notes).all(|(day, note)| {
            let [_, all, limit] = lengths(day, per_char);
            all.max(limit) + note.chars().count() <= room.max(note.chars().count() + 1)
        })
    };
    let largest = days.iter().map(|day| bar_total(day).max(day.limit)).max().unwrap_or(1);
    let mut per_char = round_up(largest.div_ceil(room as u64));
    while !fits(per_char) {
        per_char = round_up(per_char.saturating_add(1)); // at the largest of all every bar is one character
    }
    per_char
}

/// `####....`, or `####  |` while the limit lies beyond.
fn bar(day: &PlanDay, per_char: u64, paint: Paint) -> String {
    let [new, all, limit] = lengths(day, per_char);
    let mut bar = paint.good(&"#".repeat(new));
    bar.push_str(&paint.dim(&".".repeat(all - new)));
    if limit > all {
        bar.push_str(&" ".repeat(limit - all - 1));
        bar.push_str(&paint.bold("|"));
    }
    bar
}

/// The next of 1, 2, 5, 10, 20, 50, …
fn round_up(number: u64) -> u64 {
    let mut power = 1u64;
    loop {
        for step in [1, 2, 5].map(|step| power.saturating_mul(step)) {
            if step >= number {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// The columns of numbers before the bar.
struct Numbers {
    holds: bool,
    widths: [usize; 4],
}

impl Numbers {
    fn of(days: &[PlanDay], holds: bool) -> Numbers {
        let rest = if holds { "waiting" } else { "legacy" };
        let mut widths = ["day".len(), "limit".len(), "new".len(), rest.len()];
        for day in days {
            for (width, cell) in widths.iter_mut().zip(Numbers::cells(day, holds)) {
                *width = cell.len().max(*width);
            }
        }
        Numbers { holds, widths }
    }

    fn cells(day: &PlanDay, holds: bool) -> [String; 4] {
        let rest = if holds { day.waiting } else { day.legacy };
        [day.number.to_string(), count(day.limit), count(day.new), count(rest)]
    }

    fn line(&self, weekday: &str, cells: [String; 4]) -> String {
        let [day, limit, new, rest] = self.widths;
        format!("{:>day$} {weekday:<3}  {:>limit$}  {:>new$}  {:>rest$}", cells[0], cells[1], cells[2], cells[3])
    }

    fn row(&self, day: &PlanDay) -> String {
        self.line(weekday_name(day.day), Numbers::cells(day, self.holds))
    }

    fn heading(&self) -> String {
        let rest = if self.holds { "waiting" } else { "legacy" };
        self.line("", ["day", "limit", "new", rest].map(str::to_owned))
    }

    fn width(&self) -> usize {
        self.heading().chars().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rules;
    use crate::policy::calendar::day_of_date;
    use crate::policy::plan::{Case, Demand, plan};
    use jiff::civil::date;

    fn drawn(demand: Demand, holds: bool, columns: usize, paint: Paint) -> String {
        let start = date(2026, 3, 2);
        let rules = Rules { target: 12_000, max_step: 0.0, start: Some(day_of_date(start)), ..Rules::default() };
        let subject = Subject {
            curve: "standard".into(),
            about: Some("50 on the first day, x 1.5".into()),
            target: rules.target,
            demand,
            start,
            max_step: rules.max_step,
            min_used: rules.min_used,
            holds,
            hourly: rules.hourly,
            published_hourly: None,
        };
        picture(&subject, &plan(&Case { rules: &rules, demand, holds, days_max: 120 }), columns, paint)
    }

    const WEEKS: Demand = Demand { weekday: 12_000, weekend: 4_800 };

    #[test]
    fn the_documented_ramp_is_drawn_row_by_row() {
        let text = drawn(WEEKS, false, 80, Paint::PLAIN);
        let row = |start: &str| {
            text.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_else(|| panic!("{start}\n{text}"))
        };
        assert!(text.contains("(1 character = 500)"), "{text}");
        assert_eq!(row("1 Mon"), "  1 Mon      50      50  11,950   ........................");
        assert_eq!(row("10 Wed"), " 10 Wed   1,922   1,922  10,078   ####....................");
        assert_eq!(row("14 Sun"), " 14 Sun   9,730   4,800       0   ##########        |  49 % used: day repeats");
        assert_eq!(row("16 Tue"), " 16 Tue  12,000  12,000       0   ########################");
        let verdict = "full volume on sending day 15 (calendar day 16); ramp total: 44,200 via new, 119,000 via legacy";
        assert!(text.contains(verdict), "{text}");
        let warning =
            "WARN  day 15 (Mon): 9,730 is x2.03 of the mail really sent (4,800); max_step = 2.0 would allow 9,600";
        assert!(text.lines().any(|line| line == warning), "{text}");
    }

    #[test]
    fn rows_fit_every_width_and_colour_adds_nothing_but_colour() {
        for demand in [WEEKS, Demand { weekday: 900_000_000, weekend: 7 }] {
            for columns in [72, 80, 100, 160] {
                let plain = drawn(demand, false, columns, Paint::PLAIN);
                let rows = plain.lines().skip(3).take_while(|line| !line.starts_with("full"));
                for line in rows {
                    assert!(line.chars().count() <= columns, "{columns}: {line}");
                }
                let coloured = drawn(demand, false, columns, Paint { colour: true });
                assert!(coloured.contains("\x1b["));
                let mut pieces = coloured.split("\x1b[");
                let first = pieces.next().unwrap_or_default();
                let rest = pieces.map(|piece| piece.split_once('m').map_or(piece, |(_, text)| text));
                let stripped: String = std::iter::once(first).chain(rest).collect();
                assert_eq!(stripped, plain);
            }
        }
    }

    #[test]
    fn a_ramp_without_end_is_cut_and_says_so() {
        let text = drawn(Demand { weekday: 500, weekend: 500 }, false, 80, Paint::PLAIN);
        assert!(text.lines().count() < 50, "{text}");
        assert!(text.contains("more days, none above 1,281") && text.contains("is not reached"), "{text}");
    }

    #[test]
    fn without_legacy_the_rest_is_said_to_wait() {
        let text = drawn(WEEKS, true, 80, Paint::PLAIN);
        assert!(text.contains(". waiting") && text.contains("still waiting") && !text.contains(" legacy  "), "{text}");
    }

    #[test]
    fn a_character_is_a_round_number() {
        for (number, expect) in
            [(0, 1), (1, 1), (3, 5), (11, 20), (500, 500), (501, 1_000), (u64::MAX / 2, 10_000_000_000_000_000_000)]
        {
            assert_eq!(round_up(number), expect);
        }
    }
}
