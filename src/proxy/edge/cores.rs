//! The threads that serve clients, one for each core, and how connections are shared out among them.
//!
//! Not here: what a core has for itself: `core`; how it serves a connection: `edge::clients`.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::warn;

use crate::proxy::core::Core;
use crate::proxy::state::AppState;

/// The threads that serve clients.
///
/// Connections are accepted in one place and handed to the core that has the fewest. A listener for each core
/// (`SO_REUSEPORT`) would save that step, but it assigns connections at random, and they last long: of 8 cores with 8
/// connections, nearly three have none on average.
pub(crate) struct Cores {
    app: Arc<AppState>,
    threads: Vec<CoreThread>,
}

pub(crate) type Serve<S> = fn(Arc<Core>, mpsc::UnboundedReceiver<Accepted>, oneshot::Receiver<()>) -> S;

struct CoreThread {
    connections: mpsc::UnboundedSender<Accepted>,
    count: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

/// A client's connection on its way to the core that will serve it.
pub(crate) struct Accepted {
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
    fn new(of_all: OwnedSemaphorePermit, core: &CoreThread, app: &Arc<AppState>) -> Self {
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
    /// Starts all threads, or none. Each runs `serve` with the connections that it is handed, until they have ended or
    /// it is told to stop.
    pub(crate) fn start<S: Future + 'static>(app: &Arc<AppState>, serve: Serve<S>) -> io::Result<Self> {
        let cores = app.live().server.cores;
        let threads = (0..cores).map(|number| CoreThread::start(app, number, serve)).collect::<io::Result<_>>();
        let threads = threads.map_err(|error| {
            let message = format!("server.cores: {cores} threads cannot be started: {error}");
            io::Error::new(error.kind(), message)
        })?;
        Ok(Self { app: Arc::clone(app), threads })
    }

    pub(crate) fn hand_over(&self, stream: TcpStream, place: OwnedSemaphorePermit) {
        let fewest = self.threads.iter().min_by_key(|core| core.count.load(Ordering::Relaxed));
        let core = fewest.expect("there is one at least");
        let place = Place::new(place, core, &self.app);
        match stream.into_std() {
            // A core that has ended has panicked, and the connection is closed.
            Ok(stream) => drop(core.connections.send(Accepted { stream, place })),
            Err(error) => warn!(%error, "a connection could not be handed over"),
        }
    }

    /// Waits until all connections have ended, for at most `limit`. Returns whether they have.
    pub(crate) async fn drain(self, limit: Duration) -> bool {
        let mut stops = Vec::new();
        let mut threads = Vec::new();
        for CoreThread { connections, stop, ended, thread, .. } in self.threads {
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
            // A panic has been logged.
            let _ = thread.join();
        }
        all_ended
    }
}

impl CoreThread {
    fn start<S: Future + 'static>(app: &Arc<AppState>, number: u64, serve: Serve<S>) -> io::Result<Self> {
        let (connections, handed) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let (has_ended, ended) = oneshot::channel();
        let app = Arc::clone(app);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let run = move || {
            runtime.block_on(serve(Core::new(app), handed, stopped));
            // Without waiting for a host name that is still being looked up.
            runtime.shutdown_background();
            // The receiver is gone if the server was dropped.
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
    async fn a_connection_goes_to_the_core_that_has_the_fewest_and_is_counted_while_it_lasts() {
        let text = "[server]\ncores = 2\n[[providers]]\nname = 'a'\nurl = 'http://127.0.0.1:1/v1'\nmodels = ['m']";
        let app = AppState::new(&GatewayConfig::from_toml(text).unwrap()).unwrap();
        let cores = Cores::start(&app, crate::proxy::edge::clients::serve).unwrap();
        let counts = || cores.threads.iter().map(|core| core.count.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let places = Arc::new(tokio::sync::Semaphore::new(10));
        let mut clients = Vec::new();
        for expected in [[1, 0], [1, 1], [2, 1], [2, 2]] {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            cores.hand_over(listener.accept().await.unwrap().0, Arc::clone(&places).acquire_owned().await.unwrap());
            assert_eq!(counts(), expected);
        }
        drop(clients);
        // The total is decremented a moment after the core's count.
        let ended = async {
            while counts() != [0, 0] || places.available_permits() < 10 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("connections end in time");
        assert!(cores.drain(Duration::from_secs(20)).await);
    }
}
