//! The operators' page in Chromium, by way of `chromedriver`. They are not everywhere, so these tests are run by name:
//!
//! ```sh
//! apt-get install chromium chromium-driver
//! cargo test -p fusebox-browser -- --ignored
//! ```
//!
//! With `FUSEBOX_SCREENSHOTS` they write what `docs/ADMIN.md` shows into that folder.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use fusebox::Cause;
use fusebox::proxy::{AnswerKind, AppState, GatewayConfig, run_server};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);
const MARKUP: &str = "<img src=x onerror=\"window.hacked=1\">";

/// Stands for a phone's screen.
const PHONE: &str = "--window-size=500,1000";

/// Answers with a status that a test sets.
struct Provider {
    address: SocketAddr,
    status: Arc<AtomicU16>,
}

impl Provider {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, status) = (listener.local_addr().unwrap(), Arc::new(AtomicU16::new(200)));
        let told = Arc::clone(&status);
        let app = Router::new().fallback(move || {
            let status = told.load(Ordering::SeqCst);
            let answer = Response::builder().status(status).header("content-type", "application/json");
            async move { answer.body(Body::from("{\"choices\":[]}")).unwrap() }
        });
        tokio::spawn(axum::serve(listener, app).into_future());
        Self { address, status }
    }
}

struct Gateway {
    state: Arc<AppState>,
    clients: SocketAddr,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Gateway {
    async fn start(text: &str, admin: &str) -> Self {
        let state = AppState::new(&GatewayConfig::from_toml(text).unwrap()).unwrap();
        let [clients, admin] =
            [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind(admin).await].map(Result::unwrap);
        let addresses = [&clients, &admin].map(|it| it.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let running = run_server(Arc::clone(&state), clients, Some(admin), async {
            stopped.await.ok();
        });
        let server = tokio::spawn(async { running.await.unwrap() });
        Self { state, clients: addresses[0], admin: addresses[1], stop, server }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(DEADLINE, self.server).await.unwrap().unwrap();
    }

    /// No two of these requests are alike: the failures of the same one count once.
    async fn ask(&self, model: &str) -> String {
        static ASKED: AtomicU16 = AtomicU16::new(0);
        let body = json!({"model": model, "messages": [ASKED.fetch_add(1, Ordering::SeqCst)]}).to_string();
        let head = "content-type: application/json\r\nconnection: close";
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(self.clients).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer)).await.unwrap().unwrap();
        answer
    }
}

fn config(server: &str, a: &Provider, b: &Provider) -> String {
    let provider = |name: &str, provider: &Provider| {
        let models = format!("models = ['gpt-4.1', '{MARKUP}']");
        format!("[[providers]]\nname = '{name}'\nurl = 'http://{}/v1'\n{models}\n", provider.address)
    };
    format!(
        "[server]\ncores = 1\naccess_log = false\n{server}\n[breaker]\nopen_for = '1h'\n{}{}",
        provider("primary", a),
        provider("fallback", b)
    )
}

/// A browser that is gone with the test.
struct Browser {
    client: Client,
    _driver: Child,
}

