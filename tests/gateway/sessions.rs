//! WebSocket sessions: failover on the handshake, what passes, and how each end is judged and told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fusebox::proxy::{AnswerKind, CircuitState, GatewayConfig};
use futures_util::{SinkExt, StreamExt};
use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::peers::{Peer, Socket, closed, frame, hears, next, say};
use crate::support::{Gateway, Provider, answer, hang, nobody, soon};

/// In front of providers named a, b, c, which serve `m`, under the name `there`.
async fn gateway(server: &str, rest: &str, providers: &[SocketAddr]) -> Gateway {
    let mut text = format!("[server]\n{server}\n[breaker]\nfailure_threshold = 2\nopen_for = '1h'\n{rest}\n");
    for (name, address) in ["a", "b", "c"].iter().zip(providers) {
        let provider = format!(
            "[[providers]]\nname = '{name}'\nurl = 'http://{address}/base/v1'\napi_key = 'provider-key'\n\
             models = ['only-{name}']\naliases = {{ m = 'there' }}\n"
        );
        text += &provider;
    }
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

fn asking(gateway: &Gateway, path: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::get(format!("ws://{}{path}", gateway.address))
        .header("host", gateway.address.to_string())
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

async fn open_at(gateway: &Gateway, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, (u16, Value)> {
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    match soon(client_async(asking(gateway, path, headers), stream)).await {
        Ok((socket, _)) => Ok(socket),
        // The body of a refusal is read as far as it came with the head.
        Err(Error::Http(refused)) => Err((
            refused.status().as_u16(),
            serde_json::from_slice(refused.body().as_deref().unwrap_or_default()).unwrap_or_default(),
        )),
        Err(error) => panic!("{error}"),
    }
}

async fn open(gateway: &Gateway) -> Socket {
    open_at(gateway, "/v1/realtime?model=m", &[]).await.unwrap()
}

fn circuit(gateway: &Gateway, provider: &str) -> Arc<fusebox::CircuitBreaker> {
    gateway.state.circuit(provider, "m", AnswerKind::Session).unwrap()
}

#[tokio::test]
async fn messages_pass_in_both_directions_and_the_provider_sees_its_own_model_and_key() {
    let mut a = Peer::start().await;
    let mut gateway = gateway("auth_tokens = ['token']", "", &[a.address]).await;
    let headers = [("authorization", "Bearer token"), ("openai-beta", "realtime=v1"), ("cookie", "c=1")];
    let mut client = open_at(&gateway, "/v1/realtime?x=1&model=m", &headers).await.unwrap();
    let mut provider = a.session().await;
    let seen = a.last();
    assert_eq!(seen.uri(), "/base/v1/realtime?x=1&model=there");
    assert_eq!(seen.headers()["authorization"], "Bearer provider-key");
    assert_eq!(seen.headers()["openai-beta"], "realtime=v1");
    assert!(!seen.headers().contains_key("cookie") && !seen.headers().contains_key("x-fusebox-provider"));
    for n in 0..3 {
        say(&mut provider, &format!("down {n}")).await;
        hears(&mut client, &format!("down {n}")).await;
        say(&mut client, &format!("up {n}")).await;
        hears(&mut provider, &format!("up {n}")).await;
    }
    let bytes = Message::Binary(vec![7; 3 << 20].into());
    let (sent, received) = tokio::join!(client.send(bytes.clone()), next(&mut provider));
    sent.unwrap();
    assert_eq!(received, Some(bytes.clone()));
    let (sent, received) = tokio::join!(provider.send(bytes.clone()), next(&mut client));
    sent.unwrap();
    assert_eq!(received, Some(bytes));
    assert!(gateway.metrics().await.contains("fusebox_sessions 1\n"));
    client.close(None).await.unwrap();
    assert_eq!(closed(&mut provider).await, (1005, String::new()));
    let line = &gateway.log(1).await[0];
    assert_eq!((&line["status"], &line["end"], &line["model"]), (&json!(101), &json!("complete"), &json!("m")));
    assert_eq!(line["attempts"][0]["outcome"], "ok");
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!((3 << 20) + 12), &json!((3 << 20) + 18)));
    assert!(gateway.metrics().await.contains("fusebox_sessions 0\n"));
}

#[tokio::test]
async fn a_handshake_that_fails_is_tried_at_the_next_provider_and_opens_a_circuit_of_its_own() {
    let (a, mut b) = (Provider::with_status(500).await, Peer::start().await);
    let gateway = gateway("", "", &[a.address, b.address]).await;
    let mut open = Vec::new();
    for n in 0..3 {
        let mut client = open_at(&gateway, &format!("/v1/realtime?model=m&n={n}"), &[]).await.unwrap();
        let mut provider = b.session().await;
        say(&mut provider, "hello").await;
        hears(&mut client, "hello").await;
        open.push((client, provider));
    }
    assert_eq!(a.hits(), 2);
    assert_eq!(circuit(&gateway, "a").state(), CircuitState::Open);
    assert_eq!(gateway.breaker("a").state(), CircuitState::Closed);
}

#[tokio::test]
async fn what_is_no_session_goes_to_the_next_provider() {
    let refusing = nobody().await;
    let hanging = Provider::start(|_| hang()).await;
    let mut b = Peer::start().await;
    let rest = "[timeouts]\nfirst_byte = '50ms'";
    for first in [refusing, hanging.address, Provider::with_status(200).await.address, liar().await] {
        let gateway = gateway("", rest, &[first, b.address]).await;
        let mut client = open(&gateway).await;
        say(&mut b.session().await, "hello").await;
        hears(&mut client, "hello").await;
        let failures = circuit(&gateway, "a").failure_count().max(gateway.own_breaker("a").failure_count());
        assert_eq!(failures, 1, "{first}");
    }
}

/// Answers 101 whatever it is asked.
async fn liar() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head =
            "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    });
    address
}

