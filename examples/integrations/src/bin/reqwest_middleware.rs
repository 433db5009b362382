//! A middleware for reqwest, with a breaker for each host: `cargo run -p fusebox-examples --bin reqwest_middleware
//! http://127.0.0.1:8080/`.

use fusebox::CircuitBreakerRegistry;
use reqwest::{Request, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next, Result};

/// A registry with a cap, since the hosts come with the requests.
struct Breakers(CircuitBreakerRegistry);

#[async_trait::async_trait]
impl Middleware for Breakers {
    async fn handle(&self, request: Request, extensions: &mut http::Extensions, next: Next<'_>) -> Result<Response> {
        let Ok(breaker) = self.0.get_or_insert(request.url().authority()) else {
            // As many hosts as the cap allows are in use: better unguarded than refused.
            return next.run(request, extensions).await;
        };
        let permit = breaker.acquire().await.map_err(|rejection| Error::middleware(breaker.explain(rejection)))?;
        // The client's own timeout is an error. So a drop means that nobody wants the answer any more.
        let permit = permit.cancel_on_drop();
        let result = next.run(request, extensions).await;
        match &result {
            Ok(response) if response.status().is_server_error() => permit.failure("5xx", response.status()),
            Ok(response) if response.status().is_client_error() => permit.cancel(),
            Ok(_) => permit.success(),
            Err(error) => permit.failure(if error.is_timeout() { "timeout" } else { "connection" }, error),
        }
        result
    }
}

fn client() -> reqwest::Result<ClientWithMiddleware> {
    let client = reqwest::Client::builder().timeout(std::time::Duration::from_secs(2)).build()?;
    let breakers = Breakers(CircuitBreakerRegistry::default().with_cap(1000));
    // Other middleware, such as retries, goes before it: then each try asks.
    Ok(ClientBuilder::new(client).with(breakers).build())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> reqwest::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:1/".to_owned());
    let client = client()?;
    for number in 1..=4 {
        match client.get(&url).send().await {
            Ok(response) => println!("{number}: {}", response.status()),
            Err(error) => println!("{number}: {error}"),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "../tests/reqwest_middleware.rs"]
mod tests;
