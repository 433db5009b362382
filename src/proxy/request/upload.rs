//! A request's body on its way from the client. It is held as a whole if possible, so that it can be sent again. A body
//! that is too long for that is passed on while it comes. If it breaks off, that is the client's fault, whichever
//! provider it goes to.
//!
//! Not here: sending it to a provider: `upstream`.

use std::error::Error;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::proxy::answer::{self, Code};
use crate::proxy::body::budget::Budget;
use crate::proxy::body::parts::Parts;
use crate::proxy::body::pieces::{Pieces, size_with};
use crate::proxy::config::ServerConfig;
use crate::proxy::timers::{Timer, within};

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    TooLong { limit: u64 },
    Stalled { limit: Duration },
    Broken,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { limit } => write!(f, "The body is longer than {limit} bytes."),
            Self::Stalled { limit } => {
                write!(f, "The body did not come in time: no pause may be longer than {limit:?}.")
            }
            Self::Broken => f.write_str("The body ended before it was complete."),
        }
    }
}

impl Error for Fault {}

impl Fault {
    pub(crate) fn answer(self) -> Response<Bytes> {
        let (status, code) = match self {
            Self::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, Code::BodyTooLong),
            Self::Stalled { .. } => (StatusCode::REQUEST_TIMEOUT, Code::BodyTimeout),
            Self::Broken => (StatusCode::BAD_REQUEST, Code::IncompleteBody),
        };
        answer::invalid(status, code, None, &self.to_string())
    }
}

/// What was read of a body.
pub(crate) enum Read {
    Whole(Bytes),
    /// The beginning of a body that is longer than `replay_body_bytes`, or for which there is no room at the moment.
    Begun(Bytes, Box<Rest>),
}

/// The part of a body that has not been read yet.
pub(crate) struct Rest {
    body: UnsyncBoxBody<Bytes, Fault>,
    /// How many bytes may still come.
    left: u64,
    max: u64,
    timer: Timer,
    patience: Patience,
}

/// How long to wait for a client. Each pause has a limit, and so have all pauses together: a client that sends a byte
/// now and then must not be waited for endlessly.
struct Patience {
    /// For one pause.
    limit: Duration,
    /// For all pauses from now on.
    left: Duration,
    waits_since: Option<Instant>,
}

/// A client that is slower than this on average is given up.
const BYTES_PER_SECOND: u32 = 1024;

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, left: limit, waits_since: None }
    }

    /// The end of the wait for the next piece, which begins now unless it has begun.
    fn until(&mut self) -> Instant {
        *self.waits_since.get_or_insert_with(Instant::now) + self.limit.min(self.left)
    }

    /// Call it when a piece has come.
    fn receive(&mut self, bytes: usize) {
        if let Some(since) = self.waits_since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        let earned = Duration::from_secs(1) * u32::try_from(bytes).unwrap_or(u32::MAX) / BYTES_PER_SECOND;
        self.left = self.left.saturating_add(earned);
    }
}

/// Reads a body, as far as it is held: up to `replay_body_bytes`, and beyond that until `is_enough` says so of what was
/// read, or up to `search_body_bytes`.
pub(crate) async fn read<B>(
    mut body: B,
    limits: &ServerConfig,
    budget: &Arc<Budget>,
    mut timer: Timer,
    is_enough: impl Fn(&[u8]) -> bool,
) -> Result<Read, Fault>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let (max, mut patience) = (limits.max_body_bytes, Patience::new(limits.body_timeout));
    if body.size_hint().lower() > max {
        return Err(Fault::TooLong { limit: max });
    }
    let mut pieces = Pieces::default();
    // Looked at whenever it has doubled, so that each byte is looked at a few times only.
    let mut look_at = limits.replay_body_bytes;
    while !body.is_end_stream() {
        let frame = match within(&mut timer, || patience.until(), pin!(body.frame())).await {
            Some(Some(Ok(frame))) => frame,
            Some(Some(Err(_))) => return Err(Fault::Broken),
            Some(None) => break,
            None => return Err(Fault::Stalled { limit: patience.limit }),
        };
        let Ok(data) = frame.into_data() else { continue };
        patience.receive(data.len());
        let has_room = pieces.has_room(data.len(), budget);
        pieces.push(data);
        let length = pieces.len();
        if length > max {
            return Err(Fault::TooLong { limit: max });
        }
        if length > look_at && has_room && length < limits.search_body_bytes && !is_enough(pieces.so_far()) {
            look_at = (2 * length).min(limits.search_body_bytes);
            continue;
        }
        if length > look_at || !has_room {
            let body = body.map_err(|_| Fault::Broken).boxed_unsync();
            return Ok(Read::Begun(
                pieces.into_bytes(),
                Box::new(Rest { body, left: max - length, max, timer, patience }),
            ));
        }
    }
    Ok(Read::Whole(pieces.into_bytes()))
}

