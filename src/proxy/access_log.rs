//! The access log: a line per request, written by a thread of its own, so that no request waits for a slow disk.

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::warn;

/// More lines than that wait only if they cannot be written; then further ones are lost, and counted.
const MAX_WAITING: usize = 8192;
/// While there is traffic, lines are written together: a wakeup and a write for each one costs more than the request's share
/// of everything else that the gateway does by itself.
const PAUSE: Duration = Duration::from_millis(20);

/// What lines are handed to.
pub(crate) struct AccessLog {
    /// `None` once it is over.
    lines: Option<Sender<Vec<u8>>>,
    /// Buffers that have been written and can be used again. A buffer that one thread allocates and another one frees has
    /// the two fight over the allocator's lock.
    spare: Receiver<Vec<u8>>,
    lost: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    pub(crate) fn new(writer: impl Write + Send + 'static) -> Self {
        let (lines, waiting) = bounded(MAX_WAITING);
        let (written, spare) = bounded(MAX_WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let not_written = Arc::clone(&lost);
        let write = move || write(writer, &waiting, &written, &not_written);
        let writer =
            std::thread::Builder::new().name("access-log".into()).spawn(write).expect("a thread can be started");
        Self { lines: Some(lines), spare, lost, writer: Some(writer) }
    }

    /// Takes a line, which `fill` writes into an empty buffer.
    pub(crate) fn push(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut line = self.spare.try_recv().unwrap_or_default();
        line.clear();
        fill(&mut line);
        line.push(b'\n');
        if self.lines.as_ref().is_none_or(|lines| lines.try_send(line).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that could not be written, or not fast enough.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for AccessLog {
    /// Waits until what is left has been written.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            // A panic in there has been printed.
            let _ = writer.join();
        }
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

/// Sleeps until there is a line; then looks every now and then, as long as there are more.
#[expect(clippy::disallowed_methods, reason = "it is a thread of its own, and no test")]
fn write(mut writer: impl Write, waiting: &Receiver<Vec<u8>>, written: &Sender<Vec<u8>>, lost: &AtomicU64) {
    let mut is_failing = false;
    while let Ok(first) = waiting.recv() {
        let mut next = Some(first);
        while let Some(first) = next {
            let mut result = Ok(());
            let mut lines = 0;
            for line in std::iter::once(first).chain(waiting.try_iter()) {
                lines += 1;
                result = result.and_then(|()| writer.write_all(&line));
                // If there are enough of them, this one is freed.
                let _ = written.try_send(line);
            }
            let result = result.and_then(|()| writer.flush());
            if let Err(error) = &result {
                // Of those that were written together, nobody knows which.
                lost.fetch_add(lines, Ordering::Relaxed);
                // Once, and not fifty times a second as long as the disk is full.
                if !is_failing {
                    warn!(%error, "the access log cannot be written");
                }
            }
            is_failing = result.is_err();
            std::thread::sleep(PAUSE);
            next = waiting.try_recv().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::{Condvar, Mutex};

    use super::*;

    /// Takes nothing until it is opened.
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
    fn no_request_waits_for_a_writer_that_is_stuck_and_what_is_lost_is_counted() {
        let gate = Gate::default();
        let log = AccessLog::new(gate.clone());
        let lines = MAX_WAITING as u64 * 3;
        for number in 0..lines {
            log.push(|line| line.extend_from_slice(number.to_string().as_bytes()));
        }
        let lost = log.lost();
        assert!(lost >= MAX_WAITING as u64, "{lost}");
        *gate.0.0.lock() = true;
        gate.0.1.notify_all();
        drop(log);
        let text = String::from_utf8(std::mem::take(&mut *gate.1.lock())).unwrap();
        assert_eq!(text.lines().count() as u64, lines - lost, "what is not lost is written before it ends");
        assert!(text.starts_with("0\n1\n2\n"));
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
    fn a_writer_that_fails_ends_neither_the_log_nor_the_gateway() {
        let log = AccessLog::new(Broken);
        log.push(|line| line.push(b'x'));
        log.push(|line| line.push(b'y'));
        let lost = Arc::clone(&log.lost);
        drop(log);
        assert_eq!(lost.load(Ordering::Relaxed), 2, "and what it could not write is counted");
    }
}
