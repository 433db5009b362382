//! What users take for granted of the public types, and what readers take for granted of the source.

use std::error::Error;
use std::fmt::{Debug, Display};
use std::path::Path;
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
    for part in ["name: \"openai\"", "state: Closed", "failure_count: 1", "generation: 0", "failure_threshold: 3"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    breaker.try_acquire().unwrap().success();
    let permit = probe(&breaker).await;
    let shown = format!("{permit:?}");
    for part in ["breaker: \"openai\"", "kind: Probe", "probe_in_flight: true", "generation: 1"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    permit.failure("timeout", "2 s");
    let shown = format!("{:?}", breaker.snapshot());
    assert!(shown.contains("error_type: \"timeout\", message: \"2 s\""), "{shown}");
}

#[test]
fn an_error_of_a_call_leads_to_its_source() {
    let inner: CallError<std::io::Error> = CallError::Inner(std::io::Error::other("reset by peer"));
    assert_eq!(inner.to_string(), "reset by peer");
    let breaker = CircuitBreaker::builder("openai").failure_threshold(1).build().unwrap();
    breaker.try_acquire().unwrap().failure("5xx", "");
    let rejected = breaker.try_acquire().unwrap_err();
    let error: CallError<std::io::Error> = CallError::Rejected(rejected);
    assert_eq!(error.to_string(), rejected.to_string());
}

#[tokio::test(start_paused = true)]
async fn the_last_error_grows_old() {
    let breaker = breaker();
    crate::support::trip(&breaker);
    tokio::time::advance(Duration::from_secs(7)).await;
    assert_eq!(breaker.snapshot().last_error.unwrap().age(), Duration::from_secs(7));
}

/// The core's source, file by file, without its comments and its own tests.
fn core() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<_> = [src.clone(), src.join("breaker"), src.join("sync")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.file_name().unwrap() != "main.rs")
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let code: Vec<_> = text.lines().take_while(|line| *line != "mod tests {").collect();
            let code = code.into_iter().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), code.join("\n"))
        })
        .collect();
    files.sort();
    assert!(files.len() > 10 && files.iter().any(|(_, code)| code.contains("pub struct CircuitBreaker")));
    files
}

#[test]
#[cfg_attr(miri, ignore = "reads sources, runs nothing")]
fn the_core_knows_nothing_of_the_gateway() {
    for (name, code) in core() {
        // The declaration itself.
        let code =
            if name == "lib.rs" { code.replace("feature = \"proxy\"", "").replace("mod proxy;", "") } else { code };
        for crate_or_module in ["proxy", "hyper", "axum", "http"] {
            assert!(!code.contains(crate_or_module), "{name} names {crate_or_module}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads sources, runs nothing")]
fn the_word_is_changed_by_one_compare_and_swap_and_a_breaker_has_no_lock() {
    for (name, code) in core() {
        assert!(!code.contains("unsafe") && !code.contains(".lock(") || name == "registry.rs", "{name}");
        // What the cores tell each other of silence is no part of the word, nor are settings.
        if ["settings.rs", "silence.rs", "latencies.rs", "published.rs"].contains(&name.as_str()) {
            assert!(!code.contains("compare_exchange"), "{name}");
            continue;
        }
        for forbidden in ["SeqCst", "fetch_update"] {
            assert!(!code.contains(forbidden), "{name} has {forbidden}");
        }
        // The registry's map.
        assert!(!code.contains(".store(") || name == "registry.rs", "{name}");
        let swaps = code.matches("compare_exchange").count();
        assert_eq!(swaps, usize::from(name == "breaker.rs"), "{name}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads sources, runs nothing")]
fn atomics_locks_and_time_come_through_one_door() {
    for (name, code) in core().into_iter().filter(|(name, _)| !["sync.rs", "coarse.rs"].contains(&name.as_str())) {
        for source in
            ["std::sync::atomic", "arc_swap", "parking_lot", "tokio::", "std::time::Instant", "std::sync::Mutex"]
        {
            assert!(!code.contains(source), "{name} names {source}");
        }
    }
}

#[test]
fn a_permit_and_its_refusal_fit_two_registers() {
    assert_eq!(size_of::<Result<Permit<&CircuitBreaker>, Rejection>>(), 16);
}
