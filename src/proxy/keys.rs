//! The keys of a provider that has several: used in turn, each with a circuit of its own. A key that is refused is out
//! for all models, and one that has reached a rate limit rests for that model. Only when no key is left is the provider
//! out, or the model.
//!
//! A provider with one key has none of this: its own circuit is the key's.
//!
//! Not here: which outcome is a key's fault: `outcome`; telling the circuits: `route::attempts`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast::Sender;
use tokio::time::Instant;

use super::circuits::ModelId;
use super::circuits::cooldown::Growing;
use crate::{CircuitBreaker, CircuitState, Config, Permit, Transition};

#[derive(Debug)]
pub(crate) struct Keys {
    keys: Box<[Key]>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Key {
    breaker: Arc<CircuitBreaker>,
    cooldowns: Growing,
    /// Until when it is not used for a model.
    rests: Mutex<HashMap<ModelId, Instant>>,
}

/// The use of a key.
pub(crate) struct Turn {
    pub(crate) key: usize,
    /// `None` if all keys are out: a request is not refused for want of a key.
    permit: Option<Permit<Arc<CircuitBreaker>>>,
}

impl Turn {
    /// The provider has answered, and has not refused the key.
    pub(crate) fn succeed(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.success();
        }
    }
}

impl Keys {
    /// `None` for less than two keys.
    pub(crate) fn new(provider: &str, count: usize, config: Config, listener: &Sender<Transition>) -> Option<Self> {
        let key = |number: usize| {
            let breaker = Arc::new(CircuitBreaker::new(format!("{provider}, key {}", number + 1), config));
            breaker.attach(listener);
            Key { breaker, cooldowns: Growing::default(), rests: Mutex::default() }
        };
        (count > 1).then(|| Self { keys: (0..count).map(key).collect(), next: AtomicUsize::new(0) })
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The next key that may be used for a model, as its probe if it was out.
    pub(crate) fn turn(&self, model: ModelId, now: Instant) -> Turn {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let order = (0..self.len()).map(|at| first.wrapping_add(at) % self.len());
        let take = |key: usize| {
            if self.rest_of(key, model, now).is_some() {
                return None;
            }
            let Key { breaker, .. } = &self.keys[key];
            let permit = breaker.try_acquire().ok()?.held_by(Arc::clone(breaker)).cancel_on_drop();
            Some(Turn { key, permit: Some(permit) })
        };
        let soonest = || order.clone().min_by_key(|key| self.left(*key, model, now)).unwrap_or_default();
        order.clone().find_map(take).unwrap_or_else(|| Turn { key: soonest(), permit: None })
    }

    /// Takes a key out that was refused. Returns for how long.
    pub(crate) fn put_out(
        &self,
        key: usize,
        turn: Option<Turn>,
        (base, max): (Duration, Duration),
        error_type: &'static str,
        message: &dyn std::fmt::Display,
    ) -> Duration {
        let Key { breaker, cooldowns, .. } = &self.keys[key];
        let length = cooldowns.begin(Instant::now(), base, max);
        match turn.and_then(|turn| turn.permit) {
            Some(permit) => permit.cool_down(length, error_type, message),
            None => drop(breaker.trip_for(length, error_type, message)),
        }
        length
    }

    /// Lets a key rest for a model.
    pub(crate) fn rest(&self, key: usize, model: ModelId, until: Instant) {
        self.keys[key].rests.lock().insert(model, until);
    }

    /// How long until one of the keys may be used for a model, if none may be now.
    pub(crate) fn none_free_for(&self, model: ModelId, now: Instant) -> Option<Duration> {
        let left: Option<Vec<_>> = (0..self.len()).map(|key| self.left(key, model, now)).collect();
        left?.into_iter().min()
    }

    /// The same for any model: how long until one of them is not out.
    pub(crate) fn all_out(&self) -> Option<Duration> {
        let left: Option<Vec<_>> = (0..self.len()).map(|key| self.out_for(key)).collect();
        left?.into_iter().min()
    }

    /// Those that are out: their numbers from 1 on, with what refused them and for how long.
    pub(crate) fn out(&self) -> impl Iterator<Item = (usize, String, Duration)> {
        self.keys.iter().enumerate().filter_map(|(at, key)| {
            let left = self.out_for(at)?;
            let error = key.breaker.snapshot().last_error;
            Some((at + 1, error.map(|error| error.error_type().to_owned()).unwrap_or_default(), left))
        })
    }

    /// That of each key.
    pub(crate) fn breakers(&self) -> impl Iterator<Item = &Arc<CircuitBreaker>> {
        self.keys.iter().map(|key| &key.breaker)
    }

    /// The keys may have been replaced.
    pub(crate) fn forget(&self) {
        for key in &self.keys {
            key.cooldowns.forget();
            if key.breaker.state() != CircuitState::Closed {
                key.breaker.reset();
            }
            key.rests.lock().clear();
        }
    }

    fn left(&self, key: usize, model: ModelId, now: Instant) -> Option<Duration> {
        self.rest_of(key, model, now).max(self.out_for(key))
    }

    fn out_for(&self, key: usize) -> Option<Duration> {
        self.keys[key].breaker.snapshot().next_probe_in.filter(|left| !left.is_zero())
    }

    fn rest_of(&self, key: usize, model: ModelId, now: Instant) -> Option<Duration> {
        let until = self.keys[key].rests.lock().get(&model).copied()?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::circuits::Circuits;

    const MODEL: ModelId = Circuits::NO_MODEL;
    const SECOND: Duration = Duration::from_secs(1);

    fn keys() -> Keys {
        Keys::new("a", 3, Config::default(), &Sender::new(1)).unwrap()
    }

    fn used(keys: &Keys) -> usize {
        let mut turn = keys.turn(MODEL, Instant::now());
        turn.succeed();
        turn.key
    }

    fn refuse(keys: &Keys) -> usize {
        let turn = keys.turn(MODEL, Instant::now());
        let key = turn.key;
        keys.put_out(key, Some(turn), (SECOND, SECOND * 6), "key_refused", &"no");
        key
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_used_in_turn_and_one_that_is_refused_is_left_out_until_its_probe() {
        let keys = keys();
        assert_eq!([used(&keys), used(&keys), used(&keys), used(&keys)], [0, 1, 2, 0]);
        assert_eq!(refuse(&keys), 1);
        let order: Vec<_> = (0..6).map(|_| used(&keys)).collect();
        assert!(!order.contains(&1) && order.contains(&0) && order.contains(&2), "{order:?}");
        assert_eq!((keys.all_out(), keys.out().map(|(number, ..)| number).collect::<Vec<_>>()), (None, vec![2]));
        tokio::time::advance(SECOND).await;
        let probe = std::iter::repeat_with(|| keys.turn(MODEL, Instant::now()));
        let probe = probe.take(9).find(|turn| turn.key == 1).unwrap();
        let others: Vec<_> = (0..6).map(|_| used(&keys)).collect();
        assert!(!others.contains(&1), "it has one probe: {others:?}");
        drop(probe);
        assert!((0..3).map(|_| used(&keys)).any(|key| key == 1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_out_until_the_first_of_them_is_back_and_then_none_refuses_a_request() {
        let keys = keys();
        for _ in 0..3 {
            assert_eq!(keys.all_out(), None);
            refuse(&keys);
        }
        assert_eq!(keys.all_out(), Some(SECOND));
        assert!(used(&keys) < 3);
        keys.forget();
        assert_eq!((keys.all_out(), keys.none_free_for(MODEL, Instant::now())), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_rests_for_one_model_and_is_used_for_the_others() {
        let keys = keys();
        let now = Instant::now();
        for (key, seconds) in [(0, 3), (1, 2)] {
            keys.rest(key, MODEL, now + SECOND * seconds);
        }
        assert_eq!([used(&keys), used(&keys)], [2, 2]);
        assert_eq!(keys.none_free_for(MODEL, now), None);
        keys.rest(2, MODEL, now + SECOND * 4);
        assert_eq!(keys.none_free_for(MODEL, now), Some(SECOND * 2));
        assert_eq!(keys.all_out(), None, "no key is out for all models");
        tokio::time::advance(SECOND * 2).await;
        assert_eq!([used(&keys), used(&keys)], [1, 1]);
    }
}
