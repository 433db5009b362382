//! What readers may take for granted of the sources: which module knows which, how long a file is, where the atomics
//! are.

use std::fs::read_to_string;
use std::path::Path;

use crate::sources::{Source, sources, used};

/// The floors, from the lowest to the highest: a file may use what stands in the lines above its own. Modules in one
/// line may use each other, and so may the files of a folder that stands here as one. `ARCHITECTURE.md` draws the same.
const FLOORS: &[&[&str]] = &[
    &["sync"],
    &["clock"],
    &["transition"],
    &["word::step", "word"],
    &["config"],
    &["error"],
    &["window"],
    &["settings"],
    &["feed"],
    &["breaker", "event", "permit"],
    &["registry"],
    &["silence"],
    // What leaves the process and comes back.
    &["export"],
    // The metrics of a registry.
    &["metrics"],
    // What replicas tell each other.
    &["fleet::figures", "fleet::message"],
    &["fleet::beliefs", "fleet::circle"],
    &["fleet"],
    // The layer for tower.
    &["tower::error"],
    &["tower::classify"],
    &["tower::http", "tower::source", "tower::future"],
    &["tower::service"],
    &["tower::layer"],
    &["tower"],
    // The gateway: what everything else is made of,
    &["proxy::wall_clock"],
    &["proxy::outcome"],
    &["proxy::place"],
    &["proxy::counts"],
    &["proxy::later"],
    &["proxy::answer"],
    &["proxy::protocol"],
    &["proxy::body::budget"],
    &["proxy::body::parts"],
    &["proxy::body::pieces"],
    &["proxy::body"],
    &["proxy::config"],
    &["proxy::timers"],
    // what a client asks for,
    &["proxy::request::client"],
    &["proxy::request::path"],
    &["proxy::request::headers"],
    &["proxy::request::ids"],
    &["proxy::owners"],
    &["proxy::request::model"],
    &["proxy::request::session"],
    &["proxy::request::upload"],
    &["proxy::request"],
    // connections to providers,
    &["proxy::upstream"],
    // the circuits of a provider's models,
    &["proxy::circuits::cooldown"],
    &["proxy::circuits::gate"],
    &["proxy::circuits"],
    &["proxy::keys"],
    &["proxy::orders"],
    // providers that do not answer,
    &["proxy::silence::allowance"],
    &["proxy::silence"],
    // what is told of it all,
    &["proxy::observe::lines"],
    &["proxy::observe::log"],
    &["proxy::observe::facts"],
    &["proxy::observe::access_log"],
    &["proxy::provider", "proxy::observe::metrics"],
    &["proxy::observe::figures"],
    &["proxy::observe::chronicle"],
    &["proxy::observe::health"],
    &["proxy::observe"],
    // traces of requests (feature "otel"),
    &["proxy::traces"],
    // what requests share,
    &["proxy::certificates"],
    &["proxy::state"],
    &["proxy::core"],
    &["proxy::online"],
    &["proxy::keeper"],
    &["proxy::replica"],
    // the way of a request,
    &["proxy::route::ending"],
    &["proxy::route::blame"],
    &["proxy::route::inside"],
    &["proxy::route::meaning"],
    &["proxy::route::sse"],
    &["proxy::route::receive"],
    &["proxy::route::usage"],
    &["proxy::route::attempts"],
    &["proxy::route::exchange"],
    &["proxy::route::ask"],
    &["proxy::route::stream"],
    &["proxy::route::judge"],
    &["proxy::route::choose"],
    &["proxy::route::failover"],
    &["proxy::route::explain"],
    &["proxy::route"],
    // and connections of clients.
    &["proxy::edge::descriptors"],
    &["proxy::edge::socket"],
    &["proxy::edge::http1"],
    &["proxy::edge::draining"],
    &["proxy::edge::http2"],
    &["proxy::edge::accept"],
    &["proxy::edge::heartbeat"],
    &["proxy::edge::v1"],
    &["proxy::edge::relay"],
    &["proxy::edge::session"],
    // What operators see and do.
    &["proxy::admin"],
    &["proxy::edge::routes"],
    &["proxy::edge::operators"],
    &["proxy::edge::cores", "proxy::edge::clients"],
    &["proxy::edge"],
    &["proxy::server"],
    &["proxy::fuzz"],
];

