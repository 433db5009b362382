//! Beginning a WebSocket session with a provider, on a connection of its own.
//!
//! Not here: what passes in it: `edge::session`.

use http::{Response, Version, request};
use hyper::client::conn::http1;
use tokio::time::timeout;
use tower::ServiceExt;

use super::body::Loan;
use super::http1::MAX_BUFFERED;
use super::{RequestBody, SendError, Upstream, UpstreamBody, connect_error};
use crate::proxy::body::parts::Parts;

impl Upstream {
    /// Sends a request for a session, and waits for the head of the answer. If that is a 101, the connection is in its
    /// extensions, as hyper's `OnUpgrade`.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(crate) async fn open(&self, head: &request::Parts, key: usize) -> Result<Response<UpstreamBody>, SendError> {
        let connecting = timeout(self.connect_timeout, self.connector_for_sessions.clone().oneshot(self.url.clone()));
        let connected = connecting.await.map_err(|_| SendError::ConnectTimeout(self.connect_timeout))?;
        let stream = connected.map_err(|error| connect_error(error, self.connect_timeout))?;
        let opened = http1::Builder::new().max_buf_size(MAX_BUFFERED).handshake(stream).await;
        let (mut sender, connection) = opened.map_err(SendError::Connection)?;
        // It ends with the answer, or when the session takes the connection over. The errors reach those who wait.
        tokio::spawn(connection.with_upgrades());
        let request = self.request(head, key, RequestBody::Whole(Parts::default()), Version::HTTP_11);
        let response = sender.send_request(request).await.map_err(SendError::Connection)?;
        Ok(response.map(|body| UpstreamBody::new(body, Loan::Own { _until_dropped: sender })))
    }
}
