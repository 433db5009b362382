//! Traces, as a collector sees them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use fusebox::proxy::GatewayConfig;
use http::HeaderValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use parking_lot::Mutex;
use prost::Message;
use serde_json::{Value, json};

use crate::support::{CHAT, Gateway, Provider, another, events, nobody, read, soon};

/// Takes spans.
struct Collector {
    address: SocketAddr,
    got: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, got) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let taken = Arc::clone(&got);
        let take = async move |headers: HeaderMap, body: Bytes| {
            taken.lock().push((headers, ExportTraceServiceRequest::decode(body).unwrap()));
        };
        tokio::spawn(axum::serve(listener, Router::new().route("/v1/traces", post(take))).into_future());
        Self { address, got }
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock();
        let resources = got.iter().flat_map(|(_, request)| request.resource_spans.clone());
        resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect()
    }
}

async fn gateway(collector: SocketAddr, more: &str, providers: &[&Provider]) -> Gateway {
    let mut text = format!(
        "[server]\nauth_tokens = [{{ name = 'team-a', token = 's3cret' }}]\n\
         [traces]\nendpoint = 'http://{collector}'\n{more}\n"
    );
    for (name, provider) in ["a", "b"].iter().zip(providers) {
        let provider =
            format!("[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\nmodels = ['m']\n", provider.address);
        text += &provider;
    }
    Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await
}

async fn ask(gateway: &Gateway, stream: bool, traceparent: Option<&str>) -> u16 {
    let body = if stream { CHAT.replace("{\"mess", "{\"stream\": true, \"mess") } else { CHAT.to_owned() };
    let mut request = gateway.request("/v1/chat/completions", &another(&body));
    let headers = request.headers_mut();
    headers.insert("authorization", HeaderValue::from_static("Bearer s3cret"));
    headers.insert("user-agent", HeaderValue::from_static("SDK/1.0"));
    if let Some(traceparent) = traceparent {
        headers.insert("traceparent", HeaderValue::from_str(traceparent).unwrap());
    }
    read(gateway.send(request).await).await.status
}

/// Ends the gateway, which sends what is left.
async fn end(mut gateway: Gateway) {
    gateway.stop();
    soon(&mut gateway.server).await.unwrap();
}

