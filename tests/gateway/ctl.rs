//! `fusebox ctl`, the operators' port over TLS, and the access log in a file.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use fusebox::proxy::GatewayConfig;
use serde_json::{Value, json};

use crate::inbound::Files;
use crate::support::{DEADLINE, Gateway, Provider, TempFile, nobody, temp_path, until, until_open};

/// Runs it without holding up the gateway, which is served on the same thread.
async fn ctl(arguments: &[&str], token: Option<&str>) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fusebox"));
    command.arg("ctl").args(arguments).stdin(Stdio::null());
    command.env_remove("FUSEBOX_ADMIN_URL").env_remove("FUSEBOX_ADMIN_TOKEN");
    if let Some(token) = token {
        command.env("FUSEBOX_ADMIN_TOKEN", token);
    }
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let Output { status, stdout, stderr } = tokio::time::timeout(DEADLINE, run).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test]
async fn it_shows_circuits_and_carries_out_orders() {
    let (a, b) = (Provider::with_status(200).await, Provider::with_status(200).await);
    let gateway = Gateway::start(&[&a, &b], "admin_tokens = ['s3cret']", "", "").await;
    let url = format!("http://{}/", gateway.admin);
    let ctl = async |arguments: &[&str]| ctl(&[&["--url", &url], arguments].concat(), Some("s3cret")).await;
    gateway.ask().await;
    let (code, shown, _) = ctl(&["circuits"]).await;
    assert!(code == 0 && shown.contains("CIRCUIT") && shown.contains("\n  m, whole"), "{shown}");
    let (code, said, error) = ctl(&["isolate", "a", "--reason", "an incident", "--for", "1h"]).await;
    assert!(code == 0 && said.starts_with("a: isolate, until 20"), "{said}{error}");
    assert!(gateway.ask().await.is_by(&b));
    let (_, shown, _) = ctl(&["circuits"]).await;
    assert!(shown.contains("an incident"), "{shown}");
    let (_, whole, _) = ctl(&["circuits", "--json"]).await;
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(whole["providers"][0]["order"]["by"], json!("admin_tokens[0]"));
    assert_eq!(ctl(&["release", "a"]).await.1, "a: release\n");
    assert_eq!(ctl(&["isolate", "a", "m", "stream", "--reason", "r"]).await.1, "a, m, stream: isolate\n");
    assert_eq!(ctl(&["reset", "a", "m"]).await.1, "a, m: reset\n");
    assert!(gateway.ask().await.is_by(&a));
    let (_, config, _) = ctl(&["config"]).await;
    assert!(
        config.contains("\"key_header\"") && !config.contains("s3cret") && !config.contains("provider-key"),
        "{config}"
    );
}

