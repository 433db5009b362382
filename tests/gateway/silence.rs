//! A provider that takes requests and does not answer.

use std::time::Duration;

use bytes::Bytes;
use fusebox::proxy::GatewayConfig;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::channel::Sender;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::{Answer, CHAT, Gateway, Provider, another, events, read, streamed};

const ONE_CORE: &str = "cores = 1";
const STREAM: &str = r#"{"model": "m", "stream": true}"#;

/// A gateway that knows how long a takes to answer, and what opens and closes a.
async fn knowing(breaker: &str, extra: &str) -> (Gateway, Provider, watch::Sender<bool>, Provider) {
    let ((a, gate), b) = (Provider::gated().await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], ONE_CORE, breaker, extra).await;
    learn(&gateway, CHAT).await;
    (gateway, a, gate, b)
}

async fn learn(gateway: &Gateway, body: &str) {
    for _ in 0..120 {
        assert_eq!(gateway.post("/v1/chat/completions", body).await.status, 200);
    }
}

/// So many requests at once.
fn several(gateway: &Gateway, requests: usize, body: &str) -> JoinSet<Answer> {
    let sent = (0..requests).map(|_| gateway.sending(gateway.request("/v1/chat/completions", &another(body))));
    sent.map(|sent| async { read(sent.await).await }).collect()
}

#[tokio::test]
async fn unanswered_requests_are_answered_by_the_next_provider_and_health_says_why() {
    let (mut gateway, a, gate, b) = knowing("", "").await;
    gate.send_replace(false);
    for answer in several(&gateway, 5, CHAT).join_all().await {
        assert!(answer.is_by(&b) && answer.status == 200);
        assert_eq!((answer.header("x-fusebox-provider"), answer.header("x-fusebox-attempts")), ("b", "2"));
    }
    assert_eq!(a.hits(), 125);
    assert!(gateway.ask().await.is_by(&b) && a.hits() == 125, "nobody asks it any more");
    let (_, health) = gateway.health().await;
    let health = &health["providers"]["a"];
    assert_eq!((&health["state"], &health["failure_count"]), (&json!("open"), &json!(1)));
    let reason = health["reason"].as_str().unwrap();
    assert!(reason.starts_with("silent: m, answer: 5 unanswered for 2") && reason.contains("(phi 1"), "{reason}");
    let metrics = gateway.metrics().await;
    for line in [
        "fusebox_circuit_silent{provider=\"a\",model=\"m\",answer=\"whole\"} 1",
        "fusebox_circuit_silent{provider=\"b\"} 0",
        "fusebox_attempts_total{provider=\"a\",outcome=\"silent\"} 5",
        "fusebox_silence_learnt{provider=\"a\",model=\"m\",awaited=\"answer\"} 1",
        "fusebox_silence_unanswered{provider=\"a\",model=\"m\",awaited=\"answer\"} 5",
        "fusebox_silence_unanswered{provider=\"a\",model=\"m\",awaited=\"stream\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let log = gateway.log(126).await;
    let line = log.iter().find(|line| line["attempts"].as_array().unwrap().len() == 2).unwrap();
    assert_eq!((&line["provider"], &line["blamed"]), (&json!("b"), &json!(["a"])));
    assert_eq!([&line["attempts"][0]["outcome"], &line["attempts"][1]["outcome"]], ["silent", "ok"]);
}

#[tokio::test]
async fn a_silence_ends_with_the_first_late_answer() {
    let (gateway, a, gate, b) = knowing("", "").await;
    gate.send_replace(false);
    assert!(several(&gateway, 5, CHAT).join_all().await.iter().all(|answer| answer.is_by(&b)));
    assert!(gateway.snapshot("a").silent);
    gate.send_replace(true);
    gateway.reaches("a", "closed").await;
    assert!(gateway.ask().await.is_by(&a));
}

#[tokio::test]
async fn the_first_answer_wins() {
    let ((a, a_gate), (b, b_gate)) = (Provider::gated().await, Provider::gated().await);
    let gateway = Gateway::start(&[&a, &b], ONE_CORE, "", "").await;
    learn(&gateway, CHAT).await;
    a_gate.send_replace(false);
    b_gate.send_replace(false);
    let waiting = several(&gateway, 5, CHAT);
    gateway.until(|_| b.hits() == 5).await;
    a_gate.send_replace(true);
    for answer in waiting.join_all().await {
        assert!(answer.status == 200 && answer.is_by(&a));
    }
    gateway.reaches("a", "closed").await;
    assert_eq!((gateway.state_of("b"), gateway.failures_of("b")), ("closed".to_owned(), 0));
    let log = gateway.log(125).await;
    let line = &log[121];
    assert_eq!((&line["provider"], &line["blamed"]), (&json!("a"), &json!([])));
    assert_eq!([&line["attempts"][0]["outcome"], &line["attempts"][1]["outcome"]], ["ok", "overtaken"]);
}

#[tokio::test]
async fn without_another_candidate_requests_keep_waiting() {
    let (a, gate) = Provider::gated().await;
    let mut gateway = Gateway::start(&[&a], ONE_CORE, "", "").await;
    learn(&gateway, CHAT).await;
    gate.send_replace(false);
    let waiting = several(&gateway, 5, CHAT);
    gateway.until(|gateway| gateway.snapshot("a").silent).await;
    let late = several(&gateway, 1, CHAT);
    gateway.until(|_| a.hits() == 126).await;
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("fusebox_through_silence_total{provider=\"a\"} 1\n"), "{metrics}");
    gate.send_replace(true);
    assert_eq!(late.join_all().await[0].status, 200, "one that comes now is sent, too");
    assert!(waiting.join_all().await.iter().all(|answer| answer.status == 200));
    gateway.reaches("a", "closed").await;
    let log = gateway.log(126).await;
    let through = |line: &&Value| line["attempts"][0]["through_silence"] == json!(true);
    assert_eq!(log.iter().filter(through).count(), 1, "{:?}", log.last());
}

