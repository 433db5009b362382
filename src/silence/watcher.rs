//! One core's requests: which of them are silent, what is learnt from those that are answered, and which ones an alarm
//! concerns.
//!
//! Not here: what all cores together know: `detector`.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ENOUGH;
use super::detector::Detector;
use super::latencies::Surprise;
use super::looks::Looks;
use super::pauses::Pause;
use super::published::{Published, Silent};
use crate::breaker::CircuitBreaker;
use crate::error::LastError;
use crate::permit::Permit;
use crate::sync::unseen::{ArcSwap, AtomicUsize};
use crate::sync::{Ordering, fence};
use crate::transition::CircuitState;
use crate::word::{self, Word, next_generation};

/// The shortest wait after which a probe is silent.
const MIN_PATIENCE: Duration = Duration::from_millis(50);

/// An upstream was found silent. Requests that wait should ask another one.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Alarm {
    /// How surprising the silence is.
    pub phi: f32,
    /// How many requests are silent: unanswered, and newer than all answered ones.
    pub unanswered: u32,
    /// How long the oldest silent request has waited.
    pub oldest: Duration,
    /// Half of the answers took at most this long, to an eighth.
    pub median: Duration,
    /// 99% of the answers took at most this long, to an eighth.
    pub p99: Duration,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { phi, unanswered, oldest, median, p99 } = self;
        let ms = Duration::as_millis;
        write!(
            f,
            "{unanswered} unanswered for {} ms (phi {phi:.1}, median {} ms, p99 {} ms)",
            ms(oldest),
            ms(median),
            ms(p99)
        )
    }
}

/// A request under way, to be handed back once. A ticket that is dropped, for example with the future that it was kept
/// in, is [withdrawn](Watcher::withdrawn) at the next look.
#[derive(Debug)]
#[must_use = "a request whose ticket is dropped is not watched"]
pub struct Ticket {
    number: u64,
    request: Request,
    /// Where a drop is noted. `None` once the ticket is handed back.
    dropped: Option<Arc<Dropped>>,
}

/// Tickets that were dropped.
struct Dropped {
    /// Whether there are any, which is cheaper to read.
    are_any: AtomicUsize,
    numbers: ArcSwap<Vec<u64>>,
}

impl Dropped {
    fn new() -> Self {
        Self { are_any: AtomicUsize::new(0), numbers: ArcSwap::from_pointee(Vec::new()) }
    }

    fn are_any(&self) -> bool {
        self.are_any.load(Ordering::Acquire) != 0
    }

    fn count(&self) -> usize {
        if self.are_any() { self.numbers.load().len() } else { 0 }
    }

    #[cold]
    fn put(&self, number: u64) {
        self.numbers.rcu(|numbers| {
            let mut numbers = Vec::clone(numbers);
            numbers.push(number);
            numbers
        });
        self.are_any.store(1, Ordering::Release);
    }

    #[cold]
    fn take(&self) -> Arc<Vec<u64>> {
        // In this order: a ticket that is dropped in between is taken now or the next time.
        self.are_any.store(0, Ordering::Release);
        self.numbers.swap(Arc::default())
    }
}

impl fmt::Debug for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dropped").field("count", &self.count()).finish()
    }
}

impl Ticket {
    /// The ticket is handed back.
    fn end(mut self) -> (u64, Request) {
        self.dropped = None;
        (self.number, self.request)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(dropped) = self.dropped.take() {
            dropped.put(self.number);
        }
    }
}

/// Times are in microseconds since the detector was made.
#[derive(Clone, Copy, Debug)]
struct Request {
    started: u64,
    /// How long the watcher had been held up until then.
    held_up: u64,
    withdrawn: bool,
}

/// A probe under way.
struct Probe {
    number: u64,
    request: Request,
    /// The word that it claimed.
    claimed: u64,
}

/// One core's part of a [`Detector`].
pub struct Watcher {
    detector: Arc<Detector>,
    core: usize,
    /// The requests after the newest answered one, in the order of their start.
    silent: VecDeque<Request>,
    /// The number of the first request in `waiting`.
    first: u64,
    /// The requests before this number have been alarmed.
    told: u64,
    in_flight: usize,
    /// Tickets that were dropped since the last look.
    dropped: Arc<Dropped>,
    /// Whether silent requests are published.
    tells: bool,
    probe: Option<Probe>,
    /// The generation of the last order by hand that this watcher knows of.
    order: Option<u32>,
    looks: Looks,
    surprise: Surprise,
    /// The silence under way, if it is surprising: it may prove to be a pause.
    pause: Option<Pause>,
}

impl Watcher {
    pub(super) fn new(detector: Arc<Detector>, core: usize) -> Self {
        Self {
            detector,
            core,
            silent: VecDeque::new(),
            first: 0,
            told: 0,
            in_flight: 0,
            dropped: Arc::new(Dropped::new()),
            tells: false,
            probe: None,
            order: None,
            looks: Looks::default(),
            surprise: Surprise::new(),
            pause: None,
        }
    }