/// A longer file says at its top why it is long.
const LONG: usize = 500;

/// The library's files, without those that only put it together, and without tests.
fn modules() -> Vec<Source> {
    let faces = ["src/lib.rs", "src/guide.rs", "src/proxy/mod.rs"];
    let mut modules = sources(&["src"]);
    modules
        .retain(|source| !faces.contains(&&*source.path) && !is_binary(source) && !source.path.ends_with("/tests.rs"));
    assert!(modules.iter().any(|source| source.code().contains("pub struct CircuitBreaker ")));
    modules
}

/// Whether a file belongs to the binary, which uses the library as anybody does.
fn is_binary(source: &Source) -> bool {
    ["src/main.rs", "src/ctl.rs", "src/log_file.rs"].contains(&&*source.path) || source.path.starts_with("src/demo")
}

/// The library without its optional parts, and without the lines that say that there are any.
fn core() -> Vec<Source> {
    let mut core = modules();
    core.retain(|source| {
        !["src/proxy/", "src/export", "src/fleet", "src/metrics", "src/tower"]
            .iter()
            .any(|part| source.path.starts_with(part))
    });
    let mut root = sources(&["src"]).into_iter().find(|source| source.path == "src/lib.rs").unwrap();
    for part in ["fleet", "metrics", "proxy", "tower"] {
        root.text = root.text.replace(&format!("#[cfg(feature = \"{part}\")]\npub mod {part};\n"), "");
    }
    core.push(root);
    core
}

/// The floor that a path leads to: the longest beginning of it that stands in [`FLOORS`].
fn floor(path: &[&str]) -> Option<(usize, String)> {
    (1..=path.len().min(3)).rev().find_map(|length| {
        let name = path[..length].join("::");
        Some((FLOORS.iter().position(|floor| floor.contains(&&*name))?, name))
    })
}

#[test]
fn arrows_go_one_way() {
    let mut arrows = 0;
    for source in modules() {
        let module = source.module();
        let (own_floor, own) = floor(&module).unwrap_or_else(|| panic!("{} stands on no floor", source.path));
        for path in used(&source.code(), &module) {
            let path: Vec<_> = path.iter().map(String::as_str).collect();
            let Some((known, other)) = floor(&path) else {
                // The library's own names, as its users see them.
                assert!(module[0] == "proxy" && path.len() <= 2, "{} uses {path:?}", source.path);
                continue;
            };
            let is_its_own_part = other.starts_with(&format!("{own}::"));
            assert!(
                known < own_floor || other == own || is_its_own_part || FLOORS[known].contains(&&*own),
                "{} uses {other}, which stands above it",
                source.path
            );
            arrows += usize::from(known < own_floor);
        }
    }
    assert!(arrows > 150, "{arrows}");
}

#[test]
fn every_floor_is_there() {
    let modules = modules();
    for name in FLOORS.iter().copied().flatten() {
        let path: Vec<_> = name.split("::").collect();
        assert!(modules.iter().any(|source| source.module().starts_with(&path)), "there is no {name}");
    }
}

/// A module with parts of its own is `name.rs` beside `name/`. Only the gateway's root, which was there first, is a
/// `mod.rs`.
#[test]
fn modules_are_laid_out_in_one_way() {
    let all = sources(&["src", "benches", "loom-tests"]);
    let roots: Vec<_> = all.iter().map(|source| &*source.path).filter(|path| path.ends_with("/mod.rs")).collect();
    assert_eq!(roots, ["src/proxy/mod.rs"]);
}

