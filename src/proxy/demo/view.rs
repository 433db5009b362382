//! The circuits, live in the terminal.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stdout};
use std::time::Duration;

use crossterm::{cursor, queue, terminal};
use tokio::time::{Instant, interval};

use super::Stage;
use crate::{BreakerSnapshot, CircuitState};

/// Redraws a table on a terminal; elsewhere writes a line whenever a circuit changes.
pub(super) async fn watch(stage: &Stage) {
    let live = stdout().is_terminal();
    let start = Instant::now();
    let mut shown = String::new();
    let mut states: Vec<CircuitState> = Vec::new();
    let mut ticks = interval(Duration::from_millis(if live { 100 } else { 10 }));
    loop {
        ticks.tick().await;
        let snapshots = stage.state.circuit_breakers.snapshots();
        let now: Vec<CircuitState> = snapshots.iter().map(|snapshot| snapshot.state).collect();
        if live {
            let text = snapshots.iter().map(row).collect::<String>();
            // A terminal that is gone is no reason to end the gateway.
            let _ = redraw(&shown, &text);
            shown = text;
        } else if now != states {
            println!("after {:.1?}", start.elapsed());
            print!("{}", snapshots.iter().map(row).collect::<String>());
        }
        states = now;
    }
}

fn redraw(before: &str, now: &str) -> std::io::Result<()> {
    let mut out = stdout();
    let lines = u16::try_from(before.lines().count()).unwrap_or_default();
    if lines > 0 {
        queue!(out, cursor::MoveToPreviousLine(lines))?;
    }
    queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
    write!(out, "{now}")?;
    out.flush()
}

fn row(snapshot: &BreakerSnapshot) -> String {
    let mut row = format!(
        "  {:<10} {:<10} failures {}  trips {}  failed probes {}",
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
