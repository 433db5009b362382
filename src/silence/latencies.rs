//! How long answers take: one histogram per core, which only that core writes, and the sum of all of them.
//!
//! Not here: which requests are silent: `watcher`.

use std::time::Duration;

use crate::sync::Ordering;
use crate::sync::unseen::{AtomicU32, AtomicUsize};

/// Buckets for each doubling, each 6 to 12% wide.
const PER_OCTAVE_BITS: u32 = 3;
const PER_OCTAVE: usize = 1 << PER_OCTAVE_BITS;
/// Answers faster than this share a bucket: 512 us, as a power of two.
const SHORTEST_BITS: u32 = 9;
/// Up to 18 minutes.
const OCTAVES: usize = 21;
const BUCKETS: usize = 1 + OCTAVES * PER_OCTAVE;

/// The histograms are summed again after this many new answers, or after a 32nd of those that are known.
const MIN_NEW: usize = 16;

/// After this many answers all counts are halved, so that old answers count less.
const HALF_LIFE: usize = 2048;

/// The bucket for a time in microseconds.
#[inline]
fn bucket(micros: u64) -> usize {
    let Some(octave) = micros.checked_ilog2().and_then(|log| log.checked_sub(SHORTEST_BITS)) else { return 0 };
    let step = micros >> (octave + SHORTEST_BITS - PER_OCTAVE_BITS);
    #[expect(clippy::cast_possible_truncation, reason = "both are small")]
    let bucket = 1 + octave as usize * PER_OCTAVE + (step as usize - PER_OCTAVE);
    bucket.min(BUCKETS - 1)
}

/// The shortest time that belongs to `bucket`, in microseconds.
fn lower_edge(bucket: usize) -> u64 {
    let Some(step) = bucket.checked_sub(1) else { return 0 };
    ((PER_OCTAVE + step % PER_OCTAVE) as u64) << (step / PER_OCTAVE + (SHORTEST_BITS - PER_OCTAVE_BITS) as usize)
}

/// The histogram of one core. Other cores read it while it is written: one sample more or less does not matter.
pub(super) struct Latencies {
    /// By bucket.
    counts: Box<[AtomicU32]>,
    /// The same of answers that came after an alarm.
    late: Box<[AtomicU32]>,
    answers: AtomicUsize,
}

impl Latencies {
    pub(super) fn new() -> Self {
        let buckets = || (0..BUCKETS).map(|_| AtomicU32::new(0)).collect();
        Self { counts: buckets(), late: buckets(), answers: AtomicUsize::new(0) }
    }

    /// Called by its own core alone, so that a load and a store replace a read-modify-write.
    #[inline]
    pub(super) fn add(&self, micros: u64, is_late: bool) {
        let counts = if is_late { &self.late } else { &self.counts };
        let count = &counts[bucket(micros)];
        count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        self.answers.store(self.answers().wrapping_add(1), Ordering::Relaxed);
    }

    /// How many answers took how long, by the shortest time of each bucket, in microseconds. Old ones and late ones
    /// count as in [`Surprise`].
    pub(super) fn counted(all: &[&Self]) -> Vec<(u64, u32)> {
        let counted = |bucket: usize| {
            let count = all.iter().flat_map(|it| [&it.counts[bucket], &it.late[bucket]]);
            count.fold(0_u32, |sum, count| sum.saturating_add(count.load(Ordering::Relaxed)))
        };
        (0..BUCKETS).map(|bucket| (lower_edge(bucket), counted(bucket))).filter(|(_, count)| *count > 0).collect()
    }

    /// Adds what another process has counted. No other thread may add meanwhile.
    pub(super) fn add_counted(&self, counted: &[(u64, u32)]) {
        for (micros, count) in counted {
            let known = &self.counts[bucket(*micros)];
            known.store(known.load(Ordering::Relaxed).saturating_add(*count), Ordering::Relaxed);
        }
        // So many that none fades at once.
        let all = counted.iter().fold(0_usize, |sum, (_, count)| sum.saturating_add(*count as usize));
        self.answers.store(self.answers().wrapping_add(all.min(HALF_LIFE - 1)), Ordering::Relaxed);
    }

