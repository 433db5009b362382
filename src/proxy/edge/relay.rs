//! The messages of a WebSocket session on their way, in both directions, and how the session ends.
//!
//! Each direction is read only as fast as the other side takes its messages. Pings and pongs are not passed on: the
//! gateway answers those of each side, and pings both, so that it notices when one of them is gone.
//!
//! Not here: how a session begins: `session`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt, stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use memchr::memmem;
use parking_lot::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::draining::Drain;
use crate::error::Escaped;
use crate::proxy::config::ProviderConfig;
use crate::proxy::observe::facts::End;
use crate::proxy::outcome::Outcome;
use crate::proxy::request::model::{self, Format};
use crate::proxy::route::attempts::AttemptId;
use crate::proxy::route::exchange::Exchange;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Source = SplitStream<Socket>;
type Target = SplitSink<Socket, Message>;

/// How often a side is pinged, unless its patience is short.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long a side may take to finish a close.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// A session that drains ends when nothing has passed for so long.
const QUIET: Duration = Duration::from_secs(1);

/// A session in which both sides are connected.
pub(super) struct Relay<'a> {
    pub(super) client: Socket,
    pub(super) provider: Socket,
    pub(super) config: &'a ProviderConfig,
    /// How long the client may say nothing, not even that it is there, or take nothing. For the provider that is
    /// `timeouts.idle`.
    pub(super) patience: Duration,
    /// A message of the client that has been read already.
    pub(super) first: Option<Message>,
    /// Whether the client's messages name models.
    pub(super) names_models: bool,
    pub(super) drain_limit: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Provider,
}

/// How a session ended.
#[derive(Debug)]
struct Ended {
    how: How,
    /// Whether the provider has sent a message.
    has_spoken: bool,
}

#[derive(Debug)]
enum How {
    Closed(Side, Option<CloseFrame>),
    /// Without a close frame, or with something that is no message.
    Broken(Side, Error),
    Late(Side),
    /// The client has named a model that the session's provider does not serve.
    OtherModel,
    Drained,
}

impl Relay<'_> {
    /// Passes messages until the session is over, settles the attempt, and closes both sides.
    ///
    /// A probe has succeeded with the provider's first message, or when it has run for `first_byte` without one. If the
    /// circuit was opened by answers that broke off, that proves nothing: it has succeeded when it has run for
    /// `first_byte` and `idle`.
    pub(super) async fn run(self, drain: &Drain, exchange: &mut Exchange, attempt: AttemptId) {
        let (timeouts, started) = (&self.config.timeouts, exchange.attempts.started(attempt));
        let breaks_off = exchange.attempts.circuit(attempt).breaks_off();
        let proven = timeouts.first_byte() + if breaks_off { timeouts.idle } else { Duration::ZERO };
        let proven = exchange.attempts.is_probe(attempt).then_some(started + proven);
        let (mut to_client, mut from_client) = self.client.split();
        let (mut to_provider, mut from_provider) = self.provider.split();
        let (client, provider) = ((Side::Client, self.patience), (Side::Provider, timeouts.idle));
        let passed = Mutex::new(Instant::now());
        let (mut bytes_in, mut has_spoken) = (0, false);
        let mut how = {
            let up = Direction { from: client, to: provider, passed: &passed, wakes: None };
            let up = up.pass(&mut from_client, &mut to_provider, self.first, |message| {
                let Some(message) = message else { return Ok(()) };
                bytes_in += message.len() as u64;
                if self.names_models { for_provider(message, self.config) } else { Ok(()) }
            });
            let down = Direction { from: provider, to: client, passed: &passed, wakes: proven };
            let down = down.pass(&mut from_provider, &mut to_client, None, |message| {
                if message.is_none() || !has_spoken && !breaks_off {
                    exchange.attempts.prove(attempt);
                }
                if let Some(message) = message {
                    has_spoken = true;
                    exchange.facts.count_bytes_out(message.len());
                }
                Ok(())
            });
            tokio::select! {
                how = up => how,
                how = down => how,
                () = quiet(drain, &passed, self.drain_limit) => How::Drained,
            }
        };
        exchange.facts.bytes_in = bytes_in;
        // A side that has sent its close frame and left refuses what is sent to it. The frame is still to be read.
        if let How::Broken(side, _) = how {
            let from = if side == Side::Client { &mut from_client } else { &mut from_provider };
            if let Some(frame) = closed(from).await {
                how = How::Closed(side, frame);
            }
        }
        let [client, provider] = [Side::Client, Side::Provider].map(|side| how.farewell(side));
        let (outcome, message) = Ended { how, has_spoken }.judge();
        exchange.attempts.settle(attempt, outcome, &message);
        exchange.facts.end = match outcome {
            Outcome::ClientLeft => End::ClientLeft,
            outcome if outcome.is_failure() => End::Cut,
            _ => End::Complete,
        };
        tokio::join!(
            end(&mut to_client, &mut from_client, client),
            end(&mut to_provider, &mut from_provider, provider)
        );
    }
}