#[test]
fn every_name_in_the_architecture_exists() {
    let map = read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let code: String = sources(&["src"]).iter().map(Source::code).collect();
    let (_, lives) = map.split_once("## A call").unwrap();
    let (lives, _) = lives.split_once("## Elsewhere").unwrap();
    let mut names = 0;
    for name in lives.split('`').skip(1).step_by(2) {
        names += 1;
        if Path::new(name).extension().is_some() {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            assert!(root.join(name).is_file() || root.join("src/proxy").join(name).is_file(), "there is no {name}");
            continue;
        }
        let last = name.rsplit("::").next().unwrap();
        let is_there = ["fn ", "struct ", "enum ", "mod "].iter().any(|kind| {
            code.match_indices(&format!("{kind}{last}"))
                .any(|(at, found)| !code[at + found.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        });
        assert!(is_there || name == "Notify", "there is no {name}");
    }
    assert!(names > 30, "{names}");
}

#[test]
fn every_file_says_what_it_holds() {
    for source in sources(&["src", "tests", "examples", "benches", "loom-tests"]) {
        assert!(source.text.starts_with("//!") || source.text.starts_with("#!"), "{}", source.path);
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
}

/// rustfmt leaves comments and long texts alone.
#[test]
fn no_line_of_prose_is_wider_than_120_columns() {
    let mut texts: Vec<_> = sources(&["src", "tests", "examples", "benches", "loom-tests"])
        .into_iter()
        .flat_map(|source| {
            let comments = source.text.lines().filter(|line| line.trim_start().starts_with("//"));
            comments.map(|line| (source.path.clone(), line.to_owned())).collect::<Vec<_>>()
        })
        .collect();
    for (path, text) in pages() {
        // Tables and listings are as wide as they have to be.
        let mut is_listing = false;
        for line in text.lines() {
            is_listing ^= line.starts_with("```");
            if !is_listing && !line.starts_with(['|', '{', '[']) {
                texts.push((path.clone(), line.to_owned()));
            }
        }
    }
    let example = include_str!("../../fusebox.example.toml").lines();
    texts.extend(example.map(|line| ("fusebox.example.toml".to_owned(), line.to_owned())));
    assert!(texts.len() > 3000, "{}", texts.len());
    for (path, line) in texts {
        // A link and a row of a table cannot be broken.
        let is_row = line.trim_start_matches(['/', '!', ' ']).starts_with('|');
        assert!(line.chars().count() <= 120 || is_row || line.contains("://"), "{path}: {line}");
    }
}

/// What people read beside the code.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/guide"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                pages.push((name, read_to_string(&path).unwrap()));
            }
        }
    }
    pages
}

#[test]
fn the_core_knows_nothing_of_its_optional_parts() {
    for source in core() {
        for crate_or_module in ["proxy", "metrics::", "tower_", "crate::tower", "hyper", "axum", "http"] {
            assert!(!source.code().contains(crate_or_module), "{} names {crate_or_module}", source.path);
        }
    }
}

#[test]
fn the_word_is_changed_by_one_compare_and_swap_and_no_call_on_a_closed_circuit_takes_a_lock() {
    for source in core() {
        let (path, code) = (&*source.path, source.code());
        // The locks of those who change the map, the settings or the state.
        let may_lock = ["src/registry.rs", "src/settings.rs", "src/feed.rs"].contains(&path);
        assert!(!code.contains("unsafe") && (!code.contains(".lock(") || may_lock), "{path}");
        // What the cores tell each other of silence is no part of the word, nor are settings and the last calls.
        if ["src/settings.rs", "src/window.rs"].contains(&path) || path.starts_with("src/silence") {
            let counts_down = path == "src/window.rs";
            assert_eq!(code.matches("compare_exchange").count(), usize::from(counts_down), "{path}");
            continue;
        }
        for forbidden in ["SeqCst", "fetch_update"] {
            assert!(!code.contains(forbidden), "{path} has {forbidden}");
        }
        // The registry's map.
        assert!(!code.contains(".store(") || path == "src/registry.rs", "{path}");
        let swaps = code.matches("compare_exchange").count();
        assert_eq!(swaps, usize::from(path == "src/breaker/protocol.rs"), "{path}");
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
