//! What each core has for itself: a log, timers, connections to the providers, and watchers. Cores share the breakers,
//! the detectors of silence and the metrics, and nothing else.
//!
//! Not here: the thread that a core is: `edge::cores`.

use std::future::{pending, poll_fn};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::circuits::gate::{Gate, Place};
use super::config::WhenAllOpen;
use super::observe::access_log::Skip;
use super::observe::lines::{LineWriter, Lines};
use super::provider::{CircuitId, PerProvider, Provider};
use super::silence::{Ticker, Watchers};
use super::state::{AppState, Live};
use super::timers::Timers;
use super::upstream::{Resolver, Upstream};
use crate::{Cause, CircuitBreaker, CircuitState, Permit, PermitType, Rejection, RejectionReason};

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

    fn breaker(&self, id: CircuitId) -> &CircuitBreaker {
        &self.providers[id.provider].circuit(id).breaker
    }

    /// As [`CircuitBreaker::try_acquire`], of a circuit and of its provider's; and a place there, if they are limited.
    pub(crate) fn try_acquire(self: &Arc<Self>, id: CircuitId) -> Result<Permits, Refusal> {
        let permits = self.try_circuits(id)?;
        self.with_place(id, permits, None).map_err(|permits| {
            permits.cancel();
            Refusal { rejection: None, by_provider: false }
        })
    }

    /// As [`CircuitBreaker::try_acquire_early`], of a circuit and of its provider's. A probe needs no place: there is
    /// one, and while its circuit was open nothing else was sent.
    pub(crate) fn try_acquire_early(self: &Arc<Self>, id: CircuitId) -> Result<Permits, Refusal> {
        let is_due = |breaker: &CircuitBreaker| breaker.early_probe_in(EARLY_AFTER).is_some_and(|left| left.is_zero());
        if is_due(self.breaker(id)) && is_due(&self.providers[id.provider].breaker) {
            self.try_both(id, |breaker| breaker.try_acquire_early(EARLY_AFTER))
        } else {
            self.try_acquire(id)
        }
    }

    /// As [`try_acquire`](Self::try_acquire), without a place: for a request that has one.
    pub(crate) fn try_circuits(self: &Arc<Self>, id: CircuitId) -> Result<Permits, Refusal> {
        let (above, below) = (&self.providers[id.provider].breaker, self.breaker(id));
        // A provider's probe must not be claimed for a request that its model's circuit refuses (Sentinel#1638).
        if above.state() != CircuitState::Closed && !below.would_allow() {
            below.try_acquire().map(Permit::cancel).map_err(Refusal::by_model)?;
        }
        self.try_both(id, CircuitBreaker::try_acquire)
    }

    fn try_both(
        self: &Arc<Self>,
        id: CircuitId,
        acquire: fn(&CircuitBreaker) -> Result<Permit<&CircuitBreaker>, Rejection>,
    ) -> Result<Permits, Refusal> {
        let (above, below) = (&self.providers[id.provider].breaker, self.breaker(id));
        let above = acquire(above).map_err(|rejection| Refusal { rejection: Some(rejection), by_provider: true })?;
        match acquire(below) {
            Ok(below) => Ok(self.hold(id, above, below)),
            Err(rejection) => {
                above.cancel();
                Err(Refusal::by_model(rejection))
            }
        }
    }

    /// Adds `place`, or one that is free, if places are limited. Without one the permits come back.
    fn with_place(&self, id: CircuitId, permits: Permits, place: Option<Place>) -> Result<Permits, Permits> {
        let Some(gate) = self.gate(id) else { return Ok(permits) };
        match place.or_else(|| gate.try_enter()) {
            None => Err(permits),
            place => Ok(Permits { place, ..permits }),
        }
    }

    fn gate(&self, id: CircuitId) -> Option<&Gate> {
        self.providers[id.provider].circuits.gate(id.model)
    }

    /// As [`CircuitBreaker::acquire`], of a circuit and of its provider's; and waits for a place there, if they are
    /// limited. `None` if there is none, or if a probe failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives up the wait and changes nothing.
    pub(crate) async fn acquire(self: &Arc<Self>, id: CircuitId) -> Option<Permits> {
        let (above, below) = (&*self.providers[id.provider].breaker, self.breaker(id));
        let until = Instant::now() + self.providers[id.provider].config.breaker.wait_limit();
        let mut place = None;
        loop {
            let permits = match self.try_circuits(id) {
                Ok(permits) => permits,
                Err(refusal) if !refusal.ends_soon() || Instant::now() >= until => return None,
                Err(Refusal { by_provider, .. }) => {
                    let (waited, other) = if by_provider { (above, below) } else { (below, above) };
                    // The limit of the second wait is that of the first one.
                    let permit = timeout_at(until, waited.acquire()).await.ok()?.ok()?;
                    match other.try_acquire() {
                        Ok(other) if by_provider => self.hold(id, permit, other),
                        Ok(other) => self.hold(id, other, permit),
                        Err(_) => {
                            permit.cancel();
                            continue;
                        }
                    }
                }
            };
            match self.with_place(id, permits, place.take()) {
                Ok(permits) => return Some(permits),
                Err(permits) => permits.cancel(),
            }
            place = Some(self.gate(id)?.enter().await?);
        }
    }

    /// Turns permits into ones that can be kept.
    fn hold(
        self: &Arc<Self>,
        id: CircuitId,
        above: Permit<&CircuitBreaker>,
        below: Permit<&CircuitBreaker>,
    ) -> Permits {
        let breaker = |of_provider| BreakerOf { local: Arc::clone(self), id, of_provider };
        Permits { provider: above.held_by(breaker(true)), circuit: below.held_by(breaker(false)), place: None }
    }

    /// Whether a request that was refused by an open circuit, or its provider's, would meet another state now: a probe
    /// in flight, or none that refuses it.
    pub(crate) fn has_moved_on(&self, id: CircuitId) -> bool {
        let both = [&*self.providers[id.provider].breaker, self.breaker(id)];
        both.iter().any(|breaker| breaker.snapshot().probe_in_flight) || both.iter().all(|it| it.would_allow())
    }

    /// How long until a circuit and its provider's reopen. `None` if nobody knows.
    pub(crate) fn reopens_in(&self, id: CircuitId) -> Option<Duration> {
        self.longer_of_both(id, Duration::MAX)
    }

    /// How long until a request for this circuit may be sent. A probe in flight is likely to end before its lease.
    /// `None` if nobody knows, as after an isolation.
    pub(crate) fn free_in(&self, id: CircuitId) -> Option<Duration> {
        let is_early = self.failover.when_all_open == WhenAllOpen::ProbeEarly;
        self.longer_of_both(id, if is_early { EARLY_AFTER } else { Duration::MAX })
    }

    /// How long until each of the two has been open for `after`, or reopens.
    fn longer_of_both(&self, id: CircuitId, after: Duration) -> Option<Duration> {
        let (above, below) = (&self.providers[id.provider].breaker, self.breaker(id));
        Some(above.early_probe_in(after)?.max(below.early_probe_in(after)?))
    }
}

