//! The admin API.

use std::collections::BTreeSet;

use fusebox::CircuitState;
use fusebox::proxy::GatewayConfig;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::support::{Answer, Gateway, Provider, another, read, soon};

const TOKENS: &str = "admin_tokens = [{ name = 'on-call', token = 's3cret' }, 'other']";

fn request(gateway: &Gateway, method: &str, path: &str, body: &str) -> Request<Full<bytes::Bytes>> {
    let uri = format!("http://{}/admin/v1/{path}", gateway.admin);
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    request.body(Full::from(body.to_owned())).unwrap()
}

async fn get(gateway: &Gateway, path: &str) -> Value {
    let answer = read(gateway.send(request(gateway, "GET", path, "")).await).await;
    assert_eq!(answer.status, 200, "{path}");
    answer.json()
}

async fn post(gateway: &Gateway, path: &str, body: &str) -> Answer {
    read(gateway.send(request(gateway, "POST", path, body)).await).await
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_isolated_provider_gets_no_request_until_it_is_released() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "", "", "").await;
    assert!(gateway.ask().await.is_by(&a));
    let answer = post(&gateway, "circuits/a/isolate", r#"{"reason": "their incident"}"#).await;
    assert_eq!((answer.status, &answer.json()["order"]["reason"]), (200, &json!("their incident")));
    for _ in 0..3 {
        assert!(gateway.ask().await.is_by(&b));
    }
    let view = get(&gateway, "circuits").await;
    let shown = &view["providers"][0];
    assert_eq!((&shown["state"], &shown["cause"]), (&json!("open"), &json!("isolated")));
    assert_eq!((&shown["order"]["order"], &shown["order"]["until"]), (&json!("isolate"), &json!(null)));
    assert_eq!(post(&gateway, "circuits/a/release", "").await.status, 200);
    assert!(gateway.ask().await.is_by(&a));
    let again = post(&gateway, "circuits/a/release", "").await;
    assert_eq!(again.status, 409, "{}", message(&again));
    assert_eq!(get(&gateway, "circuits").await["providers"][0]["order"], Value::Null);
}

#[tokio::test]
async fn a_release_leaves_a_circuit_open_that_is_open_by_itself_and_a_reset_closes_it() {
    let a = Provider::with_status(500).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1\nopen_for = '1h'", "").await;
    gateway.ask().await;
    assert_eq!(gateway.state_of("a"), "open");
    assert_eq!(post(&gateway, "circuits/a/m/release", "{}").await.status, 409);
    assert_eq!(gateway.state_of("a"), "open");
    assert_eq!(post(&gateway, "circuits/a/reset", "{}").await.status, 200, "of a provider it resets its models");
    assert_eq!(gateway.state_of("a"), "closed");
}

#[tokio::test]
async fn an_order_for_one_model_or_one_kind_of_answer_leaves_the_others_alone() {
    let a = Provider::with_status(200).await;
    let text =
        format!("[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m', 'other/model', 'x, y']", a.address);
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    let status = async |model: &str, stream: bool| {
        let body = format!("{{\"model\": \"{model}\", \"stream\": {stream}, \"messages\": []}}");
        gateway.post("/v1/chat/completions", &another(&body)).await.status
    };
    let wish = r#"{"reason": "why"}"#;
    assert_eq!(post(&gateway, "circuits/a/other%2Fmodel/stream/isolate", wish).await.status, 200);
    assert_eq!(post(&gateway, "circuits/a/x%2C%20y/isolate", wish).await.status, 200);
    assert_eq!([status("other/model", false).await, status("other/model", true).await], [200, 503]);
    assert_eq!([status("m", false).await, status("m", true).await, status("x, y", false).await], [200, 200, 503]);
    assert_eq!(post(&gateway, "circuits/a/x%2C%20y/release", "").await.status, 200);
    assert_eq!(status("x, y", false).await, 200);
}

