//! What users take for granted of the public types.

use std::error::Error;
use std::fmt::{Debug, Display};
use std::time::Duration;

use fusebox::{
    BreakerSnapshot, CallError, CircuitBreaker, CircuitBreakerRegistry, CircuitOpenError, CircuitState, Config,
    ConfigBuilder, ConfigError, LastError, OwnedPermit, Permit, PermitType, ProbeGuard, Rejection, RejectionReason,
    silence,
};

use crate::support::{breaker, fail, probe};

#[test]
fn types_can_be_sent_shared_cloned_compared_and_shown_as_expected() {
    fn shared<T: Send + Sync + Unpin + Debug + 'static>() {}
    fn cloned<T: Clone>() {}
    fn compared<T: PartialEq + Eq>() {}
    fn copied<T: Copy + Eq + std::hash::Hash>() {}
    fn error<T: Error + Display + Send + Sync + 'static>() {}

    shared::<CircuitBreaker>();
    shared::<CircuitBreakerRegistry>();
    shared::<Permit<&'static CircuitBreaker>>();
    shared::<OwnedPermit>();
    shared::<ProbeGuard>();
    shared::<Config>();
    shared::<ConfigBuilder>();
    shared::<BreakerSnapshot>();
    shared::<LastError>();
    shared::<silence::Detector>();
    shared::<silence::Watcher>();
    shared::<silence::Ticket>();
    shared::<silence::Alarm>();
    cloned::<Config>();
    cloned::<ConfigBuilder>();
    cloned::<BreakerSnapshot>();
    cloned::<CircuitOpenError>();
    cloned::<ConfigError>();
    compared::<Config>();
    compared::<Rejection>();
    compared::<CallError<String>>();
    copied::<CircuitState>();
    copied::<PermitType>();
    copied::<RejectionReason>();
    error::<Rejection>();
    error::<CircuitOpenError>();
    error::<ConfigError>();
    error::<CallError<std::io::Error>>();
}

#[test]
fn the_futures_can_be_spawned() {
    fn spawnable<T: Send + 'static>(_: &T) {}
    fn movable<T: Send>(_: &T) {}
    let breaker = breaker();
    let breakers = CircuitBreakerRegistry::default();
    spawnable(&std::sync::Arc::clone(&breaker).acquire_owned());
    movable(&breaker.acquire());
    movable(&breaker.call(async { Ok::<(), std::io::Error>(()) }));
    movable(&breakers.acquire_permit("openai"));
}

#[tokio::test(start_paused = true)]
async fn debug_output_shows_fields_and_not_bits() {
    let breaker = breaker();
    fail(&breaker, "5xx");
    let shown = format!("{breaker:?}");
    for part in ["name: \"openai\"", "state: Closed { failures: 1,", "generation: 0", "failure_threshold: Some(3)"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    breaker.try_acquire().unwrap().success();
    let permit = probe(&breaker).await;
    let shown = format!("{permit:?}");
    for part in ["breaker: \"openai\"", "kind: Probe", "generation: 1"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    permit.failure("timeout", "2 s");
    let shown = format!("{:?}", breaker.snapshot());
    assert!(shown.contains("error_type: \"timeout\", message: \"2 s\""), "{shown}");
}

#[test]
fn the_error_of_a_call_has_its_source() {
    let inner: CallError<std::io::Error> = CallError::Inner(std::io::Error::other("reset by peer"));
    assert_eq!(inner.to_string(), "reset by peer");
    let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build().unwrap();
    breaker.try_acquire().unwrap().failure("5xx", "");
    let rejected = breaker.try_acquire().unwrap_err();
    let error: CallError<std::io::Error> = CallError::Rejected(rejected);
    assert_eq!(error.to_string(), rejected.to_string());
    let passed_on = || -> Result<(), CallError<std::io::Error>> {
        breaker.try_acquire()?.success();
        Ok(())
    };
    assert!(matches!(passed_on(), Err(CallError::Rejected(rejection)) if rejection.reason() == rejected.reason()));
}

#[tokio::test(start_paused = true)]
async fn the_last_error_grows_old() {
    let breaker = breaker();
    crate::support::trip(&breaker);
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(breaker.snapshot().last_error.unwrap().age(), Duration::from_secs(7));
}

#[test]
fn a_permit_and_its_rejection_fit_two_registers() {
    assert_eq!(size_of::<Result<Permit<&CircuitBreaker>, Rejection>>(), 16);
}
