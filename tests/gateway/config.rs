//! `fusebox.toml`: every mistake at once, before a port is bound, and never a secret.

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::time::Duration;

use fusebox::fleet::FleetConfig;
use fusebox::proxy::{AppState, GatewayConfig};

use crate::support::TempFile;

fn mistakes(text: &str) -> Vec<String> {
    GatewayConfig::from_toml(text).expect_err("has mistakes").mistakes().to_vec()
}

#[test]
fn every_mistake_is_reported_with_its_line_and_its_field() {
    let found = mistakes(
        r#"strategy = "random"
        retries = 3
        [server]
        listen = "nowhere"
        port = 80
        auth_tokens = ["${FUSEBOX_TEST_UNSET}", "with space"]
        drain_limit = "soon"
        ca_file = "/nonexistent"
        max_headers = 0
        access_log = "yes"
        [timeouts]
        first_byte = "0s"
        [breaker]
        failure_threshold = 1024
        open_for = "25h"
        [[providers]]
        name = "a"
        url = "ftp://a/v1"
        models = []
        timeouts = { idle = "2d" }
        breaker = { failure_threshold = "three" }
        input_rate = -1
        [[providers]]
        name = "a"
        api_key = "${FUSEBOX_TEST_UNSET}"
        models = ["m", "m"]
        aliases = { m = "n" }
        [[providers]]
        name = "b c"
        url = "http://u:p@b/v1"
        api_key = 7
        models = "m"
        "#,
    );
    let expected = [
        "1: strategy is \"random\", expected \"priority\" or \"cheapest\"",
        "2: retries is unknown, expected one of strategy, server, connections, timeouts, limits, breaker, silence, failover, cooldown, fleet, traces, providers",
        "4: server.listen is \"nowhere\", expected an address such as \"127.0.0.1:8080\"",
        "5: server.port is unknown, expected one of listen, cores, admin_listen, admin_tls, admin_tokens, state_file, auth_tokens, tls, trusted_proxies, allow_provider_header, cors, ca_file, access_log, access_log_file, max_body_bytes, \
         replay_body_bytes, search_body_bytes, replay_answer_bytes, max_message_bytes, max_held_bytes, max_header_bytes, max_headers, max_connections, header_timeout, \
         body_timeout, write_timeout, heartbeat_after, heartbeat, drain_delay, drain_limit",
        "6: server.auth_tokens[0] is \"${FUSEBOX_TEST_UNSET}\", which is not set, expected that environment variable",
        "6: server.auth_tokens[1] is empty or cannot be sent in a header, expected visible ASCII without spaces",
        "7: server.drain_limit is \"soon\", expected a duration such as \"30s\" or \"500ms\"",
        "8: server.ca_file is \"/nonexistent\", which cannot be read: I/O error: No such file or directory (os error 2), \
         expected a PEM file with certificates",
        "9: server.max_headers is 0, expected a whole number, 1 to 10000",
        "10: server.access_log is \"yes\", expected true or false",
        "12: timeouts.first_byte is 0s, expected 1ms to 1day",
        "14: breaker.failure_threshold is 1024, expected 1 to 1023",
        "15: breaker.open_for is 90000s, expected 1 ms to 24 h",
        "18: providers[0].url is \"ftp://a/v1\", expected an http or https URL with a host",
        "19: providers[0].models is empty, expected at least one model's name, there or in aliases",
        "20: providers[0].timeouts.idle is 2days, expected 1ms to 1day",
        "21: providers[0].breaker.failure_threshold is \"three\", expected a whole number",
        "22: providers[0].input_rate is -1, expected a price, 0 or more",
        "23: providers[1].url is missing, expected an http or https URL with a host",
        "24: providers[1].name is \"a\", expected a name that no other provider has",
        "25: providers[1].api_key is \"${FUSEBOX_TEST_UNSET}\", which is not set, expected that environment variable",
        "26: providers[1].models[1] is \"m\", expected a name that is not in the list already",
        "27: providers[1].aliases.m is \"n\", expected a name that is not in models",
        "29: providers[2].name is \"b c\", expected visible ASCII without spaces",
        "30: providers[2].url is a URL with credentials, expected one without; the key belongs into api_key",
        "31: providers[2].api_key is integer, expected a text such as \"${NAME}\"",
        "32: providers[2].models is \"m\", expected an array, each a model's name",
    ];
    assert_eq!(found, expected.map(|mistake| format!("line {mistake}")));
}

