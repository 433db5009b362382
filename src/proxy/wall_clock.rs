//! The wall clock, for what is read beside what other processes write. Nothing is decided by it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[expect(clippy::disallowed_methods, reason = "what other processes write goes by the wall clock")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// A wall clock may be set to anything. The format has four digits for the year and begins with 1970.
pub(crate) fn timestamp(at: SystemTime) -> humantime::Rfc3339Timestamp {
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(at.clamp(UNIX_EPOCH, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_wall_clock_gives_a_valid_time() {
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(timestamp(UNIX_EPOCH - day).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(UNIX_EPOCH + day).to_string(), "1970-01-02T00:00:00.000Z");
        assert_eq!(timestamp(UNIX_EPOCH + 4_000_000 * day).to_string(), "9999-12-31T23:59:59.000Z");
    }
}
