//! HTTP/1 byte by byte, on both sides: what a well-kept proxy gets right.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::raw::{Act, OK, Raw, gateway, head_length, message_length, post, provider, text, until_metrics};
use crate::support::{CHAT, Gateway, Provider, answer, hang, nobody, soon, streamed};

#[tokio::test]
async fn interim_answers_are_skipped() {
    let (gateway, _) = gateway(|_| {
        Act::Send(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        )
    })
    .await;
    for _ in 0..2 {
        let answer = gateway.ask().await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let (gateway, _) = gateway(|_| Act::Send(OK)).await;
    let mut client = Raw::new(&gateway).await;
    client
        .send(&format!(
            "POST /v1/x HTTP/1.1\r\nhost: g\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            CHAT.len()
        ))
        .await;
    assert_eq!(client.answer().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send(CHAT).await;
    assert!(client.answer().await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_and_the_connection_goes_on() {
    let (gateway, _) = gateway(|_| Act::Send(OK)).await;
    let mut client = Raw::new(&gateway).await;
    for path in ["/v1/models", "/v1/models/m", "/health", "/ready"] {
        client.send(&format!("HEAD {path} HTTP/1.1\r\nhost: g\r\n\r\n")).await;
        let answer = client.answer_of(head_length).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("content-length: "), "{answer}");
    }
    client.send(&post("", CHAT)).await;
    assert!(client.answer().await.ends_with("\r\n\r\nok"));
}

#[tokio::test]
async fn after_an_answer_without_a_body_both_connections_can_be_reused() {
    let (gateway, seen) = gateway(|n| Act::Send(["HTTP/1.1 204 No Content\r\n\r\n", OK][n % 2])).await;
    let mut client = Raw::new(&gateway).await;
    for status in ["204", "200", "204", "200"] {
        client.send(&post("", CHAT)).await;
        let answer = client.answer_of(if status == "200" { message_length } else { head_length }).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    assert_eq!(seen.lock().iter().map(Vec::len).collect::<Vec<_>>(), [4], "requests by connection");
}

#[tokio::test]
async fn a_request_whose_reused_connection_closes_after_the_provider_has_worked_on_it_is_not_sent_there_again() {
    for (after, hits, status, outcome) in [(Duration::ZERO, 2, 200, "ok"), (Duration::from_millis(600), 1, 502, "cut")]
    {
        let act = move |n| if n == 1 { Act::CloseAfter(after) } else { Act::Send(OK) };
        let (gateway, seen) = gateway(act).await;
        let mut client = Raw::new(&gateway).await;
        client.send(&post("", CHAT)).await;
        assert!(client.answer().await.ends_with("ok"));
        // The connection is put back a moment after its answer.
        gateway.log(1).await;
        client.send(&post("", CHAT)).await;
        assert!(client.answer().await.starts_with(&format!("HTTP/1.1 {status}")), "{after:?}");
        let connections: Vec<_> = seen.lock().iter().map(Vec::len).collect();
        assert_eq!((connections[0], connections.iter().sum::<usize>()), (2, 1 + hits), "{after:?}");
        assert_eq!(gateway.log(2).await[1]["attempts"][0]["outcome"], outcome);
    }
}

#[tokio::test]
async fn a_connection_is_not_reused_after_either_side_says_close() {
    const CLOSE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    let (gateway, seen) = gateway(|n| if n == 0 { Act::SendAndClose(CLOSE) } else { Act::Send(OK) }).await;
    let mut client = Raw::new(&gateway).await;
    for _ in 0..3 {
        client.send(&post("", CHAT)).await;
        let answer = client.answer().await;
        assert!(answer.ends_with("\r\n\r\nok") && !answer.contains("connection:"), "{answer}");
    }
    assert_eq!(seen.lock().iter().map(Vec::len).collect::<Vec<_>>(), [1, 2], "requests by connection");
    client.send(&post("connection: close\r\n", CHAT)).await;
    let answer = client.rest().await;
    assert!(answer.ends_with("\r\n\r\nok") && answer.contains("connection: close"), "{answer}");
    assert_eq!(seen.lock()[1].len(), 3, "the client's wish is not the provider's");
    assert!(!seen.lock()[1][2].contains("close"), "{:?}", seen.lock()[1][2]);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_an_answer_that_ends_with_the_connection_unless_it_asks_otherwise() {
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                   9\r\ndata: 1\n\n\r\n0\r\n\r\n";
    let (gateway, _) = gateway(move |n| Act::Send(if n == 0 { OK } else { chunked })).await;
    let old = |extra: &str| post(extra, CHAT).replace("HTTP/1.1", "HTTP/1.0");
    let mut client = Raw::new(&gateway).await;
    client.send(&old("connection: keep-alive\r\n")).await;
    assert!(client.answer().await.ends_with("\r\n\r\nok"));
    client.send(&old("")).await;
    let answer = client.rest().await;
    assert!(answer.ends_with("\r\n\r\ndata: 1\n\n") && !answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn bodies_of_known_length_have_a_length_and_others_have_chunks_in_both_directions() {
    let stream =
        "HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let whole = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    let (address, seen) = provider(move |n| Act::Send([stream, whole, OK][n.min(2)])).await;
    let gateway = Gateway::over(&[address], "cores = 1\nreplay_body_bytes = 1024", "", "").await;
    let mut client = Raw::new(&gateway).await;
    let chunks = format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", CHAT.len());
    let chunked =
        |chunks: &str| format!("POST /v1/x HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    client.send(&chunked(&chunks)).await;
    assert!(client.answer().await.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
    client.send(&chunked(&chunks)).await;
    let answer = client.answer().await;
    assert!(answer.ends_with("\r\n\r\nhello") && answer.contains("content-length: 5"), "{answer}");
    let long = format!("{}{}", CHAT.trim_end_matches('}'), format_args!(",\"x\":\"{}\"}}", "x".repeat(5000)));
    client.send(&chunked(&format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()))).await;
    client.answer().await;
    client.send(&post("", &long)).await;
    client.answer().await;

    let seen = seen.lock().concat();
    for (request, length) in seen.iter().zip([Some(CHAT.len()), Some(CHAT.len()), None, Some(long.len())]) {
        let length = length.map(|length| format!("content-length: {length}\r\n"));
        assert_eq!(length.is_none(), request.contains("transfer-encoding: chunked"), "{request:.300}");
        assert!(length.is_none_or(|length| request.contains(&length)), "{request:.300}");
    }
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn trailers_harm_nobody() {
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n\
                  9\r\ndata: 1\n\n\r\n0\r\nx-t: 1\r\n\r\n";
    let whole = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nok\r\n0\r\nx-t: 1\r\n\r\n";
    let (gateway, seen) = gateway(move |n| Act::Send([stream, whole][n % 2])).await;
    let mut client = Raw::new(&gateway).await;
    let request = format!(
        "POST /v1/x HTTP/1.1\r\nhost: g\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-c\r\n\r\n\
         {:x}\r\n{CHAT}\r\n0\r\nx-c: 1\r\n\r\n",
        CHAT.len()
    );
    for _ in 0..2 {
        client.send(&request).await;
        let answer = client.answer().await;
        assert!(answer.contains("data: 1\n\n\r\n0\r\n"), "{answer}");
        client.send(&request).await;
        let answer = client.answer().await;
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    assert_eq!(seen.lock().iter().map(Vec::len).collect::<Vec<_>>(), [4], "requests by connection");
    assert!(seen.lock()[0].iter().all(|request| !request.contains("x-c") && !request.contains("te:")));
    for (n, line) in gateway.log(4).await.iter().enumerate() {
        // The streams have no event that marks their end.
        let outcome = if n % 2 == 0 { "unmarked" } else { "ok" };
        assert_eq!((&line["attempts"][0]["outcome"], &line["end"]), (&outcome.into(), &"complete".into()), "{line}");
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_whole_body_was_sent_is_passed_on() {
    let early = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nlate";
    let (address, _) = provider(move |_| Act::SendEarly(early)).await;
    let gateway = Gateway::over(&[address], "replay_body_bytes = 1024", "", "").await;
    let mut client = Raw::new(&gateway).await;
    let head = format!(
        "POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 1000000\r\n\r\n{{\"model\":\"m\",\"x\":\"{}",
        "x".repeat(5000)
    );
    client.send(&head).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.ends_with("late"), "{answer}");
    assert!(answer.contains("connection: close"), "the body is still to come: {answer}");
    assert_eq!(gateway.failures_of("a"), 0);
}

#[tokio::test]
async fn a_provider_may_close_its_side_after_a_whole_answer_and_not_before() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok";
    let (gateway, seen) = gateway(move |n| Act::SendAndHalfClose(if n < 2 { OK } else { half })).await;
    for _ in 0..2 {
        assert_eq!(gateway.ask().await.status, 200);
    }
    assert_eq!(gateway.failures_of("a"), 0);
    assert_eq!(gateway.ask().await.status, 502);
    assert_eq!(gateway.failures_of("a"), 1);
    assert_eq!(seen.lock().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1], "requests by connection");
}

#[tokio::test]
async fn garbage_is_the_providers_failure_and_the_next_provider_answers() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 999999 OK\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        let (bad, _) = provider(move |_| Act::SendAndClose(garbage)).await;
        let (good, _) = provider(|_| Act::Send(OK)).await;
        let alone = Gateway::over(&[bad], "", "", "").await;
        assert_eq!(alone.ask().await.status, 502, "{garbage:?}");
        assert_eq!(alone.failures_of("a"), 1, "{garbage:?}");
        let both = Gateway::over(&[bad, good], "", "", "").await;
        assert_eq!((both.ask().await.status, both.failures_of("a")), (200, 1), "{garbage:?}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (gateway, seen) = gateway(|n| {
        Act::Send(
            ["HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo", OK]
                [n],
        )
    })
    .await;
    let mut client = Raw::new(&gateway).await;
    client.send(&(post("x-n: 1\r\n", CHAT) + &post("x-n: 2\r\n", CHAT) + &post("x-n: 3\r\n", CHAT))).await;
    for end in ["one", "two", "ok"] {
        assert!(client.answer().await.ends_with(end));
    }
    let seen = seen.lock().concat();
    assert!(seen.iter().zip(["x-n: 1", "x-n: 2", "x-n: 3"]).all(|(request, n)| request.contains(n)), "{seen:?}");
}

/// A request that two servers read differently can hide another one. What leaves the gateway is written anew and has
/// one reading, so nothing gets through; and a client that sends such a thing is not listened to any further.
#[tokio::test]
async fn a_request_with_two_lengths_smuggles_no_second_request() {
    let hidden = "POST /v1/hidden HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n";
    let chunks = format!("{:x}\r\n{CHAT}\r\n0\r\n\r\n", CHAT.len());
    let with = |headers: &str, body: &str| format!("POST /v1/x HTTP/1.1\r\nhost: g\r\n{headers}\r\n{body}{hidden}");
    let length = CHAT.len();
    let refused = [
        with(&format!("content-length: {length}\r\ncontent-length: 1\r\n"), CHAT),
        with(&format!("content-length: {length}, 1\r\n"), CHAT),
        with(&format!("content-length: +{length}\r\n"), CHAT),
        with(&format!("content-length: {length}\r\nx-folded: a\r\n b\r\n"), CHAT),
        with(&format!("content-length : {length}\r\n"), CHAT),
        with("transfer-encoding: xchunked\r\n", &chunks),
        with("transfer-encoding: chunked, identity\r\n", &chunks),
        with("transfer-encoding: gzip, chunked\r\n", &chunks),
        with("transfer-encoding: chunked\r\n", &chunks.replacen("\r\n", "\n", 1)),
        with("transfer-encoding: chunked\r\n", &chunks.replacen("\r\n", ";\n\r\n", 1)),
        with("transfer-encoding: chunked\r\n", &format!("-{chunks}")),
        with(&format!("content-length: {length}\r\n"), CHAT).replacen("HTTP/1.1", "HTTP/1.1\0", 1),
        with(&format!("content-length: {length}\r\nx-\0: a\r\n"), CHAT),
        with("transfer-encoding: chunked\r\n", &chunks).replacen("HTTP/1.1", "HTTP/1.0", 1),
    ];
    for request in refused {
        let (gateway, seen) = gateway(|_| Act::Send(OK)).await;
        let mut client = Raw::new(&gateway).await;
        client.send(&request).await;
        let answer = client.rest().await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 501"),
            "{request} {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count(), usize::from(!answer.is_empty()), "{answer}");
        assert!(seen.lock().concat().is_empty(), "{request}");
    }
    // RFC 9112 section 6.1: chunks count, and the connection is closed after the answer.
    for headers in
        ["content-length: 3\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked\r\ncontent-length: 3\r\n"]
    {
        let (gateway, seen) = gateway(|_| Act::Send(OK)).await;
        let mut client = Raw::new(&gateway).await;
        client.send(&with(headers, &chunks)).await;
        let answer = client.rest().await;
        assert!(answer.ends_with("\r\n\r\nok") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
        let seen = seen.lock().concat();
        assert!(seen.len() == 1 && seen[0].ends_with(CHAT) && !seen[0].contains("chunked"), "{seen:?}");
    }
    // RFC 9112 section 2.2 lets a lone LF end a line; it is written as CRLF.
    let (gateway, seen) = gateway(|_| Act::Send(OK)).await;
    let mut client = Raw::new(&gateway).await;
    client.send(&format!("POST /v1/x HTTP/1.1\nhost: g\nx-a: b\ncontent-length: {length}\n\n{CHAT}")).await;
    assert!(client.answer().await.ends_with("\r\n\r\nok"));
    assert!(seen.lock()[0][0].contains("x-a: b\r\n"), "{:?}", seen.lock());
}

#[tokio::test]
async fn a_client_that_leaves_at_any_time_blames_no_provider() {
    let (mut sender, stream) = streamed();
    let answers = Mutex::new(vec![stream].into_iter());
    let a = Provider::start(move |n| if n == 2 { answers.lock().next().unwrap() } else { hang() }).await;
    let mut gateway = Gateway::start(&[&a], "replay_body_bytes = 1024", "failure_threshold = 1", "").await;
    let whole = post("", CHAT);
    let long = format!(
        "POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 100000\r\n\r\n{{\"model\":\"m\",\"x\":\"{}",
        "x".repeat(5000)
    );
    // In the middle of the head, after it, within the body: no provider is asked.
    for part in [10, 60, whole.len() - 5] {
        Raw::new(&gateway).await.send(&whole[..part]).await;
    }
    // While the provider has not answered; while its own body is passed on.
    for (request, hits) in [(&whole, 1), (&long, 1), (&whole, 2)] {
        let mut client = Raw::new(&gateway).await;
        client.send(request).await;
        if request != &long {
            gateway.until(|_| a.hits() == hits).await;
        }
    }
    // In the middle of a stream.
    let mut client = Raw::new(&gateway).await;
    client.send(&whole).await;
    sender.send_data("data: 1\n\n".into()).await.unwrap();
    client.answer_of(|read| head_length(read).map(|head| head + 10)).await;
    drop(client);
    soon(async {
        while sender.send_data("data: more\n\n".into()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let is_quiet = |metrics: &str| {
        ["fusebox_client_connections 0", "fusebox_requests_in_flight 0", "fusebox_attempts_in_flight{provider=\"a\"} 0"]
            .iter()
            .all(|line| metrics.lines().any(|other| other == *line))
    };
    until_metrics(&mut gateway, is_quiet).await;
    let snapshot = gateway.snapshot("a");
    assert_eq!((snapshot.state.as_str(), snapshot.failure_count), ("closed", 0));
}

#[tokio::test]
async fn slow_clients_are_closed_and_counted_and_do_not_disturb_others() {
    let a = Provider::start(|n| {
        if n > 0 {
            return answer(200);
        }
        // More than all buffers on the way.
        http::Response::builder()
            .header("content-type", "audio/mpeg")
            .body(axum::body::Body::from(vec![b'x'; 50_000_000]))
            .unwrap()
    })
    .await;
    let limits = "cores = 1\nheader_timeout = '100ms'\nbody_timeout = '200ms'\nwrite_timeout = '100ms'";
    let mut gateway = Gateway::start(&[&a], limits, "failure_threshold = 1", "").await;
    // A client that does not read.
    let mut deaf = Raw::new(&gateway).await;
    deaf.send(&post("", CHAT)).await;
    // A byte now and then, in the head and in the body.
    let mut slow_head = Raw::new(&gateway).await;
    slow_head.send("POST /v1/x HTTP/1.1\r\n").await;
    let mut slow_body = Raw::new(&gateway).await;
    slow_body.send("POST /v1/x HTTP/1.1\r\nhost: g\r\ncontent-length: 100000\r\n\r\n{").await;
    let dripping = tokio::spawn(async move {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
        while slow_body.stream.write_all(b" ").await.is_ok() {
            tick.tick().await;
            let mut answer = [0; 12];
            if let Ok(12) = slow_body.stream.try_read(&mut answer) {
                return text(&answer);
            }
        }
        panic!("closed without an answer");
    });
    assert_eq!(slow_head.rest().await, "");
    assert_eq!(dripping.await.unwrap(), "HTTP/1.1 408");
    until_metrics(&mut gateway, |metrics| {
        ["header_timeout", "write_timeout"]
            .iter()
            .all(|reason| metrics.contains(&format!("fusebox_client_connections_cut_total{{reason=\"{reason}\"}} 1")))
    })
    .await;
    assert_eq!(gateway.ask().await.status, 200);
    assert_eq!(gateway.trips("a"), 0);
}

#[tokio::test]
async fn a_malformed_request_is_refused_and_counted() {
    let (mut gateway, seen) = gateway(|_| Act::Send(OK)).await;
    for (request, status) in [
        ("GARBAGE\r\n\r\n", "400"),
        ("GET\r\n\r\n", "400"),
        ("GET / HTTP/3.7\r\n\r\n", "400"),
        ("POST /v1/x HTTP/1.1\r\nbad header\r\n\r\n", "400"),
    ] {
        let mut client = Raw::new(&gateway).await;
        client.send(request).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request} {answer}");
    }
    let mut client = Raw::new(&gateway).await;
    client.send(&format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(100_000))).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 431"));
    drop(client);
    // A connection is over once its client has had the time to read the answer.
    let lines = ["{reason=\"malformed\"} 4", "{reason=\"headers_too_large\"} 1", "{reason=\"header_timeout\"} 0"];
    let lines = lines.map(|line| format!("fusebox_client_connections_cut_total{line}"));
    until_metrics(&mut gateway, |metrics| lines.iter().all(|line| metrics.contains(line))).await;
    assert!(seen.lock().is_empty());
}

#[tokio::test]
async fn every_address_of_a_host_is_tried() {
    // `localhost` is both of them, where there is IPv6.
    let known: Vec<_> = tokio::net::lookup_host("localhost:0").await.unwrap().collect();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        if !known.contains(&address.parse().unwrap()) {
            println!("SKIPPED: localhost is not {address} here");
            continue;
        }
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let a = Provider::start_on(&address.replace(":0", &format!(":{port}")), |_| answer(200)).await;
        let text = format!("[[providers]]\nname = 'a'\nurl = 'http://localhost:{port}/v1'\nmodels = ['m']");
        let gateway = Gateway::from_config(&fusebox::proxy::GatewayConfig::from_toml(&text).unwrap()).await;
        assert_eq!((gateway.ask().await.status, a.hits()), (200, 1), "{address}");
    }
    let text =
        format!("[[providers]]\nname = 'a'\nurl = 'http://localhost:{}/v1'\nmodels = ['m']", nobody().await.port());
    let gateway = Gateway::from_config(&fusebox::proxy::GatewayConfig::from_toml(&text).unwrap()).await;
    assert_eq!(gateway.ask().await.status, 502);
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_judged_by_what_it_consists_of() {
    const STREAM: &str = r#"{"model": "m", "stream": true}"#;
    for (head, body, outcome) in [
        ("content-type: application/json\r\ncontent-encoding: gzip", "not to be read", "ok"),
        ("content-type: application/jsonl", "{\"a\":1}\n{\"b\":2}\n", "ok"),
        ("content-type: application/jsonl", "{\"a\":1}\n{\"b\":2}", "ok"),
        ("content-type: application/jsonl", "{\"a\":1}\n{\"b\"", "cut"),
        ("content-type: application/x-ndjson", "{\"a\":1}\n{\"b\"", "cut"),
        ("content-type: application/json; charset=utf-8", "{\"a\":1}", "ok"),
        ("content-type: application/json", "{\"a\":", "cut"),
        ("content-type: text/plain", "{\"a\":", "ok"),
    ] {
        for asked in [CHAT, STREAM] {
            let answer: &'static str = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{head}\r\n\r\n{body}").leak();
            let (gateway, _) = gateway(move |_| Act::SendAndClose(answer)).await;
            let mut client = Raw::new(&gateway).await;
            client.send(&post("", asked)).await;
            let line = gateway.log(1).await.remove(0);
            assert_eq!(line["attempts"][0]["outcome"], outcome, "{head} {body} {asked}");
        }
    }
    let (gateway, _) = gateway(|_| Act::SendAndClose("HTTP/1.0 204 No Content\r\nconnection: close\r\n\r\n")).await;
    let mut client = Raw::new(&gateway).await;
    client.send(&post("", CHAT)).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "ok");
}