    /// How many answers were ever counted.
    #[inline]
    pub(super) fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Called by its own core alone.
    fn halve(&self, times: usize) {
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        for count in self.counts.iter().chain(&*self.late) {
            count.store(count.load(Ordering::Relaxed).checked_shr(times).unwrap_or(0), Ordering::Relaxed);
        }
    }
}

/// How surprising each latency is.
pub(super) struct Surprise {
    /// For each bucket, -log10 of the share of answers that took at least as long as its lower edge.
    scores: Box<[f32]>,
    /// For each bucket, how many answers there were, and how many came after an alarm. Used while it is made.
    sums: Box<[[u64; 2]]>,
    median: u64,
    p99: u64,
    samples: u64,
    /// How many answers had been counted when it was made.
    made_at: Option<usize>,
    halvings: usize,
}

impl Surprise {
    pub(super) fn new() -> Self {
        let (scores, sums) = (vec![0.0; BUCKETS].into(), vec![[0; 2]; BUCKETS].into());
        Self { scores, sums, median: 0, p99: 0, samples: 0, made_at: None, halvings: 0 }
    }

    /// The surprise of a request that has waited for this many microseconds. It counts as the shortest time of its
    /// bucket: if all answers take the same time, a request that has waited for almost as long is no surprise.
    #[inline]
    pub(super) fn of(&self, micros: u64) -> f32 {
        self.scores[bucket(micros)]
    }

    /// Half of the answers take at most this long. The result is the upper edge of a bucket.
    pub(super) fn median(&self) -> Duration {
        Duration::from_micros(self.median)
    }

    /// 99% of them are.
    pub(super) fn p99(&self) -> Duration {
        Duration::from_micros(self.p99)
    }

    /// How many answers it is made of. Answers that have faded do not count.
    pub(super) fn samples(&self) -> u64 {
        self.samples
    }

