//! A value for each thread, so that threads which count do not compete for a cache line.
//!
//! Not here: how a thread finds its value, which is the crate `thread_local`'s work.

use crossbeam_utils::CachePadded;
use thread_local::ThreadLocal;

/// No two threads ever share a value at the same time. The value of a thread that has ended stays, and may become a new
/// thread's.
pub(crate) struct PerThread<T: Send>(ThreadLocal<CachePadded<T>>);

impl<T: Send + Sync + Default> PerThread<T> {
    pub(crate) fn new() -> Self {
        Self(ThreadLocal::new())
    }

    /// With this thread's value.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(self.0.get_or_default())
    }

    /// With the values of all threads. What a thread did is seen if it happened before.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&T)) {
        self.0.iter().for_each(|value| f(value));
    }
}
