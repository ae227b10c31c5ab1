//! `mailramp plan` as an operator calls it: what it prints, draws and refuses; and that docs/curves.md shows what it
//! prints.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use mailramp::cli;
use serde_json::Value;

/// Exit code, standard output, standard error.
fn mailramp(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let all = std::iter::once("mailramp").chain(arguments.iter().copied()).map(OsString::from);
    let code = cli::run(all, |_| Err("not asked for".into()), false, false, &mut out, &mut errors);
    (code, String::from_utf8(out).expect("UTF-8"), String::from_utf8(errors).expect("UTF-8"))
}

/// A plan that must succeed.
fn plan(arguments: &[&str]) -> String {
    let (code, out, errors) = mailramp(&[&["plan"], arguments].concat());
    assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
    out
}

fn plan_as_json(arguments: &[&str]) -> Value {
    serde_json::from_str(&plan(&[arguments, &["--json"]].concat())).expect("one JSON object")
}

const WEEKS: [&str; 8] = ["--target", "12000", "--weekday", "12000", "--weekend", "4800", "--start", "2026-03-02"];

#[test]
fn weeks_with_quiet_weekends_come_to_the_documented_numbers() {
    for (max_step, new, legacy, sending_days) in [("0", 44_200, 119_000, 15), ("2.0", 44_070, 119_130, 16)] {
        let report = plan_as_json(&[&WEEKS[..], &["--max-step", max_step, "--min-used", "50%"]].concat());
        assert_eq!((report["via_new"].as_u64(), report["via_legacy"].as_u64()), (Some(new), Some(legacy)));
        assert_eq!(report["days_to_target"], 16);
        assert_eq!(
            report["sending_days_to_target"], sending_days,
            "the Sunday of the second week counts only if capped"
        );
        let days = report["days"].as_array().expect("days");
        assert_eq!(days.len(), 16);
        assert_eq!((&days[15]["limit"], &days[15]["date"]), (&Value::from(12_000), &Value::from("2026-03-17")));
        let sum = |key: &str| days.iter().map(|day| day[key].as_u64().expect("a number")).sum::<u64>();
        assert_eq!((sum("new"), sum("legacy")), (new, legacy));
    }
    let kinds = |report: Value| -> Vec<String> {
        let warnings = report["warnings"].as_array().expect("warnings").clone();
        warnings.iter().map(|warning| warning["kind"].as_str().expect("a word").to_owned()).collect()
    };
    assert_eq!(kinds(plan_as_json(&[&WEEKS[..], &["--max-step", "0"]].concat())), ["repeats", "step"]);
    assert_eq!(kinds(plan_as_json(&WEEKS)), ["capped"]);
    assert_eq!(kinds(plan_as_json(&["--target", "12000", "--per-day", "900"])), ["ample"]);
    let never = plan_as_json(&["--target", "60000", "--curve", "ses-like", "--start", "2026-03-02"]);
    assert_eq!((kinds(never.clone()), &never["days_to_target"]), (vec!["curve-ends".to_owned()], &Value::Null));
}

