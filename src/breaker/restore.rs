//! A circuit that another process found open.
//!
//! Not here: what is believed of what another process says: `export`.

use std::sync::Arc;
use std::time::Duration;

use super::CircuitBreaker;
use crate::error::LastError;
use crate::settings::cooldown_ticks;
use crate::transition::Cause;
use crate::word::State;

impl CircuitBreaker {
    /// Opens the circuit for as long as is `left` of its open time, unless it is not closed. Returns whether it did.
    pub(crate) fn restore_open(&self, cause: Cause, left: Duration, error_type: &str, message: &str) -> bool {
        let error = Arc::new(LastError::new(error_type, &message));
        let (now, ticks) = (self.clock.now(), cooldown_ticks(left));
        self.commit_next(Some(&error), |word| {
            let is_closed = matches!(word.state, State::Closed { .. });
            is_closed.then(|| word.tripped(cause, now, self.settings.limits(), |_| ticks))
        })
        .is_some()
    }

    /// The longest that failures or silence keep the circuit open.
    pub(crate) fn longest_open_time(&self) -> Duration {
        Duration::from_millis(self.settings.longest_open_ticks().into())
    }
}
