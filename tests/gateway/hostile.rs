//! Clients, providers and machines that mean no good, or do none.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;

use crate::raw::{Act, OK, Raw, gateway, head_length, post};
use crate::support::{CHAT, DEADLINE, Gateway, Provider, TempFile, hang, nobody, temp_path};

// ---- clients ----

#[tokio::test]
async fn a_path_is_measured_before_it_is_decoded_and_one_that_is_encoded_many_times_is_refused() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "", "").await;
    let path = |levels: usize| format!("/v1/%{}", "25".repeat(levels));
    assert_eq!(gateway.post(&path(32_000 / 2), CHAT).await.status, 414);
    assert_eq!(gateway.post(&path(4000), CHAT).await.status, 400);
    assert_eq!(gateway.post(&path(2), CHAT).await.status, 200);
    assert_eq!(a.hits(), 1);
}

#[tokio::test]
async fn a_request_has_one_host_or_none_where_http_has_none() {
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
async fn a_client_that_leaves_with_bytes_behind_its_request_is_noticed() {
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
async fn a_model_that_a_provider_could_read_otherwise_reaches_none() {
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
        // The first one is clear, and asks for a model that nobody has.
        assert!(matches!(response.status().as_u16(), 400 | 404), "{kinds:?} {body}");
    }
    assert_eq!(a.hits(), 0);
}

#[tokio::test]
async fn operators_pages_are_not_on_the_clients_port_where_they_have_one_of_their_own() {
    let a = Provider::with_status(200).await;
    let apart = Gateway::start(&[&a], "admin_listen = '127.0.0.1:1'", "", "").await;
    let together = Gateway::start(&[&a], "", "", "").await;
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!((apart.get(path).await.status, together.get(path).await.status), (404, 200), "{path}");
    }
}

// ---- providers ----

#[tokio::test]
async fn an_answer_that_is_framed_twice_reaches_the_client_framed_once() {
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
        // What comes next on the connection is the next answer, and nothing of the one before.
        client.send(&post("", CHAT)).await;
        let next = client.answer().await;
        assert!(next.starts_with("HTTP/1.1 200 OK\r\n") && next.ends_with("ok"), "{next}");
    }
}

