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

/// `None` is left out.
pub(super) mod optional {
    use super::{Deserializer, Duration, Serializer};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Shown(#[serde(with = "super")] Duration);

    #[expect(clippy::ref_option, reason = "as serde calls it")]
    pub(in super::super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(Shown).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Shown>::deserialize(deserializer)?.map(|Shown(duration)| duration))
    }
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

/// The same. `None` is left out.
pub(super) mod optional_time {
    use super::{Deserializer, Serializer, SystemTime};
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Shown(#[serde(with = "super::time")] SystemTime);

    #[expect(clippy::ref_option, reason = "as serde calls it")]
    pub(in super::super) fn serialize<S: Serializer>(
        value: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(Shown).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<Shown>::deserialize(deserializer)?.map(|Shown(time)| time))
    }
}