const SLOW: &str = r#"{"model": "m", "messages": "slow"}"#;

#[tokio::test]
async fn slow_answers_that_look_like_silence_delay_and_refuse_no_quick_one() {
    let (a, gate) = Provider::gated_for("slow").await;
    let gateway = Gateway::start(&[&a], ONE_CORE, "wait_limit = '1ms'\nmax_waiters = 0", "").await;
    learn(&gateway, CHAT).await;
    gate.send_replace(false);
    let slow = several(&gateway, 5, SLOW);
    gateway.until(|gateway| gateway.snapshot("a").silent).await;
    let (status, health) = gateway.health().await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")), "requests can be served");
    let answer = gateway.ask().await;
    assert_eq!((answer.status, answer.header("x-fusebox-attempts")), (200, "1"));
    gateway.reaches("a", "closed").await;
    assert_eq!(gateway.trips("a"), 1);
    gate.send_replace(true);
    assert!(slow.join_all().await.iter().all(|answer| answer.status == 200));
    assert_eq!(a.hits(), 126, "nothing was sent twice");
}

/// Two silent providers, of which b answered later, and the requests that wait for it.
async fn both_silent() -> (Gateway, [(Provider, watch::Sender<bool>); 2], JoinSet<Answer>) {
    let (a, b) = (Provider::gated().await, Provider::gated().await);
    let gateway = Gateway::start(&[&a.0, &b.0], ONE_CORE, "", "").await;
    learn(&gateway, CHAT).await;
    gateway.own_breaker("a").isolate("so that b is asked");
    learn(&gateway, CHAT).await;
    gateway.own_breaker("a").reset();
    a.1.send_replace(false);
    let moved = several(&gateway, 5, CHAT).join_all().await;
    assert!(moved.iter().all(|answer| answer.is_by(&b.0)));
    b.1.send_replace(false);
    let waiting = several(&gateway, 5, CHAT);
    gateway.until(|gateway| gateway.snapshot("a").silent && gateway.snapshot("b").silent).await;
    (gateway, [a, b], waiting)
}

