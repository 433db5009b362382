//! What every request needs: providers and breakers, and how they are replaced while requests are under way.
//!
//! Not here: connections: each core has its own, in `cores`.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::budget::Budget;
use super::config::{GatewayConfig, ProviderConfig, ServerConfig};
use super::lines::LineWriter;
use super::metrics::Metrics;
use super::provider::Provider;
use super::silence::Detectors;
use super::upstream::{Resolver, SetupError, Tls};
use crate::error::Escaped;
use crate::{CircuitBreaker, CircuitBreakerRegistry, silence};

/// The gateway's state, shared by all its connections.
#[derive(Debug)]
pub struct AppState {
    /// One breaker per provider, by its name.
    pub circuit_breakers: Arc<CircuitBreakerRegistry>,
    live: ArcSwap<Live>,
    pub(crate) metrics: Metrics,
    is_draining: AtomicBool,
    access_log: Option<LineWriter>,
    /// How many times `live` was going to be replaced.
    reloads_begun: AtomicU64,
    /// Held by who replaces `live`: which of those times it was.
    reloaded: Mutex<u64>,
    told_of_shortage: Mutex<Option<Instant>>,
    pub(crate) budget: Arc<Budget>,
    resolver: Resolver,
    /// What cannot be replaced.
    started_with: ServerConfig,
}

/// What a configuration turned into. A request keeps the one that it began with.
pub(crate) struct Live {
    pub(crate) server: ServerConfig,
    pub(crate) providers: Vec<Arc<Provider>>,
    /// Indexes into `providers`, in the order in which they are asked.
    by_model: HashMap<String, Box<[usize]>, foldhash::fast::RandomState>,
    /// For requests that name no model.
    all: Box<[usize]>,
    pub(crate) tls: Tls,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("server", &self.server).field("providers", &self.providers).finish_non_exhaustive()
    }
}

impl Live {
    /// The providers of a model, in the order in which they are asked.
    pub(crate) fn candidates(&self, model: &str) -> Option<&[usize]> {
        self.by_model.get(model).map(|candidates| &**candidates)
    }

    /// Every provider, in the order in which they are asked.
    pub(crate) fn all(&self) -> &[usize] {
        &self.all
    }

    /// The models and who is asked first for them, sorted.
    pub(crate) fn models(&self) -> Vec<(&str, &Provider)> {
        let models = self.by_model.iter();
        let mut models: Vec<(&str, &Provider)> =
            models.map(|(model, candidates)| (model.as_str(), &*self.providers[candidates[0]])).collect();
        models.sort_unstable_by_key(|(model, _)| *model);
        models
    }
}

impl AppState {
    /// Prepares the providers. Nothing is connected yet, and no access log is written.
    ///
    /// # Errors
    ///
    /// If `ca_file` cannot be used.
    pub fn new(config: &GatewayConfig) -> Result<Arc<Self>, SetupError> {
        Self::build(config, None)
    }

