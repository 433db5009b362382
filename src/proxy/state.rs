//! What all requests share: the configuration with its providers and breakers, and how it is replaced while requests
//! are under way.
//!
//! Not here: connections: each core has its own, in `core`.

pub(crate) mod by_hand;
mod from_file;
mod stats;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use strum::{EnumCount, VariantArray};
use tokio::sync::broadcast::Sender;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::warn;

pub use self::stats::ProviderStats;
use super::body::budget::Budget;
use super::certificates::{Certificates, Whose};
use super::circuits::{AnswerKind, Circuits, ModelId};
use super::config::{Cooldowns, FailoverConfig, GatewayConfig, ProviderConfig, ServerConfig, Strategy, TracesConfig};
use super::observe::chronicle::Chronicle;
use super::observe::figures::Figures;
use super::observe::health::Health;
use super::observe::lines::LineWriter;
use super::observe::log;
use super::observe::metrics::Metrics;
use super::observe::metrics::page::Held;
use super::orders::Orders;
use super::owners::Owners;
use super::protocol::Protocol;
use super::provider::{PerProvider, Provider, ProviderId};
use super::silence::Detectors;
#[cfg(feature = "otel")]
use super::traces::export::Traces;
use super::upstream::{Resolver, SetupError, Tls};
use crate::fleet::{Figures as FleetFigures, FleetConfig, FleetSnapshot};
use crate::{CircuitBreaker, CircuitBreakerRegistry, Transition};

/// The gateway's state, shared by all connections.
#[derive(Debug)]
pub struct AppState {
    /// One breaker per provider, by its name. It is above those of the provider's models, which
    /// [`circuit`](Self::circuit) finds.
    pub circuit_breakers: Arc<CircuitBreakerRegistry>,
    live: ArcSwap<Live>,
    pub(crate) metrics: Metrics,
    is_draining: AtomicBool,
    access_log: Option<LineWriter>,
    /// How many reloads have begun.
    reloads_begun: AtomicU64,
    /// The number of the reload that replaced `live` last. Locked while `live` is replaced.
    reloaded: Mutex<u64>,
    /// When a shortage was logged last.
    shortage_logged: Mutex<Option<Instant>>,
    pub(crate) budget: Arc<Budget>,
    resolver: Resolver,
    pub(crate) owners: Owners,
    pub(crate) certificates: Certificates,
    /// Those of the operators' port.
    pub(crate) admin_certificates: Certificates,
    pub(crate) orders: Orders,
    pub(crate) chronicle: Chronicle,
    pub(crate) figures: Figures,
    /// The figures of this second, for pages that look.
    pub(crate) pages: watch::Sender<Arc<str>>,
    /// One place: for the reload that an operator has asked for.
    pub(crate) reloading: Arc<Semaphore>,
    /// Set when the gateway is served, if traces are sent.
    #[cfg(feature = "otel")]
    pub(crate) traces: OnceLock<Arc<Traces>>,
    /// The file that the configuration was read from.
    file: OnceLock<PathBuf>,
    /// For the settings that a reload does not change.
    started_with: ServerConfig,
    pub(crate) fleet_started_with: Option<FleetConfig>,
    pub(crate) traces_started_with: Option<TracesConfig>,
    /// Set when the gateway is served, if it is a replica of a fleet.
    pub(crate) fleet: OnceLock<Arc<FleetFigures>>,
}

/// A configuration in use. A request keeps the one that it began with.
pub(crate) struct Live {
    pub(crate) server: ServerConfig,
    pub(crate) strategy: Strategy,
    pub(crate) failover: FailoverConfig,
    pub(crate) cooldowns: Cooldowns,
    pub(crate) providers: PerProvider<Arc<Provider>>,
    by_protocol: [OfProtocol; Protocol::COUNT],
    pub(crate) tls: Tls,
}

/// Who speaks a protocol, in the order in which they are asked.
struct OfProtocol {
    by_model: HashMap<String, Box<[Candidate]>, foldhash::fast::RandomState>,
    /// For requests that name no model.
    all: Box<[Candidate]>,
}

/// A provider of a model, and the model's place among its circuits.
pub(crate) type Candidate = (ProviderId, ModelId);

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.providers.iter().map(|provider| provider.name()).collect();
        f.debug_struct("Live").field("server", &self.server).field("providers", &names).finish_non_exhaustive()
    }
}

