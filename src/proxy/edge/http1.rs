//! HTTP/1 as the gateway serves it: the limits of the configuration.
//!
//! Not here: what is served: `clients` and `operators`.

use std::sync::Arc;

use hyper::server::conn::http1;

use crate::proxy::config::ServerConfig;
use crate::proxy::timers::{HyperTimer, Timers};

/// How many unread bytes of a client are buffered. hyper's own limit is 400 KiB for each connection.
const MAX_BUFFERED: u64 = 64 << 10;

/// hyper's own limit.
const USUAL_HEADERS: u64 = 100;

pub(super) fn http(server: &ServerConfig, timers: &Arc<Timers>) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The socket finds out whether a client that sends no more has left.
    http.half_close(true);
    http.timer(HyperTimer(Arc::clone(timers))).header_read_timeout(server.header_timeout);
    let bytes = |limit: u64| usize::try_from(limit).unwrap_or(usize::MAX);
    http.max_header_size(bytes(server.max_header_bytes));
    http.max_buf_size(bytes(server.max_header_bytes.max(MAX_BUFFERED)));
    // Setting a limit, even the usual one, costs an allocation for each request.
    if server.max_headers != USUAL_HEADERS {
        http.max_headers(bytes(server.max_headers));
    }
    http
}
