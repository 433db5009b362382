//! The limit for the bytes of bodies and answers that all requests together hold in memory.
//!
//! Not here: what happens to a body for which there is no room: `request::upload` and `route::receive`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// A body up to this size is always held. There are no more of them than connections.
pub(crate) const FREE: u64 = 16 << 10;

/// How much may be held, and how much is.
#[derive(Debug)]
pub(crate) struct Budget {
    max: AtomicU64,
    held: AtomicU64,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { max: AtomicU64::new(max), held: AtomicU64::new(0) })
    }

    /// Bodies that are held already stay, even if they exceed the new limit.
    pub(crate) fn set_max(&self, max: u64) {
        self.max.store(max, Ordering::Relaxed);
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.max.load(Ordering::Relaxed);
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One body's share of a budget. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Share {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Returns whether the share has `bytes` now. If not, it is unchanged.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let fits = more == 0 || self.budget.take(more);
        if fits {
            self.bytes += more;
        }
        fits
    }

    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.budget.give_back(less);
        self.bytes -= less;
    }

    /// Ties the share to `bytes`: it is given back when the last slice of them is dropped.
    pub(crate) fn with(self, bytes: Bytes) -> Bytes {
        struct BytesOfShare {
            bytes: Bytes,
            _share: Share,
        }
        impl AsRef<[u8]> for BytesOfShare {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(BytesOfShare { bytes, _share: self })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back_with_the_last_slice_of_its_bytes() {
        let budget = Budget::new(100);
        let mut one = Share::new(Arc::clone(&budget));
        assert!(one.grow_to(60) && one.grow_to(60) && !one.grow_to(101));
        let mut other = Share::new(Arc::clone(&budget));
        assert!(!other.grow_to(41) && other.grow_to(40));
        assert_eq!(budget.held(), 100);
        one.shrink_to(50);
        let bytes = one.with(Bytes::from(vec![b'x'; 50]));
        let part = bytes.slice(10..20);
        drop((bytes, other));
        assert_eq!((budget.held(), &*part), (50, &b"xxxxxxxxxx"[..]));
        drop(part);
        assert_eq!(budget.held(), 0);
    }
}