    /// Requests that are neither answered nor withdrawn. While there are any, [`look`](Self::look) has to be called.
    pub fn in_flight(&self) -> usize {
        self.in_flight.saturating_sub(self.dropped.count())
    }

    /// Call it when a request is sent with this permit, which must be one of the detector's breaker.
    pub fn start<B: Deref<Target = CircuitBreaker>>(&mut self, permit: &Permit<B>, now: Instant) -> Ticket {
        debug_assert!(std::ptr::eq(permit.breaker(), &raw const *self.detector.breaker), "another breaker's permit");
        let ticket = self.start_piece(now);
        if let Some(claimed) = permit.claim() {
            self.probe = Some(Probe { number: ticket.number, request: ticket.request, claimed });
        }
        ticket
    }

    /// As [`start`](Self::start), without a permit: for the next piece of a stream, or for a request that is sent
    /// although the circuit is silent.
    pub fn start_piece(&mut self, now: Instant) -> Ticket {
        let now = self.detector.micros(now);
        self.withdraw_dropped(now);
        if self.in_flight == 0 {
            self.looks.resume(now);
        }
        let request = Request { started: now, held_up: self.looks.held_up_by(now), withdrawn: false };
        let number = self.next();
        self.silent.push_back(request);
        self.set_in_flight(self.in_flight + 1);
        Ticket { number, request, dropped: Some(Arc::clone(&self.dropped)) }
    }

    /// Call it when the request is answered: for a response, when its first byte of content has come.
    pub fn answered(&mut self, ticket: Ticket, now: Instant) {
        let (number, request) = ticket.end();
        let now = self.detector.micros(now);
        let own = self.own();
        own.latencies.add(self.age(request, now), number < self.told);
        if request.started > own.answered() {
            own.set_answered(request.started);
        }
        if number >= self.first {
            self.forget(|next, _| next <= number);
        }
        self.end(number, now);
    }

    /// Call it when the request has failed or was cancelled, which says nothing about latencies.
    pub fn withdrawn(&mut self, ticket: Ticket, now: Instant) {
        let (number, _) = ticket.end();
        self.withdraw(number, self.detector.micros(now));
    }

    fn withdraw_dropped(&mut self, now: u64) {
        if self.dropped.are_any() {
            for number in &*self.dropped.take() {
                self.withdraw(*number, now);
            }
        }
    }

