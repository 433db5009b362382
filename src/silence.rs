//! Notices an upstream that takes requests and does not answer, within about one latency instead of after a timeout.
//!
//! Not here: what becomes of the requests, which is their callers' affair.
//!
//! # How
//!
//! Requests that are answered teach how long an answer takes. Those that wait are the *silent* ones if they were
//! started after the most recently started request that has been answered: one slow answer is nobody's alarm, and
//! neither are the old ones that are still under way when newer ones come back. Each silent request is as surprising as
//! few answers have taken as long: `-log10` of their share. The sum of that over the silent requests is *phi*. At 9 the
//! odds that an upstream that works lets all of them wait for so long are one to a thousand million, if answers are
//! independent of each other; they are not, which is what the rules below are for. This is the phi accrual failure
//! detector of Hayashibara, Défago, Yared and Katayama (2004), which Akka and Cassandra use on heartbeats; here the
//! requests themselves are the heartbeats.
//!
//! At phi the circuit opens: it is *silent*, and rejects like any open circuit. It closes when a probe succeeds, or at
//! once when an answer comes after all to a request that was silent.
//!
//! # Using it
//!
//! One [`Detector`] for each kind of answer that takes its own time: for an LLM provider one per model, and for streams
//! one more over the gaps between chunks. Any answer of a quick model would clear one that hangs. One [`Watcher`] for
//! each core or thread, which owns it; none of its methods waits for another one's. The caller passes the time, and
//! calls [`look`](Watcher::look) every [`TICK`] while anything is [in flight](Watcher::in_flight).
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//!
//! use fusebox::{CircuitBreaker, CircuitState};
//! use fusebox::silence::{Config, Detector, TICK};
//!
//! let breaker = Arc::new(CircuitBreaker::builder("openai").build()?);
//! let detector = Arc::new(Detector::new(Arc::clone(&breaker), &Config::default(), 1));
//! let mut watcher = detector.watcher().expect("nobody watches yet");
//!
//! // A thousand answers that take 20 ms each.
//! let mut now = Instant::now();
//! for _ in 0..1000 {
//!     let permit = breaker.try_acquire()?;
//!     let ticket = watcher.start(&permit, now);
//!     for _ in 0..4 {
//!         now += TICK;
//!         assert!(watcher.look(now).is_none());
//!     }
//!     watcher.answered(ticket, now);
//!     permit.success();
//! }
//! // From now on there is none.
//! let permits: Vec<_> = (0..10).map(|_| breaker.try_acquire()).collect::<Result<_, _>>()?;
//! let mut tickets: Vec<_> = permits.iter().map(|permit| watcher.start(permit, now)).collect();
//! let alarm = loop {
//!     now += TICK;
//!     if let Some(alarm) = watcher.look(now) {
//!         break alarm;
//!     }
//! };
//! assert_eq!((alarm.unanswered, alarm.oldest), (10, Duration::from_millis(25)));
//! assert!(breaker.snapshot().silent);
//!
//! // Now ask somebody else, and keep listening.
//! watcher.answered(tickets.pop().expect("there are ten"), now);
//! assert_eq!(breaker.state(), CircuitState::Closed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Rules
//!
//! - Only an answer clears. Whatever fails, or is called off, is [withdrawn](Watcher::withdrawn): it neither clears nor
//!   counts, so that a front end's 401s do not hide a back end that hangs.
//! - Nothing is believed before enough is learnt: the first answers at a high rate are the fastest ones. That takes 100
//!   answers, and twice as many as there are requests in flight.
//! - If a look comes late, its caller was held up, and everything seems silent. What it is late by is taken off every
//!   age if that is more than a tick and a half; if it is more than two, the machine is busy, and no silence is
//!   believed for the next ten ticks. (The [ceiling](ConfigBuilder::ceiling) holds all the same.)
//! - What has come before a look has to be read before it: the caller reads its sockets first, and then says how things
//!   stood when the tick began.
//! - A probe that waits for longer than 99% of answers do (and 50 ms) is silent, too: one request alone never reaches
//!   phi 9.
//! - If an answer to a silent request shows that the upstream is not silent but slow, how long answers take is learnt
//!   again: from requests that are sent then, and not from those that waited.
//!
//! # Its limits
//!
//! - A part of an upstream that hangs is not seen while other parts answer.
//! - With few requests it takes its time: `failure_threshold` of them have to go unanswered. Below one request per
//!   latency a timeout notices as soon.
//! - Requests have to wait for longer than it takes to notice: a timeout that is shorter withdraws them.
//! - Requests that take much longer than those that were learnt, several of them at once, look like silence until one
//!   is answered.
//! - Each answer, and each piece of a stream, clears those that were started before: streams that begin well and then
//!   all stop are not silent as long as new ones begin. That is for an idle timeout to notice.
//! - A request that is sent to somebody else as well is, if the first one answers after all, answered and billed twice.
//!
//! # Choosing phi
//!
//! Each step up makes a false alarm ten times less likely, and costs about a third of a request more, or its time. Nine
//! has raised none in millions of heavy-tailed requests; `docs/BENCHMARKS.md` has the figures, and `benches/silence`
//! makes them.

mod config;
mod detector;
mod latencies;
mod published;
mod watcher;

use std::time::Duration;

pub use config::{Config, ConfigBuilder};
pub use detector::{Detector, DetectorSnapshot};
pub use watcher::{Alarm, Ticket, Watcher};

/// How often a [`Watcher`] wants to look: a coarser tick is noticed where answers take a few milliseconds.
pub const TICK: Duration = Duration::from_millis(5);

/// Answers before anything is believed.
const ENOUGH: usize = 100;
