//! The client, with a server and without one.

use std::error::Error;

use fusebox::is_rejection;
use tonic::Code;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::guarded;

#[tokio::test]
async fn a_server_that_is_away_is_left_alone_after_three_failures() -> Result<(), Box<dyn Error>> {
    let mut client = HealthClient::new(guarded(&Endpoint::from_static("http://127.0.0.1:1"))?);
    for _ in 0..3 {
        let status = client.check(HealthCheckRequest::default()).await.unwrap_err();
        assert!(!is_rejection(&status), "{status}");
    }
    let status = client.check(HealthCheckRequest::default()).await.unwrap_err();
    assert!(is_rejection(&status), "{status}");
    Ok(())
}

#[tokio::test]
async fn what_the_caller_does_wrong_says_nothing_of_the_server() -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let address = format!("http://{}", incoming.local_addr()?);
    let (_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(Server::builder().add_service(health).serve_with_incoming(incoming));

    let guarded = guarded(&Endpoint::from_shared(address)?)?;
    let mut client = HealthClient::new(guarded);
    for _ in 0..5 {
        let status = client.check(HealthCheckRequest { service: "unknown".to_owned() }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
    client.check(HealthCheckRequest::default()).await?;
    Ok(())
}