    fn withdraw(&mut self, number: u64, now: u64) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(request) = at.and_then(|at| self.silent.get_mut(at)) {
            request.withdrawn = true;
            // The published sum still counts it, so until the next look no silent request is published.
            self.tell(Silent::default(), 0);
        }
        self.end(number, now);
    }

    fn end(&mut self, number: u64, now: u64) {
        self.set_in_flight(self.in_flight.saturating_sub(1));
        self.probe.take_if(|probe| probe.number == number);
        if self.silent.is_empty() && self.tells {
            self.tell(Silent::default(), 0);
        }
        if !word::passes(self.detector.breaker.load()) {
            self.end_silence(now);
        }
    }

    /// Opens the circuit if there is enough silence. To be called every [`TICK`](super::TICK) while anything is in
    /// flight. A delay of the call counts as time in which no answer could be read.
    ///
    /// Returns an alarm if requests of this watcher should ask another upstream and have not been alarmed yet: all that
    /// have been started and not handed back. That may be the probe alone. The circuit may have been opened by this
    /// watcher, by another core's, or by failures.
    pub fn look(&mut self, now: Instant) -> Option<Alarm> {
        let detector = Arc::clone(&self.detector);
        let now = detector.micros(now);
        self.withdraw_dropped(now);
        self.looks.look(now);
        // Read before everything else that the look decides by: an alarm applies to the circuit as it was then.
        let word = detector.breaker.load();
        self.forget_what_an_order_ended(Word::unpack(word), now);
        let newest = detector.newest_answered();
        self.learn();
        self.tell_what_is_silent(newest, now);
        if !word::passes(word) {
            self.end_silence(now);
        }
        if self.silent.is_empty() {
            return None;
        }
        let (silent, is_calm) = (detector.silent(newest), self.looks.is_calm(now));
        if is_calm && detector.is_surprising(silent) {
            self.pause = Some(Pause::new(newest, silent.oldest, now).after(self.pause));
        }
        let alarming = detector.alarms(silent, is_calm, now);
        let before = Word::unpack(word);
        if alarming && before.can_trip() {
            let error = self.error(silent, now);
            detector.note_alarm(newest, next_generation(before.generation));
            detector.breaker.fall_silent(before.generation, &error);
        }
        self.give_up_probe(newest, silent, now);

        let after = Word::unpack(detector.breaker.load());
        let move_on =
            after.circuit_state() == CircuitState::Open && (alarming || detector.silent_as_of(after).is_some());
        (move_on && self.tell_to_move_on()).then(|| self.alarm(silent, now))
    }

    /// Requests from before an order by hand say nothing after it. For all watchers that is as if the latest of them
    /// had been answered.
    fn forget_what_an_order_ended(&mut self, word: Word, now: u64) {
        if word.is_by_order() && self.order != Some(word.generation) {
            self.order = Some(word.generation);
            self.own().set_answered(now);
        }
    }

    fn own(&self) -> &Published {
        &self.detector.cores[self.core]
    }

    fn next(&self) -> u64 {
        self.first + self.silent.len() as u64
    }

    fn set_in_flight(&mut self, in_flight: usize) {
        self.in_flight = in_flight;
        self.own().in_flight.store(in_flight, Ordering::Relaxed);
    }

    /// How long a request has waited, without the time in which no answer could be read.
    fn age(&self, request: Request, now: u64) -> u64 {
        now.saturating_sub(request.started).saturating_sub(self.looks.held_up_by(now).saturating_sub(request.held_up))
    }

    fn forget(&mut self, is_silent_no_more: impl Fn(u64, Request) -> bool) {
        while let Some(&request) = self.silent.front()
            && (request.withdrawn || is_silent_no_more(self.first, request))
        {
            self.silent.pop_front();
            self.first += 1;
        }
    }

    fn learn(&mut self) {
        let detector = &*self.detector;
        let answers = detector.answers();
        detector.see_whether_enough(answers);
        let all = detector.cores.iter().map(|core| &core.latencies);
        self.surprise.refresh(answers, &detector.cores[self.core].latencies, all);
    }

    fn tell_what_is_silent(&mut self, newest: u64, now: u64) {
        self.pause = self.pause.and_then(|pause| pause.go_on(newest, now, &self.detector.pauses));
        self.forget(|_, request| request.started <= newest);
        let mut silent = Silent::default();
        for &request in self.silent.iter().filter(|request| !request.withdrawn) {
            let age = self.age(request, now);
            silent = silent.and(Silent { members: 1, phi: self.surprise.of(age), oldest: now - age });
        }
        self.tell(silent, newest);
    }

    fn tell(&mut self, silent: Silent, as_of: u64) {
        if self.tells || silent.members > 0 {
            self.own().set_silent(silent, as_of);
        }
        self.tells = silent.members > 0;
    }

    /// Closes the circuit if a newer answer than at the alarm has come, and the silence since then would not keep it
    /// open.
    #[cold]
    fn end_silence(&mut self, now: u64) {
        let detector = Arc::clone(&self.detector);
        let word = detector.breaker.load();
        let Some(as_of) = detector.silent_as_of(Word::unpack(word)) else { return };
        let newest = detector.newest_answered();
        if newest <= as_of {
            return;
        }
        self.tell_what_is_silent(newest, now);
        // If two cores publish their last answers at the same time, one of them must see the other's: neither looks
        // again.
        fence(Ordering::SeqCst);
        let rest = detector.silent_on_all(newest);
        if rest.is_some_and(|rest| !detector.stands(rest, now)) && detector.breaker.end_silence(word) {
            detector.learn_again();
        }
    }

    /// How long a probe may go unanswered before it is silent.
    fn patience(&self, now: u64) -> Duration {
        let learnt = self.surprise.samples() >= ENOUGH as u64;
        let pause = Duration::from_micros(self.detector.pauses.usual(now));
        let usual = self.surprise.p99().max(MIN_PATIENCE).max(pause);
        let patience = if learnt && self.looks.is_calm(now) { usual } else { Duration::MAX };
        patience.min(self.detector.bounds.ceiling().unwrap_or(Duration::MAX))
    }

    fn give_up_probe(&mut self, newest: u64, silent: Silent, now: u64) {
        let patience = self.patience(now);
        let age = |probe: &Probe| Duration::from_micros(self.age(probe.request, now));
        if self.probe.as_ref().is_some_and(|probe| age(probe) >= patience)
            && let Some(Probe { claimed, .. }) = self.probe.take()
        {
            self.detector.note_alarm(newest, next_generation(Word::unpack(claimed).generation));
            self.detector.breaker.probe_fell_silent(claimed, &self.error(silent, now));
        }
    }

    /// Whether there are requests that have not been alarmed.
    fn tell_to_move_on(&mut self) -> bool {
        let told = usize::try_from(self.told.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.told = self.next();
        self.silent.iter().skip(told).any(|request| !request.withdrawn)
    }

    fn alarm(&self, silent: Silent, now: u64) -> Alarm {
        let Silent { members, phi, .. } = silent;
        let (median, p99) = (self.surprise.median(), self.surprise.p99());
        Alarm { phi, unanswered: members, oldest: silent.age(now), median, p99 }
    }

    #[cold]
    fn error(&self, silent: Silent, now: u64) -> Arc<LastError> {
        let alarm = self.alarm(silent, now);
        super::silent(&self.detector.label, &alarm)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.tell(Silent::default(), 0);
        self.set_in_flight(0);
        self.own().taken.store(0, Ordering::Release);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("detector", &self.detector)
            .field("core", &self.core)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