#[tokio::test]
async fn a_providers_key_is_struck_out_of_headers_too() {
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
async fn a_beginning_in_the_smallest_pieces_is_found_all_the_same() {
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
async fn a_body_for_which_there_is_no_room_is_passed_on_as_it_comes_and_so_is_such_an_answer() {
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
async fn where_nothing_can_be_held_small_requests_pass_and_one_whose_model_comes_late_is_told_to_come_again() {
    let a = Provider::start(|_| hang()).await;
    let b = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a, &b], "max_held_bytes = 1048576\nreplay_body_bytes = 2097152", "", "").await;
    // What hangs takes all there is.
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

// ---- the machine ----

/// The binary, serving one provider.
struct Process {
    child: Child,
    address: SocketAddr,
    file: TempFile,
}

impl Process {
    async fn start(name: &str, provider: SocketAddr, stderr: Stdio) -> Self {
        let address = nobody().await;
        let file = TempFile::new(&format!("{name}.toml"), config(address, provider));
        let child = on_one_core(env!("CARGO_BIN_EXE_fusebox"))
            .args(["serve", "--config"])
            .arg(&*file)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let start = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(start.elapsed() < DEADLINE);
            tokio::task::yield_now().await;
        }
        Self { child, address, file }
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    async fn ask(&self) -> u16 {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = hyper::Request::post(format!("http://{}/v1/chat/completions", self.address));
        let request = request.body(Full::new(Bytes::from_static(CHAT.as_bytes()))).unwrap();
        let response = tokio::time::timeout(DEADLINE, client.request(request)).await.expect("in time").unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status
    }

    /// How it ended.
    async fn ended(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < DEADLINE, "it does not end");
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// On the first core, so that others can have the rest of the machine for themselves.
fn on_one_core(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]);
    command
}

fn config(listen: SocketAddr, provider: SocketAddr) -> String {
    format!(
        "[server]\nlisten = '{listen}'\ncores = 1\n[breaker]\nfailure_threshold = 1000\n\
         [[providers]]\nname = 'a'\nurl = 'http://{provider}/v1'\nmodels = ['m']\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_is_no_error_of_a_request_and_no_reason_to_end() {
    let failing = Provider::with_status(500).await;
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    for (name, stderr) in [("log-full", Stdio::from(full)), ("log-gone", Stdio::from(gone))] {
        let mut process = Process::start(name, failing.address, stderr).await;
        for _ in 0..5 {
            assert_eq!(process.ask().await, 500);
        }
        process.signal("-TERM");
        assert_eq!(process.ended().await, Some(0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stalls_nobody_and_does_not_keep_the_process() {
    let failing = Provider::with_status(500).await;
    let (unread, mut pipe) = std::io::pipe().unwrap();
    // It takes no more.
    let stuffed = std::thread::spawn({
        let mut pipe = pipe.try_clone().unwrap();
        move || pipe.write_all(&vec![b'.'; 1 << 20])
    });
    let mut process = Process::start("log-unread", failing.address, Stdio::from(pipe.try_clone().unwrap())).await;
    // Each is a line or two.
    for _ in 0..300 {
        assert_eq!(process.ask().await, 500);
    }
    process.signal("-TERM");
    assert_eq!(process.ended().await, Some(0));
    drop(unread);
    let _ = (stuffed.join(), pipe.flush());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_process_whose_log_nobody_reads() {
    let hanging = Provider::start(|_| hang()).await;
    let (unread, mut pipe) = std::io::pipe().unwrap();
    let stuffed = std::thread::spawn({
        let mut pipe = pipe.try_clone().unwrap();
        move || pipe.write_all(&vec![b'.'; 1 << 20])
    });
    let mut process = Process::start("log-unread-twice", hanging.address, Stdio::from(pipe.try_clone().unwrap())).await;
    let mut client = TcpStream::connect(process.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client, post("", CHAT).as_bytes()).await.unwrap();
    let start = Instant::now();
    while hanging.hits() == 0 {
        assert!(start.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    process.signal("-TERM");
    while TcpStream::connect(process.address).await.is_ok() {
        assert!(start.elapsed() < DEADLINE);
        tokio::task::yield_now().await;
    }
    process.signal("-TERM");
    assert_eq!(process.ended().await, Some(1));
    drop(unread);
    let _ = (stuffed.join(), pipe.flush());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_blocks_keeps_no_other_signal_from_being_heard() {
    let (failing, good) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let mut process = Process::start("fifo", failing.address, Stdio::null()).await;
    assert_eq!(process.ask().await, 500);
    std::fs::remove_file(&*process.file).unwrap();
    assert!(Command::new("mkfifo").arg(&*process.file).status().unwrap().success());
    process.signal("-HUP");
    // Nobody writes to it; the next file is a good one.
    let next = TempFile::new("fifo-next.toml", config(process.address, good.address));
    let start = Instant::now();
    loop {
        std::fs::copy(&*next, temp_path("fifo-copy")).unwrap();
        std::fs::rename(temp_path("fifo-copy"), &*process.file).unwrap();
        process.signal("-HUP");
        if process.ask().await == 200 {
            break;
        }
        assert!(start.elapsed() < DEADLINE);
    }
    std::fs::remove_file(&*process.file).unwrap();
    assert!(Command::new("mkfifo").arg(&*process.file).status().unwrap().success());
    process.signal("-HUP");
    process.signal("-TERM");
    assert_eq!(process.ended().await, Some(0));
}

#[tokio::test]
async fn what_is_said_of_a_configuration_is_on_one_line_each_and_moves_no_cursor() {
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
async fn ports_that_are_none_are_refused() {
    for port in ["65536", "99999", "0", "", "080x"] {
        let text = format!("[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:{port}/v1'\nmodels = ['m']");
        assert!(fusebox::proxy::GatewayConfig::from_toml(&text).is_err(), "{port}");
    }
    for authority in ["a:65535", "[::1]", "[::1]:80", "a"] {
        let text = format!("[[providers]]\nname = 'a'\nurl = 'http://{authority}/v1'\nmodels = ['m']");
        assert!(fusebox::proxy::GatewayConfig::from_toml(&text).is_ok(), "{authority}");
    }
}

// ---- a busy machine ----

/// Answers every request after 20 ms.
async fn steady_provider() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = axum::Router::new().fallback(async || {
        wait(LATENCY).await;
        "{}"
    });
    tokio::spawn(axum::serve(listener, app).into_future());
    address
}

const LATENCY: Duration = Duration::from_millis(20);

/// For what takes time by itself.
async fn wait(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// Processes that do nothing but take the time of a core.
struct Spinners(Vec<Child>);

impl Spinners {
    fn start(count: usize) -> Self {
        let spin = || on_one_core("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..count).map(|_| spin()).collect())
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_gets_no_time_takes_no_provider_for_silent() {
    let provider = steady_provider().await;
    let process = Process::start("starved", provider, Stdio::null()).await;
    let address = process.address;
    let mut clients = tokio::task::JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for _ in 0..100 {
        let stopped = stopped.clone();
        clients.spawn(async move {
            let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
            let mut answers = 0;
            while !*stopped.borrow() {
                let request = Request::post(format!("http://{address}/v1/chat/completions"));
                let response = client.request(request.body(Full::from(CHAT)).unwrap()).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                answers += 1;
            }
            answers
        });
    }
    // It learns.
    wait(30 * LATENCY).await;
    for _ in 0..4 {
        process.signal("-STOP");
        wait(20 * LATENCY).await;
        process.signal("-CONT");
        wait(5 * LATENCY).await;
    }
    // As a control group's quota of a twentieth would.
    for _ in 0..20 {
        process.signal("-STOP");
        wait(Duration::from_millis(95)).await;
        process.signal("-CONT");
        wait(Duration::from_millis(5)).await;
    }
    let spinners = Spinners::start(3);
    wait(100 * LATENCY).await;
    drop(spinners);
    stop.send(true).unwrap();
    let answers: usize = tokio::time::timeout(DEADLINE, clients.join_all()).await.unwrap().into_iter().sum();
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let metrics = client.get(format!("http://{address}/metrics").parse().unwrap()).await.unwrap();
    let metrics = String::from_utf8(metrics.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(metrics.contains("fusebox_silence_learnt{provider=\"a\",model=\"m\",awaited=\"answer\"} 1\n"), "{metrics}");
    assert!(metrics.contains("fusebox_circuit_trips_total{provider=\"a\"} 0\n"), "after {answers} answers: {metrics}");
}
