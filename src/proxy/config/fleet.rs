//! `[fleet]`: the replicas that tell each other what they find out.

use std::fs;

use super::section::{Section, Text};
use crate::fleet::{Deliberate, FleetConfig, Mode, ranges};

/// `is_there`: whether the file has the table.
pub(super) fn read_fleet(mut section: Section<'_, '_>, is_there: bool) -> Option<FleetConfig> {
    if !is_there {
        return None;
    }
    // A mistake is told, and what follows is read with a default in its place.
    let mut config = read_url(&mut section).unwrap_or_else(FleetConfig::nowhere);
    if let Some(username) = section.secret("username") {
        config = config.username(username.expose());
    }
    if let Some(password) = section.secret("password") {
        config = config.password(password.expose());
    }
    if let Some(Text { shown, value }) = section.text("ca_file", "a path") {
        let expected = "a PEM file with certificates";
        match fs::read(&value).map(|pem| config.clone().trusted_certificates(pem)) {
            Ok(Ok(trusting)) => config = trusting,
            Ok(Err(_)) => section.mistake("ca_file", &shown, expected),
            Err(error) => section.mistake("ca_file", &format!("{shown}, which cannot be read: {error}"), expected),
        }
    }
    let expected = "1 to 64 letters, digits, \"-\", \"_\" or \".\"";
    let group = |text: &str| FleetConfig::nowhere().group(text).is_ok().then(|| text.to_owned());
    if let Some(Ok(grouped)) = section.parse("group", expected, group).map(|group| config.clone().group(group)) {
        config = grouped;
    }
    let mode = |text: &str| match text {
        "hint" => Some(Mode::Hint),
        "quorum" => Some(Mode::Quorum),
        _ => None,
    };
    let mode = section.parse("mode", "\"hint\" or \"quorum\"", mode).unwrap_or_default();
    config = config.mode(mode);
    section.count("quorum", ranges::QUORUM, &mut config.quorum);
    let deliberate = |text: &str| match text {
        "auto" => Some(Deliberate::Auto),
        text => {
            let time = humantime::parse_duration(text).ok()?;
            ranges::DELIBERATE.contains(&time).then_some(Deliberate::For(time))
        }
    };
    if let Some(how) = section.parse("deliberate", "\"auto\", or a duration from 1ms to 1s", deliberate) {
        config.deliberate = how;
    }
    for field in ["quorum", "deliberate"] {
        if section.has(field) && mode == Mode::Hint {
            section.warn(field, "has no effect without mode = \"quorum\"");
        }
    }
    section.duration("timeout", ranges::TIMEOUT, &mut config.timeout);
    section.optional_duration("lease", ranges::LEASE, &mut config.lease);
    section.duration("sync", ranges::SYNC, &mut config.sync);
    section.flag("share_account", &mut config.share_account);
    section.finish();
    Some(config)
}

fn read_url(section: &mut Section<'_, '_>) -> Option<FleetConfig> {
    let expected = "the URL of a Redis, such as \"redis://redis.example:6379/0\"";
    let text = section.text("url", expected);
    section.require("url", expected);
    let Text { shown, value } = text?;
    // It may hold a password, so it is not shown, whatever else is wrong with it.
    if value.contains('@') {
        section.mistake("url", "a URL with credentials", "one without; they belong into username and password");
        return None;
    }
    FleetConfig::redis(&value).inspect_err(|_| section.mistake("url", &shown, expected)).ok()
}