#[tokio::test]
async fn a_refusal_is_an_answer_as_to_any_other_request() {
    let a = Provider::start(|_| answer(429)).await;
    let gateway = gateway("auth_tokens = ['token']", "", &[a.address]).await;
    let ask = async |path: &str, token: &str| open_at(&gateway, path, &[("x-api-key", token)]).await.unwrap_err();
    assert_eq!(ask("/v1/realtime?model=m", "wrong").await.0, 401);
    assert_eq!(ask("/v1/realtime?model=other", "token").await.0, 404);
    assert_eq!(ask("/v1/realtime?model=m&model=n", "token").await.0, 400);
    assert_eq!(ask("/v1/../x?model=m", "token").await.0, 400);
    assert_eq!(ask("/v1/realtime?model=m", "token").await, (429, json!({"status": 429})));
    assert_eq!(ask("/v1/realtime?model=m", "token").await.0, 503);
    assert_eq!(a.hits(), 1);
    for (name, value) in [("sec-websocket-version", "8"), ("connection", "keep-alive")] {
        let mut request = asking(&gateway, "/v1/realtime?model=m", &[("x-api-key", "token")]);
        request.headers_mut().insert(name, value.parse().unwrap());
        let mut text = "GET /v1/realtime?model=m HTTP/1.1\r\n".to_owned();
        for (name, value) in request.headers() {
            text = format!("{text}{name}: {}\r\n", value.to_str().unwrap());
        }
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 400];
        let read = soon(stream.read(&mut answer)).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 400"), "{name}: {}", String::from_utf8_lossy(&answer[..read]));
    }
}

#[tokio::test]
async fn a_page_shows_its_token_among_the_protocols_and_no_provider_sees_it() {
    let mut a = Peer::start().await;
    let gateway = gateway("auth_tokens = ['token']", "", &[a.address]).await;
    let protocols = "realtime, openai-insecure-api-key.token, openai-beta.realtime-v1";
    let headers = [("sec-websocket-protocol", protocols), ("origin", "https://app.example.com")];
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (_client, response) =
        soon(client_async(asking(&gateway, "/v1/realtime?model=m", &headers), stream)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "realtime");
    assert_eq!(response.headers()["x-fusebox-provider"], "a");
    drop(a.session().await);
    assert_eq!(a.last().headers()["sec-websocket-protocol"], "realtime, openai-beta.realtime-v1");
    assert!(!a.last().headers().contains_key("origin"));
    let wrong = [("sec-websocket-protocol", "realtime, openai-insecure-api-key.wrong")];
    assert_eq!(open_at(&gateway, "/v1/realtime?model=m", &wrong).await.unwrap_err().0, 401);
}

