//! How many tokens an answer says that it took. It is read in passing: an answer that does not say so costs one search
//! for a word.
//!
//! | protocol | tokens in | tokens out | of those in, from a cache |
//! |---|---|---|---|
//! | chat completions, embeddings | `prompt_tokens` | `completion_tokens` | `prompt_tokens_details.cached_tokens` |
//! | responses | `input_tokens` | `output_tokens` | `input_tokens_details.cached_tokens` |
//! | messages (Anthropic) | `input_tokens`, of `message_start` | `output_tokens`, of the last `message_delta` | `cache_read_input_tokens` |

use std::sync::LazyLock;

use memchr::memmem;
use serde::Deserialize;

use crate::proxy::observe::facts::Usage;

static USAGE: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new("\"usage\""));

/// It stands near the end of a whole answer, where it stands at all.
const LAST: usize = 16 << 10;
/// No provider's is as long.
const MAX: usize = 4 << 10;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    prompt_tokens: Option<u64>,
    input_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

/// Reads the usage that a whole answer tells of.
pub(crate) fn of_answer(usage: &mut Usage, answer: &[u8]) {
    of_pieces(usage, &answer[answer.len().saturating_sub(LAST)..]);
}

/// The same of pieces of a stream. A later number replaces an earlier one.
pub(crate) fn of_pieces(usage: &mut Usage, pieces: &[u8]) {
    // A text that quotes the word has its quotes escaped, so that a backslash precedes the second one.
    for at in USAGE.find_iter(pieces) {
        let after = pieces[at + USAGE.needle().len()..].trim_ascii_start().strip_prefix(b":");
        let Some(object) = after.map(<[u8]>::trim_ascii_start).filter(|it| it.starts_with(b"{")) else { continue };
        let object = &object[..object.len().min(MAX)];
        if let Some(Ok(said)) = serde_json::Deserializer::from_slice(object).into_iter::<Said>().next() {
            let details = said.prompt_tokens_details.or(said.input_tokens_details);
            let cached = said.cache_read_input_tokens.or_else(|| details.and_then(|it| it.cached_tokens));
            usage.tokens_in = said.prompt_tokens.or(said.input_tokens).or(usage.tokens_in);
            usage.tokens_out = said.completion_tokens.or(said.output_tokens).or(usage.tokens_out);
            usage.cached = cached.or(usage.cached);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> (Option<u64>, Option<u64>, Option<u64>) {
        let mut usage = Usage::default();
        for piece in pieces {
            of_pieces(&mut usage, piece.as_bytes());
        }
        (usage.tokens_in, usage.tokens_out, usage.cached)
    }

    #[test]
    fn the_tokens_of_each_protocol_are_read() {
        let chat = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        assert_eq!(read(&[chat]), (Some(5), Some(7), Some(3)));
        let responses = r#"{"response":{"usage": {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 7}}}"#;
        assert_eq!(read(&[responses]), (Some(5), Some(7), Some(0)));
        let begins = r#"data: {"type":"message_start","message":{"usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":1}}}"#;
        let ends = r#"data: {"type":"message_delta","delta":{},"usage":{"output_tokens":7}}"#;
        assert_eq!(read(&[begins, ends]), (Some(5), Some(7), Some(2)));
        assert_eq!(read(&[r#"{"usage":{"prompt_tokens":8,"total_tokens":8}}"#]), (Some(8), None, None));
    }

    #[test]
    fn what_is_no_usage_is_not_read() {
        for other in [
            r#"{"content":"say \"usage\": {\"prompt_tokens\": 5}"}"#,
            r#"{"usage":null}"#,
            r#"{"usage":{"prompt_tokens":"many"}}"#,
            r#"{"usage":{"prompt_tokens":-1}}"#,
            r#"{"usage":{"prompt_tokens":5"#,
            r#"{"usage""#,
        ] {
            assert_eq!(read(&[other]), (None, None, None), "{other}");
        }
    }

    #[test]
    fn of_a_long_answer_only_the_end_is_searched() {
        let mut usage = Usage::default();
        of_answer(&mut usage, format!("{}{}", r#"{"usage":{"prompt_tokens":5}}"#, " ".repeat(LAST)).as_bytes());
        assert_eq!(usage.tokens_in, None);
        of_answer(&mut usage, format!("{}{}", " ".repeat(LAST), r#"{"usage":{"prompt_tokens":5}}"#).as_bytes());
        assert_eq!(usage.tokens_in, Some(5));
    }
}
