//! Looking up hosts with the system's own resolver, which knows `/etc/hosts`, `search` and the like.
//!
//! Not here: which of a host's addresses is connected to: `upstream`.
//!
//! The system's resolver occupies a thread for as long as it takes, and cannot be cancelled. Each host has one lookup
//! at a time, on a thread of its own, and all requests wait for that one. So a host whose lookup hangs occupies one
//! thread, however many requests there are for it, and delays no other host.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::dns::Name;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;
use tower::Service;

/// How long a new lookup is awaited if the result of an older one is known.
const PATIENCE: Duration = Duration::from_millis(250);
/// How many hosts are looked up at one time.
const MAX_LOOKUPS: usize = 64;

type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
type Found = Result<Arc<[IpAddr]>, LookupError>;

/// The lookups of all cores and their results.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Shared>);

struct Shared {
    hosts: Mutex<HashMap<Box<str>, Host>>,
    lookup: Box<Lookup>,
}

#[derive(Default)]
struct Host {
    last: Option<Arc<[IpAddr]>>,
    /// The lookup under way, if there is one.
    awaited: Option<watch::Receiver<Option<Found>>>,
}

/// Why a host has no address.
#[derive(Clone, Debug)]
pub(crate) struct LookupError(Arc<io::Error>);

/// The lookups of [`MAX_LOOKUPS`] hosts hang, so that no further one is begun.
#[derive(Debug)]
pub(crate) struct TooManyLookups;

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host cannot be looked up: {}", self.0)
    }
}

impl Error for LookupError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

impl fmt::Display for TooManyLookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MAX_LOOKUPS} hosts are being looked up")
    }
}

impl Error for TooManyLookups {}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("hosts", &self.0.hosts.lock().len()).finish_non_exhaustive()
    }
}

impl Resolver {
    pub(crate) fn new() -> Self {
        Self::with(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    fn with(lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { hosts: Mutex::default(), lookup: Box::new(lookup) }))
    }

    /// Looks up a host, or waits for the lookup that is under way. If it takes long or fails, the last result is used.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves the lookup to the others that wait for it.
    async fn resolve(&self, host: &str) -> Found {
        let (mut awaited, last) = match self.begin(host) {
            Ok(begun) => begun,
            Err((error, last)) => return last.ok_or(LookupError(Arc::new(error))),
        };
        let found = async {
            // An error says that the thread has panicked.
            let found = awaited.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
            found.unwrap_or_else(|| Err(LookupError(Arc::new(io::Error::other("the lookup failed")))))
        };
        match last {
            None => found.await,
            Some(last) => Ok(timeout(PATIENCE, found).await.ok().and_then(Result::ok).unwrap_or(last)),
        }
    }

    /// The lookup under way, which is begun if there is none, and the last result.
    #[expect(clippy::type_complexity, reason = "each of the two is simple")]
    fn begin(
        &self,
        name: &str,
    ) -> Result<(watch::Receiver<Option<Found>>, Option<Arc<[IpAddr]>>), (io::Error, Option<Arc<[IpAddr]>>)> {
        let mut hosts = self.0.hosts.lock();
        let under_way = hosts.values().filter(|host| host.awaited.is_some()).count();
        let host = hosts.entry(name.into()).or_default();
        let last = host.last.clone();
        if let Some(awaited) = &host.awaited {
            return Ok((awaited.clone(), last));
        }
        if under_way >= MAX_LOOKUPS {
            return Err((io::Error::other(TooManyLookups), last));
        }
        let (tell, awaited) = watch::channel(None);
        let (shared, looked_up) = (Arc::clone(&self.0), Box::from(name));
        let thread = std::thread::Builder::new().name("lookup".into()).spawn(move || shared.run(&looked_up, &tell));
        if let Err(error) = thread {
            return Err((error, last));
        }
        host.awaited = Some(awaited.clone());
        Ok((awaited, last))
    }
}

