//! What the public calls a circuit's state, and why a circuit is open.
//!
//! Not here: which change of state follows from what: `word`. What is told of a change: `feed`.

use std::fmt;

/// An enum and the list of its variants, so that no variant can be missing from the list.
macro_rules! listed {
    ($(#[$of_all:meta])* pub enum $name:ident { $($(#[$of_one:meta])* $variant:ident,)* }) => {
        $(#[$of_all])*
        pub enum $name { $($(#[$of_one])* $variant,)* }

        impl $name {
            /// All of them, for pages that show each one.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }
    };
}
pub(crate) use listed;

listed! {
    /// State of a circuit. *Closed* means that traffic flows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum CircuitState {
        /// Calls pass, and failures in a row are counted.
        Closed,
        /// Calls are rejected until the open time has passed; the next call after that is the probe.
        Open,
        /// One probe decides whether the circuit closes or opens again; other calls wait for it or are rejected.
        HalfOpen,
        /// The circuit has just closed, and a growing share of calls passes: see
        /// [`ConfigBuilder::ramp`](crate::ConfigBuilder::ramp).
        Recovering,
        /// Calls pass, whatever their outcomes: see [`CircuitBreaker::disable`](crate::CircuitBreaker::disable).
        Disabled,
    }
}

impl CircuitState {
    /// The name used in logs and on health pages: `closed`, `open`, `half_open`, `recovering` or
    /// `disabled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::Recovering => "recovering",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for CircuitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

listed! {
    /// Why a circuit is open.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum Cause {
        /// Calls failed: as many in a row as `failure_threshold`, or the probe.
        Failures,
        /// Too many of the last calls failed: see [`ConfigBuilder::failure_rate`](crate::ConfigBuilder::failure_rate).
        Rate,
        /// Too many of the last calls were slow: see [`ConfigBuilder::slow_rate`](crate::ConfigBuilder::slow_rate).
        Slow,
        /// Calls went unanswered: see [`silence`](crate::silence).
        Silence,
        /// A caller said for how long: see [`Permit::cool_down`](crate::Permit::cool_down) and
        /// [`CircuitBreaker::trip_for`](crate::CircuitBreaker::trip_for).
        Cooldown,
        /// Another process found out, and this one was told: see the feature `fleet`.
        Fleet,
        /// By hand: see [`CircuitBreaker::isolate`](crate::CircuitBreaker::isolate).
        Isolated,
    }
}

impl Cause {
    /// The name used in logs and on health pages: `failures`, `rate`, `slow`, `silence`, `cooldown`,
    /// `fleet` or `isolated`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Rate => "rate",
            Self::Slow => "slow",
            Self::Silence => "silence",
            Self::Cooldown => "cooldown",
            Self::Fleet => "fleet",
            Self::Isolated => "isolated",
        }
    }

    /// Whether how long the circuit stays open is a guess of its own. Otherwise somebody said so.
    pub(crate) const fn is_a_guess(self) -> bool {
        matches!(self, Self::Failures | Self::Rate | Self::Slow | Self::Silence | Self::Fleet)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
