//! How many requests of a silent provider may be sent to another one as well. Silence may be a mistake, and a mistake
//! must not double the load, or the bill.
//!
//! Not here: which request is sent to whom: `route::failover`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Of the requests of the last `WINDOW` seconds one in `SHARE` may be sent twice, and at least `FLOOR` in each second:
/// a provider with few requests has a hang, too.
const WINDOW: u64 = 10;
const SHARE: u64 = 10;
const FLOOR: u64 = 3;

#[derive(Debug)]
pub(crate) struct Allowance {
    epoch: Instant,
    /// The last second in `State::seconds`, so that all but one of a second's requests need only look.
    newest: AtomicU64,
    state: Mutex<State>,
}

/// The last seconds in which there were requests.
#[derive(Debug, Default)]
struct State {
    seconds: VecDeque<Second>,
}

#[derive(Debug)]
struct Second {
    number: u64,
    /// How many requests there had been before it.
    before: u64,
    /// How many were sent twice in it.
    spent: u64,
}

impl Allowance {
    pub(crate) fn new() -> Self {
        Self { epoch: Instant::now(), newest: AtomicU64::new(u64::MAX), state: Mutex::default() }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_secs()
    }

    /// Call it with each request. `count` says how many requests there have been before.
    pub(crate) fn note(&self, now: Instant, count: impl Fn() -> u64) {
        let second = self.second(now);
        if self.newest.load(Ordering::Relaxed) != second {
            self.state.lock().at(second, count());
            self.newest.store(second, Ordering::Relaxed);
        }
    }

    /// Whether a request could be sent twice. `count` is how many requests there have been.
    pub(crate) fn has_room(&self, now: Instant, count: u64) -> bool {
        self.state.lock().has_room(self.second(now), count)
    }

    /// As [`has_room`](Self::has_room), and notes that the request is sent twice if so.
    pub(crate) fn spend(&self, now: Instant, count: u64) -> bool {
        let mut state = self.state.lock();
        let second = self.second(now);
        let may = state.has_room(second, count);
        if may {
            state.at(second, count).spent += 1;
        }
        may
    }
}

impl State {
    fn at(&mut self, number: u64, count: u64) -> &mut Second {
        while self.seconds.front().is_some_and(|oldest| oldest.number + WINDOW <= number) {
            self.seconds.pop_front();
        }
        // Another core's clock may have been read a little later.
        if self.seconds.back().is_none_or(|newest| newest.number < number) {
            self.seconds.push_back(Second { number, before: count, spent: 0 });
        }
        self.seconds.back_mut().expect("there is one now")
    }

    fn has_room(&mut self, second: u64, count: u64) -> bool {
        if self.at(second, count).spent < FLOOR {
            return true;
        }
        let before = self.seconds.front().map_or(count, |oldest| oldest.before);
        let spent: u64 = self.seconds.iter().map(|second| second.spent).sum();
        spent < count.saturating_sub(before) / SHARE
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// How many of many requests may be sent twice at once.
    fn room(allowance: &Allowance, now: Instant, count: u64) -> usize {
        (0..1000).take_while(|_| allowance.spend(now, count)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenth_of_the_last_requests_may_be_sent_twice_and_a_few_in_each_second() {
        let allowance = Allowance::new();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(room(&allowance, at(0), 0), 3, "there was no request yet");
        assert!(!allowance.has_room(at(999), 0) && allowance.has_room(at(1000), 0));

        // A thousand requests in ten seconds.
        for millis in (20_000..30_000).step_by(10) {
            allowance.note(at(millis), || (millis - 20_000) / 10);
        }
        assert_eq!(room(&allowance, at(29_995), 1000), 100);
        assert_eq!(room(&allowance, at(29_999), 1000), 0);
        assert_eq!(room(&allowance, at(30_500), 1000), 3, "what was spent counts for ten seconds");
        assert_eq!(room(&allowance, at(41_000), 1000), 3, "and requests count for ten seconds");
        assert_eq!(room(&allowance, at(60_000), 1000), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_from_before_the_first_one_that_was_noted_are_not_recent() {
        let allowance = Allowance::new();
        let start = Instant::now();
        allowance.note(start, || 1_000_000);
        assert_eq!(room(&allowance, start, 1_000_050), 5);
    }
}
