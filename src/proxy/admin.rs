//! What operators see and do: the admin API, and the page that uses it.
//!
//! Not here: what is known of circuits: `observe`; orders: `orders` and `state::by_hand`; their port:
//! `edge::operators`.

mod admit;
pub(crate) mod api;
pub(crate) mod events;
mod page;
mod shown;
mod view;
