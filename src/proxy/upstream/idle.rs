//! Connections that no request uses at the moment.
//!
//! Not here: making connections: `upstream`.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::http1::Http1;
use crate::proxy::timers::watch;

/// A stack: the connections that are not needed stay at its bottom and expire. A task watches them, so that one that
/// the provider closes is removed before a request uses it.
pub(super) struct Idle {
    max: usize,
    limit: Duration,
    max_age: Duration,
    stack: Mutex<Stack>,
}

#[derive(Default)]
struct Stack {
    /// Each with the time since when it is idle; the oldest first.
    connections: Vec<(Http1, Instant)>,
    /// Wakes the task that watches them.
    watch: Option<Waker>,
    /// Whether that task runs.
    is_watched: bool,
}

impl Idle {
    pub(super) fn new(max: usize, limit: Duration, max_age: Duration) -> Arc<Self> {
        Arc::new(Self { max, limit, max_age, stack: Mutex::default() })
    }

    pub(super) fn take(&self) -> Option<Http1> {
        let mut stack = self.stack.lock();
        loop {
            let (mut connection, since) = stack.connections.pop()?;
            if since.elapsed() < self.limit && (!connection.is_woken() || connection.rests(None)) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection, if another request can be sent on it.
    pub(super) fn put(self: &Arc<Self>, mut connection: Http1) {
        let now = Instant::now();
        let mut stack = self.stack.lock();
        if stack.connections.len() >= self.max
            || now - connection.since() >= self.max_age
            || !connection.rests(stack.watch.as_ref())
        {
            return;
        }
        stack.connections.push((connection, now));
        if !std::mem::replace(&mut stack.is_watched, true) {
            // Outside of a runtime no task can watch the connection, and none will use it.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    let idle = Arc::downgrade(self);
                    runtime.spawn(watch(move |task| idle.upgrade()?.sweep(task)));
                }
                Err(_) => stack.connections.clear(),
            }
        }
    }

    /// Removes connections that are closed or have been idle for too long. Returns when the next one will be.
    fn sweep(&self, watch: &Waker) -> Option<Instant> {
        let mut stack = self.stack.lock();
        let now = Instant::now();
        let expired = stack.connections.partition_point(|(_, since)| now - *since >= self.limit);
        stack.connections.drain(..expired);
        let is_new = !stack.watch.as_ref().is_some_and(|known| known.will_wake(watch));
        stack
            .connections
            .retain_mut(|(connection, _)| !(is_new || connection.is_woken()) || connection.rests(Some(watch)));
        stack.watch = Some(watch.clone());
        let next = stack.connections.first().map(|(_, since)| *since + self.limit);
        if next.is_none() {
            stack.is_watched = false;
            stack.watch = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use hyper_rustls::MaybeHttpsStream;
    use hyper_util::rt::TokioIo;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_closed_connection_is_not_used_even_before_it_is_swept() {
        let hour = Duration::from_secs(3600);
        let idle = Idle::new(1, hour, hour);
        // So that no task sweeps.
        idle.stack.lock().is_watched = true;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for is_closed in [false, true] {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let provider = listener.accept().await.unwrap();
            idle.put(Http1::new(MaybeHttpsStream::Http(TokioIo::new(stream))).await.unwrap());
            if is_closed {
                drop(provider);
                let woken = async {
                    while !idle.stack.lock().connections[0].0.is_woken() {
                        yield_now().await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), woken).await.expect("it notices in time");
            }
            assert_eq!(idle.take().is_none(), is_closed);
        }
    }
}
