//! The callbacks. The context of a request holds its permit.

use std::sync::Arc;

use fusebox::{CircuitBreaker, OwnedPermit};
use pingora::ErrorSource;
use pingora::prelude::{Error, ErrorType, HttpPeer, ProxyHttp, Result, Session};

pub(crate) struct Proxy {
    pub(crate) upstreams: Vec<Arc<CircuitBreaker>>,
}

#[async_trait::async_trait]
impl ProxyHttp for Proxy {
    type CTX = Option<OwnedPermit>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn upstream_peer(&self, _: &mut Session, permit: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let free = self.upstreams.iter().find_map(|upstream| Arc::clone(upstream).try_acquire_owned().ok());
        let free = free.ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "every upstream is failing"))?;
        let peer = HttpPeer::new(free.breaker().name(), false, String::new());
        // A client that leaves drops the context, which is no failure of the upstream.
        *permit = Some(free.cancel_on_drop());
        Ok(Box::new(peer))
    }

    fn fail_to_connect(&self, _: &mut Session, _: &HttpPeer, permit: &mut Self::CTX, mut e: Box<Error>) -> Box<Error> {
        if let Some(permit) = permit.take() {
            permit.failure("connection", &e);
        }
        // `upstream_peer` is asked again.
        e.set_retry(true);
        e
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, permit: &mut Self::CTX) {
        let Some(permit) = permit.take() else { return };
        match (error, session.response_written()) {
            (Some(error), _) if error.esource() == &ErrorSource::Downstream => permit.cancel(),
            (Some(error), _) => permit.failure("proxy", error),
            (None, Some(head)) if head.status.is_server_error() => permit.failure("5xx", head.status),
            _ => permit.success(),
        }
    }
}
