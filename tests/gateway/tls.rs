//! Providers over TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, Response};
use fusebox::proxy::GatewayConfig;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::Gateway;

/// A provider with a certificate of its own making, for `localhost`, and that certificate.
async fn provider(protocols: &[&str]) -> (SocketAddr, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust the certificate ends the handshake.
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let service = service_fn(async |request: Request<Incoming>| {
                let text = format!("{:?} over TLS", request.version());
                Ok::<_, Infallible>(Response::new(Body::from(text)))
            });
            tokio::spawn(async move {
                auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await.unwrap();
            });
        }
    });
    (address, cert.pem())
}

async fn gateway(server: &str, port: u16, extra: &str) -> Gateway {
    let text =
        format!("{server}\n[[providers]]\nname = 'a'\nurl = 'https://localhost:{port}/v1'\nmodels = ['m']\n{extra}");
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

#[tokio::test]
async fn a_provider_is_asked_over_tls_if_its_authority_is_trusted_and_not_otherwise() {
    let (address, certificate) = provider(&[]).await;
    let file = std::env::temp_dir().join(format!("fusebox-test-ca-{}.pem", std::process::id()));
    std::fs::write(&file, certificate).unwrap();
    let trusting = gateway(&format!("[server]\nca_file = '{}'", file.display()), address.port(), "").await;
    let answer = trusting.ask().await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"HTTP/1.1 over TLS"[..]));
    std::fs::remove_file(file).unwrap();

    let distrusting = gateway("", address.port(), "").await;
    assert_eq!(distrusting.ask().await.status, 502);
    assert_eq!(distrusting.failures_of("a"), 1);
}

#[tokio::test]
async fn http2_is_spoken_where_both_sides_agree_on_it() {
    for (offered, extra, expected) in [
        (&["h2", "http/1.1"][..], "", (200, "HTTP/2.0 over TLS")),
        (&["http/1.1"], "", (200, "HTTP/1.1 over TLS")),
        (&[], "", (200, "HTTP/1.1 over TLS")),
        (&["h2", "http/1.1"], "http2 = false", (200, "HTTP/1.1 over TLS")),
        (&["h2"], "http2 = true", (200, "HTTP/2.0 over TLS")),
        (&["http/1.1"], "http2 = true", (502, "")),
    ] {
        let (address, certificate) = provider(offered).await;
        let file = std::env::temp_dir().join(format!("fusebox-test-alpn-{}.pem", std::process::id()));
        std::fs::write(&file, certificate).unwrap();
        let gateway = gateway(&format!("[server]\nca_file = '{}'", file.display()), address.port(), extra).await;
        for _ in 0..2 {
            let answer = gateway.ask().await;
            assert_eq!(answer.status, expected.0, "{offered:?} {extra}");
            assert!(answer.status != 200 || answer.body == expected.1, "{offered:?} {extra}");
        }
        std::fs::remove_file(file).unwrap();
    }
}
