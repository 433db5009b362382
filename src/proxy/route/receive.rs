//! Receiving an answer's body within its time limits: the whole of it, or of a stream the first piece with content.
//!
//! Not here: what an answer means: `ask` and `outcome`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::inside::Inside;
use super::meaning::{Form, Meaning, first, last_end};
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
    let Timeouts { idle, total, .. } = timeouts;
    let (first_byte, first_content) = (timeouts.first_byte(), timeouts.first_content());
    if Instant::now() >= since + *total {
        (Outcome::TotalTimeout, format!("the body was not whole within {total:?}"))
    } else if limit == Outcome::IdleTimeout {
        (limit, format!("no further content within {idle:?}"))
    } else if limit == Outcome::FirstContentTimeout {
        (limit, format!("no content within {first_content:?}, though the provider kept the stream alive"))
    } else {
        (limit, format!("nothing of the body within {first_byte:?}"))
    }
}

/// Receives the body of the answer to a request that was sent at `since`, of which `begun` has been received. The first
/// piece may take as long as the whole. Spaces are none: they only keep the connection alive.
///
/// # Errors
///
/// The outcome and a message, if the body breaks off or a time limit is exceeded.
pub(crate) async fn hold(
    timer: &mut Timer,
    body: &mut UpstreamBody,
    begun: Option<Bytes>,
    max: u64,
    budget: &Arc<Budget>,
    since: Instant,
    timeouts: &Timeouts,
) -> Result<Held, (Outcome, String)> {
    let whole_by = since + timeouts.total;
    let mut pieces = Pieces::default();
    let mut until = whole_by;
    if let Some(begun) = begun {
        pieces.push(begun);
    }
    loop {
        let data = match within(timer, || until, pin!(next(body))).await {
            Some(Ok(Some(data))) => data,
            Some(Ok(None)) => break,
            Some(Err(error)) => return Err((Outcome::Cut, Chain(&error).to_string())),
            None => return Err(late(Outcome::IdleTimeout, since, timeouts)),
        };
        let has_room = pieces.has_room(data.len(), budget);
        let is_content = !is_blank(&data);
        pieces.push(data);
        if pieces.len() > max || !has_room {
            return Ok(Held::TooLong(pieces.into_bytes()));
        }
        if body.is_end_stream() {
            break;
        }
        let now = Instant::now();
        if now >= whole_by {
            return Err(late(Outcome::IdleTimeout, since, timeouts));
        }
        if is_content {
            until = whole_by.min(now + timeouts.idle);
        }
    }
    Ok(Held::Whole(pieces.into_bytes()))
}

/// A longer piece may take as long as it takes.
const LONG_PIECE: usize = 16 << 10;

/// A longer beginning is passed on, with or without content.
const MAX_BEGINNING: usize = 64 << 10;

fn is_blank(piece: &[u8]) -> bool {
    piece.iter().all(u8::is_ascii_whitespace)
}

/// What a body begins with.
pub(crate) enum Begun {
    /// Its first piece, or of a stream of events or lines the first ones, up to one with content.
    Well(Bytes),
    /// What came within the time limit only keeps the stream alive.
    KeptAlive,
    /// A piece had begun, and was not whole in time.
    TooSlow,
    Late,
    Error(Inside),
    /// It has ended, and there was nothing in it.
    Empty,
}

/// Waits for the first piece of a body, or of a stream of events or lines for the first one with content. Until then
/// the client has nothing, and another provider can be asked. `until` is the time limit: it is told whether a byte has
/// come. A piece that has begun has to be whole within `patience`, unless it is a long one.
pub(crate) async fn begin(
    timer: &mut Timer,
    body: &mut UpstreamBody,
    until: impl Fn(bool) -> Instant,
    form: Option<Form>,
    patience: Option<Duration>,
) -> Result<Begun, hyper::Error> {
    let mut beginning = BytesMut::new();
    // The first `judged` bytes are known to have no content. The rest is judged when an event ends, or when it has
    // `look_at` bytes: however small the pieces are, each byte is judged a few times only.
    let (mut judged, mut look_at) = (0, 0);
    // When the piece began that is not whole yet.
    let mut half: Option<Instant> = None;
    loop {
        let has_begun = !beginning.is_empty();
        let slow = half.filter(|_| beginning.len() - judged < LONG_PIECE).zip(patience);
        let slow = slow.map(|(since, patience)| since + patience);
        let limit = || slow.into_iter().fold(until(has_begun), Instant::min);
        let piece = match within(timer, limit, pin!(next(body))).await {
            Some(piece) => piece?,
            None if slow.is_some_and(|slow| slow < until(has_begun)) => return Ok(Begun::TooSlow),
            None if has_begun => return Ok(Begun::KeptAlive),
            None => return Ok(Begun::Late),
        };
        let is_over = piece.is_none() || body.is_end_stream();
        let piece = piece.unwrap_or_default();
        let is_content = match form {
            None => !is_blank(&piece),
            // Later pieces are judged with what came before.
            Some(form) => !has_begun && first(form, &piece) == Meaning::Content,
        };
        if !has_begun && is_content {
            return Ok(Begun::Well(piece));
        }
        beginning.extend_from_slice(&piece);
        let Some(form) = form else {
            match beginning.len() {
                0 if is_over => return Ok(Begun::Empty),
                length if is_content || is_over || length > MAX_BEGINNING => {
                    return Ok(Begun::Well(beginning.freeze()));
                }
                _ => continue,
            }
        };
        if is_over {
            // The last piece need not have an empty line.
            beginning.extend_from_slice(b"\n\n");
        }
        let fresh = &beginning[judged..];
        let end = last_end(form, &fresh[fresh.len().saturating_sub(piece.len() + 5)..]);
        let is_due = end > 0 || fresh.len() >= look_at;
        let meaning = if is_due { first(form, fresh) } else { Meaning::Nothing };
        match meaning {
            Meaning::Error(inside) => return Ok(Begun::Error(inside)),
            Meaning::End => return Ok(Begun::Empty),
            Meaning::Nothing if is_over => return Ok(Begun::Empty),
            Meaning::Nothing if beginning.len() <= MAX_BEGINNING => {}
            Meaning::Nothing | Meaning::Content => {
                if is_over {
                    beginning.truncate(beginning.len() - 2);
                }
                return Ok(Begun::Well(beginning.freeze()));
            }
        }
        if is_due {
            look_at = 2 * fresh.len();
        }
        if end > 0 {
            judged += fresh.len() - fresh.len().min(piece.len() + 5) + end;
            look_at = 0;
            half = None;
        }
        if judged < beginning.len() {
            half.get_or_insert_with(Instant::now);
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
