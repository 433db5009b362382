//! What the gateway counts, and `GET /metrics`. `docs/METRICS.md` has every name; a test compares the two.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::classify::Outcome;
use crate::{BreakerSnapshot, CircuitBreakerRegistry, CircuitState};

/// In seconds: from what a cache answers to what a model thinks.
const BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How long things took.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Not cumulated; what is above the last bound comes last.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Times {
    pub(crate) fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn metric(&self) -> Histogram {
        let mut histogram = Histogram::default();
        let mut count = 0;
        let mut buckets = Vec::new();
        // The encoder adds the last one, without a bound, by itself.
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(count);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count + self.buckets[BOUNDS.len()].load(Ordering::Relaxed));
        histogram.set_sample_sum(Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64());
        histogram
    }
}

/// Of one provider.
#[derive(Debug, Default)]
pub(crate) struct ProviderMetrics {
    /// Requests sent its way, by how that ended.
    outcomes: [AtomicU64; Outcome::ALL.len()],
    asked: AtomicU64,
    probes: AtomicU64,
    rejections: AtomicU64,
    in_flight: AtomicI64,
    first_byte: Times,
    whole: Times,
}

impl ProviderMetrics {
    pub(crate) fn begin(&self, is_probe: bool) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if is_probe {
            self.probes.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn end(&self, outcome: Outcome, took: Duration) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.whole.record(took);
    }

    pub(crate) fn first_byte(&self, took: Duration) {
        self.first_byte.record(took);
    }

    pub(crate) fn reject(&self) {
        self.rejections.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were sent its way, probes included.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }
}

/// Of all of the gateway.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    providers: Mutex<BTreeMap<String, Arc<ProviderMetrics>>>,
    /// By the hundreds of the status; 0 where the client left before there was one.
    requests: [AtomicU64; 6],
    in_flight: AtomicI64,
    times: Times,
    pub(crate) connections: AtomicI64,
    pub(crate) reloads: AtomicU64,
    pub(crate) failed_reloads: AtomicU64,
}

impl Metrics {
    /// A provider that stays keeps its counts.
    pub(crate) fn of(&self, provider: &str) -> Arc<ProviderMetrics> {
        Arc::clone(self.providers.lock().entry(provider.to_owned()).or_default())
    }

    pub(crate) fn keep_only(&self, is_kept: impl Fn(&str) -> bool) {
        self.providers.lock().retain(|name, _| is_kept(name));
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, status: Option<u16>, took: Duration) {
        let class = status.map_or(0, |status| usize::from(status / 100).min(5));
        self.requests[class].fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.times.record(took);
    }

    /// In Prometheus' text format.
    pub(crate) fn encode(&self, breakers: &CircuitBreakerRegistry, log_lines_lost: u64) -> Vec<u8> {
        let mut page = Page::default();
        self.encode_gateway(&mut page, log_lines_lost);
        for breaker in breakers.snapshots() {
            encode_breaker(&mut page, &breaker);
        }
        for (name, metrics) in &*self.providers.lock() {
            encode_provider(&mut page, name, metrics);
        }
        let families: Vec<_> = page.0.into_values().collect();
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).expect("names are valid, and each family has metrics");
        text
    }

    fn encode_gateway(&self, page: &mut Page, log_lines_lost: u64) {
        let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        for (class, count) in classes.iter().zip(&self.requests) {
            let help = "Requests that are over, by the class of the answer's status; none: the client left before there was one.";
            page.count("fusebox_requests_total", help, &[("status", class)], count);
        }
        page.gauge("fusebox_requests_in_flight", "Requests that are not over.", &[], float(&self.in_flight));
        page.times("fusebox_request_seconds", "From a request's headers to the end of its answer.", &[], &self.times);
        page.gauge("fusebox_client_connections", "Connections of clients.", &[], float(&self.connections));
        for (result, count) in [("applied", &self.reloads), ("refused", &self.failed_reloads)] {
            page.count(
                "fusebox_config_reloads_total",
                "Times the configuration was read anew.",
                &[("result", result)],
                count,
            );
        }
        let help = "Lines of the access log that were lost because they could not be written fast enough.";
        page.count("fusebox_access_log_lost_lines_total", help, &[], &AtomicU64::new(log_lines_lost));
    }
}