#[tokio::test]
async fn if_all_candidates_are_silent_the_one_that_answered_last_is_asked() {
    let (gateway, [(a, _a_gate), (b, b_gate)], waiting) = both_silent().await;
    let asked = several(&gateway, 1, CHAT);
    gateway.until(|_| b.hits() == 131).await;
    b_gate.send_replace(true);
    let answer = asked.join_all().await.remove(0);
    assert!(answer.status == 200 && answer.is_by(&b) && a.hits() == 125);
    drop(waiting);
}

#[tokio::test]
async fn a_silent_candidate_is_asked_without_waiting_for_the_probe_of_its_silence() {
    let (a, gate) = Provider::gated().await;
    let gateway = Gateway::start(&[&a], ONE_CORE, "open_for = '1ms'", "").await;
    learn(&gateway, CHAT).await;
    gate.send_replace(false);
    let waiting = several(&gateway, 5, CHAT);
    gateway.until(|gateway| gateway.snapshot("a").silent).await;
    gateway.reopens("a").await;
    let probe = gateway.breaker("a").try_acquire_owned().unwrap();
    let asked = several(&gateway, 1, CHAT);
    gateway.until(|_| a.hits() == 126).await;
    assert_eq!(gateway.state_of("a"), "half_open");
    drop((asked, waiting, probe));
}

#[tokio::test]
async fn a_request_that_went_through_silence_ends_with_its_time_limits() {
    let (a, a_gate) = Provider::gated().await;
    let gateway = Gateway::start(&[&a], ONE_CORE, "", "timeouts.total = '1s'").await;
    learn(&gateway, CHAT).await;
    a_gate.send_replace(false);
    let waiting = several(&gateway, 5, CHAT);
    gateway.until(|gateway| gateway.snapshot("a").silent).await;
    let answer = gateway.ask().await;
    assert_eq!((answer.status, a.hits()), (504, 126), "nobody answers, and nothing else is left");
    assert!(waiting.join_all().await.iter().all(|answer| answer.status == 504));
}

#[tokio::test]
async fn what_is_sent_twice_because_of_silence_is_a_tenth_of_the_requests_and_a_few_in_each_second() {
    let (mut gateway, a, gate, b) = knowing("", "").await;
    gate.send_replace(false);
    let waiting = several(&gateway, 60, CHAT);
    gateway.until(|_| b.hits() >= 15).await;
    assert!(b.hits() < 50, "{}", b.hits());
    gate.send_replace(true);
    assert!(waiting.join_all().await.iter().all(|answer| answer.status == 200));
    let metrics = gateway.metrics().await;
    let twice = format!("fusebox_sent_twice_total{{provider=\"a\"}} {}\n", b.hits());
    assert!(metrics.contains(&twice), "{metrics}");
    assert_eq!(a.hits(), 180);
}

#[tokio::test]
async fn a_request_that_no_candidate_answers_ends_with_its_timeouts() {
    let ((a, gate), b) = (Provider::gated().await, Provider::with_status(500).await);
    let gateway = Gateway::start(&[&a, &b], ONE_CORE, "", "timeouts.total = '300ms'").await;
    learn(&gateway, CHAT).await;
    gate.send_replace(false);
    for answer in several(&gateway, 5, CHAT).join_all().await {
        assert!(answer.status == 500 || answer.status == 504, "{answer:?}");
    }
    assert_eq!(gateway.trips("a"), 1, "the timeouts of what was silent are no news");
}

#[tokio::test]
async fn the_request_of_an_unanswered_probe_is_answered_by_the_next_provider() {
    let (gateway, a, gate, b) = knowing("open_for = '1ms'", "").await;
    gate.send_replace(false);
    assert!(several(&gateway, 5, CHAT).join_all().await.iter().all(|answer| answer.is_by(&b)));
    gateway.reopens("a").await;
    let answer = gateway.ask().await;
    assert!(answer.is_by(&b) && answer.header("x-fusebox-attempts") == "2");
    assert_eq!(a.hits(), 126);
    assert!(gateway.snapshot("a").failed_probe_count == 1);
    gate.send_replace(true);
    gateway.reaches("a", "closed").await;
}

