//! The contenders. All make the same call: they ask their breaker, call an upstream that does nothing, and tell the
//! breaker how that went.
#![expect(
    missing_docs,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "a contender has its crate's name, and the rest is said at `Start` and `Contender`"
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

const HOUR: Duration = Duration::from_hours(1);

/// The breaker that all calls go to, where a breaker has a name.
const NAME: &str = "anthropic";

/// It and 15 others.
fn names() -> impl Iterator<Item = String> {
    (0..15).map(|n| format!("provider-{n}")).chain([NAME.to_owned()])
}

/// How a breaker starts.
#[derive(Clone, Copy)]
pub enum Start {
    /// Closed, with a threshold that it does not reach.
    Closed,
    /// Open, for an hour.
    Open,
}

impl Start {
    /// The threshold that goes with it.
    fn threshold<T>(self, out_of_reach: T, low: T) -> T {
        match self {
            Self::Closed => out_of_reach,
            Self::Open => low,
        }
    }

    /// A contender that has just been made, as it is to be: with failing calls behind it, until one was refused.
    fn of<C: Contender>(self, contender: C) -> C {
        if let Self::Open = self {
            let mut handle = contender.handle();
            let refused = (0..100_000).any(|_| contender.calls(&mut handle, |_| true) == 0);
            drop(handle);
            assert!(refused, "it does not open");
        }
        contender
    }
}

/// The upstream failed.
#[derive(Debug)]
pub struct Failed;

/// The call that a breaker guards. The optimizer cannot know its result.
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

/// Calls that are plain function calls. It gets whether the call fails, and returns whether it was let through.
struct Plain<F>(F);

impl<F: Fn(bool) -> bool + Send + Sync + 'static> Contender for Plain<F> {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        (0..CALLS).map(|n| u32::from((self.0)(fails(n)))).sum()
    }
}

/// The same of calls that are futures.
trait AsyncCall: Send + Sync + 'static {
    fn call(&self, fails: bool) -> impl Future<Output = bool> + Send;
}

struct Async<T>(T);

impl<T: AsyncCall> Contender for Async<T> {
    type Handle = ();

    fn handle(&self) {}

    fn calls(&self, handle: &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        // One `block_on` for all of them: what is measured is the breaker.
        block_on(self.calls_in_task(handle, fails))
    }

    async fn calls_in_task(&self, (): &mut (), fails: impl Fn(u32) -> bool + Send) -> u32 {
        let mut passed = 0;
        for n in 0..CALLS {
            passed += u32::from(self.0.call(fails(n)).await);
        }
        passed
    }
}

/// Runs a future to its end on this thread. It looks again every 10 ms even if nobody wakes it: tower-resilience 0.14
/// drops the result of the first poll of its timer, and where that has run out by then, nobody ever does.
pub fn block_on<F: Future>(future: F) -> F::Output {
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

/// Polls a future once, and drops it. A call that is measured does this in place instead: to hand a future to a
/// function costs as much as the call.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// For its timer; it has nothing to do.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime")
    });
    &RUNTIME
}
