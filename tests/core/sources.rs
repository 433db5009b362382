//! The sources as text, and whom they name: for `layout` and `operations`.

use std::fs::{read_dir, read_to_string};
use std::path::Path;

pub(crate) struct Source {
    /// From the root of the repository.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// Without comments and the file's own tests.
    pub(crate) fn code(&self) -> String {
        let lines = self.text.lines().take_while(|line| *line != "mod tests {");
        lines.filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    }

    /// `["proxy", "upstream", "tls"]` for `src/proxy/upstream/tls.rs`.
    pub(crate) fn module(&self) -> Vec<&str> {
        let path = self.path.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
        path.split('/').filter(|part| *part != "mod").collect()
    }

    /// The lines that say what it holds.
    pub(crate) fn header(&self) -> String {
        self.text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n")
    }
}

pub(crate) fn sources(folders: &[&str]) -> Vec<Source> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) {
        for entry in read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source { path: name, text: read_to_string(&path).unwrap() });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in folders.iter().map(|folder| root.join(folder)).filter(|folder| folder.is_dir()) {
        walk(root, &folder, &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// What follows `crate::` or `super::` at each place in `code`, as modules seen from the root.
pub(crate) fn used(code: &str, module: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at].ends_with("super::") || code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let mut rest = &code[at..];
            let mut base = module.to_vec();
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            if let Some(after) = rest.strip_prefix("crate::") {
                (base, rest) = (Vec::new(), after);
            }
            for names in firsts(rest) {
                found.push(base.iter().map(|part| (*part).to_owned()).chain(names).collect());
            }
        }
    }
    found
}

/// `[["a"], ["b"]]` of `{a::{x, y}, b}`, and `[["a", "b", "f"]]` of `a::b::f`: what begins with a small letter, as far
/// as it is written out.
fn firsts(path: &str) -> Vec<Vec<String>> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let names = |path: &str| {
        let mut names = vec![word(path)];
        let mut rest = path;
        while let Some(after) =
            rest.strip_prefix(names.last().map_or("", |name| name)).and_then(|it| it.strip_prefix("::"))
            && after.starts_with(|c: char| c.is_lowercase())
        {
            names.push(word(after));
            rest = after;
        }
        names
    };
    let Some(list) = path.strip_prefix('{') else { return vec![names(path)] };
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).map(names).collect()
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    let of = |code: &str, module: &[&str]| -> Vec<String> {
        used(code, module).into_iter().map(|path| path.join("::")).collect()
    };
    let code = "use crate::{CircuitBreaker, silence::{Config, TICK}};\nuse crate::word::{self, Admit};\nuse crate::proxy::config::Secret;";
    assert_eq!(of(code, &["proxy", "state"]), ["CircuitBreaker", "silence", "word", "proxy::config"]);
    let code = "use super::{answer, headers};\nsuper::super::pieces::size_with(a, b)";
    assert_eq!(
        of(code, &["proxy", "upstream", "body"]),
        ["proxy::upstream::answer", "proxy::upstream::headers", "proxy::pieces::size_with"]
    );
    let code = "use super::observe::metrics::Metrics;\nuse crate::proxy::route::{self, sse::Events};";
    assert_eq!(of(code, &["proxy", "state"]), ["proxy::route", "proxy::observe::metrics"]);
}
