//! A core is a thread with everything that requests need: what they write is its own, so that cores share nothing but the
//! breakers.
//!
//! Not here: what is done with a connection: `server`.

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::warn;

use super::lines::{LineWriter, Lines};
use super::provider::Provider;
use super::silence::{Looks, Watchers};
use super::state::{AppState, Live};
use super::timers::Timers;
use super::upstream::{Resolver, Upstream};
use crate::{CircuitBreaker, Permit, Rejection};

/// What one core has for itself.
pub(crate) struct Core {
    pub(crate) app: Arc<AppState>,
    /// Locked by this core alone.
    local: Mutex<Arc<Local>>,
    log: Option<Lines>,
    pub(crate) timers: Arc<Timers>,
    looks: Arc<Looks>,
}

impl Core {
    pub(crate) fn new(app: Arc<AppState>) -> Arc<Self> {
        let timers = Arc::<Timers>::default();
        let looks = Arc::new(Looks::new(Arc::clone(&timers)));
        let local = Arc::new(Local::new(app.live(), None, &looks, app.resolver()));
        let log = app.access_log().map(LineWriter::lines);
        Arc::new(Self { app, local: Mutex::new(local), log, timers, looks })
    }

    /// The configuration as it is now. Nothing that cores share is written, unless it has changed.
    pub(crate) fn local(&self) -> Arc<Local> {
        let mut local = self.local.lock();
        if !self.app.is_live(&local.live) {
            *local = Arc::new(Local::new(self.app.live(), Some(&local), &self.looks, self.app.resolver()));
        }
        Arc::clone(&local)
    }

    pub(crate) fn log(&self) -> Option<&Lines> {
        self.log.as_ref()
    }
}

/// A configuration, with one core's connections.
pub(crate) struct Local {
    live: Arc<Live>,
    /// As [`Live::providers`].
    pub(crate) upstreams: Vec<Arc<Upstream>>,
    /// As above. `None` where silence is not looked at.
    pub(crate) watchers: Vec<Option<Arc<Watchers>>>,
}

impl Local {
    /// A provider that stays as it was keeps its connections, and what was learnt of it what watches it.
    fn new(live: Arc<Live>, before: Option<&Self>, looks: &Arc<Looks>, resolver: &Resolver) -> Self {
        let upstream = |provider: &Arc<Provider>| {
            let kept = before.and_then(|before| {
                let at = before.live.providers.iter().position(|old| Arc::ptr_eq(old, provider))?;
                Some(Arc::clone(&before.upstreams[at]))
            });
            kept.unwrap_or_else(|| Arc::new(Upstream::new(&provider.config, &live.tls, resolver, live.server.cores)))
        };
        let watchers = |provider: &Arc<Provider>| {
            let detectors = provider.silence.as_ref()?;
            let mut old = before.iter().flat_map(|before| before.watchers.iter().flatten());
            let kept = old.find(|old| Arc::ptr_eq(&old.detectors, detectors)).cloned();
            Some(kept.unwrap_or_else(|| Arc::new(Watchers::new(Arc::clone(detectors), Arc::clone(looks)))))
        };
        let (upstreams, watchers) = live.providers.iter().map(|it| (upstream(it), watchers(it))).unzip();
        Self { live, upstreams, watchers }
    }

    /// As [`CircuitBreaker::try_acquire`].
    pub(crate) fn try_acquire(self: &Arc<Self>, provider: usize) -> Result<ProviderPermit, Rejection> {
        self.providers[provider].breaker.try_acquire().map(|permit| self.hold(provider, permit))
    }

    /// A permit that can be kept.
    pub(crate) fn hold(self: &Arc<Self>, provider: usize, permit: Permit<&CircuitBreaker>) -> ProviderPermit {
        permit.held_by(BreakerOf { local: Arc::clone(self), provider })
    }
}

impl Deref for Local {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

/// A provider's breaker, held by a count that is the core's own.
pub(crate) struct BreakerOf {
    local: Arc<Local>,
    provider: usize,
}

impl Deref for BreakerOf {
    type Target = CircuitBreaker;

