//! The binary: what it does with a signal, and what its demo shows.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::support::{
    CHAT, DEADLINE, Provider, TempFile, another, nobody, one_by_one, streamed, temp_path, until_closed, until_open,
};

#[tokio::test]
async fn sigterm_lets_a_stream_finish_and_ends_with_success() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let address = nobody().await;
    let text = format!(
        "[server]\nlisten = '{address}'\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m']",
        a.address
    );
    let file = TempFile::new("sigterm.toml", text);
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["serve", "--config"])
        .arg(&*file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until_open(address).await;

    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = hyper::Request::post(format!("http://{address}/v1/chat/completions"));
    let request = request.body(Full::new(Bytes::from(another(CHAT)))).unwrap();
    let (response, ()) =
        tokio::join!(client.request(request), async { sender.send_data("data: 1\n\n".into()).await.unwrap() });
    assert!(Command::new("kill").arg(gateway.id().to_string()).status().unwrap().success());
    until_closed(address).await;
    sender.send_data("data: 2\n\n".into()).await.unwrap();
    drop(sender);
    let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "data: 1\n\ndata: 2\n\n");
    let ended = tokio::task::spawn_blocking(move || gateway.wait().unwrap());
    assert!(tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap().success());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn systemd_is_told_when_it_listens_reloads_and_ends() {
    let a = Provider::with_status(200).await;
    let address = nobody().await;
    let config = |listen| format!("[server]\nlisten = '{listen}'\n{}", provider("a", &a));
    let file = TempFile::new("notify.toml", config(address));
    let path = temp_path("notify.socket");
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["serve", "--config"])
        .arg(&*file)
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = async || {
        let mut text = [0; 200];
        let length = tokio::time::timeout(DEADLINE, socket.recv(&mut text)).await.unwrap().unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    let signal = |signal: &str| {
        assert!(Command::new("kill").args([signal, &gateway.id().to_string()]).status().unwrap().success());
    };
    assert_eq!(told().await, "READY=1\n");
    tokio::net::TcpStream::connect(address).await.expect("it listens");
    for text in [config(address), "nonsense".to_owned()] {
        std::fs::write(&*file, text).unwrap();
        signal("-HUP");
        let reloading = told().await;
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert_eq!(told().await, "READY=1\n");
    }
    signal("-TERM");
    assert_eq!(told().await, "STOPPING=1\n");
    let ended = tokio::task::spawn_blocking(move || gateway.wait().unwrap());
    assert!(tokio::time::timeout(DEADLINE, ended).await.unwrap().unwrap().success());
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_gateway_at_once() {
    let (mut sender, response) = streamed();
    let a = Provider::start(one_by_one(vec![response])).await;
    let mut gateway = Serving::start("second-signal", &provider("a", &a)).await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = hyper::Request::post(format!("http://{}/v1/chat/completions", gateway.address));
    let request = request.body(Full::new(Bytes::from(another(CHAT)))).unwrap();
    let (response, ()) =
        tokio::join!(client.request(request), async { sender.send_data("data: 1\n\n".into()).await.unwrap() });
    let mut body = response.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");

    gateway.signal("-TERM");
    let start = Instant::now();
    until_closed(gateway.address).await;
    assert!(gateway.process.try_wait().unwrap().is_none(), "a stream is in flight");
    gateway.signal("-TERM");
    let status = tokio::task::block_in_place(|| gateway.process.wait().unwrap());
    assert_eq!(status.code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(20), "and does not wait for the drain limit of 30 s");
}

/// The binary, serving a configuration, and its standard error; ended when it is dropped.
struct Serving {
    process: Child,
    address: SocketAddr,
    file: TempFile,
    /// The lines of its log.
    log: mpsc::Receiver<String>,
}

impl Serving {
    async fn start(name: &str, providers: &str) -> Self {
        let address = nobody().await;
        let file = TempFile::new(&format!("{name}.toml"), format!("[server]\nlisten = '{address}'\n{providers}"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_fusebox"))
            .args(["serve", "--log", "json", "--config"])
            .arg(&*file)
            .stdout(std::fs::File::create(file.with_extension("log")).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let (send, log) = mpsc::channel();
        // A thread, so that waiting for a line has a deadline.
        std::thread::spawn(move || lines.map_while(Result::ok).all(|line| send.send(line).is_ok()));
        until_open(address).await;
        Self { process, address, file, log }
    }

    /// Replaces the file, says so, and returns the log up to the line that has `until`.
    fn reload(&mut self, providers: &str, until: &str) -> String {
        std::fs::write(&*self.file, format!("[server]\nlisten = '{}'\n{providers}", self.address)).unwrap();
        self.signal("-HUP");
        let mut text = String::new();
        while !text.contains(until) {
            let line = self.log.recv_timeout(DEADLINE);
            text += &line.unwrap_or_else(|error| panic!("no {until:?} in the log: {error}: {text}"));
            text.push('\n');
        }
        text
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
    }

    async fn ask(&self) -> (u16, String) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = hyper::Request::post(format!("http://{}/v1/chat/completions", self.address));
        let request = request.body(Full::new(Bytes::from(another(CHAT)))).unwrap();
        let response = client.request(request).await.unwrap();
        let provider = response.headers()["x-fusebox-provider"].to_str().unwrap().to_owned();
        (response.status().as_u16(), provider)
    }
}

impl Serving {
    async fn get(&self, path: &str) -> String {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", self.address).parse().unwrap();
        let body = client.get(uri).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(self.file.with_extension("log"));
    }
}

fn provider(name: &str, provider: &Provider) -> String {
    format!("[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\nmodels = ['m']\n", provider.address)
}

#[tokio::test]
async fn sighup_reloads_the_configuration_and_refuses_one_with_mistakes() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let mut gateway = Serving::start("sighup", &provider("a", &a)).await;
    assert_eq!(gateway.ask().await, (200, "a".to_owned()));
    gateway.reload(&provider("b", &b), "configuration reloaded");
    assert_eq!(gateway.ask().await, (200, "b".to_owned()));
    let log = gateway.reload("[[providers]]\nname = 'c'\nmodels = 3", "configuration not reloaded");
    for mistake in [":3: providers[0].url is missing", ":5: providers[0].models is 3"] {
        assert!(log.contains(mistake), "{log}");
    }
    assert_eq!(gateway.ask().await, (200, "b".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_reloads_under_load_fail_no_request_and_lose_no_breaker_state() {
    let (bad, good) = (Provider::with_status(500).await, Provider::with_status(200).await);
    let providers = ["bad", "good"].iter().zip([&bad, &good]).map(|(name, at)| provider(name, at)).collect::<String>();
    let extra = provider("extra", &good);
    let config = move |number: usize| {
        let (idle, failures) = if number.is_multiple_of(2) { ("30s", 3) } else { ("40s", 4) };
        let extra = if number.is_multiple_of(3) { &*extra } else { "" };
        format!(
            "[timeouts]\nidle = '{idle}'\n[breaker]\nopen_for = '1h'\nfailure_threshold = {failures}\n{providers}{extra}"
        )
    };
    let mut gateway = Serving::start("reloads", &config(0)).await;
    for _ in 0..3 {
        gateway.ask().await;
    }
    let address = gateway.address;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let load = tokio::spawn(async move {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let mut due = tokio::time::interval(Duration::from_millis(2));
        let mut requests = tokio::task::JoinSet::new();
        while !over.load(Ordering::Relaxed) {
            due.tick().await;
            let client = client.clone();
            requests.spawn(async move {
                let request = hyper::Request::post(format!("http://{address}/v1/chat/completions"));
                let request = request.body(Full::new(Bytes::from(another(CHAT)))).unwrap();
                let response = client.request(request).await.unwrap();
                assert!(response.status() == StatusCode::OK && response.headers()["x-fusebox-provider"] == "good");
                response.into_body().collect().await.unwrap();
            });
        }
        requests.join_all().await.len()
    });
    let mut gateway = tokio::task::spawn_blocking(move || {
        for number in 1..=200 {
            gateway.reload(&config(number), "configuration reloaded");
            // Some requests come in between.
            std::thread::park_timeout(Duration::from_millis(10));
        }
        gateway
    })
    .await
    .unwrap();
    is_over.store(true, Ordering::Relaxed);
    let requests = load.await.unwrap();
    assert!(requests >= 500, "{requests}");
    assert_eq!(bad.hits(), 3, "its circuit was open all the time");
    // The last answer is counted a moment after it has arrived.
    let all = format!("fusebox_requests_total{{status=\"2xx\"}} {}", requests + 3);
    let start = Instant::now();
    let metrics = loop {
        let metrics = gateway.get("/metrics").await;
        if start.elapsed() > DEADLINE || metrics.lines().any(|line| line == all) {
            break metrics;
        }
    };
    for line in [
        "fusebox_circuit_state{provider=\"bad\",model=\"m\",answer=\"whole\",state=\"open\"} 1",
        "fusebox_circuit_trips_total{provider=\"bad\",model=\"m\",answer=\"whole\"} 1",
        "fusebox_circuit_failures{provider=\"bad\",model=\"m\",answer=\"whole\"} 3",
        "fusebox_config_reloads_total{result=\"applied\"} 200",
        &all,
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    eprintln!("{requests} requests, 200 reloads, no failed request");
    gateway.signal("-TERM");
    assert!(gateway.process.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_paused_itself_blames_no_provider() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    // This program, which is the providers, may be held up for a while, too.
    let config = format!("[silence]\nfloor = '90ms'\n{}{}", provider("a", &a), provider("b", &b));
    let gateway = Serving::start("held-up", &config).await;
    let address = gateway.address;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        clients.spawn(async move {
            let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
            loop {
                let request = hyper::Request::post(format!("http://{address}/v1/chat/completions"));
                let request = request.body(Full::new(Bytes::from(another(CHAT)))).unwrap();
                client.request(request).await.unwrap().into_body().collect().await.unwrap();
            }
        });
    }
    let start = Instant::now();
    for pause in [40, 100, 250, 1000, 500, 250, 250, 120, 120, 120] {
        let seen = a.hits();
        while a.hits() < seen + 500 {
            assert!(start.elapsed() < DEADLINE);
            tokio::task::yield_now().await;
        }
        gateway.signal("-STOP");
        tokio::time::sleep(Duration::from_millis(pause)).await;
        gateway.signal("-CONT");
    }
    let metrics = gateway.get("/metrics").await;
    for line in [
        "fusebox_circuit_trips_total{provider=\"a\"} 0",
        "fusebox_silence_learnt{provider=\"a\",model=\"m\",awaited=\"answer\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    assert_eq!(b.hits(), 0);
}

#[tokio::test]
async fn the_access_log_is_on_standard_output_and_whole_when_the_program_ends() {
    let a = Provider::with_status(200).await;
    let mut gateway = Serving::start("access-log", &provider("a", &a)).await;
    for _ in 0..3 {
        gateway.ask().await;
    }
    gateway.signal("-TERM");
    assert!(gateway.process.wait().unwrap().success());
    let text = std::fs::read_to_string(gateway.file.with_extension("log")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["provider"] == "a" && line["status"] == 200), "{text}");
}

fn demo(fault: &str, stream_share: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["demo", "--outage", "3s", "--rate", "50", "--json", "--fault", fault, "--stream-share", stream_share])
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && shown.lines().count() == 1, "{shown}");
    serde_json::from_str(&shown).unwrap()
}

fn number(summary: &Value, name: &str) -> f64 {
    summary[name].as_f64().unwrap_or_else(|| panic!("{name}: {summary}"))
}

/// What holds for every fault that opens the circuit. No time is judged: it only has to be there.
fn check(summary: &Value, outcome: &str) {
    let number = |name: &str| number(summary, name);
    assert!(number("requests") >= 200.0 && number("trips") >= 1.0 && number("probes") >= 1.0, "{summary}");
    // The threshold, a probe for each open interval of 2 s, what was under way, and 3 because that is counted from
    // outside, up to a few milliseconds after the trip.
    assert!(number("faulty_provider_hits") <= 3.0 + 2.0 + number("in_flight_at_trip") + 3.0, "{summary}");
    assert!(summary["faulty_provider_outcomes"][outcome].as_f64().unwrap() >= 3.0, "{summary}");
    for time in ["time_to_open_ms", "time_to_close_ms", "p50_ms", "p99_ms"] {
        assert!(number(time) > 0.0, "{summary}");
    }
}

fn check_unnoticed(summary: &Value, outcome: &str) {
    check(summary, outcome);
    assert_eq!(summary["client_errors"], 0, "{summary}");
}

#[test]
fn the_demo_loses_a_provider_that_answers_500_and_no_client_notices() {
    let summary = demo("500", "0.5");
    check_unnoticed(&summary, "5xx");
    // What was on its way when the outage began or ended is counted on one side only.
    let served = summary["faults_served"]["500"].as_f64().unwrap();
    assert!((served - number(&summary, "faulty_provider_hits")).abs() <= 2.0, "the provider itself counts: {summary}");
}

#[test]
fn the_demo_loses_a_provider_that_hangs_and_no_client_notices() {
    let summary = demo("hang", "0.5");
    check_unnoticed(&summary, "silent");
    assert!(number(&summary["outage"], "p99_ms") < 1000.0, "no timeout was waited for: {summary}");
}

#[test]
fn the_demo_goes_back_to_a_paused_provider_when_it_answers() {
    let summary = demo("pause", "0.5");
    check_unnoticed(&summary, "silent");
    assert_eq!(summary["faulty_provider_outcomes"].get("first_byte_timeout"), None, "{summary}");
}

#[test]
fn the_demo_loses_a_provider_that_refuses_connections_and_no_client_notices() {
    check_unnoticed(&demo("refuse", "0.5"), "connect");
}

#[test]
fn the_demo_asks_a_provider_that_answers_429_later() {
    let summary = demo("429", "0.5");
    assert_eq!(summary["client_errors"], json!(0), "{summary}");
    assert!((1.0..=12.0).contains(&number(&summary, "faulty_provider_hits")), "{summary}");
}

#[test]
fn the_demo_loses_a_provider_that_cuts_its_answers_off_and_no_client_notices() {
    check_unnoticed(&demo("abort", "0"), "cut");
}

#[test]
fn the_demo_loses_a_provider_that_drips_and_no_client_notices() {
    check_unnoticed(&demo("slow", "0"), "silent");
}

#[test]
fn the_demo_cuts_only_the_streams_in_flight_at_the_opening_and_one_per_probe() {
    let summary = demo("abort", "1");
    check(&summary, "cut");
    // The failures that opened the circuit, the requests in flight, one per probe; and 3 as above.
    let most = 3.0 + number(&summary, "in_flight_at_trip") + number(&summary, "probes") + 3.0;
    assert!((3.0..=most).contains(&number(&summary, "cut_streams")), "{summary}");
    assert_eq!(summary["client_errors"], summary["cut_streams"], "and each ends with an error event: {summary}");
}

#[test]
fn the_demo_prints_lines_where_there_is_no_terminal() {
    let output = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["demo", "--outage", "300ms", "--rate", "50", "--fault", "500"])
        .output()
        .unwrap();
    let (out, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && out.starts_with("requests  ") && !out.contains('\x1b'), "{out}");
    for part in ["primary fails with 500", " open ", "next probe in", "(5xx: 500 Internal Server Error)"] {
        assert!(log.contains(part), "{part}: {log}");
    }
}

#[test]
fn the_demo_explains_its_arguments() {
    for wrong in [["--stream-share", "2"], ["--fault", "500"], ["--rate", "0"], ["--outage", "soon"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_fusebox")).arg("demo").args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains(wrong[0]), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_names_it() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let a = Provider::with_status(200).await;
    let running = crate::support::Gateway::start(&[&a], "", "", "").await;
    for address in [taken.local_addr().unwrap(), running.address] {
        let text = format!(
            "[server]\nlisten = '{address}'\n[[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m']",
            a.address
        );
        let file = TempFile::new("second.toml", text);
        let mut second = Command::new(env!("CARGO_BIN_EXE_fusebox"));
        second.args(["serve", "--config"]).arg(&*file);
        let output = tokio::task::spawn_blocking(move || second.output().unwrap());
        let output = tokio::time::timeout(DEADLINE, output).await.unwrap().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!("fusebox: server.listen: {address} cannot be bound: Address already in use");
        assert!(output.status.code() == Some(1) && said.contains(&expected), "{said}");
    }
}

#[test]
fn more_cores_than_the_system_gives_are_an_error_that_names_the_setting() {
    let text = "[server]\nlisten = '127.0.0.1:0'\ncores = 1000\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
    let file = TempFile::new("cores.toml", text);
    // Each runtime needs a few file descriptors.
    let run = format!("ulimit -n 100; exec {} serve --config {}", env!("CARGO_BIN_EXE_fusebox"), file.display());
    let output = Command::new("sh").args(["-c", &run]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "fusebox: server.cores: 1000 threads cannot be started: ";
    assert!(output.status.code() == Some(1) && said.contains(expected), "{said}");
    assert!(!said.contains("listening"), "before a port is bound: {said}");
}
