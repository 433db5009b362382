//! The binary: what it does with a signal, and what its demo shows.

use std::process::{Command, Stdio};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::support::{CHAT, DEADLINE, Provider, nobody, one_by_one, streamed};

#[tokio::test]
async fn sigterm_lets_a_stream_finish_and_ends_with_success() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let address = nobody().await;
    let text = format!(
        "[server]\nlisten = '{address}'\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m']",
        a.address
    );
    let file = std::env::temp_dir().join(format!("fusebox-test-{}-sigterm.toml", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["serve", "--config"])
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while tokio::net::TcpStream::connect(address).await.is_err() {
        assert!(start.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    std::fs::remove_file(file).unwrap();

    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = hyper::Request::post(format!("http://{address}/v1/chat/completions"));
    let request = request.body(Full::new(Bytes::from_static(CHAT.as_bytes()))).unwrap();
    let (response, ()) = tokio::join!(client.request(request), async { sender.send_data("1".into()).await.unwrap() });
    assert!(Command::new("kill").arg(gateway.id().to_string()).status().unwrap().success());
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(start.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    sender.send_data("2".into()).await.unwrap();
    drop(sender);
    assert_eq!(response.unwrap().into_body().collect().await.unwrap().to_bytes(), "12");
    let ended = tokio::task::spawn_blocking(move || gateway.wait().unwrap());
    assert!(tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap().success());
}

fn demo(fault: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["demo", "--outage", "3s", "--rate", "50", "--json", "--fault", fault])
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && shown.lines().count() == 1, "{shown}");
    serde_json::from_str(&shown).unwrap()
}

/// What holds for every fault. No time is judged: it only has to be there.
fn check(summary: &Value) {
    let number = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("{name}: {summary}"));
    assert_eq!(summary["client_errors"], 0, "{summary}");
    assert!(number("requests") >= 200.0 && number("trips") >= 1.0 && number("probes") >= 1.0, "{summary}");
    // The threshold, a probe for each open interval of 2 s, what was under way, and 3 because that is counted from outside,
    // up to a few milliseconds after the trip.
    assert!(number("faulty_provider_hits") <= 3.0 + 2.0 + number("in_flight_at_trip") + 3.0, "{summary}");
    for time in ["time_to_open_ms", "time_to_close_ms", "p50_ms", "p99_ms"] {
        assert!(number(time) > 0.0, "{summary}");
    }
}

#[test]
fn the_demo_loses_a_provider_that_answers_500_and_no_client_notices() {
    check(&demo("500"));
}

#[test]
fn the_demo_loses_a_provider_that_hangs_and_no_client_notices() {
    check(&demo("hang"));
}

#[test]
fn the_demo_loses_a_provider_that_refuses_connections_and_no_client_notices() {
    check(&demo("refuse"));
}
