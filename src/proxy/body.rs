//! Bodies of requests and answers in memory: their pieces, their parts, and how much of them may be held.
//!
//! Not here: reading them: `request::upload` and `route::receive`.

pub(crate) mod budget;
pub(crate) mod parts;
pub(crate) mod pieces;
