//! Accepting connections, no more than there is room for.
//!
//! Not here: serving them: `clients` and `operators`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// How long to wait after an error before the next connection is accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// Lets as many connections wait to be accepted as the system allows. The listeners of std and tokio allow 128. A
/// connection that finds no room is retried by its client's kernel a second later.
pub(crate) fn widen_queue(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).listen(i32::from(u16::MAX))
}

/// Room for `max` connections at one time.
pub(crate) fn places(max: u64) -> Arc<Semaphore> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)))
}

/// The next connection and its place. `None` when `shutdown` completes.
pub(crate) async fn accept_unless(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    next_unless(|| accept(listener), places, shutdown).await
}

async fn next_unless<C, F>(
    accept: impl Fn() -> F,
    places: &Arc<Semaphore>,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Option<(C, OwnedSemaphorePermit)>
where
    F: Future<Output = io::Result<C>>,
{
    loop {
        let accepted = async {
            let place = Arc::clone(places).acquire_owned().await.expect("it is never closed");
            accept().await.map(|connection| (connection, place))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => return None,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                // Most likely no file descriptor is left. Connections that end will free some.
                warn!(%error, "a connection could not be accepted");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = &mut shutdown => return None,
                }
            }
        }
    }
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // With Nagle's algorithm a chunk of a stream waits for the acknowledgement of the one before, up to 40 ms.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_connection_to_a_client_has_no_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), accept(&listener));
        client.unwrap();
        assert!(accepted.unwrap().nodelay().unwrap());
    }

    /// `EMFILE`.
    const TOO_MANY_FILES: i32 = 24;

    #[tokio::test(start_paused = true)]
    async fn accepting_goes_on_after_errors_and_pauses_between_them() {
        let (calls, places) = (AtomicUsize::new(0), places(1));
        let accept = || {
            std::future::ready(match calls.fetch_add(1, Ordering::Relaxed) {
                0..10 => Err(io::Error::from_raw_os_error(TOO_MANY_FILES)),
                call => Ok(call),
            })
        };
        let start = Instant::now();
        let (accepted, place) = next_unless(accept, &places, pin!(pending())).await.unwrap();
        assert_eq!((accepted, start.elapsed()), (10, 10 * PAUSE));
        assert_eq!(places.available_permits(), 0, "the failed calls gave their places back");
        drop(place);
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_does_not_wait_for_errors_to_end_nor_for_a_place() {
        let (places, start) = (places(1), Instant::now());
        let fails = || std::future::ready(io::Result::<()>::Err(io::Error::from_raw_os_error(TOO_MANY_FILES)));
        let shutdown = tokio::time::sleep(PAUSE / 2);
        assert!(next_unless(fails, &places, pin!(shutdown)).await.is_none());
        assert_eq!(start.elapsed(), PAUSE / 2);
        let _taken = Arc::clone(&places).acquire_owned().await.unwrap();
        assert!(next_unless(|| std::future::ready(Ok(())), &places, pin!(tokio::time::sleep(PAUSE))).await.is_none());
    }
}
