//! State that outlasts the process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use fusebox::proxy::GatewayConfig;
use fusebox::{Cause, CircuitState};
use serde_json::{Value, json};

use crate::support::{DEADLINE, Gateway, Provider, TempFile, answer, nobody, soon, temp_path, until, until_open};

/// Two providers, of which the first one has several models.
fn config(state: &Path, a: SocketAddr, b: SocketAddr, key: &str) -> String {
    format!(
        "[server]\nstate_file = '{}'\n[breaker]\nopen_for = '1h'\nfailure_threshold = 1\n\
         [[providers]]\nname = 'a'\nurl = 'http://{a}/v1'\nmodels = ['m', 'x, y']\napi_key = '{key}'\n\
         [[providers]]\nname = 'b'\nurl = 'http://{b}/v1'\nmodels = ['m']\n",
        state.display()
    )
}

async fn start(text: &str) -> Gateway {
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(text).unwrap()).await;
    // Whoever is answered is answered after the state is restored.
    view(&gateway).await;
    gateway
}

async fn stop(mut gateway: Gateway) {
    gateway.stop();
    soon(&mut gateway.server).await.unwrap();
}

async fn order(gateway: &Gateway, path: &str, body: &str) {
    let uri = format!("http://{}/admin/v1/circuits/{path}", gateway.admin);
    let request = http::Request::post(uri).header("content-type", "application/json");
    let request = request.body(http_body_util::Full::from(body.to_owned())).unwrap();
    assert_eq!(gateway.send(request).await.status(), 200, "{path}");
}

#[tokio::test]
async fn circuits_orders_and_keys_are_as_they_were_after_a_restart() {
    let (a, b) = (Provider::start(|_| answer(500)).await, Provider::with_status(200).await);
    let state = TempFile::new("state-whole.json", "");
    std::fs::remove_file(&*state).unwrap();
    let text = config(&state, a.address, b.address, "k");
    let before = start(&text).await;
    assert!(before.ask().await.is_by(&b));
    let own = before.own_breaker("b");
    own.trip_for(Duration::from_secs(600), "key_refused", "no such key");
    order(&before, "a/x%2C%20y/stream/disable", r#"{"reason": "a test", "for": "1h"}"#).await;
    order(&before, "a/isolate", r#"{"reason": "an incident"}"#).await;
    let since = |view: &Value| view["providers"][0]["models"][0]["circuits"][0]["since"].clone();
    let since_before = since(&view(&before).await);
    stop(before).await;

    let kept = std::fs::read_to_string(&*state).unwrap();
    assert!(kept.contains("an incident") && !kept.contains("\"k\""), "{kept}");
    let after = start(&text).await;
    let open = after.breaker("a").snapshot();
    assert_eq!((open.state, open.cause), (CircuitState::Open, Some(Cause::Failures)));
    let left = open.next_probe_in.unwrap();
    assert!(left > Duration::from_secs(3500) && left <= Duration::from_secs(3600), "{left:?}");
    assert_eq!(after.own_breaker("a").snapshot().cause, Some(Cause::Isolated));
    let disabled = after.state.circuit("a", "x, y", fusebox::proxy::AnswerKind::Stream).unwrap();
    assert_eq!(disabled.state(), CircuitState::Disabled);
    assert_eq!(after.own_breaker("b").snapshot().cause, Some(Cause::Cooldown));
    let view = view(&after).await;
    assert!(since_before.is_string() && since(&view) == since_before, "{since_before} {view}");
    let order = &view["providers"][0]["order"];
    assert_eq!((&order["reason"], &order["until"]), (&json!("an incident"), &json!(null)));
    assert!(view["providers"][0]["models"][1]["circuits"][0]["order"]["until"].is_string(), "{view}");
    stop(after).await;

    // Another key may be a good one. Everything else stays as it is.
    let other_key = start(&config(&state, a.address, b.address, "other")).await;
    assert_eq!(other_key.breaker("a").state(), CircuitState::Open);
    stop(other_key).await;
    // A provider at another address is another provider.
    let moved = start(&config(&state, b.address, b.address, "k")).await;
    assert_eq!(moved.breaker("a").state(), CircuitState::Closed);
    assert_eq!(moved.own_breaker("a").state(), CircuitState::Closed);
}

async fn view(gateway: &Gateway) -> Value {
    let uri = format!("http://{}/admin/v1/circuits", gateway.admin);
    let request = http::Request::get(uri).body(http_body_util::Full::default()).unwrap();
    crate::support::read(gateway.send(request).await).await.json()
}

#[tokio::test]
async fn a_key_that_was_out_is_tried_again_if_it_was_replaced() {
    let a = Provider::with_status(401).await;
    let state = TempFile::new("state-key.json", "");
    std::fs::remove_file(&*state).unwrap();
    let text = |key: &str| config(&state, a.address, a.address, key);
    let before = start(&text("old")).await;
    before.ask().await;
    assert_eq!(before.own_breaker("a").snapshot().cause, Some(Cause::Cooldown));
    stop(before).await;
    let same = start(&text("old")).await;
    assert_eq!(same.own_breaker("a").snapshot().cause, Some(Cause::Cooldown));
    stop(same).await;
    let replaced = start(&text("new")).await;
    assert_eq!(replaced.own_breaker("a").state(), CircuitState::Closed);
}

#[tokio::test]
async fn what_is_learnt_of_latencies_outlasts_a_restart() {
    let a = Provider::with_status(200).await;
    let state = TempFile::new("state-latencies.json", "");
    std::fs::remove_file(&*state).unwrap();
    let text = config(&state, a.address, a.address, "k");
    let mut before = start(&text).await;
    for _ in 0..120 {
        before.ask().await;
    }
    let median = |metrics: &str| -> f64 {
        let name = "fusebox_silence_median_seconds{provider=\"a\",model=\"m\",awaited=\"answer\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0").parse().unwrap()
    };
    let known = median(&before.metrics().await);
    assert!(known > 0.0);
    stop(before).await;
    let mut after = start(&text).await;
    let restored = median(&after.metrics().await);
    assert!((restored - known).abs() <= known / 8.0, "{restored} instead of {known}");
}

#[tokio::test]
async fn a_file_that_is_broken_or_anothers_is_no_reason_not_to_start() {
    let a = Provider::with_status(200).await;
    for text in [
        "",
        "nonsense",
        "{}",
        "[]",
        "{\"format\": \"fusebox state 1\"",
        r#"{"format":"of another program","providers":{},"circuits":{"at":"2026-01-01T00:00:00Z","breakers":[]},"since":{},"orders":[],"latencies":[]}"#,
        // Circuits that are not there, from long ago or far ahead, and orders that make no sense.
        r#"{"format":"fusebox state 1","providers":{"z":{"url":"http://z/","keys":1}},
            "circuits":{"at":"2001-01-01T00:00:00Z","breakers":[
              {"name":"z, m, whole","state":"open","cause":"failures","probe_at":"2001-01-01T00:00:10Z"},
              {"name":"a","state":"open","cause":"failures","probe_at":"2999-01-01T00:00:10Z"},
              {"name":"a, m, whole","state":"open"}, {"name":"","state":"open"}]},
            "since":{"a":"soon","a, m, whole":"2999-01-01T00:00:00Z"},
            "orders":[{"provider":"a","model":"m","kind":"nonsense","order":"isolate","reason":"","by":null,"at":"","until":null},
                      {"provider":"z","model":null,"kind":null,"order":"isolate","reason":"","by":null,"at":"","until":"soon"}],
            "latencies":[{"provider":"a","model":"m","kind":"whole","counts":[[18446744073709551615,4294967295]]}]}"#,
    ] {
        let state = TempFile::new("state-broken.json", text);
        let gateway = start(&config(&state, a.address, a.address, "k")).await;
        assert_eq!(gateway.ask().await.status, 200, "{text}");
        stop(gateway).await;
        let kept: Value = serde_json::from_slice(&std::fs::read(&*state).unwrap()).unwrap();
        assert_eq!(kept["format"], "fusebox state 1", "it is replaced by a good one");
    }
}

