//! `docs/metrics.md` says what `/metrics` exports, and dashboards and alerts are written from it. Here it is compared
//! with the program, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use mailramp::metrics::{Build, Metrics};

const TABLE: &str = include_str!("../docs/metrics.md");

/// Name, type, labels.
type Row = (String, String, BTreeSet<String>);

fn documented() -> Vec<Row> {
    TABLE
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let labels = cells[2].split(',').map(str::trim).filter(|label| *label != "-");
            (cells[0].trim_matches('`').into(), cells[1].into(), labels.map(String::from).collect())
        })
        .collect()
}

fn exported() -> Vec<Row> {
    let metrics = Metrics::new(&Build::default(), &["default".into(), "digest".into()]).unwrap();
    metrics
        .families()
        .iter()
        .map(|family| {
            let labels = family.get_metric()[0].get_label().iter().map(|pair| pair.name().to_string()).collect();
            (family.name().into(), format!("{:?}", family.get_field_type()).to_lowercase(), labels)
        })
        .collect()
}

#[test]
fn the_documented_table_and_the_registry_say_the_same() {
    let by_name = |rows: Vec<Row>| -> BTreeMap<String, (String, BTreeSet<String>)> {
        rows.into_iter()
            // The process collector reads /proc; elsewhere there is nothing to compare.
            .filter(|(name, _, _)| cfg!(target_os = "linux") || !name.starts_with("process_"))
            .map(|(name, kind, labels)| (name, (kind, labels)))
            .collect()
    };
    assert_eq!(by_name(documented()), by_name(exported()));
}

#[test]
fn every_label_value_of_a_closed_set_is_documented() {
    let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
    for family in metrics.families() {
        for pair in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
            if matches!(
                pair.name(),
                "result" | "reason" | "class" | "category" | "state" | "outcome" | "handler" | "code" | "action"
            ) {
                let row = TABLE.lines().find(|line| line.contains(&format!("`{}`", family.name()))).unwrap();
                // Tables of the same state share one list.
                let known = row.contains(pair.value()) || pair.name() == "state";
                assert!(known, "{}: {} is not in the table", family.name(), pair.value());
            }
        }
    }
}

#[test]
fn every_series_has_a_help_text_and_no_label_beyond_the_closed_sets() {
    let closed = [
        "version", "revision", "result", "stream", "reason", "route", "provider", "class", "category", "outcome",
        "state", "handler", "code", "action", "level",
    ];
    let metrics = Metrics::new(&Build::default(), &["default".into()]).unwrap();
    for family in metrics.families() {
        assert!(!family.help().is_empty(), "{}", family.name());
        for pair in family.get_metric().iter().flat_map(|metric| metric.get_label()) {
            assert!(closed.contains(&pair.name()), "{}: label {}", family.name(), pair.name());
        }
    }
}
