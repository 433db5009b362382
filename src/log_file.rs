//! The file that requests are logged to, if it is not standard output. It is opened again at SIGHUP, so that the old
//! one can be moved away (`logrotate(8)`).

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) struct LogFile {
    path: PathBuf,
    first: File,
    is_moved: Arc<AtomicBool>,
}

impl LogFile {
    /// Opens a file to write at its end.
    ///
    /// # Errors
    ///
    /// If it cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let first = append(path);
        let first = first.map_err(|error| format!("server.access_log_file: {} {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), first, is_moved: Arc::default() })
    }

    /// The next line goes to a file that is opened anew.
    pub(crate) fn reopen(&self) {
        self.is_moved.store(true, Ordering::Relaxed);
    }

    pub(crate) fn writer(&self) -> impl Write + Send + use<> {
        let file = self.first.try_clone().map(BufWriter::new);
        Writer { path: self.path.clone(), file, is_moved: Arc::clone(&self.is_moved) }
    }
}

struct Writer {
    path: PathBuf,
    file: io::Result<BufWriter<File>>,
    is_moved: Arc<AtomicBool>,
}

impl Writer {
    fn file(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.file.as_mut().map_err(|error| io::Error::new(error.kind(), error.to_string()))
    }
}

impl Write for Writer {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.is_moved.swap(false, Ordering::Relaxed) {
            match append(&self.path) {
                Ok(new) => {
                    if let Ok(old) = &mut self.file {
                        let _ = old.flush();
                    }
                    self.file = Ok(BufWriter::new(new));
                }
                // The old file is better than none.
                Err(error) => {
                    tracing::warn!(file = %self.path.display(), %error, "the access log's file cannot be opened again");
                }
            }
        }
        self.file()?.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    // It names clients.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}
