//! How many requests of one model a provider has at once, if that is limited.
//!
//! Not here: what a request does that finds no place: `route::failover`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::proxy::config::Limits;

/// The places of one model at one provider.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicU64,
    pub(super) limits: Limits,
}

/// A place, which is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

/// One of those that wait.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    /// `None` if there is no limit.
    pub(super) fn new(limits: Limits) -> Option<Self> {
        let places = usize::try_from(limits.max_in_flight?).unwrap_or(Semaphore::MAX_PERMITS);
        Some(Self { places: Arc::new(Semaphore::new(places)), waiting: AtomicU64::new(0), limits })
    }

    /// A place, unless all are taken, or somebody waits for one.
    pub(crate) fn try_enter(&self) -> Option<Place> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(Place)
    }

    /// Waits for a place, first come, first served. `None` at once if too many wait already, and after the time limit.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the turn up, and nothing else.
    pub(crate) async fn enter(&self) -> Option<Place> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.limits.max_waiting {
            return None;
        }
        timeout(self.limits.wait_limit, Arc::clone(&self.places).acquire_owned()).await.ok()?.ok().map(Place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate(max_in_flight: u64, max_waiting: u64) -> Gate {
        Gate::new(Limits { max_in_flight: Some(max_in_flight), max_waiting, wait_limit: Duration::from_secs(5) })
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_first_enters_first_and_nobody_overtakes_those_who_wait() {
        let gate = gate(1, 2);
        let first = gate.try_enter().unwrap();
        assert!(gate.try_enter().is_none());
        let (mut second, mut third) = (Box::pin(gate.enter()), Box::pin(gate.enter()));
        assert!(futures_are_pending([&mut second, &mut third]).await);
        assert!(gate.enter().await.is_none(), "two wait already");
        drop(first);
        assert!(gate.try_enter().is_none(), "the place is the second one's");
        let place = second.await.unwrap();
        assert!(futures_are_pending([&mut third]).await);
        drop(place);
        drop(third.await.unwrap());
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
        assert!(gate.try_enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_limit_and_who_leaves_gives_its_turn_up() {
        let gate = gate(1, 2);
        let place = gate.try_enter().unwrap();
        let start = tokio::time::Instant::now();
        let (left, stayed) = tokio::join!(timeout(Duration::from_secs(1), gate.enter()), gate.enter());
        assert!(left.is_err() && stayed.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        drop(place);
        assert!(gate.try_enter().is_some());
    }

    #[test]
    fn without_a_limit_there_is_no_gate() {
        assert!(Gate::new(Limits::default()).is_none());
    }

    async fn futures_are_pending<F: Future<Output = Option<Place>>, const N: usize>(
        futures: [&mut std::pin::Pin<Box<F>>; N],
    ) -> bool {
        for future in futures {
            if timeout(Duration::ZERO, future).await.is_ok() {
                return false;
            }
        }
        true
    }
}
