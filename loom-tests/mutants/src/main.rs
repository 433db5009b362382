//! Makes one deliberate mistake after the other in a copy of the sources, and runs the tests that are said to notice.
//!
//! A model that passes proves nothing until it has been seen to fail. `loom-tests/mutants.toml` lists the mistakes as
//! edits of the sources; a copy has a workspace of its own.

mod copy;
#[cfg(test)]
mod proof;
mod suite;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use copy::Copy;
use serde::Deserialize;
use suite::{Suites, Verdict};

/// The list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// The mistake, in words.
    name: String,
    /// Relative to the root of the repository.
    file: String,
    /// What the mistake replaces. It has to be in the file exactly once: who changes it is told to look at the mutant
    /// again.
    find: String,
    replace: String,
    /// Why there is a rule that it breaks.
    why: String,
    /// The models that must fail, each by itself.
    #[serde(default)]
    killed_by: Vec<String>,
    /// Whether the histories of real threads must fail, too.
    #[serde(default)]
    in_histories: bool,
    /// Why it is none, although it looks like one: then all models must pass.
    harmless: Option<String>,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders below the root")
}

fn mutants() -> Vec<Mutant> {
    let path = repository().join("loom-tests/mutants.toml");
    let list = std::fs::read_to_string(&path).expect("the list is readable");
    toml::from_str::<List>(&list).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mutant
}

/// Leaves out what runs all models: the copy without a mutant, which is for who has not run them just before, and the
/// mutants that are harmless.
const QUICK: &str = "--quick";

fn main() -> ExitCode {
    let started = Instant::now();
    let mut mutants = mutants();
    let all = mutants.len();
    let mut is_quick = false;
    for argument in std::env::args().skip(1) {
        if argument == QUICK {
            is_quick = true;
            mutants.retain(|mutant| mutant.harmless.is_none());
        } else {
            mutants.retain(|mutant| mutant.name.contains(&argument));
        }
    }

    let copies: Vec<_> = (0..COPIES).map(|number| Copy::make(repository(), number)).collect();
    let suites = std::thread::scope(|scope| {
        let building: Vec<_> = copies.iter().map(|copy| scope.spawn(move || baseline(copy, is_quick))).collect();
        building.into_iter().map(|suites| suites.join().expect("no panic")).collect::<Result<Vec<_>, _>>()
    });
    let suites = match suites {
        Ok(suites) => suites,
        Err(error) => {
            eprintln!("without a mutant: {error}");
            return ExitCode::FAILURE;
        }
    };
    let said = if is_quick { "are built" } else { "pass" };
    println!("{} of {all} mutants; the copies {said} after {:.0} s", mutants.len(), started.elapsed().as_secs_f64());

    let (next, found) = (AtomicUsize::new(0), Mutex::new(Found::default()));
    std::thread::scope(|scope| {
        for (copy, suites) in copies.iter().zip(&suites) {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = Instant::now();
                    let verdict = copy.with(mutant, || examine(mutant, copy, suites)).and_then(|verdict| verdict);
                    found.lock().expect("no panic").note(mutant, verdict, at.elapsed());
                }
            });
        }
    });
    let Found { killed, harmless, wrong } = found.into_inner().expect("no panic");
    println!(
        "{killed} of {} killed, {} harmless {harmless:?}, {} wrong {wrong:?}, in {:.0} s",
        mutants.len() - harmless.len(),
        harmless.len(),
        wrong.len(),
        started.elapsed().as_secs_f64()
    );
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// So many mutants are examined at once. Building one keeps a core busy.
const COPIES: usize = 2;

/// What became of the mutants.
#[derive(Default)]
struct Found {
    killed: usize,
    harmless: Vec<String>,
    wrong: Vec<String>,
}

impl Found {
    fn note(&mut self, mutant: &Mutant, verdict: Result<String, String>, took: Duration) {
        let (took, name) = (took.as_secs_f64(), &mutant.name);
        match verdict {
            Ok(how) => {
                println!("{took:>5.1} s  {name}: {how}");
                match mutant.harmless {
                    Some(_) => self.harmless.push(name.clone()),
                    None => self.killed += 1,
                }
            }
            Err(why) => {
                println!("{took:>5.1} s  {name}: WRONG: {why}\n         rule: {}", mutant.why);
                self.wrong.push(name.clone());
            }
        }
    }
}

/// What fails without a mutant does not notice one.
fn baseline(copy: &Copy, is_quick: bool) -> Result<Suites, String> {
    let suites = Suites::build(copy, true)?;
    if is_quick {
        return Ok(suites);
    }
    for verdict in [suites.all_models(), suites.histories()] {
        let Verdict::Passed = verdict else { return Err(verdict.to_string()) };
    }
    Ok(suites)
}

/// How it died, or what is wrong with it.
fn examine(mutant: &Mutant, copy: &Copy, before: &Suites) -> Result<String, String> {
    if mutant.killed_by.is_empty() == mutant.harmless.is_none() {
        return Err("the list must name either models or the reason why it is harmless".to_owned());
    }
    let suites = Suites::build(copy, mutant.in_histories)?;
    if !suites.differ_from(before) {
        return Err("the build did not change: stale, or no mutant at all".to_owned());
    }
    if mutant.harmless.is_some() {
        return match suites.all_models() {
            Verdict::Passed => Ok("harmless, all models pass".to_owned()),
            verdict => Err(format!("said to be harmless, but {verdict}")),
        };
    }
    let mut how = Vec::new();
    for model in &mutant.killed_by {
        match suites.model(model) {
            Verdict::Noticed(how_it_failed) => how.push(format!("{model} ({how_it_failed})")),
            verdict => return Err(format!("{model}: {verdict}")),
        }
    }
    if mutant.in_histories {
        match suites.histories() {
            Verdict::Noticed(how_it_failed) => how.push(format!("histories ({how_it_failed})")),
            verdict => return Err(format!("histories: {verdict}")),
        }
    }
    Ok(format!("killed by {}", how.join(", ")))
}
