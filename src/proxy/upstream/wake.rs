//! Between a connection and the task that polls it.
//!
//! hyper's connection and the two ends of its channels wake each other while all of them are polled by one task: each such wake
//! would have the runtime poll that task once more, for nothing. Here a wake that comes during a poll is only noted, and the
//! poll goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Waker};

use parking_lot::Mutex;

const IS_POLLED: u8 = 1;
const IS_WOKEN: u8 = 2;

/// What the parts of a connection are polled with.
pub(super) struct Relay {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Default)]
struct Shared {
    /// In one word: between a look at the one and a change of the other a wake would be lost.
    state: AtomicU8,
    task: Mutex<Option<Waker>>,
}

impl std::task::Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self.state.fetch_or(IS_WOKEN, Ordering::AcqRel);
        if before == 0
            && let Some(task) = &*self.task.lock()
        {
            task.wake_by_ref();
        }
    }
}

impl Relay {
    pub(super) fn new() -> Self {
        let shared = Arc::<Shared>::default();
        // A new connection has to be polled.
        shared.state.store(IS_WOKEN, Ordering::Relaxed);
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// Who is to be woken from now on. A wake that came before is not lost: [`is_woken`](Self::is_woken) tells of it.
    pub(super) fn set_task(&self, task: Option<&Waker>) {
        let mut current = self.shared.task.lock();
        match (&*current, task) {
            (Some(current), Some(task)) if current.will_wake(task) => {}
            (None, None) => {}
            _ => *current = task.cloned(),
        }
    }

    /// Whether something has happened since the connection was polled.
    pub(super) fn is_woken(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) & IS_WOKEN != 0
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// From now on wakes are noted. Whether there has been one since the last time.
    pub(super) fn begin(&self) -> bool {
        self.shared.state.swap(IS_POLLED, Ordering::AcqRel) & IS_WOKEN != 0
    }

    /// As [`begin`](Self::begin), with a wake noted.
    pub(super) fn begin_woken(&self) {
        self.shared.state.store(IS_POLLED | IS_WOKEN, Ordering::Relaxed);
    }

    /// From now on the task is woken. Not if a wake was noted: then there is something to be polled.
    pub(super) fn end(&self) -> bool {
        self.shared.state.compare_exchange(IS_POLLED, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Ends a poll that may leave something to be polled, and will be followed by another one.
    pub(super) fn leave(&self) {
        self.shared.state.fetch_and(!IS_POLLED, Ordering::AcqRel);
    }

    /// As [`leave`](Self::leave), with a wake noted.
    pub(super) fn leave_woken(&self) {
        self.shared.state.store(IS_WOKEN, Ordering::Release);
    }
}
