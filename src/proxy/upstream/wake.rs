//! Between a connection and the task that polls it.
//!
//! Not here: HTTP.
//!
//! hyper's connection and the two ends of its channels wake each other while all of them are polled by one task: each such wake
//! would have the runtime poll that task once more, for nothing. Here a wake that comes during a poll is only noted, and the
//! poll goes on. What must not happen is that one is noted and nobody looks: `loom-tests` has the models.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::sync::{AtomicUsize, Mutex, Ordering};

const IS_POLLED: usize = 1;
const IS_WOKEN: usize = 2;

/// What is always ready would keep the other tasks of its core from running. tokio's own limit on what a task may do without a
/// pause is a wake as any other here, and would be polled against for ever.
const MAX_ROUNDS: usize = 64;

/// What the parts of a connection are polled with.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    waker: Waker,
}

struct Shared {
    /// In one word: between a look at the one and a change of the other a wake would be lost.
    state: AtomicUsize,
    task: Mutex<Option<Waker>>,
}

impl std::task::Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Who polls will look, and who was woken before too.
        if self.state.fetch_or(IS_WOKEN, Ordering::AcqRel) == 0
            && let Some(task) = &*self.task.lock()
        {
            task.wake_by_ref();
        }
    }
}

/// What there is of what was wanted, where it is not enough.
pub(crate) enum Wanted {
    Nothing,
    /// More may be there: whoever sends it was not told to wake anybody.
    MayBeMore,
}

impl Relay {
    pub(crate) fn new() -> Self {
        // A new connection has to be polled.
        let shared = Arc::new(Shared { state: AtomicUsize::new(IS_WOKEN), task: Mutex::new(None) });
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// Whether something has happened since the connection was polled.
    pub(crate) fn is_woken(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) & IS_WOKEN != 0
    }

    /// For what is going to wake, as the task is going to poll anyway.
    pub(crate) fn expect_wake(&self) {
        self.shared.state.fetch_or(IS_WOKEN, Ordering::AcqRel);
    }

    /// Polls what is `wanted`, and the `connection` as long as that may bring it on.
    pub(crate) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut connection: impl FnMut(&mut Context<'_>),
        mut wanted: impl FnMut(&mut Context<'_>) -> ControlFlow<T, Wanted>,
    ) -> Poll<T> {
        self.set_task(Some(cx.waker()));
        let mut own = Context::from_waker(&self.waker);
        // Otherwise the connection has nothing to do before it is asked for something.
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
        // What was noted last has not been looked at.
        self.shared.state.store(IS_WOKEN, Ordering::Release);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Polls the `connection` as long as it has something to do by itself. From now on it wakes `task`.
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

    /// From now on wakes are noted. Whether there has been one since the last time.
    fn begin(&self) -> bool {
        self.shared.state.swap(IS_POLLED, Ordering::AcqRel) & IS_WOKEN != 0
    }

    /// From now on the task is woken. Not if a wake was noted: then there is something to be polled.
    fn end(&self) -> bool {
        self.shared.state.compare_exchange(IS_POLLED, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends a poll that may leave something to be polled, and will be followed by another one.
    fn leave(&self) {
        self.shared.state.fetch_and(!IS_POLLED, Ordering::AcqRel);
    }
}
