//! The log on standard error. A separate thread writes the lines, so that a core never waits for their reader. A line
//! that cannot be written is counted, and has no other effect.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::lines::{LineWriter, Lines};
use crate::error::Escaped;

static WRITER: OnceLock<LineWriter> = OnceLock::new();

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the log of this process. `filter` is used unless `RUST_LOG` is set.
///
/// # Errors
///
/// If the writer's thread cannot be started, or the process has a log already.
pub fn start(format: Format, filter: &str) -> Result<(), Box<dyn std::error::Error>> {
    let is_terminal = io::stderr().is_terminal();
    // A write that fails can be reported nowhere.
    let writer = LineWriter::new("log", standard_error()?, |_| {})?;
    let lines = writer.lines();
    WRITER.set(writer).map_err(|_| "this process has a log already")?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal);
    // Its own errors would be printed to standard error, which panics if that fails.
    let log = log.log_internal_errors(false).with_writer(OneLine { lines, is_terminal });
    match format {
        Format::Text => log.try_init(),
        Format::Json => log.json().try_init(),
    }
    .map_err(|error| error as Box<dyn std::error::Error>)?;
    std::panic::set_hook(Box::new(|panic| {
        error!(panic = %Escaped(panic), "a panic, which is a bug: please report it");
    }));
    Ok(())
}

/// Waits until all lines are written, for at most two seconds.
pub fn end() {
    if let Some(writer) = WRITER.get() {
        writer.end();
    }
}

/// How many lines could not be written, or not fast enough.
pub(crate) fn lost() -> u64 {
    WRITER.get().map_or(0, LineWriter::lost)
}

/// Standard error without the lock of Rust's own, and with an error where Rust's own pretends success because it is
/// closed.
#[cfg(unix)]
fn standard_error() -> io::Result<std::fs::File> {
    use std::os::fd::AsFd;
    Ok(std::fs::File::from(io::stderr().as_fd().try_clone_to_owned()?))
}

#[cfg(not(unix))]
fn standard_error() -> io::Result<io::Stderr> {
    Ok(io::stderr())
}

/// Makes one line of each event, whatever text the event has.
struct OneLine {
    lines: Lines,
    is_terminal: bool,
}

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        self.lines.push(|line| {
            if text.iter().any(u8::is_ascii_control) || !text.is_ascii() {
                escape(&String::from_utf8_lossy(text), self.is_terminal, line);
            } else {
                line.extend_from_slice(text);
            }
        });
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes control characters. With `colours`, the sequences that set colours are left as they are.
fn escape(text: &str, colours: bool, line: &mut Vec<u8>) {
    fn put(text: &str, line: &mut Vec<u8>) {
        write!(line, "{}", Escaped(text)).expect("a buffer takes everything");
    }
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[").filter(|_| colours) {
        put(before, line);
        let end = after.find(|c: char| !(c.is_ascii_digit() || c == ';')).unwrap_or(after.len());
        if after[end..].starts_with('m') {
            line.extend_from_slice(b"\x1b[");
            line.extend_from_slice(&after.as_bytes()[..=end]);
            rest = &after[end + 1..];
        } else {
            line.extend_from_slice(b"\\u{1b}[");
            rest = after;
        }
    }
    put(rest, line);
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn an_event_is_one_line_and_only_its_colours_reach_the_terminal() {
        let escaped = |text: &str, colours| {
            let mut line = Vec::new();
            escape(text, colours, &mut line);
            String::from_utf8(line).unwrap()
        };
        let text = "\u{1b}[33mWARN\u{1b}[0m a\nb \u{1b}[2J \u{1b}]0;x\u{7} \u{e9}";
        assert_eq!(escaped(text, false), "\\u{1b}[33mWARN\\u{1b}[0m a\\nb \\u{1b}[2J \\u{1b}]0;x\\u{7} \u{e9}");
        assert_eq!(escaped(text, true), "\u{1b}[33mWARN\u{1b}[0m a\\nb \\u{1b}[2J \\u{1b}]0;x\\u{7} \u{e9}");
        assert_eq!(escaped("\u{1b}[", true), "\\u{1b}[");
    }
}
