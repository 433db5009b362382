//! Notices an upstream that accepts requests and does not answer them, within about one latency instead of after a
//! timeout.
//!
//! Not here: what callers do with their unanswered requests.
//!
//! # How
//!
//! Answered requests teach how long an answer takes. An unanswered request is *silent* if it was started after the most
//! recently started request that has been answered. So one slow answer raises no alarm, and neither do old requests
//! that are still under way when newer ones are answered. A silent request is the more surprising, the fewer answers
//! have taken as long: it counts `-log10` of their share. The sum over the silent requests is *phi*. At phi 9 a working
//! upstream would leave all of them waiting this long with a probability of one in a thousand million, if answers were
//! independent of each other. They are not, hence the rules below. This is the phi accrual failure detector of
//! Hayashibara, Défago, Yared and Katayama (2004), which Akka and Cassandra use on heartbeats. Here the requests
//! themselves are the heartbeats.
//!
//! When phi reaches its threshold, the circuit opens: it is *silent*, and rejects calls like any open circuit. It
//! closes when a probe succeeds, or at once when a silent request is answered after all.
//!
//! # Using it
//!
//! Make one [`Detector`] for each kind of answer that takes its own time: for an LLM provider one per model. Streams
//! that have begun are another matter: a [`StallDetector`] notices that they stop. With one detector for two models,
//! each answer of the quick one would clear the one that hangs. Make one [`Watcher`] for each core or thread, which
//! owns it; its methods never wait for another watcher. The caller passes the time, and calls [`look`](Watcher::look)
//! every [`TICK`] while anything is [in flight](Watcher::in_flight).
//!
//! ```
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//!
//! use fusebox::{CircuitBreaker, CircuitState};
//! use fusebox::silence::{Config, Detector, TICK};
//!
//! let breaker = Arc::new(CircuitBreaker::builder("openai").build()?);
//! let detector = Arc::new(Detector::new(Arc::clone(&breaker), Config::default(), 1));
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
//! // From now on no request is answered.
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
//! // Now ask another upstream, and keep waiting for this one.
//! watcher.answered(tickets.pop().expect("there are ten"), now);
//! assert_eq!(breaker.state(), CircuitState::Closed);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Rules
//!
//! - Only an answer clears. A request that fails or is cancelled is [withdrawn](Watcher::withdrawn): it neither clears
//!   nor counts, so that a front end's 401s do not hide a back end that hangs.
//! - No alarm is raised before enough is learnt: at a high rate the first answers are the fastest ones. That takes 100
//!   answers, and twice as many as there are requests in flight.
//! - If a look comes late, its caller was held up, and everything seems silent. If it is late by more than a tick and a
//!   half, the delay is subtracted from every age. If it is late by more than two ticks, the machine is busy, and no
//!   alarm is raised for the next ten ticks. (The [ceiling](ConfigBuilder::ceiling) holds all the same.)
//! - What has arrived before a look has to be read before it. The caller reads its sockets first, and then passes the
//!   time at which the tick began.
//! - A probe is silent if it waits for longer than 99% of answers take (and 50 ms, and twice the usual pause, see
//!   below): a single request never reaches phi 9.
//! - If a silent request is answered, the upstream was slow and not silent. Then latencies are learnt anew, from
//!   requests that are sent from then on.
//! - An upstream that pauses now and then, as when it schedules its work anew, is not silent. The usual pause is the
//!   second longest of the last 16 that ended with an answer to a silent request. A silence raises an alarm only when
//!   it has lasted for twice as long. Pauses of more than a second do not count. All are forgotten when there has been
//!   none for ten minutes.
//!
//! # Its limits
//!
//! - A part of an upstream that hangs is not noticed while other parts answer.
//! - With few requests noticing takes longer: `failure_threshold` of them must go unanswered. Below one request per
//!   latency, a timeout notices as early.
//! - Requests must wait for longer than noticing takes: a shorter timeout withdraws them.
//! - Several requests at once that take much longer than all before look like silence until one of them is answered.
//!   Then it is known that answers may take that long, and the next such requests are less of a surprise. So silence
//!   should send requests elsewhere, and should not refuse them where there is no elsewhere.
//! - Each answer clears the requests that were started before it.
//! - The first pauses of a new kind may look like a stall until they end. Then they are known.
//! - A request that is sent to another upstream as well is answered and billed twice if the first one answers after
//!   all.
//!
//! # Choosing phi
//!
//! Each step up makes a false alarm ten times less likely, and needs about a third of an unanswered request more. At 9
//! there was no false alarm in millions of heavy-tailed requests. `docs/BENCHMARKS.md` has the figures, which
//! `benches/silence` produces.

mod config;
mod detector;
mod epoch;
mod latencies;
mod looks;
mod pauses;
mod published;
mod stalls;
mod watcher;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::LastError;

pub use config::{Config, ConfigBuilder};
pub use detector::{Detector, DetectorSnapshot};
pub use stalls::{Stall, StallDetector, StallSnapshot, StallWatcher, WatchedStream};
pub use watcher::{Alarm, Ticket, Watcher};

/// The error of a circuit that opens because of what was found, under a detector's label.
fn silent(label: &str, found: &dyn fmt::Display) -> Arc<LastError> {
    let separator = if label.is_empty() { "" } else { ": " };
    Arc::new(LastError::new("silent", &format_args!("{label}{separator}{found}")))
}

/// How often [`Watcher::look`] should be called. A longer tick would delay an alarm noticeably if answers take a few
/// milliseconds.
pub const TICK: Duration = Duration::from_millis(5);

/// How many answers are needed before an alarm can be raised.
const ENOUGH: usize = 100;