#[tokio::test]
async fn without_tokens_only_pages_of_the_gateways_own_host_or_of_allowed_origins_open_sessions() {
    let mut a = Peer::start().await;
    let gateway = gateway("cors = { origins = ['https://good.example'] }", "", &[a.address]).await;
    let own = format!("http://{}", gateway.address);
    for (origin, is_allowed) in
        [("https://evil.example", false), ("null", false), ("https://good.example", true), (&own, true)]
    {
        let opened = open_at(&gateway, "/v1/realtime?model=m", &[("origin", origin)]).await;
        match opened {
            Ok(_) if is_allowed => drop(a.session().await),
            Err((403, body)) if !is_allowed => assert_eq!(body["error"]["code"], "origin_not_allowed"),
            other => panic!("{origin}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_providers_close_reaches_the_client_with_its_code_and_is_judged_by_it() {
    let mut a = Peer::start().await;
    let gateway = gateway("", "", &[a.address]).await;
    let mut ended = 0;
    let mut end = async |code: u16, reason: &str| {
        let mut client = open(&gateway).await;
        let mut provider = a.session().await;
        say(&mut provider, "hello").await;
        hears(&mut client, "hello").await;
        provider.send(frame(code, reason)).await.unwrap();
        assert_eq!(closed(&mut client).await, (code, reason.to_owned()));
        drop(provider);
        ended += 1;
        gateway.log(ended).await;
    };
    end(1011, "broken").await;
    gateway.until(|gateway| circuit(gateway, "a").failure_count() == 1).await;
    end(1000, "done").await;
    gateway.until(|gateway| circuit(gateway, "a").failure_count() == 0).await;
    end(4321, "my own").await;
    end(1008, "no").await;
    end(1012, "restart").await;
    end(1011, "broken again").await;
    gateway.until(|gateway| circuit(gateway, "a").state() == CircuitState::Open).await;
    let log = gateway.log(6).await;
    let outcomes: Vec<_> = log.iter().map(|line| line["attempts"][0]["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["cut", "ok", "4xx", "4xx", "cut", "cut"]);
    assert_eq!((&log[0]["end"], &log[2]["end"]), (&json!("cut"), &json!("complete")));
}

#[tokio::test]
async fn a_key_that_is_refused_in_the_session_is_out() {
    let mut a = Peer::start().await;
    let gateway = gateway("", "", &[a.address]).await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    provider.send(frame(3000, "invalid_request_error.invalid_api_key")).await.unwrap();
    assert_eq!(closed(&mut client).await.0, 3000);
    gateway.until(|gateway| gateway.own_breaker("a").state() == CircuitState::Open).await;
}

#[tokio::test]
async fn a_provider_that_breaks_off_or_falls_silent_is_told_to_the_client_and_blamed() {
    let mut a = Peer::start().await;
    let gateway = gateway("", "[timeouts]\nidle = '200ms'", &[a.address]).await;
    let mut client = open(&gateway).await;
    drop(a.session().await);
    assert_eq!(closed(&mut client).await, (1011, "The provider broke off.".to_owned()));
    gateway.until(|gateway| circuit(gateway, "a").failure_count() == 1).await;
    let mut client = open(&gateway).await;
    // Nobody reads it, so that nobody answers pings.
    let _silent = a.session().await;
    assert_eq!(closed(&mut client).await, (1011, "The provider fell silent.".to_owned()));
    gateway.until(|gateway| circuit(gateway, "a").state() == CircuitState::Open).await;
    let outcome = |line: &Value| line["attempts"][0]["outcome"].clone();
    let log = gateway.log(2).await;
    assert_eq!((outcome(&log[0]), outcome(&log[1])), (json!("cut"), json!("idle_timeout")));
}

#[tokio::test]
async fn a_quiet_session_whose_sides_answer_pings_goes_on() {
    let mut a = Peer::start().await;
    let gateway = gateway("write_timeout = '150ms'", "[timeouts]\nidle = '150ms'", &[a.address]).await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    // Each reads, and so answers pings, until both were pinged several times.
    let pinged = async |socket: &mut Socket| {
        for _ in 0..6 {
            assert!(matches!(soon(socket.next()).await, Some(Ok(Message::Ping(_)))));
        }
    };
    tokio::join!(pinged(&mut client), pinged(&mut provider));
    say(&mut client, "still here").await;
    hears(&mut provider, "still here").await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_session_and_blames_nobody() {
    let mut a = Peer::start().await;
    let gateway = gateway("write_timeout = '200ms'", "", &[a.address]).await;
    let client = open(&gateway).await;
    let mut provider = a.session().await;
    drop(client);
    assert_eq!(closed(&mut provider).await.0, 1001);
    let _silent = open(&gateway).await;
    assert_eq!(closed(&mut a.session().await).await.0, 1001);
    let log = gateway.log(2).await;
    for line in &log {
        assert_eq!((&line["end"], &line["attempts"][0]["outcome"]), (&json!("client_left"), &json!("client_left")));
    }
    assert_eq!(circuit(&gateway, "a").failure_count(), 0);
}

#[tokio::test]
async fn a_message_that_is_too_long_or_invalid_ends_the_session_with_the_code_for_it() {
    let mut a = Peer::start().await;
    let gateway = gateway("max_message_bytes = 2000", "", &[a.address]).await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    say(&mut client, &"x".repeat(2000)).await;
    hears(&mut provider, &"x".repeat(2000)).await;
    say(&mut client, &"x".repeat(2001)).await;
    assert_eq!(closed(&mut client).await, (1009, "The message is too long.".to_owned()));
    assert_eq!(closed(&mut provider).await.0, 1001);
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    // A frame that is not masked, which no client may send.
    client.get_mut().write_all(&[0x81, 2, b'h', b'i']).await.unwrap();
    assert_eq!(closed(&mut client).await.0, 1002);
    assert_eq!(closed(&mut provider).await.0, 1001);
}

#[tokio::test]
async fn a_gateway_that_drains_closes_sessions_once_they_are_quiet() {
    let mut a = Peer::start().await;
    let mut gateway = gateway("", "", &[a.address]).await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    say(&mut provider, "hello").await;
    hears(&mut client, "hello").await;
    gateway.stop();
    let (client, provider) = tokio::join!(closed(&mut client), closed(&mut provider));
    assert_eq!(client, (1001, "The gateway is going down.".to_owned()));
    assert_eq!(provider.0, 1001);
    soon(&mut gateway.server).await.unwrap();
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "ok");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_session_that_never_is_quiet() {
    let mut a = Peer::start().await;
    let mut gateway = gateway("drain_limit = '1500ms'", "", &[a.address]).await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    gateway.stop();
    let talking = tokio::spawn(async move {
        while provider.send(Message::Text("hello".into())).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(closed(&mut client).await.0, 1001);
    soon(&mut gateway.server).await.unwrap();
    talking.abort();
}

#[tokio::test]
async fn a_session_for_responses_is_routed_by_the_model_of_its_first_message() {
    let (a, mut b) = (Provider::with_status(500).await, Peer::start().await);
    let gateway = gateway("", "", &[a.address, b.address]).await;
    let mut client = open_at(&gateway, "/v1/responses", &[]).await.unwrap();
    say(&mut client, r#"{"type":"response.create","model":"m","input":"hi"}"#).await;
    let mut provider = b.session().await;
    hears(&mut provider, r#"{"type":"response.create","model":"there","input":"hi"}"#).await;
    say(&mut client, r#"{"type":"response.create","model":"only-b","input":"hi"}"#).await;
    hears(&mut provider, r#"{"type":"response.create","model":"only-b","input":"hi"}"#).await;
    say(&mut provider, "{}").await;
    hears(&mut client, "{}").await;
    assert_eq!((a.hits(), b.last().uri().to_string()), (1, "/base/v1/responses".to_owned()));
    say(&mut client, r#"{"type":"response.create","model":"only-a"}"#).await;
    assert_eq!(closed(&mut client).await.0, 1008);
    assert_eq!(gateway.log(1).await[0]["model"], "m");
}

#[tokio::test]
async fn a_session_for_responses_that_nobody_takes_ends_with_an_error_event() {
    let a = Provider::with_status(500).await;
    let gateway = gateway("", "", &[a.address]).await;
    for (first, status, code, close) in [
        (r#"{"model":"other"}"#, 404, "model_not_found", 1008),
        (r#"{"input":"x"}"#, 400, "invalid_model", 1008),
        ("no JSON", 400, "invalid_model", 1008),
    ] {
        let mut client = open_at(&gateway, "/v1/responses", &[]).await.unwrap();
        say(&mut client, first).await;
        let Some(Message::Text(event)) = next(&mut client).await else { panic!("no event") };
        let event: Value = serde_json::from_str(&event).unwrap();
        assert_eq!((&event["type"], &event["status"]), (&json!("error"), &json!(status)), "{event}");
        assert_eq!(event["error"]["code"], code);
        assert_eq!(closed(&mut client).await.0, close);
    }
    let mut client = open_at(&gateway, "/v1/responses", &[]).await.unwrap();
    say(&mut client, r#"{"model":"m"}"#).await;
    assert_eq!(closed(&mut client).await.0, 1013);
}

#[tokio::test]
async fn a_probe_succeeds_with_the_providers_first_message_unless_sessions_have_broken_off() {
    let mut a = Peer::start().await;
    let gateway = gateway("", "", &[a.address]).await;
    let breaker = circuit(&gateway, "a");
    let reopen = async || {
        breaker.trip_for(Duration::from_millis(20), "test", "it is tripped");
        gateway.until(|_| breaker.would_allow()).await;
    };
    reopen().await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    assert_eq!(breaker.state(), CircuitState::HalfOpen);
    say(&mut provider, "hello").await;
    hears(&mut client, "hello").await;
    gateway.until(|_| breaker.state() == CircuitState::Closed).await;
    drop(provider);
    assert_eq!(closed(&mut client).await.0, 1011);
    gateway.until(|_| breaker.failure_count() == 1).await;

    reopen().await;
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    say(&mut provider, "hello").await;
    hears(&mut client, "hello").await;
    assert_eq!(breaker.state(), CircuitState::HalfOpen, "it may break off again");
    client.close(None).await.unwrap();
    assert_eq!(closed(&mut provider).await.0, 1005);
    gateway.until(|_| breaker.state() == CircuitState::Closed).await;
}

#[tokio::test]
async fn a_probe_of_a_session_in_which_the_provider_waits_succeeds_after_a_while() {
    let mut a = Peer::start().await;
    let gateway = gateway("", "[timeouts]\nfirst_byte = '100ms'", &[a.address]).await;
    let breaker = circuit(&gateway, "a");
    breaker.trip_for(Duration::from_millis(20), "test", "it is tripped");
    gateway.until(|_| breaker.would_allow()).await;
    let _client = open(&gateway).await;
    let _provider = a.session().await;
    gateway.until(|_| breaker.state() == CircuitState::Closed).await;
}

#[tokio::test]
async fn a_session_for_responses_waits_for_its_first_message_as_long_as_its_client_is_there() {
    let mut b = Peer::start().await;
    let gateway = gateway("write_timeout = '150ms'", "", &[b.address]).await;
    let mut client = open_at(&gateway, "/v1/responses", &[]).await.unwrap();
    for _ in 0..6 {
        assert!(matches!(soon(client.next()).await, Some(Ok(Message::Ping(_)))));
    }
    say(&mut client, r#"{"model":"m"}"#).await;
    hears(&mut b.session().await, r#"{"model":"there"}"#).await;
}

#[tokio::test]
async fn a_session_for_responses_whose_query_names_the_model_has_it_renamed_in_messages_as_well() {
    let mut a = Peer::start().await;
    let gateway = gateway("", "", &[a.address]).await;
    let mut client = open_at(&gateway, "/v1/responses?model=m", &[]).await.unwrap();
    let mut provider = a.session().await;
    assert_eq!(a.last().uri(), "/base/v1/responses?model=there");
    say(&mut client, r#"{"model":"m"}"#).await;
    hears(&mut provider, r#"{"model":"there"}"#).await;
}

#[tokio::test]
async fn a_client_that_offers_subprotocols_gets_one_before_a_provider_is_asked() {
    let a = Peer::start().await;
    let gateway = gateway("auth_tokens = ['token']", "", &[a.address]).await;
    let headers = [("sec-websocket-protocol", "openai-insecure-api-key.token, first, second")];
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let (_client, response) = soon(client_async(asking(&gateway, "/v1/responses", &headers), stream)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "first");
}

#[tokio::test]
async fn the_router_serves_sessions_in_any_server() {
    let mut a = Peer::start().await;
    let mut gateway = gateway("", "", &[a.address]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    gateway.address = listener.local_addr().unwrap();
    let router = fusebox::proxy::create_router(Arc::clone(&gateway.state));
    tokio::spawn(axum::serve(listener, router).into_future());
    let mut client = open(&gateway).await;
    let mut provider = a.session().await;
    say(&mut client, "up").await;
    hears(&mut provider, "up").await;
    say(&mut provider, "down").await;
    hears(&mut client, "down").await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_first_message() {
    let b = Peer::start().await;
    let mut gateway = gateway("", "", &[b.address]).await;
    let mut client = open_at(&gateway, "/v1/responses", &[]).await.unwrap();
    gateway.stop();
    assert_eq!(closed(&mut client).await.0, 1001);
    soon(&mut gateway.server).await.unwrap();
}
