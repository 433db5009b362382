//! The alert rules and the dashboard: they use no metric that the gateway does not have. `promtool` checks the rules
//! themselves, and what they alert of.

use std::collections::BTreeSet;

use serde_json::Value;

const RULES: &str = include_str!("../../contrib/prometheus/fusebox.rules.yml");
const TESTS: &str = include_str!("../../contrib/prometheus/fusebox.tests.yml");
const DASHBOARD: &str = include_str!("../../contrib/prometheus/grafana.json");

/// The metrics that a text names, without what Prometheus adds to a histogram's name.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_');
    let is_metric = |word: &&str| word.starts_with("fusebox_") || word.starts_with("process_");
    let whole = |word: &'_ str| -> usize {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).map_or(word.len(), str::len)
    };
    words.filter(is_metric).map(|word| &word[..whole(word)]).collect()
}

#[test]
fn alerts_and_dashboard_use_only_metrics_that_are_documented() {
    let page = include_str!("../../docs/METRICS.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<_> = rows.filter(|row| row.contains('_')).collect();
    for text in [RULES, TESTS, DASHBOARD] {
        let named = named(text);
        assert!(named.len() > 5, "{named:?}");
        let unknown: Vec<_> = named.difference(&documented).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}

#[test]
fn every_panel_of_the_dashboard_asks_something_and_has_a_place_of_its_own() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 15);
    let mut places = BTreeSet::new();
    for panel in panels {
        let place = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().unwrap());
        assert!(place[0] + place[2] <= 24 && places.insert((place[1], place[0])), "{panel}");
        assert!(panel["targets"].as_array().unwrap().iter().all(|it| !it["expr"].as_str().unwrap().is_empty()));
    }
}
