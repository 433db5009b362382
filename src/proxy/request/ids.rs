//! Ids that mean something at one provider only: of files, batches, threads, conversations and earlier responses, and
//! encrypted reasoning. They are found in the bytes of a body, which is not parsed again.
//!
//! Not here: whose an id is: `owners`.

use std::sync::LazyLock;

use memchr::memmem::Finder;

/// What providers keep below `/v1/`.
const COLLECTIONS: [&str; 11] = [
    "files/",
    "uploads/",
    "batches/",
    "messages/batches/",
    "conversations/",
    "threads/",
    "assistants/",
    "vector_stores/",
    "containers/",
    "fine_tuning/",
    "evals/",
];

/// Answers that providers keep. A path without an id is not about one that is kept: it asks for a new one.
const ANSWERS: [&str; 2] = ["responses/", "chat/completions/"];

/// What stands below the collection that a path is in, empty if that is all of it. `None` if it is in none.
fn below(path: &str) -> Option<&str> {
    let path = path.strip_prefix("/v1/")?;
    let is_all_of_it = |collection: &&str| collection.strip_suffix('/') == Some(path);
    if COLLECTIONS.iter().any(is_all_of_it) {
        return Some("");
    }
    let mut all = COLLECTIONS.iter().chain(&ANSWERS);
    all.find_map(|collection| path.strip_prefix(collection)).filter(|rest| !rest.is_empty())
}

/// Whether a request is about what a provider keeps, so that it needs no model, and may be a `GET` or a `DELETE`.
pub(crate) fn is_about_what_is_kept(path: &str) -> bool {
    below(path).is_some()
}

/// Whether an answer may have new ids.
pub(crate) fn has_new_ids(path: &str) -> bool {
    path == "/v1/responses" || is_about_what_is_kept(path)
}

/// What may be ids in a path.
pub(crate) fn in_path(path: &str) -> impl Iterator<Item = &[u8]> {
    below(path).into_iter().flat_map(|rest| rest.split('/')).filter(|it| !it.is_empty()).map(str::as_bytes)
}

/// The fields of a request that hold ids, without what they end with.
const FIELDS: [&str; 13] = [
    "previous_response",
    "response",
    "conversation",
    "file",
    "input_file",
    "training_file",
    "validation_file",
    "thread",
    "assistant",
    "batch",
    "vector_store",
    "container",
    "item",
];

/// A longer value is no id, except for encrypted reasoning.
const MAX_ID: usize = 200;

/// So many are looked at.
const MAX_IN_REQUEST: usize = 32;
const MAX_IN_ANSWER: usize = 1000;

/// The ids in a request.
pub(crate) fn in_request(body: &[u8]) -> Vec<&[u8]> {
    static ENDS: LazyLock<[Finder<'static>; 2]> = LazyLock::new(|| [Finder::new("_id\""), Finder::new("_ids\"")]);
    static NAMES: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
        ["\"conversation\"", "\"container\"", "\"training_file\"", "\"validation_file\""].map(Finder::new)
    });
    let mut found = Vec::new();
    for end in &*ENDS {
        for at in end.find_iter(body) {
            let name = body[..at].rsplit(|byte| *byte == b'"').next().unwrap_or_default();
            if FIELDS.iter().any(|field| field.as_bytes() == name) {
                values(&body[at + end.needle().len()..], &mut found, MAX_IN_REQUEST);
            }
        }
    }
    for name in &*NAMES {
        for at in name.find_iter(body) {
            values(&body[at + name.needle().len()..], &mut found, MAX_IN_REQUEST);
        }
    }
    encrypted(body, &mut found, MAX_IN_REQUEST);
    found
}

/// The ids in an answer.
pub(crate) fn in_answer(body: &[u8]) -> Vec<&[u8]> {
    static ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("id\""));
    let mut found = Vec::new();
    for at in ID.find_iter(body) {
        if matches!(body[..at].last(), Some(b'"' | b'_')) {
            values(&body[at + ID.needle().len()..], &mut found, MAX_IN_ANSWER);
        }
    }
    encrypted(body, &mut found, MAX_IN_ANSWER);
    found
}

fn encrypted<'a>(body: &'a [u8], found: &mut Vec<&'a [u8]>, max: usize) {
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"encrypted_content\""));
    for at in NAME.find_iter(body) {
        let rest = body[at + NAME.needle().len()..].trim_ascii_start();
        if let Some((value, _)) = rest.strip_prefix(b":").and_then(|rest| text(rest.trim_ascii_start()))
            && !value.is_empty()
            && found.len() < max
        {
            found.push(value);
        }
    }
}

