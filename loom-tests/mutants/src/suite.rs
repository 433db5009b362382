//! Builds the tests from the copy, runs them, and says whether they noticed anything.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::copy::Copy;

/// All models together take half a minute, and several times that on a machine that does other work. The limit is only
/// for a mutant that never ends.
const PATIENCE: Duration = Duration::from_secs(600);

const HISTORIES: &str = "every_history_of_real_threads_is_explained_by_one_call_after_the_other";

/// The built tests.
pub(crate) struct Suites {
    models: PathBuf,
    histories: Option<PathBuf>,
    /// The library that the models are linked with.
    library: Vec<u8>,
}

/// What a run showed.
pub(crate) enum Verdict {
    Passed,
    /// An assertion failed in an execution, or nobody could go on.
    Noticed(String),
    /// Only that too little was explored, or that loom gave up.
    GuardAlone,
    NoSuchTest,
    TookTooLong,
    /// It failed, and not as a model or a history does.
    Unclear(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("survived"),
            Self::Noticed(how) => write!(f, "failed: {how}"),
            Self::GuardAlone => f.write_str("failed by its guard alone, which is no proof"),
            Self::NoSuchTest => f.write_str("there is no such test"),
            Self::TookTooLong => write!(f, "took more than {PATIENCE:?}"),
            Self::Unclear(output) => write!(f, "failed, but not in an execution:\n{output}"),
        }
    }
}

/// A line of cargo's report.
#[derive(Deserialize)]
struct Artifact {
    target: Option<Target>,
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Suites {
    pub(crate) fn build(copy: &Copy, with_histories: bool) -> Result<Self, String> {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--quiet", "--offline", "--release", "--no-run", "--message-format=json"])
            .args(["--package", "loom-tests", "--test", "models"])
            .args(if with_histories { &["--test", "histories"][..] } else { &[] })
            .arg("--target-dir")
            .arg(&copy.target)
            .current_dir(&copy.root)
            // Only the core and the tests are built again and again.
            .env("CARGO_INCREMENTAL", "1")
            .output()
            .map_err(|error| format!("cargo does not start: {error}"))?;
        if !output.status.success() {
            return Err(format!("it does not compile:\n{}", rendered(&output.stdout)));
        }
        let report = String::from_utf8_lossy(&output.stdout);
        // The compiler's messages name the target, too, and no files.
        let artifact = |name: &str| {
            let artifacts = report.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
            let is_it = |artifact: &Artifact| artifact.target.as_ref().is_some_and(|target| target.name == name);
            artifacts.filter(is_it).find(|artifact| !artifact.filenames.is_empty())
        };
        let executable = |name: &str| artifact(name)?.executable;
        let models = executable("models").ok_or("cargo names no models")?;
        let library = artifact("loom_tests").ok_or("cargo names no library")?.filenames;
        let is_library = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "rlib");
        let library = library.iter().find(is_library).ok_or("cargo names no file of the library")?;
        let library = fs::read(library).map_err(|error| format!("{}: {error}", library.display()))?;
        Ok(Self { models, histories: executable("histories"), library })
    }

    /// A library that is the same was not built from the mutant.
    pub(crate) fn differ_from(&self, before: &Self) -> bool {
        self.library != before.library
    }

    pub(crate) fn model(&self, name: &str) -> Verdict {
        run(&self.models, &["--exact", name])
    }

    pub(crate) fn all_models(&self) -> Verdict {
        run(&self.models, &[])
    }

    pub(crate) fn histories(&self) -> Verdict {
        self.histories.as_ref().map_or(Verdict::NoSuchTest, |histories| run(histories, &["--exact", HISTORIES]))
    }
}

/// The compiler's messages.
fn rendered(report: &[u8]) -> String {
    let messages = String::from_utf8_lossy(report);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages.filter_map(|line| Some(line.pointer("/message/rendered")?.as_str()?.to_owned())).collect()
}

fn run(test: &Path, arguments: &[&str]) -> Verdict {
    let mut child = Command::new(test)
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .env_remove("LOOM_MAX_PREEMPTIONS")
        .env_remove("FUSEBOX_LOADS")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a test that was built starts");
    let (sender, outputs) = mpsc::channel();
    collect(child.stdout.take(), sender.clone());
    collect(child.stderr.take(), sender);
    let deadline = Instant::now() + PATIENCE;
    let mut output = String::new();
    for _ in 0..2 {
        // Its end is that of the process.
        let Ok(stream) = outputs.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            let _ = child.kill();
            let _ = child.wait();
            return Verdict::TookTooLong;
        };
        output += &stream;
    }
    let status = child.wait().expect("a child can be waited for");
    if output.contains("running 0 tests") {
        Verdict::NoSuchTest
    } else if status.success() {
        Verdict::Passed
    } else if output.contains("guard: ") || output.contains("exceeded maximum number of branches") {
        Verdict::GuardAlone
    } else if output.contains("deadlock; threads") {
        // The process aborts then, as what loom drops while it unwinds panics again.
        Verdict::Noticed("deadlock".to_owned())
    } else if output.contains("failed in execution") {
        let panics = output.split("panicked at ").skip(1).filter_map(|panic| panic.lines().nth(1));
        Verdict::Noticed(panics.map(|line| line.chars().take(60).collect()).next().unwrap_or_default())
    } else {
        Verdict::Unclear(output)
    }
}

/// Reads all of `stream`, and sends it.
fn collect(stream: Option<impl Read + Send + 'static>, sender: mpsc::Sender<String>) {
    let mut stream = stream.expect("it is piped");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("a pipe can be read");
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
}
