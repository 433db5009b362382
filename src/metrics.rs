//! The breakers of a registry in the metrics of the program (feature `metrics`), by way of the
//! [`metrics`](https://docs.rs/metrics) facade: for Prometheus, OpenTelemetry, and whatever else has an exporter for
//! it.
//!
//! [`Publisher::publish`] is called before each scrape, or [`Publisher::publish_every`] runs in a task. No call of a
//! breaker touches a metric. What a call does count, it counts in a place of its own thread, and only if its breaker
//! is asked for [`totals`](crate::ConfigBuilder::totals).
//!
//! ```
//! use std::sync::Arc;
//!
//! use fusebox::metrics::Publisher;
//! use fusebox::{CircuitBreakerRegistry, Config};
//! use metrics_exporter_prometheus::PrometheusBuilder;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let prometheus = PrometheusBuilder::new().install_recorder()?;
//! let config = Config::builder().totals(true).failure_threshold(1).build()?;
//! let breakers = Arc::new(CircuitBreakerRegistry::with_config(["search"], config));
//! let publisher = Publisher::new(Arc::clone(&breakers));
//!
//! breakers.get("search").unwrap().try_acquire()?.failure("5xx", 503);
//! // In the handler of `/metrics`:
//! publisher.publish();
//! let page = prometheus.render();
//! assert!(page.contains(r#"fusebox_circuitbreaker_state{name="search",state="open"} 1"#));
//! assert!(page.contains(r#"fusebox_circuitbreaker_calls_total{name="search",kind="failed"} 1"#));
//! # Ok(())
//! # }
//! ```
//!
//! # The metrics
//!
//! They are those of resilience4j under another prefix, where there are any, so that a dashboard for those needs little
//! more than a new prefix. Each has the label `name`, the breaker's.
//!
#![doc = include_str!("../docs/guide/metrics.md")]

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};

use crate::breaker::{BreakerSnapshot, CircuitBreaker};
use crate::config::{ConfigError, MAX_DURATION, MIN_DURATION};
use crate::registry::CircuitBreakerRegistry;
use crate::transition::{Cause, CircuitState};

const STATE: &str = "fusebox_circuitbreaker_state";
const OPEN_CAUSE: &str = "fusebox_circuitbreaker_open_cause";
const NEXT_PROBE: &str = "fusebox_circuitbreaker_next_probe_seconds";
const FAILURES: &str = "fusebox_circuitbreaker_failures";
const WAITING_CALLS: &str = "fusebox_circuitbreaker_waiting_calls";
const BUFFERED_CALLS: &str = "fusebox_circuitbreaker_buffered_calls";
const SLOW_CALLS: &str = "fusebox_circuitbreaker_slow_calls";
const FAILURE_RATE: &str = "fusebox_circuitbreaker_failure_rate";
const SLOW_CALL_RATE: &str = "fusebox_circuitbreaker_slow_call_rate";
const TRIPS: &str = "fusebox_circuitbreaker_trips_total";
const FAILED_PROBES: &str = "fusebox_circuitbreaker_failed_probes_total";
const CALLS: &str = "fusebox_circuitbreaker_calls_total";
const NOT_PERMITTED_CALLS: &str = "fusebox_circuitbreaker_not_permitted_calls_total";
const WAITED_CALLS: &str = "fusebox_circuitbreaker_waited_calls_total";

/// What is not known, or never comes; as in resilience4j.
const NONE: f64 = -1.0;

/// Publishes the breakers of a registry to the recorder of the `metrics` facade that is installed when it does so.
///
/// What is published is read from the breakers, not put together from events. So a gauge shows the state as it is,
/// whatever races there were; and several publishers of one registry would count twice, so one is enough.
///
/// A breaker that leaves the registry leaves its gauges at 0, and its rates at -1, as the facade cannot take a metric
/// back. Exporters that
/// have an idle time, as Prometheus' `idle_timeout`, forget it after that. What was counted after the last time that it
/// was published is lost.
pub struct Publisher {
    registry: Arc<CircuitBreakerRegistry>,
    /// It is held while values are read and published, or an older value could come after a newer one.
    published: Mutex<Published>,
}

#[derive(Default)]
struct Published {
    round: u64,
    counts: HashMap<Arc<str>, Counted>,
}

/// What has been published of a breaker's counts.
struct Counted {
    /// Which breaker has the name: another one counts from 0.
    breaker: Weak<CircuitBreaker>,
    /// When it was last there.
    round: u64,
    counts: [u64; 6],
}

