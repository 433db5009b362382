//! Which providers are asked and blamed, and what the client gets.

use std::time::Duration;

use crate::support::{CHAT, Gateway, Provider, another, answer, hang, nobody, one_by_one, soon, streamed};

const FAST: &str = "timeouts = { first_byte = '100ms', total = '200ms' }";

#[tokio::test]
async fn a_5xx_fails_over_and_the_circuit_opens_at_the_threshold() {
    let (a, b) = (Provider::with_status(503).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    for _ in 0..5 {
        let answer = gateway.ask().await;
        assert!(answer.status == 200 && answer.is_by(&b));
    }
    assert_eq!((a.hits(), b.hits()), (3, 5));
    assert_eq!(gateway.state_of("a"), "open");
}

#[tokio::test]
async fn no_request_waits_long_for_the_body_of_an_error() {
    let (quiet, mut endless) = streamed();
    *endless.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    let (a, b) = (Provider::start(one_by_one(vec![endless])).await, Provider::with_status(200).await);
    // The timeouts of a whole answer are those of a test that failed.
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    assert!(gateway.ask().await.is_by(&b));
    assert_eq!(gateway.failures_of("a"), 1);
    drop(quiet);
}

#[tokio::test]
async fn a_refused_connection_fails_over() {
    let b = Provider::with_status(200).await;
    let gateway = Gateway::over(&[nobody().await, b.address], "", "", "").await;
    assert_eq!(gateway.ask().await.status, 200);
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn a_provider_that_hangs_before_its_headers_or_before_its_first_byte_fails_over() {
    let (quiet, headers_only) = streamed();
    let (first, second) = (parking_lot::Mutex::new(Some(headers_only)), hang);
    let a = Provider::start(move |n| if n == 0 { first.lock().take().unwrap() } else { second() }).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a, &b], "", "", FAST).await;
    for failures in 1..=2 {
        assert!(gateway.ask().await.is_by(&b));
        assert_eq!(gateway.failures_of("a"), failures);
    }
    drop(quiet);
}

#[tokio::test]
async fn an_answer_that_breaks_off_before_its_first_byte_fails_over() {
    let (sender, response) = streamed();
    sender.abort(std::io::Error::other("gone"));
    let (a, b) = (Provider::start(one_by_one(vec![response])).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    assert!(gateway.ask().await.is_by(&b));
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn an_unrequested_upgrade_is_the_providers_failure() {
    let (a, b) = (Provider::with_status(101).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    assert!(gateway.ask().await.is_by(&b));
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn a_4xx_is_the_clients_fault_and_neutral() {
    let a = Provider::start(|n| answer(if n < 2 { 500 } else { 400 })).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    gateway.ask().await;
    gateway.ask().await;
    for _ in 0..5 {
        let answer = gateway.ask().await;
        assert_eq!((answer.status, &answer.body[..]), (400, &b"{\"status\":400}"[..]));
        assert!(answer.is_by(&a));
    }
    assert_eq!(gateway.failures_of("a"), 2, "neither counted nor forgiven");
}

#[tokio::test]
async fn a_429_moves_on_and_takes_the_model_out_at_once_without_blame() {
    let (a, b) = (Provider::with_status(429).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    for _ in 0..5 {
        assert!(gateway.ask().await.is_by(&b));
    }
    assert_eq!((a.hits(), gateway.failures_of("a"), gateway.own_breaker("a").trip_count()), (1, 0, 0));
}

#[tokio::test]
async fn the_last_providers_own_answer_is_returned_when_no_other_provider_is_left() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(429).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, &answer.body[..]), (429, &b"{\"status\":429}"[..]));
    assert!(answer.is_by(&b));
}

#[tokio::test]
async fn when_every_provider_failed_the_client_gets_the_most_useful_answer() {
    for (statuses, expected, by) in [
        ([429, 404, 403], 429, "a"),
        ([404, 429, 500], 429, "b"),
        ([500, 404, 402], 500, "a"),
        ([503, 500, 404], 500, "b"),
        ([402, 403, 404], 404, "c"),
        ([404, 404, 401], 401, "none"),
    ] {
        let mut providers = Vec::new();
        for status in statuses {
            providers.push(Provider::with_status(status).await);
        }
        let gateway = Gateway::start(&providers.iter().collect::<Vec<_>>(), "", "", "").await;
        let answer = gateway.ask().await;
        assert_eq!((answer.status, answer.header("x-fusebox-provider")), (expected, by), "{statuses:?}");
        assert_eq!(answer.header("x-fusebox-attempts"), "3");
        for name in ["a", "b", "c"] {
            let blamed = statuses[usize::from(name.as_bytes()[0] - b'a')] >= 500;
            assert_eq!(gateway.failures_of(name), u32::from(blamed), "{statuses:?} {name}");
        }
    }
}

#[tokio::test]
async fn a_providers_error_about_the_gateways_key_reaches_no_client() {
    let quoting = |status: u16| {
        Provider::start(move |_| {
            let body = "{\"error\": {\"message\": \"Incorrect API key provided: provider-key\"}}";
            http::Response::builder().status(status).body(body.into()).unwrap()
        })
    };
    for status in [400, 401, 403, 404, 429, 500] {
        let a = quoting(status).await;
        let gateway = Gateway::start(&[&a], "", "", "").await;
        let answer = gateway.ask().await;
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(answer.status == status && !text.contains("provider-key"), "{text}");
        let shown = if status == 401 { "refused the request of the gateway" } else { "provided: ************" };
        assert!(text.contains(shown), "{text}");
    }
}

#[tokio::test]
async fn a_connection_that_is_not_made_in_time_is_a_connect_timeout() {
    // A listener whose backlog is full does not answer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut fillers = Vec::new();
    while let Ok(filler) =
        tokio::time::timeout(std::time::Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        fillers.push(filler.unwrap());
    }
    let b = Provider::with_status(200).await;
    let gateway = Gateway::over(&[address, b.address], "", "", "timeouts.connect = '50ms'").await;
    assert!(gateway.ask().await.is_by(&b));
    assert_eq!(gateway.log(1).await[0]["attempts"][0]["outcome"], "connect_timeout");
    assert_eq!(gateway.failures_of("a"), 1);
}

#[tokio::test]
async fn a_timeout_of_the_only_provider_is_a_504_and_a_refused_connection_a_502() {
    let a = Provider::start(|_| hang()).await;
    let gateway = Gateway::start(&[&a], "", "", FAST).await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (504, Some("provider_timeout")));

    let gateway = Gateway::over(&[nobody().await], "", "", "").await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (502, Some("provider_unreachable")));
}