impl Live {
    /// The providers of a model that speak a protocol, in the order in which they are asked.
    pub(crate) fn candidates(&self, protocol: Protocol, model: &str) -> Option<&[Candidate]> {
        self.by_protocol[protocol as usize].by_model.get(model).map(|candidates| &**candidates)
    }

    /// Every provider that speaks a protocol, in the order in which they are asked.
    pub(crate) fn all(&self, protocol: Protocol) -> &[Candidate] {
        &self.by_protocol[protocol as usize].all
    }

    /// The models that are served in a protocol, in alphabetical order, each with the provider that is asked first.
    pub(crate) fn models(&self, protocol: Protocol) -> Vec<(&str, &Provider)> {
        let models = self.by_protocol[protocol as usize].by_model.iter();
        let mut models: Vec<(&str, &Provider)> =
            models.map(|(model, candidates)| (model.as_str(), &*self.providers[candidates[0].0])).collect();
        models.sort_unstable_by_key(|(model, _)| *model);
        models
    }
}

impl AppState {
    /// Prepares the providers. Nothing is connected yet, and there is no access log.
    ///
    /// # Errors
    ///
    /// If `ca_file` or the files of `[server.tls]` cannot be used.
    pub fn new(config: &GatewayConfig) -> Result<Arc<Self>, SetupError> {
        Self::build(config, None)
    }