    /// As [`new`](Self::new), with an access log: a JSON object and a line break for each request, unless the configuration
    /// switches it off. A thread of its own writes to `writer`; if that is too slow, lines are lost and counted.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_access_log(
        config: &GatewayConfig,
        writer: impl Write + Send + 'static,
    ) -> Result<Arc<Self>, SetupError> {
        let failed = |error: &io::Error| warn!(%error, "the access log cannot be written");
        let log = LineWriter::new("access-log", writer, failed);
        let log =
            log.map_err(|error| SetupError::new(format!("the access log's thread cannot be started: {error}")))?;
        Self::build(config, Some(log))
    }

    fn build(config: &GatewayConfig, access_log: Option<LineWriter>) -> Result<Arc<Self>, SetupError> {
        let circuit_breakers = Arc::new(CircuitBreakerRegistry::default());
        let metrics = Metrics::default();
        let tls = Tls::new(config.server.ca_file.as_deref())?;
        let live = Live::new(config, tls, None, &circuit_breakers, &metrics, config.server.cores);
        Ok(Arc::new(Self {
            circuit_breakers,
            live: ArcSwap::from_pointee(live),
            metrics,
            is_draining: AtomicBool::new(false),
            access_log,
            reloads_begun: AtomicU64::new(0),
            reloaded: Mutex::new(0),
            told_of_shortage: Mutex::new(None),
            budget: Budget::new(config.server.max_held_bytes),
            resolver: Resolver::new(),
            started_with: config.server.clone(),
        }))
    }

    /// Applies another configuration. Requests under way end with the one they began with; no connection of a client is
    /// closed. A provider of the same name keeps its breaker's state, and one that is configured as before its connections
    /// too. `listen`, `cores`, `admin_listen` and `max_connections` are not applied.
    ///
    /// # Errors
    ///
    /// If `ca_file` cannot be used, or if another reload that was begun later is done already. Then nothing has changed.
    pub fn reload(&self, config: &GatewayConfig) -> Result<(), SetupError> {
        self.reload_as(self.begin_reload(), config)
    }

    fn begin_reload(&self) -> u64 {
        self.reloads_begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn reload_as(&self, number: u64, config: &GatewayConfig) -> Result<(), SetupError> {
        // Before anybody has to wait for it: the file may be where nothing answers.
        let tls = Tls::new(config.server.ca_file.as_deref())?;
        let mut reloaded = self.reloaded.lock();
        if *reloaded > number {
            return Err(SetupError::new("a later reload was quicker".to_owned()));
        }
        *reloaded = number;
        let before = self.live();
        let cores = self.started_with.cores;
        let live = Live::new(config, tls, Some(&before), &self.circuit_breakers, &self.metrics, cores);
        let is_kept = |name: &str| live.providers.iter().any(|provider| provider.name() == name);
        let gone: Vec<_> = before.providers.iter().filter(|provider| !is_kept(provider.name())).collect();
        self.budget.set_max(config.server.max_held_bytes);
        self.metrics.keep_only(is_kept);
        self.live.store(Arc::new(live));
        for provider in gone {
            self.circuit_breakers.remove(provider.name());
        }
        Ok(())
    }

    /// Reads a file and applies it, as [`reload`](Self::reload). If it cannot be used or has no providers, everything stays as
    /// it is: a file that is being written is empty for a moment. Says in the log what came of it, and returns whether it was
    /// applied.
    pub fn reload_file(&self, path: &Path) -> bool {
        let number = self.begin_reload();
        let applied = GatewayConfig::from_file(path)
            .map_err(|errors| errors.mistakes().to_vec())
            .and_then(|config| if config.providers.is_empty() { Err(vec![no_providers(path)]) } else { Ok(config) })
            .and_then(|config| {
                self.reload_as(number, &config).map(|()| config).map_err(|error| vec![error.to_string()])
            });
        let (counter, is_applied) = match applied {
            Ok(config) => {
                for warning in config.warnings().iter().chain(&self.not_applied(&config.server)) {
                    warn!("{warning}");
                }
                info!(file = %path.display(), providers = config.providers.len(), "the configuration was read anew");
                (&self.metrics.reloads, true)
            }
            Err(mistakes) => {
                for mistake in &mistakes {
                    error!("{mistake}");
                }
                error!(file = %path.display(), "the configuration was refused, the old one goes on");
                (&self.metrics.failed_reloads, false)
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        is_applied
    }

    fn not_applied(&self, new: &ServerConfig) -> Vec<String> {
        let old = &self.started_with;
        [
            ("listen", old.listen != new.listen),
            ("cores", old.cores != new.cores),
            ("admin_listen", old.admin_listen != new.admin_listen),
            ("max_connections", old.max_connections != new.max_connections),
        ]
        .iter()
        .filter(|(_, differs)| *differs)
        .map(|(field, _)| format!("server.{field} has changed, which takes a restart"))
        .collect()
    }

    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Whether a configuration is the one in force.
    pub(crate) fn is_live(&self, live: &Arc<Live>) -> bool {
        std::ptr::eq(Arc::as_ptr(live), Arc::as_ptr(&*self.live.load()))
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(crate) fn access_log(&self) -> Option<&LineWriter> {
        self.access_log.as_ref()
    }

    /// Once a second: a shortage is everybody's at once.
    pub(crate) fn may_tell_of_shortage(&self) -> bool {
        let mut told = self.told_of_shortage.lock();
        let now = Instant::now();
        if told.is_some_and(|told| now - told < Duration::from_secs(1)) {
            return false;
        }
        *told = Some(now);
        true
    }

    pub(crate) fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }
}

impl Live {
    fn new(
        config: &GatewayConfig,
        tls: Tls,
        before: Option<&Live>,
        breakers: &CircuitBreakerRegistry,
        metrics: &Metrics,
        cores: u64,
    ) -> Self {
        let cores = usize::try_from(cores).unwrap_or(usize::MAX);
        let same_tls = before.is_some_and(|before| before.tls.trusts_the_same(&tls));
        let provider = |config: &ProviderConfig| {
            let old = before.and_then(|before| before.providers.iter().find(|old| old.name() == config.name));
            match old {
                Some(old) if same_tls && old.config == *config => Arc::clone(old),
                _ => {
                    let breaker = breaker_for(config, breakers);
                    let known = old.filter(|old| old.config.url == config.url).and_then(|old| old.silence.as_ref());
                    let silence = config.silence.map(|silence| detectors_for(known, &breaker, silence, cores));
                    Arc::new(Provider::new(config.clone(), breaker, metrics.of(&config.name), silence))
                }
            }
        };
        let providers: Vec<_> = config.providers.iter().map(provider).collect();
        let by_model = config.candidates();
        let by_model = by_model.into_iter().map(|(model, candidates)| (model.to_owned(), candidates.into())).collect();
        Self { server: config.server.clone(), providers, by_model, all: config.order().into(), tls }
    }
}

fn no_providers(path: &Path) -> String {
    format!("{}: providers are missing, expected one at least", Escaped(path.display()))
}

/// The breaker that is registered under the provider's name, with its settings.
fn breaker_for(config: &ProviderConfig, breakers: &CircuitBreakerRegistry) -> Arc<CircuitBreaker> {
    let breaker = breakers
        .get(&config.name)
        .unwrap_or_else(|| breakers.insert_breaker(CircuitBreaker::new(config.name.as_str(), config.breaker.clone())));
    breaker.set_config(&config.breaker);
    breaker
}

/// What is known of a provider, with new settings.
fn detectors_for(
    known: Option<&Arc<Detectors>>,
    breaker: &Arc<CircuitBreaker>,
    config: silence::Config,
    cores: usize,
) -> Arc<Detectors> {
    match known {
        Some(known) => {
            known.set_config(config);
            Arc::clone(known)
        }
        None => Arc::new(Detectors::new(Arc::clone(breaker), config, cores)),
    }
}
