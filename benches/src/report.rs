//! Medians, as tables for people and as JSON for tools.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::{Options, chart};

/// One contender of one table.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// The operation.
    table: &'static str,
    /// The contender.
    pub(crate) contender: &'static str,
    /// By threads, the same ones in every row.
    pub(crate) cells: Vec<Cell>,
}

/// All samples of it with one number of threads.
#[derive(Debug, Serialize)]
pub(crate) struct Cell {
    /// How many threads did it at once.
    pub(crate) threads: u16,
    /// Operations of all threads together, in millions per second: one value for each round.
    pub(crate) mops: Vec<f64>,
}

impl Row {
    pub(crate) fn new(table: &'static str, contender: &'static str, threads: &[u16]) -> Self {
        let cells = threads.iter().map(|threads| Cell { threads: *threads, mops: Vec::new() }).collect();
        Self { table, contender, cells }
    }
}

impl Cell {
    pub(crate) fn median(&self) -> f64 {
        Spread::of(self.mops.iter().copied()).median
    }

    /// Time for one operation as one thread sees it.
    fn nanoseconds(&self) -> Spread {
        Spread::of(self.mops.iter().map(|mops| f64::from(self.threads) * 1e3 / mops))
    }
}

/// A median with what was around it.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The value in the middle, of an even number of values the upper one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// # Panics
    ///
    /// Without a value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self { median: values[values.len() / 2], min: values[0], max: values[values.len() - 1] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}-{})", Short(self.median), Short(self.min), Short(self.max))
    }
}

/// Three digits are more than the machine can repeat.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.0 < 10.0 { 2 } else { usize::from(self.0 < 100.0) };
        write!(f, "{:.digits$}", self.0)
    }
}

/// What a bench measured.
#[derive(Debug, Serialize)]
pub struct Results {
    bench: &'static str,
    machine: String,
    rounds: u32,
    slice_ms: u64,
    rows: Vec<Row>,
}

impl Results {
    pub(crate) fn new(bench: &'static str, options: &Options, rows: Vec<Row>) -> Self {
        Self { bench, machine: machine(), rounds: options.rounds, slice_ms: options.slice, rows }
    }

    /// Prints the tables, and writes what the arguments ask for.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn report(&self, options: &Options) -> Result<(), String> {
        println!("{self}");
        let Some(path) = &options.json else { return Ok(()) };
        let json = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        write(path, &(json + "\n"))
    }

    /// Draws the throughput of the contenders of one table over the threads, of those that `wanted` names.
    ///
    /// # Errors
    ///
    /// If none was measured, or a file cannot be written.
    pub fn draw(&self, table: &str, wanted: impl Fn(&str) -> bool, title: &str, path: &Path) -> Result<(), String> {
        let rows: Vec<_> = self.of(table).filter(|row| wanted(row.contender)).collect();
        if rows.is_empty() {
            return Err(format!("nothing to draw: `{table}` was not measured"));
        }
        write(path, &chart::throughput(title, &rows)?)
    }

    fn of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.table == table)
    }

    /// In the order in which their first contenders came.
    fn tables(&self) -> Vec<&'static str> {
        let mut tables = Vec::new();
        for row in &self.rows {
            if !tables.contains(&row.table) {
                tables.push(row.table);
            }
        }
        tables
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{} on {}: medians (smallest-largest) of {} rounds of {} ms, contenders \
             interleaved. \"Ours\" is the throughput of the one in bold, divided by this one's in the same round.",
            self.bench, self.machine, self.rounds, self.slice_ms
        )?;
        for table in self.tables() {
            let rows: Vec<_> = self.of(table).collect();
            write!(f, "\n| {table} |")?;
            for Cell { threads, .. } in &rows[0].cells {
                write!(f, " ns, {threads} thread{} | M/s in all | ours |", if *threads == 1 { "" } else { "s" })?;
            }
            writeln!(f, "\n|---|{}", "---|---|---|".repeat(rows[0].cells.len()))?;
            let ours = rows.iter().find(|row| row.contender.starts_with("**"));
            for row in &rows {
                write!(f, "| {} |", row.contender)?;
                for (n, cell) in row.cells.iter().enumerate() {
                    write!(f, " {} | {} |", cell.nanoseconds(), Short(cell.median()))?;
                    match ours.map(|ours| &ours.cells[n]) {
                        Some(ours) => {
                            let ratios = ours.mops.iter().zip(&cell.mops).map(|(ours, this)| ours / this);
                            write!(f, " {}x |", Short(Spread::of(ratios).median))?;
                        }
                        None => write!(f, " - |")?,
                    }
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// As far as it can be told.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cores} cores of {}", model.map_or("an unknown processor", |(_, name)| name))
}
