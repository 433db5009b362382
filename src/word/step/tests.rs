//! The table of every state against every event, and the orders.

use super::{Admit, FOREVER, Failed, Kind, MAX_DEADLINE_TICKS, Row, Success, Transition, open_left_for_sure};
use crate::transition::{Cause, CircuitState};
use crate::word::tests::{
    LIMITS, closed, every_state, of, open, open_because, probing, recovering, silent, with_streak,
};
use crate::word::{Failure, State, Word, failure, next_generation};

const ROW: Row = Row { threshold: Some(3), memory: None, ramp_threshold: Some(2) };

/// What happens to a circuit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// The tick at which it comes.
    Call(u32),
    Success,
    Failure,
    Rate,
    Silence,
    LateAnswer,
    /// For 20 s, or for 40 s.
    Cooldown(u32),
    ProbeSuccess,
    ProbeFailure,
    ProbeSilence,
    ProbeCooldown,
    ProbeCancel,
}

/// An event, and what follows from it.
type Follows = (Event, Kind, Word);

/// The transition that follows at tick 500, with a failure threshold of 3 and two good probes to close. Outcomes are
/// those of calls that this very word admitted.
fn follows(word: Word, event: Event) -> Option<Transition> {
    const NOW: u32 = 500;
    let open_ticks = LIMITS.longest_open_ticks;
    match event {
        Event::Call(now) => match word.admit(now, LIMITS) {
            Admit::Claim(transition) | Admit::EndRamp(transition) => Some(transition),
            Admit::Pass | Admit::Wait { .. } | Admit::Reject { .. } | Admit::OnRamp { .. } => None,
        },
        Event::Success => match word.succeeded(word.generation, false) {
            Success::EndRow(end) => Some(end),
            Success::Late | Success::Clean => None,
        },
        Event::Failure => {
            let failed = word.failed(word.generation, NOW, ROW, LIMITS);
            let on_the_hot_path = failure(word.pack(), closed(word.generation, 0).pack(), 3);
            match failed {
                Failed::Trip => Some(word.tripped(Cause::Failures, NOW, LIMITS, |_| open_ticks)),
                Failed::EndRamp(end) => Some(end),
                Failed::Count(counted) if word.circuit_state() == CircuitState::Closed => {
                    assert_eq!(on_the_hot_path, Failure::Count(counted.pack()));
                    None
                }
                Failed::Late | Failed::NotCounted | Failed::Count(_) => None,
            }
        }
        Event::Rate => word.can_trip().then(|| word.tripped(Cause::Rate, NOW, LIMITS, |_| open_ticks)),
        Event::Silence => word.can_trip().then(|| word.tripped(Cause::Silence, NOW, LIMITS, |_| open_ticks)),
        Event::LateAnswer => word.silence_ended(),
        Event::Cooldown(ticks) => word.cooled_down(NOW, ticks, LIMITS),
        Event::ProbeSuccess => word.probe_succeeded(2, NOW, 0),
        Event::ProbeFailure => word.probe_failed(Cause::Failures, NOW, |_| open_ticks),
        Event::ProbeSilence => word.probe_failed(Cause::Silence, NOW, |_| open_ticks),
        Event::ProbeCooldown => word.probe_cooled_down(NOW, 40_000),
        Event::ProbeCancel => word.probe_cancelled(),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is one table")]
fn every_event_in_every_state_makes_the_transition_of_the_table_or_none() {
    const EARLY: Event = Event::Call(600);
    const AFTER: Event = Event::Call(90_000);
    const EVENTS: [Event; 15] = [
        EARLY,
        AFTER,
        Event::Success,
        Event::Failure,
        Event::Rate,
        Event::Silence,
        Event::LateAnswer,
        Event::Cooldown(20_000),
        Event::Cooldown(40_000),
        Event::ProbeSuccess,
        Event::ProbeFailure,
        Event::ProbeSilence,
        Event::ProbeCooldown,
        Event::ProbeCancel,
        Event::Cooldown(0),
    ];
    let cooling = |until| open_because(Cause::Cooldown, 2, until);
    let rate = |until| open_because(Cause::Rate, 2, until);
    let probing_with =
        |in_flight, lease_end, good_probes| of(1, State::HalfOpen { in_flight, lease_end, streak: 3, good_probes });
    let table: &[(Word, &[Follows])] = &[
        (
            closed(1, 0),
            &[
                (Event::Rate, Kind::Trip, rate(30_500)),
                (Event::Silence, Kind::Trip, silent(2, 30_500)),
                (Event::Cooldown(20_000), Kind::Trip, cooling(20_500)),
                (Event::Cooldown(40_000), Kind::Trip, cooling(40_500)),
                (Event::Cooldown(0), Kind::Trip, cooling(500)),
            ],
        ),
        (
            closed(1, 2),
            &[
                (Event::Success, Kind::EndRow, closed(1, 0)),
                (Event::Failure, Kind::Trip, open(2, 30_500)),
                (Event::Rate, Kind::Trip, rate(30_500)),
                (Event::Silence, Kind::Trip, silent(2, 30_500)),
                (Event::Cooldown(20_000), Kind::Trip, cooling(20_500)),
                (Event::Cooldown(40_000), Kind::Trip, cooling(40_500)),
                (Event::Cooldown(0), Kind::Trip, cooling(500)),
            ],
        ),
        (
            with_streak(recovering(1, 10_400, 1), 3),
            &[
                (AFTER, Kind::EndRamp, closed(1, 0)),
                (Event::Success, Kind::EndRow, with_streak(recovering(1, 10_400, 0), 3)),
                (Event::Failure, Kind::Trip, with_streak(open(2, 30_500), 4)),
                (Event::Rate, Kind::Trip, with_streak(rate(30_500), 4)),
                (Event::Silence, Kind::Trip, with_streak(silent(2, 30_500), 4)),
                (Event::Cooldown(20_000), Kind::Trip, with_streak(cooling(20_500), 3)),
                (Event::Cooldown(40_000), Kind::Trip, with_streak(cooling(40_500), 3)),
                (Event::Cooldown(0), Kind::Trip, with_streak(cooling(500), 3)),
            ],
        ),
        (
            recovering(1, 500, 0),
            &[
                (EARLY, Kind::EndRamp, closed(1, 0)),
                (AFTER, Kind::EndRamp, closed(1, 0)),
                (Event::Failure, Kind::EndRamp, closed(1, 0)),
                (Event::Rate, Kind::Trip, rate(30_500)),
                (Event::Silence, Kind::Trip, silent(2, 30_500)),
                (Event::Cooldown(20_000), Kind::Trip, cooling(20_500)),
                (Event::Cooldown(40_000), Kind::Trip, cooling(40_500)),
                (Event::Cooldown(0), Kind::Trip, cooling(500)),
            ],
        ),
        (
            open(1, 30_500),
            &[(AFTER, Kind::Claim, probing(1, 150_000)), (Event::Cooldown(40_000), Kind::Extend, cooling(40_500))],
        ),
        (
            silent(1, 30_500),
            &[
                (AFTER, Kind::Claim, probing(1, 150_000)),
                (Event::LateAnswer, Kind::EndSilence, closed(1, 0)),
                (Event::Cooldown(40_000), Kind::Extend, cooling(40_500)),
            ],
        ),
        (of(1, State::Disabled), &[]),
        (open_because(Cause::Isolated, 1, 0), &[]),
        (
            // Its end is far beyond the longest open time.
            with_streak(open_because(Cause::Cooldown, 1, 80_000_000), 3),
            &[],
        ),
        (
            with_streak(open_because(Cause::Cooldown, 1, 400), 3),
            &[
                (EARLY, Kind::Claim, probing_with(true, 60_600, 0)),
                (AFTER, Kind::Claim, probing_with(true, 150_000, 0)),
                (Event::Cooldown(20_000), Kind::Extend, with_streak(cooling(20_500), 3)),
                (Event::Cooldown(40_000), Kind::Extend, with_streak(cooling(40_500), 3)),
            ],
        ),
        (
            probing_with(false, 60_500, 1),
            &[
                (EARLY, Kind::Claim, probing_with(true, 60_600, 1)),
                (AFTER, Kind::Claim, probing_with(true, 150_000, 1)),
                (Event::Cooldown(20_000), Kind::Reopen, with_streak(cooling(20_500), 3)),
                (Event::Cooldown(40_000), Kind::Reopen, with_streak(cooling(40_500), 3)),
                (Event::Cooldown(0), Kind::Reopen, with_streak(cooling(500), 3)),
            ],
        ),
        (
            probing_with(true, 60_500, 0),
            &[
                (AFTER, Kind::TakeOver, probing_with(true, 150_000, 0)),
                (Event::ProbeSuccess, Kind::GoodProbe, probing_with(false, 60_500, 1)),
                (Event::ProbeFailure, Kind::Reopen, with_streak(open(2, 30_500), 4)),
                (Event::ProbeSilence, Kind::Reopen, with_streak(silent(2, 30_500), 4)),
                (Event::ProbeCooldown, Kind::Reopen, with_streak(cooling(40_500), 3)),
                (Event::ProbeCancel, Kind::HandBack, probing_with(false, 60_500, 0)),
            ],
        ),
        (
            probing_with(true, 60_500, 1),
            &[
                (AFTER, Kind::TakeOver, probing_with(true, 150_000, 1)),
                (Event::ProbeSuccess, Kind::Close, closed(1, 0)),
                (Event::ProbeFailure, Kind::Reopen, with_streak(open(2, 30_500), 4)),
                (Event::ProbeSilence, Kind::Reopen, with_streak(silent(2, 30_500), 4)),
                (Event::ProbeCooldown, Kind::Reopen, with_streak(cooling(40_500), 3)),
                (Event::ProbeCancel, Kind::HandBack, probing_with(false, 60_500, 1)),
            ],
        ),
    ];
    for (before, transitions) in table {
        for event in EVENTS {
            let expected = transitions.iter().find(|(listed, ..)| *listed == event);
            let expected = expected.map(|&(_, kind, after)| Transition { before: *before, after, kind });
            assert_eq!(follows(*before, event), expected, "{before:?}, {event:?}");
        }
    }
}

#[test]
fn an_order_is_carried_out_in_every_state_and_begins_a_generation() {
    for before in every_state() {
        let generation = next_generation(before.generation);
        for (order, state) in [
            (Kind::Isolate, State::Open { cause: Cause::Isolated, until: 0, streak: 0 }),
            (Kind::Disable, State::Disabled),
            (Kind::Reset, State::Closed { failures: 0, told: 0, suspected: false, by_order: true }),
            (Kind::Remove, State::Closed { failures: 0, told: 0, suspected: false, by_order: true }),
        ] {
            let after = Word { generation, state, ..before };
            assert_eq!(before.ordered(order), Transition { before, after, kind: order });
            assert!(after.is_by_order());
        }
    }
}

#[test]
fn a_disabled_circuit_counts_nothing() {
    let disabled = of(3, State::Disabled);
    assert_eq!(failure(disabled.pack(), disabled.pack(), 1), Failure::Other);
    assert_eq!(disabled.failed(3, 0, ROW, LIMITS), Failed::Late);
    assert_eq!(disabled.succeeded(3, false), Success::Late);
}

#[test]
fn an_isolated_circuit_never_takes_a_probe() {
    for now in [0, 1, 86_400_000, u32::MAX / 2, u32::MAX] {
        let isolated = open_because(Cause::Isolated, 1, 0);
        assert_eq!(open_left_for_sure(Cause::Isolated, 0, now, LIMITS.longest_open_ticks), Some(FOREVER));
        assert_eq!(isolated.admit(now, LIMITS), Admit::Reject { open_left: FOREVER, cause: Cause::Isolated });
        assert_eq!(isolated.cooled_down(now, MAX_DEADLINE_TICKS, LIMITS), None);
    }
}

#[test]
fn an_order_in_the_word_outlasts_a_row_of_failures() {
    let reset = closed(1, 2).ordered(Kind::Reset).after;
    let Failure::Count(counted) = failure(reset.pack(), reset.pack(), 3) else { panic!("below the threshold") };
    let Success::EndRow(end) = Word::unpack(counted).succeeded(reset.generation, false) else {
        panic!("one was counted")
    };
    assert!(Word::unpack(counted).is_by_order());
    assert_eq!(end.after, reset);
}

#[cfg(feature = "fleet")]
#[test]
fn what_other_processes_tell_makes_the_transitions_of_their_table() {
    type Steps = [Option<(Kind, Word)>; 4];
    const NOW: u32 = 500;
    let suspected = of(1, State::Closed { failures: 2, told: NOW, suspected: true, by_order: false });
    let heard = |until| with_streak(open_because(Cause::Fleet, 2, until), 1);
    let free = of(1, State::HalfOpen { in_flight: false, lease_end: 9, streak: 0, good_probes: 1 });
    let ramp = recovering(1, NOW + 1000, 0);
    let steps: &[(Word, Steps)] = &[
        // Suspected; nobody stands by it; a failed probe, nobody probes for 20 s; a good one, with a ramp of 1 s.
        (closed(1, 0), [Some((Kind::Suspect, suspected)), None, None, None]),
        (closed(1, 2), [Some((Kind::Suspect, suspected)), None, None, None]),
        (suspected, [None, Some((Kind::EndRow, closed(1, 0))), None, None]),
        (ramp, [None; 4]),
        (of(1, State::Disabled), [None; 4]),
        (open(1, 10_500), [None, None, Some((Kind::Postpone, heard(20_500))), Some((Kind::HearClosing, ramp))]),
        (open(1, 30_500), [None, None, None, Some((Kind::HearClosing, ramp))]),
        (open_because(Cause::Isolated, 1, 0), [None; 4]),
        (free, [None, None, Some((Kind::Postpone, heard(20_500))), Some((Kind::HearClosing, ramp))]),
        (probing(1, 900), [None, None, Some((Kind::Postpone, heard(20_500))), Some((Kind::HearClosing, ramp))]),
    ];
    for (word, expected) in steps {
        let made = [
            word.suspected(NOW, ROW),
            word.trusted(),
            word.postponed(NOW, 20_000, true, LIMITS),
            word.heard_closing(NOW, 1000),
        ];
        for (made, expected) in made.into_iter().zip(expected) {
            assert_eq!(made.map(|made| (made.kind, made.after)), *expected, "{word:?}");
            assert!(made.is_none_or(|made| made.before == *word));
        }
    }
    let one = Row { threshold: Some(1), ..ROW };
    let none = Row { threshold: None, ..ROW };
    assert_eq!([one, none].map(|row| closed(1, 0).suspected(NOW, row)), [None, None], "there is nothing to raise");
    let told = open(1, 10_500).postponed(NOW, 20_000, false, LIMITS).unwrap().after;
    assert_eq!(told, open_because(Cause::Fleet, 2, 20_500), "it was counted here already");
}

#[cfg(feature = "fleet")]
#[test]
fn a_call_is_known_to_have_begun_before_a_suspicion() {
    use crate::word::{measured_permit, normal_permit};
    let before = closed(1, 1).pack();
    let suspected = closed(1, 1).suspected(500, ROW).unwrap().after;
    let again = closed(1, 0).suspected(700, ROW).unwrap().after;
    for (granted, is_before) in [
        (before, true),
        (suspected.pack(), false),
        (again.pack(), true),
        (normal_permit(recovering(1, 900, 0).pack()), true),
        // Measured: by when it began, or by the word.
        (measured_permit(before, Some(499), false), true),
        (measured_permit(before, Some(500), false), true),
        (measured_permit(suspected.pack(), Some(501), true), false),
        (measured_permit(before, None, false), true),
        (measured_permit(suspected.pack(), None, false), false),
    ] {
        assert_eq!(suspected.is_suspected_since(granted), is_before, "{granted:x}");
        assert!(!closed(1, 2).is_suspected_since(granted));
    }
}
