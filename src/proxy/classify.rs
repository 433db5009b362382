//! What an attempt led to, and whose fault that is. The one table of the gateway's fairness.
//!
//! Not here: what is done about it: `record` tells the breaker, `failover` moves on.

use axum::http::StatusCode;

/// How asking one provider ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A whole answer.
    Ok,
    /// An answer in 4xx: the client's affair.
    ClientError,
    /// 401, 402, 403, 404 or 408: what is wrong with the gateway's account there, or missing there. Another one may do better.
    Declined,
    /// 429.
    RateLimited,
    /// An answer in 5xx.
    ServerError,
    /// No connection.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// A new connection that closed without an answer.
    Connection,
    /// No HTTP, or none that was asked for.
    Protocol,
    /// Nothing of the body in time.
    FirstByteTimeout,
    /// Nothing yet, as of all others at the time; another provider was asked beside it, and answered.
    Silent,
    /// Nothing yet, when a silent one answered after all.
    Overtaken,
    /// A pause within the body that was too long.
    IdleTimeout,
    /// A whole that took too long.
    TotalTimeout,
    /// A body that broke off.
    Cut,
    /// The client left, or did not send what it had promised.
    ClientLeft,
    /// No connection, for what the gateway itself was short of.
    Shortage,
}

impl Outcome {
    pub(crate) const ALL: [Self; 17] = [
        Self::Ok,
        Self::ClientError,
        Self::Declined,
        Self::RateLimited,
        Self::ServerError,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Connection,
        Self::Protocol,
        Self::FirstByteTimeout,
        Self::Silent,
        Self::Overtaken,
        Self::IdleTimeout,
        Self::TotalTimeout,
        Self::Cut,
        Self::ClientLeft,
        Self::Shortage,
    ];

    /// Of the status of an answer.
    pub(crate) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=399 => Self::Ok,
            401..=404 | 408 => Self::Declined,
            429 => Self::RateLimited,
            400..=499 => Self::ClientError,
            500..=599 => Self::ServerError,
            // Only 101 arrives as an answer, and no upgrade was asked for; or there is no such class.
            _ => Self::Protocol,
        }
    }

    /// In logs, metrics and as the type of a breaker's last error.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "4xx",
            Self::Declined => "declined",
            Self::RateLimited => "429",
            Self::ServerError => "5xx",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Connection => "connection",
            Self::Protocol => "protocol",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::Silent => "silent",
            Self::Overtaken => "overtaken",
            Self::IdleTimeout => "idle_timeout",
            Self::TotalTimeout => "total_timeout",
            Self::Cut => "cut",
            Self::ClientLeft => "client_left",
            Self::Shortage => "shortage",
        }
    }

    /// Whether it counts against the provider.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Ok
                | Self::ClientError
                | Self::Declined
                | Self::RateLimited
                | Self::Overtaken
                | Self::ClientLeft
                | Self::Shortage
        )
    }

    /// Whether it did not do something in time.
    pub(crate) fn is_timeout(self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::FirstByteTimeout | Self::IdleTimeout | Self::TotalTimeout)
    }

    /// Whether an error of this type says that answers begin well and then break off: of such a provider a good first byte
    /// proves nothing.
    pub(crate) fn breaks_off(error_type: &str) -> bool {
        [Self::Cut, Self::IdleTimeout, Self::TotalTimeout].iter().any(|outcome| outcome.as_str() == error_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_provider_did_wrong_counts_against_it() {
        let of = |status| Outcome::of(StatusCode::from_u16(status).unwrap());
        for (status, outcome, failure) in [
            (200, Outcome::Ok, false),
            (302, Outcome::Ok, false),
            (400, Outcome::ClientError, false),
            (401, Outcome::Declined, false),
            (404, Outcome::Declined, false),
            (422, Outcome::ClientError, false),
            (429, Outcome::RateLimited, false),
            (500, Outcome::ServerError, true),
            (529, Outcome::ServerError, true),
            (101, Outcome::Protocol, true),
            (600, Outcome::Protocol, true),
        ] {
            assert_eq!((of(status), of(status).is_failure()), (outcome, failure), "{status}");
        }
    }

    #[test]
    fn every_outcome_is_in_the_list_and_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "metrics count by it");
        }
    }
}
