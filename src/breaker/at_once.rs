//! What the tower layer asks before it makes a future of a call.
//!
//! Not here: asking in all other cases: `breaker::wait`.

use std::sync::Arc;

use super::CircuitBreaker;
use super::totals::Told;
use crate::error::Rejection;
use crate::permit::{OwnedPermit, Permit};
use crate::word;

impl CircuitBreaker {
    /// The permit, if calls pass. It never claims a probe: nobody knows yet whether the call's future will be polled.
    #[inline]
    pub(crate) fn permit_at_once(self: Arc<Self>) -> Result<OwnedPermit, Arc<Self>> {
        let word = self.load();
        if word::passes(word) {
            let granted = self.granted(word);
            Ok(Permit::new(self, granted))
        } else {
            Err(self)
        }
    }

    /// The rejection, if the circuit is open for a while yet.
    #[inline]
    pub(crate) fn rejection_at_once(&self) -> Option<Rejection> {
        self.rejected_for_sure(self.load()).inspect(|_| self.count(Told::Rejection))
    }
}
