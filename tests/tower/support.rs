//! Services that do what a test says.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fusebox::CircuitBreaker;
use parking_lot::Mutex;
use tower::Service;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Opens with the first failure.
pub(crate) fn breaker() -> Arc<CircuitBreaker> {
    Arc::new(CircuitBreaker::builder("upstream").failure_threshold(1).build().unwrap())
}

pub(crate) fn trip(breaker: &CircuitBreaker) {
    breaker.try_acquire().unwrap().failure("5xx", "test");
}

/// An upstream, and how it behaves.
#[derive(Clone)]
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    /// It is ready for one call: of this clone, and of no other.
    is_ready: bool,
}

#[derive(Default)]
struct Shared {
    is_full: AtomicBool,
    is_broken: AtomicBool,
    is_failing: AtomicBool,
    hangs: AtomicBool,
    calls: AtomicUsize,
    wakers: Mutex<Vec<Waker>>,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default(), is_ready: false }
    }

    /// Not ready until it is no longer full.
    pub(crate) fn fill(&self, is_full: bool) {
        self.shared.is_full.store(is_full, Ordering::Relaxed);
        self.wake();
    }

    /// `poll_ready` fails.
    pub(crate) fn break_it(&self) {
        self.shared.is_broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn fail(&self, is_failing: bool) {
        self.shared.is_failing.store(is_failing, Ordering::Relaxed);
        self.wake();
    }

    /// Calls do not end.
    pub(crate) fn hang(&self, hangs: bool) {
        self.shared.hangs.store(hangs, Ordering::Relaxed);
        self.wake();
    }

    pub(crate) fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        self.shared.wakers.lock().drain(..).for_each(Waker::wake);
    }
}

impl Service<u32> for Upstream {
    type Response = u32;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<u32>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.is_broken.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::Error::other("broken")));
        }
        if self.shared.is_full.load(Ordering::Relaxed) {
            self.shared.wakers.lock().push(cx.waker().clone());
            return Poll::Pending;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without having been ready");
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            poll_fn(|cx| {
                if shared.hangs.load(Ordering::Relaxed) {
                    shared.wakers.lock().push(cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            if shared.is_failing.load(Ordering::Relaxed) { Err(io::Error::other("failing")) } else { Ok(request) }
        })
    }
}

/// Polls once.
pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Waits for a condition. The deadline is one of real time: tokio's is paused.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "the condition is not met");
        tokio::task::yield_now().await;
    }
}