#[test]
fn what_is_printed_fits_80_columns_and_carries_no_colour() {
    let text = plan(&[&WEEKS[..], &["--max-step", "0"]].concat());
    assert!(!text.contains('\x1b'));
    assert!(text.contains("44,200 via new, 119,000 via legacy"), "{text}");
    let coloured = plan(&[&WEEKS[..], &["--color", "always"]].concat());
    assert!(coloured.contains("\x1b[32m#"));
    for line in text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn bad_input_ends_with_2_and_says_what_to_write() {
    for (arguments, words) in [
        (&["--curve", "standard"][..], "--target N"),
        (&["--target", "0"], "--target"),
        (&["--target", "many"], "--target"),
        (&["--target", "9", "--curve", "steep"], "must be one of gentle, standard, fast, sendgrid-auto"),
        (&["--target", "9", "--curve", "onesingal"], "did you mean \"onesignal\"?"),
        (&["--target", "9", "--curve", "custom"], "--config FILE"),
        (&["--target", "9", "--curve", "\x1b[2J"], "\\u001b"),
        (&["--target", "9", "--weekday", "5"], "--weekend"),
        (&["--target", "9", "--per-day", "5", "--weekday", "5", "--weekend", "5"], "cannot be used with"),
        (&["--target", "9", "--per-day", "0"], "--per-day"),
        (&["--target", "9", "--start", "tomorrow"], "a date such as 2026-03-02"),
        (&["--target", "9", "--start", "2026-03-02T10:00"], "a date such as 2026-03-02"),
        (&["--target", "9", "--max-step", "0.5"], "above 1 up to 100, or 0 for none"),
        (&["--target", "9", "--max-step", "NaN"], "above 1 up to 100"),
        (&["--target", "9", "--min-used", "0%"], "above 0% up to 100%"),
        (&["--target", "9", "--min-used", "50"], "such as 50%"),
        (&["--target", "9", "--days", "99999"], "--days"),
        (&["--target", "9", "--compare", "--curve", "fast"], "cannot be used with"),
    ] {
        let (code, out, errors) = mailramp(&[&["plan"], arguments].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{arguments:?}: {errors}");
    }
}

#[test]
fn the_settings_give_what_the_command_line_does_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("mailramp.toml");
    let config = ["--config", path.to_str().expect("UTF-8")];
    let write = |warmup: &str| {
        let text = format!("[new]\nhost = \"127.0.0.1:9002\"\n[warmup]\n{warmup}\n");
        fs::write(&path, text).expect("the settings can be written");
    };
    write("target = 400\ncurve = \"custom\"\ncustom = [100, 200]\ngrowth = 1.5\nstart = 2026-03-03\nmax_step = 0");
    let report = plan_as_json(&config);
    assert_eq!((&report["curve"], &report["start"]), (&Value::from("custom"), &Value::from("2026-03-03")));
    let limits: Vec<u64> =
        report["days"].as_array().unwrap().iter().map(|day| day["limit"].as_u64().unwrap()).collect();
    assert_eq!(limits, [100, 200, 300, 400]);
    // Without [legacy] what is over the limit waits.
    assert_eq!((&report["via_legacy"], &report["waiting"]), (&Value::from(0), &Value::from(600)));
    let over =
        plan_as_json(&[&config[..], &["--target", "300", "--curve", "formula", "--start", "2026-03-02"]].concat());
    assert_eq!((&over["target"], &over["days"][1]["limit"]), (&Value::from(300), &Value::from(75)));

    write("target = 0");
    let (code, _, errors) = mailramp(&[&["plan", "--target", "5"], &config[..]].concat());
    assert!(code == 78 && errors.contains("`warmup.target` = 0"), "{code}: {errors}");
    fs::write(folder.path().join("own.toml"), "curves = [1]").expect("it can be written");
    write("target = 5\ncurves_file = \"own.toml\"");
    let (code, _, errors) = mailramp(&[&["plan"], &config[..]].concat());
    assert!(code == 78 && errors.contains("own.toml:1:"), "{code}: {errors}");
}

#[test]
fn the_drawing_has_a_title_and_a_description_and_nothing_that_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("plan.svg");
    plan(&[&WEEKS[..], &["--max-step", "0", "--svg", path.to_str().expect("UTF-8")]].concat());
    let svg = fs::read_to_string(&path).expect("it was drawn");
    assert!(
        svg.contains("<title id=\"title\">Plan of a warm-up: curve standard, target 12,000 a day</title>"),
        "{svg}"
    );
    assert!(svg.contains("ramp total: 44,200 via new, 119,000 via legacy.</desc>"), "{svg}");
    assert!(svg.contains("aria-labelledby=\"title desc\"") && svg.contains("role=\"img\""));
    assert!(!svg.contains("<script") && !svg.contains("href") && !svg.contains("NaN") && !svg.contains("inf"));
    let of_new = svg.matches("fill=\"#1b5e20\"").count();
    assert_eq!(of_new, 16 + 1, "a column for each day, and the legend");
    assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    for tag in ["svg", "title", "desc", "defs", "pattern", "text"] {
        let opened = svg.matches(&format!("<{tag} ")).count() + svg.matches(&format!("<{tag}>")).count();
        assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let (code, _, errors) = mailramp(&[&["plan"], &WEEKS[..], &["--svg", "/nonexistent/x.svg"]].concat());
    assert!(code == 74 && errors.contains("/nonexistent/x.svg"), "{code}: {errors}");
}

/// The block after the command in docs/curves.md is what the command prints.
#[test]
fn the_table_of_curves_is_what_the_command_prints() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/curves.md");
    let text = fs::read_to_string(page).expect("docs/curves.md");
    let mut blocks = 0;
    for block in text.split("```text\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block ends");
        let (command, table) = block.split_once('\n').expect("a command and what it prints");
        let words: Vec<&str> = command.strip_prefix("$ mailramp ").expect("a command").split_whitespace().collect();
        let (code, out, errors) = mailramp(&words);
        assert_eq!((code, errors.as_str()), (0, ""), "{command}");
        assert_eq!(table, out, "docs/curves.md does not show what `{command}` prints");
        blocks += 1;
    }
    assert!(blocks >= 1, "docs/curves.md shows no command");
}