    /// As [`new`](Self::new), with an access log: a JSON object and a line break for each request, unless the
    /// configuration switches it off. A separate thread writes to `writer`. If that is too slow, lines are lost and
    /// counted.
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
        let (certificates, admin_certificates) = <(Certificates, Certificates)>::default();
        certificates.set(Certificates::load(Whose::Clients, config.server.tls.as_ref())?);
        admin_certificates.set(Certificates::load(Whose::Operators, config.server.admin_tls.as_ref())?);
        let chronicle = Chronicle::new();
        let parts = Parts { breakers: &circuit_breakers, metrics: &metrics, listener: chronicle.listener() };
        let live = Live::new(config, tls, None, &parts, config.server.cores);
        Ok(Arc::new(Self {
            circuit_breakers,
            live: ArcSwap::from_pointee(live),
            metrics,
            is_draining: AtomicBool::new(false),
            access_log,
            reloads_begun: AtomicU64::new(0),
            reloaded: Mutex::new(0),
            shortage_logged: Mutex::new(None),
            budget: Budget::new(config.server.max_held_bytes),
            resolver: Resolver::new(),
            owners: Owners::default(),
            certificates,
            admin_certificates,
            orders: Orders::default(),
            chronicle,
            figures: Figures::default(),
            pages: watch::Sender::new(Arc::from("")),
            reloading: Arc::new(Semaphore::new(1)),
            #[cfg(feature = "otel")]
            traces: OnceLock::new(),
            file: OnceLock::new(),
            started_with: config.server.clone(),
            fleet_started_with: config.fleet.clone(),
            traces_started_with: config.traces.clone(),
            fleet: OnceLock::new(),
        }))
    }

    /// Applies another configuration. Requests under way keep the one they began with, and no client's connection is
    /// closed. A provider of the same name keeps its breaker's state; one whose settings are unchanged keeps its
    /// connections as well. `listen`, `cores`, `admin_listen`,
    /// `max_connections`, `state_file`, `access_log_file`, `[fleet]` and `[traces]` are not applied.
    ///
    /// # Errors
    ///
    /// If a file of certificates cannot be used, or if a reload that began later has been applied already. Then nothing
    /// has changed.
    pub fn reload(&self, config: &GatewayConfig) -> Result<(), SetupError> {
        self.reload_as(self.begin_reload(), config)
    }

    fn begin_reload(&self) -> u64 {
        self.reloads_begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn reload_as(&self, number: u64, config: &GatewayConfig) -> Result<(), SetupError> {
        // The port stays where it is until a restart.
        let is_reached = self.started_with.admin_listen.is_some_and(|admin| !admin.ip().is_loopback());
        if is_reached && !config.server.knows_its_operators() {
            let message = "server.admin_listen is on an address that others reach until a restart, and there are neither \
                           admin_tokens nor an admin_tls with a client_ca";
            return Err(SetupError::new(message.to_owned()));
        }
        // Before the lock is taken: the file may be on a disk that does not answer.
        let tls = Tls::new(config.server.ca_file.as_deref())?;
        let certificates = Certificates::load(Whose::Clients, config.server.tls.as_ref())?;
        let admin_certificates = Certificates::load(Whose::Operators, config.server.admin_tls.as_ref())?;
        let mut reloaded = self.reloaded.lock();
        if *reloaded > number {
            return Err(SetupError::new("a reload that began later has been applied already".to_owned()));
        }
        *reloaded = number;
        let before = self.live();
        let cores = self.started_with.cores;
        let (breakers, metrics, listener) = (&self.circuit_breakers, &self.metrics, self.chronicle.listener());
        let live = Live::new(config, tls, Some(&before), &Parts { breakers, metrics, listener }, cores);
        let is_kept = |name: &str| live.providers.iter().any(|provider| provider.name() == name);
        let gone: Vec<_> = before.providers.iter().filter(|provider| !is_kept(provider.name())).collect();
        self.budget.set_max(config.server.max_held_bytes);
        self.metrics.keep_only(is_kept);
        self.chronicle.keep_only(is_kept);
        self.live.store(Arc::new(live));
        self.certificates.set(certificates);
        self.admin_certificates.set(admin_certificates);
        for provider in gone {
            self.circuit_breakers.remove(provider.name());
        }
        let live = self.live();
        for old in before.providers.iter() {
            let kept = live.providers.iter().find(|new| new.name() == old.name());
            old.circuits.retire_all_but(kept.map(|kept| &kept.circuits));
        }
        self.keep_orders();
        // Whoever reloads may have replaced a key, or refilled an account.
        for provider in live.providers.iter() {
            provider.forget_key_out();
        }
        Ok(())
    }

    /// Says which file the configuration was read from, so that operators can have it read again. The first one counts.
    pub fn set_file(&self, file: PathBuf) {
        let _ = self.file.set(file);
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.get().map(PathBuf::as_path)
    }

    pub(crate) fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Whether a configuration is the current one.
    pub(crate) fn is_live(&self, live: &Arc<Live>) -> bool {
        std::ptr::eq(Arc::as_ptr(live), Arc::as_ptr(&*self.live.load()))
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(crate) fn access_log(&self) -> Option<&LineWriter> {
        self.access_log.as_ref()
    }

    /// True at most once a second: a shortage concerns all requests at once.
    pub(crate) fn may_log_shortage(&self) -> bool {
        let mut logged = self.shortage_logged.lock();
        let now = Instant::now();
        if logged.is_some_and(|logged| now - logged < Duration::from_secs(1)) {
            return false;
        }
        *logged = Some(now);
        true
    }

    /// The page of `/metrics`.
    pub(crate) fn encode_metrics(&self) -> Vec<u8> {
        let lost = self.access_log().map_or(0, LineWriter::lost);
        let live = self.live();
        let held = Held { held: self.budget.held(), max: live.server.max_held_bytes };
        let fleet = self.fleet();
        self.metrics.encode(live.providers.iter().map(|provider| &**provider), lost, log::lost(), held, fleet.as_ref())
    }

    /// What is known of the fleet, if there is one and the gateway is served.
    pub(crate) fn fleet(&self) -> Option<FleetSnapshot> {
        self.fleet.get().map(|figures| figures.snapshot())
    }

    /// What is counted of a provider since the gateway began, as `/metrics` shows it. `None` if there is no such
    /// provider.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::proxy::{AppState, GatewayConfig};
    ///
    /// let text = "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
    /// let state = AppState::new(&GatewayConfig::from_toml(text)?)?;
    /// assert_eq!(state.provider_stats("a").unwrap().requests, 0);
    /// assert!(state.provider_stats("b").is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn provider_stats(&self, name: &str) -> Option<ProviderStats> {
        let live = self.live();
        let provider = &live.providers[live.providers.find(|provider| provider.name() == name)?];
        Some(ProviderStats::of(&provider.metrics, provider.silence.as_deref()))
    }

    /// What `GET /health` says.
    pub fn health(&self) -> Health {
        Health::of(self.live().providers.iter().map(|provider| &**provider), self.fleet().as_ref())
    }

    /// The circuit of a model, by the clients' name for it, at a provider, for one kind of answer. `None` if the
    /// provider does not serve the model. The empty name stands for requests that name no model.
    ///
    /// # Examples
    ///
    /// ```
    /// use fusebox::proxy::{AnswerKind, AppState, GatewayConfig};
    ///
    /// let text = "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
    /// let state = AppState::new(&GatewayConfig::from_toml(text)?)?;
    /// assert_eq!(state.circuit("a", "m", AnswerKind::Stream).unwrap().name(), "a, m, stream");
    /// assert!(state.circuit("a", "other", AnswerKind::Stream).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn circuit(&self, provider: &str, model: &str, kind: AnswerKind) -> Option<Arc<CircuitBreaker>> {
        let live = self.live();
        let circuits = &live.providers[live.providers.find(|known| known.name() == provider)?].circuits;
        Some(Arc::clone(&circuits.of(circuits.find(model)?, kind).breaker))
    }

    pub(crate) fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
    }
}

