//! Clients that connect over TLS, and clients that speak HTTP/2.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use fusebox::proxy::GatewayConfig;
use http::{Request, Response, Version};
use http_body_util::channel::Sender;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{
    Answer, CHAT, Gateway, Provider, another, answer, events, one_by_one, read, soon, streamed, temp_path, until,
    until_closed,
};

/// An authority, and the files of a gateway.
pub(crate) struct Files {
    authority: CertifiedIssuer<'static, KeyPair>,
    pub(crate) folder: PathBuf,
}

impl Files {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = temp_path(name);
        fs::create_dir_all(&folder).unwrap();
        let files = Self { authority, folder };
        files.renew();
        fs::write(files.folder.join("ca.pem"), files.authority.pem()).unwrap();
        files
    }

    /// A certificate of the authority, and its key.
    pub(crate) fn sign(&self) -> (CertificateDer<'static>, String, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.authority).unwrap();
        (cert.der().clone(), cert.pem(), key)
    }

    /// Writes another certificate for `localhost` with its key.
    fn renew(&self) -> CertificateDer<'static> {
        let (der, pem, key) = self.sign();
        fs::write(self.folder.join("cert.pem"), pem).unwrap();
        fs::write(self.folder.join("key.pem"), key.serialize_pem()).unwrap();
        der
    }

    fn settings(&self, more: &str) -> String {
        let folder = self.folder.display();
        format!("tls = {{ cert = '{folder}/cert.pem', key = '{folder}/key.pem'{more} }}")
    }

    async fn gateway(&self, provider: &Provider, server: &str) -> Gateway {
        Gateway::start(&[provider], &format!("{}\n{server}", self.settings("")), "", "").await
    }

    fn connector(&self, protocols: &[&str], identity: Option<(CertificateDer<'static>, KeyPair)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    async fn connect(&self, gateway: &Gateway, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        soon(self.connector(protocols, None).connect(name, stream)).await
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn chat() -> Request<Full<Bytes>> {
    let request = Request::post("https://localhost/v1/chat/completions").header("content-type", "application/json");
    request.body(Full::from(another(CHAT))).unwrap()
}

/// Asks over HTTP/1.
async fn ask_http1(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) -> Answer {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = chat();
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    *request.uri_mut() = "/v1/chat/completions".parse().unwrap();
    read(soon(sender.send_request(request)).await.unwrap()).await
}

type Http2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn http2(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static) -> Http2 {
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = soon(handshake).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask_http2(sender: &mut Http2, request: Request<Full<Bytes>>) -> Answer {
    let response = soon(sender.send_request(request)).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    read(response).await
}

/// Asks for a stream whose first piece the provider sends meanwhile: there is no answer before that.
async fn begin(client: &mut Http2, sender: &mut Sender<Bytes, std::io::Error>) -> Response<hyper::body::Incoming> {
    let first = async { sender.send_data("data: 1\n\n".into()).await.unwrap() };
    soon(async { tokio::join!(client.send_request(chat()), first).0 }).await.unwrap()
}

#[tokio::test]
async fn clients_are_served_over_tls_with_the_protocol_that_they_ask_for() {
    let (files, a) = (Files::new("protocols"), Provider::with_status(200).await);
    let gateway = files.gateway(&a, "").await;
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = files.connect(&gateway, protocols).await.unwrap();
        assert_eq!(ask_http1(stream).await.status, 200);
    }
    for protocols in [&["h2"][..], &["h2", "http/1.1"]] {
        let stream = files.connect(&gateway, protocols).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut sender = http2(stream).await;
        for _ in 0..3 {
            assert_eq!(ask_http2(&mut sender, chat()).await.status, 200);
        }
    }
    assert_eq!(a.hits(), 8);
}

#[tokio::test]
async fn http2_is_understood_without_tls_if_a_client_begins_with_it() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "auth_tokens = ['secret']", "", "").await;
    let mut sender = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    assert_eq!(ask_http2(&mut sender, chat()).await.status, 401);
    let mut request = chat();
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(ask_http2(&mut sender, request).await.status, 200);
    let get = |path: &str| Request::get(format!("http://localhost{path}")).body(Full::default()).unwrap();
    assert_eq!(ask_http2(&mut sender, get("/nothing")).await.status, 404);
    // Its first bytes in pieces, as slowly as a client likes.
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        slow.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    slow.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let mut settings = [0; 9];
    soon(slow.read_exact(&mut settings)).await.unwrap();
    assert_eq!(settings[3], 4, "a frame of settings");
}

