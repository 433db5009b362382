//! A wake on its way from the system to the task that polls a connection is never lost, whoever polls it at the moment.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom_tests::relay::Relay;

use crate::harness::{beside, explore, explore_still};

/// A socket, and what the runtime does with it: whoever finds nothing leaves a waker first.
struct Socket {
    arrived: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Socket {
    fn new() -> Arc<Self> {
        Arc::new(Self { arrived: AtomicUsize::new(0), waker: Mutex::new(None) })
    }

    /// Something arrives.
    fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What reads from it, and hands on what it has read through a channel of its own.
struct Connection {
    relay: Relay,
    socket: Arc<Socket>,
    read: Cell<usize>,
    receiver: RefCell<Option<Waker>>,
}

impl Connection {
    fn new(socket: &Arc<Socket>) -> Self {
        Self { relay: Relay::default(), socket: Arc::clone(socket), read: Cell::new(0), receiver: RefCell::new(None) }
    }

    fn drive(&self, cx: &Context<'_>) {
        *self.socket.waker.lock().unwrap() = Some(cx.waker().clone());
        let arrived = self.socket.arrived.load(Ordering::Relaxed);
        if arrived > self.read.replace(arrived)
            && let Some(receiver) = self.receiver.take()
        {
            receiver.wake();
        }
    }

    /// Polls until so much has arrived; how often the task slept.
    fn receive(&self, wanted: usize) -> usize {
        let task = Task::new();
        let waker = Waker::from(Arc::clone(&task));
        let mut cx = Context::from_waker(&waker);
        let mut slept = 0;
        let received = Cell::new(0);
        loop {
            let receive = |cx: &mut Context<'_>| {
                self.receiver.replace(Some(cx.waker().clone()));
                let is_more = self.read.get() > received.replace(self.read.get());
                if received.get() >= wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(is_more) }
            };
            match self.relay.poll(&mut cx, |cx| self.drive(cx), receive) {
                Poll::Ready(()) => return slept,
                Poll::Pending => {
                    task.sleep();
                    slept += 1;
                }
            }
        }
    }
}

/// A task of the runtime: to wake it is to have it polled. (loom's own `Notify` wakes now and then without a reason.)
struct Task {
    is_woken: Mutex<bool>,
    wakes: Condvar,
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self { is_woken: Mutex::new(false), wakes: Condvar::new() })
    }

    fn sleep(&self) {
        let mut is_woken = self.is_woken.lock().unwrap();
        while !std::mem::take(&mut *is_woken) {
            is_woken = self.wakes.wait(is_woken).unwrap();
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        *self.is_woken.lock().unwrap() = true;
        self.wakes.notify_one();
    }
}

fn slept(times: usize) -> &'static str {
    match times {
        0 => "found it",
        1 => "was woken once",
        _ => "was woken twice",
    }
}

#[test]
fn what_arrives_is_looked_at() {
    explore(&["found it", "was woken once"], || {
        let socket = Socket::new();
        let reactor = beside(&socket, |socket| socket.arrive());
        let times = Connection::new(&socket).receive(1);
        reactor.join().unwrap();
        slept(times)
    });
}

#[test]
fn what_arrives_in_two_parts_is_looked_at_twice() {
    explore(&["found it", "was woken once", "was woken twice"], || {
        let socket = Socket::new();
        let reactor = beside(&socket, |socket| {
            socket.arrive();
            socket.arrive();
        });
        let times = Connection::new(&socket).receive(2);
        reactor.join().unwrap();
        slept(times)
    });
}

#[test]
fn what_happens_to_a_connection_at_rest_is_seen_by_who_watches_it() {
    explore(&["seen while it was laid down", "the watch was woken"], || {
        let (socket, watch) = (Socket::new(), Task::new());
        let waker = Waker::from(Arc::clone(&watch));
        let reactor = beside(&socket, |socket| socket.arrive());
        let connection = Connection::new(&socket);
        connection.relay.settle(Some(&waker), |cx| connection.drive(cx));
        let at_once = connection.read.get() > 0;
        while connection.read.get() == 0 {
            watch.sleep();
            assert!(connection.relay.is_woken(), "the watch looks only at those that are");
            connection.relay.settle(Some(&waker), |cx| connection.drive(cx));
        }
        reactor.join().unwrap();
        if at_once { "seen while it was laid down" } else { "the watch was woken" }
    });
}

#[test]
fn what_happens_between_two_uses_is_seen_by_the_next_one() {
    explore(&["found it", "was woken once"], || {
        let socket = Socket::new();
        let watch = Waker::from(Task::new());
        let reactor = beside(&socket, |socket| socket.arrive());
        let connection = Connection::new(&socket);
        connection.relay.settle(Some(&watch), |cx| connection.drive(cx));
        let times = connection.receive(1);
        reactor.join().unwrap();
        slept(times)
    });
}

#[test]
fn a_request_that_is_put_into_a_connection_at_rest_is_sent() {
    explore_still(|| {
        let socket = Socket::new();
        let connection = Connection::new(&socket);
        connection.relay.settle(None, |cx| connection.drive(cx));
        // As it would be by a channel, without anybody being woken.
        connection.relay.expect_wake();
        let (task, sent) = (Task::new(), Cell::new(false));
        let waker = Waker::from(Arc::clone(&task));
        let drive = |_: &mut Context<'_>| sent.set(true);
        let wanted =
            |_: &mut Context<'_>| if sent.get() { ControlFlow::Break(()) } else { ControlFlow::Continue(false) };
        while connection.relay.poll(&mut Context::from_waker(&waker), drive, wanted).is_pending() {
            task.sleep();
        }
    });
}

#[test]
fn what_is_noted_last_is_looked_at_though_the_rounds_are_over() {
    explore_still(|| {
        let socket = Socket::new();
        let connection = Connection::new(&socket);
        let (task, rounds) = (Task::new(), Cell::new(0));
        let waker = Waker::from(Arc::clone(&task));
        // Each round makes the next one necessary.
        let drive = |cx: &mut Context<'_>| {
            rounds.set(rounds.get() + 1);
            cx.waker().wake_by_ref();
        };
        let wanted = |_: &mut Context<'_>| {
            if rounds.get() < 100 { ControlFlow::Continue(false) } else { ControlFlow::Break(()) }
        };
        while connection.relay.poll(&mut Context::from_waker(&waker), drive, wanted).is_pending() {
            task.sleep();
        }
    });
}
