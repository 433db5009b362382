//! The circuits and the traffic, live on a terminal.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fusebox::{BreakerSnapshot, CircuitState};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Position};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Sparkline, Table};
use ratatui::{DefaultTerminal, Frame, TerminalOptions, Viewport};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval};

use super::load::{millis, percentile};
use super::provider::Fault;
use super::{OPEN_FOR, Stage};

const HEIGHT: u16 = 12;
const FRAME: Duration = Duration::from_millis(100);
/// Over how many frames a rate is taken.
const WINDOW: usize = 10;
/// How many frames of the past are drawn.
const PAST: usize = 300;

/// Draws until the user quits.
pub(super) async fn show(stage: &Stage) {
    let terminal = ratatui::try_init_with_options(TerminalOptions { viewport: Viewport::Inline(HEIGHT) });
    let Ok(terminal) = terminal else {
        return super::view::print_changes(stage, false).await;
    };
    let mut screen = Screen(terminal);
    let mut keys = Keys::start();
    let mut traffic = Traffic::new(stage);
    let mut frames = interval(FRAME);
    loop {
        tokio::select! {
            _ = frames.tick() => {
                traffic.look(stage);
                if draw(&mut screen.0, stage, &traffic).is_err() {
                    // The gateway goes on without a terminal.
                    std::future::pending::<()>().await;
                }
            }
            key = keys.next() => match key {
                Some(Key::End) | None => return,
                Some(Key::Set(fault)) => stage.providers[0].set(fault).await,
            },
        }
    }
}

/// Restores the terminal when it is dropped. What is printed next comes below the screen.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        let below = Position::new(0, self.0.get_frame().area().bottom().saturating_sub(1));
        // If the terminal is gone, nothing needs to be restored.
        let _ = self.0.set_cursor_position(below);
        ratatui::restore();
        let _ = writeln!(std::io::stdout());
    }
}

enum Key {
    End,
    Set(Option<Fault>),
}

/// A thread waits for keys. It checks regularly whether it should end.
struct Keys {
    pressed: mpsc::UnboundedReceiver<Key>,
    is_over: Arc<AtomicBool>,
}

