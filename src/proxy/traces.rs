//! Traces (feature `otel`): for each request a span, and below it one for each attempt, for what it waited for, and for
//! its stream.
//!
//! The spans are made when the request is over, of what is known of it anyway. While it is under way, all that a trace
//! costs are the ids that providers are told (W3C Trace Context). Without the feature nothing of this is there.
//!
//! Not here: what is known of a request: `observe::facts` and `route::attempts`.

pub(crate) mod export;
mod spans;

pub(crate) use self::spans::{AttemptSpan, RequestSpan, TRACEPARENT, Traced};
