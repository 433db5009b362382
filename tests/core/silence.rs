//! An upstream that takes requests and does not answer.

use std::sync::Arc;
use std::time::Duration;

use fusebox::silence::{Config, ConfigBuilder, TICK};
use fusebox::{CircuitBreaker, CircuitState, PermitType, RejectionReason};

use crate::support::{at_once, fail, trip, until, waiter};
use crate::watched::{Call, MS, Watched};

const LATENCY: Duration = Duration::from_millis(20);

#[tokio::test(start_paused = true)]
async fn unanswered_requests_open_the_circuit_within_about_one_latency() {
    let mut watched = Watched::warm();
    let calls = watched.calls(5);
    let (after, alarm) = watched.look_for(100 * MS).unwrap();
    assert!(after <= 30 * MS, "{after:?}");
    assert_eq!((alarm.unanswered, alarm.oldest), (5, after));
    assert!(alarm.phi >= 9.0 && alarm.median.as_millis() / 10 == 2, "{alarm:?}");
    let snapshot = watched.breaker.snapshot();
    assert!((snapshot.state, snapshot.silent, snapshot.trip_count) == (CircuitState::Open, true, 1));
    let error = snapshot.last_error.unwrap();
    assert_eq!((error.error_type(), error.message()), ("silent", &*alarm.to_string()));
    assert!(error.message().starts_with("5 unanswered for 25 ms (phi 1"), "{}", error.message());
    let rejection = watched.breaker.try_acquire().unwrap_err();
    assert_eq!((rejection.reason(), rejection.retry_after()), (RejectionReason::Silent, Some(Duration::from_secs(30))));
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn one_slow_answer_raises_no_alarm() {
    let mut watched = Watched::warm();
    let slow = watched.calls(20);
    for _ in 0..100 {
        watched.answer_one();
    }
    assert_eq!(watched.state(), CircuitState::Closed);
    drop(slow);
}

#[tokio::test(start_paused = true)]
async fn fewer_requests_than_the_threshold_raise_no_alarm_however_long_they_wait() {
    let mut watched = Watched::warm();
    let calls = watched.calls(2);
    assert!(watched.look_for(Duration::from_secs(2)).is_none());
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn no_alarm_is_raised_before_the_floor() {
    let mut watched = Watched::new(1, Config::builder().floor(70 * MS));
    watched.learn(150);
    let _calls = watched.calls(50);
    assert_eq!(watched.look_for(Duration::from_secs(1)).unwrap().0, 70 * MS);
}

#[tokio::test(start_paused = true)]
async fn the_ceiling_raises_an_alarm_before_anything_is_learnt() {
    let mut watched = Watched::new(1, Config::builder().ceiling(Duration::from_secs(2)));
    let _two = watched.calls(2);
    assert!(watched.look_for(Duration::from_secs(3)).is_none(), "two are not enough");
    let _third = watched.call();
    assert!(watched.look_for(TICK).is_some());
    assert!(watched.breaker.snapshot().silent);
}

#[tokio::test(start_paused = true)]
async fn a_failed_or_cancelled_request_neither_clears_nor_counts() {
    let mut watched = Watched::warm();
    let calls = watched.calls(4);
    for call in calls {
        watched.tick();
        watched.withdraw(call);
    }
    assert!(watched.look_for(Duration::from_secs(1)).is_none(), "they count for nothing");

    let silent = watched.calls(5);
    let front_end = watched.call();
    watched.withdraw(front_end);
    assert!(watched.look_for(100 * MS).is_some(), "a 401 shows that somebody is there, not that somebody works");
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn no_alarm_is_raised_before_enough_is_learnt() {
    let mut watched = Watched::new(1, Config::builder());
    let learnt = |watched: &Watched| watched.detector.snapshot(watched.now).learnt;
    let slow = watched.calls(60);
    watched.learn(110);
    assert!(!learnt(&watched), "the answers of 60 requests are not in, and may be slower than all others");
    let calls = watched.calls(5);
    assert!(watched.look_for(Duration::from_secs(1)).is_none());
    for call in slow.into_iter().chain(calls) {
        watched.answer(call);
    }
    watched.tick();
    assert!(learnt(&watched));
}

#[tokio::test(start_paused = true)]
async fn delays_of_the_caller_do_not_count_as_silence() {
    let mut watched = Watched::warm();
    let calls = watched.calls(10);
    watched.tick();
    watched.now += Duration::from_secs(1);
    assert!(watched.look().is_empty());
    for call in calls {
        watched.answer(call);
    }
    let snapshot = watched.detector.snapshot(watched.now);
    assert!(snapshot.p99 < 30 * MS, "nor did the answers take that long: {snapshot:?}");
    // There is no alarm either if the answers are read before the look.
    let calls = watched.calls(2);
    watched.now += Duration::from_secs(1);
    for call in calls {
        watched.answer(call);
    }
    assert!(watched.detector.snapshot(watched.now).p99 < 30 * MS);
}

#[tokio::test(start_paused = true)]
async fn short_delays_at_every_tick_raise_no_alarm() {
    let mut watched = Watched::warm();
    let calls = watched.calls(30);
    // A core that gets CPU time in small pieces: answers that come in between stay unread.
    for _ in 0..3 {
        watched.now += 14 * MS;
        assert!(watched.look().is_empty());
    }
    for call in calls {
        watched.answer(call);
    }
    assert_eq!(watched.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn on_a_busy_machine_an_alarm_waits_until_the_machine_is_calm() {
    let mut watched = Watched::warm();
    let calls = watched.calls(30);
    watched.now += 40 * MS;
    assert!(watched.look().is_empty());
    // The upstream gets no CPU time either.
    for _ in 0..9 {
        assert!(watched.tick().is_empty());
    }
    let alarm = watched.tick();
    assert_eq!(alarm.len(), 1, "ten ticks later it is the upstream");
    assert!(watched.breaker.snapshot().silent);
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_closes_the_circuit_at_once() {
    let mut watched = Watched::warm();
    let mut calls = watched.fall_silent();
    watched.answer(calls.pop().unwrap());
    assert_eq!((watched.state(), watched.breaker.failure_count()), (CircuitState::Closed, 0));
    for call in calls {
        watched.answer(call);
    }
    assert_eq!((watched.state(), watched.breaker.trip_count()), (CircuitState::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn the_wait_during_a_hang_is_not_learnt_as_a_latency() {
    let mut watched = Watched::warm();
    let calls = watched.fall_silent();
    watched.look_for(Duration::from_secs(14));
    for call in calls {
        watched.answer(call);
    }
    watched.learn(20);
    let p99 = watched.detector.snapshot(watched.now).p99;
    assert!(p99 < 30 * MS, "{p99:?}: the next probe that hangs would be waited for as long");
}

#[tokio::test(start_paused = true)]
#[cfg_attr(miri, ignore = "a minute of ticks takes too long")]
async fn the_same_slow_requests_raise_one_alarm_and_not_the_same_one_again_and_again() {
    let mut watched = Watched::warm();
    for batch in 0..5 {
        let slow = watched.calls(5);
        let alarm = watched.look_for(Duration::from_secs(12));
        assert_eq!(alarm.is_some(), batch == 0, "batch {batch}: {alarm:?}");
        if alarm.is_some() {
            watched.look_for(Duration::from_secs(12));
        }
        for call in slow {
            watched.answer(call);
        }
        assert_eq!(watched.state(), CircuitState::Closed);
        watched.learn(150);
    }
    assert_eq!(watched.breaker.trip_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_late_answer_does_not_close_the_circuit_while_newer_requests_are_silent() {
    let mut watched = Watched::warm();
    let straggler = watched.call();
    watched.now += MS;
    let mut calls = watched.fall_silent();
    watched.look_for(20 * MS);
    watched.answer(straggler);
    assert!(watched.breaker.snapshot().silent, "five are silent still");
    watched.answer(calls.remove(3));
    assert_eq!(watched.state(), CircuitState::Closed, "one is not enough");
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn neither_a_success_nor_an_answer_to_an_older_request_ends_silence() {
    let mut watched = Watched::warm();
    let old_stream = Arc::clone(&watched.breaker).try_acquire_owned().unwrap();
    let slow = watched.call();
    watched.answer_one();
    let calls = watched.fall_silent();
    old_stream.success();
    watched.answer(slow);
    assert!(watched.breaker.snapshot().silent);
    for call in calls {
        watched.withdraw(call);
    }
    assert!(watched.breaker.snapshot().silent, "that they are called off is no answer");
}

#[tokio::test(start_paused = true)]
async fn a_silent_request_that_fails_does_not_end_the_silence() {
    let mut watched = Watched::warm();
    let calls = watched.fall_silent();
    for Call { permit, ticket, .. } in calls {
        permit.failure("timeout", "no answer within 2 s");
        watched.watchers[0].withdrawn(ticket, watched.now);
    }
    assert_eq!(watched.breaker.trip_count(), 1);
    assert_eq!(watched.breaker.snapshot().last_error.unwrap().error_type(), "silent");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_answered_closes_the_circuit_and_one_that_is_not_falls_silent() {
    let mut watched = Watched::warm();
    let _calls = watched.fall_silent();
    let probe = watched.probe().await;
    let waiter = waiter(&watched.breaker).await;
    let (after, alarm) = watched.look_for(Duration::from_secs(1)).unwrap();
    assert_eq!(after, 50 * MS);
    assert!(alarm.unanswered >= 1, "{alarm:?}");
    let snapshot = watched.breaker.snapshot();
    assert!((snapshot.silent, snapshot.trip_count, snapshot.failed_probe_count) == (true, 1, 1));
    assert_eq!(waiter.await.unwrap().unwrap_err().reason(), RejectionReason::Reopened);

    let second = watched.probe().await;
    watched.answer(second);
    assert_eq!(watched.state(), CircuitState::Closed);
    drop(probe);
}

#[tokio::test(start_paused = true)]
async fn the_answer_of_a_probe_that_fell_silent_closes_the_circuit() {
    let mut watched = Watched::warm();
    let calls = watched.fall_silent();
    let probe = watched.probe().await;
    watched.look_for(Duration::from_secs(1)).unwrap();
    for call in calls {
        watched.withdraw(call);
    }
    assert!(watched.breaker.snapshot().silent);
    watched.answer(probe);
    assert_eq!((watched.state(), watched.breaker.snapshot().failed_probe_count), (CircuitState::Closed, 1));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_does_not_close_the_circuit_while_a_probe_is_in_flight() {
    let mut watched = Watched::warm();
    let mut calls = watched.fall_silent();
    let probe = watched.probe().await;
    watched.answer(calls.pop().unwrap());
    assert_eq!(watched.state(), CircuitState::HalfOpen);
    watched.answer(probe);
    assert_eq!(watched.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn each_request_is_alarmed_once() {
    let mut watched = Watched::warm();
    let calls = watched.fall_silent();
    assert!(watched.look_for(Duration::from_secs(1)).is_none());
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn silent_requests_are_alarmed_even_if_failures_opened_the_circuit() {
    let mut watched = Watched::warm();
    let calls = watched.calls(5);
    trip(&watched.breaker);
    assert!(watched.look_for(100 * MS).is_some());
    let snapshot = watched.breaker.snapshot();
    assert!(!snapshot.silent && snapshot.last_error.unwrap().error_type() == "5xx");
    for call in calls {
        watched.answer(call);
    }
    assert_eq!(watched.state(), CircuitState::Open, "that is for the probe to say");
}

#[tokio::test(start_paused = true)]
async fn silence_opens_the_circuit_even_if_failures_were_counted() {
    let mut watched = Watched::warm();
    fail(&watched.breaker, "5xx");
    let calls = watched.fall_silent();
    assert_eq!(watched.breaker.failure_count(), 1);
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_through_silence_passes_when_it_ends_or_becomes_the_probe_after_the_open_time() {
    let mut watched = Watched::warm();
    let mut calls = watched.fall_silent();
    let waiting = |breaker: &Arc<CircuitBreaker>| {
        let breaker = Arc::clone(breaker);
        tokio::spawn(async move { breaker.acquire_through_silence().await.map(|permit| permit.kind()) })
    };
    let first = waiting(&watched.breaker);
    until(|| watched.breaker.snapshot().waiters == 1).await;
    watched.answer(calls.pop().unwrap());
    assert_eq!(at_once(first).await.unwrap(), Ok(PermitType::Normal));

    let mut watched = Watched::warm();
    let _calls = watched.fall_silent();
    let start = tokio::time::Instant::now();
    assert_eq!(waiting(&watched.breaker).await.unwrap(), Ok(PermitType::Probe));
    assert_eq!(start.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_wait_through_silence_has_the_limits_of_a_wait_for_a_probe() {
    let builder = CircuitBreaker::builder("openai").wait_limit(Duration::from_secs(10)).max_waiters(1);
    let mut watched = Watched::of(Arc::new(builder.build().unwrap()), 1, Config::builder());
    watched.learn(150);
    let _calls = watched.fall_silent();
    let (first, second) =
        tokio::join!(watched.breaker.acquire_through_silence(), watched.breaker.acquire_through_silence());
    let first = first.unwrap_err();
    assert_eq!((first.reason(), first.retry_after()), (RejectionReason::Silent, Some(Duration::from_secs(20))));
    assert_eq!(second.unwrap_err().reason(), RejectionReason::TooManyWaiters);
}

#[tokio::test(start_paused = true)]
async fn no_call_waits_while_a_circuit_is_open_because_of_failures() {
    let breaker = crate::support::breaker();
    trip(&breaker);
    assert_eq!(at_once(breaker.acquire_through_silence()).await.unwrap_err().reason(), RejectionReason::Open);
}

#[tokio::test(start_paused = true)]
async fn answers_of_a_quick_model_do_not_end_the_silence_of_a_slow_one() {
    let mut slow = Watched::warm();
    let mut quick = Watched::of(Arc::clone(&slow.breaker), 1, Config::builder());
    quick.now = slow.now;
    let quick_call = quick.call();
    let calls = slow.fall_silent();
    quick.answer(quick_call);
    quick.tick();
    assert!(slow.breaker.snapshot().silent);
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_all_cores_adds_up_and_alarms_all_their_requests() {
    let mut watched = Watched::new(3, Config::builder());
    watched.learn(200);
    let _calls: Vec<_> = (0..3).map(|core| watched.call_on(core)).collect();
    let mut alarms = Vec::new();
    for _ in 0..7 {
        alarms.extend(watched.tick());
    }
    assert_eq!(alarms.len(), 3, "{alarms:?}");
    assert!(alarms.iter().all(|alarm| alarm.unanswered == 3));
    assert_eq!(watched.breaker.trip_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_one_core_clears_the_older_requests_of_all_others() {
    let mut watched = Watched::new(3, Config::builder());
    watched.learn(60);
    let calls: Vec<_> = (0..9).map(|n| watched.call_on(n % 2)).collect();
    watched.tick();
    let newer = watched.call_on(2);
    watched.look_for(10 * MS);
    watched.answer(newer);
    assert!(watched.look_for(Duration::from_secs(1)).is_none());
    drop(calls);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_on_one_core_closes_the_circuit_when_the_others_have_looked() {
    let mut watched = Watched::new(2, Config::builder());
    watched.learn(60);
    let _others: Vec<_> = (0..5).map(|_| watched.call_on(0)).collect();
    watched.now += MS;
    let late = watched.call_on(1);
    watched.look_for(100 * MS).unwrap();
    watched.answer(late);
    assert!(watched.breaker.snapshot().silent, "what the other core has under way may be silent still");
    watched.now += TICK;
    let _ = watched.watchers[0].look(watched.now);
    assert_eq!(watched.state(), CircuitState::Closed, "the other core has nothing more to tell, and need not look");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_even_if_some_cores_have_no_request_under_way() {
    let mut watched = Watched::new(2, Config::builder());
    watched.learn(60);
    let idle = watched.call_on(1);
    watched.tick();
    watched.answer(idle);
    let mut calls = watched.calls(5);
    for _ in 0..6 {
        watched.now += TICK;
        let _ = watched.watchers[0].look(watched.now);
    }
    assert!(watched.breaker.snapshot().silent);
    watched.answer(calls.pop().unwrap());
    assert_eq!(watched.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_request_withdrawn_on_one_core_does_not_count_on_another() {
    let mut watched = Watched::new(2, Config::builder().floor(60 * MS));
    watched.learn(60);
    let calls: Vec<_> = (0..5).map(|_| watched.call_on(0)).collect();
    let _other = watched.call_on(1);
    assert!(watched.look_for(55 * MS).is_none());
    for call in calls {
        watched.withdraw(call);
    }
    for _ in 0..10 {
        watched.now += TICK;
        assert!(watched.watchers[1].look(watched.now).is_none());
    }
    assert_eq!(watched.state(), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn after_a_late_answer_latencies_are_learnt_anew() {
    let mut watched = Watched::warm();
    let calls = watched.fall_silent();
    for call in calls.into_iter().rev() {
        watched.answer(call);
    }
    assert!(!watched.detector.snapshot(watched.now).learnt);
    let slow = watched.calls(5);
    assert!(watched.look_for(Duration::from_secs(1)).is_none(), "once bitten");
    drop(slow);
}

#[tokio::test(start_paused = true)]
async fn each_core_has_one_watcher_and_dropping_it_makes_room() {
    let mut watched = Watched::new(2, Config::builder());
    assert!(watched.detector.watcher().is_none());
    let call = watched.call_on(1);
    watched.watchers.pop();
    let next = watched.detector.watcher().expect("room for one");
    assert_eq!(next.in_flight(), 0);
    assert!(watched.detector.watcher().is_none());
    drop(call);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_what_was_learnt_and_how_many_requests_are_silent() {
    let mut watched = Watched::warm();
    let _calls = watched.calls(2);
    watched.tick();
    watched.tick();
    let snapshot = watched.detector.snapshot(watched.now);
    assert!(snapshot.learnt && snapshot.answers == 150 && snapshot.unanswered == 2 && snapshot.oldest == 10 * MS);
    assert!(snapshot.phi < 1.0 && snapshot.median >= LATENCY && snapshot.p99 <= 23 * MS, "{snapshot:?}");
}

#[tokio::test(start_paused = true)]
async fn settings_are_replaced_while_requests_are_under_way() {
    let mut watched = Watched::warm();
    let calls = watched.calls(5);
    watched.detector.set_config(Config::builder().phi(100.0).build().unwrap());
    assert!(watched.look_for(Duration::from_secs(1)).is_none());
    watched.detector.set_config(Config::default());
    assert!(watched.look_for(TICK).is_some());
    drop(calls);
}

#[test]
fn settings_out_of_their_range_are_rejected_by_name() {
    let rejected = |builder: ConfigBuilder| builder.build().unwrap_err().to_string();
    let builder = Config::builder;
    assert_eq!(rejected(builder().phi(0.5)), "phi is 0.5, expected 1 to 100");
    assert_eq!(rejected(builder().phi(f32::NAN)), "phi is NaN, expected 1 to 100");
    assert_eq!(rejected(builder().floor(Duration::MAX)), format!("floor is {:?}, expected 0 to 24 h", Duration::MAX));
    assert_eq!(rejected(builder().ceiling(Duration::ZERO)), "ceiling is 0ns, expected 1 ms to 24 h");
}
