//! Ports for servers that are started as programs. The benches have this file, too.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Another one each time, below the range from which the system gives outgoing connections their ports: a client that
/// tries a port in that range before its server listens may be given the same port, and be connected to itself.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 20_000).expect("small");
    std::iter::repeat_with(|| start + NEXT.fetch_add(1, Ordering::Relaxed))
        .take_while(|port| *port < 32_768)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}
