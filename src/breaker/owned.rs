//! Asking for a permit that outlives the borrow.
//!
//! Not here: how a call waits: `breaker::wait`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::CircuitBreaker;
use super::wait::Wait;
use crate::error::Rejection;
use crate::permit::{OwnedPermit, Permit};
use crate::sync::timeout_at;

// The steps of `Acquire` once more: as one generic future, every rejected call cost more instructions.

/// What [`CircuitBreaker::acquire_owned`] returns.
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct AcquireOwned {
    breaker: Arc<CircuitBreaker>,
    wait: Option<Wait<'static>>,
}

impl AcquireOwned {
    pub(super) fn new(breaker: Arc<CircuitBreaker>) -> Self {
        Self { breaker, wait: None }
    }

    /// Whose permit it asks for.
    pub fn breaker(&self) -> &Arc<CircuitBreaker> {
        &self.breaker
    }
}

impl Future for AcquireOwned {
    type Output = Result<OwnedPermit, Rejection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { breaker, wait } = &mut *self;
        let answer = match wait {
            Some(wait) => wait.as_mut().poll(cx),
            None => match breaker.admit_at_once(breaker.load()) {
                Ok(word) => Poll::Ready(Ok(word)),
                Err(blocked) => match breaker.what_a_task_waits_for(&blocked, false) {
                    Err(rejection) => Poll::Ready(Err(rejection)),
                    Ok(goal) => {
                        let breaker = Arc::clone(breaker);
                        wait.insert(Box::pin(async move { breaker.wait(goal, timeout_at).await })).as_mut().poll(cx)
                    }
                },
            },
        };
        #[cfg(feature = "metrics")]
        let answer = breaker.counted(answer);
        answer.map_ok(|word| Permit::new(Arc::clone(breaker), word))
    }
}

impl fmt::Debug for AcquireOwned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, waits) = (self.breaker.name(), self.wait.is_some());
        f.debug_struct("AcquireOwned").field("breaker", &name).field("waits", &waits).finish()
    }
}
