//! Settings that are out of their ranges.

use std::time::Duration;

use fusebox::fleet::{FleetConfig, Mode};

use crate::support::hub;

#[test]
fn each_setting_says_what_it_is_and_what_would_be_right() {
    let config = || FleetConfig::hub(&hub());
    let long = "g".repeat(65);
    for (error, text) in [
        (config().group("").unwrap_err(), r#"group is "", expected 1 to 64 letters, digits, '-', '_' or '.'"#),
        (config().group("a}b").unwrap_err(), r#"group is "a}b", expected 1 to 64 letters, digits, '-', '_' or '.'"#),
        (
            config().group(&*long).unwrap_err(),
            &format!("group is {long:?}, expected 1 to 64 letters, digits, '-', '_' or '.'"),
        ),
        (config().quorum(1).unwrap_err(), "quorum is 1, expected 2 to 1000"),
        (config().timeout(Duration::ZERO).unwrap_err(), "timeout is 0ns, expected 1ms to 10s"),
        (config().lease(Duration::from_millis(5)).unwrap_err(), "lease is 5ms, expected 1s to 3600s"),
        (config().sync(Duration::from_secs(90)).unwrap_err(), "sync is 90s, expected 100ms to 60s"),
    ] {
        assert_eq!(error.to_string(), text);
    }
    assert!(config().mode(Mode::Quorum).quorum(3).is_ok());
}

#[test]
fn a_url_that_names_no_redis_is_refused_and_never_shown() {
    for url in ["", "redis", "http://user:secret@redis.example", "redis://user:secret@redis.example:port", "redis:///x"]
    {
        let error = FleetConfig::redis(url).expect_err(url).to_string();
        assert_eq!(error, "url is not the URL of a Redis, expected one such as redis://redis.example:6379/0", "{url}");
    }
    for url in ["redis://redis.example", "rediss://:secret@redis.example:6380/1", "redis://[::1]:6379"] {
        let config = FleetConfig::redis(url).unwrap().password("another secret");
        assert!(!format!("{config:?}").contains("secret"));
    }
    let error = FleetConfig::redis("rediss://redis.example").unwrap().trusted_certificates("no PEM").unwrap_err();
    assert_eq!(error.to_string(), "trusted_certificates cannot be read, expected certificates in PEM");
}
