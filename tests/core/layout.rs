//! What readers take for granted of the sources: who knows whom, how long a file is, where the atomics are.

use std::fs::read_to_string;
use std::path::Path;

use crate::sources::{Source, sources, used};

/// From who is known to who knows: what a line has may use what the lines above it have. Modules in one line are one thing in
/// several files, as is a folder, and may use each other. `ARCHITECTURE.md` draws the same.
const LEVELS: &[&[&str]] = &[
    &["sync"],
    &["clock"],
    &["word"],
    &["config"],
    &["error"],
    &["settings"],
    &["breaker", "event", "permit"],
    &["registry"],
    &["silence"],
    // The gateway: what a message is made of,
    &["proxy::path"],
    &["proxy::budget"],
    &["proxy::parts"],
    &["proxy::pieces"],
    &["proxy::sse"],
    &["proxy::headers"],
    &["proxy::model"],
    &["proxy::answer"],
    // what it is run by,
    &["proxy::config"],
    &["proxy::descriptors"],
    &["proxy::timers"],
    &["proxy::lines"],
    &["proxy::log"],
    &["proxy::socket"],
    &["proxy::drain"],
    // how a provider is reached,
    &["proxy::upload"],
    &["proxy::upstream"],
    // what is known of it,
    &["proxy::classify"],
    &["proxy::hold"],
    &["proxy::silence"],
    &["proxy::metrics"],
    &["proxy::provider"],
    &["proxy::state"],
    &["proxy::health"],
    &["proxy::cores"],
    // and a request's way.
    &["proxy::record"],
    &["proxy::stream"],
    &["proxy::client_body"],
    &["proxy::attempt"],
    &["proxy::failover"],
    &["proxy::forward"],
    &["proxy::server"],
    &["proxy::fuzz"],
    &["proxy::demo"],
];

/// Above it a file says at its top why it is as long.
const LONG: usize = 500;

/// What the library is made of, without the files that only put it together, and without tests.
fn modules() -> Vec<Source> {
    let faces = ["src/lib.rs", "src/main.rs", "src/guide.rs", "src/proxy/mod.rs"];
    let mut modules = sources(&["src"]);
    modules.retain(|source| !faces.contains(&&*source.path) && !source.path.ends_with("/tests.rs"));
    assert!(modules.iter().any(|source| source.code().contains("pub struct CircuitBreaker ")));
    modules
}

/// The library without the gateway, and without where it says that there is one.
fn core() -> Vec<Source> {
    let mut core = modules();
    core.retain(|source| !source.path.starts_with("src/proxy/"));
    let mut root = sources(&["src"]).into_iter().find(|source| source.path == "src/lib.rs").unwrap();
    root.text = root.text.replace("#[cfg(feature = \"proxy\")]\npub mod proxy;\n", "");
    core.push(root);
    core
}

/// The name in [`LEVELS`].
fn unit(module: &[&str]) -> String {
    match module {
        ["proxy", name, ..] => format!("proxy::{name}"),
        [name, ..] => (*name).to_owned(),
        [] => String::new(),
    }
}

#[test]
fn arrows_go_one_way() {
    let level = |unit: &str| LEVELS.iter().position(|level| level.contains(&unit));
    let mut arrows = 0;
    for source in modules() {
        let module = source.module();
        let own = unit(&module);
        let own_level = level(&own).unwrap_or_else(|| panic!("{}: {own} is in no level", source.path));
        for path in used(&source.code(), &module) {
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            let other = unit(&path);
            let Some(known) = level(&other) else {
                // The library's own names, as its users see them.
                assert!(module[0] == "proxy" && path.len() == 1, "{} uses {path:?}", source.path);
                continue;
            };
            assert!(
                known < own_level || other == own || LEVELS[known].contains(&&*own),
                "{} uses {other}, which stands above it",
                source.path
            );
            arrows += usize::from(known < own_level);
        }
    }
    assert!(arrows > 150, "{arrows}");
}

