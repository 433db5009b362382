//! A future, judged by its `Result`: `cargo run --example call`.

use std::io;
use std::time::Duration;

use fusebox::{CallError, CircuitBreaker};

/// Fails three times, and works from then on.
async fn ask(number: u32) -> Result<String, io::Error> {
    tokio::time::sleep(Duration::from_millis(1)).await;
    if (1..=3).contains(&number) {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 2 s"));
    }
    Ok(format!("answer {number}"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), fusebox::ConfigError> {
    let breaker = CircuitBreaker::builder("upstream").open_for(Duration::from_millis(100)).build()?;
    for number in 0..8 {
        match breaker.call(ask(number)).await {
            Ok(answer) => println!("{number}: {answer}"),
            Err(CallError::Inner(error)) => println!("{number}: failed, {error}"),
            Err(CallError::Rejected(rejection)) => {
                println!("{number}: not asked, {}", breaker.explain(rejection));
                // `None` only while somebody has isolated the circuit by hand.
                tokio::time::sleep(rejection.retry_after().unwrap_or(Duration::from_secs(1))).await;
            }
        }
    }
    assert_eq!((breaker.trip_count(), breaker.failure_count()), (1, 0));
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
