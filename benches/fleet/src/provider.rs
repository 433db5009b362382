//! The provider: it answers calls of replicas, or fails them, and counts both.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

const LATENCY: Duration = Duration::from_millis(20);

/// For which replicas it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fails {
    Nobody,
    Everybody,
    /// Those with a lower number.
    Below(usize),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Calls that failed and were no probes.
    pub(crate) paid: u64,
    pub(crate) probes: u64,
    /// Of calls to replicas for which it does not fail.
    pub(crate) refused: u64,
    /// Of those by the replica that came late.
    pub(crate) paid_by_last: u64,
}

struct State {
    fails: Fails,
    counts: Counts,
    /// When a call of each replica succeeded last.
    good: Vec<Option<Instant>>,
    /// Whether the next probe is not answered.
    hangs: bool,
    /// Whose probe that was.
    hung: Option<usize>,
}

#[derive(Clone)]
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Provider {
    pub(crate) async fn start(replicas: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let good = vec![None; replicas];
        let state = State { fails: Fails::Nobody, counts: Counts::default(), good, hangs: false, hung: None };
        let provider = Self { address, state: Arc::new(Mutex::new(state)) };
        let serving = provider.clone();
        tokio::spawn(async move {
            while let Ok((replica, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(replica));
            }
        });
        provider
    }

    pub(crate) fn set(&self, fails: Fails) {
        self.state.lock().expect("no panic").fails = fails;
    }

    /// From now on the next probe is not answered.
    pub(crate) fn hang_a_probe(&self) {
        self.state.lock().expect("no panic").hangs = true;
    }

    /// Whose probe that was.
    pub(crate) fn hung(&self) -> Option<usize> {
        self.state.lock().expect("no panic").hung
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().expect("no panic").counts
    }

    /// Whether each of these replicas has made a good call since.
    pub(crate) fn all_good_since(&self, at: Instant, replicas: impl IntoIterator<Item = usize>) -> bool {
        let state = self.state.lock().expect("no panic");
        replicas.into_iter().all(|replica| state.good[replica].is_some_and(|good| good > at))
    }

    async fn serve(self, replica: TcpStream) {
        let _ = replica.set_nodelay(true);
        let (requests, answers) = replica.into_split();
        let answers = Arc::new(tokio::sync::Mutex::new(answers));
        let mut requests = BufReader::new(requests).lines();
        while let Ok(Some(request)) = requests.next_line().await {
            let mut parts = request.split(' ');
            let (Some(replica), Some(number), Some(kind)) = (parts.next(), parts.next(), parts.next()) else { return };
            let Ok(replica) = replica.parse::<usize>() else { return };
            let Some(is_good) = self.meet(replica, kind) else { continue };
            let (line, answers) =
                (format!("{number} {}\n", if is_good { "ok" } else { "failed" }), Arc::clone(&answers));
            tokio::spawn(async move {
                sleep(LATENCY).await;
                let _ = answers.lock().await.write_all(line.as_bytes()).await;
            });
        }
    }

    /// Whether a call is answered well. `None`: it is not answered.
    fn meet(&self, replica: usize, kind: &str) -> Option<bool> {
        let mut state = self.state.lock().expect("no panic");
        let fails = match state.fails {
            Fails::Nobody => false,
            Fails::Everybody => true,
            Fails::Below(number) => replica < number,
        };
        match kind {
            "probe" => {
                state.counts.probes += 1;
                if std::mem::take(&mut state.hangs) {
                    state.hung = Some(replica);
                    return None;
                }
            }
            "refused" => {
                state.counts.refused += u64::from(!fails && state.fails != Fails::Nobody);
                return None;
            }
            _ if fails => {
                state.counts.paid += 1;
                state.counts.paid_by_last += u64::from(replica + 1 == state.good.len());
            }
            _ => {}
        }
        if !fails {
            state.good[replica] = Some(Instant::now());
        }
        Some(!fails)
    }
}
