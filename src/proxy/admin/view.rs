//! Every circuit as an operator sees it: the body of `GET /admin/v1/circuits`. `docs/admin.openapi.json` describes it.
//!
//! Not here: which requests ask for it: `api`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde::Serialize;

use crate::proxy::circuits::AnswerKind;
use crate::proxy::counts::Tally;
use crate::proxy::keys::Keys;
use crate::proxy::observe::access_log::millis;
use crate::proxy::observe::chronicle::Failure;
use crate::proxy::observe::figures::{self, CLIENTS, Minute, Second};
use crate::proxy::observe::health::{HealthStatus, in_ms, passes, visible};
use crate::proxy::orders::{Given, Order, Target};
use crate::proxy::place::Place;
use crate::proxy::provider::Provider;
use crate::proxy::state::AppState;
use crate::proxy::wall_clock;
use crate::silence::{DetectorSnapshot, StallSnapshot};
use crate::{BreakerSnapshot, Cause, CircuitBreaker, Transition};

/// The whole gateway.
#[derive(Serialize)]
pub(crate) struct View {
    at: String,
    version: &'static str,
    status: HealthStatus,
    draining: bool,
    /// How often the configuration was replaced: providers and models are the same while this is.
    reloads: u64,
    /// What all clients together get, whichever provider answers.
    clients: Traffic,
    /// In the order of the configuration.
    providers: Vec<ProviderView>,
    failovers: Vec<FailoverView>,
}

#[derive(Serialize)]
struct ProviderView {
    provider: String,
    url: String,
    #[serde(flatten)]
    circuit: CircuitView,
    traffic: Traffic,
    keys: Vec<KeyView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    models: Vec<ModelView>,
    transitions: Vec<TransitionView>,
    failures: Vec<FailureView>,
}

#[derive(Serialize)]
struct ModelView {
    /// Empty for requests that name no model.
    model: String,
    traffic: Traffic,
    circuits: Vec<KindView>,
}

#[derive(Serialize)]
struct KindView {
    kind: &'static str,
    #[serde(flatten)]
    circuit: CircuitView,
    #[serde(skip_serializing_if = "Option::is_none")]
    silence: Option<SilenceView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stalls: Option<StallView>,
}

#[derive(Serialize)]
struct CircuitView {
    scope: &'static str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reopens_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
    failure_count: u32,
    trip_count: u64,
    failed_probe_count: u64,
    probe_in_flight: bool,
    waiters: usize,
    /// Of the last opening, unless the circuit is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<OrderView>,
}

#[derive(Serialize)]
struct ErrorView {
    error_type: String,
    message: String,
    at: String,
}

#[derive(Serialize)]
pub(super) struct OrderView {
    order: Order,
    reason: String,
    by: Option<String>,
    at: String,
    until: Option<String>,
}

#[derive(Serialize)]
struct Traffic {
    in_flight: u64,
    asked: u64,
    ok: u64,
    failed: u64,
    other: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<u64>,
    /// In a second, as the mean of the last ten.
    per_second: Rates,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_ms: Option<Quantiles>,
    /// The same of whole answers, of all clients together.
    #[serde(skip_serializing_if = "Option::is_none")]
    whole_ms: Option<Quantiles>,
    /// For each of the last seconds `[ok, failed, other]`, the oldest first; only the last one in events.
    seconds: Vec<[u64; 3]>,
}

#[derive(Serialize)]
struct Rates {
    ok: f64,
    failed: f64,
    other: f64,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

#[derive(Serialize)]
struct KeyView {
    key: usize,
    error: String,
    retry_in_ms: u64,
}

#[derive(Serialize)]
struct SilenceView {
    learnt: bool,
    phi: f32,
    unanswered: usize,
    oldest_ms: f64,
    median_ms: f64,
    p99_ms: f64,
}

#[derive(Serialize)]
struct StallView {
    learnt: bool,
    streams: u32,
    oldest_ms: f64,
}

#[derive(Serialize)]
pub(super) struct TransitionView {
    at: String,
    provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The kind of answer, or which key.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    from: &'static str,
    to: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Serialize)]
struct FailureView {
    at: String,
    model: String,
    outcome: &'static str,
    message: String,
}

#[derive(Serialize)]
struct FailoverView {
    from: String,
    to: String,
    last_minute: u64,
    total: u64,
}

