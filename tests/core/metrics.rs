//! What a registry's breakers publish to a recorder.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use fusebox::metrics::Publisher;
use fusebox::{Cause, CircuitBreaker, CircuitBreakerRegistry, CircuitState, Config};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tokio::time::advance;

use crate::support::{SECOND, fail, next_probe, trip};

/// A registry, and a Prometheus of its own.
struct Published {
    breakers: Arc<CircuitBreakerRegistry>,
    publisher: Publisher,
    prometheus: PrometheusRecorder,
}

impl Published {
    fn new(config: Config) -> Self {
        let breakers = Arc::new(CircuitBreakerRegistry::with_config(["openai"], config));
        let publisher = Publisher::new(Arc::clone(&breakers));
        Self { breakers, publisher, prometheus: PrometheusBuilder::new().build_recorder() }
    }

    fn breaker(&self) -> Arc<CircuitBreaker> {
        self.breakers.get("openai").unwrap()
    }

    fn page(&self) -> Page {
        metrics::with_local_recorder(&self.prometheus, || self.publisher.publish());
        Page::of(&self.prometheus)
    }
}

/// The values on a page of Prometheus, by the text before them.
struct Page(HashMap<String, String>);

impl Page {
    fn of(prometheus: &PrometheusRecorder) -> Self {
        let page = prometheus.handle().render();
        let values = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            values
                .map(|line| {
                    let (key, value) = line.rsplit_once(' ').unwrap();
                    (key.replace("fusebox_circuitbreaker_", ""), value.to_owned())
                })
                .collect(),
        )
    }

    fn of_openai(&self, metric: &str, label: &str) -> &str {
        self.get(metric, "openai", label)
    }

    fn get(&self, metric: &str, name: &str, label: &str) -> &str {
        let label = if label.is_empty() { String::new() } else { format!(",{label}") };
        let key = format!(r#"{metric}{{name="{name}"{label}}}"#);
        self.0.get(&key).unwrap_or_else(|| panic!("there is no {key}: {:?}", self.0))
    }

    /// The one state that is shown, or none.
    fn state(&self, name: &str) -> Option<CircuitState> {
        let shown: Vec<_> = CircuitState::ALL
            .iter()
            .filter(|state| self.get("state", name, &format!(r#"state="{state}""#)) == "1")
            .collect();
        assert!(shown.len() <= 1, "{shown:?}");
        shown.first().map(|state| **state)
    }

    fn cause(&self) -> Option<Cause> {
        let shown = |cause: &&Cause| self.of_openai("open_cause", &format!(r#"cause="{cause}""#)) == "1";
        Cause::ALL.iter().find(shown).copied()
    }
}

fn with_totals() -> Config {
    Config::builder().totals(true).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn gauges_show_each_breaker_as_it_is() {
    let published = Published::new(Config::default());
    let breaker = published.breaker();
    let page = published.page();
    assert_eq!((page.state("openai"), page.cause()), (Some(CircuitState::Closed), None));
    assert_eq!(page.of_openai("next_probe_seconds", ""), "0");

    fail(&breaker, "5xx");
    assert_eq!(published.page().of_openai("failures", ""), "1");
    breaker.reset();
    trip(&breaker);
    advance(10 * SECOND).await;
    let page = published.page();
    assert_eq!((page.state("openai"), page.cause()), (Some(CircuitState::Open), Some(Cause::Failures)));
    assert_eq!(page.of_openai("next_probe_seconds", ""), "20");

    let probe = {
        advance(20 * SECOND).await;
        breaker.try_acquire().unwrap()
    };
    assert_eq!(published.page().state("openai"), Some(CircuitState::HalfOpen));
    let mut waiter = Box::pin(breaker.acquire());
    assert!(waiter.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(published.page().of_openai("waiting_calls", ""), "1");
    drop(waiter);
    probe.success();
    let page = published.page();
    assert_eq!((page.state("openai"), page.cause()), (Some(CircuitState::Closed), None));
    assert_eq!(page.of_openai("waiting_calls", ""), "0");

    breaker.isolate("by hand");
    let page = published.page();
    assert_eq!((page.state("openai"), page.cause()), (Some(CircuitState::Open), Some(Cause::Isolated)));
    assert_eq!(page.of_openai("next_probe_seconds", ""), "-1", "it never comes");
    breaker.disable();
    assert_eq!(published.page().state("openai"), Some(CircuitState::Disabled));
}

#[tokio::test(start_paused = true)]
async fn rates_are_known_from_the_minimum_of_calls_on() {
    let settings = Config::builder().failure_threshold(None).failure_rate(90).slow_rate(90).slow_after(SECOND);
    let published = Published::new(settings.min_calls(4).build().unwrap());
    let breaker = published.breaker();
    for _ in 0..2 {
        let slow = breaker.try_acquire().unwrap();
        advance(2 * SECOND).await;
        slow.success();
    }
    fail(&breaker, "5xx");
    let page = published.page();
    let rates = |page: &Page| ["failure_rate", "slow_call_rate"].map(|rate| page.of_openai(rate, "").to_owned());
    assert_eq!(rates(&page), ["-1", "-1"]);
    breaker.try_acquire().unwrap().success();
    let page = published.page();
    assert_eq!(rates(&page), ["25", "50"]);
    let kinds = [r#"kind="successful""#, r#"kind="failed""#];
    assert_eq!(kinds.map(|kind| page.of_openai("buffered_calls", kind)), ["3", "1"]);
    assert_eq!(page.of_openai("slow_calls", ""), "2");
}

#[tokio::test(start_paused = true)]
async fn counters_grow_by_what_was_counted_since_they_were_published_last() {
    let published = Published::new(with_totals());
    let breaker = published.breaker();
    let counts = |page: &Page| {
        [
            ("calls_total", r#"kind="successful""#),
            ("calls_total", r#"kind="failed""#),
            ("not_permitted_calls_total", ""),
            ("waited_calls_total", ""),
            ("trips_total", ""),
            ("failed_probes_total", ""),
        ]
        .map(|(counter, label)| page.of_openai(counter, label).to_owned())
    };
    assert_eq!(counts(&published.page()), ["0"; 6]);
    breaker.try_acquire().unwrap().success();
    trip(&breaker);
    assert!(breaker.try_acquire().is_err());
    next_probe(&breaker).await.failure("5xx", "again");
    assert_eq!(counts(&published.page()), ["1", "4", "1", "0", "1", "1"]);
    assert_eq!(counts(&published.page()), ["1", "4", "1", "0", "1", "1"], "nothing is counted twice");

    // Another breaker of the name counts from 0, and the counter goes on.
    drop(breaker);
    published.breakers.remove("openai").unwrap();
    published.breakers.insert("openai").try_acquire().unwrap().success();
    assert_eq!(counts(&published.page()), ["2", "4", "1", "0", "1", "1"]);
}

#[test]
fn a_breaker_that_counts_no_totals_publishes_none() {
    let published = Published::new(Config::default());
    published.breaker().try_acquire().unwrap().success();
    let page = published.page();
    assert!(!page.0.keys().any(|key| key.contains("calls_total")), "{:?}", page.0);
    assert_eq!(page.of_openai("trips_total", ""), "0");
}

#[test]
fn a_breaker_that_has_left_shows_no_state() {
    let published = Published::new(Config::default());
    published.breakers.insert("anthropic");
    published.breaker().isolate("by hand");
    assert_eq!(published.page().state("openai"), Some(CircuitState::Open));
    published.breakers.remove("openai").unwrap();
    let page = published.page();
    assert_eq!((page.state("openai"), page.cause()), (None, None));
    assert_eq!(page.state("anthropic"), Some(CircuitState::Closed));
    published.breakers.insert("openai");
    assert_eq!(published.page().state("openai"), Some(CircuitState::Closed));
}

#[test]
fn a_name_of_any_text_is_a_label() {
    let published = Published::new(Config::default());
    published.breakers.insert("a \"quoted\"\nname\\");
    published.publisher.publish();
    assert!(published.page().0.keys().any(|key| key.contains(r#"name="a \"quoted\"\nname\\""#)));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_published_at_once_and_everything_else_after_each_period() {
    let published = Published::new(with_totals());
    let prometheus = &published.prometheus;
    let breaker = published.breaker();
    let every = Publisher::new(Arc::clone(&published.breakers));
    let mut task = pin(every.publish_every(10 * SECOND).unwrap());
    let mut run = || {
        let poll = || task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(metrics::with_local_recorder(prometheus, poll).is_pending());
        Page::of(prometheus)
    };
    assert_eq!(run().state("openai"), Some(CircuitState::Closed));

    breaker.try_acquire().unwrap().success();
    assert_eq!(run().of_openai("calls_total", r#"kind="successful""#), "0", "no call is told at once");
    trip(&breaker);
    let page = run();
    assert_eq!(page.state("openai"), Some(CircuitState::Open));
    assert_eq!(page.of_openai("calls_total", r#"kind="failed""#), "3");

    assert!(breaker.try_acquire().is_err());
    advance(9 * SECOND).await;
    let page = run();
    assert_eq!(page.of_openai("not_permitted_calls_total", ""), "0");
    assert_eq!(page.of_openai("next_probe_seconds", ""), "30");
    advance(SECOND).await;
    let page = run();
    assert_eq!(page.of_openai("not_permitted_calls_total", ""), "1");
    assert_eq!(page.of_openai("next_probe_seconds", ""), "20");

    // More changes than are kept for whoever is slow: the first one is lost.
    published.breakers.insert("anthropic").isolate("by hand");
    for _ in 0..2000 {
        breaker.isolate("by hand");
        breaker.reset();
    }
    let page = run();
    assert_eq!(page.state("openai"), Some(CircuitState::Closed));
    assert_eq!(page.state("anthropic"), Some(CircuitState::Open));
}

fn pin<'a>(future: impl Future<Output = ()> + Send + 'a) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(future)
}

#[test]
fn a_period_of_nothing_is_refused() {
    for wrong in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
        let publisher = Publisher::new(Arc::new(CircuitBreakerRegistry::default()));
        let Err(error) = publisher.publish_every(wrong) else { panic!("{wrong:?} was taken") };
        assert_eq!((error.field(), error.expected()), ("publish_every", "1 ms to 24 h"));
    }
}

/// Calls `pause` between the reading of a state and its publication, once.
struct Pausing<'a, F> {
    prometheus: &'a PrometheusRecorder,
    pause: Mutex<Option<F>>,
}

impl<F: FnOnce()> Recorder for Pausing<'_, F> {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.prometheus.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let pause = self.pause.lock().unwrap().take();
        if let Some(pause) = pause {
            pause();
        }
        self.prometheus.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.prometheus.register_histogram(key, metadata)
    }
}

#[test]
fn a_state_that_was_read_earlier_is_not_published_later() {
    let published = Published::new(Config::default());
    let breaker = published.breaker();
    thread::scope(|scope| {
        let (published, breaker) = (&published, &breaker);
        let pause = move || {
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || {
                breaker.isolate("by hand");
                published.page();
                done.send(())
            });
            // It has to wait for the one that has read the state already. Otherwise it is done in no time.
            let _ = is_done.recv_timeout(Duration::from_millis(200));
        };
        let pausing = Pausing { prometheus: &published.prometheus, pause: Mutex::new(Some(pause)) };
        metrics::with_local_recorder(&pausing, || published.publisher.publish());
    });
    assert_eq!(Page::of(&published.prometheus).state("openai"), Some(CircuitState::Open));
}

#[test]
fn the_guides_table_names_all_metrics_and_no_others() {
    let published = Published::new(with_totals());
    published.page();
    let page = published.prometheus.handle().render();
    let mut served: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    served.sort_unstable();
    let table = include_str!("../../docs/guide/metrics.md");
    let mut told: Vec<_> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `fusebox_"))
        .map(|line| {
            let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`'));
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect();
    told.sort_unstable();
    let served: Vec<_> = served.iter().map(|(name, kind)| (name.trim_start_matches("fusebox_"), *kind)).collect();
    assert_eq!(served, told);
    let helped = page.lines().filter(|line| line.starts_with("# HELP ")).count();
    assert_eq!(helped, told.len(), "each is described");
}
