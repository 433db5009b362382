//! Asking each provider once which models it has: for `fusebox check --online`.
//!
//! Not here: requests of clients: `route`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode, Version};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::body::parts::Parts;
use super::core::Core;
use super::protocol::{ANTHROPIC_VERSION, Protocols, USUAL_VERSION};
use super::provider::Provider;
use super::state::AppState;
use super::upstream::{RequestBody, Upstream};
use crate::error::Escaped;

/// How long a provider may take, and how long its list of models may be.
const PATIENCE: Duration = Duration::from_secs(15);
const MAX_LIST: usize = 4 << 20;

/// What a provider said to a request for its models.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ModelsAnswer {
    /// The provider's name.
    pub provider: String,
    /// Of several keys the one that it was asked with, from 1 on: the first that is not good, or the last.
    pub key: Option<usize>,
    /// The status of its answer, or why there was none.
    pub status: Result<StatusCode, String>,
    /// From the beginning, without a connection, to the end of the answer.
    pub took: Duration,
    /// The version of HTTP that was spoken, and whether over TLS.
    pub spoke: Option<(Version, bool)>,
    /// The models that the configuration names and the provider does not list. `None` if it gave no list.
    pub lacks: Option<Vec<String>>,
}

impl ModelsAnswer {
    /// Whether it answered well.
    pub fn is_good(&self) -> bool {
        self.status.as_ref().is_ok_and(StatusCode::is_success)
    }
}

impl fmt::Display for ModelsAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = humantime::format_duration(Duration::from_millis(self.took.as_millis().try_into().unwrap_or(0)));
        let key = self.key.map_or(String::new(), |number| format!(", key {number}"));
        write!(f, "online    {}{key}: ", self.provider)?;
        match &self.status {
            Err(error) => write!(f, "no answer in {took}: {}", Escaped(error))?,
            Ok(status) => {
                write!(f, "{status} in {took}")?;
                if let Some((version, is_tls)) = self.spoke {
                    write!(f, ", {version:?} {} TLS", if is_tls { "over" } else { "without" })?;
                }
                match (&self.lacks, status.as_u16()) {
                    (_, 401 | 403) => write!(f, "; it refused the api_key")?,
                    (_, 404) => write!(f, "; it has no list of models there, or the url is not its base URL")?,
                    (Some(lacks), _) if lacks.is_empty() => write!(f, "; it lists all models")?,
                    (Some(lacks), _) => {
                        let lacks: Vec<_> = lacks.iter().map(|model| Escaped(model).to_string()).collect();
                        write!(f, "; it does not list {}", lacks.join(", "))?;
                    }
                    (None, 200..=299) => write!(f, "; it gave no list of models")?,
                    (None, _) => {}
                }
            }
        }
        Ok(())
    }
}

/// A list of models, as all protocols have it.
#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Asks all providers at once for their models, `GET /models` below their base URLs, with their keys. In the order of
/// the configuration. It takes 15 seconds at most for each key of a provider.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub async fn look_online(state: Arc<AppState>) -> Vec<ModelsAnswer> {
    let core = Core::new(state);
    let local = core.local();
    let mut asked = JoinSet::new();
    for (place, (provider, upstream)) in local.providers.iter().zip(local.upstreams.iter()).enumerate() {
        let (provider, upstream) = (Arc::clone(provider), Arc::clone(upstream));
        asked.spawn(async move { (place, ask_with_each_key(&provider, &upstream).await) });
    }
    let mut seen = asked.join_all().await;
    seen.sort_unstable_by_key(|(place, _)| *place);
    seen.into_iter().map(|(_, seen)| seen).collect()
}

async fn ask_with_each_key(provider: &Provider, upstream: &Upstream) -> ModelsAnswer {
    let mut answer = ask(provider, upstream, 0).await;
    for key in 1..provider.config.api_keys.len() {
        if !answer.is_good() {
            break;
        }
        answer = ask(provider, upstream, key).await;
    }
    answer
}

async fn ask(provider: &Provider, upstream: &Upstream, key: usize) -> ModelsAnswer {
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    let is_anthropics = provider.config.protocols == Protocols::Anthropic;
    // Anthropic lists twenty at a time, unless it is asked for more.
    let path = if is_anthropics { "/v1/models?limit=1000" } else { "/v1/models" };
    *request.uri_mut() = http::Uri::from_static(path);
    if is_anthropics {
        request.headers_mut().insert(ANTHROPIC_VERSION, USUAL_VERSION);
    }
    let (head, ()) = request.into_parts();
    let begun = Instant::now();
    let mut spoke = None;
    let answer = async {
        let response = upstream.send(&head, key, RequestBody::Whole(Parts::default())).await;
        let response = response.map_err(|error| error.to_string())?;
        spoke = Some((response.version(), provider.config.url.scheme_str() == Some("https")));
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_LIST).collect().await;
        Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
    };
    let answer = timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err("it takes too long".to_owned()));
    let took = begun.elapsed();
    let (status, body) = match answer {
        Ok((status, body)) => (Ok(status), body),
        Err(error) => (Err(upstream.showable(&error)), bytes::Bytes::new()),
    };
    let lacks = serde_json::from_slice(&body).ok().map(|List { data }| {
        let has: BTreeSet<_> = data.iter().map(|model| model.id.as_str()).collect();
        let there: BTreeSet<_> = provider.config.models.values().map(String::as_str).collect();
        there.difference(&has).map(|model| (*model).to_owned()).collect()
    });
    let key = provider.keys.as_ref().map(|_| key + 1);
    ModelsAnswer { provider: provider.name().to_owned(), key, status, took, spoke, lacks }
}
