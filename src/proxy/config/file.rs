//! Reading a file that may be anything: a pipe that nobody writes to, a disk that does not answer, a device without an end.
//!
//! Not here: what is in it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// No configuration and no list of certificates is as long.
const MAX_BYTES: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a file by a thread of its own, which is left behind if the file does not come to an end in time.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    let path = path.to_owned();
    let read = move || {
        // Whoever has waited for it may be gone.
        let _ = send.send(read_up_to_the_limit(&path));
    };
    std::thread::Builder::new().name("read-file".into()).spawn(read)?;
    receive
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(io::Error::other(format!("it does not come within {PATIENCE:?}"))))
}

fn read_up_to_the_limit(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is longer than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}