#[test]
fn what_the_map_names_is_there() {
    let map = read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let code: String = sources(&["src"]).iter().map(Source::code).collect();
    let (_, lives) = map.split_once("## A call").unwrap();
    let (lives, _) = lives.split_once("## Elsewhere").unwrap();
    let mut names = 0;
    for name in lives.split('`').skip(1).step_by(2) {
        let last = name.rsplit("::").next().unwrap();
        let is_there = ["fn ", "struct ", "enum ", "mod "].iter().any(|kind| {
            code.match_indices(&format!("{kind}{last}"))
                .any(|(at, found)| !code[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        });
        assert!(is_there || name == "Notify", "there is no {name}");
        names += 1;
    }
    assert!(names > 30, "{names}");
}

#[test]
fn every_file_says_what_it_holds_and_those_of_the_library_what_they_do_not() {
    for source in sources(&["src", "tests", "examples", "benches", "loom-tests"]) {
        assert!(source.text.starts_with("//!") || source.text.starts_with("#!"), "{}", source.path);
    }
    for source in modules() {
        assert!(source.header().contains("Not here: "), "{}: {}", source.path, source.header());
    }
}

#[test]
fn files_are_short_and_a_long_one_says_why() {
    let all = sources(&["src", "tests", "examples", "benches", "loom-tests"]);
    for source in &all {
        let lines = source.text.lines().count();
        assert!(lines <= LONG || source.header().contains("Longer than 500 lines: "), "{}: {lines}", source.path);
    }
    for source in all.iter().filter(|source| source.path.starts_with("examples/")) {
        assert!(source.text.lines().count() < 60, "{}", source.path);
    }
    let mut lines: Vec<_> = sources(&["src"]).iter().map(|source| source.text.lines().count()).collect();
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    println!("src: {} files, median {median} lines, longest {}", lines.len(), lines.last().unwrap());
    assert!((150..=250).contains(&median), "{median}");
    let readme = read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    assert!(readme.lines().count() <= 150);
}

#[test]
fn the_core_knows_nothing_of_the_gateway() {
    for source in core() {
        for crate_or_module in ["proxy", "hyper", "axum", "http"] {
            assert!(!source.code().contains(crate_or_module), "{} names {crate_or_module}", source.path);
        }
    }
}

#[test]
fn the_word_is_changed_by_one_compare_and_swap_and_a_breaker_has_no_lock() {
    for source in core() {
        let (path, code) = (&*source.path, source.code());
        assert!(!code.contains("unsafe") && !code.contains(".lock(") || path == "src/registry.rs", "{path}");
        // What the cores tell each other of silence is no part of the word, nor are settings.
        if path == "src/settings.rs" || path.starts_with("src/silence") {
            assert!(!code.contains("compare_exchange"), "{path}");
            continue;
        }
        for forbidden in ["SeqCst", "fetch_update"] {
            assert!(!code.contains(forbidden), "{path} has {forbidden}");
        }
        // The registry's map.
        assert!(!code.contains(".store(") || path == "src/registry.rs", "{path}");
        let swaps = code.matches("compare_exchange").count();
        assert_eq!(swaps, usize::from(path == "src/breaker.rs"), "{path}");
    }
}

#[test]
fn atomics_locks_and_time_come_through_one_door() {
    for source in core().into_iter().filter(|source| !source.path.starts_with("src/sync")) {
        let code = source.code();
        for forbidden in ["std::sync::atomic", "arc_swap", "parking_lot", "tokio::", "std::sync::Mutex"] {
            assert!(!code.contains(forbidden), "{} names {forbidden}", source.path);
        }
        // Silence is told the time by its caller.
        let mut clocks = code.lines().filter(|line| line.contains("std::time::") && line.contains("Instant"));
        assert!(clocks.next().is_none() || source.path.starts_with("src/silence"), "{} reads a clock", source.path);
    }
}