#[tokio::test]
async fn with_detection_switched_off_only_timeouts_notice_silence() {
    let (gateway, a, gate, b) = knowing("", "silence.enabled = false\ntimeouts.total = '200ms'").await;
    gate.send_replace(false);
    assert!(several(&gateway, 5, CHAT).join_all().await.iter().all(|answer| answer.is_by(&b)));
    let snapshot = gateway.snapshot("a");
    assert!(!snapshot.silent && snapshot.last_error.unwrap().error_type() == "total_timeout");
    assert_eq!(a.hits(), 125);
}

#[tokio::test]
async fn a_reload_keeps_what_was_learnt_and_replaces_the_settings() {
    let ((a, gate), b) = (Provider::gated().await, Provider::with_status(200).await);
    let config = |extra: &str| {
        let provider = |name: &str, provider: &Provider| {
            format!("[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\nmodels = ['m']\n{extra}\n", provider.address)
        };
        let text = format!("[server]\n{ONE_CORE}\n{}{}", provider("a", &a), provider("b", &b));
        GatewayConfig::from_toml(&text).unwrap()
    };
    let gateway = Gateway::from_config(&config("silence.phi = 100")).await;
    learn(&gateway, CHAT).await;
    gate.send_replace(false);
    let waiting = several(&gateway, 5, CHAT);
    gateway.until(|_| a.hits() == 125).await;
    gateway.state.reload(&config("silence.phi = 5")).unwrap();
    assert!(waiting.join_all().await.iter().all(|answer| answer.is_by(&b)));
}

#[tokio::test]
async fn a_model_that_a_reload_removes_leaves_no_detector_and_the_others_keep_what_they_have_learnt() {
    let a = Provider::with_status(200).await;
    let config = |models: &str| {
        let text = format!(
            "[server]\n{ONE_CORE}\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = [{models}]",
            a.address
        );
        GatewayConfig::from_toml(&text).unwrap()
    };
    let mut gateway = Gateway::from_config(&config("'m', 'gone'")).await;
    learn(&gateway, CHAT).await;
    learn(&gateway, &CHAT.replace("\"m\"", "\"gone\"")).await;
    let learnt =
        |model: &str| format!("fusebox_silence_learnt{{provider=\"a\",model=\"{model}\",awaited=\"answer\"}} 1");
    let metrics = gateway.metrics().await;
    assert!(metrics.contains(&learnt("m")) && metrics.contains(&learnt("gone")), "{metrics}");

    gateway.state.reload(&config("'m', 'new'")).unwrap();
    assert_eq!(gateway.ask().await.status, 200);
    let metrics = gateway.metrics().await;
    assert!(metrics.contains(&learnt("m")) && !metrics.contains("model=\"gone\""), "{metrics}");
    // The core watches by what the detector has learnt, not by a new one.
    let stats = gateway.state.provider_stats("a").unwrap();
    assert_eq!((stats.has_learnt_answers, stats.has_learnt_streams, stats.ok), (true, false, 241));
}

#[tokio::test]
async fn models_whose_long_names_differ_only_at_the_end_have_detectors_of_their_own() {
    let a = Provider::with_status(200).await;
    let [one, other] = ["1", "2"].map(|last| "x".repeat(250) + last);
    let text = format!(
        "[server]\n{ONE_CORE}\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['{one}', '{other}']",
        a.address
    );
    let mut gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    for model in [&one, &other] {
        assert_eq!(gateway.post("/v1/x", &format!("{{\"model\": \"{model}\"}}")).await.status, 200);
    }
    let metrics = gateway.metrics().await;
    for model in [&one, &other] {
        assert!(metrics.contains(&format!("model=\"{model}\",awaited=\"answer\"")), "{metrics}");
    }
    let log = gateway.log(2).await;
    assert!(log.iter().all(|line| line["model"] == "x".repeat(200)), "{log:?}");
}