impl Browser {
    async fn open(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut command = Command::new("chromedriver");
        let driver = command.arg(format!("--port={port}")).stdout(Stdio::null()).kill_on_drop(true).spawn();
        let driver = driver.expect("chromedriver is installed");
        let always = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
        let arguments: Vec<_> = always.iter().chain(arguments).collect();
        let mut capabilities = json!({"goog:chromeOptions": {"args": arguments}});
        if arguments.iter().any(|it| **it == PHONE) {
            let phone = json!({"deviceMetrics": {"width": 390, "height": 844, "pixelRatio": 1.5, "touch": true}});
            capabilities["goog:chromeOptions"]["mobileEmulation"] = phone;
        }
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.as_object().unwrap().clone());
        let url = format!("http://127.0.0.1:{port}");
        let listens = async { while TcpStream::connect(("127.0.0.1", port)).await.is_err() {} };
        timeout(DEADLINE, listens).await.expect("chromedriver does not listen");
        let client = timeout(DEADLINE, builder.connect(&url)).await.expect("chromedriver does not answer").unwrap();
        Self { client, _driver: driver }
    }

    async fn run(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap()
    }

    /// Waits until an expression is true.
    async fn until(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        let wait = async { while self.run(&script).await != json!(true) {} };
        let waited = timeout(DEADLINE, wait).await;
        assert!(waited.is_ok(), "not {expression}: {}", self.run("return document.body.innerText").await);
    }

    async fn until_said(&self, text: &str) {
        self.until(&format!("document.body.innerText.includes({})", json!(text))).await;
    }

    /// Clicks the button of a row, by what a screen reader calls it.
    async fn click(&self, label: &str) {
        let button = format!("button[aria-label=\"{label}\"]");
        self.client.find(Locator::Css(&button)).await.unwrap().click().await.unwrap();
    }

    async fn screenshot(&self, name: &str) {
        let Some(folder) = std::env::var_os("FUSEBOX_SCREENSHOTS") else { return };
        let picture = self.client.screenshot().await.unwrap();
        std::fs::write(PathBuf::from(folder).join(name), picture).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn a_provider_breaks_and_the_page_shows_it_without_a_reload() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let gateway = Gateway::start(&config("", &a, &b), "127.0.0.1:0").await;
    let browser = Browser::open(&["--window-size=1280,1000"]).await;
    browser.client.goto(&format!("http://{}/", gateway.admin)).await.unwrap();
    browser.until_said("Every provider and model takes requests.").await;
    browser.run("window.untouched = 1").await;
    gateway.ask("gpt-4.1").await;
    a.status.store(500, Ordering::SeqCst);
    for _ in 0..4 {
        assert!(gateway.ask("gpt-4.1").await.starts_with("HTTP/1.1 200"));
    }
    browser.until_said("primary, gpt-4.1 (whole) is open since").await;
    browser.until_said("requests failed: 5xx, 500 Internal Server Error").await;
    browser.until_said("Tried again in 59 min").await;
    browser.until("document.querySelector('#spoken').textContent.includes('closed → open')").await;
    browser.until_said("primary → fallback: ").await;
    browser.until("document.querySelector('tr.model.out svg .failed')").await;
    // It counts down.
    let left = "document.querySelector('tr.out .state small').textContent";
    let before = browser.run(&format!("return {left}")).await;
    browser.until(&format!("{left} !== {before}")).await;
    // The newest transition is at the top.
    browser
        .until("document.querySelector('#changes li').textContent.includes('primary, gpt-4.1, whole: closed → open')")
        .await;
    assert_eq!(browser.run("return window.untouched").await, json!(1), "the page was not loaded again");
    assert_eq!(browser.run("return document.title").await, json!("(!) fusebox: degraded"));
    browser.client.close().await.unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn buttons_and_keys_isolate_release_and_reset_after_asking_once() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let gateway = Gateway::start(&config("", &a, &b), "127.0.0.1:0").await;
    let browser = Browser::open(&["--window-size=1280,1000"]).await;
    browser.client.goto(&format!("http://{}/", gateway.admin)).await.unwrap();
    browser.until_said("fallback").await;
    let cause = || gateway.state.circuit_breakers.get("fallback").unwrap().snapshot().cause;
    browser.click("Isolate fallback").await;
    browser.until_said("Isolate fallback?").await;
    assert_eq!(cause(), None, "it asks first");
    // Without a reason nothing is sent.
    browser.client.find(Locator::Css("#ask-yes")).await.unwrap().click().await.unwrap();
    assert_eq!(browser.run("return document.querySelector('#ask').open").await, json!(true));
    browser.client.find(Locator::Css("#ask-reason")).await.unwrap().send_keys("their <b>incident</b>").await.unwrap();
    browser.client.find(Locator::Css("#ask-yes")).await.unwrap().click().await.unwrap();
    browser.until("!document.querySelector('#ask').open").await;
    assert_eq!(cause(), Some(Cause::Isolated));
    browser.until_said("Isolated: their <b>incident</b>").await;
    assert_eq!(browser.run("return document.querySelectorAll('main b').length").await, json!(0));

    // By keyboard alone.
    browser.run("document.querySelector('button[aria-label=\"Release fallback\"]').focus()").await;
    browser.client.active_element().await.unwrap().send_keys(&Key::Enter.to_string()).await.unwrap();
    browser.until_said("Release fallback?").await;
    assert_eq!(browser.run("return document.activeElement.id").await, json!("ask-reason"));
    browser.client.active_element().await.unwrap().send_keys(&Key::Escape.to_string()).await.unwrap();
    browser.until("!document.querySelector('#ask').open").await;
    assert_eq!(cause(), Some(Cause::Isolated), "it was cancelled");
    browser.run("document.querySelector('button[aria-label=\"Release fallback\"]').focus()").await;
    browser.client.active_element().await.unwrap().send_keys(&Key::Enter.to_string()).await.unwrap();
    browser.client.active_element().await.unwrap().send_keys(&Key::Enter.to_string()).await.unwrap();
    browser.until("!document.querySelector('#ask').open").await;
    assert_eq!(cause(), None);

    // A model alone, and a reset.
    let of_model = gateway.state.circuit("primary", "gpt-4.1", AnswerKind::Whole).unwrap();
    of_model.trip_for(Duration::from_secs(600), "429", "slow down");
    browser.until_said("primary, gpt-4.1 (whole) is open").await;
    let reset = browser.client.find_all(Locator::Css("button[aria-label=\"Reset gpt-4.1\"]")).await.unwrap();
    reset[0].click().await.unwrap();
    browser.until_said("Reset primary, gpt-4.1?").await;
    browser.client.find(Locator::Css("#ask-yes")).await.unwrap().click().await.unwrap();
    browser.until_said("Every provider and model takes requests.").await;
    assert_eq!(of_model.state(), fusebox::CircuitState::Closed);
    browser.client.close().await.unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn a_name_with_markup_stays_text_and_the_policy_lets_no_script_in() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let gateway = Gateway::start(&config("", &a, &b), "127.0.0.1:0").await;
    let browser = Browser::open(&["--window-size=1280,1000"]).await;
    browser.client.goto(&format!("http://{}/", gateway.admin)).await.unwrap();
    a.status.store(500, Ordering::SeqCst);
    for _ in 0..4 {
        gateway.ask(MARKUP).await;
    }
    browser.until_said(MARKUP).await;
    browser.until_said("is open since").await;
    assert_eq!(browser.run("return document.querySelectorAll('img').length").await, json!(0));
    let inline = "const s = document.createElement('script');
        try { s.textContent = 'window.hacked = 1'; } catch { return 'refused'; }
        document.body.append(s); return window.hacked || 'refused'";
    assert_eq!(browser.run(inline).await, json!("refused"));
    let handler = "try { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">'); }
        catch { return 'refused'; } return 'done'";
    assert_eq!(browser.run(handler).await, json!("refused"));
    assert_eq!(browser.run("return window.hacked || null").await, json!(null));
    // What a screen reader needs: a name for each button, and a header for each row.
    let nameless =
        "return [...document.querySelectorAll('button')].filter((it) => !it.textContent && !it.ariaLabel).length";
    assert_eq!(browser.run(nameless).await, json!(0));
    let rows = "return [...document.querySelectorAll('tbody tr')].every((it) => it.querySelector('th[scope=row]'))";
    assert_eq!(browser.run(rows).await, json!(true));
    browser.client.close().await.unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn a_lost_connection_says_so_and_comes_back() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let text = config("", &a, &b);
    let gateway = Gateway::start(&text, "127.0.0.1:0").await;
    let admin = gateway.admin;
    let browser = Browser::open(&["--window-size=1280,1000"]).await;
    browser.client.goto(&format!("http://{admin}/")).await.unwrap();
    browser.until("document.querySelector('#connection').textContent === 'live'").await;
    browser.run("window.untouched = 1").await;
    gateway.stop().await;
    browser.until_said("Connection lost").await;
    browser.until("document.body.classList.contains('stale')").await;
    let again = Gateway::start(&text, &admin.to_string()).await;
    browser.until("document.querySelector('#connection').textContent === 'live'").await;
    browser.until("!document.body.classList.contains('stale')").await;
    assert_eq!(browser.run("return window.untouched").await, json!(1), "the page was not loaded again");
    browser.client.close().await.unwrap();
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn a_reload_replaces_the_rows_without_a_reload_of_the_page() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let text = config("", &a, &b);
    let gateway = Gateway::start(&text, "127.0.0.1:0").await;
    let browser = Browser::open(&["--window-size=1280,1000"]).await;
    browser.client.goto(&format!("http://{}/", gateway.admin)).await.unwrap();
    browser.until_said("fallback").await;
    browser.run("window.untouched = 1").await;
    let file = std::env::temp_dir().join(format!("fusebox-browser-{}.toml", std::process::id()));
    std::fs::write(&file, text.replace("'fallback'", "'other'")).unwrap();
    assert!(gateway.state.reload_file(&file));
    std::fs::remove_file(&file).unwrap();
    browser.until("document.querySelector('#circuits').textContent.includes('other')").await;
    browser.until("!document.querySelector('#circuits').textContent.includes('fallback')").await;
    browser.until("document.querySelectorAll('tr.model').length === 4").await;
    assert_eq!(browser.run("return window.untouched").await, json!(1));
    browser.client.close().await.unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn with_tokens_the_page_asks_for_one_and_shows_nothing_before() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let gateway = Gateway::start(&config("admin_tokens = ['s3cret']", &a, &b), "127.0.0.1:0").await;
    let browser = Browser::open(&["--window-size=1280,1000"]).await;
    browser.client.goto(&format!("http://{}/", gateway.admin)).await.unwrap();
    browser.until("document.querySelector('#login').open").await;
    assert_eq!(browser.run("return document.querySelectorAll('tbody').length").await, json!(0));
    for (token, then) in [("wrong", "That is not one of its tokens."), ("s3cret", "fallback")] {
        let field = browser.client.find(Locator::Css("#token")).await.unwrap();
        field.send_keys(token).await.unwrap();
        field.send_keys(&Key::Enter.to_string()).await.unwrap();
        browser.until_said(then).await;
    }
    browser.until("!document.querySelector('#login').open").await;
    browser.client.close().await.unwrap();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and chromedriver"]
async fn it_is_readable_on_a_phone_in_light_and_on_a_desk_in_dark() {
    let (a, b) = (Provider::start().await, Provider::start().await);
    let gateway = Arc::new(Gateway::start(&config("", &a, &b).replace(MARKUP, "gpt-4.1-mini"), "127.0.0.1:0").await);
    let is_over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (gateway, is_over, is_well) = (Arc::clone(&gateway), Arc::clone(&is_over), Arc::clone(&a.status));
        async move {
            let mut due = tokio::time::interval(Duration::from_millis(50));
            while !is_over.load(Ordering::SeqCst) {
                due.tick().await;
                gateway.ask("gpt-4.1").await;
                // If both failed, the whole provider would be out.
                if is_well.load(Ordering::SeqCst) == 200 {
                    gateway.ask("gpt-4.1-mini").await;
                }
            }
        }
    });
    let phone = [PHONE];
    let desk = ["--window-size=1280,900", "--force-dark-mode"];
    for (name, arguments, is_dark) in [("page-phone.png", &phone[..], false), ("page-desk.png", &desk[..], true)] {
        let browser = Browser::open(arguments).await;
        browser.client.goto(&format!("http://{}/", gateway.admin)).await.unwrap();
        browser.until("document.querySelectorAll('tr.model svg .ok').length > 12").await;
        a.status.store(500, Ordering::SeqCst);
        browser.until_said("primary, gpt-4.1 (whole) is open").await;
        browser.until("document.querySelectorAll('tr.model svg .ok').length > 30").await;
        let dark = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches").await;
        assert_eq!(dark, json!(is_dark));
        let too_wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
        assert_eq!(browser.run(too_wide).await, json!(false), "nothing is cut off");
        browser.screenshot(name).await;
        browser.client.close().await.unwrap();
    }
    is_over.store(true, Ordering::SeqCst);
    load.await.unwrap();
}
