//! Services that answer with `http::Response`.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST, RETRY_AFTER};
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::classify::{Classify, Errors, failed};
use super::error::{BoxError, CircuitOpenError};
use crate::breaker::Outcome;
use crate::permit::OwnedPermit;

/// An error is a failure, and so is a 5xx, and a body that breaks off.
///
/// | what comes back                                | outcome                                                       |
/// |------------------------------------------------|---------------------------------------------------------------|
/// | 429 and 503 with `Retry-After` in seconds      | the circuit opens for that long                               |
/// | any other 5xx                                  | a failure                                                     |
/// | any other 4xx                                  | neutral: the request was wrong, which says nothing of the upstream |
/// | anything else, once its body has ended         | a success                                                     |
/// | the same, with a body that nobody reads        | a success                                                     |
/// | the same, with a body that is dropped half-read | neutral                                                      |
/// | the same, with a body that breaks off          | a failure                                                     |
///
/// What a rejected call gets is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

/// As [`Http`], with a 503 for a rejected call: see [`answering`](super::CircuitBreakerLayer::answering).
#[derive(Clone, Copy, Debug, Default)]
pub struct Answering;

impl<B: Body<Error: fmt::Display>, Error: Into<BoxError>> Classify<Response<B>, Error> for Http {
    type Response = Response<JudgedBody<B>>;
    type Error = BoxError;

    fn judge(&self, result: Result<Response<B>, Error>, permit: OwnedPermit) -> Result<Self::Response, BoxError> {
        match result {
            Ok(response) => Ok(judge_head(response, permit)),
            Err(error) => Err(failed(error.into(), permit)),
        }
    }

    fn not_ready(&self, error: Error, permit: Option<OwnedPermit>) -> BoxError {
        Classify::<(), Error>::not_ready(&Errors, error, permit)
    }

    fn reject(&self, rejection: CircuitOpenError) -> Result<Self::Response, BoxError> {
        Err(rejection.into())
    }
}

impl<B: Body<Error: fmt::Display>, Error: fmt::Display> Classify<Response<B>, Error> for Answering {
    type Response = Response<JudgedBody<B>>;
    type Error = Error;

    fn judge(&self, result: Result<Response<B>, Error>, permit: OwnedPermit) -> Result<Self::Response, Error> {
        match result {
            Ok(response) => Ok(judge_head(response, permit)),
            Err(error) => {
                permit.failure("error", &error);
                Err(error)
            }
        }
    }

    fn not_ready(&self, error: Error, permit: Option<OwnedPermit>) -> Error {
        if let Some(permit) = permit {
            permit.failure("error", &error);
        }
        error
    }

    fn reject(&self, rejection: CircuitOpenError) -> Result<Self::Response, Error> {
        Ok(unavailable(&rejection).map(|()| JudgedBody { body: None, permit: None, is_begun: false }))
    }
}

/// A 503 with `Retry-After`, in whole seconds, rounded up; without it if nobody knows when, since the circuit is
/// isolated by hand.
pub fn unavailable(rejection: &CircuitOpenError) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    if let Some(retry_after) = rejection.retry_after() {
        let seconds = u64::try_from(retry_after.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn judge_head<B: Body>(response: Response<B>, permit: OwnedPermit) -> Response<JudgedBody<B>> {
    let (head, body) = response.into_parts();
    let permit = match outcome(head.status, &head.headers) {
        Some(outcome) => {
            permit.resolve(outcome);
            None
        }
        None if body.is_end_stream() => {
            permit.success();
            None
        }
        // What breaks off is told. A caller that leaves says nothing about the upstream.
        None => Some(permit.cancel_on_drop()),
    };
    Response::from_parts(head, JudgedBody { body: Some(body), permit, is_begun: false })
}

/// `None` if the body decides.
fn outcome(status: StatusCode, headers: &HeaderMap) -> Option<Outcome> {
    let later = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    match retry_after(headers) {
        Some(duration) if later => {
            Some(Outcome::cool_down(duration, status.as_str(), "the upstream said when to come back"))
        }
        _ if status.is_server_error() => Some(Outcome::failure("5xx", status)),
        _ if status.is_client_error() => Some(Outcome::Neutral),
        _ => None,
    }
}

/// In seconds, at least one. A date is not read: it depends on two clocks.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// The host that a request is for, without its port: of the URI, or of the header `host`. Empty if there is none. It is
/// a key for [`CircuitBreakerLayer::keyed`](super::CircuitBreakerLayer::keyed).
pub fn host<B>(request: &Request<B>) -> Cow<'_, str> {
    let host = request.uri().host().or_else(|| host_header(request).map(without_port));
    lower_case(host.unwrap_or_default())
}

/// The same with the port, if the request names one: where several services share a host. User and password, which a
/// URI may have, are no part of it.
pub fn authority<B>(request: &Request<B>) -> Cow<'_, str> {
    let of_uri = request.uri().authority().map(|authority| {
        let authority = authority.as_str();
        authority.rsplit_once('@').map_or(authority, |(_, authority)| authority)
    });
    lower_case(of_uri.or_else(|| host_header(request)).unwrap_or_default())
}

fn host_header<B>(request: &Request<B>) -> Option<&str> {
    request.headers().get(HOST).and_then(|host| host.to_str().ok())
}

/// Hosts are the same in upper and lower case.
fn lower_case(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // Not the colons of an IPv6 address.
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    }
}

pin_project! {
    /// A body that tells the breaker how it ended.
    pub struct JudgedBody<B> {
        // `None` for a rejected call, whose answer is empty.
        #[pin]
        body: Option<B>,
        permit: Option<OwnedPermit>,
        // Somebody has begun to read it.
        is_begun: bool,
    }

    impl<B> PinnedDrop for JudgedBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // The head was good, and nobody wants to know more. Otherwise dropping the permit cancels it.
            if let Some(permit) = this.permit.take() && !*this.is_begun {
                permit.success();
            }
        }
    }
}

impl<B: Body<Error: fmt::Display>> Body for JudgedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        *this.is_begun = true;
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(cx));
        match &frame {
            Some(Err(error)) => {
                if let Some(permit) = this.permit.take() {
                    permit.failure("body", error);
                }
            }
            Some(Ok(_)) if !body.is_end_stream() => {}
            Some(Ok(_)) | None => {
                if let Some(permit) = this.permit.take() {
                    permit.success();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> fmt::Debug for JudgedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JudgedBody").field("permit", &self.permit).finish_non_exhaustive()
    }
}

impl<B> Default for JudgedBody<B> {
    /// Empty.
    fn default() -> Self {
        Self { body: None, permit: None, is_begun: false }
    }
}