#[tokio::test]
async fn when_every_circuit_is_open_the_answer_is_a_503_with_the_soonest_retry_after() {
    let a = Provider::with_status(500).await;
    let b = Provider::with_status(500).await;
    let refuse = "failure_threshold = 1\nopen_for = '20s'\n[failover]\nwhen_all_open = 'refuse'";
    let gateway = Gateway::start(&[&a, &b], "", refuse, "").await;
    assert_eq!(gateway.ask().await.status, 500);
    let answer = gateway.ask().await;
    assert_eq!(answer.status, 503);
    assert!((19..=20).contains(&answer.header("retry-after").parse().unwrap()), "{answer:?}");
    assert_eq!(answer.json()["error"]["type"], "server_error");
    assert_eq!((a.hits(), b.hits()), (1, 1), "nobody was asked again");
}

#[tokio::test]
async fn an_isolated_provider_is_not_asked_and_nobody_is_told_when_it_will_be() {
    let [a, b] = [Provider::with_status(200).await, Provider::with_status(200).await];
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    gateway.own_breaker("a").isolate("maintenance");
    let answer = gateway.ask().await;
    assert_eq!(answer.header("x-fusebox-provider"), "b", "{answer:?}");
    gateway.own_breaker("b").isolate("maintenance");
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("providers_unavailable")));
    assert!(!answer.headers.contains_key("retry-after"), "{answer:?}");
    let (status, health) = gateway.health().await;
    assert_eq!((status, health["providers"]["a"]["state"].as_str()), (503, Some("open")));

    gateway.own_breaker("a").disable();
    assert_eq!(gateway.ask().await.header("x-fusebox-provider"), "a");
    let (status, health) = gateway.health().await;
    assert_eq!((status, health["providers"]["a"]["state"].as_str()), (200, Some("disabled")));
    gateway.own_breaker("b").reset();
    assert_eq!(gateway.health().await.1["status"], "ok");
}

