//! Sends requests of one size, of twice and of four times that size through the gateway's router, and counts
//! instructions by callgrind: what is added by the second doubling may be little more than twice what the first one
//! added. It needs valgrind.
//!
//! `cargo run -p growth-bench`; a case that grows faster is named, and the exit code is 1.

use std::process::{Command, ExitCode};

use axum::body::Body;
use axum::http::Request;
use fusebox::proxy::{AppState, GatewayConfig, create_router};
use tower::ServiceExt;

/// Linear growth is 2, quadratic 4.
const MOST: f64 = 2.6;

struct Case {
    name: &'static str,
    size: usize,
    request: fn(usize) -> Request<Body>,
}

const CASES: [Case; 11] = [
    // Refused for its length from the second size on, which must not cost more.
    Case { name: "an encoded path", size: 2000, request: |n| post(&format!("/v1/%{}", "25".repeat(n)), "", "") },
    Case { name: "a path with dots", size: 1500, request: |n| post(&format!("/v1/{}", "a.".repeat(n / 2)), "", "{}") },
    Case { name: "a query", size: 500, request: |n| post(&format!("/v1/x?{}", "a=b&".repeat(n)), "", "{}") },
    Case { name: "names in connection", size: 1000, request: |n| header("connection", &"a,".repeat(n)) },
    Case { name: "parameters of a type", size: 1000, request: |n| header("content-type", &parameters(n)) },
    Case { name: "a token", size: 2000, request: |n| header("authorization", &format!("Bearer {}", "x".repeat(n))) },
    Case { name: "keys", size: 1000, request: |n| json(&"\"key\":0,".repeat(n)) },
    Case { name: "escapes", size: 1000, request: |n| json(&format!("\"x\":\"{}\",", "\\u0041".repeat(n))) },
    Case { name: "parts of a form", size: 200, request: |n| form(&part("x").repeat(n)) },
    Case { name: "delimiters of a form that are none", size: 1000, request: |n| form(&"\r\n--".repeat(n)) },
    Case { name: "empty lines of a form", size: 1000, request: |n| form(&"\r\n\r\n".repeat(n)) },
];

fn post(path: &str, content_type: &str, body: &str) -> Request<Body> {
    let request = Request::post(path).header("host", "g").header("content-type", content_type);
    request.body(Body::from(body.to_owned())).expect("a request")
}

fn header(name: &str, value: &str) -> Request<Body> {
    Request::post("/v1/x").header(name, value).body(Body::from("{\"model\":\"none\"}")).expect("a request")
}

fn parameters(count: usize) -> String {
    format!("multipart/form-data; {}boundary=x", "a=b; ".repeat(count))
}

fn json(members: &str) -> Request<Body> {
    post("/v1/x", "application/json", &format!("{{{members}\"model\":\"none\"}}"))
}

fn part(name: &str) -> String {
    format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\nvalue\r\n")
}

fn form(parts: &str) -> Request<Body> {
    post("/v1/x", "multipart/form-data; boundary=x", &format!("{parts}{}--x--\r\n", part("model")))
}

/// The counted work: one request that reaches no provider.
fn run(case: &Case, size: usize) {
    let config = "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
    let state = AppState::new(&GatewayConfig::from_toml(config).expect("it is right")).expect("it can be set up");
    let request = (case.request)(size);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Ok(response) = runtime.block_on(create_router(state).oneshot(request));
    assert!(!response.status().is_success(), "{}: {}", case.name, response.status());
}

fn instructions(case: &str, size: usize) -> f64 {
    let itself = std::env::current_exe().expect("it runs");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    let output = valgrind.arg(itself).args([case, &size.to_string()]).output().expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{case}: {said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).expect("callgrind says it");
    collected.1.trim().parse().expect("a number")
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [name, size] = &arguments[..] {
        let case = CASES.iter().find(|case| case.name == name).expect("one of the cases");
        run(case, size.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    println!("| what grows | size | instructions for the first doubling | for the second | ratio |");
    println!("|---|---|---|---|---|");
    let mut fails = false;
    for Case { name, size, .. } in &CASES {
        let counting = [1, 2, 4].map(|times| std::thread::spawn(move || instructions(name, times * size)));
        let [one, two, four] = counting.map(|counted| counted.join().expect("it has said why"));
        let (first, second) = ((two - one).max(0.0), (four - two).max(0.0));
        // A few thousand more or less are the noise of hashes and addresses.
        let ratio = second / first.max(50_000.0);
        println!("| {name} | {size} | {first} | {second} | {ratio:.2} |");
        fails |= ratio > MOST;
    }
    if fails {
        println!("\nmore than {MOST}: the work grows faster than the input");
    }
    ExitCode::from(u8::from(fails))
}