#[test]
fn mistakes_in_failover_and_cooldowns_name_the_field_and_what_would_be_right() {
    let text = "[failover]
when_all_open = 'wait'
max_attempts = 0
fallback_on_context_length = ['a', 'c']
[cooldown]
default = '10m'
max = '1m'
key_cooldown = '5h'
[limits]
max_in_flight = 0
[[providers]]
name = 'a'
url = 'http://a/v1'
models = ['m']
limits = { wait_limit = '0s' }";
    let expected = [
        "line 2: failover.when_all_open is \"wait\", expected \"probe_early\" or \"refuse\"",
        "line 3: failover.max_attempts is 0, expected a whole number, 1 to 100",
        "line 4: failover.fallback_on_context_length[1] is \"c\", expected the name of a provider",
        "line 6: cooldown.default is 10m, expected 1ms to cooldown.max, which is 1m",
        "line 8: cooldown.key_cooldown is 5h, expected 1ms to 4h",
        "line 10: limits.max_in_flight is 0, expected a whole number, 1 to 1000000",
        "line 15: providers[0].limits.wait_limit is 0s, expected 1ms to 1day",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn mistakes_in_what_is_sent_to_a_provider_or_allowed_to_pages_are_told_without_a_secret() {
    let text = "[server]
cors = { origins = ['https://a.example/', 'app.example', 'https://APP.example', '*'], methods = 1 }
search_body_bytes = 1
[[providers]]
name = 'a'
url = 'http://a/v1'
models = ['gpt-*', 'm']
aliases = { 'o*' = 'm', n = '*' }
key_header = 'x-api-key'
key_prefix = 7
headers = { 'a b' = 'secret-1', host = 'secret-2', x-one = 3, x-two = '', x-three = '${FUSEBOX_TEST_UNSET}' }
query = { api-version = true, '' = 'secret-3' }
[[providers]]
name = 'b'
url = 'http://b/v1'
models = ['m']
api_key = 'secret-4'
key_header = 'transfer-encoding'
key_prefix = '\u{e4}'
headers = { authorization = 'secret-5' }";
    let mistakes = mistakes(text);
    let expected = [
        "line 2: server.cors.methods is unknown, expected one of origins",
        "line 2: server.cors.origins[0] is \"https://a.example/\", expected an origin such as \"https://app.example.com\", or \"*\"",
        "line 2: server.cors.origins[1] is \"app.example\", expected an origin such as \"https://app.example.com\", or \"*\"",
        "line 2: server.cors.origins[2] is \"https://APP.example\", expected an origin such as \"https://app.example.com\", or \"*\"",
        "line 3: server.search_body_bytes is 1, expected a whole number, 1024 to 1073741824",
        "line 7: providers[0].models[0] is \"gpt-*\", expected a model's whole name: each model is listed, and there are no patterns",
        "line 8: providers[0].aliases.n is \"*\", expected a model's whole name: each model is listed, and there are no patterns",
        "line 8: providers[0].aliases.o* is \"m\", expected a model's whole name: each model is listed, and there are no patterns",
        "line 9: providers[0].key_header is set, expected an api_key as well",
        "line 10: providers[0].key_prefix is 7, expected a text such as \"Bearer \", in visible ASCII and spaces",
        "line 10: providers[0].key_prefix is set, expected an api_key as well",
        "line 11: providers[0].headers.a b is not a header's name, expected one such as \"x-title\"",
        "line 11: providers[0].headers.host is a header that the gateway sets itself, expected another one",
        "line 11: providers[0].headers.x-one is integer, expected a text such as \"${NAME}\"",
        "line 11: providers[0].headers.x-three is \"${FUSEBOX_TEST_UNSET}\", which is not set, expected that environment variable",
        "line 11: providers[0].headers.x-two is empty or cannot be sent in a header, expected visible ASCII and spaces",
        "line 12: providers[0].query is a table with an empty name, expected a name for each value",
        "line 12: providers[0].query.api-version is boolean, expected a text such as \"${NAME}\"",
        "line 18: providers[1].key_header is \"transfer-encoding\", expected a header's name such as \"x-api-key\"",
        "line 19: providers[1].key_prefix is \"\u{e4}\", expected a text such as \"Bearer \", in visible ASCII and spaces",
        "line 20: providers[1].headers.authorization is the header of the api_key, expected only one of the two",
    ];
    let mut sorted = mistakes.clone();
    sorted.sort_by_key(|line| (line.split([' ', ':']).nth(1).unwrap().parse::<usize>().unwrap(), line.clone()));
    assert_eq!(sorted, expected);
    assert!(!mistakes.concat().contains("secret-"), "{mistakes:?}");
}

#[test]
fn a_valid_but_unlikely_setting_is_a_warning_with_its_line() {
    let config = GatewayConfig::from_toml(
        "[server]\nlisten = '0.0.0.0:80'\n[[providers]]\nname = 'a'\nurl = 'http://api.example.com/v1'\nmodels = ['m', 'n']\n\
         [[providers]]\nname = 'b'\nurl = 'http://10.1.2.3/v1'\nmodels = ['m']\n",
    )
    .unwrap();
    let expected = [
        "line 2: server.listen is not a loopback address and there are no auth_tokens: anybody who reaches it may send requests",
        "line 3: the model \"n\" has no other provider than a",
        "line 5: providers[0].url is a plain http URL of a public host: keys and prompts can be read in transit",
    ];
    assert_eq!(config.warnings(), expected);
}

#[test]
fn the_example_file_documents_every_setting_and_loads() {
    let text = include_str!("../../fusebox.example.toml");
    let file = TempFile::new("example.toml", "");
    let load = |text: &str| {
        std::fs::write(&*file, text).unwrap();
        let mut fusebox = Command::new(env!("CARGO_BIN_EXE_fusebox"));
        for name in ["FUSEBOX_TOKEN", "OPENAI_API_KEY", "AZURE_API_KEY"] {
            fusebox.env(name, "from-the-environment");
        }
        let output = fusebox.args(["check", "--config"]).arg(&*file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let plan = load(text);
    assert!(plan.contains("model     fast: openai, then azure"), "{plan}");
    assert!(!plan.contains("from-the-environment"), "{plan}");

    // Each default that is commented out is a setting, and is the default.
    let all_set: String = text
        .lines()
        .map(|line| {
            let is_set = |rest: &&str| is_setting(rest) || ["[fleet]", "[traces]"].contains(rest);
            line.strip_prefix("# ").filter(is_set).unwrap_or(line).to_owned() + "\n"
        })
        .collect();
    // What is not there by default; and not every build has traces.
    let (mut others, mut left_out) = (all_set.clone(), String::new());
    for table in ["[fleet]", "[traces]"] {
        let (before, rest) = others.split_once(&format!("{table}\n")).unwrap();
        let (within, after) = rest.split_once("\n\n").unwrap();
        left_out = [&left_out, table, "\n", within, "\n"].concat();
        others = format!("{before}\n{after}");
    }
    let (fleet, _) = left_out.split_once("[traces]").unwrap();
    let fleet = fleet.replace("password = ", "# ").replace("ca_file = ", "# ");
    let fleet = GatewayConfig::from_toml(&fleet).unwrap().fleet.unwrap();
    let by_default = FleetConfig::redis("redis://127.0.0.1:6379/0").unwrap().username("fusebox");
    assert_eq!(fleet, by_default.lease(Duration::from_secs(60)).unwrap());
    let with_defaults = load(
        &others
            .replace("ca_file = ", "# ")
            .replace("ceiling = ", "# ")
            .replace("cors = ", "# ")
            .replace("admin_tls = ", "# ")
            .replace("\ntls = ", "\n# ")
            .replace("admin_tokens = ", "# ")
            .replace("state_file = ", "# ")
            .replace("trusted_proxies = ", "# ")
            .replace("access_log_file = ", "# ")
            .replace("api_keys = ", "# ")
            .replace("max_attempts = ", "# ")
            .replace("fallback_on", "# ")
            .replace("max_in_flight = 100", "# ")
            .replace("min_rate = ", "# ")
            .replace("heartbeat_after = ", "# ")
            .replace("heartbeat = ", "# "),
    );
    assert_eq!(with_defaults, plan);
    // Every table names its settings when it meets an unknown one. The root names the tables.
    let root = settings_of(&mistakes("x = 1"), "x is unknown");
    let tables = root.iter().map(|name| if name == "providers" { "[[providers]]".into() } else { format!("[{name}]") });
    let tables: Vec<String> = tables.filter(|head| all_set.lines().any(|line| line == head)).collect();
    assert_eq!(tables.len(), root.len() - 1, "each but `strategy` is a table: {root:?}");
    let documented = |section: &str| -> BTreeSet<String> {
        section
            .lines()
            .filter(|line| is_setting(line))
            .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
            .collect()
    };
    let head = all_set.split("\n[").next().unwrap();
    assert_eq!(documented(head), BTreeSet::from(["strategy".to_owned()]));
    for table in tables {
        let known = settings_of(&mistakes(&format!("{table}\nx = 1")), "x is unknown");
        let head = format!("\n{table}\n");
        let sections = all_set.split(&head).skip(1).map(|rest| rest.split("\n[").next().unwrap());
        let documented: BTreeSet<String> = sections.flat_map(documented).collect();
        assert_eq!(documented, known, "{table}");
    }
}

/// The settings that the mistake about an unknown one lists.
fn settings_of(mistakes: &[String], unknown: &str) -> BTreeSet<String> {
    let mistake = mistakes.iter().find(|mistake| mistake.contains(unknown)).unwrap();
    mistake.split_once("expected one of ").unwrap().1.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_configuration_for_kubernetes_loads() {
    let manifest = include_str!("../../contrib/kubernetes/fusebox.yaml");
    let (_, text) = manifest.split_once("fusebox.toml: |\n").unwrap();
    let lines = text.lines().take_while(|line| *line != "---");
    let text: String = lines.map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned() + "\n").collect();
    let key = TempFile::new("kubernetes", "key\n");
    let files = ["token", "admin", "openai", "azure"].map(|name| format!("/run/secrets/fusebox/{name}"));
    let text = files.iter().fold(text, |text, file| text.replace(file, key.to_str().unwrap()));
    let config = GatewayConfig::from_toml(&text).unwrap();
    assert_eq!((config.providers.len(), config.warnings()), (2, &[][..]));
    let patience = config.server.drain_delay + config.server.drain_limit;
    assert!(manifest.contains("terminationGracePeriodSeconds: 140") && patience < Duration::from_secs(140));
}

#[test]
fn the_configuration_in_the_readme_loads() {
    let readme = include_str!("../../README.md");
    let (_, block) = readme.split_once("```toml\n").unwrap();
    let text = block.split("```").next().unwrap();
    // A process has one environment, and tests run side by side.
    let filled = ["FUSEBOX_TOKEN", "OPENAI_API_KEY", "AZURE_API_KEY"]
        .iter()
        .fold(text.to_owned(), |text, name| text.replace(&format!("${{{name}}}"), "from-the-environment"));
    let plan = GatewayConfig::from_toml(&filled).unwrap().to_string();
    assert!(plan.contains("model     gpt-4.1: openai, then azure") && !filled.contains("${"), "{plan}");
}

fn is_setting(line: &str) -> bool {
    line.split_once(" = ").is_some_and(|(name, _)| {
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    })
}

#[test]
fn a_number_and_an_address_may_come_from_the_environment_and_are_not_shown() {
    let text = "[server]\nlisten = '${HOME}'\nmax_headers = '${HOME}'";
    let home = std::env::var("HOME").unwrap();
    let found = mistakes(text);
    assert!(found[0].contains("listen is \"${HOME}\", expected an address"), "{found:?}");
    assert!(found[1].contains("max_headers is \"${HOME}\", expected a whole number"), "{found:?}");
    assert!(!found.concat().contains(&home), "{found:?}");

    let config = "[server]\nca_file = '${CARGO_MANIFEST_DIR}/nothing'";
    assert!(mistakes(config)[0].contains("${CARGO_MANIFEST_DIR}"), "{:?}", mistakes(config));
}

#[test]
fn the_cheapest_strategy_asks_in_the_order_of_the_prices_and_needs_them() {
    let provider =
        |name: &str, rates: &str| format!("[[providers]]\nname='{name}'\nurl='http://a/v1'\nmodels=['m']\n{rates}\n");
    let rates = ["input_rate=3\noutput_rate=1", "input_rate='1.5'\noutput_rate=2", "input_rate=0\noutput_rate=3.5"];
    let providers: String = ["a", "b", "c"].iter().zip(rates).map(|(name, rates)| provider(name, rates)).collect();
    let plan =
        |strategy: &str| GatewayConfig::from_toml(&format!("strategy='{strategy}'\n{providers}")).unwrap().to_string();
    assert!(plan("cheapest").contains("model     m: b, then c, then a"), "{}", plan("cheapest"));
    assert!(plan("priority").contains("model     m: a, then b, then c"));
    let found = mistakes(&format!("strategy='cheapest'\n{}", provider("a", "input_rate=1")));
    assert_eq!(
        found,
        ["line 2: providers[0].output_rate is missing, expected a price, since the strategy is \"cheapest\""]
    );
}

#[test]
fn a_provider_may_have_timeouts_and_a_breaker_of_its_own() {
    let config = GatewayConfig::from_toml(
        "[timeouts]\nidle='7s'\nfirst_byte='8s'\n[breaker]\nopen_for='9s'\n[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\n\
         timeouts={first_byte='1s'}\nbreaker={failure_threshold=7}",
    )
    .unwrap();
    let a = &config.providers[0];
    assert_eq!((a.timeouts.idle, a.timeouts.first_byte), (Duration::from_secs(7), Duration::from_secs(1)));
    assert_eq!((a.breaker.failure_threshold(), a.breaker.open_for()), (Some(7), Duration::from_secs(9)));
}

#[test]
fn syntax_errors_are_reported_together_with_their_lines_and_not_their_text() {
    let found = mistakes("[server]\nlisten = ['s3cret'\nadmin_listen = 3\n[breaker\nx = 1");
    assert!(found.len() > 1 && found.iter().all(|mistake| mistake.starts_with("line ")), "{found:?}");
    assert!(!found.concat().contains("s3cret"), "{found:?}");
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
fn a_probes_lease_outlasts_the_gateways_own_limits() {
    let text = "[breaker]\nfailure_threshold = 5\nopen_for = '7s'\n[[providers]]\nname='a'\nurl='http://a/v1'\nmodels=['m']\n\
                timeouts={first_byte='4s', total='30s'}";
    let config = GatewayConfig::from_toml(text).unwrap();
    let breaker = &config.providers[0].breaker;
    assert_eq!((breaker.failure_threshold(), breaker.open_for()), (Some(5), Duration::from_secs(7)));
    assert_eq!((breaker.probe_lease(), breaker.max_waiters()), (Duration::from_secs(31), Some(1000)));
}

fn fusebox(command: &str, text: &str) -> Output {
    let file = TempFile::new(&format!("{command}-{}.toml", text.len()), text);
    Command::new(env!("CARGO_BIN_EXE_fusebox")).arg(command).arg("--config").arg(&*file).output().unwrap()
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
