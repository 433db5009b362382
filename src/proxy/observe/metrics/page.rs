//! The page of `GET /metrics`, in Prometheus' text format. `docs/METRICS.md` explains every name; a test compares the
//! two.
//!
//! Not here: counting: `metrics`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
#[cfg(target_os = "linux")]
use prometheus::{core::Collector, process_collector::ProcessCollector};
use strum::VariantArray;

use super::{CloseReason, Metrics, ProviderMetrics};
use crate::fleet::FleetSnapshot;
use crate::proxy::counts::{BOUNDS, Buckets, Sharded, Times};
use crate::proxy::outcome::Outcome;
use crate::proxy::place::{Place, unmarked};
use crate::proxy::provider::Provider;
use crate::proxy::silence::awaited;
use crate::silence::{DetectorSnapshot, StallSnapshot};
use crate::{BreakerSnapshot, Cause, CircuitState};

impl Metrics {
    /// In Prometheus' text format.
    pub(crate) fn encode<'a>(
        &self,
        providers: impl Iterator<Item = &'a Provider>,
        access_log_lines_lost: u64,
        log_lines_lost: u64,
        memory: Held,
        fleet: Option<&FleetSnapshot>,
    ) -> Vec<u8> {
        let mut page = Page::default();
        self.encode_gateway(&mut page, access_log_lines_lost, log_lines_lost);
        let help = "Bytes of bodies and answers that are held in memory.";
        page.gauge("fusebox_held_bytes", help, &[], float(memory.held));
        page.gauge("fusebox_held_bytes_limit", "How many may be held.", &[], float(memory.max));
        for ((from, to), count) in self.failovers() {
            let help = "Requests that one provider would have been asked for, and another one answered.";
            page.count("fusebox_failovers_total", help, &[("from", &*from), ("to", &*to)], count);
        }
        let mut shut = Shut::default();
        for provider in providers {
            encode_circuits(&mut page, provider, &mut shut);
            encode_models(&mut page, provider);
            let detectors = provider.silence.iter().flat_map(|detectors| detectors.snapshots());
            for (model, kind, silence) in detectors {
                let labels = [("provider", provider.name()), ("model", &*model), ("awaited", awaited(kind))];
                encode_silence(&mut page, &labels, silence);
            }
            for (model, stalls) in provider.silence.iter().flat_map(|detectors| detectors.stalls()) {
                encode_stalls(&mut page, &[("provider", provider.name()), ("model", &*model)], stalls);
            }
        }
        for (name, metrics) in &*self.providers.lock() {
            encode_provider(&mut page, name, metrics);
        }
        for ((scope, cause), count) in shut.0 {
            let help = "Circuits that are not closed, by whose they are and why they opened.";
            page.gauge("fusebox_circuits_not_closed", help, &[("scope", scope), ("cause", cause)], float(count));
        }
        if let Some(fleet) = fleet {
            encode_fleet(&mut page, fleet);
        }
        let mut families: Vec<_> = page.0.into_values().collect();
        #[cfg(target_os = "linux")]
        families.extend(ProcessCollector::for_self().collect());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).expect("names are valid, and each family has metrics");
        text
    }

    fn encode_gateway(&self, page: &mut Page, access_log_lines_lost: u64, log_lines_lost: u64) {
        let help = "1 for the version that runs.";
        page.gauge("fusebox_build_info", help, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let class = |index: usize| self.requests.sum(|counts| &counts.classes[index]);
        let over: u64 = (0..6).map(class).sum();
        for (index, name) in ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
            let help =
                "Requests that have ended, by the class of the answer's status; none: the client left before it.";
            page.count("fusebox_requests_total", help, &[("status", name)], class(index));
        }
        let in_flight = self.requests.sum(|counts| &counts.begun).saturating_sub(over);
        page.gauge("fusebox_requests_in_flight", "Requests that have not ended.", &[], float(in_flight));
        let help = "Time from a request's headers to the end of its answer.";
        page.times("fusebox_request_seconds", help, &[], &self.requests, |counts| &counts.times);
        let connections = u64::try_from(self.connections.load(Ordering::Relaxed)).unwrap_or_default();
        page.gauge("fusebox_client_connections", "Open connections of clients.", &[], float(connections));
        let sessions = u64::try_from(self.sessions.load(Ordering::Relaxed)).unwrap_or_default();
        page.gauge("fusebox_sessions", "Open WebSocket sessions.", &[], float(sessions));
        for reason in CloseReason::VARIANTS {
            let help = "Connections that were closed because of what the client did or failed to do.";
            let count = self.closed[*reason as usize].load(Ordering::Relaxed);
            page.count("fusebox_client_connections_cut_total", help, &[("reason", reason.as_str())], count);
        }
        for (result, counter) in [("applied", &self.reloads), ("refused", &self.failed_reloads)] {
            let help = "Reloads of the configuration.";
            page.count("fusebox_config_reloads_total", help, &[("result", result)], counter.load(Ordering::Relaxed));
        }
        let help = "Lines of the access log that could not be written, or not fast enough.";
        page.count("fusebox_access_log_lost_lines_total", help, &[], access_log_lines_lost);
        let help = "Lines of the log, on standard error, that could not be written, or not fast enough.";
        page.count("fusebox_log_lost_lines_total", help, &[], log_lines_lost);
    }
}

