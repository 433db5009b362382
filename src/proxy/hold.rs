//! Reading an answer within its time limits: all of it where it is no stream, or its first piece.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};

use super::classify::Outcome;
use super::config::Timeouts;
use super::upstream::{Chain, UpstreamBody};

/// As much of a body as was read.
pub(crate) enum Held {
    Whole(Bytes),
    /// More than it may have.
    TooLong(Bytes),
}

fn too_late(outcome: Outcome) -> (Outcome, String) {
    let what = match outcome {
        Outcome::FirstByteTimeout => "nothing of the body in time",
        Outcome::IdleTimeout => "no further piece of the body in time",
        _ => "the body took longer than the total timeout",
    };
    (outcome, what.to_owned())
}

/// Reads a body of an answer to a request that was sent at `since`.
///
/// # Errors
///
/// How it ended, and what there is to say about it.
pub(crate) async fn hold(
    mut timer: Pin<&mut Sleep>,
    body: &mut UpstreamBody,
    max: u64,
    since: Instant,
    timeouts: &Timeouts,
) -> Result<Held, (Outcome, String)> {
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    let mut until = since + timeouts.first_byte.min(timeouts.total);
    let mut limit = Outcome::FirstByteTimeout;
    loop {
        let data = match within(timer.as_mut(), || until, pin!(next(body))).await {
            Some(Ok(Some(data))) => data,
            Some(Ok(None)) => break,
            Some(Err(error)) => return Err((Outcome::Cut, Chain(&error).to_string())),
            None if Instant::now() >= since + timeouts.total => return Err(too_late(Outcome::TotalTimeout)),
            None => return Err(too_late(limit)),
        };
        // Most answers come in one piece, which then need not be copied.
        if whole.is_empty() && parts.is_empty() {
            whole = data;
        } else {
            parts.extend_from_slice(&std::mem::take(&mut whole));
            parts.extend_from_slice(&data);
        }
        if (whole.len() + parts.len()) as u64 > max {
            return Ok(Held::TooLong(if parts.is_empty() { whole } else { parts.freeze() }));
        }
        if body.is_end_stream() {
            break;
        }
        let now = Instant::now();
        if now >= since + timeouts.total {
            return Err(too_late(Outcome::TotalTimeout));
        }
        until = (now + timeouts.idle).min(since + timeouts.total);
        limit = Outcome::IdleTimeout;
    }
    Ok(Held::Whole(if parts.is_empty() { whole } else { parts.freeze() }))
}

/// The next piece of a body, `None` at its end. What is no data is passed over.
pub(crate) async fn next(body: &mut UpstreamBody) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Runs a future until the time that `until` tells, which may move on meanwhile. The timer is only set if the future has to
/// wait. No `async fn`, which would keep the future twice.
pub(crate) fn within<T>(
    mut timer: Pin<&mut Sleep>,
    until: impl Fn() -> Instant,
    mut future: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        loop {
            let at = until();
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            ready!(timer.as_mut().poll(cx));
            if until() <= at {
                return Poll::Ready(None);
            }
        }
    })
}
