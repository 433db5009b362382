//! The answers of a simulated provider, in the forms of `OpenAI` and Anthropic: always the same few words.

use bytes::Bytes;
use serde_json::{Value, json};

pub(super) const WORDS: [&str; 6] = ["The ", "circuit ", "is ", "closed ", "again", "."];

/// A chat completion in pieces.
pub(super) fn stream(model: &str) -> Vec<Bytes> {
    let event = |delta: Value, finish: Option<&str>| {
        let chunk = json!({
            "id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 0, "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let words = WORDS.iter().map(|word| event(json!({"role": "assistant", "content": word}), None));
    words.chain([event(json!({}), Some("stop")), Bytes::from_static(b"data: [DONE]\n\n")]).collect()
}

pub(super) fn completion(model: &str) -> Value {
    json!({
        "id": "chatcmpl-demo", "object": "chat.completion", "created": 0, "model": model,
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": WORDS.concat()}, "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 1, "completion_tokens": WORDS.len(), "total_tokens": 1 + WORDS.len()},
    })
}

/// Anthropic's.
pub(super) fn message(model: &str, texts: &[&str]) -> Value {
    let content: Vec<_> = texts.iter().map(|text| json!({"type": "text", "text": text})).collect();
    let reason = if texts.is_empty() { Value::Null } else { json!("end_turn") };
    json!({
        "id": "msg_demo", "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": reason, "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": WORDS.len()},
    })
}

pub(super) fn message_events(model: &str) -> Vec<Bytes> {
    let delta =
        |word: &&str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}});
    let begin = [
        json!({"type": "message_start", "message": message(model, &[])}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    ];
    let usage = json!({"output_tokens": WORDS.len()});
    let end = [
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": usage}),
        json!({"type": "message_stop"}),
    ];
    begin.into_iter().chain(WORDS.iter().map(delta)).chain(end).map(|data| named_event(&data)).collect()
}

/// `OpenAI`'s responses.
pub(super) fn response(model: &str, status: &str) -> Value {
    let content = json!([{"type": "output_text", "text": WORDS.concat(), "annotations": []}]);
    let item = json!({
        "type": "message", "id": "msg_demo", "role": "assistant", "status": "completed", "content": content,
    });
    let (output, usage) = if status == "completed" {
        let usage = json!({
            "input_tokens": 1, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": WORDS.len(),
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 1 + WORDS.len(),
        });
        (json!([item]), usage)
    } else {
        (json!([]), Value::Null)
    };
    json!({
        "id": "resp_demo", "object": "response", "created_at": 0, "status": status, "model": model, "output": output,
        "usage": usage, "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
        "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "temperature": 1, "top_p": 1,
    })
}

pub(super) fn response_events(model: &str) -> Vec<Bytes> {
    let whole = response(model, "completed");
    let item = whole["output"][0].clone();
    let empty =
        json!({"type": "message", "id": "msg_demo", "role": "assistant", "status": "in_progress", "content": []});
    let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
    let within = |mut event: Value| {
        event["item_id"] = json!("msg_demo");
        event["output_index"] = json!(0);
        event["content_index"] = json!(0);
        event
    };
    let delta = |word: &&str| within(json!({"type": "response.output_text.delta", "delta": word, "logprobs": []}));
    let begin = [
        json!({"type": "response.created", "response": response(model, "in_progress")}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": empty}),
        within(json!({"type": "response.content_part.added", "part": part("")})),
    ];
    let end = [
        within(json!({"type": "response.output_text.done", "text": WORDS.concat(), "logprobs": []})),
        within(json!({"type": "response.content_part.done", "part": part(&WORDS.concat())})),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item}),
        json!({"type": "response.completed", "response": whole}),
    ];
    let numbered = |(number, mut event): (usize, Value)| {
        event["sequence_number"] = json!(number);
        named_event(&event)
    };
    begin.into_iter().chain(WORDS.iter().map(delta)).chain(end).enumerate().map(numbered).collect()
}

/// An event whose name is its `type`.
fn named_event(data: &Value) -> Bytes {
    let name = data["type"].as_str().unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

pub(super) fn embedding(model: &str) -> Value {
    json!({
        "object": "list", "model": model, "usage": {"prompt_tokens": 1, "total_tokens": 1},
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}],
    })
}

pub(super) fn file() -> Value {
    json!({
        "id": "file-demo", "object": "file", "bytes": 4, "created_at": 0, "filename": "demo.jsonl", "purpose": "batch",
        "status": "processed",
    })
}
