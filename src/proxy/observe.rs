//! What is told of requests and providers: the access log and the log, metrics, health, and the headers that name a
//! request.
//!
//! Not here: anything that a decision depends on.

pub(crate) mod access_log;
pub(crate) mod chronicle;
pub(crate) mod facts;
pub(crate) mod figures;
pub(crate) mod health;
pub(crate) mod lines;
pub mod log;
pub(crate) mod metrics;
