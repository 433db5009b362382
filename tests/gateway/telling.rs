//! What the headers of an answer, the access log and the metrics tell of a request.

use std::collections::BTreeSet;

use fusebox::fleet::{FleetConfig, Hub};
use fusebox::proxy::GatewayConfig;
use serde_json::json;
use tower::ServiceExt as _;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::support::{CHAT, Gateway, Provider, answer, one_by_one, read, soon, streamed};

#[tokio::test]
async fn every_answer_has_a_request_id_the_provider_and_the_number_of_attempts() {
    let (a, b) = (Provider::with_status(500).await, Provider::start(|n| answer(if n == 0 { 200 } else { 500 })).await);
    let gateway = Gateway::start(&[&a, &b], "", "failure_threshold = 2\nopen_for = '1h'", "").await;
    let told = |answer: &crate::support::Answer| {
        let id = answer.header("x-request-id");
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        (answer.status, answer.header("x-fusebox-provider").to_owned(), answer.header("x-fusebox-attempts").to_owned())
    };
    let expected = |status, provider: &str, attempts: &str| (status, provider.to_owned(), attempts.to_owned());
    assert_eq!(told(&gateway.ask().await), expected(200, "b", "2"));
    assert_eq!(told(&gateway.ask().await), expected(500, "b", "2"));
    assert_eq!(told(&gateway.ask().await), expected(500, "b", "1"));
    assert_eq!(told(&gateway.ask().await), expected(503, "none", "0"));
    assert_eq!(told(&gateway.get("/v1/models").await), expected(200, "none", "0"));
    assert_eq!(told(&gateway.post("/v1/x", "{}").await), expected(400, "none", "0"));
    assert_eq!(told(&gateway.get("/v1/x").await), expected(405, "none", "0"));
}

#[tokio::test]
async fn a_clients_request_id_is_kept_and_passed_on_unless_it_cannot_be() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let with_id = async |id: &str| {
        let mut request = gateway.request("/v1/x", CHAT);
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        let answer = read(gateway.send(request).await).await;
        let told = answer.header("x-request-id").to_owned();
        assert_eq!(a.last().headers["x-request-id"], told.as_str());
        told
    };
    assert_eq!(with_id("id-1").await, "id-1");
    assert_ne!(with_id("has a space").await, "has a space");
    assert_eq!(with_id(&"x".repeat(129)).await.len(), 32);
    assert_eq!(gateway.log(3).await[0]["id"], "id-1");
}

