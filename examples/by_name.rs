//! A framework that calls back with a name and nothing else: `cargo run --example by_name`.

use std::{collections::HashMap, time::Duration};

use fusebox::{CircuitBreakerRegistry, CircuitState, Config, PermitType, ProbeGuard};

/// What such a framework wants to be told.
struct Callbacks {
    breakers: CircuitBreakerRegistry,
    /// Requests that are the probe, by the framework's number.
    probes: HashMap<u64, ProbeGuard>,
}

impl Callbacks {
    /// Whether the request may go to that upstream.
    async fn before(&mut self, request: u64, upstream: &str) -> bool {
        match self.breakers.acquire_permit(upstream).await {
            Ok(PermitType::Normal) => {}
            Ok(PermitType::Probe) => {
                self.probes.insert(request, ProbeGuard::new(&self.breakers, upstream));
            }
            Err(error) => {
                println!("request {request}: {error}");
                return false;
            }
        }
        true
    }

    fn after(&mut self, request: u64, upstream: &str, result: Result<(), &str>) {
        match (self.probes.remove(&request), result) {
            (Some(probe), Ok(())) => probe.success(),
            (Some(probe), Err(error)) => probe.failure("upstream", error),
            (None, Ok(())) => self.breakers.record_success(upstream),
            (None, Err(error)) => self.breakers.record_failure(upstream, "upstream", error),
        };
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), fusebox::ConfigError> {
    let config = Config::builder().failure_threshold(2).open_for(Duration::from_millis(100)).build()?;
    let breakers = CircuitBreakerRegistry::with_config(["a"], config);
    let mut callbacks = Callbacks { breakers, probes: HashMap::new() };
    for request in 0..6 {
        if !callbacks.before(request, "a").await {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        callbacks.after(request, "a", if request < 2 { Err("no route") } else { Ok(()) });
    }
    assert_eq!(callbacks.breakers.state("a"), Some(CircuitState::Closed));
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
