//! Settings as a table of readable values.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::config::{Abandoned, Config, Window};

/// The fields of a [`Config`], by the names of their builder methods. What is left out has its default.
#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Table {
    failure_threshold: Threshold,
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    failure_memory: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_rate: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_rate: Option<u32>,
    #[serde(with = "duration::optional", skip_serializing_if = "Option::is_none")]
    slow_after: Option<Duration>,
    window: Window,
    min_calls: u32,
    abandoned: Abandoned,
    #[serde(with = "duration")]
    open_for: Duration,
    open_growth: u32,
    #[serde(with = "duration")]
    open_cap: Duration,
    open_jitter: u32,
    good_probes: u32,
    #[serde(with = "duration")]
    ramp: Duration,
    ramp_from: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ramp_failures: Option<u32>,
    #[serde(with = "duration")]
    probe_lease: Duration,
    #[serde(with = "duration")]
    wait_limit: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_waiters: Option<usize>,
    #[cfg(feature = "metrics")]
    totals: bool,
}

/// No threshold is written as [`NO_THRESHOLD`]: not every format has a null, and leaving it out means the default.
struct Threshold(Option<u32>);

const NO_THRESHOLD: &str = "none";

/// Both ways, so that no field is forgotten in one of them.
macro_rules! fields {
    ($($(#[$when:meta])? $field:ident),*) => {
        impl From<&Config> for Table {
            fn from(config: &Config) -> Self {
                let &Config { failure_threshold, $($(#[$when])? $field),* } = config;
                Self { failure_threshold: Threshold(failure_threshold), $($(#[$when])? $field),* }
            }
        }

        impl From<Table> for Config {
            fn from(table: Table) -> Self {
                let Table { failure_threshold: Threshold(failure_threshold), $($(#[$when])? $field),* } = table;
                Self { failure_threshold, $($(#[$when])? $field),* }
            }
        }
    };
}

fields!(
    failure_memory,
    failure_rate,
    slow_rate,
    slow_after,
    window,
    min_calls,
    abandoned,
    open_for,
    open_growth,
    open_cap,
    open_jitter,
    good_probes,
    ramp,
    ramp_from,
    ramp_failures,
    probe_lease,
    wait_limit,
    max_waiters,
    #[cfg(feature = "metrics")]
    totals
);

impl Default for Table {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Table::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Self::from(Table::deserialize(deserializer)?);
        config.to_builder().build().map_err(de::Error::custom)
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(failures) => serializer.serialize_u32(failures),
            None => serializer.serialize_str(NO_THRESHOLD),
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText {
            expected: "a number of failures, or \"none\"",
            number: |failures| Self(Some(failures)),
            text: |text| (text == NO_THRESHOLD).then_some(Self(None)),
        })
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Time(time) => duration::serialize(time, serializer),
            Self::Calls(calls) => serializer.serialize_u32(*calls),
        }
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText {
            expected: "a duration such as 10s, or a number of calls",
            number: Self::Calls,
            text: |text| humantime::parse_duration(text).ok().map(Self::Time),
        })
    }
}

/// For a setting that is a number, or a text that stands for something else.
struct NumberOrText<T> {
    expected: &'static str,
    number: fn(u32) -> T,
    text: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        // What is too large is refused with the range that is valid.
        Ok((self.number)(u32::try_from(number).unwrap_or(u32::MAX)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        (self.text)(NO_THRESHOLD).ok_or_else(|| E::invalid_type(Unexpected::Unit, &self))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Abandoned", rename_all = "snake_case")]
enum Known {
    Ignored,
    Failure,
}

impl Serialize for Abandoned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Known::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Abandoned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Known::deserialize(deserializer)
    }
}
