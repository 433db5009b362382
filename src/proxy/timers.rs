//! Timeouts that cost little as long as they do not expire, which is nearly always.
//!
//! Each timeout of a core has a slot in a list. One task sleeps until the earliest of them and then looks through the
//! list. It ends when no timeout is set. Setting a timeout that expires later only writes to its slot. A timer of the
//! runtime would have to be sorted among all others, and would interrupt a runtime that is about to go to sleep.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// The timeouts of one core.
#[derive(Default)]
pub(crate) struct Timers(Mutex<List>);

#[derive(Default)]
struct List {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// When the task will wake up.
    next: Option<Instant>,
    task: Option<Waker>,
    /// Whether the task runs.
    is_watched: bool,
}

#[derive(Default)]
struct Slot {
    /// `None` while the timeout is not set.
    until: Option<Instant>,
    has_expired: bool,
    waker: Option<Waker>,
    group: Option<Group>,
}

/// Timers that can be woken together, for another reason than the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group(u64);

impl Group {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Timers {
    pub(crate) fn timer(self: &Arc<Self>) -> Timer {
        self.timer_in(None)
    }

    /// A timer that [`wake`](Self::wake) wakes with the others of its group.
    pub(crate) fn timer_in(self: &Arc<Self>, group: Option<Group>) -> Timer {
        Timer { timers: Arc::clone(self), slot: None, group }
    }

    /// Wakes the tasks whose timers are set and belong to the group.
    pub(crate) fn wake(&self, group: Group) {
        let list = self.0.lock();
        let members = list.slots.iter().filter(|slot| slot.group == Some(group));
        let wakers: Vec<_> = members.filter_map(|slot| slot.waker.clone()).collect();
        drop(list);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes those whose timeouts have expired. Returns when the next one expires.
    fn sweep(&self, task: &Waker) -> Option<Instant> {
        // Wakers run foreign code, so they are woken and dropped without the lock.
        let mut woken = Vec::new();
        let mut list = self.0.lock();
        let now = Instant::now();
        list.next = None;
        let List { slots, next, .. } = &mut *list;
        for slot in slots {
            match slot.until {
                Some(until) if until <= now => {
                    slot.until = None;
                    slot.has_expired = true;
                    woken.extend(slot.waker.take());
                }
                Some(until) if next.is_none_or(|next| until < next) => *next = Some(until),
                _ => {}
            }
        }
        list.is_watched = list.next.is_some();
        list.task = list.next.map(|_| task.clone());
        let next = list.next;
        drop(list);
        woken.into_iter().for_each(Waker::wake);
        next
    }
}

/// One timeout, which can be set again and again.
pub(crate) struct Timer {
    timers: Arc<Timers>,
    /// `None` until it is first set.
    slot: Option<usize>,
    group: Option<Group>,
}

impl Timer {
    /// Ready at `until`. Another time than in the poll before replaces it.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn poll_until(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut guard = self.timers.0.lock();
        let list = &mut *guard;
        let index = *self.slot.get_or_insert_with(|| {
            let index = list.free.pop().unwrap_or_else(|| {
                list.slots.push(Slot::default());
                list.slots.len() - 1
            });
            list.slots[index].group = self.group;
            index
        });
        let slot = &mut list.slots[index];
        if std::mem::take(&mut slot.has_expired) {
            // An earlier time may have expired, so `until` is compared.
            if until <= Instant::now() {
                return Poll::Ready(());
            }
        }
        slot.until = Some(until);
        let mut replaced = None;
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            replaced = slot.waker.replace(cx.waker().clone());
        }
        if list.next.is_none_or(|next| until < next) {
            list.next = Some(until);
            if !std::mem::replace(&mut list.is_watched, true) {
                let timers = Arc::downgrade(&self.timers);
                tokio::spawn(watch(move |task| timers.upgrade()?.sweep(task)));
            } else if let Some(task) = &list.task {
                task.wake_by_ref();
            }
        }
        drop(guard);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(index) = self.slot {
            let mut list = self.timers.0.lock();
            let slot = std::mem::take(&mut list.slots[index]);
            list.free.push(index);
            drop(list);
            drop(slot);
        }
    }
}

/// A limit for the pause before the next piece. It counts only the time during which the receiver is ready for that
/// piece.
pub(crate) struct Pause {
    timer: Timer,
    /// `None` while there is no pause, or while it is interrupted.
    until: Option<Instant>,
    /// What is left of an interrupted pause.
    left: Option<Duration>,
    /// What the timer is set to: another pause may have been awaited since. And whom it wakes.
    set: Option<(Instant, Waker)>,
}

impl Pause {
    pub(crate) fn new(timer: Timer) -> Self {
        Self { timer, until: None, left: None, set: None }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.until.is_some() || self.left.is_some()
    }

    /// Something has come that does not end the pause. It goes on with the next poll: meanwhile the receiver may not be
    /// ready for more.
    pub(crate) fn interrupt(&mut self, now: Instant) {
        if let Some(until) = self.until.take() {
            self.left = Some(until.saturating_duration_since(now));
        }
    }

    /// Ready when the pause has lasted too long. `until` gives the end of the limit; it is asked when a pause begins.
    ///
    /// A timer that is set already is not set again for a later time: it is when it has expired, which is once for many
    /// pauses.
    pub(crate) fn poll(&mut self, until: impl FnOnce() -> Instant, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left.take();
        let until = *self.until.get_or_insert_with(|| left.map_or_else(until, |left| Instant::now() + left));
        if let Some((at, waker)) = &self.set
            && *at <= until
            && waker.will_wake(cx.waker())
            && Instant::now() < *at
        {
            return Poll::Pending;
        }
        self.set = Some((until, cx.waker().clone()));
        self.timer.poll_until(until, cx)
    }