/// A request that has nobody else to ask may be the probe when the circuit has been open for so long.
const EARLY_AFTER: Duration = Duration::from_secs(1);

impl Deref for Local {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

/// Why a request may not be sent.
#[derive(Clone, Copy)]
pub(crate) struct Refusal {
    /// `None` if no place is free.
    rejection: Option<Rejection>,
    /// Whether it is the provider's own circuit that refused it.
    by_provider: bool,
}

impl Refusal {
    fn by_model(rejection: Rejection) -> Self {
        Self { rejection: Some(rejection), by_provider: false }
    }

    /// Whether a circuit is open because of silence.
    pub(crate) fn is_silent(self) -> bool {
        self.rejection.is_some_and(|rejection| rejection.reason() == RejectionReason::Silent)
    }

    /// Whether a probe in flight, or a ramp, is in the way.
    pub(crate) fn ends_soon(self) -> bool {
        let ends_soon = |reason| matches!(reason, RejectionReason::ProbeInFlight | RejectionReason::Recovering);
        self.rejection.is_some_and(|rejection| ends_soon(rejection.reason()))
    }

    /// For the access log.
    pub(crate) fn skip(self) -> Skip {
        let Some(rejection) = self.rejection else { return Skip { scope: "model", cause: "full" } };
        let cause = match (rejection.cause(), rejection.reason()) {
            (Some(cause), _) => cause.as_str(),
            (None, RejectionReason::ProbeInFlight) => "probe_in_flight",
            (None, RejectionReason::Recovering) => "recovering",
            (None, _) => "open",
        };
        let scope = match rejection.cause() {
            _ if !self.by_provider => "model",
            // Nothing but its key lets a provider cool down.
            Some(Cause::Cooldown) => "key",
            _ => "provider",
        };
        Skip { scope, cause }
    }

