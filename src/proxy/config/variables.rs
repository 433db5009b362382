//! What stands in a text in place of something else: `${NAME}`, `${file:PATH}` and `${credential:NAME}`.
//!
//! Not here: which texts may hold secrets, and so are not shown: `section`.

use std::env::{self, VarError};
use std::path::{Component, Path, PathBuf};

use super::file::read_file;

/// Where systemd puts credentials (`LoadCredential=`, systemd.exec(5)).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What is wrong with a text, and what is expected. It never shows a value.
type Mistake = (String, &'static str);

/// Replaces each variable.
pub(super) fn fill_in(mut rest: &str) -> Result<String, Mistake> {
    let mut filled = String::new();
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            return Err(("a text with \"${\" but without \"}\"".into(), "\"${NAME}\""));
        };
        let value = match name.split_once(':') {
            Some(("file", path)) => file(name, Path::new(path))?,
            Some(("credential", credential)) => file(name, &credential_file(name, credential)?)?,
            _ => environment(name)?,
        };
        filled.extend([before, &value]);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

fn environment(name: &str) -> Result<String, Mistake> {
    env::var(name).map_err(|error| match error {
        VarError::NotPresent => (is(name, "is not set"), "that environment variable"),
        VarError::NotUnicode(_) => (is(name, "is not UTF-8"), "another value of that environment variable"),
    })
}

fn credential_file(name: &str, credential: &str) -> Result<PathBuf, Mistake> {
    let mut parts = Path::new(credential).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        return Err((is(name, "is no name"), "the name of a credential, such as \"${credential:openai}\""));
    }
    let expected = "a service whose unit has LoadCredential= for it, which sets CREDENTIALS_DIRECTORY";
    let folder = env::var_os(CREDENTIALS).ok_or_else(|| (is(name, "is not there"), expected))?;
    Ok(Path::new(&folder).join(credential))
}

/// The text of a file without the line break at its end, which editors and `echo` leave.
fn file(name: &str, path: &Path) -> Result<String, Mistake> {
    let bytes =
        read_file(path).map_err(|error| (is(name, &format!("cannot be read: {error}")), "a file with a text"))?;
    let mut text = String::from_utf8(bytes).map_err(|_| (is(name, "is not UTF-8"), "a file with a text"))?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    Ok(text)
}

fn is(name: &str, what: &str) -> String {
    format!("\"${{{name}}}\", which {what}")
}
