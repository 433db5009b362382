//! Writing the lines of the access log and of the log on a separate thread, so that no request waits for a slow disk or
//! for a pipe that nobody reads.
//!
//! Not here: what a line says: `access_log` and `log`.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

/// The size of one thread's buffer. When it is full, further lines are lost and counted.
const MAX_WAITING: usize = 4 << 20;
/// While there is traffic, the lines of this time are written together. Waking the writer for each line would cost more
/// than all the rest of the gateway's own work for a request.
const PAUSE: Duration = Duration::from_millis(20);
/// How long [`LineWriter::end`] waits for the remaining lines to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// A thread that writes lines.
pub(crate) struct LineWriter {
    shared: Arc<Shared>,
    writer: Thread,
    /// Its sender is dropped when the writer has written everything.
    has_ended: Mutex<mpsc::Receiver<()>>,
}

#[derive(Default)]
struct Shared {
    /// One for each thread that has lines to write, so that threads do not wait for each other.
    buffers: Mutex<Vec<Arc<Mutex<Buffer>>>>,
    /// Whether the writer sleeps. Whoever resets it wakes the writer.
    is_asleep: AtomicBool,
    is_over: AtomicBool,
    lost: AtomicU64,
}

#[derive(Default)]
struct Buffer {
    text: Vec<u8>,
    lines: u64,
}

impl LineWriter {
    /// Starts a thread with this `name`. `failed` is called for the first of several writes in a row that fail.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub(crate) fn new(name: &str, writer: impl Write + Send + 'static, failed: fn(&io::Error)) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ends, has_ended) = mpsc::channel();
        let write = {
            let shared = Arc::clone(&shared);
            move || {
                shared.write(writer, failed);
                drop(ends);
            }
        };
        let writer = std::thread::Builder::new().name(name.into()).spawn(write)?.thread().clone();
        Ok(Self { shared, writer, has_ended: Mutex::new(has_ended) })
    }

    /// A buffer for lines, best used by one thread alone.
    pub(crate) fn lines(&self) -> Lines {
        let buffer = Arc::default();
        self.shared.buffers.lock().push(Arc::clone(&buffer));
        Lines { buffer, shared: Arc::clone(&self.shared), writer: self.writer.clone() }
    }

    /// How many lines could not be written, or not fast enough.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl LineWriter {
    /// Waits until the remaining lines have been written, for at most [`PATIENCE`]: the output may be stuck.
    pub(crate) fn end(&self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.writer.unpark();
        // An error says either that the writer has ended or that the time is up.
        let _ = self.has_ended.lock().recv_timeout(PATIENCE);
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for LineWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineWriter").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// A buffer for lines that the writer will write.
pub(crate) struct Lines {
    buffer: Arc<Mutex<Buffer>>,
    shared: Arc<Shared>,
    writer: Thread,
}

impl Lines {
    /// Adds a line. `fill` appends its text.
    pub(crate) fn push(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.buffer.lock();
        if buffer.text.len() >= MAX_WAITING {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        fill(&mut buffer.text);
        buffer.text.push(b'\n');
        buffer.lines += 1;
        drop(buffer);
        // The writer sets the flag before it reads this buffer for the last time. So either it saw the line, or the
        // buffer's lock has made the flag visible here.
        if self.shared.is_asleep.load(Ordering::Relaxed) && self.shared.is_asleep.swap(false, Ordering::Relaxed) {
            self.writer.unpark();
        }
    }
}

impl Shared {
    /// Sleeps until there is a line, and then writes at each [`PAUSE`] as long as there are more.
    #[expect(clippy::disallowed_methods, reason = "it is a thread of its own, and no test")]
    fn write(&self, mut writer: impl Write, failed: fn(&io::Error)) {
        let mut is_failing = false;
        let mut taken = Buffer::default();
        loop {
            let is_over = self.is_over.load(Ordering::Relaxed);
            if self.write_all(&mut writer, &mut taken, &mut is_failing, failed) {
                std::thread::sleep(PAUSE);
            } else if is_over {
                return;
            } else if self.is_asleep.swap(true, Ordering::Relaxed) {
                std::thread::park();
            }
        }
    }

    /// Returns whether there was a line.
    fn write_all(
        &self,
        writer: &mut impl Write,
        taken: &mut Buffer,
        is_failing: &mut bool,
        failed: fn(&io::Error),
    ) -> bool {
        // Removes the empty buffers whose threads are gone.
        self.buffers.lock().retain(|buffer| Arc::strong_count(buffer) > 1 || buffer.lock().lines > 0);
        let buffers = self.buffers.lock().clone();
        let mut lines = 0;
        let mut result = Ok(());
        for buffer in buffers {
            taken.text.clear();
            taken.lines = 0;
            std::mem::swap(taken, &mut buffer.lock());
            lines += taken.lines;
            if taken.lines > 0 && result.is_ok() {
                result = writer.write_all(&taken.text);
            }
        }
        if lines == 0 {
            return false;
        }
        let result = result.and_then(|()| writer.flush());
        if let Err(error) = &result {
            // Some of the lines may have been written, but which ones is unknown.
            self.lost.fetch_add(lines, Ordering::Relaxed);
            // Only once, and not fifty times a second while the disk is full.
            if !*is_failing {
                failed(error);
            }
        }
        *is_failing = result.is_err();
        true
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::{Condvar, Mutex};

    use super::*;

    /// A writer that blocks until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<bool>, Condvar)>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            let (is_open, opened) = &*self.0;
            opened.wait_while(&mut is_open.lock(), |is_open| !*is_open);
            self.1.lock().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_request_waits_for_a_stuck_writer_and_lost_lines_are_counted() {
        let gate = Gate::default();
        let log = LineWriter::new("test", gate.clone(), |_| {}).unwrap();
        let lines = MAX_WAITING as u64 / 8 * 3;
        let mine = log.lines();
        for number in 0..lines {
            mine.push(|line| line.extend_from_slice(format!("{number:7}").as_bytes()));
        }
        drop(mine);
        let lost = log.lost();
        assert!(lost >= lines / 3, "{lost}");
        *gate.0.0.lock() = true;
        gate.0.1.notify_all();
        drop(log);
        let text = String::from_utf8(std::mem::take(&mut *gate.1.lock())).unwrap();
        assert_eq!(text.lines().count() as u64, lines - lost, "every line that is not lost is written before the end");
        assert!(text.starts_with("      0\n      1\n      2\n"));
    }

    #[test]
    fn the_end_waits_only_so_long_for_a_stuck_writer() {
        let log = LineWriter::new("test", Gate::default(), |_| {}).unwrap();
        log.lines().push(|line| line.push(b'x'));
        let start = std::time::Instant::now();
        drop(log);
        assert!(start.elapsed() < 10 * PATIENCE);
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("disk full"))
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failing_writer_ends_neither_the_log_nor_the_gateway() {
        let log = LineWriter::new("test", Broken, |_| {}).unwrap();
        for _ in 0..2 {
            log.lines().push(|line| line.push(b'x'));
        }
        let shared = Arc::clone(&log.shared);
        drop(log);
        assert_eq!(shared.lost.load(Ordering::Relaxed), 2, "the lines that it could not write are counted");
    }
}
