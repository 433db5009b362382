//! How an attempt ended, and whose fault that is. The one table of the gateway's fairness.
//!
//! Not here: what follows from an outcome: `route`.

use http::StatusCode;
use strum::{EnumCount, IntoStaticStr, VariantArray};

/// How asking one provider ended. Its text is what logs and metrics show, and the type of a breaker's last error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub(crate) enum Outcome {
    /// A complete answer.
    Ok,
    /// A stream of events that ended well as HTTP sees it, and none of whose events marks the end of an answer.
    Unmarked,
    /// A 4xx answer that is the client's fault.
    #[strum(serialize = "4xx")]
    ClientError,
    /// 401, 402, 403, 404 or 408: the gateway's account at this provider lacks something. Another provider may do
    /// better.
    Declined,
    /// 429.
    #[strum(serialize = "429")]
    RateLimited,
    /// A 5xx answer, or a 200 with an error inside that is as good as one.
    #[strum(serialize = "5xx")]
    ServerError,
    /// A 200 with nothing in it, or with what was not asked for.
    Empty,
    /// The connection could not be made.
    Connect,
    /// The connection was not made in time.
    ConnectTimeout,
    /// A new connection was closed without an answer.
    Connection,
    /// The answer was not HTTP, or had a status that no request asks for.
    Protocol,
    /// No part of the body came in time.
    FirstByteTimeout,
    /// Judged silent; another provider's answer was used.
    Silent,
    /// Still unanswered when a provider that had been judged silent answered after all.
    Overtaken,
    /// The body paused for too long.
    IdleTimeout,
    /// The whole answer took too long.
    TotalTimeout,
    /// The body broke off.
    Cut,
    /// The client left, or did not send the body it had announced.
    ClientLeft,
    /// The gateway itself lacked a descriptor, a port, memory or a thread for the connection.
    Shortage,
}

impl Outcome {
    /// The outcome that the status of an answer stands for.
    pub(crate) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=399 => Self::Ok,
            401..=404 | 408 => Self::Declined,
            429 => Self::RateLimited,
            400..=499 => Self::ClientError,
            500..=599 => Self::ServerError,
            // Of the 1xx only 101 arrives as an answer, and no upgrade was asked for. Other numbers are no status at
            // all.
            _ => Self::Protocol,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        self.into_str()
    }

    /// Whether it is a success of the provider.
    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Ok | Self::Unmarked)
    }

    /// Whether it counts against the provider.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Ok
                | Self::Unmarked
                | Self::ClientError
                | Self::Declined
                | Self::RateLimited
                | Self::Overtaken
                | Self::ClientLeft
                | Self::Shortage
        )
    }

    /// Whether a permit that ended so has failed. Silence has not: the detector opens the circuit, once for many
    /// requests.
    pub(crate) fn fails_its_permit(self) -> bool {
        self.is_failure() && self != Self::Silent
    }

    /// Whether the provider exceeded a time limit.
    pub(crate) fn is_timeout(self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::FirstByteTimeout | Self::IdleTimeout | Self::TotalTimeout)
    }

    /// Whether the answer may have begun well and then broken off.
    pub(crate) fn is_broken_off(self) -> bool {
        matches!(self, Self::Cut | Self::IdleTimeout | Self::TotalTimeout)
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
    fn every_outcome_has_a_name_of_its_own_and_its_place_in_the_list_is_its_number() {
        let names: std::collections::BTreeSet<_> = Outcome::VARIANTS.iter().map(|outcome| outcome.as_str()).collect();
        assert_eq!((names.len(), Outcome::VARIANTS.len()), (Outcome::COUNT, Outcome::COUNT));
        for (index, outcome) in Outcome::VARIANTS.iter().enumerate() {
            assert_eq!(*outcome as usize, index, "metrics count by it");
        }
    }
}