#[tokio::test]
async fn a_request_waits_for_its_turn_if_its_only_provider_is_just_back() {
    let provider = Provider::start(|n| answer(if n == 0 { 500 } else { 200 })).await;
    let gateway = Gateway::start(&[&provider], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    let breaker = gateway.breaker("a");
    let ramp = breaker.config().to_builder().ramp(Duration::from_millis(200)).ramp_from(1);
    breaker.set_config(ramp.build().unwrap());
    assert_eq!(gateway.ask().await.status, 500);
    gateway.reopens("a").await;
    for _ in 0..6 {
        assert_eq!(gateway.ask().await.status, 200);
    }
}

#[tokio::test]
async fn a_request_waits_for_a_probe_only_if_no_other_provider_can_answer() {
    let (mut probe, response) = streamed();
    let gateway =
        Gateway::answering(vec![answer(500), response, answer(200)], "", "failure_threshold = 1\nopen_for = '1ms'", "")
            .await;
    assert_eq!(gateway.ask().await.status, 500);
    gateway.reopens("a").await;

    let (first, second, ()) = tokio::join!(
        gateway.ask(),
        async {
            gateway.reaches("a", "half_open").await;
            gateway.ask().await
        },
        async {
            let breaker = gateway.breaker("a");
            gateway.until(|_| breaker.snapshot().waiters == 1).await;
            probe.send_data("data: 1\n\ndata: [DONE]\n\n".into()).await.unwrap();
            drop(probe);
        }
    );
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(gateway.state_of("a"), "closed");
}

#[tokio::test]
async fn a_request_passes_by_a_provider_whose_probe_is_in_flight() {
    let a = Provider::start(|n| if n == 0 { answer(500) } else { hang() }).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a, &b], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    gateway.ask().await;
    gateway.reopens("a").await;
    tokio::select! {
        _ = gateway.begin() => panic!("the probe hangs"),
        answer = async {
            gateway.reaches("a", "half_open").await;
            gateway.ask().await
        } => assert!(answer.is_by(&b) && a.hits() == 2),
    }
}

#[tokio::test]
async fn looking_at_a_candidate_does_not_use_up_its_probe() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "failure_threshold = 1\nopen_for = '1ms'", "").await;
    gateway.breaker("b").try_acquire().unwrap().failure("test", "");
    gateway.reopens("b").await;
    for _ in 0..3 {
        assert!(gateway.ask().await.is_by(&a));
    }
    assert_eq!(gateway.state_of("b"), "open", "a candidate that is not asked keeps its probe");
}

#[tokio::test]
async fn a_probe_that_is_answered_429_is_no_failed_probe_and_the_next_one_comes_after_the_cooldown() {
    let responses = vec![answer(500), answer(429), answer(200)];
    let once = "failure_threshold = 1\nopen_for = '1ms'\n[cooldown]\ndefault = '1ms'";
    let gateway = Gateway::answering(responses, "", once, "").await;
    gateway.ask().await;
    gateway.reopens("a").await;
    assert_eq!(gateway.ask().await.status, 429);
    assert_eq!(gateway.snapshot("a").failed_probe_count, 1, "it opened again");
    gateway.reopens("a").await;
    assert_eq!(gateway.ask().await.status, 200);
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn requests_that_all_learn_of_a_failed_probe_at_once_wait_for_the_one_that_becomes_the_next_probe() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let breaker = "failure_threshold = 1\nopen_for = '20s'";
    let gateway = Gateway::start(&[&a, &b], "cores = 4", breaker, "silence.enabled = false").await;
    let second = Duration::from_secs(1);
    for _ in 0..5 {
        let (of_a, of_b) = (gateway.breaker("a"), gateway.breaker("b"));
        for circuit in [&of_a, &of_b] {
            circuit.reset();
            circuit.try_acquire().unwrap().failure("5xx", "a test");
        }
        // Both may be probed early.
        gateway.until(|_| [&of_a, &of_b].iter().all(|it| it.early_probe_in(second).unwrap().is_zero())).await;
        let probe = of_a.try_acquire_early(second).unwrap();
        let ask = |_| tokio::spawn(gateway.sending(gateway.request("/v1/chat/completions", &another(CHAT))));
        let waiting: Vec<_> = (0..40).map(ask).collect();
        gateway.until(|_| of_a.snapshot().waiters == 40).await;
        probe.failure("5xx", "a test");
        for answer in waiting {
            assert_eq!(soon(answer).await.unwrap().status(), 200, "b is well, and one of them finds out");
        }
    }
}