    fn deref(&self) -> &CircuitBreaker {
        &self.local.providers[self.provider].breaker
    }
}

pub(crate) type ProviderPermit = Permit<BreakerOf>;

/// The threads that serve clients.
///
/// Connections are accepted in one place and handed to the core that has the fewest. A listener for each core (`SO_REUSEPORT`)
/// would save that, but places connections by chance, and they last: with 8 connections to 8 cores, nearly three cores have
/// none on average.
pub(crate) struct Cores {
    app: Arc<AppState>,
    running: Vec<Running>,
}

pub(crate) type Serve<S> = fn(Arc<Core>, mpsc::UnboundedReceiver<Connection>, oneshot::Receiver<()>) -> S;

struct Running {
    connections: mpsc::UnboundedSender<Connection>,
    count: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

/// A client's connection on its way to the core that will serve it.
pub(crate) struct Connection {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) place: Place,
}

/// Counts a connection while it lasts.
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    of_core: Arc<AtomicUsize>,
    app: Arc<AppState>,
}

impl Place {
    fn new(of_all: OwnedSemaphorePermit, core: &Running, app: &Arc<AppState>) -> Self {
        core.count.fetch_add(1, Ordering::Relaxed);
        app.metrics.connections.fetch_add(1, Ordering::Relaxed);
        Self { _of_all: of_all, of_core: Arc::clone(&core.count), app: Arc::clone(app) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of_core.fetch_sub(1, Ordering::Relaxed);
        self.app.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cores {
    /// All, or none. `serve`: what each does with the connections that it is handed, until they have ended or it is told to
    /// stop.
    pub(crate) fn start<S: Future + 'static>(app: &Arc<AppState>, serve: Serve<S>) -> io::Result<Self> {
        let cores = app.live().server.cores;
        let running = (0..cores).map(|number| Running::start(app, number, serve)).collect::<io::Result<_>>();
        let running = running.map_err(|error| {
            let message = format!("server.cores: {cores} threads cannot be started: {error}");
            io::Error::new(error.kind(), message)
        })?;
        Ok(Self { app: Arc::clone(app), running })
    }

    pub(crate) fn hand_over(&self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let fewest = self.running.iter().min_by_key(|core| core.count.load(Ordering::Relaxed));
        let core = fewest.expect("there is one at least");
        let place = Place::new(place, core, &self.app);
        match stream.into_std() {
            // A core that has ended has panicked; its clients' connections are closed.
            Ok(stream) => drop(core.connections.send(Connection { stream, place })),
            Err(error) => warn!(%error, "a connection could not be handed over"),
        }
    }

    /// Waits until all connections have ended, but no longer than `limit`. Whether they had.
    pub(crate) async fn drain(self, limit: Duration) -> bool {
        let mut stops = Vec::new();
        let mut threads = Vec::new();
        for Running { connections, stop, ended, thread, .. } in self.running {
            drop(connections);
            stops.push(stop);
            threads.push((ended, thread));
        }
        let until = tokio::time::Instant::now() + limit;
        let mut all_ended = true;
        for (ended, _) in &mut threads {
            // An error says that the thread has panicked, and has ended.
            all_ended &= tokio::time::timeout_at(until, ended).await.is_ok();
        }
        drop(stops);
        for (_, thread) in threads {
            // A panic has been printed.
            let _ = thread.join();
        }
        all_ended
    }
}

impl Running {
    fn start<S: Future + 'static>(app: &Arc<AppState>, number: u64, serve: Serve<S>) -> io::Result<Self> {
        let (connections, handed) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let (has_ended, ended) = oneshot::channel();
        let app = Arc::clone(app);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(serve(Core::new(app), handed, stopped));
            // Not for a host name that is still being looked up.
            runtime.shutdown_background();
            // Nobody listens if the server was dropped.
            let _ = has_ended.send(());
        };
        let thread = std::thread::Builder::new().name(format!("core-{number}")).spawn(run)?;
        Ok(Self { connections, count: Arc::default(), stop, ended, thread })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::proxy::GatewayConfig;

    #[tokio::test]
    async fn connections_go_to_the_core_that_has_the_fewest_and_a_core_counts_them_while_they_last() {
        let text = "[server]\ncores = 2\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
        let app = AppState::new(&GatewayConfig::from_toml(text).unwrap()).unwrap();
        let cores = Cores::start(&app, crate::proxy::server::serve_clients).unwrap();
        let counts = || cores.running.iter().map(|core| core.count.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let places = Arc::new(tokio::sync::Semaphore::new(10));
        let mut clients = Vec::new();
        for expected in [[1, 0], [1, 1], [2, 1], [2, 2]] {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            cores.hand_over(listener.accept().await.unwrap().0, Arc::clone(&places).acquire_owned().await.unwrap());
            assert_eq!(counts(), expected);
        }
        drop(clients);
        // The place among all is given back a moment after the core's.
        while counts() != [0, 0] || places.available_permits() < 10 {
            tokio::task::yield_now().await;
        }
        assert!(cores.drain(Duration::from_secs(20)).await);
    }
}
