//! `fusebox.toml`: every mistake at once, before a port is bound, and never a secret.

use std::process::{Command, Output};
use std::time::Duration;

use fusebox::proxy::{AppState, GatewayConfig};

fn mistakes(text: &str) -> Vec<String> {
    GatewayConfig::from_toml(text).expect_err("has mistakes").mistakes().to_vec()
}

#[test]
fn every_mistake_is_reported_with_its_field() {
    let found = mistakes(
        r#"
        strategy = "random"
        [server]
        listen = "nowhere"
        port = 80
        drain_limit = "soon"
        ca_file = "/nonexistent"
        [breaker]
        failure_threshold = 1024
        open_for = "25h"
        [[providers]]
        name = "a"
        url = "ftp://a/v1"
        models = []
        timeout = "0s"
        [[providers]]
        name = "a"
        api_key = "${FUSEBOX_TEST_UNSET}"
        models = ["m"]
        [[providers]]
        name = "b c"
        url = "http://u:p@b/v1"
        api_key = 7
        models = "m"
        "#,
    );
    let expected = [
        "strategy is unknown, expected one of server, breaker, providers",
        "server.listen is \"nowhere\", expected an address such as \"127.0.0.1:8080\"",
        "server.drain_limit is \"soon\", expected a duration such as \"30s\" or \"500ms\"",
        "server.ca_file is \"/nonexistent\", which cannot be read: I/O error: No such file or directory (os error 2), \
         expected a PEM file with certificates",
        "server.port is unknown, expected one of listen, admin_listen, drain_limit, ca_file",
        "breaker.failure_threshold is 1024, expected 1 to 1023",
        "breaker.open_for is 90000s, expected 1 ms to 24 h",
        "providers[0].url is \"ftp://a/v1\", expected an http or https URL with a host",
        "providers[0].models is [], expected at least one name, none empty, none twice",
        "providers[0].timeout is 0ns, expected more than 0 and up to 24h",
        "providers[1].name is \"a\", expected a name that no other provider has",
        "providers[1].url is missing, expected an http or https URL with a host",
        "providers[1].api_key is \"${FUSEBOX_TEST_UNSET}\", which is not set, expected that environment variable",
        "providers[2].name is \"b c\", expected visible ASCII without spaces",
        "providers[2].url is a URL with credentials, expected them in api_key",
        "providers[2].api_key is integer, expected a string such as \"${NAME}\"",
        "providers[2].models is \"m\", expected an array of strings",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_syntax_error_names_its_line_and_not_its_text() {
    let found = mistakes("[server]\nlisten = ['s3cret'\nadmin_listen = 3");
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("line ") && !found[0].contains("s3cret"), "{found:?}");
}

#[test]
fn a_secret_is_shown_by_no_error_and_no_debug_output() {
    for text in [
        "[[providers]]\nname='a'\nurl='http://user:s3cret@a/v1'\nmodels=['m']",
        "[[providers]]\nname='a'\nurl='http://a/v1?key=s3cret'\nmodels=['m']",
        "[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\napi_key=\"s3cret\\n\"",
        "[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\napi_key=['s3cret']",
        "[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\napikey='s3cret'",
        "[providers]\nname='a'\nurl='http://a/v1'\nmodels=['m']\napi_key='s3cret'",
        "[[server]]\napi_key='s3cret'",
    ] {
        let found = mistakes(text);
        assert!(!found.concat().contains("s3cret"), "{found:?}");
    }
    let text = "[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\napi_key='s3cret'";
    let config = GatewayConfig::from_toml(text).unwrap();
    assert!(!format!("{config:?}{config}").contains("s3cret"));
    assert!(!format!("{:?}", AppState::new(&config).unwrap()).contains("s3cret"));
}

#[test]
fn a_probes_lease_outlasts_the_gateways_own_timeout() {
    let text = "[breaker]\nfailure_threshold = 5\nopen_for = '7s'\n[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\n\
                timeout='9s'";
    let config = GatewayConfig::from_toml(text).unwrap();
    let breaker = &config.providers[0].breaker;
    assert_eq!((breaker.failure_threshold(), breaker.open_for()), (5, Duration::from_secs(7)));
    assert_eq!((breaker.probe_lease(), breaker.max_waiters()), (Duration::from_secs(10), Some(1000)));
}

fn fusebox(command: &str, text: &str) -> Output {
    let file = std::env::temp_dir().join(format!("fusebox-test-{}-{command}-{}.toml", std::process::id(), text.len()));
    std::fs::write(&file, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_fusebox")).arg(command).arg("--config").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    output
}

#[test]
fn a_wrong_configuration_ends_with_64_and_all_its_mistakes_on_standard_error() {
    for command in ["check", "serve"] {
        let output = fusebox(command, "[server]\nlisten = 'x'\nprot = 1");
        assert_eq!(output.status.code(), Some(64));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("server.listen is ") && text.contains("server.prot is "), "{text}");
    }
}

#[test]
fn check_prints_the_plan() {
    let text = "[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m', 'n']\napi_key='k'\n[[providers]]\nname='b'\n\
                url='http://b/v1'\nmodels=['m']";
    let output = fusebox("check", text);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}");
    for line in ["provider  a at http://a/v1\n  models     m, n\n  api_key    set\n", "provider  b at http://b/v1\n"] {
        assert!(shown.contains(line), "{shown}");
    }
}