#[tokio::test]
async fn an_order_ends_by_itself_and_a_later_one_replaces_it() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    post(&gateway, "circuits/a/isolate", r#"{"reason": "for a moment", "for": "1s"}"#).await;
    assert_eq!(gateway.ask().await.status, 503);
    gateway.reaches("a", "closed").await;
    assert_eq!(gateway.ask().await.status, 200);

    post(&gateway, "circuits/a/isolate", r#"{"reason": "for a moment", "for": "1h"}"#).await;
    post(&gateway, "circuits/a/disable", r#"{"reason": "until told"}"#).await;
    let order = get(&gateway, "circuits").await["providers"][0]["order"].clone();
    assert_eq!((&order["order"], &order["until"]), (&json!("disable"), &json!(null)), "{order}");
    assert_eq!(gateway.own_breaker("a").state(), CircuitState::Disabled);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_and_nothing_is_done() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    for (path, body, status, said) in [
        ("circuits/a/isolate", "{}", 400, "reason is missing"),
        ("circuits/a/isolate", r#"{"reason": ""}"#, 400, "reason has 0 bytes, expected 1 to 500"),
        ("circuits/a/isolate", r#"{"reason": 3}"#, 400, "invalid type: integer `3`, expected a string"),
        ("circuits/a/isolate", r#"{"reason": "r", "for": "soon"}"#, 400, "for is \"soon\", expected a duration"),
        ("circuits/a/isolate", r#"{"reason": "r", "for": "0s"}"#, 400, "for is \"0s\", expected 1s to 366days"),
        (
            "circuits/a/isolate",
            r#"{"reason": "r", "until": "tomorrow"}"#,
            400,
            "until is \"tomorrow\", expected a time",
        ),
        ("circuits/a/isolate", r#"{"reason": "r", "until": "2001-01-01T00:00:00Z"}"#, 400, "from now"),
        (
            "circuits/a/isolate",
            r#"{"reason": "r", "until": "2099-01-01T00:00:00Z"}"#,
            400,
            "expected 1s to 366days from now",
        ),
        ("circuits/a/isolate", r#"{"reason": "r", "for": "1h", "until": "2030-01-01T00:00:00Z"}"#, 400, "both there"),
        ("circuits/a/isolate", r#"{"reason": "r", "util": "1h"}"#, 400, "unknown field `util`"),
        ("circuits/a/isolate", "nonsense", 400, "The body is invalid"),
        ("circuits/a/release", r#"{"for": "1h"}"#, 400, "belong to isolate and disable"),
        ("circuits/z/isolate", r#"{"reason": "r"}"#, 404, "There is no provider \"z\"."),
        ("circuits/a/z/isolate", r#"{"reason": "r"}"#, 404, "a does not serve the model \"z\"."),
        ("circuits/a/m/pieces/isolate", r#"{"reason": "r"}"#, 404, "The kind is \"pieces\""),
        ("circuits/a/open", r#"{"reason": "r"}"#, 404, "The action is \"open\""),
        ("circuits/a/m/whole/x/isolate", r#"{"reason": "r"}"#, 404, "Expected /admin/v1/circuits/"),
        ("reload", "", 409, "not started with a configuration file"),
    ] {
        let answer = post(&gateway, path, body).await;
        assert_eq!(answer.status, status, "{path} {body}");
        assert!(message(&answer).contains(said), "{path} {body}: {}", message(&answer));
    }
    let long = format!(r#"{{"reason": "{}"}}"#, "r".repeat(20_000));
    assert_eq!(post(&gateway, "circuits/a/isolate", &long).await.status, 413);
    let mut form = request(&gateway, "POST", "circuits/a/isolate", "reason=r");
    form.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(read(gateway.send(form).await).await.status, 415);
    assert_eq!(read(gateway.send(request(&gateway, "POST", "circuits", "")).await).await.status, 405);
    assert_eq!(gateway.state_of("a"), "closed");
}

#[tokio::test]
async fn with_tokens_nobody_looks_or_acts_without_one_and_health_needs_none() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], TOKENS, "", "").await;
    let paths = [
        ("GET", "circuits"),
        ("GET", "config"),
        ("GET", "events"),
        ("GET", "openapi.json"),
        ("POST", "reload"),
        ("POST", "circuits/a/isolate"),
        ("POST", "circuits/a/reset"),
    ];
    for token in [None, Some("wrong"), Some("s3cre"), Some("s3cret2"), Some("")] {
        for (method, path) in paths {
            let mut request = request(&gateway, method, path, r#"{"reason": "r"}"#);
            if let Some(token) = token {
                request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            }
            let answer = read(gateway.send(request).await).await;
            assert_eq!(answer.status, 401, "{token:?} {path}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    assert_eq!(gateway.state_of("a"), "closed");
    let mut good = request(&gateway, "POST", "circuits/a/isolate", r#"{"reason": "r"}"#);
    good.headers_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    let said = read(gateway.send(good).await).await;
    assert_eq!((said.status, &said.json()["order"]["by"]), (200, &json!("on-call")));
    for path in ["/", "/page.js", "/page.css", "/health", "/ready", "/metrics"] {
        let uri = format!("http://{}{path}", gateway.admin);
        let status = gateway.send(Request::get(uri).body(Full::default()).unwrap()).await.status();
        assert!(status != 401 && status != 404, "{path}: {status}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_cannot_use_it() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let port = gateway.admin.port();
    let own = format!("http://127.0.0.1:{port}");
    for (headers, status) in [
        (vec![("origin", "https://evil.example")], 403),
        (vec![("origin", "null")], 403),
        (vec![("origin", "http://127.0.0.1:1")], 403),
        (vec![("sec-fetch-site", "cross-site")], 403),
        // A name that was pointed at this machine: its pages are of the same origin.
        (vec![("host", "evil.example"), ("origin", "http://evil.example")], 403),
        (vec![("host", "localhost.evil.example")], 403),
        (vec![("host", "localhost:1234")], 200),
        (vec![("host", "[::1]:1234")], 200),
        (vec![("origin", &*own), ("sec-fetch-site", "same-origin")], 200),
        (vec![], 200),
    ] {
        for (method, path) in [("POST", "circuits/a/reset"), ("GET", "circuits")] {
            let mut request = request(&gateway, method, path, "{}");
            for (name, value) in &headers {
                request.headers_mut().insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
            }
            let answer = read(gateway.send(request).await).await;
            assert_eq!(answer.status, status, "{headers:?} {path}");
        }
    }
}

#[test]
fn an_address_that_others_reach_is_refused_without_tokens_or_certificates() {
    let mistakes = |server: &str| {
        let text =
            format!("[server]\n{server}\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']");
        GatewayConfig::from_toml(&text).map_err(|errors| errors.mistakes().to_vec())
    };
    for address in ["0.0.0.0:8081", "[::]:8081", "192.0.2.1:8081", "[2001:db8::1]:8081"] {
        let found = mistakes(&format!("admin_listen = '{address}'")).unwrap_err();
        let expected = format!(
            "line 2: server.admin_listen is \"{address}\", expected a loopback address, or admin_tokens, or admin_tls with a client_ca"
        );
        assert_eq!(found, [expected]);
        assert!(mistakes(&format!("admin_listen = '{address}'\nadmin_tokens = ['t']")).is_ok());
    }
    for address in ["127.0.0.1:8081", "127.5.5.5:1", "[::1]:8081", "localhost:8081"] {
        assert!(mistakes(&format!("admin_listen = '{address}'")).is_ok(), "{address}");
    }
    for (tokens, expected) in [
        (
            "[{ name = 'a', token = 't' }, { name = 'a', token = 'u' }]",
            "admin_tokens[1].name is \"a\", expected a name that no other token has",
        ),
        ("[{ token = 't' }]", "admin_tokens[0].name is missing"),
        ("[{ name = 'a b', token = 't' }]", "admin_tokens[0].name is \"a b\", expected visible ASCII"),
        ("[{ name = 'a', token = 't', x = 1 }]", "admin_tokens[0].x is unknown, expected one of name, token"),
        ("['with space']", "admin_tokens[0] is empty or cannot be sent in a header"),
        ("'s3cret'", "admin_tokens is string, expected an array"),
        ("[3]", "admin_tokens[0] is integer, expected a text"),
    ] {
        let found = mistakes(&format!("admin_listen = '127.0.0.1:8081'\nadmin_tokens = {tokens}")).unwrap_err();
        assert!(found[0].contains(expected) && !found[0].contains("s3cret"), "{found:?}");
    }
}

#[tokio::test]
async fn a_reload_cannot_take_the_tokens_away_while_others_reach_the_port() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "admin_listen = '0.0.0.0:8081'\nadmin_tokens = ['s3cret']", "", "").await;
    // Valid by itself, but the port stays where it is until a restart.
    let text = format!(
        "[server]\nadmin_listen = '127.0.0.1:8081'\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m']",
        a.address
    );
    let error = gateway.state.reload(&GatewayConfig::from_toml(&text).unwrap()).unwrap_err();
    assert!(error.to_string().contains("until a restart"), "{error}");
    assert_eq!(post(&gateway, "circuits/a/reset", "").await.status, 401);
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let text = "[server]\nadmin_tokens = ['admin-s3cret']\nauth_tokens = [{ name = 'team-a', token = 'client-s3cret' }]\n\
                [[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']\n\
                api_keys = ['key-s3cret', 'another-s3cret']\nheaders = { x-org = 'header-s3cret' }\n\
                query = { sig = 'query-s3cret' }";
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(text).unwrap()).await;
    let mut request = request(&gateway, "GET", "config", "");
    request.headers_mut().insert("authorization", "Bearer admin-s3cret".parse().unwrap());
    let shown = read(gateway.send(request).await).await;
    let text = String::from_utf8(shown.body.to_vec()).unwrap();
    assert!(shown.status == 200 && !text.contains("s3cret"), "{text}");
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["server"]["auth_tokens"], json!([{"name": "team-a", "token": "***"}]));
    let provider = &shown["providers"][0];
    assert_eq!(provider["api_keys"], json!(["***", "***"]));
    assert_eq!((&provider["headers"], &provider["query"]), (&json!({"x-org": "***"}), &json!({"sig": "***"})));
    assert_eq!(provider["breaker"]["open_for"], "30s");
    assert_eq!((&provider["breaker"]["ramp"], &provider["breaker"]["ramp_from"]), (&json!("0s"), &json!(10)));
}

/// The next event of a stream: its name and its data.
async fn next(body: &mut hyper::body::Incoming, text: &mut String) -> (String, Value) {
    loop {
        if let Some((event, rest)) = text.split_once("\n\n") {
            let field =
                |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
            let (name, data) = (field("event: "), field("data: "));
            let length = text.len() - rest.len();
            text.drain(..length);
            if !name.is_empty() {
                return (name, serde_json::from_str(&data).unwrap());
            }
            continue;
        }
        let frame = soon(body.frame()).await.expect("the stream has ended").unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn events_tell_of_each_transition_and_of_every_second() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let mut gateway = Gateway::start(&[&a, &b], "", "failure_threshold = 1\nopen_for = '1h'", "").await;
    let mut events = gateway.send(request(&gateway, "GET", "events", "")).await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let (body, mut text) = (events.body_mut(), String::new());
    let (name, first) = next(body, &mut text).await;
    assert_eq!((&*name, &first["providers"][0]["state"]), ("circuits", &json!("closed")));
    assert!(gateway.ask().await.is_by(&b));
    let (mut opened, mut figures) = (None, None);
    while opened.is_none() || figures.is_none() {
        let (name, data) = next(body, &mut text).await;
        match &*name {
            "transition" => opened = Some(data),
            "figures" if data["failovers"][0]["last_minute"] == 1 => figures = Some(data),
            _ => assert_eq!(name, "figures"),
        }
    }
    let opened = opened.unwrap();
    let seen =
        ["provider", "model", "kind", "from", "to", "cause", "error_type"].map(|name| opened[name].as_str().unwrap());
    assert_eq!(seen, ["a", "m", "whole", "closed", "open", "failures", "5xx"]);
    let figures = figures.unwrap();
    assert_eq!(figures["failovers"], json!([{"from": "a", "to": "b", "last_minute": 1, "total": 1}]));
    let traffic = &figures["providers"][0]["traffic"];
    assert_eq!((&traffic["failed"], traffic["seconds"].as_array().unwrap().len()), (&json!(1), 1));
    let failure = &figures["providers"][0]["failures"][0];
    assert_eq!((&failure["outcome"], &failure["model"]), (&json!("5xx"), &json!("m")));
    // The end of the gateway ends the stream, which keeps nobody waiting.
    gateway.stop();
    soon(async { while body.frame().await.is_some_and(|frame| frame.is_ok()) {} }).await;
    soon(&mut gateway.server).await.unwrap();
}

#[tokio::test]
async fn a_reload_by_the_api_says_what_is_wrong_with_the_file() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let good = format!("[[providers]]\nname = 'z'\nurl = 'http://{}/v1'\nmodels = ['m']\n", a.address);
    let file = crate::support::TempFile::new("admin-reload.toml", &*good);
    gateway.state.set_file(file.to_path_buf());
    let said = post(&gateway, "reload", "").await;
    assert_eq!((said.status, &said.json()["applied"]), (200, &json!(true)));
    assert_eq!(get(&gateway, "circuits").await["providers"][0]["provider"], "z");
    std::fs::write(&*file, "[[providers]]\nname = 'c'\nmodels = 3").unwrap();
    let said = post(&gateway, "reload", "").await;
    assert_eq!((said.status, &said.json()["applied"]), (422, &json!(false)));
    assert!(said.json()["mistakes"][0].as_str().unwrap().contains("providers[0]"), "{}", said.json());
    assert_eq!(get(&gateway, "circuits").await["providers"][0]["provider"], "z");
}

/// Whether a value is as a schema of the description says, and has nothing else in it.
fn check(value: &Value, schema: &Value, all: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return check(value, &all["components"]["schemas"][name], all, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let choice = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null());
        return check(value, choice.unwrap_or_else(|| panic!("{at}: {value}")), all, at);
    }
    match schema["type"].as_str().unwrap() {
        "object" if schema["properties"].is_null() => assert!(value.is_object(), "{at}"),
        "object" => {
            let properties = schema["properties"].as_object().unwrap();
            for (name, value) in value.as_object().unwrap_or_else(|| panic!("{at}: {value}")) {
                let schema = properties.get(name).unwrap_or_else(|| panic!("{at}.{name} is not described"));
                check(value, schema, all, &format!("{at}.{name}"));
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                assert!(value.get(name.as_str().unwrap()).is_some(), "{at}.{name} is missing");
            }
        }
        "array" => value.as_array().unwrap().iter().for_each(|item| check(item, &schema["items"], all, at)),
        "string" => {
            let text = value.as_str().unwrap_or_else(|| panic!("{at}: {value}"));
            let listed = schema["enum"].as_array();
            assert!(listed.is_none_or(|listed| listed.iter().any(|it| it == text)), "{at}: {text}");
        }
        "integer" => assert!(value.is_u64(), "{at}: {value}"),
        "number" => assert!(value.is_number(), "{at}: {value}"),
        "boolean" => assert!(value.is_boolean(), "{at}: {value}"),
        "null" => assert!(value.is_null(), "{at}: {value}"),
        other => panic!("{at} is {other}"),
    }
}

#[tokio::test]
async fn the_description_has_every_route_and_no_other_and_answers_are_as_it_says() {
    let (a, b) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let extra = "api_keys = ['k1', 'k2']";
    let breaker = "failure_threshold = 1\nopen_for = '1h'";
    let text = format!("[breaker]\n{breaker}\n")
        + &["a", "b"].iter().zip([&a, &b]).fold(String::new(), |text, (name, at)| {
            format!(
                "{text}[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\nmodels = ['m', 'n']\n{extra}\n",
                at.address
            )
        });
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    let described = get(&gateway, "openapi.json").await;
    let source = include_str!("../../src/proxy/admin/api.rs");
    let routes = source.split(".route(\"/admin/").skip(1).map(|it| it.split('"').next().unwrap());
    let routes: BTreeSet<_> = routes.map(|route| format!("/admin/{route}")).collect();
    // One route has all circuits and actions.
    let route_of = |path: &String| {
        if path.ends_with("/{action}") { "/admin/v1/circuits/{*circuit}".to_owned() } else { path.clone() }
    };
    let paths: BTreeSet<_> = described["paths"].as_object().unwrap().keys().map(route_of).collect();
    assert_eq!(routes, paths);

    gateway.ask().await;
    post(&gateway, "circuits/b/isolate", r#"{"reason": "r", "for": "1h"}"#).await;
    let answer = |path: &str, method: &str, status: &str| {
        described["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"].clone()
    };
    let view = get(&gateway, "circuits").await;
    check(&view, &answer("/admin/v1/circuits", "get", "200"), &described, "view");
    assert!(
        view["providers"][0]["transitions"][0]["error_type"].is_string() && view["providers"][1]["order"].is_object()
    );
    let changed = post(&gateway, "circuits/a/m/stream/isolate", r#"{"reason": "r"}"#).await.json();
    let path = "/admin/v1/circuits/{provider}/{model}/{kind}/{action}";
    check(&changed, &answer(path, "post", "200"), &described, "changed");
    let refused = post(&gateway, "circuits/z/isolate", r#"{"reason": "r"}"#).await.json();
    check(&refused, &answer(path, "post", "404"), &described, "refused");
}
