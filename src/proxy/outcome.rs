//! How an attempt ended, and whose fault that is. The one table of the gateway's fairness.
//!
//! Not here: which outcome an error stands for: `route::blame`; what follows from one: `route::attempts`.

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
    /// The client's context is too long for this provider's model. Another one may have more room.
    ContextLength,
    /// 408 and the like: it concerns this request alone, and another provider may do better.
    Declined,
    /// 404, 405 or 501: the provider does not have what was asked for, at this path. Another one may have it.
    NotOffered,
    /// 3xx: the provider's configured address is not the right one.
    Redirected,
    /// The provider does not know the model.
    UnknownModel,
    /// 429, or a good answer that says that it was the last one for now.
    #[strum(serialize = "429")]
    RateLimited,
    /// 503 or 529 that says when to come back.
    Later,
    /// 401 or 403, or another status that says the same: the provider refused the gateway's key.
    KeyRefused,
    /// 402, or another status that says the same: the gateway's account has nothing left.
    NoCredit,
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
    /// What came in time of a stream had no content.
    FirstContentTimeout,
    /// A stream's first piece came, and was not whole in time.
    TooSlow,
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

/// Whose fault an outcome is, and so whose circuit is told of it. Its text is what the access log shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "snake_case")]
pub(crate) enum Scope {
    /// Nobody's, or the client's.
    Nobody,
    /// One model's at one provider.
    Model,
    /// The provider's, whatever the model.
    Provider,
    /// The gateway's account at this provider, whatever the model.
    Key,
}

impl Scope {
    pub(crate) fn as_str(self) -> &'static str {
        self.into_str()
    }
}

impl Outcome {
    /// The outcome that the status of an answer stands for by itself.
    pub(crate) fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            200..=299 => Self::Ok,
            300..=399 => Self::Redirected,
            401 | 403 | 407 => Self::KeyRefused,
            402 => Self::NoCredit,
            404 | 405 | 501 => Self::NotOffered,
            408 | 421 | 425 | 426 | 451 => Self::Declined,
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

    pub(crate) fn scope(self) -> Scope {
        match self {
            Self::Ok
            | Self::Unmarked
            | Self::ClientError
            | Self::ContextLength
            | Self::Declined
            | Self::NotOffered
            | Self::Redirected
            | Self::Overtaken
            | Self::ClientLeft
            | Self::Shortage => Scope::Nobody,
            Self::UnknownModel
            | Self::RateLimited
            | Self::Later
            | Self::ServerError
            | Self::Empty
            | Self::Connection
            | Self::Protocol
            | Self::FirstByteTimeout
            | Self::FirstContentTimeout
            | Self::TooSlow
            | Self::Silent
            | Self::IdleTimeout
            | Self::TotalTimeout
            | Self::Cut => Scope::Model,
            Self::Connect | Self::ConnectTimeout => Scope::Provider,
            Self::KeyRefused | Self::NoCredit => Scope::Key,
        }
    }

    /// Whether there was an answer, and it came from what was asked for.
    pub(crate) fn found_something(self) -> bool {
        matches!(
            self,
            Self::Ok
                | Self::Unmarked
                | Self::ClientError
                | Self::ContextLength
                | Self::Declined
                | Self::UnknownModel
                | Self::RateLimited
                | Self::Later
                | Self::KeyRefused
                | Self::NoCredit
                | Self::ServerError
        )
    }

    /// Whether it is a success of the provider.
    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Ok | Self::Unmarked)
    }

    /// Whether it takes its scope out for a time that is known, or can be guessed, and is no breakage.
    pub(crate) fn is_cooldown(self) -> bool {
        matches!(self, Self::UnknownModel | Self::RateLimited | Self::Later | Self::KeyRefused | Self::NoCredit)
    }

    /// Whether it counts against the provider as breakage.
    pub(crate) fn is_failure(self) -> bool {
        self.scope() != Scope::Nobody && !self.is_cooldown()
    }

    /// Whether a permit that ended so has failed. Silence has not: the detector opens the circuit, once for many
    /// requests.
    pub(crate) fn fails_its_permit(self) -> bool {
        self.is_failure() && self != Self::Silent
    }

    /// Whether the provider exceeded a time limit.
    pub(crate) fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout
                | Self::FirstByteTimeout
                | Self::FirstContentTimeout
                | Self::TooSlow
                | Self::IdleTimeout
                | Self::TotalTimeout
        )
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
        for (status, outcome, scope, failure) in [
            (200, Outcome::Ok, Scope::Nobody, false),
            (302, Outcome::Redirected, Scope::Nobody, false),
            (400, Outcome::ClientError, Scope::Nobody, false),
            (401, Outcome::KeyRefused, Scope::Key, false),
            (402, Outcome::NoCredit, Scope::Key, false),
            (404, Outcome::NotOffered, Scope::Nobody, false),
            (405, Outcome::NotOffered, Scope::Nobody, false),
            (408, Outcome::Declined, Scope::Nobody, false),
            (422, Outcome::ClientError, Scope::Nobody, false),
            (429, Outcome::RateLimited, Scope::Model, false),
            (500, Outcome::ServerError, Scope::Model, true),
            (501, Outcome::NotOffered, Scope::Nobody, false),
            (529, Outcome::ServerError, Scope::Model, true),
            (101, Outcome::Protocol, Scope::Model, true),
            (600, Outcome::Protocol, Scope::Model, true),
        ] {
            let found = of(status);
            assert_eq!((found, found.scope(), found.is_failure()), (outcome, scope, failure), "{status}");
        }
        assert_eq!(Outcome::Connect.scope(), Scope::Provider);
        assert!(Outcome::Silent.is_failure() && !Outcome::Silent.fails_its_permit());
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
