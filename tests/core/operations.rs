//! `docs/OPERATIONS.md` explains every line of the log, and no other. The codes of errors are compared in
//! `src/proxy/answer.rs`.

use std::collections::BTreeSet;

use crate::sources::{Source, sources};

const PAGE: &str = include_str!("../../docs/OPERATIONS.md");

/// The texts between backticks in the second column of a table.
fn listed(heading: &str) -> BTreeSet<&'static str> {
    let (_, table) = PAGE.split_once(&format!("## {heading}\n")).unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows = table.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(2));
    rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_line_of_the_log_is_explained() {
    let code: String = sources(&["src"]).iter().map(Source::code).collect();
    let mut lines = BTreeSet::new();
    for start in [" warn!(", " info!(", " error!(", ":warn!(", ":info!(", " log!("] {
        for (at, _) in code.match_indices(start) {
            let call = code[at..].split("\")").next().unwrap();
            let message = call.rsplit('"').next().unwrap();
            if !message.starts_with('{') {
                lines.insert(message);
            }
        }
    }
    assert!(lines.len() > 18, "{lines:?}");
    assert_eq!(lines, listed("Each line of the log"));
}
