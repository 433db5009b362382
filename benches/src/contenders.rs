//! Who is measured. All make the same call: they ask their breaker, call an upstream that does nothing, and tell the breaker
//! how that went.
#![expect(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "a contender has its crate's name, and `closed` and `open` are what they say"
)]

pub mod floors;
pub mod peers;
pub mod replaced;
pub mod us;

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::runtime::Runtime;

/// Calls between two looks at whether the time is over.
pub const CALLS: u32 = 512;

/// The upstream failed.
#[derive(Debug)]
pub struct Failed;

/// The call that a breaker guards. What it returns cannot be known beforehand.
#[inline]
fn upstream(fails: bool) -> Result<(), Failed> {
    if black_box(fails) { Err(Failed) } else { Ok(()) }
}

/// Something that guards calls.
pub trait Contender: Send + Sync + 'static {
    /// What each thread or task has for itself.
    type Handle: Send;
    /// Makes one.
    fn handle(&self) -> Self::Handle;
    /// Makes [`CALLS`] calls, of which the n-th fails if `fails(n)`. How many were let through.
    fn calls(&self, handle: &mut Self::Handle, fails: impl Fn(u32) -> bool + Send) -> u32;
    /// The same, of a task.
    fn calls_in_task(
        &self,
        handle: &mut Self::Handle,
        fails: impl Fn(u32) -> bool + Send,
    ) -> impl Future<Output = u32> + Send {
        async move { self.calls(handle, fails) }
    }
}

/// Something that guards calls which are futures.
pub trait AsyncContender: Send + Sync + 'static {
    /// As [`Contender::Handle`].
    type Handle: Send;
    /// Makes one.
    fn handle(&self) -> Self::Handle;
    /// Makes a call; whether it was let through.
    fn call(&self, handle: &mut Self::Handle, fails: bool) -> impl Future<Output = bool> + Send;
}

/// Makes the one out of the other.
pub struct Async<T>(pub T);

impl<T: AsyncContender> Contender for Async<T> {
    type Handle = T::Handle;

    fn handle(&self) -> Self::Handle {
        self.0.handle()
    }

    fn calls(&self, handle: &mut Self::Handle, fails: impl Fn(u32) -> bool + Send) -> u32 {
        // One `block_on` for all of them: what is measured is the breaker.
        block_on(self.calls_in_task(handle, fails))
    }

    async fn calls_in_task(&self, handle: &mut Self::Handle, fails: impl Fn(u32) -> bool + Send) -> u32 {
        let mut passed = 0;
        for n in 0..CALLS {
            passed += u32::from(self.0.call(handle, fails(n)).await);
        }
        passed
    }
}

/// Runs a future to its end on this thread. It looks again every 10 ms even if nobody wakes it: tower-resilience 0.14 drops
/// the result of the first poll of its timer, and where that has run out by then, nobody ever does.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(Duration::from_millis(10)),
        }
    }
}

/// For contenders whose calls are plain function calls.
fn each(fails: impl Fn(u32) -> bool, call: impl Fn(bool) -> bool) -> u32 {
    (0..CALLS).map(|n| u32::from(call(fails(n)))).sum()
}

/// For its timer; it has nothing to do.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
    });
    &RUNTIME
}
