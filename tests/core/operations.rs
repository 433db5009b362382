//! `docs/OPERATIONS.md` has every line of the log and every code of an error, and none that there is not.

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
    for start in [" warn!(", " info!(", " error!(", ":warn!(", ":info!(", " transition!("] {
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

#[test]
fn every_code_of_an_error_is_explained() {
    let named = ["answer", "forward", "upload", "sse"].map(|name| format!("src/proxy/{name}.rs"));
    let code: String = sources(&["src"]).iter().filter(|it| named.contains(&it.path)).map(Source::code).collect();
    let is_code =
        |text: &&str| text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    // Of other people's formats.
    let others = ["content_block_start", "message_start", "owned_by", "invalid_request_error", "server_error"];
    let codes: BTreeSet<_> = code.split('"').filter(is_code).filter(|text| !others.contains(text)).collect();
    assert!(codes.len() > 12, "{codes:?}");
    assert_eq!(codes, listed("What clients get").into_iter().filter(is_code).collect());
}