    /// Call it when the piece has come.
    pub(crate) fn end(&mut self) {
        (self.until, self.left) = (None, None);
    }
}

/// Calls `sweep` now, whenever it is woken, and at each time that `sweep` returns. Ends when `sweep` returns `None`.
pub(crate) async fn watch(mut sweep: impl FnMut(&Waker) -> Option<Instant>) {
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        loop {
            let Some(next) = sweep(cx.waker()) else { return Poll::Ready(()) };
            timer.as_mut().reset(next);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// A core's timeouts, as hyper wants them.
pub(crate) struct HyperTimer(pub(crate) Arc<Timers>);

impl hyper::rt::Timer for HyperTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep { timer: self.0.timer(), until: Instant::now() + duration })
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep { timer: self.0.timer(), until: deadline.into() })
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into()
    }
}

struct Sleep {
    timer: Timer,
    until: Instant,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        self.timer.poll_until(until, cx)
    }
}

impl hyper::rt::Sleep for Sleep {}

/// Runs a future until the time that `until` returns, which may change meanwhile. The timer is set only if the future
/// has to wait. This is no `async fn`, which would store the future twice.
pub(crate) fn within<T>(
    timer: &mut Timer,
    mut until: impl FnMut() -> Instant,
    mut future: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        loop {
            let at = until();
            ready!(timer.poll_until(at, cx));
            if until() <= at {
                return Poll::Ready(None);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait(timer: &mut Timer, until: Instant) {
        poll_fn(|cx| timer.poll_until(until, cx)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn each_timeout_expires_in_time_whatever_the_order_in_which_they_were_set() {
        let timers = Arc::new(Timers::default());
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for millis in [300, 100, 200, 400, 50] {
            let mut timer = timers.timer();
            tasks.spawn(async move {
                wait(&mut timer, start + Duration::from_millis(millis)).await;
                (millis, start.elapsed().as_millis())
            });
        }
        let mut passed = tasks.join_all().await;
        passed.sort_unstable();
        assert_eq!(passed, [50, 100, 200, 300, 400].map(|millis| (millis, u128::from(millis))));
        assert_eq!(timers.0.lock().free.len(), 5);
        tokio::task::yield_now().await;
        assert!(!timers.0.lock().is_watched, "no timeout is set, so the task has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_that_is_moved_expires_at_its_new_time() {
        let timers = Arc::new(Timers::default());
        let start = Instant::now();
        let mut timer = timers.timer();
        let mut until = start + Duration::from_secs(1);
        poll_fn(|cx| {
            assert!(timer.poll_until(until, cx).is_pending());
            until += Duration::from_secs(2);
            assert!(timer.poll_until(until, cx).is_pending());
            Poll::Ready(())
        })
        .await;
        wait(&mut timer, until).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));

        // This wait is given up before its end.
        poll_fn(|cx| {
            assert!(timer.poll_until(start + Duration::from_secs(4), cx).is_pending());
            Poll::Ready(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        wait(&mut timer, start + Duration::from_secs(20)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }

    /// Waking each request once would cost what this list is there to save.
    #[tokio::test(start_paused = true)]
    async fn a_timeout_that_is_never_reached_wakes_nobody() {
        let timers = Arc::new(Timers::default());
        let mut first = timers.timer();
        let limit = Duration::from_secs(60);
        let poll_once = |timer: &mut Timer, until| {
            std::future::ready(timer.poll_until(until, &mut Context::from_waker(Waker::noop())))
        };
        assert!(poll_once(&mut first, Instant::now() + limit).await.is_pending());
        tokio::task::yield_now().await;
        let slept_until = timers.0.lock().next;
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(10)).await;
            let mut timer = timers.timer();
            assert!(poll_once(&mut timer, Instant::now() + limit).await.is_pending());
        }
        assert_eq!(timers.0.lock().next, slept_until);
        assert_eq!(timers.0.lock().slots.len(), 2, "a slot is used again");
    }

    #[tokio::test(start_paused = true)]
    async fn waking_a_group_wakes_its_timers_and_no_other() {
        struct Count(AtomicU64);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let timers = Arc::new(Timers::default());
        let [ours, theirs] = [Group::new(), Group::new()];
        let counts = [(); 4].map(|()| Arc::new(Count(AtomicU64::new(0))));
        let mut all = [Some(ours), Some(theirs), None, Some(ours)].map(|group| timers.timer_in(group));
        let until = Instant::now() + Duration::from_secs(60);
        for (timer, count) in all.iter_mut().zip(&counts) {
            assert!(timer.poll_until(until, &mut Context::from_waker(&Arc::clone(count).into())).is_pending());
        }
        timers.wake(ours);
        assert_eq!(counts.each_ref().map(|count| count.0.load(Ordering::Relaxed)), [1, 0, 0, 1]);
        // The slot of a timer that is gone belongs to no group.
        drop(all);
        let mut other = timers.timer();
        assert!(other.poll_until(until, &mut Context::from_waker(&Arc::clone(&counts[0]).into())).is_pending());
        timers.wake(ours);
        assert_eq!(counts[0].0.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_has_its_full_limit_again_after_each_piece() {
        let mut pause = Pause::new(Arc::<Timers>::default().timer());
        let begun = Instant::now();
        let wait = async |pause: &mut Pause| {
            let until = || Instant::now() + Duration::from_secs(1);
            poll_fn(|cx| pause.poll(until, cx)).await;
        };
        tokio::select! {
            biased;
            () = wait(&mut pause) => panic!("the limit has not passed"),
            () = tokio::time::sleep(Duration::from_millis(600)) => {}
        }
        pause.end();
        wait(&mut pause).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(1600));
    }
}