fn attributes(span: &Span) -> Value {
    let value = |any: &Any| match any {
        Any::StringValue(text) => json!(text),
        Any::IntValue(number) => json!(number),
        Any::BoolValue(flag) => json!(flag),
        other => panic!("{other:?}"),
    };
    let pairs = span.attributes.iter();
    pairs.map(|pair| (pair.key.clone(), value(pair.value.as_ref().unwrap().value.as_ref().unwrap()))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

fn named(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind as i32).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[tokio::test]
async fn a_request_has_a_span_for_itself_each_attempt_and_its_stream() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":\"stop\"}]}\n\n\
                  data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
    let (a, b) = (Provider::with_status(500).await, Provider::start(move |_| events(stream)).await);
    let collector = Collector::start().await;
    let gateway = gateway(collector.address, "headers = { x-team = 'tracing' }", &[&a, &b]).await;
    assert_eq!(ask(&gateway, true, Some(&format!("00-{TRACE}-{PARENT}-01"))).await, 200);
    end(gateway).await;

    let spans = collector.spans();
    assert_eq!(collector.got.lock()[0].0["x-team"], "tracing");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let [request] = named(&spans, SpanKind::Server)[..] else { panic!("{spans:?}") };
    assert_eq!((hex(&request.parent_span_id), &*request.name), (PARENT.to_owned(), "POST /v1/chat/completions"));
    let of_request = attributes(request);
    let expected = [
        ("http.request.method", json!("POST")),
        ("url.path", json!("/v1/chat/completions")),
        ("http.response.status_code", json!(200)),
        ("client.address", json!("127.0.0.1")),
        ("user_agent.original", json!("SDK/1.0")),
        ("fusebox.token", json!("team-a")),
        ("gen_ai.request.model", json!("m")),
    ];
    for (name, value) in expected {
        assert_eq!(of_request[name], value, "{name}");
    }

    let attempts = named(&spans, SpanKind::Client);
    let of = |name: &str| attempts.iter().map(|span| attributes(span)[name].clone()).collect::<Vec<_>>();
    assert_eq!(of("gen_ai.provider.name"), ["a", "b"]);
    assert_eq!(of("fusebox.outcome"), ["5xx", "ok"]);
    assert_eq!(of("error.type"), [json!("5xx"), Value::Null]);
    assert_eq!(of("gen_ai.operation.name"), ["chat", "chat"]);
    assert_eq!(of("gen_ai.usage.input_tokens"), [Value::Null, json!(3)]);
    assert_eq!(of("gen_ai.usage.output_tokens"), [Value::Null, json!(2)]);
    assert_eq!(of("server.port"), [json!(a.address.port()), json!(b.address.port())]);
    for (attempt, provider) in attempts.iter().zip([&a, &b]) {
        assert_eq!((&attempt.parent_span_id, &*attempt.name), (&request.span_id, "chat m"));
        let told = format!("00-{TRACE}-{}-01", hex(&attempt.span_id));
        assert_eq!(provider.last().headers["traceparent"], told, "its provider goes on with it");
        let is_within = |it: &Span, whole: &Span| {
            it.start_time_unix_nano >= whole.start_time_unix_nano && it.end_time_unix_nano <= whole.end_time_unix_nano
        };
        assert!(is_within(attempt, request) && attempt.start_time_unix_nano <= attempt.end_time_unix_nano);
    }
    let [stream] = named(&spans, SpanKind::Internal)[..] else { panic!("{spans:?}") };
    assert_eq!((&*stream.name, &stream.parent_span_id), ("stream", &attempts[1].span_id));
    assert!(!format!("{spans:?}").contains("s3cret"));
    let resource = collector.got.lock()[0].1.resource_spans[0].resource.clone().unwrap();
    assert!(format!("{resource:?}").contains("service.name"), "{resource:?}");
}

#[tokio::test]
async fn what_a_request_waited_for_is_a_span() {
    let a = Provider::with_status(200).await;
    let collector = Collector::start().await;
    let gateway = gateway(collector.address, "", &[&a]).await;
    let probing = gateway.breaker("a");
    probing.trip_for(std::time::Duration::ZERO, "429", "");
    let probe = soon(probing.acquire()).await.unwrap();
    let (status, ()) = tokio::join!(ask(&gateway, false, None), async {
        gateway.until(|_| probing.snapshot().waiters == 1).await;
        probe.success();
    });
    assert_eq!(status, 200);
    end(gateway).await;
    let spans = collector.spans();
    let waits: Vec<_> = spans.iter().filter(|span| span.name == "wait").collect();
    assert_eq!((waits.len(), &waits[0].parent_span_id), (1, &named(&spans, SpanKind::Server)[0].span_id));
}

#[tokio::test]
async fn a_client_decides_whether_its_request_is_traced_and_of_the_others_a_share_is() {
    let a = Provider::with_status(200).await;
    let collector = Collector::start().await;
    let gateway = gateway(collector.address, "sample = 0", &[&a]).await;
    ask(&gateway, false, None).await;
    assert!(!a.last().headers.contains_key("traceparent"));
    let not_taken = format!("00-{TRACE}-{PARENT}-00");
    ask(&gateway, false, Some(&not_taken)).await;
    assert_eq!(a.last().headers["traceparent"], not_taken, "it is passed on as it is");
    ask(&gateway, false, Some("nonsense")).await;
    ask(&gateway, false, Some(&format!("00-{TRACE}-{PARENT}-01"))).await;
    end(gateway).await;
    assert_eq!(named(&collector.spans(), SpanKind::Server).len(), 1);
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_no_request() {
    let a = Provider::with_status(200).await;
    let gateway = gateway(nobody().await, "", &[&a]).await;
    for _ in 0..20 {
        assert_eq!(ask(&gateway, false, None).await, 200);
    }
    end(gateway).await;
}

#[tokio::test]
async fn a_reload_says_that_other_traces_take_a_restart() {
    let a = Provider::with_status(200).await;
    let gateway = gateway(nobody().await, "", &[&a]).await;
    let provider = format!("[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m']\n", a.address);
    let file =
        crate::support::TempFile::new("traces.toml", format!("[traces]\nendpoint = 'http://127.0.0.1:1'\n{provider}"));
    gateway.state.set_file(file.to_path_buf());
    let reload = http::Request::post(format!("http://{}/admin/v1/reload", gateway.admin));
    let said = read(gateway.send(reload.body(http_body_util::Full::default()).unwrap()).await).await.json();
    let warnings = said["warnings"].as_array().unwrap();
    assert!(warnings.contains(&json!("traces has changed, which takes effect after a restart")), "{said}");
}

#[test]
fn mistakes_in_the_table_of_traces_are_said() {
    let mistakes = |table: &str| {
        let text = format!("[traces]\n{table}");
        GatewayConfig::from_toml(&text).unwrap_err().mistakes().to_vec().join("\n")
    };
    for (table, expected) in [
        ("", "traces.endpoint is missing, expected an http or https URL"),
        ("endpoint = 'here'", "traces.endpoint is \"here\", expected an http or https URL"),
        ("endpoint = 'http://u:pass@a'", "traces.endpoint is a URL with credentials, expected one without"),
        ("endpoint = 'http://a?key=pass'", "traces.endpoint is a URL with a query, expected a base URL"),
        ("endpoint = 'http://a'\nsample = 2", "traces.sample is 2, expected a share, 0 to 1"),
        ("endpoint = 'http://a'\nservice = ''", "traces.service is \"\", expected a name"),
        ("endpoint = 'http://a'\nheaders = { 'a b' = 'c' }", "traces.headers.a b is invalid, expected a header's name"),
        ("endpoint = 'http://a'\nx = 1", "traces.x is unknown, expected one of endpoint, sample, service, headers"),
    ] {
        let said = mistakes(table);
        assert!(said.contains(expected) && !said.contains("pass"), "{table}: {said}");
    }
}