impl Publisher {
    /// For the breakers that are in the registry whenever they are published.
    pub fn new(registry: Arc<CircuitBreakerRegistry>) -> Self {
        Self { registry, published: Mutex::default() }
    }

    /// Publishes all breakers as they are now. It reads them without a lock that calls would take. It takes about as
    /// long as the recorder takes for 25 values of each breaker.
    pub fn publish(&self) {
        describe();
        let mut published = self.published.lock();
        published.round += 1;
        let Published { round, counts } = &mut *published;
        self.registry.each(|breaker| publish(counts, *round, breaker));
        counts.retain(|name, seen| {
            let is_there = seen.round == *round;
            if !is_there {
                set_gauges(&Gauges::gone(name));
            }
            is_there
        });
    }

    /// Publishes each breaker when its circuit changes its state, and all of them after each period of `every`: for
    /// exporters that do not ask before they read. The future never ends; spawn it, and abort the task to end it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `every` is not 1 ms to 24 h.
    ///
    /// # Panics
    ///
    /// The future does if it is polled outside of a runtime with its timer enabled.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), fusebox::ConfigError> {
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use fusebox::CircuitBreakerRegistry;
    /// use fusebox::metrics::Publisher;
    ///
    /// let breakers = Arc::new(CircuitBreakerRegistry::new(["search"]));
    /// tokio::spawn(Publisher::new(breakers).publish_every(Duration::from_secs(10))?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish_every(self, every: Duration) -> Result<impl Future<Output = ()> + Send + 'static, ConfigError> {
        if !(MIN_DURATION..=MAX_DURATION).contains(&every) {
            return Err(ConfigError::new("publish_every", format!("{every:?}"), "1 ms to 24 h"));
        }
        // From now on, so that no change is missed before the future is polled.
        let mut transitions = self.registry.subscribe();
        Ok(async move {
            loop {
                self.publish();
                let next = Instant::now() + every;
                loop {
                    match timeout_at(next, transitions.recv()).await {
                        // What it says is old already if there was another one since.
                        Ok(Ok(transition)) => self.publish_one(&transition.breaker),
                        Ok(Err(RecvError::Lagged(_))) | Err(_) => break,
                        Ok(Err(RecvError::Closed)) => unreachable!("the registry is held"),
                    }
                }
            }
        })
    }

    fn publish_one(&self, name: &str) {
        let mut published = self.published.lock();
        let Published { round, counts } = &mut *published;
        if let Some(breaker) = self.registry.get(name) {
            publish(counts, *round, &breaker);
        }
    }
}

fn publish(counts: &mut HashMap<Arc<str>, Counted>, round: u64, breaker: &Arc<CircuitBreaker>) {
    let snapshot = breaker.snapshot();
    set_gauges(&Gauges::of(&snapshot, breaker.config().min_calls()));
    let known = counts.entry(Arc::clone(&snapshot.name)).or_insert_with(|| Counted::new(breaker));
    if known.breaker.as_ptr() != Arc::as_ptr(breaker) {
        *known = Counted::new(breaker);
    }
    known.round = round;
    known.add(&snapshot);
}

/// The values of one breaker's gauges.
struct Gauges<'a> {
    name: &'a Arc<str>,
    state: Option<CircuitState>,
    cause: Option<Cause>,
    next_probe: f64,
    failures: f64,
    waiters: f64,
    /// Calls in the window that succeeded, that failed, and that were slow.
    window: [u64; 3],
    /// In percent, of calls that failed and of slow ones.
    rates: [f64; 2],
}

impl<'a> Gauges<'a> {
    fn of(snapshot: &'a BreakerSnapshot, min_calls: u32) -> Self {
        let last = snapshot.last_calls.unwrap_or_default();
        let percent = |part| {
            let is_enough = last.calls > 0 && last.calls >= u64::from(min_calls);
            if is_enough { float(part) * 100.0 / float(last.calls) } else { NONE }
        };
        let next_probe = snapshot.next_probe_in.map_or(NONE, |left| left.as_secs_f64());
        Self {
            name: &snapshot.name,
            state: Some(snapshot.state),
            cause: snapshot.cause,
            next_probe: if snapshot.state == CircuitState::Open { next_probe } else { 0.0 },
            failures: f64::from(snapshot.failure_count),
            waiters: float(snapshot.waiters as u64),
            window: [last.calls - last.failures, last.failures, last.slow],
            rates: [percent(last.failures), percent(last.slow)],
        }
    }

