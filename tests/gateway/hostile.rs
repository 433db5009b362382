//! Clients, providers and files that mean no good, or do none.

use std::process::Command;
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};

use crate::raw::{Act, OK, Raw, gateway, head_length, post};
use crate::support::{CHAT, DEADLINE, Gateway, Provider, TempFile, hang};

// ---- clients ----

#[tokio::test]
async fn the_length_of_a_path_is_checked_before_it_is_decoded_and_many_encodings_are_refused() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let path = |levels: usize| format!("/v1/%{}", "25".repeat(levels));
    assert_eq!(gateway.post(&path(32_000 / 2), CHAT).await.status, 414);
    assert_eq!(gateway.post(&path(4000), CHAT).await.status, 400);
    assert_eq!(gateway.post(&path(2), CHAT).await.status, 200);
    assert_eq!(a.hits(), 1);
}

#[tokio::test]
async fn a_request_has_exactly_one_host_or_none_before_http_1_1() {
    let (gateway, seen) = gateway(|_| Act::Send(OK)).await;
    let request = |version: &str, hosts: &str| {
        format!("POST /v1/x HTTP/{version}\r\n{hosts}content-length: {}\r\n\r\n{CHAT}", CHAT.len())
    };
    for (version, hosts, status) in [
        ("1.1", "host: g\r\nhost: g\r\n", "400"),
        ("1.1", "host: g\r\nHost: other\r\n", "400"),
        ("1.1", "", "400"),
        ("1.1", "host: a b\r\n", "400"),
        ("1.1", "host: g\r\n", "200"),
        ("1.1", "host: [::1]:80\r\n", "200"),
        ("1.0", "", "200"),
        ("1.0", "host: g\r\nhost: g\r\n", "400"),
    ] {
        let mut client = Raw::new(&gateway).await;
        client.send(&request(version, hosts)).await;
        let answer = client.answer().await;
        assert!(answer.contains(&format!(" {status} ")), "{version} {hosts} {answer}");
    }
    assert_eq!(seen.lock().iter().map(Vec::len).sum::<usize>(), 3);
}

#[tokio::test]
async fn a_client_that_leaves_after_sending_bytes_behind_its_request_is_noticed() {
    let a = Provider::start(|_| hang()).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    for behind in ["\r\n", "GET /v1/models HTTP/1.1\r\nhost: g\r\n\r\n", "x"] {
        let hits = a.hits();
        let mut client = Raw::new(&gateway).await;
        client.send(&(post("", CHAT) + behind)).await;
        gateway.until(|_| a.hits() > hits).await;
    }
    let lines = gateway.log(3).await;
    assert!(lines.iter().all(|line| line["end"] == "client_left"), "{lines:?}");
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn requests_that_are_pipelined_are_still_answered_in_their_order() {
    let (gateway, _) = gateway(|_| Act::Send(OK)).await;
    let mut client = Raw::new(&gateway).await;
    // More than is read ahead.
    let requests = 40;
    let many: String = (0..requests).map(|number| post(&format!("x-request-id: {number}\r\n"), CHAT)).collect();
    client.send(&many).await;
    for number in 0..requests {
        let answer = client.answer().await;
        assert!(answer.contains(&format!("x-request-id: {number}\r\n")), "{answer}");
    }
}

#[tokio::test]
async fn a_model_that_a_provider_could_read_differently_reaches_no_provider() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "replay_body_bytes = 1024", "", "").await;
    let long = format!(r#"{{"model":"m","Model":"other","x":"{}"}}"#, "x".repeat(5000));
    for body in [r#"{"model":"m","Model":"other"}"#, r#"{"model":"m","model":"other"}"#, &long] {
        assert_eq!(gateway.post("/v1/chat/completions", body).await.status, 400, "{body}");
    }
    let form = "--x\r\ncontent-disposition: form-data; NAME=\"model\"\r\n\r\nother\r\n--x--\r\n";
    for (kinds, body) in [
        (&["multipart/form-data; boundary=x"][..], form.to_owned()),
        (&["multipart/form-data; boundary=x"], form.replace("NAME=\"model\"", "name*=utf-8''model")),
        (&["multipart/form-data; boundary=x"], form.replace("\r\n", "\n")),
        (&["multipart/form-data; boundary=x", "application/json"], form.to_owned()),
    ] {
        let mut request = Request::post(format!("http://{}/v1/audio/transcriptions", gateway.address));
        for kind in kinds {
            request = request.header("content-type", *kind);
        }
        let response = gateway.send(request.body(Full::from(body.clone())).unwrap()).await;
        // The first request is unambiguous, and asks for an unknown model.
        assert!(matches!(response.status().as_u16(), 400 | 404), "{kinds:?} {body}");
    }
    assert_eq!(a.hits(), 0);
}

#[tokio::test]
async fn with_an_operators_port_its_pages_are_not_on_the_clients_port() {
    let a = Provider::with_status(200).await;
    let apart = Gateway::start(&[&a], "admin_listen = '127.0.0.1:1'", "", "").await;
    let together = Gateway::start(&[&a], "", "", "").await;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!((apart.get(path).await.status, together.get(path).await.status), (404, 200), "{path}");
    }
}

// ---- providers ----

