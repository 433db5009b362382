//! Wakes between a connection and the task that polls it.
//!
//! hyper's connection and the two ends of its channels wake each other while one task polls all of them. Each such wake
//! would make the runtime poll that task once more, in vain. Here a wake that comes during a poll is only noted, and
//! the poll goes on. A noted wake must never be forgotten: `loom-tests` has the models.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicUsize, Mutex, Ordering};

const IS_POLLED: usize = 1;
const IS_WOKEN: usize = 2;

/// A connection that is always ready would keep the other tasks of its core from running. tokio limits how much a task
/// does without a pause by waking it, which looks like any other wake here and would be polled endlessly.
const MAX_ROUNDS: usize = 64;

/// The waker that a connection and its channels are polled with.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    waker: Waker,
}

struct Shared {
    /// Both flags in one word: with two, a wake between reading one and changing the other would be lost.
    state: AtomicUsize,
    task: Mutex<Option<Waker>>,
}

impl std::task::Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A poll in progress re-checks, and a pending wake need not be repeated.
        if self.state.fetch_or(IS_WOKEN, Ordering::AcqRel) == 0
            && let Some(task) = &*self.task.lock()
        {
            task.wake_by_ref();
        }
    }
}

/// What polling for something has brought, if that is not enough.
pub(crate) enum Wanted {
    Nothing,
    /// More may be available: its sender was given no waker.
    MayBeMore,
}

impl Relay {
    pub(crate) fn new() -> Self {
        // A new connection has to be polled.
        let shared = Arc::new(Shared { state: AtomicUsize::new(IS_WOKEN), task: Mutex::new(None) });
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// Whether a wake has come since the connection was polled.
    pub(crate) fn is_woken(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) & IS_WOKEN != 0
    }

    /// Notes a wake that is about to come, since the task is going to poll anyway.
    pub(crate) fn expect_wake(&self) {
        self.shared.state.fetch_or(IS_WOKEN, Ordering::AcqRel);
    }

    /// Polls what is `wanted`, and polls the `connection` as long as that may help.
    pub(crate) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut connection: impl FnMut(&mut Context<'_>),
        mut wanted: impl FnMut(&mut Context<'_>) -> ControlFlow<T, Wanted>,
    ) -> Poll<T> {
        self.set_task(Some(cx.waker()));
        let mut own = Context::from_waker(&self.waker);
        // Without a wake the connection has nothing to do until something is wanted of it.
        let mut is_woken = self.begin();
        for _ in 0..MAX_ROUNDS {
            if is_woken {
                connection(&mut own);
            }
            let has_more = match wanted(&mut own) {
                ControlFlow::Continue(wanted) => matches!(wanted, Wanted::MayBeMore),
                ControlFlow::Break(value) => {
                    self.leave();
                    return Poll::Ready(value);
                }
            };
            is_woken = self.begin();
            if !is_woken && !has_more && self.end() {
                return Poll::Pending;
            }
        }
        // The last round may have noted a wake that was not handled.
        self.shared.state.store(IS_WOKEN, Ordering::Release);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Polls the `connection` as long as it has something to do by itself. From now on its wakes go to `task`.
    pub(crate) fn settle(&self, task: Option<&Waker>, mut connection: impl FnMut(&mut Context<'_>)) {
        self.set_task(task);
        for _ in 0..MAX_ROUNDS {
            if !self.begin() {
                break;
            }
            connection(&mut Context::from_waker(&self.waker));
        }
        if !self.end() {
            self.leave();
            if let Some(task) = task {
                task.wake_by_ref();
            }
        }
    }

    fn set_task(&self, task: Option<&Waker>) {
        let mut current = self.shared.task.lock();
        match (&*current, task) {
            (Some(current), Some(task)) if current.will_wake(task) => {}
            (None, None) => {}
            _ => *current = task.cloned(),
        }
    }

    /// Begins a poll: from now on wakes are noted. Returns whether one has been noted since the last poll.
    fn begin(&self) -> bool {
        self.shared.state.swap(IS_POLLED, Ordering::AcqRel) & IS_WOKEN != 0
    }

    /// Ends a poll: from now on wakes go to the task. Returns false if a wake was noted, so that the poll must go on.
    fn end(&self) -> bool {
        self.shared.state.compare_exchange(IS_POLLED, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends a poll that will be followed by another one, which handles what was noted.
    fn leave(&self) {
        self.shared.state.fetch_and(!IS_POLLED, Ordering::AcqRel);
    }
}