/// Those that open a circuit of the gateway.
const CAUSES: [Cause; 5] = [Cause::Failures, Cause::Silence, Cause::Cooldown, Cause::Fleet, Cause::Isolated];

/// Memory for bodies and answers.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    pub(crate) held: u64,
    pub(crate) max: u64,
}

/// How many circuits are not closed, by scope and cause.
struct Shut(BTreeMap<(&'static str, &'static str), u64>);

impl Default for Shut {
    /// All that there may be, so that an alert finds a 0.
    fn default() -> Self {
        let of = |scope: &'static str| CAUSES.map(|cause| ((scope, cause.as_str()), 0));
        Self(["provider", "model", "key"].into_iter().flat_map(of).collect())
    }
}

impl Shut {
    fn add(&mut self, scope: &'static str, breaker: &BreakerSnapshot) {
        if matches!(breaker.state, CircuitState::Open | CircuitState::HalfOpen) {
            // Why a half-open one was open is not kept.
            let cause = breaker.cause.map_or("probing", Cause::as_str);
            *self.0.entry((scope, cause)).or_default() += 1;
        }
    }
}

/// Models that were asked for. Their names are those of the configuration.
fn encode_models(page: &mut Page, provider: &Provider) {
    for (model, counts) in provider.circuits.all_counts() {
        let labels = [("provider", provider.name()), ("model", model)];
        let and = |more| [labels[0], labels[1], more];
        for outcome in Outcome::VARIANTS {
            let count = counts.outcome(*outcome);
            if count > 0 {
                let help = "Attempts that have ended, by model and outcome.";
                page.count("fusebox_model_attempts_total", help, &and(("outcome", outcome.as_str())), count);
            }
        }
        let help = "Requests for the model that were sent to the provider and are not over.";
        page.gauge("fusebox_model_attempts_in_flight", help, &labels, float(counts.tally().in_flight()));
        for (direction, count) in ["in", "out"].into_iter().zip(counts.all_tokens()) {
            let help = "Tokens that answers say they took.";
            page.count("fusebox_tokens_total", help, &and(("direction", direction)), count);
        }
        let help = "From sending a request for the model to its first byte, as fusebox_first_byte_seconds.";
        page.histogram(
            "fusebox_model_first_byte_seconds",
            help,
            &labels,
            &counts.first_bytes(),
            counts.first_byte_sum(),
        );
    }
}

fn encode_circuits(page: &mut Page, provider: &Provider, shut: &mut Shut) {
    let name = ("provider", provider.name());
    let own = provider.breaker.snapshot();
    shut.add(if own.cause == Some(Cause::Cooldown) { "key" } else { "provider" }, &own);
    encode_breaker(page, &[name], &own);
    for (model, kind, circuit) in provider.circuits.known() {
        let breaker = circuit.breaker.snapshot();
        shut.add("model", &breaker);
        // A provider may have a thousand models, nearly all of which have nothing to tell.
        if breaker.state != CircuitState::Closed || breaker.failure_count > 0 || breaker.trip_count > 0 {
            encode_breaker(page, &[name, ("model", model), ("answer", kind.as_str())], &breaker);
        }
    }
    let out = provider.key_out();
    let help = "How many of the provider's keys are out: refused, or with an empty account.";
    let keys = provider.keys.as_ref().map_or(usize::from(out.is_some()), |keys| keys.out().count());
    page.gauge("fusebox_key_out", help, &[name], float(keys as u64));
    let help = "Time until a key is tried again when all are out; 0 if not.";
    let left = out.and_then(|out| out.next_probe_in).unwrap_or_default();
    page.gauge("fusebox_key_retry_in_seconds", help, &[name], left.as_secs_f64());
}

