//! The map from names to breakers: a hash table that many read while one writes.
//!
//! A slot is filled once and never emptied, so that a new name costs one slot and not a copy of the map. A name is in
//! the first slot that is free from the place on that its hash says, and a lookup ends at the first free one. Whoever
//! finds a name in its slot sees all that was filled before it, so no lookup goes back in time.
//!
//! Not here: who may write, and how a table is replaced by another one: `registry`.

use std::hash::BuildHasher;
use std::sync::Arc;

use crate::breaker::CircuitBreaker;
use crate::sync::unseen::{AtomicU32, AtomicUsize};
use crate::sync::{OnceLock, Ordering, RandomState};

/// With the default hasher a lookup takes twice as long. `foldhash` is seeded at random, but an attacker who sees its
/// results could construct names that collide. A registry that takes strangers' names has a cap, which bounds what that
/// costs.
pub(super) struct Table {
    /// A power of two, and at least half of them are free, so that a lookup in vain ends soon.
    slots: Box<[OnceLock<Slot>]>,
    /// Counted by the writers alone.
    filled: AtomicUsize,
    hasher: RandomState,
}

/// A breaker in the table.
pub(super) struct Slot {
    hash: u64,
    /// The breaker's. Read here, it spares a lookup a look at the breaker, which may be in no cache.
    name: Arc<str>,
    pub(super) breaker: Arc<CircuitBreaker>,
    /// Of the bits below. It is a hint for eviction, and no rule depends on it.
    mark: AtomicU32,
}

/// It was looked up since the last eviction.
const USED: u32 = 1;
/// It is never evicted.
const KEPT: u32 = 2;

impl Slot {
    /// The second chance of the clock algorithm (Corbató: A Paging Experiment with the Multics System, 1968). The bit
    /// is read before it is set, so that lookups of one name do not compete for its slot.
    #[inline]
    pub(super) fn use_it(&self) {
        if self.mark.load(Ordering::Relaxed) == 0 {
            self.mark.fetch_or(USED, Ordering::Relaxed);
        }
    }

    pub(super) fn keep(&self) {
        if !self.is_kept() {
            self.mark.fetch_or(KEPT, Ordering::Relaxed);
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.mark.load(Ordering::Relaxed) & KEPT != 0
    }

    /// Whether it was looked up since this was asked last.
    pub(super) fn take_use(&self) -> bool {
        self.mark.fetch_and(!USED, Ordering::Relaxed) & USED != 0
    }
}

impl Table {
    /// With room for so many names.
    pub(super) fn with_room(names: usize) -> Self {
        Self::for_names(names, RandomState::default())
    }

    fn for_names(names: usize, hasher: RandomState) -> Self {
        let slots = (2 * names).next_power_of_two().max(4);
        Self { slots: (0..slots).map(|_| OnceLock::new()).collect(), filled: AtomicUsize::new(0), hasher }
    }

    pub(super) fn len(&self) -> usize {
        self.filled.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn find(&self, name: &str) -> Option<&Slot> {
        let hash = self.hasher.hash_one(name);
        let (mut at, last) = (self.place(hash), self.slots.len() - 1);
        loop {
            let slot = self.slots.get(at & last)?.get()?;
            if slot.hash == hash && *slot.name == *name {
                return Some(slot);
            }
            at += 1;
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are enough")]
    fn place(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter_map(OnceLock::get)
    }

    // ---- by one writer at a time ----

    pub(super) fn has_room(&self) -> bool {
        (self.len() + 1) * 2 <= self.slots.len()
    }

    /// Adds a breaker whose name is not there. There has to be room.
    pub(super) fn add(&self, breaker: Arc<CircuitBreaker>, is_kept: bool) {
        let (name, hash) = (Arc::clone(breaker.shared_name()), self.hasher.hash_one(breaker.name()));
        self.fill(Slot { hash, name, breaker, mark: AtomicU32::new(if is_kept { KEPT } else { 0 }) });
    }

    fn fill(&self, new: Slot) {
        debug_assert!(self.has_room());
        let mut at = self.place(new.hash);
        while self.slots[at].get().is_some() {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at].get_or_init(|| new);
        self.filled.fetch_add(1, Ordering::Relaxed);
    }

    /// A table with those of its breakers that `stays` is true for, and with room for so many more.
    pub(super) fn copy(&self, more: usize, mut stays: impl FnMut(&Slot) -> bool) -> Self {
        let staying: Vec<_> = self.iter().filter(|slot| stays(slot)).collect();
        let copy = Self::for_names(staying.len() + more, self.hasher.clone());
        for slot in staying {
            let mark = AtomicU32::new(slot.mark.load(Ordering::Relaxed));
            let (name, breaker) = (Arc::clone(&slot.name), Arc::clone(&slot.breaker));
            copy.fill(Slot { hash: slot.hash, name, breaker, mark });
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Table;
    use crate::breaker::CircuitBreaker;
    use crate::config::Config;

    fn breaker(name: &str) -> Arc<CircuitBreaker> {
        Arc::new(CircuitBreaker::new(name, Config::default()))
    }

    #[test]
    fn a_table_finds_what_was_added_until_it_is_full_and_nothing_else() {
        let table = Table::with_room(1000);
        let mut names = 0;
        while table.has_room() {
            table.add(breaker(&format!("name {names}")), true);
            names += 1;
            assert!(table.find(&format!("name {names}")).is_none());
        }
        assert!(names >= 1000 && table.len() == names, "{names}");
        let found = |n: usize| table.find(&format!("name {n}")).map(|slot| slot.breaker.name().to_owned());
        assert!((0..names).all(|n| found(n) == Some(format!("name {n}"))));
        assert_eq!(table.iter().count(), names);
    }

    #[test]
    fn a_table_has_room_for_as_many_as_were_asked_for() {
        for names in 0..200 {
            let table = Table::with_room(names);
            for n in 0..names {
                assert!(table.has_room(), "{n} of {names}");
                table.add(breaker(&n.to_string()), true);
            }
        }
    }

    #[test]
    fn a_copy_has_those_that_stay_with_their_marks() {
        let table = Table::with_room(4);
        for name in ["kept", "used", "idle", "gone"] {
            table.add(breaker(name), name == "kept");
        }
        table.find("used").unwrap().use_it();
        let copy = table.copy(1, |slot| slot.breaker.name() != "gone");
        assert!(copy.find("gone").is_none() && copy.len() == 3);
        let mark = |name| copy.find(name).map(|slot| (slot.is_kept(), slot.take_use())).unwrap();
        assert_eq!([mark("kept"), mark("used"), mark("idle")], [(true, false), (false, true), (false, false)]);
    }

    #[test]
    fn names_that_differ_in_one_character_are_spread_over_the_table() {
        let table = Table::with_room(50_000);
        for n in 0..50_000 {
            table.add(breaker(&format!("provider-{n:05}")), true);
        }
        let taken: Vec<_> = table.slots.iter().map(|slot| slot.get().is_some()).collect();
        let longest = taken.split(|taken| !taken).map(<[bool]>::len).max().unwrap();
        // By chance alone it is about 30.
        assert!(longest < 100, "{longest}");
    }
}