#[tokio::test]
async fn events_that_only_keep_a_stream_alive_are_no_answer() {
    let (mut senders, mut responses) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let (sender, response) = streamed();
        senders.push(sender);
        responses.push(response);
    }
    let quick = || {
        let head = Response::builder().header("content-type", "text/event-stream");
        head.body("data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n".into()).unwrap()
    };
    let script = crate::support::one_by_one((0..120).map(|_| quick()).chain(responses).collect());
    let (a, b) = (Provider::start(script).await, Provider::start(move |_| quick()).await);
    let gateway = Gateway::start(&[&a, &b], ONE_CORE, "", "").await;
    learn(&gateway, STREAM).await;
    let waiting = several(&gateway, 5, STREAM);
    for sender in &mut senders {
        sender
            .send_data(": wait\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n".into())
            .await
            .unwrap();
    }
    assert!(waiting.join_all().await.iter().all(|answer| answer.is_by(&b)));
    assert!(gateway.snapshot("a").silent);

    // One of the streams begins late: that is an answer.
    for sender in &mut senders {
        let _ = sender.send_data("data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n".into()).await;
    }
    gateway.reaches("a", "closed").await;
}

/// Four streams, of which the gateway knows how long their pieces take.
async fn flowing() -> (Gateway, Vec<Sender<Bytes, std::io::Error>>, Vec<hyper::body::Incoming>) {
    let (mut senders, responses): (Vec<_>, Vec<_>) = (0..4).map(|_| streamed()).unzip();
    let a = Provider::start(crate::support::one_by_one(responses)).await;
    let gateway = Gateway::start(&[&a], ONE_CORE, "", "").await;
    let mut streams = Vec::new();
    for sender in &mut senders {
        streams.push(gateway.begin_with(sender, "data: 1\n\n").await.into_body());
    }
    for _ in 0..40 {
        for (sender, stream) in senders.iter_mut().zip(&mut streams) {
            stream.frame().await.unwrap().unwrap();
            sender.send_data("data: 1\n\n".into()).await.unwrap();
        }
    }
    (gateway, senders, streams)
}

#[tokio::test]
async fn streams_that_all_stop_in_the_middle_open_the_circuit_and_the_next_piece_closes_it() {
    let (gateway, mut senders, mut streams) = flowing().await;
    // Pauses while the streams begin, as on a busy machine, let the first alarm wait for up to sixteen times as long.
    let stalled = async {
        while !gateway.snapshot("a").silent {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), stalled).await.expect("the stall is not noticed");
    for kept_alive in [
        ": keep-alive\n\n",
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        "data: {\"choices\": [{\"delta\": {}}]}\n\n",
    ] {
        for (sender, stream) in senders.iter_mut().zip(&mut streams) {
            sender.send_data(kept_alive.into()).await.unwrap();
            while stream.frame().await.unwrap().unwrap().into_data().unwrap() != kept_alive {}
        }
        assert!(gateway.snapshot("a").silent, "{kept_alive}");
    }
    for mut sender in senders {
        sender.send_data("data: 2\n\n".into()).await.unwrap();
    }
    gateway.reaches("a", "closed").await;
    drop(streams);
}

/// A stream that was asked for, and has begun.
async fn begin_stream(
    gateway: &Gateway,
    sender: &mut Sender<Bytes, std::io::Error>,
) -> Response<hyper::body::Incoming> {
    let asked = gateway.send(gateway.request("/v1/chat/completions", &another(STREAM)));
    tokio::join!(asked, async { sender.send_data("data: 1\n\n".into()).await.unwrap() }).0
}

