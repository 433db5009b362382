//! A machine that is in the way: logs that cannot be written, files that block, and other work that takes the time.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;

use crate::raw::post;
use crate::support::{CHAT, DEADLINE, Provider, TempFile, hang, nobody, temp_path, until, until_closed, until_open};

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
        until_open(address).await;
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
async fn a_log_that_cannot_be_written_fails_no_request_and_does_not_end_the_process() {
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
async fn a_log_that_nobody_reads_delays_no_request_and_does_not_keep_the_process_from_ending() {
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
    until(|| hanging.hits() > 0).await;
    process.signal("-TERM");
    until_closed(process.address).await;
    process.signal("-TERM");
    assert_eq!(process.ended().await, Some(1));
    drop(unread);
    let _ = (stuffed.join(), pipe.flush());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_handled_while_a_reload_hangs_in_its_file() {
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
async fn a_gateway_that_gets_little_cpu_time_judges_no_provider_silent() {
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
