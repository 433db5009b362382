//! tokio's `Notify` without `notify_one`, with the weakest orderings that tokio's has.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::task::{Context, Poll, Waker};

use super::Mutex;

/// Wakes all waiters.
pub struct Notify {
    /// How often `notify_waiters` was called.
    calls: loom::sync::atomic::AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: usize,
    waiting: Vec<(usize, Waker)>,
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
        if self.notify.calls.load(Acquire) != self.calls {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let mut queue = self.notify.queue.lock();
        if self.notify.calls.load(Acquire) != self.calls {
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
            None => Poll::Ready(()),
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
            self.notify.queue.lock().waiting.retain(|(waiting, _)| *waiting != id);
        }
    }
}
