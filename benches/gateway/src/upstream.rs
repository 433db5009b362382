//! What every contender asks: it answers without looking at more of a request than where it ends, which costs far less
//! than passing it on.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

const CHUNKS: usize = 21;
const PACE: Duration = Duration::from_millis(5);

/// What a request asks for, by what its body says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Burst,
    Paced,
}

pub(crate) fn serve(port: u16) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a free port");
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket option");
            // A client that leaves is no news.
            tokio::spawn(async move { answer(stream).await.ok() });
        }
    })
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let (json, burst) = (json(), burst());
    let mut read = Vec::with_capacity(16 << 10);
    loop {
        let (kind, length) = loop {
            if let Some(request) = request(&read) {
                break request;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        read.drain(..length);
        match kind {
            Kind::Json => stream.write_all(&json).await?,
            Kind::Burst => stream.write_all(&burst).await?,
            Kind::Paced => paced(&mut stream).await?,
        }
    }
}

/// The first request, if all of it is there, and its length.
fn request(read: &[u8]) -> Option<(Kind, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(read).expect("a contender that speaks HTTP") else {
        return None;
    };
    let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.map_or(0, |header| std::str::from_utf8(header.value).expect("digits").parse().expect("digits"));
    let body = read.get(start..start + length)?;
    let kind = match body.get(..12) {
        Some(br#"{"model":"bu"#) => Kind::Burst,
        Some(br#"{"model":"pa"#) => Kind::Paced,
        _ => Kind::Json,
    };
    Some((kind, start + length))
}

fn json() -> Vec<u8> {
    let content = "The circuit is closed again. ".repeat(12);
    let body = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":0,"model":"json","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":20,"completion_tokens":70,"total_tokens":90}}}}"#
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-accel-buffering: no\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\ntransfer-encoding: chunked\r\n\r\n";

fn chunk(number: usize) -> String {
    let event = if number + 1 == CHUNKS {
        "data: [DONE]\n\n".to_owned()
    } else {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"burst\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"word{number} \"}}}}]}}\n\n"
        )
    };
    let end = if number + 1 == CHUNKS { "0\r\n\r\n" } else { "" };
    format!("{:x}\r\n{event}\r\n{end}", event.len())
}

fn burst() -> Vec<u8> {
    (STREAM_HEAD.to_owned() + &(0..CHUNKS).map(chunk).collect::<String>()).into()
}

async fn paced(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    let started = Instant::now();
    for number in 0..CHUNKS {
        stream.write_all(chunk(number).as_bytes()).await?;
        sleep_until(started + PACE * u32::try_from(number + 1).expect("few")).await;
    }
    Ok(())
}
