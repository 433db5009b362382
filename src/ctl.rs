//! `fusebox ctl`: the admin API from a terminal.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The variables that stand for options which are given each time.
const URL: &str = "FUSEBOX_ADMIN_URL";
const TOKEN: &str = "FUSEBOX_ADMIN_TOKEN";

/// How long the gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// No answer is as long.
const MAX_ANSWER: usize = 64 << 20;

#[derive(Args)]
pub(crate) struct Options {
    /// Where the operators' port is. Default: `$FUSEBOX_ADMIN_URL`, or `http://127.0.0.1:8081`.
    #[arg(long, global = true)]
    url: Option<String>,
    /// A file with the token. Default: the variable `$FUSEBOX_ADMIN_TOKEN`. Needed if the gateway has `admin_tokens`.
    #[arg(long, global = true)]
    token_file: Option<PathBuf>,
    /// A PEM file of authorities that are trusted in addition to the public ones.
    #[arg(long, global = true)]
    ca_file: Option<PathBuf>,
    /// A PEM file with the certificate to show, and its key.
    #[arg(long, global = true)]
    cert_file: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show every circuit that is not closed, and what comes of requests.
    Circuits {
        /// Show what the API says.
        #[arg(long)]
        json: bool,
    },
    /// Send nothing to a provider, or to one of its models, until it is released.
    Isolate(Given),
    /// Let every request pass, whatever its outcome, until it is released.
    Disable(Given),
    /// End isolate or disable.
    Release(Circuit),
    /// Close circuits whatever their state, and forget failures, cooldowns and orders.
    Reset(Circuit),
    /// Read the configuration file again.
    Reload,
    /// Show the configuration in use, without its secrets.
    Config,
    /// Show what changes, until it is interrupted.
    Watch {
        /// Show what the API says, an event in each line.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Circuit {
    /// The provider's name.
    provider: String,
    /// One of its models. Without it: the provider's own circuit, above those of all models.
    model: Option<String>,
    /// One kind of answer: whole, stream, count or session. Without it: all of them.
    kind: Option<String>,
    /// Why. It stands in the log.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Args)]
struct Given {
    #[command(flatten)]
    circuit: Circuit,
    /// After which time it is released, such as 30m. Without an end it holds until it is released by hand.
    #[arg(long, conflicts_with = "until")]
    r#for: Option<String>,
    /// When it is released, such as 2030-01-31T12:00:00Z.
    #[arg(long)]
    until: Option<String>,
}

pub(crate) async fn run(options: Options, mut print: impl FnMut(&str) -> Outcome) -> Outcome {
    let admin = Admin::new(&options)?;
    let text = match &options.action {
        Action::Circuits { json: true } => pretty(&admin.get("circuits").await?),
        Action::Circuits { json: false } => table(&admin.get("circuits").await?),
        Action::Isolate(given) => admin.give("isolate", given).await?,
        Action::Disable(given) => admin.give("disable", given).await?,
        Action::Release(circuit) => admin.change("release", circuit, json!({})).await?,
        Action::Reset(circuit) => admin.change("reset", circuit, json!({})).await?,
        Action::Reload => reloaded(&admin.send(Method::POST, "reload", None).await?.1)?,
        Action::Config => pretty(&admin.get("config").await?),
        Action::Watch { json } => return admin.watch(*json, print).await,
    };
    print(&text)
}

/// The operators' port of a gateway.
struct Admin {
    url: String,
    token: Option<HeaderValue>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Admin {
    fn new(options: &Options) -> Outcome<Self> {
        let url = options.url.clone().or_else(|| std::env::var(URL).ok());
        let url = url.unwrap_or_else(|| "http://127.0.0.1:8081".to_owned());
        let parsed: Option<Uri> = url.parse().ok();
        if !parsed.is_some_and(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()) {
            return Err(format!("the URL is {url:?}, expected one such as http://127.0.0.1:8081").into());
        }
        let token = match &options.token_file {
            Some(file) => Some(read(file)?),
            None => std::env::var(TOKEN).ok().map(String::into_bytes),
        };
        let token = token.map(|token| {
            let token = [b"Bearer ", token.trim_ascii()].concat();
            let mut token = HeaderValue::from_bytes(&token).map_err(|_| "the token cannot be sent in a header")?;
            token.set_sensitive(true);
            Ok::<_, &str>(token)
        });
        let https = HttpsConnectorBuilder::new().with_tls_config(tls(options)?).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(https);
        Ok(Self { url: url.trim_end_matches('/').to_owned(), token: token.transpose()?, client })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("{}/admin/v1/{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let asked = self.client.request(request.body(Full::from(body))?);
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        let answer = answer.map_err(|_| format!("{} did not answer within {PATIENCE:?}", self.url))?;
        Ok(answer.map_err(|error| {
            let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            format!("{} cannot be reached: {why}. Is server.admin_listen set, and --url its address?", self.url)
        })?)
    }

    /// The answer's text, and whether its status is a good one.
    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<(bool, Value)> {
        let answer = self.ask(method, path, body).await?;
        let status = answer.status();
        let said = tokio::time::timeout(PATIENCE, whole(answer)).await??;
        if let Some(message) = said["error"]["message"].as_str() {
            return Err(format!("{status}: {}", clean(message)).into());
        }
        Ok((status.is_success(), said))
    }

    async fn get(&self, path: &str) -> Outcome<Value> {
        match self.send(Method::GET, path, None).await? {
            (true, said) => Ok(said),
            (false, _) => Err(format!("{} is no operators' port", self.url).into()),
        }
    }

    async fn give(&self, action: &str, given: &Given) -> Outcome<String> {
        let Given { circuit, r#for, until } = given;
        let mut wish = json!({});
        for (name, value) in [("for", r#for), ("until", until)] {
            if let Some(value) = value {
                wish[name] = json!(value);
            }
        }
        self.change(action, circuit, wish).await
    }

    async fn change(&self, action: &str, circuit: &Circuit, mut wish: Value) -> Outcome<String> {
        let parts = [Some(&circuit.provider), circuit.model.as_ref(), circuit.kind.as_ref()];
        let parts = parts.into_iter().flatten().map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string());
        let path = format!("circuits/{}/{action}", parts.collect::<Vec<_>>().join("/"));
        if let Some(reason) = &circuit.reason {
            wish["reason"] = json!(reason);
        }
        let (_, said) = self.send(Method::POST, &path, Some(&wish)).await?;
        let parts = ["provider", "model", "kind"].map(|part| said[part].as_str().map(clean));
        let until = said["order"]["until"].as_str().map_or(String::new(), |until| format!(", until {until}"));
        let circuit: Vec<_> = parts.into_iter().flatten().collect();
        Ok(format!("{}: {action}{until}\n", circuit.join(", ")))
    }

    async fn watch(&self, json: bool, mut print: impl FnMut(&str) -> Outcome) -> Outcome {
        let mut body = self.ask(Method::GET, "events", None).await?;
        if !body.status().is_success() {
            let said = whole(body).await?;
            return Err(clean(said["error"]["message"].as_str().unwrap_or("it is no operators' port")).into());
        }
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            text.extend_from_slice(&data);
            if text.len() > MAX_ANSWER {
                return Err("an event is too long".into());
            }
            while let Some(end) = text.windows(2).position(|end| end == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                if let Some(line) = shown(&String::from_utf8_lossy(&event), json) {
                    print(&line)?;
                }
            }
        }
        Err("the gateway has ended".into())
    }
}

/// The JSON of an answer; nothing if it is none.
async fn whole(answer: Response<Incoming>) -> Outcome<Value> {
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
    Ok(serde_json::from_slice(&body.to_bytes()).unwrap_or_default())
}

/// An event, if it is to be shown.
fn shown(event: &str, json: bool) -> Option<String> {
    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let (name, data) = (field("event")?, field("data")?);
    if json {
        return Some(format!("{}\n", json!({"event": name, "data": serde_json::from_str::<Value>(data).ok()?})));
    }
    let data: Value = serde_json::from_str(data).ok()?;
    match name {
        "circuits" => Some(table(&data)),
        "transition" => {
            let text = |name: &str| data[name].as_str().map(clean);
            let circuit: Vec<_> = ["provider", "model", "kind"].into_iter().filter_map(text).collect();
            let why: Vec<_> = ["cause", "error_type", "message"].into_iter().filter_map(text).collect();
            let [at, from, to] = ["at", "from", "to"].map(|name| text(name).unwrap_or_default());
            let why = if why.is_empty() { String::new() } else { format!(" ({})", why.join(": ")) };
            Some(format!("{at}  {}: {from} -> {to}{why}\n", circuit.join(", ")))
        }
        _ => None,
    }
}

fn reloaded(said: &Value) -> Outcome<String> {
    let lines = |name: &str| -> Vec<String> {
        said[name].as_array().into_iter().flatten().filter_map(|line| line.as_str().map(clean)).collect()
    };
    if said["applied"] == true {
        let warnings = lines("warnings").into_iter().map(|warning| format!("warning: {warning}\n"));
        return Ok(format!("{}reloaded\n", warnings.collect::<String>()));
    }
    Err(format!("{}\nnot reloaded, the old configuration stays in force", lines("mistakes").join("\n")).into())
}

fn pretty(said: &Value) -> String {
    serde_json::to_string_pretty(said).expect("it came as JSON") + "\n"
}

const HEADS: [&str; 9] = ["CIRCUIT", "STATE", "WHY", "SINCE", "AGAIN IN", "OK/S", "FAILED/S", "P50/P99", "IN FLIGHT"];

/// A line for each provider and each of its models that was asked for or is not closed.
fn table(said: &Value) -> String {
    let mut rows = vec![HEADS.map(str::to_owned)];
    for provider in said["providers"].as_array().into_iter().flatten() {
        let name = clean(provider["provider"].as_str().unwrap_or_default());
        rows.push(row(&name, provider, &provider["traffic"]));
        for model in provider["models"].as_array().into_iter().flatten() {
            let of_model = clean(model["model"].as_str().unwrap_or_default());
            for circuit in model["circuits"].as_array().into_iter().flatten() {
                let kind = circuit["kind"].as_str().unwrap_or_default();
                rows.push(row(&format!("  {of_model}, {kind}"), circuit, &model["traffic"]));
            }
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..HEADS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:width$}  ").expect("a text takes everything");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn row(name: &str, circuit: &Value, traffic: &Value) -> [String; 9] {
    let text = |value: &Value| value.as_str().map(clean).unwrap_or_default();
    let number = |value: &Value| value.as_f64().map_or(String::new(), |number| format!("{number:.1}"));
    let why = match (&circuit["order"]["reason"], &circuit["error"]["message"]) {
        (Value::String(reason), _) => clean(reason),
        (_, Value::String(message)) => format!("{}: {}", text(&circuit["cause"]), clean(message)),
        _ => text(&circuit["cause"]),
    };
    let first_byte = &traffic["first_byte_ms"];
    let times = if first_byte.is_null() {
        String::new()
    } else {
        format!("{} / {} ms", number(&first_byte["p50"]), number(&first_byte["p99"]))
    };
    let again = circuit["retry_in_ms"].as_f64().map_or(String::new(), |ms| format!("{:.1} s", ms / 1e3));
    [
        name.to_owned(),
        text(&circuit["state"]),
        why,
        text(&circuit["since"]),
        again,
        number(&traffic["per_second"]["ok"]),
        number(&traffic["per_second"]["failed"]),
        times,
        traffic["in_flight"].as_u64().map_or(String::new(), |count| count.to_string()),
    ]
}

/// A provider's text may hold what a terminal obeys.
fn clean(text: &str) -> String {
    text.chars()
        .flat_map(|it| if it.is_control() { it.escape_default().collect::<Vec<_>>() } else { vec![it] })
        .collect()
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

fn tls(options: &Options) -> Outcome<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = &options.ca_file {
        for certificate in CertificateDer::pem_slice_iter(&read(file)?) {
            roots.add(certificate.map_err(|error| format!("{} cannot be used: {error}", file.display()))?)?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let Some(file) = &options.cert_file else { return Ok(builder.with_no_client_auth()) };
    let text = read(file)?;
    let wrong = |error: rustls::pki_types::pem::Error| format!("{} cannot be used: {error}", file.display());
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(wrong)?;
    Ok(builder.with_client_auth_cert(certificates, key)?)
}