/// `of` is the provider, or one of its models and a kind of answer.
fn encode_breaker(page: &mut Page, of: &[(&str, &str)], breaker: &BreakerSnapshot) {
    let and = |more: (&'static str, &'static str)| of.iter().copied().chain([more]).collect::<Vec<(&str, &str)>>();
    for &state in CircuitState::ALL {
        let is = if breaker.state == state { 1.0 } else { 0.0 };
        let help = "1 for the current state of the circuit, 0 for the others.";
        page.gauge("fusebox_circuit_state", help, &and(("state", state.as_str())), is);
    }
    for cause in CAUSES {
        let is = if breaker.cause == Some(cause) { 1.0 } else { 0.0 };
        let help = "1 for why the circuit is open, 0 for all others.";
        page.gauge("fusebox_circuit_open_cause", help, &and(("cause", cause.as_str())), is);
    }
    let silent = if breaker.silent { 1.0 } else { 0.0 };
    page.gauge("fusebox_circuit_silent", "1 while the circuit is open because of silence.", of, silent);
    let failures = f64::from(breaker.failure_count);
    page.gauge("fusebox_circuit_failures", "Failures in a row.", of, failures);
    let help = "Time until the open circuit takes a probe; 0 if it is not open.";
    let next = breaker.next_probe_in.unwrap_or_default().as_secs_f64();
    page.gauge("fusebox_circuit_probe_in_seconds", help, of, next);
    let help = "Time until the open circuit takes a probe, if it is open because of a cooldown; 0 if not.";
    let cooldown = if breaker.cause == Some(Cause::Cooldown) { next } else { 0.0 };
    page.gauge("fusebox_circuit_cooldown_seconds", help, of, cooldown);
    let waiters = float(breaker.waiters as u64);
    page.gauge("fusebox_circuit_waiters", "Requests that wait for the probe.", of, waiters);
    let help = "Times the circuit went from closed or recovering to open.";
    page.count("fusebox_circuit_trips_total", help, of, breaker.trip_count);
    page.count("fusebox_circuit_failed_probes_total", "Probes that failed.", of, breaker.failed_probe_count);
}

fn encode_silence(page: &mut Page, labels: &[(&str, &str)], silence: DetectorSnapshot) {
    let mut gauge = |name, help: &str, value| page.gauge(name, help, labels, value);
    let learnt = if silence.learnt { 1.0 } else { 0.0 };
    gauge("fusebox_silence_learnt", "1 if enough answers are known to notice silence.", learnt);
    gauge("fusebox_silence_phi", "How surprising it is that no request is answered.", silence.phi.into());
    let help = "Unanswered requests that are newer than all answered ones.";
    gauge("fusebox_silence_unanswered", help, silence.unanswered.into());
    gauge("fusebox_silence_oldest_seconds", "How long the oldest of them has waited.", silence.oldest.as_secs_f64());
    gauge(
        "fusebox_silence_median_seconds",
        "Half of the answers take at most this long.",
        silence.median.as_secs_f64(),
    );
    gauge("fusebox_silence_p99_seconds", "99% of the answers take at most this long.", silence.p99.as_secs_f64());
}

fn encode_stalls(page: &mut Page, labels: &[(&str, &str)], stalls: StallSnapshot) {
    let mut gauge = |name, help: &str, value| page.gauge(name, help, labels, value);
    let learnt = if stalls.learnt { 1.0 } else { 0.0 };
    gauge("fusebox_stall_learnt", "1 if enough pieces are known to notice that streams stop.", learnt);
    gauge("fusebox_stall_streams", "Streams that have begun and are not over.", stalls.streams.into());
    let help = "How long the longest pause under way has lasted.";
    gauge("fusebox_stall_oldest_seconds", help, stalls.oldest.as_secs_f64());
    let help = "All pauses that ended lately were shorter than a quarter of this.";
    gauge("fusebox_stall_unseen_seconds", help, stalls.unseen.as_secs_f64());
}

