//! Times in a word: how long until a deadline, and which of two times is the later one, where ticks wrap.

use super::super::{LAST_TOLD, told_at};
use crate::transition::Cause;

/// The longest that a deadline may lie ahead: far below the 49.7 days after which ticks wrap, so that a deadline ahead
/// can be told from one that has passed.
pub(crate) const MAX_DEADLINE_TICKS: u32 = 24 * 60 * 60 * 1000;

/// How much older than a deadline's own clock reading another reading may be. A caller reads the clock and may be
/// descheduled while another one opens the circuit. Without slack, its older reading would make the new deadline look
/// passed.
const CLOCK_SLACK: u32 = 65_536;

/// In place of the ticks until an isolated circuit takes a probe: it never does.
pub(crate) const FOREVER: u32 = u32::MAX;

/// Ticks until the deadline of an open circuit. How far ahead it may lie follows from the cause. If it were 24 hours
/// for all, a circuit that nobody has called for 49 days would look open for another day.
#[inline]
pub(super) const fn open_ticks_left(cause: Cause, until: u32, now: u32, longest: u32) -> u32 {
    match cause {
        Cause::Failures | Cause::Rate | Cause::Slow | Cause::Silence => ticks_left(until, now, longest),
        Cause::Cooldown | Cause::Fleet => ticks_left(until, now, MAX_DEADLINE_TICKS),
        Cause::Isolated => FOREVER,
    }
}

/// Ticks until `deadline`, 0 if it has passed; `ahead` is the longest that it was set ahead. A signed comparison would
/// take a deadline for one to come during half of the 49.7 days in which ticks wrap.
pub(super) const fn ticks_left(deadline: u32, now: u32, ahead: u32) -> u32 {
    let left = deadline.wrapping_sub(now);
    if left <= ahead + CLOCK_SLACK { left } else { 0 }
}

/// Whether a failure that is told `now` goes on with a row whose newest failure was `told`. A row from before the
/// memory was set has no such time, and goes on.
pub(super) const fn is_within(told: u32, now: u32, memory: u32) -> bool {
    told == 0 || told_since(told, now) <= memory
}

/// Ticks from `told` to `now`: 0 if `now` is an older reading of the clock.
pub(super) const fn told_since(told: u32, now: u32) -> u32 {
    let since = told_at(now).wrapping_sub(told) & LAST_TOLD;
    if since > LAST_TOLD - CLOCK_SLACK { 0 } else { since }
}

/// The later one of the two.
pub(super) const fn later_told(told: u32, now: u32) -> u32 {
    if told != 0 && told_since(told, now) == 0 { told } else { told_at(now) }
}

/// `lease_end`, or one tick after `old` where that is not later: no two probes of a generation may have the same word,
/// since a probe is resolved by comparing it. `old` is ahead only after an older clock reading, or if a probe was
/// handed back within the tick in which it was claimed. Anything further ahead passed long ago, and ticks have wrapped
/// since.
pub(super) const fn later_than(old: u32, lease_end: u32) -> u32 {
    if old.wrapping_sub(lease_end) < CLOCK_SLACK { old.wrapping_add(1) } else { lease_end }
}
