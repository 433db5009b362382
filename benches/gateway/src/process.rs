//! Programs that a bench starts, and what they need. `benches/faults` has this file, too.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Of those that are not given to connections by themselves, each another one.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 20_000).expect("small");
    std::iter::repeat_with(|| start + NEXT.fetch_add(1, Ordering::Relaxed))
        .take_while(|port| *port < 32_768)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}

/// The gateway as it is released.
pub(crate) fn build() -> PathBuf {
    let status = Command::new("cargo")
        .args(["build", "-q", "--release", "-p", "fusebox", "--features", "proxy", "--bin", "fusebox"])
        .status();
    assert!(status.expect("cargo runs").success(), "the gateway does not build");
    std::env::current_exe().expect("this program").with_file_name("fusebox")
}

/// Or can be had from Debian.
pub(crate) fn is_there(program: &str) -> bool {
    let get = format!("command -v {program} >/dev/null || apt-get install -qq -y {program} >/dev/null 2>&1");
    let is_there = Command::new("sh").args(["-c", &get]).status().is_ok_and(|status| status.success());
    if !is_there {
        println!("SKIPPED: there is no {program} here");
    }
    is_there
}

/// Waits until the port is open.
pub(crate) fn wait_for(port: u16) -> Result<(), String> {
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(format!("nobody listens on {port} after ten seconds"));
        }
        pause(Duration::from_millis(20));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "for programs that start others and watch them")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