#[tokio::test]
async fn what_begins_like_http2_and_is_none_is_answered_as_http1() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    for begins in ["PRI", "P", "PRI * HTTP/2.0\r\n\r\nSN"] {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(begins.as_bytes()).await.unwrap();
        client.write_all(b"X / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        soon(client.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") || answer.starts_with("HTTP/1.1 400"), "{begins}: {answer}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_used_for_new_connections_and_a_broken_one_for_none() {
    let (files, a) = (Files::new("renewed"), Provider::with_status(200).await);
    let gateway = files.gateway(&a, "").await;
    let shown = async || {
        let stream = files.connect(&gateway, &["h2"]).await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        (stream, shown)
    };
    let (stream, first) = shown().await;
    let mut running = http2(stream).await;
    assert_eq!(ask_http2(&mut running, chat()).await.status, 200);

    let second = files.renew();
    assert_ne!(first, second);
    soon(async { while shown().await.1 != second {} }).await;
    assert_eq!(ask_http2(&mut running, chat()).await.status, 200, "a running connection goes on");

    fs::write(files.folder.join("cert.pem"), "nonsense").unwrap();
    let text = |files: &Files| {
        format!(
            "[server]\n{}\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']",
            files.settings("")
        )
    };
    let error = GatewayConfig::from_toml(&text(&files)).unwrap_err().to_string();
    assert!(error.contains("server.tls.cert is") && error.contains("holds no certificate"), "{error}");
    assert_eq!(shown().await.1, second);

    let third = files.renew();
    soon(async { while shown().await.1 != third {} }).await;
    // A reload of the configuration reads them again, too.
    let fourth = files.renew();
    gateway.state.reload(&GatewayConfig::from_toml(&text(&files)).unwrap()).unwrap();
    assert_eq!(shown().await.1, fourth);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let (files, a) = (Files::new("client-ca"), Provider::with_status(200).await);
    let ca = format!(", client_ca = '{}/ca.pem'", files.folder.display());
    let mut gateway = Gateway::start(&[&a], &files.settings(&ca), "", "").await;
    let name = || ServerName::try_from("localhost").unwrap();
    let (cert, _, key) = files.sign();
    let with = files.connector(&["http/1.1"], Some((cert, key)));
    let stream = with.connect(name(), TcpStream::connect(gateway.address).await.unwrap()).await.unwrap();
    assert_eq!(ask_http1(stream).await.status, 200);

    let other = Files::new("other-ca");
    let (cert, _, key) = other.sign();
    for identity in [None, Some((cert, key))] {
        let without = files.connector(&["http/1.1"], identity);
        let mut stream = without.connect(name(), TcpStream::connect(gateway.address).await.unwrap()).await.unwrap();
        // The client's part of the handshake is over before it is judged.
        let mut nothing = [0];
        assert!(!matches!(soon(stream.read(&mut nothing)).await, Ok(1..)));
    }
    // A load balancer that looks whether the port is open is no failed handshake.
    drop(TcpStream::connect(gateway.address).await.unwrap());
    let mut plain = TcpStream::connect(gateway.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let _ = soon(plain.read(&mut [0; 64])).await;
    assert_eq!(a.hits(), 1);
    let cut = "fusebox_client_connections_cut_total{reason=\"tls_handshake\"} 3";
    soon(async { while !gateway.metrics().await.contains(cut) {} }).await;
}

#[tokio::test]
async fn a_handshake_has_a_time_limit_and_ends_with_the_gateway() {
    let (files, a) = (Files::new("stuck"), Provider::with_status(200).await);
    let gateway = files.gateway(&a, "header_timeout = '50ms'").await;
    let mut stuck = TcpStream::connect(gateway.address).await.unwrap();
    assert_eq!(soon(stuck.read(&mut [0; 64])).await.unwrap(), 0);

    let mut gateway = files.gateway(&a, "drain_limit = '1h'").await;
    let mut stuck = TcpStream::connect(gateway.address).await.unwrap();
    soon(async { while !gateway.metrics().await.contains("fusebox_client_connections 1\n") {} }).await;
    gateway.stop();
    assert_eq!(soon(stuck.read(&mut [0; 64])).await.unwrap(), 0);
    soon(&mut gateway.server).await.unwrap();
}

#[tokio::test]
async fn mistakes_in_the_files_are_told_with_field_and_name() {
    let files = Files::new("mistakes");
    let folder = files.folder.display();
    let (_, other, _) = files.sign();
    fs::write(files.folder.join("other.pem"), other).unwrap();
    let read = |tls: &str| {
        let text =
            format!("[server]\ntls = {tls}\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']");
        GatewayConfig::from_toml(&text).unwrap_err().to_string()
    };
    for (tls, expected) in [
        ("{ }".to_owned(), "server.tls.cert is missing, expected a PEM file"),
        ("'cert.pem'".to_owned(), "server.tls is \"cert.pem\", expected a table"),
        (format!("{{ cert = '{folder}/cert.pem' }}"), "server.tls.key is missing, expected a PEM file"),
        (format!("{{ cert = '{folder}/none.pem', key = '{folder}/key.pem' }}"), "cannot be read"),
        (format!("{{ cert = '{folder}/key.pem', key = '{folder}/key.pem' }}"), "holds no certificate"),
        (format!("{{ cert = '{folder}/cert.pem', key = '{folder}/cert.pem' }}"), "holds no private key"),
        (format!("{{ cert = '{folder}/other.pem', key = '{folder}/key.pem' }}"), "does not fit"),
        (
            format!("{{ cert = '{folder}/cert.pem', key = '{folder}/key.pem', client_ca = '/none' }}"),
            "server.tls.client_ca is \"/none\"",
        ),
        (format!("{{ cert = '{folder}/cert.pem', key = '{folder}/key.pem', ca = 'x' }}"), "server.tls.ca is unknown"),
    ] {
        let error = read(&tls);
        assert!(error.contains(expected), "{tls}: {error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
    }
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response, answer(200)])).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let mut client = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let mut other = client.clone();
    let slow = begin(&mut client, &mut sender).await;
    let mut slow = slow.into_body();
    assert_eq!(slow.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    assert_eq!(ask_http2(&mut other, chat()).await.status, 200);
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    drop(sender);
    assert_eq!(soon(slow.collect()).await.unwrap().to_bytes(), "data: [DONE]\n\n");
}

