//! Durations and times as people write them: `30s`, `1m 30s`, `2026-02-14T00:28:07.500Z`.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::{Deserializer, Visitor};
use serde::ser::Serializer;

/// In whole milliseconds, as people read it.
pub(super) fn shown(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

pub(super) fn parse<E: serde::de::Error>(text: &str) -> Result<Duration, E> {
    humantime::parse_duration(text)
        .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &"a duration such as 30s, 250ms or 1m 30s"))
}

pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as 30s, 250ms or 1m 30s")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            parse(text)
        }
    }

    deserializer.deserialize_str(Text)
}

/// RFC 3339, in UTC.
pub(super) mod time {
    use super::{Deserializer, Serializer, SystemTime};
    use serde::Deserialize;
    use serde::de::{Error as _, Unexpected};
    use std::borrow::Cow;

    pub(in super::super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*time))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_rfc3339_weak(&text)
            .map_err(|_| D::Error::invalid_value(Unexpected::Str(&text), &"a time such as 2026-02-14T00:28:07Z"))
    }
}

/// The same of a value that may be missing.
macro_rules! optional {
    ($name:ident, $value:ty, $with:literal) => {
        pub(super) mod $name {
            use serde::de::Deserializer;
            use serde::ser::Serializer;
            use serde::{Deserialize, Serialize};

            #[derive(Serialize, Deserialize)]
            struct Shown(#[serde(with = $with)] $value);

            #[expect(clippy::ref_option, reason = "as serde calls it")]
            pub(in super::super) fn serialize<S: Serializer>(
                value: &Option<$value>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                value.map(Shown).serialize(serializer)
            }

            pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<$value>, D::Error> {
                Ok(Option::<Shown>::deserialize(deserializer)?.map(|Shown(value)| value))
            }
        }
    };
}

optional!(optional, std::time::Duration, "super");
optional!(optional_time, std::time::SystemTime, "super::time");
