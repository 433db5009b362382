//! The way of a request through the gateway, in phases. Each has one input and one result:
//!
//! | phase | where | what it does | result |
//! |---|---|---|---|
//! | read | [`request`](super::request) | reads the request as far as its routing needs | `Prepared` |
//! | choose | [`choose`], [`failover`] | takes the first candidate whose breaker lets the request pass, or waits for one | a permit |
//! | ask | [`ask`] | sends the request, and receives the answer as far as nothing of it goes to the client yet | `Reply` |
//! | judge | [`judge`] | settles the attempt: the breaker is told how it went | `Verdict` |
//! | | | an answer is passed on; otherwise the next candidate is chosen | |
//! | pass | [`stream`] | passes a stream on and settles its attempt when it ends | the client's bytes |
//! | tell | [`exchange`] | writes the access log and the metrics, when the answer has ended or the client has left | |
//!
//! A request that waits while its provider is found silent goes back to *choose* and stays open: the first answer
//! wins. The phases *choose* to *judge* are repeated until nothing is left to choose. Then the most useful failure is
//! the answer.
//!
//! Not here: what a request asks for (`request`), and how a provider is reached (`upstream`).

pub(crate) mod ask;
pub(crate) mod attempts;
pub(crate) mod blame;
pub(crate) mod choose;
pub(crate) mod ending;
pub(crate) mod exchange;
pub(crate) mod explain;
pub(crate) mod failover;
pub(crate) mod inside;
pub(crate) mod judge;
pub(crate) mod meaning;
pub(crate) mod receive;
pub(crate) mod sse;
pub(crate) mod stream;
pub(crate) mod usage;