/// What configurations have in common that follow each other.
#[derive(Clone, Copy)]
struct Parts<'a> {
    breakers: &'a CircuitBreakerRegistry,
    metrics: &'a Metrics,
    listener: &'a Sender<Transition>,
}

impl Live {
    fn new(config: &GatewayConfig, tls: Tls, before: Option<&Live>, parts: &Parts<'_>, cores: u64) -> Self {
        let Parts { breakers, metrics, listener } = *parts;
        let cores = usize::try_from(cores).unwrap_or(usize::MAX);
        let same_tls = before.is_some_and(|before| before.tls.trusts_the_same(&tls));
        let provider = |config: &ProviderConfig| {
            let old = before.and_then(|before| before.providers.iter().find(|old| old.name() == config.name));
            match old {
                Some(old) if same_tls && old.config == *config => Arc::clone(old),
                _ => {
                    let breaker = breaker_for(config, breakers, listener);
                    let known = old.filter(|old| old.config.url == config.url).and_then(|old| old.silence.as_ref());
                    let is_served = |model: &str| config.models.contains_key(model);
                    let silence = config.silence.map(|settings| {
                        Arc::new(match known {
                            Some(known) => known.reconfigured(settings, is_served),
                            None => Detectors::new(&config.name, settings, cores),
                        })
                    });
                    let old = old.map(|old| &**old);
                    let metrics = metrics.of(&config.name);
                    Arc::new(Provider::new(config.clone(), breaker, metrics, silence, listener, old))
                }
            }
        };
        let providers: PerProvider<Arc<Provider>> = config.providers.iter().map(provider).collect();
        let of_protocol = |protocol: Protocol| {
            let of_model = |(model, positions): (&str, Vec<usize>)| {
                let place = |id: ProviderId| (id, providers[id].circuits.find(model).expect("the provider serves it"));
                (model.to_owned(), PerProvider::ids(&positions).map(place).collect())
            };
            let all = config.order(protocol);
            let all = PerProvider::ids(&all).map(|id| (id, Circuits::NO_MODEL)).collect();
            OfProtocol { by_model: config.candidates(protocol).into_iter().map(of_model).collect(), all }
        };
        let by_protocol = std::array::from_fn(|at| of_protocol(Protocol::VARIANTS[at]));
        let (server, failover, cooldowns) = (config.server.clone(), config.failover.clone(), config.cooldowns.clone());
        Self { server, strategy: config.strategy, failover, cooldowns, providers, by_protocol, tls }
    }
}

/// The breaker that is registered under the provider's name, with the provider's settings.
fn breaker_for(
    config: &ProviderConfig,
    breakers: &CircuitBreakerRegistry,
    listener: &Sender<Transition>,
) -> Arc<CircuitBreaker> {
    let breaker = breakers.get(&config.name).unwrap_or_else(|| {
        let breaker = breakers.insert_breaker(CircuitBreaker::new(config.name.as_str(), config.breaker));
        breaker.attach(listener);
        breaker
    });
    breaker.set_config(config.breaker);
    breaker
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(open_for: &str) -> GatewayConfig {
        let provider = "[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
        GatewayConfig::from_toml(&format!("[breaker]\nopen_for = '{open_for}'\n{provider}")).unwrap()
    }

    #[test]
    fn an_older_reload_that_arrives_late_is_not_applied() {
        let state = AppState::new(&config("1s")).unwrap();
        let (older, newer) = (state.begin_reload(), state.begin_reload());
        state.reload_as(newer, &config("3s")).unwrap();
        assert!(state.reload_as(older, &config("2s")).is_err());
        let breaker = state.circuit_breakers.get("a").unwrap();
        assert_eq!(breaker.config().open_for(), Duration::from_secs(3));
        state.reload(&config("4s")).unwrap();
        assert_eq!(breaker.config().open_for(), Duration::from_secs(4));
    }
}
