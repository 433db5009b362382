//! Keeps `docs/PROOF.md`, the models and the list of mutants in step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::{Mutant, mutants, repository};

/// A row of the tables.
struct Row {
    rule: String,
    code: String,
    models: BTreeSet<String>,
    mutants: Vec<String>,
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rows() -> Vec<Row> {
    let page = read(&repository().join("docs/PROOF.md"));
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| rule"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, code, models, mutants] = cells[..] else { panic!("not four cells: {row}") };
        let list = |cell: &str| cell.split("<br>").filter(|name| *name != "-").map(str::to_owned).collect::<Vec<_>>();
        Row {
            rule: rule.to_owned(),
            code: code.to_owned(),
            models: list(models).into_iter().map(|model| model.trim_matches('`').to_owned()).collect(),
            mutants: list(mutants),
        }
    })
    .collect()
}

fn models() -> BTreeSet<String> {
    let folder = repository().join("loom-tests/tests/models");
    let mut models = BTreeSet::new();
    for entry in fs::read_dir(&folder).expect("the models are there") {
        let path = entry.expect("the models are there").path();
        let module = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        let source = read(&path);
        let mut lines = source.lines();
        while lines.any(|line| line == "#[test]") {
            let name = lines.next().and_then(|line| line.strip_prefix("fn ")?.strip_suffix("() {"));
            models.insert(format!("{module}::{}", name.expect("a test is a function")));
        }
    }
    models
}

fn by_name() -> BTreeMap<String, Mutant> {
    mutants().into_iter().map(|mutant| (mutant.name.clone(), mutant)).collect()
}

#[test]
fn every_model_and_every_mutant_is_in_the_proof_and_no_other_is() {
    let rows = rows();
    let named: BTreeSet<_> = rows.iter().flat_map(|row| row.models.clone()).collect();
    assert_eq!(named, models());
    let named: BTreeSet<_> = rows.iter().flat_map(|row| row.mutants.clone()).collect();
    assert_eq!(named, by_name().into_keys().collect());
    assert_eq!(by_name().len(), mutants().len(), "two mutants have the same name");
}

#[test]
fn every_rule_has_a_mutant_that_one_of_its_models_kills() {
    let mutants = by_name();
    for row in rows() {
        assert!(!row.mutants.is_empty(), "{} is a rule without a mutant", row.rule);
        for name in &row.mutants {
            let mutant = &mutants[name];
            let killed = mutant.killed_by.iter().any(|model| row.models.contains(model));
            assert!(killed || mutant.harmless.is_some(), "none of the models of {:?} kills {name:?}", row.rule);
        }
    }
}

#[test]
fn every_function_that_the_proof_names_is_where_it_says() {
    for row in rows() {
        let mut source = None;
        for name in row.code.split('`').skip(1).step_by(2) {
            if Path::new(name).extension().is_some() {
                source = Some((name, read(&repository().join("src").join(name))));
            } else if name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_') {
                let (file, text) = source.as_ref().expect("a file comes first");
                assert!(text.contains(&format!("fn {name}")), "{file} has no {name}, for {:?}", row.rule);
            }
        }
        assert!(source.is_some(), "{:?} stands nowhere", row.rule);
    }
}

#[test]
fn the_text_of_every_mutant_is_in_its_file_exactly_once() {
    for mutant in mutants() {
        let found = read(&repository().join(&mutant.file)).matches(&mutant.find).count();
        assert_eq!(found, 1, "{:?}, in {}", mutant.name, mutant.file);
    }
}
