//! Orders by hand: who gave each, why, and until when.
//!
//! Not here: carrying them out: `state::by_hand`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::circuits::AnswerKind;

/// The circuit that an order is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) provider: String,
    /// `None`: the provider's own circuit.
    pub(crate) of_model: Option<(String, AnswerKind)>,
}

/// What a circuit is to do until another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Reject every call.
    Isolate,
    /// Let every call pass, and count nothing.
    Disable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) order: Order,
    pub(crate) reason: String,
    /// The name of the token that was shown.
    pub(crate) by: Option<String>,
    pub(crate) at: SystemTime,
    /// When the circuit is released. `None`: by hand only.
    pub(crate) until: Option<SystemTime>,
}

/// The orders in force.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    given: Mutex<BTreeMap<Target, Given>>,
    /// Wakes whoever waits for the end of an order.
    pub(crate) changed: Notify,
}

impl Orders {
    pub(crate) fn give(&self, target: Target, given: Given) {
        self.given.lock().insert(target, given);
        self.changed.notify_one();
    }

    /// The order is over.
    pub(crate) fn take(&self, target: &Target) -> Option<Given> {
        self.given.lock().remove(target)
    }

    pub(crate) fn of(&self, target: &Target) -> Option<Given> {
        self.given.lock().get(target).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(Target, Given)> {
        self.given.lock().iter().map(|(target, given)| (target.clone(), given.clone())).collect()
    }

    /// When the next one ends.
    pub(crate) fn next_end(&self) -> Option<SystemTime> {
        self.given.lock().values().filter_map(|given| given.until).min()
    }

    /// Takes out those that have ended.
    pub(crate) fn take_ended(&self, now: SystemTime) -> Vec<(Target, Given)> {
        let mut given = self.given.lock();
        let has_ended = |given: &Given| given.until.is_some_and(|until| until <= now);
        let ended: Vec<_> =
            given.iter().filter(|(_, given)| has_ended(given)).map(|(target, _)| target.clone()).collect();
        ended.into_iter().filter_map(|target| given.remove_entry(&target)).collect()
    }

    pub(crate) fn keep_only(&self, is_kept: impl Fn(&Target) -> bool) {
        self.given.lock().retain(|target, _| is_kept(target));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn an_order_that_was_replaced_ends_when_the_new_one_does() {
        let orders = Orders::default();
        let target = Target { provider: "a".to_owned(), of_model: None };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let given = |until: Option<u64>| {
            let (order, reason) = (Order::Isolate, String::new());
            Given { order, reason, by: None, at: at(0), until: until.map(at) }
        };
        orders.give(target.clone(), given(Some(10)));
        assert_eq!(orders.next_end(), Some(at(10)));
        orders.give(target.clone(), given(Some(20)));
        assert!(orders.take_ended(at(19)).is_empty());
        orders.give(target.clone(), given(None));
        assert_eq!((orders.next_end(), orders.take_ended(at(1000)).len()), (None, 0));
        orders.give(target.clone(), given(Some(20)));
        let ended = orders.take_ended(at(20));
        assert_eq!(ended, [(target.clone(), given(Some(20)))]);
        assert_eq!(orders.of(&target), None);
    }
}