/// The value, or the values, of the field whose name stands before `rest`: a text, an array of texts, or an object with
/// an `id`.
fn values<'a>(rest: &'a [u8], found: &mut Vec<&'a [u8]>, max: usize) {
    let Some(rest) = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start) else { return };
    let mut rest = match rest.first() {
        Some(b'{') => {
            let start = &rest[..rest.len().min(MAX_ID * 2)];
            let Some(at) = start.windows(4).position(|part| part == b"\"id\"") else { return };
            let Some(rest) = rest[at + 4..].trim_ascii_start().strip_prefix(b":") else { return };
            rest.trim_ascii_start()
        }
        Some(b'[') => rest[1..].trim_ascii_start(),
        _ => rest,
    };
    while let Some((value, after)) = text(rest) {
        if found.len() == max {
            return;
        }
        if (1..=MAX_ID).contains(&value.len()) {
            found.push(value);
        }
        let Some(next) = after.trim_ascii_start().strip_prefix(b",") else { return };
        rest = next.trim_ascii_start();
        // The next field of an object, and not the next text of an array.
        if text(rest).is_none_or(|(_, after)| after.trim_ascii_start().starts_with(b":")) {
            return;
        }
    }
}

/// A text without escapes, as ids are, and what stands after it.
fn text(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = rest.strip_prefix(b"\"")?;
    let end = memchr::memchr2(b'"', b'\\', rest)?;
    (rest[end] == b'"').then(|| (&rest[..end], &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<'a>(ids: impl IntoIterator<Item = &'a [u8]>) -> Vec<&'a str> {
        ids.into_iter().map(|id| std::str::from_utf8(id).unwrap()).collect()
    }

    #[test]
    fn ids_are_found_in_every_field_that_has_some_and_in_no_other() {
        for (body, ids) in [
            (r#"{"previous_response_id":"resp_1","model":"m"}"#, vec!["resp_1"]),
            (r#"{"previous_response_id" : null}"#, vec![]),
            (r#"{"conversation":"conv_1"}"#, vec!["conv_1"]),
            (r#"{"conversation": {"id": "conv_2"}}"#, vec!["conv_2"]),
            (r#"{"input_file_id":"file-1","endpoint":"/v1/x"}"#, vec!["file-1"]),
            (r#"{"messages":[{"content":[{"type":"file","file":{"file_id":"file-2"}}]}]}"#, vec!["file-2"]),
            (r#"{"tools":[{"vector_store_ids":["vs_1", "vs_2"],"x":1}]}"#, vec!["vs_1", "vs_2"]),
            (r#"{"input":[{"type":"reasoning","encrypted_content":"gAAA"}]}"#, vec!["gAAA"]),
            (r#"{"training_file":"file-3"}"#, vec!["file-3"]),
            (r#"{"tool_call_id":"call_1","user_id":"u"}"#, vec![]),
            (r#"{"content":"the \"file_id\": is"}"#, vec![]),
            (r#"{"file_id":7,"thread_id":"#, vec![]),
            (r#"{"file_id":"unfinished"#, vec![]),
        ] {
            assert_eq!(texts(in_request(body.as_bytes())), ids, "{body}");
        }
        let many = r#"{"file_id":"f"},"#.repeat(100);
        assert_eq!(in_request(many.as_bytes()).len(), MAX_IN_REQUEST);
    }

    #[test]
    fn an_answer_is_read_for_its_own_ids_and_those_of_its_files() {
        let body = r#"{"id":"batch_1","output_file_id":"file-9","error_file_id":null,"data":[{"id":"x"}],"void":"y"}"#;
        assert_eq!(texts(in_answer(body.as_bytes())), ["batch_1", "file-9", "x"]);
    }

    #[test]
    fn paths_of_what_is_kept_have_their_ids() {
        for (path, ids) in [
            ("/v1/files/file-1", Some(vec!["file-1"])),
            ("/v1/files/file-1/content", Some(vec!["file-1", "content"])),
            ("/v1/responses/resp_1/cancel", Some(vec!["resp_1", "cancel"])),
            ("/v1/files", Some(vec![])),
            ("/v1/batches", Some(vec![])),
            ("/v1/responses", None),
            ("/v1/responses/", None),
            ("/v1/chat/completions", None),
            ("/v1/filesystem", None),
            ("/v1/models", None),
        ] {
            assert_eq!(is_about_what_is_kept(path), ids.is_some(), "{path}");
            assert_eq!(texts(in_path(path)), ids.unwrap_or_default(), "{path}");
        }
        assert!(has_new_ids("/v1/responses") && !has_new_ids("/v1/chat/completions"));
    }
}
