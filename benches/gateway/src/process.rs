//! Programs that a bench starts, and what they need. `benches/faults` has this file, too.

use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

#[path = "../../../tests/fleet/port.rs"]
mod port;
pub(crate) use port::free_port;

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
