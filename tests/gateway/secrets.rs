//! Secrets from files and from systemd, and other texts that stand somewhere else.

use std::process::Command;

use fusebox::proxy::GatewayConfig;

use crate::support::{Gateway, Provider, TempFile};

fn text(api_key: &str, url: &str) -> String {
    format!("[[providers]]\nname = 'a'\nurl = '{url}'\nmodels = ['m']\napi_key = '{api_key}'\n")
}

fn mistake(api_key: &str) -> String {
    GatewayConfig::from_toml(&text(api_key, "http://127.0.0.1:1/v1")).unwrap_err().to_string()
}

#[tokio::test]
async fn a_key_is_read_from_a_file_and_again_at_each_reload() {
    let a = Provider::with_status(200).await;
    let key = TempFile::new("key", "first\n");
    let config =
        TempFile::new("key.toml", text(&format!("${{file:{}}}", key.display()), &format!("http://{}/v1", a.address)));
    let gateway = Gateway::from_config(&GatewayConfig::from_file(&config).unwrap()).await;
    gateway.ask().await;
    assert_eq!(a.last().headers["authorization"], "Bearer first");
    for line_break in ["", "\n", "\r\n", "\n\n"] {
        std::fs::write(&*key, format!("second{line_break}")).unwrap();
        assert!(gateway.state.reload_file(&config), "{line_break:?}");
        gateway.ask().await;
        assert_eq!(a.last().headers["authorization"], "Bearer second");
    }
    std::fs::write(&*key, "").unwrap();
    assert!(!gateway.state.reload_file(&config), "a file that is being written is empty");
    gateway.ask().await;
    assert_eq!(a.last().headers["authorization"], "Bearer second");
}

#[test]
fn a_file_that_is_no_secret_is_told_by_its_name_and_never_by_its_text() {
    let [binary, spaces] = [&b"secret-1\xff"[..], b"secret-2 secret-3"];
    let (binary, spaces) = (TempFile::new("binary", binary), TempFile::new("spaces", spaces));
    let file = |file: &TempFile| format!("${{file:{}}}", file.display());
    for (api_key, expected) in [
        ("${file:/nonexistent/key}".to_owned(), "\"${file:/nonexistent/key}\", which cannot be read: No such file"),
        ("${file:/tmp}".to_owned(), "which cannot be read: Is a directory"),
        ("${file:}".to_owned(), "which cannot be read"),
        (file(&binary), "which is not UTF-8, expected a file with a text"),
        (file(&spaces), "is empty or cannot be sent in a header"),
        ("${file:/dev/zero}".to_owned(), "it is longer than"),
        ("${credential:../key}".to_owned(), "which is no name"),
        ("${credential:}".to_owned(), "which is no name"),
    ] {
        let found = mistake(&api_key);
        assert!(found.starts_with("line 5: providers[0].api_key is ") && found.contains(expected), "{found}");
        assert!(!found.contains("secret-"), "{found}");
    }
}

#[test]
fn a_credential_of_systemd_is_a_file_in_its_folder() {
    let key = TempFile::new("credential", "from-systemd\n");
    let name = key.file_name().unwrap().to_str().unwrap();
    let config = TempFile::new("credential.toml", text(&format!("${{credential:{name}}}"), "http://127.0.0.1:1/v1"));
    let check = |folder: Option<&std::path::Path>| {
        let mut fusebox = Command::new(env!("CARGO_BIN_EXE_fusebox"));
        fusebox.env_remove("CREDENTIALS_DIRECTORY").args(["check", "--config"]).arg(&*config);
        fusebox.envs(folder.map(|folder| ("CREDENTIALS_DIRECTORY", folder)));
        let output = fusebox.output().unwrap();
        let [said, complained] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.success(), said, complained)
    };
    let (is_fine, said, _) = check(key.parent());
    assert!(is_fine && said.contains("api_key    set"), "{said}");
    let (is_fine, said, complained) = check(None);
    assert!(!is_fine && complained.contains("which is not there, expected a service whose unit has LoadCredential="));
    assert!(!(said + &complained).contains("from-systemd"));
}

#[test]
fn localhost_is_an_address() {
    let listen = |listen: &str| GatewayConfig::from_toml(&format!("[server]\nlisten = '{listen}'"));
    assert_eq!(listen("localhost:8080").unwrap().server.listen, ([127, 0, 0, 1], 8080).into());
    for wrong in ["localhost", "localhost:", "localhost:70000", "otherhost:8080", ":8080"] {
        assert!(listen(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_base_url_that_is_probably_none_is_a_warning() {
    let warnings = |url: &str, more: &str| {
        let text = text("k", url) + more + "[[providers]]\nname = 'b'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
        GatewayConfig::from_toml(&text).unwrap().warnings().to_vec()
    };
    for url in ["/v1", "/v1/", "/openai/v1", "/v1beta/openai", "/api/v3"] {
        assert_eq!(warnings(&format!("https://api.example.com{url}"), ""), [""; 0], "{url}");
    }
    for (url, expected) in [
        (
            "/v1/chat/completions",
            "ends in /chat/completions: requests for /v1/models would go to /v1/chat/completions/models; the base is \"/v1\" most likely",
        ),
        ("/v1/messages/", "ends in /messages"),
        ("", "has no version: requests for /v1/models go to /models; most providers have /v1"),
        ("/openai", "has no version"),
        ("/version", "has no version"),
    ] {
        let found = warnings(&format!("https://api.example.com{url}"), "");
        assert_eq!(found.len(), 1, "{url}: {found:?}");
        assert!(found[0].starts_with("line 3: providers[0].url ") && found[0].contains(expected), "{found:?}");
    }
    let azure = "query = { 'api-version' = '2024-10-21' }\n";
    assert_eq!(warnings("https://x.openai.azure.com/openai/deployments/d", azure), [""; 0]);
}