#[tokio::test]
async fn a_client_that_resets_a_stream_has_left() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let mut client = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let response = begin(&mut client, &mut sender).await;
    drop(response);
    assert_eq!(gateway.log(1).await[0]["end"], "client_left");
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_is_given_up_and_others_go_on() {
    let big = "data: ".to_owned() + &"x".repeat(8 << 20) + "\n\n";
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response, answer(200)])).await;
    let mut gateway = Gateway::start(&[&a], "write_timeout = '100ms'", "", "").await;
    let sending = tokio::spawn(async move { while sender.send_data(big.clone().into()).await.is_ok() {} });
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (client, connection) = soon(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let post = || {
        Request::post("http://localhost/v1/chat/completions")
            .header("content-type", "application/json")
            .body(())
            .unwrap()
    };
    let (response, mut body) = client.send_request(post(), false).unwrap();
    body.send_data(another(CHAT).into(), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 200);
    let cut = "fusebox_client_connections_cut_total{reason=\"write_timeout\"} 1";
    soon(async { while !gateway.metrics().await.contains(cut) {} }).await;
    drop(response);
    let (response, mut body) = client.send_request(post(), false).unwrap();
    body.send_data(another(CHAT).into(), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_of_http2_ends_and_one_with_a_request_does_not() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let gateway = Gateway::start(&[&a], "header_timeout = '100ms'", "", "").await;
    let idle = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let mut client = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let response = begin(&mut client, &mut sender).await;
    until(|| idle.is_closed()).await;
    assert!(!client.is_closed());
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    drop(sender);
    soon(response.collect()).await.unwrap();
    until(|| client.is_closed()).await;
}

#[tokio::test]
async fn too_many_or_too_long_headers_are_refused() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "max_headers = 10\nmax_header_bytes = 8192", "", "").await;
    let mut client = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let mut request = chat();
    for n in 0..12 {
        request.headers_mut().insert(http::HeaderName::try_from(format!("x-{n}")).unwrap(), "1".parse().unwrap());
    }
    assert_eq!(ask_http2(&mut client, request).await.status, 431);
    let mut request = chat();
    request.headers_mut().insert("x-long", "x".repeat(7000).parse().unwrap());
    assert_eq!(ask_http2(&mut client, request).await.status, 200);
    let mut request = chat();
    request.headers_mut().insert("x-long", "x".repeat(9000).parse().unwrap());
    // The client knows the limit and does not send it, or is answered 431.
    match soon(client.send_request(request)).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(error.to_string().contains("http2"), "{error}"),
    }
    assert_eq!(a.hits(), 1);
}

#[tokio::test]
async fn a_client_that_resets_streams_faster_than_they_are_seen_is_cut() {
    let a = Provider::start(|_| events("data: 1\n\n")).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let mut attack = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for n in 0..2000_u32 {
        let id = (2 * n + 1).to_be_bytes();
        // GET http://a/ by the indices of HPACK's table, and `:authority: a`.
        let headers = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
        attack.extend([0, 0, 6, 1, 5]);
        attack.extend(id);
        attack.extend(headers);
        attack.extend([0, 0, 4, 3, 0]);
        attack.extend(id);
        attack.extend([0, 0, 0, 8]);
    }
    let _ = client.write_all(&attack).await;
    let mut said = Vec::new();
    let _ = soon(client.read_to_end(&mut said)).await;
    // A GOAWAY frame with ENHANCE_YOUR_CALM.
    let calm = said.windows(4).any(|code| code == [0, 0, 0, 0xb]);
    assert!(calm, "{said:?}");
    let other = TcpStream::connect(gateway.address).await.unwrap();
    assert_eq!(ask_http2(&mut http2(other).await, chat()).await.status, 200);
}

#[tokio::test]
async fn requests_of_http2_are_finished_before_the_gateway_ends() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let mut gateway = Gateway::start(&[&a], "", "", "").await;
    let mut client = http2(TcpStream::connect(gateway.address).await.unwrap()).await;
    let response = begin(&mut client, &mut sender).await;
    gateway.stop();
    until_closed(gateway.address).await;
    sender.send_data("data: [DONE]\n\n".into()).await.unwrap();
    drop(sender);
    let whole = soon(response.collect()).await.unwrap().to_bytes();
    assert!(whole.ends_with(b"data: [DONE]\n\n"));
    soon(&mut gateway.server).await.unwrap();
}
