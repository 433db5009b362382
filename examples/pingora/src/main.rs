//! Pingora, with a breaker for each upstream: `cargo run`, then `curl 127.0.0.1:8080/`. It asks the first upstream
//! whose circuit lets the request pass.

mod proxy;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use fusebox::{CircuitBreaker, Config};
use pingora::prelude::{Server, http_proxy_service};
use pingora::server::configuration::ServerConf;

use self::proxy::Proxy;

fn server(listen: &str, upstreams: &[&str]) -> Server {
    let upstreams = upstreams.iter().map(|name| Arc::new(CircuitBreaker::new(*name, Config::default()))).collect();
    let mut server = Server::new_with_opt_and_conf(None, ServerConf::default());
    let mut service = http_proxy_service(&server.configuration, Proxy { upstreams });
    service.add_tcp(listen);
    server.bootstrap();
    server.add_service(service);
    server
}

fn main() {
    server("127.0.0.1:8080", &["127.0.0.1:8081", "127.0.0.1:8082"]).run_forever();
}
