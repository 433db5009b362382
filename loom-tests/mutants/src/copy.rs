//! A copy of the sources, where mistakes do no harm.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Mutant;

/// What the models and the histories are built from.
const SOURCES: [&str; 3] = ["src", "loom-tests/src", "loom-tests/tests"];

/// The copy's root, and its build folder.
pub(crate) struct Copy {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Copy {
    /// The first copy shares the build folder with the repository. Any other one has its own, since cargo builds one
    /// thing at a time in a folder.
    pub(crate) fn make(repository: &Path, number: usize) -> Self {
        let shared = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from);
        let (root, target) = match number {
            0 => (shared.join("mutants"), shared),
            _ => (shared.join(format!("mutants-{number}")), shared.join(format!("mutants-{number}-target"))),
        };
        let _ = fs::remove_dir_all(&root);
        for folder in SOURCES {
            copy_folder(&repository.join(folder), &root.join(folder));
        }
        fs::copy(repository.join("Cargo.lock"), root.join("Cargo.lock")).expect("Cargo.lock");
        fs::copy(repository.join("loom-tests/Cargo.toml"), root.join("loom-tests/Cargo.toml"))
            .expect("loom-tests/Cargo.toml");
        fs::write(root.join("Cargo.toml"), workspace(repository)).expect("the copy's Cargo.toml");
        Self { root, target }
    }

    /// Makes the mistake, lets `f` look at it, and takes it back. Of the models only those are built that have to
    /// notice it, which takes half of the time.
    pub(crate) fn with<T>(&self, mutant: &Mutant, f: impl FnOnce() -> T) -> Result<T, String> {
        let path = self.root.join(&mutant.file);
        let original = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", mutant.file))?;
        let found = original.matches(&mutant.find).count();
        if found != 1 {
            return Err(format!("its text is in {} {found} times, not once:\n{}", mutant.file, mutant.find));
        }
        let models = self.root.join("loom-tests/tests/models");
        let main = fs::read_to_string(models.join("main.rs")).expect("the models' main.rs");
        if !mutant.killed_by.is_empty() {
            fs::write(models.join("main.rs"), only(&models, &main, mutant)).expect("the copy is writable");
        }
        fs::write(&path, original.replacen(&mutant.find, &mutant.replace, 1)).expect("the copy is writable");
        let result = f();
        fs::write(&path, original).expect("the copy is writable");
        fs::write(models.join("main.rs"), main).expect("the copy is writable");
        Ok(result)
    }
}

/// `main.rs` of the models that have to notice a mutant, and of those whose helpers they use.
fn only(models: &Path, main: &str, mutant: &Mutant) -> String {
    let all: Vec<_> =
        main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')).map(str::to_owned).collect();
    let mut wanted: Vec<_> =
        mutant.killed_by.iter().filter_map(|model| Some(model.split_once("::")?.0.to_owned())).collect();
    let mut seen = 0;
    while let Some(name) = wanted.get(seen) {
        let text = fs::read_to_string(models.join(format!("{name}.rs"))).unwrap_or_default();
        let uses = |other: &String| {
            let mut imports = text.lines().filter(|line| line.starts_with("use crate::{"));
            text.contains(&format!("crate::{other}")) || imports.any(|line| line.contains(&**other))
        };
        let found = all.iter().filter(|other| uses(other) && !wanted.contains(other));
        let found: Vec<_> = found.cloned().collect();
        wanted.extend(found);
        seen += 1;
    }
    let is_wanted =
        |line: &&str| line.strip_prefix("mod ").is_none_or(|name| wanted.iter().any(|it| name == format!("{it};")));
    main.lines().filter(is_wanted).map(|line| line.to_owned() + "\n").collect()
}

/// The repository's, of `loom-tests` alone. That is built for every mutant and runs for a second, so it is not
/// optimised; its dependencies are.
fn workspace(repository: &Path) -> String {
    let manifest = fs::read_to_string(repository.join("Cargo.toml")).expect("Cargo.toml");
    let mut manifest: toml::Table = manifest.parse().expect("Cargo.toml is one");
    manifest.retain(|key, _| key == "workspace" || key == "profile");
    manifest["workspace"]["members"] = toml::Value::Array(vec!["loom-tests".into()]);
    format!("{manifest}\n[profile.release.package.loom-tests]\nopt-level = 0\n")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the build folder is writable");
    for entry in fs::read_dir(from).expect("a folder of sources") {
        let entry = entry.expect("a folder of sources").path();
        let to = to.join(entry.file_name().expect("an entry has a name"));
        if entry.is_dir() {
            copy_folder(&entry, &to);
        } else {
            // Not `fs::copy`: the copy has to be newer than what was built from the one before it.
            fs::write(to, fs::read(entry).expect("a source is readable")).expect("the build folder is writable");
        }
    }
}