impl View {
    /// Everything.
    pub(super) fn whole(app: &AppState) -> Self {
        Self::of(app, &Sight { app, now: wall_clock::now(), seconds: figures::KEPT, is_whole: true })
    }

    /// What may have changed within a second: the figures of one second, and no model that was not asked for. A
    /// provider may serve a thousand models.
    pub(super) fn of_a_second(app: &AppState) -> Self {
        Self::of(app, &Sight { app, now: wall_clock::now(), seconds: 1, is_whole: false })
    }

    fn of(app: &AppState, sight: &Sight<'_>) -> Self {
        let live = app.live();
        let failovers = app.figures.failovers().into_iter();
        Self {
            at: time(sight.now),
            version: env!("CARGO_PKG_VERSION"),
            status: app.health().status,
            draining: app.is_draining(),
            reloads: app.metrics.reloads.load(Ordering::Relaxed),
            clients: sight.clients(),
            providers: live.providers.iter().map(|provider| sight.provider(provider)).collect(),
            failovers: failovers
                .map(|(from, to, last_minute, total)| FailoverView { from, to, last_minute, total })
                .collect(),
        }
    }
}

/// One look at the gateway.
struct Sight<'a> {
    app: &'a AppState,
    now: SystemTime,
    /// How many of the last ones are shown.
    seconds: usize,
    is_whole: bool,
}

impl Sight<'_> {
    fn provider(&self, provider: &Provider) -> ProviderView {
        let name = provider.name();
        let (transitions, failures) = self.app.chronicle.of(name);
        let target = Target { provider: name.to_owned(), of_model: None };
        let is_key = provider.key_out().is_some();
        let buckets = provider.metrics.first_bytes();
        let traffic = Traffic {
            rejected: Some(provider.metrics.rejections()),
            ..self.traffic(provider.metrics.tally(), &self.app.figures.minute(name, None, &buckets))
        };
        let out = provider.keys.iter().flat_map(Keys::out);
        ProviderView {
            provider: name.to_owned(),
            url: provider.config.url.to_string(),
            circuit: self.circuit(if is_key { "key" } else { "provider" }, &provider.breaker, &target),
            traffic,
            keys: out.map(|(key, error, left)| KeyView { key, error, retry_in_ms: in_ms(left) }).collect(),
            hint: provider.hint(),
            models: self.models(provider),
            transitions: transitions.iter().map(|transition| TransitionView::of(transition)).collect(),
            failures: failures.into_iter().map(FailureView::of).collect(),
        }
    }

    fn clients(&self) -> Traffic {
        let metrics = &self.app.metrics;
        let traffic = self.traffic(metrics.tally(), &self.app.figures.minute(CLIENTS, None, &metrics.times()));
        Traffic { whole_ms: traffic.first_byte_ms, first_byte_ms: None, ..traffic }
    }

    /// Those that the configuration names, or those of them that were asked for. Requests without a model are shown if
    /// there were any.
    fn models(&self, provider: &Provider) -> Vec<ModelView> {
        let detectors = provider.silence.iter();
        let silence: HashMap<_, _> = detectors
            .clone()
            .flat_map(|detectors| detectors.snapshots())
            .map(|(model, kind, snapshot)| ((model, kind), snapshot))
            .collect();
        let stalls: HashMap<_, _> = detectors.flat_map(|detectors| detectors.stalls()).collect();
        let mut known: BTreeMap<&str, Vec<KindView>> = BTreeMap::new();
        for (model, kind, circuit) in provider.circuits.known() {
            let target = Target { provider: provider.name().to_owned(), of_model: Some((model.to_owned(), kind)) };
            let stalls = stalls.get(model).filter(|_| kind == AnswerKind::Stream);
            known.entry(model).or_default().push(KindView {
                kind: kind.as_str(),
                circuit: self.circuit("model", &circuit.breaker, &target),
                silence: silence.get(&(model.into(), kind)).map(SilenceView::of),
                stalls: stalls.map(StallView::of),
            });
        }
        let unnamed = known.contains_key("").then_some("");
        let named = provider.config.models.keys().map(String::as_str);
        let shown: Vec<_> =
            unnamed.into_iter().chain(named.filter(|name| self.is_whole || known.contains_key(name))).collect();
        let model = |model: &str| {
            let counts = provider.circuits.find(model).and_then(|id| provider.circuits.known_counts(id));
            let (tally, minute) = counts.map_or_else(Default::default, |counts| {
                let minute = self.app.figures.minute(provider.name(), Some(model), &counts.first_bytes());
                (counts.tally(), minute)
            });
            let circuits = known.remove(model).unwrap_or_default();
            ModelView { model: model.to_owned(), traffic: self.traffic(tally, &minute), circuits }
        };
        shown.into_iter().map(model).collect()
    }

    fn circuit(&self, scope: &'static str, breaker: &CircuitBreaker, target: &Target) -> CircuitView {
        let snapshot = breaker.snapshot();
        let state = visible(&snapshot);
        let BreakerSnapshot { cause, next_probe_in, last_error, .. } = &snapshot;
        let error = last_error.as_ref().filter(|_| !passes(&snapshot));
        CircuitView {
            scope,
            state: state.as_str(),
            cause: cause.map(Cause::as_str),
            since: self.app.chronicle.since(breaker).map(time),
            reopens_at: next_probe_in.map(|left| time(self.now + left)),
            retry_in_ms: next_probe_in.map(in_ms),
            failure_count: snapshot.failure_count,
            trip_count: snapshot.trip_count,
            failed_probe_count: snapshot.failed_probe_count,
            probe_in_flight: snapshot.probe_in_flight,
            waiters: snapshot.waiters,
            error: error.map(|error| ErrorView {
                error_type: error.error_type().to_owned(),
                message: error.message().to_owned(),
                at: time(self.now - error.age()),
            }),
            order: self.app.orders.of(target).as_ref().map(OrderView::of),
        }
    }

    fn traffic(&self, tally: Tally, minute: &Minute) -> Traffic {
        let skipped = minute.seconds.len().saturating_sub(self.seconds);
        let shown = minute.seconds[skipped..].iter().map(|second| [second.ok, second.failed, second.other]);
        let lately = minute.seconds.iter().rev().take(10);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let mean = |of: fn(&Second) -> u64| lately.clone().map(of).sum::<u64>() as f64 / lately.len().max(1) as f64;
        Traffic {
            in_flight: tally.in_flight(),
            asked: tally.asked,
            ok: tally.ok,
            failed: tally.failed,
            other: tally.other,
            rejected: None,
            per_second: Rates { ok: mean(|it| it.ok), failed: mean(|it| it.failed), other: mean(|it| it.other) },
            first_byte_ms: minute
                .median
                .zip(minute.p99)
                .map(|(p50, p99)| Quantiles { p50: millis(p50), p99: millis(p99) }),
            whole_ms: None,
            seconds: shown.collect(),
        }
    }
}