#[tokio::test]
async fn an_answer_with_two_lengths_reaches_the_client_with_one() {
    const TWICE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: chunked\r\ncontent-type: TYPE\r\n\r\n\
                         5\r\nhello\r\n33\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged answer\r\n0\r\n\r\n";
    for kind in ["application/json", "audio/wav"] {
        let bytes: &'static str = Box::leak(TWICE.replace("TYPE", kind).into_boxed_str());
        let (gateway, _) = gateway(move |n| if n == 0 { Act::Send(bytes) } else { Act::Send(OK) }).await;
        let mut client = Raw::new(&gateway).await;
        client.send(&post("", CHAT)).await;
        let answer = client.answer().await;
        let head = head_length(answer.as_bytes()).unwrap();
        assert!(!answer[..head].contains("content-length: 7"), "{answer}");
        assert!(answer.contains("forged answer"), "it is a part of the body: {answer}");
        // The next bytes on the connection are the next answer's, and not a rest of the one before.
        client.send(&post("", CHAT)).await;
        let next = client.answer().await;
        assert!(next.starts_with("HTTP/1.1 200 OK\r\n") && next.ends_with("ok"), "{next}");
    }
}

#[tokio::test]
async fn a_providers_key_is_removed_from_the_headers_of_its_answers() {
    let a = Provider::start(|_| {
        let response = Response::builder().header("x-echo", "Bearer provider-key!").header("x-other", "as it is");
        response.body(Body::from("{}")).unwrap()
    })
    .await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.header("x-echo"), answer.header("x-other")), ("Bearer ************!", "as it is"));
}

#[tokio::test]
async fn the_first_content_is_found_even_if_it_comes_byte_by_byte() {
    let (mut sender, response) = crate::support::streamed();
    let gateway = Gateway::answering(vec![response], "", "", "").await;
    let text = ": keep-alive\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
    let sending = async {
        for at in 0..text.len() {
            sender.send_data(Bytes::from_static(&text.as_bytes()[at..=at])).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(sender);
    };
    let (response, ()) = tokio::join!(gateway.begin(), sending);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text);
}

#[tokio::test]
async fn a_body_or_answer_for_which_there_is_no_room_is_passed_on_while_it_comes() {
    let (a, b) =
        (Provider::with_status(500).await, Provider::start(|_| Response::new(Body::from("x".repeat(700_000)))).await);
    let mut gateway = Gateway::start(&[&a, &b], "max_held_bytes = 1048576", "failure_threshold = 100", "").await;
    let body = |length: usize| format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(length));
    for (length, status, replay) in [(1000, 200, ""), (300_000, 200, ""), (900_000, 502, "no"), (300_000, 200, "")] {
        let answer = gateway.post("/v1/chat/completions", &body(length)).await;
        let status = if replay == "no" { 500 } else { status };
        assert_eq!((answer.status, answer.header("x-fusebox-replay")), (status, replay), "{length}");
        assert!(replay == "no" || answer.body.len() == 700_000);
    }
    let start = Instant::now();
    while !gateway.metrics().await.contains("\nfusebox_held_bytes 0\n") {
        assert!(start.elapsed() < DEADLINE, "what was held is given back");
    }
}

#[tokio::test]
async fn with_nothing_left_to_hold_small_requests_pass_and_one_whose_model_comes_late_gets_a_503() {
    let a = Provider::start(|_| hang()).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a, &b], "max_held_bytes = 1048576\nreplay_body_bytes = 2097152", "", "").await;
    // The requests that hang hold all the memory.
    let mut hanging = Vec::new();
    for _ in 0..2 {
        let hits = a.hits();
        let body = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(260_000));
        hanging.push(tokio::spawn(gateway.sending(gateway.request("/v1/chat/completions", &body))));
        gateway.until(|_| a.hits() > hits).await;
    }
    gateway.breaker("a").try_acquire().unwrap().failure("test", "");
    gateway.breaker("a").try_acquire().unwrap().failure("test", "");
    gateway.breaker("a").try_acquire().unwrap().failure("test", "");
    assert!(gateway.ask().await.is_by(&b));
    let late = format!(r#"{{"x":"{}","model":"m"}}"#, "x".repeat(600_000));
    let answer = gateway.post("/v1/chat/completions", &late).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("gateway_overloaded")));
    let early = format!(r#"{{"model":"m","x":"{}"}}"#, "x".repeat(600_000));
    let answer = gateway.post("/v1/chat/completions", &early).await;
    assert_eq!((answer.status, answer.header("x-fusebox-replay")), (200, "no"));
    for task in hanging {
        task.abort();
    }
}

// ---- operators' files ----

#[tokio::test]
async fn each_message_about_a_configuration_is_one_line_without_control_characters() {
    let text = "\"a\\nfusebox: all is well\\u001b[2J\" = 1\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:99999/v1'\n\
                models = [\"m\\u001b[2J\\n\"]";
    let file = TempFile::new("controls.toml", text);
    let check =
        || Command::new(env!("CARGO_BIN_EXE_fusebox")).args(["check", "--config"]).arg(&*file).output().unwrap();
    let output = check();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(r"a\nfusebox: all is well\u{1b}[2J is unknown"), "{said}");
    assert!(said.contains("expected a URL with a port from 1 to 65535, or without one"), "{said}");
    assert!(!said.contains('\u{1b}') && said.lines().count() == 3, "{said}");
    std::fs::write(&*file, text.split_once("[[").unwrap().1.replace("99999", "1").replacen("prov", "[[prov", 1))
        .unwrap();
    let output = check();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains(r"models     m\u{1b}[2J\n") && !said.contains('\u{1b}'), "{said}");
}

#[tokio::test]
async fn invalid_ports_are_refused() {
    for port in ["65536", "99999", "0", "", "080x"] {
        let text = format!("[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:{port}/v1'\nmodels = ['m']");
        assert!(fusebox::proxy::GatewayConfig::from_toml(&text).is_err(), "{port}");
    }
    for authority in ["a:65535", "[::1]", "[::1]:80", "a"] {
        let text = format!("[[providers]]\nname = 'a'\nurl = 'http://{authority}/v1'\nmodels = ['m']");
        assert!(fusebox::proxy::GatewayConfig::from_toml(&text).is_ok(), "{authority}");
    }
}
