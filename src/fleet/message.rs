//! What replicas tell each other: one JSON object per message.
//!
//! | field      | what it is                                                                                        |
//! |------------|---------------------------------------------------------------------------------------------------|
//! | `v`        | 1. Messages of another version are ignored, and so are fields and kinds that are not known.       |
//! | `kind`     | `open`, `alive`, `closed` or `failed`                                                             |
//! | `provider` | the breaker's name                                                                                |
//! | `replica`  | who says so                                                                                       |
//! | `ms`       | for how long it stays so, from now: clocks of machines differ, so no time of day is ever told      |
//! | `why`      | the cause: `failures`, `silence`, `cooldown` and so on                                            |
//! | `error`    | the type of the error, such as `timeout` or `429`                                                 |

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest message that is read.
pub(crate) const MAX_BYTES: usize = 4096;

const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    v: u32,
    pub(crate) kind: Kind,
    pub(crate) provider: String,
    pub(crate) replica: String,
    #[serde(default)]
    ms: u64,
    #[serde(default)]
    pub(crate) why: String,
    #[serde(default)]
    pub(crate) error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A circuit has opened.
    Open,
    /// A call has succeeded since the upstream was suspected.
    Alive,
    /// A probe has succeeded.
    Closed,
    /// The probe for all has failed.
    Failed,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Open, Self::Alive, Self::Closed, Self::Failed];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Alive => "alive",
            Self::Closed => "closed",
            Self::Failed => "failed",
        }
    }
}

/// Why a circuit is open that was told to come back later.
pub(crate) const COOLDOWN: &str = "cooldown";

impl Message {
    pub(crate) fn new(kind: Kind, provider: &str, replica: &str, left: Duration) -> Self {
        let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let (provider, replica) = (provider.to_owned(), replica.to_owned());
        Self { v: VERSION, kind, provider, replica, ms, why: String::new(), error: String::new() }
    }

    pub(crate) fn because(self, why: &str, error: &str) -> Self {
        Self { why: why.to_owned(), error: error.to_owned(), ..self }
    }

    pub(crate) fn left(&self) -> Duration {
        Duration::from_millis(self.ms)
    }

    pub(crate) fn is_cooldown(&self) -> bool {
        self.why == COOLDOWN
    }

    /// `None` for whatever is not understood.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let message: Self = serde_json::from_slice(bytes.get(..bytes.len().min(MAX_BYTES + 1))?).ok()?;
        (bytes.len() <= MAX_BYTES && message.v == VERSION).then_some(message)
    }

    pub(crate) fn write(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let message = Message::new(Kind::Open, "openai", "a1", Duration::from_secs(5)).because("failures", "timeout");
        let text =
            r#"{"v":1,"kind":"open","provider":"openai","replica":"a1","ms":5000,"why":"failures","error":"timeout"}"#;
        assert_eq!(message.write(), text);
        assert_eq!(Message::read(text.as_bytes()), Some(message));
    }

    #[test]
    fn unknown_fields_are_ignored_and_so_are_unknown_versions_kinds_and_what_is_no_message() {
        let read = |text: &str| Message::read(text.as_bytes());
        let known = read(r#"{"v":1,"kind":"alive","provider":"p","replica":"r","colour":"red"}"#).unwrap();
        assert_eq!((known.kind, known.left()), (Kind::Alive, Duration::ZERO));
        for text in [
            r#"{"v":2,"kind":"alive","provider":"p","replica":"r"}"#,
            r#"{"v":1,"kind":"gone","provider":"p","replica":"r"}"#,
            r#"{"v":1,"kind":"alive","replica":"r"}"#,
            r#"{"v":1,"kind":"open","provider":"p","replica":"r","ms":-1}"#,
            "[]",
            "",
            "\u{0}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        let long = format!(r#"{{"v":1,"kind":"alive","provider":"{}","replica":"r"}}"#, "p".repeat(MAX_BYTES));
        assert_eq!(read(&long), None);
    }
}