fn encode_fleet(page: &mut Page, fleet: &FleetSnapshot) {
    let flag = |is: bool| if is { 1.0 } else { 0.0 };
    let mut gauge = |name, help: &str, value| page.gauge(name, help, &[], value);
    gauge("fusebox_fleet_up", "1 while the fleet's Redis is reached.", flag(fleet.up));
    let help = "1 while the fleet's Redis takes nothing new, since it is full.";
    gauge("fusebox_fleet_refused", help, flag(fleet.refused));
    gauge("fusebox_fleet_replicas", "Replicas of the group that are there.", float(fleet.replicas as u64));
    for (kind, count) in &fleet.published {
        let help = "Messages that were sent to the other replicas.";
        page.count("fusebox_fleet_published_total", help, &[("kind", kind)], *count);
    }
    for (kind, count) in &fleet.heard {
        let help = "Messages of other replicas about circuits that are known here.";
        page.count("fusebox_fleet_heard_total", help, &[("kind", kind)], *count);
    }
    for (result, count) in &fleet.leases {
        let help = "How often this replica asked to be the one that probes.";
        page.count("fusebox_fleet_lease_total", help, &[("result", result)], *count);
    }
    let mut count = |name, help: &str, count| page.count(name, help, &[], count);
    count("fusebox_fleet_dropped_total", "Messages that were not sent, since too many waited.", fleet.dropped);
    let help = "Circuits that opened because other replicas said so.";
    count("fusebox_fleet_hearsay_openings_total", help, fleet.hearsay_openings);
    let help = "How often a closed circuit was suspected because of another replica.";
    count("fusebox_fleet_suspicions_total", help, fleet.suspicions);
    let help = "Suspicions that a good answer has refuted.";
    count("fusebox_fleet_refuted_total", help, fleet.refuted);
    for (name, seen) in &fleet.circuits {
        let Place { provider, model, kind } = Place::of(unmarked(name));
        let of = [("provider", provider), ("model", model.unwrap_or_default()), ("answer", kind.unwrap_or_default())];
        let mut gauge = |name, help: &str, value| page.gauge(name, help, &of, value);
        gauge("fusebox_fleet_openers", "Replicas that say that it fails.", float(seen.openers as u64));
        gauge("fusebox_fleet_objectors", "Replicas that say that it lives.", float(seen.objectors as u64));
        gauge("fusebox_fleet_agreed", "1 while one replica probes for all.", flag(seen.agreed));
    }
}

fn encode_provider(page: &mut Page, name: &str, metrics: &ProviderMetrics) {
    let provider = ("provider", name);
    page.count("fusebox_circuit_probes_total", "Requests that were probes.", &[provider], metrics.probes());
    let help = "Requests that the circuit kept from the provider.";
    page.count("fusebox_circuit_rejections_total", help, &[provider], metrics.0.sum(|counts| &counts.rejections));
    let help = "Requests that found no place at the provider.";
    page.count("fusebox_over_limit_total", help, &[provider], metrics.0.sum(|counts| &counts.over_limit));
    let help = "Requests sent to the provider while it was silent, since no other candidate was left.";
    page.count("fusebox_through_silence_total", help, &[provider], metrics.0.sum(|it| &it.through_silence));
    let help = "Requests that another provider was asked as well, since this one was silent.";
    page.count("fusebox_sent_twice_total", help, &[provider], metrics.0.sum(|it| &it.sent_twice));
    for outcome in Outcome::VARIANTS {
        let labels = [provider, ("outcome", outcome.as_str())];
        let help = "Attempts that have ended, by their outcome.";
        page.count("fusebox_attempts_total", help, &labels, metrics.outcome(*outcome));
    }
    let help = "Requests sent to the provider that are not over.";
    page.gauge("fusebox_attempts_in_flight", help, &[provider], float(metrics.in_flight()));
    let help = "From sending a request to a good answer: to all of it, or to the first piece of a stream.";
    page.times("fusebox_first_byte_seconds", help, &[provider], &metrics.0, |counts| &counts.first_byte);
    let help = "From sending a request to its end.";
    page.times("fusebox_attempt_seconds", help, &[provider], &metrics.0, |counts| &counts.whole);
}

#[expect(clippy::cast_precision_loss, reason = "the format has floats only")]
fn float(count: u64) -> f64 {
    count as f64
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

    fn count(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], count: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(count));
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

    fn times<T>(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        counts: &Sharded<T>,
        times: impl Fn(&T) -> &Times,
    ) {
        let micros = counts.sum(|counts| &times(counts).micros);
        self.histogram(name, help, labels, &counts.buckets(&times), Duration::from_micros(micros));
    }

    fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        of_bucket: &Buckets,
        sum: Duration,
    ) {
        let mut cumulated = 0;
        let mut buckets = Vec::new();
        for (index, bound) in BOUNDS.into_iter().enumerate() {
            cumulated += of_bucket[index];
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulated);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets);
        // The encoder makes the last bucket, without a bound, of the count.
        histogram.set_sample_count(cumulated + of_bucket[BOUNDS.len()]);
        histogram.set_sample_sum(sum.as_secs_f64());
        let mut metric = Metric::default();
        metric.set_histogram(histogram);
        self.add(name, help, MetricType::HISTOGRAM, labels, metric);
    }
}