    /// Whether no place is free.
    pub(crate) fn is_full(self) -> bool {
        self.rejection.is_none()
    }
}

/// What a request needs: the permits of a model's circuit and of its provider's, and a place if they are limited.
pub(crate) struct Permits {
    pub(crate) provider: HeldPermit,
    pub(crate) circuit: HeldPermit,
    pub(crate) place: Option<Place>,
}

impl Permits {
    /// Whether one of them is a probe.
    pub(crate) fn is_probe(&self) -> bool {
        self.provider.kind() == PermitType::Probe || self.circuit.kind() == PermitType::Probe
    }

    pub(crate) fn cancel(self) {
        self.provider.cancel();
        self.circuit.cancel();
    }

    pub(crate) fn cancel_on_drop(self) -> Self {
        let (provider, circuit) = (self.provider.cancel_on_drop(), self.circuit.cancel_on_drop());
        Self { provider, circuit, place: self.place }
    }
}

/// A breaker, kept alive by a reference count that no other core writes to.
pub(crate) struct BreakerOf {
    local: Arc<Local>,
    id: CircuitId,
    of_provider: bool,
}

impl Deref for BreakerOf {
    type Target = CircuitBreaker;

    fn deref(&self) -> &CircuitBreaker {
        if self.of_provider { &self.local.providers[self.id.provider].breaker } else { self.local.breaker(self.id) }
    }
}

pub(crate) type HeldPermit = Permit<BreakerOf>;

/// As [`first_granted`], and waits on if none of them lets the request pass.
pub(crate) async fn first_granted_or_never(live: &Arc<Local>, awaited: &[CircuitId]) -> Option<(CircuitId, Permits)> {
    match first_granted(live, awaited).await {
        None => pending().await,
        granted => granted,
    }
}

/// Waits for all these circuits at once, until one lets the request pass. Only the request that is sent with a probe
/// claims it, and nobody waits for one provider while another can answer.
pub(crate) async fn first_granted(live: &Arc<Local>, awaited: &[CircuitId]) -> Option<(CircuitId, Permits)> {
    type Wait<'a> = Pin<Box<dyn Future<Output = Option<Permits>> + Send + 'a>>;
    let wait = |id: &CircuitId| Some(Box::pin(live.acquire(*id)) as Wait<'_>);
    let mut waits: Vec<Option<Wait<'_>>> = awaited.iter().map(wait).collect();
    poll_fn(|cx| {
        for (slot, id) in waits.iter_mut().zip(awaited) {
            let Some(wait) = slot else { continue };
            match wait.as_mut().poll(cx) {
                Poll::Ready(Some(permits)) => return Poll::Ready(Some((*id, permits))),
                Poll::Ready(None) => *slot = None,
                Poll::Pending => {}
            }
        }
        if waits.iter().all(Option::is_none) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}
