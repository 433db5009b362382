//! One request and its answer: its attempts, and what is told of it. It goes with the answer's body to the end, and
//! writes the access log and the metrics when it is dropped, so that a client that leaves is counted, too.
//!
//! Not here: decisions: `failover` and `judge`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderMap, request, response};

use super::attempts::{AttemptId, Attempts};
use super::blame::Blame;
use super::inside::Inside;
use crate::proxy::core::Core;
use crate::proxy::observe::access_log;
use crate::proxy::observe::facts::{End, Facts};
use crate::proxy::outcome::Outcome;
use crate::proxy::provider::ProviderId;
use crate::proxy::request::client::{Peer, client};

pub(crate) struct Exchange {
    pub(crate) facts: Facts,
    pub(crate) attempts: Attempts,
}

impl Exchange {
    #[inline]
    pub(crate) fn begin(core: Arc<Core>, peer: Option<Peer>, head: &mut request::Parts) -> Self {
        core.app.metrics.begin();
        let attempts = Attempts::new(core);
        #[cfg(feature = "otel")]
        let attempts = attempts.traced_as(&head.headers);
        let trusted = &attempts.local().server.trusted_proxies;
        let client = peer.map(|Peer(peer)| client(peer.ip(), &head.headers, trusted));
        Self { facts: Facts::of(head, client), attempts }
    }

    /// Puts the headers that tell of the request into its answer. `provider` is whose answer it is; `None` stands for
    /// the gateway's own.
    pub(crate) fn answer_with(&mut self, head: &mut response::Parts, provider: Option<ProviderId>, is_stream: bool) {
        let provider = provider.map(|id| self.attempts.local().upstreams[id].name.clone());
        self.facts.answer_with(head, provider, self.attempts.len());
        self.facts.is_stream = is_stream;
    }

    /// An attempt's answer has come to its end.
    pub(crate) fn succeed(&mut self, attempt: AttemptId) {
        self.attempts.settle(attempt, Outcome::Ok, &"");
        self.facts.end = End::Complete;
    }

    /// The same of a stream of events, none of which marked the end of the answer.
    pub(crate) fn succeed_unmarked(&mut self, attempt: AttemptId) {
        self.attempts.settle(attempt, Outcome::Unmarked, &"");
        self.facts.end = End::Complete;
    }

    /// A stream has an error in its middle, which the client gets. It is judged as one that breaks off, unless the
    /// error is nobody's fault.
    pub(crate) fn fail_inside(&mut self, attempt: AttemptId, inside: &Inside) {
        let Blame { outcome, later, .. } = inside.blame(&HeaderMap::new());
        let outcome = if outcome.is_failure() { Outcome::Cut } else { outcome };
        let upstream = &self.attempts.local().upstreams[self.attempts.provider(attempt)];
        let message = format!("an error in the middle of the answer: {}", upstream.showable(&inside.code));
        self.attempts.settle_until(attempt, outcome, later, &message);
        self.facts.end = End::Cut;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.attempts.settle_all();
        let took = self.facts.started.elapsed();
        if self.facts.has_head.as_ref().is_some_and(|has_head| has_head.load(Ordering::Relaxed)) {
            self.facts.status = Some(200);
            self.facts.is_stream = true;
        }
        #[cfg(feature = "otel")]
        self.attempts.send_spans(&self.facts);
        let core = self.attempts.core();
        core.app.metrics.end(self.facts.status, took);
        self.attempts.note_failovers();
        self.attempts.note_usage(self.facts.usage);
        let server = &self.attempts.local().server;
        if server.access_log
            && let Some(log) = core.log()
        {
            let token = self.facts.token.map(|place| &*server.auth_tokens[place].name);
            let attempts = &self.attempts;
            log.push(|line| access_log::write(line, &self.facts, token, attempts.lines(), attempts.skipped(), took));
        }
    }
}
