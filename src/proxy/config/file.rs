//! Reading a file that may be anything: a pipe that nobody writes to, on a disk that does not answer, a device without
//! an end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// No configuration, no list of certificates and no state is this long.
const MAX_BYTES: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a file on a thread of its own. The thread is abandoned if it does not reach the end of the file in time.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    let path = path.to_owned();
    let read = move || {
        // The receiver may have given up.
        let _ = send.send(read_up_to_the_limit(&path));
    };
    std::thread::Builder::new().name("read-file".into()).spawn(read)?;
    receive
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err(io::Error::other(format!("it could not be read within {PATIENCE:?}"))))
}

fn read_up_to_the_limit(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it is longer than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}
