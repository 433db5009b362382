//! The first candidate that lets a request pass.
//!
//! Not here: waiting for one: `failover`; whether one does: `core`.

use std::sync::Arc;

use crate::proxy::core::{Local, Permits};
use crate::proxy::observe::access_log::Skip;
use crate::proxy::provider::{CircuitId, ProviderId};

pub(crate) struct Candidate {
    pub(crate) id: CircuitId,
    /// Whether its rejection has been counted.
    pub(crate) is_rejected: bool,
}

/// The candidates that do not let a request pass now, but may soon, or will if nobody else does.
#[derive(Default)]
pub(crate) struct Refused {
    /// They have a probe in flight, recover, or have no place free.
    pub(crate) awaited: Vec<CircuitId>,
    pub(crate) silent: Vec<CircuitId>,
    /// Whether one of them has no place free.
    pub(crate) is_full: bool,
}

/// Takes the first provider out of `untried` that lets the request pass now.
pub(crate) fn next_at_once(
    live: &Arc<Local>,
    untried: &mut Vec<Candidate>,
    refused: &mut Refused,
    skipped: &mut Vec<(ProviderId, Skip)>,
) -> Option<(CircuitId, Permits)> {
    for at in 0..untried.len() {
        let Candidate { id, is_rejected } = untried[at];
        match live.try_acquire(id) {
            Ok(permit) => {
                untried.remove(at);
                return Some((id, permit));
            }
            Err(refusal) => {
                let provider = &live.providers[id.provider];
                if !is_rejected {
                    if refusal.is_full() {
                        provider.metrics.overflow();
                    } else {
                        provider.metrics.reject();
                    }
                    untried[at].is_rejected = true;
                    skipped.push((id.provider, refusal.skip()));
                }
                refused.is_full |= refusal.is_full();
                let is_silent = || provider.circuit(id).is_silent();
                if refusal.is_silent() || refusal.ends_soon() && is_silent() {
                    refused.silent.push(id);
                } else if refusal.ends_soon() || refusal.is_full() {
                    refused.awaited.push(id);
                }
            }
        }
    }
    None
}
