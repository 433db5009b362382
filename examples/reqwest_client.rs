//! reqwest, with a breaker for each host: `cargo run --example reqwest_client http://127.0.0.1:8080/`.

use fusebox::CircuitBreakerRegistry;
use reqwest::{Client, Response, Url};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Only for hosts of one's own choosing: the registry grows with each new one.
async fn get(client: &Client, breakers: &CircuitBreakerRegistry, url: Url) -> Result<Response, Error> {
    let host = url.authority().to_owned();
    let breaker = breakers.get(&host).unwrap_or_else(|| breakers.insert(&host));
    let permit = breaker.acquire().await.map_err(|rejection| breaker.explain(rejection))?;
    match client.get(url).send().await {
        Ok(response) if response.status().is_server_error() => {
            permit.failure("5xx", response.status());
            Ok(response)
        }
        Ok(response) if response.status().is_client_error() => {
            permit.cancel();
            Ok(response)
        }
        Ok(response) => {
            permit.success();
            Ok(response)
        }
        Err(error) => {
            permit.failure(if error.is_timeout() { "timeout" } else { "connection" }, &error);
            Err(error.into())
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let url: Url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:1/".to_owned()).parse()?;
    let client = Client::builder().timeout(std::time::Duration::from_secs(2)).build()?;
    let breakers = CircuitBreakerRegistry::default();
    for number in 1..=4 {
        match get(&client, &breakers, url.clone()).await {
            Ok(response) => println!("{number}: {}", response.status()),
            Err(error) => println!("{number}: {error}"),
        }
    }
    println!("{:?}", breakers.snapshots());
    Ok(())
}

#[tokio::test]
async fn a_host_that_refuses_is_left_alone_after_three_failures() {
    let (client, breakers) = (Client::new(), CircuitBreakerRegistry::default());
    let mut errors = Vec::new();
    for _ in 0..4 {
        let url = Url::parse("http://127.0.0.1:1/").unwrap();
        errors.push(get(&client, &breakers, url).await.unwrap_err().to_string());
    }
    assert!(!errors[2].contains("circuit") && errors[3].starts_with("127.0.0.1:1: the circuit is open"), "{errors:?}");
}