#[test]
fn a_path_that_cannot_be_written_is_a_mistake() {
    for (field, path) in [("state_file", "/nonexistent/state"), ("state_file", "/"), ("access_log_file", "/tmp/")] {
        let errors = GatewayConfig::from_toml(&format!("[server]\n{field} = '{path}'")).unwrap_err();
        let expected =
            format!("line 2: server.{field} is \"{path}\", expected the path of a file, in a folder that exists");
        assert_eq!(errors.mistakes(), [expected]);
    }
}

/// The binary, and the lines of its log; killed when it is dropped.
struct Process {
    process: Child,
    log: mpsc::Receiver<String>,
}

impl Process {
    fn start(config: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fusebox"))
            .args(["serve", "--config"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (send, log) = mpsc::channel();
        // A thread, so that waiting for a line has a deadline.
        std::thread::spawn(move || lines.map_while(Result::ok).all(|line| send.send(line).is_ok()));
        Self { process, log }
    }

    /// The first line that has this text.
    fn line(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(DEADLINE).unwrap_or_else(|error| panic!("no {text:?}: {error}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: nothing is written at the end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circuit_that_was_open_is_open_after_the_process_was_killed() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let state = TempFile::new("state-killed.json", "");
    std::fs::remove_file(&*state).unwrap();
    let [clients, operators] = [nobody().await, nobody().await];
    let listen = format!("[server]\nlisten = '{clients}'\nadmin_listen = '{operators}'\n");
    let text = config(&state, a.address, b.address, "k").replace("[server]\n", &listen);
    let file = TempFile::new("killed.toml", text);
    let asked = async || {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let request = http::Request::post(format!("http://{clients}/v1/chat/completions"));
        let request = request.body(http_body_util::Full::new(bytes::Bytes::from(crate::support::CHAT))).unwrap();
        let answer = soon(client.request(request)).await.unwrap();
        ["attempts", "provider"].map(|name| answer.headers()[format!("x-fusebox-{name}")].to_str().unwrap().to_owned())
    };
    let first = Process::start(&file);
    first.line("there is no state to restore");
    until_open(clients).await;
    assert_eq!(asked().await, ["2", "b"]);
    until(|| std::fs::read_to_string(&*state).is_ok_and(|kept| kept.contains("a, m, whole"))).await;
    drop(first);

    let second = Process::start(&file);
    let line = tokio::task::block_in_place(|| second.line("the state is restored"));
    assert!(line.contains("circuits=1"), "{line}");
    until_open(clients).await;
    assert_eq!(asked().await, ["1", "b"]);
    assert_eq!(a.hits(), 1, "the provider that was down is not asked again");
    assert!(!temp_path("state-killed.json.new").exists(), "no half-written file is left");
}
