//! Asking one provider, and judging its answer up to the first piece of the body: as long as nothing of it has gone to the
//! client, another provider can do better.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::{Response, StatusCode, request};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::config::{ProviderConfig, Timeouts};
use super::stream::JudgedBody;
use super::upstream::{Chain, SendError, Tls, Upstream};
use super::{answer, headers};
use crate::{CircuitBreaker, OwnedPermit, PermitType};

/// A provider and its breaker.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) name: String,
    pub(crate) breaker: Arc<CircuitBreaker>,
    upstream: Upstream,
    timeouts: Timeouts,
    asked: AtomicU64,
    probes: AtomicU64,
}

/// What asking a provider led to.
pub(crate) enum Asked {
    /// This goes to the client.
    Answered(Response<Body>),
    /// Another candidate may do better; if there is none, this is the answer.
    Declined(Response<Body>),
}

impl Provider {
    pub(crate) fn new(config: &ProviderConfig, breaker: Arc<CircuitBreaker>, tls: &Tls) -> Self {
        Self {
            name: config.name.clone(),
            breaker,
            upstream: Upstream::new(config, tls),
            timeouts: config.timeouts.clone(),
            asked: AtomicU64::new(0),
            probes: AtomicU64::new(0),
        }
    }

    /// Requests that were sent its way, probes included.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// Sends a request and waits for the first piece of the answer's body.
    ///
    /// # Cancel safety
    ///
    /// Dropping it, because the client has left, counts against nobody.
    pub(crate) async fn ask(&self, permit: OwnedPermit, request: &request::Parts, body: Bytes) -> Asked {
        let permit = permit.cancel_on_drop();
        self.asked.fetch_add(1, Ordering::Relaxed);
        if permit.kind() == PermitType::Probe {
            self.probes.fetch_add(1, Ordering::Relaxed);
        }
        let deadline = Instant::now() + self.timeouts.first_byte;
        let response = match timeout_at(deadline, self.upstream.send(request, body)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let error_type = match error {
                    SendError::Connect(_) => "connect",
                    SendError::Connection(_) => "connection",
                };
                fail(permit, error_type, error);
                return Asked::Declined(answer::unreachable());
            }
            Err(_) => return self.late(permit),
        };
        let (mut head, body) = response.into_parts();
        headers::to_client(&mut head.headers);
        let status = head.status;
        let mut body = JudgedBody::new(body, self.timeouts.idle);
        if status.is_success() {
            match timeout_at(deadline, body.wait_for_first_piece()).await {
                Ok(Ok(())) => body.judge(permit, &self.breaker),
                Ok(Err(error)) => {
                    fail(permit, "stream", Chain(&error));
                    return Asked::Declined(answer::unreachable());
                }
                Err(_) => return self.late(permit),
            }
            return Asked::Answered(Response::from_parts(head, Body::new(body)));
        }
        if status.is_informational() {
            // Only 101 arrives here, and no upgrade was asked for.
            fail(permit, "protocol", format_args!("unexpected {status}"));
            return Asked::Declined(answer::unreachable());
        }
        let response = Response::from_parts(head, Body::new(body));
        if status.is_server_error() {
            fail(permit, "5xx", status);
            return Asked::Declined(response);
        }
        // What the client did wrong, or asked too often, says nothing about the provider.
        permit.cancel();
        if status == StatusCode::TOO_MANY_REQUESTS { Asked::Declined(response) } else { Asked::Answered(response) }
    }

    fn late(&self, permit: OwnedPermit) -> Asked {
        fail(permit, "timeout", format_args!("nothing of the body within {:?}", self.timeouts.first_byte));
        Asked::Declined(answer::timed_out())
    }
}

/// Records a failure and logs it: the breaker itself logs only the one that it opens on. At the rate of failures that a
/// breaker lets through, a line each is not too much.
pub(crate) fn fail(permit: OwnedPermit, error_type: &str, message: impl fmt::Display) {
    warn!(provider = permit.breaker().name(), error_type, error = %message, "a provider failed");
    permit.failure(error_type, message);
}