impl Shared {
    fn run(&self, name: &str, tell: &watch::Sender<Option<Found>>) {
        /// Marks the lookup as over, even if it panics.
        struct Over<'a>(&'a Shared, &'a str);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                if let Some(host) = self.0.hosts.lock().get_mut(self.1) {
                    host.awaited = None;
                }
            }
        }
        let over = Over(self, name);
        let found = match (self.lookup)(name) {
            Ok(addresses) if addresses.is_empty() => Err(io::Error::other("it has no address")),
            Ok(addresses) => Ok(Arc::from(addresses)),
            Err(error) => Err(error),
        };
        if let Ok(addresses) = &found
            && let Some(host) = self.hosts.lock().get_mut(name)
        {
            host.last = Some(Arc::clone(addresses));
        }
        drop(over);
        // The receivers may be gone.
        let _ = tell.send(Some(found.map_err(|error| LookupError(Arc::new(error)))));
    }
}

/// As hyper wants it.
impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = LookupError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, LookupError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LookupError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, host: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move {
            let found = resolver.resolve(host.as_str()).await?;
            // hyper sets the port.
            Ok(found.iter().map(|ip| SocketAddr::new(*ip, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, last).into()
    }

    /// The lookup of `slow` waits for a result that the test sends, and is counted. Every other host is 127.0.0.1.
    fn resolver() -> (Resolver, mpsc::Sender<io::Result<u8>>, Arc<AtomicUsize>) {
        let (answer, answers) = mpsc::channel::<io::Result<u8>>();
        let (answers, count) = (Mutex::new(answers), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&count);
        let resolver = Resolver::with(move |host| {
            if host != "slow" {
                return Ok(vec![ip(1)]);
            }
            counted.fetch_add(1, Ordering::Relaxed);
            let answer = answers.lock().recv().unwrap_or_else(|_| Err(io::Error::other("the test is over")));
            answer.map(|last| vec![ip(last)])
        });
        (resolver, answer, count)
    }

    async fn until(condition: impl Fn() -> bool) {
        let met = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, met).await.expect("the condition is met in time");
    }

    #[tokio::test]
    async fn a_host_whose_lookup_hangs_occupies_one_thread_and_delays_no_other_host() {
        let (resolver, answer, count) = resolver();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..700 {
            let resolver = resolver.clone();
            waiting.spawn(async move { resolver.resolve("slow").await.map(|found| found[0]).ok() });
        }
        for _ in 0..10 {
            let found = timeout(DEADLINE, resolver.resolve("quick")).await.expect("it does not wait for the other one");
            assert_eq!(*found.unwrap(), [ip(1)]);
        }
        until(|| count.load(Ordering::Relaxed) > 0).await;
        answer.send(Ok(2)).unwrap();
        let found = timeout(DEADLINE, waiting.join_all()).await.unwrap();
        assert!(found.iter().all(|found| *found == Some(ip(2))));
        assert_eq!(count.load(Ordering::Relaxed), 1, "one lookup for all");
    }

    #[tokio::test]
    async fn the_last_result_is_used_while_a_new_lookup_hangs_or_fails() {
        let (resolver, answer, count) = resolver();
        answer.send(Ok(2)).unwrap();
        assert_eq!(*resolver.resolve("slow").await.unwrap(), [ip(2)]);
        // It hangs.
        assert_eq!(*timeout(DEADLINE, resolver.resolve("slow")).await.unwrap().unwrap(), [ip(2)]);
        assert_eq!(*timeout(DEADLINE, resolver.resolve("slow")).await.unwrap().unwrap(), [ip(2)]);
        assert_eq!(count.load(Ordering::Relaxed), 2);
        answer.send(Err(io::Error::other("no such host"))).unwrap();
        until(|| resolver.0.hosts.lock()["slow"].awaited.is_none()).await;
        answer.send(Err(io::Error::other("no such host"))).unwrap();
        assert_eq!(*resolver.resolve("slow").await.unwrap(), [ip(2)]);
        answer.send(Ok(3)).unwrap();
        assert_eq!(*resolver.resolve("slow").await.unwrap(), [ip(3)]);
    }

    #[tokio::test]
    async fn a_failed_lookup_says_why_and_is_repeated_by_the_next_request() {
        let (resolver, answer, _) = resolver();
        answer.send(Err(io::Error::other("no such host"))).unwrap();
        let error = resolver.resolve("slow").await.unwrap_err();
        assert_eq!(error.to_string(), "the host cannot be looked up: no such host");
        answer.send(Ok(2)).unwrap();
        assert!(resolver.resolve("slow").await.is_ok());
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_localhost() {
        let found = Resolver::new().resolve("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
