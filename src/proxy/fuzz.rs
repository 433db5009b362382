//! What must hold for any bytes that a client, a provider or an operator's file may contain. These are the bodies of
//! the targets in `fuzz/`. The tests below run them over `tests/corpus` and a fixed number of its mutations.
//!
//! Not here: examples with a meaning, which are in each module's own tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tower::ServiceExt;

use super::body::budget::Budget;
use super::body::parts::Parts;
use super::config::{GatewayConfig, ServerConfig};
use super::request::model::{Format, Named, find, rename};
use super::request::path::leaves_its_base;
use super::request::upload::{self, Read, Upload};
use super::route::meaning::{Form, has_content};
use super::route::sse::Events;
use super::server::create_router;
use super::state::AppState;
use super::timers::Timers;

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
    for form in [Form::Events, Form::Lines] {
        let mut events = Events::new(form);
        let mut passed = BytesMut::new();
        for piece in text.chunks(usize::from(*cut) + 1) {
            passed.put(events.push(&Bytes::copy_from_slice(piece)).0);
        }
        passed.put(events.finish().0);
        assert!(passed == text, "{passed:?}");
    }
}

/// Any text, and any beginning of it, can be searched for content.
pub fn content(data: &[u8]) {
    for form in [Form::Events, Form::Lines] {
        for end in (0..=data.len()).rev().take(17) {
            has_content(form, &data[..end]);
        }
    }
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

/// A request's body reaches a provider as the client sent it, however it is cut into pieces, and whether it is held or
/// passed on while it comes. The first byte gives the size of the pieces, the second one the limit for holding it.
///
/// # Panics
///
/// If it does not, within 20 s.
pub fn upload(data: &[u8]) {
    let [cut, limit, body @ ..] = data else { return };
    let pieces: Vec<_> = body.chunks(usize::from(*cut) + 1).map(Bytes::copy_from_slice).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let passed = runtime.block_on(async { timeout(Duration::from_secs(20), passed_on(pieces, *limit)).await });
    assert!(passed.expect("in time") == body);
}

async fn passed_on(pieces: Vec<Bytes>, limit: u8) -> Vec<u8> {
    let whole: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    let (sender, body) = Channel::<Bytes>::new(1);
    tokio::spawn(async move {
        let mut sender = sender;
        for piece in pieces {
            // The receiver panics if it gives up before the end.
            let _ = sender.send_data(piece).await;
        }
    });
    let limits = ServerConfig { replay_body_bytes: limit.into(), ..ServerConfig::default() };
    let timer = Arc::<Timers>::default().timer();
    let read =
        upload::read(body, &limits, &Budget::new(u64::MAX), timer, |_| true).await.expect("nothing is wrong with it");
    match read {
        Read::Whole(body) => body.to_vec(),
        Read::Begun(begun, rest) => {
            assert!(begun.len() as u64 > limit.into());
            let (upload, progress) = Upload::new(Parts::from(begun), rest);
            let body = upload.collect().await.expect("nothing is wrong with it").to_bytes();
            assert_eq!((progress.bytes(), progress.is_whole(), progress.fault()), (whole, true, None));
            body.to_vec()
        }
    }
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
    use std::collections::BTreeSet;

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
    fn uploads() {
        run("upload", upload, 2_000);
    }

    #[test]
    fn every_target_has_a_corpus_and_a_program_for_the_fuzzer() {
        let names = |folder: &str| -> BTreeSet<String> {
            let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
            let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
        };
        let functions =
            include_str!("fuzz.rs").lines().filter_map(|line| line.strip_prefix("pub fn ")?.split('(').next());
        let functions: BTreeSet<_> = functions.map(str::to_owned).collect();
        assert_eq!(functions, names("tests/corpus"));
        if std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").is_dir() {
            assert_eq!(functions, names("fuzz/fuzz_targets"));
        }
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
