//! How commands write numbers, times, tables and colours. Pure.

use jiff::tz::TimeZone;

use crate::message::Timestamp;

/// Colours, or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    pub colour: bool,
}

impl Paint {
    pub const PLAIN: Paint = Paint { colour: false };

    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }
    pub fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
    pub fn bad(self, text: &str) -> String {
        self.with("31;1", text)
    }
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// `12,345`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 message`, `2 messages`
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `root`, `uid 1000`: a user of this machine.
pub fn user(id: u32) -> String {
    if id == 0 { "root".into() } else { format!("uid {id}") }
}

/// `41 s`, `52 min`, `1h12`, `4h`, `3 d`: two significant parts at most, rounded down.
pub fn span(seconds: u64) -> String {
    const HOUR: u64 = 3_600;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..HOUR => format!("{} min", seconds / 60),
        HOUR..DAY => match seconds % HOUR / 60 {
            0 => format!("{}h", seconds / HOUR),
            minutes => format!("{}h{minutes:02}", seconds / HOUR),
        },
        _ => match seconds % DAY / HOUR {
            0 => format!("{} d", seconds / DAY),
            hours => format!("{} d {hours}h", seconds / DAY),
        },
    }
}

/// `512 B`, `41 kB`, `1.2 GB`: decimal units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// `#############-------`: full only when all is used, empty only when nothing is.
pub fn bar(part: u64, whole: u64, width: usize) -> String {
    let filled = match whole {
        0 => 0,
        _ => (u128::from(part.min(whole)) * width as u128 / u128::from(whole)) as usize,
    };
    let filled = if part > 0 && whole > 0 { filled.max(1) } else { filled };
    "#".repeat(filled) + &"-".repeat(width - filled)
}

/// A time in a zone, by a `strftime` pattern. An unknown zone is shown as UTC.
pub fn local(at: Timestamp, zone: &TimeZone, pattern: &str) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(at.0)) {
        Ok(at) => at.to_zoned_datetime(zone.clone()).strftime(pattern).to_string(),
        Err(_) => "-".into(),
    }
}

/// The zone and the name to show for it.
pub fn zone(name: &str) -> (TimeZone, &str) {
    match TimeZone::get(name) {
        Ok(zone) => (zone, name),
        Err(_) => (TimeZone::UTC, "UTC"),
    }
}

/// Rows in columns two blanks apart; `right` says which columns are numbers. No blanks at the end of a line.
pub fn table(rows: &[Vec<String>], right: &[bool]) -> String {
    let mut widths = vec![0; right.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(&widths).zip(right) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(count(number), text);
        }
        let spans = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (4_320, "1h12"),
            (14_400, "4h"),
            (86_400, "1 d"),
            (187_200, "2 d 4h"),
        ];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (41_000, "41 kB"), (999_990, "1.0 MB"), (18_200_000_000, "18 GB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_bar_is_full_only_when_all_is_used_and_empty_only_when_nothing_is() {
        assert_eq!(bar(1019, 1281, 20), "###############-----");
        assert_eq!(bar(0, 10, 4), "----");
        assert_eq!(bar(1, 1_000_000, 4), "#---");
        assert_eq!(bar(999_999, 1_000_000, 4), "###-");
        assert_eq!(bar(12, 10, 4), "####");
        assert_eq!(bar(5, 0, 4), "----");
    }

    #[test]
    fn columns_line_up_and_lines_end_where_the_text_does() {
        let rows = [vec!["A".into(), "N".into(), "é".into()], vec!["bb".into(), "10".into(), String::new()]];
        assert_eq!(table(&rows, &[false, true, false]), "A    N  é\nbb  10\n");
    }
}
