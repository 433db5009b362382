//! A test that takes no time: `cargo test --example fake_clock`. A client with a breaker in it is what is tested.

use std::time::Duration;

use fusebox::{CallError, CircuitBreaker, ConfigError};

struct Client {
    breaker: CircuitBreaker,
}

impl Client {
    fn new() -> Result<Self, ConfigError> {
        let breaker =
            CircuitBreaker::builder("upstream").failure_threshold(2).open_for(Duration::from_secs(30)).build()?;
        Ok(Self { breaker })
    }

    async fn ask(&self, is_up: bool) -> Result<&'static str, CallError<&'static str>> {
        self.breaker.call(async { if is_up { Ok("answer") } else { Err("connection refused") } }).await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ConfigError> {
    println!("{:?}, and its test is what this is about", Client::new()?.ask(true).await);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_upstream_is_left_alone_for_thirty_seconds_after_two_failures() {
    let client = Client::new().unwrap();
    for _ in 0..2 {
        assert_eq!(client.ask(false).await, Err(CallError::Inner("connection refused")));
    }
    tokio::time::advance(Duration::from_secs(29)).await;
    let Err(CallError::Rejected(rejection)) = client.ask(true).await else { panic!("it should not be asked") };
    assert_eq!(rejection.retry_after(), Some(Duration::from_secs(1)));

    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(client.ask(true).await, Ok("answer"));
}