/// The progress of a body that is passed on while it comes.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When the last piece was passed on.
    moved: Instant,
    waits_for_client: bool,
    bytes: u64,
    is_whole: bool,
    fault: Option<Fault>,
}

impl Progress {
    /// Since when the provider has been the one to wait for. While the client owes the next piece, that is now.
    pub(crate) fn since(&self) -> Instant {
        let state = self.0.lock();
        if state.waits_for_client { Instant::now() } else { state.moved }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.lock().bytes
    }

    /// Whether the whole body was passed on.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.lock().is_whole
    }

    pub(crate) fn fault(&self) -> Option<Fault> {
        self.0.lock().fault
    }
}

/// A body that is passed on while it comes.
pub(crate) struct Upload {
    begun: Parts,
    rest: Box<Rest>,
    progress: Arc<Progress>,
}

impl Upload {
    pub(crate) fn new(begun: Parts, rest: Box<Rest>) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress(Mutex::new(State {
            moved: Instant::now(),
            waits_for_client: false,
            bytes: 0,
            is_whole: false,
            fault: None,
        })));
        (Self { begun, rest, progress: Arc::clone(&progress) }, progress)
    }

    fn pass(&mut self, data: &Bytes) {
        let mut state = self.progress.0.lock();
        state.moved = Instant::now();
        state.waits_for_client = false;
        state.bytes += data.len() as u64;
        // hyper does not poll a body of known length for its end.
        state.is_whole = self.rest.body.is_end_stream();
    }

    fn fail(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.progress.0.lock().fault = Some(fault);
        Poll::Ready(Some(Err(fault)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        if let Some(begun) = this.begun.take() {
            this.pass(&begun);
            return Poll::Ready(Some(Ok(Frame::data(begun))));
        }
        let Poll::Ready(frame) = Pin::new(&mut this.rest.body).poll_frame(cx) else {
            this.progress.0.lock().waits_for_client = true;
            let patience = &mut this.rest.patience;
            ready!(this.rest.timer.poll_until(patience.until(), cx));
            let limit = patience.limit;
            return this.fail(Fault::Stalled { limit });
        };
        match frame {
            None => {
                let mut state = this.progress.0.lock();
                state.waits_for_client = false;
                state.is_whole = true;
                Poll::Ready(None)
            }
            Some(Err(_)) => this.fail(Fault::Broken),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.rest.patience.receive(data.len());
                    this.pass(data);
                    match this.rest.left.checked_sub(data.len() as u64) {
                        Some(left) => this.rest.left = left,
                        None => return this.fail(Fault::TooLong { limit: this.rest.max }),
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.rest.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        size_with(self.begun.len(), &self.rest.body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pieces of this size, one every 900 ms, come before the client is given up. At most 100 are sent.
    async fn pieces_in_time(bytes: usize) -> usize {
        let mut patience = Patience::new(Duration::from_secs(1));
        for piece in 0..100 {
            let until = patience.until();
            tokio::time::advance(Duration::from_millis(900)).await;
            if Instant::now() > until {
                return piece;
            }
            patience.receive(bytes);
        }
        100
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_waited_for_and_one_that_sends_a_byte_now_and_then_is_given_up() {
        assert_eq!(pieces_in_time(1024).await, 100);
        assert_eq!(pieces_in_time(1).await, 1);
    }
}
