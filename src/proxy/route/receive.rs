//! Receiving an answer's body within its time limits: the whole of it, or of a stream the first piece with content.
//!
//! Not here: what an answer means: `ask` and `outcome`.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::sse::{has_content, last_end};
use crate::proxy::body::budget::Budget;
use crate::proxy::body::pieces::Pieces;
use crate::proxy::config::Timeouts;
use crate::proxy::outcome::Outcome;
use crate::proxy::timers::{Timer, within};
use crate::proxy::upstream::{Chain, UpstreamBody};

/// What was received of a body.
pub(crate) enum Held {
    Whole(Bytes),
    /// The beginning of one that is longer than the limit, or for which there is no room at the moment.
    TooLong(Bytes),
}

/// The outcome and the message of an exceeded limit: `limit`, unless the limit for the whole answer has passed as well.
pub(crate) fn late(limit: Outcome, since: Instant, timeouts: &Timeouts) -> (Outcome, String) {
    let Timeouts { first_byte, idle, total, .. } = timeouts;
    if Instant::now() >= since + *total {
        (Outcome::TotalTimeout, format!("the body was not whole within {total:?}"))
    } else if limit == Outcome::IdleTimeout {
        (limit, format!("no further piece of the body within {idle:?}"))
    } else {
        (limit, format!("nothing of the body within {first_byte:?}"))
    }
}

/// Receives the body of the answer to a request that was sent at `since`.
///
/// # Errors
///
/// The outcome and a message, if the body breaks off or a time limit is exceeded.
pub(crate) async fn hold(
    timer: &mut Timer,
    body: &mut UpstreamBody,
    max: u64,
    budget: &Arc<Budget>,
    since: Instant,
    timeouts: &Timeouts,
) -> Result<Held, (Outcome, String)> {
    let whole_by = since + timeouts.total;
    let mut pieces = Pieces::default();
    let mut limit = Outcome::FirstByteTimeout;
    let mut until = whole_by.min(since + timeouts.first_byte);
    loop {
        let data = match within(timer, || until, pin!(next(body))).await {
            Some(Ok(Some(data))) => data,
            Some(Ok(None)) => break,
            Some(Err(error)) => return Err((Outcome::Cut, Chain(&error).to_string())),
            None => return Err(late(limit, since, timeouts)),
        };
        let has_room = pieces.has_room(data.len(), budget);
        pieces.push(data);
        if pieces.len() > max || !has_room {
            return Ok(Held::TooLong(pieces.into_bytes()));
        }
        if body.is_end_stream() {
            break;
        }
        limit = Outcome::IdleTimeout;
        let now = Instant::now();
        if now >= whole_by {
            return Err(late(limit, since, timeouts));
        }
        until = whole_by.min(now + timeouts.idle);
    }
    Ok(Held::Whole(pieces.into_bytes()))
}

/// A longer beginning is passed on, with or without content.
const MAX_BEGINNING: usize = 64 << 10;

/// Waits for the first piece of a body, or of a stream of events for the first piece with content. Until then the
/// client has nothing, and another provider can be asked. Returns the beginning and whether it has content: at the time
/// limit, a stream that was only kept alive is passed on as it is. `None` if nothing came in time.
pub(crate) async fn begin(
    timer: &mut Timer,
    body: &mut UpstreamBody,
    mut until: impl FnMut() -> Instant,
    is_events: bool,
) -> Result<Option<(Option<Bytes>, bool)>, hyper::Error> {
    let mut beginning = BytesMut::new();
    // The first `judged` bytes are known to have no content. The rest is judged when an event ends, or when it has
    // `look_at` bytes: however small the pieces are, each byte is judged a few times only.
    let (mut judged, mut look_at) = (0, 0);
    loop {
        let piece = within(timer, &mut until, pin!(next(body))).await;
        match piece {
            Some(Ok(Some(piece))) if beginning.is_empty() && (!is_events || has_content(&piece)) => {
                return Ok(Some((Some(piece), true)));
            }
            Some(Ok(Some(piece))) => {
                beginning.extend_from_slice(&piece);
                let fresh = &beginning[judged..];
                let end = last_end(&fresh[fresh.len().saturating_sub(piece.len() + 3)..]);
                let is_due = end > 0 || fresh.len() >= look_at;
                if is_due && has_content(fresh) || beginning.len() > MAX_BEGINNING || body.is_end_stream() {
                    return Ok(Some((Some(beginning.freeze()), true)));
                }
                if is_due {
                    look_at = 2 * fresh.len();
                }
                if end > 0 {
                    judged += fresh.len() - fresh.len().min(piece.len() + 3) + end;
                    look_at = 0;
                }
            }
            Some(Ok(None)) => return Ok(Some(((!beginning.is_empty()).then(|| beginning.freeze()), true))),
            Some(Err(error)) => return Err(error),
            None if beginning.is_empty() => return Ok(None),
            None => return Ok(Some((Some(beginning.freeze()), false))),
        }
    }
}

/// The next piece of a body, or `None` at its end. Trailers are dropped.
pub(crate) async fn next(body: &mut UpstreamBody) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}
