//! What a replica believes of one upstream: who says that it fails, who says that it lives, and whether the fleet is
//! of one mind. No clock and no breaker: only what follows from what was heard.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sync::Instant;

/// Nobody is remembered beyond so many: more say nothing new, and what others send must not fill the memory.
const MAX_REPLICAS: usize = 1024;

/// For so long does a good call say that the upstream lives.
pub(crate) const ALIVE_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Beliefs {
    openers: BTreeMap<String, Opener>,
    objectors: BTreeMap<String, Instant>,
    /// Whether this replica is an opener, too.
    pub(crate) own: bool,
    agreed: bool,
}

#[derive(Debug)]
struct Opener {
    until: Instant,
    /// Whether it has been made use of.
    is_used: bool,
}

impl Beliefs {
    /// Another replica has opened. Returns whether that is news.
    pub(crate) fn hear_open(&mut self, replica: &str, until: Instant, now: Instant) -> bool {
        self.forget(now);
        if let Some(opener) = self.openers.get_mut(replica) {
            opener.until = opener.until.max(until);
            return false;
        }
        if self.openers.len() < MAX_REPLICAS {
            self.openers.insert(replica.to_owned(), Opener { until, is_used: false });
        }
        self.agree(now);
        true
    }

    /// Whether somebody stands by an opening that has not been made use of.
    pub(crate) fn has_unused(&self) -> bool {
        self.openers.values().any(|opener| !opener.is_used)
    }

    pub(crate) fn use_all(&mut self) {
        self.openers.values_mut().for_each(|opener| opener.is_used = true);
    }

    pub(crate) fn hear_alive(&mut self, replica: &str, now: Instant) {
        self.forget(now);
        if self.objectors.len() < MAX_REPLICAS || self.objectors.contains_key(replica) {
            self.objectors.insert(replica.to_owned(), now + ALIVE_FOR);
        }
    }

    /// A probe has succeeded, here or elsewhere: nobody stands by an opening any more.
    pub(crate) fn hear_closed(&mut self) {
        *self = Self { objectors: std::mem::take(&mut self.objectors), ..Self::default() };
    }

    pub(crate) fn open_here(&mut self, now: Instant) {
        self.own = true;
        self.agree(now);
    }

    /// What is told for a while has been told for long enough.
    pub(crate) fn forget(&mut self, now: Instant) {
        self.openers.retain(|_, opener| opener.until > now);
        self.objectors.retain(|_, until| *until > now);
        if self.openers.is_empty() && !self.own {
            self.agreed = false;
        }
    }

    /// Those that stand, this replica included.
    pub(crate) fn openers(&self) -> usize {
        self.openers.len() + usize::from(self.own)
    }

    /// The others.
    pub(crate) fn others(&self) -> usize {
        self.openers.len()
    }

    pub(crate) fn objectors(&self) -> usize {
        self.objectors.len()
    }

    /// At least two say that the upstream fails, and they are more than those who say that it lives.
    pub(crate) fn is_majority(&self, quorum: usize) -> bool {
        self.openers() >= quorum && self.openers() > self.objectors()
    }

    /// Whether those who say that it lives are as many as those who would say that it fails if this replica did, too.
    pub(crate) fn is_outvoted(&self) -> bool {
        self.objectors() > self.others()
    }

    /// Whether it takes no more of those who say that it lives.
    pub(crate) fn has_enough_objectors(&self) -> bool {
        self.objectors() >= self.openers()
    }

    fn agree(&mut self, now: Instant) {
        self.objectors.retain(|_, until| *until > now);
        self.agreed |= self.is_majority(2);
    }

    /// Whether the fleet was of one mind, and no probe has succeeded since.
    pub(crate) fn is_agreed(&self) -> bool {
        self.agreed
    }

    /// When the next of them will have stood for long enough.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.openers.values().map(|opener| opener.until).chain(self.objectors.values().copied()).min()
    }

    /// The longest that one of the others stands.
    pub(crate) fn stands_until(&self) -> Option<Instant> {
        self.openers.values().map(|opener| opener.until).max()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.openers() + self.objectors() == 0 && !self.agreed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_openers_agree_unless_as_many_object_and_stay_agreed_until_a_closing() {
        let now = Instant::now();
        let mut beliefs = Beliefs::default();
        assert!(beliefs.hear_open("a", now + SECOND * 9, now));
        assert!(!beliefs.is_agreed(), "one may be wrong");
        for objector in ["x", "y"] {
            beliefs.hear_alive(objector, now);
        }
        beliefs.open_here(now);
        assert!(!beliefs.is_agreed() && beliefs.is_outvoted() && beliefs.has_enough_objectors());
        let later = now + ALIVE_FOR;
        beliefs.hear_open("b", later + SECOND * 9, later);
        assert!(beliefs.is_agreed(), "what lived a second ago may not live now");
        for objector in ["x", "y", "z", "w"] {
            beliefs.hear_alive(objector, later);
        }
        assert!(beliefs.is_agreed() && !beliefs.is_majority(2));
        beliefs.hear_closed();
        assert!(!beliefs.is_agreed() && beliefs.openers() == 0 && beliefs.objectors() == 4);
    }

    #[test]
    fn an_opener_counts_once_while_it_stands() {
        let now = Instant::now();
        let mut beliefs = Beliefs::default();
        beliefs.hear_open("a", now + SECOND, now);
        assert!(beliefs.has_unused());
        beliefs.use_all();
        assert!(!beliefs.hear_open("a", now + SECOND * 2, now), "it is told again by the next look at what stands");
        assert!(!beliefs.has_unused());
        assert_eq!(beliefs.next_end(), Some(now + SECOND * 2));
        assert!(beliefs.hear_open("a", now + SECOND * 5, now + SECOND * 3), "it had lapsed");
        assert!(beliefs.has_unused());
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let now = Instant::now();
        let mut beliefs = Beliefs::default();
        for stranger in 0..2 * MAX_REPLICAS {
            beliefs.hear_open(&stranger.to_string(), now + SECOND, now);
            beliefs.hear_alive(&stranger.to_string(), now);
        }
        assert_eq!((beliefs.openers(), beliefs.objectors()), (MAX_REPLICAS, MAX_REPLICAS));
        beliefs.forget(now + SECOND);
        assert!(beliefs.is_empty());
    }
}
