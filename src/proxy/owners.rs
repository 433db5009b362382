//! Which provider an id is from: a file, a batch or an earlier response means nothing to another one.
//!
//! Not here: where ids stand in a request or an answer: `request::ids`.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

/// So many ids are remembered, in about 8 MB. The one that was not used for longest is forgotten first.
const ROOM: usize = 100_000;

/// Of this process alone: a restart forgets them.
pub(crate) struct Owners {
    hashing: foldhash::fast::RandomState,
    known: Mutex<LruCache<u64, Arc<str>>>,
}

impl Default for Owners {
    fn default() -> Self {
        Self { hashing: foldhash::fast::RandomState::default(), known: Mutex::new(LruCache::unbounded()) }
    }
}

impl Owners {
    /// Notes that ids are from a provider, by its name.
    pub(crate) fn remember(&self, ids: &[&[u8]], provider: &Arc<str>) {
        let mut known = self.known.lock();
        for id in ids {
            known.put(self.hashing.hash_one(id), Arc::clone(provider));
            if known.len() > ROOM {
                known.pop_lru();
            }
        }
    }

    /// The name of the provider that an id is from.
    pub(crate) fn of(&self, id: &[u8]) -> Option<Arc<str>> {
        self.known.lock().get(&self.hashing.hash_one(id)).cloned()
    }
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owners").field("known", &self.known.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_ids_are_remembered_and_the_others_are_forgotten() {
        let owners = Owners::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        owners.remember(&[b"first", b"second"], &a);
        for number in 0..ROOM - 1 {
            let id = number.to_string();
            owners.remember(&[id.as_bytes()], &b);
            assert_eq!(owners.of(b"second"), Some(Arc::clone(&a)), "it was used just now");
        }
        assert_eq!((owners.of(b"first"), owners.of(b"0"), owners.of(b"unknown")), (None, Some(b), None));
    }
}
