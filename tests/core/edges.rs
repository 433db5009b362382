//! What users of other breakers ran into at the edges: subscribers that panic, texts that forge lines, breakers in
//! breakers.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use fusebox::{CallError, CircuitBreaker, CircuitBreakerRegistry, CircuitState, Outcome, PermitType, RejectionReason};
use tokio::time::advance;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::log::{Log, subscribe};
use crate::support::{SECOND, breaker, fail, next_probe, probe, registry, trip, trip_by_name};

/// Panics at each event, as a log does whose output is gone.
struct Broken;

impl<S: tracing::Subscriber> Layer<S> for Broken {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        panic!("the log cannot be written");
    }
}

/// Runs it with a subscriber that panics. Whether that happened.
fn panics<T>(f: impl FnOnce() -> T) -> bool {
    let subscriber = tracing_subscriber::registry().with(Broken);
    let _guard = subscribe(subscriber);
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_when_the_circuit_is_half_open_loses_no_probe() {
    let breaker = breaker();
    trip(&breaker);
    advance(30 * SECOND).await;
    assert!(panics(|| breaker.try_acquire().map(drop)));
    assert!(!breaker.snapshot().probe_in_flight, "it is handed back");
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_when_a_lease_has_ended_loses_no_probe() {
    let breaker = breaker();
    let _hung = probe(&breaker).await;
    advance(60 * SECOND).await;
    assert!(panics(|| breaker.try_acquire().map(drop)));
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_by_name_loses_no_probe() {
    let breakers = registry();
    trip_by_name(&breakers, "openai");
    advance(30 * SECOND).await;
    assert!(panics(|| breakers.try_acquire_permit("openai")));
    assert_eq!(breakers.try_acquire_permit("openai").unwrap(), PermitType::Probe);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_loses_no_transition() {
    let breaker = breaker();
    fail(&breaker, "5xx");
    fail(&breaker, "5xx");
    assert!(panics(|| fail(&breaker, "5xx")));
    assert_eq!((breaker.state(), breaker.trip_count()), (CircuitState::Open, 1));
    let permit = next_probe(&breaker).await;
    assert!(panics(|| permit.failure("5xx", "")));
    assert_eq!((breaker.state(), breaker.snapshot().failed_probe_count), (CircuitState::Open, 1));
    let permit = next_probe(&breaker).await;
    assert!(panics(|| permit.success()));
    assert_eq!(breaker.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_while_a_probe_is_dropped_by_a_panic_does_not_abort() {
    let breaker = breaker();
    let permit = probe(&breaker).await;
    assert!(panics(move || {
        let _permit = permit;
        panic!("the call itself");
    }));
    assert_eq!(breaker.state(), CircuitState::Open, "dropped, and so failed");
}

/// Generation and trip count of each event.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<Vec<(u64, u64)>>>);

impl<S: tracing::Subscriber> Layer<S> for Counts {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        #[derive(Default)]
        struct Seen(u64, u64);
        impl Visit for Seen {
            fn record_u64(&mut self, field: &Field, value: u64) {
                match field.name() {
                    "generation" => self.0 = value,
                    "trip_count" => self.1 = value,
                    _ => {}
                }
            }

            fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
        }
        let mut seen = Seen::default();
        event.record(&mut seen);
        self.0.lock().unwrap().push((seen.0, seen.1));
    }
}

#[test]
fn counts_increase_with_generations_in_whatever_order_events_come() {
    let counts = Counts::default();
    let config = CircuitBreaker::builder("openai").failure_threshold(1).open_for(Duration::from_millis(1));
    let breaker = config.probe_lease(Duration::from_millis(1)).build().unwrap();
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    thread::scope(|scope| {
        for number in 0..4 {
            let (breaker, counts) = (&breaker, counts.clone());
            scope.spawn(move || {
                let _guard = subscribe(tracing_subscriber::registry().with(counts));
                for round in 0..rounds {
                    let Ok(permit) = breaker.try_acquire() else { continue };
                    if (round + number) % 3 == 0 { permit.success() } else { permit.failure("5xx", "") }
                }
            });
        }
    });
    let mut seen = std::mem::take(&mut *counts.0.lock().unwrap());
    seen.sort_unstable();
    assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{seen:?}");
    assert!(seen.iter().all(|(generation, trips)| trips <= generation && *trips > 0));
    assert!(seen.last().unwrap().1 <= breaker.trip_count());
}

#[tokio::test(start_paused = true)]
async fn an_error_cannot_forge_a_line_of_the_log() {
    let log = Log::capture();
    let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build().unwrap();
    breaker.try_acquire().unwrap().failure("5xx", "bad\n2026-11-27T00:00:00Z  INFO circuit closed \u{1b}[2J");
    let lines = log.take();
    assert!(!lines[0].contains(['\n', '\u{1b}']), "{lines:?}");
    assert!(
        lines[0].contains(r"last_error=5xx: bad\n2026-11-27T00:00:00Z  INFO circuit closed \u{1b}[2J"),
        "{lines:?}"
    );
    let rejected = breaker.explain(breaker.try_acquire().unwrap_err()).to_string();
    assert!(!rejected.contains(['\n', '\u{1b}']), "{rejected}");
    assert!(breaker.snapshot().last_error.unwrap().message().contains('\n'), "as it is, for who asks for it");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_does_not_explain_another_ones_rejection_by_its_own_errors() {
    let (one, other) = (breaker(), CircuitBreaker::builder("anthropic").failure_threshold(1).build().unwrap());
    trip(&one);
    other.try_acquire().unwrap().failure("timeout", "");
    let error = one.explain(other.try_acquire().unwrap_err());
    assert_eq!((error.provider(), error.trip_count()), ("another breaker", 0));
    assert!(error.last_error().is_none());
    assert_eq!(other.explain(other.try_acquire().unwrap_err()).provider(), "anthropic");
}

#[tokio::test(start_paused = true)]
async fn removing_a_name_is_not_logged_as_a_success_of_its_probe() {
    let breakers = registry();
    trip_by_name(&breakers, "openai");
    advance(30 * SECOND).await;
    assert_eq!(breakers.acquire_permit("openai").await.unwrap(), PermitType::Probe);
    let log = Log::capture();
    breakers.remove("openai");
    let lines = log.take();
    assert!(lines[0].starts_with("INFO circuit closed, its name was removed"), "{lines:?}");
    assert_eq!(lines.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn by_name_a_permit_can_be_asked_for_without_waiting() {
    let breakers = registry();
    assert_eq!(breakers.try_acquire_permit("openai").unwrap(), PermitType::Normal);
    assert_eq!(breakers.try_acquire_permit("unknown").unwrap(), PermitType::Normal);
    trip_by_name(&breakers, "openai");
    assert_eq!(breakers.try_acquire_permit("openai").unwrap_err().reason(), RejectionReason::Open);
    advance(30 * SECOND).await;
    assert_eq!(breakers.try_acquire_permit("openai").unwrap(), PermitType::Probe);
    let error = breakers.try_acquire_permit("openai").unwrap_err();
    assert_eq!((error.reason(), error.provider()), (RejectionReason::ProbeInFlight, "openai"));
    assert!(breakers.record_probe_success("openai"));
    assert!(breakers.snapshots().iter().all(|seen| seen.name() != "unknown"));
}

#[test]
fn inserting_a_known_name_copies_nothing() {
    let breakers = CircuitBreakerRegistry::new((0..20).map(|number| number.to_string()));
    let known = breakers.get("7").unwrap();
    let counted = Arc::strong_count(&known);
    // A copy of the map counts each breaker once more, and an old map that is read lives on.
    let own = CircuitBreaker::builder("7").build().unwrap();
    for again in [breakers.insert("7"), breakers.insert_breaker(own)] {
        assert!(Arc::ptr_eq(&known, &again));
    }
    breakers.insert_all(["7", "8"]);
    assert!(breakers.remove("unknown").is_none());
    assert_eq!(Arc::strong_count(&known), counted);
}

#[derive(Debug)]
struct NotShown;

#[tokio::test(start_paused = true)]
async fn the_error_of_a_call_need_implement_neither_display_nor_error() {
    async fn passed_on(breaker: &CircuitBreaker) -> Result<(), Box<dyn Error + Send + Sync>> {
        let failing = async { Err::<(), Box<dyn Error + Send + Sync>>("no such host".into()) };
        breaker.call(failing).await?;
        Ok(())
    }
    let breaker = CircuitBreaker::builder("openai").build().unwrap();
    assert_eq!(passed_on(&breaker).await.unwrap_err().to_string(), "no such host");
    assert!(matches!(breaker.call(async { Err::<(), _>(NotShown) }).await, Err(CallError::Inner(NotShown))));
    assert_eq!(breaker.failure_count(), 2);
    let inner = io::Error::other("no".parse::<f64>().unwrap_err());
    let shown = inner.to_string();
    assert_eq!(CallError::Inner(inner).into_boxed().downcast_ref::<io::Error>().unwrap().to_string(), shown);
}

#[tokio::test(start_paused = true)]
async fn rejections_by_an_inner_breaker_do_not_open_the_outer_one() {
    let (outer, inner) = (breaker(), CircuitBreaker::builder("model").failure_threshold(1).build().unwrap());
    inner.try_acquire().unwrap().failure("5xx", "");
    for _ in 0..5 {
        let answer = outer.call_with(inner.call(async { Ok::<_, io::Error>(()) }), Outcome::of).await;
        assert!(matches!(answer, Err(CallError::Inner(CallError::Rejected(_)))));
    }
    assert_eq!((outer.state(), outer.failure_count()), (CircuitState::Closed, 0));
    let by_name = registry();
    trip_by_name(&by_name, "openai");
    let rejected = async { Err::<(), _>(by_name.try_acquire_permit("openai").unwrap_err()) };
    assert!(outer.call_with(rejected, Outcome::of).await.is_err());
    assert_eq!(outer.failure_count(), 0);
    let failing = async { Err::<(), _>(io::Error::other("reset")) };
    assert!(outer.call_with(failing, Outcome::of).await.is_err());
    assert_eq!(outer.failure_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_has_the_outcome_that_its_judge_returns() {
    let breaker = breaker();
    let judge = |answer: &Result<u16, io::Error>| match answer {
        Ok(500..) => Outcome::failure("5xx", "the server failed"),
        Ok(400..) => Outcome::Neutral,
        other => Outcome::of(other),
    };
    let call = async |status: u16| breaker.call_with(async move { Ok(status) }, judge).await;
    assert_eq!((call(503).await.unwrap(), breaker.failure_count()), (503, 1));
    assert_eq!((call(404).await.unwrap(), breaker.failure_count()), (404, 1));
    assert_eq!((call(200).await.unwrap(), breaker.failure_count()), (200, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_with_cancel_on_drop_hands_its_probe_back() {
    let breaker = breaker();
    trip(&breaker);
    advance(30 * SECOND).await;
    for _ in 0..2 {
        let hanging = std::future::pending::<Result<(), io::Error>>();
        let call = tokio::time::timeout(SECOND, breaker.cancel_on_drop().call_with(hanging, Outcome::of));
        assert!(call.await.is_err());
    }
    assert_eq!(breaker.snapshot().failed_probe_count, 0);
    breaker.cancel_on_drop().call(async { Ok::<_, io::Error>(()) }).await.unwrap();
    assert_eq!(breaker.state(), CircuitState::Closed);
}

// With a hundred answers to learn from, miri takes minutes.
mod silence {
    use std::sync::Arc;
    use std::time::Duration;

    use fusebox::CircuitState;
    use fusebox::silence::{Config, Detector, TICK};

    use crate::support::breaker;

    #[tokio::test(start_paused = true)]
    async fn a_dropped_ticket_is_withdrawn() {
        let breaker = breaker();
        let config = Config::builder().ceiling(Duration::from_millis(50)).build().unwrap();
        let detector = Arc::new(Detector::new(Arc::clone(&breaker), config, 1));
        let mut watcher = detector.watcher().unwrap();
        let mut now = std::time::Instant::now();
        let permits: Vec<_> = (0..10).map(|_| breaker.try_acquire().unwrap()).collect();
        let tickets: Vec<_> = permits.iter().map(|permit| watcher.start(permit, now)).collect();
        assert_eq!(watcher.in_flight(), 10);
        drop(tickets);
        assert_eq!(watcher.in_flight(), 0);
        for _ in 0..40 {
            now += TICK;
            assert!(watcher.look(now).is_none());
        }
        assert_eq!((breaker.state(), detector.snapshot(now).unanswered), (CircuitState::Closed, 0));
        // It takes 100 answers to learn, and twice as many as there are in flight.
        for _ in 0..100 {
            let ticket = watcher.start_piece(now);
            now += TICK;
            watcher.answered(ticket, now);
            assert!(watcher.look(now).is_none());
        }
        assert!(detector.snapshot(now).learnt);
    }
}
