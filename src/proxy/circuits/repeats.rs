//! Which requests have failed lately: one that fails everywhere must not open every circuit, however often its client
//! sends it.
//!
//! Not here: what a request's hash is made of: `route::attempts`.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The same request counts again after so long.
const MEMORY: Duration = Duration::from_secs(60);

/// And after so many more failures: if nothing succeeds in between, it may be the only request that there is, and the
/// circuit has to open in the end. A client's own retries stay far below.
const COUNTS_AGAIN: u32 = 10;

/// How many requests are remembered.
const ROOM: usize = 16;

/// It takes memory only when something has failed.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<VecDeque<Failed>>);

#[derive(Debug)]
struct Failed {
    hash: u64,
    /// When it counted last.
    counted: Instant,
    /// How often it has failed since.
    since: u32,
}

impl Repeats {
    /// Notes that a request has failed. Returns whether that counts.
    pub(super) fn is_news(&self, hash: u64, now: Instant) -> bool {
        let mut failed = self.0.lock();
        let known = failed.iter().position(|known| known.hash == hash).and_then(|at| failed.remove(at));
        let mut failed_now = match known {
            Some(known) if now.saturating_duration_since(known.counted) < MEMORY => known,
            _ => Failed { hash, counted: now, since: 0 },
        };
        let is_news = failed_now.since % COUNTS_AGAIN == 0;
        if is_news {
            failed_now.counted = now;
        }
        failed_now.since += 1;
        // The one that failed longest ago is forgotten first.
        if failed.len() == ROOM {
            failed.pop_front();
        }
        failed.push_back(failed_now);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_same_request_counts_once_in_a_minute_and_again_after_ten_more_failures() {
        let repeats = Repeats::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(repeats.is_news(1, at(0)) && repeats.is_news(2, at(0)));
        let counted: Vec<_> =
            (0..25).map(|_| repeats.is_news(1, at(1))).enumerate().filter(|(_, news)| *news).collect();
        assert_eq!(counted, [(9, true), (19, true)]);
        assert!(!repeats.is_news(2, at(59)) && repeats.is_news(2, at(61)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_requests_are_remembered_and_the_oldest_is_forgotten_first() {
        let repeats = Repeats::default();
        let now = Instant::now();
        for hash in 0..16 {
            assert!(repeats.is_news(hash, now));
        }
        assert!(!repeats.is_news(0, now), "and so it is the newest one");
        assert!(repeats.is_news(16, now) && !repeats.is_news(0, now) && repeats.is_news(1, now));
    }
}
