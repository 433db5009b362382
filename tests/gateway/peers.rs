//! The two ends of WebSocket sessions: a provider that takes them, and speaking in them.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use crate::support::soon;

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// A provider that takes sessions, which the test then speaks in.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request<()>>>>,
    sessions: mpsc::UnboundedReceiver<Socket>,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Request<()>>>>::default();
        let (give, sessions) = mpsc::unbounded_channel();
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                #[expect(clippy::result_large_err, reason = "the crate wants it so")]
                let take = |request: &Request<()>, mut response: Response<()>| {
                    let protocol = request.headers().get("sec-websocket-protocol");
                    let first = protocol.and_then(|it| it.to_str().unwrap().split(',').next().map(str::to_owned));
                    if let Some(first) = first {
                        response.headers_mut().insert("sec-websocket-protocol", first.parse().unwrap());
                    }
                    log.lock().push(request.clone());
                    Ok(response)
                };
                if let Ok(socket) = accept_hdr_async(stream, take).await {
                    // An error says that the test is over.
                    let _ = give.send(socket);
                }
            }
        });
        Self { address, seen, sessions }
    }

    pub(crate) async fn session(&mut self) -> Socket {
        soon(self.sessions.recv()).await.unwrap()
    }

    pub(crate) fn last(&self) -> Request<()> {
        self.seen.lock().last().cloned().unwrap()
    }
}

pub(crate) async fn next(socket: &mut Socket) -> Option<Message> {
    loop {
        match soon(socket.next()).await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message)) => return Some(message),
            Some(Err(_)) | None => return None,
        }
    }
}

pub(crate) async fn say(socket: &mut Socket, text: &str) {
    soon(socket.send(Message::Text(text.into()))).await.unwrap();
}

pub(crate) async fn hears(socket: &mut Socket, text: &str) {
    assert_eq!(next(socket).await, Some(Message::Text(text.into())));
}

pub(crate) fn frame(code: u16, reason: &str) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

/// The code and the reason of the close frame that ends a session. It is answered.
pub(crate) async fn closed(socket: &mut Socket) -> (u16, String) {
    loop {
        let frame = match next(socket).await {
            Some(Message::Close(frame)) => frame,
            Some(_) => continue,
            None => return (1006, String::new()),
        };
        // The other side may be gone.
        let _ = soon(socket.flush()).await;
        return frame.map_or((1005, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
    }
}
