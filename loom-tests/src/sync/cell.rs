//! `ArcSwap`, as far as the core uses it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use super::{AtomicUsize, Hidden};

/// Every value that there ever was, and which of them is the current one. A reader may get a stale index, as it may get
/// a stale pointer of the real one; a lock in its place would order what the real one does not.
pub struct ArcSwap<T> {
    current: AtomicUsize,
    values: Hidden<Vec<Arc<T>>>,
}

impl<T> ArcSwap<T> {
    /// A cell that holds `value`.
    pub fn from_pointee(value: T) -> Self {
        Self { current: AtomicUsize::new(0), values: Hidden::new(vec![Arc::new(value)]) }
    }

    /// The current value.
    pub fn load(&self) -> impl Deref<Target = Arc<T>> + use<T> {
        Loaded(self.at(self.current.load(Acquire)))
    }

    /// Replaces the value.
    pub fn store(&self, value: Arc<T>) {
        let next = self.push(value);
        self.current.swap(next, AcqRel);
    }

    /// Replaces the value by `f` of it, which may run more than once, and returns the old one.
    pub fn rcu<R: Into<Arc<T>>>(&self, mut f: impl FnMut(&Arc<T>) -> R) -> Arc<T> {
        let mut index = self.current.load(Acquire);
        loop {
            let old = self.at(index);
            let next = self.push(f(&old).into());
            match self.current.compare_exchange(index, next, AcqRel, Acquire) {
                Ok(_) => return old,
                Err(current) => index = current,
            }
        }
    }

    fn at(&self, index: usize) -> Arc<T> {
        self.values.with(|values| Arc::clone(&values[index]))
    }

    fn push(&self, value: Arc<T>) -> usize {
        self.values.with(|values| {
            values.push(value);
            values.len() - 1
        })
    }
}

struct Loaded<T>(Arc<T>);

impl<T> Deref for Loaded<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}