#[tokio::test]
async fn streams_that_have_not_begun_go_to_the_next_provider_when_those_that_have_stop() {
    let (mut senders, responses): (Vec<_>, Vec<_>) = (0..8).map(|_| streamed()).unzip();
    let a = Provider::start(crate::support::one_by_one(responses)).await;
    let b = Provider::start(|_| events("data: 1\n\ndata: [DONE]\n\n")).await;
    let gateway = Gateway::start(&[&a, &b], ONE_CORE, "", "silence.ceiling = '200ms'").await;
    let mut streams = Vec::new();
    for sender in &mut senders[..5] {
        streams.push(begin_stream(&gateway, sender).await);
    }
    // These have not begun. One of them begins when the others have stopped, which proves nothing.
    let waiting = several(&gateway, 3, STREAM);
    gateway.until(|_| a.hits() == 8).await;
    gateway.until(|gateway| gateway.snapshot("a").silent).await;
    senders[5].send_data("data: 1\n\n".into()).await.unwrap();
    assert!(waiting.join_all().await.iter().all(|answer| answer.is_by(&b)));
    assert!(gateway.post("/v1/chat/completions", STREAM).await.is_by(&b));
    drop(streams);
}

#[tokio::test]
async fn a_stream_that_begins_while_others_stop_is_used_if_there_is_nobody_else() {
    let (mut senders, responses): (Vec<_>, Vec<_>) = (0..6).map(|_| streamed()).unzip();
    let a = Provider::start(crate::support::one_by_one(responses)).await;
    let b = Provider::with_status(500).await;
    let gateway = Gateway::start(&[&a, &b], ONE_CORE, "", "silence.ceiling = '200ms'").await;
    let mut streams = Vec::new();
    for sender in &mut senders[..5] {
        streams.push(begin_stream(&gateway, sender).await);
    }
    let waiting = several(&gateway, 1, STREAM);
    gateway.until(|_| a.hits() == 6).await;
    gateway.until(|gateway| gateway.snapshot("a").silent).await;
    gateway.until(|_| b.hits() == 1).await;
    senders[5].send_data("data: 1\n\ndata: [DONE]\n\n".into()).await.unwrap();
    senders.truncate(5);
    assert!(waiting.join_all().await.iter().all(|answer| answer.is_by(&a)));
    drop(streams);
}

#[tokio::test]
async fn a_probe_of_a_circuit_that_stalled_streams_opened_is_judged_at_its_end() {
    let (mut senders, responses): (Vec<_>, Vec<_>) = (0..5).map(|_| streamed()).unzip();
    let a = Provider::start(crate::support::one_by_one(responses)).await;
    let gateway = Gateway::start(&[&a], ONE_CORE, "open_for = '1ms'", "silence.ceiling = '200ms'").await;
    let mut streams = Vec::new();
    for sender in &mut senders[..3] {
        streams.push(begin_stream(&gateway, sender).await);
    }
    gateway.until(|gateway| gateway.trips("a") == 1).await;
    gateway.reopens("a").await;
    let probe = begin_stream(&gateway, &mut senders[3]).await;
    assert_eq!(gateway.state_of("a"), "half_open", "a beginning proves nothing");
    senders[3].send_data("data: [DONE]\n\n".into()).await.unwrap();
    gateway.reaches("a", "closed").await;
    drop((probe, streams));
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_make_its_provider_silent() {
    let (mut gateway, senders, _streams) = flowing().await;
    let piece = Bytes::from(format!("data: {}\n\n", "x".repeat(1 << 20)));
    let sending = senders.into_iter().map(|mut sender| {
        let piece = piece.clone();
        async move {
            // For longer than a silence lasts until it is noticed.
            while timeout(Duration::from_secs(2), sender.send_data(piece.clone())).await.is_ok() {}
            sender
        }
    });
    let _senders = sending.collect::<JoinSet<_>>().join_all().await;
    assert_eq!(gateway.trips("a"), 0);
    let metrics = gateway.metrics().await;
    for (name, value) in [("learnt", 1), ("streams", 4), ("oldest_seconds", 0)] {
        let line = format!("fusebox_stall_{name}{{provider=\"a\",model=\"m\"}} {value}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
}
