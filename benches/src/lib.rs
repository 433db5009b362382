//! What the benches share: threads that work beside one another for a while, rounds in which all contenders take turns, and
//! the tables, the JSON and the chart of what came out.

mod chart;
pub mod contenders;
mod measure;
mod report;

use std::path::PathBuf;

pub use measure::{Sample, Suite};
pub use report::{Cell, Results, Spread};

/// The arguments of every bench.
#[derive(clap::Parser, Clone, Debug)]
pub struct Options {
    /// How often each contender is measured. The contenders take turns, so that what else the machine does falls on all.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How long each measurement lasts, in milliseconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub slice: u64,
    /// Numbers of threads, such as `1,2,4`. By default 1, 2, 4 and so on, up to the cores of the machine.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Vec<u16>,
    /// Only the tables whose title contains this.
    #[arg(long, default_value = "")]
    pub only: String,
    /// Writes every sample to this file, for tools; from `benches/`, where cargo runs it.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Draws the throughput over the threads into this file, where the bench has that; from `benches/`.
    #[arg(long)]
    pub svg: Option<PathBuf>,
    /// cargo says so.
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// From the command line; ends the process where that is wrong.
    pub fn parse() -> Self {
        let mut options = <Self as clap::Parser>::parse();
        if options.threads.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            options.threads =
                (0..u16::BITS - 1).map(|power| 1 << power).take_while(|n| usize::from(*n) <= cores).collect();
        }
        // Before minutes are spent on what could not be written.
        for path in [&options.json, &options.svg].into_iter().flatten() {
            if let Err(error) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
                let message = format!("{}: {error}\n", path.display());
                <Self as clap::CommandFactory>::command().error(clap::error::ErrorKind::Io, message).exit();
            }
        }
        options
    }
}
