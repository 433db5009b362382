//! What limits the requests to a provider: time, number and connections.
//!
//! Not here: the breaker's settings: `crate::Config`.

use std::time::Duration;

/// `[timeouts]`: how long a provider may take. Exceeding one of them is a failure of the provider.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Timeouts {
    /// For a new connection, TLS included. It should exceed one second: a lost SYN, as when the provider's accept queue
    /// is full for a moment, is sent again after one second (RFC 6298 section 2.1).
    pub connect: Duration,
    /// From the request to the first byte of a stream, connecting included. An answer that is no stream has no byte
    /// before it is made: for it only `total` counts.
    pub first_byte: Duration,
    /// From the request to the first content of a stream: comments, pings and announcements are none. `None`: two
    /// minutes, or `first_byte` if that is longer.
    pub first_content: Option<Duration>,
    /// How many pieces of content a second a stream has to send at least, as long as none has been passed on: one that
    /// has begun has to be whole in that time. `None`: what is learnt from the streams before. It may take four times
    /// as long as the longest pause lately, and always a second.
    pub min_rate: Option<f64>,
    /// For the pause between two pieces of the body, or of a stream's content.
    pub idle: Duration,
    /// For the whole answer.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            first_content: None,
            min_rate: None,
            // Models that reason pause for up to a minute.
            idle: Duration::from_secs(120),
            total: Duration::from_secs(600),
        }
    }
}

impl Timeouts {
    /// How long the first byte of a stream may take: no longer than its first content.
    pub fn first_byte(&self) -> Duration {
        self.first_byte.min(self.first_content())
    }

    /// How long the first content of a stream may take.
    pub fn first_content(&self) -> Duration {
        self.first_content.unwrap_or(Duration::from_secs(120).max(self.first_byte)).min(self.total)
    }
}

/// `[limits]`: how many requests a provider has at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// So many for each model. `None`: any number.
    pub max_in_flight: Option<u64>,
    /// How many wait for a place, for each model, if no other provider has one.
    pub max_waiting: u64,
    /// For how long.
    pub wait_limit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_in_flight: None, max_waiting: 100, wait_limit: Duration::from_secs(10) }
    }
}

/// `[connections]`: the connections to providers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Connections {
    /// How many idle connections are kept. Each core has its share, rounded up.
    pub max_idle: u64,
    /// How long an idle connection is kept.
    pub idle_limit: Duration,
    /// How old a connection may be to be used for another request.
    pub max_age: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max_idle: 256,
            // Common servers (Node, uvicorn) close an idle connection after 5 s. A request that meets the close is sent
            // twice.
            idle_limit: Duration::from_secs(4),
            max_age: Duration::from_secs(300),
        }
    }
}