    /// Of a breaker that has left the registry.
    fn gone(name: &'a Arc<str>) -> Self {
        let (state, cause) = (None, None);
        Self { name, state, cause, next_probe: 0.0, failures: 0.0, waiters: 0.0, window: [0; 3], rates: [NONE; 2] }
    }
}

fn set_gauges(gauges: &Gauges<'_>) {
    let name = || Arc::clone(gauges.name);
    for state in CircuitState::ALL {
        gauge!(STATE, "name" => name(), "state" => state.as_str()).set(is(gauges.state == Some(*state)));
    }
    for cause in Cause::ALL {
        gauge!(OPEN_CAUSE, "name" => name(), "cause" => cause.as_str()).set(is(gauges.cause == Some(*cause)));
    }
    gauge!(NEXT_PROBE, "name" => name()).set(gauges.next_probe);
    gauge!(FAILURES, "name" => name()).set(gauges.failures);
    gauge!(WAITING_CALLS, "name" => name()).set(gauges.waiters);
    let [successful, failed, slow] = gauges.window;
    gauge!(BUFFERED_CALLS, "name" => name(), "kind" => "successful").set(float(successful));
    gauge!(BUFFERED_CALLS, "name" => name(), "kind" => "failed").set(float(failed));
    gauge!(SLOW_CALLS, "name" => name()).set(float(slow));
    let [failure_rate, slow_call_rate] = gauges.rates;
    gauge!(FAILURE_RATE, "name" => name()).set(failure_rate);
    gauge!(SLOW_CALL_RATE, "name" => name()).set(slow_call_rate);
}

impl Counted {
    fn new(breaker: &Arc<CircuitBreaker>) -> Self {
        Self { breaker: Arc::downgrade(breaker), round: 0, counts: [0; 6] }
    }

    /// Adds what has been counted since the last time, even if that is nothing: exporters that forget idle metrics see
    /// that it is there.
    fn add(&mut self, snapshot: &BreakerSnapshot) {
        let name = || Arc::clone(&snapshot.name);
        let add = |counter: Counter, known: &mut u64, now: u64| {
            counter.increment(now.saturating_sub(*known));
            *known = now;
        };
        let [trips, failed_probes, successes, failures, rejections, waits] = &mut self.counts;
        add(counter!(TRIPS, "name" => name()), trips, snapshot.trip_count);
        add(counter!(FAILED_PROBES, "name" => name()), failed_probes, snapshot.failed_probe_count);
        if let Some(totals) = snapshot.totals {
            add(counter!(CALLS, "name" => name(), "kind" => "successful"), successes, totals.successes);
            add(counter!(CALLS, "name" => name(), "kind" => "failed"), failures, totals.failures);
            add(counter!(NOT_PERMITTED_CALLS, "name" => name()), rejections, totals.rejections);
            add(counter!(WAITED_CALLS, "name" => name()), waits, totals.waits);
        }
    }
}

fn is(shown: bool) -> f64 {
    f64::from(u8::from(shown))
}

/// Of counts that are far from where a float gets coarse.
#[expect(clippy::cast_precision_loss)]
fn float(count: u64) -> f64 {
    count as f64
}

fn describe() {
    let count = |name, description| describe_counter!(name, Unit::Count, description);
    let gauge = |name, unit, description| describe_gauge!(name, unit, description);
    gauge(STATE, Unit::Count, "1 for the current state of the circuit, 0 for the others");
    gauge(OPEN_CAUSE, Unit::Count, "1 for why the circuit is open, 0 for all others");
    gauge(
        NEXT_PROBE,
        Unit::Seconds,
        "Time until the open circuit takes a probe; 0 if it is not open, -1 if by hand only",
    );
    gauge(FAILURES, Unit::Count, "Failures in a row");
    gauge(WAITING_CALLS, Unit::Count, "Calls that wait for the probe, or for their turn");
    gauge(BUFFERED_CALLS, Unit::Count, "Calls in the window, by how they ended");
    gauge(SLOW_CALLS, Unit::Count, "Calls in the window that were slow");
    gauge(FAILURE_RATE, Unit::Percent, "Share of the calls in the window that failed; -1 if they are too few");
    gauge(SLOW_CALL_RATE, Unit::Percent, "Share of the calls in the window that were slow; -1 if they are too few");
    count(TRIPS, "Times the circuit went from closed or recovering to open");
    count(FAILED_PROBES, "Probes that failed, so that the circuit opened again");
    count(CALLS, "Calls that have ended, by how they ended");
    count(NOT_PERMITTED_CALLS, "Calls that were rejected");
    count(WAITED_CALLS, "Calls that had to wait for a probe, or for their turn");
}