#[tokio::test]
async fn it_says_what_went_wrong_and_ends_with_1() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "admin_tokens = ['s3cret']", "", "").await;
    let url = format!("http://{}", gateway.admin);
    let nowhere = format!("http://{}", nobody().await);
    for (arguments, token, expected) in [
        (vec!["--url", &*url, "circuits"], None, "401 Unauthorized: "),
        (vec!["--url", &*url, "circuits"], Some("wrong"), "401 Unauthorized: "),
        (vec!["--url", &*url, "watch"], Some("wrong"), "This gateway requires"),
        (vec!["--url", &*url, "release", "a"], Some("s3cret"), "409 Conflict: No order is in force there."),
        (vec!["--url", &*url, "isolate", "a"], Some("s3cret"), "400 Bad Request: reason is missing"),
        (vec!["--url", &*url, "reset", "z"], Some("s3cret"), "404 Not Found: There is no provider \"z\"."),
        (vec!["--url", &*nowhere, "circuits"], None, "cannot be reached: "),
        (vec!["--url", "ftp://a", "circuits"], None, "the URL is \"ftp://a\", expected one such as"),
        (vec!["--token-file", "/nonexistent", "circuits"], None, "/nonexistent cannot be read: "),
    ] {
        let (code, said, error) = ctl(&arguments, token).await;
        assert_eq!((code, &*said), (1, ""), "{arguments:?}");
        assert!(error.contains(expected) && !error.contains("s3cret"), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn it_watches_transitions_and_what_a_provider_says_is_no_command_for_a_terminal() {
    let a = Provider::with_status(200).await;
    let gateway = Gateway::start(&[&a], "", "failure_threshold = 1", "").await;
    let url = format!("http://{}", gateway.admin);
    let file = TempFile::new("watched", "");
    let output = std::fs::File::create(&*file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fusebox"));
    let mut watching = command.args(["ctl", "--url", &url, "watch"]).stdout(output).spawn().unwrap();
    let seen = || std::fs::read_to_string(&*file).unwrap();
    until(|| seen().contains("CIRCUIT")).await;
    gateway.breaker("a").try_acquire().unwrap().failure("5xx", "\u{1b}[2Jgone\r\n");
    until(|| seen().contains("a, m, whole: closed -> open (failures: 5xx: ")).await;
    assert!(!seen().contains('\u{1b}') && seen().contains("\\u{1b}[2Jgone\\r\\n"), "{}", seen());
    watching.kill().unwrap();
    watching.wait().unwrap();
}

#[tokio::test]
async fn operators_connect_over_tls_and_with_client_ca_only_with_a_certificate() {
    let a = Provider::with_status(200).await;
    let files = Files::new("admin-tls");
    let folder = files.folder.display();
    let tls = format!(
        "admin_listen = '0.0.0.0:8081'\n\
         admin_tls = {{ cert = '{folder}/cert.pem', key = '{folder}/key.pem', client_ca = '{folder}/ca.pem' }}"
    );
    let gateway = Gateway::start(&[&a], &tls, "", "").await;
    let url = format!("https://localhost:{}", gateway.admin.port());
    let ca = format!("{folder}/ca.pem");
    let (_, pem, key) = files.sign();
    let identity = TempFile::new("operator.pem", pem + &key.serialize_pem());
    let identity = identity.to_str().unwrap();
    let (code, shown, error) = ctl(&["--url", &url, "--ca-file", &ca, "--cert-file", identity, "circuits"], None).await;
    assert!(code == 0 && shown.contains("CIRCUIT"), "{error}");
    for (arguments, expected) in [
        (vec!["--url", &*url, "--ca-file", &*ca, "circuits"], "cannot be reached"),
        (vec!["--url", &*url, "--cert-file", identity, "circuits"], "cannot be reached"),
    ] {
        let (code, _, error) = ctl(&arguments, None).await;
        assert!(code == 1 && error.contains(expected), "{error}");
    }
    let broken = format!(
        "[server]\nadmin_listen = '127.0.0.1:1'\nadmin_tls = {{ cert = '{folder}/ca.pem', key = '{folder}/key.pem' }}"
    );
    let mistakes = GatewayConfig::from_toml(&broken).unwrap_err();
    assert!(mistakes.mistakes()[0].contains("server.admin_tls.key is"), "{mistakes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_goes_to_a_file_that_is_opened_again_at_sighup() {
    let a = Provider::with_status(200).await;
    let address = nobody().await;
    let (log, moved) = (temp_path("access.log"), temp_path("access.log.1"));
    let text = format!(
        "[server]\nlisten = '{address}'\naccess_log_file = '{}'\n\
         [[providers]]\nname = 'a'\nurl = 'http://{}/v1'\nmodels = ['m']",
        log.display(),
        a.address
    );
    let file = TempFile::new("access-log.toml", text);
    let mut process = Command::new(env!("CARGO_BIN_EXE_fusebox"))
        .args(["serve", "--config"])
        .arg(&*file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until_open(address).await;
    let lines = |path: &Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    let ask = async || {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let request = http::Request::get(format!("http://{address}/v1/models"));
        let request = request.body(http_body_util::Full::<bytes::Bytes>::default()).unwrap();
        assert_eq!(client.request(request).await.unwrap().status(), 200);
    };
    ask().await;
    until(|| lines(&log) == 1).await;
    std::fs::rename(&log, &moved).unwrap();
    let hang_up = Command::new("kill").args(["-HUP", &process.id().to_string()]).status().unwrap();
    assert!(hang_up.success());
    // The signal may take a moment. Until then lines go to the old file, and none is lost.
    let mut asked = 1;
    while !log.exists() {
        ask().await;
        asked += 1;
        until(|| lines(&log) + lines(&moved) == asked).await;
    }
    assert_eq!(lines(&log) + lines(&moved), asked);
    process.kill().unwrap();
    process.wait().unwrap();
    for path in [log, moved] {
        std::fs::remove_file(path).unwrap();
    }
}
