//! A value for each thread of a model.

use std::array::from_fn;
use std::sync::Arc;

use loom::thread::{self, ThreadId};

use super::{AtomicUsize, Hidden, Ordering};

/// A model has no more threads.
const MOST: usize = 4;

/// As the real one: a thread's value is there for others once they have seen it, and they need not see it any earlier.
pub(crate) struct PerThread<T> {
    values: [(Arc<T>, AtomicUsize); MOST],
    threads: Hidden<Vec<ThreadId>>,
}

impl<T: Default> PerThread<T> {
    pub(crate) fn new() -> Self {
        Self { values: from_fn(|_| (Arc::new(T::default()), AtomicUsize::new(0))), threads: Hidden::new(Vec::new()) }
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        let this = thread::current().id();
        let (place, is_new) = self.threads.with(|threads| {
            let known = threads.iter().position(|thread| *thread == this);
            if known.is_none() {
                threads.push(this);
            }
            (known.unwrap_or(threads.len() - 1), known.is_none())
        });
        let (value, is_there) = &self.values[place];
        if is_new {
            is_there.store(1, Ordering::Release);
        }
        f(value)
    }

    pub(crate) fn for_each(&self, mut f: impl FnMut(&T)) {
        for (value, is_there) in &self.values {
            if is_there.load(Ordering::Acquire) == 1 {
                f(value);
            }
        }
    }
}
