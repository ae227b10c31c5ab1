//! The picture of the ramp: one row per day, new and legacy side by side, the limit as a line.
//!
//! On a terminal the rows of finished days stay and the lines below them are drawn again; elsewhere each finished day is
//! one line. Everything fits 80 columns, and nothing is said by colour alone. Pure: gives texts, writes nothing.

use crate::cli::text::{Paint, count};

/// Characters of a full day.
const BAR_WIDTH: u64 = 24;
/// A day may show somewhat more than the target: its limit.
const BAR_MAX: u64 = BAR_WIDTH + 6;
const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// One day. Recipients throughout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Counted from 0, a Monday.
    pub day: u32,
    /// `None`: the ramp is complete.
    pub limit: Option<u64>,
    pub new: u64,
    pub legacy: u64,
    /// Most that waited for a token at one time.
    pub held: u64,
}

/// How much a character is, and whether there are colours.
#[derive(Clone, Copy, Debug)]
pub struct Picture {
    per_char: u64,
    paint: Paint,
}

impl Picture {
    /// `target`: recipients of a full day.
    pub fn new(target: u64, paint: Paint) -> Picture {
        Picture { per_char: target.div_ceil(BAR_WIDTH).max(1), paint }
    }

    pub fn heading(&self) -> String {
        let (new, line) = (self.paint.good("#"), self.paint.bold("|"));
        let columns = self.paint.bold(" day        limit      new   legacy   held");
        format!("{columns}   {new} new  . legacy  {line} limit  1 = {}\n", count(self.per_char))
    }

    pub fn row(&self, row: &Row) -> String {
        let limit = row.limit.map_or("none".into(), count);
        let numbers = format!(
            "{:>3} {} {limit:>8} {:>8} {:>8} {:>6}",
            row.day + 1,
            weekday(row.day),
            count(row.new),
            count(row.legacy),
            count(row.held),
        );
        format!(" {numbers}   {}\n", self.bar(row)).replace(" \n", "\n")
    }

    /// `####|....`, or `####  |` while the limit lies beyond.
    fn bar(&self, row: &Row) -> String {
        let chars = |recipients: u64| ((recipients + self.per_char / 2) / self.per_char).min(BAR_MAX);
        let new = chars(row.new);
        let all = chars(row.new + row.legacy).max(new);
        let limit = row.limit.map(|limit| chars(limit).min(BAR_MAX));
        let mut bar = self.paint.good(&"#".repeat(new as usize));
        // Where mail goes to legacy the line is where the two meet; it is drawn where it can be seen.
        bar.push_str(&self.paint.dim(&".".repeat((all - new) as usize)));
        if let Some(limit) = limit.filter(|limit| *limit > all) {
            bar.push_str(&" ".repeat((limit - all - 1) as usize));
            bar.push_str(&self.paint.bold("|"));
        }
        if new == 0 && all == 0 && limit.is_none() { String::new() } else { bar }
    }
}

pub fn weekday(day: u32) -> &'static str {
    WEEKDAYS[day as usize % WEEKDAYS.len()]
}

/// The part of the screen that is drawn again and again, as control sequences.
#[derive(Debug, Default)]
pub struct Live {
    lines: usize,
}

impl Live {
    /// `above` stays for good; `below` until the next call.
    pub fn draw(&mut self, above: &str, below: &str) -> String {
        let up = if self.lines > 0 { format!("\x1b[{}A\r", self.lines) } else { String::new() };
        self.lines = below.lines().count();
        // The end of each line is cleared rather than the screen first: so nothing flickers.
        let mut text = up;
        for line in above.lines().chain(below.lines()) {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(day: u32, limit: u64, new: u64, legacy: u64, held: u64) -> String {
        let row = Row { day, limit: Some(limit), new, legacy, held };
        Picture::new(12_000, Paint::PLAIN).row(&row)
    }

    #[test]
    fn a_day_is_one_row() {
        assert_eq!(
            row(0, 50, 50, 11_912, 3),
            "   1 Mon       50       50   11,912      3   ........................\n"
        );
        assert_eq!(
            row(9, 1_922, 1_922, 9_900, 118),
            "  10 Wed    1,922    1,922    9,900    118   ####....................\n"
        );
    }

    #[test]
    fn a_limit_that_is_not_reached_is_a_line_to_the_right() {
        assert_eq!(row(13, 9_730, 7_117, 0, 0), "  14 Sun    9,730    7,117        0      0   ##############    |\n");
    }

    #[test]
    fn every_line_fits_80_columns_and_colour_adds_nothing_but_colour() {
        let row = Row { day: 14, limit: Some(99_999), new: 12_000, legacy: 99_999, held: 99_999 };
        let picture = Picture::new(12_000, Paint::PLAIN);
        for line in [picture.heading(), picture.row(&row)] {
            assert!(line.chars().count() <= 81, "{}: {line}", line.chars().count());
        }
        let coloured = Picture::new(12_000, Paint { colour: true }).row(&row);
        let plain: String = coloured.split("\x1b[").map(|p| p.split_once('m').map_or(p, |(_, text)| text)).collect();
        assert_eq!(plain, picture.row(&row));
    }

    #[test]
    fn what_is_live_is_drawn_over_and_what_is_done_stays() {
        let mut live = Live::default();
        assert_eq!(live.draw("", "a\nb\n"), "a\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(live.draw("done\n", "c\n"), "\x1b[2A\rdone\x1b[K\nc\x1b[K\n\x1b[J");
        assert_eq!(live.draw("", ""), "\x1b[1A\r\x1b[J");
    }
}
