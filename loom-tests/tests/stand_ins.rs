//! The stand-ins do what the real things do: random scripts, followed by both, one thread at a time. (That they promise
//! no more where threads meet is by construction: see `src/sync.rs` of this package.)

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use loom_tests::sync;
use proptest::collection::vec;
use proptest::prelude::*;

/// Outside of a model loom's types panic.
fn in_a_model(check: impl Fn() + Sync + Send + 'static) {
    loom::model(check);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Subscribe,
    /// The subscription of that number, with the waker of that number.
    Poll(usize, usize),
    Drop(usize),
    Notify,
    NotifyOne,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Subscribe),
        6 => (0..8_usize, 0..3_usize).prop_map(|(subscription, waker)| Step::Poll(subscription, waker)),
        2 => (0..8_usize).prop_map(Step::Drop),
        2 => Just(Step::Notify),
        2 => Just(Step::NotifyOne),
    ]
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a script showed, step by step: who was ready, and how often each waker had been woken.
type Seen = Vec<(Option<bool>, [usize; 3])>;

fn follow<'a, F: Future<Output = ()> + 'a>(
    script: &[Step],
    subscribe: impl Fn() -> F,
    notify: impl Fn(),
    notify_one: impl Fn(),
) -> Seen {
    let counts: [Arc<Count>; 3] = Default::default();
    let wakers = counts.clone().map(Waker::from);
    let mut subscriptions: Vec<Option<Pin<Box<F>>>> = Vec::new();
    let mut seen = Seen::new();
    for step in script {
        let mut ready = None;
        match *step {
            Step::Subscribe => subscriptions.push(Some(Box::pin(subscribe()))),
            Step::Poll(subscription, by) => {
                if let Some(Some(subscription)) = subscriptions.get_mut(subscription) {
                    ready = Some(subscription.as_mut().poll(&mut Context::from_waker(&wakers[by])).is_ready());
                }
            }
            Step::Drop(subscription) => drop(subscriptions.get_mut(subscription).and_then(Option::take)),
            Step::Notify => notify(),
            Step::NotifyOne => notify_one(),
        }
        seen.push((ready, counts.each_ref().map(|count| count.0.load(Ordering::Relaxed))));
    }
    seen
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Load,
    Store(u32),
    Rcu(u32),
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![Just(Write::Load), any::<u32>().prop_map(Write::Store), any::<u32>().prop_map(Write::Rcu)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn notify_wakes_whom_tokios_wakes(script in vec(step(), 1..40)) {
        let real = tokio::sync::Notify::new();
        let expected = follow(&script, || real.notified(), || real.notify_waiters(), || real.notify_one());
        in_a_model(move || {
            let stand_in = sync::Notify::new();
            let (all, one) = (|| stand_in.notify_waiters(), || stand_in.notify_one());
            let seen = follow(&script, || stand_in.notified(), all, one);
            assert_eq!(seen, expected, "{script:?}");
        });
    }

    #[test]
    fn the_cell_holds_what_arc_swap_holds(script in vec(write(), 1..40)) {
        let real = arc_swap::ArcSwap::from_pointee(0);
        let expected: Vec<u32> = script.iter().map(|write| match *write {
            Write::Load => **real.load(),
            Write::Store(value) => { real.store(Arc::new(value)); **real.load() }
            Write::Rcu(value) => *real.rcu(|old| old.wrapping_mul(31).wrapping_add(value)),
        }).collect();
        in_a_model(move || {
            let stand_in = sync::ArcSwap::from_pointee(0);
            let seen: Vec<u32> = script.iter().map(|write| match *write {
                Write::Load => **stand_in.load(),
                Write::Store(value) => { stand_in.store(Arc::new(value)); **stand_in.load() }
                Write::Rcu(value) => *stand_in.rcu(|old| old.wrapping_mul(31).wrapping_add(value)),
            }).collect();
            assert_eq!(seen, expected, "{script:?}");
        });
    }
}
