//! What each core has for itself: a log, timers, connections to the providers, and watchers. Cores share the breakers,
//! the detectors of silence and the metrics, and nothing else.
//!
//! Not here: the thread that a core is: `edge::cores`.

use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

use super::observe::lines::{LineWriter, Lines};
use super::provider::{PerProvider, Provider, ProviderId};
use super::silence::{Ticker, Watchers};
use super::state::{AppState, Live};
use super::timers::Timers;
use super::upstream::{Resolver, Upstream};
use crate::{CircuitBreaker, Permit, Rejection};

/// One core's part of the gateway.
pub(crate) struct Core {
    pub(crate) app: Arc<AppState>,
    /// No other core locks it.
    local: Mutex<Arc<Local>>,
    log: Option<Lines>,
    pub(crate) timers: Arc<Timers>,
    ticker: Arc<Ticker>,
}

impl Core {
    pub(crate) fn new(app: Arc<AppState>) -> Arc<Self> {
        let timers = Arc::<Timers>::default();
        let ticker = Arc::new(Ticker::new(Arc::clone(&timers)));
        let local = Arc::new(Local::new(app.live(), None, &ticker, app.resolver()));
        let log = app.access_log().map(LineWriter::lines);
        Arc::new(Self { app, local: Mutex::new(local), log, timers, ticker })
    }

    /// The current configuration. Unless it has changed, this writes to no memory that cores share.
    pub(crate) fn local(&self) -> Arc<Local> {
        let mut local = self.local.lock();
        if !self.app.is_live(&local.live) {
            *local = Arc::new(Local::new(self.app.live(), Some(&local), &self.ticker, self.app.resolver()));
        }
        Arc::clone(&local)
    }

    pub(crate) fn log(&self) -> Option<&Lines> {
        self.log.as_ref()
    }
}

/// A configuration, with one core's connections and watchers.
pub(crate) struct Local {
    live: Arc<Live>,
    pub(crate) upstreams: PerProvider<Arc<Upstream>>,
    /// `None` where silence detection is switched off.
    pub(crate) watchers: PerProvider<Option<Arc<Watchers>>>,
}

impl Local {
    /// A provider whose settings have not changed keeps its connections and its watchers. One whose detectors are kept
    /// keeps their watchers.
    fn new(live: Arc<Live>, before: Option<&Self>, ticker: &Arc<Ticker>, resolver: &Resolver) -> Self {
        let upstream = |provider: &Arc<Provider>| {
            let kept = before.and_then(|before| {
                let id = before.live.providers.find(|old| Arc::ptr_eq(old, provider))?;
                Some(Arc::clone(&before.upstreams[id]))
            });
            kept.unwrap_or_else(|| Arc::new(Upstream::new(&provider.config, &live.tls, resolver, live.server.cores)))
        };
        let watchers = |provider: &Arc<Provider>| {
            let detectors = provider.silence.as_ref()?;
            let of_the_same_name = before.and_then(|before| {
                let id = before.live.providers.find(|old| old.name() == provider.name())?;
                before.watchers[id].as_ref()
            });
            Some(match of_the_same_name {
                Some(old) if Arc::ptr_eq(&old.detectors, detectors) => Arc::clone(old),
                old => Arc::new(Watchers::new(Arc::clone(detectors), Arc::clone(ticker), old.map(|old| &**old))),
            })
        };
        let upstreams = live.providers.iter().map(upstream).collect();
        let watchers = live.providers.iter().map(watchers).collect();
        Self { live, upstreams, watchers }
    }

    /// As [`CircuitBreaker::try_acquire`].
    pub(crate) fn try_acquire(self: &Arc<Self>, provider: ProviderId) -> Result<ProviderPermit, Rejection> {
        self.providers[provider].breaker.try_acquire().map(|permit| self.hold(provider, permit))
    }

    /// Turns a permit into one that can be kept.
    pub(crate) fn hold(self: &Arc<Self>, provider: ProviderId, permit: Permit<&CircuitBreaker>) -> ProviderPermit {
        permit.held_by(BreakerOf { local: Arc::clone(self), provider })
    }
}

impl Deref for Local {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

/// A provider's breaker, kept alive by a reference count that no other core writes to.
pub(crate) struct BreakerOf {
    local: Arc<Local>,
    provider: ProviderId,
}

impl Deref for BreakerOf {
    type Target = CircuitBreaker;

    fn deref(&self) -> &CircuitBreaker {
        &self.local.providers[self.provider].breaker
    }
}

pub(crate) type ProviderPermit = Permit<BreakerOf>;
