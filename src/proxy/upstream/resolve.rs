//! Looking hosts up, by the system's own resolver, so that `/etc/hosts`, `search` and whatever else it knows count.
//!
//! Not here: which of a host's addresses is connected to: `mod.rs`.
//!
//! The system's resolver takes a thread for as long as it likes and cannot be called off. Each host has one lookup at a time, on
//! a thread of its own, and all who want to know wait for that: a host whose lookup hangs takes one thread, however many
//! requests there are for it, and none from the others.

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

/// How long the answer of a new lookup is awaited where there is an older one.
const PATIENCE: Duration = Duration::from_millis(250);
/// More hosts than that are not looked up at one time.
const MAX_LOOKUPS: usize = 64;

type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;
type Found = Result<Arc<[IpAddr]>, LookupError>;

/// What is known of all hosts, for all cores.
#[derive(Clone)]
pub(crate) struct Resolver(Arc<Shared>);

struct Shared {
    hosts: Mutex<HashMap<Box<str>, Host>>,
    lookup: Box<Lookup>,
}

#[derive(Default)]
struct Host {
    last: Option<Arc<[IpAddr]>>,
    /// The lookup under way.
    awaited: Option<watch::Receiver<Option<Found>>>,
}

/// A host has no address.
#[derive(Clone, Debug)]
pub(crate) struct LookupError(Arc<io::Error>);

/// The system's lookups hang, of so many hosts at once that no more are begun.
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

    /// Looks a host up, anew unless somebody else is doing that. What was found the last time is the answer if the new one
    /// takes long or cannot be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves the lookup to whoever else waits for it.
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

    /// The lookup under way, and what was found the last time.
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
        /// A lookup that panics is over, too.
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
        // Nobody may wait any more.
        let _ = tell.send(Some(found.map_err(|error| LookupError(Arc::new(error)))));
    }
}

/// For hyper.
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
            // hyper puts the port in.
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

    /// `slow` waits for what the test sends, and is counted; every other host is 127.0.0.1.
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

    #[tokio::test]
    async fn a_host_whose_lookup_hangs_takes_one_thread_and_keeps_no_other_host_waiting() {
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
        while count.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        answer.send(Ok(2)).unwrap();
        let found = timeout(DEADLINE, waiting.join_all()).await.unwrap();
        assert!(found.iter().all(|found| *found == Some(ip(2))));
        assert_eq!(count.load(Ordering::Relaxed), 1, "one lookup for all");
    }

    #[tokio::test]
    async fn the_last_answer_holds_while_a_new_one_hangs_or_fails_and_is_replaced_by_it() {
        let (resolver, answer, count) = resolver();
        answer.send(Ok(2)).unwrap();
        assert_eq!(*resolver.resolve("slow").await.unwrap(), [ip(2)]);
        // It hangs.
        assert_eq!(*timeout(DEADLINE, resolver.resolve("slow")).await.unwrap().unwrap(), [ip(2)]);
        assert_eq!(*timeout(DEADLINE, resolver.resolve("slow")).await.unwrap().unwrap(), [ip(2)]);
        assert_eq!(count.load(Ordering::Relaxed), 2);
        answer.send(Err(io::Error::other("no such host"))).unwrap();
        while resolver.0.hosts.lock()["slow"].awaited.is_some() {
            tokio::task::yield_now().await;
        }
        answer.send(Err(io::Error::other("no such host"))).unwrap();
        assert_eq!(*resolver.resolve("slow").await.unwrap(), [ip(2)]);
        answer.send(Ok(3)).unwrap();
        assert_eq!(*resolver.resolve("slow").await.unwrap(), [ip(3)]);
    }

    #[tokio::test]
    async fn a_host_without_an_address_is_an_error_that_says_why_and_is_asked_for_again() {
        let (resolver, answer, _) = resolver();
        answer.send(Err(io::Error::other("no such host"))).unwrap();
        let error = resolver.resolve("slow").await.unwrap_err();
        assert_eq!(error.to_string(), "the host cannot be looked up: no such host");
        answer.send(Ok(2)).unwrap();
        assert!(resolver.resolve("slow").await.is_ok());
    }

    #[tokio::test]
    async fn the_systems_resolver_knows_the_files_of_the_system() {
        let found = Resolver::new().resolve("localhost").await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
