//! Where clients and operators connect: accepting connections, handing them to cores, serving them, and ending them in
//! good order.
//!
//! Not here: what becomes of a request: `request` and `route`.

pub(crate) mod accept;
pub(crate) mod clients;
pub(crate) mod cores;
pub(crate) mod descriptors;
mod draining;
mod heartbeat;
mod http1;
mod http2;
pub(crate) mod operators;
mod relay;
pub(crate) mod routes;
mod session;
mod socket;
pub(crate) mod v1;
