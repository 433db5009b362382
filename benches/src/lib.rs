//! What the benches share: threads that work beside one another for a while, rounds in which all contenders take turns,
//! and the tables, the JSON and the chart of what came out.

mod chart;
pub mod contenders;
mod measure;
mod report;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use measure::Suite;
pub use report::{Results, Spread};

/// The arguments of a [`Suite`].
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// How often each contender is measured. The contenders take turns, so that what else the machine does falls on
    /// all.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How long each measurement lasts, in milliseconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub slice: u64,
    /// Numbers of threads, such as `1,2,4`. By default 1, 2, 4 and so on, up to the cores of the machine.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_THREADS)),
        default_values_t = up_to_the_cores(), hide_default_value = true)]
    pub threads: Vec<u16>,
    /// Only the tables whose title contains this.
    #[arg(long, default_value = "")]
    pub only: String,
    /// Writes every sample to this file, for tools; from `benches/`, where cargo runs it.
    #[arg(long, value_parser = writable)]
    pub json: Option<PathBuf>,
    /// cargo says so.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// With more of them a breaker that counts failures in a row would open, where the bench of failures lets some calls
/// succeed.
const MOST_THREADS: u16 = 64;

fn up_to_the_cores() -> Vec<u16> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (0..=MOST_THREADS.ilog2()).map(|power| 1 << power).take_while(|n| usize::from(*n) <= cores).collect()
}

/// A file that can be written: found out before minutes are spent on what goes there.
///
/// # Errors
///
/// Why it cannot.
pub fn writable(path: &str) -> Result<PathBuf, std::io::Error> {
    OpenOptions::new().create(true).append(true).open(path)?;
    Ok(Path::new(path).to_owned())
}

/// What `main` returns: an error is told as it is written.
pub fn exit(result: Result<(), String>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    ExitCode::FAILURE
}