impl OrderView {
    pub(super) fn of(given: &Given) -> Self {
        Self {
            order: given.order,
            reason: given.reason.clone(),
            by: given.by.clone(),
            at: time(given.at),
            until: given.until.map(time),
        }
    }
}

impl SilenceView {
    fn of(snapshot: &DetectorSnapshot) -> Self {
        Self {
            learnt: snapshot.learnt,
            phi: snapshot.phi,
            unanswered: snapshot.unanswered as usize,
            oldest_ms: millis(snapshot.oldest),
            median_ms: millis(snapshot.median),
            p99_ms: millis(snapshot.p99),
        }
    }
}

impl StallView {
    fn of(snapshot: &StallSnapshot) -> Self {
        Self { learnt: snapshot.learnt, streams: snapshot.streams, oldest_ms: millis(snapshot.oldest) }
    }
}

impl TransitionView {
    pub(super) fn of(transition: &Transition) -> Self {
        let place = Place::of(&transition.breaker);
        let error = transition.last_error.as_ref().filter(|_| transition.cause.is_some());
        Self {
            at: time(transition.at),
            provider: place.provider.to_owned(),
            model: place.model.map(str::to_owned),
            kind: place.kind.map(str::to_owned),
            from: transition.from.as_str(),
            to: transition.to.as_str(),
            cause: transition.cause.map(Cause::as_str),
            error_type: error.map(|error| error.error_type().to_owned()),
            message: error.map(|error| error.message().to_owned()),
        }
    }
}

impl FailureView {
    fn of(failure: Failure) -> Self {
        let Failure { at, model, outcome, message } = failure;
        Self { at: time(at), model, outcome: outcome.as_str(), message }
    }
}

fn time(at: SystemTime) -> String {
    wall_clock::timestamp(at).to_string()
}