/// One direction of a session: from whom, and to whom, each with its patience.
struct Direction<'a> {
    from: (Side, Duration),
    to: (Side, Duration),
    /// When the last message has passed in any direction.
    passed: &'a Mutex<Instant>,
    /// When `each` is to be called without a message.
    wakes: Option<Instant>,
}

impl Direction<'_> {
    /// Passes messages on until it cannot go on. `each` may change a message, or end the session.
    async fn pass(
        mut self,
        from: &mut Source,
        to: &mut Target,
        first: Option<Message>,
        mut each: impl FnMut(Option<&mut Message>) -> Result<(), How>,
    ) -> How {
        let ((source, patience), (target, takes)) = (self.from, self.to);
        let mut ping = pings(takes);
        let mut heard = Instant::now();
        let mut from = stream::iter(first.map(Ok)).chain(from);
        loop {
            let got = tokio::select! {
                got = timeout_at(heard + patience, from.next()) => got,
                _ = ping.tick() => {
                    if let Err(how) = send(target, to, Message::Ping(Bytes::new()), takes).await {
                        return how;
                    }
                    continue;
                }
                () = sleep_until(self.wakes.unwrap_or(heard)), if self.wakes.is_some() => {
                    self.wakes = None;
                    if let Err(how) = each(None) {
                        return how;
                    }
                    continue;
                }
            };
            let mut message = match got {
                Err(_late) => return How::Late(source),
                Ok(None) => return How::Broken(source, Error::ConnectionClosed),
                Ok(Some(Err(error))) => return How::Broken(source, error),
                Ok(Some(Ok(Message::Close(frame)))) => return How::Closed(source, frame),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {
                    heard = Instant::now();
                    continue;
                }
                Ok(Some(Ok(message))) => message,
            };
            if let Err(how) = each(Some(&mut message)) {
                return how;
            }
            if let Err(how) = send(target, to, message, takes).await {
                return how;
            }
            // What has come meanwhile has not been read.
            heard = Instant::now();
            *self.passed.lock() = heard;
        }
    }
}

async fn send(side: Side, to: &mut Target, message: Message, limit: Duration) -> Result<(), How> {
    match timeout(limit, to.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(How::Broken(side, error)),
        Err(_late) => Err(How::Late(side)),
    }
}

/// Replaces the clients' name of a model by the provider's.
fn for_provider(message: &mut Message, config: &ProviderConfig) -> Result<(), How> {
    let Message::Text(text) = message else { return Ok(()) };
    if memmem::find(text.as_bytes(), b"\"model\"").is_none() {
        return Ok(());
    }
    let Ok(Some(named)) = model::find(&Format::Json, text.as_bytes(), true) else { return Ok(()) };
    let there = config.models.get(&named.model).ok_or(How::OtherModel)?;
    if *there != named.model {
        let body = Bytes::copy_from_slice(text.as_bytes());
        let renamed = model::rename(&Format::Json, &body, &named, there).into_bytes();
        *message = Message::Text(String::from_utf8_lossy(&renamed).into_owned().into());
    }
    Ok(())
}

