//! Providers over TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use fusebox::proxy::GatewayConfig;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{CHAT, DEADLINE, Gateway, TempFile, soon};

/// A provider with a certificate of its own making, for `localhost`, and that certificate.
async fn provider(protocols: &'static [&'static str]) -> (SocketAddr, String) {
    provider_with(move || Some(protocols)).await
}

/// The same, with other protocols for each connection; `None`: its handshake never ends.
async fn provider_with(
    mut protocols: impl FnMut() -> Option<&'static [&'static str]> + Send + 'static,
) -> (SocketAddr, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut stuck = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Some(protocols) = protocols() else {
                stuck.push(stream);
                continue;
            };
            tls.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
            let acceptor = TlsAcceptor::from(Arc::new(tls.clone()));
            // A client that does not trust the certificate ends the handshake.
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let handshake = format!("{:?}", stream.get_ref().1.handshake_kind().expect("it has ended"));
            let service = service_fn(move |request: Request<Incoming>| {
                let text = format!("{:?} over TLS", request.version());
                let response = Response::builder().header("x-handshake", handshake.clone()).body(Body::from(text));
                async { Ok::<_, Infallible>(response.unwrap()) }
            });
            tokio::spawn(async move {
                let http = auto::Builder::new(TokioExecutor::new());
                // A client that leaves is no news.
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
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
    let file = TempFile::new("ca.pem", certificate);
    let trusting = gateway(&format!("[server]\nca_file = '{}'", file.display()), address.port(), "").await;
    let answer = trusting.ask().await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"HTTP/1.1 over TLS"[..]));

    let distrusting = gateway("", address.port(), "").await;
    assert_eq!(distrusting.ask().await.status, 502);
    assert_eq!(distrusting.failures_of("a"), 1);
}

#[tokio::test]
async fn http2_is_used_if_it_is_negotiated() {
    for (offered, extra, expected) in [
        (&["h2", "http/1.1"][..], "", (200, "HTTP/2.0 over TLS")),
        (&["http/1.1"], "", (200, "HTTP/1.1 over TLS")),
        (&[], "", (200, "HTTP/1.1 over TLS")),
        (&["h2", "http/1.1"], "http2 = false", (200, "HTTP/1.1 over TLS")),
        (&["h2"], "http2 = true", (200, "HTTP/2.0 over TLS")),
        (&["http/1.1"], "http2 = true", (502, "")),
    ] {
        let (address, certificate) = provider(offered).await;
        let file = TempFile::new("alpn.pem", certificate);
        let gateway = gateway(&format!("[server]\nca_file = '{}'", file.display()), address.port(), extra).await;
        for _ in 0..2 {
            let answer = gateway.ask().await;
            assert_eq!(answer.status, expected.0, "{offered:?} {extra}");
            assert!(answer.status != 200 || answer.body == expected.1, "{offered:?} {extra}");
        }
    }
}

#[tokio::test]
async fn a_new_connection_resumes_the_session_of_one_before() {
    let (address, certificate) = provider(&[]).await;
    let file = TempFile::new("resumed.pem", certificate);
    let server = format!("[server]\ncores = 1\nca_file = '{}'", file.display());
    let gateway = gateway(&server, address.port(), "connections = { max_idle = 0 }").await;
    for expected in ["Full", "Resumed", "Resumed"] {
        assert_eq!(gateway.ask().await.header("x-handshake"), expected);
    }
}

#[tokio::test]
async fn connections_are_made_in_parallel_once_the_provider_speaks_http1_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let (address, certificate) = provider_with(move || match count.fetch_add(1, Ordering::SeqCst) {
        0 => Some(&["h2"]),
        // It gets stuck in the handshake.
        2 => None,
        _ => Some(&["http/1.1"]),
    })
    .await;
    let file = TempFile::new("turn.pem", certificate);
    let server = format!("[server]\ncores = 1\nca_file = '{}'", file.display());
    let extra = "connections = { max_idle = 0, max_age = '1ms' }\ntimeouts = { connect = '1h' }";
    let gateway = gateway(&server, address.port(), extra).await;
    soon(async {
        while connections.load(Ordering::SeqCst) < 2 {
            assert_eq!(gateway.ask().await.status, 200);
        }
    })
    .await;
    let stuck = tokio::spawn(gateway.sending(gateway.request("/v1/x", CHAT)));
    gateway.until(|_| connections.load(Ordering::SeqCst) == 3).await;
    let answer = tokio::time::timeout(DEADLINE, gateway.ask()).await.expect("it waits for nobody's turn");
    assert!(answer.status == 200 && !stuck.is_finished());
}