#[tokio::test]
async fn the_access_log_has_one_line_per_request_with_who_was_asked_and_who_was_blamed() {
    let (mut sender, stream) = streamed();
    let a = Provider::with_status(503).await;
    let b = Provider::start(one_by_one(vec![answer(200), stream, answer(429)])).await;
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    gateway.post("/v1/embeddings?secret=1", CHAT).await;
    let response = gateway.begin_with(&mut sender, "data: 1\n\n").await;
    drop(sender);
    read(response).await;
    gateway.ask().await;
    gateway.post("/v1/x", r#"{"model": "other"}"#).await;
    gateway.get("/v1/models").await;

    let log = gateway.log(5).await;
    let [first, second, third, fourth, fifth] = &log[..] else { panic!("{log:?}") };
    assert_eq!(
        (&first["method"], &first["path"], &first["model"]),
        (&json!("POST"), &json!("/v1/embeddings"), &json!("m"))
    );
    assert_eq!((&first["status"], &first["provider"], &first["end"]), (&json!(200), &json!("b"), &json!("complete")));
    let outcomes = |line: &serde_json::Value| -> Vec<(String, String)> {
        let attempts = line["attempts"].as_array().unwrap().iter();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        attempts.map(|attempt| (text(&attempt["provider"]), text(&attempt["outcome"]))).collect()
    };
    let pairs =
        |pairs: &[(&str, &str)]| -> Vec<_> { pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect() };
    assert_eq!(outcomes(first), pairs(&[("a", "5xx"), ("b", "ok")]));
    assert_eq!(first["blamed"], json!(["a"]));
    assert_eq!((&first["bytes_in"], &first["bytes_out"]), (&json!(CHAT.len()), &json!(14)));
    assert_eq!((&first["stream"], &second["stream"]), (&json!(false), &json!(true)));
    for line in [first, second] {
        let time = |field: &str| line[field].as_f64().unwrap();
        assert!(time("first_byte_ms") > 0.0 && time("ms") >= time("first_byte_ms"), "{line}");
        assert!(line["attempts"][1]["ms"].as_f64().unwrap() <= time("ms"));
        assert!(line["time"].as_str().unwrap().starts_with("20"), "{line}");
    }
    assert_eq!(outcomes(third), pairs(&[("a", "5xx"), ("b", "429")]));
    assert_eq!((&third["status"], &third["provider"], &third["blamed"]), (&json!(429), &json!(null), &json!(["a"])));
    assert_eq!((&fourth["status"], &fourth["model"], &fourth["attempts"]), (&json!(404), &json!("other"), &json!([])));
    assert_eq!((&fifth["method"], &fifth["status"]), (&json!("GET"), &json!(200)));
    let text = format!("{log:?}");
    assert!(!text.contains("secret") && !text.contains("provider-key"), "{text}");
}

#[tokio::test]
async fn the_access_log_can_be_switched_off() {
    let a = Provider::with_status(200).await;
    let silent = Gateway::start(&[&a], "access_log = false", "", "").await;
    silent.ask().await;
    let config = GatewayConfig::from_toml("").unwrap();
    silent.state.reload(&config).unwrap();
    silent.get("/v1/models").await;
    let log = silent.log(1).await;
    assert_eq!((log.len(), &log[0]["method"]), (1, &json!("GET")));
}

fn value(metrics: &str, line: &str) -> f64 {
    let found = metrics.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {line} in {metrics}")).parse().unwrap()
}

#[tokio::test]
async fn metrics_count_requests_attempts_and_what_the_circuits_did() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let mut gateway = Gateway::start(&[&a, &b], "", "failure_threshold = 2\nopen_for = '1h'", "").await;
    for _ in 0..5 {
        gateway.ask().await;
    }
    gateway.post("/v1/x", "{}").await;
    gateway.log(6).await;
    let metrics = gateway.metrics().await;
    for (line, expected) in [
        ("fusebox_requests_total{status=\"2xx\"}", 5.0),
        ("fusebox_requests_total{status=\"4xx\"}", 1.0),
        ("fusebox_requests_in_flight", 0.0),
        ("fusebox_request_seconds_count", 6.0),
        ("fusebox_attempts_total{provider=\"a\",outcome=\"5xx\"}", 2.0),
        ("fusebox_attempts_total{provider=\"b\",outcome=\"ok\"}", 5.0),
        ("fusebox_attempts_in_flight{provider=\"b\"}", 0.0),
        ("fusebox_attempt_seconds_count{provider=\"a\"}", 2.0),
        ("fusebox_first_byte_seconds_count{provider=\"a\"}", 0.0),
        ("fusebox_first_byte_seconds_count{provider=\"b\"}", 5.0),
        ("fusebox_first_byte_seconds_bucket{provider=\"b\",le=\"+Inf\"}", 5.0),
        ("fusebox_circuit_state{provider=\"a\",model=\"m\",answer=\"whole\",state=\"open\"}", 1.0),
        ("fusebox_circuit_state{provider=\"a\",model=\"m\",answer=\"whole\",state=\"closed\"}", 0.0),
        ("fusebox_circuit_state{provider=\"b\",state=\"closed\"}", 1.0),
        ("fusebox_circuit_failures{provider=\"a\",model=\"m\",answer=\"whole\"}", 2.0),
        ("fusebox_circuit_trips_total{provider=\"a\",model=\"m\",answer=\"whole\"}", 1.0),
        ("fusebox_circuit_rejections_total{provider=\"a\"}", 3.0),
        ("fusebox_circuit_probes_total{provider=\"a\"}", 0.0),
        ("fusebox_config_reloads_total{result=\"applied\"}", 0.0),
        ("fusebox_client_connections", 1.0),
    ] {
        assert!((value(&metrics, line) - expected).abs() < 1e-9, "{line}\n{metrics}");
    }
    assert!(value(&metrics, "fusebox_circuit_probe_in_seconds{provider=\"a\",model=\"m\",answer=\"whole\"}") > 3000.0);
    assert!(value(&metrics, "fusebox_request_seconds_sum") > 0.0);
}