/// Returns when the gateway drains and the session may end: when nothing has passed for a while, or when there is not
/// much time left.
async fn quiet(drain: &Drain, passed: &Mutex<Instant>, limit: Duration) {
    drain.begun().await;
    let latest = Instant::now() + limit.saturating_sub(CLOSE_LIMIT);
    loop {
        let until = (*passed.lock() + QUIET).min(latest);
        if Instant::now() >= until {
            return;
        }
        sleep_until(until).await;
    }
}

/// The close frame that is still to be read, if there is one.
async fn closed(from: &mut Source) -> Option<Option<CloseFrame>> {
    let read = async {
        while let Some(Ok(message)) = from.next().await {
            if let Message::Close(frame) = message {
                return Some(frame);
            }
        }
        None
    };
    timeout(CLOSE_LIMIT, read).await.ok()?
}

/// Closes one side, and waits a moment for it to close as well.
async fn end(to: &mut Target, from: &mut Source, farewell: Option<CloseFrame>) {
    let ending = async {
        // It may be closed already.
        let _ = to.send(Message::Close(farewell)).await;
        while let Some(Ok(_)) = from.next().await {}
    };
    let _ = timeout(CLOSE_LIMIT, ending).await;
}

/// Waits for a client's first message, for as long as the client is there. An error is the code that the session ends
/// with.
pub(super) async fn first_text(client: &mut Socket, patience: Duration) -> Result<Utf8Bytes, u16> {
    let mut ping = pings(patience);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            got = timeout_at(heard + patience, client.next()) => match got {
                Ok(Some(Ok(Message::Text(text)))) => return Ok(text),
                Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => heard = Instant::now(),
                Ok(Some(Ok(Message::Binary(_)))) => return Err(1003),
                Ok(Some(Err(Error::Capacity(_)))) => return Err(1009),
                Ok(Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None) => return Err(1000),
                Err(_late) => return Err(1001),
            },
            _ = ping.tick() => {
                let pinged = timeout(patience, client.send(Message::Ping(Bytes::new()))).await;
                if !matches!(pinged, Ok(Ok(()))) {
                    return Err(1001);
                }
            }
        }
    }
}

/// When a side of so much patience is pinged.
fn pings(patience: Duration) -> Interval {
    let every = PING_EVERY.min(patience / 3);
    let mut ping = interval_at(Instant::now() + every, every);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping
}

/// Closes a session that has no provider.
pub(super) async fn refuse(client: Socket, event: Option<Message>, code: u16) {
    let (mut to, mut from) = client.split();
    if let Some(event) = event {
        let _ = timeout(CLOSE_LIMIT, to.send(event)).await;
    }
    end(&mut to, &mut from, Some(frame(code, "No provider took the session."))).await;
}

fn frame(code: u16, reason: &'static str) -> CloseFrame {
    CloseFrame { code: CloseCode::from(code), reason: reason.into() }
}

impl How {
    /// What a side is told at the end. `None` for a close without a code.
    fn farewell(&self, side: Side) -> Option<CloseFrame> {
        match self {
            // The answer to its own close frame is sent already.
            Self::Closed(_, frame) => frame.clone().filter(|frame| frame.code.is_allowed()),
            Self::Broken(broken, error) if *broken == side => match error {
                Error::Capacity(_) => Some(frame(1009, "The message is too long.")),
                Error::Utf8(_) => Some(frame(1007, "The text is not UTF-8.")),
                _ => Some(frame(1002, "The message is not valid.")),
            },
            Self::Broken(Side::Provider, _) => Some(frame(1011, "The provider broke off.")),
            Self::Late(Side::Provider) if side == Side::Client => Some(frame(1011, "The provider fell silent.")),
            Self::OtherModel if side == Side::Client => {
                Some(frame(1008, "The session's provider does not serve that model."))
            }
            Self::Drained if side == Side::Client => Some(frame(1001, "The gateway is going down.")),
            Self::Broken(..) | Self::Late(_) | Self::OtherModel | Self::Drained => Some(frame(1001, "")),
        }
    }
}

