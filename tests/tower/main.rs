//! The tower layer, from outside: what tower promises of a service, in which order layers mean what, and HTTP.
#![cfg(feature = "tower")]

mod contract;
mod http;
mod keyed;
mod orders;
mod support;
