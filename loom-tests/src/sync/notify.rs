//! tokio's `Notify`, with the weakest orderings that tokio's has.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll, Waker};

use super::Mutex;

/// Wakes one waiter, or all.
pub struct Notify {
    /// How often `notify_waiters` was called.
    calls: loom::sync::atomic::AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: usize,
    /// The one that has waited longest comes first.
    waiting: Vec<(usize, Waker)>,
    /// Those that `notify_one` woke, and that have not been polled since.
    chosen: Vec<usize>,
    /// `notify_one` found nobody: the next one need not wait.
    is_kept: bool,
}

impl Queue {
    /// Chooses whom to wake. Its waker is for the caller to wake, without the lock.
    fn choose(&mut self) -> Option<Waker> {
        if self.waiting.is_empty() {
            self.is_kept = true;
            return None;
        }
        let (id, waker) = self.waiting.remove(0);
        self.chosen.push(id);
        Some(waker)
    }

    /// Whether `notify_one` woke it, which is said once.
    fn was_chosen(&mut self, id: usize) -> bool {
        let at = self.chosen.iter().position(|chosen| *chosen == id);
        at.map(|at| self.chosen.swap_remove(at)).is_some()
    }
}

impl Notify {
    /// Nobody waits.
    #[expect(clippy::new_without_default, reason = "as the core uses it")]
    pub fn new() -> Self {
        Self { calls: loom::sync::atomic::AtomicUsize::new(0), queue: Mutex::new(Queue::default()) }
    }

    /// Subscribes to the `notify_waiters` calls from now on, before it is ever polled.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, calls: self.calls.load(Acquire), state: State::Init }
    }

    /// Wakes all waiters that have subscribed until now.
    pub fn notify_waiters(&self) {
        let mut queue = self.queue.lock();
        self.calls.fetch_add(1, Release);
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        for (_, waker) in waiting {
            waker.wake();
        }
    }

    /// Wakes the waiter that has waited longest, or spares the next one its wait.
    pub fn notify_one(&self) {
        let chosen = self.queue.lock().choose();
        if let Some(waker) = chosen {
            waker.wake();
        }
    }
}

/// A subscription to one wakeup.
#[must_use = "futures do nothing unless you `.await` or poll them"]
pub struct Notified<'a> {
    notify: &'a Notify,
    /// The calls there had been at its creation.
    calls: usize,
    state: State,
}

enum State {
    Init,
    Waiting(usize),
    Done,
}

impl Notified<'_> {
    fn enqueue(&mut self, cx: &Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut queue = self.notify.queue.lock();
        // In this order, as tokio's.
        if self.notify.calls.load(Acquire) != self.calls || std::mem::take(&mut queue.is_kept) {
            return Poll::Ready(());
        }
        let id = queue.next;
        queue.next += 1;
        queue.waiting.push((id, waker));
        self.state = State::Waiting(id);
        Poll::Pending
    }

    fn requeue(&self, id: usize, cx: &Context<'_>) -> Poll<()> {
        let mut queue = self.notify.queue.lock();
        match queue.waiting.iter_mut().find(|(waiting, _)| *waiting == id) {
            None => {
                queue.was_chosen(id);
                Poll::Ready(())
            }
            Some((_, waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = match self.state {
            State::Init => self.enqueue(cx),
            State::Waiting(id) => self.requeue(id, cx),
            State::Done => Poll::Ready(()),
        };
        if polled.is_ready() {
            self.state = State::Done;
        }
        polled
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if let State::Waiting(id) = self.state {
            let mut queue = self.notify.queue.lock();
            queue.waiting.retain(|(waiting, _)| *waiting != id);
            // What it was woken for is for another one now.
            let chosen = if queue.was_chosen(id) { queue.choose() } else { None };
            drop(queue);
            if let Some(waker) = chosen {
                waker.wake();
            }
        }
    }
}
