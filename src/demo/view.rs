//! The circuits as lines of text: for a log, a pipe or a test.

use std::fmt::Write as _;
use std::io::{Write, stderr, stdout};
use std::time::Duration;

use fusebox::{BreakerSnapshot, CircuitState};
use tokio::time::{Instant, interval};

use super::Stage;

/// Prints every change of a circuit, until the output is closed. Standard error is used if standard output is for the
/// summary.
pub(super) async fn print_changes(stage: &Stage, to_stderr: bool) {
    let start = Instant::now();
    let mut states: Vec<CircuitState> = Vec::new();
    let mut ticks = interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        let circuits = (0..stage.providers.len()).flat_map(|provider| stage.circuits(provider).0);
        let snapshots: Vec<_> = circuits.map(|circuit| circuit.snapshot()).collect();
        let now: Vec<CircuitState> = snapshots.iter().map(|snapshot| snapshot.state).collect();
        if now != states {
            let mut text = format!("after {:.2} s\n", start.elapsed().as_secs_f64());
            text.extend(snapshots.iter().map(row));
            let mut output: Box<dyn Write> = if to_stderr { Box::new(stderr()) } else { Box::new(stdout()) };
            if output.write_all(text.as_bytes()).is_err() {
                return;
            }
            states = now;
        }
    }
}

fn row(snapshot: &BreakerSnapshot) -> String {
    let mut row = format!(
        "  {:<24} {:<10} failures {}  trips {}  failed probes {}",
        snapshot.name, snapshot.state, snapshot.failure_count, snapshot.trip_count, snapshot.failed_probe_count
    );
    if let Some(next) = snapshot.next_probe_in {
        let _ = write!(row, "  next probe in {:.1} s", next.as_secs_f64());
    }
    if let Some(error) = snapshot.last_error.as_ref().filter(|_| snapshot.state != CircuitState::Closed) {
        let _ = write!(row, "  ({error})");
    }
    row + "\n"
}