    /// Learns from all cores if there are enough new answers. `own` is the caller's histogram; `answers` counts the
    /// answers of all cores.
    pub(super) fn refresh<'a>(&mut self, answers: usize, own: &Latencies, all: impl Iterator<Item = &'a Latencies>) {
        let halvings = answers / HALF_LIFE;
        if halvings > self.halvings {
            own.halve(halvings - self.halvings);
            self.halvings = halvings;
        }
        let enough = usize::try_from(self.samples / 32).unwrap_or(usize::MAX).max(MIN_NEW);
        if self.made_at.is_some_and(|made_at| answers.wrapping_sub(made_at) < enough) {
            return;
        }
        self.made_at = Some(answers);
        self.learn(all);
    }

    pub(super) fn learn<'a>(&mut self, all: impl Iterator<Item = &'a Latencies>) {
        self.sums.fill([0; 2]);
        for latencies in all {
            for ([count, late], (counted, came_late)) in
                self.sums.iter_mut().zip(latencies.counts.iter().zip(&*latencies.late))
            {
                *count += u64::from(counted.load(Ordering::Relaxed));
                *late += u64::from(came_late.load(Ordering::Relaxed));
            }
        }
        // Late answers make slow ones less surprising, so that the same slow answers raise no second alarm. They do not
        // count for the percentiles: a probe is not waited for as long as an outage was.
        let usual: u64 = self.sums.iter().map(|[count, _]| count).sum();
        let samples = usual + self.sums.iter().map(|[_, late]| late).sum::<u64>();
        self.samples = samples;
        // No answer has taken longer than the slowest one. The share of such answers is taken to be one in all.
        let floor = 0.5;
        let (mut above, mut usual_above) = (0, 0);
        (self.median, self.p99) = (0, 0);
        for (bucket, [count, late]) in self.sums.iter().copied().enumerate().rev() {
            let upper_edge = lower_edge(bucket + 1);
            usual_above += count;
            if self.p99 == 0 && usual_above * 100 > usual {
                self.p99 = upper_edge;
            }
            if self.median == 0 && usual_above * 2 > usual {
                self.median = upper_edge;
            }
            above += count + late;
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                reason = "a score is no exact thing"
            )]
            let score = (samples as f64 / (above as f64).max(floor)).log10() as f32;
            self.scores[bucket] = score.max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_lies_between_the_edges_of_its_bucket() {
        for bucket_number in 0..BUCKETS - 1 {
            let (lower, upper) = (lower_edge(bucket_number), lower_edge(bucket_number + 1));
            assert!(lower < upper);
            assert_eq!(
                (bucket(lower), bucket(upper - 1), bucket(upper)),
                (bucket_number, bucket_number, bucket_number + 1)
            );
            assert!(
                bucket_number == 0 || upper * 8 <= lower * 9,
                "no bucket is wider than an eighth: {lower} to {upper}"
            );
        }
        assert_eq!(lower_edge(1), 512);
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        assert!(lower_edge(BUCKETS) >= 1_000_000_000, "a quarter of an hour can be told from an hour");
    }

    fn learnt(samples: impl IntoIterator<Item = u64>) -> Surprise {
        let latencies = Latencies::new();
        samples.into_iter().for_each(|micros| latencies.add(micros, false));
        let mut surprise = Surprise::new();
        surprise.learn(std::iter::once(&latencies));
        surprise
    }

    #[test]
    fn a_latency_of_one_answer_in_ten_scores_one_and_of_one_in_a_hundred_scores_two() {
        let surprise = learnt((0..1000).map(|n| {
            if n % 100 == 0 {
                4_000_000
            } else if n % 10 == 0 {
                400_000
            } else {
                20_000
            }
        }));
        let near = |micros: u64, expected: f32| assert!((surprise.of(micros) - expected).abs() < 1e-6, "{micros}");
        near(0, 0.0);
        near(18_000, 0.0);
        near(30_000, 1.0);
        near(300_000, 1.0);
        near(1_000_000, 2.0);
        near(10_000_000, 2000_f32.log10());
        assert!((18..=23).contains(&surprise.median().as_millis()), "{:?}", surprise.median());
        assert!((390..=460).contains(&surprise.p99().as_millis()), "{:?}", surprise.p99());
    }

    #[test]
    fn late_answers_make_slow_ones_less_surprising_and_change_no_percentile() {
        let latencies = Latencies::new();
        (0..96).for_each(|_| latencies.add(20_000, false));
        (0..4).for_each(|_| latencies.add(12_000_000, true));
        let mut surprise = Surprise::new();
        surprise.learn(std::iter::once(&latencies));
        assert!((surprise.of(11_000_000) - 25_f32.log10()).abs() < 1e-6, "{}", surprise.of(11_000_000));
        assert!(surprise.p99() < Duration::from_millis(25), "{:?}", surprise.p99());
    }

    #[test]
    fn without_answers_no_latency_is_surprising() {
        let surprise = learnt([]);
        assert!(surprise.of(u64::MAX).abs() < 1e-6);
        assert_eq!((surprise.median(), surprise.p99(), surprise.samples()), (Duration::ZERO, Duration::ZERO, 0));
    }

    #[test]
    fn old_answers_fade() {
        let latencies = Latencies::new();
        let mut surprise = Surprise::new();
        let mut answer = |micros| {
            latencies.add(micros, false);
            surprise.refresh(latencies.answers(), &latencies, std::iter::once(&latencies));
        };
        (0..2000).for_each(|_| answer(20_000));
        (0..20_000).for_each(|_| answer(400_000));
        assert!(surprise.samples() <= 2 * HALF_LIFE as u64);
        assert!(surprise.of(300_000) < 0.01, "{}", surprise.of(300_000));
    }
}
