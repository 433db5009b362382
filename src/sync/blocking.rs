//! Waiting on a thread of its own, and whether a task may wait.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};

use tokio::runtime::Handle;
use tokio::time::Instant;

/// Whether there is a runtime to wait in.
pub(crate) fn is_in_runtime() -> bool {
    Handle::try_current().is_ok()
}

/// Blocks the thread until `future` ends or the deadline has passed.
pub(crate) fn block_until(deadline: Instant, future: impl Future<Output = ()>) {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        // It may return early, and then all is looked at again.
        thread::park_timeout(left);
    }
}