impl Keys {
    fn start() -> Self {
        let (sender, pressed) = mpsc::unbounded_channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&is_over);
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let Ok(true) = event::poll(FRAME) else { continue };
                let Ok(Event::Key(key)) = event::read() else { continue };
                let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                let key = match key.code {
                    _ if key.kind != KeyEventKind::Press => continue,
                    _ if is_interrupt => Key::End,
                    KeyCode::Char('q') | KeyCode::Esc => Key::End,
                    KeyCode::Char('0') => Key::Set(None),
                    KeyCode::Char(digit @ '1'..='9') => match Fault::all().nth(digit as usize - '1' as usize) {
                        Some(fault) => Key::Set(Some(fault)),
                        None => continue,
                    },
                    _ => continue,
                };
                if sender.send(key).is_err() {
                    return;
                }
            }
        });
        Self { pressed, is_over }
    }

    async fn next(&mut self) -> Option<Key> {
        self.pressed.recv().await
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The recent traffic.
struct Traffic {
    started: Instant,
    /// The number of requests sent to each provider until each frame, the newest last.
    asked: Vec<[u64; 2]>,
    seen: usize,
    errors: usize,
    recent: Vec<(Instant, Duration)>,
}

impl Traffic {
    fn new(stage: &Stage) -> Self {
        Self { started: Instant::now(), asked: vec![asked(stage)], seen: 0, errors: 0, recent: Vec::new() }
    }

    fn look(&mut self, stage: &Stage) {
        self.asked.push(asked(stage));
        if self.asked.len() > PAST {
            self.asked.remove(0);
        }
        let now = Instant::now();
        let new = stage.load.samples(self.seen);
        self.seen += new.len();
        self.errors += new.iter().filter(|sample| sample.error.is_some()).count();
        self.recent.extend(new.iter().map(|sample| (now, sample.latency)));
        self.recent.retain(|(at, _)| now - *at < FRAME * 50);
    }

    /// Requests per second to a provider.
    fn rate(&self, provider: usize) -> u64 {
        let newest = self.asked.len() - 1;
        let oldest = newest.saturating_sub(WINDOW);
        let frames = (newest - oldest).max(1) as u64;
        (self.asked[newest][provider] - self.asked[oldest][provider]) * 10 / frames
    }

    /// Requests to a provider in each frame of the past.
    fn past(&self, provider: usize) -> Vec<u64> {
        self.asked.windows(2).map(|pair| pair[1][provider] - pair[0][provider]).collect()
    }

    fn latency(&self, percent: usize) -> f64 {
        let mut latencies: Vec<_> = self.recent.iter().map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        millis(percentile(&latencies, percent))
    }
}

fn asked(stage: &Stage) -> [u64; 2] {
    [0, 1].map(|provider| stage.stats(provider).requests)
}

fn draw(terminal: &mut DefaultTerminal, stage: &Stage, traffic: &Traffic) -> std::io::Result<()> {
    terminal.draw(|frame| draw_frame(frame, stage, traffic)).map(|_| ())
}

fn draw_frame(frame: &mut Frame<'_>, stage: &Stage, traffic: &Traffic) {
    let heights = [3, 1, 1, 1, 2, 2, 1, 1].map(Constraint::Length);
    let [table, _, load, _, primary, fallback, _, keys] = Layout::vertical(heights).areas(frame.area());
    let head =
        Row::new(["provider", "it is", "circuit", "requests/s", "failures", "trips", "next probe", "last error"]);
    let rows = stage.providers.iter().enumerate().map(|(index, provider)| {
        let circuits = stage.circuits(index);
        let shown = circuits.worst().snapshot();
        row(provider.name(), &shown, circuits.trips(), provider.fault(), traffic.rate(index))
    });
    let widths = [10, 8, 10, 10, 8, 6, 22].map(Constraint::Length).into_iter().chain([Constraint::Min(10)]);
    frame.render_widget(Table::new(rows, widths).header(head.dim()), table);

    let seconds = traffic.started.elapsed().as_secs();
    let errors = Span::from(format!("{} client errors", traffic.errors));
    let errors = if traffic.errors == 0 { errors.green() } else { errors.red().bold() };
    let text = format!(
        ", {} requests in {seconds} s, {} in flight, last 5 s: p50 {} ms, p99 {} ms",
        traffic.seen,
        stage.load.in_flight(),
        traffic.latency(50),
        traffic.latency(99)
    );
    frame.render_widget(Line::from(vec![errors, Span::from(text)]), load);

    for (index, (area, colour)) in [(primary, Color::Cyan), (fallback, Color::Blue)].into_iter().enumerate() {
        let [name, past] = Layout::horizontal([Constraint::Length(11), Constraint::Min(10)]).areas(area);
        frame.render_widget(Line::from(stage.providers[index].name()).style(colour), name);
        let all = traffic.past(index);
        let shown = &all[all.len().saturating_sub(past.width.into())..];
        frame.render_widget(Sparkline::default().data(shown).style(Style::new().fg(colour)), past);
    }
    // There are no more digits than these. The other faults are set over HTTP.
    let faults = Fault::all().enumerate().take(9).map(|(index, fault)| format!("{} {}", index + 1, fault.as_str()));
    let faults: Vec<_> = faults.collect();
    frame.render_widget(Line::from(format!("q quit   0 heal   break primary: {}", faults.join("  "))).dim(), keys);
}

fn row(name: &'static str, snapshot: &BreakerSnapshot, trips: u64, fault: Option<Fault>, rate: u64) -> Row<'static> {
    let colour = match snapshot.state {
        CircuitState::Closed => Color::Green,
        CircuitState::HalfOpen => Color::Yellow,
        _ => Color::Red,
    };
    let error = snapshot.last_error.as_ref().filter(|_| snapshot.state != CircuitState::Closed);
    Row::new([
        Cell::from(name),
        Cell::from(fault.map_or("healthy", Fault::as_str)),
        Cell::from(snapshot.state.to_string()).style(Style::new().fg(colour).bold()),
        Cell::from(rate.to_string()),
        Cell::from(snapshot.failure_count.to_string()),
        Cell::from(trips.to_string()),
        Cell::from(next_probe(snapshot)),
        Cell::from(error.map(ToString::to_string).unwrap_or_default()),
    ])
}

/// A bar that gets shorter until the next probe.
fn next_probe(snapshot: &BreakerSnapshot) -> String {
    match snapshot.next_probe_in {
        _ if snapshot.probe_in_flight => "in flight".into(),
        None => String::new(),
        Some(left) if left.is_zero() => "with the next request".into(),
        Some(left) => {
            let tenths = (left.as_millis() * 10).div_ceil(OPEN_FOR.as_millis()).min(10);
            let bar: String = (0..10).map(|tenth| if tenth < tenths { '█' } else { '░' }).collect();
            format!("{bar} {:.1} s", left.as_secs_f64())
        }
    }
}

#[cfg(test)]
mod tests {
    use fusebox::proxy::{AppState, GatewayConfig};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::demo::load::Load;
    use crate::demo::provider::{Latency, Simulated};

    fn stage() -> Stage {
        let providers = ["primary", "fallback"].map(|name| Simulated::start(name, Latency::Short, || {}).unwrap());
        let config = GatewayConfig::from_toml(&crate::demo::config_text(&providers, Latency::Short)).unwrap();
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let state = AppState::new(&config).unwrap();
        Stage {
            state,
            providers,
            gateway: nowhere,
            control: nowhere,
            admin: nowhere,
            load: Arc::new(Load::new(10, 0.5)),
        }
    }

    fn drawn(stage: &Stage, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, HEIGHT)).unwrap();
        let mut traffic = Traffic::new(stage);
        traffic.look(stage);
        terminal.draw(|frame| draw_frame(frame, stage, &traffic)).unwrap();
        terminal.backend().to_string()
    }

    #[tokio::test]
    async fn the_screen_shows_each_circuit_its_fault_and_the_keys() {
        let stage = stage();
        let screen = drawn(&stage, 120);
        for text in ["primary", "fallback", "healthy", "closed", "0 client errors", "break primary: 1 500", "q quit"] {
            assert!(screen.contains(text), "{text:?} is not in {screen}");
        }
        stage.providers[0].set(Some(Fault::Hang)).await;
        let circuits = stage.circuits(0);
        for _ in 0..3 {
            circuits.0[1].try_acquire().unwrap().failure("5xx", "it broke");
        }
        let screen = drawn(&stage, 120);
        let row = screen.lines().find(|line| line.contains("primary")).unwrap();
        for text in ["hang", "open", "5xx: it broke", "2.0 s"] {
            assert!(row.contains(text), "{text:?} is not in {row:?}");
        }
    }

    #[tokio::test]
    async fn a_screen_of_any_width_can_be_drawn() {
        let stage = stage();
        for width in [1, 10, 40, 300] {
            drawn(&stage, width);
        }
    }
}