fn encode_breaker(page: &mut Page, breaker: &BreakerSnapshot) {
    let provider = ("provider", &*breaker.name);
    for state in [CircuitState::Closed, CircuitState::HalfOpen, CircuitState::Open] {
        let is = if breaker.state == state { 1.0 } else { 0.0 };
        let help = "1 for the state that the circuit is in, 0 for the others.";
        page.gauge("fusebox_circuit_state", help, &[provider, ("state", state.as_str())], is);
    }
    let failures = f64::from(breaker.failure_count);
    page.gauge("fusebox_circuit_failures", "Failures in a row.", &[provider], failures);
    let help = "Until the open circuit takes a probe; 0 if it is not open.";
    let next = breaker.next_probe_in.unwrap_or_default().as_secs_f64();
    page.gauge("fusebox_circuit_probe_in_seconds", help, &[provider], next);
    #[expect(clippy::cast_precision_loss, reason = "nobody can have 2^53 requests waiting")]
    page.gauge("fusebox_circuit_waiters", "Requests that wait for the probe.", &[provider], breaker.waiters as f64);
    let trips = AtomicU64::new(breaker.trip_count);
    page.count("fusebox_circuit_trips_total", "Times the circuit went from closed to open.", &[provider], &trips);
    let failed = AtomicU64::new(breaker.failed_probe_count);
    page.count("fusebox_circuit_failed_probes_total", "Probes that failed.", &[provider], &failed);
}

fn encode_provider(page: &mut Page, name: &str, metrics: &ProviderMetrics) {
    let provider = ("provider", name);
    page.count("fusebox_circuit_probes_total", "Requests that were the probe.", &[provider], &metrics.probes);
    let help = "Requests that the circuit kept away from the provider.";
    page.count("fusebox_circuit_rejections_total", help, &[provider], &metrics.rejections);
    for outcome in Outcome::ALL {
        let labels = [provider, ("outcome", outcome.as_str())];
        let help = "Requests sent to the provider that are over, by how they ended.";
        page.count("fusebox_attempts_total", help, &labels, &metrics.outcomes[outcome as usize]);
    }
    let help = "Requests sent to the provider that are not over.";
    page.gauge("fusebox_attempts_in_flight", help, &[provider], float(&metrics.in_flight));
    let help = "From sending a request to the first piece of a good answer.";
    page.times("fusebox_first_byte_seconds", help, &[provider], &metrics.first_byte);
    page.times("fusebox_attempt_seconds", "From sending a request to its end.", &[provider], &metrics.whole);
}

#[expect(clippy::cast_precision_loss, reason = "nobody can have 2^53 requests in flight")]
fn float(count: &AtomicI64) -> f64 {
    count.load(Ordering::Relaxed) as f64
}

/// Families by name.
#[derive(Default)]
struct Page(BTreeMap<&'static str, MetricFamily>);

impl Page {
    fn add(&mut self, name: &'static str, help: &str, kind: MetricType, labels: &[(&str, &str)], mut metric: Metric) {
        let label = |(name, value): &(&str, &str)| {
            let mut label = LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        };
        metric.set_label(labels.iter().map(label).collect());
        let family = self.0.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }

    #[expect(clippy::cast_precision_loss, reason = "the format has floats only")]
    fn count(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], count: &AtomicU64) {
        let mut counter = Counter::default();
        counter.set_value(count.load(Ordering::Relaxed) as f64);
        let mut metric = Metric::default();
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, labels, metric);
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::default();
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, labels, metric);
    }

    fn times(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], times: &Times) {
        let mut metric = Metric::default();
        metric.set_histogram(times.metric());
        self.add(name, help, MetricType::HISTOGRAM, labels, metric);
    }
}
