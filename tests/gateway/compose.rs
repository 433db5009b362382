//! What `contrib/compose` shows, by processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use fusebox::proxy::GatewayConfig;

use crate::support::{CHAT, Gateway, another, soon};

/// A provider that `fusebox simulate` runs, which ends with it.
struct Simulated {
    process: Child,
    base: String,
}

impl Simulated {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_fusebox"))
            .args(["simulate", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let base = line.trim().strip_prefix("a simulated provider at ").unwrap().to_owned();
        Self { process, base }
    }

    async fn set(&self, fault: &str) {
        let url = format!("{}/simulate/{fault}", self.base.strip_suffix("/v1").unwrap());
        assert!(soon(reqwest::Client::new().post(url).send()).await.unwrap().status().is_success());
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn the_compose_files_gateway_fails_over_from_one_simulated_provider_to_the_other() {
    let (primary, fallback) = (Simulated::start(), Simulated::start());
    let text = include_str!("../../contrib/compose/fusebox.toml")
        .replace("http://primary:9000/v1", &primary.base)
        .replace("http://fallback:9000/v1", &fallback.base)
        // A process has one environment, and tests run side by side.
        .replace("${FUSEBOX_ADMIN_TOKEN}", "from-the-environment");
    assert!(!text.contains(":9000"));
    let gateway = Gateway::from_config(&GatewayConfig::from_toml(&text).unwrap()).await;
    let ask = async |path: &str| {
        let answer = gateway.post(path, &another(&CHAT.replace("\"m\"", "\"demo\""))).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.header("x-fusebox-provider").to_owned()
    };
    let paths = ["/v1/chat/completions", "/v1/responses", "/v1/messages"];
    for path in paths {
        assert_eq!(ask(path).await, "primary", "{path}");
    }
    primary.set("500").await;
    for path in paths {
        assert_eq!(ask(path).await, "fallback", "{path}");
    }
    primary.set("heal").await;
    soon(async { while ask(paths[0]).await != "primary" {} }).await;
}
