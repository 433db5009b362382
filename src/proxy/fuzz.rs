//! What must hold for any bytes that a client, a provider or an operator's file may contain. These are the bodies of
//! the targets in `fuzz/`. The tests below run them over `tests/corpus` and a fixed number of its mutations.
//!
//! Not here: examples with a meaning, which are in each module's own tests.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tower::ServiceExt;

use super::config::GatewayConfig;
use super::request::model::{Format, Named, find, rename};
use super::request::path::leaves_its_base;
use super::route::sse::{Events, has_content};
use super::server::create_router;
use super::state::AppState;

/// A path that stays below its base still does when a server decodes it once more.
pub fn path(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if !leaves_its_base(&text) {
        assert!(!text.split(['/', '\\']).any(|segment| matches!(segment, "." | "..")), "{text}");
        let decoded = percent_decode_str(&text).decode_utf8().expect("else it would have been refused");
        assert!(!leaves_its_base(&decoded), "{text}");
    }
}

/// A stream comes out as it went in, however it is cut into pieces. The first byte gives their size.
pub fn events(data: &[u8]) {
    let Some((cut, text)) = data.split_first() else { return };
    let mut events = Events::default();
    let mut passed = BytesMut::new();
    for piece in text.chunks(usize::from(*cut) + 1) {
        passed.put(events.push(&Bytes::copy_from_slice(piece)));
    }
    passed.put(events.rest());
    assert!(passed == text, "{passed:?}");
}

/// Any text, and any beginning of it, can be searched for content.
pub fn content(data: &[u8]) {
    for end in (0..data.len()).rev().take(16) {
        has_content(&data[..end]);
    }
    has_content(data);
}

/// A model that is found in JSON can be replaced, and every beginning of the body has the same one or none.
pub fn json(data: &[u8]) {
    body(&Format::Json, data);
}

/// The same in a form whose boundary is `x`.
pub fn form(data: &[u8]) {
    body(&Format::Multipart { boundary: "x".to_owned() }, data);
}

fn body(format: &Format, data: &[u8]) {
    let Ok(Some(named)) = find(format, data, true) else { return };
    for end in (0..data.len()).step_by(data.len() / 16 + 1) {
        if let Ok(Some(Named { model, .. })) = find(format, &data[..end], false) {
            assert_eq!(model, named.model, "in the first {end} bytes");
        }
    }
    let mut parts = rename(format, &Bytes::copy_from_slice(data), &named, "other-model");
    let length = parts.len();
    let mut renamed = BytesMut::new();
    while let Some(part) = parts.take() {
        renamed.put(part);
    }
    assert_eq!(renamed.len() as u64, length);
    let again = find(format, &renamed, true).expect("as good as before").expect("as before");
    assert_eq!(again.model, "other-model");
}

/// A configuration is accepted or refused, and every mistake in it is one line.
pub fn configuration(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // The fuzzer must not read files of this machine.
    if text.contains("ca_file") {
        return;
    }
    let said = match GatewayConfig::from_toml(&text) {
        Ok(config) => {
            assert!(!config.to_string().contains(|c: char| c.is_control() && c != '\n'));
            config.warnings().to_vec()
        }
        Err(errors) => errors.mistakes().to_vec(),
    };
    assert!(said.iter().all(|line| !line.contains(char::is_control)), "{said:?}");
}

/// Whatever a provider sends, the client gets a complete answer with at most one length.
///
/// # Panics
///
/// If it does not, within 20 s.
pub fn answer(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let answered = runtime.block_on(async { timeout(Duration::from_secs(20), answered(data.to_vec())).await });
    answered.expect("in time");
}

async fn answered(data: Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let data = data.clone();
            tokio::spawn(async move {
                let mut scratch = [0; 4096];
                // Only the gateway's answer matters here.
                let _ = stream.read(&mut scratch).await;
                let _ = stream.write_all(&data).await;
            });
        }
    });
    let state = AppState::new(&config(address)).expect("it can be set up");
    let request = Request::post("/v1/chat/completions").body(Body::from(r#"{"model":"m"}"#)).expect("a request");
    let Ok(response) = create_router(state).oneshot(request).await;
    let (head, body) = response.into_parts();
    assert!(!head.headers.contains_key(header::TRANSFER_ENCODING));
    let lengths: Vec<_> = head.headers.get_all(header::CONTENT_LENGTH).iter().cloned().collect();
    // A body that breaks off gives an error.
    if let (Some(length), Ok(body)) = (lengths.first(), body.collect().await) {
        assert!(lengths.len() == 1 && *length == body.to_bytes().len().to_string(), "{lengths:?}");
    }
}

fn config(provider: SocketAddr) -> GatewayConfig {
    let text = format!(
        "[timeouts]\nfirst_byte = '200ms'\nidle = '200ms'\ntotal = '1s'\n\
         [[providers]]\nname = 'a'\nurl = 'http://{provider}/v1'\nmodels = ['m']\napi_key = 'key'\n"
    );
    GatewayConfig::from_toml(&text).expect("it is right")
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Runs a target over its corpus and over `mutations` of it, which are the same in every run.
    fn run(name: &str, target: fn(&[u8]), mutations: usize) {
        let folder = format!("{}/tests/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let corpus: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
        assert!(corpus.len() >= 3, "{name} has {} examples", corpus.len());
        for data in &corpus {
            target(data);
        }
        let mut rng = Rng::with_seed(7);
        for _ in 0..mutations {
            let mut data = corpus[rng.usize(..corpus.len())].clone();
            for _ in 0..rng.usize(1..6) {
                mutate(&mut data, &corpus, &mut rng);
            }
            target(&data);
        }
    }

    fn mutate(data: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
        let at = rng.usize(..=data.len());
        let end = data.len().min(at + rng.usize(..16));
        match rng.u8(..6) {
            0 => data.truncate(at),
            1 => data.insert(at, rng.u8(..)),
            2 => drop(data.drain(at..end)),
            3 => {
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            4 => {
                let other = &corpus[rng.usize(..corpus.len())];
                let from = rng.usize(..=other.len());
                data.splice(at..at, other[from..].iter().take(64).copied());
            }
            _ => {
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << rng.u8(..8);
                }
            }
        }
    }

    #[test]
    fn paths() {
        run("path", path, 20_000);
    }

    #[test]
    fn events_of_streams() {
        run("events", events, 20_000);
    }

    #[test]
    fn content_of_events() {
        run("content", content, 10_000);
    }

    #[test]
    fn models_in_json() {
        run("json", json, 20_000);
    }

    #[test]
    fn models_in_forms() {
        run("form", form, 20_000);
    }

    #[test]
    fn configurations() {
        run("configuration", configuration, 3_000);
    }

    #[test]
    fn answers_of_providers() {
        run("answer", answer, 150);
    }
}
