//! The client, with a host that refuses and one that breaks its answers off.

use fusebox::{CircuitState, is_rejection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{get, hosts};

#[tokio::test]
async fn a_host_that_refuses_is_left_alone_after_three_failures() {
    let hosts = hosts();
    for n in 0..4 {
        let error = get(&hosts, "http://127.0.0.1:1/").await.unwrap_err();
        assert_eq!(is_rejection(&*error), n == 3, "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        }
    });
    let hosts = hosts();
    for _ in 0..3 {
        get(&hosts, &format!("http://{address}/")).await.unwrap_err();
    }
    assert_eq!(hosts.state(&address), Some(CircuitState::Open));
}