impl Ended {
    /// How the provider's part in the session is judged, with a message for the log.
    fn judge(&self) -> (Outcome, String) {
        match &self.how {
            How::Closed(Side::Provider, frame) => self.judge_close(frame.as_ref()),
            How::Broken(Side::Provider, error) => (Outcome::Cut, error.to_string()),
            How::Late(Side::Provider) => (Outcome::IdleTimeout, "it answered no ping, or took no message".to_owned()),
            How::Closed(Side::Client, _) | How::Drained | How::OtherModel if self.has_spoken => {
                (Outcome::Ok, String::new())
            }
            _ => (Outcome::ClientLeft, String::new()),
        }
    }

    /// By the codes of RFC 6455 section 7.4.1 and IANA's registry, and by the words that `OpenAI` gives as reasons.
    fn judge_close(&self, frame: Option<&CloseFrame>) -> (Outcome, String) {
        let Some(CloseFrame { code, reason }) = frame else { return (self.well(), String::new()) };
        let is_one_of = |words: &[&str]| words.iter().any(|word| reason.split('.').any(|part| part == *word));
        let outcome = match u16::from(*code) {
            1000 | 1001 => self.well(),
            1011 | 1012 | 1014 => Outcome::Cut,
            _ if is_one_of(&["invalid_api_key"]) => Outcome::KeyRefused,
            _ if is_one_of(&["insufficient_quota"]) => Outcome::NoCredit,
            _ if is_one_of(&["rate_limit_exceeded"]) => Outcome::RateLimited,
            1013 => Outcome::Later,
            3000 => Outcome::KeyRefused,
            _ => Outcome::ClientError,
        };
        (outcome, format!("it closed the session with {code}: {}", Escaped(reason)))
    }

    /// A close in good order. A provider that has said nothing has proven nothing.
    fn well(&self) -> Outcome {
        if self.has_spoken { Outcome::Ok } else { Outcome::Declined }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_judged_by_how_it_ends() {
        let judge = |how, has_spoken| Ended { how, has_spoken }.judge().0;
        let closed = |code, reason: &'static str| How::Closed(Side::Provider, Some(frame(code, reason)));
        for (how, outcome) in [
            (closed(1000, ""), Outcome::Ok),
            (closed(1001, "Your session hit the maximum duration of 60 minutes."), Outcome::Ok),
            (closed(1008, "policy"), Outcome::ClientError),
            (closed(1009, ""), Outcome::ClientError),
            (closed(1011, "keepalive ping timeout"), Outcome::Cut),
            (closed(1012, ""), Outcome::Cut),
            (closed(1013, ""), Outcome::Later),
            (closed(3000, "invalid_request_error.invalid_api_key"), Outcome::KeyRefused),
            (closed(1008, "insufficient_quota"), Outcome::NoCredit),
            (closed(4000, "requests.rate_limit_exceeded"), Outcome::RateLimited),
            (closed(4000, "unknown field insufficient_quota"), Outcome::ClientError),
            (How::Closed(Side::Provider, None), Outcome::Ok),
            (How::Broken(Side::Provider, Error::ConnectionClosed), Outcome::Cut),
            (How::Late(Side::Provider), Outcome::IdleTimeout),
            (How::Closed(Side::Client, None), Outcome::Ok),
            (How::Broken(Side::Client, Error::ConnectionClosed), Outcome::ClientLeft),
            (How::Late(Side::Client), Outcome::ClientLeft),
            (How::Drained, Outcome::Ok),
        ] {
            let shown = format!("{how:?}");
            assert_eq!(judge(how, true), outcome, "{shown}");
        }
        assert_eq!(judge(closed(1000, ""), false), Outcome::Declined);
        assert_eq!(judge(How::Closed(Side::Client, None), false), Outcome::ClientLeft);
    }
}