#[tokio::test]
async fn every_metric_outcome_and_field_of_the_log_is_documented_and_nothing_else_is() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    // In a fleet, in which something is said of a circuit.
    let provider = |name: &str, it: &Provider| {
        format!("[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\nmodels = ['m']\n", it.address)
    };
    let mut config = GatewayConfig::from_toml(&(provider("a", &a) + &provider("b", &b))).unwrap();
    config.fleet = Some(FleetConfig::hub(&Hub::new(std::time::Duration::ZERO)));
    let mut gateway = Gateway::from_config(&config).await;
    gateway.ask().await;
    let breaker = gateway.own_breaker("b");
    while let Ok(permit) = breaker.try_acquire() {
        permit.failure("5xx", 500);
    }
    let mut metrics = gateway.metrics().await;
    soon(async {
        while !metrics.contains("fusebox_fleet_openers{") {
            metrics = gateway.metrics().await;
        }
    })
    .await;
    let documented = include_str!("../../docs/METRICS.md");
    let cells = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().replace('`', "")).collect() };
    let table: BTreeSet<(String, String, String)> = documented
        .lines()
        .filter(|line| line.starts_with("| `fusebox_") || line.starts_with("| `process_"))
        .map(|line| {
            let cells = cells(line);
            (cells[1].clone(), cells[2].clone(), cells[3].clone())
        })
        .collect();
    let served: BTreeSet<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| {
            let is_of_it = |line: &&str| {
                let rest = line.strip_prefix(name).unwrap_or("other");
                ["{", " ", "_bucket{"].iter().any(|begin| rest.starts_with(begin))
            };
            let all = metrics.lines().filter(is_of_it);
            let most = all.max_by_key(|line| line.matches("=\"").count()).unwrap_or_default();
            let labels = most.split_once('{').map_or("", |(_, labels)| labels.split_once('}').unwrap().0);
            let labels = labels.split(',').filter_map(|label| label.split_once('=')).map(|(label, _)| label);
            let labels: Vec<_> = labels.filter(|label| *label != "le").collect();
            (name.to_owned(), kind.to_owned(), labels.join(", "))
        })
        .collect();
    assert_eq!(served, table);

    let outcomes: BTreeSet<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("fusebox_attempts_total{provider=\"a\",outcome=\"")?.split_once('"'))
        .map(|(outcome, _)| outcome.to_owned())
        .collect();
    let (_, list) = documented.split_once("## Outcomes").unwrap();
    let (list, log) = list.split_once("## The access log").unwrap();
    let listed: BTreeSet<_> =
        list.lines().filter(|line| line.starts_with("| `")).map(|line| cells(line)[1].clone()).collect();
    assert_eq!(outcomes, listed);

    let example = log.lines().find(|line| line.starts_with('{')).unwrap();
    let example: serde_json::Value = serde_json::from_str(example).unwrap();
    let keys = |line: &serde_json::Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let line = &gateway.log(1).await[0];
    assert_eq!(keys(line), keys(&example), "as the access log is documented");
    assert_eq!(keys(&line["attempts"][0]), keys(&example["attempts"][0]));
}

#[tokio::test]
async fn without_a_port_for_operators_metrics_are_on_the_clients_port_behind_their_token() {
    let gateway = Gateway::start(&[], "auth_tokens = ['s3cret']", "", "").await;
    assert_eq!(gateway.get("/metrics").await.status, 401);
    let mut request = gateway.request("/metrics", "");
    *request.method_mut() = hyper::Method::GET;
    request.headers_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    let answer = read(gateway.send(request).await).await;
    assert!(answer.status == 200 && answer.body.starts_with(b"# HELP fusebox_"));

    let apart = Gateway::start(&[], "admin_listen = '127.0.0.1:1'", "", "").await;
    assert_eq!(apart.get("/metrics").await.status, 404);
}

struct PanicsOnWarnings;

impl<S: tracing::Subscriber> Layer<S> for PanicsOnWarnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        assert!(*event.metadata().level() > tracing::Level::WARN, "on purpose");
    }
}

#[tokio::test]
async fn a_subscriber_that_panics_costs_its_request_and_leaves_nothing_behind() {
    let a = Provider::with_status(500).await;
    let mut gateway = Gateway::start(&[&a], "", "failure_threshold = 4", "").await;
    // The server, which runs on this thread, has logged its start.
    assert_eq!(gateway.ask().await.status, 500);
    // Its cores have other threads. This request is served on this one.
    let router = fusebox::proxy::create_router(std::sync::Arc::clone(&gateway.state));
    let request = gateway.request("/v1/chat/completions", CHAT).map(axum::body::Body::new);
    // Other threads must not cache that nobody wants the events: see `tests/core/log.rs`.
    let _kept = [(); 2].map(|()| tracing::Dispatch::new(tracing_subscriber::registry()));
    let panicking = tracing::subscriber::set_default(tracing_subscriber::registry().with(PanicsOnWarnings));
    let answer = soon(tokio::spawn(router.oneshot(request))).await;
    drop(panicking);
    assert!(answer.unwrap_err().is_panic());

    assert_eq!(gateway.failures_of("a"), 2, "the breaker was told before the subscriber");
    assert_eq!(gateway.ask().await.status, 500);
    let metrics = gateway.metrics().await;
    assert!((value(&metrics, "fusebox_attempts_total{provider=\"a\",outcome=\"5xx\"}") - 3.0).abs() < 1e-9);
    for gauge in ["fusebox_requests_in_flight", "fusebox_attempts_in_flight{provider=\"a\"}"] {
        assert!(value(&metrics, gauge).abs() < 1e-9, "{metrics}");
    }
}
